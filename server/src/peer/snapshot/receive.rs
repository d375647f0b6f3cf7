//! The receiving side: one snapshot at a time, kept for a while when its transfer breaks off.

use std::io;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use bytes::Bytes;
use futures_util::{Stream, StreamExt};
use kv_proto::peerpb::snapshot_request::Part;
use kv_proto::peerpb::{SnapshotBegin, SnapshotChunk, SnapshotEnd, SnapshotRequest};
use kv_raft::{Applied, SnapshotSource};
use kv_wal::fs::RealFs;
use kv_wal::snapshot_file::{SnapshotReader, SnapshotWriter};
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
/// What the names of incoming snapshots begin with. Each has a number of its own, since the writer of a transfer that was
/// given up may still be busy when the next begins.
const PREFIX: &str = "incoming-";
static NEXT_NUMBER: AtomicU64 = AtomicU64::new(0);

/// Where snapshots arrive. Clones share it.
#[derive(Clone)]
pub(in crate::peer) struct Incoming {
    dir: PathBuf,
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
    writing: JoinHandle<kv_wal::Result<IncomingFile>>,
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

/// A snapshot that has arrived completely.
pub(in crate::peer) struct Received {
    pub(in crate::peer) header: Bytes,
    pub(in crate::peer) source: Box<dyn SnapshotSource>,
    origin: Origin,
    /// Nothing else is received while this one is installed.
    slot: OwnedMutexGuard<Slot>,
}

impl Incoming {
    /// Snapshots are kept in `dir` until they are installed; what an earlier process left there is removed.
    pub(in crate::peer) fn new(dir: PathBuf) -> Incoming {
        clear(&dir);
        Incoming {
            dir,
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
        let partial = parked.unwrap_or_else(|| Partial::begin(&self.dir, origin));
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
    ) -> Result<Received, Status> {
        let end = loop {
            let replaced = self.replaced.clone();
            let message = tokio::select! {
                message = next(messages) => message,
                () = replaced.cancelled() => Err(Status::aborted("another transfer took its place")),
            };
            match message {
                Ok(Some(Part::Chunk(chunk))) => {
                    let bytes = chunk.data.len() as u64;
                    if !self.partial.take(chunk).await? {
                        // The file cannot be written, and the writer says why.
                        break None;
                    }
                    arrived(&self, bytes);
                }
                Ok(Some(Part::End(end))) => break Some(end),
                Ok(Some(Part::Begin(_))) => {
                    return Err(Status::invalid_argument("a snapshot begins in another"));
                }
                Ok(None) => return Err(self.park(Status::aborted("the snapshot broke off"))),
                Err(status) => return Err(self.park(status)),
            }
        };
        let Receiving {
            slot,
            header,
            partial,
            ..
        } = self;
        let origin = partial.origin;
        let source = Box::new(partial.finish(end).await?);
        Ok(Received {
            header,
            source,
            origin,
            slot,
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
    fn begin(dir: &Path, origin: Origin) -> Partial {
        let number = NEXT_NUMBER.fetch_add(1, Ordering::Relaxed);
        let path = dir.join(format!("{PREFIX}{number}.snap"));
        let (chunks, incoming) = mpsc::channel(CHUNKS_AHEAD);
        let writing = tokio::task::spawn_blocking(move || write_file(path, incoming));
        Partial {
            origin,
            chunks,
            writing,
            crc: crc32fast::Hasher::new(),
            bytes: 0,
        }
    }

    /// Whether the writer still takes chunks.
    fn is_sound(&self) -> bool {
        !self.writing.is_finished()
    }

    /// Hands a chunk to the writer; whether it takes any.
    async fn take(&mut self, chunk: SnapshotChunk) -> Result<bool, Status> {
        let SnapshotChunk { data, crc } = chunk;
        if crc32fast::hash(&data) != crc {
            return Err(Status::data_loss("a chunk's checksum does not match"));
        }
        self.crc.update(&data);
        self.bytes += data.len() as u64;
        Ok(self.chunks.send(Some(data)).await.is_ok())
    }

    /// The complete file, if all that was sent has arrived. Without an end, the writer has failed and says why.
    async fn finish(self, end: Option<SnapshotEnd>) -> Result<IncomingFile, Status> {
        let Partial {
            chunks,
            writing,
            crc,
            bytes,
            ..
        } = self;
        let mut checked = Ok(());
        if let Some(end) = end {
            let crc = crc.finalize();
            let have = SnapshotEnd { bytes, crc };
            if end == have {
                // If this fails the writer has, and says why.
                let _ = chunks.send(None).await;
            } else {
                let text = format!("{have:?} arrived and {end:?} was sent");
                checked = Err(Status::data_loss(text));
            }
        }
        drop(chunks);
        let written = writing
            .await
            .map_err(|error| Status::internal(error.to_string()))?;
        checked?;
        written.map_err(|error| Status::internal(error.to_string()))
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

/// Removes what an earlier process left behind.
fn clear(dir: &Path) {
    for file in std::fs::read_dir(dir).into_iter().flatten().flatten() {
        if !file.file_name().to_string_lossy().starts_with(PREFIX) {
            continue;
        }
        if let Err(error) = std::fs::remove_file(file.path()) {
            tracing::warn!(file = %file.path().display(), %error, "cannot remove an old snapshot");
        }
    }
}

/// Writes chunks until `None`, which makes the file complete; a channel that closes before leaves nothing.
fn write_file(
    path: PathBuf,
    mut chunks: mpsc::Receiver<Option<Bytes>>,
) -> kv_wal::Result<IncomingFile> {
    let mut writer = SnapshotWriter::create(Arc::new(RealFs), &path)?;
    loop {
        match chunks.blocking_recv() {
            Some(Some(chunk)) => writer.write(&chunk)?,
            Some(None) => break,
            None => {
                return Err(kv_wal::Error::Closed);
            }
        }
    }
    writer.finish()?;
    let reader = SnapshotReader::open(&RealFs, &path)?;
    Ok(IncomingFile { path, reader })
}

/// A received snapshot; the file goes with it.
struct IncomingFile {
    path: PathBuf,
    reader: SnapshotReader,
}

impl SnapshotSource for IncomingFile {
    fn applied(&self) -> Applied {
        // What it contains is in its header, which raft reads.
        Applied::default()
    }

    fn next_chunk(&mut self) -> io::Result<Option<Bytes>> {
        self.reader.next_chunk().map_err(io::Error::other)
    }
}

impl Drop for IncomingFile {
    fn drop(&mut self) {
        if let Err(error) = std::fs::remove_file(&self.path) {
            tracing::warn!(file = %self.path.display(), %error, "cannot remove a snapshot");
        }
    }
}
