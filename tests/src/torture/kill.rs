//! Rounds of kill -9: a member under load is killed at a random moment, started again over its folder, and checked.
//!
//! Each round also builds a second member from the log alone (a copy of the folder as the kill left it, without the
//! database) and compares the HashKV of the two at the same revision. So the runs never purge their log.

use std::path::Path;
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use rand::rngs::StdRng;
use rand::{RngExt, SeedableRng};

use super::copy_folder;
use super::load::{Load, Profile};
use super::model::Model;
use super::verify::{self, Findings, Hash};
use crate::{Kvd, KvdOptions};

/// The load of every round.
const PROFILE: Profile = Profile {
    clients: 8,
    large_one_in: 40,
    compact_one_in: 400,
};
/// One round in this many also kills the member while it starts.
const KILL_AT_START_ONE_IN: u32 = 4;

/// What a run of rounds found.
#[derive(Clone, Copy, Debug, Default)]
pub struct Report {
    /// Rounds that passed.
    pub rounds: u64,
    /// Sums over all rounds.
    pub findings: Findings,
    /// Kills while the member started.
    pub killed_at_start: u64,
    /// The newest revision.
    pub revision: i64,
}

/// The flags of a member whose log is never purged.
pub fn options(engine: &str) -> KvdOptions {
    KvdOptions {
        args: vec![
            format!("--storage-engine={engine}"),
            "--snapshot-count=1000000000".to_owned(),
        ],
        ..Default::default()
    }
}

/// Runs `rounds` of them on one folder below `work`. An error names the round; the folder then holds what was found.
pub async fn run(work: &Path, engine: &str, seed: u64, rounds: u64) -> Result<Report> {
    let folder = work.join("data");
    let mut random = StdRng::seed_from_u64(seed);
    let mut model = Model::default();
    let mut report = Report::default();
    let mut kvd = Kvd::start(&folder, options(engine));
    let mut channel = kvd.try_connect().await?;
    for round in 0..rounds {
        let named = || format!("{engine}, seed {seed}, kill round {round}");
        let load = Load::start(&channel, seed << 10 | round, PROFILE, &model);
        tokio::time::sleep(Duration::from_millis(random.random_range(30..600))).await;
        load.expect_failures();
        kvd.kill();
        let calls = load.stop().await.with_context(named)?;
        if random.random_ratio(1, KILL_AT_START_ONE_IN) {
            kvd.restart();
            tokio::time::sleep(Duration::from_millis(random.random_range(0..150))).await;
            kvd.kill();
            report.killed_at_start += 1;
        }
        let replayed = work.join("replayed");
        copy_without_database(&folder, &replayed)?;
        kvd.restart();
        channel = kvd.try_connect().await?;
        let findings = verify::check(&channel, &mut model, &calls)
            .await
            .with_context(named)?;
        let hash = verify::hash(&channel, model.revision)
            .await
            .with_context(named)?;
        compare_with_replay(&replayed, engine, hash)
            .await
            .with_context(named)?;
        std::fs::remove_dir_all(&replayed)?;
        report.rounds += 1;
        report.findings.acknowledged += findings.acknowledged;
        report.findings.unanswered += findings.unanswered;
    }
    report.revision = model.revision;
    Ok(report)
}

/// Copies a folder, leaving the log as the only trace of the keys.
pub fn copy_without_database(from: &Path, to: &Path) -> Result<()> {
    copy_folder(from, to).with_context(|| format!("cannot copy {}", from.display()))?;
    let member = to.join("member");
    let gone = |outcome: std::io::Result<()>| match outcome {
        Err(error) if error.kind() != std::io::ErrorKind::NotFound => Err(error),
        _ => Ok(()),
    };
    // A power cut may have come before there was a database.
    gone(std::fs::remove_dir_all(member.join("db")))?;
    gone(std::fs::remove_file(member.join("CURRENT")))?;
    Ok(())
}

/// Starts a member over `folder`, which holds a log and no database, and compares its HashKV with `expected`.
pub async fn compare_with_replay(folder: &Path, engine: &str, expected: Hash) -> Result<()> {
    let mut kvd = Kvd::start(folder, options(engine));
    let channel = kvd.try_connect().await?;
    let replayed = verify::hash(&channel, expected.revision).await?;
    ensure!(
        replayed == expected,
        "the member has {expected:?}, a replay of its log from empty has {replayed:?}"
    );
    let newest = verify::hash(&channel, 0).await?;
    ensure!(
        newest == expected,
        "the member has {expected:?}, a replay of its log from empty goes on to {newest:?}"
    );
    Ok(())
}
