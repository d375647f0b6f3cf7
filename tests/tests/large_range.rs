//! Many large lists at once: memory stays bounded, and nobody gets a part of an answer.

#![allow(clippy::unwrap_used)] // All of this is tests.

use std::time::Instant;

use anyhow::{Context, Result};
use kv_proto::etcdserverpb::kv_client::KvClient;
use kv_proto::etcdserverpb::request_op::Request;
use kv_proto::etcdserverpb::{PutRequest, RangeRequest, RequestOp, TxnRequest};
use kv_tests::cluster::Cluster;
use tokio::task::JoinSet;

const KEYS: usize = 12_000;
const VALUE_BYTES: usize = 4096;
const CLIENTS: usize = 40;
/// One answer has 50 MB; forty at once would take 2 GB, and without pieces 4.
const PEAK_MAX: u64 = 600 << 20;

async fn fill(cluster: &Cluster) -> Result<()> {
    let mut kv = KvClient::new(cluster.channel(0).await?);
    for first in (0..KEYS).step_by(100) {
        let puts = (first..first + 100).map(|n| RequestOp {
            request: Some(Request::RequestPut(PutRequest {
                key: format!("key-{n:06}").into(),
                value: vec![n as u8; VALUE_BYTES].into(),
                ..Default::default()
            })),
        });
        let txn = TxnRequest {
            success: puts.collect(),
            ..Default::default()
        };
        kv.txn(txn).await?;
    }
    Ok(())
}

/// The most memory that the process ever had.
fn peak_bytes(pid: u32) -> Result<u64> {
    let status = std::fs::read_to_string(format!("/proc/{pid}/status"))?;
    let line = status.lines().find_map(|line| line.strip_prefix("VmHWM:"));
    let kib = line.context("no VmHWM")?.trim().trim_end_matches(" kB");
    Ok(kib.parse::<u64>()? * 1024)
}

#[tokio::test]
async fn many_large_lists_at_once_take_bounded_memory() -> Result<()> {
    let cluster = Cluster::start(1, &["--memory-budget=32MiB"]);
    fill(&cluster).await?;
    let begun = Instant::now();
    let mut lists = JoinSet::new();
    for _ in 0..CLIENTS {
        let channel = tonic::transport::Endpoint::from_shared(cluster.client_url(0))?
            .connect()
            .await?;
        lists.spawn(async move {
            let mut kv = KvClient::new(channel).max_decoding_message_size(usize::MAX);
            let all = RangeRequest {
                key: b"\0".as_slice().into(),
                range_end: b"\0".as_slice().into(),
                ..Default::default()
            };
            let answer = kv.range(all).await;
            answer.map(|answer| (answer.into_inner(), begun.elapsed()))
        });
    }
    let mut took = Vec::new();
    while let Some(list) = lists.join_next().await {
        match list? {
            Ok((answer, after)) => {
                took.push(after);
                assert_eq!((answer.kvs.len(), answer.count), (KEYS, KEYS as i64));
                for (n, kv) in answer.kvs.iter().enumerate() {
                    assert_eq!(kv.key, format!("key-{n:06}"));
                    assert!(kv.value.len() == VALUE_BYTES && kv.value[7] == n as u8);
                }
            }
            Err(status) => assert_eq!(status.message(), "etcdserver: too many requests"),
        }
    }
    let answered = took.len();
    let (first, last) = (took.iter().min(), took.iter().max());
    let (first, last) = first.zip(last).context("no list was answered")?;
    println!(
        "{answered} of {CLIENTS} lists were answered, the first after {first:?}, the last after {last:?}"
    );
    // An answer is larger than its part of the budget, so it goes alone: the others wait, or wait too long and are refused.
    assert!(
        answered < CLIENTS || *first < *last / 4,
        "all lists were answered at once: the first after {first:?}, the last after {last:?}"
    );
    let peak = peak_bytes(cluster.pid(0))?;
    println!("{peak} bytes at the peak");
    assert!(
        peak < PEAK_MAX,
        "{answered} answers, {peak} bytes at the peak"
    );
    // And the member is there for others.
    cluster.put(0, "after", "all").await?;
    Ok(())
}
