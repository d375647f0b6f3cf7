//! Watches: create, history, events, filters, fragments, progress, cancel, compaction.

use etcd_client::{
    EventType, Txn, TxnOp, WatchFilterType, WatchOptions, WatchResponse, WatchStream,
};
use rust_client::Server;

crate::tests_on_each_transport!(
    events_follow_the_created_answer,
    history_comes_before_what_is_new,
    filters_leave_events_out,
    one_stream_carries_many_watches,
    transaction_is_one_response,
    fragments_of_one_response_are_marked,
    progress_is_answered_when_asked_for,
    canceled_watch_is_confirmed_and_silent,
    compacted_watch_is_canceled_with_the_revision,
);

async fn events_follow_the_created_answer(server: &Server) {
    let mut client = server.client().await;
    client.put("key", "1", None).await.unwrap();
    let options = WatchOptions::new().with_prefix().with_prev_key();

    let mut stream = client.watch("k", Some(options)).await.unwrap();
    let created = next(&mut stream).await;
    let put = client.put("key", "2", None).await.unwrap();
    let first = next(&mut stream).await;
    client.delete("key", None).await.unwrap();
    let second = next(&mut stream).await;

    assert!(created.created());
    assert!(!created.canceled());
    assert!(created.events().is_empty());
    let revision = put.header().unwrap().revision();
    assert_eq!(first.header().unwrap().revision(), revision);
    assert_eq!(first.watch_id(), created.watch_id());
    let event = &first.events()[0];
    assert_eq!(event.event_type(), EventType::Put);
    assert_eq!(event.kv().unwrap().value(), b"2");
    assert_eq!(event.kv().unwrap().mod_revision(), revision);
    assert_eq!(event.prev_kv().unwrap().value(), b"1");
    let event = &second.events()[0];
    assert_eq!(event.event_type(), EventType::Delete);
    assert_eq!(event.kv().unwrap().mod_revision(), revision + 1);
    assert_eq!(event.prev_kv().unwrap().value(), b"2");
}

async fn history_comes_before_what_is_new(server: &Server) {
    let mut client = server.client().await;
    let first = client.put("key", "0", None).await.unwrap();
    for i in 1..300 {
        client.put("key", i.to_string(), None).await.unwrap();
    }
    let from_first = WatchOptions::new().with_start_revision(first.header().unwrap().revision());

    let mut stream = client.watch("key", Some(from_first)).await.unwrap();
    client.put("key", "300", None).await.unwrap();
    let values = values(&mut stream, 301).await;

    let expected: Vec<String> = (0..=300).map(|i| i.to_string()).collect();
    assert_eq!(values, expected);
}

async fn filters_leave_events_out(server: &Server) {
    let mut client = server.client().await;
    let no_put = WatchOptions::new().with_filters([WatchFilterType::NoPut]);
    let no_delete = WatchOptions::new().with_filters([WatchFilterType::NoDelete]);
    let mut deletes = client.watch("key", Some(no_put)).await.unwrap();
    let mut puts = client.watch("key", Some(no_delete)).await.unwrap();
    assert!(next(&mut deletes).await.created());
    assert!(next(&mut puts).await.created());

    client.put("key", "1", None).await.unwrap();
    client.delete("key", None).await.unwrap();
    client.put("key", "2", None).await.unwrap();

    assert_eq!(
        next(&mut deletes).await.events()[0].event_type(),
        EventType::Delete
    );
    assert_eq!(values(&mut puts, 2).await, ["1", "2"]);
}

async fn one_stream_carries_many_watches(server: &Server) {
    let mut client = server.client().await;
    let chosen = |id| Some(WatchOptions::new().with_watch_id(id));
    let mut stream = client.watch("a", chosen(7)).await.unwrap();
    stream.watch("b", chosen(8)).await.unwrap();
    stream.watch("c", None).await.unwrap();
    let created = [
        next(&mut stream).await,
        next(&mut stream).await,
        next(&mut stream).await,
    ];
    stream.watch("d", chosen(8)).await.unwrap();
    let refused = next(&mut stream).await;

    client.put("b", "1", None).await.unwrap();
    let event = next(&mut stream).await;

    assert_eq!((created[0].watch_id(), created[1].watch_id()), (7, 8));
    assert!(![7, 8].contains(&created[2].watch_id()));
    assert!(refused.created());
    assert!(refused.canceled());
    assert_eq!(
        refused.cancel_reason(),
        "mvcc: duplicate watch ID provided on the WatchStream"
    );
    assert_eq!((event.watch_id(), event.events().len()), (8, 1));
}

async fn transaction_is_one_response(server: &Server) {
    let mut client = server.client().await;
    let all = WatchOptions::new().with_all_keys();
    let mut stream = client.watch("", Some(all)).await.unwrap();
    assert!(next(&mut stream).await.created());
    let puts: Vec<TxnOp> = (0..100)
        .map(|i| TxnOp::put(format!("{i:02}"), "1", None))
        .collect();

    client.txn(Txn::new().and_then(puts)).await.unwrap();
    let response = next(&mut stream).await;

    let revision = response.header().unwrap().revision();
    assert_eq!(response.events().len(), 100);
    for event in response.events() {
        assert_eq!(event.kv().unwrap().mod_revision(), revision);
    }
}

async fn fragments_of_one_response_are_marked(server: &Server) {
    let mut client = server.client().await;
    let value = vec![b'x'; 200 * 1024];
    let first = client.put("key", value.clone(), None).await.unwrap();
    for _ in 1..15 {
        client.put("key", value.clone(), None).await.unwrap();
    }
    let options = WatchOptions::new()
        .with_fragment()
        .with_start_revision(first.header().unwrap().revision());

    // Three megabytes of history, more than a server sends in one message to a watch that takes fragments.
    let mut stream = client.watch("key", Some(options)).await.unwrap();
    assert!(next(&mut stream).await.created());
    let mut versions = Vec::new();
    let mut responses = 0;
    while versions.len() < 15 {
        let response = next(&mut stream).await;
        responses += 1;
        versions.extend(
            response
                .events()
                .iter()
                .map(|event| event.kv().unwrap().version()),
        );
    }

    assert!(responses > 1, "one message");
    assert_eq!(versions, (1..=15).collect::<Vec<i64>>());
}

async fn progress_is_answered_when_asked_for(server: &Server) {
    let mut client = server.client().await;
    let mut stream = client.watch("silent", None).await.unwrap();
    assert!(next(&mut stream).await.created());
    let put = client.put("other", "1", None).await.unwrap();
    let revision = put.header().unwrap().revision();

    // A watch that is not caught up yet leaves the request without an answer.
    let mut progress = None;
    while progress.is_none() {
        stream.request_progress().await.unwrap();
        let wait = std::time::Duration::from_millis(200);
        progress = tokio::time::timeout(wait, next(&mut stream)).await.ok();
    }

    let progress = progress.unwrap();
    assert_eq!(progress.watch_id(), -1);
    assert!(progress.events().is_empty());
    assert_eq!(progress.header().unwrap().revision(), revision);
}

async fn canceled_watch_is_confirmed_and_silent(server: &Server) {
    let mut client = server.client().await;
    let mut stream = client.watch("key", None).await.unwrap();
    let first = next(&mut stream).await.watch_id();
    stream.watch("key", None).await.unwrap();
    let second = next(&mut stream).await.watch_id();

    stream.cancel(first).await.unwrap();
    let canceled = next(&mut stream).await;
    client.put("key", "1", None).await.unwrap();
    let event = next(&mut stream).await;

    assert!(canceled.canceled());
    assert!(!canceled.created());
    assert_eq!(
        (canceled.watch_id(), canceled.compact_revision()),
        (first, 0)
    );
    assert_eq!((event.watch_id(), event.events().len()), (second, 1));
}

async fn compacted_watch_is_canceled_with_the_revision(server: &Server) {
    let mut client = server.client().await;
    let old = client.put("key", "1", None).await.unwrap();
    let now = client.put("key", "2", None).await.unwrap();
    let now = now.header().unwrap().revision();
    client.compact(now, None).await.unwrap();
    let from_old = WatchOptions::new().with_start_revision(old.header().unwrap().revision());

    let mut stream = client.watch("key", Some(from_old)).await.unwrap();
    let created = next(&mut stream).await;
    let canceled = next(&mut stream).await;
    // The stream goes on for other watches.
    stream.watch("key", None).await.unwrap();
    let again = next(&mut stream).await;

    assert!(created.created());
    assert!(!created.canceled());
    assert!(canceled.canceled());
    assert_eq!(
        (canceled.watch_id(), canceled.compact_revision()),
        (created.watch_id(), now)
    );
    // The revision is the reason.
    assert_eq!(canceled.cancel_reason(), "");
    assert!(again.created());
    assert!(!again.canceled());
}

async fn next(stream: &mut WatchStream) -> WatchResponse {
    stream.message().await.unwrap().expect("the stream goes on")
}

/// The values of the next events, however they are packed into responses.
async fn values(stream: &mut WatchStream, count: usize) -> Vec<String> {
    let mut values = Vec::new();
    while values.len() < count {
        for event in next(stream).await.events() {
            values.push(event.kv().unwrap().value_str().unwrap().to_owned());
        }
    }
    values
}
