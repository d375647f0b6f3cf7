//! Members of a new cluster find each other by DNS, or in a registry.

#![allow(clippy::unwrap_used)] // All of this is tests.

use anyhow::{Context, Result, ensure};
use kv_client::srv::{Resolver, client_endpoints};
use kv_tests::cluster::{Cluster, until};
use kv_tests::dns::DnsServer;

async fn three_places() -> Cluster {
    let mut cluster = Cluster::start(0, &[]);
    for _ in 0..3 {
        cluster.add_place(&[]);
    }
    cluster
}

async fn serves_as_one(cluster: &Cluster) -> Result<()> {
    cluster.leader().await?;
    until("all members to be published", || async {
        let members = cluster.members(2).await?;
        ensure!(members.len() == 3 && members.iter().all(|m| !m.client_ur_ls.is_empty()));
        let mut names: Vec<_> = members.into_iter().map(|member| member.name).collect();
        names.sort();
        ensure!(names == ["m0", "m1", "m2"], "{names:?}");
        Ok(())
    })
    .await?;
    cluster.put(0, "k", "1").await?;
    assert_eq!(cluster.get(1, "k", false).await?.as_deref(), Some("1"));
    cluster.converged().await?;
    Ok(())
}

#[tokio::test]
async fn members_that_srv_records_name_form_a_cluster() -> Result<()> {
    let mut cluster = three_places().await;
    // A name that members can dial without the DNS server of this test.
    let peers = (0..3).map(|n| ("localhost".to_owned(), cluster.peer_port(n)));
    let service = ("_etcd-server-blue._tcp.example.test", peers.collect());
    let dns = DnsServer::start(&[service]).await?;
    let server = dns.address().to_string();
    let with_name = |name: &str| {
        [
            "--discovery-srv=example.test".to_owned(),
            format!("--discovery-srv-name={name}"),
            format!("--discovery-dns-server={server}"),
        ]
    };
    // No records of that name: told, and stopped.
    let wrong = with_name("green");
    cluster.discover_by(&wrong.each_ref().map(String::as_str));
    cluster.start_member(0);
    assert!(!cluster.ended(0).await?.success());

    let right = with_name("blue");
    cluster.discover_by(&right.each_ref().map(String::as_str));
    for n in 0..3 {
        cluster.start_member(n);
    }
    serves_as_one(&cluster).await?;

    // A member that no record names.
    let stranger = cluster.add_place(&[]);
    cluster.start_member(stranger);
    assert!(!cluster.ended(stranger).await?.success());
    Ok(())
}

#[tokio::test]
async fn client_endpoints_are_those_with_tls_and_others_only_if_that_is_permitted() -> Result<()> {
    let at = |host: &str, port| (format!("{host}.example.test"), port);
    let dns = DnsServer::start(&[
        ("_etcd-client._tcp.example.test", vec![at("a", 2379)]),
        (
            "_etcd-client-ssl._tcp.example.test",
            vec![at("b", 3379), at("c", 4379)],
        ),
        ("_etcd-client-plain._tcp.example.test", vec![at("d", 2379)]),
    ])
    .await?;
    let resolver = Resolver::new(Some(dns.address()))?;
    let endpoints = async |suffix, insecure| {
        client_endpoints(&resolver, "example.test", suffix, insecure).await
    };

    let with_tls = ["https://b.example.test:3379", "https://c.example.test:4379"];
    assert_eq!(endpoints("", false).await?, with_tls);
    let all = [with_tls[0], with_tls[1], "http://a.example.test:2379"];
    assert_eq!(endpoints("", true).await?, all);
    assert_eq!(
        endpoints("plain", true).await?,
        ["http://d.example.test:2379"]
    );
    let refused = endpoints("plain", false).await.unwrap_err().to_string();
    assert!(refused.contains("--insecure-discovery"), "{refused}");
    let none = endpoints("other", true).await.unwrap_err().to_string();
    assert!(none.contains("dns lookup"), "{none}");
    Ok(())
}

#[tokio::test]
async fn members_find_each_other_in_a_registry_and_a_fourth_finds_it_full() -> Result<()> {
    let registry = Cluster::start(1, &[]);
    let endpoint = registry.client_url(0);
    let folder = "/_etcd/registry/token-1";
    let mut cluster = three_places().await;
    let flags = [
        format!("--discovery-endpoints={endpoint}"),
        "--discovery-token=token-1".to_owned(),
    ];
    cluster.discover_by(&flags.each_ref().map(String::as_str));
    // Nobody has said how many there will be.
    cluster.start_member(0);
    assert!(!cluster.ended(0).await?.success());
    registry
        .put(0, &format!("{folder}/_config/size"), "3")
        .await?;

    for n in 0..3 {
        cluster.start_member(n);
    }
    serves_as_one(&cluster).await?;

    // What each wrote is what etcd writes.
    let members = cluster.members(0).await?;
    for member in &members {
        let key = format!("{folder}/members/{:x}", member.id);
        let value = registry.get(0, &key, false).await?.context(key)?;
        assert_eq!(value, format!("{}={}", member.name, member.peer_ur_ls[0]));
    }
    let fourth = cluster.add_place(&[]);
    cluster.start_member(fourth);
    assert!(!cluster.ended(fourth).await?.success());
    // A member that has a log needs no registry.
    drop(registry);
    cluster.kill(1);
    cluster.start_member(1);
    cluster.leader().await?;
    assert_eq!(cluster.get(1, "k", false).await?.as_deref(), Some("1"));
    Ok(())
}
