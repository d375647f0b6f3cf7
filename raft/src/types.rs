//! The type configuration given to openraft: ids, payload, responder, and the index convention.
//!
//! A [`Payload`] carries its own stored bytes (`encoding.rs`) from the moment it is proposed, so
//! that neither the log nor the replication stream encodes or copies it again. It also keeps a
//! membership and a command side by side, which openraft's own payload cannot: a membership
//! change and the command that explains it are one entry.
//!
//! openraft numbers entries from 0; everything outside openraft counts from 1 and uses 0 for
//! "none". [`index_of`] and [`raft_log_id`] are the only conversions.

use std::fmt;

use bytes::Bytes;
use openraft::entry::RaftPayload;
use openraft::impls::{BoxedErrorSource, EmptyNode, InlineBatch, leader_id_std};
use openraft::{OptionalSend, RaftTypeConfig};

use crate::encoding;

/// openraft's view of this crate.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) struct TypeConfig;

pub(crate) type LeaderId = leader_id_std::LeaderId<u64, u64>;
pub(crate) type CommittedLeaderId = openraft::alias::CommittedLeaderIdOf<TypeConfig>;
pub(crate) type LogId = openraft::alias::LogIdOf<TypeConfig>;
pub(crate) type Vote = openraft::impls::Vote<LeaderId>;
pub(crate) type Membership = openraft::Membership<u64, EmptyNode>;
pub(crate) type StoredMembership = openraft::alias::StoredMembershipOf<TypeConfig>;
pub(crate) type SnapshotMeta = openraft::alias::SnapshotMetaOf<TypeConfig>;
pub(crate) type Entry = openraft::impls::Entry<CommittedLeaderId, Payload>;
pub(crate) type WriteResult = openraft::raft::ClientWriteResult<TypeConfig>;
pub(crate) type Raft = openraft::Raft<TypeConfig, crate::state_machine::Adapter>;

impl RaftTypeConfig for TypeConfig {
    type D = Commands;
    type R = ();
    type NodeId = u64;
    type Node = EmptyNode;
    type Term = u64;
    type LeaderId = LeaderId;
    type Vote = Vote;
    type Payload = Payload;
    type Entry = Entry;
    type AsyncRuntime = crate::runtime::Runtime;
    type Responder<T>
        = Responder<T>
    where
        T: OptionalSend + 'static;
    type Batch<T>
        = InlineBatch<T>
    where
        T: OptionalSend + 'static;
    type ErrorSource = BoxedErrorSource;
}

/// Commands of one entry, already in their stored form.
#[derive(Clone, PartialEq, Eq)]
pub(crate) struct Commands(pub(crate) Bytes);

impl fmt::Debug for Commands {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "commands({} bytes)", self.0.len())
    }
}

impl fmt::Display for Commands {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Debug::fmt(self, f)
    }
}

/// The payload of one entry: its stored bytes and, decoded, the membership they carry.
#[derive(Clone, PartialEq, Eq)]
pub(crate) struct Payload {
    body: Bytes,
    membership: Option<Box<Membership>>,
}

impl Payload {
    /// Checks `body` and decodes the membership in it, if any.
    pub(crate) fn decode(body: Bytes) -> Result<Payload, encoding::DecodeError> {
        let membership = encoding::decode_membership_of(&body)?.map(Box::new);
        Ok(Payload { body, membership })
    }

    /// The stored bytes: what the log and the replication stream carry.
    pub(crate) fn body(&self) -> &Bytes {
        &self.body
    }
}

impl RaftPayload for Payload {
    type D = Commands;
    type NodeId = u64;
    type Node = EmptyNode;

    fn blank() -> Payload {
        Payload {
            body: encoding::blank_body(),
            membership: None,
        }
    }

    fn with_normal(self, commands: Commands) -> Payload {
        assert!(
            self.membership.is_none(),
            "a command joins a membership through with_membership"
        );
        Payload {
            body: commands.0,
            membership: None,
        }
    }

    fn with_membership(self, membership: Membership) -> Payload {
        let command = encoding::only_command(&self.body);
        Payload {
            body: encoding::membership_body(&membership, command.as_ref()),
            membership: Some(Box::new(membership)),
        }
    }

    fn get_membership(&self) -> Option<Membership> {
        self.membership.as_deref().cloned()
    }
}

impl fmt::Debug for Payload {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match &self.membership {
            Some(membership) => write!(f, "membership:{membership}"),
            None => write!(f, "payload({} bytes)", self.body.len()),
        }
    }
}

impl fmt::Display for Payload {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Debug::fmt(self, f)
    }
}

/// Takes the outcome of one proposal; a call, not a channel, so that no task waits for it.
pub(crate) struct Responder<T>(pub(crate) Box<dyn FnOnce(T) + Send>);

impl<T: OptionalSend + 'static> openraft::raft::responder::Responder<TypeConfig, T>
    for Responder<T>
{
    fn on_complete(self, result: T) {
        (self.0)(result);
    }
}

/// The index of `log_id` as the rest of the system counts: from 1, and 0 for none.
pub(crate) fn index_of(log_id: Option<&LogId>) -> u64 {
    log_id.map_or(0, |id| id.index + 1)
}

/// The term of `log_id`, 0 for none.
pub(crate) fn term_of(log_id: Option<&LogId>) -> u64 {
    log_id.map_or(0, |id| id.leader_id.term)
}

/// The log id openraft uses for `(index, term)`; none for index 0.
pub(crate) fn raft_log_id(index: u64, term: u64) -> Option<LogId> {
    let index = index.checked_sub(1)?;
    Some(LogId::new(CommittedLeaderId::new(term), index))
}
