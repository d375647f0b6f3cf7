//! Users, roles and whether auth is enabled: one immutable state, replaced as a whole by the apply loop.
//!
//! Each change of users or roles, and disabling, raises the auth revision. Whoever looks at the state keeps the one it
//! looked at, so a check and the revision it holds for belong together. Stored as in etcd's buckets: `authEnabled` and
//! `authRevision`, users and roles as protobufs under their names. Source: etcd 3.7, auth/store.go.

use std::collections::BTreeMap;
use std::ops::ControlFlow;
use std::sync::Arc;

use anyhow::Context;
use base64::Engine;
use base64::engine::general_purpose::STANDARD as BASE64;
use bytes::Bytes;
use kv_mvcc::backend::{Backend, Keyspace, Op};
use kv_proto::authpb::{self, Permission};
use kv_proto::command::{AuthChange, Caller};
use kv_proto::commandpb::{AuthUserAdd, AuthUserChangePassword};
use kv_proto::etcdserverpb::{
    AuthRoleGrantPermissionRequest, AuthRoleRevokePermissionRequest, AuthUserGrantRoleRequest,
    AuthUserRevokeRoleRequest,
};
use prost::Message;

use super::range_permission::{self, Access, RangePermissions};
use super::role::{ROOT_ROLE, Role};
use super::user::{ROOT_USER, User};
use crate::{Error, Result};

const ENABLED: &[u8] = b"authEnabled";
const REVISION: &[u8] = b"authRevision";

/// All of auth that is agreed on.
#[derive(Clone, Debug, PartialEq)]
pub(crate) struct State {
    enabled: bool,
    revision: u64,
    users: BTreeMap<String, Arc<User>>,
    roles: BTreeMap<String, Arc<Role>>,
}

impl Default for State {
    fn default() -> State {
        State {
            enabled: false,
            revision: 1,
            users: BTreeMap::new(),
            roles: BTreeMap::new(),
        }
    }
}

impl State {
    /// Reads the state that `backend` holds; without one, that of a new cluster.
    pub(crate) fn load(backend: &Backend) -> anyhow::Result<State> {
        let view = backend.view()?;
        let mut state = State::default();
        if let Some(enabled) = view.get(Keyspace::Auth, ENABLED)? {
            state.enabled = enabled[..] == [1];
        }
        if let Some(revision) = view.get(Keyspace::Auth, REVISION)? {
            let bytes: [u8; 8] = revision[..]
                .try_into()
                .context("the auth revision does not have 8 bytes")?;
            state.revision = u64::from_be_bytes(bytes);
        }
        let scan = |keyspace| -> anyhow::Result<Vec<(String, Bytes)>> {
            let mut items = Vec::new();
            view.scan(keyspace, &[], None, &mut |name, value| {
                let name = String::from_utf8_lossy(name).into_owned();
                items.push((name, Bytes::copy_from_slice(value)));
                ControlFlow::Continue(())
            })?;
            Ok(items)
        };
        for (name, value) in scan(Keyspace::AuthRoles)? {
            let role = authpb::Role::decode(value)
                .with_context(|| format!("the role {name:?} cannot be read"))?;
            state.roles.insert(name, Arc::new(Role(role)));
        }
        for (name, value) in scan(Keyspace::AuthUsers)? {
            let record = authpb::User::decode(value)
                .with_context(|| format!("the user {name:?} cannot be read"))?;
            let permissions = state.permissions_of(&record.roles);
            let user = User {
                record,
                permissions,
            };
            state.users.insert(name, Arc::new(user));
        }
        Ok(state)
    }

    /// Whether callers are asked who they are.
    pub(crate) fn is_enabled(&self) -> bool {
        self.enabled
    }

    /// Counts changes, from 1.
    pub(crate) fn revision(&self) -> u64 {
        self.revision
    }

    /// The user `name`.
    pub(crate) fn user(&self, name: &str) -> Option<&User> {
        self.users.get(name).map(|user| &**user)
    }

    /// The role `name`.
    pub(crate) fn role(&self, name: &str) -> Option<&Role> {
        self.roles.get(name).map(|role| &**role)
    }

    /// Names of all users, sorted.
    pub(crate) fn user_names(&self) -> Vec<String> {
        self.users.keys().cloned().collect()
    }

    /// Names of all roles, sorted.
    pub(crate) fn role_names(&self) -> Vec<String> {
        self.roles.keys().cloned().collect()
    }

    /// Whether `caller` may do everything; for what concerns no key. The age of the identity does not matter here.
    pub(crate) fn check_admin(&self, caller: &Caller) -> Result<()> {
        if !self.enabled {
            return Ok(());
        }
        let name = match caller {
            Caller::Member => return Ok(()),
            Caller::Nobody => return Err(Error::UserEmpty),
            Caller::User { name, .. } if name.is_empty() => return Err(Error::UserEmpty),
            Caller::User { name, .. } => name,
        };
        match self.user(name) {
            None => Err(Error::UserNotFound),
            Some(user) if user.is_root() => Ok(()),
            Some(_) => Err(Error::PermissionDenied),
        }
    }

    /// Whether anybody, known or not, is named.
    pub(crate) fn check_named(&self, caller: &Caller) -> Result<()> {
        if self.enabled && *caller == Caller::Nobody {
            return Err(Error::UserEmpty);
        }
        Ok(())
    }

    /// Whether `caller` may do this with all keys that `key` and `range_end` address.
    pub(crate) fn check_range(
        &self,
        caller: &Caller,
        access: Access,
        key: &[u8],
        range_end: &[u8],
    ) -> Result<()> {
        if !self.enabled {
            return Ok(());
        }
        let (name, revision) = match caller {
            Caller::Member => return Ok(()),
            Caller::Nobody => return Err(Error::UserEmpty),
            Caller::User { name, revision } => (name, *revision),
        };
        if revision == 0 {
            return Err(Error::UserEmpty);
        }
        if revision < self.revision {
            return Err(Error::AuthOldRevision);
        }
        let user = self.user(name).ok_or(Error::PermissionDenied)?;
        if user.is_root() || user.permissions.permits(access, key, range_end) {
            Ok(())
        } else {
            Err(Error::PermissionDenied)
        }
    }

    /// The state after `change`, and what to store for it. Nothing to store: no change.
    pub(super) fn changed(&self, change: &AuthChange) -> Result<(State, Vec<Op>)> {
        let mut next = self.clone();
        let mut ops = match change {
            AuthChange::Enable(_) => return self.enabled(),
            AuthChange::Disable(_) if !self.enabled => return Ok((next, Vec::new())),
            AuthChange::Disable(_) => {
                next.enabled = false;
                vec![put_enabled(false)]
            }
            AuthChange::UserAdd(request) => next.user_add(request)?,
            AuthChange::UserDelete(request) => next.user_delete(&request.name)?,
            AuthChange::UserChangePassword(request) => next.user_change_password(request)?,
            AuthChange::UserGrantRole(request) => next.user_grant_role(request)?,
            AuthChange::UserRevokeRole(request) => next.user_revoke_role(request)?,
            AuthChange::RoleAdd(request) => next.role_add(&request.name)?,
            AuthChange::RoleDelete(request) => next.role_delete(&request.role)?,
            AuthChange::RoleGrantPermission(request) => next.role_grant(request)?,
            AuthChange::RoleRevokePermission(request) => next.role_revoke(request)?,
        };
        if !ops.is_empty() {
            next.revision += 1;
            let revision = Bytes::copy_from_slice(&next.revision.to_be_bytes());
            let key = Bytes::from_static(REVISION);
            ops.push(Op::Put(Keyspace::Auth, key, revision));
        }
        Ok((next, ops))
    }

    /// Enabling does not raise the revision.
    fn enabled(&self) -> Result<(State, Vec<Op>)> {
        if self.enabled {
            return Ok((self.clone(), Vec::new()));
        }
        let root = self.user(ROOT_USER).ok_or(Error::RootUserNotExist)?;
        if !root.is_root() {
            return Err(Error::RootRoleNotExist);
        }
        let next = State {
            enabled: true,
            ..self.clone()
        };
        Ok((next, vec![put_enabled(true)]))
    }

    fn user_add(&mut self, request: &AuthUserAdd) -> Result<Vec<Op>> {
        if request.name.is_empty() {
            return Err(Error::UserEmpty);
        }
        if self.users.contains_key(&request.name) {
            return Err(Error::UserAlreadyExists);
        }
        let hash = if request.no_password {
            Bytes::new()
        } else {
            decoded(&request.hashed_password)?
        };
        let user = User::new(&request.name, hash, request.no_password);
        Ok(vec![self.put_user(&request.name, Arc::new(user))])
    }

    fn user_delete(&mut self, name: &str) -> Result<Vec<Op>> {
        if self.enabled && name == ROOT_USER {
            return Err(Error::InvalidAuthManagement);
        }
        self.users.remove(name).ok_or(Error::UserNotFound)?;
        let key = Bytes::copy_from_slice(name.as_bytes());
        Ok(vec![Op::Delete(Keyspace::AuthUsers, key)])
    }

    fn user_change_password(&mut self, request: &AuthUserChangePassword) -> Result<Vec<Op>> {
        let user = self.found_user(&request.name)?;
        let hash = if user.has_no_password() {
            Bytes::new()
        } else {
            decoded(&request.hashed_password)?
        };
        let user = user.with_password(hash);
        Ok(vec![self.put_user(&request.name, user)])
    }

    /// The root role need not exist to be granted.
    fn user_grant_role(&mut self, request: &AuthUserGrantRoleRequest) -> Result<Vec<Op>> {
        let user = self.found_user(&request.user)?;
        if request.role != ROOT_ROLE && !self.roles.contains_key(&request.role) {
            return Err(Error::RoleNotFound);
        }
        if user.has_role(&request.role) {
            return Ok(Vec::new());
        }
        let user = self.with_permissions(user.with_role(&request.role));
        Ok(vec![self.put_user(&request.user, user)])
    }

    fn user_revoke_role(&mut self, request: &AuthUserRevokeRoleRequest) -> Result<Vec<Op>> {
        if self.enabled && request.name == ROOT_USER && request.role == ROOT_ROLE {
            return Err(Error::InvalidAuthManagement);
        }
        let user = self.found_user(&request.name)?;
        if !user.has_role(&request.role) {
            return Err(Error::RoleNotGranted);
        }
        let user = self.with_permissions(user.without_role(&request.role));
        Ok(vec![self.put_user(&request.name, user)])
    }

    fn role_add(&mut self, name: &str) -> Result<Vec<Op>> {
        if name.is_empty() {
            return Err(Error::RoleEmpty);
        }
        if self.roles.contains_key(name) {
            return Err(Error::RoleAlreadyExists);
        }
        Ok(vec![self.put_role(name, Arc::new(Role::new(name)))])
    }

    fn role_delete(&mut self, name: &str) -> Result<Vec<Op>> {
        if self.enabled && name == ROOT_ROLE {
            return Err(Error::InvalidAuthManagement);
        }
        self.roles.remove(name).ok_or(Error::RoleNotFound)?;
        let key = Bytes::copy_from_slice(name.as_bytes());
        let mut ops = vec![Op::Delete(Keyspace::AuthRoles, key)];
        for (user_name, user) in self.users_with(name) {
            let user = self.with_permissions(user.without_role(name));
            ops.push(self.put_user(&user_name, user));
        }
        Ok(ops)
    }

    fn role_grant(&mut self, request: &AuthRoleGrantPermissionRequest) -> Result<Vec<Op>> {
        let permission = request.perm.as_ref().ok_or(Error::PermissionNotGiven)?;
        if !range_permission::is_valid(&permission.key, &permission.range_end) {
            return Err(Error::InvalidAuthManagement);
        }
        let role = self.role(&request.name).ok_or(Error::RoleNotFound)?;
        let role = role.granted(Permission::clone(permission));
        let op = self.put_role(&request.name, role);
        self.refresh_users_with(&request.name);
        Ok(vec![op])
    }

    fn role_revoke(&mut self, request: &AuthRoleRevokePermissionRequest) -> Result<Vec<Op>> {
        let role = self.role(&request.role).ok_or(Error::RoleNotFound)?;
        let role = role.revoked(&request.key, &request.range_end)?;
        let op = self.put_role(&request.role, role);
        self.refresh_users_with(&request.role);
        Ok(vec![op])
    }

    fn found_user(&self, name: &str) -> Result<Arc<User>> {
        self.users.get(name).cloned().ok_or(Error::UserNotFound)
    }

    fn users_with(&self, role: &str) -> Vec<(String, Arc<User>)> {
        let having = self.users.iter().filter(|(_, user)| user.has_role(role));
        having
            .map(|(name, user)| (name.clone(), user.clone()))
            .collect()
    }

    fn refresh_users_with(&mut self, role: &str) {
        for (name, user) in self.users_with(role) {
            let user = self.with_permissions(User::clone(&user));
            self.users.insert(name, user);
        }
    }

    fn with_permissions(&self, mut user: User) -> Arc<User> {
        user.permissions = self.permissions_of(&user.record.roles);
        Arc::new(user)
    }

    fn permissions_of(&self, roles: &[String]) -> RangePermissions {
        let roles = roles.iter().filter_map(|name| self.roles.get(name));
        RangePermissions::union(roles.flat_map(|role| &role.0.key_permission))
    }

    fn put_user(&mut self, name: &str, user: Arc<User>) -> Op {
        let op = put(Keyspace::AuthUsers, name, &user.record);
        self.users.insert(name.to_owned(), user);
        op
    }

    fn put_role(&mut self, name: &str, role: Arc<Role>) -> Op {
        let op = put(Keyspace::AuthRoles, name, &role.0);
        self.roles.insert(name.to_owned(), role);
        op
    }
}

fn put(keyspace: Keyspace, name: &str, record: &impl Message) -> Op {
    let key = Bytes::copy_from_slice(name.as_bytes());
    Op::Put(keyspace, key, record.encode_to_vec().into())
}

fn put_enabled(enabled: bool) -> Op {
    let value: &'static [u8] = if enabled { &[1] } else { &[0] };
    Op::Put(
        Keyspace::Auth,
        Bytes::from_static(ENABLED),
        Bytes::from_static(value),
    )
}

/// A password hash as it came through the log; etcd has this text for one that is not base64.
fn decoded(hashed_password: &str) -> Result<Bytes> {
    let hash = BASE64.decode(hashed_password);
    hash.map(Bytes::from).map_err(|_| Error::NoPasswordUser)
}

#[cfg(test)]
mod tests;
