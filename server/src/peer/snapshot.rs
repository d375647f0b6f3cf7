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
use futures_util::{Stream, StreamExt};
use kv_proto::peerpb::snapshot_request::Part;
use kv_proto::peerpb::{SnapshotChunk, SnapshotEnd, SnapshotRequest};
use kv_raft::{Applied, SnapshotSource};
use kv_wal::fs::RealFs;
use kv_wal::snapshot_file::{SnapshotReader, SnapshotWriter};
use parking_lot::Mutex;
use tokio::sync::mpsc;
use tokio_stream::wrappers::ReceiverStream;
use tonic::Status;

/// Chunks read ahead of the network.
const CHUNKS_AHEAD: usize = 2;
/// Most bytes of one message; larger chunks of the source are split.
const CHUNK_BYTES_MAX: usize = 512 << 10;
/// Silence of the sender after which a transfer is given up.
const SILENCE_MAX: Duration = Duration::from_secs(30);
/// What the names of incoming snapshots begin with. Each has a number of its own, since the writer of a transfer that was
/// given up may still be busy when the next begins.
const PREFIX: &str = "incoming-";
static NEXT_NUMBER: AtomicU64 = AtomicU64::new(0);

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
    for file in std::fs::read_dir(dir).into_iter().flatten().flatten() {
        if !file.file_name().to_string_lossy().starts_with(PREFIX) {
            continue;
        }
        if let Err(error) = std::fs::remove_file(file.path()) {
            tracing::warn!(file = %file.path().display(), %error, "cannot remove an old snapshot");
        }
    }
}

/// Receives a whole snapshot into `dir`. Refusals are complete answers; nothing stays behind after one.
pub(super) async fn receive(
    dir: &Path,
    mut messages: impl Stream<Item = Result<SnapshotRequest, Status>> + Unpin,
) -> Result<Received, Status> {
    let Some(Part::Header(header)) = next(&mut messages).await? else {
        return Err(Status::invalid_argument(
            "a snapshot begins with its header",
        ));
    };
    let number = NEXT_NUMBER.fetch_add(1, Ordering::Relaxed);
    let path = dir.join(format!("{PREFIX}{number}.snap"));
    let (chunks, incoming) = mpsc::channel(CHUNKS_AHEAD);
    let writing = tokio::task::spawn_blocking(move || write_file(path, incoming));
    let arrived = take_chunks(&mut messages, &chunks).await;
    drop(chunks);
    let written = writing
        .await
        .map_err(|error| Status::internal(error.to_string()))?;
    let bytes = arrived?;
    let file = written.map_err(|error| Status::internal(error.to_string()))?;
    Ok(Received {
        header,
        bytes,
        source: Box::new(file),
    })
}

/// Hands the chunks to the writer, and `None` once all that was sent has arrived; returns how many bytes did.
async fn take_chunks(
    messages: &mut (impl Stream<Item = Result<SnapshotRequest, Status>> + Unpin),
    chunks: &mpsc::Sender<Option<Bytes>>,
) -> Result<u64, Status> {
    let mut crc = crc32fast::Hasher::new();
    let mut have = SnapshotEnd::default();
    loop {
        match next(messages).await? {
            Some(Part::Chunk(SnapshotChunk { data, crc: sum })) => {
                if crc32fast::hash(&data) != sum {
                    return Err(Status::data_loss("a chunk's checksum does not match"));
                }
                crc.update(&data);
                have.bytes += data.len() as u64;
                have.chunks += 1;
                if chunks.send(Some(data)).await.is_err() {
                    // The file cannot be written, and the writer says why.
                    return Ok(have.bytes);
                }
            }
            Some(Part::End(end)) => {
                have.crc = crc.finalize();
                if end != have {
                    return Err(Status::data_loss(format!(
                        "{have:?} arrived and {end:?} was sent"
                    )));
                }
                // If this fails the writer has, and says why.
                let _ = chunks.send(None).await;
                return Ok(have.bytes);
            }
            Some(Part::Header(_)) | None => {
                return Err(Status::data_loss("the snapshot ended in its middle"));
            }
        }
    }
}

async fn next(
    messages: &mut (impl Stream<Item = Result<SnapshotRequest, Status>> + Unpin),
) -> Result<Option<Part>, Status> {
    match tokio::time::timeout(SILENCE_MAX, messages.next()).await {
        Ok(message) => Ok(message.transpose()?.and_then(|message| message.part)),
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

#[cfg(test)]
mod tests {
    use super::*;

    /// A source of given chunks, which may break off.
    struct Chunks {
        left: Vec<Bytes>,
        breaks_off: bool,
    }

    impl SnapshotSource for Chunks {
        fn applied(&self) -> Applied {
            Applied::default()
        }

        fn next_chunk(&mut self) -> io::Result<Option<Bytes>> {
            if self.left.is_empty() {
                return if self.breaks_off {
                    Err(io::Error::other("the disk is gone"))
                } else {
                    Ok(None)
                };
            }
            Ok(Some(self.left.remove(0)))
        }
    }

    /// More than one message each, and less.
    fn chunks() -> Vec<Bytes> {
        let large: Vec<u8> = (0..CHUNK_BYTES_MAX * 2 + 7).map(|n| n as u8).collect();
        vec![Bytes::from_static(b"small"), large.into(), Bytes::new()]
    }

    async fn messages(breaks_off: bool) -> (Vec<SnapshotRequest>, Progress) {
        let source = Chunks {
            left: chunks(),
            breaks_off,
        };
        let (stream, progress) = send(Bytes::from_static(b"header"), Box::new(source));
        (stream.collect().await, progress)
    }

    async fn arrive(dir: &Path, messages: Vec<SnapshotRequest>) -> Result<Received, Status> {
        receive(
            dir,
            futures_util::stream::iter(messages.into_iter().map(Ok)),
        )
        .await
    }

    fn is_empty(dir: &Path) -> bool {
        std::fs::read_dir(dir).unwrap().next().is_none()
    }

    #[tokio::test]
    async fn what_arrives_is_what_was_sent_and_goes_when_it_is_read() {
        let dir = tempfile::tempdir().unwrap();
        let (messages, progress) = messages(false).await;
        let total: usize = chunks().iter().map(Bytes::len).sum();
        assert_eq!(progress.bytes(), total as u64);

        let mut received = arrive(dir.path(), messages).await.unwrap();

        assert_eq!(
            (&received.header[..], received.bytes),
            (&b"header"[..], total as u64)
        );
        let mut bytes = Vec::new();
        while let Some(chunk) = received.source.next_chunk().unwrap() {
            bytes.extend_from_slice(&chunk);
        }
        assert_eq!(bytes, chunks().concat());
        drop(received);
        assert!(is_empty(dir.path()));
    }

    #[tokio::test]
    async fn snapshot_that_loses_or_changes_a_message_is_refused_and_leaves_nothing() {
        let dir = tempfile::tempdir().unwrap();
        let (whole, _) = messages(false).await;
        let count = whole.len();
        for n in 0..count {
            let mut lost = whole.clone();
            lost.remove(n);
            assert!(arrive(dir.path(), lost).await.is_err(), "message {n} lost");
            let cut = whole[..n].to_vec();
            assert!(arrive(dir.path(), cut).await.is_err(), "cut before {n}");
            let mut changed = whole.clone();
            match &mut changed[n].part {
                Some(Part::Chunk(chunk)) => chunk.crc ^= 1,
                Some(Part::End(end)) => end.crc ^= 1,
                _ => continue,
            }
            assert!(
                arrive(dir.path(), changed).await.is_err(),
                "message {n} changed"
            );
        }
        assert!(is_empty(dir.path()));
    }

    #[tokio::test]
    async fn source_that_breaks_off_sends_no_end() {
        let dir = tempfile::tempdir().unwrap();
        let (messages, progress) = messages(true).await;
        assert!(progress.failure().is_some());
        assert!(arrive(dir.path(), messages).await.is_err());
    }
}
