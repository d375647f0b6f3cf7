//! How long writes pause when the leader is killed, and when leadership is moved on request.
//!
//! A writer at each member puts all the time, one put after the other, and tries a put that failed once more at once. The
//! pause is the longest time in which no writer was acknowledged; a put that failed twice is counted.

use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use anyhow::{Context, Result};
use kv_proto::etcdserverpb::kv_client::KvClient;
use kv_proto::etcdserverpb::maintenance_client::MaintenanceClient;
use kv_proto::etcdserverpb::{MoveLeaderRequest, PutRequest};
use tonic::transport::Channel;

use super::MEMBERS;
use crate::cluster::Cluster;

/// Writes before and after the event.
const AROUND: Duration = Duration::from_secs(2);
/// A put that a dying member took is given up after this time.
const PUT_LIMIT: Duration = Duration::from_secs(5);

/// What one event cost.
#[derive(Clone, Copy, Debug)]
pub struct Pause {
    /// From the event to the first acknowledgement of a put that was sent after it; of a move, the longest gap around it.
    pub pause: Duration,
    /// Puts that failed, and failed again when they were tried once more.
    pub failed_twice: u64,
}

/// Kills the leader `rounds` times and waits for writes each time.
pub async fn failovers(rounds: usize) -> Result<Vec<Pause>> {
    let mut cluster = Cluster::start(MEMBERS, &[]);
    let mut pauses = Vec::new();
    for _ in 0..rounds {
        let leader = cluster.leader().await?;
        let survivors: Vec<usize> = (0..MEMBERS).filter(|n| *n != leader).collect();
        let writers = Writers::start(&cluster, &survivors).await?;
        tokio::time::sleep(AROUND).await;
        let killed = Instant::now();
        cluster.kill(leader);
        let pause = writers.first_acknowledged_after(killed).await?;
        let failed_twice = writers.stop().await.1;
        pauses.push(Pause {
            pause,
            failed_twice,
        });
        cluster.start_member(leader);
        cluster.leader().await?;
    }
    Ok(pauses)
}

/// Moves leadership `rounds` times.
pub async fn moves(rounds: usize) -> Result<Vec<Pause>> {
    let cluster = Cluster::start(MEMBERS, &[]);
    let mut pauses = Vec::new();
    for _ in 0..rounds {
        let leader = cluster.leader().await?;
        let target = (leader + 1) % MEMBERS;
        let target_id = cluster
            .status(target)
            .await?
            .header
            .context("a status has a header")?
            .member_id;
        let writers = Writers::start(&cluster, &[0, 1, 2]).await?;
        tokio::time::sleep(AROUND).await;
        let mut maintenance = MaintenanceClient::new(cluster.channel(leader).await?);
        let begun = Instant::now();
        maintenance
            .move_leader(MoveLeaderRequest { target_id })
            .await?;
        writers.first_acknowledged_after(Instant::now()).await?;
        tokio::time::sleep(AROUND).await;
        let (acknowledged, failed_twice) = writers.stop().await;
        // The gap that the move made began within a second of it.
        let mut times: Vec<Instant> = acknowledged
            .into_iter()
            .map(|(_, answered)| answered)
            .collect();
        times.sort();
        let gaps = times
            .windows(2)
            .filter(|pair| pair[1] >= begun && pair[0] <= begun + Duration::from_secs(1));
        let pause = gaps.map(|pair| pair[1] - pair[0]).max().unwrap_or_default();
        pauses.push(Pause {
            pause,
            failed_twice,
        });
    }
    Ok(pauses)
}

/// The middle one of the pauses, the mean of the middle two of an even number.
pub fn median(pauses: &[Pause]) -> Duration {
    let mut sorted: Vec<Duration> = pauses.iter().map(|pause| pause.pause).collect();
    sorted.sort();
    match sorted.len() {
        0 => Duration::ZERO,
        n if n % 2 == 1 => sorted[n / 2],
        n => (sorted[n / 2 - 1] + sorted[n / 2]) / 2,
    }
}

/// When a put was sent and when it was acknowledged.
type Acknowledged = (Instant, Instant);

struct Writers {
    shared: Arc<Shared>,
    tasks: Vec<tokio::task::JoinHandle<()>>,
}

#[derive(Default)]
struct Shared {
    is_over: AtomicBool,
    acknowledged: Mutex<Vec<Acknowledged>>,
    failed_twice: AtomicU64,
}

impl Writers {
    async fn start(cluster: &Cluster, members: &[usize]) -> Result<Writers> {
        let shared = Arc::new(Shared::default());
        let mut tasks = Vec::new();
        for n in members {
            let channel = cluster.channel(*n).await?;
            tasks.push(tokio::spawn(write(shared.clone(), channel, *n)));
        }
        Ok(Writers { shared, tasks })
    }

    /// How long after `moment` the first put that was sent after it was acknowledged.
    async fn first_acknowledged_after(&self, moment: Instant) -> Result<Duration> {
        let deadline = moment + Duration::from_secs(30);
        while Instant::now() < deadline {
            let found = {
                let acknowledged = self
                    .shared
                    .acknowledged
                    .lock()
                    .expect("nobody panics with it");
                let later = acknowledged
                    .iter()
                    .rev()
                    .take_while(|(_, answered)| *answered > moment);
                later
                    .filter(|(sent, _)| *sent > moment)
                    .map(|(_, answered)| *answered)
                    .min()
            };
            if let Some(answered) = found {
                return Ok(answered - moment);
            }
            tokio::time::sleep(Duration::from_millis(2)).await;
        }
        anyhow::bail!("no write in 30 s")
    }

    async fn stop(self) -> (Vec<Acknowledged>, u64) {
        self.shared.is_over.store(true, Ordering::Relaxed);
        for task in self.tasks {
            task.await.expect("a writer does not panic");
        }
        let acknowledged = std::mem::take(
            &mut *self
                .shared
                .acknowledged
                .lock()
                .expect("nobody panics with it"),
        );
        (
            acknowledged,
            self.shared.failed_twice.load(Ordering::Relaxed),
        )
    }
}

async fn write(shared: Arc<Shared>, channel: Channel, n: usize) {
    while !shared.is_over.load(Ordering::Relaxed) {
        let sent = Instant::now();
        let mut is_done = put(&channel, n).await;
        if !is_done {
            is_done = put(&channel, n).await;
            if !is_done {
                shared.failed_twice.fetch_add(1, Ordering::Relaxed);
            }
        }
        if is_done {
            let mut acknowledged = shared.acknowledged.lock().expect("nobody panics with it");
            acknowledged.push((sent, Instant::now()));
        } else {
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
    }
}

async fn put(channel: &Channel, n: usize) -> bool {
    let request = PutRequest {
        key: format!("measure/{n}").into(),
        value: "v".into(),
        ..Default::default()
    };
    let put = tokio::time::timeout(PUT_LIMIT, async {
        KvClient::new(channel.clone()).put(request).await
    });
    matches!(put.await, Ok(Ok(_)))
}
