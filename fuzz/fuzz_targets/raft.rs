//! What raft stores in the log and sends to peers: any bytes are taken or refused.

#![no_main]

use bytes::Bytes;
use kv_raft::{encoding, wire};
use libfuzzer_sys::fuzz_target;

fuzz_target!(|data: &[u8]| {
    let Some((which, data)) = data.split_first() else {
        return;
    };
    let bytes = Bytes::copy_from_slice(data);
    // Refusals are as good as any answer; panics are not.
    match which % 6 {
        0 => drop(encoding::check_body(bytes)),
        1 => drop(encoding::check_vote(bytes)),
        2 => drop(encoding::check_committed(bytes)),
        3 => drop(encoding::check_stored_membership(bytes)),
        4 => drop(wire::check_append(bytes)),
        _ => _ = wire::check_message(bytes),
    }
});
