//! A `kvd` process of a test: started on free loopback ports, ended by process id.

use std::collections::BTreeSet;
use std::error::Error;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::sync::Mutex;
use std::time::{Duration, Instant};

use anyhow::Context;
use kv_proto::etcdserverpb::RangeRequest;
use kv_proto::etcdserverpb::kv_client::KvClient;
use rustix::event::{PollFd, PollFlags, poll};
use rustix::io::retry_on_intr;
use rustix::process::{Pid, PidfdFlags, Signal, kill_process, pidfd_open};
use tonic::transport::{Channel, Endpoint};

/// What a member without others says about where it is; nobody calls it there.
const ALONE_PEER_URL: &str = "http://127.0.0.1:2380";
/// A member has this long to begin to serve, and to stop.
const START_LIMIT: Duration = Duration::from_secs(60);
/// One attempt to get an answer from a member.
const PROBE_LIMIT: Duration = Duration::from_secs(10);

/// How a member is started.
#[derive(Clone, Debug)]
pub struct KvdOptions {
    /// Scheme of the peer URLs.
    pub peer_scheme: String,
    /// Address of all URLs.
    pub host: String,
    /// Port of the advertised peer URL. `None`: the one it listens on.
    pub advertised_peer_port: Option<u16>,
    /// The program; `None`: [`kvd_binary`].
    pub program: Option<PathBuf>,
    /// Further flags.
    pub args: Vec<String>,
    /// Further environment variables.
    pub env: Vec<(String, String)>,
    /// A command that starts the member, its command line following; the member keeps the process id.
    pub wrapper: Vec<String>,
}

impl Default for KvdOptions {
    fn default() -> KvdOptions {
        KvdOptions {
            peer_scheme: "http".into(),
            host: "127.0.0.1".into(),
            advertised_peer_port: None,
            program: None,
            args: Vec::new(),
            env: Vec::new(),
            wrapper: Vec::new(),
        }
    }
}

/// A running member; killed when dropped.
pub struct Kvd {
    child: Child,
    options: KvdOptions,
    data_dir: PathBuf,
    client_port: u16,
    peer_port: u16,
}

impl Kvd {
    /// Starts a member over `data_dir` on free ports; it serves when [`Kvd::connect`] returns.
    pub fn start(data_dir: &Path, options: KvdOptions) -> Kvd {
        Kvd::start_on(data_dir, free_port(), free_port(), options)
    }

    /// Starts a member on given ports. Flags in `options` replace those of a cluster of one.
    pub fn start_on(data_dir: &Path, client_port: u16, peer_port: u16, options: KvdOptions) -> Kvd {
        let child = spawn(data_dir, client_port, peer_port, &options);
        Kvd {
            child,
            options,
            data_dir: data_dir.to_owned(),
            client_port,
            peer_port,
        }
    }

    /// The URL clients dial.
    pub fn client_url(&self) -> String {
        format!("http://{}:{}", self.options.host, self.client_port)
    }

    /// Process id, for signals and statistics.
    pub fn pid(&self) -> u32 {
        self.child.id()
    }

    /// Waits until the member answers. Panics with its exit status if it ends instead.
    pub async fn connect(&mut self) -> Channel {
        self.try_connect()
            .await
            .unwrap_or_else(|error| panic!("{error:#}"))
    }

    /// Waits until the member answers. An error has its exit status if it ends instead.
    pub async fn try_connect(&mut self) -> anyhow::Result<Channel> {
        let endpoint = Endpoint::from_shared(self.client_url())?;
        let deadline = Instant::now() + START_LIMIT;
        loop {
            match connect(&endpoint).await {
                Ok(channel) => return Ok(channel),
                Err(error) => {
                    if let Some(status) = self.child.try_wait()? {
                        anyhow::bail!("kvd ended with {status} before it served");
                    }
                    anyhow::ensure!(Instant::now() < deadline, "kvd does not serve: {error}");
                    tokio::time::sleep(Duration::from_millis(10)).await;
                }
            }
        }
    }

    /// Ends the process at once, as a crash would.
    pub fn kill(&mut self) {
        self.child.kill().expect("the child is ours to kill");
        self.child.wait().expect("the child can be waited for");
    }

    /// The exit status, if the process has ended.
    pub fn try_wait(&mut self) -> std::io::Result<Option<std::process::ExitStatus>> {
        self.child.try_wait()
    }

    /// Asks the process to stop and waits for its exit status.
    pub fn terminate(&mut self) -> std::process::ExitStatus {
        self.signal(Signal::TERM).expect("the child can be told");
        assert!(
            ends_within(&self.child, START_LIMIT),
            "kvd goes on {START_LIMIT:?} after it was asked to stop"
        );
        self.child.wait().expect("the child can be waited for")
    }

    /// Sends a signal to the process, which must not have been seen to end.
    pub fn signal(&self, signal: Signal) -> rustix::io::Result<()> {
        kill_process(Pid::from_child(&self.child), signal)
    }

    /// Starts the member again over the same folder and ports with other options.
    pub fn restart_with(&mut self, options: KvdOptions) {
        self.options = options;
        self.restart();
    }

    /// Starts the member again over the same folder and ports.
    pub fn restart(&mut self) {
        self.child = spawn(
            &self.data_dir,
            self.client_port,
            self.peer_port,
            &self.options,
        );
    }
}

impl Drop for Kvd {
    fn drop(&mut self) {
        // It may have ended already.
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// Whether a process ends within `limit`; blocks until then.
pub fn ends_within(child: &Child, limit: Duration) -> bool {
    let process = pidfd_open(Pid::from_child(child), PidfdFlags::empty());
    let process = process.expect("the child can be watched");
    let limit = limit.try_into().expect("a limit is no age");
    let mut ended = [PollFd::new(&process, PollFlags::IN)];
    let count = retry_on_intr(|| poll(&mut ended, Some(&limit)));
    count.expect("a process can be polled") > 0
}

/// A connection on which a member has answered, within [`PROBE_LIMIT`].
///
/// That it is accepted says too little: a listener of this process lives on in one that another thread is about to start,
/// until that one's program is loaded.
pub async fn connect(endpoint: &Endpoint) -> anyhow::Result<Channel> {
    let probe = async {
        let channel = endpoint.connect().await?;
        // Without a key: any answer will do.
        let mut kv = KvClient::new(channel.clone());
        match kv.range(RangeRequest::default()).await {
            Err(status) if status.source().is_some() => Err(status.into()),
            _ => Ok(channel),
        }
    };
    let probed = tokio::time::timeout(PROBE_LIMIT, probe).await;
    probed.context("somebody accepts and does not answer")?
}

/// The binary to test: `KVD_BIN`, or the one built beside this test.
pub fn kvd_binary() -> PathBuf {
    if let Some(path) = std::env::var_os("KVD_BIN") {
        return path.into();
    }
    let exe = std::env::current_exe().expect("a process has a path");
    // Tests are in target/<profile>/deps, programs one level up.
    let found = exe.ancestors().skip(1).take(2).map(|dir| dir.join("kvd"));
    let path = found.clone().find(|path| path.is_file());
    path.unwrap_or_else(|| {
        panic!(
            "{:?} are missing: run `cargo build -p kv-server` or set KVD_BIN",
            found.collect::<Vec<_>>()
        )
    })
}

fn spawn(data_dir: &Path, client_port: u16, peer_port: u16, options: &KvdOptions) -> Child {
    let host = &options.host;
    let client = format!("http://{host}:{client_port}");
    let peer = format!("{}://{host}:{peer_port}", options.peer_scheme);
    // Ids follow from what is advertised: a member alone keeps its own whatever port was free.
    let is_told = |arg: &String| arg == "--initial-cluster" || arg.starts_with("--discovery-");
    let is_alone = !options.args.iter().any(is_told);
    let advertised = match options.advertised_peer_port {
        Some(port) => format!("{}://{host}:{port}", options.peer_scheme),
        None if is_alone => ALONE_PEER_URL.to_owned(),
        None => peer.clone(),
    };
    let kvd = options.program.clone().unwrap_or_else(kvd_binary);
    let mut command = match options.wrapper.split_first() {
        Some((program, args)) => {
            let mut command = Command::new(program);
            command.args(args).arg(kvd);
            command
        }
        None => Command::new(kvd),
    };
    command
        .arg("--data-dir")
        .arg(data_dir)
        .args([
            "--listen-client-urls",
            &client,
            "--advertise-client-urls",
            &client,
        ])
        .args([
            "--listen-peer-urls",
            &peer,
            "--initial-advertise-peer-urls",
            &advertised,
        ])
        .args(["--log-level", "warn"])
        .args(&options.args)
        .envs(options.env.iter().cloned())
        .stdin(Stdio::null());
    if is_alone {
        command.args(["--initial-cluster", &format!("default={advertised}")]);
    }
    command.spawn().expect("kvd can be started")
}

/// A port nobody listens on now, and that this process gives out once only.
///
/// It is below those that the kernel gives to outgoing connections, so that none takes it while its member is down.
pub fn free_port() -> u16 {
    static GIVEN: Mutex<BTreeSet<u16>> = Mutex::new(BTreeSet::new());
    loop {
        let port = rand::random_range(10_000..32_000);
        if !is_in_use(port) && GIVEN.lock().expect("no test panics with it").insert(port) {
            return port;
        }
    }
}

/// Whether a socket of this machine has the port.
///
/// Tried by binding it, it would stay bound in a process that another thread starts just then, until that one's program is
/// loaded.
fn is_in_use(port: u16) -> bool {
    let port = format!(":{port:04X}");
    let has_port = |table: &str| {
        let mut addresses = table
            .lines()
            .filter_map(|line| line.split_whitespace().nth(1));
        addresses.any(|address| address.ends_with(&port))
    };
    let tcp = std::fs::read_to_string("/proc/net/tcp").expect("Linux lists its sockets");
    // Missing where there is no IPv6.
    let tcp6 = std::fs::read_to_string("/proc/net/tcp6").unwrap_or_default();
    has_port(&tcp) || has_port(&tcp6)
}

#[cfg(test)]
mod tests {
    use std::net::TcpListener;

    use super::*;

    #[test]
    fn a_port_is_in_use_while_somebody_listens_on_it() {
        for address in ["127.0.0.1", "0.0.0.0"] {
            let port = free_port();
            assert!(!is_in_use(port), "{address}");
            let _listener = TcpListener::bind((address, port)).unwrap();
            assert!(is_in_use(port), "{address}");
        }
    }
}
