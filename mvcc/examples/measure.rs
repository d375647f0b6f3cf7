use bytes::Bytes;
use kv_mvcc::backend::*;
use kv_mvcc::*;
use kv_proto::key_range::KeyRange;
use std::time::{Duration, Instant};

fn cpu() -> Duration {
    let t = rustix::time::clock_gettime(rustix::time::ClockId::ThreadCPUTime);
    Duration::new(t.tv_sec as u64, t.tv_nsec as u32)
}
fn rss() -> String {
    std::fs::read_to_string("/proc/self/status")
        .unwrap()
        .lines()
        .filter(|l| l.starts_with("VmRSS") || l.starts_with("VmHWM"))
        .collect::<Vec<_>>()
        .join(" ")
}
fn main() {
    let n: u64 = std::env::args()
        .nth(1)
        .map_or(1_000_000, |a| a.parse().unwrap());
    let dir = tempfile::tempdir_in("/work/wt").unwrap();
    let opts = || Options {
        engine: Some(EngineKind::Redb),
        ..Options::default()
    };
    let sopts = StoreOptions {
        compaction_pause: Duration::from_millis(1),
        ..StoreOptions::default()
    };
    let store = Store::open(Backend::open(dir.path(), opts()).unwrap(), sopts).unwrap();
    let value = vec![7u8; 256];
    let key = |i: u64| {
        Bytes::from(format!(
            "/registry/pods/default/{:08}",
            i.wrapping_mul(7919) % n
        ))
    };
    let t = Instant::now();
    let mut spent = Duration::ZERO;
    for i in 0..n {
        while store.backend().is_full() {
            std::thread::sleep(Duration::from_millis(1));
        }
        let k = key(i);
        let c = cpu();
        let mut txn = store.write(AppliedMark::new(i + 1, 1));
        txn.put(k, &value, 0, Prev::Skip).unwrap();
        txn.commit();
        spent += cpu() - c;
    }
    println!(
        "create {n}: wall {:?}, cpu/put {:?}",
        t.elapsed(),
        spent / n as u32
    );
    store.backend().checkpoint().unwrap();
    let s = store.stats();
    println!(
        "index {} B/key (key 31 B), {}",
        s.index_bytes as f64 / n as f64,
        rss()
    );
    let spent = {
        let c = cpu();
        for i in 0..100_000 {
            let mut txn = store.write(AppliedMark::new(n + i + 1, 1));
            txn.put(key(i % 1000), &value, 0, Prev::Skip).unwrap();
            txn.commit();
            while store.backend().is_full() {
                std::thread::sleep(Duration::from_millis(1));
            }
        }
        cpu() - c
    };
    println!("overwrite 1000 hot keys: cpu/put {:?}", spent / 100_000);
    let spent = {
        let c = cpu();
        for i in 0..100_000 {
            store.write(AppliedMark::new(n + i + 100_001, 1)).commit();
        }
        cpu() - c
    };
    println!("empty commit: {:?}", spent / 100_000);
    let all = || RangeQuery::new(KeyRange::From(Bytes::from_static(b"\0")));
    let c = Instant::now();
    let count = store
        .range(&RangeQuery {
            count_only: true,
            ..all()
        })
        .unwrap()
        .count;
    println!("count {count}: {:?}", c.elapsed());
    let c = Instant::now();
    let count = store
        .range(&RangeQuery {
            count_only: true,
            revision: n as i64 / 2,
            ..all()
        })
        .unwrap()
        .count;
    println!("count in the past {count}: {:?}", c.elapsed());
    // 10k recent keys
    for i in 0..10_000u64 {
        let mut txn = store.write(AppliedMark::new(2_000_000 + i, 1));
        txn.put(
            Bytes::from(format!("/registry/zz/{i:08}")),
            &value,
            0,
            Prev::Skip,
        )
        .unwrap();
        txn.commit();
    }
    let q = RangeQuery::new(KeyRange::prefix(Bytes::from_static(b"/registry/zz/")));
    for _ in 0..2 {
        let c = cpu();
        let a = store.range(&q).unwrap();
        println!("list {} cached: cpu {:?}", a.kvs.len(), cpu() - c);
        let resp = kv_proto::etcdserverpb::RangeResponse {
            kvs: a.kvs,
            ..Default::default()
        };
        let c = cpu();
        let b = prost::Message::encode_to_vec(&resp);
        println!("  encode {} bytes: {:?}", b.len(), cpu() - c);
    }
    let k = RangeQuery {
        keys_only: true,
        ..q.clone()
    };
    let c = cpu();
    let a = store.range(&k).unwrap();
    println!("keys_only {}: {:?}", a.kvs.len(), cpu() - c);
    store.backend().checkpoint().unwrap();
    let q = RangeQuery {
        limit: 10_000,
        ..all()
    };
    let c = cpu();
    let a = store.range(&q).unwrap();
    println!("list {} engine: cpu {:?}", a.kvs.len(), cpu() - c);
    let one = RangeQuery::new(KeyRange::Single(Bytes::from_static(
        b"/registry/zz/00000500",
    )));
    let c = cpu();
    for _ in 0..100_000 {
        store.range(&one).unwrap();
    }
    println!("get cached: {:?}", (cpu() - c) / 100_000);
    let c = Instant::now();
    let h = store.hash_kv(0).unwrap();
    println!("hashkv {:x}: {:?}", h.hash, c.elapsed());
    let c = Instant::now();
    let handle = store
        .compact(store.revision(), AppliedMark::new(9_999_999, 1))
        .unwrap();
    println!("compact call {:?}", c.elapsed());
    let mut worst = Duration::ZERO;
    let mut puts = 0;
    while !handle.is_finished() {
        let p = Instant::now();
        let mut txn = store.write(AppliedMark::new(9_999_999, 1));
        txn.put(key(puts), &value, 0, Prev::Skip).unwrap();
        txn.commit();
        puts += 1;
        worst = worst.max(p.elapsed());
        std::thread::sleep(Duration::from_micros(200));
    }
    println!(
        "compaction finished {:?} removed {}, {puts} puts, worst put {worst:?}",
        c.elapsed(),
        store.stats().revisions_removed
    );
    store.check_invariants();
    let rev = store.revision();
    let hash = store.hash_kv(rev).unwrap();
    store.close();
    store.backend().close().unwrap();
    drop(store);
    for _ in 0..2 {
        let c = Instant::now();
        let b = Backend::open(dir.path(), opts()).unwrap();
        let tb = c.elapsed();
        let store = Store::open(b, sopts).unwrap();
        println!(
            "open: backend {tb:?}, store {:?}, rev {}, {}",
            c.elapsed() - tb,
            store.revision(),
            rss()
        );
        assert_eq!(store.revision(), rev);
        assert_eq!(store.hash_kv(rev).unwrap(), hash);
        store.check_invariants();
    }
}
