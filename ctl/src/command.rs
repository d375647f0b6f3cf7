//! The verbs: each file owns one verb's flags, the request it becomes, and what happens to the answer.

pub(crate) mod alarm;
pub(crate) mod auth;
pub(crate) mod cert;
pub(crate) mod compaction;
pub(crate) mod completion;
pub(crate) mod defrag;
pub(crate) mod del;
pub(crate) mod downgrade;
pub(crate) mod endpoint;
pub(crate) mod get;
pub(crate) mod lease;
pub(crate) mod member;
pub(crate) mod put;
pub(crate) mod role;
pub(crate) mod snapshot;
mod stdin;
pub(crate) mod txn;
pub(crate) mod user;
pub(crate) mod version;
pub(crate) mod watch;

use std::{ffi::OsString, os::unix::ffi::OsStringExt};

use bytes::Bytes;
use kv_proto::key_range::{OPEN_END, prefix_end};

use crate::{
    cli::{self, Cli, Command},
    exit::{self, Exit, Failure, Result},
    session::{Session, write_out},
};

/// Runs the verb of the command line.
pub(crate) async fn run(cli: Cli) -> Result<()> {
    match cli.command {
        // These talk to no server and heed no global flag.
        Command::Version(args) => return version::run(&args),
        Command::Completion(args) => return completion::run(&args),
        Command::Cert(command) => return cert::run(&command),
        Command::Options => return write_out(cli::options_text().as_bytes()),
        _ => {}
    }
    let session = Session::new(cli.global).await?;
    if session.global().debug {
        exit::tell(format_args!("{:#?}", session.global().redacted()));
    }
    match cli.command {
        Command::Get(args) => get::run(&session, args).await,
        Command::Put(args) => put::run(&session, args).await,
        Command::Del(args) => del::run(&session, args).await,
        Command::Txn(args) => txn::run(&session, args).await,
        Command::Compaction(args) => compaction::run(&session, args).await,
        Command::Watch(args) => watch::run(&session, args).await,
        Command::Lease(command) => lease::run(&session, command).await,
        Command::Member(command) => member::run(&session, command).await,
        Command::MoveLeader(args) => member::move_leader(&session, args).await,
        Command::Endpoint(args) => endpoint::run(&session, args).await,
        Command::Alarm(command) => alarm::run(&session, command).await,
        Command::Defrag(args) => defrag::run(&session, args).await,
        Command::Downgrade(command) => downgrade::run(&session, command).await,
        Command::Auth(command) => auth::run(&session, command).await,
        Command::User(command) => user::run(&session, command).await,
        Command::Role(command) => role::run(&session, command).await,
        Command::Snapshot(command) => snapshot::run(&session, command).await,
        Command::Cert(_) | Command::Version(_) | Command::Completion(_) | Command::Options => {
            Ok(())
        }
    }
}

/// An argument as the bytes the shell gave.
fn into_bytes(argument: OsString) -> Bytes {
    argument.into_vec().into()
}

/// What a request calls the range that `--prefix` or `--from-key` makes of `key`.
fn widen(key: Bytes, prefix: bool, from_key: bool) -> (Bytes, Bytes) {
    match (prefix, from_key) {
        (false, false) => (key, Bytes::new()),
        _ if key.is_empty() => (Bytes::from_static(b"\0"), Bytes::from_static(OPEN_END)),
        (true, _) => {
            let end = prefix_end(&key);
            (key, end)
        }
        (false, true) => (key, Bytes::from_static(OPEN_END)),
    }
}

/// Whether `--consistency` asks for a serializable read.
fn is_serializable(consistency: &str) -> Result<bool> {
    match consistency {
        "s" => Ok(true),
        "l" => Ok(false),
        other => Err(Failure::new(
            Exit::BadFeature,
            format!("unknown consistency flag {other:?}; use l or s"),
        )),
    }
}
