//! Who the members are, what they tell about themselves, and what the cluster agreed on, as entries.
//!
//! A command that changes raft's membership comes in the same entry as that membership and was checked by the leader
//! before; here it only keeps the table in step.

use std::io;

use kv_mvcc::backend::Op;
use kv_proto::command::Body;
use kv_proto::commandpb::{
    ClusterBegin, ClusterVersionSet, DowngradeSet, InitialMember, MemberAdd, MemberPublish,
    MemberUpdate,
};

use super::{Applier, Outcome, Response};
use crate::build;
use crate::cluster::{Member, Version};

impl Applier {
    /// Brings the member table in step with a change of raft's membership; returns what to store.
    pub(super) fn change_members(&mut self, change: Body) -> io::Result<Vec<Op>> {
        let cluster = &self.cluster;
        let known = |id| cluster.member(id).filter(|_| !cluster.is_removed(id));
        let ops = match change {
            Body::MemberAdd(MemberAdd {
                id,
                peer_urls,
                is_learner,
            }) => {
                vec![cluster.put(Member {
                    id,
                    peer_urls,
                    is_learner,
                    ..Default::default()
                })]
            }
            Body::MemberPromote(request) => known(request.id)
                .map(|member| {
                    cluster.put(Member {
                        is_learner: false,
                        ..member
                    })
                })
                .into_iter()
                .collect(),
            Body::MemberRemove(request) => {
                if request.id == self.member_id {
                    self.removed.cancel();
                }
                cluster.remove(request.id).into()
            }
            Body::ClusterForce(request) => {
                let members = cluster.members().into_iter().map(|member| member.id);
                let others: Vec<u64> = members.filter(|id| *id != request.id).collect();
                let mut ops: Vec<Op> = others
                    .into_iter()
                    .flat_map(|id| cluster.remove(id))
                    .collect();
                if let Some(alone) = known(request.id) {
                    ops.push(cluster.put(Member {
                        is_learner: false,
                        ..alone
                    }));
                }
                ops
            }
            other => {
                return Err(io::Error::other(format!(
                    "command {} cannot change raft's membership",
                    other.name()
                )));
            }
        };
        Ok(ops)
    }

    pub(super) fn member_update(&mut self, request: MemberUpdate, mut extra: Vec<Op>) -> Outcome {
        if let Some(known) = self.cluster.member(request.id) {
            extra.push(self.cluster.put(Member {
                peer_urls: request.peer_urls,
                ..known
            }));
        }
        self.store.write(self.mark(extra)).commit();
        Ok(Response::Done)
    }

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
    ) -> io::Result<Outcome> {
        let version = version(&request.version)?;
        if version > build::cluster_version() {
            return Err(io::Error::other(too_new(version)));
        }
        extra.push(self.cluster.set_version(version));
        self.store.write(self.mark(extra)).commit();
        Ok(Ok(Response::Done))
    }

    pub(super) fn downgrade_set(
        &mut self,
        request: DowngradeSet,
        mut extra: Vec<Op>,
    ) -> io::Result<Outcome> {
        let target = match request.target_version.as_str() {
            "" => None,
            text => Some(version(text)?),
        };
        extra.push(self.cluster.set_downgrade(target));
        self.store.write(self.mark(extra)).commit();
        Ok(Ok(Response::Done))
    }
}

/// Why a member of this build has no place in a cluster of version `needed`.
pub(crate) fn too_new(needed: Version) -> String {
    format!(
        "the cluster is at version {needed}, and this build serves clusters up to {}: start a build that supports {needed}",
        build::cluster_version()
    )
}

fn version(text: &str) -> io::Result<Version> {
    text.parse().map_err(io::Error::other)
}
