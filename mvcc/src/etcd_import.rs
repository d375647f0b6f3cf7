//! A database made of a backend file of etcd: what restoring a backup and moving from etcd rest on.
//!
//! Every revision is taken over as it is stored, so that reads of old revisions, watches from them and HashKV are what
//! they were. The index keyspace, which etcd does not have, is derived. Who the members are, their versions and
//! how far their log was belong to the cluster that was: the caller says what takes their place.
//!
//! An item with an empty value, which etcdutl puts behind the last revision when it raises that, is left out: it is no
//! change of a key, and the compaction that comes with it keeps the revision.
//!
//! Source: etcd 3.7, storage/mvcc restore; etcdutl 3.7, snapshot restore (raising the revision).

use std::ops::ControlFlow;

use bytes::Bytes;

use crate::backend::{Backend, CONSISTENT_INDEX_KEY, Keyspace};
use crate::compaction::{FINISHED_KEY, SCHEDULED_KEY};
use crate::etcd_file::EtcdFile;
use crate::lease::LessorOptions;
use crate::record;
use crate::recovery;
use crate::revision::{Change, Revision};
use crate::store::TERM_KEY;
use crate::{Error, Result};

/// What takes the place of the file's cluster.
#[derive(Clone, Debug, Default)]
pub struct ImportOptions {
    /// Log index that the database contains; at least 1.
    pub applied: u64,
    /// Its term.
    pub term: u64,
    /// How much to raise the newest revision by, and compact all before it: watchers and caches of the former cluster
    /// then notice that theirs is gone. 0 leaves it.
    pub revision_bump: i64,
    /// Items of [`Keyspace::Members`] and [`Keyspace::Meta`].
    pub extra: Vec<(Keyspace, Bytes, Bytes)>,
}

/// What an import made.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Imported {
    /// The newest revision.
    pub revision: i64,
    /// The compacted one; -1 if there is none.
    pub compacted: i64,
    /// Changes of keys that are there.
    pub items: u64,
}

/// Buckets that are taken over as they are, in the order of [`Keyspace::ALL`].
const COPIED: [(&str, Keyspace); 5] = [
    ("lease", Keyspace::Lease),
    ("auth", Keyspace::Auth),
    ("authUsers", Keyspace::AuthUsers),
    ("authRoles", Keyspace::AuthRoles),
    ("alarm", Keyspace::Alarm),
];

/// Makes `file` the content of `backend`, which nobody uses yet; durable on return.
///
/// Reads the keys twice. Errors: [`Error::EtcdFile`] if the file is not sound, or not etcd's; the database is then
/// as before.
pub fn import(backend: &Backend, file: &EtcdFile, options: &ImportOptions) -> Result<Imported> {
    file.check()?;
    let mut staging = backend.stage()?;
    let (mut newest, mut items) = (1, 0);
    for keyspace in [Keyspace::Rev, Keyspace::Index] {
        let mut result = Ok(());
        file.scan("key", &mut |key, value| {
            result = (|| {
                let (revision, change) = Revision::decode(key)
                    .ok_or_else(|| unsound(file, key, "the key is no revision"))?;
                newest = newest.max(revision.main);
                if value.is_empty() {
                    return Ok(());
                }
                if keyspace == Keyspace::Index {
                    let record = index_record(file, key, value, revision, change)?;
                    return staging.put(keyspace, key.clone(), record);
                }
                items += 1;
                staging.put(keyspace, key.clone(), value.clone())
            })();
            flow(&result)
        })?;
        result?;
    }
    for (bucket, keyspace) in COPIED {
        let mut result = Ok(());
        file.scan(bucket, &mut |key, value| {
            result = staging.put(keyspace, key.clone(), value.clone());
            flow(&result)
        })?;
        result?;
    }
    for (keyspace, key, value) in &options.extra {
        staging.put(*keyspace, key.clone(), value.clone())?;
    }
    let mut result = Ok(());
    file.scan("meta", &mut |key, value| {
        // A raised revision has a compaction of its own.
        let is_compaction = key == SCHEDULED_KEY || key == FINISHED_KEY;
        if is_compaction && (options.revision_bump == 0 || key == FINISHED_KEY) {
            result = staging.put(Keyspace::Meta, key.clone(), value.clone());
        }
        flow(&result)
    })?;
    result?;
    if options.revision_bump > 0 {
        newest = newest
            .checked_add(options.revision_bump)
            .ok_or_else(|| file.refused(0, format!("its revision {newest} cannot be raised")))?;
        let scheduled = Revision::new(newest, 0).key(Change::Put);
        staging.put(
            Keyspace::Meta,
            Bytes::from_static(SCHEDULED_KEY),
            Bytes::copy_from_slice(&scheduled),
        )?;
    }
    for (key, value) in [
        (TERM_KEY, options.term),
        (CONSISTENT_INDEX_KEY, options.applied),
    ] {
        staging.put(
            Keyspace::Meta,
            Bytes::from_static(key),
            Bytes::copy_from_slice(&value.to_be_bytes()),
        )?;
    }
    let staged = staging.finish()?;
    // What a start could not read must not become the live database.
    let recovered = recovery::recover(&staged.view()?, backend.engine(), LessorOptions::default())
        .map_err(|error| match error {
            Error::Damage { what, .. } => file.refused(0, what),
            other => other,
        })?;
    staged.make_current(backend)?.swap();
    Ok(Imported {
        revision: recovered.current,
        compacted: recovered
            .scheduled_compaction
            .max(recovered.finished_compaction)
            .unwrap_or(-1),
        items,
    })
}

/// The index record of a stored change.
fn index_record(
    file: &EtcdFile,
    key: &Bytes,
    value: &Bytes,
    revision: Revision,
    change: Change,
) -> Result<Bytes> {
    let kv = record::decode_value(value)
        .ok_or_else(|| unsound(file, key, "the value is no key-value pair"))?;
    // HashKV and lists read the stored bytes: the key has to be where etcd writes it.
    if kv.key.is_empty() || record::value_key(value) != Some(&kv.key[..]) {
        return Err(unsound(file, key, "the value does not begin with a key"));
    }
    if change == Change::Put
        && (kv.mod_revision != revision.main || kv.create_revision <= 0 || kv.version <= 0)
    {
        return Err(unsound(file, key, "the value is of another revision"));
    }
    Ok(record::index_record(change, &kv))
}

fn unsound(file: &EtcdFile, key: &Bytes, what: &str) -> Error {
    file.refused(
        0,
        format!("bucket key, item {}: {what}", key.escape_ascii()),
    )
}

fn flow(result: &Result<()>) -> ControlFlow<()> {
    match result {
        Ok(()) => ControlFlow::Continue(()),
        Err(_) => ControlFlow::Break(()),
    }
}
