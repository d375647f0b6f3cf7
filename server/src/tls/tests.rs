use std::fs;
use std::path::Path;

use rcgen::{
    BasicConstraints, CertificateParams, CertificateRevocationListParams, DnType, IsCa, Issuer,
    KeyPair,
};
use rcgen::{RevokedCertParams, SerialNumber, date_time_ymd};
use rustls::pki_types::ServerName;
use rustls::{ClientConfig, RootCertStore};
use rustls_pki_types::pem::PemObject;
use rustls_pki_types::{CertificateDer, PrivateKeyDer};
use tempfile::TempDir;
use tokio::io::{AsyncReadExt, AsyncWriteExt};

use super::*;

/// An authority that issues certificates into a folder of its own.
struct Authority {
    folder: TempDir,
    issuer: Issuer<'static, KeyPair>,
    pem: String,
}

/// A certificate and its key.
struct Issued {
    cert: String,
    key: String,
}

impl Authority {
    fn new() -> Authority {
        let mut params = CertificateParams::new(Vec::new()).unwrap();
        params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
        params
            .distinguished_name
            .push(DnType::CommonName, "test authority");
        let key = KeyPair::generate().unwrap();
        let pem = params.self_signed(&key).unwrap().pem();
        Authority {
            folder: tempfile::tempdir().unwrap(),
            issuer: Issuer::new(params, key),
            pem,
        }
    }

    fn issue(&self, common_name: &str, serial: u64) -> Issued {
        let names = vec![
            "localhost".to_owned(),
            "127.0.0.1".to_owned(),
            format!("{common_name}.example.com"),
        ];
        let mut params = CertificateParams::new(names).unwrap();
        params
            .distinguished_name
            .push(DnType::CommonName, common_name);
        params.serial_number = Some(SerialNumber::from(serial));
        let key = KeyPair::generate().unwrap();
        let cert = params.signed_by(&key, &self.issuer).unwrap().pem();
        Issued {
            cert,
            key: key.serialize_pem(),
        }
    }

    fn revoke(&self, serial: u64) -> String {
        let revoked = RevokedCertParams {
            serial_number: SerialNumber::from(serial),
            revocation_time: date_time_ymd(2024, 1, 1),
            reason_code: None,
            invalidity_date: None,
        };
        let params = CertificateRevocationListParams {
            this_update: date_time_ymd(2024, 1, 1),
            next_update: date_time_ymd(2124, 1, 1),
            crl_number: SerialNumber::from(1),
            issuing_distribution_point: None,
            revoked_certs: vec![revoked],
            key_identifier_method: rcgen::KeyIdMethod::Sha256,
        };
        params.signed_by(&self.issuer).unwrap().pem().unwrap()
    }

    fn write(&self, name: &str, text: &str) -> PathBuf {
        let path = self.folder.path().join(name);
        fs::write(&path, text).unwrap();
        path
    }

    fn serve(&self, issued: &Issued) -> (PathBuf, PathBuf) {
        (
            self.write("server.crt", &issued.cert),
            self.write("server.key", &issued.key),
        )
    }

    /// Settings of a server with a certificate of this authority.
    fn config(&self) -> Config {
        let (cert, key) = self.serve(&self.issue("server", 1));
        let client_tls = TlsFiles {
            cert_file: Some(cert),
            key_file: Some(key),
            ..TlsFiles::default()
        };
        Config {
            client_tls,
            ..Config::default()
        }
    }

    /// The same, with clients verified against this authority.
    fn verifying_config(&self) -> Config {
        let mut config = self.config();
        config.client_tls.client_cert_auth = true;
        config.client_tls.trusted_ca_file = Some(self.write("ca.crt", &self.pem));
        config
    }

    fn client(
        &self,
        identity: Option<&Issued>,
        versions: &[&'static SupportedProtocolVersion],
    ) -> ClientConfig {
        let mut roots = RootCertStore::empty();
        roots
            .add(CertificateDer::from_pem_slice(self.pem.as_bytes()).unwrap())
            .unwrap();
        let provider = Arc::new(rustls::crypto::aws_lc_rs::default_provider());
        let builder = ClientConfig::builder_with_provider(provider)
            .with_protocol_versions(versions)
            .unwrap();
        let builder = builder.with_root_certificates(roots);
        let mut config = match identity {
            None => builder.with_no_client_auth(),
            Some(issued) => {
                let cert = CertificateDer::from_pem_slice(issued.cert.as_bytes()).unwrap();
                let key = PrivateKeyDer::from_pem_slice(issued.key.as_bytes()).unwrap();
                builder.with_client_auth_cert(vec![cert], key).unwrap()
            }
        };
        config.alpn_protocols = vec![b"h2".to_vec()];
        config
    }
}

/// What a connection agreed on.
struct Agreed {
    common_name: Option<String>,
    alpn: Vec<u8>,
    version: rustls::ProtocolVersion,
    server_certificate: Vec<u8>,
}

/// Connects through memory and sends a byte each way, so that refusals of either side are seen.
async fn connect(acceptor: &Arc<TlsAcceptor>, client: ClientConfig) -> io::Result<Agreed> {
    let (near, far) = tokio::io::duplex(64 * 1024);
    let connector = tokio_rustls::TlsConnector::from(Arc::new(client));
    let serve = async {
        let mut stream = acceptor.accept(far).await?;
        stream.read_u8().await?;
        stream.write_u8(1).await?;
        stream.flush().await?;
        let (_, session) = stream.get_ref();
        let alpn = session.alpn_protocol().unwrap_or_default().to_vec();
        let version = session.protocol_version().unwrap();
        Ok::<_, io::Error>((peer_common_name(&stream), alpn, version))
    };
    let dial = async {
        let mut stream = connector
            .connect(ServerName::try_from("localhost").unwrap(), near)
            .await?;
        stream.write_u8(1).await?;
        stream.flush().await?;
        stream.read_u8().await?;
        let certificate = stream.get_ref().1.peer_certificates().unwrap()[0].to_vec();
        Ok::<_, io::Error>(certificate)
    };
    let (served, dialled) = tokio::join!(serve, dial);
    let (common_name, alpn, version) = served?;
    Ok(Agreed {
        common_name,
        alpn,
        version,
        server_certificate: dialled?,
    })
}

fn acceptor(config: &Config) -> Arc<TlsAcceptor> {
    let policy = Policy::new(config, config.client_tls.clone(), "").unwrap();
    Arc::new(
        TlsAcceptor::new(Policy {
            recheck: Duration::ZERO,
            ..policy
        })
        .unwrap(),
    )
}

fn refusal(config: &Config) -> String {
    TlsAcceptor::for_clients(config)
        .map(drop)
        .expect_err("the files must be refused")
        .to_string()
}

fn der(pem: &str) -> Vec<u8> {
    CertificateDer::from_pem_slice(pem.as_bytes())
        .unwrap()
        .to_vec()
}

#[tokio::test]
async fn plain_server_agrees_on_tls_13_and_h2() {
    let authority = Authority::new();
    let agreed = connect(
        &acceptor(&authority.config()),
        authority.client(None, rustls::ALL_VERSIONS),
    )
    .await
    .unwrap();
    assert_eq!(agreed.alpn, b"h2");
    assert_eq!(agreed.version, rustls::ProtocolVersion::TLSv1_3);
    assert_eq!(agreed.common_name, None);
}

#[tokio::test]
async fn clients_are_verified_and_known_by_their_common_name() {
    let (authority, stranger) = (Authority::new(), Authority::new());
    let acceptor = acceptor(&authority.verifying_config());
    let known = authority.issue("alice", 2);
    let agreed = connect(
        &acceptor,
        authority.client(Some(&known), rustls::ALL_VERSIONS),
    )
    .await
    .unwrap();
    assert_eq!(agreed.common_name.as_deref(), Some("alice"));
    connect(&acceptor, authority.client(None, rustls::ALL_VERSIONS))
        .await
        .map(drop)
        .expect_err("no certificate");
    let foreign = stranger.issue("alice", 2);
    connect(
        &acceptor,
        authority.client(Some(&foreign), rustls::ALL_VERSIONS),
    )
    .await
    .map(drop)
    .expect_err("foreign authority");
}

#[tokio::test]
async fn naming_an_authority_verifies_clients_too() {
    let authority = Authority::new();
    let mut config = authority.verifying_config();
    config.client_tls.client_cert_auth = false;
    let acceptor = acceptor(&config);
    connect(&acceptor, authority.client(None, rustls::ALL_VERSIONS))
        .await
        .map(drop)
        .expect_err("no certificate");
}

#[tokio::test]
async fn only_listed_names_are_let_in() {
    let authority = Authority::new();
    let (alice, bob) = (authority.issue("alice", 2), authority.issue("bob", 3));
    let mut by_host = authority.verifying_config();
    by_host.client_tls.allowed_hostnames = vec![
        "other.example.com".to_owned(),
        "alice.example.com".to_owned(),
    ];
    let mut by_name = authority.verifying_config();
    by_name.client_tls.allowed_common_names = vec!["alice".to_owned()];
    let mut by_address = authority.verifying_config();
    by_address.client_tls.allowed_hostnames = vec!["10.0.0.1".to_owned()];
    for (config, alice_enters) in [(by_host, true), (by_name, true), (by_address, false)] {
        let acceptor = acceptor(&config);
        for (client, enters) in [(&alice, alice_enters), (&bob, false)] {
            let result = connect(
                &acceptor,
                authority.client(Some(client), rustls::ALL_VERSIONS),
            )
            .await;
            assert_eq!(result.is_ok(), enters, "{:?}", config.client_tls);
        }
    }
}

#[tokio::test]
async fn revoked_certificates_are_refused() {
    let authority = Authority::new();
    let mut config = authority.verifying_config();
    config.client_tls.crl_file = Some(authority.write("revoked.pem", &authority.revoke(3)));
    let acceptor = acceptor(&config);
    let (good, revoked) = (authority.issue("good", 2), authority.issue("revoked", 3));
    connect(
        &acceptor,
        authority.client(Some(&good), rustls::ALL_VERSIONS),
    )
    .await
    .expect("not in the list");
    connect(
        &acceptor,
        authority.client(Some(&revoked), rustls::ALL_VERSIONS),
    )
    .await
    .map(drop)
    .expect_err("in the list");
}

/// GHSA-6vch-q96h-7gc3 of etcd.
#[tokio::test]
async fn a_handshake_that_does_not_end_is_given_up() {
    let authority = Authority::new();
    let config = authority.config();
    let policy = Policy::new(&config, config.client_tls.clone(), "").unwrap();
    assert_eq!(policy.patience, HANDSHAKE_TIMEOUT);
    let policy = Policy {
        patience: Duration::from_millis(10),
        ..policy
    };
    let acceptor = Arc::new(TlsAcceptor::new(policy).unwrap());
    for first_bytes in [&b""[..], b"\x16\x03\x01"] {
        let (mut near, far) = tokio::io::duplex(1024);
        near.write_all(first_bytes).await.unwrap();
        // The other side stays, and says nothing more.
        let error = acceptor.accept(far).await.map(drop).unwrap_err();
        assert_eq!(error.kind(), io::ErrorKind::TimedOut);
        drop(near);
    }
}

#[tokio::test]
async fn new_files_are_taken_into_force_and_bad_ones_are_not() {
    let authority = Authority::new();
    let config = authority.verifying_config();
    let acceptor = acceptor(&config);
    let client = authority.issue("alice", 2);
    let dial = async || {
        connect(
            &acceptor,
            authority.client(Some(&client), rustls::ALL_VERSIONS),
        )
        .await
        .map(|agreed| agreed.server_certificate)
    };
    let first = dial().await.unwrap();

    let second = authority.issue("server", 9);
    authority.write("server.crt", &second.cert);
    assert_eq!(
        dial().await.unwrap(),
        first,
        "a certificate without its key is not used"
    );
    authority.write("server.key", &second.key);
    assert_eq!(dial().await.unwrap(), der(&second.cert));
    fs::remove_file(config.client_tls.key_file.as_ref().unwrap()).unwrap();
    assert_eq!(
        dial().await.unwrap(),
        der(&second.cert),
        "the former files stay in force"
    );
    authority.serve(&second);
    assert_eq!(dial().await.unwrap(), der(&second.cert));

    let other = Authority::new();
    authority.write("ca.crt", &other.pem);
    dial()
        .await
        .map(drop)
        .expect_err("the new authority did not sign this client");
    authority.write("ca.crt", &format!("{}{}", other.pem, authority.pem));
    dial().await.expect("both authorities are trusted");
}

#[tokio::test]
async fn versions_outside_the_bounds_are_refused() {
    let authority = Authority::new();
    let (tls12, tls13) = (
        &[&rustls::version::TLS12][..],
        &[&rustls::version::TLS13][..],
    );
    let cases = [
        (TlsVersion::Tls12, None, true, true),
        (TlsVersion::Tls13, None, false, true),
        (TlsVersion::Tls12, Some(TlsVersion::Tls12), true, false),
    ];
    for (min, max, with_12, with_13) in cases {
        let acceptor = acceptor(&Config {
            tls_min_version: min,
            tls_max_version: max,
            ..authority.config()
        });
        for (versions, expect) in [(tls12, with_12), (tls13, with_13)] {
            let result = connect(&acceptor, authority.client(None, versions)).await;
            assert_eq!(result.is_ok(), expect, "{min:?} {max:?} {versions:?}");
        }
    }
}

#[tokio::test]
async fn listed_cipher_suites_bind_tls_12_alone() {
    let authority = Authority::new();
    // The test's keys are ECDSA: a list with RSA only leaves nothing in common.
    let suites = |name: &str| {
        vec![
            name.to_owned(),
            "TLS_RSA_WITH_AES_128_GCM_SHA256".to_owned(),
        ]
    };
    for (name, with_12) in [
        ("TLS_ECDHE_RSA_WITH_AES_128_GCM_SHA256", false),
        ("TLS_ECDHE_ECDSA_WITH_CHACHA20_POLY1305", true),
    ] {
        let acceptor = acceptor(&Config {
            cipher_suites: suites(name),
            ..authority.config()
        });
        let result = connect(
            &acceptor,
            authority.client(None, &[&rustls::version::TLS12]),
        )
        .await;
        assert_eq!(result.is_ok(), with_12, "{name}");
        connect(
            &acceptor,
            authority.client(None, &[&rustls::version::TLS13]),
        )
        .await
        .expect("TLS 1.3 has its own");
    }
}

#[test]
fn unusable_cipher_suites_are_refused() {
    let authority = Authority::new();
    let with = |name: &str| {
        refusal(&Config {
            cipher_suites: vec![name.to_owned()],
            ..authority.config()
        })
    };
    assert!(with("TLS_NOPE").contains("unknown cipher suite \"TLS_NOPE\"; available: TLS_ECDHE"));
    assert!(with("TLS_RSA_WITH_AES_128_CBC_SHA").contains("names none that is available"));
}

#[test]
fn unusable_files_are_refused_with_file_flag_and_way_out() {
    let authority = Authority::new();
    let good = authority.issue("server", 1);
    let check = |cert: &str, key: &str, words: &[&str]| {
        let mut config = authority.config();
        config.client_tls.cert_file = Some(authority.write("bad.crt", cert));
        config.client_tls.key_file = Some(authority.write("bad.key", key));
        let text = refusal(&config);
        for word in words {
            assert!(text.contains(word), "{word}: {text}");
        }
    };
    check(
        "",
        &good.key,
        &["bad.crt (--cert-file)", "no certificate found"],
    );
    check(
        &good.key,
        &good.key,
        &["bad.crt (--cert-file)", "no certificate found"],
    );
    check(
        &good.cert,
        &good.cert,
        &["bad.key (--key-file)", "no private key found"],
    );
    check(
        &good.cert,
        "-----BEGIN PRIVATE KEY-----\nAAAA",
        &["bad.key (--key-file)", "not valid PEM"],
    );
    check(
        &good.cert,
        "-----BEGIN ENCRYPTED PRIVATE KEY-----\nAAAA\n-----END ENCRYPTED PRIVATE KEY-----\n",
        &["bad.key", "openssl pkey"],
    );
    check(
        &good.cert,
        &authority.issue("other", 2).key,
        &["bad.key does not belong to the certificate in", "bad.crt"],
    );
    let mut truncated: Vec<&str> = good.cert.lines().collect();
    truncated.remove(2);
    check(&truncated.join("\n"), &good.key, &["bad.crt"]);
}

#[test]
fn missing_files_are_refused_with_file_and_flag() {
    let authority = Authority::new();
    let missing = Some(Path::new("/nonexistent/x.pem").to_owned());
    let check = |change: &dyn Fn(&mut TlsFiles), words: &str| {
        let mut config = authority.verifying_config();
        change(&mut config.client_tls);
        let text = refusal(&config);
        assert!(text.contains(words), "{words}: {text}");
    };
    check(
        &|tls| tls.cert_file = missing.clone(),
        "cannot read /nonexistent/x.pem (--cert-file)",
    );
    check(&|tls| tls.key_file = missing.clone(), "(--key-file)");
    check(
        &|tls| tls.trusted_ca_file = missing.clone(),
        "(--trusted-ca-file)",
    );
    check(&|tls| tls.crl_file = missing.clone(), "(--client-crl-file)");
    check(
        &|tls| tls.key_file = None,
        "--cert-file and --key-file are needed",
    );
    let text = TlsAcceptor::for_peers(&authority.config())
        .err()
        .unwrap()
        .to_string();
    assert!(
        text.contains("--peer-cert-file and --peer-key-file"),
        "{text}"
    );
}

#[tokio::test]
async fn auto_tls_serves_a_certificate_of_its_own() {
    let folder = tempfile::tempdir().unwrap();
    let config = Config {
        data_dir: folder.path().to_owned(),
        listen_client_urls: vec!["https://localhost:2379".parse().unwrap()],
        client_tls: TlsFiles {
            auto_tls: true,
            ..TlsFiles::default()
        },
        ..Config::default()
    };
    let acceptor = Arc::new(TlsAcceptor::for_clients(&config).unwrap());
    let made = fs::read_to_string(folder.path().join("fixtures/client/cert.pem")).unwrap();
    let trusting = Authority {
        pem: made.clone(),
        ..Authority::new()
    };
    let agreed = connect(&acceptor, trusting.client(None, rustls::ALL_VERSIONS))
        .await
        .unwrap();
    assert_eq!(agreed.server_certificate, der(&made));
}
