//! `watch`: prints events as they come, or runs a command for each.
//!
//! The key comes from the command line or from `KVCTL_WATCH_KEY` (`ETCDCTL_WATCH_KEY`), its range end from
//! `..._WATCH_RANGE_END`; words after `--` are a command to run for each event. With `-i` lines of standard
//! input are watches (`watch key --prefix`) and progress requests (`progress`).

use std::{ffi::OsString, os::unix::ffi::OsStringExt, process::Stdio};

use bytes::Bytes;
use clap::{Args, Parser};
use kv_client::{Client, Watcher, is_progress};
use kv_proto::{
    etcdserverpb::{ResponseHeader, WatchCreateRequest, WatchResponse},
    key_range::prefix_end,
};
use tokio::{
    sync::mpsc,
    task::{JoinSet, spawn_blocking},
};

use super::{into_bytes, stdin::Lines};
use crate::{
    cli,
    exit::{self, Exit, Failure, Result},
    number::parse_flag_int,
    printer::Answer,
    quote::{quote, words},
    session::{Session, write_out},
};

const BAD_NUMBER: &str = "bad number of arguments";
const BAD_NUMBER_ENV: &str = "bad number of arguments (found conflicting environment key)";
const BAD_NUMBER_SEPARATOR: &str = "bad number of arguments (found separator --, but no commands)";
/// Progress requests that wait for a watch to take them.
const PROGRESS_WAITING_MAX: usize = 16;

/// Flags of `watch`.
#[derive(Args, Debug, Default)]
pub(crate) struct WatchArgs {
    /// The key, or the range [key, range_end)
    #[arg(value_name = "KEY [RANGE_END]")]
    keys: Vec<OsString>,
    /// A command to run for each event
    #[arg(last = true, value_name = "COMMAND")]
    exec: Vec<OsString>,
    /// Read watches from standard input
    #[arg(long, short)]
    interactive: bool,
    /// Watch on a prefix
    #[arg(long)]
    prefix: bool,
    /// Begin with the changes of this revision; 0 means with the next change
    #[arg(long, default_value = "0", value_parser = parse_flag_int)]
    rev: i64,
    /// Print what the key was before, too
    #[arg(long)]
    prev_kv: bool,
    /// Have the server say from time to time that nothing happened up to a revision
    #[arg(long)]
    progress_notify: bool,
}

/// What the environment says about the key.
struct FromEnv {
    key: OsString,
    range_end: OsString,
}

impl FromEnv {
    fn read() -> Result<FromEnv> {
        let read = |name: &str| {
            let variables = [format!("KVCTL_{name}"), format!("ETCDCTL_{name}")];
            variables
                .iter()
                .filter_map(std::env::var_os)
                .find(|v| !v.is_empty())
                .unwrap_or_default()
        };
        let env = FromEnv {
            key: read("WATCH_KEY"),
            range_end: read("WATCH_RANGE_END"),
        };
        if env.key.is_empty() && !env.range_end.is_empty() {
            let message = format!(
                "ETCDCTL_WATCH_KEY is empty but got ETCDCTL_WATCH_RANGE_END={:?}",
                env.range_end
            );
            return Err(Failure::bad_args(message));
        }
        Ok(env)
    }
}

impl WatchArgs {
    /// The request, and the command to run; `separator_last` if the words end with a bare `--`.
    fn request(
        mut self,
        env: &FromEnv,
        separator_last: bool,
    ) -> Result<(WatchCreateRequest, Vec<OsString>)> {
        if separator_last && self.exec.is_empty() {
            return Err(Failure::bad_args(BAD_NUMBER_SEPARATOR));
        }
        match (env.key.is_empty(), self.keys.is_empty()) {
            (true, true) => return Err(Failure::bad_args(BAD_NUMBER)),
            (false, false) => return Err(Failure::bad_args(BAD_NUMBER_ENV)),
            (true, false) => {}
            (false, true) => {
                self.keys.push(env.key.clone());
                self.keys
                    .extend(Some(env.range_end.clone()).filter(|end| !end.is_empty()));
            }
        }
        if self.keys.len() == 2 && self.prefix {
            return Err(Failure::bad_args(
                "`range_end` and `--prefix` are mutually exclusive",
            ));
        }
        let ranged = self.keys.len() == 2;
        let mut keys = self.keys.into_iter().map(into_bytes);
        let key = keys.next().unwrap_or_default();
        let given_end = keys.next().filter(|_| ranged);
        let range_end = match given_end {
            Some(end) => end,
            None if self.prefix => prefix_end(&key),
            None => Bytes::new(),
        };
        // All keys begin at the zero byte; an empty key would be none.
        let key = if key.is_empty() {
            Bytes::from_static(b"\0")
        } else {
            key
        };
        let request = WatchCreateRequest {
            key,
            range_end,
            start_revision: self.rev,
            progress_notify: self.progress_notify,
            prev_kv: self.prev_kv,
            ..Default::default()
        };
        Ok((request, self.exec))
    }
}

/// Runs `watch`; ends only with an error, or when the output is closed.
pub(crate) async fn run(session: &Session, args: WatchArgs) -> Result<()> {
    let env = FromEnv::read()?;
    if args.interactive {
        return interactive(session, &env).await;
    }
    let separator_last = std::env::args_os()
        .next_back()
        .is_some_and(|word| word == "--");
    let (request, exec) = args.request(&env, separator_last)?;
    let client = session.client().await?;
    let (_requests, progress) = mpsc::channel(1);
    follow(session.clone(), client.watch(request), exec, progress).await?;
    Err(Failure::new(
        Exit::Interrupted,
        "watch is canceled by the server",
    ))
}

#[derive(Debug, Parser)]
#[command(name = "watch", args_override_self = true, disable_help_flag = true)]
struct Line {
    #[command(flatten)]
    args: WatchArgs,
}

async fn interactive(session: &Session, env: &FromEnv) -> Result<()> {
    let client = session.client().await?;
    let mut lines = Lines::read();
    let mut watches = JoinSet::new();
    let mut progress: Vec<mpsc::Sender<()>> = Vec::new();
    loop {
        let line = tokio::select! {
            line = lines.next() => line?,
            Some(ended) = watches.join_next(), if !watches.is_empty() => {
                // A canceled watch was told; one that could not print ends the command.
                ended.unwrap_or(Ok(()))?;
                continue;
            }
        };
        let Some(line) = line else {
            let message = "error reading watch request line: EOF";
            return Err(Failure::new(Exit::InvalidInput, message));
        };
        let words = words(&line).map_err(|e| Failure::new(Exit::InvalidInput, e))?;
        match words.first().map(Vec::as_slice) {
            None => exit::tell(format_args!(
                "Invalid command: {line} (watch and progress supported)"
            )),
            Some(b"watch") if words.len() < 2 && env.key.is_empty() => {
                exit::tell(format_args!(
                    "Invalid command {line} (command type or key is not provided)"
                ));
            }
            Some(b"watch") => match start(session, &client, env, words) {
                Ok((watch, requests)) => {
                    progress.push(requests);
                    watches.spawn(watch);
                }
                Err(failure)
                    if failure
                        .message
                        .as_deref()
                        .is_some_and(|m| m.starts_with('`')) =>
                {
                    exit::tell(format_args!(
                        "Invalid command {line} ({})",
                        failure.message.unwrap_or_default()
                    ));
                }
                Err(failure) => return Err(failure),
            },
            Some(b"progress") => {
                progress.retain(|watch| !watch.is_closed());
                for watch in &progress {
                    // A watch that has this many requests waiting will answer those.
                    let _ = watch.try_send(());
                }
            }
            Some(_) => exit::tell(format_args!("Invalid command {line} (only support watch)")),
        }
    }
}

/// A watch as a line of standard input describes it, and where to ask for its progress.
fn start(
    session: &Session,
    client: &Client,
    env: &FromEnv,
    words: Vec<Vec<u8>>,
) -> Result<(
    impl Future<Output = Result<()>> + Send + use<>,
    mpsc::Sender<()>,
)> {
    let words: Vec<OsString> = words.into_iter().skip(1).map(OsString::from_vec).collect();
    let separator_last = words.last().is_some_and(|word| word == "--");
    let line = cli::parse_words::<Line>(words)
        .map_err(|e| Failure::bad_args(e.render().to_string().trim_end()))?;
    let (request, exec) = line.args.request(env, separator_last)?;
    let (requests, progress) = mpsc::channel(PROGRESS_WAITING_MAX);
    Ok((
        follow(session.clone(), client.watch(request), exec, progress),
        requests,
    ))
}

/// Prints everything a watch delivers until the server ends it.
async fn follow(
    session: Session,
    mut watcher: Watcher,
    exec: Vec<OsString>,
    mut progress: mpsc::Receiver<()>,
) -> Result<()> {
    loop {
        let next = tokio::select! {
            next = watcher.next() => next,
            Some(()) = progress.recv() => {
                watcher.request_progress().await;
                continue;
            }
        };
        let response = match next {
            Ok(Some(response)) => response,
            Ok(None) => return Ok(()),
            Err(error) => {
                exit::tell(format_args!(
                    "watch was canceled ({})",
                    exit::describe(&error)
                ));
                let canceled = WatchResponse {
                    header: Some(ResponseHeader::default()),
                    canceled: true,
                    ..Default::default()
                };
                return session.print(&Answer::Watch(&canceled));
            }
        };
        if response.canceled {
            exit::tell(format_args!(
                "watch was canceled ({})",
                cancel_reason(&response)
            ));
        }
        if is_progress(&response) {
            let revision = response.header.as_ref().map_or(0, |h| h.revision);
            write_out(format!("progress notify: {revision}\n").as_bytes())?;
        }
        session.print(&Answer::Watch(&shown(response.clone())))?;
        if !exec.is_empty() {
            run_for_each_event(&exec, &response).await?;
        }
    }
}

/// The response as etcdctl shows it: one that was refused at once has nothing but that.
fn shown(response: WatchResponse) -> WatchResponse {
    if response.created && response.canceled {
        return WatchResponse {
            header: Some(ResponseHeader::default()),
            canceled: true,
            ..Default::default()
        };
    }
    WatchResponse {
        cancel_reason: String::new(),
        ..response
    }
}

fn cancel_reason(response: &WatchResponse) -> &str {
    if response.compact_revision != 0 {
        return "etcdserver: mvcc: required revision has been compacted";
    }
    match response.cancel_reason.as_str() {
        "" => "etcdserver: mvcc: required revision is a future revision",
        reason => reason,
    }
}

async fn run_for_each_event(exec: &[OsString], response: &WatchResponse) -> Result<()> {
    let revision = response.header.as_ref().map_or(0, |h| h.revision);
    for event in &response.events {
        let kv = event.kv.clone().unwrap_or_default();
        let mut command = std::process::Command::new(&exec[0]);
        command
            .args(&exec[1..])
            .env("ETCD_WATCH_REVISION", revision.to_string())
            .env(
                "ETCD_WATCH_EVENT_TYPE",
                quote(event.r#type().as_str_name().as_bytes()),
            )
            .env("ETCD_WATCH_KEY", quote(&kv.key))
            .env("ETCD_WATCH_VALUE", quote(&kv.value))
            .stdin(Stdio::null());
        let ended = spawn_blocking(move || command.status()).await;
        let failed = match ended {
            Ok(Ok(status)) if status.success() => continue,
            Ok(Ok(status)) => status.to_string(),
            Ok(Err(error)) => error.to_string(),
            Err(error) => error.to_string(),
        };
        let words: Vec<_> = exec
            .iter()
            .map(|word| quote(word.as_encoded_bytes()))
            .collect();
        exit::tell(format_args!(
            "command [{}] error ({failed})",
            words.join(" ")
        ));
        return Err(Failure::silent(Exit::Error));
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn request(
        line: &str,
        key: &str,
        range_end: &str,
    ) -> Result<(WatchCreateRequest, Vec<OsString>)> {
        let words: Vec<OsString> = line.split_whitespace().map(OsString::from).collect();
        let separator_last = words.last().is_some_and(|word| word == "--");
        let env = FromEnv {
            key: key.into(),
            range_end: range_end.into(),
        };
        cli::parse_words::<Line>(words)
            .unwrap()
            .args
            .request(&env, separator_last)
    }

    #[test]
    fn keys_come_from_words_or_the_environment() {
        let keys = |line, key, end| {
            request(line, key, end)
                .map(|(r, _)| (r.key, r.range_end))
                .unwrap()
        };
        assert_eq!(keys("a b", "", ""), ("a".into(), "b".into()));
        assert_eq!(keys("a --prefix", "", ""), ("a".into(), "b".into()));
        assert_eq!(keys("", "k", "l"), ("k".into(), "l".into()));
        assert_eq!(keys("-- echo", "k", ""), ("k".into(), "".into()));
        for (line, key) in [("", ""), ("a", "k"), ("a --", ""), ("a b --prefix", "")] {
            assert_eq!(
                request(line, key, "").unwrap_err().exit,
                Exit::BadArgs,
                "{line}"
            );
        }
    }

    #[test]
    fn words_after_the_separator_are_a_command() {
        let (request, exec) = request("a --rev 5 -- echo --prefix x", "", "").unwrap();
        assert_eq!(
            (request.start_revision, &request.range_end[..]),
            (5, &b""[..])
        );
        assert_eq!(exec, ["echo", "--prefix", "x"]);
    }

    #[test]
    fn a_cancel_tells_why() {
        let compacted = WatchResponse {
            canceled: true,
            compact_revision: 5,
            ..Default::default()
        };
        assert_eq!(
            cancel_reason(&compacted),
            "etcdserver: mvcc: required revision has been compacted"
        );
        let refused = WatchResponse {
            canceled: true,
            cancel_reason: "why".into(),
            ..Default::default()
        };
        assert_eq!(cancel_reason(&refused), "why");
    }
}
