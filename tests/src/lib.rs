//! Runs real members for tests: processes on loopback addresses with folders of their own, under faults and with
//! histories that are checked.

pub mod authority;
pub mod cluster;
pub mod dns;
pub mod events;
pub mod faults;
pub mod history;
pub mod linearizability;
pub mod link;
pub mod mesh;
pub mod process;
pub mod skip;
pub mod torture;

pub use process::{Kvd, KvdOptions, kvd_binary};
