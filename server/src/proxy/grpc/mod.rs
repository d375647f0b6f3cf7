//! `kvd grpc-proxy`: one gRPC server before a cluster that saves it work.
//!
//! Watchers of one range share a watch of the cluster, renewals of one lease that meet share one, and serializable reads are
//! answered from memory. What is shared or kept is never given to a caller with another token, so that permissions hold.
//! All other calls pass as they are. Nothing is stored; a proxy may go at any time, its clients reconnect.
//! Source: etcd 3.7, server/proxy/grpcproxy.

mod cache;
mod cluster;
mod kv;
mod lease;
mod metrics;
mod namespace;
mod order;
mod pages;
mod upstream;
mod watch;

use std::convert::Infallible;
use std::future::Future;
use std::net::SocketAddr;
use std::pin::Pin;
use std::sync::Arc;

use ::http::header::CONTENT_TYPE;
use ::http::{Request, Response};
use anyhow::{Context, bail, ensure};
use hyper::body::Incoming;
use kv_proto::etcdserverpb::cluster_server::ClusterServer;
use kv_proto::etcdserverpb::kv_server::KvServer;
use kv_proto::etcdserverpb::lease_server::LeaseServer;
use kv_proto::etcdserverpb::watch_server::WatchServer;
use tokio_util::sync::CancellationToken;
use tonic::body::Body;
use tower::Service;

use self::cache::Cache;
use self::cluster::ClusterProxy;
use self::kv::KvProxy;
use self::lease::LeaseProxy;
use self::metrics::Metrics;
use self::namespace::Namespace;
use self::pages::Pages;
use self::upstream::Upstream;
use self::watch::{WatchProxy, Watches};
use super::options::GrpcProxyOptions;
use crate::config::{Config, TlsFiles};
use crate::listener::{self, Http2Settings, Listener};
use crate::tls::TlsAcceptor;

type Answer = Pin<Box<dyn Future<Output = Result<Response<Body>, Infallible>> + Send>>;

/// A proxy that listens.
pub(crate) struct GrpcProxy {
    listener: Listener,
    /// `--metrics-addr`.
    pages_listener: Option<Listener>,
    tls: Option<Arc<TlsAcceptor>>,
    services: Services,
    settings: Http2Settings,
    upstream: Upstream,
    options: GrpcProxyOptions,
}

/// What a connection is served with.
#[derive(Clone)]
struct Services {
    kv: KvServer<KvProxy>,
    watch: WatchServer<WatchProxy>,
    lease: LeaseServer<LeaseProxy>,
    cluster: ClusterServer<ClusterProxy>,
    upstream: Upstream,
    cache: Arc<Cache>,
    pages: Arc<Pages>,
    /// Of the listener for pages alone.
    pages_only: bool,
}

impl GrpcProxy {
    /// Checks the options and listens; the cluster need not be there yet.
    pub(crate) async fn bind(options: GrpcProxyOptions) -> anyhow::Result<GrpcProxy> {
        check(&options)?;
        let tls = tls(&options)?;
        let upstream = Upstream::new(&options).await?;
        let metrics = Arc::new(Metrics::new());
        let namespace = Namespace::new(&options.namespace);
        let cache = Arc::new(Cache::new(metrics.clone()));
        let watches = Watches::new(upstream.clone(), namespace.clone(), metrics.clone());
        let receive_max = options.max_recv_bytes;
        macro_rules! serve {
            ($server:ident, $service:expr) => {
                $server::new($service)
                    .max_decoding_message_size(receive_max)
                    .max_encoding_message_size(i32::MAX as usize)
            };
        }
        let services = Services {
            kv: serve!(
                KvServer,
                KvProxy::new(upstream.clone(), namespace.clone(), cache.clone())
            ),
            watch: serve!(WatchServer, WatchProxy::new(watches)),
            lease: serve!(
                LeaseServer,
                LeaseProxy::new(upstream.clone(), namespace, cache.clone())
            ),
            cluster: serve!(ClusterServer, ClusterProxy::new(upstream.clone(), &options)),
            pages: Arc::new(Pages::new(upstream.clone(), metrics)),
            upstream: upstream.clone(),
            cache,
            pages_only: false,
        };
        let listener = bind(&options.listen_addr).await?;
        let pages_listener = match options.metrics_addr.as_str() {
            "" => None,
            address => Some(bind(address).await?),
        };
        let settings = Http2Settings {
            max_concurrent_streams: options.max_concurrent_streams,
            keepalive_interval: options.grpc_keepalive_interval,
            keepalive_timeout: options.grpc_keepalive_timeout,
        };
        Ok(GrpcProxy {
            listener,
            pages_listener,
            tls,
            services,
            settings,
            upstream,
            options,
        })
    }

    /// Serves for ever.
    pub(crate) async fn run(self) {
        self.upstream.order.learn(self.upstream.client()).await;
        tracing::info!(address = self.options.listen_addr, "started gRPC proxy");
        if !self.options.resolver_prefix.is_empty() {
            tokio::spawn(cluster::register(self.upstream, self.options));
        }
        if let Some(listener) = self.pages_listener {
            let services = Services {
                pages_only: true,
                ..self.services.clone()
            };
            tokio::spawn(accept(listener, None, services, self.settings));
        }
        accept(self.listener, self.tls, self.services, self.settings).await;
    }
}

async fn accept(
    listener: Listener,
    tls: Option<Arc<TlsAcceptor>>,
    services: Services,
    settings: Http2Settings,
) {
    loop {
        match listener.accept().await {
            Ok(socket) => {
                let stop = CancellationToken::new();
                let (tls, services) = (tls.clone(), services.clone());
                tokio::spawn(listener::serve_connection(
                    socket, tls, services, settings, stop,
                ));
            }
            Err(error) => {
                // Out of descriptors, or the peer was quick to leave: neither ends the listener.
                tracing::warn!(%error, "could not accept a connection");
                tokio::time::sleep(std::time::Duration::from_millis(10)).await;
            }
        }
    }
}

impl listener::Introduced for Services {
    /// Members are asked with the proxy's own certificate, so callers are known by their tokens.
    fn introduce(&mut self, _common_name: String) {}
}

impl hyper::service::Service<Request<Incoming>> for Services {
    type Response = Response<Body>;
    type Error = Infallible;
    type Future = Answer;

    fn call(&self, request: Request<Incoming>) -> Answer {
        let is_grpc = request
            .headers()
            .get(CONTENT_TYPE)
            .is_some_and(|value| value.as_bytes().starts_with(b"application/grpc"));
        if !is_grpc || self.pages_only {
            let pages = self.pages.clone();
            return Box::pin(async move { Ok(pages.answer(request).await) });
        }
        let path = request.uri().path();
        let service = path.split('/').nth(1).unwrap_or_default();
        match service {
            // As long as its answer is, it passes through.
            _ if path == "/etcdserverpb.KV/RangeStream" && !self.kv_is_namespaced() => {
                let upstream = self.upstream.clone();
                Box::pin(async move { Ok(upstream.pass(request).await) })
            }
            "etcdserverpb.KV" => self.kv.clone().call(request),
            "etcdserverpb.Watch" => self.watch.clone().call(request),
            "etcdserverpb.Lease" => self.lease.clone().call(request),
            "etcdserverpb.Cluster" => self.cluster.clone().call(request),
            "etcdserverpb.Auth" => {
                let (upstream, cache) = (self.upstream.clone(), self.cache.clone());
                Box::pin(async move {
                    cache.clear();
                    let answer = upstream.pass(request).await;
                    // What was answered meanwhile may be of the time before.
                    cache.clear();
                    Ok(answer)
                })
            }
            _ => {
                let upstream = self.upstream.clone();
                Box::pin(async move { Ok(upstream.pass(request).await) })
            }
        }
    }
}

impl Services {
    fn kv_is_namespaced(&self) -> bool {
        self.upstream.is_namespaced
    }
}

async fn bind(address: &str) -> anyhow::Result<Listener> {
    let address = address
        .strip_prefix("http://")
        .unwrap_or(address)
        .to_owned();
    let resolved: Vec<SocketAddr> = tokio::net::lookup_host(&address)
        .await
        .with_context(|| format!("cannot resolve the address {address}"))?
        .collect();
    let Some(first) = resolved.first() else {
        bail!("{address} has no address");
    };
    Ok(Listener::bind_tcp(*first).await?)
}

/// What etcd's proxy refuses, and what this one does not offer.
fn check(options: &GrpcProxyOptions) -> anyhow::Result<()> {
    ensure!(
        options.resolver_prefix.is_empty() || options.resolver_ttl >= 1,
        "invalid resolver-ttl {}: --resolver-prefix needs a time of at least a second",
        options.resolver_ttl
    );
    ensure!(
        !options.resolver_prefix.is_empty() || options.resolver_ttl == 0,
        "invalid resolver-prefix \"\": --resolver-ttl is for a proxy that registers itself"
    );
    ensure!(
        options.resolver_prefix.is_empty() || !options.advertise_client_url.is_empty(),
        "invalid advertise-client-url \"\": a proxy that registers itself needs it"
    );
    let not_offered = [
        ("--auto-tls", options.auto_tls),
        (
            "--experimental-leasing-prefix",
            !options.experimental_leasing_prefix.is_empty(),
        ),
        ("--enable-pprof", options.enable_pprof),
    ];
    for (flag, given) in not_offered {
        ensure!(!given, "{flag} is not offered by this proxy; remove it");
    }
    Ok(())
}

/// The certificates that clients see.
fn tls(options: &GrpcProxyOptions) -> anyhow::Result<Option<Arc<TlsAcceptor>>> {
    let path = |text: &String| (!text.is_empty()).then(|| text.into());
    let files = TlsFiles {
        cert_file: path(&options.cert_file),
        key_file: path(&options.key_file),
        trusted_ca_file: path(&options.trusted_ca_file),
        crl_file: path(&options.client_crl_file),
        // Whoever names an authority wants clients with its certificates. Source: etcd 3.7, newTLS.
        client_cert_auth: !options.trusted_ca_file.is_empty(),
        ..Default::default()
    };
    if files.cert_file.is_none() && files.key_file.is_none() {
        ensure!(
            files.trusted_ca_file.is_none(),
            "--trusted-ca-file needs --cert-file and --key-file"
        );
        return Ok(None);
    }
    let config = Config {
        client_tls: files,
        ..Default::default()
    };
    let acceptor = TlsAcceptor::for_clients(&config)?;
    Ok(Some(Arc::new(acceptor)))
}
