//! A model of the log, and a driver that keeps it in step with a real one on a [`FaultFs`].
#![allow(dead_code, reason = "each test crate uses its part")]

use std::path::{Path, PathBuf};
use std::sync::Arc;

use bytes::Bytes;
use kv_wal::fs::FaultFs;
use kv_wal::{Config, Error, Identity, Record, Recovered, Step, Sync, Wal};
use parking_lot::Mutex;

pub(crate) const DIR: &str = "/member/wal";
pub(crate) const IDENTITY: Identity = Identity {
    cluster_id: 1,
    member_id: 2,
    incarnation: 3,
};
pub(crate) const SEGMENT_BYTES: u64 = 16 * 1024;

pub(crate) fn config() -> Config {
    Config {
        segment_bytes: SEGMENT_BYTES,
        ..Config::new(DIR, IDENTITY)
    }
}

pub(crate) fn create(fs: &FaultFs) -> Result<Wal, Error> {
    Wal::create_stepped(Arc::new(fs.clone()), config())
}

pub(crate) fn open(fs: &FaultFs) -> Result<(Wal, Recovered), Error> {
    Wal::open_stepped(Arc::new(fs.clone()), config())
}

/// Does all there is to do.
pub(crate) fn settle(wal: &Wal) -> Step {
    loop {
        match wal.step() {
            Step::Progress => {}
            step => return step,
        }
    }
}

pub(crate) fn entry(index: u64, term: u64, len: usize) -> Record {
    // The payload tells its index, so that one entry cannot pass for another.
    let seed = index.wrapping_mul(0x9e37_79b9).wrapping_add(term);
    let payload: Vec<u8> = (0..len as u64)
        .map(|at| (seed.wrapping_mul(at + 1) >> 8) as u8)
        .collect();
    Record::Entry {
        index,
        term,
        payload: payload.into(),
    }
}

/// What a log holds after some records.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(crate) struct Model {
    pub(crate) vote: Option<Bytes>,
    pub(crate) committed: Option<Bytes>,
    pub(crate) purged: Option<(u64, u64)>,
    pub(crate) entries: Vec<(u64, u64, Bytes)>,
    pub(crate) next: u64,
}

impl Model {
    pub(crate) fn apply(&mut self, record: &Record) {
        match record.clone() {
            Record::Entry {
                index,
                term,
                payload,
            } => {
                self.entries.push((index, term, payload));
                self.next = index + 1;
            }
            Record::Vote(bytes) => self.vote = Some(bytes),
            Record::Committed(bytes) => self.committed = Some(bytes),
            Record::Truncate { after } => {
                self.entries.retain(|(index, ..)| *index <= after);
                self.next = self.next.min(after + 1);
            }
            Record::Purge { index, term } => {
                self.entries.retain(|(at, ..)| *at > index);
                self.purged = Some((index, term));
                self.next = self.next.max(index + 1);
            }
        }
    }

    /// What a recovered log holds, its payloads read from disk.
    pub(crate) fn of(wal: &Wal, recovered: &Recovered) -> Model {
        let (first, next) = match (recovered.entries.first(), recovered.entries.last()) {
            (Some(first), Some(last)) => (first.index, last.index + 1),
            _ => (0, 0),
        };
        let mut entries = Vec::new();
        while first + (entries.len() as u64) < next {
            entries.extend(
                wal.read_entries(first + entries.len() as u64, next, 700)
                    .expect("recovered entries are readable"),
            );
        }
        let metas: Vec<_> = entries
            .iter()
            .map(|(index, term, payload)| (*index, *term, payload.len() as u32))
            .collect();
        let told: Vec<_> = recovered
            .entries
            .iter()
            .map(|meta| (meta.index, meta.term, meta.payload_len))
            .collect();
        assert_eq!(metas, told, "what is read is not what was recovered");
        Model {
            vote: recovered.vote.clone(),
            committed: recovered.committed.clone(),
            purged: recovered.purged,
            entries,
            next,
        }
    }

    pub(crate) fn same_content(&self, other: &Model) -> bool {
        (&self.vote, &self.committed, self.purged, &self.entries)
            == (&other.vote, &other.committed, other.purged, &other.entries)
    }
}

/// Every record that was appended, in order, and how many of them were acknowledged.
#[derive(Default)]
pub(crate) struct History {
    pub(crate) records: Vec<Record>,
    pub(crate) acked: Arc<Mutex<usize>>,
}

impl History {
    /// Appends to the log; `None` if it refuses because it has failed.
    pub(crate) fn append(&mut self, wal: &Wal, records: Vec<Record>, sync: Sync) -> Option<()> {
        let end = self.records.len() + records.len();
        let acked = Arc::clone(&self.acked);
        self.records.extend(records.iter().cloned());
        let done = Box::new(move |result: Result<(), Error>| {
            if result.is_ok() {
                let mut acked = acked.lock();
                assert!(
                    *acked <= end,
                    "completion of record {end} after that of record {acked}"
                );
                *acked = end;
            }
        });
        wal.append(records, sync, Some(done)).ok()
    }

    pub(crate) fn acked(&self) -> usize {
        *self.acked.lock()
    }

    /// The number of records that explain what was found: at least the acknowledged ones, at most all.
    pub(crate) fn explains(&self, found: &Model) -> Option<usize> {
        let mut model = Model::default();
        for record in &self.records[..self.acked()] {
            model.apply(record);
        }
        let mut count = self.acked();
        loop {
            if model.same_content(found) {
                return Some(count);
            }
            model.apply(self.records.get(count)?);
            count += 1;
        }
    }
}

/// A small generator (xorshift), so that a workload replays from its seed.
pub(crate) struct Random(pub u64);

impl Random {
    pub(crate) fn below(&mut self, bound: u64) -> u64 {
        self.0 ^= self.0 << 13;
        self.0 ^= self.0 >> 7;
        self.0 ^= self.0 << 17;
        self.0 % bound
    }
}

/// The segment files in order.
pub(crate) fn segments(fs: &FaultFs) -> Vec<PathBuf> {
    use kv_wal::fs::Fs;
    let files = fs.list(Path::new(DIR)).expect("the folder exists");
    files
        .into_iter()
        .filter(|file| file.extension().is_some_and(|extension| extension == "wal"))
        .collect()
}

/// Where the bytes of a file that are not zero end, rounded up to whole frames.
pub(crate) fn used(fs: &FaultFs, file: &Path) -> usize {
    let bytes = fs.contents(file).expect("the file exists");
    bytes
        .iter()
        .rposition(|byte| *byte != 0)
        .map_or(0, |last| (last + 1).next_multiple_of(8))
}

/// A seeded mix of everything a log is asked to do. Ends early when the log fails. Returns what was asked for.
pub(crate) fn workload(wal: &Wal, history: &mut History, seed: u64, rounds: u64) -> Model {
    let mut random = Random(seed.wrapping_mul(0x2545_f491_4f6c_dd1d) | 1);
    let mut model = Model::default();
    for record in &history.records {
        model.apply(record);
    }
    let mut term = 1;
    for round in 0..rounds {
        let mut records = Vec::new();
        let sync = if random.below(4) == 0 {
            Sync::No
        } else {
            Sync::Yes
        };
        match random.below(12) {
            0 => {
                term += 1;
                records.push(Record::Vote(Bytes::from(format!(
                    "vote {term} in round {round}"
                ))));
            }
            1 | 2 => records.push(Record::Committed(Bytes::from(format!(
                "committed {}",
                model.next
            )))),
            3 if model.entries.len() > 2 => {
                let at = model.entries.len() as u64 - 1 - random.below(2);
                records.push(Record::Truncate {
                    after: model.entries[at as usize].0,
                });
                term += 1;
            }
            4 if model.entries.len() > 8 => {
                let (index, term, _) = model.entries[model.entries.len() / 2];
                records.push(Record::Purge { index, term });
            }
            5 if round > rounds / 2 && random.below(3) == 0 => {
                // As after a snapshot from the leader: behind everything there is.
                records.push(Record::Purge {
                    index: model.next + 5,
                    term,
                });
            }
            _ => {}
        }
        let mut next = model.next;
        for record in &records {
            model.apply(record);
            next = model.next;
        }
        for _ in 0..random.below(4) {
            let len = match random.below(16) {
                0 => 5_000,
                1 => 0,
                n => n * 120,
            };
            records.push(entry(next, term, len as usize));
            next += 1;
        }
        for record in &records {
            if let Record::Entry { .. } = record {
                model.apply(record);
            }
        }
        if history.append(wal, records, sync).is_none() {
            return model;
        }
        if let Some((purged, _)) = model.purged
            && random.below(3) == 0
            && wal.purge_files(purged + 1).is_err()
        {
            return model;
        }
        match random.below(3) {
            0 => {}
            1 => {
                wal.step();
            }
            _ => {
                settle(wal);
            }
        }
    }
    settle(wal);
    model
}
