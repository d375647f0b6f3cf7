//! The HTTP pages beside gRPC: health, version, metrics, debug variables, and the rules every request passes first.
//!
//! [`Pages::answer`] takes the head of a request and returns the whole answer, so any HTTP server can carry it. The JSON
//! gateway ([`gateway`]) is not a page; it shares [`Front`]. Bodies and headers are etcd's to the byte, since probes and scripts compare
//! them. Which paths exist depends on the [`Listener`].
//! Source: etcd 3.7.1, server/etcdserver/api/etcdhttp and server/embed/serve.go; answers compared with a running etcd.

mod debug;
mod front;
pub mod gateway;
mod health;
mod metrics;
mod version;

use std::future::Future;
use std::sync::Arc;

use axum::extract::Query;
use bytes::Bytes;
use http::header::{ALLOW, CONTENT_TYPE, X_CONTENT_TYPE_OPTIONS};
use http::{HeaderValue, Method, Response, StatusCode, Uri};
use http_body_util::Full;
use kv_proto::etcdserverpb::AlarmType;

pub use self::front::Front;
use crate::metrics::Metrics;

/// A complete answer.
pub type Answer = Response<Full<Bytes>>;

/// What the pages need to know of the member. An error's text is shown to whoever asked.
pub trait HealthSource: Send + Sync + 'static {
    /// Reads from this member's own store.
    fn serializable_read(&self) -> impl Future<Output = Result<(), String>> + Send;

    /// Reads what a quorum confirms, within the request timeout.
    fn linearizable_read(&self) -> impl Future<Output = Result<(), String>> + Send;

    /// Whether this member knows a leader.
    fn has_leader(&self) -> bool;

    /// Whether this member is a learner.
    fn is_learner(&self) -> bool;

    /// Active alarms of any member, in the order of their numbers.
    fn alarms(&self) -> Vec<AlarmType>;

    /// Versions that the cluster agreed on.
    fn versions(&self) -> Versions;

    /// The state of Raft, for `/debug/vars`.
    fn raft_status(&self) -> RaftStatus;
}

/// Versions as `/version` shows them.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Versions {
    /// The cluster version, such as `3.7.0`; `None` until it is decided.
    pub cluster: Option<String>,
    /// The storage version, such as `3.7.0`; `None` until it is known.
    pub storage: Option<String>,
}

/// The state of Raft as `/debug/vars` shows it. Zero stands for nobody.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct RaftStatus {
    /// This member.
    pub id: u64,
    /// The current term.
    pub term: u64,
    /// Whom this member follows in the term, as its vote.
    pub vote: u64,
    /// The last committed index.
    pub commit: u64,
    /// The leader.
    pub leader: u64,
    /// `StateFollower`, `StateCandidate`, `StateLeader` or `StatePreCandidate`.
    pub state: &'static str,
    /// The last applied index.
    pub applied: u64,
}

/// What a listener serves.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Listener {
    /// `--listen-client-urls` and `--listen-client-http-urls`, without TLS.
    Client,
    /// The same with TLS: the Host header is not checked, since a browser could not be led here by DNS alone.
    ClientTls,
    /// `--listen-metrics-urls`: metrics and health only, and no rules for browsers.
    Metrics,
}

/// All pages of a member.
pub struct Pages<S> {
    source: Arc<S>,
    metrics: Arc<Metrics>,
    front: Front,
}

impl<S: HealthSource> Pages<S> {
    /// Pages that show `source` and `metrics`, behind the rules of `front`.
    pub fn new(source: Arc<S>, metrics: Arc<Metrics>, front: Front) -> Pages<S> {
        Pages {
            source,
            metrics,
            front,
        }
    }

    /// The rules that requests to the gateway pass as well.
    pub fn front(&self) -> &Front {
        &self.front
    }

    /// Answers one request. Bodies of requests are never read. `/v3/` is the gateway's: here it is an unknown path.
    pub async fn answer(&self, listener: Listener, request: &http::request::Parts) -> Answer {
        if listener == Listener::Metrics {
            return self.page(listener, &request.method, &request.uri).await;
        }
        if let Some(refusal) = self.front.refuse(listener, request) {
            return refusal;
        }
        let mut answer = if request.method == Method::OPTIONS {
            Answer::default()
        } else {
            self.page(listener, &request.method, &request.uri).await
        };
        self.front
            .allow_origin(&request.headers, answer.headers_mut());
        answer
    }

    async fn page(&self, listener: Listener, method: &Method, uri: &Uri) -> Answer {
        match uri.path() {
            "/metrics" => self.metrics_page().await,
            "/health" => get_only(method, self.health_page(uri)).await,
            "/livez" => get_only(method, self.check_page(health::LIVEZ, uri)).await,
            "/readyz" => get_only(method, self.check_page(health::READYZ, uri)).await,
            "/version" if listener != Listener::Metrics => {
                get_only(method, self.version_page()).await
            }
            "/debug/vars" if listener != Listener::Metrics => {
                get_only(method, self.debug_page()).await
            }
            path => {
                let named = path
                    .strip_prefix("/livez/")
                    .map(|name| (health::LIVEZ, name));
                let named = named.or_else(|| {
                    path.strip_prefix("/readyz/")
                        .map(|name| (health::READYZ, name))
                });
                match named.and_then(|(kind, name)| Some((kind, kind.find(name)?))) {
                    Some((kind, check)) => {
                        get_only(method, self.one_check_page(kind, check, uri)).await
                    }
                    None => text(StatusCode::NOT_FOUND, "404 page not found\n"),
                }
            }
        }
    }
}

/// The page for GET, refusal for every other method.
async fn get_only(method: &Method, page: impl Future<Output = Answer>) -> Answer {
    if method == Method::GET {
        return page.await;
    }
    method_not_allowed()
}

/// The refusal of every method but GET.
pub(crate) fn method_not_allowed() -> Answer {
    let mut answer = text(StatusCode::METHOD_NOT_ALLOWED, "Method Not Allowed\n");
    answer
        .headers_mut()
        .insert(ALLOW, HeaderValue::from_static("GET"));
    answer
}

/// A text that browsers must not take for anything else.
pub(crate) fn text(status: StatusCode, body: impl Into<Bytes>) -> Answer {
    let mut answer = typed("text/plain; charset=utf-8", body);
    *answer.status_mut() = status;
    answer
        .headers_mut()
        .insert(X_CONTENT_TYPE_OPTIONS, HeaderValue::from_static("nosniff"));
    answer
}

/// An answer with the given type of content.
pub(crate) fn typed(content_type: &'static str, body: impl Into<Bytes>) -> Answer {
    let mut answer = Answer::new(Full::new(body.into()));
    answer
        .headers_mut()
        .insert(CONTENT_TYPE, HeaderValue::from_static(content_type));
    answer
}

/// Parameters of the query in their order; a malformed query has none.
fn parameters(uri: &Uri) -> Vec<(String, String)> {
    Query::try_from_uri(uri)
        .map(|Query(parameters)| parameters)
        .unwrap_or_default()
}

#[cfg(test)]
mod tests;
