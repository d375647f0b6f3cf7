//! Replay across segments at start, and reads of single entries afterwards.
//!
//! Replay refuses whatever it cannot explain: a missing segment, a hole, another member's file, a bad record anywhere
//! but at the end of the newest segment. What may stand at that end is judged by [`crate::repair`].

use std::collections::VecDeque;
use std::path::Path;

use bytes::Bytes;

use crate::error::{Error, Result};
use crate::fs::{File, Fs};
use crate::record::{self, BATCH_HEADER_LEN, Bad, BatchHeader, RecordRef};
use crate::segment::{self, HEADER_LEN, Identity, SegmentHeader};
use crate::state::{LogState, Place, Slot};
use crate::wal::{OpenSegment, Shared};
use crate::writer::{Sealed, Tail};

/// How much replay reads at once.
const WINDOW_BYTES: usize = 1 << 20;
/// Entries that lie further apart are read apart.
const READ_GAP_BYTES_MAX: u64 = 64 << 10;

/// A log as replay found it.
pub(crate) struct Replayed {
    pub(crate) state: LogState,
    pub(crate) sealed: VecDeque<Sealed>,
    pub(crate) segments: Vec<(u64, OpenSegment)>,
    /// The newest segment. Nothing is known of what lies behind its `end`.
    pub(crate) tail: Tail,
}

/// A segment file whose header is right.
struct Found {
    segment: OpenSegment,
    header: SegmentHeader,
    seed: u32,
}

/// Where the valid batches of a segment end.
struct Walk {
    end: u64,
    crc: u32,
    /// The greatest `durable` among the batch headers.
    proven: u64,
    max_index: Option<u64>,
    /// Why there is no batch at `end`.
    bad: Option<Bad>,
}

/// Reads every segment of the log in `dir`.
pub(crate) fn replay(fs: &dyn Fs, dir: &Path, identity: Identity) -> Result<Replayed> {
    let found = find_segments(fs, dir, identity)?;
    let mut state = LogState::default();
    let mut sealed = VecDeque::new();
    let mut segments = Vec::new();
    let mut tail = None;
    for (at, this) in found.iter().enumerate() {
        let next = found.get(at + 1);
        let path = &this.segment.path;
        if at > 0 && this.header.next_index != state.bounds.next.unwrap_or(0) {
            let what = format!(
                "the segment expects entry {}, the log before it ends before entry {}",
                this.header.next_index,
                state.bounds.next.unwrap_or(0)
            );
            return Err(Error::damage(path, 0, what));
        }
        let walk = walk(
            this,
            at == 0,
            next.map(|next| next.header.previous_end),
            &mut state,
        )?;
        if let Some(next) = next {
            if (walk.end, walk.crc) != (next.header.previous_end, next.header.previous_crc) {
                let what = match walk.bad {
                    Some(bad) => format!(
                        "{bad}, before records that follow in {}",
                        next.segment.path.display()
                    ),
                    None => format!("the records do not lead to {}", next.segment.path.display()),
                };
                return Err(Error::damage(path, walk.end, what));
            }
            sealed.push_back(Sealed {
                sequence: this.header.sequence,
                file_len: this.header.file_len,
                max_index: walk.max_index,
            });
        } else {
            tail = Some(Tail {
                segment: this.segment.clone(),
                sequence: this.header.sequence,
                file_len: this.header.file_len,
                seed: this.seed,
                end: walk.end,
                crc: walk.crc,
                durable: walk.end,
                proven: walk.proven,
                max_index: walk.max_index,
            });
        }
        segments.push((this.header.sequence, this.segment.clone()));
    }
    check_start(&found[0], &state)?;
    let tail = tail.expect("a log has at least one segment, and the last one is the tail");
    Ok(Replayed {
        state,
        sealed,
        segments,
        tail,
    })
}

/// Opens the segments and checks that each is what its name and its neighbours say.
fn find_segments(fs: &dyn Fs, dir: &Path, identity: Identity) -> Result<Vec<Found>> {
    let listed = segment::list(fs, dir)?;
    let Some((first, _)) = listed.first() else {
        return Err(Error::NotFound {
            dir: dir.to_owned(),
        });
    };
    let mut found = Vec::new();
    for ((sequence, path), expected) in listed.iter().zip(*first..) {
        if *sequence != expected {
            let missing = segment::path(dir, expected);
            return Err(Error::damage(
                &missing,
                0,
                format!("the segment is missing, and {} exists", path.display()),
            ));
        }
        let file = fs
            .open(path)
            .map_err(|error| Error::io("open", path, error))?;
        let len = file.len().map_err(|error| Error::io("size", path, error))?;
        if len < HEADER_LEN as u64 {
            return Err(Error::damage(
                path,
                len,
                "the file is shorter than a segment header",
            ));
        }
        let mut bytes = [0; HEADER_LEN];
        file.read_exact_at(&mut bytes, 0)
            .map_err(|error| Error::io("read", path, error))?;
        let (header, seed) = SegmentHeader::decode(&bytes, path)?;
        if header.identity != identity {
            return Err(Error::ForeignIdentity {
                file: path.clone(),
                found: header.identity,
                wanted: identity,
            });
        }
        if header.sequence != *sequence {
            let what = format!("the header is that of segment {:016x}", header.sequence);
            return Err(Error::damage(path, 0, what));
        }
        if header.file_len != len {
            let what = format!(
                "the file is {len} bytes long and was made with {}",
                header.file_len
            );
            return Err(Error::damage(path, len.min(header.file_len), what));
        }
        found.push(Found {
            segment: OpenSegment {
                path: path.clone(),
                file,
            },
            header,
            seed,
        });
    }
    Ok(found)
}

/// The log must begin where its purge mark says.
fn check_start(first: &Found, state: &LogState) -> Result<()> {
    let path = &first.segment.path;
    match state.bounds.purged {
        None if first.header.sequence == 1 => Ok(()),
        None => Err(Error::damage(
            path,
            0,
            "the segments before this one are missing, and nothing was purged",
        )),
        Some((purged, _)) if state.live().start == purged + 1 => Ok(()),
        Some((purged, _)) => {
            let what = format!(
                "the segments before this one are missing: the log is purged up to entry {purged} and begins with {}",
                state.live().start
            );
            Err(Error::damage(path, 0, what))
        }
    }
}

/// Takes in the batches of one segment, up to `stop` or to the first place where there is none.
fn walk(found: &Found, is_first: bool, stop: Option<u64>, state: &mut LogState) -> Result<Walk> {
    let path = &found.segment.path;
    let mut window = Window::new(&*found.segment.file, path, found.header.file_len);
    let mut walk = Walk {
        end: HEADER_LEN as u64,
        crc: found.seed,
        proven: HEADER_LEN as u64,
        max_index: None,
        bad: None,
    };
    while stop != Some(walk.end) {
        let (header, header_crc, body) = match window.batch(walk.end, found.seed)? {
            Ok(batch) => batch,
            Err(bad) => {
                walk.bad = Some(bad);
                break;
            }
        };
        if header.previous_crc != walk.crc {
            // The header verifies by itself, so it was written here, after something else than what is here now.
            return Err(Error::damage(
                path,
                walk.end,
                "a batch that does not continue the one before it",
            ));
        }
        let body_offset = walk.end + BATCH_HEADER_LEN as u64;
        let mut records: Vec<(Place, RecordRef<'_>)> = Vec::new();
        let decoded = record::decode_batch(body, header_crc, |offset, previous_crc, record| {
            let offset = body_offset + offset as u64;
            records.push((
                Place {
                    segment: found.header.sequence,
                    offset,
                    previous_crc,
                },
                record,
            ));
        });
        match decoded {
            Ok(crc) => walk.crc = crc,
            Err((offset, Bad::Kind)) => {
                return Err(Error::damage(
                    path,
                    body_offset + offset as u64,
                    Bad::Kind.to_string(),
                ));
            }
            Err((_, bad)) => {
                walk.bad = Some(bad);
                break;
            }
        }
        for (place, record) in records {
            state.apply(record, place).map_err(|refused| {
                let what = format!(
                    "{} {} where {} was expected",
                    refused.what, refused.found, refused.expected
                );
                Error::damage(path, place.offset, what)
            })?;
            if let RecordRef::Entry { index, .. } = record {
                walk.max_index = walk.max_index.max(Some(index));
            }
        }
        if walk.end == HEADER_LEN as u64 && is_first && found.header.next_index > 0 {
            // Older segments are gone; what they held is checked against the purge mark at the end of replay.
            state.bounds.next = state.bounds.next.max(Some(found.header.next_index));
        }
        walk.end = body_offset + body.len() as u64;
        walk.proven = walk.proven.max(header.durable);
    }
    if walk.end == HEADER_LEN as u64 {
        // It was fsynced before the file got its name.
        return Err(Error::damage(
            path,
            walk.end,
            "the segment's first batch is not valid",
        ));
    }
    Ok(walk)
}

/// A file read front to back in large pieces.
pub(crate) struct Window<'a> {
    file: &'a dyn File,
    path: &'a Path,
    len: u64,
    buffer: Vec<u8>,
    start: u64,
}

impl<'a> Window<'a> {
    pub(crate) fn new(file: &'a dyn File, path: &'a Path, len: u64) -> Window<'a> {
        Window {
            file,
            path,
            len,
            buffer: Vec::new(),
            start: 0,
        }
    }

    /// `len` bytes at `offset`, which must lie in the file.
    pub(crate) fn bytes(&mut self, offset: u64, len: usize) -> Result<&[u8]> {
        let end = offset + len as u64;
        assert!(
            end <= self.len,
            "bytes up to {end} are wanted of a file of {}",
            self.len
        );
        if offset < self.start || end > self.start + self.buffer.len() as u64 {
            let left = usize::try_from(self.len - offset).unwrap_or(usize::MAX);
            self.buffer.resize(len.max(WINDOW_BYTES).min(left), 0);
            self.start = offset;
            self.file
                .read_exact_at(&mut self.buffer, offset)
                .map_err(|error| Error::io("read", self.path, error))?;
        }
        let at = usize::try_from(offset - self.start).expect("the offset is inside the buffer");
        Ok(&self.buffer[at..at + len])
    }

    /// The batch at `offset`: its header, the header's crc, its records.
    #[allow(clippy::type_complexity)]
    fn batch(&mut self, offset: u64, seed: u32) -> Result<Result<(BatchHeader, u32, &[u8]), Bad>> {
        let left = self.len - offset;
        if left < BATCH_HEADER_LEN as u64 {
            return Ok(Err(Bad::Length));
        }
        let (header, crc) =
            match BatchHeader::decode(self.bytes(offset, BATCH_HEADER_LEN)?, offset, seed) {
                Ok(decoded) => decoded,
                Err(bad) => return Ok(Err(bad)),
            };
        if u64::from(header.len) > left - BATCH_HEADER_LEN as u64 {
            return Ok(Err(Bad::Length));
        }
        let body = self.bytes(offset + BATCH_HEADER_LEN as u64, header.len as usize)?;
        Ok(Ok((header, crc, body)))
    }
}

/// See [`crate::Wal::read_entries`].
pub(crate) fn read_entries(
    shared: &Shared,
    from: u64,
    to_exclusive: u64,
    max_bytes: u64,
) -> Result<Vec<(u64, u64, Bytes)>> {
    if from >= to_exclusive {
        return Ok(Vec::new());
    }
    let mut runs: Vec<(OpenSegment, Vec<(u64, Slot)>)> = Vec::new();
    {
        let state = shared.state.read();
        let live = state.live();
        if !live.contains(&from) {
            return Err(Error::NoEntry {
                index: from,
                first: live.start,
                next: live.end,
            });
        }
        let segments = shared.segments.read();
        let mut bytes = 0;
        let mut last: Option<Slot> = None;
        for (index, slot) in state.range(from, to_exclusive) {
            bytes += u64::from(slot.payload_len);
            if bytes > max_bytes && index > from {
                break;
            }
            let adjacent = last.is_some_and(|last| {
                last.segment() == slot.segment() && slot.offset() - last.end() <= READ_GAP_BYTES_MAX
            });
            match runs.last_mut() {
                Some((_, run)) if adjacent => run.push((index, slot)),
                _ => {
                    let segment = segments
                        .get(&slot.segment())
                        .expect("a segment with live entries is open");
                    runs.push((segment.clone(), vec![(index, slot)]));
                }
            }
            last = Some(slot);
        }
    }
    let mut entries = Vec::new();
    for (segment, run) in runs {
        read_run(&segment, &run, &mut entries)?;
    }
    Ok(entries)
}

/// Reads entries that lie together, with one read.
fn read_run(
    segment: &OpenSegment,
    run: &[(u64, Slot)],
    entries: &mut Vec<(u64, u64, Bytes)>,
) -> Result<()> {
    let path = &segment.path;
    let (Some((_, first)), Some((_, last))) = (run.first(), run.last()) else {
        return Ok(());
    };
    let start = first.offset();
    let len = usize::try_from(last.end() - start)
        .expect("a run fits memory: it is bounded by the bytes asked for");
    let mut buffer = vec![0; len];
    segment
        .file
        .read_exact_at(&mut buffer, start)
        .map_err(|error| Error::io("read", path, error))?;
    for (index, slot) in run {
        let at = usize::try_from(slot.offset() - start).expect("inside the run");
        let end = usize::try_from(slot.end() - start).expect("inside the run");
        match record::decode(&buffer[at..end], slot.previous_crc).map(|decoded| decoded.record) {
            Ok(RecordRef::Entry {
                index: found,
                term,
                payload,
            }) if (found, term) == (*index, slot.term) => {
                entries.push((found, term, Bytes::copy_from_slice(payload)));
            }
            Ok(_) => {
                return Err(Error::damage(
                    path,
                    slot.offset(),
                    format!("another record in place of entry {index}"),
                ));
            }
            Err(bad) => {
                return Err(Error::damage(
                    path,
                    slot.offset(),
                    format!("entry {index}: {bad}"),
                ));
            }
        }
    }
    Ok(())
}
