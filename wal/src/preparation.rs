//! The next segment before it is needed: made in the background, tried again while the disk is full.
//!
//! Owned here: the file that becomes the next segment. Its name is `next.tmp`, and whatever has that name is zeroed
//! before it is used, so a purged segment may be renamed to it and its blocks serve again.
//! Invariant: at most one preparation runs, and nobody else touches the file meanwhile.

use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::thread::{self, JoinHandle};
use std::time::{Duration, Instant};

use parking_lot::Mutex;

use crate::error::{Error, Result};
use crate::fs::{File, Fs};
use crate::segment;

/// How long after a failure it is tried again.
const RETRY_AFTER: Duration = Duration::from_secs(1);

const NAME: &str = "next.tmp";

/// Who does the work.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Mode {
    /// A thread of its own, while the log goes on.
    Background,
    /// The caller, so that every operation happens in a fixed order.
    Inline,
}

enum State {
    None,
    Running(JoinHandle<Result<Arc<dyn File>>>),
    Ready(Arc<dyn File>),
    Failed(Instant),
}

/// The next segment, and how far it is.
pub(crate) struct Preparation {
    mode: Mode,
    fs: Arc<dyn Fs>,
    path: PathBuf,
    len: u64,
    state: State,
    /// Why it failed, while that is so; shared with the log's handle.
    error: Arc<Mutex<Option<Error>>>,
}

impl Preparation {
    pub(crate) fn new(
        mode: Mode,
        fs: Arc<dyn Fs>,
        dir: &Path,
        len: u64,
        error: Arc<Mutex<Option<Error>>>,
    ) -> Preparation {
        Preparation {
            mode,
            fs,
            path: dir.join(NAME),
            len,
            state: State::None,
            error,
        }
    }

    /// The file's name.
    pub(crate) fn path(&self) -> &Path {
        &self.path
    }

    /// Its length.
    pub(crate) fn len(&self) -> u64 {
        self.len
    }

    pub(crate) fn is_ready(&self) -> bool {
        matches!(self.state, State::Ready(_))
    }

    /// Whether another file may get this one's name.
    pub(crate) fn takes_recycled(&self) -> bool {
        matches!(self.state, State::None | State::Failed(_))
    }

    /// When [`Preparation::advance`] should be called although nothing is appended: one who stopped appending because
    /// of a full disk waits for that to pass.
    pub(crate) fn wake_after(&self) -> Option<Duration> {
        match self.state {
            State::Running(_) | State::Failed(_) => Some(RETRY_AFTER),
            State::None | State::Ready(_) => None,
        }
    }

    /// Starts if `is_due`, sees whether what was started is done, tries again what failed.
    pub(crate) fn advance(&mut self, is_due: bool) {
        let starts = match &self.state {
            State::None => is_due,
            State::Failed(at) => self.mode == Mode::Inline || at.elapsed() >= RETRY_AFTER,
            State::Running(thread) if thread.is_finished() => {
                self.join();
                false
            }
            State::Running(_) | State::Ready(_) => false,
        };
        if !starts {
            return;
        }
        let (fs, path, len) = (Arc::clone(&self.fs), self.path.clone(), self.len);
        let error = Arc::clone(&self.error);
        let work = move || {
            let outcome = segment::prepare(&*fs, &path, len);
            note(&error, &outcome);
            outcome
        };
        if self.mode == Mode::Inline {
            return self.settle(work());
        }
        match thread::Builder::new()
            .name("wal-prepare".to_owned())
            .spawn(work)
        {
            Ok(thread) => self.state = State::Running(thread),
            Err(error) => {
                let outcome = Err(Error::io("start a thread to prepare", &self.path, error));
                note(&self.error, &outcome);
                self.settle(outcome);
            }
        }
    }

    /// The prepared file; waits for it, or makes it now, if need be. It must be renamed before the next call.
    pub(crate) fn take(&mut self) -> Result<Arc<dyn File>> {
        self.join();
        if let State::Ready(file) = std::mem::replace(&mut self.state, State::None) {
            return Ok(file);
        }
        let outcome = segment::prepare(&*self.fs, &self.path, self.len);
        note(&self.error, &outcome);
        outcome
    }

    /// Waits for what is running.
    pub(crate) fn join(&mut self) {
        match std::mem::replace(&mut self.state, State::None) {
            State::Running(thread) => {
                let outcome = thread.join().unwrap_or_else(|_| {
                    let outcome = Err(Error::WriterPanicked {
                        what: "preparing a segment".to_owned(),
                    });
                    note(&self.error, &outcome);
                    outcome
                });
                self.settle(outcome);
            }
            other => self.state = other,
        }
    }

    fn settle(&mut self, outcome: Result<Arc<dyn File>>) {
        self.state = match outcome {
            Ok(file) => State::Ready(file),
            Err(_) => State::Failed(Instant::now()),
        };
    }
}

/// Shows how a preparation went; logs only the first of a row of failures.
fn note(slot: &Mutex<Option<Error>>, outcome: &Result<Arc<dyn File>>) {
    let mut slot = slot.lock();
    if let (None, Err(error)) = (&*slot, outcome) {
        tracing::warn!(%error, "cannot prepare the next log segment");
    }
    *slot = outcome.as_ref().err().cloned();
}
