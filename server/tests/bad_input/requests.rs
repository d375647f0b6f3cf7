//! Requests that no correct client sends. The member answers and goes on.

use std::io::{Read, Write};
use std::net::{SocketAddr, TcpStream};
use std::time::Duration;

use kv_proto::etcdserverpb::maintenance_client::MaintenanceClient;
use kv_proto::etcdserverpb::{
    AlarmRequest, CompactionRequest, DeleteRangeRequest, PutResponse, RangeRequest, RequestOp,
    TxnRequest,
};
use tonic::{Code, Status};

use crate::member::Member;

/// A put whose key is a number.
#[derive(Clone, PartialEq, prost::Message)]
struct WrongPut {
    #[prost(uint64, tag = "1")]
    key: u64,
}

#[tokio::test]
async fn unusable_requests_get_etcds_errors() {
    let folder = tempfile::tempdir().unwrap();
    let member = Member::start(&folder.path().join("data"), &[]).await;
    member.put("a", "1").await.unwrap();
    let mut kv = member.kv();
    let refused = |outcome: Result<(), Status>, code, text: &str| {
        let status = outcome.unwrap_err();
        assert_eq!((status.code(), status.message()), (code, text));
    };

    let outcome = member.put("", "v").await;
    refused(
        outcome,
        Code::InvalidArgument,
        "etcdserver: key is not provided",
    );
    let outcome = member.put("k", &"v".repeat(1_600_000)).await;
    refused(
        outcome,
        Code::InvalidArgument,
        "etcdserver: request is too large",
    );
    let outcome = member.put("k", &"v".repeat(3_000_000)).await.unwrap_err();
    assert_eq!(outcome.code(), Code::ResourceExhausted, "{outcome}");
    let range = |key: &'static str, end: &'static str| RangeRequest {
        key: key.into(),
        range_end: end.into(),
        ..Default::default()
    };
    let outcome = kv.range(range("", "")).await.map(|_| ());
    refused(
        outcome,
        Code::InvalidArgument,
        "etcdserver: key is not provided",
    );
    let request = RangeRequest {
        sort_order: 99,
        ..range("a", "b")
    };
    let outcome = kv.range(request).await.map(|_| ());
    refused(
        outcome,
        Code::InvalidArgument,
        "etcdserver: invalid sort option",
    );
    let request = RangeRequest {
        revision: 1000,
        ..range("a", "b")
    };
    let outcome = kv.range(request).await.map(|_| ());
    let future = "etcdserver: mvcc: required revision is a future revision";
    refused(outcome, Code::OutOfRange, future);
    let request = CompactionRequest {
        revision: 1000,
        physical: false,
    };
    let outcome = kv.compact(request).await.map(|_| ());
    refused(outcome, Code::OutOfRange, future);
    let request = DeleteRangeRequest::default();
    let outcome = kv.delete_range(request).await.map(|_| ());
    refused(
        outcome,
        Code::InvalidArgument,
        "etcdserver: key is not provided",
    );
    let request = TxnRequest {
        success: vec![RequestOp::default()],
        ..Default::default()
    };
    let outcome = kv.txn(request).await.map(|_| ());
    refused(outcome, Code::InvalidArgument, "etcdserver: key not found");
    let path = http::uri::PathAndQuery::from_static("/etcdserverpb.KV/Put");
    let codec = tonic_prost::ProstCodec::<WrongPut, PutResponse>::default();
    let mut client = tonic::client::Grpc::new(member.channel.clone());
    client.ready().await.unwrap();
    let request = tonic::Request::new(WrongPut { key: 7 });
    let status = client.unary(request, path, codec).await.unwrap_err();
    assert_eq!(status.code(), Code::Internal, "{status}");

    // Inverted ranges hold nothing; an unknown action is no action.
    assert_eq!(
        kv.range(range("b", "a")).await.unwrap().into_inner().count,
        0
    );
    let request = DeleteRangeRequest {
        key: "b".into(),
        range_end: "a".into(),
        ..Default::default()
    };
    let answer = kv.delete_range(request).await.unwrap().into_inner();
    assert_eq!(answer.deleted, 0);
    let request = AlarmRequest {
        action: 99,
        ..Default::default()
    };
    let mut maintenance = MaintenanceClient::new(member.channel.clone());
    let answer = maintenance.alarm(request).await.unwrap().into_inner();
    assert_eq!(answer.alarms, []);
    assert_eq!(member.get("a").await.as_deref(), Some("1"));
    assert!(!member.log().contains("panicked"), "{}", member.log());
}

#[tokio::test]
async fn garbage_on_the_port_ends_its_connection_only() {
    let folder = tempfile::tempdir().unwrap();
    let member = Member::start(&folder.path().join("data"), &[]).await;
    member.put("a", "1").await.unwrap();

    for garbage in [
        &[0xff; 100][..],
        b"\0\0\0\0\0\0\0\0",
        b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n\xff\xff\xff\xff\xff\xff\xff\xff\xff",
        b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03",
        b"GET\r\n\r\n",
    ] {
        // The member may close before all is written.
        talk(member.address, garbage);
    }
    let answer = talk(
        member.address,
        b"POST /etcdserverpb.KV/Put HTTP/1.1\r\nHost: k\r\nContent-Length: 3\r\nConnection: close\r\n\r\nabc",
    );
    let status = answer.split(' ').nth(1).unwrap_or_default().to_owned();
    assert!(status.starts_with('4'), "HTTP/1 to gRPC got {answer:?}");

    assert_eq!(member.get("a").await.as_deref(), Some("1"));
    assert!(!member.log().contains("panicked"), "{}", member.log());
}

/// Sends `bytes` on a connection of their own; what comes back until the member is silent or closes.
fn talk(address: SocketAddr, bytes: &[u8]) -> String {
    let mut stream = TcpStream::connect(address).unwrap();
    stream
        .set_read_timeout(Some(Duration::from_millis(300)))
        .unwrap();
    let mut answer = Vec::new();
    if stream.write_all(bytes).is_ok() {
        // Silence is an answer too.
        let _ = stream.read_to_end(&mut answer);
    }
    String::from_utf8_lossy(&answer).into_owned()
}
