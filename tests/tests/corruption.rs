//! A member that holds other data than the rest, with checksums that are right, is found and named.

#![allow(clippy::unwrap_used)] // All of this is tests.

use std::ops::ControlFlow;
use std::path::Path;

use anyhow::{Context, Result, ensure};
use bytes::Bytes;
use kv_mvcc::backend::{Backend, Keyspace, Op, Options};
use kv_proto::etcdserverpb::alarm_request::AlarmAction;
use kv_proto::etcdserverpb::kv_client::KvClient;
use kv_proto::etcdserverpb::lease_client::LeaseClient;
use kv_proto::etcdserverpb::{
    AlarmMember, AlarmRequest, AlarmType, CompactionRequest, DeleteRangeRequest, LeaseGrantRequest,
};
use kv_proto::mvccpb::KeyValue;
use kv_tests::cluster::{Cluster, until};
use prost::Message;
use tonic::{Code, Status};

/// Gives a key of a member that does not run another value, as no software that works would.
fn alter(data_dir: &Path, key: &str) -> Result<()> {
    let backend = Backend::open(&data_dir.join("member"), Options::default())?;
    let mut found = None;
    backend
        .view()?
        .scan(Keyspace::Rev, &[], None, &mut |revision, stored| {
            let pair = KeyValue::decode(stored).unwrap();
            if pair.key == key.as_bytes() {
                found = Some((Bytes::copy_from_slice(revision), pair));
            }
            ControlFlow::Continue(())
        })?;
    let (revision, pair) = found.context("the key is stored")?;
    let altered = KeyValue {
        value: "altered".into(),
        ..pair
    };
    let stored = altered.encode_to_vec().into();
    backend.write(vec![Op::Put(Keyspace::Rev, revision, stored)]);
    backend.checkpoint()?;
    backend.close()?;
    Ok(())
}

/// Three members, one of which, no leader, holds another value for a key; returns its number and id.
async fn altered_cluster(flags: &[&str]) -> Result<(Cluster, usize, u64)> {
    let mut cluster = Cluster::start(3, flags);
    let leader = cluster.leader().await?;
    let wrong = (leader + 1) % 3;
    for number in 0..20 {
        cluster
            .put(wrong, &format!("key {number}"), "right")
            .await?;
    }
    let id = cluster
        .status(wrong)
        .await?
        .header
        .context("a header")?
        .member_id;
    assert!(cluster.terminate(wrong).success());
    alter(cluster.data_dir(wrong), "key 7")?;
    Ok((cluster, wrong, id))
}

async fn corrupt_alarm(cluster: &Cluster, n: usize) -> Result<AlarmMember> {
    until("the alarm", || async {
        let raised = cluster.alarms(n, AlarmRequest::default()).await?;
        ensure!(raised.len() == 1, "{raised:?}");
        Ok(raised[0])
    })
    .await
}

fn check_corrupt(status: &Status) {
    assert_eq!(
        (status.code(), status.message()),
        (Code::DataLoss, "etcdserver: corrupt cluster")
    );
}

#[tokio::test]
async fn compaction_finds_the_member_that_differs_and_writes_stop_until_it_is_disarmed()
-> Result<()> {
    let (mut cluster, wrong, id) = altered_cluster(&["--compact-hash-check-time", "500ms"]).await?;
    cluster.start_member(wrong);
    let leader = cluster.leader().await?;
    let right = (0..3)
        .find(|n| *n != wrong && *n != leader)
        .unwrap_or(leader);
    let revision = cluster.put(leader, "last", "1").await?;
    let mut kv = KvClient::new(cluster.channel(right).await?);
    let compaction = CompactionRequest {
        revision,
        physical: true,
    };
    kv.compact(compaction).await?;

    let alarm = corrupt_alarm(&cluster, right).await?;

    assert_eq!(
        (alarm.member_id, alarm.alarm),
        (id, AlarmType::Corrupt as i32)
    );
    let raised = cluster
        .metric(right, "etcd_debugging_server_alarms")
        .await?;
    assert!(raised >= 1.0, "{raised}");
    let errors = cluster.status(right).await?.errors;
    assert_eq!(errors, [format!("memberID:{id} alarm:CORRUPT")]);
    let refused = cluster.put(right, "k", "1").await.unwrap_err();
    check_corrupt(refused.downcast_ref().unwrap());
    let delete = DeleteRangeRequest {
        key: "key 1".into(),
        ..Default::default()
    };
    check_corrupt(&kv.delete_range(delete).await.unwrap_err());
    check_corrupt(&kv.compact(compaction).await.unwrap_err());
    let grant = LeaseGrantRequest { id: 1, ttl: 60 };
    let mut lease = LeaseClient::new(cluster.channel(right).await?);
    check_corrupt(&lease.lease_grant(grant).await.unwrap_err());
    assert_eq!(
        cluster.get(right, "key 7", false).await?.as_deref(),
        Some("right")
    );

    let disarm = AlarmRequest {
        action: AlarmAction::Deactivate as i32,
        member_id: id,
        alarm: AlarmType::Corrupt as i32,
    };
    cluster.alarms(right, disarm).await?;
    cluster.put(right, "k", "1").await?;
    Ok(())
}

#[tokio::test]
async fn periodic_check_finds_the_member_that_differs_without_a_compaction() -> Result<()> {
    let (mut cluster, wrong, id) = altered_cluster(&["--corrupt-check-time", "500ms"]).await?;
    cluster.start_member(wrong);
    let leader = cluster.leader().await?;

    let alarm = corrupt_alarm(&cluster, leader).await?;

    assert_eq!(
        (alarm.member_id, alarm.alarm),
        (id, AlarmType::Corrupt as i32)
    );
    Ok(())
}

#[tokio::test]
async fn member_that_differs_does_not_start_if_it_is_to_compare_first() -> Result<()> {
    let gate = "--feature-gates=InitialCorruptCheck=true";
    let (mut cluster, wrong, _) = altered_cluster(&[gate]).await?;

    cluster.start_member(wrong);

    assert!(!cluster.ended(wrong).await?.success());
    // Others are compared as well, and start.
    let other = (wrong + 1) % 3;
    assert!(cluster.terminate(other).success());
    cluster.start_member(other);
    until("the member to serve", || cluster.put(other, "k", "1")).await?;
    Ok(())
}
