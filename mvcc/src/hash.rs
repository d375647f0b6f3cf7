//! HashKV: a checksum of keys and values up to a revision, equal on all members that applied the same entries.
//!
//! CRC-32C of the word `key`, then of each stored pair, key bytes then value bytes, in key order, for pairs which
//! - are not above the revision, and
//! - are above the compacted revision, or kept by a compaction at the revision (when that keeps anything), and
//! - are not a tombstone of exactly the compacted revision (etcd 3.5.15 and older remove those, newer ones keep them).
//!
//! So the result does not depend on how far a compaction's removal has come. The hash over the revisions that a
//! compaction is about to remove is taken by the compaction and remembered, [`HASHES_MAX`] of them.
//!
//! Source: etcd 3.7 mvcc, hash; the crc32c of Castagnoli.

use std::ops::ControlFlow;

use parking_lot::Mutex;

use crate::backend::{Keyspace, View};
use crate::etcd_file::BUCKETS;
use crate::index::Span;
use crate::read_txn::SLICE_KEYS;
use crate::revision::{Change, Revision};
use crate::store::Store;
use crate::{Error, Result};

/// Hashes of compactions that are remembered.
const HASHES_MAX: usize = 10;

/// The checksum of a store up to a revision.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct HashKv {
    /// The checksum.
    pub hash: u32,
    /// The store's revision when it was asked for.
    pub revision: i64,
    /// The compacted revision it was taken with; -1 if there was none.
    pub compact_revision: i64,
    /// The revision up to which it goes.
    pub hash_revision: i64,
}

/// What compactions hashed before they removed it.
#[derive(Default)]
pub(crate) struct CompactionHashes {
    /// Ascending by revision.
    hashes: Mutex<Vec<HashKv>>,
}

/// What a compaction at a revision keeps of what was compacted before.
#[derive(Clone, Debug, Default)]
pub(crate) struct Kept {
    /// Ascending when finished.
    revisions: Vec<Revision>,
    /// Whether anything at all is kept, also above what was compacted before.
    any: bool,
    /// Whether a tombstone at the revision counts: a compaction keeps it, a hash does not.
    tombstones: bool,
}

/// The sum of one HashKV, fed with stored pairs in order.
pub(crate) struct KvHasher {
    crc: u32,
    compacted: i64,
    revision: i64,
    kept: Kept,
    /// Kept revisions that the pairs have passed.
    passed: usize,
}

impl Store {
    /// The checksum up to `revision`; 0 takes the current one. Reads everything stored, without holding up writes.
    ///
    /// Errors: [`Error::Compacted`] and [`Error::FutureRevision`].
    pub fn hash_kv(&self, revision: i64) -> Result<HashKv> {
        // Also for revision 0, which a compaction at 0 has hashed: so does etcd.
        if let Some(known) = self.hashes.find(revision) {
            return Ok(HashKv {
                revision: self.revision(),
                ..known
            });
        }
        let (view, current, compacted) = loop {
            // What the view has of later revisions is left out below. Writers need not wait for it.
            let (current, compacted) = (self.revision(), self.compacted());
            let view = self.backend.view()?;
            if self.compacted() == compacted {
                break (view, current, compacted);
            }
        };
        if revision > 0 && revision < compacted {
            return Err(Error::Compacted {
                requested: revision,
                compacted,
            });
        }
        if revision > current {
            return Err(Error::FutureRevision {
                requested: revision,
                current,
            });
        }
        let hash_revision = if revision == 0 { current } else { revision };
        let mut kept = Kept::default();
        let mut next = Some(Box::default());
        while let Some(from) = next {
            next = self.keep_slice(&from, hash_revision, compacted, &mut kept);
        }
        kept.finish();
        if hash_revision > 0 {
            // A compaction that began meanwhile may have taken revisions from the index.
            self.check_not_compacted(hash_revision)?;
        }
        let mut hasher = KvHasher::new(compacted, hash_revision, kept);
        view.scan(Keyspace::Rev, &[], None, &mut |key, value| {
            hasher.feed(key, value)
        })?;
        Ok(HashKv {
            hash: hasher.crc,
            revision: current,
            compact_revision: compacted,
            hash_revision,
        })
    }

    /// What the last compactions hashed before they removed it, ascending by revision.
    pub fn compaction_hashes(&self) -> Vec<HashKv> {
        self.hashes.hashes.lock().clone()
    }

    /// The checksum of every keyspace that etcd has too, under etcd's names, with the current revision.
    ///
    /// Leaves out what differs between equal members: applied index, term, storage version.
    pub fn hash(&self) -> Result<(u32, i64)> {
        let (view, current) = {
            let _writer = self.writer.lock();
            (self.backend.view()?, self.revision())
        };
        let mut crc = 0;
        for (name, keyspace) in BUCKETS {
            crc = crc32c::crc32c_append(crc, name.as_bytes());
            view.scan(keyspace, &[], None, &mut |key, value| {
                if keyspace != Keyspace::Meta || !UNHASHED_META.contains(&key) {
                    crc = crc32c::crc32c_append(crc, key);
                    crc = crc32c::crc32c_append(crc, value);
                }
                ControlFlow::Continue(())
            })?;
        }
        Ok((crc, current))
    }

    /// Adds to `kept` what a compaction at `revision` keeps of the keys from `from` on; returns where to go on.
    pub(crate) fn keep_slice(
        &self,
        from: &[u8],
        revision: i64,
        compacted: i64,
        kept: &mut Kept,
    ) -> Option<Box<[u8]>> {
        let mut next = None;
        let mut visited = 0;
        self.index.read().walk(
            Span {
                start: from,
                end: None,
            },
            |key, revisions| {
                if visited == SLICE_KEYS {
                    next = Some(key.into());
                    return ControlFlow::Break(());
                }
                visited += 1;
                match revisions.keep(revision) {
                    Some(revision) => {
                        kept.any = true;
                        if revision.main <= compacted {
                            kept.revisions.push(revision);
                        }
                    }
                    None => kept.any |= kept.tombstones && revisions.keeps_tombstone(revision),
                }
                ControlFlow::Continue(())
            },
        );
        next
    }
}

const UNHASHED_META: [&[u8]; 3] = [b"consistent_index", b"term", b"storageVersion"];

impl CompactionHashes {
    pub(crate) fn remember(&self, hash: HashKv) {
        let mut hashes = self.hashes.lock();
        hashes.push(hash);
        hashes.sort_by_key(|hash| hash.hash_revision);
        if hashes.len() > HASHES_MAX {
            hashes.remove(0);
        }
    }

    /// Forgets all of them, which another state replaces.
    pub(crate) fn clear(&self) {
        self.hashes.lock().clear();
    }

    fn find(&self, revision: i64) -> Option<HashKv> {
        self.hashes
            .lock()
            .iter()
            .find(|hash| hash.hash_revision == revision)
            .copied()
    }
}

impl Kept {
    /// For a compaction, which keeps tombstones at its revision.
    pub(crate) fn with_tombstones() -> Kept {
        Kept {
            tombstones: true,
            ..Kept::default()
        }
    }

    pub(crate) fn finish(&mut self) {
        self.revisions.sort_unstable();
    }
}

impl KvHasher {
    pub(crate) fn new(compacted: i64, revision: i64, kept: Kept) -> KvHasher {
        KvHasher {
            crc: crc32c::crc32c(b"key"),
            compacted,
            revision,
            kept,
            passed: 0,
        }
    }

    /// Adds a pair if it counts; breaks behind the last revision that does.
    pub(crate) fn feed(&mut self, key: &[u8], value: &[u8]) -> ControlFlow<()> {
        let Some((revision, change)) = Revision::decode(key) else {
            return ControlFlow::Continue(());
        };
        if revision.main > self.revision {
            return ControlFlow::Break(());
        }
        if revision.main <= self.compacted && self.kept.any && !self.is_kept(revision) {
            return ControlFlow::Continue(());
        }
        if revision.main == self.compacted && change == Change::Tombstone {
            return ControlFlow::Continue(());
        }
        self.crc = crc32c::crc32c_append(self.crc, key);
        self.crc = crc32c::crc32c_append(self.crc, value);
        ControlFlow::Continue(())
    }

    pub(crate) fn sum(&self) -> u32 {
        self.crc
    }

    fn is_kept(&mut self, revision: Revision) -> bool {
        while self
            .kept
            .revisions
            .get(self.passed)
            .is_some_and(|kept| *kept < revision)
        {
            self.passed += 1;
        }
        self.kept.revisions.get(self.passed) == Some(&revision)
    }
}

/// Feeds at most `pairs_max` pairs from `from` on; returns the key to go on behind, or `None` at the end.
pub(crate) fn feed_slice(
    view: &View,
    hasher: &mut KvHasher,
    from: &[u8],
    pairs_max: usize,
) -> Result<Option<Vec<u8>>> {
    let mut last = None;
    let mut fed = 0;
    view.scan(Keyspace::Rev, from, None, &mut |key, value| {
        if hasher.feed(key, value).is_break() {
            return ControlFlow::Break(());
        }
        fed += 1;
        if fed == pairs_max {
            // No key lies between one and itself with a byte behind it.
            last = Some([key, &[0]].concat());
            return ControlFlow::Break(());
        }
        ControlFlow::Continue(())
    })?;
    Ok(last)
}
