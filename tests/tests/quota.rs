//! A full quota: what is refused, what is not, and how the alarm ends.

#![allow(clippy::unwrap_used)] // All of this is tests.

use anyhow::{Context, Result, ensure};
use kv_proto::etcdserverpb::alarm_request::AlarmAction;
use kv_proto::etcdserverpb::kv_client::KvClient;
use kv_proto::etcdserverpb::lease_client::LeaseClient;
use kv_proto::etcdserverpb::maintenance_client::MaintenanceClient;
use kv_proto::etcdserverpb::{
    AlarmMember, AlarmRequest, AlarmType, CompactionRequest, DefragmentRequest, DeleteRangeRequest,
    LeaseGrantRequest, LeaseRevokeRequest, PutRequest,
};
use kv_tests::cluster::{Cluster, until};
use tonic::Code;

const QUOTA: &str = "--quota-backend-bytes=4000000";
const NO_SPACE: &str = "etcdserver: mvcc: database space exceeded";

async fn put(cluster: &Cluster, n: usize, key: &str, bytes: usize) -> Result<i64, tonic::Status> {
    let mut kv = KvClient::new(cluster.channel(n).await.unwrap());
    let request = PutRequest {
        key: key.to_owned().into(),
        value: vec![7; bytes].into(),
        ..Default::default()
    };
    Ok(kv.put(request).await?.into_inner().header.unwrap().revision)
}

/// Puts through member `n` until that is refused for want of space.
async fn fill(cluster: &Cluster, n: usize) -> Result<()> {
    for key in 0..200 {
        if let Err(status) = put(cluster, n, &format!("k{key:03}"), 100_000).await {
            assert_eq!(status.code(), Code::ResourceExhausted);
            assert_eq!(status.message(), NO_SPACE);
            return Ok(());
        }
    }
    anyhow::bail!("20 MB fit into a quota of 4 MB")
}

async fn raised(cluster: &Cluster, n: usize) -> Result<Vec<AlarmMember>> {
    cluster.alarms(n, AlarmRequest::default()).await
}

async fn delete_and_compact(cluster: &Cluster, n: usize) -> Result<()> {
    let mut kv = KvClient::new(cluster.channel(n).await?);
    let delete = DeleteRangeRequest {
        key: "k".into(),
        range_end: "l".into(),
        ..Default::default()
    };
    let deleted = kv.delete_range(delete).await?.into_inner();
    ensure!(deleted.deleted > 10, "{deleted:?}");
    let compaction = CompactionRequest {
        revision: deleted.header.context("a header")?.revision,
        physical: true,
    };
    kv.compact(compaction).await?;
    Ok(())
}

#[tokio::test]
async fn full_quota_refuses_what_brings_data_until_there_is_room_again() -> Result<()> {
    let cluster = Cluster::start(3, &[QUOTA]);
    let leader = cluster.leader().await?;
    let writer = (leader + 1) % 3;
    fill(&cluster, writer).await?;
    let id = cluster.status(writer).await?.header.unwrap().member_id;
    let nospace = |list: &[AlarmMember]| {
        let mine = |a: &AlarmMember| a.member_id == id && a.alarm == AlarmType::Nospace as i32;
        list.iter().any(mine)
    };
    assert!(nospace(&raised(&cluster, leader).await?));
    // Of any member, on every member.
    let refused = put(&cluster, leader, "small", 1).await.unwrap_err();
    assert_eq!(refused.message(), NO_SPACE);
    let mut lease = LeaseClient::new(cluster.channel(leader).await?);
    let grant = LeaseGrantRequest { id: 7, ttl: 60 };
    let refused = lease.lease_grant(grant).await.unwrap_err();
    assert_eq!(refused.message(), NO_SPACE);
    // What frees or reads is admitted.
    let unknown = lease.lease_revoke(LeaseRevokeRequest { id: 9 }).await;
    assert_eq!(unknown.unwrap_err().code(), Code::NotFound);
    assert!(cluster.get(leader, "k000", false).await?.is_some());
    MaintenanceClient::new(cluster.channel(writer).await?)
        .defragment(DefragmentRequest {})
        .await?;
    let status = cluster.status(leader).await?;
    let errors = status.errors.join(" ");
    assert!(errors.contains("NOSPACE"), "{errors}");

    delete_and_compact(&cluster, writer).await?;

    until("the alarm to be cleared", || async {
        let left = raised(&cluster, leader).await?;
        ensure!(left.is_empty(), "{left:?}");
        Ok(())
    })
    .await?;
    put(&cluster, leader, "small", 1).await?;
    lease.lease_grant(grant).await?;
    fill(&cluster, writer).await?;
    cluster.converged().await?;
    Ok(())
}

#[tokio::test]
async fn alarm_that_an_operator_raised_stays_and_so_does_every_one_by_etcds_rule() -> Result<()> {
    let by_itself = Cluster::start(1, &[QUOTA]);
    let id = by_itself.status(0).await?.header.unwrap().member_id;
    let change = |action: AlarmAction, member_id| AlarmRequest {
        action: action as i32,
        member_id,
        alarm: AlarmType::Nospace as i32,
    };
    // One of its own and one of a member that never was; the quota's own comes and goes meanwhile.
    for member in [id, 5] {
        let raise = change(AlarmAction::Activate, member);
        by_itself.alarms(0, raise).await?;
    }
    let by_etcds_rule = Cluster::start(1, &[QUOTA, "--quota-auto-disarm=false"]);
    fill(&by_etcds_rule, 0).await?;
    delete_and_compact(&by_etcds_rule, 0).await?;
    // A third one whose alarm is cleared says when that would have happened to the others.
    let witness = Cluster::start(1, &[QUOTA]);
    fill(&witness, 0).await?;
    delete_and_compact(&witness, 0).await?;
    until("the alarm to be cleared", || async {
        let left = raised(&witness, 0).await?;
        ensure!(left.is_empty(), "{left:?}");
        Ok(())
    })
    .await?;
    assert_eq!(raised(&by_itself, 0).await?.len(), 2);
    let left = raised(&by_etcds_rule, 0).await?;
    assert_eq!(left.len(), 1);
    let refused = put(&by_etcds_rule, 0, "small", 1).await.unwrap_err();
    assert_eq!(refused.message(), NO_SPACE);
    let disarm = change(AlarmAction::Deactivate, left[0].member_id);
    by_etcds_rule.alarms(0, disarm).await?;
    put(&by_etcds_rule, 0, "small", 1).await?;
    Ok(())
}

#[tokio::test]
async fn quota_is_looked_at_before_the_request_itself() -> Result<()> {
    let cluster = Cluster::start(1, &["--quota-backend-bytes=1"]);
    // Without a key, and without room: etcd looks at the room first.
    let refused = put(&cluster, 0, "", 1).await.unwrap_err();
    assert_eq!(refused.message(), NO_SPACE);
    let mut kv = KvClient::new(cluster.channel(0).await?);
    let refused = kv.delete_range(DeleteRangeRequest::default()).await;
    assert_eq!(
        refused.unwrap_err().message(),
        "etcdserver: key is not provided"
    );
    Ok(())
}
