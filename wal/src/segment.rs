//! One segment file: its name, its header, how a new one is made.
//!
//! A segment is `<sequence as 16 hex digits>.wal`, filled with real zeros and fsynced before it gets that name:
//! overwriting written blocks makes fdatasync 2-6 times faster than appending. All numbers are little endian.
//! ```text
//! offset  bytes
//!      0      8  magic "kvd-wal\n"
//!      8      4  format version, 1
//!     12      4  zero
//!     16      8  sequence of this segment, 1 for the first of a log, no holes
//!     24      8  the index the next entry gets; 0 while the log never held one
//!     32      8  cluster id
//!     40      8  member id
//!     48      8  incarnation
//!     56      8  length of this file
//!     64      8  offset at which the previous segment's records end; 0 for the first
//!     72      4  crc of the previous segment's last record; 0 for the first
//!     76      4  crc32 of bytes 0..76: seeds this segment's batches (see `record`)
//!     80      .  first batch: vote, committed and purge as they stood, so that older segments can go
//!      .      .  batches
//!      .      .  zeros
//! ```
//! Invariant: header and first batch are fsynced under a temporary name before the rename, and every batch of the
//! previous segment before that. So a `.wal` file with a bad header or first batch is damage, never a torn write, and
//! only the newest segment can have a torn tail.

use std::fmt;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use crate::error::{Error, Result};
use crate::fs::{File, Fs};

/// Length of the segment header.
pub(crate) const HEADER_LEN: usize = 80;
/// The format this build writes, and the newest it reads.
pub(crate) const FORMAT_VERSION: u32 = 1;
/// Extension of a segment that is part of the log.
pub(crate) const EXTENSION: &str = "wal";

const MAGIC: [u8; 8] = *b"kvd-wal\n";
static ZEROS: [u8; ZERO_CHUNK] = [0; ZERO_CHUNK];
const ZERO_CHUNK: usize = 256 * 1024;
/// Zeros written between two fsyncs while a segment is prepared, so that the log's own fsync never waits for 64 MiB.
const ZERO_SYNC_BYTES: u64 = 8 * 1024 * 1024;

/// Whose log this is. A member that lost its disk comes back with another incarnation.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Identity {
    /// The cluster.
    pub cluster_id: u64,
    /// The member.
    pub member_id: u64,
    /// A random number drawn when this member's data folder was made.
    pub incarnation: u64,
}

impl fmt::Display for Identity {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(
            f,
            "member {:016x} of cluster {:016x} (incarnation {:016x})",
            self.member_id, self.cluster_id, self.incarnation
        )
    }
}

/// What stands at the start of a segment.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct SegmentHeader {
    pub(crate) sequence: u64,
    pub(crate) next_index: u64,
    pub(crate) identity: Identity,
    pub(crate) file_len: u64,
    pub(crate) previous_end: u64,
    pub(crate) previous_crc: u32,
}

impl SegmentHeader {
    /// The header's bytes and its crc.
    pub(crate) fn encode(&self) -> ([u8; HEADER_LEN], u32) {
        let mut bytes = [0; HEADER_LEN];
        bytes[..8].copy_from_slice(&MAGIC);
        bytes[8..12].copy_from_slice(&FORMAT_VERSION.to_le_bytes());
        let fields = [
            self.sequence,
            self.next_index,
            self.identity.cluster_id,
            self.identity.member_id,
            self.identity.incarnation,
            self.file_len,
            self.previous_end,
        ];
        for (field, place) in fields.iter().zip(bytes[16..72].as_chunks_mut::<8>().0) {
            *place = field.to_le_bytes();
        }
        bytes[72..76].copy_from_slice(&self.previous_crc.to_le_bytes());
        let crc = crc32fast::hash(&bytes[..76]);
        bytes[76..].copy_from_slice(&crc.to_le_bytes());
        (bytes, crc)
    }

    /// The header of `path` and its crc; a wrong one is damage.
    pub(crate) fn decode(bytes: &[u8; HEADER_LEN], path: &Path) -> Result<(SegmentHeader, u32)> {
        let u32_at =
            |at: usize| u32::from_le_bytes(*bytes[at..].first_chunk().expect("inside the header"));
        let u64_at =
            |at: usize| u64::from_le_bytes(*bytes[at..].first_chunk().expect("inside the header"));
        if bytes[..8] != MAGIC {
            return Err(Error::damage(path, 0, "the segment header is missing"));
        }
        match u32_at(8) {
            FORMAT_VERSION => {}
            found => {
                return Err(Error::UnknownVersion {
                    file: path.to_owned(),
                    found,
                    known: FORMAT_VERSION,
                });
            }
        }
        let crc = u32_at(76);
        if crc32fast::hash(&bytes[..76]) != crc {
            return Err(Error::damage(
                path,
                0,
                "the segment header's checksum does not match",
            ));
        }
        let header = SegmentHeader {
            sequence: u64_at(16),
            next_index: u64_at(24),
            identity: Identity {
                cluster_id: u64_at(32),
                member_id: u64_at(40),
                incarnation: u64_at(48),
            },
            file_len: u64_at(56),
            previous_end: u64_at(64),
            previous_crc: u32_at(72),
        };
        Ok((header, crc))
    }
}

/// The path of the segment with this sequence.
pub(crate) fn path(dir: &Path, sequence: u64) -> PathBuf {
    dir.join(format!("{sequence:016x}.{EXTENSION}"))
}

/// The segments of a log folder in order, with their sequences; none if there is no such folder.
pub(crate) fn list(fs: &dyn Fs, dir: &Path) -> Result<Vec<(u64, PathBuf)>> {
    let files = match fs.list(dir) {
        Ok(files) => files,
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => return Ok(Vec::new()),
        Err(error) => return Err(Error::io("list", dir, error)),
    };
    let mut segments = Vec::new();
    for file in files {
        if file
            .extension()
            .is_none_or(|extension| extension != EXTENSION)
        {
            continue;
        }
        let sequence = file
            .file_stem()
            .and_then(|stem| stem.to_str())
            .filter(|stem| stem.len() == 16)
            .and_then(|stem| u64::from_str_radix(stem, 16).ok())
            .ok_or_else(|| {
                Error::damage(
                    &file,
                    0,
                    "the name is not a segment's; move the file out of the folder",
                )
            })?;
        segments.push((sequence, file));
    }
    segments.sort();
    Ok(segments)
}

/// A file of `len` real zeros, durable, under a temporary name. An existing file of that name is taken over, so that
/// the blocks of a purged segment serve again; its old contents are gone before this returns. On an error nothing is
/// left that would take up room on a full disk.
pub(crate) fn prepare(fs: &dyn Fs, path: &Path, len: u64) -> Result<Arc<dyn File>> {
    let outcome = fill(fs, path, len);
    if outcome.is_err() {
        // Best effort: what stays is taken over by the next attempt.
        let _ = fs.remove(path);
    }
    outcome
}

fn fill(fs: &dyn Fs, path: &Path, len: u64) -> Result<Arc<dyn File>> {
    let file = match fs.open(path) {
        Ok(file) => file,
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => fs
            .create(path)
            .map_err(|error| Error::io("create", path, error))?,
        Err(error) => return Err(Error::io("open", path, error)),
    };
    if file.len().map_err(|error| Error::io("size", path, error))? > len {
        file.set_len(len)
            .map_err(|error| Error::io("cut", path, error))?;
    }
    file.reserve(len)
        .map_err(|error| Error::io("reserve space for", path, error))?;
    zero(&*file, path, 0, len)?;
    Ok(file)
}

/// Writes zeros over `from..to`, durably.
pub(crate) fn zero(file: &dyn File, path: &Path, from: u64, to: u64) -> Result<()> {
    let mut offset = from;
    let mut unsynced = 0;
    while offset < to {
        let chunk = usize::try_from(to - offset).map_or(ZERO_CHUNK, |left| left.min(ZERO_CHUNK));
        file.write_at(&ZEROS[..chunk], offset)
            .map_err(|error| Error::io("zero", path, error))?;
        offset += chunk as u64;
        unsynced += chunk as u64;
        if unsynced >= ZERO_SYNC_BYTES {
            file.sync_data()
                .map_err(|error| Error::io("sync", path, error))?;
            unsynced = 0;
        }
    }
    file.sync_data()
        .map_err(|error| Error::io("sync", path, error))
}

/// Whether all of `bytes` are zero.
pub(crate) fn is_zero(bytes: &[u8]) -> bool {
    bytes
        .chunks(ZERO_CHUNK)
        .all(|chunk| chunk == &ZEROS[..chunk.len()])
}
