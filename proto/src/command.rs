//! What one log entry carries: a fixed header and the body, an API message.
//!
//! ```text
//! 0          2             4       8            16               24
//! | kind u16 | version u16 | 0 u32 | origin u64 | request id u64 | body: protobuf of the kind ...   (little endian)
//! ```
//! Origin is the id of the proposing member; the request id is unique to it and to its process start. That
//! member's own apply loop answers the waiter the two name. A kind, version or body field that this build does not know is an error that stops
//! the member: a replica that guesses is worse than a stopped one. A stored fixture of each version
//! (`tests/fixtures/`) must apply to the same HashKV for ever.

use bytes::{Buf, BufMut, Bytes, BytesMut};
use prost::Message;

use crate::commandpb::{
    ClusterBegin, ClusterForce, ClusterVersionSet, DowngradeSet, MemberAdd, MemberPromote,
    MemberPublish, MemberRemove, MemberUpdate, QuotaAlarm,
};
use crate::etcdserverpb::{
    AlarmRequest, CompactionRequest, DeleteRangeRequest, LeaseCheckpointRequest, LeaseGrantRequest,
    LeaseRevokeRequest, PutRequest, TxnRequest,
};

/// The oldest command version this build applies.
pub const VERSION_MIN: u16 = 1;
/// The newest command version this build writes and applies; see [`version_max`].
const VERSION_MAX: u16 = 1;
/// Bytes of the fixed header.
pub const HEADER_BYTES: usize = 24;

/// One command, decoded.
#[derive(Clone, Debug, PartialEq)]
pub struct Command {
    /// Member id of the proposer.
    pub origin: u64,
    /// Names the waiter on the proposing member; 0 when nobody waits.
    pub request_id: u64,
    /// What to do.
    pub body: Body,
}

/// Why bytes are not a command this build can apply.
#[derive(Debug, thiserror::Error, PartialEq, Eq)]
pub enum Error {
    /// The entry is shorter than the fixed header.
    #[error("command of {len} bytes is shorter than its {HEADER_BYTES}-byte header")]
    Short {
        /// Bytes there were.
        len: usize,
    },
    /// A newer build wrote the entry.
    #[error(
        "command kind {kind} version {version} is newer than this build, which knows up to version {}: \
         start a build that supports version {version}",
        version_max()
    )]
    Unknown {
        /// Kind number found.
        kind: u16,
        /// Version found.
        version: u16,
    },
    /// The body has a field this build does not know.
    #[error("command kind {kind} has a field this build does not know: start a newer build")]
    UnknownField {
        /// Kind number found.
        kind: u16,
    },
    /// The body is not the message its kind says.
    #[error("command kind {kind}: {reason}")]
    Malformed {
        /// Kind number found.
        kind: u16,
        /// What the decoder said.
        reason: String,
    },
}

macro_rules! commands {
    ($($number:literal $name:ident($message:ty),)*) => {
        /// What a command does; the number of each kind is part of the format.
        #[allow(missing_docs)]
        #[derive(Clone, Debug, PartialEq)]
        pub enum Body { $($name($message),)* }

        impl Body {
            /// The command version that a member must know to apply this.
            pub fn version(&self) -> u16 {
                if later::needs_later_build(self) {
                    return VERSION_MAX + 1;
                }
                1
            }

            fn kind(&self) -> u16 {
                match self { $(Body::$name(_) => $number,)* }
            }

            /// The kind's name, for metrics and logs.
            pub fn name(&self) -> &'static str {
                match self { $(Body::$name(_) => stringify!($name),)* }
            }

            fn encoded_len(&self) -> usize {
                match self { $(Body::$name(m) => m.encoded_len(),)* }
            }

            fn encode_raw(&self, buf: &mut BytesMut) {
                match self { $(Body::$name(m) => m.encode(buf).expect("BytesMut grows as needed"),)* }
            }

            fn decode(kind: u16, version: u16, bytes: Bytes) -> Result<Body, Error> {
                let len = bytes.len();
                match kind {
                    $($number => {
                        let message = <$message>::decode(bytes)
                            .map_err(|e| Error::Malformed { kind, reason: e.to_string() })?;
                        // prost skips what it does not know; a canonical encoding that comes out shorter had more in it.
                        if message.encoded_len() != len {
                            return Err(Error::UnknownField { kind });
                        }
                        Ok(Body::$name(message))
                    })*
                    _ => Err(Error::Unknown { kind, version }),
                }
            }
        }
    };
}

/// The newest command version this build writes and applies.
pub fn version_max() -> u16 {
    if later::is_pretended() {
        return VERSION_MAX + 1;
    }
    VERSION_MAX
}

#[doc(hidden)]
pub mod later {
    //! A build of the future, for tests of rolling upgrades: one command version more, which puts of keys that begin
    //! with [`KEY_PREFIX`] need. Only a program of the tests pretends to be one.

    use std::sync::atomic::{AtomicBool, Ordering};

    use super::Body;

    /// Puts of such keys are commands of the further version.
    pub const KEY_PREFIX: &[u8] = b"later/";

    static PRETENDED: AtomicBool = AtomicBool::new(false);

    /// From now on this process is the later build.
    pub fn pretend() {
        PRETENDED.store(true, Ordering::Relaxed);
    }

    /// Whether this process is the later build.
    pub fn is_pretended() -> bool {
        PRETENDED.load(Ordering::Relaxed)
    }

    pub(super) fn needs_later_build(body: &Body) -> bool {
        is_pretended() && matches!(body, Body::Put(put) if put.key.starts_with(KEY_PREFIX))
    }
}

commands! {
    1 Put(PutRequest),
    2 DeleteRange(DeleteRangeRequest),
    3 Txn(TxnRequest),
    4 Compaction(CompactionRequest),
    5 LeaseGrant(LeaseGrantRequest),
    6 LeaseRevoke(LeaseRevokeRequest),
    7 LeaseCheckpoint(LeaseCheckpointRequest),
    8 Alarm(AlarmRequest),
    9 MemberPublish(MemberPublish),
    10 ClusterVersionSet(ClusterVersionSet),
    11 MemberAdd(MemberAdd),
    12 MemberPromote(MemberPromote),
    13 MemberRemove(MemberRemove),
    14 MemberUpdate(MemberUpdate),
    20 ClusterBegin(ClusterBegin),
    24 DowngradeSet(DowngradeSet),
    25 ClusterForce(ClusterForce),
    60 QuotaAlarm(QuotaAlarm),
}

impl Command {
    /// The entry's bytes.
    pub fn encode(&self) -> Bytes {
        let mut buf = BytesMut::with_capacity(HEADER_BYTES + self.body.encoded_len());
        buf.put_u16_le(self.body.kind());
        buf.put_u16_le(self.body.version());
        buf.put_u32_le(0);
        buf.put_u64_le(self.origin);
        buf.put_u64_le(self.request_id);
        self.body.encode_raw(&mut buf);
        buf.freeze()
    }

    /// Reads an entry's bytes; keys and values are slices of `bytes`.
    pub fn decode(mut bytes: Bytes) -> Result<Command, Error> {
        if bytes.len() < HEADER_BYTES {
            return Err(Error::Short { len: bytes.len() });
        }
        let kind = bytes.get_u16_le();
        let version = bytes.get_u16_le();
        let reserved = bytes.get_u32_le();
        let origin = bytes.get_u64_le();
        let request_id = bytes.get_u64_le();
        if version < VERSION_MIN || version > version_max() || reserved != 0 {
            return Err(Error::Unknown { kind, version });
        }
        Ok(Command {
            origin,
            request_id,
            body: Body::decode(kind, version, bytes)?,
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn put() -> Command {
        let put = PutRequest {
            key: "k".into(),
            value: "v".into(),
            lease: 7,
            ..Default::default()
        };
        Command {
            origin: 3,
            request_id: 42,
            body: Body::Put(put),
        }
    }

    #[test]
    fn what_is_encoded_decodes_to_the_same() {
        assert_eq!(Command::decode(put().encode()), Ok(put()));
    }

    #[test]
    fn newer_versions_kinds_and_fields_are_refused() {
        let with = |at: usize, byte: u8| {
            let mut b = put().encode().to_vec();
            b[at] = byte;
            Command::decode(b.into())
        };
        assert_eq!(
            with(2, 9),
            Err(Error::Unknown {
                kind: 1,
                version: 9
            })
        );
        assert_eq!(
            with(0, 200),
            Err(Error::Unknown {
                kind: 200,
                version: 1
            })
        );
        assert_eq!(
            with(5, 1),
            Err(Error::Unknown {
                kind: 1,
                version: 1
            })
        );
        let mut longer = put().encode().to_vec();
        longer.extend_from_slice(&[0xf8, 0x01, 0x01]); // field 31, varint 1
        assert_eq!(
            Command::decode(longer.into()),
            Err(Error::UnknownField { kind: 1 })
        );
        assert_eq!(
            Command::decode(Bytes::from_static(b"abc")),
            Err(Error::Short { len: 3 })
        );
    }

    #[test]
    fn the_bytes_of_version_1_never_change() {
        let expect =
            b"\x01\0\x01\0\0\0\0\0\x03\0\0\0\0\0\0\0\x2a\0\0\0\0\0\0\0\x0a\x01k\x12\x01v\x18\x07";
        assert_eq!(&put().encode()[..], &expect[..]);
    }
}
