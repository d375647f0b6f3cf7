//! A member starts from what those who deploy etcd write: kubeadm's static pod, the environment files of etcdadm and kubespray.
//!
//! Paths and addresses are moved into the test's folder and to loopback; everything else is as deployed.

#![allow(clippy::unwrap_used, reason = "a test fails where it unwraps")]

use std::collections::BTreeMap;
use std::net::Ipv4Addr;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::Duration;

use anyhow::Context;
use kv_proto::etcdserverpb::kv_client::KvClient;
use kv_proto::etcdserverpb::{PutRequest, RangeRequest};
use kv_tests::authority::Authority;
use kv_tests::process::{self, free_port, kvd_binary};
use rcgen::CertificateParams;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;
use tonic::transport::{Certificate, Channel, ClientTlsConfig, Endpoint, Identity};

/// A member has this long to serve.
const PATIENCE: Duration = Duration::from_secs(60);
/// Stands for the host's own address, beside 127.0.0.1.
const HOST: &str = "127.0.0.2";

#[tokio::test]
async fn static_pod_starts_with_its_own_command_line_and_answers_its_probes() {
    let place = Place::new();
    let manifest = include_str!("../../deploy/kubernetes/kvd.yaml");
    let pod: serde_json::Value = serde_saphyr::from_str(manifest).unwrap();
    let container = &pod["spec"]["containers"][0];
    let command: Vec<String> = serde_json::from_value(container["command"].clone()).unwrap();
    assert_eq!(command[0], "kvd");
    for folder in ["/var/lib/kvd", "/etc/kubernetes/pki/etcd"] {
        assert!(mounts(container).any(|mount| mount == folder), "{folder}");
    }
    place.certificates("etc/kubernetes/pki/etcd", &["server", "peer", "client"]);

    let arguments = command[1..].iter().map(|argument| place.moved(argument));
    let mut member = Member::start(Command::new(kvd_binary()).args(arguments));

    for probe in ["startupProbe", "livenessProbe", "readinessProbe"] {
        let get = &container[probe]["httpGet"];
        assert_eq!(
            (&get["scheme"], &get["host"]),
            (&"HTTP".into(), &"127.0.0.1".into())
        );
        let port = place.ports[&get["port"].as_u64().unwrap().to_string()];
        member.answers(port, get["path"].as_str().unwrap()).await;
    }
    place
        .writes_and_reads(&mut member, "etc/kubernetes/pki/etcd")
        .await;
}

#[tokio::test]
async fn environment_file_of_etcdadm_starts_a_member() {
    starts_from(
        "ETCD_NAME=host1
         ETCD_INITIAL_CLUSTER=host1=https://10.0.0.1:2380
         ETCD_INITIAL_CLUSTER_TOKEN=d6a0ab8a
         ETCD_INITIAL_CLUSTER_STATE=new
         ETCD_INITIAL_ADVERTISE_PEER_URLS=https://10.0.0.1:2380
         ETCD_LISTEN_PEER_URLS=https://10.0.0.1:2380
         ETCD_CLIENT_CERT_AUTH=true
         ETCD_PEER_CERT_FILE=/etc/etcd/pki/peer.crt
         ETCD_PEER_KEY_FILE=/etc/etcd/pki/peer.key
         ETCD_PEER_TRUSTED_CA_FILE=/etc/etcd/pki/ca.crt
         ETCD_ADVERTISE_CLIENT_URLS=https://10.0.0.1:2379
         ETCD_LISTEN_CLIENT_URLS=https://10.0.0.1:2379,https://127.0.0.1:2379
         ETCD_PEER_CLIENT_CERT_AUTH=true
         ETCD_CERT_FILE=/etc/etcd/pki/server.crt
         ETCD_KEY_FILE=/etc/etcd/pki/server.key
         ETCD_TRUSTED_CA_FILE=/etc/etcd/pki/ca.crt
         ETCD_DATA_DIR=/var/lib/etcd
         ETCD_STRICT_RECONFIG_CHECK=true
         GOMAXPROCS=2",
    )
    .await;
}

#[tokio::test]
async fn environment_file_of_kubespray_starts_a_member() {
    // ETCD_PROXY is of etcd 2; etcd warns of it and goes on.
    starts_from(
        "ETCD_DATA_DIR=/var/lib/etcd
         ETCD_ADVERTISE_CLIENT_URLS=https://10.0.0.1:2379
         ETCD_INITIAL_ADVERTISE_PEER_URLS=https://10.0.0.1:2380
         ETCD_INITIAL_CLUSTER_STATE=new
         ETCD_METRICS=basic
         ETCD_LISTEN_CLIENT_URLS=https://10.0.0.1:2379,https://127.0.0.1:2379
         ETCD_LISTEN_METRICS_URLS=http://127.0.0.1:2381
         ETCD_ELECTION_TIMEOUT=5000
         ETCD_HEARTBEAT_INTERVAL=250
         ETCD_INITIAL_CLUSTER_TOKEN=k8s_etcd
         ETCD_LISTEN_PEER_URLS=https://10.0.0.1:2380
         ETCD_NAME=etcd1
         ETCD_PROXY=off
         ETCD_INITIAL_CLUSTER=etcd1=https://10.0.0.1:2380
         ETCD_AUTO_COMPACTION_RETENTION=8
         ETCD_SNAPSHOT_COUNT=100000
         ETCD_QUOTA_BACKEND_BYTES=2147483648
         ETCD_MAX_REQUEST_BYTES=1572864
         ETCD_LOG_LEVEL=info
         ETCD_MAX_SNAPSHOTS=5
         ETCD_MAX_WALS=5
         ETCD_TRUSTED_CA_FILE=/etc/etcd/pki/ca.crt
         ETCD_CERT_FILE=/etc/etcd/pki/server.crt
         ETCD_KEY_FILE=/etc/etcd/pki/server.key
         ETCD_CLIENT_CERT_AUTH=true
         ETCD_PEER_TRUSTED_CA_FILE=/etc/etcd/pki/ca.crt
         ETCD_PEER_CERT_FILE=/etc/etcd/pki/peer.crt
         ETCD_PEER_KEY_FILE=/etc/etcd/pki/peer.key
         ETCD_PEER_CLIENT_CERT_AUTH=True
         ETCDCTL_ENDPOINTS=https://127.0.0.1:2379
         ETCDCTL_CACERT=/etc/etcd/pki/ca.crt
         ETCDCTL_KEY=/etc/etcd/pki/client.key
         ETCDCTL_CERT=/etc/etcd/pki/client.crt
         ETCD_CORRUPT_CHECK_TIME=5m
         ETCD_CIPHER_SUITES=TLS_ECDHE_RSA_WITH_AES_128_GCM_SHA256,TLS_ECDHE_ECDSA_WITH_AES_128_GCM_SHA256",
    )
    .await;
}

async fn starts_from(file: &str) {
    let place = Place::new();
    place.certificates("etc/etcd/pki", &["server", "peer", "client"]);
    let variables = file
        .lines()
        .map(|line| line.trim().split_once('=').unwrap())
        .map(|(name, value)| (name, place.moved(value)));

    let mut member = Member::start(Command::new(kvd_binary()).envs(variables));

    if file.contains(":2381") {
        member.answers(place.ports["2381"], "/readyz").await;
    }
    place.writes_and_reads(&mut member, "etc/etcd/pki").await;
}

fn mounts(container: &serde_json::Value) -> impl Iterator<Item = &str> {
    let mounts = container["volumeMounts"].as_array().unwrap().iter();
    mounts.map(|mount| mount["mountPath"].as_str().unwrap())
}

/// The folder that stands for the host's root, and the ports that stand for etcd's.
struct Place {
    root: tempfile::TempDir,
    ports: BTreeMap<String, u16>,
}

impl Place {
    fn new() -> Place {
        let ports = ["2379", "2380", "2381"].map(|port| (port.to_owned(), free_port()));
        Place {
            root: tempfile::tempdir().unwrap(),
            ports: ports.into(),
        }
    }

    /// The same text with paths below this root, and addresses and ports of loopback.
    fn moved(&self, text: &str) -> String {
        let root = self.root.path().display();
        let mut text = text
            .replace("/var/lib/", &format!("{root}/var/lib/"))
            .replace("/etc/", &format!("{root}/etc/"))
            .replace("10.0.0.1:", &format!("{HOST}:"));
        for (port, ours) in &self.ports {
            text = text.replace(&format!(":{port}"), &format!(":{ours}"));
        }
        text
    }

    fn path(&self, folder: &str, file: &str) -> PathBuf {
        self.root.path().join(folder).join(file)
    }

    /// Makes an authority and a certificate for each name.
    fn certificates(&self, folder: &str, names: &[&str]) {
        std::fs::create_dir_all(self.root.path().join("var/lib")).unwrap();
        let authority = Authority::new(&self.root.path().join(folder), "authority");
        for name in names {
            let hosts = vec!["127.0.0.1".to_owned(), HOST.to_owned()];
            authority.issue(name, CertificateParams::new(hosts).unwrap());
        }
    }

    /// Writes at one of the member's addresses and reads at the other, with a certificate; without one nothing is read.
    async fn writes_and_reads(&self, member: &mut Member, certificates: &str) {
        let read = |file| std::fs::read(self.path(certificates, file)).unwrap();
        let trusting = ClientTlsConfig::new().ca_certificate(Certificate::from_pem(read("ca.crt")));
        let known = trusting
            .clone()
            .identity(Identity::from_pem(read("client.crt"), read("client.key")));
        let at = |host: &str, tls: ClientTlsConfig| {
            let url = format!("https://{host}:{}", self.ports["2379"]);
            Endpoint::from_shared(url).unwrap().tls_config(tls).unwrap()
        };
        let key = RangeRequest {
            key: "a".into(),
            ..Default::default()
        };

        let mut host = KvClient::new(member.serves(at(HOST, known.clone())).await);
        let put = PutRequest {
            key: "a".into(),
            value: "1".into(),
            ..Default::default()
        };
        host.put(put).await.unwrap();
        let mut loopback = KvClient::new(member.serves(at("127.0.0.1", known)).await);
        let found = loopback.range(key.clone()).await.unwrap().into_inner();
        assert_eq!(found.kvs[0].value, b"1"[..]);

        let mut stranger = KvClient::new(at(HOST, trusting).connect_lazy());
        stranger.range(key).await.unwrap_err();
    }
}

/// A member started by a command line of the test's own; killed when dropped.
struct Member(Child);

impl Member {
    fn start(command: &mut Command) -> Member {
        let command = command.stdin(Stdio::null()).current_dir(Path::new("/"));
        Member(command.spawn().unwrap())
    }

    /// Waits until the page is answered with 200.
    async fn answers(&mut self, port: u16, path: &str) {
        self.until(|| async {
            let mut stream = TcpStream::connect((Ipv4Addr::LOCALHOST, port)).await?;
            let request =
                format!("GET {path} HTTP/1.1\r\nHost: member\r\nConnection: close\r\n\r\n");
            stream.write_all(request.as_bytes()).await?;
            let mut answer = String::new();
            stream.read_to_string(&mut answer).await?;
            anyhow::ensure!(answer.starts_with("HTTP/1.1 200 "), "{path}: {answer}");
            Ok(())
        })
        .await;
    }

    /// Waits until the member answers there.
    async fn serves(&mut self, endpoint: Endpoint) -> Channel {
        self.until(|| process::connect(&endpoint)).await
    }

    async fn until<T, F>(&mut self, check: impl Fn() -> F) -> T
    where
        F: Future<Output = anyhow::Result<T>>,
    {
        let deadline = tokio::time::Instant::now() + PATIENCE;
        loop {
            let checked = tokio::time::timeout_at(deadline, check()).await;
            let error = match checked.context("an attempt does not end").flatten() {
                Ok(value) => return value,
                Err(error) => error,
            };
            if let Some(status) = self.0.try_wait().unwrap() {
                panic!("kvd ended with {status}");
            }
            assert!(
                tokio::time::Instant::now() < deadline,
                "not in time: {error:#}"
            );
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
    }
}

impl Drop for Member {
    fn drop(&mut self) {
        // It may have ended already.
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}
