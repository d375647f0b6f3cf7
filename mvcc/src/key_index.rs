//! Revisions of one key, grouped in generations.
//!
//! A generation begins at a create and ends at a tombstone. Invariants:
//! - revisions strictly increase within and across generations;
//! - only the newest generation may be open (without a tombstone);
//! - a key without a revision has no `KeyIndex`;
//! - versions count from 1 in each generation, also when its first revisions have been compacted.
//!
//! ```text
//! put(2) put(3) del(5) put(8)  ->  {2, 3, 5t} {8}
//!     compact(3)  ->  {3, 5t} {8}      the newest revision <= 3 stays readable
//!     compact(5)  ->  {5t} {8}         a tombstone exactly there is kept
//!     compact(6)  ->  {8}              an older one goes
//! ```
//!
//! Nearly all keys have one revision, so that case takes 24 bytes and no allocation.
//!
//! Source: etcd 3.7 mvcc, key index and compaction. One difference: of several changes of a key in the transaction
//! that is compacted, etcd keeps the first tombstone and loses the value put after it; here the last change decides.

use std::num::NonZeroU32;

use crate::revision::{Change, Revision};

/// All revisions of one key that have not been compacted.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum KeyIndex {
    /// One revision, a put.
    One {
        main: i64,
        created: i64,
        sub: u32,
        version: NonZeroU32,
    },
    /// Anything else.
    Many(Box<History>),
}

const _: () = assert!(size_of::<KeyIndex>() == 24);

/// What a key is at one revision, apart from its value.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct KeyState {
    /// The revision that holds the value.
    pub(crate) modified: Revision,
    /// Main revision of the put that created the key.
    pub(crate) created: i64,
    /// Puts since then, that one included.
    pub(crate) version: i64,
}

/// Revisions in order; a tombstone ends a generation.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct History {
    revisions: Vec<Entry>,
    /// Create revision and version of `revisions[0]`, which may be in the middle of its generation.
    created: i64,
    version: i64,
    /// Where the newest generation begins; the length if the key is deleted.
    newest: usize,
}

/// Revisions that a compaction took from one key, in order.
#[derive(Debug)]
pub(crate) struct Dropped(Vec<Entry>);

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Entry {
    main: i64,
    sub: u32,
    change: Change,
}

impl KeyIndex {
    /// The first known revision of a key: its create, or what a compaction left.
    ///
    /// `created` and `version` are ignored for a tombstone.
    pub(crate) fn first(
        revision: Revision,
        change: Change,
        created: i64,
        version: i64,
    ) -> KeyIndex {
        let entry = Entry::new(revision, change);
        match (
            change,
            u32::try_from(version).ok().and_then(NonZeroU32::new),
        ) {
            (Change::Put, Some(version)) => KeyIndex::One {
                main: entry.main,
                created,
                sub: entry.sub,
                version,
            },
            (Change::Put, None) => KeyIndex::Many(Box::new(History {
                revisions: vec![entry],
                created,
                version,
                newest: 0,
            })),
            (Change::Tombstone, _) => KeyIndex::Many(Box::new(History {
                revisions: vec![entry],
                created: 0,
                version: 1,
                newest: 1,
            })),
        }
    }

    /// Adds a put, which opens a generation if the key does not exist.
    pub(crate) fn put(&mut self, revision: Revision) {
        self.history(revision)
            .revisions
            .push(Entry::new(revision, Change::Put));
    }

    /// Adds a tombstone, which ends the open generation; `false` and no change if the key does not exist.
    pub(crate) fn tombstone(&mut self, revision: Revision) -> bool {
        if !self.is_live() {
            return false;
        }
        let history = self.history(revision);
        history
            .revisions
            .push(Entry::new(revision, Change::Tombstone));
        history.newest = history.revisions.len();
        true
    }

    /// The key as of main revision `at`; `None` if it does not exist there.
    pub(crate) fn get(&self, at: i64) -> Option<KeyState> {
        match self {
            KeyIndex::One { main, .. } => {
                if *main <= at {
                    self.latest()
                } else {
                    None
                }
            }
            KeyIndex::Many(history) => {
                let position = history.position(at)?;
                match history.revisions[position].change {
                    Change::Put => Some(history.state(position)),
                    Change::Tombstone => None,
                }
            }
        }
    }

    /// The key as of the newest revision.
    pub(crate) fn latest(&self) -> Option<KeyState> {
        match self {
            KeyIndex::One {
                main,
                created,
                sub,
                version,
            } => Some(KeyState {
                modified: Revision::new(*main, i64::from(*sub)),
                created: *created,
                version: i64::from(version.get()),
            }),
            KeyIndex::Many(history) => self
                .is_live()
                .then(|| history.state(history.revisions.len() - 1)),
        }
    }

    /// Whether the key exists as of the newest revision.
    pub(crate) fn is_live(&self) -> bool {
        match self {
            KeyIndex::One { .. } => true,
            KeyIndex::Many(history) => history.newest < history.revisions.len(),
        }
    }

    /// The newest revision, a tombstone included.
    pub(crate) fn modified(&self) -> Revision {
        match self {
            KeyIndex::One { main, sub, .. } => Revision::new(*main, i64::from(*sub)),
            KeyIndex::Many(history) => history.revisions[history.revisions.len() - 1].revision(),
        }
    }

    /// Calls `visit` with each change whose main revision is in `from..=to`, in order.
    pub(crate) fn since(&self, from: i64, to: i64, mut visit: impl FnMut(Revision, Change)) {
        match self {
            KeyIndex::One { main, sub, .. } => {
                if (from..=to).contains(main) {
                    visit(Revision::new(*main, i64::from(*sub)), Change::Put);
                }
            }
            KeyIndex::Many(history) => {
                let start = history.revisions.partition_point(|entry| entry.main < from);
                for entry in &history.revisions[start..] {
                    if entry.main > to {
                        break;
                    }
                    visit(entry.revision(), entry.change);
                }
            }
        }
    }

    /// Drops what no read at `at` or later can see, and hands it over in `dropped`.
    ///
    /// Returns `false` if nothing is left, and the key must leave the index. Costs what is *kept*: however much a
    /// compaction drops of a key, the caller's lock is held for a moment only.
    pub(crate) fn compact(&mut self, at: i64, dropped: &mut Vec<Dropped>) -> bool {
        let KeyIndex::Many(history) = self else {
            return true;
        };
        let Some(position) = history.position(at) else {
            return true;
        };
        let last = history.revisions[position];
        let keep_from = match last.change {
            Change::Tombstone if last.main < at => position + 1,
            Change::Put | Change::Tombstone => position,
        };
        if keep_from == history.revisions.len() {
            dropped.push(Dropped(std::mem::take(&mut history.revisions)));
            return false;
        }
        if keep_from > 0 {
            let first = history.state(keep_from);
            history.created = first.created;
            history.version = first.version;
            history.newest = history.newest.saturating_sub(keep_from);
            let kept = history.revisions.split_off(keep_from);
            dropped.push(Dropped(std::mem::replace(&mut history.revisions, kept)));
        }
        if let [only] = history.revisions[..]
            && only.change == Change::Put
        {
            *self = KeyIndex::first(
                only.revision(),
                Change::Put,
                history.created,
                history.version,
            );
        }
        true
    }

    /// The revision that HashKV keeps at `at`: the newest one `<= at`, unless it is a tombstone.
    pub(crate) fn keep(&self, at: i64) -> Option<Revision> {
        self.get(at).map(|state| state.modified)
    }

    /// Whether the newest revision `<= at` is a tombstone at exactly `at`, which compaction keeps and HashKV skips.
    pub(crate) fn keeps_tombstone(&self, at: i64) -> bool {
        let KeyIndex::Many(history) = self else {
            return false;
        };
        history.position(at).is_some_and(|position| {
            let entry = history.revisions[position];
            entry.main == at && entry.change == Change::Tombstone
        })
    }

    /// Bytes on the heap.
    pub(crate) fn heap_bytes(&self) -> usize {
        match self {
            KeyIndex::One { .. } => 0,
            KeyIndex::Many(history) => {
                size_of::<History>() + history.revisions.capacity() * size_of::<Entry>()
            }
        }
    }

    /// Panics if an invariant of the module does not hold.
    pub(crate) fn check_invariants(&self) {
        let KeyIndex::Many(history) = self else {
            return;
        };
        assert!(
            !history.revisions.is_empty(),
            "a key index without a revision"
        );
        for pair in history.revisions.windows(2) {
            assert!(
                pair[0].revision() < pair[1].revision(),
                "{} is not below {}",
                pair[0].revision(),
                pair[1].revision()
            );
        }
        let newest = history
            .revisions
            .iter()
            .rposition(|entry| entry.change == Change::Tombstone)
            .map_or(0, |position| position + 1);
        assert!(
            history.newest == newest,
            "newest generation begins at {newest}, not {}",
            history.newest
        );
        for pair in history.revisions.windows(2) {
            if pair[0].change == Change::Tombstone {
                assert!(
                    pair[1].change == Change::Put,
                    "two tombstones in a row at {}",
                    pair[1].revision()
                );
            }
        }
    }

    /// The long form, to which a revision above all others is about to be added.
    fn history(&mut self, next: Revision) -> &mut History {
        let modified = self.modified();
        assert!(next > modified, "revision {next} is not above {modified}");
        if let KeyIndex::One {
            main,
            created,
            sub,
            version,
        } = *self
        {
            let mut revisions = Vec::with_capacity(2);
            revisions.push(Entry {
                main,
                sub,
                change: Change::Put,
            });
            *self = KeyIndex::Many(Box::new(History {
                revisions,
                created,
                version: i64::from(version.get()),
                newest: 0,
            }));
        }
        match self {
            KeyIndex::Many(history) => history,
            KeyIndex::One { .. } => unreachable!("was just made the long form"),
        }
    }
}

impl Dropped {
    pub(crate) fn iter(&self) -> impl Iterator<Item = (Revision, Change)> {
        self.0.iter().map(|entry| (entry.revision(), entry.change))
    }
}

impl History {
    /// Position of the newest revision `<= at`.
    fn position(&self, at: i64) -> Option<usize> {
        // Reads are mostly of the newest revision, and a hot key has many.
        if self.revisions[self.revisions.len() - 1].main <= at {
            return Some(self.revisions.len() - 1);
        }
        self.revisions
            .partition_point(|entry| entry.main <= at)
            .checked_sub(1)
    }

    /// The key as `revisions[position]` left it; of a tombstone, what it ended.
    fn state(&self, position: usize) -> KeyState {
        let start = if position >= self.newest {
            self.newest
        } else {
            let before = &self.revisions[..position];
            before
                .iter()
                .rposition(|entry| entry.change == Change::Tombstone)
                .map_or(0, |tombstone| tombstone + 1)
        };
        let (created, first_version) = match start {
            0 => (self.created, self.version),
            _ => (self.revisions[start].main, 1),
        };
        let offset = i64::try_from(position - start).expect("a vector's length fits i64");
        KeyState {
            modified: self.revisions[position].revision(),
            created,
            version: first_version + offset,
        }
    }
}

impl Entry {
    fn new(revision: Revision, change: Change) -> Entry {
        let sub = u32::try_from(revision.sub).expect("a transaction has fewer than 2^32 changes");
        Entry {
            main: revision.main,
            sub,
            change,
        }
    }

    fn revision(&self) -> Revision {
        Revision::new(self.main, i64::from(self.sub))
    }
}

#[cfg(test)]
mod tests;
