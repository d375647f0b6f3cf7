//! Leases let keys expire: the [`lessor`] knows them, the [`expiry_queue`] whose time is up, and
//! [`checkpoint`] when to note how much is left.

mod checkpoint;
mod expiry_queue;
mod lessor;

pub use checkpoint::CHECKPOINT_INTERVAL;
pub use lessor::{
    Checkpoints, Granted, LeaseInfo, Lessor, LessorOptions, Renewal, Revoked, TTL_SECS_MAX,
    WithKeys,
};
