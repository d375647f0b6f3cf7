//! The engine thread: drains the buffer and commits it durably.
//!
//! A commit begins when the interval has passed since the first write, when enough operations or bytes wait, or when a
//! checkpoint asks. It freezes the active layer, waits at the gate until the log has flushed the layer's applied index,
//! hands the layer to the engine, and only then drops it from the reads: at no moment is a write in neither place.
//! The first failed commit is the last one.
//!
//! ```text
//! locks, in the order they may be nested:  slot (one commit at a time) > state > a layer's content;  control alone
//! ```

use std::path::PathBuf;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use parking_lot::{Condvar, Mutex, RwLock};
use tracing::{error, warn};

use super::buffer::Layer;
use super::defrag::{Touched, member_dir_of};
use super::engine::Engine;
use super::generation::Generation;
use super::guard::guarded;
use super::staging::Stagings;
use super::view::{Live, Opened};
use super::{EngineKind, Op, Options, Sizes, View, stored_applied_index};
use crate::{Error, Result};

/// A commit that takes longer is worth a warning.
const SLOW_COMMIT: Duration = Duration::from_secs(1);

/// What one durable commit did.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct CommitReport {
    /// Time that the engine took, its fsync included and the gate not.
    pub took: Duration,
    /// Time spent at the gate.
    pub gated: Duration,
    /// Operations committed.
    pub ops: usize,
    /// Bytes of buffer that the commit gave back.
    pub bytes: u64,
    /// Applied index that is durable now.
    pub applied: u64,
    /// Size after the commit.
    pub sizes: Sizes,
}

/// Everything that the handles of a backend and its engine thread share.
pub(crate) struct Committer {
    pub(crate) options: Options,
    pub(crate) kind: EngineKind,
    pub(crate) state: RwLock<State>,
    pub(crate) control: Mutex<Control>,
    pub(crate) hooks: Mutex<Hooks>,
    pub(crate) buffered_bytes: AtomicU64,
    pub(crate) durable_index: AtomicU64,
    pub(crate) safe_purge_index: AtomicU64,
    pub(crate) sizes: Mutex<Sizes>,
    /// Held for the whole of a commit, and by whoever needs that there is none.
    pub(crate) slot: Mutex<Slot>,
    /// Where generations are made; `None` for an engine without files.
    pub(crate) member_dir: Option<PathBuf>,
    /// Held for the whole of a defragmentation.
    pub(crate) defragmenting: Mutex<()>,
    /// Generations under construction, other than by a defragmentation.
    pub(crate) stagings: Arc<Stagings>,
    /// Wakes the engine thread.
    wake: Condvar,
    /// Wakes those who wait for a checkpoint.
    done: Condvar,
    thread: Mutex<Option<JoinHandle<()>>>,
}

/// What reads look at.
pub(crate) struct State {
    /// Receives writes.
    pub(crate) active: Arc<Layer>,
    /// Frozen; the engine may or may not have it.
    pub(crate) committing: Option<Arc<Layer>>,
    pub(crate) live: Arc<Live>,
}

impl State {
    /// The layers, newest first.
    pub(crate) fn layers(&self) -> impl Iterator<Item = &Arc<Layer>> {
        std::iter::once(&self.active).chain(self.committing.as_ref())
    }
}

/// What a commit works with.
pub(crate) struct Slot {
    pub(crate) opened: Arc<Opened>,
    /// While a defragmentation runs.
    pub(crate) touched: Option<Touched>,
}

#[derive(Default)]
pub(crate) struct Control {
    pub(crate) failed: Option<Error>,
    /// Checkpoints asked for, and the newest of them that is done.
    requested: u64,
    completed: u64,
    /// When the first write came that no commit has begun for.
    waiting_since: Option<Instant>,
    /// Enough waits to commit at once.
    urgent: bool,
    stop: bool,
    stopped: bool,
}

type Gate = dyn Fn(u64) + Send + Sync;
type FailureHook = dyn Fn(&Error) + Send + Sync;
type Observer = dyn Fn(&CommitReport) + Send + Sync;

#[derive(Default)]
pub(crate) struct Hooks {
    pub(crate) gate: Option<Arc<Gate>>,
    pub(crate) failure: Option<Arc<FailureHook>>,
    pub(crate) observer: Option<Arc<Observer>>,
}

impl Committer {
    /// Starts the engine thread over an open engine.
    pub(crate) fn start(
        generation: Option<Generation>,
        engine: Arc<dyn Engine>,
        options: Options,
    ) -> Result<Arc<Committer>> {
        let opened = Arc::new(Opened { engine, generation });
        let live = Arc::new(opened.reader()?);
        let applied = stored_applied_index(&live)?;
        let committer = Arc::new(Committer {
            kind: opened
                .generation
                .as_ref()
                .map_or(EngineKind::Memory, Generation::engine),
            options,
            sizes: Mutex::new(opened.sizes()),
            state: RwLock::new(State {
                active: Arc::default(),
                committing: None,
                live,
            }),
            control: Mutex::default(),
            hooks: Mutex::default(),
            buffered_bytes: AtomicU64::new(0),
            durable_index: AtomicU64::new(applied),
            safe_purge_index: AtomicU64::new(0),
            member_dir: opened.generation.as_ref().and_then(member_dir_of),
            defragmenting: Mutex::default(),
            stagings: Arc::new(Stagings::after(
                opened.generation.as_ref().map_or(0, Generation::number),
            )),
            slot: Mutex::new(Slot {
                opened,
                touched: None,
            }),
            wake: Condvar::new(),
            done: Condvar::new(),
            thread: Mutex::default(),
        });
        let running = Arc::clone(&committer);
        let thread = std::thread::Builder::new()
            .name("engine".to_owned())
            .spawn(move || running.run())
            .map_err(|error| Error::Io {
                file: "engine thread".into(),
                reason: error.to_string(),
                no_space: false,
            })?;
        *committer.thread.lock() = Some(thread);
        Ok(committer)
    }

    /// Adds a batch to the active layer, and wakes the engine thread where this batch is the reason to.
    pub(crate) fn write(&self, ops: Vec<Op>) {
        if ops.is_empty() {
            return;
        }
        let (before, after) = self.state.read().active.write(ops);
        // The delta may be negative where a value was replaced by a shorter one.
        self.buffered_bytes
            .fetch_add(after.bytes.wrapping_sub(before.bytes), Ordering::Relaxed);
        let is_first = before.ops == 0;
        let is_urgent = (before.ops < self.options.commit_ops_max
            && after.ops >= self.options.commit_ops_max)
            || (before.bytes < self.options.commit_bytes_max
                && after.bytes >= self.options.commit_bytes_max);
        if is_first || is_urgent {
            let mut control = self.control.lock();
            control.waiting_since.get_or_insert_with(Instant::now);
            control.urgent |= is_urgent;
            self.wake.notify_one();
        }
    }

    /// Commits all that was written before the call.
    pub(crate) fn checkpoint(&self) -> Result<u64> {
        let mut control = self.control.lock();
        control.requested += 1;
        let ticket = control.requested;
        self.wake.notify_one();
        while control.completed < ticket {
            if let Some(error) = &control.failed {
                return Err(error.clone());
            }
            if control.stopped {
                return Err(Error::Closed);
            }
            self.done.wait(&mut control);
        }
        drop(control);
        Ok(self.durable_index.load(Ordering::Acquire))
    }

    /// A view of this moment.
    pub(crate) fn view(&self) -> Result<View> {
        let slot = self.slot_unless_pinned();
        let (layers, live) = {
            let state = self.state.read();
            let layers = state
                .layers()
                .map(|layer| (Arc::clone(layer), layer.mark()))
                .collect();
            (layers, Arc::clone(&state.live))
        };
        let Some(slot) = slot else {
            return Ok(View::new(layers, live));
        };
        let pinned = slot.opened.pin()?;
        Ok(View::new(layers, Arc::new(pinned)))
    }

    /// The slot, held, if the engine's ordinary reader is not a point in time: a pin needs that no commit runs.
    fn slot_unless_pinned(&self) -> Option<parking_lot::MutexGuard<'_, Slot>> {
        let opened = Arc::clone(&self.state.read().live.opened);
        (!opened.engine.reader_is_pinned()).then(|| self.slot.lock())
    }

    /// Ends the engine thread after a last commit.
    pub(crate) fn close(&self) -> Result<()> {
        self.stagings.close();
        {
            let mut control = self.control.lock();
            control.stop = true;
            self.wake.notify_one();
        }
        let thread = self.thread.lock().take();
        if let Some(thread) = thread {
            thread
                .join()
                .expect("the engine thread turns panics of the engine into errors");
        }
        self.control.lock().failed.clone().map_or(Ok(()), Err)
    }

    fn run(&self) {
        loop {
            let (ticket, stop) = self.wait_for_work();
            if let Err(error) = self.commit() {
                error!(%error, "engine commit failed; nothing further is committed");
                self.fail(&error);
                return;
            }
            let mut control = self.control.lock();
            control.completed = ticket;
            control.stopped = stop;
            self.done.notify_all();
            if stop {
                return;
            }
        }
    }

    /// Ends commits for good, and tells who has to know.
    pub(crate) fn fail(&self, error: &Error) {
        {
            let mut control = self.control.lock();
            if control.failed.is_some() {
                return;
            }
            control.failed = Some(error.clone());
            self.done.notify_all();
        }
        let hook = self.hooks.lock().failure.clone();
        if let Some(hook) = hook {
            hook(error);
        }
    }

    /// Blocks until a commit is due; returns the checkpoints that it answers, and whether it is the last.
    fn wait_for_work(&self) -> (u64, bool) {
        let mut control = self.control.lock();
        loop {
            if control.stop || control.urgent || control.requested > control.completed {
                break;
            }
            match control.waiting_since {
                None => self.wake.wait(&mut control),
                Some(since) => {
                    if self
                        .wake
                        .wait_until(&mut control, since + self.options.commit_interval)
                        .timed_out()
                    {
                        break;
                    }
                }
            }
        }
        // Cleared before the layer is frozen: a write into the next layer sets them anew.
        control.urgent = false;
        control.waiting_since = None;
        (control.requested, control.stop)
    }

    fn commit(&self) -> Result<()> {
        let mut slot = self.slot.lock();
        if let Some(error) = self.control.lock().failed.clone() {
            return Err(error);
        }
        let Some(layer) = self.freeze() else {
            return Ok(());
        };
        let fill = layer.fill();
        let applied = layer.applied();
        let gate_start = Instant::now();
        if let Some(applied) = applied {
            let gate = self.hooks.lock().gate.clone();
            if let Some(gate) = gate {
                gate(applied);
            }
        }
        let gated = gate_start.elapsed();

        let start = Instant::now();
        let Slot { opened, touched } = &mut *slot;
        layer.with_changes(|changes| guarded(opened.file(), || opened.engine.commit(changes)))?;
        if let Some(touched) = touched {
            layer.with_changes(|changes| {
                let others = changes
                    .others
                    .iter()
                    .filter(|(keyspace, ..)| keyspace.is_log());
                touched.extend(others.map(|(keyspace, key, _)| (*keyspace, key.to_vec())));
            });
        }
        let live = Arc::new(opened.reader()?);
        let sizes = opened.sizes();
        let took = start.elapsed();
        if took > SLOW_COMMIT {
            warn!(
                took_ms = took.as_millis() as u64,
                ops = fill.ops,
                "slow engine commit"
            );
        }

        let previous = {
            let mut state = self.state.write();
            state.committing = None;
            std::mem::replace(&mut state.live, live)
        };
        // Freed outside the lock: the layer's memory, and perhaps the last reader of older pages.
        drop(previous);
        drop(layer);
        self.buffered_bytes.fetch_sub(fill.bytes, Ordering::Relaxed);
        *self.sizes.lock() = sizes;
        let before = self.durable_index.load(Ordering::Acquire);
        let now = applied.unwrap_or(before);
        assert!(
            before <= now,
            "applied index {now} is behind the durable one {before}"
        );
        self.durable_index.store(now, Ordering::Release);
        self.safe_purge_index.store(before, Ordering::Release);
        drop(slot);

        let observer = self.hooks.lock().observer.clone();
        if let Some(observer) = observer {
            observer(&CommitReport {
                took,
                gated,
                ops: fill.ops,
                bytes: fill.bytes,
                applied: now,
                sizes,
            });
        }
        Ok(())
    }

    /// Puts an empty layer in the place of the active one, and that in the place of the committing one.
    fn freeze(&self) -> Option<Arc<Layer>> {
        let mut state = self.state.write();
        if state.active.fill().ops == 0 {
            return None;
        }
        assert!(
            state.committing.is_none(),
            "a commit began while another one was under way"
        );
        let frozen = std::mem::take(&mut state.active);
        state.committing = Some(Arc::clone(&frozen));
        Some(frozen)
    }
}

impl Opened {
    /// The newest commit, for reads that end soon.
    pub(crate) fn reader(self: &Arc<Self>) -> Result<Live> {
        let reader = guarded(self.file(), || self.engine.reader())?;
        Ok(Live {
            reader,
            opened: Arc::clone(self),
        })
    }

    /// The newest commit, for as long as it is kept. No commit may be under way.
    pub(crate) fn pin(self: &Arc<Self>) -> Result<Live> {
        let reader = guarded(self.file(), || self.engine.pin())?;
        Ok(Live {
            reader,
            opened: Arc::clone(self),
        })
    }

    pub(crate) fn sizes(&self) -> Sizes {
        let in_use = self.engine.in_use();
        let on_disk = self
            .generation
            .as_ref()
            .map_or(in_use, Generation::size_bytes);
        let gaps = match self.engine.fills_its_gaps() {
            true => on_disk.saturating_sub(in_use),
            false => 0,
        };
        Sizes {
            on_disk,
            in_use,
            gaps,
        }
    }

    pub(crate) fn file(&self) -> &std::path::Path {
        self.generation
            .as_ref()
            .map_or(std::path::Path::new("memory"), |generation| {
                generation.dir()
            })
    }
}
