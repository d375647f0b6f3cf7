//! The end of the newest segment: is it torn, or damaged? Torn is cut; nothing else is ever repaired.
//!
//! Between two fsyncs a disk may keep any of the new pages and lose any other, so a power cut can leave a bad batch
//! with good ones behind it: same batch, later pages; or a later batch that was not fsynced either. None of that was
//! acknowledged. But a bad batch that *was* fsynced may be acknowledged, and must never be cut. The rule that tells:
//!
//! > Each batch header holds `durable`, the offset below which all had been fsynced when it was written. If a bad
//! > batch at offset X is followed, anywhere, by a valid header with `durable` > X, it was fsynced: damage. If there
//! > is no such header, no batch was written after an fsync that covered X: whatever lies from X on is torn.
//!
//! Such a header is looked for at every aligned offset, as lengths mean nothing behind a bad record; it verifies by
//! itself and names its own offset, so payload bytes cannot pass for one. The rule needs a successor of the newest
//! fsynced batch: under load the next batch is it, a commit position that follows an entry is it, and when the queue
//! is empty the writer adds an empty batch. Only if power fails in the instant between an fsync and that successor,
//! and the disk has damaged just that batch as well, is damage taken for a torn write; the cut is reported, and the
//! damaged batch is not served.
//!
//! One thing is taken from the disk on trust: a page that power fails on while it is overwritten keeps, sector by
//! sector, its old or its new bytes, as neighbouring batches share pages.
//!
//! What is kept is written once more and fsynced before anyone sees it: it may so far be in the page cache alone, and
//! after an fsync that failed in an earlier process the cache claims to be clean. What is cut is overwritten with
//! zeros and fsynced before the first new batch, so that no stale batch can ever follow a new one.

use std::path::PathBuf;

use crate::error::{Error, Result};
use crate::reader::Window;
use crate::record::{BATCH_HEADER_LEN, BatchHeader, RECORD_ALIGN};
use crate::segment;
use crate::writer::Tail;

/// How much is looked at or rewritten at once; a multiple of the record alignment.
const CHUNK_BYTES: usize = 256 << 10;

const _: () = assert!(CHUNK_BYTES.is_multiple_of(RECORD_ALIGN));

/// A torn tail that was cut at start. Nothing in it was acknowledged.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Cut {
    /// The segment.
    pub file: PathBuf,
    /// Where the torn batch began.
    pub offset: u64,
    /// From there to the last byte that was not zero.
    pub bytes: u64,
}

/// Refuses damage, cuts a torn write, and makes the rest of the newest segment durable.
pub(crate) fn settle_tail(tail: &Tail) -> Result<Option<Cut>> {
    let dirty_end = inspect(tail)?;
    let (path, file) = (&tail.segment.path, &*tail.segment.file);
    let mut window = Window::new(file, path, tail.file_len);
    let mut offset = tail.proven;
    while offset < tail.end {
        let len =
            usize::try_from(tail.end - offset).map_or(CHUNK_BYTES, |left| left.min(CHUNK_BYTES));
        file.write_at(window.bytes(offset, len)?, offset)
            .map_err(|error| Error::io("rewrite", path, error))?;
        offset += len as u64;
    }
    segment::zero(file, path, tail.end, dirty_end)?;
    if dirty_end == tail.end {
        return Ok(None);
    }
    let cut = Cut {
        file: path.clone(),
        offset: tail.end,
        bytes: dirty_end - tail.end,
    };
    tracing::warn!(file = %path.display(), offset = cut.offset, bytes = cut.bytes, "cut a torn write off the log");
    Ok(Some(cut))
}

/// Where the bytes that are not zero end; damage if one of the batches among them vouches for what is before it.
fn inspect(tail: &Tail) -> Result<u64> {
    let (path, file) = (&tail.segment.path, &*tail.segment.file);
    let mut window = Window::new(file, path, tail.file_len);
    let mut dirty_end = tail.end;
    let mut offset = tail.end;
    while offset < tail.file_len {
        let left = usize::try_from(tail.file_len - offset).unwrap_or(usize::MAX);
        let chunk = left.min(CHUNK_BYTES);
        // A header that starts in this chunk may end in the next.
        let bytes = window.bytes(offset, left.min(CHUNK_BYTES + BATCH_HEADER_LEN))?;
        if let Some(last) = last_nonzero(&bytes[..chunk]) {
            dirty_end = offset + last as u64 + 1;
            for at in (0..chunk).step_by(RECORD_ALIGN) {
                let here = offset + at as u64;
                if BatchHeader::maybe_at(&bytes[at..])
                    && let Ok((header, _)) = BatchHeader::decode(&bytes[at..], here, tail.seed)
                    && header.durable > tail.end
                {
                    let what = format!(
                        "an invalid record, before a valid batch at offset {here} that was written after an fsync up to {}",
                        header.durable
                    );
                    return Err(Error::damage(path, tail.end, what));
                }
            }
        }
        offset += chunk as u64;
    }
    Ok(dirty_end)
}

fn last_nonzero(bytes: &[u8]) -> Option<usize> {
    if segment::is_zero(bytes) {
        None
    } else {
        bytes.iter().rposition(|byte| *byte != 0)
    }
}
