//! The addresses of a cluster and one lazily made connection to each.
//!
//! Calls stay with the current endpoint; one that failed hands over to the next in the list, round
//! and round. A connection is made by the first call that needs it and again after it broke.

use std::{
    error::Error as _,
    fmt, io,
    sync::{
        Arc,
        atomic::{AtomicUsize, Ordering},
    },
    time::Duration,
};

use bytes::Bytes;
use http::Uri;
use http_body_util::{BodyExt, Empty};
use hyper_util::rt::TokioIo;
use rustls_pki_types::ServerName;
use tokio::{
    io::{AsyncRead, AsyncWrite},
    net::TcpStream,
};
use tokio_rustls::TlsConnector;
use tonic::transport::{Channel, Endpoint};

use crate::{
    client::Config,
    error::{Error, Result},
};

/// Stream and connection windows for HTTP/2; large lists should not wait for window updates.
const STREAM_WINDOW_BYTES: u32 = 1 << 20;
const CONNECTION_WINDOW_BYTES: u32 = 8 << 20;

/// All endpoints of a client, and which one is in use.
#[derive(Debug)]
pub(crate) struct Endpoints {
    all: Vec<(String, Channel, Arc<Target>)>,
    current: AtomicUsize,
}

impl Endpoints {
    /// Prepares a channel for each configured endpoint; connects to none.
    pub(crate) fn new(config: &Config) -> Result<Endpoints> {
        if config.endpoints.is_empty() {
            return Err(Error::NoEndpoints);
        }
        let tls = config
            .tls
            .as_ref()
            .map(|tls| tls.client_config())
            .transpose()?;
        let all = config
            .endpoints
            .iter()
            .map(|endpoint| {
                let (channel, target) = channel(endpoint, tls.clone(), config)?;
                Ok((endpoint.clone(), channel, target))
            })
            .collect::<Result<_>>()?;
        Ok(Endpoints {
            all,
            current: AtomicUsize::new(0),
        })
    }

    /// The endpoint in use: its position, name and channel.
    pub(crate) fn current(&self) -> (usize, &str, Channel) {
        let at = self.current.load(Ordering::Relaxed) % self.all.len();
        let (name, channel, _) = &self.all[at];
        (at, name, channel.clone())
    }

    /// The body of a page of the endpoint in use.
    pub(crate) async fn http_get(&self, path: &str) -> Result<Bytes> {
        let at = self.current.load(Ordering::Relaxed) % self.all.len();
        let (name, _, target) = &self.all[at];
        let unreachable = |reason: String| Error::Unreachable {
            endpoint: name.clone(),
            reason,
        };
        let io = match connect(target.speaking(b"http/1.1")).await {
            Ok(io) => io,
            Err(failure) => {
                self.move_on(at);
                return Err(unreachable(failure.0));
            }
        };
        let handshake = hyper::client::conn::http1::handshake(io).await;
        let (mut sender, connection) = handshake.map_err(|e| unreachable(e.to_string()))?;
        let request = http::Request::get(path)
            .header(http::header::HOST, &target.host)
            .body(Empty::<Bytes>::new())
            .map_err(|e| unreachable(e.to_string()))?;
        let exchange = async {
            let response = sender.send_request(request).await?;
            let status = response.status();
            let body = response.into_body().collect().await?.to_bytes();
            Ok::<_, hyper::Error>((status, body))
        };
        tokio::pin!(connection, exchange);
        let answer = tokio::select! {
            answer = &mut exchange => answer,
            // The connection may end with the answer's last byte.
            _ = &mut connection => exchange.await,
        };
        match answer.map_err(|e| unreachable(e.to_string()))? {
            (http::StatusCode::OK, body) => Ok(body),
            (status, _) => Err(unreachable(format!("{path} is answered with {status}"))),
        }
    }

    /// Moves on from the endpoint at `failed`, unless another call already did.
    pub(crate) fn move_on(&self, failed: usize) {
        let next = (failed + 1) % self.all.len();
        let _ = self
            .current
            .compare_exchange(failed, next, Ordering::Relaxed, Ordering::Relaxed);
    }

    /// How many endpoints there are.
    pub(crate) fn len(&self) -> usize {
        self.all.len()
    }

    /// All names, for messages.
    pub(crate) fn names(&self) -> String {
        self.all
            .iter()
            .map(|(name, ..)| name.as_str())
            .collect::<Vec<_>>()
            .join(",")
    }
}

/// Where an endpoint points.
#[derive(Debug, PartialEq, Eq)]
struct Address {
    host: String,
    port: u16,
    /// `None`: TLS if the client has certificates, as etcd does for a bare `host:port`.
    tls: Option<bool>,
}

fn parse(endpoint: &str) -> Result<Address> {
    let bad = |reason: &str| Error::BadEndpoint {
        endpoint: endpoint.to_owned(),
        reason: reason.to_owned(),
    };
    let (tls, rest) = match endpoint.split_once("://") {
        None => (None, endpoint),
        Some(("http", rest)) => (Some(false), rest),
        Some(("https", rest)) => (Some(true), rest),
        Some((scheme, _)) => return Err(bad(&format!("scheme {scheme:?} is not http or https"))),
    };
    let authority = rest.split(['/', '?']).next().unwrap_or_default();
    let authority: http::uri::Authority = authority
        .parse()
        .map_err(|_| bad("expected host:port or http(s)://host:port"))?;
    let port = authority
        .port_u16()
        .ok_or_else(|| bad("the port is missing"))?;
    let host = authority
        .host()
        .trim_start_matches('[')
        .trim_end_matches(']')
        .to_owned();
    if host.is_empty() {
        return Err(bad("the host is missing"));
    }
    Ok(Address { host, port, tls })
}

fn channel(
    endpoint: &str,
    tls: Option<Arc<rustls::ClientConfig>>,
    config: &Config,
) -> Result<(Channel, Arc<Target>)> {
    let address = parse(endpoint)?;
    let bad = |reason: String| Error::BadEndpoint {
        endpoint: endpoint.to_owned(),
        reason,
    };
    let tls = match (address.tls, tls) {
        (Some(false), _) | (None, None) => None,
        (_, Some(tls)) => Some(tls),
        (Some(true), None) => Some(crate::Tls::default().client_config()?),
    };
    let name = ServerName::try_from(address.host.clone()).map_err(|e| bad(e.to_string()))?;
    let authority = match address.host.contains(':') {
        true => format!("[{}]:{}", address.host, address.port),
        false => format!("{}:{}", address.host, address.port),
    };
    // The connector does TLS itself, so tonic sees plain http; `origin` is what the server sees.
    let scheme = if tls.is_some() { "https" } else { "http" };
    let uri = |scheme: &str| {
        format!("{scheme}://{authority}")
            .parse::<Uri>()
            .map_err(|e| bad(e.to_string()))
    };
    let transport = Endpoint::from(uri("http")?)
        .origin(uri(scheme)?)
        .http2_keep_alive_interval(config.keep_alive_interval)
        .keep_alive_timeout(config.keep_alive_timeout)
        .initial_stream_window_size(STREAM_WINDOW_BYTES)
        .initial_connection_window_size(CONNECTION_WINDOW_BYTES);
    let target = Arc::new(Target {
        host: address.host,
        port: address.port,
        name,
        tls,
        timeout: config.connect_timeout,
    });
    let connects_to = target.clone();
    let channel = transport.connect_with_connector_lazy(tower::service_fn(move |_: Uri| {
        connect(connects_to.clone())
    }));
    Ok((channel, target))
}

impl crate::Tls {
    /// Connects to an endpoint `https://host:port` within `timeout` and checks that its server has a certificate for its host
    /// or for `name`. Errors: nobody is there, or the certificate is another's.
    pub async fn check_server(&self, endpoint: &str, name: &str, timeout: Duration) -> Result<()> {
        let address = parse(endpoint)?;
        let tls = self.client_config()?;
        let mut refused = None;
        for name in [&address.host, name] {
            let bad = |error: rustls_pki_types::InvalidDnsNameError| Error::BadEndpoint {
                endpoint: endpoint.to_owned(),
                reason: format!("{name}: {error}"),
            };
            let target = Target {
                host: address.host.clone(),
                port: address.port,
                name: ServerName::try_from(name.to_owned()).map_err(bad)?,
                tls: Some(tls.clone()),
                timeout,
            };
            match connect(Arc::new(target)).await {
                Ok(_) => return Ok(()),
                Err(ConnectFailure(reason)) => refused = refused.or(Some(reason)),
            }
        }
        Err(Error::Unreachable {
            endpoint: endpoint.to_owned(),
            reason: refused.unwrap_or_default(),
        })
    }
}

#[derive(Debug)]
struct Target {
    host: String,
    port: u16,
    name: ServerName<'static>,
    tls: Option<Arc<rustls::ClientConfig>>,
    timeout: Duration,
}

impl Target {
    /// The same target for another protocol than HTTP/2.
    fn speaking(&self, protocol: &[u8]) -> Arc<Target> {
        let tls = self.tls.as_ref().map(|config| {
            let mut config = rustls::ClientConfig::clone(config);
            config.alpn_protocols = vec![protocol.to_vec()];
            Arc::new(config)
        });
        Arc::new(Target {
            host: self.host.clone(),
            port: self.port,
            name: self.name.clone(),
            tls,
            timeout: self.timeout,
        })
    }
}

trait Io: AsyncRead + AsyncWrite + Send + Unpin {}
impl<T: AsyncRead + AsyncWrite + Send + Unpin> Io for T {}

async fn connect(target: Arc<Target>) -> std::result::Result<TokioIo<Box<dyn Io>>, ConnectFailure> {
    let attempt = async {
        let tcp = TcpStream::connect((target.host.as_str(), target.port)).await?;
        tcp.set_nodelay(true)?;
        let io: Box<dyn Io> = match &target.tls {
            None => Box::new(tcp),
            Some(config) => {
                let stream = TlsConnector::from(config.clone())
                    .connect(target.name.clone(), tcp)
                    .await?;
                Box::new(stream)
            }
        };
        Ok::<_, io::Error>(TokioIo::new(io))
    };
    match tokio::time::timeout(target.timeout, attempt).await {
        Ok(Ok(io)) => Ok(io),
        Ok(Err(error)) => Err(ConnectFailure(error.to_string())),
        Err(_) => Err(ConnectFailure(format!(
            "no connection within {:?}",
            target.timeout
        ))),
    }
}

/// A connection was not made, hence no request was sent on it.
#[derive(Debug)]
struct ConnectFailure(String);

impl fmt::Display for ConnectFailure {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

impl std::error::Error for ConnectFailure {}

/// Whether a call that ended so was certainly not sent: no connection was made, or it ended before the call was given to it.
pub fn was_not_sent(status: &tonic::Status) -> bool {
    connect_failure(status).is_some()
}

/// The reason, if `status` stands for a connection that was never made, or that ended before the request was given to it.
pub(crate) fn connect_failure(status: &tonic::Status) -> Option<String> {
    let mut source = status.source();
    while let Some(error) = source {
        if let Some(failure) = error.downcast_ref::<ConnectFailure>() {
            return Some(failure.0.clone());
        }
        // Over HTTP/2 hyper says so of requests alone that it still holds. Source: hyper 1.12, client/dispatch.rs.
        if let Some(error) = error.downcast_ref::<hyper::Error>()
            && error.is_canceled()
        {
            return Some("the connection was closed before the request was sent".to_owned());
        }
        source = error.source();
    }
    None
}

/// Whether the status says that the request's limit was over before there was an answer.
pub(crate) fn is_expired(status: &tonic::Status) -> bool {
    let mut source = status.source();
    while let Some(error) = source {
        if error.is::<tonic::TimeoutExpired>() {
            return true;
        }
        source = error.source();
    }
    false
}

#[cfg(test)]
mod tests {
    use super::*;

    fn address(host: &str, port: u16, tls: Option<bool>) -> Address {
        Address {
            host: host.to_owned(),
            port,
            tls,
        }
    }

    #[test]
    fn endpoints_are_addresses_with_or_without_a_scheme() {
        assert_eq!(
            parse("127.0.0.1:2379").unwrap(),
            address("127.0.0.1", 2379, None)
        );
        assert_eq!(
            parse("http://a.b:1").unwrap(),
            address("a.b", 1, Some(false))
        );
        assert_eq!(
            parse("https://[::1]:2379/").unwrap(),
            address("::1", 2379, Some(true))
        );
        for bad in ["", " ", "nohost", "ftp://a:1", "a:99999", "http://:1"] {
            assert!(
                matches!(parse(bad), Err(Error::BadEndpoint { .. })),
                "{bad:?}"
            );
        }
    }

    #[tokio::test]
    async fn a_failed_endpoint_hands_over_once() {
        let endpoints = Endpoints::new(&Config::new(["a:1", "b:1", "c:1"])).unwrap();
        endpoints.move_on(0);
        endpoints.move_on(0);
        assert_eq!(endpoints.current().1, "b:1");
        endpoints.move_on(1);
        endpoints.move_on(2);
        assert_eq!(endpoints.current().1, "a:1");
        assert_eq!(endpoints.names(), "a:1,b:1,c:1");
    }
}
