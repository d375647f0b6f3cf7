//! A segment's contents: once as they are, once as the bodies of records whose frames and checksums are right.

#![no_main]

use crc32fast::Hasher;
use kv_wal::record::decode_all;
use libfuzzer_sys::fuzz_target;

const SEED: u32 = 0x1234_5678;
const BASE: u64 = 80;

fuzz_target!(|data: &[u8]| {
    let _ = decode_all(data, SEED, BASE);
    let Some((shape, rest)) = data.split_first() else {
        return;
    };
    // Each piece is a kind and a body.
    let records: Vec<&[u8]> = rest.chunks(usize::from(*shape) + 1).collect();
    let (decoded, bad) = decode_all(&batch(&records), SEED, BASE);
    // A batch is taken whole or not at all.
    let expected = if bad.is_some() { 0 } else { records.len() };
    assert_eq!(decoded.len(), expected, "{bad:?}");
});

/// A batch of those records, as `record.rs` draws it.
fn batch(records: &[&[u8]]) -> Vec<u8> {
    let padded = |body: usize| (12 + body).next_multiple_of(8);
    let len: usize = records.iter().map(|r| padded(r.len() - 1)).sum();
    let mut bytes = Vec::new();
    bytes.extend_from_slice(b"kvB1");
    bytes.extend_from_slice(&(len as u32).to_le_bytes());
    bytes.extend_from_slice(&BASE.to_le_bytes());
    bytes.extend_from_slice(&BASE.to_le_bytes());
    bytes.extend_from_slice(&SEED.to_le_bytes());
    let mut crc = continued(SEED, &[&bytes]);
    bytes.extend_from_slice(&crc.to_le_bytes());
    for record in records {
        let (kind, body) = (record[0], &record[1..]);
        let (len, kind) = ((body.len() as u32).to_le_bytes(), [kind, 0, 0, 0]);
        crc = continued(crc, &[&len, &kind, body]);
        let start = bytes.len();
        bytes.extend_from_slice(&len);
        bytes.extend_from_slice(&crc.to_le_bytes());
        bytes.extend_from_slice(&kind);
        bytes.extend_from_slice(body);
        bytes.resize(start + padded(body.len()), 0);
    }
    bytes
}

fn continued(crc: u32, parts: &[&[u8]]) -> u32 {
    let mut hasher = Hasher::new_with_initial(crc);
    parts.iter().for_each(|part| hasher.update(part));
    hasher.finalize()
}
