//! Members, status, hashes, defragmentation, alarms, and whom a TLS port refuses.

use etcd_client::{AlarmAction, AlarmType, GetOptions};
use rust_client::{Server, Transport};

crate::tests_on_each_transport!(
    the_only_member_is_listed_and_leads,
    space_in_use_is_known_from_the_start,
    hashes_follow_the_data,
    defragmentation_keeps_the_data,
    no_alarm_is_raised,
);

async fn the_only_member_is_listed_and_leads(server: &Server) {
    let mut client = server.client().await;
    let before = client.status().await.unwrap();
    client.put("key", "1", None).await.unwrap();

    let after = client.status().await.unwrap();
    let members = client.member_list().await.unwrap();

    assert!(after.version().starts_with("3.7."), "{}", after.version());
    assert!(after.db_size() > 0);
    assert!(after.raft_index() > before.raft_index());
    assert!(after.raft_applied_index() <= after.raft_index());
    assert!(after.raft_term() > 0);
    assert!(after.errors().is_empty());
    assert!(!after.is_learner());
    let [member] = members.members() else {
        panic!("{members:?}");
    };
    assert_eq!(member.id(), after.leader());
    assert_eq!(member.id(), after.header().unwrap().member_id());
    assert_eq!(member.name(), "default");
    assert_eq!(member.client_urls(), [server.client_url()]);
    assert_eq!(member.peer_urls().len(), 1);
}

async fn space_in_use_is_known_from_the_start(server: &Server) {
    let mut client = server.client().await;
    client.put("key", "1", None).await.unwrap();

    let status = client.status().await.unwrap();

    assert!(status.raft_used_db_size() > 0);
    assert!(status.raft_used_db_size() <= status.db_size());
}

async fn hashes_follow_the_data(server: &Server) {
    let mut client = server.client().await;
    let put = client.put("key", "1", None).await.unwrap();
    let revision = put.header().unwrap().revision();
    let first = client.hash_kv(revision).await.unwrap();
    let whole = client.hash().await.unwrap();
    assert_eq!(client.hash().await.unwrap().hash(), whole.hash());

    client.put("key", "2", None).await.unwrap();

    assert_eq!(client.hash_kv(revision).await.unwrap().hash(), first.hash());
    assert_eq!(first.hash_revision(), revision);
    assert_ne!(client.hash_kv(0).await.unwrap().hash(), first.hash());
    assert_ne!(client.hash().await.unwrap().hash(), whole.hash());
}

async fn defragmentation_keeps_the_data(server: &Server) {
    let mut client = server.client().await;
    let mut revision = 0;
    for i in 0..200 {
        let put = client
            .put(format!("{i:03}"), vec![b'x'; 1000], None)
            .await
            .unwrap();
        revision = put.header().unwrap().revision();
    }
    client.compact(revision, None).await.unwrap();
    let before = client.hash_kv(revision).await.unwrap();

    client.defragment().await.unwrap();

    let all = client
        .get("", Some(GetOptions::new().with_all_keys()))
        .await
        .unwrap();
    assert_eq!(all.count(), 200);
    assert_eq!(
        client.hash_kv(revision).await.unwrap().hash(),
        before.hash()
    );
}

async fn no_alarm_is_raised(server: &Server) {
    let mut client = server.client().await;

    let alarms = client
        .alarm(AlarmAction::Get, AlarmType::None, None)
        .await
        .unwrap();

    assert!(alarms.alarms().is_empty());
}

#[tokio::test]
async fn client_without_certificate_is_refused() {
    crate::run(Transport::Tls, async |server: &Server| {
        let mut stranger = server.client_without_certificate().await;

        let result = stranger.get("key", None).await;

        assert!(result.is_err(), "{result:?}");
        assert_eq!(
            server
                .client()
                .await
                .get("key", None)
                .await
                .unwrap()
                .count(),
            0
        );
    })
    .await;
}
