//! What `auth`, `user` and `role` print, in every form that etcdctl has for it.

use kv_proto::{
    authpb::{Permission, permission::Type},
    etcdserverpb::{
        AuthRoleGetResponse, AuthRoleListResponse, AuthStatusResponse, AuthUserGetResponse,
        AuthUserListResponse, ResponseHeader,
    },
    key_range::{OPEN_END, prefix_end},
};
use prost::Message;

use super::{fields, json};
use crate::quote::quote;

/// Anything these commands can print.
#[derive(Clone, Copy, Debug)]
pub(crate) enum AuthAnswer<'a> {
    /// A change, told in a sentence; the answer has nothing but its header.
    Changed {
        header: &'a Option<ResponseHeader>,
        sentence: &'a [u8],
    },
    /// `auth status`.
    Status(&'a AuthStatusResponse),
    /// `user get` of a user.
    User {
        name: &'a str,
        response: &'a AuthUserGetResponse,
    },
    /// `user list`.
    Users(&'a AuthUserListResponse),
    /// `role get` of a role.
    Role {
        name: &'a str,
        response: &'a AuthRoleGetResponse,
    },
    /// `role list`.
    Roles(&'a AuthRoleListResponse),
}

/// The simple form.
pub(super) fn simple(answer: &AuthAnswer<'_>) -> Vec<u8> {
    match answer {
        AuthAnswer::Changed { sentence, .. } => [*sentence, b"\n"].concat(),
        AuthAnswer::Status(r) => format!(
            "Authentication Status: {}\nAuthRevision: {}\n",
            r.enabled, r.auth_revision
        )
        .into_bytes(),
        AuthAnswer::User { name, response } => {
            let roles = response.roles.iter().map(|role| format!(" {role}"));
            format!("User: {name}\nRoles:{}\n", roles.collect::<String>()).into_bytes()
        }
        AuthAnswer::Users(response) => lines(&response.users),
        AuthAnswer::Roles(response) => lines(&response.roles),
        AuthAnswer::Role { name, response } => role(name, &response.perm),
    }
}

fn lines(names: &[String]) -> Vec<u8> {
    let lines = names.iter().map(|name| format!("{name}\n"));
    lines.collect::<String>().into_bytes()
}

/// The keys that may be read, then those that may be written.
fn role(name: &str, permissions: &[Permission]) -> Vec<u8> {
    let mut out = format!("Role {name}\n").into_bytes();
    let root = [Permission {
        perm_type: Type::Readwrite as i32,
        key: "".into(),
        range_end: OPEN_END.into(),
    }];
    let permissions = if name == "root" && permissions.is_empty() {
        &root
    } else {
        permissions
    };
    for (title, one) in [("KV Read:\n", Type::Read), ("KV Write:\n", Type::Write)] {
        out.extend_from_slice(title.as_bytes());
        let granted = permissions
            .iter()
            .filter(|p| p.perm_type == one as i32 || p.perm_type == Type::Readwrite as i32);
        for permission in granted {
            out.push(b'\t');
            out.extend(keys(permission));
            out.push(b'\n');
        }
    }
    out
}

/// A key, or a range and the prefix that it is of.
fn keys(permission: &Permission) -> Vec<u8> {
    let Permission { key, range_end, .. } = permission;
    if range_end.is_empty() {
        return key.to_vec();
    }
    let mut text = range(key, range_end);
    if !key.is_empty() && prefix_end(key) == *range_end {
        text.extend_from_slice(b" (prefix ");
        text.extend_from_slice(key);
        text.push(b')');
    }
    text
}

/// `[key, end)`; an open end has no bracket, as etcdctl prints it.
pub(crate) fn range(key: &[u8], range_end: &[u8]) -> Vec<u8> {
    if range_end == OPEN_END {
        [&b"["[..], key, b", <open ended>"].concat()
    } else {
        [&b"["[..], key, b", ", range_end, b")"].concat()
    }
}

/// The fields form; etcdctl has none for a user, users and the status.
pub(super) fn fields(answer: &AuthAnswer<'_>, to: &mut fields::Fields) -> Option<()> {
    match answer {
        AuthAnswer::Changed { header, .. } => to.header(header),
        AuthAnswer::Role { response, .. } => {
            to.header(&response.header);
            for permission in &response.perm {
                // Go's printer puts a second space here.
                let name = permission.perm_type().as_str_name();
                to.field("PermType", format_args!(" {name}"));
                to.field("Key", quote(&permission.key));
                to.field("RangeEnd", quote(&permission.range_end));
            }
        }
        AuthAnswer::Roles(response) => {
            to.header(&response.header);
            let names = response.roles.iter();
            let names: Vec<String> = names.map(|name| quote(name.as_bytes())).collect();
            to.list("Roles", &names);
        }
        AuthAnswer::Status(_) | AuthAnswer::User { .. } | AuthAnswer::Users(_) => return None,
    }
    Some(())
}

/// The JSON form.
pub(super) fn json(answer: &AuthAnswer<'_>) -> String {
    json::object(|o| match answer {
        AuthAnswer::Changed { header, .. } => json::header(o, header),
        AuthAnswer::Status(r) => {
            json::header(o, &r.header);
            o.flag("enabled", r.enabled);
            o.number("authRevision", r.auth_revision);
        }
        AuthAnswer::User { response: r, .. } => {
            json::header(o, &r.header);
            o.list("roles", &r.roles, |role| json::quoted(role));
        }
        AuthAnswer::Users(r) => {
            json::header(o, &r.header);
            o.list("users", &r.users, |user| json::quoted(user));
        }
        AuthAnswer::Roles(r) => {
            json::header(o, &r.header);
            o.list("roles", &r.roles, |role| json::quoted(role));
        }
        AuthAnswer::Role { response: r, .. } => {
            json::header(o, &r.header);
            o.list("perm", &r.perm, |permission| {
                json::object(|o| {
                    o.number("permType", permission.perm_type);
                    o.bytes("key", &permission.key);
                    o.bytes("range_end", &permission.range_end);
                })
            });
        }
    })
}

/// The protobuf form. All changes answer alike: with a header as field 1.
pub(super) fn protobuf(answer: &AuthAnswer<'_>) -> Vec<u8> {
    match answer {
        AuthAnswer::Changed { header, .. } => AuthUserListResponse {
            header: **header,
            users: Vec::new(),
        }
        .encode_to_vec(),
        AuthAnswer::Status(response) => response.encode_to_vec(),
        AuthAnswer::User { response, .. } => response.encode_to_vec(),
        AuthAnswer::Users(response) => response.encode_to_vec(),
        AuthAnswer::Role { response, .. } => response.encode_to_vec(),
        AuthAnswer::Roles(response) => response.encode_to_vec(),
    }
}
