//! What other members send, handed to raft.

use std::pin::Pin;
use std::sync::Arc;
use std::time::{Duration, Instant};

use bytes::Bytes;
use futures_util::{Stream, StreamExt};
use kv_mvcc::Store;
use kv_proto::peerpb::peer_server::Peer;
use kv_proto::peerpb::{
    AppendRequest, AppendResponse, CallKind, CallRequest, CallResponse, SnapshotAnswer,
    SnapshotInstalling, SnapshotRequest, snapshot_answer::Answer,
};
use kv_raft::{Node, Rpc};
use tokio::sync::mpsc;
use tokio::time::timeout;
use tokio_stream::wrappers::ReceiverStream;
use tonic::{Request, Response, Status, Streaming};

use super::handshake::Handshake;
use super::snapshot::receive::{Beginning, Incoming, NextChunk};
use crate::apply::receive_snapshot;
use crate::metrics::Metrics;

/// Answers to a snapshot that may wait for its sender.
const ANSWERS_AHEAD: usize = 4;
/// The sender hears of each so many bytes.
const ARRIVED_BYTES: u64 = 8 << 20;
/// Signs of life while a snapshot that has arrived is completed and installed.
const INSTALLING_PERIOD: Duration = Duration::from_secs(5);

/// The service of the peer port.
#[derive(Clone)]
pub(crate) struct PeerService {
    parts: Arc<Parts>,
}

struct Parts {
    node: Node,
    handshake: Arc<Handshake>,
    metrics: Arc<Metrics>,
    /// One snapshot at a time is received.
    incoming: Incoming,
}

impl PeerService {
    /// Snapshots that arrive are for `store`.
    pub(crate) fn new(
        node: Node,
        handshake: Arc<Handshake>,
        metrics: Arc<Metrics>,
        store: &Arc<Store>,
    ) -> PeerService {
        let store = Arc::downgrade(store);
        let take_in = move |chunks: &mut NextChunk<'_>| receive_snapshot(&store, chunks);
        PeerService {
            parts: Arc::new(Parts {
                node,
                handshake,
                metrics,
                incoming: Incoming::new(Arc::new(take_in)),
            }),
        }
    }

    fn admit<T>(&self, request: &Request<T>) -> Result<Caller, Status> {
        let id = self.parts.handshake.admit(request.metadata());
        let id = id.map_err(|refusal| *refusal)?;
        let name = format!("{id:x}");
        let metrics = &self.parts.metrics.network;
        // Whoever is no member yet, or never will be, has no series of its own.
        let label = if self.parts.handshake.knows(id) {
            &name
        } else {
            "unknown"
        };
        Ok(Caller {
            received: metrics.peer_received_bytes.with_label_values(&[label]),
            sent: metrics.peer_sent_bytes.with_label_values(&[label]),
            name,
            id,
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
    id: u64,
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
            ..
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

    type SnapshotStream = Pin<Box<dyn Stream<Item = Result<SnapshotAnswer, Status>> + Send>>;

    async fn snapshot(
        &self,
        request: Request<Streaming<SnapshotRequest>>,
    ) -> Result<Response<Self::SnapshotStream>, Status> {
        let caller = self.admit(&request)?;
        let (answers, stream) = mpsc::channel(ANSWERS_AHEAD);
        let parts = self.parts.clone();
        // The transfer ends with its requests, or with nobody to answer.
        tokio::spawn(async move {
            let outcome = parts.receive(&caller, request.into_inner(), &answers).await;
            // A sender that is gone has nobody to tell.
            let _ = answers.send(outcome.map(|answer| installed(&answer))).await;
        });
        Ok(self.signed(Box::pin(ReceiverStream::new(stream)) as Self::SnapshotStream))
    }
}

impl Parts {
    /// Receives a snapshot, installs it, and returns raft's answer.
    async fn receive(
        &self,
        caller: &Caller,
        mut messages: Streaming<SnapshotRequest>,
        answers: &mpsc::Sender<Result<SnapshotAnswer, Status>>,
    ) -> Result<Bytes, Status> {
        let network = &self.metrics.network;
        let from: &[&str] = &[&caller.name];
        let receiving = match self.incoming.begin(caller.id, &mut messages).await? {
            Beginning::Rest(receiving) => receiving,
            Beginning::Installed(answer) => return Ok(answer),
        };
        let have = receiving.bytes();
        tracing::info!(peer = caller.name, have, "receiving a snapshot");
        let begun = Instant::now();
        let inflight = network.snapshot_receive_inflights.with_label_values(from);
        inflight.inc();
        let received = async {
            say(answers, Answer::Have(have)).await?;
            let mut told = have;
            let received = receiving.finish(&mut messages, |receiving, bytes| {
                caller.received.inc_by(bytes);
                let now = receiving.bytes();
                if now - told >= ARRIVED_BYTES {
                    told = now;
                    // The sender is behind with listening: it hears the next one.
                    let _ = answers.try_send(Ok(answer(Answer::Arrived(now))));
                }
            });
            let arrived = received.await?;
            let mut installed = std::pin::pin!(async {
                let (header, source, installing) = arrived.taken_in().await?.into_parts();
                let payload = self.node.answer_snapshot(header, source).await;
                let payload = payload.map_err(unavailable)?;
                installing.done(payload.clone());
                Ok(payload)
            });
            loop {
                match timeout(INSTALLING_PERIOD, &mut installed).await {
                    Ok(payload) => return payload,
                    Err(_) => {
                        let _ =
                            answers.try_send(Ok(answer(Answer::Installing(SnapshotInstalling {}))));
                    }
                }
            }
        };
        let received: Result<Bytes, Status> = received.await;
        inflight.dec();
        match received {
            Ok(payload) => {
                let took = begun.elapsed();
                let successes = network.snapshot_receive_success.with_label_values(from);
                successes.inc();
                let seconds = network.snapshot_receive_seconds.with_label_values(from);
                seconds.observe(took.as_secs_f64());
                tracing::info!(
                    peer = caller.name,
                    have,
                    took_ms = took.as_millis() as u64,
                    "snapshot received and installed"
                );
                Ok(payload)
            }
            Err(status) => {
                let failures = network.snapshot_receive_failures.with_label_values(from);
                failures.inc();
                let error = status.message();
                tracing::warn!(peer = caller.name, error, "could not receive a snapshot");
                Err(status)
            }
        }
    }
}

fn answer(answer: Answer) -> SnapshotAnswer {
    SnapshotAnswer {
        answer: Some(answer),
    }
}

fn installed(payload: &Bytes) -> SnapshotAnswer {
    answer(Answer::Installed(payload.clone()))
}

async fn say(
    answers: &mpsc::Sender<Result<SnapshotAnswer, Status>>,
    word: Answer,
) -> Result<(), Status> {
    let said = answers.send(Ok(answer(word))).await;
    said.map_err(|_| Status::cancelled("the sender is gone"))
}

fn unavailable(error: kv_raft::Error) -> Status {
    Status::unavailable(error.to_string())
}
