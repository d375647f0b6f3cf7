//! The KV service of the proxy.

use std::pin::Pin;
use std::sync::Arc;

use bytes::Bytes;
use futures_util::Stream;
use kv_proto::etcdserverpb::kv_client::KvClient;
use kv_proto::etcdserverpb::kv_server::Kv;
use kv_proto::etcdserverpb::request_op::Request as Op;
use kv_proto::etcdserverpb::{
    CompactionRequest, CompactionResponse, DeleteRangeRequest, DeleteRangeResponse, PutRequest,
    PutResponse, RangeRequest, RangeResponse, RangeStreamResponse, RequestOp, ResponseHeader,
    TxnRequest, TxnResponse,
};
use tonic::metadata::MetadataMap;
use tonic::transport::Channel;
use tonic::{Request, Response, Status};

use super::cache::Cache;
use super::namespace::Namespace;
use super::order;
use super::upstream::{Caller, Upstream};
use crate::Error;

/// The service.
#[derive(Clone)]
pub(super) struct KvProxy {
    upstream: Upstream,
    namespace: Namespace,
    cache: Arc<Cache>,
}

fn client(channel: Channel) -> KvClient<Channel> {
    KvClient::new(channel).max_decoding_message_size(usize::MAX)
}

fn caller(metadata: &MetadataMap) -> Caller {
    Caller::of(metadata.as_ref())
}

impl KvProxy {
    pub(super) fn new(upstream: Upstream, namespace: Namespace, cache: Arc<Cache>) -> KvProxy {
        KvProxy {
            upstream,
            namespace,
            cache,
        }
    }

    /// Without a key a namespaced request would mean the prefix itself.
    fn require(&self, key: &Bytes) -> Result<(), Status> {
        if key.is_empty() && !self.namespace.is_empty() {
            return Err(Error::EmptyKey.into());
        }
        Ok(())
    }

    fn require_all(&self, request: &TxnRequest) -> Result<(), Status> {
        for compare in &request.compare {
            self.require(&compare.key)?;
        }
        for RequestOp { request } in request.success.iter().chain(&request.failure) {
            match request {
                Some(Op::RequestRange(range)) => self.require(&range.key)?,
                Some(Op::RequestPut(put)) => self.require(&put.key)?,
                Some(Op::RequestDeleteRange(delete)) => self.require(&delete.key)?,
                Some(Op::RequestTxn(txn)) => self.require_all(txn)?,
                None => {}
            }
        }
        Ok(())
    }

    /// Drops all that a transaction may write, or compares: the answer may say that what is kept is old.
    fn invalidate(&self, request: &TxnRequest) {
        for compare in &request.compare {
            self.cache.invalidate(&compare.key, &compare.range_end);
        }
        for RequestOp { request } in request.success.iter().chain(&request.failure) {
            match request {
                Some(Op::RequestPut(put)) => self.cache.invalidate(&put.key, &Bytes::new()),
                Some(Op::RequestDeleteRange(delete)) => {
                    self.cache.invalidate(&delete.key, &delete.range_end);
                }
                Some(Op::RequestTxn(txn)) => self.invalidate(txn),
                Some(Op::RequestRange(_)) | None => {}
            }
        }
    }
}

fn range_header(answer: &RangeResponse) -> Option<&ResponseHeader> {
    answer.header.as_ref()
}

fn txn_header(answer: &TxnResponse) -> Option<&ResponseHeader> {
    answer.header.as_ref()
}

/// Whether a transaction may change something: such a one is sent once only.
fn writes(request: &TxnRequest) -> bool {
    let mut operations = request.success.iter().chain(&request.failure);
    operations.any(|operation| match &operation.request {
        Some(Op::RequestPut(_) | Op::RequestDeleteRange(_)) => true,
        Some(Op::RequestTxn(txn)) => writes(txn),
        Some(Op::RequestRange(_)) | None => false,
    })
}

#[tonic::async_trait]
impl Kv for KvProxy {
    async fn range(
        &self,
        request: Request<RangeRequest>,
    ) -> Result<Response<RangeResponse>, Status> {
        let (metadata, _, mut request) = request.into_parts();
        self.require(&request.key)?;
        self.namespace.range_request(&mut request);
        let caller = caller(&metadata);
        if request.serializable
            && let Some(mut kept) = self.cache.get(&caller, &request)
            && order::revision(kept.header.as_ref()) >= self.upstream.order.least()
        {
            self.namespace.range_response(&mut kept);
            return Ok(Response::new(kept));
        }
        let moment = self.cache.moment();
        let send = async |channel, request| client(channel).range(request).await;
        let read = self
            .upstream
            .read(&metadata, request.clone(), range_header, send);
        let mut response = read.await?;
        self.cache
            .add(moment, &caller, &request, response.get_ref());
        self.namespace.range_response(response.get_mut());
        Ok(response)
    }

    type RangeStreamStream =
        Pin<Box<dyn Stream<Item = Result<RangeStreamResponse, Status>> + Send>>;

    async fn range_stream(
        &self,
        _: Request<RangeRequest>,
    ) -> Result<Response<Self::RangeStreamStream>, Status> {
        Err(Status::unimplemented(
            "RangeStream is not supported by a gRPC proxy with --namespace",
        ))
    }

    async fn put(&self, request: Request<PutRequest>) -> Result<Response<PutResponse>, Status> {
        let (metadata, _, mut request) = request.into_parts();
        self.require(&request.key)?;
        self.namespace.put_request(&mut request);
        let (key, none) = (request.key.clone(), Bytes::new());
        self.cache.invalidate(&key, &none);
        let send = async |channel, request| client(channel).put(request).await;
        let answer = self.upstream.call(&metadata, request, send).await;
        self.cache.invalidate(&key, &none);
        let mut response = answer?;
        self.upstream.order.see(response.get_ref().header.as_ref());
        self.namespace.put_response(response.get_mut());
        Ok(response)
    }

    async fn delete_range(
        &self,
        request: Request<DeleteRangeRequest>,
    ) -> Result<Response<DeleteRangeResponse>, Status> {
        let (metadata, _, mut request) = request.into_parts();
        self.require(&request.key)?;
        self.namespace.delete_request(&mut request);
        let (key, range_end) = (request.key.clone(), request.range_end.clone());
        self.cache.invalidate(&key, &range_end);
        let send = async |channel, request| client(channel).delete_range(request).await;
        let answer = self.upstream.call(&metadata, request, send).await;
        self.cache.invalidate(&key, &range_end);
        let mut response = answer?;
        self.upstream.order.see(response.get_ref().header.as_ref());
        self.namespace.delete_response(response.get_mut());
        Ok(response)
    }

    async fn txn(&self, request: Request<TxnRequest>) -> Result<Response<TxnResponse>, Status> {
        let (metadata, _, mut request) = request.into_parts();
        self.require_all(&request)?;
        self.namespace.txn_request(&mut request);
        self.invalidate(&request);
        let send = async |channel, request| client(channel).txn(request).await;
        let answer = if writes(&request) {
            let answer = self.upstream.call(&metadata, request.clone(), send).await;
            answer.inspect(|answer| self.upstream.order.see(answer.get_ref().header.as_ref()))
        } else {
            let read = self
                .upstream
                .read(&metadata, request.clone(), txn_header, send);
            read.await
        };
        self.invalidate(&request);
        let mut response = answer?;
        self.namespace.txn_response(response.get_mut());
        Ok(response)
    }

    async fn compact(
        &self,
        request: Request<CompactionRequest>,
    ) -> Result<Response<CompactionResponse>, Status> {
        let (metadata, _, request) = request.into_parts();
        let send = async |channel, request| client(channel).compact(request).await;
        let response = self.upstream.call(&metadata, request, send).await?;
        self.cache.compact(request.revision);
        Ok(response)
    }
}
