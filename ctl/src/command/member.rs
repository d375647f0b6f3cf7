//! `member`: the members of the cluster.

use clap::{Args, Subcommand};
use kv_proto::etcdserverpb::MemberListRequest;

use super::is_serializable;
use crate::{exit::Result, printer::Answer, session::Session};

/// The subcommands of `member`.
#[derive(Debug, Subcommand)]
pub(crate) enum MemberCommand {
    /// Lists all members in the cluster
    List(ListArgs),
}

/// Flags of `member list`.
#[derive(Args, Debug)]
pub(crate) struct ListArgs {
    /// Linearizable(l) or Serializable(s)
    #[arg(long, default_value = "l")]
    consistency: String,
    #[arg(hide = true)]
    ignored: Vec<String>,
}

/// Runs a subcommand of `member`.
pub(crate) async fn run(session: &Session, command: MemberCommand) -> Result<()> {
    let MemberCommand::List(args) = command;
    let linearizable = !is_serializable(&args.consistency)?;
    let response = session
        .client()
        .await?
        .member_list(MemberListRequest { linearizable })
        .await?;
    session.print(&Answer::Members(&response))
}
