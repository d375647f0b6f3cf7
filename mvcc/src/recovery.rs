//! Rebuilds the key index at start from the index keyspace, which holds no values.
//!
//! The revisions are cut into parts that threads read and sort by key; the parts enter the index in order of revision.
//! At any time a few parts are in memory, not all revisions. What must hold, else the data is damaged: index and revision
//! keyspace begin and end with the same revisions (a scrub compares the rest), and a tombstone deletes a key that exists
//! or whose history was compacted away.
//!
//! The current revision is the newest stored one, or a compaction's if that is above: a crash must not turn it back
//! when compaction removed the newest tombstones. Source: etcd 3.7 mvcc, restore.

use std::collections::HashMap;
use std::ops::ControlFlow;
use std::sync::atomic::{AtomicI64, Ordering};
use std::sync::mpsc;
use std::thread;

use bytes::Bytes;

use crate::Result;
use crate::backend::{EngineKind, Keyspace, View};
use crate::compaction::{FINISHED_KEY, SCHEDULED_KEY};
use crate::index::Index;
use crate::lease::{Lessor, LessorOptions};
use crate::record::IndexRecord;
use crate::revision::{Change, Revision};
use crate::store::{TERM_KEY, damage};

/// The state of a store that was opened.
pub(crate) struct Recovered {
    pub(crate) index: Index,
    pub(crate) current: i64,
    pub(crate) scheduled_compaction: Option<i64>,
    pub(crate) finished_compaction: Option<i64>,
    pub(crate) term: u64,
    pub(crate) lessor: Lessor,
}

/// Threads that read the index keyspace.
const READERS: usize = 2;
/// Main revisions in a part, unless that makes more than [`PARTS_MAX`].
const PART_REVISIONS: i64 = 64 << 10;
const PARTS_MAX: i64 = 256;
/// No store gets here by counting: a larger revision is damage.
const REVISION_MAX: i64 = 1 << 62;

/// The records of a part, sorted by key, then revision.
struct Part {
    number: i64,
    records: Vec<Loaded>,
}

struct Loaded {
    key: Box<[u8]>,
    revision: Revision,
    change: Change,
    created: i64,
    version: i64,
    lease: i64,
}

/// Reads everything that the store keeps in memory.
pub(crate) fn recover(view: &View, engine: EngineKind, lessor: LessorOptions) -> Result<Recovered> {
    let scheduled_compaction = read_compaction(engine, view, SCHEDULED_KEY)?;
    let finished_compaction = read_compaction(engine, view, FINISHED_KEY)?;
    let term = match view.get(Keyspace::Meta, TERM_KEY)? {
        Some(term) => match <[u8; 8]>::try_from(&term[..]) {
            Ok(term) => u64::from_be_bytes(term),
            Err(_) => {
                return Err(damage(
                    engine,
                    "the term of the applied index is not 8 bytes".into(),
                ));
            }
        },
        None => 0,
    };

    let bounds = stored_bounds(engine, view, Keyspace::Index)?;
    let value_bounds = stored_bounds(engine, view, Keyspace::Rev)?;
    if bounds != value_bounds {
        let what = format!(
            "the index covers revisions {}, and values are there for {}",
            show(bounds),
            show(value_bounds)
        );
        return Err(damage(engine, what));
    }
    let mut loader = Loader {
        engine,
        index: Index::new(),
        newest: 1,
        leases: HashMap::new(),
    };
    if let Some((first, last)) = bounds {
        if last.main > REVISION_MAX {
            return Err(damage(engine, format!("there is a revision {last}")));
        }
        loader.load(view, first.main, last.main)?;
    }
    let compacted = scheduled_compaction.max(finished_compaction).unwrap_or(-1);
    Ok(Recovered {
        index: loader.index,
        current: loader.newest.max(compacted),
        scheduled_compaction,
        finished_compaction,
        term,
        lessor: restore_leases(view, lessor, loader.leases)?,
    })
}

/// The stored leases, with `attached` keys. A key whose lease is gone is attached to none, as in etcd.
fn restore_leases(
    view: &View,
    options: LessorOptions,
    attached: HashMap<Box<[u8]>, i64>,
) -> Result<Lessor> {
    let lessor = Lessor::new(options);
    let mut restored = Ok(());
    view.scan(Keyspace::Lease, &[], None, &mut |key, value| {
        restored = lessor.restore(key, value);
        match restored {
            Ok(()) => ControlFlow::Continue(()),
            Err(_) => ControlFlow::Break(()),
        }
    })?;
    restored?;
    for (key, lease) in attached {
        if lessor.attach(lease, &Bytes::from(key)).is_err() {
            tracing::warn!(lease, "a key names a lease that does not exist");
        }
    }
    Ok(lessor)
}

struct Loader {
    engine: EngineKind,
    index: Index,
    newest: i64,
    leases: HashMap<Box<[u8]>, i64>,
}

impl Loader {
    /// Loads main revisions `first..=last`.
    fn load(&mut self, view: &View, first: i64, last: i64) -> Result<()> {
        let engine = self.engine;
        let revisions = last - first + 1;
        let step = PART_REVISIONS.max(revisions / PARTS_MAX + 1);
        let parts = (revisions + step - 1) / step;
        let next = AtomicI64::new(0);
        thread::scope(|scope| {
            // A part waits here while the one before is still being read; more than a few never do.
            let (sender, receiver) = mpsc::sync_channel(READERS);
            for _ in 0..READERS {
                let (sender, next) = (sender.clone(), &next);
                scope.spawn(move || {
                    loop {
                        let number = next.fetch_add(1, Ordering::Relaxed);
                        if number >= parts {
                            return;
                        }
                        let from = first + number * step;
                        let part =
                            read_part(engine, view, number, from, (from + step - 1).min(last));
                        let failed = part.is_err();
                        if sender.send(part).is_err() || failed {
                            return;
                        }
                    }
                });
            }
            drop(sender);
            let mut waiting = HashMap::new();
            let mut wanted = 0;
            for part in receiver {
                let part = part?;
                waiting.insert(part.number, part);
                while let Some(part) = waiting.remove(&wanted) {
                    self.add(part)?;
                    wanted += 1;
                }
            }
            assert!(wanted == parts, "{wanted} of {parts} parts were read");
            Ok(())
        })
    }

    fn add(&mut self, part: Part) -> Result<()> {
        for record in part.records {
            self.newest = self.newest.max(record.revision.main);
            let Loaded {
                key,
                revision,
                change,
                created,
                version,
                lease,
            } = record;
            if !self.index.restore(&key, revision, change, created, version) {
                return Err(damage(
                    self.engine,
                    format!("tombstone {revision} of a key that a tombstone deleted before"),
                ));
            }
            if lease != 0 {
                self.leases.insert(key, lease);
            } else if !self.leases.is_empty() {
                self.leases.remove(&key);
            }
        }
        Ok(())
    }
}

fn read_part(engine: EngineKind, view: &View, number: i64, from: i64, to: i64) -> Result<Part> {
    let mut records = Vec::new();
    let mut bad = None;
    let start = Revision::new(from, 0).key(Change::Put);
    let end = Revision::new(to.saturating_add(1), 0).key(Change::Put);
    view.scan(Keyspace::Index, &start, Some(&end), &mut |key, record| {
        let decoded = Revision::decode(key).and_then(|(revision, change)| {
            let record = IndexRecord::decode(change, record)?;
            is_possible(revision, &record).then_some((revision, change, record))
        });
        match decoded {
            Some((revision, change, record)) => {
                records.push(Loaded {
                    key: record.key.into(),
                    revision,
                    change,
                    created: record.create_revision,
                    version: record.version,
                    lease: record.lease,
                });
                ControlFlow::Continue(())
            }
            None => {
                bad = Some(format!("index record {key:02x?} is not one"));
                ControlFlow::Break(())
            }
        }
    })?;
    if let Some(what) = bad {
        return Err(damage(engine, what));
    }
    records.sort_unstable_by(|a, b| a.key.cmp(&b.key).then(a.revision.cmp(&b.revision)));
    Ok(Part { number, records })
}

/// Whether a store can have made `record` at `revision`: counts that it cannot have must not be counted on.
fn is_possible(revision: Revision, record: &IndexRecord<'_>) -> bool {
    u32::try_from(revision.sub).is_ok()
        && record.create_revision <= revision.main
        && record.version <= REVISION_MAX
}

/// The first and the last revision that `keyspace` holds.
fn stored_bounds(
    engine: EngineKind,
    view: &View,
    keyspace: Keyspace,
) -> Result<Option<(Revision, Revision)>> {
    let Some(first) = first_from(engine, view, keyspace, Revision::default())? else {
        return Ok(None);
    };
    // Whether there is a revision at or above `main` changes from yes to no once.
    let (mut present, mut absent) = (first.main, i64::MAX);
    while absent - present > 1 {
        let middle = present + (absent - present) / 2;
        match first_from(engine, view, keyspace, Revision::new(middle, 0))? {
            Some(revision) => present = revision.main,
            None => absent = middle,
        }
    }
    let mut last = first;
    view.scan(
        keyspace,
        &Revision::new(present, 0).key(Change::Put),
        None,
        &mut |key, _| {
            last = Revision::decode(key).map_or(last, |(revision, _)| revision);
            ControlFlow::Continue(())
        },
    )?;
    Ok(Some((first, last)))
}

fn first_from(
    engine: EngineKind,
    view: &View,
    keyspace: Keyspace,
    from: Revision,
) -> Result<Option<Revision>> {
    let mut found = None;
    view.scan(keyspace, &from.key(Change::Put), None, &mut |key, _| {
        found = Some(
            Revision::decode(key)
                .ok_or_else(|| format!("{key:02x?} in {} is not a revision", keyspace.name())),
        );
        ControlFlow::Break(())
    })?;
    match found {
        None => Ok(None),
        Some(Ok((revision, _))) => Ok(Some(revision)),
        Some(Err(what)) => Err(damage(engine, what)),
    }
}

fn read_compaction(engine: EngineKind, view: &View, key: &'static [u8]) -> Result<Option<i64>> {
    let Some(value) = view.get(Keyspace::Meta, key)? else {
        return Ok(None);
    };
    match Revision::decode(&value) {
        Some((revision, _)) => Ok(Some(revision.main)),
        None => Err(damage(
            engine,
            format!("{} is not a revision", String::from_utf8_lossy(key)),
        )),
    }
}

fn show(bounds: Option<(Revision, Revision)>) -> String {
    match bounds {
        Some((first, last)) => format!("{first} to {last}"),
        None => "none".to_owned(),
    }
}
