//! Who this member is and how it begins: as part of a new cluster, as an addition to a running one, or again.
//!
//! A folder with a log decides everything; flags of the initial cluster count for a new folder only. Members of a new
//! cluster derive the same ids and the same member table from the same flags. A member that joins takes its ids from the
//! running cluster, which must have added it before; it starts empty and is contacted by the leader.
//! Source: etcd v3.7, etcdserver/bootstrap.go and cluster_util.go; texts are etcd's where it has one.

use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail};

use crate::cluster::{self, Member};
use crate::config::{ClusterState, Config, Url};
use crate::data_dir::{DataDir, Meta};
use crate::peer::{Connector, RemoteCluster, fetch_cluster};
use crate::{apply, build, discovery};

/// Formats this build writes, recorded in the folder's meta file.
const WAL_FORMAT: u32 = 1;
const STORE_FORMAT: u32 = 1;

/// How long a member that joins looks for one of its cluster that answers, and between two looks.
const JOIN_PATIENCE: Duration = Duration::from_secs(10);
const JOIN_PAUSE: Duration = Duration::from_millis(500);

/// What the folder says about its owner, or what was derived for a new one.
pub(crate) struct Bootstrap {
    pub(crate) identity: kv_wal::Identity,
    /// What a member with an empty log does first.
    pub(crate) beginning: Beginning,
}

/// The first step of a member with an empty log.
pub(crate) enum Beginning {
    /// It was started before; its log tells all.
    Restart,
    /// These members begin a cluster together.
    New(Vec<Member>),
    /// The leader of a running cluster, which has these members, will send the log.
    Join(Vec<Member>),
}

/// One member of `--initial-cluster`.
struct Named {
    name: String,
    urls: Vec<Url>,
}

/// Identifies the owner of the folder, a new one after asking the other members.
pub(crate) async fn identify(
    config: &Config,
    folder: &DataDir,
    connector: &Connector,
) -> Result<Bootstrap> {
    if let Some(meta) = folder.read_meta()? {
        return Ok(Bootstrap {
            identity: identity(&meta),
            beginning: Beginning::Restart,
        });
    }
    let (cluster_id, member_id, beginning) = begin(config, connector).await?;
    let identity = new_identity(cluster_id, member_id);
    claim(folder, identity)?;
    Ok(Bootstrap {
        identity,
        beginning,
    })
}

/// Writes down whose the folder is; it must be before anything else is in it.
pub(crate) fn claim(folder: &DataDir, owner: kv_wal::Identity) -> Result<()> {
    folder.write_meta(&Meta {
        wal_format: WAL_FORMAT,
        store_format: STORE_FORMAT,
        cluster_id: owner.cluster_id,
        member_id: owner.member_id,
        incarnation: owner.incarnation,
    })?;
    Ok(())
}

/// This member of the new cluster that the flags describe, and all of its members; nobody is asked.
pub(crate) async fn founder(config: &Config) -> Result<(kv_wal::Identity, Vec<Member>)> {
    let named = named_members(config)?;
    check_advertised(own(config, &named)?, &config.initial_advertise_peer_urls).await?;
    let (cluster_id, member_id, members) = founders(config, &named)?;
    Ok((new_identity(cluster_id, member_id), members))
}

fn new_identity(cluster_id: u64, member_id: u64) -> kv_wal::Identity {
    kv_wal::Identity {
        cluster_id,
        member_id,
        incarnation: new_incarnation(),
    }
}

/// How a member begins whose folder is known and whose log is empty: its first start ended early.
pub(crate) async fn begin_again(
    config: &Config,
    known: kv_wal::Identity,
    connector: &Connector,
) -> Result<Beginning> {
    let begun = begin(config, connector).await;
    match begun {
        Ok((cluster_id, member_id, beginning))
            if (cluster_id, member_id) == (known.cluster_id, known.member_id) =>
        {
            Ok(beginning)
        }
        Ok(_) => bail!(
            "{} was prepared for member {:x} of cluster {:x}, and the flags of the initial cluster now describe another: \
             give the former flags again, or remove the folder",
            config.data_dir.display(),
            known.member_id,
            known.cluster_id
        ),
        // Who we are is known, and the leader knows where: nobody has to answer now.
        Err(_) if config.initial_cluster_state == ClusterState::Existing => {
            Ok(Beginning::Join(Vec::new()))
        }
        Err(error) => Err(error),
    }
}

#[allow(
    clippy::disallowed_methods,
    reason = "made once for a folder that never had one; nothing replays from it"
)]
fn new_incarnation() -> u64 {
    // 0 stands for none.
    rand::random_range(1..=u64::MAX)
}

fn identity(meta: &Meta) -> kv_wal::Identity {
    kv_wal::Identity {
        cluster_id: meta.cluster_id,
        member_id: meta.member_id,
        incarnation: meta.incarnation,
    }
}

/// Cluster id, member id and first step of a member without a log.
async fn begin(config: &Config, connector: &Connector) -> Result<(u64, u64, Beginning)> {
    let config = &*discovery::resolved(config).await?;
    let named = named_members(config)?;
    // Of SRV records the one that leads to an advertised address was taken, by the resolver that they came from.
    if config.discovery_srv.is_empty() {
        check_advertised(own(config, &named)?, &config.initial_advertise_peer_urls).await?;
    }
    match config.initial_cluster_state {
        ClusterState::New => begin_new(config, connector, &named).await,
        ClusterState::Existing => begin_joining(config, connector, &named).await,
    }
}

/// The member that the flags call this one.
fn own<'a>(config: &Config, named: &'a [Named]) -> Result<&'a Named> {
    named
        .iter()
        .find(|member| member.name == config.name)
        .with_context(|| {
            format!(
                "couldn't find local name {:?} in the initial cluster configuration: \
                 --name must be one of the names in --initial-cluster",
                config.name
            )
        })
}

/// Cluster id, this member's id and all members of a cluster that they begin together.
fn founders(config: &Config, named: &[Named]) -> Result<(u64, u64, Vec<Member>)> {
    let mut members: Vec<Member> = named
        .iter()
        .map(|member| {
            let peer_urls: Vec<String> = member.urls.iter().map(Url::to_string).collect();
            Member {
                id: cluster::member_id(&peer_urls, &config.initial_cluster_token),
                peer_urls,
                name: member.name.clone(),
                ..Default::default()
            }
        })
        .collect();
    members.sort_by_key(|member| member.id);
    let ids: Vec<u64> = members.iter().map(|member| member.id).collect();
    let cluster_id = cluster::cluster_id(&ids);
    let own = members
        .iter()
        .find(|member| member.name == config.name)
        .map(|member| member.id)
        .context("the caller found the name")?;
    Ok((cluster_id, own, members))
}

async fn begin_new(
    config: &Config,
    connector: &Connector,
    named: &[Named],
) -> Result<(u64, u64, Beginning)> {
    let (cluster_id, own, members) = founders(config, named)?;
    // Members that start at the same time do not answer yet.
    if let Ok(remote) = ask_others(config, connector, named).await {
        if remote.id != cluster_id {
            bail!(
                "the members of --initial-cluster serve cluster {:x} already, and these flags describe cluster {cluster_id:x}: \
                 to join it, add this member to it and use --initial-cluster-state=existing",
                remote.id
            );
        }
        let known = remote.members.iter().find(|member| member.id == own);
        if known.is_none_or(|member| !member.client_urls.is_empty()) {
            bail!(
                "member {own:x} has already been bootstrapped: this folder is new, and what the member promised is lost. \
                 Remove the member from the cluster, add it again, and use --initial-cluster-state=existing"
            );
        }
    }
    Ok((cluster_id, own, Beginning::New(members)))
}

async fn begin_joining(
    config: &Config,
    connector: &Connector,
    named: &[Named],
) -> Result<(u64, u64, Beginning)> {
    let remote = ask_patiently(config, connector, named)
        .await
        .context("cannot fetch cluster info from peer urls")?;
    if let Some(needed) = remote.version.filter(|v| *v > build::cluster_version()) {
        bail!(
            "incompatible with current running cluster: {}",
            apply::too_new(needed)
        );
    }
    if remote.members.len() != named.len() {
        bail!(
            "error validating peerURLs: member count is unequal: --initial-cluster has {}, the cluster has {}. \
             List every member of the cluster, this one included",
            named.len(),
            remote.members.len()
        );
    }
    let mut own = None;
    for member in named {
        let mut found = None;
        for known in &remote.members {
            let theirs: Vec<Url> = known
                .peer_urls
                .iter()
                .filter_map(|u| u.parse().ok())
                .collect();
            if same_urls(&member.urls, &theirs).await {
                found = Some(known);
                break;
            }
        }
        let Some(known) = found else {
            bail!(
                "error validating peerURLs: unmatched member while checking PeerURLs: {} at {} is not a member of \
                 cluster {:x}; add it first (kvctl member add)",
                member.name,
                list(&member.urls),
                remote.id
            );
        };
        if member.name == config.name {
            own = Some(known.clone());
        }
    }
    let own = own.context("the caller found the name")?;
    if !own.client_urls.is_empty() {
        bail!(
            "member {:x} runs already or has run with another data folder, and what it promised is lost: \
             remove the member from the cluster and add it again",
            own.id
        );
    }
    Ok((remote.id, own.id, Beginning::Join(remote.members)))
}

/// The members of `--initial-cluster`, in the order of their names.
fn named_members(config: &Config) -> Result<Vec<Named>> {
    let mut named: Vec<Named> = Vec::new();
    for (name, url) in &config.initial_cluster {
        match named.iter_mut().find(|member| member.name == *name) {
            Some(member) => member.urls.push(url.clone()),
            None => named.push(Named {
                name: name.clone(),
                urls: vec![url.clone()],
            }),
        }
    }
    for member in &mut named {
        member.urls.sort_by_cached_key(Url::to_string);
    }
    named.sort_by(|a, b| a.name.cmp(&b.name));
    let mut urls: Vec<&Url> = named.iter().flat_map(|member| &member.urls).collect();
    let count = urls.len();
    urls.sort();
    urls.dedup();
    if urls.len() != count {
        bail!(
            "initial cluster {} has duplicate url: each member needs peer URLs of its own",
            named
                .iter()
                .map(|member| format!("{}={}", member.name, list(&member.urls)))
                .collect::<Vec<_>>()
                .join(",")
        );
    }
    Ok(named)
}

/// Others would call this member where it does not say it is.
async fn check_advertised(own: &Named, advertised: &[Url]) -> Result<()> {
    if same_urls(&own.urls, advertised).await {
        return Ok(());
    }
    bail!(
        "--initial-cluster has {}={} but --initial-advertise-peer-urls has {}: make them the same",
        own.name,
        list(&own.urls),
        list(advertised)
    );
}

/// As [`ask_others`], again and again for [`JOIN_PATIENCE`]: busy members answer late.
async fn ask_patiently(
    config: &Config,
    connector: &Connector,
    named: &[Named],
) -> Result<RemoteCluster> {
    let begun = Instant::now();
    loop {
        match ask_others(config, connector, named).await {
            Err(_) if begun.elapsed() < JOIN_PATIENCE => tokio::time::sleep(JOIN_PAUSE).await,
            answered => return answered,
        }
    }
}

/// Asks every other member of `--initial-cluster` until one answers.
async fn ask_others(
    config: &Config,
    connector: &Connector,
    named: &[Named],
) -> Result<RemoteCluster> {
    let others = named.iter().filter(|member| member.name != config.name);
    let mut last = None;
    for url in others.flat_map(|member| &member.urls) {
        match fetch_cluster(connector, url).await {
            Ok(remote) => return Ok(remote),
            Err(error) => {
                tracing::info!(%url, error = format!("{error:#}"), "a member does not answer yet");
                last = Some(error.context(url.to_string()));
            }
        }
    }
    Err(last.unwrap_or_else(|| anyhow::anyhow!("--initial-cluster names no other member")))
}

/// Whether both name the same places: as texts, or once resolved.
async fn same_urls(a: &[Url], b: &[Url]) -> bool {
    let texts = |urls: &[Url]| {
        let mut texts: Vec<String> = urls.iter().map(Url::to_string).collect();
        texts.sort();
        texts
    };
    if texts(a) == texts(b) {
        return true;
    }
    match (resolved(a).await, resolved(b).await) {
        (Some(a), Some(b)) => a == b,
        _ => false,
    }
}

/// The URLs with addresses in place of names; `None` if a name has none.
async fn resolved(urls: &[Url]) -> Option<Vec<String>> {
    let mut out = Vec::new();
    for url in urls {
        let Some((host, port)) = url.host_port() else {
            out.push(url.to_string());
            continue;
        };
        let addresses = tokio::net::lookup_host((host, port)).await.ok()?;
        let mut addresses: Vec<_> = addresses.collect();
        addresses.sort();
        out.push(format!("{:?}://{}", url.scheme, addresses.first()?));
    }
    out.sort();
    Some(out)
}

fn list(urls: &[Url]) -> String {
    let urls: Vec<String> = urls.iter().map(Url::to_string).collect();
    urls.join(",")
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;

    fn config(initial_cluster: &[(&str, &str)]) -> Config {
        Config {
            name: "a".into(),
            initial_cluster: initial_cluster
                .iter()
                .map(|(name, url)| (name.to_string(), url.parse().unwrap()))
                .collect(),
            initial_advertise_peer_urls: vec!["http://127.0.0.1:1".parse().unwrap()],
            initial_cluster_token: "etcd-cluster".into(),
            ..Config::default()
        }
    }

    async fn refusal(config: &Config) -> String {
        let connector = Connector::new(None, Duration::from_secs(1));
        match begin(config, &connector).await {
            Ok(_) => panic!("must be refused"),
            Err(error) => format!("{error:#}"),
        }
    }

    #[tokio::test]
    async fn members_of_a_new_cluster_derive_the_same_ids() {
        // Nobody listens on these ports, which is what members that start together see of each other.
        let three = [
            ("a", "http://127.0.0.1:1"),
            ("b", "http://127.0.0.1:2"),
            ("c", "http://127.0.0.1:3"),
        ];
        let connector = Connector::new(None, Duration::from_secs(1));
        let (cluster, own, beginning) = begin(&config(&three), &connector).await.unwrap();
        let other = Config {
            name: "b".into(),
            initial_advertise_peer_urls: vec!["http://127.0.0.1:2".parse().unwrap()],
            ..config(&[three[2], three[1], three[0]])
        };
        let (same_cluster, other_own, same_beginning) = begin(&other, &connector).await.unwrap();
        assert_eq!(cluster, same_cluster);
        assert_ne!(own, other_own);
        let (Beginning::New(members), Beginning::New(same_members)) = (beginning, same_beginning)
        else {
            panic!("a new cluster begins")
        };
        assert_eq!(members, same_members);
        assert_eq!(members.len(), 3);
    }

    #[tokio::test]
    async fn flags_that_contradict_each_other_are_refused_with_their_names() {
        let foreign = refusal(&config(&[("b", "http://127.0.0.1:1")])).await;
        assert!(foreign.contains("--name"), "{foreign}");
        let elsewhere = refusal(&config(&[("a", "http://127.0.0.1:9")])).await;
        assert!(
            elsewhere.contains("--initial-advertise-peer-urls"),
            "{elsewhere}"
        );
        let twice = [("a", "http://127.0.0.1:1"), ("b", "http://127.0.0.1:1")];
        let twice = refusal(&config(&twice)).await;
        assert!(twice.contains("duplicate url"), "{twice}");
    }

    #[tokio::test]
    async fn joining_needs_a_member_that_answers() {
        let two = [("a", "http://127.0.0.1:1"), ("b", "http://127.0.0.1:2")];
        let joining = Config {
            initial_cluster_state: ClusterState::Existing,
            ..config(&two)
        };
        let text = refusal(&joining).await;
        assert!(text.contains("cannot fetch cluster info"), "{text}");
        assert!(text.contains("http://127.0.0.1:2"), "{text}");
    }
}
