//! A connection to another member: the URLs of its entry in the member table, one after the other.

use std::io;
use std::sync::Arc;
use std::time::Duration;

use tokio::io::{AsyncRead, AsyncWrite};
use tokio::net::{TcpStream, UnixStream};

use crate::config::Url;
use crate::tls::TlsConnector;

/// A connection, whatever it runs over.
pub(crate) type Connection = Box<dyn Io>;

/// What a connection can do.
pub(crate) trait Io: AsyncRead + AsyncWrite + Send + Unpin {}
impl<T: AsyncRead + AsyncWrite + Send + Unpin> Io for T {}

/// Opens connections to members.
pub(crate) struct Connector {
    /// `None`: no certificates are configured, and URLs with TLS are refused.
    tls: Option<Arc<TlsConnector>>,
    /// For one URL, handshake included.
    timeout: Duration,
}

impl Connector {
    pub(crate) fn new(tls: Option<Arc<TlsConnector>>, timeout: Duration) -> Connector {
        Connector { tls, timeout }
    }

    /// Connects to the first of `urls` that answers; the error is that of the last.
    pub(crate) async fn connect(&self, urls: &[Url], alpn: Alpn) -> io::Result<Connection> {
        let mut result = Err(io::Error::new(
            io::ErrorKind::NotFound,
            "no peer URL of the member is known",
        ));
        for url in urls {
            let connected = tokio::time::timeout(self.timeout, self.connect_one(url, alpn)).await;
            let connected = connected.unwrap_or_else(|_| Err(io::ErrorKind::TimedOut.into()));
            match connected {
                Ok(connection) => return Ok(connection),
                Err(error) => {
                    result = Err(io::Error::new(error.kind(), format!("{url}: {error}")));
                }
            }
        }
        result
    }

    async fn connect_one(&self, url: &Url, alpn: Alpn) -> io::Result<Connection> {
        if let Some(path) = url.socket_path() {
            let stream = UnixStream::connect(path).await?;
            return self.secure(url, "localhost", stream, alpn).await;
        }
        let (host, port) = url
            .host_port()
            .ok_or_else(|| io::Error::new(io::ErrorKind::InvalidInput, "the URL has no port"))?;
        let stream = TcpStream::connect((host, port)).await?;
        stream.set_nodelay(true)?;
        self.secure(url, host, stream, alpn).await
    }

    async fn secure<S: Io + 'static>(
        &self,
        url: &Url,
        host: &str,
        stream: S,
        alpn: Alpn,
    ) -> io::Result<Connection> {
        if !url.scheme.is_tls() {
            return Ok(Box::new(stream));
        }
        let Some(tls) = &self.tls else {
            return Err(io::Error::new(
                io::ErrorKind::InvalidInput,
                "TLS to members needs --peer-cert-file and --peer-trusted-ca-file, or --peer-auto-tls",
            ));
        };
        Ok(Box::new(tls.connect(host, stream, alpn == Alpn::H2).await?))
    }
}

/// What will be spoken over a connection.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Alpn {
    /// gRPC.
    H2,
    /// Pages.
    Http1,
}
