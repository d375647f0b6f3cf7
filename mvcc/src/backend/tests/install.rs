//! A process ends at each step of an install in turn; the next start finds the old database or the new one, whole.

use std::ops::ControlFlow;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;

use super::kill::options;
use super::kill_after;
use crate::Store;
use crate::backend::{Backend, EngineKind, Keyspace, MemoryDisk, Options};
use crate::store::{AppliedMark, StoreOptions};
use crate::write_txn::Prev;

/// What the installing process is told: its folder, engine, and the step to end at.
const DIR: &str = "KVD_INSTALL_CHILD_DIR";
const ENGINE: &str = "KVD_INSTALL_CHILD_ENGINE";
const STEP: &str = "KVD_INSTALL_CHILD_STEP";

/// Applied indexes of the state before and of the snapshot.
const OLD: u64 = 3;
const NEW: u64 = 40;

#[test]
fn redb_has_the_old_or_the_new_state_after_a_kill_at_any_step_of_an_install() {
    kill_at_each_step(EngineKind::Redb);
}

#[test]
fn sled_has_the_old_or_the_new_state_after_a_kill_at_any_step_of_an_install() {
    kill_at_each_step(EngineKind::Sled);
}

fn kill_at_each_step(engine: EngineKind) {
    let mut outcomes = Vec::new();
    for step in 1.. {
        let dir = tempfile::tempdir().unwrap();
        let finished = install_in_child(dir.path(), engine, step);
        let store = open(dir.path(), engine);
        let applied = store.backend().durable_index();
        assert!(
            [OLD, NEW].contains(&applied),
            "step {step}: applied index {applied}"
        );
        let expected = state(applied);
        assert_eq!(contents(&store), contents(&expected), "step {step}");
        assert_eq!(
            store.hash_kv(0).unwrap(),
            expected.hash_kv(0).unwrap(),
            "step {step}"
        );
        store.check_invariants();
        let generations = std::fs::read_dir(dir.path().join("db")).unwrap().count();
        assert_eq!(generations, 1, "step {step}: others are removed at start");
        outcomes.push(applied);
        // The member catches up again, whatever happened.
        install(&store);
        assert_eq!(contents(&store), contents(&state(NEW)), "step {step}");
        if finished {
            break;
        }
    }
    let switched = outcomes.partition_point(|applied| *applied == OLD);
    assert!(
        switched > 5,
        "the old state holds until CURRENT is replaced"
    );
    assert!(
        outcomes.len() - switched > 2,
        "and the new one from then on"
    );
    assert!(outcomes[switched..].iter().all(|applied| *applied == NEW));
}

/// Whether the child came to its end.
fn install_in_child(dir: &Path, engine: EngineKind, step: u64) -> bool {
    let status = Command::new(std::env::current_exe().unwrap())
        .args([
            "--exact",
            "backend::tests::install::installing_process",
            "--test-threads=1",
        ])
        .env(DIR, dir)
        .env(ENGINE, engine.name())
        .env(STEP, step.to_string())
        .stdout(Stdio::null())
        .stderr(Stdio::null())
        .status()
        .unwrap();
    // A failed test has a code, an abort has a signal.
    assert!(status.code().is_none_or(|code| code == 0), "{status}");
    status.success()
}

/// The one that installs; as an ordinary test it has nothing to do.
#[test]
fn installing_process() {
    let Some(dir) = std::env::var_os(DIR).map(PathBuf::from) else {
        return;
    };
    let engine = std::env::var(ENGINE).unwrap().parse().unwrap();
    let store = open(&dir, engine);
    fill(&store, 1, OLD);
    store.backend().checkpoint().unwrap();
    // Buffered and not committed: no entry of it may turn up beside the new state.
    put(&store, OLD, "buffered");
    kill_after(std::env::var(STEP).unwrap().parse().unwrap());
    install(&store);
    kill_after(0);
}

fn open(dir: &Path, engine: EngineKind) -> Arc<Store> {
    let options = Options {
        // Commits only where asked for, so that the steps are always the same.
        commit_interval: Duration::from_secs(3600),
        ..options(engine)
    };
    Store::open(
        Backend::open(dir, options).unwrap(),
        StoreOptions::default(),
    )
    .unwrap()
}

fn install(store: &Store) {
    let mut snapshot = state(NEW).snapshot().unwrap();
    let received = store
        .receiver()
        .unwrap()
        .receive(|| snapshot.next_chunk().map_err(std::io::Error::other))
        .unwrap();
    store.install(received).unwrap();
}

/// A store in memory as of applied index `applied`.
fn state(applied: u64) -> Arc<Store> {
    let backend = Backend::open_in_memory(&MemoryDisk::default(), Options::default()).unwrap();
    let store = Store::open(backend, StoreOptions::default()).unwrap();
    fill(&store, 1, applied);
    store
}

fn fill(store: &Store, from: u64, to: u64) {
    for index in from..=to {
        put(store, index, "value");
    }
}

fn put(store: &Store, index: u64, value: &str) {
    let mut txn = store.write(AppliedMark::new(index, 1));
    let key = Bytes::from(format!("key-{}", index % 5));
    txn.put(key, value.as_bytes(), 0, Prev::Skip).unwrap();
    txn.commit();
}

fn contents(store: &Store) -> Vec<(Keyspace, Vec<u8>, Vec<u8>)> {
    let view = store.backend().view().unwrap();
    let mut contents = Vec::new();
    for keyspace in Keyspace::ALL {
        view.scan(keyspace, b"", None, &mut |key, value| {
            contents.push((keyspace, key.to_vec(), value.to_vec()));
            ControlFlow::Continue(())
        })
        .unwrap();
    }
    contents
}
