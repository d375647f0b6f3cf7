//! Serializable reads that never go back (`--experimental-serializable-ordering`).
//!
//! A member answers them from what it has applied, and another one may have applied less. Here an answer that is older than
//! one given before is not passed on: the next members are asked instead. Source: etcd v3.7, client/v3/ordering.

use std::sync::atomic::{AtomicI64, Ordering};
use std::time::Duration;

use kv_client::Client;
use kv_proto::etcdserverpb::{RangeRequest, ResponseHeader};
use tonic::Status;

/// How often each member is asked before a read is given up. Source: etcd v3.7.
pub(super) const ATTEMPTS_PER_MEMBER: usize = 5;
/// Pause between two attempts to learn how far the cluster is.
const PAUSE: Duration = Duration::from_secs(1);

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
    pub(super) async fn learn(&self, client: &Client) {
        if self.newest.is_none() {
            return;
        }
        let any = RangeRequest {
            key: "_".into(),
            keys_only: true,
            ..RangeRequest::default()
        };
        loop {
            match client.range(any.clone()).await {
                Ok(answer) => return self.see(answer.header.as_ref()),
                Err(error) => {
                    tracing::warn!(%error, "cannot learn the revision of the cluster; trying again");
                }
            }
            tokio::time::sleep(PAUSE).await;
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
