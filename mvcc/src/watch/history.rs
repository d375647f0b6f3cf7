//! What a watcher that is behind reads from the store: revisions in chunks, bounded in number and bytes.
//!
//! A read names all ranges that the watchers of one cohort want ([`RangeSet`]), so that a thousand watchers
//! which fell behind together cost one pass over the store.

use std::sync::Arc;

use bytes::Bytes;
use kv_proto::key_range::KeyRange;

use super::event::RevisionEvents;
use crate::Result;

/// Most revisions with events that one read returns. Source: etcd 3.7, watch batches.
pub const CHUNK_REVISIONS_MAX: usize = 1000;
/// A read stops after the revision that takes it over this many bytes.
pub const CHUNK_BYTES_MAX: u64 = 4 << 20;

/// The store's past, as watchers see it; implemented by the store.
pub trait History: Send + Sync {
    /// The newest revision that readers see.
    fn current(&self) -> i64;

    /// The revision below which history is gone; -1 if nothing was ever compacted.
    fn compacted(&self) -> i64;

    /// Reads events in `request.from..=request.to` of the ranges asked for. Blocks on the engine.
    ///
    /// Every revision comes whole (all its events in the ranges, in sub-revision order), in ascending
    /// order. Events of revisions `>= request.from` must all be there: if a compaction removed one, also
    /// while reading, the answer is [`Error::Compacted`](crate::Error::Compacted); `from == compacted` is
    /// readable. `prev_kv` is absent where it was compacted or the event is a create.
    fn events(&self, request: &HistoryRequest) -> Result<HistoryChunk>;
}

/// One read of the past.
#[derive(Clone, Debug)]
pub struct HistoryRequest {
    /// The keys wanted.
    pub ranges: RangeSet,
    /// First revision wanted.
    pub from: i64,
    /// Last revision wanted; `from <= to <=` the current revision.
    pub to: i64,
    /// Stop after this many revisions that have events.
    pub revisions_max: usize,
    /// Stop after the revision that takes the answer over this many bytes; one revision always fits.
    pub bytes_max: u64,
    /// Whether some watcher wants `prev_kv`.
    pub want_prev: bool,
}

/// What a read found.
#[derive(Clone, Debug)]
pub struct HistoryChunk {
    /// Revisions that have events in the ranges, ascending.
    pub revisions: Vec<Arc<RevisionEvents>>,
    /// Every revision `<= through` was looked at; `from <= through <= to`. Less than `to` when a bound
    /// stopped the read (or the store chose to stop: the caller comes back).
    pub through: i64,
}

/// Disjoint key intervals, sorted; an overlap is merged.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct RangeSet {
    /// `(start, end)`; no end means every key `>= start`. Ascending, not touching each other.
    intervals: Vec<(Bytes, Option<Bytes>)>,
}

impl RangeSet {
    /// The keys that are in at least one of `ranges`.
    pub fn new<'a>(ranges: impl IntoIterator<Item = &'a KeyRange>) -> RangeSet {
        let mut intervals: Vec<(Bytes, Option<Bytes>)> = ranges
            .into_iter()
            .filter(|r| !r.is_empty())
            .map(interval)
            .collect();
        intervals.sort_by(|a, b| a.0.cmp(&b.0));
        let mut merged: Vec<(Bytes, Option<Bytes>)> = Vec::with_capacity(intervals.len());
        for (start, end) in intervals {
            match merged.last_mut() {
                Some((_, None)) => break,
                Some((_, Some(last))) if start <= *last => match end {
                    Some(end) if end > *last => *last = end,
                    Some(_) => {}
                    None => merged.last_mut().expect("just seen").1 = None,
                },
                _ => merged.push((start, end)),
            }
        }
        RangeSet { intervals: merged }
    }

    /// Whether `key` is wanted.
    pub fn contains(&self, key: &[u8]) -> bool {
        let after = self
            .intervals
            .partition_point(|(start, _)| &start[..] <= key);
        match after.checked_sub(1).map(|i| &self.intervals[i].1) {
            Some(Some(end)) => key < &end[..],
            Some(None) => true,
            None => false,
        }
    }

    /// The disjoint intervals `[start, end)`, ascending; no end means no upper bound.
    pub fn intervals(&self) -> &[(Bytes, Option<Bytes>)] {
        &self.intervals
    }
}

/// A range as `[start, end)`; the successor of a single key is the key with a zero byte behind it.
pub(super) fn interval(range: &KeyRange) -> (Bytes, Option<Bytes>) {
    match range {
        KeyRange::Single(key) => {
            let mut end = Vec::with_capacity(key.len() + 1);
            end.extend_from_slice(key);
            end.push(0);
            (key.clone(), Some(end.into()))
        }
        KeyRange::Bounded { start, end } => (start.clone(), Some(end.clone())),
        KeyRange::From(start) => (start.clone(), None),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn range(key: &'static str, end: &'static str) -> KeyRange {
        KeyRange::new(Bytes::from(key), Bytes::from(end))
    }

    #[test]
    fn overlapping_ranges_merge() {
        let set = RangeSet::new(&[
            range("c", "e"),
            range("a", "b"),
            range("d", "f"),
            range("a", ""),
        ]);
        let expect = [("a", "b"), ("c", "f")].map(|(s, e)| (Bytes::from(s), Some(Bytes::from(e))));
        assert_eq!(set.intervals(), expect);
    }

    #[test]
    fn open_end_swallows_what_follows() {
        let set = RangeSet::new(&[range("m", "\0"), range("x", "z"), range("a", "")]);
        assert_eq!(set.intervals().len(), 2);
        assert!(set.contains(b"zz"));
        assert!(set.contains(b"a"));
        assert!(!set.contains(b"a\0"));
        assert!(!set.contains(b"b"));
    }

    #[test]
    fn membership_is_that_of_the_ranges() {
        let ranges = [
            range("b", "d"),
            range("c", "cc"),
            range("f", ""),
            range("x", "a"),
        ];
        let set = RangeSet::new(&ranges);
        for key in ["", "a", "b", "b\0", "c", "cc", "d", "f", "f\0", "x", "y"] {
            let expect = ranges.iter().any(|r| r.contains(key.as_bytes()));
            assert_eq!(set.contains(key.as_bytes()), expect, "key {key:?}");
        }
    }
}
