//! What is written: records, and the batches they are written in.
//!
//! A **record** is one fact of the log. All numbers are little endian.
//! ```text
//! offset  bytes
//!      0      4  length of the body
//!      4      4  crc32: the previous record's crc continued over bytes 0..4, 8..12 and the body
//!      8      1  kind: 1 entry, 2 vote, 3 committed, 4 truncate, 5 purge
//!      9      3  zero
//!     12      n  body: entry    index u64, term u64, payload
//!                      vote, committed: opaque bytes of the caller
//!                      truncate after u64
//!                      purge    index u64, term u64
//!   12+n   0..7  zeros up to a multiple of 8
//! ```
//! A **batch** is what one write brought to the disk: this header, then records up to its length.
//! ```text
//! offset  bytes
//!      0      4  magic "kvB1"
//!      4      4  length of the records that follow, a multiple of 8
//!      8      8  offset of this header in its segment
//!     16      8  durable: everything below this offset of the segment had been fsynced when this header was written
//!     24      4  crc of the record (or batch header) before this one; the segment header's crc for the first
//!     28      4  crc32: the segment header's crc continued over bytes 0..28; the first record's crc continues from it
//! ```
//! Invariants:
//! - The crcs form one chain through a segment and, by the segment header, through the log: a record that is valid
//!   by itself but not the one written at this place does not verify.
//! - A batch header verifies without its neighbours (the segment's crc seeds it, and it names its own offset), so
//!   replay can find the batches behind a damaged one. What `durable` is for: see `repair.rs`.
//! - A batch is atomic: replay takes all of its records or none.

use bytes::Bytes;
use crc32fast::Hasher;

/// Frames and batches start at multiples of this.
pub(crate) const RECORD_ALIGN: usize = 8;
/// Length of a record's frame before the body.
pub(crate) const FRAME_LEN: usize = 12;
/// Length of a batch header.
pub(crate) const BATCH_HEADER_LEN: usize = 32;
/// Largest payload of a record: 1 GiB, far over every request limit, far under the length field.
pub const PAYLOAD_BYTES_MAX: usize = 1 << 30;

const BATCH_MAGIC: [u8; 4] = *b"kvB1";
/// Index and term before an entry's payload.
const ENTRY_PREFIX_LEN: usize = 16;

const _: () = assert!(RECORD_ALIGN.is_power_of_two());
const _: () = assert!(BATCH_HEADER_LEN.is_multiple_of(RECORD_ALIGN));

const KIND_ENTRY: u8 = 1;
const KIND_VOTE: u8 = 2;
const KIND_COMMITTED: u8 = 3;
const KIND_TRUNCATE: u8 = 4;
const KIND_PURGE: u8 = 5;

/// One fact of the log.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Record {
    /// A log entry. Indexes have no holes.
    Entry {
        /// Its position in the log.
        index: u64,
        /// The term it was proposed in.
        term: u64,
        /// What it carries.
        payload: Bytes,
    },
    /// The newest vote; replaces the one before.
    Vote(Bytes),
    /// The newest known commit position; replaces the one before. A lost one only lengthens replay.
    Committed(Bytes),
    /// Forgets every entry with a greater index.
    Truncate {
        /// The last index kept.
        after: u64,
    },
    /// Forgets every entry up to and including this one; the log goes on behind it.
    Purge {
        /// The last index forgotten.
        index: u64,
        /// Its term.
        term: u64,
    },
}

impl Record {
    pub(crate) fn as_ref(&self) -> RecordRef<'_> {
        match self {
            Record::Entry {
                index,
                term,
                payload,
            } => RecordRef::Entry {
                index: *index,
                term: *term,
                payload,
            },
            Record::Vote(bytes) => RecordRef::Vote(bytes),
            Record::Committed(bytes) => RecordRef::Committed(bytes),
            Record::Truncate { after } => RecordRef::Truncate { after: *after },
            Record::Purge { index, term } => RecordRef::Purge {
                index: *index,
                term: *term,
            },
        }
    }

    fn kind(&self) -> u8 {
        match self {
            Record::Entry { .. } => KIND_ENTRY,
            Record::Vote(_) => KIND_VOTE,
            Record::Committed(_) => KIND_COMMITTED,
            Record::Truncate { .. } => KIND_TRUNCATE,
            Record::Purge { .. } => KIND_PURGE,
        }
    }

    fn body_len(&self) -> usize {
        match self {
            Record::Entry { payload, .. } => ENTRY_PREFIX_LEN + payload.len(),
            Record::Vote(bytes) | Record::Committed(bytes) => bytes.len(),
            Record::Truncate { .. } => 8,
            Record::Purge { .. } => 16,
        }
    }

    /// Bytes that the caller chose the length of.
    pub(crate) fn payload_len(&self) -> usize {
        match self {
            Record::Entry { payload, .. } => payload.len(),
            Record::Vote(bytes) | Record::Committed(bytes) => bytes.len(),
            Record::Truncate { .. } | Record::Purge { .. } => 0,
        }
    }

    /// Bytes this record takes on disk.
    pub(crate) fn encoded_len(&self) -> usize {
        frame_len(self.body_len())
    }

    /// Appends the record to `out` and returns its crc, from which the next record continues.
    pub(crate) fn encode(&self, previous_crc: u32, out: &mut Vec<u8>) -> u32 {
        let start = out.len();
        let body_len = u32::try_from(self.body_len())
            .expect("the length of a record was checked when it was queued");
        out.extend_from_slice(&body_len.to_le_bytes());
        out.extend_from_slice(&[0; 4]);
        out.extend_from_slice(&[self.kind(), 0, 0, 0]);
        match self {
            Record::Entry {
                index,
                term,
                payload,
            } => {
                out.extend_from_slice(&index.to_le_bytes());
                out.extend_from_slice(&term.to_le_bytes());
                out.extend_from_slice(payload);
            }
            Record::Vote(bytes) | Record::Committed(bytes) => out.extend_from_slice(bytes),
            Record::Truncate { after } => out.extend_from_slice(&after.to_le_bytes()),
            Record::Purge { index, term } => {
                out.extend_from_slice(&index.to_le_bytes());
                out.extend_from_slice(&term.to_le_bytes());
            }
        }
        let crc = frame_crc(previous_crc, &out[start..]);
        out[start + 4..start + 8].copy_from_slice(&crc.to_le_bytes());
        out.resize(start + self.encoded_len(), 0);
        crc
    }
}

/// Bytes of a frame with a body of `body_len` bytes.
fn frame_len(body_len: usize) -> usize {
    (FRAME_LEN + body_len).next_multiple_of(RECORD_ALIGN)
}

/// Bytes that an entry with a payload of `payload_len` bytes takes on disk.
pub(crate) fn entry_frame_len(payload_len: u32) -> usize {
    frame_len(ENTRY_PREFIX_LEN + payload_len as usize)
}

/// The crc of a frame without padding, whose own crc field is left out.
fn frame_crc(previous_crc: u32, frame: &[u8]) -> u32 {
    let mut hasher = Hasher::new_with_initial(previous_crc);
    hasher.update(&frame[..4]);
    hasher.update(&frame[8..]);
    hasher.finalize()
}

/// Why bytes are not the record or batch expected at their place.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum Bad {
    /// A frame or batch would end behind the bytes there are.
    #[error("a length that leads out of its batch or file")]
    Length,
    /// The checksum or its chain does not match.
    #[error("a checksum that does not match")]
    Crc,
    /// Fields that must be zero are not, or the batch header lacks its magic or names another offset.
    #[error("a header that was never written here")]
    Header,
    /// The checksum is right, but the kind or its body is unknown to this version.
    #[error("a record of unknown kind or shape")]
    Kind,
}

/// A record found at its place.
#[derive(Debug)]
pub(crate) struct Decoded<'a> {
    pub(crate) record: RecordRef<'a>,
    pub(crate) crc: u32,
    /// Bytes of the frame with its padding.
    pub(crate) len: usize,
}

/// A record whose bytes are still where they were read.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum RecordRef<'a> {
    Entry {
        index: u64,
        term: u64,
        payload: &'a [u8],
    },
    Vote(&'a [u8]),
    Committed(&'a [u8]),
    Truncate {
        after: u64,
    },
    Purge {
        index: u64,
        term: u64,
    },
}

impl RecordRef<'_> {
    pub(crate) fn to_record(self) -> Record {
        match self {
            RecordRef::Entry {
                index,
                term,
                payload,
            } => Record::Entry {
                index,
                term,
                payload: Bytes::copy_from_slice(payload),
            },
            RecordRef::Vote(bytes) => Record::Vote(Bytes::copy_from_slice(bytes)),
            RecordRef::Committed(bytes) => Record::Committed(Bytes::copy_from_slice(bytes)),
            RecordRef::Truncate { after } => Record::Truncate { after },
            RecordRef::Purge { index, term } => Record::Purge { index, term },
        }
    }
}

/// The record at the start of `bytes`, which must continue the chain from `previous_crc`.
pub(crate) fn decode(bytes: &[u8], previous_crc: u32) -> Result<Decoded<'_>, Bad> {
    if bytes.len() < FRAME_LEN {
        return Err(Bad::Length);
    }
    let body_len = u32_at(bytes, 0) as usize;
    let len = frame_len(body_len);
    if len > bytes.len() {
        return Err(Bad::Length);
    }
    let unpadded = FRAME_LEN + body_len;
    let crc = u32_at(bytes, 4);
    if frame_crc(previous_crc, &bytes[..unpadded]) != crc {
        return Err(Bad::Crc);
    }
    if bytes[9..12] != [0; 3] || bytes[unpadded..len].iter().any(|byte| *byte != 0) {
        return Err(Bad::Header);
    }
    let body = &bytes[FRAME_LEN..unpadded];
    let record = match (bytes[8], body.len()) {
        (KIND_ENTRY, ENTRY_PREFIX_LEN..) => RecordRef::Entry {
            index: u64_at(body, 0),
            term: u64_at(body, 8),
            payload: &body[ENTRY_PREFIX_LEN..],
        },
        (KIND_VOTE, _) => RecordRef::Vote(body),
        (KIND_COMMITTED, _) => RecordRef::Committed(body),
        (KIND_TRUNCATE, 8) => RecordRef::Truncate {
            after: u64_at(body, 0),
        },
        (KIND_PURGE, 16) => RecordRef::Purge {
            index: u64_at(body, 0),
            term: u64_at(body, 8),
        },
        _ => return Err(Bad::Kind),
    };
    Ok(Decoded { record, crc, len })
}

/// The header of one batch.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct BatchHeader {
    /// Bytes of the records that follow.
    pub(crate) len: u32,
    /// Offset of the header in its segment.
    pub(crate) offset: u64,
    /// Everything below this offset of the segment had been fsynced when the header was written.
    pub(crate) durable: u64,
    /// The crc that the chain had reached.
    pub(crate) previous_crc: u32,
}

impl BatchHeader {
    /// The header's bytes and its crc. `seed` is the crc of the segment's header.
    pub(crate) fn encode(&self, seed: u32) -> ([u8; BATCH_HEADER_LEN], u32) {
        let mut bytes = [0; BATCH_HEADER_LEN];
        bytes[..4].copy_from_slice(&BATCH_MAGIC);
        bytes[4..8].copy_from_slice(&self.len.to_le_bytes());
        bytes[8..16].copy_from_slice(&self.offset.to_le_bytes());
        bytes[16..24].copy_from_slice(&self.durable.to_le_bytes());
        bytes[24..28].copy_from_slice(&self.previous_crc.to_le_bytes());
        let crc = batch_crc(seed, &bytes);
        bytes[28..].copy_from_slice(&crc.to_le_bytes());
        (bytes, crc)
    }

    /// The header at the start of `bytes`, which lie at `offset` of the segment, and its crc.
    pub(crate) fn decode(bytes: &[u8], offset: u64, seed: u32) -> Result<(BatchHeader, u32), Bad> {
        let bytes: &[u8; BATCH_HEADER_LEN] = bytes.first_chunk().ok_or(Bad::Length)?;
        if bytes[..4] != BATCH_MAGIC {
            return Err(Bad::Header);
        }
        let crc = u32_at(bytes, 28);
        if batch_crc(seed, bytes) != crc {
            return Err(Bad::Crc);
        }
        let header = BatchHeader {
            len: u32_at(bytes, 4),
            offset: u64_at(bytes, 8),
            durable: u64_at(bytes, 16),
            previous_crc: u32_at(bytes, 24),
        };
        if header.offset != offset
            || !(header.len as usize).is_multiple_of(RECORD_ALIGN)
            || header.durable > offset
        {
            return Err(Bad::Header);
        }
        Ok((header, crc))
    }

    /// Whether `bytes` can start a batch header; a cheap first look for a scan.
    pub(crate) fn maybe_at(bytes: &[u8]) -> bool {
        bytes.starts_with(&BATCH_MAGIC)
    }
}

fn batch_crc(seed: u32, bytes: &[u8; BATCH_HEADER_LEN]) -> u32 {
    let mut hasher = Hasher::new_with_initial(seed);
    hasher.update(&bytes[..28]);
    hasher.finalize()
}

/// Every record in the body of a batch, in order, with its offset in the body and the crc before it.
/// Returns the crc of the last one.
pub(crate) fn decode_batch<'a>(
    body: &'a [u8],
    header_crc: u32,
    mut found: impl FnMut(usize, u32, RecordRef<'a>),
) -> Result<u32, (usize, Bad)> {
    let mut crc = header_crc;
    let mut offset = 0;
    while offset < body.len() {
        let decoded = decode(&body[offset..], crc).map_err(|bad| (offset, bad))?;
        found(offset, crc, decoded.record);
        crc = decoded.crc;
        offset += decoded.len;
    }
    Ok(crc)
}

/// The records of whole, valid batches at the start of `bytes`, read as a segment's contents behind a header with the
/// crc `seed` and the length `base`. Stops at the first byte that is not part of one. For fuzzing and inspection.
pub fn decode_all(bytes: &[u8], seed: u32, base: u64) -> (Vec<Record>, Option<Bad>) {
    let mut records = Vec::new();
    let mut crc = seed;
    let mut at = 0;
    while at < bytes.len() {
        let batch = BatchHeader::decode(&bytes[at..], base + at as u64, seed).and_then(
            |(header, header_crc)| {
                if header.previous_crc != crc {
                    return Err(Bad::Crc);
                }
                let start = at + BATCH_HEADER_LEN;
                let body = bytes
                    .get(start..start + header.len as usize)
                    .ok_or(Bad::Length)?;
                let mut batch = Vec::new();
                let last = decode_batch(body, header_crc, |_, _, record| batch.push(record))
                    .map_err(|(_, bad)| bad)?;
                Ok((batch, last, start + body.len()))
            },
        );
        match batch {
            Ok((batch, last, end)) => {
                records.extend(batch.into_iter().map(RecordRef::to_record));
                (crc, at) = (last, end);
            }
            Err(bad) => return (records, Some(bad)),
        }
    }
    (records, None)
}

fn u32_at(bytes: &[u8], at: usize) -> u32 {
    u32::from_le_bytes(
        *bytes[at..]
            .first_chunk()
            .expect("the caller checked the length"),
    )
}

fn u64_at(bytes: &[u8], at: usize) -> u64 {
    u64::from_le_bytes(
        *bytes[at..]
            .first_chunk()
            .expect("the caller checked the length"),
    )
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    const SEED: u32 = 0x1234_5678;
    const BASE: u64 = 80;

    fn any_record() -> impl Strategy<Value = Record> {
        let bytes = || prop::collection::vec(any::<u8>(), 0..200).prop_map(Bytes::from);
        prop_oneof![
            (any::<u64>(), any::<u64>(), bytes()).prop_map(|(index, term, payload)| {
                Record::Entry {
                    index,
                    term,
                    payload,
                }
            }),
            bytes().prop_map(Record::Vote),
            bytes().prop_map(Record::Committed),
            any::<u64>().prop_map(|after| Record::Truncate { after }),
            (any::<u64>(), any::<u64>()).prop_map(|(index, term)| Record::Purge { index, term }),
        ]
    }

    fn encode(batches: &[Vec<Record>]) -> Vec<u8> {
        let mut bytes = Vec::new();
        let mut crc = SEED;
        for records in batches {
            let len = records.iter().map(Record::encoded_len).sum::<usize>();
            let offset = BASE + bytes.len() as u64;
            let header = BatchHeader {
                len: u32::try_from(len).unwrap(),
                offset,
                durable: offset,
                previous_crc: crc,
            };
            let (header, header_crc) = header.encode(SEED);
            bytes.extend_from_slice(&header);
            crc = header_crc;
            for record in records {
                crc = record.encode(crc, &mut bytes);
            }
        }
        bytes
    }

    #[test]
    fn the_frame_is_the_one_that_is_drawn() {
        let mut bytes = Vec::new();
        let crc = Record::Entry {
            index: 2,
            term: 3,
            payload: Bytes::from("abc"),
        }
        .encode(SEED, &mut bytes);
        let mut drawn = vec![19, 0, 0, 0];
        drawn.extend_from_slice(&crc.to_le_bytes());
        drawn.extend_from_slice(&[1, 0, 0, 0, 2, 0, 0, 0, 0, 0, 0, 0, 3, 0, 0, 0, 0, 0, 0, 0]);
        drawn.extend_from_slice(b"abc\0");
        assert_eq!(bytes, drawn);
        assert_eq!(
            crc, 0x2de4_3720,
            "the checksum of a stored record must not change"
        );
    }

    #[test]
    fn zeros_are_no_batch() {
        assert_eq!(
            decode_all(&[0; 64], SEED, BASE),
            (vec![], Some(Bad::Header))
        );
    }

    proptest! {
        #[test]
        fn batches_come_back_as_they_were_written(
            batches in prop::collection::vec(prop::collection::vec(any_record(), 0..8), 0..5),
        ) {
            let bytes = encode(&batches);
            prop_assert_eq!(decode_all(&bytes, SEED, BASE), (batches.concat(), None));
        }

        #[test]
        fn changed_bytes_never_yield_a_record_that_was_not_written(
            batches in prop::collection::vec(prop::collection::vec(any_record(), 0..8), 1..5),
            edits in prop::collection::vec((any::<prop::sample::Index>(), any::<u8>()), 1..6),
            cut in any::<prop::sample::Index>(),
        ) {
            let mut bytes = encode(&batches);
            for (at, value) in edits {
                let at = at.index(bytes.len());
                bytes[at] = value;
            }
            bytes.truncate(cut.index(bytes.len() + 1));
            let (found, _) = decode_all(&bytes, SEED, BASE);
            let written = batches.concat();
            prop_assert!(written.starts_with(&found), "{:?} was not written", found);
        }

        #[test]
        fn arbitrary_bytes_are_no_records(bytes in prop::collection::vec(any::<u8>(), 0..400), seed in any::<u32>()) {
            prop_assert_eq!(decode_all(&bytes, seed, BASE).0, vec![]);
            let _ = decode(&bytes, seed);
        }

        #[test]
        fn a_batch_is_valid_only_in_its_place(records in prop::collection::vec(any_record(), 1..4)) {
            let bytes = encode(&[records]);
            prop_assert_eq!(decode_all(&bytes, SEED, BASE + 8).0, vec![]);
            prop_assert_eq!(decode_all(&bytes, SEED ^ 1, BASE).0, vec![]);
        }
    }
}
