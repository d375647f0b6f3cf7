//! Watching end to end: a small store, a writer and streams. Rules one by one here; random programs against
//! a model in [`stress`].

mod stress;

use std::collections::BTreeMap;
use std::ops::Bound;
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use kv_proto::etcdserverpb::{ResponseHeader, WatchCreateRequest, WatchResponse};
use kv_proto::mvccpb::{Event, KeyValue};
use parking_lot::Mutex;
use prost::Message;

use super::*;
use crate::{Error, Result};

/// All revisions in memory, every event with its `prev_kv`.
#[derive(Default)]
struct TestStore {
    state: Mutex<TestState>,
}

#[derive(Default)]
struct TestState {
    current: i64,
    compacted: i64,
    revisions: BTreeMap<i64, Vec<Event>>,
    reads: usize,
    /// A read looks at no more revisions than this at a time; 0 for no bound.
    read_span_max: i64,
    broken: bool,
}

impl History for TestStore {
    fn current(&self) -> i64 {
        self.state.lock().current
    }

    fn compacted(&self) -> i64 {
        self.state.lock().compacted
    }

    fn events(&self, request: &HistoryRequest) -> Result<HistoryChunk> {
        let mut state = self.state.lock();
        state.reads += 1;
        if state.broken {
            return Err(Error::Closed);
        }
        assert!(
            request.to <= state.current,
            "the past is asked for, not the future"
        );
        if request.from < state.compacted {
            let compacted = state.compacted;
            return Err(Error::Compacted {
                requested: request.from,
                compacted,
            });
        }
        let mut through = request.to;
        if state.read_span_max > 0 {
            through = through.min(request.from + state.read_span_max - 1);
        }
        let mut revisions = Vec::new();
        let mut bytes = 0;
        for (&revision, events) in state.revisions.range(request.from..=through) {
            let mut wanted: Vec<Event> = events
                .iter()
                .filter(|e| request.ranges.contains(&e.kv.as_ref().unwrap().key))
                .cloned()
                .collect();
            if wanted.is_empty() {
                continue;
            }
            if !request.want_prev {
                wanted.iter_mut().for_each(|e| e.prev_kv = None);
            }
            let wanted = Arc::new(RevisionEvents::new(revision, wanted));
            bytes += wanted.bytes();
            revisions.push(wanted);
            if revisions.len() == request.revisions_max || bytes > request.bytes_max {
                through = revision;
                break;
            }
        }
        Ok(HistoryChunk { revisions, through })
    }
}

/// A change to make; `None` deletes.
type Change<'a> = (&'a str, Option<&'a str>);

impl TestStore {
    fn new(revision: i64) -> Arc<TestStore> {
        let store = TestStore::default();
        store.state.lock().current = revision;
        store.state.lock().compacted = -1;
        Arc::new(store)
    }

    /// The events of the next revision, with `prev_kv`, not visible yet.
    fn prepare(&self, changes: &[Change<'_>]) -> (i64, Vec<Event>) {
        let state = self.state.lock();
        let revision = state.current + 1;
        let mut made: Vec<Event> = Vec::new();
        for &(key, value) in changes {
            let key = Bytes::copy_from_slice(key.as_bytes());
            let of_key = |e: &&Event| e.kv.as_ref().unwrap().key == key;
            let older = state
                .revisions
                .values()
                .rev()
                .flat_map(|events| events.iter().rev());
            let before = made.iter().rev().chain(older).find(of_key).cloned();
            let prev = before.filter(|e| e.r#type == 0).map(|e| e.kv.unwrap());
            made.push(match value {
                None => delete_event(key, revision, prev),
                Some(value) => {
                    let pair = KeyValue {
                        create_revision: prev.as_ref().map_or(revision, |p| p.create_revision),
                        mod_revision: revision,
                        version: prev.as_ref().map_or(0, |p| p.version) + 1,
                        value: Bytes::copy_from_slice(value.as_bytes()),
                        key,
                        lease: 0,
                    };
                    put_event(pair, prev)
                }
            });
        }
        (revision, made)
    }

    fn show(&self, revision: i64, events: Vec<Event>) {
        let mut state = self.state.lock();
        state.current = revision;
        state.revisions.insert(revision, events);
    }

    fn compact(&self, revision: i64) {
        let mut state = self.state.lock();
        state.compacted = revision;
        let gone = (Bound::Unbounded, Bound::Excluded(revision));
        let gone: Vec<i64> = state.revisions.range(gone).map(|(&r, _)| r).collect();
        for revision in gone {
            state.revisions.remove(&revision);
        }
    }

    fn reads(&self) -> usize {
        self.state.lock().reads
    }
}

/// What the writer publishes: the events that are wanted, as far as they are wanted.
fn wanted(capture: &Capture<'_>, events: &[Event]) -> Vec<Event> {
    let mut wanted = Vec::new();
    for event in events {
        match capture.wants(&event.kv.as_ref().unwrap().key) {
            Interest::None => {}
            Interest::Events => wanted.push(Event {
                prev_kv: None,
                ..event.clone()
            }),
            Interest::EventsWithPrev => wanted.push(event.clone()),
        }
    }
    wanted
}

type Jobs = Arc<Mutex<Vec<Box<dyn FnOnce() + Send>>>>;

/// A store at revision 1, its hub, and jobs that run when told to.
struct World {
    store: Arc<TestStore>,
    hub: Arc<WatchHub>,
    jobs: Jobs,
}

impl World {
    fn new() -> World {
        World::with_history(16 << 20)
    }

    fn with_history(history_bytes_max: u64) -> World {
        World {
            store: TestStore::new(1),
            hub: WatchHub::new(HubOptions { history_bytes_max }, 1),
            jobs: Jobs::default(),
        }
    }

    fn stream(&self) -> WatchStream {
        self.stream_with(2 << 20)
    }

    fn stream_with(&self, fragment_bytes_min: usize) -> WatchStream {
        let jobs = self.jobs.clone();
        self.hub.open_stream(
            self.store.clone(),
            StreamOptions {
                spawn: Arc::new(move |job| jobs.lock().push(job)),
                wake_group: None,
                progress_interval: Duration::from_millis(10),
                fragment_bytes_min,
                header: header(),
            },
        )
    }

    /// Writes one revision, all the way to the watchers.
    fn write(&self, changes: &[Change<'_>]) -> i64 {
        let capture = self.hub.capture();
        let (revision, events) = self.store.prepare(changes);
        let wanted = wanted(&capture, &events);
        self.store.show(revision, events);
        self.hub
            .publish(Arc::new(RevisionEvents::new(revision, wanted)));
        revision
    }

    fn put(&self, key: &str, value: &str) -> i64 {
        self.write(&[(key, Some(value))])
    }

    /// Everything the stream has to say, store reads included.
    fn drain(&self, stream: &WatchStream) -> Vec<WatchOutput> {
        let mut outputs = Vec::new();
        loop {
            while let Some(output) = stream.try_next().unwrap() {
                outputs.push(output);
            }
            let jobs = std::mem::take(&mut *self.jobs.lock());
            if jobs.is_empty() {
                return outputs;
            }
            jobs.into_iter().for_each(|job| job());
        }
    }

    /// As [`World::drain`], one line for each response.
    fn told(&self, stream: &WatchStream) -> Vec<String> {
        self.drain(stream).iter().map(line).collect()
    }
}

fn header() -> ResponseHeader {
    ResponseHeader {
        cluster_id: u64::MAX,
        member_id: 77,
        revision: 0,
        raft_term: 2,
    }
}

/// `id@revision: word ... key=value key- (previous)`.
fn line(output: &WatchOutput) -> String {
    let mut line = format!("{}@{}:", output.watch_id, output.revision);
    for (flag, word) in [
        (output.created, " created"),
        (output.canceled, " canceled"),
        (output.fragment, " more"),
    ] {
        line += if flag { word } else { "" };
    }
    if output.compact_revision != 0 {
        line += &format!(" compacted {}", output.compact_revision);
    }
    if !output.cancel_reason.is_empty() {
        line += &format!(" \"{}\"", output.cancel_reason);
    }
    for event in output.events.iter().flat_map(|batch| batch.events()) {
        let pair = event.kv.unwrap();
        let key = String::from_utf8(pair.key.to_vec()).unwrap();
        line += &match event.r#type {
            0 => format!(" {key}={}", String::from_utf8(pair.value.to_vec()).unwrap()),
            _ => format!(" {key}-"),
        };
        if let Some(prev) = event.prev_kv {
            line += &format!(" ({})", String::from_utf8(prev.value.to_vec()).unwrap());
        }
    }
    line
}

fn watch(key: &'static str, range_end: &'static str, start_revision: i64) -> WatchCreate {
    WatchCreate::from_request(&WatchCreateRequest {
        key: Bytes::from_static(key.as_bytes()),
        range_end: Bytes::from_static(range_end.as_bytes()),
        start_revision,
        ..WatchCreateRequest::default()
    })
}

#[test]
fn watcher_from_now_gets_what_comes_after() {
    let world = World::new();
    world.put("a", "0");
    let stream = world.stream();
    stream.create(watch("a", "", 0));
    world.put("a", "1");
    world.put("b", "1");
    world.put("a", "2");
    assert_eq!(
        world.told(&stream),
        ["0@2: created", "0@3: a=1", "0@5: a=2"]
    );
    assert_eq!(world.store.reads(), 0);
}

#[test]
fn watcher_from_the_past_catches_up_under_the_revision_of_the_sync() {
    let world = World::new();
    world.put("a", "1");
    world.put("b", "1");
    world.put("a", "2");
    let stream = world.stream();
    stream.create(watch("a", "", 2));
    stream.create(watch("b", "", 4));
    assert_eq!(
        world.told(&stream),
        ["0@4: created", "1@4: created", "0@4: a=1 a=2"]
    );
    world.put("a", "3");
    assert_eq!(world.told(&stream), ["0@5: a=3"]);
    assert_eq!(world.store.reads(), 1);
}

#[test]
fn long_past_comes_in_batches_of_a_thousand_revisions() {
    let world = World::new();
    for _ in 0..2500 {
        world.put("a", "v");
    }
    let stream = world.stream();
    stream.create(watch("a", "", 1));
    let outputs = world.drain(&stream);
    let sizes: Vec<_> = outputs[1..]
        .iter()
        .map(|o| (o.revision, o.events.as_ref().unwrap().len()))
        .collect();
    assert_eq!(sizes, [(2501, 1000), (2501, 1000), (2501, 500)]);
}

#[test]
fn watcher_from_the_future_gets_nothing_earlier() {
    let world = World::new();
    let stream = world.stream();
    stream.create(watch("a", "", 4));
    world.put("a", "2");
    world.put("a", "3");
    world.put("a", "4");
    assert_eq!(world.told(&stream), ["0@1: created", "0@4: a=4"]);
}

#[test]
fn failed_creates_are_created_and_canceled_without_id() {
    let world = World::new();
    let stream = world.stream();
    stream.create(watch("b", "b", 0));
    stream.create(watch("b", "a", 0));
    stream.create(watch("a", "", -1));
    stream.create(WatchCreate {
        watch_id: 5,
        ..watch("a", "", 0)
    });
    stream.create(WatchCreate {
        watch_id: 5,
        ..watch("a", "", 0)
    });
    stream.refuse("etcdserver: permission denied");
    assert_eq!(
        world.told(&stream),
        [
            "-1@1: created canceled \"mvcc: watcher range is empty\"",
            "-1@1: created canceled \"mvcc: watcher range is empty\"",
            "-1@1: created canceled \"etcdserver: mvcc: required revision has been compacted\"",
            "5@1: created",
            "-1@1: created canceled \"mvcc: duplicate watch ID provided on the WatchStream\"",
            "-1@1: created canceled \"etcdserver: permission denied\"",
        ]
    );
    assert_eq!(stream.watchers(), 1);
}

#[test]
fn empty_key_watches_the_zero_byte_or_everything_from_it() {
    let world = World::new();
    let stream = world.stream();
    stream.create(watch("", "", 0));
    stream.create(watch("", "\0", 0));
    world.put("\0", "1");
    world.put("a", "1");
    assert_eq!(
        world.told(&stream)[2..],
        ["0@2: \0=1", "1@2: \0=1", "1@3: a=1"]
    );
}

#[test]
fn chosen_ids_skip_those_in_use_and_an_id_may_come_again() {
    let world = World::new();
    let stream = world.stream();
    stream.create(WatchCreate {
        watch_id: 1,
        ..watch("a", "", 0)
    });
    assert_eq!(stream.create(watch("a", "", 0)), Some(0));
    assert_eq!(stream.create(watch("a", "", 0)), Some(2));
    stream.cancel(1);
    assert_eq!(
        stream.create(WatchCreate {
            watch_id: 1,
            ..watch("b", "", 0)
        }),
        Some(1)
    );
    world.drain(&stream);
    world.write(&[("a", Some("1")), ("b", Some("1"))]);
    let mut told = world.told(&stream);
    told.sort();
    assert_eq!(told, ["0@2: a=1", "1@2: b=1", "2@2: a=1"]);
}

#[test]
fn watch_below_the_compacted_revision_is_canceled_and_at_it_is_not() {
    let world = World::new();
    world.put("a", "1");
    world.write(&[("a", None)]);
    world.put("a", "2");
    world.store.compact(3);
    let stream = world.stream();
    stream.create(watch("a", "", 2));
    stream.create(watch("a", "", 3));
    let told = world.told(&stream);
    assert_eq!(
        told,
        [
            "0@4: created",
            "0@0: canceled compacted 3",
            "1@4: created",
            "1@4: a- a=2"
        ]
    );
}

#[test]
fn lagging_watcher_is_canceled_when_its_past_is_compacted() {
    let world = World::new();
    for _ in 0..5 {
        world.put("a", "v");
    }
    let stream = world.stream();
    stream.create(watch("a", "", 2));
    stream.create(watch("a", "", 6));
    world.store.compact(4);
    let told = world.told(&stream);
    assert_eq!(
        told,
        [
            "0@6: created",
            "1@6: created",
            "0@0: canceled compacted 4",
            "1@6: a=v"
        ]
    );
    assert_eq!(world.hub.stats().watchers, 1);
}

#[test]
fn idle_watcher_survives_compaction_and_a_replaced_store() {
    let world = World::new();
    let stream = world.stream();
    stream.create(watch("idle", "", 0));
    for _ in 0..5 {
        world.put("a", "v");
    }
    world.store.compact(5);
    let (revision, events) = world.store.prepare(&[("idle", Some("1"))]);
    world.store.show(revision, events);
    world.hub.restored(revision);
    world.put("idle", "2");
    assert_eq!(world.told(&stream), ["0@1: created", "0@8: idle=1 idle=2"]);
}

#[test]
fn watcher_is_canceled_if_a_replaced_store_has_lost_its_next_revision() {
    let world = World::new();
    let stream = world.stream();
    stream.create(watch("a", "", 0));
    for _ in 0..3 {
        let (revision, events) = world.store.prepare(&[("a", Some("v"))]);
        world.store.show(revision, events);
    }
    world.store.compact(4);
    world.hub.restored(4);
    assert_eq!(
        world.told(&stream),
        ["0@1: created", "0@0: canceled compacted 4"]
    );
}

#[test]
fn cancel_is_answered_once_and_unknown_ids_are_not() {
    let world = World::new();
    let stream = world.stream();
    stream.create(watch("a", "", 0));
    stream.cancel(0);
    stream.cancel(0);
    stream.cancel(9);
    world.put("a", "1");
    assert_eq!(world.told(&stream), ["0@1: created", "0@1: canceled"]);
}

#[test]
fn revision_arrives_whole_and_in_order() {
    let world = World::new();
    let stream = world.stream();
    stream.create(watch("a", "c", 0));
    world.write(&[
        ("b", Some("1")),
        ("x", Some("1")),
        ("a", Some("1")),
        ("b", None),
    ]);
    assert_eq!(world.told(&stream), ["0@1: created", "0@2: b=1 a=1 b-"]);
}

#[test]
fn filters_drop_events_and_empty_responses() {
    let world = World::new();
    let stream = world.stream();
    let no_put = EventFilters {
        no_put: true,
        no_delete: false,
    };
    let no_delete = EventFilters {
        no_put: false,
        no_delete: true,
    };
    stream.create(WatchCreate {
        filters: no_put,
        ..watch("a", "c", 0)
    });
    stream.create(WatchCreate {
        filters: no_delete,
        ..watch("a", "c", 0)
    });
    world.put("a", "1");
    world.write(&[("a", None), ("b", Some("1"))]);
    world.write(&[("b", None)]);
    assert_eq!(
        world.told(&stream)[2..],
        ["1@2: a=1", "0@3: a-", "1@3: b=1", "0@4: b-"]
    );
}

#[test]
fn previous_pairs_are_for_those_who_asked() {
    let world = World::new();
    let stream = world.stream();
    stream.create(WatchCreate {
        prev_kv: PrevKv::Keep,
        ..watch("a", "", 0)
    });
    stream.create(watch("a", "", 0));
    world.put("a", "1");
    world.put("a", "2");
    world.write(&[("a", None)]);
    let expect = [
        "0@2: a=1",
        "1@2: a=1",
        "0@3: a=2 (1)",
        "1@3: a=2",
        "0@4: a- (2)",
        "1@4: a-",
    ];
    assert_eq!(world.told(&stream)[2..], expect);
}

#[test]
fn writer_is_told_what_is_wanted() {
    let world = World::new();
    let stream = world.stream();
    stream.create(watch("a", "b", 0));
    stream.create(WatchCreate {
        prev_kv: PrevKv::Keep,
        ..watch("aa", "", 0)
    });
    let wants = |key: &[u8]| world.hub.capture().wants(key);
    assert_eq!(wants(b"a"), Interest::Events);
    assert_eq!(wants(b"aa"), Interest::EventsWithPrev);
    assert_eq!(wants(b"b"), Interest::None);
    stream.cancel(1);
    assert_eq!(wants(b"aa"), Interest::Events);
    drop(stream);
    assert_eq!(wants(b"a"), Interest::None);
    assert_eq!(world.hub.stats(), HubStats::default());
}

/// The parts a response must have been split into, by etcd's rule on whole messages.
fn parts_by_size(whole: &WatchResponse, limit: usize) -> Vec<usize> {
    if whole.encoded_len() < limit || whole.events.len() < 2 {
        return vec![whole.events.len()];
    }
    let (mut parts, mut sent) = (Vec::new(), 0);
    while sent < whole.events.len() {
        let mut part = WatchResponse {
            events: Vec::new(),
            fragment: true,
            ..whole.clone()
        };
        for event in &whole.events[sent..] {
            part.events.push(event.clone());
            if part.events.len() > 1 && part.encoded_len() >= limit {
                part.events.pop();
                break;
            }
        }
        sent += part.events.len();
        parts.push(part.events.len());
    }
    parts
}

#[test]
fn large_response_is_split_where_etcd_splits_it() {
    let values = [3, 400, 90, 91, 92, 93, 700, 5, 5, 5, 130];
    for limit in (20..1800).step_by(7) {
        let world = World::new();
        let stream = world.stream_with(limit);
        stream.create(WatchCreate {
            fragment: Fragment::Allowed,
            ..watch("a", "b", 0)
        });
        stream.create(watch("a", "b", 0));
        let values: Vec<String> = values.iter().map(|&n| "v".repeat(n)).collect();
        let changes: Vec<Change<'_>> = values.iter().map(|v| ("a", Some(&v[..]))).collect();
        world.write(&changes);
        let outputs = world.drain(&stream);
        let (parts, whole): (Vec<_>, Vec<_>) =
            outputs[2..].iter().partition(|output| output.watch_id == 0);
        assert_eq!(whole.len(), 1);
        let whole = WatchResponse {
            watch_id: 0,
            ..whole[0].to_response(&header())
        };
        let sizes: Vec<_> = parts
            .iter()
            .map(|o| o.events.as_ref().unwrap().len())
            .collect();
        assert_eq!(sizes, parts_by_size(&whole, limit), "limit {limit}");
        let flags: Vec<_> = parts.iter().map(|o| o.fragment).collect();
        assert_eq!(flags.iter().filter(|more| !**more).count(), 1);
        assert_eq!(flags.last(), Some(&false));
        let joined: Vec<Event> = parts
            .iter()
            .flat_map(|o| o.to_response(&header()).events)
            .collect();
        assert_eq!(joined, whole.events);
    }
}

#[test]
fn encoded_response_is_the_message() {
    let world = World::new();
    let stream = world.stream();
    stream.create(WatchCreate {
        prev_kv: PrevKv::Keep,
        ..watch("a", "c", 0)
    });
    stream.create(watch("a", "", 0));
    world.write(&[("a", Some("1")), ("b", Some("1"))]);
    world.write(&[("a", Some("2")), ("b", None)]);
    let mut outputs = world.drain(&stream);
    stream.cancel(0);
    stream.refuse("no");
    outputs.extend(world.drain(&stream));
    outputs.push(WatchOutput {
        compact_revision: 7,
        fragment: true,
        ..outputs[0].clone()
    });
    assert_eq!(outputs.len(), 9);
    for output in outputs {
        let mut encoded = Vec::new();
        output.encode(&header(), &mut encoded);
        assert_eq!(encoded, output.to_response(&header()).encode_to_vec());
    }
}

#[test]
fn progress_speaks_for_the_whole_stream_behind_all_its_events() {
    let world = World::new();
    let stream = world.stream();
    stream.create(watch("a", "", 0));
    stream.create(watch("b", "", 0));
    world.put("a", "1");
    world.put("x", "1");
    stream.request_progress();
    stream.request_progress();
    let told = world.told(&stream);
    assert_eq!(told[2..], ["0@2: a=1", "-1@3:", "-1@3:"]);
}

#[test]
fn progress_is_not_told_without_watchers() {
    let world = World::new();
    let stream = world.stream();
    stream.request_progress();
    assert_eq!(world.told(&stream), [""; 0]);
    stream.create(watch("a", "", 0));
    assert_eq!(world.told(&stream), ["0@1: created"]);
}

#[test]
fn progress_is_not_told_while_a_watcher_is_behind() {
    let world = World::new();
    world.put("a", "1");
    let stream = world.stream();
    stream.create(watch("a", "", 2));
    stream.create(watch("b", "", 0));
    stream.request_progress();
    // The read of the past has begun and not ended.
    let outputs = std::iter::from_fn(|| stream.try_next().unwrap());
    assert_eq!(
        outputs.map(|o| line(&o)).collect::<Vec<_>>(),
        ["0@2: created", "1@2: created"]
    );
    assert_eq!(world.told(&stream), ["0@2: a=1"]);
    stream.request_progress();
    assert_eq!(world.told(&stream), ["-1@2:"]);
}

#[test]
fn progress_is_not_told_before_a_future_start() {
    let world = World::new();
    let stream = world.stream();
    stream.create(watch("a", "", 2));
    stream.request_progress();
    assert_eq!(world.told(&stream), ["0@1: created"]);
    world.put("x", "1");
    stream.request_progress();
    assert_eq!(world.told(&stream), ["-1@2:"]);
}

#[test]
fn progress_waits_for_a_visible_revision_to_be_published() {
    let world = World::new();
    let stream = world.stream();
    stream.create(watch("a", "", 0));
    let (revision, events) = world.store.prepare(&[("a", Some("1"))]);
    world.store.show(revision, events.clone());
    stream.request_progress();
    assert_eq!(world.told(&stream), ["0@1: created"]);
    world
        .hub
        .publish(Arc::new(RevisionEvents::new(revision, events)));
    assert_eq!(world.told(&stream), ["0@2: a=1", "-1@2:"]);
}

#[test]
fn progress_is_told_to_a_stream_that_is_never_idle() {
    let world = World::new();
    let stream = world.stream();
    stream.create(watch("a", "", 0));
    for _ in 0..5 {
        world.put("a", "v");
    }
    stream.request_progress();
    let mut told = Vec::new();
    while !told.last().is_some_and(|l: &String| l.starts_with("-1")) {
        world.put("a", "w");
        told.push(line(&stream.try_next().unwrap().unwrap()));
        assert!(told.len() < 50, "progress was never told");
    }
    assert_eq!(told.last().unwrap(), "-1@6:");
}

#[test]
fn tick_is_for_watchers_that_asked_and_were_silent() {
    let world = World::new();
    let stream = world.stream();
    stream.create(WatchCreate {
        progress_notify: true,
        ..watch("a", "", 0)
    });
    stream.create(WatchCreate {
        progress_notify: true,
        ..watch("b", "", 0)
    });
    stream.create(watch("b", "", 0));
    stream.create(WatchCreate {
        progress_notify: true,
        ..watch("b", "", 9)
    });
    world.drain(&stream);
    world.put("a", "1");
    stream.tick();
    assert_eq!(world.told(&stream), ["0@2: a=1", "1@2:"]);
    stream.tick();
    assert_eq!(world.told(&stream), ["0@2:", "1@2:"]);
}

#[tokio::test]
async fn next_waits_for_events_and_ticks_by_itself() {
    let world = World::new();
    let stream = Arc::new(world.stream());
    stream.create(watch("a", "", 0));
    assert_eq!(line(&stream.next().await.unwrap()), "0@1: created");
    let waiting = tokio::spawn({
        let stream = stream.clone();
        async move { line(&stream.next().await.unwrap()) }
    });
    tokio::task::yield_now().await;
    world.put("a", "1");
    assert_eq!(waiting.await.unwrap(), "0@2: a=1");
    stream.create(WatchCreate {
        progress_notify: true,
        ..watch("b", "", 0)
    });
    assert_eq!(line(&stream.next().await.unwrap()), "1@2: created");
    assert_eq!(line(&stream.next().await.unwrap()), "1@2:");
    assert_eq!(line(&stream.next().await.unwrap()), "1@2:");
}

#[tokio::test]
async fn busy_stream_ticks_for_its_idle_watchers() {
    let world = World::new();
    let stream = world.stream();
    stream.create(watch("a", "", 0));
    stream.create(WatchCreate {
        progress_notify: true,
        ..watch("b", "", 0)
    });
    let mut told = String::new();
    while !told.starts_with("1@") || told.contains("created") {
        world.put("a", "v");
        world.put("a", "v");
        told = line(&stream.next().await.unwrap());
    }
    assert!(told.ends_with(':'), "{told} is progress");
}

#[test]
fn watcher_registered_while_the_writer_asks_misses_nothing() {
    let world = World::new();
    let stream = world.stream();
    let capture = world.hub.capture();
    let (revision, events) = world.store.prepare(&[("a", Some("1"))]);
    let nothing = wanted(&capture, &events);
    stream.create(watch("a", "", 0));
    assert_eq!(world.told(&stream), ["0@1: created"]);
    world.store.show(revision, events);
    world
        .hub
        .publish(Arc::new(RevisionEvents::new(revision, nothing)));
    drop(capture);
    world.put("a", "2");
    assert_eq!(world.told(&stream), ["0@3: a=1 a=2"]);
}

#[test]
fn capture_that_comes_to_nothing_leaves_watchers_synced() {
    let world = World::new();
    let stream = world.stream();
    let capture = world.hub.capture();
    stream.create(watch("a", "", 0));
    drop(capture);
    stream.request_progress();
    assert_eq!(world.told(&stream), ["0@1: created", "-1@1:"]);
    world.put("a", "1");
    assert_eq!(world.told(&stream), ["0@2: a=1"]);
    assert_eq!(world.store.reads(), 0);
}

#[test]
fn slow_stream_reads_the_store_and_the_ring_stays_bounded() {
    let world = World::with_history(10_000);
    let (slow, fast) = (world.stream(), world.stream());
    slow.create(watch("a", "", 0));
    slow.create(watch("other", "", 0));
    fast.create(watch("a", "", 0));
    world.drain(&fast);
    for i in 0..200 {
        world.put("a", &i.to_string());
        assert_eq!(world.drain(&fast).len(), 1);
        assert!(world.hub.stats().history_bytes <= 10_000);
    }
    let outputs = world.drain(&slow);
    assert_eq!(outputs.len(), 3);
    assert_eq!(
        (
            outputs[2].revision,
            outputs[2].events.as_ref().unwrap().len()
        ),
        (201, 200)
    );
    assert_eq!(world.store.reads(), 1);
    assert_eq!(world.hub.stats().slow_watchers, 0);
}

#[test]
fn store_that_cannot_be_read_fails_the_stream() {
    let world = World::new();
    world.put("a", "1");
    let stream = world.stream();
    stream.create(watch("a", "", 2));
    world.store.state.lock().broken = true;
    assert!(stream.try_next().unwrap().is_some_and(|o| o.created));
    assert!(stream.try_next().unwrap().is_none());
    world.jobs.lock().pop().unwrap()();
    assert!(matches!(stream.try_next(), Err(Error::Closed)));
}

#[test]
fn job_that_is_dropped_fails_the_stream() {
    let world = World::new();
    world.put("a", "1");
    let stream = world.stream();
    stream.create(watch("a", "", 2));
    assert!(stream.try_next().unwrap().is_some_and(|o| o.created));
    assert!(stream.try_next().unwrap().is_none());
    world.jobs.lock().clear();
    assert!(matches!(stream.try_next(), Err(Error::Closed)));
}

#[test]
fn ten_thousand_watchers_share_what_they_get() {
    let world = World::new();
    let stream = world.stream();
    for _ in 0..10_000 {
        stream.create(watch("a", "b", 0));
    }
    assert_eq!(world.drain(&stream).len(), 10_000);
    world.put("a", "1");
    let outputs = world.drain(&stream);
    assert_eq!(outputs.len(), 10_000);
    let frames = outputs[0].events.as_ref().unwrap().frames();
    for output in &outputs {
        assert_eq!(
            output.events.as_ref().unwrap().frames().as_ptr(),
            frames.as_ptr()
        );
    }
}
