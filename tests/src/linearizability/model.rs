//! The store that answers are compared with: keys with their revisions and versions, and leases, one request at a time.
//!
//! What a lost answer would have told stays open in the state: the revision of a write without an answer is only known to
//! be greater than the one before ([`Rev::After`]), until a read names it. A step may therefore lead to several states.
//!
//! Source: etcd v3 API, as `docs/differences.md` limits it: KV, Txn, Lease.

use std::collections::BTreeMap;

use crate::history::{Action, ActionResult, Compare, KeyValue, Op, Outcome, Record, Target};

/// A revision, as far as it is known.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
enum Rev {
    Known(i64),
    /// Greater than this.
    After(i64),
}

impl Rev {
    /// What it is if it was seen to be `seen`.
    fn resolve(self, seen: i64) -> Option<Rev> {
        match self {
            Rev::Known(known) => (known == seen).then_some(self),
            Rev::After(floor) => (seen > floor).then_some(Rev::Known(seen)),
        }
    }
}

#[derive(Clone, Debug, PartialEq, Eq, Hash)]
struct Stored<'h> {
    value: &'h str,
    version: i64,
    modified: Rev,
    created: Rev,
    lease: i64,
}

impl Stored<'_> {
    /// Whether this can be what was read; then revisions in it are known.
    fn is_seen_as(&mut self, seen: &KeyValue) -> bool {
        let (Some(modified), Some(created)) = (
            self.modified.resolve(seen.mod_revision),
            self.created.resolve(seen.create_revision),
        ) else {
            return false;
        };
        (self.modified, self.created) = (modified, created);
        (self.value, self.version, self.lease) == (&seen.value, seen.version, seen.lease)
    }
}

/// The store at one moment.
#[derive(Clone, Debug, Default, PartialEq, Eq, Hash)]
pub(super) struct State<'h> {
    /// The store's revision is at least this.
    revision: i64,
    keys: BTreeMap<&'h str, Stored<'h>>,
    /// Every lease that was made; whether it lives.
    leases: BTreeMap<i64, bool>,
}

impl<'h> State<'h> {
    /// The states after a request, none if it cannot have come to its outcome now. For an unknown outcome: if it
    /// takes effect now.
    pub(super) fn step(&self, record: &'h Record) -> Vec<State<'h>> {
        match &record.op {
            Op::Single { action } => self
                .act(std::slice::from_ref(action), true, &record.outcome)
                .into_iter()
                .collect(),
            Op::Txn {
                compare,
                success,
                failure,
            } => self.txn(compare, success, failure, &record.outcome),
            Op::Grant { lease } => self.grant(*lease, &record.outcome).into_iter().collect(),
            Op::Revoke { lease } | Op::Expire { lease } => self
                .end_lease(*lease, &record.outcome)
                .into_iter()
                .collect(),
        }
    }

    fn txn(
        &self,
        compare: &[Compare],
        success: &'h [Action],
        failure: &'h [Action],
        outcome: &Outcome,
    ) -> Vec<State<'h>> {
        let mut next = Vec::new();
        let may_be = |succeeded: bool| match outcome {
            Outcome::Done {
                succeeded: told, ..
            } => *told == succeeded,
            Outcome::Unknown | Outcome::NoSuchLease => true,
        };
        let mut held = self.clone();
        let mut is_open = false;
        let holds = compare.iter().all(|compare| {
            let (may_hold, may_fail) = held.holds(compare);
            is_open |= may_hold && may_fail;
            may_hold
        });
        if holds && may_be(true) {
            next.extend(held.act(success, true, outcome));
        }
        if (!holds || is_open) && may_be(false) {
            next.extend(self.act(failure, false, outcome));
        }
        next
    }

    /// Whether a condition may hold, and whether it may not; if it may, the state is made one where it does.
    fn holds(&mut self, compare: &Compare) -> (bool, bool) {
        let stored = self.keys.get_mut(compare.key.as_str());
        let is = |holds: bool| (holds, !holds);
        let of = |rev: &mut Rev, wanted: i64| match *rev {
            Rev::Known(known) => is(known == wanted),
            Rev::After(floor) if wanted > floor => {
                *rev = Rev::Known(wanted);
                (true, true)
            }
            Rev::After(_) => is(false),
        };
        match (stored, &compare.target) {
            (None, Target::Value(_)) => is(false),
            (
                None,
                Target::Version(wanted)
                | Target::ModRevision(wanted)
                | Target::CreateRevision(wanted),
            ) => is(*wanted == 0),
            (Some(stored), Target::Value(wanted)) => is(stored.value == wanted),
            (Some(stored), Target::Version(wanted)) => is(stored.version == *wanted),
            (Some(stored), Target::ModRevision(wanted)) => of(&mut stored.modified, *wanted),
            (Some(stored), Target::CreateRevision(wanted)) => of(&mut stored.created, *wanted),
        }
    }

    /// Does the actions as one step, and compares what they come to with the outcome.
    fn act(&self, actions: &'h [Action], succeeded: bool, outcome: &Outcome) -> Option<State<'h>> {
        let has_leases = actions.iter().all(|action| match action {
            Action::Put { lease, .. } => *lease == 0 || self.leases.get(lease) == Some(&true),
            Action::Get { .. } | Action::Delete { .. } => true,
        });
        let (told, results) = match outcome {
            Outcome::NoSuchLease => return (!has_leases).then(|| self.clone()),
            Outcome::Done {
                revision,
                succeeded: told,
                results,
            } => {
                if *told != succeeded || results.len() != actions.len() || !has_leases {
                    return None;
                }
                (Some(*revision), Some(results))
            }
            // It does nothing, which is what it does if it never comes.
            Outcome::Unknown if !has_leases => return None,
            Outcome::Unknown => (None, None),
        };
        let mut next = self.clone();
        let rev = told.map_or(Rev::After(self.revision), Rev::Known);
        let mut changed = false;
        for (n, action) in actions.iter().enumerate() {
            let result = results.map(|results| &results[n]);
            changed |= next.act_once(action, rev, result)?;
        }
        next.move_to(told, changed)
    }

    /// Does one action; whether it changed anything, nothing if it cannot have come to `result`.
    fn act_once(
        &mut self,
        action: &'h Action,
        rev: Rev,
        result: Option<&ActionResult>,
    ) -> Option<bool> {
        match (action, result) {
            (Action::Put { key, value, lease }, None | Some(ActionResult::Put)) => {
                let before = self.keys.get(key.as_str());
                let stored = Stored {
                    value,
                    version: before.map_or(0, |before| before.version) + 1,
                    modified: rev,
                    created: before.map_or(rev, |before| before.created),
                    lease: *lease,
                };
                self.keys.insert(key, stored);
                Some(true)
            }
            (Action::Delete { key }, None) => Some(self.keys.remove(key.as_str()).is_some()),
            (Action::Delete { key }, Some(ActionResult::Delete { deleted })) => {
                let was_there = self.keys.remove(key.as_str()).is_some();
                (i64::from(was_there) == *deleted).then_some(was_there)
            }
            (Action::Get { .. }, None) => Some(false),
            (Action::Get { key }, Some(ActionResult::Get { kv })) => {
                let fits = match (self.keys.get_mut(key.as_str()), kv) {
                    (None, None) => true,
                    (Some(stored), Some(seen)) => stored.is_seen_as(seen),
                    (None, Some(_)) | (Some(_), None) => false,
                };
                fits.then_some(false)
            }
            (_, Some(_)) => None,
        }
    }

    /// Takes the revision that was told, or the least that it can be.
    fn move_to(mut self, told: Option<i64>, changed: bool) -> Option<State<'h>> {
        let least = self.revision + i64::from(changed);
        let revision = told.unwrap_or(least);
        self.revision = revision;
        (least <= revision).then_some(self)
    }

    fn grant(&self, lease: i64, outcome: &Outcome) -> Option<State<'h>> {
        if self.leases.contains_key(&lease) {
            return None;
        }
        let mut next = self.clone();
        next.leases.insert(lease, true);
        next.move_to(outcome.revision(), false)
    }

    fn end_lease(&self, lease: i64, outcome: &Outcome) -> Option<State<'h>> {
        let lives = self.leases.get(&lease) == Some(&true);
        match (outcome, lives) {
            (Outcome::NoSuchLease, false) => return Some(self.clone()),
            (Outcome::Done { .. } | Outcome::Unknown, true) => {}
            _ => return None,
        }
        let mut next = self.clone();
        next.leases.insert(lease, false);
        next.keys.retain(|_, stored| stored.lease != lease);
        let changed = next.keys.len() < self.keys.len();
        next.move_to(outcome.revision(), changed)
    }
}
