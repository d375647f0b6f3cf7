//! The store against a naive model: every change kept for ever, every rule applied literally.

use std::collections::BTreeMap;
use std::time::Duration;

use kv_proto::key_range::KeyRange;
use kv_proto::mvccpb::KeyValue;
use kv_proto::mvccpb::event::EventType;
use proptest::prelude::*;
use proptest::sample::select;
use prost::Message;

use super::*;
use crate::backend::{MemoryDisk, Options};
use crate::range::{RangeAnswer, RangeQuery, SortOrder, SortTarget};
use crate::revision::{Change, Revision};
use crate::watch::{History, HistoryChunk, HistoryRequest, RangeSet};
use crate::write_txn::Prev;
use crate::{CompactionStep, HashKv};

const LEASE: i64 = 7;

fn options() -> StoreOptions {
    StoreOptions {
        // Small, so that values also come from the buffer and the engine.
        value_cache_bytes: 16 * 400,
        compaction_slice: 3,
        compaction_driver: CompactionDriver::Caller,
        ..StoreOptions::default()
    }
}

fn open(disk: &MemoryDisk) -> Arc<Store> {
    let backend = Backend::open_in_memory(disk, Options::default()).unwrap();
    Store::open(backend, options()).unwrap()
}

fn empty() -> Arc<Store> {
    let store = open(&MemoryDisk::default());
    let granted = store.lessor().grant(LEASE, 60, Duration::ZERO).unwrap();
    let mut txn = store.write(AppliedMark::new(1, 1));
    txn.extra(granted.op);
    txn.commit();
    store
}

fn put(store: &Store, key: &str, value: &str) -> i64 {
    let mut txn = store.write(AppliedMark::new(1, 1));
    txn.put(Bytes::from(key.to_owned()), value.as_bytes(), 0, Prev::Skip)
        .unwrap();
    txn.commit().revision
}

fn delete(store: &Store, key: &str) -> i64 {
    let mut txn = store.write(AppliedMark::new(1, 1));
    txn.delete_range(&KeyRange::Single(Bytes::from(key.to_owned())), Prev::Skip)
        .unwrap();
    txn.commit().revision
}

fn all() -> RangeQuery {
    RangeQuery::new(KeyRange::From(Bytes::from_static(b"\0")))
}

fn compact_fully(store: &Store) {
    while store.compact_step().unwrap() == CompactionStep::More {}
}

type State = BTreeMap<Bytes, KeyValue>;

struct Model {
    /// Each stored revision: engine key and value, what it did, to which key.
    stored: Vec<(Revision, Change, Bytes)>,
    /// The keys as of each revision; `states[0]` is revision 1.
    states: Vec<State>,
    compacted: i64,
    /// By revision, with the compacted revision before.
    compaction_hashes: Vec<HashKv>,
    /// Set while a compaction that will be hashed is not finished.
    unfinished: usize,
}

impl Model {
    fn new() -> Model {
        Model {
            stored: vec![],
            states: vec![State::new()],
            compacted: -1,
            compaction_hashes: vec![],
            unfinished: 0,
        }
    }

    fn current(&self) -> i64 {
        self.states.len() as i64
    }

    fn state(&self, revision: i64) -> &State {
        &self.states[revision as usize - 1]
    }

    /// Applies a transaction the way it would be told in words.
    fn apply(&mut self, ops: &[WriteOp]) {
        let main = self.current() + 1;
        let mut state = self.state(self.current()).clone();
        let mut sub = 0;
        for op in ops {
            match op {
                WriteOp::Put { key, value, lease } => {
                    let before = state.get(&key[..]);
                    let kv = KeyValue {
                        key: Bytes::from(key.clone()),
                        create_revision: before.map_or(main, |kv| kv.create_revision),
                        mod_revision: main,
                        version: before.map_or(0, |kv| kv.version) + 1,
                        value: Bytes::from(value.clone()),
                        lease: if *lease { LEASE } else { 0 },
                    };
                    self.stored.push((
                        Revision::new(main, sub),
                        Change::Put,
                        kv.encode_to_vec().into(),
                    ));
                    state.insert(kv.key.clone(), kv);
                    sub += 1;
                }
                WriteOp::Delete(range) => {
                    let keys: Vec<Bytes> = state
                        .keys()
                        .filter(|key| range.contains(key))
                        .cloned()
                        .collect();
                    for key in keys {
                        state.remove(&key);
                        let kv = KeyValue {
                            key,
                            ..KeyValue::default()
                        };
                        self.stored.push((
                            Revision::new(main, sub),
                            Change::Tombstone,
                            kv.encode_to_vec().into(),
                        ));
                        sub += 1;
                    }
                }
            }
        }
        if sub > 0 {
            self.states.push(state);
        }
    }

    fn range(&self, query: &RangeQuery) -> Result<RangeAnswer, &'static str> {
        let current = self.current();
        let revision = if query.revision <= 0 {
            current
        } else {
            query.revision
        };
        if revision > current {
            return Err("future");
        }
        if revision < self.compacted {
            return Err("compacted");
        }
        let mut kvs: Vec<KeyValue> = self
            .state(revision)
            .values()
            .filter(|kv| query.range.contains(&kv.key))
            .cloned()
            .collect();
        let count = kvs.len() as i64;
        if query.count_only {
            return Ok(RangeAnswer {
                revision: current,
                kvs: vec![],
                count,
                more: false,
            });
        }
        let default_order = query.sort_order == SortOrder::None
            || (query.sort_target == SortTarget::Key && query.sort_order == SortOrder::Ascend);
        let filters = [
            query.min_mod_revision,
            query.max_mod_revision,
            query.min_create_revision,
            query.max_create_revision,
        ];
        if default_order && filters == [0; 4] && query.limit > 0 {
            kvs.truncate(query.limit as usize + 1);
        }
        kvs.retain(|kv| {
            (filters[0] == 0 || kv.mod_revision >= filters[0])
                && (filters[1] == 0 || kv.mod_revision <= filters[1])
                && (filters[2] == 0 || kv.create_revision >= filters[2])
                && (filters[3] == 0 || kv.create_revision <= filters[3])
        });
        let descend = query.sort_order == SortOrder::Descend;
        kvs.sort_by(|a, b| {
            let order = match query.sort_target {
                SortTarget::Key => a.key.cmp(&b.key),
                SortTarget::Version => a.version.cmp(&b.version),
                SortTarget::Create => a.create_revision.cmp(&b.create_revision),
                SortTarget::Mod => a.mod_revision.cmp(&b.mod_revision),
                SortTarget::Value => a.value.cmp(&b.value),
            };
            if descend { order.reverse() } else { order }
        });
        let more = query.limit > 0 && kvs.len() as i64 > query.limit;
        if query.limit > 0 {
            kvs.truncate(query.limit as usize);
        }
        if query.keys_only {
            for kv in &mut kvs {
                kv.value = Bytes::new();
                if query.sort_target != SortTarget::Value {
                    kv.lease = 0;
                }
            }
        }
        Ok(RangeAnswer {
            revision: current,
            kvs,
            count,
            more,
        })
    }

    /// HashKV from all that was ever stored, by the rules as worded.
    fn hash(&self, revision: i64, compacted: i64, keep_tombstones: bool) -> u32 {
        let mut kept: BTreeMap<Bytes, (Revision, Change)> = BTreeMap::new();
        for (stored, change, value) in self
            .stored
            .iter()
            .filter(|(stored, ..)| stored.main <= revision)
        {
            kept.insert(
                KeyValue::decode(value.clone()).unwrap().key,
                (*stored, *change),
            );
        }
        kept.retain(|_, (stored, change)| {
            *change == Change::Put || (keep_tombstones && stored.main == revision)
        });
        let mut crc = crc32c::crc32c(b"key");
        for (stored, change, value) in &self.stored {
            let is_kept = kept.values().any(|(kept, _)| kept == stored);
            let counts = stored.main <= revision
                && (stored.main > compacted || kept.is_empty() || is_kept)
                && !(stored.main == compacted && *change == Change::Tombstone);
            if counts {
                crc = crc32c::crc32c_append(crc, &stored.key(*change));
                crc = crc32c::crc32c_append(crc, value);
            }
        }
        crc
    }

    fn hash_kv(&self, revision: i64) -> Result<HashKv, &'static str> {
        let current = self.current();
        if let Some(known) = self
            .compaction_hashes
            .iter()
            .find(|hash| hash.hash_revision == revision)
        {
            return Ok(HashKv {
                revision: current,
                ..*known
            });
        }
        if revision > current {
            return Err("future");
        }
        if revision > 0 && revision < self.compacted {
            return Err("compacted");
        }
        let hash_revision = if revision == 0 { current } else { revision };
        let hash = self.hash(hash_revision, self.compacted, false);
        Ok(HashKv {
            hash,
            revision: current,
            compact_revision: self.compacted,
            hash_revision,
        })
    }

    /// Everything of the past that no event at `from` or later lacks: revision, type, kv, prev_kv.
    fn events(
        &self,
        ranges: &[KeyRange],
        from: i64,
        to: i64,
    ) -> Vec<(i64, EventType, KeyValue, Option<KeyValue>)> {
        let mut events = vec![];
        for (stored, change, value) in &self.stored {
            let kv = KeyValue::decode(value.clone()).unwrap();
            if stored.main < from
                || stored.main > to
                || !ranges.iter().any(|range| range.contains(&kv.key))
            {
                continue;
            }
            let before = stored.main - 1;
            let prev = if before >= self.compacted.max(1) {
                self.state(before).get(&kv.key).cloned()
            } else {
                None
            };
            match change {
                Change::Put => {
                    let prev = prev.filter(|_| kv.create_revision != kv.mod_revision);
                    events.push((stored.main, EventType::Put, kv, prev));
                }
                Change::Tombstone => {
                    let kv = KeyValue {
                        mod_revision: stored.main,
                        ..kv
                    };
                    events.push((stored.main, EventType::Delete, kv, prev));
                }
            }
        }
        events
    }

    /// What compaction removes for good, now that it is finished.
    fn forget(&mut self, compacted: i64) {
        let mut newest: BTreeMap<Bytes, Revision> = BTreeMap::new();
        let key = |value: &Bytes| KeyValue::decode(value.clone()).unwrap().key;
        for (stored, _, value) in self
            .stored
            .iter()
            .filter(|(stored, ..)| stored.main <= compacted)
        {
            newest.insert(key(value), *stored);
        }
        self.stored.retain(|(stored, change, value)| {
            stored.main > compacted
                || (newest[&key(value)] == *stored
                    && (*change == Change::Put || stored.main == compacted))
        });
    }
}

#[derive(Clone, Debug)]
enum WriteOp {
    Put {
        key: Vec<u8>,
        value: Vec<u8>,
        lease: bool,
    },
    Delete(KeyRange),
}

#[derive(Clone, Debug)]
enum Step {
    Txn(Vec<WriteOp>),
    Abandon(Vec<WriteOp>),
    /// This many revisions below the current one.
    Compact(i64),
    CompactionSteps(usize),
    Reopen,
    Query(RangeQuery),
}

const KEYS: [&str; 8] = ["a", "a\0", "ab", "b", "c", "c/1", "c/2", "d"];

fn key() -> impl Strategy<Value = Bytes> {
    select(&KEYS[..]).prop_map(|key| Bytes::from_static(key.as_bytes()))
}

fn key_range() -> impl Strategy<Value = KeyRange> {
    prop_oneof![
        3 => key().prop_map(KeyRange::Single),
        2 => (key(), key()).prop_map(|(start, end)| KeyRange::new(start, end)),
        1 => key().prop_map(KeyRange::From),
    ]
}

fn write_op() -> impl Strategy<Value = WriteOp> {
    prop_oneof![
        5 => (key(), "[a-c]{0,3}", any::<bool>())
            .prop_map(|(key, value, lease)| WriteOp::Put { key: key.to_vec(), value: value.into(), lease }),
        2 => key_range().prop_map(WriteOp::Delete),
    ]
}

fn query() -> impl Strategy<Value = RangeQuery> {
    let orders = [SortOrder::None, SortOrder::Ascend, SortOrder::Descend];
    let targets = [
        SortTarget::Key,
        SortTarget::Version,
        SortTarget::Create,
        SortTarget::Mod,
        SortTarget::Value,
    ];
    let filter = || prop_oneof![3 => Just(0i64), 1 => 1..30i64];
    (
        prop_oneof![key_range(), Just(KeyRange::From(Bytes::from_static(b"\0")))],
        -1..40i64,
        prop_oneof![Just(0), 0..6i64],
        (prop::bool::weighted(0.2), any::<bool>()),
        (filter(), filter(), filter(), filter()),
        (select(orders.to_vec()), select(targets.to_vec())),
    )
        .prop_map(
            |(range, revision, limit, (count_only, keys_only), filters, sort)| RangeQuery {
                range,
                revision,
                limit,
                count_only,
                keys_only,
                min_mod_revision: filters.0,
                max_mod_revision: filters.1,
                min_create_revision: filters.2,
                max_create_revision: filters.3,
                sort_order: sort.0,
                sort_target: sort.1,
            },
        )
}

fn steps() -> impl Strategy<Value = Vec<Step>> {
    let ops = || prop::collection::vec(write_op(), 0..5);
    let step = prop_oneof![
        10 => ops().prop_map(Step::Txn),
        1 => ops().prop_map(Step::Abandon),
        1 => (-1..10i64).prop_map(Step::Compact),
        1 => (1..8usize).prop_map(Step::CompactionSteps),
        1 => Just(Step::Reopen),
        10 => query().prop_map(Step::Query),
    ];
    prop::collection::vec(step, 1..60)
}

fn kind<T>(result: Result<T>) -> Result<T, &'static str> {
    result.map_err(|error| match error {
        Error::Compacted { .. } => "compacted",
        Error::FutureRevision { .. } => "future",
        other => panic!("{other}"),
    })
}

fn check_query(store: &Arc<Store>, model: &Model, query: &RangeQuery) {
    let expected = model.range(query);
    if let Ok(Some(answer)) = store.try_range(query) {
        assert_eq!(Ok(&answer), expected.as_ref(), "from memory: {query:?}");
    }
    assert_eq!(kind(store.range(query)), expected, "{query:?}");

    let plain = RangeQuery {
        range: query.range.clone(),
        revision: query.revision,
        limit: query.limit,
        ..all()
    };
    let plain = RangeQuery {
        count_only: query.count_only,
        keys_only: query.keys_only,
        ..plain
    };
    let streamed = kind(store.range_stream(&plain)).map(|mut stream| {
        let mut answer = RangeAnswer {
            revision: stream.revision(),
            ..RangeAnswer::default()
        };
        loop {
            let chunk = stream.next_chunk(2, usize::MAX).unwrap();
            answer.kvs.extend(chunk.kvs);
            if let Some(end) = chunk.end {
                return RangeAnswer {
                    count: end.count,
                    more: end.more,
                    ..answer
                };
            }
        }
    });
    assert_eq!(streamed, model.range(&plain), "stream of {plain:?}");
}

fn check_everything(store: &Arc<Store>, model: &Model) {
    store.check_invariants();
    assert_eq!(store.revision(), model.current());
    assert_eq!(store.compacted(), model.compacted);
    for revision in 1..=model.current() + 1 {
        let query = RangeQuery { revision, ..all() };
        assert_eq!(
            kind(store.range(&query)),
            model.range(&query),
            "all keys at {revision}"
        );
        assert_eq!(
            kind(store.hash_kv(revision)),
            model.hash_kv(revision),
            "hash at {revision}"
        );
    }
    let newest = model.state(model.current());
    for key in KEYS {
        let lease = newest.get(key.as_bytes()).map_or(0, |kv| kv.lease);
        assert_eq!(
            store.lessor().lease_of(key.as_bytes()).unwrap_or(0),
            lease,
            "lease of {key:?}"
        );
    }
    let from = model.compacted.max(1);
    let ranges = [
        KeyRange::prefix(Bytes::from_static(b"c")),
        KeyRange::Single(Bytes::from_static(b"a")),
    ];
    let request = HistoryRequest {
        ranges: RangeSet::new(&ranges),
        from,
        to: model.current(),
        revisions_max: usize::MAX,
        bytes_max: u64::MAX,
        want_prev: true,
    };
    let expected = model.events(&ranges, from, model.current());
    type Read = fn(&Store, &HistoryRequest) -> Result<HistoryChunk>;
    let reads: [Read; 3] = [
        Store::events_by_key,
        Store::events_by_revision,
        |store, request| store.events(request),
    ];
    // At once, and in the smallest chunks there are.
    for (read, bytes_max) in reads
        .into_iter()
        .flat_map(|read| [(read, u64::MAX), (read, 0)])
    {
        let mut revisions = Vec::new();
        let mut from = request.from;
        while from <= model.current() {
            let part = HistoryRequest {
                from,
                bytes_max,
                ..request.clone()
            };
            let chunk = read(store, &part).unwrap();
            assert!((from..=model.current()).contains(&chunk.through));
            revisions.extend(chunk.revisions);
            from = chunk.through + 1;
        }
        let flat: Vec<_> = revisions
            .iter()
            .flat_map(|revision| {
                revision
                    .events()
                    .iter()
                    .map(|event| (revision.revision(), event.clone()))
            })
            .map(|(revision, event)| (revision, event.r#type(), event.kv.unwrap(), event.prev_kv))
            .collect();
        assert_eq!(flat, expected);
    }
}

fn run(steps: Vec<Step>) {
    let disk = MemoryDisk::default();
    let mut store = open(&disk);
    let granted = store.lessor().grant(LEASE, 60, Duration::ZERO).unwrap();
    let mut txn = store.write(AppliedMark::new(1, 1));
    txn.extra(granted.op);
    txn.commit();
    let mut model = Model::new();
    for step in steps {
        match step {
            Step::Txn(ops) => {
                let before = model.current();
                let mut txn = store.write(AppliedMark::new(1, 1));
                perform(&mut txn, &ops, &model);
                let committed = txn.commit();
                model.apply(&ops);
                assert_eq!(committed.revision, model.current(), "after {before}");
            }
            Step::Abandon(ops) => {
                let mut txn = store.write(AppliedMark::new(1, 1));
                perform(&mut txn, &ops, &model);
            }
            Step::Compact(back) => {
                let revision = model.current() - back;
                let result = store.compact(revision, AppliedMark::new(1, 1)).map(|_| ());
                let expected = match revision {
                    revision if revision <= model.compacted => Err("compacted"),
                    revision if revision > model.current() => Err("future"),
                    _ => Ok(()),
                };
                assert_eq!(kind(result), expected, "compact({revision})");
                if expected.is_ok() {
                    model.unfinished += 1;
                    let previous = std::mem::replace(&mut model.compacted, revision);
                    let first = model.unfinished == 1;
                    if first {
                        let hash = model.hash(revision, previous, true);
                        // Remembered once the compaction is done; nothing asks in between.
                        compact_fully(&store);
                        model.unfinished = 0;
                        model.compaction_hashes.push(HashKv {
                            hash,
                            revision,
                            compact_revision: previous,
                            hash_revision: revision,
                        });
                        model
                            .compaction_hashes
                            .sort_by_key(|hash| hash.hash_revision);
                        if model.compaction_hashes.len() > 10 {
                            model.compaction_hashes.remove(0);
                        }
                        model.forget(revision);
                    }
                }
            }
            Step::CompactionSteps(count) => {
                // One that a crash cuts short: it starts over without a hash.
                let revision = model.current();
                if revision > model.compacted {
                    store.compact(revision, AppliedMark::new(1, 1)).unwrap();
                    model.compacted = revision;
                    for _ in 0..count {
                        store.compact_step().unwrap();
                    }
                    let finished = store.stats().compactions_pending == 0;
                    if !finished {
                        store = reopen(store, &disk);
                        model.compaction_hashes.clear();
                        assert_eq!(store.compacted(), revision);
                        compact_fully(&store);
                        model.forget(revision);
                    } else {
                        store = reopen(store, &disk);
                        model.compaction_hashes.clear();
                        model.forget(revision);
                    }
                }
            }
            Step::Reopen => {
                store = reopen(store, &disk);
                model.compaction_hashes.clear();
            }
            Step::Query(query) => check_query(&store, &model, &query),
        }
    }
    check_everything(&store, &model);
    let store = reopen(store, &disk);
    model.compaction_hashes.clear();
    check_everything(&store, &model);
}

fn reopen(store: Arc<Store>, disk: &MemoryDisk) -> Arc<Store> {
    store.backend().checkpoint().unwrap();
    drop(store);
    open(disk)
}

/// Performs `ops` and compares what the transaction sees with the model, after each.
fn perform(txn: &mut crate::WriteTxn<'_>, ops: &[WriteOp], model: &Model) {
    let begin = model.current();
    for (done, op) in (1..).zip(ops) {
        let mut after = Model {
            stored: vec![],
            states: model.states.clone(),
            ..Model::new()
        };
        let mut before = Model {
            stored: vec![],
            states: model.states.clone(),
            ..Model::new()
        };
        before.apply(&ops[..done - 1]);
        after.apply(&ops[..done]);
        let found = before.state(before.current());
        match op {
            WriteOp::Put { key, value, lease } => {
                let lease = if *lease { LEASE } else { 0 };
                let outcome = txn
                    .put(Bytes::from(key.clone()), value, lease, Prev::Read)
                    .unwrap();
                assert_eq!(outcome.prev.as_ref(), found.get(&key[..]));
            }
            WriteOp::Delete(range) => {
                let prevs: Vec<KeyValue> = found
                    .values()
                    .filter(|kv| range.contains(&kv.key))
                    .cloned()
                    .collect();
                let outcome = txn.delete_range(range, Prev::Read).unwrap();
                assert_eq!(outcome.deleted, prevs.len() as i64);
                assert_eq!(outcome.prevs, prevs);
            }
        }
        let state = after.state(after.current());
        assert_eq!(txn.revision(), after.current());
        assert!(txn.revision() == begin || txn.changed());
        let answer = txn.range(&RangeQuery { limit: 3, ..all() }).unwrap();
        assert_eq!(
            answer,
            after.range(&RangeQuery { limit: 3, ..all() }).unwrap()
        );
        for key in KEYS {
            let meta = txn.get(key.as_bytes()).map(|meta| {
                (
                    meta.create_revision,
                    meta.mod_revision,
                    meta.version,
                    meta.lease,
                )
            });
            let expected = state
                .get(key.as_bytes())
                .map(|kv| (kv.create_revision, kv.mod_revision, kv.version, kv.lease));
            assert_eq!(meta, expected, "{key:?} inside the transaction");
        }
    }
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(128))]

    #[test]
    fn behaves_as_the_naive_model(steps in steps()) {
        run(steps);
    }
}

#[test]
fn an_empty_store_is_at_revision_1_and_was_never_compacted() {
    let store = empty();
    assert_eq!((store.revision(), store.compacted()), (1, -1));
    assert_eq!(
        store.range(&all()).unwrap(),
        RangeAnswer {
            revision: 1,
            ..RangeAnswer::default()
        }
    );
}

#[test]
fn the_first_compaction_may_be_at_0() {
    let store = empty();
    store.compact(0, AppliedMark::new(2, 1)).unwrap();
    assert_eq!(
        kind(store.compact(0, AppliedMark::new(3, 1)).map(|_| ())),
        Err("compacted")
    );
    assert_eq!(
        kind(store.compact(2, AppliedMark::new(4, 1)).map(|_| ())),
        Err("future")
    );
}

#[test]
fn a_refused_compaction_still_records_its_entry() {
    let store = empty();
    store.compact(99, AppliedMark::new(12, 3)).unwrap_err();

    assert_eq!(store.backend().checkpoint().unwrap(), 12);
    let term = store.backend().get(Keyspace::Meta, TERM_KEY).unwrap();
    assert_eq!(term.as_deref(), Some(&3u64.to_be_bytes()[..]));
}

#[test]
fn a_commit_without_changes_records_its_entry_alone() {
    let store = empty();
    let committed = store.write(AppliedMark::new(9, 2)).commit();

    assert_eq!(committed.revision, 1);
    assert_eq!(store.backend().checkpoint().unwrap(), 9);
}

#[test]
fn a_put_with_an_unknown_lease_is_refused_and_changes_nothing() {
    let store = empty();
    let mut txn = store.write(AppliedMark::new(2, 1));
    let refused = txn.put(Bytes::from_static(b"k"), b"v", 99, Prev::Skip);

    assert!(matches!(refused, Err(Error::LeaseNotFound { id: 99 })));
    assert_eq!(txn.commit().revision, 1);
}

#[test]
fn revision_does_not_go_back_when_compaction_removed_the_newest_revisions() {
    let disk = MemoryDisk::default();
    let store = open(&disk);
    put(&store, "k", "v");
    delete(&store, "k");
    put(&store, "x", "1");
    let revision = delete(&store, "x");
    store.compact(revision, AppliedMark::new(1, 1)).unwrap();
    compact_fully(&store);

    let store = reopen(store, &disk);

    assert_eq!(store.revision(), revision);
    assert_eq!(put(&store, "k", "v"), revision + 1);
}

#[test]
fn a_long_list_spans_slices_and_counts_everything() {
    const KEYS: i64 = 3500;
    let disk = MemoryDisk::default();
    let store = open(&disk);
    for n in 0..KEYS {
        put(&store, &format!("k{n:05}"), "value");
    }
    let pinned = store.revision();
    for n in 0..100 {
        delete(&store, &format!("k{:05}", n * 7));
    }

    let answer = store.range(&all()).unwrap();
    assert_eq!(
        (answer.count, answer.kvs.len() as i64),
        (KEYS - 100, KEYS - 100)
    );
    assert!(answer.kvs.is_sorted_by(|a, b| a.key < b.key));
    let past = store
        .range(&RangeQuery {
            revision: pinned,
            limit: 10,
            ..all()
        })
        .unwrap();
    assert_eq!((past.count, past.kvs.len(), past.more), (KEYS, 10, true));
    assert!(store.needs_engine(&all()));
    assert!(!store.needs_engine(&RangeQuery {
        count_only: true,
        ..all()
    }));
    assert_eq!(store.try_range(&all()).unwrap(), None);

    let store = reopen(store, &disk);
    assert_eq!(store.range(&all()).unwrap(), answer);
    let mut txn = store.write(AppliedMark::new(2, 1));
    let outcome = txn.delete_range(&all().range, Prev::Skip).unwrap();
    let revision = txn.commit().revision;
    assert_eq!(outcome.deleted, KEYS - 100);
    assert_eq!(
        store.range(&all()).unwrap(),
        RangeAnswer {
            revision,
            ..RangeAnswer::default()
        }
    );
    let past = RangeQuery {
        revision: pinned,
        count_only: true,
        ..all()
    };
    assert_eq!(store.range(&past).unwrap().count, KEYS);
    store.check_invariants();
}

/// Story: when nothing but a tombstone at the compacted revision is kept, etcd still skips what older compactions kept.
#[test]
fn a_compaction_that_keeps_only_a_tombstone_hashes_it_alone() {
    let store = empty();
    let created = put(&store, "k", "v");
    store.compact(created, AppliedMark::new(3, 1)).unwrap();
    compact_fully(&store);
    let deleted = delete(&store, "k");
    store.compact(deleted, AppliedMark::new(5, 1)).unwrap();
    compact_fully(&store);

    let hash = store.hash_kv(deleted).unwrap();

    let mut expected = crc32c::crc32c(b"key");
    expected = crc32c::crc32c_append(expected, &Revision::new(deleted, 0).key(Change::Tombstone));
    expected = crc32c::crc32c_append(expected, b"\x0a\x01k");
    assert_eq!((hash.hash, hash.compact_revision), (expected, created));
}

#[test]
fn a_read_of_a_compacted_revision_fails_whether_or_not_it_was_removed() {
    let store = empty();
    put(&store, "k", "1");
    let old = put(&store, "k", "2");
    let new = put(&store, "k", "3");
    let mut stream = store
        .range_stream(&RangeQuery {
            revision: old,
            ..all()
        })
        .unwrap();

    store.compact(new, AppliedMark::new(5, 1)).unwrap();
    assert!(matches!(
        store.range(&RangeQuery {
            revision: old,
            ..all()
        }),
        Err(Error::Compacted { .. })
    ));
    compact_fully(&store);
    assert!(matches!(
        store.range(&RangeQuery {
            revision: old,
            ..all()
        }),
        Err(Error::Compacted { .. })
    ));
    assert!(matches!(
        stream.next_chunk(10, usize::MAX),
        Err(Error::Compacted { .. })
    ));
    assert_eq!(store.range(&all()).unwrap().kvs[0].value, "3");
}

#[test]
fn the_compaction_thread_finishes_and_stops_with_its_store() {
    let backend = Backend::open_in_memory(&MemoryDisk::default(), Options::default()).unwrap();
    let threaded = StoreOptions {
        compaction_driver: CompactionDriver::Thread,
        compaction_pause: Duration::ZERO,
        ..options()
    };
    let store = Store::open(backend, threaded).unwrap();
    for n in 0..50 {
        put(&store, "k", &n.to_string());
    }
    let handle = store.compact(51, AppliedMark::new(60, 1)).unwrap();

    let runtime = tokio::runtime::Builder::new_current_thread()
        .build()
        .unwrap();
    runtime.block_on(handle.clone().wait()).unwrap();

    assert!(handle.is_finished());
    assert_eq!(store.stats().revisions_removed, 49);
    store.close();
    drop(store);
}

#[test]
fn a_lost_value_is_damage_and_not_an_answer() {
    let disk = MemoryDisk::default();
    let store = open(&disk);
    put(&store, "a", "1");
    put(&store, "b", "2");
    put(&store, "c", "3");
    let lost = Revision::new(3, 0).key(Change::Put);
    store.backend().write(vec![Op::Delete(
        Keyspace::Rev,
        Bytes::copy_from_slice(&lost),
    )]);

    let store = reopen(store, &disk);

    assert!(matches!(store.range(&all()), Err(Error::Damage { .. })));
}

#[test]
fn an_index_that_does_not_cover_the_values_is_damage() {
    let disk = MemoryDisk::default();
    let store = open(&disk);
    put(&store, "a", "1");
    put(&store, "b", "2");
    let last = Revision::new(3, 0).key(Change::Put);
    store.backend().write(vec![Op::Delete(
        Keyspace::Index,
        Bytes::copy_from_slice(&last),
    )]);
    store.backend().checkpoint().unwrap();
    drop(store);

    let backend = Backend::open_in_memory(&disk, Options::default()).unwrap();
    assert!(matches!(
        Store::open(backend, options()),
        Err(Error::Damage { .. })
    ));
}

fn scrub(store: &Store) -> Result<usize> {
    let (mut checked, mut position) = (0, crate::ScrubPosition::default());
    loop {
        let progress = store.scrub(&position, 7)?;
        checked += progress.checked;
        match progress.next {
            Some(next) => position = next,
            None => return Ok(checked),
        }
    }
}

#[test]
fn a_scrub_reads_every_revision_and_finds_what_disagrees() {
    let revision = |main| Bytes::copy_from_slice(&Revision::new(main, 0).key(Change::Put));
    let stored = |store: &Store, keyspace, main| {
        store
            .backend()
            .get(keyspace, &revision(main))
            .unwrap()
            .unwrap()
    };
    let filled = || {
        let store = empty();
        for n in 0..30 {
            put(&store, &format!("k{}", n % 10), "v");
        }
        delete(&store, "k3");
        store
    };
    assert_eq!(scrub(&filled()).unwrap(), 31);

    let damages: [fn(Bytes, Bytes, Bytes) -> Op; 4] = [
        |_, key, _| Op::Delete(Keyspace::Index, key),
        |_, key, _| Op::Delete(Keyspace::Rev, key),
        |_, key, other| Op::Put(Keyspace::Index, key, other),
        |other, key, _| Op::Put(Keyspace::Rev, key, other),
    ];
    for (number, damage) in damages.into_iter().enumerate() {
        let disk = MemoryDisk::default();
        let store = open(&disk);
        for n in 0..20 {
            put(&store, &format!("k{n}"), "v");
        }
        let (value, index) = (
            stored(&store, Keyspace::Rev, 9),
            stored(&store, Keyspace::Index, 9),
        );
        // A log keyspace takes no second put of a key that is still buffered.
        store.backend().checkpoint().unwrap();
        store
            .backend()
            .write(vec![damage(value, revision(10), index)]);

        let found = scrub(&store).unwrap_err();

        assert!(
            matches!(found, Error::Damage { .. }),
            "damage {number}: {found}"
        );
        assert!(
            found.to_string().contains("10.0"),
            "damage {number}: {found}"
        );
    }
}

/// Each transaction sets a pair to one number, or deletes both: no reader may ever see halves of two.
#[test]
fn readers_see_whole_transactions_beside_writes_and_compactions() {
    const TRANSACTIONS: i64 = 4000;
    let store = empty();
    let pair = |n: i64| [format!("x/{:02}", n % 20), format!("y/{:02}", n % 20)].map(Bytes::from);
    let done = std::sync::atomic::AtomicBool::new(false);
    std::thread::scope(|scope| {
        for _ in 0..2 {
            scope.spawn(|| {
                let mut last = 0;
                while !done.load(Ordering::Relaxed) {
                    let answer = store.range(&all()).unwrap();
                    assert!(answer.revision >= last, "{} after {last}", answer.revision);
                    last = answer.revision;
                    let (xs, ys) = answer.kvs.split_at(answer.kvs.len() / 2);
                    assert_eq!(answer.count as usize, answer.kvs.len());
                    assert_eq!(xs.len(), ys.len());
                    for (x, y) in xs.iter().zip(ys) {
                        assert_eq!(
                            (x.key[1..].to_vec(), &x.value),
                            (y.key[1..].to_vec(), &y.value)
                        );
                        assert!(x.mod_revision <= answer.revision);
                    }
                    let count = store
                        .range(&RangeQuery {
                            count_only: true,
                            ..all()
                        })
                        .unwrap()
                        .count;
                    assert_eq!(count % 2, 0);
                    match store.hash_kv(last) {
                        Ok(hash) => assert_eq!(hash.hash_revision, last),
                        Err(error) => assert!(matches!(error, Error::Compacted { .. }), "{error}"),
                    }
                }
            });
        }
        scope.spawn(|| {
            while !done.load(Ordering::Relaxed) {
                store.compact_step().unwrap();
            }
        });
        for n in 0..TRANSACTIONS {
            let mut txn = store.write(AppliedMark::new(1, 1));
            for key in pair(n) {
                if n % 7 == 3 {
                    txn.delete_range(&KeyRange::Single(key), Prev::Skip)
                        .unwrap();
                } else {
                    txn.put(key, n.to_string().as_bytes(), 0, Prev::Skip)
                        .unwrap();
                }
            }
            txn.commit();
            if n % 50 == 0 && store.revision() > store.compacted() {
                store
                    .compact(store.revision(), AppliedMark::new(1, 1))
                    .unwrap();
            }
        }
        done.store(true, Ordering::Relaxed);
    });
    compact_fully(&store);
    store.check_invariants();
}
