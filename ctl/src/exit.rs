//! The one map from what happened to an exit code, and how a failure is told.
//!
//! Source: etcdctl 3.7, exit codes.

use std::{
    fmt,
    io::{self, Write},
    process::ExitCode,
};

/// The result of everything a command does.
pub(crate) type Result<T> = std::result::Result<T, Failure>;

/// The kinds of end.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Exit {
    /// The server refused, or did not answer in time; also unknown flags and commands.
    Error,
    /// A client could not be made.
    BadConnection,
    /// Standard input of `txn` or `watch -i` is not what the grammar allows.
    InvalidInput,
    /// A flag has a value that is well formed but not supported.
    BadFeature,
    /// The server ended a watch.
    Interrupted,
    /// Reading or writing failed.
    Io,
    /// Arguments are missing, superfluous or malformed.
    BadArgs,
    /// Nothing failed: the reader of our output has seen enough.
    ClosedPipe,
}

impl Exit {
    /// The number the shell sees.
    pub(crate) fn code(self) -> u8 {
        match self {
            Exit::ClosedPipe => 0,
            Exit::Error => 1,
            Exit::BadConnection => 2,
            Exit::InvalidInput => 3,
            Exit::BadFeature => 4,
            Exit::Interrupted => 5,
            Exit::Io => 6,
            Exit::BadArgs => 128,
        }
    }
}

/// Why a command ends early.
#[derive(Debug)]
pub(crate) struct Failure {
    /// The kind, hence the exit code.
    pub(crate) exit: Exit,
    /// What is written after `Error: `; `None` if all was said already.
    pub(crate) message: Option<String>,
}

impl Failure {
    /// A failure with its message.
    pub(crate) fn new(exit: Exit, message: impl fmt::Display) -> Failure {
        Failure {
            exit,
            message: Some(message.to_string()),
        }
    }

    /// A failure whose cause is on standard error already.
    pub(crate) fn silent(exit: Exit) -> Failure {
        Failure {
            exit,
            message: None,
        }
    }

    /// [`Exit::BadArgs`] with a message.
    pub(crate) fn bad_args(message: impl fmt::Display) -> Failure {
        Failure::new(Exit::BadArgs, message)
    }
}

impl From<kv_client::Error> for Failure {
    /// A call that failed, see [`describe`].
    fn from(error: kv_client::Error) -> Failure {
        Failure::new(Exit::Error, describe(&error))
    }
}

impl From<io::Error> for Failure {
    /// A write to standard output or a read from standard input that failed.
    fn from(error: io::Error) -> Failure {
        match error.kind() {
            io::ErrorKind::BrokenPipe => Failure::silent(Exit::ClosedPipe),
            _ => Failure::new(Exit::Io, format!("standard input or output: {error}")),
        }
    }
}

/// The client's error and, where a flag can help, which one.
pub(crate) fn describe(error: &kv_client::Error) -> String {
    use kv_client::Error;
    let hint = match error {
        Error::NoEndpoints | Error::BadEndpoint { .. } => {
            "set --endpoints to host:port[,host:port...]"
        }
        Error::Dns { .. } => "check --discovery-srv and --discovery-srv-name, or give --endpoints",
        Error::Timeout { .. } => {
            "check that --endpoints names running members, or raise --command-timeout"
        }
        Error::Unreachable { .. } => "check --endpoints and, for https, --cacert, --cert and --key",
        Error::Tls { .. } | Error::TlsRefused(_) => "check --cacert, --cert and --key",
        Error::Server { .. } => return error.to_string(),
    };
    format!("{error}; {hint}")
}

/// The client's error in the few words etcdctl has for it, for outputs that programs read.
pub(crate) fn brief(error: &kv_client::Error) -> String {
    match error {
        kv_client::Error::Timeout { .. } => "context deadline exceeded".to_owned(),
        other => other.to_string(),
    }
}

/// Writes a line to standard error. That nobody reads it any more changes nothing about what the command does.
pub(crate) fn tell(words: fmt::Arguments<'_>) {
    let _ = writeln!(io::stderr(), "{words}");
}

/// Tells the failure, if any, and turns the result into the exit code.
pub(crate) fn finish(result: Result<()>) -> ExitCode {
    let Err(failure) = result else {
        return ExitCode::SUCCESS;
    };
    if let Some(message) = failure.message {
        tell(format_args!("Error: {message}"));
    }
    ExitCode::from(failure.exit.code())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn codes_are_those_of_etcdctl() {
        let codes = [
            Exit::ClosedPipe,
            Exit::Error,
            Exit::BadConnection,
            Exit::InvalidInput,
            Exit::BadFeature,
            Exit::Interrupted,
            Exit::Io,
            Exit::BadArgs,
        ]
        .map(Exit::code);
        assert_eq!(codes, [0, 1, 2, 3, 4, 5, 6, 128]);
    }

    #[test]
    fn a_closed_pipe_is_success_and_another_io_error_is_not() {
        assert_eq!(
            Failure::from(io::Error::from(io::ErrorKind::BrokenPipe)).exit,
            Exit::ClosedPipe
        );
        assert_eq!(
            Failure::from(io::Error::from(io::ErrorKind::StorageFull)).exit,
            Exit::Io
        );
    }

    #[test]
    fn a_server_error_is_told_word_by_word_and_a_timeout_with_advice() {
        let refused = kv_client::Error::Server {
            code: kv_client::Code::InvalidArgument,
            message: "etcdserver: key is not provided".into(),
        };
        assert_eq!(
            Failure::from(refused).message.unwrap(),
            "etcdserver: key is not provided"
        );
        let timeout = kv_client::Error::Timeout {
            endpoints: "a:1".into(),
            timeout: std::time::Duration::from_secs(5),
            last: None,
        };
        assert_eq!(
            Failure::from(timeout).message.unwrap(),
            "context deadline exceeded: no answer within 5s from a:1; \
             check that --endpoints names running members, or raise --command-timeout"
        );
    }
}
