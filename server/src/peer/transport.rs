//! What raft sends, over HTTP/2.
//!
//! Three connections for each member, one a lane: a snapshot never delays entries, and entries never delay a heartbeat.
//! They are opened by the first call and again after a failure; the URLs are looked up at each attempt, so a changed
//! peer URL needs no restart. The pace of attempts is the caller's: heartbeats by their interval, entries by raft's
//! back-off, and at most one attempt a lane is under way. A connection whose pings go unanswered for an election
//! timeout is closed, so that a cut link heals as soon as it is whole, not when TCP tries again.

use std::collections::HashMap;
use std::io;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll, ready};
use std::time::{Duration, Instant};

use bytes::Bytes;
use futures_util::{Stream, StreamExt};
use hyper_util::rt::TokioIo;
use kv_proto::peerpb::peer_client::PeerClient;
use kv_proto::peerpb::snapshot_answer::Answer;
use kv_proto::peerpb::{AppendRequest, AppendResponse, CallKind, CallRequest, SnapshotRequest};
use kv_raft::{
    AnswerStream, ByteStream, Lane, PeerError, PeerFuture, PeerTransport, Rpc, SnapshotSource,
};
use parking_lot::{Mutex, RwLock};
use prometheus::IntCounter;
use tokio::runtime::Handle;
use tokio::time::{MissedTickBehavior, timeout_at};
use tokio_stream::wrappers::ReceiverStream;
use tonic::transport::{Channel, Endpoint};
use tonic::{Request, Status, Streaming};
use tower::service_fn;

use super::connect::{Alpn, Connector};
use super::handshake::Handshake;
use super::snapshot::{SILENCE_MAX, Sending};
use crate::cluster::{Cluster, Version};
use crate::config::Url;
use crate::metrics::Metrics;

/// Receive windows of connections to members.
const STREAM_WINDOW_BYTES: u32 = 4 << 20;
const CONNECTION_WINDOW_BYTES: u32 = 16 << 20;
/// One entry may be as large as `--max-request-bytes`.
const MESSAGE_BYTES_MAX: usize = i32::MAX as usize;
/// Time between two questions whether a member is there.
const PROBE_INTERVAL: Duration = Duration::from_secs(2);
/// A member is lost when it has given no answer for so many election timeouts, though its connections stand.
const SILENT_ELECTIONS: u32 = 2;

/// Connections to the other members.
pub(crate) struct Transport {
    parts: Arc<Parts>,
    peers: RwLock<HashMap<u64, Arc<Peer>>>,
}

/// What connections are made of.
struct Parts {
    handshake: Arc<Handshake>,
    cluster: Arc<Cluster>,
    connector: Arc<Connector>,
    metrics: Arc<Metrics>,
    member_id: u64,
    local: String,
    runtimes: Runtimes,
    election_timeout: Duration,
    /// Tells the snapshots of this process from those that an earlier one sent.
    process: u64,
}

/// Where connections live, whoever asks for them.
#[derive(Clone)]
pub(crate) struct Runtimes {
    /// Raft's own: a message that stays on its thread wakes no other.
    pub(crate) raft: Handle,
    /// For what would hold raft up.
    pub(crate) snapshots: Handle,
}

/// One other member.
struct Peer {
    id: u64,
    name: String,
    replication: PeerClient<Channel>,
    heartbeat: PeerClient<Channel>,
    snapshot: PeerClient<Channel>,
    active: Mutex<Activity>,
}

/// Whether a member answers.
#[derive(Default)]
struct Activity {
    /// Since when it does; `None` while it does not.
    since: Option<Instant>,
    /// When it last did.
    heard: Option<Instant>,
}

impl Transport {
    /// A transport without connections; they are made when they are first used.
    pub(crate) fn new(
        member_id: u64,
        handshake: Arc<Handshake>,
        cluster: Arc<Cluster>,
        connector: Arc<Connector>,
        metrics: Arc<Metrics>,
        runtimes: Runtimes,
        election_timeout: Duration,
    ) -> Transport {
        Transport {
            parts: Arc::new(Parts {
                handshake,
                cluster,
                connector,
                metrics,
                member_id,
                local: format!("{member_id:x}"),
                runtimes,
                election_timeout,
                process: process_number(),
            }),
            peers: RwLock::default(),
        }
    }

    /// Since when the member answers; `None` while it does not.
    pub(crate) fn active_since(&self, peer: u64) -> Option<Instant> {
        self.peers.read().get(&peer)?.active.lock().since
    }

    /// Opens connections to members, for pages.
    pub(crate) fn connector(&self) -> &Connector {
        &self.parts.connector
    }

    /// The newest cluster version that the build of a member serves; `None` while the member does not answer.
    pub(crate) fn version_of(&self, peer: u64) -> Option<Version> {
        self.active_since(peer)?;
        self.parts.handshake.version_of(peer)
    }

    /// Asks every other member whether it is there, again and again, until the transport is dropped.
    ///
    /// Raft itself does not speak to everybody: without this, a follower would not notice that another one is gone, nor
    /// a removed member that it is removed.
    pub(crate) fn start_probing(self: &Arc<Self>) {
        let transport = Arc::downgrade(self);
        let parts = self.parts.clone();
        self.parts.runtimes.raft.spawn(async move {
            let mut ticks = tokio::time::interval(PROBE_INTERVAL);
            ticks.set_missed_tick_behavior(MissedTickBehavior::Delay);
            loop {
                ticks.tick().await;
                let Some(transport) = transport.upgrade() else {
                    return;
                };
                let others = parts.cluster.members().into_iter().map(|member| member.id);
                for id in others.filter(|id| *id != parts.member_id) {
                    let Ok(peer) = transport.peer(id) else {
                        continue;
                    };
                    let parts = parts.clone();
                    // The outcome is kept in `active`, whatever it is.
                    tokio::spawn(async move {
                        let (kind, lane) = (CallKind::Probe, Lane::Heartbeat);
                        let limit = parts.election_timeout;
                        let _ = parts.call(&peer, kind, lane, Bytes::new(), limit).await;
                    });
                }
            }
        });
    }

    fn peer(&self, id: u64) -> Result<Arc<Peer>, PeerError> {
        if self.parts.cluster.is_removed(id) {
            if let Some(peer) = self.peers.write().remove(&id) {
                let labels: &[&str] = &[&self.parts.local, &peer.name];
                let network = &self.parts.metrics.network;
                let _ = network.known_peers.remove_label_values(labels);
                let _ = network.active_peers.remove_label_values(labels);
            }
            return Err(PeerError::NotSent(format!(
                "member {id:x} is removed from the cluster"
            )));
        }
        if let Some(peer) = self.peers.read().get(&id) {
            return Ok(peer.clone());
        }
        let mut peers = self.peers.write();
        let peer = peers
            .entry(id)
            .or_insert_with(|| Arc::new(self.parts.peer(id)));
        Ok(peer.clone())
    }
}

impl PeerTransport for Transport {
    fn call(
        &self,
        peer: u64,
        rpc: Rpc,
        request: Bytes,
        timeout: Duration,
    ) -> PeerFuture<'_, Bytes> {
        let parts = self.parts.clone();
        let peer = self.peer(peer);
        Box::pin(async move {
            let peer = peer?;
            parts
                .call(&peer, kind(rpc), rpc.lane(), request, timeout)
                .await
        })
    }

    fn append_stream(
        &self,
        peer: u64,
        lane: Lane,
        requests: ByteStream,
        timeout: Duration,
    ) -> PeerFuture<'_, AnswerStream> {
        let begun = Instant::now();
        let parts = self.parts.clone();
        let peer = self.peer(peer);
        Box::pin(async move {
            let peer = peer?;
            let messages = parts.appends(&peer, requests);
            let mut client = peer.client(lane);
            let request = parts.request(&peer, messages);
            let opened = within(begun + timeout, client.append(request)).await;
            let answers = parts.checked(&peer, opened)?;
            Ok(append_answers(parts, peer, answers))
        })
    }

    fn snapshot(
        &self,
        peer: u64,
        header: Bytes,
        source: Box<dyn SnapshotSource>,
    ) -> PeerFuture<'_, Bytes> {
        let begun = Instant::now();
        let parts = self.parts.clone();
        let peer = self.peer(peer);
        Box::pin(async move {
            let peer = peer?;
            let network = &parts.metrics.network;
            let to: &[&str] = &[&peer.name];
            let inflight = network.snapshot_send_inflights.with_label_values(to);
            inflight.inc();
            let _sending = scopeguard(move || inflight.dec());
            let id = source
                .pin()
                .map_or(0, |pin| parts.process.wrapping_add(pin));
            let sent = network.peer_sent_bytes.with_label_values(to);
            let (sending, messages) = Sending::begin(header, id, sent);
            let transferred = parts.transfer(&peer, &sending, messages, source).await;
            let result = match sending.failure() {
                // The cause is here, whatever the other side made of the half it got.
                Some(error) => Err(PeerError::Unreachable(format!(
                    "the snapshot cannot be read: {error}"
                ))),
                None => transferred,
            };
            let took = begun.elapsed();
            match result {
                Ok(payload) => {
                    network.snapshot_send_success.with_label_values(to).inc();
                    let seconds = network.snapshot_send_seconds.with_label_values(to);
                    seconds.observe(took.as_secs_f64());
                    tracing::info!(
                        peer = peer.name,
                        took_ms = took.as_millis() as u64,
                        "snapshot sent and installed"
                    );
                    Ok(payload)
                }
                Err(error) => {
                    network.snapshot_send_failures.with_label_values(to).inc();
                    // Of a member that is down it is told once that it is lost.
                    if !matches!(error, PeerError::NotSent(_)) {
                        tracing::warn!(peer = peer.name, %error, "could not send a snapshot");
                    }
                    Err(error)
                }
            }
        })
    }
}

impl Activity {
    /// Notes an answer; whether it is the first one.
    fn answered(&mut self, now: Instant) -> bool {
        self.heard = Some(now);
        let is_first = self.since.is_none();
        self.since.get_or_insert(now);
        is_first
    }

    /// Notes a failed call; since when the member had answered if it is lost with it.
    ///
    /// One answer that is late is no loss: a member is lost when its connection is, or when it has been silent.
    fn failed(&mut self, error: &PeerError, now: Instant, patience: Duration) -> Option<Instant> {
        let is_late = matches!(error, PeerError::Timeout);
        let silence = self.heard.map(|heard| now.saturating_duration_since(heard));
        if is_late && silence.is_some_and(|silence| silence < patience) {
            return None;
        }
        self.since.take()
    }
}

impl Peer {
    fn client(&self, lane: Lane) -> PeerClient<Channel> {
        match lane {
            Lane::Replication => self.replication.clone(),
            Lane::Heartbeat => self.heartbeat.clone(),
        }
    }
}

impl Parts {
    fn peer(self: &Arc<Self>, id: u64) -> Peer {
        let network = &self.metrics.network;
        let name = format!("{id:x}");
        network
            .known_peers
            .with_label_values(&[&self.local, &name])
            .set(1);
        Peer {
            id,
            name,
            replication: self.client(id, &self.runtimes.raft),
            heartbeat: self.client(id, &self.runtimes.raft),
            snapshot: self.client(id, &self.runtimes.snapshots),
            active: Mutex::default(),
        }
    }

    /// A client that connects when it is first used.
    fn client(self: &Arc<Self>, id: u64, runtime: &Handle) -> PeerClient<Channel> {
        // Never resolved: the connector looks up where the member is.
        let endpoint = Endpoint::from_static("http://member")
            .executor(On(runtime.clone()))
            .initial_stream_window_size(STREAM_WINDOW_BYTES)
            .initial_connection_window_size(CONNECTION_WINDOW_BYTES)
            .http2_keep_alive_interval(self.election_timeout / 2)
            .keep_alive_timeout(self.election_timeout)
            .keep_alive_while_idle(true);
        let parts = self.clone();
        let connector = service_fn(move |_| {
            let parts = parts.clone();
            async move {
                let urls = parts.cluster.peer_urls(id);
                let urls: Vec<Url> = urls.iter().filter_map(|url| url.parse().ok()).collect();
                let connected = parts.connector.connect(&urls, Alpn::H2).await;
                connected.map(TokioIo::new).map_err(NotConnected)
            }
        });
        // The buffer of the channel is a task of its own.
        let _in_runtime = runtime.enter();
        PeerClient::new(endpoint.connect_with_connector_lazy(connector))
            .max_decoding_message_size(MESSAGE_BYTES_MAX)
            .max_encoding_message_size(MESSAGE_BYTES_MAX)
    }

    fn request<T>(&self, peer: &Peer, message: T) -> Request<T> {
        let mut request = Request::new(message);
        self.handshake.introduce(peer.id, request.metadata_mut());
        request
    }

    fn appends(&self, peer: &Peer, requests: ByteStream) -> Appends {
        let sent = &self.metrics.network.peer_sent_bytes;
        let sent = sent.with_label_values(&[&peer.name]);
        Appends { requests, sent }
    }

    /// One request, one answer.
    async fn call(
        &self,
        peer: &Peer,
        kind: CallKind,
        lane: Lane,
        payload: Bytes,
        timeout: Duration,
    ) -> Result<Bytes, PeerError> {
        let begun = Instant::now();
        let bytes = payload.len();
        let message = CallRequest {
            kind: kind as i32,
            payload,
        };
        let mut client = peer.client(lane);
        let answer = within(begun + timeout, client.call(self.request(peer, message))).await;
        let answer = match answer {
            // What waits for the leader's apply may wait longer than its caller: the member is there.
            Err(status) if lane == Lane::Replication && is_timeout(&status) => {
                return Err(PeerError::Timeout);
            }
            answer => self.checked(peer, answer)?,
        };
        let network = &self.metrics.network;
        let to: &[&str] = &[&peer.name];
        network
            .peer_sent_bytes
            .with_label_values(to)
            .inc_by(bytes as u64);
        if lane == Lane::Heartbeat {
            let took = begun.elapsed().as_secs_f64();
            network.peer_round_trip.with_label_values(to).observe(took);
        }
        self.received(peer, answer.payload.len());
        Ok(answer.payload)
    }

    /// The message of an answer that comes from the right member.
    fn checked<T>(
        &self,
        peer: &Peer,
        answer: Result<tonic::Response<T>, Status>,
    ) -> Result<T, PeerError> {
        let answer = answer.map_err(|status| self.failed(peer, &status))?;
        if let Err(refusal) = self.handshake.check_answer(peer.id, answer.metadata()) {
            return Err(PeerError::Unreachable(refusal.to_string()));
        }
        let network = &self.metrics.network;
        if peer.active.lock().answered(Instant::now()) {
            network
                .active_peers
                .with_label_values(&[&self.local, &peer.name])
                .set(1);
            tracing::info!(peer = peer.name, "connected to a member");
        }
        Ok(answer.into_inner())
    }

    /// Sends a snapshot, or the rest of it, and returns what raft answers when it is installed. It takes as long as it
    /// takes, while the other side gives signs of life.
    async fn transfer(
        &self,
        peer: &Peer,
        sending: &Sending,
        messages: ReceiverStream<SnapshotRequest>,
        source: Box<dyn SnapshotSource>,
    ) -> Result<Bytes, PeerError> {
        let mut client = peer.snapshot.clone();
        let request = self.request(peer, messages);
        let opened = within(Instant::now() + SILENCE_MAX, client.snapshot(request)).await;
        let mut answers = self.checked(peer, opened)?;
        let mut source = Some(source);
        loop {
            let answer = within(Instant::now() + SILENCE_MAX, answers.message()).await;
            let answer = answer.map_err(|status| self.failed(peer, &status))?;
            match answer.and_then(|answer| answer.answer) {
                Some(Answer::Have(have)) => {
                    if let Some(source) = source.take() {
                        if have > 0 {
                            tracing::info!(
                                peer = peer.name,
                                have,
                                "a snapshot goes on where it broke off"
                            );
                        }
                        sending.send(have, source);
                    }
                }
                Some(Answer::Arrived(_) | Answer::Installing(_)) => {}
                Some(Answer::Installed(payload)) => return Ok(payload),
                None => {
                    return Err(PeerError::Unreachable(
                        "the answers to a snapshot ended before it was installed".into(),
                    ));
                }
            }
        }
    }

    fn received(&self, peer: &Peer, bytes: usize) {
        let received = &self.metrics.network.peer_received_bytes;
        received
            .with_label_values(&[&peer.name])
            .inc_by(bytes as u64);
    }

    fn failed(&self, peer: &Peer, status: &Status) -> PeerError {
        let network = &self.metrics.network;
        network
            .peer_sent_failures
            .with_label_values(&[&peer.name])
            .inc();
        if status.code() == tonic::Code::FailedPrecondition {
            // Notices that this member is removed; any other refusal is told by its text.
            let _ = self.handshake.check_answer(peer.id, status.metadata());
        }
        let labels: &[&str] = &[&self.local, &peer.name];
        let error = peer_error(status);
        let patience = self.election_timeout * SILENT_ELECTIONS;
        let was_active = peer.active.lock().failed(&error, Instant::now(), patience);
        if let Some(since) = was_active {
            network.active_peers.with_label_values(labels).set(0);
            network.disconnected_peers.with_label_values(labels).inc();
            tracing::warn!(
                peer = peer.name,
                active_secs = since.elapsed().as_secs(),
                %error,
                "lost a member"
            );
        }
        error
    }
}

/// The connector's own failure: nothing was sent.
#[derive(Debug, thiserror::Error)]
#[error("{0}")]
struct NotConnected(io::Error);

/// The requests of an append stream, counted.
struct Appends {
    requests: ByteStream,
    sent: IntCounter,
}

impl Stream for Appends {
    type Item = AppendRequest;

    fn poll_next(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Option<AppendRequest>> {
        let payload = ready!(self.requests.poll_next_unpin(cx));
        Poll::Ready(payload.map(|payload| {
            self.sent.inc_by(payload.len() as u64);
            AppendRequest { payload }
        }))
    }
}

/// Runs the tasks of connections on one runtime, whoever calls.
#[derive(Clone)]
struct On(Handle);

impl hyper::rt::Executor<Pin<Box<dyn Future<Output = ()> + Send>>> for On {
    fn execute(&self, task: Pin<Box<dyn Future<Output = ()> + Send>>) {
        self.0.spawn(task);
    }
}

fn append_answers(
    parts: Arc<Parts>,
    peer: Arc<Peer>,
    answers: Streaming<AppendResponse>,
) -> AnswerStream {
    Box::pin(answers.map(move |answer| match answer {
        Ok(answer) => {
            peer.active.lock().heard = Some(Instant::now());
            parts.received(&peer, answer.payload.len());
            Ok(answer.payload)
        }
        Err(status) => Err(parts.failed(&peer, &status)),
    }))
}

async fn within<T>(
    deadline: Instant,
    answer: impl Future<Output = Result<T, Status>>,
) -> Result<T, Status> {
    match timeout_at(deadline.into(), answer).await {
        Ok(answer) => answer,
        Err(_) => Err(Status::deadline_exceeded("no answer in time")),
    }
}

fn is_timeout(status: &Status) -> bool {
    status.code() == tonic::Code::DeadlineExceeded
}

fn peer_error(status: &Status) -> PeerError {
    if is_timeout(status) {
        return PeerError::Timeout;
    }
    if status.code() == tonic::Code::FailedPrecondition {
        // The handshake comes before the request.
        return PeerError::NotSent(status.message().to_owned());
    }
    let mut source = std::error::Error::source(status);
    while let Some(error) = source {
        if let Some(NotConnected(error)) = error.downcast_ref() {
            return PeerError::NotSent(error.to_string());
        }
        source = error.source();
    }
    PeerError::Unreachable(status.message().to_owned())
}

fn kind(rpc: Rpc) -> CallKind {
    match rpc {
        Rpc::Vote => CallKind::Vote,
        Rpc::PreVote => CallKind::PreVote,
        Rpc::TransferLeader => CallKind::TransferLeader,
        Rpc::ReadIndex => CallKind::ReadIndex,
        Rpc::Propose => CallKind::Propose,
        Rpc::App => CallKind::App,
    }
}

#[allow(
    clippy::disallowed_methods,
    reason = "names a process to its peers; nothing replays from it"
)]
fn process_number() -> u64 {
    rand::random()
}

/// Runs `end` when dropped.
fn scopeguard(end: impl FnOnce()) -> impl Drop {
    struct Guard<F: FnOnce()>(Option<F>);
    impl<F: FnOnce()> Drop for Guard<F> {
        fn drop(&mut self) {
            if let Some(end) = self.0.take() {
                end();
            }
        }
    }
    Guard(Some(end))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn member_is_lost_with_its_connection_or_by_silence_and_not_by_a_late_answer() {
        let patience = Duration::from_secs(2);
        let begun = Instant::now();
        let after = |millis| begun + Duration::from_millis(millis);
        let broken = PeerError::Unreachable("the connection is gone".into());
        let mut activity = Activity::default();
        assert!(activity.answered(begun));
        assert!(!activity.answered(after(100)));

        assert_eq!(
            activity.failed(&PeerError::Timeout, after(1100), patience),
            None
        );
        assert_eq!(activity.since, Some(begun), "a late answer changes nothing");
        let lost = activity.failed(&PeerError::Timeout, after(2200), patience);
        assert_eq!(lost, Some(begun), "it was silent for too long");
        assert_eq!(activity.since, None);

        assert!(activity.answered(after(3000)));
        let lost = activity.failed(&broken, after(3001), patience);
        assert_eq!(lost, Some(after(3000)));
        assert_eq!(
            activity.failed(&broken, after(3002), patience),
            None,
            "it is lost once"
        );
    }
}
