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
use crate::cluster::Cluster;
use crate::config::Config;
use crate::disk_space::Allowance;
use crate::metrics::Metrics;
use crate::peer::Transport;
use crate::propose::Proposer;
use crate::read::ReadBarrier;
use crate::{Error, Result, quota};

/// The etcd API level that is reported everywhere.
pub(crate) const API_VERSION: &str = "3.7.1";
/// The same as a cluster and storage version.
pub(crate) const CLUSTER_VERSION: &str = "3.7.0";

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
    blocking_reads: Semaphore,
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
    pub(crate) fn new(parts: Parts) -> Arc<Member> {
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
        let reads = ReadBarrier::new(node.clone(), id, config.request_timeout());
        let blocking_reads = Semaphore::new(BLOCKING_READS_MAX);
        Arc::new(Member {
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
            blocking_reads,
        })
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
        self.node
            .peek(|status| status.role == Role::Leader && *status.voters == [self.id])
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
        if self.is_over_quota(cost) {
            self.raise(AlarmType::Nospace).await;
            return Err(Error::NoSpace);
        }
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

    fn is_over_quota(&self, cost: u64) -> bool {
        let Some(quota) = self.config.quota_bytes().filter(|_| cost > 0) else {
            return false;
        };
        self.bytes_in_use() + cost >= quota
    }

    /// Whether this member's own alarm is raised.
    pub(crate) fn has_alarm(&self, alarm: AlarmType) -> bool {
        let raised = self.alarms.get(alarm as i32);
        raised.iter().any(|alarm| alarm.member_id == self.id)
    }

    /// Live bytes of the database, those that are not committed yet included.
    pub(crate) fn bytes_in_use(&self) -> u64 {
        let backend = self.store.backend();
        backend.size().in_use + backend.buffered_bytes()
    }

    /// Raises an alarm for this member; a failure is logged, since the refusal that caused it stands anyway.
    pub(crate) async fn raise(&self, alarm: AlarmType) {
        let request = AlarmRequest {
            action: AlarmAction::Activate as i32,
            member_id: self.id,
            alarm: alarm as i32,
        };
        if let Err(error) = self.proposer.propose(Body::Alarm(request)).await {
            tracing::warn!(alarm = alarm.as_str_name(), %error, "could not raise an alarm");
        }
    }

    /// Runs a store read where it does not hold up other connections.
    pub(crate) async fn read_blocking<T: Send + 'static>(
        &self,
        read: impl FnOnce(&Store) -> Result<T> + Send + 'static,
    ) -> Result<T> {
        let _permit = self
            .blocking_reads
            .acquire()
            .await
            .map_err(|_| Error::Stopped)?;
        let store = self.store.clone();
        tokio::task::spawn_blocking(move || read(&store))
            .await
            .map_err(|_| Error::Stopped)?
    }
}
