use std::path::Path;

use futures_util::StreamExt;
use kv_raft::Applied;
use tonic::Status;

use super::receive::{Beginning, Incoming};
use super::*;

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
    let received = receiving.finish(&mut messages, |_, _| {}).await?;
    let (header, mut source, _) = received.into_parts();
    assert_eq!(&header[..], b"header");
    let mut bytes = Vec::new();
    while let Some(chunk) = source.next_chunk().unwrap() {
        bytes.extend_from_slice(&chunk);
    }
    Ok((bytes, have))
}

async fn is_empty(dir: &Path) -> bool {
    // The writer of a transfer that was given up removes its file in its own time.
    for _ in 0..1000 {
        if std::fs::read_dir(dir).unwrap().next().is_none() {
            return true;
        }
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
    false
}

#[tokio::test]
async fn what_arrives_is_what_was_sent_and_goes_when_it_is_read() {
    let dir = tempfile::tempdir().unwrap();
    let incoming = Incoming::new(dir.path().to_owned());
    let (messages, failure, sent) = messages(0, false).await;
    assert!(failure.is_none());
    assert_eq!(sent, total());

    let (bytes, have) = arrive(&incoming, messages).await.unwrap();

    assert_eq!(have, 0);
    assert_eq!(bytes, chunks().concat());
    assert!(is_empty(dir.path()).await);
}

#[tokio::test]
async fn transfer_that_breaks_off_goes_on_behind_what_has_arrived() {
    let dir = tempfile::tempdir().unwrap();
    let incoming = Incoming::new(dir.path().to_owned());
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
    assert!(is_empty(dir.path()).await);
}

#[tokio::test]
async fn another_snapshot_begins_anew() {
    let dir = tempfile::tempdir().unwrap();
    let incoming = Incoming::new(dir.path().to_owned());
    let (mut whole, ..) = messages(0, false).await;
    arrive(&incoming, whole[..3].to_vec()).await.unwrap_err();
    let Some(Part::Begin(begin)) = &mut whole[0].part else {
        panic!("it begins")
    };
    begin.id += 1;

    let (bytes, had) = arrive(&incoming, whole).await.unwrap();

    assert_eq!(had, 0);
    assert_eq!(bytes, chunks().concat());
    assert!(is_empty(dir.path()).await);
}

#[tokio::test]
async fn installed_snapshot_is_not_received_again() {
    let dir = tempfile::tempdir().unwrap();
    let incoming = Incoming::new(dir.path().to_owned());
    let (whole, ..) = messages(0, false).await;
    let mut first = futures_util::stream::iter(whole.clone().into_iter().map(Ok));
    let Ok(Beginning::Rest(receiving)) = incoming.begin(SENDER, &mut first).await else {
        panic!("it is received")
    };
    let received = receiving.finish(&mut first, |_, _| {}).await.unwrap();
    let (_, _, installing) = received.into_parts();
    installing.done(Bytes::from_static(b"answer"));

    let mut second = futures_util::stream::iter(whole.into_iter().map(Ok));
    match incoming.begin(SENDER, &mut second).await {
        Ok(Beginning::Installed(answer)) => assert_eq!(&answer[..], b"answer"),
        _ => panic!("it is installed"),
    }
}

#[tokio::test]
async fn snapshot_that_loses_or_changes_a_message_is_refused() {
    let dir = tempfile::tempdir().unwrap();
    let (whole, ..) = messages(0, false).await;
    let count = whole.len();
    for n in 0..count {
        let incoming = Incoming::new(dir.path().to_owned());
        let mut lost = whole.clone();
        lost.remove(n);
        assert!(arrive(&incoming, lost).await.is_err(), "message {n} lost");
        let incoming = Incoming::new(dir.path().to_owned());
        let cut = whole[..n].to_vec();
        assert!(arrive(&incoming, cut).await.is_err(), "cut before {n}");
        let mut changed = whole.clone();
        match &mut changed[n].part {
            Some(Part::Chunk(chunk)) => chunk.crc ^= 1,
            Some(Part::End(end)) => end.crc ^= 1,
            _ => continue,
        }
        let incoming = Incoming::new(dir.path().to_owned());
        assert!(
            arrive(&incoming, changed).await.is_err(),
            "message {n} changed"
        );
    }
}

#[tokio::test]
async fn source_that_breaks_off_sends_no_end() {
    let dir = tempfile::tempdir().unwrap();
    let incoming = Incoming::new(dir.path().to_owned());
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
