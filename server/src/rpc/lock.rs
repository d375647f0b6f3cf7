//! The Lock service: a lock is a queue of keys, and the first one holds it.
//!
//! Source: etcd v3.7, api/v3lock and client/v3/concurrency.

use bytes::Bytes;
use kv_proto::etcdserverpb::RangeRequest;
use kv_proto::v3lockpb::lock_server::Lock;
use kv_proto::v3lockpb::{LockRequest, LockResponse, UnlockRequest, UnlockResponse};
use tonic::{Request, Response, Status};

use super::inside::Inside;
use super::queue::{Place, session};

/// The service over a member's other services.
#[derive(Clone)]
pub(crate) struct LockService(pub(super) Inside);

#[tonic::async_trait]
impl Lock for LockService {
    async fn lock(&self, request: Request<LockRequest>) -> Result<Response<LockResponse>, Status> {
        let (caller, LockRequest { name, lease }) = self.0.for_caller(request);
        let lease = session(&caller, lease).await?;
        let place = Place::take(&caller, &name, lease, Bytes::new()).await?;
        if place.is_first {
            let place = place.keep();
            return Ok(Response::new(LockResponse {
                header: place.header,
                key: place.key.clone(),
            }));
        }
        place.turn().await?;
        // The lease may have ended while the caller waited.
        let own = RangeRequest {
            key: place.key.clone(),
            ..Default::default()
        };
        let own = caller.range(own).await?;
        let place = place.keep();
        if own.kvs.is_empty() {
            return Err(Status::unknown("mutex: session is expired"));
        }
        Ok(Response::new(LockResponse {
            header: own.header,
            key: place.key.clone(),
        }))
    }

    async fn unlock(
        &self,
        request: Request<UnlockRequest>,
    ) -> Result<Response<UnlockResponse>, Status> {
        let (caller, UnlockRequest { key }) = self.0.for_caller(request);
        let header = caller.delete(key).await?.header;
        Ok(Response::new(UnlockResponse { header }))
    }
}
