//! A cluster in one process, on disks and links that fail, in simulated time.
//!
//! Everything below the network and above the disk is what a member runs: openraft, this crate, the
//! write-ahead log. Time stands still while anything can run, so an hour takes seconds; what goes
//! wrong, and when, follows from a seed. While it does, and after, the invariants of `checker.rs`
//! hold; when it stops, the cluster heals.
//!
//! `KVD_SIM_SEEDS` and `KVD_SIM_FIRST_SEED` say how many seeds each test runs, and from which on;
//! `tests/simulate.sh` runs many. A failure prints its seed and the last events.

mod checker;
mod clients;
mod faults;
mod machine;
mod member;
mod network;
mod random;
mod run;
mod settings;
mod trace;
mod wire;
mod world;

use std::time::Duration;

use settings::{Defect, Settings};

/// Seeds of an ordinary run.
const SEEDS: u64 = 60;
/// Tests that share the seeds, so that two cores are busy.
const PARTS: u64 = 2;

/// Runs as many seeds as the environment says, of which `part` and its like are this test's.
fn run_seeds(part: u64) {
    let number = |name: &str, default: u64| match std::env::var(name) {
        Ok(text) => text.parse().expect("a number"),
        Err(_) => default,
    };
    let count = number("KVD_SIM_SEEDS", SEEDS);
    let first = number("KVD_SIM_FIRST_SEED", 1);
    let mut runs = 0;
    let mut failed = Vec::new();
    let mut healing_max = Duration::ZERO;
    for seed in (first..first + count).filter(|seed| seed % PARTS == part) {
        runs += 1;
        match run::run(Settings::of_seed(seed)) {
            Ok(report) => {
                healing_max = healing_max.max(report.healed_in);
                if std::env::var_os("KVD_SIM_VERBOSE").is_some() {
                    println!("seed {seed}: {report:?}");
                }
            }
            Err(failure) => {
                println!("{failure}");
                failed.push(seed);
            }
        }
    }
    assert!(
        failed.is_empty(),
        "these of {runs} seeds failed: {failed:?}"
    );
    println!("{runs} seeds passed; the slowest healed in {healing_max:?}");
}

#[test]
fn even_seeds_keep_every_invariant_and_heal() {
    run_seeds(0);
}

#[test]
fn odd_seeds_keep_every_invariant_and_heal() {
    run_seeds(1);
}

/// Runs seeds with a defect until the checker notices, and says what it noticed.
fn notice(defect: Defect, expected: &[&str]) {
    const SEEDS_MAX: u64 = 60;
    for seed in 1..=SEEDS_MAX {
        if let Err(failure) = run::run(Settings::with_defect(seed, defect)) {
            let violation = &failure.violation;
            assert!(
                expected.iter().any(|text| violation.contains(text)),
                "{defect:?} with seed {seed} was taken for something else: {failure}"
            );
            println!("{defect:?}, seed {seed}: {violation}");
            return;
        }
    }
    panic!("{defect:?} was not noticed in {SEEDS_MAX} seeds");
}

#[test]
fn an_fsync_that_lies_is_noticed() {
    notice(
        Defect::FsyncLies,
        &["which was fsynced", "showed a vote", "cannot open its log"],
    );
}

#[test]
fn a_vote_that_is_forgotten_is_noticed() {
    notice(
        Defect::VoteForgotten,
        // The last is openraft, whose assertions are in debug builds.
        &["votes for", "both lead", "after term", "stopped by itself"],
    );
}

#[test]
fn an_apply_that_skips_is_noticed() {
    notice(Defect::ApplySkips, &["differs from that of others"]);
}

#[test]
fn an_apply_that_repeats_is_noticed() {
    // The node itself misses the entry, if it is purged.
    notice(
        Defect::ApplyRepeats,
        &["differs from that of others", "cannot start"],
    );
}

#[test]
fn a_snapshot_that_claims_another_index_is_noticed() {
    notice(
        Defect::SnapshotMislabelled,
        &["differs from that of others"],
    );
}

#[test]
fn a_read_that_asks_no_quorum_is_noticed() {
    notice(Defect::ReadUnconfirmed, &["a linearizable read"]);
}

#[test]
fn a_write_acknowledged_when_it_is_proposed_is_noticed() {
    notice(Defect::AcknowledgedEarly, &["acknowledged"]);
}

#[test]
fn a_command_sent_again_after_an_unknown_outcome_is_noticed() {
    // Or the second answer is a refusal, and the first one was lost.
    notice(
        Defect::ProposedTwice,
        &["and again at", "refused for certain"],
    );
}

/// Only with `--cfg tokio_unstable`, since tokio's own choices cannot be seeded otherwise.
#[cfg(tokio_unstable)]
#[test]
fn a_seed_replays_event_by_event() {
    for seed in 1..=10 {
        let hash = || match run::run(Settings::of_seed(seed)) {
            Ok(report) => (report.hash, report.events),
            Err(failure) => panic!("{failure}"),
        };
        assert_eq!(hash(), hash(), "seed {seed}");
    }
}
