//! One request of a connection: to the gRPC service it names, or to the plain HTTP handlers.
//!
//! A service is found by comparing its name, without a router in between. What every gRPC call is checked for
//! is done here: metadata, leader, deadline; and what the generated code and tonic say in their own words is said
//! in grpc-go's, because clients compare texts.

use std::convert::Infallible;
use std::pin::Pin;
use std::sync::{Arc, OnceLock};
use std::task::{Context, Poll};
use std::time::{Duration, Instant};

use ::http::header::CONTENT_TYPE;
use ::http::{HeaderMap, HeaderValue, Request, Response};
use bytes::Bytes;
use http_body::{Body as HttpBody, Frame};
use hyper::body::Incoming;
use kv_proto::etcdserverpb::auth_server::AuthServer;
use kv_proto::etcdserverpb::cluster_server::ClusterServer;
use kv_proto::etcdserverpb::kv_server::KvServer;
use kv_proto::etcdserverpb::lease_server::LeaseServer;
use kv_proto::etcdserverpb::maintenance_server::MaintenanceServer;
use kv_proto::health::health_server::HealthServer;
use kv_proto::v3electionpb::election_server::ElectionServer;
use kv_proto::v3lockpb::lock_server::LockServer;
use prometheus::IntCounter;
use tonic::body::Body;
use tonic::{Code, Status};
use tower::{BoxError, Service};

use super::auth::AuthService;
use super::cluster::ClusterService;
use super::election::ElectionService;
use super::gateway::GatewayService;
use super::health::HealthService;
use super::inside::Inside;
use super::kv::KvService;
use super::large_range::{InPieces, LargeRange};
use super::lease::LeaseService;
use super::lock::LockService;
use super::maintenance::MaintenanceService;
use super::requires_leader;
use super::status::with_grpc_go_texts;
use super::watch::WatchService;
use crate::Error;
use crate::auth::CommonName;
use crate::http::{Front, Listener, Pages};
use crate::listener::Introduced;
use crate::member::Member;
use crate::metrics::MethodMetrics;

/// What a learner serves; a range only if serializable. Source: etcd v3.7, v3rpc/interceptor.go.
const FOR_LEARNERS: [&str; 3] = [
    "/etcdserverpb.KV/Range",
    "/etcdserverpb.Maintenance/Status",
    "/etcdserverpb.Maintenance/Snapshot",
];

/// The services that [`Services`] has.
const SERVICES: [&str; 9] = [
    "etcdserverpb.KV",
    "etcdserverpb.Watch",
    "etcdserverpb.Lease",
    "etcdserverpb.Cluster",
    "etcdserverpb.Maintenance",
    "etcdserverpb.Auth",
    "v3lockpb.Lock",
    "v3electionpb.Election",
    "grpc.health.v1.Health",
];

type Answer = Pin<Box<dyn Future<Output = Result<Response<Body>, Infallible>> + Send>>;

/// The services behind one listener.
#[derive(Clone)]
pub(crate) struct Dispatch {
    services: Arc<Services>,
    offers: Offers,
    /// The client API version that this connection sends, with its counters; one connection seldom sends two.
    version: Arc<OnceLock<ClientVersion>>,
    /// Whom the certificate of the connection names, under `--client-cert-auth`.
    common_name: Option<CommonName>,
}

/// All services of the member.
struct Services {
    member: Arc<Member>,
    pages: Arc<Pages<Member>>,
    /// Unless `--enable-grpc-gateway=false`.
    gateway: Option<GatewayService>,
    kv: KvServer<KvService>,
    watch: WatchService,
    receive_max: usize,
    lease: LeaseServer<LeaseService>,
    cluster: ClusterServer<ClusterService>,
    maintenance: MaintenanceServer<MaintenanceService>,
    auth: AuthServer<AuthService>,
    lock: LockServer<LockService>,
    election: ElectionServer<ElectionService>,
    health: HealthServer<HealthService>,
}

/// Counters of one client API version.
struct ClientVersion {
    version: HeaderValue,
    unary: IntCounter,
    stream: IntCounter,
}

/// What a listener serves.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Offers {
    /// gRPC and the pages on one port.
    All(Listener),
    /// gRPC only, when the pages have listeners of their own.
    Grpc,
    /// The pages only.
    Pages(Listener),
}

impl Dispatch {
    /// `started_wall_ms` is when the process started.
    pub(crate) fn new(member: Arc<Member>, started_wall_ms: u64) -> Dispatch {
        let receive_max =
            usize::try_from(member.config.grpc_receive_bytes_max()).unwrap_or(usize::MAX);
        // Answers are as large as the data: clients receive up to 2 GiB.
        macro_rules! serve {
            ($server:ident, $service:expr) => {
                $server::new($service)
                    .max_decoding_message_size(receive_max)
                    .max_encoding_message_size(i32::MAX as usize)
            };
        }
        let front = Front::new(&member.config);
        let gateway = member.config.enable_grpc_gateway.then(|| GatewayService {
            gateway: Arc::default(),
            front: front.clone(),
            receive_max,
        });
        let pages = Pages::new(member.clone(), member.metrics.clone(), front);
        let lease = LeaseService::new(member.clone(), started_wall_ms);
        let inside = Inside {
            kv: KvService(member.clone()),
            lease: lease.clone(),
            watch: WatchService(member.clone()),
        };
        let services = Services {
            kv: serve!(KvServer, KvService(member.clone())),
            watch: WatchService(member.clone()),
            receive_max,
            lease: serve!(LeaseServer, lease),
            cluster: serve!(ClusterServer, ClusterService(member.clone())),
            maintenance: serve!(MaintenanceServer, MaintenanceService(member.clone())),
            auth: serve!(AuthServer, AuthService(member.clone())),
            lock: serve!(LockServer, LockService(inside.clone())),
            election: serve!(ElectionServer, ElectionService(inside)),
            health: serve!(HealthServer, HealthService(member.clone())),
            pages: Arc::new(pages),
            gateway,
            member,
        };
        Dispatch {
            services: Arc::new(services),
            offers: Offers::Grpc,
            version: Arc::default(),
            common_name: None,
        }
    }

    /// The same services for another listener.
    pub(crate) fn offering(&self, offers: Offers) -> Dispatch {
        Dispatch {
            offers,
            ..self.clone()
        }
    }

    /// The same services for another connection.
    pub(crate) fn for_connection(&self) -> Dispatch {
        Dispatch {
            version: Arc::default(),
            ..self.clone()
        }
    }

    /// Answers a gRPC request, of a connection or of the gateway.
    pub(super) fn grpc<B>(&self, mut request: Request<B>) -> Answer
    where
        B: HttpBody<Data = Bytes> + Send + 'static,
        B::Error: Into<BoxError> + Send,
    {
        let services = self.services.clone();
        if let Err(error) = self.admit(request.uri().path(), request.headers()) {
            return ready(Status::from(error));
        }
        // Also while auth is off: a stream may still be open when it is on.
        if let Some(common_name) = &self.common_name {
            request.extensions_mut().insert(common_name.clone());
        }
        let path = request.uri().path();
        let (service, name) = path
            .strip_prefix('/')
            .and_then(|p| p.split_once('/'))
            .unwrap_or((path, ""));
        if !SERVICES.contains(&service) {
            return ready(Status::unimplemented(format!("unknown service {service}")));
        }
        let Some(method) = services.member.metrics.grpc.method(path) else {
            let text = format!("unknown method {name} for service {service}");
            return ready(Status::unimplemented(text));
        };
        self.count_version(request.headers(), method.is_unary);
        method.start();
        let started = Instant::now();
        let timeout = grpc_timeout(request.headers());
        let call = Call {
            services: services.clone(),
            path: path.to_owned(),
            started,
        };
        let answer: Answer = match service {
            "etcdserverpb.KV" => {
                request.extensions_mut().insert(InPieces);
                services.kv.clone().call(request)
            }
            "etcdserverpb.Watch" => {
                let response = services.watch.watch(request, services.receive_max);
                Box::pin(std::future::ready(Ok(response)))
            }
            "etcdserverpb.Lease" => services.lease.clone().call(request),
            "etcdserverpb.Cluster" => services.cluster.clone().call(request),
            "etcdserverpb.Maintenance" => services.maintenance.clone().call(request),
            "etcdserverpb.Auth" => services.auth.clone().call(request),
            "v3lockpb.Lock" => services.lock.clone().call(request),
            "v3electionpb.Election" => services.election.clone().call(request),
            "grpc.health.v1.Health" => services.health.clone().call(request),
            _ => unreachable!("{service} is in SERVICES"),
        };
        Box::pin(async move {
            let response = match timeout {
                None => answer.await?,
                Some(limit) => match tokio::time::timeout(limit, answer).await {
                    Ok(response) => response?,
                    Err(_) => Status::from(Error::DeadlineExceeded).into_http(),
                },
            };
            let response = LargeRange::replace_body(response);
            Ok(call.counted(in_grpc_gos_words(response)))
        })
    }

    /// Counts a request under the API version its client announces.
    fn count_version(&self, headers: &HeaderMap, is_unary: bool) {
        let requests = &self.services.member.metrics.server.client_requests;
        let version = headers.get("client-api-version");
        let known = self.version.get_or_init(|| {
            let text = version.map_or("unknown", |v| v.to_str().unwrap_or("unknown"));
            ClientVersion {
                version: version
                    .cloned()
                    .unwrap_or(HeaderValue::from_static("unknown")),
                unary: requests.with_label_values(&["unary", text]),
                stream: requests.with_label_values(&["stream", text]),
            }
        });
        let kind = if is_unary { "unary" } else { "stream" };
        match version {
            Some(version) if *version != known.version => {
                let text = version.to_str().unwrap_or("unknown");
                requests.with_label_values(&[kind, text]).inc();
            }
            _ if is_unary => known.unary.inc(),
            _ => known.stream.inc(),
        }
    }

    fn page(&self, listener: Listener, request: Request<Incoming>) -> Answer {
        if let Some(gateway) = &self.services.gateway
            && listener != Listener::Metrics
            && GatewayService::has(request.uri().path())
        {
            let (gateway, dispatch) = (gateway.clone(), self.clone());
            return Box::pin(async move { Ok(gateway.answer(dispatch, listener, request).await) });
        }
        let pages = self.services.pages.clone();
        if request.uri().path() == "/metrics" {
            self.services.member.refresh_gauges();
        }
        Box::pin(async move {
            let (head, _) = request.into_parts();
            Ok(pages.answer(listener, &head).await.map(Body::new))
        })
    }

    /// What holds for every call. Source: etcd v3.7, v3rpc/interceptor.go.
    fn admit(&self, path: &str, headers: &HeaderMap) -> crate::Result<()> {
        let member = &self.services.member;
        if !FOR_LEARNERS.contains(&path) && member.cluster.is_learner(member.id) {
            return Err(Error::NotSupportedForLearner);
        }
        if let Some(version) = headers.get("client-api-version")
            && std::str::from_utf8(version.as_bytes()).is_err()
        {
            return Err(Error::InvalidClientApiVersion);
        }
        if requires_leader(headers) && !self.services.member.has_leader() {
            return Err(Error::NoLeader);
        }
        Ok(())
    }
}

impl Introduced for Dispatch {
    fn introduce(&mut self, common_name: String) {
        if self.services.member.config.client_tls.client_cert_auth {
            self.common_name = Some(CommonName(common_name.into()));
        }
    }
}

impl hyper::service::Service<Request<Incoming>> for Dispatch {
    type Response = Response<Body>;
    type Error = Infallible;
    type Future = Answer;

    fn call(&self, request: Request<Incoming>) -> Answer {
        let is_grpc = request
            .headers()
            .get(CONTENT_TYPE)
            .is_some_and(is_grpc_content_type);
        match self.offers {
            Offers::All(_) | Offers::Grpc if is_grpc => self.grpc(request),
            Offers::All(listener) | Offers::Pages(listener) => self.page(listener, request),
            Offers::Grpc => ready(Status::internal(
                "kvd: this port speaks gRPC only; HTTP is on --listen-client-http-urls",
            )),
        }
    }
}

fn is_grpc_content_type(value: &HeaderValue) -> bool {
    value.as_bytes().starts_with(b"application/grpc")
}

fn ready(status: Status) -> Answer {
    Box::pin(std::future::ready(Ok(status.into_http())))
}

/// The caller's own limit, from the header `grpc-timeout`. Source: gRPC over HTTP/2.
fn grpc_timeout(headers: &HeaderMap) -> Option<Duration> {
    let value = headers.get("grpc-timeout")?.to_str().ok()?;
    let (digits, unit) = value.split_at_checked(value.len().checked_sub(1)?)?;
    let n: u64 = digits.parse().ok()?;
    match unit {
        "H" => Some(Duration::from_secs(n.saturating_mul(3600))),
        "M" => Some(Duration::from_secs(n.saturating_mul(60))),
        "S" => Some(Duration::from_secs(n)),
        "m" => Some(Duration::from_millis(n)),
        "u" => Some(Duration::from_micros(n)),
        "n" => Some(Duration::from_nanos(n)),
        _ => None,
    }
}

/// Replaces what tonic answers by itself.
fn in_grpc_gos_words(response: Response<Body>) -> Response<Body> {
    if !response.headers().contains_key("grpc-status") {
        return response;
    }
    match Status::from_header_map(response.headers()) {
        Some(status) if status.code() == Code::OutOfRange => with_grpc_go_texts(status).into_http(),
        _ => response,
    }
}

/// A call under way, to be counted when it ends.
struct Call {
    services: Arc<Services>,
    path: String,
    started: Instant,
}

impl Call {
    /// Counts the call now if its status is known, else when the body ends.
    fn counted(self, response: Response<Body>) -> Response<Body> {
        let code = status_code(response.headers());
        let is_unary = self.method().is_some_and(|method| method.is_unary);
        if code.is_some() || is_unary {
            self.finish(code.unwrap_or(Code::Ok));
            return response;
        }
        response.map(|body| {
            Body::new(Counted {
                body,
                call: Some(self),
            })
        })
    }

    fn method(&self) -> Option<&MethodMetrics> {
        self.services.member.metrics.grpc.method(&self.path)
    }

    fn finish(&self, code: Code) {
        let Some(method) = self.method() else { return };
        let took = self.started.elapsed();
        method.finish(code as i32, took);
        if method.is_unary && took > self.services.member.config.warning_unary_request_duration {
            tracing::warn!(
                request = self.path,
                took_ms = took.as_millis() as u64,
                "slow request"
            );
        }
    }
}

/// A stream's body, which says how the call ended in its trailers, or not at all if the client went away.
struct Counted {
    body: Body,
    call: Option<Call>,
}

impl HttpBody for Counted {
    type Data = Bytes;
    type Error = Status;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, Status>>> {
        let frame = std::task::ready!(Pin::new(&mut self.body).poll_frame(cx));
        if let Some(Ok(frame)) = &frame
            && let Some(trailers) = frame.trailers_ref()
            && let Some(call) = self.call.take()
        {
            call.finish(status_code(trailers).unwrap_or(Code::Unknown));
        }
        Poll::Ready(frame)
    }

    fn is_end_stream(&self) -> bool {
        self.body.is_end_stream()
    }
}

impl Drop for Counted {
    fn drop(&mut self) {
        if let Some(call) = self.call.take() {
            call.finish(Code::Cancelled);
        }
    }
}

fn status_code(headers: &HeaderMap) -> Option<Code> {
    headers
        .get("grpc-status")
        .map(|code| Code::from_bytes(code.as_bytes()))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn grpc_timeouts_have_a_unit() {
        let parse = |value: &'static str| {
            let mut headers = HeaderMap::new();
            headers.insert("grpc-timeout", HeaderValue::from_static(value));
            grpc_timeout(&headers)
        };
        assert_eq!(parse("2S"), Some(Duration::from_secs(2)));
        assert_eq!(parse("1500m"), Some(Duration::from_millis(1500)));
        assert_eq!(parse("7u"), Some(Duration::from_micros(7)));
        assert_eq!(parse("7"), None);
        assert_eq!(parse("xS"), None);
    }
}
