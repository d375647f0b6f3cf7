//! The Watch service: a client's requests go to its stream of watchers, whose responses are pulled by the connection.
//!
//! Responses are written as bytes here rather than through tonic's encoder: the events of a revision are encoded once
//! for all watchers, and what a stream has ready goes out as one piece of many gRPC messages.

use std::convert::Infallible;
use std::pin::Pin;
use std::sync::Arc;

use ::http::header::CONTENT_TYPE;
use ::http::{HeaderMap, HeaderValue, Request, Response};
use bytes::{BufMut, Bytes, BytesMut};
use futures_util::stream::unfold;
use http_body::{Body as HttpBody, Frame};
use http_body_util::StreamBody;
use kv_mvcc::watch::{StreamOptions, WatchCreate, WatchOutput, WatchStream};
use kv_proto::etcdserverpb::watch_request::RequestUnion;
use kv_proto::etcdserverpb::{ResponseHeader, WatchCreateRequest, WatchRequest};
use tokio_util::sync::{CancellationToken, DropGuard};
use tonic::body::Body;
use tonic::{Status, Streaming};
use tonic_prost::ProstDecoder;
use tower::BoxError;

use super::status::{watch_refusal, with_grpc_go_texts};
use super::{leader_lost, requires_leader};
use crate::Error;
use crate::auth::{Access, Credentials};
use crate::listener;
use crate::member::Member;

/// A response at or above the request limit plus this is split for watchers that allow it. Source: etcd v3.7.
const FRAGMENT_OVERHEAD_BYTES: usize = 512 * 1024;
/// Messages are gathered up to this size before they go to the connection; one message may be larger.
const GATHER_BYTES_MAX: usize = 32 * 1024;
/// Encoded events from this size on are handed on as they are instead of being copied behind their message's head.
const SHARE_BYTES_MIN: usize = 16 * 1024;
/// Most bytes of one message. Source: etcd v3.7, the limit of what its server sends.
const MESSAGE_BYTES_MAX: usize = i32::MAX as usize;
/// What an empty key of a watch stands for.
const FIRST_KEY: &[u8] = b"\0";
/// The gRPC prefix of a message: not compressed, and its length.
const GRPC_PREFIX_BYTES: usize = 5;

/// The service over a member.
#[derive(Clone)]
pub(crate) struct WatchService(pub(crate) Arc<Member>);

impl WatchService {
    /// Answers the one method of the service, `Watch`. Messages above `receive_max` bytes end the stream.
    pub(crate) fn watch<B>(&self, request: Request<B>, receive_max: usize) -> Response<Body>
    where
        B: HttpBody + Send + 'static,
        B::Error: Into<BoxError>,
    {
        let member = self.0.clone();
        let (head, body) = request.into_parts();
        let requests =
            Streaming::new_request(ProstDecoder::default(), body, None, Some(receive_max));
        let options = StreamOptions {
            spawn: Arc::new(|job| {
                tokio::task::spawn_blocking(job);
            }),
            wake_group: listener::wake_group(),
            progress_interval: member.config.watch_progress_interval(),
            fragment_bytes_min: member.config.max_request_bytes as usize + FRAGMENT_OVERHEAD_BYTES,
            header: member.header(i64::MAX),
        };
        let stream = Arc::new(
            member
                .store
                .watch_hub()
                .open_stream(member.store.clone(), options),
        );
        let ended = CancellationToken::new();
        let creates = Creates {
            member: member.clone(),
            credentials: Credentials::of(&head.headers, &head.extensions),
            stream: stream.clone(),
        };
        let failed = tokio::spawn(read_requests(requests, creates, ended.clone()));
        let leader_lost = Box::pin(leader_lost(member.clone(), requires_leader(&head.headers)));
        let responses = Responses {
            member,
            stream,
            leader_lost,
            failed: Some(failed),
            gathered: BytesMut::new(),
            shared: None,
            _ended: ended.drop_guard(),
        };
        let body = StreamBody::new(unfold(Some(responses), Responses::next));
        let mut response = Response::new(Body::new(body));
        response
            .headers_mut()
            .insert(CONTENT_TYPE, HeaderValue::from_static("application/grpc"));
        response
    }
}

/// The response side of one client stream; dropping it ends the request side too.
struct Responses {
    member: Arc<Member>,
    stream: Arc<WatchStream>,
    leader_lost: Pin<Box<dyn Future<Output = ()> + Send>>,
    /// Why no more requests come: `None` when the client only closed its side.
    failed: Option<tokio::task::JoinHandle<Option<Status>>>,
    /// Messages on their way to the connection; its memory is used again once they are sent.
    gathered: BytesMut,
    /// The end of the last gathered message: large events that are not copied.
    shared: Option<Bytes>,
    _ended: DropGuard,
}

type DataFrame = Result<Frame<Bytes>, Infallible>;

impl Responses {
    async fn next(state: Option<Responses>) -> Option<(DataFrame, Option<Responses>)> {
        let mut state = state?;
        let status = loop {
            if state.gathered.is_empty()
                && let Some(events) = state.shared.take()
            {
                return Some((Ok(Frame::data(events)), Some(state)));
            }
            // While there is something to send, nothing else is looked at.
            match state.gather() {
                Ok(true) => {
                    let messages = state.gathered.split().freeze();
                    return Some((Ok(Frame::data(messages)), Some(state)));
                }
                Ok(false) => {}
                Err(status) => break status,
            }
            let failed = async {
                match &mut state.failed {
                    Some(task) => task.await.unwrap_or(None),
                    None => std::future::pending().await,
                }
            };
            tokio::select! {
                output = state.stream.next() => match output {
                    Ok(output) => {
                        let header = state.member.header(output.revision);
                        if let Err(status) = state.append(&output, header) {
                            break status;
                        }
                    }
                    Err(error) => break Error::from(error).into(),
                },
                status = failed => {
                    state.failed = None;
                    if let Some(status) = status {
                        break status;
                    }
                }
                () = &mut state.leader_lost => break Error::NoLeader.into(),
                () = state.member.stopping.cancelled() => break Error::Stopped.into(),
            }
        };
        Some((Ok(Frame::trailers(trailers(&status))), None))
    }

    /// Takes what the stream has ready; whether there is anything to send.
    fn gather(&mut self) -> Result<bool, Status> {
        let header = self.member.header(0);
        while self.shared.is_none() && self.gathered.len() < GATHER_BYTES_MAX {
            match self.stream.try_next() {
                Ok(Some(output)) => self.append(&output, header)?,
                Ok(None) => break,
                // It is said again when what came before is sent.
                Err(_) if !self.gathered.is_empty() => break,
                Err(error) => return Err(Error::from(error).into()),
            }
        }
        Ok(!self.gathered.is_empty())
    }

    /// Writes one message with its prefix. One that gRPC cannot carry ends the stream: the client asks again, with fragments.
    fn append(&mut self, output: &WatchOutput, header: ResponseHeader) -> Result<(), Status> {
        let events = output
            .events
            .as_ref()
            .map(|batch| batch.frames())
            .unwrap_or_default();
        let start = self.gathered.len();
        self.gathered.put_bytes(0, GRPC_PREFIX_BYTES);
        output.encode_head(&header, &mut self.gathered);
        let shared = events.len() >= SHARE_BYTES_MIN;
        if !shared {
            self.gathered.put_slice(&events);
        }
        let in_place = self.gathered.len() - start - GRPC_PREFIX_BYTES;
        let message_len = in_place + if shared { events.len() } else { 0 };
        // One deletion of everything with the values before it can be that large.
        if message_len > MESSAGE_BYTES_MAX {
            return Err(Status::resource_exhausted(format!(
                "trying to send message larger than max ({message_len} vs. {MESSAGE_BYTES_MAX})"
            )));
        }
        self.gathered[start + 1..start + GRPC_PREFIX_BYTES]
            .copy_from_slice(&(message_len as u32).to_be_bytes());
        self.shared = shared.then_some(events);
        Ok(())
    }
}

/// How the stream ends, as gRPC says it.
fn trailers(status: &Status) -> HeaderMap {
    let mut trailers = HeaderMap::new();
    if status.add_header(&mut trailers).is_err() {
        trailers.insert("grpc-status", HeaderValue::from(status.code() as i32));
    }
    trailers
}

/// Creates the watchers of one stream, each if the caller may read what it watches then.
struct Creates {
    member: Arc<Member>,
    credentials: Credentials,
    stream: Arc<WatchStream>,
}

impl Creates {
    async fn create(&self, request: &WatchCreateRequest) {
        // A start that is refused anyway is refused for that.
        if request.start_revision >= 0
            && let Err(error) = self.check(request).await
        {
            self.stream.refuse(watch_refusal(&error));
            return;
        }
        self.stream.create(WatchCreate::from_request(request));
    }

    async fn check(&self, request: &WatchCreateRequest) -> crate::Result<()> {
        let caller = self.member.caller(&self.credentials).await?;
        let key: &[u8] = if request.key.is_empty() {
            FIRST_KEY
        } else {
            &request.key
        };
        let auth = &self.member.auth;
        auth.check_range(&caller, Access::Read, key, &request.range_end)
    }
}

/// Passes the client's requests to its stream until it sends no more.
async fn read_requests(
    mut requests: Streaming<WatchRequest>,
    creates: Creates,
    ended: CancellationToken,
) -> Option<Status> {
    let stream = creates.stream.clone();
    loop {
        let message = tokio::select! {
            message = requests.message() => message,
            () = ended.cancelled() => return None,
        };
        match message {
            Ok(Some(WatchRequest { request_union })) => match request_union {
                Some(RequestUnion::CreateRequest(create)) => {
                    creates.create(&create).await;
                }
                Some(RequestUnion::CancelRequest(cancel)) => stream.cancel(cancel.watch_id),
                Some(RequestUnion::ProgressRequest(_)) => stream.request_progress(),
                None => {}
            },
            // Closing the send side does not end the watch.
            Ok(None) => return None,
            Err(status) => return Some(with_grpc_go_texts(status)),
        }
    }
}
