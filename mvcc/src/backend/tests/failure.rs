//! A commit fails: the hook hears of it once, reads go on, and nothing is acknowledged any more.

use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};

use bytes::Bytes;

use crate::backend::engine::{Changes, Engine, Reader, io_error};
use crate::backend::memory::MemoryEngine;
use crate::backend::{Backend, Keyspace, MemoryDisk, Op, Options};
use crate::{Error, Result};

/// Commits to memory until the disk is full, or until it panics.
struct FailingEngine {
    inner: MemoryEngine,
    broken: Arc<AtomicBool>,
    panics: bool,
}

impl Engine for FailingEngine {
    fn commit(&self, changes: &Changes<'_>) -> Result<()> {
        if !self.broken.load(Ordering::SeqCst) {
            return self.inner.commit(changes);
        }
        assert!(!self.panics, "a page is broken");
        Err(io_error(
            Path::new("disk"),
            &std::io::ErrorKind::StorageFull.into(),
        ))
    }

    fn reader(&self) -> Result<Arc<dyn Reader>> {
        self.inner.reader()
    }

    fn pin(&self) -> Result<Arc<dyn Reader>> {
        self.inner.pin()
    }

    fn reader_is_pinned(&self) -> bool {
        true
    }

    fn in_use(&self) -> u64 {
        self.inner.in_use()
    }
}

fn put(key: &'static str) -> Vec<Op> {
    vec![Op::Put(
        Keyspace::Lease,
        Bytes::from(key),
        Bytes::from("value"),
    )]
}

fn check(panics: bool, is_expected: fn(&Error) -> bool) {
    let broken = Arc::new(AtomicBool::new(false));
    let engine = FailingEngine {
        inner: MemoryEngine::open(&MemoryDisk::default()),
        broken: Arc::clone(&broken),
        panics,
    };
    let backend = Backend::start(None, Arc::new(engine), Options::default()).unwrap();
    let failures = Arc::new(AtomicU64::new(0));
    let counted = Arc::clone(&failures);
    backend.set_failure_hook(move |_| {
        counted.fetch_add(1, Ordering::SeqCst);
    });
    backend.write(put("before"));
    backend.set_applied(1);
    assert_eq!(backend.checkpoint().unwrap(), 1);

    broken.store(true, Ordering::SeqCst);
    backend.write(put("lost"));
    backend.set_applied(2);
    assert!(is_expected(&backend.checkpoint().unwrap_err()));

    broken.store(false, Ordering::SeqCst);
    backend.write(put("after"));
    assert!(
        is_expected(&backend.checkpoint().unwrap_err()),
        "nothing is committed after a failure"
    );
    assert!(backend.failed().is_some_and(|error| is_expected(&error)));
    assert_eq!(backend.durable_index(), 1);
    for key in ["before", "lost", "after"] {
        assert!(
            backend
                .get(Keyspace::Lease, key.as_bytes())
                .unwrap()
                .is_some(),
            "{key}"
        );
    }
    assert!(backend.close().is_err());
    assert_eq!(failures.load(Ordering::SeqCst), 1);
}

#[test]
fn full_disk_ends_commits_for_good() {
    check(false, |error| {
        matches!(error, Error::Io { no_space: true, .. })
    });
}

#[test]
fn panic_of_the_engine_ends_commits_for_good() {
    check(true, |error| matches!(error, Error::Damage { .. }));
}
