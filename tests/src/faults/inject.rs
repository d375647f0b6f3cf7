//! The faults themselves: each comes, lasts and goes; the round takes back what is left.

use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail, ensure};
use kv_proto::etcdserverpb::cluster_client::ClusterClient;
use kv_proto::etcdserverpb::kv_client::KvClient;
use kv_proto::etcdserverpb::maintenance_client::MaintenanceClient;
use kv_proto::etcdserverpb::{
    CompactionRequest, DefragmentRequest, MemberAddRequest, MemberRemoveRequest, MoveLeaderRequest,
};
use rand::RngExt;
use rustix::process::Signal;

use super::{Kind, MEMBERS, Run, faketime};
use crate::cluster::until;
use crate::mesh::Way;

/// A member that comes to an empty place of a running cluster.
const JOIN: [&str; 2] = ["--initial-cluster-state", "existing"];
/// Moves of leadership in one round.
const MOVES: usize = 5;
/// Furthest that a clock jumps.
const JUMP_SECS: i64 = 3_600;

impl Run {
    /// Makes a fault, and says what it was. Errors: the cluster did not do what it must.
    pub(crate) async fn inject(&mut self, kind: Kind) -> Result<String> {
        let time = self.fault_time();
        let leader = self.cluster.leader().await?;
        let follower = self.another(&[leader]);
        match kind {
            Kind::None => tokio::time::sleep(time).await,
            Kind::KillFollower => self.kill(&[follower], time).await,
            Kind::KillLeader => self.kill(&[leader], time).await,
            Kind::KillMajority => {
                let other = self.any_member();
                let one = self.another(&[other]);
                self.kill(&[one, other], time).await;
            }
            Kind::KillAll => self.kill(&[0, 1, 2], time / 4).await,
            Kind::PauseLeader => self.pause(leader, time).await?,
            Kind::PauseFollower => self.pause(follower, time).await?,
            Kind::PartitionLeader => self.isolate(leader, time).await?,
            Kind::PartitionFollower => self.isolate(follower, time).await?,
            Kind::PartitionOneWay => return self.partition_one_way(leader, time).await,
            Kind::PartitionBridge => return self.partition_bridge(time).await,
            Kind::SlowLinks => return self.slow_links(time).await,
            Kind::SlowDisk => return self.slow_disk(time).await,
            Kind::StalledDisk => {
                self.set_disk_fault(leader, Some("stall"))?;
                tokio::time::sleep(time).await;
                self.set_disk_fault(leader, None)?;
            }
            Kind::FailingDisk => return self.failing_disk().await,
            Kind::Wipe => return self.wipe().await,
            Kind::Replace => return self.replace().await,
            Kind::MoveLeader => return self.move_leader().await,
            Kind::CompactDefragment => return self.compact_and_defragment().await,
            Kind::ClockWall => return self.jump(true, time).await,
            Kind::ClockMonotonic => return self.jump(false, time).await,
            Kind::FullDisks => return self.full_disks().await,
        }
        Ok(format!("for {} ms", time.as_millis()))
    }

    async fn kill(&mut self, members: &[usize], time: Duration) {
        for n in members {
            self.cluster.kill(*n);
        }
        tokio::time::sleep(time).await;
        for n in members {
            self.cluster.start_member(*n);
        }
    }

    async fn pause(&mut self, member: usize, time: Duration) -> Result<()> {
        self.cluster.signal(member, Signal::STOP)?;
        tokio::time::sleep(time).await;
        self.cluster.signal(member, Signal::CONT)
    }

    async fn isolate(&mut self, member: usize, time: Duration) -> Result<()> {
        for other in (0..MEMBERS).filter(|other| *other != member) {
            self.network.part(member, other)?;
        }
        tokio::time::sleep(time).await;
        self.network.heal()
    }

    async fn partition_one_way(&mut self, leader: usize, time: Duration) -> Result<String> {
        let follower = self.another(&[leader]);
        let third = self.another(&[leader, follower]);
        let (ways, what) = match self.random.random_range(0..4) {
            0 => (vec![(leader, follower)], "leader to follower"),
            1 => (vec![(follower, leader)], "follower to leader"),
            2 => (vec![(leader, follower), (leader, third)], "leader to all"),
            _ => (vec![(follower, leader), (third, leader)], "all to leader"),
        };
        for (from, to) in ways {
            self.network.cut(from, to)?;
        }
        tokio::time::sleep(time).await;
        self.network.heal()?;
        Ok(format!("{what} for {} ms", time.as_millis()))
    }

    async fn partition_bridge(&mut self, time: Duration) -> Result<String> {
        let bridge = self.any_member();
        let one = self.another(&[bridge]);
        let other = self.another(&[bridge, one]);
        self.network.part(one, other)?;
        tokio::time::sleep(time).await;
        self.network.heal()?;
        Ok(format!("over {bridge} for {} ms", time.as_millis()))
    }

    async fn slow_links(&mut self, time: Duration) -> Result<String> {
        let way = Way {
            is_cut: false,
            delay: Duration::from_millis(self.random.random_range(0..40)),
            bytes_per_second: self.random.random_range(30_000..300_000),
            lost_per_mille: self.random.random_range(0..100),
        };
        for from in 0..MEMBERS {
            for to in (0..MEMBERS).filter(|to| *to != from) {
                self.network.set(from, to, way)?;
            }
        }
        tokio::time::sleep(time).await;
        self.network.heal()?;
        Ok(format!("{way:?} for {} ms", time.as_millis()))
    }

    /// What the disk of a member's log does from now on; nothing special if `None`.
    pub(crate) fn set_disk_fault(&self, n: usize, fault: Option<&str>) -> Result<()> {
        let control = self.cluster.folder().join(format!("m{n}.disk"));
        match fault {
            Some(fault) => std::fs::write(control, fault)?,
            None if control.exists() => std::fs::remove_file(control)?,
            None => {}
        }
        Ok(())
    }

    async fn slow_disk(&mut self, time: Duration) -> Result<String> {
        let delay = self.random.random_range(20..700);
        let members = if self.random.random_bool(0.5) {
            vec![self.any_member()]
        } else {
            vec![0, 1, 2]
        };
        for n in &members {
            self.set_disk_fault(*n, Some(&format!("delay-ms {delay}")))?;
        }
        tokio::time::sleep(time).await;
        Ok(format!(
            "{delay} ms on {members:?} for {} ms",
            time.as_millis()
        ))
    }

    async fn failing_disk(&mut self) -> Result<String> {
        let n = self.any_member();
        let logged = self.log_len(n);
        self.set_disk_fault(n, Some("fail"))?;
        let status = self
            .cluster
            .ended(n)
            .await
            .context("its fsync fails, and it goes on")?;
        self.set_disk_fault(n, None)?;
        ensure!(
            !status.success(),
            "member {n} ended with {status} though its fsync failed"
        );
        let log = self.log_since(n, logged);
        ensure!(
            log.contains("injected"),
            "member {n} does not log why it stopped: {log}"
        );
        self.cluster.start_member(n);
        Ok(format!("of member {n}"))
    }

    fn log_len(&self, n: usize) -> usize {
        std::fs::metadata(self.log_path(n)).map_or(0, |data| data.len() as usize)
    }

    fn log_since(&self, n: usize, begin: usize) -> String {
        let log = std::fs::read(self.log_path(n)).unwrap_or_default();
        String::from_utf8_lossy(log.get(begin..).unwrap_or_default()).into_owned()
    }

    async fn wipe(&mut self) -> Result<String> {
        let n = self.any_member();
        let id = self.id(n).await?;
        self.cluster.kill(n);
        std::fs::remove_dir_all(self.cluster.data_dir(n))?;
        let logged = self.log_len(n);
        self.cluster.start_member(n);
        let status = self
            .cluster
            .ended(n)
            .await
            .context("a wiped member is not refused")?;
        ensure!(!status.success(), "a wiped member ended with {status}");
        let said = self.log_since(n, logged);
        self.remove_and_add(n, id)
            .await
            .with_context(|| format!("it said: {said}"))?;
        Ok(format!("of member {n}"))
    }

    async fn replace(&mut self) -> Result<String> {
        let n = self.any_member();
        let id = self.id(n).await?;
        self.remove(n, id).await?;
        let status = self
            .cluster
            .ended(n)
            .await
            .context("a removed member goes on")?;
        std::fs::remove_dir_all(self.cluster.data_dir(n))?;
        self.add(n).await?;
        Ok(format!("of member {n}, which ended with {status}"))
    }

    async fn remove_and_add(&mut self, n: usize, id: u64) -> Result<()> {
        self.remove(n, id).await?;
        // What it made before it was refused.
        if self.cluster.data_dir(n).exists() {
            std::fs::remove_dir_all(self.cluster.data_dir(n))?;
        }
        self.add(n).await
    }

    async fn remove(&mut self, n: usize, id: u64) -> Result<()> {
        let via = self.another(&[n]);
        until("the member to be removed", || async {
            let mut members = ClusterClient::new(self.cluster.channel(via).await?);
            match members.member_remove(MemberRemoveRequest { id }).await {
                Ok(_) => Ok(()),
                // An attempt before this one did it.
                Err(status) if status.message().contains("member not found") => Ok(()),
                Err(status) => Err(status.into()),
            }
        })
        .await
    }

    async fn add(&mut self, n: usize) -> Result<()> {
        let via = self.another(&[n]);
        let request = MemberAddRequest {
            peer_ur_ls: vec![self.cluster.peer_url(n)],
            is_learner: false,
        };
        until("the member to be added", || async {
            let mut members = ClusterClient::new(self.cluster.channel(via).await?);
            match members.member_add(request.clone()).await {
                Ok(_) => Ok(()),
                Err(status) if status.message().contains("already exist") => Ok(()),
                Err(status) => Err(status.into()),
            }
        })
        .await?;
        self.cluster.start_member_with(n, &JOIN);
        Ok(())
    }

    async fn id(&self, n: usize) -> Result<u64> {
        let status = self.cluster.status(n).await?;
        Ok(status.header.context("a status has a header")?.member_id)
    }

    async fn move_leader(&mut self) -> Result<String> {
        let mut longest = Duration::ZERO;
        for _ in 0..MOVES {
            let leader = self.cluster.leader().await?;
            let target = self.another(&[leader]);
            let target_id = self.id(target).await?;
            let begun = Instant::now();
            let mut maintenance = MaintenanceClient::new(self.cluster.channel(leader).await?);
            let moved = maintenance
                .move_leader(MoveLeaderRequest { target_id })
                .await;
            match moved {
                Ok(_) => longest = longest.max(begun.elapsed()),
                // Leadership may have gone elsewhere meanwhile, on a busy machine.
                Err(status) if status.message().contains("not leader") => {}
                // So long may it take there; the cluster must go on all the same, which is checked after the round.
                Err(status) if status.message().contains("leader transfer took too long") => {}
                Err(status) => bail!("leadership is not moved to {target}: {status}"),
            }
            tokio::time::sleep(Duration::from_millis(300)).await;
        }
        Ok(format!("{MOVES} times, longest {} ms", longest.as_millis()))
    }

    async fn compact_and_defragment(&mut self) -> Result<String> {
        let via = self.any_member();
        let mut kv = KvClient::new(self.cluster.channel(via).await?);
        // What is behind this round is read by nobody any more.
        let request = CompactionRequest {
            revision: self.base,
            physical: self.random.random_bool(0.5),
        };
        match kv.compact(request).await {
            Ok(_) => {}
            Err(status) if status.message().contains("has been compacted") => {}
            Err(status) => bail!("compaction at {}: {status}", self.base),
        }
        for n in 0..MEMBERS {
            let mut maintenance = MaintenanceClient::new(self.cluster.channel(n).await?);
            maintenance
                .defragment(DefragmentRequest {})
                .await
                .with_context(|| format!("defragment {n}"))?;
        }
        Ok(format!("at {}", self.base))
    }

    /// Restarts a member under libfaketime, moves its clocks forth and back, and restarts it without.
    async fn jump(&mut self, is_wall_only: bool, time: Duration) -> Result<String> {
        let n = if self.random.random_bool(0.5) {
            self.cluster.leader().await?
        } else {
            self.any_member()
        };
        let library = faketime().context("libfaketime was found before")?;
        let control = self.cluster.folder().join(format!("m{n}.clock"));
        let jump = self.random.random_range(5..JUMP_SECS);
        let jump = if self.random.random_bool(0.5) {
            jump
        } else {
            -jump
        };
        std::fs::write(&control, "+0\n")?;
        let env = [
            ("LD_PRELOAD", library.to_string_lossy().into_owned()),
            (
                "FAKETIME_TIMESTAMP_FILE",
                control.to_string_lossy().into_owned(),
            ),
            ("FAKETIME_NO_CACHE", "1".to_owned()),
            (
                "FAKETIME_DONT_FAKE_MONOTONIC",
                i32::from(is_wall_only).to_string(),
            ),
        ];
        self.cluster.terminate(n);
        for (name, value) in &env {
            self.cluster.set_env(n, name, value);
        }
        self.cluster.start_member(n);
        for (name, _) in &env {
            self.cluster.unset_env(n, name);
        }
        self.healthy(Duration::from_secs(60))
            .await
            .context("under libfaketime")?;
        std::fs::write(&control, format!("{jump:+}\n"))?;
        tokio::time::sleep(time).await;
        std::fs::write(&control, "+0\n")?;
        tokio::time::sleep(Duration::from_millis(500)).await;
        self.cluster.kill(n);
        self.cluster.start_member(n);
        Ok(format!(
            "of {jump:+} s on member {n} for {} ms",
            time.as_millis()
        ))
    }
}
