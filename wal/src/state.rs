//! What the log says: the newest vote, commit position and purge mark, and where each live entry lies.
//!
//! Writer and replay change it through the same [`LogState::apply`], so that what a restart finds is what was there.
//! Invariants: live entries have no holes; the first one follows the purge mark, if there is one; a later entry never
//! lies in an earlier segment.

use std::collections::VecDeque;

use bytes::Bytes;

use crate::record::{self, RecordRef};

/// Where one entry lies. 24 bytes for each live entry.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Slot {
    pub(crate) term: u64,
    /// Sequence of the segment.
    segment: u32,
    /// Offset of the frame in units of the record alignment.
    words: u32,
    pub(crate) payload_len: u32,
    /// The crc that the frame continues, without which it cannot be verified.
    pub(crate) previous_crc: u32,
}

impl Slot {
    pub(crate) fn segment(&self) -> u64 {
        u64::from(self.segment)
    }

    pub(crate) fn offset(&self) -> u64 {
        u64::from(self.words) * record::RECORD_ALIGN as u64
    }

    /// One past the frame.
    pub(crate) fn end(&self) -> u64 {
        self.offset() + record::entry_frame_len(self.payload_len) as u64
    }
}

/// Where a record was written.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Place {
    pub(crate) segment: u64,
    pub(crate) offset: u64,
    pub(crate) previous_crc: u32,
}

/// A record that cannot follow the ones before it.
#[derive(Debug, PartialEq, Eq)]
pub(crate) struct OutOfOrder {
    pub(crate) what: &'static str,
    pub(crate) found: u64,
    pub(crate) expected: u64,
}

/// The positions that decide whether a record may follow.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) struct Bounds {
    /// Index and term of the newest purge mark.
    pub(crate) purged: Option<(u64, u64)>,
    /// The index the next entry must have; `None` while any would do.
    pub(crate) next: Option<u64>,
}

impl Bounds {
    /// Takes a record in, or says why it cannot follow.
    pub(crate) fn follow(&mut self, record: RecordRef<'_>) -> Result<(), OutOfOrder> {
        match record {
            RecordRef::Entry { index, .. } => {
                let expected = self.next.unwrap_or(index);
                if index != expected || index == u64::MAX {
                    return Err(OutOfOrder {
                        what: "entry",
                        found: index,
                        expected,
                    });
                }
                self.next = Some(index + 1);
            }
            RecordRef::Truncate { after } => {
                if let Some((purged, _)) = self.purged
                    && after < purged
                {
                    return Err(OutOfOrder {
                        what: "truncation after",
                        found: after,
                        expected: purged,
                    });
                }
                self.next = self.next.map(|next| next.min(after.saturating_add(1)));
            }
            RecordRef::Purge { index, term } => {
                let least = self.purged.map_or(0, |(purged, _)| purged);
                if index < least || index == u64::MAX {
                    return Err(OutOfOrder {
                        what: "purge up to",
                        found: index,
                        expected: least,
                    });
                }
                self.purged = Some((index, term));
                self.next = Some(self.next.map_or(index + 1, |next| next.max(index + 1)));
            }
            RecordRef::Vote(_) | RecordRef::Committed(_) => {}
        }
        Ok(())
    }
}

/// Everything the log says.
#[derive(Debug, Default)]
pub(crate) struct LogState {
    pub(crate) vote: Option<Bytes>,
    pub(crate) committed: Option<Bytes>,
    pub(crate) bounds: Bounds,
    /// Index of the first slot; meaningless while there is none.
    first: u64,
    slots: VecDeque<Slot>,
}

impl LogState {
    /// Takes a record in that lies at `place`.
    pub(crate) fn apply(&mut self, record: RecordRef<'_>, place: Place) -> Result<(), OutOfOrder> {
        self.bounds.follow(record)?;
        match record {
            RecordRef::Entry {
                index,
                term,
                payload,
            } => {
                if self.slots.is_empty() {
                    self.first = index;
                }
                self.slots.push_back(Slot {
                    term,
                    segment: u32::try_from(place.segment)
                        .expect("2^32 segments are 2^48 bytes at the smallest size"),
                    words: u32::try_from(place.offset / record::RECORD_ALIGN as u64)
                        .expect("a segment is at most 32 GiB long"),
                    payload_len: u32::try_from(payload.len())
                        .expect("a payload is at most 1 GiB long"),
                    previous_crc: place.previous_crc,
                });
            }
            RecordRef::Vote(bytes) => self.vote = Some(Bytes::copy_from_slice(bytes)),
            RecordRef::Committed(bytes) => self.committed = Some(Bytes::copy_from_slice(bytes)),
            RecordRef::Truncate { after } => self.slots.truncate(self.live_below(after)),
            RecordRef::Purge { index, .. } => {
                let gone = self.live_below(index);
                self.slots.drain(..gone);
                self.first += gone as u64;
            }
        }
        Ok(())
    }

    /// How many live entries have an index of at most `index`.
    fn live_below(&self, index: u64) -> usize {
        let count = index.saturating_add(1).saturating_sub(self.first);
        usize::try_from(count)
            .unwrap_or(usize::MAX)
            .min(self.slots.len())
    }

    /// Live entries as a range of indexes.
    pub(crate) fn live(&self) -> std::ops::Range<u64> {
        if self.slots.is_empty() {
            let next = self.bounds.next.unwrap_or(0);
            return next..next;
        }
        self.first..self.first + self.slots.len() as u64
    }

    /// Index and place of the live entries in `from..to`.
    pub(crate) fn range(&self, from: u64, to: u64) -> impl Iterator<Item = (u64, Slot)> + '_ {
        let live = self.live();
        let (from, to) = (
            from.clamp(live.start, live.end),
            to.clamp(live.start, live.end),
        );
        (from..to.max(from)).map(move |index| {
            let slot =
                usize::try_from(index - live.start).expect("a live entry has a slot in memory");
            (index, self.slots[slot])
        })
    }

    /// The newest index that is in the log or purged from it; 0 if there never was one.
    pub(crate) fn last_index(&self) -> u64 {
        self.bounds.next.map_or(0, |next| next.saturating_sub(1))
    }
}
