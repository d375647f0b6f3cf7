//! Expired leases are revoked by the leader, through the log, so that every member deletes the same keys.
//!
//! A new leader knows no renewals: it extends every lease to its full time (or to what a checkpoint left) and an election
//! timeout, so that none expires early. Everything it then decides is proposed for its term alone: a leader that
//! stood still and was replaced has its belated revokes refused.
//!
//! Many leases at once do not make a storm: one entry of a bounded size is under way at a time, and what clients write
//! goes between. Source: etcd v3.7, lease/lessor.go.

use std::sync::Arc;
use std::time::Duration;

use kv_proto::command::Body;
use kv_proto::etcdserverpb::{LeaseCheckpoint, LeaseCheckpointRequest, LeaseRevokeRequest};
use tokio::time::{MissedTickBehavior, interval};

use crate::member::Member;

/// Time between two looks at the leases.
const PERIOD: Duration = Duration::from_millis(500);
/// Leases revoked by one entry; one with many keys counts as many.
const REVOKED_MAX: usize = 128;
/// Leases checkpointed by one entry. Source: etcd v3.7.
const CHECKPOINTED_MAX: usize = 1000;

/// Revokes what has expired while this member leads; runs until the member stops.
pub(crate) async fn run(member: Arc<Member>) {
    let mut ticks = interval(PERIOD);
    ticks.set_missed_tick_behavior(MissedTickBehavior::Delay);
    let mut status = member.node.watch_status();
    let mut leading_term = None;
    loop {
        tokio::select! {
            _ = ticks.tick() => {}
            changed = status.changed() => if changed.is_err() { return },
            () = member.stopping.cancelled() => return,
        }
        let term = member.leading_term();
        if term != leading_term {
            leading_term = term;
            let lessor = member.store.lessor();
            match term {
                Some(_) => lessor.promote(member.started.elapsed(), member.config.election_timeout),
                None => lessor.demote(),
            }
        }
        if let Some(term) = leading_term {
            let due = async {
                revoke_expired(&member, term).await;
                checkpoint(&member, term).await;
            };
            tokio::select! {
                () = due => {}
                () = member.stopping.cancelled() => return,
            }
        }
    }
}

/// Revokes all that has expired, entry by entry, while this member leads in `term`.
async fn revoke_expired(member: &Member, term: u64) {
    let lessor = member.store.lessor();
    while member.leading_term() == Some(term) {
        let expired = lessor.expired(member.started.elapsed(), REVOKED_MAX);
        if expired.is_empty() {
            return;
        }
        let count = expired.len();
        let revokes = expired
            .into_iter()
            .map(|id| Body::LeaseRevoke(LeaseRevokeRequest { id }));
        let revoked = member
            .proposer
            .propose_all_in_term(term, revokes.collect())
            .await;
        if let Err(error) = revoked {
            // They stay expired, and are named again after a while.
            tracing::warn!(leases = count, %error, "could not revoke expired leases");
            return;
        }
        member.metrics.debugging.leases_expired.inc_by(count as u64);
    }
}

/// Notes in the log what long leases have left, if the leases ask for it.
async fn checkpoint(member: &Member, term: u64) {
    let lessor = member.store.lessor();
    loop {
        let due = lessor.checkpoints_due(member.started.elapsed(), CHECKPOINTED_MAX);
        if due.is_empty() {
            return;
        }
        let count = due.len();
        let checkpoints = due
            .into_iter()
            .map(|(id, remaining_ttl)| LeaseCheckpoint { id, remaining_ttl })
            .collect();
        let body = Body::LeaseCheckpoint(LeaseCheckpointRequest { checkpoints });
        if let Err(error) = member.proposer.propose_all_in_term(term, vec![body]).await {
            // The next one is due after the usual interval; until then the older one holds.
            tracing::warn!(leases = count, %error, "could not checkpoint leases");
            return;
        }
    }
}
