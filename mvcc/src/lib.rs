//! Keys, revisions, watches and leases; never knows that it is replicated.
//!
//! In reading order: a [`revision`] names one change; a key's generations ([`key_index`]) and the ordered map
//! of keys ([`index`]) say which revisions exist; the [`backend`] holds what they contain; the [`store`] ties
//! them together for [`read_txn`] and [`write_txn`]; [`watch`] tells who asked; [`lease`] lets keys expire.
//! [`record`] draws what is stored, [`recovery`] reads it at start, [`compaction`] removes what no read can see,
//! [`hash`](mod@hash) and [`scrub`] check it, [`snapshot`] takes it to another member, [`etcd_snapshot`] makes an
//! [`etcd_file`] of it and [`etcd_import`] takes one in, [`value_cache`] saves reading it twice.

pub mod backend;
mod compaction;
mod error;
pub mod etcd_file;
mod etcd_import;
mod etcd_snapshot;
mod hash;
mod index;
mod key_index;
pub mod lease;
mod range;
mod read_txn;
mod record;
mod recovery;
mod revision;
mod scrub;
mod snapshot;
mod store;
mod store_history;
mod value_cache;
pub mod watch;
mod write_txn;

pub use compaction::{CompactionHandle, CompactionStep, FINISHED_KEY, SCHEDULED_KEY};
pub use error::{Error, Result};
pub use etcd_import::{ImportOptions, Imported, import};
pub use etcd_snapshot::{ETCD_PART_BYTES_MAX, EtcdPart, EtcdSnapshot, ReplacedBuckets};
pub use hash::HashKv;
pub use range::{RangeAnswer, RangeQuery, SortOrder, SortTarget};
pub use read_txn::{RangeChunk, RangeEnd, RangeStream};
pub use revision::{Change, RevKey, Revision};
pub use scrub::{ScrubPosition, ScrubProgress};
pub use snapshot::{CHUNK_BYTES_MAX, Received, Receiver, Snapshot};
pub use store::{AppliedMark, CompactionDriver, Store, StoreOptions, StoreStats, TERM_KEY};
pub use write_txn::{Committed, DeleteOutcome, KeyMeta, Prev, PutOutcome, WriteTxn};
