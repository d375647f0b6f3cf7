//! A put under watchers of its prefix: built, published, taken by every stream and encoded for every watcher.

use std::sync::Arc;
use std::time::Duration;

use bytes::{Bytes, BytesMut};
use criterion::{Criterion, Throughput, criterion_group, criterion_main};
use kv_benches::{filled_store, key, put, value};
use kv_mvcc::Store;
use kv_mvcc::watch::{EventFilters, Fragment, PrevKv, StreamOptions, WatchCreate, WatchStream};
use kv_proto::etcdserverpb::ResponseHeader;
use kv_proto::key_range::KeyRange;

fn watch_fanout(c: &mut Criterion) {
    let value = value(256);
    let header = ResponseHeader {
        cluster_id: 1,
        member_id: 1,
        revision: 0,
        raft_term: 1,
    };
    let mut group = c.benchmark_group("watch_fanout");
    group
        .warm_up_time(Duration::from_millis(300))
        .measurement_time(Duration::from_secs(1));
    for (name, streams, watchers) in [
        ("256B_10x10", 10, 10),
        ("256B_100x1", 100, 1),
        ("256B_1x1000", 1, 1000),
    ] {
        let store = filled_store(1, 256);
        let streams: Vec<WatchStream> = (0..streams)
            .map(|_| open(&store, header, watchers))
            .collect();
        let expected = streams.len() * watchers;
        let mut buffer = BytesMut::new();
        assert_eq!(
            drain(&streams, &header, &mut buffer),
            expected,
            "one answer to each create"
        );
        group.throughput(Throughput::Elements(expected as u64));
        group.bench_function(name, |b| {
            b.iter(|| {
                put(&store, key(0), &value);
                assert_eq!(
                    drain(&streams, &header, &mut buffer),
                    expected,
                    "one event a watcher"
                );
            });
        });
        store.close();
    }
    group.finish();
}

fn open(store: &Arc<Store>, header: ResponseHeader, watchers: usize) -> WatchStream {
    let options = StreamOptions {
        spawn: Arc::new(|job| job()),
        wake_group: None,
        progress_interval: Duration::from_secs(600),
        fragment_bytes_min: 2 << 20,
        header,
    };
    let stream = store.watch_hub().open_stream(store.clone(), options);
    for _ in 0..watchers {
        stream.create(WatchCreate {
            range: KeyRange::prefix(Bytes::from_static(b"/registry/pods/")),
            start_revision: 0,
            watch_id: 0,
            progress_notify: false,
            prev_kv: PrevKv::Drop,
            filters: EventFilters::default(),
            fragment: Fragment::Never,
        });
    }
    stream
}

/// Takes and encodes all responses there are; how many.
fn drain(streams: &[WatchStream], header: &ResponseHeader, buffer: &mut BytesMut) -> usize {
    let mut responses = 0;
    for stream in streams {
        while let Some(output) = stream.try_next().expect("a store that reads") {
            buffer.clear();
            output.encode(header, buffer);
            responses += 1;
        }
    }
    responses
}

criterion_group!(benches, watch_fanout);
criterion_main!(benches);
