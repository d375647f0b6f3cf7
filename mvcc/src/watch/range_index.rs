//! Values by key range: which of the registered ranges contain a key.
//!
//! Single keys live in a hash map, wider ranges in an interval tree (a treap ordered by start, then end,
//! where each node knows the subtree's farthest end), so that both ten thousand disjoint keys and ten
//! thousand overlapping prefixes cost O(log n + matches) per key. Equal ranges share one slot. Priorities
//! come from a fixed-seed generator: the shape depends on the order of calls alone.

use std::cmp::Ordering;
use std::collections::HashMap;

use bytes::Bytes;
use kv_proto::key_range::KeyRange;

use super::history::interval;

/// Names a registered range until it is removed; then the number may be used again.
pub(super) type Slot = u32;

const NONE: Slot = Slot::MAX;

pub(super) struct RangeIndex<V> {
    entries: Vec<Option<Entry<V>>>,
    free: Vec<Slot>,
    singles: HashMap<Bytes, Slot>,
    wide: HashMap<KeyRange, Slot>,
    root: Slot,
    seed: u32,
}

struct Entry<V> {
    range: KeyRange,
    value: V,
    node: Node,
}

/// The entry's place in the tree; unused for a single key.
struct Node {
    start: Bytes,
    end: Option<Bytes>,
    priority: u32,
    left: Slot,
    right: Slot,
    /// The entry of this subtree whose end is farthest.
    farthest: Slot,
}

impl<V> RangeIndex<V> {
    pub(super) fn new() -> RangeIndex<V> {
        RangeIndex {
            entries: Vec::new(),
            free: Vec::new(),
            singles: HashMap::new(),
            wide: HashMap::new(),
            root: NONE,
            seed: 0x9e37_79b9,
        }
    }

    pub(super) fn find(&self, range: &KeyRange) -> Option<Slot> {
        match range {
            KeyRange::Single(key) => self.singles.get(key).copied(),
            _ => self.wide.get(range).copied(),
        }
    }

    pub(super) fn get_or_insert_with(
        &mut self,
        range: &KeyRange,
        value: impl FnOnce() -> V,
    ) -> Slot {
        if let Some(slot) = self.find(range) {
            return slot;
        }
        let (start, end) = interval(range);
        let priority = self.next_priority();
        let slot = self.free.pop().unwrap_or_else(|| {
            self.entries.push(None);
            Slot::try_from(self.entries.len() - 1).expect("fewer than 2^32 ranges fit in memory")
        });
        let node = Node {
            start,
            end,
            priority,
            left: NONE,
            right: NONE,
            farthest: slot,
        };
        self.entries[slot as usize] = Some(Entry {
            range: range.clone(),
            value: value(),
            node,
        });
        match range {
            KeyRange::Single(key) => {
                self.singles.insert(key.clone(), slot);
            }
            _ => {
                self.wide.insert(range.clone(), slot);
                let (below, above) = self.split(self.root, slot);
                let below = self.merge(below, slot);
                self.root = self.merge(below, above);
            }
        }
        slot
    }

    pub(super) fn remove(&mut self, slot: Slot) -> V {
        match self.entry(slot).range.clone() {
            KeyRange::Single(key) => {
                self.singles.remove(&key);
            }
            range => {
                self.wide.remove(&range);
                self.root = self.unlink(self.root, slot);
            }
        }
        self.free.push(slot);
        self.entries[slot as usize]
            .take()
            .expect("a slot is removed once")
            .value
    }

    pub(super) fn range(&self, slot: Slot) -> &KeyRange {
        &self.entry(slot).range
    }

    pub(super) fn get(&self, slot: Slot) -> &V {
        &self.entry(slot).value
    }

    pub(super) fn get_mut(&mut self, slot: Slot) -> &mut V {
        &mut self.entry_mut(slot).value
    }

    /// Every value with its range, in the order of slots.
    pub(super) fn iter(&self) -> impl Iterator<Item = (&KeyRange, &V)> {
        self.entries.iter().flatten().map(|e| (&e.range, &e.value))
    }

    /// Every value, in the order of slots.
    pub(super) fn values_mut(&mut self) -> impl Iterator<Item = &mut V> {
        self.entries.iter_mut().flatten().map(|e| &mut e.value)
    }

    /// Calls `f` with each range that contains `key`.
    pub(super) fn matching(&self, key: &[u8], f: &mut impl FnMut(Slot, &V)) {
        if let Some(&slot) = self.singles.get(key) {
            f(slot, self.get(slot));
        }
        self.stab(self.root, key, f);
    }

    fn stab(&self, at: Slot, key: &[u8], f: &mut impl FnMut(Slot, &V)) {
        if at == NONE || !ends_after(&self.node(self.node(at).farthest).end, key) {
            return;
        }
        let node = self.node(at);
        self.stab(node.left, key, f);
        if &node.start[..] <= key {
            if ends_after(&node.end, key) {
                f(at, self.get(at));
            }
            self.stab(node.right, key, f);
        }
    }

    /// Splits the subtree into what sorts before entry `pivot` and what sorts after it.
    fn split(&mut self, at: Slot, pivot: Slot) -> (Slot, Slot) {
        if at == NONE {
            return (NONE, NONE);
        }
        if self.compare(at, pivot) == Ordering::Less {
            let (below, above) = self.split(self.node(at).right, pivot);
            self.node_mut(at).right = below;
            self.refresh(at);
            (at, above)
        } else {
            let (below, above) = self.split(self.node(at).left, pivot);
            self.node_mut(at).left = above;
            self.refresh(at);
            (below, at)
        }
    }

    /// Joins two subtrees; everything in `a` sorts before everything in `b`.
    fn merge(&mut self, a: Slot, b: Slot) -> Slot {
        if a == NONE || b == NONE {
            return if a == NONE { b } else { a };
        }
        if self.node(a).priority >= self.node(b).priority {
            let right = self.merge(self.node(a).right, b);
            self.node_mut(a).right = right;
            self.refresh(a);
            a
        } else {
            let left = self.merge(a, self.node(b).left);
            self.node_mut(b).left = left;
            self.refresh(b);
            b
        }
    }

    fn unlink(&mut self, at: Slot, slot: Slot) -> Slot {
        assert!(at != NONE, "range {slot} is in the tree");
        if at == slot {
            let (left, right) = (self.node(at).left, self.node(at).right);
            return self.merge(left, right);
        }
        if self.compare(slot, at) == Ordering::Less {
            let left = self.unlink(self.node(at).left, slot);
            self.node_mut(at).left = left;
        } else {
            let right = self.unlink(self.node(at).right, slot);
            self.node_mut(at).right = right;
        }
        self.refresh(at);
        at
    }

    fn refresh(&mut self, at: Slot) {
        let mut farthest = at;
        for child in [self.node(at).left, self.node(at).right] {
            if child != NONE {
                let candidate = self.node(child).farthest;
                if compare_ends(&self.node(candidate).end, &self.node(farthest).end)
                    == Ordering::Greater
                {
                    farthest = candidate;
                }
            }
        }
        self.node_mut(at).farthest = farthest;
    }

    fn compare(&self, a: Slot, b: Slot) -> Ordering {
        let (a, b) = (self.node(a), self.node(b));
        a.start
            .cmp(&b.start)
            .then_with(|| compare_ends(&a.end, &b.end))
    }

    fn entry(&self, slot: Slot) -> &Entry<V> {
        self.entries[slot as usize]
            .as_ref()
            .expect("a slot in use has an entry")
    }

    fn entry_mut(&mut self, slot: Slot) -> &mut Entry<V> {
        self.entries[slot as usize]
            .as_mut()
            .expect("a slot in use has an entry")
    }

    fn node(&self, slot: Slot) -> &Node {
        &self.entry(slot).node
    }

    fn node_mut(&mut self, slot: Slot) -> &mut Node {
        &mut self.entry_mut(slot).node
    }

    /// xorshift32: good enough to balance a treap.
    fn next_priority(&mut self) -> u32 {
        self.seed ^= self.seed << 13;
        self.seed ^= self.seed >> 17;
        self.seed ^= self.seed << 5;
        self.seed
    }
}

fn ends_after(end: &Option<Bytes>, key: &[u8]) -> bool {
    end.as_ref().is_none_or(|end| key < &end[..])
}

/// No end is the farthest.
fn compare_ends(a: &Option<Bytes>, b: &Option<Bytes>) -> Ordering {
    match (a, b) {
        (None, None) => Ordering::Equal,
        (None, Some(_)) => Ordering::Greater,
        (Some(_), None) => Ordering::Less,
        (Some(a), Some(b)) => a.cmp(b),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn ranges() -> impl Strategy<Value = KeyRange> {
        let key = proptest::collection::vec(0u8..4, 1..4).prop_map(Bytes::from);
        prop_oneof![
            key.clone().prop_map(KeyRange::Single),
            key.clone().prop_map(KeyRange::From),
            (key.clone(), key).prop_map(|(start, end)| KeyRange::Bounded { start, end }),
        ]
        .prop_filter("an empty range is never registered", |r| !r.is_empty())
    }

    proptest! {
        #[test]
        fn matches_are_those_of_a_linear_scan(
            steps in proptest::collection::vec((ranges(), any::<bool>()), 1..120),
            keys in proptest::collection::vec(proptest::collection::vec(0u8..5, 0..4), 1..40),
        ) {
            let mut index = RangeIndex::new();
            let mut model: Vec<KeyRange> = Vec::new();
            for (range, remove) in steps {
                if remove && !model.is_empty() {
                    let gone = model.swap_remove(range.start().len() % model.len());
                    let slot = index.find(&gone).unwrap();
                    prop_assert_eq!(index.remove(slot), gone);
                } else if index.find(&range).is_none() {
                    index.get_or_insert_with(&range, || range.clone());
                    model.push(range);
                }
            }
            for key in keys {
                let mut found = Vec::new();
                index.matching(&key, &mut |_, range: &KeyRange| found.push(format!("{range:?}")));
                let mut expect: Vec<_> =
                    model.iter().filter(|r| r.contains(&key)).map(|r| format!("{r:?}")).collect();
                found.sort();
                expect.sort();
                prop_assert_eq!(found, expect);
            }
        }
    }
}
