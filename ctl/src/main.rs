//! kvctl: the command-line client, with etcdctl's verbs, flags, outputs and exit codes.
//!
//! argv → [`cli`] → a verb in [`command`] → an [`printer::Answer`] → standard output. Results go to
//! standard output, words to standard error; [`exit`] decides every exit code.

mod cli;
mod command;
mod exit;
mod number;
mod printer;
mod quote;
mod session;

fn main() -> std::process::ExitCode {
    exit::finish(run())
}

fn run() -> exit::Result<()> {
    let cli = cli::parse(std::env::args_os().collect(), |name| {
        std::env::var(name).ok()
    })?;
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()
        .map_err(|e| {
            exit::Failure::new(exit::Exit::Io, format!("cannot start the runtime: {e}"))
        })?;
    let result = runtime.block_on(command::run(cli));
    // A thread may still wait for standard input; it must not hold up the end.
    runtime.shutdown_background();
    result
}
