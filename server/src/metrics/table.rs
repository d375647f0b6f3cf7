//! The rows: every metric of a single member, by group.
//!
//! Source: etcd 3.7.1, as listed in `tests/fixtures/etcd-metrics.json`; what is missing here is listed with its reason in
//! the test that compares the two.

use prometheus::{Histogram, HistogramVec, IntCounter, IntCounterVec, IntGauge, IntGaugeVec};

use super::group;

group! {
    /// `etcd_server_*` and `etcd_cluster_*`.
    ServerMetrics {
        cluster_version: IntGaugeVec = "etcd_cluster_version", "1 on the series whose label is the current cluster version.", labels ["cluster_version"];
        version: IntGaugeVec = "etcd_server_version", "1 on the series of the running server version.", labels ["server_version"];
        id: IntGaugeVec = "etcd_server_id", "1 on the series of this member ID (hex).", labels ["server_id"];
        has_leader: IntGauge = "etcd_server_has_leader", "1 if this member knows a leader.";
        is_leader: IntGauge = "etcd_server_is_leader", "1 if this member is the leader.";
        is_learner: IntGauge = "etcd_server_is_learner", "1 if this member is a learner.";
        leader_changes_seen: IntCounter = "etcd_server_leader_changes_seen_total", "Leader changes seen.";
        learner_promote_failures: IntCounterVec = "etcd_server_learner_promote_failures", "Failed promotions on this leader, by reason.", labels ["Reason"];
        learner_promote_successes: IntCounter = "etcd_server_learner_promote_successes", "Successful promotions on this leader.";
        heartbeat_send_failures: IntCounter = "etcd_server_heartbeat_send_failures_total", "Late heartbeats of this leader.";
        proposals_applied: IntGauge = "etcd_server_proposals_applied_total", "Last applied log index.";
        proposals_committed: IntGauge = "etcd_server_proposals_committed_total", "Last committed log index.";
        proposals_failed: IntCounter = "etcd_server_proposals_failed_total", "Failed proposals.";
        proposals_pending: IntGauge = "etcd_server_proposals_pending", "Proposals that wait to be committed and applied.";
        apply_duration: HistogramVec = "etcd_server_apply_duration_seconds", "Time to apply an operation.", labels ["version", "op", "success"], buckets (0.0001, 2.0, 20);
        slow_apply: IntCounter = "etcd_server_slow_apply_total", "Applies slower than the warning threshold.";
        range_duration: HistogramVec = "etcd_server_range_duration_seconds", "Time to answer a range.", labels ["success"], buckets (0.0001, 2.0, 20);
        request_duration: HistogramVec = "etcd_server_request_duration_seconds", "Time to answer a request, by kind.", labels ["type", "success"], buckets (0.001, 2.0, 14);
        client_requests: IntCounterVec = "etcd_server_client_requests_total", "Requests by type of call and client API version.", labels ["type", "client_api_version"];
        read_indexes_failed: IntCounter = "etcd_server_read_indexes_failed_total", "Failed read indexes.";
        slow_read_indexes: IntCounter = "etcd_server_slow_read_indexes_total", "Read indexes that came late or not at all.";
        snapshot_apply_in_progress: IntGauge = "etcd_server_snapshot_apply_in_progress_total", "1 while an incoming snapshot is installed.";
        quota_backend_bytes: IntGauge = "etcd_server_quota_backend_bytes", "Space quota in bytes.";
        feature_enabled: IntGaugeVec = "etcd_server_feature_enabled", "1 if the feature gate is on, else 0.", labels ["name", "stage"];
        health_failures: IntCounter = "etcd_server_health_failures", "Failed calls of /health.";
        health_success: IntCounter = "etcd_server_health_success", "Successful calls of /health.";
        healthcheck: IntGaugeVec = "etcd_server_healthcheck", "Last result of each check of /livez and /readyz.", labels ["type", "name"];
        healthchecks: IntCounterVec = "etcd_server_healthchecks_total", "Checks of /livez and /readyz by result.", labels ["type", "name", "status"];
    }
}

group! {
    /// `etcd_debugging_*`.
    DebuggingMetrics {
        auth_revision: IntGauge = "etcd_debugging_auth_revision", "Revision of the auth store.";
        alarms: IntGaugeVec = "etcd_debugging_server_alarms", "Active alarms by member and type.", labels ["server_id", "alarm_type"];
        current_revision: IntGauge = "etcd_debugging_mvcc_current_revision", "Current revision.";
        compact_revision: IntGauge = "etcd_debugging_mvcc_compact_revision", "Last compacted revision.";
        keys: IntGauge = "etcd_debugging_mvcc_keys_total", "Keys in the index.";
        put_bytes: IntGauge = "etcd_debugging_mvcc_total_put_size_in_bytes", "Bytes of keys and values put.";
        compaction_keys: IntCounter = "etcd_debugging_mvcc_db_compaction_keys_total", "Revisions removed by compaction.";
        compaction_last: IntGauge = "etcd_debugging_mvcc_db_compaction_last", "Unix time of the last compaction.";
        compaction_pause_ms: Histogram = "etcd_debugging_mvcc_db_compaction_pause_duration_milliseconds", "Time of one step of a compaction, in ms.", buckets (1.0, 2.0, 13);
        compaction_total_ms: Histogram = "etcd_debugging_mvcc_db_compaction_total_duration_milliseconds", "Time of a compaction, in ms.", buckets (100.0, 2.0, 14);
        index_compaction_pause_ms: Histogram = "etcd_debugging_mvcc_index_compaction_pause_duration_milliseconds", "Time of one step of an index compaction, in ms.", buckets (0.5, 2.0, 14);
        events: IntCounter = "etcd_debugging_mvcc_events_total", "Watch events sent.";
        pending_events: IntGauge = "etcd_debugging_mvcc_pending_events_total", "Watch events that wait to be sent.";
        watch_streams: IntGauge = "etcd_debugging_mvcc_watch_stream_total", "Open watch streams.";
        watchers: IntGauge = "etcd_debugging_mvcc_watcher_total", "Open watchers.";
        slow_watchers: IntGauge = "etcd_debugging_mvcc_slow_watcher_total", "Watchers that lag.";
        watch_control_duration: Histogram = "etcd_debugging_server_watch_send_loop_control_stream_duration_seconds", "Time to send a control response.", buckets (0.001, 2.0, 14);
        watch_progress_duration: Histogram = "etcd_debugging_server_watch_send_loop_progress_duration_seconds", "Time to send progress.", buckets (0.001, 2.0, 14);
        watch_response_duration: Histogram = "etcd_debugging_server_watch_send_loop_watch_stream_duration_seconds", "Time to send a response with events.", buckets (0.001, 2.0, 14);
        watch_event_duration: Histogram = "etcd_debugging_server_watch_send_loop_watch_stream_duration_per_event_seconds", "Time to send a response, divided by its events.", buckets (0.001, 2.0, 14);
        leases_granted: IntCounter = "etcd_debugging_lease_granted_total", "Leases granted.";
        leases_renewed: IntCounter = "etcd_debugging_lease_renewed_total", "Lease renewals on this leader.";
        leases_revoked: IntCounter = "etcd_debugging_lease_revoked_total", "Leases revoked.";
        leases_expired: IntCounter = "etcd_debugging_server_lease_expired_total", "Leases expired.";
        lease_ttl_secs: Histogram = "etcd_debugging_lease_ttl_total", "Granted lease times, in seconds.", buckets (1.0, 2.0, 24);
    }
}

group! {
    /// `etcd_disk_*`.
    DiskMetrics {
        wal_fsync_duration: Histogram = "etcd_disk_wal_fsync_duration_seconds", "Time of an fsync of the log.", buckets (0.001, 2.0, 14);
        wal_write_duration: Histogram = "etcd_disk_wal_write_duration_seconds", "Time of a write to the log.", buckets (0.001, 2.0, 14);
        wal_write_bytes: IntGauge = "etcd_disk_wal_write_bytes_total", "Bytes written to the log.";
        backend_commit_duration: Histogram = "etcd_disk_backend_commit_duration_seconds", "Time of a commit of the engine.", buckets (0.001, 2.0, 14);
        backend_defrag_duration: Histogram = "etcd_disk_backend_defrag_duration_seconds", "Time of a defragmentation.", buckets (0.1, 2.0, 13);
        backend_snapshot_duration: Histogram = "etcd_disk_backend_snapshot_duration_seconds", "Time to write out a snapshot.", buckets (0.01, 2.0, 17);
        defrag_inflight: IntGauge = "etcd_disk_defrag_inflight", "1 while a defragmentation runs.";
    }
}

group! {
    /// `etcd_mvcc_*`.
    MvccMetrics {
        put: IntCounter = "etcd_mvcc_put_total", "Puts applied.";
        delete: IntCounter = "etcd_mvcc_delete_total", "Deletes applied.";
        range: IntCounter = "etcd_mvcc_range_total", "Ranges answered.";
        txn: IntCounter = "etcd_mvcc_txn_total", "Transactions applied.";
        db_bytes: IntGauge = "etcd_mvcc_db_total_size_in_bytes", "Size of the engine's files.";
        db_in_use_bytes: IntGauge = "etcd_mvcc_db_total_size_in_use_in_bytes", "Size of the engine's files without free space.";
        open_read_txns: IntGauge = "etcd_mvcc_db_open_read_transactions", "Open views of the engine.";
        hash_duration: Histogram = "etcd_mvcc_hash_duration_seconds", "Time of a Hash.", buckets (0.01, 2.0, 15);
        hash_kv_duration: Histogram = "etcd_mvcc_hash_rev_duration_seconds", "Time of a HashKV.", buckets (0.01, 2.0, 15);
    }
}

group! {
    /// `etcd_network_*` between this member and its clients and peers. Peers are named by their id in hex.
    NetworkMetrics {
        client_received_bytes: IntCounter = "etcd_network_client_grpc_received_bytes_total", "Bytes received from gRPC clients.";
        client_sent_bytes: IntCounter = "etcd_network_client_grpc_sent_bytes_total", "Bytes sent to gRPC clients.";
        stream_failures: IntCounterVec = "etcd_network_server_stream_failures_total", "Failed sends and receives on streams.", labels ["Type", "API"];
        active_peers: IntGaugeVec = "etcd_network_active_peers", "1 while the peer answers.", labels ["Local", "Remote"];
        known_peers: IntGaugeVec = "etcd_network_known_peers", "1 for each peer that was ever spoken to.", labels ["Local", "Remote"];
        disconnected_peers: IntCounterVec = "etcd_network_disconnected_peers_total", "Times a peer ceased to answer.", labels ["Local", "Remote"];
        peer_sent_bytes: IntCounterVec = "etcd_network_peer_sent_bytes_total", "Bytes sent to a peer.", labels ["To"];
        peer_received_bytes: IntCounterVec = "etcd_network_peer_received_bytes_total", "Bytes received from a peer.", labels ["From"];
        peer_sent_failures: IntCounterVec = "etcd_network_peer_sent_failures_total", "Calls to a peer that failed.", labels ["To"];
        peer_received_failures: IntCounterVec = "etcd_network_peer_received_failures_total", "Streams from a peer that broke.", labels ["From"];
        peer_round_trip: HistogramVec = "etcd_network_peer_round_trip_time_seconds", "Time from a short request to a peer to its answer.", labels ["To"], buckets (0.0001, 2.0, 16);
        snapshot_send_inflights: IntGaugeVec = "etcd_network_snapshot_send_inflights_total", "Snapshots being sent.", labels ["To"];
        snapshot_send_success: IntCounterVec = "etcd_network_snapshot_send_success", "Snapshots sent and installed.", labels ["To"];
        snapshot_send_failures: IntCounterVec = "etcd_network_snapshot_send_failures", "Snapshots that could not be sent.", labels ["To"];
        snapshot_send_seconds: HistogramVec = "etcd_network_snapshot_send_total_duration_seconds", "Time to send a snapshot and have it installed.", labels ["To"], buckets (0.1, 2.0, 10);
        snapshot_receive_inflights: IntGaugeVec = "etcd_network_snapshot_receive_inflights_total", "Snapshots being received.", labels ["From"];
        snapshot_receive_success: IntCounterVec = "etcd_network_snapshot_receive_success", "Snapshots received and installed.", labels ["From"];
        snapshot_receive_failures: IntCounterVec = "etcd_network_snapshot_receive_failures", "Snapshots that could not be received.", labels ["From"];
        snapshot_receive_seconds: HistogramVec = "etcd_network_snapshot_receive_total_duration_seconds", "Time to receive and install a snapshot.", labels ["From"], buckets (0.1, 2.0, 10);
    }
}

group! {
    /// `promhttp_*`.
    HttpMetrics {
        scrapes: IntCounterVec = "promhttp_metric_handler_requests_total", "Scrapes by HTTP status.", labels ["code"];
        scrapes_in_flight: IntGauge = "promhttp_metric_handler_requests_in_flight", "Scrapes in progress.";
    }
}

group! {
    /// `kvd_*`.
    OwnMetrics {
        memory_budget_bytes: IntGauge = "kvd_memory_budget_bytes", "Memory shared by caches, buffers and requests, from --memory-budget.";
        memory_bytes: IntGaugeVec = "kvd_memory_bytes", "Memory in use by each part of the budget.", labels ["part"];
        index_bytes: IntGauge = "kvd_index_bytes", "Memory in use by the key index, which is outside the budget.";
        oldest_view_secs: IntGauge = "kvd_oldest_view_seconds", "Age of the oldest open view of the engine.";
        durable_index: IntGauge = "kvd_durable_index", "Log index of the newest durable commit of the engine.";
        wal_bytes: IntGauge = "kvd_wal_bytes", "Size of the log's files.";
    }
}
