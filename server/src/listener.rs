//! Sockets to connections, connections to threads.
//!
//! Each RPC thread runs its own single-threaded runtime; the acceptor hands a connection to the one with the fewest. A
//! request is decoded, answered from memory and encoded without leaving that thread.

use std::cell::RefCell;
use std::convert::Infallible;
use std::io;
use std::net::SocketAddr;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::thread::JoinHandle;
use std::time::Duration;

use http::{Request, Response};
use hyper::body::Incoming;
use hyper::service::Service;
use hyper_util::rt::{TokioExecutor, TokioIo, TokioTimer};
use hyper_util::server::conn::auto;
use kv_mvcc::watch::WakeGroup;
use tokio::net::{TcpListener, TcpStream, UnixListener, UnixStream};
use tokio::runtime;
use tokio::sync::mpsc;
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;

use crate::rpc::Dispatch;
use crate::tls::{self, TlsAcceptor};
use crate::wait::Wait;

/// Receive windows: a large put must not wait for window updates.
const STREAM_WINDOW_BYTES: u32 = 1 << 20;
const CONNECTION_WINDOW_BYTES: u32 = 8 << 20;
/// Calls under way, and clients that have to acknowledge the end, may take this long when the member stops.
const DRAIN: Duration = Duration::from_secs(2);
/// Connections handed to a thread and not taken yet.
const HANDOFF_MAX: usize = 1024;

/// HTTP/2 settings of client connections.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Http2Settings {
    /// `--max-concurrent-streams`.
    pub(crate) max_concurrent_streams: u32,
    /// `--grpc-keepalive-interval`; zero for none.
    pub(crate) keepalive_interval: Duration,
    /// `--grpc-keepalive-timeout`.
    pub(crate) keepalive_timeout: Duration,
}

/// The RPC threads.
pub(crate) struct RpcThreads {
    threads: Vec<Arc<RpcThread>>,
    joins: Vec<JoinHandle<()>>,
    connections: CancellationToken,
}

struct RpcThread {
    handoff: mpsc::Sender<Connection>,
    open: AtomicUsize,
}

struct Connection {
    socket: Socket,
    tls: Option<Arc<TlsAcceptor>>,
    dispatch: Dispatch,
}

/// An accepted connection, before TLS; not registered with any runtime, so that the one that serves it also polls it.
pub(crate) enum Socket {
    Tcp(std::net::TcpStream),
    Unix(std::os::unix::net::UnixStream),
}

/// A bound listening socket.
pub(crate) enum Listener {
    Tcp(TcpListener),
    Unix(UnixListener),
}

thread_local! {
    static WAKE_GROUP: RefCell<Option<Arc<WakeGroup>>> = const { RefCell::new(None) };
}

/// The watch streams of the calling thread, if it is one of [`RpcThreads`].
pub(crate) fn wake_group() -> Option<Arc<WakeGroup>> {
    WAKE_GROUP.with_borrow(Clone::clone)
}

impl RpcThreads {
    /// Starts `count` threads that serve connections and deliver results to waiters.
    pub(crate) fn start(
        count: usize,
        wait: &Arc<Wait>,
        settings: Http2Settings,
    ) -> io::Result<RpcThreads> {
        let connections = CancellationToken::new();
        let mut threads = Vec::new();
        let mut joins = Vec::new();
        for n in 0..count {
            let (handoff, incoming) = mpsc::channel(HANDOFF_MAX);
            let thread = Arc::new(RpcThread {
                handoff,
                open: AtomicUsize::new(0),
            });
            let runtime = runtime::Builder::new_current_thread()
                .enable_all()
                .max_blocking_threads(8)
                .build()?;
            let (wait, thread_state, stop) = (wait.clone(), thread.clone(), connections.clone());
            let join = std::thread::Builder::new()
                .name(format!("rpc-{n}"))
                .spawn(move || {
                    Wait::use_shard(n);
                    runtime.spawn(wait.dispatch(n));
                    let group = WakeGroup::new();
                    runtime.spawn(group.clone().run());
                    WAKE_GROUP.set(Some(group));
                    runtime.block_on(serve_thread(incoming, thread_state, settings, stop));
                    runtime.shutdown_timeout(Duration::from_millis(100));
                })?;
            threads.push(thread);
            joins.push(join);
        }
        Ok(RpcThreads {
            threads,
            joins,
            connections,
        })
    }

    /// Hands a connection to the thread with the fewest.
    async fn serve(&self, connection: Connection) {
        let thread = self
            .threads
            .iter()
            .min_by_key(|t| t.open.load(Ordering::Relaxed))
            .expect("there is at least one RPC thread");
        thread.open.fetch_add(1, Ordering::Relaxed);
        // An error means the thread has stopped, and with it the process.
        let _ = thread.handoff.send(connection).await;
    }

    /// Lets the calls under way finish, closes the connections and joins the threads.
    pub(crate) fn stop(self) {
        self.connections.cancel();
        for join in self.joins {
            if join.join().is_err() {
                tracing::error!("an RPC thread panicked");
            }
        }
    }
}

/// Accepts connections until `stop`.
pub(crate) async fn accept(
    listener: Listener,
    tls: Option<Arc<TlsAcceptor>>,
    dispatch: Dispatch,
    threads: Arc<RpcThreads>,
    stop: CancellationToken,
) {
    loop {
        let socket = tokio::select! {
            socket = listener.accept() => socket,
            () = stop.cancelled() => return,
        };
        match socket {
            Ok(socket) => {
                let connection = Connection {
                    socket,
                    tls: tls.clone(),
                    dispatch: dispatch.for_connection(),
                };
                threads.serve(connection).await;
            }
            Err(error) => {
                // Out of descriptors, or the peer was quick to leave: neither ends the listener.
                tracing::warn!(%error, "could not accept a connection");
                tokio::time::sleep(Duration::from_millis(10)).await;
            }
        }
    }
}

impl Listener {
    /// The next connection.
    pub(crate) async fn accept(&self) -> io::Result<Socket> {
        match self {
            Listener::Tcp(listener) => {
                let (stream, _) = listener.accept().await?;
                stream.set_nodelay(true)?;
                Ok(Socket::Tcp(stream.into_std()?))
            }
            Listener::Unix(listener) => Ok(Socket::Unix(listener.accept().await?.0.into_std()?)),
        }
    }

    /// Binds a TCP address; the error names it.
    pub(crate) async fn bind_tcp(address: SocketAddr) -> io::Result<Listener> {
        let listener = TcpListener::bind(address).await;
        listener
            .map(Listener::Tcp)
            .map_err(|e| named(e, &address.to_string()))
    }

    /// Binds a unix socket; a socket file left behind by an earlier process is replaced.
    pub(crate) fn bind_unix(path: &std::path::Path) -> io::Result<Listener> {
        if std::os::unix::net::UnixStream::connect(path).is_err() && is_socket(path) {
            std::fs::remove_file(path)?;
        }
        UnixListener::bind(path)
            .map(Listener::Unix)
            .map_err(|e| named(e, &path.display().to_string()))
    }
}

fn is_socket(path: &std::path::Path) -> bool {
    use std::os::unix::fs::FileTypeExt;
    std::fs::symlink_metadata(path).is_ok_and(|m| m.file_type().is_socket())
}

fn named(error: io::Error, address: &str) -> io::Error {
    let hint = match error.kind() {
        io::ErrorKind::AddrInUse => {
            ": another process uses it; stop that process or choose another address"
        }
        io::ErrorKind::AddrNotAvailable => ": this machine has no such address",
        io::ErrorKind::PermissionDenied => ": the process may not use it",
        _ => "",
    };
    io::Error::new(
        error.kind(),
        format!("cannot listen on {address}: {error}{hint}"),
    )
}

async fn serve_thread(
    mut incoming: mpsc::Receiver<Connection>,
    thread: Arc<RpcThread>,
    settings: Http2Settings,
    stop: CancellationToken,
) {
    let tracker = TaskTracker::new();
    loop {
        let connection = tokio::select! {
            connection = incoming.recv() => connection,
            () = stop.cancelled() => None,
        };
        let Some(connection) = connection else { break };
        let (thread, stop) = (thread.clone(), stop.clone());
        tracker.spawn(async move {
            let Connection {
                socket,
                tls,
                dispatch,
            } = connection;
            serve_connection(socket, tls, dispatch, settings, stop).await;
            thread.open.fetch_sub(1, Ordering::Relaxed);
        });
    }
    tracker.close();
    // A client that does not answer must not hold up the stop; its connection is dropped with the runtime.
    if tokio::time::timeout(DRAIN, tracker.wait()).await.is_err() {
        tracing::warn!(
            connections = tracker.len(),
            "some connections did not end in time"
        );
    }
}

/// What may want to know whose connection it serves.
pub(crate) trait Introduced {
    /// The other side's certificate names `common_name`; empty without a certificate or a name in it.
    fn introduce(&mut self, common_name: String);
}

/// What answers the requests of a connection.
pub(crate) trait Answers:
    Introduced
    + Service<
        Request<Incoming>,
        Response = Response<tonic::body::Body>,
        Error = Infallible,
        Future: Send + 'static,
    > + Send
    + 'static
{
}

impl<T> Answers for T where
    T: Introduced
        + Service<
            Request<Incoming>,
            Response = Response<tonic::body::Body>,
            Error = Infallible,
            Future: Send + 'static,
        > + Send
        + 'static
{
}

/// Serves a connection on the calling task until either side ends it or `stop`.
pub(crate) async fn serve_connection(
    socket: Socket,
    tls: Option<Arc<TlsAcceptor>>,
    dispatch: impl Answers,
    settings: Http2Settings,
    stop: CancellationToken,
) {
    let registered = match socket {
        Socket::Tcp(stream) => TcpStream::from_std(stream).map(Stream::Tcp),
        Socket::Unix(stream) => UnixStream::from_std(stream).map(Stream::Unix),
    };
    let stream = match registered {
        Ok(stream) => stream,
        Err(error) => {
            tracing::warn!(%error, "could not serve a connection");
            return;
        }
    };
    match (stream, tls) {
        (Stream::Tcp(stream), None) => serve_io(stream, dispatch, settings, stop).await,
        (Stream::Unix(stream), None) => serve_io(stream, dispatch, settings, stop).await,
        (Stream::Tcp(stream), Some(tls)) => serve_tls(stream, &tls, dispatch, settings, stop).await,
        (Stream::Unix(stream), Some(tls)) => {
            serve_tls(stream, &tls, dispatch, settings, stop).await
        }
    }
}

/// A connection that the serving thread polls.
enum Stream {
    Tcp(TcpStream),
    Unix(UnixStream),
}

async fn serve_tls<S>(
    stream: S,
    tls: &Arc<TlsAcceptor>,
    mut dispatch: impl Answers,
    settings: Http2Settings,
    stop: CancellationToken,
) where
    S: tokio::io::AsyncRead + tokio::io::AsyncWrite + Unpin + Send + 'static,
{
    match tls.accept(stream).await {
        Ok(stream) => {
            dispatch.introduce(tls::peer_common_name(&stream).unwrap_or_default());
            serve_io(stream, dispatch, settings, stop).await;
        }
        Err(error) => tracing::debug!(%error, "TLS handshake failed"),
    }
}

async fn serve_io<S>(
    stream: S,
    dispatch: impl Answers,
    settings: Http2Settings,
    stop: CancellationToken,
) where
    S: tokio::io::AsyncRead + tokio::io::AsyncWrite + Unpin + Send + 'static,
{
    let mut builder = auto::Builder::new(TokioExecutor::new());
    builder
        .http1()
        .timer(TokioTimer::new())
        .header_read_timeout(Duration::from_secs(300));
    let keepalive = (!settings.keepalive_interval.is_zero()).then_some(settings.keepalive_interval);
    builder
        .http2()
        .timer(TokioTimer::new())
        .initial_stream_window_size(STREAM_WINDOW_BYTES)
        .initial_connection_window_size(CONNECTION_WINDOW_BYTES)
        .max_concurrent_streams(settings.max_concurrent_streams)
        .keep_alive_interval(keepalive)
        .keep_alive_timeout(settings.keepalive_timeout);
    let serving = builder.serve_connection_with_upgrades(TokioIo::new(stream), dispatch);
    tokio::pin!(serving);
    let result = tokio::select! {
        result = serving.as_mut() => result,
        () = stop.cancelled() => {
            serving.as_mut().graceful_shutdown();
            serving.await
        }
    };
    if let Err(error) = result {
        tracing::debug!(%error, "connection ended");
    }
}
