//! `kvd`: one member of a cluster, or what stands before one.

mod watchdog;

use std::process::ExitCode;

use kv_server::config::{self, Invocation};
use kv_server::{Server, logging};
use tokio::signal::unix::{SignalKind, signal};

#[global_allocator]
static ALLOCATOR: tikv_jemallocator::Jemalloc = tikv_jemallocator::Jemalloc;

fn main() -> ExitCode {
    let args: Vec<_> = std::env::args_os().skip(1).collect();
    if let Some(code) = kv_server::proxy::run_subcommand(&args) {
        return code;
    }
    let invocation = match config::load(args, std::env::vars_os()) {
        Ok(invocation) => invocation,
        Err(error) => {
            eprintln!("kvd: {error}");
            return ExitCode::from(error.exit_code());
        }
    };
    match invocation {
        Invocation::Help => print!("{}", config::help_text()),
        Invocation::Version => print!("{}", config::version_text()),
        Invocation::Run { config, notices } => {
            if let Err(error) = logging::start(&config) {
                eprintln!("kvd: {error}");
                return ExitCode::FAILURE;
            }
            notices.iter().for_each(|notice| notice.log());
            kv_server::abort_on_panic();
            if let Err(error) = run(*config) {
                tracing::error!(error = format!("{error:#}"), "the member cannot run");
                eprintln!("kvd: {error:#}");
                return ExitCode::FAILURE;
            }
        }
    }
    ExitCode::SUCCESS
}

/// Ends a member that does not serve yet: it has promised nothing that is not on its disk.
fn stop_at_start() -> ! {
    tracing::info!("stopped before the member was ready");
    std::process::exit(0)
}

/// Serves until SIGTERM or SIGINT.
fn run(config: config::Config) -> anyhow::Result<()> {
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()?;
    runtime.block_on(async {
        let mut terminate = signal(SignalKind::terminate())?;
        let mut interrupt = signal(SignalKind::interrupt())?;
        // A member may wait long for the others of its cluster, and must not be deaf meanwhile.
        let server = tokio::select! {
            server = Server::start(config) => server?,
            _ = terminate.recv() => stop_at_start(),
            _ = interrupt.recv() => stop_at_start(),
        };
        // Not run by systemd: nobody to tell.
        let _ = sd_notify::notify(&[sd_notify::NotifyState::Ready]);
        let watchdog = tokio::spawn(watchdog::run(server.pulse()));
        tokio::select! {
            _ = terminate.recv() => {}
            _ = interrupt.recv() => {}
            () = server.removed() => {
                const REMOVED: &str = "this member has been permanently removed from the cluster: stopping; \
                                       its data folder must not be used again";
                tracing::error!("{REMOVED}");
                eprintln!("kvd: {REMOVED}");
            }
        }
        watchdog.abort();
        let _ = sd_notify::notify(&[sd_notify::NotifyState::Stopping]);
        server.stop().await
    })
}
