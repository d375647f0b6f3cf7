//! The pages of the proxy: `/metrics` of a member, its own under `/proxy/metrics`, and whether both work.
//!
//! Source: etcd 3.7, grpcproxy metrics and health.

use std::sync::Arc;
use std::time::Duration;

use ::http::header::CONTENT_TYPE;
use ::http::{HeaderValue, Method, Request, Response, StatusCode};
use hyper::body::Incoming;
use kv_proto::etcdserverpb::{RangeRequest, WatchCreateRequest};
use tokio::time::timeout;
use tonic::body::Body;

use super::metrics::Metrics;
use super::upstream::Upstream;
use crate::http::{Answer, method_not_allowed, text, typed};

/// What the cluster may take to answer a read. Source: etcd 3.7.
const READ_MAX: Duration = Duration::from_secs(1);
/// What it may take to open a watch. Source: etcd 3.7.
const WATCH_MAX: Duration = Duration::from_secs(3);

/// All pages.
pub(super) struct Pages {
    upstream: Upstream,
    metrics: Arc<Metrics>,
}

impl Pages {
    pub(super) fn new(upstream: Upstream, metrics: Arc<Metrics>) -> Pages {
        Pages { upstream, metrics }
    }

    pub(super) async fn answer(&self, request: Request<Incoming>) -> Response<Body> {
        let is_get = request.method() == Method::GET;
        let answer = match request.uri().path() {
            "/health" | "/proxy/health" if !is_get => method_not_allowed(),
            "/health" => health(self.read().await),
            "/proxy/health" => health(match self.read().await {
                Ok(()) => self.watch().await,
                failed => failed,
            }),
            "/metrics" => self.of_a_member().await,
            "/proxy/metrics" => typed("text/plain; version=0.0.4", self.metrics.text()),
            _ => text(StatusCode::NOT_FOUND, "404 page not found\n"),
        };
        answer.map(Body::new)
    }

    async fn read(&self) -> Result<(), String> {
        let request = RangeRequest {
            key: "a".into(),
            ..Default::default()
        };
        match timeout(READ_MAX, self.upstream.client().range(request)).await {
            Ok(Ok(_)) => Ok(()),
            Ok(Err(kv_client::Error::Server { message, .. }))
                if message == "etcdserver: permission denied" =>
            {
                Ok(())
            }
            Ok(Err(error)) => Err(format!("GET ERROR:{error}")),
            Err(_) => Err("GET ERROR:context deadline exceeded".to_owned()),
        }
    }

    /// Whether the cluster opens a watch; that it tells where it stands shows it.
    async fn watch(&self) -> Result<(), String> {
        let mut watcher = self.upstream.client().watch(WatchCreateRequest {
            key: "a".into(),
            ..Default::default()
        });
        let opened = async { watcher.opened().await.unwrap_or(false) };
        match timeout(WATCH_MAX, opened).await {
            Ok(true) => Ok(()),
            _ => Err("WATCH TIMEOUT".to_owned()),
        }
    }

    async fn of_a_member(&self) -> Answer {
        match self.upstream.client().http_get("/metrics").await {
            Ok(page) => {
                let mut answer = Answer::new(page.into());
                answer.headers_mut().insert(
                    CONTENT_TYPE,
                    HeaderValue::from_static("text/plain; version=0.0.4"),
                );
                answer
            }
            Err(error) => {
                tracing::warn!(%error, "could not read a member's metrics");
                text(StatusCode::INTERNAL_SERVER_ERROR, "Internal server error\n")
            }
        }
    }
}

fn health(checked: Result<(), String>) -> Answer {
    match checked {
        Ok(()) => typed(
            "text/plain; charset=utf-8",
            "{\"health\":\"true\",\"reason\":\"\"}",
        ),
        Err(reason) => {
            let reason = serde_json::Value::String(reason);
            let body = format!("{{\"health\":\"false\",\"reason\":{reason}}}\n");
            text(StatusCode::SERVICE_UNAVAILABLE, body)
        }
    }
}
