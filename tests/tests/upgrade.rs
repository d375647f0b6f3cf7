//! Members of two builds in one cluster: it goes up when all can, down by request, and nobody meets what it cannot apply.

#![allow(clippy::unwrap_used)] // All of this is tests.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};

use anyhow::{Context, Result, ensure};
use kv_proto::etcdserverpb::cluster_client::ClusterClient;
use kv_proto::etcdserverpb::downgrade_request::DowngradeAction;
use kv_proto::etcdserverpb::maintenance_client::MaintenanceClient;
use kv_proto::etcdserverpb::{DowngradeRequest, DowngradeResponse, MemberAddRequest};
use kv_tests::cluster::{Cluster, until};
use tonic::{Code, Status};

/// The next release.
const NEXT: Option<&str> = Some(env!("CARGO_BIN_EXE_kvd-next"));
/// A put of such a key needs the next release.
const LATER_KEY: &str = "later/key";

/// What a member says the cluster's version is.
async fn version(cluster: &Cluster, n: usize) -> Result<String> {
    let page = cluster.page(n, "/version").await?;
    let (_, rest) = page
        .split_once("\"etcdcluster\":\"")
        .context("no version")?;
    Ok(rest.split('"').next().context("no end")?.to_owned())
}

async fn version_becomes(cluster: &Cluster, expect: &str) -> Result<()> {
    until(&format!("version {expect}"), || async {
        for n in cluster.running() {
            let version = version(cluster, n).await?;
            ensure!(version == expect, "member {n} says {version}");
        }
        Ok(())
    })
    .await
}

/// Stops each member in turn and starts it with another program, while clients write through the others.
async fn roll(cluster: &mut Cluster, program: Option<&str>, before_last: &str) -> Result<()> {
    let count = cluster.running().len();
    for n in 0..count {
        assert!(cluster.terminate(n).success());
        cluster.set_program(n, program);
        let other = (n + 1) % count;
        // The others go on; what is refused while leadership moves is tried again.
        for number in 0..20 {
            let key = format!("rolling {n} {number}");
            until("a write", || cluster.put(other, &key, "1")).await?;
        }
        cluster.start_member(n);
        until("the member to serve", || cluster.put(n, "back", "1")).await?;
        if n + 1 < count {
            assert_eq!(version(cluster, n).await?, before_last);
            assert_eq!(version(cluster, other).await?, before_last);
        }
    }
    Ok(())
}

fn refusal(error: &anyhow::Error) -> (Code, String) {
    let status = error.downcast_ref::<Status>().expect("a status");
    (status.code(), status.message().to_owned())
}

async fn downgrade(
    cluster: &Cluster,
    n: usize,
    action: DowngradeAction,
    version: &str,
) -> Result<DowngradeResponse> {
    let mut client = MaintenanceClient::new(cluster.channel(n).await?);
    let request = DowngradeRequest {
        action: action as i32,
        version: version.to_owned(),
    };
    Ok(client.downgrade(request).await?.into_inner())
}

#[tokio::test]
async fn cluster_is_rolled_over_to_the_next_release_under_load_and_back() -> Result<()> {
    let mut cluster = Cluster::start(3, &[]);
    cluster.leader().await?;
    version_becomes(&cluster, "3.7.0").await?;
    assert_eq!(cluster.status(0).await?.storage_version, "3.7.0");

    // Up: what needs the next release is refused until the last member has it.
    for n in 0..2 {
        assert!(cluster.terminate(n).success());
        cluster.set_program(n, NEXT);
        cluster.start_member(n);
        until("the member to serve", || cluster.put(n, "mixed", "1")).await?;
        let refused = cluster.put(n, LATER_KEY, "1").await.unwrap_err();
        let text = "etcdserver: not capable";
        assert_eq!(refusal(&refused), (Code::FailedPrecondition, text.into()));
    }
    assert_eq!(version(&cluster, 0).await?, "3.7.0");
    cluster.converged().await?;
    // The rest under load.
    let (done, writes) = (Arc::new(AtomicBool::new(false)), AtomicUsize::new(0));
    assert!(cluster.terminate(2).success());
    cluster.set_program(2, NEXT);
    cluster.start_member(2);
    let load = async {
        while !done.load(Ordering::Relaxed) {
            let n = writes.fetch_add(1, Ordering::Relaxed);
            let key = format!("load {}", n % 50);
            until("a write", || cluster.put(n % 3, &key, "1")).await?;
        }
        anyhow::Ok(())
    };
    let rise = async {
        let risen = version_becomes(&cluster, "3.8.0").await;
        done.store(true, Ordering::Relaxed);
        risen
    };
    let (loaded, risen) = tokio::join!(load, rise);
    loaded?;
    risen?;
    assert!(writes.load(Ordering::Relaxed) > 0);
    cluster.put(1, LATER_KEY, "1").await?;
    assert_eq!(cluster.status(0).await?.version, "3.8.0");
    cluster.converged().await?;

    // A member that is put back to the release before is told what it needs, and changes nothing.
    assert!(cluster.terminate(0).success());
    cluster.set_program(0, None);
    cluster.start_member(0);
    assert!(!cluster.ended(0).await?.success());
    cluster.set_program(0, NEXT);
    cluster.start_member(0);
    until("the member to serve", || cluster.put(0, LATER_KEY, "2")).await?;

    // Down: only by one version, and only when asked for.
    for (target, text) in [
        ("3.6", "etcdserver: invalid downgrade target version"),
        ("3.8.0", "etcdserver: invalid downgrade target version"),
        ("three", "etcdserver: wrong downgrade target version format"),
    ] {
        let refused = downgrade(&cluster, 0, DowngradeAction::Enable, target).await;
        let refused = refusal(&refused.unwrap_err());
        assert_eq!(refused, (Code::InvalidArgument, text.into()), "{target}");
    }
    let nothing = downgrade(&cluster, 1, DowngradeAction::Cancel, "").await?;
    assert_eq!(nothing.version, "3.8");
    let valid = downgrade(&cluster, 2, DowngradeAction::Validate, "3.7.9").await?;
    assert_eq!(valid.version, "3.8");
    downgrade(&cluster, 1, DowngradeAction::Enable, "3.7.0").await?;
    let refused = downgrade(&cluster, 1, DowngradeAction::Enable, "3.7.0").await;
    // The version may have gone down already, and with it what may be asked for.
    assert!(refused.is_err());
    version_becomes(&cluster, "3.7.0").await?;
    let info = cluster
        .status(2)
        .await?
        .downgrade_info
        .context("it is always there")?;
    assert_eq!(
        (info.enabled, info.target_version.as_str()),
        (true, "3.7.0")
    );
    let refused = cluster.put(0, LATER_KEY, "3").await.unwrap_err();
    assert_eq!(refusal(&refused).1, "etcdserver: not capable");
    roll(&mut cluster, None, "3.7.0").await?;
    until("the end of the downgrade", || async {
        let info = cluster
            .status(0)
            .await?
            .downgrade_info
            .context("it is always there")?;
        ensure!(!info.enabled);
        Ok(())
    })
    .await?;
    assert_eq!(version(&cluster, 1).await?, "3.7.0");
    assert_eq!(
        cluster.get(2, LATER_KEY, false).await?.as_deref(),
        Some("2")
    );
    cluster.converged().await?;
    Ok(())
}

#[tokio::test]
async fn downgrade_that_is_canceled_lets_the_cluster_rise_again() -> Result<()> {
    let cluster = Cluster::start(1, &[]);
    version_becomes(&cluster, "3.7.0").await?;
    downgrade(&cluster, 0, DowngradeAction::Enable, "3.6").await?;
    let refused = downgrade(&cluster, 0, DowngradeAction::Validate, "3.6")
        .await
        .unwrap_err();
    let (code, text) = refusal(&refused);
    // Before the version went down, a downgrade is in progress; afterwards 3.6 is where it already is.
    assert!(
        (code, text.as_str())
            == (
                Code::FailedPrecondition,
                "etcdserver: cluster has a downgrade job in progress"
            )
            || (code, text.as_str())
                == (
                    Code::InvalidArgument,
                    "etcdserver: invalid downgrade target version"
                ),
        "{code:?} {text}"
    );
    version_becomes(&cluster, "3.6.0").await?;
    assert_eq!(cluster.status(0).await?.storage_version, "3.6.0");
    let canceled = downgrade(&cluster, 0, DowngradeAction::Cancel, "").await?;
    assert_eq!(canceled.version, "3.6");
    version_becomes(&cluster, "3.7.0").await?;
    let info = cluster
        .status(0)
        .await?
        .downgrade_info
        .context("it is always there")?;
    assert_eq!((info.enabled, info.target_version.as_str()), (false, ""));
    Ok(())
}

#[tokio::test]
async fn member_of_the_release_before_does_not_join_a_cluster_that_went_up() -> Result<()> {
    let mut cluster = Cluster::start(0, &[]);
    let first = cluster.add_place(&[]);
    cluster.set_program(first, NEXT);
    cluster.start_member(first);
    version_becomes(&cluster, "3.8.0").await?;
    let place = cluster.add_place(&[]);
    let request = MemberAddRequest {
        peer_ur_ls: vec![cluster.peer_url(place)],
        is_learner: true,
    };
    let mut client = ClusterClient::new(cluster.channel(first).await?);
    client.member_add(request).await?;
    let join = ["--initial-cluster-state", "existing"];

    cluster.start_member_with(place, &join);
    assert!(!cluster.ended(place).await?.success());

    cluster.set_program(place, NEXT);
    cluster.start_member_with(place, &join);
    cluster.put(first, LATER_KEY, "1").await?;
    let value = until("the learner to have the key", || async {
        cluster.get(place, LATER_KEY, true).await?.context("no key")
    });
    assert_eq!(value.await?, "1");
    Ok(())
}

#[tokio::test]
async fn cluster_without_all_its_members_has_no_version_yet() -> Result<()> {
    let mut cluster = Cluster::start(0, &[]);
    for _ in 0..3 {
        cluster.add_place(&[]);
    }
    cluster.start_member(0);
    cluster.start_member(1);
    cluster.leader().await?;
    version_becomes(&cluster, "3.0.0").await?;
    cluster.put(0, "k", "1").await?;
    assert_eq!(cluster.status(0).await?.storage_version, "");
    cluster.start_member(2);
    version_becomes(&cluster, "3.7.0").await
}

/// The engine of such a member has nothing that is not in its log as well.
const NO_COMMITS: [&str; 2] = [
    "--backend-batch-interval=1h",
    "--backend-batch-limit=1000000",
];

#[tokio::test]
async fn member_of_the_release_before_stops_at_an_entry_of_the_next_and_names_what_it_needs()
-> Result<()> {
    let folder = tempfile::tempdir()?;
    let log = folder.path().join("log");
    let mut cluster = Cluster::start(0, &[]);
    let n = cluster.add_place(&NO_COMMITS);
    cluster.set_program(n, NEXT);
    cluster.start_member(n);
    version_becomes(&cluster, "3.8.0").await?;
    cluster.put(n, LATER_KEY, "1").await?;
    cluster.kill(n);

    cluster.set_program(n, None);
    let outputs = log.to_str().context("the path is text")?;
    cluster.start_member_with(n, &["--log-outputs", outputs]);
    assert!(!cluster.ended(n).await?.success());
    let said = std::fs::read_to_string(&log)?;
    assert!(said.contains("start a build that supports 3.8.0"), "{said}");

    cluster.set_program(n, NEXT);
    cluster.start_member(n);
    assert_eq!(
        cluster.get(n, LATER_KEY, false).await?.as_deref(),
        Some("1")
    );
    Ok(())
}
