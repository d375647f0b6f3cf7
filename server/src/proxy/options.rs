//! The command lines of the subcommands.

use std::ffi::OsString;
use std::net::SocketAddr;
use std::time::Duration;

use clap::{Args, Parser, Subcommand};

use crate::config::parse_duration;

/// A subcommand with its options.
#[derive(Debug)]
pub enum Command {
    /// `kvd gateway start`.
    Gateway(GatewayOptions),
    /// `kvd grpc-proxy start`.
    GrpcProxy(Box<GrpcProxyOptions>),
}

/// Options of a proxy whose members DNS names.
#[derive(Args, Clone, Debug, Default)]
pub struct Discovery {
    /// DNS domain whose SRV records name the members, in place of --endpoints.
    #[arg(id = "discovery-srv", long, default_value = "", value_name = "DOMAIN")]
    pub domain: String,
    /// Suffix of the service name of those records.
    #[arg(
        id = "discovery-srv-name",
        long,
        default_value = "",
        value_name = "NAME"
    )]
    pub suffix: String,
    /// Take members without TLS too, and do not look at certificates.
    #[arg(id = "insecure-discovery", long)]
    pub insecure: bool,
    /// Who is asked for the records; the system's servers if it is not given.
    #[arg(id = "discovery-dns-server", long, value_name = "IP:PORT")]
    pub dns_server: Option<SocketAddr>,
}

/// Options of `kvd gateway start`. Names and defaults are etcd's.
#[derive(Args, Clone, Debug)]
pub struct GatewayOptions {
    /// Address to listen on.
    #[arg(long, default_value = "127.0.0.1:23790", value_name = "HOST:PORT")]
    pub listen_addr: String,
    /// Members to forward to, in turn; a URL counts by its host and port.
    #[arg(
        long,
        value_delimiter = ',',
        default_value = "127.0.0.1:2379",
        value_name = "HOST:PORT,..."
    )]
    pub endpoints: Vec<String>,
    /// How long a member that refused a connection is left out.
    #[arg(long, default_value = "1m0s", value_parser = parse_duration, value_name = "DURATION")]
    pub retry_delay: Duration,
    /// Members by DNS.
    #[command(flatten)]
    pub discovery: Discovery,
    /// Authority that certificates of members found by DNS are checked against; the system's if it is not given.
    #[arg(long, default_value = "", value_name = "FILE")]
    pub trusted_ca_file: String,
}

/// Options of `kvd grpc-proxy start`. Names and defaults are etcd's.
#[derive(Args, Clone, Debug)]
#[allow(clippy::struct_excessive_bools)] // They are switches of a command line.
pub struct GrpcProxyOptions {
    /// Address to listen on.
    #[arg(long, default_value = "127.0.0.1:23790", value_name = "HOST:PORT")]
    pub listen_addr: String,
    /// A further address for the pages alone, without TLS.
    #[arg(long, default_value = "", value_name = "HOST:PORT")]
    pub metrics_addr: String,
    /// Members, in the order they are tried.
    #[arg(
        long,
        value_delimiter = ',',
        default_value = "127.0.0.1:2379",
        value_name = "URL,..."
    )]
    pub endpoints: Vec<String>,
    /// Accepted without effect: the members are those of --endpoints.
    #[arg(long, default_value = "0s", value_parser = parse_duration, value_name = "DURATION")]
    pub endpoints_auto_sync_interval: Duration,
    /// Time between pings to a member; 0 for the client's own.
    #[arg(long, default_value = "0s", value_parser = parse_duration, value_name = "DURATION")]
    pub dial_keepalive_time: Duration,
    /// How long a ping to a member may stay unanswered.
    #[arg(long, default_value = "20s", value_parser = parse_duration, value_name = "DURATION")]
    pub dial_keepalive_timeout: Duration,
    /// Accepted without effect: connections without calls are not pinged.
    #[arg(long)]
    pub permit_without_stream: bool,
    /// What clients that ask for the members are told; empty passes on what the cluster says.
    #[arg(long, default_value = "127.0.0.1:23790", value_name = "URL")]
    pub advertise_client_url: String,
    /// Prefix of the keys by which proxies know each other; empty for a proxy alone.
    #[arg(long, default_value = "", value_name = "PREFIX")]
    pub resolver_prefix: String,
    /// Seconds that the proxy stays registered without renewing it.
    #[arg(long, default_value_t = 0, value_name = "SECONDS")]
    pub resolver_ttl: i64,
    /// Prefix that all keys of clients have in the cluster.
    #[arg(long, default_value = "", value_name = "PREFIX")]
    pub namespace: String,
    /// Accepted without effect: nothing is stored.
    #[arg(long, default_value = "default.proxy", value_name = "FOLDER")]
    pub data_dir: String,
    /// The largest request to a member.
    #[arg(long, default_value_t = 1_572_864, value_name = "BYTES")]
    pub max_send_bytes: usize,
    /// The largest message that is taken.
    #[arg(long, default_value_t = i32::MAX as usize, value_name = "BYTES")]
    pub max_recv_bytes: usize,
    /// Accepted without effect: clients' pings are not limited.
    #[arg(long, default_value = "5s", value_parser = parse_duration, value_name = "DURATION")]
    pub grpc_keepalive_min_time: Duration,
    /// Time between pings to a client; 0 for none.
    #[arg(long, default_value = "2h", value_parser = parse_duration, value_name = "DURATION")]
    pub grpc_keepalive_interval: Duration,
    /// How long a ping to a client may stay unanswered.
    #[arg(long, default_value = "20s", value_parser = parse_duration, value_name = "DURATION")]
    pub grpc_keepalive_timeout: Duration,
    /// Calls of a client at once.
    #[arg(long, default_value_t = u32::MAX, value_name = "COUNT")]
    pub max_concurrent_streams: u32,
    /// Certificate for members that ask for one.
    #[arg(long, default_value = "", value_name = "FILE")]
    pub cert: String,
    /// Its key.
    #[arg(long, default_value = "", value_name = "FILE")]
    pub key: String,
    /// Authority that certificates of members are checked against.
    #[arg(long, default_value = "", value_name = "FILE")]
    pub cacert: String,
    /// Do not check certificates of members: for tests only.
    #[arg(long)]
    pub insecure_skip_tls_verify: bool,
    /// Certificate that clients see.
    #[arg(long, default_value = "", value_name = "FILE")]
    pub cert_file: String,
    /// Its key.
    #[arg(long, default_value = "", value_name = "FILE")]
    pub key_file: String,
    /// Authority that certificates of clients are checked against; clients must have one then.
    #[arg(long, default_value = "", value_name = "FILE")]
    pub trusted_ca_file: String,
    /// Revoked certificates of clients.
    #[arg(long, default_value = "", value_name = "FILE")]
    pub client_crl_file: String,
    /// Certificates made by the proxy; not offered.
    #[arg(long)]
    pub auto_tls: bool,
    /// Members by DNS.
    #[command(flatten)]
    pub discovery: Discovery,
    /// Go's profiles; not offered.
    #[arg(long)]
    pub enable_pprof: bool,
    /// No serializable read is older than an answer of this proxy before it, whichever member gives it.
    #[arg(long)]
    pub experimental_serializable_ordering: bool,
    /// Reads by leased keys; not offered.
    #[arg(long, default_value = "", value_name = "PREFIX")]
    pub experimental_leasing_prefix: String,
    /// Log on the level debug.
    #[arg(long)]
    pub debug: bool,
}

#[derive(Parser)]
#[command(name = "kvd", disable_version_flag = true)]
struct Line {
    #[command(subcommand)]
    command: Group,
}

#[derive(Subcommand)]
enum Group {
    /// Forwards TCP connections to the members in turn.
    Gateway {
        #[command(subcommand)]
        verb: GatewayVerb,
    },
    /// Serves gRPC before a cluster: shared watches, kept reads.
    GrpcProxy {
        #[command(subcommand)]
        verb: GrpcProxyVerb,
    },
}

#[derive(Subcommand)]
enum GatewayVerb {
    /// Starts the gateway.
    Start(GatewayOptions),
}

#[derive(Subcommand)]
enum GrpcProxyVerb {
    /// Starts the proxy.
    Start(Box<GrpcProxyOptions>),
}

/// The subcommand that the arguments begin with.
pub(super) fn parse(args: &[OsString]) -> Option<Result<Command, clap::Error>> {
    let first = args.first()?.to_str()?;
    if !["gateway", "grpc-proxy"].contains(&first) {
        return None;
    }
    let line = std::iter::once(OsString::from("kvd")).chain(args.iter().cloned());
    Some(Line::try_parse_from(line).map(|line| match line.command {
        Group::Gateway {
            verb: GatewayVerb::Start(options),
        } => Command::Gateway(options),
        Group::GrpcProxy {
            verb: GrpcProxyVerb::Start(options),
        } => Command::GrpcProxy(options),
    }))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn gateway(line: &str) -> GatewayOptions {
        let args: Vec<OsString> = line.split_whitespace().map(OsString::from).collect();
        match parse(&args).unwrap().unwrap() {
            Command::Gateway(options) => options,
            other => panic!("{other:?}"),
        }
    }

    #[test]
    fn defaults_are_etcds() {
        let options = gateway("gateway start");
        assert_eq!(options.listen_addr, "127.0.0.1:23790");
        assert_eq!(options.endpoints, ["127.0.0.1:2379"]);
        assert_eq!(options.retry_delay, Duration::from_secs(60));
    }

    #[test]
    fn endpoints_are_a_list() {
        let options =
            gateway("gateway start --endpoints=a:1,http://b:2 --endpoints c:3 --retry-delay 100ms");
        assert_eq!(options.endpoints, ["a:1", "http://b:2", "c:3"]);
        assert_eq!(options.retry_delay, Duration::from_millis(100));
    }

    #[test]
    fn flags_of_a_member_are_no_subcommand() {
        assert!(parse(&["--name".into(), "gateway".into()]).is_none());
        assert!(parse(&[]).is_none());
        assert!(parse(&["gateway".into(), "stop".into()]).unwrap().is_err());
    }
}
