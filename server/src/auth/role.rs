//! A role: a name and what it permits, as etcd stores it.

use std::sync::Arc;

use bytes::Bytes;
use kv_proto::authpb::{self, Permission, permission::Type};
use kv_proto::key_range::OPEN_END;

use crate::{Error, Result};

/// The role that may do everything.
pub(crate) const ROOT_ROLE: &str = "root";

/// One role. Permissions are sorted by key.
#[derive(Clone, Debug, PartialEq)]
pub(crate) struct Role(pub(super) authpb::Role);

impl Role {
    pub(super) fn new(name: &str) -> Role {
        Role(authpb::Role {
            name: Bytes::copy_from_slice(name.as_bytes()),
            key_permission: Vec::new(),
        })
    }

    /// What the role is shown to permit.
    pub(crate) fn permissions(&self) -> Vec<Permission> {
        if self.0.name == ROOT_ROLE {
            return vec![Permission {
                perm_type: Type::Readwrite as i32,
                key: Bytes::new(),
                range_end: Bytes::from_static(OPEN_END),
            }];
        }
        self.0.key_permission.clone()
    }

    /// The role with one more permission, or another type of one it has.
    ///
    /// Only the first permission on the key is compared, as etcd does: a second range from the same key is added again
    /// rather than changed unless it comes first.
    pub(super) fn granted(&self, permission: Permission) -> Arc<Role> {
        let mut role = self.clone();
        let permissions = &mut role.0.key_permission;
        let at = permissions.partition_point(|have| have.key < permission.key);
        match permissions.get_mut(at) {
            Some(have) if have.key == permission.key && have.range_end == permission.range_end => {
                have.perm_type = permission.perm_type;
            }
            _ => {
                permissions.push(permission);
                sort_by_key(permissions);
            }
        }
        Arc::new(role)
    }

    /// The role without the permission on exactly these keys.
    pub(super) fn revoked(&self, key: &[u8], range_end: &[u8]) -> Result<Arc<Role>> {
        let mut role = self.clone();
        let permissions = &mut role.0.key_permission;
        permissions.retain(|have| have.key != key || have.range_end != range_end);
        if permissions.len() == self.0.key_permission.len() {
            return Err(Error::PermissionNotGranted);
        }
        Ok(Arc::new(role))
    }
}

fn sort_by_key(permissions: &mut [Permission]) {
    permissions.sort_by(|a, b| a.key.cmp(&b.key));
}
