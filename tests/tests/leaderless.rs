//! What a member answers when it knows no leader: what needs none, and a refusal at once to those who ask for one.

#![allow(clippy::unwrap_used)] // All of this is tests.

use std::time::Duration;

use anyhow::{Context, Result, ensure};
use kv_proto::etcdserverpb::cluster_client::ClusterClient;
use kv_proto::etcdserverpb::kv_client::KvClient;
use kv_proto::etcdserverpb::lease_client::LeaseClient;
use kv_proto::etcdserverpb::maintenance_client::MaintenanceClient;
use kv_proto::etcdserverpb::watch_client::WatchClient;
use kv_proto::etcdserverpb::watch_request::RequestUnion;
use kv_proto::etcdserverpb::{
    DefragmentRequest, LeaseGrantRequest, LeaseKeepAliveRequest, LeaseLeasesRequest,
    MemberAddRequest, PutRequest, RangeRequest, WatchCreateRequest, WatchRequest,
};
use kv_tests::cluster::{Cluster, until};
use tokio::sync::mpsc;
use tokio::time::timeout;
use tokio_stream::wrappers::ReceiverStream;
use tonic::{Code, Request, Status};

const LEASE: i64 = 7;
/// Longer than three election timeouts, after which streams that need a leader end.
const PATIENCE: Duration = Duration::from_secs(20);

/// The metadata by which a client says that it needs a leader.
fn with_leader<T>(message: T) -> Request<T> {
    let mut request = Request::new(message);
    request
        .metadata_mut()
        .insert("hasleader", "true".parse().unwrap());
    request
}

fn range(serializable: bool) -> RangeRequest {
    RangeRequest {
        key: "k".into(),
        serializable,
        ..Default::default()
    }
}

fn check_no_leader(status: &Status) {
    assert_eq!(
        (status.code(), status.message()),
        (Code::Unavailable, "etcdserver: no leader")
    );
}

#[tokio::test]
async fn member_without_a_leader_serves_what_needs_none_and_says_so_to_the_rest() -> Result<()> {
    let mut cluster = Cluster::start(3, &[]);
    let leader = cluster.leader().await?;
    let left = (leader + 1) % 3;
    cluster.put(left, "k", "1").await?;
    let channel = cluster.channel(left).await?;
    let mut lease = LeaseClient::new(channel.clone());
    let grant = LeaseGrantRequest {
        id: LEASE,
        ttl: 600,
    };
    lease.lease_grant(grant).await?;

    // Streams that are open when the leader goes.
    let create = WatchRequest {
        request_union: Some(RequestUnion::CreateRequest(WatchCreateRequest {
            key: "k".into(),
            ..Default::default()
        })),
    };
    let (watch_sender, requests) = mpsc::channel(1);
    watch_sender.send(create.clone()).await?;
    let requests = with_leader(ReceiverStream::new(requests));
    let watching = WatchClient::new(channel.clone()).watch(requests).await?;
    let mut watching = watching.into_inner();
    assert!(watching.message().await?.context("a response")?.created);
    let (patient_sender, requests) = mpsc::channel(1);
    patient_sender.send(create).await?;
    let requests = ReceiverStream::new(requests);
    let patient = WatchClient::new(channel.clone()).watch(requests).await?;
    let mut patient = patient.into_inner();
    assert!(patient.message().await?.context("a response")?.created);
    let (lease_sender, requests) = mpsc::channel(1);
    lease_sender
        .send(LeaseKeepAliveRequest { id: LEASE })
        .await?;
    let requests = with_leader(ReceiverStream::new(requests));
    let mut keeping = lease.lease_keep_alive(requests).await?.into_inner();
    assert_eq!(keeping.message().await?.context("a response")?.ttl, 600);

    for n in 0..3 {
        if n != left {
            cluster.kill(n);
        }
    }
    until("the member to notice", || async {
        ensure!(cluster.status(left).await?.leader == 0);
        Ok(())
    })
    .await?;

    let status = cluster.status(left).await?;
    assert_eq!(status.errors, ["etcdserver: no leader"]);
    assert_eq!(cluster.metric(left, "etcd_server_has_leader").await?, 0.0);
    assert!(
        cluster
            .page(left, "/health")
            .await?
            .starts_with("HTTP/1.1 503")
    );
    let mut kv = KvClient::new(channel.clone());
    for serializable in [true, false] {
        let refused = kv
            .range(with_leader(range(serializable)))
            .await
            .unwrap_err();
        check_no_leader(&refused);
    }
    let put = PutRequest {
        key: "k".into(),
        ..Default::default()
    };
    check_no_leader(&kv.put(with_leader(put)).await.unwrap_err());
    // As in etcd, not after the whole request timeout.
    let add = MemberAddRequest {
        peer_ur_ls: vec!["http://127.0.0.1:1".into()],
        is_learner: true,
    };
    let refused = ClusterClient::new(channel.clone()).member_add(add).await;
    let refused = refused.unwrap_err();
    assert_eq!(
        (refused.code(), refused.message()),
        (Code::Unavailable, "etcdserver: unhealthy cluster")
    );
    // What needs no leader.
    let read = kv.range(range(true)).await?.into_inner();
    assert_eq!(&read.kvs[0].value[..], b"1");
    assert_eq!(cluster.members(left).await?.len(), 3);
    cluster.hash_kv(left, 0).await?;
    let leases = lease
        .lease_leases(LeaseLeasesRequest {})
        .await?
        .into_inner();
    assert_eq!(leases.leases[0].id, LEASE);
    let mut maintenance = MaintenanceClient::new(channel.clone());
    maintenance.defragment(DefragmentRequest {}).await?;

    // The streams of those who need a leader end, and no others.
    let ended = timeout(PATIENCE, watching.message()).await?.unwrap_err();
    check_no_leader(&ended);
    let ended = timeout(PATIENCE, keeping.message()).await?.unwrap_err();
    check_no_leader(&ended);

    cluster.start_member(leader);
    until("writes to go on", || cluster.put(left, "k", "2")).await?;
    let event = timeout(PATIENCE, patient.message())
        .await??
        .context("an event")?;
    assert_eq!(
        &event.events[0].kv.as_ref().context("a pair")?.value[..],
        b"2"
    );
    Ok(())
}
