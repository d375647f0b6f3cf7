//! What other members send, handed to raft.

use std::path::PathBuf;
use std::pin::Pin;
use std::sync::Arc;

use futures_util::{Stream, StreamExt};
use kv_proto::peerpb::peer_server::Peer;
use kv_proto::peerpb::{
    AppendRequest, AppendResponse, CallKind, CallRequest, CallResponse, SnapshotRequest,
    SnapshotResponse,
};
use kv_raft::{Node, Rpc};
use tokio::sync::Semaphore;
use tonic::{Request, Response, Status, Streaming};

use super::handshake::Handshake;
use super::snapshot;
use crate::metrics::Metrics;

/// The service of the peer port.
#[derive(Clone)]
pub(crate) struct PeerService {
    parts: Arc<Parts>,
}

struct Parts {
    node: Node,
    handshake: Arc<Handshake>,
    metrics: Arc<Metrics>,
    snapshot_dir: PathBuf,
    /// One snapshot at a time is received.
    receiving: Semaphore,
}

impl PeerService {
    /// Incoming snapshots are kept in `snapshot_dir` until they are installed; what is there now is removed.
    pub(crate) fn new(
        node: Node,
        handshake: Arc<Handshake>,
        metrics: Arc<Metrics>,
        snapshot_dir: PathBuf,
    ) -> PeerService {
        snapshot::clear(&snapshot_dir);
        PeerService {
            parts: Arc::new(Parts {
                node,
                handshake,
                metrics,
                snapshot_dir,
                receiving: Semaphore::new(1),
            }),
        }
    }

    fn admit<T>(&self, request: &Request<T>) -> Result<Caller, Status> {
        let id = self.parts.handshake.admit(request.metadata());
        let id = id.map_err(|refusal| *refusal)?;
        let name = format!("{id:x}");
        let metrics = &self.parts.metrics.network;
        Ok(Caller {
            received: metrics.peer_received_bytes.with_label_values(&[&name]),
            sent: metrics.peer_sent_bytes.with_label_values(&[&name]),
            name,
        })
    }

    fn signed<T>(&self, message: T) -> Response<T> {
        let mut response = Response::new(message);
        self.parts.handshake.sign(response.metadata_mut());
        response
    }
}

/// Who sent a call, with the counters of its bytes.
struct Caller {
    name: String,
    received: prometheus::IntCounter,
    sent: prometheus::IntCounter,
}

#[tonic::async_trait]
impl Peer for PeerService {
    async fn call(&self, request: Request<CallRequest>) -> Result<Response<CallResponse>, Status> {
        let caller = self.admit(&request)?;
        let message = request.into_inner();
        let rpc = match message.kind() {
            CallKind::Vote => Rpc::Vote,
            CallKind::PreVote => Rpc::PreVote,
            CallKind::TransferLeader => Rpc::TransferLeader,
            CallKind::ReadIndex => Rpc::ReadIndex,
            CallKind::Propose => Rpc::Propose,
            CallKind::App => Rpc::App,
            CallKind::Probe => return Ok(self.signed(CallResponse::default())),
            CallKind::Unspecified => {
                return Err(Status::unimplemented(format!(
                    "call kind {} is not known to this build",
                    message.kind
                )));
            }
        };
        caller.received.inc_by(message.payload.len() as u64);
        let payload = self
            .parts
            .node
            .answer(rpc, message.payload)
            .await
            .map_err(unavailable)?;
        caller.sent.inc_by(payload.len() as u64);
        Ok(self.signed(CallResponse { payload }))
    }

    type AppendStream = Pin<Box<dyn Stream<Item = Result<AppendResponse, Status>> + Send>>;

    async fn append(
        &self,
        request: Request<Streaming<AppendRequest>>,
    ) -> Result<Response<Self::AppendStream>, Status> {
        let Caller {
            name,
            received,
            sent,
        } = self.admit(&request)?;
        let failures = &self.parts.metrics.network.peer_received_failures;
        let failures = failures.with_label_values(&[&name]);
        let requests = request.into_inner().scan((), move |(), message| {
            // The stream ends with the connection; raft on the other side opens another.
            let payload = match message {
                Ok(message) => {
                    received.inc_by(message.payload.len() as u64);
                    Some(message.payload)
                }
                Err(status) => {
                    failures.inc();
                    tracing::debug!(peer = name, error = status.message(), "appends ended");
                    None
                }
            };
            std::future::ready(payload)
        });
        let answers = self.parts.node.answer_append_stream(Box::pin(requests));
        let answers = answers.map(move |payload| {
            sent.inc_by(payload.len() as u64);
            Ok(AppendResponse { payload })
        });
        Ok(self.signed(Box::pin(answers) as Self::AppendStream))
    }

    async fn snapshot(
        &self,
        request: Request<Streaming<SnapshotRequest>>,
    ) -> Result<Response<SnapshotResponse>, Status> {
        let caller = self.admit(&request)?;
        let Ok(_receiving) = self.parts.receiving.try_acquire() else {
            return Err(Status::resource_exhausted(
                "another snapshot is being received",
            ));
        };
        let network = &self.parts.metrics.network;
        let from: &[&str] = &[&caller.name];
        let inflight = network.snapshot_receive_inflights.with_label_values(from);
        inflight.inc();
        let begun = std::time::Instant::now();
        tracing::info!(peer = caller.name, "receiving a snapshot");
        let received = self.receive(request.into_inner()).await;
        inflight.dec();
        match received {
            Ok((payload, bytes)) => {
                let took = begun.elapsed();
                network
                    .snapshot_receive_success
                    .with_label_values(from)
                    .inc();
                network
                    .snapshot_receive_seconds
                    .with_label_values(from)
                    .observe(took.as_secs_f64());
                caller.received.inc_by(bytes);
                tracing::info!(
                    peer = caller.name,
                    bytes,
                    took_ms = took.as_millis() as u64,
                    "snapshot received and installed"
                );
                Ok(self.signed(SnapshotResponse { payload }))
            }
            Err(status) => {
                network
                    .snapshot_receive_failures
                    .with_label_values(from)
                    .inc();
                let error = status.message();
                tracing::warn!(peer = caller.name, error, "could not receive a snapshot");
                Err(status)
            }
        }
    }
}

impl PeerService {
    /// Receives a snapshot, installs it, and returns raft's answer and the bytes received.
    async fn receive(
        &self,
        parts: Streaming<SnapshotRequest>,
    ) -> Result<(bytes::Bytes, u64), Status> {
        let received = snapshot::receive(&self.parts.snapshot_dir, parts).await?;
        let bytes = received.bytes;
        let answer = self
            .parts
            .node
            .answer_snapshot(received.header, received.source)
            .await;
        Ok((answer.map_err(unavailable)?, bytes))
    }
}

fn unavailable(error: kv_raft::Error) -> Status {
    Status::unavailable(error.to_string())
}
