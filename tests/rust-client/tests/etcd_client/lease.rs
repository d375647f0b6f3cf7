//! Leases: grant, keep-alive, time to live, revoke, expiry.

use std::time::{Duration, Instant};

use etcd_client::{Client, EventType, LeaseGrantOptions, LeaseTimeToLiveOptions, PutOptions};
use rust_client::Server;

use crate::{assert_refused, code};

const NOT_FOUND: &str = "etcdserver: requested lease not found";

crate::tests_on_each_transport!(
    granted_lease_is_listed_and_known,
    revoke_deletes_the_keys,
    expiry_deletes_the_keys_and_no_sooner,
    keep_alive_carries_a_lease_beyond_its_time,
    bad_lease_requests_are_refused,
);

async fn granted_lease_is_listed_and_known(server: &Server) {
    let mut client = server.client().await;
    let chosen = LeaseGrantOptions::new().with_id(4242);

    let lease = client.lease_grant(100, Some(chosen)).await.unwrap();
    put_leased(&mut client, "a", 4242).await;
    put_leased(&mut client, "b", 4242).await;
    let with_keys = LeaseTimeToLiveOptions::new().with_keys();
    let known = client
        .lease_time_to_live(4242, Some(with_keys))
        .await
        .unwrap();
    let listed = client.leases().await.unwrap();

    assert_eq!((lease.id(), lease.ttl(), lease.error()), (4242, 100, ""));
    assert_eq!((known.id(), known.granted_ttl()), (4242, 100));
    assert!((90..=100).contains(&known.ttl()), "{}", known.ttl());
    let mut keys = known.keys().to_vec();
    keys.sort();
    assert_eq!(keys, [b"a", b"b"]);
    let ids: Vec<i64> = listed.leases().iter().map(|lease| lease.id()).collect();
    assert_eq!(ids, [4242]);
}

async fn revoke_deletes_the_keys(server: &Server) {
    let mut client = server.client().await;
    let lease = client.lease_grant(100, None).await.unwrap().id();
    put_leased(&mut client, "a", lease).await;
    put_leased(&mut client, "b", lease).await;

    client.lease_revoke(lease).await.unwrap();

    assert_eq!(client.get("a", None).await.unwrap().count(), 0);
    assert_eq!(client.get("b", None).await.unwrap().count(), 0);
    assert_eq!(
        client.lease_time_to_live(lease, None).await.unwrap().ttl(),
        -1
    );
    assert_refused(client.lease_revoke(lease).await, code::NOT_FOUND, NOT_FOUND);
}

async fn expiry_deletes_the_keys_and_no_sooner(server: &Server) {
    let mut client = server.client().await;
    let mut stream = client.watch("leased", None).await.unwrap();
    assert!(stream.message().await.unwrap().unwrap().created());
    let started = Instant::now();
    let lease = client.lease_grant(2, None).await.unwrap().id();
    put_leased(&mut client, "leased", lease).await;

    let put = stream.message().await.unwrap().unwrap();
    let deleted = stream.message().await.unwrap().unwrap();

    assert_eq!(put.events()[0].event_type(), EventType::Put);
    assert_eq!(deleted.events()[0].event_type(), EventType::Delete);
    assert!(started.elapsed() >= Duration::from_secs(2));
    assert_eq!(client.get("leased", None).await.unwrap().count(), 0);
}

async fn keep_alive_carries_a_lease_beyond_its_time(server: &Server) {
    let mut client = server.client().await;
    let kept = client.lease_grant(2, None).await.unwrap().id();
    let fence = client.lease_grant(5, None).await.unwrap().id();
    put_leased(&mut client, "kept", kept).await;
    put_leased(&mut client, "fence", fence).await;
    let mut deletes = client.watch("fence", None).await.unwrap();
    assert!(deletes.message().await.unwrap().unwrap().created());

    let (mut keeper, mut answers) = client.lease_keep_alive(kept).await.unwrap();
    // The lease that is not kept alive ends first, although its time is longer.
    let mut deleted = None;
    while deleted.is_none() {
        keeper.keep_alive().await.unwrap();
        let answer = answers.message().await.unwrap().unwrap();
        assert_eq!((answer.id(), answer.ttl()), (kept, 2));
        let wait = Duration::from_millis(500);
        deleted = tokio::time::timeout(wait, deletes.message()).await.ok();
    }

    let deleted = deleted.unwrap().unwrap().unwrap();
    assert_eq!(deleted.events()[0].event_type(), EventType::Delete);
    assert_eq!(client.get("kept", None).await.unwrap().count(), 1);
}

async fn bad_lease_requests_are_refused(server: &Server) {
    let mut client = server.client().await;
    let chosen = || Some(LeaseGrantOptions::new().with_id(7));
    client.lease_grant(60, chosen()).await.unwrap();

    assert_refused(
        client.lease_grant(60, chosen()).await,
        code::FAILED_PRECONDITION,
        "etcdserver: lease already exists",
    );
    assert_refused(
        client.lease_grant(9_000_000_001, None).await,
        code::OUT_OF_RANGE,
        "etcdserver: too large lease TTL",
    );
    assert_refused(client.lease_revoke(4711).await, code::NOT_FOUND, NOT_FOUND);
    // The client turns the answer's zero time to live into an error.
    let keeper = client.lease_keep_alive(4711).await;
    assert!(matches!(
        keeper,
        Err(etcd_client::Error::LeaseKeepAliveError(text)) if text == "lease not found"
    ));
}

async fn put_leased(client: &mut Client, key: &str, lease: i64) {
    let options = PutOptions::new().with_lease(lease);
    client.put(key, "leased", Some(options)).await.unwrap();
}
