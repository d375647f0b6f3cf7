//! A backup of one cluster becomes another: several members of it, and one that joins them later.

#![allow(clippy::unwrap_used)] // All of this is tests.

use std::io::Write;
use std::path::Path;

use anyhow::{Result, ensure};
use kv_client::{Client, Config};
use kv_proto::etcdserverpb::cluster_client::ClusterClient;
use kv_proto::etcdserverpb::lease_client::LeaseClient;
use kv_proto::etcdserverpb::{LeaseGrantRequest, LeaseLeasesRequest, MemberAddRequest};
use kv_server::restore::{RestoreOptions, restore};
use kv_tests::cluster::{Cluster, until};

async fn save(cluster: &Cluster, file: &Path) -> Result<()> {
    let client = Client::connect(Config::new(vec![cluster.client_url(0)])).await?;
    let mut messages = client.snapshot().await?;
    let mut out = std::fs::File::create(file)?;
    let mut remaining = None;
    while let Some(message) = messages.next().await? {
        assert_eq!(message.version, "3.7.0");
        assert!(remaining.is_none_or(|before| message.remaining_bytes <= before));
        remaining = Some(message.remaining_bytes);
        out.write_all(&message.blob)?;
    }
    assert_eq!(remaining, Some(0));
    Ok(())
}

fn options(cluster: &Cluster, n: usize, file: &Path) -> RestoreOptions {
    RestoreOptions {
        file: file.to_owned(),
        data_dir: cluster.data_dir(n).to_owned(),
        name: format!("m{n}"),
        initial_cluster: cluster.initial_cluster(),
        initial_cluster_token: "etcd-cluster".to_owned(),
        initial_advertise_peer_urls: cluster.peer_url(n),
        storage_engine: Some(if n == 1 { "sled" } else { "redb" }.to_owned()),
        ..RestoreOptions::default()
    }
}

#[tokio::test]
async fn restored_members_serve_what_was_saved_and_give_it_to_who_joins() -> Result<()> {
    let folder = tempfile::tempdir()?;
    let file = folder.path().join("backup.db");
    let origin = Cluster::start(1, &[]);
    for n in 0..300 {
        let key = format!("key-{}", n % 70);
        origin.put(0, &key, &"v".repeat(n * 11)).await?;
    }
    let mut lease = LeaseClient::new(origin.channel(0).await?);
    let grant = LeaseGrantRequest { id: 7, ttl: 600 };
    lease.lease_grant(grant).await?;
    save(&origin, &file).await?;
    let saved = origin.hash_kv(0, 0).await?;
    let at = saved.hash_revision;

    let mut cluster = Cluster::start(0, &[]);
    for _ in 0..3 {
        cluster.add_place(&[]);
    }
    for n in 0..3 {
        let restored = restore(&options(&cluster, n, &file)).await?;
        assert_eq!((restored.revision, restored.compacted), (at, -1));
        // A folder that is there is never touched.
        let again = restore(&options(&cluster, n, &file)).await.unwrap_err();
        assert!(again.to_string().contains("not empty"), "{again:#}");
        cluster.start_member(n);
    }
    let leader = cluster.leader().await?;
    for n in 0..3 {
        assert_eq!(cluster.hash_kv(n, at).await?.hash, saved.hash);
    }
    assert_eq!(cluster.put(leader, "next", "x").await?, at + 1);

    // Settled, as a change of the members asks for.
    let joining = cluster.add_place(&[]);
    let members = ClusterClient::new(cluster.channel(leader).await?);
    let request = MemberAddRequest {
        peer_ur_ls: vec![cluster.peer_url(joining)],
        is_learner: false,
    };
    until("a member to be added", || {
        let (mut members, request) = (members.clone(), request.clone());
        async move { Ok(members.member_add(request).await.map(drop)?) }
    })
    .await?;
    cluster.start_member_with(joining, &["--initial-cluster-state", "existing"]);
    until("the new member to have everything", || async {
        let hash = cluster.hash_kv(joining, at).await?;
        ensure!(hash.hash == saved.hash, "{hash:?}");
        Ok(())
    })
    .await?;
    let mut lease = LeaseClient::new(cluster.channel(joining).await?);
    let leases = lease
        .lease_leases(LeaseLeasesRequest {})
        .await?
        .into_inner();
    assert_eq!(leases.leases.len(), 1);
    // A stop and a start change nothing.
    for n in [leader, joining] {
        assert!(cluster.terminate(n).success());
        cluster.start_member(n);
    }
    cluster.leader().await?;
    cluster.converged().await?;
    Ok(())
}

#[tokio::test]
async fn what_cannot_be_restored_leaves_nothing_behind() -> Result<()> {
    let folder = tempfile::tempdir()?;
    let file = folder.path().join("backup.db");
    let origin = Cluster::start(1, &[]);
    origin.put(0, "k", "v").await?;
    save(&origin, &file).await?;
    let cluster = {
        let mut cluster = Cluster::start(0, &[]);
        cluster.add_place(&[]);
        cluster
    };
    let whole = std::fs::read(&file)?;
    let good = options(&cluster, 0, &file);
    let refuse = async |options: &RestoreOptions, says: &str| {
        let error = format!("{:#}", restore(options).await.unwrap_err());
        assert!(error.contains(says), "{error}");
        let parent = cluster.data_dir(0).parent().unwrap();
        let left: Vec<_> = std::fs::read_dir(parent).unwrap().collect();
        assert!(left.is_empty(), "{left:?} after {error}");
    };
    let mut changed = whole.clone();
    changed[5000] ^= 1;
    std::fs::write(&file, &changed)?;
    refuse(&good, "sha256").await;
    std::fs::write(&file, &whole[..whole.len() - 32])?;
    refuse(&good, "--skip-hash-check").await;
    std::fs::write(&file, &whole[..6000])?;
    refuse(&good, "no sound etcd snapshot").await;
    std::fs::write(&file, &whole)?;
    let nobody = RestoreOptions {
        name: "nobody".to_owned(),
        ..good.clone()
    };
    refuse(&nobody, "couldn't find local name").await;
    restore(&good).await?;
    Ok(())
}
