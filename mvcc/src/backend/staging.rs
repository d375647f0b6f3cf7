//! Replacing the whole database by another content: build a generation beside the live one, and swap.
//!
//! ```text
//! stage()         member/db/<n+1>/ is made, marked INCOMPLETE; CURRENT names <n>
//! put() ...       what it shall contain is committed to it, part by part
//! finish()        its last commit is made twice, and it is opened as it will be used
//! make_current()  no commit runs from here on; CURRENT names <n+1>
//! swap()          readers see it; what was buffered for <n> is forgotten
//! ```
//! A crash before CURRENT is replaced leaves the old database, one after it the new one; there is nothing between.
//! Readers and writers of the old one go on until the switch, and open views keep it after.

use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::Ordering;

use bytes::Bytes;
use parking_lot::MutexGuard;

use super::buffer::Log;
use super::committer::{Committer, Slot};
use super::engine::{Changes, Engine, damage};
use super::generation::{Generation, open_engine};
use super::guard::guarded;
use super::view::{Live, Opened, View};
use super::{Backend, CONSISTENT_INDEX_KEY, Keyspace, kill_point, stored_applied_index};
use crate::Result;

/// Cache of the new engine while it is written only: it is opened again, with the real one, before it goes live.
const STAGING_CACHE_BYTES: u64 = 8 << 20;

/// Bytes and keys of one commit. Small, so that its fsyncs do not stall those of the log for long.
const STAGED_BYTES_MAX: usize = 4 << 20;
const STAGED_KEYS_MAX: usize = 4000;

/// A generation under construction. Dropping it removes its files.
pub(crate) struct Staging<'a> {
    committer: &'a Committer,
    built: Built,
    log_keyspace: Keyspace,
    log: Log,
    others: Vec<(Keyspace, Bytes, Option<Bytes>)>,
    keys: usize,
    bytes: usize,
    applied: Option<Bytes>,
    /// A defragmentation makes generations too.
    _one_at_a_time: MutexGuard<'a, ()>,
}

/// A generation that is complete and not live yet. Dropping it removes its files.
pub(crate) struct Staged<'a> {
    committer: &'a Committer,
    opened: Option<Arc<Opened>>,
    applied: u64,
    _one_at_a_time: MutexGuard<'a, ()>,
}

/// An engine and its files, which go with it unless they are taken out.
struct Built {
    engine: Option<Arc<dyn Engine>>,
    generation: Option<Generation>,
}

impl Backend {
    /// Begins a database that may take the place of this one. Waits for a defragmentation to end.
    pub(crate) fn stage(&self) -> Result<Staging<'_>> {
        let committer = &*self.committer;
        let one_at_a_time = committer.defragmenting.lock();
        let (number, without_files) = {
            let slot = committer.slot.lock();
            let live = &slot.opened;
            (
                live.generation.as_ref().map_or(0, Generation::number) + 1,
                live.engine.stage_without_files(),
            )
        };
        let mut built = Built {
            engine: without_files,
            generation: None,
        };
        if let Some(member_dir) = &committer.member_dir {
            let generation = Generation::create(member_dir, committer.kind, number)?;
            let generation = built.generation.insert(generation);
            built.engine = Some(open_engine(generation, STAGING_CACHE_BYTES)?);
        }
        Ok(Staging {
            committer,
            built,
            log_keyspace: Keyspace::Rev,
            log: Log::default(),
            others: Vec::new(),
            keys: 0,
            bytes: 0,
            applied: None,
            _one_at_a_time: one_at_a_time,
        })
    }
}

impl<'a> Staging<'a> {
    /// Adds a key. The keys of a log keyspace come together and ascend, and each key comes once.
    pub(crate) fn put(&mut self, keyspace: Keyspace, key: Bytes, value: Bytes) -> Result<()> {
        self.keys += 1;
        self.bytes += key.len() + value.len();
        if keyspace.is_log() {
            if keyspace != self.log_keyspace {
                self.commit()?;
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
            self.commit()?;
        }
        Ok(())
    }

    /// Makes everything durable and opens it as it will be used. It must name an applied index.
    pub(crate) fn finish(mut self) -> Result<Staged<'a>> {
        self.commit()?;
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
        self.commit()?;
        let Staging {
            committer,
            mut built,
            _one_at_a_time,
            ..
        } = self;
        if let Some(generation) = &built.generation {
            // Closed first: an engine's files have one handle.
            built.engine = None;
            built.engine = Some(open_engine(generation, committer.options.cache_bytes)?);
        }
        let opened = Arc::new(built.take());
        let applied = stored_applied_index(&opened.reader()?)?;
        kill_point();
        Ok(Staged {
            committer,
            opened: Some(opened),
            applied,
            _one_at_a_time,
        })
    }

    fn commit(&mut self) -> Result<()> {
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
        guarded(self.file(), || engine.commit(&changes))?;
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

impl<'a> Staged<'a> {
    /// The applied index that it contains.
    pub(crate) fn applied(&self) -> u64 {
        self.applied
    }

    /// All of it.
    pub(crate) fn view(&self) -> Result<View> {
        let opened = self.opened.as_ref().expect("taken by the switch alone");
        Ok(View::new(Vec::new(), Arc::new(opened.pin()?)))
    }

    /// Makes this the database that the next start finds; [`Switch::swap`] makes it the one that is read.
    ///
    /// Nothing is committed until then. On an error nothing is committed any more: which database the next start
    /// finds is not known.
    pub(crate) fn make_current(mut self) -> Result<Switch<'a>> {
        let committer = self.committer;
        let opened = self.opened.take().expect("taken by the switch alone");
        let slot = committer.slot.lock();
        if let Some(error) = committer.control.lock().failed.clone() {
            return Err(error);
        }
        let made = match (&opened.generation, &committer.member_dir) {
            (Some(generation), Some(member_dir)) => generation.make_current(member_dir),
            (_, None) | (None, _) => {
                opened.engine.make_current_without_files();
                Ok(())
            }
        };
        match made.and_then(|()| opened.reader()) {
            Ok(live) => Ok(Switch {
                committer,
                live: Arc::new(live),
                opened,
                applied: self.applied,
                slot,
            }),
            Err(error) => {
                drop(slot);
                committer.fail(&error);
                Err(error)
            }
        }
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

    fn take(&mut self) -> Opened {
        Opened {
            engine: self.engine(),
            generation: self.generation.take(),
        }
    }
}

impl Drop for Built {
    fn drop(&mut self) {
        self.engine = None;
        if let Some(generation) = self.generation.take() {
            generation.remove();
        }
    }
}

impl Drop for Staged<'_> {
    fn drop(&mut self) {
        // A view of it may be left; the files go with that.
        if let Some(opened) = self.opened.take()
            && let Some(generation) = &opened.generation
        {
            generation.supersede();
        }
    }
}
