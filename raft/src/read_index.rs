//! The one loop that confirms linearizable reads, on a leader and on a follower.
//!
//! All reads that wait when a confirmation starts share it: one question to a quorum (a leader
//! asks by heartbeat, a follower asks the leader), one wait until this member has applied the
//! answer, one wake-up. A read that comes while a confirmation runs waits for the next, because
//! the running one may have read the commit index before a write that the new read must see.
//!
//! Source: etcd's linearizable read loop; Raft dissertation, section 6.4.

use std::sync::{Arc, OnceLock};
use std::time::Duration;

use parking_lot::Mutex;
use tokio::sync::Notify;
use tokio::time::Instant;

use crate::error::ReadError;

type ReadResult = Result<u64, ReadError>;

/// Reads that wait for one confirmation.
#[derive(Default)]
struct Round {
    result: OnceLock<ReadResult>,
    done: Notify,
}

impl Round {
    async fn wait(&self) -> ReadResult {
        // Created before the look at the result, so that a wake-up between the two is not lost.
        let done = self.done.notified();
        if let Some(result) = self.result.get() {
            return result.clone();
        }
        done.await;
        self.result
            .get()
            .cloned()
            .unwrap_or(Err(ReadError::Stopped))
    }

    fn finish(&self, result: ReadResult) {
        // The only other writer is `Reads::stop`, and then either answer is right.
        let _ = self.result.set(result);
        self.done.notify_waiters();
    }
}

/// Where reads meet the loop.
pub(crate) struct Reads {
    waiting: Mutex<Waiting>,
    arrived: Notify,
}

#[derive(Default)]
struct Waiting {
    round: Option<Arc<Round>>,
    stopped: bool,
}

/// How one attempt to confirm went.
pub(crate) enum Confirmation {
    /// Reads are linearizable once this index is applied.
    Index(u64),
    /// Not now; worth another attempt.
    Retry,
    /// Never again.
    Stopped,
}

/// What the loop needs from the node; a seam for tests.
pub(crate) trait Confirm: Send + Sync + 'static {
    /// Asks a quorum once.
    fn confirm(&self) -> impl Future<Output = Confirmation> + Send;

    /// Waits until this member has applied `index`; false if it never will.
    fn applied(&self, index: u64) -> impl Future<Output = bool> + Send;
}

impl Reads {
    pub(crate) fn new() -> Arc<Reads> {
        Arc::new(Reads {
            waiting: Mutex::default(),
            arrived: Notify::new(),
        })
    }

    /// Waits for the next confirmation; its index is applied when this returns.
    pub(crate) async fn linearizable(&self) -> ReadResult {
        let round = {
            let mut waiting = self.waiting.lock();
            if waiting.stopped {
                return Err(ReadError::Stopped);
            }
            match &waiting.round {
                Some(round) => round.clone(),
                None => {
                    let round = Arc::new(Round::default());
                    waiting.round = Some(round.clone());
                    self.arrived.notify_one();
                    round
                }
            }
        };
        round.wait().await
    }

    /// Serves rounds until `confirm` says that it never will again; each attempt of a round that
    /// fails is repeated after `pause`, for at most `patience`.
    pub(crate) async fn run(&self, confirm: impl Confirm, pause: Duration, patience: Duration) {
        loop {
            self.arrived.notified().await;
            if self.waiting.lock().stopped {
                return;
            }
            let mut rounds = Vec::new();
            let give_up = Instant::now() + patience;
            let result = loop {
                // A repeated attempt starts afresh, so it also serves who came meanwhile.
                rounds.extend(self.waiting.lock().round.take());
                match confirm.confirm().await {
                    Confirmation::Index(index) if confirm.applied(index).await => break Ok(index),
                    Confirmation::Index(_) | Confirmation::Stopped => {
                        break Err(ReadError::Stopped);
                    }
                    Confirmation::Retry if Instant::now() < give_up => {
                        tokio::time::sleep(pause).await;
                    }
                    Confirmation::Retry => break Err(ReadError::NoLeader),
                }
            };
            let stopped = result == Err(ReadError::Stopped);
            for round in rounds {
                round.finish(result.clone());
            }
            if stopped {
                self.stop();
                return;
            }
        }
    }

    /// Refuses all reads from now on.
    pub(crate) fn stop(&self) {
        let round = {
            let mut waiting = self.waiting.lock();
            waiting.stopped = true;
            waiting.round.take()
        };
        self.arrived.notify_one();
        if let Some(round) = round {
            round.finish(Err(ReadError::Stopped));
        }
    }
}

#[cfg(test)]
mod tests;
