//! Ordered map from key to [`KeyIndex`].
//!
//! Keys sit in leaves of up to [`LEAF_KEYS_MAX`], and a search tree finds a leaf by its separator. Each leaf knows
//! how many of its keys exist and its newest revision, so counting passes over whole leaves: a count at revision
//! `at` reads single keys only at the two ends and in leaves that changed after `at`.
//!
//! Invariants:
//! - a separator is `<=` every key of its leaf and `>` every key of the leaf before; the first separator is empty;
//! - keys strictly increase; no leaf but the first is empty;
//! - `live` of a leaf is the number of its keys that exist as of their newest revision, and `modified` is `>=` the main
//!   revision of each.
//!
//! Cost of a key with one revision: its bytes, 40 bytes here, and what the allocator and free slots add (about 10).

use std::collections::BTreeMap;
use std::ops::Bound;
use std::ops::ControlFlow;

use crate::key_index::{Dropped, KeyIndex};
use crate::revision::{Change, Revision};

/// All keys that have a revision.
#[derive(Debug)]
pub(crate) struct Index {
    leaves: BTreeMap<Box<[u8]>, Leaf>,
    keys: usize,
    live: usize,
    heap_bytes: usize,
}

/// Bounds of a walk: `start <= key`, and `key < end` unless it is open.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Span<'a> {
    pub(crate) start: &'a [u8],
    pub(crate) end: Option<&'a [u8]>,
}

const LEAF_KEYS_MAX: usize = 128;
/// A leaf that compaction leaves with fewer is joined to the one before it.
const LEAF_KEYS_MIN: usize = 32;
/// Most keys of a leaf so joined: room for some that come later.
const LEAF_KEYS_JOINED: usize = 112;
/// A leaf grows by this many, since doubling would leave a third of the slots unused.
const LEAF_GROWTH: usize = 16;

#[derive(Debug, Default)]
struct Leaf {
    entries: Vec<Entry>,
    live: usize,
    modified: i64,
}

#[derive(Debug)]
struct Entry {
    key: Box<[u8]>,
    revisions: KeyIndex,
}

const _: () = assert!(size_of::<Entry>() == 40);

impl Index {
    pub(crate) fn new() -> Index {
        let leaves = BTreeMap::from([(Box::default(), Leaf::default())]);
        Index {
            leaves,
            keys: 0,
            live: 0,
            heap_bytes: 0,
        }
    }

    /// The revisions of `key`.
    pub(crate) fn get(&self, key: &[u8]) -> Option<&KeyIndex> {
        let (_, leaf) = self.leaf_of(Some(key));
        let position = leaf.search(key).ok()?;
        Some(&leaf.entries[position].revisions)
    }

    /// Adds a change that is newer than every other; a tombstone's key must exist.
    pub(crate) fn apply(&mut self, key: &[u8], revision: Revision, change: Change) {
        let changed = self.restore(key, revision, change, revision.main, 1);
        assert!(changed, "tombstone {revision} of a key that does not exist");
    }

    /// Adds a change that the engine returned; those of one key come in order.
    ///
    /// `created` and `version` count only if it is the first one of its key, since compaction may have removed those
    /// before. Returns `false`, and changes nothing, for a tombstone of a key that a tombstone has deleted already.
    pub(crate) fn restore(
        &mut self,
        key: &[u8],
        revision: Revision,
        change: Change,
        created: i64,
        version: i64,
    ) -> bool {
        let (_, leaf) = self
            .leaves
            .range_mut::<[u8], _>((Bound::Unbounded, Bound::Included(key)))
            .next_back()
            .expect("the first separator is below every key");
        match leaf.search(key) {
            Ok(position) => {
                let revisions = &mut leaf.entries[position].revisions;
                let was_live = revisions.is_live();
                let heap_before = revisions.heap_bytes();
                match change {
                    Change::Put => revisions.put(revision),
                    Change::Tombstone if !revisions.tombstone(revision) => return false,
                    Change::Tombstone => {}
                }
                self.heap_bytes = self.heap_bytes + revisions.heap_bytes() - heap_before;
                match (was_live, change) {
                    (false, Change::Put) => {
                        leaf.live += 1;
                        self.live += 1;
                    }
                    (true, Change::Tombstone) => {
                        leaf.live -= 1;
                        self.live -= 1;
                    }
                    (true, Change::Put) | (false, Change::Tombstone) => {}
                }
            }
            Err(position) => {
                let revisions = KeyIndex::first(revision, change, created, version);
                let live = usize::from(revisions.is_live());
                self.heap_bytes += key.len() + revisions.heap_bytes();
                self.heap_bytes += leaf.insert(
                    position,
                    Entry {
                        key: key.into(),
                        revisions,
                    },
                );
                leaf.live += live;
                self.keys += 1;
                self.live += live;
            }
        }
        leaf.modified = leaf.modified.max(revision.main);
        if leaf.entries.len() == LEAF_KEYS_MAX {
            // Keys that come in order leave full leaves behind.
            let is_last = leaf.entries[LEAF_KEYS_MAX - 1].key[..] == *key;
            let upper = leaf.split_at(if is_last {
                LEAF_KEYS_MAX - 1
            } else {
                LEAF_KEYS_MAX / 2
            });
            self.leaves.insert(upper.entries[0].key.clone(), upper);
        }
        true
    }

    /// Visits the keys of `span` in order, deleted ones included, until told to stop.
    pub(crate) fn walk<'a>(
        &'a self,
        span: Span<'_>,
        mut visit: impl FnMut(&'a [u8], &'a KeyIndex) -> ControlFlow<()>,
    ) {
        for leaf in self.leaves_from(span.start) {
            let (from, to) = leaf.bounds(span);
            for entry in &leaf.entries[from..to] {
                if visit(&entry.key, &entry.revisions).is_break() {
                    return;
                }
            }
            if to < leaf.entries.len() {
                return;
            }
        }
    }

    /// Counts the keys of `span` that exist at `at`, and returns where to go on after about `steps_max` steps.
    ///
    /// A leaf between the two ends is one step, and none of its keys is looked at, unless it changed after `at`.
    pub(crate) fn count(
        &self,
        span: Span<'_>,
        at: i64,
        steps_max: usize,
    ) -> (usize, Option<Box<[u8]>>) {
        let ends = (self.leaf_of(Some(span.start)), self.leaf_of(span.end));
        let ((first, first_leaf), (last, last_leaf)) = ends;
        let count_ends = |leaf: &Leaf| {
            let (from, to) = leaf.bounds(span);
            leaf.count(from, to, at)
        };
        if first >= last {
            return (count_ends(first_leaf).0, None);
        }
        let (mut count, mut steps) = count_ends(first_leaf);
        let between = (Bound::Excluded(first), Bound::Excluded(last));
        for (separator, leaf) in self.leaves.range::<[u8], _>(between) {
            if steps >= steps_max {
                return (count, Some(separator.clone()));
            }
            let (more, cost) = leaf.count(0, leaf.entries.len(), at);
            count += more;
            steps += cost;
        }
        (count + count_ends(last_leaf).0, None)
    }

    /// About how many keys `span` holds, at a cost that does not grow with it beyond one step a leaf.
    pub(crate) fn estimate(&self, span: Span<'_>, enough: usize) -> usize {
        let mut keys = 0;
        for leaf in self.leaves_from(span.start) {
            let (from, to) = leaf.bounds(span);
            keys += to - from;
            if keys >= enough || to < leaf.entries.len() {
                break;
            }
        }
        keys
    }

    /// Compacts the keys from `from` on, whole leaves at a time, until about `keys_max` were looked at.
    ///
    /// Hands over in `dropped` what left the index. Returns where to go on; `None` when the last key is done.
    pub(crate) fn compact(
        &mut self,
        from: &[u8],
        at: i64,
        keys_max: usize,
        dropped: &mut Vec<Dropped>,
    ) -> Option<Box<[u8]>> {
        let first = self
            .leaves
            .range::<[u8], _>((Bound::Unbounded, Bound::Included(from)))
            .next_back()?
            .0
            .clone();
        let mut visited = 0;
        let mut small = Vec::new();
        let mut next = None;
        for (separator, leaf) in self
            .leaves
            .range_mut::<[u8], _>((Bound::Included(&first[..]), Bound::Unbounded))
        {
            if visited >= keys_max {
                next = Some(separator.clone());
                break;
            }
            visited += leaf.entries.len().max(1);
            let before = leaf.heap_bytes();
            leaf.entries.retain_mut(|entry| {
                let heap_before = entry.revisions.heap_bytes();
                let stays = entry.revisions.compact(at, dropped);
                match stays {
                    true => {
                        self.heap_bytes =
                            self.heap_bytes + entry.revisions.heap_bytes() - heap_before
                    }
                    false => {
                        self.keys -= 1;
                        self.heap_bytes -= heap_before + entry.key.len();
                    }
                }
                stays
            });
            if leaf.entries.capacity() > leaf.entries.len() + 2 * LEAF_GROWTH {
                leaf.entries.shrink_to(leaf.entries.len() + LEAF_GROWTH);
            }
            self.heap_bytes = self.heap_bytes + leaf.heap_bytes() - before;
            if leaf.entries.len() < LEAF_KEYS_MIN && !separator.is_empty() {
                small.push(separator.clone());
            }
        }
        for separator in small {
            self.join_to_previous(&separator);
        }
        next
    }

    /// Keys, deleted ones that are not compacted included.
    pub(crate) fn keys(&self) -> usize {
        self.keys
    }

    /// Keys that exist as of their newest revision.
    pub(crate) fn live(&self) -> usize {
        self.live
    }

    /// Bytes asked of the allocator for keys and revisions, the tree over the leaves apart.
    pub(crate) fn heap_bytes(&self) -> usize {
        self.heap_bytes
    }

    /// Panics if an invariant of the module does not hold.
    pub(crate) fn check_invariants(&self) {
        let mut previous: Option<&[u8]> = None;
        let (mut keys, mut live, mut heap_bytes) = (0, 0, 0);
        for (separator, leaf) in &self.leaves {
            assert!(
                separator.is_empty() || !leaf.entries.is_empty(),
                "an empty leaf at {separator:?}"
            );
            assert!(
                previous.is_none_or(|key| key < &separator[..]),
                "separator {separator:?} is not above {previous:?}"
            );
            for entry in &leaf.entries {
                assert!(
                    entry.key[..] >= separator[..],
                    "{:?} is below its separator {separator:?}",
                    entry.key
                );
                assert!(
                    previous.is_none_or(|key| key < &entry.key[..]),
                    "{:?} is not above {previous:?}",
                    entry.key
                );
                assert!(
                    entry.revisions.modified().main <= leaf.modified,
                    "leaf {separator:?} is newer than it says"
                );
                entry.revisions.check_invariants();
                previous = Some(&entry.key);
                heap_bytes += entry.key.len() + entry.revisions.heap_bytes();
            }
            let leaf_live = leaf
                .entries
                .iter()
                .filter(|entry| entry.revisions.is_live())
                .count();
            assert!(
                leaf.live == leaf_live,
                "leaf {separator:?} has {leaf_live} live keys, not {}",
                leaf.live
            );
            keys += leaf.entries.len();
            live += leaf.live;
            heap_bytes += leaf.heap_bytes();
        }
        assert!(self.keys == keys, "{keys} keys, not {}", self.keys);
        assert!(self.live == live, "{live} live keys, not {}", self.live);
        assert!(
            self.heap_bytes == heap_bytes,
            "{heap_bytes} bytes, not {}",
            self.heap_bytes
        );
    }

    /// The leaf that holds `key` or would; without a key, the last one.
    fn leaf_of(&self, key: Option<&[u8]>) -> (&[u8], &Leaf) {
        let upper = key.map_or(Bound::Unbounded, Bound::Included);
        let leaf = self
            .leaves
            .range::<[u8], _>((Bound::Unbounded, upper))
            .next_back();
        leaf.map(|(separator, leaf)| (&separator[..], leaf))
            .expect("the first separator is below every key")
    }

    fn leaves_from(&self, start: &[u8]) -> impl Iterator<Item = &Leaf> {
        let (first, _) = self.leaf_of(Some(start));
        self.leaves
            .range::<[u8], _>((Bound::Included(first), Bound::Unbounded))
            .map(|(_, leaf)| leaf)
    }

    /// Moves the few keys of a leaf into the one before it, if they fit; an empty leaf goes in any case.
    fn join_to_previous(&mut self, separator: &[u8]) {
        let Some(leaf) = self.leaves.remove(separator) else {
            return;
        };
        let (_, previous) = self
            .leaves
            .range_mut::<[u8], _>((Bound::Unbounded, Bound::Excluded(separator)))
            .next_back()
            .expect("the first leaf is not joined");
        let before = previous.heap_bytes() + leaf.heap_bytes();
        if previous.entries.len() + leaf.entries.len() > LEAF_KEYS_JOINED {
            self.leaves.insert(separator.into(), leaf);
            return;
        }
        previous.live += leaf.live;
        previous.modified = previous.modified.max(leaf.modified);
        previous.entries.reserve_exact(leaf.entries.len());
        previous.entries.extend(leaf.entries);
        self.heap_bytes = self.heap_bytes + previous.heap_bytes() - before;
    }
}

impl Span<'_> {
    /// Every key.
    pub(crate) const ALL: Span<'static> = Span {
        start: &[],
        end: None,
    };
}

impl Leaf {
    fn search(&self, key: &[u8]) -> Result<usize, usize> {
        self.entries
            .binary_search_by(|entry| entry.key[..].cmp(key))
    }

    /// Positions of the first key of `span` and of the first one behind it.
    fn bounds(&self, span: Span<'_>) -> (usize, usize) {
        let (Some(first), Some(last)) = (self.entries.first(), self.entries.last()) else {
            return (0, 0);
        };
        let from = match &first.key[..] >= span.start {
            true => 0,
            false => self
                .entries
                .partition_point(|entry| &entry.key[..] < span.start),
        };
        let to = match span.end {
            Some(end) if &last.key[..] >= end => {
                self.entries.partition_point(|entry| &entry.key[..] < end)
            }
            Some(_) | None => self.entries.len(),
        };
        (from, to.max(from))
    }

    /// How many of the entries `from..to` exist at `at`, and what it cost to find out.
    fn count(&self, from: usize, to: usize, at: i64) -> (usize, usize) {
        if self.modified <= at && to - from == self.entries.len() {
            return (self.live, 1);
        }
        let entries = &self.entries[from..to];
        let count = entries
            .iter()
            .filter(|entry| entry.revisions.get(at).is_some())
            .count();
        (count, entries.len())
    }

    /// Inserts and returns by how many bytes the leaf grew.
    fn insert(&mut self, position: usize, entry: Entry) -> usize {
        let before = self.heap_bytes();
        if self.entries.len() == self.entries.capacity() {
            self.entries.reserve_exact(LEAF_GROWTH);
        }
        self.entries.insert(position, entry);
        self.heap_bytes() - before
    }

    /// Splits off the entries from `position` on. The bytes of both together stay what they were.
    fn split_at(&mut self, position: usize) -> Leaf {
        // The lower half keeps its capacity only as far as it will use it.
        let capacity = self.entries.capacity();
        let moved = self.entries.len() - position;
        let mut entries = Vec::with_capacity(capacity - position);
        entries.extend(self.entries.drain(position..));
        self.entries.shrink_to(position);
        debug_assert!(entries.len() == moved);
        let live = entries
            .iter()
            .filter(|entry| entry.revisions.is_live())
            .count();
        self.live -= live;
        Leaf {
            entries,
            live,
            modified: self.modified,
        }
    }

    fn heap_bytes(&self) -> usize {
        self.entries.capacity() * size_of::<Entry>()
    }
}

#[cfg(test)]
mod tests;
