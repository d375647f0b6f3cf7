//! Expired leases are revoked by the leader, through the log, so that every member deletes the same keys.
//!
//! A new leader knows no renewals: it extends every lease to its full time and an election timeout, so that none
//! expires early. Source: etcd v3.7, lease/lessor.go.

use std::sync::Arc;
use std::time::Duration;

use kv_proto::command::Body;
use kv_proto::etcdserverpb::LeaseRevokeRequest;
use tokio::time::{MissedTickBehavior, interval};

use crate::member::Member;

/// Time between two looks at the leases.
const PERIOD: Duration = Duration::from_millis(500);
/// Leases revoked by one entry.
const REVOKED_MAX: usize = 500;

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
        let term = member.is_leader().then(|| member.node.status().term);
        if term != leading_term {
            leading_term = term;
            let lessor = member.store.lessor();
            match term {
                Some(_) => lessor.promote(member.started.elapsed(), member.config.election_timeout),
                None => lessor.demote(),
            }
        }
        if leading_term.is_some() {
            revoke_expired(&member).await;
        }
    }
}

async fn revoke_expired(member: &Member) {
    loop {
        let expired = member
            .store
            .lessor()
            .expired(member.started.elapsed(), REVOKED_MAX);
        if expired.is_empty() {
            return;
        }
        let count = expired.len();
        let revoke = |id| Body::LeaseRevoke(LeaseRevokeRequest { id });
        if let Err(error) = member
            .proposer
            .propose_all(expired.into_iter().map(revoke).collect())
            .await
        {
            // They stay expired; the next tick tries again.
            tracing::warn!(leases = count, %error, "could not revoke expired leases");
            return;
        }
        if count < REVOKED_MAX {
            return;
        }
    }
}
