//! The whole store as a backend file of etcd, in parts of a stream: what a backup of etcd is.
//!
//! A pinned view is read twice: to count the pages, since the first ones say where the root is, and to write them. So a
//! file of any size costs a chunk and a few pages of memory, holds up no write, and contains what was applied when
//! it was asked for, committed or not. Values are handed on as stored. What etcd keeps elsewhere or otherwise comes
//! from the caller as whole buckets.
//!
//! Source: etcd 3.7, v3rpc/maintenance (the parts and the sum at the end).

use std::ops::ControlFlow;

use bytes::Bytes;
use sha2::{Digest, Sha256};

use crate::backend::{Keyspace, View};
use crate::etcd_file::{BUCKETS, Counted, FileWriter};
use crate::store::Store;
use crate::{Error, Result};

/// Most bytes of a part. Source: etcd 3.7.
pub const ETCD_PART_BYTES_MAX: usize = 32 << 10;
/// Bytes of pages that are made at a time, unless a single value is larger.
const BATCH_BYTES: usize = 256 << 10;

/// Buckets that are not what the keyspace of that name holds: items with ascending keys.
pub type ReplacedBuckets = Vec<(Keyspace, Vec<(Bytes, Bytes)>)>;

/// The store at one moment as etcd's backend file, read part by part.
pub struct EtcdSnapshot {
    view: View,
    replaced: ReplacedBuckets,
    counted: Counted,
    writer: FileWriter,
    /// Bucket, and the key to go on from; `None` when all are written.
    next: Option<(usize, Vec<u8>)>,
    /// Bytes of the file that are still to come.
    remaining: u64,
    sum: Sha256,
    ended: bool,
}

/// What one message carries.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct EtcdPart {
    /// Bytes of the file, or the sha256 of all of them at the end.
    pub blob: Bytes,
    /// Bytes of the file after this part.
    pub remaining: u64,
}

impl Store {
    /// Pins the present state as a file of etcd. Reads everything once, so it belongs where it may block.
    ///
    /// `replace` makes the buckets that differ from a keyspace, of the same moment. Errors: [`Error::Damage`].
    pub fn etcd_snapshot(
        &self,
        replace: impl FnOnce(&View) -> Result<ReplacedBuckets>,
    ) -> Result<EtcdSnapshot> {
        let view = self.backend.view()?;
        let replaced = replace(&view)?;
        let mut counter = FileWriter::counting();
        let mut next = Some((0, Vec::new()));
        while let Some(position) = next {
            next = fill(&view, &replaced, &mut counter, position, usize::MAX)?;
        }
        let counted = counter.finish();
        Ok(EtcdSnapshot {
            view,
            replaced,
            counted,
            writer: FileWriter::writing(counted),
            next: Some((0, Vec::new())),
            remaining: counted.file_bytes(),
            sum: Sha256::new(),
            ended: false,
        })
    }
}

impl EtcdSnapshot {
    /// Bytes of the file, without the sum at its end.
    pub fn file_bytes(&self) -> u64 {
        self.counted.file_bytes()
    }

    /// The next part; `None` behind the one with the sum. May read the engine.
    ///
    /// Errors: [`Error::Damage`]; the snapshot is of no more use.
    pub fn next_part(&mut self) -> Result<Option<EtcdPart>> {
        while self.writer.ready() < ETCD_PART_BYTES_MAX
            && let Some(position) = self.next.take()
        {
            self.next = fill(
                &self.view,
                &self.replaced,
                &mut self.writer,
                position,
                BATCH_BYTES,
            )?;
            if self.next.is_none() {
                let written = self.writer.finish();
                self.check(written)?;
            }
        }
        let len = self.writer.ready().min(ETCD_PART_BYTES_MAX);
        if len > 0 {
            let blob = self.writer.take(len);
            self.sum.update(&blob);
            self.remaining -= len as u64;
            return Ok(Some(EtcdPart {
                blob,
                remaining: self.remaining,
            }));
        }
        if std::mem::replace(&mut self.ended, true) {
            return Ok(None);
        }
        let sum = std::mem::take(&mut self.sum).finalize();
        Ok(Some(EtcdPart {
            blob: Bytes::copy_from_slice(&sum),
            remaining: 0,
        }))
    }

    /// The first pages have promised what was counted.
    fn check(&self, written: Counted) -> Result<()> {
        if written == self.counted {
            return Ok(());
        }
        Err(Error::Damage {
            file: "a snapshot".into(),
            what: format!("{:?} was counted and {written:?} written", self.counted),
        })
    }
}

/// Adds items from `position` on until about `bytes_max` are ready; returns where to go on.
fn fill(
    view: &View,
    replaced: &ReplacedBuckets,
    writer: &mut FileWriter,
    position: (usize, Vec<u8>),
    bytes_max: usize,
) -> Result<Option<(usize, Vec<u8>)>> {
    let (bucket, from) = position;
    let Some(&(name, keyspace)) = BUCKETS.get(bucket) else {
        return Ok(None);
    };
    let mut next = None;
    let mut failed = None;
    let mut put = |writer: &mut FileWriter, key: &[u8], value: &[u8]| {
        failed = writer.put(key, value).err();
        failed.is_none()
    };
    match replaced.iter().find(|(replaced, _)| *replaced == keyspace) {
        Some((_, items)) => {
            for (key, value) in items {
                if !put(writer, key, value) {
                    break;
                }
            }
        }
        None => view.scan(keyspace, &from, None, &mut |key, value| {
            if !put(writer, key, value) {
                return ControlFlow::Break(());
            }
            if writer.ready() >= bytes_max {
                // No key lies between one and itself with a byte behind it.
                next = Some([key, &[0]].concat());
                return ControlFlow::Break(());
            }
            ControlFlow::Continue(())
        })?,
    }
    if let Some(too_large) = failed {
        return Err(Error::Damage {
            file: format!("bucket {name}").into(),
            what: too_large.to_string(),
        });
    }
    Ok(match next {
        Some(from) => Some((bucket, from)),
        None => {
            writer.end_bucket(name);
            Some((bucket + 1, Vec::new())).filter(|(bucket, _)| *bucket < BUCKETS.len())
        }
    })
}
