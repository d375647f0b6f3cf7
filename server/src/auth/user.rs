//! A user: a name, a password hash and roles, as etcd stores it, with what the roles permit.

use std::sync::Arc;

use bytes::Bytes;
use kv_proto::authpb;

use super::range_permission::RangePermissions;
use super::role::ROOT_ROLE;
use crate::{Error, Result};

/// The user without whom auth cannot be enabled.
pub(crate) const ROOT_USER: &str = "root";

/// One user. Roles are sorted.
#[derive(Clone, Debug, PartialEq)]
pub(crate) struct User {
    pub(super) record: authpb::User,
    pub(super) permissions: RangePermissions,
}

impl User {
    pub(super) fn new(name: &str, password_hash: Bytes, no_password: bool) -> User {
        User {
            record: authpb::User {
                name: Bytes::copy_from_slice(name.as_bytes()),
                password: password_hash,
                roles: Vec::new(),
                options: Some(authpb::UserAddOptions { no_password }),
            },
            permissions: RangePermissions::default(),
        }
    }

    /// Whether the user may do everything.
    pub(crate) fn is_root(&self) -> bool {
        self.has_role(ROOT_ROLE)
    }

    /// Whether the user has the role `name`.
    pub(crate) fn has_role(&self, name: &str) -> bool {
        self.record
            .roles
            .binary_search_by(|have| have.as_str().cmp(name))
            .is_ok()
    }

    /// The user's roles, sorted.
    pub(crate) fn roles(&self) -> &[String] {
        &self.record.roles
    }

    /// What a password is compared with; [`Error::NoPasswordUser`] if none was ever to be given.
    pub(crate) fn password_hash(&self) -> Result<Bytes> {
        if self.has_no_password() {
            return Err(Error::NoPasswordUser);
        }
        Ok(self.record.password.clone())
    }

    pub(super) fn has_no_password(&self) -> bool {
        self.record
            .options
            .as_ref()
            .is_some_and(|options| options.no_password)
    }

    pub(super) fn with_password(&self, hash: Bytes) -> Arc<User> {
        let mut user = self.clone();
        user.record.password = hash;
        Arc::new(user)
    }

    pub(super) fn with_role(&self, name: &str) -> User {
        let mut user = self.clone();
        user.record.roles.push(name.to_owned());
        user.record.roles.sort();
        user
    }

    pub(super) fn without_role(&self, name: &str) -> User {
        let mut user = self.clone();
        user.record.roles.retain(|role| role != name);
        user
    }
}
