//! What a range asks for and answers: limit, count, sort, filters.
//!
//! The rules that are easy to get wrong (etcd 3.7, range of the transaction layer):
//! - `count` is the number of keys in the range, whatever limit and filters say; `more` means that the limit cut;
//! - the limit bounds what is *read* only if the order is the default one and no filter is set. [`SortOrder::None`] is the
//!   default order for every target, so with a limit it sorts the first `limit + 1` keys only;
//! - filters are inclusive and 0 switches one off;
//! - values are not in the key index, so only a sort by value reads more of them than it answers.
//!
//! Equal elements of a sort keep key order (etcd leaves that open).

use kv_proto::key_range::KeyRange;
use kv_proto::mvccpb::KeyValue;

use crate::index::Span;
use crate::key_index::KeyState;

/// What to sort by.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum SortTarget {
    /// The key, bytewise.
    #[default]
    Key,
    /// The number of puts since the create.
    Version,
    /// The create revision.
    Create,
    /// The mod revision.
    Mod,
    /// The value, bytewise.
    Value,
}

/// Which end of the order comes first.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum SortOrder {
    /// Ascending; for targets other than the key only as far as the limit let keys be read.
    #[default]
    None,
    /// Smallest first.
    Ascend,
    /// Largest first.
    Descend,
}

/// A read of some keys at one revision.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct RangeQuery {
    /// The keys.
    pub range: KeyRange,
    /// The revision to read at; the latest if not positive.
    pub revision: i64,
    /// Most keys to answer; no limit if not positive.
    pub limit: i64,
    /// Answer the number of keys alone.
    pub count_only: bool,
    /// Leave values away. The lease is left away too unless the values are sorted by.
    pub keys_only: bool,
    /// Least mod revision to answer.
    pub min_mod_revision: i64,
    /// Largest mod revision to answer.
    pub max_mod_revision: i64,
    /// Least create revision to answer.
    pub min_create_revision: i64,
    /// Largest create revision to answer.
    pub max_create_revision: i64,
    /// Which end comes first.
    pub sort_order: SortOrder,
    /// What to sort by.
    pub sort_target: SortTarget,
}

/// The keys found.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct RangeAnswer {
    /// The store's revision when it was read; inside a write transaction, the one that its reads see.
    pub revision: i64,
    /// Keys and values, sorted and cut as asked.
    pub kvs: Vec<KeyValue>,
    /// Keys in the range, those cut or filtered away included.
    pub count: i64,
    /// Whether the limit cut.
    pub more: bool,
}

impl RangeQuery {
    /// Every key of `range` at the latest revision, in key order.
    pub fn new(range: KeyRange) -> RangeQuery {
        RangeQuery {
            range,
            revision: 0,
            limit: 0,
            count_only: false,
            keys_only: false,
            min_mod_revision: 0,
            max_mod_revision: 0,
            min_create_revision: 0,
            max_create_revision: 0,
            sort_order: SortOrder::None,
            sort_target: SortTarget::Key,
        }
    }

    /// How many keys to read; `None` for all of them.
    pub(crate) fn read_limit(&self) -> Option<usize> {
        if self.limit <= 0 || !self.is_default_order() || self.has_filters() {
            return None;
        }
        // One more than asked for says whether there is more.
        Some(
            usize::try_from(self.limit)
                .unwrap_or(usize::MAX)
                .saturating_add(1),
        )
    }

    /// Most keys to answer.
    pub(crate) fn answer_limit(&self) -> Option<usize> {
        (self.limit > 0).then(|| usize::try_from(self.limit).unwrap_or(usize::MAX))
    }

    /// Whether the index alone answers.
    pub(crate) fn skips_values(&self) -> bool {
        self.count_only || (self.keys_only && self.sort_target != SortTarget::Value)
    }

    /// Whether the keys read, in key order, must be sorted.
    pub(crate) fn is_key_order(&self) -> bool {
        self.sort_target == SortTarget::Key && self.sort_order != SortOrder::Descend
    }

    /// Whether a filter is set.
    pub(crate) fn has_filters(&self) -> bool {
        [
            self.min_mod_revision,
            self.max_mod_revision,
            self.min_create_revision,
            self.max_create_revision,
        ] != [0; 4]
    }

    /// Whether the filters let a key through.
    pub(crate) fn admits(&self, state: &KeyState) -> bool {
        let within = |value, min, max| (min == 0 || min <= value) && (max == 0 || value <= max);
        within(
            state.modified.main,
            self.min_mod_revision,
            self.max_mod_revision,
        ) && within(
            state.created,
            self.min_create_revision,
            self.max_create_revision,
        )
    }

    /// Sorts what comes in key order; `state` reads what an element is sorted by, and the value is none of it.
    pub(crate) fn sort_by_state<T>(&self, elements: &mut [T], state: impl Fn(&T) -> KeyState) {
        match self.sort_target {
            SortTarget::Key if self.sort_order == SortOrder::Descend => elements.reverse(),
            SortTarget::Key | SortTarget::Value => {}
            SortTarget::Version => self.sort_by_key(elements, |element| state(element).version),
            SortTarget::Create => self.sort_by_key(elements, |element| state(element).created),
            SortTarget::Mod => self.sort_by_key(elements, |element| state(element).modified.main),
        }
    }

    /// Sorts by value, if that is asked for.
    pub(crate) fn sort_by_value(&self, kvs: &mut [KeyValue]) {
        if self.sort_target == SortTarget::Value {
            match self.sort_order {
                SortOrder::None | SortOrder::Ascend => kvs.sort_by(|a, b| a.value.cmp(&b.value)),
                SortOrder::Descend => kvs.sort_by(|a, b| b.value.cmp(&a.value)),
            }
        }
    }

    fn sort_by_key<T>(&self, elements: &mut [T], key: impl Fn(&T) -> i64) {
        match self.sort_order {
            SortOrder::None | SortOrder::Ascend => elements.sort_by_key(key),
            SortOrder::Descend => elements.sort_by_key(|element| std::cmp::Reverse(key(element))),
        }
    }

    fn is_default_order(&self) -> bool {
        self.sort_order == SortOrder::None
            || (self.sort_target == SortTarget::Key && self.sort_order == SortOrder::Ascend)
    }
}

/// The bounds of `range` for a walk; `None` for a single key.
pub(crate) fn span(range: &KeyRange) -> Option<Span<'_>> {
    match range {
        KeyRange::Single(_) => None,
        KeyRange::Bounded { start, end } => Some(Span {
            start,
            end: Some(end),
        }),
        KeyRange::From(start) => Some(Span { start, end: None }),
    }
}
