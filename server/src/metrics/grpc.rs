//! `grpc_server_*`: calls by method, resolved once so that counting one needs no lookup by label.

use std::collections::HashMap;
use std::time::Duration;

use prometheus::{Histogram, HistogramVec, IntCounter, IntCounterVec};

use super::{Declared, Spec};

/// Names of gRPC's status codes, by number.
pub const CODES: [&str; 17] = [
    "OK",
    "Canceled",
    "Unknown",
    "InvalidArgument",
    "DeadlineExceeded",
    "NotFound",
    "AlreadyExists",
    "PermissionDenied",
    "ResourceExhausted",
    "FailedPrecondition",
    "Aborted",
    "OutOfRange",
    "Unimplemented",
    "Internal",
    "Unavailable",
    "DataLoss",
    "Unauthenticated",
];

const UNARY: &str = "unary";
const SERVER_STREAM: &str = "server_stream";
const BIDI_STREAM: &str = "bidi_stream";

const METHOD_LABELS: &[&str] = &["grpc_type", "grpc_service", "grpc_method"];

/// Every method: service, kind, names. etcd shows those of Lock and Election from their first call on; here they begin at 0.
const METHODS: &[(&str, &str, &[&str])] = &[
    (
        "etcdserverpb.KV",
        UNARY,
        &["Range", "Put", "DeleteRange", "Txn", "Compact"],
    ),
    ("etcdserverpb.KV", SERVER_STREAM, &["RangeStream"]),
    ("etcdserverpb.Watch", BIDI_STREAM, &["Watch"]),
    (
        "etcdserverpb.Lease",
        UNARY,
        &[
            "LeaseGrant",
            "LeaseRevoke",
            "LeaseTimeToLive",
            "LeaseLeases",
        ],
    ),
    ("etcdserverpb.Lease", BIDI_STREAM, &["LeaseKeepAlive"]),
    (
        "etcdserverpb.Cluster",
        UNARY,
        &[
            "MemberAdd",
            "MemberRemove",
            "MemberUpdate",
            "MemberList",
            "MemberPromote",
        ],
    ),
    (
        "etcdserverpb.Maintenance",
        UNARY,
        &[
            "Alarm",
            "Status",
            "Defragment",
            "Hash",
            "HashKV",
            "MoveLeader",
            "Downgrade",
        ],
    ),
    ("etcdserverpb.Maintenance", SERVER_STREAM, &["Snapshot"]),
    (
        "etcdserverpb.Auth",
        UNARY,
        &[
            "AuthEnable",
            "AuthDisable",
            "AuthStatus",
            "Authenticate",
            "UserAdd",
            "UserGet",
            "UserList",
            "UserDelete",
            "UserChangePassword",
            "UserGrantRole",
            "UserRevokeRole",
            "RoleAdd",
            "RoleGet",
            "RoleList",
            "RoleDelete",
            "RoleGrantPermission",
            "RoleRevokePermission",
        ],
    ),
    ("v3lockpb.Lock", UNARY, &["Lock", "Unlock"]),
    (
        "v3electionpb.Election",
        UNARY,
        &["Campaign", "Proclaim", "Leader", "Resign"],
    ),
    ("v3electionpb.Election", SERVER_STREAM, &["Observe"]),
    ("grpc.health.v1.Health", UNARY, &["Check", "List"]),
    ("grpc.health.v1.Health", SERVER_STREAM, &["Watch"]),
];

/// Calls of every method.
pub struct GrpcMetrics {
    methods: HashMap<String, MethodMetrics>,
}

/// Calls of one method.
pub struct MethodMetrics {
    /// Whether the method is unary, as etcd's `client_requests` distinguishes.
    pub is_unary: bool,
    /// Messages received.
    pub received: IntCounter,
    /// Messages sent.
    pub sent: IntCounter,
    started: IntCounter,
    handled: Vec<IntCounter>,
    /// Only with `--metrics=extensive`.
    handling: Option<Histogram>,
}

impl GrpcMetrics {
    pub(super) fn declare(declared: &mut Declared, with_durations: bool) -> GrpcMetrics {
        let mut counter = |name, help, labels| {
            declared.add::<IntCounterVec>(Spec {
                name,
                help,
                labels,
                buckets: None,
            })
        };
        let started = counter("grpc_server_started_total", "RPCs started.", METHOD_LABELS);
        let received = counter(
            "grpc_server_msg_received_total",
            "Messages received.",
            METHOD_LABELS,
        );
        let sent = counter(
            "grpc_server_msg_sent_total",
            "Messages sent.",
            METHOD_LABELS,
        );
        let handled_labels = &["grpc_type", "grpc_service", "grpc_method", "grpc_code"];
        let handled = counter(
            "grpc_server_handled_total",
            "RPCs finished, by status.",
            handled_labels,
        );
        let handling = with_durations.then(|| {
            let (name, help) = ("grpc_server_handling_seconds", "Time to handle an RPC.");
            declared.add::<HistogramVec>(Spec {
                name,
                help,
                labels: METHOD_LABELS,
                buckets: None,
            })
        });
        let mut methods = HashMap::new();
        for (service, kind, names) in METHODS {
            for name in *names {
                let labels = [*kind, *service, *name];
                let method = MethodMetrics {
                    is_unary: *kind == UNARY,
                    received: received.with_label_values(&labels),
                    sent: sent.with_label_values(&labels),
                    started: started.with_label_values(&labels),
                    handled: CODES
                        .iter()
                        .map(|code| handled.with_label_values(&[*kind, *service, *name, *code]))
                        .collect(),
                    handling: handling
                        .as_ref()
                        .map(|histogram| histogram.with_label_values(&labels)),
                };
                methods.insert(format!("/{service}/{name}"), method);
            }
        }
        GrpcMetrics { methods }
    }

    #[cfg(test)]
    pub(super) fn len(&self) -> usize {
        self.methods.len()
    }

    /// The method of an HTTP/2 path such as `/etcdserverpb.KV/Range`; `None` for paths that no service has.
    pub fn method(&self, path: &str) -> Option<&MethodMetrics> {
        self.methods.get(path)
    }
}

impl MethodMetrics {
    /// Counts a call that begins.
    pub fn start(&self) {
        self.started.inc();
    }

    /// Counts a call that ended with the gRPC status `code`, a number of [`CODES`]; others count as Unknown.
    pub fn finish(&self, code: i32, took: Duration) {
        const UNKNOWN: usize = 2;
        let code = usize::try_from(code)
            .ok()
            .filter(|code| *code < CODES.len())
            .unwrap_or(UNKNOWN);
        self.handled[code].inc();
        if let Some(handling) = &self.handling {
            handling.observe(took.as_secs_f64());
        }
    }
}
