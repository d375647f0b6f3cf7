//! The Watch service of the proxy: the streams of clients, whose watchers share watches of the cluster ([`shared`]).
//!
//! A watcher's start is a revision from its creation on: one that watches from now on starts after the revision of a read
//! that a quorum confirms, so whatever was acknowledged before is not seen and whatever comes after is.

mod shared;

use std::collections::HashMap;
use std::pin::Pin;
use std::sync::Arc;

use bytes::Bytes;
use kv_proto::etcdserverpb::kv_client::KvClient;
use kv_proto::etcdserverpb::watch_create_request::FilterType;
use kv_proto::etcdserverpb::watch_request::RequestUnion;
use kv_proto::etcdserverpb::watch_server::Watch;
use kv_proto::etcdserverpb::{
    RangeRequest, ResponseHeader, WatchCreateRequest, WatchRequest, WatchResponse,
};
use tokio::sync::mpsc;
use tokio_stream::wrappers::ReceiverStream;
use tonic::metadata::MetadataMap;
use tonic::{Code, Request, Response, Status, Streaming};

pub(super) use self::shared::Watches;
use self::shared::{Key, Receiver, ReceiverId};
use super::upstream::Caller;

/// Responses that may wait for a client; one that is further behind has to come again.
const RESPONSES_MAX: usize = 1024;
/// The id in responses that belong to no watcher. Source: etcd 3.7.
const NO_WATCH_ID: i64 = -1;

type Answer = Result<WatchResponse, Status>;

/// The service.
#[derive(Clone)]
pub(super) struct WatchProxy(Arc<Watches>);

impl WatchProxy {
    pub(super) fn new(watches: Arc<Watches>) -> WatchProxy {
        WatchProxy(watches)
    }
}

#[tonic::async_trait]
impl Watch for WatchProxy {
    type WatchStream = Pin<Box<dyn tokio_stream::Stream<Item = Answer> + Send>>;

    async fn watch(
        &self,
        request: Request<Streaming<WatchRequest>>,
    ) -> Result<Response<Self::WatchStream>, Status> {
        let (metadata, _, requests) = request.into_parts();
        let (answers, stream) = mpsc::channel(RESPONSES_MAX);
        let client = ClientStream {
            caller: Caller::of(metadata.as_ref()),
            needs_leader: metadata.get("hasleader").is_some_and(|v| v == "true"),
            metadata,
            watches: self.0.clone(),
            answers,
            watchers: HashMap::new(),
            next_id: 0,
        };
        tokio::spawn(client.run(requests));
        Ok(Response::new(Box::pin(ReceiverStream::new(stream))))
    }
}

/// One stream of a client.
struct ClientStream {
    metadata: MetadataMap,
    caller: Caller,
    needs_leader: bool,
    watches: Arc<Watches>,
    answers: mpsc::Sender<Answer>,
    /// Its watchers, by the ids it knows.
    watchers: HashMap<i64, (Key, ReceiverId)>,
    next_id: i64,
}

impl ClientStream {
    async fn run(mut self, mut requests: Streaming<WatchRequest>) {
        loop {
            let message = tokio::select! {
                message = requests.message() => message,
                () = self.answers.closed() => return,
            };
            let answered = match message {
                Ok(Some(WatchRequest { request_union })) => match request_union {
                    Some(RequestUnion::CreateRequest(create)) => self.create(create).await,
                    Some(RequestUnion::CancelRequest(cancel)) => self.cancel(cancel.watch_id).await,
                    // Watchers share what is told of progress; a client has to do with that. Source: etcd 3.7.
                    Some(RequestUnion::ProgressRequest(_)) | None => Ok(()),
                },
                Err(status) => self.answers.send(Err(status)).await,
                // Closing the send side does not end the watch.
                Ok(None) => {
                    self.answers.closed().await;
                    return;
                }
            };
            if answered.is_err() {
                return;
            }
        }
    }

    async fn create(
        &mut self,
        mut request: WatchCreateRequest,
    ) -> Result<(), mpsc::error::SendError<Answer>> {
        if request.key.is_empty() {
            request.key = Bytes::from_static(b"\0");
        }
        let is_empty = !request.range_end.is_empty()
            && request.range_end != b"\0"[..]
            && request.range_end <= request.key;
        if is_empty {
            return self.refuse("mvcc: watcher range is empty").await;
        }
        if request.watch_id != 0 && self.watchers.contains_key(&request.watch_id) {
            return self
                .refuse("mvcc: duplicate watch ID provided on the WatchStream")
                .await;
        }
        let (mut key, mut range_end) = (request.key, request.range_end);
        self.watches.namespace.range(&mut key, &mut range_end);
        let header = match self.now(&key, &range_end).await {
            Ok(header) => header,
            // No refusal of this watch: the client shall open its stream again, as when a member goes away.
            Err(status) if is_passing(&status) => {
                let status = Status::unavailable(status.message());
                return self.answers.send(Err(status)).await;
            }
            Err(status) => return self.refuse(status.message()).await,
        };
        let id = match request.watch_id {
            0 => self.free_id(),
            id => id,
        };
        let start = match request.start_revision {
            0 => header.revision + 1,
            start => start,
        };
        self.answers
            .send(Ok(WatchResponse {
                header: Some(header),
                watch_id: id,
                created: true,
                ..Default::default()
            }))
            .await?;
        let filters = |filter: FilterType| request.filters.contains(&(filter as i32));
        let receiver = Receiver {
            watch_id: id,
            next: start,
            without_puts: filters(FilterType::Noput),
            without_deletes: filters(FilterType::Nodelete),
            prev_kv: request.prev_kv,
            progress: request.progress_notify,
            needs_leader: self.needs_leader,
            answers: self.answers.clone(),
        };
        let of = Key {
            key,
            range_end,
            caller: self.caller.clone(),
        };
        let receiver = self.watches.add(of.clone(), receiver);
        self.watchers.insert(id, (of, receiver));
        Ok(())
    }

    /// The header of a read of the range, which also tells whether the caller may read it.
    async fn now(&self, key: &Bytes, range_end: &Bytes) -> Result<ResponseHeader, Status> {
        let request = RangeRequest {
            key: key.clone(),
            range_end: range_end.clone(),
            limit: 1,
            keys_only: true,
            ..Default::default()
        };
        let send = async |channel, request| KvClient::new(channel).range(request).await;
        let upstream = &self.watches.upstream;
        let response = upstream.call(&self.metadata, request, send).await?;
        Ok(response.into_inner().header.unwrap_or_default())
    }

    fn free_id(&mut self) -> i64 {
        loop {
            let id = self.next_id;
            self.next_id += 1;
            if !self.watchers.contains_key(&id) {
                return id;
            }
        }
    }

    async fn refuse(&self, reason: &str) -> Result<(), mpsc::error::SendError<Answer>> {
        let refusal = WatchResponse {
            header: Some(ResponseHeader::default()),
            watch_id: NO_WATCH_ID,
            created: true,
            canceled: true,
            cancel_reason: reason.to_owned(),
            ..Default::default()
        };
        self.answers.send(Ok(refusal)).await
    }

    async fn cancel(&mut self, id: i64) -> Result<(), mpsc::error::SendError<Answer>> {
        let Some((key, receiver)) = self.watchers.remove(&id) else {
            return Ok(());
        };
        let header = self.watches.remove(&key, receiver);
        let canceled = WatchResponse {
            header: Some(header),
            watch_id: id,
            canceled: true,
            ..Default::default()
        };
        self.answers.send(Ok(canceled)).await
    }
}

impl Drop for ClientStream {
    fn drop(&mut self) {
        for (key, receiver) in self.watchers.values() {
            self.watches.remove(key, *receiver);
        }
    }
}

/// Whether a call failed for the state the cluster is in just now.
fn is_passing(status: &Status) -> bool {
    matches!(
        status.code(),
        Code::Unavailable | Code::DeadlineExceeded | Code::Cancelled | Code::Internal
    )
}
