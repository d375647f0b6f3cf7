//! Where the store's keys and values live: a write buffer over a storage engine.
//!
//! ```text
//! write(ops) ──> buffer: active layer ──freeze──> committing layer ──> engine ──> disk
//!                   ^ 1                              ^ 2                 ^ 3        reads look in this order
//! ```
//! Apply writes to the buffer, which readers see at once and which never waits for the engine. One engine thread
//! drains it and commits durably, together with the applied index of exactly what it drained. Invariants:
//! - what [`Backend::durable_index`] names is on stable storage, and so is everything applied up to it;
//! - after any crash the engine holds exactly the effects up to the applied index that it names;
//! - every value read from an engine has had its checksum verified: damage is an error, never an answer;
//! - after a failed commit nothing is ever committed again.
//!
//! In reading order: [`engine`] is what an engine must do, [`redb`], [`sled`] and [`memory`] do it; [`buffer`], [`view`] and
//! [`committer`] stand above; [`generation`] names the live files, [`staging`], [`defrag`] and [`quarantine`] replace them.

mod buffer;
mod checksum;
mod chunk;
mod committer;
mod defrag;
mod engine;
mod generation;
mod guard;
mod memory;
mod quarantine;
mod redb;
mod sled;
mod staging;
mod view;

#[cfg(test)]
mod tests;

use std::fmt;
use std::path::{Path, PathBuf};
use std::str::FromStr;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::Duration;

use bytes::Bytes;

use self::buffer::Found;
pub use self::committer::CommitReport;
use self::committer::Committer;
use self::engine::{Engine, damage};
pub use self::generation::is_etcd_database;
pub use self::guard::is_guarded_thread;
pub use self::memory::MemoryDisk;
pub use self::quarantine::quarantine;
pub(crate) use self::staging::{Staged, Staging};
use self::view::Live;
pub use self::view::View;
use crate::{Error, Result};

/// The Meta key under which the applied index is kept, as eight bytes big endian.
///
/// A batch that puts it tells the backend what the buffer now contains. The name is etcd's.
pub const CONSISTENT_INDEX_KEY: &[u8] = b"consistent_index";

/// A named, ordered set of keys. The byte is the format's: it never changes.
#[repr(u8)]
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Keyspace {
    /// Revision to `KeyValue` protobuf.
    Rev = b'r',
    /// Revision to the compact record from which the key index is rebuilt.
    Index = b'i',
    /// Lease id to lease protobuf.
    Lease = b'l',
    /// Whether auth is on, and its revision.
    Auth = b'a',
    /// User name to user.
    AuthUsers = b'u',
    /// Role name to role.
    AuthRoles = b'o',
    /// Member id to member.
    Members = b'm',
    /// Ids of members that were removed.
    MembersRemoved = b'x',
    /// Cluster-wide values: version, id.
    Cluster = b'c',
    /// Alarms that are raised.
    Alarm = b'n',
    /// Applied index, compaction, format: see [`CONSISTENT_INDEX_KEY`].
    Meta = b't',
}

impl Keyspace {
    /// Every keyspace, the log keyspaces first.
    pub const ALL: [Keyspace; 11] = [
        Keyspace::Rev,
        Keyspace::Index,
        Keyspace::Lease,
        Keyspace::Auth,
        Keyspace::AuthUsers,
        Keyspace::AuthRoles,
        Keyspace::Members,
        Keyspace::MembersRemoved,
        Keyspace::Cluster,
        Keyspace::Alarm,
        Keyspace::Meta,
    ];

    pub(crate) const COUNT: usize = Keyspace::ALL.len();

    /// How many keyspaces are logs.
    pub(crate) const LOGS: usize = 2;

    /// Whether keys are written once, in ascending order, and deleted at most once.
    pub fn is_log(self) -> bool {
        self.log().is_some()
    }

    /// Position among the log keyspaces.
    pub(crate) fn log(self) -> Option<usize> {
        match self {
            Keyspace::Rev => Some(0),
            Keyspace::Index => Some(1),
            _ => None,
        }
    }

    /// Position in [`Keyspace::ALL`].
    pub(crate) fn position(self) -> usize {
        match self {
            Keyspace::Rev => 0,
            Keyspace::Index => 1,
            Keyspace::Lease => 2,
            Keyspace::Auth => 3,
            Keyspace::AuthUsers => 4,
            Keyspace::AuthRoles => 5,
            Keyspace::Members => 6,
            Keyspace::MembersRemoved => 7,
            Keyspace::Cluster => 8,
            Keyspace::Alarm => 9,
            Keyspace::Meta => 10,
        }
    }

    /// The name of the keyspace's table, and in errors.
    pub fn name(self) -> &'static str {
        match self {
            Keyspace::Rev => "rev",
            Keyspace::Index => "index",
            Keyspace::Lease => "lease",
            Keyspace::Auth => "auth",
            Keyspace::AuthUsers => "auth_users",
            Keyspace::AuthRoles => "auth_roles",
            Keyspace::Members => "members",
            Keyspace::MembersRemoved => "members_removed",
            Keyspace::Cluster => "cluster",
            Keyspace::Alarm => "alarm",
            Keyspace::Meta => "meta",
        }
    }
}

/// One change of one key.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Op {
    /// Sets the value of a key.
    Put(Keyspace, Bytes, Bytes),
    /// Removes a key; one that is absent is left so.
    Delete(Keyspace, Bytes),
}

/// Which engine keeps the files.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum EngineKind {
    /// redb: the default.
    Redb,
    /// sled 0.34.7, hardened: durable flushes, small batches, no blobs; slower than redb and without its snapshots.
    Sled,
    /// Nothing on disk: for tests and simulation.
    Memory,
}

impl EngineKind {
    /// The name in flags, in CURRENT and in errors.
    pub fn name(self) -> &'static str {
        match self {
            EngineKind::Redb => "redb",
            EngineKind::Sled => "sled",
            EngineKind::Memory => "memory",
        }
    }
}

impl fmt::Display for EngineKind {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.name())
    }
}

impl FromStr for EngineKind {
    type Err = String;

    fn from_str(name: &str) -> Result<Self, String> {
        [EngineKind::Redb, EngineKind::Sled, EngineKind::Memory]
            .into_iter()
            .find(|kind| kind.name() == name)
            .ok_or_else(|| format!("unknown storage engine {name:?}: use redb or sled"))
    }
}

/// How a backend is opened.
#[derive(Clone, Debug)]
pub struct Options {
    /// The engine; `None` takes the one that the folder was made with, and redb for a new folder.
    pub engine: Option<EngineKind>,
    /// Bytes of pages that the engine keeps in memory. Too small makes reads go to the file.
    pub cache_bytes: u64,
    /// Bytes that may wait in the buffer before [`Backend::is_full`] says so. Not a hard bound: what is applied is
    /// taken. Too small makes a slow disk stall proposals.
    pub buffer_bytes_max: u64,
    /// Longest time that a write waits for its durable commit to begin. A longer one makes fewer fsyncs and more to
    /// replay after a crash.
    pub commit_interval: Duration,
    /// Operations after which a commit begins at once.
    pub commit_ops_max: usize,
    /// Bytes after which a commit begins at once.
    pub commit_bytes_max: u64,
}

impl Default for Options {
    fn default() -> Self {
        Options {
            engine: None,
            cache_bytes: 64 << 20,
            buffer_bytes_max: 64 << 20,
            commit_interval: Duration::from_millis(100),
            commit_ops_max: 10_000,
            commit_bytes_max: 32 << 20,
        }
    }
}

/// How large the database is.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Sizes {
    /// Bytes that the files of the live generation occupy on disk.
    pub on_disk: u64,
    /// Bytes of keys and values that are alive, as of the newest commit: the rest is what a defragmentation gives back.
    pub in_use: u64,
    /// Bytes within the files that commits fill before these grow.
    pub gaps: u64,
}

/// The database: a buffer over one engine, shared by all who read and the one who applies.
///
/// Clones are handles of the same backend. When the last one goes, what is buffered is committed and the engine thread
/// joined; [`Backend::close`] does the same and reports errors.
#[derive(Clone)]
pub struct Backend {
    committer: Arc<Committer>,
    _owner: Arc<Owner>,
}

/// Closes the backend when the last handle of it goes.
struct Owner {
    committer: Arc<Committer>,
}

impl Drop for Owner {
    fn drop(&mut self) {
        // An error has gone to the failure hook and is kept in `failed`; there is no one left to tell.
        let _ = self.committer.close();
    }
}

impl Backend {
    /// Opens the database under `member_dir`, or makes an empty one.
    ///
    /// Removes generations that are older than the live one or were never finished. Errors:
    /// [`Error::EngineMismatch`] if the folder was made with another engine than the one asked for;
    /// [`Error::Damage`] if the files are not what was written: see [`quarantine`].
    pub fn open(member_dir: &Path, options: Options) -> Result<Backend> {
        if options.engine == Some(EngineKind::Memory) {
            return Backend::open_in_memory(&MemoryDisk::default(), options);
        }
        let (generation, engine) = generation::open_current(member_dir, &options)?;
        Backend::start(Some(generation), engine, options)
    }

    /// Opens the database that `disk` holds; it stays there when the backend is closed or dropped.
    pub fn open_in_memory(disk: &MemoryDisk, options: Options) -> Result<Backend> {
        let engine = Arc::new(memory::MemoryEngine::open(disk));
        Backend::start(None, engine, options)
    }

    fn start(
        generation: Option<generation::Generation>,
        engine: Arc<dyn Engine>,
        options: Options,
    ) -> Result<Backend> {
        let committer = Committer::start(generation, engine, options)?;
        Ok(Backend {
            _owner: Arc::new(Owner {
                committer: Arc::clone(&committer),
            }),
            committer,
        })
    }

    /// Takes one batch: visible to every reader at once and as a whole, durable with a later commit.
    ///
    /// Never waits for the engine. Keys of the log keyspaces ascend over all batches. A batch that changes anything
    /// replicated also puts [`CONSISTENT_INDEX_KEY`], so that a commit names exactly what it contains.
    pub fn write(&self, ops: Vec<Op>) {
        self.committer.write(ops);
    }

    /// Records that everything up to log index `index` has been written, for an entry which changes nothing else.
    pub fn set_applied(&self, index: u64) {
        self.write(vec![Op::Put(
            Keyspace::Meta,
            Bytes::from_static(CONSISTENT_INDEX_KEY),
            Bytes::copy_from_slice(&index.to_be_bytes()),
        )]);
    }

    /// Whether the buffer is over its bound. What is applied is still taken: proposals have to wait.
    pub fn is_full(&self) -> bool {
        self.buffered_bytes() > self.committer.options.buffer_bytes_max
    }

    /// Bytes in the buffer, its bookkeeping included.
    pub fn buffered_bytes(&self) -> u64 {
        self.committer.buffered_bytes.load(Ordering::Relaxed)
    }

    /// The newest value of `key`.
    pub fn get(&self, keyspace: Keyspace, key: &[u8]) -> Result<Option<Bytes>> {
        let live = {
            let state = self.committer.state.read();
            for layer in state.layers() {
                match layer.get(keyspace, key, None) {
                    Found::Value(value) => return Ok(Some(value)),
                    Found::Deleted => return Ok(None),
                    Found::Absent => {}
                }
            }
            Arc::clone(&state.live)
        };
        live.get(keyspace, key)
    }

    /// The values of ascending keys of [`Keyspace::Rev`], each position answering the key at that position.
    ///
    /// What the buffer lacks is read from the engine in one sweep.
    pub fn get_revisions<K: AsRef<[u8]>>(&self, keys: &[K]) -> Result<Vec<Option<Bytes>>> {
        let state = self.committer.state.read();
        view::get_sorted(
            keys,
            |lookup| {
                for layer in state.layers() {
                    lookup.in_layer(Keyspace::Rev, layer, None);
                }
                let live = Arc::clone(&state.live);
                drop(state);
                live
            },
            Keyspace::Rev,
        )
    }

    /// The value of a key of [`Keyspace::Rev`] if the buffer has it: no engine access, never blocks.
    pub fn in_buffer(&self, key: &[u8]) -> Option<Bytes> {
        let state = self.committer.state.read();
        for layer in state.layers() {
            match layer.get(Keyspace::Rev, key, None) {
                Found::Value(value) => return Some(value),
                Found::Deleted => return None,
                Found::Absent => {}
            }
        }
        None
    }

    /// A view of this moment, for as long as the caller keeps it.
    ///
    /// It holds the buffered writes and the engine's pages that it may need, so a long one costs memory and disk space.
    /// With sled it copies the small keyspaces and waits for a commit that is under way.
    pub fn view(&self) -> Result<View> {
        self.committer.view()
    }

    /// Sets what the engine thread calls before a commit, with the applied index that is about to become durable. It
    /// blocks until this member's log has flushed that index: the engine may never be ahead of the log.
    ///
    /// Before a snapshot takes the engine's place it is called too, by the one who applies, and the log may never get that
    /// index: it must return when all that was appended is flushed.
    pub fn set_commit_gate(&self, gate: impl Fn(u64) + Send + Sync + 'static) {
        self.committer.hooks.lock().gate = Some(Arc::new(gate));
    }

    /// Sets what is called, on the engine thread, with the error of a failed commit. Nothing is committed after it.
    pub fn set_failure_hook(&self, hook: impl Fn(&Error) + Send + Sync + 'static) {
        self.committer.hooks.lock().failure = Some(Arc::new(hook));
    }

    /// Sets what is called, on the engine thread, after each commit.
    pub fn set_commit_observer(&self, observer: impl Fn(&CommitReport) + Send + Sync + 'static) {
        self.committer.hooks.lock().observer = Some(Arc::new(observer));
    }

    /// Commits all that was written before the call; returns the applied index that is durable then.
    ///
    /// Blocks for the gate and the disk. Errors: the one that ended commits, or [`Error::Closed`].
    pub fn checkpoint(&self) -> Result<u64> {
        self.committer.checkpoint()
    }

    /// The applied index of the newest durable commit; 0 if there is none.
    pub fn durable_index(&self) -> u64 {
        self.committer.durable_index.load(Ordering::Acquire)
    }

    /// The applied index of the second-newest durable commit, up to which the log may be purged; 0 until known.
    ///
    /// Should the engine ever come back one commit older, the log still has what it lacks.
    pub fn safe_purge_index(&self) -> u64 {
        self.committer.safe_purge_index.load(Ordering::Acquire)
    }

    /// Copies what is alive into a new generation and goes on with that, which gives space back to the disk.
    ///
    /// Readers and writers go on meanwhile; views that are open keep the old files until they are dropped. Needs as
    /// much free space as [`Sizes::in_use`]. On an error the old generation stays in use.
    ///
    /// A snapshot that is being received goes before: [`Error::SnapshotArriving`], at once, also when it begins meanwhile.
    pub fn defragment(&self) -> Result<()> {
        self.committer.defragment()
    }

    /// The size as of the newest commit; cheap.
    pub fn size(&self) -> Sizes {
        *self.committer.sizes.lock()
    }

    /// The error that ended commits, if one did.
    pub fn failed(&self) -> Option<Error> {
        self.committer.control.lock().failed.clone()
    }

    /// Which engine keeps the files.
    pub fn engine(&self) -> EngineKind {
        self.committer.kind
    }

    /// Commits what is buffered and joins the engine thread. Reads go on; writes are no longer committed.
    pub fn close(&self) -> Result<()> {
        self.committer.close()
    }
}

impl fmt::Debug for Backend {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Backend")
            .field("engine", &self.engine())
            .field("durable_index", &self.durable_index())
            .field("buffered_bytes", &self.buffered_bytes())
            .finish_non_exhaustive()
    }
}

/// Reads the applied index that a live engine state contains.
fn stored_applied_index(live: &Live) -> Result<u64> {
    let Some(value) = live.get(Keyspace::Meta, CONSISTENT_INDEX_KEY)? else {
        return Ok(0);
    };
    let bytes = value.as_ref().try_into().map_err(|_| {
        damage(
            live.file(),
            format!("the applied index has {} bytes instead of 8", value.len()),
        )
    })?;
    Ok(u64::from_be_bytes(bytes))
}

/// The folder that holds the generations of `member_dir`.
fn db_dir(member_dir: &Path) -> PathBuf {
    member_dir.join("db")
}

/// A step between two changes on disk. Tests end the process here.
#[cfg(not(test))]
fn kill_point() {}

#[cfg(test)]
use self::tests::kill_point;
