//! State and care of one member: make a client with a single endpoint to choose which.

use kv_proto::etcdserverpb::{
    AlarmRequest, AlarmResponse, DefragmentRequest, DefragmentResponse, DowngradeRequest,
    DowngradeResponse, HashKvRequest, HashKvResponse, MoveLeaderRequest, MoveLeaderResponse,
    SnapshotRequest, SnapshotResponse, StatusRequest, StatusResponse, alarm_request::AlarmAction,
    downgrade_request::DowngradeAction, maintenance_client::MaintenanceClient,
};

use tonic::Streaming;

use crate::{
    Client,
    error::{Error, Result},
    retry::Repeat,
};

/// The messages of a snapshot, in order.
#[derive(Debug)]
pub struct SnapshotMessages {
    stream: Streaming<SnapshotResponse>,
}

impl SnapshotMessages {
    /// The next message; `None` behind the last.
    pub async fn next(&mut self) -> Result<Option<SnapshotResponse>> {
        self.stream.message().await.map_err(|status| Error::Server {
            code: status.code(),
            message: status.message().to_owned(),
        })
    }
}

impl Client {
    /// Versions, sizes, leader and raft positions of the member.
    pub async fn status(&self) -> Result<StatusResponse> {
        self.call(Repeat::Always, StatusRequest {}, |c, q| async move {
            MaintenanceClient::new(c).status(q).await
        })
        .await
    }

    /// The hash of all history up to `revision`; 0 means the newest.
    pub async fn hash_kv(&self, revision: i64) -> Result<HashKvResponse> {
        let request = HashKvRequest { revision };
        self.call(Repeat::Always, request, |c, q| async move {
            MaintenanceClient::new(c).hash_kv(q).await
        })
        .await
    }

    /// Gives free space of the member's store back to the file system.
    pub async fn defragment(&self) -> Result<DefragmentResponse> {
        let request = DefragmentRequest {};
        self.call(Repeat::IfNotSent, request, |c, q| async move {
            MaintenanceClient::new(c).defragment(q).await
        })
        .await
    }

    /// The whole state of the member as a backend file of etcd, with its sha256 at the end.
    ///
    /// The time limit of requests is for the first message alone. The stream is not repeated if it breaks.
    pub async fn snapshot(&self) -> Result<SnapshotMessages> {
        let request = SnapshotRequest {};
        let stream = self
            .call(Repeat::Always, request, |c, q| async move {
                MaintenanceClient::new(c).snapshot(q).await
            })
            .await?;
        Ok(SnapshotMessages { stream })
    }

    /// Hands leadership over from the asked member, which must lead, to `target`.
    pub async fn move_leader(&self, target: u64) -> Result<MoveLeaderResponse> {
        let request = MoveLeaderRequest { target_id: target };
        self.call(Repeat::IfNotSent, request, |c, q| async move {
            MaintenanceClient::new(c).move_leader(q).await
        })
        .await
    }

    /// Checks, begins or ends a downgrade of the cluster to the release before.
    pub async fn downgrade(&self, request: DowngradeRequest) -> Result<DowngradeResponse> {
        let repeat = match request.action() {
            DowngradeAction::Validate => Repeat::Always,
            _ => Repeat::IfNotSent,
        };
        self.call(repeat, request, |c, q| async move {
            MaintenanceClient::new(c).downgrade(q).await
        })
        .await
    }

    /// Lists, raises or clears alarms of the cluster.
    pub async fn alarm(&self, request: AlarmRequest) -> Result<AlarmResponse> {
        let repeat = if request.action() == AlarmAction::Get {
            Repeat::Always
        } else {
            Repeat::IfNotSent
        };
        self.call(repeat, request, |c, q| async move {
            MaintenanceClient::new(c).alarm(q).await
        })
        .await
    }
}
