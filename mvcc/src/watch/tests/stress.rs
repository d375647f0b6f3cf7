//! Random programs of writes, watches, cancels, compactions and slow readers, each response checked against
//! a model: what a watcher got must be exactly what it should have got up to there.

use std::collections::{HashMap, HashSet};

use super::*;

/// xorshift64*: the same program for the same seed.
struct Dice(u64);

impl Dice {
    fn below(&mut self, n: u64) -> u64 {
        self.0 ^= self.0 >> 12;
        self.0 ^= self.0 << 25;
        self.0 ^= self.0 >> 27;
        (self.0.wrapping_mul(0x2545_f491_4f6c_dd1d) >> 33) % n
    }

    fn one_in(&mut self, n: u64) -> bool {
        self.below(n) == 0
    }

    fn pick<T: Copy>(&mut self, from: &[T]) -> T {
        from[self.below(from.len() as u64) as usize]
    }
}

/// One watcher as its client knows it.
struct Client {
    create: WatchCreate,
    /// Asked for and not yet answered.
    revision_at_create: i64,
    created: bool,
    /// Everything up to here was delivered, or precedes the watch.
    delivered: i64,
    /// Events of the fragments so far.
    parts: Vec<Event>,
}

struct ClientStream {
    stream: WatchStream,
    watchers: HashMap<i64, Client>,
    /// Ids lost to compaction that the client has not canceled too.
    compacted: HashSet<i64>,
    /// How rarely it takes responses.
    laziness: u64,
}

struct Program {
    world: World,
    dice: Dice,
    seed: u64,
    /// Every event there ever was, by revision, also the compacted ones.
    log: BTreeMap<i64, Vec<Event>>,
    streams: Vec<ClientStream>,
    checked: usize,
    progress: usize,
    compacted_away: usize,
}

const KEYS: [&str; 7] = ["a", "aa", "ab", "b", "ba", "c", "d"];
const RANGES: [(&str, &str); 9] = [
    ("a", ""),
    ("aa", ""),
    ("a", "b"),
    ("a", "c"),
    ("b", "\0"),
    ("\0", "\0"),
    ("d", ""),
    ("c", "e"),
    ("zz", ""),
];

impl Program {
    fn new(seed: u64) -> Program {
        let mut dice = Dice(seed.wrapping_mul(0x9e37_79b9_7f4a_7c15) | 1);
        // Often so small that slow streams fall out of it.
        let world = World::with_history(dice.pick(&[1_000, 5_000, 1 << 20]));
        world.store.state.lock().read_span_max = dice.pick(&[0, 0, 3, 20]) as i64;
        Program {
            world,
            dice,
            seed,
            log: BTreeMap::new(),
            streams: Vec::new(),
            checked: 0,
            progress: 0,
            compacted_away: 0,
        }
    }

    fn run(mut self, steps: usize) -> Program {
        for _ in 0..steps {
            match self.dice.below(20) {
                0..9 => self.write(),
                9 if self.dice.one_in(4) => self.restore(),
                10 if self.dice.one_in(3) => self.compact(),
                11 => self.run_jobs(),
                _ => self.act(),
            }
        }
        for i in 0..self.streams.len() {
            self.finish(i);
        }
        self
    }

    /// One transaction, with streams acting at each of its stages.
    fn write(&mut self) {
        let hub = self.world.hub.clone();
        let capture = hub.capture();
        self.maybe_act();
        let mut changes: Vec<(&str, Option<String>)> = Vec::new();
        for _ in 0..=self.dice.below(4) {
            let value = (!self.dice.one_in(4)).then(|| self.dice.below(1000).to_string());
            changes.push((self.dice.pick(&KEYS), value));
        }
        let changes: Vec<_> = changes.iter().map(|(k, v)| (*k, v.as_deref())).collect();
        let (revision, events) = self.world.store.prepare(&changes);
        let mut published = Vec::new();
        for event in &events {
            published.extend(wanted(&capture, std::slice::from_ref(event)));
            self.maybe_act();
        }
        if self.dice.one_in(10) {
            return; // It came to nothing.
        }
        self.log.insert(revision, events.clone());
        self.world.store.show(revision, events);
        self.maybe_act();
        hub.publish(Arc::new(RevisionEvents::new(revision, published)));
        self.maybe_act();
    }

    /// The store moves on by some revisions without the hub being told of each.
    fn restore(&mut self) {
        for _ in 0..self.dice.below(4) {
            let (revision, events) = self
                .world
                .store
                .prepare(&[(self.dice.pick(&KEYS), Some("r"))]);
            self.log.insert(revision, events.clone());
            self.world.store.show(revision, events);
        }
        self.world.hub.restored(self.world.store.current());
    }

    fn compact(&mut self) {
        let (compacted, current) = (self.world.store.compacted(), self.world.store.current());
        if compacted < current {
            let by = 1 + self.dice.below((current - compacted) as u64) as i64;
            self.world.store.compact(compacted + by);
        }
    }

    fn run_jobs(&mut self) {
        let jobs = std::mem::take(&mut *self.world.jobs.lock());
        jobs.into_iter().for_each(|job| job());
    }

    fn maybe_act(&mut self) {
        if self.dice.one_in(4) {
            self.act();
        }
    }

    /// Something a client does.
    fn act(&mut self) {
        if self.streams.len() < 3 {
            let laziness = self.dice.pick(&[1, 1, 8, 40]);
            let stream = self.world.stream_with(self.dice.pick(&[40, 200, 1 << 20]));
            self.streams.push(ClientStream {
                stream,
                watchers: HashMap::new(),
                compacted: HashSet::new(),
                laziness,
            });
        }
        let i = self.dice.below(self.streams.len() as u64) as usize;
        match self.dice.below(12) {
            0..3 => self.create(i),
            3 => {
                let ids: Vec<i64> = self.streams[i].watchers.keys().copied().collect();
                if let Some(&id) = ids.iter().min() {
                    self.streams[i].stream.cancel(id);
                    // What is on the way may still arrive, up to the cancel.
                    self.take(i, usize::MAX);
                    assert!(
                        !self.streams[i].watchers.contains_key(&id),
                        "cancel was answered"
                    );
                }
            }
            4 => self.streams[i].stream.request_progress(),
            5 => self.streams[i].stream.tick(),
            6 if self.dice.one_in(6) => {
                self.streams.swap_remove(i);
            }
            _ => {
                if self.dice.below(self.streams[i].laziness) == 0 {
                    let count = self.dice.pick(&[1, 3, usize::MAX]);
                    self.take(i, count);
                }
            }
        }
        self.world.hub.stats();
    }

    fn create(&mut self, i: usize) {
        let current = self.world.store.current();
        let (key, end) = self.dice.pick(&RANGES);
        let flip = |dice: &mut Dice| dice.one_in(3);
        let start_revision = match self.dice.below(4) {
            0 => 0,
            1 => current + self.dice.below(6) as i64,
            _ => 1 + self.dice.below(current as u64) as i64,
        };
        let dice = &mut self.dice;
        let create = WatchCreate {
            prev_kv: if flip(dice) {
                PrevKv::Keep
            } else {
                PrevKv::Drop
            },
            filters: EventFilters {
                no_put: dice.one_in(6),
                no_delete: dice.one_in(6),
            },
            fragment: if flip(dice) {
                Fragment::Allowed
            } else {
                Fragment::Never
            },
            progress_notify: flip(dice),
            ..watch(key, end, start_revision)
        };
        let stream = &mut self.streams[i];
        let compacted = self.world.store.compacted();
        let id = stream.stream.create(create.clone());
        match id {
            None => assert!(
                start_revision != 0 && start_revision < compacted,
                "create failed"
            ),
            Some(id) => {
                let client = Client {
                    delivered: start_revision - 1,
                    create,
                    revision_at_create: current,
                    created: false,
                    parts: Vec::new(),
                };
                assert!(
                    stream.watchers.insert(id, client).is_none(),
                    "id {id} is in use"
                );
            }
        }
    }

    fn take(&mut self, i: usize, count: usize) {
        for _ in 0..count {
            let Some(output) = self.streams[i].stream.try_next().unwrap() else {
                break;
            };
            self.check(i, &output);
        }
    }

    /// Lets the stream come to rest; then nothing may be missing.
    fn finish(&mut self, i: usize) {
        self.streams[i].stream.request_progress();
        loop {
            self.take(i, usize::MAX);
            if self.world.jobs.lock().is_empty() {
                break;
            }
            self.run_jobs();
        }
        let current = self.world.store.current();
        for (id, client) in &self.streams[i].watchers {
            let missing = self.expected(client, current);
            assert_eq!(
                missing,
                [],
                "seed {}: watcher {id} of stream {i} lacks events",
                self.seed
            );
        }
    }

    /// What the watcher is to get next, up to and with `through`.
    fn expected(&self, client: &Client, through: i64) -> Vec<Event> {
        if client.delivered >= through {
            return Vec::new();
        }
        let range = (Bound::Excluded(client.delivered), Bound::Included(through));
        let events = self.log.range(range).flat_map(|(_, events)| events);
        let passes = |event: &&Event| {
            let delete = event.r#type != 0;
            client
                .create
                .range
                .contains(&event.kv.as_ref().unwrap().key)
                && !(if delete {
                    client.create.filters.no_delete
                } else {
                    client.create.filters.no_put
                })
        };
        let strip = |event: &Event| match client.create.prev_kv {
            PrevKv::Keep => event.clone(),
            PrevKv::Drop => Event {
                prev_kv: None,
                ..event.clone()
            },
        };
        events.filter(passes).map(strip).collect()
    }

    fn check(&mut self, i: usize, output: &WatchOutput) {
        let place = format!("seed {} stream {i}: {}", self.seed, line(output));
        let current = self.world.store.current();
        assert!(output.revision <= current, "{place}: revision is to come");
        self.checked += 1;
        if output.watch_id == NO_WATCH_ID {
            assert!(!output.created, "{place}: no create fails here");
            for client in self.streams[i].watchers.values() {
                // One whose created response comes later knows nothing of this one.
                if client.created {
                    assert_eq!(
                        self.expected(client, output.revision),
                        [],
                        "{place}: too early"
                    );
                    assert!(
                        client.create.start_revision <= output.revision,
                        "{place}: future"
                    );
                }
            }
            self.progress += 1;
            return;
        }
        if output.compact_revision != 0 {
            self.streams[i].compacted.insert(output.watch_id);
        }
        let Some(mut client) = self.streams[i].watchers.remove(&output.watch_id) else {
            // Below the compacted revision from the start, or the client's own cancel after that.
            assert!(
                output.created
                    || output.compact_revision != 0
                    || output.canceled && self.streams[i].compacted.remove(&output.watch_id),
                "{place}: unknown id"
            );
            return;
        };
        if output.canceled {
            if output.compact_revision != 0 {
                assert!(
                    client.delivered + 1 < output.compact_revision,
                    "{place}: not behind"
                );
                assert_eq!(output.revision, 0, "{place}");
                self.compacted_away += 1;
            }
            return;
        }
        if output.created {
            assert!(!client.created, "{place}: created twice");
            client.created = true;
            if client.create.start_revision == 0 {
                assert!(
                    client.revision_at_create <= output.revision,
                    "{place}: begins early"
                );
                client.delivered = output.revision;
            }
        } else if let Some(batch) = &output.events {
            assert!(client.created, "{place}: events before created");
            client.parts.extend(batch.events());
            if !output.fragment {
                let got = std::mem::take(&mut client.parts);
                let last = got.last().unwrap().kv.as_ref().unwrap().mod_revision;
                assert!(
                    last <= output.revision,
                    "{place}: events from after its revision"
                );
                assert_eq!(got, self.expected(&client, last), "{place}");
                client.delivered = last;
            }
        } else {
            assert!(
                client.create.progress_notify,
                "{place}: did not ask for progress"
            );
            assert_eq!(
                self.expected(&client, output.revision),
                [],
                "{place}: too early"
            );
            self.progress += 1;
        }
        self.streams[i].watchers.insert(output.watch_id, client);
    }
}

#[test]
fn every_watcher_gets_exactly_its_events() {
    let (mut checked, mut progress, mut compacted_away) = (0, 0, 0);
    for seed in 0..400 {
        let program = Program::new(seed).run(400);
        checked += program.checked;
        progress += program.progress;
        compacted_away += program.compacted_away;
        let stats = program.world.hub.stats();
        let watchers: usize = program.streams.iter().map(|s| s.watchers.len()).sum();
        assert_eq!(
            (stats.watchers, stats.streams),
            (watchers as u64, program.streams.len() as u64)
        );
        drop(program.streams);
        let stats = program.world.hub.stats();
        assert_eq!(
            (stats.watchers, stats.streams, stats.slow_watchers),
            (0, 0, 0),
            "seed {seed}"
        );
    }
    assert!(checked > 20_000, "only {checked} responses");
    assert!(progress > 500, "only {progress} progress responses");
    assert!(
        compacted_away > 100,
        "only {compacted_away} watchers lost to compaction"
    );
}

/// The writer on its own thread, each stream on another, reads of the store on a third kind.
#[test]
fn writer_and_streams_on_threads_lose_nothing() {
    const REVISIONS: i64 = 3000;
    let world = World::with_history(20_000);
    let runtime = tokio::runtime::Builder::new_multi_thread()
        .worker_threads(3)
        .enable_time()
        .build()
        .unwrap();
    let handle = runtime.handle().clone();
    let mut readers = Vec::new();
    for n in 0..4 {
        let blocking = handle.clone();
        let stream = world.hub.open_stream(
            world.store.clone(),
            StreamOptions {
                spawn: Arc::new(move |job| drop(blocking.spawn_blocking(job))),
                wake_group: None,
                progress_interval: Duration::from_millis(1),
                fragment_bytes_min: 1 << 20,
                header: header(),
            },
        );
        readers.push(handle.spawn(async move {
            for (key, end, start) in [("a", "b", 1), ("\0", "\0", 1), ("c", "", 500)] {
                stream.create(watch(key, end, start));
            }
            let mut seen: HashMap<i64, Vec<i64>> = HashMap::new();
            let mut ends = 0;
            while ends < 2 {
                let output = stream.next().await.unwrap();
                for event in output.events.iter().flat_map(|batch| batch.events()) {
                    let pair = event.kv.unwrap();
                    ends += usize::from(pair.key == "a-end");
                    seen.entry(output.watch_id)
                        .or_default()
                        .push(pair.mod_revision);
                }
                if n == 0 {
                    tokio::task::yield_now().await;
                }
            }
            seen
        }));
    }
    for i in 2..REVISIONS {
        world.put(["a", "b", "c"][i as usize % 3], "v");
    }
    world.put("a-end", "v");
    for reader in readers {
        let seen = runtime.block_on(reader).unwrap();
        let of_key = |n: i64| (2..REVISIONS).filter(move |r| r % 3 == n);
        assert_eq!(seen[&0], of_key(0).chain([REVISIONS]).collect::<Vec<_>>());
        assert_eq!(seen[&1], (2..=REVISIONS).collect::<Vec<_>>());
        let c: Vec<_> = of_key(2).filter(|r| *r >= 500).collect();
        let got = seen.get(&2).cloned().unwrap_or_default();
        // The reader stops at the last revision, which is not of this key: all or a beginning of it.
        assert!(c.starts_with(&got), "watcher of c got something else");
    }
}
