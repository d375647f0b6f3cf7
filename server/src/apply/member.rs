//! What members tell about themselves, and what the cluster agreed on, as entries.

use kv_mvcc::backend::Op;
use kv_proto::commandpb::{ClusterBegin, ClusterVersionSet, InitialMember, MemberPublish};

use super::{Applier, Outcome, Response};
use crate::cluster::Member;

impl Applier {
    pub(super) fn member_publish(&mut self, request: MemberPublish, mut extra: Vec<Op>) -> Outcome {
        if !self.cluster.is_removed(request.member_id) {
            let known = self.cluster.member(request.member_id).unwrap_or_default();
            let unless = |known: Vec<String>, new| if known.is_empty() { new } else { known };
            extra.push(self.cluster.put(Member {
                id: request.member_id,
                name: request.name,
                // Where peers reach it is for the cluster to change, not for the member's flags.
                peer_urls: unless(known.peer_urls, request.peer_urls),
                client_urls: request.client_urls,
                is_learner: known.is_learner,
                incarnation: match known.incarnation {
                    0 => request.incarnation,
                    first => first,
                },
            }));
        }
        self.store.write(self.mark(extra)).commit();
        Ok(Response::Done)
    }

    pub(super) fn cluster_begin(&mut self, request: ClusterBegin, mut extra: Vec<Op>) -> Outcome {
        for InitialMember {
            id,
            name,
            peer_urls,
        } in request.members
        {
            let is_known = self.cluster.member(id).is_some();
            if !is_known && !self.cluster.is_removed(id) {
                extra.push(self.cluster.put(Member {
                    id,
                    name,
                    peer_urls,
                    ..Default::default()
                }));
            }
        }
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
