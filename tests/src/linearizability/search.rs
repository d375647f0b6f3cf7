//! The search for an order: depth first, with a memory of what was tried.
//!
//! At each point the next request is one whose call came before the first return among those that are left. Requests
//! without an answer never have to be placed. Two ways to the same set of placed requests and the same state go on
//! alike, so the second is not followed; the memory holds 128-bit sums of both, whose accidental equality is less likely
//! than a broken machine.

use std::collections::HashSet;
use std::hash::{BuildHasher, Hash, Hasher, RandomState};

use super::model::State;
use super::{Limits, Verdict, Violation};
use crate::history::{Outcome, Record};

/// Placed requests that a counterexample shows.
const SHOWN: usize = 12;

/// A point of the search: one order so far.
struct Point<'h> {
    state: State<'h>,
    /// What can be next and was not tried yet, best last.
    next: Vec<(usize, State<'h>)>,
    /// The request that led here.
    placed: usize,
}

struct Search<'h> {
    /// Answered requests by their calls, then those without an answer by theirs.
    records: Vec<&'h Record>,
    answered: usize,
    /// Whether a request has its place.
    is_placed: Vec<bool>,
    /// All answered requests before this one have theirs.
    first_open: usize,
    left: usize,
    seen: HashSet<(u64, u64)>,
    hashers: (RandomState, RandomState),
}

/// Looks for an order of one partition.
pub(super) fn search(partition: &[Record], limits: Limits) -> Verdict {
    let mut search = Search::new(partition);
    let mut points = vec![search.point(State::default(), usize::MAX)];
    let mut longest: Option<Violation> = None;
    let mut longest_len = 0;
    let mut steps = 0;
    while let Some(point) = points.last_mut() {
        if search.left == 0 {
            return Verdict::Linearizable;
        }
        let Some((record, state)) = point.next.pop() else {
            if longest.is_none() || points.len() > longest_len {
                longest_len = points.len();
                longest = Some(search.describe(&points));
            }
            let point = points.pop().expect("there is a last one");
            search.take_back(point.placed);
            continue;
        };
        steps += 1;
        if steps > limits.steps_max {
            return Verdict::Undecided {
                requests: partition.len(),
            };
        }
        search.place(record);
        if search.is_new(&state) {
            points.push(search.point(state, record));
        } else {
            search.take_back(record);
        }
    }
    Verdict::Violation(longest.expect("the search begins at a point"))
}

impl<'h> Search<'h> {
    fn new(partition: &'h [Record]) -> Search<'h> {
        let is_answered =
            |record: &&Record| record.returned.is_some() && record.outcome != Outcome::Unknown;
        let (mut records, mut unknown): (Vec<&Record>, Vec<&Record>) =
            partition.iter().partition(is_answered);
        records.sort_by_key(|record| record.call);
        unknown.sort_by_key(|record| record.call);
        let answered = records.len();
        records.extend(unknown);
        Search {
            is_placed: vec![false; records.len()],
            first_open: 0,
            left: answered,
            answered,
            records,
            seen: HashSet::new(),
            hashers: (RandomState::new(), RandomState::new()),
        }
    }

    fn place(&mut self, record: usize) {
        self.is_placed[record] = true;
        self.left -= usize::from(record < self.answered);
        while self.first_open < self.answered && self.is_placed[self.first_open] {
            self.first_open += 1;
        }
    }

    fn take_back(&mut self, record: usize) {
        if record == usize::MAX {
            return;
        }
        self.is_placed[record] = false;
        if record < self.answered {
            self.left += 1;
            self.first_open = self.first_open.min(record);
        }
    }

    /// Requests that may be next, answered ones first.
    fn candidates(&self) -> Vec<usize> {
        let mut first_return = u64::MAX;
        let mut found = Vec::new();
        for n in self.first_open..self.answered {
            let record = self.records[n];
            if record.call > first_return {
                break;
            }
            if !self.is_placed[n] {
                first_return = first_return.min(record.returned.unwrap_or(u64::MAX));
                found.push(n);
            }
        }
        found.retain(|n| self.records[*n].call <= first_return);
        let unknown = self.answered..self.records.len();
        let unknown = unknown.take_while(|n| self.records[*n].call <= first_return);
        found.extend(unknown.filter(|n| !self.is_placed[*n]));
        found
    }

    fn point(&self, state: State<'h>, placed: usize) -> Point<'h> {
        let mut candidates = self.candidates();
        // Revisions say in which order changes came; a guess without an answer is the last resort.
        candidates.sort_by_key(|n| {
            let record = self.records[*n];
            let revision = record.outcome.revision().unwrap_or(0);
            (*n >= self.answered, revision, !record.has_changed())
        });
        let mut next = Vec::new();
        for n in candidates.into_iter().rev() {
            next.extend(
                state
                    .step(self.records[n])
                    .into_iter()
                    .map(|state| (n, state)),
            );
        }
        Point {
            state,
            next,
            placed,
        }
    }

    /// Whether no other way led here.
    fn is_new(&mut self, state: &State<'h>) -> bool {
        let horizon = self.horizon();
        let sum = |hasher: &RandomState| {
            let mut hasher = hasher.build_hasher();
            self.first_open.hash(&mut hasher);
            let answered = self.first_open..self.answered;
            let answered = answered.take_while(|n| self.records[*n].call <= horizon);
            for n in answered.chain(self.answered..self.records.len()) {
                if self.is_placed[n] {
                    n.hash(&mut hasher);
                }
            }
            state.hash(&mut hasher);
            hasher.finish()
        };
        let sums = (sum(&self.hashers.0), sum(&self.hashers.1));
        self.seen.insert(sums)
    }

    /// No answered request that was called later than this has its place.
    fn horizon(&self) -> u64 {
        match self.records.get(self.first_open) {
            Some(record) if self.first_open < self.answered => record.returned.unwrap_or(u64::MAX),
            _ => u64::MAX,
        }
    }

    fn describe(&self, points: &[Point<'h>]) -> Violation {
        let placed: Vec<usize> = points.iter().map(|point| point.placed).skip(1).collect();
        let shown = placed.iter().skip(placed.len().saturating_sub(SHOWN));
        let of = |n: usize| self.records[n].clone();
        let state = points.last().map(|point| &point.state);
        Violation {
            text: format!(
                "no order explains {} requests; the longest explains {} of them, and ends in {state:?}",
                self.answered,
                self.answered - self.left,
            ),
            explained: shown.map(|n| of(*n)).collect(),
            unexplained: self.candidates().into_iter().map(of).collect(),
        }
    }
}
