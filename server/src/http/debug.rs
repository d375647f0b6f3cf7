//! `/debug/vars`: the variables of etcd's page that exist here.
//!
//! `memstats` is empty, since its numbers are those of Go's heap; `cmdline` is the program alone, since flags hold secrets.

use rustix::process::{Resource, getrlimit};
use serde_json::json;

use super::{Answer, HealthSource, Pages, typed};

impl<S: HealthSource> Pages<S> {
    pub(super) async fn debug_page(&self) -> Answer {
        let raft = self.source.raft_status();
        let program = std::env::args_os().next().unwrap_or_default();
        let hex = |id: u64| format!("{id:x}");
        let variables = [
            ("cmdline", json!([program.to_string_lossy()])),
            (
                "file_descriptor_limit",
                json!(getrlimit(Resource::Nofile).current),
            ),
            ("memstats", json!({})),
            (
                "raft.status",
                json!({
                    "id": hex(raft.id), "term": raft.term, "vote": hex(raft.vote), "commit": raft.commit,
                    "lead": hex(raft.leader), "raftState": raft.state, "applied": raft.applied,
                    "progress": {}, "leadtransferee": "0",
                }),
            ),
        ];
        let lines: Vec<String> = variables
            .iter()
            .map(|(name, value)| format!("\"{name}\": {value}"))
            .collect();
        typed(
            "application/json; charset=utf-8",
            format!("{{\n{}\n}}\n", lines.join(",\n")),
        )
    }
}
