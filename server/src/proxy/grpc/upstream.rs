//! The cluster behind the proxy.

use std::collections::HashMap;
use std::future::Future;
use std::path::PathBuf;
use std::sync::Arc;

use ::http::{HeaderMap, Request as HttpRequest, Response as HttpResponse};
use anyhow::Context as _;
use hyper::body::Incoming;
use kv_client::{Client, Config, Credentials, Tls};
use kv_proto::etcdserverpb::ResponseHeader;
use parking_lot::Mutex;
use tonic::body::Body;
use tonic::metadata::MetadataMap;
use tonic::transport::Channel;
use tonic::{Request, Response, Status};
use tower::{Service, ServiceExt};

use super::super::discovery::discovered;
use super::super::options::GrpcProxyOptions;
use super::order::{self, ATTEMPTS_PER_MEMBER, Order};

/// Clients with tokens of their own that are kept; they are cheap to make again.
const CLIENTS_MAX: usize = 256;

/// Who a call is from: the token it carries. What one caller got is never given to another.
#[derive(Clone, Debug, Default, PartialEq, Eq, Hash)]
pub(super) struct Caller(Option<String>);

impl Caller {
    /// The sender of these headers.
    pub(super) fn of(headers: &HeaderMap) -> Caller {
        let token = headers
            .get("token")
            .or_else(|| headers.get("authorization"))
            .and_then(|value| value.to_str().ok());
        Caller(token.map(str::to_owned))
    }
}

/// Connections to the members.
#[derive(Clone)]
pub(super) struct Upstream {
    client: Client,
    of_callers: Arc<Mutex<HashMap<Caller, Client>>>,
    pub(super) is_namespaced: bool,
    /// What reads must not fall behind.
    pub(super) order: Arc<Order>,
}

impl Upstream {
    pub(super) async fn new(options: &GrpcProxyOptions) -> anyhow::Result<Upstream> {
        let path = |text: &String| (!text.is_empty()).then(|| PathBuf::from(text));
        let tls = Tls {
            ca_file: path(&options.cacert),
            cert_file: path(&options.cert),
            key_file: path(&options.key),
            skip_verify: options.insecure_skip_tls_verify,
        };
        let has_tls = tls.ca_file.is_some() || tls.cert_file.is_some() || tls.skip_verify;
        let found = discovered(&options.discovery, &options.cacert).await;
        let found = found.context("--discovery-srv")?;
        let mut config = Config::new(found.unwrap_or_else(|| options.endpoints.clone()));
        config.tls = has_tls.then_some(tls);
        config.request_bytes_max = options.max_send_bytes;
        if !options.dial_keepalive_time.is_zero() {
            config.keep_alive_interval = options.dial_keepalive_time;
        }
        config.keep_alive_timeout = options.dial_keepalive_timeout;
        Ok(Upstream {
            client: Client::connect(config).await?,
            of_callers: Arc::default(),
            is_namespaced: !options.namespace.is_empty(),
            order: Arc::new(Order::new(options.experimental_serializable_ordering)),
        })
    }

    /// The proxy's own client, without a token.
    pub(super) fn client(&self) -> &Client {
        &self.client
    }

    /// A client that calls as `caller` does.
    pub(super) async fn client_of(&self, caller: &Caller) -> kv_client::Result<Client> {
        let Some(token) = &caller.0 else {
            return Ok(self.client.clone());
        };
        if let Some(client) = self.of_callers.lock().get(caller) {
            return Ok(client.clone());
        }
        let mut config = self.client.config().clone();
        let bare = token.strip_prefix("Bearer ").unwrap_or(token);
        config.credentials = Some(Credentials::Token(bare.to_owned()));
        let client = Client::connect(config).await?;
        let mut clients = self.of_callers.lock();
        if clients.len() >= CLIENTS_MAX {
            clients.clear();
        }
        clients.insert(caller.clone(), client.clone());
        Ok(client)
    }

    /// Makes a call with the metadata of another, at the next member if one cannot be reached.
    pub(super) async fn call<Q, A, F, Fut>(
        &self,
        metadata: &MetadataMap,
        message: Q,
        send: F,
    ) -> Result<Response<A>, Status>
    where
        Q: Clone,
        F: Fn(Channel, Request<Q>) -> Fut,
        Fut: Future<Output = Result<Response<A>, Status>>,
    {
        let mut unreachable = 0;
        loop {
            let (endpoint, channel) = self.client.channel();
            let request =
                Request::from_parts(metadata.clone(), Default::default(), message.clone());
            match send(channel, request).await {
                Err(status) if kv_client::was_not_sent(&status) => {
                    self.client.leave(endpoint);
                    unreachable += 1;
                    if unreachable >= self.client.config().endpoints.len() {
                        return Err(Status::unavailable(status.message()));
                    }
                }
                answer => return answer,
            }
        }
    }

    /// As [`Upstream::call`], for a read: the next members are asked while answers are older than those before.
    pub(super) async fn read<Q, A, F, Fut>(
        &self,
        metadata: &MetadataMap,
        message: Q,
        header: fn(&A) -> Option<&ResponseHeader>,
        send: F,
    ) -> Result<Response<A>, Status>
    where
        Q: Clone,
        F: Fn(Channel, Request<Q>) -> Fut,
        Fut: Future<Output = Result<Response<A>, Status>>,
    {
        let least = self.order.least();
        for _ in 0..=ATTEMPTS_PER_MEMBER * self.client.config().endpoints.len() {
            let (endpoint, _) = self.client.channel();
            let answer = self.call(metadata, message.clone(), &send).await?;
            let header = header(answer.get_ref());
            if order::revision(header) >= least {
                self.order.see(header);
                return Ok(answer);
            }
            self.client.leave(endpoint);
        }
        Err(order::violated())
    }

    /// Passes a call as it is, requests and answers as they come.
    pub(super) async fn pass(&self, request: HttpRequest<Incoming>) -> HttpResponse<Body> {
        let (endpoint, mut channel) = self.client.channel();
        let request = request.map(Body::new);
        let sent = async { channel.ready().await?.call(request).await };
        match sent.await {
            Ok(response) => response,
            Err(error) => {
                // What was sent of it nobody knows; the caller decides whether to try again.
                self.client.leave(endpoint);
                let status = Status::from_error(Box::new(error));
                Status::unavailable(status.message()).into_http()
            }
        }
    }
}
