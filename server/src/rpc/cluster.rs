//! The Cluster service: who the members are, and changes of that.
//!
//! Any member takes a change; the leader checks and makes it (`reconfigure.rs`), and it is answered when this member
//! has applied it. Responses carry no revision.

use std::sync::Arc;

use kv_proto::commandpb;
use kv_proto::commandpb::{answer::Answer, question::Question};
use kv_proto::etcdserverpb::cluster_server::Cluster;
use kv_proto::etcdserverpb::{
    self, MemberAddRequest, MemberAddResponse, MemberListRequest, MemberListResponse,
    MemberPromoteRequest, MemberPromoteResponse, MemberRemoveRequest, MemberRemoveResponse,
    MemberUpdateRequest, MemberUpdateResponse, ResponseHeader,
};
use tonic::{Request, Response, Status};

use super::credentials;
use crate::config::Url;
use crate::member::Member;
use crate::{Error, clock, cluster, leader, reconfigure};

/// The service over a member.
#[derive(Clone)]
pub(crate) struct ClusterService(pub(crate) Arc<Member>);

impl ClusterService {
    fn header(&self) -> Option<ResponseHeader> {
        Some(self.0.header(0))
    }

    /// Has the leader make `change`, and waits until this member has applied it.
    async fn change(&self, change: Question) -> crate::Result<()> {
        let removed = match &change {
            Question::MemberRemove(request) => Some(request.id),
            _ => None,
        };
        let Answer::Changed(index) = leader::ask(&self.0, change).await? else {
            return Err(Error::Timeout);
        };
        // A member that is out of the cluster may never be sent the entry that says so.
        if removed == Some(self.0.id) {
            return Ok(());
        }
        let applied = self.0.node.wait_applied(index);
        match tokio::time::timeout(self.0.config.request_timeout(), applied).await {
            Ok(applied) => applied.map_err(|_| Error::Stopped),
            Err(_) => Err(Error::Timeout),
        }
    }

    /// The members, without `removed`, which this member may still know.
    fn members_without(&self, removed: u64) -> Vec<etcdserverpb::Member> {
        let mut members = self.0.cluster.list();
        members.retain(|member| member.id != removed);
        members
    }
}

#[tonic::async_trait]
impl Cluster for ClusterService {
    async fn member_list(
        &self,
        request: Request<MemberListRequest>,
    ) -> Result<Response<MemberListResponse>, Status> {
        let credentials = credentials(&request);
        if request.into_inner().linearizable {
            self.0.reads.linearizable().await?;
        }
        self.0.named(&credentials).await?;
        Ok(Response::new(MemberListResponse {
            header: self.header(),
            members: self.0.cluster.list(),
        }))
    }

    async fn member_add(
        &self,
        request: Request<MemberAddRequest>,
    ) -> Result<Response<MemberAddResponse>, Status> {
        let credentials = credentials(&request);
        let MemberAddRequest {
            peer_ur_ls,
            is_learner,
        } = request.into_inner();
        let mut peer_urls = checked_urls(&peer_ur_ls)?;
        peer_urls.sort();
        self.0.admin(&credentials).await?;
        let added_at = clock::wall_ms() / 1000;
        let id = cluster::member_id(&peer_urls, &added_at.to_string());
        let change = Question::MemberAdd(commandpb::MemberAdd {
            id,
            peer_urls: peer_urls.clone(),
            is_learner,
        });
        reconfigure::check_without_leader(&self.0, &change)?;
        self.change(change).await?;
        let member = etcdserverpb::Member {
            id,
            peer_ur_ls: peer_urls,
            is_learner,
            ..Default::default()
        };
        Ok(Response::new(MemberAddResponse {
            header: self.header(),
            member: Some(member),
            members: self.0.cluster.list(),
        }))
    }

    async fn member_remove(
        &self,
        request: Request<MemberRemoveRequest>,
    ) -> Result<Response<MemberRemoveResponse>, Status> {
        self.0.admin(&credentials(&request)).await?;
        let id = request.into_inner().id;
        self.change(Question::MemberRemove(commandpb::MemberRemove { id }))
            .await?;
        Ok(Response::new(MemberRemoveResponse {
            header: self.header(),
            members: self.members_without(id),
        }))
    }

    async fn member_update(
        &self,
        request: Request<MemberUpdateRequest>,
    ) -> Result<Response<MemberUpdateResponse>, Status> {
        let credentials = credentials(&request);
        let MemberUpdateRequest { id, peer_ur_ls } = request.into_inner();
        let peer_urls = checked_urls(&peer_ur_ls)?;
        self.0.admin(&credentials).await?;
        self.change(Question::MemberUpdate(commandpb::MemberUpdate {
            id,
            peer_urls,
        }))
        .await?;
        Ok(Response::new(MemberUpdateResponse {
            header: self.header(),
            members: self.0.cluster.list(),
        }))
    }

    async fn member_promote(
        &self,
        request: Request<MemberPromoteRequest>,
    ) -> Result<Response<MemberPromoteResponse>, Status> {
        self.0.admin(&credentials(&request)).await?;
        let id = request.into_inner().id;
        self.change(Question::MemberPromote(commandpb::MemberPromote { id }))
            .await?;
        Ok(Response::new(MemberPromoteResponse {
            header: self.header(),
            members: self.0.cluster.list(),
        }))
    }
}

/// `urls` if each is one that a peer can be reached at and there is at least one. Those of a new member are then sorted,
/// those of an update stay in the order given, as in etcd.
fn checked_urls(urls: &[String]) -> crate::Result<Vec<String>> {
    if urls.is_empty() {
        return Err(Error::BadPeerUrls);
    }
    let parsed = urls.iter().map(|url| url.parse::<Url>());
    parsed
        .map(|url| url.map(|url| url.to_string()))
        .collect::<Result<_, _>>()
        .map_err(|_| Error::BadPeerUrls)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn peer_urls_are_checked_and_keep_their_order() {
        let check = |urls: &[&str]| {
            let urls: Vec<String> = urls.iter().map(ToString::to_string).collect();
            checked_urls(&urls)
        };
        let given = vec!["http://b:1".to_owned(), "http://a:1".to_owned()];
        assert_eq!(check(&["http://b:1", "http://a:1"]), Ok(given));
        for bad in [
            &[][..],
            &[""],
            &["a:1"],
            &["http://a"],
            &["http://a:1/x"],
            &["ftp://a:1"],
            &["http://a b:1"],
        ] {
            assert_eq!(check(bad), Err(Error::BadPeerUrls), "{bad:?}");
        }
    }
}
