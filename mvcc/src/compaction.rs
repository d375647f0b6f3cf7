//! Compaction: logical at once, physical in steps.
//!
//! [`Store::compact`] raises the compacted revision, durably with the entry that asked for it; from then on older reads
//! fail. What nobody can read any more is removed in steps:
//!
//! ```text
//! keep   walk the index: what of the previous compaction is still kept      } only if the previous
//! hash   sum what was written since then, a slice at a time                 } one was finished
//! drop   take revisions out of the index, then out of the engine, a slice at a time
//! done   write finishedCompactRev
//! ```
//! Invariants:
//! - a revision leaves the index before it leaves the engine, and its value and index records leave in one batch;
//! - compactions are done one after the other, in order; `finishedCompactRev` is written after the last removal;
//! - no step holds a lock longer than one slice of the index.
//!
//! After a crash the index is rebuilt with everything that was not removed yet, and the compaction starts over without
//! the hash: part of what it would sum is gone.
//!
//! Source: etcd 3.7 mvcc, scheduled compaction.

use std::collections::VecDeque;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Weak};
use std::thread::{self, JoinHandle};
use std::time::Duration;

use bytes::Bytes;
use parking_lot::{Condvar, Mutex, MutexGuard};
use tokio::sync::watch;

use crate::backend::{Keyspace, Op, View};
use crate::hash::{self, HashKv, Kept, KvHasher};
use crate::key_index::Dropped;
use crate::read_txn::SLICE_KEYS;
use crate::revision::{Change, Revision};
use crate::store::{AppliedMark, CompactionDriver, Store, StoreOptions, meta};
use crate::{Error, Result};

/// The Meta key of the last compaction that was asked for, as a revision. The name is etcd's.
pub const SCHEDULED_KEY: &[u8] = b"scheduledCompactRev";
/// The Meta key of the last compaction that was finished, as a revision. The name is etcd's.
pub const FINISHED_KEY: &[u8] = b"finishedCompactRev";

/// Waits until a compaction has removed what it removes.
#[derive(Clone, Debug)]
pub struct CompactionHandle {
    revision: i64,
    finished: watch::Receiver<i64>,
}

impl CompactionHandle {
    /// Returns when everything is removed, though perhaps not yet durably (see [`crate::backend::Backend::checkpoint`]).
    ///
    /// Errors: [`Error::Closed`] if the store goes away first; the compaction resumes when it is opened.
    pub async fn wait(mut self) -> Result<()> {
        let finished = self
            .finished
            .wait_for(|finished| *finished >= self.revision)
            .await;
        finished.map(|_| ()).map_err(|_| Error::Closed)
    }

    /// Whether everything is removed.
    pub fn is_finished(&self) -> bool {
        *self.finished.borrow() >= self.revision
    }
}

/// What [`Store::compact_step`] left to do.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum CompactionStep {
    /// More steps of this or the next compaction.
    More,
    /// Nothing, until there is a new compaction.
    Idle,
}

/// The compactions of a store that are not finished.
pub(crate) struct Compactor {
    options: StoreOptions,
    shared: Arc<Shared>,
    finished: watch::Sender<i64>,
    removed: AtomicU64,
    thread: Mutex<Option<JoinHandle<()>>>,
    /// Held for a step, and by whoever needs that there is none.
    stepping: Mutex<()>,
}

/// What the thread waits on without keeping the store alive.
#[derive(Default)]
struct Shared {
    queue: Mutex<Queue>,
    wake: Condvar,
}

#[derive(Default)]
struct Queue {
    jobs: VecDeque<Job>,
    /// A job is out of the queue while a step works on it.
    working: bool,
    stopped: bool,
}

struct Job {
    revision: i64,
    /// The compacted revision before.
    previous: i64,
    phase: Phase,
    /// Taken by the first phases, remembered once the compaction is finished.
    hash: Option<u32>,
}

enum Phase {
    Keep,
    Hash {
        view: View,
        hasher: KvHasher,
        from: Vec<u8>,
    },
    Drop {
        /// The key to go on from in the index.
        next: Option<Box<[u8]>>,
        /// What has left the index, and not the engine.
        pending: VecDeque<(Revision, Change)>,
    },
}

/// What a step made of a job.
enum Progress {
    Continue(Job),
    Finished,
}

impl Store {
    /// Makes revisions below `revision` unreadable and begins to remove what no later read can see.
    ///
    /// `mark` is recorded whatever the answer. Errors: [`Error::Compacted`] if `revision` is not above the compacted one,
    /// [`Error::FutureRevision`] if it is above the current one.
    pub fn compact(&self, revision: i64, mark: AppliedMark) -> Result<CompactionHandle> {
        let _writer = self.writer.lock();
        let (current, compacted) = (self.revision(), self.compacted());
        let refused = if revision <= compacted {
            Some(Error::Compacted {
                requested: revision,
                compacted,
            })
        } else if revision > current {
            Some(Error::FutureRevision {
                requested: revision,
                current,
            })
        } else {
            None
        };
        let mut ops = Vec::new();
        if refused.is_none() {
            ops.push(meta(
                SCHEDULED_KEY,
                &Revision::new(revision, 0).key(Change::Put),
            ));
        }
        self.mark_ops(mark, &mut ops);
        self.backend.write(ops);
        if let Some(error) = refused {
            return Err(error);
        }
        self.raise_compacted(revision);
        // Part of what an unfinished one left to hash may be gone.
        let phase = if *self.compactor.finished.borrow() == compacted {
            Phase::Keep
        } else {
            Phase::remove()
        };
        self.compactor.add(Job::new(revision, compacted, phase));
        Ok(CompactionHandle {
            revision,
            finished: self.compactor.finished.subscribe(),
        })
    }

    /// Takes one step of the oldest unfinished compaction: about a slice's worth of work.
    ///
    /// For [`CompactionDriver::Caller`]; one caller at a time. Errors leave the step to be taken again.
    pub fn compact_step(&self) -> Result<CompactionStep> {
        let _stepping = self.compactor.pause();
        let Some(job) = self.compactor.take() else {
            return Ok(CompactionStep::Idle);
        };
        let (revision, previous) = (job.revision, job.previous);
        match self.advance(job) {
            Ok(Progress::Continue(job)) => self.compactor.put_back(job),
            Ok(Progress::Finished) => self.compactor.finish_one(),
            Err(error) => {
                // Only the phases that hash can fail, before anything is dropped. Damage stays, and the hash is there to be
                // compared only: then what nobody can read any more is removed without it.
                let phase = match error {
                    Error::Damage { .. } => Phase::remove(),
                    _ => Phase::Keep,
                };
                self.compactor.put_back(Job::new(revision, previous, phase));
                return Err(error);
            }
        }
        Ok(if self.compactor.pending() > 0 {
            CompactionStep::More
        } else {
            CompactionStep::Idle
        })
    }

    /// Queues the compaction that a crash interrupted and starts the thread.
    pub(crate) fn start_compactor(self: &Arc<Self>, scheduled: Option<i64>, finished: Option<i64>) {
        self.compactor.resume(scheduled, finished);
        if self.compactor.options.compaction_driver == CompactionDriver::Thread {
            let store = Arc::downgrade(self);
            let shared = Arc::clone(&self.compactor.shared);
            let pause = self.compactor.options.compaction_pause;
            let spawned = thread::Builder::new()
                .name("compactor".into())
                .spawn(move || run(&store, &shared, pause));
            match spawned {
                Ok(thread) => *self.compactor.thread.lock() = Some(thread),
                Err(error) => {
                    tracing::error!(%error, "cannot start the compaction thread; nothing will be removed")
                }
            }
        }
    }

    /// Works until a slice is used up or the job is done: a small compaction is one step, without a pause.
    fn advance(&self, mut job: Job) -> Result<Progress> {
        let slice = self.compactor.options.compaction_slice.max(1);
        loop {
            job.phase = match job.phase {
                Phase::Keep => {
                    let mut kept = Kept::with_tombstones();
                    let mut next = Some(Box::default());
                    while let Some(from) = next {
                        next = self.keep_slice(&from, job.revision, job.previous, &mut kept);
                    }
                    kept.finish();
                    Phase::Hash {
                        view: self.backend.view()?,
                        hasher: KvHasher::new(job.previous, job.revision, kept),
                        from: Vec::new(),
                    }
                }
                Phase::Hash {
                    view,
                    mut hasher,
                    from,
                } => match hash::feed_slice(&view, &mut hasher, &from, slice)? {
                    Some(from) => {
                        job.phase = Phase::Hash { view, hasher, from };
                        return Ok(Progress::Continue(job));
                    }
                    None => {
                        job.hash = Some(hasher.sum());
                        Phase::remove()
                    }
                },
                Phase::Drop {
                    mut next,
                    mut pending,
                } => {
                    self.drop_from_index(&mut next, &mut pending, job.revision, slice);
                    let full_slice = pending.len() >= slice;
                    // Removing waits for an engine that is behind; writes go first.
                    let behind = self.backend.is_full();
                    if !behind {
                        self.drop_from_engine(pending.drain(..slice.min(pending.len())));
                    }
                    if next.is_none() && pending.is_empty() {
                        self.finish_compaction(job.revision, job.previous, job.hash);
                        return Ok(Progress::Finished);
                    }
                    job.phase = Phase::Drop { next, pending };
                    if full_slice || behind {
                        return Ok(Progress::Continue(job));
                    }
                    continue;
                }
            };
        }
    }

    /// Takes out of the index what no read at `revision` or later can see, until `wanted` revisions are `pending`.
    fn drop_from_index(
        &self,
        next: &mut Option<Box<[u8]>>,
        pending: &mut VecDeque<(Revision, Change)>,
        revision: i64,
        wanted: usize,
    ) {
        while pending.len() < wanted
            && let Some(from) = next
        {
            let mut dropped = Vec::new();
            *next = self
                .index
                .write()
                .compact(from, revision, SLICE_KEYS, &mut dropped);
            pending.extend(dropped.iter().flat_map(Dropped::iter));
        }
    }

    /// Removes value and index record of each revision, in one batch.
    fn drop_from_engine(&self, revisions: impl ExactSizeIterator<Item = (Revision, Change)>) {
        let removed = revisions.len() as u64;
        let deletes = revisions.flat_map(|(revision, change)| {
            let key = Bytes::copy_from_slice(&revision.key(change));
            [
                Op::Delete(Keyspace::Rev, key.clone()),
                Op::Delete(Keyspace::Index, key),
            ]
        });
        self.backend.write(deletes.collect());
        self.compactor.removed.fetch_add(removed, Ordering::Relaxed);
    }

    fn finish_compaction(&self, revision: i64, previous: i64, hash: Option<u32>) {
        let finished = Revision::new(revision, 0).key(Change::Put);
        self.backend.write(vec![meta(FINISHED_KEY, &finished)]);
        if let Some(hash) = hash {
            self.hashes.remember(HashKv {
                hash,
                revision,
                compact_revision: previous,
                hash_revision: revision,
            });
        }
        self.compactor.finished.send_replace(revision);
    }
}

impl Job {
    fn new(revision: i64, previous: i64, phase: Phase) -> Job {
        Job {
            revision,
            previous,
            phase,
            hash: None,
        }
    }
}

impl Phase {
    /// The phase that removes, at its beginning.
    fn remove() -> Phase {
        Phase::Drop {
            next: Some(Box::default()),
            pending: VecDeque::new(),
        }
    }
}

impl Compactor {
    pub(crate) fn new(options: StoreOptions, finished: Option<i64>) -> Compactor {
        Compactor {
            options,
            shared: Arc::default(),
            finished: watch::Sender::new(finished.unwrap_or(-1)),
            removed: AtomicU64::new(0),
            thread: Mutex::new(None),
            stepping: Mutex::default(),
        }
    }

    /// Waits for the step under way; no other begins while the guard lives.
    pub(crate) fn pause(&self) -> MutexGuard<'_, ()> {
        self.stepping.lock()
    }

    /// Forgets what is queued: the store was replaced by one with these compactions. Only while paused.
    ///
    /// Who waits for a compaction goes on waiting, since the new store has it too, finished or not.
    pub(crate) fn restart(&self, scheduled: Option<i64>, finished: Option<i64>) {
        self.shared.queue.lock().jobs.clear();
        self.finished.send_replace(finished.unwrap_or(-1));
        self.resume(scheduled, finished);
    }

    /// Queues a compaction that was begun and not finished.
    fn resume(&self, scheduled: Option<i64>, finished: Option<i64>) {
        if let Some(revision) = scheduled
            && scheduled > finished
        {
            self.add(Job::new(revision, finished.unwrap_or(-1), Phase::remove()));
        }
    }

    /// Compactions not finished.
    pub(crate) fn pending(&self) -> usize {
        let queue = self.shared.queue.lock();
        queue.jobs.len() + usize::from(queue.working)
    }

    /// Revisions removed since start.
    pub(crate) fn removed(&self) -> u64 {
        self.removed.load(Ordering::Relaxed)
    }

    /// Ends the thread, if there is one, after its current step.
    pub(crate) fn stop(&self) {
        self.shared.queue.lock().stopped = true;
        self.shared.wake.notify_all();
        let thread = self.thread.lock().take();
        if let Some(thread) = thread
            && thread.thread().id() != thread::current().id()
            && thread.join().is_err()
        {
            tracing::error!("the compaction thread panicked");
        }
    }

    fn add(&self, job: Job) {
        self.shared.queue.lock().jobs.push_back(job);
        self.shared.wake.notify_all();
    }

    fn take(&self) -> Option<Job> {
        let mut queue = self.shared.queue.lock();
        let job = queue.jobs.pop_front();
        queue.working |= job.is_some();
        job
    }

    fn put_back(&self, job: Job) {
        let mut queue = self.shared.queue.lock();
        queue.working = false;
        queue.jobs.push_front(job);
    }

    fn finish_one(&self) {
        self.shared.queue.lock().working = false;
    }
}

impl Drop for Store {
    fn drop(&mut self) {
        self.compactor.stop();
    }
}

/// The compaction thread: works while there is a store, and pauses after each step so that writes go first.
fn run(store: &Weak<Store>, shared: &Shared, pause: Duration) {
    loop {
        {
            let mut queue = shared.queue.lock();
            while queue.jobs.is_empty() && !queue.stopped {
                shared.wake.wait(&mut queue);
            }
            if queue.stopped {
                return;
            }
        }
        let Some(store) = store.upgrade() else { return };
        let step = store.compact_step();
        drop(store);
        let pause = match step {
            Ok(_) => pause,
            Err(error) => {
                tracing::error!(%error, "compaction failed, trying again");
                RETRY_PAUSE
            }
        };
        let mut queue = shared.queue.lock();
        if !queue.stopped {
            // A new compaction may cut the pause short, which does no harm.
            shared.wake.wait_for(&mut queue, pause);
        }
    }
}

/// Pause after a step that failed.
const RETRY_PAUSE: Duration = Duration::from_secs(1);
