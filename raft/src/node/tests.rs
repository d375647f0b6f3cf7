use std::sync::Arc;
use std::time::{Duration, Instant};

use bytes::Bytes;
use parking_lot::Mutex;

use super::*;
use crate::ProposeError;
use crate::config::PROPOSALS_IN_FLIGHT_MAX;
use crate::testing::{Breakage, Member, PATIENCE, eventually, fast_config};

fn command(number: usize) -> Bytes {
    Bytes::from(format!("command {number}"))
}

fn commands(count: usize) -> Vec<Bytes> {
    (0..count).map(command).collect()
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_only_voter_leads_without_waiting_for_an_election_timeout() {
    let config = Config {
        member_id: 1,
        election_timeout: Duration::from_secs(40),
        heartbeat_interval: Duration::from_secs(8),
        ..Config::default()
    };
    let started = Instant::now();
    let mut member = Member::leading(config).await;
    member.restart().await;
    let status = member.wait_leading().await;
    assert_eq!(
        (status.leader, &*status.voters, &*status.learners),
        (Some(1), &[1][..], &[][..])
    );
    let took = started.elapsed();
    assert!(took < Duration::from_secs(8), "leading twice took {took:?}");
    member.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn proposals_of_one_caller_are_applied_in_order_and_once() {
    let mut member = Member::leading(fast_config(1)).await;
    for number in 0..50 {
        member.put(command(number)).await;
    }
    assert_eq!(member.ledger.commands(), commands(50));
    let given = member.ledger.given();
    assert_eq!(given, (1..=given.len() as u64).collect::<Vec<_>>());
    member.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn packed_commands_are_one_entry() {
    let mut member = Member::leading(fast_config(1)).await;
    member.put(command(0)).await;
    let before = member.node().status().last_log_index;
    let refused = member.propose(commands(5)[1..].to_vec());
    let node = member.node().clone();
    node.wait_applied(before + 1).await.unwrap();
    assert_eq!(member.ledger.commands(), commands(5));
    assert_eq!(node.status().last_log_index, before + 1);
    assert!(refused.await.is_err(), "an applied proposal is not refused");
    member.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn restart_replays_what_the_machine_had_not_kept_exactly_once() {
    let mut member = Member::leading(fast_config(1)).await;
    for number in 0..20 {
        member.put(command(number)).await;
    }
    member.ledger.persist();
    let kept = member.ledger.applied_index();
    for number in 20..50 {
        member.put(command(number)).await;
    }
    member.restart().await;
    member.wait_leading().await;
    eventually("replay", || member.ledger.commands().len() >= 50).await;
    assert_eq!(member.ledger.commands(), commands(50));
    assert_eq!(member.ledger.given()[0], kept + 1);
    member.put(command(50)).await;
    assert_eq!(member.ledger.commands(), commands(51));
    member.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn initialize_twice_is_refused() {
    let mut member = Member::leading(fast_config(1)).await;
    let again = member.node().initialize(&[1]).await;
    assert!(matches!(again, Err(Error::AlreadyInitialized)), "{again:?}");
    member.restart().await;
    let again = member.node().initialize(&[1]).await;
    assert!(matches!(again, Err(Error::AlreadyInitialized)), "{again:?}");
    member.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn initialize_without_this_member_is_refused() {
    let mut member = Member::alone(fast_config(1));
    member.start().await;
    let refused = member.node().initialize(&[2, 3]).await;
    assert!(
        matches!(refused, Err(Error::NotAVoter { member_id: 1, .. })),
        "{refused:?}"
    );
    member.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_member_without_a_cluster_refuses_proposals() {
    let mut member = Member::alone(fast_config(1));
    member.start().await;
    let refused = member.propose(commands(1)).await;
    assert_eq!(refused, Ok(ProposeError::NotLeader { leader: None }));
    member.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn ten_thousand_concurrent_proposals_are_applied_once_each() {
    const COUNT: usize = 10_000;
    let mut member = Member::leading(fast_config(1)).await;
    let refused: Vec<_> = (0..COUNT)
        .map(|number| member.propose(vec![command(number)]))
        .collect();
    for outcome in refused {
        assert!(outcome.await.is_err(), "a proposal was refused");
    }
    let mut applied = member.ledger.commands();
    applied.sort();
    let mut expected = commands(COUNT);
    expected.sort();
    assert_eq!(applied, expected);
    member.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn proposals_in_flight_at_the_stop_are_applied_or_refused_and_never_both() {
    const COUNT: usize = 2_000;
    let mut member = Member::leading(fast_config(1)).await;
    let refused = Arc::new(Mutex::new(Vec::new()));
    for number in 0..COUNT {
        let refused = refused.clone();
        let note = Box::new(move |error| refused.lock().push((command(number), error)));
        member.node().propose(vec![command(number)], note);
    }
    member.stop().await;
    let refused = std::mem::take(&mut *refused.lock());
    assert!(
        refused
            .iter()
            .all(|(_, error)| *error == ProposeError::Stopped)
    );
    let mut seen = member.ledger.commands();
    seen.extend(refused.into_iter().map(|(command, _)| command));
    seen.sort();
    let mut expected = commands(COUNT);
    expected.sort();
    assert_eq!(seen, expected);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_stopped_node_refuses_proposals_and_reads() {
    let mut member = Member::leading(fast_config(1)).await;
    let node = member.node().clone();
    member.stop().await;
    let (sender, refused) = tokio::sync::oneshot::channel();
    node.propose(commands(1), Box::new(move |error| drop(sender.send(error))));
    assert_eq!(refused.await, Ok(ProposeError::Stopped));
    assert_eq!(node.linearizable().await, Err(ReadError::Stopped));
    assert!(matches!(
        node.wait_applied(u64::MAX).await,
        Err(Error::Stopped)
    ));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 3)]
async fn too_many_proposals_in_flight_are_refused_at_once() {
    let mut member = Member::leading(fast_config(1)).await;
    member.ledger.shut();
    let mut refused: Vec<_> = (0..PROPOSALS_IN_FLIGHT_MAX)
        .map(|number| member.propose(vec![command(number)]))
        .collect();
    let over = member.propose(vec![command(PROPOSALS_IN_FLIGHT_MAX)]);
    assert_eq!(over.await, Ok(ProposeError::Overloaded));
    member.ledger.open();
    assert!(
        refused.pop().unwrap().await.is_err(),
        "the last one within the bound is applied"
    );
    let room = member.propose(vec![command(PROPOSALS_IN_FLIGHT_MAX)]);
    assert!(room.await.is_err(), "there is room again");
    member.stop().await;
}

/// Whatever waits for openraft itself wakes at each change of its metrics, which is at each entry.
#[tokio::test(flavor = "multi_thread", worker_threads = 3)]
async fn a_waiting_proposal_is_no_task() {
    const COUNT: usize = 1000;
    let mut member = Member::leading(fast_config(1)).await;
    member.put(command(0)).await;
    member.ledger.shut();
    let tasks = || Handle::current().metrics().num_alive_tasks();
    let before = (tasks(), member.node().status().committed_index);
    let refused: Vec<_> = (0..COUNT)
        .map(|number| member.propose(vec![command(number)]))
        .collect();
    let all = before.1 + COUNT as u64;
    eventually("commit", || member.node().status().committed_index == all).await;
    assert!(
        tasks() < before.0 + 10,
        "{} tasks, {} before",
        tasks(),
        before.0
    );
    member.ledger.open();
    for outcome in refused {
        assert!(outcome.await.is_err(), "a proposal was refused");
    }
    member.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_linearizable_read_sees_every_write_acknowledged_before_it() {
    let mut member = Member::leading(fast_config(1)).await;
    let node = member.node().clone();
    for number in 0..300 {
        let outcome = member.propose(vec![command(number)]);
        let acknowledged = member.ledger.commands().len();
        let index = node.linearizable().await.unwrap();
        assert!(member.ledger.commands().len() >= acknowledged);
        let applied = member.ledger.applied_index();
        assert!(
            index <= applied,
            "read at {index} was released at {applied}"
        );
        if number % 2 == 0 {
            assert!(outcome.await.is_err());
            let index = node.linearizable().await.unwrap();
            assert!(
                index >= member.ledger.given()[number],
                "read at {index} misses a write"
            );
        }
    }
    member.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 3)]
async fn a_linearizable_read_waits_for_apply() {
    let mut member = Member::leading(fast_config(1)).await;
    member.put(command(0)).await;
    let before = member.node().status().applied_index;
    member.ledger.shut();
    let _outcome = member.propose(vec![command(1)]);
    let node = member.node().clone();
    eventually("commit", || node.status().committed_index > before).await;
    let read = tokio::spawn({
        let node = node.clone();
        async move { node.linearizable().await }
    });
    let early = tokio::time::timeout(Duration::from_millis(100), async {
        while !read.is_finished() {
            tokio::time::sleep(Duration::from_millis(1)).await;
        }
    });
    assert!(
        early.await.is_err(),
        "the read was released before the write was applied"
    );
    member.ledger.open();
    assert!(read.await.unwrap().unwrap() > before);
    assert_eq!(member.ledger.commands(), commands(2));
    member.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_checkpoint_purges_the_log_and_a_restart_goes_on_from_there() {
    let config = Config {
        snapshot_count: 40,
        snapshot_catchup_entries: 10,
        ..fast_config(1)
    };
    let mut member = Member::leading(config).await;
    for number in 0..3000 {
        member.put(Bytes::from(format!("{number:01000}"))).await;
    }
    member.stop().await;
    let (wal, recovered) = crate::testing::open_wal(member.dir.path(), 1);
    let (purged, _) = recovered.purged.expect("the log was purged");
    assert!(purged > 1000, "purged only up to {purged}");
    assert!(
        recovered.entries.len() < 2000,
        "{} entries left",
        recovered.entries.len()
    );
    assert!(
        wal.size_bytes() < 4 << 20,
        "{} bytes of log left",
        wal.size_bytes()
    );
    wal.close().unwrap();

    member.start().await;
    member.wait_leading().await;
    member.put("after").await;
    let found = member.ledger.commands();
    assert_eq!(found.len(), 3001);
    assert_eq!(found[2999], Bytes::from(format!("{:01000}", 2999)));
    member.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_failing_state_machine_is_reported_and_stops_the_node() {
    let mut member = Member::leading(fast_config(1)).await;
    member.ledger.break_down(Breakage::Error);
    let refused = member.propose(commands(1));
    let failed = tokio::time::timeout(PATIENCE, member.node().failed())
        .await
        .unwrap();
    assert!(
        failed.to_string().contains("the ledger is broken"),
        "{failed}"
    );
    assert_eq!(refused.await, Ok(ProposeError::Stopped));
    assert_eq!(member.node().status().leader, None);
    assert_eq!(member.node().linearizable().await, Err(ReadError::Stopped));
    member.stop().await;
}

/// openraft's core notices it only if there is more to apply.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_panic_of_the_state_machine_is_reported() {
    let mut member = Member::leading(fast_config(1)).await;
    member.ledger.break_down(Breakage::Panic);
    let _refused = member.propose(commands(1));
    let failed = tokio::time::timeout(PATIENCE, member.node().failed())
        .await
        .unwrap();
    assert!(matches!(*failed, Error::Fatal(_)), "{failed}");
    assert_eq!(member.node().status().leader, None);
    assert_eq!(member.node().linearizable().await, Err(ReadError::Stopped));
    member.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_ordinary_stop_is_not_reported_as_a_failure() {
    let mut member = Member::leading(fast_config(1)).await;
    let failed = tokio::spawn(member.node().failed());
    member.stop().await;
    tokio::task::yield_now().await;
    assert!(!failed.is_finished());
    failed.abort();
}

/// Zeroes the last `bytes` that were written to the log of a stopped member.
fn tear(dir: &std::path::Path, bytes: usize) {
    let files = std::fs::read_dir(dir.join("wal"))
        .unwrap()
        .map(|file| file.unwrap().path());
    let newest = files
        .filter(|file| file.extension().is_some_and(|end| end == "wal"))
        .max()
        .unwrap();
    let mut content = std::fs::read(&newest).unwrap();
    let end = content.iter().rposition(|byte| *byte != 0).unwrap() + 1;
    content[end - bytes..end].fill(0);
    std::fs::write(&newest, content).unwrap();
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_torn_tail_costs_only_what_was_torn() {
    let mut member = Member::leading(fast_config(1)).await;
    for number in 0..20 {
        member.put(command(number)).await;
    }
    member.stop().await;
    tear(member.dir.path(), 400);
    member.start().await;
    member.wait_leading().await;
    member.put("after").await;
    let mut found = member.ledger.commands();
    assert_eq!(found.pop().unwrap(), "after");
    assert!(
        (10..20).contains(&found.len()),
        "{} entries left",
        found.len()
    );
    assert_eq!(found, commands(found.len()));
    member.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_machine_ahead_of_a_torn_log_is_not_given_an_entry_twice() {
    let mut member = Member::leading(fast_config(1)).await;
    for number in 0..20 {
        member.put(command(number)).await;
    }
    member.ledger.persist();
    let applied = member.ledger.applied_index();
    member.stop().await;
    tear(member.dir.path(), 400);
    member.start().await;
    member.wait_leading().await;
    member.put("after").await;
    assert!(member.ledger.given()[0] > applied);
    assert_eq!(member.ledger.commands()[..20], commands(20));
    member.restart().await;
    member.wait_leading().await;
    eventually("replay", || member.ledger.commands().len() == 21).await;
    member.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_proposal_for_one_term_is_refused_in_every_other() {
    let mut member = Member::leading(fast_config(1)).await;
    let old = member.wait_leading().await.term;
    member.restart().await;
    let term = member.wait_leading().await.term;
    assert!(old < term);
    let propose = |term, command: usize| {
        let (sender, refused) = tokio::sync::oneshot::channel();
        let refusal = Box::new(move |error| drop(sender.send(error)));
        let commands = vec![Bytes::from(format!("command {command}"))];
        member.node().propose_in_term(term, commands, refusal);
        refused
    };

    for other in [old, term + 1] {
        let refusal = propose(other, 1).await.unwrap();
        assert!(
            matches!(refusal, ProposeError::NotLeader { .. }),
            "{refusal}"
        );
    }
    let refused = propose(term, 0);
    member.put(command(2)).await;

    assert_eq!(member.ledger.commands(), [command(0), command(2)]);
    refused.await.unwrap_err();
    member.stop().await;
}
