//! A disk that a test steers from outside the process, in builds with `disk-faults` only.
//!
//! The environment variable `KVD_DISK_FAULTS` names a file that is read before each fsync; without it, or while the file
//! is missing, nothing happens. What it may say:
//!
//! ```text
//! delay-ms N     an fsync takes N milliseconds longer
//! stall          an fsync does not return until the file says something else
//! fail           an fsync fails
//! ```

use std::io;
use std::path::PathBuf;
use std::sync::OnceLock;
use std::thread;
use std::time::Duration;

/// Names the file.
const VARIABLE: &str = "KVD_DISK_FAULTS";
/// Between two looks at a file that says `stall`.
const LOOK: Duration = Duration::from_millis(5);

/// Does before an fsync what the file says.
pub(super) fn before_sync() -> io::Result<()> {
    static FILE: OnceLock<Option<PathBuf>> = OnceLock::new();
    let named = || {
        let file = std::env::var_os(VARIABLE).map(PathBuf::from)?;
        tracing::warn!(file = %file.display(), "built with disk-faults: a test steers the log's disk");
        Some(file)
    };
    let Some(file) = FILE.get_or_init(named) else {
        return Ok(());
    };
    loop {
        let Ok(fault) = std::fs::read_to_string(file) else {
            return Ok(());
        };
        let mut words = fault.split_whitespace();
        match (words.next(), words.next().and_then(|n| n.parse().ok())) {
            (Some("delay-ms"), Some(delay)) => {
                thread::sleep(Duration::from_millis(delay));
                return Ok(());
            }
            (Some("stall"), None) => thread::sleep(LOOK),
            (Some("fail"), None) => {
                return Err(io::Error::other(format!("injected by {VARIABLE}")));
            }
            _ => return Ok(()),
        }
    }
}
