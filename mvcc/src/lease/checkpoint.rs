//! Which leases are due for a checkpoint: a note in the log of how long they still live.
//!
//! A lease of more than [`CHECKPOINT_INTERVAL`] gets one each interval while this member is primary, so that
//! a new primary does not give it its full time again. Each such lease has one entry in the queue.
//! Source: etcd 3.7, lessor, feature gate LeaseCheckpoint.

use std::collections::HashMap;
use std::time::Duration;

use super::expiry_queue::ExpiryQueue;
use super::lessor::Deadline;

/// Time between two checkpoints of a lease.
pub const CHECKPOINT_INTERVAL: Duration = Duration::from_secs(5 * 60);

#[derive(Default)]
pub(super) struct CheckpointSchedule {
    queue: ExpiryQueue,
    /// When each lease's only valid entry is due.
    due: HashMap<i64, Deadline>,
}

impl CheckpointSchedule {
    /// Lets `id` have its next checkpoint one interval from `now`, if it lives longer than that.
    pub(super) fn schedule(&mut self, id: i64, ttl_secs: i64, now: Duration) {
        if ttl_secs > CHECKPOINT_INTERVAL.as_secs() as i64 {
            let deadline = Deadline::at(now + CHECKPOINT_INTERVAL);
            if self.due.insert(id, deadline) != Some(deadline) {
                self.queue.push(deadline, id);
            }
        }
    }

    pub(super) fn forget(&mut self, id: i64) {
        self.due.remove(&id);
        if self.queue.is_bloated(self.due.len()) {
            self.queue
                .rebuild(self.due.iter().map(|(&id, &deadline)| (deadline, id)));
        }
    }

    pub(super) fn clear(&mut self) {
        *self = CheckpointSchedule::default();
    }

    /// The next lease whose checkpoint is due; it is scheduled no more until asked for again.
    pub(super) fn pop_due(&mut self, now: Duration) -> Option<i64> {
        while let Some((deadline, id)) = self.queue.pop_due(Deadline::at(now)) {
            if self.due.get(&id) == Some(&deadline) {
                self.due.remove(&id);
                return Some(id);
            }
        }
        None
    }
}
