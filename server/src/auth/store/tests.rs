//! What changes users and roles, what is stored for it, and that it comes back.

use kv_mvcc::backend::{MemoryDisk, Options};
use kv_proto::authpb::permission::Type;
use kv_proto::commandpb::{AuthDisable, AuthEnable};
use kv_proto::etcdserverpb::{AuthRoleAddRequest, AuthRoleDeleteRequest, AuthUserDeleteRequest};

use super::*;

/// A state and the store that keeps it.
struct World {
    state: State,
    backend: Backend,
}

impl World {
    fn new() -> World {
        let backend = Backend::open_in_memory(&MemoryDisk::default(), Options::default()).unwrap();
        World {
            state: State::default(),
            backend,
        }
    }

    /// Auth enabled, `alice` with the role `reader`, which reads `a` to `c`.
    fn with_alice() -> World {
        let mut world = World::new();
        for change in [
            user_add("root"),
            grant_role("root", "root"),
            user_add("alice"),
            role_add("reader"),
            grant("reader", Type::Read, "a", "c"),
            grant_role("alice", "reader"),
            AuthChange::Enable(AuthEnable {}),
        ] {
            world.change(change).unwrap();
        }
        world
    }

    fn change(&mut self, change: AuthChange) -> Result<()> {
        let (next, ops) = self.state.changed(&change)?;
        self.state = next;
        self.backend.write(ops);
        assert_eq!(
            State::load(&self.backend).unwrap(),
            self.state,
            "{change:?}"
        );
        Ok(())
    }

    fn reads(&self, name: &str, key: &str) -> Result<()> {
        let caller = caller(name, self.state.revision());
        self.state
            .check_range(&caller, Access::Read, key.as_bytes(), b"")
    }
}

fn caller(name: &str, revision: u64) -> Caller {
    Caller::User {
        name: name.into(),
        revision,
    }
}

fn user_add(name: &str) -> AuthChange {
    AuthChange::UserAdd(AuthUserAdd {
        name: name.into(),
        hashed_password: BASE64.encode("hash"),
        no_password: false,
    })
}

fn user_delete(name: &str) -> AuthChange {
    AuthChange::UserDelete(AuthUserDeleteRequest { name: name.into() })
}

fn role_add(name: &str) -> AuthChange {
    AuthChange::RoleAdd(AuthRoleAddRequest { name: name.into() })
}

fn role_delete(role: &str) -> AuthChange {
    AuthChange::RoleDelete(AuthRoleDeleteRequest { role: role.into() })
}

fn grant_role(user: &str, role: &str) -> AuthChange {
    AuthChange::UserGrantRole(AuthUserGrantRoleRequest {
        user: user.into(),
        role: role.into(),
    })
}

fn revoke_role(name: &str, role: &str) -> AuthChange {
    AuthChange::UserRevokeRole(AuthUserRevokeRoleRequest {
        name: name.into(),
        role: role.into(),
    })
}

fn grant(role: &str, perm_type: Type, key: &str, range_end: &str) -> AuthChange {
    let perm = Permission {
        perm_type: perm_type as i32,
        key: key.to_owned().into(),
        range_end: range_end.to_owned().into(),
    };
    AuthChange::RoleGrantPermission(AuthRoleGrantPermissionRequest {
        name: role.into(),
        perm: Some(perm),
    })
}

fn revoke(role: &str, key: &str, range_end: &str) -> AuthChange {
    AuthChange::RoleRevokePermission(AuthRoleRevokePermissionRequest {
        role: role.into(),
        key: key.to_owned().into(),
        range_end: range_end.to_owned().into(),
    })
}

#[test]
fn the_revision_counts_changes_and_disabling_but_not_enabling() {
    let mut world = World::new();
    assert_eq!(world.state.revision(), 1);
    world.change(user_add("root")).unwrap();
    world.change(grant_role("root", "root")).unwrap();
    assert_eq!(world.state.revision(), 3);
    world.change(AuthChange::Enable(AuthEnable {})).unwrap();
    world.change(AuthChange::Enable(AuthEnable {})).unwrap();
    assert_eq!(world.state.revision(), 3);
    // Nothing changes, so nothing is counted.
    world.change(grant_role("root", "root")).unwrap();
    assert_eq!(world.change(user_delete("ghost")), Err(Error::UserNotFound));
    assert_eq!(world.state.revision(), 3);
    world.change(AuthChange::Disable(AuthDisable {})).unwrap();
    world.change(AuthChange::Disable(AuthDisable {})).unwrap();
    assert_eq!(world.state.revision(), 4);
}

#[test]
fn stored_users_and_roles_are_those_of_etcd() {
    let world = World::with_alice();
    let get = |keyspace, name: &'static [u8]| {
        world.backend.get(keyspace, name).unwrap().unwrap().to_vec()
    };
    assert_eq!(get(Keyspace::Auth, b"authEnabled"), [1]);
    assert_eq!(get(Keyspace::Auth, b"authRevision"), 7u64.to_be_bytes());
    // name=1, password=2, roles=3, options=4, which is there and empty.
    assert_eq!(
        get(Keyspace::AuthUsers, b"alice"),
        b"\x0a\x05alice\x12\x04hash\x1a\x06reader\x22\x00"
    );
    assert_eq!(
        get(Keyspace::AuthRoles, b"reader"),
        b"\x0a\x06reader\x12\x06\x12\x01a\x1a\x01c"
    );
}

#[test]
fn permissions_follow_roles_and_roles_follow_permissions() {
    let mut world = World::with_alice();
    assert_eq!(world.reads("alice", "b"), Ok(()));
    assert_eq!(world.reads("alice", "c"), Err(Error::PermissionDenied));
    world.change(grant("reader", Type::Read, "c", "")).unwrap();
    assert_eq!(world.reads("alice", "c"), Ok(()));
    world.change(revoke("reader", "a", "c")).unwrap();
    assert_eq!(world.reads("alice", "b"), Err(Error::PermissionDenied));
    assert_eq!(world.reads("alice", "c"), Ok(()));
    world.change(revoke_role("alice", "reader")).unwrap();
    assert_eq!(world.reads("alice", "c"), Err(Error::PermissionDenied));
    world.change(grant_role("alice", "reader")).unwrap();
    world.change(role_delete("reader")).unwrap();
    assert_eq!(world.reads("alice", "c"), Err(Error::PermissionDenied));
    assert!(world.state.user("alice").unwrap().roles().is_empty());
}

#[test]
fn a_new_type_replaces_the_old_one_of_the_same_keys() {
    let mut world = World::with_alice();
    world
        .change(grant("reader", Type::Write, "a", "c"))
        .unwrap();
    assert_eq!(world.reads("alice", "b"), Err(Error::PermissionDenied));
    assert_eq!(world.state.role("reader").unwrap().permissions().len(), 1);
}

#[test]
fn while_auth_is_enabled_root_stays_root() {
    let mut world = World::with_alice();
    world.change(role_add("root")).unwrap();
    for change in [
        user_delete("root"),
        role_delete("root"),
        revoke_role("root", "root"),
    ] {
        assert_eq!(world.change(change), Err(Error::InvalidAuthManagement));
    }
    world.change(AuthChange::Disable(AuthDisable {})).unwrap();
    world.change(revoke_role("root", "root")).unwrap();
    let enable = AuthChange::Enable(AuthEnable {});
    assert_eq!(world.change(enable.clone()), Err(Error::RootRoleNotExist));
    world.change(user_delete("root")).unwrap();
    assert_eq!(world.change(enable), Err(Error::RootUserNotExist));
}

#[test]
fn an_identity_of_an_older_revision_sees_no_key() {
    let world = World::with_alice();
    let check = |caller: Caller| world.state.check_range(&caller, Access::Read, b"a", b"");
    let now = world.state.revision();
    assert_eq!(check(caller("alice", now - 1)), Err(Error::AuthOldRevision));
    assert_eq!(check(caller("root", now - 1)), Err(Error::AuthOldRevision));
    assert_eq!(check(caller("alice", now + 1)), Ok(()));
    assert_eq!(check(caller("alice", 0)), Err(Error::UserEmpty));
    assert_eq!(check(Caller::Nobody), Err(Error::UserEmpty));
    assert_eq!(check(caller("ghost", now)), Err(Error::PermissionDenied));
    assert_eq!(check(Caller::Member), Ok(()));
    // What concerns no key asks for the name only.
    assert_eq!(world.state.check_admin(&caller("root", 0)), Ok(()));
    assert_eq!(
        world.state.check_admin(&caller("ghost", now)),
        Err(Error::UserNotFound)
    );
}

#[test]
fn a_user_without_a_password_never_gets_one() {
    let mut world = World::new();
    let add = AuthUserAdd {
        name: "n".into(),
        hashed_password: "not looked at".into(),
        no_password: true,
    };
    world.change(AuthChange::UserAdd(add)).unwrap();
    let change = AuthUserChangePassword {
        name: "n".into(),
        hashed_password: BASE64.encode("hash"),
    };
    world
        .change(AuthChange::UserChangePassword(change))
        .unwrap();
    let user = world.state.user("n").unwrap();
    assert_eq!(user.password_hash(), Err(Error::NoPasswordUser));
    assert!(user.record.password.is_empty());
}

#[test]
fn a_hash_that_is_not_base64_is_refused_and_changes_nothing() {
    let mut world = World::new();
    let add = AuthUserAdd {
        name: "n".into(),
        hashed_password: "####".into(),
        no_password: false,
    };
    let refused = world.change(AuthChange::UserAdd(add));
    assert_eq!(refused, Err(Error::NoPasswordUser));
    assert_eq!(world.state, State::default());
}
