//! `kvd` as its next release would be: one cluster version and one command version ahead. For tests of upgrades.

use anyhow::{Context, Result, bail};
use kv_server::config::{self, Invocation};
use kv_server::{Server, logging};
use tokio::signal::unix::{SignalKind, signal};

fn main() -> Result<()> {
    kv_server::pretend_later_build();
    let invocation = config::load(std::env::args_os().skip(1), std::env::vars_os())?;
    let Invocation::Run { config, .. } = invocation else {
        bail!("it only runs a member");
    };
    logging::start(&config).map_err(|error| anyhow::anyhow!("{error}"))?;
    kv_server::abort_on_panic();
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()?;
    runtime.block_on(async {
        let mut terminate = signal(SignalKind::terminate())?;
        let server = tokio::select! {
            server = Server::start(*config) => server.context("the member cannot run")?,
            _ = terminate.recv() => return Ok(()),
        };
        tokio::select! {
            _ = terminate.recv() => {}
            () = server.removed() => {}
        }
        server.stop().await
    })
}
