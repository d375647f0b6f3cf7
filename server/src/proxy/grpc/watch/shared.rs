//! Watches of the cluster, each for all watchers of one range by one caller.
//!
//! A watch serves a watcher if it has not gone past the watcher's start; each watcher leaves out what is before its own.
//! One that begins further back gets a watch of its own, which hands its watchers over to another one of the range as soon
//! as it has caught up with it.
//!
//! Invariant: all events of a watcher's range from its `next` on are still to come from the watch it is in.

use std::collections::HashMap;
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use kv_proto::etcdserverpb::{ResponseHeader, WatchCreateRequest, WatchResponse};
use kv_proto::mvccpb::Event;
use kv_proto::mvccpb::event::EventType;
use parking_lot::Mutex;
use tokio::sync::mpsc;
use tokio_util::sync::CancellationToken;
use tonic::Status;

use super::super::metrics::Metrics;
use super::super::namespace::Namespace;
use super::super::upstream::{Caller, Upstream};
use super::Answer;
use crate::Error;

/// The pause before a watch without a leader is tried again.
const NO_LEADER_PAUSE: Duration = Duration::from_millis(500);
/// Source: etcd 3.7, rpctypes.
const NO_LEADER: &str = "etcdserver: no leader";

/// What can be shared.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub(super) struct Key {
    pub(super) key: Bytes,
    pub(super) range_end: Bytes,
    pub(super) caller: Caller,
}

/// A watcher among all of the proxy.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(super) struct ReceiverId(u64);

/// A watcher of a client.
pub(super) struct Receiver {
    pub(super) watch_id: i64,
    /// The revision of its next event or a later one.
    pub(super) next: i64,
    pub(super) without_puts: bool,
    pub(super) without_deletes: bool,
    pub(super) prev_kv: bool,
    pub(super) progress: bool,
    pub(super) needs_leader: bool,
    pub(super) answers: mpsc::Sender<Answer>,
}

/// All watches.
pub(in super::super) struct Watches {
    pub(super) upstream: Upstream,
    pub(super) namespace: Namespace,
    metrics: Arc<Metrics>,
    state: Mutex<State>,
}

#[derive(Default)]
struct State {
    shared: HashMap<Key, Vec<Shared>>,
    next_id: u64,
}

/// A watch of the cluster.
struct Shared {
    id: u64,
    /// The revision of its next event or a later one.
    next: i64,
    /// The last header it got.
    header: ResponseHeader,
    receivers: HashMap<ReceiverId, Receiver>,
    ended: CancellationToken,
}

impl Watches {
    pub(in super::super) fn new(
        upstream: Upstream,
        namespace: Namespace,
        metrics: Arc<Metrics>,
    ) -> Arc<Watches> {
        Arc::new(Watches {
            upstream,
            namespace,
            metrics,
            state: Mutex::default(),
        })
    }

    /// Lets a watcher share a watch, or opens one for it.
    pub(super) fn add(self: &Arc<Self>, key: Key, receiver: Receiver) -> ReceiverId {
        let state = &mut *self.state.lock();
        state.next_id += 1;
        let id = ReceiverId(state.next_id);
        let all = state.shared.entry(key.clone()).or_default();
        if let Some(shared) = all.iter_mut().find(|s| s.next <= receiver.next) {
            shared.receivers.insert(id, receiver);
            self.metrics.watchers_coalescing.inc();
            return id;
        }
        state.next_id += 1;
        let shared = Shared {
            id: state.next_id,
            next: receiver.next,
            header: ResponseHeader::default(),
            receivers: HashMap::from([(id, receiver)]),
            ended: CancellationToken::new(),
        };
        tokio::spawn(run(
            self.clone(),
            key,
            shared.id,
            shared.next,
            shared.ended.clone(),
        ));
        all.push(shared);
        id
    }

    /// Takes a watcher out; the last header of its watch.
    pub(super) fn remove(&self, key: &Key, id: ReceiverId) -> ResponseHeader {
        let state = &mut *self.state.lock();
        let Some(all) = state.shared.get_mut(key) else {
            return ResponseHeader::default();
        };
        let mut header = ResponseHeader::default();
        for shared in all.iter_mut() {
            if shared.receivers.remove(&id).is_some() {
                header = shared.header;
                if !shared.receivers.is_empty() {
                    self.metrics.watchers_coalescing.dec();
                }
            }
        }
        state.clean(key);
        header
    }

    /// Gives a response of watch `id` to its watchers; whether the watch goes on.
    fn deliver(&self, key: &Key, id: u64, mut response: WatchResponse) -> bool {
        for event in &mut response.events {
            self.namespace.event(event);
        }
        let state = &mut *self.state.lock();
        let Some(shared) = state.find(key, id) else {
            return false;
        };
        if let Some(header) = response.header {
            shared.header = header;
            // The header may be ahead of events that are still to come, but not in a response without any.
            let reached = match response.events.last() {
                Some(event) => event.kv.as_ref().map_or(0, |kv| kv.mod_revision),
                None => header.revision,
            };
            shared.next = shared.next.max(reached + 1);
        }
        let watchers = shared.receivers.len();
        let copies = watchers.saturating_sub(1) * response.events.len();
        self.metrics.events_coalescing.inc_by(copies as u64);
        shared
            .receivers
            .retain(|_, receiver| receiver.take(&response));
        let left = shared.receivers.len();
        let gone = watchers.max(1) - left.max(1);
        self.metrics.watchers_coalescing.sub(gone as i64);
        if response.canceled {
            shared.receivers.clear();
            self.metrics
                .watchers_coalescing
                .sub(left.saturating_sub(1) as i64);
        } else {
            self.merge(state, key, id);
        }
        state.clean(key);
        state.find(key, id).is_some()
    }

    /// Moves the watchers of watch `id` to one that it has caught up with.
    fn merge(&self, state: &mut State, key: &Key, id: u64) {
        let Some(all) = state.shared.get_mut(key) else {
            return;
        };
        let Some(at) = all.iter().position(|shared| shared.id == id) else {
            return;
        };
        let next = all[at].next;
        let behind = all.iter().position(|s| s.id != id && s.next <= next);
        if let Some(to) = behind {
            let moved = std::mem::take(&mut all[at].receivers);
            if !moved.is_empty() {
                // The first of them counts now too.
                self.metrics.watchers_coalescing.inc();
            }
            all[to].receivers.extend(moved);
        }
    }

    /// Ends the streams of all watchers of watch `id`, or of those that need a leader.
    fn fail(&self, key: &Key, id: u64, status: &Status, only_needing_leader: bool) {
        let state = &mut *self.state.lock();
        if let Some(shared) = state.find(key, id) {
            let before = shared.receivers.len();
            shared.receivers.retain(|_, receiver| {
                if only_needing_leader && !receiver.needs_leader {
                    return true;
                }
                receiver.end(status.clone());
                false
            });
            let gone = before.max(1) - shared.receivers.len().max(1);
            self.metrics.watchers_coalescing.sub(gone as i64);
        }
        state.clean(key);
    }

    /// Where watch `id` goes on; `None` once nobody needs it.
    fn position(&self, key: &Key, id: u64) -> Option<i64> {
        self.state.lock().find(key, id).map(|shared| shared.next)
    }
}

impl State {
    fn find(&mut self, key: &Key, id: u64) -> Option<&mut Shared> {
        let all = self.shared.get_mut(key)?;
        all.iter_mut().find(|shared| shared.id == id)
    }

    /// Ends watches without watchers.
    fn clean(&mut self, key: &Key) {
        let Some(all) = self.shared.get_mut(key) else {
            return;
        };
        all.retain(|shared| {
            let needed = !shared.receivers.is_empty();
            if !needed {
                shared.ended.cancel();
            }
            needed
        });
        if all.is_empty() {
            self.shared.remove(key);
        }
    }
}

impl Receiver {
    /// Sends what concerns this watcher; false if its client has to come again.
    fn take(&mut self, response: &WatchResponse) -> bool {
        let revision = response.header.map_or(0, |header| header.revision);
        if response.canceled {
            return self.send(WatchResponse {
                events: Vec::new(),
                ..response.clone()
            });
        }
        if response.events.is_empty() {
            // Progress, which must not speak of what this watcher has yet to see.
            if !self.progress || revision + 1 < self.next {
                return true;
            }
            self.next = self.next.max(revision + 1);
            return self.send(response.clone());
        }
        let mut newest = 0;
        let mut events: Vec<Event> = Vec::new();
        for event in &response.events {
            let modified = event.kv.as_ref().map_or(0, |kv| kv.mod_revision);
            if modified < self.next {
                continue;
            }
            newest = modified;
            let filtered = match event.r#type() {
                EventType::Put => self.without_puts,
                EventType::Delete => self.without_deletes,
            };
            if !filtered {
                let mut event = event.clone();
                if !self.prev_kv {
                    event.prev_kv = None;
                }
                events.push(event);
            }
        }
        // Of one revision there may be several events.
        self.next = self.next.max(newest + 1);
        if events.is_empty() {
            return true;
        }
        self.send(WatchResponse {
            events,
            ..response.clone()
        })
    }

    fn send(&self, response: WatchResponse) -> bool {
        let response = WatchResponse {
            watch_id: self.watch_id,
            ..response
        };
        match self.answers.try_send(Ok(response)) {
            Ok(()) => true,
            Err(mpsc::error::TrySendError::Closed(_)) => false,
            Err(mpsc::error::TrySendError::Full(_)) => {
                tracing::warn!("a client of a watch is too slow: it has to open its stream again");
                self.end(Status::unavailable(
                    "kvd: the client reads too slowly for its watches; it may watch again from its last revision",
                ));
                false
            }
        }
    }

    /// Ends the whole stream of the client, once what is before is read.
    fn end(&self, status: Status) {
        let answers = self.answers.clone();
        tokio::spawn(async move {
            // Or the client has gone.
            let _ = answers.send(Err(status)).await;
        });
    }
}

/// Follows a watch of the cluster until nobody needs it.
async fn run(watches: Arc<Watches>, key: Key, id: u64, start: i64, ended: CancellationToken) {
    let mut start = start;
    loop {
        let followed = tokio::select! {
            followed = follow(&watches, &key, id, start) => followed,
            () = ended.cancelled() => return,
        };
        let Err(error) = followed else { return };
        match &error {
            kv_client::Error::Server { message, .. } if message == NO_LEADER => {
                watches.fail(&key, id, &Error::NoLeader.into(), true);
            }
            kv_client::Error::Server { code, message } => {
                watches.fail(&key, id, &Status::new(*code, message.clone()), false);
            }
            other => {
                watches.fail(&key, id, &Status::unavailable(other.to_string()), false);
            }
        }
        match watches.position(&key, id) {
            Some(next) => start = next,
            None => return,
        }
        tokio::time::sleep(NO_LEADER_PAUSE).await;
    }
}

async fn follow(watches: &Watches, key: &Key, id: u64, start: i64) -> kv_client::Result<()> {
    let client = watches.upstream.client_of(&key.caller).await?;
    let mut watcher = client.watch(WatchCreateRequest {
        key: key.key.clone(),
        range_end: key.range_end.clone(),
        start_revision: start,
        progress_notify: true,
        prev_kv: true,
        ..Default::default()
    });
    while let Some(response) = watcher.next().await? {
        if !watches.deliver(key, id, response) {
            return Ok(());
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use kv_proto::mvccpb::KeyValue;

    use super::*;

    fn receiver(next: i64) -> (Receiver, mpsc::Receiver<Answer>) {
        let (answers, sent) = mpsc::channel(8);
        let receiver = Receiver {
            watch_id: 5,
            next,
            without_puts: false,
            without_deletes: false,
            prev_kv: false,
            progress: false,
            needs_leader: false,
            answers,
        };
        (receiver, sent)
    }

    fn response(revision: i64, events: &[(EventType, i64)]) -> WatchResponse {
        let event = |(kind, mod_revision): &(EventType, i64)| Event {
            r#type: *kind as i32,
            kv: Some(KeyValue {
                mod_revision: *mod_revision,
                ..Default::default()
            }),
            prev_kv: Some(KeyValue::default()),
        };
        WatchResponse {
            header: Some(ResponseHeader {
                revision,
                ..Default::default()
            }),
            events: events.iter().map(event).collect(),
            ..Default::default()
        }
    }

    /// The revisions of the events in each response that was sent.
    fn sent(answers: &mut mpsc::Receiver<Answer>) -> Vec<Vec<i64>> {
        let mut all = Vec::new();
        while let Ok(Ok(response)) = answers.try_recv() {
            assert_eq!(response.watch_id, 5);
            let revision = |event: &Event| event.kv.as_ref().unwrap().mod_revision;
            all.push(response.events.iter().map(revision).collect());
        }
        all
    }

    #[test]
    fn a_watcher_gets_each_event_from_its_start_on_once() {
        let (mut receiver, mut answers) = receiver(7);
        let put = EventType::Put;
        assert!(receiver.take(&response(8, &[(put, 5), (put, 7), (put, 7), (put, 8)])));
        // From another watch, which is behind.
        assert!(receiver.take(&response(8, &[(put, 8)])));
        assert!(receiver.take(&response(9, &[(put, 8), (put, 9)])));
        assert_eq!(sent(&mut answers), [vec![7, 7, 8], vec![9]]);
    }

    #[test]
    fn filters_and_previous_pairs_are_the_watchers_own() {
        let (mut receiver, mut answers) = receiver(1);
        receiver.without_deletes = true;
        let events = response(2, &[(EventType::Delete, 1), (EventType::Put, 2)]);
        assert!(receiver.take(&events));
        let got = answers.try_recv().unwrap().unwrap();
        assert_eq!(got.events.len(), 1);
        assert_eq!(got.events[0].prev_kv, None);
        // What was left out is not sent later either.
        receiver.without_deletes = false;
        receiver.prev_kv = true;
        assert!(receiver.take(&events));
        assert!(sent(&mut answers).is_empty());
        assert!(receiver.take(&response(3, &[(EventType::Delete, 3)])));
        assert!(
            answers.try_recv().unwrap().unwrap().events[0]
                .prev_kv
                .is_some()
        );
    }

    #[test]
    fn progress_is_for_those_who_asked_and_never_ahead_of_their_events() {
        let (mut receiver, mut answers) = receiver(10);
        assert!(receiver.take(&response(20, &[])));
        receiver.progress = true;
        assert!(receiver.take(&response(8, &[])));
        assert!(sent(&mut answers).is_empty());
        assert!(receiver.take(&response(9, &[])));
        assert_eq!(sent(&mut answers), [Vec::<i64>::new()]);
    }

    #[tokio::test]
    async fn a_client_that_does_not_read_has_to_come_again() {
        let (mut receiver, mut answers) = receiver(1);
        let mut revision = 0;
        let mut take = |receiver: &mut Receiver| {
            revision += 1;
            receiver.take(&response(revision, &[(EventType::Put, revision)]))
        };
        for _ in 0..8 {
            assert!(take(&mut receiver));
        }
        assert!(!take(&mut receiver));
        drop(receiver);
        let mut last = None;
        while let Some(answer) = answers.recv().await {
            last = Some(answer);
        }
        assert_eq!(last.unwrap().unwrap_err().code(), tonic::Code::Unavailable);
    }
}
