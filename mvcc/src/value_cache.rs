//! A bounded cache of newest values, so that recently written keys are listed without touching the engine.
//!
//! It holds value records as stored, by revision; a revision never changes, so an entry is never stale, only useless
//! once its key moved on. The writer removes those; the rest leaves by second chance (clock): an entry that was read
//! since the hand last passed stays for another round. Readers share the lock and mark with an atomic.

use std::collections::HashMap;
use std::hash::{BuildHasherDefault, Hasher};
use std::sync::atomic::{AtomicBool, Ordering};

use bytes::Bytes;
use parking_lot::RwLock;

use crate::revision::Revision;

/// Values of at most a number of bytes.
pub(crate) struct ValueCache {
    inner: RwLock<Inner>,
    bytes_max: u64,
}

#[derive(Default)]
struct Inner {
    slots: HashMap<Revision, usize, BuildHasherDefault<RevisionHasher>>,
    entries: Vec<Option<Entry>>,
    free: Vec<usize>,
    hand: usize,
    bytes: u64,
}

struct Entry {
    revision: Revision,
    value: Bytes,
    used: AtomicBool,
}

/// On what terms values that were read enter the cache.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Admission {
    /// They stay out.
    None,
    /// As long as there is free room: a long list must not push out what was written last.
    FreeRoom,
    /// At the cost of others.
    Evict,
}

/// What an entry costs beside its value: slot, map entry, the allocation's own head.
const ENTRY_BYTES: u64 = 160;
/// A value above this part of the budget would push out too many others.
const LARGEST_PART: u64 = 16;

impl ValueCache {
    pub(crate) fn new(bytes_max: u64) -> ValueCache {
        ValueCache {
            inner: RwLock::default(),
            bytes_max,
        }
    }

    /// Sets `values[i]` to the record of `revisions[i]` where it is cached; returns how many are not.
    pub(crate) fn fill(&self, revisions: &[Revision], values: &mut [Option<Bytes>]) -> usize {
        let inner = self.inner.read();
        let mut missing = 0;
        for (revision, value) in revisions.iter().zip(values) {
            match inner
                .slots
                .get(revision)
                .and_then(|slot| inner.entries[*slot].as_ref())
            {
                Some(entry) => {
                    entry.used.store(true, Ordering::Relaxed);
                    *value = Some(entry.value.clone());
                }
                None => missing += 1,
            }
        }
        missing
    }

    /// Adds records and drops those of revisions that are no longer anyone's newest.
    pub(crate) fn update<'a>(
        &self,
        superseded: impl IntoIterator<Item = Revision>,
        newest: impl IntoIterator<Item = (Revision, &'a Bytes)>,
    ) {
        if self.bytes_max == 0 {
            return;
        }
        let mut inner = self.inner.write();
        for revision in superseded {
            inner.remove(revision);
        }
        for (revision, value) in newest {
            let cost = ENTRY_BYTES + value.len() as u64;
            if cost <= self.bytes_max / LARGEST_PART {
                inner.insert(revision, value.clone(), cost);
                while inner.bytes > self.bytes_max {
                    inner.evict_one();
                }
            }
        }
    }

    /// Adds records that were read as the newest of their keys.
    pub(crate) fn admit(&self, read: &[(Revision, &Bytes)], admission: Admission) {
        match admission {
            Admission::None => {}
            Admission::Evict => self.update([], read.iter().copied()),
            Admission::FreeRoom => {
                // A full cache is the common case, and needs no exclusive lock.
                let Some(room) = self.bytes_max.checked_sub(self.bytes() + ENTRY_BYTES) else {
                    return;
                };
                let mut left = room;
                let fits = read.iter().copied().take_while(|(_, value)| {
                    let cost = ENTRY_BYTES + value.len() as u64;
                    left = left.saturating_sub(cost);
                    left > 0
                });
                self.update([], fits);
            }
        }
    }

    /// Forgets everything.
    pub(crate) fn clear(&self) {
        *self.inner.write() = Inner::default();
    }

    /// Bytes held, bookkeeping included.
    pub(crate) fn bytes(&self) -> u64 {
        self.inner.read().bytes
    }
}

impl Inner {
    fn insert(&mut self, revision: Revision, value: Bytes, cost: u64) {
        let entry = Some(Entry {
            revision,
            value,
            used: AtomicBool::new(false),
        });
        if self.slots.contains_key(&revision) {
            return;
        }
        let slot = match self.free.pop() {
            Some(slot) => {
                self.entries[slot] = entry;
                slot
            }
            None => {
                self.entries.push(entry);
                self.entries.len() - 1
            }
        };
        self.slots.insert(revision, slot);
        self.bytes += cost;
    }

    fn remove(&mut self, revision: Revision) {
        if let Some(slot) = self.slots.remove(&revision)
            && let Some(entry) = self.entries[slot].take()
        {
            self.bytes -= ENTRY_BYTES + entry.value.len() as u64;
            self.free.push(slot);
        }
    }

    /// Moves the hand to the next entry that was not read since it last came by, and removes it.
    fn evict_one(&mut self) {
        loop {
            self.hand = if self.hand + 1 < self.entries.len() {
                self.hand + 1
            } else {
                0
            };
            if let Some(entry) = &self.entries[self.hand]
                && !entry.used.swap(false, Ordering::Relaxed)
            {
                self.remove(entry.revision);
                return;
            }
        }
    }
}

/// Mixes the two numbers of a revision; they are not chosen by clients, so no key is needed.
#[derive(Default)]
struct RevisionHasher(u64);

impl Hasher for RevisionHasher {
    fn finish(&self) -> u64 {
        self.0
    }

    fn write(&mut self, bytes: &[u8]) {
        for byte in bytes {
            self.write_u64(u64::from(*byte));
        }
    }

    fn write_i64(&mut self, value: i64) {
        self.write_u64(value.cast_unsigned());
    }

    fn write_u64(&mut self, value: u64) {
        let mixed = (self.0 ^ value).wrapping_mul(0x9e37_79b9_7f4a_7c15);
        self.0 = mixed ^ (mixed >> 32);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn value(n: i64) -> Bytes {
        Bytes::from(format!("value {n:05}"))
    }

    fn cached(cache: &ValueCache, main: i64) -> Option<Bytes> {
        let mut found = [None];
        cache.fill(&[Revision::new(main, 0)], &mut found);
        let [found] = found;
        found
    }

    #[test]
    fn stays_within_its_budget_and_keeps_what_is_read() {
        let budget = 100 * (ENTRY_BYTES + 11);
        let cache = ValueCache::new(budget);
        for main in 0..1000 {
            cache.update([], [(Revision::new(main, 0), &value(main))]);
            assert_eq!(
                cached(&cache, 0),
                Some(value(0)),
                "read all the time, at {main}"
            );
        }

        assert_eq!(cache.bytes(), budget);
        let kept = (0..1000)
            .filter(|main| cached(&cache, *main).is_some())
            .count();
        assert_eq!(kept, 100);
    }

    #[test]
    fn superseded_values_make_room() {
        let cache = ValueCache::new(1 << 20);
        cache.update([], [(Revision::new(2, 0), &value(2))]);
        cache.update([Revision::new(2, 0)], [(Revision::new(3, 0), &value(3))]);

        assert_eq!(cached(&cache, 2), None);
        assert_eq!(cached(&cache, 3), Some(value(3)));
        assert_eq!(cache.bytes(), ENTRY_BYTES + 11);
    }

    #[test]
    fn a_list_uses_free_room_and_one_key_pushes_others_out() {
        let budget = 20 * (ENTRY_BYTES + 11);
        let cache = ValueCache::new(budget);
        for main in 0..15 {
            cache.update([], [(Revision::new(main, 0), &value(main))]);
        }
        let values: Vec<Bytes> = (100..200).map(value).collect();
        let read: Vec<_> = (100..)
            .map(|main| Revision::new(main, 0))
            .zip(&values)
            .collect();

        cache.admit(&read, Admission::None);
        assert_eq!(cached(&cache, 100), None);
        cache.admit(&read, Admission::FreeRoom);
        cache.admit(&read, Admission::FreeRoom);
        assert_eq!(cached(&cache, 100), Some(value(100)));
        assert!((0..15).all(|main| cached(&cache, main).is_some()));
        assert!(cache.bytes() <= budget);

        cache.admit(&read[90..91], Admission::Evict);
        cache.admit(&read[91..92], Admission::Evict);
        assert_eq!(cached(&cache, 191), Some(value(191)));
    }

    #[test]
    fn a_value_too_large_for_the_budget_is_not_cached() {
        let cache = ValueCache::new(16 << 10);
        cache.update([], [(Revision::new(2, 0), &Bytes::from(vec![0; 2 << 10]))]);
        assert_eq!(cached(&cache, 2), None);
    }
}
