//! The handle to a log: its queue, its readers, and the life of its writer.
//!
//! Owned here: the queue between callers and the writer, and what both may look at ([`Shared`]). The writer alone
//! touches the files of the log, apart from reads of written entries.
//! Invariants: records are written in the order of [`Wal::append`]; a completion is called once, after the fsync that
//! covers all records of its call or with the error that ended the log (dropped uncalled if the writer panicked); after a failed write or fsync nothing more is
//! written, and no fsync is ever repeated.

use std::collections::{BTreeMap, VecDeque};
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, OnceLock};
use std::thread::{self, JoinHandle, ThreadId};
use std::time::{Duration, Instant};

use bytes::Bytes;
use parking_lot::{Condvar, Mutex, RwLock};

use crate::error::{Error, Result};
use crate::fs::{File, Fs};
use crate::preparation::Mode;
use crate::reader;
use crate::record::{PAYLOAD_BYTES_MAX, Record};
use crate::repair::{self, Cut};
use crate::segment::{self, Identity};
use crate::state::{Bounds, LogState, OutOfOrder};
use crate::writer::{IDLE_MOMENT, Step, Writer};

/// Smallest segment: header, state records and a little room.
const SEGMENT_BYTES_MIN: u64 = 16 << 10;
/// Largest segment; what is larger is zeroed too long and keeps too many purged entries.
const SEGMENT_BYTES_MAX: u64 = 1 << 30;

/// Where the log lives and how much it may take.
#[derive(Clone, Debug)]
pub struct Config {
    /// The log folder, which holds nothing else.
    pub dir: PathBuf,
    /// Length of a segment: 64 MiB. Smaller ones rotate often; larger ones keep purged entries longer.
    pub segment_bytes: u64,
    /// Bytes that may wait for the disk, 64 MiB; [`Wal::append`] blocks above it.
    pub queue_bytes_max: u64,
    /// Whose log it is.
    pub identity: Identity,
}

impl Config {
    /// A configuration with the defaults.
    pub fn new(dir: impl Into<PathBuf>, identity: Identity) -> Config {
        Config {
            dir: dir.into(),
            segment_bytes: 64 << 20,
            queue_bytes_max: 64 << 20,
            identity,
        }
    }

    fn validate(&self) -> Result<()> {
        let range = SEGMENT_BYTES_MIN..=SEGMENT_BYTES_MAX;
        if !range.contains(&self.segment_bytes) || !self.segment_bytes.is_multiple_of(4096) {
            return Err(Error::SegmentSize {
                segment_bytes: self.segment_bytes,
                min: SEGMENT_BYTES_MIN,
                max: SEGMENT_BYTES_MAX,
            });
        }
        Ok(())
    }
}

/// Whether appended records need an fsync of their own.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Sync {
    /// Written and fsynced as soon as the disk is free.
    Yes,
    /// Written with the next batch, or without an fsync once the queue has been empty for a moment.
    No,
}

/// Called on the writer thread, after the fsync that covers the records. It must not block.
pub type Completion = Box<dyn FnOnce(Result<()>) + Send>;

/// What one fsync made durable.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct FsyncBatch {
    /// Records written since the fsync before.
    pub records: u64,
    /// Their bytes on disk.
    pub bytes: u64,
}

/// One entry that a log holds.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct EntryMeta {
    /// Its position in the log.
    pub index: u64,
    /// The term it was proposed in.
    pub term: u64,
    /// Length of what it carries.
    pub payload_len: u32,
}

/// What [`Wal::open`] found.
#[derive(Clone, Debug)]
pub struct Recovered {
    /// Whose log it is.
    pub identity: Identity,
    /// The newest vote.
    pub vote: Option<Bytes>,
    /// The newest commit position that reached the disk.
    pub committed: Option<Bytes>,
    /// Index and term of the newest purge mark.
    pub purged: Option<(u64, u64)>,
    /// Live entries in order, without holes.
    pub entries: Vec<EntryMeta>,
    /// The torn tail that was cut, if there was one.
    pub cut: Option<Cut>,
}

impl Recovered {
    /// What a log holds that was just created.
    pub fn empty(identity: Identity) -> Recovered {
        Recovered {
            identity,
            vote: None,
            committed: None,
            purged: None,
            entries: Vec::new(),
            cut: None,
        }
    }
}

type FailureHook = Box<dyn Fn(&Error) + Send + std::marker::Sync>;
type WorkHook = Box<dyn Fn() + Send + std::marker::Sync>;
type FsyncObserver = Box<dyn Fn(Duration, FsyncBatch) + Send + std::marker::Sync>;

/// One thing that waits for the writer.
pub(crate) enum Item {
    Append {
        records: VecDeque<Record>,
        bytes: u64,
        sync: Sync,
        done: Option<Completion>,
    },
    PurgeFiles {
        below_index: u64,
    },
}

impl Item {
    /// Whether it should not wait for company.
    fn is_urgent(&self) -> bool {
        !matches!(self, Item::Append { sync: Sync::No, .. })
    }
}

#[derive(Default)]
pub(crate) struct Queue {
    pub(crate) items: VecDeque<Item>,
    /// Bytes of records that are queued or being written.
    pub(crate) bytes: u64,
    /// What truncations that are not written yet keep, in order.
    pub(crate) truncations: VecDeque<u64>,
    /// Where the log stands once all that is queued is written.
    bounds: Bounds,
    /// The writer sleeps, and looks here again within [`IDLE_MOMENT`] though nobody wakes it.
    naps: bool,
    pub(crate) closing: bool,
}

/// What callers and the writer both see.
pub(crate) struct Shared {
    pub(crate) queue: Mutex<Queue>,
    /// The writer waits here for work.
    work: Condvar,
    /// Callers wait here for room in the queue.
    room: Condvar,
    pub(crate) state: RwLock<LogState>,
    /// Open segments by sequence, for readers. Locked only after `state`, never before it.
    pub(crate) segments: RwLock<BTreeMap<u64, OpenSegment>>,
    pub(crate) flushed_index: AtomicU64,
    pub(crate) size_bytes: AtomicU64,
    /// Why the next segment could not be prepared, while that is so.
    pub(crate) preparation_error: Arc<Mutex<Option<Error>>>,
    failed: Mutex<Option<Error>>,
    failure_hook: Mutex<Option<FailureHook>>,
    work_hook: OnceLock<WorkHook>,
    pub(crate) fsync_observer: RwLock<Option<FsyncObserver>>,
    queue_bytes_max: u64,
}

/// A segment that entries are read from.
#[derive(Clone)]
pub(crate) struct OpenSegment {
    pub(crate) path: PathBuf,
    pub(crate) file: Arc<dyn File>,
}

impl Shared {
    /// Ends the log: remembers the first error, answers everything that is queued, tells the hook.
    pub(crate) fn fail(&self, error: &Error, unanswered: impl IntoIterator<Item = Completion>) {
        let first = {
            let mut failed = self.failed.lock();
            let first = failed.is_none();
            failed.get_or_insert_with(|| error.clone());
            first
        };
        let queued: Vec<Item> = self.queue.lock().items.drain(..).collect();
        self.room.notify_all();
        for done in unanswered {
            done(Err(error.clone()));
        }
        for item in queued {
            if let Item::Append {
                done: Some(done), ..
            } = item
            {
                done(Err(error.clone()));
            }
        }
        if first && let Some(hook) = &*self.failure_hook.lock() {
            hook(error);
        }
    }

    /// Tells the writer that something is queued.
    fn announce_work(&self) {
        self.work.notify_one();
        if let Some(hook) = self.work_hook.get() {
            hook();
        }
    }

    /// Gives back the room that written records took in the queue.
    pub(crate) fn release(&self, bytes: u64) {
        self.queue.lock().bytes -= bytes;
        self.room.notify_all();
    }
}

/// Who drives the writer.
enum Driver {
    Thread {
        id: ThreadId,
        join: Mutex<Option<JoinHandle<()>>>,
    },
    Stepped(Box<Mutex<Writer>>),
}

struct Handle {
    shared: Arc<Shared>,
    driver: Driver,
}

impl Drop for Handle {
    fn drop(&mut self) {
        // A log that is stepped by hand stays as it is: a test that drops it without `close` means a crash.
        if let Driver::Thread { .. } = self.driver {
            self.close();
        }
    }
}

impl Handle {
    fn close(&self) {
        self.shared.queue.lock().closing = true;
        self.shared.work.notify_all();
        self.shared.room.notify_all();
        match &self.driver {
            // A completion that closes the log, or drops its last handle, runs on the writer thread itself.
            Driver::Thread { id, .. } if *id == thread::current().id() => {}
            Driver::Thread { join, .. } => {
                // Held while joining, so that whoever closes second waits as well.
                let mut join = join.lock();
                if join.take().is_some_and(|thread| thread.join().is_err()) {
                    tracing::error!("the log writer panicked");
                }
            }
            Driver::Stepped(writer) => {
                let mut writer = writer.lock();
                while writer.step() == Step::Progress {}
                writer.finish();
            }
        }
    }
}

/// A log. Clones share it.
#[derive(Clone)]
pub struct Wal {
    handle: Arc<Handle>,
}

impl Wal {
    /// Whether the folder holds a log.
    pub fn exists(dir: &Path, fs: &dyn Fs) -> Result<bool> {
        Ok(!segment::list(fs, dir)?.is_empty())
    }

    /// Makes a new log, with its writer thread. The folder is created if need be and must hold no log.
    pub fn create(fs: Arc<dyn Fs>, config: Config) -> Result<Wal> {
        let (writer, shared) = new_log(fs, &config, Mode::Background)?;
        Ok(Wal::threaded(writer, shared))
    }

    /// Opens a log, with its writer thread: replays it, cuts a torn tail, makes the rest durable.
    pub fn open(fs: Arc<dyn Fs>, config: Config) -> Result<(Wal, Recovered)> {
        let (writer, shared, recovered) = existing_log(fs, &config, Mode::Background)?;
        Ok((Wal::threaded(writer, shared), recovered))
    }

    /// As [`Wal::create`], without a thread: nothing happens until [`Wal::step`], and no call waits for room.
    pub fn create_stepped(fs: Arc<dyn Fs>, config: Config) -> Result<Wal> {
        let (writer, shared) = new_log(
            fs,
            &Config {
                queue_bytes_max: u64::MAX,
                ..config
            },
            Mode::Inline,
        )?;
        Ok(Wal::stepped(writer, shared))
    }

    /// As [`Wal::open`], without a thread: nothing happens until [`Wal::step`], and no call waits for room.
    pub fn open_stepped(fs: Arc<dyn Fs>, config: Config) -> Result<(Wal, Recovered)> {
        let config = Config {
            queue_bytes_max: u64::MAX,
            ..config
        };
        let (writer, shared, recovered) = existing_log(fs, &config, Mode::Inline)?;
        Ok((Wal::stepped(writer, shared), recovered))
    }

    fn threaded(writer: Writer, shared: Arc<Shared>) -> Wal {
        let for_thread = Arc::clone(&shared);
        let thread = thread::Builder::new()
            .name("wal".to_owned())
            .spawn(move || run(writer, &for_thread))
            .expect("the system starts one more thread");
        let driver = Driver::Thread {
            id: thread.thread().id(),
            join: Mutex::new(Some(thread)),
        };
        Wal {
            handle: Arc::new(Handle { shared, driver }),
        }
    }

    fn stepped(writer: Writer, shared: Arc<Shared>) -> Wal {
        Wal {
            handle: Arc::new(Handle {
                shared,
                driver: Driver::Stepped(Box::new(Mutex::new(writer))),
            }),
        }
    }

    /// Does one batch of what is queued, or what is left to do when nothing is. Only for a log made by
    /// [`Wal::create_stepped`] or [`Wal::open_stepped`]; completions run inside and must not call it.
    pub fn step(&self) -> Step {
        match &self.handle.driver {
            Driver::Stepped(writer) => writer.lock().step(),
            Driver::Thread { .. } => panic!("step() on a log that has a writer thread"),
        }
    }

    /// Whether the log has no thread and is driven by [`Wal::step`].
    pub fn is_stepped(&self) -> bool {
        matches!(self.handle.driver, Driver::Stepped(_))
    }

    /// Calls `hook` after each call that queued something, on the thread of the caller: for who drives the log by
    /// [`Wal::step`] and would otherwise have to look again and again. It must not step the log itself. Once per log.
    pub fn set_work_hook(&self, hook: Box<dyn Fn() + Send + std::marker::Sync>) {
        let is_first = self.handle.shared.work_hook.set(hook).is_ok();
        assert!(is_first, "a log has one driver");
    }

    /// Queues records and returns at once; waits only while more than `queue_bytes_max` is queued.
    /// With [`Sync::No`] the completion waits for the fsync of a later batch, or of [`Wal::close`].
    pub fn append(&self, records: Vec<Record>, sync: Sync, done: Option<Completion>) -> Result<()> {
        let shared = &*self.handle.shared;
        let mut bytes = 0;
        for record in &records {
            if record.payload_len() > PAYLOAD_BYTES_MAX {
                return Err(Error::TooLarge {
                    bytes: record.payload_len() as u64,
                    max: PAYLOAD_BYTES_MAX as u64,
                });
            }
            bytes += record.encoded_len() as u64;
        }
        let needs_waking = {
            let mut queue = shared.queue.lock();
            loop {
                if let Some(error) = self.failed() {
                    return Err(error);
                }
                if queue.closing {
                    return Err(Error::Closed);
                }
                // One that is over the limit by itself passes when nothing else is queued.
                if queue.bytes == 0 || queue.bytes.saturating_add(bytes) <= shared.queue_bytes_max {
                    break;
                }
                shared.room.wait(&mut queue);
            }
            let mut bounds = queue.bounds;
            for record in &records {
                bounds.follow(record.as_ref()).map_err(
                    |OutOfOrder {
                         what,
                         found,
                         expected,
                     }| Error::OutOfOrder {
                        what,
                        found,
                        expected,
                    },
                )?;
            }
            queue.bounds = bounds;
            queue.bytes += bytes;
            queue
                .truncations
                .extend(records.iter().filter_map(|record| match record {
                    Record::Truncate { after } => Some(*after),
                    _ => None,
                }));
            let item = Item::Append {
                records: records.into(),
                bytes,
                sync,
                done,
            };
            // Waking a thread costs more than writing a commit mark does: it goes with the next batch.
            let needs_waking = item.is_urgent() || !queue.naps;
            queue.items.push_back(item);
            needs_waking
        };
        if needs_waking {
            shared.announce_work();
        }
        Ok(())
    }

    /// Written entries of `from..to_exclusive`, each as index, term and payload: up to `max_bytes` of payloads, but at
    /// least one entry, and fewer where the log ends. Each one's checksum is verified.
    pub fn read_entries(
        &self,
        from: u64,
        to_exclusive: u64,
        max_bytes: u64,
    ) -> Result<Vec<(u64, u64, Bytes)>> {
        reader::read_entries(&self.handle.shared, from, to_exclusive, max_bytes)
    }

    /// Queues the removal of whole segments, oldest first, whose entries are all below `below_index` and purged by a
    /// [`Record::Purge`] before this call. Vote, commit position and purge mark stay: each segment repeats them.
    /// A file that cannot be removed is tried again by the next call.
    pub fn purge_files(&self, below_index: u64) -> Result<()> {
        let shared = &*self.handle.shared;
        {
            let mut queue = shared.queue.lock();
            if let Some(error) = self.failed() {
                return Err(error);
            }
            if queue.closing {
                return Err(Error::Closed);
            }
            queue.items.push_back(Item::PurgeFiles { below_index });
        }
        shared.announce_work();
        Ok(())
    }

    /// The newest index that is in the log, or purged from it, and durable; 0 if there is none. What a truncation removes is
    /// not in the log from the call of [`Wal::append`] on.
    pub fn flushed_index(&self) -> u64 {
        let shared = &*self.handle.shared;
        // The writer lowers the index before it takes a truncation from the queue.
        let queue = shared.queue.lock();
        let kept = queue.truncations.iter().min().copied().unwrap_or(u64::MAX);
        shared.flushed_index.load(Ordering::Acquire).min(kept)
    }

    /// The error that ended the log.
    pub fn failed(&self) -> Option<Error> {
        self.handle.shared.failed.lock().clone()
    }

    /// Why the next segment cannot be made ready, usually a full disk. The log still takes what fits the current
    /// segment, at least half of which is free when this first shows, and tries again.
    pub fn preparation_error(&self) -> Option<Error> {
        self.handle.shared.preparation_error.lock().clone()
    }

    /// Called once, on the writer thread, when a write or fsync fails, after the completions got their error; at once
    /// if the log has failed already.
    pub fn set_failure_hook(&self, hook: Box<dyn Fn(&Error) + Send + std::marker::Sync>) {
        let mut slot = self.handle.shared.failure_hook.lock();
        match self.failed() {
            Some(error) => hook(&error),
            None => *slot = Some(hook),
        }
    }

    /// Called on the writer thread after each fsync of a batch.
    pub fn set_fsync_observer(
        &self,
        observer: Box<dyn Fn(Duration, FsyncBatch) + Send + std::marker::Sync>,
    ) {
        *self.handle.shared.fsync_observer.write() = Some(observer);
    }

    /// Bytes that the log's segments take, with the prepared one.
    pub fn size_bytes(&self) -> u64 {
        self.handle.shared.size_bytes.load(Ordering::Relaxed)
    }

    /// Writes and fsyncs all that is queued and ends the writer. Later calls of [`Wal::append`] are refused; written
    /// entries stay readable. Closing twice is no error.
    pub fn close(&self) -> Result<()> {
        self.handle.close();
        self.failed().map_or(Ok(()), Err)
    }
}

fn new_log(fs: Arc<dyn Fs>, config: &Config, mode: Mode) -> Result<(Writer, Arc<Shared>)> {
    config.validate()?;
    fs.create_dir(&config.dir)
        .map_err(|error| Error::io("create", &config.dir, error))?;
    if Wal::exists(&config.dir, &*fs)? {
        return Err(Error::AlreadyExists {
            dir: config.dir.clone(),
        });
    }
    let shared = Arc::new(new_shared(LogState::default(), config));
    let writer = Writer::create(fs, config, mode, Arc::clone(&shared))?;
    Ok((writer, shared))
}

fn existing_log(
    fs: Arc<dyn Fs>,
    config: &Config,
    mode: Mode,
) -> Result<(Writer, Arc<Shared>, Recovered)> {
    config.validate()?;
    let replayed = reader::replay(&*fs, &config.dir, config.identity)?;
    let cut = repair::settle_tail(&replayed.tail)?;
    let recovered = Recovered {
        identity: config.identity,
        vote: replayed.state.vote.clone(),
        committed: replayed.state.committed.clone(),
        purged: replayed.state.bounds.purged,
        entries: replayed
            .state
            .range(0, u64::MAX)
            .map(|(index, slot)| EntryMeta {
                index,
                term: slot.term,
                payload_len: slot.payload_len,
            })
            .collect(),
        cut,
    };
    let shared = Arc::new(new_shared(replayed.state, config));
    shared.segments.write().extend(replayed.segments);
    let writer = Writer::resume(
        fs,
        config,
        mode,
        Arc::clone(&shared),
        replayed.sealed,
        replayed.tail,
    )?;
    Ok((writer, shared, recovered))
}

fn new_shared(state: LogState, config: &Config) -> Shared {
    Shared {
        queue: Mutex::new(Queue {
            bounds: state.bounds,
            ..Queue::default()
        }),
        work: Condvar::new(),
        room: Condvar::new(),
        flushed_index: AtomicU64::new(state.last_index()),
        state: RwLock::new(state),
        segments: RwLock::default(),
        size_bytes: AtomicU64::new(0),
        preparation_error: Arc::default(),
        failed: Mutex::default(),
        failure_hook: Mutex::default(),
        work_hook: OnceLock::new(),
        fsync_observer: RwLock::default(),
        queue_bytes_max: config.queue_bytes_max,
    }
}

/// The writer thread: one batch after the other until the log is closed or fails.
fn run(mut writer: Writer, shared: &Shared) {
    let outcome = catch_unwind(AssertUnwindSafe(|| {
        while wait_for_work(shared, writer.wake_after()) {
            if writer.step() == Step::Failed {
                return;
            }
        }
        writer.finish();
    }));
    if let Err(panic) = outcome {
        let what = panic
            .downcast_ref::<&str>()
            .map(|text| (*text).to_owned())
            .or_else(|| panic.downcast_ref::<String>().cloned())
            .unwrap_or_else(|| "no message".to_owned());
        shared.fail(&Error::WriterPanicked { what }, []);
    }
}

/// Waits until something needs an fsync, or until what needs none has waited for a moment, or, with nothing queued,
/// for `wake_after`. False once the log is closed and nothing is queued.
fn wait_for_work(shared: &Shared, wake_after: Option<Duration>) -> bool {
    let mut queue = shared.queue.lock();
    let mut deadline = wake_after.map(|after| Instant::now() + after);
    loop {
        if queue.closing {
            return !queue.items.is_empty();
        }
        if queue.items.iter().any(Item::is_urgent) {
            return true;
        }
        if !queue.items.is_empty() {
            let moment = Instant::now() + IDLE_MOMENT;
            deadline = Some(deadline.map_or(moment, |deadline| deadline.min(moment)));
        }
        let Some(deadline) = deadline else {
            shared.work.wait(&mut queue);
            continue;
        };
        queue.naps = deadline <= Instant::now() + IDLE_MOMENT;
        let timed_out = shared.work.wait_until(&mut queue, deadline).timed_out();
        queue.naps = false;
        if timed_out {
            return true;
        }
    }
}
