//! A link between members that a test can cut: bytes pass through, or vanish without a word.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream};
use tokio::task::JoinHandle;

/// Forwards connections on one loopback port to another. Ends when dropped.
pub struct Link {
    is_cut: Arc<AtomicBool>,
    accepting: JoinHandle<()>,
}

impl Link {
    /// Listens on `port` and forwards to `target`; must be called within a runtime.
    pub async fn open(port: u16, target: u16) -> std::io::Result<Link> {
        let listener = TcpListener::bind(("127.0.0.1", port)).await?;
        let is_cut = Arc::new(AtomicBool::new(false));
        let accepting = tokio::spawn({
            let is_cut = is_cut.clone();
            async move {
                while let Ok((near, _)) = listener.accept().await {
                    tokio::spawn(forward(near, target, is_cut.clone()));
                }
            }
        });
        Ok(Link { is_cut, accepting })
    }

    /// From now on nothing passes, and nobody is told: packets are lost.
    ///
    /// Connections that had something to say meanwhile stay silent after [`Link::heal`] too, as TCP's would that tries
    /// again ever more rarely.
    pub fn cut(&self) {
        self.is_cut.store(true, Ordering::Relaxed);
    }

    /// New connections pass again.
    pub fn heal(&self) {
        self.is_cut.store(false, Ordering::Relaxed);
    }
}

impl Drop for Link {
    fn drop(&mut self) {
        self.accepting.abort();
    }
}

async fn forward(near: TcpStream, target: u16, is_cut: Arc<AtomicBool>) {
    let Ok(far) = TcpStream::connect(("127.0.0.1", target)).await else {
        return;
    };
    let (mut near_read, mut near_write) = near.into_split();
    let (mut far_read, mut far_write) = far.into_split();
    let there = pass(&mut near_read, &mut far_write, &is_cut);
    let back = pass(&mut far_read, &mut near_write, &is_cut);
    tokio::select! {
        () = there => {}
        () = back => {}
    }
}

/// Passes bytes until the connection ends; on a cut link it goes silent for good.
async fn pass(
    from: &mut (impl AsyncReadExt + Unpin),
    to: &mut (impl AsyncWriteExt + Unpin),
    is_cut: &AtomicBool,
) {
    let mut bytes = vec![0; 64 << 10];
    while let Ok(count) = from.read(&mut bytes).await {
        if is_cut.load(Ordering::Relaxed) && count > 0 {
            // An end is let through, so that what the members give up does not stay for ever.
            while from.read(&mut bytes).await.is_ok_and(|count| count > 0) {}
            return;
        }
        if count == 0 || to.write_all(&bytes[..count]).await.is_err() {
            return;
        }
    }
}
