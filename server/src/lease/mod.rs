//! Leases across leaders: the leader alone knows deadlines, renews, and decides what has expired.
//!
//! Any member takes a client's renewal and passes it on ([`crate::leader`]). What must never happen is that a client
//! sees a lease end early, also when the leader stood still and another one took over without its knowledge:
//! - the leader renews first and then has a quorum confirm that it still leads in the same term. Whoever leads after
//!   counts from its own start, which is later, so the answer holds for it too;
//! - it says that a lease is not there only after a linearizable look;
//! - it revokes only within the term in which it kept the deadline ([`expiry`]).
//!
//! Source: etcd 3.7, server/etcdserver/v3_server.go (LeaseRenew, LeaseTimeToLive) and lease/lessor.go.

pub(crate) mod expiry;

use kv_mvcc::lease::{Renewal, WithKeys};
use kv_proto::command::Body;
use kv_proto::commandpb::{
    LeaseLook, LeaseRenew, LeaseRenewed, LeaseSeen, answer::Answer, question::Question,
};
use kv_proto::etcdserverpb::{LeaseCheckpoint, LeaseCheckpointRequest};

use crate::member::Member;
use crate::{Error, Result, leader};

/// Gives a lease its full time again, wherever the leader is; the granted seconds, 0 if there is no such lease.
pub(crate) async fn renew(member: &Member, id: i64) -> Result<i64> {
    let question = Question::LeaseRenew(LeaseRenew { id });
    match leader::ask_until_answered(member, question).await? {
        Answer::LeaseRenewed(renewed) => Ok(renewed.ttl),
        other => Err(unexpected(&other)),
    }
}

/// Asks the leader, wherever it is, how long a lease has to live.
pub(crate) async fn look(member: &Member, id: i64, keys: bool) -> Result<LeaseSeen> {
    let question = Question::LeaseLook(LeaseLook { id, keys });
    match leader::ask_until_answered(member, question).await? {
        Answer::LeaseSeen(seen) => Ok(seen),
        other => Err(unexpected(&other)),
    }
}

/// Renews as the leader; [`Error::NotLeader`] if this member is not.
pub(crate) async fn lead_renew(member: &Member, id: i64) -> Result<LeaseRenewed> {
    let lessor = member.store.lessor();
    loop {
        let term = member.leading_term().ok_or(Error::NotLeader)?;
        if !lessor.exists(id) {
            // It may be on its way, and only a linearizable look can tell that it is not.
            member.reads.linearizable().await?;
        }
        match lessor.renew(id, member.started.elapsed()) {
            Renewal::Renewed {
                ttl_secs,
                checkpointed,
            } => {
                if checkpointed {
                    forget_checkpoint(member, term, id).await?;
                }
                confirm(member, term).await?;
                if !lessor.exists(id) {
                    continue; // Revoked meanwhile.
                }
                member.metrics.debugging.leases_renewed.inc();
                return Ok(LeaseRenewed { ttl: ttl_secs });
            }
            Renewal::NotFound => {
                confirm(member, term).await?;
                return Ok(LeaseRenewed { ttl: 0 });
            }
            // Elected, and about to be told so.
            Renewal::NotPrimary => return Err(Error::NotLeader),
            // Whoever asked gives up in time.
            Renewal::Expired => lessor.revoked(id).await,
        }
    }
}

/// Looks at a lease as the leader; [`Error::NotLeader`] if this member is not.
pub(crate) async fn lead_look(member: &Member, look: LeaseLook) -> Result<LeaseSeen> {
    let term = member.leading_term().ok_or(Error::NotLeader)?;
    member.reads.linearizable().await?;
    let with_keys = if look.keys {
        WithKeys::Yes
    } else {
        WithKeys::No
    };
    let lessor = member.store.lessor();
    let lease = lessor.time_to_live(look.id, member.started.elapsed(), with_keys);
    if !lessor.is_primary() || member.leading_term() != Some(term) {
        return Err(Error::NotLeader);
    }
    Ok(match lease {
        None => LeaseSeen {
            ttl: -1,
            ..LeaseSeen::default()
        },
        Some(lease) => LeaseSeen {
            ttl: lease.remaining_secs,
            granted_ttl: lease.granted_ttl_secs,
            keys: lease.keys,
        },
    })
}

/// A quorum confirms that this member leads in `term`.
async fn confirm(member: &Member, term: u64) -> Result<()> {
    if member.is_alone() || member.node.confirm_leadership(term).await {
        Ok(())
    } else {
        Err(Error::NotLeader)
    }
}

/// A renewed lease has its full time on every later leader too.
async fn forget_checkpoint(member: &Member, term: u64, id: i64) -> Result<()> {
    let checkpoints = vec![LeaseCheckpoint {
        id,
        remaining_ttl: 0,
    }];
    let body = Body::LeaseCheckpoint(LeaseCheckpointRequest { checkpoints });
    let proposed = member.proposer.propose_all_in_term(term, vec![body]).await;
    proposed.map_err(|error| match error {
        Error::NoLeader => Error::NotLeader,
        error => error,
    })
}

fn unexpected(answer: &Answer) -> Error {
    tracing::error!(?answer, "the leader answered another question");
    Error::Timeout
}
