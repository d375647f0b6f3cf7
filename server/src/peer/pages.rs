//! The HTTP pages of the peer port.
//!
//! `/members` is how a member that joins learns the ids of the cluster; tools read it and `/version`. The rest of etcd's
//! peer pages carry its own protocol, which is not spoken here. Source: etcd 3.7.1, api/etcdhttp/peer.go.

use std::sync::Arc;

use http::{HeaderValue, Method, Request, StatusCode};
use http_body_util::{BodyExt, Limited};
use hyper::body::Incoming;
use serde::Deserialize;
use serde_json::json;

use crate::cluster;
use crate::http::{Answer, Front, Pages, method_not_allowed, text, typed};
use crate::member::Member;

/// Header that names the cluster in requests and answers.
pub(super) const CLUSTER_ID: &str = "x-etcd-cluster-id";
/// A request's body is a few numbers.
const BODY_BYTES_MAX: usize = 64 << 10;

/// The pages over a member.
pub(crate) struct PeerPages {
    member: Arc<Member>,
    pages: Pages<Member>,
}

#[derive(Deserialize)]
struct HashKvQuery {
    #[serde(default)]
    revision: i64,
}

impl PeerPages {
    pub(crate) fn new(member: Arc<Member>) -> PeerPages {
        let front = Front::new(&member.config);
        let pages = Pages::new(member.clone(), member.metrics.clone(), front);
        PeerPages { member, pages }
    }

    /// Answers one request.
    pub(crate) async fn answer(&self, request: Request<Incoming>) -> Answer {
        let get = |answer: Answer| {
            if request.method() == Method::GET {
                answer
            } else {
                method_not_allowed()
            }
        };
        let mut answer = match request.uri().path() {
            "/members" => get(self.members()),
            "/version" => get(self.pages.version_page().await),
            "/raft/probing" => get(self.probing()),
            "/downgrade/enabled" => get(self.downgrade_enabled().await),
            "/members/hashkv" if request.method() == Method::GET => self.hash_kv(request).await,
            "/members/hashkv" => method_not_allowed(),
            _ => text(StatusCode::NOT_FOUND, "404 page not found\n"),
        };
        let id = HeaderValue::from_str(&format!("{:x}", self.member.cluster.id));
        answer
            .headers_mut()
            .insert(CLUSTER_ID, id.expect("hex digits are a header value"));
        answer
    }

    fn members(&self) -> Answer {
        let members = self.member.cluster.members();
        let shown: Vec<cluster::Member> = members
            .into_iter()
            .map(|member| cluster::Member {
                incarnation: 0,
                ..member
            })
            .collect();
        let mut body = serde_json::to_vec(&shown).expect("members are strings and numbers");
        body.push(b'\n');
        typed("application/json", body)
    }

    /// Whether a downgrade is under way, as agreed on before the question.
    async fn downgrade_enabled(&self) -> Answer {
        match self.member.reads.linearizable().await {
            Ok(_) => {
                let enabled = self.member.cluster.downgrade().is_some();
                text(StatusCode::OK, if enabled { "true" } else { "false" })
            }
            Err(error) => text(StatusCode::INTERNAL_SERVER_ERROR, format!("{error}\n")),
        }
    }

    fn probing(&self) -> Answer {
        typed("application/json", "{\"OK\":true}\n")
    }

    async fn hash_kv(&self, request: Request<Incoming>) -> Answer {
        let theirs = request.headers().get(CLUSTER_ID).cloned();
        let ours = format!("{:x}", self.member.cluster.id);
        if theirs.is_some_and(|theirs| theirs != ours) {
            return text(StatusCode::PRECONDITION_FAILED, "cluster ID mismatch\n");
        }
        let body = Limited::new(request.into_body(), BODY_BYTES_MAX);
        let body = body.collect().await.map(|body| body.to_bytes());
        let Ok(body) = body else {
            return text(StatusCode::BAD_REQUEST, "error reading body\n");
        };
        let Ok(query) = serde_json::from_slice::<HashKvQuery>(&body) else {
            return text(StatusCode::BAD_REQUEST, "error unmarshalling request\n");
        };
        let read = move |store: &kv_mvcc::Store| Ok(store.hash_kv(query.revision)?);
        match self.member.read_blocking(read).await {
            Ok(hash) => {
                let header = self.member.header(hash.revision);
                let answer = json!({
                    "header": {
                        "cluster_id": header.cluster_id, "member_id": header.member_id,
                        "revision": header.revision, "raft_term": header.raft_term,
                    },
                    "hash": hash.hash,
                    "compact_revision": hash.compact_revision,
                    "hash_revision": hash.hash_revision,
                });
                typed("application/json", answer.to_string())
            }
            Err(error) => text(StatusCode::BAD_REQUEST, format!("{error}\n")),
        }
    }
}
