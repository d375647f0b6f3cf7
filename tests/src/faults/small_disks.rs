//! Full disks on all members at once: small file systems fill together, and each member recovers in place.

use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail, ensure};
use kv_proto::etcdserverpb::alarm_request::AlarmAction;
use kv_proto::etcdserverpb::kv_client::KvClient;
use kv_proto::etcdserverpb::maintenance_client::MaintenanceClient;
use kv_proto::etcdserverpb::{
    AlarmRequest, CompactionRequest, DefragmentRequest, DeleteRangeRequest,
};

use super::round::end_of;
use super::{MEMBERS, Run};
use crate::cluster::{Cluster, until};

/// Two log segments, the reserve, and room for a database that is to fill up.
const DISK_MIB: u64 = 380;
const NO_SPACE: &str = "database space exceeded";
/// All that is done here may take so long.
const LIMIT: Duration = Duration::from_secs(240);

/// Whether this process may mount.
pub(crate) fn can_mount() -> bool {
    tempfile::tempdir().is_ok_and(|folder| SmallDisk::mount(folder.path(), "probe").is_ok())
}

impl Run {
    /// Fills the disks of a cluster of its own, beside the one under load, and brings it back.
    pub(crate) async fn full_disks(&mut self) -> Result<String> {
        tokio::time::timeout(LIMIT, fill_and_recover())
            .await
            .context("it takes too long")?
    }
}

async fn fill_and_recover() -> Result<String> {
    let folder = tempfile::tempdir()?;
    let disks: Vec<SmallDisk> = (0..MEMBERS)
        .map(|n| SmallDisk::mount(folder.path(), &format!("disk{n}")))
        .collect::<Result<_>>()?;
    let mut cluster = Cluster::start(0, &[]);
    for (n, disk) in disks.iter().enumerate() {
        let log = folder.path().join(format!("m{n}.log"));
        cluster.add_place(&["--log-outputs", &log.to_string_lossy()]);
        cluster.set_data_dir(n, disk.path.join("data"));
    }
    for n in 0..MEMBERS {
        cluster.start_member(n);
    }
    cluster.leader().await?;

    for n in 0..MEMBERS {
        // One each to delete through the member below.
        let key = spare(n);
        until("a write on an empty disk", || cluster.put(n, &key, "v")).await?;
    }
    let written = fill(&cluster).await?;
    ensure!(written > 100, "only {written} puts fit");
    for n in 0..MEMBERS {
        let value = cluster
            .get(n, "full/0", false)
            .await
            .context("a read on a full disk")?;
        ensure!(value.is_some(), "member {n} lost a key on a full disk");
    }
    let restarted = cluster.leader().await?;
    cluster.kill(restarted);
    cluster.start_member(restarted);
    cluster
        .leader()
        .await
        .context("after a member was restarted on a full disk")?;

    let mut kv = KvClient::new(cluster.channel(0).await?);
    let request = DeleteRangeRequest {
        key: "full/".into(),
        range_end: end_of("full/").into(),
        ..Default::default()
    };
    let deleted = kv
        .delete_range(request)
        .await
        .context("a deletion on a full disk")?
        .into_inner();
    ensure!(
        deleted.deleted >= written,
        "{} of {written} keys were there",
        deleted.deleted
    );
    for n in 0..MEMBERS {
        // The answer to a physical compaction says that this very member has removed what is dead.
        let channel = cluster.channel(n).await?;
        let mut kv = KvClient::new(channel.clone());
        let request = DeleteRangeRequest {
            key: spare(n).into(),
            ..Default::default()
        };
        let deleted = kv.delete_range(request).await?.into_inner();
        let request = CompactionRequest {
            revision: deleted.header.context("a deletion has a header")?.revision,
            physical: true,
        };
        kv.compact(request)
            .await
            .context("a compaction on a full disk")?;
        MaintenanceClient::new(channel)
            .defragment(DefragmentRequest {})
            .await
            .context("a defragmentation on a full disk")?;
    }
    resume(&cluster).await?;
    for n in 0..MEMBERS {
        if let Some(status) = cluster.has_ended(n)? {
            bail!("member {n} ended with {status} on a full disk");
        }
    }
    cluster.converged().await?;
    Ok(format!(
        "with {written} puts of 200 kB, member {restarted} restarted on a full one"
    ))
}

/// A key that is there only to be deleted through member `n`.
fn spare(n: usize) -> String {
    format!("spare/{n}")
}

/// Puts until there is no space, through each member in turn; how many were taken.
async fn fill(cluster: &Cluster) -> Result<i64> {
    let value = "x".repeat(200_000);
    let mut written = 0;
    let deadline = Instant::now() + LIMIT / 2;
    loop {
        ensure!(
            Instant::now() < deadline,
            "{written} puts, and no end of the disk"
        );
        let n = written as usize % MEMBERS;
        match cluster.put(n, &format!("full/{written}"), &value).await {
            Ok(_) => written += 1,
            Err(error) if format!("{error:#}").contains(NO_SPACE) => return Ok(written),
            // The disks are slower than the clients, and may be so slow that leadership moves.
            Err(_) => tokio::time::sleep(Duration::from_millis(50)).await,
        }
    }
}

/// Disarms all alarms until they stay so, and writes through each member.
async fn resume(cluster: &Cluster) -> Result<()> {
    let deadline = Instant::now() + LIMIT / 3;
    loop {
        for alarm in cluster.alarms(0, AlarmRequest::default()).await? {
            let request = AlarmRequest {
                action: AlarmAction::Deactivate as i32,
                member_id: alarm.member_id,
                alarm: alarm.alarm,
            };
            cluster.alarms(0, request).await?;
        }
        tokio::time::sleep(Duration::from_millis(500)).await;
        if cluster.alarms(0, AlarmRequest::default()).await?.is_empty() {
            break;
        }
        ensure!(Instant::now() < deadline, "the alarms stay");
    }
    for n in 0..MEMBERS {
        until("a write after a full disk", || {
            cluster.put(n, "resumed", "v")
        })
        .await?;
    }
    Ok(())
}

/// An ext4 file system of [`DISK_MIB`] in a file, or one in memory where loop devices are missing; unmounted when dropped.
struct SmallDisk {
    path: PathBuf,
}

impl SmallDisk {
    fn mount(folder: &Path, name: &str) -> Result<SmallDisk> {
        let (path, image) = (folder.join(name), folder.join(format!("{name}.img")));
        std::fs::create_dir(&path)?;
        std::fs::File::create(&image)?.set_len(DISK_MIB << 20)?;
        let formatted = Command::new("mkfs.ext4")
            .args(["-q", "-F", "-m", "0"])
            .arg(&image)
            .output();
        let is_formatted = formatted.is_ok_and(|output| output.status.success());
        let mut mount = Command::new("mount");
        mount.args(["-o", "loop"]).arg(&image).arg(&path);
        let is_mounted = is_formatted && mount.output().is_ok_and(|output| output.status.success());
        if !is_mounted {
            let mut mount = Command::new("mount");
            mount
                .args([
                    "-t",
                    "tmpfs",
                    "-o",
                    &format!("size={DISK_MIB}m,mode=700"),
                    "tmpfs",
                ])
                .arg(&path);
            let mounted = mount.output()?;
            ensure!(
                mounted.status.success(),
                "{}",
                String::from_utf8_lossy(&mounted.stderr)
            );
        }
        Ok(SmallDisk { path })
    }
}

impl Drop for SmallDisk {
    fn drop(&mut self) {
        // Lazily: a member that was given up may still be ending.
        let _ = Command::new("umount").arg("-l").arg(&self.path).status();
    }
}
