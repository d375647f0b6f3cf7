//! A writing process is killed at random moments; what it had acknowledged is there and nothing else is.

use std::io::{BufRead, BufReader};
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, mpsc};
use std::time::Duration;

use super::rounds;
use super::workload::{Model, Random, Values, batch};
use crate::backend::{Backend, EngineKind, Options};

/// What a writer in a process of its own is told: its folder, engine, and the index to stop after.
pub(super) const DIR: &str = "KVD_TORTURE_CHILD_DIR";
pub(super) const ENGINE: &str = "KVD_TORTURE_CHILD_ENGINE";
pub(super) const END: &str = "KVD_TORTURE_CHILD_END";

#[test]
fn redb_keeps_what_was_acknowledged_before_a_kill() {
    kill_rounds(EngineKind::Redb);
}

#[test]
fn sled_keeps_what_was_acknowledged_before_a_kill() {
    kill_rounds(EngineKind::Sled);
}

fn kill_rounds(engine: EngineKind) {
    let dir = tempfile::tempdir().unwrap();
    let mut random = Random(engine as u64);
    let mut model = Model::new(Values::Large);
    let mut progressed = 0;
    let rounds = rounds(10);
    for round in 0..rounds {
        let acknowledged = run_and_kill(dir.path(), engine, random.below(8));
        let backend = Backend::open(dir.path(), options(engine)).unwrap();
        let applied = backend.durable_index();
        assert!(
            acknowledged <= applied,
            "round {round}: {acknowledged} was acknowledged, {applied} is there"
        );
        progressed += u64::from(model.index < applied);
        model.advance(applied);
        model.compare(&backend).unwrap();
    }
    assert!(
        progressed * 2 > rounds,
        "only {progressed} of {rounds} rounds wrote anything"
    );
}

/// Starts a writer, kills it a few acknowledgements and a random moment later; returns the last acknowledged index.
fn run_and_kill(dir: &Path, engine: EngineKind, acknowledgements: u64) -> u64 {
    let mut child = Command::new(std::env::current_exe().unwrap())
        .args([
            "--exact",
            "backend::tests::kill::writer_process",
            "--nocapture",
            "--test-threads=1",
        ])
        .env(DIR, dir)
        .env(ENGINE, engine.name())
        .stdout(Stdio::piped())
        .spawn()
        .unwrap();
    let output = BufReader::new(child.stdout.take().unwrap());
    let (send, receive) = mpsc::channel();
    let reader = std::thread::spawn(move || {
        let acknowledged = output.lines().map_while(Result::ok).filter_map(|line| {
            line.strip_prefix("durable ")
                .and_then(|index| index.parse::<u64>().ok())
        });
        let mut newest = 0;
        for index in acknowledged {
            newest = index;
            // Nobody listens once the child is to be killed.
            let _ = send.send(());
        }
        newest
    });
    for _ in 0..=acknowledgements {
        receive
            .recv_timeout(Duration::from_secs(60))
            .expect("the writer acknowledges within a minute");
    }
    // Between two acknowledgements, most often inside a commit.
    let moment = Duration::from_micros(u64::from(child.id()) * 7919 % 15_000);
    let _ = receive.recv_timeout(moment);
    child.kill().unwrap();
    child.wait().unwrap();
    reader.join().unwrap()
}

/// Small caches and many commits.
pub(super) fn options(engine: EngineKind) -> Options {
    Options {
        engine: Some(engine),
        cache_bytes: 8 << 20,
        commit_interval: Duration::from_millis(5),
        commit_ops_max: 2000,
        ..Options::default()
    }
}

/// The writer, in a process of its own; as an ordinary test it has nothing to do.
#[test]
fn writer_process() {
    let Some(dir) = std::env::var_os(DIR).map(PathBuf::from) else {
        return;
    };
    let engine = std::env::var(ENGINE).unwrap().parse().unwrap();
    let end = std::env::var(END).map_or(u64::MAX, |end| end.parse().unwrap());
    write_up_to(&dir, engine, end);
}

/// Writes the workload, printing what is durable, up to `end`. Without an end the database is defragmented all the time.
fn write_up_to(dir: &Path, engine: EngineKind, end: u64) {
    let backend = Backend::open(dir, options(engine)).unwrap();
    let printed = Arc::new(AtomicU64::new(0));
    backend.set_commit_observer(move |report| {
        if printed.swap(report.applied, Ordering::Relaxed) != report.applied {
            println!("durable {}", report.applied);
        }
    });
    std::thread::scope(|scope| {
        scope.spawn(|| {
            for index in backend.durable_index() + 1..=end {
                backend.write(batch(index, Values::Large));
                if index % 64 == 0 || backend.is_full() {
                    backend.checkpoint().unwrap();
                }
            }
        });
        if end == u64::MAX {
            scope.spawn(|| {
                loop {
                    backend.defragment().unwrap();
                }
            });
        }
    });
    backend.close().unwrap();
}
