//! Transactions: which branches run, what they need, and what they do.
//!
//! All compares, nested ones too, look at the state before the transaction and choose a path through the
//! branches; everything on the path is checked before the first write; then its operations run in order and
//! see each other. A failed check leaves nothing behind. Source: etcd v3.7, txn/txn.go.

use std::cmp::Ordering;

use kv_mvcc::backend::Op;
use kv_mvcc::{RangeAnswer, RangeQuery, Store, WriteTxn};
use kv_proto::etcdserverpb::compare::{CompareResult, CompareTarget, TargetUnion};
use kv_proto::etcdserverpb::request_op::Request;
use kv_proto::etcdserverpb::response_op;
use kv_proto::etcdserverpb::{
    Compare, RangeRequest, RangeResponse, RequestOp, ResponseOp, TxnRequest, TxnResponse,
};
use kv_proto::key_range::KeyRange;
use kv_proto::mvccpb::KeyValue;

use super::{Applier, Outcome, Response, header, kv};
use crate::rpc::range_query;
use crate::{Error, Result};

/// Compactions that may overtake one read.
const OVERTAKEN_MAX: usize = 8;

impl Applier {
    pub(super) fn txn(&mut self, request: TxnRequest, extra: Vec<Op>) -> Outcome {
        let mut txn = self.store.write(self.mark(extra));
        let outcome = execute(
            View::Write {
                store: &self.store,
                txn: &mut txn,
            },
            request,
        );
        kv::settle(txn, &outcome);
        self.metrics.mvcc.txn.inc();
        outcome.map(Response::Txn)
    }
}

/// Answers a transaction that only reads, at one revision; no entry is needed.
///
/// Errors: [`Error::Compacted`] if compactions overtake it again and again.
pub(crate) fn read_only(store: &Store, request: TxnRequest) -> Result<TxnResponse> {
    for _ in 0..OVERTAKEN_MAX {
        let revision = store.revision();
        let answer = execute(View::Read { store, revision }, request.clone());
        // A compaction above the pinned revision makes every compare look as if it did not hold.
        if store.compacted() <= revision {
            return answer;
        }
    }
    Err(Error::Compacted)
}

fn execute(mut view: View<'_, '_>, request: TxnRequest) -> Result<TxnResponse> {
    let path = Path::choose(&mut view, &request)?;
    check(&mut view, &request, &path)?;
    let response = run(&mut view, request, path);
    if matches!(view, View::Read { .. }) {
        return response;
    }
    // Everything was checked, so an error now is damage, and half of the transaction may be staged: stop.
    response.map_err(|e| match e {
        Error::Storage(_) => e,
        other => Error::Storage(format!("a checked transaction failed half way: {other}")),
    })
}

/// What a transaction reads from, and what it writes to.
enum View<'v, 'store> {
    /// The store as it was at one revision.
    Read { store: &'v Store, revision: i64 },
    /// The store with the transaction's own changes.
    Write {
        store: &'v Store,
        txn: &'v mut WriteTxn<'store>,
    },
}

impl<'store> View<'_, 'store> {
    fn range(&mut self, query: RangeQuery) -> Result<RangeAnswer> {
        match self {
            View::Read { store, revision } => {
                let at = if query.revision > 0 {
                    query.revision
                } else {
                    *revision
                };
                let answer = store.range(&RangeQuery {
                    revision: at,
                    ..query
                })?;
                Ok(RangeAnswer {
                    revision: *revision,
                    ..answer
                })
            }
            View::Write { txn, .. } => Ok(txn.range(&query)?),
        }
    }

    /// The revision visible now: the transaction's own once it has changed something.
    fn revision(&self) -> i64 {
        match self {
            View::Read { revision, .. } => *revision,
            View::Write { txn, .. } => txn.revision(),
        }
    }

    fn store(&self) -> &Store {
        match self {
            View::Read { store, .. } | View::Write { store, .. } => store,
        }
    }

    fn writer(&mut self) -> &mut WriteTxn<'store> {
        match self {
            View::Read { .. } => unreachable!("a transaction that writes is an entry"),
            View::Write { txn, .. } => txn,
        }
    }
}

/// The branch a transaction takes, and those of the nested transactions in it, in order.
struct Path {
    succeeded: bool,
    nested: Vec<Path>,
}

impl Path {
    fn choose(view: &mut View<'_, '_>, request: &TxnRequest) -> Result<Path> {
        let mut succeeded = true;
        for compare in &request.compare {
            if !holds(view, compare)? {
                succeeded = false;
                break;
            }
        }
        let mut nested = Vec::new();
        for op in branch(request, succeeded) {
            if let Some(Request::RequestTxn(inner)) = &op.request {
                nested.push(Path::choose(view, inner)?);
            }
        }
        Ok(Path { succeeded, nested })
    }
}

fn branch(request: &TxnRequest, succeeded: bool) -> &[RequestOp] {
    if succeeded {
        &request.success
    } else {
        &request.failure
    }
}

/// Whether every key of the compare's range satisfies it.
fn holds(view: &mut View<'_, '_>, compare: &Compare) -> Result<bool> {
    let target = CompareTarget::try_from(compare.target);
    // The index alone knows revisions and versions.
    let keys_only = !matches!(target, Ok(CompareTarget::Value | CompareTarget::Lease));
    let range = KeyRange::new(compare.key.clone(), compare.range_end.clone());
    let found = match view.range(RangeQuery {
        keys_only,
        ..RangeQuery::new(range)
    }) {
        Ok(answer) => answer.kvs,
        Err(Error::Storage(e)) => return Err(Error::Storage(e)),
        Err(_) => return Ok(false),
    };
    if found.is_empty() {
        // There is no way to say "no value", so a compare of values cannot hold.
        return Ok(target != Ok(CompareTarget::Value) && satisfies(compare, &KeyValue::default()));
    }
    Ok(found.iter().all(|kv| satisfies(compare, kv)))
}

/// A missing operand is 0 or empty, an unknown target equal, an unknown result true.
fn satisfies(compare: &Compare, kv: &KeyValue) -> bool {
    let operand = compare.target_union.as_ref();
    let number = |have: i64, want: Option<i64>| have.cmp(&want.unwrap_or(0));
    let ordering = match CompareTarget::try_from(compare.target) {
        Ok(CompareTarget::Value) => match operand {
            Some(TargetUnion::Value(value)) => kv.value.cmp(value),
            _ => kv.value[..].cmp(&[]),
        },
        Ok(CompareTarget::Create) => number(
            kv.create_revision,
            operand.and_then(|o| {
                if let TargetUnion::CreateRevision(n) = o {
                    Some(*n)
                } else {
                    None
                }
            }),
        ),
        Ok(CompareTarget::Mod) => number(
            kv.mod_revision,
            operand.and_then(|o| {
                if let TargetUnion::ModRevision(n) = o {
                    Some(*n)
                } else {
                    None
                }
            }),
        ),
        Ok(CompareTarget::Version) => number(
            kv.version,
            operand.and_then(|o| {
                if let TargetUnion::Version(n) = o {
                    Some(*n)
                } else {
                    None
                }
            }),
        ),
        Ok(CompareTarget::Lease) => number(
            kv.lease,
            operand.and_then(|o| {
                if let TargetUnion::Lease(n) = o {
                    Some(*n)
                } else {
                    None
                }
            }),
        ),
        Err(_) => Ordering::Equal,
    };
    match CompareResult::try_from(compare.result) {
        Ok(CompareResult::Equal) => ordering.is_eq(),
        Ok(CompareResult::NotEqual) => ordering.is_ne(),
        Ok(CompareResult::Greater) => ordering.is_gt(),
        Ok(CompareResult::Less) => ordering.is_lt(),
        Err(_) => true,
    }
}

/// Everything on the path can be carried out on the state before the transaction.
fn check(view: &mut View<'_, '_>, request: &TxnRequest, path: &Path) -> Result<()> {
    let mut nested = path.nested.iter();
    for op in branch(request, path.succeeded) {
        match &op.request {
            Some(Request::RequestRange(range)) => check_range(view, range)?,
            Some(Request::RequestPut(put)) => match view {
                View::Write { store, txn } => kv::check_put(store.lessor(), txn, put)?,
                View::Read { .. } => unreachable!("a transaction that writes is an entry"),
            },
            Some(Request::RequestTxn(inner)) => {
                let path = nested
                    .next()
                    .expect("the path has an entry for each nested transaction");
                check(view, inner, path)?;
            }
            Some(Request::RequestDeleteRange(_)) | None => {}
        }
    }
    Ok(())
}

/// A negative revision is compacted here, unlike in a plain Range.
fn check_range(view: &View<'_, '_>, request: &RangeRequest) -> Result<()> {
    match request.revision {
        0 => Ok(()),
        revision if revision > view.revision() => Err(Error::FutureRevision),
        revision if revision < view.store().compacted() || revision < 0 => Err(Error::Compacted),
        _ => Ok(()),
    }
}

fn run(view: &mut View<'_, '_>, request: TxnRequest, path: Path) -> Result<TxnResponse> {
    let mut response = run_branches(view, request, path)?;
    response.header = header(view.revision());
    Ok(response)
}

/// Nested responses keep an empty header, as etcd's do.
fn run_branches(view: &mut View<'_, '_>, request: TxnRequest, path: Path) -> Result<TxnResponse> {
    let ops = if path.succeeded {
        request.success
    } else {
        request.failure
    };
    let mut nested = path.nested.into_iter();
    let mut responses = Vec::with_capacity(ops.len());
    for op in ops {
        let response = match op.request {
            Some(Request::RequestRange(range)) => {
                let answer = view.range(range_query(range))?;
                let RangeAnswer {
                    revision,
                    kvs,
                    count,
                    more,
                } = answer;
                let response = RangeResponse {
                    header: header(revision),
                    kvs,
                    count,
                    more,
                };
                Some(response_op::Response::ResponseRange(response))
            }
            Some(Request::RequestPut(put)) => Some(response_op::Response::ResponsePut(kv::put(
                view.writer(),
                put,
            )?)),
            Some(Request::RequestDeleteRange(delete)) => {
                Some(response_op::Response::ResponseDeleteRange(
                    kv::delete_range(view.writer(), delete)?,
                ))
            }
            Some(Request::RequestTxn(inner)) => {
                let path = nested
                    .next()
                    .expect("the path has an entry for each nested transaction");
                Some(response_op::Response::ResponseTxn(run_branches(
                    view, inner, path,
                )?))
            }
            None => None,
        };
        responses.push(ResponseOp { response });
    }
    let header = Some(kv_proto::etcdserverpb::ResponseHeader::default());
    Ok(TxnResponse {
        header,
        succeeded: path.succeeded,
        responses,
    })
}
