//! The network between members without root: every connection passes through this process, which knows who dialed it.
//!
//! In front of each member's peer port is a listener. Who dialed is looked up by the socket's owner in `/proc`, so that a
//! rule holds for one direction between two members: cut, slow, or losing packets. Bytes on a cut way are held, as TCP
//! holds what is not acknowledged, and some connections stay silent after the cut too, as those do whose next attempt is
//! far off.

use std::collections::HashMap;
use std::path::Path;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream};
use tokio::task::JoinHandle;

/// How long a connection may wait until its dialer is known.
const DIALER_LIMIT: Duration = Duration::from_secs(2);
/// Between two looks at a cut way or for a dialer.
const PAUSE: Duration = Duration::from_millis(20);
/// What a lost packet costs until it is sent again.
const RETRANSMISSION: Duration = Duration::from_millis(200);

/// What happens to bytes from one member to another.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Way {
    /// Nothing passes.
    pub is_cut: bool,
    /// Time that each piece takes.
    pub delay: Duration,
    /// Bytes per second, without a bound if 0.
    pub bytes_per_second: u64,
    /// Of 1,000 pieces, so many are lost at first and come later.
    pub lost_per_mille: u32,
}

/// All ways between members. Clones share them.
#[derive(Clone, Default)]
pub struct Mesh {
    shared: Arc<Mutex<Shared>>,
}

#[derive(Default)]
struct Shared {
    /// By who sends and who receives.
    ways: HashMap<(usize, usize), Way>,
    members: HashMap<u32, usize>,
    listeners: Vec<JoinHandle<()>>,
}

impl Mesh {
    /// Listens on `port` for those that dial the member `to`, which listens on `target`.
    pub async fn listen(&self, to: usize, port: u16, target: u16) -> std::io::Result<()> {
        let listener = TcpListener::bind(("127.0.0.1", port)).await?;
        let mesh = self.clone();
        let accepting = tokio::spawn(async move {
            while let Ok((near, _)) = listener.accept().await {
                tokio::spawn(mesh.clone().forward(near, to, target));
            }
        });
        self.with(|shared| shared.listeners.push(accepting));
        Ok(())
    }

    /// Says which process a member is now.
    pub fn is_run_by(&self, member: usize, pid: u32) {
        self.with(|shared| {
            shared.members.retain(|_, other| *other != member);
            shared.members.insert(pid, member);
        });
    }

    /// Sets one direction between two members.
    pub fn set(&self, from: usize, to: usize, way: Way) {
        self.with(|shared| shared.ways.insert((from, to), way));
    }

    /// Cuts one direction between two members.
    pub fn cut(&self, from: usize, to: usize) {
        let is_cut = true;
        self.set(
            from,
            to,
            Way {
                is_cut,
                ..Way::default()
            },
        );
    }

    /// Everything passes again.
    pub fn heal(&self) {
        self.with(|shared| shared.ways.clear());
    }

    /// Ends all listeners; connections end with their members.
    pub fn close(&self) {
        self.with(|shared| {
            shared
                .listeners
                .drain(..)
                .for_each(|listener| listener.abort())
        });
    }

    fn with<T>(&self, look: impl FnOnce(&mut Shared) -> T) -> T {
        look(
            &mut self
                .shared
                .lock()
                .expect("nobody panics with the ways locked"),
        )
    }

    fn way(&self, from: usize, to: usize) -> Way {
        self.with(|shared| shared.ways.get(&(from, to)).copied().unwrap_or_default())
    }

    async fn forward(self, near: TcpStream, to: usize, target: u16) {
        let Ok(address) = near.peer_addr() else {
            return;
        };
        let Some(from) = self.dialer(address.port()).await else {
            return;
        };
        let Ok(far) = TcpStream::connect(("127.0.0.1", target)).await else {
            return;
        };
        let _ = (near.set_nodelay(true), far.set_nodelay(true));
        let (near_read, near_write) = near.into_split();
        let (far_read, far_write) = far.into_split();
        tokio::select! {
            () = self.pass(near_read, far_write, from, to) => {}
            () = self.pass(far_read, near_write, to, from) => {}
        }
    }

    /// The member whose process holds the connection from `port`.
    async fn dialer(&self, port: u16) -> Option<usize> {
        let deadline = tokio::time::Instant::now() + DIALER_LIMIT;
        while tokio::time::Instant::now() < deadline {
            let members = self.with(|shared| shared.members.clone());
            let found = tokio::task::spawn_blocking(move || owner_of(port, &members));
            if let Ok(Some(member)) = found.await {
                return Some(member);
            }
            tokio::time::sleep(PAUSE).await;
        }
        None
    }

    /// Passes bytes until the connection ends.
    async fn pass(
        &self,
        mut read: impl AsyncReadExt + Unpin,
        mut write: impl AsyncWriteExt + Unpin,
        from: usize,
        to: usize,
    ) {
        let mut bytes = vec![0; 64 << 10];
        while let Ok(count) = read.read(&mut bytes).await {
            if count == 0 {
                return;
            }
            if self.way(from, to).is_cut {
                if rand::random_bool(0.5) {
                    // An end is let through, so that what the members give up does not stay for ever.
                    while read.read(&mut bytes).await.is_ok_and(|count| count > 0) {}
                    return;
                }
                while self.way(from, to).is_cut {
                    tokio::time::sleep(PAUSE).await;
                }
            }
            let way = self.way(from, to);
            let mut time = way.delay;
            if let Some(micros) = (count as u64 * 1_000_000).checked_div(way.bytes_per_second) {
                time += Duration::from_micros(micros);
            }
            if way.lost_per_mille > 0 && rand::random_ratio(way.lost_per_mille, 1_000) {
                time += RETRANSMISSION;
            }
            if !time.is_zero() {
                tokio::time::sleep(time).await;
            }
            if write.write_all(&bytes[..count]).await.is_err() {
                return;
            }
        }
    }
}

/// Which of the processes has a socket of that local port.
fn owner_of(port: u16, members: &HashMap<u32, usize>) -> Option<usize> {
    let table = std::fs::read_to_string("/proc/net/tcp").ok()?;
    let local = format!("0100007F:{port:04X}");
    let inode = table.lines().find_map(|line| {
        let mut fields = line.split_whitespace().skip(1);
        (fields.next() == Some(&local)).then(|| fields.nth(7).map(str::to_owned))?
    })?;
    let socket = format!("socket:[{inode}]");
    members.iter().find_map(|(pid, member)| {
        let mut files = std::fs::read_dir(format!("/proc/{pid}/fd")).ok()?;
        let is_it = files.any(|file| {
            file.is_ok_and(|file| {
                std::fs::read_link(file.path()).is_ok_and(|to| to == Path::new(&socket))
            })
        });
        is_it.then_some(*member)
    })
}
