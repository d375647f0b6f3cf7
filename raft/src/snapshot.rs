//! Checkpoints, which let the log be purged, and snapshots, which catch up a member whose missing
//! entries are purged.
//!
//! The state machine is durable by itself. openraft's "build a snapshot" is therefore a checkpoint
//! of the state machine: it names an entry below which the log is not needed any more, and copies
//! nothing. A [`SnapshotSource`] is opened only when a peer must be sent the whole state.
//!
//! A transfer that breaks off goes on later with the same bytes: the state it sends stays pinned
//! on a [`Shelf`], together with the log behind it, until it is installed or nobody has read it for
//! [`PINNED`].

use std::any::Any;
use std::io;
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use openraft::RaftSnapshotBuilder;
use parking_lot::Mutex;
use tokio::runtime::Handle as Runtime;
use tokio::time::Instant;

use crate::state_machine::{Applied, CheckpointFuture, meta_of};
use crate::types::{SnapshotMeta, TypeConfig};

/// How long the state of a transfer that broke off is kept for it to go on.
const PINNED: Duration = Duration::from_secs(60);
/// The log is kept for a pinned state up to so many entries behind it.
const HELD_ENTRIES_MAX: u64 = 500_000;
/// Pause before a checkpoint that lets no log go: the next one begins right after it.
const HELD_PAUSE: Duration = Duration::from_secs(1);

/// The whole state at one applied index, read in chunks.
///
/// The sender takes it from [`StateMachine::snapshot`](crate::StateMachine::snapshot); the
/// receiver hands in one that reads the received and verified copy, or is
/// [prepared](SnapshotSource::take_prepared). Reading may block: it happens on a blocking thread.
pub trait SnapshotSource: Send + 'static {
    /// What the state contains.
    fn applied(&self) -> Applied;

    /// The next chunk in order, none at the end.
    fn next_chunk(&mut self) -> io::Result<Option<Bytes>>;

    /// Another reader of the same state, from its start, that gives the same bytes; none if it can
    /// be read only once.
    fn again(&self) -> Option<Box<dyn SnapshotSource>> {
        None
    }

    /// What the receiver has made of the state while it arrived, for the state machine of the same process to take over
    /// at once; then there are no chunks. None if it is to be read.
    fn take_prepared(&mut self) -> Option<Box<dyn Any + Send>> {
        None
    }

    /// Tells this state from any other that this process has sent; none if it is not kept, so that
    /// a transfer of it cannot go on.
    fn pin(&self) -> Option<u64> {
        None
    }
}

/// The state that was last sent to a peer, kept for transfers that go on.
#[derive(Clone, Default)]
pub(crate) struct Shelf(Arc<Mutex<Slot>>);

#[derive(Default)]
struct Slot {
    pinned: Option<Pinned>,
    pins: u64,
}

struct Pinned {
    pin: u64,
    source: Box<dyn SnapshotSource>,
    /// When a transfer last read it; none if none has, because the peer is not there.
    read: Option<Instant>,
}

impl Shelf {
    /// A reader of the pinned state, if one is pinned and reaches to where the log begins.
    pub(crate) fn pinned(&self, purged: u64) -> Option<Box<dyn SnapshotSource>> {
        let mut slot = self.0.lock();
        slot.sweep(Instant::now());
        let pinned = slot
            .pinned
            .as_ref()
            .filter(|pinned| pinned.read.is_some())?;
        if pinned.source.applied().index < purged {
            slot.pinned = None;
            return None;
        }
        let source = pinned.source.again()?;
        let pin = pinned.pin;
        Some(self.reader(pin, source))
    }

    /// Pins `source` in place of what was there, and returns a reader of it; a source that can be
    /// read only once is returned as it is.
    pub(crate) fn put(&self, source: Box<dyn SnapshotSource>) -> Box<dyn SnapshotSource> {
        let Some(reader) = source.again() else {
            return source;
        };
        let mut slot = self.0.lock();
        slot.pins += 1;
        let pin = slot.pins;
        slot.pinned = Some(Pinned {
            pin,
            source,
            read: None,
        });
        drop(slot);
        self.reader(pin, reader)
    }

    /// Forgets the state `pin`: it is installed.
    pub(crate) fn release(&self, pin: u64) {
        let mut slot = self.0.lock();
        if slot.pinned.as_ref().is_some_and(|pinned| pinned.pin == pin) {
            slot.pinned = None;
        }
    }

    /// What the pinned state contains, if the log behind it is to be kept.
    fn held(&self) -> Option<Applied> {
        let mut slot = self.0.lock();
        slot.sweep(Instant::now());
        let pinned = slot.pinned.as_ref()?;
        Some(pinned.source.applied())
    }

    fn reader(&self, pin: u64, source: Box<dyn SnapshotSource>) -> Box<dyn SnapshotSource> {
        Box::new(Reader {
            source,
            pin,
            shelf: self.clone(),
            // None outside of a runtime, as in some tests: then the next look sweeps.
            runtime: Runtime::try_current().ok(),
        })
    }
}

impl Slot {
    /// Forgets a state that nobody goes on with.
    fn sweep(&mut self, now: Instant) {
        let is_stale = |pinned: &Pinned| {
            let read = pinned.read;
            read.is_some_and(|read| now.saturating_duration_since(read) >= PINNED)
        };
        if self.pinned.as_ref().is_some_and(is_stale) {
            self.pinned = None;
        }
    }
}

/// One transfer's reader of a pinned state.
struct Reader {
    source: Box<dyn SnapshotSource>,
    pin: u64,
    shelf: Shelf,
    runtime: Option<Runtime>,
}

impl SnapshotSource for Reader {
    fn applied(&self) -> Applied {
        self.source.applied()
    }

    fn next_chunk(&mut self) -> io::Result<Option<Bytes>> {
        let mut slot = self.shelf.0.lock();
        if let Some(pinned) = slot.pinned.as_mut().filter(|pinned| pinned.pin == self.pin) {
            pinned.read = Some(Instant::now());
        }
        drop(slot);
        self.source.next_chunk()
    }

    fn pin(&self) -> Option<u64> {
        Some(self.pin)
    }
}

impl Drop for Reader {
    fn drop(&mut self) {
        let mut slot = self.shelf.0.lock();
        let Some(pinned) = slot.pinned.as_ref().filter(|pinned| pinned.pin == self.pin) else {
            return;
        };
        if pinned.read.is_none() {
            slot.pinned = None;
            return;
        }
        drop(slot);
        if let Some(runtime) = &self.runtime {
            let shelf = self.shelf.clone();
            runtime.spawn(async move {
                tokio::time::sleep(PINNED).await;
                shelf.0.lock().sweep(Instant::now());
            });
        }
    }
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
pub(crate) struct CheckpointBuilder {
    checkpoint: Mutex<Option<CheckpointFuture>>,
    shelf: Shelf,
}

impl CheckpointBuilder {
    pub(crate) fn new(checkpoint: CheckpointFuture, shelf: Shelf) -> CheckpointBuilder {
        CheckpointBuilder {
            checkpoint: Mutex::new(Some(checkpoint)),
            shelf,
        }
    }
}

impl RaftSnapshotBuilder<TypeConfig> for CheckpointBuilder {
    type SnapshotData = Handle;

    async fn build_snapshot(&mut self) -> io::Result<Snapshot> {
        let checkpoint = self
            .checkpoint
            .get_mut()
            .take()
            .expect("openraft builds once with each builder");
        let mut applied = checkpoint.await?;
        let held = self.shelf.held();
        // Whoever receives the pinned state will need the entries behind it.
        let is_needed = |held: &Applied| {
            held.index < applied.index && applied.index - held.index <= HELD_ENTRIES_MAX
        };
        if let Some(held) = held.filter(is_needed) {
            applied = held;
            tokio::time::sleep(HELD_PAUSE).await;
        }
        tracing::debug!(index = applied.index, "state machine checkpointed");
        Ok(Handle::checkpoint(meta_of(&applied)?))
    }
}

#[cfg(test)]
mod tests;
