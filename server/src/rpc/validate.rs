//! What is refused before it becomes an entry: a panic in apply would stop every member at the same entry.
//!
//! Source: etcd API v3.7, v3rpc/key.go.

use std::collections::{BTreeMap, HashSet};

use bytes::Bytes;
use kv_proto::etcdserverpb::range_request::{SortOrder, SortTarget};
use kv_proto::etcdserverpb::request_op::Request;
use kv_proto::etcdserverpb::{DeleteRangeRequest, PutRequest, RangeRequest, RequestOp, TxnRequest};

use crate::{Error, Result};

/// Key present, sort options known.
pub(crate) fn range(request: &RangeRequest) -> Result<()> {
    if request.key.is_empty() {
        return Err(Error::EmptyKey);
    }
    let order = SortOrder::try_from(request.sort_order);
    let target = SortTarget::try_from(request.sort_target);
    if order.is_err() || target.is_err() {
        return Err(Error::InvalidSortOption);
    }
    Ok(())
}

/// What [`range`] checks, and nothing that a stream cannot do.
pub(crate) fn range_stream(request: &RangeRequest) -> Result<()> {
    range(request)?;
    let default_order = request.sort_order == SortOrder::None as i32
        || (request.sort_order == SortOrder::Ascend as i32
            && request.sort_target == SortTarget::Key as i32);
    if !default_order {
        return Err(Error::Unimplemented(
            "RangeStream does not support custom sort orders",
        ));
    }
    let filters = [
        request.min_mod_revision,
        request.max_mod_revision,
        request.min_create_revision,
        request.max_create_revision,
    ];
    if filters.iter().any(|&revision| revision != 0) {
        return Err(Error::Unimplemented(
            "RangeStream does not support revision filters",
        ));
    }
    Ok(())
}

/// Key present, flags consistent.
pub(crate) fn put(request: &PutRequest) -> Result<()> {
    if request.key.is_empty() {
        return Err(Error::EmptyKey);
    }
    if request.ignore_value && !request.value.is_empty() {
        return Err(Error::ValueProvided);
    }
    if request.ignore_lease && request.lease != 0 {
        return Err(Error::LeaseProvided);
    }
    Ok(())
}

/// Key present.
pub(crate) fn delete_range(request: &DeleteRangeRequest) -> Result<()> {
    if request.key.is_empty() {
        Err(Error::EmptyKey)
    } else {
        Ok(())
    }
}

/// Every part well formed, at most `ops_max` operations deep, no key changed twice in one branch.
pub(crate) fn txn(request: &TxnRequest, ops_max: usize) -> Result<()> {
    txn_shape(request, ops_max)?;
    changes(&request.success)?;
    changes(&request.failure)?;
    Ok(())
}

/// A nested transaction may use what its parent's longest list leaves of `ops_max`.
fn txn_shape(request: &TxnRequest, ops_max: usize) -> Result<()> {
    let ops = request
        .compare
        .len()
        .max(request.success.len())
        .max(request.failure.len());
    if ops > ops_max {
        return Err(Error::TooManyOps);
    }
    if request.compare.iter().any(|c| c.key.is_empty()) {
        return Err(Error::EmptyKey);
    }
    for op in request.success.iter().chain(&request.failure) {
        match &op.request {
            Some(Request::RequestRange(r)) => range(r)?,
            Some(Request::RequestPut(r)) => put(r)?,
            Some(Request::RequestDeleteRange(r)) => delete_range(r)?,
            Some(Request::RequestTxn(r)) => txn_shape(r, ops_max - ops)?,
            None => return Err(Error::KeyNotFound),
        }
    }
    Ok(())
}

/// Keys put and ranges deleted by one branch and its nested transactions.
#[derive(Default)]
struct Changes {
    puts: HashSet<Bytes>,
    /// Start and end of ranges that neither overlap nor touch.
    deletes: BTreeMap<Bytes, Bytes>,
}

impl Changes {
    fn add_put(&mut self, key: &Bytes) -> Result<()> {
        let before = self.deletes.range::<Bytes, _>(..=key).next_back();
        let is_deleted = before.is_some_and(|(_, end)| key < end);
        if is_deleted || !self.puts.insert(key.clone()) {
            return Err(Error::DuplicateKey);
        }
        Ok(())
    }

    /// An empty `end` stands for the one key `start`; a range whose end is not above its start contains nothing.
    fn add_delete(&mut self, start: &Bytes, end: &Bytes) {
        let (mut start, mut end) = (start.clone(), end.clone());
        if end.is_empty() {
            end = [&start[..], b"\0"].concat().into();
        }
        if end <= start {
            return;
        }
        // It becomes one with those that it overlaps or touches.
        if let Some((first, last)) = self.deletes.range::<Bytes, _>(..=&start).next_back()
            && *last >= start
        {
            start = first.clone();
            end = end.max(last.clone());
        }
        loop {
            let next = self.deletes.range::<Bytes, _>(&start..=&end).next();
            let Some((first, last)) = next.map(|(first, last)| (first.clone(), last.clone()))
            else {
                break;
            };
            self.deletes.remove(&first);
            end = end.max(last);
        }
        self.deletes.insert(start, end);
    }

    fn is_empty(&self) -> bool {
        self.puts.is_empty() && self.deletes.is_empty()
    }
}

/// Collects what `ops` change; an error if they change a key twice.
///
/// The order is etcd's, and with it what goes unnoticed: a range whose end is `"\0"` or not above its start
/// overlaps nothing, and a delete of a later sibling does not meet the puts of an earlier one.
fn changes(ops: &[RequestOp]) -> Result<Changes> {
    let mut all = Changes::default();
    for op in ops {
        if let Some(Request::RequestDeleteRange(r)) = &op.request {
            all.add_delete(&r.key, &r.range_end);
        }
    }
    for op in ops {
        let Some(Request::RequestTxn(txn)) = &op.request else {
            continue;
        };
        let success = changes(&txn.success)?;
        let failure = changes(&txn.failure)?;
        // A chain of transactions costs no more than its ends.
        if all.is_empty() && (success.is_empty() || failure.is_empty()) {
            all = if failure.is_empty() { success } else { failure };
            continue;
        }
        for key in &success.puts {
            all.add_put(key)?;
        }
        // Only one of the two branches runs.
        for key in failure.puts.difference(&success.puts) {
            all.add_put(key)?;
        }
        for (start, end) in success.deletes.iter().chain(&failure.deletes) {
            all.add_delete(start, end);
        }
    }
    for op in ops {
        if let Some(Request::RequestPut(r)) = &op.request {
            all.add_put(&r.key)?;
        }
    }
    Ok(all)
}

#[cfg(test)]
mod tests {
    use super::*;
    use kv_proto::etcdserverpb::Compare;
    use proptest::prelude::*;

    fn put_op(key: &'static str) -> RequestOp {
        op(Request::RequestPut(PutRequest {
            key: key.into(),
            ..Default::default()
        }))
    }

    fn delete_op(key: &'static str, end: &'static str) -> RequestOp {
        op(Request::RequestDeleteRange(DeleteRangeRequest {
            key: key.into(),
            range_end: end.into(),
            ..Default::default()
        }))
    }

    fn nested(success: Vec<RequestOp>, failure: Vec<RequestOp>) -> RequestOp {
        op(Request::RequestTxn(TxnRequest {
            success,
            failure,
            ..Default::default()
        }))
    }

    fn op(request: Request) -> RequestOp {
        RequestOp {
            request: Some(request),
        }
    }

    fn check(success: Vec<RequestOp>, expect: Result<()>) {
        assert_eq!(
            txn(
                &TxnRequest {
                    success,
                    ..Default::default()
                },
                128
            ),
            expect
        );
    }

    #[test]
    fn a_branch_may_change_a_key_once() {
        check(vec![put_op("a"), put_op("b")], Ok(()));
        check(vec![put_op("a"), put_op("a")], Err(Error::DuplicateKey));
        check(
            vec![put_op("b"), delete_op("a", "c")],
            Err(Error::DuplicateKey),
        );
        check(
            vec![put_op("a"), delete_op("a", "")],
            Err(Error::DuplicateKey),
        );
        check(vec![put_op("c"), delete_op("a", "c")], Ok(()));
        check(vec![delete_op("a", "c"), delete_op("b", "d")], Ok(()));
        check(vec![put_op("b"), delete_op("a", "\0")], Ok(()));
        check(vec![put_op("b"), delete_op("z", "a")], Ok(()));
    }

    #[test]
    fn nested_branches_exclude_each_other_only() {
        check(vec![nested(vec![put_op("a")], vec![put_op("a")])], Ok(()));
        check(
            vec![nested(vec![put_op("a")], vec![]), put_op("a")],
            Err(Error::DuplicateKey),
        );
        check(
            vec![
                nested(vec![put_op("a")], vec![]),
                nested(vec![delete_op("a", "")], vec![]),
            ],
            Ok(()),
        );
        check(
            vec![
                nested(vec![delete_op("a", "")], vec![]),
                nested(vec![put_op("a")], vec![]),
            ],
            Err(Error::DuplicateKey),
        );
    }

    #[test]
    fn operations_are_counted_along_the_deepest_path() {
        let ops = |n: usize| (0..n).map(|_| delete_op("x", "")).collect::<Vec<_>>();
        check(ops(128), Ok(()));
        check(ops(129), Err(Error::TooManyOps));
        check(vec![nested(ops(127), vec![])], Ok(()));
        check(vec![nested(ops(128), vec![])], Err(Error::TooManyOps));
    }

    #[test]
    fn malformed_parts_are_named() {
        check(vec![RequestOp { request: None }], Err(Error::KeyNotFound));
        check(vec![put_op("")], Err(Error::EmptyKey));
        let request = TxnRequest {
            compare: vec![Compare::default()],
            ..Default::default()
        };
        assert_eq!(txn(&request, 128), Err(Error::EmptyKey));
        let sorted = RangeRequest {
            key: "a".into(),
            sort_order: 3,
            ..Default::default()
        };
        assert_eq!(range(&sorted), Err(Error::InvalidSortOption));
    }
    /// Keys put, and ranges deleted as they stand in the requests.
    type Plain = (HashSet<Bytes>, Vec<(Bytes, Bytes)>);

    /// The rule as it reads, with every put compared to every delete.
    fn changes_one_by_one(ops: &[RequestOp]) -> Result<Plain> {
        let (mut puts, mut deletes) = Plain::default();
        let add = |key: &Bytes, puts: &mut HashSet<Bytes>, deletes: &[(Bytes, Bytes)]| {
            let is_deleted = deletes.iter().any(|(start, end)| match end.is_empty() {
                true => key == start,
                false => start <= key && key < end,
            });
            if is_deleted || !puts.insert(key.clone()) {
                return Err(Error::DuplicateKey);
            }
            Ok(())
        };
        for op in ops {
            if let Some(Request::RequestDeleteRange(r)) = &op.request {
                deletes.push((r.key.clone(), r.range_end.clone()));
            }
        }
        for op in ops {
            if let Some(Request::RequestTxn(txn)) = &op.request {
                let success = changes_one_by_one(&txn.success)?;
                let failure = changes_one_by_one(&txn.failure)?;
                for key in &success.0 {
                    add(key, &mut puts, &deletes)?;
                }
                for key in failure.0.difference(&success.0) {
                    add(key, &mut puts, &deletes)?;
                }
                deletes.extend(success.1);
                deletes.extend(failure.1);
            }
        }
        for op in ops {
            if let Some(Request::RequestPut(r)) = &op.request {
                add(&r.key, &mut puts, &deletes)?;
            }
        }
        Ok((puts, deletes))
    }

    fn any_op() -> impl Strategy<Value = RequestOp> {
        let key = || prop_oneof!["[a-h]", "[a-h]{2}"];
        let end = prop_oneof![Just(String::new()), Just("\0".to_owned()), "[a-i]"];
        let leaf = prop_oneof![
            key().prop_map(|key| op(Request::RequestPut(PutRequest {
                key: key.into(),
                ..Default::default()
            }))),
            (key(), end).prop_map(|(key, end)| op(Request::RequestDeleteRange(
                DeleteRangeRequest {
                    key: key.into(),
                    range_end: end.into(),
                    ..Default::default()
                }
            ))),
        ];
        leaf.prop_recursive(4, 24, 4, |inner| {
            let ops = || proptest::collection::vec(inner.clone(), 0..4);
            (ops(), ops()).prop_map(|(success, failure)| nested(success, failure))
        })
    }

    proptest! {
        #[test]
        fn intervals_find_what_a_look_at_each_delete_finds(ops in proptest::collection::vec(any_op(), 0..6)) {
            let found = changes(&ops).map(|changes| changes.puts);
            prop_assert_eq!(found, changes_one_by_one(&ops).map(|(puts, _)| puts));
        }
    }
}
