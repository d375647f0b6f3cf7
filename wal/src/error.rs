//! Everything that can go wrong in this crate.

use std::io;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use crate::segment::Identity;

/// The crate's result.
pub type Result<T, E = Error> = std::result::Result<T, E>;

/// What went wrong, with the values needed to act. Cheap to clone: one failure answers every waiting completion.
#[derive(Clone, Debug, thiserror::Error)]
pub enum Error {
    /// Stored bytes are not what was written.
    #[error(
        "damage in {file} at offset {offset}: {what}; replace this member (remove it from the cluster, add it again with an empty data folder) or restore a backup"
    )]
    Damage {
        /// The damaged file.
        file: PathBuf,
        /// Where the damage begins.
        offset: u64,
        /// What was found and what was expected.
        what: String,
    },
    /// The log belongs to another cluster, member or life of this member.
    #[error(
        "{file} belongs to {found}, not to {wanted}: this is another member's data folder; check --data-dir and the member's name"
    )]
    ForeignIdentity {
        /// The segment that says so.
        file: PathBuf,
        /// The identity in the file.
        found: Identity,
        /// The identity asked for.
        wanted: Identity,
    },
    /// The file was written by a version with another format.
    #[error(
        "{file} has format version {found} and this version reads {known}: start the version that wrote it, or a newer one"
    )]
    UnknownVersion {
        /// The file.
        file: PathBuf,
        /// The version it names.
        found: u32,
        /// The newest version this build reads.
        known: u32,
    },
    /// [`create`](crate::Wal::create) found a log.
    #[error("{dir} already holds a log: open it, or name an empty folder")]
    AlreadyExists {
        /// The log folder.
        dir: PathBuf,
    },
    /// [`open`](crate::Wal::open) found no log.
    #[error(
        "{dir} holds no log segment: the data folder is not this member's, or its wal folder was removed"
    )]
    NotFound {
        /// The log folder.
        dir: PathBuf,
    },
    /// The configuration cannot work.
    #[error("segment_bytes is {segment_bytes}; it must be a multiple of 4096 from {min} to {max}")]
    SegmentSize {
        /// The size asked for.
        segment_bytes: u64,
        /// The smallest that works.
        min: u64,
        /// The largest that works.
        max: u64,
    },
    /// The disk or the system refused.
    #[error("{operation} {file}: {source}")]
    Io {
        /// What was tried.
        operation: &'static str,
        /// The file or folder.
        file: PathBuf,
        /// What the system said.
        #[source]
        source: Arc<io::Error>,
    },
    /// An appended record would leave a hole in the log, or truncate what is purged.
    #[error("{what} {found} cannot follow: the log expects {expected}")]
    OutOfOrder {
        /// Which record was refused.
        what: &'static str,
        /// Its index.
        found: u64,
        /// The index that would have been accepted.
        expected: u64,
    },
    /// A record is larger than the frame's length field allows.
    #[error("a record of {bytes} bytes is over the limit of {max}")]
    TooLarge {
        /// Its payload.
        bytes: u64,
        /// The limit.
        max: u64,
    },
    /// An entry is not in the log: purged, truncated, or not written yet.
    #[error("entry {index} is not in the log, which holds {first}..{next}")]
    NoEntry {
        /// The entry asked for.
        index: u64,
        /// First entry held.
        first: u64,
        /// One past the last entry held.
        next: u64,
    },
    /// The log was closed in order.
    #[error("the log is closed")]
    Closed,
    /// The writer thread panicked; nothing more can be made durable.
    #[error("the log writer panicked: {what}")]
    WriterPanicked {
        /// The panic's message.
        what: String,
    },
}

impl Error {
    pub(crate) fn io(operation: &'static str, file: &Path, source: io::Error) -> Error {
        Error::Io {
            operation,
            file: file.to_owned(),
            source: Arc::new(source),
        }
    }

    pub(crate) fn damage(file: &Path, offset: u64, what: impl Into<String>) -> Error {
        Error::Damage {
            file: file.to_owned(),
            offset,
            what: what.into(),
        }
    }

    /// Whether the cause is a full disk, which ends when space is made.
    pub fn is_no_space(&self) -> bool {
        matches!(self, Error::Io { source, .. }
            if matches!(source.kind(), io::ErrorKind::StorageFull | io::ErrorKind::QuotaExceeded))
    }
}
