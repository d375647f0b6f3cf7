//! The receiving side: one snapshot at a time, kept for a while when its transfer breaks off.
//!
//! ```text
//! messages ──> Receiving ──chunks──> a thread that takes them in ──> Received ──> raft, which has it installed
//!                  └── breaks off: parked with its thread, for the same snapshot to go on, or given up
//! ```
//! The chunks are taken in as they come. That the last of them was there is told when its end has arrived and agrees with all
//! of them; a transfer that is given up never tells, and then nothing of it is left.

use std::io;
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use futures_util::{Stream, StreamExt};
use kv_proto::peerpb::snapshot_request::Part;
use kv_proto::peerpb::{SnapshotBegin, SnapshotChunk, SnapshotEnd, SnapshotRequest};
use kv_raft::SnapshotSource;
use parking_lot::Mutex;
use tokio::sync::{OwnedMutexGuard, mpsc};
use tokio::task::JoinHandle;
use tokio::time::{sleep, timeout};
use tokio_util::sync::CancellationToken;
use tonic::Status;

use super::{CHUNKS_AHEAD, SILENCE_MAX};

/// How long the bytes of a transfer that broke off are kept for it to go on. The sender keeps its side as long.
const PARKED: Duration = Duration::from_secs(60);
/// How long a transfer waits for one that it takes the place of.
const TAKE_OVER_MAX: Duration = Duration::from_secs(5);

/// Gives the next chunk, and none after the last one, once all were verified. Blocks.
pub(in crate::peer) type NextChunk<'a> = dyn FnMut() -> io::Result<Option<Bytes>> + 'a;

/// Takes in one snapshot, to its end; after an error nothing of it is left. Runs on a thread that may block, for several
/// transfers at once if some of them were given up.
pub(in crate::peer) type TakeIn =
    dyn Fn(&mut NextChunk<'_>) -> io::Result<Box<dyn SnapshotSource>> + Send + Sync;

/// Where snapshots arrive. Clones share it.
#[derive(Clone)]
pub(in crate::peer) struct Incoming {
    take_in: Arc<TakeIn>,
    slot: Arc<tokio::sync::Mutex<Slot>>,
    /// Ends the transfer that holds the slot: another one wants it.
    current: Arc<Mutex<CancellationToken>>,
}

/// What is left of transfers.
#[derive(Default)]
struct Slot {
    parked: Option<Partial>,
    /// The newest snapshot that was installed, and the answer: the sender may not have heard it.
    installed: Option<(Origin, Bytes)>,
}

/// Which snapshot: the sender and its number there.
type Origin = (u64, u64);

/// A snapshot of which some bytes have arrived.
struct Partial {
    origin: Origin,
    chunks: mpsc::Sender<Option<Bytes>>,
    taking_in: JoinHandle<io::Result<Box<dyn SnapshotSource>>>,
    crc: crc32fast::Hasher,
    bytes: u64,
}

/// A transfer under way. The slot is its own until it is dropped.
pub(in crate::peer) struct Receiving {
    slot: OwnedMutexGuard<Slot>,
    /// How to get back to the slot when the time is over.
    incoming: Incoming,
    replaced: CancellationToken,
    header: Bytes,
    partial: Partial,
}

/// What the first message of a transfer leads to.
pub(in crate::peer) enum Beginning {
    /// The rest is to be received.
    Rest(Box<Receiving>),
    /// This very snapshot was installed before, with that answer.
    Installed(Bytes),
}

/// A snapshot of which all bytes have arrived, or which could not be taken in.
pub(in crate::peer) struct Arrived {
    slot: OwnedMutexGuard<Slot>,
    header: Bytes,
    partial: Partial,
}

/// A snapshot that was taken in completely.
pub(in crate::peer) struct Received {
    pub(in crate::peer) header: Bytes,
    pub(in crate::peer) source: Box<dyn SnapshotSource>,
    origin: Origin,
    /// Nothing else is received while this one is installed.
    slot: OwnedMutexGuard<Slot>,
}

impl Incoming {
    /// Each snapshot goes through `take_in`.
    pub(in crate::peer) fn new(take_in: Arc<TakeIn>) -> Incoming {
        Incoming {
            take_in,
            slot: Arc::default(),
            current: Arc::default(),
        }
    }

    /// Begins to receive what member `from` sends, in place of any transfer that is under way.
    pub(in crate::peer) async fn begin(
        &self,
        from: u64,
        messages: &mut (impl Stream<Item = Result<SnapshotRequest, Status>> + Unpin),
    ) -> Result<Beginning, Status> {
        let Some(Part::Begin(SnapshotBegin { header, id })) = next(messages).await? else {
            return Err(Status::invalid_argument("a snapshot says first what it is"));
        };
        let replaced = CancellationToken::new();
        std::mem::replace(&mut *self.current.lock(), replaced.clone()).cancel();
        let slot = timeout(TAKE_OVER_MAX, self.slot.clone().lock_owned()).await;
        let mut slot = slot.map_err(|_| {
            Status::resource_exhausted("another snapshot is being received or installed")
        })?;
        let origin = (from, id);
        if let Some((installed, answer)) = &slot.installed
            && (*installed, id != 0) == (origin, true)
        {
            return Ok(Beginning::Installed(answer.clone()));
        }
        let parked = slot.parked.take();
        let parked =
            parked.filter(|parked| parked.origin == origin && id != 0 && parked.is_sound());
        let partial = parked.unwrap_or_else(|| Partial::begin(self.take_in.clone(), origin));
        Ok(Beginning::Rest(Box::new(Receiving {
            slot,
            incoming: self.clone(),
            replaced,
            header,
            partial,
        })))
    }

    /// Forgets what a transfer that broke off has left, unless it went on.
    async fn expire(self, origin: Origin, bytes: u64) {
        sleep(PARKED).await;
        let mut slot = self.slot.lock().await;
        let is_same = |parked: &Partial| (parked.origin, parked.bytes) == (origin, bytes);
        if slot.parked.as_ref().is_some_and(is_same) {
            tracing::info!(
                bytes,
                "a snapshot that broke off is not waited for any longer"
            );
            slot.parked = None;
        }
    }
}

impl Receiving {
    /// Bytes that are there already.
    pub(in crate::peer) fn bytes(&self) -> u64 {
        self.partial.bytes
    }

    /// Receives to the end. `arrived` is called with the length of each chunk. What a broken connection leaves is kept
    /// for a while; after any other error nothing stays behind.
    pub(in crate::peer) async fn finish(
        mut self,
        messages: &mut (impl Stream<Item = Result<SnapshotRequest, Status>> + Unpin),
        mut arrived: impl FnMut(&Receiving, u64),
    ) -> Result<Arrived, Status> {
        loop {
            let replaced = self.replaced.clone();
            let message = tokio::select! {
                message = next(messages) => message,
                () = replaced.cancelled() => Err(Status::aborted("another transfer took its place")),
            };
            match message {
                Ok(Some(Part::Chunk(chunk))) => {
                    let bytes = chunk.data.len() as u64;
                    if !self.partial.take(chunk).await? {
                        // It cannot be taken in, and the thread says why.
                        break;
                    }
                    arrived(&self, bytes);
                }
                Ok(Some(Part::End(end))) => {
                    self.partial.end(end).await?;
                    break;
                }
                Ok(Some(Part::Begin(_))) => {
                    return Err(Status::invalid_argument("a snapshot begins in another"));
                }
                Ok(None) => return Err(self.park(Status::aborted("the snapshot broke off"))),
                Err(status) => return Err(self.park(status)),
            }
        }
        let Receiving {
            slot,
            header,
            partial,
            ..
        } = self;
        Ok(Arrived {
            slot,
            header,
            partial,
        })
    }

    /// Keeps what has arrived, for the transfer to go on.
    fn park(self, status: Status) -> Status {
        let Receiving {
            mut slot,
            incoming,
            partial,
            ..
        } = self;
        if partial.origin.1 != 0 && partial.bytes > 0 {
            let expire = incoming.expire(partial.origin, partial.bytes);
            slot.parked = Some(partial);
            tokio::spawn(expire);
        }
        status
    }
}

impl Arrived {
    /// Waits until all of it is taken in.
    pub(in crate::peer) async fn taken_in(self) -> Result<Received, Status> {
        let Arrived {
            slot,
            header,
            partial,
        } = self;
        let Partial {
            origin,
            chunks,
            taking_in,
            ..
        } = partial;
        drop(chunks);
        let taken_in = taking_in
            .await
            .map_err(|error| Status::internal(error.to_string()))?;
        Ok(Received {
            header,
            source: taken_in.map_err(|error| Status::internal(error.to_string()))?,
            origin,
            slot,
        })
    }
}

impl Received {
    /// Takes the parts that installing needs apart.
    pub(in crate::peer) fn into_parts(self) -> (Bytes, Box<dyn SnapshotSource>, Installing) {
        let installing = Installing {
            slot: self.slot,
            origin: self.origin,
        };
        (self.header, self.source, installing)
    }
}

/// Keeps other snapshots out while one is installed.
pub(in crate::peer) struct Installing {
    slot: OwnedMutexGuard<Slot>,
    origin: Origin,
}

impl Installing {
    /// Remembers that the snapshot is installed and what was answered.
    pub(in crate::peer) fn done(mut self, answer: Bytes) {
        self.slot.installed = Some((self.origin, answer));
    }
}

impl Partial {
    fn begin(take_in: Arc<TakeIn>, origin: Origin) -> Partial {
        let (chunks, mut incoming) = mpsc::channel(CHUNKS_AHEAD);
        let taking_in = tokio::task::spawn_blocking(move || {
            take_in(&mut || {
                let given_up = || io::Error::other("its transfer was given up");
                incoming.blocking_recv().ok_or_else(given_up)
            })
        });
        Partial {
            origin,
            chunks,
            taking_in,
            crc: crc32fast::Hasher::new(),
            bytes: 0,
        }
    }

    /// Whether the thread still takes chunks.
    fn is_sound(&self) -> bool {
        !self.taking_in.is_finished()
    }

    /// Hands a chunk to the thread; whether it takes any.
    async fn take(&mut self, chunk: SnapshotChunk) -> Result<bool, Status> {
        let SnapshotChunk { data, crc } = chunk;
        if crc32fast::hash(&data) != crc {
            return Err(Status::data_loss("a chunk's checksum does not match"));
        }
        self.crc.update(&data);
        self.bytes += data.len() as u64;
        Ok(self.chunks.send(Some(data)).await.is_ok())
    }

    /// Tells the thread that this is all, if it is what was sent.
    async fn end(&mut self, end: SnapshotEnd) -> Result<(), Status> {
        let crc = self.crc.clone().finalize();
        let bytes = self.bytes;
        let have = SnapshotEnd { bytes, crc };
        if end != have {
            let text = format!("{have:?} arrived and {end:?} was sent");
            return Err(Status::data_loss(text));
        }
        // If this fails the thread has, and says why.
        let _ = self.chunks.send(None).await;
        Ok(())
    }
}

async fn next(
    messages: &mut (impl Stream<Item = Result<SnapshotRequest, Status>> + Unpin),
) -> Result<Option<Part>, Status> {
    match timeout(SILENCE_MAX, messages.next()).await {
        Ok(message) => Ok(message.transpose()?.and_then(|message| message.part)),
        Err(_) => Err(Status::deadline_exceeded("the sender has fallen silent")),
    }
}
