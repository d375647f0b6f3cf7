//! The Cluster service: who the members are. Changing them is not available yet.

use std::sync::Arc;

use kv_proto::etcdserverpb::cluster_server::Cluster;
use kv_proto::etcdserverpb::{
    MemberAddRequest, MemberAddResponse, MemberListRequest, MemberListResponse,
    MemberPromoteRequest, MemberPromoteResponse, MemberRemoveRequest, MemberRemoveResponse,
    MemberUpdateRequest, MemberUpdateResponse,
};
use tonic::{Request, Response, Status};

use crate::Error;
use crate::member::Member;

/// The service over a member.
#[derive(Clone)]
pub(crate) struct ClusterService(pub(crate) Arc<Member>);

fn unavailable() -> Status {
    Error::Unimplemented(
        "kvd: this build serves clusters of one member; changing members is not available yet",
    )
    .into()
}

#[tonic::async_trait]
impl Cluster for ClusterService {
    async fn member_list(
        &self,
        request: Request<MemberListRequest>,
    ) -> Result<Response<MemberListResponse>, Status> {
        if request.into_inner().linearizable {
            self.0.reads.linearizable().await?;
        }
        // Cluster responses carry no revision.
        let header = Some(self.0.header(0));
        Ok(Response::new(MemberListResponse {
            header,
            members: self.0.cluster.list(),
        }))
    }

    async fn member_add(
        &self,
        _: Request<MemberAddRequest>,
    ) -> Result<Response<MemberAddResponse>, Status> {
        Err(unavailable())
    }

    async fn member_remove(
        &self,
        _: Request<MemberRemoveRequest>,
    ) -> Result<Response<MemberRemoveResponse>, Status> {
        Err(unavailable())
    }

    async fn member_update(
        &self,
        _: Request<MemberUpdateRequest>,
    ) -> Result<Response<MemberUpdateResponse>, Status> {
        Err(unavailable())
    }

    async fn member_promote(
        &self,
        _: Request<MemberPromoteRequest>,
    ) -> Result<Response<MemberPromoteResponse>, Status> {
        Err(unavailable())
    }
}
