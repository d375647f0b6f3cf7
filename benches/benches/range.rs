//! Reads of keys with their values, from the buffer and the cache of newest values.

use std::hint::black_box;

use bytes::Bytes;
use criterion::{Criterion, Throughput, criterion_group, criterion_main};
use kv_benches::{filled_store, key, random_numbers};
use kv_mvcc::RangeQuery;
use kv_proto::key_range::KeyRange;

const KEYS: usize = 10_000;
const VALUE_BYTES: usize = 256;

fn range(c: &mut Criterion) {
    let store = filled_store(KEYS, VALUE_BYTES);
    let mut group = c.benchmark_group("range");

    let gets: Vec<RangeQuery> = random_numbers(KEYS)
        .into_iter()
        .map(|number| RangeQuery::new(KeyRange::Single(key(number))))
        .collect();
    let mut next = gets.iter().cycle();
    group.throughput(Throughput::Elements(1));
    group.bench_function("get/256B", |b| {
        b.iter(|| {
            let answer = store
                .range(next.next().expect("a cycle"))
                .expect("an answer");
            assert_eq!(answer.kvs.len(), 1, "one key");
        });
    });

    for (name, limit) in [("list/256B_x500", 500), ("list/256B_x10k", 10_000)] {
        let list = RangeQuery {
            limit,
            ..RangeQuery::new(KeyRange::From(Bytes::from_static(b"\0")))
        };
        group.throughput(Throughput::Elements(limit as u64));
        group.bench_function(name, |b| {
            b.iter(|| {
                let answer = store.range(black_box(&list)).expect("an answer");
                assert_eq!(answer.kvs.len(), limit as usize, "keys of the list");
            });
        });
    }
    group.finish();
    store.close();
}

criterion_group!(benches, range);
criterion_main!(benches);
