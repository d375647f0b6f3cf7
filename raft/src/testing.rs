//! Members for tests: a state machine that records what it is given, a log in a temporary folder or
//! on a disk in memory, and a network of channels.
//!
//! With the disk in memory no thread takes part but the test's own, so such a cluster runs on a
//! paused clock: what a test says of time then holds on any machine, however busy.

use std::collections::{BTreeMap, BTreeSet};
use std::io;
use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use futures_util::{StreamExt, stream};
use kv_wal::fs::{FaultFs, RealFs};
use kv_wal::{Identity, Recovered, Step, Wal};
use parking_lot::{Condvar, Mutex};
use tempfile::TempDir;

use crate::error::PeerError;
use crate::network::AnswerStream;
use crate::{
    Applied, ByteStream, CheckpointFuture, CommittedEntry, Config, EntryBody, InstallFuture, Lane,
    NoPeers, Node, PeerFuture, PeerTransport, ProposeError, Role, Rpc, SnapshotSource,
    StateMachine, Status,
};

/// How long a test waits for what must happen.
pub(crate) const PATIENCE: Duration = Duration::from_secs(60);

/// Waits for what no channel tells; fails with `what` if it never comes.
pub(crate) async fn eventually(what: &str, mut condition: impl FnMut() -> bool) {
    let give_up = tokio::time::Instant::now() + PATIENCE;
    while !condition() {
        assert!(tokio::time::Instant::now() < give_up, "{what}: never");
        tokio::time::sleep(Duration::from_millis(2)).await;
    }
}

/// What a recording state machine holds, seen from outside.
#[derive(Clone, Default)]
pub(crate) struct Ledger {
    book: Arc<Mutex<Book>>,
    opened: Arc<Condvar>,
}

#[derive(Default)]
struct Book {
    now: Page,
    /// What a restart finds.
    durable: Page,
    /// Entries given since the start of this process.
    given: Vec<u64>,
    shut: bool,
    broken: Option<Breakage>,
}

/// How an apply goes wrong.
#[derive(Clone, Copy)]
pub(crate) enum Breakage {
    Error,
    Panic,
}

/// One state of the machine.
#[derive(Clone, Default)]
struct Page {
    applied: Applied,
    commands: Vec<Bytes>,
}

impl Ledger {
    /// All commands, in the order they were applied.
    pub(crate) fn commands(&self) -> Vec<Bytes> {
        self.book.lock().now.commands.clone()
    }

    pub(crate) fn applied_index(&self) -> u64 {
        self.book.lock().now.applied.index
    }

    /// Indexes that apply was given since the start.
    pub(crate) fn given(&self) -> Vec<u64> {
        self.book.lock().given.clone()
    }

    /// Makes the present state what a restart finds.
    pub(crate) fn persist(&self) {
        let mut book = self.book.lock();
        book.durable = book.now.clone();
    }

    /// Lets every apply wait until [`open`](Self::open).
    pub(crate) fn shut(&self) {
        self.book.lock().shut = true;
    }

    pub(crate) fn open(&self) {
        self.book.lock().shut = false;
        self.opened.notify_all();
    }

    /// Lets every apply fail.
    pub(crate) fn break_down(&self, how: Breakage) {
        self.book.lock().broken = Some(how);
    }

    /// The machine as a process that just started finds it.
    pub(crate) fn machine(&self) -> Box<dyn StateMachine> {
        let mut book = self.book.lock();
        book.now = book.durable.clone();
        book.given.clear();
        drop(book);
        Box::new(self.clone())
    }
}

impl StateMachine for Ledger {
    fn applied(&mut self) -> io::Result<Applied> {
        Ok(self.book.lock().now.applied.clone())
    }

    fn apply(&mut self, entries: Vec<CommittedEntry>) -> io::Result<()> {
        let mut book = self.book.lock();
        while book.shut {
            self.opened.wait(&mut book);
        }
        match book.broken {
            Some(Breakage::Error) => return Err(io::Error::other("the ledger is broken")),
            Some(Breakage::Panic) => panic!("the ledger panics, as the test wants"),
            None => {}
        }
        for entry in entries {
            book.given.push(entry.index);
            book.now.applied.index = entry.index;
            book.now.applied.term = entry.term;
            match entry.body {
                EntryBody::Blank => {}
                EntryBody::Commands(commands) => book.now.commands.extend(commands),
                EntryBody::Membership {
                    membership,
                    command,
                } => {
                    book.now.applied.membership = membership;
                    book.now.commands.extend(command);
                }
            }
        }
        Ok(())
    }

    fn checkpoint(&mut self) -> CheckpointFuture {
        self.persist();
        let applied = self.book.lock().durable.applied.clone();
        Box::pin(std::future::ready(Ok(applied)))
    }

    fn snapshot(&mut self) -> io::Result<Box<dyn SnapshotSource>> {
        let page = self.book.lock().now.clone();
        Ok(Box::new(PageSource {
            applied: page.applied,
            commands: page.commands.into(),
        }))
    }

    fn install(
        &mut self,
        applied: Applied,
        mut source: Box<dyn SnapshotSource>,
    ) -> InstallFuture<'_> {
        Box::pin(async move {
            let mut commands = Vec::new();
            while let Some(command) = source.next_chunk()? {
                commands.push(command);
            }
            let mut book = self.book.lock();
            book.now = Page { applied, commands };
            book.durable = book.now.clone();
            Ok(())
        })
    }
}

/// A page, a command a chunk.
struct PageSource {
    applied: Applied,
    commands: std::collections::VecDeque<Bytes>,
}

impl SnapshotSource for PageSource {
    fn applied(&self) -> Applied {
        self.applied.clone()
    }

    fn next_chunk(&mut self) -> io::Result<Option<Bytes>> {
        Ok(self.commands.pop_front())
    }
}

/// Opens the log in `dir`, or makes one.
pub(crate) fn open_wal(dir: &Path, member_id: u64) -> (Wal, Recovered) {
    let identity = Identity {
        cluster_id: 7,
        member_id,
        incarnation: 1,
    };
    let mut config = kv_wal::Config::new(dir.join("wal"), identity);
    config.segment_bytes = 1 << 20;
    if Wal::exists(&config.dir, &RealFs).unwrap() {
        return Wal::open(Arc::new(RealFs), config).unwrap();
    }
    let wal = Wal::create(Arc::new(RealFs), config).unwrap();
    (wal, empty_recovered(identity))
}

/// Opens the log on `disk`, or makes one, and drives it whenever there is work.
fn open_wal_in_memory(disk: &FaultFs, member_id: u64) -> (Wal, Recovered) {
    let identity = Identity {
        cluster_id: 7,
        member_id,
        incarnation: 1,
    };
    let mut config = kv_wal::Config::new("/wal", identity);
    config.segment_bytes = 1 << 20;
    let fs = Arc::new(disk.clone());
    let (wal, recovered) = if Wal::exists(&config.dir, disk).unwrap_or(false) {
        Wal::open_stepped(fs, config).unwrap()
    } else {
        let wal = Wal::create_stepped(fs, config).unwrap();
        (wal, empty_recovered(identity))
    };
    let work = Arc::new(tokio::sync::Notify::new());
    let announced = work.clone();
    wal.set_work_hook(Box::new(move || announced.notify_one()));
    let driven = wal.clone();
    tokio::spawn(async move {
        loop {
            work.notified().await;
            while driven.step() == Step::Progress {}
        }
    });
    (wal, recovered)
}

/// What a log that was just created contains.
pub(crate) fn empty_recovered(identity: Identity) -> Recovered {
    let (vote, committed, purged, cut) = (None, None, None, None);
    Recovered {
        identity,
        vote,
        committed,
        purged,
        entries: Vec::new(),
        cut,
    }
}

/// A member that can be stopped and started over the same folder.
pub(crate) struct Member {
    pub(crate) id: u64,
    pub(crate) config: Config,
    pub(crate) ledger: Ledger,
    pub(crate) dir: TempDir,
    /// Where the log is instead, of a member on a paused clock.
    disk: Option<FaultFs>,
    transport: Arc<dyn PeerTransport>,
    running: Option<(Node, Wal)>,
}

impl Member {
    /// A member alone; its cluster is not yet initialized.
    pub(crate) fn alone(config: Config) -> Member {
        Member::new(config, Arc::new(NoPeers))
    }

    pub(crate) fn new(config: Config, transport: Arc<dyn PeerTransport>) -> Member {
        let dir = tempfile::tempdir().unwrap();
        let (id, ledger) = (config.member_id, Ledger::default());
        Member {
            id,
            config,
            ledger,
            dir,
            disk: None,
            transport,
            running: None,
        }
    }

    /// A member of a cluster of one that leads.
    pub(crate) async fn leading(config: Config) -> Member {
        let mut member = Member::alone(config);
        member.start().await;
        member.node().initialize(&[member.id]).await.unwrap();
        member.wait_leading().await;
        member
    }

    pub(crate) async fn start(&mut self) -> Node {
        let (wal, recovered) = match &self.disk {
            Some(disk) => open_wal_in_memory(disk, self.id),
            None => open_wal(self.dir.path(), self.id),
        };
        let machine = self.ledger.machine();
        let transport = self.transport.clone();
        let node = Node::start(
            self.config.clone(),
            wal.clone(),
            recovered,
            machine,
            transport,
        )
        .await
        .unwrap();
        self.running = Some((node.clone(), wal));
        node
    }

    pub(crate) async fn stop(&mut self) {
        let (node, wal) = self.running.take().unwrap();
        node.shutdown().await.unwrap();
        if wal.is_stepped() {
            return wal.close().unwrap();
        }
        tokio::task::spawn_blocking(move || wal.close().unwrap())
            .await
            .unwrap();
    }

    pub(crate) async fn restart(&mut self) {
        self.stop().await;
        self.start().await;
    }

    pub(crate) fn node(&self) -> &Node {
        &self.running.as_ref().unwrap().0
    }

    pub(crate) fn wal(&self) -> &Wal {
        &self.running.as_ref().unwrap().1
    }

    pub(crate) async fn wait_leading(&self) -> Status {
        self.wait_status(|status| status.role == Role::Leader && status.leader == Some(self.id))
            .await
    }

    pub(crate) async fn wait_status(&self, mut condition: impl FnMut(&Status) -> bool) -> Status {
        let mut status = self.node().watch_status();
        let found = tokio::time::timeout(PATIENCE, status.wait_for(&mut condition)).await;
        found
            .expect("the status never became what it must")
            .unwrap()
            .clone()
    }

    /// Proposes `command` and waits until it is applied here. While nobody leads it waits, as the
    /// owner of a node does.
    pub(crate) async fn put(&self, command: impl Into<Bytes>) {
        let command = command.into();
        let give_up = tokio::time::Instant::now() + PATIENCE;
        let mut refused = self.propose(vec![command.clone()]);
        let mut applied = self.node().watch_applied();
        loop {
            let done = applied.wait_for(|_| self.ledger.commands().contains(&command));
            tokio::select! {
                done = done => return drop(done.unwrap()),
                Ok(error) = &mut refused => {
                    let nobody = ProposeError::NotLeader { leader: None };
                    assert_eq!(error, nobody, "{command:?} was refused");
                    self.wait_status(|status| status.leader.is_some()).await;
                    refused = self.propose(vec![command.clone()]);
                }
                () = tokio::time::sleep_until(give_up) => {
                    let status = self.node().status();
                    let progress = status.voters.iter().map(|id| self.node().peer_progress(*id));
                    let progress: Vec<_> = progress.collect();
                    panic!("{command:?} was never applied; {status:?}, {progress:?}");
                }
            }
        }
    }

    /// Proposes `commands`; the receiver yields the refusal, or an error if there is none.
    pub(crate) fn propose(
        &self,
        commands: Vec<Bytes>,
    ) -> tokio::sync::oneshot::Receiver<ProposeError> {
        let (sender, refused) = tokio::sync::oneshot::channel();
        self.node()
            .propose(commands, Box::new(move |error| drop(sender.send(error))));
        refused
    }
}

/// Fast timers, for tests that wait for elections.
pub(crate) fn fast_config(member_id: u64) -> Config {
    Config {
        member_id,
        election_timeout: Duration::from_millis(500),
        heartbeat_interval: Duration::from_millis(50),
        ..Config::default()
    }
}

/// Members of one cluster, numbered from 1, one of which leads.
pub(crate) struct Cluster {
    pub(crate) links: Links,
    members: Vec<Member>,
    disks: Disks,
}

/// Where the logs of a cluster are.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Disks {
    Folders,
    Memory,
}

impl Cluster {
    /// Three members.
    pub(crate) async fn start(tune: impl Fn(Config) -> Config) -> Cluster {
        Cluster::of(3, tune).await
    }

    /// As many members as `count` says.
    pub(crate) async fn of(count: u64, tune: impl Fn(Config) -> Config) -> Cluster {
        Cluster::on(Disks::Folders, count, tune).await
    }

    /// Three members for a test on a paused clock.
    pub(crate) async fn in_memory(tune: impl Fn(Config) -> Config) -> Cluster {
        Cluster::on(Disks::Memory, 3, tune).await
    }

    async fn on(disks: Disks, count: u64, tune: impl Fn(Config) -> Config) -> Cluster {
        let links = Links::default();
        let mut cluster = Cluster {
            links,
            members: Vec::new(),
            disks,
        };
        for id in 1..=count {
            cluster.start_new(tune(steady_config(id))).await;
        }
        let ids: Vec<u64> = (1..=count).collect();
        for member in &cluster.members {
            // A member whom another's first entries have already reached has nothing to write.
            match member.node().initialize(&ids).await {
                Ok(()) | Err(crate::Error::AlreadyInitialized) => {}
                Err(error) => panic!("member {}: {error}", member.id),
            }
        }
        cluster.leader().await;
        cluster
    }

    /// Starts the next member with an empty disk; it waits to be contacted.
    pub(crate) async fn start_new(&mut self, config: Config) {
        let id = config.member_id;
        assert_eq!(id, self.members.len() as u64 + 1, "ids are given in order");
        let mut member = Member::new(config, self.links.transport(id));
        member.disk = (self.disks == Disks::Memory).then(FaultFs::new);
        self.links.connect(id, member.start().await);
        self.members.push(member);
    }

    pub(crate) fn member(&self, id: u64) -> &Member {
        &self.members[id as usize - 1]
    }

    /// The id of a leader that every running member agrees on.
    pub(crate) async fn leader(&self) -> u64 {
        let ids: Vec<u64> = self.members.iter().map(|member| member.id).collect();
        self.leader_of(&ids).await
    }

    pub(crate) async fn leader_of(&self, ids: &[u64]) -> u64 {
        let first = self.member(ids[0]);
        let give_up = tokio::time::Instant::now() + PATIENCE;
        loop {
            let statuses = || ids.iter().map(|id| self.member(*id).node().status());
            assert!(
                tokio::time::Instant::now() < give_up,
                "no leader that all agree on: {:?}",
                statuses().collect::<Vec<_>>()
            );
            let seen = first.wait_status(|status| status.leader.is_some()).await;
            let leader = seen.leader.unwrap();
            let agree = ids.iter().all(|id| {
                let status = self.member(*id).node().status();
                status.leader == Some(leader) && status.term == seen.term
            });
            if agree && ids.contains(&leader) {
                return leader;
            }
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
    }

    /// Waits until `id` has applied what the leader has now.
    pub(crate) async fn caught_up(&self, id: u64, leader: u64) {
        let index = self.member(leader).node().linearizable().await.unwrap();
        let applied = self.member(id).node().wait_applied(index);
        tokio::time::timeout(PATIENCE, applied)
            .await
            .unwrap()
            .unwrap();
    }

    pub(crate) async fn stop_member(&mut self, id: u64) {
        self.links.disconnect(id);
        self.members[id as usize - 1].stop().await;
    }

    pub(crate) async fn start_member(&mut self, id: u64) {
        let node = self.members[id as usize - 1].start().await;
        self.links.connect(id, node);
    }

    pub(crate) async fn stop(mut self) {
        for member in &mut self.members {
            if member.running.is_some() {
                member.stop().await;
            }
        }
    }
}

/// Timers that a busy machine keeps.
pub(crate) fn steady_config(member_id: u64) -> Config {
    Config {
        member_id,
        election_timeout: Duration::from_millis(1500),
        heartbeat_interval: Duration::from_millis(150),
        ..Config::default()
    }
}

/// Connects nodes of this process; links can be cut.
#[derive(Clone, Default)]
pub(crate) struct Links {
    state: Arc<Mutex<LinkState>>,
}

#[derive(Default)]
struct LinkState {
    nodes: BTreeMap<u64, Node>,
    isolated: BTreeSet<u64>,
    /// Proposals for which there was no link.
    proposals_not_sent: usize,
    /// Streams of entries for which there was no link.
    appends_not_opened: usize,
    /// Who is asked to take over the leadership is cut off before it hears of it.
    cuts_off_successors: bool,
}

impl Links {
    pub(crate) fn connect(&self, id: u64, node: Node) {
        self.state.lock().nodes.insert(id, node);
    }

    pub(crate) fn disconnect(&self, id: u64) {
        self.state.lock().nodes.remove(&id);
    }

    /// Cuts a member off from all others, both ways.
    pub(crate) fn isolate(&self, id: u64) {
        self.state.lock().isolated.insert(id);
    }

    pub(crate) fn proposals_not_sent(&self) -> usize {
        self.state.lock().proposals_not_sent
    }

    pub(crate) fn appends_not_opened(&self) -> usize {
        self.state.lock().appends_not_opened
    }

    /// Lets whoever is asked to take over the leadership lose its links at that moment.
    pub(crate) fn cut_off_successors(&self) {
        self.state.lock().cuts_off_successors = true;
    }

    pub(crate) fn heal(&self) {
        let mut state = self.state.lock();
        state.isolated.clear();
        state.cuts_off_successors = false;
    }

    pub(crate) fn transport(&self, from: u64) -> Arc<dyn PeerTransport> {
        Arc::new(Link {
            from,
            links: self.clone(),
        })
    }

    fn route(&self, from: u64, to: u64) -> Result<Node, PeerError> {
        let state = self.state.lock();
        let cut = state.isolated.contains(&from) || state.isolated.contains(&to);
        let node = state.nodes.get(&to).filter(|_| !cut).cloned();
        node.ok_or_else(|| PeerError::NotSent(format!("no link from {from} to {to}")))
    }

    /// The link still stands, so an answer passes.
    fn passes(&self, from: u64, to: u64) -> Result<(), PeerError> {
        match self.route(from, to) {
            Ok(_) => Ok(()),
            Err(error) => Err(PeerError::Unreachable(error.to_string())),
        }
    }
}

struct Link {
    from: u64,
    links: Links,
}

impl PeerTransport for Link {
    fn call(
        &self,
        peer: u64,
        rpc: Rpc,
        request: Bytes,
        timeout: Duration,
    ) -> PeerFuture<'_, Bytes> {
        Box::pin(async move {
            if rpc == Rpc::TransferLeader && self.links.state.lock().cuts_off_successors {
                // All members are told, so that they let the successor win.
                let transfer = crate::wire::decode_transfer(request.clone()).unwrap();
                self.links.isolate(*transfer.to_node_id());
            }
            let node = self.links.route(self.from, peer).inspect_err(|_| {
                if rpc == Rpc::Propose {
                    self.links.state.lock().proposals_not_sent += 1;
                }
            })?;
            let answer = tokio::time::timeout(timeout, node.answer(rpc, request))
                .await
                .map_err(|_| PeerError::Timeout)?
                .map_err(|error| PeerError::Answer(error.to_string()))?;
            self.links.passes(self.from, peer)?;
            Ok(answer)
        })
    }

    fn append_stream(
        &self,
        peer: u64,
        lane: Lane,
        requests: ByteStream,
        _: Duration,
    ) -> PeerFuture<'_, AnswerStream> {
        Box::pin(async move {
            let node = self.links.route(self.from, peer).inspect_err(|_| {
                if lane == Lane::Replication {
                    self.links.state.lock().appends_not_opened += 1;
                }
            })?;
            let (links, from) = (self.links.clone(), self.from);
            let passing =
                requests.take_while(move |_| std::future::ready(links.route(from, peer).is_ok()));
            let answers = node.answer_append_stream(Box::pin(passing));
            let (links, from) = (self.links.clone(), self.from);
            let answers = answers
                .map(move |answer| links.passes(from, peer).map(|()| answer))
                .chain(stream::iter([Err(PeerError::Unreachable(
                    "the stream ended".into(),
                ))]));
            Ok(Box::pin(answers) as AnswerStream)
        })
    }

    fn snapshot(
        &self,
        peer: u64,
        header: Bytes,
        source: Box<dyn SnapshotSource>,
    ) -> PeerFuture<'_, Bytes> {
        Box::pin(async move {
            let node = self.links.route(self.from, peer)?;
            node.answer_snapshot(header, source)
                .await
                .map_err(|error| PeerError::Answer(error.to_string()))
        })
    }
}
