//! A member of a cluster that lost its quorum for good goes on alone (`--force-new-cluster`), and grows a new cluster.

#![allow(clippy::unwrap_used)] // All of this is tests.

use anyhow::{Context, Result, ensure};
use kv_proto::etcdserverpb::MemberAddRequest;
use kv_proto::etcdserverpb::cluster_client::ClusterClient;
use kv_tests::cluster::{Cluster, until};

const FORCE: [&str; 1] = ["--force-new-cluster"];
const KEYS: usize = 200;

async fn fill(cluster: &Cluster, via: usize) -> Result<()> {
    for number in 0..KEYS {
        cluster
            .put(via, &format!("key {number}"), &number.to_string())
            .await?;
    }
    Ok(())
}

async fn check_keys(cluster: &Cluster, via: usize) -> Result<()> {
    for number in 0..KEYS {
        let value = cluster.get(via, &format!("key {number}"), false).await?;
        assert_eq!(value, Some(number.to_string()), "key {number}");
    }
    Ok(())
}

/// Adds the next member to the cluster of `via`, and waits until it votes.
async fn grow(cluster: &mut Cluster, via: usize) -> Result<usize> {
    let place = cluster.add_place(&[]);
    let request = MemberAddRequest {
        peer_ur_ls: vec![cluster.peer_url(place)],
        is_learner: false,
    };
    let client = ClusterClient::new(cluster.channel(via).await?);
    until("the member to be added", || {
        let (mut client, request) = (client.clone(), request.clone());
        async move { Ok(client.member_add(request).await?) }
    })
    .await?;
    cluster.start_member_with(place, &["--initial-cluster-state", "existing"]);
    until("the new member to vote", || async {
        ensure!(!cluster.status(place).await?.is_learner);
        cluster.put(place, "grown", "yes").await
    })
    .await?;
    Ok(place)
}

#[tokio::test]
async fn survivor_of_three_serves_all_data_alone_and_grows_back_to_three() -> Result<()> {
    let mut cluster = Cluster::start(3, &[]);
    let leader = cluster.leader().await?;
    let survivor = (leader + 1) % 3;
    let lost = [leader, (leader + 2) % 3];
    // Through the survivor: it answers when it has applied what it acknowledges.
    fill(&cluster, survivor).await?;
    let cluster_id = cluster
        .status(survivor)
        .await?
        .header
        .context("a header")?
        .cluster_id;
    for n in 0..3 {
        cluster.kill(n);
    }

    cluster.start_member_with(survivor, &FORCE);
    until("the survivor to lead", || {
        cluster.put(survivor, "alone", "1")
    })
    .await?;
    check_keys(&cluster, survivor).await?;
    let members = cluster.members(survivor).await?;
    assert_eq!(members.len(), 1, "{members:?}");
    let header = cluster.status(survivor).await?.header.context("a header")?;
    assert_eq!(
        (header.member_id, header.cluster_id),
        (members[0].id, cluster_id)
    );

    // The flag is needed once, and harmless when it is still there.
    cluster.kill(survivor);
    cluster.start_member(survivor);
    cluster.put(survivor, "without", "1").await?;
    cluster.kill(survivor);
    cluster.start_member_with(survivor, &FORCE);
    cluster.put(survivor, "again", "1").await?;
    assert_eq!(cluster.members(survivor).await?, members);
    check_keys(&cluster, survivor).await?;

    // One that was thought lost comes back, learns that it is removed, and ends.
    cluster.start_member(lost[0]);
    let status = cluster.ended(lost[0]).await?;
    println!("a member left behind ends with {status}");
    assert_eq!(cluster.members(survivor).await?, members);

    cluster.forget(lost[0]);
    cluster.forget(lost[1]);
    let second = grow(&mut cluster, survivor).await?;
    let third = grow(&mut cluster, survivor).await?;
    assert_eq!(cluster.members(third).await?.len(), 3);
    check_keys(&cluster, third).await?;
    cluster.converged().await?;
    // Three again: the loss of one is survived.
    cluster.kill(survivor);
    until("the two new ones to serve", || {
        cluster.put(second, "two", "1")
    })
    .await?;
    check_keys(&cluster, third).await?;
    Ok(())
}

#[tokio::test]
async fn survivor_keeps_what_only_the_lost_leader_knew_to_be_committed() -> Result<()> {
    let mut cluster = Cluster::start(3, &[]);
    let leader = cluster.leader().await?;
    let (survivor, other) = ((leader + 1) % 3, (leader + 2) % 3);
    // With the other one gone, each acknowledged write is on the survivor's disk; whether it knows so is another matter.
    cluster.kill(other);
    fill(&cluster, leader).await?;
    cluster.kill(leader);
    cluster.kill(survivor);

    cluster.start_member_with(survivor, &FORCE);
    until("the survivor to lead", || {
        cluster.put(survivor, "alone", "1")
    })
    .await?;
    check_keys(&cluster, survivor).await
}

#[tokio::test]
async fn member_of_a_cluster_that_has_its_quorum_is_not_torn_out_of_it() -> Result<()> {
    let mut cluster = Cluster::start(3, &[]);
    let leader = cluster.leader().await?;
    let member = (leader + 1) % 3;
    fill(&cluster, leader).await?;
    cluster.kill(member);

    cluster.start_member_with(member, &FORCE);
    let status = cluster.ended(member).await?;
    assert!(!status.success(), "{status}");

    cluster.start_member(member);
    cluster.leader().await?;
    assert_eq!(cluster.members(member).await?.len(), 3);
    check_keys(&cluster, member).await?;
    cluster.converged().await?;
    Ok(())
}
