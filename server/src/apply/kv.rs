//! Put, DeleteRange and Compact as entries.

use kv_mvcc::backend::Op;
use kv_mvcc::lease::Lessor;
use kv_mvcc::{DeleteOutcome, Prev, RangeQuery, WriteTxn};
use kv_proto::etcdserverpb::{
    CompactionRequest, DeleteRangeRequest, DeleteRangeResponse, PutRequest, PutResponse,
};
use kv_proto::key_range::KeyRange;

use super::{Applier, Outcome, Response, header};
use crate::{Error, Result};

impl Applier {
    pub(super) fn put(&mut self, request: PutRequest, extra: Vec<Op>) -> Outcome {
        let mut txn = self.store.write(self.mark(extra));
        let outcome =
            check_put(self.store.lessor(), &txn, &request).and_then(|()| put(&mut txn, request));
        settle(txn, &outcome);
        self.metrics.mvcc.put.inc();
        outcome.map(Response::Put)
    }

    pub(super) fn delete_range(&mut self, request: DeleteRangeRequest, extra: Vec<Op>) -> Outcome {
        let mut txn = self.store.write(self.mark(extra));
        let outcome = delete_range(&mut txn, request);
        settle(txn, &outcome);
        self.metrics.mvcc.delete.inc();
        outcome.map(Response::DeleteRange)
    }

    pub(super) fn compaction(&mut self, request: CompactionRequest, extra: Vec<Op>) -> Outcome {
        let handle = self.store.compact(request.revision, self.mark(extra))?;
        Ok(Response::Compaction(handle))
    }
}

/// Ends a transaction: with its effect and its mark, or, where the store is damaged, with neither, so that no half of it is
/// seen and the entry counts as not applied.
pub(super) fn settle<T>(txn: WriteTxn<'_>, outcome: &Result<T>) {
    if !matches!(outcome, Err(Error::Storage(_))) {
        txn.commit();
    }
}

/// What a put needs of the state before it: its lease, and the key if it keeps a part of it.
///
/// In a transaction it is asked before anything is written. Source: etcd v3.7, txn/put.go.
pub(super) fn check_put(lessor: &Lessor, txn: &WriteTxn<'_>, request: &PutRequest) -> Result<()> {
    if request.lease != 0 && !lessor.exists(request.lease) {
        return Err(Error::LeaseNotFound);
    }
    if (request.ignore_value || request.ignore_lease) && txn.get(&request.key).is_none() {
        return Err(Error::KeyNotFound);
    }
    Ok(())
}

/// Carries out a put that [`check_put`] let pass.
pub(super) fn put(txn: &mut WriteTxn<'_>, request: PutRequest) -> Result<PutResponse> {
    let mut lease = request.lease;
    if request.ignore_lease {
        lease = txn.get(&request.key).map_or(0, |key| key.lease);
    }
    let prev_kv = if request.ignore_value {
        let query = RangeQuery::new(KeyRange::Single(request.key.clone()));
        let previous = txn.range(&query)?.kvs.pop();
        // An earlier operation of the transaction may have deleted the key (a delete up to the end of the keyspace is not
        // seen by the duplicate check): then there is no value to keep.
        let value = previous
            .as_ref()
            .map(|p| p.value.clone())
            .unwrap_or_default();
        txn.put(request.key, &value, lease, Prev::Skip)?;
        previous.filter(|_| request.prev_kv)
    } else {
        txn.put(request.key, &request.value, lease, prev(request.prev_kv))?
            .prev
    };
    Ok(PutResponse {
        header: header(txn.revision()),
        prev_kv,
    })
}

/// Carries out a delete; the header's revision is the transaction's if it has changed anything.
pub(super) fn delete_range(
    txn: &mut WriteTxn<'_>,
    request: DeleteRangeRequest,
) -> Result<DeleteRangeResponse> {
    let range = KeyRange::new(request.key, request.range_end);
    let DeleteOutcome { deleted, prevs } = txn.delete_range(&range, prev(request.prev_kv))?;
    Ok(DeleteRangeResponse {
        header: header(txn.revision()),
        deleted,
        prev_kvs: prevs,
    })
}

fn prev(wanted: bool) -> Prev {
    if wanted { Prev::Read } else { Prev::Skip }
}
