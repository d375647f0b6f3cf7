//! Snapshot streams: any bytes, and a whole stream with some bytes changed and a new sum, are installed or refused.

#![no_main]

use bytes::Bytes;
use kv_mvcc::backend::{Backend, MemoryDisk, Options};
use kv_mvcc::{CompactionDriver, RangeQuery, Store, StoreOptions};
use kv_proto::key_range::KeyRange;
use libfuzzer_sys::fuzz_target;

const STREAM: &[u8] = include_bytes!("../../mvcc/tests/fixtures/snapshot-v1");

fuzz_target!(|data: &[u8]| {
    install(data.to_vec());
    let mut changed = STREAM.to_vec();
    let sum_at = changed.len() - 4;
    for edit in data.chunks_exact(3) {
        let at = usize::from(u16::from_le_bytes([edit[0], edit[1]])) % sum_at;
        changed[at] ^= edit[2];
    }
    let sum = crc32fast::hash(&changed[..sum_at]);
    changed[sum_at..].copy_from_slice(&sum.to_le_bytes());
    install(changed);
});

fn install(stream: Vec<u8>) {
    let backend = Backend::open_in_memory(&MemoryDisk::default(), Options::default())
        .expect("an empty database in memory");
    let options = StoreOptions {
        compaction_driver: CompactionDriver::Caller,
        ..StoreOptions::default()
    };
    let store = Store::open(backend, options).expect("an empty store");
    let mut stream = Some(Bytes::from(stream));
    let receiver = store.receiver().expect("an empty database in memory");
    let received = receiver.receive(|| Ok(stream.take()));
    if received.is_ok_and(|received| store.install(received).is_ok()) {
        let all = RangeQuery::new(KeyRange::From(Bytes::from_static(b"\0")));
        // What it says may be damage to a reader, and is no panic.
        let _ = store.range(&all);
        let _ = store.hash_kv(0);
    }
}
