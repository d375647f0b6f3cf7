//! Three members under faults, in short: each rule by itself, then load, faults and the checkers together.
//!
//! `tests/faults.sh` runs all faults for as long as wanted.

#![allow(clippy::unwrap_used)] // All of this is tests.

use std::time::Duration;

use anyhow::{Context, Result, bail, ensure};
use kv_proto::etcdserverpb::kv_client::KvClient;
use kv_proto::etcdserverpb::{PutRequest, RangeRequest};
use kv_tests::cluster::{Cluster, until};
use kv_tests::faults::{self, Crowd, Kind, Options, has_disk_faults};
use kv_tests::kvd_binary;
use kv_tests::mesh::Mesh;
use kv_tests::skip::skipped;
use rustix::process::Signal;
use tokio::task::JoinSet;

/// What a run of a minute may do.
fn short(kinds: &[Kind], keep: &std::path::Path) -> Options {
    Options {
        seed: 7,
        time: Duration::from_secs(600),
        rounds_max: kinds.len() as u64,
        kinds: kinds.to_vec(),
        in_namespaces: false,
        crowd: Crowd::default(),
        fault_max: Duration::from_secs(3),
        keep: keep.to_owned(),
        keeps_all: false,
    }
}

#[tokio::test]
async fn faults_under_load_leave_every_answer_and_every_event_right() -> Result<()> {
    let keep = tempfile::tempdir()?;
    let kinds = [
        Kind::KillLeader,
        Kind::KillAll,
        Kind::PauseLeader,
        Kind::PartitionLeader,
        Kind::Replace,
        Kind::CompactDefragment,
    ];

    let summary = faults::run(short(&kinds, keep.path())).await?;

    let shown = summary.show();
    println!("{shown}");
    if summary.violations() > 0 {
        println!("kept in {}", keep.keep().display());
    }
    assert_eq!(summary.violations(), 0, "{shown}");
    assert_eq!(summary.undecided(), 0, "{shown}");
    for kind in kinds {
        let tally = &summary.tallies[&kind];
        assert_eq!(tally.rounds, 1, "{kind}");
        assert!(tally.answered > 100, "{kind}: {shown}");
        assert!(tally.events > 100, "{kind}: {shown}");
    }
    Ok(())
}

/// Reads that were sent to a leader after others elected another one and wrote, while it stood still.
#[tokio::test]
async fn leader_that_stood_still_never_serves_a_stale_linearizable_read() -> Result<()> {
    let cluster = Cluster::start(3, &[]);
    let mut answered = 0;
    for round in 0..3 {
        let leader = cluster.leader().await?;
        let other = (leader + 1) % 3;
        let old = format!("old-{round}");
        let new = format!("new-{round}");
        cluster.put(leader, "key", &old).await?;
        let channel = cluster.channel(leader).await?;
        let mut kv = KvClient::new(channel.clone());
        kv.range(read("key")).await?;

        cluster.signal(leader, Signal::STOP)?;
        let write = || cluster.put(other, "key", &new);
        until("a write without the leader", write).await?;
        let reads: Vec<_> = (0..20)
            .map(|_| {
                let mut kv = KvClient::new(channel.clone());
                tokio::spawn(async move { kv.range(read("key")).await })
            })
            .collect();
        // They are in its socket before it goes on: all tasks run on this thread, and none has anything to wait for.
        for _ in 0..100 {
            tokio::task::yield_now().await;
        }
        cluster.signal(leader, Signal::CONT)?;

        for read in reads {
            // An error is allowed, an old value is not.
            if let Ok(answer) = read.await? {
                let value = answer.into_inner().kvs[0].value.to_vec();
                assert_eq!(String::from_utf8_lossy(&value), new);
                answered += 1;
            }
        }
    }
    cluster.leader().await?;
    cluster.converged().await?;
    println!("{answered} of 60 reads were answered");
    assert!(answered > 0, "no read was answered: nothing was checked");
    Ok(())
}

fn read(key: &str) -> RangeRequest {
    RangeRequest {
        key: key.to_owned().into(),
        ..Default::default()
    }
}

/// Three members behind a mesh, and who leads.
async fn meshed() -> Result<(Cluster, Mesh, usize)> {
    let mesh = Mesh::default();
    let mut cluster = Cluster::start(0, &[]);
    for n in 0..3 {
        cluster.add_place(&[]);
        cluster.join_mesh(n, &mesh).await?;
    }
    for n in 0..3 {
        cluster.start_member(n);
    }
    let leader = cluster.leader().await?;
    Ok((cluster, mesh, leader))
}

/// Everything passes again: one leader, writes on every member, and equal members.
async fn serves_again(cluster: &Cluster, mesh: &Mesh) -> Result<()> {
    mesh.heal();
    cluster.leader().await?;
    for n in 0..3 {
        until("a write on each member", || cluster.put(n, "healed", "v")).await?;
    }
    cluster.converged().await?;
    Ok(())
}

#[tokio::test]
async fn bridge_partition_lets_writes_pass_and_heals() -> Result<()> {
    let (cluster, mesh, leader) = meshed().await?;
    for bridge in 0..3 {
        let [one, other] = [(bridge + 1) % 3, (bridge + 2) % 3];
        mesh.cut(one, other);
        mesh.cut(other, one);

        // The bridge has a quorum with either side, whoever led before.
        let write = || cluster.put(bridge, "bridge", "v");
        until("a write through the bridge", write).await?;

        serves_again(&cluster, &mesh)
            .await
            .with_context(|| format!("bridge {bridge}, first leader {leader}"))?;
    }
    Ok(())
}

#[tokio::test]
async fn one_way_partition_lets_writes_pass_and_heals() -> Result<()> {
    let (cluster, mesh, _) = meshed().await?;
    for is_from_leader in [true, false] {
        let leader = cluster.leader().await?;
        let [one, other] = [(leader + 1) % 3, (leader + 2) % 3];
        for follower in [one, other] {
            match is_from_leader {
                true => mesh.cut(leader, follower),
                false => mesh.cut(follower, leader),
            }
        }

        // The followers reach each other, and elect one of them: the old leader says nothing, or hears nothing.
        let write = || cluster.put(one, "one-way", "v");
        until("a write without the leader", write).await?;

        serves_again(&cluster, &mesh)
            .await
            .with_context(|| format!("from the leader: {is_from_leader}"))?;
    }
    Ok(())
}

/// A cluster whose members' disks are steered by files; none, said loudly, if kvd has no such seam.
fn with_steered_disks(members: usize) -> Option<Cluster> {
    if !has_disk_faults(&kvd_binary()) {
        skipped(
            "kvd is built without the feature disk-faults (cargo build -p kv-server --features disk-faults)",
        );
        return None;
    }
    let mut cluster = Cluster::start(0, &[]);
    for n in 0..members {
        let (log, control) = (log_file(&cluster, n), control_file(&cluster, n));
        cluster.add_place(&["--log-outputs", &log.to_string_lossy()]);
        cluster.set_env(n, "KVD_DISK_FAULTS", &control.to_string_lossy());
    }
    for n in 0..members {
        cluster.start_member(n);
    }
    Some(cluster)
}

fn log_file(cluster: &Cluster, n: usize) -> std::path::PathBuf {
    cluster.folder().join(format!("m{n}.log"))
}

fn control_file(cluster: &Cluster, n: usize) -> std::path::PathBuf {
    cluster.folder().join(format!("m{n}.disk"))
}

#[tokio::test]
async fn leader_with_a_stalled_disk_steps_aside() -> Result<()> {
    let Some(cluster) = with_steered_disks(3) else {
        return Ok(());
    };
    let leader = cluster.leader().await?;
    let follower = (leader + 1) % 3;
    let old = cluster.status(follower).await?.leader;
    std::fs::write(control_file(&cluster, leader), "stall")?;

    until("another leader", || async {
        // An entry that the stalled disk does not take.
        cluster.put(follower, "stalled", "v").await?;
        let now = cluster.status(follower).await?.leader;
        ensure!(now != 0 && now != old, "{now:x} leads");
        Ok(())
    })
    .await?;
    // The disk still stands still, and the others serve.
    for n in [follower, (leader + 2) % 3] {
        cluster.put(n, "beside", "v").await?;
        assert_eq!(cluster.get(n, "beside", false).await?.as_deref(), Some("v"));
    }
    let log = std::fs::read_to_string(log_file(&cluster, leader))?;
    assert!(log.contains("the log's disk stands still"), "{log}");

    std::fs::remove_file(control_file(&cluster, leader))?;
    cluster.leader().await?;
    cluster.converged().await?;
    Ok(())
}

#[tokio::test]
async fn member_whose_fsync_fails_stops_and_logs_the_cause() -> Result<()> {
    let Some(mut cluster) = with_steered_disks(3) else {
        return Ok(());
    };
    let leader = cluster.leader().await?;
    for victim in [(leader + 1) % 3, leader] {
        std::fs::write(control_file(&cluster, victim), "fail")?;

        let survivor = (leader + 2) % 3;
        let write = || cluster.put(survivor, "beside", "v");
        until("a write beside the broken disk", write).await?;
        let status = cluster.ended(victim).await?;

        assert!(!status.success(), "{status}");
        let log = std::fs::read_to_string(log_file(&cluster, victim))?;
        assert!(log.contains("injected by KVD_DISK_FAULTS"), "{log}");
        assert!(!log.contains("panicked"), "{log}");
        std::fs::remove_file(control_file(&cluster, victim))?;
        cluster.start_member(victim);
        cluster.leader().await?;
        cluster.converged().await?;
    }
    Ok(())
}

/// Trap 17: openraft bounds what is under way in entries; a member bounds it in bytes, 64 MiB.
#[tokio::test]
async fn writes_that_a_disk_holds_up_are_bounded_in_bytes() -> Result<()> {
    const CLIENTS: usize = 80;
    let Some(cluster) = with_steered_disks(1) else {
        return Ok(());
    };
    let kv = KvClient::new(cluster.channel(0).await?);
    let control = control_file(&cluster, 0);
    std::fs::write(&control, "stall")?;
    let mut writers = JoinSet::new();
    for n in 0..CLIENTS {
        let mut kv = kv.clone();
        let put = PutRequest {
            key: format!("large-{n}").into(),
            value: vec![7; 1 << 20].into(),
            ..Default::default()
        };
        writers.spawn(async move { kv.put(put).await });
    }

    let (mut written, mut refused) = (0, 0);
    while let Some(outcome) = writers.join_next().await {
        match outcome? {
            Ok(_) => written += 1,
            Err(status) if status.message() == "etcdserver: too many requests" => {
                refused += 1;
                if refused == 1 {
                    std::fs::remove_file(&control)?;
                }
            }
            Err(status) => bail!("neither written nor refused: {status}"),
        }
    }

    assert!(refused > 0, "{written} written");
    assert_eq!(written + refused, CLIENTS);
    Ok(())
}
