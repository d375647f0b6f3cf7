//! Messages between members: connections, the handshake of each call, and the peer port.
//!
//! [`Transport`] carries what raft sends; [`service`] hands what arrives to raft. Both sides of each call say which
//! cluster, member and folder they are ([`handshake`]), since raft itself notices neither a foreign cluster, nor a
//! removed member, nor one that came back with an empty disk. All of it runs on a thread of its own, so that neither
//! clients nor apply hold up a heartbeat.

mod connect;
mod dispatch;
mod fetch;
mod handshake;
mod pages;
mod service;
mod snapshot;
mod transport;

pub(crate) use connect::Connector;
pub(crate) use dispatch::PeerDispatch;
pub(crate) use fetch::{RemoteCluster, fetch_cluster, fetch_hash_kv};
pub(crate) use handshake::Handshake;
pub(crate) use service::PeerService;
pub(crate) use transport::{Runtimes, Transport};
