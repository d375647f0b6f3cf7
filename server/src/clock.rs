//! The wall clock, read in one place. Only ids that must not repeat across restarts depend on it.

use std::time::{SystemTime, UNIX_EPOCH};

/// Milliseconds since 1970; 0 before.
#[allow(clippy::disallowed_methods, reason = "this is the seam")]
pub(crate) fn wall_ms() -> u64 {
    SystemTime::now()
        .duration_since(UNIX_EPOCH)
        .map_or(0, |d| d.as_millis() as u64)
}
