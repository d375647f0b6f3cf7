//! The server of a member: the only crate where an entry meets a key, and where all network is.
//!
//! A Put, top to bottom: [`rpc`] checks and builds, [`propose`] encodes and waits, raft and log make it durable, [`apply`]
//! calls the store, the store tells its watchers, [`wait`] answers. A Range: [`rpc`], [`read`], the store.
//! [`server`] starts and stops the parts and names the owner of each.

mod alarm;
mod apply;
mod auth;
mod backup;
mod bootstrap;
mod build;
mod clock;
mod cluster;
mod compactor;
pub mod config;
mod corruption;
pub mod data_dir;
mod disk_space;
mod downgrade;
mod error;
mod force_new;
pub mod http;
mod large_reads;
mod leader;
mod lease;
mod listener;
pub mod logging;
mod member;
pub mod metrics;
mod pages;
mod peer;
mod propose;
pub mod proxy;
mod publish;
mod quota;
mod range_budget;
mod read;
mod reconfigure;
pub mod restore;
mod rpc;
mod scrub;
mod server;
pub mod tls;
mod version_monitor;
mod wait;

pub use error::{Error, Result};
pub use server::{Pulse, Server};

/// From now on this process is the next release: one command version and one cluster version ahead of the source.
///
/// For tests of rolling upgrades, which need a second build; `kvd` has no way to get here.
#[doc(hidden)]
pub fn pretend_later_build() {
    kv_proto::command::later::pretend();
}

/// A panic anywhere ends the process, logged: a wrong replica is worse than a stopped one. The engine's guarded
/// open-and-scan thread is excepted; it turns a panic into an error.
pub fn abort_on_panic() {
    let report = std::panic::take_hook();
    std::panic::set_hook(Box::new(move |panic| {
        report(panic);
        if !kv_mvcc::backend::is_guarded_thread() {
            tracing::error!(%panic, "stopping at once");
            std::process::abort();
        }
    }));
}
