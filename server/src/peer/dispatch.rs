//! One request on the peer port: gRPC of a member, or a page.

use std::convert::Infallible;
use std::pin::Pin;
use std::sync::Arc;

use http::header::CONTENT_TYPE;
use http::{Request, Response};
use hyper::body::Incoming;
use kv_proto::peerpb::peer_server::PeerServer;
use tonic::Status;
use tonic::body::Body;
use tower::Service;

use super::pages::PeerPages;
use super::service::PeerService;
use crate::listener::Introduced;
use crate::member::Member;

/// Name of the service in the paths of its calls.
const SERVICE: &str = "/kvd.peer.Peer/";

/// What the peer port serves.
#[derive(Clone)]
pub(crate) struct PeerDispatch {
    service: PeerServer<PeerService>,
    pages: Arc<PeerPages>,
}

impl PeerDispatch {
    pub(crate) fn new(service: PeerService, member: Arc<Member>) -> PeerDispatch {
        // One entry may be as large as `--max-request-bytes`.
        let service = PeerServer::new(service)
            .max_decoding_message_size(i32::MAX as usize)
            .max_encoding_message_size(i32::MAX as usize);
        PeerDispatch {
            service,
            pages: Arc::new(PeerPages::new(member)),
        }
    }
}

impl Introduced for PeerDispatch {
    /// Members are known by their handshake.
    fn introduce(&mut self, _common_name: String) {}
}

impl hyper::service::Service<Request<Incoming>> for PeerDispatch {
    type Response = Response<Body>;
    type Error = Infallible;
    type Future = Pin<Box<dyn Future<Output = Result<Response<Body>, Infallible>> + Send>>;

    fn call(&self, request: Request<Incoming>) -> Self::Future {
        let content_type = request.headers().get(CONTENT_TYPE);
        if !content_type.is_some_and(|value| value.as_bytes().starts_with(b"application/grpc")) {
            let pages = self.pages.clone();
            return Box::pin(async move { Ok(pages.answer(request).await.map(Body::new)) });
        }
        let path = request.uri().path();
        if !path.starts_with(SERVICE) {
            let text = format!("{path} is not served on the peer port");
            return Box::pin(std::future::ready(Ok(
                Status::unimplemented(text).into_http()
            )));
        }
        self.service.clone().call(request)
    }
}
