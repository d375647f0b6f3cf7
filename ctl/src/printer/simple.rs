//! The simple form: bare keys and values, and short sentences.

use std::io::Write;

use kv_proto::{
    etcdserverpb::{
        AlarmMember, DeleteRangeResponse, LeaseTimeToLiveResponse, MemberAddResponse, PutResponse,
        RangeResponse, TxnResponse, WatchResponse, response_op::Response,
    },
    mvccpb::KeyValue,
};

use super::{Answer, Printed, auth, table};
use crate::quote::quote;

/// Renders any answer; unhealthy endpoints go to standard error.
pub(super) fn print(answer: &Answer<'_>, hex: bool) -> Printed {
    let mut to = Simple {
        printed: Printed::default(),
        hex,
        value_only: false,
    };
    match answer {
        Answer::Get {
            response,
            value_only,
        } => {
            to.value_only = *value_only;
            to.get(response);
        }
        Answer::Put(response) => to.put(response),
        Answer::Del(response) => to.del(response),
        Answer::Txn(response) => to.txn(response),
        Answer::Watch(response) => to.watch(response),
        Answer::Grant(r) => to.line(format!("lease {:016x} granted with TTL({}s)", r.id, r.ttl)),
        Answer::Revoke { id, .. } => to.line(format!("lease {id:016x} revoked")),
        Answer::TimeToLive { response, keys } => to.time_to_live(response, *keys),
        Answer::Leases(response) => {
            to.line(format!("found {} leases", response.leases.len()));
            response
                .leases
                .iter()
                .for_each(|lease| to.line(format!("{:016x}", lease.id)));
        }
        Answer::KeepAlive(r) => to.line(format!(
            "lease {:016x} keepalived with TTL({})",
            r.id, r.ttl
        )),
        Answer::Members(response) => to.rows(&table::member_rows(response)),
        Answer::MemberAdd {
            name,
            peer_urls,
            response,
        } => to.member_add(name, peer_urls, response),
        Answer::MemberRemove { id, response } => {
            let cluster = response.header.unwrap_or_default().cluster_id;
            to.line(format!(
                "Member {id:16x} removed from cluster {cluster:16x}"
            ));
        }
        Answer::MemberUpdate { id, response } => {
            let cluster = response.header.unwrap_or_default().cluster_id;
            to.line(format!("Member {id:16x} updated in cluster {cluster:16x}"));
        }
        Answer::MemberPromote { id, response } => {
            let cluster = response.header.unwrap_or_default().cluster_id;
            to.line(format!("Member {id:16x} promoted in cluster {cluster:16x}"));
        }
        Answer::MoveLeader {
            from, to: target, ..
        } => {
            to.line(format!(
                "Leadership transferred from {from:x} to {target:x}"
            ));
        }
        Answer::Downgrade { done, response } => {
            let version = &response.version;
            to.line(format!(
                "Downgrade {done} success, cluster version {version}"
            ));
        }
        Answer::Health(all) => to.health(all),
        Answer::Status(all) => to.rows(&table::status_rows(all)),
        Answer::HashKv(all) => to.rows(&table::hash_rows(all)),
        Answer::SnapshotStatus(status) => to.rows(&table::snapshot_rows(status)),
        Answer::Alarms(response) => response.alarms.iter().for_each(|alarm| to.alarm(alarm)),
        Answer::Auth(answer) => to.printed.out = auth::simple(answer),
    }
    to.printed
}

struct Simple {
    printed: Printed,
    hex: bool,
    value_only: bool,
}

impl Simple {
    fn line(&mut self, text: impl AsRef<[u8]>) {
        self.printed.out.extend_from_slice(text.as_ref());
        self.printed.out.push(b'\n');
    }

    fn bytes(&mut self, bytes: &[u8]) {
        if self.hex {
            self.line(
                bytes
                    .iter()
                    .map(|b| format!("\\x{b:02x}"))
                    .collect::<String>(),
            );
        } else {
            self.line(bytes);
        }
    }

    fn kv(&mut self, kv: &KeyValue) {
        if !self.value_only {
            self.bytes(&kv.key);
        }
        self.bytes(&kv.value);
    }

    fn get(&mut self, response: &RangeResponse) {
        response.kvs.iter().for_each(|kv| self.kv(kv));
    }

    fn put(&mut self, response: &PutResponse) {
        self.line("OK");
        response.prev_kv.iter().for_each(|kv| self.kv(kv));
    }

    fn del(&mut self, response: &DeleteRangeResponse) {
        self.line(response.deleted.to_string());
        response.prev_kvs.iter().for_each(|kv| self.kv(kv));
    }

    fn txn(&mut self, response: &TxnResponse) {
        self.line(if response.succeeded {
            "SUCCESS"
        } else {
            "FAILURE"
        });
        for step in &response.responses {
            self.line("");
            match &step.response {
                Some(Response::ResponseRange(r)) => self.get(r),
                Some(Response::ResponsePut(r)) => self.put(r),
                Some(Response::ResponseDeleteRange(r)) => self.del(r),
                Some(Response::ResponseTxn(r)) => self.txn(r),
                None => {}
            }
        }
    }

    fn watch(&mut self, response: &WatchResponse) {
        for event in &response.events {
            self.line(event.r#type().as_str_name());
            event
                .prev_kv
                .iter()
                .chain(&event.kv)
                .for_each(|kv| self.kv(kv));
        }
    }

    fn time_to_live(&mut self, response: &LeaseTimeToLiveResponse, keys: bool) {
        let LeaseTimeToLiveResponse {
            id,
            ttl,
            granted_ttl,
            ..
        } = response;
        if *granted_ttl == 0 && *ttl == -1 {
            return self.line(format!("lease {id:016x} already expired"));
        }
        let mut text =
            format!("lease {id:016x} granted with TTL({granted_ttl}s), remaining({ttl}s)")
                .into_bytes();
        if keys {
            text.extend_from_slice(b", attached keys([");
            text.extend_from_slice(&response.keys.join(&b' '));
            text.extend_from_slice(b"])");
        }
        self.line(text);
    }

    /// What was added, and the settings to start it with.
    fn member_add(&mut self, name: &str, peer_urls: &str, response: &MemberAddResponse) {
        let cluster = response.header.unwrap_or_default().cluster_id;
        let added = response.member.clone().unwrap_or_default();
        let role = if added.is_learner { " as learner" } else { "" };
        self.line(format!(
            "Member {:16x} added{role} to cluster {cluster:16x}",
            added.id
        ));
        let all = response.members.iter().flat_map(|member| {
            let its_name = if member.id == added.id {
                name
            } else {
                &member.name
            };
            member
                .peer_ur_ls
                .iter()
                .map(move |url| format!("{its_name}={url}"))
        });
        let all = all.collect::<Vec<_>>().join(",");
        let setting =
            |variable: &str, value: &str| format!("{variable}={}", quote(value.as_bytes()));
        self.line("");
        self.line(setting("ETCD_NAME", name));
        self.line(setting("ETCD_INITIAL_CLUSTER", &all));
        self.line(setting("ETCD_INITIAL_ADVERTISE_PEER_URLS", peer_urls));
        self.line(setting("ETCD_INITIAL_CLUSTER_STATE", "existing"));
    }

    fn rows(&mut self, rows: &[Vec<String>]) {
        rows.iter().for_each(|row| self.line(row.join(", ")));
    }

    fn health(&mut self, all: &[super::Health]) {
        for h in all {
            if h.error.is_empty() {
                self.line(format!(
                    "{} is healthy: successfully committed proposal: took = {}",
                    h.endpoint, h.took
                ));
            } else {
                // Writing to memory cannot fail.
                let _ = writeln!(
                    self.printed.err,
                    "{} is unhealthy: failed to commit proposal: {}",
                    h.endpoint, h.error
                );
            }
        }
    }

    /// The text form of the message: fields that are zero are left out.
    fn alarm(&mut self, alarm: &AlarmMember) {
        let mut parts = Vec::new();
        if alarm.member_id != 0 {
            parts.push(format!("memberID:{}", alarm.member_id));
        }
        if alarm.alarm != 0 {
            parts.push(format!("alarm:{}", alarm.alarm().as_str_name()));
        }
        self.line(parts.join(" "));
    }
}
