//! The Maintenance service: status, alarms, hashes, backups and defragmentation of this member.

use std::pin::Pin;
use std::sync::Arc;

use futures_util::{Stream, StreamExt};
use kv_mvcc::EtcdPart;
use kv_proto::command::Body;
use kv_proto::etcdserverpb::alarm_request::AlarmAction;
use kv_proto::etcdserverpb::downgrade_request::DowngradeAction;
use kv_proto::etcdserverpb::maintenance_server::Maintenance;
use kv_proto::etcdserverpb::{
    AlarmRequest, AlarmResponse, AlarmType, DefragmentRequest, DefragmentResponse, DowngradeInfo,
    DowngradeRequest, DowngradeResponse, HashKvRequest, HashKvResponse, HashRequest, HashResponse,
    MoveLeaderRequest, MoveLeaderResponse, SnapshotRequest, SnapshotResponse, StatusRequest,
    StatusResponse,
};
use tokio_stream::wrappers::ReceiverStream;
use tonic::{Request, Response, Status};

use super::kv::unexpected;
use super::{credentials, fill};
use crate::apply::Response as Applied;
use crate::member::Member;
use crate::{backup, build, downgrade, quota, reconfigure};

/// The service over a member.
#[derive(Clone)]
pub(crate) struct MaintenanceService(pub(crate) Arc<Member>);

#[tonic::async_trait]
impl Maintenance for MaintenanceService {
    async fn alarm(
        &self,
        request: Request<AlarmRequest>,
    ) -> Result<Response<AlarmResponse>, Status> {
        let credentials = credentials(&request);
        let request = request.into_inner();
        if request.action == AlarmAction::Get as i32 {
            self.0.named(&credentials).await?;
        } else {
            self.0.admin(&credentials).await?;
        }
        match self.0.propose(&credentials, Body::Alarm(request)).await? {
            Applied::Alarm(mut response) => {
                response.header = fill(&self.0, None);
                Ok(Response::new(response))
            }
            other => Err(unexpected(&other)),
        }
    }

    async fn status(
        &self,
        request: Request<StatusRequest>,
    ) -> Result<Response<StatusResponse>, Status> {
        let member = &self.0;
        member.named(&credentials(&request)).await?;
        let raft = member.node.status();
        let sizes = member.store.backend().size();
        let mut errors: Vec<String> = Vec::new();
        if raft.leader.is_none() {
            errors.push("etcdserver: no leader".into());
        }
        for alarm in member.alarms.get(AlarmType::None as i32) {
            let kind = AlarmType::try_from(alarm.alarm).map_or("UNKNOWN", |k| k.as_str_name());
            errors.push(format!("memberID:{} alarm:{kind}", alarm.member_id));
        }
        let quota = match member.config.quota_backend_bytes {
            0 => quota::DEFAULT_BYTES,
            bytes => bytes,
        };
        Ok(Response::new(StatusResponse {
            header: Some(member.header(member.store.revision())),
            version: build::api_version().into(),
            db_size: sizes.on_disk as i64,
            leader: raft.leader.unwrap_or(0),
            raft_index: raft.committed_index,
            raft_term: raft.term,
            raft_applied_index: raft.applied_index,
            errors,
            db_size_in_use: member.bytes_in_use().min(sizes.on_disk) as i64,
            is_learner: member.is_without_vote(),
            storage_version: member
                .storage_version()
                .map(|version| version.to_string())
                .unwrap_or_default(),
            db_size_quota: quota,
            downgrade_info: Some(match member.cluster.downgrade() {
                Some(target) => DowngradeInfo {
                    enabled: true,
                    target_version: target.to_string(),
                },
                None => DowngradeInfo::default(),
            }),
        }))
    }

    async fn defragment(
        &self,
        request: Request<DefragmentRequest>,
    ) -> Result<Response<DefragmentResponse>, Status> {
        self.0.admin(&credentials(&request)).await?;
        self.0
            .read_blocking(|store| Ok(store.backend().defragment()?))
            .await?;
        Ok(Response::new(DefragmentResponse { header: None }))
    }

    async fn hash(&self, request: Request<HashRequest>) -> Result<Response<HashResponse>, Status> {
        self.0.admin(&credentials(&request)).await?;
        let (hash, revision) = self.0.read_blocking(|store| Ok(store.hash()?)).await?;
        let header = Some(self.0.header(revision));
        Ok(Response::new(HashResponse { header, hash }))
    }

    async fn hash_kv(
        &self,
        request: Request<HashKvRequest>,
    ) -> Result<Response<HashKvResponse>, Status> {
        self.0.admin(&credentials(&request)).await?;
        let revision = request.into_inner().revision;
        let hash = self
            .0
            .read_blocking(move |store| Ok(store.hash_kv(revision)?))
            .await?;
        Ok(Response::new(HashKvResponse {
            header: Some(self.0.header(hash.revision)),
            hash: hash.hash,
            compact_revision: hash.compact_revision,
            hash_revision: hash.hash_revision,
        }))
    }

    type SnapshotStream = Pin<Box<dyn Stream<Item = Result<SnapshotResponse, Status>> + Send>>;

    async fn snapshot(
        &self,
        request: Request<SnapshotRequest>,
    ) -> Result<Response<Self::SnapshotStream>, Status> {
        self.0.admin(&credentials(&request)).await?;
        let version = self.0.storage_version().map(|v| v.to_string());
        let version = version.unwrap_or_default();
        let parts = ReceiverStream::new(backup::send(self.0.clone())?);
        let messages = parts.map(move |part| -> Result<SnapshotResponse, Status> {
            let EtcdPart { blob, remaining } = part?;
            Ok(SnapshotResponse {
                header: None,
                remaining_bytes: remaining,
                blob,
                version: version.clone(),
            })
        });
        Ok(Response::new(Box::pin(messages)))
    }

    async fn move_leader(
        &self,
        request: Request<MoveLeaderRequest>,
    ) -> Result<Response<MoveLeaderResponse>, Status> {
        self.0.admin(&credentials(&request)).await?;
        reconfigure::move_leader(&self.0, request.into_inner().target_id).await?;
        Ok(Response::new(MoveLeaderResponse { header: None }))
    }

    async fn downgrade(
        &self,
        request: Request<DowngradeRequest>,
    ) -> Result<Response<DowngradeResponse>, Status> {
        self.0.admin(&credentials(&request)).await?;
        let DowngradeRequest { action, version } = request.into_inner();
        let member = &self.0;
        let version = match DowngradeAction::try_from(action) {
            Ok(DowngradeAction::Validate) => downgrade::validate(member, &version).await?,
            Ok(DowngradeAction::Enable) => downgrade::enable(member, &version).await?,
            Ok(DowngradeAction::Cancel) => downgrade::cancel(member).await?,
            Err(_) => return Err(Status::unknown("etcdserver: unknown method")),
        };
        Ok(Response::new(DowngradeResponse {
            header: fill(member, None),
            version: version.minor_form(),
        }))
    }
}
