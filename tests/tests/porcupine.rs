//! The linearizability checker and Go's porcupine agree, on histories made up and on one of real members.

#![allow(clippy::unwrap_used)] // All of this is tests.

use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use kv_tests::faults::{self, Crowd, Kind, Options};
use kv_tests::history;
use kv_tests::linearizability::sample::{self, Fault};
use kv_tests::linearizability::{self, Limits, Verdict};
use kv_tests::skip::skipped;

/// Builds the Go program; nothing, said loudly, where Go is missing or cannot get what the program needs.
fn porcupine(folder: &Path) -> Result<Option<PathBuf>> {
    if Command::new("go").arg("version").output().is_err() {
        skipped("no Go, so the checker is not compared with porcupine");
        return Ok(None);
    }
    let program = folder.join("porcupine");
    let built = Command::new("go")
        .args(["build", "-o"])
        .arg(&program)
        .arg(".")
        .current_dir(Path::new(env!("CARGO_MANIFEST_DIR")).join("porcupine"))
        .output()?;
    if !built.status.success() {
        let said = String::from_utf8_lossy(&built.stderr);
        let last = said.trim_end().lines().last().unwrap_or_default();
        skipped(&format!("Go does not build porcupine here: {last}"));
        return Ok(None);
    }
    Ok(Some(program))
}

/// Porcupine's word on each file: "ok", "illegal" or "unknown".
fn judged(program: &Path, files: &[PathBuf]) -> Result<Vec<String>> {
    let output = Command::new(program).args(files).output()?;
    ensure!(
        output.status.success(),
        "{}",
        String::from_utf8_lossy(&output.stderr)
    );
    let words = String::from_utf8(output.stdout)?;
    let words = words.lines().filter_map(|line| line.split(' ').next());
    Ok(words.map(str::to_owned).collect())
}

fn our_word(file: &Path) -> Result<&'static str> {
    let history = history::load(file)?;
    Ok(match linearizability::check(&history, Limits::default()) {
        Verdict::Linearizable => "ok",
        Verdict::Violation(_) => "illegal",
        Verdict::Undecided { .. } => "unknown",
    })
}

#[test]
fn checker_and_porcupine_agree_on_good_and_bad_histories() -> Result<()> {
    let folder = tempfile::tempdir()?;
    let Some(program) = porcupine(folder.path())? else {
        return Ok(());
    };
    let mut files = Vec::new();
    let mut expected = Vec::new();
    let mut save = |name: String, history: &[history::Record], word: &'static str| {
        let file = folder.path().join(name);
        history::save(history, &file).unwrap();
        files.push(file);
        expected.push(word);
    };
    for seed in 0..20 {
        save(format!("good-{seed}"), &sample::good(seed, 120), "ok");
        for fault in Fault::ALL {
            save(
                format!("{fault:?}-{seed}"),
                &sample::bad(seed, fault),
                "illegal",
            );
        }
    }

    let theirs = judged(&program, &files)?;

    assert_eq!(theirs.len(), files.len());
    for ((file, theirs), expected) in files.iter().zip(&theirs).zip(expected) {
        assert_eq!(
            (our_word(file)?, &**theirs),
            (expected, expected),
            "{}",
            file.display()
        );
    }
    Ok(())
}

#[tokio::test]
async fn checker_and_porcupine_agree_on_the_history_of_a_killed_leader() -> Result<()> {
    let folder = tempfile::tempdir()?;
    let Some(program) = porcupine(folder.path())? else {
        return Ok(());
    };
    let options = Options {
        seed: 3,
        time: Duration::from_secs(600),
        rounds_max: 1,
        kinds: vec![Kind::KillLeader],
        in_namespaces: false,
        crowd: Crowd::default(),
        fault_max: Duration::from_secs(2),
        keep: folder.path().join("kept"),
        keeps_all: true,
    };

    let summary = faults::run(options).await?;

    assert_eq!(summary.violations(), 0, "{}", summary.show());
    let file = folder.path().join("kept/seed-3-round-1/history.jsonl");
    let records = history::load(&file).context("the run keeps its histories")?;
    assert!(records.len() > 100, "{} requests", records.len());
    assert_eq!(our_word(&file)?, "ok");
    assert_eq!(judged(&program, std::slice::from_ref(&file))?, ["ok"]);

    // The same history with one answer made stale: a read that saw a later put shows the value of an earlier one.
    let spoiled = spoil(records).context("a key was put twice and read")?;
    let file = folder.path().join("spoiled.jsonl");
    history::save(&spoiled, &file)?;
    assert_eq!(our_word(&file)?, "illegal");
    assert_eq!(judged(&program, &[file])?, ["illegal"]);
    Ok(())
}

/// Lets one read answer with what another read, which ended before an acknowledged put, saw of the same key.
fn spoil(mut records: Vec<history::Record>) -> Option<Vec<history::Record>> {
    use history::{Action, ActionResult, Op, Outcome};
    let read = |record: &history::Record| match (&record.op, &record.outcome) {
        (
            Op::Single {
                action: Action::Get { key },
            },
            Outcome::Done { results, .. },
        ) => match &results[..] {
            [ActionResult::Get { kv: Some(kv) }] => Some((key.clone(), kv.clone())),
            _ => None,
        },
        _ => None,
    };
    for late in 0..records.len() {
        let Some((key, seen)) = read(&records[late]) else {
            continue;
        };
        let earlier = records.iter().find_map(|record| {
            let (other, kv) = read(record)?;
            let is_before =
                record.returned? < records[late].call && kv.mod_revision < seen.mod_revision;
            (other == key && is_before).then_some(kv)
        });
        // The write that it saw was over before it began.
        let is_over = records.iter().any(|record| {
            record.outcome.revision() == Some(seen.mod_revision)
                && record.returned < Some(records[late].call)
        });
        let (Some(stale), true) = (earlier, is_over) else {
            continue;
        };
        if let Outcome::Done { results, .. } = &mut records[late].outcome {
            *results = vec![ActionResult::Get { kv: Some(stale) }];
        }
        return Some(records);
    }
    None
}
