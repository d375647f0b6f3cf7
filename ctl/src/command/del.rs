//! `del`: deletes a key or a range.

use std::{ffi::OsString, time::Duration};

use bytes::Bytes;
use clap::Args;
use kv_proto::etcdserverpb::DeleteRangeRequest;

use super::{into_bytes, widen};
use crate::{
    exit::{self, Failure, Result},
    printer::Answer,
    quote::quote,
    session::Session,
};

/// How long `del key range_end` waits for second thoughts, unless `--range` says that it is meant.
const SECOND_THOUGHTS: Duration = Duration::from_secs(2);

/// Flags of `del`.
#[derive(Args, Debug)]
pub(crate) struct DelArgs {
    /// The key, or the range [key, range_end)
    #[arg(value_name = "KEY [RANGE_END]")]
    keys: Vec<OsString>,
    /// Delete all keys that begin with KEY
    #[arg(long)]
    prefix: bool,
    /// Print what was deleted
    #[arg(long)]
    prev_kv: bool,
    /// Delete KEY and all keys after it, in the order of their bytes
    #[arg(long)]
    from_key: bool,
    /// The range is meant: delete it without the pause of 2 seconds
    #[arg(long)]
    range: bool,
}

impl DelArgs {
    /// The request these flags ask for, and the warning it deserves.
    pub(crate) fn request(self) -> Result<(DeleteRangeRequest, Option<String>)> {
        if self.keys.is_empty() || self.keys.len() > 2 {
            let message =
                "del command needs one argument as key and an optional argument as range_end";
            return Err(Failure::bad_args(message));
        }
        if self.prefix && self.from_key {
            return Err(Failure::bad_args(
                "`--prefix` and `--from-key` cannot be set at the same time, choose one",
            ));
        }
        let mut keys = self.keys.into_iter().map(into_bytes);
        let (key, given_end) = (keys.next().unwrap_or_default(), keys.next());
        if given_end.is_some() && (self.prefix || self.from_key) {
            let message = "too many arguments, only accept one argument when `--prefix` or `--from-key` is set";
            return Err(Failure::bad_args(message));
        }
        let warning = given_end.as_ref().filter(|_| !self.range).map(|end: &Bytes| {
            format!(
                "Warning: Keys between {} and {} will be deleted. Please interrupt the command within next 2 seconds \
                 to cancel. You can provide `--range` flag to avoid the delay.",
                quote(&key),
                quote(end)
            )
        });
        let (key, widened_end) = widen(key, self.prefix, self.from_key);
        let range_end = given_end.unwrap_or(widened_end);
        Ok((
            DeleteRangeRequest {
                key,
                range_end,
                prev_kv: self.prev_kv,
            },
            warning,
        ))
    }
}

/// Warns and waits, if there is something to warn of.
pub(crate) async fn pause(warning: Option<String>) {
    if let Some(warning) = warning {
        exit::tell(format_args!("{warning}"));
        tokio::time::sleep(SECOND_THOUGHTS).await;
    }
}

/// Runs `del`.
pub(crate) async fn run(session: &Session, args: DelArgs) -> Result<()> {
    let (request, warning) = args.request()?;
    pause(warning).await;
    let response = session.client().await?.delete_range(request).await?;
    session.print(&Answer::Del(&response))
}
