//! TLS of the listeners and of connections to other members: certificates, verification, reload without restart.
//!
//! [`TlsAcceptor`] and [`TlsConnector`] read their files at start, where every fault is an error that names file, flag and way out. Afterwards they
//! look at them again before a handshake, at most once in [`RECHECK_INTERVAL`], and by content rather than by time, since
//! mounted secrets change by swapping links. Files that cannot be used are told once; the last good ones stay in force.
//! New files hold for new connections: sessions of older ones cannot be resumed into them.
//!
//! Invariant: a connection without a certificate of the authority gets no further than its handshake when clients are
//! verified. Source: etcd 3.7 client/pkg/transport (naming an authority verifies clients too).

mod files;
mod names;
mod self_signed;
mod suites;

use std::io;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::{Duration, Instant};

use arc_swap::ArcSwap;
use parking_lot::Mutex;
use rustls::client::WebPkiServerVerifier;
use rustls::client::danger::ServerCertVerifier;
use rustls::crypto::CryptoProvider;
use rustls::server::WebPkiClientVerifier;
use rustls::server::danger::ClientCertVerifier;
use rustls::{ClientConfig, ServerConfig, SupportedProtocolVersion};
use rustls_pki_types::ServerName;
use thiserror::Error;
use tokio::io::{AsyncRead, AsyncWrite};
pub use tokio_rustls::server::TlsStream;

use self::files::Contents;
use crate::config::{Config, TlsFiles, TlsVersion, Url};

/// How long new files may go unseen.
const RECHECK_INTERVAL: Duration = Duration::from_secs(1);

/// How long a handshake may take; a peer that sends nothing must not hold a connection.
const HANDSHAKE_TIMEOUT: Duration = Duration::from_secs(30);

/// Why TLS cannot be served. Texts name the file, its flag and the way out.
#[derive(Debug, Error)]
pub enum Error {
    /// A file that cannot be read.
    #[error("cannot read {} (--{flag}): {source}; check the path and that this user may read it", path.display())]
    Unreadable {
        /// The file.
        path: PathBuf,
        /// The flag that names it.
        flag: String,
        /// Why.
        source: io::Error,
    },
    /// A file without what its flag needs, or with damage.
    #[error("{} (--{flag}): {why}", path.display())]
    Malformed {
        /// The file.
        path: PathBuf,
        /// The flag that names it.
        flag: String,
        /// What is wrong and what to do.
        why: String,
    },
    /// A key of another certificate.
    #[error(
        "the key in {} does not belong to the certificate in {}; give the two files that were made together",
        key.display(),
        cert.display()
    )]
    KeyMismatch {
        /// The certificate.
        cert: PathBuf,
        /// The key.
        key: PathBuf,
    },
    /// `--auto-tls` cannot keep its certificate.
    #[error("cannot make a certificate in {}: {source}; check --data-dir, or give --cert-file and --key-file", folder.display())]
    SelfSigned {
        /// Where it would be kept.
        folder: PathBuf,
        /// Why.
        source: io::Error,
    },
    /// A listener needs a certificate and none is configured.
    #[error("--{0}cert-file and --{0}key-file are needed to listen on TLS")]
    NoCertificate(&'static str),
    /// Nobody to verify the other members with.
    #[error(
        "--peer-trusted-ca-file is needed to connect to members over TLS: the authorities that signed their certificates"
    )]
    NoAuthority,
    /// A name in `--cipher-suites` that no one knows.
    #[error(
        "--cipher-suites: unknown cipher suite {name:?}; available: {}",
        suites::available()
    )]
    UnknownCipherSuite {
        /// The name.
        name: String,
    },
    /// Nothing is left of `--cipher-suites`.
    #[error(
        "--cipher-suites names none that is available with TLS 1.2; add one of {}, or remove the flag",
        suites::available()
    )]
    NoCipherSuite,
    /// The library refuses the combination.
    #[error("TLS cannot be set up: {0}")]
    Unusable(#[from] rustls::Error),
}

/// Accepts TLS connections with the newest usable files.
pub struct TlsAcceptor(Reloading<ServerConfig>);

/// Makes TLS connections to other members with the newest usable files.
pub struct TlsConnector(Reloading<ClientConfig>);

/// What does not change while the process runs.
#[derive(Clone)]
struct Policy {
    files: TlsFiles,
    /// What stands before `cert-file` in the flags' names: nothing, or `peer-`.
    flag_prefix: &'static str,
    provider: Arc<CryptoProvider>,
    versions: Vec<&'static SupportedProtocolVersion>,
    recheck: Duration,
    /// Longest handshake.
    patience: Duration,
}

/// Settings of one side, made again when the files change.
struct Reloading<C> {
    policy: Policy,
    make: fn(&Policy, &Contents) -> Result<C, Error>,
    current: ArcSwap<C>,
    reload: Mutex<Reload>,
}

struct Reload {
    checked: Instant,
    /// What the files held when they were last looked at, usable or not.
    seen: Option<Contents>,
}

impl TlsAcceptor {
    /// For client listeners: with `--cert-file` and `--key-file`, or with a certificate made under `--auto-tls`, for which
    /// the data folder must exist.
    pub fn for_clients(config: &Config) -> Result<TlsAcceptor, Error> {
        let listeners = [
            &config.listen_client_urls,
            &config.listen_client_http_urls,
            &config.listen_metrics_urls,
        ];
        let urls: Vec<Url> = listeners.into_iter().flatten().cloned().collect();
        let files = with_certificate(config, &config.client_tls, "client", &urls)?;
        TlsAcceptor::new(Policy::new(config, files, "")?)
    }

    /// For peer listeners: as for clients, with the flags that begin with `peer-`.
    pub fn for_peers(config: &Config) -> Result<TlsAcceptor, Error> {
        TlsAcceptor::new(Policy::for_peers(config)?)
    }

    fn new(policy: Policy) -> Result<TlsAcceptor, Error> {
        Reloading::new(policy, Policy::server_config).map(TlsAcceptor)
    }

    /// Completes the handshake on a new connection.
    ///
    /// Errors are those of the connection alone: a refused certificate, no common version, a peer that went away or sent
    /// nothing for 30 s. ALPN offers `h2` and `http/1.1`.
    pub async fn accept<IO>(self: &Arc<Self>, stream: IO) -> io::Result<TlsStream<IO>>
    where
        IO: AsyncRead + AsyncWrite + Unpin,
    {
        if self.0.is_recheck_due() {
            let acceptor = Arc::clone(self);
            // A panic there would be our bug; the current files stay in force.
            let _ = tokio::task::spawn_blocking(move || acceptor.0.recheck()).await;
        }
        let acceptor = tokio_rustls::TlsAcceptor::from(self.0.current.load_full());
        let patience = self.0.policy.patience;
        match tokio::time::timeout(patience, acceptor.accept(stream)).await {
            Ok(accepted) => accepted,
            Err(_) => Err(io::Error::new(
                io::ErrorKind::TimedOut,
                "the TLS handshake took longer than 30 s",
            )),
        }
    }
}

impl TlsConnector {
    /// For connections to other members: `--peer-client-cert-file` or `--peer-cert-file` is presented, the other side
    /// is verified by `--peer-trusted-ca-file`, or not at all under `--peer-auto-tls`.
    pub fn for_peers(config: &Config) -> Result<TlsConnector, Error> {
        let mut policy = Policy::for_peers(config)?;
        let files = &mut policy.files;
        if files.client_cert_file.is_some() {
            files.cert_file = files.client_cert_file.take();
            files.key_file = files.client_key_file.take();
        }
        Reloading::new(policy, Policy::client_config).map(TlsConnector)
    }

    /// Completes the handshake with `host`, a name or an address that the certificate of the other side must carry.
    ///
    /// ALPN offers `h2` or `http/1.1`. The time is bounded by the caller.
    pub async fn connect<IO>(
        self: &Arc<Self>,
        host: &str,
        stream: IO,
        http2: bool,
    ) -> io::Result<tokio_rustls::client::TlsStream<IO>>
    where
        IO: AsyncRead + AsyncWrite + Unpin,
    {
        if self.0.is_recheck_due() {
            let connector = Arc::clone(self);
            // A panic there would be our bug; the current files stay in force.
            let _ = tokio::task::spawn_blocking(move || connector.0.recheck()).await;
        }
        let name = ServerName::try_from(host.to_owned())
            .map_err(|error| io::Error::new(io::ErrorKind::InvalidInput, error))?;
        let alpn: &[u8] = if http2 { b"h2" } else { b"http/1.1" };
        let connector = tokio_rustls::TlsConnector::from(self.0.current.load_full());
        connector
            .with_alpn(vec![alpn.to_vec()])
            .connect(name, stream)
            .await
    }
}

impl<C> Reloading<C> {
    fn new(
        policy: Policy,
        make: fn(&Policy, &Contents) -> Result<C, Error>,
    ) -> Result<Reloading<C>, Error> {
        let contents = Contents::read(&policy.files, policy.flag_prefix)?;
        let current = ArcSwap::from_pointee(make(&policy, &contents)?);
        let reload = Mutex::new(Reload {
            checked: Instant::now(),
            seen: Some(contents),
        });
        Ok(Reloading {
            policy,
            make,
            current,
            reload,
        })
    }

    fn is_recheck_due(&self) -> bool {
        let mut reload = self.reload.lock();
        let due = reload.checked.elapsed() >= self.policy.recheck;
        if due {
            reload.checked = Instant::now();
        }
        due
    }

    /// Reads the files and takes them into force if they changed and can be used.
    fn recheck(&self) {
        let contents = Contents::read(&self.policy.files, self.policy.flag_prefix);
        let mut reload = self.reload.lock();
        let loaded = match contents {
            Ok(contents) if reload.seen.as_ref() == Some(&contents) => return,
            Ok(contents) => {
                let loaded = (self.make)(&self.policy, &contents);
                reload.seen = Some(contents);
                loaded
            }
            // Told once: `seen` is empty until the files can be read again.
            Err(_) if reload.seen.is_none() => return,
            Err(error) => {
                reload.seen = None;
                Err(error)
            }
        };
        match loaded {
            Ok(config) => {
                self.current.store(Arc::new(config));
                tracing::info!("TLS files changed; new connections use them");
            }
            Err(error) => {
                tracing::warn!(%error, "TLS files changed and cannot be used; the former ones stay in force");
            }
        }
    }
}

impl Policy {
    fn for_peers(config: &Config) -> Result<Policy, Error> {
        let files = with_certificate(config, &config.peer_tls, "peer", &config.listen_peer_urls)?;
        Policy::new(config, files, "peer-")
    }

    fn new(config: &Config, files: TlsFiles, flag_prefix: &'static str) -> Result<Policy, Error> {
        if files.cert_file.is_none() || files.key_file.is_none() {
            return Err(Error::NoCertificate(flag_prefix));
        }
        let (min, max) = (
            config.tls_min_version,
            config.tls_max_version.unwrap_or(TlsVersion::Tls13),
        );
        let mut versions = Vec::new();
        if max == TlsVersion::Tls13 {
            versions.push(&rustls::version::TLS13);
        }
        if min == TlsVersion::Tls12 {
            versions.push(&rustls::version::TLS12);
        }
        let mut provider = rustls::crypto::aws_lc_rs::default_provider();
        if min == TlsVersion::Tls12 {
            suites::restrict(&mut provider.cipher_suites, &config.cipher_suites)?;
        }
        Ok(Policy {
            files,
            flag_prefix,
            provider: Arc::new(provider),
            versions,
            recheck: RECHECK_INTERVAL,
            patience: HANDSHAKE_TIMEOUT,
        })
    }

    fn server_config(&self, contents: &Contents) -> Result<ServerConfig, Error> {
        let verifier = self.verifier(contents)?;
        let mut config = ServerConfig::builder_with_provider(Arc::clone(&self.provider))
            .with_protocol_versions(&self.versions)?
            .with_client_cert_verifier(verifier)
            .with_single_cert(contents.certificates()?, contents.key()?)
            .map_err(|error| contents.explain(error))?;
        config.alpn_protocols = vec![b"h2".to_vec(), b"http/1.1".to_vec()];
        Ok(config)
    }

    fn client_config(&self, contents: &Contents) -> Result<ClientConfig, Error> {
        let builder = ClientConfig::builder_with_provider(Arc::clone(&self.provider))
            .with_protocol_versions(&self.versions)?;
        let verifier: Arc<dyn ServerCertVerifier> = if self.files.trusted_ca_file.is_some() {
            let roots = Arc::new(contents.authorities()?);
            WebPkiServerVerifier::builder_with_provider(roots, Arc::clone(&self.provider))
                .with_crls(contents.revoked()?)
                .allow_unknown_revocation_status()
                .build()
                .map_err(|error| rustls::Error::General(error.to_string()))?
        } else if self.files.auto_tls {
            // Certificates made at start have no authority: such connections are encrypted, and no more.
            Arc::new(names::AnyServer::new(&self.provider))
        } else {
            return Err(Error::NoAuthority);
        };
        builder
            .dangerous()
            .with_custom_certificate_verifier(names::restrict_servers(verifier, &self.files))
            .with_client_auth_cert(contents.certificates()?, contents.key()?)
            .map_err(|error| contents.explain(error))
    }

    fn verifier(&self, contents: &Contents) -> Result<Arc<dyn ClientCertVerifier>, Error> {
        if !self.files.verifies_clients() {
            return Ok(WebPkiClientVerifier::no_client_auth());
        }
        let roots = Arc::new(contents.authorities()?);
        let verifier =
            WebPkiClientVerifier::builder_with_provider(roots, Arc::clone(&self.provider))
                .with_crls(contents.revoked()?)
                // As in etcd, the list names what is revoked and need not cover every authority.
                .allow_unknown_revocation_status()
                .build()
                .map_err(|error| rustls::Error::General(error.to_string()))?;
        Ok(names::restrict(verifier, &self.files))
    }
}

/// The files of one side; a certificate made at start stands in for one that is not given.
fn with_certificate(
    config: &Config,
    files: &TlsFiles,
    side: &str,
    urls: &[Url],
) -> Result<TlsFiles, Error> {
    let mut files = files.clone();
    if files.auto_tls && files.cert_file.is_none() {
        let folder = config.data_dir.join("fixtures").join(side);
        let (cert, key) =
            self_signed::ensure(&folder, urls, config.self_signed_cert_validity_years)?;
        (files.cert_file, files.key_file) = (Some(cert), Some(key));
    }
    Ok(files)
}

/// The common name in the certificate of the other side, by which etcd's auth knows a client. `None` without a
/// certificate, and with one that has no name.
pub fn peer_common_name<IO>(stream: &TlsStream<IO>) -> Option<String> {
    let certificate = stream.get_ref().1.peer_certificates()?.first()?;
    names::common_name(certificate)
}

#[cfg(test)]
mod tests;
