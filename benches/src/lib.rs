//! What the micro-benches share: stores with reproducible contents.
//!
//! The benches in `benches/` measure one part each, without network, named `what/size`. Whole servers are compared by
//! `benches/compare`, with the load tool in `benches/load`.

use std::sync::Arc;

use bytes::Bytes;
use kv_mvcc::backend::{Backend, MemoryDisk, Options};
use kv_mvcc::{AppliedMark, Prev, Store, StoreOptions};
use rand::rngs::StdRng;
use rand::seq::SliceRandom;
use rand::{RngExt, SeedableRng};

/// Seed of all keys, values and orders.
pub const SEED: u64 = 1;

/// A store in memory with `keys` keys of [`key`], written in random order, each with a value of `value_bytes`.
///
/// Its log index is its revision, so a bench goes on with [`put`].
pub fn filled_store(keys: usize, value_bytes: usize) -> Arc<Store> {
    let backend = Backend::open_in_memory(&MemoryDisk::default(), Options::default())
        .expect("an empty disk opens");
    let store = Store::open(backend, StoreOptions::default()).expect("an empty store opens");
    let mut order: Vec<usize> = (0..keys).collect();
    order.shuffle(&mut StdRng::seed_from_u64(SEED));
    let value = value(value_bytes);
    for number in order {
        put(&store, key(number), &value);
    }
    store
}

/// A key as Kubernetes has them.
pub fn key(number: usize) -> Bytes {
    Bytes::from(format!("/registry/pods/default/pod-{number:08}"))
}

/// Random bytes.
pub fn value(bytes: usize) -> Vec<u8> {
    let mut value = vec![0; bytes];
    StdRng::seed_from_u64(SEED).fill(&mut value[..]);
    value
}

/// Random numbers of keys, to be used in turn.
pub fn random_numbers(keys: usize) -> Vec<usize> {
    let mut random = StdRng::seed_from_u64(SEED);
    (0..4096).map(|_| random.random_range(0..keys)).collect()
}

/// Writes one key as a log entry of its own.
pub fn put(store: &Store, key: Bytes, value: &[u8]) {
    let index = store.revision() as u64 + 1;
    let mut txn = store.write(AppliedMark::new(index, 1));
    txn.put(key, value, 0, Prev::Skip)
        .expect("a store in memory takes every put");
    txn.commit();
}
