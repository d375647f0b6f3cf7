//! The traps of changing members and leaders, on a cluster in this process.

use bytes::Bytes;

use super::*;
use crate::testing::{Cluster, Member, PATIENCE, fast_config, steady_config};
use crate::wire;
use crate::{Rpc, Status};

fn as_started(config: crate::Config) -> crate::Config {
    config
}

fn explained(text: &'static str) -> Option<Bytes> {
    Some(Bytes::from_static(text.as_bytes()))
}

/// Waits until the leader knows `id` to be caught up.
async fn caught_up(leader: &Member, id: u64) {
    let check = async {
        while !leader
            .node()
            .peer_progress(id)
            .is_some_and(|progress| progress.is_caught_up())
        {
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
    };
    tokio::time::timeout(PATIENCE, check)
        .await
        .expect("the member never caught up");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn adding_an_absent_member_never_stops_a_cluster_of_one() {
    let mut member = Member::leading(fast_config(1)).await;
    let node = member.node();
    node.add_learner(2, explained("add 2")).await.unwrap();
    member.put("still served").await;
    let refused = member.node().promote(2, explained("promote 2")).await;
    assert!(
        matches!(refused, Err(MembershipError::LearnerNotReady { .. })),
        "{refused:?}"
    );
    member.put("served as well").await;
    assert_eq!(
        member.ledger.commands(),
        ["add 2", "still served", "served as well"]
    );
    let as_added = |status: &Status| status.voters[..] == [1] && status.learners[..] == [2];
    member.wait_status(as_added).await;
    member.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn one_member_grows_to_three_and_each_change_is_one_entry() {
    let mut cluster = Cluster::of(1, as_started).await;
    cluster.member(1).put("before").await;
    for id in [2, 3] {
        let node = cluster.member(1).node().clone();
        let before = node.applied_index();
        node.add_learner(id, explained("add")).await.unwrap();
        assert_eq!(node.applied_index(), before + 1);
        cluster.start_new(steady_config(id)).await;
        caught_up(cluster.member(1), id).await;
        node.promote(id, explained("promote")).await.unwrap();
        assert_eq!(node.applied_index(), before + 2);
    }
    cluster.member(1).put("after").await;
    let expected = ["before", "add", "promote", "add", "promote", "after"];
    for id in 1..=3 {
        cluster.caught_up(id, 1).await;
        assert_eq!(cluster.member(id).ledger.commands(), expected);
        let all_vote = |status: &Status| status.voters[..] == [1, 2, 3];
        cluster.member(id).wait_status(all_vote).await;
    }
    cluster.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_member_is_the_sole_voter_until_another_may_have_a_vote_and_when_it_has_none_again() {
    let mut cluster = Cluster::of(1, as_started).await;
    let node = cluster.member(1).node().clone();
    assert!(node.is_sole_voter());
    node.add_learner(2, None).await.unwrap();
    assert!(node.is_sole_voter(), "a learner has no vote");
    let absent = node.promote(2, None).await;
    assert!(matches!(
        absent,
        Err(MembershipError::LearnerNotReady { .. })
    ));
    assert!(node.is_sole_voter(), "a refused promotion gives no vote");

    cluster.start_new(steady_config(2)).await;
    caught_up(cluster.member(1), 2).await;
    let promoting = node.promote(2, None);
    let mut promoting = Box::pin(promoting);
    // From the moment its entry may be appended, before the status shows it.
    while node.inner.promotions.load(Ordering::Acquire) == 0 {
        tokio::select! {
            biased;
            done = &mut promoting => panic!("promoted unnoticed: {done:?}"),
            () = tokio::task::yield_now() => {}
        }
    }
    assert!(!node.is_sole_voter());
    promoting.await.unwrap();
    assert!(!node.is_sole_voter(), "two have a vote");
    assert_eq!(node.inner.promotions.load(Ordering::Acquire), 0);

    node.remove(2, None).await.unwrap();
    let alone = |status: &Status| status.voters[..] == [1];
    cluster.member(1).wait_status(alone).await;
    assert!(node.is_sole_voter());
    cluster.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn changes_that_make_no_sense_are_refused() {
    let cluster = Cluster::of(1, as_started).await;
    let node = cluster.member(1).node();
    node.add_learner(9, None).await.unwrap();
    use MembershipError::{AlreadyAMember, LastVoter, NotALearner, NotAMember};
    assert_eq!(node.add_learner(9, None).await, Err(AlreadyAMember));
    assert_eq!(node.add_learner(1, None).await, Err(AlreadyAMember));
    assert_eq!(node.promote(1, None).await, Err(NotALearner));
    assert_eq!(node.promote(7, None).await, Err(NotAMember));
    assert_eq!(node.remove(7, None).await, Err(NotAMember));
    assert_eq!(node.remove(1, None).await, Err(LastVoter));
    node.remove(9, None).await.unwrap();
    cluster.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn only_the_leader_changes_members() {
    let cluster = Cluster::start(as_started).await;
    let leader = cluster.leader().await;
    let node = cluster.member(leader % 3 + 1).node();
    let refused = MembershipError::NotLeader {
        leader: Some(leader),
    };
    assert_eq!(node.add_learner(9, None).await, Err(refused.clone()));
    assert_eq!(node.promote(9, None).await, Err(refused));
    assert_eq!(node.peer_progress(leader), None);
    cluster.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn changes_at_the_same_time_come_one_after_the_other() {
    let cluster = Cluster::start(as_started).await;
    let leader = cluster.leader().await;
    let node = cluster.member(leader).node();
    let (first, second, third) = tokio::join!(
        node.add_learner(11, explained("11")),
        node.add_learner(12, explained("12")),
        node.add_learner(13, explained("13")),
    );
    assert_eq!((first, second, third), (Ok(()), Ok(()), Ok(())));
    let all_learn = |status: &Status| status.learners[..] == [11, 12, 13];
    cluster.member(leader).wait_status(all_learn).await;
    let mut commands = cluster.member(leader).ledger.commands();
    commands.sort();
    assert_eq!(commands, ["11", "12", "13"]);
    cluster.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_removed_follower_that_was_never_told_unseats_nobody() {
    let cluster = Cluster::start(as_started).await;
    let leader = cluster.leader().await;
    let removed = leader % 3 + 1;
    let node = cluster.member(leader).node();
    node.remove(removed, explained("remove")).await.unwrap();
    let term = node.status().term;
    // It hears no heartbeat any more, and asks for votes when its patience ends.
    cluster
        .member(removed)
        .wait_status(|status| status.leader.is_none())
        .await;
    let patience = steady_config(1).election_timeout * 3;
    let until = tokio::time::Instant::now() + patience;
    let mut writes = 0;
    while tokio::time::Instant::now() < until {
        cluster.member(leader).put(format!("write {writes}")).await;
        writes += 1;
        let status = node.status();
        assert_eq!((status.leader, status.term), (Some(leader), term));
    }
    assert!(writes > 0);
    assert!(
        !cluster
            .member(removed)
            .ledger
            .commands()
            .contains(&"write 0".into())
    );
    cluster.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_leader_that_removes_itself_steps_down_and_another_leads() {
    let cluster = Cluster::start(as_started).await;
    let old = cluster.leader().await;
    let node = cluster.member(old).node();
    node.remove(old, explained("remove")).await.unwrap();
    let rest: Vec<u64> = (1..=3).filter(|id| *id != old).collect();
    let new = loop {
        let leader = cluster.leader_of(&rest).await;
        if leader != old {
            break leader;
        }
    };
    cluster.member(new).put("after").await;
    let rest_votes = |status: &Status| status.voters[..] == rest[..];
    cluster.member(new).wait_status(rest_votes).await;
    cluster
        .member(old)
        .wait_status(|status| status.role == Role::Learner)
        .await;
    cluster.stop().await;
}

/// Found by the simulation (seed 7): openraft's core asserted, since it led and was no member.
#[tokio::test(start_paused = true)]
async fn a_leader_that_removed_itself_changes_no_members_any_more() {
    let cluster = Cluster::in_memory(as_started).await;
    let old = cluster.leader().await;
    let node = cluster.member(old).node();
    node.remove(old, explained("remove")).await.unwrap();
    assert_eq!(node.status().role, Role::Leader, "it leads a moment longer");
    let refused = MembershipError::NotLeader { leader: None };
    assert_eq!(node.add_learner(9, None).await, Err(refused.clone()));
    assert_eq!(node.remove(old % 3 + 1, None).await, Err(refused));
    let rest: Vec<u64> = (1..=3).filter(|id| *id != old).collect();
    cluster
        .member(rest[0])
        .wait_status(|status| status.leader.is_some_and(|leader| leader != old))
        .await;
    cluster.stop().await;
}

/// On a paused clock: a machine that stalls would let the members fall silent, and elect.
#[tokio::test(start_paused = true)]
async fn leadership_is_handed_over_without_a_lost_proposal() {
    let cluster = Cluster::in_memory(as_started).await;
    let old = cluster.leader().await;
    let to = old % 3 + 1;
    let third = to % 3 + 1;
    cluster.member(old).put("before").await;
    let moving = cluster.member(old).node().transfer_leader(to);
    let writing = async {
        // Through every member while it happens; a put panics when its outcome is unknown.
        for number in 0..60 {
            let via = [old, to, third][number % 3];
            cluster.member(via).put(format!("write {number}")).await;
        }
    };
    let (moved, ()) = tokio::join!(moving, writing);
    assert_eq!(moved, Ok(()));
    assert_eq!(cluster.leader().await, to);
    cluster.caught_up(third, to).await;
    assert_eq!(cluster.member(third).ledger.commands().len(), 61);
    cluster.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_fresh_leader_takes_its_first_writes() {
    let cluster = Cluster::start(as_started).await;
    let mut leader = cluster.leader().await;
    for number in 0..6 {
        let to = leader % 3 + 1;
        let moved = cluster.member(leader).node().transfer_leader(to).await;
        assert_eq!(moved, Ok(()));
        // At once, when no quorum has answered the new leader yet.
        cluster.member(to).put(format!("first {number}")).await;
        leader = to;
    }
    cluster.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_transfer_to_a_dead_member_is_refused_and_writes_go_on() {
    let mut cluster = Cluster::start(as_started).await;
    let leader = cluster.leader().await;
    let dead = leader % 3 + 1;
    cluster.stop_member(dead).await;
    let node = cluster.member(leader).node();
    let term = node.status().term;
    assert_eq!(
        node.transfer_leader(dead).await,
        Err(TransferError::NotReady)
    );
    cluster.member(leader).put("after").await;
    let status = cluster.member(leader).node().status();
    assert_eq!((status.leader, status.term), (Some(leader), term));
    cluster.stop().await;
}

/// openraft never takes a transfer back: the leader refuses writes until it is no leader any more.
#[tokio::test(start_paused = true)]
async fn a_target_that_dies_during_the_hand_over_stops_nobody_for_good() {
    let cluster = Cluster::in_memory(as_started).await;
    let old = cluster.leader().await;
    let (to, third) = (old % 3 + 1, (old + 1) % 3 + 1);
    cluster.member(old).put("before").await;
    let term = cluster.member(old).node().status().term;
    cluster.links.cut_off_successors();
    let moved = cluster.member(old).node().transfer_leader(to).await;
    assert!(moved.is_err(), "{moved:?}");
    cluster
        .member(third)
        .wait_status(|status| status.term > term && status.leader.is_some())
        .await;
    let new = cluster.leader_of(&[old, third]).await;
    cluster.member(new).put("after").await;
    cluster.links.heal();
    cluster.caught_up(to, cluster.leader().await).await;
    assert_eq!(cluster.member(to).ledger.commands(), ["before", "after"]);
    cluster.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_transfer_to_nobody_who_votes_is_refused_and_freezes_nothing() {
    let mut member = Member::leading(fast_config(1)).await;
    let node = member.node().clone();
    node.add_learner(2, None).await.unwrap();
    for unfit in [2, 77] {
        assert_eq!(
            node.transfer_leader(unfit).await,
            Err(TransferError::NotAVoter)
        );
        member.put(format!("after {unfit}")).await;
        node.linearizable().await.unwrap();
    }
    assert_eq!(node.transfer_leader(1).await, Ok(()), "it leads already");
    member.put("at the end").await;
    member.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_follower_hands_over_nothing() {
    let cluster = Cluster::start(as_started).await;
    let leader = cluster.leader().await;
    let follower = leader % 3 + 1;
    let refused = cluster.member(follower).node().transfer_leader(follower);
    assert_eq!(
        refused.await,
        Err(TransferError::NotLeader {
            leader: Some(leader)
        })
    );
    cluster.stop().await;
}

/// A candidate that only this test plays, with a log as long as can be.
async fn asks_for_a_vote(member: &Member, rpc: Rpc, by_transfer: bool) -> bool {
    use crate::types::{Vote, raft_log_id};
    let term = member.node().status().term + 100;
    let candidate = Vote::new(term, 99);
    let mut request = openraft::raft::VoteRequest::new(candidate, raft_log_id(1 << 40, term));
    request.leadership_transfer = by_transfer;
    let answer = member
        .node()
        .answer(rpc, wire::encode_vote_request(&request))
        .await
        .unwrap();
    wire::decode_vote_answer(answer).unwrap().vote_granted
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_restarted_voter_gives_no_vote_for_one_lease() {
    let slow = |config| crate::Config {
        election_timeout: Duration::from_secs(6),
        heartbeat_interval: Duration::from_millis(600),
        ..config
    };
    let mut cluster = Cluster::start(slow).await;
    let leader = cluster.leader().await;
    let voter = leader % 3 + 1;
    cluster.stop_member(voter).await;
    let restarted = tokio::time::Instant::now();
    cluster.start_member(voter).await;
    cluster.links.isolate(voter);
    let lease = cluster.member(voter).config.leader_lease();
    assert!(!asks_for_a_vote(cluster.member(voter), Rpc::PreVote, false).await);
    assert!(!asks_for_a_vote(cluster.member(voter), Rpc::Vote, false).await);
    assert!(
        restarted.elapsed() < lease,
        "the machine is too slow to tell"
    );
    let granted = async {
        while !asks_for_a_vote(cluster.member(voter), Rpc::PreVote, false).await {
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
    };
    tokio::time::timeout(PATIENCE, granted)
        .await
        .expect("it votes again when the lease is over");
    assert!(restarted.elapsed() >= lease);
    cluster.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_restarted_leader_does_not_lead_before_it_is_elected_again() {
    let mut cluster = Cluster::start(as_started).await;
    let old = cluster.leader().await;
    cluster.member(old).put("before").await;
    cluster.stop_member(old).await;
    let others: Vec<u64> = (1..=3).filter(|id| *id != old).collect();
    for id in &others {
        cluster.links.isolate(*id);
    }
    cluster.start_member(old).await;
    let read = cluster.member(old).node().linearizable().await;
    assert_eq!(read, Err(crate::ReadError::NoLeader));
    assert_ne!(cluster.member(old).node().status().role, Role::Leader);
    cluster.links.heal();
    cluster.leader().await;
    cluster.stop().await;
}
