//! The members of the cluster.

use kv_proto::etcdserverpb::{
    MemberAddRequest, MemberAddResponse, MemberListRequest, MemberListResponse,
    MemberPromoteRequest, MemberPromoteResponse, MemberRemoveRequest, MemberRemoveResponse,
    MemberUpdateRequest, MemberUpdateResponse, cluster_client::ClusterClient,
};

use crate::{Client, error::Result, retry::Repeat};

impl Client {
    /// All members. A linearizable list needs a quorum; the other kind is what the asked member knows.
    pub async fn member_list(&self, request: MemberListRequest) -> Result<MemberListResponse> {
        self.call(Repeat::Always, request, |c, q| async move {
            ClusterClient::new(c).member_list(q).await
        })
        .await
    }

    /// Adds a member, to be started afterwards; the answer has its id.
    pub async fn member_add(&self, request: MemberAddRequest) -> Result<MemberAddResponse> {
        self.call(Repeat::IfNotSent, request, |c, q| async move {
            ClusterClient::new(c).member_add(q).await
        })
        .await
    }

    /// Removes a member for good: its id never comes back.
    pub async fn member_remove(&self, id: u64) -> Result<MemberRemoveResponse> {
        let request = MemberRemoveRequest { id };
        self.call(Repeat::IfNotSent, request, |c, q| async move {
            ClusterClient::new(c).member_remove(q).await
        })
        .await
    }

    /// Changes the URLs at which the other members reach this one.
    pub async fn member_update(
        &self,
        request: MemberUpdateRequest,
    ) -> Result<MemberUpdateResponse> {
        self.call(Repeat::IfNotSent, request, |c, q| async move {
            ClusterClient::new(c).member_update(q).await
        })
        .await
    }

    /// Makes a learner a voter.
    pub async fn member_promote(&self, id: u64) -> Result<MemberPromoteResponse> {
        let request = MemberPromoteRequest { id };
        self.call(Repeat::IfNotSent, request, |c, q| async move {
            ClusterClient::new(c).member_promote(q).await
        })
        .await
    }
}
