//! The whole state in one piece: sent to a member that fell behind the log, and taken over by it.
//!
//! The store does the work (see kv-mvcc's snapshot). Here is what is kept beside it in memory: member table, alarms and
//! the position of apply, which are read from the store again once it was replaced.

use std::any::Any;
use std::io;
use std::ops::ControlFlow;
use std::sync::Weak;
use std::time::Instant;

use anyhow::Context;
use bytes::Bytes;
use kv_mvcc::backend::{Backend, Keyspace};
use kv_mvcc::{Received, Snapshot, Store};
use kv_raft::{Applied, InstallFuture, SnapshotSource};

use super::Applier;
use crate::alarm::Alarms;
use crate::auth::Auth;
use crate::cluster::{Cluster, Stored};

/// The store as of `applied`.
struct StoreSource {
    applied: Applied,
    snapshot: Snapshot,
}

impl SnapshotSource for StoreSource {
    fn applied(&self) -> Applied {
        self.applied.clone()
    }

    fn next_chunk(&mut self) -> io::Result<Option<Bytes>> {
        self.snapshot.next_chunk().map_err(io::Error::other)
    }

    fn again(&self) -> Option<Box<dyn SnapshotSource>> {
        Some(Box::new(StoreSource {
            applied: self.applied.clone(),
            snapshot: self.snapshot.again(),
        }))
    }
}

/// A snapshot that was taken in while it arrived.
struct ReceivedSource(Option<Received>);

impl SnapshotSource for ReceivedSource {
    fn applied(&self) -> Applied {
        // What it contains is in its header, which raft reads.
        Applied::default()
    }

    fn next_chunk(&mut self) -> io::Result<Option<Bytes>> {
        let text = "a snapshot that was taken in has no chunks any more";
        Err(io::Error::new(io::ErrorKind::Unsupported, text))
    }

    fn take_prepared(&mut self) -> Option<Box<dyn Any + Send>> {
        self.0
            .take()
            .map(|received| Box::new(received) as Box<dyn Any + Send>)
    }
}

/// Takes in a snapshot whose bytes arrive, beside what `store` has; for [`Applier::install_snapshot`] of the same store.
///
/// Blocks for the bytes and the disk, and does not keep the store from being closed meanwhile.
pub(crate) fn receive_snapshot(
    store: &Weak<Store>,
    next_chunk: &mut dyn FnMut() -> io::Result<Option<Bytes>>,
) -> io::Result<Box<dyn SnapshotSource>> {
    let receiver = {
        let store = store.upgrade();
        let store = store.ok_or_else(|| io::Error::other(kv_mvcc::Error::Closed))?;
        store.receiver().map_err(io::Error::other)?
    };
    let received = receiver.receive(next_chunk).map_err(io::Error::other)?;
    Ok(Box::new(ReceivedSource(Some(received))))
}

impl Applier {
    /// Pins the present state. Called between two entries, so it contains the last one completely.
    pub(super) fn open_snapshot(&mut self) -> io::Result<Box<dyn SnapshotSource>> {
        let snapshot = self.store.snapshot().map_err(io::Error::other)?;
        let applied = self.recorded()?;
        assert!(
            (applied.index, applied.term) == (self.position.index, self.position.term),
            "the store is at index {} of term {}, and apply at {} of {}",
            applied.index,
            applied.term,
            self.position.index,
            self.position.term
        );
        Ok(Box::new(StoreSource { applied, snapshot }))
    }

    /// Replaces everything by what `source` contains. Readers of the store go on meanwhile.
    pub(super) fn install_snapshot(
        &mut self,
        applied: Applied,
        mut source: Box<dyn SnapshotSource>,
    ) -> InstallFuture<'_> {
        Box::pin(async move {
            let begun = Instant::now();
            let store = self.store.clone();
            let install = move || {
                let received = match source.take_prepared() {
                    Some(prepared) => *prepared
                        .downcast::<Received>()
                        .expect("whoever received it made it by receive_snapshot"),
                    None => store.receiver()?.receive(|| source.next_chunk())?,
                };
                store.install(received)
            };
            tokio::task::spawn_blocking(install)
                .await
                .map_err(io::Error::other)?
                .map_err(io::Error::other)?;
            restore_tables(
                self.store.backend(),
                &self.cluster,
                &self.alarms,
                &self.auth,
            )
            .map_err(io::Error::other)?;
            if self.cluster.is_removed(self.member_id) {
                self.removed.cancel();
            }
            let installed = self.resume()?;
            if installed != applied {
                return Err(io::Error::new(
                    io::ErrorKind::InvalidData,
                    format!(
                        "a snapshot announced as index {} of term {} contained index {} of term {}",
                        applied.index, applied.term, installed.index, installed.term
                    ),
                ));
            }
            self.metrics
                .server
                .proposals_applied
                .set(self.position.index as i64);
            tracing::info!(
                index = applied.index,
                term = applied.term,
                revision = self.store.revision(),
                took_ms = begun.elapsed().as_millis() as u64,
                "installed a snapshot"
            );
            Ok(())
        })
    }
}

/// Reads back what apply keeps in memory beside the keys: the member table, the alarms, users and roles.
pub(crate) fn restore_tables(
    backend: &Backend,
    cluster: &Cluster,
    alarms: &Alarms,
    auth: &Auth,
) -> anyhow::Result<()> {
    auth.restore(backend)
        .context("users and roles cannot be read")?;
    let view = backend.view()?;
    let mut members = Vec::new();
    view.scan(Keyspace::Members, &[], None, &mut |_, json| {
        members.push(Bytes::copy_from_slice(json));
        ControlFlow::Continue(())
    })?;
    let mut removed = Vec::new();
    view.scan(Keyspace::MembersRemoved, &[], None, &mut |id, _| {
        removed.extend(
            std::str::from_utf8(id)
                .ok()
                .and_then(|id| u64::from_str_radix(id, 16).ok()),
        );
        ControlFlow::Continue(())
    })?;
    let stored = Stored {
        members,
        removed,
        version: view.get(Keyspace::Cluster, Cluster::version_key())?,
        downgrade: view.get(Keyspace::Cluster, Cluster::downgrade_key())?,
    };
    cluster
        .restore(stored)
        .context("the member table cannot be read")?;
    let mut raised = Vec::new();
    view.scan(Keyspace::Alarm, &[], None, &mut |key, cause| {
        raised.push((Bytes::copy_from_slice(key), Bytes::copy_from_slice(cause)));
        ControlFlow::Continue(())
    })?;
    alarms.restore(raised).context("the alarms cannot be read")
}

#[cfg(test)]
mod tests;
