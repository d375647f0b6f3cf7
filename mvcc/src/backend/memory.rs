//! An engine without files, for tests and simulation.
//!
//! A [`MemoryDisk`] stands for the disk: what was committed stays in it when the backend goes, so a simulated member can be
//! stopped and started again. Versions of a key are kept while a reader may need them.

use std::collections::BTreeMap;
use std::ops::{Bound, ControlFlow};
use std::path::Path;
use std::sync::Arc;

use bytes::Bytes;
use parking_lot::{Mutex, RwLock};

use super::engine::{Changes, Each, Engine, Reader};
use super::{Keyspace, checksum};
use crate::Result;

/// Committed content of a memory engine; clones share it.
#[derive(Clone, Debug, Default)]
pub struct MemoryDisk {
    /// What an open finds: another one once a staged engine has taken the place of the live one.
    current: Arc<Mutex<SharedContent>>,
}

type SharedContent = Arc<RwLock<Content>>;

#[derive(Debug, Default)]
struct Content {
    keyspaces: [BTreeMap<Bytes, Versions>; Keyspace::COUNT],
    commit: u64,
    /// Readers by the commit they see.
    readers: BTreeMap<u64, usize>,
    in_use: u64,
}

/// Sealed values of one key with the commit that wrote each, ascending; `None` is a deletion.
type Versions = Vec<(u64, Option<Bytes>)>;

pub(crate) struct MemoryEngine {
    disk: MemoryDisk,
    content: SharedContent,
}

impl MemoryEngine {
    pub(crate) fn open(disk: &MemoryDisk) -> MemoryEngine {
        MemoryEngine {
            disk: disk.clone(),
            content: Arc::clone(&disk.current.lock()),
        }
    }
}

impl Engine for MemoryEngine {
    fn commit(&self, changes: &Changes<'_>) -> Result<()> {
        let content = &mut *self.content.write();
        content.commit += 1;
        let mut sealed = Vec::new();
        for (keyspace, log) in &changes.appended {
            for (key, value) in log.iter() {
                checksum::seal(key, value, &mut sealed);
                content.set(*keyspace, key, Some(Bytes::copy_from_slice(&sealed)));
            }
        }
        for (keyspace, key, value) in &changes.others {
            let value = value.map(|value| {
                checksum::seal(key, value, &mut sealed);
                Bytes::copy_from_slice(&sealed)
            });
            content.set(*keyspace, key, value);
        }
        Ok(())
    }

    fn reader(&self) -> Result<Arc<dyn Reader>> {
        let mut content = self.content.write();
        let commit = content.commit;
        *content.readers.entry(commit).or_default() += 1;
        drop(content);
        Ok(Arc::new(MemoryReader {
            content: Arc::clone(&self.content),
            commit,
        }))
    }

    fn pin(&self) -> Result<Arc<dyn Reader>> {
        self.reader()
    }

    fn reader_is_pinned(&self) -> bool {
        true
    }

    fn in_use(&self) -> u64 {
        self.content.read().in_use
    }

    fn stage_without_files(&self) -> Option<Arc<dyn Engine>> {
        Some(Arc::new(MemoryEngine {
            disk: self.disk.clone(),
            content: SharedContent::default(),
        }))
    }

    fn make_current_without_files(&self) {
        *self.disk.current.lock() = Arc::clone(&self.content);
    }
}

impl Content {
    fn set(&mut self, keyspace: Keyspace, key: &Bytes, value: Option<Bytes>) {
        let oldest_reader = self.readers.keys().next().copied().unwrap_or(self.commit);
        let keys = &mut self.keyspaces[keyspace.position()];
        // A key of its own: the one handed in may share the buffer's memory.
        let versions = match keys.get_mut(key) {
            Some(versions) => versions,
            None if value.is_none() => return,
            None => keys.entry(Bytes::copy_from_slice(key)).or_default(),
        };
        let bytes =
            |value: Option<&Bytes>| value.map_or(0, |value| (key.len() + value.len()) as u64);
        self.in_use -= bytes(versions.last().and_then(|(_, value)| value.as_ref()));
        self.in_use += bytes(value.as_ref());
        versions.push((self.commit, value));
        // Of the versions that the oldest reader may see, only the newest is needed.
        let seen = versions.partition_point(|(commit, _)| *commit <= oldest_reader);
        versions.drain(..seen.saturating_sub(1));
        if matches!(versions[..], [(_, None)]) {
            keys.remove(key);
        }
    }
}

struct MemoryReader {
    content: SharedContent,
    commit: u64,
}

impl MemoryReader {
    fn at<'a>(&self, versions: &'a Versions) -> Option<&'a Bytes> {
        versions
            .iter()
            .rev()
            .find(|(commit, _)| *commit <= self.commit)
            .and_then(|(_, value)| value.as_ref())
    }
}

impl Reader for MemoryReader {
    fn get(
        &self,
        keyspace: Keyspace,
        key: &[u8],
        found: &mut dyn FnMut(&[u8]) -> Result<()>,
    ) -> Result<()> {
        let stored = self.content.read().keyspaces[keyspace.position()]
            .get(key)
            .and_then(|versions| self.at(versions).cloned());
        stored.map_or(Ok(()), |stored| found(&stored))
    }

    fn scan(
        &self,
        keyspace: Keyspace,
        from: &[u8],
        to: Option<&[u8]>,
        each: &mut Each<'_>,
    ) -> Result<()> {
        const SLICE_KEYS: usize = 256;
        let upper = to.map_or(Bound::Unbounded, Bound::Excluded);
        let mut next = Some(Bound::Included(Bytes::copy_from_slice(from)));
        while let Some(lower) = next.take() {
            // Collected first: `each` may read or write the same disk.
            let slice: Vec<(Bytes, Bytes)> = self.content.read().keyspaces[keyspace.position()]
                .range::<[u8], _>((lower.as_ref().map(AsRef::as_ref), upper))
                .filter_map(|(key, versions)| Some((key.clone(), self.at(versions)?.clone())))
                .take(SLICE_KEYS)
                .collect();
            if slice.len() == SLICE_KEYS {
                next = slice.last().map(|(key, _)| Bound::Excluded(key.clone()));
            }
            for (key, stored) in slice {
                if let ControlFlow::Break(()) = each(&key, &stored)? {
                    return Ok(());
                }
            }
        }
        Ok(())
    }

    fn file(&self) -> &Path {
        Path::new("memory")
    }
}

impl Drop for MemoryReader {
    fn drop(&mut self) {
        let mut content = self.content.write();
        if let Some(readers) = content.readers.get_mut(&self.commit) {
            *readers -= 1;
            if *readers == 0 {
                content.readers.remove(&self.commit);
            }
        }
    }
}
