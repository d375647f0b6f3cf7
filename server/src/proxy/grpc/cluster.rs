//! The Cluster service of the proxy: clients that ask for members are told of proxies, and go on through them.
//!
//! Proxies with the same `--resolver-prefix` know each other by keys `<prefix>/<advertised address>` under leases, in the
//! form of etcd's naming package, so that gRPC's resolver finds them too. Source: etcd 3.7, grpcproxy cluster and register.

use std::time::Duration;

use bytes::Bytes;
use kv_proto::etcdserverpb::cluster_client::ClusterClient;
use kv_proto::etcdserverpb::cluster_server::Cluster;
use kv_proto::etcdserverpb::{
    LeaseGrantRequest, Member, MemberAddRequest, MemberAddResponse, MemberListRequest,
    MemberListResponse, MemberPromoteRequest, MemberPromoteResponse, MemberRemoveRequest,
    MemberRemoveResponse, MemberUpdateRequest, MemberUpdateResponse, PutRequest, RangeRequest,
};
use serde::{Deserialize, Serialize};
use tonic::transport::Channel;
use tonic::{Request, Response, Status};

use super::super::options::GrpcProxyOptions;
use super::upstream::Upstream;

/// The pause between attempts to register.
const REGISTER_PAUSE: Duration = Duration::from_secs(1);

/// The service.
#[derive(Clone)]
pub(super) struct ClusterProxy {
    upstream: Upstream,
    advertised: String,
    prefix: String,
}

/// What a key of a proxy holds. Source: etcd 3.7, client/v3/naming, internal updates.
#[derive(Serialize, Deserialize)]
struct Registered {
    #[serde(rename = "Op")]
    op: u8,
    #[serde(rename = "Addr")]
    address: String,
    /// JSON of [`Meta`], as a text.
    #[serde(rename = "Metadata")]
    meta: String,
}

#[derive(Serialize, Deserialize)]
struct Meta {
    name: String,
}

/// The name of this machine; empty if it has none that can be read.
fn host_name() -> String {
    let name = rustix::system::uname();
    name.nodename().to_string_lossy().into_owned()
}

impl ClusterProxy {
    pub(super) fn new(upstream: Upstream, options: &GrpcProxyOptions) -> ClusterProxy {
        ClusterProxy {
            upstream,
            advertised: options.advertise_client_url.clone(),
            prefix: options.resolver_prefix.clone(),
        }
    }

    /// All proxies that are registered now.
    async fn registered(&self) -> kv_client::Result<Vec<Member>> {
        let request = RangeRequest {
            key: format!("{}/", self.prefix).into(),
            range_end: format!("{}0", self.prefix).into(),
            ..Default::default()
        };
        let found = self.upstream.client().range(request).await?;
        let members = found.kvs.iter().filter_map(|kv| {
            let proxy: Registered = serde_json::from_slice(&kv.value).ok()?;
            let meta: Meta = serde_json::from_str(&proxy.meta).ok()?;
            Some(Member {
                name: meta.name,
                client_ur_ls: vec![proxy.address],
                ..Default::default()
            })
        });
        Ok(members.collect())
    }
}

macro_rules! forward {
    ($($method:ident($request:ty) -> $response:ty;)*) => {
        #[tonic::async_trait]
        impl Cluster for ClusterProxy {
            async fn member_list(&self, request: Request<MemberListRequest>) -> Result<Response<MemberListResponse>, Status> {
                if self.advertised.is_empty() {
                    let (metadata, _, request) = request.into_parts();
                    let send = async |channel: Channel, request| ClusterClient::new(channel).member_list(request).await;
                    return self.upstream.call(&metadata, request, send).await;
                }
                let mut members = Vec::new();
                if !self.prefix.is_empty() {
                    let found = self.registered().await;
                    members = found.map_err(|error| Status::unavailable(error.to_string()))?;
                }
                if members.is_empty() {
                    members.push(Member {
                        name: host_name(),
                        client_ur_ls: vec![self.advertised.clone()],
                        ..Default::default()
                    });
                }
                Ok(Response::new(MemberListResponse { header: None, members }))
            }

            $(async fn $method(&self, request: Request<$request>) -> Result<Response<$response>, Status> {
                let (metadata, _, request) = request.into_parts();
                let send = async |channel: Channel, request| ClusterClient::new(channel).$method(request).await;
                self.upstream.call(&metadata, request, send).await
            })*
        }
    };
}

forward! {
    member_add(MemberAddRequest) -> MemberAddResponse;
    member_remove(MemberRemoveRequest) -> MemberRemoveResponse;
    member_update(MemberUpdateRequest) -> MemberUpdateResponse;
    member_promote(MemberPromoteRequest) -> MemberPromoteResponse;
}

/// Keeps the proxy's key there as long as the proxy lives.
pub(super) async fn register(upstream: Upstream, options: GrpcProxyOptions) {
    loop {
        if let Err(error) = register_once(&upstream, &options).await {
            tracing::warn!(%error, "could not register the proxy");
        }
        tokio::time::sleep(REGISTER_PAUSE).await;
    }
}

/// Registers the proxy and returns when its lease is gone.
async fn register_once(upstream: &Upstream, options: &GrpcProxyOptions) -> kv_client::Result<()> {
    let client = upstream.client();
    let lease = client
        .lease_grant(LeaseGrantRequest {
            ttl: options.resolver_ttl,
            id: 0,
        })
        .await?
        .id;
    let address = &options.advertise_client_url;
    let meta = Meta { name: host_name() };
    let registered = Registered {
        op: 0,
        address: address.clone(),
        meta: serde_json::to_string(&meta).expect("a text has a JSON form"),
    };
    let value = serde_json::to_vec(&registered).expect("texts have a JSON form");
    let put = PutRequest {
        key: Bytes::from(format!("{}/{address}", options.resolver_prefix)),
        value: value.into(),
        lease,
        ..Default::default()
    };
    client.put(put).await?;
    tracing::info!(address, lease, "registered the proxy");
    let mut kept = client.lease_keep_alive(lease);
    while kept.renewed().await.is_some() {}
    tracing::warn!(lease, "the proxy's lease is gone");
    Ok(())
}
