//! What a snapshot and its install promise, whichever engine is below: one suite, run over all of them.

#![allow(clippy::unwrap_used, reason = "a test's helpers fail as the test does")]

use std::collections::VecDeque;
use std::io;
use std::ops::ControlFlow;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use bytes::Bytes;
use kv_mvcc::backend::{Backend, EngineKind, Keyspace, MemoryDisk, Op, Options};
use kv_mvcc::lease::WithKeys;
use kv_mvcc::watch::{StreamOptions, WatchCreate, WatchOutput, WatchStream};
use kv_mvcc::{
    AppliedMark, CHUNK_BYTES_MAX, CompactionDriver, CompactionStep, Error, Prev, RangeQuery, Store,
    StoreOptions,
};
use kv_proto::etcdserverpb::WatchCreateRequest;
use kv_proto::key_range::KeyRange;

const LEASE: i64 = 7;

/// A place to open and reopen a store of one engine in.
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

    fn open(&self) -> Arc<Store> {
        let options = Options {
            engine: Some(self.kind),
            cache_bytes: 8 << 20,
            // Commits happen where a test says so.
            commit_interval: Duration::from_secs(3600),
            ..Options::default()
        };
        let backend = match self.kind {
            EngineKind::Memory => Backend::open_in_memory(&self.disk, options).unwrap(),
            _ => Backend::open(self.dir.path(), options).unwrap(),
        };
        let options = StoreOptions {
            compaction_slice: 3,
            compaction_driver: CompactionDriver::Caller,
            ..StoreOptions::default()
        };
        Store::open(backend, options).unwrap()
    }

    /// Numbers of the generations that have files.
    fn generations(&self) -> Vec<u64> {
        let Ok(entries) = std::fs::read_dir(self.dir.path().join("db")) else {
            return Vec::new();
        };
        let names = entries.map(|entry| entry.unwrap().file_name().into_string().unwrap());
        // Others are being removed.
        let mut numbers: Vec<u64> = names.filter_map(|name| name.parse().ok()).collect();
        numbers.sort_unstable();
        numbers
    }
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
    installed_store_equals_its_origin_also_after_a_reopen
    snapshot_is_of_the_moment_it_was_taken
    store_goes_on_after_an_install
    install_may_be_repeated_and_defragmented
    stream_that_is_not_whole_is_refused_and_changes_nothing
    older_snapshot_is_refused
    length_that_lies_is_refused_before_the_rest_is_read
    install_waits_for_the_log_as_a_commit_does
    snapshot_that_is_not_installed_leaves_nothing
    unfinished_compaction_of_the_origin_is_finished_here
    unfinished_compaction_of_the_past_is_forgotten
    pinned_reads_go_on_across_an_install
    reads_never_see_a_mixture
    watchers_go_on_from_where_they_were
    watcher_of_compacted_revisions_is_canceled
}

/// A store that only exists to be sent.
fn origin() -> Arc<Store> {
    Place::new(EngineKind::Memory).open()
}

/// Applies the entry `index`, which sets `key`.
fn put(store: &Store, index: u64, key: &str, value: &str) -> i64 {
    put_leased(store, index, key, value.as_bytes(), 0)
}

fn put_leased(store: &Store, index: u64, key: &str, value: &[u8], lease: i64) -> i64 {
    let mut txn = store.write(AppliedMark::new(index, 2));
    txn.put(Bytes::from(key.to_owned()), value, lease, Prev::Skip)
        .unwrap();
    txn.commit().revision
}

fn delete(store: &Store, index: u64, key: &str) {
    let mut txn = store.write(AppliedMark::new(index, 2));
    txn.delete_range(&KeyRange::Single(Bytes::from(key.to_owned())), Prev::Skip)
        .unwrap();
    txn.commit();
}

fn grant(store: &Store, index: u64, id: i64) {
    let granted = store.lessor().grant(id, 60, Duration::ZERO).unwrap();
    let mut txn = store.write(AppliedMark::new(index, 2));
    txn.extra(granted.op);
    txn.commit();
}

fn compact(store: &Store, index: u64, revision: i64) {
    store
        .compact(revision, AppliedMark::new(index, 2))
        .map(drop)
        .unwrap();
}

fn compact_fully(store: &Store) {
    while store.compact_step().unwrap() == CompactionStep::More {}
}

/// Everything there is: history, tombstones, a lease with keys, large values, other keyspaces. Ends at index 50.
fn fill(store: &Store) {
    grant(store, 1, LEASE);
    for index in 2..40 {
        let key = format!("key-{}", index % 7);
        let lease = if index % 3 == 0 { LEASE } else { 0 };
        put_leased(
            store,
            index,
            &key,
            format!("value {index}").as_bytes(),
            lease,
        );
    }
    delete(store, 40, "key-3");
    put_leased(store, 41, "large", &vec![0xab; 3 * CHUNK_BYTES_MAX / 2], 0);
    put_leased(store, 42, "", &vec![0xcd; CHUNK_BYTES_MAX], 0);
    compact(store, 43, 20);
    compact_fully(store);
    let mut txn = store.write(AppliedMark::new(50, 3));
    for keyspace in [Keyspace::Members, Keyspace::AuthUsers, Keyspace::Alarm] {
        let value = Bytes::from(keyspace.name());
        txn.extra(Op::Put(keyspace, Bytes::from("name"), value));
    }
    txn.commit();
}

fn chunks(store: &Store) -> Vec<Bytes> {
    let mut snapshot = store.snapshot().unwrap();
    let mut chunks = Vec::new();
    while let Some(chunk) = snapshot.next_chunk().unwrap() {
        assert!(chunk.len() <= CHUNK_BYTES_MAX, "{} bytes", chunk.len());
        chunks.push(chunk);
    }
    chunks
}

fn bytes(store: &Store) -> Vec<u8> {
    chunks(store).concat()
}

fn install(store: &Store, chunks: impl IntoIterator<Item = Bytes>) -> Result<(), Error> {
    let mut chunks: VecDeque<Bytes> = chunks.into_iter().collect();
    let received = store
        .receiver()?
        .receive(|| io::Result::Ok(chunks.pop_front()))?;
    store.install(received)
}

fn send(from: &Store, to: &Store) {
    install(to, chunks(from)).unwrap();
}

type Contents = Vec<(Keyspace, Vec<u8>, Vec<u8>)>;

fn contents(store: &Store) -> Contents {
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

fn all() -> RangeQuery {
    RangeQuery::new(KeyRange::From(Bytes::from_static(b"\0")))
}

fn assert_equal(a: &Store, b: &Store) {
    a.check_invariants();
    assert_eq!(contents(a), contents(b));
    assert_eq!((a.revision(), a.compacted()), (b.revision(), b.compacted()));
    assert_eq!(a.range(&all()).unwrap(), b.range(&all()).unwrap());
    assert_eq!(a.hash_kv(0).unwrap(), b.hash_kv(0).unwrap());
    assert_eq!(a.hash().unwrap(), b.hash().unwrap());
    let leases = |store: &Store| -> Vec<_> {
        let known = |id| {
            store
                .lessor()
                .time_to_live(id, Duration::ZERO, WithKeys::Yes)
        };
        store.lessor().leases().into_iter().map(known).collect()
    };
    assert_eq!(leases(a), leases(b));
}

fn installed_store_equals_its_origin_also_after_a_reopen(place: &Place) {
    let origin = origin();
    fill(&origin);
    let store = place.open();
    put(&store, 1, "of the past", "gone");
    store.lessor().promote(Duration::ZERO, Duration::ZERO);

    send(&origin, &store);

    assert_equal(&store, &origin);
    assert!(!store.lessor().is_primary());
    let backend = store.backend();
    assert_eq!(
        (backend.durable_index(), backend.safe_purge_index()),
        (50, 50)
    );
    assert_eq!(backend.buffered_bytes(), 0);
    store.close();
    drop(store);
    let store = place.open();
    assert_eq!(store.backend().durable_index(), 50);
    assert_equal(&store, &origin);
}

fn snapshot_is_of_the_moment_it_was_taken(place: &Place) {
    let store = place.open();
    fill(&store);
    let copy = origin();
    send(&store, &copy);

    let mut snapshot = store.snapshot().unwrap();
    let first = snapshot.next_chunk().unwrap();
    put(&store, 51, "key-1", "later");
    compact(&store, 52, store.revision());
    compact_fully(&store);
    store.backend().checkpoint().unwrap();
    store.backend().defragment().unwrap();
    let rest = std::iter::from_fn(|| snapshot.next_chunk().unwrap());
    let other = origin();
    install(&other, first.into_iter().chain(rest)).unwrap();

    assert_equal(&other, &copy);
}

fn store_goes_on_after_an_install(place: &Place) {
    let origin = origin();
    fill(&origin);
    let store = place.open();
    send(&origin, &store);

    for store in [&origin, &store] {
        put_leased(store, 51, "new", b"1", LEASE);
        delete(store, 52, "key-1");
        compact(store, 53, store.revision());
        compact_fully(store);
    }
    assert_equal(&store, &origin);
    store.close();
    store.backend().close().unwrap();
    drop(store);
    assert_equal(&place.open(), &origin);
}

fn install_may_be_repeated_and_defragmented(place: &Place) {
    let origin = origin();
    let store = place.open();
    for round in 0..3 {
        let last = round * 10 + 10;
        put(&origin, last, "key", &last.to_string());
        send(&origin, &store);
        store.backend().defragment().unwrap();
        put(&origin, last + 1, "key", "next");
        put(&store, last + 1, "key", "next");
        assert_equal(&store, &origin);
    }
    store.close();
    drop(store);
    assert_equal(&place.open(), &origin);
    assert!(place.generations().len() <= 1, "{:?}", place.generations());
}

fn stream_that_is_not_whole_is_refused_and_changes_nothing(place: &Place) {
    let origin = origin();
    grant(&origin, 1, LEASE);
    for index in 2..30 {
        put_leased(&origin, index, "key", b"value", LEASE);
    }
    let whole = bytes(&origin);
    let store = place.open();
    put(&store, 1, "mine", "stays");
    store.backend().checkpoint().unwrap();
    let before = contents(&store);
    let generations = place.generations();
    let refused = |stream: Vec<u8>, what: String| {
        let result = install(&store, [Bytes::from(stream)]);
        assert!(
            matches!(&result, Err(Error::Damage { file, .. }) if file.ends_with("the incoming snapshot")),
            "{what}: {result:?}"
        );
        assert_eq!(contents(&store), before, "{what}");
    };
    // A new database takes some files' fsyncs, so not every byte is tried.
    for len in (0..whole.len()).step_by(191).chain([whole.len() - 1]) {
        refused(whole[..len].to_vec(), format!("cut to {len} bytes"));
    }
    for at in (0..whole.len()).step_by(229).chain([whole.len() - 1]) {
        let mut flipped = whole.clone();
        flipped[at] ^= 0x10;
        refused(flipped, format!("byte {at} changed"));
    }
    refused([&whole[..], b"\0"].concat(), "a byte too many".to_owned());
    let mut failing = [Ok(Some(Bytes::from(whole[..100].to_vec())))]
        .into_iter()
        .chain([Err(io::Error::other("the sender is gone"))]);
    let result = store
        .receiver()
        .unwrap()
        .receive(|| failing.next().unwrap());
    assert!(matches!(result, Err(Error::Io { .. })));
    assert_eq!(contents(&store), before);

    assert_eq!(place.generations(), generations, "nothing is left over");
    assert_eq!(store.range(&all()).unwrap().kvs.len(), 1);
    put(&store, 2, "mine", "goes on");
    store.backend().checkpoint().unwrap();
    install(&store, [Bytes::from(whole)]).unwrap();
    assert_equal(&store, &origin);
}

fn older_snapshot_is_refused(place: &Place) {
    let origin = origin();
    put(&origin, 5, "key", "old");
    let store = place.open();
    put(&store, 5, "key", "old");
    put(&store, 6, "key", "new");

    assert!(matches!(
        install(&store, chunks(&origin)),
        Err(Error::Damage { .. })
    ));
    assert_eq!(store.range(&all()).unwrap().kvs[0].value, "new");
    assert_eq!(store.revision(), 3);
}

fn length_that_lies_is_refused_before_the_rest_is_read(place: &Place) {
    let store = place.open();
    let head = bytes(&origin())[..12].to_vec();
    let mut lie = head;
    lie.push(Keyspace::Rev as u8);
    lie.extend_from_slice(&17_u32.to_le_bytes());
    lie.extend_from_slice(&u32::MAX.to_le_bytes());
    let mut given = 0;

    let result = store.receiver().unwrap().receive(|| {
        given += 1;
        Ok(Some(match given {
            1 => Bytes::from(lie.clone()),
            _ => Bytes::from(vec![0; 1 << 10]),
        }))
    });

    assert!(matches!(result, Err(Error::Damage { .. })));
    assert_eq!(given, 1);
}

fn install_waits_for_the_log_as_a_commit_does(place: &Place) {
    let origin = origin();
    put(&origin, 7, "key", "value");
    let store = place.open();
    let waited = Arc::new(std::sync::Mutex::new(Vec::new()));
    let gate = waited.clone();
    store
        .backend()
        .set_commit_gate(move |index| gate.lock().unwrap().push(index));

    send(&origin, &store);

    assert_eq!(*waited.lock().unwrap(), [7]);
}

fn snapshot_that_is_not_installed_leaves_nothing(place: &Place) {
    let origin = origin();
    fill(&origin);
    let store = place.open();
    put(&store, 1, "mine", "stays");
    store.backend().checkpoint().unwrap();
    let generations = place.generations();
    let mut chunks = VecDeque::from(chunks(&origin));
    let received = store
        .receiver()
        .unwrap()
        .receive(|| Ok(chunks.pop_front()))
        .unwrap();
    if place.kind != EngineKind::Memory {
        assert!(store.backend().defragment().is_err(), "it is still there");
    }

    drop(received);

    let begun = std::time::Instant::now();
    while place.generations() != generations {
        assert!(begun.elapsed() < Duration::from_secs(10));
        std::thread::yield_now();
    }
    store.backend().defragment().unwrap();
    assert_eq!(store.revision(), 2);
}

fn unfinished_compaction_of_the_origin_is_finished_here(place: &Place) {
    let origin = origin();
    for index in 1..30 {
        put(&origin, index, "key", &index.to_string());
    }
    compact(&origin, 30, 20);
    assert_eq!(origin.compact_step().unwrap(), CompactionStep::More);
    let store = place.open();
    send(&origin, &store);

    assert_eq!(store.compacted(), 20);
    assert_eq!(store.stats().compactions_pending, 1);
    compact_fully(&store);
    compact_fully(&origin);
    assert_equal(&store, &origin);
}

fn unfinished_compaction_of_the_past_is_forgotten(place: &Place) {
    let origin = origin();
    let store = place.open();
    for index in 1..30 {
        put(&origin, index, "key", &index.to_string());
        put(&store, index, "key", &index.to_string());
    }
    compact(&store, 30, 20);
    let waiting = store.compact(25, AppliedMark::new(31, 2)).unwrap();
    assert_eq!(store.compact_step().unwrap(), CompactionStep::More);
    compact(&origin, 30, 20);
    compact_fully(&origin);
    compact(&origin, 31, 25);
    compact_fully(&origin);
    assert!(!waiting.is_finished());

    send(&origin, &store);

    assert!(waiting.is_finished());
    assert_eq!(store.compact_step().unwrap(), CompactionStep::Idle);
    assert_equal(&store, &origin);
}

fn pinned_reads_go_on_across_an_install(place: &Place) {
    let (origin, store) = (origin(), place.open());
    for store in [&origin, &store] {
        for index in 1..=20 {
            put(store, index, &format!("key-{index:02}"), "old");
        }
    }
    let mut stream = store.range_stream(&all()).unwrap();
    let mut kvs = stream.next_chunk(5, usize::MAX).unwrap().kvs;
    let view = store.backend().view().unwrap();
    for index in 21..=40 {
        put(&origin, index, &format!("key-{:02}", index - 20), "new");
    }
    compact(&origin, 41, 21);

    send(&origin, &store);

    while kvs.len() < 20 {
        kvs.append(&mut stream.next_chunk(5, usize::MAX).unwrap().kvs);
    }
    assert!(kvs.iter().all(|kv| kv.value == "old"));
    let mut values = 0;
    view.scan(Keyspace::Rev, b"", None, &mut |_, _| {
        values += 1;
        ControlFlow::Continue(())
    })
    .unwrap();
    assert_eq!(values, 20);
    let at = |revision| store.range(&RangeQuery { revision, ..all() });
    assert!(matches!(at(20), Err(Error::Compacted { .. })));
    assert!(at(21).unwrap().kvs.iter().all(|kv| kv.value == "old"));
    assert!(at(0).unwrap().kvs.iter().all(|kv| kv.value == "new"));
}

/// Every revision sets all keys to one number, so a read that sees two numbers saw two states.
fn reads_never_see_a_mixture(place: &Place) {
    const KEYS: usize = 50;
    let write = |store: &Store, index: u64| {
        let mut txn = store.write(AppliedMark::new(index, 2));
        for key in 0..KEYS {
            let (key, value) = (Bytes::from(format!("key-{key}")), index.to_string());
            txn.put(key, value.as_bytes(), 0, Prev::Skip).unwrap();
        }
        txn.commit();
    };
    let (origin, store) = (origin(), place.open());
    for store in [&origin, &store] {
        write(store, 1);
    }
    let done = AtomicBool::new(false);
    std::thread::scope(|scope| {
        let readers = [(); 2].map(|()| {
            scope.spawn(|| {
                let mut reads = 0;
                let mut newest = 0;
                while !done.load(Ordering::Relaxed) {
                    let answer = store.range(&all()).unwrap();
                    assert_eq!(answer.kvs.len(), KEYS);
                    let first = answer.kvs[0].mod_revision;
                    assert!(answer.kvs.iter().all(|kv| kv.mod_revision == first));
                    assert!(newest <= first, "revision {first} after {newest}");
                    newest = first;
                    reads += 1;
                }
                reads
            })
        });
        for round in 0..8 {
            for n in 0..10 {
                let index = 2 + round * 20 + n;
                write(&origin, index);
            }
            if round % 2 == 0 {
                compact(&origin, 2 + round * 20 + 15, origin.revision() - 1);
                compact_fully(&origin);
            }
            send(&origin, &store);
            write(&origin, 2 + round * 20 + 16);
            write(&store, 2 + round * 20 + 16);
        }
        done.store(true, Ordering::Relaxed);
        for reader in readers {
            assert!(reader.join().unwrap() > 0);
        }
    });
    assert_equal(&store, &origin);
}

fn watch(store: &Arc<Store>, start_revision: i64) -> WatchStream {
    let stream = store.watch_hub().open_stream(
        store.clone(),
        StreamOptions {
            spawn: Arc::new(|job| job()),
            progress_interval: Duration::from_secs(3600),
            fragment_bytes_min: 2 << 20,
            header: Default::default(),
            wake_group: None,
        },
    );
    let request = WatchCreateRequest {
        key: Bytes::from_static(b"\0"),
        range_end: Bytes::from_static(b"\0"),
        start_revision,
        ..WatchCreateRequest::default()
    };
    stream.create(WatchCreate::from_request(&request)).unwrap();
    stream
}

fn taken(stream: &WatchStream) -> Vec<WatchOutput> {
    std::iter::from_fn(|| stream.try_next().unwrap()).collect()
}

fn revisions(outputs: &[WatchOutput]) -> Vec<i64> {
    let batches = outputs.iter().filter_map(|output| output.events.as_ref());
    batches
        .flat_map(|batch| batch.events())
        .map(|event| event.kv.unwrap().mod_revision)
        .collect()
}

fn watchers_go_on_from_where_they_were(place: &Place) {
    let (origin, store) = (origin(), place.open());
    for store in [&origin, &store] {
        for index in 1..=10 {
            put(store, index, "key", &index.to_string());
        }
    }
    let (live, behind, ahead) = (watch(&store, 0), watch(&store, 5), watch(&store, 16));
    assert!(revisions(&taken(&live)).is_empty());
    put(&origin, 11, "key", "11");
    put(&store, 11, "key", "11");
    for index in 12..=20 {
        put(&origin, index, "key", &index.to_string());
    }

    send(&origin, &store);
    put(&store, 21, "key", "21");

    assert_eq!(revisions(&taken(&live)), (12..=22).collect::<Vec<_>>());
    assert_eq!(revisions(&taken(&behind)), (5..=22).collect::<Vec<_>>());
    assert_eq!(revisions(&taken(&ahead)), (16..=22).collect::<Vec<_>>());
}

fn watcher_of_compacted_revisions_is_canceled(place: &Place) {
    let (origin, store) = (origin(), place.open());
    put(&store, 1, "key", "1");
    let stream = watch(&store, 0);
    taken(&stream);
    for index in 1..=20 {
        put(&origin, index, "key", &index.to_string());
    }
    compact(&origin, 21, 15);

    send(&origin, &store);

    let outputs = taken(&stream);
    let canceled = outputs.last().unwrap();
    assert!(canceled.canceled);
    assert_eq!(canceled.compact_revision, 15);
    assert!(revisions(&outputs).is_empty());
}

/// The stream is a format: members of later versions must read it.
#[test]
fn stored_form_of_a_snapshot_is_fixed() {
    let store = origin();
    grant(&store, 1, LEASE);
    put_leased(&store, 2, "k", b"v", LEASE);
    delete(&store, 3, "k");
    let stream = bytes(&store);
    let fixture = include_bytes!("fixtures/snapshot-v1");
    assert_eq!(
        stream.escape_ascii().to_string(),
        fixture.escape_ascii().to_string()
    );

    let other = origin();
    install(&other, [Bytes::from_static(fixture)]).unwrap();
    assert_equal(&other, &store);
}

/// A transport may cut the stream where it likes.
#[test]
fn stream_is_taken_in_pieces_of_any_size() {
    let store = origin();
    fill(&store);
    let stream = Bytes::from(bytes(&store));
    for size in [1, 7, 4096, stream.len()] {
        let other = origin();
        let pieces = (0..stream.len())
            .step_by(size)
            .map(|at| stream.slice(at..(at + size).min(stream.len())));
        install(&other, pieces).unwrap();
        assert_equal(&other, &store);
    }
}

/// A stream may be whole and yet not describe a store: that is refused, or taken for what it says, and no panic.
#[test]
fn whole_stream_with_other_content_never_panics() {
    let origin = origin();
    grant(&origin, 1, LEASE);
    put_leased(&origin, 2, "a", b"1", LEASE);
    put(&origin, 3, "b", "2");
    delete(&origin, 4, "a");
    compact(&origin, 5, 3);
    let stream = bytes(&origin);
    let sum_at = stream.len() - 4;
    let (mut refused, mut taken) = (0, 0);
    for at in 0..sum_at {
        for flip in [0x01, 0x80, 0xff] {
            let mut changed = stream.clone();
            changed[at] ^= flip;
            let sum = crc32fast::hash(&changed[..sum_at]);
            changed[sum_at..].copy_from_slice(&sum.to_le_bytes());
            let store = Place::new(EngineKind::Memory).open();
            match install(&store, [Bytes::from(changed)]) {
                Ok(()) => {
                    taken += 1;
                    // Whatever it says, it can be read, or says that it cannot.
                    let _ = store.range(&all());
                    let _ = store.hash_kv(0);
                }
                Err(Error::Damage { .. }) => refused += 1,
                Err(error) => panic!("byte {at} with {flip:#x}: {error}"),
            }
        }
    }
    assert!(refused > taken, "{refused} refused, {taken} taken");
}
