//! Where the writer meets the watchers: who is interested in a key, and the newest revisions.
//!
//! The writer asks [`Capture::wants`] which events to build, makes its revision visible to readers and calls
//! [`WatchHub::publish`]. The hub keeps the events in a ring bounded in bytes, marks each stream that has a
//! matching watcher with the revision, and wakes it. It copies nothing and waits for nobody: what a stream
//! does with the mark is the stream's own time.
//!
//! Invariants:
//! - the ring is ascending and holds every revision `>= floor` that had a matching watcher when published;
//! - a stream's mark is 0, or not above the oldest published revision with a matching watcher that the stream has not
//!   taken; so a stream without mark has taken all its events up to `last`;
//! - events that nobody wanted when the writer asked are not in the ring. A watcher is therefore served from
//!   it only from its `live_from` on: the first revision whose writer began asking after it was registered.
//!   What it wants from before comes from the store.
//!
//! Lock order: a stream's state, then the hub. Publishing takes the hub alone.

use std::cell::Cell;
use std::collections::{BTreeMap, VecDeque};
use std::sync::Arc;
use std::sync::atomic::{AtomicI64, AtomicU64, Ordering};

use kv_proto::key_range::KeyRange;
use parking_lot::Mutex;
use tokio::sync::Notify;

use super::event::{PrevKv, RevisionEvents, key_of};
use super::history::{CHUNK_REVISIONS_MAX, History};
use super::range_index::RangeIndex;
use super::stream::{StreamOptions, WatchStream};
use super::wake::WakeGroup;

/// Bounds of a hub.
#[derive(Clone, Copy, Debug)]
pub struct HubOptions {
    /// Bytes of recent revisions kept in memory; default 16 MiB. Too small sends slow streams to the store
    /// early, too large costs memory only.
    pub history_bytes_max: u64,
}

impl Default for HubOptions {
    fn default() -> HubOptions {
        HubOptions {
            history_bytes_max: 16 << 20,
        }
    }
}

/// How much of a change the watchers of its key want.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Interest {
    /// Nobody watches the key: no event need be built.
    None,
    /// An event without `prev_kv` serves everybody.
    Events,
    /// Somebody wants `prev_kv`.
    EventsWithPrev,
}

/// Counters and gauges for metrics.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct HubStats {
    /// Open streams.
    pub streams: u64,
    /// Registered watchers.
    pub watchers: u64,
    /// Watchers that are behind the store's revision and being caught up.
    pub slow_watchers: u64,
    /// Events published since start.
    pub events: u64,
    /// Bytes the ring may hold at present.
    pub history_bytes: u64,
}

/// The watchers of one member.
pub struct WatchHub {
    state: Mutex<HubState>,
    pub(super) slow_watchers: AtomicU64,
}

struct HubState {
    history_bytes_max: u64,
    /// The newest published revision.
    last: i64,
    ring: VecDeque<Arc<RevisionEvents>>,
    ring_bytes: u64,
    floor: i64,
    /// How many captures began; the newest is open or not.
    captures: u64,
    capture_open: bool,
    index: RangeIndex<Audience>,
    streams: BTreeMap<u64, Arc<Signal>>,
    streams_opened: u64,
    /// Woken by the end of the open capture or the next publish, whatever it holds.
    waiting: Vec<Arc<Signal>>,
    watchers: u64,
    events: u64,
}

/// The streams that watch one range.
#[derive(Default)]
struct Audience {
    listeners: BTreeMap<u64, Listener>,
    with_prev: u32,
    /// The newest revision its streams were told of: a revision of many events tells them once.
    told: Cell<i64>,
}

struct Listener {
    signal: Arc<Signal>,
    watchers: u32,
    with_prev: u32,
}

/// What the hub tells a stream; the two positions are read and written under the hub's lock only.
pub(super) struct Signal {
    id: u64,
    pub(super) notify: Notify,
    pub(super) group: Option<Arc<WakeGroup>>,
    /// Oldest published revision to take, 0 if none.
    mark: AtomicI64,
    /// Position from which every live watcher has to read the store, 0 if the ring serves them.
    resync_from: AtomicI64,
}

/// What a stream does next with the ring.
pub(super) enum Step {
    /// Deliver this revision.
    Deliver(Arc<RevisionEvents>),
    /// The ring no longer has what follows: read the store from this revision on.
    Resync(i64),
    /// All events up to this revision were taken.
    Idle(i64),
}

/// Where a watcher stands that is not live.
#[derive(Clone, Copy, Debug)]
pub(super) struct Cursor {
    /// The next revision to deliver.
    pub(super) next: i64,
    /// The ring has all the watcher's events from this revision on.
    pub(super) live_from: i64,
    /// The capture that was open when the watcher was registered, 0 if none was.
    pub(super) capture: u64,
}

/// How such a watcher goes on.
pub(super) enum Place {
    /// It is where its stream is: deliver with the stream from now on.
    Live {
        /// The corrected `live_from`.
        live_from: i64,
    },
    /// Deliver these, then look again; everything `<= through` is covered.
    Ring {
        revisions: Vec<Arc<RevisionEvents>>,
        through: i64,
        current: i64,
    },
    /// Read the store.
    History,
    /// The stream is woken when it can be told.
    Wait,
}

impl WatchHub {
    /// A hub of a store that stands at `revision`.
    pub fn new(options: HubOptions, revision: i64) -> Arc<WatchHub> {
        Arc::new(WatchHub {
            state: Mutex::new(HubState {
                history_bytes_max: options.history_bytes_max,
                last: revision,
                ring: VecDeque::new(),
                ring_bytes: 0,
                floor: revision + 1,
                captures: 0,
                capture_open: false,
                index: RangeIndex::new(),
                streams: BTreeMap::new(),
                streams_opened: 0,
                waiting: Vec::new(),
                watchers: 0,
                events: 0,
            }),
            slow_watchers: AtomicU64::new(0),
        })
    }

    /// Begins to ask, for the revision the writer is about to make, which events are wanted.
    ///
    /// A watcher registered from here to the publish is served that revision from the store, since the
    /// writer may have asked before. Dropping the capture without a publish ends it. One at a time.
    pub fn capture(&self) -> Capture<'_> {
        let mut state = self.state.lock();
        state.captures += 1;
        state.capture_open = true;
        Capture {
            hub: self,
            number: state.captures,
        }
    }

    /// Hands the events of a revision to the watchers and ends the open capture; never blocks on a watcher.
    ///
    /// Called for every revision, in order, after it is visible to readers; `events` may be empty. Without
    /// a capture it must hold every event, each with `prev_kv`. A revision that does not follow the one
    /// before makes all watchers read the store.
    pub fn publish(&self, events: Arc<RevisionEvents>) {
        let mut wake = Vec::new();
        self.state.lock().publish(events, &mut wake);
        super::wake::wake(wake);
    }

    /// The store's content was replaced and now stands at `revision`: every watcher goes on from its own
    /// position by reading the store, or is canceled if that is compacted.
    pub fn restored(&self, revision: i64) {
        let mut wake = Vec::new();
        self.state.lock().restored(revision, &mut wake);
        super::wake::wake(wake);
    }

    /// Opens a stream whose watchers read their past from `history`.
    pub fn open_stream(
        self: &Arc<Self>,
        history: Arc<dyn History>,
        options: StreamOptions,
    ) -> WatchStream {
        let signal = {
            let mut state = self.state.lock();
            state.streams_opened += 1;
            let signal = Arc::new(Signal {
                id: state.streams_opened,
                notify: Notify::new(),
                group: options.wake_group.clone(),
                mark: AtomicI64::new(0),
                resync_from: AtomicI64::new(0),
            });
            state.streams.insert(signal.id, signal.clone());
            signal
        };
        WatchStream::new(self.clone(), signal, history, options)
    }

    /// Figures for metrics.
    pub fn stats(&self) -> HubStats {
        let state = self.state.lock();
        HubStats {
            streams: state.streams.len() as u64,
            watchers: state.watchers,
            slow_watchers: self.slow_watchers.load(Ordering::Relaxed),
            events: state.events,
            history_bytes: state.ring_bytes,
        }
    }

    /// Registers one more watcher of a stream. With `start` 0 it begins after the newest revision, which is
    /// `visible` or a later one; the answer's `current` says which.
    pub(super) fn register(
        &self,
        signal: &Arc<Signal>,
        range: &KeyRange,
        prev: PrevKv,
        start: i64,
        visible: i64,
    ) -> (Cursor, i64) {
        let mut state = self.state.lock();
        state.watchers += 1;
        let slot = state.index.get_or_insert_with(range, Audience::default);
        let audience = state.index.get_mut(slot);
        let with_prev = u32::from(prev == PrevKv::Keep);
        audience.with_prev += with_prev;
        let listener = audience
            .listeners
            .entry(signal.id)
            .or_insert_with(|| Listener {
                signal: signal.clone(),
                watchers: 0,
                with_prev: 0,
            });
        listener.watchers += 1;
        listener.with_prev += with_prev;
        let current = visible.max(state.last);
        let cursor = Cursor {
            next: if start == 0 { current + 1 } else { start },
            live_from: state.last + 1 + i64::from(state.capture_open),
            capture: if state.capture_open {
                state.captures
            } else {
                0
            },
        };
        (cursor, current)
    }

    /// Takes back one registration.
    pub(super) fn unregister(&self, signal: &Signal, range: &KeyRange, prev: PrevKv) {
        let mut state = self.state.lock();
        let slot = state
            .index
            .find(range)
            .expect("a registered range is in the index");
        let audience = state.index.get_mut(slot);
        let listener = audience
            .listeners
            .get_mut(&signal.id)
            .expect("a registered stream is in the audience");
        let with_prev = u32::from(prev == PrevKv::Keep);
        listener.watchers -= 1;
        listener.with_prev -= with_prev;
        audience.with_prev -= with_prev;
        if listener.watchers == 0 {
            audience.listeners.remove(&signal.id);
        }
        let deserted = audience.listeners.is_empty();
        state.forget(1, deserted.then_some(slot));
    }

    /// Takes back all registrations that a stream has for `range`.
    pub(super) fn unregister_range(&self, signal: &Signal, range: &KeyRange) {
        let mut state = self.state.lock();
        let slot = state
            .index
            .find(range)
            .expect("a registered range is in the index");
        let audience = state.index.get_mut(slot);
        let listener = audience
            .listeners
            .remove(&signal.id)
            .expect("a registered stream is in the audience");
        audience.with_prev -= listener.with_prev;
        let deserted = audience.listeners.is_empty();
        state.forget(u64::from(listener.watchers), deserted.then_some(slot));
    }

    /// Forgets a stream that has no registrations left.
    pub(super) fn close_stream(&self, signal: &Signal) {
        self.state.lock().streams.remove(&signal.id);
    }

    /// Takes the stream's next revision out of the ring.
    pub(super) fn advance(&self, signal: &Signal) -> Step {
        self.state.lock().advance(signal)
    }

    /// Says how a watcher that is not live goes on.
    pub(super) fn place(&self, signal: &Arc<Signal>, cursor: Cursor) -> Place {
        self.state.lock().place(signal, cursor)
    }

    /// Wakes the stream with the next publish, unless `revision` is published already.
    pub(super) fn wait_published(&self, signal: &Arc<Signal>, revision: i64) {
        let mut state = self.state.lock();
        if state.last < revision {
            state.wait(signal);
        } else {
            signal.notify.notify_one();
        }
    }

    fn wants(&self, key: &[u8]) -> Interest {
        let state = self.state.lock();
        let mut interest = Interest::None;
        state.index.matching(key, &mut |_, audience| {
            let wanted = if audience.with_prev > 0 {
                Interest::EventsWithPrev
            } else {
                Interest::Events
            };
            interest = interest.max(wanted);
        });
        interest
    }
}

/// The time in which a writer decides which events to build for one revision.
#[must_use = "a capture ends when dropped"]
pub struct Capture<'a> {
    hub: &'a WatchHub,
    number: u64,
}

impl Capture<'_> {
    /// What the watchers want of a change of `key`.
    pub fn wants(&self, key: &[u8]) -> Interest {
        self.hub.wants(key)
    }
}

impl Drop for Capture<'_> {
    fn drop(&mut self) {
        let waiting = {
            let mut state = self.hub.state.lock();
            if !state.capture_open || state.captures != self.number {
                return; // The publish ended it.
            }
            state.capture_open = false;
            std::mem::take(&mut state.waiting)
        };
        super::wake::wake(waiting);
    }
}

impl HubState {
    fn publish(&mut self, events: Arc<RevisionEvents>, wake: &mut Vec<Arc<Signal>>) {
        let revision = events.revision();
        assert!(
            self.last < revision,
            "revision {revision} published after {}",
            self.last
        );
        self.events += events.events().len() as u64;
        if revision != self.last + 1 {
            return self.restored(revision, wake);
        }
        let mut matched = false;
        for event in events.events() {
            self.index.matching(key_of(event), &mut |_, audience| {
                matched = true;
                if audience.told.replace(revision) == revision {
                    return;
                }
                for listener in audience.listeners.values() {
                    if listener.signal.mark.load(Ordering::Relaxed) == 0 {
                        listener.signal.mark.store(revision, Ordering::Relaxed);
                        wake.push(listener.signal.clone());
                    }
                }
            });
        }
        if matched {
            self.ring_bytes += events.bytes();
            self.ring.push_back(events);
            while self.ring_bytes > self.history_bytes_max && self.ring.len() > 1 {
                let oldest = self
                    .ring
                    .pop_front()
                    .expect("the ring has more than one revision");
                self.ring_bytes -= oldest.bytes();
                self.floor = oldest.revision() + 1;
            }
        }
        self.last = revision;
        self.capture_open = false;
        wake.append(&mut self.waiting);
    }

    fn restored(&mut self, revision: i64, wake: &mut Vec<Arc<Signal>>) {
        for signal in self.streams.values() {
            if signal.resync_from.load(Ordering::Relaxed) == 0 {
                let from = self.position(signal);
                signal.resync_from.store(from, Ordering::Relaxed);
            }
            wake.push(signal.clone());
        }
        self.waiting.clear();
        self.ring.clear();
        self.ring_bytes = 0;
        self.floor = revision + 1;
        self.last = revision;
        self.capture_open = false;
    }

    /// The first revision the stream's live watchers have not been given.
    fn position(&self, signal: &Signal) -> i64 {
        match signal.mark.load(Ordering::Relaxed) {
            0 => self.last + 1,
            mark => mark,
        }
    }

    fn advance(&mut self, signal: &Signal) -> Step {
        let mut resync_from = signal.resync_from.swap(0, Ordering::Relaxed);
        let mark = signal.mark.load(Ordering::Relaxed);
        if resync_from == 0 && mark != 0 && mark < self.floor {
            resync_from = mark;
        }
        if resync_from != 0 {
            signal.mark.store(0, Ordering::Relaxed);
            return Step::Resync(resync_from);
        }
        if mark == 0 {
            return Step::Idle(self.last);
        }
        // Streams that keep up want the newest; searching the ring for it would miss the caches.
        let newest = self.ring.back().filter(|e| e.revision() == mark);
        let at = match newest {
            Some(_) => self.ring.len() - 1,
            None => self.ring.partition_point(|e| e.revision() < mark),
        };
        let following = self.ring.get(at + 1).map_or(0, |e| e.revision());
        signal.mark.store(following, Ordering::Relaxed);
        match self.ring.get(at) {
            Some(events) => Step::Deliver(events.clone()),
            None => Step::Idle(self.last),
        }
    }

    fn place(&mut self, signal: &Arc<Signal>, cursor: Cursor) -> Place {
        if signal.resync_from.load(Ordering::Relaxed) != 0 {
            return Place::Wait; // The stream was woken and takes the resync first.
        }
        if cursor.next > self.last {
            if self.capture_open && cursor.capture == self.captures {
                self.wait(signal);
                return Place::Wait;
            }
            return Place::Live {
                live_from: cursor.live_from.min(self.last + 1),
            };
        }
        if cursor.next < cursor.live_from || cursor.next < self.floor {
            return Place::History;
        }
        let position = self.position(signal);
        if cursor.next >= position {
            return Place::Live {
                live_from: cursor.live_from,
            };
        }
        let from = self.ring.partition_point(|e| e.revision() < cursor.next);
        let to = self.ring.partition_point(|e| e.revision() < position);
        let end = to.min(from + CHUNK_REVISIONS_MAX);
        let revisions: Vec<_> = self.ring.range(from..end).cloned().collect();
        let through = if end == to {
            position - 1
        } else {
            self.ring[end - 1].revision()
        };
        Place::Ring {
            revisions,
            through,
            current: self.last,
        }
    }

    fn wait(&mut self, signal: &Arc<Signal>) {
        if self.waiting.iter().all(|s| s.id != signal.id) {
            self.waiting.push(signal.clone());
        }
    }

    /// Accounts for watchers that went and for a range nobody watches any more.
    fn forget(&mut self, watchers: u64, deserted: Option<u32>) {
        self.watchers -= watchers;
        if let Some(slot) = deserted {
            self.index.remove(slot);
        }
        if self.watchers == 0 {
            // A later watcher is served from the ring from the next revision on at the earliest.
            self.ring.clear();
            self.ring_bytes = 0;
            self.floor = self.last + 1;
        }
    }
}
