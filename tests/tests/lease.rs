//! Leases of a cluster: any member renews them, they outlive a leader, and many that end at once disturb nobody.

#![allow(clippy::unwrap_used)] // All of this is tests.

use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use kv_proto::etcdserverpb::lease_client::LeaseClient;
use kv_proto::etcdserverpb::{
    LeaseGrantRequest, LeaseKeepAliveRequest, LeaseLeasesRequest, LeaseTimeToLiveRequest,
    LeaseTimeToLiveResponse, PutRequest, kv_client::KvClient,
};
use kv_tests::cluster::{Cluster, until};
use rustix::process::Signal;
use tokio::task::JoinSet;
use tokio::time::timeout;
use tonic::transport::Channel;

const ID: i64 = 77;
/// One attempt to renew a lease of two seconds: another one must have time.
const RENEW_LIMIT: Duration = Duration::from_millis(500);

async fn lease(cluster: &Cluster, n: usize) -> Result<LeaseClient<Channel>> {
    Ok(LeaseClient::new(cluster.channel(n).await?))
}

/// Grants a lease through one member and attaches `key`.
async fn grant(cluster: &Cluster, n: usize, id: i64, ttl: i64, key: &str) -> Result<()> {
    let granted = lease(cluster, n)
        .await?
        .lease_grant(LeaseGrantRequest { id, ttl })
        .await?;
    assert_eq!(granted.into_inner().ttl, ttl);
    let put = PutRequest {
        key: key.to_owned().into(),
        lease: id,
        ..Default::default()
    };
    KvClient::new(cluster.channel(n).await?).put(put).await?;
    Ok(())
}

/// Renews a lease once through one member; the seconds it answers.
async fn renew(cluster: &Cluster, n: usize, id: i64) -> Result<i64> {
    let requests = tokio_stream::once(LeaseKeepAliveRequest { id });
    let mut client = lease(cluster, n).await?;
    let mut answers = client.lease_keep_alive(requests).await?.into_inner();
    let answer = answers.message().await?.context("an answer comes")?;
    assert_eq!(answer.id, id);
    Ok(answer.ttl)
}

async fn look(cluster: &Cluster, n: usize, id: i64) -> Result<LeaseTimeToLiveResponse> {
    let request = LeaseTimeToLiveRequest { id, keys: true };
    let mut client = lease(cluster, n).await?;
    Ok(client.lease_time_to_live(request).await?.into_inner())
}

#[tokio::test]
async fn leases_are_renewed_and_looked_at_through_any_member() -> Result<()> {
    let cluster = Cluster::start(3, &[]);
    let leader = cluster.leader().await?;
    grant(&cluster, (leader + 1) % 3, ID, 60, "leased").await?;

    for n in 0..3 {
        assert_eq!(renew(&cluster, n, ID).await?, 60, "member {n}");
        let seen = look(&cluster, n, ID).await?;
        assert!((58..=60).contains(&seen.ttl), "member {n}: {seen:?}");
        assert_eq!(seen.granted_ttl, 60);
        assert_eq!(seen.keys, ["leased"]);
        let header = seen.header.context("an answer has a header")?;
        let status = cluster.status(n).await?;
        assert_eq!(header.member_id, status.header.unwrap().member_id);

        assert_eq!(renew(&cluster, n, ID + 1).await?, 0, "an unknown lease");
        assert_eq!(look(&cluster, n, ID + 1).await?.ttl, -1);
    }
    Ok(())
}

#[tokio::test]
async fn a_lease_id_that_a_client_took_is_not_chosen() -> Result<()> {
    let cluster = Cluster::start(1, &[]);
    cluster.leader().await?;
    let mut client = lease(&cluster, 0).await?;
    let mut grant = async |id| {
        let granted = client.lease_grant(LeaseGrantRequest { id, ttl: 60 });
        anyhow::Ok(granted.await?.into_inner().id)
    };
    let chosen = grant(0).await?;
    // What the member would choose next.
    assert_eq!(grant(chosen + 1).await?, chosen + 1);

    assert_eq!(grant(0).await?, chosen + 2);
    Ok(())
}

#[tokio::test]
async fn a_lease_outlives_its_leader_by_its_time_and_then_ends_everywhere() -> Result<()> {
    let mut cluster = Cluster::start(3, &[]);
    let leader = cluster.leader().await?;
    grant(&cluster, leader, ID, 3, "leased").await?;
    tokio::time::sleep(Duration::from_secs(2)).await;
    let renewed = Instant::now();
    assert_eq!(renew(&cluster, (leader + 1) % 3, ID).await?, 3);
    cluster.kill(leader);

    let survivor = cluster.running()[0];
    until("the end of the lease", || async {
        let value = cluster.get(survivor, "leased", false).await?;
        ensure!(value.is_none());
        Ok(())
    })
    .await?;

    let lived = renewed.elapsed();
    assert!(lived >= Duration::from_secs(3), "it lived {lived:?}");
    // The new leader gives it its full time and an election timeout from its own start.
    assert!(lived < Duration::from_secs(10), "it lived {lived:?}");
    cluster.start_member(leader);
    cluster.leader().await?;
    assert_eq!(look(&cluster, leader, ID).await?.ttl, -1);
    cluster.converged().await?;
    Ok(())
}

/// The leader stands still while the others elect another one and a client goes on renewing there. When it goes on, the
/// lease is long over by its own clock.
#[tokio::test]
async fn a_leader_that_stood_still_ends_no_lease_that_lives() -> Result<()> {
    let cluster = Cluster::start(3, &[]);
    let stopped = cluster.leader().await?;
    let others = [(stopped + 1) % 3, (stopped + 2) % 3];
    grant(&cluster, stopped, ID, 2, "leased").await?;
    let renew_for = async |time: Duration| {
        let end = Instant::now() + time;
        let mut n = 0;
        while Instant::now() < end {
            n += 1;
            // It may fail while there is no leader, and must not say that the lease is gone.
            if let Ok(Ok(ttl)) = timeout(RENEW_LIMIT, renew(&cluster, others[n % 2], ID)).await {
                assert_eq!(ttl, 2, "the lease ended while it was renewed");
            }
            tokio::time::sleep(Duration::from_millis(200)).await;
        }
    };
    renew_for(Duration::from_secs(1)).await;

    cluster.signal(stopped, Signal::STOP)?;
    renew_for(Duration::from_secs(6)).await;
    cluster.signal(stopped, Signal::CONT)?;
    let late = timeout(RENEW_LIMIT, renew(&cluster, stopped, ID)).await;
    renew_for(Duration::from_secs(3)).await;

    assert!(!matches!(late, Ok(Ok(0))), "{late:?}");
    for n in 0..3 {
        let value = cluster.get(n, "leased", false).await?;
        assert!(value.is_some(), "member {n}");
    }
    until("the end of the lease", || async {
        ensure!(cluster.get(stopped, "leased", false).await?.is_none());
        Ok(())
    })
    .await?;
    cluster.converged().await?;
    Ok(())
}

/// `KVD_LEASES` sets how many. One member, since the load is on its apply loop.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn many_leases_that_end_at_once_hold_up_nobody() -> Result<()> {
    const GRANTERS: i64 = 64;
    let leases: i64 = std::env::var("KVD_LEASES").map_or(5_000, |n| n.parse().unwrap());
    let cluster = Cluster::start(1, &["--quota-backend-bytes", "0"]);
    cluster.leader().await?;
    // All end in the same second, however long the grants take.
    let end = Instant::now() + Duration::from_secs(30 + leases as u64 / 1000);
    let mut granters = JoinSet::new();
    for first in 0..GRANTERS {
        let mut client = lease(&cluster, 0).await?;
        granters.spawn(async move {
            for id in (1 + first..=leases).step_by(GRANTERS as usize) {
                let ttl = (end - Instant::now()).as_secs() as i64;
                // The shortest there is, where grants are so slow that the test says so below.
                let ttl = ttl.max(2);
                let request = LeaseGrantRequest { id, ttl };
                client.lease_grant(request).await.unwrap();
            }
        });
    }
    granters.join_all().await;
    let granted = Instant::now();
    assert!(
        granted + Duration::from_secs(2) < end,
        "granting took too long"
    );
    let left = async || -> Result<usize> {
        let mut client = lease(&cluster, 0).await?;
        let answer = client.lease_leases(LeaseLeasesRequest {}).await?;
        Ok(answer.into_inner().leases.len())
    };
    assert_eq!(left().await?, leases as usize);
    let index = cluster.status(0).await?.raft_index;

    let mut puts = Vec::new();
    let mut kv = KvClient::new(cluster.channel(0).await?);
    let deadline = end + Duration::from_secs(60);
    let mut revoking = None;
    let gone = loop {
        let begun = Instant::now();
        let put = PutRequest {
            key: "key".into(),
            ..Default::default()
        };
        kv.put(put).await?;
        puts.push(begun.elapsed());
        if puts.len() % 20 == 0 {
            let left = left().await?;
            if left < leases as usize {
                revoking.get_or_insert_with(|| (Instant::now(), puts.len()));
            }
            if left == 0 {
                break Instant::now();
            }
            assert!(Instant::now() < deadline, "{left} leases are left");
        }
        tokio::time::sleep(Duration::from_millis(1)).await;
    };
    let entries = cluster.status(0).await?.raft_index - index - puts.len() as u64;
    let (began, at) = revoking.unwrap_or((gone, puts.len()));
    let (before, during) = puts.split_at(at.saturating_sub(20));
    let slowest_before = before.iter().max().copied().unwrap_or_default();
    let mut during = during.to_vec();
    during.sort();
    let slowest = during.last().copied().unwrap_or_default();
    println!(
        "{leases} leases went in {:?} with {entries} entries; of {} puts meanwhile half took {:?}, the slowest {slowest:?}; before, the slowest took {slowest_before:?}",
        gone - began,
        during.len(),
        during[during.len() / 2],
    );
    assert!(entries <= leases as u64 / 100 + 50, "{entries} entries");
    // As slow as the machine makes some put anyway, or a second.
    let bound = (5 * slowest_before).max(Duration::from_secs(1));
    assert!(
        slowest < bound,
        "a put took {slowest:?}, before at most {slowest_before:?}"
    );
    Ok(())
}
