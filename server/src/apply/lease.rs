//! Leases as entries: granting, revoking with the keys attached, checkpoints.

use bytes::Bytes;
use kv_mvcc::Prev;
use kv_mvcc::backend::Op;
use kv_proto::etcdserverpb::{
    LeaseCheckpointRequest, LeaseGrantRequest, LeaseGrantResponse, LeaseRevokeRequest,
    LeaseRevokeResponse,
};
use kv_proto::key_range::KeyRange;

use super::{Applier, Outcome, Response, header};

impl Applier {
    /// The id is in the request: the member that proposed it chose one if the client did not. Only the deadline, which no
    /// other state depends on, comes from this member's clock.
    pub(super) fn lease_grant(
        &mut self,
        request: LeaseGrantRequest,
        mut extra: Vec<Op>,
    ) -> Outcome {
        let granted = self
            .store
            .lessor()
            .grant(request.id, request.ttl, self.started.elapsed());
        if let Ok(grant) = &granted {
            extra.push(grant.op.clone());
        }
        self.store.write(self.mark(extra)).commit();
        let ttl = granted?.ttl_secs;
        self.metrics.debugging.leases_granted.inc();
        self.metrics.debugging.lease_ttl_secs.observe(ttl as f64);
        let header = header(self.store.revision());
        Ok(Response::LeaseGrant(LeaseGrantResponse {
            header,
            id: request.id,
            ttl,
            error: String::new(),
        }))
    }

    /// Deletes the attached keys in key order in one revision; without keys there is none.
    pub(super) fn lease_revoke(
        &mut self,
        request: LeaseRevokeRequest,
        mut extra: Vec<Op>,
    ) -> Outcome {
        let revoked = self.store.lessor().revoke(request.id);
        let keys: Vec<Bytes> = match &revoked {
            Ok(revoked) => {
                extra.push(revoked.op.clone());
                revoked.keys.clone()
            }
            Err(_) => Vec::new(),
        };
        let mut txn = self.store.write(self.mark(extra));
        let deleted = keys.into_iter().try_for_each(|key| {
            txn.delete_range(&KeyRange::Single(key), Prev::Skip)
                .map(|_| ())
        });
        txn.commit();
        deleted?;
        revoked?;
        self.metrics.debugging.leases_revoked.inc();
        let header = header(self.store.revision());
        Ok(Response::LeaseRevoke(LeaseRevokeResponse { header }))
    }

    pub(super) fn lease_checkpoint(
        &mut self,
        request: LeaseCheckpointRequest,
        mut extra: Vec<Op>,
    ) -> Outcome {
        for checkpoint in request.checkpoints {
            extra.extend(
                self.store
                    .lessor()
                    .checkpoint(checkpoint.id, checkpoint.remaining_ttl),
            );
        }
        self.store.write(self.mark(extra)).commit();
        Ok(Response::Done)
    }
}
