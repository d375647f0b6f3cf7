//! The JSON gateway's calls: a request becomes a gRPC request to the services of the same process, and the answer JSON.
//!
//! The call takes the way of every gRPC call, so its checks, limits and counters are the same; only who the client is, is
//! never read from its certificate.

use std::convert::Infallible;
use std::sync::Arc;

use ::http::header::CONTENT_TYPE;
use ::http::{HeaderMap, HeaderValue, Method, Request, Response, StatusCode};
use bytes::{Buf, BufMut, Bytes};
use futures_util::stream::unfold;
use http_body::Frame;
use http_body_util::{BodyExt, Full, StreamBody};
use hyper::body::Incoming;
use tokio::sync::mpsc;
use tokio_stream::wrappers::ReceiverStream;
use tonic::body::Body;
use tonic::codec::{DecodeBuf, Decoder};
use tonic::{Code, Status, Streaming};

use super::dispatch::Dispatch;
use super::status::with_grpc_go_texts;
use crate::http::gateway::{self, Binding, Gateway, Kind, Values};
use crate::http::{Front, Listener};

/// A body may be so many times as long as the largest request: JSON is longer than what it says.
const JSON_FACTOR: usize = 8;
/// How much of a body that is too long is read, in times of the limit.
const DRAIN_FACTOR: usize = 4;
/// Requests of a stream that wait for their service.
const REQUESTS_AHEAD: usize = 1;

/// The gateway of a listener.
#[derive(Clone)]
pub(super) struct GatewayService {
    pub(super) gateway: Arc<Gateway>,
    pub(super) front: Front,
    /// The most bytes of a gRPC request.
    pub(super) receive_max: usize,
}

impl GatewayService {
    /// Whether a path is the gateway's.
    pub(super) fn has(path: &str) -> bool {
        path.starts_with("/v3/") || path.starts_with("/v3beta/")
    }

    /// Answers a request of `listener`, whose calls go to `dispatch`.
    pub(super) async fn answer(
        self,
        dispatch: Dispatch,
        listener: Listener,
        request: Request<Incoming>,
    ) -> Response<Body> {
        let (head, body) = request.into_parts();
        if let Some(refusal) = self.front.refuse(listener, &head) {
            return refusal.map(Body::new);
        }
        let mut answer = if head.method == Method::OPTIONS {
            Response::new(Body::empty())
        } else {
            match self.gateway.binding(head.uri.path()) {
                None => gateway::not_found().map(Body::new),
                Some(_) if head.method != Method::POST => {
                    gateway::method_not_allowed().map(Body::new)
                }
                Some(binding) => self
                    .call(dispatch, binding, &head.headers, body)
                    .await
                    .unwrap_or_else(|status| error(&status)),
            }
        };
        self.front.allow_origin(&head.headers, answer.headers_mut());
        answer
    }

    async fn call(
        &self,
        dispatch: Dispatch,
        binding: &Binding,
        headers: &HeaderMap,
        body: Incoming,
    ) -> Result<Response<Body>, Status> {
        let metadata = gateway::metadata(headers)
            .map_err(|error| Status::invalid_argument(error.to_string()))?;
        let body_max = self.receive_max.saturating_mul(JSON_FACTOR);
        let body = match binding.kind {
            Kind::Unary | Kind::ServerStream => {
                let json = whole(body, body_max).await?;
                let message = binding
                    .request(&json)
                    .map_err(|error| Status::invalid_argument(error.to_string()))?;
                Body::new(Full::new(framed(&message)))
            }
            Kind::BidiStream => self.requests(binding.method, body, body_max),
        };
        let mut request = Request::new(body);
        *request.method_mut() = Method::POST;
        *request.uri_mut() = binding
            .method
            .parse()
            .expect("a gRPC method is a path of its own");
        *request.headers_mut() = metadata;
        let response = dispatch
            .grpc(request)
            .await
            .unwrap_or_else(|never| match never {});
        let mut messages = messages(response)?;
        let first = messages.message().await.map_err(with_grpc_go_texts);
        match binding.kind {
            Kind::Unary => {
                let message = first?.ok_or_else(|| Status::internal("no response"))?;
                Ok(json(binding.response(message).map_err(internal)?))
            }
            Kind::ServerStream | Kind::BidiStream => {
                let (gateway, method) = (self.gateway.clone(), binding.method);
                Ok(Stream::answer(gateway, method, messages, first))
            }
        }
    }

    /// The requests of a stream. What cannot be read ends them; the call goes on. Source: grpc-gateway v2.
    fn requests(&self, method: &'static str, mut body: Incoming, body_max: usize) -> Body {
        let (read, requests) = mpsc::channel::<Result<Frame<Bytes>, Infallible>>(REQUESTS_AHEAD);
        let gateway = self.gateway.clone();
        tokio::spawn(async move {
            let binding = gateway.of_method(method);
            let mut values = Values::default();
            loop {
                let frame = tokio::select! {
                    frame = body.frame() => frame,
                    () = read.closed() => return,
                };
                let Some(Ok(frame)) = frame else { return };
                let Ok(piece) = frame.into_data() else {
                    continue;
                };
                values.push(&piece);
                loop {
                    let object = match values.next_object() {
                        Ok(Some(object)) => object,
                        Ok(None) => break,
                        Err(error) => {
                            tracing::debug!(%error, "a stream of requests is not JSON");
                            return;
                        }
                    };
                    let message = match binding.request(&object) {
                        Ok(message) => message,
                        Err(error) => {
                            tracing::debug!(%error, "a request of a stream cannot be read");
                            return;
                        }
                    };
                    if read.send(Ok(Frame::data(framed(&message)))).await.is_err() {
                        return;
                    }
                }
                if values.pending_bytes() > body_max {
                    tracing::debug!("a request of a stream is too long");
                    return;
                }
            }
        });
        Body::new(StreamBody::new(ReceiverStream::new(requests)))
    }
}

/// Responses of a call, to be sent one by one.
struct Stream {
    gateway: Arc<Gateway>,
    method: &'static str,
    messages: Streaming<Bytes>,
}

impl Stream {
    fn answer(
        gateway: Arc<Gateway>,
        method: &'static str,
        messages: Streaming<Bytes>,
        first: Result<Option<Bytes>, Status>,
    ) -> Response<Body> {
        if matches!(first, Ok(None)) {
            return Response::new(Body::empty());
        }
        // Only the first message can still decide about the status.
        let status = match &first {
            Err(status) => gateway::http_status(status.code() as i32),
            Ok(_) => StatusCode::OK,
        };
        let stream = Stream {
            gateway,
            method,
            messages,
        };
        let lines = unfold(Some((stream, Some(first))), |state| async move {
            let (mut stream, first) = state?;
            let message = match first {
                Some(first) => first,
                None => stream.messages.message().await,
            };
            let line = match message {
                Ok(None) => return None,
                Ok(Some(message)) => {
                    let binding = stream.gateway.of_method(stream.method);
                    binding.streamed(message).map_err(internal)
                }
                Err(status) => Err(with_grpc_go_texts(status)),
            };
            Some(match line {
                Ok(line) => (data(line), Some((stream, None))),
                Err(status) => {
                    let line = gateway::streamed_error(status.code() as i32, status.message());
                    (data(line), None)
                }
            })
        });
        let mut answer = Response::new(Body::new(StreamBody::new(lines)));
        *answer.status_mut() = status;
        describe(answer.headers_mut());
        answer
    }
}

fn data(line: Vec<u8>) -> Result<Frame<Bytes>, Infallible> {
    Ok(Frame::data(line.into()))
}

fn json(text: Vec<u8>) -> Response<Body> {
    let mut answer = Response::new(Body::new(Full::new(Bytes::from(text))));
    describe(answer.headers_mut());
    answer
}

fn describe(headers: &mut HeaderMap) {
    headers.insert(CONTENT_TYPE, HeaderValue::from_static(gateway::JSON));
    headers.insert(
        gateway::METADATA_CONTENT_TYPE,
        HeaderValue::from_static("application/grpc"),
    );
}

fn error(status: &Status) -> Response<Body> {
    gateway::error(status.code() as i32, status.message()).map(Body::new)
}

fn internal(error: gateway::JsonError) -> Status {
    Status::internal(error.to_string())
}

/// The whole body, up to `max` bytes.
///
/// The rest of a longer one is read and dropped, up to [`DRAIN_FACTOR`] times the limit: many clients look at the answer only
/// when they have sent everything.
async fn whole(mut body: Incoming, max: usize) -> Result<Vec<u8>, Status> {
    let mut whole = Vec::new();
    let mut received = 0;
    while let Some(frame) = body.frame().await {
        let frame = frame.map_err(|error| Status::invalid_argument(error.to_string()))?;
        let Ok(piece) = frame.into_data() else {
            continue;
        };
        received += piece.len();
        if received <= max {
            whole.extend_from_slice(&piece);
            continue;
        }
        whole = Vec::new();
        if received > max.saturating_mul(DRAIN_FACTOR) {
            break;
        }
    }
    if received > max {
        return Err(Status::resource_exhausted(format!(
            "kvd: the request's body is larger than {max} bytes; raise --max-request-bytes, or send less"
        )));
    }
    Ok(whole)
}

/// A message with its gRPC prefix.
fn framed(message: &[u8]) -> Bytes {
    let mut frame = Vec::with_capacity(5 + message.len());
    frame.put_u8(0);
    // A body's limit is far below 4 GiB.
    frame.put_u32(message.len() as u32);
    frame.put_slice(message);
    frame.into()
}

/// The messages of a response, or the status of one without any.
fn messages(response: Response<Body>) -> Result<Streaming<Bytes>, Status> {
    if let Some(status) = Status::from_header_map(response.headers())
        && status.code() != Code::Ok
    {
        return Err(status);
    }
    let code = response.status();
    Ok(Streaming::new_response(
        Whole,
        response.into_body(),
        code,
        None,
        Some(usize::MAX),
    ))
}

/// Leaves messages as they are.
struct Whole;

impl Decoder for Whole {
    type Item = Bytes;
    type Error = Status;

    fn decode(&mut self, message: &mut DecodeBuf<'_>) -> Result<Option<Bytes>, Status> {
        let length = message.remaining();
        Ok(Some(message.copy_to_bytes(length)))
    }
}
