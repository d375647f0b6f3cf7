//! etcd's backend file, which is bbolt's format: written for snapshots, read for restores.
//!
//! ```text
//! page 0, 1   meta: where the root is and how many pages there are
//! page 2 ...  one tree per bucket, its leaves in order and each branch behind what it names
//! last page   the root: a leaf with the buckets' names
//! trailer     in a snapshot only: sha256 of all before it, 32 bytes
//! ```
//! [`page`] draws the pages, [`writer`] makes a file front to back while knowing one page per level, and [`reader`] takes
//! one apart that may come from anywhere: it believes nothing and names the place of what it refuses.
//!
//! Source: bbolt 1.5; etcd 3.7, server/storage/schema.

mod page;
mod reader;
mod writer;

pub use self::reader::{EtcdFile, EtcdFileStatus};
pub(crate) use self::writer::{Counted, FileWriter};

use crate::backend::Keyspace;

/// etcd's buckets with the keyspace that holds the same, in the order of their names.
pub(crate) const BUCKETS: [(&str, Keyspace); 10] = [
    ("alarm", Keyspace::Alarm),
    ("auth", Keyspace::Auth),
    ("authRoles", Keyspace::AuthRoles),
    ("authUsers", Keyspace::AuthUsers),
    ("cluster", Keyspace::Cluster),
    ("key", Keyspace::Rev),
    ("lease", Keyspace::Lease),
    ("members", Keyspace::Members),
    ("members_removed", Keyspace::MembersRemoved),
    ("meta", Keyspace::Meta),
];

/// Bytes of the sum at the end of a snapshot.
pub const TRAILER_BYTES: usize = 32;

#[cfg(test)]
mod tests;
