//! Members whose entries are gone from the leader's log are caught up by a snapshot over the wire.

#![allow(clippy::unwrap_used)] // All of this is tests.

use anyhow::{Result, ensure};
use kv_proto::etcdserverpb::cluster_client::ClusterClient;
use kv_proto::etcdserverpb::kv_client::KvClient;
use kv_proto::etcdserverpb::{MemberAddRequest, PutRequest};
use kv_tests::cluster::{Cluster, until};

/// A log that forgets quickly.
const SHORT_LOG: [&str; 4] = ["--snapshot-count", "50", "--snapshot-catchup-entries", "10"];
const RECEIVED: &str = "etcd_network_snapshot_receive_success";

/// Entries of one filling; the log forgets about a thousand at a time.
const ENTRIES: usize = 2500;
/// Puts under way at the same time.
const WRITERS: usize = 20;

async fn fill(cluster: &Cluster, through: usize, what: &str) -> Result<()> {
    let client = KvClient::new(cluster.channel(through).await?);
    let mut writers = tokio::task::JoinSet::new();
    for writer in 0..WRITERS {
        let (mut client, what) = (client.clone(), what.to_owned());
        writers.spawn(async move {
            for n in (writer..ENTRIES).step_by(WRITERS) {
                let request = PutRequest {
                    key: format!("key-{}", n % 100).into(),
                    value: what.repeat(20).into(),
                    ..Default::default()
                };
                client.put(request).await?;
            }
            anyhow::Ok(())
        });
    }
    while let Some(written) = writers.join_next().await {
        written??;
    }
    Ok(())
}

#[tokio::test]
async fn member_that_was_away_for_long_is_caught_up_by_a_snapshot() -> Result<()> {
    let mut cluster = Cluster::start(3, &SHORT_LOG);
    let leader = cluster.leader().await?;
    fill(&cluster, leader, "before").await?;
    let away = (leader + 1) % 3;
    cluster.kill(away);
    fill(&cluster, leader, "while away").await?;

    cluster.start_member(away);

    let hash = cluster.converged().await?;
    assert!(cluster.metric(away, RECEIVED).await? >= 1.0);
    let value = cluster.get(away, "key-99", false).await?.unwrap();
    assert!(value.starts_with("while away"), "{value}");
    // What it received survives a crash of its own.
    cluster.kill(away);
    cluster.start_member(away);
    assert_eq!(cluster.converged().await?.hash, hash.hash);
    Ok(())
}

#[tokio::test]
async fn new_member_of_an_old_cluster_is_caught_up_by_a_snapshot() -> Result<()> {
    let mut cluster = Cluster::start(1, &SHORT_LOG);
    cluster.leader().await?;
    fill(&cluster, 0, "old").await?;
    let new = cluster.add_place(&SHORT_LOG);
    let request = MemberAddRequest {
        peer_ur_ls: vec![cluster.peer_url(new)],
        is_learner: false,
    };
    let mut client = ClusterClient::new(cluster.channel(0).await?);
    client.member_add(request).await?;

    cluster.start_member_with(new, &["--initial-cluster-state", "existing"]);

    until("the new member to have a vote", || async {
        ensure!(!cluster.status(new).await?.is_learner, "it has none");
        Ok(())
    })
    .await?;
    assert!(cluster.metric(new, RECEIVED).await? >= 1.0);
    assert_eq!(cluster.members(new).await?, cluster.members(0).await?);
    cluster.converged().await?;
    Ok(())
}
