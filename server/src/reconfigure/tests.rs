//! etcd's checks before a change of the members.

use kv_proto::commandpb::{MemberAdd, MemberPromote, MemberRemove, MemberUpdate};

use super::*;

/// A member that has started.
fn voter(id: u64) -> Row {
    Row {
        id,
        name: format!("m{id}"),
        peer_urls: vec![url(id)],
        ..Default::default()
    }
}

fn unstarted(id: u64) -> Row {
    Row {
        name: String::new(),
        ..voter(id)
    }
}

fn learner(id: u64) -> Row {
    Row {
        is_learner: true,
        ..voter(id)
    }
}

fn url(id: u64) -> String {
    format!("http://10.0.0.{id}:2380")
}

fn add(id: u64, is_learner: bool) -> Question {
    Question::MemberAdd(MemberAdd {
        id,
        peer_urls: vec![url(id)],
        is_learner,
    })
}

fn remove(id: u64) -> Question {
    Question::MemberRemove(MemberRemove { id })
}

fn promote(id: u64) -> Question {
    Question::MemberPromote(MemberPromote { id })
}

fn update(id: u64, url: String) -> Question {
    let peer_urls = vec![url];
    Question::MemberUpdate(MemberUpdate { id, peer_urls })
}

/// Checks `change` while the members `down` do not answer; 99 was removed.
fn check(rows: &[Row], down: &[u64], change: Question) -> Result<()> {
    let voters: Vec<u64> = rows
        .iter()
        .filter(|row| !row.is_learner)
        .map(|row| row.id)
        .collect();
    check_with_voters(rows, &voters, down, change)
}

/// As [`check`], where only `raft_voters` have their vote already.
fn check_with_voters(
    rows: &[Row],
    raft_voters: &[u64],
    down: &[u64],
    change: Question,
) -> Result<()> {
    let view = View {
        rows,
        learners_max: 1,
        strict: true,
        is_removed: &|id| id == 99,
        raft_voters,
        connected_for: &|id| (!down.contains(&id)).then_some(HEALTH_INTERVAL),
        is_behind: &|id| down.contains(&id),
    };
    view.check(&change)
}

#[test]
fn a_member_is_added_while_the_quorum_of_the_enlarged_cluster_works() {
    let three = [voter(1), voter(2), voter(3)];
    assert_eq!(check(&three[..1], &[], add(4, false)), Ok(()));
    assert_eq!(check(&three, &[], add(4, false)), Ok(()));
    // Three of four, the new one down: all of the present three are needed.
    assert_eq!(check(&three, &[3], add(4, false)), Err(Error::Unhealthy));
    assert_eq!(check(&three, &[3], add(4, true)), Err(Error::Unhealthy));
}

#[test]
fn members_that_never_started_count_against_the_next() {
    let rows = [voter(1), unstarted(2)];
    assert_eq!(
        check(&rows, &[2], add(3, false)),
        Err(Error::NotEnoughStarted)
    );
    let rows = [voter(1), voter(2), unstarted(3)];
    assert_eq!(
        check(&rows, &[3], add(4, false)),
        Err(Error::NotEnoughStarted)
    );
}

#[test]
fn a_member_without_its_vote_yet_is_no_part_of_the_quorum_that_is_left() {
    let rows = [voter(1), voter(2), voter(3), voter(4)];
    // 4 has come in and is being caught up; 3 is down: without 2 only 1 of 1 and 3 would be left.
    assert_eq!(
        check_with_voters(&rows, &[1, 2, 3], &[3], remove(2)),
        Err(Error::Unhealthy)
    );
    assert_eq!(check(&rows, &[3], remove(2)), Ok(()));
    assert_eq!(check_with_voters(&rows, &[1, 2, 3], &[], remove(2)), Ok(()));
    // The one that is down may always go, and so may the one without its vote.
    assert_eq!(
        check_with_voters(&rows, &[1, 2, 3], &[3], remove(3)),
        Ok(())
    );
    assert_eq!(
        check_with_voters(&rows, &[1, 2, 3], &[3], remove(4)),
        Ok(())
    );
}

#[test]
fn a_member_that_only_just_answers_is_not_yet_connected() {
    let rows = [voter(1), voter(2)];
    let view = View {
        rows: &rows,
        learners_max: 1,
        strict: true,
        is_removed: &|_| false,
        raft_voters: &[1, 2],
        connected_for: &|id| Some(Duration::from_secs(if id == 1 { 60 } else { 4 })),
        is_behind: &|_| false,
    };
    assert_eq!(view.check(&add(3, false)), Err(Error::Unhealthy));
    let lax = View {
        strict: false,
        ..view
    };
    assert_eq!(lax.check(&add(3, false)), Ok(()));
}

#[test]
fn ids_and_urls_are_given_once() {
    let rows = [voter(1), voter(2), voter(3)];
    assert_eq!(
        check(&rows, &[], add(99, false)),
        Err(Error::MemberNotFound)
    );
    assert_eq!(check(&rows, &[], add(2, false)), Err(Error::MemberExists));
    let taken = Question::MemberAdd(MemberAdd {
        id: 4,
        peer_urls: vec![url(4), url(2)],
        is_learner: false,
    });
    assert_eq!(check(&rows, &[], taken), Err(Error::PeerUrlExists));
    assert_eq!(
        check(&rows, &[], update(1, url(2))),
        Err(Error::PeerUrlExists)
    );
    assert_eq!(check(&rows, &[], update(1, url(1))), Ok(()));
    assert_eq!(check(&rows, &[], update(1, url(7))), Ok(()));
    assert_eq!(
        check(&rows, &[], update(7, url(7))),
        Err(Error::MemberNotFound)
    );
}

#[test]
fn one_learner_at_a_time() {
    let rows = [voter(1), voter(2), voter(3), learner(4)];
    assert_eq!(check(&rows, &[], add(5, true)), Err(Error::TooManyLearners));
    assert_eq!(check(&rows, &[], add(5, false)), Ok(()));
    assert_eq!(check(&rows, &[], promote(4)), Ok(()));
    assert_eq!(check(&rows, &[], promote(1)), Err(Error::MemberNotLearner));
    assert_eq!(check(&rows, &[1], promote(1)), Err(Error::LearnerNotReady));
    assert_eq!(check(&rows, &[], promote(5)), Err(Error::MemberNotFound));
    assert_eq!(check(&rows, &[], remove(4)), Ok(()));
}

#[test]
fn a_learner_is_promoted_while_enough_voters_started() {
    let rows = [voter(1), unstarted(2), unstarted(3), learner(4)];
    assert_eq!(check(&rows, &[], promote(4)), Err(Error::NotEnoughStarted));
    let rows = [voter(1), unstarted(2), learner(4)];
    assert_eq!(check(&rows, &[], promote(4)), Ok(()));
}

#[test]
fn a_member_is_removed_while_the_rest_keeps_a_quorum() {
    let three = [voter(1), voter(2), voter(3)];
    assert_eq!(check(&three, &[], remove(3)), Ok(()));
    // The one that is down may go; with it down, no other may.
    assert_eq!(check(&three, &[3], remove(3)), Ok(()));
    assert_eq!(check(&three, &[3], remove(2)), Err(Error::Unhealthy));
    assert_eq!(check(&three, &[], remove(7)), Err(Error::MemberNotFound));
    assert_eq!(
        check(&three[..1], &[], remove(1)),
        Err(Error::NotEnoughStarted)
    );
    let rows = [voter(1), unstarted(2)];
    assert_eq!(check(&rows, &[2], remove(2)), Ok(()));
    assert_eq!(check(&rows, &[2], remove(1)), Err(Error::NotEnoughStarted));
}
