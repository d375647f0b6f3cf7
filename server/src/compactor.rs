//! Automatic compaction, on the leader: by age or by number of revisions.
//!
//! Periodic keeps a window of the retention: the revision of each tenth of the window (of an hour, if the window is longer)
//! is remembered, and the one that is a whole window old is compacted, once per window or hour. Revision mode compacts
//! every 5 minutes to what the retention leaves. Source: etcd v3.7, v3compactor.

use std::collections::VecDeque;
use std::sync::Arc;
use std::time::Duration;

use kv_proto::command::Body;
use kv_proto::etcdserverpb::CompactionRequest;
use tokio::time::{MissedTickBehavior, interval};

use crate::Error;
use crate::config::AutoCompaction;
use crate::member::Member;

const HOUR: Duration = Duration::from_secs(3600);
/// Looks at the revision per window.
const LOOKS: u32 = 10;
const REVISION_PERIOD: Duration = Duration::from_secs(300);

/// Compacts until the member stops.
pub(crate) async fn run(member: Arc<Member>, auto: AutoCompaction) {
    let period = match auto {
        AutoCompaction::Periodic(window) => window.min(HOUR) / LOOKS,
        AutoCompaction::Revision(_) => REVISION_PERIOD,
    };
    let mut plan = Plan::new(auto);
    let mut ticks = interval(period.max(Duration::from_millis(1)));
    ticks.set_missed_tick_behavior(MissedTickBehavior::Delay);
    loop {
        tokio::select! {
            _ = ticks.tick() => {}
            () = member.stopping.cancelled() => return,
        }
        if let Some(revision) = plan.tick(member.store.revision())
            && member.is_leader()
            && compact(&member, revision).await
        {
            plan.done(revision);
        }
    }
}

/// Whether the revision is compacted now.
async fn compact(member: &Member, revision: i64) -> bool {
    let request = CompactionRequest {
        revision,
        physical: false,
    };
    match member.proposer.propose(Body::Compaction(request)).await {
        Ok(_) => {
            tracing::info!(revision, "compacted automatically");
            true
        }
        // Somebody else was faster.
        Err(Error::Compacted) => true,
        Err(error) => {
            tracing::warn!(revision, %error, "automatic compaction failed; it is tried again");
            false
        }
    }
}

/// Which revision to compact at which tick.
struct Plan {
    auto: AutoCompaction,
    /// Revisions at the last ticks of a window, oldest first.
    seen: VecDeque<i64>,
    /// Ticks until the next compaction.
    wait: usize,
    /// The revision that was compacted last.
    last: i64,
}

impl Plan {
    fn new(auto: AutoCompaction) -> Plan {
        Plan {
            auto,
            seen: VecDeque::new(),
            wait: 0,
            last: 0,
        }
    }

    /// A period has passed and the store is at `current`; the revision to compact, if it is time. It is named at each tick until
    /// it is [`Plan::done`], so that a failure is made up for soon, and a new leader goes on at once.
    fn tick(&mut self, current: i64) -> Option<i64> {
        let revision = match self.auto {
            AutoCompaction::Revision(retention) => current - retention,
            AutoCompaction::Periodic(window) => {
                let hours = window.as_secs_f64() / HOUR.as_secs_f64();
                let kept = (f64::from(LOOKS) * hours.max(1.0)).ceil() as usize;
                self.seen.push_back(current);
                if self.seen.len() <= kept {
                    return None;
                }
                let oldest = self.seen.pop_front()?;
                if self.wait > 0 {
                    self.wait -= 1;
                    return None;
                }
                oldest
            }
        };
        (revision > self.last).then_some(revision)
    }

    /// `revision` is compacted.
    fn done(&mut self, revision: i64) {
        self.last = revision;
        if let AutoCompaction::Periodic(_) = self.auto {
            self.wait = LOOKS as usize - 1;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A tick whose compaction, if any, succeeds.
    fn done(plan: &mut Plan, current: i64) -> Option<i64> {
        let revision = plan.tick(current)?;
        plan.done(revision);
        Some(revision)
    }

    #[test]
    fn periodic_compacts_once_a_window_what_is_a_window_old() {
        let mut plan = Plan::new(AutoCompaction::Periodic(HOUR));
        let compacted: Vec<_> = (0..40)
            .filter_map(|n| Some((n, done(&mut plan, 100 + n)?)))
            .collect();
        assert_eq!(compacted, [(10, 100), (20, 110), (30, 120)]);
    }

    #[test]
    fn a_window_of_hours_is_kept_whole() {
        let mut plan = Plan::new(AutoCompaction::Periodic(HOUR * 3));
        let compacted: Vec<_> = (0..51)
            .filter_map(|n| Some((n, done(&mut plan, 100 + n)?)))
            .collect();
        assert_eq!(compacted, [(30, 100), (40, 110), (50, 120)]);
    }

    #[test]
    fn revision_mode_keeps_the_newest_and_repeats_nothing() {
        let mut plan = Plan::new(AutoCompaction::Revision(1000));
        assert_eq!(done(&mut plan, 900), None);
        assert_eq!(done(&mut plan, 1500), Some(500));
        assert_eq!(done(&mut plan, 1500), None);
        assert_eq!(done(&mut plan, 1501), Some(501));
    }

    #[test]
    fn what_failed_is_named_again_at_the_next_tick() {
        let mut plan = Plan::new(AutoCompaction::Periodic(HOUR));
        let named: Vec<_> = (0..12).filter_map(|n| plan.tick(100 + n)).collect();
        assert_eq!(named, [100, 101]);
        assert_eq!(done(&mut plan, 112), Some(102));
        assert_eq!(plan.tick(113), None);
        let mut plan = Plan::new(AutoCompaction::Revision(1000));
        assert_eq!(plan.tick(1500), Some(500));
        assert_eq!(plan.tick(1500), Some(500));
    }
}
