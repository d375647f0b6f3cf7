use std::sync::atomic::{AtomicU64, Ordering};

use super::*;
use crate::testing::{Cluster, eventually};
use crate::{Config, ProposeError, Role};

fn other_than(leader: u64) -> u64 {
    leader % 3 + 1
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn three_members_elect_a_leader_and_apply_the_same() {
    let cluster = Cluster::start(|config| config).await;
    let leader = cluster.leader().await;
    for number in 0..50 {
        cluster
            .member(leader)
            .put(format!("command {number}"))
            .await;
    }
    let expected = cluster.member(leader).ledger.commands();
    assert_eq!(expected.len(), 50);
    for id in 1..=3 {
        cluster.caught_up(id, leader).await;
        assert_eq!(cluster.member(id).ledger.commands(), expected);
    }
    cluster.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_follower_serves_linearizable_reads() {
    let cluster = Cluster::start(|config| config).await;
    let leader = cluster.leader().await;
    let follower = cluster.member(other_than(leader));
    for number in 0..20 {
        cluster
            .member(leader)
            .put(format!("command {number}"))
            .await;
        follower.node().linearizable().await.unwrap();
        assert_eq!(follower.ledger.commands().len(), number + 1);
    }
    cluster.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_follower_hands_proposals_to_the_leader_and_applies_them_itself() {
    let cluster = Cluster::start(|config| config).await;
    let leader = cluster.leader().await;
    let follower = cluster.member(other_than(leader));
    for number in 0..20 {
        let command = format!("command {number}");
        follower.put(command.clone()).await;
        assert_eq!(follower.ledger.commands().last().unwrap(), &command);
    }
    for id in 1..=3 {
        cluster.caught_up(id, leader).await;
        assert_eq!(cluster.member(id).ledger.commands().len(), 20);
    }
    cluster.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn proposals_that_wait_for_the_leader_share_an_entry() {
    const COUNT: usize = 100;
    let cluster = Cluster::start(|config| config).await;
    let leader = cluster.leader().await;
    let follower = cluster.member(other_than(leader));
    let log_end = || cluster.member(leader).node().status().last_log_index;
    let before = log_end();
    // A leader that does not apply does not answer.
    cluster.member(leader).ledger.shut();
    let mut expected: Vec<Bytes> = (0..COUNT).map(|n| format!("command {n}").into()).collect();
    let propose = |command: &Bytes| follower.propose(vec![command.clone()]);
    let refused: Vec<_> = expected.iter().map(propose).collect();
    eventually("the first in the leader's log", || log_end() > before).await;
    cluster.member(leader).ledger.open();
    let applied = || follower.ledger.commands().len() == COUNT;
    eventually("all applied", applied).await;
    // Messages that are under way together may overtake each other; each command comes once.
    let mut commands = follower.ledger.commands();
    commands.sort_unstable();
    expected.sort_unstable();
    assert_eq!(commands, expected);
    let entries = (log_end() - before) as usize;
    let most = 2 * crate::forward::PACKS_IN_FLIGHT;
    assert!(entries <= most, "{entries} entries, at most {most}");
    for refused in refused {
        assert!(refused.await.is_err(), "applied, so never refused");
    }
    cluster.stop().await;
}

#[tokio::test(start_paused = true)]
async fn a_proposal_that_was_never_sent_is_tried_again_until_a_leader_takes_it() {
    let cluster = Cluster::in_memory(|config| config).await;
    let old = cluster.leader().await;
    let follower = cluster.member(other_than(old));
    cluster.links.isolate(follower.id);
    let refused = follower.propose(vec!["once".into()]);
    eventually("attempts", || cluster.links.proposals_not_sent() >= 3).await;
    cluster.links.heal();
    cluster.leader().await;
    let mut applied = follower.node().watch_applied();
    let seen = applied.wait_for(|_| follower.ledger.commands() == ["once"]);
    tokio::time::timeout(crate::testing::PATIENCE, seen)
        .await
        .unwrap()
        .unwrap();
    assert!(refused.await.is_err(), "applied, so never refused");
    cluster.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_proposal_whose_answer_is_lost_is_unknown_and_not_sent_twice() {
    let cluster = Cluster::start(|config| config).await;
    let old = cluster.leader().await;
    let follower = cluster.member(other_than(old));
    // The leader has the entry in its log when the link goes, and never answers.
    cluster.member(old).ledger.shut();
    let before = cluster.member(old).node().status().last_log_index;
    let refused = follower.propose(vec!["unknown".into()]);
    let leader = cluster.member(old).node().clone();
    let in_its_log = || leader.status().last_log_index > before;
    eventually("the entry in the leader's log", in_its_log).await;
    cluster.links.isolate(old);
    cluster.member(old).ledger.open();
    assert_eq!(refused.await, Ok(ProposeError::NoAnswer));
    cluster.links.heal();
    let leader = cluster.leader().await;
    cluster.member(leader).put("after").await;
    for id in 1..=3 {
        cluster.caught_up(id, leader).await;
        let commands = cluster.member(id).ledger.commands();
        let times = commands.iter().filter(|c| *c == "unknown").count();
        assert!(times <= 1, "applied {times} times");
    }
    cluster.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_application_answers_that_of_another_member() {
    struct Echo;
    impl crate::App for Echo {
        fn answer(&self, request: Bytes) -> Pin<Box<dyn Future<Output = Bytes> + Send + '_>> {
            Box::pin(async move { [&b"heard "[..], &request].concat().into() })
        }
    }
    let cluster = Cluster::start(|config| config).await;
    let ask = || {
        let asking = cluster.member(1).node();
        asking.ask(2, "you".into(), Duration::from_secs(10))
    };
    assert!(matches!(ask().await, Err(PeerError::Answer(_))));
    cluster.member(2).node().serve_app(Arc::new(Echo));
    assert_eq!(ask().await.unwrap(), "heard you");
    cluster.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_restarted_follower_catches_up_from_the_log() {
    let mut cluster = Cluster::start(|config| config).await;
    let leader = cluster.leader().await;
    let follower = other_than(leader);
    cluster.member(leader).put("before").await;
    cluster.stop_member(follower).await;
    for number in 0..30 {
        cluster
            .member(leader)
            .put(format!("command {number}"))
            .await;
    }
    cluster.start_member(follower).await;
    cluster.caught_up(follower, leader).await;
    let expected = cluster.member(leader).ledger.commands();
    assert_eq!(expected.len(), 31);
    assert_eq!(cluster.member(follower).ledger.commands(), expected);
    cluster.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_follower_whose_entries_are_purged_gets_a_snapshot() {
    let small = |config| Config {
        snapshot_count: 20,
        snapshot_catchup_entries: 5,
        ..config
    };
    let mut cluster = Cluster::start(small).await;
    let leader = cluster.leader().await;
    let follower = other_than(leader);
    cluster.stop_member(follower).await;
    for number in 0..2500 {
        cluster
            .member(leader)
            .put(format!("command {number}"))
            .await;
    }
    cluster.start_member(follower).await;
    cluster.caught_up(follower, leader).await;
    let expected = cluster.member(leader).ledger.commands();
    assert_eq!(expected.len(), 2500);
    assert_eq!(cluster.member(follower).ledger.commands(), expected);
    let given = cluster.member(follower).ledger.given();
    assert!(
        given.len() < 2000,
        "{} entries were sent one by one",
        given.len()
    );
    cluster.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_cut_off_leader_is_replaced_and_reports_no_leader() {
    let cluster = Cluster::start(|config| config).await;
    let old = cluster.leader().await;
    cluster.member(old).put("before").await;
    cluster.links.isolate(old);
    let rest: Vec<u64> = (1..=3).filter(|id| *id != old).collect();
    cluster
        .member(old)
        .wait_status(|status| status.leader.is_none())
        .await;
    let refused = cluster.member(old).propose(vec!["lost".into()]).await;
    assert_eq!(refused, Ok(ProposeError::NoQuorum));
    assert_eq!(
        cluster.member(old).node().linearizable().await,
        Err(crate::ReadError::NoLeader)
    );

    let new = cluster.leader_of(&rest).await;
    cluster.member(new).put("after").await;
    cluster.links.heal();
    assert_eq!(
        cluster.leader().await,
        cluster.member(new).node().status().leader.unwrap()
    );
    cluster.caught_up(old, new).await;
    assert_eq!(cluster.member(old).ledger.commands(), ["before", "after"]);
    assert_eq!(cluster.member(old).node().status().role, Role::Follower);
    cluster.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_entry_of_a_cut_off_leader_is_refused_as_unknown_and_replaced() {
    let cluster = Cluster::start(|config| config).await;
    let old = cluster.leader().await;
    cluster.member(old).put("before").await;
    cluster.links.isolate(old);
    // A quorum answered just now, so the leader still takes a proposal, which no other member gets.
    let lost = cluster.member(old).propose(vec!["lost".into()]);
    let rest: Vec<u64> = (1..=3).filter(|id| *id != old).collect();
    let new = cluster.leader_of(&rest).await;
    cluster.member(new).put("kept").await;
    cluster.links.heal();
    assert_eq!(lost.await, Ok(ProposeError::LeadershipLost));
    cluster.caught_up(old, cluster.leader().await).await;
    assert_eq!(cluster.member(old).ledger.commands(), ["before", "kept"]);
    cluster.stop().await;
}

#[tokio::test(start_paused = true)]
async fn a_member_that_is_down_is_tried_with_growing_pauses() {
    let mut cluster = Cluster::in_memory(|config| config).await;
    let leader = cluster.leader().await;
    cluster.stop_member(other_than(leader)).await;
    let before = cluster.links.appends_not_opened();
    for number in 0..400 {
        cluster.member(leader).put(format!("write {number}")).await;
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
    // In these 2 s: after pauses of 20, 40, 80, 160 and 320 ms, then each 500 ms.
    let attempts = cluster.links.appends_not_opened() - before;
    assert!((5..=10).contains(&attempts), "{attempts} attempts in 2 s");
    cluster.stop().await;
}

#[tokio::test]
async fn a_cluster_of_one_reaches_nobody() {
    let refused = NoPeers
        .call(2, Rpc::Vote, Bytes::new(), Duration::from_secs(1))
        .await;
    assert!(matches!(refused, Err(PeerError::NotSent(_))), "{refused:?}");
}

#[tokio::test]
async fn an_append_without_an_answer_ends_the_stream_and_an_idle_stream_lives() {
    let sent = Arc::new(AtomicU64::new(0));
    let silent: AnswerStream = Box::pin(stream::pending());
    let answers = within_idle_timeout(silent, sent.clone(), Duration::from_millis(10));
    futures_util::pin_mut!(answers);
    let idle = tokio::time::timeout(Duration::from_millis(100), answers.next()).await;
    assert!(idle.is_err(), "a stream without requests must not end");
    sent.fetch_add(1, Ordering::Relaxed);
    let ended = tokio::time::timeout(crate::testing::PATIENCE, answers.next()).await;
    assert_eq!(ended, Ok(Some(Err(PeerError::Timeout))));
    assert_eq!(answers.next().await, None);
}

/// openraft applies its back-off to the requests of a stream, not to its opening: a transport that could not connect was
/// asked again at once, thousands of times a second.
#[tokio::test(start_paused = true)]
async fn entries_for_a_dead_member_are_tried_with_back_off() {
    let mut cluster = Cluster::in_memory(|config| config).await;
    let leader = cluster.leader().await;
    let dead = other_than(leader);
    cluster.stop_member(dead).await;
    let before = cluster.links.appends_not_opened();
    // Nothing is written meanwhile, so nothing but the back-off asks for attempts.
    tokio::time::sleep(Duration::from_secs(10)).await;
    let attempts = cluster.links.appends_not_opened() - before;
    assert!(attempts <= 26, "{attempts} attempts in 10 s");
    cluster.start_member(dead).await;
    cluster.caught_up(dead, leader).await;
    cluster.stop().await;
}

#[tokio::test]
#[should_panic(expected = "must not send messages to itself")]
async fn a_client_for_this_member_itself_is_never_made() {
    let mut factory = factory();
    factory.new_client(1, &EmptyNode {}).await;
}

/// openraft asks for clients often, for each election and heartbeat worker.
#[tokio::test]
async fn every_client_shares_the_one_transport_and_opens_nothing() {
    let mut factory = factory();
    let clients = [
        factory.new_client(2, &EmptyNode {}).await,
        factory.new_client(2, &EmptyNode {}).await,
        factory.new_heartbeat_client(2, &EmptyNode {}).await,
    ];
    for client in &clients {
        assert!(Arc::ptr_eq(&client.transport, &factory.transport));
    }
    assert_eq!(clients[0].lane, Lane::Replication);
    assert_eq!(clients[2].lane, Lane::Heartbeat);
}

fn factory() -> Factory {
    Factory {
        member_id: 1,
        transport: Arc::new(NoPeers),
        idle_timeout: Duration::from_secs(1),
        shelf: crate::snapshot::Shelf::default(),
    }
}
