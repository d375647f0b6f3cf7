//! A member from start to stop.
//!
//! Start: lock the folder, bind the addresses, find out who this member is, open store and log, start raft over both,
//! serve other members, begin or find the cluster, serve clients. Stop, in this order: listeners, client connections,
//! lease expiry, raft with its apply worker, connections of members, store with a last checkpoint, log.
//!
//! Long-lived state and its owner: the log has its writer thread, the store's files their engine thread, physical
//! compaction its thread, raft core, apply and connections between members one runtime, snapshots on their way to other
//! members another, connections of clients the RPC threads, leases the expiry task here, the reserve and the NOSPACE alarm of
//! a full disk the disk-space task.

use std::sync::Arc;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail};
use kv_mvcc::backend::{Backend, EngineKind};
use kv_mvcc::lease::{Checkpoints, LessorOptions};
use kv_mvcc::{Store, StoreOptions};
use kv_raft::Node;
use kv_wal::Wal;
use tokio::runtime::Runtime;
use tokio::sync::Notify;
use tokio_util::sync::CancellationToken;

use crate::alarm::Alarms;
use crate::apply::{self, Applier};
use crate::auth::Auth;
use crate::bootstrap::{self, Beginning, Bootstrap};
use crate::cluster::Cluster;
use crate::config::{Config, Gate, StorageEngine, Url};
use crate::data_dir::DataDir;
use crate::http::Listener as PageListener;
use crate::listener::{self, Http2Settings, Listener, RpcThreads};
use crate::member::{self, Member};
use crate::metrics::Metrics;
use crate::peer::{Connector, Handshake, PeerDispatch, PeerService, Runtimes, Transport};
use crate::propose::Proposer;
use crate::rpc::{Dispatch, Offers};
use crate::tls::{TlsAcceptor, TlsConnector};
use crate::wait::{self, Wait};
use crate::{
    build, clock, compactor, corruption, disk_space, force_new, leader, lease, publish, quota,
    reconfigure, scrub, version_monitor,
};

/// Clients are served once this member is published, or after this time, so that a member without a quorum still
/// answers what needs none. Source: etcd v3.7, the default of its former flag for it.
const CLUSTER_READY_MAX: Duration = Duration::from_secs(5);
/// An fsync of the log that takes longer is worth a warning. Source: etcd v3.7.
const SLOW_FSYNC: Duration = Duration::from_secs(1);

/// How long a removed member lives on.
const REMOVED_GRACE: Duration = Duration::from_secs(1);

/// Tells whether a member lives.
#[derive(Clone)]
pub struct Pulse(Node);

impl Pulse {
    /// Resolves when the core of raft has answered: true, or false if it never will again.
    pub async fn beats(&self) -> bool {
        self.0.is_responsive().await
    }
}

/// A member that serves.
pub struct Server {
    member: Arc<Member>,
    wal: Wal,
    raft_runtime: BackgroundRuntime,
    snapshot_runtime: BackgroundRuntime,
    threads: Arc<RpcThreads>,
    accepting: Vec<tokio::task::JoinHandle<()>>,
    lease_expiry: tokio::task::JoinHandle<()>,
    disk_space: tokio::task::JoinHandle<()>,
    stop_listening: CancellationToken,
    /// Canceled when this member learns that it was removed.
    removed: CancellationToken,
    /// Locked as long as the server lives.
    _folder: Arc<DataDir>,
}

/// A socket that will serve once the member is ready.
struct Bound {
    listener: Listener,
    tls: Option<Arc<TlsAcceptor>>,
    offers: Offers,
}

impl Server {
    /// Starts a member and returns once it serves; must be called within a runtime.
    ///
    /// Errors name the flag, file or address and what to do about it. Nothing of an existing folder is changed
    /// before its lock is held and its owner is known.
    pub async fn start(config: Config) -> Result<Server> {
        if cfg!(feature = "unsafe-no-fsync") {
            tracing::error!("built with unsafe-no-fsync: a power cut loses acknowledged writes");
        }
        let config = Arc::new(config);
        let started = Instant::now();
        let auth = Arc::new(Auth::new(&config, started)?);
        let folder = DataDir::open(&config.data_dir, config.wal_dir.as_deref())?;
        let bound = bind_all(&config).await?;
        let peers_bound = bind_peers(&config).await?;
        let connector = Arc::new(Connector::new(
            tls_to_peers(&config)?,
            config.election_timeout,
        ));
        let Bootstrap {
            identity,
            mut beginning,
        } = bootstrap::identify(&config, &folder, &connector).await?;
        disk_space::prepare(&folder);
        let metrics = Arc::new(Metrics::new(&config));
        let backend = open_backend(&config, &folder)?;
        let store = Store::open(backend.clone(), store_options(&config)).with_context(|| {
            format!(
                "cannot read the database in {}",
                folder.member_dir().display()
            )
        })?;
        let (wal, mut recovered) = open_wal(&folder, identity)?;
        exit_on_failure(&wal, &backend);
        let engine_committed = observe_disk(&metrics, &wal, &backend);
        let gate = wal.clone();
        backend.set_commit_gate(move |index| wait_flushed(&gate, index));

        let cluster = Arc::new(Cluster::new(identity.cluster_id));
        let alarms = Arc::new(Alarms::default());
        apply::restore_tables(&backend, &cluster, &alarms, &auth)?;
        let is_blank = recovered.vote.is_none()
            && recovered.entries.is_empty()
            && recovered.purged.is_none()
            && backend.durable_index() == 0;
        if is_blank && matches!(beginning, Beginning::Restart) {
            beginning = bootstrap::begin_again(&config, identity, &connector).await?;
        }
        if cluster.is_removed(identity.member_id) {
            bail!(
                "member {:x} has been permanently removed from its cluster: take the folder {} away, add the member \
                 again with `etcdctl member add`, and start it with an empty folder",
                identity.member_id,
                config.data_dir.display()
            );
        }
        if let Some(needed) = cluster.version().filter(|v| *v > build::cluster_version()) {
            bail!(
                "{}; {} was left as it is",
                apply::too_new(needed),
                config.data_dir.display()
            );
        }
        let forced = if config.force_new_cluster {
            let own = force_new::Own {
                identity,
                cluster: &cluster,
                connector: &connector,
            };
            force_new::run(&own, &wal, &mut recovered, &backend).await?
        } else {
            None
        };
        if config.feature_gates.enabled(Gate::InitialCorruptCheck) && !is_blank && forced.is_none()
        {
            let id = identity.member_id;
            corruption::check_at_start(id, &store, &cluster, &connector).await?;
        }
        let first_voters = prepare_members(beginning, &cluster, &backend).await?;
        let wait = Wait::new(clock::wall_ms());
        let removed = CancellationToken::new();
        let applier = Applier::new(
            store.clone(),
            cluster.clone(),
            alarms.clone(),
            auth.clone(),
            wait.clone(),
            metrics.clone(),
            identity.member_id,
            &config,
            started,
            removed.clone(),
        );
        let raft_runtime = BackgroundRuntime::start("raft")?;
        let snapshot_runtime = BackgroundRuntime::start("snapshot")?;
        let handshake = Arc::new(Handshake::new(identity, cluster.clone(), {
            let removed = removed.clone();
            move || removed.cancel()
        }));
        let transport = Arc::new(Transport::new(
            identity.member_id,
            handshake.clone(),
            cluster.clone(),
            connector,
            metrics.clone(),
            Runtimes {
                raft: raft_runtime.handle.clone(),
                snapshots: snapshot_runtime.handle.clone(),
            },
            config.election_timeout,
        ));
        transport.start_probing();
        let raft_config = kv_raft::Config {
            election_timeout: config.election_timeout,
            heartbeat_interval: config.heartbeat_interval,
            snapshot_count: config.snapshot_count,
            snapshot_catchup_entries: config.snapshot_catchup_entries,
            member_id: identity.member_id,
            ..Default::default()
        };
        let node = {
            let (wal, transport) = (wal.clone(), transport.clone());
            let starting = async move {
                Node::start(raft_config, wal, recovered, Box::new(applier), transport).await
            };
            raft_runtime
                .handle
                .spawn(starting)
                .await?
                .context("cannot start raft")?
        };
        exit_when_raft_fails(&node);
        if let Some(index) = forced {
            // Those who were left behind must find themselves removed, should they still run.
            let applied = node.wait_applied(index).await;
            applied.context("the member does not go on alone")?;
        }

        let proposer = Proposer::new(
            node.clone(),
            wait.clone(),
            backend,
            engine_committed,
            cluster.clone(),
            identity.member_id,
            config.max_request_bytes,
            config.request_timeout(),
            metrics.clone(),
        );
        tokio::spawn(count_leader_changes(node.watch_status(), metrics.clone()));
        let stopping = CancellationToken::new();
        let member = Member::new(member::Parts {
            id: identity.member_id,
            config: config.clone(),
            node,
            store,
            cluster,
            alarms,
            auth,
            proposer,
            metrics,
            transport,
            stopping,
            started,
        })
        .context("cannot start the threads of large reads")?;
        member.node.serve_app(leader::Answers::of(&member));
        // The RPC threads take the shards from 0 on.
        Wait::use_shard(wait::OWN_SHARD);
        tokio::spawn(wait.clone().dispatch(wait::OWN_SHARD));
        let service = PeerService::new(
            member.node.clone(),
            handshake,
            member.metrics.clone(),
            &member.store,
        );
        let peer_dispatch = PeerDispatch::new(service, member.clone());
        let stop_listening = CancellationToken::new();
        let mut accepting: Vec<_> = peers_bound
            .into_iter()
            .map(|bound| {
                let (dispatch, runtime) = (peer_dispatch.clone(), raft_runtime.handle.clone());
                let stop = stop_listening.clone();
                tokio::spawn(accept_peers(bound, dispatch, runtime, stop))
            })
            .collect();
        if let Some(voters) = first_voters {
            begin_cluster(&member.node, &voters).await?;
        }
        let (published, is_published) = tokio::sync::oneshot::channel();
        tokio::spawn(publish::publish(
            member.clone(),
            identity.incarnation,
            published,
        ));
        tokio::spawn(version_monitor::run(member.clone()));
        tokio::spawn(reconfigure::promote_staged(member.clone()));
        tokio::spawn(scrub::run(member.clone()));
        tokio::spawn(member.auth.clone().watch_keys());
        tokio::spawn(corruption::compare_compactions(member.clone()));
        tokio::spawn(corruption::compare_everything(member.clone()));
        tokio::select! {
            _ = is_published => {}
            () = tokio::time::sleep(CLUSTER_READY_MAX) => {
                tracing::warn!("no leader yet: serving what needs none");
            }
            () = removed.cancelled() => {}
        }
        tokio::spawn(quota::run(member.clone()));
        let lease_expiry = tokio::spawn(lease::expiry::run(member.clone()));
        let folder = Arc::new(folder);
        let disk_space = tokio::spawn(disk_space::run(member.clone(), folder.clone(), wal.clone()));

        if let Some(auto) = config.auto_compaction()? {
            tokio::spawn(compactor::run(member.clone(), auto));
        }

        let settings = Http2Settings {
            max_concurrent_streams: config.max_concurrent_streams,
            keepalive_interval: config.grpc_keepalive_interval,
            keepalive_timeout: config.grpc_keepalive_timeout,
        };
        let cores = std::thread::available_parallelism()
            .map_or(1, |n| n.get())
            .min(wait::RPC_SHARDS);
        let threads = Arc::new(RpcThreads::start(cores, &wait, settings)?);
        let dispatch = Dispatch::new(member.clone(), clock::wall_ms());
        accepting.extend(bound.into_iter().map(|bound| {
            let dispatch = dispatch.offering(bound.offers);
            let stop = stop_listening.clone();
            tokio::spawn(listener::accept(
                bound.listener,
                bound.tls,
                dispatch,
                threads.clone(),
                stop,
            ))
        }));
        tracing::info!(
            member = format!("{:x}", member.id),
            cluster = format!("{:x}", member.cluster.id),
            name = config.name,
            revision = member.store.revision(),
            took_ms = started.elapsed().as_millis() as u64,
            "ready to serve client requests"
        );
        Ok(Server {
            member,
            wal,
            raft_runtime,
            snapshot_runtime,
            threads,
            accepting,
            lease_expiry,
            disk_space,
            stop_listening,
            removed,
            _folder: folder,
        })
    }

    /// Resolves when this member learns that it was removed from its cluster: it must stop, and may never come back.
    pub async fn removed(&self) {
        self.removed.cancelled().await;
        // Others may still need this member's last entries, as the one who led. Source: etcd waits as long.
        tokio::time::sleep(REMOVED_GRACE).await;
    }

    /// What tells whether the member lives.
    pub fn pulse(&self) -> Pulse {
        Pulse(self.member.node.clone())
    }

    /// Stops in order; what was acknowledged is on disk before this returns.
    pub async fn stop(self) -> Result<()> {
        let Server {
            member,
            wal,
            raft_runtime,
            snapshot_runtime,
            threads,
            accepting,
            lease_expiry,
            disk_space,
            stop_listening,
            removed: _,
            _folder,
        } = self;
        reconfigure::hand_over(&member).await;
        stop_listening.cancel();
        for task in accepting {
            let _ = task.await;
        }
        // Streams end now, calls under way may finish.
        member.stopping.cancel();
        let _ = lease_expiry.await;
        let _ = disk_space.await;
        tokio::task::spawn_blocking(move || {
            if let Some(threads) = Arc::into_inner(threads) {
                threads.stop();
            }
        })
        .await?;
        member
            .node
            .shutdown()
            .await
            .context("raft did not stop cleanly")?;
        drop((snapshot_runtime, raft_runtime));
        let store = member.store.clone();
        let closed = tokio::task::spawn_blocking(move || {
            store.close();
            store.backend().close()
        });
        closed.await?.context("the last checkpoint failed")?;
        wal.close()?;
        tracing::info!("stopped");
        Ok(())
    }
}

/// A runtime of one thread that is not the main one. It may be dropped where blocking is not allowed.
struct BackgroundRuntime {
    handle: tokio::runtime::Handle,
    runtime: Option<Runtime>,
}

impl BackgroundRuntime {
    fn start(name: &'static str) -> Result<BackgroundRuntime> {
        let runtime = tokio::runtime::Builder::new_multi_thread()
            .worker_threads(1)
            .thread_name(name)
            .enable_all()
            .build()?;
        let handle = runtime.handle().clone();
        Ok(BackgroundRuntime {
            handle,
            runtime: Some(runtime),
        })
    }
}

impl Drop for BackgroundRuntime {
    fn drop(&mut self) {
        if let Some(runtime) = self.runtime.take() {
            runtime.shutdown_background();
        }
    }
}

async fn bind_all(config: &Config) -> Result<Vec<Bound>> {
    let needs_tls = |urls: &[Url]| urls.iter().any(|url| url.scheme.is_tls());
    let tls = if [
        &config.listen_client_urls,
        &config.listen_client_http_urls,
        &config.listen_metrics_urls,
    ]
    .iter()
    .any(|urls| needs_tls(urls))
    {
        Some(Arc::new(TlsAcceptor::for_clients(config)?))
    } else {
        None
    };
    let separate_pages = !config.listen_client_http_urls.is_empty();
    let client = |url: &Url| {
        let pages = if url.scheme.is_tls() {
            PageListener::ClientTls
        } else {
            PageListener::Client
        };
        if separate_pages {
            Offers::Grpc
        } else {
            Offers::All(pages)
        }
    };
    let pages = |url: &Url| {
        let tls = url.scheme.is_tls();
        Offers::Pages(if tls {
            PageListener::ClientTls
        } else {
            PageListener::Client
        })
    };
    let client_urls = config
        .listen_client_urls
        .iter()
        .map(|url| (url, client(url)));
    let page_urls = config
        .listen_client_http_urls
        .iter()
        .map(|url| (url, pages(url)));
    let metrics_urls = config
        .listen_metrics_urls
        .iter()
        .map(|url| (url, Offers::Pages(PageListener::Metrics)));
    let mut bound = Vec::new();
    for (url, offers) in client_urls.chain(page_urls).chain(metrics_urls) {
        let tls = tls.clone().filter(|_| url.scheme.is_tls());
        bound.push(Bound {
            listener: bind(url).await?,
            tls,
            offers,
        });
    }
    Ok(bound)
}

/// The peer port: other members, and nobody else.
async fn bind_peers(config: &Config) -> Result<Vec<(Listener, Option<Arc<TlsAcceptor>>)>> {
    let urls = &config.listen_peer_urls;
    let tls = if urls.iter().any(|url| url.scheme.is_tls()) {
        Some(Arc::new(TlsAcceptor::for_peers(config)?))
    } else {
        None
    };
    let mut bound = Vec::new();
    for url in urls {
        let tls = tls.clone().filter(|_| url.scheme.is_tls());
        bound.push((bind(url).await?, tls));
    }
    Ok(bound)
}

/// What connections to members over TLS are made with; `None` if the flags give no certificate or authority.
fn tls_to_peers(config: &Config) -> Result<Option<Arc<TlsConnector>>> {
    let files = &config.peer_tls;
    let has_certificate = files.cert_file.is_some() || files.auto_tls;
    if !has_certificate || (files.trusted_ca_file.is_none() && !files.auto_tls) {
        return Ok(None);
    }
    Ok(Some(Arc::new(TlsConnector::for_peers(config)?)))
}

/// Accepts connections of members until `stop`; they are served until `runtime` ends.
async fn accept_peers(
    (listener, tls): (Listener, Option<Arc<TlsAcceptor>>),
    dispatch: PeerDispatch,
    runtime: tokio::runtime::Handle,
    stop: CancellationToken,
) {
    let settings = Http2Settings {
        max_concurrent_streams: u32::MAX,
        keepalive_interval: Duration::ZERO,
        keepalive_timeout: CLUSTER_READY_MAX,
    };
    loop {
        let socket = tokio::select! {
            socket = listener.accept() => socket,
            () = stop.cancelled() => return,
        };
        match socket {
            Ok(socket) => {
                let (tls, dispatch) = (tls.clone(), dispatch.clone());
                // Members are told by raft that this one stops; their connections end with the runtime.
                let until = CancellationToken::new();
                runtime.spawn(listener::serve_connection(
                    socket, tls, dispatch, settings, until,
                ));
            }
            Err(error) => {
                tracing::warn!(%error, "could not accept a member's connection");
                tokio::time::sleep(Duration::from_millis(10)).await;
            }
        }
    }
}

/// Makes the member table of a new cluster durable, or notes where the members of a running one are. Returns the first
/// voters if this member has to begin the cluster.
async fn prepare_members(
    beginning: Beginning,
    cluster: &Cluster,
    backend: &Backend,
) -> Result<Option<Vec<u64>>> {
    match beginning {
        Beginning::Restart => Ok(None),
        Beginning::Join(members) => {
            for member in members {
                cluster.expect(member);
            }
            Ok(None)
        }
        Beginning::New(members) => {
            let ids = members.iter().map(|member| member.id).collect();
            let ops = members.into_iter().map(|member| cluster.put(member));
            backend.write(ops.collect());
            // Before the log says that the cluster has begun.
            let backend = backend.clone();
            tokio::task::spawn_blocking(move || backend.checkpoint())
                .await?
                .context("cannot store the members of the new cluster")?;
            Ok(Some(ids))
        }
    }
}

/// Writes the first entry of a new cluster, unless a member that was faster has sent it already.
async fn begin_cluster(node: &Node, voters: &[u64]) -> Result<()> {
    match node.initialize(voters).await {
        Ok(()) => tracing::info!(members = voters.len(), "began a new cluster"),
        Err(kv_raft::Error::AlreadyInitialized) => {}
        Err(error) => return Err(error).context("cannot begin the cluster"),
    }
    Ok(())
}

async fn bind(url: &Url) -> Result<Listener> {
    if let Some(path) = url.socket_path() {
        return Ok(Listener::bind_unix(path)?);
    }
    let (host, port) = url
        .host_port()
        .with_context(|| format!("{url} has no port"))?;
    let mut addresses = tokio::net::lookup_host((host, port))
        .await
        .with_context(|| format!("cannot resolve the host of {url}"))?;
    let address = addresses
        .next()
        .with_context(|| format!("the host of {url} has no address"))?;
    Ok(Listener::bind_tcp(address).await?)
}

pub(crate) fn open_backend(config: &Config, folder: &DataDir) -> Result<Backend> {
    let engine = config.storage_engine.map(|engine| match engine {
        StorageEngine::Redb => EngineKind::Redb,
        StorageEngine::Sled => EngineKind::Sled,
    });
    let defaults = kv_mvcc::backend::Options::default();
    let interval = config.backend_batch_interval;
    let options = kv_mvcc::backend::Options {
        engine,
        cache_bytes: config.memory_budget / 4,
        buffer_bytes_max: config.memory_budget / 2,
        commit_interval: if interval.is_zero() {
            defaults.commit_interval
        } else {
            interval
        },
        commit_ops_max: match usize::try_from(config.backend_batch_limit) {
            Ok(0) | Err(_) => defaults.commit_ops_max,
            Ok(limit) => limit,
        },
        ..defaults
    };
    let backend = Backend::open(folder.member_dir(), options);
    backend.with_context(|| {
        format!(
            "cannot open the database in {}",
            folder.member_dir().display()
        )
    })
}

fn store_options(config: &Config) -> StoreOptions {
    let defaults = StoreOptions::default();
    let pause = config.compaction_sleep_interval;
    StoreOptions {
        value_cache_bytes: config.memory_budget / 4,
        compaction_slice: match usize::try_from(config.compaction_batch_limit) {
            Ok(0) | Err(_) => defaults.compaction_slice,
            Ok(limit) => limit,
        },
        compaction_pause: if pause.is_zero() {
            defaults.compaction_pause
        } else {
            pause
        },
        lessor: LessorOptions {
            // The minimum that `--election-timeout` asks for is part of the request when it gets here.
            ttl_secs_min: 1,
            checkpoints: if config.feature_gates.enabled(Gate::LeaseCheckpoint) {
                Checkpoints::On
            } else {
                Checkpoints::Off
            },
        },
        ..defaults
    }
}

fn open_wal(folder: &DataDir, identity: kv_wal::Identity) -> Result<(Wal, kv_wal::Recovered)> {
    let fs = Arc::new(kv_wal::fs::RealFs);
    let config = kv_wal::Config::new(folder.wal_dir(), identity);
    let opened = if Wal::exists(folder.wal_dir(), fs.as_ref())? {
        Wal::open(fs, config)
    } else {
        Wal::create(fs.clone(), config.clone()).and_then(|wal| {
            // Read back what was just made, so that a first start and a restart are one path.
            wal.close()?;
            Wal::open(fs, config)
        })
    };
    let (wal, recovered) =
        opened.with_context(|| format!("cannot open the log in {}", folder.wal_dir().display()))?;
    if let Some(cut) = &recovered.cut {
        tracing::info!(
            ?cut,
            "cut a write that was under way when the process ended; nothing acknowledged was in it"
        );
    }
    Ok((wal, recovered))
}

/// Blocks until log entry `index`, which is applied, is on this member's disk: the database must not be ahead of the log.
pub(crate) fn wait_flushed(wal: &Wal, index: u64) {
    if wal.flushed_index() >= index {
        return;
    }
    let (done, flushed) = std::sync::mpsc::channel();
    let report = move |result: kv_wal::Result<()>| {
        let _ = done.send(result.is_ok());
    };
    // Appended before it was applied, the entry is ahead of this in the queue.
    let queued = wal.append(Vec::new(), kv_wal::Sync::Yes, Some(Box::new(report)));
    if queued.is_err() || flushed.recv() != Ok(true) {
        // The log has failed, and its hook ends the process: never commit beyond it.
        loop {
            std::thread::park();
        }
    }
}

/// A failed write or fsync ends the process at once: no further acknowledgement may leave it.
fn exit_on_failure(wal: &Wal, backend: &Backend) {
    wal.set_failure_hook(Box::new(|error| exit("the log failed", error)));
    backend.set_failure_hook(|error| exit("the database failed", error));
}

/// Counts each leader that this member comes to know; ends with the node.
async fn count_leader_changes(
    mut status: tokio::sync::watch::Receiver<kv_raft::Status>,
    metrics: Arc<Metrics>,
) {
    let mut known = None;
    loop {
        let leader = status.borrow_and_update().leader;
        if leader.is_some() && leader != known {
            metrics.server.leader_changes_seen.inc();
            known = leader;
        }
        if status.changed().await.is_err() {
            return;
        }
    }
}

/// Counts what the disk threads do; what is returned is notified after each commit of `backend`.
fn observe_disk(metrics: &Arc<Metrics>, wal: &Wal, backend: &Backend) -> Arc<Notify> {
    let disk = metrics.clone();
    wal.set_fsync_observer(Box::new(move |took, batch| {
        disk.disk.wal_fsync_duration.observe(took.as_secs_f64());
        disk.disk.wal_write_bytes.add(batch.bytes as i64);
        if took > SLOW_FSYNC {
            tracing::warn!(
                took_ms = took.as_millis() as u64,
                records = batch.records,
                "slow fsync of the log"
            );
        }
    }));
    let disk = metrics.clone();
    let committed = Arc::new(Notify::new());
    let notify = committed.clone();
    backend.set_commit_observer(move |commit| {
        disk.disk
            .backend_commit_duration
            .observe(commit.took.as_secs_f64());
        notify.notify_waiters();
    });
    committed
}

fn exit(what: &'static str, error: &dyn std::fmt::Display) {
    tracing::error!(%error, "{what}; stopping at once");
    eprintln!("kvd: {what}: {error}");
    std::process::exit(1);
}

fn exit_when_raft_fails(node: &Node) {
    let failed = node.failed();
    tokio::spawn(async move {
        let cause = failed.await;
        exit("raft failed", &cause);
    });
}
