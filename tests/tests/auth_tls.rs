//! Certificates and auth: who a certificate makes its owner, and that no listener is laxer than another.

#![allow(clippy::unwrap_used)] // All of this is tests.

use std::path::{Path, PathBuf};
use std::sync::Arc;

use anyhow::{Context, Result};
use kv_proto::authpb::{Permission, UserAddOptions, permission::Type};
use kv_proto::etcdserverpb::auth_client::AuthClient;
use kv_proto::etcdserverpb::kv_client::KvClient;
use kv_proto::etcdserverpb::watch_client::WatchClient;
use kv_proto::etcdserverpb::watch_request::RequestUnion;
use kv_proto::etcdserverpb::{
    AuthEnableRequest, AuthRoleAddRequest, AuthRoleGrantPermissionRequest, AuthUserAddRequest,
    AuthUserGrantRoleRequest, AuthenticateRequest, PutRequest, WatchCreateRequest, WatchRequest,
};
use kv_tests::authority::{Authority, loopback};
use kv_tests::cluster::until;
use kv_tests::process::{Kvd, KvdOptions, connect, free_port};
use rcgen::{CertificateRevocationListParams, RevokedCertParams, SerialNumber, date_time_ymd};
use rustls::pki_types::pem::PemObject;
use rustls::pki_types::{CertificateDer, PrivateKeyDer, ServerName};
use rustls::{ClientConfig, RootCertStore};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;
use tokio::sync::mpsc;
use tokio_stream::wrappers::ReceiverStream;
use tonic::transport::{Certificate, Channel, ClientTlsConfig, Endpoint, Identity};
use tonic::{Request, Status};

const REVOKED: u64 = 666;

/// An authority that has given a member its certificate.
fn authority(folder: &Path) -> Authority {
    let authority = Authority::new(folder, "authority");
    issue(&authority, "server", 1);
    authority
}

/// Makes a certificate for loopback under `common_name`; files of that name.
fn issue(authority: &Authority, common_name: &str, serial: u64) {
    let mut params = loopback(common_name);
    params.serial_number = Some(SerialNumber::from(serial));
    authority.issue(common_name, params);
}

fn revoke(authority: &Authority, serial: u64) -> PathBuf {
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
    let path = authority.file("revoked", "pem");
    let list = params.signed_by(&authority.issuer).unwrap().pem().unwrap();
    std::fs::write(&path, list).unwrap();
    path
}

/// Flags of a member that verifies its clients.
fn flags(authority: &Authority) -> Vec<String> {
    let path = |name, extension| authority.file(name, extension).display().to_string();
    vec![
        "--client-cert-auth".into(),
        format!("--cert-file={}", path("server", "crt")),
        format!("--key-file={}", path("server", "key")),
        format!("--trusted-ca-file={}", path("ca", "crt")),
        "--bcrypt-cost=4".into(),
    ]
}

async fn channel(authority: &Authority, port: u16, name: &str) -> Result<Channel> {
    let identity = Identity::from_pem(authority.read(name, "crt"), authority.read(name, "key"));
    let tls = ClientTlsConfig::new()
        .ca_certificate(Certificate::from_pem(authority.read("ca", "crt")))
        .domain_name("localhost")
        .identity(identity);
    let endpoint = Endpoint::from_shared(format!("https://127.0.0.1:{port}"))?;
    let endpoint = endpoint.tls_config(tls)?;
    until("a connection", || connect(&endpoint)).await
}

/// Asks for `/health` over TLS with the certificate `name`; the status line.
async fn health(authority: &Authority, port: u16, name: &str) -> Result<String> {
    let mut roots = RootCertStore::empty();
    roots.add(CertificateDer::from_pem_slice(
        &authority.read("ca", "crt"),
    )?)?;
    let provider = Arc::new(rustls::crypto::aws_lc_rs::default_provider());
    let config = ClientConfig::builder_with_provider(provider)
        .with_safe_default_protocol_versions()?
        .with_root_certificates(roots)
        .with_client_auth_cert(
            vec![CertificateDer::from_pem_slice(
                &authority.read(name, "crt"),
            )?],
            PrivateKeyDer::from_pem_slice(&authority.read(name, "key"))?,
        )?;
    let stream = TcpStream::connect(("127.0.0.1", port)).await?;
    let connector = tokio_rustls::TlsConnector::from(Arc::new(config));
    let mut stream = connector
        .connect(ServerName::try_from("localhost")?, stream)
        .await?;
    let request = "GET /health HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n\r\n";
    stream.write_all(request.as_bytes()).await?;
    let mut answer = String::new();
    stream.read_to_string(&mut answer).await?;
    Ok(answer.lines().next().context("an answer comes")?.to_owned())
}

fn start(folder: &Path, port: u16, flags: Vec<String>) -> Kvd {
    let mut args = vec![
        format!("--listen-client-urls=https://127.0.0.1:{port}"),
        format!("--advertise-client-urls=https://127.0.0.1:{port}"),
    ];
    args.extend(flags);
    let options = KvdOptions {
        args,
        ..KvdOptions::default()
    };
    Kvd::start_on(&folder.join("data"), port, free_port(), options)
}

fn put(key: &'static str) -> PutRequest {
    PutRequest {
        key: key.into(),
        ..Default::default()
    }
}

fn message<T>(answer: Result<T, Status>) -> String {
    answer.map_or_else(|status| status.message().to_owned(), |_| String::new())
}

#[tokio::test]
async fn a_certificate_names_its_user_unless_there_is_a_token_or_the_gateway_calls() -> Result<()> {
    let folder = tempfile::tempdir()?;
    let authority = authority(folder.path());
    for (name, serial) in [("root", 2), ("alice", 3), ("stranger", 4)] {
        issue(&authority, name, serial);
    }
    let port = free_port();
    let _kvd = start(folder.path(), port, flags(&authority));
    let root = channel(&authority, port, "root").await?;
    let mut auth = AuthClient::new(root.clone());
    auth.user_add(AuthUserAddRequest {
        name: "root".into(),
        password: "toor".into(),
        ..Default::default()
    })
    .await?;
    auth.user_add(AuthUserAddRequest {
        name: "alice".into(),
        options: Some(UserAddOptions { no_password: true }),
        ..Default::default()
    })
    .await?;
    auth.role_add(AuthRoleAddRequest {
        name: "role".into(),
    })
    .await?;
    let perm = Permission {
        perm_type: Type::Readwrite as i32,
        key: "a".into(),
        ..Default::default()
    };
    auth.role_grant_permission(AuthRoleGrantPermissionRequest {
        name: "role".into(),
        perm: Some(perm),
    })
    .await?;
    for (user, role) in [("root", "root"), ("alice", "role")] {
        auth.user_grant_role(AuthUserGrantRoleRequest {
            user: user.into(),
            role: role.into(),
        })
        .await?;
    }
    // A stream that was opened without auth has the name as well, once that counts.
    let (watches, requests) = mpsc::channel(2);
    let watching = WatchClient::new(channel(&authority, port, "alice").await?)
        .watch(ReceiverStream::new(requests))
        .await?;
    auth.auth_enable(AuthEnableRequest {}).await?;
    for key in ["a", "x"] {
        let create = WatchCreateRequest {
            key: key.into(),
            ..Default::default()
        };
        let request_union = Some(RequestUnion::CreateRequest(create));
        watches.send(WatchRequest { request_union }).await?;
    }
    let mut watching = watching.into_inner();
    let created = watching.message().await?.context("the first is answered")?;
    assert!(created.created && !created.canceled, "{created:?}");
    let refused = watching
        .message()
        .await?
        .context("the second is answered")?;
    assert!(
        refused.cancel_reason.contains("permission denied"),
        "{refused:?}"
    );

    KvClient::new(root.clone()).put(put("x")).await?;
    let mut alice = KvClient::new(channel(&authority, port, "alice").await?);
    alice.put(put("a")).await?;
    let denied = "etcdserver: permission denied";
    assert_eq!(message(alice.put(put("x")).await), denied);
    let mut stranger = KvClient::new(channel(&authority, port, "stranger").await?);
    assert_eq!(message(stranger.put(put("a")).await), denied);

    // The gateway's connection has the gateway's certificate.
    let mut through_gateway = Request::new(put("a"));
    through_gateway
        .metadata_mut()
        .insert("grpcgateway-accept", "*/*".parse()?);
    let refused = message(alice.put(through_gateway).await);
    assert_eq!(refused, "etcdserver: user name is empty");

    // A token counts for more, be it better or worse.
    let login = AuthenticateRequest {
        name: "root".into(),
        password: "toor".into(),
    };
    let token = auth.authenticate(login).await?.into_inner().token;
    let mut as_root = Request::new(put("x"));
    as_root.metadata_mut().insert("token", token.parse()?);
    alice.put(as_root).await?;
    let mut as_bearer = Request::new(put("x"));
    let bearer = format!("Bearer {token}");
    as_bearer
        .metadata_mut()
        .insert("authorization", bearer.parse()?);
    alice.put(as_bearer).await?;
    let mut forged = Request::new(put("x"));
    forged.metadata_mut().insert("token", "letters.1".parse()?);
    let refused = message(KvClient::new(root).put(forged).await);
    assert_eq!(refused, "etcdserver: invalid auth token");

    // Probes are not asked who they are.
    let health = health(&authority, port, "stranger").await?;
    assert_eq!(health, "HTTP/1.1 200 OK");
    Ok(())
}

/// GHSA-3wh4-j44w-pg92 of etcd.
#[tokio::test]
async fn a_revoked_certificate_is_refused_on_every_listener() -> Result<()> {
    let folder = tempfile::tempdir()?;
    let authority = authority(folder.path());
    issue(&authority, "good", 2);
    issue(&authority, "revoked", REVOKED);
    let list = revoke(&authority, REVOKED);
    let (grpc, http, metrics) = (free_port(), free_port(), free_port());
    let mut flags = flags(&authority);
    flags.extend([
        format!("--client-crl-file={}", list.display()),
        format!("--listen-client-http-urls=https://127.0.0.1:{http}"),
        format!("--listen-metrics-urls=https://127.0.0.1:{metrics}"),
    ]);
    let _kvd = start(folder.path(), grpc, flags);
    let mut good = KvClient::new(channel(&authority, grpc, "good").await?);
    good.put(put("a")).await?;
    for port in [http, metrics] {
        assert_eq!(health(&authority, port, "good").await?, "HTTP/1.1 200 OK");
        let refused = health(&authority, port, "revoked").await;
        assert!(refused.is_err(), "{refused:?} at port {port}");
    }
    // The refusal of a certificate comes after the client's side of the handshake, so only a call shows it.
    let identity = Identity::from_pem(
        authority.read("revoked", "crt"),
        authority.read("revoked", "key"),
    );
    let tls = ClientTlsConfig::new()
        .ca_certificate(Certificate::from_pem(authority.read("ca", "crt")))
        .domain_name("localhost")
        .identity(identity);
    let endpoint = Endpoint::from_shared(format!("https://127.0.0.1:{grpc}"))?.tls_config(tls)?;
    let refused = match endpoint.connect().await {
        Ok(channel) => KvClient::new(channel).put(put("a")).await.is_err(),
        Err(_) => true,
    };
    assert!(refused);
    Ok(())
}
