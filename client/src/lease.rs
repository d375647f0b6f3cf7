//! Leases: grant, revoke, look up, and keep alive by a task.

use std::time::Duration;

use kv_proto::etcdserverpb::{
    LeaseGrantRequest, LeaseGrantResponse, LeaseKeepAliveRequest, LeaseKeepAliveResponse,
    LeaseLeasesRequest, LeaseLeasesResponse, LeaseRevokeRequest, LeaseRevokeResponse,
    LeaseTimeToLiveRequest, LeaseTimeToLiveResponse, lease_client::LeaseClient,
};
use tokio::{sync::mpsc, task::JoinHandle, time::Instant};
use tonic::Response;

use crate::{
    Client,
    error::{Error, Result},
    retry::{self, Repeat},
};

/// What the server says of a lease it does not know. Source: etcd 3.7, `rpctypes`.
const NOT_FOUND: &str = "etcdserver: requested lease not found";
/// Renewals the owner of a [`KeepAlive`] has not looked at yet; older ones are dropped.
const UNREAD_MAX: usize = 16;

impl Client {
    /// Makes a lease; id 0 lets the server choose one.
    pub async fn lease_grant(&self, request: LeaseGrantRequest) -> Result<LeaseGrantResponse> {
        self.call(Repeat::IfNotSent, request, |c, q| async move {
            LeaseClient::new(c).lease_grant(q).await
        })
        .await
    }

    /// Ends a lease and deletes its keys.
    pub async fn lease_revoke(&self, id: i64) -> Result<LeaseRevokeResponse> {
        let request = LeaseRevokeRequest { id };
        self.call(Repeat::IfNotSent, request, |c, q| async move {
            LeaseClient::new(c).lease_revoke(q).await
        })
        .await
    }

    /// The time a lease has left, and its keys if asked. A lease that does not exist has `ttl` -1.
    pub async fn lease_time_to_live(
        &self,
        request: LeaseTimeToLiveRequest,
    ) -> Result<LeaseTimeToLiveResponse> {
        let limit = self.config().response_bytes_max;
        self.call(Repeat::Always, request, |c, q| async move {
            LeaseClient::new(c)
                .max_decoding_message_size(limit)
                .lease_time_to_live(q)
                .await
        })
        .await
    }

    /// All leases.
    pub async fn lease_leases(&self) -> Result<LeaseLeasesResponse> {
        let limit = self.config().response_bytes_max;
        self.call(Repeat::Always, LeaseLeasesRequest {}, |c, q| async move {
            LeaseClient::new(c)
                .max_decoding_message_size(limit)
                .lease_leases(q)
                .await
        })
        .await
    }

    /// Renews a lease once. Errors: not found, if the lease expired or never was.
    pub async fn lease_keep_alive_once(&self, id: i64) -> Result<LeaseKeepAliveResponse> {
        let response = self
            .call(
                Repeat::Always,
                LeaseKeepAliveRequest { id },
                |c, q| async move {
                    let (metadata, extensions, message) = q.into_parts();
                    let stream = tonic::Request::from_parts(
                        metadata,
                        extensions,
                        tokio_stream::once(message),
                    );
                    let mut answers = LeaseClient::new(c)
                        .lease_keep_alive(stream)
                        .await?
                        .into_inner();
                    let first = answers.message().await?;
                    first.map(Response::new).ok_or_else(|| {
                        tonic::Status::unavailable("the stream ended without an answer")
                    })
                },
            )
            .await?;
        if response.ttl <= 0 {
            Err(Error::not_found(NOT_FOUND))
        } else {
            Ok(response)
        }
    }

    /// Keeps a lease alive until it is gone or the answer is dropped.
    pub fn lease_keep_alive(&self, id: i64) -> KeepAlive {
        let (renewals, unread) = mpsc::channel(UNREAD_MAX);
        let task = tokio::spawn(keep_alive(self.clone(), id, renewals));
        KeepAlive { unread, task }
    }
}

/// A lease that a task renews every third of its time to live.
///
/// The task ends, and [`KeepAlive::renewed`] with it, when the server no longer knows the lease or
/// when no server could be reached for the lease's whole time to live.
#[derive(Debug)]
pub struct KeepAlive {
    unread: mpsc::Receiver<LeaseKeepAliveResponse>,
    task: JoinHandle<()>,
}

impl KeepAlive {
    /// The next renewal, or `None` once the lease is gone. Renewals go on whether or not this is called.
    pub async fn renewed(&mut self) -> Option<LeaseKeepAliveResponse> {
        self.unread.recv().await
    }
}

impl Drop for KeepAlive {
    fn drop(&mut self) {
        self.task.abort();
    }
}

async fn keep_alive(client: Client, id: i64, renewals: mpsc::Sender<LeaseKeepAliveResponse>) {
    let mut expires = None;
    loop {
        match client.lease_keep_alive_once(id).await {
            Ok(response) => {
                let ttl = Duration::from_secs(response.ttl.unsigned_abs());
                expires = Some(now() + ttl);
                // A reader that lags misses renewals; the lease must not.
                let _ = renewals.try_send(response);
                tokio::time::sleep(ttl / 3).await;
            }
            Err(error) => {
                let gone = matches!(&error, Error::Server { message, .. } if message == NOT_FOUND);
                if gone || expires.is_some_and(|at| now() >= at) {
                    return;
                }
                tokio::time::sleep(retry::pause(1, 1)).await;
            }
        }
    }
}

/// The runtime's clock, which a test may pause.
fn now() -> Instant {
    #[allow(clippy::disallowed_methods)] // tokio's own seam: it follows the runtime's paused time
    Instant::now()
}
