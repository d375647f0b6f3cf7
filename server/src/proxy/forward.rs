//! Connections forwarded byte by byte, to the members in turn.
//!
//! A member that does not take a connection is left out for the retry delay; the connection goes to the next one. With
//! nobody left, it is closed. Source: etcd 3.7, server/proxy/tcpproxy.

use std::io;
use std::net::SocketAddr;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::time::Duration;

use tokio::io::{AsyncWriteExt, copy};
use tokio::net::{TcpListener, TcpStream, lookup_host};

use super::discovery::discovered;
use super::options::GatewayOptions;

/// A member that answers nothing at all is given up after this time.
const CONNECT_MAX: Duration = Duration::from_secs(5);
/// The retry delay that zero stands for. Source: etcd 3.7.
const RETRY_DELAY_OF_ZERO: Duration = Duration::from_secs(5 * 60);

/// Why the gateway cannot start.
#[derive(Debug, thiserror::Error)]
pub enum ForwardError {
    /// An endpoint is not an address.
    #[error("--endpoints: {0:?} does not have the form host:port")]
    BadEndpoint(String),
    /// There is nobody to forward to.
    #[error("--endpoints: no endpoints are given")]
    NoEndpoints,
    /// An endpoint is the gateway itself.
    #[error("--endpoints: {endpoint} is the gateway's own address {listen}; name the members")]
    Itself {
        /// The endpoint.
        endpoint: String,
        /// `--listen-addr`.
        listen: String,
    },
    /// A name has no address.
    #[error("{flag}: cannot resolve {name}: {error}")]
    Resolve {
        /// The flag with the name.
        flag: &'static str,
        /// The name.
        name: String,
        /// What the resolver said.
        error: io::Error,
    },
    /// The address cannot be listened on.
    #[error("--listen-addr: cannot listen on {address}: {error}")]
    Listen {
        /// `--listen-addr`.
        address: String,
        /// Why not.
        error: io::Error,
    },
    /// DNS names no member that can be trusted.
    #[error("--discovery-srv: {0}")]
    Discovery(kv_client::Error),
}

/// A gateway that listens.
pub struct Forward {
    listener: TcpListener,
    remotes: Arc<Remotes>,
    retry_delay: Duration,
}

impl Forward {
    /// Checks the options and listens.
    pub async fn bind(options: GatewayOptions) -> Result<Forward, ForwardError> {
        let found = discovered(&options.discovery, &options.trusted_ca_file).await;
        let found = found.map_err(ForwardError::Discovery)?;
        let (flag, endpoints) = match found {
            Some(found) => ("--discovery-srv", found),
            None => ("--endpoints", options.endpoints),
        };
        let listen = options.listen_addr;
        let own = resolve("--listen-addr", &listen).await?;
        let mut remotes = Vec::new();
        for endpoint in &endpoints {
            let address = host_port(endpoint)?;
            let resolved = resolve(flag, address).await?;
            if resolved.iter().any(|address| own.contains(address)) {
                let endpoint = address.to_owned();
                return Err(ForwardError::Itself { endpoint, listen });
            }
            remotes.push(Remote {
                address: address.to_owned(),
                is_out: AtomicBool::new(false),
            });
        }
        if remotes.is_empty() {
            return Err(ForwardError::NoEndpoints);
        }
        let listener = TcpListener::bind(&own[..])
            .await
            .map_err(|error| ForwardError::Listen {
                address: listen,
                error,
            })?;
        tracing::info!(?endpoints, "ready to forward connections");
        let retry_delay = match options.retry_delay {
            Duration::ZERO => RETRY_DELAY_OF_ZERO,
            delay => delay,
        };
        Ok(Forward {
            listener,
            remotes: Arc::new(Remotes {
                all: remotes,
                picked: AtomicUsize::new(0),
            }),
            retry_delay,
        })
    }

    /// Where it listens.
    pub fn address(&self) -> io::Result<SocketAddr> {
        self.listener.local_addr()
    }

    /// Forwards for ever.
    pub async fn run(self) {
        let retries = retry(self.remotes.clone(), self.retry_delay);
        tokio::pin!(retries);
        loop {
            let accepted = tokio::select! {
                accepted = self.listener.accept() => accepted,
                () = &mut retries => return,
            };
            match accepted {
                Ok((client, _)) => {
                    let remotes = self.remotes.clone();
                    tokio::spawn(async move {
                        if let Some(member) = remotes.connect().await {
                            join(client, member).await;
                        }
                    });
                }
                Err(error) => {
                    // Out of descriptors, or the peer was quick to leave: neither ends the listener.
                    tracing::warn!(%error, "could not accept a connection");
                    tokio::time::sleep(Duration::from_millis(10)).await;
                }
            }
        }
    }
}

struct Remote {
    address: String,
    /// Left out until it takes a connection again.
    is_out: AtomicBool,
}

struct Remotes {
    all: Vec<Remote>,
    picked: AtomicUsize,
}

impl Remotes {
    /// The next one in turn that is not left out.
    fn pick(&self) -> Option<&Remote> {
        (0..self.all.len())
            .map(|_| {
                let n = self.picked.fetch_add(1, Ordering::Relaxed);
                &self.all[n % self.all.len()]
            })
            .find(|remote| !remote.is_out.load(Ordering::Relaxed))
    }

    async fn connect(&self) -> Option<TcpStream> {
        while let Some(remote) = self.pick() {
            match remote.connect().await {
                Ok(member) => return Some(member),
                Err(error) => {
                    remote.is_out.store(true, Ordering::Relaxed);
                    tracing::warn!(address = remote.address, %error, "deactivated endpoint");
                }
            }
        }
        None
    }
}

impl Remote {
    async fn connect(&self) -> io::Result<TcpStream> {
        let stream = tokio::time::timeout(CONNECT_MAX, TcpStream::connect(&self.address)).await??;
        stream.set_nodelay(true)?;
        Ok(stream)
    }
}

/// Tries those left out again, each time the delay is over.
async fn retry(remotes: Arc<Remotes>, delay: Duration) {
    loop {
        tokio::time::sleep(delay).await;
        for remote in &remotes.all {
            if !remote.is_out.load(Ordering::Relaxed) {
                continue;
            }
            match remote.connect().await {
                Ok(_) => {
                    remote.is_out.store(false, Ordering::Relaxed);
                    tracing::info!(address = remote.address, "activated endpoint");
                }
                Err(error) => {
                    tracing::warn!(address = remote.address, %error, "endpoint stays deactivated");
                }
            }
        }
    }
}

/// Carries bytes both ways until the member closes its side; the client may close its own before.
async fn join(mut client: TcpStream, mut member: TcpStream) {
    // Without it small answers wait for the client's acknowledgement; a socket that is gone says so when written to.
    let _ = client.set_nodelay(true);
    let (mut from_client, mut to_client) = client.split();
    let (mut from_member, mut to_member) = member.split();
    let requests = async {
        let _ = copy(&mut from_client, &mut to_member).await;
        let _ = to_member.shutdown().await;
        std::future::pending::<()>().await;
    };
    let answers = async {
        let _ = copy(&mut from_member, &mut to_client).await;
        let _ = to_client.shutdown().await;
    };
    tokio::select! {
        () = requests => {}
        () = answers => {}
    }
}

/// Host and port of an endpoint, which may be a URL.
fn host_port(endpoint: &str) -> Result<&str, ForwardError> {
    let address = endpoint
        .split_once("://")
        .map_or(endpoint, |(_, rest)| rest.split('/').next().unwrap_or(rest));
    let port = address
        .rsplit_once(':')
        .map(|(_, port)| port.parse::<u16>());
    match port {
        Some(Ok(_)) => Ok(address),
        _ => Err(ForwardError::BadEndpoint(endpoint.to_owned())),
    }
}

async fn resolve(flag: &'static str, name: &str) -> Result<Vec<SocketAddr>, ForwardError> {
    match lookup_host(name).await {
        Ok(addresses) => Ok(addresses.collect()),
        Err(error) => Err(ForwardError::Resolve {
            flag,
            name: name.to_owned(),
            error,
        }),
    }
}

#[cfg(test)]
mod tests {
    use tokio::io::{AsyncReadExt, AsyncWriteExt};

    use super::*;
    use crate::proxy::options::Discovery;

    /// Answers each connection with its name and what was sent, at the end of what is sent.
    async fn member(listener: TcpListener, name: &'static str) {
        loop {
            let (mut stream, _) = listener.accept().await.unwrap();
            tokio::spawn(async move {
                let mut sent = Vec::new();
                // Probes of the gateway are connections without bytes.
                let _ = stream.read_to_end(&mut sent).await;
                let _ = stream.write_all(name.as_bytes()).await;
                let _ = stream.write_all(&sent).await;
            });
        }
    }

    async fn listen() -> (TcpListener, String) {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = listener.local_addr().unwrap().to_string();
        (listener, address)
    }

    async fn gateway(endpoints: Vec<String>, retry_delay: Duration) -> SocketAddr {
        let options = GatewayOptions {
            listen_addr: "127.0.0.1:0".into(),
            endpoints,
            retry_delay,
            discovery: Discovery::default(),
            trusted_ca_file: String::new(),
        };
        let forward = Forward::bind(options).await.unwrap();
        let address = forward.address().unwrap();
        tokio::spawn(forward.run());
        address
    }

    async fn ask(gateway: SocketAddr, question: &str) -> String {
        let mut stream = TcpStream::connect(gateway).await.unwrap();
        stream.write_all(question.as_bytes()).await.unwrap();
        stream.shutdown().await.unwrap();
        let mut answer = String::new();
        // A connection without a member is closed, or reset if the question was not read.
        let _ = stream.read_to_string(&mut answer).await;
        answer
    }

    #[tokio::test]
    async fn members_take_turns_and_half_closed_connections_are_answered() {
        let ((a, a_address), (b, b_address)) = (listen().await, listen().await);
        tokio::spawn(member(a, "a"));
        tokio::spawn(member(b, "b"));
        let endpoints = vec![a_address, format!("http://{b_address}")];
        let gateway = gateway(endpoints, Duration::from_secs(60)).await;
        let mut answers = Vec::new();
        for n in 0..4 {
            answers.push(ask(gateway, &n.to_string()).await);
        }
        assert_eq!(answers, ["a0", "b1", "a2", "b3"]);
    }

    #[tokio::test]
    async fn a_member_that_refuses_is_left_out_until_it_is_back() {
        let ((a, a_address), (b, b_address)) = (listen().await, listen().await);
        tokio::spawn(member(a, "a"));
        drop(b);
        let endpoints = vec![b_address.clone(), a_address];
        let gateway = gateway(endpoints, Duration::from_millis(20)).await;
        for _ in 0..3 {
            assert_eq!(ask(gateway, "").await, "a");
        }
        tokio::spawn(member(TcpListener::bind(&b_address).await.unwrap(), "b"));
        while ask(gateway, "").await != "b" {}
    }

    #[tokio::test]
    async fn without_a_member_a_connection_is_closed() {
        let (nobody, address) = listen().await;
        drop(nobody);
        let gateway = gateway(vec![address], Duration::from_secs(60)).await;
        assert_eq!(ask(gateway, "").await, "");
    }

    #[tokio::test]
    async fn what_cannot_work_is_refused() {
        let refused = async |endpoints: &[&str]| {
            let (free, address) = listen().await;
            drop(free);
            let options = GatewayOptions {
                listen_addr: address.clone(),
                endpoints: endpoints
                    .iter()
                    .map(|endpoint| endpoint.replace("SELF", &address))
                    .collect(),
                retry_delay: Duration::ZERO,
                discovery: Discovery::default(),
                trusted_ca_file: String::new(),
            };
            match Forward::bind(options).await {
                Ok(_) => panic!("{endpoints:?} is taken"),
                Err(error) => error,
            }
        };
        assert!(matches!(refused(&[]).await, ForwardError::NoEndpoints));
        let error = refused(&["127.0.0.1"]).await;
        assert!(matches!(error, ForwardError::BadEndpoint(_)), "{error}");
        let error = refused(&["http://SELF"]).await;
        assert!(matches!(error, ForwardError::Itself { .. }), "{error}");
        let error = refused(&["no.such.name.invalid:1"]).await;
        assert!(matches!(error, ForwardError::Resolve { .. }), "{error}");
    }
}
