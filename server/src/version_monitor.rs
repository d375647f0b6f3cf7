//! While this member leads: keeps the cluster version what the members' builds allow, and ends a downgrade that is done.
//!
//! Members tell the version of their build in each handshake; what a member that does not answer runs is not known, and
//! nothing goes up meanwhile. Source: etcd v3.7, etcdserver/version/monitor.go.

use std::sync::Arc;
use std::time::Duration;

use kv_proto::command::Body;
use kv_proto::commandpb::{ClusterBegin, ClusterVersionSet, DowngradeSet, InitialMember};
use tokio::time::{Instant, sleep_until};

use crate::build;
use crate::cluster::{Version, VersionView};
use crate::member::Member;

/// Time between two looks at the members' versions. Source: etcd v3.7, monitorVersionInterval.
const PERIOD: Duration = Duration::from_secs(4);
/// The same while the members of a new cluster have not met.
const FIRST_PERIOD: Duration = Duration::from_millis(250);

/// Runs until the member stops.
pub(crate) async fn run(member: Arc<Member>) {
    let mut status = member.node.watch_status();
    let mut next = Instant::now();
    loop {
        tokio::select! {
            () = sleep_until(next) => {}
            changed = status.changed() => if changed.is_err() { return },
            () = member.stopping.cancelled() => return,
        }
        let is_settled = member
            .cluster
            .version()
            .is_some_and(|version| version > Version::UNKNOWN);
        next = Instant::now() + if is_settled { PERIOD } else { FIRST_PERIOD };
        if member.is_leader() {
            look(&member).await;
        }
    }
}

async fn look(member: &Member) {
    // What follows from this look is for this term: another leader may have seen and decided other things.
    let Some(term) = member.leading_term() else {
        return;
    };
    let cluster = &member.cluster;
    let builds = builds(member);
    let view = VersionView {
        current: cluster.version(),
        least: builds
            .as_ref()
            .and_then(|builds| builds.iter().min().copied()),
        downgrade: cluster.downgrade(),
    };
    let mut bodies = Vec::new();
    if view.current.is_none() {
        bodies.push(first_members(member));
    }
    let decided = view.decide();
    if let Some(version) = decided {
        let version = version.to_string();
        bodies.push(Body::ClusterVersionSet(ClusterVersionSet { version }));
    }
    let is_done = |target| builds.is_some_and(|builds| builds.iter().all(|build| *build == target));
    let ends = view
        .downgrade
        .filter(|target| view.current == Some(*target) && is_done(*target));
    if ends.is_some() {
        bodies.push(Body::DowngradeSet(DowngradeSet::default()));
    }
    if bodies.is_empty() {
        return;
    }
    match member.proposer.propose_all_in_term(term, bodies).await {
        Ok(()) => {
            if let Some(version) = decided {
                tracing::info!(version = %version, "the cluster version is set");
            }
            if let Some(version) = ends {
                tracing::info!(version = %version, "the cluster has been downgraded");
            }
        }
        Err(error) => tracing::warn!(%error, "could not set the cluster version yet"),
    }
}

/// Versions of all members' builds; none while one has not told its own.
fn builds(member: &Member) -> Option<Vec<Version>> {
    let members = member.cluster.members();
    let builds = members.iter().map(|row| {
        if row.id == member.id {
            return Some(build::cluster_version());
        }
        member.transport.version_of(row.id)
    });
    builds.collect()
}

/// Names the members that began the cluster, for those who come later.
fn first_members(member: &Member) -> Body {
    let members = member.cluster.members().into_iter();
    let members = members.map(|member| InitialMember {
        id: member.id,
        name: member.name,
        peer_urls: member.peer_urls,
    });
    Body::ClusterBegin(ClusterBegin {
        members: members.collect(),
    })
}
