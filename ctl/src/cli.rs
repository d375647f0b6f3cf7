//! The command line: global flags, their environment variables, and the tree of commands.
//!
//! Flags follow etcdctl: `--flag value`, `--flag=value`, booleans with or without a value, the last of
//! a repeated flag counts, global flags stand anywhere, and an unambiguous prefix of a command names it.
//! Each global flag can be set by `KVCTL_<NAME>` or `ETCDCTL_<NAME>`; setting it twice, on the command
//! line and in the environment, is an error.

use std::{ffi::OsString, path::PathBuf, time::Duration};

use clap::{
    ArgAction, ArgMatches, Args, CommandFactory, FromArgMatches, Parser, Subcommand,
    builder::{OsStringValueParser, TypedValueParser},
    error::ErrorKind,
    parser::ValueSource,
};

use crate::{
    command::{
        alarm::AlarmCommand,
        auth::AuthCommand,
        cert::CertCommand,
        compaction::CompactionArgs,
        completion::CompletionArgs,
        defrag::DefragArgs,
        del::DelArgs,
        downgrade::DowngradeCommand,
        endpoint::EndpointArgs,
        get::GetArgs,
        lease::LeaseCommand,
        member::{MemberCommand, MoveLeaderArgs},
        put::PutArgs,
        role::RoleCommand,
        snapshot::SnapshotCommand,
        txn::TxnArgs,
        user::UserCommand,
        version::VersionArgs,
        watch::WatchArgs,
    },
    exit::{Exit, Failure, Result},
    number,
    printer::Form,
    session::write_out,
};

/// Prefixes of environment variables; the first that is set counts.
const ENV_PREFIXES: [&str; 2] = ["KVCTL_", "ETCDCTL_"];

/// A command-line client for kvd and etcd.
#[derive(Debug, Parser)]
#[command(
    name = "kvctl",
    infer_subcommands = true,
    args_override_self = true,
    disable_help_subcommand = false,
    subcommand_required = true,
    arg_required_else_help = true,
    max_term_width = 100,
    after_help = "Global options are listed by \"kvctl options\"; each can be set as KVCTL_<NAME> or ETCDCTL_<NAME>."
)]
pub(crate) struct Cli {
    #[command(flatten)]
    pub(crate) global: Global,
    #[command(subcommand)]
    pub(crate) command: Command,
}

/// Flags of every command.
#[derive(Args, Clone, Debug)]
pub(crate) struct Global {
    /// Addresses of members, host:port or URLs, separated by commas
    #[arg(long, global = true, hide = true, value_delimiter = ',', default_value = "127.0.0.1:2379", action = ArgAction::Append)]
    pub(crate) endpoints: Vec<String>,
    /// Print what the flags and variables amount to
    #[arg(long, global = true, hide = true)]
    pub(crate) debug: bool,
    /// The form of what is printed: simple, fields, json, protobuf or table
    #[arg(
        long,
        short = 'w',
        global = true,
        hide = true,
        default_value = "simple"
    )]
    pub(crate) write_out: String,
    /// Show keys and values byte by byte, in hexadecimal
    #[arg(long, global = true, hide = true)]
    pub(crate) hex: bool,
    /// The limit of one connection attempt
    #[arg(long, global = true, hide = true, default_value = "2s", value_parser = number::parse_duration)]
    pub(crate) dial_timeout: Duration,
    /// The limit of a command that is expected to be short, 5s if none is given; snapshot save has one only if it is given
    #[arg(long, global = true, hide = true, value_parser = number::parse_duration)]
    pub(crate) command_timeout: Option<Duration>,
    /// The time between pings on a connection
    #[arg(long, global = true, hide = true, default_value = "2s", value_parser = number::parse_duration)]
    pub(crate) keepalive_time: Duration,
    /// How long a ping may stay unanswered
    #[arg(long, global = true, hide = true, default_value = "6s", value_parser = number::parse_duration)]
    pub(crate) keepalive_timeout: Duration,
    /// The largest request in bytes; 0 means 2 MiB
    #[arg(long, global = true, hide = true, default_value = "0", value_parser = number::parse_flag_int)]
    pub(crate) max_request_bytes: i64,
    /// The largest answer in bytes; 0 means 2 GiB
    #[arg(long, global = true, hide = true, default_value = "0", value_parser = number::parse_flag_int)]
    pub(crate) max_recv_bytes: i64,
    /// Plain text for endpoints without a scheme, unless a flag about TLS is given
    #[arg(long, global = true, hide = true, default_value = "true", action = ArgAction::Set, num_args = 0..=1,
          require_equals = true, default_missing_value = "true", value_parser = number::parse_bool)]
    pub(crate) insecure_transport: bool,
    /// Accept plain http endpoints from discovery
    #[arg(long, global = true, hide = true, default_value = "true", action = ArgAction::Set, num_args = 0..=1,
          require_equals = true, default_missing_value = "true", value_parser = number::parse_bool)]
    pub(crate) insecure_discovery: bool,
    /// Accept any server certificate; for tests only
    #[arg(long, global = true, hide = true)]
    pub(crate) insecure_skip_tls_verify: bool,
    /// The client's certificate
    #[arg(long, global = true, hide = true, value_parser = path())]
    pub(crate) cert: Option<PathBuf>,
    /// The key of the client's certificate
    #[arg(long, global = true, hide = true, value_parser = path())]
    pub(crate) key: Option<PathBuf>,
    /// The authorities that server certificates are verified with
    #[arg(long, global = true, hide = true, value_parser = path())]
    pub(crate) cacert: Option<PathBuf>,
    /// A JWT, instead of user and password
    #[arg(long, global = true, hide = true, default_value = "")]
    pub(crate) auth_jwt_token: String,
    /// The user, name or name:password
    #[arg(long, global = true, hide = true, default_value = "")]
    pub(crate) user: String,
    /// The user's password; --user is then the name alone
    #[arg(long, global = true, hide = true, default_value = "")]
    pub(crate) password: String,
    /// The domain whose SRV records name the endpoints
    #[arg(long, short = 'd', global = true, hide = true, default_value = "")]
    pub(crate) discovery_srv: String,
    /// A suffix of the SRV service name
    #[arg(long, global = true, hide = true, default_value = "")]
    pub(crate) discovery_srv_name: String,
}

impl Global {
    /// The options as they may be shown: without secrets.
    pub(crate) fn redacted(&self) -> Global {
        let hide = |secret: &str| if secret.is_empty() { "" } else { "***" }.to_owned();
        let name = self
            .user
            .split_once(':')
            .map_or(self.user.as_str(), |(name, _)| name);
        Global {
            user: name.to_owned(),
            password: hide(&self.password),
            auth_jwt_token: hide(&self.auth_jwt_token),
            ..self.clone()
        }
    }

    /// The output form. Errors: [`Exit::BadFeature`] if there is no such form.
    pub(crate) fn form(&self) -> Result<Form> {
        Form::from_name(&self.write_out).ok_or_else(|| {
            let message = format!(
                "unsupported output format {:?}; set --write-out to simple, fields, json, protobuf or table",
                self.write_out
            );
            Failure::new(Exit::BadFeature, message)
        })
    }
}

/// A path that may be empty here, so that the message about it can name the flag.
fn path() -> impl TypedValueParser<Value = PathBuf> {
    OsStringValueParser::new().map(PathBuf::from)
}

/// The verbs.
#[derive(Debug, Subcommand)]
pub(crate) enum Command {
    /// Reads a key, a range, or the keys with a prefix
    Get(GetArgs),
    /// Writes a key and its value
    Put(PutArgs),
    /// Deletes a key, a range, or the keys with a prefix
    Del(DelArgs),
    /// Compares and then writes or reads, as standard input says, in one transaction
    Txn(TxnArgs),
    /// Drops the revisions of keys before a given one
    Compaction(CompactionArgs),
    /// Prints changes of keys as they happen
    Watch(WatchArgs),
    /// Grants, renews, shows and revokes leases
    #[command(subcommand)]
    Lease(LeaseCommand),
    /// Lists, adds, promotes and removes members
    #[command(subcommand)]
    Member(MemberCommand),
    /// Makes another member the leader
    MoveLeader(MoveLeaderArgs),
    /// Asks each endpoint by itself: its health, status or hash
    Endpoint(EndpointArgs),
    /// Lists and clears alarms
    #[command(subcommand)]
    Alarm(AlarmCommand),
    /// Gives free space of the members' stores back to their disks
    Defrag(DefragArgs),
    /// Prepares the members for an older release
    #[command(subcommand)]
    Downgrade(DowngradeCommand),
    /// Switches the checks of users and roles on and off
    #[command(subcommand)]
    Auth(AuthCommand),
    /// Makes, shows and changes users
    #[command(subcommand)]
    User(UserCommand),
    /// Makes, shows and changes roles
    #[command(subcommand)]
    Role(RoleCommand),
    /// Saves, examines and restores backups
    #[command(subcommand)]
    Snapshot(SnapshotCommand),
    /// Makes the certificates of a cluster
    #[command(subcommand)]
    Cert(CertCommand),
    /// Prints the versions of kvctl and its API
    Version(VersionArgs),
    /// Prints a completion script for a shell
    Completion(CompletionArgs),
    /// Lists the global command-line options
    Options,
}

/// Parses the command line with the environment in its place.
///
/// Help and usage errors are told here; see the module for the rules.
pub(crate) fn parse(argv: Vec<OsString>, env: impl Fn(&str) -> Option<String>) -> Result<Cli> {
    let command = prepare(Cli::command());
    let matches = command.clone().try_get_matches_from(&argv).map_err(usage)?;
    let argv = with_environment(argv, &command, &matches, env)?;
    let matches = command.try_get_matches_from(argv).map_err(usage)?;
    Cli::from_arg_matches(&matches).map_err(usage)
}

/// Parses words of standard input by the rules of the command line.
pub(crate) fn parse_words<T: FromArgMatches + CommandFactory>(
    words: Vec<OsString>,
) -> std::result::Result<T, clap::Error> {
    let command = prepare(T::command()).no_binary_name(true);
    T::from_arg_matches(&command.try_get_matches_from(words)?)
}

/// The global flags as text, for the `options` command.
pub(crate) fn options_text() -> String {
    let mut command = clap::Command::new("options").disable_help_flag(true);
    for arg in Cli::command().get_arguments().filter(|a| a.is_global_set()) {
        command = command.arg(arg.clone().hide(false));
    }
    let options = command.help_template("{options}").render_help();
    format!("The following options can be passed to any command:\n\n{options}\n")
}

/// Gives every flag etcdctl's manners: booleans take `=value`, values may begin with a dash.
fn prepare(command: clap::Command) -> clap::Command {
    command
        .mut_args(|arg| match arg.get_action() {
            ArgAction::SetTrue => arg
                .action(ArgAction::Set)
                .num_args(0..=1)
                .require_equals(true)
                .default_value("false")
                .default_missing_value("true")
                .hide_default_value(true)
                .value_parser(number::parse_bool),
            ArgAction::Set if !arg.is_positional() && arg.get_num_args().is_none() => {
                arg.allow_hyphen_values(true)
            }
            _ => arg,
        })
        .mut_subcommands(prepare)
}

/// The command line with a flag in front for each variable that is set.
fn with_environment(
    argv: Vec<OsString>,
    command: &clap::Command,
    matches: &ArgMatches,
    env: impl Fn(&str) -> Option<String>,
) -> Result<Vec<OsString>> {
    let mut argv = argv.into_iter();
    let mut out: Vec<OsString> = argv.next().into_iter().collect();
    for arg in command.get_arguments().filter(|a| a.is_global_set()) {
        let Some(flag) = arg.get_long() else { continue };
        let name = flag.replace('-', "_").to_ascii_uppercase();
        let set = ENV_PREFIXES.iter().find_map(|prefix| {
            let variable = format!("{prefix}{name}");
            env(&variable)
                .filter(|v| !v.is_empty())
                .map(|value| (variable, value))
        });
        let Some((variable, value)) = set else {
            continue;
        };
        if matches.value_source(arg.get_id().as_str()) == Some(ValueSource::CommandLine) {
            let message = format!(
                "{variable} is set and so is --{flag}: unset the variable or leave out the flag"
            );
            return Err(Failure::new(Exit::Error, message));
        }
        out.push(format!("--{flag}={value}").into());
    }
    out.extend(argv);
    Ok(out)
}

/// Help goes to standard output and is no failure; a bad command line goes to standard error.
fn usage(error: clap::Error) -> Failure {
    let text = error.render().to_string();
    match error.kind() {
        ErrorKind::DisplayHelp
        | ErrorKind::DisplayHelpOnMissingArgumentOrSubcommand
        | ErrorKind::DisplayVersion => write_out(text.as_bytes())
            .err()
            .unwrap_or(Failure::silent(Exit::ClosedPipe)),
        _ => Failure::new(
            Exit::Error,
            text.strip_prefix("error: ").unwrap_or(&text).trim_end(),
        ),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn parsed(line: &str, env: &[(&str, &str)]) -> Result<Cli> {
        let argv = std::iter::once("kvctl")
            .chain(line.split_whitespace())
            .map(OsString::from)
            .collect();
        parse(argv, |name| {
            env.iter()
                .find(|(n, _)| *n == name)
                .map(|(_, v)| (*v).to_owned())
        })
    }

    #[test]
    fn the_definition_is_sound() {
        Cli::command().debug_assert();
        prepare(Cli::command()).debug_assert();
    }

    #[test]
    fn flags_stand_anywhere_and_the_last_counts() {
        let cli = parsed(
            "-w json get a --write-out=fields --endpoints a:1,b:2 --endpoints=c:3 --hex",
            &[],
        )
        .unwrap();
        assert_eq!(cli.global.write_out, "fields");
        assert_eq!(cli.global.endpoints, ["a:1", "b:2", "c:3"]);
        assert!(cli.global.hex);
        assert!(!parsed("get a --hex --hex=false", &[]).unwrap().global.hex);
    }

    #[test]
    fn a_prefix_names_a_command() {
        assert!(matches!(
            parsed("me li", &[]).unwrap().command,
            Command::Member(_)
        ));
        assert!(matches!(
            parsed("en s", &[]).unwrap().command,
            Command::Endpoint(_)
        ));
        assert_eq!(parsed("nonsense", &[]).unwrap_err().exit.code(), 1);
    }

    #[test]
    fn values_may_be_negative_and_booleans_explicit() {
        let Command::Get(get) = parsed("get a --limit -1 --rev=-2 --prefix=false --from-key", &[])
            .unwrap()
            .command
        else {
            panic!("not get");
        };
        assert_eq!(
            (get.limit, get.rev, get.prefix, get.from_key),
            (-1, -2, false, true)
        );
    }

    #[test]
    fn the_environment_sets_what_the_command_line_does_not() {
        let env = [
            ("ETCDCTL_ENDPOINTS", "e:1"),
            ("KVCTL_HEX", "true"),
            ("ETCDCTL_HEX", "false"),
        ];
        let cli = parsed("get a", &env).unwrap();
        assert_eq!(cli.global.endpoints, ["e:1"]);
        assert!(cli.global.hex, "KVCTL_ goes before ETCDCTL_");
        let conflict = parsed("get a --endpoints=x:1", &env).unwrap_err();
        assert_eq!(conflict.exit.code(), 1);
        assert!(conflict.message.unwrap().contains("ETCDCTL_ENDPOINTS"));
        assert!(parsed("get a", &[("ETCDCTL_HEX", "tttt")]).is_err());
    }

    #[test]
    fn unknown_flags_and_bad_values_exit_with_1() {
        for line in [
            "get --nonsense",
            "get a --limit=x",
            "get a --command-timeout=5",
            "put a -2",
        ] {
            let failure = parsed(line, &[]).unwrap_err();
            assert_eq!(failure.exit.code(), 1, "{line}");
            assert!(failure.message.is_some(), "{line}");
        }
    }

    #[test]
    fn what_debug_shows_holds_no_secret() {
        let line = "get a --debug --user=me:secret1 --password=secret2 --auth-jwt-token=secret3";
        let shown = format!("{:?}", parsed(line, &[]).unwrap().global.redacted());
        assert!(shown.contains("me") && !shown.contains("secret"), "{shown}");
    }

    #[test]
    fn options_lists_every_global_flag() {
        let text = options_text();
        for flag in [
            "--endpoints",
            "--write-out",
            "--cacert",
            "--command-timeout",
            "--password",
        ] {
            assert!(text.contains(flag), "{flag} is not in:\n{text}");
        }
    }
}
