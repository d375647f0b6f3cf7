//! The gRPC services of the client port, one file each, and what they share.

mod auth;
mod cluster;
mod dispatch;
mod election;
mod gateway;
mod health;
mod inside;
mod kv;
mod large_range;
mod lease;
mod lock;
mod maintenance;
mod queue;
mod status;
mod validate;
mod watch;

use std::sync::Arc;
use std::time::Duration;

use kv_mvcc::{RangeQuery, SortOrder, SortTarget};
use kv_proto::etcdserverpb::range_request;
use kv_proto::etcdserverpb::{RangeRequest, ResponseHeader};
use kv_proto::key_range::KeyRange;

pub(crate) use dispatch::{Dispatch, Offers};

use crate::auth::Credentials;
use crate::member::Member;

/// Who the caller says to be.
fn credentials<T>(request: &tonic::Request<T>) -> Credentials {
    Credentials::of(request.metadata().as_ref(), request.extensions())
}

/// What the store is asked for a Range request that `validate` let pass.
pub(crate) fn range_query(request: RangeRequest) -> RangeQuery {
    let sort_order = match range_request::SortOrder::try_from(request.sort_order) {
        Ok(range_request::SortOrder::Ascend) => SortOrder::Ascend,
        Ok(range_request::SortOrder::Descend) => SortOrder::Descend,
        Ok(range_request::SortOrder::None) | Err(_) => SortOrder::None,
    };
    let sort_target = match range_request::SortTarget::try_from(request.sort_target) {
        Ok(range_request::SortTarget::Version) => SortTarget::Version,
        Ok(range_request::SortTarget::Create) => SortTarget::Create,
        Ok(range_request::SortTarget::Mod) => SortTarget::Mod,
        Ok(range_request::SortTarget::Value) => SortTarget::Value,
        Ok(range_request::SortTarget::Key) | Err(_) => SortTarget::Key,
    };
    RangeQuery {
        range: KeyRange::new(request.key, request.range_end),
        revision: request.revision,
        limit: request.limit,
        count_only: request.count_only,
        keys_only: request.keys_only,
        min_mod_revision: request.min_mod_revision,
        max_mod_revision: request.max_mod_revision,
        min_create_revision: request.min_create_revision,
        max_create_revision: request.max_create_revision,
        sort_order,
        sort_target,
    }
}

/// Whether the caller wants an error rather than an answer while there is no leader: metadata `hasleader: true`.
fn requires_leader(headers: &::http::HeaderMap) -> bool {
    headers
        .get("hasleader")
        .is_some_and(|v| v.as_bytes() == b"true")
}

/// Completes a header whose revision the handler knows, or takes the current one.
fn fill(member: &Member, header: Option<ResponseHeader>) -> Option<ResponseHeader> {
    let revision = header.map(|h| h.revision).filter(|&r| r != 0);
    Some(member.header(revision.unwrap_or_else(|| member.store.revision())))
}

/// Resolves when there was no leader for three election timeouts, and never unless `needed`.
async fn leader_lost(member: Arc<Member>, needed: bool) {
    if !needed {
        return std::future::pending().await;
    }
    let mut status = member.node.watch_status();
    let patience: Duration = member.config.election_timeout * 3;
    loop {
        if status.wait_for(|s| s.leader.is_none()).await.is_err() {
            return;
        }
        if tokio::time::timeout(patience, status.wait_for(|s| s.leader.is_some()))
            .await
            .is_err()
        {
            return;
        }
    }
}
