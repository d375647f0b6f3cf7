//! From request id to the one who waits for its result.
//!
//! A waiter belongs to the runtime thread that registered it. The apply loop hands over a whole batch of
//! results at once: it wakes each thread's dispatcher once per batch, and the dispatcher resolves the waiters
//! on their own thread. Waking each request across threads costs more than carrying it out.
//!
//! Request ids start at the process's start time, so that they never repeat across restarts:
//! `(start in ms << 16 + counter) << 4 | shard`.

use std::cell::Cell;
use std::collections::HashMap;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use parking_lot::Mutex;
use tokio::sync::{Notify, oneshot};

use crate::apply::Outcome;

/// Threads that may register waiters.
const SHARDS: usize = 16;
/// Shards of the RPC threads, from 0 on.
pub(crate) const RPC_SHARDS: usize = SHARDS - 1;
/// Shard of the member's own tasks.
pub(crate) const OWN_SHARD: usize = SHARDS - 1;

thread_local! {
    static SHARD: Cell<usize> = const { Cell::new(OWN_SHARD) };
}

/// All waiters of this member.
pub(crate) struct Wait {
    next: AtomicU64,
    shards: [Shard; SHARDS],
}

#[derive(Default)]
struct Shard {
    waiting: Mutex<HashMap<u64, oneshot::Sender<Outcome>>>,
    done: Mutex<Vec<(u64, Outcome)>>,
    wake: Notify,
}

/// A registered wait; dropping it forgets the request.
pub(crate) struct Waiter {
    wait: Arc<Wait>,
    /// Names the wait in the command.
    pub(crate) id: u64,
    result: oneshot::Receiver<Outcome>,
}

impl Wait {
    /// `start_ms` is the wall-clock time of the process start in milliseconds.
    pub(crate) fn new(start_ms: u64) -> Arc<Wait> {
        Arc::new(Wait {
            next: AtomicU64::new(start_ms << 16),
            shards: Default::default(),
        })
    }

    /// Declares that the calling thread runs the dispatcher of `shard`.
    pub(crate) fn use_shard(shard: usize) {
        SHARD.set(shard);
    }

    /// Registers a waiter whose result the calling thread's dispatcher delivers.
    pub(crate) fn register(self: &Arc<Self>) -> Waiter {
        let shard = SHARD.get();
        let id = self.next.fetch_add(1, Ordering::Relaxed) << 4 | shard as u64;
        let (sender, result) = oneshot::channel();
        self.shards[shard].waiting.lock().insert(id, sender);
        Waiter {
            wait: self.clone(),
            id,
            result,
        }
    }

    /// Delivers results; ids that nobody waits for are dropped.
    pub(crate) fn complete(&self, results: impl IntoIterator<Item = (u64, Outcome)>) {
        let mut touched = 0u32;
        for (id, outcome) in results {
            let shard = (id & 0xf) as usize;
            self.shards[shard].done.lock().push((id, outcome));
            touched |= 1 << shard;
        }
        for (index, shard) in self.shards.iter().enumerate() {
            if touched & (1 << index) != 0 {
                shard.wake.notify_one();
            }
        }
    }

    /// Resolves the waiters of `shard`; runs for ever on the thread that registers them.
    pub(crate) async fn dispatch(self: Arc<Self>, shard: usize) {
        let shard = &self.shards[shard];
        loop {
            shard.wake.notified().await;
            let done = std::mem::take(&mut *shard.done.lock());
            let mut waiting = shard.waiting.lock();
            for (id, outcome) in done {
                if let Some(sender) = waiting.remove(&id) {
                    // The receiver may have given up; then nobody wants the result.
                    let _ = sender.send(outcome);
                }
            }
        }
    }
}

impl Waiter {
    /// The result, once the apply loop has it.
    pub(crate) async fn result(&mut self) -> Outcome {
        (&mut self.result)
            .await
            .unwrap_or(Err(crate::Error::Stopped))
    }
}

impl Drop for Waiter {
    fn drop(&mut self) {
        self.wait.shards[(self.id & 0xf) as usize]
            .waiting
            .lock()
            .remove(&self.id);
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::apply::Response;

    #[tokio::test]
    async fn a_batch_answers_each_of_its_waiters() {
        let wait = Wait::new(1);
        let dispatcher = tokio::spawn(wait.clone().dispatch(OWN_SHARD));
        let mut first = wait.register();
        let mut second = wait.register();
        assert_ne!(first.id, second.id);
        wait.complete([
            (second.id, Ok(Response::Done)),
            (first.id, Err(crate::Error::NoSpace)),
            (99, Ok(Response::Done)),
        ]);
        assert!(matches!(first.result().await, Err(crate::Error::NoSpace)));
        assert!(matches!(second.result().await, Ok(Response::Done)));
        dispatcher.abort();
    }

    #[tokio::test]
    async fn a_dropped_waiter_is_forgotten() {
        let wait = Wait::new(1);
        drop(wait.register());
        assert!(wait.shards.iter().all(|s| s.waiting.lock().is_empty()));
    }
}
