//! Compares what is stored twice: every value with its checksum, every value record with its index record.
//!
//! A start trusts the index keyspace and reads no value, so damage to a value nobody asks for would stay unknown until
//! someone does. A scrub reads everything, slice by slice, at whatever pace its driver chooses. Each slice looks at
//! both keyspaces through one view, so writes and compactions meanwhile do not look like damage.

use std::ops::ControlFlow;

use bytes::Bytes;

use crate::Result;
use crate::backend::Keyspace;
use crate::record::{self, IndexRecord};
use crate::revision::{Change, Revision};
use crate::store::Store;

/// How far a scrub has come.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ScrubProgress {
    /// Revisions that were read and found good.
    pub checked: usize,
    /// Where the next slice begins; `None` when the last one is done.
    pub next: Option<ScrubPosition>,
}

/// Where a slice of a scrub begins; the default is the beginning.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct ScrubPosition(Bytes);

/// What the value record of a revision says about it.
struct Checked {
    revision_key: Bytes,
    key: Bytes,
    create_revision: i64,
    version: i64,
    lease: i64,
}

impl Store {
    /// Verifies at most `revisions_max` (at least one) stored revisions from `from` on. Blocks on the engine.
    ///
    /// Errors: [`Error::Damage`](crate::Error::Damage) names the first revision whose value fails its checksum, is no
    /// `KeyValue`, or does not agree with its index record.
    pub fn scrub(&self, from: &ScrubPosition, revisions_max: usize) -> Result<ScrubProgress> {
        let view = self.backend.view()?;
        let mut checked = Vec::new();
        let mut bad = None;
        view.scan(Keyspace::Rev, &from.0, None, &mut |revision_key, value| {
            if checked.len() >= revisions_max.max(1) {
                return ControlFlow::Break(());
            }
            match check_value(revision_key, value) {
                Ok(one) => {
                    checked.push(one);
                    ControlFlow::Continue(())
                }
                Err(what) => {
                    bad = Some(what);
                    ControlFlow::Break(())
                }
            }
        })?;
        // No key lies between one and itself with a zero byte behind it.
        let next = match checked.last() {
            Some(last) if checked.len() >= revisions_max.max(1) => {
                Some(Bytes::from([&last.revision_key[..], &[0]].concat()))
            }
            Some(_) | None => None,
        };
        let mut expected = checked.iter();
        if bad.is_none() {
            view.scan(
                Keyspace::Index,
                &from.0,
                next.as_deref(),
                &mut |revision_key, record| match check_index(expected.next(), revision_key, record)
                {
                    Ok(()) => ControlFlow::Continue(()),
                    Err(what) => {
                        bad = Some(what);
                        ControlFlow::Break(())
                    }
                },
            )?;
        }
        if bad.is_none()
            && let Some(missing) = expected.next()
        {
            bad = Some(format!(
                "revision {} has no index record",
                show(&missing.revision_key)
            ));
        }
        match bad {
            Some(what) => Err(self.damage(what)),
            None => Ok(ScrubProgress {
                checked: checked.len(),
                next: next.map(ScrubPosition),
            }),
        }
    }
}

fn check_value(revision_key: &[u8], value: &[u8]) -> Result<Checked, String> {
    let Some((revision, change)) = Revision::decode(revision_key) else {
        return Err(format!("{revision_key:02x?} is not a revision"));
    };
    let kv = record::decode_value(&Bytes::copy_from_slice(value))
        .ok_or_else(|| format!("the value of revision {revision} is not a KeyValue"))?;
    let main = match change {
        Change::Put => revision.main,
        Change::Tombstone => 0,
    };
    if kv.mod_revision != main {
        return Err(format!(
            "the value of revision {revision} is that of revision {}",
            kv.mod_revision
        ));
    }
    Ok(Checked {
        revision_key: Bytes::copy_from_slice(revision_key),
        // Not a slice of the record, whose value would then stay in memory for the whole slice of the scrub.
        key: Bytes::copy_from_slice(&kv.key),
        create_revision: kv.create_revision,
        version: kv.version,
        lease: kv.lease,
    })
}

fn check_index(
    expected: Option<&Checked>,
    revision_key: &[u8],
    record: &[u8],
) -> Result<(), String> {
    let expected = match expected {
        Some(expected) if expected.revision_key == revision_key => expected,
        Some(expected) if expected.revision_key < revision_key => {
            return Err(no_index(expected));
        }
        Some(_) | None => {
            let revision = show(revision_key);
            return Err(format!(
                "revision {revision} has an index record and no value"
            ));
        }
    };
    let found = Revision::decode(revision_key)
        .and_then(|(_, change)| IndexRecord::decode(change, record))
        .ok_or_else(|| {
            format!(
                "the index record of revision {} is not one",
                show(revision_key)
            )
        })?;
    let wanted = IndexRecord {
        key: &expected.key,
        create_revision: expected.create_revision,
        version: expected.version,
        lease: expected.lease,
    };
    if found != wanted {
        return Err(format!(
            "value and index record of revision {} disagree",
            show(revision_key)
        ));
    }
    Ok(())
}

fn no_index(checked: &Checked) -> String {
    let revision = show(&checked.revision_key);
    format!("revision {revision} has a value and no index record")
}

fn show(revision_key: &[u8]) -> String {
    match Revision::decode(revision_key) {
        Some((revision, _)) => revision.to_string(),
        None => format!("{revision_key:02x?}"),
    }
}
