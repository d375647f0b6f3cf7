//! The watchers of one client stream, and the responses it gets, in order.
//!
//! A stream owns its watchers. Those that are *live* share the stream's position in the hub's ring; the
//! others are *behind* and each has a cursor of its own. [`WatchStream::try_next`] makes one response at a
//! time: first what is ready, then what a read of the store brought, then it moves watchers that are behind,
//! then it takes live events revision by revision. Nothing is made ahead of the consumer, so a stalled stream holds
//! at most the responses of one revision, one chunk of history, and the answers to its own requests.
//!
//! The store is read by a job on the caller's blocking pool, one per stream at a time, for a cohort of
//! watchers whose cursors are close; cohorts take turns.
//!
//! Invariants:
//! - a watcher's responses are in revision order, all its events of a revision are in one response (or its
//!   fragments), none is missing or sent twice;
//! - a response without events never names a revision whose events for the watchers it speaks of are not in
//!   an earlier response.
//!
//! Source: etcd 3.7, watch server and watchable store, as clients see them.

use std::borrow::Cow;
use std::collections::{BTreeMap, HashMap, HashSet, VecDeque};
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::Duration;

use bytes::{BufMut, BytesMut};
use kv_proto::etcdserverpb::{ResponseHeader, WatchResponse};
use kv_proto::key_range::KeyRange;
use parking_lot::Mutex;
use prost::encoding::{self, WireType};
use tokio::time::Instant;

use super::event::{EventBatch, RevisionEvents, key_of};
use super::history::{
    CHUNK_BYTES_MAX, CHUNK_REVISIONS_MAX, History, HistoryChunk, HistoryRequest, RangeSet,
};
use super::hub::{Cursor, Place, Signal, Step, WatchHub};
use super::range_index::{RangeIndex, Slot};
use super::wake::WakeGroup;
use super::watcher::{Form, Fragment, WatchCreate, Watcher};
use crate::{Error, Result};

/// The id in responses that belong to no watcher: failed creates, and progress of the whole stream.
pub const NO_WATCH_ID: i64 = -1;

const EMPTY_RANGE: &str = "mvcc: watcher range is empty";
const DUPLICATE_ID: &str = "mvcc: duplicate watch ID provided on the WatchStream";
const COMPACTED: &str = "etcdserver: mvcc: required revision has been compacted";

/// Progress requests that may wait at once; the client repeats what is dropped.
const PROGRESS_REQUESTS_MAX: usize = 1024;

/// Runs a job that may block on the engine, elsewhere; a job that is dropped instead fails the stream.
pub type Spawn = Arc<dyn Fn(Box<dyn FnOnce() + Send>) + Send + Sync>;

/// How a stream behaves.
#[derive(Clone)]
pub struct StreamOptions {
    /// Runs reads of the store.
    pub spawn: Spawn,
    /// The streams that are woken together with this one; `None` wakes it alone.
    pub wake_group: Option<Arc<WakeGroup>>,
    /// Time between progress responses of an idle watcher that asked for them, jitter included.
    pub progress_interval: Duration,
    /// A response of this size or more is split for a watcher that allows it; etcd's is the request limit
    /// plus 512 KiB.
    pub fragment_bytes_min: usize,
    /// The ids that responses will carry; only their size matters here.
    pub header: ResponseHeader,
}

/// What a client is told: one `WatchResponse` without the header's ids.
#[derive(Clone, Debug, Default)]
pub struct WatchOutput {
    /// The watcher it is for, or [`NO_WATCH_ID`].
    pub watch_id: i64,
    /// The header's revision; 0 in a cancel for compaction.
    pub revision: i64,
    /// Whether it answers a create.
    pub created: bool,
    /// Whether the watcher is gone, or was never made.
    pub canceled: bool,
    /// The oldest readable revision, if that is why the watcher is gone.
    pub compact_revision: i64,
    /// Why the watcher is gone, in etcd's words; empty if the client asked or for compaction.
    pub cancel_reason: Cow<'static, str>,
    /// Whether the rest follows in the next response of this watcher.
    pub fragment: bool,
    /// The events, if it carries any.
    pub events: Option<EventBatch>,
}

impl WatchOutput {
    /// The message with its events, under the given ids.
    pub fn to_response(&self, header: &ResponseHeader) -> WatchResponse {
        WatchResponse {
            header: Some(self.header(header)),
            watch_id: self.watch_id,
            created: self.created,
            canceled: self.canceled,
            compact_revision: self.compact_revision,
            cancel_reason: self.cancel_reason.to_string(),
            fragment: self.fragment,
            events: self.events.iter().flat_map(EventBatch::events).collect(),
        }
    }

    /// Writes the encoded message: the few fields of its own, then the shared bytes of the events.
    pub fn encode(&self, header: &ResponseHeader, buf: &mut impl BufMut) {
        self.encode_head(header, buf);
        if let Some(batch) = &self.events {
            buf.put(batch.frames());
        }
    }

    /// Writes all fields but the events, which [`EventBatch::frames`] has; they come last.
    pub fn encode_head(&self, header: &ResponseHeader, buf: &mut impl BufMut) {
        encoding::message::encode(1, &self.header(header), buf);
        let int64 = |field, value: i64, buf: &mut _| {
            if value != 0 {
                encoding::int64::encode(field, &value, buf);
            }
        };
        let flag = |field, value: bool, buf: &mut _| {
            if value {
                encoding::bool::encode(field, &value, buf);
            }
        };
        int64(2, self.watch_id, buf);
        flag(3, self.created, buf);
        flag(4, self.canceled, buf);
        int64(5, self.compact_revision, buf);
        if !self.cancel_reason.is_empty() {
            encoding::encode_key(6, WireType::LengthDelimited, buf);
            encoding::encode_varint(self.cancel_reason.len() as u64, buf);
            buf.put_slice(self.cancel_reason.as_bytes());
        }
        flag(7, self.fragment, buf);
    }

    /// Bytes of everything but the events.
    fn head_len(&self, header: &ResponseHeader) -> usize {
        let mut head = BytesMut::new();
        self.encode_head(header, &mut head);
        head.len()
    }

    fn header(&self, ids: &ResponseHeader) -> ResponseHeader {
        ResponseHeader {
            revision: self.revision,
            ..*ids
        }
    }
}

/// The watchers of one client stream. Requests may come from one task while another takes the responses.
pub struct WatchStream {
    shared: Arc<Shared>,
}

struct Shared {
    hub: Arc<WatchHub>,
    signal: Arc<Signal>,
    history: Arc<dyn History>,
    options: StreamOptions,
    state: Mutex<StreamState>,
}

struct StreamState {
    /// Watchers by range; the watchers of a slot by id.
    index: RangeIndex<BTreeMap<i64, Watcher>>,
    slots: HashMap<i64, Slot>,
    /// Watchers that were canceled because their revisions are compacted. As with etcd, an id stays taken, and the
    /// stream unsynced, until the client cancels it too.
    compacted: HashSet<i64>,
    next_id: i64,
    serials: u64,
    /// Responses made and not yet taken.
    ready: VecDeque<WatchOutput>,
    /// Watchers that are not live and not in the cohort being read, in turn.
    behind: VecDeque<Member>,
    reading: Reading,
    /// Progress requests, each waiting until everything up to its revision was delivered. Ascending.
    progress_targets: VecDeque<i64>,
    tick_due: bool,
    tick_at: Instant,
    progress_watchers: usize,
    failed: Option<Error>,
}

/// A watcher, named so that it can be found or found gone.
#[derive(Clone, Copy, Debug)]
struct Member {
    id: i64,
    serial: u64,
}

enum Reading {
    None,
    InFlight(Vec<Member>),
    Done {
        cohort: Vec<Member>,
        current: i64,
        result: Result<HistoryChunk>,
    },
}

enum Next {
    Output(WatchOutput),
    Read(HistoryJob),
    Idle,
}

impl WatchStream {
    pub(super) fn new(
        hub: Arc<WatchHub>,
        signal: Arc<Signal>,
        history: Arc<dyn History>,
        options: StreamOptions,
    ) -> WatchStream {
        let state = StreamState {
            index: RangeIndex::new(),
            slots: HashMap::new(),
            next_id: 0,
            serials: 0,
            ready: VecDeque::new(),
            behind: VecDeque::new(),
            reading: Reading::None,
            progress_targets: VecDeque::new(),
            compacted: HashSet::new(),
            tick_due: false,
            tick_at: Instant::now() + options.progress_interval,
            progress_watchers: 0,
            failed: None,
        };
        let shared = Shared {
            hub,
            signal,
            history,
            options,
            state: Mutex::new(state),
        };
        WatchStream {
            shared: Arc::new(shared),
        }
    }

    /// Makes a watcher; the next responses say whether it worked. Returns its id if it did.
    ///
    /// A watcher below the compacted revision is created and canceled at once.
    pub fn create(&self, create: WatchCreate) -> Option<i64> {
        let shared = &self.shared;
        let visible = shared.history.current();
        let compacted = shared.history.compacted();
        let id = shared.create(&mut shared.state.lock(), create, visible, compacted);
        shared.signal.notify.notify_one();
        id
    }

    /// Answers a create that must not be carried out, such as for lack of permission.
    pub fn refuse(&self, reason: impl Into<Cow<'static, str>>) {
        let revision = self.shared.history.current();
        self.shared.state.lock().refuse(reason.into(), revision);
        self.shared.signal.notify.notify_one();
    }

    /// Ends a watcher and answers so; an unknown id gets no answer.
    pub fn cancel(&self, id: i64) {
        let revision = self.shared.history.current();
        let mut state = self.shared.state.lock();
        if self.shared.remove(&mut state, id) || state.compacted.remove(&id) {
            state.ready.push_back(WatchOutput {
                watch_id: id,
                revision,
                canceled: true,
                ..WatchOutput::default()
            });
            drop(state);
            self.shared.signal.notify.notify_one();
        }
    }

    /// Asks for one response that says how far the whole stream is.
    ///
    /// It is given as soon as all events up to the present revision were, and not at all if a watcher is
    /// behind, starts in the future, was canceled for compaction and is not yet let go of, or there is none: the
    /// client asks again.
    pub fn request_progress(&self) {
        let current = self.shared.history.current();
        let mut state = self.shared.state.lock();
        if state.compacted.is_empty() && state.progress_targets.len() < PROGRESS_REQUESTS_MAX {
            state.progress_targets.push_back(current);
        }
        drop(state);
        self.shared.signal.notify.notify_one();
    }

    /// A progress interval has passed: idle watchers that asked for it are told the revision.
    ///
    /// [`WatchStream::next`] does this by itself.
    pub fn tick(&self) {
        self.shared.state.lock().tick_due = true;
        self.shared.signal.notify.notify_one();
    }

    /// Watchers on the stream.
    pub fn watchers(&self) -> usize {
        self.shared.state.lock().slots.len()
    }

    /// Responses made and not taken: a server reads no further requests while there are many.
    pub fn backlog(&self) -> usize {
        self.shared.state.lock().ready.len()
    }

    /// The next response, if there is one now. One task at a time takes responses.
    ///
    /// Errors: the store could not be read; the stream is of no more use.
    pub fn try_next(&self) -> Result<Option<WatchOutput>> {
        loop {
            let next = self.shared.step(&mut self.shared.state.lock())?;
            match next {
                Next::Output(output) => return Ok(Some(output)),
                Next::Read(job) => (self.shared.options.spawn)(Box::new(move || job.run())),
                Next::Idle => return Ok(None),
            }
        }
    }

    /// Waits for the next response. Dropping the future loses nothing.
    ///
    /// Errors: as [`WatchStream::try_next`].
    pub async fn next(&self) -> Result<WatchOutput> {
        loop {
            let notified = self.shared.signal.notify.notified();
            let tick_at = self.next_tick();
            if let Some(output) = self.try_next()? {
                return Ok(output);
            }
            match tick_at {
                Some(at) => tokio::select! {
                    () = notified => {}
                    () = tokio::time::sleep_until(at) => {}
                },
                None => notified.await,
            }
        }
    }

    /// Begins the progress tick if one is due, also on a stream that is never idle, and says when the next
    /// one is. The ticks are those of the stream, not of a watcher; the ones nobody saw are not made up for.
    fn next_tick(&self) -> Option<Instant> {
        let mut state = self.shared.state.lock();
        if state.progress_watchers == 0 {
            return None;
        }
        if state.pass_ticks(self.shared.options.progress_interval) {
            state.tick_due = true;
        }
        Some(state.tick_at)
    }
}

impl Drop for WatchStream {
    fn drop(&mut self) {
        let shared = &self.shared;
        let mut state = shared.state.lock();
        // One range at a time, so that the writer is not kept waiting.
        let mut behind = 0;
        for (range, watchers) in state.index.iter() {
            behind += watchers.values().filter(|w| !w.live).count();
            shared.hub.unregister_range(&shared.signal, range);
        }
        shared.slow_watchers(-(behind as i64));
        shared.hub.close_stream(&shared.signal);
        state.index = RangeIndex::new();
        state.slots.clear();
        state.behind.clear();
        state.ready.clear();
    }
}

impl Shared {
    fn create(
        &self,
        state: &mut StreamState,
        create: WatchCreate,
        visible: i64,
        compacted: i64,
    ) -> Option<i64> {
        if create.start_revision < 0 {
            state.refuse(COMPACTED.into(), visible);
            return None;
        }
        if create.range.is_empty() {
            state.refuse(EMPTY_RANGE.into(), visible);
            return None;
        }
        if create.watch_id != 0 && state.is_taken(create.watch_id) {
            state.refuse(DUPLICATE_ID.into(), visible);
            return None;
        }
        let id = if create.watch_id == 0 {
            state.free_id()
        } else {
            create.watch_id
        };
        if create.start_revision != 0 && create.start_revision < compacted {
            state.ready.push_back(created(id, visible));
            state.cancel_compacted(id, compacted);
            return None;
        }
        let form = Form {
            prev: create.prev_kv,
            filters: create.filters,
        };
        let (cursor, current) = self.hub.register(
            &self.signal,
            &create.range,
            form.prev,
            create.start_revision,
            visible,
        );
        state.ready.push_back(created(id, current));
        state.serials += 1;
        let member = Member {
            id,
            serial: state.serials,
        };
        let watcher = Watcher {
            id,
            serial: member.serial,
            form,
            fragment: create.fragment,
            progress_notify: create.progress_notify,
            start_revision: create.start_revision,
            cursor,
            live: false,
            sent_since_tick: false,
        };
        let slot = state.index.get_or_insert_with(&create.range, BTreeMap::new);
        state.index.get_mut(slot).insert(id, watcher);
        state.slots.insert(id, slot);
        if state.progress_watchers == 0 {
            // Ticks from before anyone wanted them.
            state.pass_ticks(self.options.progress_interval);
        }
        state.progress_watchers += usize::from(create.progress_notify);
        self.slow_watchers(1);
        // Nearly always live at once. A watcher with a past takes its turn when responses are taken.
        match self.hub.place(&self.signal, cursor) {
            Place::Live { live_from } => self.go_live(state, member, live_from),
            _ => state.behind.push_back(member),
        }
        Some(id)
    }

    /// Removes a watcher; whether there was one.
    fn remove(&self, state: &mut StreamState, id: i64) -> bool {
        let Some(slot) = state.slots.remove(&id) else {
            return false;
        };
        let watcher = state
            .index
            .get_mut(slot)
            .remove(&id)
            .expect("the slot of an id holds its watcher");
        self.hub
            .unregister(&self.signal, state.index.range(slot), watcher.form.prev);
        if state.index.get(slot).is_empty() {
            state.index.remove(slot);
        }
        state.progress_watchers -= usize::from(watcher.progress_notify);
        if !watcher.live {
            self.slow_watchers(-1);
        }
        true
    }

    /// Does the next piece of work there is.
    fn step(self: &Arc<Self>, state: &mut StreamState) -> Result<Next> {
        loop {
            if let Some(output) = state.ready.pop_front() {
                return Ok(Next::Output(output));
            }
            if let Some(error) = &state.failed {
                return Err(error.clone());
            }
            if let Reading::Done { .. } = state.reading {
                self.take_read(state);
                continue;
            }
            // Before live events, which under load never end.
            if let Some(job) = self.catch_up(state) {
                return Ok(Next::Read(job));
            }
            if !state.ready.is_empty() {
                continue;
            }
            match self.hub.advance(&self.signal) {
                Step::Deliver(events) => {
                    state.deliver(&events, &self.options);
                    state.report_progress(events.revision());
                }
                Step::Resync(from) => self.fall_behind(state, from),
                Step::Idle(through) => {
                    state.report_progress(through);
                    if state.ready.is_empty() {
                        if let Some(&revision) = state.progress_targets.front() {
                            // Visible to readers, and about to be published.
                            self.hub.wait_published(&self.signal, revision);
                        }
                        return Ok(Next::Idle);
                    }
                }
            }
        }
    }

    /// Every live watcher has to read the store from `from` on.
    fn fall_behind(&self, state: &mut StreamState, from: i64) {
        let mut fallen = 0;
        for watchers in state.index.values_mut() {
            for watcher in watchers.values_mut().filter(|w| w.live) {
                watcher.live = false;
                watcher.cursor.next = watcher.cursor.next.max(from);
                state.behind.push_back(Member {
                    id: watcher.id,
                    serial: watcher.serial,
                });
                fallen += 1;
            }
        }
        self.slow_watchers(fallen);
    }

    /// Moves watchers that are behind, until one has a response or the store has to be read.
    fn catch_up(self: &Arc<Self>, state: &mut StreamState) -> Option<HistoryJob> {
        if !matches!(state.reading, Reading::None) {
            return None;
        }
        let mut unseen = state.behind.len();
        while unseen > 0 {
            unseen -= 1;
            let member = state.behind.pop_front()?;
            let Some(watcher) = state.watcher(member) else {
                continue;
            };
            let cursor = watcher.cursor;
            match self.hub.place(&self.signal, cursor) {
                Place::Live { live_from } => self.go_live(state, member, live_from),
                Place::Wait => state.behind.push_back(member),
                Place::Ring {
                    revisions,
                    through,
                    current,
                } => {
                    state.behind.push_front(member);
                    unseen += 1;
                    state.catch_up_from_ring(member, revisions, through, current, &self.options);
                    if !state.ready.is_empty() {
                        return None;
                    }
                }
                Place::History => return Some(self.begin_read(state, member, cursor)),
            }
        }
        None
    }

    fn go_live(&self, state: &mut StreamState, member: Member, live_from: i64) {
        let watcher = state
            .watcher(member)
            .expect("a watcher goes live while it exists");
        watcher.live = true;
        watcher.cursor.live_from = live_from;
        watcher.cursor.capture = 0;
        self.slow_watchers(-1);
    }

    /// Gathers the watchers whose cursors are close behind `leader`'s, and the read they need.
    fn begin_read(
        self: &Arc<Self>,
        state: &mut StreamState,
        leader: Member,
        cursor: Cursor,
    ) -> HistoryJob {
        let close = cursor.next..=cursor.next.saturating_add(CHUNK_REVISIONS_MAX as i64);
        let mut cohort = vec![leader];
        let mut ranges: Vec<KeyRange> = Vec::new();
        let mut want_prev = false;
        let behind = std::mem::take(&mut state.behind);
        for member in std::iter::once(leader).chain(behind) {
            let Some(watcher) = state.watcher(member) else {
                continue;
            };
            if !close.contains(&watcher.cursor.next) {
                state.behind.push_back(member);
                continue;
            }
            want_prev |= watcher.form.prev == super::PrevKv::Keep;
            ranges.push(state.index.range(state.slots[&member.id]).clone());
            if member.serial != leader.serial {
                cohort.push(member);
            }
        }
        state.reading = Reading::InFlight(cohort);
        HistoryJob {
            shared: self.clone(),
            request: HistoryRequest {
                ranges: RangeSet::new(&ranges),
                from: cursor.next,
                to: cursor.next,
                revisions_max: CHUNK_REVISIONS_MAX,
                bytes_max: CHUNK_BYTES_MAX,
                want_prev,
            },
            finished: false,
        }
    }

    /// Delivers what a read brought.
    fn take_read(&self, state: &mut StreamState) {
        let Reading::Done {
            cohort,
            current,
            result,
        } = std::mem::replace(&mut state.reading, Reading::None)
        else {
            return;
        };
        match result {
            Ok(chunk) => {
                state.deliver_chunk(&cohort, &chunk, current, &self.options);
                state.behind.extend(cohort);
            }
            Err(Error::Compacted { compacted, .. }) => {
                for member in cohort {
                    match state.watcher(member) {
                        Some(watcher) if watcher.cursor.next < compacted => {
                            self.remove(state, member.id);
                            state.cancel_compacted(member.id, compacted);
                        }
                        Some(_) => state.behind.push_back(member),
                        None => {}
                    }
                }
            }
            Err(error) => state.failed = Some(error),
        }
    }

    fn slow_watchers(&self, change: i64) {
        // Two's complement: adding a negative number wraps to a subtraction.
        self.hub
            .slow_watchers
            .fetch_add(change as u64, Ordering::Relaxed);
    }
}

impl StreamState {
    /// Sets the next tick into the future; whether one or more have passed.
    fn pass_ticks(&mut self, interval: Duration) -> bool {
        let now = Instant::now();
        if now < self.tick_at {
            return false;
        }
        let passed = (now - self.tick_at).as_nanos() / interval.as_nanos().max(1) + 1;
        self.tick_at += interval * u32::try_from(passed).unwrap_or(u32::MAX);
        true
    }

    fn is_taken(&self, id: i64) -> bool {
        self.slots.contains_key(&id) || self.compacted.contains(&id)
    }

    /// Tells the client that the revisions of a watcher are gone.
    fn cancel_compacted(&mut self, id: i64, compacted: i64) {
        self.compacted.insert(id);
        self.ready.push_back(WatchOutput {
            watch_id: id,
            canceled: true,
            compact_revision: compacted,
            ..WatchOutput::default()
        });
    }

    fn free_id(&mut self) -> i64 {
        while self.is_taken(self.next_id) {
            self.next_id += 1;
        }
        self.next_id += 1;
        self.next_id - 1
    }

    fn refuse(&mut self, reason: Cow<'static, str>, revision: i64) {
        self.ready.push_back(WatchOutput {
            watch_id: NO_WATCH_ID,
            revision,
            created: true,
            canceled: true,
            cancel_reason: reason,
            ..WatchOutput::default()
        });
    }

    fn watcher(&mut self, member: Member) -> Option<&mut Watcher> {
        let &slot = self.slots.get(&member.id)?;
        let watcher = self.index.get_mut(slot).get_mut(&member.id)?;
        (watcher.serial == member.serial).then_some(watcher)
    }

    /// Whether every watcher has been given everything up to `revision` and none starts later.
    fn all_reached(&self, revision: i64) -> bool {
        self.index
            .iter()
            .all(|(_, watchers)| watchers.values().all(|w| w.reached(revision)))
    }

    /// Answers progress requests and ticks; live watchers were given everything up to `through`.
    fn report_progress(&mut self, through: i64) {
        while self
            .progress_targets
            .front()
            .is_some_and(|&target| target <= through)
        {
            self.progress_targets.pop_front();
            if !self.slots.is_empty() && self.all_reached(through) {
                self.ready.push_back(progress(NO_WATCH_ID, through));
            }
        }
        if std::mem::take(&mut self.tick_due) {
            for watchers in self.index.values_mut() {
                for watcher in watchers.values_mut().filter(|w| w.progress_notify) {
                    let silent = !std::mem::take(&mut watcher.sent_since_tick);
                    if silent && watcher.reached(through) {
                        self.ready.push_back(progress(watcher.id, through));
                    }
                }
            }
        }
    }

    /// Makes the responses of one live revision.
    fn deliver(&mut self, events: &Arc<RevisionEvents>, options: &StreamOptions) {
        let revision = events.revision();
        let mut hits: BTreeMap<Slot, Vec<(u32, u32)>> = BTreeMap::new();
        for (i, event) in events.events().iter().enumerate() {
            self.index.matching(key_of(event), &mut |slot, _| {
                hits.entry(slot).or_default().push((0, i as u32));
            });
        }
        let revisions = std::slice::from_ref(events);
        for (slot, found) in hits {
            let mut batches = Batches::new(revisions, &found);
            for watcher in self.index.get_mut(slot).values_mut() {
                if watcher.live && watcher.cursor.next <= revision {
                    watcher.cursor.next = revision + 1;
                    if let Some(batch) = batches.of(watcher.form, 0) {
                        emit(&mut self.ready, watcher, revision, batch, options);
                    }
                }
            }
        }
    }

    /// Makes the responses of a chunk of history, one for each watcher of the cohort that has events in it.
    fn deliver_chunk(
        &mut self,
        cohort: &[Member],
        chunk: &HistoryChunk,
        current: i64,
        options: &StreamOptions,
    ) {
        let mut hits: HashMap<Slot, Vec<(u32, u32)>> = HashMap::new();
        for (r, revision) in chunk.revisions.iter().enumerate() {
            for (e, event) in revision.events().iter().enumerate() {
                self.index.matching(key_of(event), &mut |slot, _| {
                    hits.entry(slot).or_default().push((r as u32, e as u32));
                });
            }
        }
        let mut batches: HashMap<Slot, Batches<'_>> = HashMap::new();
        for &member in cohort {
            let Some(&slot) = self.slots.get(&member.id) else {
                continue;
            };
            let watcher = self.index.get_mut(slot).get_mut(&member.id);
            let Some(watcher) = watcher.filter(|w| w.serial == member.serial) else {
                continue;
            };
            let next = watcher.cursor.next;
            watcher.cursor.next = next.max(chunk.through + 1);
            let Some(found) = hits.get(&slot) else {
                continue;
            };
            let first = chunk.revisions.partition_point(|r| r.revision() < next);
            let of_slot = batches
                .entry(slot)
                .or_insert_with(|| Batches::new(&chunk.revisions, found));
            if let Some(batch) = of_slot.of(watcher.form, first as u32) {
                emit(&mut self.ready, watcher, current, batch, options);
            }
        }
    }

    /// Gives one watcher what the ring has between its cursor and the stream's position.
    fn catch_up_from_ring(
        &mut self,
        member: Member,
        revisions: Vec<Arc<RevisionEvents>>,
        through: i64,
        current: i64,
        options: &StreamOptions,
    ) {
        let range = self.index.range(self.slots[&member.id]).clone();
        let mut found = Vec::new();
        for (r, revision) in revisions.iter().enumerate() {
            for (e, event) in revision.events().iter().enumerate() {
                if range.contains(key_of(event)) {
                    found.push((r as u32, e as u32));
                }
            }
        }
        let slot = self.slots[&member.id];
        let watcher = self
            .index
            .get_mut(slot)
            .get_mut(&member.id)
            .expect("the watcher was found under this lock");
        watcher.cursor.next = through + 1;
        if let Some(batch) = Batches::new(&revisions, &found).of(watcher.form, 0) {
            emit(&mut self.ready, watcher, current, batch, options);
        }
    }
}

impl Watcher {
    /// Whether it was given everything up to `revision`, and asked for nothing later only.
    ///
    /// A live watcher was, if its stream was, unless it began behind `revision`. Source: etcd 3.7, progress is not reported to
    /// a watcher whose start revision is above the store's.
    fn reached(&self, revision: i64) -> bool {
        self.live && self.start_revision <= revision && self.cursor.next <= revision + 1
    }
}

/// The batches of one range's watchers: made once for each form and first revision.
struct Batches<'a> {
    revisions: &'a [Arc<RevisionEvents>],
    /// The events in the range, in order.
    events: &'a [(u32, u32)],
    made: Vec<(Form, u32, Option<EventBatch>)>,
}

impl<'a> Batches<'a> {
    fn new(revisions: &'a [Arc<RevisionEvents>], events: &'a [(u32, u32)]) -> Batches<'a> {
        Batches {
            revisions,
            events,
            made: Vec::new(),
        }
    }

    /// The events a watcher of this form gets from `revisions[first..]`, if any.
    fn of(&mut self, form: Form, first: u32) -> Option<EventBatch> {
        if let Some((_, _, batch)) = self.made.iter().find(|(f, n, _)| (*f, *n) == (form, first)) {
            return batch.clone();
        }
        let passes = |&&(r, e): &&(u32, u32)| {
            r >= first
                && form
                    .filters
                    .pass(&self.revisions[r as usize].events()[e as usize])
        };
        let events: Vec<_> = self.events.iter().filter(passes).copied().collect();
        let batch = (!events.is_empty()).then(|| {
            // A batch keeps alive the revisions it uses, not the whole chunk.
            let mut used: Vec<Arc<RevisionEvents>> = Vec::new();
            let mut last = None;
            let events = events
                .into_iter()
                .map(|(r, e)| {
                    if last != Some(r) {
                        last = Some(r);
                        used.push(self.revisions[r as usize].clone());
                    }
                    (used.len() as u32 - 1, e)
                })
                .collect();
            EventBatch::new(used, events, form.prev)
        });
        self.made.push((form, first, batch.clone()));
        batch
    }
}

/// A read of the store on its way; dropped without being run, it fails its stream.
struct HistoryJob {
    shared: Arc<Shared>,
    request: HistoryRequest,
    finished: bool,
}

impl HistoryJob {
    fn run(mut self) {
        let history = &self.shared.history;
        let current = history.current();
        self.request.to = current.max(self.request.from);
        let result = history.events(&self.request);
        if let Ok(chunk) = &result {
            let HistoryRequest { from, to, .. } = self.request;
            assert!(
                from <= chunk.through,
                "history from {from} stops at {}",
                chunk.through
            );
            assert!(
                chunk.through <= to,
                "history to {to} goes on to {}",
                chunk.through
            );
            let last = chunk.revisions.last().map_or(from, |r| r.revision());
            assert!(
                last <= chunk.through,
                "revision {last} is beyond {}",
                chunk.through
            );
        }
        self.finish(current, result);
    }

    fn finish(&mut self, current: i64, result: Result<HistoryChunk>) {
        self.finished = true;
        let mut state = self.shared.state.lock();
        if let Reading::InFlight(cohort) = std::mem::replace(&mut state.reading, Reading::None) {
            state.reading = Reading::Done {
                cohort,
                current,
                result,
            };
        }
        drop(state);
        self.shared.signal.notify.notify_one();
    }
}

impl Drop for HistoryJob {
    fn drop(&mut self) {
        if !self.finished {
            self.finish(0, Err(Error::Closed));
        }
    }
}

fn created(id: i64, revision: i64) -> WatchOutput {
    WatchOutput {
        watch_id: id,
        revision,
        created: true,
        ..WatchOutput::default()
    }
}

fn progress(id: i64, revision: i64) -> WatchOutput {
    WatchOutput {
        watch_id: id,
        revision,
        ..WatchOutput::default()
    }
}

/// Queues the response that carries `batch`, in parts if it is large and the watcher allows it.
fn emit(
    ready: &mut VecDeque<WatchOutput>,
    watcher: &mut Watcher,
    revision: i64,
    batch: EventBatch,
    options: &StreamOptions,
) {
    watcher.sent_since_tick = true;
    let mut output = WatchOutput {
        watch_id: watcher.id,
        revision,
        ..WatchOutput::default()
    };
    if watcher.fragment == Fragment::Never || batch.len() < 2 {
        ready.push_back(WatchOutput {
            events: Some(batch),
            ..output
        });
        return;
    }
    let events_len: usize = (0..batch.len()).map(|i| batch.frame_len(i)).sum();
    if output.head_len(&options.header) + events_len < options.fragment_bytes_min {
        ready.push_back(WatchOutput {
            events: Some(batch),
            ..output
        });
        return;
    }
    output.fragment = true;
    let head_len = output.head_len(&options.header);
    let mut start = 0;
    while start < batch.len() {
        let mut len = head_len + batch.frame_len(start);
        let mut end = start + 1;
        while end < batch.len() && len + batch.frame_len(end) < options.fragment_bytes_min {
            len += batch.frame_len(end);
            end += 1;
        }
        ready.push_back(WatchOutput {
            fragment: end < batch.len(),
            events: Some(batch.part(start..end)),
            ..output.clone()
        });
        start = end;
    }
}
