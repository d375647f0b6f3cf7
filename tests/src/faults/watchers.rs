//! Watchers of everything, one at each member and one that goes from member to member.
//!
//! When a stream ends, or says nothing although the watcher moves on, the next one goes on behind the last revision.

use std::sync::{Arc, Mutex};
use std::time::Duration;

use kv_proto::etcdserverpb::watch_client::WatchClient;
use kv_proto::etcdserverpb::watch_request::RequestUnion;
use kv_proto::etcdserverpb::{WatchCreateRequest, WatchRequest};
use rand::rngs::StdRng;
use rand::{RngExt, SeedableRng};
use tokio::sync::{mpsc, watch};
use tokio::task::JoinHandle;
use tokio_stream::wrappers::ReceiverStream;
use tokio_util::sync::CancellationToken;
use tonic::transport::Endpoint;

use crate::events::{Event, Responses};

const CONNECT_LIMIT: Duration = Duration::from_secs(1);
/// A stream that wanders is left after at most this time.
const STAY_MS_MAX: u64 = 4_000;
/// Before a stream that ended is opened again.
const PAUSE: Duration = Duration::from_millis(100);

/// Watchers that run.
pub(crate) struct Watchers {
    watchers: Vec<Watcher>,
    stop: CancellationToken,
}

struct Watcher {
    name: String,
    told: Arc<Mutex<Told>>,
    reached: watch::Receiver<i64>,
    task: JoinHandle<()>,
}

/// What one watcher was told.
#[derive(Clone, Debug, Default)]
pub(crate) struct Told {
    /// Which watcher it is.
    pub name: String,
    /// Its responses with events.
    pub responses: Responses,
    /// Streams it took.
    pub streams: u64,
    /// Why the store ended it, if it did.
    pub canceled: Option<String>,
}

impl Watchers {
    /// Watches everything under `prefix` from revision `from` on, over the members with these URLs.
    pub(crate) fn start(urls: &[String], prefix: &str, from: i64, seed: u64) -> Watchers {
        let stop = CancellationToken::new();
        let at_each = urls
            .iter()
            .enumerate()
            .map(|(n, url)| (format!("watcher of member {n}"), vec![url.clone()]));
        let wandering = ("wandering watcher".to_owned(), urls.to_vec());
        let watchers = at_each.chain([wandering]).map(|(name, urls)| {
            let told = Arc::new(Mutex::new(Told {
                name: name.clone(),
                ..Told::default()
            }));
            let (sender, reached) = watch::channel(from - 1);
            let run = Run {
                urls,
                prefix: prefix.to_owned(),
                next: from,
                told: told.clone(),
                reached: sender,
                random: StdRng::seed_from_u64(seed),
            };
            let stop = stop.clone();
            let task = tokio::spawn(async move {
                tokio::select! {
                    () = run.run() => {}
                    () = stop.cancelled() => {}
                }
            });
            Watcher {
                name,
                told,
                reached,
                task,
            }
        });
        let watchers = watchers.collect();
        Watchers { watchers, stop }
    }

    /// Waits until every watcher was told of `revision`, and returns what they were told; the names of those that were not
    /// after `limit` come back as an error.
    pub(crate) async fn finish(self, revision: i64, limit: Duration) -> (Vec<Told>, Vec<String>) {
        let deadline = tokio::time::Instant::now() + limit;
        let mut told = Vec::new();
        let mut late = Vec::new();
        for mut watcher in self.watchers {
            let reached = watcher.reached.wait_for(|reached| *reached >= revision);
            if tokio::time::timeout_at(deadline, reached).await.is_err() {
                let at = *watcher.reached.borrow();
                late.push(format!("{} is at {at} of {revision}", watcher.name));
            }
            watcher.task.abort();
            told.push(watcher.told.lock().expect("nobody panics with it").clone());
        }
        self.stop.cancel();
        (told, late)
    }
}

struct Run {
    urls: Vec<String>,
    prefix: String,
    /// Where the next stream begins.
    next: i64,
    told: Arc<Mutex<Told>>,
    reached: watch::Sender<i64>,
    random: StdRng,
}

impl Run {
    async fn run(mut self) {
        for n in 0.. {
            let url = self.urls[n % self.urls.len()].clone();
            if self.urls.len() > 1 {
                let stay = Duration::from_millis(self.random.random_range(200..STAY_MS_MAX));
                // Whatever was received is in `told`; a response is taken whole or not at all.
                let _ = tokio::time::timeout(stay, self.follow(&url)).await;
            } else {
                self.follow(&url).await;
            }
            if self.told().canceled.is_some() {
                return;
            }
            tokio::time::sleep(PAUSE).await;
        }
    }

    fn told(&self) -> std::sync::MutexGuard<'_, Told> {
        self.told.lock().expect("nobody panics with it")
    }

    /// Follows one stream until it ends.
    async fn follow(&mut self, url: &str) {
        let Ok(endpoint) = Endpoint::from_shared(url.to_owned()) else {
            return;
        };
        let endpoint = endpoint
            .http2_keep_alive_interval(Duration::from_secs(2))
            .keep_alive_timeout(Duration::from_secs(2))
            .keep_alive_while_idle(true);
        let Ok(Ok(channel)) = tokio::time::timeout(CONNECT_LIMIT, endpoint.connect()).await else {
            return;
        };
        let mut end = self.prefix.clone().into_bytes();
        *end.last_mut().expect("the prefix is not empty") += 1;
        let create = WatchCreateRequest {
            key: self.prefix.clone().into(),
            range_end: end.into(),
            start_revision: self.next,
            prev_kv: true,
            ..Default::default()
        };
        let request = WatchRequest {
            request_union: Some(RequestUnion::CreateRequest(create)),
        };
        let (requests, receiver) = mpsc::channel(1);
        if requests.send(request).await.is_err() {
            return;
        }
        let opened = WatchClient::new(channel)
            .watch(ReceiverStream::new(receiver))
            .await;
        let Ok(opened) = opened else {
            return;
        };
        self.told().streams += 1;
        let mut answers = opened.into_inner();
        while let Ok(Some(response)) = answers.message().await {
            if response.canceled {
                let why = format!(
                    "{} (compacted at {})",
                    response.cancel_reason, response.compact_revision
                );
                self.told().canceled = Some(why);
                return;
            }
            let events: Vec<_> = response
                .events
                .iter()
                .filter_map(Event::from_proto)
                .collect();
            if let Some(last) = events.last() {
                let last = last.revision;
                self.next = last + 1;
                self.told().responses.push(events);
                self.reached.send_replace(last);
            }
        }
    }
}
