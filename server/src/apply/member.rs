//! What members tell about themselves, and what the cluster agreed on, as entries.

use kv_mvcc::backend::Op;
use kv_proto::commandpb::{ClusterVersionSet, MemberPublish};

use super::{Applier, Outcome, Response};
use crate::cluster::Member;

impl Applier {
    pub(super) fn member_publish(&mut self, request: MemberPublish, mut extra: Vec<Op>) -> Outcome {
        let known = self.cluster.member(request.member_id).unwrap_or_default();
        extra.push(self.cluster.put(Member {
            id: request.member_id,
            name: request.name,
            peer_urls: request.peer_urls,
            client_urls: request.client_urls,
            is_learner: known.is_learner,
            incarnation: known.incarnation,
        }));
        self.store.write(self.mark(extra)).commit();
        Ok(Response::Done)
    }

    pub(super) fn cluster_version_set(
        &mut self,
        request: ClusterVersionSet,
        mut extra: Vec<Op>,
    ) -> Outcome {
        extra.push(self.cluster.set_version(&request.version));
        self.store.write(self.mark(extra)).commit();
        Ok(Response::Done)
    }
}
