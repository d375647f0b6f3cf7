//! Damaged files are moved aside, never deleted.

use std::fs;
use std::path::{Path, PathBuf};

use tracing::warn;

use super::db_dir;
use super::engine::io_error;
use super::generation::{create_dir_durably, sync_dir};
use crate::Result;

/// Moves the database of `member_dir`, all generations and CURRENT, to a new folder `member_dir`/quarantine/<n>, so that
/// the next open makes an empty one; returns that folder.
///
/// For a member whose open said [`crate::Error::Damage`] and which is about to be re-seeded from a peer. It must not be
/// called while the database is open. A crash in the middle leaves a state which the next call finishes.
pub fn quarantine(member_dir: &Path) -> Result<PathBuf> {
    let all = member_dir.join("quarantine");
    create_dir_durably(&all, member_dir)?;
    let aside = (1_u64..)
        .map(|number| all.join(number.to_string()))
        .find(|candidate| !candidate.exists())
        .expect("fewer than 2^64 folders exist");
    create_dir_durably(&aside, &all)?;
    // The generations first: a CURRENT that names none is an error, never an empty database.
    for source in [db_dir(member_dir), member_dir.join("CURRENT")] {
        let Some(name) = source.file_name() else {
            continue;
        };
        if source.exists() {
            fs::rename(&source, aside.join(name)).map_err(|error| io_error(&source, &error))?;
        }
    }
    sync_dir(&aside)?;
    sync_dir(member_dir)?;
    warn!(from = %member_dir.display(), to = %aside.display(), "moved a damaged database aside");
    Ok(aside)
}
