//! A store that becomes a backend file of etcd and is made of it again is the same, whichever engine is below.

#![allow(clippy::unwrap_used, reason = "a test's helpers fail as the test does")]

use std::ops::ControlFlow;
use std::sync::Arc;
use std::time::Duration;

use bytes::{Bytes, BytesMut};
use kv_mvcc::backend::{Backend, EngineKind, Keyspace, Op, Options};
use kv_mvcc::etcd_file::EtcdFile;
use kv_mvcc::{
    AppliedMark, CompactionDriver, CompactionStep, ETCD_PART_BYTES_MAX, ImportOptions, Prev,
    RangeAnswer, RangeQuery, Store, StoreOptions, import,
};
use kv_proto::key_range::KeyRange;
use sha2::{Digest, Sha256};

const ENGINES: [EngineKind; 3] = [EngineKind::Redb, EngineKind::Sled, EngineKind::Memory];
const LEASE: i64 = 7;

fn backend(kind: EngineKind, dir: &std::path::Path) -> Backend {
    let options = Options {
        engine: Some(kind),
        cache_bytes: 8 << 20,
        // Commits happen where a test says so.
        commit_interval: Duration::from_secs(3600),
        ..Options::default()
    };
    Backend::open(dir, options).unwrap()
}

fn store(backend: Backend) -> Arc<Store> {
    let options = StoreOptions {
        compaction_slice: 50,
        compaction_driver: CompactionDriver::Caller,
        ..StoreOptions::default()
    };
    Store::open(backend, options).unwrap()
}

fn put(store: &Store, index: u64, key: &str, value: Vec<u8>, lease: i64) {
    let mut txn = store.write(AppliedMark::new(index, 2));
    let key = Bytes::from(key.to_owned());
    txn.put(key, &value, lease, Prev::Skip).unwrap();
    txn.commit();
}

fn delete(store: &Store, index: u64, key: &str) {
    let mut txn = store.write(AppliedMark::new(index, 2));
    let range = KeyRange::Single(Bytes::from(key.to_owned()));
    txn.delete_range(&range, Prev::Skip).unwrap();
    txn.commit();
}

/// Small and large values, deleted and leased keys, several changes in one revision.
fn fill(store: &Store) -> u64 {
    let mut index = 0;
    let mut next = || {
        index += 1;
        index
    };
    let granted = store.lessor().grant(LEASE, 600, Duration::ZERO).unwrap();
    let mut txn = store.write(AppliedMark::new(next(), 2));
    txn.extra(granted.op);
    txn.commit();
    for n in 0..400usize {
        let bytes = match n % 50 {
            0 => 9000,
            1 => 4000,
            n => n * 7,
        };
        let lease = if n % 9 == 0 { LEASE } else { 0 };
        put(
            store,
            next(),
            &format!("key-{:03}", n % 90),
            vec![n as u8; bytes],
            lease,
        );
        if n % 13 == 0 {
            delete(store, next(), &format!("key-{:03}", (n + 3) % 90));
        }
    }
    put(store, next(), "large", vec![5; 3 << 20], 0);
    let mut txn = store.write(AppliedMark::new(next(), 2));
    for n in 0..40 {
        txn.put(format!("txn-{n}").into(), b"v", 0, Prev::Skip)
            .unwrap();
    }
    txn.commit();
    let extra = [
        (Keyspace::Auth, "authEnabled", "\x01"),
        (Keyspace::AuthUsers, "root", "a user"),
        (Keyspace::AuthRoles, "root", "a role"),
        (Keyspace::Cluster, "clusterVersion", "3.7.0"),
        (Keyspace::Members, "7", "{}"),
        (Keyspace::MembersRemoved, "8", "removed"),
        (Keyspace::Alarm, "\x08\x07\x10\x01", ""),
    ];
    let mark = AppliedMark {
        index: next(),
        term: 2,
        extra: extra
            .map(|(keyspace, key, value)| Op::Put(keyspace, key.into(), value.into()))
            .into(),
    };
    store.write(mark).commit();
    index
}

/// The whole stream, checked as a client does.
fn save(store: &Store) -> Bytes {
    let mut snapshot = store.etcd_snapshot(|_| Ok(Vec::new())).unwrap();
    let mut file = BytesMut::new();
    loop {
        let part = snapshot.next_part().unwrap().expect("the sum comes last");
        if part.remaining == 0 && file.len() as u64 == snapshot.file_bytes() {
            assert_eq!(part.blob[..], Sha256::digest(&file)[..]);
            assert_eq!(snapshot.next_part().unwrap(), None);
            file.extend_from_slice(&part.blob);
            return file.freeze();
        }
        assert!((1..=ETCD_PART_BYTES_MAX).contains(&part.blob.len()));
        file.extend_from_slice(&part.blob);
        assert_eq!(part.remaining, snapshot.file_bytes() - file.len() as u64);
    }
}

fn open(file: Bytes) -> EtcdFile {
    let file = EtcdFile::from_bytes(file, "a test's snapshot").unwrap();
    file.check_trailer().unwrap();
    file.check().unwrap();
    file
}

fn import_options() -> ImportOptions {
    ImportOptions {
        applied: 1,
        term: 1,
        ..ImportOptions::default()
    }
}

fn all(store: &Store, revision: i64) -> RangeAnswer {
    let mut query = RangeQuery::new(KeyRange::From(Bytes::from_static(b"\0")));
    query.revision = revision;
    store.range(&query).unwrap()
}

fn items(file: &EtcdFile, bucket: &str) -> Vec<(Bytes, Bytes)> {
    let mut items = Vec::new();
    file.scan(bucket, &mut |key, value| {
        items.push((key.clone(), value.clone()));
        ControlFlow::Continue(())
    })
    .unwrap();
    items
}

fn check_equal(original: &Store, restored: &Store) {
    assert_eq!(restored.revision(), original.revision());
    assert_eq!(restored.compacted(), original.compacted());
    // At the compacted revision the original remembers what the compaction hashed.
    let oldest = original.compacted().max(0) + 1;
    for revision in (oldest..=original.revision()).step_by(37) {
        let hash = original.hash_kv(revision).unwrap();
        assert_eq!(restored.hash_kv(revision).unwrap(), hash);
        let (theirs, ours) = (all(restored, revision), all(original, revision));
        assert_eq!(theirs.kvs, ours.kvs, "at revision {revision}");
    }
    restored.check_invariants();
}

#[test]
fn restored_store_equals_the_saved_one() {
    for from in ENGINES {
        for to in ENGINES {
            let dirs = [(); 2].map(|()| tempfile::tempdir().unwrap());
            let original = store(backend(from, dirs[0].path()));
            fill(&original);
            let file = open(save(&original));
            let backend = backend(to, dirs[1].path());
            let imported = import(&backend, &file, &import_options()).unwrap();
            assert_eq!(imported.revision, original.revision());
            let restored = store(backend);
            check_equal(&original, &restored);
            assert_eq!(
                restored.lessor().leases(),
                original.lessor().leases(),
                "{from} to {to}"
            );
            let status = file.status().unwrap();
            assert_eq!(status.revision, original.revision());
            assert_eq!(status.total_key, original.stats().keys as u64);
        }
    }
}

#[test]
fn snapshot_is_of_the_moment_it_was_taken_committed_or_not() {
    for kind in ENGINES {
        let dir = tempfile::tempdir().unwrap();
        let original = store(backend(kind, dir.path()));
        let index = fill(&original);
        original.backend().checkpoint().unwrap();
        put(&original, index + 1, "in the buffer", vec![1; 5000], 0);
        let (hash, revision) = (original.hash_kv(0).unwrap(), original.revision());
        let mut snapshot = original.etcd_snapshot(|_| Ok(Vec::new())).unwrap();
        let mut bytes = BytesMut::new();
        let mut index = index + 1;
        while let Some(part) = snapshot.next_part().unwrap() {
            bytes.extend_from_slice(&part.blob);
            // What comes meanwhile is written, committed and not in it.
            index += 1;
            put(&original, index, "later", vec![2; 100], 0);
            if index.is_multiple_of(10) {
                original.backend().checkpoint().unwrap();
            }
        }
        let to = tempfile::tempdir().unwrap();
        let backend = backend(EngineKind::Memory, to.path());
        import(&backend, &open(bytes.freeze()), &import_options()).unwrap();
        let restored = store(backend);
        assert_eq!(restored.revision(), revision, "{kind}");
        assert_eq!(restored.hash_kv(0).unwrap().hash, hash.hash, "{kind}");
    }
}

#[test]
fn empty_store_is_saved_and_restored() {
    let dir = tempfile::tempdir().unwrap();
    let original = store(backend(EngineKind::Redb, dir.path()));
    let file = open(save(&original));
    assert_eq!(file.buckets().count(), 10);
    let to = tempfile::tempdir().unwrap();
    let backend = backend(EngineKind::Redb, to.path());
    import(&backend, &file, &import_options()).unwrap();
    check_equal(&original, &store(backend));
}

#[test]
fn compaction_is_carried_over_also_an_unfinished_one() {
    for finished in [true, false] {
        let dir = tempfile::tempdir().unwrap();
        let original = store(backend(EngineKind::Redb, dir.path()));
        let index = fill(&original);
        let at = original.revision() - 20;
        let mark = AppliedMark::new(index + 1, 2);
        original.compact(at, mark).map(drop).unwrap();
        if finished {
            while original.compact_step().unwrap() != CompactionStep::Idle {}
        }
        let to = tempfile::tempdir().unwrap();
        let backend = backend(EngineKind::Sled, to.path());
        import(&backend, &open(save(&original)), &import_options()).unwrap();
        let restored = store(backend);
        assert_eq!(restored.compacted(), at);
        check_equal(&original, &restored);
        while restored.compact_step().unwrap() != CompactionStep::Idle {}
        check_equal(&original, &restored);
    }
}

#[test]
fn raised_revision_is_the_oldest_that_can_be_read() {
    let dir = tempfile::tempdir().unwrap();
    let original = store(backend(EngineKind::Redb, dir.path()));
    fill(&original);
    let to = tempfile::tempdir().unwrap();
    let backend = backend(EngineKind::Redb, to.path());
    let options = ImportOptions {
        revision_bump: 1_000_000,
        ..import_options()
    };
    import(&backend, &open(save(&original)), &options).unwrap();
    let restored = store(backend);
    let expected = original.revision() + 1_000_000;
    assert_eq!(
        (restored.revision(), restored.compacted()),
        (expected, expected)
    );
    assert_eq!(all(&restored, 0).kvs, all(&original, 0).kvs);
    while restored.compact_step().unwrap() != CompactionStep::Idle {}
    assert_eq!(all(&restored, 0).kvs, all(&original, 0).kvs);
    put(&restored, 2, "new", vec![1], 0);
    assert_eq!(restored.revision(), expected + 1);
}

#[test]
fn tables_are_carried_and_replaced_ones_are_what_the_caller_says() {
    let dir = tempfile::tempdir().unwrap();
    let original = store(backend(EngineKind::Redb, dir.path()));
    fill(&original);
    let plain = open(save(&original));
    assert_eq!(
        items(&plain, "authUsers"),
        [("root".into(), "a user".into())]
    );
    assert_eq!(items(&plain, "alarm")[0].0, "\x08\x07\x10\x01");
    let mut snapshot = original
        .etcd_snapshot(|_| {
            Ok(vec![(
                Keyspace::Members,
                vec![("7".into(), "seven".into())],
            )])
        })
        .unwrap();
    let mut bytes = BytesMut::new();
    while let Some(part) = snapshot.next_part().unwrap() {
        bytes.extend_from_slice(&part.blob);
    }
    let replaced = open(bytes.freeze());
    assert_eq!(items(&replaced, "members"), [("7".into(), "seven".into())]);
    assert_eq!(items(&replaced, "key"), items(&plain, "key"));
}

/// Written by etcd 3.7.3 and saved by etcdctl: a compaction at 10, deleted, leased and large values, users and roles.
const ETCD_3_7_3: &[u8] = include_bytes!("fixtures/etcd-3.7.3-snapshot");

#[test]
fn snapshot_of_etcd_is_read_with_the_hashes_that_etcd_gave() {
    let file = open(Bytes::from_static(ETCD_3_7_3));
    let status = file.status().unwrap();
    // What etcdutl snapshot status said.
    assert_eq!(status.hash, 3_247_177_984);
    assert_eq!((status.revision, status.total_key), (22, 118));
    assert_eq!(status.total_size, 61_440);
    assert_eq!(status.version, "3.7.0");
    for kind in ENGINES {
        let dir = tempfile::tempdir().unwrap();
        let backend = backend(kind, dir.path());
        import(&backend, &file, &import_options()).unwrap();
        let restored = store(backend);
        // What etcdctl endpoint hashkv said.
        for (revision, hash) in [(22, 270_948_065), (14, 1_359_368_330)] {
            let ours = restored.hash_kv(revision).unwrap();
            assert_eq!((ours.hash, ours.compact_revision), (hash, 10), "{kind}");
        }
        assert_eq!(restored.revision(), 22);
        let kvs = all(&restored, 0).kvs;
        let large = kvs.iter().find(|kv| kv.key == "large").unwrap();
        assert_eq!(large.value, "l".repeat(6000));
        let leased = kvs.iter().find(|kv| kv.key == "leased").unwrap();
        assert_eq!(restored.lessor().leases(), [leased.lease]);
        let users = [Keyspace::AuthUsers, Keyspace::AuthRoles];
        for (keyspace, name) in users.into_iter().zip(["u1", "r1"]) {
            let stored = restored.backend().get(keyspace, name.as_bytes()).unwrap();
            assert!(stored.is_some(), "{name}");
        }
        restored.check_invariants();
    }
}

#[test]
fn changed_snapshot_is_refused_and_the_database_stays_empty() {
    let mut refused = 0;
    for at in (0..ETCD_3_7_3.len()).step_by(61) {
        let mut bytes = ETCD_3_7_3.to_vec();
        bytes[at] ^= 0x24;
        let Ok(file) = EtcdFile::from_bytes(bytes.into(), "changed") else {
            refused += 1;
            continue;
        };
        assert!(file.check_trailer().is_err(), "byte {at}");
        let dir = tempfile::tempdir().unwrap();
        let backend = backend(EngineKind::Memory, dir.path());
        // Without the sum, a changed value is still a value; whatever is not refused is whole.
        if import(&backend, &file, &import_options()).is_ok() {
            let restored = store(backend);
            restored.check_invariants();
            all(&restored, 0);
        } else {
            refused += 1;
            assert_eq!(store(backend).revision(), 1, "byte {at}");
        }
    }
    assert!(refused > 50, "{refused}");
}
