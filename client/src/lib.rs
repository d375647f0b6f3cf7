//! A typed client of etcd's v3 API: endpoints with failover, retries that never repeat a write by
//! accident, tokens, watches that resume, and leases that stay alive.
//!
//! Every request and answer is a message of [`kv_proto`]; this crate adds what lies between a call
//! and the wire:
//! - a call goes to one endpoint and moves to the next when that one cannot serve it;
//! - a read is repeated on `Unavailable`, a write only if it was certainly not sent (the rules stand in `retry.rs`);
//! - a token that expired is fetched again, once per call;
//! - everything ends: each call within [`Config::request_timeout`], each connection attempt within
//!   [`Config::connect_timeout`].
//!
//! ```no_run
//! # async fn example() -> kv_client::Result<()> {
//! use kv_client::{Client, Config};
//! use kv_proto::etcdserverpb::{PutRequest, RangeRequest};
//!
//! let client = Client::connect(Config::new(["127.0.0.1:2379"])).await?;
//! client.put(PutRequest { key: "a".into(), value: "1".into(), ..Default::default() }).await?;
//! let found = client.range(RangeRequest { key: "a".into(), ..Default::default() }).await?;
//! assert_eq!(found.kvs[0].value, "1");
//! # Ok(())
//! # }
//! ```

mod client;
mod endpoints;
mod error;

mod auth;
mod cluster;
mod kv;
mod lease;
mod maintenance;
mod retry;
pub mod srv;
mod tls;
mod txn;
mod watch;

pub use client::{Client, Config, Credentials};
pub use endpoints::was_not_sent;
pub use error::{Code, Error, Result};
pub use lease::KeepAlive;
pub use maintenance::SnapshotMessages;
pub use tls::Tls;
pub use txn::{Operation, Txn};
pub use watch::{Watcher, is_progress};
