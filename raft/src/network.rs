//! openraft's five network traits over one small trait that moves bytes between members.
//!
//! A [`PeerTransport`] knows addresses, connections and handshakes; this file knows messages and
//! deadlines. Three lanes keep traffic apart that must not wait for each other: a snapshot never
//! delays replication, and replication never delays a heartbeat or a vote.
//!
//! A stream of appends has no deadline of its own in openraft, so a half-open connection would
//! stop replication for good: here an append that is not answered within the idle timeout ends the
//! stream as unreachable, and openraft starts a new one.

use std::future::Future;
use std::pin::Pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use bytes::Bytes;
use futures_util::{Stream, StreamExt, stream};
use openraft::OptionalSend;
use openraft::base::{BoxFuture, BoxStream};
use openraft::errors::{NetworkError, RPCError, ReplicationClosed, StreamingError, Unreachable};
use openraft::impls::EmptyNode;
use openraft::network::{
    Backoff, NetBackoff, NetSnapshot, NetStreamAppend, NetTransferLeader, NetVote, RPCOption,
    RaftNetworkFactory,
};
use openraft::raft::{
    AppendEntriesRequest, SnapshotResponse, StreamAppendResult, TransferLeaderRequest,
    TransferLeaderResponse, VoteRequest, VoteResponse,
};

use crate::encoding::DecodeError;
use crate::error::PeerError;
use crate::snapshot::{Handle, Shelf, Snapshot, SnapshotSource};
use crate::types::{TypeConfig, Vote};
use crate::wire;

/// An answer of a peer, to come.
pub type PeerFuture<'a, T> = Pin<Box<dyn Future<Output = Result<T, PeerError>> + Send + 'a>>;

/// Messages of a stream, one `Bytes` each.
pub type ByteStream = Pin<Box<dyn Stream<Item = Bytes> + Send>>;

/// Answers of a peer to a stream of messages.
pub type AnswerStream = Pin<Box<dyn Stream<Item = Result<Bytes, PeerError>> + Send>>;

/// A request with one answer; see `wire.rs` for the bytes of each.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Rpc {
    /// A candidate asks for a vote.
    Vote,
    /// A member asks whether it would get a vote.
    PreVote,
    /// The leader asks a member to take over.
    TransferLeader,
    /// A member asks the leader from which index on a read is linearizable.
    ReadIndex,
    /// A member hands commands to the leader. It is answered when the leader has applied or refused
    /// them, which may take long.
    Propose,
    /// A question of one member's application to another's; opaque here.
    App,
}

impl Rpc {
    /// Where the request belongs: what may be large or slow never delays votes and heartbeats.
    pub fn lane(self) -> Lane {
        match self {
            Rpc::Vote | Rpc::PreVote | Rpc::TransferLeader | Rpc::ReadIndex => Lane::Heartbeat,
            Rpc::Propose | Rpc::App => Lane::Replication,
        }
    }
}

/// Traffic that must not wait for other traffic to the same peer.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Lane {
    /// Entries, and requests that may be large.
    Replication,
    /// Heartbeats, votes and other short requests.
    Heartbeat,
}

/// Moves bytes to other members; the owner of a node brings one.
///
/// It hands what arrives to [`Node::answer`](crate::Node::answer),
/// [`Node::answer_append_stream`](crate::Node::answer_append_stream) and
/// [`Node::answer_snapshot`](crate::Node::answer_snapshot) of the receiving member. It must refuse
/// peers of another cluster, removed members, and a member that came back with an empty disk: raft
/// itself notices none of these. Calls never wait for a connection longer than `timeout`.
pub trait PeerTransport: Send + Sync + 'static {
    /// Sends `request` in the lane of `rpc` and waits at most `timeout` for the answer.
    ///
    /// [`PeerError::NotSent`] only if the peer certainly received nothing: such a request is sent
    /// again.
    fn call(&self, peer: u64, rpc: Rpc, request: Bytes, timeout: Duration)
    -> PeerFuture<'_, Bytes>;

    /// Sends `requests` as they come; answers come in the order of the requests.
    fn append_stream(
        &self,
        peer: u64,
        lane: Lane,
        requests: ByteStream,
        timeout: Duration,
    ) -> PeerFuture<'_, AnswerStream>;

    /// Sends a whole snapshot, and answers when the peer has installed it. Dropping the future
    /// stops the transfer.
    fn snapshot(
        &self,
        peer: u64,
        header: Bytes,
        source: Box<dyn SnapshotSource>,
    ) -> PeerFuture<'_, Bytes>;
}

/// The transport of a cluster of one: every peer is unreachable.
#[derive(Debug, Clone, Copy, Default)]
pub struct NoPeers;

impl NoPeers {
    fn unreachable<T: Send + 'static>(peer: u64) -> PeerFuture<'static, T> {
        let error = PeerError::NotSent(format!("no connection to member {peer:x} is set up"));
        Box::pin(std::future::ready(Err(error)))
    }
}

impl PeerTransport for NoPeers {
    fn call(&self, peer: u64, _: Rpc, _: Bytes, _: Duration) -> PeerFuture<'_, Bytes> {
        NoPeers::unreachable(peer)
    }

    fn append_stream(
        &self,
        peer: u64,
        _: Lane,
        _: ByteStream,
        _: Duration,
    ) -> PeerFuture<'_, AnswerStream> {
        NoPeers::unreachable(peer)
    }

    fn snapshot(&self, peer: u64, _: Bytes, _: Box<dyn SnapshotSource>) -> PeerFuture<'_, Bytes> {
        NoPeers::unreachable(peer)
    }
}

/// Makes openraft's clients; they all share the transport's connections.
pub(crate) struct Factory {
    pub(crate) member_id: u64,
    pub(crate) transport: Arc<dyn PeerTransport>,
    /// Where the states that are sent are kept.
    pub(crate) shelf: Shelf,
    /// How long an append may go unanswered.
    pub(crate) idle_timeout: Duration,
}

/// openraft's client for one peer on one lane.
pub(crate) struct Peer {
    id: u64,
    lane: Lane,
    transport: Arc<dyn PeerTransport>,
    shelf: Shelf,
    idle_timeout: Duration,
}

impl Factory {
    fn peer(&self, id: u64, lane: Lane) -> Peer {
        assert!(
            id != self.member_id,
            "member {id:x} must not send messages to itself"
        );
        Peer {
            id,
            lane,
            transport: self.transport.clone(),
            shelf: self.shelf.clone(),
            idle_timeout: self.idle_timeout,
        }
    }
}

impl RaftNetworkFactory<TypeConfig> for Factory {
    type Network = Peer;

    async fn new_client(&mut self, target: u64, _: &EmptyNode) -> Peer {
        self.peer(target, Lane::Replication)
    }

    async fn new_heartbeat_client(&mut self, target: u64, _: &EmptyNode) -> Peer {
        self.peer(target, Lane::Heartbeat)
    }
}

impl Peer {
    async fn call<T>(
        &self,
        rpc: Rpc,
        request: Bytes,
        option: RPCOption,
        decode: fn(Bytes) -> Result<T, DecodeError>,
    ) -> Result<T, RPCError<TypeConfig>> {
        let answer = self
            .transport
            .call(self.id, rpc, request, option.soft_ttl())
            .await;
        decoded(answer, decode).map_err(rpc_error)
    }
}

impl NetVote<TypeConfig> for Peer {
    async fn vote(
        &mut self,
        request: VoteRequest<TypeConfig>,
        option: RPCOption,
    ) -> Result<VoteResponse<TypeConfig>, RPCError<TypeConfig>> {
        let request = wire::encode_vote_request(&request);
        self.call(Rpc::Vote, request, option, wire::decode_vote_answer)
            .await
    }

    async fn pre_vote(
        &mut self,
        request: VoteRequest<TypeConfig>,
        option: RPCOption,
    ) -> Result<VoteResponse<TypeConfig>, RPCError<TypeConfig>> {
        let request = wire::encode_vote_request(&request);
        self.call(Rpc::PreVote, request, option, wire::decode_vote_answer)
            .await
    }
}

impl NetTransferLeader<TypeConfig> for Peer {
    async fn transfer_leader(
        &mut self,
        request: TransferLeaderRequest<TypeConfig>,
        option: RPCOption,
    ) -> Result<TransferLeaderResponse<TypeConfig>, RPCError<TypeConfig>> {
        let request = wire::encode_transfer(&request);
        self.call(
            Rpc::TransferLeader,
            request,
            option,
            wire::decode_transfer_answer,
        )
        .await
    }
}

impl NetBackoff<TypeConfig> for Peer {
    fn backoff(&self) -> Option<Backoff> {
        None
    }
}

type AppendAnswers<'s> =
    BoxStream<'s, Result<StreamAppendResult<TypeConfig>, RPCError<TypeConfig>>>;

impl NetStreamAppend<TypeConfig> for Peer {
    fn stream_append<'s, S>(
        &'s mut self,
        input: S,
        option: RPCOption,
    ) -> BoxFuture<'s, Result<AppendAnswers<'s>, RPCError<TypeConfig>>>
    where
        S: Stream<Item = AppendEntriesRequest<TypeConfig>> + OptionalSend + Unpin + 'static,
    {
        let sent = Arc::new(AtomicU64::new(0));
        let counter = sent.clone();
        let mut requests = input.map(move |request| {
            counter.fetch_add(1, Ordering::Relaxed);
            wire::encode_append(&request)
        });
        Box::pin(async move {
            // openraft waits out its back-off where the first request is asked for: without asking
            // before connecting, a dead peer would be tried thousands of times a second.
            let Some(first) = requests.next().await else {
                return Ok(Box::pin(stream::empty()) as AppendAnswers<'s>);
            };
            let requests = stream::once(std::future::ready(first)).chain(requests);
            let answers = self
                .transport
                .append_stream(self.id, self.lane, Box::pin(requests), option.soft_ttl())
                .await
                .map_err(rpc_error)?;
            let answers = within_idle_timeout(answers, sent, self.idle_timeout);
            let answers = answers
                .map(|answer| decoded(answer, wire::decode_append_answer).map_err(rpc_error));
            Ok(Box::pin(answers) as AppendAnswers<'s>)
        })
    }
}

impl NetSnapshot<TypeConfig> for Peer {
    type SnapshotData = Handle;

    async fn full_snapshot(
        &mut self,
        vote: Vote,
        snapshot: Snapshot,
        cancel: impl Future<Output = ReplicationClosed> + OptionalSend + 'static,
        _: RPCOption,
    ) -> Result<SnapshotResponse<TypeConfig>, StreamingError<TypeConfig>> {
        let header = wire::encode_snapshot_header(&vote, &snapshot.meta);
        let source = snapshot
            .snapshot
            .into_source()
            .map_err(|error| StreamingError::Unreachable(Unreachable::new(&error)))?;
        let pin = source.pin();
        tokio::select! {
            answer = self.transport.snapshot(self.id, header, source) => {
                if let (Ok(_), Some(pin)) = (&answer, pin) {
                    self.shelf.release(pin);
                }
                decoded(answer, wire::decode_snapshot_answer)
                    .map_err(|error| StreamingError::from(rpc_error(error)))
            }
            closed = cancel => Err(StreamingError::Closed(closed)),
        }
    }
}

/// `answers`, ended by [`PeerError::Timeout`] when one of `sent` requests waits for `timeout`.
fn within_idle_timeout(
    answers: AnswerStream,
    sent: Arc<AtomicU64>,
    timeout: Duration,
) -> impl Stream<Item = Result<Bytes, PeerError>> + Send {
    stream::unfold(Some((answers, 0)), move |state| {
        let sent = sent.clone();
        async move {
            let (mut answers, answered) = state?;
            loop {
                let waiting_since_before = sent.load(Ordering::Relaxed) > answered;
                match tokio::time::timeout(timeout, answers.next()).await {
                    Ok(Some(answer)) => return Some((answer, Some((answers, answered + 1)))),
                    Ok(None) => return None,
                    Err(_) if waiting_since_before => return Some((Err(PeerError::Timeout), None)),
                    Err(_) => {}
                }
            }
        }
    })
}

fn decoded<T>(
    answer: Result<Bytes, PeerError>,
    decode: fn(Bytes) -> Result<T, DecodeError>,
) -> Result<T, PeerError> {
    decode(answer?).map_err(|error| PeerError::Answer(error.to_string()))
}

fn rpc_error(error: PeerError) -> RPCError<TypeConfig> {
    match error {
        // No answer is treated as no connection: a late answer of an old request helps nobody.
        PeerError::NotSent(_) | PeerError::Unreachable(_) | PeerError::Timeout => {
            RPCError::Unreachable(Unreachable::new(&error))
        }
        PeerError::Answer(_) => RPCError::Network(NetworkError::new(&error)),
    }
}

#[cfg(test)]
pub(crate) mod tests;
