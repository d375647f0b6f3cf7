//! Snapshots on their way between members.
//!
//! The sender reads its source on a blocking thread, a few chunks ahead of the network, and ends with count and checksum
//! of everything. The receiver writes the chunks to a file of `member/snap`, whose bytes are checked on their way in, at
//! its end and again when they are read; only a complete file is installed, and it is removed afterwards.

use std::io;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use bytes::Bytes;
use futures_util::Stream;
use kv_proto::peerpb::snapshot_request::Part;
use kv_proto::peerpb::{SnapshotChunk, SnapshotEnd, SnapshotRequest};
use kv_raft::{Applied, SnapshotSource};
use kv_wal::fs::RealFs;
use kv_wal::snapshot_file::{SnapshotReader, SnapshotWriter};
use parking_lot::Mutex;
use tokio::sync::mpsc;
use tokio_stream::wrappers::ReceiverStream;
use tonic::{Status, Streaming};

/// Chunks read ahead of the network.
const CHUNKS_AHEAD: usize = 2;
/// Most bytes of one message; larger chunks of the source are split.
const CHUNK_BYTES_MAX: usize = 512 << 10;
/// Silence of the sender after which a transfer is given up.
const SILENCE_MAX: Duration = Duration::from_secs(30);
/// Name of the one snapshot that is received at a time.
const FILE: &str = "incoming.snap";

/// How far a transfer is.
#[derive(Clone, Default)]
pub(super) struct Progress(Arc<Shared>);

#[derive(Default)]
struct Shared {
    bytes: AtomicU64,
    failure: Mutex<Option<io::Error>>,
}

impl Progress {
    /// Bytes handed to the network.
    pub(super) fn bytes(&self) -> u64 {
        self.0.bytes.load(Ordering::Relaxed)
    }

    /// Why the source could not be read to its end.
    pub(super) fn failure(&self) -> Option<io::Error> {
        self.0.failure.lock().take()
    }
}

/// The messages of a transfer. A source that fails ends them without an end, so that nothing half is installed.
pub(super) fn send(
    header: Bytes,
    source: Box<dyn SnapshotSource>,
) -> (
    impl Stream<Item = SnapshotRequest> + Send + 'static,
    Progress,
) {
    let (messages, stream) = mpsc::channel(CHUNKS_AHEAD);
    let progress = Progress::default();
    let shared = progress.0.clone();
    tokio::task::spawn_blocking(move || {
        if let Err(error) = read_source(header, source, &messages, &shared) {
            *shared.failure.lock() = Some(error);
        }
    });
    (ReceiverStream::new(stream), progress)
}

fn read_source(
    header: Bytes,
    mut source: Box<dyn SnapshotSource>,
    messages: &mpsc::Sender<SnapshotRequest>,
    shared: &Shared,
) -> io::Result<()> {
    let send = |part| {
        let message = SnapshotRequest { part: Some(part) };
        messages.blocking_send(message).is_ok()
    };
    let mut end = SnapshotEnd::default();
    let mut crc = crc32fast::Hasher::new();
    if !send(Part::Header(header)) {
        return Ok(());
    }
    while let Some(mut chunk) = source.next_chunk()? {
        while !chunk.is_empty() {
            let data = chunk.split_to(chunk.len().min(CHUNK_BYTES_MAX));
            end.bytes += data.len() as u64;
            end.chunks += 1;
            crc.update(&data);
            shared.bytes.store(end.bytes, Ordering::Relaxed);
            let crc = crc32fast::hash(&data);
            // Nobody receives: the transfer was stopped.
            if !send(Part::Chunk(SnapshotChunk { data, crc })) {
                return Ok(());
            }
        }
    }
    end.crc = crc.finalize();
    send(Part::End(end));
    Ok(())
}

/// A snapshot that has arrived completely.
pub(super) struct Received {
    pub(super) header: Bytes,
    pub(super) bytes: u64,
    pub(super) source: Box<dyn SnapshotSource>,
}

/// Removes what an earlier process left behind.
pub(super) fn clear(dir: &Path) {
    for name in [FILE, "incoming.snap.tmp"] {
        match std::fs::remove_file(dir.join(name)) {
            Err(error) if error.kind() != io::ErrorKind::NotFound => {
                tracing::warn!(file = name, %error, "cannot remove an old snapshot");
            }
            _ => {}
        }
    }
}

/// Receives a whole snapshot into `dir`. Refusals are complete answers; nothing stays behind after one.
pub(super) async fn receive(
    dir: &Path,
    mut messages: Streaming<SnapshotRequest>,
) -> Result<Received, Status> {
    let Some(Part::Header(header)) = next(&mut messages).await? else {
        return Err(Status::invalid_argument(
            "a snapshot begins with its header",
        ));
    };
    let path = dir.join(FILE);
    let (chunks, incoming) = mpsc::channel(CHUNKS_AHEAD);
    let written = tokio::task::spawn_blocking(move || write_file(path, incoming));
    let mut crc = crc32fast::Hasher::new();
    let mut have = SnapshotEnd::default();
    let end = loop {
        match next(&mut messages).await? {
            Some(Part::Chunk(SnapshotChunk { data, crc: sum })) => {
                if crc32fast::hash(&data) != sum {
                    return Err(Status::data_loss("a chunk's checksum does not match"));
                }
                crc.update(&data);
                have.bytes += data.len() as u64;
                have.chunks += 1;
                if chunks.send(Some(data)).await.is_err() {
                    // The file cannot be written; the writer says why.
                    break None;
                }
            }
            Some(Part::End(end)) => break Some(end),
            Some(Part::Header(_)) | None => {
                return Err(Status::data_loss("the snapshot ended in its middle"));
            }
        }
    };
    have.crc = crc.finalize();
    if let Some(end) = end {
        if end != have {
            return Err(Status::data_loss(format!(
                "{have:?} arrived and {end:?} was sent"
            )));
        }
        // A failure shows in the writer's result.
        let _ = chunks.send(None).await;
    }
    let file = match written.await {
        Ok(Ok(file)) => file,
        Ok(Err(error)) => return Err(Status::internal(error.to_string())),
        Err(error) => return Err(Status::internal(error.to_string())),
    };
    Ok(Received {
        header,
        bytes: have.bytes,
        source: Box::new(file),
    })
}

async fn next(messages: &mut Streaming<SnapshotRequest>) -> Result<Option<Part>, Status> {
    match tokio::time::timeout(SILENCE_MAX, messages.message()).await {
        Ok(message) => Ok(message?.and_then(|message| message.part)),
        Err(_) => Err(Status::deadline_exceeded("the sender has fallen silent")),
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
