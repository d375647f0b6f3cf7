//! `[key, range_end)`: single key, prefix, from-key and all keys; the only place that knows `"\0"`.
//!
//! `range_end` empty means the single key `key`; one zero byte means every key `>= key`;
//! `range_end <= key` otherwise means no key at all. Source: etcd API v3.7, Range.

use bytes::Bytes;

/// The `range_end` that stands for "no upper bound".
pub const OPEN_END: &[u8] = b"\0";

/// The keys a request addresses.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub enum KeyRange {
    /// Exactly one key.
    Single(Bytes),
    /// `start <= key < end`; empty when `end <= start`.
    Bounded {
        /// The first key of the range.
        start: Bytes,
        /// The first key behind the range.
        end: Bytes,
    },
    /// Every key `>= start`.
    From(Bytes),
}

impl KeyRange {
    /// The range that `key` and `range_end` of a request address.
    pub fn new(key: Bytes, range_end: Bytes) -> KeyRange {
        if range_end.is_empty() {
            KeyRange::Single(key)
        } else if range_end == OPEN_END {
            KeyRange::From(key)
        } else {
            KeyRange::Bounded {
                start: key,
                end: range_end,
            }
        }
    }

    /// All keys that begin with `prefix`.
    pub fn prefix(prefix: Bytes) -> KeyRange {
        let end = prefix_end(&prefix);
        KeyRange::new(
            if prefix.is_empty() {
                Bytes::from_static(b"\0")
            } else {
                prefix
            },
            end,
        )
    }

    /// Whether `key` is in the range.
    pub fn contains(&self, key: &[u8]) -> bool {
        match self {
            KeyRange::Single(k) => key == k,
            KeyRange::Bounded { start, end } => key >= &start[..] && key < &end[..],
            KeyRange::From(start) => key >= &start[..],
        }
    }

    /// The first key that may be in the range.
    pub fn start(&self) -> &Bytes {
        match self {
            KeyRange::Single(k) => k,
            KeyRange::Bounded { start, .. } | KeyRange::From(start) => start,
        }
    }

    /// Whether no key can be in the range.
    pub fn is_empty(&self) -> bool {
        matches!(self, KeyRange::Bounded { start, end } if end <= start)
    }
}

/// The `range_end` that, with `prefix` as key, addresses all keys beginning with `prefix`.
///
/// A prefix of only `0xff` bytes, and the empty one, have no end: the answer is [`OPEN_END`].
pub fn prefix_end(prefix: &[u8]) -> Bytes {
    let mut end = prefix.to_vec();
    while let Some(last) = end.last_mut() {
        if *last < 0xff {
            *last += 1;
            return end.into();
        }
        end.pop();
    }
    Bytes::from_static(OPEN_END)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn range(key: &'static [u8], end: &'static [u8]) -> KeyRange {
        KeyRange::new(Bytes::from_static(key), Bytes::from_static(end))
    }

    #[test]
    fn the_four_forms_address_what_etcd_says() {
        assert!(range(b"a", b"").contains(b"a"));
        assert!(!range(b"a", b"").contains(b"aa"));
        assert!(range(b"a", b"c").contains(b"b"));
        assert!(!range(b"a", b"c").contains(b"c"));
        assert!(range(b"b", b"\0").contains(b"zzz"));
        assert!(!range(b"b", b"\0").contains(b"a"));
        assert!(range(b"\0", b"\0").contains(b"anything"));
        assert!(range(b"c", b"a").is_empty());
        assert!(range(b"c", b"c").is_empty());
    }

    #[test]
    fn prefix_end_carries_over_trailing_ff() {
        assert_eq!(&prefix_end(b"foo")[..], b"fop");
        assert_eq!(&prefix_end(b"a\xff\xff")[..], b"b");
        assert_eq!(&prefix_end(b"\xff")[..], OPEN_END);
        assert!(KeyRange::prefix(Bytes::from_static(b"")).contains(b"x"));
    }
}
