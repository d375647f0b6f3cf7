//! What a member does as its disk fills: NOSPACE while there is still room to recover, and the reserve for the rest.
//!
//! Equal members fill together, so none may need space from elsewhere to recover. The room that is left when NOSPACE is
//! raised takes what is buffered and in flight, and then reads, deletes, compaction and defragmentation:
//! - NOSPACE is raised when the log cannot prepare its next segment, when the reserve is not whole, or when the
//!   database has less than [`SHORT_BYTES`] to grow into, the gaps in its own files included that the engine fills.
//! - Between two looks at the disk no more data is accepted than a part of the room that was seen ([`Allowance`]), so
//!   that a look which comes late is not too late.
//! - The reserve is given back bit by bit, so that there is room for what the write buffer holds, and
//!   [`KEPT_FREE_BYTES`] beside: less than a log segment in all, whose preparation is tried again all the while and must
//!   not take what the database needs.
//! - The reserve is made whole again when that leaves [`SHORT_BYTES`]. The alarm stays until it is disarmed, as etcd's
//!   does; disarmed too early, it is raised again.
//!
//! Source: DESIGN.md section 8.

use std::io;
use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use kv_proto::etcdserverpb::AlarmType;
use kv_wal::Wal;
use tokio::sync::Notify;
use tokio::time::{MissedTickBehavior, interval};

use crate::data_dir::{DataDir, RESERVE_BYTES};
use crate::member::Member;

/// Time between two looks: a fast disk takes a small part of [`SHORT_BYTES`] in it.
const PERIOD: Duration = Duration::from_millis(100);
/// Less than this to grow into, and the member takes no more data: as much as the database's write buffer may hold.
pub(crate) const SHORT_BYTES: u64 = 64 << 20;
/// The reserve is given back as long as less than this is free, and what the write buffer holds twice: engines write
/// more than they are given.
const KEPT_FREE_BYTES: u64 = 24 << 20;
/// No more is kept free.
const KEPT_FREE_BYTES_MAX: u64 = 60 << 20;

/// Requests may bring this part of the room between two looks: log, engine and their overhead need the rest.
const ROOM_PART: u64 = 4;

/// What requests may still bring before the next look at the disk.
pub(crate) struct Allowance {
    bytes: AtomicU64,
    looked: Notify,
}

impl Allowance {
    /// Enough for any request until the first look, which comes at once.
    pub(crate) fn new() -> Allowance {
        Allowance {
            bytes: AtomicU64::new(SHORT_BYTES / ROOM_PART),
            looked: Notify::new(),
        }
    }

    /// Takes `bytes`, after the next look if they are more than is left.
    pub(crate) async fn take(&self, bytes: u64) {
        loop {
            let looked = self.looked.notified();
            let taken = self
                .bytes
                .fetch_update(Ordering::Relaxed, Ordering::Relaxed, |left| {
                    left.checked_sub(bytes)
                });
            if taken.is_ok() {
                return;
            }
            looked.await;
        }
    }

    fn renew(&self, room: u64) {
        // A single request is always let through: the alarm says when there is no room for it.
        let part = (room / ROOM_PART).max(SHORT_BYTES / ROOM_PART);
        self.bytes.store(part, Ordering::Relaxed);
        self.looked.notify_waiters();
    }
}

/// Readies the folder before anything in it is opened: makes the reserve whole, or gives of it on a full disk.
pub(crate) fn prepare(folder: &DataDir) {
    if let Err(error) = balance(folder, 0) {
        tracing::warn!(%error, "cannot make the recovery reserve");
    }
    if !folder.has_reserve() {
        tracing::warn!(
            missing_bytes = RESERVE_BYTES - folder.reserve_bytes(),
            "the disk is too full for the recovery reserve; free space soon"
        );
    }
}

/// Looks after the disk until the member stops.
pub(crate) async fn run(member: Arc<Member>, folder: Arc<DataDir>, wal: Wal) {
    let mut ticks = interval(PERIOD);
    ticks.set_missed_tick_behavior(MissedTickBehavior::Delay);
    let mut was_short = false;
    loop {
        tokio::select! {
            _ = ticks.tick() => {}
            () = member.stopping.cancelled() => return,
        }
        let (seen, files, log) = (member.clone(), folder.clone(), wal.clone());
        let look = move || shortage(&seen, &files, &log);
        let Ok((room, shortage)) = tokio::task::spawn_blocking(look).await else {
            return;
        };
        let is_short = shortage.is_some();
        if let Some(cause) = shortage.filter(|_| !member.has_alarm(AlarmType::Nospace)) {
            tracing::error!(
                %cause,
                "the disk is full: raising NOSPACE. Reads, deletes, compaction and defragmentation go on; free space, then disarm the alarm"
            );
            tokio::select! {
                () = member.raise(AlarmType::Nospace) => {}
                () = member.stopping.cancelled() => return,
            }
        }
        if was_short && !is_short {
            tracing::info!("the disk has room again; a NOSPACE alarm can be disarmed");
        }
        was_short = is_short;
        member.disk_allowance.renew(room);
    }
}

/// The bytes the database may grow by, and why the member must take no more data.
fn shortage(member: &Member, folder: &DataDir, wal: &Wal) -> (u64, Option<String>) {
    let backend = member.store.backend();
    let free = match balance(folder, backend.buffered_bytes()) {
        Ok(free) => free,
        Err(error) => return (0, Some(format!("the reserve: {error}"))),
    };
    let room = free + backend.size().gaps;
    (room, cause_of_shortage(room, folder, wal))
}

fn cause_of_shortage(room: u64, folder: &DataDir, wal: &Wal) -> Option<String> {
    if let Some(error) = wal.preparation_error() {
        return Some(error.to_string());
    }
    if !folder.has_reserve() {
        return Some("the recovery reserve is in use".to_owned());
    }
    (room < SHORT_BYTES).then(|| format!("the database has {room} bytes to grow into"))
}

/// Gives of the reserve or makes it whole, whichever the free space asks for; returns what is free then.
fn balance(folder: &DataDir, buffered_bytes: u64) -> io::Result<u64> {
    let kept_free = (KEPT_FREE_BYTES + 2 * buffered_bytes).min(KEPT_FREE_BYTES_MAX);
    let free = free_bytes(folder.member_dir())?;
    let reserve = folder.reserve_bytes();
    let missing = RESERVE_BYTES - reserve;
    if free < kept_free && reserve > 0 {
        folder.shrink_reserve(kept_free - free)?;
    } else if missing > 0 && free >= missing + SHORT_BYTES {
        folder.prepare_reserve()?;
    } else {
        return Ok(free);
    }
    free_bytes(folder.member_dir())
}

/// What an unprivileged process may still allocate there.
fn free_bytes(path: &Path) -> io::Result<u64> {
    let disk = rustix::fs::statvfs(path)?;
    Ok(disk.f_bavail.saturating_mul(disk.f_frsize))
}
