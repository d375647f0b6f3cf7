//! A link between members that a test can cut: bytes pass through, or vanish without a word, or the connection breaks.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};

use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream};
use tokio::task::JoinHandle;

/// Forwards connections on one loopback port to another. Ends when dropped.
pub struct Link {
    state: Arc<State>,
    accepting: JoinHandle<()>,
}

#[derive(Default)]
struct State {
    is_cut: AtomicBool,
    /// Bytes that have passed, towards the target.
    passed: AtomicU64,
    /// Bytes at which the connection that carries them breaks; 0 for never.
    break_at: AtomicU64,
    breaks: AtomicU64,
}

impl Link {
    /// Listens on `port` and forwards to `target`; must be called within a runtime.
    pub async fn open(port: u16, target: u16) -> std::io::Result<Link> {
        let listener = TcpListener::bind(("127.0.0.1", port)).await?;
        let state = Arc::new(State::default());
        let accepting = tokio::spawn({
            let state = state.clone();
            async move {
                while let Ok((near, _)) = listener.accept().await {
                    tokio::spawn(forward(near, target, state.clone()));
                }
            }
        });
        Ok(Link { state, accepting })
    }

    /// From now on nothing passes, and nobody is told: packets are lost.
    ///
    /// Connections that had something to say meanwhile stay silent after [`Link::heal`] too, as TCP's would that tries
    /// again ever more rarely.
    pub fn cut(&self) {
        self.state.is_cut.store(true, Ordering::Relaxed);
    }

    /// New connections pass again.
    pub fn heal(&self) {
        self.state.is_cut.store(false, Ordering::Relaxed);
    }

    /// Bytes that have passed towards the target.
    pub fn passed(&self) -> u64 {
        self.state.passed.load(Ordering::Relaxed)
    }

    /// Breaks the connection that carries the byte number `passed` towards the target; others pass, also new ones.
    pub fn break_at(&self, passed: u64) {
        self.state.break_at.store(passed, Ordering::Relaxed);
    }

    /// How often a connection was broken.
    pub fn breaks(&self) -> u64 {
        self.state.breaks.load(Ordering::Relaxed)
    }
}

impl Drop for Link {
    fn drop(&mut self) {
        self.accepting.abort();
    }
}

impl State {
    /// Counts bytes towards the target; whether the connection breaks with them.
    fn passes(&self, bytes: u64) -> bool {
        let passed = self.passed.fetch_add(bytes, Ordering::Relaxed) + bytes;
        let break_at = self.break_at.load(Ordering::Relaxed);
        if break_at == 0 || passed < break_at {
            return true;
        }
        let breaks = self.break_at.swap(0, Ordering::Relaxed) != 0;
        if breaks {
            self.breaks.fetch_add(1, Ordering::Relaxed);
        }
        !breaks
    }
}

async fn forward(near: TcpStream, target: u16, state: Arc<State>) {
    let Ok(far) = TcpStream::connect(("127.0.0.1", target)).await else {
        return;
    };
    let (mut near_read, mut near_write) = near.into_split();
    let (mut far_read, mut far_write) = far.into_split();
    let there = pass(&mut near_read, &mut far_write, &state, |bytes| {
        state.passes(bytes)
    });
    let back = pass(&mut far_read, &mut near_write, &state, |_| true);
    tokio::select! {
        () = there => {}
        () = back => {}
    }
}

/// Passes bytes until the connection ends or breaks; on a cut link it goes silent for good.
async fn pass(
    from: &mut (impl AsyncReadExt + Unpin),
    to: &mut (impl AsyncWriteExt + Unpin),
    state: &State,
    passes: impl Fn(u64) -> bool,
) {
    let mut buffer = vec![0; 64 << 10];
    loop {
        let count = match from.read(&mut buffer).await {
            Ok(0) | Err(_) => return,
            Ok(count) => count,
        };
        if state.is_cut.load(Ordering::Relaxed) {
            std::future::pending::<()>().await;
        }
        if !passes(count as u64) || to.write_all(&buffer[..count]).await.is_err() {
            return;
        }
    }
}
