//! When a failed call is made again.
//!
//! - [`Repeat::Always`] (reads): on `Unavailable`, whatever its cause.
//! - [`Repeat::IfNotSent`] (writes): only if no connection was made, so that the server cannot have
//!   seen the request. An `Unavailable` after sending is *unknown*, not *absent*: it is reported.
//!
//! Each retry goes to the next endpoint. After a whole round without success the client pauses,
//! 25 ms at first and up to 400 ms, until the call's timeout ends it.
//! Source: the retry rules of etcd's Go client; it also repeats lease grants and revokes, which may
//! leave a lease behind, so here they count as writes.

use std::time::Duration;

use crate::error::Error;

const PAUSE: Duration = Duration::from_millis(25);
const PAUSE_DOUBLINGS_MAX: u32 = 4;

/// Whether a request may reach the server twice.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Repeat {
    /// The request changes nothing.
    Always,
    /// A second execution would differ from one.
    IfNotSent,
}

impl Repeat {
    /// Whether a call that failed with `error` is made again.
    pub(crate) fn allows(self, error: &Error) -> bool {
        match self {
            Repeat::Always => error.is_unavailable(),
            Repeat::IfNotSent => matches!(error, Error::Unreachable { .. }),
        }
    }
}

/// How long to wait before the attempt after `attempts` failed ones; zero within a round of endpoints.
pub(crate) fn pause(attempts: usize, endpoints: usize) -> Duration {
    if !attempts.is_multiple_of(endpoints) {
        return Duration::ZERO;
    }
    let rounds = (attempts / endpoints) as u32;
    PAUSE * 2u32.pow(rounds.saturating_sub(1).min(PAUSE_DOUBLINGS_MAX))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::Code;

    #[test]
    fn a_write_is_repeated_only_if_it_was_not_sent() {
        let unreachable = Error::Unreachable {
            endpoint: "a:1".into(),
            reason: "refused".into(),
        };
        let unavailable = Error::Server {
            code: Code::Unavailable,
            message: "etcdserver: leader changed".into(),
        };
        let refused = Error::Server {
            code: Code::InvalidArgument,
            message: "etcdserver: key is not provided".into(),
        };
        let cases = [
            (&unreachable, true, true),
            (&unavailable, true, false),
            (&refused, false, false),
        ];
        for (error, read, write) in cases {
            assert_eq!(Repeat::Always.allows(error), read, "{error}");
            assert_eq!(Repeat::IfNotSent.allows(error), write, "{error}");
        }
    }

    #[test]
    fn pauses_come_after_whole_rounds_and_are_bounded() {
        assert_eq!(pause(1, 3), Duration::ZERO);
        assert_eq!(pause(3, 3), PAUSE);
        assert_eq!(pause(6, 3), PAUSE * 2);
        assert_eq!(pause(1, 1), PAUSE);
        assert_eq!(pause(1000, 1), PAUSE * 16);
    }
}
