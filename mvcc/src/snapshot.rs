//! The whole store as a stream of records, to be sent to another member, and its install there.
//!
//! A [`Snapshot`] walks a pinned view of every keyspace and holds one chunk in memory. The stream does not depend on
//! the engine. Numbers are little endian:
//!
//! ```text
//! head      "kvdsnap\n" 8 | format version 4, which is 1
//! record    keyspace 1 | length of the key 4 | length of the value 4 | key | value
//! end       zero 1 | number of records 8 | crc32 of all bytes before it 4
//! ```
//! Records come keyspace by keyspace in the order of [`Keyspace::ALL`], keys ascending, so that the applied mark (in
//! Meta) is among the last. A chunk holds whole records, except that a record above [`CHUNK_BYTES_MAX`] is cut; a
//! reader takes the stream in pieces of any size. What ends early, goes on after its end, is out of order or does not
//! match its sum is refused, and nothing of it is used.
//!
//! A [`Receiver`] builds the new database beside the live one, while the bytes arrive, and reads from it what the store
//! keeps in memory; [`Store::install`] only switches. A snapshot contains the history of the store that it replaces,
//! so a read that is under way goes on across the switch: what it pinned is either still there or compacted, and
//! then it says so.

use std::io;
use std::ops::ControlFlow;
use std::path::PathBuf;
use std::sync::Arc;

use bytes::{Buf, BufMut, Bytes, BytesMut};

use crate::backend::{EngineKind, Keyspace, Staged, Staging, View};
use crate::lease::LessorOptions;
use crate::recovery::{self, Recovered};
use crate::store::Store;
use crate::{Error, Result};

/// No chunk of a snapshot is larger.
pub const CHUNK_BYTES_MAX: usize = 512 << 10;

const MAGIC: &[u8; 8] = b"kvdsnap\n";
const FORMAT: u32 = 1;
const HEAD_BYTES: usize = 12;
const RECORD_HEAD_BYTES: usize = 9;
/// In the place of a keyspace: no more records.
const END: u8 = 0;
const END_HEAD_BYTES: usize = 9;
/// No key with its value is larger: it came with an entry of the log, which has at most 1 GiB, or is smaller.
const RECORD_BYTES_MAX: u64 = (1 << 30) + (64 << 10);

/// The store at one moment, read in chunks.
pub struct Snapshot {
    view: Arc<View>,
    next: Option<Position>,
    records: u64,
    crc: crc32fast::Hasher,
    chunk: BytesMut,
}

/// Takes in a snapshot, beside the live database. Holds no part of the store, which may be closed meanwhile.
pub struct Receiver {
    staging: Staging,
    engine: EngineKind,
    lessor: LessorOptions,
}

/// A whole snapshot, durable and not used yet. Dropped, it leaves nothing behind.
pub struct Received {
    staged: Staged,
    recovered: Recovered,
}

impl Receiver {
    /// Reads a stream to its end, which verifies all of it, and makes it durable.
    ///
    /// `next_chunk` gives the bytes in pieces of any size and `None` at their end; it may block. An error leaves nothing
    /// behind: [`Error::Damage`] if the stream is not a whole snapshot, [`Error::Io`] of the disk or of `next_chunk`,
    /// [`Error::Closed`] if the store was closed.
    pub fn receive(
        mut self,
        next_chunk: impl FnMut() -> io::Result<Option<Bytes>>,
    ) -> Result<Received> {
        let mut reader = Reader::new(next_chunk);
        while let Some((keyspace, key, value)) = reader.next()? {
            self.staging.put(keyspace, key, value)?;
        }
        let staged = self.staging.finish()?;
        let recovered = recovery::recover(&staged.view()?, self.engine, self.lessor)?;
        Ok(Received { staged, recovered })
    }
}

/// Where a walk over all keyspaces goes on.
struct Position {
    keyspace: usize,
    from: Vec<u8>,
}

impl Store {
    /// Pins the present state for sending it; costs nothing until it is read.
    pub fn snapshot(&self) -> Result<Snapshot> {
        Ok(Snapshot::of(Arc::new(self.backend.view()?)))
    }

    /// Begins to take in a snapshot. While it is there the database is not defragmented.
    pub fn receiver(&self) -> Result<Receiver> {
        Ok(Receiver {
            staging: self.backend.stage()?,
            engine: self.backend.engine(),
            lessor: self.lessor.options(),
        })
    }

    /// Replaces everything by what a snapshot contains: keys, leases, the applied mark, all other keyspaces.
    ///
    /// Only the one who applies may call it, and on a thread that may block; readers go on. It is durable and complete
    /// on return, and after a crash at any moment the next start finds the old state or the new one. Errors:
    /// [`Error::Damage`] if the snapshot is older than this store, which then has not changed; an error of the disk
    /// while switching ends all commits. Panics if another store's receiver took it in.
    pub fn install(&self, received: Received) -> Result<()> {
        let Received { staged, recovered } = received;
        // No compaction may remove, and nobody write, from here on.
        let _compactor = self.compactor.pause();
        let _writer = self.writer.lock();
        let (applied, current) = (self.applied()?, self.revision());
        if staged.applied() < applied || recovered.current < current {
            return Err(refused(format!(
                "it contains log index {} and revision {}, and this member has {applied} and {current}",
                staged.applied(),
                recovered.current
            )));
        }
        let Recovered {
            index,
            current,
            scheduled_compaction,
            finished_compaction,
            term,
            lessor,
        } = recovered;
        let compacted = scheduled_compaction.max(finished_compaction);
        let switch = staged.make_current(&self.backend)?;
        let old_index = {
            // Readers that have pinned a revision wait here for the index that has it. The revisions come first: a
            // read that finds a value gone must find it compacted, and a compacted revision is never above the current.
            let mut live_index = self.index.write();
            self.take_over(current, compacted.unwrap_or(-1), term);
            switch.swap();
            std::mem::replace(&mut *live_index, index)
        };
        self.cache.clear();
        self.hashes.clear();
        self.lessor.replace(lessor);
        self.compactor
            .restart(scheduled_compaction, finished_compaction);
        self.hub.restored(current);
        drop(old_index);
        Ok(())
    }
}

impl Snapshot {
    fn of(view: Arc<View>) -> Snapshot {
        let mut chunk = BytesMut::new();
        chunk.put_slice(MAGIC);
        chunk.put_u32_le(FORMAT);
        let mut crc = crc32fast::Hasher::new();
        crc.update(&chunk);
        Snapshot {
            view,
            next: Some(Position {
                keyspace: 0,
                from: Vec::new(),
            }),
            records: 0,
            crc,
            chunk,
        }
    }

    /// The same state from its start: the same bytes again, in chunks of the same sizes.
    pub fn again(&self) -> Snapshot {
        Snapshot::of(self.view.clone())
    }

    /// What is sent.
    pub fn view(&self) -> &View {
        &self.view
    }

    /// The next chunk, at most [`CHUNK_BYTES_MAX`] long; `None` at the end. May read the engine.
    ///
    /// Errors: [`Error::Damage`]; the snapshot is of no more use.
    pub fn next_chunk(&mut self) -> Result<Option<Bytes>> {
        while self.chunk.len() < CHUNK_BYTES_MAX
            && let Some(position) = self.next.take()
        {
            let (next, full) = self.fill(position)?;
            self.next = next;
            if full {
                break;
            }
        }
        let len = self.chunk.len().min(CHUNK_BYTES_MAX);
        Ok((len > 0).then(|| self.chunk.split_to(len).freeze()))
    }

    /// Adds records from `position` on; returns where to go on, and whether the chunk is full.
    fn fill(&mut self, position: Position) -> Result<(Option<Position>, bool)> {
        let Position { keyspace, from } = position;
        let Some(&scanned) = Keyspace::ALL.get(keyspace) else {
            self.end();
            return Ok((None, false));
        };
        let Snapshot {
            view,
            chunk,
            crc,
            records,
            ..
        } = self;
        let mut next = None;
        view.scan(scanned, &from, None, &mut |key, value| {
            let bytes = RECORD_HEAD_BYTES + key.len() + value.len();
            if !chunk.is_empty() && chunk.len() + bytes > CHUNK_BYTES_MAX {
                next = Some(key.to_vec());
                return ControlFlow::Break(());
            }
            let start = chunk.len();
            chunk.put_u8(scanned as u8);
            chunk.put_u32_le(length(key));
            chunk.put_u32_le(length(value));
            chunk.put_slice(key);
            chunk.put_slice(value);
            crc.update(&chunk[start..]);
            *records += 1;
            ControlFlow::Continue(())
        })?;
        let full = next.is_some();
        let position = match next {
            Some(from) => Position { keyspace, from },
            None => Position {
                keyspace: keyspace + 1,
                from: Vec::new(),
            },
        };
        Ok((Some(position), full))
    }

    fn end(&mut self) {
        let start = self.chunk.len();
        self.chunk.put_u8(END);
        self.chunk.put_u64_le(self.records);
        self.crc.update(&self.chunk[start..]);
        self.chunk.put_u32_le(self.crc.clone().finalize());
    }
}

/// Reads the records of a stream, and refuses one that is not whole.
struct Reader<F> {
    next_chunk: F,
    buffer: BytesMut,
    crc: crc32fast::Hasher,
    records: u64,
    /// The last record, as position of the keyspace and key.
    last: Option<(usize, Bytes)>,
    started: bool,
}

impl<F: FnMut() -> io::Result<Option<Bytes>>> Reader<F> {
    fn new(next_chunk: F) -> Reader<F> {
        Reader {
            next_chunk,
            buffer: BytesMut::new(),
            crc: crc32fast::Hasher::new(),
            records: 0,
            last: None,
            started: false,
        }
    }

    /// The next record; `None` once the stream has ended as it must.
    fn next(&mut self) -> Result<Option<(Keyspace, Bytes, Bytes)>> {
        if !self.started {
            self.start()?;
        }
        self.fill(1)?;
        if self.buffer[0] == END {
            self.end()?;
            return Ok(None);
        }
        let head = self.take(RECORD_HEAD_BYTES)?;
        let mut lengths = &head[1..];
        let key_len = lengths.get_u32_le() as usize;
        let value_len = lengths.get_u32_le() as usize;
        let keyspace = Keyspace::ALL
            .into_iter()
            .find(|keyspace| *keyspace as u8 == head[0])
            .ok_or_else(|| refused(format!("it names the unknown keyspace {:#04x}", head[0])))?;
        if key_len as u64 + value_len as u64 > RECORD_BYTES_MAX {
            return Err(refused(format!(
                "a record of keyspace {} claims {key_len} and {value_len} bytes",
                keyspace.name()
            )));
        }
        // One allocation for both.
        let mut key = self.take(key_len + value_len)?;
        let value = key.split_off(key_len);
        let place = (keyspace.position(), key.clone());
        if self.last.as_ref().is_some_and(|last| place <= *last) {
            return Err(refused(format!(
                "keyspace {}, key {} is out of order",
                keyspace.name(),
                key.escape_ascii()
            )));
        }
        self.last = Some(place);
        self.records += 1;
        Ok(Some((keyspace, key, value)))
    }

    fn start(&mut self) -> Result<()> {
        let head = self.take(HEAD_BYTES)?;
        let (magic, mut format) = head.split_at(MAGIC.len());
        let format = format.get_u32_le();
        if magic != MAGIC {
            return Err(refused("it is not a snapshot".to_owned()));
        }
        if format != FORMAT {
            return Err(refused(format!(
                "it has format {format}, and this version reads {FORMAT}"
            )));
        }
        self.started = true;
        Ok(())
    }

    fn end(&mut self) -> Result<()> {
        let counted = self.take(END_HEAD_BYTES)?;
        let (said, sum) = ((&counted[1..]).get_u64_le(), self.crc.clone().finalize());
        let stored = self.take(4)?.get_u32_le();
        if said != self.records || stored != sum {
            return Err(refused(format!(
                "it says {said} records with crc32 {stored:08x}, and has {} with {sum:08x}",
                self.records
            )));
        }
        while let Some(chunk) = (self.next_chunk)().map_err(|error| unread(&error))? {
            self.buffer.extend_from_slice(&chunk);
            if !self.buffer.is_empty() {
                break;
            }
        }
        match self.buffer.len() {
            0 => Ok(()),
            _ => Err(refused("it goes on after its end".to_owned())),
        }
    }

    /// The next `len` bytes, which enter the sum.
    fn take(&mut self, len: usize) -> Result<Bytes> {
        self.fill(len)?;
        let taken = self.buffer.split_to(len).freeze();
        self.crc.update(&taken);
        Ok(taken)
    }

    /// Waits until the buffer has `len` bytes.
    fn fill(&mut self, len: usize) -> Result<()> {
        while self.buffer.len() < len {
            match (self.next_chunk)().map_err(|error| unread(&error))? {
                Some(chunk) => self.buffer.extend_from_slice(&chunk),
                None => return Err(refused(format!("it ends after {} records", self.records))),
            }
        }
        Ok(())
    }
}

fn refused(what: String) -> Error {
    Error::Damage {
        file: PathBuf::from(INCOMING),
        what,
    }
}

fn unread(error: &io::Error) -> Error {
    Error::Io {
        file: PathBuf::from(INCOMING),
        reason: error.to_string(),
        no_space: false,
    }
}

/// What errors name, since the bytes may have no file.
const INCOMING: &str = "the incoming snapshot";

fn length(bytes: &[u8]) -> u32 {
    u32::try_from(bytes.len()).expect("a stored key or value is below 4 GiB")
}
