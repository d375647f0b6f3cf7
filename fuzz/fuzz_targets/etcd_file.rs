//! Backend files of etcd: any bytes, and a snapshot of etcd with some bytes changed, are read or refused.

#![no_main]

use kv_mvcc::backend::{Backend, MemoryDisk, Options};
use kv_mvcc::etcd_file::EtcdFile;
use kv_mvcc::{CompactionDriver, ImportOptions, RangeQuery, Store, StoreOptions, import};
use kv_proto::key_range::KeyRange;
use libfuzzer_sys::fuzz_target;

const SNAPSHOT: &[u8] = include_bytes!("../../mvcc/tests/fixtures/etcd-3.7.3-snapshot");

fuzz_target!(|data: &[u8]| {
    read(data.to_vec());
    let mut changed = SNAPSHOT.to_vec();
    for edit in data.chunks_exact(3) {
        let at = usize::from(u16::from_le_bytes([edit[0], edit[1]])) % changed.len();
        changed[at] ^= edit[2];
    }
    read(changed);
});

fn read(bytes: Vec<u8>) {
    let Ok(file) = EtcdFile::from_bytes(bytes.into(), "fuzzed") else {
        return;
    };
    let _ = file.check_trailer();
    let _ = file.status();
    let backend = Backend::open_in_memory(&MemoryDisk::default(), Options::default())
        .expect("an empty database in memory");
    let options = ImportOptions {
        applied: 1,
        term: 1,
        ..ImportOptions::default()
    };
    if import(&backend, &file, &options).is_err() {
        return;
    }
    let options = StoreOptions {
        compaction_driver: CompactionDriver::Caller,
        ..StoreOptions::default()
    };
    let store = Store::open(backend, options).expect("what was taken in can be opened");
    store.check_invariants();
    let all = RangeQuery::new(KeyRange::From(bytes::Bytes::from_static(b"\0")));
    store.range(&all).expect("what was taken in can be read");
}
