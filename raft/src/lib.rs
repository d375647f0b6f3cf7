//! Agreement on one order of entries: the only crate that names openraft.
//!
//! A [`Node`] takes commands (opaque bytes), agrees with the other members on their order, keeps
//! them in the write-ahead log of `kv-wal`, and hands them to the [`StateMachine`] of its owner,
//! each once and in order. It also answers when a read is linearizable. It never looks inside a
//! command, opens no socket (the owner brings a [`PeerTransport`]) and no file (the owner brings a
//! `Wal`).
//!
//! Log indexes in this crate's surface, in the log and on the wire start at 1, and 0 means "none",
//! as in etcd; openraft counts from 0, and `types.rs` is the one place that converts.
//!
//! Every format this crate writes, on disk or to another member, is defined in [`encoding`] and
//! [`wire`], byte by byte; openraft itself writes none.

mod config;
pub mod encoding;
mod error;
mod force;
mod forward;
mod log_store;
mod membership;
mod network;
mod node;
mod proposal;
mod read_index;
pub mod runtime;
mod snapshot;
mod state_machine;
mod status;
mod step_aside;
#[cfg(test)]
mod testing;
mod types;
pub mod wire;

pub use config::Config;
pub use error::{
    Error, MembershipError, PeerError, ProposeError, ReadError, Result, TransferError,
};
pub use force::force_alone;
pub use membership::PeerProgress;
pub use network::{AnswerStream, ByteStream, Lane, NoPeers, PeerFuture, PeerTransport, Rpc};
pub use node::{App, Node};
pub use proposal::Refused;
pub use snapshot::SnapshotSource;
pub use state_machine::{
    Applied, CheckpointFuture, CommittedEntry, EntryBody, InstallFuture, StateMachine,
};
pub use status::{Role, Status};
