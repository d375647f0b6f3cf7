//! What every engine must do, through the backend's public surface: one suite, run over all of them.

#![allow(clippy::unwrap_used, reason = "a test's helpers fail as the test does")]

use std::collections::BTreeMap;
use std::ops::ControlFlow;
use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use bytes::Bytes;
use kv_mvcc::backend::{
    Backend, CONSISTENT_INDEX_KEY, EngineKind, Keyspace, MemoryDisk, Op, Options, View,
};
use proptest::prelude::*;

/// A place to open, close and reopen a backend of one engine in.
struct Place {
    kind: EngineKind,
    dir: tempfile::TempDir,
    disk: MemoryDisk,
}

impl Place {
    fn new(kind: EngineKind) -> Place {
        Place {
            kind,
            dir: tempfile::tempdir().unwrap(),
            disk: MemoryDisk::default(),
        }
    }

    fn options(&self) -> Options {
        Options {
            engine: Some(self.kind),
            cache_bytes: 8 << 20,
            // Commits happen where a test says so, unless it fills the buffer.
            commit_interval: Duration::from_secs(3600),
            ..Options::default()
        }
    }

    fn open(&self) -> Backend {
        self.open_with(self.options())
    }

    fn open_with(&self, options: Options) -> Backend {
        match self.kind {
            EngineKind::Memory => Backend::open_in_memory(&self.disk, options).unwrap(),
            _ => Backend::open(self.dir.path(), options).unwrap(),
        }
    }
}

fn rev(main: u64) -> Bytes {
    let mut key = [0; 17];
    key[..8].copy_from_slice(&main.to_be_bytes());
    key[8] = b'_';
    Bytes::copy_from_slice(&key)
}

fn put(keyspace: Keyspace, key: impl AsRef<[u8]>, value: impl AsRef<[u8]>) -> Op {
    Op::Put(
        keyspace,
        Bytes::copy_from_slice(key.as_ref()),
        Bytes::copy_from_slice(value.as_ref()),
    )
}

fn delete(keyspace: Keyspace, key: impl AsRef<[u8]>) -> Op {
    Op::Delete(keyspace, Bytes::copy_from_slice(key.as_ref()))
}

fn applied(index: u64) -> Op {
    put(Keyspace::Meta, CONSISTENT_INDEX_KEY, index.to_be_bytes())
}

fn value(backend: &Backend, keyspace: Keyspace, key: impl AsRef<[u8]>) -> Option<Vec<u8>> {
    backend
        .get(keyspace, key.as_ref())
        .unwrap()
        .map(|value| value.to_vec())
}

fn contents(
    view: &View,
    keyspace: Keyspace,
    from: &[u8],
    to: Option<&[u8]>,
) -> Vec<(Vec<u8>, Vec<u8>)> {
    let mut contents = Vec::new();
    view.scan(keyspace, from, to, &mut |key, value| {
        contents.push((key.to_vec(), value.to_vec()));
        ControlFlow::Continue(())
    })
    .unwrap();
    contents
}

fn pairs(keys: &[&str]) -> Vec<(Vec<u8>, Vec<u8>)> {
    keys.iter()
        .map(|key| (key.as_bytes().to_vec(), b"v".to_vec()))
        .collect()
}

/// Defines the suite once per engine.
macro_rules! suite {
    ($($name:ident)*) => {
        mod redb { $(#[test] fn $name() { super::$name(&super::Place::new(super::EngineKind::Redb)); })* }
        mod sled { $(#[test] fn $name() { super::$name(&super::Place::new(super::EngineKind::Sled)); })* }
        mod memory { $(#[test] fn $name() { super::$name(&super::Place::new(super::EngineKind::Memory)); })* }
    };
}

suite! {
    write_is_visible_at_once_and_after_its_commit
    delete_hides_what_the_engine_has
    keyspaces_are_apart
    committed_state_survives_a_reopen
    dropping_the_last_handle_commits
    uncommitted_batch_is_whole_or_absent_after_a_reopen
    scan_merges_buffer_and_engine_in_order
    scan_honours_its_bounds_and_breaks
    view_does_not_see_later_writes
    view_survives_the_close
    get_revisions_answers_each_position
    values_up_to_ten_mebibytes_come_back
    large_value_is_replaced_and_deleted
    empty_keys_and_values_are_kept
    checkpoint_names_the_applied_index
    safe_purge_index_is_one_commit_behind
    gate_is_asked_before_an_index_is_durable
    full_buffer_says_so_and_recovers
    commit_begins_by_itself_when_enough_waits
    reads_go_on_while_commits_run
    in_use_follows_the_content
    defragment_keeps_content_and_views
    defragment_while_written_keeps_every_write
    any_sequence_equals_a_map
}

fn write_is_visible_at_once_and_after_its_commit(place: &Place) {
    let backend = place.open();
    backend.write(vec![
        put(Keyspace::Rev, rev(1), "a"),
        put(Keyspace::Lease, "l", "b"),
    ]);
    for _ in 0..2 {
        assert_eq!(value(&backend, Keyspace::Rev, rev(1)), Some(b"a".to_vec()));
        assert_eq!(value(&backend, Keyspace::Lease, "l"), Some(b"b".to_vec()));
        assert_eq!(value(&backend, Keyspace::Lease, "m"), None);
        backend.checkpoint().unwrap();
    }
    assert_eq!(backend.in_buffer(&rev(1)), None);
    assert_eq!(backend.buffered_bytes(), 0);
}

fn delete_hides_what_the_engine_has(place: &Place) {
    let backend = place.open();
    backend.write(vec![
        put(Keyspace::Rev, rev(1), "a"),
        put(Keyspace::Lease, "l", "b"),
    ]);
    backend.checkpoint().unwrap();
    backend.write(vec![
        delete(Keyspace::Rev, rev(1)),
        delete(Keyspace::Lease, "l"),
    ]);
    for _ in 0..2 {
        assert_eq!(value(&backend, Keyspace::Rev, rev(1)), None);
        assert_eq!(backend.get_revisions(&[rev(1)]).unwrap(), [None]);
        assert_eq!(value(&backend, Keyspace::Lease, "l"), None);
        assert_eq!(
            contents(&backend.view().unwrap(), Keyspace::Rev, b"", None),
            []
        );
        backend.checkpoint().unwrap();
    }
}

fn keyspaces_are_apart(place: &Place) {
    let backend = place.open();
    backend.write(
        Keyspace::ALL
            .into_iter()
            .map(|keyspace| put(keyspace, "key", keyspace.name()))
            .collect(),
    );
    for _ in 0..2 {
        for keyspace in Keyspace::ALL {
            let expected = (b"key".to_vec(), keyspace.name().as_bytes().to_vec());
            assert_eq!(
                contents(&backend.view().unwrap(), keyspace, b"", None),
                [expected]
            );
        }
        backend.checkpoint().unwrap();
    }
}

fn committed_state_survives_a_reopen(place: &Place) {
    let backend = place.open();
    backend.write(vec![
        put(Keyspace::Rev, rev(1), "a"),
        put(Keyspace::Auth, "x", "y"),
        applied(7),
    ]);
    backend.close().unwrap();
    drop(backend);

    let backend = place.open();
    assert_eq!(backend.durable_index(), 7);
    assert_eq!(value(&backend, Keyspace::Rev, rev(1)), Some(b"a".to_vec()));
    assert_eq!(value(&backend, Keyspace::Auth, "x"), Some(b"y".to_vec()));
}

fn dropping_the_last_handle_commits(place: &Place) {
    let backend = place.open();
    let clone = backend.clone();
    drop(backend);
    clone.write(vec![put(Keyspace::Rev, rev(1), "a"), applied(3)]);
    drop(clone);

    let backend = place.open();
    assert_eq!(backend.durable_index(), 3);
    assert_eq!(value(&backend, Keyspace::Rev, rev(1)), Some(b"a".to_vec()));
}

/// Each batch puts a revision, an index record and a lease; whatever is there must be there together.
fn uncommitted_batch_is_whole_or_absent_after_a_reopen(place: &Place) {
    let backend = place.open_with(Options {
        commit_ops_max: 50,
        ..place.options()
    });
    for index in 1..=1000 {
        backend.write(vec![
            put(Keyspace::Rev, rev(index), "value"),
            put(Keyspace::Index, rev(index), "record"),
            put(Keyspace::Lease, "newest", index.to_be_bytes()),
            applied(index),
        ]);
    }
    drop(backend);
    let backend = place.open();
    let index = backend.durable_index();
    let view = backend.view().unwrap();
    assert_eq!(index, 1000);
    assert_eq!(
        contents(&view, Keyspace::Rev, b"", None).len() as u64,
        index
    );
    assert_eq!(
        contents(&view, Keyspace::Index, b"", None).len() as u64,
        index
    );
    assert_eq!(
        value(&backend, Keyspace::Lease, "newest"),
        Some(index.to_be_bytes().to_vec())
    );
}

fn scan_merges_buffer_and_engine_in_order(place: &Place) {
    let backend = place.open();
    let puts = |keys: &[&str]| {
        keys.iter()
            .map(|key| put(Keyspace::Auth, key, "v"))
            .collect()
    };
    backend.write(puts(&["b", "d", "f", "h"]));
    backend.checkpoint().unwrap();
    backend.write(puts(&["a", "c", "i"]));
    backend.write(vec![
        delete(Keyspace::Auth, "d"),
        put(Keyspace::Auth, "f", "new"),
        delete(Keyspace::Auth, "zz"),
    ]);

    let found = contents(&backend.view().unwrap(), Keyspace::Auth, b"", None);
    let mut expected = pairs(&["a", "b", "c", "f", "h", "i"]);
    expected[3].1 = b"new".to_vec();
    assert_eq!(found, expected);
}

fn scan_honours_its_bounds_and_breaks(place: &Place) {
    let backend = place.open();
    let write = |mains: &mut dyn Iterator<Item = u64>| {
        backend.write(
            mains
                .map(|main| put(Keyspace::Rev, rev(main), main.to_string()))
                .collect(),
        );
    };
    write(&mut (0..600));
    backend.checkpoint().unwrap();
    write(&mut (600..1200));
    let view = backend.view().unwrap();
    let mains = |from: u64, to: Option<u64>| -> Vec<u64> {
        contents(&view, Keyspace::Rev, &rev(from), to.map(rev).as_deref())
            .iter()
            .map(|(_, value)| String::from_utf8(value.clone()).unwrap().parse().unwrap())
            .collect()
    };
    for (from, to) in [
        (0, 1200),
        (599, 601),
        (10, 20),
        (1100, 1200),
        (5, 5),
        (9, 3),
    ] {
        assert_eq!(
            mains(from, Some(to)),
            (from..to).collect::<Vec<_>>(),
            "{from}..{to}"
        );
    }
    assert_eq!(mains(300, None), (300..1200).collect::<Vec<_>>());
    for stop_after in [1, 599, 600, 601, 900] {
        let mut seen = 0;
        view.scan(Keyspace::Rev, b"", None, &mut |_, _| {
            seen += 1;
            if seen == stop_after {
                ControlFlow::Break(())
            } else {
                ControlFlow::Continue(())
            }
        })
        .unwrap();
        assert_eq!(seen, stop_after);
    }
}

fn view_does_not_see_later_writes(place: &Place) {
    let backend = place.open();
    backend.write(vec![
        put(Keyspace::Rev, rev(1), "1"),
        put(Keyspace::Rev, rev(2), "2"),
        put(Keyspace::Lease, "a", "old"),
    ]);
    backend.checkpoint().unwrap();
    backend.write(vec![
        put(Keyspace::Rev, rev(3), "3"),
        put(Keyspace::Lease, "b", "old"),
    ]);
    let view = backend.view().unwrap();
    let check = || {
        let mains: Vec<_> = contents(&view, Keyspace::Rev, b"", None)
            .into_iter()
            .map(|(_, value)| value)
            .collect();
        assert_eq!(mains, [b"1", b"2", b"3"]);
        assert_eq!(
            view.get(Keyspace::Rev, &rev(1)).unwrap().as_deref(),
            Some(&b"1"[..])
        );
        assert_eq!(view.get(Keyspace::Rev, &rev(4)).unwrap(), None);
        assert_eq!(
            contents(&view, Keyspace::Lease, b"", None),
            [
                (b"a".to_vec(), b"old".to_vec()),
                (b"b".to_vec(), b"old".to_vec())
            ]
        );
        assert_eq!(view.get(Keyspace::Lease, b"c").unwrap(), None);
        assert_eq!(
            view.get_sorted(Keyspace::Rev, &[rev(1), rev(3), rev(4)])
                .unwrap(),
            [Some(Bytes::from("1")), Some(Bytes::from("3")), None]
        );
    };

    check();
    backend.write(vec![
        put(Keyspace::Rev, rev(4), "4"),
        delete(Keyspace::Rev, rev(1)),
        put(Keyspace::Lease, "a", "new"),
        put(Keyspace::Lease, "c", "new"),
        delete(Keyspace::Lease, "b"),
    ]);
    check();
    backend.checkpoint().unwrap();
    check();
    backend.write(vec![
        delete(Keyspace::Rev, rev(2)),
        delete(Keyspace::Rev, rev(3)),
        delete(Keyspace::Lease, "a"),
    ]);
    backend.checkpoint().unwrap();
    check();
    drop(view);

    let view = backend.view().unwrap();
    assert_eq!(
        contents(&view, Keyspace::Rev, b"", None),
        [(rev(4).to_vec(), b"4".to_vec())]
    );
    assert_eq!(
        contents(&view, Keyspace::Lease, b"", None),
        [(b"c".to_vec(), b"new".to_vec())]
    );
}

fn view_survives_the_close(place: &Place) {
    let backend = place.open();
    backend.write(vec![put(Keyspace::Rev, rev(1), "1")]);
    backend.checkpoint().unwrap();
    backend.write(vec![put(Keyspace::Rev, rev(2), "2")]);
    let view = backend.view().unwrap();
    backend.close().unwrap();
    drop(backend);
    assert_eq!(contents(&view, Keyspace::Rev, b"", None).len(), 2);
}

fn get_revisions_answers_each_position(place: &Place) {
    let backend = place.open();
    let mains: Vec<u64> = (1..400)
        .filter(|main| main % 3 != 0)
        .chain([5_000, 9_000, 9_001])
        .collect();
    let (committed, buffered) = mains.split_at(mains.len() / 2);
    for part in [committed, buffered] {
        backend.checkpoint().unwrap();
        backend.write(
            part.iter()
                .map(|main| put(Keyspace::Rev, rev(*main), main.to_string()))
                .collect(),
        );
    }
    let check = |asked: Vec<u64>| {
        let keys: Vec<Bytes> = asked.iter().map(|main| rev(*main)).collect();
        let expected: Vec<_> = asked
            .iter()
            .map(|main| mains.contains(main).then(|| Bytes::from(main.to_string())))
            .collect();
        assert_eq!(backend.get_revisions(&keys).unwrap(), expected, "{asked:?}");
    };
    for _ in 0..2 {
        check(vec![]);
        check((0..410).collect());
        check((0..410).step_by(7).collect());
        check(vec![1, 2, 3, 100, 101, 5_000, 6_000, 9_000, 9_001, 9_002]);
        check(vec![9_001]);
        backend.checkpoint().unwrap();
    }
}

fn values_up_to_ten_mebibytes_come_back(place: &Place) {
    let sizes = [
        0,
        1,
        1023,
        4096,
        (16 << 10) - 5,
        (16 << 10) - 4,
        (16 << 10) - 3,
        16 << 10,
        (32 << 10) + 1,
        1 << 20,
        10 << 20,
    ];
    let content = |size: usize| -> Vec<u8> { (0..size).map(|at| (at * 31 + size) as u8).collect() };
    let backend = place.open();
    for (main, size) in sizes.into_iter().enumerate() {
        backend.write(vec![
            put(Keyspace::Rev, rev(main as u64), content(size)),
            put(Keyspace::AuthUsers, main.to_string(), content(size)),
        ]);
    }
    backend.close().unwrap();
    drop(backend);

    let backend = place.open();
    let scanned = contents(&backend.view().unwrap(), Keyspace::Rev, b"", None);
    assert_eq!(scanned.len(), sizes.len());
    for (main, size) in sizes.into_iter().enumerate() {
        assert!(
            value(&backend, Keyspace::Rev, rev(main as u64)) == Some(content(size)),
            "size {size}"
        );
        assert!(
            value(&backend, Keyspace::AuthUsers, main.to_string()) == Some(content(size)),
            "size {size}"
        );
        assert!(scanned[main].1 == content(size), "size {size}");
    }
}

fn large_value_is_replaced_and_deleted(place: &Place) {
    let backend = place.open();
    let mut empty = None;
    for round in 0..3_u8 {
        for size in [200_000, 10, 70_000, 90_000] {
            let expected = vec![round; size];
            backend.write(vec![put(Keyspace::Cluster, "k", &expected)]);
            backend.checkpoint().unwrap();
            assert!(value(&backend, Keyspace::Cluster, "k") == Some(expected));
        }
        backend.write(vec![delete(Keyspace::Cluster, "k")]);
        backend.checkpoint().unwrap();
        assert_eq!(value(&backend, Keyspace::Cluster, "k"), None);
        assert_eq!(
            *empty.get_or_insert(backend.size().in_use),
            backend.size().in_use
        );
    }
}

fn empty_keys_and_values_are_kept(place: &Place) {
    let backend = place.open();
    backend.write(vec![
        put(Keyspace::Auth, "", ""),
        put(Keyspace::Auth, "\0", ""),
    ]);
    for _ in 0..2 {
        assert_eq!(value(&backend, Keyspace::Auth, ""), Some(vec![]));
        assert_eq!(
            contents(&backend.view().unwrap(), Keyspace::Auth, b"", None),
            [(vec![], vec![]), (vec![0], vec![])]
        );
        backend.checkpoint().unwrap();
    }
}

fn checkpoint_names_the_applied_index(place: &Place) {
    let backend = place.open();
    assert_eq!(backend.checkpoint().unwrap(), 0);
    backend.write(vec![put(Keyspace::Rev, rev(1), "a"), applied(5)]);
    assert_eq!(backend.durable_index(), 0);
    assert_eq!(backend.checkpoint().unwrap(), 5);
    backend.set_applied(6);
    assert_eq!(backend.checkpoint().unwrap(), 6);
    // A batch without an index, such as a slice of a compaction, leaves it.
    backend.write(vec![delete(Keyspace::Rev, rev(1))]);
    assert_eq!(backend.checkpoint().unwrap(), 6);
    backend.close().unwrap();
    assert!(backend.checkpoint().is_err());
}

fn safe_purge_index_is_one_commit_behind(place: &Place) {
    let backend = place.open();
    let mut seen = Vec::new();
    for index in [3, 8, 9] {
        backend.set_applied(index);
        backend.checkpoint().unwrap();
        seen.push((backend.safe_purge_index(), backend.durable_index()));
    }
    assert_eq!(seen, [(0, 3), (3, 8), (8, 9)]);
    drop(backend);

    let backend = place.open();
    assert!(backend.safe_purge_index() <= 8);
    backend.set_applied(10);
    backend.checkpoint().unwrap();
    assert_eq!(
        (backend.safe_purge_index(), backend.durable_index()),
        (9, 10)
    );
}

fn gate_is_asked_before_an_index_is_durable(place: &Place) {
    let backend = place.open();
    let flushed = Arc::new(AtomicU64::new(0));
    let asked = Arc::clone(&flushed);
    let (ask, asks) = std::sync::mpsc::channel();
    let (answer, answers) = std::sync::mpsc::channel();
    let answers = std::sync::Mutex::new(answers);
    backend.set_commit_gate(move |index| {
        ask.send(index).unwrap();
        answers.lock().unwrap().recv().unwrap();
        asked.store(index, Ordering::SeqCst);
    });
    backend.write(vec![put(Keyspace::Rev, rev(1), "a"), applied(4)]);
    std::thread::scope(|scope| {
        let checkpoint = scope.spawn(|| backend.checkpoint().unwrap());
        assert_eq!(asks.recv().unwrap(), 4);
        // At the gate: nothing is durable, what is being committed is readable, and writes go on.
        assert_eq!(backend.durable_index(), 0);
        assert_eq!(value(&backend, Keyspace::Rev, rev(1)), Some(b"a".to_vec()));
        assert!(backend.in_buffer(&rev(1)).is_some());
        backend.write(vec![put(Keyspace::Rev, rev(2), "b")]);
        assert_eq!(value(&backend, Keyspace::Rev, rev(2)), Some(b"b".to_vec()));
        answer.send(()).unwrap();
        assert_eq!(checkpoint.join().unwrap(), 4);
    });
    assert_eq!(flushed.load(Ordering::SeqCst), 4);
}

fn full_buffer_says_so_and_recovers(place: &Place) {
    let backend = place.open_with(Options {
        buffer_bytes_max: 10_000,
        ..place.options()
    });
    assert!(!backend.is_full());
    backend.write(vec![put(Keyspace::Rev, rev(1), vec![0; 10_001])]);
    assert!(backend.is_full());
    backend.checkpoint().unwrap();
    assert!(!backend.is_full());
    assert_eq!(backend.buffered_bytes(), 0);
}

fn commit_begins_by_itself_when_enough_waits(place: &Place) {
    let check = |options: Options, keyspace, value: Vec<u8>| {
        let backend = place.open_with(options);
        let (commit, commits) = std::sync::mpsc::channel();
        backend.set_commit_observer(move |report| commit.send(report.clone()).unwrap());
        backend.write(vec![
            put(keyspace, "1", &value),
            put(keyspace, "2", &value),
            put(keyspace, "3", &value),
        ]);
        let report = commits.recv_timeout(Duration::from_secs(30)).unwrap();
        assert_eq!(report.ops, 3);
    };
    check(
        Options {
            commit_ops_max: 3,
            ..place.options()
        },
        Keyspace::Lease,
        vec![],
    );
    check(
        Options {
            commit_bytes_max: 3000,
            ..place.options()
        },
        Keyspace::Auth,
        vec![0; 1000],
    );
    check(
        Options {
            commit_interval: Duration::from_millis(5),
            ..place.options()
        },
        Keyspace::Cluster,
        vec![],
    );
}

fn reads_go_on_while_commits_run(place: &Place) {
    let backend = place.open_with(Options {
        commit_interval: Duration::from_millis(1),
        commit_ops_max: 100,
        ..place.options()
    });
    let written = AtomicU64::new(0);
    const LAST: u64 = 3_000;
    std::thread::scope(|scope| {
        scope.spawn(|| {
            for main in 1..=LAST {
                backend.write(vec![
                    put(Keyspace::Rev, rev(main), main.to_be_bytes()),
                    put(Keyspace::Meta, "newest", main.to_be_bytes()),
                    applied(main),
                ]);
                written.store(main, Ordering::SeqCst);
            }
        });
        for _ in 0..2 {
            scope.spawn(|| {
                let mut newest_seen = 0;
                while newest_seen < LAST {
                    let newest = written.load(Ordering::SeqCst);
                    for main in [1, newest / 2, newest].into_iter().filter(|main| *main > 0) {
                        if newest > 0 {
                            assert_eq!(
                                value(&backend, Keyspace::Rev, rev(main)),
                                Some(main.to_be_bytes().to_vec())
                            );
                        }
                    }
                    let meta = value(&backend, Keyspace::Meta, "newest")
                        .map_or(0, |bytes| u64::from_be_bytes(bytes.try_into().unwrap()));
                    assert!(newest <= meta, "{meta} is older than {newest}");
                    assert!(newest_seen <= meta, "{meta} came after {newest_seen}");
                    newest_seen = meta;
                    if meta.is_multiple_of(16) {
                        let view = backend.view().unwrap();
                        let in_view = view
                            .get(Keyspace::Meta, b"newest")
                            .unwrap()
                            .map_or(0, |bytes| u64::from_be_bytes(bytes[..].try_into().unwrap()));
                        let from = in_view.saturating_sub(300);
                        let found = contents(&view, Keyspace::Rev, &rev(from + 1), None);
                        assert_eq!(found.len() as u64, in_view - from);
                    }
                }
            });
        }
    });
    assert_eq!(backend.checkpoint().unwrap(), LAST);
}

fn in_use_follows_the_content(place: &Place) {
    let backend = place.open();
    let empty = backend.size().in_use;
    backend.write(
        (0..100)
            .map(|main| put(Keyspace::Rev, rev(main), [7; 1000]))
            .collect(),
    );
    backend.checkpoint().unwrap();
    let full = backend.size();
    assert!(full.in_use >= empty + 100_000, "{full:?}");
    assert!(full.on_disk > 0, "{full:?}");
    backend.write(
        (0..50)
            .map(|main| delete(Keyspace::Rev, rev(main)))
            .collect(),
    );
    backend.checkpoint().unwrap();
    let half = backend.size().in_use;
    assert!(half < full.in_use - 50_000, "{half} after {full:?}");
    drop(backend);
    assert_eq!(place.open().size().in_use, half);
}

fn defragment_keeps_content_and_views(place: &Place) {
    let backend = place.open();
    backend.write(
        (0..3000)
            .map(|main| put(Keyspace::Rev, rev(main), [main as u8; 700]))
            .collect(),
    );
    backend.write(vec![
        put(Keyspace::Lease, "l", "x"),
        put(Keyspace::Rev, rev(3000), vec![9; 100_000]),
        applied(9),
    ]);
    backend.checkpoint().unwrap();
    backend.write(
        (0..2000)
            .map(|main| delete(Keyspace::Rev, rev(main)))
            .collect(),
    );
    backend.checkpoint().unwrap();
    backend.write(vec![put(Keyspace::Rev, rev(3001), "buffered")]);
    let before = backend.view().unwrap();
    let all = |view: &View| Keyspace::ALL.map(|keyspace| contents(view, keyspace, b"", None));
    let expected = all(&before);

    backend.defragment().unwrap();

    assert!(all(&before) == expected);
    assert!(all(&backend.view().unwrap()) == expected);
    assert_eq!(backend.durable_index(), 9);
    drop(before);
    backend.write(vec![put(Keyspace::Rev, rev(3002), "after"), applied(10)]);
    drop(backend);
    let backend = place.open();
    assert_eq!(backend.durable_index(), 10);
    assert_eq!(
        value(&backend, Keyspace::Rev, rev(3002)),
        Some(b"after".to_vec())
    );
    assert_eq!(value(&backend, Keyspace::Rev, rev(1999)), None);
    assert!(value(&backend, Keyspace::Rev, rev(3000)) == Some(vec![9; 100_000]));
}

fn defragment_while_written_keeps_every_write(place: &Place) {
    let backend = place.open_with(Options {
        commit_interval: Duration::from_millis(2),
        ..place.options()
    });
    backend.write(
        (0..2000)
            .map(|main| put(Keyspace::Rev, rev(main), [1; 500]))
            .collect(),
    );
    backend.checkpoint().unwrap();
    let done = std::sync::atomic::AtomicBool::new(false);
    let newest = std::thread::scope(|scope| {
        let writer = scope.spawn(|| {
            let mut main = 2000;
            // At least a few after the last defragmentation too.
            let mut more = 50;
            while more > 0 {
                if main >= 12_000 && !done.load(Ordering::SeqCst) {
                    // Enough has been written beside the copies: a saturated disk is another test's.
                    std::thread::yield_now();
                    continue;
                }
                backend.write(vec![
                    put(Keyspace::Rev, rev(main), [2; 500]),
                    delete(Keyspace::Rev, rev(main - 2000)),
                    put(Keyspace::Lease, (main % 10).to_string(), main.to_be_bytes()),
                    applied(main),
                ]);
                main += 1;
                if done.load(Ordering::SeqCst) {
                    more -= 1;
                }
                std::thread::yield_now();
                if backend.is_full() {
                    backend.checkpoint().unwrap();
                }
            }
            main - 1
        });
        for _ in 0..3 {
            backend.defragment().unwrap();
        }
        done.store(true, Ordering::SeqCst);
        writer.join().unwrap()
    });
    backend.close().unwrap();
    drop(backend);

    let backend = place.open();
    assert_eq!(backend.durable_index(), newest);
    let keys: Vec<_> = contents(&backend.view().unwrap(), Keyspace::Rev, b"", None)
        .into_iter()
        .map(|(key, _)| key)
        .collect();
    let expected: Vec<_> = (newest - 1999..=newest)
        .map(|main| rev(main).to_vec())
        .collect();
    assert!(keys == expected, "{} keys up to {newest}", keys.len());
    for main in newest - 9..=newest {
        assert_eq!(
            value(&backend, Keyspace::Lease, (main % 10).to_string()),
            Some(main.to_be_bytes().to_vec())
        );
    }
}

/// What the property test does to a backend and to a model of it.
#[derive(Clone, Debug)]
enum Step {
    /// Puts and deletes in one batch: keyspace, key number, value length; a value of `None` deletes.
    Write(Vec<(Keyspace, u8, Option<u16>)>),
    Checkpoint,
    View,
    Reopen,
    Defragment,
}

fn steps() -> impl Strategy<Value = Vec<Step>> {
    let keyspace = prop::sample::select(vec![
        Keyspace::Rev,
        Keyspace::Index,
        Keyspace::Lease,
        Keyspace::Meta,
    ]);
    let length = prop_oneof![8 => 0..300_u16, 1 => 16_370..16_400_u16, 1 => 30_000..60_000_u16];
    let change = (keyspace, 0..24_u8, prop::option::weighted(0.7, length));
    let step = prop_oneof![
        8 => prop::collection::vec(change, 1..12).prop_map(Step::Write),
        3 => Just(Step::Checkpoint),
        3 => Just(Step::View),
        1 => Just(Step::Reopen),
        1 => Just(Step::Defragment),
    ];
    prop::collection::vec(step, 1..40)
}

type Model = BTreeMap<(Keyspace, Vec<u8>), Vec<u8>>;

fn assert_equal(view: &View, model: &Model) {
    for keyspace in [
        Keyspace::Rev,
        Keyspace::Index,
        Keyspace::Lease,
        Keyspace::Meta,
    ] {
        let of_keyspace = |from: &[u8], to: Option<&[u8]>| -> Vec<(Vec<u8>, Vec<u8>)> {
            model
                .iter()
                .filter(|((space, key), _)| {
                    *space == keyspace && &key[..] >= from && to.is_none_or(|to| &key[..] < to)
                })
                .map(|((_, key), value)| (key.clone(), value.clone()))
                .collect()
        };
        let all = of_keyspace(b"", None);
        assert!(contents(view, keyspace, b"", None) == all, "{keyspace:?}");
        for (key, value) in &all {
            assert!(
                view.get(keyspace, key).unwrap().as_deref() == Some(&value[..]),
                "{keyspace:?} {key:?}"
            );
        }
        if let (Some((from, _)), Some((to, _))) =
            (all.get(all.len() / 3), all.get(all.len() * 2 / 3))
        {
            assert!(
                contents(view, keyspace, from, Some(to)) == of_keyspace(from, Some(to)),
                "{keyspace:?}"
            );
        }
        let keys: Vec<_> = all.iter().map(|(key, _)| key.clone()).collect();
        let values = view.get_sorted(keyspace, &keys).unwrap();
        assert!(
            values
                .iter()
                .map(|value| value.as_deref().unwrap())
                .eq(all.iter().map(|(_, value)| &value[..]))
        );
    }
}

fn any_sequence_equals_a_map(place: &Place) {
    let cases = std::env::var("KVD_CONFORMANCE_CASES").map_or(24, |cases| cases.parse().unwrap());
    proptest!(ProptestConfig { cases, failure_persistence: None, ..ProptestConfig::default() }, |(steps in steps())| {
        let place = Place::new(place.kind);
        let mut backend = place.open();
        let mut model = Model::new();
        let mut views: Vec<(View, Model)> = Vec::new();
        let mut next = [1_u64; 2];
        for (number, step) in steps.into_iter().enumerate() {
            match step {
                Step::Write(changes) => {
                    let mut batch = Vec::new();
                    for (keyspace, key, length) in changes {
                        let log = [Keyspace::Rev, Keyspace::Index].iter().position(|log| *log == keyspace);
                        // Keys of logs ascend and are written once; a deletion takes any of the last ones.
                        let key = match (log, length) {
                            (Some(log), Some(_)) => { next[log] += 1 + u64::from(key % 3); rev(next[log]).to_vec() }
                            (Some(log), None) => rev(next[log].saturating_sub(key.into())).to_vec(),
                            (None, _) => vec![key],
                        };
                        match length {
                            Some(length) => {
                                let content = vec![number as u8; length.into()];
                                batch.push(put(keyspace, &key, &content));
                                model.insert((keyspace, key), content);
                            }
                            None => {
                                batch.push(delete(keyspace, &key));
                                model.remove(&(keyspace, key));
                            }
                        }
                    }
                    backend.write(batch);
                }
                Step::Checkpoint => { backend.checkpoint().unwrap(); }
                Step::View => views.push((backend.view().unwrap(), model.clone())),
                Step::Defragment => backend.defragment().unwrap(),
                Step::Reopen => {
                    views.clear();
                    drop(backend);
                    backend = place.open();
                }
            }
            assert_equal(&backend.view().unwrap(), &model);
        }
        for (view, model) in &views {
            assert_equal(view, model);
        }
    });
}

#[test]
fn folder_of_another_engine_is_refused_with_the_way_out() {
    let dir = tempfile::tempdir().unwrap();
    let open = |engine| {
        Backend::open(
            dir.path(),
            Options {
                engine,
                ..Options::default()
            },
        )
    };
    drop(open(Some(EngineKind::Redb)).unwrap());
    let error = open(Some(EngineKind::Sled)).unwrap_err().to_string();
    assert!(error.contains("--storage-engine=redb"), "{error}");
    assert!(error.contains("kvctl convert --to=sled"), "{error}");
    assert_eq!(open(None).unwrap().engine(), EngineKind::Redb);
}

#[test]
fn unfinished_and_older_generations_are_removed_at_start() {
    let dir = tempfile::tempdir().unwrap();
    let backend = Backend::open(dir.path(), Options::default()).unwrap();
    backend.write(vec![put(Keyspace::Rev, rev(1), "a"), applied(1)]);
    drop(backend);
    for leftover in ["7", "8"] {
        std::fs::create_dir(dir.path().join("db").join(leftover)).unwrap();
        std::fs::write(
            dir.path().join("db").join(leftover).join("data.redb"),
            b"half",
        )
        .unwrap();
    }
    std::fs::write(dir.path().join("db/8/INCOMPLETE"), b"").unwrap();

    let backend = Backend::open(dir.path(), Options::default()).unwrap();
    assert_eq!(value(&backend, Keyspace::Rev, rev(1)), Some(b"a".to_vec()));
    assert_eq!(generations(dir.path()), ["1"]);
}

#[test]
fn missing_current_beside_a_finished_generation_is_damage() {
    let dir = tempfile::tempdir().unwrap();
    drop(Backend::open(dir.path(), Options::default()).unwrap());
    std::fs::remove_file(dir.path().join("CURRENT")).unwrap();
    let error = Backend::open(dir.path(), Options::default())
        .unwrap_err()
        .to_string();
    assert!(error.contains("CURRENT"), "{error}");
    assert_eq!(generations(dir.path()), ["1"]);
}

#[test]
fn quarantined_database_is_kept_and_an_empty_one_takes_its_place() {
    let dir = tempfile::tempdir().unwrap();
    let backend = Backend::open(dir.path(), Options::default()).unwrap();
    backend.write(vec![put(Keyspace::Rev, rev(1), "a"), applied(1)]);
    drop(backend);

    let aside = kv_mvcc::backend::quarantine(dir.path()).unwrap();

    let backend = Backend::open(dir.path(), Options::default()).unwrap();
    assert_eq!(backend.durable_index(), 0);
    assert_eq!(value(&backend, Keyspace::Rev, rev(1)), None);
    let kept = Backend::open(&aside, Options::default()).unwrap();
    assert_eq!(value(&kept, Keyspace::Rev, rev(1)), Some(b"a".to_vec()));
}

#[test]
fn defragment_makes_the_files_smaller() {
    let dir = tempfile::tempdir().unwrap();
    let backend = Backend::open(dir.path(), Options::default()).unwrap();
    backend.write(
        (0..8000)
            .map(|main| put(Keyspace::Rev, rev(main), [3; 2000]))
            .collect(),
    );
    backend.checkpoint().unwrap();
    backend.write(
        (0..7900)
            .map(|main| delete(Keyspace::Rev, rev(main)))
            .collect(),
    );
    backend.checkpoint().unwrap();
    let before = backend.size();
    backend.defragment().unwrap();
    let after = backend.size();
    assert!(after.on_disk < before.on_disk / 2, "{before:?} {after:?}");
    assert_eq!(after.in_use, before.in_use);
}

fn generations(member_dir: &Path) -> Vec<String> {
    let mut names: Vec<_> = std::fs::read_dir(member_dir.join("db"))
        .unwrap()
        .map(|entry| entry.unwrap().file_name().into_string().unwrap())
        .collect();
    names.sort();
    names
}
