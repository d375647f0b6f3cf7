//! The client itself: its configuration, its token, and the one path that every unary call takes.

use std::{future::Future, sync::Arc, time::Duration};

use tokio::sync::RwLock;
use tonic::{
    Request, Response, Status,
    metadata::{Ascii, MetadataValue},
    transport::Channel,
};

use crate::{
    Tls,
    endpoints::{Endpoints, is_expired},
    error::{Error, Result},
    retry::{self, Repeat},
};

/// What a page may take beside its connection.
const HTTP_GET_MAX: Duration = Duration::from_secs(5);

/// How a client reaches its cluster.
#[derive(Clone, Debug)]
pub struct Config {
    /// `host:port` or `http(s)://host:port`; the first is tried first.
    pub endpoints: Vec<String>,
    /// The limit of one connection attempt, TLS handshake included, and of getting the first token. Default 2 s.
    pub connect_timeout: Duration,
    /// The limit of one call with all its retries; `None` waits for ever. Default 5 s. Streams have none.
    pub request_timeout: Option<Duration>,
    /// The time between HTTP/2 pings on a busy connection. Default 2 s.
    pub keep_alive_interval: Duration,
    /// How long a ping may stay unanswered before the connection is given up. Default 6 s.
    pub keep_alive_timeout: Duration,
    /// The largest request that is sent. Default 2 MiB.
    pub request_bytes_max: usize,
    /// The largest answer that is taken. Default 2 GiB.
    pub response_bytes_max: usize,
    /// TLS for `https` endpoints and those without a scheme; `None`: plain text unless `https` is written.
    pub tls: Option<Tls>,
    /// Who the client is; `None`: nobody.
    pub credentials: Option<Credentials>,
}

impl Config {
    /// The defaults, for these endpoints.
    pub fn new<I: IntoIterator<Item = S>, S: Into<String>>(endpoints: I) -> Config {
        Config {
            endpoints: endpoints.into_iter().map(Into::into).collect(),
            connect_timeout: Duration::from_secs(2),
            request_timeout: Some(Duration::from_secs(5)),
            keep_alive_interval: Duration::from_secs(2),
            keep_alive_timeout: Duration::from_secs(6),
            request_bytes_max: 2 << 20,
            response_bytes_max: i32::MAX as usize,
            tls: None,
            credentials: None,
        }
    }
}

/// How a client proves who it is.
#[derive(Clone)]
pub enum Credentials {
    /// A name and password; the client asks the server for a token, and again when it expires.
    Password {
        /// The user's name.
        user: String,
        /// The user's password.
        password: String,
    },
    /// A token made elsewhere (a JWT); never renewed.
    Token(String),
}

impl std::fmt::Debug for Credentials {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Credentials::Password { user, .. } => write!(f, "Password({user:?})"),
            Credentials::Token(_) => f.write_str("Token"),
        }
    }
}

/// A client of one cluster; cheap to clone, all clones share connections and token.
#[derive(Clone, Debug)]
pub struct Client {
    shared: Arc<Shared>,
}

#[derive(Debug)]
struct Shared {
    config: Config,
    endpoints: Endpoints,
    token: RwLock<Option<MetadataValue<Ascii>>>,
}

impl Client {
    /// Prepares the endpoints and, if credentials are given, gets a token.
    ///
    /// Without credentials nothing is sent yet. A server without authentication needs no token, so
    /// the client then goes on without one. Errors: bad endpoints or files, or a refused password.
    pub async fn connect(config: Config) -> Result<Client> {
        let endpoints = Endpoints::new(&config)?;
        let client = Client {
            shared: Arc::new(Shared {
                config,
                endpoints,
                token: RwLock::new(None),
            }),
        };
        let token = match &client.shared.config.credentials {
            None => None,
            Some(Credentials::Token(token)) => Some(token.clone()),
            Some(Credentials::Password { user, password }) => {
                client.authenticate(user, password).await?
            }
        };
        client.set_token(token.as_deref()).await?;
        Ok(client)
    }

    /// What this client was made with.
    pub fn config(&self) -> &Config {
        &self.shared.config
    }

    /// The connection in use and its number, for calls that this crate has no method for.
    pub fn channel(&self) -> (usize, Channel) {
        let (at, _, channel) = self.endpoints().current();
        (at, channel)
    }

    /// Goes on from the endpoint of that number to the next one, unless another call already did.
    pub fn leave(&self, endpoint: usize) {
        self.endpoints().move_on(endpoint);
    }

    /// The body of a page of the endpoint in use, such as `/metrics`, by HTTP/1.1. Errors: no connection, or another status than 200.
    pub async fn http_get(&self, path: &str) -> Result<bytes::Bytes> {
        let page = self.endpoints().http_get(path);
        let limit = self.shared.config.connect_timeout + HTTP_GET_MAX;
        match tokio::time::timeout(limit, page).await {
            Ok(page) => page,
            Err(_) => Err(Error::Timeout {
                endpoints: self.endpoints().names(),
                timeout: limit,
                last: None,
            }),
        }
    }

    pub(crate) fn endpoints(&self) -> &Endpoints {
        &self.shared.endpoints
    }

    /// Makes a unary call: picks an endpoint, adds the token, retries as `repeat` allows, within the request timeout.
    pub(crate) async fn call<Q, A, F, Fut>(&self, repeat: Repeat, request: Q, send: F) -> Result<A>
    where
        Q: Clone,
        F: Fn(Channel, Request<Q>) -> Fut,
        Fut: Future<Output = std::result::Result<Response<A>, Status>>,
    {
        self.call_within(self.shared.config.request_timeout, repeat, request, send)
            .await
    }

    pub(crate) async fn call_within<Q, A, F, Fut>(
        &self,
        timeout: Option<Duration>,
        repeat: Repeat,
        request: Q,
        send: F,
    ) -> Result<A>
    where
        Q: Clone,
        F: Fn(Channel, Request<Q>) -> Fut,
        Fut: Future<Output = std::result::Result<Response<A>, Status>>,
    {
        let mut last = None;
        let attempts = self.attempts(repeat, request, send, timeout, &mut last);
        let Some(limit) = timeout else {
            return attempts.await;
        };
        match tokio::time::timeout(limit, attempts).await {
            Ok(result) => result,
            Err(_) => Err(Error::Timeout {
                endpoints: self.endpoints().names(),
                timeout: limit,
                last,
            }),
        }
    }

    async fn attempts<Q, A, F, Fut>(
        &self,
        repeat: Repeat,
        request: Q,
        send: F,
        timeout: Option<Duration>,
        last: &mut Option<Arc<Error>>,
    ) -> Result<A>
    where
        Q: Clone,
        F: Fn(Channel, Request<Q>) -> Fut,
        Fut: Future<Output = std::result::Result<Response<A>, Status>>,
    {
        let mut failed = 0;
        let mut token_renewed = false;
        loop {
            let (at, name, channel) = self.endpoints().current();
            let mut attempt = self.request(request.clone()).await;
            if let Some(timeout) = timeout {
                attempt.set_timeout(timeout);
            }
            let status = match send(channel, attempt).await {
                Ok(response) => return Ok(response.into_inner()),
                Err(status) => status,
            };
            // The connection keeps the request's own limit, and may be the first of us to see that it is over.
            if let Some(timeout) = timeout.filter(|_| is_expired(&status)) {
                return Err(Error::Timeout {
                    endpoints: self.endpoints().names(),
                    timeout,
                    last: last.take(),
                });
            }
            let error = Error::from_status(name, &status);
            if error.wants_new_token() && !token_renewed && self.renew_token().await? {
                token_renewed = true;
                continue;
            }
            if !repeat.allows(&error) {
                return Err(error);
            }
            self.endpoints().move_on(at);
            *last = Some(Arc::new(error));
            failed += 1;
            tokio::time::sleep(retry::pause(failed, self.endpoints().len())).await;
        }
    }

    /// A request with the token, if there is one.
    pub(crate) async fn request<Q>(&self, message: Q) -> Request<Q> {
        let mut request = Request::new(message);
        if let Some(token) = self.shared.token.read().await.clone() {
            request.metadata_mut().insert("token", token);
        }
        request
    }

    /// Gets a new token; `false` if this client has no password to get one with.
    pub(crate) async fn renew_token(&self) -> Result<bool> {
        let Some(Credentials::Password { user, password }) = &self.shared.config.credentials else {
            return Ok(false);
        };
        self.set_token(None).await?;
        let token = Box::pin(self.authenticate(user, password)).await?;
        self.set_token(token.as_deref()).await?;
        Ok(true)
    }

    async fn set_token(&self, token: Option<&str>) -> Result<()> {
        let value = token
            .map(str::parse)
            .transpose()
            .map_err(|_| Error::Server {
                code: tonic::Code::InvalidArgument,
                message: "the token holds characters that no header can carry".to_owned(),
            })?;
        *self.shared.token.write().await = value;
        Ok(())
    }
}
