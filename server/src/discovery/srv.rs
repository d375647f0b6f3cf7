//! Members by DNS: the SRV records of `--discovery-srv`.
//!
//! The member itself is the one at an address that it advertises; the others get numbers for names, since records have none
//! and names do not matter to ids. Source: etcd v3.7, client/pkg/srv and embed/config.go.

use std::collections::BTreeSet;
use std::net::SocketAddr;

use anyhow::{Context, Result, bail};
use kv_client::srv::{Resolver, Target, service_name};

use crate::config::{Config, Url};

/// Services of peers, by the scheme of their URLs.
const SERVICES: [(&str, &str); 2] = [("https", "etcd-server-ssl"), ("http", "etcd-server")];

/// Name and URL of each member.
pub(super) async fn members(config: &Config) -> Result<Vec<(String, Url)>> {
    let resolver = Resolver::new(config.dns_server)?;
    let mut own = Vec::new();
    for url in &config.initial_advertise_peer_urls {
        own.extend(addresses_of_url(&resolver, url).await);
    }
    let domain = &config.discovery_srv;
    let mut members = Vec::new();
    let mut failures = Vec::new();
    for (scheme, service) in SERVICES {
        let service = service_name(service, &config.discovery_srv_name);
        match resolver.service(&service, domain).await {
            Ok(targets) => {
                for target in targets {
                    let number = members.len();
                    let (name, url) =
                        member(config, &resolver, &own, scheme, &target, number).await?;
                    members.push((name, url));
                }
            }
            Err(error) => failures.push(error.to_string()),
        }
    }
    if members.is_empty() {
        bail!(
            "error setting up initial cluster: no SRV records of {domain} name a member: {}",
            failures.join("; ")
        );
    }
    let shown: Vec<String> = members
        .iter()
        .map(|(name, url)| format!("{name}={url}"))
        .collect();
    tracing::info!(
        domain,
        members = shown.join(","),
        "got the members from DNS"
    );
    if !members.iter().any(|(name, _)| *name == config.name) {
        bail!(
            "cannot find local etcd member {:?} in SRV records of {domain}: one of them must name a host and port of \
             --initial-advertise-peer-urls; they name {}",
            config.name,
            shown.join(",")
        );
    }
    Ok(members)
}

/// The member that a record names.
async fn member(
    config: &Config,
    resolver: &Resolver,
    own: &[(SocketAddr, Url)],
    scheme: &str,
    target: &Target,
    number: usize,
) -> Result<(String, Url)> {
    let text = format!("{scheme}://{}", target.address());
    let url: Url = text
        .parse()
        .map_err(|why| anyhow::anyhow!("SRV record of {}: {why}", target.address()))?;
    let found = resolver.addresses(&target.host).await;
    let found = found.with_context(|| format!("the host of a member, {}", target.host))?;
    let found: BTreeSet<SocketAddr> = found
        .into_iter()
        .map(|address| SocketAddr::new(address, target.port))
        .collect();
    let Some((_, advertised)) = own.iter().find(|(address, _)| found.contains(address)) else {
        return Ok((number.to_string(), url));
    };
    if advertised.scheme != url.scheme {
        bail!(
            "bootstrap at {url} from DNS has scheme mismatch with expected peer {advertised}: advertise the scheme that the \
             records say"
        );
    }
    Ok((config.name.clone(), url))
}

/// Where an advertised URL leads; nowhere if its host is not known.
async fn addresses_of_url(resolver: &Resolver, url: &Url) -> Vec<(SocketAddr, Url)> {
    let Some((host, port)) = url.host_port() else {
        return Vec::new();
    };
    let found = resolver.addresses(host).await.unwrap_or_default();
    let pairs = found
        .into_iter()
        .map(|address| (SocketAddr::new(address, port), url.clone()));
    pairs.collect()
}
