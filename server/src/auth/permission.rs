//! What each command needs to be permitted: the rules of every kind in one place, asked at apply and by reads.
//!
//! A transaction needs all that its two branches and those of nested transactions need, whichever of them runs. A value
//! that comes back (`prev_kv`) is read. Who puts a key on a lease could end that lease, so the keys on it have to be
//! writable too. Source: etcd 3.7, etcdserver/apply/auth.go.

use kv_mvcc::lease::{Lessor, WithKeys};
use kv_proto::command::{Body, Caller};
use kv_proto::etcdserverpb::alarm_request::AlarmAction;
use kv_proto::etcdserverpb::request_op::Request;
use kv_proto::etcdserverpb::{DeleteRangeRequest, PutRequest, RequestOp, TxnRequest};

use super::range_permission::Access;
use super::store::State;
use crate::Result;

impl State {
    /// Whether `caller` may have `body` applied.
    pub(crate) fn check(&self, caller: &Caller, lessor: &Lessor, body: &Body) -> Result<()> {
        if !self.is_enabled() {
            return Ok(());
        }
        match body {
            Body::Put(request) => self.check_put(caller, lessor, request),
            Body::DeleteRange(request) => self.check_delete(caller, request),
            Body::Txn(request) => self.check_txn(caller, lessor, request),
            Body::LeaseGrant(_) => self.check_named(caller),
            Body::LeaseRevoke(request) => {
                self.check_named(caller)?;
                self.check_lease(caller, lessor, request.id, Access::Write)
            }
            Body::Alarm(request) if request.action == AlarmAction::Get as i32 => {
                self.check_named(caller)
            }
            Body::Alarm(_) | Body::Compaction(_) | Body::Auth(_) => self.check_admin(caller),
            // A password was compared; and what members say of themselves, which clients cannot propose.
            Body::Authenticate(_)
            | Body::LeaseCheckpoint(_)
            | Body::MemberPublish(_)
            | Body::ClusterVersionSet(_)
            | Body::MemberAdd(_)
            | Body::MemberPromote(_)
            | Body::MemberRemove(_)
            | Body::MemberUpdate(_)
            | Body::ClusterBegin(_)
            | Body::ClusterForce(_)
            | Body::DowngradeSet(_)
            | Body::QuotaAlarm(_) => Ok(()),
        }
    }

    /// Whether `caller` may have a transaction carried out, be it an entry or one that only reads.
    pub(crate) fn check_txn(
        &self,
        caller: &Caller,
        lessor: &Lessor,
        request: &TxnRequest,
    ) -> Result<()> {
        for compare in &request.compare {
            self.check_range(caller, Access::Read, &compare.key, &compare.range_end)?;
        }
        for RequestOp { request } in request.success.iter().chain(&request.failure) {
            match request {
                Some(Request::RequestRange(range)) => {
                    self.check_range(caller, Access::Read, &range.key, &range.range_end)?;
                }
                Some(Request::RequestPut(put)) => self.check_put(caller, lessor, put)?,
                Some(Request::RequestDeleteRange(delete)) => self.check_delete(caller, delete)?,
                Some(Request::RequestTxn(nested)) => self.check_txn(caller, lessor, nested)?,
                None => {}
            }
        }
        Ok(())
    }

    /// Whether `caller` has `access` to every key on the lease; a lease that is not there has none.
    pub(crate) fn check_lease(
        &self,
        caller: &Caller,
        lessor: &Lessor,
        lease: i64,
        access: Access,
    ) -> Result<()> {
        if self.check_admin(caller).is_ok() {
            return Ok(());
        }
        // The time asked for is not looked at.
        let Some(info) = lessor.time_to_live(lease, Default::default(), WithKeys::Yes) else {
            return Ok(());
        };
        info.keys
            .iter()
            .try_for_each(|key| self.check_range(caller, access, key, b""))
    }

    fn check_put(&self, caller: &Caller, lessor: &Lessor, put: &PutRequest) -> Result<()> {
        self.check_range(caller, Access::Write, &put.key, b"")?;
        if put.lease != 0 {
            self.check_lease(caller, lessor, put.lease, Access::Write)?;
        }
        if put.prev_kv {
            self.check_range(caller, Access::Read, &put.key, b"")?;
        }
        Ok(())
    }

    fn check_delete(&self, caller: &Caller, delete: &DeleteRangeRequest) -> Result<()> {
        self.check_range(caller, Access::Write, &delete.key, &delete.range_end)?;
        if delete.prev_kv {
            self.check_range(caller, Access::Read, &delete.key, &delete.range_end)?;
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests;
