//! Asks a member over the pages of its peer port: who the members of its cluster are, and what its keys hash to.

use std::time::Duration;

use anyhow::{Context, Result, bail};
use bytes::Bytes;
use http::{HeaderMap, Request, StatusCode, header};
use http_body_util::{BodyExt, Full, Limited};
use hyper::client::conn::http1;
use hyper_util::rt::TokioIo;
use kv_mvcc::HashKv;
use serde::Deserialize;

use super::connect::{Alpn, Connector};
use super::pages::CLUSTER_ID;
use crate::cluster::{Member, Version};
use crate::config::Url;

/// A member that does not answer is as good as not there. Source: etcd v3.7, bootstrap timeout.
const TIMEOUT: Duration = Duration::from_secs(1);
/// A hash may have to be taken over everything that is stored.
const HASH_TIMEOUT: Duration = Duration::from_secs(60);
/// No list of members is longer.
const BODY_BYTES_MAX: usize = 4 << 20;

/// Members of a cluster, as one of them tells.
#[derive(Debug)]
pub(crate) struct RemoteCluster {
    pub(crate) id: u64,
    pub(crate) members: Vec<Member>,
    /// None while it is not decided.
    pub(crate) version: Option<Version>,
}

/// The part of the page `/version` that matters to another member.
#[derive(Deserialize)]
struct Versions {
    etcdcluster: String,
}

/// Asks the member at `url`.
pub(crate) async fn fetch_cluster(connector: &Connector, url: &Url) -> Result<RemoteCluster> {
    let fetch = async {
        let (head, body) = get(connector, url, "/members", Bytes::new()).await?;
        let id = cluster_id(&head).context("its answer names no cluster")?;
        let members =
            serde_json::from_slice(&body).context("its list of members cannot be read")?;
        let (_, body) = get(connector, url, "/version", Bytes::new()).await?;
        let versions: Versions =
            serde_json::from_slice(&body).context("its version cannot be read")?;
        // Before it is decided, it is a word.
        let version = versions.etcdcluster.parse().ok();
        Ok(RemoteCluster {
            id,
            members,
            version,
        })
    };
    match tokio::time::timeout(TIMEOUT, fetch).await {
        Ok(fetched) => fetched,
        Err(_) => bail!("no answer within {} s", TIMEOUT.as_secs()),
    }
}

/// Asks the member at `url` for the hash of its keys at `revision`; returns the member's id with it.
pub(crate) async fn fetch_hash_kv(
    connector: &Connector,
    url: &Url,
    cluster_id: u64,
    revision: i64,
) -> Result<(u64, HashKv)> {
    let fetch = async {
        let body = serde_json::json!({ "revision": revision }).to_string();
        let (head, body) = get(connector, url, "/members/hashkv", body.into()).await?;
        if self::cluster_id(&head) != Some(cluster_id) {
            bail!("its answer is of another cluster");
        }
        let answer: HashAnswer =
            serde_json::from_slice(&body).context("its hash cannot be read")?;
        let hash = HashKv {
            hash: answer.hash,
            revision: answer.header.revision,
            compact_revision: answer.compact_revision,
            hash_revision: answer.hash_revision,
        };
        Ok((answer.header.member_id, hash))
    };
    match tokio::time::timeout(HASH_TIMEOUT, fetch).await {
        Ok(fetched) => fetched,
        Err(_) => bail!("no answer within {} s", HASH_TIMEOUT.as_secs()),
    }
}

/// The page `/members/hashkv`.
#[derive(Deserialize)]
struct HashAnswer {
    header: HashHeader,
    hash: u32,
    compact_revision: i64,
    hash_revision: i64,
}

#[derive(Deserialize)]
struct HashHeader {
    member_id: u64,
    revision: i64,
}

/// The cluster that an answer comes from.
fn cluster_id(head: &HeaderMap) -> Option<u64> {
    let id = head.get(CLUSTER_ID)?.to_str().ok()?;
    u64::from_str_radix(id, 16).ok()
}

/// One page.
async fn get(
    connector: &Connector,
    url: &Url,
    path: &str,
    body: Bytes,
) -> Result<(HeaderMap, Bytes)> {
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
    let request = Request::get(path)
        .header(header::HOST, host)
        .body(Full::new(body))?;
    let answer = sender.send_request(request).await?;
    let (head, body) = answer.into_parts();
    let body = Limited::new(body, BODY_BYTES_MAX);
    let body = body
        .collect()
        .await
        .map_err(|error| anyhow::anyhow!(error))?
        .to_bytes();
    if head.status != StatusCode::OK {
        let text = String::from_utf8_lossy(&body);
        bail!("it answered {} to {path}: {}", head.status, text.trim_end());
    }
    Ok((head.headers, body))
}
