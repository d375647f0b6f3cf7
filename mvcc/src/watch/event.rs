//! Events of one revision: built once, encoded at most once per form, shared by every watcher.
//!
//! A watch response carries events as field 11 of `WatchResponse`. The bytes of one event as they stand
//! there (tag, length, `Event`) are its *frame*. [`RevisionEvents`] caches the frames of a whole revision
//! with and without `prev_kv`; [`EventBatch`] names the events one response carries and yields their frames
//! as one [`Bytes`], so that a server splices them behind the few header fields. An event with no `prev_kv`
//! has the same frame in both forms.
//! Source: etcd API v3.7, `WatchResponse.events`; the wire rules of protobuf.

use std::fmt;
use std::ops::Range;
use std::sync::{Arc, OnceLock};

use bytes::{BufMut, Bytes, BytesMut};
use kv_proto::mvccpb::event::EventType;
use kv_proto::mvccpb::{Event, KeyValue};
use prost::Message;
use prost::encoding::{WireType, encode_key, encode_varint, encoded_len_varint, key_len};

/// Field number of `WatchResponse.events`.
const EVENTS_FIELD: u32 = 11;
/// What a revision costs beyond its events' encoded size: structs, allocations, the ring's slot.
const OVERHEAD_BYTES: u64 = 256;

/// All events of one revision that somebody may want, in the order of their sub revisions.
///
/// The writer leaves out events no watcher wanted and `prev_kv` no watcher wanted, as [`Capture::wants`]
/// told it; the hub knows which watchers may be served from such an entry.
///
/// [`Capture::wants`]: super::Capture::wants
pub struct RevisionEvents {
    revision: i64,
    events: Vec<Event>,
    bytes: u64,
    with_prev: OnceLock<Frames>,
    without_prev: OnceLock<Frames>,
}

/// The frames of a revision's events in one allocation; `ends[i]` is where frame `i` ends.
struct Frames {
    bytes: Bytes,
    ends: Vec<usize>,
}

impl RevisionEvents {
    /// The events of `revision`, in sub-revision order, `prev_kv` filled where somebody wants it.
    pub fn new(revision: i64, events: Vec<Event>) -> RevisionEvents {
        // Events and their cached frames: what the entry may come to hold.
        let bytes = OVERHEAD_BYTES
            + events
                .iter()
                .map(|e| 2 * e.encoded_len() as u64)
                .sum::<u64>();
        RevisionEvents {
            revision,
            events,
            bytes,
            with_prev: OnceLock::new(),
            without_prev: OnceLock::new(),
        }
    }

    /// The revision all events belong to.
    pub fn revision(&self) -> i64 {
        self.revision
    }

    /// The events, in the order the transaction made them.
    pub fn events(&self) -> &[Event] {
        &self.events
    }

    /// Memory this revision may come to hold, cached frames included; an estimate.
    pub fn bytes(&self) -> u64 {
        self.bytes
    }

    fn frames(&self, prev: PrevKv) -> &Frames {
        let cell = match prev {
            PrevKv::Keep => &self.with_prev,
            PrevKv::Drop if self.events.iter().all(|e| e.prev_kv.is_none()) => &self.with_prev,
            PrevKv::Drop => &self.without_prev,
        };
        cell.get_or_init(|| Frames::encode(&self.events, prev))
    }
}

impl fmt::Debug for RevisionEvents {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("RevisionEvents")
            .field("revision", &self.revision)
            .field("events", &self.events.len())
            .finish()
    }
}

impl Frames {
    fn encode(events: &[Event], prev: PrevKv) -> Frames {
        let mut buf = BytesMut::with_capacity(events.iter().map(|e| frame_len(e, prev)).sum());
        let mut ends = Vec::with_capacity(events.len());
        for event in events {
            encode_key(EVENTS_FIELD, WireType::LengthDelimited, &mut buf);
            encode_varint(event_len(event, prev) as u64, &mut buf);
            encode_event(event, prev, &mut buf);
            ends.push(buf.len());
        }
        Frames {
            bytes: buf.freeze(),
            ends,
        }
    }

    fn span(&self, i: usize) -> Range<usize> {
        let start = if i == 0 { 0 } else { self.ends[i - 1] };
        start..self.ends[i]
    }
}

/// Whether a watcher asked for `prev_kv`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum PrevKv {
    /// Deliver `prev_kv` where it is known.
    Keep,
    /// Deliver events without `prev_kv`.
    Drop,
}

/// The events one response carries; clones share everything.
#[derive(Clone)]
pub struct EventBatch {
    shared: Arc<Shared>,
    /// Which of the shared events this batch covers; less than all only in a fragment.
    span: Range<usize>,
}

struct Shared {
    /// Events in revision order: index of an entry of `revisions`, index of its event.
    events: Vec<(u32, u32)>,
    revisions: Vec<Arc<RevisionEvents>>,
    prev: PrevKv,
    frames: OnceLock<Frames>,
}

impl EventBatch {
    /// A batch of `events`, each named by the index of its revision in `revisions` and of the event in it.
    pub(super) fn new(
        revisions: Vec<Arc<RevisionEvents>>,
        events: Vec<(u32, u32)>,
        prev: PrevKv,
    ) -> EventBatch {
        let span = 0..events.len();
        EventBatch {
            shared: Arc::new(Shared {
                events,
                revisions,
                prev,
                frames: OnceLock::new(),
            }),
            span,
        }
    }

    /// How many events the batch has; never zero in a response that carries events.
    pub fn len(&self) -> usize {
        self.span.len()
    }

    /// Whether there is no event.
    pub fn is_empty(&self) -> bool {
        self.span.is_empty()
    }

    /// The events, `prev_kv` removed if the watcher did not ask for it. Values are shared, not copied.
    pub fn events(&self) -> impl Iterator<Item = Event> + '_ {
        self.shared.events[self.span.clone()]
            .iter()
            .map(|&(revision, event)| {
                let event = &self.shared.revisions[revision as usize].events[event as usize];
                Event {
                    r#type: event.r#type,
                    kv: event.kv.clone(),
                    prev_kv: match self.shared.prev {
                        PrevKv::Keep => event.prev_kv.clone(),
                        PrevKv::Drop => None,
                    },
                }
            })
    }
    /// The events as they stand in an encoded `WatchResponse`: field 11, repeated.
    ///
    /// Encoded at most once for all watchers that share the batch; a whole revision is not even copied.
    pub fn frames(&self) -> Bytes {
        if self.span.is_empty() {
            return Bytes::new();
        }
        let shared = &self.shared;
        if let [revision] = &shared.revisions[..] {
            let frames = revision.frames(shared.prev);
            if shared.events.len() == revision.events.len() {
                return slice(frames, self.span.clone());
            }
            if shared.events.len() == 1 {
                return frames.bytes.slice(frames.span(shared.events[0].1 as usize));
            }
        }
        slice(
            shared.frames.get_or_init(|| shared.gather()),
            self.span.clone(),
        )
    }

    /// Bytes that event `i` of the batch takes in an encoded response.
    pub(super) fn frame_len(&self, i: usize) -> usize {
        let (revision, event) = self.shared.events[self.span.start + i];
        frame_len(
            &self.shared.revisions[revision as usize].events[event as usize],
            self.shared.prev,
        )
    }

    /// The part of the batch that `part` names.
    pub(super) fn part(&self, part: Range<usize>) -> EventBatch {
        let span = self.span.start + part.start..self.span.start + part.end;
        EventBatch {
            shared: self.shared.clone(),
            span,
        }
    }
}

impl Shared {
    fn gather(&self) -> Frames {
        let mut buf = BytesMut::new();
        let mut ends = Vec::with_capacity(self.events.len());
        for &(revision, event) in &self.events {
            let frames = self.revisions[revision as usize].frames(self.prev);
            buf.put_slice(&frames.bytes[frames.span(event as usize)]);
            ends.push(buf.len());
        }
        Frames {
            bytes: buf.freeze(),
            ends,
        }
    }
}

impl fmt::Debug for EventBatch {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_list().entries(self.events()).finish()
    }
}

/// The event of a put.
pub fn put_event(kv: KeyValue, prev_kv: Option<KeyValue>) -> Event {
    Event {
        r#type: EventType::Put as i32,
        kv: Some(kv),
        prev_kv,
    }
}

/// The event of a delete at `revision`: the pair has the key and the revision only.
pub fn delete_event(key: Bytes, revision: i64, prev_kv: Option<KeyValue>) -> Event {
    let kv = KeyValue {
        key,
        mod_revision: revision,
        ..KeyValue::default()
    };
    Event {
        r#type: EventType::Delete as i32,
        kv: Some(kv),
        prev_kv,
    }
}

/// The key an event is about.
pub(super) fn key_of(event: &Event) -> &[u8] {
    event.kv.as_ref().map_or(&[], |kv| &kv.key)
}

fn slice(frames: &Frames, span: Range<usize>) -> Bytes {
    frames
        .bytes
        .slice(frames.span(span.start).start..frames.ends[span.end - 1])
}

fn frame_len(event: &Event, prev: PrevKv) -> usize {
    let len = event_len(event, prev);
    key_len(EVENTS_FIELD) + encoded_len_varint(len as u64) + len
}

fn event_len(event: &Event, prev: PrevKv) -> usize {
    match (prev, &event.prev_kv) {
        (PrevKv::Drop, Some(kv)) => {
            event.encoded_len() - prost::encoding::message::encoded_len(3, kv)
        }
        _ => event.encoded_len(),
    }
}

fn encode_event(event: &Event, prev: PrevKv, buf: &mut BytesMut) {
    match (prev, &event.prev_kv) {
        (PrevKv::Drop, Some(_)) => Event {
            prev_kv: None,
            ..event.clone()
        }
        .encode_raw(buf),
        _ => event.encode_raw(buf),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use kv_proto::etcdserverpb::WatchResponse;

    fn kv(key: &'static str, value: &'static str, revision: i64) -> KeyValue {
        KeyValue {
            key: Bytes::from(key),
            value: Bytes::from(value),
            create_revision: 2,
            mod_revision: revision,
            version: 1,
            lease: 0,
        }
    }

    fn revision(revision: i64) -> Arc<RevisionEvents> {
        Arc::new(RevisionEvents::new(
            revision,
            vec![
                put_event(kv("a", "1", revision), Some(kv("a", "0", 2))),
                put_event(kv("b", "1", revision), None),
                delete_event(Bytes::from("c"), revision, Some(kv("c", "0", 2))),
            ],
        ))
    }

    /// Frames must decode to the events the batch says it has.
    fn check(batch: EventBatch) {
        let frames = batch.frames();
        let expect: Vec<_> = batch.events().collect();
        let lens: usize = (0..batch.len()).map(|i| batch.frame_len(i)).sum();
        assert_eq!(
            WatchResponse::decode(frames.clone()).unwrap().events,
            expect
        );
        assert_eq!(frames.len(), lens);
    }

    #[test]
    fn frames_decode_to_the_events() {
        for prev in [PrevKv::Keep, PrevKv::Drop] {
            check(EventBatch::new(
                vec![revision(7)],
                vec![(0, 0), (0, 1), (0, 2)],
                prev,
            ));
            check(EventBatch::new(vec![revision(7)], vec![(0, 2)], prev));
            check(EventBatch::new(
                vec![revision(7)],
                vec![(0, 0), (0, 2)],
                prev,
            ));
            let long = EventBatch::new(
                vec![revision(7), revision(9)],
                vec![(0, 1), (0, 2), (1, 0), (1, 1)],
                prev,
            );
            check(long.part(1..3));
            check(long.part(1..4).part(1..2));
            check(long);
        }
    }

    #[test]
    fn whole_revision_is_encoded_once() {
        let shared = revision(7);
        let all = vec![(0, 0), (0, 1), (0, 2)];
        let first = EventBatch::new(vec![shared.clone()], all.clone(), PrevKv::Keep).frames();
        let second = EventBatch::new(vec![shared], all, PrevKv::Keep).frames();
        assert_eq!(first.as_ptr(), second.as_ptr());
    }

    #[test]
    fn delete_event_has_key_and_revision_only() {
        let event = delete_event(Bytes::from("k"), 9, None);
        let pair = event.kv.unwrap();
        assert_eq!(
            (pair.mod_revision, pair.create_revision, pair.version),
            (9, 0, 0)
        );
        assert!(pair.value.is_empty());
    }
}
