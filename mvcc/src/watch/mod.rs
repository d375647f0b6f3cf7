//! Who is told of which change: exactly once, in order, and without holding up the writer.
//!
//! The writer publishes each revision's events ([`event`]) to the [`hub`]; a client's [`stream`] takes them
//! from there for its watchers ([`watcher`]), or reads them from the store ([`history`]) when it is behind.

mod event;
mod history;
mod hub;
mod range_index;
mod stream;
mod wake;
mod watcher;

pub use event::{EventBatch, PrevKv, RevisionEvents, delete_event, put_event};
pub use history::{
    CHUNK_BYTES_MAX, CHUNK_REVISIONS_MAX, History, HistoryChunk, HistoryRequest, RangeSet,
};
pub use hub::{Capture, HubOptions, HubStats, Interest, WatchHub};
pub use stream::{NO_WATCH_ID, Spawn, StreamOptions, WatchOutput, WatchStream};
pub use wake::WakeGroup;
pub use watcher::{EventFilters, Fragment, WatchCreate};

#[cfg(test)]
mod tests;
