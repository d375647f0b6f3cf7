//! Replacing the whole database by another content: build a generation beside the live one, and swap.
//!
//! ```text
//! stage()         member/db/<n+1>/ is made, marked INCOMPLETE; CURRENT names <n>
//! put() ...       what it shall contain is added to it, part by part
//! finish()        its last commit is made twice, and it is opened as it will be used; <n+1>/CURRENT is written
//! make_current()  the log has what it contains; no commit runs from here on; CURRENT names <n+1>
//! swap()          readers see it; what was buffered for <n> is forgotten
//! ```
//! A crash before CURRENT is replaced leaves the old database, one after it the new one; there is nothing between.
//! Readers and writers of the old one go on until the switch, and open views keep it after.
//!
//! A generation may be under construction for minutes, while its bytes arrive. It holds no handle of the backend: that may
//! be closed meanwhile, and then the files stay for the next start to remove. While there is one, nothing is defragmented.

use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, AtomicUsize, Ordering};

use bytes::Bytes;
use parking_lot::MutexGuard;
use tracing::warn;

use super::buffer::Log;
use super::committer::{Committer, Slot};
use super::engine::{Changes, Engine, damage};
use super::generation::{Generation, open_engine};
use super::guard::guarded;
use super::view::{Live, Opened, View};
use super::{Backend, CONSISTENT_INDEX_KEY, Keyspace, kill_point, stored_applied_index};
use crate::{Error, Result};

/// Cache of the new engine while it is written only: it is opened again, with the real one, before it goes live.
///
/// redb writes pages twice that do not stay in it until their commit, and a commit of 4 MiB may need 8 MiB of pages.
const STAGING_CACHE_BYTES: u64 = 32 << 20;

/// Bytes and keys of one commit. Small, so that its fsyncs do not stall those of the log for long.
const STAGED_BYTES_MAX: usize = 4 << 20;
const STAGED_KEYS_MAX: usize = 4000;

/// What a backend knows of generations under construction, and they of it.
pub(crate) struct Stagings {
    under_way: AtomicUsize,
    /// The backend is closed; another one may have its folder.
    closed: AtomicBool,
    last_number: AtomicU64,
}

/// A generation under construction. Dropping it removes its files.
pub(crate) struct Staging {
    built: Built,
    cache_bytes: u64,
    log_keyspace: Keyspace,
    log: Log,
    others: Vec<(Keyspace, Bytes, Option<Bytes>)>,
    keys: usize,
    bytes: usize,
    applied: Option<Bytes>,
}

/// A generation that is complete and not live yet. Dropping it removes its files.
pub(crate) struct Staged {
    opened: Option<Arc<Opened>>,
    applied: u64,
    under_way: UnderWay,
}

/// An engine and its files, which go with it unless they are taken out.
struct Built {
    engine: Option<Arc<dyn Engine>>,
    generation: Option<Generation>,
    under_way: Option<UnderWay>,
}

/// One of the [`Stagings`], counted until it is dropped.
struct UnderWay(Arc<Stagings>);

impl Stagings {
    /// None yet, and generation `live` is the newest.
    pub(crate) fn after(live: u64) -> Stagings {
        Stagings {
            under_way: AtomicUsize::new(0),
            closed: AtomicBool::new(false),
            last_number: AtomicU64::new(live),
        }
    }

    /// A number that no generation has had since the backend was opened.
    pub(crate) fn next_number(&self) -> u64 {
        self.last_number.fetch_add(1, Ordering::Relaxed) + 1
    }

    /// Whether a database is being made that will take the live one's place.
    pub(crate) fn are_under_way(&self) -> bool {
        self.under_way.load(Ordering::SeqCst) > 0
    }

    /// Leaves all files alone from now on.
    pub(crate) fn close(&self) {
        self.closed.store(true, Ordering::SeqCst);
    }

    fn is_closed(&self) -> bool {
        self.closed.load(Ordering::SeqCst)
    }
}

impl UnderWay {
    fn begin(stagings: &Arc<Stagings>) -> UnderWay {
        stagings.under_way.fetch_add(1, Ordering::SeqCst);
        UnderWay(Arc::clone(stagings))
    }
}

impl Drop for UnderWay {
    fn drop(&mut self) {
        self.0.under_way.fetch_sub(1, Ordering::SeqCst);
    }
}

impl Backend {
    /// Begins a database that may take the place of this one. Ends a defragmentation that is under way.
    pub(crate) fn stage(&self) -> Result<Staging> {
        let committer = &*self.committer;
        let mut built = Built {
            engine: None,
            generation: None,
            under_way: Some(UnderWay::begin(&committer.stagings)),
        };
        match &committer.member_dir {
            Some(member_dir) => {
                let number = committer.stagings.next_number();
                let generation = Generation::create(member_dir, committer.kind, number)?;
                let generation = built.generation.insert(generation);
                built.engine = Some(open_engine(generation, STAGING_CACHE_BYTES)?);
            }
            None => {
                let live = Arc::clone(&committer.slot.lock().opened);
                built.engine = live.engine.stage_without_files();
            }
        }
        Ok(Staging {
            built,
            cache_bytes: committer.options.cache_bytes,
            log_keyspace: Keyspace::Rev,
            log: Log::default(),
            others: Vec::new(),
            keys: 0,
            bytes: 0,
            applied: None,
        })
    }
}

impl Staging {
    /// Adds a key. The keys of a log keyspace come together and ascend, and each key comes once.
    pub(crate) fn put(&mut self, keyspace: Keyspace, key: Bytes, value: Bytes) -> Result<()> {
        self.keys += 1;
        self.bytes += key.len() + value.len();
        if keyspace.is_log() {
            if keyspace != self.log_keyspace {
                self.commit(Step::Part)?;
                self.log_keyspace = keyspace;
            }
            self.log.push(key, value);
        } else {
            if keyspace == Keyspace::Meta && key == CONSISTENT_INDEX_KEY {
                self.applied = Some(value.clone());
            }
            self.others.push((keyspace, key, Some(value)));
        }
        if self.bytes >= STAGED_BYTES_MAX || self.keys >= STAGED_KEYS_MAX {
            self.commit(Step::Part)?;
        }
        Ok(())
    }

    /// Makes everything durable and opens it as it will be used. It must name an applied index.
    pub(crate) fn finish(mut self) -> Result<Staged> {
        self.commit(Step::Whole)?;
        let Some(applied) = self.applied.clone() else {
            return Err(damage(
                self.file(),
                "the new content names no applied index",
            ));
        };
        // Twice: an engine that comes back one commit older must still name the applied index.
        self.others.push((
            Keyspace::Meta,
            Bytes::from_static(CONSISTENT_INDEX_KEY),
            Some(applied),
        ));
        self.commit(Step::Whole)?;
        let Staging {
            mut built,
            cache_bytes,
            ..
        } = self;
        if let Some(generation) = &built.generation {
            // Closed first: an engine's files have one handle.
            built.engine = None;
            built.engine = Some(open_engine(generation, cache_bytes)?);
        }
        let mut staged = built.take();
        let opened = staged.opened();
        staged.applied = stored_applied_index(&opened.reader()?)?;
        if let Some(generation) = &opened.generation {
            generation.prepare_current()?;
        }
        kill_point();
        Ok(staged)
    }

    fn commit(&mut self, step: Step) -> Result<()> {
        self.built.check_open()?;
        if self.keys == 0 && self.others.is_empty() {
            return Ok(());
        }
        self.others
            .sort_unstable_by(|a, b| (a.0, &a.1).cmp(&(b.0, &b.1)));
        let appended = if self.log.len() > 0 {
            vec![(self.log_keyspace, &self.log)]
        } else {
            Vec::new()
        };
        let changes = Changes {
            appended,
            others: self
                .others
                .iter()
                .map(|(keyspace, key, value)| (*keyspace, key, value.as_ref()))
                .collect(),
        };
        let engine = self.built.engine();
        guarded(self.file(), || match step {
            Step::Part => engine.add(&changes),
            Step::Whole => engine.commit(&changes),
        })?;
        kill_point();
        self.log = Log::default();
        self.others.clear();
        self.keys = 0;
        self.bytes = 0;
        Ok(())
    }

    fn file(&self) -> &Path {
        self.built
            .generation
            .as_ref()
            .map_or(Path::new("memory"), Generation::dir)
    }
}

/// What a commit brings to an end.
#[derive(Clone, Copy)]
enum Step {
    Part,
    /// All that was put so far is durable.
    Whole,
}

impl Staged {
    /// The applied index that it contains.
    pub(crate) fn applied(&self) -> u64 {
        self.applied
    }

    /// All of it.
    pub(crate) fn view(&self) -> Result<View> {
        Ok(View::new(Vec::new(), Arc::new(self.opened().pin()?)))
    }

    /// Makes this the database that the next start of `backend`, which began it, finds; [`Switch::swap`] makes it the one
    /// that is read.
    ///
    /// Nothing is committed until then. On an error of the switch nothing is committed any more: which database the
    /// next start finds is not known.
    pub(crate) fn make_current(mut self, backend: &Backend) -> Result<Switch<'_>> {
        let committer = &*backend.committer;
        assert!(
            Arc::ptr_eq(&self.under_way.0, &committer.stagings),
            "a database staged for one backend is installed in another"
        );
        let live = Arc::new(self.opened().reader()?);
        // As before a commit. This member's log may never get this index; what is on its way to it, it has then.
        let gate = committer.hooks.lock().gate.clone();
        if let Some(gate) = gate {
            gate(self.applied);
        }
        let slot = committer.slot.lock();
        if let Some(error) = committer.control.lock().failed.clone() {
            return Err(error);
        }
        let opened = self.opened.take().expect("taken by the switch alone");
        let made = match (&opened.generation, &committer.member_dir) {
            (Some(generation), Some(member_dir)) => generation.make_current(member_dir),
            (_, None) | (None, _) => {
                opened.engine.make_current_without_files();
                Ok(())
            }
        };
        if let Err(error) = made {
            drop(slot);
            committer.fail(&error);
            return Err(error);
        }
        Ok(Switch {
            committer,
            live,
            opened,
            applied: self.applied,
            slot,
        })
    }

    fn opened(&self) -> Arc<Opened> {
        Arc::clone(self.opened.as_ref().expect("taken by the switch alone"))
    }
}

/// A database that CURRENT names and that is not read yet. It must be [swapped](Switch::swap) in.
#[must_use = "CURRENT names it already"]
pub(crate) struct Switch<'a> {
    committer: &'a Committer,
    live: Arc<Live>,
    opened: Arc<Opened>,
    applied: u64,
    slot: MutexGuard<'a, Slot>,
}

impl Switch<'_> {
    /// Lets everyone read the new database. Nobody may write meanwhile; what is buffered and not committed is forgotten.
    pub(crate) fn swap(self) {
        let Switch {
            committer,
            live,
            opened,
            applied,
            mut slot,
        } = self;
        *committer.sizes.lock() = opened.sizes();
        let old = std::mem::replace(&mut slot.opened, opened);
        let (old_live, forgotten) = {
            let mut state = committer.state.write();
            assert!(
                state.committing.is_none(),
                "the database was replaced while a commit was under way"
            );
            let forgotten = std::mem::take(&mut state.active);
            (std::mem::replace(&mut state.live, live), forgotten)
        };
        committer
            .buffered_bytes
            .fetch_sub(forgotten.fill().bytes, Ordering::Relaxed);
        committer.durable_index.store(applied, Ordering::Release);
        committer.safe_purge_index.store(applied, Ordering::Release);
        if let Some(generation) = &old.generation {
            generation.supersede();
        }
        drop(slot);
        // Freed outside the lock; the files of the old generation go with its last view.
        drop((old_live, forgotten, old));
    }
}

impl Built {
    fn engine(&self) -> Arc<dyn Engine> {
        Arc::clone(self.engine.as_ref().expect("open until it is taken out"))
    }

    fn check_open(&self) -> Result<()> {
        let is_closed = |under_way: &UnderWay| under_way.0.is_closed();
        match self.under_way.as_ref().is_some_and(is_closed) {
            true => Err(Error::Closed),
            false => Ok(()),
        }
    }

    fn take(&mut self) -> Staged {
        let opened = Opened {
            engine: self.engine(),
            generation: self.generation.take(),
        };
        self.engine = None;
        Staged {
            opened: Some(Arc::new(opened)),
            applied: 0,
            under_way: self
                .under_way
                .take()
                .expect("counted until it is taken out"),
        }
    }
}

impl Drop for Built {
    fn drop(&mut self) {
        let is_open = self.check_open().is_ok();
        self.engine = None;
        if let Some(generation) = self.generation.take()
            && is_open
        {
            generation.remove();
        }
    }
}

impl Drop for Staged {
    fn drop(&mut self) {
        let Some(opened) = self.opened.take() else {
            return;
        };
        // A view of it may be left; the files go with that.
        if let Some(generation) = &opened.generation
            && !self.under_way.0.is_closed()
        {
            generation.supersede();
        }
        // An engine may write when it is closed, and this may be a thread that must not wait.
        let close = move || drop(opened);
        if std::thread::Builder::new()
            .name("close-staged".to_owned())
            .spawn(close)
            .is_err()
        {
            warn!("no thread to close an unused database, which was closed at once");
        }
    }
}
