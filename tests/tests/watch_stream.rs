//! Watch responses over the wire, where small events are copied behind their heads and large ones are not.

#![allow(clippy::unwrap_used, reason = "a test fails where it unwraps")]

use bytes::Bytes;
use kv_proto::etcdserverpb::kv_client::KvClient;
use kv_proto::etcdserverpb::watch_client::WatchClient;
use kv_proto::etcdserverpb::watch_request::RequestUnion;
use kv_proto::etcdserverpb::{PutRequest, WatchCreateRequest, WatchRequest, WatchResponse};
use kv_tests::{Kvd, KvdOptions};
use tokio::sync::mpsc;
use tokio_stream::wrappers::ReceiverStream;
use tonic::Streaming;

/// On both sides of what the server copies, and large enough for many frames.
const VALUE_BYTES: [usize; 6] = [1, 300, 16_000, 17_000, 40_000, 900_000];
const ROUNDS: usize = 8;
const WATCHERS: i64 = 3;

#[tokio::test]
async fn events_of_all_sizes_arrive_whole_and_in_order() {
    let folder = tempfile::tempdir().unwrap();
    let mut kvd = Kvd::start(&folder.path().join("data"), KvdOptions::default());
    let channel = kvd.connect().await;
    let (requests, received) = mpsc::channel(8);
    let mut watch = WatchClient::new(channel.clone()).max_decoding_message_size(1 << 30);
    let mut responses = watch
        .watch(ReceiverStream::new(received))
        .await
        .unwrap()
        .into_inner();
    for _ in 0..WATCHERS {
        requests.send(create()).await.unwrap();
        assert!(next(&mut responses).await.created);
    }

    let sizes: Vec<usize> = std::iter::repeat_n(VALUE_BYTES, ROUNDS).flatten().collect();
    let writer = tokio::spawn(put_all(channel, sizes.clone()));

    let mut seen = vec![Vec::new(); WATCHERS as usize];
    while seen
        .iter()
        .any(|sizes: &Vec<_>| sizes.len() < ROUNDS * VALUE_BYTES.len())
    {
        let response = next(&mut responses).await;
        for event in response.events {
            let pair = event.kv.unwrap();
            let fill = pair.value[0];
            assert!(pair.value.iter().all(|&b| b == fill), "a value is mixed up");
            seen[response.watch_id as usize].push(pair.value.len());
        }
    }
    writer.await.unwrap();
    for of_one in seen {
        assert_eq!(of_one, sizes);
    }
}

async fn put_all(channel: tonic::transport::Channel, sizes: Vec<usize>) {
    let mut kv = KvClient::new(channel);
    for (n, size) in sizes.into_iter().enumerate() {
        let put = PutRequest {
            key: Bytes::from_static(b"key"),
            value: vec![n as u8; size].into(),
            ..Default::default()
        };
        kv.put(put).await.unwrap();
    }
}

async fn next(responses: &mut Streaming<WatchResponse>) -> WatchResponse {
    tokio::time::timeout(std::time::Duration::from_secs(30), responses.message())
        .await
        .expect("a response within half a minute")
        .unwrap()
        .expect("the stream goes on")
}

fn create() -> WatchRequest {
    WatchRequest {
        request_union: Some(RequestUnion::CreateRequest(WatchCreateRequest {
            key: Bytes::from_static(b"key"),
            ..Default::default()
        })),
    }
}
