//! `role`: adds, removes and lists roles and what they permit.

use std::ffi::OsString;

use bytes::Bytes;
use clap::{Args, Subcommand};
use kv_proto::authpb::{Permission, permission::Type};
use kv_proto::etcdserverpb::{
    AuthRoleAddRequest, AuthRoleDeleteRequest, AuthRoleGetRequest, AuthRoleGrantPermissionRequest,
    AuthRoleListRequest, AuthRoleRevokePermissionRequest,
};
use kv_proto::key_range::{OPEN_END, prefix_end};

use super::into_bytes;
use super::user::{changed, exactly};
use crate::{
    exit::{Failure, Result},
    printer::{self, Answer, AuthAnswer},
    session::Session,
};

/// The subcommands of `role`.
#[derive(Debug, Subcommand)]
pub(crate) enum RoleCommand {
    /// Makes a role without permissions
    Add(Names),
    /// Takes a role away, from its users as well
    Delete(Names),
    /// The permissions of a role
    Get(Names),
    /// Names of all roles
    List(Names),
    /// Lets a role read or write a key or a range
    GrantPermission(PermissionArgs),
    /// Takes the permission for a key or a range back
    RevokePermission(PermissionArgs),
}

/// Positional arguments; how many there have to be depends on the command.
#[derive(Args, Debug)]
pub(crate) struct Names {
    names: Vec<String>,
}

/// Flags of `role grant-permission` and `role revoke-permission`.
#[derive(Args, Debug)]
pub(crate) struct PermissionArgs {
    /// All keys that begin with the key
    #[arg(long)]
    prefix: bool,
    /// All keys from the key on
    #[arg(long)]
    from_key: bool,
    /// The role, what is granted (read, write, readwrite), the key, and the end of a range
    arguments: Vec<OsString>,
}

/// Runs a subcommand of `role`.
pub(crate) async fn run(session: &Session, command: RoleCommand) -> Result<()> {
    match command {
        RoleCommand::Add(Names { names }) => {
            let [name] = exactly(names, "role add command requires role name as its argument")?;
            let request = AuthRoleAddRequest { name: name.clone() };
            let r = session.patient_client().await?.role_add(request).await?;
            changed(session, &r.header, format!("Role {name} created"))
        }
        RoleCommand::Delete(Names { names }) => {
            let [role] = exactly(
                names,
                "role delete command requires role name as its argument",
            )?;
            let request = AuthRoleDeleteRequest { role: role.clone() };
            let r = session.patient_client().await?.role_delete(request).await?;
            changed(session, &r.header, format!("Role {role} deleted"))
        }
        RoleCommand::Get(Names { names }) => {
            let [name] = exactly(names, "role get command requires role name as its argument")?;
            let request = AuthRoleGetRequest { role: name.clone() };
            let response = session.patient_client().await?.role_get(request).await?;
            session.print(&Answer::Auth(AuthAnswer::Role {
                name: &name,
                response: &response,
            }))
        }
        RoleCommand::List(Names { names }) => {
            let [] = exactly(names, "role list command requires no arguments")?;
            let client = session.patient_client().await?;
            let response = client.role_list(AuthRoleListRequest {}).await?;
            session.print(&Answer::Auth(AuthAnswer::Roles(&response)))
        }
        RoleCommand::GrantPermission(args) => grant(session, args).await,
        RoleCommand::RevokePermission(args) => revoke(session, args).await,
    }
}

async fn grant(session: &Session, args: PermissionArgs) -> Result<()> {
    let usage =
        "role grant command requires role name, permission type, and key [endkey] as its argument";
    let mut arguments = args.arguments.iter().cloned();
    let (Some(role), Some(kind), Some(key)) =
        (arguments.next(), arguments.next(), arguments.next())
    else {
        return Err(Failure::bad_args(usage));
    };
    let role = role.to_string_lossy().into_owned();
    let perm_type = permission_type(&kind.to_string_lossy())?;
    let (key, range_end) = range(into_bytes(key), arguments.next(), &args)?;
    let perm = Permission {
        perm_type: perm_type as i32,
        key,
        range_end,
    };
    let request = AuthRoleGrantPermissionRequest {
        name: role.clone(),
        perm: Some(perm),
    };
    let client = session.patient_client().await?;
    let r = client.role_grant_permission(request).await?;
    changed(session, &r.header, format!("Role {role} updated"))
}

async fn revoke(session: &Session, args: PermissionArgs) -> Result<()> {
    let usage =
        "role revoke-permission command requires role name and key [endkey] as its argument";
    let mut arguments = args.arguments.iter().cloned();
    let (Some(role), Some(given)) = (arguments.next(), arguments.next()) else {
        return Err(Failure::bad_args(usage));
    };
    let role = role.to_string_lossy().into_owned();
    let given = into_bytes(given);
    let (key, range_end) = range(given.clone(), arguments.next(), &args)?;
    let request = AuthRoleRevokePermissionRequest {
        role: role.clone(),
        key,
        range_end: range_end.clone(),
    };
    let client = session.patient_client().await?;
    let r = client.role_revoke_permission(request).await?;
    let what = if range_end.is_empty() {
        [&b"key "[..], &given].concat()
    } else {
        [&b"range "[..], &printer::range(&given, &range_end)].concat()
    };
    let sentence = [
        &b"Permission of "[..],
        &what,
        b" is revoked from role ",
        role.as_bytes(),
    ];
    changed(session, &r.header, sentence.concat())
}

/// Names of permissions; any case will do.
fn permission_type(name: &str) -> Result<Type> {
    match name.to_ascii_uppercase().as_str() {
        "READ" => Ok(Type::Read),
        "WRITE" => Ok(Type::Write),
        "READWRITE" => Ok(Type::Readwrite),
        _ => Err(Failure::bad_args(format!(
            "invalid permission type: {name}"
        ))),
    }
}

/// Key and range end of a permission. The smallest key stands for an empty one.
fn range(key: Bytes, end: Option<OsString>, args: &PermissionArgs) -> Result<(Bytes, Bytes)> {
    let both = "--from-key and --prefix flags are mutually exclusive";
    let open = Bytes::from_static(OPEN_END);
    if key.is_empty() {
        let key = Bytes::from_static(b"\0");
        return match (args.prefix, args.from_key) {
            (true, true) => Err(Failure::bad_args(both)),
            (false, false) => Ok((key, Bytes::new())),
            _ => Ok((key, open)),
        };
    }
    let range_end = match (end, args.prefix, args.from_key) {
        (None, true, true) => return Err(Failure::bad_args(both)),
        (None, true, false) => prefix_end(&key),
        (None, false, true) => open,
        (None, false, false) => Bytes::new(),
        (Some(_), true, _) => {
            return Err(Failure::bad_args(
                "unexpected endkey argument with --prefix flag",
            ));
        }
        (Some(_), false, true) => {
            return Err(Failure::bad_args(
                "unexpected endkey argument with --from-key flag",
            ));
        }
        (Some(end), false, false) => into_bytes(end),
    };
    Ok((key, range_end))
}
