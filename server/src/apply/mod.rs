//! The apply loop: the only place where an entry meets a key.
//!
//! One owner, called by the raft node with committed entries in order. Apply is a function of (state, entry): no
//! clock, randomness or I/O outcome reaches it. Each command is one store transaction which also records how far apply
//! is, so that a restart repeats exactly what the engine does not have. An entry may pack several commands; then the
//! record is (last complete entry, commands done of the next one), and a restart skips those.
//!
//! Results go to the waiters of this member once per batch of entries; watchers were told by the commit itself.

mod alarm;
mod auth;
mod kv;
mod lease;
mod member;
mod snapshot;
mod txn;

use std::collections::BTreeMap;
use std::io;
use std::sync::Arc;
use std::time::{Duration, Instant};

use bytes::Bytes;
use kv_mvcc::backend::{Backend, Keyspace, Op};
use kv_mvcc::{AppliedMark, Store};
use kv_proto::command::{Body, Caller, Command};
use kv_proto::etcdserverpb::{
    AlarmResponse, AlarmType, DeleteRangeResponse, LeaseGrantResponse, LeaseRevokeResponse,
    PutResponse, TxnResponse,
};
use kv_raft::{Applied, CommittedEntry, EntryBody, InstallFuture, SnapshotSource, StateMachine};
use parking_lot::Mutex;
use tokio_util::sync::CancellationToken;

use crate::alarm::Alarms;
use crate::auth::{Auth, Token};
use crate::cluster::Cluster;
use crate::config::Config;
use crate::metrics::Metrics;
use crate::wait::Wait;
use crate::{Error, Result, quota};

pub(crate) use member::too_new;
pub(crate) use snapshot::{receive_snapshot, restore_tables};
pub(crate) use txn::read_only as read_only_txn;

const CONSISTENT_INDEX: &[u8] = b"consistent_index";
const TERM: &[u8] = b"term";
pub(crate) const MEMBERSHIP: &[u8] = b"membership";
const COMMANDS_DONE: &[u8] = b"commands_done";

/// What a waiter gets.
pub(crate) type Outcome = Result<Response>;

/// The answer to an applied command; headers hold the revision only.
#[derive(Debug)]
pub(crate) enum Response {
    Put(PutResponse),
    DeleteRange(DeleteRangeResponse),
    Txn(TxnResponse),
    /// Resolves when what the compaction deletes is deleted.
    Compaction(kv_mvcc::CompactionHandle),
    LeaseGrant(LeaseGrantResponse),
    LeaseRevoke(LeaseRevokeResponse),
    Alarm(AlarmResponse),
    /// The token, unless it is to be signed, and the auth revision it holds for.
    Authenticated {
        token: Option<Token>,
        revision: u64,
    },
    Done,
}

/// Owner of everything that entries change.
pub(crate) struct Applier {
    pub(crate) store: Arc<Store>,
    pub(crate) cluster: Arc<Cluster>,
    pub(crate) alarms: Arc<Alarms>,
    pub(crate) auth: Arc<Auth>,
    pub(crate) wait: Arc<Wait>,
    pub(crate) metrics: Arc<Metrics>,
    pub(crate) member_id: u64,
    /// Database bytes above which a write is answered with NOSPACE; `None` for no limit.
    pub(crate) quota_bytes: Option<u64>,
    /// `--warning-apply-duration`: a batch that takes longer is logged.
    pub(crate) slow: Duration,
    /// Origin of lease deadlines.
    pub(crate) started: Instant,
    /// Canceled when this member applies its own removal.
    removed: CancellationToken,
    /// How far apply is with the command being applied.
    position: Position,
    /// The entry being applied.
    entry: u64,
    /// From which index on which term and membership hold; a checkpoint names both for its index.
    epochs: Arc<Mutex<Epochs>>,
}

/// First index of each (term, membership) since the start of the process, ascending.
type Epochs = BTreeMap<u64, (u64, Bytes)>;

/// How far apply is, as recorded with every transaction.
#[derive(Clone, Copy, Debug, Default)]
struct Position {
    index: u64,
    term: u64,
    /// Commands of entry `index` that are applied while it is not complete; 0 when it is.
    commands_done: u64,
}

impl Applier {
    /// An applier over what the store contains.
    #[allow(
        clippy::too_many_arguments,
        reason = "each is a part of its own; called once"
    )]
    pub(crate) fn new(
        store: Arc<Store>,
        cluster: Arc<Cluster>,
        alarms: Arc<Alarms>,
        auth: Arc<Auth>,
        wait: Arc<Wait>,
        metrics: Arc<Metrics>,
        member_id: u64,
        config: &Config,
        started: Instant,
        removed: CancellationToken,
    ) -> Applier {
        let position = Position::default();
        let epochs = Arc::default();
        Applier {
            store,
            cluster,
            alarms,
            auth,
            wait,
            metrics,
            member_id,
            quota_bytes: config.quota_bytes(),
            slow: config.warning_apply_duration,
            started,
            removed,
            position,
            entry: 0,
            epochs,
        }
    }

    /// What the store says it contains.
    fn recorded(&self) -> io::Result<Applied> {
        recorded(self.store.backend())
    }

    /// Goes on from what the store contains.
    fn resume(&mut self) -> io::Result<Applied> {
        let applied = self.recorded()?;
        self.position = Position {
            index: applied.index,
            term: applied.term,
            commands_done: self.meta_u64(COMMANDS_DONE)?,
        };
        let epoch = (applied.term, applied.membership.clone());
        *self.epochs.lock() = BTreeMap::from([(applied.index, epoch)]);
        Ok(applied)
    }

    fn meta_u64(&self, key: &'static [u8]) -> io::Result<u64> {
        meta_u64(self.store.backend(), key)
    }

    /// What the next transaction records beside its effect.
    fn mark(&self, extra: Vec<Op>) -> AppliedMark {
        AppliedMark {
            index: self.position.index,
            term: self.position.term,
            extra,
        }
    }

    fn apply_entry(
        &mut self,
        entry: CommittedEntry,
        results: &mut Vec<(u64, Outcome)>,
    ) -> io::Result<()> {
        let CommittedEntry { index, term, body } = entry;
        self.entry = index;
        let complete = Position {
            index,
            term,
            commands_done: 0,
        };
        self.note_epoch(&complete, &body);
        match body {
            EntryBody::Blank => self.record(complete, Vec::new()),
            EntryBody::Membership {
                membership,
                command,
            } => {
                let mut extra = vec![put_meta(MEMBERSHIP, membership)];
                if let Some(bytes) = command {
                    let command = Command::decode(bytes)
                        .map_err(|e| io::Error::other(format!("entry {index}: {e}")))?;
                    extra.extend(self.change_members(command.body)?);
                }
                self.record(complete, extra);
            }
            EntryBody::Commands(commands) => {
                let count = commands.len();
                // A restart in the middle of a packed entry: its first commands are in the store.
                let skip = std::mem::take(&mut self.position.commands_done) as usize;
                assert!(
                    skip == 0 || skip < count,
                    "{skip} of {count} commands of an incomplete entry are done"
                );
                for (n, bytes) in commands.into_iter().enumerate().skip(skip) {
                    let command = Command::decode(bytes).map_err(|e| {
                        io::Error::other(format!("entry {index}, command {n}: {e}"))
                    })?;
                    self.position = if n + 1 == count {
                        complete
                    } else {
                        Position {
                            index: index - 1,
                            term,
                            commands_done: n as u64 + 1,
                        }
                    };
                    let extra = self.progress_ops(n, count);
                    let outcome = self.apply_command(&command.caller, command.body, extra)?;
                    if command.origin == self.member_id && command.request_id != 0 {
                        results.push((command.request_id, outcome));
                    }
                }
                if count == 0 {
                    self.record(complete, Vec::new());
                }
            }
        }
        self.position = complete;
        Ok(())
    }

    fn note_epoch(&self, position: &Position, body: &EntryBody) {
        let changes_members = matches!(body, EntryBody::Membership { .. });
        if position.term == self.position.term && !changes_members {
            return;
        }
        let mut epochs = self.epochs.lock();
        let membership = match body {
            EntryBody::Membership { membership, .. } => membership.clone(),
            _ => epochs
                .last_key_value()
                .map(|(_, (_, m))| m.clone())
                .unwrap_or_default(),
        };
        epochs.insert(position.index, (position.term, membership));
    }

    /// Records the number of commands done; entries with one command need none.
    fn progress_ops(&self, n: usize, count: usize) -> Vec<Op> {
        if count == 1 {
            return Vec::new();
        }
        let done = if n + 1 == count { 0 } else { n as u64 + 1 };
        vec![put_meta(
            COMMANDS_DONE,
            Bytes::copy_from_slice(&done.to_be_bytes()),
        )]
    }

    /// Records a position that comes with no change of keys.
    fn record(&mut self, position: Position, extra: Vec<Op>) {
        self.position = position;
        self.store.write(self.mark(extra)).commit();
    }

    /// One command, one transaction. Every path records the position exactly once.
    fn apply_command(
        &mut self,
        caller: &Caller,
        body: Body,
        extra: Vec<Op>,
    ) -> io::Result<Outcome> {
        let admitted = self.alarms_admit(&body).and_then(|()| {
            let lessor = self.store.lessor();
            self.auth.check(caller, lessor, &body)
        });
        if let Err(refusal) = admitted {
            self.store.write(self.mark(extra)).commit();
            return Ok(Err(refusal));
        }
        let over_quota = self.is_over_quota(quota::cost(&body));
        let outcome = match body {
            Body::Put(request) => self.put(request, extra),
            Body::DeleteRange(request) => self.delete_range(request, extra),
            Body::Txn(request) => self.txn(request, extra),
            Body::Compaction(request) => self.compaction(request, extra),
            Body::LeaseGrant(request) => self.lease_grant(request, extra),
            Body::LeaseRevoke(request) => self.lease_revoke(request, extra),
            Body::LeaseCheckpoint(request) => self.lease_checkpoint(request, extra),
            Body::Alarm(request) => self.alarm(request, extra),
            Body::QuotaAlarm(request) => self.quota_alarm(request, extra),
            Body::MemberPublish(request) => self.member_publish(request, extra),
            Body::ClusterVersionSet(request) => self.cluster_version_set(request, extra)?,
            Body::DowngradeSet(request) => self.downgrade_set(request, extra)?,
            Body::MemberUpdate(request) => self.member_update(request, extra),
            Body::MemberAdd(_)
            | Body::MemberPromote(_)
            | Body::MemberRemove(_)
            | Body::ClusterForce(_) => {
                return Err(io::Error::other(format!(
                    "command {} came without a membership",
                    body.name()
                )));
            }
            Body::ClusterBegin(request) => self.cluster_begin(request, extra),
            Body::Authenticate(request) => self.authenticate(&request, extra),
            Body::Auth(change) => self.auth_change(&change, extra),
        };
        if let Err(Error::Storage(reason)) = &outcome {
            return Err(io::Error::other(reason.clone()));
        }
        // The write that crosses the quota takes effect and is answered with NOSPACE, as etcd does.
        Ok(if over_quota {
            outcome.and(Err(Error::NoSpace))
        } else {
            outcome
        })
    }

    /// What raised alarms refuse. CORRUPT stops every change of keys and leases, NOSPACE those that add data.
    ///
    /// Source: etcd 3.7, apply/corrupt.go and apply/capped.go.
    fn alarms_admit(&self, body: &Body) -> Result<()> {
        let changes = matches!(
            body,
            Body::Put(_)
                | Body::DeleteRange(_)
                | Body::Txn(_)
                | Body::Compaction(_)
                | Body::LeaseGrant(_)
                | Body::LeaseRevoke(_)
        );
        if changes && self.alarms.is_raised(AlarmType::Corrupt) {
            return Err(Error::Corrupt);
        }
        if quota::cost(body) > 0 && self.alarms.is_raised(AlarmType::Nospace) {
            return Err(Error::NoSpace);
        }
        Ok(())
    }

    /// The entry being applied, also while only some of its commands are.
    fn entry_index(&self) -> u64 {
        self.entry
    }

    fn is_over_quota(&self, cost: u64) -> bool {
        let Some(quota) = self.quota_bytes.filter(|_| cost > 0) else {
            return false;
        };
        quota::usage(&self.store) + cost >= quota
    }
}

impl StateMachine for Applier {
    fn applied(&mut self) -> io::Result<Applied> {
        self.resume()
    }

    fn apply(&mut self, entries: Vec<CommittedEntry>) -> io::Result<()> {
        let begun = Instant::now();
        let count = entries.len();
        let mut results = Vec::with_capacity(entries.len());
        for entry in entries {
            self.apply_entry(entry, &mut results)?;
        }
        self.metrics
            .server
            .proposals_applied
            .set(self.position.index as i64);
        self.wait.complete(results);
        let took = begun.elapsed();
        if took > self.slow {
            self.metrics.server.slow_apply.inc();
            tracing::warn!(
                took_ms = took.as_millis() as u64,
                entries = count,
                index = self.position.index,
                "slow apply"
            );
        }
        Ok(())
    }

    fn checkpoint(&mut self) -> kv_raft::CheckpointFuture {
        let backend = self.store.backend().clone();
        let epochs = self.epochs.clone();
        Box::pin(async move {
            let safe = tokio::task::spawn_blocking(move || {
                backend.checkpoint().map(|_| backend.safe_purge_index())
            });
            let index = safe
                .await
                .map_err(io::Error::other)?
                .map_err(io::Error::other)?;
            Ok(checkpointed(&mut epochs.lock(), index))
        })
    }

    fn snapshot(&mut self) -> io::Result<Box<dyn SnapshotSource>> {
        self.open_snapshot()
    }

    fn install(&mut self, applied: Applied, source: Box<dyn SnapshotSource>) -> InstallFuture<'_> {
        self.install_snapshot(applied, source)
    }
}

/// The entry up to which the log may go when `index` is durable; epochs before it are forgotten.
fn checkpointed(epochs: &mut Epochs, index: u64) -> Applied {
    let known = epochs.first_key_value().map_or(0, |(&first, _)| first);
    let index = match index {
        // No second commit stands behind the first one of this process yet.
        0 => return Applied::default(),
        // A snapshot was installed while the checkpoint ran: that is durable, and the log before it is of no use.
        replaced if replaced < known => known,
        index => index,
    };
    let (&first, (term, membership)) = epochs
        .range(..=index)
        .next_back()
        .expect("the start and each install make an epoch, and none is asked for again below the last answer");
    let applied = Applied {
        index,
        term: *term,
        membership: membership.clone(),
    };
    *epochs = epochs.split_off(&first);
    applied
}

/// What a database says it contains.
pub(crate) fn recorded(backend: &Backend) -> io::Result<Applied> {
    Ok(Applied {
        index: meta_u64(backend, CONSISTENT_INDEX)?,
        term: meta_u64(backend, TERM)?,
        membership: meta(backend, MEMBERSHIP)?.unwrap_or_default(),
    })
}

fn meta(backend: &Backend, key: &'static [u8]) -> io::Result<Option<Bytes>> {
    backend.get(Keyspace::Meta, key).map_err(io::Error::other)
}

fn meta_u64(backend: &Backend, key: &'static [u8]) -> io::Result<u64> {
    let Some(value) = meta(backend, key)? else {
        return Ok(0);
    };
    let bytes: [u8; 8] = value[..].try_into().map_err(|_| {
        io::Error::other(format!(
            "meta item {} has {} bytes, not 8",
            String::from_utf8_lossy(key),
            value.len()
        ))
    })?;
    Ok(u64::from_be_bytes(bytes))
}

fn put_meta(key: &'static [u8], value: Bytes) -> Op {
    Op::Put(Keyspace::Meta, Bytes::from_static(key), value)
}

/// A header with the revision only; RPC handlers add the ids.
fn header(revision: i64) -> Option<kv_proto::etcdserverpb::ResponseHeader> {
    Some(kv_proto::etcdserverpb::ResponseHeader {
        revision,
        ..Default::default()
    })
}

#[cfg(test)]
mod tests;
