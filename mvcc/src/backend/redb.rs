//! The redb engine: one file, one table per keyspace.
//!
//! Every commit is `Durability::Immediate` with quick repair: two fsyncs in sequence, and an open after a crash that does not walk the file;
//! what is added to a database under construction goes without the repair.
//! New keys of the log keyspaces go through a cursor at the end of their table, which fills leaves completely and costs
//! a third of ordinary inserts. A reader is a read transaction: a true point in time, which keeps the pages it may see from
//! being reused. redb does not verify what it reads; the checksum above does, and a scan here verifies that keys ascend and,
//! over a whole keyspace, that none is missing.
//! `check_integrity` and `compact` are not used: both want the database for themselves.

use std::fs::File;
use std::ops::{Bound, ControlFlow};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use ::redb::{
    AccessGuard, CursorError, Database, DatabaseError, Durability, ReadOnlyTable, ReadableDatabase,
    ReadableTableMetadata, StorageError, Table, TableDefinition, TableError, WriteTransaction,
};

use tracing::warn;

use super::buffer::Log;
use super::engine::{Changes, Each, Engine, Reader, damage, io_error};
use super::guard::guarded;
use super::{Keyspace, checksum};
use crate::{Error, Result};

type Definition = TableDefinition<'static, &'static [u8], &'static [u8]>;
type ReadTable = ReadOnlyTable<&'static [u8], &'static [u8]>;
type WriteTable<'a> = Table<'a, &'static [u8], &'static [u8]>;

/// The database file inside a generation's folder.
const FILE_NAME: &str = "data.redb";

/// Counters of this file's own, by name, as eight bytes big endian.
const COUNTERS: TableDefinition<'static, &'static str, u64> = TableDefinition::new("counters");
const LIVE_BYTES: &str = "live_bytes";

/// Entries that a sweep steps over before it seeks instead: a step costs about an eighth of a seek.
const SWEEP_STEPS_MAX: u64 = 8;

pub(crate) struct RedbEngine {
    shared: Arc<Shared>,
    live_bytes: AtomicU64,
}

/// Kept by readers too, so that the database is closed after the last of them.
struct Shared {
    /// Taken out when this is dropped, and only then.
    database: Option<Database>,
    file: PathBuf,
}

impl Shared {
    fn database(&self) -> &Database {
        self.database
            .as_ref()
            .expect("the database is there until the drop")
    }
}

impl Drop for Shared {
    fn drop(&mut self) {
        // The close writes, and may meet damage: then the files stay as a crash would have left them.
        let database = self.database.take();
        let closed = guarded(&self.file, || {
            drop(database);
            Ok(())
        });
        if let Err(error) = closed {
            warn!(%error, "closing the database failed");
        }
    }
}

impl RedbEngine {
    /// Opens the database in `dir`, making it if the folder has none.
    pub(crate) fn open(dir: &Path, cache_bytes: u64) -> Result<RedbEngine> {
        let path = dir.join(FILE_NAME);
        let is_new = !path.exists();
        let database = builder(cache_bytes)
            .create(&path)
            .map_err(|error| database_error(&path, error))?;
        if is_new {
            File::open(&path)
                .and_then(|file| file.sync_all())
                .map_err(|error| io_error(&path, &error))?;
        }
        RedbEngine::start(database, path)
    }

    /// Opens a database over storage of the caller's, which errors call `file`.
    #[cfg_attr(
        not(test),
        expect(dead_code, reason = "the seam by which tests cut the power")
    )]
    pub(crate) fn open_with(
        storage: impl ::redb::StorageBackend,
        file: &Path,
        cache_bytes: u64,
    ) -> Result<RedbEngine> {
        let database = builder(cache_bytes)
            .create_with_backend(storage)
            .map_err(|error| database_error(file, error))?;
        RedbEngine::start(database, file.to_path_buf())
    }

    fn start(database: Database, file: PathBuf) -> Result<RedbEngine> {
        let engine = RedbEngine {
            shared: Arc::new(Shared {
                database: Some(database),
                file,
            }),
            live_bytes: AtomicU64::new(0),
        };
        let live_bytes = engine.make_tables()?;
        engine.live_bytes.store(live_bytes, Ordering::Relaxed);
        Ok(engine)
    }

    /// Makes the tables of a new database, so that readers find all of them; returns the count of live bytes.
    fn make_tables(&self) -> Result<u64> {
        let file = &self.shared.file;
        let read = self
            .shared
            .database()
            .begin_read()
            .map_err(|error| other_error(file, error))?;
        match read.open_table(COUNTERS) {
            Ok(counters) => {
                let live_bytes = counters
                    .get(LIVE_BYTES)
                    .map_err(|error| storage_error(file, error))?;
                return Ok(live_bytes.map_or(0, |count| count.value()));
            }
            Err(TableError::TableDoesNotExist(_)) => {}
            Err(error) => return Err(other_error(file, error)),
        }
        drop(read);
        let transaction = self.begin_write(Repair::Quick)?;
        for keyspace in Keyspace::ALL {
            transaction
                .open_table(definition(keyspace))
                .map_err(|error| other_error(file, error))?;
        }
        self.finish(transaction, 0)?;
        Ok(0)
    }

    fn begin_write(&self, repair: Repair) -> Result<WriteTransaction> {
        let file = &self.shared.file;
        let mut transaction = self
            .shared
            .database()
            .begin_write()
            .map_err(|error| other_error(file, error))?;
        transaction
            .set_durability(Durability::Immediate)
            .map_err(|error| other_error(file, error))?;
        transaction.set_quick_repair(matches!(repair, Repair::Quick));
        Ok(transaction)
    }

    fn finish(&self, transaction: WriteTransaction, live_bytes: u64) -> Result<()> {
        let file = &self.shared.file;
        {
            let mut counters = transaction
                .open_table(COUNTERS)
                .map_err(|error| other_error(file, error))?;
            counters
                .insert(LIVE_BYTES, live_bytes)
                .map_err(|error| storage_error(file, error))?;
        }
        transaction
            .commit()
            .map_err(|error| other_error(file, error))
    }
}

/// What an open after a crash has to do to find the commit.
#[derive(Clone, Copy)]
enum Repair {
    /// Nothing.
    Quick,
    /// Walk the file.
    Slow,
}

impl RedbEngine {
    fn write(&self, changes: &Changes<'_>, repair: Repair) -> Result<()> {
        let file = &self.shared.file;
        let transaction = self.begin_write(repair)?;
        let mut live_bytes = LiveBytes(self.live_bytes.load(Ordering::Relaxed));
        let mut sealed = Vec::new();
        for (keyspace, log) in &changes.appended {
            let mut table = transaction
                .open_table(definition(*keyspace))
                .map_err(|error| other_error(file, error))?;
            append(&mut table, log, &mut sealed, &mut live_bytes)
                .map_err(|error| storage_error(file, error))?;
        }
        for group in changes.others.chunk_by(|a, b| a.0 == b.0) {
            let mut table = transaction
                .open_table(definition(group[0].0))
                .map_err(|error| other_error(file, error))?;
            for (_, key, value) in group {
                let key: &[u8] = key;
                match value {
                    Some(value) => put(&mut table, key, value, &mut sealed, &mut live_bytes),
                    None => delete(&mut table, key, &mut live_bytes),
                }
                .map_err(|error| storage_error(file, error))?;
            }
        }
        self.finish(transaction, live_bytes.0)?;
        self.live_bytes.store(live_bytes.0, Ordering::Relaxed);
        Ok(())
    }
}

impl Engine for RedbEngine {
    fn commit(&self, changes: &Changes<'_>) -> Result<()> {
        self.write(changes, Repair::Quick)
    }

    /// One fsync instead of two. None at all was no faster, and the last commit's then held up those of the log.
    fn add(&self, changes: &Changes<'_>) -> Result<()> {
        self.write(changes, Repair::Slow)
    }

    fn reader(&self) -> Result<Arc<dyn Reader>> {
        let file = &self.shared.file;
        let transaction = self
            .shared
            .database()
            .begin_read()
            .map_err(|error| other_error(file, error))?;
        // The tables keep the transaction.
        let tables = Keyspace::ALL
            .into_iter()
            .map(|keyspace| transaction.open_table(definition(keyspace)))
            .collect::<Result<_, TableError>>()
            .map_err(|error| other_error(file, error))?;
        Ok(Arc::new(RedbReader {
            tables,
            shared: Arc::clone(&self.shared),
        }))
    }

    fn pin(&self) -> Result<Arc<dyn Reader>> {
        self.reader()
    }

    fn reader_is_pinned(&self) -> bool {
        true
    }

    fn in_use(&self) -> u64 {
        self.live_bytes.load(Ordering::Relaxed)
    }
}

/// One read transaction. Fields drop in this order: the database goes last.
struct RedbReader {
    /// By [`Keyspace::position`].
    tables: Vec<ReadTable>,
    shared: Arc<Shared>,
}

impl Reader for RedbReader {
    fn get(
        &self,
        keyspace: Keyspace,
        key: &[u8],
        found: &mut dyn FnMut(&[u8]) -> Result<()>,
    ) -> Result<()> {
        let stored = self.tables[keyspace.position()]
            .get(key)
            .map_err(|error| storage_error(&self.shared.file, error))?;
        stored.map_or(Ok(()), |stored| found(stored.value()))
    }

    /// Neighbours are reached by stepping, others by seeking.
    fn get_sorted(
        &self,
        keyspace: Keyspace,
        keys: &[&[u8]],
        found: &mut dyn FnMut(usize, &[u8]) -> Result<()>,
    ) -> Result<()> {
        let mut position = 0;
        while position < keys.len() {
            let end = position + run_len(&keys[position..]);
            if end - position == 1 {
                self.get(keyspace, keys[position], &mut |stored| {
                    found(position, stored)
                })?;
            } else {
                self.sweep(keyspace, &keys[position..end], &mut |offset, stored| {
                    found(position + offset, stored)
                })?;
            }
            position = end;
        }
        Ok(())
    }

    fn scan(
        &self,
        keyspace: Keyspace,
        from: &[u8],
        to: Option<&[u8]>,
        each: &mut Each<'_>,
    ) -> Result<()> {
        let file = &self.shared.file;
        let table = &self.tables[keyspace.position()];
        let upper = to.map_or(Bound::Unbounded, Bound::Excluded);
        let range = table
            .range::<&[u8]>((Bound::Included(from), upper))
            .map_err(|error| storage_error(file, error))?;
        let mut last: Option<AccessGuard<'_, &[u8]>> = None;
        let mut count = 0_u64;
        for entry in range {
            let (key, stored) = entry.map_err(|error| storage_error(file, error))?;
            let in_order = match &last {
                Some(last) => last.value() < key.value(),
                None => from <= key.value(),
            };
            if !in_order {
                return Err(damage(
                    file,
                    format!(
                        "keyspace {}: key {} is out of order",
                        keyspace.name(),
                        key.value().escape_ascii()
                    ),
                ));
            }
            if let ControlFlow::Break(()) = each(key.value(), stored.value())? {
                return Ok(());
            }
            last = Some(key);
            count += 1;
        }
        if from.is_empty() && to.is_none() {
            let expected = table.len().map_err(|error| storage_error(file, error))?;
            if count != expected {
                return Err(damage(
                    file,
                    format!(
                        "keyspace {}: {count} keys found of {expected}",
                        keyspace.name()
                    ),
                ));
            }
        }
        Ok(())
    }

    fn file(&self) -> &Path {
        &self.shared.file
    }
}

impl RedbReader {
    /// Answers `keys` by one walk from the first to the last.
    fn sweep(
        &self,
        keyspace: Keyspace,
        keys: &[&[u8]],
        found: &mut dyn FnMut(usize, &[u8]) -> Result<()>,
    ) -> Result<()> {
        let file = &self.shared.file;
        let (Some(first), Some(last)) = (keys.first(), keys.last()) else {
            return Ok(());
        };
        let range = self.tables[keyspace.position()]
            .range::<&[u8]>((Bound::Included(*first), Bound::Included(*last)))
            .map_err(|error| storage_error(file, error))?;
        let mut position = 0;
        for entry in range {
            let (key, stored) = entry.map_err(|error| storage_error(file, error))?;
            while position < keys.len() && keys[position] < key.value() {
                position += 1;
            }
            if position < keys.len() && keys[position] == key.value() {
                found(position, stored.value())?;
                position += 1;
            }
        }
        Ok(())
    }
}

/// How many of `keys`, from the first on, lie so close together that stepping from one to the next is worth it.
///
/// A revision begins with its main number, eight bytes big endian: the distance of two is about the number of entries between.
fn run_len(keys: &[&[u8]]) -> usize {
    let main = |key: &[u8]| {
        key.first_chunk()
            .map_or(0, |main| u64::from_be_bytes(*main))
    };
    1 + keys
        .windows(2)
        .take_while(|pair| main(pair[1]).saturating_sub(main(pair[0])) <= SWEEP_STEPS_MAX)
        .count()
}

/// Sum of the lengths of live keys and sealed values.
struct LiveBytes(u64);

impl LiveBytes {
    fn add(&mut self, key: &[u8], stored_len: usize) {
        self.0 += (key.len() + stored_len) as u64;
    }

    fn remove(&mut self, key: &[u8], stored_len: usize) {
        self.0 = self.0.saturating_sub((key.len() + stored_len) as u64);
    }
}

/// Adds ascending entries at the end of the table; from the first one that is not above the last key on, one by one.
fn append(
    table: &mut WriteTable<'_>,
    log: &Log,
    sealed: &mut Vec<u8>,
    live_bytes: &mut LiveBytes,
) -> Result<(), StorageError> {
    let mut entries = log.iter().peekable();
    let mut cursor = table.upper_bound_mut(Bound::<&[u8]>::Unbounded)?;
    while let Some((key, value)) = entries.peek() {
        checksum::seal(key, value, sealed);
        match cursor.insert_before(&key[..], &sealed[..]) {
            Ok(()) => live_bytes.add(key, sealed.len()),
            Err(CursorError::UnorderedKey) => break,
            Err(CursorError::Storage(error)) => return Err(error),
            Err(_) => {
                return Err(StorageError::Corrupted(
                    "an unknown cursor error".to_owned(),
                ));
            }
        }
        entries.next();
    }
    cursor.close()?;
    for (key, value) in entries {
        put(table, key, value, sealed, live_bytes)?;
    }
    Ok(())
}

fn put(
    table: &mut WriteTable<'_>,
    key: &[u8],
    value: &[u8],
    sealed: &mut Vec<u8>,
    live_bytes: &mut LiveBytes,
) -> Result<(), StorageError> {
    checksum::seal(key, value, sealed);
    if let Some(replaced) = table.insert(key, &sealed[..])? {
        live_bytes.remove(key, replaced.value().len());
    }
    live_bytes.add(key, sealed.len());
    Ok(())
}

fn delete(
    table: &mut WriteTable<'_>,
    key: &[u8],
    live_bytes: &mut LiveBytes,
) -> Result<(), StorageError> {
    if let Some(removed) = table.remove(key)? {
        live_bytes.remove(key, removed.value().len());
    }
    Ok(())
}

fn builder(cache_bytes: u64) -> ::redb::Builder {
    let mut builder = Database::builder();
    builder.set_cache_size(usize::try_from(cache_bytes).unwrap_or(usize::MAX));
    builder
}

fn definition(keyspace: Keyspace) -> Definition {
    TableDefinition::new(keyspace.name())
}

fn database_error(file: &Path, error: DatabaseError) -> Error {
    match error {
        DatabaseError::Storage(error) => storage_error(file, error),
        DatabaseError::DatabaseAlreadyOpen => Error::Io {
            file: file.to_path_buf(),
            reason: "another process has it open".to_owned(),
            no_space: false,
        },
        error => damage(file, error.to_string()),
    }
}

fn storage_error(file: &Path, error: StorageError) -> Error {
    match error {
        // What redb finds at the end of a file that has been cut short.
        StorageError::Io(error)
            if matches!(
                error.kind(),
                std::io::ErrorKind::UnexpectedEof | std::io::ErrorKind::InvalidData
            ) =>
        {
            damage(file, error.to_string())
        }
        StorageError::Io(error) => io_error(file, &error),
        StorageError::Corrupted(what) => damage(file, what),
        error => Error::Io {
            file: file.to_path_buf(),
            reason: error.to_string(),
            no_space: false,
        },
    }
}

/// The error of any other redb call, each of which wraps a [`StorageError`] or says something about our use of it.
fn other_error(file: &Path, error: impl Into<::redb::Error>) -> Error {
    match error.into() {
        ::redb::Error::Io(error) => storage_error(file, StorageError::Io(error)),
        ::redb::Error::Corrupted(what) => damage(file, what),
        error @ (::redb::Error::TableTypeMismatch { .. }
        | ::redb::Error::TableIsMultimap(_)
        | ::redb::Error::TableDoesNotExist(_)
        | ::redb::Error::TypeDefinitionChanged { .. }) => damage(file, error.to_string()),
        error => Error::Io {
            file: file.to_path_buf(),
            reason: error.to_string(),
            no_space: false,
        },
    }
}
