//! Defragmentation: copy what is alive into a new generation, and swap.
//!
//! Readers and writers go on meanwhile. The log keyspaces are copied through a pinned reader; then, in rounds that get shorter, what
//! was added to them since, and the keys that were deleted. The last round holds up the engine thread, not the writers, whose
//! batches wait in the buffer: it copies the rest and the small keyspaces, commits, names the new generation in
//! CURRENT and swaps the handles. Views opened before keep the old generation and its files alive.
//! The engines' own ways are not used: redb's needs that nobody reads, sled has none.
//! A snapshot that arrives goes before: it replaces what would be copied, by a database without gaps.

use std::collections::BTreeSet;
use std::ops::ControlFlow;
use std::path::Path;
use std::sync::{Arc, Weak};
use std::time::Instant;

use bytes::Bytes;
use tracing::info;

use super::buffer::Log;
use super::committer::{Committer, Slot};
use super::engine::{Changes, Engine};
use super::generation::{Generation, open_engine};
use super::guard::guarded;
use super::view::{Live, Opened};
use super::{Keyspace, db_dir};
use crate::{Error, Result};

/// Cache of the new engine while it is written only: it is opened again, with the real one, before it goes live.
const COPY_CACHE_BYTES: u64 = 8 << 20;

/// Bytes and keys of one commit of the copy. Small, so that its fsyncs do not stall those of the log for long.
const COPY_BYTES_MAX: usize = 2 << 20;
const COPY_KEYS_MAX: usize = 2000;

/// A round which copied fewer keys than this is short enough for the next one to be the last.
const LAST_ROUND_KEYS_MAX: usize = 2000;

/// Under constant writing faster than the copy the rounds do not get shorter; then the last one takes longer.
const ROUNDS_MAX: usize = 10;

/// Log keys that were changed otherwise than by appending, since the last round's reader was pinned.
pub(crate) type Touched = BTreeSet<(Keyspace, Vec<u8>)>;

impl Committer {
    /// Copies the database into a new generation and goes on with that.
    ///
    /// Needs as much free space as the live content. On an error before the swap the old generation stays in use:
    /// [`Error::SnapshotArriving`], at once, while there is such a one.
    pub(crate) fn defragment(&self) -> Result<()> {
        let Some(member_dir) = self.member_dir.clone() else {
            return Ok(());
        };
        let _one_at_a_time = self.defragmenting.lock();
        let start = Instant::now();
        let before = *self.sizes.lock();
        let old = {
            let mut slot = self.slot.lock();
            self.check_undisturbed()?;
            slot.touched = Some(Touched::new());
            Arc::downgrade(&slot.opened)
        };
        let result = self.copy_and_swap(&member_dir, &old);
        self.slot.lock().touched = None;
        result?;
        let after = *self.sizes.lock();
        info!(
            took_ms = start.elapsed().as_millis() as u64,
            before = before.on_disk,
            after = after.on_disk,
            "defragmented"
        );
        Ok(())
    }

    fn copy_and_swap(&self, member_dir: &Path, old: &Weak<Opened>) -> Result<()> {
        let generation = Generation::create(member_dir, self.kind, self.stagings.next_number())?;
        let result = self
            .copy_in_rounds(&generation)
            .and_then(|copy| Ok((open_engine(&generation, self.options.cache_bytes)?, copy)));
        let (engine, copy) = match result {
            Ok(copied) => copied,
            Err(error) => {
                generation.remove();
                return Err(error);
            }
        };
        let opened = Arc::new(Opened {
            engine,
            generation: Some(generation),
        });
        let generation = opened.generation.as_ref().expect("it was just put there");
        let mut slot = self.slot.lock();
        let copied = self
            .check_unreplaced(&slot, old)
            .and_then(|()| copy.last_round(&mut slot, opened.engine.as_ref()))
            .and_then(|()| generation.prepare_current())
            .and_then(|()| opened.reader());
        let live = match copied {
            Ok(live) => Arc::new(live),
            Err(error) => {
                generation.supersede();
                return Err(error);
            }
        };
        if let Err(error) = generation.make_current(member_dir) {
            // CURRENT may name either: going on with the old one could lose what is committed from now on.
            drop(slot);
            self.fail(&error);
            return Err(error);
        }
        *self.sizes.lock() = opened.sizes();
        let old = std::mem::replace(&mut slot.opened, opened);
        let old_live = std::mem::replace(&mut self.state.write().live, live);
        if let Some(generation) = &old.generation {
            generation.supersede();
        }
        drop(slot);
        drop(old_live);
        drop(old);
        Ok(())
    }

    /// Copies the log keyspaces while commits go on, until little is left.
    fn copy_in_rounds(&self, generation: &Generation) -> Result<LogCopy<'_>> {
        let engine = open_engine(generation, COPY_CACHE_BYTES)?;
        let mut copy = LogCopy {
            committer: self,
            last_keys: Default::default(),
        };
        for _ in 0..ROUNDS_MAX {
            let (source, touched) = {
                let mut slot = self.slot.lock();
                (
                    slot.opened.pin()?,
                    std::mem::take(slot.touched.get_or_insert_default()),
                )
            };
            let keys = copy.round(&source, &touched, engine.as_ref())?;
            if keys <= LAST_ROUND_KEYS_MAX {
                break;
            }
        }
        Ok(copy)
    }

    /// Whether a copy is of use: commits go on, and no snapshot is on its way.
    fn check_undisturbed(&self) -> Result<()> {
        if self.stagings.are_under_way() {
            return Err(Error::SnapshotArriving);
        }
        self.control.lock().failed.clone().map_or(Ok(()), Err)
    }

    /// Whether what was copied, `old`, is what is live.
    fn check_unreplaced(&self, slot: &Slot, old: &Weak<Opened>) -> Result<()> {
        if !std::ptr::eq(Arc::as_ptr(&slot.opened), old.as_ptr()) {
            return Err(Error::SnapshotArriving);
        }
        self.check_undisturbed()
    }
}

/// How far the log keyspaces have been copied.
struct LogCopy<'a> {
    committer: &'a Committer,
    last_keys: [Option<Bytes>; Keyspace::LOGS],
}

impl LogCopy<'_> {
    /// Copies what `source` has above the last copied keys, and brings the `touched` keys to its state; returns the
    /// number of keys written.
    fn round(&mut self, source: &Live, touched: &Touched, engine: &dyn Engine) -> Result<usize> {
        let mut keys = 0;
        for keyspace in Keyspace::ALL {
            if keyspace.is_log() {
                keys += self.append(source, keyspace, engine)?;
            }
        }
        let changes: Vec<(Keyspace, Bytes, Option<Bytes>)> = touched
            .iter()
            .map(|(keyspace, key)| {
                Ok((
                    *keyspace,
                    Bytes::copy_from_slice(key),
                    source.get(*keyspace, key)?,
                ))
            })
            .collect::<Result<_>>()?;
        for part in changes.chunks(COPY_KEYS_MAX) {
            commit_others(source.file(), engine, part)?;
        }
        Ok(keys + touched.len())
    }

    fn append(&mut self, source: &Live, keyspace: Keyspace, engine: &dyn Engine) -> Result<usize> {
        let log_number = keyspace.log().expect("called for log keyspaces");
        let mut keys = 0;
        loop {
            self.committer.check_undisturbed()?;
            let mut log = Log::default();
            let mut bytes = 0;
            // The last copied key itself would be the first one found.
            let last_key = self.last_keys[log_number].clone();
            source.scan(
                keyspace,
                last_key.as_deref().unwrap_or(b""),
                None,
                &mut |key, value| {
                    if last_key.as_deref() != Some(key) {
                        bytes += key.len() + value.len();
                        log.push(Bytes::copy_from_slice(key), Bytes::copy_from_slice(value));
                    }
                    if bytes >= COPY_BYTES_MAX || log.len() >= COPY_KEYS_MAX {
                        ControlFlow::Break(())
                    } else {
                        ControlFlow::Continue(())
                    }
                },
            )?;
            let Some(last_key) = log.last_key() else {
                return Ok(keys);
            };
            self.last_keys[log_number] = Some(last_key.clone());
            keys += log.len();
            let changes = Changes {
                appended: vec![(keyspace, &log)],
                others: Vec::new(),
            };
            guarded(source.file(), || engine.add(&changes))?;
        }
    }

    /// Copies all that is left. The caller holds the slot, so nothing is committed meanwhile.
    fn last_round(mut self, slot: &mut Slot, engine: &dyn Engine) -> Result<()> {
        let source = slot.opened.pin()?;
        let touched = std::mem::take(slot.touched.get_or_insert_default());
        self.round(&source, &touched, engine)?;
        let mut small = Vec::new();
        for keyspace in Keyspace::ALL {
            if keyspace.is_log() {
                continue;
            }
            source.scan(keyspace, b"", None, &mut |key, value| {
                small.push((
                    keyspace,
                    Bytes::copy_from_slice(key),
                    Some(Bytes::copy_from_slice(value)),
                ));
                ControlFlow::Continue(())
            })?;
        }
        // Twice: an engine that comes back one commit older must still name the applied index.
        commit_others(source.file(), engine, &small)?;
        commit_others(source.file(), engine, &small)
    }
}

fn commit_others(
    file: &Path,
    engine: &dyn Engine,
    changes: &[(Keyspace, Bytes, Option<Bytes>)],
) -> Result<()> {
    let changes = Changes {
        appended: Vec::new(),
        others: changes
            .iter()
            .map(|(keyspace, key, value)| (*keyspace, key, value.as_ref()))
            .collect(),
    };
    guarded(file, || engine.commit(&changes))
}

/// The member folder of a generation's folder.
pub(crate) fn member_dir_of(generation: &Generation) -> Option<std::path::PathBuf> {
    let db = generation.dir().parent()?;
    let member_dir = db.parent()?;
    debug_assert_eq!(db, db_dir(member_dir));
    Some(member_dir.to_path_buf())
}
