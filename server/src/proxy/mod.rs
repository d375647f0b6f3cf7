//! What stands before a cluster and holds no data: `kvd gateway` forwards connections, `kvd grpc-proxy` calls.
//!
//! Command lines are etcd's. An end by SIGTERM or SIGINT is a success.

mod discovery;
mod forward;
mod grpc;
mod options;

use std::ffi::OsString;
use std::process::ExitCode;

use tokio::signal::unix::{SignalKind, signal};

pub use self::forward::{Forward, ForwardError};
use self::grpc::GrpcProxy;
pub use self::options::{Command, Discovery, GatewayOptions, GrpcProxyOptions};
use crate::config::{Config, LogLevel};
use crate::logging;

/// Runs the subcommand that the arguments (without the program's name) begin with; `None` if they are a member's flags.
pub fn run_subcommand(args: &[OsString]) -> Option<ExitCode> {
    let command = match options::parse(args)? {
        Ok(command) => command,
        Err(error) => {
            // Help goes to standard output and is no failure.
            let code = if error.use_stderr() { 1 } else { 0 };
            let _ = error.print();
            return Some(ExitCode::from(code));
        }
    };
    Some(match start(command) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            tracing::error!(error = format!("{error:#}"), "the proxy cannot run");
            eprintln!("kvd: {error:#}");
            ExitCode::FAILURE
        }
    })
}

fn start(command: Command) -> anyhow::Result<()> {
    let mut config = Config::default();
    if matches!(&command, Command::GrpcProxy(options) if options.debug) {
        config.log_level = LogLevel::Debug;
    }
    logging::start(&config)?;
    crate::abort_on_panic();
    let runtime = tokio::runtime::Builder::new_multi_thread()
        .enable_all()
        .build()?;
    runtime.block_on(async {
        let mut terminate = signal(SignalKind::terminate())?;
        let mut interrupt = signal(SignalKind::interrupt())?;
        let ended = async {
            match command {
                Command::Gateway(options) => {
                    let forward = Forward::bind(options).await?;
                    // Not run by systemd: nobody to tell.
                    let _ = sd_notify::notify(&[sd_notify::NotifyState::Ready]);
                    forward.run().await;
                }
                Command::GrpcProxy(options) => {
                    let proxy = GrpcProxy::bind(*options).await?;
                    // Not run by systemd: nobody to tell.
                    let _ = sd_notify::notify(&[sd_notify::NotifyState::Ready]);
                    proxy.run().await;
                }
            }
            Ok(())
        };
        tokio::select! {
            ended = ended => ended,
            _ = terminate.recv() => Ok(()),
            _ = interrupt.recv() => Ok(()),
        }
    })
}
