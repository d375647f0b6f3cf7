//! Changes of who the members are, and of who leads: etcd's checks, on the leader, one change at a time.
//!
//! The leader first confirms that it leads and has applied what was ever agreed on, then checks, then proposes; no
//! second change is checked before the first is applied. So apply never meets a change that contradicts the table.
//!
//! A member that shall vote comes in as raft's learner, which no quorum waits for, while the table shows it as a
//! voter. [`promote_staged`] gives it the vote once it has caught up: the difference between table and raft is the
//! note that this is still to be done, and survives every leader.
//! Source: etcd v3.7, server.go (mayAddMember and its siblings) and api/membership/cluster.go.

use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use kv_proto::command::{Body, Caller, Command};
use kv_proto::commandpb::question::Question;
use kv_raft::{MembershipError, TransferError};
use tokio::time::MissedTickBehavior;

use crate::cluster::Member as Row;
use crate::member::Member;
use crate::{Error, Result};

/// A member counts as connected when it has answered for this long. Source: etcd v3.7, HealthInterval.
const HEALTH_INTERVAL: Duration = Duration::from_secs(5);
/// Time between two looks for members that have caught up.
const STAGED_PERIOD: Duration = Duration::from_millis(100);
/// What a stop may spend on handing over leadership.
const HAND_OVER_MAX: Duration = Duration::from_secs(2);

/// Makes a change of the members if it passes the checks, and returns when it is applied here.
///
/// [`Error::NotLeader`] is certain, and also the answer of a leader that was to remove itself and has handed over.
pub(crate) async fn lead(member: &Member, change: Question) -> Result<()> {
    let _one_at_a_time = member.reconfiguring.lock().await;
    if !member.is_leader() {
        return Err(Error::NotLeader);
    }
    member.reads.linearizable().await?;
    check(member, &change)?;
    let node = &member.node;
    let changed = match change {
        Question::MemberAdd(request) => {
            let id = request.id;
            // Replication begins before the table has the address.
            member.cluster.expect(Row {
                id,
                peer_urls: request.peer_urls.clone(),
                ..Default::default()
            });
            let explained = explain(member, Body::MemberAdd(request));
            let added = node.add_learner(id, Some(explained)).await;
            if matches!(
                added,
                Err(MembershipError::InProgress | MembershipError::AlreadyAMember)
            ) {
                member.cluster.expect_no_more(id);
            }
            added
        }
        Question::MemberPromote(request) => {
            let explained = explain(member, Body::MemberPromote(request));
            let promoted = node.promote(request.id, Some(explained)).await;
            count_promotion(member, &promoted);
            promoted
        }
        Question::MemberRemove(request) => {
            // The next leader checks again, with its own view: one that this member knows well knows the others well.
            let is_fit = |id| connected_for(member, id).is_some_and(|time| time >= HEALTH_INTERVAL);
            if request.id == member.id
                && let Some(successor) = node.successor(is_fit)
                && node.transfer_leader(successor).await.is_ok()
            {
                return Err(Error::NotLeader);
            }
            let explained = explain(member, Body::MemberRemove(request));
            node.remove(request.id, Some(explained)).await
        }
        Question::MemberUpdate(request) => {
            let updated = member.proposer.propose(Body::MemberUpdate(request)).await;
            return updated.map(drop);
        }
        Question::LeaseRenew(_) | Question::LeaseLook(_) => {
            unreachable!("no change of the members: {change:?}")
        }
    };
    changed.map_err(refused)
}

/// The command that tells apply what a change of raft's membership means; nobody waits for it.
fn explain(member: &Member, body: Body) -> Bytes {
    let (origin, request_id) = (member.id, 0);
    Command {
        origin,
        request_id,
        caller: Caller::Nobody,
        body,
    }
    .encode()
}

fn count_promotion(member: &Member, promoted: &Result<(), MembershipError>) {
    let metrics = &member.metrics.server;
    match promoted {
        Ok(()) => metrics.learner_promote_successes.inc(),
        Err(error) => metrics
            .learner_promote_failures
            .with_label_values(&[&error.to_string()])
            .inc(),
    }
}

fn refused(error: MembershipError) -> Error {
    match error {
        MembershipError::NotLeader { .. } => Error::NotLeader,
        MembershipError::AlreadyAMember => Error::MemberExists,
        MembershipError::NotAMember => Error::MemberNotFound,
        MembershipError::NotALearner => Error::MemberNotLearner,
        MembershipError::LearnerNotReady { .. } => Error::LearnerNotReady,
        MembershipError::LastVoter => Error::NotEnoughStarted,
        MembershipError::NoQuorum
        | MembershipError::InProgress
        | MembershipError::LeadershipLost => Error::Timeout,
        MembershipError::Stopped => Error::Stopped,
    }
}

/// What a change is checked against.
struct View<'a> {
    rows: &'a [Row],
    learners_max: u64,
    /// `--strict-reconfig-check`.
    strict: bool,
    is_removed: &'a dyn Fn(u64) -> bool,
    /// Who votes in raft: not those who came in to have a vote and have not caught up yet.
    raft_voters: &'a [u64],
    /// Since when a member answers this one, which always answers itself; none while it does not.
    connected_for: &'a dyn Fn(u64) -> Option<Duration>,
    /// Whether a member is known to lack more than a tenth of the log.
    is_behind: &'a dyn Fn(u64) -> bool,
}

/// For how long `id` has answered this member.
fn connected_for(member: &Member, id: u64) -> Option<Duration> {
    if id == member.id {
        return Some(Duration::MAX);
    }
    Some(member.transport.active_since(id)?.elapsed())
}

fn is_behind(member: &Member, id: u64) -> bool {
    let progress = member.node.peer_progress(id);
    id != member.id && progress.is_some_and(|progress| !progress.is_ready_to_vote())
}

/// What etcd says of a new member where there is no leader to ask: that too few of the others are there.
pub(crate) fn check_without_leader(member: &Member, change: &Question) -> Result<()> {
    if member.has_leader() {
        return Ok(());
    }
    match check(member, change) {
        Err(lonely @ (Error::Unhealthy | Error::NotEnoughStarted)) => Err(lonely),
        // The rest is for a leader to say.
        Ok(()) | Err(_) => Ok(()),
    }
}

fn check(member: &Member, change: &Question) -> Result<()> {
    let view = View {
        rows: &member.cluster.members(),
        learners_max: member.config.max_learners,
        strict: member.config.strict_reconfig_check,
        is_removed: &|id| member.cluster.is_removed(id),
        raft_voters: &member.node.peek(|status| status.voters.clone()),
        connected_for: &|id| connected_for(member, id),
        is_behind: &|id| is_behind(member, id),
    };
    view.check(change)
}

impl View<'_> {
    fn check(&self, change: &Question) -> Result<()> {
        match change {
            Question::MemberAdd(request) => {
                if self.strict {
                    self.check_quorum_after_add(request.is_learner)?;
                }
                if (self.is_removed)(request.id) {
                    return Err(Error::MemberNotFound);
                }
                if self.row(request.id).is_some() {
                    return Err(Error::MemberExists);
                }
                self.check_urls_free(request.id, &request.peer_urls)?;
                let learners = self.rows.iter().filter(|row| row.is_learner).count() as u64;
                if request.is_learner && learners >= self.learners_max {
                    return Err(Error::TooManyLearners);
                }
                Ok(())
            }
            Question::MemberPromote(request) => {
                let row = self.known(request.id)?;
                if !row.is_learner {
                    // etcd looks at the log first, also of one that is no learner.
                    return Err(match (self.is_behind)(request.id) {
                        true => Error::LearnerNotReady,
                        false => Error::MemberNotLearner,
                    });
                }
                // The member to be promoted counts as started.
                if self.strict && 1 + self.started(None) < quorum(self.voters() + 1) {
                    return Err(Error::NotEnoughStarted);
                }
                Ok(())
            }
            Question::MemberRemove(request) => {
                let row = self.known(request.id)?;
                if self.strict && !row.is_learner {
                    self.check_quorum_after_removal(request.id)?;
                }
                Ok(())
            }
            Question::MemberUpdate(request) => {
                self.known(request.id)?;
                self.check_urls_free(request.id, &request.peer_urls)
            }
            Question::LeaseRenew(_) | Question::LeaseLook(_) => {
                unreachable!("no change of the members: {change:?}")
            }
        }
    }

    /// Enough voters started, and enough of them connected, should the new member never come up. One member alone
    /// may always be joined by a second.
    fn check_quorum_after_add(&self, is_learner: bool) -> Result<()> {
        let (voters, started) = (self.voters(), self.started(None));
        if voters == 1 && started == 1 {
            return Ok(());
        }
        let quorum = quorum(voters + 1);
        if !is_learner && started < quorum {
            return Err(Error::NotEnoughStarted);
        }
        if self.connected() < quorum {
            return Err(Error::Unhealthy);
        }
        Ok(())
    }

    fn check_quorum_after_removal(&self, id: u64) -> Result<()> {
        let left = self.voters() - 1;
        if self.started(Some(id)) < quorum(left) {
            return Err(Error::NotEnoughStarted);
        }
        // A member that is down is no part of the quorum that works.
        if (self.connected_for)(id).is_none() {
            return Ok(());
        }
        if self.connected() < 1 + quorum(left) {
            return Err(Error::Unhealthy);
        }
        // A member without its vote yet is in the table and no part of the quorum that is left.
        let voters = || self.raft_voters.iter().filter(|voter| **voter != id);
        if voters().filter(|voter| self.is_connected(**voter)).count() < quorum(voters().count()) {
            return Err(Error::Unhealthy);
        }
        Ok(())
    }

    fn check_urls_free(&self, id: u64, urls: &[String]) -> Result<()> {
        let mut others = self.rows.iter().filter(|row| row.id != id);
        if others.any(|row| row.peer_urls.iter().any(|url| urls.contains(url))) {
            return Err(Error::PeerUrlExists);
        }
        Ok(())
    }

    fn row(&self, id: u64) -> Option<&Row> {
        self.rows.iter().find(|row| row.id == id)
    }

    fn known(&self, id: u64) -> Result<&Row> {
        self.row(id)
            .filter(|_| !(self.is_removed)(id))
            .ok_or(Error::MemberNotFound)
    }

    fn voting(&self) -> impl Iterator<Item = &Row> {
        self.rows.iter().filter(|row| !row.is_learner)
    }

    fn voters(&self) -> usize {
        self.voting().count()
    }

    /// Voters that have started, without `except`.
    fn started(&self, except: Option<u64>) -> usize {
        let started = self.voting().filter(|row| row.is_started());
        started.filter(|row| Some(row.id) != except).count()
    }

    fn is_connected(&self, id: u64) -> bool {
        (self.connected_for)(id).is_some_and(|time| time >= HEALTH_INTERVAL)
    }

    fn connected(&self) -> usize {
        let connected = self.voting().filter(|row| self.is_connected(row.id));
        connected.count()
    }
}

/// How many of so many members decide.
pub(crate) fn quorum(members: usize) -> usize {
    members / 2 + 1
}

/// While this member leads: gives those their vote who came in to have one and have caught up. Runs until the
/// member stops.
pub(crate) async fn promote_staged(member: Arc<Member>) {
    let mut ticks = tokio::time::interval(STAGED_PERIOD);
    ticks.set_missed_tick_behavior(MissedTickBehavior::Delay);
    loop {
        tokio::select! {
            _ = ticks.tick() => {}
            () = member.stopping.cancelled() => return,
        }
        for id in staged(&member) {
            let is_caught_up = member
                .node
                .peer_progress(id)
                .is_some_and(|progress| progress.is_caught_up() && progress.matching > 0);
            if !is_caught_up {
                continue;
            }
            let _one_at_a_time = member.reconfiguring.lock().await;
            // Removed meanwhile?
            if !staged(&member).contains(&id) {
                continue;
            }
            let id_text = format!("{id:x}");
            match member.node.promote(id, None).await {
                Ok(()) => tracing::info!(peer = id_text, "the new member has caught up and votes"),
                Err(error) => {
                    tracing::debug!(peer = id_text, %error, "the new member gets no vote yet");
                }
            }
        }
    }
}

/// Learners of raft that the table shows as voters; none unless this member leads.
fn staged(member: &Member) -> Vec<u64> {
    if !member.is_leader() {
        return Vec::new();
    }
    let learners = member.node.peek(|status| status.learners.clone());
    let is_staged = |id: u64| {
        let row = member.cluster.member(id);
        row.is_some_and(|row| !row.is_learner)
    };
    learners
        .iter()
        .copied()
        .filter(|id| is_staged(*id))
        .collect()
}

/// Hands leadership to `to`. Errors as etcd's.
pub(crate) async fn move_leader(member: &Member, to: u64) -> Result<()> {
    if !member.is_leader() {
        return Err(Error::NotLeader);
    }
    let row = member.cluster.member(to);
    if row.is_none_or(|row| row.is_learner) {
        return Err(Error::BadLeaderTransferee);
    }
    member
        .node
        .transfer_leader(to)
        .await
        .map_err(|error| match error {
            TransferError::NotLeader { .. } => Error::NotLeader,
            TransferError::NotAVoter => Error::BadLeaderTransferee,
            TransferError::NotReady | TransferError::TimedOut => Error::LeaderTransferTimeout,
            TransferError::Stopped => Error::Stopped,
        })
}

/// Before a stop: hands leadership to the member that is fit best, so that writes need not wait for an election.
pub(crate) async fn hand_over(member: &Member) {
    if !member.is_leader() {
        return;
    }
    let Some(successor) = member.node.successor(|_| true) else {
        return;
    };
    let moved = tokio::time::timeout(HAND_OVER_MAX, member.node.transfer_leader(successor)).await;
    match moved {
        Ok(Ok(())) => tracing::info!(peer = format!("{successor:x}"), "leadership is handed over"),
        Ok(Err(error)) => tracing::warn!(%error, "leadership is not handed over"),
        Err(_) => tracing::warn!("leadership is not handed over in time"),
    }
}

#[cfg(test)]
mod tests;
