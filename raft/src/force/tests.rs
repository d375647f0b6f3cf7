use std::time::Duration;

use bytes::Bytes;

use super::*;
use crate::testing::{Cluster, Member, PATIENCE, fast_config, open_wal};
use crate::{Error, Role};

/// Forces a stopped member as its process would before raft starts.
async fn force(member: &Member) -> Result<Option<u64>> {
    let (wal, mut recovered) = open_wal(member.dir.path(), member.id);
    let applied = member
        .ledger
        .machine()
        .applied()
        .map_err(Error::StateMachine)?;
    let command = Bytes::from_static(b"alone");
    let index = force_alone(member.id, &wal, &mut recovered, &applied, command).await?;
    tokio::task::spawn_blocking(move || wal.close().unwrap())
        .await
        .unwrap();
    // What was said of the log is what an opening finds.
    let (wal, found) = open_wal(member.dir.path(), member.id);
    assert_eq!(
        (&found.vote, &found.entries, found.purged),
        (&recovered.vote, &recovered.entries, recovered.purged)
    );
    tokio::task::spawn_blocking(move || wal.close().unwrap())
        .await
        .unwrap();
    Ok(index)
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn one_of_three_goes_on_alone_with_everything_in_its_log_and_grows_again() {
    let mut cluster = Cluster::start(|config| config).await;
    let leader = cluster.leader().await;
    let survivor = leader % 3 + 1;
    for number in 0..20 {
        cluster
            .member(leader)
            .put(format!("command {number}"))
            .await;
    }
    cluster.caught_up(survivor, leader).await;
    for id in 1..=3 {
        cluster.stop_member(id).await;
    }

    let member = cluster.member(survivor);
    let forced = force(member).await.unwrap().expect("it was not alone");
    assert_eq!(force(member).await.unwrap(), None, "once is enough");
    cluster.start_member(survivor).await;

    let status = cluster.member(survivor).wait_leading().await;
    assert_eq!(
        (&*status.voters, &*status.learners),
        (&[survivor][..], &[][..])
    );
    let member = cluster.member(survivor);
    member.node().wait_applied(forced).await.unwrap();
    member.put("after").await;
    let commands = member.ledger.commands();
    assert_eq!(commands.len(), 22, "{commands:?}");
    assert_eq!(
        commands[19..],
        ["command 19", "alone", "after"].map(Bytes::from)
    );

    // A new id; those that were lost stay lost.
    cluster.start_new(crate::testing::steady_config(4)).await;
    let node = cluster.member(survivor).node().clone();
    node.add_learner(4, None).await.unwrap();
    tokio::time::timeout(PATIENCE, async {
        while node.promote(4, None).await.is_err() {
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
    })
    .await
    .unwrap();
    cluster.caught_up(4, survivor).await;
    assert_eq!(
        cluster.member(4).ledger.commands(),
        cluster.member(survivor).ledger.commands()
    );
    cluster.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn state_machine_ahead_of_its_log_goes_on_behind_it() {
    let mut member = Member::leading(fast_config(1)).await;
    member.put("kept").await;
    member.ledger.persist();
    member.stop().await;
    let (wal, mut recovered) = open_wal(member.dir.path(), 1);
    let ahead = Applied {
        index: 1000,
        term: 7,
        membership: Bytes::new(),
    };

    let index = force_alone(
        1,
        &wal,
        &mut recovered,
        &ahead,
        Bytes::from_static(b"alone"),
    );

    // The log itself says that the member is alone, but not after what the state machine contains.
    assert_eq!(index.await.unwrap(), Some(1001));
    assert_eq!(recovered.purged, Some((1000, 7)));
    assert_eq!(recovered.entries.len(), 1);
    assert!(recovered.entries[0].term > 7);
    drop(wal);
    let (_, found) = open_wal(member.dir.path(), 1);
    assert_eq!(
        (found.purged, found.entries),
        (recovered.purged, recovered.entries)
    );
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn member_that_is_alone_is_left_as_it_is() {
    let mut member = Member::leading(fast_config(1)).await;
    member.put("kept").await;
    member.stop().await;
    assert_eq!(force(&member).await.unwrap(), None);
    member.start().await;
    let status = member.wait_leading().await;
    assert_eq!(status.role, Role::Leader);
    member.stop().await;
}
