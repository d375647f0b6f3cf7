//! Reads over the buffer and the engine together.
//!
//! A [`View`] is a point in time: marks in at most two buffer layers over a pinned engine state. It owns all it needs, so
//! that a stream or a defragmentation may outlive the call that opened it; the engine's generation stays on disk
//! until the last view of it is gone. Every value that comes from the engine has its checksum verified here.

use std::collections::VecDeque;
use std::ops::{Bound, ControlFlow};
use std::path::Path;
use std::sync::Arc;

use bytes::Bytes;

use super::buffer::{Found, Layer, Mark};
use super::engine::{Engine, Reader, damage};
use super::generation::Generation;
use super::guard::{guarded, unguarded};
use super::{Keyspace, checksum};
use crate::Result;

/// Keys taken from a layer at a time while a scan merges it: bounds how long its lock is held.
const SLICE_KEYS: usize = 256;

/// What a scan calls for each key and value.
type Visit<'a> = dyn FnMut(&[u8], &[u8]) -> ControlFlow<()> + 'a;

/// An engine with the files that it lives in. Fields drop in this order: the files go last.
pub(crate) struct Opened {
    pub(crate) engine: Arc<dyn Engine>,
    pub(crate) generation: Option<Generation>,
}

/// One engine state with what keeps it readable. Fields drop in this order.
pub(crate) struct Live {
    pub(crate) reader: Arc<dyn Reader>,
    pub(crate) opened: Arc<Opened>,
}

/// The database at one moment, for as long as this lives.
pub struct View {
    /// Newest first.
    layers: Vec<(Arc<Layer>, Mark)>,
    live: Arc<Live>,
}

impl View {
    pub(crate) fn new(layers: Vec<(Arc<Layer>, Mark)>, live: Arc<Live>) -> View {
        View { layers, live }
    }

    /// The value of `key`.
    pub fn get(&self, keyspace: Keyspace, key: &[u8]) -> Result<Option<Bytes>> {
        for (layer, mark) in &self.layers {
            match layer.get(keyspace, key, Some(mark)) {
                Found::Value(value) => return Ok(Some(value)),
                Found::Deleted => return Ok(None),
                Found::Absent => {}
            }
        }
        self.live.get(keyspace, key)
    }

    /// The values of ascending keys, each position answering the key at that position.
    pub fn get_sorted<K: AsRef<[u8]>>(
        &self,
        keyspace: Keyspace,
        keys: &[K],
    ) -> Result<Vec<Option<Bytes>>> {
        get_sorted(
            keys,
            |lookup| {
                for (layer, mark) in &self.layers {
                    lookup.in_layer(keyspace, layer, Some(mark));
                }
                Arc::clone(&self.live)
            },
            keyspace,
        )
    }

    /// Calls `each` with the keys of `from..to` and their values, in order, until it breaks. Without `to`: to the end.
    ///
    /// A scan of a whole keyspace also verifies that the engine lost no key of it, where the engine keeps count.
    pub fn scan(
        &self,
        keyspace: Keyspace,
        from: &[u8],
        to: Option<&[u8]>,
        each: &mut Visit<'_>,
    ) -> Result<()> {
        let mut overlay = Overlay::new(&self.layers, keyspace, from, to);
        let mut broken = false;
        self.live.scan(keyspace, from, to, &mut |key, value| {
            while let Some((buffered, change)) = overlay.take_below(key) {
                if let Some(change) = change
                    && each(&buffered, &change).is_break()
                {
                    broken = true;
                    return ControlFlow::Break(());
                }
            }
            let flow = match overlay.take_at(key) {
                None => each(key, value),
                Some(None) => ControlFlow::Continue(()),
                Some(Some(newer)) => each(key, &newer),
            };
            broken = flow.is_break();
            flow
        })?;
        while !broken && let Some((buffered, change)) = overlay.take() {
            if let Some(change) = change {
                broken = each(&buffered, &change).is_break();
            }
        }
        Ok(())
    }
}

impl Live {
    /// The value of `key` in the engine, verified.
    pub(crate) fn get(&self, keyspace: Keyspace, key: &[u8]) -> Result<Option<Bytes>> {
        let mut value = None;
        guarded(self.file(), || {
            self.reader.get(keyspace, key, &mut |stored| {
                value = Some(Bytes::copy_from_slice(self.verify(keyspace, key, stored)?));
                Ok(())
            })
        })?;
        Ok(value)
    }

    /// Scans the engine alone, verified.
    pub(crate) fn scan(
        &self,
        keyspace: Keyspace,
        from: &[u8],
        to: Option<&[u8]>,
        each: &mut Visit<'_>,
    ) -> Result<()> {
        if to.is_some_and(|to| to <= from) {
            return Ok(());
        }
        guarded(self.file(), || {
            self.reader.scan(keyspace, from, to, &mut |key, stored| {
                let value = self.verify(keyspace, key, stored)?;
                Ok(unguarded(|| each(key, value)))
            })
        })
    }

    /// The file or folder that errors name.
    pub(crate) fn file(&self) -> &Path {
        self.reader.file()
    }

    fn verify<'a>(&self, keyspace: Keyspace, key: &[u8], stored: &'a [u8]) -> Result<&'a [u8]> {
        checksum::open(key, stored).ok_or_else(|| {
            damage(
                self.file(),
                format!(
                    "keyspace {}, key {}: the value does not match its checksum",
                    keyspace.name(),
                    key.escape_ascii()
                ),
            )
        })
    }
}

/// Values of sorted keys while they are being collected, newest state first.
pub(crate) struct Lookup<'a, K> {
    keys: &'a [K],
    values: Vec<Option<Bytes>>,
    /// Positions whose answer is known: a value, or a deletion.
    known: Vec<bool>,
}

impl<K: AsRef<[u8]>> Lookup<'_, K> {
    /// Takes what `layer` knows and newer layers did not.
    pub(crate) fn in_layer(&mut self, keyspace: Keyspace, layer: &Layer, mark: Option<&Mark>) {
        layer.get_each(keyspace, self.keys, mark, |position, found| {
            if !std::mem::replace(&mut self.known[position], true)
                && let Found::Value(value) = found
            {
                self.values[position] = Some(value);
            }
        });
    }
}

/// Answers ascending `keys`: `buffered` takes what the buffer knows and returns the engine state below it.
pub(crate) fn get_sorted<'a, K: AsRef<[u8]>>(
    keys: &'a [K],
    buffered: impl FnOnce(&mut Lookup<'a, K>) -> Arc<Live>,
    keyspace: Keyspace,
) -> Result<Vec<Option<Bytes>>> {
    debug_assert!(keys.is_sorted_by_key(AsRef::as_ref), "the keys must ascend");
    let mut lookup = Lookup {
        keys,
        values: vec![None; keys.len()],
        known: vec![false; keys.len()],
    };
    let live = buffered(&mut lookup);
    let Lookup {
        mut values, known, ..
    } = lookup;
    let missing: Vec<usize> = (0..keys.len())
        .filter(|position| !known[*position])
        .collect();
    if missing.is_empty() {
        return Ok(values);
    }
    let missing_keys: Vec<&[u8]> = missing
        .iter()
        .map(|position| keys[*position].as_ref())
        .collect();
    guarded(live.file(), || {
        live.reader
            .get_sorted(keyspace, &missing_keys, &mut |found, stored| {
                let value = live.verify(keyspace, missing_keys[found], stored)?;
                values[missing[found]] = Some(Bytes::copy_from_slice(value));
                Ok(())
            })
    })?;
    Ok(values)
}

/// The layers of a view merged into one ordered sequence of changes, fetched in slices.
struct Overlay<'a> {
    /// Newest first.
    layers: Vec<LayerCursor<'a>>,
}

struct LayerCursor<'a> {
    layer: &'a Layer,
    mark: &'a Mark,
    keyspace: Keyspace,
    to: Option<&'a [u8]>,
    next: Option<Bound<Bytes>>,
    slice: VecDeque<(Bytes, Option<Bytes>)>,
}

impl<'a> Overlay<'a> {
    fn new(
        layers: &'a [(Arc<Layer>, Mark)],
        keyspace: Keyspace,
        from: &[u8],
        to: Option<&'a [u8]>,
    ) -> Self {
        let from = Bytes::copy_from_slice(from);
        Overlay {
            layers: layers
                .iter()
                .map(|(layer, mark)| LayerCursor {
                    layer,
                    mark,
                    keyspace,
                    to,
                    next: Some(Bound::Included(from.clone())),
                    slice: VecDeque::new(),
                })
                .collect(),
        }
    }

    /// The least change, of the newest layer that has one for its key.
    fn take(&mut self) -> Option<(Bytes, Option<Bytes>)> {
        self.take_if(|_| true)
    }

    /// The least change, if it lies below `key`.
    fn take_below(&mut self, key: &[u8]) -> Option<(Bytes, Option<Bytes>)> {
        self.take_if(|least| least < key)
    }

    /// The change of `key`, if there is one. Everything below has been taken.
    fn take_at(&mut self, key: &[u8]) -> Option<Option<Bytes>> {
        self.take_if(|least| least == key).map(|(_, change)| change)
    }

    fn take_if(&mut self, wanted: impl FnOnce(&[u8]) -> bool) -> Option<(Bytes, Option<Bytes>)> {
        let least = self.layers.iter_mut().filter_map(LayerCursor::peek).min()?;
        if !wanted(&least) {
            return None;
        }
        let mut newest = None;
        for cursor in &mut self.layers {
            if cursor.peek().as_ref() == Some(&least) {
                let (_, change) = cursor.slice.pop_front().expect("peek filled the slice");
                newest.get_or_insert(change);
            }
        }
        newest.map(|change| (least, change))
    }
}

impl LayerCursor<'_> {
    fn peek(&mut self) -> Option<Bytes> {
        if self.slice.is_empty()
            && let Some(from) = self.next.take()
        {
            let from = from.as_ref().map(AsRef::as_ref);
            self.slice = self
                .layer
                .slice(self.keyspace, from, self.to, self.mark, SLICE_KEYS)
                .into();
            if self.slice.len() == SLICE_KEYS {
                self.next = self
                    .slice
                    .back()
                    .map(|(key, _)| Bound::Excluded(key.clone()));
            }
        }
        self.slice.front().map(|(key, _)| key.clone())
    }
}
