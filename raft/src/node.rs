//! A member of the cluster: start, propose, read, answer peers, stop.
//!
//! Tasks of a node, all on the runtime that calls [`Node::start`]: openraft's core, its apply
//! worker (owner of the state machine), one read loop, one loop that sends proposals to the leader,
//! one observer that publishes the status and notices the end of the core. A proposal is no task: it
//! is a message to the core and a closure.

use std::future::Future;
use std::pin::Pin;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::sync::{Arc, OnceLock};
use std::time::Duration;

use bytes::Bytes;
use futures_util::StreamExt;
use kv_wal::{Recovered, Wal};
use openraft::ReadPolicy;
use openraft::errors::{LinearizableReadError, RaftError};
use openraft::raft::VoteResponse;
use parking_lot::Mutex;
use tokio::runtime::Handle;
use tokio::sync::{mpsc, watch};
use tokio::task::JoinHandle;
use tokio::time::Instant;

use crate::config::Config;
use crate::error::{Error, MembershipError, PeerError, ReadError, Result, TransferError};
use crate::forward::Forwarder;
use crate::log_store::LogStore;
use crate::membership::{self, Change, PeerProgress, fatal_error};
use crate::network::{ByteStream, Factory, PeerTransport, Rpc};
use crate::proposal::{self, Origin, Proposal, Refused};
use crate::read_index::{Confirm, Confirmation, Reads};
use crate::snapshot::{self, Shelf, SnapshotSource};
use crate::state_machine::{Adapter, StateMachine};
use crate::status::{Observer, Role, Status};
use crate::step_aside;
use crate::types::{Raft, index_of, term_of};
use crate::wire::{self, ReadIndexAnswer};

/// Answers opaque requests of other members' applications; see [`Node::ask`].
pub trait App: Send + Sync + 'static {
    /// Answers `request`; refusals are part of the answer's bytes.
    fn answer(&self, request: Bytes) -> Pin<Box<dyn Future<Output = Bytes> + Send + '_>>;
}

/// One member of a raft cluster. Clones share it.
#[derive(Clone)]
pub struct Node {
    pub(crate) inner: Arc<Inner>,
}

pub(crate) struct Inner {
    pub(crate) config: Config,
    pub(crate) raft: Raft,
    log: LogStore,
    pub(crate) transport: Arc<dyn PeerTransport>,
    pub(crate) runtime: Handle,
    reads: Arc<Reads>,
    pub(crate) status: watch::Receiver<Status>,
    applied: watch::Receiver<u64>,
    failure: watch::Receiver<Option<Arc<Error>>>,
    app: OnceLock<Arc<dyn App>>,
    /// To the loop that sends proposals to the leader; what is in it is counted as in flight.
    pub(crate) forwards: mpsc::UnboundedSender<Proposal>,
    pub(crate) proposals_in_flight: AtomicUsize,
    /// Promotions that may be in force before the status shows them; see [`Node::is_sole_voter`].
    pub(crate) promotions: AtomicUsize,
    pub(crate) stopping: AtomicBool,
    /// Until then a leader of before the start may still trust its lease.
    votes_from: Instant,
    /// Closed when the apply worker has ended.
    pub(crate) apply_ended: watch::Receiver<()>,
    /// What `shutdown` joins.
    tasks: Mutex<Option<Tasks>>,
}

impl Inner {
    /// Newest index in the log, and newest on this member's disk.
    pub(crate) fn log_progress(&self) -> (u64, u64) {
        let flushed = self.log.flushed_index();
        (self.log.last_and_committed().0, flushed)
    }

    /// Whether the core has ended, or will in a moment.
    pub(crate) fn has_ended(&self) -> bool {
        self.stopping.load(Ordering::Relaxed) || self.status.has_changed().is_err()
    }

    /// A member that just restarted has forgotten when it last heard from a leader, and a leader
    /// counts on its followers to elect nobody else for one lease.
    fn withholds_vote(&self) -> bool {
        Instant::now() < self.votes_from
    }
}

struct Tasks {
    reads: JoinHandle<()>,
    observer: JoinHandle<()>,
}

impl Node {
    /// Starts a member over its opened log; entries that are committed but not in `machine` are
    /// applied before this returns.
    ///
    /// The only voter of a cluster elects itself at once; the status tells when it leads. Errors:
    /// settings that cannot work, damage in the log, a log that does not reach back to what
    /// `machine` contains, a state machine that fails.
    pub async fn start(
        config: Config,
        wal: Wal,
        recovered: Recovered,
        machine: Box<dyn StateMachine>,
        transport: Arc<dyn PeerTransport>,
    ) -> Result<Node> {
        let raft_config = Arc::new(config.to_openraft()?);
        let votes_from = match recovered.vote {
            Some(_) => Instant::now() + config.leader_lease(),
            None => Instant::now(),
        };
        let log = LogStore::open(wal, recovered, config.tail_bytes_max)?;
        let shelf = Shelf::default();
        let purged = {
            let log = log.clone();
            move || log.purged_index()
        };
        let (adapter, events) =
            Adapter::open(machine, shelf.clone(), purged).map_err(Error::StateMachine)?;
        let network = Factory {
            member_id: config.member_id,
            transport: transport.clone(),
            shelf,
            idle_timeout: config.election_timeout,
        };
        let raft = Raft::new(config.member_id, raft_config, network, log.clone(), adapter)
            .await
            .map_err(fatal_error)?;

        let (status_sender, status) = watch::channel(Status::unknown());
        let (failure_sender, failure) = watch::channel(None);
        let observer = Observer {
            raft: raft.clone(),
            member_id: config.member_id,
            lease: config.leader_lease(),
            check_interval: config.heartbeat_interval,
            status: status_sender,
            machine_failure: events.failure.clone(),
            apply_ended: events.ended.clone(),
            with_indexes: Box::new({
                let (log, applied) = (log.clone(), events.progress.clone());
                move |status| set_indexes(status, &log, &applied)
            }),
        };
        let reads = Reads::new();
        let observer = tokio::spawn({
            let reads = reads.clone();
            async move {
                let cause = observer.run().await;
                reads.stop();
                if !matches!(cause, Error::Stopped) {
                    tracing::error!(%cause, "raft stopped");
                    failure_sender.send_replace(Some(Arc::new(cause)));
                }
            }
        });
        let confirm = NodeConfirm {
            raft: raft.clone(),
            transport: transport.clone(),
            applied: events.progress.clone(),
            timeout: config.heartbeat_interval * 2,
        };
        let read_loop = tokio::spawn({
            let reads = reads.clone();
            let (pause, patience) = (config.heartbeat_interval / 4, config.election_timeout * 2);
            async move { reads.run(confirm, pause, patience).await }
        });
        let (forwards, proposals) = mpsc::unbounded_channel();
        let forwarder = Forwarder {
            member_id: config.member_id,
            transport: transport.clone(),
            election_timeout: config.election_timeout,
            proposals,
            status: status.clone(),
            apply_ended: events.ended.clone(),
        };
        tokio::spawn(forwarder.run());
        let node = Node {
            inner: Arc::new(Inner {
                raft,
                log,
                transport,
                runtime: Handle::current(),
                reads,
                status,
                applied: events.progress,
                failure,
                app: OnceLock::new(),
                forwards,
                proposals_in_flight: AtomicUsize::new(0),
                promotions: AtomicUsize::new(0),
                stopping: AtomicBool::new(false),
                votes_from,
                apply_ended: events.ended,
                tasks: Mutex::new(Some(Tasks {
                    reads: read_loop,
                    observer,
                })),
                config,
            }),
        };
        tokio::spawn(step_aside::run(
            Arc::downgrade(&node.inner),
            node.inner.config.heartbeat_interval,
            node.inner.config.disk_patience(),
        ));
        membership::elect_if_alone(&node.inner.raft).await?;
        Ok(node)
    }

    /// Makes this member one of the first `voters` of a new cluster; all of them call it with the
    /// same ids. Errors: [`Error::AlreadyInitialized`] on a member with a log or a vote, which in a
    /// new cluster may simply have come from a member that was faster.
    pub async fn initialize(&self, voters: &[u64]) -> Result<()> {
        membership::initialize(&self.inner.raft, voters).await
    }

    /// Adds a member without a vote, which may be absent; `command` explains the change to the
    /// state machine in the same entry. For the leader; resolves when it is applied here.
    pub async fn add_learner(
        &self,
        id: u64,
        command: Option<Bytes>,
    ) -> std::result::Result<(), MembershipError> {
        membership::change(&self.inner, Change::AddLearner(id), command).await
    }

    /// Gives a learner a vote if it answers and holds nine tenths of the log.
    pub async fn promote(
        &self,
        id: u64,
        command: Option<Bytes>,
    ) -> std::result::Result<(), MembershipError> {
        membership::change(&self.inner, Change::Promote(id), command).await
    }

    /// Takes a member out; its id must never be used again. A leader that removes itself steps
    /// down when the change is committed; it should hand over first.
    pub async fn remove(
        &self,
        id: u64,
        command: Option<Bytes>,
    ) -> std::result::Result<(), MembershipError> {
        membership::change(&self.inner, Change::Remove(id), command).await
    }

    /// Hands leadership to the voter `to` and resolves when it leads. Writes are refused, and tried
    /// again, meanwhile. A target that is absent or far behind is refused before anything is tried.
    pub async fn transfer_leader(&self, to: u64) -> std::result::Result<(), TransferError> {
        membership::transfer_leader(&self.inner, to).await
    }

    /// The voter with most of the log among those that are `fit` to lead after this member and
    /// answer. For the leader.
    pub fn successor(&self, fit: impl Fn(u64) -> bool) -> Option<u64> {
        membership::best_successor(&self.inner, fit)
    }

    /// How far the leader knows a member to be; none on other members and of unknown ones.
    pub fn peer_progress(&self, id: u64) -> Option<PeerProgress> {
        membership::progress(&self.inner, id)
    }

    /// Proposes `commands`, at least one, in one entry. Never blocks; may be called from any thread.
    ///
    /// Success is seen by [`StateMachine::apply`] and nowhere else; `refused` is called otherwise,
    /// at once or later, on this thread or on a task of raft's runtime. A member that does not lead
    /// sends the same bytes to the leader it knows, in one entry with others that wait. A refusal
    /// that is certain and will soon be over (a fresh leader without its quorum, leadership on its
    /// way, a leader that is not reached) is tried again for up to one election timeout. How many
    /// bytes are in flight is for the caller to bound.
    pub fn propose(&self, commands: Vec<Bytes>, refused: Refused) {
        proposal::propose(&self.inner, Origin::Here, commands, refused);
    }

    /// Proposes `commands` as one entry if this member leads in `term`, and refuses otherwise.
    ///
    /// For what only a leader may decide: should it have lost its leadership meanwhile without
    /// noticing, the commands are in no log, also if it leads again or knows who does.
    pub fn propose_in_term(&self, term: u64, commands: Vec<Bytes>, refused: Refused) {
        proposal::propose(&self.inner, Origin::Leader { term }, commands, refused);
    }

    /// Sets who answers [`Node::ask`] of other members; once, before peers ask.
    pub fn serve_app(&self, app: Arc<dyn App>) {
        assert!(
            self.inner.app.set(app).is_ok(),
            "the owner serves one application"
        );
    }

    /// Asks the application of another member; what the bytes mean is theirs alone.
    pub async fn ask(
        &self,
        peer: u64,
        request: Bytes,
        timeout: Duration,
    ) -> std::result::Result<Bytes, PeerError> {
        let transport = &self.inner.transport;
        transport.call(peer, Rpc::App, request, timeout).await
    }

    /// Waits until a read on this member is linearizable, and returns the applied index it may
    /// rely on. All reads that wait share one confirmation by a quorum.
    pub async fn linearizable(&self) -> std::result::Result<u64, ReadError> {
        self.inner.reads.linearizable().await
    }

    /// Whether this member leads in `term`, confirmed by a quorum after the call began.
    pub async fn confirm_leadership(&self, term: u64) -> bool {
        let confirmed = self.inner.raft.get_read_linearizer(ReadPolicy::ReadIndex);
        match confirmed.await {
            // A leader's read index is at least the first entry of its own term.
            Ok(linearizer) => term_of(Some(linearizer.read_log_id().log_id())) == term,
            Err(_) => false,
        }
    }

    /// The status of this moment; cheap.
    pub fn status(&self) -> Status {
        let mut status = self.inner.status.borrow().clone();
        set_indexes(&mut status, &self.inner.log, &self.inner.applied);
        status
    }

    /// Looks at role, leader, term and members without copying them; the indexes are those of their last change.
    pub fn peek<T>(&self, look: impl FnOnce(&Status) -> T) -> T {
        look(&self.inner.status.borrow())
    }

    /// Whether this member leads and nobody else has a vote, so that nobody else can lead; cheap.
    ///
    /// The status is published after the fact: a member that another was promoted beside, and that stood still before it
    /// noticed, must not go on believing it is alone. So a promotion counts from before its entry is appended.
    pub fn is_sole_voter(&self) -> bool {
        self.inner.promotions.load(Ordering::Acquire) == 0
            && self.peek(|status| {
                status.role == Role::Leader && *status.voters == [self.inner.config.member_id]
            })
    }

    /// Entries that are committed and not applied here yet; cheap.
    pub fn apply_backlog(&self) -> u64 {
        let (_, committed) = self.inner.log.last_and_committed();
        committed.saturating_sub(self.applied_index())
    }

    /// Follows role, leader, term and members; the indexes in it are those of its last change.
    pub fn watch_status(&self) -> watch::Receiver<Status> {
        self.inner.status.clone()
    }

    /// Resolves when the core has answered: true, or false if it has stopped. A core that hangs does neither.
    pub async fn is_responsive(&self) -> bool {
        self.inner.raft.with_raft_state(|_| ()).await.is_ok()
    }

    /// Waits until this member has applied `index`; [`Error::Stopped`] if it never will.
    ///
    /// Each waiter wakes on every applied batch: for a few callers, not one per request.
    pub fn wait_applied(&self, index: u64) -> impl Future<Output = Result<()>> + Send + use<> {
        let mut applied = self.inner.applied.clone();
        async move {
            wait_applied(&mut applied, index)
                .await
                .then_some(())
                .ok_or(Error::Stopped)
        }
    }

    /// Newest index that this member has applied; cheap.
    pub fn applied_index(&self) -> u64 {
        *self.inner.applied.borrow()
    }

    /// Follows the applied index; each applied batch wakes every receiver.
    pub fn watch_applied(&self) -> watch::Receiver<u64> {
        self.inner.applied.clone()
    }

    /// Newest index that this member can no longer send as an entry: a member behind it needs a snapshot.
    pub fn purged_index(&self) -> u64 {
        self.inner.log.purged_index()
    }

    /// Asks for a checkpoint of the state machine now, which lets older log files go.
    pub async fn checkpoint(&self) -> Result<()> {
        self.inner
            .raft
            .trigger()
            .snapshot()
            .await
            .map_err(fatal_error)
    }

    /// Resolves when consensus has stopped for good, by a failed log or state machine or a panic;
    /// never after an ordinary [`shutdown`](Self::shutdown). The process must exit with the cause.
    pub fn failed(&self) -> impl Future<Output = Arc<Error>> + Send + use<> {
        let mut failure = self.inner.failure.clone();
        async move {
            let cause = match failure.wait_for(Option::is_some).await {
                Ok(cause) => cause.clone(),
                Err(_) => None,
            };
            match cause {
                Some(cause) => cause,
                None => std::future::pending().await,
            }
        }
    }

    /// Stops: proposals in flight are refused or already applied, reads end, the core and the apply
    /// worker are joined and the state machine is dropped. The log is closed by its owner after.
    pub async fn shutdown(&self) -> Result<()> {
        self.inner.stopping.store(true, Ordering::Relaxed);
        self.inner.reads.stop();
        let tasks = self.inner.tasks.lock().take();
        let joined = self.inner.raft.shutdown().await;
        if let Some(tasks) = tasks {
            let mut apply_ended = self.inner.apply_ended.clone();
            // It is never sent to, only closed.
            let _ = apply_ended.changed().await;
            tasks
                .reads
                .await
                .map_err(|error| Error::Fatal(error.to_string()))?;
            tasks
                .observer
                .await
                .map_err(|error| Error::Fatal(error.to_string()))?;
        }
        joined.map_err(|error| Error::Fatal(error.to_string()))
    }

    /// Answers a request that another member sent with [`PeerTransport::call`].
    pub async fn answer(&self, rpc: Rpc, request: Bytes) -> Result<Bytes> {
        let raft = &self.inner.raft;
        let bad = |source| Error::Decode {
            what: "request of a peer",
            source,
        };
        match rpc {
            Rpc::Vote => {
                let request = wire::decode_vote_request(request).map_err(bad)?;
                if !request.leadership_transfer && self.inner.withholds_vote() {
                    return self.refuse_vote().await;
                }
                let answer = raft.vote(request).await.map_err(raft_error)?;
                Ok(wire::encode_vote_answer(&answer))
            }
            Rpc::PreVote => {
                let request = wire::decode_vote_request(request).map_err(bad)?;
                if self.inner.withholds_vote() {
                    return self.refuse_vote().await;
                }
                let answer = raft.pre_vote(request).await.map_err(raft_error)?;
                Ok(wire::encode_vote_answer(&answer))
            }
            Rpc::TransferLeader => {
                let request = wire::decode_transfer(request).map_err(bad)?;
                let answer = raft
                    .handle_transfer_leader(request)
                    .await
                    .map_err(fatal_error)?;
                Ok(wire::encode_transfer_answer(&answer))
            }
            Rpc::ReadIndex => {
                wire::decode_read_index(request).map_err(bad)?;
                Ok(wire::encode_read_index_answer(
                    leader_read_index(raft).await?,
                ))
            }
            Rpc::Propose => {
                let body = wire::decode_propose(request).map_err(bad)?;
                let outcome = proposal::propose_for_peer(&self.inner, body).await;
                Ok(wire::encode_propose_answer(&outcome))
            }
            Rpc::App => {
                let app = self.inner.app.get().ok_or(Error::NoApp)?;
                Ok(app.answer(request).await)
            }
        }
    }

    /// Says no to a candidate, in the words of this member's last vote.
    async fn refuse_vote(&self) -> Result<Bytes> {
        let refusal = |state: &openraft::RaftState<crate::types::TypeConfig>| {
            VoteResponse::new(*state.vote_ref(), state.log_ids.last().copied(), false)
        };
        let answer = self.inner.raft.with_raft_state(refusal).await;
        Ok(wire::encode_vote_answer(&answer.map_err(fatal_error)?))
    }

    /// Answers a stream of appends that another member sent; ends when `requests` end, do not
    /// decode, or conflict.
    pub fn answer_append_stream(&self, requests: ByteStream) -> ByteStream {
        let member = self.inner.config.member_id;
        let decoded = requests.scan((), move |(), request| {
            let request = wire::decode_append(request)
                .inspect_err(|error| tracing::warn!(member, %error, "append does not decode"));
            std::future::ready(request.ok())
        });
        let answers = self.inner.raft.stream_append(decoded);
        Box::pin(answers.scan((), |(), answer| {
            std::future::ready(
                answer
                    .ok()
                    .map(|answer| wire::encode_append_answer(&answer)),
            )
        }))
    }

    /// Installs a snapshot that another member sent and the transport has received completely.
    pub async fn answer_snapshot(
        &self,
        header: Bytes,
        source: Box<dyn SnapshotSource>,
    ) -> Result<Bytes> {
        let (vote, meta) =
            wire::decode_snapshot_header(header).map_err(|source| Error::Decode {
                what: "header of a snapshot",
                source,
            })?;
        let snapshot = openraft::Snapshot {
            meta,
            snapshot: snapshot::Handle::new(source),
        };
        let answer = self
            .inner
            .raft
            .install_full_snapshot(vote, snapshot)
            .await
            .map_err(fatal_error)?;
        Ok(wire::encode_snapshot_answer(&answer))
    }
}

/// Confirms reads for the read loop.
struct NodeConfirm {
    raft: Raft,
    transport: Arc<dyn PeerTransport>,
    applied: watch::Receiver<u64>,
    timeout: Duration,
}

impl Confirm for NodeConfirm {
    async fn confirm(&self) -> Confirmation {
        let leader = match self.raft.get_read_linearizer(ReadPolicy::ReadIndex).await {
            Ok(linearizer) => return Confirmation::Index(read_index(&linearizer)),
            Err(RaftError::Fatal(_)) => return Confirmation::Stopped,
            Err(RaftError::APIError(LinearizableReadError::ForwardToLeader(forward))) => {
                forward.leader_id
            }
            Err(RaftError::APIError(LinearizableReadError::QuorumNotEnough(_))) => None,
        };
        let Some(leader) = leader.filter(|leader| leader != self.raft.node_id()) else {
            return Confirmation::Retry;
        };
        let request = wire::encode_read_index();
        let answer = self
            .transport
            .call(leader, Rpc::ReadIndex, request, self.timeout)
            .await;
        match answer.map(wire::decode_read_index_answer) {
            Ok(Ok(ReadIndexAnswer::Index(index))) => Confirmation::Index(index),
            Ok(Ok(ReadIndexAnswer::NotLeader | ReadIndexAnswer::NoQuorum)) => Confirmation::Retry,
            Ok(Err(error)) => {
                tracing::warn!(peer = leader, %error, "read-index answer does not decode");
                Confirmation::Retry
            }
            Err(_) => Confirmation::Retry,
        }
    }

    async fn applied(&self, index: u64) -> bool {
        wait_applied(&mut self.applied.clone(), index).await
    }
}

async fn leader_read_index(raft: &Raft) -> Result<ReadIndexAnswer> {
    match raft.get_read_linearizer(ReadPolicy::ReadIndex).await {
        Ok(linearizer) => Ok(ReadIndexAnswer::Index(read_index(&linearizer))),
        Err(RaftError::Fatal(fatal)) => Err(fatal_error(fatal)),
        Err(RaftError::APIError(LinearizableReadError::ForwardToLeader(_))) => {
            Ok(ReadIndexAnswer::NotLeader)
        }
        Err(RaftError::APIError(LinearizableReadError::QuorumNotEnough(_))) => {
            Ok(ReadIndexAnswer::NoQuorum)
        }
    }
}

fn read_index(
    linearizer: &openraft::raft::linearizable_read::Linearizer<crate::types::TypeConfig>,
) -> u64 {
    index_of(Some(linearizer.read_log_id().log_id()))
}

async fn wait_applied(applied: &mut watch::Receiver<u64>, index: u64) -> bool {
    applied.wait_for(|applied| *applied >= index).await.is_ok()
}

fn set_indexes(status: &mut Status, log: &LogStore, applied: &watch::Receiver<u64>) {
    (status.last_log_index, status.committed_index) = log.last_and_committed();
    status.applied_index = *applied.borrow();
}

fn raft_error(error: RaftError<crate::types::TypeConfig>) -> Error {
    match error {
        RaftError::Fatal(fatal) => fatal_error(fatal),
        RaftError::APIError(never) => match never {},
    }
}

#[cfg(test)]
mod tests;
