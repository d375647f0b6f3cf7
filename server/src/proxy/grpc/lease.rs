//! The Lease service of the proxy. Renewals of one lease that meet are one renewal of the cluster's.

use std::collections::HashMap;
use std::pin::Pin;
use std::sync::Arc;

use futures_util::Stream;
use futures_util::stream::unfold;
use kv_proto::etcdserverpb::lease_client::LeaseClient;
use kv_proto::etcdserverpb::lease_server::Lease;
use kv_proto::etcdserverpb::{
    LeaseGrantRequest, LeaseGrantResponse, LeaseKeepAliveRequest, LeaseKeepAliveResponse,
    LeaseLeasesRequest, LeaseLeasesResponse, LeaseRevokeRequest, LeaseRevokeResponse,
    LeaseTimeToLiveRequest, LeaseTimeToLiveResponse,
};
use parking_lot::Mutex;
use tokio::sync::watch;
use tonic::metadata::MetadataMap;
use tonic::transport::Channel;
use tonic::{Request, Response, Status, Streaming};

use super::cache::Cache;
use super::namespace::Namespace;
use super::upstream::{Caller, Upstream};

type Renewed = Result<LeaseKeepAliveResponse, Status>;
/// The answer to come, by who asked for which lease.
type UnderWay = HashMap<(Caller, i64), watch::Receiver<Option<Renewed>>>;

/// The service.
#[derive(Clone)]
pub(super) struct LeaseProxy {
    upstream: Upstream,
    namespace: Namespace,
    cache: Arc<Cache>,
    /// Renewals that were sent and not answered yet.
    under_way: Arc<Mutex<UnderWay>>,
}

fn client(channel: Channel) -> LeaseClient<Channel> {
    LeaseClient::new(channel).max_decoding_message_size(usize::MAX)
}

impl LeaseProxy {
    pub(super) fn new(upstream: Upstream, namespace: Namespace, cache: Arc<Cache>) -> LeaseProxy {
        LeaseProxy {
            upstream,
            namespace,
            cache,
            under_way: Arc::default(),
        }
    }

    /// Renews a lease, or waits with those who asked for the same.
    async fn renew(&self, metadata: &MetadataMap, id: i64) -> Renewed {
        let of = (Caller::of(metadata.as_ref()), id);
        let mut answer = {
            let mut under_way = self.under_way.lock();
            match under_way.get(&of) {
                Some(answer) => answer.clone(),
                None => {
                    let (answered, answer) = watch::channel(None);
                    under_way.insert(of.clone(), answer.clone());
                    let (proxy, metadata) = (self.clone(), metadata.clone());
                    tokio::spawn(async move {
                        let renewed = proxy.renew_now(&metadata, id).await;
                        proxy.under_way.lock().remove(&of);
                        // Those who waited may have gone.
                        let _ = answered.send(Some(renewed));
                    });
                    answer
                }
            }
        };
        match answer.wait_for(Option::is_some).await {
            Ok(renewed) => renewed.clone().expect("it was waited for"),
            Err(_) => Err(crate::Error::Stopped.into()),
        }
    }

    async fn renew_now(&self, metadata: &MetadataMap, id: i64) -> Renewed {
        let send = async |channel, request: Request<i64>| {
            let request = request.map(|id| tokio_stream::once(LeaseKeepAliveRequest { id }));
            client(channel).lease_keep_alive(request).await
        };
        let mut answers = self.upstream.call(metadata, id, send).await?.into_inner();
        let answer = answers.message().await?;
        answer.ok_or_else(|| Status::unavailable("the cluster did not answer a renewal"))
    }
}

#[tonic::async_trait]
impl Lease for LeaseProxy {
    async fn lease_grant(
        &self,
        request: Request<LeaseGrantRequest>,
    ) -> Result<Response<LeaseGrantResponse>, Status> {
        let (metadata, _, request) = request.into_parts();
        let send = async |channel, request| client(channel).lease_grant(request).await;
        self.upstream.call(&metadata, request, send).await
    }

    async fn lease_revoke(
        &self,
        request: Request<LeaseRevokeRequest>,
    ) -> Result<Response<LeaseRevokeResponse>, Status> {
        let (metadata, _, request) = request.into_parts();
        let send = async |channel, request| client(channel).lease_revoke(request).await;
        let answer = self.upstream.call(&metadata, request, send).await;
        // Which keys went with it, nobody here knows.
        self.cache.invalidate_all();
        answer
    }

    type LeaseKeepAliveStream = Pin<Box<dyn Stream<Item = Renewed> + Send>>;

    async fn lease_keep_alive(
        &self,
        request: Request<Streaming<LeaseKeepAliveRequest>>,
    ) -> Result<Response<Self::LeaseKeepAliveStream>, Status> {
        let (metadata, _, requests) = request.into_parts();
        let state = Some((self.clone(), metadata, requests));
        let answers = unfold(state, |state| async move {
            let (proxy, metadata, mut requests) = state?;
            let id = match requests.message().await {
                Ok(Some(request)) => request.id,
                Ok(None) => return None,
                Err(status) => return Some((Err(status), None)),
            };
            let renewed = proxy.renew(&metadata, id).await;
            let goes_on = renewed.is_ok();
            Some((renewed, goes_on.then_some((proxy, metadata, requests))))
        });
        Ok(Response::new(Box::pin(answers)))
    }

    async fn lease_time_to_live(
        &self,
        request: Request<LeaseTimeToLiveRequest>,
    ) -> Result<Response<LeaseTimeToLiveResponse>, Status> {
        let (metadata, _, request) = request.into_parts();
        let send = async |channel, request| client(channel).lease_time_to_live(request).await;
        let mut response = self.upstream.call(&metadata, request, send).await?;
        let keys = std::mem::take(&mut response.get_mut().keys);
        response.get_mut().keys = self.namespace.keys(keys);
        Ok(response)
    }

    async fn lease_leases(
        &self,
        request: Request<LeaseLeasesRequest>,
    ) -> Result<Response<LeaseLeasesResponse>, Status> {
        let (metadata, _, request) = request.into_parts();
        let send = async |channel, request| client(channel).lease_leases(request).await;
        self.upstream.call(&metadata, request, send).await
    }
}
