//! `auth`: enables and disables authentication, and says whether it is enabled.

use clap::{Args, Subcommand};
use kv_client::Client;
use kv_proto::etcdserverpb::{
    AuthDisableRequest, AuthEnableRequest, AuthRoleAddRequest, AuthStatusRequest,
    AuthUserGrantRoleRequest,
};

use crate::{
    exit::{Failure, Result},
    printer::{Answer, AuthAnswer},
    session::{Session, write_out},
};

/// What the server says while root lacks the role root. Source: etcd API v3.7, `rpctypes`.
const ROOT_ROLE_NOT_EXIST: &str = "etcdserver: root user does not have root role";

/// The subcommands of `auth`.
#[derive(Debug, Subcommand)]
pub(crate) enum AuthCommand {
    /// Enables authentication
    Enable(NoArgs),
    /// Disables authentication
    Disable(NoArgs),
    /// Whether users and roles are checked, and the revision of what they may
    Status(NoArgs),
}

/// Arguments of the subcommands: there are none.
#[derive(Args, Debug)]
pub(crate) struct NoArgs {
    #[arg(hide = true)]
    extra: Vec<String>,
}

/// Runs a subcommand of `auth`.
pub(crate) async fn run(session: &Session, command: AuthCommand) -> Result<()> {
    let (args, verb) = match &command {
        AuthCommand::Enable(args) => (args, "enable"),
        AuthCommand::Disable(args) => (args, "disable"),
        AuthCommand::Status(args) => (args, "status"),
    };
    if !args.extra.is_empty() {
        let message = format!("auth {verb} command does not accept any arguments");
        return Err(Failure::bad_args(message));
    }
    let client = session.client().await?;
    match command {
        AuthCommand::Enable(_) => {
            enable(&client).await?;
            write_out(b"Authentication Enabled\n")
        }
        AuthCommand::Disable(_) => {
            client.auth_disable(AuthDisableRequest {}).await?;
            write_out(b"Authentication Disabled\n")
        }
        AuthCommand::Status(_) => {
            let response = client.auth_status(AuthStatusRequest {}).await?;
            session.print(&Answer::Auth(AuthAnswer::Status(&response)))
        }
    }
}

/// Enables; gives root the role root first if that is what is missing.
async fn enable(client: &Client) -> Result<()> {
    let missing = match client.auth_enable(AuthEnableRequest {}).await {
        Err(kv_client::Error::Server { message, .. }) if message == ROOT_ROLE_NOT_EXIST => true,
        answer => {
            answer?;
            false
        }
    };
    if missing {
        let name = "root".to_owned();
        client.role_add(AuthRoleAddRequest { name }).await?;
        let (user, role) = ("root".to_owned(), "root".to_owned());
        let grant = AuthUserGrantRoleRequest { user, role };
        client.user_grant_role(grant).await?;
        client.auth_enable(AuthEnableRequest {}).await?;
    }
    Ok(())
}
