//! Transactions, built step by step.

use bytes::Bytes;
use kv_proto::etcdserverpb::{
    Compare, DeleteRangeRequest, PutRequest, RangeRequest, RequestOp, TxnRequest,
    compare::{CompareResult, CompareTarget, TargetUnion},
    request_op::Request as Op,
};

/// A transaction: if all compares hold the first list of operations runs, else the second.
///
/// ```
/// use kv_client::Txn;
/// use kv_proto::etcdserverpb::PutRequest;
///
/// // Create a key only if it does not exist yet.
/// let request = Txn::new()
///     .when(Txn::create_revision("lock", 0))
///     .then(PutRequest { key: "lock".into(), value: "me".into(), ..Default::default() })
///     .into_request();
/// assert_eq!((request.compare.len(), request.success.len()), (1, 1));
/// ```
#[derive(Clone, Debug, Default)]
pub struct Txn(TxnRequest);

impl Txn {
    /// A transaction that compares and does nothing.
    pub fn new() -> Txn {
        Txn::default()
    }

    /// Adds a condition.
    #[must_use]
    pub fn when(mut self, compare: Compare) -> Txn {
        self.0.compare.push(compare);
        self
    }

    /// Adds an operation for when all conditions hold.
    #[must_use]
    pub fn then(mut self, operation: impl Into<Operation>) -> Txn {
        self.0.success.push(operation.into().0);
        self
    }

    /// Adds an operation for when a condition fails.
    #[must_use]
    pub fn or_else(mut self, operation: impl Into<Operation>) -> Txn {
        self.0.failure.push(operation.into().0);
        self
    }

    /// The message to give to [`Client::txn`](crate::Client::txn).
    pub fn into_request(self) -> TxnRequest {
        self.0
    }

    /// The condition that `key` was created at `revision`; 0 means that it does not exist.
    pub fn create_revision(key: impl Into<Bytes>, revision: i64) -> Compare {
        equal(
            key,
            CompareTarget::Create,
            TargetUnion::CreateRevision(revision),
        )
    }

    /// The condition that `key` was last changed at `revision`.
    pub fn mod_revision(key: impl Into<Bytes>, revision: i64) -> Compare {
        equal(key, CompareTarget::Mod, TargetUnion::ModRevision(revision))
    }

    /// The condition that `key` holds `value`.
    pub fn value(key: impl Into<Bytes>, value: impl Into<Bytes>) -> Compare {
        equal(key, CompareTarget::Value, TargetUnion::Value(value.into()))
    }
}

fn equal(key: impl Into<Bytes>, target: CompareTarget, union: TargetUnion) -> Compare {
    Compare {
        result: CompareResult::Equal.into(),
        target: target.into(),
        key: key.into(),
        target_union: Some(union),
        ..Default::default()
    }
}

/// One step of a transaction.
#[derive(Clone, Debug)]
pub struct Operation(RequestOp);

impl From<PutRequest> for Operation {
    fn from(request: PutRequest) -> Operation {
        Operation(RequestOp {
            request: Some(Op::RequestPut(request)),
        })
    }
}

impl From<RangeRequest> for Operation {
    fn from(request: RangeRequest) -> Operation {
        Operation(RequestOp {
            request: Some(Op::RequestRange(request)),
        })
    }
}

impl From<DeleteRangeRequest> for Operation {
    fn from(request: DeleteRangeRequest) -> Operation {
        Operation(RequestOp {
            request: Some(Op::RequestDeleteRange(request)),
        })
    }
}

impl From<TxnRequest> for Operation {
    fn from(request: TxnRequest) -> Operation {
        Operation(RequestOp {
            request: Some(Op::RequestTxn(request)),
        })
    }
}
