//! `user`: adds, removes and lists users, gives them passwords and roles.

use std::io::{self, IsTerminal};

use clap::{ArgAction, Args, Subcommand};
use kv_proto::authpb::UserAddOptions;
use kv_proto::etcdserverpb::{
    AuthRoleGetRequest, AuthUserAddRequest, AuthUserChangePasswordRequest, AuthUserDeleteRequest,
    AuthUserGetRequest, AuthUserGrantRoleRequest, AuthUserListRequest, AuthUserRevokeRoleRequest,
};

use crate::{
    exit::{Failure, Result},
    number,
    printer::{Answer, AuthAnswer},
    session::{Session, write_out},
};

/// The subcommands of `user`.
#[derive(Debug, Subcommand)]
pub(crate) enum UserCommand {
    /// Makes a user without roles
    Add(AddArgs),
    /// Takes a user away
    Delete(Names),
    /// The roles of a user
    Get(GetArgs),
    /// Names of all users
    List(Names),
    /// Gives a user another password
    Passwd(PasswdArgs),
    /// Gives a user a role
    GrantRole(Names),
    /// Takes a role from a user
    RevokeRole(Names),
}

/// Positional arguments; how many there have to be depends on the command.
#[derive(Args, Debug)]
pub(crate) struct Names {
    names: Vec<String>,
}

/// Flags of `user add`.
#[derive(Args, Debug)]
pub(crate) struct AddArgs {
    /// Ask for the password on the terminal; otherwise it is the first word of standard input
    #[arg(long, default_value = "true", action = ArgAction::Set, num_args = 0..=1, require_equals = true,
          default_missing_value = "true", value_parser = number::parse_bool)]
    interactive: bool,
    /// The password of the new user
    #[arg(long, default_value = "")]
    new_user_password: String,
    /// Create a user without a password, who is known by a certificate only
    #[arg(long)]
    no_password: bool,
    /// The name, or name:password
    #[arg(value_name = "USER")]
    names: Vec<String>,
}

/// Flags of `user get`.
#[derive(Args, Debug)]
pub(crate) struct GetArgs {
    /// Show what the roles of the user permit
    #[arg(long)]
    detail: bool,
    #[arg(value_name = "USER")]
    names: Vec<String>,
}

/// Flags of `user passwd`.
#[derive(Args, Debug)]
pub(crate) struct PasswdArgs {
    /// Ask for the password on the terminal; otherwise it is the first word of standard input
    #[arg(long, default_value = "true", action = ArgAction::Set, num_args = 0..=1, require_equals = true,
          default_missing_value = "true", value_parser = number::parse_bool)]
    interactive: bool,
    #[arg(value_name = "USER")]
    names: Vec<String>,
}

/// Runs a subcommand of `user`.
pub(crate) async fn run(session: &Session, command: UserCommand) -> Result<()> {
    match command {
        UserCommand::Add(args) => add(session, args).await,
        UserCommand::Get(args) => get(session, args).await,
        UserCommand::Passwd(args) => passwd(session, args).await,
        UserCommand::Delete(Names { names }) => {
            let [name] = exactly(
                names,
                "user delete command requires user name as its argument",
            )?;
            let request = AuthUserDeleteRequest { name: name.clone() };
            let r = session.patient_client().await?.user_delete(request).await?;
            changed(session, &r.header, format!("User {name} deleted"))
        }
        UserCommand::List(Names { names }) => {
            let [] = exactly(names, "user list command requires no arguments")?;
            let client = session.patient_client().await?;
            let response = client.user_list(AuthUserListRequest {}).await?;
            session.print(&Answer::Auth(AuthAnswer::Users(&response)))
        }
        UserCommand::GrantRole(Names { names }) => {
            let usage = "user grant command requires user name and role name as its argument";
            let [user, role] = exactly(names, usage)?;
            let request = AuthUserGrantRoleRequest {
                user: user.clone(),
                role: role.clone(),
            };
            let client = session.patient_client().await?;
            let r = client.user_grant_role(request).await?;
            let sentence = format!("Role {role} is granted to user {user}");
            changed(session, &r.header, sentence)
        }
        UserCommand::RevokeRole(Names { names }) => {
            let usage = "user revoke-role requires user name and role name as its argument";
            let [name, role] = exactly(names, usage)?;
            let request = AuthUserRevokeRoleRequest {
                name: name.clone(),
                role: role.clone(),
            };
            let client = session.patient_client().await?;
            let r = client.user_revoke_role(request).await?;
            let sentence = format!("Role {role} is revoked from user {name}");
            changed(session, &r.header, sentence)
        }
    }
}

async fn add(session: &Session, args: AddArgs) -> Result<()> {
    let [given] = exactly(
        args.names,
        "user add command requires user name as its argument",
    )?;
    let (name, password) = if args.no_password {
        (given, String::new())
    } else if !args.new_user_password.is_empty() {
        (given, args.new_user_password)
    } else if let Some((name, password)) = given.split_once(':') {
        if name.is_empty() {
            return Err(Failure::bad_args("empty user name is not allowed"));
        }
        (name.to_owned(), password.to_owned())
    } else {
        let password = read_password(&given, args.interactive)?;
        (given, password)
    };
    let request = AuthUserAddRequest {
        name: name.clone(),
        password,
        options: Some(UserAddOptions {
            no_password: args.no_password,
        }),
        ..Default::default()
    };
    let r = session.patient_client().await?.user_add(request).await?;
    changed(session, &r.header, format!("User {name} created"))
}

async fn passwd(session: &Session, args: PasswdArgs) -> Result<()> {
    let [name] = exactly(
        args.names,
        "user passwd command requires user name as its argument",
    )?;
    let password = read_password(&name, args.interactive)?;
    let request = AuthUserChangePasswordRequest {
        name,
        password,
        ..Default::default()
    };
    let client = session.patient_client().await?;
    let r = client.user_change_password(request).await?;
    changed(session, &r.header, "Password updated".to_owned())
}

async fn get(session: &Session, args: GetArgs) -> Result<()> {
    let [name] = exactly(
        args.names,
        "user get command requires user name as its argument",
    )?;
    let client = session.patient_client().await?;
    let request = AuthUserGetRequest { name: name.clone() };
    let response = client.user_get(request).await?;
    if !args.detail {
        return session.print(&Answer::Auth(AuthAnswer::User {
            name: &name,
            response: &response,
        }));
    }
    write_out(format!("User: {name}\n").as_bytes())?;
    for role in response.roles {
        write_out(b"\n")?;
        let request = AuthRoleGetRequest { role: role.clone() };
        let response = client.role_get(request).await?;
        session.print(&Answer::Auth(AuthAnswer::Role {
            name: &role,
            response: &response,
        }))?;
    }
    Ok(())
}

/// The arguments, if there are `N`.
pub(super) fn exactly<const N: usize>(names: Vec<String>, usage: &str) -> Result<[String; N]> {
    names.try_into().map_err(|_| Failure::bad_args(usage))
}

/// Tells of a change.
pub(super) fn changed(
    session: &Session,
    header: &Option<kv_proto::etcdserverpb::ResponseHeader>,
    sentence: impl Into<Vec<u8>>,
) -> Result<()> {
    session.print(&Answer::Auth(AuthAnswer::Changed {
        header,
        sentence: &sentence.into(),
    }))
}

/// A new password: typed twice, or the first word of standard input.
fn read_password(name: &str, interactive: bool) -> Result<String> {
    if !interactive {
        let mut line = String::new();
        io::stdin().read_line(&mut line)?;
        let word = line.split_whitespace().next();
        return Ok(word.unwrap_or_default().to_owned());
    }
    let password = ask(&format!("Password of {name}: "))?;
    if password.is_empty() {
        return Err(Failure::bad_args("empty password"));
    }
    let again = ask(&format!("Type password of {name} again for confirmation: "))?;
    if password != again {
        return Err(Failure::bad_args("given passwords are different"));
    }
    Ok(password)
}

/// Asks on the terminal, without showing what is typed.
pub(crate) fn ask(prompt: &str) -> Result<String> {
    if !io::stdin().is_terminal() {
        let message = "failed to ask password: standard input is no terminal; use --interactive=false to read it there";
        return Err(Failure::bad_args(message));
    }
    rpassword::prompt_password(prompt)
        .map_err(|error| Failure::bad_args(format!("failed to ask password: {error}")))
}
