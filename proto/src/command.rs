//! What one log entry carries: a fixed header and the body, an API message.
//!
//! ```text
//! 0          2             4            8            16               24
//! | kind u16 | version u16 | caller u32 | origin u64 | request id u64 | caller | body: protobuf of the kind ...
//!
//! caller     0 1, a user | 1 auth revision u64 | 9 name       absent when the field of its length is 0
//!            0 2, the proposing member itself                 (all little endian)
//! ```
//! Apply decides by the caller what is permitted, so one that cannot be read stops the member.
//!
//! Origin is the id of the proposing member; the request id is unique to it and to its process start. That
//! member's own apply loop answers the waiter the two name. A kind, version or body field that this build does not know is an error that stops
//! the member: a replica that guesses is worse than a stopped one. A stored fixture of each version
//! (`tests/fixtures/`) must apply to the same HashKV for ever.

use bytes::{Buf, BufMut, Bytes, BytesMut};
use prost::Message;

use crate::commandpb::{
    AuthDisable, AuthEnable, AuthUserAdd, AuthUserChangePassword, Authenticate, ClusterBegin,
    ClusterForce, ClusterVersionSet, DowngradeSet, MemberAdd, MemberPromote, MemberPublish,
    MemberRemove, MemberUpdate, QuotaAlarm,
};
use crate::etcdserverpb::{
    AlarmRequest, AuthRoleAddRequest, AuthRoleDeleteRequest, AuthRoleGrantPermissionRequest,
    AuthRoleRevokePermissionRequest, AuthUserDeleteRequest, AuthUserGrantRoleRequest,
    AuthUserRevokeRoleRequest, CompactionRequest, DeleteRangeRequest, LeaseCheckpointRequest,
    LeaseGrantRequest, LeaseRevokeRequest, PutRequest, TxnRequest,
};

/// The oldest command version this build applies.
pub const VERSION_MIN: u16 = 1;
/// The newest command version this build writes and applies; see [`version_max`].
const VERSION_MAX: u16 = 1;
/// Bytes of the fixed header.
pub const HEADER_BYTES: usize = 24;
/// First byte of a caller.
const CALLER_USER: u8 = 1;
const CALLER_MEMBER: u8 = 2;
/// Bytes of a user before its name.
const CALLER_USER_BYTES: usize = 9;

/// Who wants a command applied.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub enum Caller {
    /// Nobody said who they are.
    #[default]
    Nobody,
    /// The proposing member, for what it does by itself.
    Member,
    /// A user whose identity was checked before.
    User {
        /// The user's name; a certificate may have an empty one.
        name: String,
        /// Revision of the auth state that the identity was checked against, or that its token names.
        revision: u64,
    },
}

impl Caller {
    fn encoded_len(&self) -> usize {
        match self {
            Caller::Nobody => 0,
            Caller::Member => 1,
            Caller::User { name, .. } => CALLER_USER_BYTES + name.len(),
        }
    }

    fn encode_raw(&self, buf: &mut BytesMut) {
        match self {
            Caller::Nobody => {}
            Caller::Member => buf.put_u8(CALLER_MEMBER),
            Caller::User { name, revision } => {
                buf.put_u8(CALLER_USER);
                buf.put_u64_le(*revision);
                buf.put_slice(name.as_bytes());
            }
        }
    }

    fn decode(mut bytes: Bytes) -> Option<Caller> {
        if bytes.is_empty() {
            return Some(Caller::Nobody);
        }
        match bytes.get_u8() {
            CALLER_MEMBER if bytes.is_empty() => Some(Caller::Member),
            CALLER_USER => {
                let revision = bytes.try_get_u64_le().ok()?;
                let name = std::str::from_utf8(&bytes).ok()?.to_owned();
                Some(Caller::User { name, revision })
            }
            _ => None,
        }
    }
}

/// One command, decoded.
#[derive(Clone, Debug, PartialEq)]
pub struct Command {
    /// Member id of the proposer.
    pub origin: u64,
    /// Names the waiter on the proposing member; 0 when nobody waits.
    pub request_id: u64,
    /// On whose behalf; decides what is permitted while auth is enabled.
    pub caller: Caller,
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
    /// The caller is not one that this build can read.
    #[error("command kind {kind} has a caller that cannot be read")]
    Caller {
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
    (
        $(#[$doc:meta])* $set:ident, named $prefix:literal {
            $($number:literal $name:ident($message:ty),)*
            $(.. $group:ident($inner:ty),)?
        }
    ) => {
        $(#[$doc])*
        #[allow(missing_docs)]
        #[derive(Clone, Debug, PartialEq)]
        pub enum $set { $($name($message),)* $($group($inner),)? }

        impl $set {
            fn kind(&self) -> u16 {
                match self {
                    $($set::$name(_) => $number,)*
                    $($set::$group(inner) => inner.kind(),)?
                }
            }

            /// The kind's name, for metrics and logs.
            pub fn name(&self) -> &'static str {
                match self {
                    $($set::$name(_) => concat!($prefix, stringify!($name)),)*
                    $($set::$group(inner) => inner.name(),)?
                }
            }

            fn encoded_len(&self) -> usize {
                match self {
                    $($set::$name(m) => m.encoded_len(),)*
                    $($set::$group(inner) => inner.encoded_len(),)?
                }
            }

            fn encode_raw(&self, buf: &mut BytesMut) {
                match self {
                    $($set::$name(m) => m.encode(buf).expect("BytesMut grows as needed"),)*
                    $($set::$group(inner) => inner.encode_raw(buf),)?
                }
            }

            /// `None` if the kind is none of these.
            fn decode(kind: u16, bytes: &Bytes) -> Option<Result<$set, Error>> {
                match kind {
                    $($number => return Some(message::<$message>(kind, bytes.clone()).map($set::$name)),)*
                    _ => {}
                }
                let found = None;
                $(let found = found.or_else(|| <$inner>::decode(kind, bytes)).map(|inner| inner.map($set::$group));)?
                found
            }
        }
    };
}

/// The message of a kind.
fn message<M: Message + Default>(kind: u16, bytes: Bytes) -> Result<M, Error> {
    let len = bytes.len();
    let message = M::decode(bytes).map_err(|e| Error::Malformed {
        kind,
        reason: e.to_string(),
    })?;
    // prost skips what it does not know; a canonical encoding that comes out shorter had more in it.
    if message.encoded_len() != len {
        return Err(Error::UnknownField { kind });
    }
    Ok(message)
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
    /// What a command does; the number of each kind is part of the format.
    Body, named "" {
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
        34 Authenticate(Authenticate),
        60 QuotaAlarm(QuotaAlarm),
        .. Auth(AuthChange),
    }
}

commands! {
    /// A change of users, of roles, or of whether auth is enabled.
    AuthChange, named "Auth" {
        32 Enable(AuthEnable),
        33 Disable(AuthDisable),
        35 UserAdd(AuthUserAdd),
        36 UserDelete(AuthUserDeleteRequest),
        37 UserChangePassword(AuthUserChangePassword),
        38 UserGrantRole(AuthUserGrantRoleRequest),
        39 UserRevokeRole(AuthUserRevokeRoleRequest),
        40 RoleAdd(AuthRoleAddRequest),
        41 RoleDelete(AuthRoleDeleteRequest),
        42 RoleGrantPermission(AuthRoleGrantPermissionRequest),
        43 RoleRevokePermission(AuthRoleRevokePermissionRequest),
    }
}

impl Body {
    /// The command version that a member must know to apply this.
    pub fn version(&self) -> u16 {
        if later::needs_later_build(self) {
            return VERSION_MAX + 1;
        }
        1
    }
}

impl Command {
    /// The entry's bytes.
    pub fn encode(&self) -> Bytes {
        let caller_len = self.caller.encoded_len();
        let len = HEADER_BYTES + caller_len + self.body.encoded_len();
        let mut buf = BytesMut::with_capacity(len);
        buf.put_u16_le(self.body.kind());
        buf.put_u16_le(self.body.version());
        buf.put_u32_le(u32::try_from(caller_len).expect("a name is bounded by the request size"));
        buf.put_u64_le(self.origin);
        buf.put_u64_le(self.request_id);
        self.caller.encode_raw(&mut buf);
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
        let caller_len = bytes.get_u32_le() as usize;
        let origin = bytes.get_u64_le();
        let request_id = bytes.get_u64_le();
        if version < VERSION_MIN || version > version_max() {
            return Err(Error::Unknown { kind, version });
        }
        if caller_len > bytes.len() {
            return Err(Error::Caller { kind });
        }
        let caller = Caller::decode(bytes.split_to(caller_len)).ok_or(Error::Caller { kind })?;
        Ok(Command {
            origin,
            request_id,
            caller,
            body: Body::decode(kind, &bytes).unwrap_or(Err(Error::Unknown { kind, version }))?,
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
            caller: Caller::Nobody,
            body: Body::Put(put),
        }
    }

    fn user(name: &str, revision: u64) -> Caller {
        Caller::User {
            name: name.to_owned(),
            revision,
        }
    }

    #[test]
    fn what_is_encoded_decodes_to_the_same() {
        let callers = [
            Caller::Nobody,
            Caller::Member,
            user("alice", 7),
            user("", 1),
            user("", 0),
        ];
        for caller in callers {
            let command = Command { caller, ..put() };
            assert_eq!(Command::decode(command.encode()), Ok(command));
        }
        let of_auth = Command {
            body: Body::Auth(AuthChange::Enable(AuthEnable {})),
            ..put()
        };
        assert_eq!(Command::decode(of_auth.encode()), Ok(of_auth));
    }

    #[test]
    fn a_caller_longer_than_the_command_or_not_readable_is_refused() {
        let with_len = |len: u8| {
            let command = Command {
                caller: user("\u{e9}", 7),
                ..put()
            };
            let mut bytes = command.encode().to_vec();
            bytes[4] = len;
            Command::decode(bytes.into())
        };
        for len in [1, 8, 10, 200] {
            assert_eq!(with_len(len), Err(Error::Caller { kind: 1 }), "{len}");
        }
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
        assert_eq!(with(5, 1), Err(Error::Caller { kind: 1 }));
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
    fn the_bytes_of_a_caller_never_change() {
        let command = Command {
            caller: user("ann", 5),
            ..put()
        };
        let expect = b"\x01\0\x01\0\x0c\0\0\0\x03\0\0\0\0\0\0\0\x2a\0\0\0\0\0\0\0\x01\x05\0\0\0\0\0\0\0ann\x0a\x01k\x12\x01v\x18\x07";
        assert_eq!(&command.encode()[..], &expect[..]);
    }

    #[test]
    fn the_bytes_of_version_1_never_change() {
        let expect =
            b"\x01\0\x01\0\0\0\0\0\x03\0\0\0\0\0\0\0\x2a\0\0\0\0\0\0\0\x0a\x01k\x12\x01v\x18\x07";
        assert_eq!(&put().encode()[..], &expect[..]);
    }
}
