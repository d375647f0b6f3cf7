//! One transaction of the writer: all its changes have one main revision, and their order is their sub revision.
//!
//! Changes are gathered beside the store and read back by the transaction alone. A commit hands them to the backend in
//! one batch together with the applied mark, adds them to the index, then publishes the revision, and tells the watchers
//! last. Readers pin a published revision, so what the index holds above it does not exist for them. Dropping the
//! transaction leaves no trace. One that changes no key bumps no revision.
//!
//! Source: etcd 3.7 mvcc, write transactions; semantics of put, delete and nested reads in the API documentation.

use std::collections::BTreeMap;
use std::ops::Bound;
use std::sync::Arc;

use bytes::Bytes;
use kv_proto::key_range::KeyRange;
use kv_proto::mvccpb::{Event, KeyValue};
use parking_lot::MutexGuard;

use crate::backend::{Keyspace, Op};
use crate::key_index::KeyState;
use crate::range::{RangeAnswer, RangeQuery, span};
use crate::read_txn::{self, Hit, Keys, SLICE_KEYS};
use crate::record::{self, Put, Stored};
use crate::revision::{Change, Revision};
use crate::store::{AppliedMark, Store};
use crate::value_cache::Admission;
use crate::watch::{Interest, RevisionEvents, delete_event, put_event};
use crate::{Error, Result};

/// A transaction of the writer.
pub struct WriteTxn<'a> {
    store: &'a Store,
    _writer: MutexGuard<'a, ()>,
    mark: AppliedMark,
    /// The revision before the transaction.
    begin: i64,
    changes: Vec<Staged>,
    /// The newest change of each key, as a position in `changes`.
    newest: BTreeMap<Bytes, usize>,
}

/// Whether a change answers what was there before.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Prev {
    /// The caller wants it; may read the engine.
    Read,
    /// The caller does not.
    Skip,
}

/// What a put found.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct PutOutcome {
    /// The key before, if it existed and the caller asked.
    pub prev: Option<KeyValue>,
}

/// What a delete found.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct DeleteOutcome {
    /// Keys deleted.
    pub deleted: i64,
    /// The keys before, in key order, if the caller asked.
    pub prevs: Vec<KeyValue>,
}

/// A key without its value, for compares.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct KeyMeta {
    /// Revision of the create.
    pub create_revision: i64,
    /// Revision of the newest put.
    pub mod_revision: i64,
    /// Puts since the create.
    pub version: i64,
    /// The lease it is attached to; 0 if none.
    pub lease: i64,
}

/// What a commit made.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Committed {
    /// The store's revision after it; the one before if no key changed.
    pub revision: i64,
}

/// One change that is not committed.
struct Staged {
    revision: Revision,
    key: Bytes,
    change: Change,
    stored: Stored,
    /// The key after the change; of a tombstone, nothing.
    after: Option<KeyState>,
    lease: i64,
    /// The value that the key had before the transaction.
    before: Option<Revision>,
}

impl Store {
    /// Begins a transaction; there is one at a time. Its commit also records `mark`.
    pub fn write(&self, mark: AppliedMark) -> WriteTxn<'_> {
        let writer = self.writer.lock();
        WriteTxn {
            store: self,
            _writer: writer,
            mark,
            begin: self.revision(),
            changes: Vec::new(),
            newest: BTreeMap::new(),
        }
    }
}

impl WriteTxn<'_> {
    /// Sets `key` to `value` and attaches it to `lease`, or to none if that is 0.
    ///
    /// Errors: [`Error::LeaseNotFound`], and those of the engine when the previous value is asked for; then nothing was
    /// changed.
    pub fn put(&mut self, key: Bytes, value: &[u8], lease: i64, prev: Prev) -> Result<PutOutcome> {
        if lease != 0 && !self.store.lessor.exists(lease) {
            return Err(Error::LeaseNotFound { id: lease });
        }
        let (state, before) = self.state(&key);
        let prev = match (prev, state) {
            (Prev::Read, Some(state)) => Some(self.read_one(state.modified)?),
            (Prev::Read, None) | (Prev::Skip, _) => None,
        };
        let revision = self.next_change();
        let after = match state {
            Some(state) => KeyState {
                modified: revision,
                created: state.created,
                version: state.version + 1,
            },
            None => KeyState {
                modified: revision,
                created: revision.main,
                version: 1,
            },
        };
        let put = Put {
            key: &key,
            value,
            create_revision: after.created,
            version: after.version,
            lease,
        };
        let stored = Stored::put(revision, put);
        self.stage(Staged {
            revision,
            key,
            change: Change::Put,
            stored,
            after: Some(after),
            lease,
            before,
        });
        Ok(PutOutcome { prev })
    }

    /// Deletes the keys of `range` that exist, earlier puts of this transaction included.
    ///
    /// Errors: only of the engine, when the previous values are asked for; then nothing was changed.
    pub fn delete_range(&mut self, range: &KeyRange, prev: Prev) -> Result<DeleteOutcome> {
        let hits = self.hits(range);
        let prevs = match prev {
            Prev::Read => self.read_all(&hits)?,
            Prev::Skip => Vec::new(),
        };
        let deleted = read_txn::to_count(hits.len());
        for hit in hits {
            let before = match self.newest.get(&hit.key) {
                Some(position) => self.changes[*position].before,
                None => Some(hit.state.modified),
            };
            let revision = self.next_change();
            let stored = Stored::tombstone(revision, &hit.key);
            self.stage(Staged {
                revision,
                key: hit.key,
                change: Change::Tombstone,
                stored,
                after: None,
                lease: 0,
                before,
            });
        }
        Ok(DeleteOutcome { deleted, prevs })
    }

    /// Reads some keys; without a revision as this transaction left them, else as the store was then.
    pub fn range(&self, query: &RangeQuery) -> Result<RangeAnswer> {
        let visible = self.revision();
        if query.revision > visible {
            return Err(Error::FutureRevision {
                requested: query.revision,
                current: visible,
            });
        }
        let own = query.revision <= 0 || query.revision > self.begin;
        if !own || self.changes.is_empty() {
            return Ok(RangeAnswer {
                revision: visible,
                ..self.store.range(query)?
            });
        }
        let hits = self.hits(&query.range);
        let count = read_txn::to_count(hits.len());
        if query.count_only {
            return Ok(RangeAnswer {
                revision: visible,
                count,
                ..RangeAnswer::default()
            });
        }
        let mut hits = hits;
        if let Some(limit) = query.read_limit() {
            hits.truncate(limit);
        }
        let kvs = read_txn::arrange(query, hits, |hits, kvs| {
            if query.skips_values() {
                kvs.extend(hits.iter().map(read_txn::from_index));
            } else {
                kvs.extend(self.read_all(hits)?);
            }
            Ok(true)
        })?;
        let kvs = kvs.expect("a read with no bounds answers");
        Ok(RangeAnswer {
            revision: visible,
            ..read_txn::finish(query, kvs, count)
        })
    }

    /// The key as this transaction left it, without its value; `None` if it does not exist.
    pub fn get(&self, key: &[u8]) -> Option<KeyMeta> {
        let (state, _) = self.state(key);
        let state = state?;
        let lease = match self.newest.get(key) {
            Some(position) => self.changes[*position].lease,
            None => self.store.lessor.lease_of(key).unwrap_or(0),
        };
        Some(KeyMeta {
            create_revision: state.created,
            mod_revision: state.modified.main,
            version: state.version,
            lease,
        })
    }

    /// The revision that reads of this transaction see: the new one once a key changed.
    pub fn revision(&self) -> i64 {
        self.begin + i64::from(self.changed())
    }

    /// Whether a key changed.
    pub fn changed(&self) -> bool {
        !self.changes.is_empty()
    }

    /// Adds a change outside the keys to what the commit writes.
    pub fn extra(&mut self, op: Op) {
        self.mark.extra.push(op);
    }

    /// Makes the changes visible, all at once, and then tells the watchers.
    pub fn commit(self) -> Committed {
        let WriteTxn {
            store,
            _writer,
            mark,
            begin,
            changes,
            newest,
        } = self;
        let mut ops = Vec::with_capacity(2 * changes.len() + mark.extra.len() + 2);
        for Staged { stored, .. } in &changes {
            ops.push(Op::Put(
                Keyspace::Rev,
                stored.revision_key.clone(),
                stored.value.clone(),
            ));
            ops.push(Op::Put(
                Keyspace::Index,
                stored.revision_key.clone(),
                stored.index.clone(),
            ));
        }
        store.mark_ops(mark, &mut ops);
        if changes.is_empty() {
            store.backend.write(ops);
            return Committed { revision: begin };
        }

        let revision = begin + 1;
        let capture = store.hub.capture();
        let events = RevisionEvents::new(
            revision,
            store.events_of(&changes, |key| capture.wants(key)),
        );
        store.backend.write(ops);
        for slice in changes.chunks(SLICE_KEYS) {
            let mut index = store.index.write();
            for staged in slice {
                index.apply(&staged.key, staged.revision, staged.change);
            }
        }
        store.publish_revision(revision);
        let last = newest.values().map(|position| &changes[*position]);
        store.cache.update(
            last.clone().filter_map(|staged| staged.before),
            last.clone()
                .filter_map(|staged| Some((staged.after?.modified, &staged.stored.value))),
        );
        for staged in last {
            store.settle_lease(&staged.key, staged.lease);
        }
        store.hub.publish(Arc::new(events));
        Committed { revision }
    }

    fn next_change(&self) -> Revision {
        Revision::new(self.begin + 1, read_txn::to_count(self.changes.len()))
    }

    fn stage(&mut self, staged: Staged) {
        self.newest.insert(staged.key.clone(), self.changes.len());
        self.changes.push(staged);
    }

    /// The key as this transaction left it, and the value it had before.
    fn state(&self, key: &[u8]) -> (Option<KeyState>, Option<Revision>) {
        match self.newest.get(key) {
            Some(position) => (
                self.changes[*position].after,
                self.changes[*position].before,
            ),
            None => {
                let state = self
                    .store
                    .index
                    .read()
                    .get(key)
                    .and_then(|revisions| revisions.latest());
                (state, state.map(|state| state.modified))
            }
        }
    }

    /// The keys of `range` as this transaction left them, in order.
    fn hits(&self, range: &KeyRange) -> Vec<Hit> {
        let Some(span) = span(range) else {
            let key = range.start();
            let state = self.state(key).0;
            return state
                .map(|state| Hit {
                    state,
                    key: key.clone(),
                })
                .into_iter()
                .collect();
        };
        if range.is_empty() {
            return Vec::new();
        }
        let mut stored = Vec::new();
        let mut start: Option<Box<[u8]>> = Some(span.start.into());
        while let Some(from) = start {
            let rest = crate::index::Span {
                start: &from,
                end: span.end,
            };
            let mut slice = self.store.slice(rest, self.begin, SLICE_KEYS, Keys::Copy);
            stored.append(&mut slice.hits);
            start = slice.next;
        }
        if self.changes.is_empty() {
            return stored;
        }
        let end = span.end.map_or(Bound::Unbounded, Bound::Excluded);
        let mut own = self
            .newest
            .range::<[u8], _>((Bound::Included(span.start), end))
            .peekable();
        let mut merged = Vec::with_capacity(stored.len());
        let staged_hit = |key: &Bytes, position: usize| {
            self.changes[position].after.map(|state| Hit {
                state,
                key: key.clone(),
            })
        };
        for hit in stored {
            let mut replaced = false;
            while let Some((key, position)) = own.next_if(|(key, _)| **key <= hit.key) {
                replaced |= *key == hit.key;
                merged.extend(staged_hit(key, *position));
            }
            if !replaced {
                merged.push(hit);
            }
        }
        merged.extend(own.filter_map(|(key, position)| staged_hit(key, *position)));
        merged
    }

    /// The values of `hits`, from this transaction or from before it.
    fn read_all(&self, hits: &[Hit]) -> Result<Vec<KeyValue>> {
        let own_main = self.begin + 1;
        let mut kvs = Vec::with_capacity(hits.len());
        for hits in hits.chunks(SLICE_KEYS) {
            let stored: Vec<Revision> = hits
                .iter()
                .map(|hit| hit.state.modified)
                .filter(|revision| revision.main < own_main)
                .collect();
            let mut records = stored
                .iter()
                .zip(self.store.records(&stored, Admission::None)?);
            for hit in hits {
                let revision = hit.state.modified;
                let record = if revision.main == own_main {
                    let position =
                        usize::try_from(revision.sub).expect("a sub revision is a position");
                    self.changes[position].stored.value.clone()
                } else {
                    let (_, record) = records.next().expect("each stored hit has its record");
                    record.ok_or_else(|| self.store.lost(revision))?
                };
                kvs.push(
                    record::decode_value(&record).ok_or_else(|| self.store.unreadable(revision))?,
                );
            }
        }
        Ok(kvs)
    }

    fn read_one(&self, revision: Revision) -> Result<KeyValue> {
        let state = KeyState {
            modified: revision,
            created: 0,
            version: 0,
        };
        let kvs = self.read_all(&[Hit {
            state,
            key: Bytes::new(),
        }])?;
        kvs.into_iter()
            .next()
            .ok_or_else(|| self.store.lost(revision))
    }
}

impl Store {
    /// The events of one transaction that somebody wants, each with the value before it if that is wanted.
    fn events_of(&self, changes: &[Staged], wants: impl Fn(&[u8]) -> Interest) -> Vec<Event> {
        let mut events = Vec::new();
        for staged in changes {
            let interest = wants(&staged.key);
            if interest == Interest::None {
                continue;
            }
            let is_create = staged.after.is_some_and(|after| after.version == 1);
            let prev = match (interest, staged.before) {
                (Interest::EventsWithPrev, Some(before)) if !is_create => self.prev_kv(before),
                _ => None,
            };
            events.push(match staged.change {
                Change::Put => put_event(own_kv(staged), prev),
                Change::Tombstone => delete_event(own_kv(staged).key, staged.revision.main, prev),
            });
        }
        events
    }

    /// Binds `key` to the lease of its newest change.
    fn settle_lease(&self, key: &[u8], lease: i64) {
        if lease == 0 {
            self.lessor.detach(key);
        } else if self.lessor.lease_of(key) != Some(lease) {
            // The lessor keeps the key, which is a slice of a whole request here.
            let attached = self.lessor.attach(lease, &Bytes::copy_from_slice(key));
            assert!(
                attached.is_ok(),
                "lease {lease} went away within the transaction that uses it"
            );
        }
    }

    /// The value at `before` for a watcher. One that cannot be read is left out: the change itself must reach it.
    fn prev_kv(&self, before: Revision) -> Option<KeyValue> {
        match self.records(&[before], Admission::None) {
            Ok(records) => records
                .into_iter()
                .flatten()
                .next()
                .and_then(|record| record::decode_value(&record)),
            Err(error) => {
                tracing::error!(revision = before.main, %error, "cannot read the value before a change");
                None
            }
        }
    }
}

/// The key and value of a change, as slices of what is stored for it.
fn own_kv(staged: &Staged) -> KeyValue {
    record::decode_value(&staged.stored.value).expect("was encoded by this transaction")
}
