//! The state machine of a simulated member: how far it is, and a hash of everything it was given.
//!
//! It keeps two durable states, as the server's engine does, and after a crash comes back with
//! either. A state becomes durable only when the log on the same disk has it.

use std::collections::{BTreeSet, VecDeque};
use std::io;
use std::sync::Arc;
use std::time::Duration;

use bytes::{Buf, Bytes};
use kv_raft::{
    Applied, CheckpointFuture, CommittedEntry, EntryBody, InstallFuture, SnapshotSource,
    StateMachine,
};

use crate::checker::AppliedEntry;
use crate::settings::Defect;
use crate::trace::fnv;
use crate::wire;
use crate::world::World;

/// A command on the wire and in the log.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Command {
    pub(crate) id: u64,
    pub(crate) kind: CommandKind,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum CommandKind {
    Write,
    /// A membership change that does not need to be remembered.
    Join,
    Remove(u64),
}

impl Command {
    pub(crate) fn encode(self, padding: usize) -> Bytes {
        let (kind, member) = match self.kind {
            CommandKind::Write => (0, 0),
            CommandKind::Join => (1, 0),
            CommandKind::Remove(member) => (2, member),
        };
        let mut out = self.id.to_le_bytes().to_vec();
        out.push(kind);
        out.extend(member.to_le_bytes());
        out.resize(out.len() + padding, 0xab);
        out.into()
    }

    fn decode(mut bytes: Bytes) -> Command {
        let (id, kind, member) = (bytes.get_u64_le(), bytes.get_u8(), bytes.get_u64_le());
        let kind = match kind {
            0 => CommandKind::Write,
            1 => CommandKind::Join,
            _ => CommandKind::Remove(member),
        };
        Command { id, kind }
    }
}

/// One state.
#[derive(Clone, Default)]
pub(crate) struct State {
    pub(crate) applied: Applied,
    /// Hash of all that was applied.
    pub(crate) hash: u64,
    /// Members that must never come back.
    pub(crate) removed: BTreeSet<u64>,
}

impl State {
    fn encode(&self) -> Vec<Bytes> {
        let mut out = self.hash.to_le_bytes().to_vec();
        for id in &self.removed {
            out.extend(id.to_le_bytes());
        }
        // In several chunks, as a large one.
        out.chunks(8).map(Bytes::copy_from_slice).collect()
    }

    fn decode(applied: Applied, mut bytes: Bytes) -> State {
        let hash = bytes.get_u64_le();
        let removed = (0..bytes.remaining() / 8)
            .map(|_| bytes.get_u64_le())
            .collect();
        State {
            applied,
            hash,
            removed,
        }
    }
}

/// What of the states outlives the process.
#[derive(Clone, Default)]
pub(crate) struct Durable {
    /// Oldest first, at most two.
    pub(crate) states: VecDeque<State>,
}

impl Durable {
    /// Keeps `state` if it is newer; the name of the older one that is kept is what the log may be
    /// purged up to.
    pub(crate) fn keep(&mut self, state: State) -> Applied {
        let newest = self.states.back().map_or(0, |newest| newest.applied.index);
        if self.states.is_empty() || state.applied.index > newest {
            self.states.push_back(state);
        }
        if self.states.len() > 2 {
            self.states.pop_front();
        }
        self.states[0].applied.clone()
    }
}

pub(crate) struct Machine {
    pub(crate) world: Arc<World>,
    pub(crate) member: u64,
    pub(crate) incarnation: u64,
    pub(crate) state: State,
}

impl Machine {
    fn gone(&self) -> bool {
        !self.world.is_alive(self.member, self.incarnation)
    }

    fn apply_one(&mut self, entry: CommittedEntry) {
        let (kind, commands, membership) = match entry.body {
            EntryBody::Blank => (0, Vec::new(), None),
            EntryBody::Commands(commands) => (1, commands, None),
            EntryBody::Membership {
                membership,
                command,
            } => (2, command.into_iter().collect(), Some(membership)),
        };
        let mut bytes = vec![kind];
        bytes.extend(entry.index.to_le_bytes());
        bytes.extend(entry.term.to_le_bytes());
        for command in &commands {
            bytes.extend_from_slice(command);
        }
        let hash = fnv(&bytes);
        let skips = self.world.settings.has(Defect::ApplySkips)
            && self.member == 2
            && entry.index.is_multiple_of(7);
        if !skips {
            self.state.hash = fnv(&[self.state.hash.to_le_bytes(), hash.to_le_bytes()].concat());
        }
        let voters = membership.clone().map(wire::stored_voters);
        if let Some(membership) = membership {
            self.state.applied.membership = membership;
        }
        self.state.applied.index = entry.index;
        self.state.applied.term = entry.term;
        let commands: Vec<Command> = commands.into_iter().map(Command::decode).collect();
        for command in &commands {
            if let CommandKind::Remove(member) = command.kind {
                self.state.removed.insert(member);
            }
        }
        let ids: Vec<u64> = commands.iter().map(|command| command.id).collect();
        self.world.applied(
            self.member,
            self.incarnation,
            AppliedEntry {
                index: entry.index,
                term: entry.term,
                hash,
                state: self.state.hash,
                commands: &ids,
                voters,
            },
        );
    }
}

impl StateMachine for Machine {
    fn applied(&mut self) -> io::Result<Applied> {
        Ok(self.state.applied.clone())
    }

    fn apply(&mut self, entries: Vec<CommittedEntry>) -> io::Result<()> {
        if self.gone() {
            return Err(io::Error::other("the member is dead"));
        }
        for entry in entries {
            self.apply_one(entry);
        }
        self.world.shows(self.member, &self.state);
        Ok(())
    }

    fn checkpoint(&mut self) -> CheckpointFuture {
        let (world, member, incarnation) = (self.world.clone(), self.member, self.incarnation);
        let state = self.state.clone();
        Box::pin(async move {
            world
                .make_durable(member, incarnation, state)
                .await
                .ok_or_else(|| io::Error::other("the member is dead"))
        })
    }

    fn snapshot(&mut self) -> io::Result<Box<dyn SnapshotSource>> {
        let mut applied = self.state.applied.clone();
        if self.world.settings.has(Defect::SnapshotMislabelled) {
            applied.index = applied.index.saturating_sub(1).max(1);
        }
        Ok(Box::new(Source::new(applied, self.state.encode())))
    }

    fn install(
        &mut self,
        applied: Applied,
        mut source: Box<dyn SnapshotSource>,
    ) -> InstallFuture<'_> {
        Box::pin(async move {
            let mut bytes = Vec::new();
            while let Some(chunk) = source.next_chunk()? {
                bytes.extend_from_slice(&chunk);
            }
            // The copy is verified and made durable beside the old state, which a crash brings back.
            let takes = self.world.draw(|random| random.millis(1..30));
            tokio::time::sleep(takes).await;
            if self.gone() {
                return Err(io::Error::other("the member is dead"));
            }
            self.state = State::decode(applied, bytes.into());
            self.world
                .installed(self.member, self.incarnation, &self.state);
            Ok(())
        })
    }
}

/// A state on its way to another member.
pub(crate) struct Source {
    applied: Applied,
    chunks: Arc<[Bytes]>,
    next: usize,
}

impl Source {
    pub(crate) fn new(applied: Applied, chunks: Vec<Bytes>) -> Source {
        Source {
            applied,
            chunks: chunks.into(),
            next: 0,
        }
    }
}

impl SnapshotSource for Source {
    fn applied(&self) -> Applied {
        self.applied.clone()
    }

    fn next_chunk(&mut self) -> io::Result<Option<Bytes>> {
        let chunk = self.chunks.get(self.next).cloned();
        self.next += 1;
        Ok(chunk)
    }

    fn again(&self) -> Option<Box<dyn SnapshotSource>> {
        Some(Box::new(Source {
            applied: self.applied.clone(),
            chunks: self.chunks.clone(),
            next: 0,
        }))
    }
}

/// How long a checkpoint waits between two looks at the log.
pub(crate) const FLUSH_PAUSE: Duration = Duration::from_millis(5);
