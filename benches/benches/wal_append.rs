//! Appends with their fsync, on the file system of the temporary folder.

use std::sync::{Arc, mpsc};

use bytes::Bytes;
use criterion::{Criterion, Throughput, criterion_group, criterion_main};
use kv_wal::fs::RealFs;
use kv_wal::{Config, Identity, Record, Sync, Wal};

fn wal_append(c: &mut Criterion) {
    let mut group = c.benchmark_group("wal_append");
    for (name, bytes, entries) in [
        ("256B_x1", 256, 1),
        ("256B_x64", 256, 64),
        ("4KiB_x64", 4096, 64),
    ] {
        let dir = tempfile::tempdir().expect("a temporary folder");
        let identity = Identity {
            cluster_id: 1,
            member_id: 1,
            incarnation: 1,
        };
        let wal = Wal::create(
            Arc::new(RealFs),
            Config::new(dir.path().join("wal"), identity),
        )
        .expect("a new log");
        let payload = Bytes::from(kv_benches::value(bytes));
        let (done, synced) = mpsc::channel();
        let mut last = 0;
        group.throughput(Throughput::Bytes((bytes * entries) as u64));
        group.bench_function(name, |b| {
            b.iter(|| {
                let records = (0..entries)
                    .map(|_| {
                        last += 1;
                        Record::Entry {
                            index: last,
                            term: 1,
                            payload: payload.clone(),
                        }
                    })
                    .collect();
                let done = done.clone();
                wal.append(
                    records,
                    Sync::Yes,
                    Some(Box::new(move |result| {
                        done.send(result).expect("the bench waits");
                    })),
                )
                .expect("an open log");
                synced.recv().expect("a completion").expect("an fsync");
                // Old segments go, as they do behind a checkpoint.
                if last % 65_536 == 0 {
                    wal.purge_files(last).expect("purged files");
                }
            });
        });
        wal.close().expect("a closed log");
    }
    group.finish();
}

criterion_group!(benches, wal_append);
criterion_main!(benches);
