//! What a storage engine must do, and nothing more.
//!
//! The write buffer, views, checks on read, generations and defragmentation are written once above these two traits;
//! an engine is one file below them. An engine stores *sealed* values (see [`super::checksum`]): it seals what it
//! commits and hands back the sealed bytes, so that the one check on read sits above all engines.
//!
//! Keys of the log keyspaces ([`Keyspace::is_log`]) are written once, in ascending order, and deleted at most once.

use std::ops::ControlFlow;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use bytes::Bytes;

use super::Keyspace;
use super::buffer::Log;
use crate::{Error, Result};

/// One open database of one generation.
pub(crate) trait Engine: Send + Sync {
    /// Makes `changes` durable, all or nothing.
    ///
    /// Called by one thread at a time. After an error nothing further may be committed.
    fn commit(&self, changes: &Changes<'_>) -> Result<()>;

    /// Adds `changes` to a database under construction, which is of no use before the next [`Engine::commit`].
    ///
    /// That makes it durable; what a crash before that leaves may be unreadable.
    fn add(&self, changes: &Changes<'_>) -> Result<()> {
        self.commit(changes)
    }

    /// A reader of the newest commit, for reads which end soon. May see later commits, so it is only used below a
    /// buffer that still holds what those contain.
    fn reader(&self) -> Result<Arc<dyn Reader>>;

    /// A reader of exactly the newest commit, for as long as it lives. Called only between commits.
    fn pin(&self) -> Result<Arc<dyn Reader>>;

    /// Whether [`Engine::reader`] is already a point in time, so that a view costs nothing.
    fn reader_is_pinned(&self) -> bool;

    /// Bytes of keys and values (sealed) that are alive.
    fn in_use(&self) -> u64;

    /// Whether a commit writes into what is free within the engine's files before these grow.
    fn fills_its_gaps(&self) -> bool {
        true
    }

    /// An empty engine that may take this one's place, if the engine has no files, for which generations do that.
    fn stage_without_files(&self) -> Option<Arc<dyn Engine>> {
        None
    }

    /// Makes this the engine that the next open finds, if it came from [`Engine::stage_without_files`].
    fn make_current_without_files(&self) {}
}

/// Reads of one engine state. Values are handed out sealed.
pub(crate) trait Reader: Send + Sync {
    /// Calls `found` with the value of `key`, if there is one.
    fn get(
        &self,
        keyspace: Keyspace,
        key: &[u8],
        found: &mut dyn FnMut(&[u8]) -> Result<()>,
    ) -> Result<()>;

    /// Calls `found` with the position and value of each of `keys` that exists. `keys` ascend.
    fn get_sorted(
        &self,
        keyspace: Keyspace,
        keys: &[&[u8]],
        found: &mut dyn FnMut(usize, &[u8]) -> Result<()>,
    ) -> Result<()> {
        for (position, key) in keys.iter().enumerate() {
            self.get(keyspace, key, &mut |stored| found(position, stored))?;
        }
        Ok(())
    }

    /// Calls `each` with keys in `from..to` and their values, in order, until it breaks. Without `to`: to the end.
    fn scan(
        &self,
        keyspace: Keyspace,
        from: &[u8],
        to: Option<&[u8]>,
        each: &mut Each<'_>,
    ) -> Result<()>;

    /// The file or folder that an error names.
    fn file(&self) -> &Path;
}

/// What a scan calls for each key and value.
pub(crate) type Each<'a> = dyn FnMut(&[u8], &[u8]) -> Result<ControlFlow<()>> + 'a;

/// What one commit contains.
pub(crate) struct Changes<'a> {
    /// New keys of the log keyspaces, ascending, normally above every key that the engine has in that keyspace.
    pub(crate) appended: Vec<(Keyspace, &'a Log)>,
    /// Everything else, each key once, ordered by keyspace and key; `None` deletes.
    pub(crate) others: Vec<(Keyspace, &'a Bytes, Option<&'a Bytes>)>,
}

/// An I/O error of `file` as this crate's error.
pub(crate) fn io_error(file: &Path, error: &std::io::Error) -> Error {
    Error::Io {
        file: file.to_path_buf(),
        reason: error.to_string(),
        no_space: matches!(
            error.kind(),
            std::io::ErrorKind::StorageFull | std::io::ErrorKind::QuotaExceeded
        ),
    }
}

/// Damage in `file`, as this crate's error.
pub(crate) fn damage(file: &Path, what: impl Into<String>) -> Error {
    Error::Damage {
        file: PathBuf::from(file),
        what: what.into(),
    }
}
