//! Tells systemd that the member lives, as long as it does.
//!
//! With `WatchdogSec=` in the unit, systemd ends and restarts a process that is silent for that time. A sign of life is
//! given only after the core of raft has answered, so that a member that hangs counts as one that is gone.

use kv_server::Pulse;
use sd_notify::NotifyState;

/// Gives signs of life at half the time systemd waits for one; returns at once if systemd asks for none.
pub(crate) async fn run(pulse: Pulse) {
    let Some(patience) = sd_notify::watchdog_enabled() else {
        return;
    };
    let mut ticks = tokio::time::interval(patience / 2);
    loop {
        ticks.tick().await;
        if pulse.beats().await {
            // Systemd that has gone away needs no sign.
            let _ = sd_notify::notify(&[NotifyState::Watchdog]);
        }
    }
}
