//! The Lease service: grants and revocations go through the log, renewals are answered by the leader.

use std::pin::Pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use bytes::Bytes;
use futures_util::Stream;
use futures_util::stream::unfold;
use kv_proto::command::{Body, Caller};
use kv_proto::etcdserverpb::lease_server::Lease;
use kv_proto::etcdserverpb::{
    LeaseGrantRequest, LeaseGrantResponse, LeaseKeepAliveRequest, LeaseKeepAliveResponse,
    LeaseLeasesRequest, LeaseLeasesResponse, LeaseRevokeRequest, LeaseRevokeResponse, LeaseStatus,
    LeaseTimeToLiveRequest, LeaseTimeToLiveResponse,
};
use tonic::{Request, Response, Status, Streaming};

use super::kv::unexpected;
use super::status::with_grpc_go_texts;
use super::{credentials, fill, leader_lost, requires_leader};
use crate::apply::Response as Applied;
use crate::auth::{Access, Credentials, State};
use crate::member::Member;
use crate::{Error, Result, lease, quota};

/// The service over a member.
#[derive(Clone)]
pub(crate) struct LeaseService {
    member: Arc<Member>,
    /// The next id this member chooses; shared by the connections.
    next_id: Arc<AtomicU64>,
}

impl LeaseService {
    /// `started_wall_ms` is when this member started: ids that it or another chose before may still be in use.
    pub(crate) fn new(member: Arc<Member>, started_wall_ms: u64) -> LeaseService {
        let first_id = first_id(member.id, started_wall_ms);
        LeaseService {
            member,
            next_id: Arc::new(AtomicU64::new(first_id)),
        }
    }

    fn choose_id(&self) -> i64 {
        loop {
            let id = (self.next_id.fetch_add(1, Ordering::Relaxed) & i64::MAX as u64) as i64;
            if id != 0 {
                return id;
            }
        }
    }
}

/// Whether the caller may keep a lease alive: every key on it has to be writable.
///
/// This member's own view of the lease is asked, as in etcd.
async fn check_renewal(member: &Member, credentials: &Credentials, id: i64) -> Result<()> {
    if !member.auth.is_enabled() {
        return Ok(());
    }
    let caller = member.named(credentials).await?;
    let auth = member.auth.state();
    auth.check_lease(&caller, member.store.lessor(), id, Access::Write)?;
    if auth.revision() != member.auth.revision() {
        return Err(Error::AuthOldRevision);
    }
    Ok(())
}

/// Whether the keys that the leader named may be shown: this member may not have known all of them before.
fn check_seen(member: &Member, auth: &State, caller: &Caller, keys: &[Bytes]) -> Result<()> {
    if !auth.is_enabled() {
        return Ok(());
    }
    if auth.revision() != member.auth.revision() {
        return Err(Error::AuthOldRevision);
    }
    if auth.check_admin(caller).is_ok() {
        return Ok(());
    }
    keys.iter()
        .try_for_each(|key| auth.check_range(caller, Access::Read, key, b""))
}

/// The end of the member's id, then the time, then room to count: members that start in the same millisecond choose apart.
///
/// Source: etcd 3.7, pkg/idutil.
fn first_id(member: u64, wall_ms: u64) -> u64 {
    member << 48 | (wall_ms & ((1 << 40) - 1)) << 8
}

/// The shortest time to live a lease may have: one and a half election timeouts, in whole seconds. Source: etcd 3.7.
fn ttl_secs_min(member: &Member) -> i64 {
    let timeout_ms = member.config.election_timeout.as_millis();
    i64::try_from((3 * timeout_ms).div_ceil(2000)).unwrap_or(i64::MAX)
}

#[tonic::async_trait]
impl Lease for LeaseService {
    async fn lease_grant(
        &self,
        request: Request<LeaseGrantRequest>,
    ) -> Result<Response<LeaseGrantResponse>, Status> {
        let credentials = credentials(&request);
        let mut request = request.into_inner();
        self.member.check_quota(quota::LEASE_COST).await?;
        let is_chosen_here = request.id == 0;
        // Here and not at apply, which must not depend on this member's flags.
        request.ttl = request.ttl.max(ttl_secs_min(&self.member));
        loop {
            if is_chosen_here {
                request.id = self.choose_id();
            }
            let body = Body::LeaseGrant(request);
            match self.member.propose(&credentials, body).await {
                // A client may have chosen this id before us; it did not ask for it now.
                Err(Error::LeaseExists) if is_chosen_here => {}
                Err(error) => return Err(error.into()),
                Ok(Applied::LeaseGrant(mut response)) => {
                    response.header = fill(&self.member, response.header);
                    return Ok(Response::new(response));
                }
                Ok(other) => return Err(unexpected(&other)),
            }
        }
    }

    async fn lease_revoke(
        &self,
        request: Request<LeaseRevokeRequest>,
    ) -> Result<Response<LeaseRevokeResponse>, Status> {
        let credentials = credentials(&request);
        let body = Body::LeaseRevoke(request.into_inner());
        match self.member.propose(&credentials, body).await? {
            Applied::LeaseRevoke(mut response) => {
                response.header = fill(&self.member, response.header);
                Ok(Response::new(response))
            }
            other => Err(unexpected(&other)),
        }
    }

    type LeaseKeepAliveStream =
        Pin<Box<dyn Stream<Item = Result<LeaseKeepAliveResponse, Status>> + Send>>;

    async fn lease_keep_alive(
        &self,
        request: Request<Streaming<LeaseKeepAliveRequest>>,
    ) -> Result<Response<Self::LeaseKeepAliveStream>, Status> {
        let needs_leader = requires_leader(request.metadata().as_ref());
        let leader_lost = Box::pin(leader_lost(self.member.clone(), needs_leader));
        let credentials = credentials(&request);
        let state = Some((
            self.member.clone(),
            credentials,
            request.into_inner(),
            leader_lost,
        ));
        let responses = unfold(state, move |state| async move {
            let (member, credentials, mut requests, mut leader_lost) = state?;
            let message = tokio::select! {
                message = requests.message() => message,
                () = &mut leader_lost => return Some((Err(Error::NoLeader.into()), None)),
                () = member.stopping.cancelled() => return Some((Err(Error::Stopped.into()), None)),
            };
            let id = match message {
                Ok(Some(request)) => request.id,
                Ok(None) => return None,
                Err(status) => return Some((Err(with_grpc_go_texts(status)), None)),
            };
            // Taken before the renewal: a client must not see a renewal at a revision that already revoked the lease.
            let header = Some(member.header(member.store.revision()));
            let renewed = match check_renewal(&member, &credentials, id).await {
                Ok(()) => lease::renew(&member, id).await,
                Err(error) => Err(error),
            };
            match renewed {
                Ok(ttl) => Some((
                    Ok(LeaseKeepAliveResponse { header, id, ttl }),
                    Some((member, credentials, requests, leader_lost)),
                )),
                Err(error) => Some((Err(error.into()), None)),
            }
        });
        Ok(Response::new(Box::pin(responses)))
    }

    async fn lease_time_to_live(
        &self,
        request: Request<LeaseTimeToLiveRequest>,
    ) -> Result<Response<LeaseTimeToLiveResponse>, Status> {
        let member = &self.member;
        let caller = member.named(&credentials(&request)).await?;
        let request = request.into_inner();
        let auth = member.auth.state();
        // The keys are what has to be readable, so without them nothing has.
        if request.keys {
            let lessor = member.store.lessor();
            auth.check_lease(&caller, lessor, request.id, Access::Read)?;
        }
        let seen = lease::look(member, request.id, request.keys).await?;
        if request.keys {
            check_seen(member, &auth, &caller, &seen.keys)?;
        }
        let response = LeaseTimeToLiveResponse {
            header: Some(self.member.header(self.member.store.revision())),
            id: request.id,
            ttl: seen.ttl,
            granted_ttl: seen.granted_ttl,
            keys: seen.keys,
        };
        Ok(Response::new(response))
    }

    async fn lease_leases(
        &self,
        request: Request<LeaseLeasesRequest>,
    ) -> Result<Response<LeaseLeasesResponse>, Status> {
        let member = &self.member;
        let lessor = member.store.lessor();
        let caller = member.named(&credentials(&request)).await?;
        let auth = member.auth.state();
        let ids = lessor.leases();
        for &id in &ids {
            auth.check_lease(&caller, lessor, id, Access::Read)?;
        }
        if auth.revision() != member.auth.revision() {
            return Err(Error::AuthOldRevision.into());
        }
        let leases = ids.into_iter().map(|id| LeaseStatus { id }).collect();
        let header = Some(self.member.header(self.member.store.revision()));
        Ok(Response::new(LeaseLeasesResponse { header, leases }))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn members_that_start_in_the_same_millisecond_choose_different_lease_ids() {
        let now = 1_795_750_389_170;
        // They differ by more than either will ever count.
        assert!(first_id(0x53b5_8af1, now).abs_diff(first_id(0x53b5_8af2, now)) >= 1 << 48);
        assert_eq!(first_id(7, now + 1) - first_id(7, now), 256);
    }
}
