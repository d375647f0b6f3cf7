//! The crate `etcd-client` against one server process per test, plain and over TLS with client certificates.

mod cluster;
mod concurrency;
mod kv;
mod lease;
mod txn;
mod watch;

use rust_client::{Server, TEST_LIMIT, Transport};

/// Makes two tests of each `async fn(&Server)`: one over each transport.
macro_rules! tests_on_each_transport {
    ($($name:ident),+ $(,)?) => {
        mod plain {
            $(#[tokio::test]
            async fn $name() {
                crate::run(rust_client::Transport::Plain, super::$name).await;
            })+
        }
        mod tls {
            $(#[tokio::test]
            async fn $name() {
                crate::run(rust_client::Transport::Tls, super::$name).await;
            })+
        }
    };
}
pub(crate) use tests_on_each_transport;

async fn run(transport: Transport, test: impl AsyncFnOnce(&Server)) {
    let server = Server::start(transport).await;
    tokio::time::timeout(TEST_LIMIT, test(&server))
        .await
        .expect("a test ends within its limit");
}

/// Checks that a call was refused with exactly this gRPC code and text.
#[track_caller]
fn assert_refused<T>(result: Result<T, etcd_client::Error>, code: i32, message: &str) {
    match result {
        Err(etcd_client::Error::GRpcStatus(status)) => {
            assert_eq!((status.code() as i32, status.message()), (code, message));
        }
        Err(error) => panic!("not a status: {error}"),
        Ok(_) => panic!("the call succeeded instead of {message:?}"),
    }
}

/// gRPC's numbers of the codes that the tests expect.
mod code {
    pub(crate) const INVALID_ARGUMENT: i32 = 3;
    pub(crate) const NOT_FOUND: i32 = 5;
    pub(crate) const FAILED_PRECONDITION: i32 = 9;
    pub(crate) const OUT_OF_RANGE: i32 = 11;
}
