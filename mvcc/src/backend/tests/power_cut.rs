//! The power is cut at any moment: un-synced pages survive at random versions.
//!
//! redb runs over a file in memory that knows what has been synced. At each chosen operation an image of what the disk might hold is
//! made, opened, and compared with a replay up to the index that it names.

use std::io;
use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use ::redb::StorageBackend;
use parking_lot::Mutex;

use super::rounds;
use super::workload::{Model, Random, Values, batch};
use crate::backend::redb::RedbEngine;
use crate::backend::{Backend, Options};

const PAGE_BYTES: u64 = 4096;

#[test]
fn redb_keeps_what_was_acknowledged_before_a_power_cut() {
    let mut images = 0;
    for seed in 0..rounds(10) {
        images += cut_in_one_run(seed, Sync::Real);
    }
    assert!(images >= rounds(10) * 15, "only {images} images were made");
}

/// The control: a disk that ignores syncs must fail the same test, or the test sees nothing.
#[test]
fn power_cut_is_noticed_where_syncs_do_nothing() {
    let lost = (0..4)
        .filter(|seed| std::panic::catch_unwind(|| cut_in_one_run(*seed, Sync::Ignored)).is_err())
        .count();
    assert!(lost > 0, "a disk without syncs lost nothing");
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Sync {
    Real,
    Ignored,
}

/// Runs the workload once, makes images at random operations and checks each; returns their number.
fn cut_in_one_run(seed: u64, sync: Sync) -> u64 {
    const ENTRIES: u64 = 120;
    let mut random = Random(seed ^ 0x5eed);
    let acknowledged = Arc::new(AtomicU64::new(0));
    let disk = Disk::new(Vec::new(), sync);
    let backend = start(&disk);
    // A cut while the file is being made leaves a generation that nothing names, and which is never opened.
    disk.state.lock().cuts = Some(Cuts {
        random: Random(seed),
        acknowledged: Arc::clone(&acknowledged),
        images: Vec::new(),
    });
    for index in 1..=ENTRIES {
        backend.write(batch(index, Values::Small));
        if random.below(5) == 0 {
            acknowledged.store(backend.checkpoint().unwrap(), Ordering::SeqCst);
        }
    }
    drop(backend);

    let images = disk
        .state
        .lock()
        .cuts
        .take()
        .map(|cuts| cuts.images)
        .unwrap_or_default();
    let mut model = Model::new(Values::Small);
    for (number, image) in images.iter().enumerate() {
        let backend = start(&Disk::new(image.content.clone(), Sync::Real));
        let applied = backend.durable_index();
        assert!(
            image.acknowledged <= applied,
            "seed {seed}, image {number}: {} was acknowledged, {applied} is there",
            image.acknowledged
        );
        if applied < model.index {
            model = Model::new(Values::Small);
        }
        model.advance(applied);
        if let Err(error) = model.compare(&backend) {
            panic!("seed {seed}, image {number}: {error}");
        }
        // It must also go on from there.
        backend.write(batch(applied + 1, Values::Small));
        assert_eq!(backend.checkpoint().unwrap(), applied + 1);
    }
    images.len() as u64
}

fn start(disk: &Disk) -> Backend {
    let options = Options {
        commit_interval: std::time::Duration::from_secs(3600),
        ..Options::default()
    };
    let engine = RedbEngine::open_with(disk.clone(), Path::new("disk"), 1 << 20).unwrap();
    Backend::start(None, Arc::new(engine), options).unwrap()
}

/// A file in memory.
#[derive(Clone, Debug)]
struct Disk {
    state: Arc<Mutex<DiskState>>,
    sync: Sync,
}

#[derive(Debug)]
struct DiskState {
    /// What reads see.
    live: Vec<u8>,
    /// What was there at the last sync.
    durable: Vec<u8>,
    /// What was done since.
    pending: Vec<Pending>,
    cuts: Option<Cuts>,
}

#[derive(Debug)]
enum Pending {
    Write { offset: u64, data: Vec<u8> },
    Length(u64),
}

struct Cuts {
    random: Random,
    acknowledged: Arc<AtomicU64>,
    images: Vec<Image>,
}

struct Image {
    content: Vec<u8>,
    /// Index that had been acknowledged when the power was cut.
    acknowledged: u64,
}

impl std::fmt::Debug for Cuts {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{} images", self.images.len())
    }
}

impl Disk {
    fn new(content: Vec<u8>, sync: Sync) -> Disk {
        Disk {
            state: Arc::new(Mutex::new(DiskState {
                live: content.clone(),
                durable: content,
                pending: Vec::new(),
                cuts: None,
            })),
            sync,
        }
    }
}

impl DiskState {
    /// Called before each change: the power may be cut here.
    fn maybe_cut(&mut self) {
        const ONE_IN: u64 = 30;
        let Some(cuts) = &mut self.cuts else { return };
        if cuts.random.below(ONE_IN) != 0 {
            return;
        }
        let image = Image {
            acknowledged: cuts.acknowledged.load(Ordering::SeqCst),
            content: surviving(&self.durable, &self.pending, &mut cuts.random),
        };
        cuts.images.push(image);
    }
}

/// What a disk may hold: each page at a random one of its versions since the last sync; lengths up to a random one.
fn surviving(durable: &[u8], pending: &[Pending], random: &mut Random) -> Vec<u8> {
    let lengths: Vec<u64> = pending
        .iter()
        .filter_map(|change| match change {
            Pending::Length(len) => Some(*len),
            Pending::Write { .. } => None,
        })
        .collect();
    let len = match random.below(lengths.len() as u64 + 1) {
        0 => durable.len() as u64,
        kept => lengths[kept as usize - 1],
    };
    let mut content = durable.to_vec();
    content.resize(len as usize, 0);
    // By page, how many of its writes reached the disk.
    let mut kept = std::collections::BTreeMap::new();
    for (at, change) in pending.iter().enumerate() {
        if let Pending::Write { offset, data } = change {
            for page in offset / PAGE_BYTES..=(offset + data.len() as u64 - 1) / PAGE_BYTES {
                kept.entry(page).or_insert_with(Vec::new).push(at);
            }
        }
    }
    for (page, writes) in kept {
        let reached = random.below(writes.len() as u64 + 1) as usize;
        for at in &writes[..reached] {
            let Pending::Write { offset, data } = &pending[*at] else {
                continue;
            };
            let start = (*offset).max(page * PAGE_BYTES);
            let end = (offset + data.len() as u64)
                .min((page + 1) * PAGE_BYTES)
                .min(len);
            if start < end {
                content[start as usize..end as usize]
                    .copy_from_slice(&data[(start - offset) as usize..(end - offset) as usize]);
            }
        }
    }
    content
}

impl StorageBackend for Disk {
    fn len(&self) -> io::Result<u64> {
        Ok(self.state.lock().live.len() as u64)
    }

    fn read(&self, offset: u64, out: &mut [u8]) -> io::Result<()> {
        let state = self.state.lock();
        let content = state
            .live
            .get(offset as usize..offset as usize + out.len())
            .ok_or(io::ErrorKind::UnexpectedEof)?;
        out.copy_from_slice(content);
        Ok(())
    }

    fn set_len(&self, len: u64) -> io::Result<()> {
        let mut state = self.state.lock();
        state.maybe_cut();
        state.live.resize(len as usize, 0);
        state.pending.push(Pending::Length(len));
        Ok(())
    }

    fn sync_data(&self) -> io::Result<()> {
        let mut state = self.state.lock();
        state.maybe_cut();
        if self.sync == Sync::Real {
            state.durable = state.live.clone();
            state.pending.clear();
        }
        Ok(())
    }

    fn write(&self, offset: u64, data: &[u8]) -> io::Result<()> {
        let mut state = self.state.lock();
        state.maybe_cut();
        let end = offset as usize + data.len();
        if state.live.len() < end {
            state.live.resize(end, 0);
        }
        state.live[offset as usize..end].copy_from_slice(data);
        state.pending.push(Pending::Write {
            offset,
            data: data.to_vec(),
        });
        Ok(())
    }
}
