//! A member whose disk fills up: NOSPACE in time, then reads, deletes, compaction, defragmentation, and writes again
//! when there is room.

use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::{Duration, Instant};

use kv_proto::etcdserverpb::alarm_request::AlarmAction;
use kv_proto::etcdserverpb::maintenance_client::MaintenanceClient;
use kv_proto::etcdserverpb::{
    AlarmRequest, AlarmType, CompactionRequest, DefragmentRequest, DeleteRangeRequest, RangeRequest,
};
use tonic::Code;

use crate::member::{Member, skipped};

/// Two log segments, the reserve, and room for a database that is to fill up.
const DISK_MIB: u64 = 360;
const NO_SPACE: &str = "etcdserver: mvcc: database space exceeded";

#[tokio::test]
async fn full_disk_stops_puts_only_and_space_brings_them_back_on_redb() {
    fill_and_recover("redb").await;
}

#[tokio::test]
async fn full_disk_stops_puts_only_and_space_brings_them_back_on_sled() {
    fill_and_recover("sled").await;
}

async fn fill_and_recover(engine: &str) {
    let Some(disk) = SmallDisk::mount() else {
        return;
    };
    let data = disk.path.join("data");
    let member = Member::start(&data, &[&format!("--storage-engine={engine}")]).await;
    let value = "x".repeat(200_000);

    let written = fill(&member, &value).await;

    assert!(written > 100, "only {written} puts fit: {}", member.log());
    assert!(written < 10_000, "{written} puts fit on {DISK_MIB} MiB");
    assert_eq!(member.get("key-0").await.as_ref(), Some(&value));
    for n in 0..written {
        delete(&member, &format!("key-{n}")).await;
    }
    let revision = revision(&member).await;
    let compaction = CompactionRequest {
        revision,
        physical: true,
    };
    member.kv().compact(compaction).await.unwrap();
    let status = member.put("k", "v").await.unwrap_err();
    assert_eq!(
        status.message(),
        NO_SPACE,
        "the alarm stays until it is disarmed"
    );
    let mut maintenance = MaintenanceClient::new(member.channel.clone());
    maintenance.defragment(DefragmentRequest {}).await.unwrap();

    resume(&member).await;

    assert_eq!(member.get("key-0").await, None);
    assert!(!member.log().contains("panicked"), "{}", member.log());
    member.stop();
}

#[tokio::test]
async fn member_starts_on_a_full_disk_and_recovers_there() {
    let Some(disk) = SmallDisk::mount() else {
        return;
    };
    let data = disk.path.join("data");
    let member = Member::start(&data, &[]).await;
    member.put("k", "v").await.unwrap();
    member.stop();
    let ballast = disk.path.join("ballast");
    disk.fill(&ballast);

    let member = Member::start(&data, &[]).await;

    assert_eq!(member.get("k").await.as_deref(), Some("v"));
    until_no_space(&member).await;
    delete(&member, "k").await;
    let compaction = CompactionRequest {
        revision: revision(&member).await,
        physical: true,
    };
    member.kv().compact(compaction).await.unwrap();
    assert_eq!(member.get("k").await, None);
    std::fs::remove_file(&ballast).unwrap();
    resume(&member).await;
    member.stop();
}

/// Puts until the member has no space, and returns how many were taken.
async fn fill(member: &Member, value: &str) -> usize {
    let mut written = 0;
    loop {
        match member.put(&format!("key-{written}"), value).await {
            Ok(()) => written += 1,
            Err(status) if status.message() == NO_SPACE => {
                assert_eq!(status.code(), Code::ResourceExhausted);
                return written;
            }
            Err(status) => panic!("put {written}: {status}: {}", member.log()),
        }
    }
}

async fn until_no_space(member: &Member) {
    let deadline = Instant::now() + Duration::from_secs(30);
    while member.put("probe", "v").await.is_ok() {
        assert!(Instant::now() < deadline, "no alarm: {}", member.log());
        tokio::time::sleep(Duration::from_millis(50)).await;
    }
    let status = member.put("probe", "v").await.unwrap_err();
    assert_eq!(status.message(), NO_SPACE);
    assert_eq!(alarms(member, AlarmAction::Get).await, 1);
}

/// Disarms the alarm until it stays so, and writes.
async fn resume(member: &Member) {
    let deadline = Instant::now() + Duration::from_secs(60);
    loop {
        alarms(member, AlarmAction::Deactivate).await;
        tokio::time::sleep(Duration::from_millis(500)).await;
        if alarms(member, AlarmAction::Get).await == 0 {
            break;
        }
        assert!(
            Instant::now() < deadline,
            "the alarm stays: {}",
            member.log()
        );
    }
    member.put("resumed", "v").await.unwrap();
    assert_eq!(member.get("resumed").await.as_deref(), Some("v"));
}

async fn alarms(member: &Member, action: AlarmAction) -> usize {
    let alarm = match action {
        AlarmAction::Get => AlarmType::None,
        _ => AlarmType::Nospace,
    };
    let request = AlarmRequest {
        action: action as i32,
        member_id: 0,
        alarm: alarm as i32,
    };
    let mut maintenance = MaintenanceClient::new(member.channel.clone());
    let get = AlarmRequest {
        action: AlarmAction::Get as i32,
        ..Default::default()
    };
    let answer = maintenance.alarm(get).await;
    let answer = answer.unwrap_or_else(|status| panic!("{status}: {}", member.log()));
    let raised = answer.into_inner().alarms;
    if action != AlarmAction::Get {
        for alarm in &raised {
            let request = AlarmRequest {
                member_id: alarm.member_id,
                ..request
            };
            let answer = maintenance.alarm(request).await;
            answer.unwrap_or_else(|status| panic!("{status}: {}", member.log()));
        }
    }
    raised.len()
}

async fn delete(member: &Member, key: &str) {
    let request = DeleteRangeRequest {
        key: key.to_owned().into(),
        ..Default::default()
    };
    let answer = member.kv().delete_range(request).await.unwrap();
    assert_eq!(answer.into_inner().deleted, 1, "{key}");
}

async fn revision(member: &Member) -> i64 {
    let request = RangeRequest {
        key: "none".into(),
        ..Default::default()
    };
    let answer = member.kv().range(request).await.unwrap().into_inner();
    answer.header.unwrap().revision
}

/// A file system of [`DISK_MIB`], unmounted when dropped.
struct SmallDisk {
    path: PathBuf,
    _folder: tempfile::TempDir,
}

impl SmallDisk {
    /// `None`, said loudly, where mounting is not permitted.
    fn mount() -> Option<SmallDisk> {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("disk");
        std::fs::create_dir(&path).unwrap();
        let size = format!("size={DISK_MIB}m,mode=700");
        let mut mount = Command::new("mount");
        mount.args(["-t", "tmpfs", "-o", &size, "tmpfs"]).arg(&path);
        if !mount.output().is_ok_and(|output| output.status.success()) {
            skipped("a small file system cannot be mounted; root may");
            return None;
        }
        Some(SmallDisk {
            path,
            _folder: folder,
        })
    }

    /// Fills all that is free with the file `ballast`.
    fn fill(&self, ballast: &Path) {
        use std::io::Write;
        let mut file = std::fs::File::create(ballast).unwrap();
        while file.write_all(&[1; 4096]).is_ok() {}
    }
}

impl Drop for SmallDisk {
    fn drop(&mut self) {
        // Lazily: a member that the test gave up may still be ending.
        let _ = Command::new("umount").arg("-l").arg(&self.path).status();
    }
}
