//! Panics of an engine, turned into errors.
//!
//! sled panics on most damage and redb on some. Each call into an engine runs inside [`guarded`], which marks the thread for
//! its duration: a process-wide panic hook asks [`is_guarded_thread`] and, where it answers true, lets the thread
//! unwind instead of aborting. A panic outside an engine is a bug of ours and must not be swallowed.

use std::any::Any;
use std::cell::Cell;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::path::Path;

use super::engine::damage;
use crate::Result;

thread_local! {
    static GUARDED: Cell<bool> = const { Cell::new(false) };
}

/// Whether the current thread is inside a storage engine, where a panic means damaged files and is turned into
/// [`crate::Error::Damage`].
///
/// For a process-wide panic hook: it must not abort when this is true.
pub fn is_guarded_thread() -> bool {
    GUARDED.get()
}

/// Runs `call`; a panic inside it becomes damage of `file`.
///
/// The state that `call` shares with others must stay usable after a panic: engines are given up after one.
pub(crate) fn guarded<T>(file: &Path, call: impl FnOnce() -> Result<T>) -> Result<T> {
    let outer = GUARDED.replace(true);
    let result = catch_unwind(AssertUnwindSafe(call));
    GUARDED.set(outer);
    result.unwrap_or_else(|panic| {
        Err(damage(
            file,
            format!("the storage engine panicked: {}", text_of(panic.as_ref())),
        ))
    })
}

/// Runs `call`, which is ours, from inside an engine's callback: its panics are bugs and leave the guard's meaning.
pub(crate) fn unguarded<T>(call: impl FnOnce() -> T) -> T {
    let outer = GUARDED.replace(false);
    let result = call();
    GUARDED.set(outer);
    result
}

fn text_of(panic: &(dyn Any + Send)) -> &str {
    panic
        .downcast_ref::<&str>()
        .copied()
        .or_else(|| panic.downcast_ref::<String>().map(String::as_str))
        .unwrap_or("without a message")
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::Error;

    #[test]
    fn panic_becomes_damage_and_the_mark_is_taken_back() {
        let result: Result<()> = guarded(Path::new("db"), || {
            assert!(is_guarded_thread());
            panic!("page {} is broken", 7)
        });
        let Err(Error::Damage { what, .. }) = result else {
            panic!("expected damage, got {result:?}")
        };
        assert!(what.contains("page 7 is broken"), "{what}");
        assert!(!is_guarded_thread());
    }
}
