//! What the store tells watchers of its past.
//!
//! Events of a stretch of revisions come from the key index when few keys are watched (its walk finds exactly the wanted
//! revisions, in memory), else from a scan of the stretch. Both leave out what was compacted, which is nothing at or above
//! the compacted revision: a revision there is kept unless a later change of the same transaction replaced it.

use std::ops::ControlFlow;
use std::sync::Arc;

use bytes::Bytes;
use kv_proto::mvccpb::{Event, KeyValue};

use crate::Result;
use crate::backend::Keyspace;
use crate::index::Span;
use crate::read_txn::SLICE_KEYS;
use crate::record;
use crate::revision::{Change, RevKey, Revision};
use crate::store::Store;
use crate::value_cache::Admission;
use crate::watch::{
    History, HistoryChunk, HistoryRequest, RangeSet, RevisionEvents, delete_event, put_event,
};

/// Looking at a key in the index costs about a sixteenth of reading a revision from the engine.
const INDEX_KEYS_PER_REVISION: usize = 16;

/// Revisions that one read scans before it answers what it has, so that a stream which asks for rare keys is not held up.
const SCANNED_MAX: usize = 100_000;

/// Revisions whose records are read at once: what a chunk has room for is seen after each such read. Few in tests, so that
/// they meet the seams.
const READ_REVISIONS: usize = if cfg!(test) { 3 } else { 32 };

/// One change that a watcher wants.
struct Found {
    revision: Revision,
    change: Change,
    record: Bytes,
}

impl History for Store {
    fn current(&self) -> i64 {
        self.revision()
    }

    fn compacted(&self) -> i64 {
        Store::compacted(self)
    }

    fn events(&self, request: &HistoryRequest) -> Result<HistoryChunk> {
        self.check_not_compacted(request.from)?;
        let stretch = usize::try_from(request.to - request.from + 1).unwrap_or(0);
        let stretch = stretch.min(SCANNED_MAX);
        let total = self.index.read().keys();
        let keys = self.keys_in(&request.ranges, stretch * INDEX_KEYS_PER_REVISION);
        // A scan ends with the wanted revisions: the sooner, the larger the part of all keys that is watched.
        let scanned = stretch.min(
            request
                .revisions_max
                .saturating_mul(total / keys.max(1) + 1),
        );
        if keys < scanned * INDEX_KEYS_PER_REVISION {
            // A hot key may have changed often: the walk finds no more than a scan would have looked at.
            let to = request.to.min(request.from + SCANNED_MAX as i64 - 1);
            self.events_by_key(&HistoryRequest {
                to,
                ..request.clone()
            })
        } else {
            self.events_by_revision(request)
        }
    }
}

impl Store {
    /// Answers through the key index.
    pub(crate) fn events_by_key(&self, request: &HistoryRequest) -> Result<HistoryChunk> {
        self.complete(request, self.find_by_key(request)?)
    }

    /// Answers by a scan of the stretch.
    pub(crate) fn events_by_revision(&self, request: &HistoryRequest) -> Result<HistoryChunk> {
        self.complete(request, self.find_by_revision(request)?)
    }

    fn complete(
        &self,
        request: &HistoryRequest,
        (mut found, mut through): (Vec<Found>, i64),
    ) -> Result<HistoryChunk> {
        let prevs = if request.want_prev {
            let prevs = self.values_before(&found, request.bytes_max)?;
            if let Some(rest) = found.get(prevs.len()) {
                through = rest.revision.main - 1;
                found.truncate(prevs.len());
            }
            prevs
        } else {
            vec![None; found.len()]
        };
        let revisions = group(self, found, prevs)?;
        // What a compaction removed meanwhile may be missing.
        self.check_not_compacted(request.from)?;
        Ok(HistoryChunk { revisions, through })
    }

    /// About how many keys the index holds in `ranges`, if that is below `enough`.
    fn keys_in(&self, ranges: &RangeSet, enough: usize) -> usize {
        let index = self.index.read();
        let mut keys = 0;
        for (start, end) in ranges.intervals() {
            if keys >= enough {
                break;
            }
            keys += index.estimate(
                Span {
                    start,
                    end: end.as_deref(),
                },
                enough - keys,
            );
        }
        keys
    }

    /// Finds changes through the key index.
    fn find_by_key(&self, request: &HistoryRequest) -> Result<(Vec<Found>, i64)> {
        let mut wanted = Vec::new();
        for (start, end) in request.ranges.intervals() {
            let mut next: Option<Box<[u8]>> = Some((&start[..]).into());
            while let Some(from) = next.take() {
                let mut visited = 0;
                self.index.read().walk(
                    Span {
                        start: &from,
                        end: end.as_deref(),
                    },
                    |key, revisions| {
                        if visited == SLICE_KEYS {
                            next = Some(key.into());
                            return ControlFlow::Break(());
                        }
                        visited += 1;
                        revisions.since(request.from, request.to, |revision, change| {
                            wanted.push((revision, change))
                        });
                        ControlFlow::Continue(())
                    },
                );
            }
        }
        wanted.sort_unstable_by_key(|(revision, _)| *revision);

        let mut taken = Taken::new(request);
        let mut found = Vec::new();
        for wanted in wanted.chunks(READ_REVISIONS) {
            let keys: Vec<RevKey> = wanted
                .iter()
                .map(|(revision, change)| revision.key(*change))
                .collect();
            let records = self.backend.get_revisions(&keys)?;
            for (&(revision, change), record) in wanted.iter().zip(records) {
                let Some(record) = record else {
                    self.check_not_compacted(request.from)?;
                    return Err(self.lost(revision));
                };
                if !taken.admits(revision.main, record.len()) {
                    return Ok((found, taken.last));
                }
                found.push(Found {
                    revision,
                    change,
                    record,
                });
            }
        }
        Ok((found, request.to))
    }

    /// Finds changes by a scan of the stretch.
    fn find_by_revision(&self, request: &HistoryRequest) -> Result<(Vec<Found>, i64)> {
        let view = self.backend.view()?;
        let from = Revision::new(request.from.max(0), 0).key(Change::Put);
        let to = Revision::new(request.to.saturating_add(1), 0).key(Change::Put);
        let mut taken = Taken::new(request);
        let mut found = Vec::new();
        let mut through = request.to;
        let mut scanned = 0;
        let mut previous = request.from;
        let mut bad = None;
        view.scan(Keyspace::Rev, &from, Some(&to), &mut |key, record| {
            let Some((revision, change)) = Revision::decode(key) else {
                bad = Some(format!("{key:02x?} is not a revision"));
                return ControlFlow::Break(());
            };
            scanned += 1;
            if scanned > SCANNED_MAX && revision.main > previous {
                through = previous;
                return ControlFlow::Break(());
            }
            previous = revision.main;
            let Some(user_key) = record::value_key(record) else {
                bad = Some(format!(
                    "the value of revision {revision} is not a KeyValue"
                ));
                return ControlFlow::Break(());
            };
            if request.ranges.contains(user_key) {
                if !taken.admits(revision.main, record.len()) {
                    through = taken.last;
                    return ControlFlow::Break(());
                }
                found.push(Found {
                    revision,
                    change,
                    record: Bytes::copy_from_slice(record),
                });
            }
            ControlFlow::Continue(())
        })?;
        match bad {
            Some(what) => Err(self.damage(what)),
            None => Ok((found, through)),
        }
    }

    /// For each change the value at the revision before it, unless that is compacted or the change is a create. Ends with a
    /// whole revision once there are more than `bytes_max` bytes of values.
    fn values_before(&self, found: &[Found], bytes_max: u64) -> Result<Vec<Option<KeyValue>>> {
        let oldest = Store::compacted(self);
        let mut values = Vec::with_capacity(found.len());
        let mut bytes = 0;
        for (n, part) in found.chunks(READ_REVISIONS).enumerate() {
            let before: Vec<Option<Revision>> = {
                let index = self.index.read();
                let state = |found: &Found| {
                    let key = record::value_key(&found.record)?;
                    let revisions = index.get(key)?;
                    let at = found.revision.main - 1;
                    (at >= oldest)
                        .then(|| revisions.get(at))
                        .flatten()
                        .map(|state| state.modified)
                };
                part.iter().map(state).collect()
            };
            let wanted: Vec<Revision> = before.iter().flatten().copied().collect();
            let mut records = self.records(&wanted, Admission::None)?.into_iter();
            for before in before {
                let record = before.and_then(|_| records.next().flatten());
                bytes += record.as_ref().map_or(0, |record| record.len() as u64);
                values.push(record.and_then(|record| record::decode_value(&record)));
            }
            if bytes > bytes_max
                && let Some(whole) = whole_revisions(found, n * READ_REVISIONS + part.len())
            {
                values.truncate(whole);
                break;
            }
        }
        Ok(values)
    }
}

/// How many of the first `taken` changes belong to revisions that do not go on behind them; none if that is not one.
fn whole_revisions(found: &[Found], taken: usize) -> Option<usize> {
    if taken == found.len() {
        return Some(taken);
    }
    let begins = |at: &usize| found[*at].revision.main != found[*at - 1].revision.main;
    (1..=taken).rev().find(begins)
}

/// How much of a request is taken: whole revisions, up to its bounds.
struct Taken {
    revisions_max: usize,
    bytes_max: u64,
    revisions: usize,
    bytes: u64,
    /// Everything up to here was looked at.
    last: i64,
}

impl Taken {
    fn new(request: &HistoryRequest) -> Taken {
        let HistoryRequest {
            revisions_max,
            bytes_max,
            from,
            ..
        } = *request;
        Taken {
            revisions_max,
            bytes_max,
            revisions: 0,
            bytes: 0,
            last: from - 1,
        }
    }

    /// Whether a change of `main` is still wanted; if not, `last` is the revision to stop at.
    fn admits(&mut self, main: i64, bytes: usize) -> bool {
        if main != self.last {
            let full = self.revisions >= self.revisions_max || self.bytes > self.bytes_max;
            if full && self.revisions > 0 {
                return false;
            }
            self.revisions += 1;
            self.last = main;
        }
        self.bytes += bytes as u64;
        true
    }
}

/// The events of each revision together.
fn group(
    store: &Store,
    found: Vec<Found>,
    prevs: Vec<Option<KeyValue>>,
) -> Result<Vec<Arc<RevisionEvents>>> {
    let mut revisions = Vec::new();
    let mut events: Vec<Event> = Vec::new();
    let mut main = None;
    for (
        Found {
            revision,
            change,
            record,
        },
        prev,
    ) in found.into_iter().zip(prevs)
    {
        if let Some(done) = main.replace(revision.main)
            && done != revision.main
        {
            revisions.push(Arc::new(RevisionEvents::new(
                done,
                std::mem::take(&mut events),
            )));
        }
        let kv = record::decode_value(&record).ok_or_else(|| store.unreadable(revision))?;
        events.push(match change {
            Change::Put => {
                let prev = if kv.create_revision == kv.mod_revision {
                    None
                } else {
                    prev
                };
                put_event(kv, prev)
            }
            Change::Tombstone => delete_event(kv.key, revision.main, prev),
        });
    }
    if let Some(done) = main {
        revisions.push(Arc::new(RevisionEvents::new(done, events)));
    }
    Ok(revisions)
}
