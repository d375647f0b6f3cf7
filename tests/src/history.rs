//! What clients asked for, when, and what they were told: the input of the checkers.
//!
//! One record is one request. Times are nanoseconds since the run began, on one clock for all clients. A request whose
//! answer was lost is *unknown*: it may take effect at any time after its call, or never. One that was certainly refused
//! leaves no record, except where the refusal tells something ([`Outcome::NoSuchLease`]).
//!
//! As a file a history is one JSON object a line, which `tests/porcupine` reads too.

use std::io::{BufRead, BufReader, BufWriter, Write};
use std::path::Path;
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use anyhow::{Context, Result};
use serde::{Deserialize, Serialize};

/// The client of what happens by itself.
pub const NOBODY: u32 = u32::MAX;

/// One request of one client.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Record {
    /// Who asked.
    pub client: u32,
    /// Before it was sent.
    pub call: u64,
    /// When it was answered; nothing if it never was.
    #[serde(rename = "return")]
    pub returned: Option<u64>,
    /// What was asked for.
    pub op: Op,
    /// What came back.
    pub outcome: Outcome,
}

/// What a client may ask for.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(tag = "type", rename_all = "snake_case")]
pub enum Op {
    /// One action by itself; a linearizable one if it is a read.
    Single {
        /// What is done.
        action: Action,
    },
    /// Compares, and does one of two lists of actions as one step.
    Txn {
        /// All must hold for `success`.
        compare: Vec<Compare>,
        /// Done if they do.
        success: Vec<Action>,
        /// Done if they do not.
        failure: Vec<Action>,
    },
    /// Makes a lease.
    Grant {
        /// Its id, which no other grant uses.
        lease: i64,
    },
    /// Ends a lease and deletes its keys.
    Revoke {
        /// Its id.
        lease: i64,
    },
    /// Asked for by nobody: a lease ends by itself, at the earliest at the call time, or not.
    Expire {
        /// Its id.
        lease: i64,
    },
}

/// One step with one key.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(tag = "type", rename_all = "snake_case")]
pub enum Action {
    /// Stores a value.
    Put {
        /// The key.
        key: String,
        /// The value.
        value: String,
        /// The lease it hangs on, 0 for none.
        #[serde(default)]
        lease: i64,
    },
    /// Reads.
    Get {
        /// The key.
        key: String,
    },
    /// Deletes.
    Delete {
        /// The key.
        key: String,
    },
}

/// A condition of a transaction.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Compare {
    /// The key.
    pub key: String,
    /// What of the key must be equal; of a key that is not there, numbers are 0 and a value is never equal.
    pub target: Target,
}

/// What of a key is compared for equality.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Target {
    /// How often it was put since it was created.
    Version(i64),
    /// The revision of its last put.
    ModRevision(i64),
    /// The revision that created it.
    CreateRevision(i64),
    /// Its value.
    Value(String),
}

/// What came of a request.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(tag = "type", rename_all = "snake_case")]
pub enum Outcome {
    /// Nobody knows.
    Unknown,
    /// It did nothing, since the lease it names was not there.
    NoSuchLease,
    /// It was done.
    Done {
        /// The header's revision.
        revision: i64,
        /// Of a transaction: which list was done; true otherwise.
        succeeded: bool,
        /// One for each action.
        results: Vec<ActionResult>,
    },
}

/// The answer of one action.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(tag = "type", rename_all = "snake_case")]
pub enum ActionResult {
    /// Of a put.
    Put,
    /// Of a read.
    Get {
        /// What was there.
        kv: Option<KeyValue>,
    },
    /// Of a deletion.
    Delete {
        /// Keys that were there.
        deleted: i64,
    },
}

/// A key as it was read.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct KeyValue {
    /// Its value.
    pub value: String,
    /// How often it was put since it was created.
    pub version: i64,
    /// The revision of its last put.
    pub mod_revision: i64,
    /// The revision that created it.
    pub create_revision: i64,
    /// The lease it hangs on, 0 for none.
    #[serde(default)]
    pub lease: i64,
}

impl Action {
    /// The key it is about.
    pub fn key(&self) -> &str {
        match self {
            Action::Put { key, .. } | Action::Get { key } | Action::Delete { key } => key,
        }
    }
}

impl Op {
    /// A put without a lease.
    pub fn put(key: &str, value: &str) -> Op {
        let (key, value) = (key.to_owned(), value.to_owned());
        let lease = 0;
        Op::Single {
            action: Action::Put { key, value, lease },
        }
    }

    /// A read.
    pub fn get(key: &str) -> Op {
        let key = key.to_owned();
        Op::Single {
            action: Action::Get { key },
        }
    }

    /// A deletion.
    pub fn delete(key: &str) -> Op {
        let key = key.to_owned();
        Op::Single {
            action: Action::Delete { key },
        }
    }

    /// Every action that it may come to.
    pub fn actions(&self) -> impl Iterator<Item = &Action> {
        let (first, second): (&[Action], &[Action]) = match self {
            Op::Single { action } => (std::slice::from_ref(action), &[]),
            Op::Txn {
                success, failure, ..
            } => (success, failure),
            Op::Grant { .. } | Op::Revoke { .. } | Op::Expire { .. } => (&[], &[]),
        };
        first.iter().chain(second)
    }

    /// Whether it changes nothing, whatever comes of it.
    pub fn is_read(&self) -> bool {
        let is_about_leases = matches!(
            self,
            Op::Grant { .. } | Op::Revoke { .. } | Op::Expire { .. }
        );
        let mut actions = self.actions();
        !is_about_leases && actions.all(|action| matches!(action, Action::Get { .. }))
    }
}

impl Outcome {
    /// The revision that was told.
    pub fn revision(&self) -> Option<i64> {
        match self {
            Outcome::Done { revision, .. } => Some(*revision),
            Outcome::Unknown | Outcome::NoSuchLease => None,
        }
    }
}

impl Record {
    /// The end of a lease by itself, no sooner than `earliest`; whether it came is not known.
    pub fn expiry(lease: i64, earliest: u64) -> Record {
        Record {
            client: NOBODY,
            call: earliest,
            returned: None,
            op: Op::Expire { lease },
            outcome: Outcome::Unknown,
        }
    }

    /// Whether it is known to have made a revision.
    pub fn has_changed(&self) -> bool {
        let Outcome::Done {
            succeeded, results, ..
        } = &self.outcome
        else {
            return false;
        };
        let done: &[Action] = match &self.op {
            Op::Single { action } => std::slice::from_ref(action),
            Op::Txn { success, .. } if *succeeded => success,
            Op::Txn { failure, .. } => failure,
            Op::Grant { .. } | Op::Revoke { .. } | Op::Expire { .. } => return false,
        };
        done.iter()
            .zip(results)
            .any(|(action, result)| match (action, result) {
                (Action::Put { .. }, _) => true,
                (_, ActionResult::Delete { deleted }) => *deleted > 0,
                _ => false,
            })
    }
}

/// Where clients write down what they do. Clones share it.
#[derive(Clone)]
pub struct Recorder {
    begun: Instant,
    records: Arc<Mutex<Vec<Record>>>,
}

impl Default for Recorder {
    fn default() -> Recorder {
        Recorder {
            begun: Instant::now(),
            records: Arc::default(),
        }
    }
}

impl Recorder {
    /// The time of now.
    pub fn now(&self) -> u64 {
        nanos(self.begun.elapsed())
    }

    /// Writes down what came of a request.
    pub fn add(&self, record: Record) {
        let mut records = self
            .records
            .lock()
            .expect("nobody panics with the records locked");
        records.push(record);
    }

    /// All that was written down since the last call.
    pub fn take(&self) -> Vec<Record> {
        let mut records = self
            .records
            .lock()
            .expect("nobody panics with the records locked");
        std::mem::take(&mut records)
    }
}

/// Nanoseconds, as histories count them.
pub fn nanos(time: Duration) -> u64 {
    u64::try_from(time.as_nanos()).unwrap_or(u64::MAX)
}

/// Writes a history to a file.
pub fn save(records: &[Record], path: &Path) -> Result<()> {
    let file =
        std::fs::File::create(path).with_context(|| format!("cannot write {}", path.display()))?;
    let mut file = BufWriter::new(file);
    for record in records {
        serde_json::to_writer(&mut file, record)?;
        file.write_all(b"\n")?;
    }
    Ok(file.flush()?)
}

/// Reads a history that [`save`] wrote.
pub fn load(path: &Path) -> Result<Vec<Record>> {
    let file =
        std::fs::File::open(path).with_context(|| format!("cannot read {}", path.display()))?;
    let lines = BufReader::new(file).lines();
    lines
        .map(|line| Ok(serde_json::from_str(&line?)?))
        .collect()
}
