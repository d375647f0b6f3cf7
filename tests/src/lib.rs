//! Runs real members for tests: processes on loopback addresses with folders of their own.

pub mod cluster;
pub mod dns;
pub mod link;
pub mod process;
pub mod torture;

pub use process::{Kvd, KvdOptions, kvd_binary};
