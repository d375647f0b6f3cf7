//! The members of the cluster.

use kv_proto::etcdserverpb::{
    MemberListRequest, MemberListResponse, cluster_client::ClusterClient,
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
}
