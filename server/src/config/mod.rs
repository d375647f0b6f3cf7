//! What a member was told: one [`Config`] from flags, environment variables or a file.
//!
//! Every setting is one row of the table in [`flags`]: its flag, its `ETCD_*` variable, its key in a file and its default
//! all come from there. Rules of precedence:
//! - a flag and its variable may not both be given;
//! - a config file replaces all flags and variables;
//! - settings of older releases are mapped to today's where one exists, with a [`Notice`].
//!
//! [`load`] ends with [`validate`](Config::validate), before any file of the member is touched.
//! Source: etcd 3.7 server/etcdmain, server/embed.

mod env;
mod file;
pub mod flags;
mod gates;
mod help;
mod notice;
mod removed;
mod settings;
mod url;
mod validate;
mod value;

use std::collections::BTreeSet;
use std::net::SocketAddr;
use std::path::PathBuf;
use std::str::FromStr;
use std::time::Duration;

use thiserror::Error;

pub(crate) use self::flags::parse_initial_cluster;
pub use self::flags::{FLAGS, Flag};
pub use self::gates::{FeatureGates, Gate, Stage};
pub use self::help::{help_text, version_text};
pub use self::notice::Notice;
pub use self::url::{Scheme, Url};
pub(crate) use self::value::parse_duration;

/// The etcd API level this server answers with, in `Status.version`, `/version` and `--version`.
pub const ETCD_VERSION: &str = "3.7.1";

/// What gRPC framing may add to a request of [`Config::max_request_bytes`].
const GRPC_OVERHEAD_BYTES: u64 = 512 * 1024;

/// The quota when none is given: 2 GiB.
const QUOTA_BYTES_DEFAULT: u64 = 2 << 30;

/// Everything a member can be told. Built by [`load`]; [`Config::default`] is a member without any flag.
///
/// Times are [`Duration`]s, sizes are bytes. Each field names its flag; the variable is `ETCD_` and the flag in capitals.
#[derive(Debug, Clone)]
pub struct Config {
    /// `--name`: this member's name in the member list and the key of its entry in `--initial-cluster`. Default `default`.
    pub name: String,
    /// `--data-dir`: root of everything this member stores. Default `<name>.etcd` in the working directory.
    pub data_dir: PathBuf,
    /// `--wal-dir`: folder of the write-ahead log, for a disk of its own. `None`: below `data_dir`.
    pub wal_dir: Option<PathBuf>,
    /// `--storage-engine`: which engine a new member stores its keys with. `None`: what the data folder uses already,
    /// redb for a new one. An existing folder of another engine is refused.
    pub storage_engine: Option<StorageEngine>,
    /// `--memory-budget`, bytes: shared by engine cache, newest values, write buffer, watch history and requests.
    /// Default 128 MiB. Smaller: more reads from disk and earlier back-pressure; the key index is not part of it.
    pub memory_budget: u64,

    /// `--snapshot-count`: applied entries between Raft snapshots. Default 10,000. Too small spends disk on snapshots,
    /// too large lengthens replay at start.
    pub snapshot_count: u64,
    /// `--snapshot-catchup-entries`: entries kept behind a snapshot for followers that lag. Default 5,000. Too small
    /// sends whole snapshots to members that were away for a moment.
    pub snapshot_catchup_entries: u64,
    /// `--heartbeat-interval`: period of the leader's heartbeats. Default 100 ms. About one round trip between members.
    pub heartbeat_interval: Duration,
    /// `--election-timeout`: silence after which a follower stands for election. Default 1 s; from 5 heartbeats to 50 s.
    /// Too small elects needlessly, too large leaves the cluster without a leader for longer.
    pub election_timeout: Duration,
    /// `--pre-vote`: ask whether an election could be won before starting one. Default true.
    pub pre_vote: bool,
    /// `--strict-reconfig-check`: refuse membership changes that would lose the quorum. Default true.
    pub strict_reconfig_check: bool,
    /// `--max-learners`: learners a cluster may have at the same time. Default 1.
    pub max_learners: u64,

    /// `--quota-backend-bytes` as given: 0 is the default of 2 GiB, negative is no quota. See [`Config::quota_bytes`].
    pub quota_backend_bytes: i64,
    /// `--quota-auto-disarm`: this member clears its NOSPACE alarm when less than nine tenths of the quota are in use.
    /// Default true; false waits for somebody to disarm it, as etcd does. For the alarm of the quota only.
    pub quota_auto_disarm: bool,
    /// `--backend-batch-interval`: longest time before buffered writes are committed to the engine. Default 100 ms (0).
    pub backend_batch_interval: Duration,
    /// `--backend-batch-limit`: buffered operations that force a commit. Default 10,000 (0).
    pub backend_batch_limit: u64,
    /// `--max-txn-ops`: operations in one transaction, and in each nested one. Default 128.
    pub max_txn_ops: u64,
    /// `--max-request-bytes`: largest write. Default 1.5 MiB; over 10 MiB earns a warning. Large ones delay heartbeats.
    pub max_request_bytes: u64,
    /// `--max-concurrent-streams`: HTTP/2 streams on one client connection. Default 4,294,967,295.
    pub max_concurrent_streams: u32,
    /// `--grpc-keepalive-min-time`: clients that ping more often are sent away. Default 5 s.
    pub grpc_keepalive_min_time: Duration,
    /// `--grpc-keepalive-interval`: period of the server's pings. Default 2 h; zero sends none.
    pub grpc_keepalive_interval: Duration,
    /// `--grpc-keepalive-timeout`: wait for a ping's answer before the connection is closed. Default 20 s; zero waits for ever.
    pub grpc_keepalive_timeout: Duration,
    /// `--warning-apply-duration`: an apply that takes longer is logged. Default 100 ms.
    pub warning_apply_duration: Duration,
    /// `--warning-unary-request-duration`: a unary RPC that takes longer is logged. Default 300 ms.
    pub warning_unary_request_duration: Duration,
    /// `--watch-progress-notify-interval`: period of progress notifications to idle watchers that asked for them.
    /// Default 10 min (0). See [`Config::watch_progress_interval`].
    pub watch_progress_notify_interval: Duration,
    /// `--auto-compaction-mode`: how the retention is read.
    pub auto_compaction_mode: AutoCompactionMode,
    /// `--auto-compaction-retention` as given; `0` is off. See [`Config::auto_compaction`].
    pub auto_compaction_retention: String,
    /// `--compaction-batch-limit`: revisions removed in one step of a compaction. Default 1,000 (0).
    pub compaction_batch_limit: u64,
    /// `--compaction-sleep-interval`: pause between the steps of a compaction. Default 10 ms (0).
    pub compaction_sleep_interval: Duration,
    /// `--compact-hash-check-time`: period of the leader's comparison of compaction hashes. Default 1 min.
    pub compact_hash_check_time: Duration,
    /// `--corrupt-check-time`: period of the leader's comparison of the hashes of everything. Default 0, never: it reads
    /// all that every member has stored.
    pub corrupt_check_time: Duration,
    /// `--feature-gates`: switches for behaviour that is not yet the rule.
    pub feature_gates: FeatureGates,

    /// `--listen-client-urls`: where clients are served. Default `http://localhost:2379`.
    pub listen_client_urls: Vec<Url>,
    /// `--listen-client-http-urls`: where HTTP is served; when set, `listen_client_urls` speak gRPC only. Default none.
    pub listen_client_http_urls: Vec<Url>,
    /// `--listen-metrics-urls`: further listeners for `/metrics` and the health endpoints. Default none.
    pub listen_metrics_urls: Vec<Url>,
    /// `--advertise-client-urls`: client URLs in the member list. Must be given with `--listen-client-urls`.
    pub advertise_client_urls: Vec<Url>,
    /// `--listen-peer-urls`: where other members are served. Default `http://localhost:2380`.
    pub listen_peer_urls: Vec<Url>,
    /// `--initial-advertise-peer-urls`: peer URLs that others reach this member at. Default `http://localhost:2380`.
    pub initial_advertise_peer_urls: Vec<Url>,
    /// `--initial-cluster`: names and peer URLs of the members of a new cluster; a name may repeat.
    /// Default: this member alone, at `initial_advertise_peer_urls`.
    pub initial_cluster: Vec<(String, Url)>,
    /// `--initial-cluster-state`: start a new cluster or join one.
    pub initial_cluster_state: ClusterState,
    /// `--initial-cluster-token`: salt of the ids of a new cluster. Default `etcd-cluster`.
    pub initial_cluster_token: String,
    /// `--discovery-*`: the registry in which the first members find each other.
    pub discovery: Discovery,
    /// `--discovery-srv`: domain whose SRV records name the first members. Default none.
    pub discovery_srv: String,
    /// `--discovery-srv-name`: what is added, behind a dash, to the name of the service. Default nothing.
    pub discovery_srv_name: String,
    /// `--discovery-dns-server`: who is asked for them. Default: the servers of `/etc/resolv.conf`.
    pub dns_server: Option<SocketAddr>,
    /// `--force-new-cluster`: start the stored data as a cluster of this member alone. Default false.
    pub force_new_cluster: bool,
    /// `--socket-reuse-port`: SO_REUSEPORT on listeners. Default false.
    pub socket_reuse_port: bool,
    /// `--socket-reuse-address`: SO_REUSEADDR on listeners. Default false.
    pub socket_reuse_address: bool,

    /// TLS of the client listeners: `--cert-file` and its companions.
    pub client_tls: TlsFiles,
    /// TLS between members: `--peer-cert-file` and its companions.
    pub peer_tls: TlsFiles,
    /// `--self-signed-cert-validity`: years that certificates made at start are valid. Default 1.
    pub self_signed_cert_validity_years: u64,
    /// `--tls-min-version`: lowest version offered. Default TLS 1.2.
    pub tls_min_version: TlsVersion,
    /// `--tls-max-version`: highest version offered. `None`: the newest.
    pub tls_max_version: Option<TlsVersion>,
    /// `--cipher-suites`: TLS 1.2 suites by their Go names. Empty: a safe choice.
    pub cipher_suites: Vec<String>,
    /// `--cors`: origins that browsers may send from. Empty or `*`: all.
    pub cors: Vec<String>,
    /// `--host-whitelist`: names accepted in the Host header of plain HTTP. Empty or `*`: all.
    pub host_whitelist: Vec<String>,
    /// `--enable-grpc-gateway`: serve the JSON form of the API under `/v3/`. Default true.
    pub enable_grpc_gateway: bool,

    /// `--auth-token`: `simple`, or `jwt` with its options.
    pub auth_token: String,
    /// `--auth-token-ttl`: life of a simple token. Default 300 s.
    pub auth_token_ttl: Duration,
    /// `--bcrypt-cost`: work spent on each password. Default 10; from 4 to 31.
    pub bcrypt_cost: u64,

    /// `--metrics`: how much `/metrics` tells.
    pub metrics: MetricsLevel,
    /// `--log-level`: least severity that is logged. Default info.
    pub log_level: LogLevel,
    /// `--log-format`: JSON lines or text for people. Default JSON.
    pub log_format: LogFormat,
    /// `--log-outputs`: `default` and `stderr`, `stdout`, or paths of files. Default `default`.
    pub log_outputs: Vec<String>,

    /// Flags that were given, by name. Defaults of some fields depend on it.
    pub given: BTreeSet<&'static str>,
}

/// Where the first members of a cluster find each other, if not by `--initial-cluster`.
#[derive(Clone, Default, PartialEq, Eq)]
pub struct Discovery {
    /// `--discovery-endpoints`: endpoints of the registry; none: it is not used.
    pub endpoints: Vec<String>,
    /// `--discovery-token`: names the cluster there, and salts its ids.
    pub token: String,
    /// `--discovery-dial-timeout`, default 2 s.
    pub dial_timeout: Duration,
    /// `--discovery-request-timeout`, default 5 s.
    pub request_timeout: Duration,
    /// `--discovery-keepalive-time`, default 2 s.
    pub keepalive_time: Duration,
    /// `--discovery-keepalive-timeout`, default 6 s.
    pub keepalive_timeout: Duration,
    /// `--discovery-insecure-transport`, default true: plain text to endpoints without a scheme.
    pub insecure_transport: bool,
    /// `--discovery-insecure-skip-tls-verify`: the registry may be anyone.
    pub insecure_skip_tls_verify: bool,
    /// `--discovery-cert`: certificate of this member there.
    pub cert: Option<PathBuf>,
    /// `--discovery-key`: its key.
    pub key: Option<PathBuf>,
    /// `--discovery-cacert`: authorities of the registry's certificate. Default: the system's.
    pub cacert: Option<PathBuf>,
    /// `--discovery-user`: user, or user:password.
    pub user: String,
    /// `--discovery-password`.
    pub password: String,
}

impl std::fmt::Debug for Discovery {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        // Never a token, user or password.
        f.debug_struct("Discovery")
            .field("endpoints", &self.endpoints)
            .finish_non_exhaustive()
    }
}

/// Certificate files of one side, all optional. Relative paths are relative to the working directory.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct TlsFiles {
    /// Certificate chain that listeners present.
    pub cert_file: Option<PathBuf>,
    /// Private key of `cert_file`.
    pub key_file: Option<PathBuf>,
    /// Certificate that is presented when this member connects. `None`: `cert_file`.
    pub client_cert_file: Option<PathBuf>,
    /// Private key of `client_cert_file`.
    pub client_key_file: Option<PathBuf>,
    /// Whether those who connect must present a certificate signed by `trusted_ca_file`.
    pub client_cert_auth: bool,
    /// Authorities that signed the certificates of those who connect.
    pub trusted_ca_file: Option<PathBuf>,
    /// Revoked certificates.
    pub crl_file: Option<PathBuf>,
    /// Common names of which a certificate must carry one. Empty: any.
    pub allowed_common_names: Vec<String>,
    /// Host names of which a certificate must carry one. Empty: any.
    pub allowed_hostnames: Vec<String>,
    /// Serve with a certificate made at start.
    pub auto_tls: bool,
}

impl TlsFiles {
    /// Whether connections must present a certificate: asked for, or implied by naming an authority (etcd's rule).
    pub fn verifies_clients(&self) -> bool {
        self.client_cert_auth || self.trusted_ca_file.is_some()
    }
}

/// Declares an enumeration whose variants are the words of a flag.
macro_rules! choice {
    ($(#[$meta:meta])* $name:ident { $($(#[$variant_meta:meta])* $variant:ident = $word:literal),+ $(,)? }) => {
        $(#[$meta])*
        #[derive(Debug, Clone, Copy, PartialEq, Eq)]
        pub enum $name { $($(#[$variant_meta])* $variant),+ }

        impl $name {
            /// The words the flag accepts.
            pub const WORDS: &'static [&'static str] = &[$($word),+];
        }

        impl FromStr for $name {
            type Err = String;

            fn from_str(text: &str) -> Result<Self, String> {
                match text {
                    $($word => Ok($name::$variant),)+
                    _ => Err(format!("expected one of {}", Self::WORDS.join(", "))),
                }
            }
        }
    };
}

choice! {
    /// Whether this member starts a cluster or joins one.
    ClusterState {
        /// The members of `initial_cluster` start together.
        New = "new",
        /// The cluster runs already and has added this member.
        Existing = "existing",
    }
}
choice! {
    /// What stores the keys.
    StorageEngine {
        /// redb: one file, copy-on-write trees.
        Redb = "redb",
        /// sled: a log-structured tree.
        Sled = "sled",
    }
}
choice! {
    /// How `auto_compaction_retention` is read.
    AutoCompactionMode {
        /// A time; a bare number is hours.
        Periodic = "periodic",
        /// A number of revisions.
        Revision = "revision",
    }
}
choice! {
    /// How much `/metrics` tells.
    MetricsLevel {
        /// Everything except the histogram of RPC durations.
        Basic = "basic",
        /// With the histogram of RPC durations.
        Extensive = "extensive",
    }
}
choice! {
    /// Least severity that is logged.
    LogLevel {
        /// Everything.
        Debug = "debug",
        /// Changes of state, and worse.
        Info = "info",
        /// What will get worse, and worse.
        Warn = "warn",
        /// What a person must act on.
        Error = "error",
        /// As `error`: nothing here is more severe.
        Panic = "panic",
        /// As `error`: nothing here is more severe.
        Fatal = "fatal",
    }
}
choice! {
    /// Shape of a log line.
    LogFormat {
        /// One JSON object.
        Json = "json",
        /// Text for people.
        Console = "console",
    }
}
choice! {
    /// A version of TLS. Older ones are not offered.
    TlsVersion {
        /// TLS 1.2.
        Tls12 = "TLS1.2",
        /// TLS 1.3.
        Tls13 = "TLS1.3",
    }
}

/// Automatic compaction, when it is on.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum AutoCompaction {
    /// Revisions older than this are compacted.
    Periodic(Duration),
    /// All but this many revisions are compacted.
    Revision(i64),
}

impl Default for Config {
    fn default() -> Self {
        let mut config = flags::defaults();
        config.fill_dependent_defaults();
        config
    }
}

impl Config {
    /// Folder of the write-ahead log.
    pub fn wal_dir(&self) -> PathBuf {
        self.wal_dir
            .clone()
            .unwrap_or_else(|| self.member_dir().join("wal"))
    }

    /// Folder of everything but the lock: `<data-dir>/member`.
    pub fn member_dir(&self) -> PathBuf {
        self.data_dir.join("member")
    }

    /// The space quota in bytes, or `None` when it is switched off.
    pub fn quota_bytes(&self) -> Option<u64> {
        match u64::try_from(self.quota_backend_bytes) {
            Ok(0) => Some(QUOTA_BYTES_DEFAULT),
            Ok(bytes) => Some(bytes),
            Err(_) => None,
        }
    }

    /// Largest gRPC message that is received: [`Config::max_request_bytes`] and 512 KiB for what surrounds it.
    pub fn grpc_receive_bytes_max(&self) -> u64 {
        self.max_request_bytes.saturating_add(GRPC_OVERHEAD_BYTES)
    }

    /// How long a write or a linearizable read may wait: 5 s and two election timeouts.
    pub fn request_timeout(&self) -> Duration {
        Duration::from_secs(5) + 2 * self.election_timeout
    }

    /// Period of progress notifications: as given, or 10 minutes.
    pub fn watch_progress_interval(&self) -> Duration {
        match self.watch_progress_notify_interval {
            Duration::ZERO => Duration::from_secs(600),
            interval => interval,
        }
    }

    /// Automatic compaction, or `None` when it is off.
    ///
    /// Errors say why the retention cannot be read; after [`load`] there is none.
    pub fn auto_compaction(&self) -> Result<Option<AutoCompaction>, Error> {
        let retention = self.auto_compaction_retention.as_str();
        let refused = |why: &str| Error::invalid("auto-compaction-retention", retention, why);
        match self.auto_compaction_mode {
            AutoCompactionMode::Revision => match value::parse_i64(retention) {
                Ok(0) => Ok(None),
                Ok(revisions) if revisions > 0 => Ok(Some(AutoCompaction::Revision(revisions))),
                _ => Err(refused(
                    "with --auto-compaction-mode=revision this is a number of revisions",
                )),
            },
            AutoCompactionMode::Periodic => {
                let period = match value::parse_u64(retention) {
                    Ok(hours) => hours.checked_mul(3_600).map(Duration::from_secs),
                    Err(_) => value::parse_duration(retention).ok(),
                };
                match period {
                    Some(Duration::ZERO) => Ok(None),
                    Some(period) => Ok(Some(AutoCompaction::Periodic(period))),
                    None => Err(refused(
                        "expected hours as a number, or a duration such as 30m",
                    )),
                }
            }
        }
    }

    /// Whether the flag was given, by whatever source, rather than left at its default.
    pub fn is_given(&self, flag: &str) -> bool {
        self.given.contains(flag)
    }

    /// Sets what follows from other settings and was not given itself.
    fn fill_dependent_defaults(&mut self) {
        if self.data_dir.as_os_str().is_empty() {
            self.data_dir = PathBuf::from(format!("{}.etcd", self.name));
        }
        if !self.is_given("initial-cluster") {
            let urls = self.initial_advertise_peer_urls.iter();
            self.initial_cluster = urls.map(|url| (self.name.clone(), url.clone())).collect();
        }
    }
}

/// What the command line asks for.
#[derive(Debug)]
pub enum Invocation {
    /// Start a member, after logging the notices.
    Run {
        /// The validated settings.
        config: Box<Config>,
        /// What the operator should know about them, to be logged once logging works.
        notices: Vec<Notice>,
    },
    /// Print [`help_text`] on stdout and exit with 0.
    Help,
    /// Print [`version_text`] on stdout and exit with 0.
    Version,
}

/// Why the settings cannot be used. Texts name the flag and the way out.
#[derive(Debug, Error)]
pub enum Error {
    /// A flag that does not exist.
    #[error("flag provided but not defined: -{flag}{}", hint(suggestion))]
    UnknownFlag {
        /// The flag without dashes.
        flag: String,
        /// The known flag with the nearest name.
        suggestion: Option<&'static str>,
    },
    /// A flag without the value it needs.
    #[error("flag needs an argument: -{flag}")]
    MissingValue {
        /// The flag without dashes.
        flag: String,
    },
    /// A flag of an older release that has no exact successor.
    #[error("flag --{flag} was removed in etcd {removed_in}; {advice}")]
    RemovedFlag {
        /// The flag without dashes.
        flag: &'static str,
        /// The first release without it.
        removed_in: &'static str,
        /// What to write in its place.
        advice: String,
    },
    /// An argument that is not a flag.
    #[error(
        "{argument:?} is not a valid flag: kvd takes no arguments besides flags (write booleans as --flag=false)"
    )]
    Positional {
        /// The argument.
        argument: String,
    },
    /// An argument that is not UTF-8.
    #[error("argument {argument:?} is not valid UTF-8")]
    NotUtf8 {
        /// The argument, with what is wrong replaced.
        argument: String,
    },
    /// A value that its flag cannot take.
    #[error("invalid value {value:?} for flag --{flag}: {why}")]
    Invalid {
        /// The flag without dashes.
        flag: String,
        /// The value as given.
        value: String,
        /// What was expected.
        why: String,
    },
    /// A setting given twice.
    #[error(
        "conflicting environment variable {variable:?} is shadowed by corresponding command-line flag \
         (either unset environment variable or disable flag)"
    )]
    Shadowed {
        /// The variable.
        variable: String,
    },
    /// Settings that contradict each other.
    #[error("{0}")]
    Conflict(String),
    /// A config file that cannot be read.
    #[error("cannot read the config file {}: {source}; check --config-file", path.display())]
    FileUnreadable {
        /// The file.
        path: PathBuf,
        /// Why.
        source: std::io::Error,
    },
    /// A config file that is not YAML.
    #[error("the config file {} is not valid YAML: {why}", path.display())]
    FileMalformed {
        /// The file.
        path: PathBuf,
        /// Where and why.
        why: String,
    },
    /// A key of the config file with a value it cannot take.
    #[error("the config file {}: key {key}: {why}", path.display())]
    FileValue {
        /// The file.
        path: PathBuf,
        /// The key, nested names joined by dots.
        key: String,
        /// What was expected.
        why: String,
    },
}

impl Error {
    fn invalid(flag: &str, value: &str, why: impl Into<String>) -> Error {
        Error::Invalid {
            flag: flag.to_owned(),
            value: value.to_owned(),
            why: why.into(),
        }
    }

    /// The process's exit code: 2 when the command line itself is wrong (Go's flag package), else 1.
    pub fn exit_code(&self) -> u8 {
        match self {
            Error::UnknownFlag { .. }
            | Error::MissingValue { .. }
            | Error::RemovedFlag { .. }
            | Error::Invalid { .. } => 2,
            _ => 1,
        }
    }
}

fn hint(suggestion: &Option<&'static str>) -> String {
    match suggestion {
        Some(flag) => format!("; did you mean --{flag}? (kvd --help lists all flags)"),
        None => " (kvd --help lists all flags)".to_owned(),
    }
}

/// Reads flags (without the program's name) and environment variables, or the config file they name.
pub fn load(
    args: impl IntoIterator<Item = std::ffi::OsString>,
    variables: impl IntoIterator<Item = (std::ffi::OsString, std::ffi::OsString)>,
) -> Result<Invocation, Error> {
    let mut settings = settings::Settings::new();
    match settings.read_args(args)? {
        settings::Request::Help => return Ok(Invocation::Help),
        settings::Request::Version => return Ok(Invocation::Version),
        settings::Request::Run => {}
    }
    let variables: Vec<_> = variables.into_iter().collect();
    let file = settings
        .config_file()
        .or_else(|| env::config_file(&variables));
    match &file {
        Some(path) => settings = file::read(path)?,
        None => env::read(&mut settings, variables)?,
    }
    let (mut config, mut notices) = settings.finish()?;
    // Clients of a member that listens elsewhere would be sent to localhost; from a file etcd lets that pass.
    if file.is_none()
        && config.is_given("listen-client-urls")
        && !config.is_given("advertise-client-urls")
    {
        config.advertise_client_urls.clear();
    }
    config.fill_dependent_defaults();
    config.validate(&mut notices)?;
    Ok(Invocation::Run {
        config: Box::new(config),
        notices,
    })
}

#[cfg(test)]
mod tests;
