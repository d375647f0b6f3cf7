//! The KV service: reads from the store, writes through the log.

use std::pin::Pin;
use std::sync::Arc;

use futures_util::Stream;
use kv_mvcc::{RangeAnswer, RangeChunk, RangeEnd, RangeQuery, RangeStream, Store};
use kv_proto::command::{Body, Caller};
use kv_proto::etcdserverpb::kv_server::Kv;
use kv_proto::etcdserverpb::request_op::Request as Op;
use kv_proto::etcdserverpb::{
    CompactionRequest, CompactionResponse, DeleteRangeRequest, DeleteRangeResponse, PutRequest,
    PutResponse, RangeRequest, RangeResponse, RangeStreamResponse, RequestOp, ResponseHeader,
    TxnRequest, TxnResponse,
};
use kv_proto::key_range::KeyRange;
use tokio_stream::wrappers::ReceiverStream;
use tonic::{Request, Response, Status};

use super::large_range::{InPieces, LargeRange};
use super::{credentials, fill, range_query, validate};
use crate::apply::{self, Response as Applied};
use crate::auth::{Access, Credentials};
use crate::member::Member;
use crate::range_budget::Grant;
use crate::{Error, Result, quota};

/// Chunks of a RangeStream that may be ready before the client takes one.
const CHUNKS_AHEAD: usize = 2;
/// A range of at most so many keys may be walked on the connection's thread.
const SMALL_RANGE_KEYS: i64 = 1000;
/// Keys of the first chunk of a RangeStream.
const FIRST_CHUNK_KEYS: usize = 10;

/// The service over a member.
#[derive(Clone)]
pub(crate) struct KvService(pub(crate) Arc<Member>);

impl KvService {
    /// The answer, with its part of the memory if it is a large one.
    async fn range_answer(
        &self,
        credentials: &Credentials,
        request: RangeRequest,
    ) -> Result<(RangeAnswer, Option<Grant>)> {
        let member = &self.0;
        if !request.serializable {
            if member.cluster.is_learner(member.id) {
                return Err(crate::Error::NotSupportedForLearner);
            }
            member.reads.linearizable().await?;
        }
        let caller = member.caller(credentials).await?;
        let (key, range_end) = (&request.key, &request.range_end);
        member
            .auth
            .check_range(&caller, Access::Read, key, range_end)?;
        let answer = self.range(range_query(request)).await;
        member.auth.check_unchanged(&caller)?;
        answer
    }

    async fn range(&self, query: RangeQuery) -> Result<(RangeAnswer, Option<Grant>)> {
        let member = &self.0;
        // Small, and in memory: answered on the connection's thread.
        if is_small(&query)
            && let Some(answer) = member.store.try_range(&query)?
        {
            let grant = member.range_budget.settle(None, answer_bytes(&answer));
            return Ok((answer, grant));
        }
        let estimate = member.store.estimate_bytes(&query);
        let grant = member.range_budget.acquire(estimate).await?;
        let read = move |store: &Store| Ok(store.range(&query)?);
        let answer = match grant {
            Some(_) => member.read_large(read).await?,
            None => member.read_blocking(read).await?,
        };
        let grant = member.range_budget.settle(grant, answer_bytes(&answer));
        Ok((answer, grant))
    }

    /// A transaction that only reads, if the caller may have all of it and nothing of auth changes meanwhile.
    async fn read_only_txn(
        &self,
        credentials: &Credentials,
        request: TxnRequest,
    ) -> Result<TxnResponse> {
        let member = &self.0;
        let caller = member.caller(credentials).await?;
        let lessor = member.store.lessor();
        member.auth.state().check_txn(&caller, lessor, &request)?;
        let queries = ranges(&request).flatten().cloned().map(range_query);
        let estimate = queries.map(|q| member.store.estimate_bytes(&q)).sum();
        let grant = member.range_budget.acquire(estimate).await?;
        let read = move |store: &Store| apply::read_only_txn(store, request);
        let answer = match grant {
            Some(_) => member.read_large(read).await,
            None => member.read_blocking(read).await,
        };
        member.auth.check_unchanged(&caller)?;
        answer
    }
}

/// About what an answer takes in memory.
fn answer_bytes(answer: &RangeAnswer) -> u64 {
    let pairs = answer.kvs.iter();
    let bytes: usize = pairs
        .map(|kv| size_of_val(kv) + kv.key.len() + kv.value.len())
        .sum();
    bytes as u64
}

/// Whether a walk of the keys cannot take long.
fn is_small(query: &RangeQuery) -> bool {
    matches!(query.range, KeyRange::Single(_))
        || query.count_only
        || (1..=SMALL_RANGE_KEYS).contains(&query.limit)
}

#[tonic::async_trait]
impl Kv for KvService {
    async fn range(
        &self,
        request: Request<RangeRequest>,
    ) -> Result<Response<RangeResponse>, Status> {
        let credentials = credentials(&request);
        let in_pieces = request.extensions().get::<InPieces>().is_some();
        let request = request.into_inner();
        validate::range(&request)?;
        self.0.metrics.mvcc.range.inc();
        let (answer, grant) = self.range_answer(&credentials, request).await?;
        let RangeAnswer {
            revision,
            kvs,
            count,
            more,
        } = answer;
        let header = Some(self.0.header(revision));
        let whole = RangeResponse {
            header,
            kvs,
            more,
            count,
        };
        // Without a grant it is small.
        if !in_pieces || grant.is_none() {
            return Ok(Response::new(whole));
        }
        let mut response = Response::new(RangeResponse::default());
        let large = LargeRange::new(whole, grant)?;
        response.extensions_mut().insert(large);
        Ok(response)
    }

    type RangeStreamStream =
        Pin<Box<dyn Stream<Item = Result<RangeStreamResponse, Status>> + Send>>;

    async fn range_stream(
        &self,
        request: Request<RangeRequest>,
    ) -> Result<Response<Self::RangeStreamStream>, Status> {
        let credentials = credentials(&request);
        let request = request.into_inner();
        validate::range_stream(&request)?;
        if !request.serializable {
            self.0.reads.linearizable().await?;
        }
        let caller = self.0.caller(&credentials).await?;
        let (key, range_end) = (&request.key, &request.range_end);
        self.0
            .auth
            .check_range(&caller, Access::Read, key, range_end)?;
        let (chunks, stream) = tokio::sync::mpsc::channel(CHUNKS_AHEAD);
        tokio::spawn(send_chunks(self.0.clone(), caller, request, chunks));
        Ok(Response::new(Box::pin(ReceiverStream::new(stream))))
    }

    async fn put(&self, request: Request<PutRequest>) -> Result<Response<PutResponse>, Status> {
        let credentials = credentials(&request);
        let request = request.into_inner();
        self.0.check_quota(quota::put_cost(&request)).await?;
        validate::put(&request)?;
        match self.0.propose(&credentials, Body::Put(request)).await? {
            Applied::Put(mut response) => {
                response.header = fill(&self.0, response.header);
                Ok(Response::new(response))
            }
            other => Err(unexpected(&other)),
        }
    }

    async fn delete_range(
        &self,
        request: Request<DeleteRangeRequest>,
    ) -> Result<Response<DeleteRangeResponse>, Status> {
        let credentials = credentials(&request);
        let request = request.into_inner();
        validate::delete_range(&request)?;
        match self
            .0
            .propose(&credentials, Body::DeleteRange(request))
            .await?
        {
            Applied::DeleteRange(mut response) => {
                response.header = fill(&self.0, response.header);
                Ok(Response::new(response))
            }
            other => Err(unexpected(&other)),
        }
    }

    async fn txn(&self, request: Request<TxnRequest>) -> Result<Response<TxnResponse>, Status> {
        let credentials = credentials(&request);
        let request = request.into_inner();
        self.0.check_quota(quota::txn_cost(&request)).await?;
        validate::txn(&request, self.0.config.max_txn_ops as usize)?;
        let mut response = if is_read_only(&request) {
            if !is_serializable(&request) {
                self.0.reads.linearizable().await?;
            }
            self.read_only_txn(&credentials, request).await?
        } else {
            match self.0.propose(&credentials, Body::Txn(request)).await? {
                Applied::Txn(response) => response,
                other => return Err(unexpected(&other)),
            }
        };
        response.header = fill(&self.0, response.header);
        Ok(Response::new(response))
    }

    async fn compact(
        &self,
        request: Request<CompactionRequest>,
    ) -> Result<Response<CompactionResponse>, Status> {
        let credentials = credentials(&request);
        self.0.admin(&credentials).await?;
        let request = request.into_inner();
        let physical = request.physical;
        match self
            .0
            .propose(&credentials, Body::Compaction(request))
            .await?
        {
            Applied::Compaction(handle) => {
                if physical {
                    handle.wait().await.map_err(Error::from)?;
                    // Or a restart would resume it, and hashes would not be settled.
                    self.0
                        .read_blocking(|store| Ok(store.backend().checkpoint().map(|_| ())?))
                        .await?;
                }
                let header = Some(self.0.header(self.0.store.revision()));
                Ok(Response::new(CompactionResponse { header }))
            }
            other => Err(unexpected(&other)),
        }
    }
}

/// An answer of another kind than its request: the log gave a request id twice.
pub(super) fn unexpected(answer: &Applied) -> Status {
    tracing::error!(?answer, "an answer does not fit its request");
    Status::internal(
        "kvd: an answer does not fit its request; please report this with the member's log",
    )
}

fn ranges(request: &TxnRequest) -> impl Iterator<Item = Option<&RangeRequest>> {
    let ops = request.success.iter().chain(&request.failure);
    ops.map(|RequestOp { request }| match request {
        Some(Op::RequestRange(range)) => Some(range),
        _ => None,
    })
}

fn is_read_only(request: &TxnRequest) -> bool {
    ranges(request).all(|range| range.is_some())
}

/// True without any operation: compares alone are answered without a quorum, as by etcd.
fn is_serializable(request: &TxnRequest) -> bool {
    ranges(request).all(|range| range.is_some_and(|r| r.serializable))
}

/// Sends a range in chunks that aim at `--max-request-bytes`, all of one revision.
///
/// The first has 10 keys, then the number doubles or halves outside half to twice the aim. Source: etcd v3.7.
async fn send_chunks(
    member: Arc<Member>,
    caller: Caller,
    request: RangeRequest,
    chunks: tokio::sync::mpsc::Sender<Result<RangeStreamResponse, Status>>,
) {
    let query = range_query(request);
    let mut walk = match member.store.range_stream(&query) {
        Ok(stream) => ChunkWalk {
            stream,
            keys: FIRST_CHUNK_KEYS,
            aim_bytes: member.config.max_request_bytes as usize,
        },
        Err(error) => {
            let _ = chunks.send(Err(Error::from(error).into())).await;
            return;
        }
    };
    loop {
        let step = member.read_blocking(move |_| {
            let chunk = walk.next()?;
            Ok((walk, chunk))
        });
        match step.await {
            Ok((next, mut response)) => {
                walk = next;
                let last = response.header.is_some();
                if let Some(header) = &mut response.header {
                    *header = member.header(header.revision);
                }
                let message = RangeStreamResponse {
                    range_response: Some(response),
                };
                if chunks.send(Ok(message)).await.is_err() {
                    return;
                }
                if last {
                    if let Err(error) = member.auth.check_unchanged(&caller) {
                        let _ = chunks.send(Err(error.into())).await;
                    }
                    return;
                }
            }
            Err(error) => {
                let _ = chunks.send(Err(error.into())).await;
                return;
            }
        }
    }
}

/// Where a RangeStream is.
struct ChunkWalk {
    stream: RangeStream,
    keys: usize,
    aim_bytes: usize,
}

impl ChunkWalk {
    /// The next chunk; the last one has a header.
    fn next(&mut self) -> Result<RangeResponse> {
        let bytes_max = self.aim_bytes.saturating_mul(2);
        let RangeChunk { kvs, end } = self.stream.next_chunk(self.keys, bytes_max)?;
        let mut response = RangeResponse {
            kvs,
            ..Default::default()
        };
        let bytes = prost::Message::encoded_len(&response);
        if bytes < self.aim_bytes / 2 {
            self.keys = self.keys.saturating_mul(2);
        } else if bytes > self.aim_bytes * 2 {
            self.keys = (self.keys / 2).max(1);
        }
        if let Some(RangeEnd { count, more }) = end {
            let revision = self.stream.revision();
            response.header = Some(ResponseHeader {
                revision,
                ..Default::default()
            });
            response.count = count;
            response.more = more;
        }
        Ok(response)
    }
}
