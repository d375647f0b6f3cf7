//! A leader whose disk stands still hands over to a member whose disk does not.
//!
//! Its followers' disks commit entries without it, so nothing is wrong at first. But what it applies stays in memory until
//! its own log has it, and when that is full the cluster waits for one bad disk. So when an entry has waited for this
//! member's log for half an election timeout, and no entry reached the disk meanwhile, another voter
//! that has more of the log on disk leads instead. If there is none, all disks are slow, and a change would help nobody.

use std::sync::Weak;
use std::time::Duration;

use tokio::time::{Instant, MissedTickBehavior, interval};

use crate::error::TransferError;
use crate::membership;
use crate::node::Inner;
use crate::status::Role;

/// After a hand-over that did not help, or failed, the next one waits for so many election timeouts.
const REST_TIMEOUTS: u32 = 10;

/// How long the disk owes entries.
struct Debt {
    flushed: u64,
    since: Instant,
}

impl Debt {
    /// Looks at the log; how long entries wait while none reaches the disk.
    fn look(&mut self, now: Instant, last: u64, flushed: u64) -> Duration {
        if last <= flushed || flushed != self.flushed {
            self.flushed = flushed;
            self.since = now;
        }
        now - self.since
    }
}

/// Watches the disk of a member until the member stops.
pub(crate) async fn run(node: Weak<Inner>, period: Duration, patience: Duration) {
    let mut ticks = interval(period);
    ticks.set_missed_tick_behavior(MissedTickBehavior::Delay);
    let now = Instant::now();
    let mut debt = Debt {
        flushed: 0,
        since: now,
    };
    let mut rest_until = now;
    loop {
        let now = ticks.tick().await;
        let Some(node) = node.upgrade().filter(|node| !node.has_ended()) else {
            return;
        };
        let (last, flushed) = node.log_progress();
        let stalled = debt.look(now, last, flushed);
        let leads = node.status.borrow().role == Role::Leader;
        if !leads || stalled < patience || now < rest_until {
            continue;
        }
        let is_ahead = |id| membership::progress(&node, id).is_some_and(|p| p.matching > flushed);
        let Some(successor) = membership::best_successor(&node, is_ahead) else {
            continue;
        };
        rest_until = now + node.config.election_timeout * REST_TIMEOUTS;
        let member = node.config.member_id;
        let stalled_ms = stalled.as_millis() as u64;
        tracing::warn!(
            member,
            peer = successor,
            stalled_ms,
            flushed,
            last,
            "the log's disk stands still: leadership is handed to a member whose disk does not"
        );
        match membership::transfer_leader(&node, successor).await {
            Ok(()) => {}
            // Its own vote for the successor waits for the disk, and until then it learns nothing.
            Err(TransferError::TimedOut) => {
                tracing::warn!(member, "the disk still stands still");
            }
            Err(error) => {
                tracing::warn!(member, peer = successor, %error, "leadership was not handed over");
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use kv_wal::Wal;
    use parking_lot::{Condvar, Mutex};

    use super::*;
    use crate::testing::{Cluster, PATIENCE};

    /// A disk that stands still until this is dropped: the log's writer waits behind its next fsync.
    struct Stall {
        stalled: Arc<(Mutex<bool>, Condvar)>,
    }

    impl Stall {
        fn of(wal: &Wal) -> Stall {
            let stalled = Arc::new((Mutex::new(true), Condvar::new()));
            let seen = stalled.clone();
            wal.set_fsync_observer(Box::new(move |_, _| {
                let mut stalled = seen.0.lock();
                while *stalled {
                    seen.1.wait(&mut stalled);
                }
            }));
            Stall { stalled }
        }
    }

    impl Drop for Stall {
        fn drop(&mut self) {
            *self.stalled.0.lock() = false;
            self.stalled.1.notify_all();
        }
    }

    #[tokio::test(flavor = "multi_thread", worker_threads = 2)]
    async fn leader_whose_disk_stands_still_hands_over_and_follows() {
        let cluster = Cluster::start(|config| config).await;
        let leader = cluster.leader().await;
        let others: Vec<u64> = (1..=3).filter(|id| *id != leader).collect();
        let stall = Stall::of(cluster.member(leader).wal());

        // The others' disks take it.
        cluster.member(others[0]).put("beside the disk").await;
        let next = tokio::time::timeout(PATIENCE, cluster.leader_of(&others));
        let next = next.await.expect("nobody else leads");
        cluster.member(next).put("by the next leader").await;

        drop(stall);
        cluster.caught_up(leader, next).await;
        let commands = cluster.member(leader).ledger.commands();
        assert_eq!(commands, ["beside the disk", "by the next leader"]);
        cluster.stop().await;
    }

    #[tokio::test(start_paused = true)]
    async fn debt_grows_only_while_entries_wait_and_none_reaches_the_disk() {
        let begun = Instant::now();
        let at = |ms| begun + Duration::from_millis(ms);
        let mut debt = Debt {
            flushed: 0,
            since: begun,
        };
        let looks = [
            // time, last, flushed, how long it stands still
            (100, 5, 5, 0),
            (900, 5, 5, 0),
            (1000, 6, 5, 100),
            (1500, 9, 5, 600),
            (1600, 9, 7, 0),
            (1900, 9, 7, 300),
            (2000, 9, 9, 0),
            (9000, 9, 9, 0),
        ];
        for (ms, last, flushed, expected) in looks {
            let stalled = debt.look(at(ms), last, flushed);
            assert_eq!(stalled, Duration::from_millis(expected), "at {ms} ms");
        }
    }
}
