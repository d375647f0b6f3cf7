//! Everything the parts of a run share, behind one lock: members, links, choices, trace, checker.
//!
//! The lock is never held across an await, nor while a node or a log is called that could call
//! back.

use std::collections::{BTreeMap, BTreeSet};
use std::fmt::Display;
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use kv_raft::{Applied, Node};
use kv_wal::Wal;
use kv_wal::fs::FaultFs;
use parking_lot::Mutex;
use tokio::time::Instant;

use crate::checker::{AppliedEntry, Checker, Fate, hash_of};
use crate::machine::{Durable, FLUSH_PAUSE, State};
use crate::network::Links;
use crate::random::Random;
use crate::settings::Settings;
use crate::trace::{Trace, fnv};
use crate::wire::{Append, AppendAnswer, LogId, Vote, voters_of_body};

pub(crate) struct World {
    pub(crate) settings: Settings,
    inner: Mutex<Inner>,
}

struct Inner {
    random: Random,
    trace: Trace,
    checker: Checker,
    links: Links,
    slots: BTreeMap<u64, Slot>,
}

/// A member's place: what outlives its process, and the process.
pub(crate) struct Slot {
    /// Counts starts.
    pub(crate) incarnation: u64,
    pub(crate) process: Option<Process>,
    pub(crate) disk: FaultFs,
    pub(crate) durable: Durable,
    /// What was on the disk for certain when the process ended.
    pub(crate) at_least: DiskLog,
    /// Out of the cluster for ever.
    pub(crate) gone: bool,
    /// One of the first members.
    pub(crate) founder: bool,
    /// The disk serves nothing until then.
    pub(crate) stalled_until: Option<Instant>,
    /// What an operation of the disk takes, in microseconds.
    pub(crate) disk_us: u64,
    /// Members that this one knows to be removed.
    pub(crate) removed: BTreeSet<u64>,
    /// Incarnation and term in which a quorum confirmed this member, when it was the sole voter.
    pub(crate) confirmed: Option<(u64, u64)>,
}

/// A running member.
#[derive(Clone)]
pub(crate) struct Process {
    pub(crate) node: Node,
    pub(crate) wal: Wal,
    /// The newest term its status has shown.
    pub(crate) term: u64,
    pub(crate) applied: u64,
    /// A fsync was told to fail, so the member will stop.
    pub(crate) doomed: bool,
}

/// Entries on a disk.
#[derive(Clone, Default)]
pub(crate) struct DiskLog {
    pub(crate) purged: u64,
    pub(crate) terms: BTreeMap<u64, u64>,
}

impl World {
    pub(crate) fn new(settings: Settings) -> Arc<World> {
        let seed = settings.seed;
        Arc::new(World {
            settings,
            inner: Mutex::new(Inner {
                random: Random::new(seed, 1),
                trace: Trace::new(),
                checker: Checker::default(),
                links: Links::default(),
                slots: BTreeMap::new(),
            }),
        })
    }

    pub(crate) fn note(&self, event: impl Display) {
        self.inner.lock().trace.note(event);
    }

    pub(crate) fn draw<T>(&self, draw: impl FnOnce(&mut Random) -> T) -> T {
        draw(&mut self.inner.lock().random)
    }

    pub(crate) fn check<T>(&self, check: impl FnOnce(&mut Checker) -> T) -> T {
        check(&mut self.inner.lock().checker)
    }

    pub(crate) fn violation(&self) -> Option<String> {
        self.inner.lock().checker.violation().map(str::to_owned)
    }

    pub(crate) fn trace<T>(&self, look: impl FnOnce(&mut Trace) -> T) -> T {
        look(&mut self.inner.lock().trace)
    }

    pub(crate) fn links<T>(&self, look: impl FnOnce(&mut Links, &mut Random) -> T) -> T {
        let inner = &mut *self.inner.lock();
        look(&mut inner.links, &mut inner.random)
    }

    pub(crate) fn with_slots<T>(&self, look: impl FnOnce(&mut BTreeMap<u64, Slot>) -> T) -> T {
        look(&mut self.inner.lock().slots)
    }

    pub(crate) fn with_slot<T>(&self, id: u64, look: impl FnOnce(&mut Slot) -> T) -> T {
        look(
            self.inner
                .lock()
                .slots
                .get_mut(&id)
                .expect("a known member"),
        )
    }

    /// Whether this life of a member goes on.
    pub(crate) fn is_alive(&self, id: u64, incarnation: u64) -> bool {
        let inner = self.inner.lock();
        inner
            .slots
            .get(&id)
            .is_some_and(|slot| slot.incarnation == incarnation && !slot.gone && slot.lives())
    }

    /// The running members.
    pub(crate) fn running(&self) -> Vec<(u64, Node)> {
        let inner = self.inner.lock();
        let running = inner.slots.iter();
        running
            .filter_map(|(id, slot)| Some((*id, slot.process.as_ref()?.node.clone())))
            .collect()
    }

    pub(crate) fn node(&self, id: u64) -> Option<(Node, u64)> {
        let inner = self.inner.lock();
        let slot = inner.slots.get(&id)?;
        Some((slot.process.as_ref()?.node.clone(), slot.incarnation))
    }

    /// Makes `state` durable once the log has everything in it; none if the member died before.
    pub(crate) async fn make_durable(
        &self,
        id: u64,
        incarnation: u64,
        state: State,
    ) -> Option<Applied> {
        let takes = self.draw(|random| random.millis(1..20));
        tokio::time::sleep(takes).await;
        loop {
            if !self.is_alive(id, incarnation) {
                return None;
            }
            let flushed = self.with_slot(id, |slot| {
                let process = slot.process.as_ref();
                process.is_some_and(|process| process.wal.flushed_index() >= state.applied.index)
            });
            if flushed {
                return Some(self.with_slot(id, |slot| slot.durable.keep(state)));
            }
            tokio::time::sleep(FLUSH_PAUSE).await;
        }
    }

    pub(crate) fn installed(&self, id: u64, incarnation: u64, state: &State) {
        if !self.is_alive(id, incarnation) {
            return;
        }
        let applied = &state.applied;
        let (index, term) = (applied.index, applied.term);
        self.note(format_args!("{id} installs a snapshot of index {index}"));
        let inner = &mut *self.inner.lock();
        inner.checker.has_state(id, index, term, state.hash);
        inner.links.snapshots += 1;
        let slot = inner.slots.get_mut(&id).expect("a known member");
        slot.durable.states = [state.clone()].into();
        slot.removed = state.removed.clone();
    }

    /// What the state machine of a member now says about the members.
    pub(crate) fn shows(&self, id: u64, state: &State) {
        self.with_slot(id, |slot| slot.removed.clone_from(&state.removed));
    }

    pub(crate) fn applied(&self, id: u64, incarnation: u64, entry: AppliedEntry<'_>) {
        let inner = &mut *self.inner.lock();
        let (index, term, commands) = (entry.index, entry.term, entry.commands);
        inner.trace.count(fnv(&[id, index].map(|n| n as u8)));
        let is_new = inner.checker.applies(id, entry);
        if is_new {
            inner.check_quorum(id, index, term);
        }
        inner.checker.acknowledges(id, incarnation, index, commands);
    }

    /// Notes a vote request on its way.
    pub(crate) fn sees_vote_request(&self, from: u64, vote: Vote) {
        let inner = &mut *self.inner.lock();
        let (term, candidate) = (vote.term, vote.candidate);
        inner
            .trace
            .note(format_args!("{from} asks for votes in term {term}"));
        if candidate != from {
            let text = format!("member {from} asks for votes for {candidate}");
            inner.checker.violated(text);
        }
        inner.checker.votes(from, term, from);
        inner.checker.shows_vote(from, vote);
    }

    pub(crate) fn sees_vote_answer(&self, from: u64, asked: Vote, answer: (Vote, bool)) {
        let inner = &mut *self.inner.lock();
        let (vote, granted) = answer;
        let (term, candidate) = (asked.term, asked.candidate);
        inner.trace.note(format_args!(
            "{from} {} {candidate} in term {term}",
            if granted { "votes for" } else { "refuses" }
        ));
        if granted {
            inner.checker.votes(from, term, candidate);
        }
        inner.checker.shows_vote(from, vote);
    }

    pub(crate) fn sees_append(&self, from: u64, to: u64, append: &Append) {
        let inner = &mut *self.inner.lock();
        let term = append.vote.term;
        let (previous, count) = (append.previous, append.entries.len());
        if count > 0 {
            inner.trace.note_message(format_args!(
                "{from} sends {to} in term {term} after {}: {count} entries, commit {}",
                previous.0, append.commit.0
            ));
        } else {
            inner.trace.count(fnv(&[from, to, term].map(|n| n as u8)));
        }
        if append.vote.candidate != from {
            let text = format!("member {from} sends entries as {}", append.vote.candidate);
            inner.checker.violated(text);
        }
        // Not a vote it shows: what a stream was given in an older term may go out after a vote in a
        // newer one, and the receiver judges it.
        inner.checker.leads(from, term);
        let mut previous_term = previous.1;
        for (id, body) in &append.entries {
            inner.checker.entry(*id, hash_of(body), previous_term);
            if let Some(voters) = voters_of_body(body.clone()) {
                inner.checker.configuration(*id, voters);
            }
            previous_term = id.1;
        }
    }

    pub(crate) fn sees_append_answer(&self, from: u64, answer: &AppendAnswer) {
        let inner = &mut *self.inner.lock();
        match answer {
            AppendAnswer::Matches((index, term)) => {
                inner.trace.count(fnv(&[from, *index].map(|n| n as u8)));
                let slot = inner.slots.get(&from).expect("a known member");
                if *index > 0 && !slot.holds((*index, *term)) {
                    let text = format!(
                        "member {from} acknowledges entry {index} of term {term}, which is not on \
                         its disk"
                    );
                    inner.checker.violated(text);
                }
            }
            AppendAnswer::Conflicts((index, _)) => {
                inner
                    .trace
                    .note_message(format_args!("{from} has another entry {index}"));
            }
            AppendAnswer::HigherVote(vote) => {
                let term = vote.term;
                inner
                    .trace
                    .note_message(format_args!("{from} is in term {term} already"));
                inner.checker.shows_vote(from, *vote);
            }
        }
    }

    /// A proposal was refused, or its outcome is not known.
    pub(crate) fn refused(&self, command: u64, fate: Fate) {
        self.check(|checker| checker.refuses(command, fate));
    }

    /// Looks at every running member.
    pub(crate) fn sweep(&self) {
        for (id, node) in self.running() {
            let status = node.status();
            let inner = &mut *self.inner.lock();
            let Some(slot) = inner.slots.get_mut(&id) else {
                continue;
            };
            let Some(process) = &mut slot.process else {
                continue;
            };
            let (term, applied) = (process.term, process.applied);
            process.term = status.term;
            process.applied = status.applied_index;
            if status.term < term {
                let text = format!("member {id} went from term {term} to {}", status.term);
                inner.checker.violated(text);
            }
            if status.applied_index < applied {
                let text = format!(
                    "member {id} went from applied index {applied} to {}",
                    status.applied_index
                );
                inner.checker.violated(text);
            }
            let committed = inner.checker.committed_index();
            if status.applied_index > committed {
                let text = format!(
                    "member {id} says that index {} is applied, but none after {committed} is",
                    status.applied_index
                );
                inner.checker.violated(text);
            }
            if status.role == kv_raft::Role::Leader {
                inner.checker.leads(id, status.term);
            }
        }
    }
}

impl Inner {
    /// An entry may be applied only when it is on the disks of a majority.
    fn check_quorum(&mut self, id: u64, index: u64, term: u64) {
        let holders: BTreeSet<u64> = self
            .slots
            .iter()
            .filter(|(_, slot)| slot.holds((index, term)))
            .map(|(id, _)| *id)
            .collect();
        let electorates = self.checker.electorates(index);
        let enough = electorates.iter().any(|voters| {
            let holding = voters.iter().filter(|id| holders.contains(id)).count();
            holding * 2 > voters.len()
        });
        if !enough {
            self.checker.violated(format!(
                "member {id} applies entry {index} of term {term}, which is on the disks of \
                 {holders:?} only, no majority of {electorates:?}"
            ));
        }
    }
}

impl Slot {
    pub(crate) fn new(founder: bool) -> Slot {
        Slot {
            incarnation: 0,
            process: None,
            disk: FaultFs::new(),
            durable: Durable::default(),
            at_least: DiskLog::default(),
            gone: false,
            founder,
            stalled_until: None,
            disk_us: 300,
            removed: BTreeSet::new(),
            confirmed: None,
        }
    }

    /// Started and not crashed; its node may still be starting.
    fn lives(&self) -> bool {
        self.incarnation % 2 == 1
    }

    /// Whether an entry is durable here.
    fn holds(&self, id: LogId) -> bool {
        let (index, term) = id;
        // The older of two states may be what a crash leaves.
        let oldest = self.durable.states.front();
        if oldest.is_some_and(|state| state.applied.index >= index) {
            return true;
        }
        match &self.process {
            Some(process) => {
                process.wal.flushed_index() >= index
                    && match process.wal.read_entries(index, index + 1, u64::MAX) {
                        Ok(found) => found.first().is_none_or(|found| found.1 == term),
                        // Below what is purged.
                        Err(_) => true,
                    }
            }
            None => self.at_least.holds(id),
        }
    }
}

impl DiskLog {
    fn holds(&self, (index, term): LogId) -> bool {
        index <= self.purged || self.terms.get(&index) == Some(&term)
    }

    /// What is durable in a running log, and stays so if its next write is cut short.
    pub(crate) fn of(wal: &Wal) -> DiskLog {
        let flushed = wal.flushed_index();
        let mut log = DiskLog::default();
        let mut next = flushed;
        // From the end, since the log does not say where it begins.
        while next > 0 {
            match wal.read_entries(next, next + 1, u64::MAX) {
                Ok(found) if !found.is_empty() => {
                    log.terms.insert(next, found[0].1);
                    next -= 1;
                }
                _ => break,
            }
        }
        log.purged = next;
        log
    }

    /// The first entry that should be in `recovered` and is not.
    pub(crate) fn missing_from(&self, recovered: &kv_wal::Recovered) -> Option<LogId> {
        let found: BTreeMap<u64, u64> = recovered
            .entries
            .iter()
            .map(|entry| (entry.index, entry.term))
            .collect();
        let purged = recovered.purged.map_or(0, |(index, _)| index);
        self.terms
            .iter()
            .find(|(index, term)| **index > purged && found.get(index) != Some(term))
            .map(|(index, term)| (*index, *term))
    }
}

/// How long an operation of the member's disk takes; none while it stands still.
pub(crate) fn disk_delay(world: &World, id: u64) -> Duration {
    let (stalled_until, disk_us) = world.with_slot(id, |slot| (slot.stalled_until, slot.disk_us));
    let stall = stalled_until.map_or(Duration::ZERO, |until| {
        until.saturating_duration_since(Instant::now())
    });
    stall + world.draw(|random| random.micros(disk_us / 4..disk_us * 2))
}

/// The bytes of a message as a number, for the trace.
pub(crate) fn digest(bytes: &Bytes) -> u64 {
    fnv(bytes)
}
