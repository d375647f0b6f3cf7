//! One request of a connection: to the gRPC service it names, or to the plain HTTP handlers.
//!
//! A service is found by comparing its name, without a router in between. What every gRPC call is checked for
//! is done here: metadata, leader, deadline; and what the generated code and tonic say in their own words is said
//! in grpc-go's, because clients compare texts.

use std::convert::Infallible;
use std::pin::Pin;
use std::sync::Arc;
use std::time::Duration;

use http::header::CONTENT_TYPE;
use http::{HeaderMap, HeaderValue, Request, Response};
use hyper::body::Incoming;
use kv_proto::etcdserverpb::auth_server::AuthServer;
use kv_proto::etcdserverpb::cluster_server::ClusterServer;
use kv_proto::etcdserverpb::kv_server::KvServer;
use kv_proto::etcdserverpb::lease_server::LeaseServer;
use kv_proto::etcdserverpb::maintenance_server::MaintenanceServer;
use kv_proto::etcdserverpb::watch_server::WatchServer;
use kv_proto::health::health_server::HealthServer;
use tonic::body::Body;
use tonic::{Code, Status};
use tower::Service;

use super::auth::AuthService;
use super::cluster::ClusterService;
use super::health::HealthService;
use super::kv::KvService;
use super::lease::LeaseService;
use super::maintenance::MaintenanceService;
use super::status::with_grpc_go_texts;
use super::watch::WatchService;
use crate::Error;
use crate::http::{Front, Listener, Pages};
use crate::member::Member;

type Answer = Pin<Box<dyn Future<Output = Result<Response<Body>, Infallible>> + Send>>;

/// The services of one listener; a clone per connection.
#[derive(Clone)]
pub(crate) struct Dispatch {
    member: Arc<Member>,
    pages: Arc<Pages<Member>>,
    offers: Offers,
    kv: KvServer<KvService>,
    watch: WatchServer<WatchService>,
    lease: LeaseServer<LeaseService>,
    cluster: ClusterServer<ClusterService>,
    maintenance: MaintenanceServer<MaintenanceService>,
    auth: AuthServer<AuthService>,
    health: HealthServer<HealthService>,
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
    /// `first_lease_id` must differ at each start of the process.
    pub(crate) fn new(member: Arc<Member>, first_lease_id: u64) -> Dispatch {
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
        let pages = Pages::new(
            member.clone(),
            member.metrics.clone(),
            Front::new(&member.config),
        );
        Dispatch {
            kv: serve!(KvServer, KvService(member.clone())),
            watch: serve!(WatchServer, WatchService(member.clone())),
            lease: serve!(
                LeaseServer,
                LeaseService::new(member.clone(), first_lease_id)
            ),
            cluster: serve!(ClusterServer, ClusterService(member.clone())),
            maintenance: serve!(MaintenanceServer, MaintenanceService(member.clone())),
            auth: serve!(AuthServer, AuthService(member.clone())),
            health: serve!(HealthServer, HealthService(member.clone())),
            member,
            pages: Arc::new(pages),
            offers: Offers::Grpc,
        }
    }

    /// The same services for another listener.
    pub(crate) fn offering(&self, offers: Offers) -> Dispatch {
        Dispatch {
            offers,
            ..self.clone()
        }
    }

    fn grpc(&mut self, request: Request<Incoming>) -> Answer {
        if let Err(error) = self.admit(request.headers()) {
            return ready(Status::from(error));
        }
        let timeout = grpc_timeout(request.headers());
        let path = request.uri().path();
        let (service, method) = path
            .strip_prefix('/')
            .and_then(|p| p.split_once('/'))
            .unwrap_or((path, ""));
        let method = method.to_owned();
        let (name, answer): (&'static str, Answer) = match service {
            "etcdserverpb.KV" => ("etcdserverpb.KV", self.kv.call(request)),
            "etcdserverpb.Watch" => ("etcdserverpb.Watch", self.watch.call(request)),
            "etcdserverpb.Lease" => ("etcdserverpb.Lease", self.lease.call(request)),
            "etcdserverpb.Cluster" => ("etcdserverpb.Cluster", self.cluster.call(request)),
            "etcdserverpb.Maintenance" => {
                ("etcdserverpb.Maintenance", self.maintenance.call(request))
            }
            "etcdserverpb.Auth" => ("etcdserverpb.Auth", self.auth.call(request)),
            "grpc.health.v1.Health" => ("grpc.health.v1.Health", self.health.call(request)),
            other => return ready(Status::unimplemented(format!("unknown service {other}"))),
        };
        Box::pin(async move {
            let response = match timeout {
                None => answer.await?,
                Some(limit) => match tokio::time::timeout(limit, answer).await {
                    Ok(response) => response?,
                    Err(_) => Status::from(Error::DeadlineExceeded).into_http(),
                },
            };
            Ok(in_grpc_gos_words(response, name, &method))
        })
    }

    fn page(&self, listener: Listener, request: Request<Incoming>) -> Answer {
        let pages = self.pages.clone();
        if request.uri().path() == "/metrics" {
            self.member.refresh_gauges();
        }
        Box::pin(async move {
            let (head, _) = request.into_parts();
            Ok(pages.answer(listener, &head).await.map(Body::new))
        })
    }

    /// What holds for every call. Source: etcd v3.7, v3rpc/interceptor.go.
    fn admit(&self, headers: &HeaderMap) -> crate::Result<()> {
        if let Some(version) = headers.get("client-api-version")
            && std::str::from_utf8(version.as_bytes()).is_err()
        {
            return Err(Error::InvalidClientApiVersion);
        }
        let needs_leader = headers
            .get("hasleader")
            .is_some_and(|v| v.as_bytes() == b"true");
        if needs_leader && !self.member.has_leader() {
            return Err(Error::NoLeader);
        }
        Ok(())
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
            Offers::All(_) | Offers::Grpc if is_grpc => self.clone().grpc(request),
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

/// Replaces what the generated code and tonic answer by themselves.
fn in_grpc_gos_words(response: Response<Body>, service: &str, method: &str) -> Response<Body> {
    let Some(code) = response.headers().get("grpc-status") else {
        return response;
    };
    let has_text = response.headers().contains_key("grpc-message");
    match Code::from_bytes(code.as_bytes()) {
        Code::Unimplemented if !has_text => {
            Status::unimplemented(format!("unknown method {method} for service {service}"))
                .into_http()
        }
        Code::OutOfRange => match Status::from_header_map(response.headers()) {
            Some(status) => with_grpc_go_texts(status).into_http(),
            None => response,
        },
        _ => response,
    }
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
