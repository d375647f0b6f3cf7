//! The index records of a database, which a start reads: any bytes with a right checksum are loaded or are damage.

#![no_main]

use bytes::Bytes;
use kv_mvcc::backend::{Backend, EngineKind, Keyspace, Op, Options};
use kv_mvcc::{RangeQuery, Store, StoreOptions};
use kv_proto::key_range::KeyRange;
use libfuzzer_sys::fuzz_target;

fuzz_target!(|data: &[u8]| {
    let Some((&piece, mut rest)) = data.split_first() else {
        return;
    };
    let options = Options {
        engine: Some(EngineKind::Memory),
        ..Options::default()
    };
    let backend = Backend::open_in_memory(&Default::default(), options).expect("memory opens");
    let mut ops = Vec::new();
    let mut main = 1_i64;
    while let Some((&[step, flags], more)) = rest.split_first_chunk() {
        let (record, more) = more.split_at(more.len().min(usize::from(piece % 64)));
        rest = more;
        // A small step within or to the next revision, and a mark of deletion, or none.
        main += i64::from(step % 3);
        let mut key = Vec::from(main.to_be_bytes());
        key.push(b'_');
        key.extend_from_slice(&i64::from(flags >> 4).to_be_bytes());
        if flags & 1 == 1 {
            key.push(b't');
        }
        let key = Bytes::from(key);
        // Most records in the right format, so that what is inside is read.
        let mut index = vec![if flags & 2 == 0 { 1 } else { flags }];
        index.extend_from_slice(record);
        ops.push(Op::Put(Keyspace::Index, key.clone(), index.into()));
        ops.push(Op::Put(Keyspace::Rev, key, Bytes::copy_from_slice(record)));
    }
    ops.sort_by(|a, b| key_of(a).cmp(key_of(b)));
    backend.write(ops);
    if let Ok(store) = Store::open(backend.clone(), StoreOptions::default()) {
        let zero = Bytes::from_static(b"\0");
        let all = RangeQuery::new(KeyRange::new(zero.clone(), zero));
        // Values that are none are damage.
        let _ = store.range(&all);
        store.close();
    }
    backend.close().expect("memory closes");
});

fn key_of(op: &Op) -> &Bytes {
    match op {
        Op::Put(_, key, _) | Op::Delete(_, key) => key,
    }
}
