//! The standard gRPC health service, under etcd's one service name, "".

use std::collections::HashMap;
use std::pin::Pin;
use std::sync::Arc;

use futures_util::Stream;
use futures_util::stream::unfold;
use kv_proto::health::health_check_response::ServingStatus;
use kv_proto::health::health_server::Health;
use kv_proto::health::{
    HealthCheckRequest, HealthCheckResponse, HealthListRequest, HealthListResponse,
};
use tonic::{Request, Response, Status};

use crate::Error;
use crate::member::Member;

/// The service over a member.
#[derive(Clone)]
pub(crate) struct HealthService(pub(crate) Arc<Member>);

fn response(status: ServingStatus) -> HealthCheckResponse {
    HealthCheckResponse {
        status: status as i32,
    }
}

#[tonic::async_trait]
impl Health for HealthService {
    async fn check(
        &self,
        request: Request<HealthCheckRequest>,
    ) -> Result<Response<HealthCheckResponse>, Status> {
        if request.into_inner().service.is_empty() {
            Ok(Response::new(response(ServingStatus::Serving)))
        } else {
            Err(Status::not_found("unknown service"))
        }
    }

    async fn list(
        &self,
        _: Request<HealthListRequest>,
    ) -> Result<Response<HealthListResponse>, Status> {
        let statuses = HashMap::from([(String::new(), response(ServingStatus::Serving))]);
        Ok(Response::new(HealthListResponse { statuses }))
    }

    type WatchStream = Pin<Box<dyn Stream<Item = Result<HealthCheckResponse, Status>> + Send>>;

    async fn watch(
        &self,
        request: Request<HealthCheckRequest>,
    ) -> Result<Response<Self::WatchStream>, Status> {
        let known = request.into_inner().service.is_empty();
        let first = if known {
            ServingStatus::Serving
        } else {
            ServingStatus::ServiceUnknown
        };
        let state = (Some(first), self.0.clone());
        // One answer now; the next change is the end.
        let answers = unfold(Some(state), |state| async move {
            let (first, member) = state?;
            if let Some(status) = first {
                return Some((Ok(response(status)), Some((None, member))));
            }
            member.stopping.cancelled().await;
            Some((Err(Error::Stopped.into()), None))
        });
        Ok(Response::new(Box::pin(answers)))
    }
}
