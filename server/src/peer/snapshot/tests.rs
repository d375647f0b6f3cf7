use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};

use futures_util::StreamExt;
use kv_mvcc::backend::{Backend, MemoryDisk, Options};
use kv_mvcc::{AppliedMark, Prev, Received, Store, StoreOptions};
use kv_raft::Applied;
use tonic::Status;

use super::receive::{Beginning, Incoming, NextChunk};
use super::*;
use crate::apply::receive_snapshot;

const SENDER: u64 = 0xa;
const ID: u64 = 77;

/// A source of given chunks, which may break off.
struct Chunks {
    left: Vec<Bytes>,
    breaks_off: bool,
}

impl SnapshotSource for Chunks {
    fn applied(&self) -> Applied {
        Applied::default()
    }

    fn next_chunk(&mut self) -> io::Result<Option<Bytes>> {
        if self.left.is_empty() {
            return if self.breaks_off {
                Err(io::Error::other("the disk is gone"))
            } else {
                Ok(None)
            };
        }
        Ok(Some(self.left.remove(0)))
    }
}

/// More than one message each, and less.
fn chunks() -> Vec<Bytes> {
    let large: Vec<u8> = (0..CHUNK_BYTES_MAX * 2 + 7).map(|n| n as u8).collect();
    vec![Bytes::from_static(b"small"), large.into(), Bytes::new()]
}

fn total() -> u64 {
    chunks().iter().map(|chunk| chunk.len() as u64).sum()
}

/// The messages of a transfer to a receiver that has the first `have` bytes.
async fn messages(have: u64, breaks_off: bool) -> (Vec<SnapshotRequest>, Option<io::Error>, u64) {
    let source = Chunks {
        left: chunks(),
        breaks_off,
    };
    let sent = IntCounter::new("sent", "bytes").unwrap();
    let (sending, stream) = Sending::begin(Bytes::from_static(b"header"), ID, sent.clone());
    sending.send(have, Box::new(source));
    let failure = sending.failure.clone();
    drop(sending);
    let messages = stream.collect().await;
    let failure = failure.lock().take();
    (messages, failure, sent.get())
}

/// What is received of `messages`, or how many bytes were there before them and why the rest was refused.
async fn arrive(
    incoming: &Incoming,
    messages: Vec<SnapshotRequest>,
) -> Result<(Vec<u8>, u64), Status> {
    let mut messages = futures_util::stream::iter(messages.into_iter().map(Ok));
    let Beginning::Rest(receiving) = incoming.begin(SENDER, &mut messages).await? else {
        panic!("it was not installed before")
    };
    let have = receiving.bytes();
    let arrived = receiving.finish(&mut messages, |_, _| {}).await?;
    let (header, mut source, _) = arrived.taken_in().await?.into_parts();
    assert_eq!(&header[..], b"header");
    let mut bytes = Vec::new();
    while let Some(chunk) = source.next_chunk().unwrap() {
        bytes.extend_from_slice(&chunk);
    }
    Ok((bytes, have))
}

/// Takes in bytes, and counts the snapshots of which something is there.
#[derive(Clone, Default)]
struct Bucket {
    held: Arc<AtomicUsize>,
    is_full: Arc<AtomicBool>,
}

/// Some of a snapshot.
struct Held(Arc<AtomicUsize>);

impl Drop for Held {
    fn drop(&mut self) {
        self.0.fetch_sub(1, Ordering::SeqCst);
    }
}

/// What was taken in.
struct Taken {
    bytes: Option<Bytes>,
    _held: Held,
}

impl SnapshotSource for Taken {
    fn applied(&self) -> Applied {
        Applied::default()
    }

    fn next_chunk(&mut self) -> io::Result<Option<Bytes>> {
        Ok(self.bytes.take())
    }
}

impl Bucket {
    fn incoming(&self) -> Incoming {
        let bucket = self.clone();
        Incoming::new(Arc::new(move |chunks: &mut NextChunk<'_>| {
            bucket.held.fetch_add(1, Ordering::SeqCst);
            let held = Held(bucket.held.clone());
            let mut bytes = Vec::new();
            while let Some(chunk) = chunks()? {
                if bucket.is_full.load(Ordering::SeqCst) {
                    return Err(io::ErrorKind::StorageFull.into());
                }
                bytes.extend_from_slice(&chunk);
            }
            Ok(Box::new(Taken {
                bytes: Some(bytes.into()),
                _held: held,
            }))
        }))
    }

    async fn is_empty(&self) -> bool {
        eventually(|| self.held.load(Ordering::SeqCst) == 0).await
    }
}

/// The thread of a transfer that was given up ends in its own time.
async fn eventually(is_so: impl Fn() -> bool) -> bool {
    for _ in 0..1000 {
        if is_so() {
            return true;
        }
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
    false
}

#[tokio::test]
async fn what_arrives_is_what_was_sent() {
    let bucket = Bucket::default();
    let incoming = bucket.incoming();
    let (messages, failure, sent) = messages(0, false).await;
    assert!(failure.is_none());
    assert_eq!(sent, total());

    let (bytes, have) = arrive(&incoming, messages).await.unwrap();

    assert_eq!(have, 0);
    assert_eq!(bytes, chunks().concat());
    assert!(bucket.is_empty().await);
}

#[tokio::test]
async fn transfer_that_breaks_off_goes_on_behind_what_has_arrived() {
    let bucket = Bucket::default();
    let incoming = bucket.incoming();
    let (whole, ..) = messages(0, false).await;
    // The beginning and two chunks.
    let refused = arrive(&incoming, whole[..3].to_vec()).await.unwrap_err();
    assert_eq!(refused.code(), tonic::Code::Aborted);
    let have = 5 + CHUNK_BYTES_MAX as u64;

    let (rest, _, sent) = messages(have, false).await;
    assert_eq!(sent, total() - have, "nothing is sent twice");
    let (bytes, had) = arrive(&incoming, rest).await.unwrap();

    assert_eq!(had, have);
    assert_eq!(bytes, chunks().concat());
    assert!(bucket.is_empty().await);
}

#[tokio::test]
async fn another_snapshot_begins_anew() {
    let bucket = Bucket::default();
    let incoming = bucket.incoming();
    let (mut whole, ..) = messages(0, false).await;
    arrive(&incoming, whole[..3].to_vec()).await.unwrap_err();
    let Some(Part::Begin(begin)) = &mut whole[0].part else {
        panic!("it begins")
    };
    begin.id += 1;

    let (bytes, had) = arrive(&incoming, whole).await.unwrap();

    assert_eq!(had, 0);
    assert_eq!(bytes, chunks().concat());
    assert!(bucket.is_empty().await);
}

#[tokio::test]
async fn installed_snapshot_is_not_received_again() {
    let bucket = Bucket::default();
    let incoming = bucket.incoming();
    let (whole, ..) = messages(0, false).await;
    let mut first = futures_util::stream::iter(whole.clone().into_iter().map(Ok));
    let Ok(Beginning::Rest(receiving)) = incoming.begin(SENDER, &mut first).await else {
        panic!("it is received")
    };
    let arrived = receiving.finish(&mut first, |_, _| {}).await.unwrap();
    let (_, _, installing) = arrived.taken_in().await.unwrap().into_parts();
    installing.done(Bytes::from_static(b"answer"));

    let mut second = futures_util::stream::iter(whole.into_iter().map(Ok));
    match incoming.begin(SENDER, &mut second).await {
        Ok(Beginning::Installed(answer)) => assert_eq!(&answer[..], b"answer"),
        _ => panic!("it is installed"),
    }
}

#[tokio::test]
async fn snapshot_that_loses_or_changes_a_message_is_refused() {
    let bucket = Bucket::default();
    let (whole, ..) = messages(0, false).await;
    let count = whole.len();
    for n in 0..count {
        let incoming = bucket.incoming();
        let mut lost = whole.clone();
        lost.remove(n);
        assert!(arrive(&incoming, lost).await.is_err(), "message {n} lost");
        let incoming = bucket.incoming();
        let cut = whole[..n].to_vec();
        assert!(arrive(&incoming, cut).await.is_err(), "cut before {n}");
        let mut changed = whole.clone();
        match &mut changed[n].part {
            Some(Part::Chunk(chunk)) => chunk.crc ^= 1,
            Some(Part::End(end)) => end.crc ^= 1,
            _ => continue,
        }
        let incoming = bucket.incoming();
        assert!(
            arrive(&incoming, changed).await.is_err(),
            "message {n} changed"
        );
    }
}

#[tokio::test]
async fn snapshot_that_cannot_be_taken_in_is_refused_with_the_reason() {
    let bucket = Bucket::default();
    bucket.is_full.store(true, Ordering::SeqCst);
    let incoming = bucket.incoming();
    let (whole, ..) = messages(0, false).await;

    let refused = arrive(&incoming, whole.clone()).await.unwrap_err();

    let reason = io::Error::from(io::ErrorKind::StorageFull).to_string();
    assert_eq!(refused.message(), reason);
    assert!(bucket.is_empty().await);
    bucket.is_full.store(false, Ordering::SeqCst);
    let (bytes, have) = arrive(&incoming, whole).await.unwrap();
    assert_eq!((have, bytes), (0, chunks().concat()));
}

#[tokio::test]
async fn source_that_breaks_off_sends_no_end() {
    let bucket = Bucket::default();
    let incoming = bucket.incoming();
    let (messages, failure, _) = messages(0, true).await;
    assert!(failure.is_some());
    assert!(arrive(&incoming, messages).await.is_err());
}

#[tokio::test]
async fn receiver_that_has_more_than_there_is_gets_no_end() {
    let (messages, failure, sent) = messages(total() + 1, false).await;
    assert!(failure.is_some());
    assert_eq!((messages.len(), sent), (1, 0));
}

/// A store with files, which receives snapshots.
struct Member {
    dir: tempfile::TempDir,
    store: Arc<Store>,
    incoming: Incoming,
}

impl Member {
    fn start() -> Member {
        let dir = tempfile::tempdir().unwrap();
        let backend = Backend::open(dir.path(), Options::default()).unwrap();
        let store = Store::open(backend, StoreOptions::default()).unwrap();
        put(&store, 1, b"of the past");
        store.backend().checkpoint().unwrap();
        let to = Arc::downgrade(&store);
        let take_in = move |chunks: &mut NextChunk<'_>| receive_snapshot(&to, chunks);
        Member {
            dir,
            store,
            incoming: Incoming::new(Arc::new(take_in)),
        }
    }

    fn generations(&self) -> Vec<String> {
        let entries = std::fs::read_dir(self.dir.path().join("db")).unwrap();
        let names = entries.map(|entry| entry.unwrap().file_name().into_string().unwrap());
        let mut names: Vec<String> = names.collect();
        names.sort();
        names
    }

    /// Receives and installs; returns how many bytes were there before.
    async fn take(&self, messages: &[SnapshotRequest]) -> Result<u64, Status> {
        let messages = messages.iter().cloned().map(Ok);
        let mut messages = futures_util::stream::iter(messages);
        let Beginning::Rest(receiving) = self.incoming.begin(SENDER, &mut messages).await? else {
            panic!("it was not installed before")
        };
        let have = receiving.bytes();
        let arrived = receiving.finish(&mut messages, |_, _| {}).await?;
        let (_, mut source, _) = arrived.taken_in().await?.into_parts();
        let received = source.take_prepared().expect("it was taken in");
        self.store
            .install(*received.downcast::<Received>().unwrap())
            .unwrap();
        Ok(have)
    }
}

fn put(store: &Store, index: u64, value: &[u8]) {
    let mut txn = store.write(AppliedMark::new(index, 1));
    let key = Bytes::from(format!("key-{index}"));
    txn.put(key, value, 0, Prev::Skip).unwrap();
    txn.commit();
}

/// A store of some megabytes.
fn origin() -> Arc<Store> {
    let backend = Backend::open_in_memory(&MemoryDisk::default(), Options::default()).unwrap();
    let store = Store::open(backend, StoreOptions::default()).unwrap();
    for index in 1..=10 {
        put(&store, index, &vec![index as u8; 900_000]);
    }
    store
}

/// The messages that send `store` to a receiver that has the first `have` bytes.
async fn messages_of(store: &Store, have: u64) -> Vec<SnapshotRequest> {
    let mut snapshot = store.snapshot().unwrap();
    let source = Chunks {
        left: std::iter::from_fn(|| snapshot.next_chunk().unwrap()).collect(),
        breaks_off: false,
    };
    let sent = IntCounter::new("sent", "bytes").unwrap();
    let (sending, stream) = Sending::begin(Bytes::from_static(b"header"), ID, sent);
    sending.send(have, Box::new(source));
    drop(sending);
    stream.collect().await
}

fn same(a: &Store, b: &Store) -> bool {
    a.hash_kv(0).unwrap() == b.hash_kv(0).unwrap()
}

#[tokio::test]
async fn database_is_made_while_the_snapshot_arrives_and_goes_on_after_a_break() {
    let (origin, member) = (origin(), Member::start());
    let whole = messages_of(&origin, 0).await;
    let arrived: usize = whole[..15]
        .iter()
        .map(|message| match &message.part {
            Some(Part::Chunk(chunk)) => chunk.data.len(),
            _ => 0,
        })
        .sum();

    let refused = member.take(&whole[..15]).await.unwrap_err();

    assert_eq!(refused.code(), tonic::Code::Aborted);
    let file = member.dir.path().join("db/2/data.redb");
    let most = || file.metadata().is_ok_and(|file| file.len() > 4 << 20);
    assert!(eventually(most).await, "most of it is in the database");
    assert_eq!(member.generations(), ["1", "2"]);
    assert_eq!(member.store.revision(), 2, "it is not used yet");
    // An operator need not wait for it, and learns why.
    let refused = member.store.backend().defragment().unwrap_err();
    assert!(matches!(refused, kv_mvcc::Error::SnapshotArriving));

    let rest = messages_of(&origin, arrived as u64).await;
    assert_eq!(member.take(&rest).await.unwrap(), arrived as u64);

    assert!(same(&origin, &member.store));
    assert!(eventually(|| member.generations() == ["2"]).await);
    member.store.backend().defragment().unwrap();
}

#[tokio::test]
async fn end_that_lies_and_damage_in_the_middle_leave_nothing_and_change_nothing() {
    let (origin, member) = (origin(), Member::start());
    let whole = messages_of(&origin, 0).await;
    let mut lying = whole.clone();
    match &mut lying.last_mut().unwrap().part {
        Some(Part::End(end)) => end.crc ^= 1,
        _ => panic!("it ends"),
    }
    // Of a sender that read it so: the sums of the transfer are right.
    let mut damaged = whole.clone();
    let mut crc = crc32fast::Hasher::new();
    for (n, message) in damaged.iter_mut().enumerate() {
        match &mut message.part {
            Some(Part::Chunk(chunk)) => {
                let mut data = chunk.data.to_vec();
                if n == 9 {
                    data[10] ^= 1;
                }
                crc.update(&data);
                chunk.crc = crc32fast::hash(&data);
                chunk.data = data.into();
            }
            Some(Part::End(end)) => end.crc = crc.clone().finalize(),
            _ => {}
        }
    }
    for (bad, code) in [
        (lying, tonic::Code::DataLoss),
        (damaged, tonic::Code::Internal),
    ] {
        let refused = member.take(&bad).await.unwrap_err();
        assert_eq!(refused.code(), code, "{refused}");
        assert!(eventually(|| member.generations() == ["1"]).await);
        assert_eq!(member.store.revision(), 2);
    }
    member.store.backend().defragment().unwrap();

    assert_eq!(member.take(&whole).await.unwrap(), 0);
    assert!(same(&origin, &member.store));
}

#[tokio::test]
async fn transfer_that_waits_keeps_no_store_open_and_leaves_the_next_one_alone() {
    let (origin, member) = (origin(), Member::start());
    let whole = messages_of(&origin, 0).await;
    member.take(&whole[..15]).await.unwrap_err();
    let Member {
        dir,
        store,
        incoming,
    } = member;
    store.close();
    store.backend().close().unwrap();
    assert_eq!(Arc::strong_count(&store), 1);
    drop(store);
    let backend = Backend::open(dir.path(), Options::default()).unwrap();
    let next = Store::open(backend, StoreOptions::default()).unwrap();
    let mut snapshot = origin.snapshot().unwrap();
    let receiver = next.receiver().unwrap();
    let received = receiver.receive(|| snapshot.next_chunk().map_err(io::Error::other));
    next.install(received.unwrap()).unwrap();

    // What waited goes, and had the number of what is live now.
    drop(incoming);
    tokio::task::yield_now().await;

    next.close();
    next.backend().close().unwrap();
    drop(next);
    let backend = Backend::open(dir.path(), Options::default()).unwrap();
    let next = Store::open(backend, StoreOptions::default()).unwrap();
    assert!(same(&origin, &next));
}
