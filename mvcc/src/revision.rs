//! Names of changes: revisions, and the key form under which the engine stores them.
//!
//! `main` counts transactions and is what clients see; `sub` counts the changes inside one transaction from 0.
//! Stored revisions order as their bytes do, because both numbers are non-negative and big endian:
//!
//! ```text
//! put        main: u64 BE | '_' | sub: u64 BE           17 bytes
//! tombstone  main: u64 BE | '_' | sub: u64 BE | 't'     18 bytes
//! ```
//!
//! Source: etcd 3.7 mvcc, revision and bucket key; these bytes are part of HashKV and of the snapshot format.

use std::fmt;
use std::ops::Deref;

/// One change of one key.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Revision {
    /// The transaction; what clients call "the revision".
    pub main: i64,
    /// The change inside the transaction, from 0.
    pub sub: i64,
}

/// What a stored revision did to its key.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Change {
    /// The key has a value from here on.
    Put,
    /// The key does not exist from here on.
    Tombstone,
}

/// Bytes of a put's key; a tombstone's is one longer.
pub(crate) const REVISION_LEN: usize = 17;

const TOMBSTONE_LEN: usize = REVISION_LEN + 1;
const SEPARATOR: u8 = b'_';
const TOMBSTONE_MARK: u8 = b't';

/// A revision as the engine's key; compares as its bytes do.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct RevKey {
    // Unused bytes are zero and a tombstone's mark is not, so the derived order is that of the slices.
    bytes: [u8; TOMBSTONE_LEN],
    len: u8,
}

impl Revision {
    /// The revision `main`, change `sub`.
    pub const fn new(main: i64, sub: i64) -> Revision {
        Revision { main, sub }
    }

    /// The engine's key for this revision.
    pub fn key(self, change: Change) -> RevKey {
        assert!(self.main >= 0, "a stored revision is not negative: {self}");
        assert!(self.sub >= 0, "a stored revision is not negative: {self}");
        let mut bytes = [0; TOMBSTONE_LEN];
        bytes[..8].copy_from_slice(&self.main.to_be_bytes());
        bytes[8] = SEPARATOR;
        bytes[9..REVISION_LEN].copy_from_slice(&self.sub.to_be_bytes());
        match change {
            Change::Put => RevKey {
                bytes,
                len: REVISION_LEN as u8,
            },
            Change::Tombstone => {
                bytes[REVISION_LEN] = TOMBSTONE_MARK;
                RevKey {
                    bytes,
                    len: TOMBSTONE_LEN as u8,
                }
            }
        }
    }

    /// Reads a key of the revision or index keyspace; `None` if the bytes are not one.
    pub fn decode(key: &[u8]) -> Option<(Revision, Change)> {
        let change = match key.len() {
            REVISION_LEN => Change::Put,
            TOMBSTONE_LEN if key[REVISION_LEN] == TOMBSTONE_MARK => Change::Tombstone,
            _ => return None,
        };
        let main = i64::from_be_bytes(key[..8].try_into().ok()?);
        let sub = i64::from_be_bytes(key[9..REVISION_LEN].try_into().ok()?);
        (key[8] == SEPARATOR && main >= 0 && sub >= 0).then_some((Revision { main, sub }, change))
    }
}

impl fmt::Display for Revision {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}.{}", self.main, self.sub)
    }
}

impl Deref for RevKey {
    type Target = [u8];

    fn deref(&self) -> &[u8] {
        &self.bytes[..usize::from(self.len)]
    }
}

impl AsRef<[u8]> for RevKey {
    fn as_ref(&self) -> &[u8] {
        self
    }
}

impl fmt::Debug for RevKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match Revision::decode(self) {
            Some((revision, Change::Put)) => write!(f, "{revision}"),
            Some((revision, Change::Tombstone)) => write!(f, "{revision}t"),
            None => write!(f, "{:02x?}", &self[..]),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn key_form_is_that_of_etcd() {
        let put = Revision::new(0x0102, 3).key(Change::Put);
        assert_eq!(&put[..], b"\0\0\0\0\0\0\x01\x02_\0\0\0\0\0\0\0\x03");

        let tombstone = Revision::new(0x0102, 3).key(Change::Tombstone);
        assert_eq!(&tombstone[..], b"\0\0\0\0\0\0\x01\x02_\0\0\0\0\0\0\0\x03t");
    }

    #[test]
    fn other_bytes_are_not_a_revision() {
        let good = Revision::new(7, 1).key(Change::Tombstone);
        let mut bad_mark = good.to_vec();
        bad_mark[17] = b'x';
        let mut bad_separator = good.to_vec();
        bad_separator[8] = b'-';
        let mut negative = good.to_vec();
        negative[0] = 0x80;
        for key in [&bad_mark[..], &bad_separator, &negative, &good[..16], b""] {
            assert_eq!(Revision::decode(key), None, "{key:02x?}");
        }
    }

    proptest! {
        #[test]
        fn keys_round_trip_and_order_as_revisions(
            a in (0..i64::MAX, 0..i64::MAX),
            b in (0..i64::MAX, 0..i64::MAX),
        ) {
            let (a, b) = (Revision::new(a.0, a.1), Revision::new(b.0, b.1));
            prop_assert_eq!(Revision::decode(&a.key(Change::Put)), Some((a, Change::Put)));
            prop_assert_eq!(Revision::decode(&a.key(Change::Tombstone)), Some((a, Change::Tombstone)));
            prop_assert_eq!(a.cmp(&b), a.key(Change::Put).cmp(&b.key(Change::Put)));
            prop_assert_eq!(a.cmp(&b), a.key(Change::Put)[..].cmp(&b.key(Change::Put)[..]));
        }
    }
}
