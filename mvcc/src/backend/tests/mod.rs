//! Torture of the engines that keep files: kill -9, power cuts, damage.
//!
//! The rule is the same everywhere: what was acknowledged as durable is there, the content is exactly that of the applied
//! index which the database names, and damage is an error. `KVD_TORTURE_ROUNDS` sets the number of kill rounds per engine and
//! multiplies the rest.

mod damage;
mod defrag;
mod failure;
mod install;
mod kill;
mod power_cut;
mod traced_power_cut;
mod workload;

use std::cell::Cell;
use std::sync::atomic::{AtomicU64, Ordering};

/// Steps of this process until it ends itself; 0 for never.
static STEPS_LEFT: AtomicU64 = AtomicU64::new(0);

thread_local! {
    static AT_NEXT_STEP: Cell<Option<Box<dyn FnOnce()>>> = const { Cell::new(None) };
}

/// Ends the process, as kill -9 would, if this is the step that [`kill_after`] chose.
pub(super) fn kill_point() {
    if let Some(act) = AT_NEXT_STEP.take() {
        act();
    }
    let counted = STEPS_LEFT.fetch_update(Ordering::SeqCst, Ordering::SeqCst, |steps| {
        steps.checked_sub(1)
    });
    if counted == Ok(1) {
        std::process::abort();
    }
}

/// Lets this process end at its `steps`th step from now.
pub(crate) fn kill_after(steps: u64) {
    STEPS_LEFT.store(steps, Ordering::SeqCst);
}

/// Calls `act` at this thread's next step, once.
fn at_next_step(act: impl FnOnce() + 'static) {
    AT_NEXT_STEP.set(Some(Box::new(act)));
}

/// Rounds asked for, or `default`.
fn rounds(default: u64) -> u64 {
    std::env::var("KVD_TORTURE_ROUNDS").map_or(default, |rounds| rounds.parse().unwrap())
}
