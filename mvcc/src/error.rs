//! Everything that can go wrong in this crate.

use std::path::PathBuf;

/// The crate's result.
pub type Result<T, E = Error> = std::result::Result<T, E>;

/// What went wrong, with the values needed to act.
#[derive(Clone, Debug, thiserror::Error)]
pub enum Error {
    /// The revision asked for is below the compacted one.
    #[error("revision {requested} has been compacted; the oldest readable one is {compacted}")]
    Compacted {
        /// Revision asked for.
        requested: i64,
        /// Last compacted revision.
        compacted: i64,
    },
    /// The revision asked for does not exist yet.
    #[error("revision {requested} is in the future; the current one is {current}")]
    FutureRevision {
        /// Revision asked for.
        requested: i64,
        /// Current revision.
        current: i64,
    },
    /// Stored bytes are not what was written.
    #[error(
        "damage in {file}: {what}; replace this member (remove it, add it with an empty data folder) or restore a backup"
    )]
    Damage {
        /// Engine file or folder.
        file: PathBuf,
        /// Keyspace, key and offset as far as known.
        what: String,
    },
    /// A file that was handed in is no sound backend file of etcd.
    #[error("{file} is no sound etcd snapshot or backend file: at byte {offset}: {what}")]
    EtcdFile {
        /// The file.
        file: PathBuf,
        /// Where in it.
        offset: u64,
        /// What is wrong there.
        what: String,
    },
    /// The data folder was written by another engine.
    #[error(
        "{dir} was written by the {found} engine, and {wanted} was asked for: start with --storage-engine={found}, or convert it with `kvctl convert --to={wanted}`"
    )]
    EngineMismatch {
        /// The database folder.
        dir: PathBuf,
        /// Engine named in CURRENT.
        found: String,
        /// Engine asked for.
        wanted: String,
    },
    /// The disk or the engine refused.
    #[error("{file}: {reason}")]
    Io {
        /// File or folder.
        file: PathBuf,
        /// What the system or engine said.
        reason: String,
        /// Whether the reason is a full disk.
        no_space: bool,
    },
    /// The lease does not exist.
    #[error("lease {id:016x} not found")]
    LeaseNotFound {
        /// Lease asked for.
        id: i64,
    },
    /// A lease with this id exists.
    #[error("lease {id:016x} exists")]
    LeaseExists {
        /// Lease asked for.
        id: i64,
    },
    /// The time to live is above 9,000,000,000 seconds.
    #[error("lease time to live of {ttl} s is too large")]
    LeaseTtlTooLarge {
        /// Seconds asked for.
        ttl: i64,
    },
    /// A snapshot is on its way that replaces the database, or waits for its transfer to go on.
    #[error(
        "a snapshot is being received which will replace the database; defragment after that, or in a minute if its transfer broke off"
    )]
    SnapshotArriving,
    /// The store is closed.
    #[error("the store is closed")]
    Closed,
}
