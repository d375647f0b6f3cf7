//! Members over channels, with real logs and databases: one falls behind the log and is caught up by a snapshot.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::{Duration, Instant};

use bytes::Bytes;
use futures_util::StreamExt;
use kv_mvcc::backend::{Backend, EngineKind, Options};
use kv_mvcc::lease::WithKeys;
use kv_mvcc::watch::{StreamOptions, WatchCreate, WatchStream};
use kv_mvcc::{RangeQuery, Store, StoreOptions};
use kv_proto::command::{AuthChange, Body, Caller, Command};
use kv_proto::commandpb::{AuthUserAdd, ClusterVersionSet, MemberPublish};
use kv_proto::etcdserverpb::alarm_request::AlarmAction;
use kv_proto::etcdserverpb::{
    AlarmRequest, AlarmType, AuthRoleAddRequest, AuthUserGrantRoleRequest, CompactionRequest,
    LeaseGrantRequest, PutRequest, WatchCreateRequest,
};
use kv_proto::key_range::KeyRange;
use kv_raft::{
    AnswerStream, ByteStream, Lane, Node, PeerError, PeerFuture, PeerTransport, Role, Rpc,
    SnapshotSource,
};
use kv_wal::fs::RealFs;
use kv_wal::{Identity, Wal};
use parking_lot::Mutex;
use tempfile::TempDir;
use tokio_util::sync::CancellationToken;

use crate::alarm::Alarms;
use crate::apply::Applier;
use crate::auth::Auth;
use crate::cluster::Cluster;
use crate::config::Config;
use crate::metrics::Metrics;
use crate::wait::Wait;

/// How long a test waits for what must happen.
const PATIENCE: Duration = Duration::from_secs(60);

/// Entries that make every member purge its log.
const ENTRIES: usize = 2500;

const LEASE: i64 = 99;

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_member_cut_off_for_long_is_caught_up_and_its_watchers_go_on() {
    let cluster = Members::start().await;
    let leader = cluster.leader().await;
    let lagging = leader % 3 + 1;
    cluster
        .propose(
            leader,
            Body::LeaseGrant(LeaseGrantRequest {
                id: LEASE,
                ttl: 600,
            }),
        )
        .await;
    cluster.propose(leader, put("before", 1)).await;
    cluster.caught_up(lagging, leader).await;
    let stream = watch(&cluster.member(lagging).store);
    cluster.links.cut(lagging);

    cluster.propose_much(leader).await;
    cluster.propose_tables(leader).await;
    cluster.links.heal();
    cluster.caught_up(lagging, leader).await;

    assert!(cluster.links.snapshots() > 0, "entries alone caught it up");
    cluster.assert_equal(lagging, leader);
    let last = cluster.member(leader).store.revision();
    assert_eq!(
        revisions(&stream, last).await,
        (3..=last).collect::<Vec<_>>()
    );
    // It votes, applies and purges like any other afterwards.
    cluster.propose_much(leader).await;
    cluster.caught_up(lagging, leader).await;
    cluster.assert_equal(lagging, leader);
    cluster.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_member_caught_up_by_a_snapshot_comes_back_with_it() {
    let mut cluster = Members::start().await;
    let leader = cluster.leader().await;
    let lagging = leader % 3 + 1;
    cluster.stop_member(lagging).await;
    cluster.propose_much(leader).await;
    cluster.propose_tables(leader).await;
    cluster.start_member(lagging).await;
    cluster.caught_up(lagging, leader).await;
    assert!(cluster.links.snapshots() > 0, "entries alone caught it up");

    // At once: its log may end below what its database contains, and the leader know nothing of it.
    cluster.stop_member(lagging).await;
    cluster.propose(leader, put("after", 1)).await;
    cluster.start_member(lagging).await;
    cluster.caught_up(lagging, leader).await;

    cluster.assert_equal(lagging, leader);
    cluster.stop().await;
}

fn put(key: &'static str, lease: i64) -> Body {
    Body::Put(PutRequest {
        key: key.into(),
        value: "value".into(),
        lease: if lease == LEASE { LEASE } else { 0 },
        ..Default::default()
    })
}

/// A watch of all keys from now on.
fn watch(store: &Arc<Store>) -> WatchStream {
    let options = StreamOptions {
        spawn: Arc::new(|job| drop(tokio::task::spawn_blocking(job))),
        progress_interval: Duration::from_secs(3600),
        fragment_bytes_min: 2 << 20,
        header: Default::default(),
        wake_group: None,
    };
    let stream = store.watch_hub().open_stream(store.clone(), options);
    let request = WatchCreateRequest {
        key: Bytes::from_static(b"\0"),
        range_end: Bytes::from_static(b"\0"),
        ..Default::default()
    };
    stream.create(WatchCreate::from_request(&request)).unwrap();
    stream
}

/// The revisions that the stream delivers up to `last`.
async fn revisions(stream: &WatchStream, last: i64) -> Vec<i64> {
    let mut revisions = Vec::new();
    while revisions.last() != Some(&last) {
        let output = within(stream.next()).await.unwrap();
        assert!(!output.canceled);
        let events = output.events.iter().flat_map(|batch| batch.events());
        revisions.extend(events.map(|event| event.kv.unwrap().mod_revision));
    }
    revisions
}

async fn within<T>(future: impl Future<Output = T>) -> T {
    tokio::time::timeout(PATIENCE, future)
        .await
        .expect("what must happen did not")
}

/// Three members.
struct Members {
    links: Links,
    members: BTreeMap<u64, Running>,
    stopped: BTreeMap<u64, TempDir>,
}

struct Running {
    node: Node,
    wal: Wal,
    store: Arc<Store>,
    cluster: Arc<Cluster>,
    alarms: Arc<Alarms>,
    auth: Arc<Auth>,
    dir: TempDir,
}

impl Members {
    async fn start() -> Members {
        let mut cluster = Members {
            links: Links::default(),
            members: BTreeMap::new(),
            stopped: BTreeMap::new(),
        };
        for id in 1..=3 {
            cluster.stopped.insert(id, tempfile::tempdir().unwrap());
            cluster.start_member(id).await;
        }
        for member in cluster.members.values() {
            match member.node.initialize(&[1, 2, 3]).await {
                Ok(()) | Err(kv_raft::Error::AlreadyInitialized) => {}
                Err(error) => panic!("{error}"),
            }
        }
        cluster
    }

    async fn start_member(&mut self, id: u64) {
        let dir = self.stopped.remove(&id).unwrap();
        let options = Options {
            // A snapshot goes from any engine to any.
            engine: Some(if id == 3 {
                EngineKind::Sled
            } else {
                EngineKind::Redb
            }),
            cache_bytes: 8 << 20,
            ..Options::default()
        };
        let backend = Backend::open(dir.path(), options).unwrap();
        let store = Store::open(backend, StoreOptions::default()).unwrap();
        let identity = Identity {
            cluster_id: 7,
            member_id: id,
            incarnation: 1,
        };
        let mut config = kv_wal::Config::new(dir.path().join("wal"), identity);
        config.segment_bytes = 1 << 20;
        let fs = Arc::new(RealFs);
        if !Wal::exists(&config.dir, fs.as_ref()).unwrap() {
            Wal::create(fs.clone(), config.clone())
                .unwrap()
                .close()
                .unwrap();
        }
        let (wal, recovered) = Wal::open(fs, config).unwrap();
        let gate = wal.clone();
        store
            .backend()
            .set_commit_gate(move |index| crate::server::wait_flushed(&gate, index));
        let (cluster, alarms) = (Arc::new(Cluster::new(7)), Arc::new(Alarms::default()));
        let config = Config::default();
        let auth = Arc::new(Auth::new(&config, Instant::now()).unwrap());
        super::restore_tables(store.backend(), &cluster, &alarms, &auth).unwrap();
        let applier = Applier::new(
            store.clone(),
            cluster.clone(),
            alarms.clone(),
            auth.clone(),
            Wait::new(1),
            Arc::new(Metrics::new(&config)),
            id,
            &config,
            Instant::now(),
            CancellationToken::new(),
        );
        let raft_config = kv_raft::Config {
            member_id: id,
            election_timeout: Duration::from_millis(500),
            heartbeat_interval: Duration::from_millis(50),
            snapshot_count: 100,
            snapshot_catchup_entries: 10,
            ..Default::default()
        };
        let transport = Arc::new(Link {
            from: id,
            links: self.links.clone(),
        });
        let node = Node::start(
            raft_config,
            wal.clone(),
            recovered,
            Box::new(applier),
            transport,
        )
        .await
        .unwrap();
        self.links.state.lock().nodes.insert(id, node.clone());
        let running = Running {
            node,
            wal,
            store,
            cluster,
            alarms,
            auth,
            dir,
        };
        self.members.insert(id, running);
    }

    async fn stop_member(&mut self, id: u64) {
        let Running {
            node,
            wal,
            store,
            dir,
            ..
        } = self.members.remove(&id).unwrap();
        self.links.state.lock().nodes.remove(&id);
        node.shutdown().await.unwrap();
        let closed = tokio::task::spawn_blocking(move || {
            store.close();
            store.backend().close().unwrap();
            drop(store);
            wal.close().unwrap();
        });
        closed.await.unwrap();
        self.stopped.insert(id, dir);
    }

    async fn stop(mut self) {
        for id in 1..=3 {
            self.stop_member(id).await;
        }
    }

    fn member(&self, id: u64) -> &Running {
        &self.members[&id]
    }

    async fn leader(&self) -> u64 {
        let mut status = self.member(1).node.watch_status();
        let known = within(status.wait_for(|status| status.leader.is_some())).await;
        let leader = known.unwrap().leader.unwrap();
        let mut status = self.member(leader).node.watch_status();
        within(status.wait_for(|status| status.role == Role::Leader))
            .await
            .unwrap();
        leader
    }

    /// Proposes `body` at the leader and waits until it has applied it.
    async fn propose(&self, leader: u64, body: Body) {
        let node = &self.member(leader).node;
        let before = node.status().last_log_index;
        self.submit(leader, body);
        within(async {
            while node.status().last_log_index == before {
                tokio::task::yield_now().await;
            }
            node.wait_applied(node.status().last_log_index)
                .await
                .unwrap();
        })
        .await;
    }

    fn submit(&self, leader: u64, body: Body) {
        let command = Command {
            origin: leader,
            request_id: 0,
            caller: Caller::Nobody,
            body,
        };
        // The test then waits in vain for the command.
        let refused = Box::new(|why| eprintln!("refused: {why}"));
        self.member(leader)
            .node
            .propose(vec![command.encode()], refused);
    }

    /// Enough entries for the start of the log to go.
    async fn propose_much(&self, leader: u64) {
        let node = &self.member(leader).node;
        let target = node.status().last_log_index + ENTRIES as u64;
        for n in 0..ENTRIES {
            self.submit(
                leader,
                put(["a", "b", "c"][n % 3], if n % 7 == 0 { LEASE } else { 0 }),
            );
            if n % 100 == 0 {
                // As many in flight as a busy member has, not all.
                let index = node.status().last_log_index;
                within(node.wait_applied(index)).await.unwrap();
            }
        }
        within(node.wait_applied(target)).await.unwrap();
        // It goes when a second checkpoint stands behind it.
        within(async {
            while node.purged_index() + ENTRIES as u64 / 2 < target {
                self.propose(leader, put("d", 0)).await;
                node.checkpoint().await.unwrap();
            }
        })
        .await;
    }

    /// Entries that change what lies beside the keys.
    async fn propose_tables(&self, leader: u64) {
        let publish = MemberPublish {
            member_id: 2,
            name: "two".into(),
            peer_urls: vec!["http://two:2380".into()],
            ..Default::default()
        };
        self.propose(leader, Body::MemberPublish(publish)).await;
        let version = ClusterVersionSet {
            version: "3.7.0".into(),
        };
        self.propose(leader, Body::ClusterVersionSet(version)).await;
        let user = AuthUserAdd {
            name: "alice".into(),
            no_password: true,
            ..Default::default()
        };
        self.propose(leader, Body::Auth(AuthChange::UserAdd(user)))
            .await;
        let role = AuthRoleAddRequest {
            name: "reader".into(),
        };
        self.propose(leader, Body::Auth(AuthChange::RoleAdd(role)))
            .await;
        let granted = AuthUserGrantRoleRequest {
            user: "alice".into(),
            role: "reader".into(),
        };
        self.propose(leader, Body::Auth(AuthChange::UserGrantRole(granted)))
            .await;
        let alarm = AlarmRequest {
            action: AlarmAction::Activate as i32,
            member_id: 2,
            alarm: AlarmType::Corrupt as i32,
        };
        // Before the alarm, which refuses it.
        let compaction = CompactionRequest {
            revision: 2,
            physical: true,
        };
        self.propose(leader, Body::Compaction(compaction)).await;
        self.propose(leader, Body::Alarm(alarm)).await;
        let cleared = AlarmRequest {
            action: AlarmAction::Deactivate as i32,
            ..alarm
        };
        self.propose(leader, Body::Alarm(cleared)).await;
        let no_space = AlarmRequest {
            member_id: 3,
            alarm: 0,
            ..alarm
        };
        self.propose(leader, Body::Alarm(no_space)).await;
    }

    async fn caught_up(&self, member: u64, leader: u64) {
        let index = self.member(leader).node.applied_index();
        within(self.member(member).node.wait_applied(index))
            .await
            .unwrap();
    }

    fn assert_equal(&self, a: u64, b: u64) {
        let (a, b) = (self.member(a), self.member(b));
        a.store.check_invariants();
        assert_eq!(a.store.hash_kv(0).unwrap(), b.store.hash_kv(0).unwrap());
        let all = RangeQuery::new(KeyRange::From(Bytes::from_static(b"\0")));
        assert_eq!(a.store.range(&all).unwrap(), b.store.range(&all).unwrap());
        let lease = |member: &Running| {
            let lessor = member.store.lessor();
            let info = lessor.time_to_live(LEASE, Duration::ZERO, WithKeys::Yes);
            info.map(|info| (info.granted_ttl_secs, info.keys))
        };
        assert_eq!(lease(a), lease(b));
        assert_eq!(a.cluster.list(), b.cluster.list());
        assert_eq!(a.cluster.version(), b.cluster.version());
        assert_eq!(a.alarms.get(0), b.alarms.get(0));
        assert_eq!(a.auth.state(), b.auth.state());
        assert_eq!(a.auth.state().user("alice").unwrap().roles(), ["reader"]);
    }
}

/// Connects members of this process; one can be cut off.
#[derive(Clone, Default)]
struct Links {
    state: Arc<Mutex<LinkState>>,
    snapshots: Arc<AtomicUsize>,
}

#[derive(Default)]
struct LinkState {
    nodes: BTreeMap<u64, Node>,
    cut: BTreeSet<u64>,
}

impl Links {
    fn cut(&self, id: u64) {
        self.state.lock().cut.insert(id);
    }

    fn heal(&self) {
        self.state.lock().cut.clear();
    }

    /// Snapshots that were sent.
    fn snapshots(&self) -> usize {
        self.snapshots.load(Ordering::Relaxed)
    }

    fn route(&self, from: u64, to: u64) -> Result<Node, PeerError> {
        let state = self.state.lock();
        let cut = state.cut.contains(&from) || state.cut.contains(&to);
        let node = state.nodes.get(&to).filter(|_| !cut).cloned();
        node.ok_or_else(|| PeerError::Unreachable(format!("no link from {from} to {to}")))
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
            let node = self.links.route(self.from, peer)?;
            let answer = tokio::time::timeout(timeout, node.answer(rpc, request));
            let answer = answer.await.map_err(|_| PeerError::Timeout)?;
            self.links.route(self.from, peer)?;
            answer.map_err(|error| PeerError::Answer(error.to_string()))
        })
    }

    fn append_stream(
        &self,
        peer: u64,
        _: Lane,
        requests: ByteStream,
        _: Duration,
    ) -> PeerFuture<'_, AnswerStream> {
        Box::pin(async move {
            let node = self.links.route(self.from, peer)?;
            let (links, from) = (self.links.clone(), self.from);
            let passing =
                requests.take_while(move |_| std::future::ready(links.route(from, peer).is_ok()));
            let answers = node.answer_append_stream(Box::pin(passing));
            let (links, from) = (self.links.clone(), self.from);
            let ended = PeerError::Unreachable("the stream ended".into());
            let answers = answers
                .map(move |answer| links.route(from, peer).map(|_| answer))
                .chain(futures_util::stream::iter([Err(ended)]));
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
            self.links.snapshots.fetch_add(1, Ordering::Relaxed);
            let answer = node.answer_snapshot(header, source).await;
            answer.map_err(|error| PeerError::Answer(error.to_string()))
        })
    }
}
