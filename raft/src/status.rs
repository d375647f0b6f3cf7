//! What a node says about itself: its role, the leader it knows, how far its log is.
//!
//! openraft lets a leader without a quorum keep its role, and a follower keep the leader it last
//! heard of. For people and clients neither is a leader: after one lease without an answer from a
//! quorum, or without a word from the leader, [`Status::leader`] is none.

use std::sync::{Arc, OnceLock};
use std::time::Duration;

use openraft::async_runtime::watch::WatchReceiver;
use openraft::metrics::RaftServerMetrics;
use openraft::{Instant as _, ServerState};
use tokio::sync::watch;
use tokio::time::{Instant, MissedTickBehavior, interval, timeout};

use crate::error::Error;
use crate::types::{Raft, TypeConfig};

/// How long the core may outlive its apply worker before that counts as a panic of the worker.
const APPLY_GRACE: Duration = Duration::from_secs(1);

/// What a member is in its cluster.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Role {
    /// Proposes entries.
    Leader,
    /// Votes and follows.
    Follower,
    /// Asks for votes.
    Candidate,
    /// Follows without a vote, or has not joined yet.
    Learner,
}

/// A moment of a node.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Status {
    /// What this member is.
    pub role: Role,
    /// Who leads, as far as this member can vouch for it.
    pub leader: Option<u64>,
    /// The term this member is in.
    pub term: u64,
    /// Newest index in the log.
    pub last_log_index: u64,
    /// Newest index known to be on a quorum's disks.
    pub committed_index: u64,
    /// Newest index in the state machine.
    pub applied_index: u64,
    /// Members with a vote, ascending.
    pub voters: Arc<[u64]>,
    /// Members without, ascending.
    pub learners: Arc<[u64]>,
}

impl Status {
    /// Nothing known yet.
    pub(crate) fn unknown() -> Status {
        Status {
            role: Role::Learner,
            leader: None,
            term: 0,
            last_log_index: 0,
            committed_index: 0,
            applied_index: 0,
            voters: Arc::default(),
            learners: Arc::default(),
        }
    }

    /// Whether both show the same cluster; indexes move all the time and do not count.
    fn same_cluster(&self, other: &Status) -> bool {
        let of = |status: &Status| (status.role, status.leader, status.term);
        of(self) == of(other) && self.voters == other.voters && self.learners == other.learners
    }
}

/// Publishes the status of a node whenever its view of the cluster changes.
pub(crate) struct Observer {
    pub(crate) raft: Raft,
    pub(crate) member_id: u64,
    /// How long silence is taken for health.
    pub(crate) lease: Duration,
    /// How often silence is measured.
    pub(crate) check_interval: Duration,
    pub(crate) status: watch::Sender<Status>,
    /// Why the state machine failed, if it did.
    pub(crate) machine_failure: Arc<OnceLock<String>>,
    /// Closed when the apply worker has ended.
    pub(crate) apply_ended: watch::Receiver<()>,
    /// Reads the indexes of the moment.
    pub(crate) with_indexes: Box<dyn Fn(&mut Status) + Send + Sync>,
}

impl Observer {
    /// Runs until openraft's core or apply worker ends; says why it did.
    pub(crate) async fn run(mut self) -> Error {
        let cause = self.watch().await;
        self.status.send_modify(|status| status.leader = None);
        cause
    }

    async fn watch(&mut self) -> Error {
        let mut changes = self.raft.server_metrics();
        let mut checks = interval(self.check_interval);
        checks.set_missed_tick_behavior(MissedTickBehavior::Delay);
        let mut leader_since = None;
        loop {
            let server = changes.borrow_and_update().clone();
            if server.state == ServerState::Leader {
                leader_since.get_or_insert_with(Instant::now);
            } else {
                leader_since = None;
            }
            let silence = self.silence(&server, leader_since).await;
            self.publish(&server, silence);
            tokio::select! {
                changed = changes.changed() => if changed.is_err() { break },
                _ = checks.tick() => {}
                _ = self.apply_ended.changed() => {
                    // A failing worker ends the core, and an ending core the worker; only after a
                    // panic of the worker does the core live on, and applies nothing any more.
                    let core_ended = async { while changes.changed().await.is_ok() {} };
                    if timeout(APPLY_GRACE, core_ended).await.is_err() {
                        return Error::Fatal(
                            "the apply worker ended without a cause, most likely a panic".into(),
                        );
                    }
                    break;
                }
            }
        }
        if let Some(cause) = self.machine_failure.get() {
            return Error::StateMachine(std::io::Error::other(cause.clone()));
        }
        match self.raft.metrics().borrow_watched().running_state.clone() {
            Err(openraft::errors::Fatal::Stopped) => Error::Stopped,
            Err(fatal) => Error::Fatal(fatal.to_string()),
            Ok(()) => {
                Error::Fatal("the core task ended without a cause, most likely a panic".into())
            }
        }
    }

    /// How long a leader has heard from no quorum, or a follower from no leader.
    async fn silence(
        &self,
        server: &RaftServerMetrics<TypeConfig>,
        leader_since: Option<Instant>,
    ) -> Duration {
        let voters = server.membership_config.membership().voter_ids().count();
        match leader_since {
            Some(_) if voters <= 1 => Duration::ZERO,
            Some(since) => {
                let acked = self.raft.data_metrics().borrow_watched().last_quorum_acked;
                // A new leader has had no time to hear from anybody.
                acked.map_or(since.elapsed(), |acked| {
                    acked.elapsed().min(since.elapsed())
                })
            }
            None => {
                let heard = self
                    .raft
                    .with_raft_state(|state| state.vote_last_modified())
                    .await;
                heard
                    .ok()
                    .flatten()
                    .map_or(Duration::MAX, |heard| heard.elapsed())
            }
        }
    }

    fn publish(&self, server: &RaftServerMetrics<TypeConfig>, silence: Duration) {
        let membership = server.membership_config.membership();
        let mut status = Status {
            role: match server.state {
                ServerState::Leader => Role::Leader,
                ServerState::Follower => Role::Follower,
                ServerState::Candidate => Role::Candidate,
                ServerState::Learner | ServerState::Shutdown => Role::Learner,
            },
            leader: server.current_leader.filter(|_| silence <= self.lease),
            term: server.vote.leader_id.term,
            voters: membership.voter_ids().collect(),
            learners: membership.learner_ids().collect(),
            ..Status::unknown()
        };
        (self.with_indexes)(&mut status);
        self.status.send_if_modified(|shown| {
            let changed = !shown.same_cluster(&status);
            if changed {
                let (member, term) = (self.member_id, status.term);
                let (leader, role) = (status.leader.unwrap_or(0), status.role);
                tracing::info!(member, term, leader, ?role, "raft status changed");
            }
            *shown = status;
            changed
        });
    }
}
