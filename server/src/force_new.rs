//! `--force-new-cluster`: the last resort of a cluster that lost its quorum for good.
//!
//! Before raft starts, the log of this member is made to say that it is the only one (`kv_raft::force_alone`); applying
//! that entry takes the others out of the member table and remembers their ids, so that they are refused should they come
//! back. Ids and data stay. Given again to a member that is alone, the flag does nothing.
//!
//! Unlike etcd, a member whose cluster still has a quorum is not torn out of it: a flag forgotten in a unit file would
//! split the cluster at the next restart.

use anyhow::{Context, Result, bail};
use kv_mvcc::backend::Backend;
use kv_proto::command::{Body, Caller, Command};
use kv_proto::commandpb::ClusterForce;
use kv_wal::{Recovered, Wal};

use crate::apply;
use crate::cluster::{Cluster, Member};
use crate::config::Url;
use crate::peer::{Connector, fetch_cluster};

/// Who is to go on alone.
pub(crate) struct Own<'a> {
    pub(crate) identity: kv_wal::Identity,
    pub(crate) cluster: &'a Cluster,
    pub(crate) connector: &'a Connector,
}

/// Makes this member the only one. Returns the index of the entry that says so; none if there is nothing to do.
pub(crate) async fn run(
    own: &Own<'_>,
    wal: &Wal,
    recovered: &mut Recovered,
    backend: &Backend,
) -> Result<Option<u64>> {
    let kv_wal::Identity { member_id, .. } = own.identity;
    let applied = apply::recorded(backend).context("cannot read how far the database is")?;
    if recovered.entries.is_empty() && applied.index == 0 {
        tracing::warn!("--force-new-cluster has nothing to force: this folder holds no log yet");
        return Ok(None);
    }
    let others: Vec<Member> = own
        .cluster
        .members()
        .into_iter()
        .filter(|member| member.id != member_id)
        .collect();
    let answering = ask(own, &others).await;
    let voting = |id: u64| {
        let member = others.iter().find(|member| member.id == id);
        member.is_some_and(|member| !member.is_learner)
    };
    let voters = 1 + others.iter().filter(|member| voting(member.id)).count();
    if 1 + answering.iter().filter(|id| voting(**id)).count() > voters / 2 && voters > 1 {
        bail!(
            "--force-new-cluster is for a cluster that lost its quorum for good, and {} of the other members answer{}: {}. \
             Remove the flag and start this member again; if that is really meant, stop the others first",
            answering.len(),
            if answering.len() == 1 { "s" } else { "" },
            hex(&answering)
        );
    }
    let command = Command {
        origin: member_id,
        request_id: 0,
        caller: Caller::Nobody,
        body: Body::ClusterForce(ClusterForce { id: member_id }),
    };
    let forced = kv_raft::force_alone(member_id, wal, recovered, &applied, command.encode()).await;
    let forced = forced.context("cannot write the new membership to the log")?;
    match forced {
        Some(index) => {
            let lost: Vec<u64> = others.iter().map(|member| member.id).collect();
            tracing::warn!(
                member = format!("{member_id:x}"),
                index,
                removed = hex(&lost),
                answering = hex(&answering),
                "forced a new cluster: this member goes on alone, the others are removed for ever"
            );
        }
        None => tracing::info!("--force-new-cluster has nothing to force: this member is alone"),
    }
    Ok(forced)
}

/// Ids of the others whose place serves this cluster.
async fn ask(own: &Own<'_>, others: &[Member]) -> Vec<u64> {
    let mut answering = Vec::new();
    for member in others {
        let urls = member
            .peer_urls
            .iter()
            .filter_map(|url| url.parse::<Url>().ok());
        for url in urls {
            let fetched = fetch_cluster(own.connector, &url).await;
            if fetched.is_ok_and(|remote| remote.id == own.identity.cluster_id) {
                answering.push(member.id);
                break;
            }
        }
    }
    answering
}

fn hex(ids: &[u64]) -> String {
    let ids: Vec<String> = ids.iter().map(|id| format!("{id:x}")).collect();
    ids.join(",")
}
