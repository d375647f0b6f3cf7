//! A workload in which the log index alone decides what is written, so that any state can be compared with a replay.

use std::collections::BTreeMap;
use std::ops::ControlFlow;

use bytes::Bytes;

use crate::Result;
use crate::backend::{Backend, CONSISTENT_INDEX_KEY, Keyspace, Op};

/// A small generator of the test's own, so that a seed means the same for ever (SplitMix64).
pub(super) struct Random(pub(super) u64);

impl Random {
    pub(super) fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut mixed = self.0;
        mixed = (mixed ^ (mixed >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        mixed = (mixed ^ (mixed >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        mixed ^ (mixed >> 31)
    }

    /// A number below `end`.
    pub(super) fn below(&mut self, end: u64) -> u64 {
        self.next() % end
    }
}

/// How large values may get.
#[derive(Clone, Copy)]
pub(super) enum Values {
    Small,
    /// Some of 40 KiB and, rarely, 600 KB.
    Large,
}

/// Entries after which half of an entry's revisions are deleted again.
const KEPT_ENTRIES: u64 = 20;

/// The batch of log index `index`, which starts at 1.
pub(super) fn batch(index: u64, values: Values) -> Vec<Op> {
    let mut random = Random(index);
    let mut ops = Vec::new();
    for sub in 0..subs(index) {
        let key = revision(index, sub);
        let content = content(&mut random, values);
        ops.push(Op::Put(
            Keyspace::Index,
            key.clone(),
            content.slice(..content.len().min(24)),
        ));
        ops.push(Op::Put(Keyspace::Rev, key, content));
    }
    if let Some(old) = index.checked_sub(KEPT_ENTRIES).filter(|old| *old > 0) {
        for sub in (0..subs(old)).filter(|sub| (old + sub) % 2 == 0) {
            ops.push(Op::Delete(Keyspace::Rev, revision(old, sub)));
            ops.push(Op::Delete(Keyspace::Index, revision(old, sub)));
        }
    }
    let lease = Bytes::copy_from_slice(&random.below(30).to_be_bytes());
    ops.push(if random.below(3) == 0 {
        Op::Delete(Keyspace::Lease, lease)
    } else {
        Op::Put(Keyspace::Lease, lease, content(&mut random, Values::Small))
    });
    if random.below(16) == 0 {
        ops.push(Op::Put(
            Keyspace::AuthUsers,
            Bytes::from("user"),
            content(&mut random, values),
        ));
    }
    ops.push(Op::Put(
        Keyspace::Meta,
        Bytes::from_static(CONSISTENT_INDEX_KEY),
        Bytes::copy_from_slice(&index.to_be_bytes()),
    ));
    ops
}

/// Every tenth entry is large enough that sled has to split its commit.
fn subs(index: u64) -> u64 {
    if index.is_multiple_of(10) {
        60
    } else {
        1 + index % 4
    }
}

fn revision(main: u64, sub: u64) -> Bytes {
    let mut key = [b'_'; 17];
    key[..8].copy_from_slice(&main.to_be_bytes());
    key[9..].copy_from_slice(&sub.to_be_bytes());
    Bytes::copy_from_slice(&key)
}

fn content(random: &mut Random, values: Values) -> Bytes {
    let len = match (values, random.below(200)) {
        (Values::Large, 0) => 600_000,
        (Values::Large, 1..=4) => 40_000,
        _ => 100 + random.below(1900),
    };
    let seed = random.next().to_le_bytes();
    (0..len)
        .map(|at| seed[(at % 8) as usize].wrapping_add((at / 8) as u8))
        .collect()
}

/// The content of a database after some log index.
pub(super) struct Model {
    pub(super) index: u64,
    values: Values,
    content: BTreeMap<(Keyspace, Bytes), Bytes>,
}

impl Model {
    pub(super) fn new(values: Values) -> Model {
        Model {
            index: 0,
            values,
            content: BTreeMap::new(),
        }
    }

    /// Replays up to `index`.
    pub(super) fn advance(&mut self, index: u64) {
        assert!(
            self.index <= index,
            "index {index} is behind the model's {}",
            self.index
        );
        for index in self.index + 1..=index {
            for op in batch(index, self.values) {
                match op {
                    Op::Put(keyspace, key, value) => self.content.insert((keyspace, key), value),
                    Op::Delete(keyspace, key) => self.content.remove(&(keyspace, key)),
                };
            }
        }
        self.index = index;
    }

    /// Compares all of `backend` with the model, which must be at its index. Damage is returned; a difference panics.
    pub(super) fn compare(&self, backend: &Backend) -> Result<()> {
        let view = backend.view()?;
        for keyspace in Keyspace::ALL {
            let mut expected = self
                .content
                .iter()
                .filter(|((space, _), _)| *space == keyspace);
            view.scan(keyspace, b"", None, &mut |key, value| {
                let Some(((_, expected_key), expected_value)) = expected.next() else {
                    panic!(
                        "index {}, {keyspace:?}: key {} was invented",
                        self.index,
                        key.escape_ascii()
                    );
                };
                assert!(
                    expected_key == key,
                    "index {}, {keyspace:?}: found {} and expected {}",
                    self.index,
                    key.escape_ascii(),
                    expected_key.escape_ascii()
                );
                assert!(
                    expected_value == value,
                    "index {}, {keyspace:?}: the value of {} differs",
                    self.index,
                    key.escape_ascii()
                );
                ControlFlow::Continue(())
            })?;
            if let Some(((_, key), _)) = expected.next() {
                panic!(
                    "index {}, {keyspace:?}: key {} is lost",
                    self.index,
                    key.escape_ascii()
                );
            }
        }
        Ok(())
    }

    /// Asks for each key alone: an answer must be right or an error. Absent ones are counted, not judged.
    pub(super) fn compare_gets(&self, backend: &Backend) -> u64 {
        let mut absent = 0;
        for ((keyspace, key), expected) in &self.content {
            match backend.get(*keyspace, key) {
                Ok(Some(value)) => assert!(
                    value == expected,
                    "{keyspace:?} {}: wrong value served",
                    key.escape_ascii()
                ),
                Ok(None) => absent += 1,
                Err(_) => {}
            }
        }
        absent
    }
}
