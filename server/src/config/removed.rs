//! Flags of older releases, and what became of each.
//!
//! Those with a successor are read as it, so that a manifest of an older release starts; the others are refused as flags,
//! with what to write instead, and ignored as variables. Source: release notes of etcd 3.4 to 3.7.

use super::flags::variable;

/// A flag of an older release, and what became of it.
pub(super) struct Removed {
    pub(super) name: &'static str,
    pub(super) removed_in: &'static str,
    pub(super) successor: Successor,
}

impl Removed {
    /// The environment variable that set it.
    pub(super) fn variable(&self) -> String {
        variable(self.name)
    }
}

/// What a removed flag is read as.
pub(super) enum Successor {
    /// Another flag with the same values.
    Flag(&'static str),
    /// A feature gate, where the flag was a boolean.
    Gate(&'static str),
    /// Nothing: the advice says what to write.
    None(&'static str),
}

const fn renamed(name: &'static str, successor: &'static str) -> Removed {
    Removed {
        name,
        removed_in: "3.7",
        successor: Successor::Flag(successor),
    }
}

const fn gated(name: &'static str, gate: &'static str) -> Removed {
    Removed {
        name,
        removed_in: "3.7",
        successor: Successor::Gate(gate),
    }
}

const fn gone(name: &'static str, removed_in: &'static str, advice: &'static str) -> Removed {
    Removed {
        name,
        removed_in,
        successor: Successor::None(advice),
    }
}

const NO_PROXY: &str = "the v2 proxy no longer exists; remove the flag";
const NO_V2: &str = "the v2 API no longer exists; remove the flag";
const NO_V2_DISCOVERY: &str = "use --initial-cluster to list the members";

/// Flags of older releases, in the order they left.
pub(super) static REMOVED: &[Removed] = &[
    gone(
        "ca-file",
        "3.4",
        "use --trusted-ca-file and --client-cert-auth",
    ),
    gone(
        "peer-ca-file",
        "3.4",
        "use --peer-trusted-ca-file and --peer-client-cert-auth",
    ),
    gone("debug", "3.5", "use --log-level=debug"),
    gone("log-output", "3.5", "use --log-outputs"),
    gone("log-package-levels", "3.5", "use --log-level"),
    gone("enable-v2", "3.6", NO_V2),
    gone("experimental-enable-v2v3", "3.6", NO_V2),
    gone("proxy", "3.6", NO_PROXY),
    gone("proxy-failure-wait", "3.6", NO_PROXY),
    gone("proxy-refresh-interval", "3.6", NO_PROXY),
    gone("proxy-dial-timeout", "3.6", NO_PROXY),
    gone("proxy-write-timeout", "3.6", NO_PROXY),
    gone("proxy-read-timeout", "3.6", NO_PROXY),
    gone("discovery", "3.7", NO_V2_DISCOVERY),
    gone("discovery-proxy", "3.7", NO_V2_DISCOVERY),
    Removed {
        name: "experimental-backend-bbolt-freelist-type",
        removed_in: "3.5",
        successor: Successor::Flag("backend-bbolt-freelist-type"),
    },
    Removed {
        name: "experimental-max-learners",
        removed_in: "3.6",
        successor: Successor::Flag("max-learners"),
    },
    renamed(
        "experimental-bootstrap-defrag-threshold-megabytes",
        "bootstrap-defrag-threshold-megabytes",
    ),
    renamed(
        "experimental-compact-hash-check-time",
        "compact-hash-check-time",
    ),
    renamed(
        "experimental-compaction-batch-limit",
        "compaction-batch-limit",
    ),
    renamed(
        "experimental-compaction-sleep-interval",
        "compaction-sleep-interval",
    ),
    renamed("experimental-corrupt-check-time", "corrupt-check-time"),
    renamed(
        "experimental-distributed-tracing-address",
        "distributed-tracing-address",
    ),
    renamed(
        "experimental-distributed-tracing-instance-id",
        "distributed-tracing-instance-id",
    ),
    renamed(
        "experimental-distributed-tracing-sampling-rate",
        "distributed-tracing-sampling-rate",
    ),
    renamed(
        "experimental-distributed-tracing-service-name",
        "distributed-tracing-service-name",
    ),
    renamed("experimental-downgrade-check-time", "downgrade-check-time"),
    renamed(
        "experimental-enable-distributed-tracing",
        "enable-distributed-tracing",
    ),
    renamed("experimental-memory-mlock", "memory-mlock"),
    renamed(
        "experimental-peer-skip-client-san-verification",
        "peer-skip-client-san-verification",
    ),
    renamed(
        "experimental-snapshot-catchup-entries",
        "snapshot-catchup-entries",
    ),
    renamed(
        "experimental-warning-apply-duration",
        "warning-apply-duration",
    ),
    renamed(
        "experimental-warning-unary-request-duration",
        "warning-unary-request-duration",
    ),
    renamed(
        "experimental-watch-progress-notify-interval",
        "watch-progress-notify-interval",
    ),
    gated(
        "experimental-compact-hash-check-enabled",
        "CompactHashCheck",
    ),
    gated("experimental-enable-lease-checkpoint", "LeaseCheckpoint"),
    gated(
        "experimental-enable-lease-checkpoint-persist",
        "LeaseCheckpointPersist",
    ),
    gated("experimental-initial-corrupt-check", "InitialCorruptCheck"),
    gated(
        "experimental-stop-grpc-service-on-defrag",
        "StopGRPCServiceOnDefrag",
    ),
    gated(
        "experimental-txn-mode-write-with-shared-buffer",
        "TxnModeWriteWithSharedBuffer",
    ),
];
