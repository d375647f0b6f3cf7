//! The table form, and the rows it shares with the simple form.
//!
//! Box-drawing borders, headers in capitals and centred, cells right aligned; only members and
//! endpoints have one.

use kv_mvcc::etcd_file::EtcdFileStatus;
use kv_proto::etcdserverpb::{HashKvResponse, MemberListResponse, StatusResponse};

use super::{Answer, Health};
use crate::number;

const MEMBER_HEADER: [&str; 6] = [
    "ID",
    "Status",
    "Name",
    "Peer Addrs",
    "Client Addrs",
    "Is Learner",
];
const HEALTH_HEADER: [&str; 4] = ["endpoint", "health", "took", "error"];
const HASH_HEADER: [&str; 3] = ["endpoint", "hash", "hash revision"];
const SNAPSHOT_HEADER: [&str; 5] = ["hash", "revision", "total keys", "total size", "version"];
const STATUS_HEADER: [&str; 16] = [
    "endpoint",
    "ID",
    "version",
    "storage version",
    "db size",
    "in use",
    "percentage not in use",
    "quota",
    "is leader",
    "is learner",
    "raft term",
    "raft index",
    "raft applied index",
    "errors",
    "downgrade target version",
    "downgrade enabled",
];

/// The table of an answer that has one.
pub(super) fn print(answer: &Answer<'_>) -> Option<String> {
    Some(match answer {
        Answer::Members(response) => draw(&MEMBER_HEADER, &member_rows(response)),
        Answer::Health(all) => draw(&HEALTH_HEADER, &health_rows(all)),
        Answer::Status(all) => draw(&STATUS_HEADER, &status_rows(all)),
        Answer::SnapshotStatus(status) => draw(&SNAPSHOT_HEADER, &snapshot_rows(status)),
        Answer::HashKv(all) => draw(&HASH_HEADER, &hash_rows(all)),
        _ => return None,
    })
}

/// One row a member.
pub(super) fn member_rows(response: &MemberListResponse) -> Vec<Vec<String>> {
    let row = |m: &kv_proto::etcdserverpb::Member| {
        vec![
            format!("{:x}", m.id),
            if m.name.is_empty() {
                "unstarted"
            } else {
                "started"
            }
            .to_owned(),
            m.name.clone(),
            m.peer_ur_ls.join(","),
            m.client_ur_ls.join(","),
            m.is_learner.to_string(),
        ]
    };
    response.members.iter().map(row).collect()
}

fn health_rows(all: &[Health]) -> Vec<Vec<String>> {
    let row = |h: &Health| {
        vec![
            h.endpoint.clone(),
            h.healthy.to_string(),
            h.took.clone(),
            h.error.clone(),
        ]
    };
    all.iter().map(row).collect()
}

/// One row an endpoint.
pub(super) fn status_rows(all: &[(String, StatusResponse)]) -> Vec<Vec<String>> {
    all.iter()
        .map(|(endpoint, status)| status_row(endpoint, status))
        .collect()
}

fn status_row(endpoint: &str, status: &StatusResponse) -> Vec<String> {
    let member_id = status.header.as_ref().map_or(0, |h| h.member_id);
    let size = |bytes: i64| number::bytes(u64::try_from(bytes).unwrap_or(0));
    let in_use = status
        .db_size_in_use
        .saturating_mul(100)
        .checked_div(status.db_size)
        .unwrap_or(0);
    let downgrade = status.downgrade_info.clone().unwrap_or_default();
    vec![
        endpoint.to_owned(),
        format!("{member_id:x}"),
        status.version.clone(),
        status.storage_version.clone(),
        size(status.db_size),
        size(status.db_size_in_use),
        format!("{}%", 100 - in_use),
        size(status.db_size_quota),
        (status.leader == member_id).to_string(),
        status.is_learner.to_string(),
        status.raft_term.to_string(),
        status.raft_index.to_string(),
        status.raft_applied_index.to_string(),
        status.errors.join(", "),
        downgrade.target_version,
        downgrade.enabled.to_string(),
    ]
}

/// One row an endpoint.
pub(super) fn hash_rows(all: &[(String, HashKvResponse)]) -> Vec<Vec<String>> {
    let row = |(endpoint, r): &(String, HashKvResponse)| {
        vec![
            endpoint.clone(),
            r.hash.to_string(),
            r.hash_revision.to_string(),
        ]
    };
    all.iter().map(row).collect()
}

/// The only row.
pub(super) fn snapshot_rows(status: &EtcdFileStatus) -> Vec<Vec<String>> {
    vec![vec![
        format!("{:x}", status.hash),
        status.revision.to_string(),
        status.total_key.to_string(),
        number::bytes(status.total_size),
        status.version.clone(),
    ]]
}

fn draw(header: &[&str], rows: &[Vec<String>]) -> String {
    let width = |text: &str| text.chars().count();
    let widths: Vec<usize> = header
        .iter()
        .enumerate()
        .map(|(at, name)| {
            rows.iter()
                .map(|row| width(&row[at]))
                .fold(width(name), usize::max)
        })
        .collect();
    let border = |left: &str, middle: &str, right: &str| {
        let lines: Vec<String> = widths.iter().map(|w| "─".repeat(w + 2)).collect();
        format!("{left}{}{right}\n", lines.join(middle))
    };
    let line = |cells: Vec<String>| format!("│ {} │\n", cells.join(" │ "));
    let mut out = border("┌", "┬", "┐");
    out += &line(
        header
            .iter()
            .zip(&widths)
            .map(|(name, w)| format!("{:^w$}", name.to_uppercase()))
            .collect(),
    );
    if !rows.is_empty() {
        out += &border("├", "┼", "┤");
    }
    for row in rows {
        out += &line(
            row.iter()
                .zip(&widths)
                .map(|(cell, w)| format!("{cell:>w$}"))
                .collect(),
        );
    }
    out + &border("└", "┴", "┘")
}
