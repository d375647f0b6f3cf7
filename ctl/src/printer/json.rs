//! The JSON form: one object (or list) a line, as Go's `encoding/json` writes etcd's structs.
//!
//! Names are the protobuf ones, zero values are left out, integers are numbers, bytes are base64 and
//! enums numbers. The objects of leases and watches have names of their own.

use std::fmt::{Display, Write};

use base64::{Engine, engine::general_purpose::STANDARD};
use kv_proto::{
    etcdserverpb::{
        DeleteRangeResponse, Member, MemberListResponse, PutResponse, RangeResponse,
        ResponseHeader, StatusResponse, TxnResponse, WatchResponse, response_op::Response,
    },
    mvccpb::KeyValue,
};

use super::{Answer, Health, auth};

/// Renders any answer; `hex` writes the ids of members as hexadecimal strings.
pub(super) fn print(answer: &Answer<'_>, hex: bool) -> String {
    let mut out = match answer {
        Answer::Get { response, .. } => object(|o| range(o, response)),
        Answer::Put(response) => object(|o| put(o, response)),
        Answer::Del(response) => object(|o| delete_range(o, response)),
        Answer::Txn(response) => object(|o| txn(o, response)),
        Answer::Watch(response) => object(|o| watch(o, response)),
        Answer::Grant(r) => object(|o| {
            header_fields(o, r.header.as_ref());
            o.value("ID", r.id);
            o.value("TTL", r.ttl);
            o.value("Error", quoted(&r.error));
        }),
        Answer::Revoke { response, .. } => object(|o| header(o, &response.header)),
        Answer::TimeToLive { response: r, .. } => object(|o| {
            header_fields(o, r.header.as_ref());
            o.value("id", r.id);
            o.value("ttl", r.ttl);
            o.value("granted-ttl", r.granted_ttl);
            let keys = r.keys.iter().map(|key| base64(key));
            o.value(
                "keys",
                if r.keys.is_empty() {
                    "null".to_owned()
                } else {
                    list(keys)
                },
            );
        }),
        Answer::Leases(r) => object(|o| {
            header_fields(o, r.header.as_ref());
            o.value(
                "leases",
                list(
                    r.leases
                        .iter()
                        .map(|lease| object(|o| o.value("id", lease.id))),
                ),
            );
        }),
        Answer::KeepAlive(r) => object(|o| {
            header_fields(o, r.header.as_ref());
            o.value("ID", r.id);
            o.value("TTL", r.ttl);
        }),
        Answer::Members(response) if hex => object(|o| members_in_hex(o, response)),
        Answer::Members(response) => object(|o| members(o, response)),
        Answer::MemberAdd { response: r, .. } => object(|o| {
            header(o, &r.header);
            o.some("member", r.member.as_ref().map(member));
            o.list("members", &r.members, member);
        }),
        Answer::MemberRemove { response: r, .. } => members_after(&r.header, &r.members),
        Answer::MemberUpdate { response: r, .. } => members_after(&r.header, &r.members),
        Answer::MemberPromote { response: r, .. } => members_after(&r.header, &r.members),
        Answer::MoveLeader { response: r, .. } => object(|o| header(o, &r.header)),
        Answer::Downgrade { response: r, .. } => object(|o| {
            header(o, &r.header);
            o.text("version", &r.version);
        }),
        Answer::Health(all) => list_or_null(all.iter().map(|h| object(|o| health(o, h)))),
        Answer::Status(all) => list_or_null(all.iter().map(|(endpoint, r)| {
            object(|o| {
                o.value("Endpoint", quoted(endpoint));
                o.value("Status", object(|o| status(o, r)));
            })
        })),
        Answer::HashKv(all) => list_or_null(all.iter().map(|(endpoint, r)| {
            object(|o| {
                o.value("Endpoint", quoted(endpoint));
                o.value(
                    "HashKV",
                    object(|o| {
                        header(o, &r.header);
                        o.number("hash", r.hash);
                        o.number("compact_revision", r.compact_revision);
                        o.number("hash_revision", r.hash_revision);
                    }),
                );
            })
        })),
        Answer::Auth(answer) => auth::json(answer),
        Answer::SnapshotStatus(status) => object(|o| {
            o.value("hash", status.hash);
            o.value("revision", status.revision);
            o.value("totalKey", status.total_key);
            o.value("totalSize", status.total_size);
            o.value("version", quoted(&status.version));
        }),
        Answer::Alarms(r) => object(|o| {
            header(o, &r.header);
            o.list("alarms", &r.alarms, |alarm| {
                object(|o| {
                    o.number("memberID", alarm.member_id);
                    o.number("alarm", alarm.alarm);
                })
            });
        }),
    };
    out.push('\n');
    out
}

pub(super) fn header(o: &mut Object, header: &Option<ResponseHeader>) {
    o.some(
        "header",
        header
            .as_ref()
            .map(|h| object(|o| header_fields(o, Some(h)))),
    );
}

fn header_fields(o: &mut Object, header: Option<&ResponseHeader>) {
    let Some(header) = header else { return };
    o.number("cluster_id", header.cluster_id);
    o.number("member_id", header.member_id);
    o.number("revision", header.revision);
    o.number("raft_term", header.raft_term);
}

fn kv(kv: &KeyValue) -> String {
    object(|o| {
        o.bytes("key", &kv.key);
        o.number("create_revision", kv.create_revision);
        o.number("mod_revision", kv.mod_revision);
        o.number("version", kv.version);
        o.bytes("value", &kv.value);
        o.number("lease", kv.lease);
    })
}

fn range(o: &mut Object, response: &RangeResponse) {
    header(o, &response.header);
    o.list("kvs", &response.kvs, kv);
    o.flag("more", response.more);
    o.number("count", response.count);
}

fn put(o: &mut Object, response: &PutResponse) {
    header(o, &response.header);
    o.some("prev_kv", response.prev_kv.as_ref().map(kv));
}

fn delete_range(o: &mut Object, response: &DeleteRangeResponse) {
    header(o, &response.header);
    o.number("deleted", response.deleted);
    o.list("prev_kvs", &response.prev_kvs, kv);
}

fn txn(o: &mut Object, response: &TxnResponse) {
    header(o, &response.header);
    o.flag("succeeded", response.succeeded);
    o.list("responses", &response.responses, |step| {
        let inner = object(|o| match &step.response {
            Some(Response::ResponseRange(r)) => o.value("response_range", object(|o| range(o, r))),
            Some(Response::ResponsePut(r)) => o.value("response_put", object(|o| put(o, r))),
            Some(Response::ResponseDeleteRange(r)) => {
                o.value("response_delete_range", object(|o| delete_range(o, r)));
            }
            Some(Response::ResponseTxn(r)) => o.value("response_txn", object(|o| txn(o, r))),
            None => {}
        });
        object(|o| o.value("Response", inner))
    });
}

fn watch(o: &mut Object, response: &WatchResponse) {
    o.value(
        "Header",
        object(|o| header_fields(o, response.header.as_ref())),
    );
    let events = response.events.iter().map(|event| {
        object(|o| {
            o.number("type", event.r#type);
            o.some("kv", event.kv.as_ref().map(kv));
            o.some("prev_kv", event.prev_kv.as_ref().map(kv));
        })
    });
    o.value("Events", list_or_null(events));
    o.value("CompactRevision", response.compact_revision);
    o.value("Canceled", response.canceled);
    o.value("Created", response.created);
    o.value("CancelReason", quoted(&response.cancel_reason));
}

fn members(o: &mut Object, response: &MemberListResponse) {
    header(o, &response.header);
    o.list("members", &response.members, member);
}

/// The answer to a change of the members.
fn members_after(of: &Option<ResponseHeader>, members: &[Member]) -> String {
    object(|o| {
        header(o, of);
        o.list("members", members, member);
    })
}

fn member(member: &Member) -> String {
    object(|o| {
        o.number("ID", member.id);
        member_fields(o, member);
    })
}

fn members_in_hex(o: &mut Object, response: &MemberListResponse) {
    let header = response.header.unwrap_or_default();
    o.value(
        "header",
        object(|o| {
            o.value("cluster_id", quoted(&format!("{:x}", header.cluster_id)));
            o.value("member_id", quoted(&format!("{:x}", header.member_id)));
            o.number("revision", header.revision);
            o.number("raft_term", header.raft_term);
        }),
    );
    let members = response.members.iter().map(|member| {
        object(|o| {
            o.value("ID", quoted(&format!("{:x}", member.id)));
            member_fields(o, member);
        })
    });
    o.value("members", list(members));
}

fn member_fields(o: &mut Object, member: &Member) {
    o.text("name", &member.name);
    o.list("peerURLs", &member.peer_ur_ls, |url| quoted(url));
    o.list("clientURLs", &member.client_ur_ls, |url| quoted(url));
    o.flag("isLearner", member.is_learner);
}

fn health(o: &mut Object, health: &Health) {
    o.value("endpoint", quoted(&health.endpoint));
    o.value("health", health.healthy);
    o.value("took", quoted(&health.took));
    o.text("error", &health.error);
}

fn status(o: &mut Object, status: &StatusResponse) {
    header(o, &status.header);
    o.text("version", &status.version);
    o.number("dbSize", status.db_size);
    o.number("leader", status.leader);
    o.number("raftIndex", status.raft_index);
    o.number("raftTerm", status.raft_term);
    o.number("raftAppliedIndex", status.raft_applied_index);
    o.list("errors", &status.errors, |error| quoted(error));
    o.number("dbSizeInUse", status.db_size_in_use);
    o.flag("isLearner", status.is_learner);
    o.text("storageVersion", &status.storage_version);
    o.number("dbSizeQuota", status.db_size_quota);
    let downgrade = status.downgrade_info.as_ref().map(|info| {
        object(|o| {
            o.flag("enabled", info.enabled);
            o.text("targetVersion", &info.target_version);
        })
    });
    o.some("downgradeInfo", downgrade);
}

/// The fields of one JSON object, in the order they are added.
pub(super) struct Object {
    text: String,
}

pub(super) fn object(fields: impl FnOnce(&mut Object)) -> String {
    let mut o = Object {
        text: "{".to_owned(),
    };
    fields(&mut o);
    o.text.push('}');
    o.text
}

impl Object {
    /// A field that is always there; `value` is JSON already.
    pub(super) fn value(&mut self, name: &str, value: impl Display) {
        let comma = if self.text.len() > 1 { "," } else { "" };
        // Writing to a string cannot fail.
        let _ = write!(self.text, "{comma}\"{name}\":{value}");
    }

    fn some(&mut self, name: &str, value: Option<String>) {
        value.into_iter().for_each(|value| self.value(name, value));
    }

    pub(super) fn number<N: Display + Default + PartialEq>(&mut self, name: &str, value: N) {
        self.some(name, (value != N::default()).then(|| value.to_string()));
    }

    pub(super) fn flag(&mut self, name: &str, value: bool) {
        self.some(name, value.then(|| value.to_string()));
    }

    fn text(&mut self, name: &str, value: &str) {
        self.some(name, (!value.is_empty()).then(|| quoted(value)));
    }

    pub(super) fn bytes(&mut self, name: &str, value: &[u8]) {
        self.some(name, (!value.is_empty()).then(|| base64(value)));
    }

    pub(super) fn list<T>(&mut self, name: &str, items: &[T], item: impl FnMut(&T) -> String) {
        self.some(
            name,
            (!items.is_empty()).then(|| list(items.iter().map(item))),
        );
    }
}

fn list(items: impl Iterator<Item = String>) -> String {
    format!("[{}]", items.collect::<Vec<_>>().join(","))
}

/// A list, or what Go writes for one that was never made.
fn list_or_null(items: impl ExactSizeIterator<Item = String>) -> String {
    if items.len() == 0 {
        "null".to_owned()
    } else {
        list(items)
    }
}

fn base64(bytes: &[u8]) -> String {
    format!("\"{}\"", STANDARD.encode(bytes))
}

/// A JSON string with Go's escapes: also `<`, `>`, `&` and the two line separators.
pub(super) fn quoted(text: &str) -> String {
    let mut out = String::from("\"");
    for c in text.chars() {
        match c {
            '"' | '\\' => out.extend(['\\', c]),
            '\n' => out.push_str("\\n"),
            '\r' => out.push_str("\\r"),
            '\t' => out.push_str("\\t"),
            '\x08' => out.push_str("\\b"),
            '\x0c' => out.push_str("\\f"),
            '\0'..='\x1f' | '<' | '>' | '&' | '\u{2028}' | '\u{2029}' => {
                // Writing to a string cannot fail.
                let _ = write!(out, "\\u{:04x}", u32::from(c));
            }
            c => out.push(c),
        }
    }
    out.push('"');
    out
}
