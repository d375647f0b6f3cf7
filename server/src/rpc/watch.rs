//! The Watch service: a client's requests go to its stream of watchers, whose responses are pulled by the connection.

use std::pin::Pin;
use std::sync::Arc;
use std::time::Duration;

use futures_util::Stream;
use futures_util::stream::unfold;
use kv_mvcc::watch::{StreamOptions, WatchCreate, WatchOutput, WatchStream};
use kv_proto::etcdserverpb::watch_request::RequestUnion;
use kv_proto::etcdserverpb::watch_server::Watch;
use kv_proto::etcdserverpb::{WatchRequest, WatchResponse};
use tokio_util::sync::{CancellationToken, DropGuard};
use tonic::{Request, Response, Status, Streaming};

use super::requires_leader;
use super::status::with_grpc_go_texts;
use crate::Error;
use crate::member::Member;

/// A response at or above the request limit plus this is split for watchers that allow it. Source: etcd v3.7.
const FRAGMENT_OVERHEAD_BYTES: usize = 512 * 1024;

/// The service over a member.
#[derive(Clone)]
pub(crate) struct WatchService(pub(crate) Arc<Member>);

#[tonic::async_trait]
impl Watch for WatchService {
    type WatchStream = Pin<Box<dyn Stream<Item = Result<WatchResponse, Status>> + Send>>;

    async fn watch(
        &self,
        request: Request<Streaming<WatchRequest>>,
    ) -> Result<Response<Self::WatchStream>, Status> {
        let member = self.0.clone();
        let needs_leader = requires_leader(request.metadata());
        let options = StreamOptions {
            spawn: Arc::new(|job| {
                tokio::task::spawn_blocking(job);
            }),
            progress_interval: member.config.watch_progress_interval(),
            fragment_bytes_min: member.config.max_request_bytes as usize + FRAGMENT_OVERHEAD_BYTES,
            header: member.header(i64::MAX),
        };
        let stream = Arc::new(
            member
                .store
                .watch_hub()
                .open_stream(member.store.clone(), options),
        );
        let ended = CancellationToken::new();
        let failed = tokio::spawn(read_requests(
            request.into_inner(),
            stream.clone(),
            ended.clone(),
        ));
        let leader_lost = Box::pin(leader_lost(member.clone(), needs_leader));
        let responses = Responses {
            member,
            stream,
            leader_lost,
            failed: Some(failed),
            _ended: ended.drop_guard(),
        };
        Ok(Response::new(Box::pin(unfold(
            Some(responses),
            Responses::next,
        ))))
    }
}

/// The response side of one client stream; dropping it ends the request side too.
struct Responses {
    member: Arc<Member>,
    stream: Arc<WatchStream>,
    leader_lost: Pin<Box<dyn Future<Output = ()> + Send>>,
    /// Why no more requests come: `None` when the client only closed its side.
    failed: Option<tokio::task::JoinHandle<Option<Status>>>,
    _ended: DropGuard,
}

impl Responses {
    async fn next(
        state: Option<Responses>,
    ) -> Option<(Result<WatchResponse, Status>, Option<Responses>)> {
        let mut state = state?;
        loop {
            // While there is something to send, nothing else is looked at.
            match state.stream.try_next() {
                Ok(Some(output)) => return Some((Ok(state.response(output)), Some(state))),
                Ok(None) => {}
                Err(error) => return Some((Err(Error::from(error).into()), None)),
            }
            let failed = async {
                match &mut state.failed {
                    Some(task) => task.await.unwrap_or(None),
                    None => std::future::pending().await,
                }
            };
            tokio::select! {
                output = state.stream.next() => return Some(match output {
                    Ok(output) => (Ok(state.response(output)), Some(state)),
                    Err(error) => (Err(Error::from(error).into()), None),
                }),
                status = failed => {
                    state.failed = None;
                    if let Some(status) = status {
                        return Some((Err(status), None));
                    }
                }
                () = &mut state.leader_lost => return Some((Err(Error::NoLeader.into()), None)),
                () = state.member.stopping.cancelled() => return Some((Err(Error::Stopped.into()), None)),
            }
        }
    }
}

impl Responses {
    fn response(&self, output: WatchOutput) -> WatchResponse {
        output.to_response(&self.member.header(output.revision))
    }
}

/// Passes the client's requests to its stream until it sends no more.
async fn read_requests(
    mut requests: Streaming<WatchRequest>,
    stream: Arc<WatchStream>,
    ended: CancellationToken,
) -> Option<Status> {
    loop {
        let message = tokio::select! {
            message = requests.message() => message,
            () = ended.cancelled() => return None,
        };
        match message {
            Ok(Some(WatchRequest { request_union })) => match request_union {
                Some(RequestUnion::CreateRequest(create)) => {
                    stream.create(WatchCreate::from_request(&create));
                }
                Some(RequestUnion::CancelRequest(cancel)) => stream.cancel(cancel.watch_id),
                Some(RequestUnion::ProgressRequest(_)) => stream.request_progress(),
                None => {}
            },
            // Closing the send side does not end the watch.
            Ok(None) => return None,
            Err(status) => return Some(with_grpc_go_texts(status)),
        }
    }
}

/// Resolves when there was no leader for three election timeouts, and never unless `needed`.
async fn leader_lost(member: Arc<Member>, needed: bool) {
    if !needed {
        return std::future::pending().await;
    }
    let mut status = member.node.watch_status();
    let patience: Duration = member.config.election_timeout * 3;
    loop {
        if status.wait_for(|s| s.leader.is_none()).await.is_err() {
            return;
        }
        if tokio::time::timeout(patience, status.wait_for(|s| s.leader.is_some()))
            .await
            .is_err()
        {
            return;
        }
    }
}
