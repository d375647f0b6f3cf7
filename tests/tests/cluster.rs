//! Members on loopback form a cluster, serve on each member, and survive the loss of one.

#![allow(clippy::unwrap_used)] // All of this is tests.

use std::time::{Duration, Instant};

use anyhow::Result;
use kv_tests::cluster::{Cluster, until};
use rustix::process::Signal;

#[tokio::test]
async fn three_members_serve_on_each_and_survive_the_loss_of_the_leader() -> Result<()> {
    let mut cluster = Cluster::start(3, &[]);
    let leader = cluster.leader().await?;

    for n in 0..3 {
        let key = format!("through-{n}");
        cluster.put(n, &key, "1").await?;
        for reader in 0..3 {
            let value = cluster.get(reader, &key, false).await?;
            assert_eq!(value.as_deref(), Some("1"), "{key} on member {reader}");
        }
    }

    cluster.kill(leader);
    let killed = Instant::now();
    let survivor = cluster.running()[0];
    let put = || cluster.put(survivor, "after-the-kill", "2");
    until("writes to resume", put).await?;
    println!("writes resumed after {:?}", killed.elapsed());
    let other = cluster.running()[1];
    let value = cluster.get(other, "after-the-kill", false).await?;
    assert_eq!(value.as_deref(), Some("2"));

    cluster.start_member(leader);
    cluster.leader().await?;
    let value = cluster.get(leader, "after-the-kill", false).await?;
    assert_eq!(value.as_deref(), Some("2"));
    cluster.converged().await?;
    Ok(())
}

#[tokio::test]
async fn member_list_is_complete_before_the_other_members_start() -> Result<()> {
    let mut cluster = Cluster::start(0, &[]);
    for _ in 0..3 {
        cluster.add_place(&[]);
    }
    cluster.start_member(0);

    let members = cluster.members(0).await?;

    let names: Vec<&str> = members.iter().map(|member| member.name.as_str()).collect();
    assert_eq!(names.len(), 3);
    for name in ["m0", "m1", "m2"] {
        assert!(names.contains(&name), "{names:?}");
    }
    assert!(members.iter().all(|member| member.client_ur_ls.is_empty()));
    Ok(())
}

#[tokio::test]
async fn cluster_comes_back_from_disk_whatever_its_flags_say() -> Result<()> {
    let mut cluster = Cluster::start(3, &[]);
    cluster.leader().await?;
    cluster.put(0, "kept", "1").await?;
    for n in 0..3 {
        assert!(cluster.terminate(n).success());
    }

    for n in 0..3 {
        cluster.start_member_with(n, &["--initial-cluster-state", "existing"]);
    }

    cluster.leader().await?;
    assert_eq!(cluster.get(1, "kept", false).await?.as_deref(), Some("1"));
    until("all members to be published", || async {
        let members = cluster.members(2).await?;
        anyhow::ensure!(members.iter().all(|member| !member.client_ur_ls.is_empty()));
        Ok(())
    })
    .await?;
    cluster.converged().await?;
    Ok(())
}

#[tokio::test]
async fn wiped_member_of_a_running_cluster_is_refused() -> Result<()> {
    let mut cluster = Cluster::start(3, &[]);
    cluster.leader().await?;
    until("all members to be published", || async {
        let members = cluster.members(0).await?;
        anyhow::ensure!(members.iter().all(|member| !member.client_ur_ls.is_empty()));
        Ok(())
    })
    .await?;
    cluster.kill(2);
    std::fs::remove_dir_all(cluster.data_dir(2))?;

    for state in ["new", "existing"] {
        cluster.start_member_with(2, &["--initial-cluster-state", state]);
        let status = cluster.ended(2).await?;
        assert_eq!(status.code(), Some(1), "state {state}");
    }

    cluster.put(0, "still", "served").await?;
    Ok(())
}

#[tokio::test]
async fn member_that_stood_still_follows_again() -> Result<()> {
    let cluster = Cluster::start(3, &[]);
    let leader = cluster.leader().await?;
    let follower = (leader + 1) % 3;
    cluster.signal(follower, Signal::STOP)?;

    put_for(LONG_SILENCE, &cluster, leader).await?;
    cluster.signal(follower, Signal::CONT)?;

    cluster.leader().await?;
    cluster.converged().await?;
    Ok(())
}

/// Packets that are lost without a word leave connections behind that TCP would try ever more rarely.
#[tokio::test]
async fn member_behind_a_cut_link_follows_soon_after_it_heals() -> Result<()> {
    let mut cluster = Cluster::start(0, &[]);
    let mut links = Vec::new();
    for n in 0..3 {
        cluster.add_place(&[]);
        links.push(cluster.put_link(n).await?);
    }
    for n in 0..3 {
        cluster.start_member(n);
    }
    let leader = cluster.leader().await?;
    let follower = (leader + 1) % 3;
    links[follower].cut();
    put_for(LONG_SILENCE, &cluster, leader).await?;

    links[follower].heal();
    let healed = Instant::now();

    cluster.converged().await?;
    let took = healed.elapsed();
    println!("the member followed after {took:?}");
    assert!(took < Duration::from_secs(10), "it took {took:?}");
    Ok(())
}

/// Longer than a connection may go without an answer.
const LONG_SILENCE: Duration = Duration::from_secs(4);

async fn put_for(time: Duration, cluster: &Cluster, through: usize) -> Result<()> {
    let begun = Instant::now();
    while begun.elapsed() < time {
        cluster.put(through, "key", "value").await?;
    }
    Ok(())
}
