//! What a member tells its cluster once it runs: its name, its client URLs, and, when it leads, the cluster's version.

use std::sync::Arc;
use std::time::Duration;

use kv_proto::command::Body;
use kv_proto::commandpb::{ClusterBegin, ClusterVersionSet, InitialMember, MemberPublish};
use tokio::sync::oneshot;

use crate::config::Url;
use crate::member::{CLUSTER_VERSION, Member};

/// Pause after an attempt that failed; the attempt itself waits for a leader.
const PAUSE: Duration = Duration::from_millis(100);
/// Time between two looks of the leader at the cluster version. Source: etcd v3.7, monitorVersionInterval.
const VERSION_PERIOD: Duration = Duration::from_secs(4);

/// Publishes this member's name and client URLs until it succeeds, then says so.
pub(crate) async fn publish(member: Arc<Member>, incarnation: u64, published: oneshot::Sender<()>) {
    let text = |urls: &[Url]| urls.iter().map(ToString::to_string).collect();
    let request = MemberPublish {
        member_id: member.id,
        name: member.config.name.clone(),
        peer_urls: text(&member.config.initial_advertise_peer_urls),
        client_urls: text(&member.config.advertise_client_urls),
        incarnation,
    };
    loop {
        let body = Body::MemberPublish(request.clone());
        let proposed = tokio::select! {
            proposed = member.proposer.propose(body) => proposed.map(drop),
            () = in_table(&member, &request) => Ok(()),
            () = member.stopping.cancelled() => return,
        };
        match proposed {
            Ok(()) => break,
            // Publishing twice is the same as once.
            Err(error) => {
                tracing::warn!(%error, "could not publish this member to its cluster yet");
                tokio::time::sleep(PAUSE).await;
            }
        }
    }
    tracing::info!(name = request.name, "published this member to its cluster");
    // Nobody waits any more if it took long.
    let _ = published.send(());
}

/// Waits until entries were applied and the member table shows what is to be published.
///
/// A member that is being caught up may find its own entry in the snapshot: then nothing else answers the proposal.
async fn in_table(member: &Member, published: &MemberPublish) {
    let mut applied = member.node.watch_applied();
    while applied.changed().await.is_ok() {
        let shown = member.cluster.member(member.id);
        if shown.is_some_and(|row| {
            row.name == published.name && row.client_urls == published.client_urls
        }) {
            return;
        }
    }
    std::future::pending().await
}

/// While this member leads: names the first members and sets the cluster version. Runs until the member stops.
pub(crate) async fn set_version(member: Arc<Member>) {
    let mut ticks = tokio::time::interval(VERSION_PERIOD);
    let mut status = member.node.watch_status();
    loop {
        tokio::select! {
            _ = ticks.tick() => {}
            changed = status.changed() => if changed.is_err() { return },
            () = member.stopping.cancelled() => return,
        }
        if !member.is_leader() || member.cluster.version().as_deref() == Some(CLUSTER_VERSION) {
            continue;
        }
        let mut bodies = Vec::new();
        if member.cluster.version().is_none() {
            let members = member.cluster.members().into_iter();
            let members = members.map(|member| InitialMember {
                id: member.id,
                name: member.name,
                peer_urls: member.peer_urls,
            });
            bodies.push(Body::ClusterBegin(ClusterBegin {
                members: members.collect(),
            }));
        }
        bodies.push(Body::ClusterVersionSet(ClusterVersionSet {
            version: CLUSTER_VERSION.into(),
        }));
        match member.proposer.propose_all(bodies).await {
            Ok(()) => tracing::info!(version = CLUSTER_VERSION, "the cluster version is set"),
            Err(error) => tracing::warn!(%error, "could not set the cluster version yet"),
        }
    }
}
