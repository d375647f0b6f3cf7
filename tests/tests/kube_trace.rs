//! A recorded kube-apiserver session, replayed call by call, gets the answers it got from etcd.
//!
//! `data/kube-trace.jsonl.gz` holds 14,181 lines: 10,495 calls, 169 watches with 5,247 events, 17 lease expiries. Sent one by
//! one, every answer must be equal; left out are ids and terms of headers, lease ids (mapped), and the status call.

#![allow(clippy::unwrap_used, reason = "a test fails where it unwraps")]

use std::collections::HashMap;
use std::io::{BufRead, BufReader};

use base64::prelude::{BASE64_STANDARD, Engine};
use flate2::read::GzDecoder;
use kv_proto::etcdserverpb::kv_client::KvClient;
use kv_proto::etcdserverpb::lease_client::LeaseClient;
use kv_proto::etcdserverpb::request_op::Request as Op;
use kv_proto::etcdserverpb::response_op::Response as OpAnswer;
use kv_proto::etcdserverpb::watch_client::WatchClient;
use kv_proto::etcdserverpb::watch_request::RequestUnion;
use kv_proto::etcdserverpb::{
    CompactionRequest, LeaseGrantRequest, LeaseGrantResponse, LeaseRevokeRequest, RangeRequest,
    RangeResponse, ResponseHeader, TxnRequest, TxnResponse, WatchRequest, WatchResponse,
};
use kv_proto::mvccpb::{Event, KeyValue};
use kv_tests::{Kvd, KvdOptions};
use prost::Message;
use serde_json::Value;
use tokio_stream::StreamExt;
use tokio_stream::wrappers::ReceiverStream;
use tonic::transport::Channel;

/// Leases must not run out during the replay: the recorded expiries are replayed as revocations.
const LONG_TTL: i64 = 100_000;

#[tokio::test]
async fn the_recorded_session_gets_the_recorded_answers_on_redb() {
    replay("redb").await;
}

#[tokio::test]
async fn the_recorded_session_gets_the_recorded_answers_on_sled() {
    replay("sled").await;
}

async fn replay(engine: &str) {
    let folder = tempfile::tempdir().unwrap();
    let args = vec![
        format!("--storage-engine={engine}"),
        "--max-request-bytes=1572864".into(),
    ];
    let mut kvd = Kvd::start(
        &folder.path().join("data"),
        KvdOptions {
            args,
            ..Default::default()
        },
    );
    let mut replay = Replay::new(kvd.connect().await);
    let file = std::fs::File::open(concat!(
        env!("CARGO_MANIFEST_DIR"),
        "/data/kube-trace.jsonl.gz"
    ))
    .unwrap();
    for line in BufReader::new(GzDecoder::new(file)).lines() {
        let line: Value = serde_json::from_str(&line.unwrap()).unwrap();
        match line["k"].as_str().unwrap() {
            "call" => replay.call(&line).await,
            "expire" => replay.expire(&line).await,
            "wcreate" => replay.create_watch(&line).await,
            "wevents" => replay.compare_events(&line).await,
            "progress" | "wprogress" | "wcancel" => {}
            other => panic!("unknown line kind {other}"),
        }
    }
    let Replay {
        calls,
        errors,
        expiries,
        refused,
        events,
        watches,
        ..
    } = replay;
    assert_eq!(
        (calls, errors, expiries),
        (10_442, 6, 17),
        "calls, errors, expiries compared"
    );
    assert_eq!(
        (watches.len() + refused, events),
        (169, 5_247),
        "watches and events compared"
    );
}

struct Replay {
    kv: KvClient<Channel>,
    lease: LeaseClient<Channel>,
    watch: WatchClient<Channel>,
    /// Recorded lease id to ours.
    leases: HashMap<i64, i64>,
    /// Open watches by recorded stream and id.
    watches: HashMap<(i64, i64), Watched>,
    calls: usize,
    errors: usize,
    expiries: usize,
    refused: usize,
    events: usize,
}

struct Watched {
    /// Filled by a task, so that an unread watch does not fill the connection's window.
    responses: tokio::sync::mpsc::UnboundedReceiver<WatchResponse>,
    /// Keeps the request side open.
    _requests: tokio::sync::mpsc::Sender<WatchRequest>,
}

impl Replay {
    fn new(channel: Channel) -> Replay {
        let max = i32::MAX as usize;
        Replay {
            kv: KvClient::new(channel.clone())
                .max_decoding_message_size(max)
                .max_encoding_message_size(max),
            lease: LeaseClient::new(channel.clone()),
            watch: WatchClient::new(channel).max_decoding_message_size(max),
            leases: HashMap::new(),
            watches: HashMap::new(),
            calls: 0,
            errors: 0,
            expiries: 0,
            refused: 0,
            events: 0,
        }
    }

    async fn call(&mut self, line: &Value) {
        // The client gave up: there is no answer to compare.
        if line["code"] == 1 {
            return;
        }
        let method = line["m"].as_str().unwrap();
        let request = bytes(&line["q"]);
        let recorded = line.get("p").map(bytes);
        let at = &line["i"];
        match method {
            "/etcdserverpb.KV/Range" => {
                let request = RangeRequest::decode(&request[..]).unwrap();
                let answer = self
                    .kv
                    .range(request)
                    .await
                    .map(|r| without_ids_range(r.into_inner()));
                let want =
                    recorded.map(|p| self.with_our_leases(RangeResponse::decode(&p[..]).unwrap()));
                self.compare(at, line, answer, want.map(without_ids_range));
            }
            "/etcdserverpb.KV/Txn" => {
                let mut request = TxnRequest::decode(&request[..]).unwrap();
                for op in request.success.iter_mut().chain(&mut request.failure) {
                    if let Some(Op::RequestPut(put)) = &mut op.request {
                        put.lease = self.our_lease(put.lease);
                    }
                }
                let answer = self
                    .kv
                    .txn(request)
                    .await
                    .map(|r| without_ids_txn(r.into_inner()));
                let want = recorded.map(|p| {
                    let mut want = TxnResponse::decode(&p[..]).unwrap();
                    for op in &mut want.responses {
                        if let Some(OpAnswer::ResponseRange(range)) = &mut op.response {
                            *range = self.with_our_leases(range.clone());
                        }
                    }
                    without_ids_txn(want)
                });
                self.compare(at, line, answer, want);
            }
            "/etcdserverpb.KV/Compact" => {
                let request = CompactionRequest::decode(&request[..]).unwrap();
                let answer = self
                    .kv
                    .compact(request)
                    .await
                    .map(|r| r.into_inner().header.map(without_ids));
                let want = recorded.map(|p| {
                    let want = kv_proto::etcdserverpb::CompactionResponse::decode(&p[..]).unwrap();
                    want.header.map(without_ids)
                });
                self.compare(at, line, answer, want);
            }
            "/etcdserverpb.Lease/LeaseGrant" => {
                let recorded = LeaseGrantResponse::decode(&recorded.unwrap()[..]).unwrap();
                let request = LeaseGrantRequest::decode(&request[..]).unwrap();
                let request = LeaseGrantRequest {
                    ttl: LONG_TTL,
                    ..request
                };
                let granted = self.lease.lease_grant(request).await.unwrap().into_inner();
                assert_eq!(
                    granted.header.map(without_ids),
                    recorded.header.map(without_ids),
                    "line {at}"
                );
                assert_eq!(granted.ttl, LONG_TTL, "line {at}");
                self.leases.insert(recorded.id, granted.id);
                self.calls += 1;
            }
            "/etcdserverpb.Maintenance/Status" => {}
            other => panic!("line {at}: unknown method {other}"),
        }
    }

    fn compare<T: PartialEq + std::fmt::Debug>(
        &mut self,
        at: &Value,
        line: &Value,
        answer: Result<T, tonic::Status>,
        want: Option<T>,
    ) {
        match want {
            Some(want) => {
                let answer = answer.unwrap_or_else(|status| panic!("line {at}: {status}"));
                assert!(answer == want, "line {at}:\n got {answer:?}\nwant {want:?}");
                self.calls += 1;
            }
            None => {
                let status = answer.expect_err("the recorded call failed");
                assert_eq!(
                    status.code() as i64,
                    line["code"].as_i64().unwrap(),
                    "line {at}"
                );
                assert_eq!(status.message(), line["msg"].as_str().unwrap(), "line {at}");
                self.errors += 1;
            }
        }
    }

    async fn expire(&mut self, line: &Value) {
        let id = self.our_lease(line["lease"].as_i64().unwrap());
        let revoked = self
            .lease
            .lease_revoke(LeaseRevokeRequest { id })
            .await
            .unwrap()
            .into_inner();
        assert_eq!(
            Some(revoked.header.unwrap().revision),
            line["rev"].as_i64(),
            "line {}",
            line["i"]
        );
        self.expiries += 1;
    }

    async fn create_watch(&mut self, line: &Value) {
        let at = &line["i"];
        let mut request = WatchRequest::decode(&bytes(&line["q"])[..]).unwrap();
        // A stream each, so the server chooses the same first id.
        if let Some(RequestUnion::CreateRequest(create)) = &mut request.request_union {
            create.watch_id = 0;
        }
        let (requests, stream) = tokio::sync::mpsc::channel(4);
        requests.send(request).await.unwrap();
        let mut responses = self
            .watch
            .watch(ReceiverStream::new(stream))
            .await
            .unwrap()
            .into_inner();
        let created = responses.next().await.unwrap().unwrap();
        assert!(created.created, "line {at}: {created:?}");
        assert_eq!(
            Some(created.header.unwrap().revision),
            line["rev"].as_i64(),
            "line {at}"
        );
        // A cancel without a compacted revision was the client's own.
        if let Some(canceled) = line
            .get("canceled")
            .filter(|c| c["compact_revision"].as_i64() > Some(0))
        {
            let refusal = responses.next().await.unwrap().unwrap();
            assert!(refusal.canceled, "line {at}: {refusal:?}");
            assert_eq!(
                Some(refusal.compact_revision),
                canceled["compact_revision"].as_i64(),
                "line {at}"
            );
            assert_eq!(
                refusal.cancel_reason,
                canceled["reason"].as_str().unwrap_or(""),
                "line {at}"
            );
            self.refused += 1;
            return;
        }
        let key = (line["s"].as_i64().unwrap(), line["id"].as_i64().unwrap());
        let (read, unread) = tokio::sync::mpsc::unbounded_channel();
        tokio::spawn(async move {
            while let Some(Ok(response)) = responses.next().await {
                if read.send(response).is_err() {
                    return;
                }
            }
        });
        self.watches.insert(
            key,
            Watched {
                responses: unread,
                _requests: requests,
            },
        );
    }

    async fn compare_events(&mut self, line: &Value) {
        let at = &line["i"];
        let want = line["ev"].as_array().unwrap();
        let key = (line["s"].as_i64().unwrap(), line["id"].as_i64().unwrap());
        if want.is_empty() {
            return;
        }
        let watched = self
            .watches
            .get_mut(&key)
            .unwrap_or_else(|| panic!("line {at}: no watch {key:?}"));
        let mut events = Vec::new();
        while events.len() < want.len() {
            let response = watched.responses.recv().await.expect("a watch stays open");
            events.extend(response.events);
        }
        for (event, want) in events.iter().zip(want) {
            let ours = want[5]
                .as_i64()
                .map(|lease| self.leases.get(&lease).copied().unwrap_or(lease));
            let mut want = want.clone();
            want[5] = ours.into();
            assert_eq!(summary(event), want, "line {at}");
            self.events += 1;
        }
    }

    fn our_lease(&self, recorded: i64) -> i64 {
        if recorded == 0 {
            0
        } else {
            self.leases[&recorded]
        }
    }

    fn with_our_leases(&self, mut response: RangeResponse) -> RangeResponse {
        for kv in &mut response.kvs {
            kv.lease = self.our_lease(kv.lease);
        }
        response
    }
}

/// The recording's form of an event.
fn summary(event: &Event) -> Value {
    let kv = event.kv.clone().unwrap_or_default();
    let crc = |kv: &KeyValue| crc32fast::hash(&kv.value);
    let previous = event.prev_kv.as_ref().map(|p| {
        serde_json::json!([
            p.mod_revision,
            p.create_revision,
            p.version,
            p.value.len(),
            crc(p)
        ])
    });
    serde_json::json!([
        kv.mod_revision,
        event.r#type,
        String::from_utf8_lossy(&kv.key),
        kv.create_revision,
        kv.version,
        kv.lease,
        kv.value.len(),
        crc(&kv),
        previous
    ])
}

fn without_ids(header: ResponseHeader) -> ResponseHeader {
    ResponseHeader {
        revision: header.revision,
        ..Default::default()
    }
}

fn without_ids_range(response: RangeResponse) -> RangeResponse {
    RangeResponse {
        header: response.header.map(without_ids),
        ..response
    }
}

fn without_ids_txn(response: TxnResponse) -> TxnResponse {
    TxnResponse {
        header: response.header.map(without_ids),
        ..response
    }
}

fn bytes(value: &Value) -> Vec<u8> {
    BASE64_STANDARD.decode(value.as_str().unwrap()).unwrap()
}
