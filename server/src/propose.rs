//! From request to entry: limits, encoding, and the wait for this member's own apply loop.
//!
//! An answered write is in the log of a quorum and applied here, so a read on this member sees it. A refusal
//! that is certain (no leader yet) is tried again until the timeout; a write with an unknown result never is.
//! A slow engine slows writers down before it refuses them: they wait for room in its write buffer.

use std::pin::pin;
use std::sync::Arc;
use std::time::Duration;

use kv_proto::command::{Body, Caller, Command, HEADER_BYTES};
use kv_raft::{Node, ProposeError};
use prost::encoding::encoded_len_varint;
use tokio::sync::{Notify, Semaphore};
use tokio::time::{Instant, timeout_at};

use crate::apply::Response;
use crate::cluster::Cluster;
use crate::metrics::Metrics;
use crate::wait::Wait;
use crate::{Error, Result};

/// Entries that may be committed and not applied before writes are refused. Source: etcd v3.7.
const APPLY_BACKLOG_MAX: u64 = 5_000;
/// The same for lease revocations, which free what is waiting.
const APPLY_BACKLOG_MAX_REVOKE: u64 = 10_000;
/// Request bytes in flight before writes are refused.
const BYTES_IN_FLIGHT_MAX: usize = 64 * 1024 * 1024;

/// Proposes commands on behalf of RPC handlers and this member's own tasks.
pub(crate) struct Proposer {
    node: Node,
    wait: Arc<Wait>,
    backend: kv_mvcc::backend::Backend,
    engine_committed: Arc<Notify>,
    cluster: Arc<Cluster>,
    member_id: u64,
    request_bytes_max: u64,
    timeout: Duration,
    metrics: Arc<Metrics>,
    bytes_in_flight: Arc<Semaphore>,
}

impl Proposer {
    #[allow(
        clippy::too_many_arguments,
        reason = "each is a part of its own; called once"
    )]
    /// `engine_committed` is notified after each commit of `backend`; `timeout` bounds the wait for a result;
    /// `request_bytes_max` is `--max-request-bytes`.
    pub(crate) fn new(
        node: Node,
        wait: Arc<Wait>,
        backend: kv_mvcc::backend::Backend,
        engine_committed: Arc<Notify>,
        cluster: Arc<Cluster>,
        member_id: u64,
        request_bytes_max: u64,
        timeout: Duration,
        metrics: Arc<Metrics>,
    ) -> Proposer {
        let largest = usize::try_from(request_bytes_max).unwrap_or(usize::MAX);
        // One request of the largest size always has room, with what a command adds to it.
        let bytes_max = largest
            .saturating_add(1 << 20)
            .clamp(BYTES_IN_FLIGHT_MAX, Semaphore::MAX_PERMITS);
        let bytes_in_flight = Arc::new(Semaphore::new(bytes_max));
        Proposer {
            node,
            wait,
            backend,
            engine_committed,
            cluster,
            member_id,
            request_bytes_max,
            timeout,
            metrics,
            bytes_in_flight,
        }
    }

    /// Proposes `body` as something this member does by itself, and returns what applying it answered.
    ///
    /// Dropping the future forgets the result, not the request.
    pub(crate) async fn propose(&self, body: Body) -> Result<Response> {
        let caller = own_caller(&body);
        self.propose_for(caller, body).await
    }

    /// As [`Proposer::propose`], on behalf of `caller`.
    pub(crate) async fn propose_for(&self, caller: Caller, body: Body) -> Result<Response> {
        self.check_version(&body)?;
        self.check_backlog(&body)?;
        let _pending = Pending::new(&self.metrics);
        let deadline = Instant::now() + self.timeout;
        let mut command = Command {
            origin: self.member_id,
            request_id: 0,
            caller,
            body,
        };
        loop {
            let mut waiter = self.wait.register();
            command.request_id = waiter.id;
            let bytes = command.encode();
            if etcd_entry_bytes(bytes.len() - HEADER_BYTES) > self.request_bytes_max {
                return Err(Error::RequestTooLarge);
            }
            let permits = u32::try_from(bytes.len()).map_err(|_| Error::RequestTooLarge)?;
            let _in_flight = self
                .bytes_in_flight
                .try_acquire_many(permits)
                .map_err(|_| Error::TooManyRequests)?;
            timeout_at(deadline, self.room_in_buffer())
                .await
                .map_err(|_| Error::TooManyRequests)?;
            let (wait, id) = (self.wait.clone(), waiter.id);
            let refused = move |why| wait.complete([(id, Err(refusal(why)))]);
            self.node.propose(vec![bytes], Box::new(refused));
            match timeout_at(deadline, waiter.result()).await {
                // Certainly in no log: the only refusal that may be proposed again.
                Ok(Err(Error::NoLeader)) => {
                    // Never in any log, which etcd tells by this code.
                    timeout_at(deadline, self.leader_known())
                        .await
                        .map_err(|_| Error::DeadlineExceeded)?;
                }
                Ok(outcome) => return outcome,
                Err(_) => {
                    self.metrics.server.proposals_failed.inc();
                    return Err(Error::Timeout);
                }
            }
        }
    }

    /// Proposes `bodies` as one entry, while this member leads in `term`, and waits until the last of them is applied; results are
    /// dropped. For what only a leader may decide.
    pub(crate) async fn propose_all_in_term(&self, term: u64, bodies: Vec<Body>) -> Result<()> {
        bodies
            .iter()
            .try_for_each(|body| self.check_version(body))?;
        let mut waiter = self.wait.register();
        let last = bodies.len().saturating_sub(1);
        let encode = |(n, body)| {
            let request_id = if n == last { waiter.id } else { 0 };
            Command {
                origin: self.member_id,
                request_id,
                caller: own_caller(&body),
                body,
            }
            .encode()
        };
        let commands = bodies.into_iter().enumerate().map(encode).collect();
        let (wait, id) = (self.wait.clone(), waiter.id);
        let refused = move |why| wait.complete([(id, Err(refusal(why)))]);
        self.node.propose_in_term(term, commands, Box::new(refused));
        match timeout_at(Instant::now() + self.timeout, waiter.result()).await {
            Ok(Err(
                error
                @ (Error::NoLeader | Error::TooManyRequests | Error::Stopped | Error::Timeout),
            )) => Err(error),
            Ok(_) => Ok(()),
            Err(_) => Err(Error::Timeout),
        }
    }

    /// Nothing is proposed that a member of this cluster could not apply.
    fn check_version(&self, body: &Body) -> Result<()> {
        if body.version() > self.cluster.commands() {
            return Err(Error::NotCapable);
        }
        Ok(())
    }

    /// Whether `body` may be proposed now: apply keeps up.
    pub(crate) fn check_backlog(&self, body: &Body) -> Result<()> {
        if is_backlogged(self.node.apply_backlog(), body) {
            return Err(Error::TooManyRequests);
        }
        Ok(())
    }

    /// Waits until the engine has taken so much of the write buffer that there is room for more.
    async fn room_in_buffer(&self) {
        loop {
            let mut committed = pin!(self.engine_committed.notified());
            // Before the look, so that no commit in between is missed.
            committed.as_mut().enable();
            if !self.backend.is_full() {
                return;
            }
            committed.await;
        }
    }

    async fn leader_known(&self) {
        let mut status = self.node.watch_status();
        // An error means the node is gone; the next proposal says so.
        let _ = status.wait_for(|s| s.leader.is_some()).await;
    }
}

/// How this member says that it acts by itself; where nobody is asked who they are, it says nothing.
fn own_caller(body: &Body) -> Caller {
    match body {
        Body::LeaseRevoke(_) | Body::Compaction(_) | Body::Alarm(_) => Caller::Member,
        _ => Caller::Nobody,
    }
}

/// Counts a proposal as pending while it lives.
struct Pending<'a>(&'a Metrics);

impl Pending<'_> {
    fn new(metrics: &Metrics) -> Pending<'_> {
        metrics.server.proposals_pending.inc();
        Pending(metrics)
    }
}

impl Drop for Pending<'_> {
    fn drop(&mut self) {
        self.0.server.proposals_pending.dec();
    }
}

/// Whether so many entries that are committed and not applied are too many for `body`.
fn is_backlogged(entries: u64, body: &Body) -> bool {
    let limit = match body {
        Body::LeaseRevoke(_) => APPLY_BACKLOG_MAX_REVOKE,
        _ => APPLY_BACKLOG_MAX,
    };
    entries > limit
}

fn refusal(why: ProposeError) -> Error {
    match why {
        ProposeError::NotLeader { .. } | ProposeError::NoQuorum => Error::NoLeader,
        ProposeError::Overloaded => Error::TooManyRequests,
        ProposeError::LeadershipLost | ProposeError::NoAnswer => Error::Timeout,
        ProposeError::Stopped => Error::Stopped,
    }
}

/// Bytes etcd compares with `--max-request-bytes`: its log entry wraps the request with an id and a tag.
fn etcd_entry_bytes(body: usize) -> u64 {
    const ID: usize = 2 + 1 + 1 + 9;
    (ID + 1 + encoded_len_varint(body as u64) + body) as u64
}

#[cfg(test)]
mod tests {
    use kv_proto::etcdserverpb::{DeleteRangeRequest, LeaseRevokeRequest, PutRequest};

    use super::*;

    #[test]
    fn backlog_refuses_beyond_etcds_limits() {
        let put = Body::Put(PutRequest::default());
        let delete = Body::DeleteRange(DeleteRangeRequest::default());
        let revoke = Body::LeaseRevoke(LeaseRevokeRequest::default());
        for (entries, refused) in [
            (5_000, [false, false, false]),
            (5_001, [true, true, false]),
            (10_000, [true, true, false]),
            (10_001, [true, true, true]),
        ] {
            let said = [&put, &delete, &revoke].map(|body| is_backlogged(entries, body));
            assert_eq!(said, refused, "{entries} entries");
        }
    }
}
