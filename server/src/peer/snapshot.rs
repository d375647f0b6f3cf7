//! Snapshots on their way between members.
//!
//! The sender asks first how much the receiver has of this snapshot already. It then reads its source on a blocking
//! thread, a few chunks ahead of the network and no faster than [`BYTES_PER_SEC_MAX`], leaves out what is there, and ends
//! with length and checksum of everything. The receiver ([`receive`]) makes a database of the chunks while they arrive,
//! beside the one in use; each chunk is checked, and all of them at the end, before that database is complete.
//!
//! Neither side waits for the whole: what counts is that something happens within [`SILENCE_MAX`].

pub(super) mod receive;

use std::io;
use std::sync::Arc;
use std::time::{Duration, Instant};

use bytes::Bytes;
use kv_proto::peerpb::snapshot_request::Part;
use kv_proto::peerpb::{SnapshotBegin, SnapshotChunk, SnapshotEnd, SnapshotRequest};
use kv_raft::SnapshotSource;
use parking_lot::Mutex;
use prometheus::IntCounter;
use tokio::sync::mpsc;
use tokio_stream::wrappers::ReceiverStream;

/// Chunks read ahead of the network.
const CHUNKS_AHEAD: usize = 2;
/// Most bytes of one message; larger chunks of the source are split.
const CHUNK_BYTES_MAX: usize = 512 << 10;
/// A snapshot leaves the disk, the processor and the network to those who write meanwhile: 1 GiB takes 21 s.
const BYTES_PER_SEC_MAX: u64 = 48 << 20;
/// Silence of the other side after which a transfer is given up.
pub(super) const SILENCE_MAX: Duration = Duration::from_secs(30);

/// The sending side of one transfer.
pub(super) struct Sending {
    /// Taken by the reader, with whose end the messages end.
    messages: Mutex<Option<mpsc::Sender<SnapshotRequest>>>,
    failure: Arc<Mutex<Option<io::Error>>>,
    /// Counts the bytes handed to the network.
    sent: IntCounter,
}

impl Sending {
    /// A transfer of the snapshot `id`, and its messages, the first of which is there already.
    pub(super) fn begin(
        header: Bytes,
        id: u64,
        sent: IntCounter,
    ) -> (Sending, ReceiverStream<SnapshotRequest>) {
        let (messages, stream) = mpsc::channel(CHUNKS_AHEAD);
        let begin = Part::Begin(SnapshotBegin { header, id });
        let begin = SnapshotRequest { part: Some(begin) };
        messages
            .try_send(begin)
            .expect("a new channel has room for a message");
        let sending = Sending {
            messages: Mutex::new(Some(messages)),
            failure: Arc::default(),
            sent,
        };
        (sending, ReceiverStream::new(stream))
    }

    /// Sends what `source` holds behind the first `have` bytes. A source that fails ends the messages without an end, so
    /// that nothing half is installed. Once.
    pub(super) fn send(&self, have: u64, source: Box<dyn SnapshotSource>) {
        let Some(messages) = self.messages.lock().take() else {
            return;
        };
        let sent = self.sent.clone();
        let failure = self.failure.clone();
        tokio::task::spawn_blocking(move || {
            if let Err(error) = read_source(have, source, &messages, &sent) {
                *failure.lock() = Some(error);
            }
        });
    }

    /// Why the source could not be read to its end.
    pub(super) fn failure(&self) -> Option<io::Error> {
        self.failure.lock().take()
    }
}

fn read_source(
    have: u64,
    mut source: Box<dyn SnapshotSource>,
    messages: &mpsc::Sender<SnapshotRequest>,
    sent: &IntCounter,
) -> io::Result<()> {
    let send = |part| {
        let message = SnapshotRequest { part: Some(part) };
        messages.blocking_send(message).is_ok()
    };
    let mut pace = Pace::begin();
    let mut end = SnapshotEnd::default();
    let mut crc = crc32fast::Hasher::new();
    while let Some(mut chunk) = source.next_chunk()? {
        crc.update(&chunk);
        let skipped = have.saturating_sub(end.bytes).min(chunk.len() as u64);
        end.bytes += chunk.len() as u64;
        // At most the whole chunk.
        let _ = chunk.split_to(skipped as usize);
        while !chunk.is_empty() {
            let data = chunk.split_to(chunk.len().min(CHUNK_BYTES_MAX));
            sent.inc_by(data.len() as u64);
            pace.wait(data.len() as u64);
            let crc = crc32fast::hash(&data);
            // Nobody receives: the transfer was stopped.
            if !send(Part::Chunk(SnapshotChunk { data, crc })) {
                return Ok(());
            }
        }
    }
    if end.bytes < have {
        return Err(io::Error::new(
            io::ErrorKind::InvalidData,
            format!(
                "the receiver has {have} bytes of a snapshot of {}",
                end.bytes
            ),
        ));
    }
    end.crc = crc.finalize();
    send(Part::End(end));
    Ok(())
}

/// Holds a transfer to [`BYTES_PER_SEC_MAX`].
struct Pace {
    begun: Instant,
    bytes: u64,
}

impl Pace {
    fn begin() -> Pace {
        Pace {
            begun: Instant::now(),
            bytes: 0,
        }
    }

    /// Waits until `bytes` more may go; blocks the thread.
    fn wait(&mut self, bytes: u64) {
        self.bytes += bytes;
        let due = Duration::from_secs_f64(self.bytes as f64 / BYTES_PER_SEC_MAX as f64);
        let ahead = due.saturating_sub(self.begun.elapsed());
        if !ahead.is_zero() {
            std::thread::sleep(ahead);
        }
    }
}

#[cfg(test)]
mod tests;
