//! The log as openraft sees it, over the write-ahead log.
//!
//! Owns the order in which votes, entries, truncations and purges reach the log: openraft's core
//! calls one writing method at a time, and each puts its records into the log's queue before it
//! returns. Nothing waits for the disk but a vote, which must be durable before it is answered.
//!
//! ```text
//!   purged        on disk only       tail: in memory           last
//!     |------------------------|------------------------------->|
//!                                     flushed ^  (entries after it are in memory only)
//! ```
//! Invariants:
//! - `(purged, last]` has no hole; `terms` knows the term of each index in it, and of `purged`;
//! - the tail ends at `last`, and every entry after `flushed` is in it: an entry can be read from
//!   the moment `append` returns, whether or not it is on disk;
//! - `flushed` counts entries of the present log only: what a truncation removed is forgotten,
//!   even if its fsync is reported later (`epoch`).
//!
//! Source: openraft's `RaftLogStorage` and `RaftLogReader`.

use std::collections::VecDeque;
use std::fmt::Debug;
use std::io;
use std::ops::{Bound, RangeBounds, RangeInclusive};
use std::sync::Arc;

use futures_util::{Stream, StreamExt, stream};
use kv_wal::{Record, Recovered, Sync, Wal};
use openraft::storage::{IOFlushed, RaftLogStorage};
use openraft::{LogState, OptionalSend, RaftLogReader};
use parking_lot::Mutex;
use tokio::sync::oneshot;

use crate::encoding;
use crate::error::{Error, Result, damage, io_error};
use crate::types::{Entry, LogId, Payload, TypeConfig, Vote, index_of, raft_log_id, term_of};

/// Bytes of entries in one read for replication or apply; a larger single entry is read alone.
pub(crate) const READ_BYTES_MAX: u64 = 1 << 20;

/// What an entry costs in memory beside its body.
const ENTRY_OVERHEAD: u64 = 96;

/// Handle to the log; clones share it. openraft's core writes, any clone reads.
#[derive(Clone)]
pub(crate) struct LogStore {
    shared: Arc<Shared>,
}

struct Shared {
    wal: Wal,
    tail_bytes_max: u64,
    state: Mutex<State>,
}

struct State {
    vote: Option<Vote>,
    committed: Option<LogId>,
    purged: Option<LogId>,
    last: Option<LogId>,
    /// First index and term of each run of equal terms in `(purged, last]`, ascending.
    terms: VecDeque<(u64, u64)>,
    /// The newest entries, without a hole, ending at `last`.
    tail: VecDeque<Entry>,
    tail_bytes: u64,
    /// Newest index known to be on disk.
    flushed: u64,
    /// Counts truncations, so that a completion from before one is told apart.
    epoch: u64,
}

/// Where the entries of a read are.
enum Found {
    /// From memory.
    Entries(Vec<Entry>),
    /// On disk from `from` up to `to`, exclusive.
    OnDisk { from: u64, to: u64 },
}

impl LogStore {
    /// Takes over a log that was just opened, with what was found in it.
    ///
    /// Errors: a hole between entries, or a record that does not decode: the member must not start.
    pub(crate) fn open(wal: Wal, recovered: Recovered, tail_bytes_max: u64) -> Result<LogStore> {
        let decode = |what| move |source| Error::Decode { what, source };
        let vote = recovered
            .vote
            .as_ref()
            .map(encoding::decode_vote)
            .transpose();
        let committed = recovered
            .committed
            .as_ref()
            .map(encoding::decode_committed)
            .transpose();
        let purged = recovered
            .purged
            .and_then(|(index, term)| raft_log_id(index, term));
        let mut state = State {
            vote: vote.map_err(decode("vote"))?,
            committed: committed.map_err(decode("commit mark"))?.flatten(),
            purged,
            last: purged,
            terms: VecDeque::new(),
            tail: VecDeque::new(),
            tail_bytes: 0,
            flushed: 0,
            epoch: 0,
        };
        for entry in &recovered.entries {
            if entry.index <= index_of(state.purged.as_ref()) {
                continue;
            }
            if state.last.is_none() && entry.index != 1 {
                let first = entry.index;
                return Err(Error::Log(format!(
                    "it begins with entry {first}, but nothing is purged"
                )));
            }
            state.extend(entry.index, entry.term).map_err(Error::Log)?;
        }
        state.flushed = state.last_index();
        state.forget_foreign_mark();
        Ok(LogStore {
            shared: Arc::new(Shared {
                wal,
                tail_bytes_max,
                state: Mutex::new(state),
            }),
        })
    }

    /// Newest index that is on this member's disk.
    pub(crate) fn flushed_index(&self) -> u64 {
        self.shared.state.lock().flushed
    }

    /// Newest index that is no longer in the log.
    pub(crate) fn purged_index(&self) -> u64 {
        index_of(self.shared.state.lock().purged.as_ref())
    }

    /// Newest index in the log, newest index known to be committed.
    pub(crate) fn last_and_committed(&self) -> (u64, u64) {
        let state = self.shared.state.lock();
        (state.last_index(), index_of(state.committed.as_ref()))
    }

    /// Entries from `from` up to `to`, exclusive, as far as the log has them: all of them, or with
    /// `bytes_max` as many as fit, at least one.
    async fn read(&self, mut from: u64, to: u64, bytes_max: Option<u64>) -> io::Result<Vec<Entry>> {
        let budget = bytes_max.unwrap_or(u64::MAX);
        let mut entries = Vec::new();
        loop {
            // Looked up again each time: a truncation or a purge may come between two chunks.
            let (first, found) = {
                let state = self.shared.state.lock();
                let (first, end) = state.clamp(from, to);
                if first >= end {
                    return Ok(entries);
                }
                (first, state.find(first, end, budget))
            };
            if first > from {
                entries.clear();
                from = first;
            }
            let mut chunk = match found {
                Found::Entries(chunk) => chunk,
                Found::OnDisk { from, to } => match self.read_disk(from, to).await {
                    Ok(chunk) => chunk,
                    Err(_) if self.shared.state.lock().clamp(from, to) != (from, to) => continue,
                    Err(error) => return Err(error),
                },
            };
            from += chunk.len() as u64;
            entries.append(&mut chunk);
            if bytes_max.is_some() {
                return Ok(entries);
            }
        }
    }

    async fn read_disk(&self, from: u64, to: u64) -> io::Result<Vec<Entry>> {
        let wal = self.shared.wal.clone();
        let read = move || wal.read_entries(from, to, READ_BYTES_MAX);
        // A log that is stepped by hand is part of a simulation, which has one thread.
        let found = if self.shared.wal.is_stepped() {
            read()
        } else {
            tokio::task::spawn_blocking(read).await.map_err(io_error)?
        };
        let found = found.map_err(io_error)?;
        if found.is_empty() {
            return Err(damage(format!(
                "entries {from} to {to} are missing from the log on disk"
            )));
        }
        let mut entries = Vec::with_capacity(found.len());
        for ((index, term, body), expected) in found.into_iter().zip(from..) {
            if index != expected {
                return Err(damage(format!(
                    "the log on disk has entry {index}, not {expected}"
                )));
            }
            let log_id = raft_log_id(index, term).expect("the index is past `purged`");
            let payload = Payload::decode(body)
                .map_err(|error| damage(format!("entry {index} of the log: {error}")))?;
            entries.push(Entry { log_id, payload });
        }
        Ok(entries)
    }

    /// Puts records into the log's queue; they get to disk in the order of these calls.
    fn enqueue(
        &self,
        records: Vec<Record>,
        sync: Sync,
        done: Option<kv_wal::Completion>,
    ) -> io::Result<()> {
        self.shared
            .wal
            .append(records, sync, done)
            .map_err(io_error)
    }
}

impl State {
    fn last_index(&self) -> u64 {
        index_of(self.last.as_ref())
    }

    /// Index of the first entry that is in memory.
    fn tail_first(&self) -> u64 {
        self.last_index() + 1 - self.tail.len() as u64
    }

    /// The part of `[from, to)` that the log has.
    fn clamp(&self, from: u64, to: u64) -> (u64, u64) {
        let first = self.terms.front().map_or(u64::MAX, |(first, _)| *first);
        (from.max(first), to.min(self.last_index() + 1))
    }

    /// Notes that the log now ends with `(index, term)`.
    fn extend(&mut self, index: u64, term: u64) -> std::result::Result<(), String> {
        let (last, last_term) = (self.last_index(), term_of(self.last.as_ref()));
        if index != last + 1 && self.last.is_some() {
            return Err(format!("entry {index} follows entry {last}"));
        }
        if term < last_term {
            return Err(format!(
                "entry {index} of term {term} follows an entry of term {last_term}"
            ));
        }
        if self.terms.back().is_none_or(|(_, newest)| *newest != term) {
            self.terms.push_back((index, term));
        }
        self.last = raft_log_id(index, term);
        Ok(())
    }

    /// Drops a commit mark that does not stand for an entry of this log.
    ///
    /// Such a mark is left when the power fails while a snapshot is installed: it belongs to the
    /// snapshot, and the entries here may never have been committed.
    fn forget_foreign_mark(&mut self) {
        let Some(mark) = self.committed else { return };
        let index = index_of(Some(&mark));
        if self.term_at(index) != Some(mark.leader_id.term) {
            let (term, last) = (mark.leader_id.term, self.last_index());
            tracing::warn!(
                index,
                term,
                last,
                "the commit mark belongs to no entry of the log"
            );
            self.committed = None;
        }
    }

    fn term_at(&self, index: u64) -> Option<u64> {
        let purged = self.purged.as_ref();
        if index == 0 || index > self.last_index() || index < index_of(purged) {
            return None;
        }
        if index == index_of(purged) {
            return Some(term_of(purged));
        }
        let after = self.terms.partition_point(|(first, _)| *first <= index);
        Some(self.terms[after - 1].1)
    }

    /// The start of `[from, to)`, which the log has: from memory as much as `bytes_max` allows, at
    /// least one entry, or where it is on disk.
    fn find(&self, from: u64, to: u64, bytes_max: u64) -> Found {
        let first = self.tail_first();
        if from < first {
            return Found::OnDisk {
                from,
                to: to.min(first),
            };
        }
        let start = (from - first) as usize;
        let mut entries = Vec::with_capacity(((to - from) as usize).min(1024));
        let mut bytes = 0;
        for entry in self.tail.range(start..start + (to - from) as usize) {
            bytes += entry.payload.body().len() as u64;
            if bytes > bytes_max && !entries.is_empty() {
                break;
            }
            entries.push(entry.clone());
        }
        Found::Entries(entries)
    }

    /// Forgets the oldest entries in memory that are on disk, down to the bound.
    fn trim_tail(&mut self, tail_bytes_max: u64) {
        let mut first = self.tail_first();
        while self.tail_bytes > tail_bytes_max {
            if first > self.flushed {
                break;
            }
            self.pop_oldest();
            first += 1;
        }
    }

    fn pop_oldest(&mut self) {
        if let Some(entry) = self.tail.pop_front() {
            self.tail_bytes -= cost(&entry);
        }
    }

    /// Removes every entry after `index`.
    fn truncate_after(&mut self, index: u64) {
        let purged = index_of(self.purged.as_ref());
        assert!(
            purged <= index,
            "truncation after {index}, but entries up to {purged} are purged"
        );
        if index < self.last_index() {
            let keep = (index + 1).saturating_sub(self.tail_first()) as usize;
            let removed: u64 = self.tail.drain(keep..).map(|entry| cost(&entry)).sum();
            self.tail_bytes -= removed;
            self.last = self.log_id_of(index);
            while self.terms.back().is_some_and(|(first, _)| *first > index) {
                self.terms.pop_back();
            }
        }
        self.flushed = self.flushed.min(index);
        self.epoch += 1;
    }

    fn log_id_of(&self, index: u64) -> Option<LogId> {
        raft_log_id(index, self.term_at(index)?)
    }

    /// Forgets every entry up to `upto`, which may be past the end of the log.
    fn purge(&mut self, upto: LogId) {
        let index = index_of(Some(&upto));
        while !self.tail.is_empty() && self.tail_first() <= index {
            self.pop_oldest();
        }
        while self
            .terms
            .get(1)
            .is_some_and(|(first, _)| *first <= index + 1)
        {
            self.terms.pop_front();
        }
        self.purged = Some(upto);
        if self.last_index() <= index {
            self.last = Some(upto);
            self.terms.clear();
            self.flushed = self.flushed.max(index);
        } else if let Some(oldest) = self.terms.front_mut() {
            oldest.0 = oldest.0.max(index + 1);
        }
    }

    fn note_flushed(&mut self, epoch: u64, index: u64) {
        if epoch == self.epoch {
            self.flushed = self.flushed.max(index);
        }
    }
}

impl RaftLogStorage<TypeConfig> for LogStore {
    type LogReader = LogStore;

    async fn get_log_state(&mut self) -> io::Result<LogState<TypeConfig>> {
        let state = self.shared.state.lock();
        Ok(LogState {
            last_purged_log_id: state.purged,
            last_log_id: state.last,
        })
    }

    async fn get_log_reader(&mut self) -> LogStore {
        self.clone()
    }

    async fn save_vote(&mut self, vote: &Vote) -> io::Result<()> {
        self.shared.state.lock().vote = Some(*vote);
        let (done, durable) = oneshot::channel();
        let completion: kv_wal::Completion = Box::new(move |result| drop(done.send(result)));
        self.enqueue(
            vec![Record::Vote(encoding::encode_vote(vote))],
            Sync::Yes,
            Some(completion),
        )?;
        durable.await.map_err(io_error)?.map_err(io_error)
    }

    async fn save_committed(&mut self, committed: Option<LogId>) -> io::Result<()> {
        self.shared.state.lock().committed = committed;
        let mark = encoding::encode_committed(committed.as_ref());
        // A lost mark only makes a restart learn again what is committed.
        self.enqueue(vec![Record::Committed(mark)], Sync::No, None)
    }

    async fn read_committed(&mut self) -> io::Result<Option<LogId>> {
        Ok(self.shared.state.lock().committed)
    }

    async fn append<I>(&mut self, entries: I, callback: IOFlushed<TypeConfig>) -> io::Result<()>
    where
        I: IntoIterator<Item = Entry> + OptionalSend,
        I::IntoIter: OptionalSend,
    {
        let mut records = Vec::new();
        let (epoch, last) = {
            let mut state = self.shared.state.lock();
            for entry in entries {
                let (index, term) = (index_of(Some(&entry.log_id)), entry.log_id.leader_id.term);
                state.extend(index, term).map_err(damage)?;
                records.push(Record::Entry {
                    index,
                    term,
                    payload: entry.payload.body().clone(),
                });
                state.tail_bytes += cost(&entry);
                state.tail.push_back(entry);
            }
            state.trim_tail(self.shared.tail_bytes_max);
            (state.epoch, state.last_index())
        };
        let shared = self.shared.clone();
        let completion: kv_wal::Completion = Box::new(move |result| match result {
            Ok(()) => {
                shared.state.lock().note_flushed(epoch, last);
                callback.io_completed(Ok(()));
            }
            Err(error) => callback.io_completed(Err(io_error(error))),
        });
        self.enqueue(records, Sync::Yes, Some(completion))
    }

    async fn truncate_after(&mut self, last_log_id: Option<LogId>) -> io::Result<()> {
        let after = index_of(last_log_id.as_ref());
        let epoch = {
            let mut state = self.shared.state.lock();
            state.truncate_after(after);
            state.epoch
        };
        // Entries up to `after` may still be on their way to disk, and their completions no longer
        // count; this one stands for them.
        let shared = self.shared.clone();
        let completion: kv_wal::Completion = Box::new(move |result| {
            if result.is_ok() {
                shared.state.lock().note_flushed(epoch, after);
            }
        });
        self.enqueue(
            vec![Record::Truncate { after }],
            Sync::Yes,
            Some(completion),
        )
    }

    async fn purge(&mut self, log_id: LogId) -> io::Result<()> {
        let (index, term) = (index_of(Some(&log_id)), log_id.leader_id.term);
        self.shared.state.lock().purge(log_id);
        self.enqueue(vec![Record::Purge { index, term }], Sync::Yes, None)?;
        // In the same queue: files go only when the disk knows that their entries are not needed.
        self.shared.wal.purge_files(index + 1).map_err(io_error)
    }
}

impl RaftLogReader<TypeConfig> for LogStore {
    async fn try_get_log_entries<RB>(&mut self, range: RB) -> io::Result<Vec<Entry>>
    where
        RB: RangeBounds<u64> + Clone + Debug + OptionalSend,
    {
        let (from, to) = indexes(&range);
        self.read(from, to, None).await
    }

    async fn limited_get_log_entries(&mut self, start: u64, end: u64) -> io::Result<Vec<Entry>> {
        let (from, to) = indexes(&(start..end));
        self.read(from, to, Some(READ_BYTES_MAX)).await
    }

    /// The entries in chunks of at most [`READ_BYTES_MAX`], so that a long replay is not one read.
    async fn entries_stream<RB>(
        &mut self,
        range: RB,
    ) -> impl Stream<Item = io::Result<Entry>> + OptionalSend
    where
        RB: RangeBounds<u64> + Clone + Debug + OptionalSend,
    {
        let (from, to) = indexes(&range);
        let log = self.clone();
        stream::unfold((log, from), move |(log, from)| async move {
            if from >= to {
                return None;
            }
            match log.read(from, to, Some(READ_BYTES_MAX)).await {
                Ok(entries) => {
                    let next = entries
                        .last()
                        .map(|entry| index_of(Some(&entry.log_id)) + 1)?;
                    Some((
                        stream::iter(entries.into_iter().map(Ok).collect::<Vec<_>>()),
                        (log, next),
                    ))
                }
                Err(error) => Some((stream::iter(vec![Err(error)]), (log, u64::MAX))),
            }
        })
        .flatten()
    }

    async fn read_vote(&mut self) -> io::Result<Option<Vote>> {
        Ok(self.shared.state.lock().vote)
    }

    /// The last log id of each term in the range. (The words of the trait ask for the first ones;
    /// openraft's own implementation, its users and its suite have the last.)
    async fn get_key_log_ids(&mut self, range: RangeInclusive<LogId>) -> io::Result<Vec<LogId>> {
        let (from, to) = (index_of(Some(range.start())), index_of(Some(range.end())));
        let state = self.shared.state.lock();
        let nexts = state.terms.iter().skip(1).map(|(first, _)| *first);
        let ends = nexts.chain([state.last_index() + 1]).map(|next| next - 1);
        let runs = state.terms.iter().zip(ends);
        let touched = runs.filter(|((first, _), end)| from <= *end && *first <= to);
        Ok(touched
            .filter_map(|((_, term), end)| raft_log_id(end.min(to), *term))
            .collect())
    }
}

fn cost(entry: &Entry) -> u64 {
    ENTRY_OVERHEAD + entry.payload.body().len() as u64
}

/// A range of openraft's indexes as ours, half open.
fn indexes(range: &impl RangeBounds<u64>) -> (u64, u64) {
    let from = match range.start_bound() {
        Bound::Included(index) => index.saturating_add(1),
        Bound::Excluded(index) => index.saturating_add(2),
        Bound::Unbounded => 1,
    };
    let to = match range.end_bound() {
        Bound::Included(index) => index.saturating_add(2),
        Bound::Excluded(index) => index.saturating_add(1),
        Bound::Unbounded => u64::MAX,
    };
    (from, to)
}

#[cfg(test)]
mod tests;
