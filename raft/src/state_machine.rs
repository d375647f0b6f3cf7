//! The trait that the owner of a node implements, and its adapter to openraft.
//!
//! The adapter is owned by openraft's apply worker, one task: `apply` is called in log order, with
//! all entries that are ready, and never twice for an entry. Proposals are answered only through
//! what apply does with them; openraft's responders merely learn that there is nothing to report.

use std::future::Future;
use std::io;
use std::pin::Pin;
use std::sync::{Arc, OnceLock};

use bytes::Bytes;
use futures_util::{Stream, StreamExt};
use openraft::OptionalSend;
use openraft::storage::{EntryResponder, RaftStateMachine};
use parking_lot::Mutex;
use tokio::sync::watch;

use crate::encoding::{self, Body};
use crate::error::damage;
use crate::snapshot::{CheckpointBuilder, Handle, Shelf, Snapshot, SnapshotSource};
use crate::types::{
    Entry, LogId, SnapshotMeta, StoredMembership, TypeConfig, index_of, raft_log_id, term_of,
};

/// Most entries in one call of [`StateMachine::apply`].
const APPLY_ENTRIES_MAX: usize = 1024;

/// How far a state machine is: the last entry it contains and the membership in force there.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Applied {
    /// Index of the last applied entry, 0 for none.
    pub index: u64,
    /// Its term.
    pub term: u64,
    /// The newest membership among the applied entries, as given by
    /// [`EntryBody::Membership`]; empty if there was none.
    pub membership: Bytes,
}

/// An entry that a quorum has on disk.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct CommittedEntry {
    /// Its place in the log, one more than that of the entry before.
    pub index: u64,
    /// Term in which it was proposed.
    pub term: u64,
    /// What it says.
    pub body: EntryBody,
}

/// What a committed entry says.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum EntryBody {
    /// Nothing; a leader's first entry.
    Blank,
    /// Commands in the order they were packed.
    Commands(Vec<Bytes>),
    /// A change of the members, with the command that explains it to the state machine.
    Membership {
        /// To be returned by [`StateMachine::applied`]; opaque.
        membership: Bytes,
        /// The command proposed with the change.
        command: Option<Bytes>,
    },
}

/// A checkpoint under way.
pub type CheckpointFuture = Pin<Box<dyn Future<Output = io::Result<Applied>> + Send>>;

/// An install under way.
pub type InstallFuture<'a> = Pin<Box<dyn Future<Output = io::Result<()>> + Send + 'a>>;

/// What the agreed entries act on. One owner: the apply worker.
pub trait StateMachine: Send + 'static {
    /// What the durable state contains; asked once, at start. Entries after it are applied again.
    fn applied(&mut self) -> io::Result<Applied>;

    /// Applies `entries`: consecutive, each once, starting after the last applied one.
    ///
    /// Index, term and membership must become durable in the same step as the entries' effect, or
    /// a restart would apply them twice. It runs on the apply task and must not block for long. An
    /// error stops the node for good.
    fn apply(&mut self, entries: Vec<CommittedEntry>) -> io::Result<()>;

    /// Starts to make what is applied durable; apply goes on meanwhile.
    ///
    /// The result names the entry up to which the log may be purged. It may be older than what
    /// this checkpoint made durable (a state machine that keeps two checkpoints names the older).
    fn checkpoint(&mut self) -> CheckpointFuture;

    /// Opens the present state for sending to a peer; must not copy it.
    fn snapshot(&mut self) -> io::Result<Box<dyn SnapshotSource>>;

    /// Replaces the whole state, durably and atomically, by `source`, which contains `applied`.
    ///
    /// Nothing is applied until the future ends. An error stops the node for good.
    fn install(&mut self, applied: Applied, source: Box<dyn SnapshotSource>) -> InstallFuture<'_>;
}

/// openraft's state machine over the owner's.
pub(crate) struct Adapter {
    /// In a mutex only because openraft wants `Sync`; never locked, always `get_mut`.
    machine: Mutex<Box<dyn StateMachine>>,
    last: Option<LogId>,
    membership: StoredMembership,
    progress: watch::Sender<u64>,
    /// States that are being sent.
    shelf: Shelf,
    purged: Box<dyn Fn() -> u64 + Send + Sync>,
    /// Why the machine failed. openraft's core may notice only that its worker is gone.
    failure: Arc<OnceLock<String>>,
    /// Closed with the adapter, when the apply worker has ended.
    _ended: watch::Sender<()>,
}

/// The node's ends of what an [`Adapter`] reports.
pub(crate) struct ApplyEvents {
    /// The applied index.
    pub(crate) progress: watch::Receiver<u64>,
    /// Why the machine failed, if it did.
    pub(crate) failure: Arc<OnceLock<String>>,
    /// Closed when the apply worker has ended.
    pub(crate) ended: watch::Receiver<()>,
}

impl Adapter {
    /// Asks `machine` what it contains; `purged` tells where the log begins.
    pub(crate) fn open(
        mut machine: Box<dyn StateMachine>,
        shelf: Shelf,
        purged: impl Fn() -> u64 + Send + Sync + 'static,
    ) -> io::Result<(Adapter, ApplyEvents)> {
        let applied = machine.applied()?;
        let meta = meta_of(&applied)?;
        let (progress, progress_seen) = watch::channel(applied.index);
        let (ended_guard, ended) = watch::channel(());
        let adapter = Adapter {
            machine: Mutex::new(machine),
            last: meta.last_log_id,
            membership: meta.last_membership,
            progress,
            shelf,
            purged: Box::new(purged),
            failure: Arc::default(),
            _ended: ended_guard,
        };
        let failure = adapter.failure.clone();
        Ok((
            adapter,
            ApplyEvents {
                progress: progress_seen,
                failure,
                ended,
            },
        ))
    }

    fn meta(&self) -> SnapshotMeta {
        SnapshotMeta {
            last_log_id: self.last,
            last_membership: self.membership.clone(),
        }
    }

    /// Keeps why the machine failed.
    fn noted<T>(&self, result: io::Result<T>) -> io::Result<T> {
        result.inspect_err(|error| {
            // Nothing is applied after the first failure.
            let _ = self.failure.set(error.to_string());
        })
    }

    fn apply_batch(&mut self, entries: Vec<Entry>) -> io::Result<()> {
        let mut committed = Vec::with_capacity(entries.len());
        let mut last = self.last;
        for entry in entries {
            let (index, expected) = (index_of(Some(&entry.log_id)), index_of(last.as_ref()) + 1);
            assert!(
                index == expected,
                "entry {index} is to be applied after {}",
                expected - 1
            );
            last = Some(entry.log_id);
            let body = encoding::decode_body(entry.payload.body())
                .map_err(|error| damage(format!("committed entry {index}: {error}")))?;
            let body = match body {
                Body::Blank => EntryBody::Blank,
                Body::Commands(commands) => EntryBody::Commands(commands),
                Body::Membership {
                    membership,
                    command,
                } => {
                    self.membership = StoredMembership::new(last, membership);
                    let membership = encoding::encode_stored_membership(&self.membership);
                    EntryBody::Membership {
                        membership,
                        command,
                    }
                }
            };
            committed.push(CommittedEntry {
                index,
                term: term_of(last.as_ref()),
                body,
            });
        }
        self.machine.get_mut().apply(committed)?;
        self.last = last;
        self.progress.send_replace(index_of(last.as_ref()));
        Ok(())
    }
}

impl RaftStateMachine<TypeConfig> for Adapter {
    type SnapshotData = Handle;
    type SnapshotBuilder = CheckpointBuilder;

    async fn applied_state(&mut self) -> io::Result<(Option<LogId>, StoredMembership)> {
        Ok((self.last, self.membership.clone()))
    }

    async fn apply<Strm>(&mut self, entries: Strm) -> io::Result<()>
    where
        Strm: Stream<Item = io::Result<EntryResponder<TypeConfig>>> + Unpin + OptionalSend,
    {
        let mut ready = entries.ready_chunks(APPLY_ENTRIES_MAX);
        while let Some(chunk) = ready.next().await {
            let mut batch = Vec::with_capacity(chunk.len());
            let mut responders = Vec::new();
            for item in chunk {
                let (entry, responder) = item?;
                batch.push(entry);
                responders.extend(responder);
            }
            let applied = self.apply_batch(batch);
            self.noted(applied)?;
            // No await between the effect and its responders: a proposal that was applied is never
            // reported as refused.
            for responder in responders {
                responder.send(());
            }
        }
        Ok(())
    }

    async fn get_snapshot_builder(&mut self) -> CheckpointBuilder {
        CheckpointBuilder::new(self.machine.get_mut().checkpoint(), self.shelf.clone())
    }

    async fn install_snapshot(&mut self, meta: &SnapshotMeta, snapshot: Handle) -> io::Result<()> {
        let applied = Applied {
            index: index_of(meta.last_log_id.as_ref()),
            term: term_of(meta.last_log_id.as_ref()),
            membership: encoding::encode_stored_membership(&meta.last_membership),
        };
        tracing::info!(
            index = applied.index,
            term = applied.term,
            "installing a snapshot"
        );
        let source = snapshot.into_source()?;
        let installed = self.machine.get_mut().install(applied, source).await;
        self.noted(installed)?;
        self.last = meta.last_log_id;
        self.membership = meta.last_membership.clone();
        self.progress.send_replace(index_of(self.last.as_ref()));
        Ok(())
    }

    async fn get_current_snapshot(&mut self) -> io::Result<Option<Snapshot>> {
        if self.last.is_none() {
            return Ok(None);
        }
        let opened = match self.shelf.pinned((self.purged)()) {
            Some(pinned) => Ok(pinned),
            None => self
                .machine
                .get_mut()
                .snapshot()
                .map(|source| self.shelf.put(source)),
        };
        let snapshot = match opened {
            Ok(source) => Snapshot {
                meta: meta_of(&source.applied())?,
                snapshot: Handle::new(source),
            },
            // The place in the log is known even if the state cannot be sent.
            Err(error) if error.kind() == io::ErrorKind::Unsupported => {
                Handle::checkpoint(self.meta())
            }
            Err(error) => return Err(error),
        };
        Ok(Some(snapshot))
    }
}

/// The place in the log that `applied` names, as openraft wants it.
pub(crate) fn meta_of(applied: &Applied) -> io::Result<SnapshotMeta> {
    let last_membership = encoding::decode_stored_membership(&applied.membership)
        .map_err(|error| damage(format!("membership kept by the state machine: {error}")))?;
    Ok(SnapshotMeta {
        last_log_id: raft_log_id(applied.index, applied.term),
        last_membership,
    })
}

#[cfg(test)]
impl Adapter {
    /// Lets the next entry follow `log_id`, whatever was applied.
    pub(crate) fn pretend_applied(&mut self, log_id: Option<LogId>) {
        self.last = log_id;
    }
}
