//! The one writer of a log: batches what is queued, one write and at most one fsync for each batch, then completions.
//!
//! Also decided here: when a segment ends, when the next one is made ready, which old ones go.
//! Invariants:
//! - A batch that needs an fsync is fsynced before the next one is written, and before a new segment exists; so the
//!   only bytes a power cut can take are behind the newest fsync of the newest segment.
//! - Each batch header names what was fsynced before it (`durable`). When the queue is empty and the newest batch has
//!   no successor to say so of it, an empty batch is written, without an fsync: from then on replay can tell damage in
//!   any acknowledged batch from a torn write.
//! - A failed write or fsync is final: what is waiting gets the error, and nothing is ever written again.

use std::collections::VecDeque;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::{Duration, Instant};

use crate::error::{Error, Result};
use crate::fs::{File, Fs};
use crate::preparation::{Mode, Preparation};
use crate::record::{BATCH_HEADER_LEN, BatchHeader, RECORD_ALIGN, Record};
use crate::segment::{self, HEADER_LEN, Identity, SegmentHeader};
use crate::state::Place;
use crate::wal::{Completion, Config, FsyncBatch, Item, OpenSegment, Shared, Sync};

/// A batch is closed when it has this many bytes; a single larger record still makes a batch.
const BATCH_BYTES_MAX: u64 = 4 << 20;
/// The next segment is prepared when a quarter of the current one is used, or this much of a large one.
const PREPARE_AFTER_BYTES: u64 = 4 << 20;
/// How long the queue must stay empty before loose ends are tied.
pub(crate) const IDLE_MOMENT: Duration = Duration::from_millis(50);
/// The encoding buffer is given back when a batch left it larger than this.
const BUFFER_BYTES_KEPT: usize = 1 << 20;

/// Name of the file that becomes a segment for one record that no ordinary segment can hold.
const LARGE_NAME: &str = "large.tmp";

/// What a step came to.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Step {
    /// Something was done; there may be more.
    Progress,
    /// There is nothing to do.
    Idle,
    /// The log has failed; see [`failed`](crate::Wal::failed).
    Failed,
}

/// A segment that is full.
#[derive(Debug)]
pub(crate) struct Sealed {
    pub(crate) sequence: u64,
    pub(crate) file_len: u64,
    /// The greatest index of an entry in it.
    pub(crate) max_index: Option<u64>,
}

/// The newest segment, which is written to.
pub(crate) struct Tail {
    pub(crate) segment: OpenSegment,
    pub(crate) sequence: u64,
    pub(crate) file_len: u64,
    /// The header's crc.
    pub(crate) seed: u32,
    /// Where the next batch goes.
    pub(crate) end: u64,
    /// What the next batch continues.
    pub(crate) crc: u32,
    /// Everything below has been fsynced.
    pub(crate) durable: u64,
    /// The greatest `durable` that a batch header in the file names.
    pub(crate) proven: u64,
    /// The greatest index of an entry in it.
    pub(crate) max_index: Option<u64>,
}

impl Tail {
    /// For records; the header of an empty batch behind them, which proves the last fsync, has its place too.
    fn room(&self) -> u64 {
        (self.file_len - self.end).saturating_sub(2 * BATCH_HEADER_LEN as u64)
    }
}

/// What one batch is made of.
#[derive(Default)]
struct Selection {
    records: Vec<Record>,
    done: Vec<Completion>,
    needs_fsync: bool,
    /// Bytes that the finished calls held in the queue.
    freed: u64,
}

pub(crate) struct Writer {
    shared: Arc<Shared>,
    fs: Arc<dyn Fs>,
    dir: PathBuf,
    identity: Identity,
    preparation: Preparation,
    sealed: VecDeque<Sealed>,
    tail: Tail,
    /// Completions of records that are written and not fsynced.
    waiting: Vec<Completion>,
    unsynced: FsyncBatch,
    buffer: Vec<u8>,
    failed: bool,
}

impl Writer {
    /// The writer of a new log, whose first segment is durable when this returns.
    pub(crate) fn create(
        fs: Arc<dyn Fs>,
        config: &Config,
        mode: Mode,
        shared: Arc<Shared>,
    ) -> Result<Writer> {
        if let Some(parent) = config
            .dir
            .parent()
            .filter(|parent| !parent.as_os_str().is_empty())
        {
            fs.sync_dir(parent)
                .map_err(|error| Error::io("sync", parent, error))?;
        }
        let mut preparation = prepare_for(&fs, config, mode, &shared);
        let file = preparation.take()?;
        let header = SegmentHeader {
            sequence: 1,
            next_index: 0,
            identity: config.identity,
            file_len: config.segment_bytes,
            previous_end: 0,
            previous_crc: 0,
        };
        let tail = start_segment(&*fs, &config.dir, preparation.path(), file, header, &[])?;
        Ok(Writer::new(
            fs,
            config,
            preparation,
            shared,
            VecDeque::new(),
            tail,
        ))
    }

    /// The writer of a log that was replayed and whose tail is settled.
    pub(crate) fn resume(
        fs: Arc<dyn Fs>,
        config: &Config,
        mode: Mode,
        shared: Arc<Shared>,
        sealed: VecDeque<Sealed>,
        tail: Tail,
    ) -> Result<Writer> {
        let large = config.dir.join(LARGE_NAME);
        match fs.remove(&large) {
            Err(error) if error.kind() != std::io::ErrorKind::NotFound => {
                return Err(Error::io("remove", &large, error));
            }
            _ => {}
        }
        // The process that made the newest segment may have died before its name was durable.
        fs.sync_dir(&config.dir)
            .map_err(|error| Error::io("sync", &config.dir, error))?;
        let preparation = prepare_for(&fs, config, mode, &shared);
        Ok(Writer::new(fs, config, preparation, shared, sealed, tail))
    }

    fn new(
        fs: Arc<dyn Fs>,
        config: &Config,
        preparation: Preparation,
        shared: Arc<Shared>,
        sealed: VecDeque<Sealed>,
        tail: Tail,
    ) -> Writer {
        shared
            .segments
            .write()
            .insert(tail.sequence, tail.segment.clone());
        let writer = Writer {
            shared,
            fs,
            dir: config.dir.clone(),
            identity: config.identity,
            preparation,
            sealed,
            tail,
            waiting: Vec::new(),
            unsynced: FsyncBatch::default(),
            buffer: Vec::new(),
            failed: false,
        };
        writer.publish_size();
        writer
    }

    /// Writes one batch, removes old segments, or ties loose ends, whichever comes first.
    pub(crate) fn step(&mut self) -> Step {
        if self.failed {
            return Step::Failed;
        }
        let mut items = self.take_items();
        let outcome = match items.front() {
            None => self.tie_loose_ends(),
            Some(Item::PurgeFiles { below_index }) => {
                self.purge_files(*below_index).map(|()| Step::Progress)
            }
            Some(Item::Append { .. }) => self.write_batch(&mut items).map(|()| Step::Progress),
        };
        match outcome {
            Ok(step) => step,
            Err(error) => {
                self.fail(&error, items);
                Step::Failed
            }
        }
    }

    /// When there is something to do although nothing is queued: how long to wait for better things first.
    pub(crate) fn wake_after(&self) -> Option<Duration> {
        if self.has_unproven() {
            return Some(IDLE_MOMENT);
        }
        self.preparation.wake_after()
    }

    /// Makes all that was written durable, and provably so. The last call on a log that is closed.
    pub(crate) fn finish(&mut self) {
        // Its file stays under its temporary name and serves the next life of this log.
        self.preparation.join();
        if self.failed {
            return;
        }
        let outcome = self.sync_if_needed().and_then(|()| {
            if self.has_unproven() {
                self.write(&[], &mut Vec::new())?;
                self.sync_if_needed()?;
            }
            Ok(())
        });
        if let Err(error) = outcome {
            self.fail(&error, VecDeque::new());
        }
    }

    /// Takes what fits one batch from the queue: calls to append, or one call to purge.
    fn take_items(&self) -> VecDeque<Item> {
        let mut queue = self.shared.queue.lock();
        let mut total = 0;
        let mut count = 0;
        for item in &queue.items {
            match item {
                Item::Append { bytes, .. } if count == 0 || total + bytes <= BATCH_BYTES_MAX => {
                    total += bytes
                }
                Item::PurgeFiles { .. } if count == 0 => {
                    count = 1;
                    break;
                }
                _ => break,
            }
            count += 1;
        }
        queue.items.drain(..count).collect()
    }

    /// Writes as many of the records in `items` as the segment takes, and puts the rest back into the queue.
    fn write_batch(&mut self, items: &mut VecDeque<Item>) -> Result<()> {
        let first = match items.front() {
            Some(Item::Append { records, .. }) => records
                .front()
                .map_or(0, |record| record.encoded_len() as u64),
            _ => 0,
        };
        if first > self.tail.room() {
            self.rotate(first)?;
        }
        let mut selection = select(items, self.tail.room().min(BATCH_BYTES_MAX.max(first)));
        if !items.is_empty() {
            let mut queue = self.shared.queue.lock();
            while let Some(item) = items.pop_back() {
                queue.items.push_front(item);
            }
        }
        if !selection.records.is_empty() {
            self.write(&selection.records, &mut selection.done)?;
        }
        self.waiting.append(&mut selection.done);
        if selection.needs_fsync {
            self.sync()?;
        }
        self.shared.release(selection.freed);
        self.prepare_next();
        Ok(())
    }

    /// Writes one batch and makes its records readable. On an error `done` joins what is waiting for it.
    fn write(&mut self, records: &[Record], done: &mut Vec<Completion>) -> Result<()> {
        let mut places = Vec::with_capacity(records.len());
        let crc = encode_batch(&self.tail, records, &mut self.buffer, &mut places);
        let tail = &mut self.tail;
        if let Err(error) = tail.segment.file.write_at(&self.buffer, tail.end) {
            self.waiting.append(done);
            return Err(Error::io("write", &tail.segment.path, error));
        }
        tail.end += self.buffer.len() as u64;
        tail.crc = crc;
        tail.proven = tail.durable;
        self.unsynced.records += records.len() as u64;
        self.unsynced.bytes += self.buffer.len() as u64;
        let mut state = self.shared.state.write();
        let mut still_flushed = state.last_index();
        let mut truncations = 0;
        for (record, place) in records.iter().zip(places) {
            state
                .apply(record.as_ref(), place)
                .unwrap_or_else(|refused| {
                    panic!("a queued record was checked against the same bounds: {refused:?}")
                });
            match record {
                Record::Entry { index, .. } => tail.max_index = tail.max_index.max(Some(*index)),
                Record::Truncate { after } => {
                    still_flushed = still_flushed.min(*after);
                    truncations += 1;
                }
                _ => {}
            }
        }
        drop(state);
        // A truncation takes effect at once; what is appended behind it, in the same batch too, counts after its fsync.
        self.shared
            .flushed_index
            .fetch_min(still_flushed, Ordering::AcqRel);
        if truncations > 0 {
            let mut queue = self.shared.queue.lock();
            queue.truncations.drain(..truncations);
        }
        self.buffer.clear();
        self.buffer.shrink_to(BUFFER_BYTES_KEPT);
        Ok(())
    }

    fn sync_if_needed(&mut self) -> Result<()> {
        if self.tail.end > self.tail.durable || !self.waiting.is_empty() {
            self.sync()
        } else {
            Ok(())
        }
    }

    /// One fsync, then everything that waits for it.
    fn sync(&mut self) -> Result<()> {
        let tail = &mut self.tail;
        let started = Instant::now();
        tail.segment
            .file
            .sync_data()
            .map_err(|error| Error::io("sync", &tail.segment.path, error))?;
        let took = started.elapsed();
        tail.durable = tail.end;
        self.shared
            .flushed_index
            .store(self.shared.state.read().last_index(), Ordering::Release);
        let batch = std::mem::take(&mut self.unsynced);
        if let Some(observer) = &*self.shared.fsync_observer.read() {
            observer(took, batch);
        }
        for done in self.waiting.drain(..) {
            done(Ok(()));
        }
        Ok(())
    }

    fn has_unproven(&self) -> bool {
        self.tail.proven < self.tail.durable
            && self.tail.file_len - self.tail.end >= BATCH_HEADER_LEN as u64
    }

    /// What is done while nothing is queued.
    fn tie_loose_ends(&mut self) -> Result<Step> {
        let unproven = self.has_unproven();
        if unproven {
            self.write(&[], &mut Vec::new())?;
        }
        self.prepare_next();
        Ok(if unproven { Step::Progress } else { Step::Idle })
    }

    /// Ends the current segment and starts one that takes a record of `need` bytes.
    fn rotate(&mut self, need: u64) -> Result<()> {
        self.sync_if_needed()?;
        let state = self.shared.state.read();
        let repeated: Vec<Record> = [
            state.vote.clone().map(Record::Vote),
            state.committed.clone().map(Record::Committed),
            state
                .bounds
                .purged
                .map(|(index, term)| Record::Purge { index, term }),
        ]
        .into_iter()
        .flatten()
        .collect();
        let next_index = state.bounds.next.unwrap_or(0);
        drop(state);

        let repeated_len: usize = repeated.iter().map(Record::encoded_len).sum();
        let least = (HEADER_LEN + 3 * BATCH_HEADER_LEN + repeated_len) as u64 + need;
        let (temporary, file_len, file) = if least <= self.preparation.len() {
            let file = self.preparation.take()?;
            (
                self.preparation.path().to_owned(),
                self.preparation.len(),
                file,
            )
        } else {
            let path = self.dir.join(LARGE_NAME);
            let len = least.next_multiple_of(4096);
            let file = segment::prepare(&*self.fs, &path, len)?;
            (path, len, file)
        };
        let header = SegmentHeader {
            sequence: self.tail.sequence + 1,
            next_index,
            identity: self.identity,
            file_len,
            previous_end: self.tail.end,
            previous_crc: self.tail.crc,
        };
        let tail = start_segment(&*self.fs, &self.dir, &temporary, file, header, &repeated)?;
        self.shared
            .segments
            .write()
            .insert(tail.sequence, tail.segment.clone());
        let full = std::mem::replace(&mut self.tail, tail);
        tracing::debug!(segment = %full.segment.path.display(), bytes = full.end, "log segment is full");
        self.sealed.push_back(Sealed {
            sequence: full.sequence,
            file_len: full.file_len,
            max_index: full.max_index,
        });
        self.publish_size();
        Ok(())
    }

    /// Sees to it that the next segment is ready in time.
    fn prepare_next(&mut self) {
        let due_at = (self.preparation.len() / 4).min(PREPARE_AFTER_BYTES);
        self.preparation.advance(self.tail.end >= due_at);
        self.publish_size();
    }

    /// Removes full segments whose entries are all below `below_index` and durably purged, oldest first.
    fn purge_files(&mut self, below_index: u64) -> Result<()> {
        if self.unsynced.records > 0 {
            self.sync()?;
        }
        let Some((purged, _)) = self.shared.state.read().bounds.purged else {
            return Ok(());
        };
        let below = below_index.min(purged + 1);
        while let Some(oldest) = self.sealed.front()
            && oldest.max_index.is_none_or(|max| max < below)
        {
            let Some(segment) = self.shared.segments.write().remove(&oldest.sequence) else {
                break;
            };
            if let Err(error) = self.discard(&segment, oldest.file_len) {
                // Nothing is lost by a segment too many, and the next call tries again.
                tracing::warn!(%error, "cannot remove a purged log segment");
                self.shared
                    .segments
                    .write()
                    .insert(oldest.sequence, segment);
                break;
            }
            self.sealed.pop_front();
            // Segments must disappear in order whatever the file system does, and before their blocks are zeroed.
            self.fs
                .sync_dir(&self.dir)
                .map_err(|error| Error::io("sync", &self.dir, error))?;
        }
        self.publish_size();
        Ok(())
    }

    /// Removes a segment's file, or keeps its blocks for the next segment if nobody reads it.
    fn discard(&self, segment: &OpenSegment, file_len: u64) -> Result<()> {
        let path = &segment.path;
        let is_unread = Arc::strong_count(&segment.file) == 1;
        if is_unread && file_len == self.preparation.len() && self.preparation.takes_recycled() {
            self.fs
                .rename(path, self.preparation.path())
                .map_err(|error| Error::io("rename", path, error))
        } else {
            self.fs
                .remove(path)
                .map_err(|error| Error::io("remove", path, error))
        }
    }

    fn publish_size(&self) {
        let prepared = if self.preparation.is_ready() {
            self.preparation.len()
        } else {
            0
        };
        let sealed: u64 = self.sealed.iter().map(|sealed| sealed.file_len).sum();
        self.shared
            .size_bytes
            .store(sealed + self.tail.file_len + prepared, Ordering::Relaxed);
    }

    fn fail(&mut self, error: &Error, items: VecDeque<Item>) {
        self.failed = true;
        tracing::error!(%error, "the log cannot go on");
        let mut unanswered = std::mem::take(&mut self.waiting);
        unanswered.extend(items.into_iter().filter_map(|item| match item {
            Item::Append { done, .. } => done,
            Item::PurgeFiles { .. } => None,
        }));
        self.shared.fail(error, unanswered);
    }
}

fn prepare_for(fs: &Arc<dyn Fs>, config: &Config, mode: Mode, shared: &Shared) -> Preparation {
    let error = Arc::clone(&shared.preparation_error);
    Preparation::new(
        mode,
        Arc::clone(fs),
        &config.dir,
        config.segment_bytes,
        error,
    )
}

/// Moves the records that fit `room` out of `items`, with the completions of the calls that are thereby whole.
fn select(items: &mut VecDeque<Item>, room: u64) -> Selection {
    let mut selection = Selection::default();
    let mut len = 0;
    while let Some(Item::Append {
        records,
        bytes,
        sync,
        done,
    }) = items.front_mut()
    {
        while let Some(record) = records.front() {
            len += record.encoded_len() as u64;
            if len > room {
                return selection;
            }
            selection.records.extend(records.pop_front());
            selection.needs_fsync |= *sync == Sync::Yes;
        }
        // A call without records still asks for an fsync of what is before it.
        selection.needs_fsync |= *sync == Sync::Yes;
        selection.done.extend(done.take());
        selection.freed += *bytes;
        items.pop_front();
    }
    selection
}

/// Encodes a batch into `buffer`, notes where each record comes to lie, and returns the last crc.
fn encode_batch(
    tail: &Tail,
    records: &[Record],
    buffer: &mut Vec<u8>,
    places: &mut Vec<Place>,
) -> u32 {
    let len: usize = records.iter().map(Record::encoded_len).sum();
    assert!(
        len.is_multiple_of(RECORD_ALIGN),
        "records of {len} bytes are not aligned to {RECORD_ALIGN}"
    );
    let header = BatchHeader {
        len: u32::try_from(len).expect("a batch is bounded by its segment or by one record"),
        offset: tail.end,
        durable: tail.durable,
        previous_crc: tail.crc,
    };
    let (header, mut crc) = header.encode(tail.seed);
    buffer.clear();
    buffer.reserve(BATCH_HEADER_LEN + len);
    buffer.extend_from_slice(&header);
    for record in records {
        let offset = tail.end + buffer.len() as u64;
        places.push(Place {
            segment: tail.sequence,
            offset,
            previous_crc: crc,
        });
        crc = record.encode(crc, buffer);
    }
    crc
}

/// Writes header and state into a file of zeros, makes them durable, and makes the file the newest segment.
fn start_segment(
    fs: &dyn Fs,
    dir: &Path,
    temporary: &Path,
    file: Arc<dyn File>,
    header: SegmentHeader,
    repeated: &[Record],
) -> Result<Tail> {
    let (header_bytes, seed) = header.encode();
    let path = segment::path(dir, header.sequence);
    let mut tail = Tail {
        segment: OpenSegment { path, file },
        sequence: header.sequence,
        file_len: header.file_len,
        seed,
        end: HEADER_LEN as u64,
        crc: seed,
        durable: HEADER_LEN as u64,
        proven: HEADER_LEN as u64,
        max_index: None,
    };
    let mut batch = Vec::new();
    tail.crc = encode_batch(&tail, repeated, &mut batch, &mut Vec::new());
    let bytes = [&header_bytes[..], &batch].concat();
    let OpenSegment { path, file } = &tail.segment;
    file.write_at(&bytes, 0)
        .map_err(|error| Error::io("write", temporary, error))?;
    file.sync_data()
        .map_err(|error| Error::io("sync", temporary, error))?;
    fs.rename(temporary, path)
        .map_err(|error| Error::io("rename", temporary, error))?;
    fs.sync_dir(dir)
        .map_err(|error| Error::io("sync", dir, error))?;
    tail.end = bytes.len() as u64;
    tail.durable = tail.end;
    tail.proven = tail.end;
    Ok(tail)
}
