//! The write buffer: what apply has written and the engine does not have yet.
//!
//! A [`Layer`] receives writes until the engine thread freezes it, commits it and drops it; at most two exist, the one
//! that receives and the one being committed. Readers look into both before the engine. Invariants:
//! - a batch becomes visible as a whole;
//! - the log keyspaces are append-only and sorted, so a point in time is a length; the small mutable keyspaces are
//!   ordered maps whose last value wins, and keep an older version only while a view may need it;
//! - where a key is both in the log and in the map of its keyspace, the map's version is the newer one;
//! - a frozen layer never changes.

use std::collections::BTreeMap;
use std::ops::Bound;
use std::sync::atomic::{AtomicU64, Ordering};

use bytes::Bytes;
use parking_lot::RwLock;

use super::engine::Changes;
use super::{CONSISTENT_INDEX_KEY, Keyspace, Op};

/// Memory of one entry beyond its key and value: two handles, a share of the allocations behind them, the log's slot.
const ENTRY_OVERHEAD_BYTES: u64 = 128;

/// Entries per chunk of a [`Log`]: growth never moves what is there.
const LOG_CHUNK: usize = 1024;

/// What a layer knows about one key.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Found {
    /// The newest value.
    Value(Bytes),
    /// Deleted here, whatever lies below says.
    Deleted,
    /// Nothing here: ask the next older state.
    Absent,
}

/// A point in time of one layer.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Mark {
    lens: [usize; Keyspace::LOGS],
    batch: u64,
}

/// Writes between two commits.
#[derive(Default)]
pub(crate) struct Layer {
    content: RwLock<Content>,
    /// Newest batch that a view has seen: a version at or below it must be kept when overwritten.
    newest_view: AtomicU64,
}

#[derive(Default)]
struct Content {
    logs: [Log; Keyspace::LOGS],
    maps: [BTreeMap<Bytes, Versions>; Keyspace::COUNT],
    /// Batches written so far.
    batch: u64,
    applied: Option<u64>,
    ops: usize,
    bytes: u64,
}

/// How full a layer is.
#[derive(Clone, Copy, Debug, Default)]
pub(crate) struct Fill {
    pub(crate) ops: usize,
    pub(crate) bytes: u64,
}

impl Layer {
    /// Adds one batch, visible as a whole; returns the fill before and after it.
    pub(crate) fn write(&self, ops: Vec<Op>) -> (Fill, Fill) {
        let mut content = self.content.write();
        let before = content.fill();
        content.batch += 1;
        // A view cannot be taken while the lock is held, so the newest one is known.
        let newest_view = self.newest_view.load(Ordering::Acquire);
        for op in ops {
            content.add(op, newest_view);
        }
        (before, content.fill())
    }

    /// The point in time after the last batch.
    pub(crate) fn mark(&self) -> Mark {
        let content = self.content.read();
        self.newest_view.fetch_max(content.batch, Ordering::AcqRel);
        Mark {
            lens: [content.logs[0].len(), content.logs[1].len()],
            batch: content.batch,
        }
    }

    /// What the layer knows about `key`, at `mark` or now.
    pub(crate) fn get(&self, keyspace: Keyspace, key: &[u8], mark: Option<&Mark>) -> Found {
        self.content.read().get(keyspace, key, mark)
    }

    /// What the layer knows about each of `keys`; calls `found` where that is something.
    pub(crate) fn get_each<K: AsRef<[u8]>>(
        &self,
        keyspace: Keyspace,
        keys: &[K],
        mark: Option<&Mark>,
        mut found: impl FnMut(usize, Found),
    ) {
        let content = self.content.read();
        if content.is_empty_for(keyspace) {
            return;
        }
        for (position, key) in keys.iter().enumerate() {
            match content.get(keyspace, key.as_ref(), mark) {
                Found::Absent => {}
                known => found(position, known),
            }
        }
    }

    /// Up to `limit` known keys of `from..to` at `mark`, in order; `None` is a deletion.
    pub(crate) fn slice(
        &self,
        keyspace: Keyspace,
        from: Bound<&[u8]>,
        to: Option<&[u8]>,
        mark: &Mark,
        limit: usize,
    ) -> Vec<(Bytes, Option<Bytes>)> {
        self.content.read().slice(keyspace, from, to, mark, limit)
    }

    /// How full the layer is.
    pub(crate) fn fill(&self) -> Fill {
        self.content.read().fill()
    }

    /// The applied index that the layer contains, if any batch set one.
    pub(crate) fn applied(&self) -> Option<u64> {
        self.content.read().applied
    }

    /// Calls `commit` with everything that the layer contains. The layer must be frozen.
    pub(crate) fn with_changes<T>(&self, commit: impl FnOnce(&Changes<'_>) -> T) -> T {
        let content = self.content.read();
        let appended = Keyspace::ALL
            .into_iter()
            .filter_map(|keyspace| Some((keyspace, &content.logs[keyspace.log()?])))
            .filter(|(_, log)| log.len() > 0)
            .collect();
        let others = Keyspace::ALL
            .into_iter()
            .flat_map(|keyspace| {
                content.maps[keyspace.position()]
                    .iter()
                    .map(move |(key, versions)| (keyspace, key, versions.newest.value.as_ref()))
            })
            .collect();
        commit(&Changes { appended, others })
    }
}

impl Content {
    fn add(&mut self, op: Op, newest_view: u64) {
        let (keyspace, key, value) = match op {
            Op::Put(keyspace, key, value) => (keyspace, key, Some(value)),
            Op::Delete(keyspace, key) => (keyspace, key, None),
        };
        self.ops += 1;
        if keyspace == Keyspace::Meta
            && key == CONSISTENT_INDEX_KEY
            && let Some(index) = value.as_deref().and_then(|value| value.try_into().ok())
        {
            self.applied = Some(u64::from_be_bytes(index));
        }
        let map = &mut self.maps[keyspace.position()];
        if let Some(log) = keyspace.log()
            && let Some(value) = &value
            && self.logs[log].last_key().is_none_or(|last| last < &key)
            && (map.is_empty() || !map.contains_key(&key))
        {
            self.bytes += ENTRY_OVERHEAD_BYTES + (key.len() + value.len()) as u64;
            self.logs[log].push(key, value.clone());
            return;
        }
        let bytes = value.as_ref().map_or(0, Bytes::len) as u64;
        let version = Version {
            batch: self.batch,
            value,
        };
        match map.entry(key) {
            std::collections::btree_map::Entry::Vacant(vacant) => {
                self.bytes += ENTRY_OVERHEAD_BYTES + vacant.key().len() as u64 + bytes;
                vacant.insert(Versions {
                    newest: version,
                    older: Vec::new(),
                });
            }
            std::collections::btree_map::Entry::Occupied(mut occupied) => {
                let versions = occupied.get_mut();
                let replaced = std::mem::replace(&mut versions.newest, version);
                self.bytes += bytes;
                if replaced.batch <= newest_view {
                    self.bytes += ENTRY_OVERHEAD_BYTES;
                    versions.older.push(replaced);
                } else {
                    self.bytes -= replaced.value.as_ref().map_or(0, Bytes::len) as u64;
                }
            }
        }
    }

    fn get(&self, keyspace: Keyspace, key: &[u8], mark: Option<&Mark>) -> Found {
        let map = &self.maps[keyspace.position()];
        if !map.is_empty()
            && let Some(version) = map.get(key).and_then(|versions| versions.at(mark))
        {
            return version.clone().map_or(Found::Deleted, Found::Value);
        }
        let Some(log) = keyspace.log() else {
            return Found::Absent;
        };
        let len = mark.map_or(self.logs[log].len(), |mark| mark.lens[log]);
        self.logs[log]
            .find(key, len)
            .map_or(Found::Absent, |value| Found::Value(value.clone()))
    }

    fn slice(
        &self,
        keyspace: Keyspace,
        from: Bound<&[u8]>,
        to: Option<&[u8]>,
        mark: &Mark,
        limit: usize,
    ) -> Vec<(Bytes, Option<Bytes>)> {
        if let (Bound::Included(from) | Bound::Excluded(from), Some(to)) = (from, to)
            && from >= to
        {
            return Vec::new();
        }
        let upper = to.map_or(Bound::Unbounded, Bound::Excluded);
        let mut mapped = self.maps[keyspace.position()]
            .range::<[u8], _>((from, upper))
            .filter_map(|(key, versions)| Some((key, versions.at(Some(mark))?)))
            .peekable();
        let mut logged = keyspace
            .log()
            .map(|log| self.logs[log].range(from, to, mark.lens[log]))
            .into_iter()
            .flatten()
            .peekable();
        let mut slice = Vec::new();
        while slice.len() < limit {
            // Of two equal keys the map's is the newer version; the log's is passed over.
            let from_map = match (mapped.peek(), logged.peek()) {
                (None, None) => break,
                (Some(_), None) => true,
                (None, Some(_)) => false,
                (Some((map_key, _)), Some((log_key, _))) => {
                    if map_key == log_key {
                        logged.next();
                        true
                    } else {
                        map_key < log_key
                    }
                }
            };
            if from_map {
                slice.extend(
                    mapped
                        .next()
                        .map(|(key, value)| (key.clone(), value.clone())),
                );
            } else {
                slice.extend(
                    logged
                        .next()
                        .map(|(key, value)| (key.clone(), Some(value.clone()))),
                );
            }
        }
        slice
    }

    fn is_empty_for(&self, keyspace: Keyspace) -> bool {
        self.maps[keyspace.position()].is_empty()
            && keyspace.log().is_none_or(|log| self.logs[log].len() == 0)
    }

    fn fill(&self) -> Fill {
        Fill {
            ops: self.ops,
            bytes: self.bytes,
        }
    }
}

/// Versions of one key, of which all but the newest are there for views.
struct Versions {
    newest: Version,
    /// Ascending by batch.
    older: Vec<Version>,
}

struct Version {
    batch: u64,
    /// `None` is a deletion.
    value: Option<Bytes>,
}

impl Versions {
    fn at(&self, mark: Option<&Mark>) -> Option<&Option<Bytes>> {
        let batch = mark.map_or(u64::MAX, |mark| mark.batch);
        std::iter::once(&self.newest)
            .chain(self.older.iter().rev())
            .find(|version| version.batch <= batch)
            .map(|version| &version.value)
    }
}

/// Keys in ascending order with their values; grows only at the end, and never moves what it holds.
#[derive(Default)]
pub(crate) struct Log {
    chunks: Vec<Chunk>,
    len: usize,
}

struct Chunk {
    /// First eight bytes of each key, in which most searches end: dense, so they stay in the processor's cache.
    heads: Vec<u64>,
    entries: Vec<(Bytes, Bytes)>,
}

impl Log {
    /// Number of entries.
    pub(crate) fn len(&self) -> usize {
        self.len
    }

    /// All entries in order.
    pub(crate) fn iter(&self) -> impl Iterator<Item = &(Bytes, Bytes)> {
        self.chunks.iter().flat_map(|chunk| &chunk.entries)
    }

    /// Adds an entry. `key` must be greater than the last one.
    pub(crate) fn push(&mut self, key: Bytes, value: Bytes) {
        debug_assert!(
            self.last_key().is_none_or(|last| last < &key),
            "key {key:?} is not above {:?}",
            self.last_key()
        );
        if self.len.is_multiple_of(LOG_CHUNK) {
            // The first chunk grows with its content, so that an almost idle store holds little.
            let capacity = if self.len == 0 { 0 } else { LOG_CHUNK };
            self.chunks.push(Chunk {
                heads: Vec::with_capacity(capacity),
                entries: Vec::with_capacity(capacity),
            });
        }
        let chunk = self
            .chunks
            .last_mut()
            .expect("a chunk was pushed when the last was full");
        chunk.heads.push(head(&key));
        chunk.entries.push((key, value));
        self.len += 1;
    }

    /// The greatest key.
    pub(crate) fn last_key(&self) -> Option<&Bytes> {
        self.chunks.last()?.entries.last().map(|(key, _)| key)
    }

    /// The value of `key` among the first `len` entries.
    fn find(&self, key: &[u8], len: usize) -> Option<&Bytes> {
        let position = self.position(Bound::Included(key), len);
        if position >= len {
            return None;
        }
        let (found, value) = self.entry(position);
        (found == key).then_some(value)
    }

    /// Entries of `from..to` among the first `len`.
    fn range<'a>(
        &'a self,
        from: Bound<&[u8]>,
        to: Option<&[u8]>,
        len: usize,
    ) -> impl Iterator<Item = (&'a Bytes, &'a Bytes)> + use<'a> {
        let start = self.position(from, len);
        let end = to.map_or(len, |to| self.position(Bound::Included(to), len));
        (start..end).map(|position| {
            let (key, value) = self.entry(position);
            (key, value)
        })
    }

    fn entry(&self, position: usize) -> &(Bytes, Bytes) {
        &self.chunks[position / LOG_CHUNK].entries[position % LOG_CHUNK]
    }

    /// The first position, at most `len`, whose key lies inside the lower bound.
    fn position(&self, lower: Bound<&[u8]>, len: usize) -> usize {
        let (key, excluded) = match lower {
            Bound::Unbounded => return 0,
            Bound::Included(key) => (key, false),
            Bound::Excluded(key) => (key, true),
        };
        let wanted = head(key);
        let below = |position: usize| {
            let (chunk, offset) = (&self.chunks[position / LOG_CHUNK], position % LOG_CHUNK);
            chunk.heads[offset].cmp(&wanted).then_with(|| {
                let entry_key: &[u8] = &chunk.entries[offset].0;
                entry_key.cmp(key)
            })
        };
        let (mut low, mut high) = (0, len);
        while low < high {
            let middle = low + (high - low) / 2;
            let is_below = match below(middle) {
                std::cmp::Ordering::Less => true,
                std::cmp::Ordering::Equal => excluded,
                std::cmp::Ordering::Greater => false,
            };
            if is_below {
                low = middle + 1;
            } else {
                high = middle;
            }
        }
        low
    }
}

/// The first eight bytes of a key, padded with zeroes: orders as the key does, except between keys that share it.
fn head(key: &[u8]) -> u64 {
    let mut bytes = [0; 8];
    let len = key.len().min(8);
    bytes[..len].copy_from_slice(&key[..len]);
    u64::from_be_bytes(bytes)
}
