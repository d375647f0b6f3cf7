//! The durable log: bytes in order.
//!
//! Knows indexes and terms, but neither Raft's roles nor keys. [`Wal`] is the handle; one writer thread owns the files.
//! Nothing is acknowledged before the fsync that covers it; a torn write is cut at start, damage is refused by file
//! and offset. The formats are drawn in [`mod@record`] and `segment.rs`; what is torn and what is damaged in `repair.rs`.

mod error;
pub mod fs;

pub mod record;

mod segment;

mod state;

mod preparation;
mod wal;
mod writer;

mod reader;
mod repair;

pub use error::{Error, Result};
pub use record::Record;
pub use repair::Cut;
pub use segment::Identity;
pub use wal::{Completion, Config, EntryMeta, FsyncBatch, Recovered, Sync, Wal};
pub use writer::Step;
