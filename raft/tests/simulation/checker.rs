//! What must hold whatever goes wrong, checked at every message, apply and read.
//!
//! - one leader a term, one vote a member and term, and no member takes back a vote or term that
//!   another has seen, also not by a crash;
//! - log matching: an index and a term stand for one entry, and for one history before it;
//! - an entry that any member applied is at its index on every member, for ever, and was on the
//!   disks of a majority before;
//! - states are equal where they are equally old;
//! - a command is applied at most once, never after a certain refusal, and what was acknowledged
//!   is applied;
//! - a linearizable read shows every write acknowledged, and everything read, before it began.
//!
//! Source: Raft paper, Figure 3; linearizability of reads by Herlihy and Wing.

use std::collections::{BTreeMap, BTreeSet};

use bytes::Bytes;
use tokio::sync::oneshot;

use crate::trace::fnv;
use crate::wire::{LogId, Vote};

/// What became of a command.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Fate {
    /// The member that proposed it applied it at this index.
    Acknowledged(u64),
    /// It is in no log, so it must never be applied.
    Refused,
    /// It may be applied or not.
    Unknown,
}

struct Command {
    /// Member, and its incarnation, that it was proposed through.
    through: (u64, u64),
    fate: Option<Fate>,
    waiting: Option<oneshot::Sender<Fate>>,
}

/// An entry that some member applied.
struct Committed {
    term: u64,
    hash: u64,
    /// State after it.
    state: u64,
}

/// What a member applies.
pub(crate) struct AppliedEntry<'a> {
    pub(crate) index: u64,
    pub(crate) term: u64,
    pub(crate) hash: u64,
    pub(crate) state: u64,
    pub(crate) commands: &'a [u64],
    pub(crate) voters: Option<Vec<u64>>,
}

/// Facts of a run, and the first of them that contradicts another.
#[derive(Default)]
pub(crate) struct Checker {
    violation: Option<String>,
    leaders: BTreeMap<u64, u64>,
    /// Whom a member gave its vote in a term.
    votes: BTreeMap<(u64, u64), u64>,
    /// The newest vote a member has shown.
    shown: BTreeMap<u64, Vote>,
    /// Hash of the entry with this index and term, and the term of the entry before it.
    entries: BTreeMap<LogId, (u64, u64)>,
    committed: Vec<Committed>,
    /// Voters by the index of the committed entry that names them.
    voters: BTreeMap<u64, Vec<u64>>,
    /// Voters by the entry that names them, whatever became of it.
    proposed_voters: BTreeMap<LogId, Vec<u64>>,
    /// Voters after a change that a leader was asked for by a command: it counts them from the append on, before anybody
    /// is sent the entry.
    asked_voters: BTreeMap<u64, Vec<u64>>,
    commands: BTreeMap<u64, Command>,
    /// Index at which a command was applied.
    applied: BTreeMap<u64, u64>,
    /// Index that every read that begins now must show.
    floor: u64,
    pub(crate) reads: u64,
    pub(crate) acknowledged: u64,
}

impl Checker {
    pub(crate) fn violation(&self) -> Option<&str> {
        self.violation.as_deref()
    }

    /// Notes what must not be; the first counts.
    pub(crate) fn violated(&mut self, what: String) {
        self.violation.get_or_insert(what);
    }

    pub(crate) fn committed_index(&self) -> u64 {
        self.committed.len() as u64
    }

    pub(crate) fn terms_with_a_leader(&self) -> u64 {
        self.leaders.len() as u64
    }

    /// `member` acts as the leader of `term`.
    pub(crate) fn leads(&mut self, member: u64, term: u64) {
        let leader = *self.leaders.entry(term).or_insert(member);
        if leader != member {
            self.violated(format!(
                "members {leader} and {member} both lead in term {term}"
            ));
        }
    }

    /// `member` votes for `candidate` in `term`.
    pub(crate) fn votes(&mut self, member: u64, term: u64, candidate: u64) {
        let first = *self.votes.entry((member, term)).or_insert(candidate);
        if first != candidate {
            self.violated(format!(
                "member {member} votes for {first} and for {candidate} in term {term}"
            ));
        }
    }

    /// `member` tells others that this is its newest vote.
    pub(crate) fn shows_vote(&mut self, member: u64, vote: Vote) {
        let before = self.shown.entry(member).or_insert(vote);
        let before_term = before.term;
        *before = (*before).max(vote);
        if vote.term < before_term {
            self.violated(format!(
                "member {member} is in term {} after term {before_term}",
                vote.term
            ));
        }
    }

    /// A restarted member finds `vote` on its disk.
    pub(crate) fn recovers_vote(&mut self, member: u64, vote: Option<Vote>) {
        let Some(shown) = self.shown.get(&member).copied() else {
            return;
        };
        let found = vote.map_or((0, 0), |vote| (vote.term, vote.candidate));
        if found.0 < shown.term {
            self.violated(format!(
                "member {member} showed a vote of term {} and finds one of term {} after a restart",
                shown.term, found.0
            ));
        }
        // A committed vote is that of the elected leader, whoever this member had voted for.
        let given = self.votes.get(&(member, found.0)).copied();
        let given = given.filter(|_| vote.is_some_and(|vote| !vote.committed));
        if let Some(given) = given.filter(|given| *given != found.1) {
            self.violated(format!(
                "member {member} voted for {given} in term {} and finds a vote for {}",
                found.0, found.1
            ));
        }
    }

    /// An entry is somewhere in a log, after one of `previous_term`.
    pub(crate) fn entry(&mut self, id: LogId, hash: u64, previous_term: u64) {
        let known = *self.entries.entry(id).or_insert((hash, previous_term));
        if known != (hash, previous_term) {
            let (index, term) = id;
            self.violated(format!(
                "two entries or two histories with index {index} and term {term}"
            ));
        }
        let index = id.0;
        let at = self.committed.get(index as usize - 1);
        if let Some(committed) = at.filter(|committed| committed.term < id.1) {
            let committed_term = committed.term;
            self.violated(format!(
                "entry {index} is committed in term {committed_term}, and proposed again in term {}",
                id.1
            ));
        }
    }

    /// A membership with these voters is in some log.
    pub(crate) fn configuration(&mut self, id: LogId, voters: Vec<u64>) {
        self.proposed_voters.insert(id, voters);
    }

    /// A leader is asked by `command` for a change to these voters.
    pub(crate) fn asks(&mut self, command: u64, voters: Vec<u64>) {
        self.asked_voters.insert(command, voters);
    }

    /// The change is applied, or in no log.
    pub(crate) fn settled(&mut self, command: u64) {
        self.asked_voters.remove(&command);
    }

    /// A member applies an entry. True if nobody did before.
    pub(crate) fn applies(&mut self, member: u64, entry: AppliedEntry<'_>) -> bool {
        let AppliedEntry { index, term, .. } = entry;
        if let Some(known) = self.committed.get(index as usize - 1) {
            let known = (known.term, known.hash, known.state);
            if (known.0, known.1) != (term, entry.hash) {
                self.violated(format!(
                    "member {member} applies at index {index} another entry (term {term}) than \
                     others did (term {})",
                    known.0
                ));
            } else if known.2 != entry.state {
                self.violated(format!(
                    "the state of member {member} after index {index} differs from that of others"
                ));
            }
            return false;
        }
        if index != self.committed_index() + 1 {
            let committed = self.committed_index();
            self.violated(format!(
                "member {member} applies index {index}, but only {committed} are known"
            ));
            return false;
        }
        self.committed.push(Committed {
            term,
            hash: entry.hash,
            state: entry.state,
        });
        if let Some(voters) = entry.voters {
            self.voters.insert(index, voters);
        }
        for command in entry.commands {
            if let Some(first) = self.applied.insert(*command, index) {
                self.violated(format!(
                    "command {command} is applied at index {first} and again at {index}"
                ));
            }
            match self.commands.get(command) {
                None => self.violated(format!(
                    "command {command} at index {index} was never proposed"
                )),
                Some(known) if known.fate == Some(Fate::Refused) => self.violated(format!(
                    "command {command} was refused for certain and is applied at index {index}"
                )),
                Some(_) => {}
            }
        }
        true
    }

    /// A member's state is replaced by a snapshot or found on its disk.
    pub(crate) fn has_state(&mut self, member: u64, index: u64, term: u64, state: u64) {
        let Some(at) = (index as usize).checked_sub(1) else {
            return;
        };
        let Some(known) = self.committed.get(at) else {
            self.violated(format!(
                "member {member} has a state of index {index}, which nobody applied"
            ));
            return;
        };
        if (known.term, known.state) != (term, state) {
            self.violated(format!(
                "member {member} has a state of index {index} that differs from that of others"
            ));
        }
    }

    /// Sets of voters of which one must have a majority with entry `index`: the one in force there,
    /// and any that was proposed after it, since a leader uses what it appended last. Two that follow each other share a
    /// member of any two of their majorities.
    pub(crate) fn electorates(&self, index: u64) -> Vec<Vec<u64>> {
        let in_force = self.voters.range(..=index).next_back();
        let later = self.proposed_voters.range((index + 1, 0)..);
        let in_force = in_force.map(|(_, voters)| voters.clone());
        in_force
            .into_iter()
            .chain(later.map(|(_, voters)| voters.clone()))
            .chain(self.asked_voters.values().cloned())
            .collect()
    }

    /// An id that no command has yet.
    pub(crate) fn next_command(&self) -> u64 {
        self.commands.len() as u64 + 1
    }

    pub(crate) fn is_applied(&self, command: u64) -> bool {
        self.applied.contains_key(&command)
    }

    /// A command goes to a member.
    pub(crate) fn proposes(
        &mut self,
        command: u64,
        member: u64,
        incarnation: u64,
    ) -> oneshot::Receiver<Fate> {
        let (sender, receiver) = oneshot::channel();
        let command_is_new = self.commands.insert(
            command,
            Command {
                through: (member, incarnation),
                fate: None,
                waiting: Some(sender),
            },
        );
        assert!(command_is_new.is_none(), "command ids are given once");
        receiver
    }

    /// A member in this incarnation has applied commands, which acknowledges its own.
    pub(crate) fn acknowledges(
        &mut self,
        member: u64,
        incarnation: u64,
        index: u64,
        commands: &[u64],
    ) {
        for id in commands {
            let Some(command) = self.commands.get_mut(id) else {
                continue;
            };
            if command.through != (member, incarnation) {
                continue;
            }
            match command.fate {
                None | Some(Fate::Unknown) => {
                    command.fate = Some(Fate::Acknowledged(index));
                    if let Some(waiting) = command.waiting.take() {
                        self.acknowledged += 1;
                        self.floor = self.floor.max(index);
                        // A client that went away knows nothing.
                        let _ = waiting.send(Fate::Acknowledged(index));
                    }
                }
                Some(Fate::Acknowledged(_)) => {}
                Some(Fate::Refused) => self.violated(format!(
                    "command {id} was refused for certain and is applied at index {index}"
                )),
            }
        }
    }

    /// A member refuses a command, or does not know what became of it.
    pub(crate) fn refuses(&mut self, id: u64, fate: Fate) {
        if let (Fate::Refused, Some(index)) = (fate, self.applied.get(&id)) {
            let index = *index;
            self.violated(format!(
                "command {id} is applied at index {index} and refused for certain"
            ));
        }
        let Some(command) = self.commands.get_mut(&id) else {
            return;
        };
        if let Some(Fate::Acknowledged(index)) = command.fate {
            // The leader's answer may be lost although the command was applied here as well.
            if fate == Fate::Unknown {
                return;
            }
            self.violated(format!(
                "command {id} was acknowledged at index {index} and then refused"
            ));
            return;
        }
        command.fate = Some(fate);
        if let Some(waiting) = command.waiting.take() {
            let _ = waiting.send(fate);
        }
    }

    /// What a read that begins now must show at least.
    pub(crate) fn read_floor(&self) -> u64 {
        self.floor
    }

    /// A read that began at `floor` showed the state of `index`.
    pub(crate) fn reads(&mut self, member: u64, floor: u64, index: u64) {
        self.reads += 1;
        if index < floor {
            self.violated(format!(
                "a linearizable read on member {member} shows index {index}, but {floor} was \
                 acknowledged or read before it began"
            ));
        }
        self.floor = self.floor.max(index);
    }

    /// At the end: every acknowledged command is in the state of all.
    pub(crate) fn check_acknowledged(&mut self) {
        let lost: BTreeSet<u64> = self
            .commands
            .iter()
            .filter(|(id, command)| {
                matches!(command.fate, Some(Fate::Acknowledged(_)))
                    && !self.applied.contains_key(*id)
            })
            .map(|(id, _)| *id)
            .collect();
        if !lost.is_empty() {
            self.violated(format!(
                "commands {lost:?} were acknowledged and are not applied"
            ));
        }
    }

    /// Acknowledges a command that is in no log yet; a lie for tests.
    pub(crate) fn acknowledge_too_early(&mut self, id: u64) {
        if let Some(command) = self.commands.get_mut(&id) {
            command.fate = Some(Fate::Acknowledged(0));
            command.waiting = None;
        }
    }
}

/// The hash of an entry body.
pub(crate) fn hash_of(body: &Bytes) -> u64 {
    fnv(body)
}
