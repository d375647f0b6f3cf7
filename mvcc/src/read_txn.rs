//! A view of the store at one revision.
//!
//! A read pins a revision and walks the key index in slices of at most [`SLICE_KEYS`], taking the index lock for each slice
//! alone, so that a long list never stalls the writer. What a slice needs is fetched together: cache, then write buffer,
//! then one sweep of the engine in revision order.
//!
//! Invariants:
//! - what a pinned revision reads does not change: later writes add revisions above it;
//! - a compaction above the pinned revision may remove what the read still needs. The compacted revision is compared after
//!   the last slice (and when a value is missing), so such a read fails as compacted instead of answering with holes. A read
//!   of the latest revision is then simply repeated.

use std::ops::ControlFlow;
use std::sync::Arc;

use bytes::Bytes;
use kv_proto::key_range::KeyRange;
use kv_proto::mvccpb::KeyValue;

use crate::backend::Keyspace;
use crate::index::Span;
use crate::key_index::KeyState;
use crate::range::{RangeAnswer, RangeQuery, span};
use crate::record;
use crate::revision::{Change, RevKey, Revision};
use crate::store::Store;
use crate::value_cache::Admission;
use crate::{Error, Result};

/// Keys looked at under one hold of the index lock: about 0.1 ms.
pub(crate) const SLICE_KEYS: usize = 1000;

/// Steps of a count under one hold of the index lock; each is a key or a whole leaf: about 0.1 ms.
const COUNT_STEPS: usize = 4000;

/// What a key without its value takes in an answer, and what one with it takes at most, for estimates.
const KEY_BYTES: u64 = 128;
const VALUE_BYTES: u64 = 64 << 10;

/// A read of the latest revision that compactions overtook this often gives up.
const OVERTAKEN_MAX: usize = 8;

/// How far a read may go for its answer.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Reach {
    /// One slice of the index, cached and buffered values.
    Memory,
    /// Whatever it takes.
    Engine,
}

/// The store as of `revision`.
struct ReadTxn<'a> {
    store: &'a Store,
    revision: i64,
    reach: Reach,
    /// Whether this was the store's revision when the read began, so that its values are the newest ones.
    latest: bool,
}

/// A key found in the index.
#[derive(Clone, Debug)]
pub(crate) struct Hit {
    pub(crate) state: KeyState,
    /// The key, if it was asked for; values carry their own.
    pub(crate) key: Bytes,
}

/// Whether a walk copies the keys it finds.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Keys {
    Copy,
    Skip,
}

/// What one slice of a walk found, and the key to go on from.
pub(crate) struct Slice {
    pub(crate) hits: Vec<Hit>,
    pub(crate) next: Option<Box<[u8]>>,
}

impl Store {
    /// Reads some keys at one revision.
    ///
    /// May read the engine and take long; see [`Store::try_range`] for a read that does neither. Errors:
    /// [`Error::FutureRevision`] and [`Error::Compacted`] for a revision asked for that is not readable.
    pub fn range(&self, query: &RangeQuery) -> Result<RangeAnswer> {
        let answer = self.range_within(query, Reach::Engine)?;
        Ok(answer.expect("a read with no bounds answers"))
    }

    /// As [`Store::range`], if the index, the value cache and the write buffer can answer at once; `None` if not.
    pub fn try_range(&self, query: &RangeQuery) -> Result<Option<RangeAnswer>> {
        self.range_within(query, Reach::Memory)
    }

    /// Whether [`Store::range`] would likely take long or read the engine: a hint, for a caller that must not block.
    pub fn needs_engine(&self, query: &RangeQuery) -> bool {
        let Some(span) = span(&query.range) else {
            return !query.skips_values() && matches!(self.try_range(query), Ok(None));
        };
        let enough = match (query.count_only, query.read_limit()) {
            (true, _) => return false,
            (false, Some(limit)) => limit,
            (false, None) => SLICE_KEYS + 1,
        };
        let keys = self.index.read().estimate(span, enough);
        keys > SLICE_KEYS || (!query.skips_values() && matches!(self.try_range(query), Ok(None)))
    }

    /// About how many bytes [`Store::range`] would answer with: keys times what a key takes on average. A hint.
    pub fn estimate_bytes(&self, query: &RangeQuery) -> u64 {
        let Some(span) = span(&query.range) else {
            return 0;
        };
        if query.count_only {
            return 0;
        }
        let (keys, stored) = {
            let index = self.index.read();
            let limit = query.read_limit().unwrap_or(usize::MAX);
            (index.estimate(span, limit).min(limit), index.keys())
        };
        let average = match query.skips_values() {
            true => KEY_BYTES,
            // Older revisions make it too large, which only lets fewer reads run at a time.
            false => self.backend.size().in_use / stored.max(1) as u64,
        };
        keys as u64 * average.clamp(KEY_BYTES, VALUE_BYTES)
    }

    /// Starts a read that hands out its keys in chunks, all at one revision. Sort and filters of `query` do not apply.
    pub fn range_stream(self: &Arc<Self>, query: &RangeQuery) -> Result<RangeStream> {
        let (current, revision) = self.readable(query.revision)?;
        Ok(RangeStream {
            store: Arc::clone(self),
            query: query.clone(),
            revision: current,
            pinned: revision,
            position: Position::Start,
            given: 0,
            count: 0,
        })
    }

    fn range_within(&self, query: &RangeQuery, reach: Reach) -> Result<Option<RangeAnswer>> {
        let mut overtaken = 0;
        loop {
            let (current, revision) = self.readable(query.revision)?;
            let txn = ReadTxn {
                store: self,
                revision,
                reach,
                latest: revision == current,
            };
            match txn.range(query) {
                Ok(answer) => {
                    return Ok(answer.map(|answer| RangeAnswer {
                        revision: current,
                        ..answer
                    }));
                }
                Err(Error::Compacted { .. })
                    if query.revision <= 0 && overtaken < OVERTAKEN_MAX =>
                {
                    overtaken += 1
                }
                Err(error) => return Err(error),
            }
        }
    }

    /// The current revision and the one that a read of `asked` sees.
    fn readable(&self, asked: i64) -> Result<(i64, i64)> {
        // In this order, so that the current revision is never below the compacted one.
        let compacted = self.compacted();
        let current = self.revision();
        let revision = if asked <= 0 { current } else { asked };
        if revision > current {
            return Err(Error::FutureRevision {
                requested: revision,
                current,
            });
        }
        if revision < compacted {
            return Err(Error::Compacted {
                requested: revision,
                compacted,
            });
        }
        Ok((current, revision))
    }

    /// Fails if a compaction above `revision` has begun.
    pub(crate) fn check_not_compacted(&self, revision: i64) -> Result<()> {
        let compacted = self.compacted();
        if revision < compacted {
            return Err(Error::Compacted {
                requested: revision,
                compacted,
            });
        }
        Ok(())
    }

    /// The keys of `range` that exist at `revision`: one slice of them, from `from` on.
    pub(crate) fn slice(
        &self,
        span: Span<'_>,
        revision: i64,
        hits_max: usize,
        keys: Keys,
    ) -> Slice {
        let mut hits = Vec::new();
        let mut key_bytes = Vec::new();
        let mut ends = Vec::new();
        let mut next = None;
        let mut visited = 0;
        self.index.read().walk(span, |key, revisions| {
            if visited == SLICE_KEYS || hits.len() == hits_max {
                next = Some(key.into());
                return ControlFlow::Break(());
            }
            visited += 1;
            if let Some(state) = revisions.get(revision) {
                hits.push(Hit {
                    state,
                    key: Bytes::new(),
                });
                if keys == Keys::Copy {
                    key_bytes.extend_from_slice(key);
                    ends.push(key_bytes.len());
                }
            }
            ControlFlow::Continue(())
        });
        // One allocation for the keys of a slice.
        let key_bytes = Bytes::from(key_bytes);
        let mut start = 0;
        for (hit, end) in hits.iter_mut().zip(ends) {
            hit.key = key_bytes.slice(start..end);
            start = end;
        }
        Slice { hits, next }
    }

    /// How many keys of `span` exist at `revision`.
    pub(crate) fn count(&self, span: Span<'_>, revision: i64) -> usize {
        let (mut count, mut next) = self.index.read().count(span, revision, COUNT_STEPS);
        while let Some(start) = next {
            let (more, after) = self.index.read().count(
                Span {
                    start: &start,
                    end: span.end,
                },
                revision,
                COUNT_STEPS,
            );
            count += more;
            next = after;
        }
        count
    }

    /// The records of puts at `revisions`, in that order; `None` where there is none.
    ///
    /// Those that the cache lacked enter it as `admission` says.
    pub(crate) fn records(
        &self,
        revisions: &[Revision],
        admission: Admission,
    ) -> Result<Vec<Option<Bytes>>> {
        let mut records = vec![None; revisions.len()];
        if self.cache.fill(revisions, &mut records) == 0 {
            return Ok(records);
        }
        let mut missing: Vec<usize> = (0..records.len())
            .filter(|position| records[*position].is_none())
            .collect();
        missing.sort_unstable_by_key(|position| revisions[*position]);
        let mut keys: Vec<RevKey> = missing
            .iter()
            .map(|position| revisions[*position].key(Change::Put))
            .collect();
        keys.dedup();
        let found = self.backend.get_revisions(&keys)?;
        let mut at = 0;
        let mut read = Vec::with_capacity(missing.len());
        for position in missing {
            // Both ascend; a revision asked for twice has one key.
            while keys[at][..] != revisions[position].key(Change::Put)[..] {
                at += 1;
            }
            records[position] = found[at].clone();
            if let Some(record) = &found[at] {
                read.push((revisions[position], record));
            }
        }
        self.cache.admit(&read, admission);
        Ok(records)
    }

    /// The records of puts at `revisions`, if memory has all of them.
    fn records_in_memory(&self, revisions: &[Revision]) -> Option<Vec<Option<Bytes>>> {
        let mut records = vec![None; revisions.len()];
        if self.cache.fill(revisions, &mut records) > 0 {
            for (revision, record) in revisions.iter().zip(&mut records) {
                if record.is_none() {
                    *record = Some(self.backend.in_buffer(&revision.key(Change::Put))?);
                }
            }
        }
        Some(records)
    }

    /// The error for a record that the index names and the engine lacks.
    pub(crate) fn lost(&self, revision: Revision) -> Error {
        self.damage(format!(
            "the key index names revision {revision}, and {} has no value for it",
            Keyspace::Rev.name()
        ))
    }

    pub(crate) fn unreadable(&self, revision: Revision) -> Error {
        self.damage(format!(
            "the value of revision {revision} is not a KeyValue"
        ))
    }
}

impl ReadTxn<'_> {
    fn range(&self, query: &RangeQuery) -> Result<Option<RangeAnswer>> {
        let answer = match span(&query.range) {
            None => self.single(query)?,
            Some(span) if query.count_only => Some(RangeAnswer {
                count: self.count(span),
                ..RangeAnswer::default()
            }),
            Some(span) if query.is_key_order() && !query.has_filters() => {
                self.in_key_order(query, span)?
            }
            Some(span) => self.sorted(query, span)?,
        };
        self.store.check_not_compacted(self.revision)?;
        Ok(answer)
    }

    fn single(&self, query: &RangeQuery) -> Result<Option<RangeAnswer>> {
        let key = query.range.start();
        let state = self
            .store
            .index
            .read()
            .get(key)
            .and_then(|revisions| revisions.get(self.revision));
        let hits = match state {
            Some(state) => vec![Hit {
                state,
                key: key.clone(),
            }],
            None => vec![],
        };
        let count = to_count(hits.len());
        if query.count_only {
            return Ok(Some(RangeAnswer {
                count,
                ..RangeAnswer::default()
            }));
        }
        let hits: Vec<Hit> = hits
            .into_iter()
            .filter(|hit| query.admits(&hit.state))
            .collect();
        let mut kvs = Vec::with_capacity(hits.len());
        Ok(self
            .read(query, &hits, &mut kvs)?
            .then(|| finish(query, kvs, count)))
    }

    /// The common case: values are fetched slice by slice, so that the answer is all that grows.
    fn in_key_order(&self, query: &RangeQuery, span: Span<'_>) -> Result<Option<RangeAnswer>> {
        let read_limit = query.read_limit().unwrap_or(usize::MAX);
        let keys = if query.skips_values() {
            Keys::Copy
        } else {
            Keys::Skip
        };
        let mut kvs = Vec::new();
        let mut slice = self.store.slice(span, self.revision, read_limit, keys);
        loop {
            if !self.read(query, &slice.hits, &mut kvs)? {
                return Ok(None);
            }
            let Some(next) = slice.next else { break };
            let rest = Span {
                start: &next,
                end: span.end,
            };
            if kvs.len() >= read_limit {
                let count = to_count(kvs.len()) + self.count(rest);
                return Ok(Some(finish(query, kvs, count)));
            }
            if self.reach == Reach::Memory {
                return Ok(None);
            }
            slice = self
                .store
                .slice(rest, self.revision, read_limit - kvs.len(), keys);
        }
        let count = to_count(kvs.len());
        Ok(Some(finish(query, kvs, count)))
    }

    /// Finds all keys, filters and sorts them by what the index knows, and reads only the values that are answered.
    fn sorted(&self, query: &RangeQuery, span: Span<'_>) -> Result<Option<RangeAnswer>> {
        let keys = if query.skips_values() {
            Keys::Copy
        } else {
            Keys::Skip
        };
        let read_limit = query.read_limit().unwrap_or(usize::MAX);
        let mut slice = self.store.slice(span, self.revision, read_limit, keys);
        let mut hits = std::mem::take(&mut slice.hits);
        while let Some(next) = &slice.next
            && hits.len() < read_limit
        {
            if self.reach == Reach::Memory {
                return Ok(None);
            }
            slice = self.store.slice(
                Span {
                    start: next,
                    end: span.end,
                },
                self.revision,
                read_limit - hits.len(),
                keys,
            );
            hits.append(&mut slice.hits);
        }
        let count = match &slice.next {
            Some(next) => {
                to_count(hits.len())
                    + self.count(Span {
                        start: next,
                        end: span.end,
                    })
            }
            None => to_count(hits.len()),
        };
        let kvs = arrange(query, hits, |hits, kvs| self.read(query, hits, kvs))?;
        Ok(kvs.map(|kvs| finish(query, kvs, count)))
    }

    fn count(&self, span: Span<'_>) -> i64 {
        to_count(self.store.count(span, self.revision))
    }

    /// A list may use what room the cache has, and one key that is read again and again pushes others out.
    fn admission(&self, query: &RangeQuery) -> Admission {
        match (self.latest, &query.range) {
            (false, _) => Admission::None,
            (true, KeyRange::Single(_)) => Admission::Evict,
            (true, KeyRange::Bounded { .. } | KeyRange::From(_)) => Admission::FreeRoom,
        }
    }

    /// Appends what `query` wants of `hits`; `false` if that is out of reach.
    fn read(&self, query: &RangeQuery, hits: &[Hit], kvs: &mut Vec<KeyValue>) -> Result<bool> {
        if query.skips_values() {
            kvs.extend(hits.iter().map(from_index));
            return Ok(true);
        }
        // Also a sorted read must not ask for a million values at once.
        for hits in hits.chunks(SLICE_KEYS) {
            let revisions: Vec<Revision> = hits.iter().map(|hit| hit.state.modified).collect();
            let records = match self.reach {
                Reach::Engine => self.store.records(&revisions, self.admission(query))?,
                Reach::Memory => match self.store.records_in_memory(&revisions) {
                    Some(records) => records,
                    None => return Ok(false),
                },
            };
            kvs.reserve(records.len());
            for (revision, record) in revisions.into_iter().zip(records) {
                match record {
                    Some(record) => {
                        kvs.push(
                            record::decode_value(&record)
                                .ok_or_else(|| self.store.unreadable(revision))?,
                        );
                    }
                    None => {
                        self.store.check_not_compacted(self.revision)?;
                        return Err(self.store.lost(revision));
                    }
                }
            }
        }
        Ok(true)
    }
}

/// Keys that a [`RangeStream`] reads at once.
const CHUNK_STEP_KEYS: usize = 64;

/// A range whose keys come in chunks, all at the revision of its start.
pub struct RangeStream {
    store: Arc<Store>,
    query: RangeQuery,
    /// The store's revision at the start.
    revision: i64,
    /// The revision that is read.
    pinned: i64,
    position: Position,
    given: usize,
    count: i64,
}

enum Position {
    Start,
    At(Box<[u8]>),
    End,
}

/// Part of a range.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct RangeChunk {
    /// Keys after those of the chunk before.
    pub kvs: Vec<KeyValue>,
    /// Set in the last chunk.
    pub end: Option<RangeEnd>,
}

/// What the last chunk of a range says about the whole.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct RangeEnd {
    /// Keys in the range, whatever the limit.
    pub count: i64,
    /// Whether the limit cut.
    pub more: bool,
}

impl RangeStream {
    /// The store's revision when the stream began.
    pub fn revision(&self) -> i64 {
        self.revision
    }

    /// The next at most `keys_max` keys (at least one); after the last chunk, empty ones. A chunk ends before that when it has
    /// `bytes_max` bytes of keys and values; it exceeds them by those of 64 keys at most.
    ///
    /// Errors: [`Error::Compacted`] once a compaction passes the pinned revision.
    pub fn next_chunk(&mut self, keys_max: usize, bytes_max: usize) -> Result<RangeChunk> {
        let limit = self.query.answer_limit().unwrap_or(usize::MAX);
        let wanted = keys_max.max(1).min(limit - self.given);
        let txn = ReadTxn {
            store: &self.store,
            revision: self.pinned,
            reach: Reach::Engine,
            latest: self.pinned == self.revision,
        };
        let Some(bounds) = span(&self.query.range) else {
            let answer = match std::mem::replace(&mut self.position, Position::End) {
                Position::Start => txn
                    .range(&self.query)?
                    .expect("a read with no bounds answers"),
                Position::At(_) | Position::End => return Ok(RangeChunk::default()),
            };
            return Ok(RangeChunk {
                kvs: answer.kvs,
                end: Some(RangeEnd {
                    count: answer.count,
                    more: answer.more,
                }),
            });
        };
        let mut start = match &self.position {
            Position::Start => Some(bounds.start.into()),
            Position::At(key) => Some(key.clone()),
            Position::End => return Ok(RangeChunk::default()),
        };
        let keys = if self.query.skips_values() {
            Keys::Copy
        } else {
            Keys::Skip
        };
        let mut kvs: Vec<KeyValue> = Vec::new();
        let mut bytes = 0;
        while let Some(from) = &start
            && kvs.len() < wanted
            && bytes < bytes_max
            && !self.query.count_only
        {
            let rest = Span {
                start: from,
                end: bounds.end,
            };
            let keys_max = (wanted - kvs.len()).min(CHUNK_STEP_KEYS);
            let slice = self.store.slice(rest, self.pinned, keys_max, keys);
            let before = kvs.len();
            txn.read(&self.query, &slice.hits, &mut kvs)?;
            let read = kvs[before..].iter();
            bytes += read.map(|kv| kv.key.len() + kv.value.len()).sum::<usize>();
            start = slice.next;
        }
        self.given += kvs.len();
        self.count += to_count(kvs.len());
        let end = match start {
            Some(from) if self.given < limit && !self.query.count_only => {
                self.position = Position::At(from);
                None
            }
            Some(from) => {
                let rest = txn.count(Span {
                    start: &from,
                    end: bounds.end,
                });
                let more = rest > 0 && !self.query.count_only;
                Some(RangeEnd {
                    count: self.count + rest,
                    more,
                })
            }
            None => Some(RangeEnd {
                count: self.count,
                more: false,
            }),
        };
        if end.is_some() {
            self.position = Position::End;
        }
        self.store.check_not_compacted(self.pinned)?;
        Ok(RangeChunk { kvs, end })
    }
}

/// Filters, sorts and cuts all `hits` of a range, in key order, and reads those that are left.
pub(crate) fn arrange(
    query: &RangeQuery,
    mut hits: Vec<Hit>,
    read: impl Fn(&[Hit], &mut Vec<KeyValue>) -> Result<bool>,
) -> Result<Option<Vec<KeyValue>>> {
    hits.retain(|hit| query.admits(&hit.state));
    query.sort_by_state(&mut hits, |hit| hit.state);
    if query.sort_target != crate::range::SortTarget::Value
        && let Some(limit) = query.answer_limit()
    {
        // One more says that there is more.
        hits.truncate(limit.saturating_add(1));
    }
    let mut kvs = Vec::with_capacity(hits.len());
    if !read(&hits, &mut kvs)? {
        return Ok(None);
    }
    query.sort_by_value(&mut kvs);
    Ok(Some(kvs))
}

/// Cuts `kvs` to the limit and drops values that were not asked for.
pub(crate) fn finish(query: &RangeQuery, mut kvs: Vec<KeyValue>, count: i64) -> RangeAnswer {
    let limit = query.answer_limit().unwrap_or(usize::MAX);
    let more = kvs.len() > limit;
    kvs.truncate(limit);
    if query.keys_only {
        for kv in &mut kvs {
            kv.value = Bytes::new();
        }
    }
    RangeAnswer {
        revision: 0,
        kvs,
        count,
        more,
    }
}

/// A key without value and lease, as the index knows it.
pub(crate) fn from_index(hit: &Hit) -> KeyValue {
    KeyValue {
        key: hit.key.clone(),
        create_revision: hit.state.created,
        mod_revision: hit.state.modified.main,
        version: hit.state.version,
        value: Bytes::new(),
        lease: 0,
    }
}

pub(crate) fn to_count(keys: usize) -> i64 {
    i64::try_from(keys).expect("a number of keys in memory fits i64")
}
