//! Asks a running cluster who its members are, over the pages of the peer port.

use std::time::Duration;

use anyhow::{Context, Result, bail};
use bytes::Bytes;
use http::{Request, StatusCode, header};
use http_body_util::{BodyExt, Empty, Limited};
use hyper::client::conn::http1;
use hyper_util::rt::TokioIo;

use super::connect::{Alpn, Connector};
use super::pages::CLUSTER_ID;
use crate::cluster::Member;
use crate::config::Url;

/// A member that does not answer is as good as not there. Source: etcd v3.7, bootstrap timeout.
const TIMEOUT: Duration = Duration::from_secs(1);
/// No list of members is longer.
const BODY_BYTES_MAX: usize = 4 << 20;

/// Members of a cluster, as one of them tells.
#[derive(Debug)]
pub(crate) struct RemoteCluster {
    pub(crate) id: u64,
    pub(crate) members: Vec<Member>,
}

/// Asks the member at `url`.
pub(crate) async fn fetch_cluster(connector: &Connector, url: &Url) -> Result<RemoteCluster> {
    match tokio::time::timeout(TIMEOUT, fetch(connector, url)).await {
        Ok(fetched) => fetched,
        Err(_) => bail!("no answer within {} s", TIMEOUT.as_secs()),
    }
}

async fn fetch(connector: &Connector, url: &Url) -> Result<RemoteCluster> {
    let connection = connector
        .connect(std::slice::from_ref(url), Alpn::Http1)
        .await?;
    let (mut sender, serving) = http1::handshake(TokioIo::new(connection)).await?;
    // Ends with the sender.
    tokio::spawn(serving);
    let host = if url.scheme.is_unix() {
        "localhost"
    } else {
        &url.address
    };
    let request = Request::get("/members")
        .header(header::HOST, host)
        .body(Empty::<Bytes>::new())?;
    let answer = sender.send_request(request).await?;
    if answer.status() != StatusCode::OK {
        bail!("it answered {} to /members", answer.status());
    }
    let id = answer
        .headers()
        .get(CLUSTER_ID)
        .and_then(|id| u64::from_str_radix(id.to_str().ok()?, 16).ok())
        .context("its answer names no cluster")?;
    let body = Limited::new(answer.into_body(), BODY_BYTES_MAX);
    let body = body
        .collect()
        .await
        .map_err(|error| anyhow::anyhow!(error))?
        .to_bytes();
    let members = serde_json::from_slice(&body).context("its list of members cannot be read")?;
    Ok(RemoteCluster { id, members })
}
