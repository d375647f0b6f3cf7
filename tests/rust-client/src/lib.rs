//! A server process under test and its clients of the crate `etcd-client`.
//!
//! kvd takes etcd's flags, so the same code starts either. `KVD_BIN` names the binary, `KVD_ARGS` adds flags.

use std::net::{TcpListener, TcpStream};
use std::path::{Path, PathBuf};
use std::process::{self, Child, Command, Stdio};
use std::sync::atomic::{AtomicU16, Ordering};
use std::time::{Duration, Instant};

use etcd_client::{Certificate, Client, ConnectOptions, Identity, TlsOptions};
use rcgen::{CertificateParams, CertifiedIssuer, ExtendedKeyUsagePurpose, IsCa, KeyPair};
use tempfile::TempDir;

/// A member has this long to begin to serve: the machine may be compiling something else.
const START_LIMIT: Duration = Duration::from_secs(60);

/// Covers the gap between choosing a free port and the server binding it.
const START_ATTEMPTS: usize = 3;

/// No test takes longer; one that does fails instead of hanging.
pub const TEST_LIMIT: Duration = Duration::from_secs(60);

/// How clients reach a server.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Transport {
    /// HTTP/2 in clear text.
    Plain,
    /// TLS with a certificate on both sides.
    Tls,
}

/// A running member over a data folder of its own; killed when dropped.
pub struct Server {
    child: Child,
    folder: TempDir,
    client_port: u16,
    peer_port: u16,
    certificates: Option<Certificates>,
}

impl Server {
    /// Starts a member on free loopback ports and waits until it answers.
    pub async fn start(transport: Transport) -> Server {
        for attempt in 1..=START_ATTEMPTS {
            let folder = tempfile::tempdir().expect("a temporary folder can be made");
            let certificates =
                (transport == Transport::Tls).then(|| Certificates::write(folder.path()));
            let (client_port, peer_port) = (free_port(), free_port());
            let child = spawn(folder.path(), client_port, peer_port, certificates.as_ref());
            let mut server = Server {
                child,
                folder,
                client_port,
                peer_port,
                certificates,
            };
            match server.serves().await {
                Ok(()) => return server,
                Err(error) => eprintln!("attempt {attempt}: {error}"),
            }
        }
        panic!("the server does not start");
    }

    /// Ends the process at once, as a crash would, and starts it again over the same folder and ports.
    pub async fn kill_and_restart(&mut self) {
        self.stop();
        self.child = spawn(
            self.folder.path(),
            self.client_port,
            self.peer_port,
            self.certificates.as_ref(),
        );
        self.serves().await.expect("the server starts again");
    }

    /// The URL clients dial.
    pub fn client_url(&self) -> String {
        client_url(self.client_port, self.certificates.as_ref())
    }

    /// A new client with a connection of its own.
    pub async fn client(&self) -> Client {
        let tls = self.certificates.as_ref().map(Certificates::client_options);
        self.client_with(tls).await
    }

    /// A new client that shows no certificate.
    pub async fn client_without_certificate(&self) -> Client {
        let tls = self
            .certificates
            .as_ref()
            .map(|certificates| certificates.trust());
        self.client_with(tls).await
    }

    async fn client_with(&self, tls: Option<TlsOptions>) -> Client {
        let mut options = ConnectOptions::new();
        if let Some(tls) = tls {
            options = options.with_tls(tls);
        }
        Client::connect([self.client_url()], Some(options))
            .await
            .expect("a client connects when it calls")
    }

    /// Waits until the member answers; an error if its process ends instead.
    async fn serves(&mut self) -> Result<(), String> {
        let deadline = Instant::now() + START_LIMIT;
        while let Err(error) = TcpStream::connect(("127.0.0.1", self.client_port)) {
            let ended = self.child.try_wait().expect("the child can be waited for");
            if let Some(status) = ended {
                return Err(format!("the server ended with {status}"));
            }
            if Instant::now() > deadline {
                return Err(format!("the server does not listen: {error}"));
            }
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
        tokio::time::timeout(START_LIMIT, self.client().await.status())
            .await
            .map_err(|_| "the server does not answer".to_owned())?
            .map(drop)
            .map_err(|error| format!("the server answers with {error}"))
    }

    fn stop(&mut self) {
        // It may have ended already.
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        self.stop();
    }
}

/// An authority, a certificate for the server on loopback and one for its clients.
struct Certificates {
    authority: String,
    client_cert: String,
    client_key: String,
    authority_path: PathBuf,
    server_cert_path: PathBuf,
    server_key_path: PathBuf,
}

impl Certificates {
    fn write(folder: &Path) -> Certificates {
        let mut params = CertificateParams::default();
        params.is_ca = IsCa::Ca(rcgen::BasicConstraints::Unconstrained);
        let authority =
            CertifiedIssuer::self_signed(params, new_key()).expect("an authority signs itself");
        let issue = |names: &[&str], usages: &[ExtendedKeyUsagePurpose]| {
            let names: Vec<String> = names.iter().map(|name| (*name).to_owned()).collect();
            let mut params = CertificateParams::new(names).expect("the names are valid");
            params.extended_key_usages = usages.to_vec();
            let key = new_key();
            let certificate = params
                .signed_by(&key, &authority)
                .expect("an authority signs");
            (certificate.pem(), key.serialize_pem())
        };
        // A server is also the client of its own gateway.
        let (server_cert, server_key) = issue(
            &["127.0.0.1", "localhost"],
            &[
                ExtendedKeyUsagePurpose::ServerAuth,
                ExtendedKeyUsagePurpose::ClientAuth,
            ],
        );
        let (client_cert, client_key) = issue(&[], &[ExtendedKeyUsagePurpose::ClientAuth]);
        let write = |name: &str, text: &str| {
            let path = folder.join(name);
            std::fs::write(&path, text).expect("a temporary folder takes files");
            path
        };
        Certificates {
            authority_path: write("ca.crt", &authority.pem()),
            server_cert_path: write("server.crt", &server_cert),
            server_key_path: write("server.key", &server_key),
            authority: authority.pem(),
            client_cert,
            client_key,
        }
    }

    fn trust(&self) -> TlsOptions {
        TlsOptions::new().ca_certificate(Certificate::from_pem(&self.authority))
    }

    fn client_options(&self) -> TlsOptions {
        self.trust()
            .identity(Identity::from_pem(&self.client_cert, &self.client_key))
    }
}

fn new_key() -> KeyPair {
    KeyPair::generate().expect("a key can be generated")
}

fn spawn(
    folder: &Path,
    client_port: u16,
    peer_port: u16,
    certificates: Option<&Certificates>,
) -> Child {
    let binary = std::env::var_os("KVD_BIN").expect("KVD_BIN names the server binary");
    let client = client_url(client_port, certificates);
    let peer = format!("http://127.0.0.1:{peer_port}");
    let mut command = Command::new(binary);
    command
        .arg("--data-dir")
        .arg(folder.join("data"))
        .args([
            "--listen-client-urls",
            &client,
            "--advertise-client-urls",
            &client,
        ])
        .args([
            "--listen-peer-urls",
            &peer,
            "--initial-advertise-peer-urls",
            &peer,
        ])
        .args([
            "--initial-cluster",
            &format!("default={peer}"),
            "--log-level",
            "error",
        ])
        .args(
            std::env::var("KVD_ARGS")
                .unwrap_or_default()
                .split_whitespace(),
        )
        .stdin(Stdio::null());
    if let Some(certificates) = certificates {
        command
            .arg("--trusted-ca-file")
            .arg(&certificates.authority_path)
            .arg("--cert-file")
            .arg(&certificates.server_cert_path)
            .arg("--key-file")
            .arg(&certificates.server_key_path)
            .arg("--client-cert-auth");
    }
    command.spawn().expect("KVD_BIN can be started")
}

fn client_url(port: u16, certificates: Option<&Certificates>) -> String {
    let scheme = if certificates.is_some() {
        "https"
    } else {
        "http"
    };
    format!("{scheme}://127.0.0.1:{port}")
}

/// A port that nobody listens on and that no outgoing connection is given. Each is given out once.
fn free_port() -> u16 {
    static NEXT: AtomicU16 = AtomicU16::new(0);
    loop {
        let port = 10_000
            + (process::id() as u16 ^ 0x2a) % 1_000 * 20
            + NEXT.fetch_add(1, Ordering::Relaxed) % 2_000;
        if TcpListener::bind(("127.0.0.1", port)).is_ok() {
            return port;
        }
    }
}
