//! Deadlines in order, where moving one later costs nothing.
//!
//! A heap of `(deadline, id)`. Whoever owns the deadlines moves one later by only noting the new one: when
//! the old entry comes up, the owner finds the deadline moved and pushes the entry again. So a renewal is
//! O(1) and a lease that is renewed a hundred times has one entry. Entries of ids that are gone come up as
//! stale; [`ExpiryQueue::is_bloated`] says when to rebuild because of them.

use std::cmp::Reverse;
use std::collections::BinaryHeap;

use super::lessor::Deadline;

/// Stale entries that are tolerated whatever the number of live ones.
const STALE_SLACK: usize = 1024;

#[derive(Default)]
pub(super) struct ExpiryQueue {
    heap: BinaryHeap<Reverse<(Deadline, i64)>>,
}

impl ExpiryQueue {
    pub(super) fn push(&mut self, deadline: Deadline, id: i64) {
        self.heap.push(Reverse((deadline, id)));
    }

    /// Takes the earliest entry if it is due.
    pub(super) fn pop_due(&mut self, now: Deadline) -> Option<(Deadline, i64)> {
        let &Reverse(first) = self.heap.peek()?;
        if first.0 > now {
            return None;
        }
        self.heap.pop();
        Some(first)
    }

    /// Whether most entries are of ids that are gone.
    pub(super) fn is_bloated(&self, live: usize) -> bool {
        self.heap.len() > 2 * live + STALE_SLACK
    }

    /// Starts again with these entries.
    pub(super) fn rebuild(&mut self, entries: impl Iterator<Item = (Deadline, i64)>) {
        self.heap = entries.map(Reverse).collect::<Vec<_>>().into();
    }

    #[cfg(test)]
    pub(super) fn len(&self) -> usize {
        self.heap.len()
    }
}
