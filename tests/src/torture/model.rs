//! What the store must hold after a sequence of operations.

use std::collections::{BTreeMap, BTreeSet};

use bytes::Bytes;
use kv_proto::mvccpb::KeyValue;

use super::operation::{Operation, Txn, Write};

/// One event of a revision: a key with its new value and lease, or its deletion.
pub type Change = (Bytes, Option<(Bytes, i64)>);

/// Keys, their newest values, and leases at a revision.
#[derive(Clone, Debug)]
pub struct Model {
    /// Revision of the newest change; 1 while there is none.
    pub revision: i64,
    /// The keys.
    pub keys: BTreeMap<Bytes, KeyValue>,
    /// The leases.
    pub leases: BTreeSet<i64>,
}

impl Default for Model {
    fn default() -> Model {
        Model {
            revision: 1,
            keys: BTreeMap::new(),
            leases: BTreeSet::new(),
        }
    }
}

impl Model {
    /// What `operation` changes if it is the next one. Leases are not looked at.
    pub fn effects(&self, operation: &Operation) -> Vec<Change> {
        match operation {
            Operation::Write(write) => self.write(write),
            Operation::Txn(txn) => {
                let writes = if self.holds(txn) {
                    &txn.success
                } else {
                    &txn.failure
                };
                writes.iter().flat_map(|write| self.write(write)).collect()
            }
            Operation::Revoke(id) => {
                let attached = self.keys.values().filter(|item| item.lease == *id);
                attached.map(|item| (item.key.clone(), None)).collect()
            }
            Operation::Grant(_) | Operation::Compact(_) => Vec::new(),
        }
    }

    /// Whether the guard of `txn` holds.
    pub fn holds(&self, txn: &Txn) -> bool {
        txn.guard
            .as_ref()
            .is_none_or(|(key, value)| self.keys.get(key).is_some_and(|item| item.value == *value))
    }

    /// Makes `changes` the next revision.
    pub fn apply(&mut self, changes: &[Change]) {
        self.revision += 1;
        let revision = self.revision;
        for (key, change) in changes {
            let Some((value, lease)) = change else {
                self.keys.remove(key);
                continue;
            };
            let item = self.keys.entry(key.clone()).or_insert_with(|| KeyValue {
                key: key.clone(),
                create_revision: revision,
                ..Default::default()
            });
            item.mod_revision = revision;
            item.version += 1;
            item.value = value.clone();
            item.lease = *lease;
        }
    }

    fn write(&self, write: &Write) -> Vec<Change> {
        match write {
            Write::Put { key, value, lease } => {
                vec![(key.clone(), Some((value.clone(), *lease)))]
            }
            Write::Delete { key, end } => {
                let deleted = self.keys.range(key.clone()..end.clone());
                deleted.map(|(key, _)| (key.clone(), None)).collect()
            }
        }
    }
}
