//! A `kvd` process over a folder.

use std::error::Error;
use std::io::Write;
use std::net::{SocketAddr, TcpListener};
use std::path::Path;
use std::process::{Child, Command, Output, Stdio};
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::{Duration, Instant};

use kv_proto::etcdserverpb::kv_client::KvClient;
use kv_proto::etcdserverpb::{PutRequest, RangeRequest};
use rustix::event::{PollFd, PollFlags, poll};
use rustix::io::retry_on_intr;
use rustix::process::{PidfdFlags, pidfd_open};
use tempfile::NamedTempFile;
use tonic::transport::{Channel, Endpoint};

/// A member has this long to serve, or to give up.
const LIMIT: Duration = Duration::from_secs(60);

/// A running member; killed when dropped.
pub(crate) struct Member {
    child: Child,
    pub(crate) address: SocketAddr,
    pub(crate) channel: Channel,
    /// Not on the disk of the data, which may be full when there is something to say.
    log: NamedTempFile,
}

/// A connection on which a member has answered: who accepted it may still be the listener that the port was tried with, held
/// by a process that another test is about to start.
async fn connect(endpoint: &Endpoint) -> Result<Channel, Box<dyn Error>> {
    let channel = endpoint.connect().await?;
    // Without a key: any answer will do.
    let mut kv = KvClient::new(channel.clone());
    match kv.range(RangeRequest::default()).await {
        Err(status) if status.source().is_some() => Err(status.into()),
        _ => Ok(channel),
    }
}

impl Member {
    /// Starts a member and waits until it serves.
    pub(crate) async fn start(data: &Path, args: &[&str]) -> Member {
        let address = free_address();
        let log = NamedTempFile::new().unwrap();
        let file = log.reopen().unwrap();
        let mut child = command(data, address, args)
            .stdout(Stdio::null())
            .stderr(file)
            .spawn()
            .unwrap();
        let endpoint = Endpoint::from_shared(format!("http://{address}")).unwrap();
        let deadline = Instant::now() + LIMIT;
        let channel = loop {
            match connect(&endpoint).await {
                Ok(channel) => break channel,
                Err(error) => {
                    let ended = child.try_wait().unwrap();
                    let text = || std::fs::read_to_string(log.path()).unwrap();
                    assert!(ended.is_none(), "kvd ended with {ended:?}: {}", text());
                    assert!(Instant::now() < deadline, "{error}: {}", text());
                    tokio::time::sleep(Duration::from_millis(10)).await;
                }
            }
        };
        Member {
            child,
            address,
            channel,
            log,
        }
    }

    pub(crate) fn kv(&self) -> KvClient<Channel> {
        KvClient::new(self.channel.clone()).max_decoding_message_size(usize::MAX)
    }

    pub(crate) async fn put(&self, key: &str, value: &str) -> Result<(), tonic::Status> {
        let request = PutRequest {
            key: key.to_owned().into(),
            value: value.to_owned().into(),
            ..Default::default()
        };
        self.kv().put(request).await.map(|_| ())
    }

    /// The value of a key, read through the log.
    pub(crate) async fn get(&self, key: &str) -> Option<String> {
        let request = RangeRequest {
            key: key.to_owned().into(),
            ..Default::default()
        };
        let mut answer = self.kv().range(request).await.unwrap().into_inner();
        let item = answer.kvs.pop()?;
        Some(String::from_utf8(item.value.to_vec()).unwrap())
    }

    /// What the member logged so far.
    pub(crate) fn log(&self) -> String {
        std::fs::read_to_string(self.log.path()).unwrap()
    }

    /// Ends the process as a crash would.
    pub(crate) fn kill(mut self) {
        self.child.kill().unwrap();
        self.child.wait().unwrap();
    }

    /// Ends the process as an operator does. Panics if it does not end well.
    pub(crate) fn stop(mut self) {
        let pid = rustix::process::Pid::from_child(&self.child);
        rustix::process::kill_process(pid, rustix::process::Signal::TERM).unwrap();
        let process = pidfd_open(pid, PidfdFlags::empty()).unwrap();
        let mut ended = [PollFd::new(&process, PollFlags::IN)];
        let count = retry_on_intr(|| poll(&mut ended, Some(&LIMIT.try_into().unwrap()))).unwrap();
        assert!(count > 0, "kvd goes on: {}", self.log());
        let status = self.child.wait().unwrap();
        assert!(status.success(), "{status}: {}", self.log());
    }
}

impl Drop for Member {
    fn drop(&mut self) {
        // It may have ended already.
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// The command that starts a member over `data` on `address`.
pub(crate) fn command(data: &Path, address: SocketAddr, args: &[&str]) -> Command {
    let (client, peer) = (
        format!("http://{address}"),
        format!("http://{}", free_address()),
    );
    let mut command = Command::new(env!("CARGO_BIN_EXE_kvd"));
    command
        .env_clear()
        .arg("--data-dir")
        .arg(data)
        .args(["--advertise-client-urls", &client])
        .args(["--listen-peer-urls", &peer])
        .args(["--initial-advertise-peer-urls", &peer])
        .args(["--initial-cluster", &format!("default={peer}")])
        .args(["--log-level", "warn"]);
    if !args.contains(&"--listen-client-urls") {
        command.args(["--listen-client-urls", &client]);
    }
    command.args(args);
    command
}

/// Runs a member that must refuse to start over `data`, and returns its last words.
pub(crate) fn refusal(data: &Path, args: &[&str]) -> String {
    refusal_of(&mut command(data, free_address(), args))
}

/// Runs a command that must end with an error, and returns its last words.
pub(crate) fn refusal_of(command: &mut Command) -> String {
    let child = command
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .unwrap();
    let pid = rustix::process::Pid::from_child(&child);
    let (done, ended) = std::sync::mpsc::channel();
    let watchdog = std::thread::spawn(move || {
        if ended.recv_timeout(LIMIT).is_err() {
            // It serves.
            let _ = rustix::process::kill_process(pid, rustix::process::Signal::KILL);
        }
    });
    let Output { status, stderr, .. } = child.wait_with_output().unwrap();
    let text = String::from_utf8(stderr).unwrap();
    assert!(done.send(()).is_ok(), "it did not refuse: {text}");
    watchdog.join().unwrap();
    assert!(!text.contains("panicked"), "{text}");
    let code = status.code();
    assert!(code.is_some_and(|code| code != 0), "{status}: {text}");
    let last = text.lines().rev().find(|line| line.starts_with("kvd: "));
    last.unwrap_or_else(|| panic!("no last words: {text}"))
        .to_owned()
}

/// Says that the calling test is skipped and why, past the test harness, which keeps what a passed test prints to itself. For what
/// no installation changes: rights that a container may not have, and those that root always has.
pub(crate) fn skipped(why: &str) {
    // A test does not fail because nobody reads why it did not run.
    let _ = writeln!(std::io::stderr(), "SKIPPED: {why}");
}

/// Checks that `text` has every one of `parts`.
pub(crate) fn assert_names(text: &str, parts: &[&str]) {
    for part in parts {
        assert!(text.contains(part), "{part:?} is not in: {text}");
    }
}

/// An address nobody listens on now; each is given out once, and the kernel gives none to outgoing connections.
pub(crate) fn free_address() -> SocketAddr {
    static GIVEN: AtomicU32 = AtomicU32::new(0);
    loop {
        let step = GIVEN.fetch_add(1, Ordering::Relaxed);
        // Processes that run at the same time begin far from each other.
        let port = 10_000 + (std::process::id().wrapping_mul(97).wrapping_add(step)) % 22_000;
        let address = SocketAddr::from(([127, 0, 0, 1], port as u16));
        if TcpListener::bind(address).is_ok() {
            return address;
        }
    }
}
