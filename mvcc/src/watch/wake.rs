//! Waking the streams of one thread together.
//!
//! A revision wakes every stream that watches it. A wake-up across threads is a system call, so streams that are
//! served by one thread share a [`WakeGroup`]: the writer wakes the group's task once, and that task wakes its
//! streams on their own thread.

use std::sync::Arc;

use parking_lot::Mutex;
use tokio::sync::Notify;

use super::hub::Signal;

/// The streams that one thread serves.
#[derive(Default)]
pub struct WakeGroup {
    due: Mutex<Vec<Arc<Signal>>>,
    notify: Notify,
}

impl WakeGroup {
    /// A group without streams; its [`WakeGroup::run`] must run on the thread that serves them.
    pub fn new() -> Arc<WakeGroup> {
        Arc::default()
    }

    /// Wakes the group's streams when they are due; never ends.
    pub async fn run(self: Arc<WakeGroup>) {
        let mut due = Vec::new();
        loop {
            self.notify.notified().await;
            std::mem::swap(&mut due, &mut *self.due.lock());
            for signal in due.drain(..) {
                signal.notify.notify_one();
            }
        }
    }
}

/// Wakes streams: those of a group by one wake-up of the group, others each by itself.
pub(super) fn wake(signals: Vec<Arc<Signal>>) {
    let mut groups: Vec<Arc<WakeGroup>> = Vec::new();
    for signal in signals {
        let Some(group) = signal.group.clone() else {
            signal.notify.notify_one();
            continue;
        };
        group.due.lock().push(signal);
        if !groups.iter().any(|g| Arc::ptr_eq(g, &group)) {
            groups.push(group);
        }
    }
    for group in groups {
        group.notify.notify_one();
    }
}
