//! The Election service: candidates stand in a queue of keys whose values are their proposals; the first one leads.
//!
//! Source: etcd v3.7, api/v3election and client/v3/concurrency.

use std::pin::Pin;

use bytes::Bytes;
use futures_util::Stream;
use kv_proto::etcdserverpb::{ResponseHeader, WatchCreateRequest};
use kv_proto::mvccpb::KeyValue;
use kv_proto::mvccpb::event::EventType;
use kv_proto::v3electionpb::election_server::Election;
use kv_proto::v3electionpb::{
    CampaignRequest, CampaignResponse, LeaderKey, LeaderRequest, LeaderResponse, ProclaimRequest,
    ProclaimResponse, ResignRequest, ResignResponse,
};
use tokio::sync::mpsc;
use tokio_stream::wrappers::ReceiverStream;
use tonic::{Request, Response, Status};

use super::inside::{Caller, Inside, Next};
use super::queue::{self, Place, first_created, leave, prefix, prefix_end, revision_of, session};

/// Answers of an Observe that wait for the client.
const OBSERVED_AHEAD: usize = 1;

/// The service over a member's other services.
#[derive(Clone)]
pub(crate) struct ElectionService(pub(super) Inside);

type Observed = Result<LeaderResponse, Status>;

fn missing_leader_key() -> Status {
    Status::unknown("\"leader\" field must be provided")
}

fn not_leader() -> Status {
    Status::unknown("election: not leader")
}

/// Announces a value; the header of the write.
async fn proclaim(
    caller: &Caller,
    key: &Bytes,
    revision: i64,
    value: Bytes,
    lease: i64,
) -> Result<Option<ResponseHeader>, Status> {
    let request = queue::replace(key, revision, value, lease);
    let response = caller.txn(request).await?;
    if !response.succeeded {
        return Err(not_leader());
    }
    Ok(response.header)
}

#[tonic::async_trait]
impl Election for ElectionService {
    async fn campaign(
        &self,
        request: Request<CampaignRequest>,
    ) -> Result<Response<CampaignResponse>, Status> {
        let (caller, CampaignRequest { name, lease, value }) = self.0.for_caller(request);
        let lease = session(&caller, lease).await?;
        let place = Place::take(&caller, &name, lease, value.clone()).await?;
        if place.found.as_ref().is_some_and(|found| *found != value) {
            // The place goes with a proposal that cannot be made.
            proclaim(&caller, &place.key, place.revision, value, lease).await?;
        }
        if let Err(status) = place.turn().await {
            // The candidate stays; it may campaign again.
            place.keep();
            return Err(status);
        }
        let place = place.keep();
        Ok(Response::new(CampaignResponse {
            header: place.header,
            leader: Some(LeaderKey {
                name,
                key: place.key.clone(),
                rev: place.revision,
                lease,
            }),
        }))
    }

    async fn proclaim(
        &self,
        request: Request<ProclaimRequest>,
    ) -> Result<Response<ProclaimResponse>, Status> {
        let (caller, ProclaimRequest { leader, value }) = self.0.for_caller(request);
        let leader = leader.ok_or_else(missing_leader_key)?;
        let lease = session(&caller, leader.lease).await?;
        let header = proclaim(&caller, &leader.key, leader.rev, value, lease).await?;
        Ok(Response::new(ProclaimResponse { header }))
    }

    async fn leader(
        &self,
        request: Request<LeaderRequest>,
    ) -> Result<Response<LeaderResponse>, Status> {
        let (caller, LeaderRequest { name }) = self.0.for_caller(request);
        let mut response = caller.range(first_created(&prefix(&name))).await?;
        match response.kvs.pop() {
            Some(kv) => Ok(Response::new(LeaderResponse {
                header: response.header,
                kv: Some(kv),
            })),
            None => Err(Status::unknown("election: no leader")),
        }
    }

    type ObserveStream = Pin<Box<dyn Stream<Item = Observed> + Send>>;

    async fn observe(
        &self,
        request: Request<LeaderRequest>,
    ) -> Result<Response<Self::ObserveStream>, Status> {
        let (caller, LeaderRequest { name }) = self.0.for_caller(request);
        let (observed, answers) = mpsc::channel(OBSERVED_AHEAD);
        tokio::spawn(async move {
            let ended = tokio::select! {
                ended = observe(&caller, prefix(&name), &observed) => ended,
                () = observed.closed() => return,
            };
            if let Err(status) = ended {
                // Or the client has gone.
                let _ = observed.send(Err(status)).await;
            }
        });
        Ok(Response::new(Box::pin(ReceiverStream::new(answers))))
    }

    async fn resign(
        &self,
        request: Request<ResignRequest>,
    ) -> Result<Response<ResignResponse>, Status> {
        let (caller, ResignRequest { leader }) = self.0.for_caller(request);
        let leader = leader.ok_or_else(missing_leader_key)?;
        let header = caller.txn(leave(&leader.key, leader.rev)).await?.header;
        Ok(Response::new(ResignResponse { header }))
    }
}

/// Sends each leader and each of its proposals until the client goes away.
async fn observe(
    caller: &Caller,
    prefix: Bytes,
    observed: &mpsc::Sender<Observed>,
) -> Result<(), Status> {
    loop {
        let mut response = caller.range(first_created(&prefix)).await?;
        let revision = revision_of(&response);
        let first = match response.kvs.pop() {
            Some(kv) => Some((response.header, kv)),
            None => first_put(caller, &prefix, revision).await?,
        };
        // Or the history of the wait is gone: look again.
        let Some((header, kv)) = first else { continue };
        let key = kv.key.clone();
        let revision = header.as_ref().map_or(0, |header| header.revision);
        if send(observed, header, kv).await.is_err() {
            return Ok(());
        }
        let create = WatchCreateRequest {
            key,
            start_revision: revision + 1,
            ..Default::default()
        };
        let mut watch = caller.watch(create).await?;
        'leads: while let Next::Events(response) = watch.next().await? {
            for event in response.events {
                if event.r#type() == EventType::Delete {
                    break 'leads;
                }
                let kv = event.kv.unwrap_or_default();
                if send(observed, response.header, kv).await.is_err() {
                    return Ok(());
                }
            }
        }
    }
}

async fn send(
    observed: &mpsc::Sender<Observed>,
    header: Option<ResponseHeader>,
    kv: KeyValue,
) -> Result<(), mpsc::error::SendError<Observed>> {
    let response = LeaderResponse {
        header,
        kv: Some(kv),
    };
    observed.send(Ok(response)).await
}

/// Waits for the first candidate of an empty queue; none if what happened since `start_revision` is not known any more.
async fn first_put(
    caller: &Caller,
    prefix: &Bytes,
    start_revision: i64,
) -> Result<Option<(Option<ResponseHeader>, KeyValue)>, Status> {
    let create = WatchCreateRequest {
        key: prefix.clone(),
        range_end: prefix_end(prefix),
        start_revision,
        ..Default::default()
    };
    let mut watch = caller.watch(create).await?;
    while let Next::Events(response) = watch.next().await? {
        for event in response.events {
            if event.r#type() != EventType::Put {
                continue;
            }
            let kv = event.kv.unwrap_or_default();
            let header = response.header.map(|header| ResponseHeader {
                revision: kv.mod_revision,
                ..header
            });
            return Ok(Some((header, kv)));
        }
    }
    Ok(None)
}
