use std::collections::BTreeSet;

use ::http::HeaderMap;
use kv_proto::etcdserverpb::request_op::Request as Op;
use kv_proto::etcdserverpb::{
    PutRequest, RangeRequest, RangeResponse, RequestOp, ResponseHeader, TxnRequest, TxnResponse,
};
use kv_proto::mvccpb::KeyValue;
use prost::Message;
use serde_json::{Value, json};

use super::*;

fn request<M: Message + Default>(path: &str, body: &str) -> Result<M, JsonError> {
    let gateway = Gateway::new();
    let binding = gateway.binding(path).unwrap();
    let encoded = binding.request(body.as_bytes())?;
    Ok(M::decode(&encoded[..]).unwrap())
}

fn response(path: &str, message: &impl Message) -> Value {
    let gateway = Gateway::new();
    let json = gateway
        .binding(path)
        .unwrap()
        .response(message.encode_to_vec().into());
    serde_json::from_slice(&json.unwrap()).unwrap()
}

#[test]
fn every_method_of_the_published_surface_has_its_path() {
    let gateway = Gateway::new();
    let methods: BTreeSet<_> = gateway.bindings.values().map(|b| b.method).collect();
    let pool = DescriptorPool::decode(kv_proto::DESCRIPTORS).unwrap();
    let offered: BTreeSet<String> = pool
        .services()
        .filter(|service| {
            ["etcdserverpb", "v3lockpb", "v3electionpb"].contains(&service.package_name())
        })
        .flat_map(|service| {
            let methods = service.methods().map(|m| m.name().to_owned());
            let name = service.full_name().to_owned();
            methods
                .map(|method| format!("/{name}/{method}"))
                .collect::<Vec<_>>()
        })
        // gRPC only, as etcd's.
        .filter(|method| method != "/etcdserverpb.KV/RangeStream")
        .collect();
    assert_eq!(methods.len(), offered.len());
    assert!(methods.iter().all(|method| offered.contains(*method)));
}

#[test]
fn the_old_prefix_leads_to_the_same_methods() {
    let gateway = Gateway::new();
    let binding = gateway.binding("/v3beta/kv/range").unwrap();
    assert_eq!(binding.method, "/etcdserverpb.KV/Range");
    assert!(gateway.binding("/v3/v3beta/kv/range").is_none());
    assert!(gateway.binding("/v3/kv/rangestream").is_none());
}

#[test]
fn names_numbers_bytes_and_enums_are_read_in_every_form() {
    let expected = RangeRequest {
        key: "a?>".into(),
        range_end: "b".into(),
        limit: 5,
        sort_order: 2,
        keys_only: true,
        ..Default::default()
    };
    for body in [
        r#"{"key":"YT8+","range_end":"Yg==","limit":"5","sort_order":"DESCEND","keys_only":true}"#,
        r#"{"key":"YT8-","rangeEnd":"Yg","limit":5,"sortOrder":2,"keysOnly":true}"#,
        r#"{"key":"YT8+","range_end":"Yg==","limit":5.0,"sort_order":2,"keys_only":true,"unheard_of":[{}]}"#,
        r#" {"key":"YT8+","range_end":"Yg==","limit":5,"revision":null,"sort_order":2,"keys_only":true} trailing"#,
    ] {
        let read: RangeRequest = request("/v3/kv/range", body).unwrap();
        assert_eq!(read, expected, "{body}");
    }
    let empty: RangeRequest = request("/v3/kv/range", "").unwrap();
    assert_eq!(empty, RangeRequest::default());
}

#[test]
fn nested_operations_are_read() {
    let body = r#"{"success":[{"requestPut":{"key":"YQ==","value":"MQ=="}},{"request_range":{"key":"YQ=="}}]}"#;
    let read: TxnRequest = request("/v3/kv/txn", body).unwrap();
    let put = PutRequest {
        key: "a".into(),
        value: "1".into(),
        ..Default::default()
    };
    let operation = RequestOp {
        request: Some(Op::RequestPut(put)),
    };
    assert_eq!(read.success[0], operation);
    assert_eq!(read.success.len(), 2);
}

#[test]
fn what_is_not_the_message_is_refused() {
    for body in [
        "x",
        "[]",
        "null",
        "{",
        r#"{"key":"***"}"#,
        r#"{"key":7}"#,
        r#"{"limit":"many"}"#,
        r#"{"limit":9223372036854775808}"#,
        r#"{"limit":1.5}"#,
        r#"{"keys_only":"yes"}"#,
        r#"{"limit":1,"limit":2}"#,
        r#"{"range_end":"YQ==","rangeEnd":"YQ=="}"#,
    ] {
        let read = request::<RangeRequest>("/v3/kv/range", body);
        assert!(read.is_err(), "{body}: {read:?}");
    }
}

#[test]
fn a_deeply_nested_body_is_refused() {
    let body = format!("{}{}", r#"{"success":[{"request_txn":"#.repeat(5000), "{}");
    assert!(request::<TxnRequest>("/v3/kv/txn", &body).is_err());
}

#[test]
fn responses_leave_defaults_out_and_write_numbers_as_strings() {
    let kv = KeyValue {
        key: "a?>".into(),
        create_revision: 2,
        ..Default::default()
    };
    let message = RangeResponse {
        header: Some(ResponseHeader {
            cluster_id: u64::MAX,
            revision: 2,
            ..Default::default()
        }),
        kvs: vec![kv],
        more: true,
        count: 1,
    };
    let expected = json!({
        "header": {"cluster_id": "18446744073709551615", "revision": "2"},
        "kvs": [{"key": "YT8+", "create_revision": "2"}],
        "more": true,
        "count": "1",
    });
    assert_eq!(response("/v3/kv/range", &message), expected);
    assert_eq!(response("/v3/kv/txn", &TxnResponse::default()), json!({}));
}

#[test]
fn errors_have_code_message_and_status() {
    let answer = error(16, "etcdserver: invalid auth token");
    assert_eq!(answer.status(), 401);
    let header = &answer.headers()[WWW_AUTHENTICATE];
    assert_eq!(header, "etcdserver: invalid auth token");
    assert_eq!(
        streamed_error(14, "etcdserver: \"no\" leader"),
        b"{\"error\":{\"code\":14,\"message\":\"etcdserver: \\\"no\\\" leader\"}}\n"
    );
    let statuses: Vec<u16> = (0..=17).map(|code| http_status(code).as_u16()).collect();
    assert_eq!(
        statuses,
        [
            200, 499, 500, 400, 504, 404, 409, 403, 429, 400, 409, 400, 501, 500, 503, 500, 401,
            500
        ]
    );
}

#[test]
fn objects_are_cut_out_wherever_the_body_is_split() {
    let body = br#" {"a":"}{\"\\"}
{"b":[{"c":"]"}]}{}"#;
    for cut in 0..body.len() {
        let mut values = Values::default();
        let mut found = Vec::new();
        for piece in [&body[..cut], &body[cut..]] {
            values.push(piece);
            while let Some(object) = values.next_object().unwrap() {
                found.push(object);
            }
        }
        let expected: [&[u8]; 3] = [br#"{"a":"}{\"\\"}"#, br#"{"b":[{"c":"]"}]}"#, b"{}"];
        assert_eq!(found, expected, "cut at {cut}");
        assert_eq!(values.pending_bytes(), 0);
    }
    let mut values = Values::default();
    values.push(b"  }");
    assert_eq!(
        values.next_object().unwrap_err().to_string(),
        "invalid character '}' looking for the beginning of an object"
    );
}

#[test]
fn metadata_is_the_token_and_what_is_prefixed() {
    let mut headers = HeaderMap::new();
    for (name, value) in [
        ("authorization", "Bearer abc"),
        ("grpc-metadata-hasleader", "true"),
        ("grpc-metadata-token", "t"),
        ("grpc-metadata-content-type", "text/plain"),
        ("grpc-metadata-grpcgateway-accept", ""),
        ("grpc-timeout", "250m"),
        ("cookie", "secret"),
        ("accept", "application/json"),
    ] {
        headers.append(name, HeaderValue::from_static(value));
    }
    let metadata = metadata(&headers).unwrap();
    let expected = [
        ("hasleader", "true"),
        ("token", "t"),
        ("authorization", "Bearer abc"),
        ("grpc-timeout", "250m"),
        ("grpcgateway-accept", "*/*"),
        ("content-type", "application/grpc"),
        ("te", "trailers"),
    ];
    assert_eq!(metadata.len(), expected.len());
    for (name, value) in expected {
        assert_eq!(metadata[name], value, "{name}");
    }
    headers.insert("grpc-timeout", HeaderValue::from_static("soon"));
    let refused = super::metadata(&headers).unwrap_err();
    assert_eq!(refused.to_string(), "invalid grpc-timeout: soon");
}
