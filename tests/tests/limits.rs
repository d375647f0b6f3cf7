//! What one request may be: operations, bytes, and streams of a connection.

#![allow(clippy::unwrap_used)] // All of this is tests.

use anyhow::{Result, ensure};
use kv_proto::etcdserverpb::kv_client::KvClient;
use kv_proto::etcdserverpb::request_op::Request;
use kv_proto::etcdserverpb::{PutRequest, RequestOp, TxnRequest};
use kv_tests::cluster::Cluster;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;
use tonic::Code;

fn put(key: &str, bytes: usize) -> PutRequest {
    PutRequest {
        key: key.to_owned().into(),
        value: vec![7; bytes].into(),
        ..Default::default()
    }
}

fn txn(ops: usize) -> TxnRequest {
    let ops = (0..ops).map(|n| RequestOp {
        request: Some(Request::RequestPut(put(&format!("k{n}"), 1))),
    });
    TxnRequest {
        success: ops.collect(),
        ..Default::default()
    }
}

#[tokio::test]
async fn larger_transactions_and_requests_are_refused_in_etcds_words() -> Result<()> {
    let flags = ["--max-txn-ops=3", "--max-request-bytes=2000"];
    let cluster = Cluster::start(1, &flags);
    let mut kv = KvClient::new(cluster.channel(0).await?);
    kv.txn(txn(3)).await?;
    let refused = kv.txn(txn(4)).await.unwrap_err();
    assert_eq!(refused.code(), Code::InvalidArgument);
    let text = "etcdserver: too many operations in txn request";
    assert_eq!(refused.message(), text);

    kv.put(put("k", 1900)).await?;
    let refused = kv.put(put("k", 2000)).await.unwrap_err();
    assert_eq!(refused.code(), Code::InvalidArgument);
    assert_eq!(refused.message(), "etcdserver: request is too large");
    // Half a MiB more is what a message may have before it is looked at.
    let refused = kv.put(put("k", 2000 + (512 << 10))).await.unwrap_err();
    assert_eq!(refused.code(), Code::ResourceExhausted);
    let text = "grpc: received message larger than max (";
    assert!(refused.message().starts_with(text), "{refused}");
    Ok(())
}

/// The server's limit of streams as its first frame says it, SETTINGS; `None` if it says none.
async fn max_concurrent_streams(cluster: &Cluster) -> Result<Option<u32>> {
    const SETTINGS: u8 = 4;
    const MAX_CONCURRENT_STREAMS: u16 = 3;
    // A connection first, so that the member serves.
    cluster.channel(0).await?;
    let url = cluster.client_url(0);
    let mut stream = TcpStream::connect(url.trim_start_matches("http://")).await?;
    stream
        .write_all(b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n")
        .await?;
    stream
        .write_all(&[0, 0, 0, SETTINGS, 0, 0, 0, 0, 0])
        .await?;
    let mut head = [0; 9];
    stream.read_exact(&mut head).await?;
    ensure!(head[3] == SETTINGS, "the first frame is {head:?}");
    let mut settings = vec![0; usize::from(head[2]) | usize::from(head[1]) << 8];
    stream.read_exact(&mut settings).await?;
    let mut settings = settings.chunks_exact(6);
    Ok(settings.find_map(|setting| {
        let id = u16::from_be_bytes([setting[0], setting[1]]);
        let value = u32::from_be_bytes([setting[2], setting[3], setting[4], setting[5]]);
        (id == MAX_CONCURRENT_STREAMS).then_some(value)
    }))
}

#[tokio::test]
async fn connection_is_told_how_many_streams_it_may_have() -> Result<()> {
    let few = Cluster::start(1, &["--max-concurrent-streams=7"]);
    assert_eq!(max_concurrent_streams(&few).await?, Some(7));
    let default = Cluster::start(1, &[]);
    let limit = max_concurrent_streams(&default).await?;
    assert!(limit.is_none_or(|limit| limit == u32::MAX), "{limit:?}");
    Ok(())
}
