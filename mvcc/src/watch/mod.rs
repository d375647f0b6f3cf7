//! Who is told of which change, exactly once and in order.

mod event;
mod history;

pub use event::{EventBatch, PrevKv, RevisionEvents, delete_event, put_event};
pub use history::{
    CHUNK_BYTES_MAX, CHUNK_REVISIONS_MAX, History, HistoryChunk, HistoryRequest, RangeSet,
};
