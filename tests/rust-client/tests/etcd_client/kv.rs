//! Puts, ranges, streamed ranges, deletes, compaction.

use etcd_client::{
    Client, CompactionOptions, DeleteOptions, GetOptions, GetResponse, PutOptions, SortOrder,
    SortTarget,
};
use rust_client::Server;

use crate::{assert_refused, code};

crate::tests_on_each_transport!(
    put_returns_the_previous_pair,
    ranges_have_limits_orders_and_counts,
    revisions_show_the_past_and_filter,
    put_keeps_value_or_lease_when_asked,
    streamed_range_is_the_range,
    deletes_count_and_return_pairs,
    compaction_drops_the_past,
    bad_requests_are_refused,
);

async fn put_returns_the_previous_pair(server: &Server) {
    let mut client = server.client().await;
    let put = |value| ("key", value, Some(PutOptions::new().with_prev_key()));

    let (key, value, options) = put("1");
    let first = client.put(key, value, options).await.unwrap();
    let (key, value, options) = put("2");
    let second = client.put(key, value, options).await.unwrap();
    let read = client.get("key", None).await.unwrap();

    assert!(first.prev_key().is_none());
    let previous = second.prev_key().unwrap();
    assert_eq!((previous.value(), previous.version()), (&b"1"[..], 1));
    let pair = &read.kvs()[0];
    assert_eq!((pair.value(), pair.version()), (&b"2"[..], 2));
    assert_eq!(pair.create_revision(), first.header().unwrap().revision());
    assert_eq!(pair.mod_revision(), second.header().unwrap().revision());
    assert_eq!(pair.mod_revision(), pair.create_revision() + 1);
}

async fn ranges_have_limits_orders_and_counts(server: &Server) {
    let mut client = server.client().await;
    put_all(
        &mut client,
        &[("a", "3"), ("b", "2"), ("c", "1"), ("d", "0")],
    )
    .await;
    let mut get =
        async |key: &str, options: GetOptions| client.get(key, Some(options)).await.unwrap();

    let all = get("", GetOptions::new().with_all_keys()).await;
    assert_eq!(keys(&all), ["a", "b", "c", "d"]);
    let middle = get("b", GetOptions::new().with_range("d")).await;
    assert_eq!(keys(&middle), ["b", "c"]);
    let limited = get("b", GetOptions::new().with_from_key().with_limit(2)).await;
    assert_eq!(keys(&limited), ["b", "c"]);
    assert!(limited.more());
    assert_eq!(limited.count(), 3);
    let by_value = GetOptions::new().with_sort(SortTarget::Value, SortOrder::Ascend);
    let sorted = get("", by_value.with_all_keys().with_limit(3)).await;
    assert_eq!(keys(&sorted), ["d", "c", "b"]);
    let downward = GetOptions::new().with_sort(SortTarget::Create, SortOrder::Descend);
    assert_eq!(
        keys(&get("", downward.with_all_keys()).await),
        ["d", "c", "b", "a"]
    );
    let counted = get("", GetOptions::new().with_all_keys().with_count_only()).await;
    assert_eq!((counted.count(), counted.kvs().len()), (4, 0));
    let names = get("a", GetOptions::new().with_prefix().with_keys_only()).await;
    assert_eq!(
        (names.kvs()[0].key(), names.kvs()[0].value()),
        (&b"a"[..], &b""[..])
    );
    let own = get("a", GetOptions::new().with_serializable()).await;
    assert_eq!(own.kvs()[0].value(), b"3");
    assert_eq!(get("missing", GetOptions::new()).await.count(), 0);
}

async fn revisions_show_the_past_and_filter(server: &Server) {
    let mut client = server.client().await;
    let revisions = put_all(&mut client, &[("a", "1"), ("b", "1"), ("a", "2")]).await;
    let mut get = async |options: GetOptions| {
        keys(&client.get("", Some(options.with_all_keys())).await.unwrap()).join("")
    };

    assert_eq!(
        get(GetOptions::new().with_revision(revisions[0])).await,
        "a"
    );
    assert_eq!(
        get(GetOptions::new().with_min_mod_revision(revisions[2])).await,
        "a"
    );
    assert_eq!(
        get(GetOptions::new().with_max_mod_revision(revisions[1])).await,
        "b"
    );
    assert_eq!(
        get(GetOptions::new().with_min_create_revision(revisions[1])).await,
        "b"
    );
    assert_eq!(
        get(GetOptions::new().with_max_create_revision(revisions[0])).await,
        "a"
    );
    let future = GetOptions::new().with_revision(revisions[2] + 1);
    assert_refused(
        client.get("a", Some(future)).await,
        code::OUT_OF_RANGE,
        "etcdserver: mvcc: required revision is a future revision",
    );
}

async fn put_keeps_value_or_lease_when_asked(server: &Server) {
    let mut client = server.client().await;
    let lease = client.lease_grant(60, None).await.unwrap().id();
    let leased = PutOptions::new().with_lease(lease);
    client.put("key", "kept", Some(leased)).await.unwrap();

    let ignore_lease = PutOptions::new().with_ignore_lease();
    client.put("key", "new", Some(ignore_lease)).await.unwrap();
    let pair = client.get("key", None).await.unwrap().take_kvs().remove(0);
    assert_eq!((pair.value(), pair.lease()), (&b"new"[..], lease));

    let ignore_value = PutOptions::new().with_ignore_value();
    client.put("key", "", Some(ignore_value)).await.unwrap();
    let pair = client.get("key", None).await.unwrap().take_kvs().remove(0);
    assert_eq!((pair.value(), pair.lease()), (&b"new"[..], 0));

    let missing = PutOptions::new().with_ignore_value();
    assert_refused(
        client.put("missing", "", Some(missing)).await,
        code::INVALID_ARGUMENT,
        "etcdserver: key not found",
    );
}

async fn streamed_range_is_the_range(server: &Server) {
    let mut client = server.client().await;
    // Larger than one chunk of any server.
    let value = "x".repeat(100 * 1024);
    for i in 0..40 {
        client
            .put(format!("{i:02}"), value.clone(), None)
            .await
            .unwrap();
    }
    let options = GetOptions::new().with_all_keys().with_limit(35);
    // The range itself is larger than what the client takes in one message by default.
    let mut kv = client.kv_client().max_decoding_message_size(16 << 20);
    let range = kv.get("", Some(options.clone())).await.unwrap();

    let mut stream = kv.get_stream("", Some(options)).await.unwrap();
    let mut chunks = Vec::new();
    while let Some(chunk) = stream.message().await.unwrap() {
        chunks.push(chunk);
    }

    assert!(chunks.len() > 1, "one chunk");
    let streamed: Vec<&[u8]> = chunks
        .iter()
        .flat_map(GetResponse::kvs)
        .map(|pair| pair.key())
        .collect();
    let expected: Vec<&[u8]> = range.kvs().iter().map(|pair| pair.key()).collect();
    assert_eq!(streamed, expected);
    let last = chunks.last().unwrap();
    assert_eq!((last.more(), last.count()), (range.more(), range.count()));
}

async fn deletes_count_and_return_pairs(server: &Server) {
    let mut client = server.client().await;
    put_all(
        &mut client,
        &[("a1", "1"), ("a2", "2"), ("b1", "3"), ("b2", "4")],
    )
    .await;

    let one = client
        .delete("a1", Some(DeleteOptions::new().with_prev_key()))
        .await
        .unwrap();
    let none = client.delete("a1", None).await.unwrap();
    let two = client
        .delete("b", Some(DeleteOptions::new().with_prefix()))
        .await
        .unwrap();
    let rest = client
        .get("", Some(GetOptions::new().with_all_keys()))
        .await
        .unwrap();

    assert_eq!((one.deleted(), one.prev_kvs()[0].value()), (1, &b"1"[..]));
    assert_eq!(none.deleted(), 0);
    assert_eq!(
        none.header().unwrap().revision(),
        one.header().unwrap().revision()
    );
    assert_eq!(two.deleted(), 2);
    assert_eq!(keys(&rest), ["a2"]);
}

async fn compaction_drops_the_past(server: &Server) {
    let mut client = server.client().await;
    let revisions = put_all(&mut client, &[("key", "1"), ("key", "2"), ("key", "3")]).await;
    let at = |revision| Some(GetOptions::new().with_revision(revision));
    let physical = CompactionOptions::new().with_physical();

    client.compact(revisions[1], Some(physical)).await.unwrap();

    let compacted = "etcdserver: mvcc: required revision has been compacted";
    assert_refused(
        client.get("key", at(revisions[0])).await,
        code::OUT_OF_RANGE,
        compacted,
    );
    assert_refused(
        client.compact(revisions[1], None).await,
        code::OUT_OF_RANGE,
        compacted,
    );
    let kept = client.get("key", at(revisions[1])).await.unwrap();
    assert_eq!(kept.kvs()[0].value(), b"2");
    assert_refused(
        client.compact(revisions[2] + 1, None).await,
        code::OUT_OF_RANGE,
        "etcdserver: mvcc: required revision is a future revision",
    );
}

async fn bad_requests_are_refused(server: &Server) {
    let mut client = server.client().await;

    let no_key = "etcdserver: key is not provided";
    assert_refused(
        client.put("", "value", None).await,
        code::INVALID_ARGUMENT,
        no_key,
    );
    let too_large = vec![0; 1536 * 1024 + 1];
    assert_refused(
        client.put("key", too_large, None).await,
        code::INVALID_ARGUMENT,
        "etcdserver: request is too large",
    );
    let unknown_lease = PutOptions::new().with_lease(4711);
    assert_refused(
        client.put("key", "value", Some(unknown_lease)).await,
        code::NOT_FOUND,
        "etcdserver: requested lease not found",
    );
    assert_eq!(client.get("key", None).await.unwrap().count(), 0);
}

/// Puts in order; the revision of each put.
async fn put_all(client: &mut Client, pairs: &[(&str, &str)]) -> Vec<i64> {
    let mut revisions = Vec::new();
    for (key, value) in pairs {
        let response = client.put(*key, *value, None).await.unwrap();
        revisions.push(response.header().unwrap().revision());
    }
    revisions
}

fn keys(response: &GetResponse) -> Vec<&str> {
    response
        .kvs()
        .iter()
        .map(|pair| pair.key_str().unwrap())
        .collect()
}
