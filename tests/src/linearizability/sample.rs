//! Histories whose verdict is known: made by a store that does one request after the other, and spoiled on purpose.

use std::collections::BTreeMap;

use rand::rngs::StdRng;
use rand::{RngExt, SeedableRng};

use crate::history::{Action, ActionResult, Compare, KeyValue, Op, Outcome, Record, Target};

/// Clients that ask at once.
const CLIENTS: u32 = 6;
/// Keys that they share; transactions touch two of them.
const KEYS: u64 = 4;
/// One in so many requests gets no answer.
const LOST_ONE_IN: u32 = 25;

/// What is made wrong.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Fault {
    /// A read answers with what was there before an acknowledged write.
    StaleRead,
    /// An acknowledged write has no effect.
    LostWrite,
    /// A put without an answer takes effect twice, with another one between.
    DoubleApply,
    /// A transaction does its first list although what it compared was not so.
    WrongBranch,
    /// A lease's key goes although the lease has time left.
    EarlyExpiry,
}

impl Fault {
    /// All of them.
    pub const ALL: [Fault; 5] = [
        Fault::StaleRead,
        Fault::LostWrite,
        Fault::DoubleApply,
        Fault::WrongBranch,
        Fault::EarlyExpiry,
    ];
}

/// A history of `requests` requests that a right store gave.
pub fn good(seed: u64, requests: usize) -> Vec<Record> {
    let mut random = StdRng::seed_from_u64(seed);
    let mut store = Store::default();
    let mut busy_until = [0_u64; CLIENTS as usize];
    let mut records = Vec::new();
    for moment in (1..=requests as u64).map(|n| n * 100) {
        // Each request takes effect at a moment of its own, and began and ends within what its client has free.
        let client = random.random_range(0..CLIENTS);
        let free_from = &mut busy_until[client as usize];
        if *free_from >= moment {
            continue;
        }
        let call = random.random_range((*free_from + 1).max(moment.saturating_sub(300))..=moment);
        let returned = moment + random.random_range(1..300);
        *free_from = returned;
        let op = random_op(&mut random, &store, moment);
        let is_lost = random.random_ratio(1, LOST_ONE_IN);
        let happens = !is_lost || random.random_bool(0.5);
        let outcome = if happens {
            store.step(&op)
        } else {
            Outcome::Unknown
        };
        if let Op::Grant { lease } = op {
            records.push(Record::expiry(lease, u64::MAX));
        }
        records.push(Record {
            client,
            call,
            returned: (!is_lost).then_some(returned),
            outcome: if is_lost { Outcome::Unknown } else { outcome },
            op,
        });
    }
    records
}

/// A history of a store that made one mistake in the middle of others' requests.
pub fn bad(seed: u64, fault: Fault) -> Vec<Record> {
    let mut records = good(seed, 60);
    let begin = records
        .iter()
        .filter_map(|record| record.returned)
        .max()
        .unwrap_or(0)
        + 1_000;
    let newest = records
        .iter()
        .filter_map(|record| record.outcome.revision())
        .max()
        .unwrap_or(1);
    // What was lost may still come, and makes revisions.
    let first = newest + 1_000;
    let mut story = Story {
        at: begin,
        records: Vec::new(),
    };
    let seen = |value: &str, version: i64, mod_revision: i64| KeyValue {
        value: value.to_owned(),
        version,
        mod_revision,
        create_revision: first,
        lease: 0,
    };
    let got = |kv: Option<KeyValue>| vec![ActionResult::Get { kv }];
    story.tell(Op::put("story", "a"), done(first, vec![ActionResult::Put]));
    match fault {
        Fault::StaleRead => {
            story.tell(
                Op::put("story", "b"),
                done(first + 1, vec![ActionResult::Put]),
            );
            story.tell(
                Op::get("story"),
                done(first + 1, got(Some(seen("a", 1, first)))),
            );
        }
        Fault::LostWrite => {
            story.tell(
                Op::put("story", "b"),
                done(first + 1, vec![ActionResult::Put]),
            );
            story.tell(
                Op::put("story", "c"),
                done(first + 2, vec![ActionResult::Put]),
            );
            story.tell(
                Op::get("story"),
                done(first + 2, got(Some(seen("c", 2, first + 2)))),
            );
        }
        Fault::DoubleApply => {
            story.tell(Op::put("story", "b"), Outcome::Unknown);
            story.tell(
                Op::get("story"),
                done(first + 1, got(Some(seen("b", 2, first + 1)))),
            );
            story.tell(
                Op::put("story", "c"),
                done(first + 2, vec![ActionResult::Put]),
            );
            story.tell(
                Op::get("story"),
                done(first + 3, got(Some(seen("b", 4, first + 3)))),
            );
        }
        Fault::WrongBranch => {
            let compare = Compare {
                key: "story".into(),
                target: Target::ModRevision(first - 1),
            };
            let put = |value: &str| Action::Put {
                key: "story".into(),
                value: value.into(),
                lease: 0,
            };
            let op = Op::Txn {
                compare: vec![compare],
                success: vec![put("b")],
                failure: vec![],
            };
            story.tell(op, done(first + 1, vec![ActionResult::Put]));
        }
        Fault::EarlyExpiry => {
            let lease = 99;
            story.tell(Op::Grant { lease }, done(first, vec![]));
            let put = Action::Put {
                key: "leased".into(),
                value: "l".into(),
                lease,
            };
            story.tell(
                Op::Single { action: put },
                done(first + 1, vec![ActionResult::Put]),
            );
            story.tell(Op::get("leased"), done(first + 2, got(None)));
            story.records.push(Record::expiry(lease, story.at));
        }
    }
    records.extend(story.records);
    records
}

/// Requests of one client, one after the other.
struct Story {
    at: u64,
    records: Vec<Record>,
}

impl Story {
    fn tell(&mut self, op: Op, outcome: Outcome) {
        let is_lost = outcome == Outcome::Unknown;
        let returned = (!is_lost).then_some(self.at + 5);
        self.records.push(Record {
            client: 0,
            call: self.at,
            returned,
            op,
            outcome,
        });
        self.at += 10;
    }
}

fn done(revision: i64, results: Vec<ActionResult>) -> Outcome {
    Outcome::Done {
        revision,
        succeeded: true,
        results,
    }
}

fn random_op(random: &mut StdRng, store: &Store, moment: u64) -> Op {
    let key = |random: &mut StdRng| format!("k{}", random.random_range(0..KEYS));
    let value = moment.to_string();
    match random.random_range(0..12) {
        0..4 => Op::get(&key(random)),
        4..7 => Op::put(&key(random), &value),
        7 => Op::delete(&key(random)),
        8 if random.random_bool(0.5) => Op::Grant {
            lease: moment as i64,
        },
        8 | 9 => match store.leases.iter().next() {
            Some((lease, _)) if random.random_bool(0.3) => Op::Revoke { lease: *lease },
            Some((lease, _)) => {
                let (key, lease) = (format!("l{lease}"), *lease);
                Op::Single {
                    action: Action::Put { key, value, lease },
                }
            }
            None => Op::Grant {
                lease: moment as i64,
            },
        },
        _ => {
            let (one, two) = (key(random), key(random));
            let kv = store.keys.get(&one);
            let stale = i64::from(random.random_bool(0.3));
            let target = match (random.random_range(0..4), kv) {
                (0, kv) => Target::Version(kv.map_or(0, |kv| kv.version) - stale),
                (1, kv) => Target::CreateRevision(kv.map_or(0, |kv| kv.create_revision) - stale),
                (2, Some(kv)) if stale == 0 => Target::Value(kv.value.clone()),
                (_, kv) => Target::ModRevision(kv.map_or(0, |kv| kv.mod_revision) - stale),
            };
            let put = Action::Put {
                key: one.clone(),
                value,
                lease: 0,
            };
            let mut success = vec![put];
            if two != one {
                success.push(Action::Delete { key: two.clone() });
            }
            let failure = vec![Action::Get { key: one.clone() }, Action::Get { key: two }];
            Op::Txn {
                compare: vec![Compare { key: one, target }],
                success,
                failure,
            }
        }
    }
}

/// A store that does one request after the other, written apart from the checker's model.
#[derive(Default)]
struct Store {
    revision: i64,
    keys: BTreeMap<String, KeyValue>,
    leases: BTreeMap<i64, ()>,
}

impl Store {
    fn step(&mut self, op: &Op) -> Outcome {
        let (actions, succeeded): (&[Action], bool) = match op {
            Op::Single { action } => (std::slice::from_ref(action), true),
            Op::Txn {
                compare,
                success,
                failure,
            } => {
                let holds = compare.iter().all(|compare| self.holds(compare));
                (if holds { success } else { failure }, holds)
            }
            Op::Grant { lease } => {
                self.leases.insert(*lease, ());
                (&[], true)
            }
            Op::Revoke { lease } | Op::Expire { lease } => {
                if self.leases.remove(lease).is_none() {
                    return Outcome::NoSuchLease;
                }
                let before = self.keys.len();
                self.keys.retain(|_, kv| kv.lease != *lease);
                self.revision += i64::from(self.keys.len() < before);
                (&[], true)
            }
        };
        let next = self.revision + 1;
        let results: Vec<_> = actions
            .iter()
            .map(|action| self.act(action, next))
            .collect();
        let changed = results.iter().any(|result| match result {
            ActionResult::Put => true,
            ActionResult::Delete { deleted } => *deleted > 0,
            ActionResult::Get { .. } => false,
        });
        self.revision += i64::from(changed);
        Outcome::Done {
            revision: self.revision,
            succeeded,
            results,
        }
    }

    fn holds(&self, compare: &Compare) -> bool {
        let kv = self.keys.get(&compare.key);
        match &compare.target {
            Target::Version(wanted) => kv.map_or(0, |kv| kv.version) == *wanted,
            Target::ModRevision(wanted) => kv.map_or(0, |kv| kv.mod_revision) == *wanted,
            Target::CreateRevision(wanted) => kv.map_or(0, |kv| kv.create_revision) == *wanted,
            Target::Value(wanted) => kv.is_some_and(|kv| kv.value == *wanted),
        }
    }

    fn act(&mut self, action: &Action, revision: i64) -> ActionResult {
        match action {
            Action::Put { key, value, lease } => {
                let before = self.keys.get(key);
                let kv = KeyValue {
                    value: value.clone(),
                    version: before.map_or(1, |kv| kv.version + 1),
                    mod_revision: revision,
                    create_revision: before.map_or(revision, |kv| kv.create_revision),
                    lease: *lease,
                };
                self.keys.insert(key.clone(), kv);
                ActionResult::Put
            }
            Action::Get { key } => ActionResult::Get {
                kv: self.keys.get(key).cloned(),
            },
            Action::Delete { key } => {
                let deleted = i64::from(self.keys.remove(key).is_some());
                ActionResult::Delete { deleted }
            }
        }
    }
}
