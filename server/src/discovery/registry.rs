//! Members that find each other in a registry, any cluster that speaks etcd's API (v3 discovery).
//!
//! Under `/_etcd/registry/<token>`, `_config/size` holds how many members the cluster begins with; each member writes
//! `members/<its id>` with its names and URLs and waits until there are as many. The first ones, by the revision at which
//! they wrote, are the cluster; who comes later is told that it is full. Source: etcd v3.7, api/v3discovery.

use std::time::Duration;

use anyhow::{Context, Result, bail};
use bytes::Bytes;
use kv_client::{Client, Credentials, Tls};
use kv_proto::etcdserverpb::{PutRequest, RangeRequest, WatchCreateRequest};
use kv_proto::key_range::prefix_end;

use crate::cluster;
use crate::config::{Config, Url, parse_initial_cluster};

/// Pauses between attempts to reach the registry.
const PAUSE_MIN: Duration = Duration::from_secs(1);
const PAUSE_MAX: Duration = Duration::from_secs(30);

/// Registers this member and waits for the others; returns name and URL of each.
pub(super) async fn join(config: &Config) -> Result<Vec<(String, Url)>> {
    let mut pause = PAUSE_MIN;
    loop {
        let joined = async { Registry::of(config).await?.join().await };
        match joined.await {
            Ok(members) => return Ok(members),
            Err(Failure::Final(error)) => return Err(error),
            Err(Failure::Unreached(error)) => warn(&error, pause),
        }
        tokio::time::sleep(pause).await;
        pause = (pause * 2).min(PAUSE_MAX);
    }
}

fn warn(error: &anyhow::Error, pause: Duration) {
    tracing::warn!(
        error = format!("{error:#}"),
        pause_secs = pause.as_secs(),
        "the discovery service does not answer; trying again"
    );
}

/// Why this member has no cluster.
enum Failure {
    /// What the registry says will not change.
    Final(anyhow::Error),
    /// It may answer later.
    Unreached(anyhow::Error),
}

impl From<kv_client::Error> for Failure {
    fn from(error: kv_client::Error) -> Failure {
        use kv_client::Error;
        match error {
            // The flags are wrong, and stay so.
            Error::NoEndpoints
            | Error::BadEndpoint { .. }
            | Error::Tls { .. }
            | Error::TlsRefused(_) => Failure::Final(error.into()),
            error => Failure::Unreached(error.into()),
        }
    }
}

/// The place of one token.
struct Registry {
    client: Client,
    folder: String,
    own_key: Bytes,
    own_urls: String,
}

/// What is registered.
struct State {
    size: usize,
    /// Key and value of each member, in the order of their registration.
    members: Vec<(Bytes, Bytes)>,
    revision: i64,
}

impl Registry {
    async fn of(config: &Config) -> Result<Registry, Failure> {
        let discovery = &config.discovery;
        let folder = format!("/_etcd/registry/{}", discovery.token);
        let mut urls: Vec<String> = config
            .initial_advertise_peer_urls
            .iter()
            .map(Url::to_string)
            .collect();
        urls.sort();
        let id = cluster::member_id(&urls, &discovery.token);
        let named: Vec<String> = urls
            .iter()
            .map(|url| format!("{}={url}", config.name))
            .collect();
        let credentials = match (discovery.user.as_str(), discovery.password.as_str()) {
            ("", _) => None,
            (user, "") => user.split_once(':'),
            (user, password) => Some((user, password)),
        };
        let client = kv_client::Config {
            connect_timeout: discovery.dial_timeout,
            request_timeout: Some(discovery.request_timeout),
            keep_alive_interval: discovery.keepalive_time,
            keep_alive_timeout: discovery.keepalive_timeout,
            tls: (!discovery.insecure_transport).then(|| Tls {
                ca_file: discovery.cacert.clone(),
                cert_file: discovery.cert.clone(),
                key_file: discovery.key.clone(),
                skip_verify: discovery.insecure_skip_tls_verify,
            }),
            credentials: credentials.map(|(user, password)| Credentials::Password {
                user: user.to_owned(),
                password: password.to_owned(),
            }),
            ..kv_client::Config::new(discovery.endpoints.iter())
        };
        Ok(Registry {
            client: Client::connect(client).await?,
            own_key: format!("{folder}/members/{id:x}").into(),
            folder,
            own_urls: named.join(","),
        })
    }

    async fn join(&self) -> Result<Vec<(String, Url)>, Failure> {
        self.check_place(&self.look().await?)?;
        let put = PutRequest {
            key: self.own_key.clone(),
            value: self.own_urls.clone().into(),
            ..Default::default()
        };
        self.client.put(put).await?;
        let mut state = self.look().await?;
        // Others may have been faster.
        self.check_place(&state)?;
        while state.members.len() < state.size {
            tracing::info!(
                registered = state.members.len(),
                size = state.size,
                "waiting for the other members to register"
            );
            self.wait_for_change(state.revision).await?;
            state = self.look().await?;
        }
        members(&state).map_err(Failure::Final)
    }

    /// The registry as it is now.
    async fn look(&self) -> Result<State, Failure> {
        let size = self
            .client
            .get(format!("{}/_config/size", self.folder))
            .await?;
        let Some(size) = size else {
            return Err(Failure::Final(anyhow::anyhow!(
                "discovery: size key not found: put the number of members under {}/_config/size",
                self.folder
            )));
        };
        let text = String::from_utf8_lossy(&size.value).into_owned();
        let size = match text.parse::<usize>() {
            Ok(size) if size > 0 => size,
            _ => {
                return Err(Failure::Final(anyhow::anyhow!(
                    "discovery: size key is bad: {text:?} is no number of members"
                )));
            }
        };
        let prefix = Bytes::from(format!("{}/members/", self.folder));
        let answer = self
            .client
            .range(RangeRequest {
                range_end: prefix_end(&prefix),
                key: prefix,
                ..Default::default()
            })
            .await?;
        let mut pairs = answer.kvs;
        pairs.sort_by_key(|pair| pair.create_revision);
        Ok(State {
            size,
            members: pairs
                .into_iter()
                .map(|pair| (pair.key, pair.value))
                .collect(),
            revision: answer.header.map_or(0, |header| header.revision),
        })
    }

    /// This member is among the first ones, or could be.
    fn check_place(&self, state: &State) -> Result<(), Failure> {
        let before = state
            .members
            .iter()
            .take_while(|(key, _)| *key != self.own_key);
        if before.count() >= state.size {
            return Err(Failure::Final(anyhow::anyhow!(
                "discovery: cluster is full: {} members of {} are registered under {}",
                state.members.len(),
                state.size,
                self.folder
            )));
        }
        Ok(())
    }

    /// Waits until something is registered after `revision`.
    async fn wait_for_change(&self, revision: i64) -> Result<(), Failure> {
        let prefix = Bytes::from(format!("{}/members/", self.folder));
        let mut watcher = self.client.watch(WatchCreateRequest {
            range_end: prefix_end(&prefix),
            key: prefix,
            start_revision: revision + 1,
            ..Default::default()
        });
        // Canceled, as by a compaction: then it is time to look as well.
        while let Some(response) = watcher.next().await? {
            if !response.events.is_empty() || response.canceled {
                break;
            }
        }
        Ok(())
    }
}

/// The members that begin the cluster.
fn members(state: &State) -> Result<Vec<(String, Url)>> {
    let mut members = Vec::new();
    for (key, value) in state.members.iter().take(state.size) {
        let text = std::str::from_utf8(value).context("discovery: invalid peer URL")?;
        match parse_initial_cluster(text) {
            Ok(named) => members.extend(named),
            Err(why) => bail!(
                "discovery: invalid peer URL: {} holds {text:?}: {why}",
                key.escape_ascii()
            ),
        }
    }
    Ok(members)
}
