//! Checkpoints, which let the log be purged, and snapshots, which catch up a member whose missing
//! entries are purged.
//!
//! The state machine is durable by itself. openraft's "build a snapshot" is therefore a checkpoint
//! of the state machine: it names an entry below which the log is not needed any more, and copies
//! nothing. A [`SnapshotSource`] is opened only when a peer must be sent the whole state.

use std::io;

use bytes::Bytes;
use openraft::RaftSnapshotBuilder;
use parking_lot::Mutex;

use crate::state_machine::{Applied, CheckpointFuture, meta_of};
use crate::types::{SnapshotMeta, TypeConfig};

/// The whole state at one applied index, read in chunks.
///
/// The sender takes it from [`StateMachine::snapshot`](crate::StateMachine::snapshot); the
/// receiver hands in one that reads the received and verified copy. Reading may block: it happens
/// on a blocking thread.
pub trait SnapshotSource: Send + 'static {
    /// What the state contains.
    fn applied(&self) -> Applied;

    /// The next chunk in order, none at the end.
    fn next_chunk(&mut self) -> io::Result<Option<Bytes>>;
}

/// A snapshot on its way through openraft; without a source when only its place in the log matters.
pub(crate) struct Handle(Mutex<Option<Box<dyn SnapshotSource>>>);

/// A snapshot as openraft passes it.
pub(crate) type Snapshot = openraft::alias::SnapshotOf<TypeConfig, Handle>;

impl Handle {
    pub(crate) fn new(source: Box<dyn SnapshotSource>) -> Handle {
        Handle(Mutex::new(Some(source)))
    }

    pub(crate) fn into_source(self) -> io::Result<Box<dyn SnapshotSource>> {
        self.0.into_inner().ok_or_else(|| {
            io::Error::new(
                io::ErrorKind::Unsupported,
                "a checkpoint carries no state to send",
            )
        })
    }

    /// A snapshot that only says up to where the state is durable.
    pub(crate) fn checkpoint(meta: SnapshotMeta) -> Snapshot {
        Snapshot {
            meta,
            snapshot: Handle(Mutex::new(None)),
        }
    }
}

/// Runs one checkpoint of the state machine, beside apply.
pub(crate) struct CheckpointBuilder(Mutex<Option<CheckpointFuture>>);

impl CheckpointBuilder {
    pub(crate) fn new(checkpoint: CheckpointFuture) -> CheckpointBuilder {
        CheckpointBuilder(Mutex::new(Some(checkpoint)))
    }
}

impl RaftSnapshotBuilder<TypeConfig> for CheckpointBuilder {
    type SnapshotData = Handle;

    async fn build_snapshot(&mut self) -> io::Result<Snapshot> {
        let checkpoint = self
            .0
            .get_mut()
            .take()
            .expect("openraft builds once with each builder");
        let applied = checkpoint.await?;
        tracing::debug!(index = applied.index, "state machine checkpointed");
        Ok(Handle::checkpoint(meta_of(&applied)?))
    }
}
