//! Which keys a user may read or write: the union of what the user's roles grant.
//!
//! Intervals are half open, sorted, and merged where they overlap or touch, so that a range is permitted if one of them
//! holds all of it. A single key is the interval from it to the next key there can be. Source: etcd 3.7,
//! auth/range_perm_cache.go.

use bytes::Bytes;
use kv_proto::authpb::{Permission, permission::Type};
use kv_proto::key_range::OPEN_END;

/// What a request does with keys.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Access {
    /// Sees them.
    Read,
    /// Changes or deletes them.
    Write,
}

/// What one user may read and write.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(crate) struct RangePermissions {
    read: Intervals,
    write: Intervals,
}

impl RangePermissions {
    /// The union of `permissions`; an unknown type grants nothing.
    pub(crate) fn union<'a>(
        permissions: impl Iterator<Item = &'a Permission> + Clone,
    ) -> RangePermissions {
        let granted = |types: [Type; 2]| {
            let of_type = permissions.clone().filter(move |permission| {
                types
                    .iter()
                    .any(|&granted| permission.perm_type == granted as i32)
            });
            Intervals::union(of_type.map(|permission| {
                (
                    permission.key.clone(),
                    End::of(&permission.key, &permission.range_end),
                )
            }))
        };
        RangePermissions {
            read: granted([Type::Read, Type::Readwrite]),
            write: granted([Type::Write, Type::Readwrite]),
        }
    }

    /// Whether all keys that `key` and `range_end` of a request address are granted. Of a range that holds no key the
    /// start has to be.
    pub(crate) fn permits(&self, access: Access, key: &[u8], range_end: &[u8]) -> bool {
        let granted = match access {
            Access::Read => &self.read,
            Access::Write => &self.write,
        };
        granted.hold(key, range_end)
    }
}

/// Whether a permission on these keys can be granted: there is a key, and the range is not empty.
pub(crate) fn is_valid(key: &[u8], range_end: &[u8]) -> bool {
    !key.is_empty() && (range_end.is_empty() || key < range_end || range_end == OPEN_END)
}

/// Where an interval ends: the first key behind it.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
enum End {
    Before(Bytes),
    Open,
}

impl End {
    fn of(key: &[u8], range_end: &Bytes) -> End {
        if range_end.is_empty() {
            // Nothing lies between a key and the same key with a zero byte behind it.
            End::Before([key, b"\0"].concat().into())
        } else if range_end == OPEN_END {
            End::Open
        } else {
            End::Before(range_end.clone())
        }
    }

    /// Whether `key` is before the end.
    fn is_after(&self, key: &[u8]) -> bool {
        match self {
            End::Before(end) => key < &end[..],
            End::Open => true,
        }
    }
}

/// Sorted by start; between two of them there is at least one key.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
struct Intervals(Vec<(Bytes, End)>);

impl Intervals {
    fn union(intervals: impl Iterator<Item = (Bytes, End)>) -> Intervals {
        let mut sorted: Vec<(Bytes, End)> = intervals.collect();
        sorted.sort();
        let mut merged: Vec<(Bytes, End)> = Vec::with_capacity(sorted.len());
        for (start, end) in sorted {
            match merged.last_mut() {
                Some((_, last)) if last.is_after(&start) || *last == End::Before(start.clone()) => {
                    if *last < end {
                        *last = end;
                    }
                }
                _ => merged.push((start, end)),
            }
        }
        Intervals(merged)
    }

    fn hold(&self, key: &[u8], range_end: &[u8]) -> bool {
        let at = self.0.partition_point(|(start, _)| &start[..] <= key);
        let Some((_, end)) = at.checked_sub(1).map(|at| &self.0[at]) else {
            return false;
        };
        if !end.is_after(key) {
            return false;
        }
        match end {
            End::Open => true,
            // The key is in the interval, and so is all of it.
            End::Before(_) if range_end.is_empty() => true,
            End::Before(_) if range_end == OPEN_END => false,
            End::Before(end) => range_end <= &end[..],
        }
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn permission(perm_type: Type, key: &[u8], range_end: &[u8]) -> Permission {
        Permission {
            perm_type: perm_type as i32,
            key: Bytes::copy_from_slice(key),
            range_end: Bytes::copy_from_slice(range_end),
        }
    }

    fn reads(granted: &[(&str, &str)], key: &str, range_end: &str) -> bool {
        let granted: Vec<Permission> = granted
            .iter()
            .map(|(key, end)| permission(Type::Read, key.as_bytes(), end.as_bytes()))
            .collect();
        RangePermissions::union(granted.iter()).permits(
            Access::Read,
            key.as_bytes(),
            range_end.as_bytes(),
        )
    }

    #[test]
    fn a_request_needs_the_union_of_what_is_granted() {
        assert!(reads(&[("a", "c"), ("c", "e")], "a", "e"));
        assert!(reads(&[("a", "d"), ("b", "e")], "b", "e"));
        assert!(!reads(&[("a", "c"), ("d", "e")], "a", "e"));
        assert!(reads(&[("a", "c"), ("b", "\0")], "a", "\0"));
        assert!(!reads(&[("a", "z")], "a", "\0"));
        assert!(reads(&[("\0", "\0")], "\0", "\0"));
        assert!(!reads(&[("a", "\0")], "\0", "\0"));
    }

    #[test]
    fn a_permission_on_one_key_is_not_one_on_what_begins_with_it() {
        assert!(reads(&[("foo", "")], "foo", ""));
        assert!(reads(&[("foo", "")], "foo", "foo\0"));
        assert!(!reads(&[("foo", "")], "foo", "fop"));
        assert!(!reads(&[("foo", "")], "foo", "\0"));
        assert!(!reads(&[("foo", "")], "foo\0", ""));
    }

    #[test]
    fn single_keys_next_to_each_other_are_a_range() {
        assert!(reads(&[("a", ""), ("a\0", "")], "a", "a\0\0"));
        assert!(!reads(&[("a", ""), ("b", "")], "a", "b\0"));
    }

    #[test]
    fn of_a_range_without_keys_the_start_is_looked_at() {
        assert!(reads(&[("b", "d")], "c", "a"));
        assert!(!reads(&[("b", "d")], "e", "a"));
    }

    #[test]
    fn writing_is_not_reading() {
        let granted = [
            permission(Type::Write, b"w", b""),
            permission(Type::Readwrite, b"rw", b""),
        ];
        let permissions = RangePermissions::union(granted.iter());
        assert!(permissions.permits(Access::Write, b"w", b""));
        assert!(!permissions.permits(Access::Read, b"w", b""));
        assert!(permissions.permits(Access::Read, b"rw", b""));
        assert!(permissions.permits(Access::Write, b"rw", b""));
    }

    #[test]
    fn what_can_be_granted_has_a_key_and_is_not_empty() {
        assert!(is_valid(b"a", b""));
        assert!(is_valid(b"a", b"b"));
        assert!(is_valid(b"a", b"\0"));
        assert!(is_valid(b"\0", b"\0"));
        assert!(!is_valid(b"", b"b"));
        assert!(!is_valid(b"a", b"a"));
        assert!(!is_valid(b"b", b"a"));
    }

    /// Keys of at most three letters of two: all of them can be looked at one by one.
    fn key() -> impl Strategy<Value = Vec<u8>> {
        prop::collection::vec(prop::sample::select(b"\0a".to_vec()), 1..=3)
    }

    fn range_end(key: Vec<u8>) -> impl Strategy<Value = (Vec<u8>, Vec<u8>)> {
        let end = prop_oneof![
            Just(Vec::new()),
            Just(OPEN_END.to_vec()),
            prop::collection::vec(prop::sample::select(b"\0a".to_vec()), 1..=3),
        ];
        end.prop_map(move |end| (key.clone(), end))
    }

    /// Every key of up to four letters, and one that stands for all the longer and later ones.
    fn universe() -> Vec<Vec<u8>> {
        let mut keys: Vec<Vec<u8>> = vec![vec![]];
        for n in 0..4 {
            let longer: Vec<Vec<u8>> = keys
                .iter()
                .filter(|key| key.len() == n)
                .flat_map(|key| [b'\0', b'a'].map(|letter| [&key[..], &[letter]].concat()))
                .collect();
            keys.extend(longer);
        }
        keys.retain(|key| !key.is_empty());
        keys.push(b"zzzz".to_vec());
        keys
    }

    fn is_in(key: &[u8], start: &[u8], end: &[u8]) -> bool {
        match end {
            [] => key == start,
            OPEN_END => key >= start,
            end => start <= key && key < end,
        }
    }

    proptest! {
        #[test]
        fn permits_what_a_look_at_each_key_permits(
            granted in prop::collection::vec(key().prop_flat_map(range_end), 0..6),
            asked in key().prop_flat_map(range_end),
        ) {
            let granted: Vec<_> = granted
                .into_iter()
                .filter(|(key, end)| is_valid(key, end))
                .collect();
            let permissions: Vec<Permission> = granted
                .iter()
                .map(|(key, end)| permission(Type::Read, key, end))
                .collect();
            let (key, end) = asked;
            let may_read = |wanted: &[u8]| granted.iter().any(|(k, e)| is_in(wanted, k, e));
            let mut wanted: Vec<Vec<u8>> = universe();
            wanted.retain(|candidate| is_in(candidate, &key, &end));
            if wanted.is_empty() {
                wanted.push(key.clone());
            }
            let expected = wanted.iter().all(|wanted| may_read(wanted));
            let permits = RangePermissions::union(permissions.iter()).permits(Access::Read, &key, &end);
            prop_assert_eq!(permits, expected, "{:?} of {:?}", (key, end), granted);
        }
    }
}
