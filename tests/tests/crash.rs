//! A member that is killed or loses its power keeps every write it acknowledged and invents none.
//!
//! The counts here are small; `tests/soak.sh` runs many more. A failure names its seed and keeps its folder.

#![allow(clippy::unwrap_used)] // All of this is tests.

use kv_tests::Kvd;
use kv_tests::skip::skipped;
use kv_tests::torture::load::{Load, Profile};
use kv_tests::torture::model::Model;
use kv_tests::torture::operation::{Answer, Call, Operation, Write};
use kv_tests::torture::power_cut::Run;
use kv_tests::torture::{kill, rounds, strace, verify};

#[tokio::test]
async fn redb_keeps_acknowledged_writes_through_kills() {
    kill_rounds("redb").await;
}

#[tokio::test]
async fn sled_keeps_acknowledged_writes_through_kills() {
    kill_rounds("sled").await;
}

async fn kill_rounds(engine: &str) {
    let (seed, count) = (rounds("TORTURE_SEED", 1), rounds("TORTURE_KILLS", 5));
    let mut work = tempfile::tempdir().unwrap();
    work.disable_cleanup(true);

    let outcome = kill::run(work.path(), engine, seed, count).await;

    let report = outcome.unwrap_or_else(|error| panic!("{}: {error:#}", work.path().display()));
    work.disable_cleanup(false);
    println!("{engine}: {report:?}");
    assert_eq!(report.rounds, count);
    assert!(
        report.findings.acknowledged > count * 10,
        "the load was too small to show anything: {report:?}"
    );
}

#[tokio::test]
async fn redb_keeps_acknowledged_writes_through_power_cuts() {
    power_cuts("redb").await;
}

#[tokio::test]
async fn sled_keeps_acknowledged_writes_through_power_cuts() {
    power_cuts("sled").await;
}

async fn power_cuts(engine: &str) {
    let (seed, count) = (rounds("TORTURE_SEED", 1), rounds("TORTURE_CUTS", 10));
    let Some((mut work, run)) = record(engine, seed).await else {
        return;
    };

    let shown = run.check_acknowledgements().unwrap();

    assert!(shown.answers > 100, "{shown:?}");
    work.disable_cleanup(true);
    for number in 0..count {
        let image = work.path().join(number.to_string());
        let outcome = run.cut(&image, number).await;
        let report = outcome.unwrap_or_else(|error| panic!("{}: {error:#}", image.display()));
        println!("{engine}, cut {number}: {report:?}");
        std::fs::remove_dir_all(&image).unwrap();
    }
    work.disable_cleanup(false);
}

/// The control: where fsync does nothing, the trace and the images must show it.
#[tokio::test]
async fn power_cuts_are_noticed_where_fsync_does_nothing() {
    let Some((work, run)) = record("redb", 1).await else {
        return;
    };
    let run = run.without_fsync();

    let error = run.check_acknowledgements().unwrap_err();
    assert!(error.to_string().starts_with("no fsync covers"), "{error}");
    let mut noticed = 0;
    for number in 0..5 {
        let image = work.path().join(number.to_string());
        noticed += usize::from(run.cut(&image, number).await.is_err());
    }
    assert!(noticed > 0, "a disk without fsync lost nothing");
}

/// A traced run, or nothing where there is no `strace`.
async fn record(engine: &str, seed: u64) -> Option<(tempfile::TempDir, Run)> {
    if !strace::is_available() {
        skipped("strace is missing or may not trace; see tests/soak.sh");
        return None;
    }
    let work = tempfile::tempdir().unwrap();
    let run = Run::record(work.path(), engine, seed).await.unwrap();
    Some((work, run))
}

/// The control: the check must see what it is there for.
#[tokio::test]
async fn check_notices_lost_and_invented_writes() {
    let folder = tempfile::tempdir().unwrap();
    let mut kvd = Kvd::start(&folder.path().join("data"), kill::options("redb"));
    let channel = kvd.connect().await;
    let profile = Profile {
        clients: 3,
        large_one_in: 10,
        compact_one_in: 0,
    };
    let mut load = Load::start(&channel, 1, profile, &Model::default());
    load.until_answered(200).await.unwrap();
    let calls = load.stop().await.unwrap();
    let mut model = Model::default();
    let findings = verify::check(&channel, &mut model, &calls).await.unwrap();
    assert!(findings.acknowledged > 100, "{findings:?}");
    let is_put = |call: &&Call| matches!(call.operation, Operation::Write(Write::Put { .. }));
    let put = calls.iter().find(is_put).unwrap();

    let lost = Call {
        answer: Some((
            Answer {
                revision: model.revision + 1,
                ..Default::default()
            },
            0,
        )),
        ..put.clone()
    };
    expect_failure(&channel, [calls.clone(), vec![lost]].concat(), "lost: ").await;
    let revision = put.answer.unwrap().0.revision;
    let is_other = |call: &&Call| {
        call.answer
            .is_none_or(|(answer, _)| answer.revision != revision)
    };
    let forgotten = calls.iter().filter(is_other).cloned().collect();
    expect_failure(&channel, forgotten, "invented: ").await;
    let grant = Operation::Grant(7);
    let ungranted = Call {
        operation: grant,
        ..put.clone()
    };
    expect_failure(&channel, [calls, vec![ungranted]].concat(), "lost: lease 7").await;
}

async fn expect_failure(channel: &tonic::transport::Channel, calls: Vec<Call>, text: &str) {
    let outcome = verify::check(channel, &mut Model::default(), &calls).await;
    let error = outcome.unwrap_err().to_string();
    assert!(error.starts_with(text), "{error}");
}
