//! What clients send to the JSON gateway, and what is answered: any bytes are taken or refused.

#![no_main]

use std::sync::LazyLock;

use bytes::Bytes;
use kv_server::http::gateway::{Gateway, Values};
use libfuzzer_sys::fuzz_target;

static GATEWAY: LazyLock<Gateway> = LazyLock::new(Gateway::new);
static PATHS: LazyLock<Vec<&'static str>> = LazyLock::new(|| {
    let mut paths: Vec<_> = GATEWAY.paths().collect();
    paths.sort_unstable();
    paths
});

fuzz_target!(|data: &[u8]| {
    let [path, cut, data @ ..] = data else { return };
    let path = PATHS[usize::from(*path) % PATHS.len()];
    let binding = GATEWAY.binding(path).expect("its own path");
    // What is taken is a message of the method.
    if let Ok(message) = binding.request(data) {
        assert!(binding.request(data).expect("taken before") == message);
    }
    let _ = binding.response(Bytes::copy_from_slice(data));
    // However a body comes in pieces, the same objects are found in it.
    let whole = objects(&[data]);
    let (front, back) = data.split_at(usize::from(*cut).min(data.len()));
    assert_eq!(whole, objects(&[front, back]));
});

/// The objects of a body, and whether something else came.
fn objects(pieces: &[&[u8]]) -> (Vec<Bytes>, bool) {
    let mut values = Values::default();
    let mut found = Vec::new();
    for piece in pieces {
        values.push(piece);
        loop {
            match values.next_object() {
                Ok(Some(object)) => found.push(object),
                Ok(None) => break,
                Err(_) => return (found, true),
            }
        }
    }
    (found, false)
}
