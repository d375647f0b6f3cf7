//! Several members as processes on loopback, and what a test asks of them.

use std::path::PathBuf;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail, ensure};
use kv_proto::etcdserverpb::cluster_client::ClusterClient;
use kv_proto::etcdserverpb::kv_client::KvClient;
use kv_proto::etcdserverpb::maintenance_client::MaintenanceClient;
use kv_proto::etcdserverpb::{
    AlarmMember, AlarmRequest, HashKvRequest, HashKvResponse, Member, MemberListRequest,
    PutRequest, RangeRequest, StatusRequest, StatusResponse,
};
use rustix::process::Signal;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;
use tonic::transport::{Channel, Endpoint};

use crate::link::Link;
use crate::mesh::Mesh;
use crate::process::{Kvd, KvdOptions, connect, free_port};

/// How long anything that a test waits for may take.
const LIMIT: Duration = Duration::from_secs(30);
/// One request; a member without a leader answers later.
const REQUEST_LIMIT: Duration = Duration::from_secs(10);
/// Pause between two looks at a condition.
const PAUSE: Duration = Duration::from_millis(20);

/// A member's place: its folder, its ports, how it is started.
pub struct Place {
    /// `--name`.
    pub name: String,
    data_dir: PathBuf,
    client_port: u16,
    /// Where other members dial.
    peer_port: u16,
    /// Where it listens for them; another port if a link is between.
    peer_listen_port: u16,
    flags: Vec<String>,
    env: Vec<(String, String)>,
    wrapper: Vec<String>,
    /// Its address, in a network namespace another one than loopback.
    host: String,
    /// What it runs; `None`: kvd.
    program: Option<PathBuf>,
    /// Whether those that start are told of it.
    is_listed: bool,
}

/// Members of one cluster. All are killed when it is dropped.
pub struct Cluster {
    /// Scheme of the peer URLs.
    peer_scheme: &'static str,
    places: Vec<Place>,
    /// How members find each other, in place of `--initial-cluster`.
    discovery: Option<Vec<String>>,
    running: Vec<Option<Kvd>>,
    mesh: Option<Mesh>,
    /// Last, so that the members end before their folders.
    folder: tempfile::TempDir,
}

impl Cluster {
    /// Starts a new cluster of `count` members; `flags` go to each.
    pub fn start(count: usize, flags: &[&str]) -> Cluster {
        Cluster::start_over("http", count, flags)
    }

    /// As [`Cluster::start`], with TLS between the members.
    pub fn start_tls(count: usize, flags: &[&str]) -> Cluster {
        Cluster::start_over("https", count, flags)
    }

    fn start_over(peer_scheme: &'static str, count: usize, flags: &[&str]) -> Cluster {
        let folder = tempfile::tempdir().expect("a temporary folder can be made");
        let mut cluster = Cluster {
            peer_scheme,
            places: Vec::new(),
            discovery: None,
            running: Vec::new(),
            mesh: None,
            folder,
        };
        for _ in 0..count {
            cluster.add_place(flags);
        }
        for n in 0..count {
            cluster.start_member(n);
        }
        cluster
    }

    /// Makes room for one more member, which is not started; returns its number.
    pub fn add_place(&mut self, flags: &[&str]) -> usize {
        let n = self.places.len();
        let name = format!("m{n}");
        let peer_port = free_port();
        self.places.push(Place {
            data_dir: self.folder.path().join(&name),
            name,
            client_port: free_port(),
            peer_port,
            peer_listen_port: peer_port,
            flags: flags.iter().map(ToString::to_string).collect(),
            env: Vec::new(),
            wrapper: Vec::new(),
            host: "127.0.0.1".into(),
            program: None,
            is_listed: true,
        });
        self.running.push(None);
        n
    }

    /// Puts a link in front of a place that was not started yet: others reach its member through it.
    pub async fn put_link(&mut self, n: usize) -> Result<Link> {
        let place = &mut self.places[n];
        place.peer_listen_port = free_port();
        Ok(Link::open(place.peer_port, place.peer_listen_port).await?)
    }

    /// Puts the mesh in front of a place that was not started yet.
    pub async fn join_mesh(&mut self, n: usize, mesh: &Mesh) -> Result<()> {
        let place = &mut self.places[n];
        place.peer_listen_port = free_port();
        mesh.listen(n, place.peer_port, place.peer_listen_port)
            .await?;
        self.mesh = Some(mesh.clone());
        Ok(())
    }

    /// Sets an environment variable for later starts of a member.
    pub fn set_env(&mut self, n: usize, name: &str, value: &str) {
        let env = &mut self.places[n].env;
        env.retain(|(other, _)| other != name);
        env.push((name.to_owned(), value.to_owned()));
    }

    /// Takes an environment variable away for later starts of a member.
    pub fn unset_env(&mut self, n: usize, name: &str) {
        self.places[n].env.retain(|(other, _)| other != name);
    }

    /// Puts a place that was not started yet into a network namespace with an address of its own.
    pub fn move_into(&mut self, n: usize, namespace: &str, host: &str) {
        let place = &mut self.places[n];
        place.wrapper = ["ip", "netns", "exec", namespace]
            .map(str::to_owned)
            .to_vec();
        place.host = host.to_owned();
    }

    /// Lets a place that was not started yet keep its data elsewhere.
    pub fn set_data_dir(&mut self, n: usize, data_dir: PathBuf) {
        self.places[n].data_dir = data_dir;
    }

    /// The member's name.
    pub fn name(&self, n: usize) -> &str {
        &self.places[n].name
    }

    /// Where the folders are.
    pub fn folder(&self) -> &std::path::Path {
        self.folder.path()
    }

    /// From now on members that start are given these flags in place of `--initial-cluster`.
    pub fn discover_by(&mut self, flags: &[&str]) {
        self.discovery = Some(flags.iter().map(ToString::to_string).collect());
    }

    /// Port that clients dial.
    pub fn client_port(&self, n: usize) -> u16 {
        self.places[n].client_port
    }

    /// Port that other members dial.
    pub fn peer_port(&self, n: usize) -> u16 {
        self.places[n].peer_port
    }

    /// Leaves a member that was removed out of what those that join are told.
    pub fn forget(&mut self, n: usize) {
        self.places[n].is_listed = false;
    }

    /// `name=url` of every place, for `--initial-cluster`.
    pub fn initial_cluster(&self) -> String {
        let listed = self.places.iter().enumerate();
        let parts = listed.filter(|(_, place)| place.is_listed);
        let parts: Vec<String> = parts
            .map(|(n, place)| format!("{}={}", place.name, self.peer_url(n)))
            .collect();
        parts.join(",")
    }

    /// The URL other members dial.
    pub fn peer_url(&self, n: usize) -> String {
        format!(
            "{}://{}:{}",
            self.peer_scheme, self.places[n].host, self.places[n].peer_port
        )
    }

    /// The URL clients dial.
    pub fn client_url(&self, n: usize) -> String {
        let place = &self.places[n];
        format!("http://{}:{}", place.host, place.client_port)
    }

    /// The member's folder.
    pub fn data_dir(&self, n: usize) -> &std::path::Path {
        &self.places[n].data_dir
    }

    /// Starts a member, the first time or again.
    pub fn start_member(&mut self, n: usize) {
        self.start_member_with(n, &[]);
    }

    /// From its next start on, a member runs another program; `None`: kvd.
    pub fn set_program(&mut self, n: usize, program: Option<&str>) {
        self.places[n].program = program.map(PathBuf::from);
    }

    /// Starts a member with further flags.
    pub fn start_member_with(&mut self, n: usize, flags: &[&str]) {
        let told = match &self.discovery {
            Some(flags) => flags.clone(),
            None => vec!["--initial-cluster".to_owned(), self.initial_cluster()],
        };
        let place = &self.places[n];
        let mut args = vec!["--name".to_owned(), place.name.clone()];
        args.extend(told);
        args.extend(place.flags.iter().cloned());
        args.extend(flags.iter().map(ToString::to_string));
        let options = KvdOptions {
            args,
            program: place.program.clone(),
            peer_scheme: self.peer_scheme.to_owned(),
            advertised_peer_port: Some(place.peer_port),
            host: place.host.clone(),
            env: place.env.clone(),
            wrapper: place.wrapper.clone(),
        };
        let kvd = Kvd::start_on(
            &place.data_dir,
            place.client_port,
            place.peer_listen_port,
            options,
        );
        if let Some(mesh) = &self.mesh {
            mesh.is_run_by(n, kvd.pid());
        }
        self.running[n] = Some(kvd);
    }

    /// Ends a member as a crash would.
    pub fn kill(&mut self, n: usize) {
        if let Some(mut kvd) = self.running[n].take() {
            kvd.kill();
        }
    }

    /// Asks a member to stop and waits for its exit status.
    pub fn terminate(&mut self, n: usize) -> std::process::ExitStatus {
        let kvd = self.running[n].take();
        kvd.expect("the member runs").terminate()
    }

    /// Waits until a member's process ends by itself.
    pub async fn ended(&mut self, n: usize) -> Result<std::process::ExitStatus> {
        let deadline = Instant::now() + LIMIT;
        let kvd = self.running[n].as_mut().context("the member runs")?;
        loop {
            if let Some(status) = kvd.try_wait()? {
                self.running[n] = None;
                return Ok(status);
            }
            ensure!(Instant::now() < deadline, "the member does not end");
            tokio::time::sleep(PAUSE).await;
        }
    }

    /// The exit status of a member that was not asked to end and did; it does not count as running any more.
    pub fn has_ended(&mut self, n: usize) -> Result<Option<std::process::ExitStatus>> {
        let Some(kvd) = self.running[n].as_mut() else {
            return Ok(None);
        };
        let status = kvd.try_wait()?;
        if status.is_some() {
            self.running[n] = None;
        }
        Ok(status)
    }

    /// The process id of a member that runs.
    pub fn pid(&self, n: usize) -> u32 {
        self.running[n].as_ref().expect("the member runs").pid()
    }

    /// Sends a signal to a member that runs.
    pub fn signal(&self, n: usize, signal: Signal) -> Result<()> {
        let kvd = self.running[n].as_ref().context("the member runs")?;
        Ok(kvd.signal(signal)?)
    }

    /// Numbers of the members that run.
    pub fn running(&self) -> Vec<usize> {
        let numbers = self.running.iter().enumerate();
        numbers
            .filter(|(_, kvd)| kvd.is_some())
            .map(|(n, _)| n)
            .collect()
    }

    /// A connection to one member, once it answers.
    pub async fn channel(&self, n: usize) -> Result<Channel> {
        let endpoint = Endpoint::from_shared(self.client_url(n))?.timeout(REQUEST_LIMIT);
        let connect = || connect(&endpoint);
        until(&format!("a connection to {}", self.places[n].name), connect).await
    }

    /// Puts through one member.
    pub async fn put(&self, n: usize, key: &str, value: &str) -> Result<i64> {
        let request = PutRequest {
            key: key.to_owned().into(),
            value: value.to_owned().into(),
            ..Default::default()
        };
        let mut kv = KvClient::new(self.channel(n).await?);
        let answer = kv.put(request).await?.into_inner();
        Ok(answer.header.context("a put has a header")?.revision)
    }

    /// Reads through one member, linearizable unless `serializable`.
    pub async fn get(&self, n: usize, key: &str, serializable: bool) -> Result<Option<String>> {
        let request = RangeRequest {
            key: key.to_owned().into(),
            serializable,
            ..Default::default()
        };
        let mut kv = KvClient::new(self.channel(n).await?);
        let answer = kv.range(request).await?.into_inner();
        let value = answer.kvs.first().map(|kv| kv.value.to_vec());
        Ok(value.map(String::from_utf8).transpose()?)
    }

    /// What a member says about itself.
    pub async fn status(&self, n: usize) -> Result<StatusResponse> {
        let mut maintenance = MaintenanceClient::new(self.channel(n).await?);
        Ok(maintenance.status(StatusRequest {}).await?.into_inner())
    }

    /// The hash of a member's keys at `revision`.
    pub async fn hash_kv(&self, n: usize, revision: i64) -> Result<HashKvResponse> {
        let mut maintenance = MaintenanceClient::new(self.channel(n).await?);
        let answer = maintenance.hash_kv(HashKvRequest { revision }).await?;
        Ok(answer.into_inner())
    }

    /// Answer of a page on the client port.
    pub async fn page(&self, n: usize, path: &str) -> Result<String> {
        let place = &self.places[n];
        let ask = async {
            let mut stream = TcpStream::connect((&*place.host, place.client_port)).await?;
            let request =
                format!("GET {path} HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n\r\n");
            stream.write_all(request.as_bytes()).await?;
            let mut page = String::new();
            stream.read_to_string(&mut page).await?;
            Ok(page)
        };
        let asked = tokio::time::timeout(REQUEST_LIMIT, ask).await;
        asked.with_context(|| format!("{path} of {} does not come", place.name))?
    }

    /// Asks one member about alarms, or to raise or disarm one; those that it names then.
    pub async fn alarms(&self, n: usize, request: AlarmRequest) -> Result<Vec<AlarmMember>> {
        let mut maintenance = MaintenanceClient::new(self.channel(n).await?);
        Ok(maintenance.alarm(request).await?.into_inner().alarms)
    }

    /// The member list as one member shows it by itself.
    pub async fn members(&self, n: usize) -> Result<Vec<Member>> {
        let mut cluster = ClusterClient::new(self.channel(n).await?);
        let request = MemberListRequest {
            linearizable: false,
        };
        Ok(cluster.member_list(request).await?.into_inner().members)
    }

    /// The sum of a metric over all its labels, as a member shows it; 0 if it shows none.
    pub async fn metric(&self, n: usize, name: &str) -> Result<f64> {
        let page = self.page(n, "/metrics").await?;
        let values = page.lines().filter_map(|line| {
            let rest = line.strip_prefix(name)?;
            let value = rest.rsplit(' ').next()?;
            rest.starts_with([' ', '{']).then(|| value.parse::<f64>())
        });
        Ok(values.sum::<Result<f64, _>>()?)
    }

    /// Waits until all members that run name the same leader, one of them; returns its number.
    pub async fn leader(&self) -> Result<usize> {
        until("a leader that all members name", || async {
            let mut leaders = Vec::new();
            let mut found = None;
            for n in self.running() {
                let status = self.status(n).await?;
                let id = status.header.context("a status has a header")?.member_id;
                if id == status.leader {
                    found = Some(n);
                }
                leaders.push(status.leader);
            }
            leaders.dedup();
            ensure!(leaders.len() == 1, "leaders are {leaders:x?}");
            found.context("the leader does not run")
        })
        .await
    }

    /// Waits until all members that run have applied the same entries, then compares what they hold.
    pub async fn converged(&self) -> Result<HashKvResponse> {
        until("equal members", || async {
            let mut applied = Vec::new();
            for n in self.running() {
                applied.push(self.status(n).await?.raft_applied_index);
            }
            applied.dedup();
            ensure!(applied.len() == 1, "applied indexes are {applied:?}");
            Ok(())
        })
        .await?;
        let mut hashes = Vec::new();
        for n in self.running() {
            hashes.push(self.hash_kv(n, 0).await?);
        }
        let first = *hashes.first().context("a member runs")?;
        for hash in &hashes {
            let of = |h: &HashKvResponse| (h.hash, h.compact_revision, h.hash_revision);
            if of(hash) != of(&first) {
                bail!("members differ: {hashes:?}");
            }
        }
        Ok(first)
    }
}

/// Tries until it succeeds; the error is that of the last attempt, which may end [`REQUEST_LIMIT`] after the others.
pub async fn until<T, F>(what: &str, attempt: impl Fn() -> F) -> Result<T>
where
    F: Future<Output = Result<T>>,
{
    let deadline = Instant::now() + LIMIT;
    let end = tokio::time::Instant::from_std(deadline + REQUEST_LIMIT);
    loop {
        let tried = tokio::time::timeout_at(end, attempt()).await;
        match tried.context("the last attempt does not end").flatten() {
            Ok(value) => return Ok(value),
            Err(error) if Instant::now() > deadline => {
                return Err(error.context(format!("waited for {what}")));
            }
            Err(_) => tokio::time::sleep(PAUSE).await,
        }
    }
}
