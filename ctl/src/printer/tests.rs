//! Exact outputs, as etcdctl 3.7.3 printed them for the same answers.

use kv_proto::{
    etcdserverpb::{
        AlarmMember, AlarmType, DowngradeInfo, LeaseStatus, Member, ResponseHeader, ResponseOp,
        response_op::Response,
    },
    mvccpb::{Event, KeyValue, event::EventType},
};

use super::*;
use crate::exit::Exit;

fn header(revision: i64) -> Option<ResponseHeader> {
    Some(ResponseHeader {
        cluster_id: 0xfe27_8a12_8202_922e,
        member_id: 0x9f3e_a46a_f461_af15,
        revision,
        raft_term: 2,
    })
}

fn kv(key: &'static str, value: &'static str) -> KeyValue {
    KeyValue {
        key: key.into(),
        create_revision: 2,
        mod_revision: 3,
        version: 2,
        value: value.into(),
        lease: 0,
    }
}

fn text(form: Form, answer: &Answer<'_>, hex: bool) -> String {
    String::from_utf8(form.print(answer, hex).unwrap().out).unwrap()
}

const HEADER_JSON: &str = r#""cluster_id":18313758221820662318,"member_id":11474789679860133653"#;
const HEADER_FIELDS: &str =
    "\"ClusterID\" : 18313758221820662318\n\"MemberID\" : 11474789679860133653\n";

#[test]
fn get() {
    let response = RangeResponse {
        header: header(3),
        kvs: vec![kv("a", "-2")],
        more: false,
        count: 1,
    };
    let answer = Answer::Get {
        response: &response,
        value_only: false,
    };
    assert_eq!(text(Form::Simple, &answer, false), "a\n-2\n");
    assert_eq!(text(Form::Simple, &answer, true), "\\x61\n\\x2d\\x32\n");
    assert_eq!(
        text(
            Form::Simple,
            &Answer::Get {
                response: &response,
                value_only: true
            },
            false
        ),
        "-2\n"
    );
    assert_eq!(
        text(Form::Json, &answer, false),
        format!(
            "{{\"header\":{{{HEADER_JSON},\"revision\":3,\"raft_term\":2}},\"kvs\":[{{\"key\":\"YQ==\",\"create_revision\":2,\
             \"mod_revision\":3,\"version\":2,\"value\":\"LTI=\"}}],\"count\":1}}\n"
        )
    );
    assert_eq!(
        text(Form::Fields, &answer, false),
        format!(
            "{HEADER_FIELDS}\"Revision\" : 3\n\"RaftTerm\" : 2\n\"Key\" : \"a\"\n\"CreateRevision\" : 2\n\"ModRevision\" : 3\n\
             \"Version\" : 2\n\"Value\" : \"-2\"\n\"Lease\" : 0\n\"More\" : false\n\"Count\" : 1\n"
        )
    );
    assert_eq!(
        Form::Protobuf.print(&answer, false).unwrap().out,
        prost::Message::encode_to_vec(&response)
    );
    let refused = Form::Table.print(&answer, false).unwrap_err();
    assert_eq!(refused.exit, Exit::BadFeature);
    assert_eq!(
        refused.message.unwrap(),
        "table not supported as output format"
    );
}

#[test]
fn keys_that_are_no_text_stay_as_they_are() {
    let raw = KeyValue {
        key: b"\xff\x00"[..].into(),
        value: "v".into(),
        ..Default::default()
    };
    let response = RangeResponse {
        kvs: vec![raw],
        ..Default::default()
    };
    let answer = Answer::Get {
        response: &response,
        value_only: false,
    };
    assert_eq!(
        Form::Simple.print(&answer, false).unwrap().out,
        b"\xff\x00\nv\n"
    );
    assert!(text(Form::Fields, &answer, false).contains("\"Key\" : \"\\xff\\x00\"\n"));
}

#[test]
fn put_and_del_show_previous_pairs() {
    let put = PutResponse {
        header: header(4),
        prev_kv: Some(kv("a", "1")),
    };
    assert_eq!(text(Form::Simple, &Answer::Put(&put), false), "OK\na\n1\n");
    assert!(
        text(Form::Fields, &Answer::Put(&put), true)
            .ends_with("\"PrevValue\" : \"1\"\n\"PrevLease\" : 0000000000000000\n")
    );
    let del = DeleteRangeResponse {
        header: header(5),
        deleted: 1,
        prev_kvs: vec![kv("a", "1")],
    };
    assert_eq!(text(Form::Simple, &Answer::Del(&del), false), "1\na\n1\n");
    assert!(
        text(Form::Json, &Answer::Del(&del), false)
            .contains(r#""deleted":1,"prev_kvs":[{"key":"YQ==","#)
    );
    let none = DeleteRangeResponse {
        header: None,
        deleted: 0,
        prev_kvs: vec![],
    };
    assert_eq!(text(Form::Json, &Answer::Del(&none), false), "{}\n");
}

#[test]
fn txn_shows_each_step() {
    let step = |response| ResponseOp {
        response: Some(response),
    };
    let inner = Some(ResponseHeader {
        revision: 9,
        ..Default::default()
    });
    let response = TxnResponse {
        header: header(9),
        succeeded: true,
        responses: vec![
            step(Response::ResponsePut(PutResponse {
                header: inner,
                prev_kv: None,
            })),
            step(Response::ResponseRange(RangeResponse {
                header: inner,
                kvs: vec![kv("a", "9")],
                more: false,
                count: 1,
            })),
        ],
    };
    let answer = Answer::Txn(&response);
    assert_eq!(
        text(Form::Simple, &answer, false),
        "SUCCESS\n\nOK\n\na\n9\n"
    );
    assert_eq!(
        text(Form::Json, &answer, false),
        format!(
            "{{\"header\":{{{HEADER_JSON},\"revision\":9,\"raft_term\":2}},\"succeeded\":true,\"responses\":[\
             {{\"Response\":{{\"response_put\":{{\"header\":{{\"revision\":9}}}}}}}},\
             {{\"Response\":{{\"response_range\":{{\"header\":{{\"revision\":9}},\"kvs\":[{{\"key\":\"YQ==\",\
             \"create_revision\":2,\"mod_revision\":3,\"version\":2,\"value\":\"OQ==\"}}],\"count\":1}}}}}}]}}\n"
        )
    );
    assert!(text(Form::Fields, &answer, false).contains(
        "\"Succeeded\" : true\n\"ClusterID\" : 0\n\"MemberID\" : 0\n\"Revision\" : 9\n\"RaftTerm\" : 0\n"
    ));
}

#[test]
fn watch_shows_events_and_cancellation() {
    let deleted = KeyValue {
        key: "w".into(),
        mod_revision: 14,
        ..Default::default()
    };
    let event = Event {
        r#type: EventType::Delete.into(),
        kv: Some(deleted),
        prev_kv: Some(kv("w", "2")),
    };
    let response = WatchResponse {
        header: header(14),
        watch_id: 7,
        events: vec![event],
        ..Default::default()
    };
    let answer = Answer::Watch(&response);
    assert_eq!(text(Form::Simple, &answer, false), "DELETE\nw\n2\nw\n\n");
    assert_eq!(
        text(Form::Json, &answer, false),
        format!(
            "{{\"Header\":{{{HEADER_JSON},\"revision\":14,\"raft_term\":2}},\"Events\":[{{\"type\":1,\"kv\":{{\"key\":\"dw==\",\
             \"mod_revision\":14}},\"prev_kv\":{{\"key\":\"dw==\",\"create_revision\":2,\"mod_revision\":3,\"version\":2,\
             \"value\":\"Mg==\"}}}}],\"CompactRevision\":0,\"Canceled\":false,\"Created\":false,\"CancelReason\":\"\"}}\n"
        )
    );
    let canceled = WatchResponse {
        header: Some(ResponseHeader::default()),
        canceled: true,
        ..Default::default()
    };
    assert_eq!(
        text(Form::Json, &Answer::Watch(&canceled), false),
        "{\"Header\":{},\"Events\":null,\"CompactRevision\":0,\"Canceled\":true,\"Created\":false,\"CancelReason\":\"\"}\n"
    );
    assert_eq!(
        text(Form::Fields, &Answer::Watch(&canceled), false),
        "\"ClusterID\" : 0\n\"MemberID\" : 0\n\"RaftTerm\" : 0\n"
    );
}

#[test]
fn leases() {
    let id = 0x2f15_a1fa_6f28_2746;
    let grant = LeaseGrantResponse {
        header: header(17),
        id,
        ttl: 60,
        error: String::new(),
    };
    assert_eq!(
        text(Form::Simple, &Answer::Grant(&grant), false),
        "lease 2f15a1fa6f282746 granted with TTL(60s)\n"
    );
    assert_eq!(
        text(Form::Json, &Answer::Grant(&grant), false),
        format!(
            "{{{HEADER_JSON},\"revision\":17,\"raft_term\":2,\"ID\":3392795991272335174,\"TTL\":60,\"Error\":\"\"}}\n"
        )
    );
    let live = LeaseTimeToLiveResponse {
        header: header(17),
        id,
        ttl: 59,
        granted_ttl: 60,
        keys: vec!["l1".into(), "l2".into()],
    };
    let answer = Answer::TimeToLive {
        response: &live,
        keys: true,
    };
    assert_eq!(
        text(Form::Simple, &answer, false),
        "lease 2f15a1fa6f282746 granted with TTL(60s), remaining(59s), attached keys([l1 l2])\n"
    );
    assert!(text(Form::Json, &answer, false).ends_with(
        "\"id\":3392795991272335174,\"ttl\":59,\"granted-ttl\":60,\"keys\":[\"bDE=\",\"bDI=\"]}\n"
    ));
    assert!(text(Form::Fields, &answer, true).ends_with(
        "\"ID\" : 2f15a1fa6f282746\n\"TTL\" : 59\n\"GrantedTTL\" : 60\n\"Key\" : \"l1\"\n\"Key\" : \"l2\"\n"
    ));
    let gone = LeaseTimeToLiveResponse {
        header: None,
        id: 0x1234,
        ttl: -1,
        granted_ttl: 0,
        keys: vec![],
    };
    let answer = Answer::TimeToLive {
        response: &gone,
        keys: false,
    };
    assert_eq!(
        text(Form::Simple, &answer, false),
        "lease 0000000000001234 already expired\n"
    );
    assert_eq!(
        text(Form::Json, &answer, false),
        "{\"id\":4660,\"ttl\":-1,\"granted-ttl\":0,\"keys\":null}\n"
    );
    let list = LeaseLeasesResponse {
        header: None,
        leases: vec![LeaseStatus { id }],
    };
    assert_eq!(
        text(Form::Simple, &Answer::Leases(&list), false),
        "found 1 leases\n2f15a1fa6f282746\n"
    );
    assert_eq!(
        text(Form::Json, &Answer::Leases(&list), false),
        "{\"leases\":[{\"id\":3392795991272335174}]}\n"
    );
    let none = LeaseLeasesResponse::default();
    assert_eq!(
        text(Form::Json, &Answer::Leases(&none), false),
        "{\"leases\":[]}\n"
    );
    let revoked = LeaseRevokeResponse { header: header(17) };
    let answer = Answer::Revoke {
        id,
        response: &revoked,
    };
    assert_eq!(
        text(Form::Simple, &answer, false),
        "lease 2f15a1fa6f282746 revoked\n"
    );
    assert_eq!(
        Form::Protobuf.print(&answer, false).unwrap_err().exit,
        Exit::BadFeature
    );
    let renewed = LeaseKeepAliveResponse {
        header: None,
        id,
        ttl: 2,
    };
    assert_eq!(
        text(Form::Simple, &Answer::KeepAlive(&renewed), false),
        "lease 2f15a1fa6f282746 keepalived with TTL(2)\n"
    );
    assert_eq!(
        text(Form::Json, &Answer::KeepAlive(&renewed), false),
        "{\"ID\":3392795991272335174,\"TTL\":2}\n"
    );
}

#[test]
fn members() {
    let member = Member {
        id: 0x9f3e_a46a_f461_af15,
        name: "default".into(),
        peer_ur_ls: vec!["http://127.0.0.1:33792".into()],
        client_ur_ls: vec!["http://127.0.0.1:33791".into()],
        is_learner: false,
    };
    let response = MemberListResponse {
        header: header(0),
        members: vec![member],
    };
    let answer = Answer::Members(&response);
    assert_eq!(
        text(Form::Simple, &answer, false),
        "9f3ea46af461af15, started, default, http://127.0.0.1:33792, http://127.0.0.1:33791, false\n"
    );
    assert_eq!(
        text(Form::Json, &answer, true),
        "{\"header\":{\"cluster_id\":\"fe278a128202922e\",\"member_id\":\"9f3ea46af461af15\",\"raft_term\":2},\"members\":[\
         {\"ID\":\"9f3ea46af461af15\",\"name\":\"default\",\"peerURLs\":[\"http://127.0.0.1:33792\"],\
         \"clientURLs\":[\"http://127.0.0.1:33791\"]}]}\n"
    );
    assert_eq!(
        text(Form::Fields, &answer, true),
        "\"ClusterID\" : fe278a128202922e\n\"MemberID\" : 9f3ea46af461af15\n\"RaftTerm\" : 2\n\"ID\" : 9f3ea46af461af15\n\
         \"Name\" : \"default\"\n\"PeerURL\" : \"http://127.0.0.1:33792\"\n\"ClientURL\" : \"http://127.0.0.1:33791\"\n\
         \"IsLearner\" : false\n\n"
    );
    assert_eq!(
        text(Form::Table, &answer, false),
        "\
┌──────────────────┬─────────┬─────────┬────────────────────────┬────────────────────────┬────────────┐
│        ID        │ STATUS  │  NAME   │       PEER ADDRS       │      CLIENT ADDRS      │ IS LEARNER │
├──────────────────┼─────────┼─────────┼────────────────────────┼────────────────────────┼────────────┤
│ 9f3ea46af461af15 │ started │ default │ http://127.0.0.1:33792 │ http://127.0.0.1:33791 │      false │
└──────────────────┴─────────┴─────────┴────────────────────────┴────────────────────────┴────────────┘
"
    );
}

#[test]
fn endpoint_status() {
    let status = StatusResponse {
        header: header(3),
        version: "3.7.3".into(),
        db_size: 20480,
        leader: 0x9f3e_a46a_f461_af15,
        raft_index: 6,
        raft_term: 2,
        raft_applied_index: 6,
        db_size_in_use: 16384,
        storage_version: "3.7.0".into(),
        db_size_quota: 2_147_483_648,
        downgrade_info: Some(DowngradeInfo::default()),
        ..Default::default()
    };
    let all = [("127.0.0.1:33791".to_owned(), status)];
    assert_eq!(
        text(Form::Simple, &Answer::Status(&all), false),
        "127.0.0.1:33791, 9f3ea46af461af15, 3.7.3, 3.7.0, 20 kB, 16 kB, 20%, 2.1 GB, true, false, 2, 6, 6, , , false\n"
    );
    assert_eq!(
        text(Form::Json, &Answer::Status(&all), false),
        format!(
            "[{{\"Endpoint\":\"127.0.0.1:33791\",\"Status\":{{\"header\":{{{HEADER_JSON},\"revision\":3,\"raft_term\":2}},\
             \"version\":\"3.7.3\",\"dbSize\":20480,\"leader\":11474789679860133653,\"raftIndex\":6,\"raftTerm\":2,\
             \"raftAppliedIndex\":6,\"dbSizeInUse\":16384,\"storageVersion\":\"3.7.0\",\"dbSizeQuota\":2147483648,\
             \"downgradeInfo\":{{}}}}}}]\n"
        )
    );
    assert!(text(Form::Fields, &Answer::Status(&all), false).ends_with(
        "\"RaftAppliedIndex\" : 6\n\"Errors\" : []\n\"Endpoint\" : \"127.0.0.1:33791\"\n\"DowngradeTargetVersion\" : \"\"\n\
         \"DowngradeEnabled\" : false\n\n"
    ));
    let empty = [("a".to_owned(), StatusResponse::default())];
    assert!(text(Form::Simple, &Answer::Status(&empty), false).contains("0 B, 0 B, 100%"));
}

#[test]
fn endpoint_health_and_hash() {
    let good = Health {
        endpoint: "a:1".into(),
        healthy: true,
        took: "1.881319ms".into(),
        error: String::new(),
    };
    let bad = Health {
        endpoint: "b:2".into(),
        healthy: false,
        took: "1s".into(),
        error: "no <leader>".into(),
    };
    let all = [good, bad];
    let printed = Form::Simple.print(&Answer::Health(&all), false).unwrap();
    assert_eq!(
        printed.out,
        b"a:1 is healthy: successfully committed proposal: took = 1.881319ms\n"
    );
    assert_eq!(
        printed.err,
        b"b:2 is unhealthy: failed to commit proposal: no <leader>\n"
    );
    assert_eq!(
        text(Form::Json, &Answer::Health(&all), false),
        "[{\"endpoint\":\"a:1\",\"health\":true,\"took\":\"1.881319ms\"},{\"endpoint\":\"b:2\",\"health\":false,\
         \"took\":\"1s\",\"error\":\"no \\u003cleader\\u003e\"}]\n"
    );
    let hash = HashKvResponse {
        header: header(3),
        hash: 1_146_794_381,
        compact_revision: -1,
        hash_revision: 3,
    };
    let hashes = [("127.0.0.1:33791".to_owned(), hash)];
    assert_eq!(
        text(Form::Simple, &Answer::HashKv(&hashes), false),
        "127.0.0.1:33791, 1146794381, 3\n"
    );
    assert!(
        text(Form::Json, &Answer::HashKv(&hashes), false)
            .ends_with("\"hash\":1146794381,\"compact_revision\":-1,\"hash_revision\":3}}]\n")
    );
    assert_eq!(text(Form::Json, &Answer::HashKv(&[]), false), "null\n");
    assert_eq!(
        text(Form::Table, &Answer::HashKv(&[]), false),
        "┌──────────┬──────┬───────────────┐\n│ ENDPOINT │ HASH │ HASH REVISION │\n└──────────┴──────┴───────────────┘\n"
    );
}

#[test]
fn downgrade() {
    let response = DowngradeResponse {
        header: header(3),
        version: "3.7.0".to_owned(),
    };
    let answer = Answer::Downgrade {
        done: "enable",
        response: &response,
    };
    assert_eq!(
        text(Form::Simple, &answer, false),
        "Downgrade enable success, cluster version 3.7.0\n"
    );
    assert!(text(Form::Json, &answer, false).ends_with("\"version\":\"3.7.0\"}\n"));
}

#[test]
fn alarms() {
    let alarm = AlarmMember {
        member_id: 5,
        alarm: AlarmType::Nospace.into(),
    };
    let response = AlarmResponse {
        header: header(3),
        alarms: vec![alarm],
    };
    let answer = Answer::Alarms(&response);
    assert_eq!(
        text(Form::Simple, &answer, false),
        "memberID:5 alarm:NOSPACE\n"
    );
    assert!(
        text(Form::Json, &answer, false).ends_with("\"alarms\":[{\"memberID\":5,\"alarm\":1}]}\n")
    );
    assert!(
        text(Form::Fields, &answer, false)
            .ends_with("\"MemberID\" : 5\n\"AlarmType\" : NOSPACE\n\n")
    );
}
