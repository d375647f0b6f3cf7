//! One proposal from the call to its outcome, on the leader and on every other member.
//!
//! A proposal is no task: on the leader it is a message to openraft's core and a closure. A member
//! that does not lead sends the entry's body to the leader it knows (`forward.rs`) and learns only
//! refusals from the answer; what was applied it sees in its own apply loop.
//!
//! Refusals are certain or not. A certain one (the entry is in no log) that will soon be over is
//! tried again: a fresh leader refuses until a quorum has answered it once, a leader that hands
//! over refuses until its successor leads, and a leader that just stopped is not reached. An
//! uncertain one never is, since the commands could be applied twice.
//!
//! A forwarded proposal is never forwarded again: the answer names the leader, and the member that
//! asked decides.

use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::Duration;

use bytes::Bytes;
use futures_util::FutureExt;
use openraft::errors::{ClientWriteError, ForwardReason};
use tokio::sync::oneshot;
use tokio::time::Instant;

use crate::config::PROPOSALS_IN_FLIGHT_MAX;
use crate::encoding::{self, DecodeError};
use crate::error::{PeerError, ProposeError};
use crate::node::Inner;
use crate::types::{Commands, Responder, WriteResult};

/// Called once if a proposal is refused or its outcome is unknown; on the leader never if it was
/// applied. Another member may learn that the outcome is unknown although it has applied the
/// commands: the leader's answer was lost, and the entry was not.
pub type Refused = Box<dyn FnOnce(ProposeError) + Send>;

/// First pause before a proposal is tried again; it doubles up to [`RETRY_PAUSE_MAX`].
const RETRY_PAUSE: Duration = Duration::from_millis(1);
const RETRY_PAUSE_MAX: Duration = Duration::from_millis(50);

/// Proposes `commands` for `origin`.
pub(crate) fn propose(inner: &Arc<Inner>, origin: Origin, commands: Vec<Bytes>, refused: Refused) {
    let body = encoding::commands_body(&commands);
    let outcome = move |outcome: Outcome| {
        if let Err(error) = outcome {
            refused(error);
        }
    };
    Proposal::new(inner, body, origin, Box::new(outcome)).start();
}

/// Proposes the commands in `body` for another member; resolves when they are applied here or
/// refused.
pub(crate) async fn propose_for_peer(inner: &Arc<Inner>, body: Bytes) -> Outcome {
    let (sender, outcome) = oneshot::channel();
    // A peer that gave up has dropped the receiver, and wants no answer.
    let answer = move |outcome| drop(sender.send(outcome));
    Proposal::new(inner, body, Origin::Peer, Box::new(answer)).start();
    outcome.await.unwrap_or(Err(ProposeError::Stopped))
}

type Outcome = Result<(), ProposeError>;

/// What came back from another member: nothing, what does not decode, or an outcome.
pub(crate) type Answer = Result<Result<Outcome, DecodeError>, PeerError>;

/// Who proposes.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(crate) enum Origin {
    Here,
    /// Another member, which takes this one for the leader.
    Peer,
    /// This member, as the leader of a term and not otherwise.
    Leader {
        term: u64,
    },
}

/// A proposal between its start and its outcome; dropped, its outcome is unknown.
pub(crate) struct Proposal {
    node: Arc<Inner>,
    body: Bytes,
    origin: Origin,
    report: Option<Box<dyn FnOnce(Outcome) + Send>>,
    retry: Option<Retry>,
}

/// Attempts after a refusal that will soon be over.
struct Retry {
    pause: Duration,
    give_up: Instant,
}

impl Proposal {
    fn new(
        node: &Arc<Inner>,
        body: Bytes,
        origin: Origin,
        report: Box<dyn FnOnce(Outcome) + Send>,
    ) -> Proposal {
        node.proposals_in_flight.fetch_add(1, Ordering::Relaxed);
        Proposal {
            node: node.clone(),
            body,
            origin,
            report: Some(report),
            retry: None,
        }
    }

    fn start(self) {
        // This proposal is counted already.
        if self.node.proposals_in_flight.load(Ordering::Relaxed) > PROPOSALS_IN_FLIGHT_MAX {
            self.end(Err(ProposeError::Overloaded));
            return;
        }
        self.submit();
    }

    /// What the entry holds.
    pub(crate) fn body(&self) -> &Bytes {
        &self.body
    }

    /// Hands the proposal to the leader, as far as this member knows one: itself or another.
    pub(crate) fn submit(self) {
        if self.node.stopping.load(Ordering::Relaxed) {
            self.end(Err(ProposeError::Stopped));
            return;
        }
        let leader = self.node.status.borrow().leader;
        match leader.filter(|leader| *leader != self.node.config.member_id) {
            Some(_) if self.origin == Origin::Here => {
                let forwards = self.node.forwards.clone();
                // The loop has ended with the node: dropping the proposal answers it.
                let _ = forwards.send(self);
            }
            _ => self.submit_here(),
        }
    }

    /// Hands the proposal to this member's core.
    fn submit_here(self) {
        let (node, origin) = (self.node.clone(), self.origin);
        let commands = Commands(self.body.clone());
        let responder = Responder(Box::new(move |result: WriteResult| self.settle(result)));
        // The queue has room for every proposal in flight, so the first poll sends; outside the
        // task budget, which could make it wait for nothing. If it does not, or if the core is
        // gone, dropping the proposal answers it.
        let write = node.raft.write(commands).responder(responder);
        let write = match origin {
            Origin::Leader { term } => write.with_leader(term),
            Origin::Here | Origin::Peer => write,
        };
        let _ = tokio::task::unconstrained(write.into_future()).now_or_never();
    }

    /// Takes the answer of this member's core.
    fn settle(self, result: WriteResult) {
        match result {
            Ok(_) => self.end(Ok(())),
            Err(ClientWriteError::ForwardToLeader(forward)) => {
                let leader = forward.leader_id;
                match (forward.reason, leader) {
                    (ForwardReason::LeaseExpired, _) => self.try_again(ProposeError::NoQuorum),
                    // Until somebody is elected there is nothing to try.
                    (ForwardReason::NotLeader, None) => {
                        self.end(Err(ProposeError::NotLeader { leader }));
                    }
                    (ForwardReason::NotLeader | ForwardReason::LeadershipTransfer, _)
                        if matches!(self.origin, Origin::Leader { .. }) =>
                    {
                        self.end(Err(ProposeError::NotLeader { leader }));
                    }
                    (ForwardReason::NotLeader, Some(_)) if self.origin == Origin::Peer => {
                        self.end(Err(ProposeError::NotLeader { leader }));
                    }
                    (ForwardReason::NotLeader | ForwardReason::LeadershipTransfer, _) => {
                        self.try_again(ProposeError::NotLeader { leader });
                    }
                }
            }
            Err(ClientWriteError::LogEntryDiscarded(_)) => {
                self.end(Err(ProposeError::LeadershipLost));
            }
            Err(
                error @ (ClientWriteError::ChangeMembershipError(_)
                | ClientWriteError::PreconditionFailed(_)),
            ) => unreachable!("a proposal of commands is no membership change: {error}"),
        }
    }

    /// Takes the answer of `leader`, which it was sent to.
    pub(crate) fn answered(self, leader: u64, answer: &Answer) {
        match answer {
            Ok(Ok(Ok(()))) => self.end(Ok(())),
            Ok(Ok(Err(error @ ProposeError::NotLeader { .. }))) => self.try_again(error.clone()),
            Ok(Ok(Err(ProposeError::Stopped))) => self.end(Err(ProposeError::LeadershipLost)),
            Ok(Ok(Err(error))) => self.end(Err(error.clone())),
            Err(PeerError::NotSent(_)) => self.try_again(ProposeError::NotLeader {
                leader: Some(leader),
            }),
            Ok(Err(_))
            | Err(PeerError::Unreachable(_) | PeerError::Timeout | PeerError::Answer(_)) => {
                self.end(Err(ProposeError::NoAnswer));
            }
        }
    }

    /// Submits again after a pause; `refusal` must be certain.
    fn try_again(mut self, refusal: ProposeError) {
        let retry = self.retry.get_or_insert_with(|| Retry {
            pause: RETRY_PAUSE,
            give_up: Instant::now() + self.node.config.election_timeout,
        });
        if Instant::now() >= retry.give_up {
            self.end(Err(refusal));
            return;
        }
        let pause = retry.pause;
        retry.pause = (pause * 2).min(RETRY_PAUSE_MAX);
        self.node.runtime.clone().spawn(async move {
            tokio::time::sleep(pause).await;
            self.submit();
        });
    }

    fn end(mut self, outcome: Outcome) {
        self.report(outcome);
    }

    fn report(&mut self, outcome: Outcome) {
        if let Some(report) = self.report.take() {
            report(outcome);
        }
    }
}

impl Drop for Proposal {
    fn drop(&mut self) {
        self.report(Err(ProposeError::Stopped));
        self.node
            .proposals_in_flight
            .fetch_sub(1, Ordering::Relaxed);
    }
}
