//! What RPC and HTTP handlers share: the parts of a running member and the questions asked of it.

use std::sync::Arc;
use std::time::Instant;

use kv_mvcc::Store;
use kv_proto::command::{Body, Caller};
use kv_proto::etcdserverpb::alarm_request::AlarmAction;
use kv_proto::etcdserverpb::{AlarmRequest, AlarmType, ResponseHeader};
use kv_raft::{Node, Role};
use tokio::sync::Semaphore;
use tokio::time::timeout;
use tokio_util::sync::CancellationToken;

use crate::alarm::Alarms;
use crate::apply::Response;
use crate::auth::{Auth, Credentials};
use crate::cluster::{Cluster, Version};
use crate::config::Config;
use crate::disk_space::Allowance;
use crate::large_reads::LargeReads;
use crate::metrics::Metrics;
use crate::peer::Transport;
use crate::propose::Proposer;
use crate::range_budget::RangeBudget;
use crate::read::ReadBarrier;
use crate::{Error, Result, backup, quota};

/// Answers to large reads may take the memory budget so many times: it is meant for what stays.
const RANGE_BUDGETS: u64 = 2;
/// Store reads that may leave the connection's thread at once.
const BLOCKING_READS_MAX: usize = 4;

/// A running member.
pub(crate) struct Member {
    pub(crate) id: u64,
    pub(crate) config: Arc<Config>,
    pub(crate) node: Node,
    pub(crate) store: Arc<Store>,
    pub(crate) cluster: Arc<Cluster>,
    pub(crate) alarms: Arc<Alarms>,
    pub(crate) auth: Arc<Auth>,
    pub(crate) proposer: Proposer,
    pub(crate) reads: ReadBarrier,
    pub(crate) metrics: Arc<Metrics>,
    /// Connections to the other members.
    pub(crate) transport: Arc<Transport>,
    /// Held while this member, as the leader, changes who the members are.
    pub(crate) reconfiguring: tokio::sync::Mutex<()>,
    /// Canceled when the member begins to stop.
    pub(crate) stopping: CancellationToken,
    /// Origin of lease times.
    pub(crate) started: Instant,
    pub(crate) disk_allowance: Allowance,
    /// Backups that may still begin.
    pub(crate) backups: Arc<Semaphore>,
    /// What answers to large reads may take.
    pub(crate) range_budget: Arc<RangeBudget>,
    large_reads: LargeReads,
    blocking_reads: Arc<Semaphore>,
}

/// The parts a [`Member`] is made of.
pub(crate) struct Parts {
    pub(crate) id: u64,
    pub(crate) config: Arc<Config>,
    pub(crate) node: Node,
    pub(crate) store: Arc<Store>,
    pub(crate) cluster: Arc<Cluster>,
    pub(crate) alarms: Arc<Alarms>,
    pub(crate) auth: Arc<Auth>,
    pub(crate) proposer: Proposer,
    pub(crate) metrics: Arc<Metrics>,
    pub(crate) transport: Arc<Transport>,
    pub(crate) stopping: CancellationToken,
    pub(crate) started: Instant,
}

impl Member {
    pub(crate) fn new(parts: Parts) -> std::io::Result<Arc<Member>> {
        let Parts {
            id,
            config,
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
        } = parts;
        let reads = ReadBarrier::new(node.clone(), config.request_timeout());
        let blocking_reads = Arc::new(Semaphore::new(BLOCKING_READS_MAX));
        let range_bytes_max = config.memory_budget.saturating_mul(RANGE_BUDGETS);
        let range_budget = RangeBudget::new(range_bytes_max, config.request_timeout());
        Ok(Arc::new(Member {
            id,
            config,
            node,
            store,
            cluster,
            alarms,
            auth,
            proposer,
            reads,
            metrics,
            transport,
            reconfiguring: tokio::sync::Mutex::default(),
            stopping,
            started,
            disk_allowance: Allowance::new(),
            backups: Arc::new(Semaphore::new(backup::AT_ONCE_MAX)),
            range_budget,
            large_reads: LargeReads::start()?,
            blocking_reads,
        }))
    }

    /// A response header of this member at `revision`.
    pub(crate) fn header(&self, revision: i64) -> ResponseHeader {
        let raft_term = self.node.peek(|status| status.term);
        ResponseHeader {
            cluster_id: self.cluster.id,
            member_id: self.id,
            revision,
            raft_term,
        }
    }

    /// The version of what is stored: that of the cluster, none until the cluster's is known.
    pub(crate) fn storage_version(&self) -> Option<Version> {
        let version = self.cluster.version();
        version.filter(|version| *version != Version::UNKNOWN)
    }

    /// Whether this member leads and can vouch for it.
    pub(crate) fn is_leader(&self) -> bool {
        self.node
            .peek(|status| status.role == Role::Leader && status.leader == Some(self.id))
    }

    /// Whether this member is a learner of raft: by the member list, or one that shall vote and is catching up.
    pub(crate) fn is_without_vote(&self) -> bool {
        self.node.peek(|status| status.learners.contains(&self.id))
    }

    /// The term in which this member leads and can vouch for it.
    pub(crate) fn leading_term(&self) -> Option<u64> {
        self.node.peek(|status| {
            (status.role == Role::Leader && status.leader == Some(self.id)).then_some(status.term)
        })
    }

    /// Whether this member is the only voter, so that nobody else can lead.
    pub(crate) fn is_alone(&self) -> bool {
        self.node.is_sole_voter()
    }

    /// Whether this member knows a leader.
    pub(crate) fn has_leader(&self) -> bool {
        self.node.peek(|status| status.leader.is_some())
    }

    /// Who calls; [`Caller::Nobody`] while auth is disabled.
    pub(crate) async fn caller(&self, credentials: &Credentials) -> Result<Caller> {
        self.auth.caller(&self.node, credentials).await
    }

    /// Who calls, if they may do everything.
    pub(crate) async fn admin(&self, credentials: &Credentials) -> Result<Caller> {
        let caller = self.caller(credentials).await?;
        self.auth.state().check_admin(&caller)?;
        Ok(caller)
    }

    /// Who calls, if they say so.
    pub(crate) async fn named(&self, credentials: &Credentials) -> Result<Caller> {
        let caller = self.caller(credentials).await?;
        self.auth.state().check_named(&caller)?;
        Ok(caller)
    }

    /// Proposes `body` for the caller after the quota check and returns what applying it answered.
    pub(crate) async fn propose(&self, credentials: &Credentials, body: Body) -> Result<Response> {
        let cost = quota::cost(&body);
        self.check_quota(cost).await?;
        if cost > 0 {
            let look = self.disk_allowance.take(cost);
            timeout(self.config.request_timeout(), look)
                .await
                .map_err(|_| Error::TooManyRequests)?;
        }
        let caller = if self.auth.is_enabled() {
            self.proposer.check_backlog(&body)?;
            match body {
                // What a token is asked for with.
                Body::Authenticate(_) => Caller::Nobody,
                Body::LeaseGrant(_) | Body::LeaseRevoke(_) => self.named(credentials).await?,
                _ => self.caller(credentials).await?,
            }
        } else {
            Caller::Nobody
        };
        self.proposer.propose_for(caller, body).await
    }

    /// Refuses what the quota has no room for, and raises the alarm then. What costs nothing is admitted always.
    ///
    /// etcd asks this before it looks at the request itself, so handlers do.
    pub(crate) async fn check_quota(&self, cost: u64) -> Result<()> {
        let Some(quota) = self.config.quota_bytes().filter(|_| cost > 0) else {
            return Ok(());
        };
        let used = self.bytes_in_use();
        if used + cost < quota {
            return Ok(());
        }
        quota::raise(self, used, quota).await;
        Err(Error::NoSpace)
    }

    /// Whether this member's own alarm is raised.
    pub(crate) fn has_alarm(&self, alarm: AlarmType) -> bool {
        let raised = self.alarms.get(alarm as i32);
        raised.iter().any(|alarm| alarm.member_id == self.id)
    }

    /// Live bytes of the database, those that are not committed yet included.
    pub(crate) fn bytes_in_use(&self) -> u64 {
        quota::usage(&self.store)
    }

    /// Raises an alarm for this member; a failure is logged, since the refusal that caused it stands anyway.
    pub(crate) async fn raise(&self, alarm: AlarmType) {
        self.raise_for(self.id, alarm).await;
    }

    /// As [`Member::raise`], for another member; 0 stands for the cluster as a whole.
    pub(crate) async fn raise_for(&self, member_id: u64, alarm: AlarmType) {
        let request = AlarmRequest {
            action: AlarmAction::Activate as i32,
            member_id,
            alarm: alarm as i32,
        };
        if let Err(error) = self.proposer.propose(Body::Alarm(request)).await {
            tracing::warn!(alarm = alarm.as_str_name(), %error, "could not raise an alarm");
        }
    }

    /// Runs a store read that takes long, with less right to the processor than other work.
    pub(crate) async fn read_large<T: Send + 'static>(
        &self,
        read: impl FnOnce(&Store) -> Result<T> + Send + 'static,
    ) -> Result<T> {
        let store = self.store.clone();
        self.large_reads.run(move || read(&store)).await
    }

    /// Runs a store read where it does not hold up other connections.
    pub(crate) async fn read_blocking<T: Send + 'static>(
        &self,
        read: impl FnOnce(&Store) -> Result<T> + Send + 'static,
    ) -> Result<T> {
        let permit = self.blocking_reads.clone().acquire_owned().await;
        let permit = permit.map_err(|_| Error::Stopped)?;
        let store = self.store.clone();
        // The read goes on when the caller does not wait any longer, and counts until its end.
        let read = move || {
            let _permit = permit;
            read(&store)
        };
        tokio::task::spawn_blocking(read)
            .await
            .map_err(|_| Error::Stopped)?
    }
}
