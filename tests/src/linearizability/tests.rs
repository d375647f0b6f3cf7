//! Histories made by hand, whose verdict is plain, and many made at random.

use super::sample::{self, Fault};
use super::*;
use crate::history::{Action, ActionResult, Compare, KeyValue, NOBODY, Target};

/// A request of `client` from `call` to `returned`.
fn at(client: u32, call: u64, returned: u64, op: Op, outcome: Outcome) -> Record {
    let returned = Some(returned);
    Record {
        client,
        call,
        returned,
        op,
        outcome,
    }
}

fn lost(client: u32, call: u64, op: Op) -> Record {
    let outcome = Outcome::Unknown;
    Record {
        client,
        call,
        returned: None,
        op,
        outcome,
    }
}

fn done(revision: i64, results: Vec<ActionResult>) -> Outcome {
    Outcome::Done {
        revision,
        succeeded: true,
        results,
    }
}

fn put_at(revision: i64) -> Outcome {
    done(revision, vec![ActionResult::Put])
}

fn deleted_at(revision: i64) -> Outcome {
    done(revision, vec![ActionResult::Delete { deleted: 1 }])
}

fn nothing_at(revision: i64) -> Outcome {
    done(revision, vec![ActionResult::Get { kv: None }])
}

/// Value, version and revisions of a key that was created by the put of `created`.
fn seen(value: &str, version: i64, modified: i64, created: i64) -> KeyValue {
    KeyValue {
        value: value.into(),
        version,
        mod_revision: modified,
        create_revision: created,
        lease: 0,
    }
}

fn seen_at(revision: i64, kv: KeyValue) -> Outcome {
    done(revision, vec![ActionResult::Get { kv: Some(kv) }])
}

fn is_linearizable(history: &[Record]) -> bool {
    match check(history, Limits::default()) {
        Verdict::Linearizable => true,
        Verdict::Violation(_) => false,
        Verdict::Undecided { requests } => panic!("undecided on {requests} requests"),
    }
}

#[test]
fn requests_one_after_the_other_are_explained() {
    let history = [
        at(1, 0, 1, Op::get("k"), nothing_at(1)),
        at(1, 2, 3, Op::put("k", "a"), put_at(2)),
        at(1, 4, 5, Op::put("k", "b"), put_at(3)),
        at(2, 6, 7, Op::get("k"), seen_at(3, seen("b", 2, 3, 2))),
        at(1, 8, 9, Op::delete("k"), deleted_at(4)),
        at(2, 10, 11, Op::get("k"), nothing_at(4)),
    ];
    assert!(is_linearizable(&history));
}

#[test]
fn read_beside_a_write_sees_either() {
    for outcome in [nothing_at(1), seen_at(2, seen("a", 1, 2, 2))] {
        let history = [
            at(1, 0, 10, Op::put("k", "a"), put_at(2)),
            at(2, 3, 5, Op::get("k"), outcome),
        ];
        assert!(is_linearizable(&history));
    }
}

#[test]
fn stale_read_is_noticed() {
    let history = [
        at(1, 0, 1, Op::put("k", "a"), put_at(2)),
        at(1, 2, 3, Op::put("k", "b"), put_at(3)),
        at(2, 4, 5, Op::get("k"), seen_at(3, seen("a", 1, 2, 2))),
    ];
    assert!(!is_linearizable(&history));
}

/// The member that answers is behind and says so: its revision gives it away even where no key does.
#[test]
fn stale_read_of_another_key_is_noticed_by_its_revision() {
    let history = [
        at(1, 0, 1, Op::put("k", "a"), put_at(2)),
        at(2, 2, 3, Op::get("other"), nothing_at(1)),
    ];
    assert!(!is_linearizable(&history));
}

#[test]
fn two_reads_that_see_writes_in_different_orders_are_noticed() {
    let history = [
        at(1, 0, 100, Op::put("k", "a"), put_at(2)),
        at(2, 0, 100, Op::put("k", "b"), put_at(3)),
        at(3, 10, 20, Op::get("k"), seen_at(3, seen("b", 1, 3, 3))),
        at(4, 30, 40, Op::get("k"), seen_at(3, seen("a", 2, 2, 3))),
    ];
    assert!(!is_linearizable(&history));
}

#[test]
fn lost_write_is_noticed_by_its_missing_version() {
    let history = [
        at(1, 0, 1, Op::put("k", "a"), put_at(2)),
        at(1, 2, 3, Op::put("k", "b"), put_at(3)),
        at(1, 4, 5, Op::put("k", "c"), put_at(4)),
        at(2, 6, 7, Op::get("k"), seen_at(4, seen("c", 2, 4, 2))),
    ];
    assert!(!is_linearizable(&history));
}

#[test]
fn write_without_an_answer_may_come_late_or_never() {
    let late = seen_at(3, seen("b", 2, 3, 2));
    let never = seen_at(2, seen("a", 1, 2, 2));
    for last in [late, never.clone()] {
        let history = [
            at(1, 0, 1, Op::put("k", "a"), put_at(2)),
            lost(2, 2, Op::put("k", "b")),
            at(1, 3, 4, Op::get("k"), never.clone()),
            at(1, 5, 6, Op::get("k"), last),
        ];
        assert!(is_linearizable(&history));
    }
}

#[test]
fn write_without_an_answer_does_not_come_before_its_call_or_go_again() {
    let with = seen_at(3, seen("b", 2, 3, 2));
    let without = seen_at(3, seen("a", 1, 2, 2));
    let first = at(1, 0, 1, Op::put("k", "a"), put_at(2));
    let early = [
        first.clone(),
        at(1, 2, 3, Op::get("k"), with.clone()),
        lost(2, 4, Op::put("k", "b")),
    ];
    assert!(!is_linearizable(&early));
    let gone = [
        first,
        lost(2, 2, Op::put("k", "b")),
        at(1, 3, 4, Op::get("k"), with),
        at(1, 5, 6, Op::get("k"), without),
    ];
    assert!(!is_linearizable(&gone));
}

/// A put that was sent again by itself shows in the version, and in its value coming back.
#[test]
fn double_apply_is_noticed() {
    let twice = [
        lost(1, 0, Op::put("k", "a")),
        at(2, 1, 2, Op::get("k"), seen_at(3, seen("a", 2, 3, 2))),
    ];
    assert!(!is_linearizable(&twice));
    let back = [
        at(1, 0, 1, Op::put("k", "a"), put_at(2)),
        at(2, 2, 3, Op::put("k", "b"), put_at(3)),
        at(2, 4, 5, Op::get("k"), seen_at(4, seen("a", 3, 4, 2))),
    ];
    assert!(!is_linearizable(&back));
}

#[test]
fn one_revision_for_two_writes_is_noticed() {
    let history = [
        at(1, 0, 10, Op::put("a", "1"), put_at(2)),
        at(2, 0, 10, Op::put("b", "2"), put_at(2)),
    ];
    assert!(!is_linearizable(&history));
}

fn swap(target: Target, value: &str) -> Op {
    let put = |key: &str| Action::Put {
        key: key.into(),
        value: value.into(),
        lease: 0,
    };
    Op::Txn {
        compare: vec![Compare {
            key: "k".into(),
            target,
        }],
        success: vec![put("k"), put("l")],
        failure: vec![Action::Get { key: "k".into() }],
    }
}

fn swapped_at(revision: i64) -> Outcome {
    done(revision, vec![ActionResult::Put, ActionResult::Put])
}

#[test]
fn of_two_swaps_of_one_version_only_one_succeeds() {
    let begin = at(1, 0, 1, Op::put("k", "a"), put_at(2));
    let one = at(1, 2, 10, swap(Target::ModRevision(2), "b"), swapped_at(3));
    let refused = Outcome::Done {
        revision: 3,
        succeeded: false,
        results: vec![ActionResult::Get {
            kv: Some(seen("b", 2, 3, 2)),
        }],
    };
    let two = |outcome| at(2, 2, 10, swap(Target::ModRevision(2), "c"), outcome);
    assert!(is_linearizable(&[begin.clone(), one.clone(), two(refused)]));
    assert!(!is_linearizable(&[begin, one, two(swapped_at(4))]));
}

#[test]
fn transaction_is_seen_whole_or_not_at_all() {
    let half = [
        at(1, 0, 1, Op::put("k", "a"), put_at(2)),
        at(
            1,
            2,
            10,
            swap(Target::Value("a".into()), "b"),
            swapped_at(3),
        ),
        at(2, 3, 4, Op::get("k"), seen_at(3, seen("b", 2, 3, 2))),
        at(2, 5, 6, Op::get("l"), nothing_at(3)),
    ];
    assert!(!is_linearizable(&half));
}

#[test]
fn swap_without_an_answer_explains_what_comes_of_it() {
    let unknown = lost(1, 2, swap(Target::Version(1), "b"));
    let begin = at(1, 0, 1, Op::put("k", "a"), put_at(2));
    let l = |outcome| at(2, 5, 6, Op::get("l"), outcome);
    assert!(is_linearizable(&[
        begin.clone(),
        unknown.clone(),
        l(nothing_at(2))
    ]));
    assert!(is_linearizable(&[
        begin.clone(),
        unknown.clone(),
        l(seen_at(3, seen("b", 1, 3, 3)))
    ]));
    // What it compares is not so: it cannot have done that.
    let other = lost(1, 2, swap(Target::Version(7), "b"));
    assert!(!is_linearizable(&[
        begin,
        other,
        l(seen_at(3, seen("b", 1, 3, 3)))
    ]));
}

fn put_with(lease: i64) -> Op {
    let action = Action::Put {
        key: "k".into(),
        value: "a".into(),
        lease,
    };
    Op::Single { action }
}

/// A lease of 50, a key on it, and a look at the key from `look` on; it may end from 60 on.
fn leased(look: u64, outcome: Outcome) -> Vec<Record> {
    vec![
        at(1, 0, 1, Op::Grant { lease: 7 }, done(1, vec![])),
        at(1, 2, 3, put_with(7), put_at(2)),
        Record::expiry(7, 60),
        at(2, look, look + 1, Op::get("k"), outcome),
    ]
}

#[test]
fn key_of_a_lease_goes_when_the_time_is_over_and_not_before() {
    let mut there = seen("a", 1, 2, 2);
    there.lease = 7;
    assert!(is_linearizable(&leased(10, seen_at(2, there.clone()))));
    assert!(!is_linearizable(&leased(10, nothing_at(3))), "early");
    assert!(is_linearizable(&leased(70, nothing_at(3))));
    assert!(
        is_linearizable(&leased(70, seen_at(2, there))),
        "late is allowed"
    );
}

#[test]
fn ended_lease_takes_no_key_and_is_not_ended_again() {
    let mut history = leased(70, nothing_at(3));
    assert_eq!(history[2].client, NOBODY);
    history.push(at(1, 80, 81, put_with(7), Outcome::NoSuchLease));
    history.push(at(1, 82, 83, Op::Revoke { lease: 7 }, Outcome::NoSuchLease));
    assert!(is_linearizable(&history));
    history.push(at(1, 84, 85, put_with(7), put_at(4)));
    assert!(!is_linearizable(&history));
}

#[test]
fn revoked_lease_takes_its_keys_along() {
    let revoke = at(1, 10, 11, Op::Revoke { lease: 7 }, done(3, vec![]));
    let mut there = seen("a", 1, 2, 2);
    there.lease = 7;
    for (outcome, expected) in [(nothing_at(3), true), (seen_at(3, there), false)] {
        let mut history = leased(20, outcome);
        history.push(revoke.clone());
        assert_eq!(is_linearizable(&history), expected);
    }
}

#[test]
fn histories_of_a_right_store_pass() {
    for seed in 0..300 {
        let history = sample::good(seed, 200);
        match check(&history, Limits::default()) {
            Verdict::Linearizable => {}
            Verdict::Violation(violation) => panic!("seed {seed}: {violation}"),
            Verdict::Undecided { requests } => panic!("seed {seed}: undecided on {requests}"),
        }
    }
}

#[test]
fn each_fault_in_the_middle_of_other_requests_is_noticed() {
    for fault in Fault::ALL {
        for seed in 0..20 {
            let history = sample::bad(seed, fault);
            assert!(!is_linearizable(&history), "{fault:?}, seed {seed}");
        }
    }
}

/// Any single answer of a right history that is changed to another value must be noticed, or be explained by what is unknown;
/// a value that nobody wrote never is.
#[test]
fn value_that_nobody_wrote_is_noticed() {
    for seed in 0..50 {
        let mut history = sample::good(seed, 100);
        let read = history
            .iter_mut()
            .find_map(|record| match &mut record.outcome {
                Outcome::Done { results, .. } => {
                    results.iter_mut().find_map(|result| match result {
                        ActionResult::Get { kv: Some(kv) } => Some(kv),
                        _ => None,
                    })
                }
                _ => None,
            });
        let Some(kv) = read else { continue };
        kv.value = "from nowhere".into();
        assert!(!is_linearizable(&history), "seed {seed}");
    }
}

#[test]
fn search_gives_up_at_its_limit_and_says_so() {
    // Twenty unknown puts to one key, and a read that nothing explains: every subset in every order is tried.
    let mut history: Vec<Record> = (0..20)
        .map(|n| lost(n, 0, Op::put("k", &n.to_string())))
        .collect();
    history.push(at(
        50,
        1,
        2,
        Op::get("k"),
        seen_at(30, seen("from nowhere", 3, 3, 2)),
    ));
    let limits = Limits { steps_max: 10_000 };
    assert_eq!(check(&history, limits), Verdict::Undecided { requests: 21 });
}

#[test]
fn saved_history_is_loaded_as_it_was() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("history.jsonl");
    let history = sample::good(1, 100);
    crate::history::save(&history, &path).unwrap();
    assert_eq!(crate::history::load(&path).unwrap(), history);
}
