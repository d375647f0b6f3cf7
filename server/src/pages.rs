//! What the HTTP pages show of a running member.

use bytes::Bytes;
use kv_mvcc::RangeQuery;
use kv_proto::etcdserverpb::AlarmType;
use kv_proto::key_range::KeyRange;
use kv_raft::Role;

use crate::http::{HealthSource, RaftStatus, Versions};
use crate::member::Member;

impl HealthSource for Member {
    async fn serializable_read(&self) -> Result<(), String> {
        // Any key will do: only an error counts.
        let query = RangeQuery {
            limit: 1,
            keys_only: true,
            ..RangeQuery::new(KeyRange::Single(Bytes::from_static(b"\0")))
        };
        self.store
            .range(&query)
            .map(|_| ())
            .map_err(|e| e.to_string())
    }

    async fn linearizable_read(&self) -> Result<(), String> {
        self.reads.linearizable().await.map_err(|e| e.to_string())?;
        self.serializable_read().await
    }

    fn has_leader(&self) -> bool {
        Member::has_leader(self)
    }

    fn is_learner(&self) -> bool {
        self.is_without_vote()
    }

    fn alarms(&self) -> Vec<AlarmType> {
        let raised = self.alarms.get(AlarmType::None as i32);
        raised
            .iter()
            .filter_map(|alarm| AlarmType::try_from(alarm.alarm).ok())
            .collect()
    }

    fn versions(&self) -> Versions {
        Versions {
            cluster: self.cluster.version().map(|version| version.to_string()),
            storage: self.storage_version().map(|version| version.to_string()),
        }
    }

    fn raft_status(&self) -> RaftStatus {
        let status = self.node.status();
        RaftStatus {
            id: self.id,
            term: status.term,
            vote: status.leader.unwrap_or(0),
            commit: status.committed_index,
            leader: status.leader.unwrap_or(0),
            state: match status.role {
                Role::Leader => "StateLeader",
                Role::Candidate => "StateCandidate",
                Role::Follower | Role::Learner => "StateFollower",
            },
            applied: status.applied_index,
        }
    }
}

impl Member {
    /// Brings the gauges up to date; counters count as things happen.
    pub(crate) fn refresh_gauges(&self) {
        let metrics = &self.metrics;
        let status = self.node.status();
        metrics
            .server
            .has_leader
            .set(i64::from(status.leader.is_some()));
        metrics.server.is_leader.set(i64::from(self.is_leader()));
        metrics
            .server
            .is_learner
            .set(i64::from(HealthSource::is_learner(self)));
        metrics
            .server
            .proposals_committed
            .set(status.committed_index as i64);
        metrics
            .server
            .proposals_applied
            .set(status.applied_index as i64);
        metrics
            .server
            .id
            .with_label_values(&[&format!("{:x}", self.id)])
            .set(1);
        if let Some(version) = self.cluster.version() {
            let shown = &metrics.server.cluster_version;
            shown.reset();
            shown.with_label_values(&[&version.major_minor()]).set(1);
        }
        let sizes = self.store.backend().size();
        metrics.mvcc.db_bytes.set(sizes.on_disk as i64);
        metrics
            .mvcc
            .db_in_use_bytes
            .set(self.bytes_in_use().min(sizes.on_disk) as i64);
        let stats = self.store.stats();
        metrics
            .debugging
            .current_revision
            .set(self.store.revision());
        metrics
            .debugging
            .compact_revision
            .set(self.store.compacted());
        metrics.debugging.keys.set(stats.keys as i64);
        metrics
            .debugging
            .auth_revision
            .set(self.auth.revision() as i64);
        let hub = self.store.watch_hub().stats();
        metrics.debugging.watch_streams.set(hub.streams as i64);
        metrics.debugging.watchers.set(hub.watchers as i64);
        metrics
            .debugging
            .slow_watchers
            .set(hub.slow_watchers as i64);
        metrics.debugging.alarms.reset();
        for alarm in self.alarms.get(AlarmType::None as i32) {
            let kind = AlarmType::try_from(alarm.alarm).map_or("UNKNOWN", |k| k.as_str_name());
            let labels = [&format!("{:x}", alarm.member_id), kind];
            metrics.debugging.alarms.with_label_values(&labels).set(1);
        }
        metrics.own.index_bytes.set(stats.index_bytes as i64);
        metrics
            .own
            .durable_index
            .set(self.store.backend().durable_index() as i64);
        let memory = |part, bytes: u64| {
            metrics
                .own
                .memory_bytes
                .with_label_values(&[part])
                .set(bytes as i64)
        };
        memory("newest_values", stats.cache_bytes);
        memory("write_buffer", self.store.backend().buffered_bytes());
        memory("watch_history", hub.history_bytes);
    }
}
