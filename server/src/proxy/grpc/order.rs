//! Serializable reads that never go back (`--experimental-serializable-ordering`).
//!
//! A member answers them from what it has applied, and another one may have applied less. Here an answer that is older than
//! one given before is not passed on: the next members are asked instead. Source: etcd v3.7, client/v3/ordering.

use std::sync::atomic::{AtomicI64, Ordering};

use kv_client::{Client, Code, Error};
use kv_proto::etcdserverpb::{RangeRequest, ResponseHeader};
use tonic::Status;

/// How often each member is asked before a read is given up. Source: etcd v3.7.
pub(super) const ATTEMPTS_PER_MEMBER: usize = 5;

/// The newest revision that callers have seen.
#[derive(Debug, Default)]
pub(super) struct Order {
    /// `None`: reads may go back.
    newest: Option<AtomicI64>,
}

impl Order {
    pub(super) fn new(is_kept: bool) -> Order {
        Order {
            newest: is_kept.then(AtomicI64::default),
        }
    }

    /// Waits until the cluster says how far it is: callers may have seen that by another proxy.
    ///
    /// One that answers users only is asked no further: the order begins with the first answer to a caller.
    pub(super) async fn learn(&self, client: &Client) {
        if self.newest.is_none() {
            return;
        }
        let any = RangeRequest {
            key: "_".into(),
            keys_only: true,
            ..RangeRequest::default()
        };
        // While nobody answers, the client itself tries again, up to its request timeout.
        loop {
            match client.range(any.clone()).await {
                Ok(answer) => return self.see(answer.header.as_ref()),
                Err(error @ Error::Server { code, .. }) if code != Code::Unavailable => {
                    return tracing::warn!(%error, "the cluster does not tell its revision");
                }
                Err(error) => tracing::warn!(%error, "waiting for the cluster"),
            }
        }
    }

    /// Notes what an answer tells.
    pub(super) fn see(&self, header: Option<&ResponseHeader>) {
        if let Some(newest) = &self.newest {
            newest.fetch_max(revision(header), Ordering::AcqRel);
        }
    }

    /// What an answer to a read that begins now must reach; 0 if any will do.
    pub(super) fn least(&self) -> i64 {
        let newest = self.newest.as_ref();
        newest.map_or(0, |newest| newest.load(Ordering::Acquire))
    }
}

/// No member knows what was seen before.
pub(super) fn violated() -> Status {
    Status::unknown(
        "etcdclient: no cluster members have a revision higher than the previously received revision",
    )
}

/// The revision that a header names.
pub(super) fn revision(header: Option<&ResponseHeader>) -> i64 {
    header.map_or(0, |header| header.revision)
}
