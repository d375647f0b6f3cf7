//! What apply promises across restarts and builds.

use kv_mvcc::StoreOptions;
use kv_mvcc::backend::{Backend, MemoryDisk, Options};
use kv_proto::authpb::{Permission, permission::Type};
use kv_proto::command::{AuthChange, HEADER_BYTES};
use kv_proto::commandpb::{
    AuthDisable, AuthEnable, AuthUserAdd, AuthUserChangePassword, Authenticate, ClusterForce,
    ClusterVersionSet, DowngradeSet, MemberAdd, MemberPromote, MemberPublish, MemberRemove,
    MemberUpdate, QuotaAlarm,
};
use kv_proto::etcdserverpb::alarm_request::AlarmAction;
use kv_proto::etcdserverpb::compare::{CompareResult, CompareTarget, TargetUnion};
use kv_proto::etcdserverpb::request_op::Request;
use kv_proto::etcdserverpb::{
    AlarmRequest, AuthRoleAddRequest, AuthRoleDeleteRequest, AuthRoleGrantPermissionRequest,
    AuthRoleRevokePermissionRequest, AuthUserDeleteRequest, AuthUserGrantRoleRequest,
    AuthUserRevokeRoleRequest, CompactionRequest, Compare, DeleteRangeRequest,
    LeaseCheckpointRequest, LeaseGrantRequest, LeaseRevokeRequest, PutRequest, RequestOp,
    TxnRequest,
};

use kv_proto::key_range::KeyRange;

use super::*;

/// Commands of version 1, one a line in hex. Entries like these are in users' logs: never change a line.
const COMMANDS_V1: &str = include_str!("../../tests/fixtures/commands-v1.hex");
/// The same for commands that came with upgrades and recovery: a downgrade that begins and ends, and what
/// `--force-new-cluster` writes, which comes with a membership.
const CLUSTER_COMMANDS_V1: &str = include_str!("../../tests/fixtures/cluster-commands-v1.hex");
/// HashKV after all of them.
const HASH_V1: u32 = 0x6179cef4;

/// More commands of version 1, in the same form: users, roles, and what callers may do.
const COMMANDS_AUTH: &str = include_str!("../../tests/fixtures/commands-auth.hex");
/// HashKV after all of them.
const HASH_AUTH: u32 = 0x40ce8a19;

const MEMBER: u64 = 7;

fn applier(disk: &MemoryDisk) -> Applier {
    applier_with(disk, &Config::default())
}

fn applier_with(disk: &MemoryDisk, config: &Config) -> Applier {
    let options = Options {
        commit_interval: Duration::from_secs(3600),
        ..Options::default()
    };
    let backend = Backend::open_in_memory(disk, options).unwrap();
    let store = Store::open(backend, StoreOptions::default()).unwrap();
    let mut applier = Applier::new(
        store,
        Arc::new(Cluster::new(1)),
        Arc::default(),
        Arc::new(Auth::new(config, Instant::now()).unwrap()),
        Wait::new(1),
        Arc::new(Metrics::new(config)),
        MEMBER,
        config,
        Instant::now(),
        CancellationToken::new(),
    );
    applier.applied().unwrap();
    applier
}

fn command(body: Body) -> Bytes {
    Command {
        origin: MEMBER,
        request_id: 0,
        caller: Caller::Nobody,
        body,
    }
    .encode()
}

fn put(key: &'static str, value: &'static str) -> PutRequest {
    PutRequest {
        key: key.into(),
        value: value.into(),
        ..Default::default()
    }
}

fn entry(index: u64, commands: Vec<Bytes>) -> CommittedEntry {
    CommittedEntry {
        index,
        term: 1,
        body: EntryBody::Commands(commands),
    }
}

/// Each kind once; what the fixture was made from.
fn examples() -> Vec<Body> {
    let txn = TxnRequest {
        compare: vec![Compare {
            key: "a".into(),
            target: CompareTarget::Version as i32,
            result: CompareResult::Equal as i32,
            target_union: Some(TargetUnion::Version(1)),
            ..Default::default()
        }],
        success: vec![
            RequestOp {
                request: Some(Request::RequestPut(put("b", "2"))),
            },
            RequestOp {
                request: Some(Request::RequestPut(put("c", "3"))),
            },
        ],
        failure: vec![RequestOp {
            request: Some(Request::RequestPut(put("never", ""))),
        }],
    };
    vec![
        Body::Put(put("a", "1")),
        Body::Txn(txn),
        Body::LeaseGrant(LeaseGrantRequest { id: 99, ttl: 600 }),
        Body::Put(PutRequest {
            lease: 99,
            ..put("leased", "x")
        }),
        Body::LeaseCheckpoint(LeaseCheckpointRequest::default()),
        Body::DeleteRange(DeleteRangeRequest {
            key: "b".into(),
            ..Default::default()
        }),
        Body::LeaseRevoke(LeaseRevokeRequest { id: 99 }),
        Body::Alarm(AlarmRequest {
            action: 1,
            member_id: 5,
            alarm: 1,
        }),
        Body::Put(put("refused", "by the alarm")),
        Body::Alarm(AlarmRequest {
            action: 2,
            member_id: 5,
            alarm: 1,
        }),
        Body::MemberPublish(MemberPublish {
            member_id: 7,
            name: "n".into(),
            ..Default::default()
        }),
        Body::ClusterVersionSet(ClusterVersionSet {
            version: "3.7.0".into(),
        }),
        Body::Put(PutRequest {
            prev_kv: true,
            ..put("a", "4")
        }),
        Body::Compaction(CompactionRequest {
            revision: 3,
            physical: false,
        }),
        Body::QuotaAlarm(QuotaAlarm {
            member_id: 5,
            is_over: true,
        }),
    ]
}

/// Commands of auth and of callers, in the order that fixture was made from.
fn examples_of_auth() -> Vec<(Caller, Body)> {
    let user = |name: &str, revision| Caller::User {
        name: name.into(),
        revision,
    };
    let named = |name: &str| name.to_owned();
    let add = |name: &str| {
        Body::Auth(AuthChange::UserAdd(AuthUserAdd {
            name: named(name),
            hashed_password: "aGFzaA==".into(),
            no_password: false,
        }))
    };
    let permission = |key: &'static str| Permission {
        perm_type: Type::Readwrite as i32,
        key: key.into(),
        range_end: Bytes::new(),
    };
    let grant = |role: &str, key| {
        Body::Auth(AuthChange::RoleGrantPermission(
            AuthRoleGrantPermissionRequest {
                name: named(role),
                perm: Some(permission(key)),
            },
        ))
    };
    let role_of = |user: &str, role: &str| {
        Body::Auth(AuthChange::UserGrantRole(AuthUserGrantRoleRequest {
            user: named(user),
            role: named(role),
        }))
    };
    let role_add = |name: &str| {
        Body::Auth(AuthChange::RoleAdd(AuthRoleAddRequest {
            name: named(name),
        }))
    };
    let root = |revision| user("root", revision);
    vec![
        (Caller::Nobody, add("root")),
        (Caller::Nobody, role_of("root", "root")),
        (Caller::Nobody, add("ann")),
        (Caller::Nobody, role_add("r")),
        (Caller::Nobody, grant("r", "a")),
        (Caller::Nobody, role_of("ann", "r")),
        (
            Caller::Nobody,
            Body::Auth(AuthChange::Enable(AuthEnable {})),
        ),
        (
            Caller::Nobody,
            Body::Authenticate(Authenticate {
                name: named("ann"),
                simple_token: named("letters"),
            }),
        ),
        (user("ann", 7), Body::Put(put("a", "permitted"))),
        (user("ann", 7), Body::Put(put("b", "denied"))),
        (user("ann", 6), Body::Put(put("a", "old"))),
        (Caller::Nobody, Body::Put(put("a", "nobody"))),
        (Caller::Member, Body::Put(put("m", "the member"))),
        (
            root(7),
            Body::Auth(AuthChange::RoleRevokePermission(
                AuthRoleRevokePermissionRequest {
                    role: named("r"),
                    key: "a".into(),
                    range_end: Bytes::new(),
                },
            )),
        ),
        (user("ann", 8), Body::Put(put("a", "revoked"))),
        (
            root(8),
            Body::Auth(AuthChange::UserChangePassword(AuthUserChangePassword {
                name: named("ann"),
                hashed_password: "aGFzaDI=".into(),
            })),
        ),
        (
            root(9),
            Body::Auth(AuthChange::UserRevokeRole(AuthUserRevokeRoleRequest {
                name: named("ann"),
                role: named("r"),
            })),
        ),
        (
            root(10),
            Body::Auth(AuthChange::RoleDelete(AuthRoleDeleteRequest {
                role: named("r"),
            })),
        ),
        (
            root(11),
            Body::Auth(AuthChange::UserDelete(AuthUserDeleteRequest {
                name: named("ann"),
            })),
        ),
        (root(12), Body::Put(put("r", "root"))),
        (root(12), Body::Auth(AuthChange::Disable(AuthDisable {}))),
        (Caller::Nobody, Body::Put(put("n", "nobody"))),
    ]
}

#[test]
fn commands_of_auth_apply_to_the_same_state_for_ever() {
    let ours = examples_of_auth()
        .into_iter()
        .map(|(caller, body)| Command {
            origin: MEMBER,
            request_id: 0,
            caller,
            body,
        });
    let ours: Vec<String> = ours
        .map(|command| {
            command
                .encode()
                .iter()
                .map(|b| format!("{b:02x}"))
                .collect()
        })
        .collect();
    let theirs: Vec<&str> = COMMANDS_AUTH.lines().collect();
    assert_eq!(theirs, ours, "the encoding has changed");

    let mut applier = applier(&MemoryDisk::default());
    let entries = theirs
        .iter()
        .zip(1..)
        .map(|(line, index)| entry(index, vec![from_hex(line)]));
    applier.apply(entries.collect()).unwrap();

    let value = |key: &'static str| {
        let query = kv_mvcc::RangeQuery::new(KeyRange::Single(key.into()));
        let found = applier.store.range(&query).unwrap().kvs.pop();
        found.map(|kv| String::from_utf8(kv.value.to_vec()).unwrap())
    };
    assert_eq!(value("a").as_deref(), Some("permitted"));
    assert_eq!(value("b"), None);
    assert_eq!(value("m").as_deref(), Some("the member"));
    assert_eq!(value("r").as_deref(), Some("root"));
    assert_eq!(value("n").as_deref(), Some("nobody"));
    let auth = applier.auth.state();
    assert_eq!((auth.is_enabled(), auth.revision()), (false, 13));
    assert_eq!(auth.user_names(), ["root"]);
    assert!(auth.role_names().is_empty());
    assert_eq!(applier.store.hash_kv(0).unwrap().hash, HASH_AUTH);
}

#[test]
fn users_and_roles_survive_a_restart() {
    let disk = MemoryDisk::default();
    let mut first = applier(&disk);
    let commands = examples_of_auth()
        .into_iter()
        .take(9)
        .map(|(caller, body)| {
            let command = Command {
                origin: MEMBER,
                request_id: 0,
                caller,
                body,
            };
            command.encode()
        });
    let entries = commands
        .zip(1..)
        .map(|(command, index)| entry(index, vec![command]));
    first.apply(entries.collect()).unwrap();
    let before = first.auth.state();
    assert!(before.is_enabled());
    first.store.backend().checkpoint().unwrap();
    drop(first);

    let second = applier(&disk);
    restore_tables(
        second.store.backend(),
        &second.cluster,
        &second.alarms,
        &second.auth,
    )
    .unwrap();
    assert_eq!(second.auth.state(), before);
}

fn from_hex(line: &str) -> Bytes {
    let digits = line.as_bytes().chunks(2);
    digits
        .map(|d| u8::from_str_radix(std::str::from_utf8(d).unwrap(), 16).unwrap())
        .collect()
}

#[test]
fn commands_of_version_1_apply_to_the_same_hash_for_ever() {
    let mut applier = applier(&MemoryDisk::default());
    let entries = COMMANDS_V1
        .lines()
        .zip(1..)
        .map(|(line, index)| entry(index, vec![from_hex(line)]));
    applier.apply(entries.collect()).unwrap();
    assert_eq!(applier.store.revision(), 7);
    assert_eq!(applier.store.compacted(), 3);
    assert_eq!(applier.store.hash_kv(7).unwrap().hash, HASH_V1);
}

#[test]
fn the_fixture_holds_each_kind() {
    let kinds = |commands: Vec<Bytes>| -> Vec<&'static str> {
        commands
            .into_iter()
            .map(|c| Command::decode(c).unwrap().body.name())
            .collect()
    };
    let ours: Vec<Bytes> = examples().into_iter().map(command).collect();
    for bytes in &ours {
        assert!(bytes.len() >= HEADER_BYTES);
    }
    assert_eq!(
        kinds(COMMANDS_V1.lines().map(from_hex).collect()),
        kinds(ours)
    );
}

#[test]
fn commands_about_the_cluster_keep_their_bytes_and_their_effect() {
    let downgrade = |target: &str| {
        Body::DowngradeSet(DowngradeSet {
            target_version: target.into(),
        })
    };
    let ours = [
        downgrade("3.6.0"),
        downgrade(""),
        Body::ClusterForce(ClusterForce { id: MEMBER }),
    ];
    let stored: Vec<Bytes> = CLUSTER_COMMANDS_V1.lines().map(from_hex).collect();
    assert_eq!(stored, ours.map(command));

    let disk = MemoryDisk::default();
    let mut first = applier(&disk);
    let member = |id, is_learner| {
        let peer_urls = vec![format!("http://m{id}:1")];
        membership_entry(
            id,
            Body::MemberAdd(MemberAdd {
                id,
                peer_urls,
                is_learner,
            }),
        )
    };
    let [begins, ends, alone] = [0, 1, 2].map(|n| stored[n].clone());
    let numbered = (1..).zip([
        member(MEMBER, true),
        member(8, false),
        member(9, false),
        entry(4, vec![begins]),
    ]);
    let entries = numbered.map(|(index, entry)| CommittedEntry { index, ..entry });
    first.apply(entries.collect()).unwrap();
    assert_eq!(first.cluster.downgrade(), Some("3.6.0".parse().unwrap()));
    let alone = CommittedEntry {
        index: 6,
        term: 1,
        body: EntryBody::Membership {
            membership: "alone".into(),
            command: Some(alone),
        },
    };
    first.apply(vec![entry(5, vec![ends]), alone]).unwrap();

    let check = |applier: &Applier| {
        let rows = applier.cluster.members();
        assert_eq!(rows.len(), 1);
        assert_eq!((rows[0].id, rows[0].is_learner), (MEMBER, false));
        assert!(applier.cluster.is_removed(8) && applier.cluster.is_removed(9));
        assert_eq!(applier.cluster.downgrade(), None);
    };
    check(&first);
    assert!(!first.removed.is_cancelled());
    first.store.backend().checkpoint().unwrap();
    drop(first);
    let second = applier(&disk);
    restore_tables(
        second.store.backend(),
        &second.cluster,
        &second.alarms,
        &second.auth,
    )
    .unwrap();
    check(&second);
}

#[test]
fn a_cluster_version_of_a_later_build_stops_the_member() {
    let version = ClusterVersionSet {
        version: "3.99.0".into(),
    };
    let error = applier(&MemoryDisk::default())
        .apply(vec![entry(
            1,
            vec![command(Body::ClusterVersionSet(version))],
        )])
        .unwrap_err();
    assert!(
        error
            .to_string()
            .contains("start a build that supports 3.99.0"),
        "{error}"
    );
}

#[test]
fn a_restart_inside_a_packed_entry_repeats_nothing() {
    let commands: Vec<Bytes> = [put("a", "1"), put("b", "2"), put("a", "3")]
        .map(|p| command(Body::Put(p)))
        .into();
    let disk = MemoryDisk::default();
    {
        // The first two of the three commands reach the engine, the third does not.
        let mut applier = applier(&disk);
        for n in 0..2 {
            applier.position = Position {
                index: 0,
                term: 1,
                commands_done: n as u64 + 1,
            };
            let body = Command::decode(commands[n].clone()).unwrap().body;
            let extra = applier.progress_ops(n, commands.len());
            applier
                .apply_command(&Caller::Nobody, body, extra)
                .unwrap()
                .unwrap();
        }
        applier.store.backend().checkpoint().unwrap();
    }
    let mut applier = applier(&disk);
    assert_eq!(applier.applied().unwrap().index, 0);
    applier
        .apply(vec![
            entry(1, commands),
            entry(2, vec![command(Body::Put(put("c", "4")))]),
        ])
        .unwrap();
    // Three puts and one: revisions 2 to 5, none twice.
    assert_eq!(applier.store.revision(), 5);
    assert_eq!(applier.meta_u64(COMMANDS_DONE).unwrap(), 0);
    assert_eq!(applier.applied().unwrap().index, 2);
}

#[test]
fn an_unknown_command_stops_the_member() {
    let mut bytes = command(Body::Put(put("a", "1"))).to_vec();
    bytes[2] = 9;
    let error = applier(&MemoryDisk::default())
        .apply(vec![entry(1, vec![bytes.into()])])
        .unwrap_err();
    assert!(
        error
            .to_string()
            .contains("start a build that supports version 9"),
        "{error}"
    );
}

/// An entry of raft's that changes the members, as opaque bytes, with the command that explains it.
fn membership_entry(index: u64, body: Body) -> CommittedEntry {
    CommittedEntry {
        index,
        term: 1,
        body: EntryBody::Membership {
            membership: Bytes::from(format!("membership {index}")),
            command: Some(command(body)),
        },
    }
}

#[test]
fn a_change_of_the_members_and_the_table_are_one_step_that_survives_a_restart() {
    let disk = MemoryDisk::default();
    let mut first = applier(&disk);
    let changes = [
        Body::MemberAdd(MemberAdd {
            id: 8,
            peer_urls: vec!["http://a:1".into()],
            is_learner: true,
        }),
        Body::MemberAdd(MemberAdd {
            id: 9,
            peer_urls: vec!["http://b:1".into()],
            is_learner: false,
        }),
        Body::MemberPromote(MemberPromote { id: 8 }),
        Body::MemberRemove(MemberRemove { id: 9 }),
    ];
    let entries = (1..).zip(changes);
    let mut entries: Vec<_> = entries
        .map(|(index, body)| membership_entry(index, body))
        .collect();
    let update = Body::MemberUpdate(MemberUpdate {
        id: 8,
        peer_urls: vec!["http://c:1".into()],
    });
    entries.push(entry(5, vec![command(update)]));

    first.apply(entries).unwrap();

    let check = |applier: &Applier| {
        let rows = applier.cluster.members();
        assert_eq!(rows.len(), 1);
        assert_eq!((rows[0].id, rows[0].is_learner), (8, false));
        assert_eq!(rows[0].peer_urls, ["http://c:1"]);
        assert!(applier.cluster.is_removed(9));
    };
    check(&first);
    assert!(!first.removed.is_cancelled());
    first.store.backend().checkpoint().unwrap();
    drop(first);
    let mut second = applier(&disk);
    restore_tables(
        second.store.backend(),
        &second.cluster,
        &second.alarms,
        &second.auth,
    )
    .unwrap();
    check(&second);
    let applied = second.applied().unwrap();
    assert_eq!(
        (applied.index, applied.membership),
        (5, "membership 4".into())
    );
}

#[test]
fn a_member_that_applies_its_own_removal_is_to_stop() {
    let disk = MemoryDisk::default();
    let mut applier = applier(&disk);
    let other = Body::MemberRemove(MemberRemove { id: MEMBER + 1 });
    applier.apply(vec![membership_entry(1, other)]).unwrap();
    assert!(!applier.removed.is_cancelled());
    let own = Body::MemberRemove(MemberRemove { id: MEMBER });
    applier.apply(vec![membership_entry(2, own)]).unwrap();
    assert!(applier.removed.is_cancelled());
}

#[test]
fn a_change_of_the_members_in_the_wrong_kind_of_entry_stops_the_member() {
    let disk = MemoryDisk::default();
    let mut applier = applier(&disk);
    let removal = Body::MemberRemove(MemberRemove { id: 8 });
    let refused = applier.apply(vec![entry(1, vec![command(removal)])]);
    assert!(refused.unwrap_err().to_string().contains("MemberRemove"));
    let refused = applier.apply(vec![membership_entry(1, Body::Put(put("k", "v")))]);
    assert!(refused.unwrap_err().to_string().contains("Put"));
}

#[test]
fn a_checkpoint_names_what_is_durable_also_after_an_install() {
    let epoch = |term: u64| (term, Bytes::from(format!("members of {term}")));
    let at = |index, term: u64| Applied {
        index,
        term,
        membership: Bytes::from(format!("members of {term}")),
    };
    let mut epochs = Epochs::from([(10, epoch(1)), (20, epoch(2)), (30, epoch(3))]);

    assert_eq!(checkpointed(&mut epochs, 0), Applied::default());
    assert_eq!(checkpointed(&mut epochs, 15), at(15, 1));
    assert_eq!(checkpointed(&mut epochs, 25), at(25, 2));
    assert_eq!(epochs.len(), 2, "what is before is forgotten");
    // An install of entry 50 replaced the epochs while the database still said 25.
    epochs = Epochs::from([(50, epoch(4))]);
    assert_eq!(checkpointed(&mut epochs, 25), at(50, 4));
    assert_eq!(checkpointed(&mut epochs, 50), at(50, 4));
}

fn apply_one(applier: &mut Applier, body: Body) -> Outcome {
    applier
        .apply_command(&Caller::Nobody, body, Vec::new())
        .unwrap()
}

fn alarm(action: AlarmAction, member_id: u64, kind: AlarmType) -> Body {
    Body::Alarm(AlarmRequest {
        action: action as i32,
        member_id,
        alarm: kind as i32,
    })
}

fn txn_with(op: Request) -> Body {
    // In the branch that is not taken: etcd refuses for either.
    Body::Txn(TxnRequest {
        failure: vec![RequestOp { request: Some(op) }],
        ..Default::default()
    })
}

/// Every kind of change of keys and leases, and whether it brings data.
fn changes() -> Vec<(Body, bool)> {
    let nested = TxnRequest {
        success: vec![RequestOp {
            request: Some(Request::RequestPut(put("a", "1"))),
        }],
        ..Default::default()
    };
    let delete = DeleteRangeRequest {
        key: "a".into(),
        ..Default::default()
    };
    vec![
        (Body::Put(put("a", "1")), true),
        (txn_with(Request::RequestPut(put("a", "1"))), true),
        (txn_with(Request::RequestTxn(nested)), true),
        (Body::LeaseGrant(LeaseGrantRequest { id: 9, ttl: 60 }), true),
        (Body::DeleteRange(delete.clone()), false),
        (txn_with(Request::RequestDeleteRange(delete)), false),
        (Body::LeaseRevoke(LeaseRevokeRequest { id: 8 }), false),
        (
            Body::Compaction(CompactionRequest {
                revision: 2,
                physical: false,
            }),
            false,
        ),
    ]
}

#[test]
fn nospace_of_any_member_refuses_what_brings_data_and_nothing_else() {
    let mut applier = applier(&MemoryDisk::default());
    apply_one(&mut applier, Body::Put(put("a", "0"))).unwrap();
    apply_one(
        &mut applier,
        Body::LeaseGrant(LeaseGrantRequest { id: 8, ttl: 60 }),
    )
    .unwrap();
    let raise = alarm(AlarmAction::Activate, MEMBER + 1, AlarmType::Nospace);
    apply_one(&mut applier, raise).unwrap();
    for (body, brings_data) in changes() {
        let outcome = apply_one(&mut applier, body.clone());
        if brings_data {
            assert_eq!(outcome.unwrap_err(), Error::NoSpace, "{body:?}");
        } else {
            assert!(outcome.is_ok(), "{body:?}: {outcome:?}");
        }
    }
    assert_eq!(applier.store.revision(), 3, "one put and one delete");
}

#[test]
fn corrupt_of_any_member_refuses_every_change_of_keys_and_leases() {
    let mut applier = applier(&MemoryDisk::default());
    let raise = alarm(AlarmAction::Activate, MEMBER + 1, AlarmType::Corrupt);
    apply_one(&mut applier, raise).unwrap();
    // It goes before NOSPACE.
    let raise = alarm(AlarmAction::Activate, MEMBER, AlarmType::Nospace);
    apply_one(&mut applier, raise).unwrap();
    for (body, _) in changes() {
        let outcome = apply_one(&mut applier, body.clone());
        assert_eq!(outcome.unwrap_err(), Error::Corrupt, "{body:?}");
    }
    let disarm = alarm(AlarmAction::Deactivate, MEMBER + 1, AlarmType::Corrupt);
    apply_one(&mut applier, disarm).unwrap();
    let outcome = apply_one(&mut applier, Body::Put(put("a", "1")));
    assert_eq!(outcome.unwrap_err(), Error::NoSpace);
}

#[test]
fn alarms_are_answered_as_etcd_does() {
    let mut applier = applier(&MemoryDisk::default());
    let mut ask = |action, member, kind| match apply_one(&mut applier, alarm(action, member, kind))
    {
        Ok(Response::Alarm(answer)) => {
            let alarms = answer.alarms.iter();
            alarms.map(|a| (a.member_id, a.alarm)).collect::<Vec<_>>()
        }
        other => panic!("{other:?}"),
    };
    use AlarmAction::{Activate, Deactivate, Get};
    use AlarmType::{Corrupt, None as Any, Nospace};
    assert_eq!(ask(Activate, 5, Any), []);
    assert_eq!(ask(Activate, 5, Nospace), [(5, 1)]);
    assert_eq!(ask(Activate, 5, Nospace), [(5, 1)]);
    assert_eq!(ask(Activate, 6, Corrupt), [(6, 2)]);
    // The member is ignored, and NONE is all.
    assert_eq!(ask(Get, 77, Any), [(5, 1), (6, 2)]);
    assert_eq!(ask(Get, 77, Corrupt), [(6, 2)]);
    // Member and type must be exact.
    assert_eq!(ask(Deactivate, 6, Nospace), []);
    assert_eq!(ask(Deactivate, 5, Any), []);
    assert_eq!(ask(Deactivate, 5, Nospace), [(5, 1)]);
    assert_eq!(ask(Deactivate, 5, Nospace), []);
    assert_eq!(ask(Get, 0, Nospace), []);
}

#[test]
fn write_that_crosses_the_quota_takes_effect_and_is_answered_with_nospace() {
    let config = Config {
        quota_backend_bytes: 1000,
        ..Config::default()
    };
    let mut applier = applier_with(&MemoryDisk::default(), &config);
    let value = "v".repeat(800);
    let large = PutRequest {
        key: "a".into(),
        value: value.into(),
        ..Default::default()
    };
    let outcome = apply_one(&mut applier, Body::Put(large));
    assert_eq!(outcome.unwrap_err(), Error::NoSpace);
    assert_eq!(applier.store.revision(), 2);
    // What failed for another reason keeps its reason.
    let absent = PutRequest {
        ignore_value: true,
        ..put("absent", "")
    };
    let outcome = apply_one(&mut applier, Body::Put(absent));
    assert_eq!(outcome.unwrap_err(), Error::KeyNotFound);
}

#[test]
fn quota_clears_its_own_alarm_and_no_other_also_after_a_restart() {
    let disk = MemoryDisk::default();
    let quota = |is_over| {
        Body::QuotaAlarm(QuotaAlarm {
            member_id: MEMBER,
            is_over,
        })
    };
    let nospace = |applier: &Applier| applier.alarms.is_raised(AlarmType::Nospace);
    let mut first = applier(&disk);
    apply_one(&mut first, quota(true)).unwrap();
    first.store.backend().checkpoint().unwrap();
    drop(first);
    let mut second = applier(&disk);
    restore_tables(
        second.store.backend(),
        &second.cluster,
        &second.alarms,
        &second.auth,
    )
    .unwrap();
    assert!(nospace(&second));
    apply_one(&mut second, quota(false)).unwrap();
    assert!(!nospace(&second));

    apply_one(&mut second, quota(true)).unwrap();
    let asked = alarm(AlarmAction::Activate, MEMBER, AlarmType::Nospace);
    apply_one(&mut second, asked).unwrap();
    second.store.backend().checkpoint().unwrap();
    drop(second);
    let mut third = applier(&disk);
    restore_tables(
        third.store.backend(),
        &third.cluster,
        &third.alarms,
        &third.auth,
    )
    .unwrap();
    apply_one(&mut third, quota(false)).unwrap();
    assert!(nospace(&third), "somebody asked for it meanwhile");
}
