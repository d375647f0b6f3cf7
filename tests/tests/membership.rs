//! Members are taken in, promoted, told apart and taken out of a running cluster; leadership is moved.

#![allow(clippy::unwrap_used)] // All of this is tests.

use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use kv_proto::etcdserverpb::cluster_client::ClusterClient;
use kv_proto::etcdserverpb::maintenance_client::MaintenanceClient;
use kv_proto::etcdserverpb::{
    Member, MemberAddRequest, MemberListRequest, MemberPromoteRequest, MemberRemoveRequest,
    MemberUpdateRequest, MoveLeaderRequest,
};
use kv_tests::cluster::{Cluster, until};
use tonic::transport::Channel;
use tonic::{Code, Status};

const JOIN: [&str; 2] = ["--initial-cluster-state", "existing"];
const UNHEALTHY: &str = "etcdserver: unhealthy cluster";

async fn client(cluster: &Cluster, n: usize) -> Result<ClusterClient<Channel>> {
    Ok(ClusterClient::new(cluster.channel(n).await?))
}

async fn id(cluster: &Cluster, n: usize) -> Result<u64> {
    let status = cluster.status(n).await?;
    Ok(status.header.context("a status has a header")?.member_id)
}

fn add_request(cluster: &Cluster, place: usize, is_learner: bool) -> MemberAddRequest {
    MemberAddRequest {
        peer_ur_ls: vec![cluster.peer_url(place)],
        is_learner,
    }
}

/// Adds a member through `via`; waits while the members have not known each other for long enough.
async fn add(cluster: &Cluster, via: usize, place: usize, is_learner: bool) -> Result<Member> {
    until("the member to be added", || async {
        let request = add_request(cluster, place, is_learner);
        let answer = client(cluster, via).await?.member_add(request).await;
        match answer {
            Ok(answer) => Ok(Ok(answer.into_inner().member.unwrap())),
            Err(status) if status.message() == UNHEALTHY => Err(status.into()),
            Err(status) => Ok(Err(status)),
        }
    })
    .await?
    .map_err(Into::into)
}

/// Removes the member `id` through `via`.
async fn remove(cluster: &Cluster, via: usize, id: u64) -> Result<Vec<Member>> {
    until("the member to be removed", || async {
        let request = MemberRemoveRequest { id };
        let answer = client(cluster, via).await?.member_remove(request).await;
        match answer {
            Ok(answer) => Ok(Ok(answer.into_inner().members)),
            Err(status) if status.message() == UNHEALTHY => Err(status.into()),
            Err(status) => Ok(Err(status)),
        }
    })
    .await?
    .map_err(Into::into)
}

fn refusal(status: Status) -> (Code, String) {
    (status.code(), status.message().to_owned())
}

#[tokio::test]
async fn one_member_grows_to_three_that_survive_the_loss_of_the_first() -> Result<()> {
    let mut cluster = Cluster::start(1, &[]);
    cluster.put(0, "before", "1").await?;

    for place in [1, 2] {
        assert_eq!(cluster.add_place(&[]), place);
        let member = add(&cluster, 0, place, false).await?;
        assert!(member.name.is_empty());
        assert!(!member.is_learner);
        // Not started yet, and nobody waits for it.
        cluster.put(0, "while-it-is-absent", "1").await?;
        let unstarted = cluster.members(0).await?;
        assert!(
            unstarted
                .iter()
                .any(|m| m.id == member.id && m.name.is_empty())
        );
        cluster.start_member_with(place, &JOIN);
        cluster.leader().await?;
        assert_eq!(id(&cluster, place).await?, member.id);
        until("the member to tell its name", || async {
            let members = cluster.members(0).await?;
            ensure!(members.iter().all(|m| !m.name.is_empty()), "{members:?}");
            Ok(())
        })
        .await?;
    }

    until("all members to have a vote", || async {
        for n in 0..3 {
            ensure!(!cluster.status(n).await?.is_learner, "member {n} has none");
        }
        Ok(())
    })
    .await?;
    cluster.converged().await?;
    cluster.kill(0);
    let put = || cluster.put(1, "after", "1");
    until("the two that came later to elect a leader", put).await?;
    let value = cluster.get(2, "before", false).await?;
    assert_eq!(value.as_deref(), Some("1"));
    Ok(())
}

#[tokio::test]
async fn learner_serves_little_until_it_is_promoted() -> Result<()> {
    let mut cluster = Cluster::start(1, &[]);
    cluster.put(0, "k", "1").await?;
    let place = cluster.add_place(&[]);
    let learner = add(&cluster, 0, place, true).await?;
    assert!(learner.is_learner);
    let promote = || async {
        let request = MemberPromoteRequest { id: learner.id };
        client(&cluster, 0)
            .await?
            .member_promote(request)
            .await
            .map_err(anyhow::Error::from)
    };
    let refused = promote().await.unwrap_err().downcast::<Status>()?;
    let text = "etcdserver: can only promote a learner member which is in sync with leader";
    assert_eq!(refusal(refused), (Code::FailedPrecondition, text.into()));

    let mut client = client(&cluster, 0).await?;
    let another = MemberAddRequest {
        peer_ur_ls: vec!["http://127.0.0.1:1".into()],
        is_learner: true,
    };
    let refused = client.member_add(another).await.unwrap_err();
    let text = "etcdserver: too many learner members in cluster";
    assert_eq!(refusal(refused), (Code::FailedPrecondition, text.into()));

    cluster.start_member_with(place, &JOIN);
    let value = until("the learner to have the key", || async {
        cluster.get(place, "k", true).await?.context("no key")
    });
    assert_eq!(value.await?, "1");
    let text = "etcdserver: rpc not supported for learner";
    let refused = cluster.get(place, "k", false).await.unwrap_err();
    let refused = refused.downcast::<Status>()?;
    assert_eq!(refusal(refused), (Code::FailedPrecondition, text.into()));
    let refused = cluster.put(place, "k", "2").await.unwrap_err();
    assert_eq!(refused.downcast::<Status>()?.message(), text);
    assert!(cluster.status(place).await?.is_learner);

    let request = MemberPromoteRequest { id: learner.id };
    let mut client = ClusterClient::new(cluster.channel(0).await?);
    let members = until("the learner to be promoted", || async {
        let mut client = client.clone();
        Ok(client.member_promote(request).await?.into_inner().members)
    })
    .await?;
    assert!(members.iter().all(|member| !member.is_learner));
    let refused = client.member_promote(request).await.unwrap_err();
    assert_eq!(
        refused.message(),
        "etcdserver: can only promote a learner member"
    );
    until("the new voter to serve all", || {
        cluster.put(place, "k", "3")
    })
    .await?;
    cluster.converged().await?;
    Ok(())
}

#[tokio::test]
async fn removed_members_stop_and_never_come_back_and_the_rest_serves() -> Result<()> {
    let mut cluster = Cluster::start(3, &[]);
    let leader = cluster.leader().await?;
    let follower = (leader + 1) % 3;
    let rest = (leader + 2) % 3;
    cluster.put(leader, "k", "1").await?;

    let removed = id(&cluster, follower).await?;
    let left = remove(&cluster, rest, removed).await?;
    assert_eq!(left.len(), 2);
    cluster.ended(follower).await?;
    let refused = ClusterClient::new(cluster.channel(rest).await?)
        .member_remove(MemberRemoveRequest { id: removed })
        .await
        .unwrap_err();
    let text = "etcdserver: member not found";
    assert_eq!(refusal(refused), (Code::NotFound, text.into()));

    // Its folder is not let in again.
    cluster.start_member(follower);
    let status = cluster.ended(follower).await?;
    println!("a removed member that is started again ends with {status}");
    cluster.put(rest, "k", "2").await?;

    // The leader, asked to remove itself, hands over and is removed by the next.
    let left = remove(&cluster, leader, id(&cluster, leader).await?).await?;
    assert_eq!(left.len(), 1);
    cluster.ended(leader).await?;
    until("the last one to lead", || cluster.put(rest, "k", "3")).await?;
    let refused = ClusterClient::new(cluster.channel(rest).await?)
        .member_remove(MemberRemoveRequest { id: left[0].id })
        .await
        .unwrap_err();
    let text = "etcdserver: re-configuration failed due to not enough started members";
    assert_eq!(refusal(refused), (Code::Unknown, text.into()));
    Ok(())
}

#[tokio::test]
async fn dead_member_is_replaced_by_a_new_one_with_an_empty_folder() -> Result<()> {
    let mut cluster = Cluster::start(3, &[]);
    let leader = cluster.leader().await?;
    let dead = (leader + 1) % 3;
    let dead_id = id(&cluster, dead).await?;
    cluster.put(leader, "k", "1").await?;
    cluster.kill(dead);

    remove(&cluster, leader, dead_id).await?;
    cluster.forget(dead);
    let place = cluster.add_place(&[]);
    let member = add(&cluster, leader, place, false).await?;
    cluster.start_member_with(place, &JOIN);

    cluster.leader().await?;
    assert_eq!(id(&cluster, place).await?, member.id);
    let value = until("the new member to read", || cluster.get(place, "k", false)).await?;
    assert_eq!(value.as_deref(), Some("1"));
    cluster.converged().await?;
    Ok(())
}

#[tokio::test]
async fn requests_that_make_no_sense_are_refused_in_etcds_words() -> Result<()> {
    let cluster = Cluster::start(3, &[]);
    let leader = cluster.leader().await?;
    let via = (leader + 1) % 3;
    let mut client = client(&cluster, via).await?;
    let urls = |url: &str| MemberAddRequest {
        peer_ur_ls: vec![url.to_owned()],
        is_learner: false,
    };

    let refused = client.member_add(urls("127.0.0.1:2380")).await.unwrap_err();
    let text = "etcdserver: given member URLs are invalid";
    assert_eq!(refusal(refused), (Code::InvalidArgument, text.into()));
    let taken = cluster.peer_url(0);
    let refused = until("the check of the URLs", || {
        let mut client = client.clone();
        let request = urls(&taken);
        async move {
            let refused = client.member_add(request).await.unwrap_err();
            ensure!(
                refused.message() != UNHEALTHY,
                "not connected for long enough"
            );
            Ok(refused)
        }
    })
    .await?;
    let text = "etcdserver: Peer URLs already exists";
    assert_eq!(refusal(refused), (Code::FailedPrecondition, text.into()));
    let unknown = MemberUpdateRequest {
        id: 77,
        peer_ur_ls: vec!["http://127.0.0.1:1".into()],
    };
    let refused = client.member_update(unknown).await.unwrap_err();
    assert_eq!(refused.code(), Code::NotFound);
    let refused = client.member_promote(MemberPromoteRequest { id: 77 }).await;
    assert_eq!(refused.unwrap_err().code(), Code::NotFound);

    let own = id(&cluster, via).await?;
    let peer_ur_ls = vec![cluster.peer_url(via), "http://127.0.0.1:1".to_owned()];
    let request = MemberUpdateRequest {
        id: own,
        peer_ur_ls,
    };
    let expected = request.peer_ur_ls.clone(); // in the order given
    let answer = client.member_update(request).await?.into_inner();
    let updated = answer.members.iter().find(|m| m.id == own).unwrap();
    assert_eq!(updated.peer_ur_ls, expected);
    assert!(!updated.name.is_empty());
    let linearizable = MemberListRequest { linearizable: true };
    let other = ClusterClient::new(cluster.channel(leader).await?)
        .member_list(linearizable)
        .await?
        .into_inner();
    assert_eq!(other.members, answer.members);
    Ok(())
}

#[tokio::test]
async fn leadership_moves_to_whom_is_asked_for_while_all_members_write() -> Result<()> {
    let cluster = Cluster::start(3, &[]);
    let leader = cluster.leader().await?;
    let (to, other) = ((leader + 1) % 3, (leader + 2) % 3);
    let target_id = id(&cluster, to).await?;
    let move_leader = |via: usize, target_id: u64| {
        let cluster = &cluster;
        async move {
            let mut client = MaintenanceClient::new(cluster.channel(via).await?);
            let request = MoveLeaderRequest { target_id };
            anyhow::Ok(client.move_leader(request).await.map_err(refusal))
        }
    };

    let refused = move_leader(other, target_id).await?.unwrap_err();
    assert_eq!(
        refused,
        (Code::FailedPrecondition, "etcdserver: not leader".into())
    );
    let refused = move_leader(leader, 77).await?.unwrap_err();
    let text = "etcdserver: bad leader transferee";
    assert_eq!(refused, (Code::FailedPrecondition, text.into()));

    let writing = async {
        for number in 0..60 {
            cluster.put(number % 3, "k", &number.to_string()).await?;
        }
        anyhow::Ok(())
    };
    let moving = async {
        let begun = Instant::now();
        let moved = move_leader(leader, target_id).await?;
        anyhow::Ok((moved, begun.elapsed()))
    };
    let (written, moved) = tokio::join!(writing, moving);
    written?;
    let (moved, took) = moved?;
    moved.unwrap();
    println!("leadership moved in {took:?}");
    assert_eq!(cluster.leader().await?, to);
    cluster.converged().await?;
    Ok(())
}

#[tokio::test]
async fn leader_that_is_told_to_stop_hands_over_first() -> Result<()> {
    let mut cluster = Cluster::start(3, &[]);
    let leader = cluster.leader().await?;
    cluster.put(leader, "k", "1").await?;
    let survivor = (leader + 1) % 3;
    let term = cluster.status(survivor).await?.raft_term;

    let begun = Instant::now();
    assert!(cluster.terminate(leader).success());
    assert!(begun.elapsed() < Duration::from_secs(5));
    cluster.put(survivor, "k", "2").await?;
    // One transfer, no election that had to be repeated.
    assert_eq!(cluster.status(survivor).await?.raft_term, term + 1);
    Ok(())
}
