//! What a command needs, kind by kind.

use std::time::Duration;

use kv_mvcc::lease::LessorOptions;
use kv_proto::authpb::{Permission, permission::Type};
use kv_proto::command::AuthChange;
use kv_proto::commandpb::{AuthEnable, AuthUserAdd};
use kv_proto::etcdserverpb::{
    AlarmRequest, AuthRoleAddRequest, AuthRoleGrantPermissionRequest, AuthUserGrantRoleRequest,
    CompactionRequest, Compare, LeaseGrantRequest, LeaseRevokeRequest, RangeRequest,
};

use super::*;
use crate::Error;

/// `alice` reads `r`, writes `w`, and does both with `a`; lease 1 holds `a`, lease 2 holds `x`.
struct World {
    state: State,
    lessor: Lessor,
}

impl World {
    fn new() -> World {
        let mut state = State::default();
        let mut change = |change: AuthChange| {
            let (next, _) = state.changed(&change).unwrap();
            state = next;
        };
        for name in ["root", "alice"] {
            change(AuthChange::UserAdd(AuthUserAdd {
                name: name.into(),
                no_password: true,
                ..Default::default()
            }));
        }
        change(AuthChange::RoleAdd(AuthRoleAddRequest {
            name: "role".into(),
        }));
        for (perm_type, key) in [
            (Type::Read, "r"),
            (Type::Write, "w"),
            (Type::Readwrite, "a"),
        ] {
            let perm = Permission {
                perm_type: perm_type as i32,
                key: key.into(),
                ..Default::default()
            };
            change(AuthChange::RoleGrantPermission(
                AuthRoleGrantPermissionRequest {
                    name: "role".into(),
                    perm: Some(perm),
                },
            ));
        }
        for (user, role) in [("root", "root"), ("alice", "role")] {
            change(AuthChange::UserGrantRole(AuthUserGrantRoleRequest {
                user: user.into(),
                role: role.into(),
            }));
        }
        change(AuthChange::Enable(AuthEnable {}));
        let lessor = Lessor::new(LessorOptions::default());
        for (lease, key) in [(1, "a"), (2, "x")] {
            lessor.grant(lease, 60, Duration::ZERO).unwrap();
            lessor.attach(lease, &key.into()).unwrap();
        }
        World { state, lessor }
    }

    fn alice(&self, body: &Body) -> Result<()> {
        let caller = Caller::User {
            name: "alice".into(),
            revision: self.state.revision(),
        };
        self.state.check(&caller, &self.lessor, body)
    }

    #[track_caller]
    fn permits(&self, body: Body) {
        assert_eq!(self.alice(&body), Ok(()), "{body:?}");
    }

    #[track_caller]
    fn denies(&self, body: Body) {
        assert_eq!(self.alice(&body), Err(Error::PermissionDenied), "{body:?}");
    }
}

fn put(key: &'static str) -> PutRequest {
    PutRequest {
        key: key.into(),
        ..Default::default()
    }
}

fn delete(key: &'static str) -> DeleteRangeRequest {
    DeleteRangeRequest {
        key: key.into(),
        ..Default::default()
    }
}

fn op(request: Request) -> RequestOp {
    RequestOp {
        request: Some(request),
    }
}

/// The operation in the branch that a transaction without compares does not take, `depth` transactions down.
fn nested(depth: usize, request: Request) -> Body {
    let mut txn = TxnRequest {
        failure: vec![op(request)],
        ..Default::default()
    };
    for _ in 0..depth {
        txn = TxnRequest {
            success: vec![op(Request::RequestTxn(txn))],
            ..Default::default()
        };
    }
    Body::Txn(txn)
}

/// Alone, and at each depth of a transaction.
fn everywhere(request: Request) -> Vec<Body> {
    let alone = match request.clone() {
        Request::RequestPut(put) => Some(Body::Put(put)),
        Request::RequestDeleteRange(delete) => Some(Body::DeleteRange(delete)),
        _ => None,
    };
    let nested = (0..3).map(|depth| nested(depth, request.clone()));
    alone.into_iter().chain(nested).collect()
}

#[test]
fn nested_transactions_need_what_they_would_do_in_any_branch() {
    let world = World::new();
    for key in ["x", "r"] {
        everywhere(Request::RequestPut(put(key)))
            .into_iter()
            .for_each(|body| world.denies(body));
        everywhere(Request::RequestDeleteRange(delete(key)))
            .into_iter()
            .for_each(|body| world.denies(body));
    }
    let range = |key: &'static str| {
        Request::RequestRange(RangeRequest {
            key: key.into(),
            ..Default::default()
        })
    };
    for key in ["x", "w"] {
        everywhere(range(key))
            .into_iter()
            .for_each(|body| world.denies(body));
    }
    everywhere(range("r"))
        .into_iter()
        .for_each(|body| world.permits(body));
    everywhere(Request::RequestPut(put("w")))
        .into_iter()
        .for_each(|body| world.permits(body));
    // A compare tells what is there.
    let compare = |key: &'static str| TxnRequest {
        compare: vec![Compare {
            key: key.into(),
            ..Default::default()
        }],
        ..Default::default()
    };
    world.denies(Body::Txn(compare("w")));
    world.denies(nested(2, Request::RequestTxn(compare("w"))));
    world.permits(Body::Txn(compare("r")));
}

#[test]
fn a_previous_value_has_to_be_readable() {
    let world = World::new();
    let put = |key: &'static str| {
        Request::RequestPut(PutRequest {
            prev_kv: true,
            ..put(key)
        })
    };
    let delete = |key: &'static str| {
        Request::RequestDeleteRange(DeleteRangeRequest {
            prev_kv: true,
            ..delete(key)
        })
    };
    for request in [put("w"), delete("w")] {
        everywhere(request)
            .into_iter()
            .for_each(|body| world.denies(body));
    }
    for request in [put("a"), delete("a")] {
        everywhere(request)
            .into_iter()
            .for_each(|body| world.permits(body));
    }
}

#[test]
fn a_key_is_put_only_on_a_lease_whose_keys_are_writable() {
    let world = World::new();
    let on = |lease: i64| Request::RequestPut(PutRequest { lease, ..put("a") });
    everywhere(on(2))
        .into_iter()
        .for_each(|body| world.denies(body));
    everywhere(on(1))
        .into_iter()
        .for_each(|body| world.permits(body));
    // That there is no such lease is said when it is carried out.
    world.permits(Body::Put(PutRequest {
        lease: 9,
        ..put("a")
    }));
}

#[test]
fn a_lease_is_revoked_by_those_who_may_write_its_keys() {
    let world = World::new();
    world.denies(Body::LeaseRevoke(LeaseRevokeRequest { id: 2 }));
    world.permits(Body::LeaseRevoke(LeaseRevokeRequest { id: 1 }));
    world.permits(Body::LeaseRevoke(LeaseRevokeRequest { id: 9 }));
}

#[test]
fn nobody_is_asked_for_a_name_and_the_member_for_nothing() {
    let world = World::new();
    let bodies = [
        Body::Put(put("a")),
        Body::LeaseGrant(LeaseGrantRequest::default()),
        Body::LeaseRevoke(LeaseRevokeRequest { id: 1 }),
        Body::Alarm(AlarmRequest::default()),
        Body::Compaction(CompactionRequest::default()),
        Body::Auth(AuthChange::Enable(AuthEnable {})),
    ];
    for body in bodies {
        let check = |caller| world.state.check(&caller, &world.lessor, &body);
        assert_eq!(check(Caller::Nobody), Err(Error::UserEmpty), "{body:?}");
        assert_eq!(check(Caller::Member), Ok(()), "{body:?}");
    }
    let disabled = State::default();
    let body = Body::Put(put("x"));
    assert_eq!(
        disabled.check(&Caller::Nobody, &world.lessor, &body),
        Ok(())
    );
}

#[test]
fn what_concerns_no_key_is_for_root() {
    let world = World::new();
    world.denies(Body::Compaction(CompactionRequest::default()));
    world.denies(Body::Alarm(AlarmRequest {
        action: AlarmAction::Deactivate as i32,
        ..Default::default()
    }));
    world.denies(Body::Auth(AuthChange::UserAdd(AuthUserAdd::default())));
    world.permits(Body::Alarm(AlarmRequest::default()));
    world.permits(Body::LeaseGrant(LeaseGrantRequest::default()));
}
