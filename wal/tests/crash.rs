//! Power cuts and dead processes at every operation of a workload: what was acknowledged is there, nothing is
//! invented, and the log goes on.

#![allow(clippy::unwrap_used, reason = "a test fails where it unwraps")]

mod support;

use kv_wal::fs::{Fault, FaultFs, Fs, Operation, OperationKind};
use kv_wal::{Error, Record, Sync};
use support::{History, Model, create, entry, open, settle, workload};

const ROUNDS: u64 = 120;

/// Runs the workload until the given operation, at which the power fails. False once there is no such operation.
fn run_until(operation: u64, seed: u64, prepare: impl Fn(&FaultFs)) -> (FaultFs, History, bool) {
    let fs = FaultFs::new();
    fs.create_dir("/member".as_ref()).unwrap();
    prepare(&fs);
    fs.fail_at(operation, Fault::PowerCut);
    let mut history = History::default();
    if let Ok(wal) = create(&fs) {
        workload(&wal, &mut history, seed, ROUNDS);
    }
    let reached = fs.operation_count() > operation;
    (fs, history, reached)
}

/// Opens what a crash left and checks it against the history. Returns the number of records that are there.
fn check_recovery(fs: &FaultFs, history: &History) -> Result<usize, String> {
    let (wal, recovered) = match open(fs) {
        Err(Error::NotFound { .. }) if history.acked() == 0 => return Ok(0),
        opened => opened.map_err(|error| error.to_string())?,
    };
    let found = Model::of(&wal, &recovered);
    history.explains(&found).ok_or_else(|| {
        format!(
            "{} of {} records were acknowledged; found {found:?}",
            history.acked(),
            history.records.len()
        )
    })
}

/// The log takes records again, and keeps them over another start.
fn check_goes_on(fs: &FaultFs) {
    let (wal, recovered) = match open(fs) {
        // The power failed before there was a log: making one starts over.
        Err(Error::NotFound { .. }) => {
            drop(create(fs).expect("what an unfinished log left is no obstacle"));
            open(fs).expect("the log was made")
        }
        opened => opened.expect("this was opened before"),
    };
    let mut expected = Model::of(&wal, &recovered);
    let next = match (recovered.entries.last(), recovered.purged) {
        (Some(last), _) => last.index + 1,
        (None, Some((purged, _))) => purged + 1,
        (None, None) => 0,
    };
    let mut history = History::default();
    let records: Vec<Record> = (0..30).map(|at| entry(next + at, 99, 700)).collect();
    records.iter().for_each(|record| expected.apply(record));
    history
        .append(&wal, records, Sync::Yes)
        .expect("the log is open");
    settle(&wal);
    assert_eq!(history.acked(), 30);
    drop(wal);
    let (wal, recovered) = open(&fs.power_cut(5)).expect("acknowledged after recovery");
    assert!(
        expected.same_content(&Model::of(&wal, &recovered)),
        "what was appended after recovery is not there"
    );
}

/// A workload that ran to its end has done everything that a cut should fall into.
fn check_coverage(fs: &FaultFs) {
    let operations = fs.operations();
    let count = |kind| {
        let of_segments = |operation: &&Operation| {
            operation.kind == kind && operation.path.extension().unwrap_or_default() == "wal"
        };
        operations.iter().filter(of_segments).count()
    };
    assert!(
        operations.len() > 300,
        "the workload has only {} operations",
        operations.len()
    );
    assert!(count(OperationKind::Rename) > 0, "no segment was recycled");
    assert!(
        count(OperationKind::Remove) > 5,
        "only {} segments were removed",
        count(OperationKind::Remove)
    );
    assert!(
        count(OperationKind::Sync) > 60,
        "only {} fsyncs",
        count(OperationKind::Sync)
    );
}

#[test]
fn a_power_cut_at_any_operation_loses_nothing_acknowledged() {
    let (mut cuts, mut torn) = (0, 0);
    for workload_seed in [2, 9, 11] {
        for operation in 0.. {
            let (fs, history, reached) = run_until(operation, workload_seed, |_| {});
            if !reached {
                check_coverage(&fs);
                break;
            }
            for seed in 0..4 {
                let after = fs.power_cut(seed);
                let found = check_recovery(&after.kill(), &history)
                    .unwrap_or_else(|error| panic!("cut at {operation}, seed {seed}: {error}"));
                if let Ok((_, recovered)) = open(&after.kill()) {
                    torn += usize::from(recovered.cut.is_some());
                }
                // The power fails again while the log recovers.
                for again in 0..3 {
                    let recovering = after.kill();
                    recovering.fail_at(again, Fault::PowerCut);
                    let _ = open(&recovering);
                    let twice = check_recovery(&recovering.power_cut(seed + again), &history)
                        .unwrap_or_else(|error| {
                            panic!("cut at {operation}, seed {seed}, again at {again}: {error}")
                        });
                    assert_eq!(twice, found, "a second cut changed what is there");
                }
                if seed == 0 {
                    check_goes_on(&after);
                }
                cuts += 1;
            }
        }
    }
    assert!(cuts > 3_000, "only {cuts} cuts");
    assert!(torn > 20, "only {torn} of {cuts} cuts tore a batch");
}

#[test]
fn a_dead_process_loses_nothing_even_if_the_power_fails_after_the_restart() {
    for operation in 0.. {
        let (fs, history, reached) = run_until(operation, 3, |_| {});
        if !reached {
            break;
        }
        let restarted = fs.kill();
        let found = match open(&restarted) {
            Err(Error::NotFound { .. }) => continue,
            opened => {
                let (wal, recovered) =
                    opened.unwrap_or_else(|error| panic!("killed at {operation}: {error}"));
                Model::of(&wal, &recovered)
            }
        };
        history
            .explains(&found)
            .unwrap_or_else(|| panic!("killed at {operation}: found {found:?}"));
        // What the restart showed to the caller must be durable by then.
        for seed in 0..3 {
            let (wal, recovered) =
                open(&restarted.power_cut(seed)).expect("durable since the restart");
            assert!(
                found.same_content(&Model::of(&wal, &recovered)),
                "shown at the restart, lost at operation {operation}"
            );
        }
    }
}

#[test]
fn without_fsync_a_power_cut_loses_acknowledged_records() {
    let mut lost = 0;
    for operation in (20..200).step_by(10) {
        let (fs, history, _) = run_until(operation, 1, FaultFs::ignore_sync);
        lost += (0..4)
            .filter(|seed| check_recovery(&fs.power_cut(*seed), &history).is_err())
            .count();
    }
    assert!(
        lost > 10,
        "only {lost} losses: the crash tests would not notice a missing fsync"
    );
}

#[test]
fn what_a_failed_fsync_left_in_the_cache_is_written_again() {
    let mut surviving = 0;
    for nth in 3..60 {
        let fs = FaultFs::new();
        fs.create_dir("/member".as_ref()).unwrap();
        let wal = create(&fs).unwrap();
        fs.fail_sync(nth, Fault::Io);
        let mut history = History::default();
        workload(&wal, &mut history, 5, ROUNDS);
        if wal.failed().is_none() {
            continue;
        }
        // The page cache still shows the batch, and claims it is clean.
        let restarted = fs.kill();
        let (wal, recovered) = open(&restarted).unwrap();
        let found = Model::of(&wal, &recovered);
        surviving += usize::from(
            history.explains(&found).expect("nothing lost or invented") > history.acked(),
        );
        let (wal, recovered) = open(&restarted.power_cut(nth)).unwrap();
        assert!(
            found.same_content(&Model::of(&wal, &recovered)),
            "shown at the restart, lost after fsync {nth}"
        );
    }
    assert!(
        surviving > 5,
        "only {surviving} batches outlived their failed fsync in the cache"
    );
}
