//! Closed-loop load on one member: proposals a second, latency and CPU, at several concurrencies.
//!
//! `cargo run --release -p kv-raft --example propose -- [folder] [seconds per step]`. The folder
//! decides which disk is measured; the default is the system's temporary one. Every proposer waits
//! for its command to be applied before it proposes the next, as a client of a server does. The
//! CPU time is that of the whole process: proposers, raft, log and the state machine.

use std::io;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::{Duration, Instant};

use bytes::{BufMut, Bytes, BytesMut};
use kv_raft::{
    Applied, CheckpointFuture, CommittedEntry, Config, EntryBody, InstallFuture, NoPeers, Node,
    Role, SnapshotSource, StateMachine,
};
use kv_wal::fs::RealFs;
use kv_wal::{Identity, Recovered, Wal};
use parking_lot::Mutex;
use tokio::sync::oneshot;

const COMMAND_BYTES: usize = 300;
const CONCURRENCIES: [usize; 4] = [1, 128, 256, 1000];

/// Proposers that wait, by number.
type Waiters = Arc<Vec<Mutex<Option<oneshot::Sender<()>>>>>;

/// Answers the proposer whose number a command begins with.
struct Answering {
    applied: Applied,
    waiters: Waiters,
}

impl StateMachine for Answering {
    fn applied(&mut self) -> io::Result<Applied> {
        Ok(self.applied.clone())
    }

    fn apply(&mut self, entries: Vec<CommittedEntry>) -> io::Result<()> {
        for entry in entries {
            (self.applied.index, self.applied.term) = (entry.index, entry.term);
            match entry.body {
                EntryBody::Blank => {}
                EntryBody::Commands(commands) => {
                    for command in commands {
                        let number = u64::from_le_bytes(command[..8].try_into().expect("8 bytes"));
                        if let Some(waiter) = self.waiters[number as usize].lock().take() {
                            let _ = waiter.send(());
                        }
                    }
                }
                EntryBody::Membership { membership, .. } => self.applied.membership = membership,
            }
        }
        Ok(())
    }

    fn checkpoint(&mut self) -> CheckpointFuture {
        Box::pin(std::future::ready(Ok(self.applied.clone())))
    }

    fn snapshot(&mut self) -> io::Result<Box<dyn SnapshotSource>> {
        Err(io::Error::from(io::ErrorKind::Unsupported))
    }

    fn install(&mut self, _: Applied, _: Box<dyn SnapshotSource>) -> InstallFuture<'_> {
        Box::pin(async { Err(io::Error::from(io::ErrorKind::Unsupported)) })
    }
}

fn main() {
    let mut arguments = std::env::args().skip(1);
    let folder = arguments
        .next()
        .map_or_else(std::env::temp_dir, PathBuf::from);
    let seconds = arguments
        .next()
        .map_or(3, |seconds| seconds.parse().expect("whole seconds"));
    let dir = tempfile::tempdir_in(folder).expect("a folder of its own");
    let runtime = tokio::runtime::Builder::new_multi_thread()
        .worker_threads(2)
        .enable_all()
        .build()
        .expect("a runtime");
    runtime.block_on(measure(
        dir.path().join("wal"),
        Duration::from_secs(seconds),
    ));
}

async fn measure(dir: PathBuf, step: Duration) {
    let identity = Identity {
        cluster_id: 1,
        member_id: 1,
        incarnation: 1,
    };
    let wal_config = kv_wal::Config::new(dir, identity);
    let wal = Wal::create(Arc::new(RealFs), wal_config).expect("a new log");
    let (vote, committed, purged, cut) = (None, None, None, None);
    let recovered = Recovered {
        identity,
        vote,
        committed,
        purged,
        entries: Vec::new(),
        cut,
    };
    let waiters: Waiters = Arc::new((0..1000).map(|_| Mutex::new(None)).collect());
    let machine = Answering {
        applied: Applied::default(),
        waiters: waiters.clone(),
    };
    let config = Config {
        member_id: 1,
        ..Config::default()
    };
    let node = Node::start(
        config,
        wal.clone(),
        recovered,
        Box::new(machine),
        Arc::new(NoPeers),
    )
    .await
    .expect("a node");
    node.initialize(&[1]).await.expect("a new cluster");
    let mut status = node.watch_status();
    status
        .wait_for(|status| status.role == Role::Leader)
        .await
        .expect("a leader");

    println!("proposers  ops/s    p50 us  p99 us  p99.9 us  cpu us/op");
    for proposers in CONCURRENCIES {
        let (started, cpu) = (Instant::now(), cpu_time());
        let tasks: Vec<_> = (0..proposers)
            .map(|number| tokio::spawn(propose(node.clone(), waiters.clone(), number, step)))
            .collect();
        let mut took = Vec::new();
        for task in tasks {
            took.extend(task.await.expect("a proposer"));
        }
        let (elapsed, cpu) = (started.elapsed(), cpu_time() - cpu);
        took.sort_unstable();
        let quantile = |q: f64| took[((took.len() - 1) as f64 * q) as usize].as_micros();
        println!(
            "{proposers:>9}  {:>7.0}  {:>6}  {:>6}  {:>8}  {:>9.1}",
            took.len() as f64 / elapsed.as_secs_f64(),
            quantile(0.5),
            quantile(0.99),
            quantile(0.999),
            cpu.as_micros() as f64 / took.len() as f64,
        );
    }
    node.shutdown().await.expect("a stop");
    wal.close().expect("a closed log");
}

/// Proposes one command after the other for `step`; how long each took.
async fn propose(node: Node, waiters: Waiters, number: usize, step: Duration) -> Vec<Duration> {
    let mut command = BytesMut::zeroed(COMMAND_BYTES);
    (&mut command[..8]).put_u64_le(number as u64);
    let command: Bytes = command.freeze();
    let end = Instant::now() + step;
    let mut took = Vec::new();
    while Instant::now() < end {
        let started = Instant::now();
        let (sender, applied) = oneshot::channel();
        *waiters[number].lock() = Some(sender);
        node.propose(
            vec![command.clone()],
            Box::new(|error| panic!("refused: {error}")),
        );
        applied.await.expect("applied");
        took.push(started.elapsed());
    }
    took
}

/// CPU time of this process so far, in steps of 10 ms.
fn cpu_time() -> Duration {
    let stat = std::fs::read_to_string("/proc/self/stat").expect("Linux");
    let fields: Vec<&str> = stat
        .rsplit(')')
        .next()
        .expect("a name")
        .split(' ')
        .collect();
    let ticks = |field: usize| fields[field].parse::<u64>().expect("ticks");
    Duration::from_millis((ticks(12) + ticks(13)) * 10)
}
