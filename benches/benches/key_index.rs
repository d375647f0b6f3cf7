//! The ordered map of keys, through the store: look-ups and counts that touch no value.

use std::hint::black_box;

use bytes::Bytes;
use criterion::{Criterion, Throughput, criterion_group, criterion_main};
use kv_benches::{filled_store, key, random_numbers};
use kv_mvcc::{AppliedMark, RangeQuery};
use kv_proto::key_range::KeyRange;

const KEYS: usize = 20_000;

fn key_index(c: &mut Criterion) {
    let store = filled_store(KEYS, 1);
    let keys: Vec<Bytes> = random_numbers(KEYS).into_iter().map(key).collect();
    let all = || RangeQuery {
        count_only: true,
        ..RangeQuery::new(KeyRange::From(Bytes::from_static(b"\0")))
    };
    let mut group = c.benchmark_group("key_index");

    group.throughput(Throughput::Elements(1));
    // A transaction that is not committed changes nothing; its compares read the index.
    let txn = store.write(AppliedMark::new(store.revision() as u64 + 1, 1));
    let mut next = keys.iter().cycle();
    group.bench_function("get/20k", |b| {
        b.iter(|| {
            txn.get(next.next().expect("a cycle"))
                .expect("a key that exists")
        });
    });
    drop(txn);

    group.throughput(Throughput::Elements(KEYS as u64));
    group.bench_function("count/20k", |b| {
        b.iter(|| {
            let answer = store.range(black_box(&all())).expect("an answer");
            assert_eq!(answer.count, KEYS as i64, "count of {KEYS} keys");
        });
    });
    let past = RangeQuery {
        revision: store.revision() - (KEYS / 2) as i64,
        ..all()
    };
    group.bench_function("count_in_the_past/20k", |b| {
        b.iter(|| {
            let answer = store.range(black_box(&past)).expect("an answer");
            assert_eq!(
                answer.count,
                (KEYS / 2) as i64,
                "count of half of {KEYS} keys"
            );
        });
    });
    group.finish();
    store.close();
}

criterion_group!(benches, key_index);
criterion_main!(benches);
