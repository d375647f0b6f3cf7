//! Write transactions of the store: what apply does for an entry, engine commits in the background included.

use std::time::Duration;

use criterion::{Criterion, Throughput, criterion_group, criterion_main};
use kv_benches::{filled_store, key, put, random_numbers, value};
use kv_mvcc::{AppliedMark, Prev};

const KEYS: usize = 10_000;

fn txn(c: &mut Criterion) {
    let store = filled_store(KEYS, 256);
    let keys: Vec<_> = random_numbers(KEYS).into_iter().map(key).collect();
    let value = value(256);
    let mut next = keys.iter().cycle();
    let mut group = c.benchmark_group("txn");
    // Every revision stays in memory, so a long measurement would measure an ever larger store.
    group
        .warm_up_time(Duration::from_millis(300))
        .measurement_time(Duration::from_secs(1));

    group.throughput(Throughput::Elements(1));
    group.bench_function("put/256B", |b| {
        b.iter(|| put(&store, next.next().expect("a cycle").clone(), &value));
    });
    group.bench_function("create/256B", |b| {
        let mut number = KEYS;
        b.iter(|| {
            number += 1;
            put(&store, key(number), &value);
        });
    });
    group.throughput(Throughput::Elements(64));
    group.bench_function("puts/256B_x64", |b| {
        b.iter(|| {
            let mut txn = store.write(AppliedMark::new(store.revision() as u64 + 1, 1));
            for _ in 0..64 {
                let key = next.next().expect("a cycle").clone();
                txn.put(key, &value, 0, Prev::Skip).expect("a put");
            }
            txn.commit()
        });
    });
    group.finish();
    store.close();
}

criterion_group!(benches, txn);
criterion_main!(benches);
