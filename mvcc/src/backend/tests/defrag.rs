//! A defragmentation that does not come to its end changes nothing, and the member lives.

use std::path::Path;
use std::sync::Arc;

use bytes::Bytes;
use parking_lot::Mutex;

use super::at_next_step;
use super::kill::options;
use crate::Error;
use crate::backend::{Backend, EngineKind, Keyspace, Op};

/// Entries that each test begins with.
const WRITTEN: u64 = 100;

fn open(dir: &Path) -> Backend {
    Backend::open(dir, options(EngineKind::Redb)).unwrap()
}

fn write(backend: &Backend, index: u64) {
    backend.write(vec![Op::Put(Keyspace::Lease, key(index), key(index))]);
    backend.set_applied(index);
}

fn key(index: u64) -> Bytes {
    Bytes::from(format!("key-{index}"))
}

fn begin(dir: &Path) -> Backend {
    let backend = open(dir);
    for index in 1..=WRITTEN {
        write(&backend, index);
    }
    backend.checkpoint().unwrap();
    backend
}

/// Writes go on, and all of them are there after a start; and so does defragmenting.
fn goes_on(backend: Backend, dir: &Path) {
    assert!(backend.failed().is_none());
    write(&backend, WRITTEN + 1);
    assert_eq!(backend.checkpoint().unwrap(), WRITTEN + 1);
    backend.defragment().unwrap();
    backend.close().unwrap();
    drop(backend);
    let backend = open(dir);
    for index in 1..=WRITTEN + 1 {
        let value = backend.get(Keyspace::Lease, &key(index)).unwrap();
        assert_eq!(value, Some(key(index)));
    }
}

#[test]
fn copy_that_cannot_be_named_is_dropped_and_commits_go_on() {
    let dir = tempfile::tempdir().unwrap();
    let backend = begin(dir.path());
    // In the way of what CURRENT will say, as a full disk would be.
    let in_the_way = dir.path().join("db/2/CURRENT");
    at_next_step(move || std::fs::create_dir(in_the_way).unwrap());

    let refused = backend.defragment().unwrap_err();

    assert!(matches!(refused, Error::Io { .. }), "{refused}");
    goes_on(backend, dir.path());
}

#[test]
fn snapshot_that_begins_meanwhile_goes_before() {
    let dir = tempfile::tempdir().unwrap();
    let backend = begin(dir.path());
    let staging = Arc::new(Mutex::new(None));
    let (begun, staged_for) = (Arc::clone(&staging), backend.clone());
    at_next_step(move || *begun.lock() = Some(staged_for.stage().unwrap()));

    let refused = backend.defragment().unwrap_err();

    assert!(matches!(refused, Error::SnapshotArriving), "{refused}");
    let refused = backend.defragment().unwrap_err();
    assert!(matches!(refused, Error::SnapshotArriving), "{refused}");
    drop(staging.lock().take());
    goes_on(backend, dir.path());
}

#[test]
fn snapshot_that_was_installed_meanwhile_is_not_replaced_by_the_copy() {
    let dir = tempfile::tempdir().unwrap();
    let backend = begin(dir.path());
    let installed_in = backend.clone();
    at_next_step(move || {
        let mut staging = installed_in.stage().unwrap();
        for index in 1..=WRITTEN {
            staging
                .put(Keyspace::Lease, key(index), key(index))
                .unwrap();
        }
        let applied = Bytes::copy_from_slice(&WRITTEN.to_be_bytes());
        let name = Bytes::from_static(crate::backend::CONSISTENT_INDEX_KEY);
        staging.put(Keyspace::Meta, name, applied).unwrap();
        let new = Bytes::from_static(b"of the snapshot");
        staging.put(Keyspace::Meta, new.clone(), new).unwrap();
        let staged = staging.finish().unwrap();
        staged.make_current(&installed_in).unwrap().swap();
    });

    let refused = backend.defragment().unwrap_err();

    assert!(matches!(refused, Error::SnapshotArriving), "{refused}");
    let new = backend.get(Keyspace::Meta, b"of the snapshot").unwrap();
    assert!(new.is_some());
    goes_on(backend, dir.path());
}
