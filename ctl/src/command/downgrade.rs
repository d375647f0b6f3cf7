//! `downgrade`: readies the cluster for the release before its own.

use clap::{Args, Subcommand};
use kv_proto::etcdserverpb::{DowngradeRequest, downgrade_request::DowngradeAction};

use crate::{
    exit::{Failure, Result},
    printer::Answer,
    session::Session,
};

/// The subcommands of `downgrade`.
#[derive(Debug, Subcommand)]
pub(crate) enum DowngradeCommand {
    /// Tells whether the cluster could be downgraded to a version
    Validate(VersionArgs),
    /// Begins a downgrade of the cluster to a version
    Enable(VersionArgs),
    /// Ends the downgrade that is under way
    Cancel(CancelArgs),
}

/// Arguments of `downgrade validate` and `downgrade enable`.
#[derive(Args, Debug)]
pub(crate) struct VersionArgs {
    /// Major and minor version, as 3.6
    #[arg(value_name = "TARGET_VERSION")]
    versions: Vec<String>,
}

/// Arguments of `downgrade cancel`.
#[derive(Args, Debug)]
pub(crate) struct CancelArgs {
    #[arg(hide = true)]
    ignored: Vec<String>,
}

/// Runs a subcommand of `downgrade`.
pub(crate) async fn run(session: &Session, command: DowngradeCommand) -> Result<()> {
    let (action, done, version) = match command {
        DowngradeCommand::Validate(args) => {
            (DowngradeAction::Validate, "validate", args.version()?)
        }
        DowngradeCommand::Enable(args) => (DowngradeAction::Enable, "enable", args.version()?),
        DowngradeCommand::Cancel(_) => (DowngradeAction::Cancel, "cancel", String::new()),
    };
    let request = DowngradeRequest {
        action: action.into(),
        version,
    };
    let response = session.client().await?.downgrade(request).await?;
    session.print(&Answer::Downgrade {
        done,
        response: &response,
    })
}

impl VersionArgs {
    fn version(self) -> Result<String> {
        let mut versions = self.versions.into_iter();
        match (versions.next(), versions.next()) {
            (None, _) => Err(Failure::bad_args("TARGET_VERSION not provided")),
            (_, Some(_)) => Err(Failure::bad_args("too many arguments")),
            (Some(version), None) if version.is_empty() => {
                Err(Failure::bad_args("target version not provided"))
            }
            (Some(version), None) => Ok(version),
        }
    }
}
