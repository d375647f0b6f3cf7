//! The read barrier: when a read on this member may be answered.
//!
//! A linearizable read waits until this member has applied everything that was acknowledged before the read began.
//! Usually that takes one round of the read-index loop, shared by all waiting reads. The leader of a cluster of one
//! member has it for free: an acknowledged write was applied here first, and nobody else can acknowledge one. That
//! holds from the moment the leader has applied the log it started its term with. A second member, also one without a
//! vote, may have applied and answered what this one has not applied yet.

use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use kv_raft::{Node, ReadError};
use tokio::time::timeout;

use crate::{Error, Result};

/// Holds reads back until they are safe.
pub(crate) struct ReadBarrier {
    node: Node,
    timeout: Duration,
    /// Term in which one round confirmed that this member has applied what earlier terms left; 0 for none.
    confirmed_term: AtomicU64,
}

impl ReadBarrier {
    /// `timeout` bounds the wait, 5 s + 2 x election timeout.
    pub(crate) fn new(node: Node, timeout: Duration) -> ReadBarrier {
        ReadBarrier {
            node,
            timeout,
            confirmed_term: AtomicU64::new(0),
        }
    }

    /// Waits until a read on this member is linearizable.
    pub(crate) async fn linearizable(&self) -> Result<()> {
        let term = self.node.peek(|status| status.term);
        let alone =
            self.node.is_sole_voter() && self.node.peek(|status| status.learners.is_empty());
        if alone && self.confirmed_term.load(Ordering::Acquire) == term {
            return Ok(());
        }
        match timeout(self.timeout, self.confirmed()).await {
            Err(_) => Err(Error::Timeout),
            Ok(Err(stopped)) => Err(stopped),
            Ok(Ok(())) => {
                if alone {
                    self.confirmed_term.store(term, Ordering::Release);
                }
                Ok(())
            }
        }
    }

    /// A round of the read-index loop; without a leader it is tried again until the caller's timeout.
    async fn confirmed(&self) -> Result<()> {
        loop {
            match self.node.linearizable().await {
                Ok(_) => return Ok(()),
                Err(ReadError::NoLeader) => continue,
                Err(ReadError::Stopped) => return Err(Error::Stopped),
            }
        }
    }
}
