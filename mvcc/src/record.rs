//! What the engine stores for one revision: the value record and the index record.
//!
//! Both have the revision's key (see [`crate::revision`]), whose last byte marks a tombstone.
//!
//! ```text
//! keyspace Rev     mvccpb.KeyValue protobuf, fields ascending, zero ones omitted: these bytes are hashed by HashKV
//!                  put         1 key, 2 create_revision, 3 mod_revision, 4 version, 5 value, 6 lease
//!                  tombstone   1 key
//!
//! keyspace Index   what a start needs to rebuild the key index, without values
//!                  put         format: u8 = 1 | create_revision: varint | version: varint | lease: varint | key
//!                  tombstone   format: u8 = 1 | key
//! ```
//! A varint is LEB128 of the 64 bits, as in protobuf; at most 10 bytes. The key runs to the end of the record.
//!
//! Source: etcd 3.7 mvcc, put and delete; the index record is our own.

use bytes::Bytes;
use kv_proto::mvccpb::KeyValue;
use prost::Message;

use crate::revision::{Change, REVISION_LEN, Revision};

/// Version of the index record that is written; the only one there is.
const INDEX_FORMAT: u8 = 1;

const TAG_KEY: u8 = 1 << 3 | 2;
const TAG_CREATE_REVISION: u8 = 2 << 3;
const TAG_MOD_REVISION: u8 = 3 << 3;
const TAG_VERSION: u8 = 4 << 3;
const TAG_VALUE: u8 = 5 << 3 | 2;
const TAG_LEASE: u8 = 6 << 3;

/// The engine's form of one change; all parts share one allocation.
#[derive(Clone, Debug)]
pub(crate) struct Stored {
    /// Key in both keyspaces.
    pub(crate) revision_key: Bytes,
    /// Value in the revision keyspace.
    pub(crate) value: Bytes,
    /// Value in the index keyspace.
    pub(crate) index: Bytes,
}

/// The fields of a put.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Put<'a> {
    pub(crate) key: &'a [u8],
    pub(crate) value: &'a [u8],
    pub(crate) create_revision: i64,
    pub(crate) version: i64,
    pub(crate) lease: i64,
}

/// An index record, read.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct IndexRecord<'a> {
    pub(crate) key: &'a [u8],
    /// Zero for a tombstone, like the two below.
    pub(crate) create_revision: i64,
    pub(crate) version: i64,
    pub(crate) lease: i64,
}

impl Stored {
    /// The records of `put` at `revision`.
    pub(crate) fn put(revision: Revision, put: Put<'_>) -> Stored {
        let bound = REVISION_LEN + 2 * put.key.len() + put.value.len() + 9 * (1 + VARINT_MAX);
        let mut bytes = Vec::with_capacity(bound);
        bytes.extend_from_slice(&revision.key(Change::Put));
        let value_at = bytes.len();
        write_bytes(&mut bytes, TAG_KEY, put.key);
        write_integer(&mut bytes, TAG_CREATE_REVISION, put.create_revision);
        write_integer(&mut bytes, TAG_MOD_REVISION, revision.main);
        write_integer(&mut bytes, TAG_VERSION, put.version);
        write_bytes(&mut bytes, TAG_VALUE, put.value);
        write_integer(&mut bytes, TAG_LEASE, put.lease);
        let index_at = bytes.len();
        write_index_put(&mut bytes, put);
        Stored::split(bytes, value_at, index_at)
    }

    /// The records of a tombstone of `key` at `revision`.
    pub(crate) fn tombstone(revision: Revision, key: &[u8]) -> Stored {
        let mut bytes = Vec::with_capacity(REVISION_LEN + 1 + 2 * key.len() + 2 + VARINT_MAX);
        bytes.extend_from_slice(&revision.key(Change::Tombstone));
        let value_at = bytes.len();
        write_bytes(&mut bytes, TAG_KEY, key);
        let index_at = bytes.len();
        bytes.push(INDEX_FORMAT);
        bytes.extend_from_slice(key);
        Stored::split(bytes, value_at, index_at)
    }

    fn split(bytes: Vec<u8>, value_at: usize, index_at: usize) -> Stored {
        let bytes = Bytes::from(bytes);
        Stored {
            revision_key: bytes.slice(..value_at),
            value: bytes.slice(value_at..index_at),
            index: bytes.slice(index_at..),
        }
    }
}

impl IndexRecord<'_> {
    /// Reads a record whose key says that it is a `change`; `None` if the bytes are not one.
    pub(crate) fn decode(change: Change, record: &[u8]) -> Option<IndexRecord<'_>> {
        let (&format, mut rest) = record.split_first()?;
        if format != INDEX_FORMAT {
            return None;
        }
        match change {
            Change::Tombstone => Some(IndexRecord {
                key: rest,
                create_revision: 0,
                version: 0,
                lease: 0,
            }),
            Change::Put => {
                let create_revision = read_varint(&mut rest)?;
                let version = read_varint(&mut rest)?;
                let lease = read_varint(&mut rest)?;
                let sane = create_revision > 0 && version > 0;
                sane.then_some(IndexRecord {
                    key: rest,
                    create_revision,
                    version,
                    lease,
                })
            }
        }
    }
}

/// The index record of a change whose value record says `kv`.
pub(crate) fn index_record(change: Change, kv: &KeyValue) -> Bytes {
    let mut bytes = Vec::with_capacity(1 + 3 * VARINT_MAX + kv.key.len());
    match change {
        Change::Put => write_index_put(
            &mut bytes,
            Put {
                key: &kv.key,
                value: &[],
                create_revision: kv.create_revision,
                version: kv.version,
                lease: kv.lease,
            },
        ),
        Change::Tombstone => {
            bytes.push(INDEX_FORMAT);
            bytes.extend_from_slice(&kv.key);
        }
    }
    bytes.into()
}

/// Reads a value record without copying its key and value; `None` if the bytes are not one.
pub(crate) fn decode_value(record: &Bytes) -> Option<KeyValue> {
    KeyValue::decode(record.clone()).ok()
}

/// The key in a value record, which is its first field; `None` if it is not one.
pub(crate) fn value_key(record: &[u8]) -> Option<&[u8]> {
    let (&tag, mut rest) = record.split_first()?;
    if tag != TAG_KEY {
        return None;
    }
    let len = usize::try_from(read_varint(&mut rest)?).ok()?;
    rest.get(..len)
}

const VARINT_MAX: usize = 10;

fn write_index_put(out: &mut Vec<u8>, put: Put<'_>) {
    out.push(INDEX_FORMAT);
    write_varint(out, put.create_revision);
    write_varint(out, put.version);
    write_varint(out, put.lease);
    out.extend_from_slice(put.key);
}

fn write_bytes(out: &mut Vec<u8>, tag: u8, bytes: &[u8]) {
    if !bytes.is_empty() {
        out.push(tag);
        write_varint(
            out,
            i64::try_from(bytes.len()).expect("a slice's length fits i64"),
        );
        out.extend_from_slice(bytes);
    }
}

fn write_integer(out: &mut Vec<u8>, tag: u8, value: i64) {
    if value != 0 {
        out.push(tag);
        write_varint(out, value);
    }
}

fn write_varint(out: &mut Vec<u8>, value: i64) {
    let mut rest = value.cast_unsigned();
    while rest >= 0x80 {
        out.push(rest as u8 | 0x80);
        rest >>= 7;
    }
    out.push(rest as u8);
}

fn read_varint(from: &mut &[u8]) -> Option<i64> {
    let mut value = 0u64;
    for position in 0..VARINT_MAX {
        let byte = *from.get(position)?;
        let bits = u64::from(byte & 0x7f);
        if position == VARINT_MAX - 1 && bits > 1 {
            return None;
        }
        value |= bits << (7 * position);
        if byte < 0x80 {
            *from = &from[position + 1..];
            return Some(value.cast_signed());
        }
    }
    None
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn index_record_of_format_1_stays_readable() {
        let stored = Stored::put(
            Revision::new(300, 2),
            Put {
                key: b"foo",
                value: b"bar",
                create_revision: 200,
                version: 3,
                lease: -1,
            },
        );

        let fixture = b"\x01\xc8\x01\x03\xff\xff\xff\xff\xff\xff\xff\xff\xff\x01foo";
        assert_eq!(&stored.index[..], fixture);
        let read = IndexRecord {
            key: b"foo",
            create_revision: 200,
            version: 3,
            lease: -1,
        };
        assert_eq!(IndexRecord::decode(Change::Put, fixture), Some(read));
        assert_eq!(
            &Stored::tombstone(Revision::new(300, 2), b"foo").index[..],
            b"\x01foo"
        );
    }

    #[test]
    fn bytes_that_are_no_index_record_are_refused() {
        for record in [
            &b""[..],
            b"\x02\x01\x01\0k",
            b"\x01",
            b"\x01\x80",
            b"\x01\0\x01\0k",
            b"\x01\x01\0\0k",
        ] {
            assert_eq!(
                IndexRecord::decode(Change::Put, record),
                None,
                "{record:02x?}"
            );
        }
        let overlong = [&[INDEX_FORMAT][..], &[0xff; 9], &[2]].concat();
        assert_eq!(IndexRecord::decode(Change::Put, &overlong), None);
    }

    proptest! {
        #[test]
        fn value_record_is_what_a_protobuf_encoder_writes(
            key in prop::collection::vec(any::<u8>(), 1..200),
            value in prop::collection::vec(any::<u8>(), 0..300),
            (create_revision, main, version) in (1..i64::MAX, 1..i64::MAX, 1..i64::MAX),
            lease in any::<i64>(),
        ) {
            let put = Put { key: &key, value: &value, create_revision, version, lease };
            let expected = KeyValue {
                key: Bytes::copy_from_slice(&key),
                create_revision,
                mod_revision: main,
                version,
                value: Bytes::copy_from_slice(&value),
                lease,
            };

            let stored = Stored::put(Revision::new(main, 0), put);

            prop_assert_eq!(&stored.value[..], &expected.encode_to_vec()[..]);
            prop_assert_eq!(decode_value(&stored.value), Some(expected));
            prop_assert_eq!(value_key(&stored.value), Some(&key[..]));
            let record = IndexRecord { key: &key, create_revision, version, lease };
            prop_assert_eq!(IndexRecord::decode(Change::Put, &stored.index), Some(record));
            let kv = decode_value(&stored.value).unwrap();
            prop_assert_eq!(index_record(Change::Put, &kv), stored.index);

            let tombstone = Stored::tombstone(Revision::new(main, 0), &key);
            let expected = KeyValue { key: key.clone().into(), ..KeyValue::default() };
            prop_assert_eq!(index_record(Change::Tombstone, &expected), tombstone.index);
            prop_assert_eq!(decode_value(&tombstone.value), Some(expected));
        }

        #[test]
        fn index_decoder_takes_any_bytes(record in prop::collection::vec(any::<u8>(), 0..40)) {
            let _ = IndexRecord::decode(Change::Put, &record);
            let _ = IndexRecord::decode(Change::Tombstone, &record);
        }
    }
}
