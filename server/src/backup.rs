//! Backups: the store at one moment as a backend file of etcd, which etcdctl saves and etcdutl restores.
//!
//! Keys, leases, users and roles are stored as in etcd and go out as they are. Different are three small buckets:
//! alarms say why they were raised, members have a field of ours, and in `meta` etcd keeps raft's voters in a form of its
//! own and we keep how far a packed entry is applied.
//!
//! Source: etcd 3.7, storage/schema.

use std::collections::BTreeMap;
use std::ops::ControlFlow;
use std::sync::Arc;
use std::time::Instant;

use bytes::Bytes;
use kv_mvcc::backend::{Keyspace, View};
use kv_mvcc::{EtcdPart, EtcdSnapshot, ReplacedBuckets, Store};
use serde::Serialize;
use tokio::sync::mpsc;

use crate::cluster::{Cluster, Member as ClusterMember, Version};
use crate::member::Member;
use crate::{Error, Result};

/// Backups that may be read at once: each keeps the database's old pages alive. Source: our own.
pub(crate) const AT_ONCE_MAX: usize = 4;
/// Parts that are ready before the client takes one.
const PARTS_AHEAD: usize = 4;

const STORAGE_VERSION: &[u8] = b"storageVersion";
/// Items of `meta` that mean the same in etcd.
const META: [&[u8]; 4] = [
    b"consistent_index",
    b"term",
    kv_mvcc::SCHEDULED_KEY,
    kv_mvcc::FINISHED_KEY,
];

/// raft's members as etcd stores them.
#[derive(Serialize)]
struct ConfState {
    voters: Vec<u64>,
    #[serde(skip_serializing_if = "Vec::is_empty")]
    learners: Vec<u64>,
}

/// Reads a backup of the present moment into a channel that is read at the client's pace.
///
/// Errors: [`Error::TooManyRequests`] if [`AT_ONCE_MAX`] are under way.
pub(crate) fn send(member: Arc<Member>) -> Result<mpsc::Receiver<Result<EtcdPart>>> {
    let permit = member
        .backups
        .clone()
        .try_acquire_owned()
        .map_err(|_| Error::TooManyRequests)?;
    let (parts, receiver) = mpsc::channel(PARTS_AHEAD);
    tokio::task::spawn_blocking(move || {
        let _permit = permit;
        let begun = Instant::now();
        match read(&member, &parts) {
            Ok(bytes) => tracing::info!(
                bytes,
                took_ms = begun.elapsed().as_millis() as u64,
                "sent a backup"
            ),
            Err(error) => {
                tracing::warn!(%error, "a backup was not sent to its end");
                // Nobody receives: then nobody needs to know.
                let _ = parts.blocking_send(Err(error));
            }
        }
    });
    Ok(receiver)
}

/// Sends every part; returns the size of the file.
fn read(member: &Member, parts: &mpsc::Sender<Result<EtcdPart>>) -> Result<u64> {
    let mut snapshot = open(&member.store)?;
    tracing::info!(bytes = snapshot.file_bytes(), "sending a backup");
    while let Some(part) = snapshot.next_part()? {
        if member.stopping.is_cancelled() || parts.blocking_send(Ok(part)).is_err() {
            return Err(Error::Stopped);
        }
    }
    Ok(snapshot.file_bytes())
}

/// Pins the store as of now.
fn open(store: &Store) -> Result<EtcdSnapshot> {
    Ok(store.etcd_snapshot(replaced)?)
}

fn replaced(view: &View) -> kv_mvcc::Result<ReplacedBuckets> {
    let mut conf = ConfState {
        voters: Vec::new(),
        learners: Vec::new(),
    };
    let mut members = Vec::new();
    for (key, json) in items(view, Keyspace::Members)? {
        // What cannot be read would have ended the start.
        if let Ok(member) = serde_json::from_slice::<ClusterMember>(&json) {
            match member.is_learner {
                true => conf.learners.push(member.id),
                false => conf.voters.push(member.id),
            }
            members.push((key, member.into_etcds_json()));
        }
    }
    conf.voters.sort_unstable();
    conf.learners.sort_unstable();
    let mut meta: BTreeMap<Bytes, Bytes> = items(view, Keyspace::Meta)?.into_iter().collect();
    meta.retain(|key, _| META.contains(&&key[..]));
    // The version of what is stored is the cluster's; etcd has none before 3.6.
    let version = view.get(Keyspace::Cluster, Cluster::version_key())?;
    let has_one = version.as_ref().is_some_and(|text| {
        let parsed = std::str::from_utf8(text).map(str::parse::<Version>);
        matches!(parsed, Ok(Ok(version)) if version >= Version::new(3, 6))
    });
    if let Some(version) = version.filter(|_| has_one) {
        meta.insert(Bytes::from_static(STORAGE_VERSION), version);
    }
    let conf = serde_json::to_vec(&conf).expect("it has only numbers");
    meta.insert(Bytes::from_static(b"confState"), conf.into());
    // Why an alarm was raised is ours to know.
    let alarms = items(view, Keyspace::Alarm)?.into_iter();
    let alarms = alarms.map(|(key, _)| (key, Bytes::new())).collect();
    Ok(vec![
        (Keyspace::Alarm, alarms),
        (Keyspace::Members, members),
        (Keyspace::Meta, meta.into_iter().collect()),
    ])
}

/// All of a small keyspace.
fn items(view: &View, keyspace: Keyspace) -> kv_mvcc::Result<Vec<(Bytes, Bytes)>> {
    let mut items = Vec::new();
    view.scan(keyspace, &[], None, &mut |key, value| {
        items.push((Bytes::copy_from_slice(key), Bytes::copy_from_slice(value)));
        ControlFlow::Continue(())
    })?;
    Ok(items)
}
