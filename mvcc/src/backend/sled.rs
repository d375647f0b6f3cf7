//! The sled 0.34.7 engine, used so that it keeps what it was given.
//!
//! One tree; every key has one byte in front. Besides the keyspaces there are
//! ```text
//! 'K' ...                    pieces of large values (see chunk)
//! 'P' "high"                 the greatest key of each log keyspace that a finished commit contains
//! 'J' commit(8) part(4)      keys which that commit deletes from log keyspaces and which may still be there
//! ```
//! sled makes batches of one tree durable in the order in which they were applied, but large batches cost gigabytes of memory. So
//! a commit is split: new log keys go first in small batches; then one final batch carries every other change, the applied index,
//! the new `high` and the journal of deletions; deletions of log keys come last. An open after a crash removes log keys above `high`
//! and repeats the journal: the content is exactly that of the applied index. sled's flush is no durable flush on
//! Linux: each is followed by an fdatasync of our own. sled has no snapshots: a pinned reader holds a copy of the small keyspaces,
//! is bounded by `high` in the logs, and while one lives no log key is physically deleted. The final batch cannot be split: one
//! commit should not change megabytes of the small keyspaces.

use std::collections::BTreeMap;
use std::fs::{self, File, OpenOptions};
use std::ops::{Bound, ControlFlow};
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};

use ::sled::{Batch, Config, Db, IVec, Mode};
use parking_lot::{Mutex, RwLock};
use tracing::{info, warn};

use super::chunk::{self, Stored};
use super::engine::{Changes, Each, Engine, Reader, damage, io_error};
use super::generation::sync_dir;
use super::guard::guarded;
use super::{CONSISTENT_INDEX_KEY, Keyspace, checksum};
use crate::{Error, Result};

/// Twice the default, so that no page of sixteen chunks ever becomes a blob, which sled never syncs; not more, since
/// larger ones cost memory. Fixed at creation: sled keeps it in its own configuration file and refuses another.
const SEGMENT_BYTES: usize = 2 << 20;

/// Bounds of the batches that a commit is split into.
const BATCH_OPS_MAX: usize = 100;
const BATCH_BYTES_MAX: usize = 256 << 10;

/// Bytes of sled's log, estimated generously, after which it is synced even in the middle of a commit.
///
/// sled frees a segment two segments after it moved the last page out of it, and then overwrites it, though it has synced nothing
/// in between: a power cut could keep the overwriting and lose the moved page. With a sync at least every two
/// segments the page is durable first. Half of one segment leaves a margin of eight.
const UNSYNCED_LOG_BYTES_MAX: u64 = SEGMENT_BYTES as u64 / 2;

/// Bounds of what a scan takes at a time.
const SLICE_KEYS_MAX: usize = 256;
const SLICE_BYTES_MAX: usize = 1 << 20;

/// How long an open waits for an earlier handle of this process to let go of the file lock.
const LOCK_WAIT: Duration = Duration::from_secs(10);

const HIGH_KEY: &[u8] = b"Phigh";
const JOURNAL: u8 = b'J';
const DATA_FILE: &str = "db";
const ACKNOWLEDGED_FILE: &str = "acknowledged";

pub(crate) struct SledEngine {
    shared: Arc<Shared>,
}

struct Shared {
    db: GuardedDb,
    dir: PathBuf,
    data: File,
    acknowledged: Mutex<Acknowledged>,
    state: RwLock<State>,
    /// Held for writing while pieces of values that may be read are replaced or removed.
    pieces: RwLock<()>,
    live_bytes: AtomicU64,
    /// Estimate of the log that was written since the last sync.
    unsynced_log_bytes: AtomicU64,
}

/// A handle whose drop, which flushes, cannot let a panic out.
struct GuardedDb {
    db: Option<Db>,
    dir: PathBuf,
}

impl std::ops::Deref for GuardedDb {
    type Target = Db;

    fn deref(&self) -> &Db {
        self.db
            .as_ref()
            .expect("the database is there until the drop")
    }
}

impl Drop for GuardedDb {
    fn drop(&mut self) {
        let db = self.db.take();
        let closed = guarded(&self.dir, || {
            drop(db);
            Ok(())
        });
        if let Err(error) = closed {
            warn!(%error, "closing the database failed");
        }
    }
}

#[derive(Default)]
struct State {
    /// Finished commits since the open.
    commit: u64,
    high: High,
    /// Log keys, keyspace in front, that are deleted and physically still there, with the commit that deleted them.
    hidden: BTreeMap<Vec<u8>, u64>,
    /// What the journal says has to be removed, by commit.
    journal: BTreeMap<u64, Vec<Vec<u8>>>,
    /// Pinned readers by the commit that they see.
    pins: BTreeMap<u64, usize>,
    applied: u64,
}

/// The greatest key of each log keyspace, by [`Keyspace::log`].
type High = [Option<Vec<u8>>; Keyspace::LOGS];

impl SledEngine {
    /// Opens the database in `dir`, making it if the folder has none, and reads all of it.
    ///
    /// sled panics on most damage: this happens on a thread of its own, marked for the panic hook.
    pub(crate) fn open(dir: &Path, cache_bytes: u64) -> Result<SledEngine> {
        let owned_dir = dir.to_path_buf();
        std::thread::Builder::new()
            .name("sled-open".to_owned())
            .spawn(move || guarded(&owned_dir, || open_and_scan(&owned_dir, cache_bytes)))
            .map_err(|error| io_error(dir, &error))?
            .join()
            .unwrap_or_else(|_| Err(damage(dir, "the storage engine's thread panicked")))
    }
}

fn open_and_scan(dir: &Path, cache_bytes: u64) -> Result<SledEngine> {
    let is_new = !dir.join(DATA_FILE).exists();
    remove_unfinished_snapshots(dir)?;
    let db = open_db(dir, cache_bytes)?;
    let data = OpenOptions::new()
        .read(true)
        .open(dir.join(DATA_FILE))
        .map_err(|error| io_error(dir, &error))?;
    let acknowledged = if is_new {
        Acknowledged::create(dir)?
    } else {
        Acknowledged::open(dir)?
    };
    let shared = Shared {
        db: GuardedDb {
            db: Some(db),
            dir: dir.to_path_buf(),
        },
        dir: dir.to_path_buf(),
        data,
        acknowledged: Mutex::new(acknowledged),
        state: RwLock::default(),
        pieces: RwLock::default(),
        live_bytes: AtomicU64::new(0),
        unsynced_log_bytes: AtomicU64::new(0),
    };
    shared.check_no_blobs()?;
    shared.finish_interrupted_commit()?;
    shared.verify_all()?;
    shared.flush()?;
    if is_new {
        sync_all_files(dir)?;
    }
    shared.check_acknowledged()?;
    Ok(SledEngine {
        shared: Arc::new(shared),
    })
}

/// Removes what a crash during an open left of sled's snapshot of its page table, which sled would read as a finished one and
/// find damaged. It is only a shortcut: without it sled reads its log.
fn remove_unfinished_snapshots(dir: &Path) -> Result<()> {
    for entry in fs::read_dir(dir).map_err(|error| io_error(dir, &error))? {
        let path = entry.map_err(|error| io_error(dir, &error))?.path();
        if path
            .extension()
            .is_some_and(|extension| extension == "generating")
        {
            match fs::remove_file(&path) {
                Ok(()) => {}
                // Finished and renamed by the threads of a handle that was just dropped.
                Err(error) if error.kind() == std::io::ErrorKind::NotFound => {}
                Err(error) => return Err(io_error(&path, &error)),
            }
        }
    }
    Ok(())
}

fn open_db(dir: &Path, cache_bytes: u64) -> Result<Db> {
    let config = Config::new()
        .path(dir)
        .segment_size(SEGMENT_BYTES)
        .flush_every_ms(None)
        .cache_capacity(cache_bytes)
        .mode(Mode::HighThroughput)
        .use_compression(false);
    let start = Instant::now();
    loop {
        match config.open() {
            Ok(db) => return Ok(db),
            // The threads of a handle which was just dropped may hold the file a moment longer, and rename or remove a
            // snapshot that this open has listed.
            Err(::sled::Error::Io(error))
                if (is_locked(&error) || error.kind() == std::io::ErrorKind::NotFound)
                    && start.elapsed() < LOCK_WAIT =>
            {
                std::thread::sleep(Duration::from_millis(5));
            }
            Err(::sled::Error::Io(error)) if is_locked(&error) => {
                return Err(Error::Io {
                    file: dir.to_path_buf(),
                    reason: format!("another process has it open ({error})"),
                    no_space: false,
                });
            }
            Err(error) => return Err(sled_error(dir, error)),
        }
    }
}

fn is_locked(error: &std::io::Error) -> bool {
    error.kind() == std::io::ErrorKind::WouldBlock
        || error.to_string().contains("could not acquire lock")
}

impl Engine for SledEngine {
    fn commit(&self, changes: &Changes<'_>) -> Result<()> {
        self.shared.commit(changes)
    }

    fn reader(&self) -> Result<Arc<dyn Reader>> {
        Ok(Arc::new(LiveReader {
            shared: Arc::clone(&self.shared),
        }))
    }

    fn pin(&self) -> Result<Arc<dyn Reader>> {
        let (commit, high) = {
            let mut state = self.shared.state.write();
            let commit = state.commit;
            *state.pins.entry(commit).or_default() += 1;
            (commit, state.high.clone())
        };
        // From here on its drop takes the pin back.
        let mut reader = PinnedReader {
            shared: Arc::clone(&self.shared),
            commit,
            high,
            small: Vec::new(),
        };
        for keyspace in Keyspace::ALL {
            let mut copy = BTreeMap::new();
            if !keyspace.is_log() {
                self.shared
                    .scan(keyspace, b"", None, None, &mut |key, sealed| {
                        copy.insert(key.to_vec(), sealed.to_vec());
                        Ok(ControlFlow::Continue(()))
                    })?;
            }
            reader.small.push(copy);
        }
        Ok(Arc::new(reader))
    }

    fn reader_is_pinned(&self) -> bool {
        false
    }

    fn in_use(&self) -> u64 {
        self.shared.live_bytes.load(Ordering::Relaxed)
    }

    /// A log: what died in it is free only when its segment was copied elsewhere.
    fn fills_its_gaps(&self) -> bool {
        false
    }
}

impl Shared {
    fn commit(&self, changes: &Changes<'_>) -> Result<()> {
        let mut live_bytes = self.live_bytes.load(Ordering::Relaxed);
        let (number, mut high, mut applied) = {
            let state = self.state.read();
            (state.commit + 1, state.high.clone(), state.applied)
        };
        let mut sealed = Vec::new();

        let mut batches = Batches::new(self);
        for (keyspace, log) in &changes.appended {
            for (key, value) in log.iter() {
                checksum::seal(key, value, &mut sealed);
                let engine_key = engine_key(*keyspace, key);
                for (piece_key, piece) in chunk::pieces(&engine_key, &sealed) {
                    batches.put(piece_key, piece.to_vec())?;
                }
                batches.put(engine_key, chunk::head(&sealed))?;
                live_bytes += (key.len() + sealed.len()) as u64;
            }
            raise(&mut high, *keyspace, log.last_key().map(|key| &key[..]));
        }
        batches.finish()?;

        let mut last = Batch::default();
        let mut last_bytes = 0;
        let mut deleted = Vec::new();
        let mut removals = Vec::new();
        let mut replaces_pieces = false;
        for (keyspace, key, value) in &changes.others {
            let engine_key = engine_key(*keyspace, key);
            let old_len = if keyspace.is_log() && self.state.read().hidden.contains_key(&engine_key)
            {
                None
            } else {
                self.sealed_len(&engine_key)?
            };
            if let Some(old_len) = old_len {
                live_bytes = live_bytes.saturating_sub((key.len() + old_len) as u64);
            }
            let old_pieces = chunk::keys(
                &engine_key,
                old_len.filter(|len| chunk::needs_chunks(*len)).unwrap_or(0),
            );
            match value {
                None if keyspace.is_log() => {
                    if old_len.is_some() {
                        removals.extend(old_pieces);
                        removals.push(engine_key.clone());
                        deleted.push(engine_key);
                    }
                }
                None => {
                    for piece_key in old_pieces {
                        replaces_pieces = true;
                        last.remove(piece_key);
                    }
                    last.remove(engine_key);
                }
                Some(value) => {
                    checksum::seal(key, value, &mut sealed);
                    for piece_key in old_pieces {
                        replaces_pieces = true;
                        last.remove(piece_key);
                    }
                    for (piece_key, piece) in chunk::pieces(&engine_key, &sealed) {
                        last.insert(piece_key, piece.to_vec());
                    }
                    last.insert(engine_key, chunk::head(&sealed));
                    last_bytes += key.len() + sealed.len();
                    live_bytes += (key.len() + sealed.len()) as u64;
                    raise(&mut high, *keyspace, Some(key));
                    if *keyspace == Keyspace::Meta
                        && *key == CONSISTENT_INDEX_KEY
                        && let Ok(index) = value[..].try_into()
                    {
                        applied = u64::from_be_bytes(index);
                    }
                }
            }
        }
        checksum::seal(
            HIGH_KEY,
            &encode_keys(high.iter().map(|key| key.as_deref().unwrap_or(b""))),
            &mut sealed,
        );
        last.insert(HIGH_KEY, &sealed[..]);
        for (journal_key, journal) in journal_records(number, &removals) {
            checksum::seal(&journal_key, &journal, &mut sealed);
            last_bytes += journal_key.len() + sealed.len();
            last.insert(journal_key, &sealed[..]);
        }
        {
            let _pieces = replaces_pieces.then(|| self.pieces.write());
            self.apply(last, put_log_bytes(last_bytes))?;
        }
        self.flush()?;
        self.acknowledged.lock().write(applied)?;

        let mut state = self.state.write();
        state.commit = number;
        state.high = high;
        state.applied = applied;
        state
            .hidden
            .extend(deleted.into_iter().map(|key| (key, number)));
        if !removals.is_empty() {
            state.journal.insert(number, removals);
        }
        let may_remove = state.pins.is_empty();
        drop(state);
        self.live_bytes.store(live_bytes, Ordering::Relaxed);
        // Pins are made between commits only, so none can come now.
        if may_remove {
            self.remove_deleted()
        } else {
            Ok(())
        }
    }

    /// Removes what the journal names, and then the journal. The removals become durable with the next commit.
    fn remove_deleted(&self) -> Result<()> {
        let journal = std::mem::take(&mut self.state.write().journal);
        for (number, removals) in journal {
            let mut batches = Batches::new(self);
            {
                let _pieces = removals
                    .iter()
                    .any(|key| key[0] == chunk::PREFIX)
                    .then(|| self.pieces.write());
                for key in &removals {
                    batches.remove(key.clone())?;
                }
                for (journal_key, _) in journal_records(number, &removals) {
                    batches.remove(journal_key)?;
                }
                batches.finish()?;
            }
            self.state
                .write()
                .hidden
                .retain(|_, commit| *commit != number);
        }
        Ok(())
    }

    /// Brings the content to the state of the last final batch: see the module's text.
    fn finish_interrupted_commit(&self) -> Result<()> {
        let high: High = match self.db.get(HIGH_KEY).map_err(|error| self.error(error))? {
            None => Default::default(),
            Some(stored) => checksum::open(HIGH_KEY, &stored)
                .and_then(decode_keys)
                .and_then(|keys| keys.try_into().ok())
                .map(|keys: [Vec<u8>; Keyspace::LOGS]| {
                    keys.map(|key| (!key.is_empty()).then_some(key))
                })
                .ok_or_else(|| {
                    damage(
                        &self.dir,
                        "the record of the greatest keys is not what was written",
                    )
                })?,
        };
        let mut removed = 0_usize;
        let mut batches = Batches::new(self);
        let mut last_commit = 0;
        for entry in self.db.scan_prefix([JOURNAL]) {
            let (journal_key, stored) = entry.map_err(|error| self.error(error))?;
            let removals = checksum::open(&journal_key, &stored)
                .and_then(decode_keys)
                .ok_or_else(|| {
                    damage(
                        &self.dir,
                        "the journal of deletions is not what was written",
                    )
                })?;
            removed += removals.len();
            for key in removals {
                batches.remove(key)?;
            }
            batches.remove(journal_key.to_vec())?;
            let commit = journal_key
                .get(1..9)
                .and_then(|number| number.try_into().ok());
            last_commit = last_commit.max(commit.map_or(0, u64::from_be_bytes));
        }
        for keyspace in Keyspace::ALL {
            let Some(log) = keyspace.log() else { continue };
            // Pieces of a log key that is not there any more lie above the greatest key as well.
            for prefix in [vec![keyspace as u8], vec![chunk::PREFIX, keyspace as u8]] {
                let is_piece = prefix.len() == 2;
                let start = [&prefix[..], high[log].as_deref().unwrap_or(b"")].concat();
                for entry in self.db.range(start..).keys() {
                    let key = entry.map_err(|error| self.error(error))?;
                    let Some(rest) = key.strip_prefix(&prefix[..]) else {
                        break;
                    };
                    let log_key = if is_piece {
                        &rest[..rest.len().saturating_sub(4)]
                    } else {
                        rest
                    };
                    if high[log].as_deref().is_none_or(|high| high < log_key) {
                        removed += 1;
                        batches.remove(key.to_vec())?;
                    }
                }
            }
        }
        batches.finish()?;
        if removed > 0 {
            info!(dir = %self.dir.display(), removed, "finished or undid an interrupted commit");
        }
        let mut state = self.state.write();
        state.high = high;
        state.commit = last_commit;
        Ok(())
    }

    /// Reads everything: the integrity check of the start, and the count of live bytes.
    fn verify_all(&self) -> Result<()> {
        let mut live_bytes = 0;
        for keyspace in Keyspace::ALL {
            self.scan(keyspace, b"", None, None, &mut |key, sealed| {
                let value = checksum::open(key, sealed).ok_or_else(|| {
                    damage(
                        &self.dir,
                        format!(
                            "keyspace {}, key {}: the value does not match its checksum",
                            keyspace.name(),
                            key.escape_ascii()
                        ),
                    )
                })?;
                live_bytes += (key.len() + sealed.len()) as u64;
                if keyspace == Keyspace::Meta
                    && key == CONSISTENT_INDEX_KEY
                    && let Ok(index) = value.try_into()
                {
                    self.state.write().applied = u64::from_be_bytes(index);
                }
                Ok(ControlFlow::Continue(()))
            })?;
        }
        self.live_bytes.store(live_bytes, Ordering::Relaxed);
        Ok(())
    }

    /// Refuses a database which went back further than the log can make up for.
    fn check_acknowledged(&self) -> Result<()> {
        let applied = self.state.read().applied;
        let acknowledged = self.acknowledged.lock();
        if applied < acknowledged.previous {
            return Err(damage(
                &self.dir,
                format!(
                    "it contains log index {applied} and had made {} durable before its last commit",
                    acknowledged.previous
                ),
            ));
        }
        if applied < acknowledged.newest {
            warn!(
                dir = %self.dir.display(),
                applied,
                acknowledged = acknowledged.newest,
                "the storage engine lost its last commit; the log has it"
            );
        }
        Ok(())
    }

    /// sled never syncs blobs: a database with one may lose it to a power cut.
    fn check_no_blobs(&self) -> Result<()> {
        let blobs = self.dir.join("blobs");
        let has_one = fs::read_dir(&blobs).is_ok_and(|mut entries| entries.next().is_some());
        if has_one {
            return Err(damage(
                &blobs,
                "it is not empty, and this engine never makes blobs",
            ));
        }
        Ok(())
    }

    /// Applies a batch that makes about `log_bytes` of log, after a sync where that is due.
    fn apply(&self, batch: Batch, log_bytes: u64) -> Result<()> {
        if self.unsynced_log_bytes.load(Ordering::Relaxed) + log_bytes > UNSYNCED_LOG_BYTES_MAX {
            self.flush()?;
        }
        self.unsynced_log_bytes
            .fetch_add(log_bytes, Ordering::Relaxed);
        self.db
            .apply_batch(batch)
            .map_err(|error| self.error(error))
    }

    /// Makes everything that was applied durable.
    fn flush(&self) -> Result<()> {
        self.db.flush().map_err(|error| self.error(error))?;
        self.unsynced_log_bytes.store(0, Ordering::Relaxed);
        self.data
            .sync_data()
            .map_err(|error| io_error(&self.dir, &error))
    }

    /// The sealed value of `engine_key`.
    fn sealed(&self, engine_key: &[u8]) -> Result<Option<IVec>> {
        let Some(stored) = self.db.get(engine_key).map_err(|error| self.error(error))? else {
            return Ok(None);
        };
        match self.parse(engine_key, &stored)? {
            Stored::Whole(sealed) => Ok(Some(stored.subslice(0, sealed.len()))),
            Stored::Chunked(_) => {
                // The pieces could be replaced between two reads: look again while they cannot.
                let _pieces = self.pieces.read();
                let Some(stored) = self.db.get(engine_key).map_err(|error| self.error(error))?
                else {
                    return Ok(None);
                };
                match self.parse(engine_key, &stored)? {
                    Stored::Whole(sealed) => Ok(Some(stored.subslice(0, sealed.len()))),
                    Stored::Chunked(len) => self.join_pieces(engine_key, len).map(Some),
                }
            }
        }
    }

    fn join_pieces(&self, engine_key: &[u8], len: usize) -> Result<IVec> {
        let mut sealed = Vec::with_capacity(len.min(64 << 20));
        for piece_key in chunk::keys(engine_key, len) {
            let piece = self.db.get(piece_key).map_err(|error| self.error(error))?;
            sealed.extend_from_slice(
                &piece.ok_or_else(|| self.key_damage(engine_key, "a piece is missing"))?,
            );
        }
        if sealed.len() == len {
            Ok(sealed.into())
        } else {
            Err(self.key_damage(engine_key, "its pieces have another length"))
        }
    }

    fn sealed_len(&self, engine_key: &[u8]) -> Result<Option<usize>> {
        let Some(stored) = self.db.get(engine_key).map_err(|error| self.error(error))? else {
            return Ok(None);
        };
        Ok(Some(match self.parse(engine_key, &stored)? {
            Stored::Whole(sealed) => sealed.len(),
            Stored::Chunked(len) => len,
        }))
    }

    fn parse<'a>(&self, engine_key: &[u8], stored: &'a [u8]) -> Result<Stored<'a>> {
        Stored::parse(stored)
            .ok_or_else(|| self.key_damage(engine_key, "what is stored has no known form"))
    }

    fn key_damage(&self, engine_key: &[u8], what: &str) -> Error {
        damage(
            &self.dir,
            format!("key {}: {what}", engine_key.escape_ascii()),
        )
    }

    /// Scans one keyspace in slices, seeking anew for each: a long iteration starves under a busy writer. For a pin: what
    /// it sees of a log keyspace.
    fn scan(
        &self,
        keyspace: Keyspace,
        from: &[u8],
        to: Option<&[u8]>,
        pin: Option<(u64, &High)>,
        each: &mut Each<'_>,
    ) -> Result<()> {
        let upper = match to {
            Some(to) => engine_key(keyspace, to),
            None => vec![keyspace as u8 + 1],
        };
        let mut next = Some(Bound::Included(engine_key(keyspace, from)));
        while let Some(lower) = next.take() {
            let mut slice = Vec::new();
            let (mut keys, mut bytes) = (0, 0);
            for entry in self
                .db
                .range::<Vec<u8>, _>((lower, Bound::Excluded(upper.clone())))
            {
                let (key, stored) = entry.map_err(|error| self.error(error))?;
                bytes += stored.len();
                keys += 1;
                let is_last = keys == SLICE_KEYS_MAX || bytes >= SLICE_BYTES_MAX;
                if is_last {
                    next = Some(Bound::Excluded(key.to_vec()));
                }
                if self.sees(keyspace, &key, pin) {
                    slice.push((key, stored));
                }
                if is_last {
                    break;
                }
            }
            for (key, stored) in slice {
                let flow = match self.parse(&key, &stored)? {
                    Stored::Whole(sealed) => each(&key[1..], sealed)?,
                    Stored::Chunked(_) => match self.sealed(&key)? {
                        Some(sealed) => each(&key[1..], &sealed)?,
                        None => ControlFlow::Continue(()),
                    },
                };
                if flow.is_break() {
                    return Ok(());
                }
            }
        }
        Ok(())
    }

    /// Whether a log key that is in the tree exists, now or for a pin. Keys of other keyspaces exist.
    fn sees(&self, keyspace: Keyspace, engine_key: &[u8], pin: Option<(u64, &High)>) -> bool {
        let Some(log) = keyspace.log() else {
            return true;
        };
        let deleted_by = self.state.read().hidden.get(engine_key).copied();
        match pin {
            None => deleted_by.is_none(),
            Some((commit, high)) => {
                let is_committed = high[log]
                    .as_deref()
                    .is_some_and(|high| &engine_key[1..] <= high);
                is_committed && deleted_by.is_none_or(|deletion| commit < deletion)
            }
        }
    }

    fn error(&self, error: ::sled::Error) -> Error {
        sled_error(&self.dir, error)
    }
}

/// Reads the newest commit, and more.
struct LiveReader {
    shared: Arc<Shared>,
}

impl Reader for LiveReader {
    fn get(
        &self,
        keyspace: Keyspace,
        key: &[u8],
        found: &mut dyn FnMut(&[u8]) -> Result<()>,
    ) -> Result<()> {
        let engine_key = engine_key(keyspace, key);
        if !self.shared.sees(keyspace, &engine_key, None) {
            return Ok(());
        }
        let sealed = self.shared.sealed(&engine_key)?;
        sealed.map_or(Ok(()), |sealed| found(&sealed))
    }

    fn scan(
        &self,
        keyspace: Keyspace,
        from: &[u8],
        to: Option<&[u8]>,
        each: &mut Each<'_>,
    ) -> Result<()> {
        self.shared.scan(keyspace, from, to, None, each)
    }

    fn file(&self) -> &Path {
        &self.shared.dir
    }
}

/// Reads exactly one commit.
struct PinnedReader {
    shared: Arc<Shared>,
    commit: u64,
    high: High,
    /// Sealed values of the keyspaces that are not logs, by [`Keyspace::position`].
    small: Vec<BTreeMap<Vec<u8>, Vec<u8>>>,
}

impl Reader for PinnedReader {
    fn get(
        &self,
        keyspace: Keyspace,
        key: &[u8],
        found: &mut dyn FnMut(&[u8]) -> Result<()>,
    ) -> Result<()> {
        if !keyspace.is_log() {
            let sealed = self.small[keyspace.position()].get(key);
            return sealed.map_or(Ok(()), |sealed| found(sealed));
        }
        let engine_key = engine_key(keyspace, key);
        if !self
            .shared
            .sees(keyspace, &engine_key, Some((self.commit, &self.high)))
        {
            return Ok(());
        }
        let sealed = self.shared.sealed(&engine_key)?;
        sealed.map_or(Ok(()), |sealed| found(&sealed))
    }

    fn scan(
        &self,
        keyspace: Keyspace,
        from: &[u8],
        to: Option<&[u8]>,
        each: &mut Each<'_>,
    ) -> Result<()> {
        if keyspace.is_log() {
            return self
                .shared
                .scan(keyspace, from, to, Some((self.commit, &self.high)), each);
        }
        let upper = to.map_or(Bound::Unbounded, Bound::Excluded);
        for (key, sealed) in
            self.small[keyspace.position()].range::<[u8], _>((Bound::Included(from), upper))
        {
            if each(key, sealed)?.is_break() {
                break;
            }
        }
        Ok(())
    }

    fn file(&self) -> &Path {
        &self.shared.dir
    }
}

impl Drop for PinnedReader {
    fn drop(&mut self) {
        let mut state = self.shared.state.write();
        if let Some(pins) = state.pins.get_mut(&self.commit) {
            *pins -= 1;
            if *pins == 0 {
                state.pins.remove(&self.commit);
            }
        }
    }
}

/// Small batches, applied one after the other as they fill.
struct Batches<'a> {
    shared: &'a Shared,
    batch: Batch,
    ops: usize,
    bytes: usize,
    log_bytes: u64,
}

impl<'a> Batches<'a> {
    fn new(shared: &'a Shared) -> Self {
        Batches {
            shared,
            batch: Batch::default(),
            ops: 0,
            bytes: 0,
            log_bytes: 0,
        }
    }

    fn put(&mut self, key: Vec<u8>, value: Vec<u8>) -> Result<()> {
        let bytes = key.len() + value.len();
        self.make_room(bytes, put_log_bytes(bytes))?;
        self.batch.insert(key, value);
        Ok(())
    }

    fn remove(&mut self, key: Vec<u8>) -> Result<()> {
        self.make_room(key.len(), REMOVE_LOG_BYTES)?;
        self.batch.remove(key);
        Ok(())
    }

    fn make_room(&mut self, bytes: usize, log_bytes: u64) -> Result<()> {
        let is_full = self.ops == BATCH_OPS_MAX
            || self.bytes + bytes > BATCH_BYTES_MAX
            || self.log_bytes + log_bytes > UNSYNCED_LOG_BYTES_MAX;
        if is_full && self.ops > 0 {
            self.shared
                .apply(std::mem::take(&mut self.batch), self.log_bytes)?;
            (self.ops, self.bytes, self.log_bytes) = (0, 0, 0);
        }
        self.ops += 1;
        self.bytes += bytes;
        self.log_bytes += log_bytes;
        Ok(())
    }

    fn finish(self) -> Result<()> {
        if self.ops == 0 {
            return Ok(());
        }
        self.shared.apply(self.batch, self.log_bytes)
    }
}

/// Log that a removal makes: it may rewrite a page of sixteen values.
const REMOVE_LOG_BYTES: u64 = 16 << 10;

/// Log that a put makes, where 5 to 10 times the bytes were measured.
fn put_log_bytes(bytes: usize) -> u64 {
    10 * bytes as u64 + 256
}

/// The applied indexes of the last two durable commits, outside sled: it opens a log whose end is gone without a word.
///
/// Two slots, written in turn and synced: `sequence | newest | previous | crc32`, big endian.
struct Acknowledged {
    path: PathBuf,
    file: File,
    sequence: u64,
    newest: u64,
    previous: u64,
}

impl Acknowledged {
    const SLOT_BYTES: u64 = 512;
    const RECORD_BYTES: usize = 28;

    fn create(dir: &Path) -> Result<Acknowledged> {
        let path = dir.join(ACKNOWLEDGED_FILE);
        let file = OpenOptions::new()
            .read(true)
            .write(true)
            .create(true)
            .truncate(true)
            .open(&path)
            .map_err(|error| io_error(&path, &error))?;
        let mut acknowledged = Acknowledged {
            path,
            file,
            sequence: 0,
            newest: 0,
            previous: 0,
        };
        acknowledged.write(0)?;
        Ok(acknowledged)
    }

    fn open(dir: &Path) -> Result<Acknowledged> {
        let path = dir.join(ACKNOWLEDGED_FILE);
        let file = OpenOptions::new()
            .read(true)
            .write(true)
            .open(&path)
            .map_err(|error| match error.kind() {
                std::io::ErrorKind::NotFound => damage(&path, "it is missing"),
                _ => io_error(&path, &error),
            })?;
        let newest = (0..2)
            .filter_map(|slot| Acknowledged::read_slot(&file, slot))
            .max()
            .ok_or_else(|| damage(&path, "neither of its records is what was written"))?;
        let (sequence, newest, previous) = newest;
        Ok(Acknowledged {
            path,
            file,
            sequence,
            newest,
            previous,
        })
    }

    fn read_slot(file: &File, slot: u64) -> Option<(u64, u64, u64)> {
        let mut record = [0; Acknowledged::RECORD_BYTES];
        file.read_exact_at(&mut record, slot * Acknowledged::SLOT_BYTES)
            .ok()?;
        let (content, sum) = record.split_last_chunk()?;
        if u32::from_be_bytes(*sum) != crc32fast::hash(content) {
            return None;
        }
        let mut numbers = content
            .chunks_exact(8)
            .map(|number| u64::from_be_bytes(number.try_into().expect("chunks of eight bytes")));
        Some((numbers.next()?, numbers.next()?, numbers.next()?))
    }

    /// Records that a commit containing log index `applied` is durable.
    fn write(&mut self, applied: u64) -> Result<()> {
        self.sequence += 1;
        self.previous = self.newest;
        self.newest = applied;
        let mut record = Vec::with_capacity(Acknowledged::RECORD_BYTES);
        for number in [self.sequence, self.newest, self.previous] {
            record.extend_from_slice(&number.to_be_bytes());
        }
        record.extend_from_slice(&crc32fast::hash(&record).to_be_bytes());
        self.file
            .write_all_at(&record, self.sequence % 2 * Acknowledged::SLOT_BYTES)
            .and_then(|()| self.file.sync_data())
            .map_err(|error| io_error(&self.path, &error))
    }
}

fn engine_key(keyspace: Keyspace, key: &[u8]) -> Vec<u8> {
    let mut engine_key = Vec::with_capacity(key.len() + 1);
    engine_key.push(keyspace as u8);
    engine_key.extend_from_slice(key);
    engine_key
}

fn raise(high: &mut High, keyspace: Keyspace, key: Option<&[u8]>) {
    if let (Some(log), Some(key)) = (keyspace.log(), key)
        && high[log].as_deref().is_none_or(|high| high < key)
    {
        high[log] = Some(key.to_vec());
    }
}

/// Records of at most a chunk each that name `removals`, with their keys.
fn journal_records(commit: u64, removals: &[Vec<u8>]) -> Vec<(Vec<u8>, Vec<u8>)> {
    let mut records = Vec::new();
    let mut rest = removals;
    while !rest.is_empty() {
        let mut bytes = 0;
        let len = rest
            .iter()
            .take_while(|key| {
                bytes += key.len() + 4;
                bytes <= chunk::CHUNK_BYTES / 2
            })
            .count()
            .max(1);
        let (part, after) = rest.split_at(len);
        rest = after;
        let mut key = vec![JOURNAL];
        key.extend_from_slice(&commit.to_be_bytes());
        key.extend_from_slice(
            &u32::try_from(records.len())
                .expect("few parts")
                .to_be_bytes(),
        );
        records.push((key, encode_keys(part.iter().map(Vec::as_slice))));
    }
    records
}

fn encode_keys<'a>(keys: impl Iterator<Item = &'a [u8]>) -> Vec<u8> {
    let mut encoded = Vec::new();
    for key in keys {
        let len = u32::try_from(key.len()).expect("keys are far below 4 GiB");
        encoded.extend_from_slice(&len.to_be_bytes());
        encoded.extend_from_slice(key);
    }
    encoded
}

fn decode_keys(mut encoded: &[u8]) -> Option<Vec<Vec<u8>>> {
    let mut keys = Vec::new();
    while !encoded.is_empty() {
        let (len, rest) = encoded.split_first_chunk()?;
        let (key, rest) = rest.split_at_checked(u32::from_be_bytes(*len) as usize)?;
        keys.push(key.to_vec());
        encoded = rest;
    }
    Some(keys)
}

/// Makes the files of a new database durable, which sled leaves to chance.
fn sync_all_files(dir: &Path) -> Result<()> {
    for entry in fs::read_dir(dir).map_err(|error| io_error(dir, &error))? {
        let path = entry.map_err(|error| io_error(dir, &error))?.path();
        File::open(&path)
            .and_then(|file| file.sync_all())
            .map_err(|error| io_error(&path, &error))?;
    }
    sync_dir(dir)
}

fn sled_error(dir: &Path, error: ::sled::Error) -> Error {
    match error {
        ::sled::Error::Io(error) => io_error(dir, &error),
        error => damage(dir, error.to_string()),
    }
}
