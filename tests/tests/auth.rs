//! Users and permissions over real members: what becomes of tokens, and one test for each advisory of 2026 about
//! permissions in etcd, named in docs/security.md.

#![allow(clippy::unwrap_used)] // All of this is tests.

use anyhow::{Context, Result, ensure};
use kv_proto::authpb::{Permission, permission::Type};
use kv_proto::etcdserverpb::auth_client::AuthClient;
use kv_proto::etcdserverpb::cluster_client::ClusterClient;
use kv_proto::etcdserverpb::kv_client::KvClient;
use kv_proto::etcdserverpb::lease_client::LeaseClient;
use kv_proto::etcdserverpb::maintenance_client::MaintenanceClient;
use kv_proto::etcdserverpb::request_op::Request as Op;
use kv_proto::etcdserverpb::watch_client::WatchClient;
use kv_proto::etcdserverpb::watch_request::RequestUnion;
use kv_proto::etcdserverpb::{
    AlarmRequest, AuthDisableRequest, AuthEnableRequest, AuthRoleAddRequest,
    AuthRoleGrantPermissionRequest, AuthStatusRequest, AuthUserAddRequest,
    AuthUserChangePasswordRequest, AuthUserGrantRoleRequest, AuthenticateRequest,
    CompactionRequest, Compare, DefragmentRequest, DeleteRangeRequest, DowngradeRequest,
    HashKvRequest, HashRequest, LeaseGrantRequest, LeaseKeepAliveRequest, LeaseLeasesRequest,
    LeaseRevokeRequest, LeaseTimeToLiveRequest, MemberAddRequest, MemberListRequest,
    MemberPromoteRequest, MemberRemoveRequest, MemberUpdateRequest, MoveLeaderRequest, PutRequest,
    RangeRequest, RequestOp, SnapshotRequest, StatusRequest, TxnRequest, WatchCreateRequest,
    WatchRequest, WatchResponse,
};
use kv_tests::cluster::{Cluster, until};
use tonic::transport::Channel;
use tonic::{Code, Request, Status};

const DENIED: &str = "etcdserver: permission denied";
const EMPTY: &str = "etcdserver: user name is empty";
const INVALID: &str = "etcdserver: invalid auth token";
const PASSWORD: &str = "open sesame";

/// A cluster with auth enabled: root, and alice, who reads `r`, writes `w` and does both with `a`.
struct World {
    cluster: Cluster,
    root: String,
    alice: String,
}

/// One member, as somebody with a token sees it.
struct Caller {
    channel: Channel,
    token: Option<String>,
}

impl Caller {
    fn ask<T>(&self, message: T) -> Request<T> {
        let mut request = Request::new(message);
        if let Some(token) = &self.token {
            request
                .metadata_mut()
                .insert("token", token.parse().unwrap());
        }
        request
    }

    fn kv(&self) -> KvClient<Channel> {
        KvClient::new(self.channel.clone())
    }

    fn lease(&self) -> LeaseClient<Channel> {
        LeaseClient::new(self.channel.clone())
    }

    fn auth(&self) -> AuthClient<Channel> {
        AuthClient::new(self.channel.clone())
    }

    async fn put(&self, put: PutRequest) -> Result<(), Status> {
        self.kv().put(self.ask(put)).await.map(drop)
    }

    async fn delete(&self, delete: DeleteRangeRequest) -> Result<(), Status> {
        self.kv().delete_range(self.ask(delete)).await.map(drop)
    }

    async fn txn(&self, txn: TxnRequest) -> Result<(), Status> {
        self.kv().txn(self.ask(txn)).await.map(drop)
    }

    async fn range(&self, range: RangeRequest) -> Result<(), Status> {
        self.kv().range(self.ask(range)).await.map(drop)
    }

    async fn range_stream(&self, range: RangeRequest) -> Result<(), Status> {
        let mut kv = self.kv();
        let mut chunks = kv.range_stream(self.ask(range)).await?.into_inner();
        while chunks.message().await?.is_some() {}
        Ok(())
    }

    /// The first response of a watch.
    async fn watch(&self, create: WatchCreateRequest) -> Result<WatchResponse> {
        let create = WatchRequest {
            request_union: Some(RequestUnion::CreateRequest(create)),
        };
        // The stream has to stay open, or the server sees its end.
        let (sender, requests) = tokio::sync::mpsc::channel(1);
        sender.send(create).await?;
        let requests = tokio_stream::wrappers::ReceiverStream::new(requests);
        let mut client = WatchClient::new(self.channel.clone());
        let mut responses = client.watch(self.ask(requests)).await?.into_inner();
        responses.message().await?.context("a response comes")
    }

    async fn keep_alive(&self, id: i64) -> Result<i64, Status> {
        let requests = tokio_stream::once(LeaseKeepAliveRequest { id });
        let mut lease = self.lease();
        let mut answers = lease
            .lease_keep_alive(self.ask(requests))
            .await?
            .into_inner();
        Ok(answers.message().await?.map_or(-1, |answer| answer.ttl))
    }

    async fn login(&self, name: &str, password: &str) -> Result<String, Status> {
        let request = AuthenticateRequest {
            name: name.into(),
            password: password.into(),
        };
        Ok(self.auth().authenticate(request).await?.into_inner().token)
    }
}

impl World {
    async fn start(members: usize, flags: &[&str]) -> Result<World> {
        let mut all = vec!["--bcrypt-cost=4"];
        all.extend(flags);
        let cluster = Cluster::start(members, &all);
        cluster.leader().await?;
        let nobody = Caller {
            channel: cluster.channel(0).await?,
            token: None,
        };
        let mut auth = nobody.auth();
        for name in ["root", "alice"] {
            auth.user_add(AuthUserAddRequest {
                name: name.into(),
                password: PASSWORD.into(),
                ..Default::default()
            })
            .await?;
        }
        auth.role_add(AuthRoleAddRequest {
            name: "role".into(),
        })
        .await?;
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
            auth.role_grant_permission(AuthRoleGrantPermissionRequest {
                name: "role".into(),
                perm: Some(perm),
            })
            .await?;
        }
        for (user, role) in [("root", "root"), ("alice", "role")] {
            auth.user_grant_role(AuthUserGrantRoleRequest {
                user: user.into(),
                role: role.into(),
            })
            .await?;
        }
        auth.auth_enable(AuthEnableRequest {}).await?;
        let root = nobody.login("root", PASSWORD).await?;
        let alice = nobody.login("alice", PASSWORD).await?;
        Ok(World {
            cluster,
            root,
            alice,
        })
    }

    async fn caller(&self, member: usize, token: Option<&str>) -> Result<Caller> {
        Ok(Caller {
            channel: self.cluster.channel(member).await?,
            token: token.map(str::to_owned),
        })
    }

    async fn root(&self) -> Result<Caller> {
        self.caller(0, Some(&self.root)).await
    }

    async fn alice(&self) -> Result<Caller> {
        self.caller(0, Some(&self.alice)).await
    }
}

#[track_caller]
fn denied<T: std::fmt::Debug>(answer: Result<T, Status>) {
    let status = answer.expect_err("it has to be denied");
    assert_eq!(
        (status.code(), status.message()),
        (Code::PermissionDenied, DENIED)
    );
}

#[track_caller]
fn nameless<T: std::fmt::Debug>(answer: Result<T, Status>) {
    let status = answer.expect_err("nobody may do it");
    assert_eq!(
        (status.code(), status.message()),
        (Code::InvalidArgument, EMPTY)
    );
}

#[track_caller]
fn forged<T: std::fmt::Debug>(answer: Result<T, Status>) {
    let status = answer.expect_err("the token is nobody's");
    assert_eq!(
        (status.code(), status.message()),
        (Code::Unauthenticated, INVALID)
    );
}

fn put(key: &'static str) -> PutRequest {
    PutRequest {
        key: key.into(),
        value: "v".into(),
        ..Default::default()
    }
}

fn delete(key: &'static str) -> DeleteRangeRequest {
    DeleteRangeRequest {
        key: key.into(),
        ..Default::default()
    }
}

fn get(key: &'static str) -> RangeRequest {
    RangeRequest {
        key: key.into(),
        ..Default::default()
    }
}

fn op(request: Op) -> RequestOp {
    RequestOp {
        request: Some(request),
    }
}

/// The operation in a branch that is not taken, beside a put that is permitted, `depth` transactions down.
fn nested(depth: usize, request: Op) -> TxnRequest {
    let mut txn = TxnRequest {
        success: vec![op(Op::RequestPut(put("a")))],
        failure: vec![op(request)],
        ..Default::default()
    };
    for _ in 0..depth {
        txn = TxnRequest {
            success: vec![op(Op::RequestTxn(txn))],
            ..Default::default()
        };
    }
    txn
}

/// CVE-2026-33343.
#[tokio::test]
async fn a_nested_txn_reaches_no_key_that_its_caller_may_not() -> Result<()> {
    let world = World::start(1, &[]).await?;
    let (root, alice) = (world.root().await?, world.alice().await?);
    for key in ["r", "w", "x"] {
        root.put(put(key)).await?;
    }
    for depth in 0..4 {
        for key in ["x", "w"] {
            denied(alice.txn(nested(depth, Op::RequestRange(get(key)))).await);
        }
        for key in ["x", "r"] {
            denied(alice.txn(nested(depth, Op::RequestPut(put(key)))).await);
            denied(
                alice
                    .txn(nested(depth, Op::RequestDeleteRange(delete(key))))
                    .await,
            );
        }
        let compare = TxnRequest {
            compare: vec![Compare {
                key: "x".into(),
                ..Default::default()
            }],
            ..Default::default()
        };
        denied(alice.txn(nested(depth, Op::RequestTxn(compare))).await);
        alice.txn(nested(depth, Op::RequestRange(get("r")))).await?;
        alice.txn(nested(depth, Op::RequestPut(put("w")))).await?;
    }
    // Transactions that only read take another way, and are checked on it.
    let reads = |key| TxnRequest {
        success: vec![op(Op::RequestRange(get(key)))],
        ..Default::default()
    };
    denied(alice.txn(reads("x")).await);
    alice.txn(reads("r")).await?;
    Ok(())
}

/// CVE-2026-33413.
#[tokio::test]
async fn maintenance_and_member_calls_are_refused_without_credentials_and_to_users() -> Result<()> {
    let world = World::start(1, &[]).await?;
    macro_rules! check {
        ($caller:expr, $refused:ident, $($client:ident.$method:ident($request:expr);)*) => {
            let caller = $caller;
            $($refused($client::new(caller.channel.clone()).$method(caller.ask($request)).await);)*
        };
    }
    macro_rules! for_root {
        ($caller:expr, $refused:ident) => {
            check! { $caller, $refused,
                MaintenanceClient.defragment(DefragmentRequest {});
                MaintenanceClient.hash(HashRequest {});
                MaintenanceClient.hash_kv(HashKvRequest::default());
                MaintenanceClient.snapshot(SnapshotRequest {});
                MaintenanceClient.move_leader(MoveLeaderRequest { target_id: 1 });
                MaintenanceClient.downgrade(DowngradeRequest::default());
                MaintenanceClient.alarm(AlarmRequest { action: 1, member_id: 1, alarm: 1 });
                MaintenanceClient.alarm(AlarmRequest { action: 2, member_id: 1, alarm: 1 });
                KvClient.compact(CompactionRequest { revision: 1, physical: false });
                ClusterClient.member_add(MemberAddRequest {
                    peer_ur_ls: vec!["http://127.0.0.1:1".into()],
                    is_learner: true,
                });
                ClusterClient.member_remove(MemberRemoveRequest { id: 1 });
                ClusterClient.member_promote(MemberPromoteRequest { id: 1 });
                ClusterClient.member_update(MemberUpdateRequest {
                    id: 1,
                    peer_ur_ls: vec!["http://127.0.0.1:1".into()],
                });
                AuthClient.auth_disable(AuthDisableRequest {});
            }
        };
    }
    macro_rules! for_users {
        ($caller:expr, $refused:ident) => {
            check! { $caller, $refused,
                MaintenanceClient.status(StatusRequest {});
                MaintenanceClient.alarm(AlarmRequest::default());
                ClusterClient.member_list(MemberListRequest { linearizable: true });
                ClusterClient.member_list(MemberListRequest { linearizable: false });
                LeaseClient.lease_grant(LeaseGrantRequest { id: 0, ttl: 60 });
                LeaseClient.lease_leases(LeaseLeasesRequest {});
                LeaseClient.lease_time_to_live(LeaseTimeToLiveRequest { id: 1, keys: false });
            }
        };
    }
    for_root!(world.caller(0, None).await?, nameless);
    for_users!(world.caller(0, None).await?, nameless);
    for_root!(world.caller(0, Some("letters.1")).await?, forged);
    for_users!(world.caller(0, Some("letters.1")).await?, forged);
    for_root!(world.alice().await?, denied);
    let permitted = |answer: Result<tonic::Response<_>, Status>| drop(answer.unwrap());
    let alice = world.alice().await?;
    let mut maintenance = MaintenanceClient::new(alice.channel.clone());
    permitted(maintenance.status(alice.ask(StatusRequest {})).await);
    maintenance
        .alarm(alice.ask(AlarmRequest::default()))
        .await?;
    Ok(())
}

/// etcd#21681.
#[tokio::test]
async fn a_previous_value_is_shown_to_those_who_may_read_it() -> Result<()> {
    let world = World::start(1, &[]).await?;
    let (root, alice) = (world.root().await?, world.alice().await?);
    root.put(put("w")).await?;
    let put_prev = PutRequest {
        prev_kv: true,
        ..put("w")
    };
    let delete_prev = DeleteRangeRequest {
        prev_kv: true,
        ..delete("w")
    };
    denied(alice.put(put_prev.clone()).await);
    denied(alice.delete(delete_prev.clone()).await);
    for depth in 0..3 {
        denied(
            alice
                .txn(nested(depth, Op::RequestPut(put_prev.clone())))
                .await,
        );
        denied(
            alice
                .txn(nested(depth, Op::RequestDeleteRange(delete_prev.clone())))
                .await,
        );
    }
    alice.put(put("w")).await?;
    alice.delete(delete("w")).await?;
    Ok(())
}

/// etcd#21685.
#[tokio::test]
async fn keys_on_a_lease_guard_it_in_every_call() -> Result<()> {
    let world = World::start(1, &[]).await?;
    let (root, alice) = (world.root().await?, world.alice().await?);
    for id in [1, 2] {
        let grant = root.ask(LeaseGrantRequest { id, ttl: 600 });
        root.lease().lease_grant(grant).await?;
    }
    root.put(PutRequest {
        lease: 1,
        ..put("x")
    })
    .await?;
    let on = |lease| PutRequest { lease, ..put("a") };
    denied(alice.put(on(1)).await);
    for depth in 0..3 {
        denied(alice.txn(nested(depth, Op::RequestPut(on(1)))).await);
    }
    denied(alice.keep_alive(1).await);
    let revoke = |id| alice.ask(LeaseRevokeRequest { id });
    denied(alice.lease().lease_revoke(revoke(1)).await);
    let look = |keys| alice.ask(LeaseTimeToLiveRequest { id: 1, keys });
    denied(alice.lease().lease_time_to_live(look(true)).await);
    alice.lease().lease_time_to_live(look(false)).await?;
    let leases = alice.ask(LeaseLeasesRequest {});
    denied(alice.lease().lease_leases(leases).await);

    alice.put(on(2)).await?;
    assert_eq!(alice.keep_alive(2).await?, 600);
    alice.lease().lease_revoke(revoke(2)).await?;
    let nobody = world.caller(0, None).await?;
    nameless(nobody.keep_alive(1).await);
    nameless(
        nobody
            .lease()
            .lease_revoke(LeaseRevokeRequest { id: 1 })
            .await,
    );
    Ok(())
}

/// GHSA-xg4h-6gfc-h4m8.
#[tokio::test]
async fn a_permission_on_one_key_shows_no_other_key() -> Result<()> {
    let world = World::start(1, &[]).await?;
    let alice = world.alice().await?;
    let open = "\0";
    for range_end in ["r\0\0", "s", open] {
        let range = RangeRequest {
            range_end: range_end.into(),
            ..get("r")
        };
        denied(alice.range(range.clone()).await);
        denied(alice.range_stream(range.clone()).await);
        let serializable = RangeRequest {
            serializable: true,
            ..range.clone()
        };
        denied(alice.range(serializable.clone()).await);
        denied(alice.range_stream(serializable).await);
        denied(alice.txn(nested(1, Op::RequestRange(range))).await);
        let write = DeleteRangeRequest {
            range_end: range_end.replace('r', "w").replace('s', "x").into(),
            ..delete("w")
        };
        denied(alice.delete(write).await);
        let watched = alice
            .watch(WatchCreateRequest {
                key: "r".into(),
                range_end: range_end.into(),
                ..Default::default()
            })
            .await?;
        assert!(watched.created && watched.canceled, "{watched:?}");
        assert_eq!(watched.watch_id, -1);
        let reason = format!("rpc error: code = PermissionDenied desc = {DENIED}");
        assert_eq!(watched.cancel_reason, reason);
    }
    // No key at all stands for the first one, and is not permitted either.
    let watched = alice.watch(WatchCreateRequest::default()).await?;
    assert!(watched.canceled);
    alice.range(get("r")).await?;
    alice.range_stream(get("r")).await?;

    // Present and empty, the end is still none: what comes is the one key.
    let root = world.root().await?;
    let (sender, requests) = tokio::sync::mpsc::channel(1);
    let create = WatchCreateRequest {
        key: "r".into(),
        range_end: Default::default(),
        ..Default::default()
    };
    sender
        .send(WatchRequest {
            request_union: Some(RequestUnion::CreateRequest(create)),
        })
        .await?;
    let requests = tokio_stream::wrappers::ReceiverStream::new(requests);
    let mut client = WatchClient::new(alice.channel.clone());
    let mut responses = client.watch(alice.ask(requests)).await?.into_inner();
    assert!(responses.message().await?.unwrap().created);
    for key in ["x", "rr", "s", "r"] {
        root.put(put(key)).await?;
    }
    let events = responses.message().await?.unwrap().events;
    let keys: Vec<_> = events
        .iter()
        .map(|e| e.kv.as_ref().unwrap().key.clone())
        .collect();
    assert_eq!(keys, ["r"]);
    Ok(())
}

#[tokio::test]
async fn a_token_of_one_member_is_taken_by_all_until_its_password_changes() -> Result<()> {
    let world = World::start(3, &[]).await?;
    for member in 0..3 {
        let alice = world.caller(member, Some(&world.alice)).await?;
        alice.put(put("a")).await?;
        alice.range(get("a")).await?;
        alice
            .range(RangeRequest {
                serializable: true,
                ..get("a")
            })
            .await?;
    }
    let root = world.root().await?;
    let change = AuthUserChangePasswordRequest {
        name: "alice".into(),
        password: "another".into(),
        ..Default::default()
    };
    root.auth().user_change_password(root.ask(change)).await?;
    for member in 0..3 {
        let alice = world.caller(member, Some(&world.alice)).await?;
        until("the end of the token", || async {
            let refused = alice.range(get("a")).await.err().context("still taken")?;
            ensure!(refused.message() == INVALID, "{refused}");
            Ok(())
        })
        .await?;
    }
    let member = world.caller(2, None).await?;
    assert!(member.login("alice", PASSWORD).await.is_err());
    let token = member.login("alice", "another").await?;
    world.caller(1, Some(&token)).await?.put(put("a")).await?;
    Ok(())
}

#[tokio::test]
async fn users_and_permissions_outlive_restarts_and_tokens_may_be_renewed() -> Result<()> {
    let mut world = World::start(1, &[]).await?;
    world.root().await?.put(put("x")).await?;
    world.cluster.terminate(0);
    world.cluster.start_member(0);
    world.cluster.channel(0).await?;
    let nobody = world.caller(0, None).await?;
    nameless(nobody.range(get("x")).await);
    let token = until("a login", || async {
        Ok(nobody.login("alice", PASSWORD).await?)
    })
    .await?;
    let alice = world.caller(0, Some(&token)).await?;
    denied(alice.range(get("x")).await);
    alice.range(get("r")).await?;
    let status = nobody
        .auth()
        .auth_status(AuthStatusRequest {})
        .await?
        .into_inner();
    assert!(status.enabled);
    assert_eq!(status.auth_revision, 9);
    Ok(())
}

#[tokio::test]
async fn leases_end_by_themselves_while_auth_is_enabled() -> Result<()> {
    let world = World::start(1, &[]).await?;
    let root = world.root().await?;
    let grant = root.ask(LeaseGrantRequest { id: 5, ttl: 2 });
    root.lease().lease_grant(grant).await?;
    root.put(PutRequest {
        lease: 5,
        ..put("x")
    })
    .await?;
    until("the end of the lease", || async {
        let found = root.kv().range(root.ask(get("x"))).await?.into_inner();
        ensure!(found.count == 0);
        Ok(())
    })
    .await?;
    Ok(())
}

/// Neither the log nor the database of a member holds a password, and its own log no token.
#[tokio::test]
async fn passwords_are_nowhere_on_disk() -> Result<()> {
    let folder = tempfile::tempdir()?;
    let log = folder.path().join("log");
    let to_log = format!("--log-outputs={}", log.display());
    let mut world = World::start(1, &["--log-level=debug", &to_log]).await?;
    let nobody = world.caller(0, None).await?;
    assert!(nobody.login("alice", "wrong secret").await.is_err());
    world.cluster.terminate(0);
    assert!(std::fs::metadata(&log)?.len() > 0);
    let mut files = vec![world.cluster.data_dir(0).to_owned(), log];
    let mut searched = 0;
    while let Some(path) = files.pop() {
        if path.is_dir() {
            for entry in std::fs::read_dir(&path)? {
                files.push(entry?.path());
            }
            continue;
        }
        let bytes = std::fs::read(&path)?;
        searched += bytes.len();
        for secret in [PASSWORD, "wrong secret"] {
            let found = memchr::memmem::find(&bytes, secret.as_bytes());
            assert!(found.is_none(), "{} holds {secret:?}", path.display());
        }
    }
    assert!(searched > 0);
    Ok(())
}
