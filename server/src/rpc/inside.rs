//! The member's own services, called by another service for the client that asked it.
//!
//! Lock and Election are recipes over keys, leases and watches. They go through the same handlers as a client's calls
//! and with that client's metadata, so that every check of a client's call is made for theirs too. No socket is between.

use std::pin::pin;

use ::http::{Extensions, HeaderMap, Request as HttpRequest};
use bytes::Bytes;
use futures_util::StreamExt;
use http_body_util::Full;
use kv_proto::etcdserverpb::kv_server::Kv;
use kv_proto::etcdserverpb::lease_server::Lease;
use kv_proto::etcdserverpb::watch_request::RequestUnion;
use kv_proto::etcdserverpb::{
    DeleteRangeRequest, DeleteRangeResponse, LeaseGrantRequest, RangeRequest, RangeResponse,
    TxnRequest, TxnResponse, WatchCreateRequest, WatchRequest, WatchResponse,
};
use prost::Message;
use tonic::metadata::MetadataMap;
use tonic::{Code, Request, Response, Status, Streaming};
use tonic_prost::ProstDecoder;

use super::kv::KvService;
use super::lease::LeaseService;
use super::watch::WatchService;

/// The services.
#[derive(Clone)]
pub(super) struct Inside {
    pub(super) kv: KvService,
    pub(super) lease: LeaseService,
    pub(super) watch: WatchService,
}

/// The services as one client calls them.
#[derive(Clone)]
pub(super) struct Caller {
    services: Inside,
    metadata: MetadataMap,
    extensions: Extensions,
}

impl Inside {
    /// The services as the sender of `request` calls them, and what was sent.
    pub(super) fn for_caller<T>(&self, request: Request<T>) -> (Caller, T) {
        let (metadata, extensions, message) = request.into_parts();
        let caller = Caller {
            services: self.clone(),
            metadata,
            extensions,
        };
        (caller, message)
    }
}

impl Caller {
    fn request<T>(&self, message: T) -> Request<T> {
        Request::from_parts(self.metadata.clone(), self.extensions.clone(), message)
    }

    pub(super) async fn range(&self, request: RangeRequest) -> Result<RangeResponse, Status> {
        finish(self.services.kv.range(self.request(request)).await)
    }

    pub(super) async fn txn(&self, request: TxnRequest) -> Result<TxnResponse, Status> {
        finish(self.services.kv.txn(self.request(request)).await)
    }

    pub(super) async fn delete(&self, key: Bytes) -> Result<DeleteRangeResponse, Status> {
        let request = DeleteRangeRequest {
            key,
            ..Default::default()
        };
        finish(self.services.kv.delete_range(self.request(request)).await)
    }

    /// Grants a lease with an id of the member's choice.
    pub(super) async fn grant(&self, ttl: i64) -> Result<i64, Status> {
        let request = LeaseGrantRequest { ttl, id: 0 };
        let granted = finish(self.services.lease.lease_grant(self.request(request)).await);
        Ok(granted?.id)
    }

    /// Opens a watch and returns once it is created. Dropping it cancels it.
    pub(super) async fn watch(&self, create: WatchCreateRequest) -> Result<Watch, Status> {
        let request = WatchRequest {
            request_union: Some(RequestUnion::CreateRequest(create)),
        };
        let body = Full::new(framed(&request));
        let mut call = HttpRequest::new(body);
        let mut headers: HeaderMap = self.metadata.clone().into_headers();
        // Of the call as a whole, which began with a leader and may outwait its loss.
        headers.remove("hasleader");
        *call.headers_mut() = headers;
        *call.extensions_mut() = self.extensions.clone();
        let response = self.services.watch.watch(call, usize::MAX);
        if let Some(status) = Status::from_header_map(response.headers())
            && status.code() != Code::Ok
        {
            return Err(as_etcds_recipes_say(status));
        }
        let code = response.status();
        let body = response.into_body();
        let mut watch = Watch(Streaming::new_response(
            ProstDecoder::default(),
            body,
            code,
            None,
            Some(usize::MAX),
        ));
        match watch.next().await? {
            Next::Events(_) => Ok(watch),
            Next::Compacted => Err(Status::unknown("etcdserver: watch canceled")),
        }
    }
}

/// An open watch of one watcher.
pub(super) struct Watch(Streaming<WatchResponse>);

/// What a watch brings.
pub(super) enum Next {
    /// A response, which may be without events.
    Events(WatchResponse),
    /// The revision it should go on from has been compacted; the watch is over.
    Compacted,
}

impl Watch {
    /// The next response.
    pub(super) async fn next(&mut self) -> Result<Next, Status> {
        let response = pin!(&mut self.0).next().await;
        let response = response
            .unwrap_or_else(|| Err(Status::unknown("lost watcher waiting for delete")))
            .map_err(as_etcds_recipes_say)?;
        if !response.canceled {
            return Ok(Next::Events(response));
        }
        if response.compact_revision != 0 {
            return Ok(Next::Compacted);
        }
        Err(as_etcds_recipes_say(Status::failed_precondition(
            response.cancel_reason,
        )))
    }
}

fn finish<T>(answer: Result<Response<T>, Status>) -> Result<T, Status> {
    answer
        .map(Response::into_inner)
        .map_err(as_etcds_recipes_say)
}

/// etcd runs the recipes over a client of itself, whose errors keep their text and lose their code. Source: etcd v3.7,
/// client/v3 `ContextError` and rpctypes `EtcdError`.
fn as_etcds_recipes_say(status: Status) -> Status {
    if status.message().starts_with("etcdserver: ") || status.message().starts_with("auth: ") {
        return Status::unknown(status.message());
    }
    status
}

/// A message with its gRPC prefix.
fn framed(message: &impl Message) -> Bytes {
    let mut frame = Vec::with_capacity(5 + message.encoded_len());
    frame.push(0);
    frame.extend((message.encoded_len() as u32).to_be_bytes());
    message
        .encode(&mut frame)
        .expect("a vector takes all bytes");
    frame.into()
}
