//! `kvd gateway` and `kvd grpc-proxy` before real members: who the members are, and in which order answers come.

#![allow(clippy::unwrap_used)] // All of this is tests.

use std::process::{Child, Command};
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use bytes::Bytes;
use kv_client::{Client, Config, Credentials, Tls};
use kv_proto::etcdserverpb::{
    AuthEnableRequest, AuthUserAddRequest, AuthUserGrantRoleRequest, PutRequest, RangeRequest,
};
use kv_tests::authority::{Authority, loopback};
use kv_tests::cluster::{Cluster, until};
use kv_tests::dns::DnsServer;
use kv_tests::process::{Kvd, KvdOptions, ends_within, free_port, kvd_binary};
use tokio::task::spawn_blocking;

/// A process that cannot work ends within this time.
const LIMIT: Duration = Duration::from_secs(30);

/// A gateway or proxy of a test. Killed when dropped.
struct Proxy {
    child: Child,
    url: String,
}

impl Proxy {
    fn start(verb: &str, scheme: &str, flags: &[String]) -> Result<Proxy> {
        let address = format!("127.0.0.1:{}", free_port());
        let mut command = Command::new(kvd_binary());
        let listen = format!("--listen-addr={address}");
        command.args([verb, "start", &listen]).args(flags);
        Ok(Proxy {
            child: command.spawn()?,
            url: format!("{scheme}://{address}"),
        })
    }

    /// The value of `k` that a client gets through it.
    async fn value(&self, tls: Option<Tls>) -> Result<Bytes> {
        let config = Config {
            tls,
            ..Config::new([&self.url])
        };
        until("the member to answer", || async {
            let client = Client::connect(config.clone()).await?;
            let found = client.get("k").await?;
            Ok(found.context("the key is there")?.value)
        })
        .await
    }

    /// Whether it ends by itself, with an error.
    async fn ends_refused(mut self) -> Result<bool> {
        let ended = spawn_blocking(move || {
            ensure!(ends_within(&self.child, LIMIT), "it goes on");
            Ok(self.child.wait()?)
        });
        Ok(!ended.await??.success())
    }
}

impl Drop for Proxy {
    fn drop(&mut self) {
        // It may have ended already.
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// A DNS server that names one member as `service`, and the flags to ask it.
async fn by_dns(service: &str, port: u16) -> Result<(DnsServer, Vec<String>)> {
    let name = format!("_{service}._tcp.example.test");
    let dns = DnsServer::start(&[(&name, vec![("localhost".to_owned(), port)])]).await?;
    let flags = vec![
        "--discovery-srv=example.test".to_owned(),
        format!("--discovery-dns-server={}", dns.address()),
    ];
    Ok((dns, flags))
}

#[tokio::test]
async fn proxies_find_members_without_tls_by_dns_only_if_that_is_permitted() -> Result<()> {
    let cluster = Cluster::start(1, &[]);
    cluster.leader().await?;
    cluster.put(0, "k", "1").await?;
    let (_dns, flags) = by_dns("etcd-client", cluster.client_port(0)).await?;
    for verb in ["gateway", "grpc-proxy"] {
        assert!(Proxy::start(verb, "http", &flags)?.ends_refused().await?);

        let insecure = vec!["--insecure-discovery".to_owned()];
        let proxy = Proxy::start(verb, "http", &[&flags[..], &insecure].concat())?;
        assert_eq!(proxy.value(None).await?, "1", "{verb}");
    }
    Ok(())
}

#[tokio::test]
async fn proxies_find_members_by_dns_and_look_at_their_certificates() -> Result<()> {
    let folder = tempfile::tempdir()?;
    let authority = Authority::new(folder.path(), "ca");
    authority.issue("server", loopback("server"));
    let others = tempfile::tempdir()?;
    let stranger = Authority::new(others.path(), "ca");
    let path = |name, extension| authority.file(name, extension).display().to_string();
    let port = free_port();
    let url = format!("https://127.0.0.1:{port}");
    let options = KvdOptions {
        args: vec![
            format!("--listen-client-urls={url}"),
            format!("--advertise-client-urls={url}"),
            format!("--cert-file={}", path("server", "crt")),
            format!("--key-file={}", path("server", "key")),
        ],
        ..KvdOptions::default()
    };
    let _member = Kvd::start_on(&folder.path().join("data"), port, free_port(), options);
    let tls = Tls {
        ca_file: Some(authority.file("ca", "crt")),
        ..Tls::default()
    };
    let direct = Config {
        tls: Some(tls.clone()),
        ..Config::new([&url])
    };
    until("the member to serve", || async {
        let client = Client::connect(direct.clone()).await?;
        let put = PutRequest {
            key: "k".into(),
            value: "1".into(),
            ..PutRequest::default()
        };
        Ok(client.put(put).await?)
    })
    .await?;
    let (_dns, flags) = by_dns("etcd-client-ssl", port).await?;
    // A gateway passes TLS on to its clients; a proxy has none of its own here.
    let ways = [
        ("gateway", "--trusted-ca-file", "https", Some(tls)),
        ("grpc-proxy", "--cacert", "http", None),
    ];
    for (verb, flag, scheme, tls) in ways {
        let trusting = |authority: &Authority| {
            let file = authority.file("ca", "crt");
            let trusted = vec![format!("{flag}={}", file.display())];
            Proxy::start(verb, scheme, &[&flags[..], &trusted].concat())
        };
        assert!(trusting(&stranger)?.ends_refused().await?, "{verb}");
        assert_eq!(trusting(&authority)?.value(tls).await?, "1", "{verb}");
    }
    Ok(())
}

/// What a serializable read of `k` by the proxy comes to.
async fn serializable(client: &Client) -> kv_client::Result<Bytes> {
    let request = RangeRequest {
        key: "k".into(),
        serializable: true,
        ..RangeRequest::default()
    };
    let answer = client.range(request).await?;
    Ok(answer.kvs[0].value.clone())
}

#[tokio::test]
async fn serializable_reads_do_not_go_back_when_the_member_changes() -> Result<()> {
    // Two stores stand for two members, one of which is behind.
    let (mut ahead, behind) = (Cluster::start(1, &[]), Cluster::start(1, &[]));
    for cluster in [&ahead, &behind] {
        cluster.leader().await?;
    }
    behind.put(0, "k", "old").await?;
    for value in ["1", "2", "new"] {
        ahead.put(0, "k", value).await?;
    }
    let endpoints = format!(
        "--endpoints={},{}",
        ahead.client_url(0),
        behind.client_url(0)
    );
    let ordered = "--experimental-serializable-ordering".to_owned();
    let plain = Proxy::start("grpc-proxy", "http", std::slice::from_ref(&endpoints))?;
    let ordered = Proxy::start("grpc-proxy", "http", &[endpoints, ordered])?;
    let connected = async |proxy: &Proxy| {
        let client = Client::connect(Config::new([&proxy.url])).await?;
        // Another key, whose answer may be kept.
        until("the proxy to serve", || async {
            Ok(client.get("other").await?)
        })
        .await?;
        anyhow::Ok(client)
    };
    let (plain, ordered) = (connected(&plain).await?, connected(&ordered).await?);

    ahead.kill(0);
    assert_eq!(serializable(&plain).await?, "old");
    let refused = serializable(&ordered).await.unwrap_err().to_string();
    assert!(
        refused.contains("no cluster members have a revision higher"),
        "{refused}"
    );

    for value in ["1", "2", "caught up"] {
        behind.put(0, "k", value).await?;
    }
    assert_eq!(serializable(&ordered).await?, "caught up");
    Ok(())
}

#[tokio::test]
async fn an_ordered_proxy_before_a_cluster_with_users_serves_them() -> Result<()> {
    let cluster = Cluster::start(1, &["--bcrypt-cost=4"]);
    cluster.leader().await?;
    cluster.put(0, "k", "1").await?;
    let direct = Client::connect(Config::new([cluster.client_url(0)])).await?;
    let root = AuthUserAddRequest {
        name: "root".to_owned(),
        password: "secret".to_owned(),
        ..AuthUserAddRequest::default()
    };
    direct.user_add(root).await?;
    let role = AuthUserGrantRoleRequest {
        user: "root".to_owned(),
        role: "root".to_owned(),
    };
    direct.user_grant_role(role).await?;
    direct.auth_enable(AuthEnableRequest {}).await?;
    let flags = [
        format!("--endpoints={}", cluster.client_url(0)),
        "--experimental-serializable-ordering".to_owned(),
    ];
    let proxy = Proxy::start("grpc-proxy", "http", &flags)?;
    let config = Config {
        credentials: Some(Credentials::Password {
            user: "root".to_owned(),
            password: "secret".to_owned(),
        }),
        ..Config::new([&proxy.url])
    };
    until("the proxy to serve", || async {
        let client = Client::connect(config.clone()).await?;
        ensure!(serializable(&client).await? == "1");
        Ok(())
    })
    .await
}
