//! The space quota: how much a request may add before NOSPACE is raised.
//!
//! Costs are etcd's: a put 256 bytes plus key and value, a lease 64, a transaction its larger branch with nested ones
//! included. Usage is the database's live bytes: space freed by compaction counts as free at once.
//!
//! The alarm that a full quota raises is cleared by the member that raised it, once there is room again; one that
//! somebody asked for, or a full disk raised, is not (see [`crate::alarm`]).
//! Source: etcd API v3.7, storage/quota.go.

use std::sync::Arc;
use std::time::Duration;

use kv_mvcc::Store;
use kv_proto::command::Body;
use kv_proto::commandpb::QuotaAlarm;
use kv_proto::etcdserverpb::request_op::Request;
use kv_proto::etcdserverpb::{AlarmType, PutRequest, RequestOp, TxnRequest};
use tokio::time::{MissedTickBehavior, interval};

use crate::alarm::Cause;
use crate::member::Member;

/// etcd's quota when none is set, 2 GiB.
pub(crate) const DEFAULT_BYTES: i64 = 2 * 1024 * 1024 * 1024;

/// Time between two looks whether there is room again.
const PERIOD: Duration = Duration::from_millis(500);
/// There is when less than so many hundredths of the quota are in use: writes must not raise the alarm again at once.
const CLEAR_BELOW_PERCENT: u64 = 90;
/// What a lease costs.
pub(crate) const LEASE_COST: u64 = 64;

/// Live bytes of the database, those that are not committed yet included.
pub(crate) fn usage(store: &Store) -> u64 {
    let backend = store.backend();
    backend.size().in_use + backend.buffered_bytes()
}

/// Raises the alarm of a full quota; a failure is logged, since the refusal that caused it stands anyway.
pub(crate) async fn raise(member: &Member, used: u64, quota: u64) {
    if member.has_alarm(AlarmType::Nospace) {
        return;
    }
    tracing::error!(
        used,
        quota,
        "the quota is used up: raising NOSPACE. Reads, deletes, compaction and defragmentation go on"
    );
    propose(member, true).await;
}

/// Clears this member's alarm when its quota has room again. Runs until the member stops.
///
/// `--quota-auto-disarm=false` keeps etcd's rule: an alarm stays until somebody disarms it.
pub(crate) async fn run(member: Arc<Member>) {
    let Some(quota) = member.config.quota_bytes() else {
        return;
    };
    if !member.config.quota_auto_disarm {
        return;
    }
    let mut ticks = interval(PERIOD);
    ticks.set_missed_tick_behavior(MissedTickBehavior::Delay);
    loop {
        tokio::select! {
            _ = ticks.tick() => {}
            () = member.stopping.cancelled() => return,
        }
        let used = usage(&member.store);
        if has_room(used, quota)
            && member.alarms.cause(member.id, AlarmType::Nospace) == Some(Cause::Quota)
        {
            tracing::info!(used, quota, "the quota has room again: clearing NOSPACE");
            propose(&member, false).await;
        }
    }
}

fn has_room(used: u64, quota: u64) -> bool {
    u128::from(used) * 100 < u128::from(quota) * u128::from(CLEAR_BELOW_PERCENT)
}

async fn propose(member: &Member, is_over: bool) {
    let alarm = QuotaAlarm {
        member_id: member.id,
        is_over,
    };
    if let Err(error) = member.proposer.propose(Body::QuotaAlarm(alarm)).await {
        tracing::warn!(is_over, %error, "could not change the alarm of the quota");
    }
}

/// What `body` may add to the database, in bytes; 0 for what is admitted always.
pub(crate) fn cost(body: &Body) -> u64 {
    match body {
        Body::Put(put) => put_cost(put),
        Body::Txn(txn) => txn_cost(txn),
        Body::LeaseGrant(_) => LEASE_COST,
        _ => 0,
    }
}

pub(crate) fn put_cost(put: &PutRequest) -> u64 {
    (256 + put.key.len() + put.value.len()) as u64
}

pub(crate) fn txn_cost(txn: &TxnRequest) -> u64 {
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
    fn room_begins_below_nine_tenths() {
        assert!(has_room(899, 1000));
        assert!(!has_room(900, 1000));
        assert!(!has_room(u64::MAX, u64::MAX));
    }

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
