//! The space quota: how much a request may add before NOSPACE is raised.
//!
//! Costs are etcd's: a put 256 bytes plus key and value, a lease 64, a transaction its larger branch with nested ones
//! included. Usage is the database's live bytes: space freed by compaction counts as free at once.
//! Source: etcd API v3.7, storage/quota.go.

use kv_proto::command::Body;
use kv_proto::etcdserverpb::request_op::Request;
use kv_proto::etcdserverpb::{PutRequest, RequestOp, TxnRequest};

/// etcd's quota when none is set, 2 GiB.
pub(crate) const DEFAULT_BYTES: i64 = 2 * 1024 * 1024 * 1024;

/// What `body` may add to the database, in bytes; 0 for what is admitted always.
pub(crate) fn cost(body: &Body) -> u64 {
    match body {
        Body::Put(put) => put_cost(put),
        Body::Txn(txn) => txn_cost(txn),
        Body::LeaseGrant(_) => 64,
        _ => 0,
    }
}

fn put_cost(put: &PutRequest) -> u64 {
    (256 + put.key.len() + put.value.len()) as u64
}

fn txn_cost(txn: &TxnRequest) -> u64 {
    branch_cost(&txn.success).max(branch_cost(&txn.failure))
}

fn branch_cost(ops: &[RequestOp]) -> u64 {
    let costs = ops.iter().map(|op| match &op.request {
        Some(Request::RequestPut(put)) => put_cost(put),
        Some(Request::RequestTxn(txn)) => txn_cost(txn),
        _ => 0,
    });
    costs.sum()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_transaction_costs_its_larger_branch() {
        let put = |value: &'static str| RequestOp {
            request: Some(Request::RequestPut(PutRequest {
                key: "k".into(),
                value: value.into(),
                ..Default::default()
            })),
        };
        let nested = RequestOp {
            request: Some(Request::RequestTxn(TxnRequest {
                success: vec![put("1234")],
                ..Default::default()
            })),
        };
        let txn = TxnRequest {
            success: vec![put("1"), nested],
            failure: vec![put("123456")],
            ..Default::default()
        };
        assert_eq!(cost(&Body::Txn(txn)), (256 + 2) + (256 + 5));
    }
}
