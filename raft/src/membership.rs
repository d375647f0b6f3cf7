//! Who votes: the first configuration, one change at a time, and who leads.
//!
//! Each change is one entry that carries the new membership and the command that explains it to
//! the state machine. openraft puts a membership in force when it is appended, not when it is
//! applied, and never takes back a transfer of leadership. Hence the guards here:
//! - a member comes in as a learner, which no quorum waits for, and becomes a voter only when it
//!   answers and holds nine tenths of the log;
//! - a change is based on the membership that was seen, and is refused if another came between;
//! - leadership is handed only to another voter that answers and has almost all of the log;
//! - a leader that is to be removed hands over first.
//!
//! Only a leader changes anything; who is to ask it is the caller's concern.

use std::collections::BTreeSet;
use std::sync::atomic::Ordering;
use std::time::Duration;

use bytes::Bytes;
use openraft::Instant as _;
use openraft::async_runtime::watch::WatchReceiver;
use openraft::entry::RaftPayload;
use openraft::errors::{
    ChangeMembershipError, ClientWriteError, Fatal, ForwardReason, InitializeError, RaftError,
};
use openraft::raft::Precondition;
use tokio::time::Instant;

use crate::config::PAYLOAD_ENTRIES_MAX;
use crate::encoding;
use crate::error::{Error, MembershipError, Result, TransferError};
use crate::network::Rpc;
use crate::node::Inner;
use crate::status::Role;
use crate::types::{Commands, Membership, Payload, Raft, StoredMembership, index_of};
use crate::wire;

/// First pause before a change or a look at a member's progress is repeated; it doubles up to
/// [`RETRY_PAUSE_MAX`].
const RETRY_PAUSE: Duration = Duration::from_millis(2);
const RETRY_PAUSE_MAX: Duration = Duration::from_millis(50);

/// One step from a membership to the next.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Change {
    AddLearner(u64),
    Promote(u64),
    Remove(u64),
}

/// How far the leader knows a member to be.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct PeerProgress {
    /// Newest index the member is known to have on disk, 0 for none.
    pub matching: u64,
    /// Newest index of the leader.
    pub last: u64,
    /// How long ago it last answered; none if it never did in this term.
    pub silence: Option<Duration>,
}

impl PeerProgress {
    /// Holds nine tenths of the log. Source: etcd's readyPercent.
    pub fn is_ready_to_vote(&self) -> bool {
        u128::from(self.matching) * 10 >= u128::from(self.last) * 9
    }

    /// Lacks no more than one append request carries.
    pub fn is_caught_up(&self) -> bool {
        self.matching + PAYLOAD_ENTRIES_MAX >= self.last && self.is_ready_to_vote()
    }
}

/// Writes the first entry of a new cluster, whose members all call this with the same `voters`.
///
/// A cluster of one elects its member at once.
pub(crate) async fn initialize(raft: &Raft, voters: &[u64]) -> Result<()> {
    let member_id = *raft.node_id();
    let ids: BTreeSet<u64> = voters.iter().copied().collect();
    let alone = ids.len() == 1;
    raft.initialize(ids).await.map_err(|error| match error {
        RaftError::APIError(InitializeError::NotAllowed(_)) => Error::AlreadyInitialized,
        RaftError::APIError(InitializeError::NotInMembers(_)) => Error::NotAVoter {
            member_id,
            voters: voters.to_vec(),
        },
        RaftError::Fatal(fatal) => fatal_error(fatal),
    })?;
    if alone {
        elect(raft).await?;
    }
    Ok(())
}

/// Elects this member now if it is the only voter; otherwise time decides.
pub(crate) async fn elect_if_alone(raft: &Raft) -> Result<()> {
    let member_id = *raft.node_id();
    if raft.voter_ids().eq([member_id]) {
        elect(raft).await?;
    }
    Ok(())
}

async fn elect(raft: &Raft) -> Result<()> {
    raft.trigger().elect(false).await.map_err(fatal_error)
}

/// Makes one change and resolves when it is applied here.
///
/// An earlier change that is not committed yet, or a leader that waits for its quorum, is waited
/// for up to two election timeouts.
pub(crate) async fn change(
    node: &Inner,
    change: Change,
    command: Option<Bytes>,
) -> std::result::Result<(), MembershipError> {
    let (role, leader) = {
        let status = node.status.borrow();
        (status.role, status.leader)
    };
    if role != Role::Leader {
        return Err(MembershipError::NotLeader { leader });
    }
    let promotion = match change {
        Change::Promote(id) => {
            check_promotable(node, id).await?;
            Some(Promotion::begin(node, id))
        }
        Change::AddLearner(_) | Change::Remove(_) => None,
    };
    let changed = append(node, change, command).await;
    if let Some(promotion) = promotion {
        promotion.end(&changed).await;
    }
    changed
}

/// Appends the entry of `change`, and tries again what was certainly refused and may succeed soon.
async fn append(
    node: &Inner,
    change: Change,
    command: Option<Bytes>,
) -> std::result::Result<(), MembershipError> {
    let mut retry = Retry::new(node.config.election_timeout * 2);
    loop {
        let (seen, next) = next_membership(node, change).await?;
        let payload = match &command {
            Some(command) => {
                let command = encoding::commands_body(std::slice::from_ref(command));
                Payload::blank().with_normal(Commands(command))
            }
            None => Payload::blank(),
        };
        let unchanged = Precondition::LastMembershipLogId {
            last_membership_log_id: *seen.log_id(),
        };
        let refusal = match node
            .raft
            .append_membership(next, payload, [unchanged])
            .await
        {
            Ok(_) => return Ok(()),
            Err(RaftError::Fatal(_)) => return Err(MembershipError::Stopped),
            Err(RaftError::APIError(error)) => certain_refusal(error)?,
        };
        if !retry.pause().await {
            return Err(refusal);
        }
    }
}

/// A promotion that counts in [`Node::is_sole_voter`](crate::Node::is_sole_voter) as long as the status may not show it.
struct Promotion<'a> {
    node: &'a Inner,
    id: u64,
}

impl<'a> Promotion<'a> {
    fn begin(node: &'a Inner, id: u64) -> Promotion<'a> {
        node.promotions.fetch_add(1, Ordering::AcqRel);
        Promotion { node, id }
    }

    /// What may yet be in force, as after a lost leadership or a dropped call, counts for ever: that costs a round per read.
    async fn end(self, changed: &std::result::Result<(), MembershipError>) {
        let is_settled = match changed {
            Ok(()) => {
                let mut status = self.node.status.clone();
                let shows = status.wait_for(|status| status.voters.contains(&self.id));
                // Never, if the member is removed before the status shows it.
                let shown = tokio::time::timeout(self.node.config.election_timeout, shows).await;
                shown.is_ok_and(|shown| shown.is_ok())
            }
            Err(MembershipError::LeadershipLost | MembershipError::Stopped) => false,
            Err(_) => true,
        };
        if is_settled {
            self.node.promotions.fetch_sub(1, Ordering::AcqRel);
        }
    }
}

/// The refusal of `error` if the change is in no log and may be tried again; the end otherwise.
fn certain_refusal(
    error: ClientWriteError<crate::types::TypeConfig>,
) -> std::result::Result<MembershipError, MembershipError> {
    match error {
        ClientWriteError::ForwardToLeader(forward) => match forward.reason {
            ForwardReason::LeaseExpired => Ok(MembershipError::NoQuorum),
            ForwardReason::NotLeader | ForwardReason::LeadershipTransfer => {
                Err(MembershipError::NotLeader {
                    leader: forward.leader_id,
                })
            }
        },
        ClientWriteError::LogEntryDiscarded(_) => Err(MembershipError::LeadershipLost),
        ClientWriteError::PreconditionFailed(_)
        | ClientWriteError::ChangeMembershipError(
            ChangeMembershipError::InProgress(_) | ChangeMembershipError::UncommittedLeaderLog(_),
        ) => Ok(MembershipError::InProgress),
        ClientWriteError::ChangeMembershipError(
            error @ (ChangeMembershipError::EmptyMembership(_)
            | ChangeMembershipError::LearnerNotFound(_)
            | ChangeMembershipError::UnsupportedMembershipTransition(_)
            | ChangeMembershipError::NodeMetadataChanged(_)),
        ) => unreachable!("one step from the membership in force: {error}"),
    }
}

/// The membership in force and the one after `change`.
async fn next_membership(
    node: &Inner,
    change: Change,
) -> std::result::Result<(StoredMembership, Membership), MembershipError> {
    let seen = node
        .raft
        .with_raft_state(|state| state.membership_state.effective().as_ref().clone())
        .await
        .map_err(|_| MembershipError::Stopped)?;
    let now = seen.membership();
    // A leader that removed itself leads for a moment longer, and openraft, asked for another change
    // then, breaks off or goes on without an owner of the term.
    let own_id = node.config.member_id;
    if !now.voter_ids().any(|id| id == own_id) {
        return Err(MembershipError::NotLeader { leader: None });
    }
    let mut voters: BTreeSet<u64> = now.voter_ids().collect();
    let mut members: BTreeSet<u64> = now.nodes().map(|(id, _)| *id).collect();
    match change {
        Change::AddLearner(id) if !members.insert(id) => {
            return Err(MembershipError::AlreadyAMember);
        }
        Change::Promote(id) | Change::Remove(id) if !members.contains(&id) => {
            return Err(MembershipError::NotAMember);
        }
        Change::Promote(id) if !voters.insert(id) => return Err(MembershipError::NotALearner),
        Change::Remove(id) => {
            members.remove(&id);
            voters.remove(&id);
            if voters.is_empty() {
                return Err(MembershipError::LastVoter);
            }
        }
        Change::AddLearner(_) | Change::Promote(_) => {}
    }
    let next = Membership::new_with_defaults(vec![voters], members);
    Ok((seen, next))
}

/// Refuses to make a voter of a member that would only be missing from the quorum.
async fn check_promotable(node: &Inner, id: u64) -> std::result::Result<(), MembershipError> {
    // Whether it is a learner at all is to be said first.
    next_membership(node, Change::Promote(id)).await?;
    let Some(progress) = progress(node, id) else {
        let leader = node.status.borrow().leader;
        return Err(MembershipError::NotLeader { leader });
    };
    let PeerProgress { matching, last, .. } = progress;
    if !progress.is_ready_to_vote() || probe(node, id).await.is_err() {
        return Err(MembershipError::LearnerNotReady { matching, last });
    }
    Ok(())
}

/// How far the member `id` is; none if this member does not lead or does not replicate to it.
pub(crate) fn progress(node: &Inner, id: u64) -> Option<PeerProgress> {
    // Held for as short as possible: openraft's core waits for it.
    let metrics = node.raft.data_metrics().borrow_watched().clone();
    let matching = *metrics.replication.as_ref()?.get(&id)?;
    let heard = metrics
        .heartbeat
        .as_ref()
        .and_then(|heard| heard.get(&id).copied());
    Some(PeerProgress {
        matching: index_of(matching.as_ref()),
        last: index_of(metrics.last_log.as_ref()),
        silence: heard.flatten().map(|heard| heard.elapsed()),
    })
}

/// Asks a member whether it answers at all.
async fn probe(node: &Inner, id: u64) -> std::result::Result<(), crate::error::PeerError> {
    let timeout = node.config.election_timeout / 2;
    let request = wire::encode_read_index();
    let answer = node.transport.call(id, Rpc::ReadIndex, request, timeout);
    answer.await.map(drop)
}

/// Hands leadership to the voter `to`, and resolves when it leads.
///
/// openraft cannot take a transfer back, and refuses all writes while one is under way: so the
/// target must answer, and have almost all of the log, before the transfer begins.
pub(crate) async fn transfer_leader(
    node: &Inner,
    to: u64,
) -> std::result::Result<(), TransferError> {
    let own_id = node.config.member_id;
    {
        let status = node.status.borrow();
        if status.role != Role::Leader {
            return Err(TransferError::NotLeader {
                leader: status.leader,
            });
        }
        if to == own_id {
            return Ok(());
        }
        if !status.voters.contains(&to) {
            return Err(TransferError::NotAVoter);
        }
    }
    let mut retry = Retry::new(node.config.election_timeout);
    loop {
        let caught_up = progress(node, to).is_some_and(|progress| progress.is_caught_up());
        if caught_up {
            break;
        }
        if !retry.pause().await {
            return Err(TransferError::NotReady);
        }
    }
    probe(node, to).await.map_err(|_| TransferError::NotReady)?;
    tracing::info!(member = own_id, peer = to, "leadership is handed over");
    node.raft
        .trigger()
        .transfer_leader(to)
        .await
        .map_err(|_| TransferError::Stopped)?;
    let mut status = node.status.clone();
    let elsewhere = status.wait_for(|status| status.leader.is_some_and(|leader| leader != own_id));
    match tokio::time::timeout(node.config.election_timeout * 2, elsewhere).await {
        Ok(Ok(status)) if status.leader == Some(to) => Ok(()),
        Ok(Ok(status)) => Err(TransferError::NotLeader {
            leader: status.leader,
        }),
        Ok(Err(_)) => Err(TransferError::Stopped),
        Err(_) => Err(TransferError::TimedOut),
    }
}

/// The voter among those that are `fit` that could take over soonest, if any answers at all.
pub(crate) fn best_successor(node: &Inner, fit: impl Fn(u64) -> bool) -> Option<u64> {
    let voters = node.status.borrow().voters.clone();
    let own_id = node.config.member_id;
    let others = voters.iter().copied().filter(|id| *id != own_id);
    let candidates = others.filter(|id| fit(*id));
    candidates
        .filter_map(|id| Some((progress(node, id)?, id)))
        .filter(|(progress, _)| {
            progress
                .silence
                .is_some_and(|s| s < node.config.election_timeout)
        })
        .max_by_key(|(progress, id)| (progress.matching, *id))
        .map(|(_, id)| id)
}

/// Pauses that grow, up to a deadline.
struct Retry {
    pause: Duration,
    give_up: Instant,
}

impl Retry {
    fn new(patience: Duration) -> Retry {
        Retry {
            pause: RETRY_PAUSE,
            give_up: Instant::now() + patience,
        }
    }

    /// False when the deadline has passed.
    async fn pause(&mut self) -> bool {
        if Instant::now() >= self.give_up {
            return false;
        }
        tokio::time::sleep(self.pause).await;
        self.pause = (self.pause * 2).min(RETRY_PAUSE_MAX);
        true
    }
}

pub(crate) fn fatal_error(fatal: Fatal<crate::types::TypeConfig>) -> Error {
    match fatal {
        Fatal::Stopped => Error::Stopped,
        other => Error::Fatal(other.to_string()),
    }
}

#[cfg(test)]
mod tests;
