//! The way back to the release before: the cluster goes down one minor version, members follow one by one.
//!
//! While a downgrade is enabled the leader sets the cluster version to its target (`version_monitor.rs`): nothing is
//! proposed any more that the builds before cannot apply, and they are let in. When all members run them, the leader
//! ends the downgrade. Source: etcd v3.7, etcdserver/version/manager.go and v3_server.go.

use kv_proto::command::Body;
use kv_proto::commandpb::DowngradeSet;

use crate::cluster::Version;
use crate::member::Member;
use crate::{Error, Result};

/// Checks that the cluster could go down to `target`; returns the cluster version.
pub(crate) async fn validate(member: &Member, target: &str) -> Result<Version> {
    let target = parse(target)?;
    check(member, target).await
}

/// Begins to go down to `target`; returns the cluster version.
pub(crate) async fn enable(member: &Member, target: &str) -> Result<Version> {
    let target = parse(target)?;
    check(member, target).await?;
    set(member, target.to_string()).await?;
    tracing::warn!(target = %target, "a downgrade of the cluster is enabled");
    version(member)
}

/// Ends a downgrade; returns the cluster version. That there is none, or that it could not be ended, is logged and not
/// told, as etcd does.
pub(crate) async fn cancel(member: &Member) -> Result<Version> {
    if let Err(error) = try_cancel(member).await {
        tracing::warn!(%error, "could not cancel the downgrade");
    }
    version(member)
}

async fn try_cancel(member: &Member) -> Result<()> {
    member.reads.linearizable().await?;
    if member.cluster.downgrade().is_none() {
        return Err(Error::NoInflightDowngrade);
    }
    set(member, String::new()).await
}

async fn check(member: &Member, target: Version) -> Result<Version> {
    // What was agreed on before the call counts.
    member.reads.linearizable().await?;
    let version = version(member)?;
    if version.before() != Some(target) {
        return Err(Error::InvalidDowngradeTargetVersion);
    }
    if member.cluster.downgrade().is_some() {
        return Err(Error::DowngradeInProcess);
    }
    Ok(version)
}

async fn set(member: &Member, target_version: String) -> Result<()> {
    let body = Body::DowngradeSet(DowngradeSet { target_version });
    member.proposer.propose(body).await.map(drop)
}

fn parse(target: &str) -> Result<Version> {
    target
        .parse()
        .map_err(|_| Error::WrongDowngradeVersionFormat)
}

fn version(member: &Member) -> Result<Version> {
    member
        .cluster
        .version()
        .ok_or(Error::ClusterVersionUnavailable)
}
