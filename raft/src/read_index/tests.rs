use std::collections::VecDeque;
use std::sync::atomic::{AtomicU64, Ordering};

use tokio::sync::{mpsc, watch};

use super::*;

/// Answers as a script says; each attempt waits for its line.
struct Script {
    lines: tokio::sync::Mutex<mpsc::Receiver<Confirmation>>,
    attempts: Arc<AtomicU64>,
    applied: watch::Receiver<u64>,
}

impl Confirm for Script {
    async fn confirm(&self) -> Confirmation {
        self.attempts.fetch_add(1, Ordering::SeqCst);
        self.lines
            .lock()
            .await
            .recv()
            .await
            .unwrap_or(Confirmation::Stopped)
    }

    async fn applied(&self, index: u64) -> bool {
        self.applied
            .clone()
            .wait_for(|applied| *applied >= index)
            .await
            .is_ok()
    }
}

struct Stage {
    reads: Arc<Reads>,
    lines: mpsc::Sender<Confirmation>,
    attempts: Arc<AtomicU64>,
    applied: watch::Sender<u64>,
}

const PAUSE: Duration = Duration::from_millis(1);
const PATIENCE: Duration = Duration::from_millis(50);

fn stage() -> Stage {
    let (lines, script) = mpsc::channel(16);
    let (applied, applied_seen) = watch::channel(0);
    let attempts = Arc::new(AtomicU64::new(0));
    let script = Script {
        lines: tokio::sync::Mutex::new(script),
        attempts: attempts.clone(),
        applied: applied_seen,
    };
    let reads = Reads::new();
    tokio::spawn({
        let reads = reads.clone();
        async move { reads.run(script, PAUSE, PATIENCE).await }
    });
    Stage {
        reads,
        lines,
        attempts,
        applied,
    }
}

fn read(reads: &Arc<Reads>) -> tokio::task::JoinHandle<ReadResult> {
    let reads = reads.clone();
    tokio::spawn(async move { reads.linearizable().await })
}

/// Lets every task run until all wait.
async fn settle() {
    for _ in 0..50 {
        tokio::task::yield_now().await;
    }
}

#[tokio::test]
async fn reads_that_wait_share_one_confirmation() {
    let stage = stage();
    let reads: VecDeque<_> = (0..100).map(|_| read(&stage.reads)).collect();
    settle().await;
    stage.applied.send_replace(7);
    for _ in 0..2 {
        stage.lines.send(Confirmation::Index(7)).await.unwrap();
    }
    for read in reads {
        assert_eq!(read.await.unwrap(), Ok(7));
    }
    // The first read started the first attempt, alone or not; the rest shared at most one more.
    assert!(stage.attempts.load(Ordering::SeqCst) <= 2);
}

#[tokio::test]
async fn a_read_is_released_only_when_its_index_is_applied() {
    let stage = stage();
    let read = read(&stage.reads);
    stage.lines.send(Confirmation::Index(7)).await.unwrap();
    stage.applied.send_replace(6);
    settle().await;
    assert!(!read.is_finished());
    stage.applied.send_replace(7);
    assert_eq!(read.await.unwrap(), Ok(7));
}

#[tokio::test]
async fn a_read_that_comes_during_a_confirmation_gets_its_own() {
    let stage = stage();
    stage.applied.send_replace(9);
    let early = read(&stage.reads);
    settle().await;
    let late = read(&stage.reads);
    settle().await;
    stage.lines.send(Confirmation::Index(7)).await.unwrap();
    assert_eq!(early.await.unwrap(), Ok(7));
    settle().await;
    assert!(
        !late.is_finished(),
        "the early confirmation may be older than the late read"
    );
    stage.lines.send(Confirmation::Index(9)).await.unwrap();
    assert_eq!(late.await.unwrap(), Ok(9));
}

#[tokio::test]
async fn a_failed_attempt_is_repeated_and_serves_who_came_meanwhile() {
    let stage = stage();
    stage.applied.send_replace(9);
    let early = read(&stage.reads);
    settle().await;
    let late = read(&stage.reads);
    settle().await;
    stage.lines.send(Confirmation::Retry).await.unwrap();
    stage.lines.send(Confirmation::Index(9)).await.unwrap();
    assert_eq!(early.await.unwrap(), Ok(9));
    assert_eq!(late.await.unwrap(), Ok(9));
}

#[tokio::test]
async fn reads_without_a_leader_fail_when_patience_ends() {
    let stage = stage();
    let lines = stage.lines.clone();
    let feed = tokio::spawn(async move { while lines.send(Confirmation::Retry).await.is_ok() {} });
    let started = Instant::now();
    assert_eq!(read(&stage.reads).await.unwrap(), Err(ReadError::NoLeader));
    assert!(started.elapsed() >= PATIENCE);
    feed.abort();
}

#[tokio::test]
async fn a_stop_ends_waiting_and_later_reads() {
    let stage = stage();
    let asking = read(&stage.reads);
    settle().await;
    let waiting = read(&stage.reads);
    settle().await;
    stage.reads.stop();
    assert_eq!(waiting.await.unwrap(), Err(ReadError::Stopped));
    drop(stage.lines);
    assert_eq!(asking.await.unwrap(), Err(ReadError::Stopped));
    assert_eq!(stage.reads.linearizable().await, Err(ReadError::Stopped));
}
