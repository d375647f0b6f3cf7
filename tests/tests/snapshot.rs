//! Members that are behind what the log still has are caught up by a snapshot, whoever dies meanwhile.

#![allow(clippy::unwrap_used)] // All of this is tests.

use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail, ensure};
use kv_proto::etcdserverpb::MemberAddRequest;
use kv_proto::etcdserverpb::cluster_client::ClusterClient;
use kv_proto::etcdserverpb::{CompactionRequest, PutRequest, kv_client::KvClient};
use kv_tests::cluster::{Cluster, until};
use kv_tests::link::Link;
use rand::rngs::StdRng;
use rand::{Rng, SeedableRng};
use tokio::task::JoinSet;

/// A short log, purged after as few entries.
const FLAGS: &[&str] = &[
    "--snapshot-count",
    "100",
    "--snapshot-catchup-entries",
    "10",
];
const ENTRIES: usize = 3000;
const WRITERS: usize = 16;
/// Longest time until a member that is behind is sent something.
const BEGINS_MAX: Duration = Duration::from_secs(60);

/// Puts `count` values of `bytes` through one member.
async fn fill(cluster: &Cluster, n: usize, count: usize, bytes: usize) -> Result<()> {
    let mut writers = JoinSet::new();
    for writer in 0..WRITERS {
        let mut kv = KvClient::new(cluster.channel(n).await?);
        writers.spawn(async move {
            for entry in (writer..count).step_by(WRITERS) {
                let put = PutRequest {
                    key: format!("key-{}", entry % 500).into(),
                    value: vec![entry as u8; bytes].into(),
                    ..Default::default()
                };
                kv.put(put).await.unwrap();
            }
        });
    }
    writers.join_all().await;
    Ok(())
}

async fn received(cluster: &Cluster, n: usize) -> Result<f64> {
    let received = cluster.metric(n, "etcd_network_snapshot_receive_success");
    received.await
}

#[tokio::test]
async fn a_member_behind_the_log_is_caught_up_while_clients_write() -> Result<()> {
    let mut cluster = Cluster::start(3, FLAGS);
    let leader = cluster.leader().await?;
    let lagging = (leader + 1) % 3;
    cluster.put(lagging, "before", "1").await?;
    let written = AtomicU64::new(0);
    let mut rounds = 0;
    // The leader drops entries when it next fails to reach the dead member, which may be after that is back.
    while received(&cluster, lagging).await.unwrap_or(0.0) == 0.0 {
        rounds += 1;
        assert!(rounds <= 5, "entries alone caught it up, again and again");
        cluster.kill(lagging);
        fill(&cluster, leader, ENTRIES, 100).await?;
        let compaction = CompactionRequest {
            revision: rounds * ENTRIES as i64 / 2,
            physical: true,
        };
        let mut kv = KvClient::new(cluster.channel(leader).await?);
        kv.compact(compaction).await?;
        let target = cluster.status(leader).await?.raft_applied_index;

        cluster.start_member(lagging);
        let done = AtomicBool::new(false);
        let write = async {
            while !done.load(Ordering::Relaxed) {
                cluster.put(leader, "meanwhile", "2").await?;
                written.fetch_add(1, Ordering::Relaxed);
            }
            anyhow::Ok(())
        };
        let catch_up = async {
            let caught_up = until("the member to catch up", || async {
                let applied = cluster.status(lagging).await?.raft_applied_index;
                ensure!(applied >= target);
                Ok(())
            })
            .await;
            done.store(true, Ordering::Relaxed);
            caught_up
        };
        let (wrote, caught_up) = tokio::join!(write, catch_up);
        wrote?;
        caught_up?;
    }

    assert!(written.load(Ordering::Relaxed) > 0);
    cluster.converged().await?;
    let value = cluster.get(lagging, "meanwhile", true).await?;
    assert_eq!(value.as_deref(), Some("2"));
    // What it received is what it comes back with.
    cluster.kill(lagging);
    cluster.start_member(lagging);
    cluster.leader().await?;
    cluster.put(lagging, "after", "3").await?;
    cluster.converged().await?;
    Ok(())
}

#[tokio::test]
async fn a_new_member_is_caught_up_by_a_snapshot() -> Result<()> {
    let mut cluster = Cluster::start(1, FLAGS);
    cluster.leader().await?;
    fill(&cluster, 0, ENTRIES, 100).await?;
    let new = cluster.add_place(FLAGS);
    let request = MemberAddRequest {
        peer_ur_ls: vec![cluster.peer_url(new)],
        is_learner: false,
    };
    let mut client = ClusterClient::new(cluster.channel(0).await?);
    client.member_add(request).await?;

    cluster.start_member_with(new, &["--initial-cluster-state", "existing"]);

    cluster.put(new, "through the new one", "1").await?;
    assert!(received(&cluster, new).await? > 0.0);
    cluster.converged().await?;
    let members = cluster.members(new).await?;
    assert_eq!(members.len(), 2);
    assert_eq!(members, cluster.members(0).await?);
    Ok(())
}

#[tokio::test]
async fn a_member_killed_while_it_is_caught_up_is_caught_up_in_the_end() -> Result<()> {
    const ROUNDS: u64 = 20;
    const KILLS: u64 = 4;
    let mut cluster = Cluster::start(3, FLAGS);
    let leader = cluster.leader().await?;
    let lagging = (leader + 1) % 3;
    cluster.kill(lagging);
    // Large enough that the kills fall into the transfer and the install.
    fill(&cluster, leader, ENTRIES, 10_000).await?;

    let (mut kills, mut last) = (0, 0);
    for round in 0..ROUNDS {
        last = round;
        cluster.start_member(lagging);
        let begun = transfer_begins(&cluster, leader, lagging).await?;
        if begun {
            tokio::time::sleep(Duration::from_millis(100 * kills)).await;
        }
        cluster.kill(lagging);
        kills += u64::from(is_staging(&cluster, lagging));
        cluster.put(leader, "round", &round.to_string()).await?;
        if kills == KILLS {
            break;
        }
        if !begun || !is_staging(&cluster, lagging) {
            // It is caught up.
            fill(&cluster, leader, ENTRIES, 10_000).await?;
        }
    }
    assert_eq!(kills, KILLS, "of {ROUNDS} kills fell into a transfer");
    cluster.start_member(lagging);

    cluster.leader().await?;
    let value = cluster.get(lagging, "round", false).await?;
    assert_eq!(value.context("it was put")?, last.to_string());
    cluster.converged().await?;
    assert!(received(&cluster, lagging).await? > 0.0);
    one_database_is_left(&cluster, lagging).await
}

/// Whether a member makes a database of what it is sent, or was killed while it did.
fn is_staging(cluster: &Cluster, n: usize) -> bool {
    let db = cluster.data_dir(n).join("member/db");
    let mut folders = std::fs::read_dir(db).into_iter().flatten().flatten();
    folders.any(|folder| {
        let is_number = |name: &str| name.parse::<u64>().is_ok();
        folder.file_name().to_str().is_some_and(is_number)
            && folder.path().join("INCOMPLETE").exists()
    })
}

/// Waits until a snapshot is on its way to `lagging`, or entries alone have caught it up; whether it is the snapshot.
async fn transfer_begins(cluster: &Cluster, leader: usize, lagging: usize) -> Result<bool> {
    let target = cluster.status(leader).await?.raft_applied_index;
    let begun = Instant::now();
    loop {
        if is_staging(cluster, lagging) {
            return Ok(true);
        }
        let status = cluster.status(lagging).await;
        if status.is_ok_and(|status| status.raft_applied_index >= target) {
            return Ok(false);
        }
        ensure!(
            begun.elapsed() < BEGINS_MAX,
            "member {lagging} is sent nothing"
        );
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
}

async fn one_database_is_left(cluster: &Cluster, n: usize) -> Result<()> {
    // An old one is removed in the background.
    until("all databases but one to go", || async {
        let generations = std::fs::read_dir(cluster.data_dir(n).join("member/db"))?;
        ensure!(generations.count() == 1);
        Ok(())
    })
    .await
}

/// Puts `count` values of `bytes` under keys of their own, which do not compress.
async fn fill_large(cluster: &Cluster, n: usize, count: usize, bytes: usize) -> Result<()> {
    let mut writers = JoinSet::new();
    for writer in 0..WRITERS {
        let mut kv = KvClient::new(cluster.channel(n).await?);
        writers.spawn(async move {
            for entry in (writer..count).step_by(WRITERS) {
                let mut value = vec![0; bytes];
                StdRng::seed_from_u64(entry as u64).fill_bytes(&mut value);
                let put = PutRequest {
                    key: format!("large-{entry}").into(),
                    value: value.into(),
                    ..Default::default()
                };
                kv.put(put).await.unwrap();
            }
        });
    }
    writers.join_all().await;
    Ok(())
}

const LARGE: usize = 1600;
const LARGE_BYTES: usize = 30_000;

/// A member behind a link whose missing entries are gone, which is stopped; and the leader.
async fn left_behind(cluster: &mut Cluster) -> Result<(usize, usize)> {
    let leader = cluster.leader().await?;
    let lagging = (leader + 1) % 3;
    cluster.put(lagging, "before", "1").await?;
    cluster.kill(lagging);
    fill_large(cluster, leader, LARGE, LARGE_BYTES).await?;
    // Small ones behind, until the log does not reach back to the large ones.
    fill(cluster, leader, ENTRIES, 100).await?;
    Ok((leader, lagging))
}

async fn catches_up(cluster: &Cluster, leader: usize, lagging: usize) -> Result<()> {
    let target = cluster.status(leader).await?.raft_applied_index;
    until("the member to catch up", || async {
        let applied = cluster.status(lagging).await?.raft_applied_index;
        ensure!(applied >= target);
        Ok(())
    })
    .await?;
    cluster.converged().await?;
    Ok(())
}

async fn start_behind_links() -> Result<(Cluster, Vec<Link>)> {
    let mut cluster = Cluster::start(0, &[]);
    let mut links = Vec::new();
    for n in 0..3 {
        cluster.add_place(FLAGS);
        links.push(cluster.put_link(n).await?);
    }
    for n in 0..3 {
        cluster.start_member(n);
    }
    Ok((cluster, links))
}

#[tokio::test]
async fn transfer_that_breaks_off_goes_on_where_it_was() -> Result<()> {
    const ROUNDS: usize = 5;
    let (mut cluster, links) = start_behind_links().await?;
    let size = (LARGE * LARGE_BYTES) as u64;
    for _ in 0..ROUNDS {
        let (leader, lagging) = left_behind(&mut cluster).await?;
        let link = &links[lagging];
        let (before, breaks) = (link.passed(), link.breaks());
        // Broken in the middle, and again near the end.
        link.break_at(before + size / 2);
        cluster.start_member(lagging);
        until("the first break", || async {
            ensure!(link.breaks() == breaks + 1);
            Ok(())
        })
        .await?;
        link.break_at(before + size * 9 / 10);
        catches_up(&cluster, leader, lagging).await?;

        assert_eq!(link.breaks(), breaks + 2);
        let sent = link.passed() - before;
        if received(&cluster, lagging).await? > 0.0 {
            println!("{sent} bytes were sent for values of {size}");
            assert!(
                sent < size * 3 / 2,
                "{sent} bytes were sent for values of {size}"
            );
            return Ok(());
        }
        // The leader drops entries when it next fails to reach the dead member, which may be after that is back.
        println!("the log still reached back, and entries caught the member up");
    }
    panic!("entries alone caught it up, again and again")
}

#[tokio::test]
async fn member_whose_sender_dies_in_the_middle_is_caught_up_by_the_next_leader() -> Result<()> {
    let (mut cluster, links) = start_behind_links().await?;
    let (leader, lagging) = in_the_middle(&mut cluster, &links).await?;
    cluster.kill(leader);
    assert!(is_staging(&cluster, lagging), "it was in the middle");

    let next = cluster.leader().await?;
    assert_ne!(next, lagging, "it lacks what was acknowledged");
    catches_up(&cluster, next, lagging).await?;
    cluster.start_member(leader);
    cluster.leader().await?;
    cluster.converged().await?;
    Ok(())
}

#[tokio::test]
async fn member_that_dies_in_the_middle_is_caught_up_when_it_is_back() -> Result<()> {
    let (mut cluster, links) = start_behind_links().await?;
    let (leader, lagging) = in_the_middle(&mut cluster, &links).await?;
    cluster.kill(lagging);
    assert!(is_staging(&cluster, lagging), "it was in the middle");
    cluster.start_member(lagging);

    catches_up(&cluster, leader, lagging).await?;
    assert!(received(&cluster, lagging).await? > 0.0);
    one_database_is_left(&cluster, lagging).await
}

/// A member to which half of a snapshot has been sent; and the leader, which sends it.
async fn in_the_middle(cluster: &mut Cluster, links: &[Link]) -> Result<(usize, usize)> {
    const ROUNDS: usize = 5;
    let size = (LARGE * LARGE_BYTES) as u64;
    for _ in 0..ROUNDS {
        let (leader, lagging) = left_behind(cluster).await?;
        cluster.start_member(lagging);
        if transfer_begins(cluster, leader, lagging).await? {
            let before = links[lagging].passed();
            while is_staging(cluster, lagging) {
                if links[lagging].passed() - before > size / 2 {
                    return Ok((leader, lagging));
                }
                tokio::time::sleep(Duration::from_millis(2)).await;
            }
        }
        // The leader drops entries when it next fails to reach the dead member, which may be after that is back.
        println!("the log still reached back, and entries caught the member up");
        catches_up(cluster, leader, lagging).await?;
    }
    bail!("entries alone caught it up, again and again")
}
