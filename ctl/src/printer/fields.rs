//! The fields form: one `"Name" : value` a line, the header's fields first.

use std::fmt::{Display, Write};

use kv_proto::{
    etcdserverpb::{
        DeleteRangeResponse, MemberListResponse, PutResponse, RangeResponse, ResponseHeader,
        StatusResponse, TxnResponse, response_op::Response,
    },
    mvccpb::KeyValue,
};

use super::{Answer, auth};
use crate::quote::quote;

/// Renders an answer that has this form; `hex` writes ids as hexadecimal.
pub(super) fn print(answer: &Answer<'_>, hex: bool) -> Option<String> {
    let mut to = Fields {
        out: String::new(),
        hex,
    };
    match answer {
        Answer::Get { response, .. } => to.get(response),
        Answer::Put(response) => to.put(response),
        Answer::Del(response) => to.del(response),
        Answer::Txn(response) => to.txn(response),
        Answer::Watch(response) => {
            to.header(&response.header);
            for event in &response.events {
                to.field("Type", event.r#type().as_str_name());
                event.prev_kv.iter().for_each(|kv| to.kv("Prev", kv));
                to.kv("", &event.kv.clone().unwrap_or_default());
            }
        }
        Answer::Grant(r) => {
            to.header(&r.header);
            to.lease(r.id);
            to.field("TTL", r.ttl);
        }
        Answer::Revoke { response, .. } => to.header(&response.header),
        Answer::TimeToLive { response: r, .. } => {
            to.header(&r.header);
            to.lease(r.id);
            to.field("TTL", r.ttl);
            to.field("GrantedTTL", r.granted_ttl);
            r.keys.iter().for_each(|key| to.field("Key", quote(key)));
        }
        Answer::Leases(r) => {
            to.header(&r.header);
            r.leases.iter().for_each(|lease| to.lease(lease.id));
        }
        Answer::KeepAlive(r) => {
            to.header(&r.header);
            to.lease(r.id);
            to.field("TTL", r.ttl);
        }
        Answer::Members(response) => to.members(response),
        Answer::MemberAdd { .. }
        | Answer::MemberRemove { .. }
        | Answer::MemberUpdate { .. }
        | Answer::MemberPromote { .. }
        | Answer::MoveLeader { .. }
        | Answer::Downgrade { .. } => return None,
        Answer::Health(all) => {
            for h in *all {
                to.field("Endpoint", quote(h.endpoint.as_bytes()));
                to.field("Health", h.healthy);
                to.field("Took", &h.took);
                to.field("Error", &h.error);
                to.out.push('\n');
            }
        }
        Answer::Status(all) => all
            .iter()
            .for_each(|(endpoint, status)| to.status(endpoint, status)),
        Answer::HashKv(all) => {
            for (endpoint, r) in *all {
                to.header(&r.header);
                to.field("Endpoint", quote(endpoint.as_bytes()));
                to.field("Hash", r.hash);
                to.field("HashRevision", r.hash_revision);
                to.out.push('\n');
            }
        }
        Answer::SnapshotStatus(status) => {
            to.field("Hash", status.hash);
            to.field("Revision", status.revision);
            to.field("Keys", status.total_key);
            to.field("Size", status.total_size);
            to.field("Version", &status.version);
        }
        Answer::Alarms(r) => {
            to.header(&r.header);
            for alarm in &r.alarms {
                to.id("MemberID", alarm.member_id);
                to.field("AlarmType", alarm.alarm().as_str_name());
                to.out.push('\n');
            }
        }
        Answer::Auth(answer) => auth::fields(answer, &mut to)?,
    }
    Some(to.out)
}

/// Lines under way.
pub(super) struct Fields {
    out: String,
    hex: bool,
}

impl Fields {
    pub(super) fn field(&mut self, name: impl Display, value: impl Display) {
        // Writing to a string cannot fail.
        let _ = writeln!(self.out, "\"{name}\" : {value}");
    }

    /// Values behind one name.
    pub(super) fn list(&mut self, name: &str, values: &[String]) {
        let values: String = values.iter().map(|value| format!(" {value}")).collect();
        // Writing to a string cannot fail.
        let _ = writeln!(self.out, "\"{name}\" :{values}");
    }

    /// A member or cluster id.
    fn id(&mut self, name: &str, id: u64) {
        if self.hex {
            self.field(name, format!("{id:x}"))
        } else {
            self.field(name, id)
        }
    }

    fn lease(&mut self, id: i64) {
        if self.hex {
            self.field("ID", format!("{id:016x}"))
        } else {
            self.field("ID", id)
        }
    }

    /// A header that is missing shows as zeros; a revision of zero is not shown.
    pub(super) fn header(&mut self, header: &Option<ResponseHeader>) {
        let header = header.unwrap_or_default();
        self.id("ClusterID", header.cluster_id);
        self.id("MemberID", header.member_id);
        if header.revision > 0 {
            self.field("Revision", header.revision);
        }
        self.field("RaftTerm", header.raft_term);
    }

    fn kv(&mut self, prefix: &str, kv: &KeyValue) {
        self.field(format_args!("{prefix}Key"), quote(&kv.key));
        self.field(format_args!("{prefix}CreateRevision"), kv.create_revision);
        self.field(format_args!("{prefix}ModRevision"), kv.mod_revision);
        self.field(format_args!("{prefix}Version"), kv.version);
        self.field(format_args!("{prefix}Value"), quote(&kv.value));
        let name = format!("{prefix}Lease");
        if self.hex {
            self.field(name, format!("{:016x}", kv.lease))
        } else {
            self.field(name, kv.lease)
        }
    }

    fn get(&mut self, response: &RangeResponse) {
        self.header(&response.header);
        response.kvs.iter().for_each(|kv| self.kv("", kv));
        self.field("More", response.more);
        self.field("Count", response.count);
    }

    fn put(&mut self, response: &PutResponse) {
        self.header(&response.header);
        response.prev_kv.iter().for_each(|kv| self.kv("Prev", kv));
    }

    fn del(&mut self, response: &DeleteRangeResponse) {
        self.header(&response.header);
        self.field("Deleted", response.deleted);
        response.prev_kvs.iter().for_each(|kv| self.kv("Prev", kv));
    }

    fn txn(&mut self, response: &TxnResponse) {
        self.header(&response.header);
        self.field("Succeeded", response.succeeded);
        for step in &response.responses {
            match &step.response {
                Some(Response::ResponseRange(r)) => self.get(r),
                Some(Response::ResponsePut(r)) => self.put(r),
                Some(Response::ResponseDeleteRange(r)) => self.del(r),
                Some(Response::ResponseTxn(r)) => self.txn(r),
                None => {}
            }
        }
    }

    fn members(&mut self, response: &MemberListResponse) {
        self.header(&response.header);
        for member in &response.members {
            self.id("ID", member.id);
            self.field("Name", quote(member.name.as_bytes()));
            member
                .peer_ur_ls
                .iter()
                .for_each(|url| self.field("PeerURL", quote(url.as_bytes())));
            member
                .client_ur_ls
                .iter()
                .for_each(|url| self.field("ClientURL", quote(url.as_bytes())));
            self.field("IsLearner", member.is_learner);
            self.out.push('\n');
        }
    }

    fn status(&mut self, endpoint: &str, status: &StatusResponse) {
        let downgrade = status.downgrade_info.clone().unwrap_or_default();
        self.header(&status.header);
        self.field("Version", quote(status.version.as_bytes()));
        self.field("StorageVersion", quote(status.storage_version.as_bytes()));
        self.field("DBSize", status.db_size);
        self.field("DBSizeInUse", status.db_size_in_use);
        self.field("DBSizeQuota", status.db_size_quota);
        self.field("Leader", status.leader);
        self.field("IsLearner", status.is_learner);
        self.field("RaftIndex", status.raft_index);
        self.field("RaftAppliedIndex", status.raft_applied_index);
        self.field("Errors", format_args!("[{}]", status.errors.join(" ")));
        self.field("Endpoint", quote(endpoint.as_bytes()));
        self.field(
            "DowngradeTargetVersion",
            quote(downgrade.target_version.as_bytes()),
        );
        self.field("DowngradeEnabled", downgrade.enabled);
        self.out.push('\n');
    }
}
