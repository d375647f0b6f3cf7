//! A queue of keys under a prefix: whose key was created first has its turn.
//!
//! Keys are `<name>/<lease id in hexadecimal>`, as clientv3's recipes make them, so that callers of these services and
//! users of the recipes stand in the same queue. Nobody polls: each waits for the end of the key before its own.
//! Source: etcd v3.7, client/v3/concurrency.

use bytes::Bytes;
use kv_proto::etcdserverpb::compare::{CompareResult, CompareTarget, TargetUnion};
use kv_proto::etcdserverpb::range_request::{SortOrder, SortTarget};
use kv_proto::etcdserverpb::request_op::Request as Op;
use kv_proto::etcdserverpb::response_op::Response as OpResponse;
use kv_proto::etcdserverpb::{
    Compare, DeleteRangeRequest, PutRequest, RangeRequest, RangeResponse, RequestOp,
    ResponseHeader, TxnRequest, TxnResponse, WatchCreateRequest,
};
use kv_proto::mvccpb::KeyValue;
use kv_proto::mvccpb::event::EventType;
use tokio::sync::oneshot;
use tonic::Status;

use super::inside::{Caller, Next};

/// The time to live of a lease that the member grants for a caller who names none; nobody renews it.
const SESSION_TTL_SECS: i64 = 60;

/// The lease a caller's key is bound to.
pub(super) async fn session(caller: &Caller, lease: i64) -> Result<i64, Status> {
    match lease {
        0 => caller.grant(SESSION_TTL_SECS).await,
        lease => Ok(lease),
    }
}

/// The prefix of a queue.
pub(super) fn prefix(name: &[u8]) -> Bytes {
    [name, b"/"].concat().into()
}

/// A caller's key. Negative ids have a sign, as Go prints them.
fn key_of(prefix: &[u8], lease: i64) -> Bytes {
    let sign = if lease < 0 { "-" } else { "" };
    let id = format!("{sign}{:x}", lease.unsigned_abs());
    [prefix, id.as_bytes()].concat().into()
}

/// A place in a queue. Unless it is [`kept`](Place::keep), the key goes when this is dropped: the caller went away or
/// waiting failed.
pub(super) struct Place {
    caller: Caller,
    prefix: Bytes,
    /// The key that stands in the queue.
    pub(super) key: Bytes,
    /// Its create revision.
    pub(super) revision: i64,
    /// The header of the transaction that took the place or found it taken by the same lease.
    pub(super) header: Option<ResponseHeader>,
    /// The value, if the key was there before.
    pub(super) found: Option<Bytes>,
    /// Whether no key was before it then.
    pub(super) is_first: bool,
    kept: bool,
}

impl Place {
    /// Stands in the queue with `value`, or finds the key of the same lease there.
    ///
    /// The transaction ends even if the caller goes away meanwhile, so that its key does not stay behind.
    pub(super) async fn take(
        caller: &Caller,
        name: &[u8],
        lease: i64,
        value: Bytes,
    ) -> Result<Place, Status> {
        let (taken, place) = oneshot::channel();
        let (caller, prefix) = (caller.clone(), prefix(name));
        tokio::spawn(async move {
            let _ = taken.send(Place::take_now(caller, prefix, lease, value).await);
        });
        place
            .await
            .unwrap_or_else(|_| Err(crate::Error::Stopped.into()))
    }

    async fn take_now(
        caller: Caller,
        prefix: Bytes,
        lease: i64,
        value: Bytes,
    ) -> Result<Place, Status> {
        let key = key_of(&prefix, lease);
        let put = PutRequest {
            key: key.clone(),
            value,
            lease,
            ..Default::default()
        };
        let get = RangeRequest {
            key: key.clone(),
            ..Default::default()
        };
        let owner = operation(Op::RequestRange(first_created(&prefix)));
        let request = TxnRequest {
            compare: vec![created_at(&key, 0)],
            success: vec![operation(Op::RequestPut(put)), owner.clone()],
            failure: vec![operation(Op::RequestRange(get)), owner],
        };
        let response = caller.txn(request).await?;
        let found = match response.succeeded {
            true => None,
            false => newest(&response, 0).cloned(),
        };
        let now = response.header.as_ref().map_or(0, |header| header.revision);
        let revision = found.as_ref().map_or(now, |kv| kv.create_revision);
        let is_first = newest(&response, 1).is_none_or(|kv| kv.create_revision == revision);
        let kept = found.is_some() && is_first;
        Ok(Place {
            caller,
            prefix,
            key,
            revision,
            header: response.header,
            found: found.map(|kv| kv.value),
            is_first,
            kept,
        })
    }

    /// Leaves the key in the queue when this is dropped.
    pub(super) fn keep(mut self) -> Place {
        self.kept = true;
        self
    }

    /// Waits until no key of the queue is older.
    pub(super) async fn turn(&self) -> Result<(), Status> {
        loop {
            let mut before = first_created(&self.prefix);
            before.sort_order = SortOrder::Descend as i32;
            before.max_create_revision = self.revision - 1;
            let response = self.caller.range(before).await?;
            let Some(last) = response.kvs.first() else {
                return Ok(());
            };
            self.end_of(&last.key, revision_of(&response)).await?;
        }
    }

    /// Waits until `key` is deleted, or until that cannot be told any more.
    async fn end_of(&self, key: &Bytes, start_revision: i64) -> Result<(), Status> {
        let create = WatchCreateRequest {
            key: key.clone(),
            start_revision,
            ..Default::default()
        };
        let mut watch = self.caller.watch(create).await?;
        while let Next::Events(response) = watch.next().await? {
            if response
                .events
                .iter()
                .any(|event| event.r#type() == EventType::Delete)
            {
                break;
            }
        }
        Ok(())
    }
}

impl Drop for Place {
    fn drop(&mut self) {
        if self.kept {
            return;
        }
        let (caller, leave) = (self.caller.clone(), leave(&self.key, self.revision));
        // Not when the runtime itself ends: then the lease takes the key.
        if let Ok(runtime) = tokio::runtime::Handle::try_current() {
            runtime.spawn(async move {
                if let Err(error) = caller.txn(leave).await {
                    tracing::warn!(%error, "a waiter's key stays until its lease ends");
                }
            });
        }
    }
}

/// Deletes `key` if it is still the one created at `revision`.
pub(super) fn leave(key: &Bytes, revision: i64) -> TxnRequest {
    let delete = DeleteRangeRequest {
        key: key.clone(),
        ..Default::default()
    };
    TxnRequest {
        compare: vec![created_at(key, revision)],
        success: vec![operation(Op::RequestDeleteRange(delete))],
        failure: Vec::new(),
    }
}

/// Replaces the value of `key` if it is still the one created at `revision`.
pub(super) fn replace(key: &Bytes, revision: i64, value: Bytes, lease: i64) -> TxnRequest {
    let put = PutRequest {
        key: key.clone(),
        value,
        lease,
        ..Default::default()
    };
    TxnRequest {
        compare: vec![created_at(key, revision)],
        success: vec![operation(Op::RequestPut(put))],
        failure: Vec::new(),
    }
}

/// Asks for the key whose turn it is.
pub(super) fn first_created(prefix: &Bytes) -> RangeRequest {
    RangeRequest {
        key: prefix.clone(),
        range_end: prefix_end(prefix),
        limit: 1,
        sort_order: SortOrder::Ascend as i32,
        sort_target: SortTarget::Create as i32,
        ..Default::default()
    }
}

/// The end of the range of all keys with this prefix, which ends in a slash.
pub(super) fn prefix_end(prefix: &Bytes) -> Bytes {
    let mut end = prefix.to_vec();
    let last = end.last_mut().expect("a queue's prefix ends in a slash");
    *last += 1;
    end.into()
}

/// The revision of an answer.
pub(super) fn revision_of(response: &RangeResponse) -> i64 {
    response.header.as_ref().map_or(0, |header| header.revision)
}

fn created_at(key: &Bytes, revision: i64) -> Compare {
    Compare {
        result: CompareResult::Equal as i32,
        target: CompareTarget::Create as i32,
        key: key.clone(),
        target_union: Some(TargetUnion::CreateRevision(revision)),
        ..Default::default()
    }
}

fn operation(request: Op) -> RequestOp {
    RequestOp {
        request: Some(request),
    }
}

/// The pair that operation `n` of a transaction found.
fn newest(response: &TxnResponse, n: usize) -> Option<&KeyValue> {
    match response.responses.get(n)?.response.as_ref()? {
        OpResponse::ResponseRange(range) => range.kvs.first(),
        _ => None,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn keys_have_the_lease_in_hexadecimal() {
        assert_eq!(key_of(b"name/", 0x1f), "name/1f");
        assert_eq!(key_of(b"name/", -0x1f), "name/-1f");
        assert_eq!(key_of(b"/", i64::MIN), "/-8000000000000000");
    }

    #[test]
    fn a_prefix_ends_before_the_next_name() {
        assert_eq!(prefix_end(&prefix(b"name")), "name0");
    }
}
