//! Stored forms of what raft keeps: entry bodies, votes, commit marks, memberships.
//!
//! All integers are little endian. The first byte of each form is its version, [`VERSION`]; a
//! reader refuses what it does not know, and never guesses. The log keeps an entry's index and
//! term beside the body, so a body does not repeat them.
//!
//! ```text
//! entry body    version:1  kind:1  content
//!   kind 0 blank        (a new leader's first entry; no content)
//!   kind 1 commands     count:4  { length:4  bytes }*           count >= 1
//!   kind 2 membership   length:4  membership  has_command:1  [ length:4  bytes ]
//! membership    configs:2  { voters:2  { id:8 }* }*  members:2  { id:8 }*
//!                       configs >= 1 (2 during a joint change), ids ascending, every voter is
//!                       also a member, a member that votes nowhere is a learner
//! vote          version:1  term:8  voted_for:8  committed:1     18 bytes
//! commit mark   version:1  index:8  term:8                      17 bytes
//! stored membership     version:1  index:8  term:8  membership  index 0: never set
//! ```
//!
//! The `check_*` functions decode without looking at the meaning; they exist for fuzzing.

use std::collections::BTreeSet;

use bytes::{BufMut, Bytes, BytesMut};

use crate::types::{LogId, Membership, StoredMembership, Vote, index_of, raft_log_id, term_of};

/// Version of every form in this module.
pub const VERSION: u8 = 1;

const KIND_BLANK: u8 = 0;
const KIND_COMMANDS: u8 = 1;
const KIND_MEMBERSHIP: u8 = 2;

/// Most ids one membership may name; more is damage, not a cluster.
const IDS_MAX: u16 = 1024;

/// Why bytes are not what they should be.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum DecodeError {
    /// The bytes end before the form does.
    #[error("cut short at byte {at}")]
    Short {
        /// Offset of the first missing byte's field.
        at: usize,
    },
    /// The form ends before the bytes do.
    #[error("{count} bytes too many")]
    Trailing {
        /// How many.
        count: usize,
    },
    /// Written by a version this one does not know.
    #[error("version {found}, this member reads {VERSION}")]
    Version {
        /// The version found.
        found: u8,
    },
    /// A field has a value that the form does not allow.
    #[error("{field} has the value {value}")]
    Field {
        /// Which field.
        field: &'static str,
        /// What it held.
        value: u64,
    },
}

/// What an entry body contains.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Body {
    Blank,
    Commands(Vec<Bytes>),
    Membership {
        membership: Membership,
        command: Option<Bytes>,
    },
}

/// The body of a new leader's first entry.
pub(crate) fn blank_body() -> Bytes {
    Bytes::from_static(&[VERSION, KIND_BLANK])
}

/// Version, kind and the number of commands, in front of all of them.
const COMMANDS_HEAD_BYTES: usize = 6;

fn commands_head(count: u32, bytes: usize) -> BytesMut {
    let mut out = BytesMut::with_capacity(COMMANDS_HEAD_BYTES + bytes);
    out.put_u8(VERSION);
    out.put_u8(KIND_COMMANDS);
    out.put_u32_le(count);
    out
}

/// The body of an entry with `commands`, at least one.
pub(crate) fn commands_body(commands: &[Bytes]) -> Bytes {
    assert!(
        !commands.is_empty(),
        "an entry carries at least one command"
    );
    let bytes: usize = commands.iter().map(|command| 4 + command.len()).sum();
    let mut out = commands_head(length(commands.len()), bytes);
    for command in commands {
        put_bytes(&mut out, command);
    }
    out.freeze()
}

/// The body of one entry with the commands of `bodies`, at least one; each is of commands.
pub(crate) fn joined_bodies(bodies: &[Bytes]) -> Bytes {
    if let [body] = bodies {
        return body.clone();
    }
    let mut count = 0;
    let mut parts = Vec::with_capacity(bodies.len());
    for body in bodies {
        let (head, commands) = body
            .split_first_chunk::<COMMANDS_HEAD_BYTES>()
            .expect("a body of commands has a head");
        let [version, kind, number @ ..] = *head;
        assert_eq!([version, kind], [VERSION, KIND_COMMANDS], "own body");
        count += u32::from_le_bytes(number);
        parts.push(commands);
    }
    let mut out = commands_head(count, parts.iter().map(|commands| commands.len()).sum());
    for commands in parts {
        out.put_slice(commands);
    }
    out.freeze()
}

/// The body of an entry that changes the membership, with the command that explains it.
pub(crate) fn membership_body(membership: &Membership, command: Option<&Bytes>) -> Bytes {
    let mut encoded = BytesMut::new();
    put_membership(&mut encoded, membership);
    let mut out = BytesMut::with_capacity(16 + encoded.len() + command.map_or(0, Bytes::len));
    out.put_u8(VERSION);
    out.put_u8(KIND_MEMBERSHIP);
    put_bytes(&mut out, &encoded);
    out.put_u8(u8::from(command.is_some()));
    if let Some(command) = command {
        put_bytes(&mut out, command);
    }
    out.freeze()
}

/// Decodes a whole body; commands are slices of it, not copies.
pub(crate) fn decode_body(body: &Bytes) -> Result<Body, DecodeError> {
    let mut reader = Reader::new(body.clone());
    reader.version()?;
    let decoded = match reader.u8()? {
        KIND_BLANK => Body::Blank,
        KIND_COMMANDS => {
            let count = reader.u32()?;
            if count == 0 {
                return Err(DecodeError::Field {
                    field: "count",
                    value: 0,
                });
            }
            // A count can lie; the bytes that are there cannot.
            let mut commands = Vec::with_capacity((count as usize).min(reader.remaining() / 4));
            for _ in 0..count {
                commands.push(reader.bytes()?);
            }
            Body::Commands(commands)
        }
        KIND_MEMBERSHIP => {
            let mut inner = Reader::new(reader.bytes()?);
            let membership = inner.membership()?;
            inner.end()?;
            let command = match reader.flag("has_command")? {
                true => Some(reader.bytes()?),
                false => None,
            };
            Body::Membership {
                membership,
                command,
            }
        }
        kind => {
            return Err(DecodeError::Field {
                field: "kind",
                value: kind.into(),
            });
        }
    };
    reader.end()?;
    Ok(decoded)
}

/// The membership in `body`, if it has one. Commands are not walked: that is apply's work, and
/// the log's checksum already vouches for the bytes.
pub(crate) fn decode_membership_of(body: &Bytes) -> Result<Option<Membership>, DecodeError> {
    let mut reader = Reader::new(body.clone());
    reader.version()?;
    match reader.u8()? {
        KIND_BLANK | KIND_COMMANDS => Ok(None),
        KIND_MEMBERSHIP => match decode_body(body)? {
            Body::Membership { membership, .. } => Ok(Some(membership)),
            other => unreachable!("kind 2 decoded as {other:?}"),
        },
        kind => Err(DecodeError::Field {
            field: "kind",
            value: kind.into(),
        }),
    }
}

/// The command of a body that has at most one.
pub(crate) fn only_command(body: &Bytes) -> Option<Bytes> {
    match decode_body(body).expect("own body, encoded by this process") {
        Body::Blank | Body::Membership { .. } => None,
        Body::Commands(mut commands) => {
            assert!(
                commands.len() <= 1,
                "a membership entry explains itself by one command, not {}",
                commands.len()
            );
            commands.pop()
        }
    }
}

pub(crate) fn encode_vote(vote: &Vote) -> Bytes {
    let mut out = BytesMut::with_capacity(18);
    out.put_u8(VERSION);
    put_vote(&mut out, vote);
    out.freeze()
}

pub(crate) fn decode_vote(bytes: &Bytes) -> Result<Vote, DecodeError> {
    let mut reader = Reader::new(bytes.clone());
    reader.version()?;
    let vote = reader.vote()?;
    reader.end()?;
    Ok(vote)
}

pub(crate) fn encode_committed(committed: Option<&LogId>) -> Bytes {
    let mut out = BytesMut::with_capacity(17);
    out.put_u8(VERSION);
    put_log_id(&mut out, committed);
    out.freeze()
}

pub(crate) fn decode_committed(bytes: &Bytes) -> Result<Option<LogId>, DecodeError> {
    let mut reader = Reader::new(bytes.clone());
    reader.version()?;
    let committed = reader.log_id()?;
    reader.end()?;
    Ok(committed)
}

pub(crate) fn encode_stored_membership(stored: &StoredMembership) -> Bytes {
    let mut out = BytesMut::new();
    out.put_u8(VERSION);
    put_log_id(&mut out, stored.log_id().as_ref());
    put_membership(&mut out, stored.membership());
    out.freeze()
}

/// The stored membership of a cluster whose members begin together behind entry `index`, as if that had made them.
pub fn first_membership(index: u64, term: u64, voters: &[u64]) -> Bytes {
    let voters: BTreeSet<u64> = voters.iter().copied().collect();
    let membership = Membership::new_with_defaults(vec![voters.clone()], voters);
    encode_stored_membership(&StoredMembership::new(raft_log_id(index, term), membership))
}

/// Decodes what [`encode_stored_membership`] wrote; empty bytes mean never set.
pub(crate) fn decode_stored_membership(bytes: &Bytes) -> Result<StoredMembership, DecodeError> {
    if bytes.is_empty() {
        return Ok(StoredMembership::default());
    }
    let mut reader = Reader::new(bytes.clone());
    reader.version()?;
    let log_id = reader.log_id()?;
    let membership = reader.membership()?;
    reader.end()?;
    Ok(StoredMembership::new(log_id, membership))
}

/// Decodes an entry body, for fuzzing.
pub fn check_body(bytes: Bytes) -> Result<(), DecodeError> {
    decode_membership_of(&bytes)?;
    decode_body(&bytes).map(drop)
}

/// Decodes a vote, for fuzzing.
pub fn check_vote(bytes: Bytes) -> Result<(), DecodeError> {
    decode_vote(&bytes).map(drop)
}

/// Decodes a commit mark, for fuzzing.
pub fn check_committed(bytes: Bytes) -> Result<(), DecodeError> {
    decode_committed(&bytes).map(drop)
}

/// Decodes a stored membership, for fuzzing.
pub fn check_stored_membership(bytes: Bytes) -> Result<(), DecodeError> {
    decode_stored_membership(&bytes).map(drop)
}

/// Length of something as the four bytes that every form uses.
pub(crate) fn length(bytes: usize) -> u32 {
    u32::try_from(bytes).expect("requests are bounded far below 4 GiB")
}

pub(crate) fn put_bytes(out: &mut BytesMut, bytes: &[u8]) {
    out.put_u32_le(length(bytes.len()));
    out.put_slice(bytes);
}

pub(crate) fn put_vote(out: &mut BytesMut, vote: &Vote) {
    out.put_u64_le(vote.leader_id.term);
    out.put_u64_le(vote.leader_id.voted_for);
    out.put_u8(u8::from(vote.committed));
}

pub(crate) fn put_log_id(out: &mut BytesMut, log_id: Option<&LogId>) {
    out.put_u64_le(index_of(log_id));
    out.put_u64_le(term_of(log_id));
}

fn put_membership(out: &mut BytesMut, membership: &Membership) {
    let configs = membership.get_joint_config();
    out.put_u16_le(ids_length(configs.len()));
    for voters in configs {
        put_ids(out, voters.iter().copied());
    }
    put_ids(out, membership.nodes().map(|(id, _)| *id));
}

fn put_ids(out: &mut BytesMut, ids: impl Iterator<Item = u64>) {
    let ids: Vec<u64> = ids.collect();
    out.put_u16_le(ids_length(ids.len()));
    for id in ids {
        out.put_u64_le(id);
    }
}

fn ids_length(count: usize) -> u16 {
    let count = u16::try_from(count).expect("a cluster has few members");
    assert!(
        count <= IDS_MAX,
        "{count} ids in a membership of at most {IDS_MAX}"
    );
    count
}

/// Takes fields off the front of some bytes.
pub(crate) struct Reader {
    bytes: Bytes,
    at: usize,
}

impl Reader {
    pub(crate) fn new(bytes: Bytes) -> Reader {
        Reader { bytes, at: 0 }
    }

    pub(crate) fn remaining(&self) -> usize {
        self.bytes.len() - self.at
    }

    pub(crate) fn end(self) -> Result<(), DecodeError> {
        match self.remaining() {
            0 => Ok(()),
            count => Err(DecodeError::Trailing { count }),
        }
    }

    /// All that is left.
    pub(crate) fn rest(&mut self) -> Bytes {
        let rest = self.bytes.slice(self.at..);
        self.at = self.bytes.len();
        rest
    }

    pub(crate) fn version(&mut self) -> Result<(), DecodeError> {
        match self.u8()? {
            VERSION => Ok(()),
            found => Err(DecodeError::Version { found }),
        }
    }

    pub(crate) fn u8(&mut self) -> Result<u8, DecodeError> {
        Ok(self.array::<1>()?[0])
    }

    pub(crate) fn u16(&mut self) -> Result<u16, DecodeError> {
        Ok(u16::from_le_bytes(self.array()?))
    }

    pub(crate) fn u32(&mut self) -> Result<u32, DecodeError> {
        Ok(u32::from_le_bytes(self.array()?))
    }

    pub(crate) fn u64(&mut self) -> Result<u64, DecodeError> {
        Ok(u64::from_le_bytes(self.array()?))
    }

    pub(crate) fn flag(&mut self, field: &'static str) -> Result<bool, DecodeError> {
        match self.u8()? {
            0 => Ok(false),
            1 => Ok(true),
            value => Err(DecodeError::Field {
                field,
                value: value.into(),
            }),
        }
    }

    /// Bytes behind their length.
    pub(crate) fn bytes(&mut self) -> Result<Bytes, DecodeError> {
        let length = self.u32()? as usize;
        if self.remaining() < length {
            return Err(DecodeError::Short { at: self.at });
        }
        let bytes = self.bytes.slice(self.at..self.at + length);
        self.at += length;
        Ok(bytes)
    }

    pub(crate) fn vote(&mut self) -> Result<Vote, DecodeError> {
        let (term, voted_for) = (self.u64()?, self.u64()?);
        Ok(match self.flag("committed")? {
            true => Vote::new_committed(term, voted_for),
            false => Vote::new(term, voted_for),
        })
    }

    pub(crate) fn log_id(&mut self) -> Result<Option<LogId>, DecodeError> {
        let (index, term) = (self.u64()?, self.u64()?);
        if index == 0 && term != 0 {
            return Err(DecodeError::Field {
                field: "term of index 0",
                value: term,
            });
        }
        Ok(raft_log_id(index, term))
    }

    fn membership(&mut self) -> Result<Membership, DecodeError> {
        let count = self.u16()?;
        if count > 2 {
            return Err(DecodeError::Field {
                field: "configs",
                value: count.into(),
            });
        }
        let mut configs = Vec::new();
        for _ in 0..count {
            configs.push(self.ids("voters")?);
        }
        let members = self.ids("members")?;
        for voter in configs.iter().flatten() {
            if !members.contains(voter) {
                return Err(DecodeError::Field {
                    field: "voter that is no member",
                    value: *voter,
                });
            }
        }
        Ok(Membership::new_with_defaults(configs, members))
    }

    fn ids(&mut self, field: &'static str) -> Result<BTreeSet<u64>, DecodeError> {
        let count = self.u16()?;
        if count > IDS_MAX {
            return Err(DecodeError::Field {
                field,
                value: count.into(),
            });
        }
        let mut ids = BTreeSet::new();
        for _ in 0..count {
            let id = self.u64()?;
            if ids.last().is_some_and(|last| *last >= id) {
                return Err(DecodeError::Field { field, value: id });
            }
            ids.insert(id);
        }
        Ok(ids)
    }

    fn array<const N: usize>(&mut self) -> Result<[u8; N], DecodeError> {
        let end = self.at + N;
        let bytes = self
            .bytes
            .get(self.at..end)
            .ok_or(DecodeError::Short { at: self.at })?;
        self.at = end;
        Ok(bytes.try_into().expect("the slice has N bytes"))
    }
}

#[cfg(test)]
mod tests;
