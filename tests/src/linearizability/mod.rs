//! Whether a history could have come from one store that does one request after the other.
//!
//! Each request must seem to happen at one moment between its call and its return ([`mod@model`] says what it does there);
//! the search for such moments is Wing and Gong's with Lowe's memory of what was tried (`search.rs`). Requests that share
//! neither a key nor a lease, nor a chain of them, are searched apart; what ties them together is the store's revision,
//! which [`check_revisions`] compares over the whole history.
//!
//! Sources: Wing and Gong, "Testing and Verifying Concurrent Objects" (1993); Lowe, "Testing for Linearizability" (2017).

mod model;
mod search;

pub mod sample;

use std::collections::HashMap;
use std::fmt;

use crate::history::{Op, Outcome, Record};

/// How much a search may take.
#[derive(Clone, Copy, Debug)]
pub struct Limits {
    /// Steps in one partition; one takes about a microsecond, and 32 bytes of memory.
    pub steps_max: u64,
}

impl Default for Limits {
    fn default() -> Limits {
        Limits {
            steps_max: 3_000_000,
        }
    }
}

/// What the search came to.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Verdict {
    /// There is an order that explains everything.
    Linearizable,
    /// There is none.
    Violation(Violation),
    /// The limits came first.
    Undecided {
        /// Requests in the partition that was given up.
        requests: usize,
    },
}

/// Why there is no order.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Violation {
    /// The end of the longest order that was found, oldest first.
    pub explained: Vec<Record>,
    /// What could have come next, and did not fit.
    pub unexplained: Vec<Record>,
    /// What is wrong, where it can be said in a sentence.
    pub text: String,
}

impl fmt::Display for Violation {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        writeln!(f, "{}", self.text)?;
        for (title, records) in [
            ("explained so far:", &self.explained),
            ("none of these can be next:", &self.unexplained),
        ] {
            writeln!(f, "  {title}")?;
            for record in records {
                let line = serde_json::to_string(record).map_err(|_| fmt::Error)?;
                writeln!(f, "    {line}")?;
            }
        }
        Ok(())
    }
}

/// Looks for an order of a whole history.
///
/// A violation in any partition counts before a partition that was given up.
pub fn check(history: &[Record], limits: Limits) -> Verdict {
    if let Err(violation) = check_revisions(history) {
        return Verdict::Violation(violation);
    }
    let mut verdict = Verdict::Linearizable;
    for partition in partitions(history) {
        match search::search(&partition, limits) {
            Verdict::Linearizable => {}
            Verdict::Violation(violation) => return Verdict::Violation(violation),
            undecided => verdict = undecided,
        }
    }
    verdict
}

/// Revisions never fall from one answer to a call that came after it, rise with every change, and belong to one change each.
pub fn check_revisions(history: &[Record]) -> Result<(), Violation> {
    let violation = |text: &str, earlier: &Record, later: &Record| Violation {
        explained: vec![earlier.clone()],
        unexplained: vec![later.clone()],
        text: text.to_owned(),
    };
    let mut known: Vec<&Record> = history
        .iter()
        .filter(|record| record.outcome.revision().is_some())
        .collect();
    let mut changes: HashMap<i64, &Record> = HashMap::new();
    for record in known.iter().filter(|record| record.has_changed()) {
        let revision = record.outcome.revision().expect("filtered above");
        if let Some(other) = changes.insert(revision, record) {
            return Err(violation("two changes of one revision", other, record));
        }
    }
    let mut returned = known.clone();
    returned.sort_by_key(|record| record.returned);
    known.sort_by_key(|record| record.call);
    let mut returned = returned.into_iter().peekable();
    let mut newest: Option<&Record> = None;
    for record in known {
        while let Some(earlier) = returned.next_if(|earlier| earlier.returned < Some(record.call)) {
            let is_newer =
                newest.map(|newest| newest.outcome.revision()) < Some(earlier.outcome.revision());
            if is_newer {
                newest = Some(earlier);
            }
        }
        if let Some(earlier) = newest {
            let (before, after) = (earlier.outcome.revision(), record.outcome.revision());
            if after < before {
                return Err(violation("the revision fell", earlier, record));
            }
            if record.has_changed() && after == before {
                return Err(violation(
                    "a change without a revision of its own",
                    earlier,
                    record,
                ));
            }
        }
    }
    Ok(())
}

/// Splits a history into parts that share neither keys nor leases. Reads without an answer say nothing and are left out.
pub fn partitions(history: &[Record]) -> Vec<Vec<Record>> {
    let mut groups = Groups::default();
    let names: Vec<Vec<usize>> = history
        .iter()
        .map(|record| {
            let names = names_of(&record.op);
            names.into_iter().map(|name| groups.number(name)).collect()
        })
        .collect();
    for numbers in &names {
        for pair in numbers.windows(2) {
            groups.join(pair[0], pair[1]);
        }
    }
    let mut parts: HashMap<usize, Vec<Record>> = HashMap::new();
    for (record, numbers) in history.iter().zip(&names) {
        let says_nothing = record.outcome == Outcome::Unknown && record.op.is_read();
        if let (Some(first), false) = (numbers.first(), says_nothing) {
            parts
                .entry(groups.root(*first))
                .or_default()
                .push(record.clone());
        }
    }
    let mut parts: Vec<_> = parts.into_iter().collect();
    parts.sort_by_key(|(root, _)| *root);
    parts.into_iter().map(|(_, part)| part).collect()
}

/// Keys and leases that a request is about.
fn names_of(op: &Op) -> Vec<String> {
    use crate::history::Action;
    let mut names = Vec::new();
    for action in op.actions() {
        names.push(format!("key {}", action.key()));
        if let Action::Put { lease, .. } = action
            && *lease != 0
        {
            names.push(format!("lease {lease}"));
        }
    }
    match op {
        Op::Txn { compare, .. } => {
            names.extend(compare.iter().map(|compare| format!("key {}", compare.key)));
        }
        Op::Grant { lease } | Op::Revoke { lease } | Op::Expire { lease } => {
            names.push(format!("lease {lease}"));
        }
        Op::Single { .. } => {}
    }
    names
}

/// Names that belong together: union and find.
#[derive(Default)]
struct Groups {
    numbers: HashMap<String, usize>,
    parents: Vec<usize>,
}

impl Groups {
    fn number(&mut self, name: String) -> usize {
        let next = self.parents.len();
        let number = *self.numbers.entry(name).or_insert(next);
        if number == next {
            self.parents.push(next);
        }
        number
    }

    fn root(&mut self, mut number: usize) -> usize {
        while self.parents[number] != number {
            self.parents[number] = self.parents[self.parents[number]];
            number = self.parents[number];
        }
        number
    }

    fn join(&mut self, a: usize, b: usize) {
        let (a, b) = (self.root(a), self.root(b));
        self.parents[a.max(b)] = a.min(b);
    }
}

#[cfg(test)]
mod tests;
