//! The store: what ties index, engine, leases and watchers together, and the two revisions that all reads rest on.
//!
//! One writer (the apply loop) and any number of readers. Invariants:
//! - a reader pins the current revision (or an older one) and sees nothing above it. The index may hold more: a commit adds
//!   the changes of a transaction first, slice by slice, and publishes its revision last, so no reader sees half of it;
//! - whatever the index names is in the buffer or the engine before the index names it;
//! - watchers hear of a revision after readers can see it;
//! - the compacted revision is raised, durably with the entry that asks for it, before anything is dropped.
//!
//! Lock order: writer, then index, then cache, buffer and the rest, each alone.

use std::path::PathBuf;
use std::sync::Arc;
use std::sync::atomic::{AtomicI64, AtomicU64, Ordering};
use std::time::Duration;

use bytes::Bytes;
use parking_lot::{Mutex, RwLock};

use crate::backend::{Backend, CONSISTENT_INDEX_KEY, EngineKind, Keyspace, Op};
use crate::compaction::Compactor;
use crate::hash::CompactionHashes;
use crate::index::Index;
use crate::lease::{Lessor, LessorOptions};
use crate::recovery;
use crate::value_cache::ValueCache;
use crate::watch::{HubOptions, WatchHub};
use crate::{Error, Result};

/// The Meta key of the term of the applied index, as eight bytes big endian. The name is etcd's.
pub const TERM_KEY: &[u8] = b"term";

/// How a store is opened.
#[derive(Clone, Copy, Debug)]
pub struct StoreOptions {
    /// Bytes of newest values kept in memory, bookkeeping included; 0 keeps none. Too small sends lists to the engine.
    pub value_cache_bytes: u64,
    /// Bounds of the watch hub.
    pub hub: HubOptions,
    /// How leases behave.
    pub lessor: LessorOptions,
    /// Revisions that a compaction removes at a time. More makes larger engine commits.
    pub compaction_slice: usize,
    /// Pause between two slices. Less makes compactions compete with writes.
    pub compaction_pause: Duration,
    /// Who takes the steps of a compaction.
    pub compaction_driver: CompactionDriver,
}

/// Who takes the steps of a compaction.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum CompactionDriver {
    /// A thread of the store's own.
    Thread,
    /// The caller, through [`Store::compact_step`]: tests and simulation.
    Caller,
}

impl Default for StoreOptions {
    fn default() -> StoreOptions {
        StoreOptions {
            value_cache_bytes: 32 << 20,
            hub: HubOptions::default(),
            lessor: LessorOptions::default(),
            compaction_slice: 1000,
            compaction_pause: Duration::from_millis(10),
            compaction_driver: CompactionDriver::Thread,
        }
    }
}

/// The log position whose effects a write contains, and what else it changes.
#[derive(Clone, Debug, Default)]
pub struct AppliedMark {
    /// Log index of the entry.
    pub index: u64,
    /// Term of the entry.
    pub term: u64,
    /// Changes outside the keys: auth, members, alarms.
    pub extra: Vec<Op>,
}

impl AppliedMark {
    /// The position alone.
    pub fn new(index: u64, term: u64) -> AppliedMark {
        AppliedMark {
            index,
            term,
            extra: Vec::new(),
        }
    }
}

/// Figures for metrics.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct StoreStats {
    /// Keys that exist at the current revision.
    pub keys: usize,
    /// Keys in the index: deleted ones that are not compacted included.
    pub index_keys: usize,
    /// Bytes of the key index.
    pub index_bytes: usize,
    /// Bytes of the value cache.
    pub cache_bytes: u64,
    /// Compactions that were asked for and are not finished.
    pub compactions_pending: usize,
    /// Revisions that compactions removed since start.
    pub revisions_removed: u64,
}

/// Keys and their revisions.
pub struct Store {
    pub(crate) backend: Backend,
    pub(crate) index: RwLock<Index>,
    pub(crate) cache: ValueCache,
    pub(crate) hub: Arc<WatchHub>,
    pub(crate) lessor: Lessor,
    pub(crate) writer: Mutex<()>,
    pub(crate) compactor: Compactor,
    pub(crate) hashes: CompactionHashes,
    /// Written by the writer alone.
    current: AtomicI64,
    compacted: AtomicI64,
    term: AtomicU64,
}

impl Store {
    /// Reads the key index from `backend` and resumes an unfinished compaction.
    ///
    /// Takes about a second for a million revisions. Errors: [`Error::Damage`] if what is stored is not what was written.
    pub fn open(backend: Backend, options: StoreOptions) -> Result<Arc<Store>> {
        let recovered = recovery::recover(&backend.view()?, backend.engine(), options.lessor)?;
        let compacted = recovered
            .scheduled_compaction
            .max(recovered.finished_compaction)
            .unwrap_or(-1);
        let store = Arc::new(Store {
            index: RwLock::new(recovered.index),
            cache: ValueCache::new(options.value_cache_bytes),
            hub: WatchHub::new(options.hub, recovered.current),
            lessor: recovered.lessor,
            writer: Mutex::new(()),
            compactor: Compactor::new(options, recovered.finished_compaction),
            hashes: CompactionHashes::default(),
            current: AtomicI64::new(recovered.current),
            compacted: AtomicI64::new(compacted),
            term: AtomicU64::new(recovered.term),
            backend,
        });
        store.start_compactor(
            recovered.scheduled_compaction,
            recovered.finished_compaction,
        );
        Ok(store)
    }

    /// The newest revision; 1 in an empty store.
    pub fn revision(&self) -> i64 {
        self.current.load(Ordering::Acquire)
    }

    /// The last compacted revision, which is still readable; -1 if there was no compaction.
    pub fn compacted(&self) -> i64 {
        self.compacted.load(Ordering::Acquire)
    }

    /// The database below.
    pub fn backend(&self) -> &Backend {
        &self.backend
    }

    /// The leases.
    pub fn lessor(&self) -> &Lessor {
        &self.lessor
    }

    /// Who is told of changes.
    pub fn watch_hub(&self) -> &Arc<WatchHub> {
        &self.hub
    }

    /// Figures for metrics; cheap.
    pub fn stats(&self) -> StoreStats {
        let (keys, index_keys, index_bytes) = {
            let index = self.index.read();
            (index.live(), index.keys(), index.heap_bytes())
        };
        StoreStats {
            keys,
            index_keys,
            index_bytes,
            cache_bytes: self.cache.bytes(),
            compactions_pending: self.compactor.pending(),
            revisions_removed: self.compactor.removed(),
        }
    }

    /// Stops the compaction thread; an unfinished compaction resumes at the next open. The backend stays open.
    pub fn close(&self) {
        self.compactor.stop();
    }

    /// Walks the whole index; panics if an invariant does not hold. For tests.
    pub fn check_invariants(&self) {
        let index = self.index.read();
        index.check_invariants();
        let (current, compacted) = (self.revision(), self.compacted());
        assert!(
            compacted <= current,
            "compacted {compacted} is past current {current}"
        );
        index.walk(crate::index::Span::ALL, |key, revisions| {
            let modified = revisions.modified().main;
            assert!(
                modified <= current,
                "{key:?} was modified at {modified}, past current {current}"
            );
            std::ops::ControlFlow::Continue(())
        });
    }

    /// Makes `revision`, whose changes the index has, the newest one.
    pub(crate) fn publish_revision(&self, revision: i64) {
        let current = self.revision();
        assert!(
            revision == current + 1,
            "revision {revision} published after {current}"
        );
        self.current.store(revision, Ordering::Release);
    }

    /// Makes everything below `revision` unreadable.
    pub(crate) fn raise_compacted(&self, revision: i64) {
        self.compacted.store(revision, Ordering::Release);
    }

    /// The log index that was applied last.
    pub(crate) fn applied(&self) -> Result<u64> {
        let stored = self.backend.get(Keyspace::Meta, CONSISTENT_INDEX_KEY)?;
        match stored.as_deref().map(<[u8; 8]>::try_from) {
            None => Ok(0),
            Some(Ok(index)) => Ok(u64::from_be_bytes(index)),
            Some(Err(_)) => Err(self.damage("the applied index is not 8 bytes".to_owned())),
        }
    }

    /// Takes the positions of a state that replaces this one and is not older.
    pub(crate) fn take_over(&self, current: i64, compacted: i64, term: u64) {
        self.current.store(current, Ordering::Release);
        self.compacted.store(compacted, Ordering::Release);
        self.term.store(term, Ordering::Relaxed);
    }

    /// The operations that record `mark`.
    pub(crate) fn mark_ops(&self, mark: AppliedMark, ops: &mut Vec<Op>) {
        ops.extend(mark.extra);
        ops.push(meta(CONSISTENT_INDEX_KEY, &mark.index.to_be_bytes()));
        if self.term.swap(mark.term, Ordering::Relaxed) != mark.term {
            ops.push(meta(TERM_KEY, &mark.term.to_be_bytes()));
        }
    }

    pub(crate) fn damage(&self, what: String) -> Error {
        damage(self.backend.engine(), what)
    }
}

/// Damage in the database of `engine`.
pub(crate) fn damage(engine: EngineKind, what: String) -> Error {
    Error::Damage {
        file: PathBuf::from(format!("the {engine} database")),
        what,
    }
}

/// A put into the Meta keyspace.
pub(crate) fn meta(key: &'static [u8], value: &[u8]) -> Op {
    Op::Put(
        Keyspace::Meta,
        Bytes::from_static(key),
        Bytes::copy_from_slice(value),
    )
}

#[cfg(test)]
mod tests;
