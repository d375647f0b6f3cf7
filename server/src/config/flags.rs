//! The table of settings: one row for each flag.
//!
//! A row names the flag, the field it sets, its default as text, its key in a config file, and whether it is in force.
//! Everything else about a setting is derived: the `ETCD_*` variable, the help, the default [`Config`].
//! Source: etcd 3.7 server/etcdmain, server/embed; `tests/fixtures/etcd-flags.json` holds its names, types and defaults.

use std::collections::BTreeSet;
use std::path::PathBuf;
use std::time::Duration;

use super::url::{Url, parse_urls};
use super::{
    AutoCompactionMode, ClusterState, Config, FeatureGates, LogFormat, LogLevel, MetricsLevel,
    StorageEngine, TlsFiles, TlsVersion, value,
};

/// One setting.
pub struct Flag {
    /// The flag without dashes.
    pub name: &'static str,
    /// Its default, in the form a user would write.
    pub default: &'static str,
    /// Its key in a config file, nested names joined by dots. `None`: not readable from a file.
    pub yaml: Option<&'static str>,
    /// Where the help lists it.
    pub section: Section,
    /// Whether it changes anything.
    pub status: Status,
    /// One sentence for the help.
    pub help: &'static str,
    target: Target,
}

/// Groups of the help, in its order.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
#[allow(missing_docs)]
pub enum Section {
    Member,
    Clustering,
    Security,
    Auth,
    Compaction,
    Features,
    Logging,
    Metrics,
    Tracing,
    Unsafe,
    Misc,
}

/// Whether a setting changes anything.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Status {
    /// In force.
    Used,
    /// Read and checked, with a warning that says why it has no effect.
    Accepted(&'static str),
    /// Read and checked for compatibility; the next release of etcd does not have it.
    Deprecated,
}

/// The field a setting is stored in, which also decides how its text is read.
enum Target {
    Bool(fn(&mut Config) -> &mut bool),
    Uint(fn(&mut Config) -> &mut u64),
    Uint32(fn(&mut Config) -> &mut u32),
    Int(fn(&mut Config) -> &mut i64),
    Size(fn(&mut Config) -> &mut u64),
    Millis(fn(&mut Config) -> &mut Duration),
    Seconds(fn(&mut Config) -> &mut Duration),
    Duration(fn(&mut Config) -> &mut Duration),
    Text(fn(&mut Config) -> &mut String),
    Path(fn(&mut Config) -> &mut PathBuf),
    OptionalPath(fn(&mut Config) -> &mut Option<PathBuf>),
    Urls(fn(&mut Config) -> &mut Vec<Url>),
    List(fn(&mut Config) -> &mut Vec<String>),
    /// One of several words, or a form of its own.
    Parsed(&'static str, fn(&mut Config, &str) -> Result<(), String>),
    /// Checked, and stored nowhere.
    Checked(Form),
}

/// How the text of a setting without a field is checked.
#[derive(Clone, Copy)]
enum Form {
    Bool,
    Uint,
    Int,
    Duration,
    Text,
    Path,
    List,
    Words(&'static [&'static str]),
}

impl Flag {
    /// The environment variable with the same meaning.
    pub fn variable(&self) -> String {
        variable(self.name)
    }

    /// Whether a bare `--flag` means true.
    pub fn is_bool(&self) -> bool {
        matches!(self.target, Target::Bool(_) | Target::Checked(Form::Bool))
    }

    /// Whether numbers in a config file are nanoseconds.
    pub(super) fn is_duration(&self) -> bool {
        matches!(
            self.target,
            Target::Duration(_) | Target::Checked(Form::Duration)
        )
    }

    /// The kind of value, as the help shows it.
    pub fn kind(&self) -> &'static str {
        match self.target {
            Target::Bool(_) | Target::Checked(Form::Bool) => "bool",
            Target::Uint(_) | Target::Uint32(_) | Target::Checked(Form::Uint) => "uint",
            Target::Int(_) | Target::Checked(Form::Int) => "int",
            Target::Size(_) => "bytes",
            Target::Millis(_) => "ms",
            Target::Seconds(_) => "s",
            Target::Duration(_) | Target::Checked(Form::Duration) => "duration",
            Target::Text(_) | Target::Checked(Form::Text) => "string",
            Target::Path(_) | Target::OptionalPath(_) | Target::Checked(Form::Path) => "path",
            Target::Urls(_) => "urls",
            Target::List(_) | Target::Checked(Form::List) => "list",
            Target::Checked(Form::Words(_)) => "choice",
            Target::Parsed(kind, _) => kind,
        }
    }

    /// Checks `text` without storing it. The error says what was expected.
    pub(super) fn check(&self, text: &str) -> Result<(), String> {
        self.set(&mut defaults(), text)
    }

    /// Reads `text` into the setting's field. The error says what was expected.
    pub(super) fn set(&self, config: &mut Config, text: &str) -> Result<(), String> {
        match self.target {
            Target::Bool(field) => *field(config) = value::parse_bool(text)?,
            Target::Uint(field) => *field(config) = value::parse_u64(text)?,
            Target::Uint32(field) => {
                let number = value::parse_u64(text)?;
                *field(config) = u32::try_from(number)
                    .map_err(|_| format!("the largest value is {}", u32::MAX))?;
            }
            Target::Int(field) => *field(config) = value::parse_i64(text)?,
            Target::Size(field) => *field(config) = value::parse_size(text)?,
            Target::Millis(field) => {
                *field(config) = Duration::from_millis(value::parse_u64(text)?)
            }
            Target::Seconds(field) => *field(config) = Duration::from_secs(value::parse_u64(text)?),
            Target::Duration(field) => *field(config) = value::parse_duration(text)?,
            Target::Text(field) => *field(config) = text.to_owned(),
            Target::Path(field) => *field(config) = PathBuf::from(text),
            Target::OptionalPath(field) => {
                *field(config) = (!text.is_empty()).then(|| PathBuf::from(text))
            }
            Target::Urls(field) => *field(config) = parse_urls(text)?,
            Target::List(field) => *field(config) = split_list(text),
            Target::Parsed(_, set) => set(config, text)?,
            Target::Checked(form) => form.check(text)?,
        }
        Ok(())
    }

    const fn new(
        name: &'static str,
        default: &'static str,
        target: Target,
        help: &'static str,
    ) -> Flag {
        let yaml = Some(name);
        Flag {
            name,
            default,
            yaml,
            section: Section::Member,
            status: Status::Used,
            help,
            target,
        }
    }

    const fn section(mut self, section: Section) -> Flag {
        self.section = section;
        self
    }

    const fn yaml(mut self, key: &'static str) -> Flag {
        self.yaml = Some(key);
        self
    }

    const fn not_in_file(mut self) -> Flag {
        self.yaml = None;
        self
    }

    const fn accepted(mut self, why: &'static str) -> Flag {
        self.status = Status::Accepted(why);
        self
    }

    const fn deprecated(mut self) -> Flag {
        self.status = Status::Deprecated;
        self
    }
}

impl Form {
    fn check(self, text: &str) -> Result<(), String> {
        match self {
            Form::Bool => value::parse_bool(text).map(drop),
            Form::Uint => value::parse_u64(text).map(drop),
            Form::Int => value::parse_i64(text).map(drop),
            Form::Duration => value::parse_duration(text).map(drop),
            Form::Text | Form::Path | Form::List => Ok(()),
            Form::Words(words) if words.contains(&text) => Ok(()),
            Form::Words(words) => Err(format!("expected one of {}", words.join(", "))),
        }
    }
}

/// Splits a comma-separated list; an empty text is the empty list.
fn split_list(text: &str) -> Vec<String> {
    text.split(',')
        .map(str::trim)
        .filter(|item| !item.is_empty())
        .map(str::to_owned)
        .collect()
}

/// Reads `name=url,name=url`.
fn parse_initial_cluster(text: &str) -> Result<Vec<(String, Url)>, String> {
    let mut members = Vec::new();
    for part in split_list(text) {
        let Some((name, url)) = part.split_once('=') else {
            return Err(format!("{part:?} must have the form name=peer-url"));
        };
        members.push((name.to_owned(), url.parse()?));
    }
    Ok(members)
}

const OWN_DEADLINES: &str = "deadlines between members follow --election-timeout";
const NO_ADDRESS_CHECK: &str = "addresses in the certificates of those who connect are not checked";
const DOWNGRADES_ARE_WATCHED: &str = "the leader looks at each member's version every 4 s";
const NO_DISCOVERY: &str =
    "discovery is not available in this version; list the members with --initial-cluster";
const NO_TRACING: &str = "spans are not exported in this version";
const OTHER_ENGINE: &str = "it tunes bbolt, which is not used here";

/// Every setting, in the order of the help.
pub static FLAGS: &[Flag] = &[
    // Member.
    Flag::new("name", "default", Target::Text(|c| &mut c.name), "Name of this member."),
    Flag::new("data-dir", "", Target::Path(|c| &mut c.data_dir), "Folder of this member's data. Empty: <name>.etcd."),
    Flag::new("wal-dir", "", Target::OptionalPath(|c| &mut c.wal_dir), "Folder of the write-ahead log. Empty: below data-dir."),
    Flag::new(
        "storage-engine",
        "",
        Target::Parsed("choice", |c, text| {
            c.storage_engine = if text.is_empty() { None } else { Some(text.parse::<StorageEngine>()?) };
            Ok(())
        }),
        "Engine of a new member: redb or sled. Empty: what data-dir uses, else redb. (kvd)",
    ),
    Flag::new("memory-budget", "128MiB", Target::Size(|c| &mut c.memory_budget), "Memory for caches, buffers and watch history. (kvd)"),
    Flag::new("snapshot-count", "10000", Target::Uint(|c| &mut c.snapshot_count), "Applied entries between Raft snapshots."),
    Flag::new("heartbeat-interval", "100", Target::Millis(|c| &mut c.heartbeat_interval), "Milliseconds between heartbeats of the leader."),
    Flag::new("election-timeout", "1000", Target::Millis(|c| &mut c.election_timeout), "Milliseconds without a leader before an election."),
    Flag::new("initial-election-tick-advance", "true", Target::Checked(Form::Bool), "Hold the first election sooner.")
        .accepted("a lone member elects itself at once"),
    Flag::new("listen-peer-urls", "http://localhost:2380", Target::Urls(|c| &mut c.listen_peer_urls), "Where other members are served."),
    Flag::new("listen-client-urls", "http://localhost:2379", Target::Urls(|c| &mut c.listen_client_urls), "Where clients are served: gRPC and HTTP."),
    Flag::new("listen-client-http-urls", "", Target::Urls(|c| &mut c.listen_client_http_urls), "Where HTTP is served; listen-client-urls then speak gRPC only."),
    Flag::new("max-snapshots", "5", Target::Checked(Form::Uint), "Snapshot files kept.").deprecated(),
    Flag::new("max-wals", "5", Target::Checked(Form::Uint), "Log files kept.").accepted("log files are removed as soon as no recovery needs them"),
    Flag::new("memory-mlock", "false", Target::Checked(Form::Bool), "Keep the backend's memory map in memory.").accepted("the backend is not memory-mapped"),
    Flag::new("quota-backend-bytes", "0", Target::Int(|c| &mut c.quota_backend_bytes), "Space quota in bytes. 0: 2 GiB; negative: none."),
    Flag::new("quota-auto-disarm", "true", Target::Bool(|c| &mut c.quota_auto_disarm), "Clear the quota's NOSPACE alarm below 90 % of it. (kvd)"),
    Flag::new("backend-bbolt-freelist-type", "", Target::Checked(Form::Words(&["", "array", "map"])), "Free list of bbolt.").accepted(OTHER_ENGINE),
    Flag::new("backend-batch-interval", "0s", Target::Duration(|c| &mut c.backend_batch_interval), "Longest time before a commit of the engine. 0: 100ms."),
    Flag::new("backend-batch-limit", "0", Target::Uint(|c| &mut c.backend_batch_limit), "Operations before a commit of the engine. 0: 10000."),
    Flag::new("max-txn-ops", "128", Target::Uint(|c| &mut c.max_txn_ops), "Operations in one transaction."),
    Flag::new("max-request-bytes", "1572864", Target::Uint(|c| &mut c.max_request_bytes), "Largest write in bytes."),
    Flag::new("max-concurrent-streams", "4294967295", Target::Uint32(|c| &mut c.max_concurrent_streams), "HTTP/2 streams on one client connection."),
    Flag::new("grpc-keepalive-min-time", "5s", Target::Duration(|c| &mut c.grpc_keepalive_min_time), "Least time between pings of a client.").accepted("pings are not limited"),
    Flag::new("grpc-keepalive-interval", "2h", Target::Duration(|c| &mut c.grpc_keepalive_interval), "Time between pings of the server. 0: none."),
    Flag::new("grpc-keepalive-timeout", "20s", Target::Duration(|c| &mut c.grpc_keepalive_timeout), "Wait for the answer to a ping. 0: for ever."),
    Flag::new("socket-reuse-port", "false", Target::Bool(|c| &mut c.socket_reuse_port), "Set SO_REUSEPORT on listeners.").yaml("socket-options.reuse-port").accepted("listeners are not shared"),
    Flag::new("socket-reuse-address", "false", Target::Bool(|c| &mut c.socket_reuse_address), "Set SO_REUSEADDR on listeners.").yaml("socket-options.reuse-address").accepted("it is always set"),
    Flag::new("enable-grpc-gateway", "true", Target::Bool(|c| &mut c.enable_grpc_gateway), "Serve JSON under /v3/."),
    Flag::new("raft-read-timeout", "5s", Target::Checked(Form::Duration), "Read deadline of peer connections.").not_in_file().accepted(OWN_DEADLINES),
    Flag::new("raft-write-timeout", "5s", Target::Checked(Form::Duration), "Write deadline of peer connections.").not_in_file().accepted(OWN_DEADLINES),
    // Clustering.
    Flag::new("initial-advertise-peer-urls", "http://localhost:2380", Target::Urls(|c| &mut c.initial_advertise_peer_urls), "Peer URLs that other members use.").section(Section::Clustering),
    Flag::new(
        "initial-cluster",
        "default=http://localhost:2380",
        Target::Parsed("name=url list", |c, text| {
            c.initial_cluster = parse_initial_cluster(text)?;
            Ok(())
        }),
        "Members of a new cluster. Default: this member alone.",
    )
    .section(Section::Clustering),
    Flag::new(
        "initial-cluster-state",
        "new",
        Target::Parsed("choice", |c, text| {
            c.initial_cluster_state = text.parse::<ClusterState>()?;
            Ok(())
        }),
        "Start a new cluster or join one: new, existing.",
    )
    .section(Section::Clustering),
    Flag::new("initial-cluster-token", "etcd-cluster", Target::Text(|c| &mut c.initial_cluster_token), "Salt of the ids of a new cluster.").section(Section::Clustering),
    Flag::new("advertise-client-urls", "http://localhost:2379", Target::Urls(|c| &mut c.advertise_client_urls), "Client URLs in the member list.").section(Section::Clustering),
    Flag::new("discovery-token", "", Target::Checked(Form::Text), "Token of the cluster to discover.").yaml("discovery-config.token").section(Section::Clustering).accepted(NO_DISCOVERY),
    Flag::new("discovery-endpoints", "", Target::Checked(Form::List), "Endpoints of the discovery service.").yaml("discovery-config.client.endpoints").section(Section::Clustering).accepted(NO_DISCOVERY),
    Flag::new("discovery-dial-timeout", "2s", Target::Checked(Form::Duration), "Discovery: dial timeout.").yaml("discovery-config.client.dial-timeout").section(Section::Clustering).accepted(NO_DISCOVERY),
    Flag::new("discovery-request-timeout", "5s", Target::Checked(Form::Duration), "Discovery: request timeout.").yaml("discovery-config.client.request-timeout").section(Section::Clustering).accepted(NO_DISCOVERY),
    Flag::new("discovery-keepalive-time", "2s", Target::Checked(Form::Duration), "Discovery: time between pings.").yaml("discovery-config.client.keepalive-time").section(Section::Clustering).accepted(NO_DISCOVERY),
    Flag::new("discovery-keepalive-timeout", "6s", Target::Checked(Form::Duration), "Discovery: wait for a ping's answer.").yaml("discovery-config.client.keepalive-timeout").section(Section::Clustering).accepted(NO_DISCOVERY),
    Flag::new("discovery-insecure-transport", "true", Target::Checked(Form::Bool), "Discovery: no TLS.").yaml("discovery-config.client.secure.insecure-transport").section(Section::Clustering).accepted(NO_DISCOVERY),
    Flag::new("discovery-insecure-skip-tls-verify", "false", Target::Checked(Form::Bool), "Discovery: trust any certificate.").yaml("discovery-config.client.secure.insecure-skip-tls-verify").section(Section::Clustering).accepted(NO_DISCOVERY),
    Flag::new("discovery-cert", "", Target::Checked(Form::Path), "Discovery: client certificate.").yaml("discovery-config.client.secure.cert").section(Section::Clustering).accepted(NO_DISCOVERY),
    Flag::new("discovery-key", "", Target::Checked(Form::Path), "Discovery: client key.").yaml("discovery-config.client.secure.key").section(Section::Clustering).accepted(NO_DISCOVERY),
    Flag::new("discovery-cacert", "", Target::Checked(Form::Path), "Discovery: authorities.").yaml("discovery-config.client.secure.cacert").section(Section::Clustering).accepted(NO_DISCOVERY),
    Flag::new("discovery-user", "", Target::Checked(Form::Text), "Discovery: user, or user:password.").yaml("discovery-config.client.auth.username").section(Section::Clustering).accepted(NO_DISCOVERY),
    Flag::new("discovery-password", "", Target::Checked(Form::Text), "Discovery: password.").yaml("discovery-config.client.auth.password").section(Section::Clustering).accepted(NO_DISCOVERY),
    Flag::new("discovery-fallback", "exit", Target::Checked(Form::Words(&["exit", "proxy"])), "What to do when discovery fails.").not_in_file().section(Section::Clustering).accepted(NO_DISCOVERY),
    Flag::new("discovery-srv", "", Target::Checked(Form::Text), "DNS domain that lists the members.").section(Section::Clustering).accepted(NO_DISCOVERY),
    Flag::new("discovery-srv-name", "", Target::Checked(Form::Text), "Suffix of the DNS service name.").section(Section::Clustering).accepted(NO_DISCOVERY),
    Flag::new("strict-reconfig-check", "true", Target::Bool(|c| &mut c.strict_reconfig_check), "Refuse membership changes that lose the quorum.").section(Section::Clustering),
    Flag::new("pre-vote", "true", Target::Bool(|c| &mut c.pre_vote), "Ask before an election whether it could be won.").section(Section::Clustering).accepted("a single voter holds no elections"),
    Flag::new("v2-deprecation", "write-only", Target::Checked(Form::Words(&["write-only", "write-only-skip-check", "write-only-drop-data", "gone"])), "Phase of the end of the v2 store.").section(Section::Clustering).deprecated(),
    // Security.
    Flag::new("cert-file", "", Target::OptionalPath(|c| &mut c.client_tls.cert_file), "Certificate of the client listeners.").yaml("client-transport-security.cert-file").section(Section::Security),
    Flag::new("key-file", "", Target::OptionalPath(|c| &mut c.client_tls.key_file), "Key of the client listeners.").yaml("client-transport-security.key-file").section(Section::Security),
    Flag::new("client-cert-auth", "false", Target::Bool(|c| &mut c.client_tls.client_cert_auth), "Clients must present a certificate.").yaml("client-transport-security.client-cert-auth").section(Section::Security),
    Flag::new("client-cert-file", "", Target::OptionalPath(|c| &mut c.client_tls.client_cert_file), "Certificate for connections to this server itself.").yaml("client-transport-security.client-cert-file").section(Section::Security).accepted("the JSON gateway calls the server without a connection"),
    Flag::new("client-key-file", "", Target::OptionalPath(|c| &mut c.client_tls.client_key_file), "Key of client-cert-file.").yaml("client-transport-security.client-key-file").section(Section::Security).accepted("the JSON gateway calls the server without a connection"),
    Flag::new("client-crl-file", "", Target::OptionalPath(|c| &mut c.client_tls.crl_file), "Revoked client certificates.").not_in_file().section(Section::Security),
    Flag::new("client-cert-allowed-hostname", "", Target::List(|c| &mut c.client_tls.allowed_hostnames), "Host names of which a client certificate must carry one.").yaml("client-transport-security.allowed-hostname").section(Section::Security),
    Flag::new("trusted-ca-file", "", Target::OptionalPath(|c| &mut c.client_tls.trusted_ca_file), "Authorities of client certificates.").yaml("client-transport-security.trusted-ca-file").section(Section::Security),
    Flag::new("auto-tls", "false", Target::Bool(|c| &mut c.client_tls.auto_tls), "Serve clients with a certificate made at start.").yaml("client-transport-security.auto-tls").section(Section::Security),
    Flag::new("peer-cert-file", "", Target::OptionalPath(|c| &mut c.peer_tls.cert_file), "Certificate of the peer listeners.").yaml("peer-transport-security.cert-file").section(Section::Security),
    Flag::new("peer-key-file", "", Target::OptionalPath(|c| &mut c.peer_tls.key_file), "Key of the peer listeners.").yaml("peer-transport-security.key-file").section(Section::Security),
    Flag::new("peer-client-cert-auth", "false", Target::Bool(|c| &mut c.peer_tls.client_cert_auth), "Peers must present a certificate.").yaml("peer-transport-security.client-cert-auth").section(Section::Security),
    Flag::new("peer-client-cert-file", "", Target::OptionalPath(|c| &mut c.peer_tls.client_cert_file), "Certificate for connections to peers.").yaml("peer-transport-security.client-cert-file").section(Section::Security),
    Flag::new("peer-client-key-file", "", Target::OptionalPath(|c| &mut c.peer_tls.client_key_file), "Key of peer-client-cert-file.").yaml("peer-transport-security.client-key-file").section(Section::Security),
    Flag::new("peer-trusted-ca-file", "", Target::OptionalPath(|c| &mut c.peer_tls.trusted_ca_file), "Authorities of peer certificates.").yaml("peer-transport-security.trusted-ca-file").section(Section::Security),
    Flag::new("peer-auto-tls", "false", Target::Bool(|c| &mut c.peer_tls.auto_tls), "Serve peers with a certificate made at start.").yaml("peer-transport-security.auto-tls").section(Section::Security),
    Flag::new("peer-crl-file", "", Target::OptionalPath(|c| &mut c.peer_tls.crl_file), "Revoked peer certificates.").not_in_file().section(Section::Security),
    Flag::new("peer-cert-allowed-cn", "", Target::List(|c| &mut c.peer_tls.allowed_common_names), "Common names of which a peer certificate must carry one.").yaml("peer-transport-security.allowed-cn").section(Section::Security),
    Flag::new("peer-cert-allowed-hostname", "", Target::List(|c| &mut c.peer_tls.allowed_hostnames), "Host names of which a peer certificate must carry one.").yaml("peer-transport-security.allowed-hostname").section(Section::Security),
    Flag::new("peer-skip-client-san-verification", "false", Target::Checked(Form::Bool), "Do not check the addresses in peer certificates.").yaml("peer-transport-security.skip-client-san-verification").section(Section::Security).accepted(NO_ADDRESS_CHECK),
    Flag::new("self-signed-cert-validity", "1", Target::Uint(|c| &mut c.self_signed_cert_validity_years), "Years that certificates made at start are valid.").section(Section::Security),
    Flag::new("cipher-suites", "", Target::List(|c| &mut c.cipher_suites), "TLS 1.2 cipher suites by their Go names. Empty: a safe choice.").section(Section::Security),
    Flag::new("cors", "*", Target::List(|c| &mut c.cors), "Origins that browsers may send from.").section(Section::Security),
    Flag::new("host-whitelist", "*", Target::List(|c| &mut c.host_whitelist), "Names accepted in the Host header of plain HTTP.").section(Section::Security),
    Flag::new(
        "tls-min-version",
        "TLS1.2",
        Target::Parsed("choice", |c, text| {
            c.tls_min_version = if text.is_empty() { TlsVersion::Tls12 } else { text.parse()? };
            Ok(())
        }),
        "Lowest TLS version: TLS1.2, TLS1.3.",
    )
    .section(Section::Security),
    Flag::new(
        "tls-max-version",
        "",
        Target::Parsed("choice", |c, text| {
            c.tls_max_version = if text.is_empty() { None } else { Some(text.parse()?) };
            Ok(())
        }),
        "Highest TLS version: TLS1.2, TLS1.3. Empty: the newest.",
    )
    .section(Section::Security),
    // Auth.
    Flag::new("auth-token", "simple", Target::Text(|c| &mut c.auth_token), "Kind of token, and its options.").section(Section::Auth),
    Flag::new("bcrypt-cost", "10", Target::Uint(|c| &mut c.bcrypt_cost), "Work spent on each password.").section(Section::Auth),
    Flag::new("auth-token-ttl", "300", Target::Seconds(|c| &mut c.auth_token_ttl), "Seconds that a simple token lives.").section(Section::Auth),
    // Compaction.
    Flag::new("auto-compaction-retention", "0", Target::Text(|c| &mut c.auto_compaction_retention), "History kept by automatic compaction. 0: it is off.").section(Section::Compaction),
    Flag::new(
        "auto-compaction-mode",
        "periodic",
        Target::Parsed("choice", |c, text| {
            c.auto_compaction_mode = text.parse::<AutoCompactionMode>()?;
            Ok(())
        }),
        "How the retention is read: periodic (hours or a duration), revision.",
    )
    .section(Section::Compaction),
    Flag::new("compaction-batch-limit", "0", Target::Uint(|c| &mut c.compaction_batch_limit), "Revisions removed in one step. 0: 1000.").section(Section::Compaction),
    Flag::new("compaction-sleep-interval", "0s", Target::Duration(|c| &mut c.compaction_sleep_interval), "Pause between steps. 0: 10ms.").section(Section::Compaction),
    // Features.
    Flag::new(
        "feature-gates",
        "",
        Target::Parsed("Gate=bool list", |c, text| {
            c.feature_gates = text.parse::<FeatureGates>()?;
            Ok(())
        }),
        "Switches for behaviour that is not yet the rule.",
    )
    .section(Section::Features),
    Flag::new("snapshot-catchup-entries", "5000", Target::Uint(|c| &mut c.snapshot_catchup_entries), "Entries kept behind a snapshot for slow followers.").section(Section::Features),
    Flag::new("corrupt-check-time", "0s", Target::Duration(|c| &mut c.corrupt_check_time), "Period of the comparison of hashes with peers. 0: never.").section(Section::Features),
    Flag::new("compact-hash-check-time", "1m0s", Target::Duration(|c| &mut c.compact_hash_check_time), "Period of the comparison of compaction hashes with peers.").section(Section::Features),
    Flag::new("watch-progress-notify-interval", "0s", Target::Duration(|c| &mut c.watch_progress_notify_interval), "Period of progress notifications. 0: 10m.").section(Section::Features),
    Flag::new("bootstrap-defrag-threshold-megabytes", "0", Target::Checked(Form::Uint), "Defragment at start if that frees as much.").section(Section::Features).accepted("space is reused without defragmentation at start"),
    Flag::new("max-learners", "1", Target::Uint(|c| &mut c.max_learners), "Learners allowed at the same time.").section(Section::Features),
    Flag::new("downgrade-check-time", "5s", Target::Checked(Form::Duration), "Period of downgrade checks.").section(Section::Features).accepted(DOWNGRADES_ARE_WATCHED),
    // Logging.
    Flag::new("logger", "zap", Target::Checked(Form::Words(&["zap"])), "Kind of logger: zap, whose fields the log lines have.").section(Section::Logging),
    Flag::new("log-outputs", "default", Target::List(|c| &mut c.log_outputs), "Targets of the log: default (stderr), stdout, stderr, paths.").section(Section::Logging),
    Flag::new(
        "log-level",
        "info",
        Target::Parsed("choice", |c, text| {
            c.log_level = text.parse::<LogLevel>()?;
            Ok(())
        }),
        "Least severity that is logged: debug, info, warn, error, panic, fatal.",
    )
    .section(Section::Logging),
    Flag::new(
        "log-format",
        "json",
        Target::Parsed("choice", |c, text| {
            c.log_format = text.parse::<LogFormat>()?;
            Ok(())
        }),
        "Shape of a log line: json, console.",
    )
    .section(Section::Logging),
    Flag::new("enable-log-rotation", "false", Target::Checked(Form::Bool), "Rotate the file of log-outputs.").section(Section::Logging).accepted("rotate the file with logrotate and copytruncate"),
    Flag::new("log-rotation-config-json", "{\"maxsize\": 100, \"maxage\": 0, \"maxbackups\": 0, \"localtime\": false, \"compress\": false}", Target::Checked(Form::Text), "Settings of the rotation.").section(Section::Logging).accepted("rotate the file with logrotate and copytruncate"),
    Flag::new("warning-apply-duration", "100ms", Target::Duration(|c| &mut c.warning_apply_duration), "An apply that takes longer is logged.").section(Section::Logging),
    Flag::new("warning-unary-request-duration", "300ms", Target::Duration(|c| &mut c.warning_unary_request_duration), "A request that takes longer is logged.").section(Section::Logging),
    // Metrics.
    Flag::new("enable-pprof", "false", Target::Checked(Form::Bool), "Serve Go's profiles.").section(Section::Metrics).accepted("there is no Go runtime to profile; use perf"),
    Flag::new(
        "metrics",
        "basic",
        Target::Parsed("choice", |c, text| {
            c.metrics = text.parse::<MetricsLevel>()?;
            Ok(())
        }),
        "Detail of /metrics: basic, extensive (with durations of RPCs).",
    )
    .section(Section::Metrics),
    Flag::new("listen-metrics-urls", "", Target::Urls(|c| &mut c.listen_metrics_urls), "Further listeners for /metrics and health checks.").section(Section::Metrics),
    // Tracing.
    Flag::new("enable-distributed-tracing", "false", Target::Checked(Form::Bool), "Export OpenTelemetry spans.").section(Section::Tracing).accepted(NO_TRACING),
    Flag::new("distributed-tracing-address", "localhost:4317", Target::Checked(Form::Text), "Collector of spans.").section(Section::Tracing).accepted(NO_TRACING),
    Flag::new("distributed-tracing-service-name", "etcd", Target::Checked(Form::Text), "Service name of spans.").section(Section::Tracing).accepted(NO_TRACING),
    Flag::new("distributed-tracing-instance-id", "", Target::Checked(Form::Text), "Instance of spans.").section(Section::Tracing).accepted(NO_TRACING),
    Flag::new("distributed-tracing-sampling-rate", "0", Target::Checked(Form::Int), "Sampled spans in a million.").section(Section::Tracing).accepted(NO_TRACING),
    // Unsafe.
    Flag::new("force-new-cluster", "false", Target::Bool(|c| &mut c.force_new_cluster), "Start the stored data as a cluster of this member alone.").section(Section::Unsafe),
    Flag::new("unsafe-no-fsync", "false", Target::Checked(Form::Bool), "Do not wait for the disk.").section(Section::Unsafe).accepted("every acknowledged write is on disk first"),
    // Misc.
    Flag::new(CONFIG_FILE, "", Target::Checked(Form::Path), "Read all settings from this YAML or JSON file.").not_in_file().section(Section::Misc),
    Flag::new(VERSION, "false", Target::Checked(Form::Bool), "Print the version and exit.").not_in_file().section(Section::Misc),
];

pub(super) const CONFIG_FILE: &str = "config-file";
pub(super) const VERSION: &str = "version";

pub(super) fn variable(flag: &str) -> String {
    format!("ETCD_{}", flag.to_uppercase().replace('-', "_"))
}

/// The flag of that name.
pub fn find(name: &str) -> Option<&'static Flag> {
    FLAGS.iter().find(|flag| flag.name == name)
}

/// A [`Config`] in which every field has the default of its row.
pub(super) fn defaults() -> Config {
    let mut config = Config {
        name: String::new(),
        data_dir: PathBuf::new(),
        wal_dir: None,
        storage_engine: None,
        memory_budget: 0,
        snapshot_count: 0,
        snapshot_catchup_entries: 0,
        heartbeat_interval: Duration::ZERO,
        election_timeout: Duration::ZERO,
        pre_vote: false,
        strict_reconfig_check: false,
        max_learners: 0,
        quota_backend_bytes: 0,
        quota_auto_disarm: false,
        backend_batch_interval: Duration::ZERO,
        backend_batch_limit: 0,
        max_txn_ops: 0,
        max_request_bytes: 0,
        max_concurrent_streams: 0,
        grpc_keepalive_min_time: Duration::ZERO,
        grpc_keepalive_interval: Duration::ZERO,
        grpc_keepalive_timeout: Duration::ZERO,
        warning_apply_duration: Duration::ZERO,
        warning_unary_request_duration: Duration::ZERO,
        watch_progress_notify_interval: Duration::ZERO,
        auto_compaction_mode: AutoCompactionMode::Periodic,
        auto_compaction_retention: String::new(),
        compaction_batch_limit: 0,
        compaction_sleep_interval: Duration::ZERO,
        compact_hash_check_time: Duration::ZERO,
        corrupt_check_time: Duration::ZERO,
        feature_gates: FeatureGates::default(),
        listen_client_urls: Vec::new(),
        listen_client_http_urls: Vec::new(),
        listen_metrics_urls: Vec::new(),
        advertise_client_urls: Vec::new(),
        listen_peer_urls: Vec::new(),
        initial_advertise_peer_urls: Vec::new(),
        initial_cluster: Vec::new(),
        initial_cluster_state: ClusterState::New,
        initial_cluster_token: String::new(),
        force_new_cluster: false,
        socket_reuse_port: false,
        socket_reuse_address: false,
        client_tls: TlsFiles::default(),
        peer_tls: TlsFiles::default(),
        self_signed_cert_validity_years: 0,
        tls_min_version: TlsVersion::Tls12,
        tls_max_version: None,
        cipher_suites: Vec::new(),
        cors: Vec::new(),
        host_whitelist: Vec::new(),
        enable_grpc_gateway: false,
        auth_token: String::new(),
        auth_token_ttl: Duration::ZERO,
        bcrypt_cost: 0,
        metrics: MetricsLevel::Basic,
        log_level: LogLevel::Info,
        log_format: LogFormat::Json,
        log_outputs: Vec::new(),
        given: BTreeSet::new(),
    };
    for flag in FLAGS {
        if let Err(why) = flag.set(&mut config, flag.default) {
            panic!(
                "the default {:?} of --{} cannot be read: {why}",
                flag.default, flag.name
            );
        }
    }
    config
}
