//! Members of a cluster by DNS: SRV records of a domain.
//!
//! `_etcd-server-ssl._tcp.<domain>` and `_etcd-server._tcp.<domain>` name the peers, `etcd-client-ssl` and `etcd-client` the
//! client endpoints. Source: etcd 3.7, client/pkg/srv; RFC 2782.

use std::net::{IpAddr, SocketAddr};

use hickory_resolver::TokioResolver;
use hickory_resolver::config::{ConnectionConfig, NameServerConfig, ResolverConfig};
use hickory_resolver::net::runtime::TokioRuntimeProvider;
use hickory_resolver::proto::rr::RData;

use crate::error::{Error, Result};

/// Looks names up. Clones share a cache.
#[derive(Clone)]
pub struct Resolver(TokioResolver);

/// Where a service is.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Target {
    /// Lower comes first.
    pub priority: u16,
    /// Name of the host, without the dot at its end.
    pub host: String,
    /// Its port.
    pub port: u16,
}

impl Target {
    /// `host:port`.
    pub fn address(&self) -> String {
        format!("{}:{}", self.host, self.port)
    }
}

impl Resolver {
    /// A resolver that asks `server`, or those of `/etc/resolv.conf`. Errors: that file cannot be read.
    pub fn new(server: Option<SocketAddr>) -> Result<Resolver> {
        let built = match server {
            None => TokioResolver::builder_tokio().and_then(|builder| builder.build()),
            Some(server) => {
                let mut connections = [ConnectionConfig::udp(), ConnectionConfig::tcp()];
                for connection in &mut connections {
                    connection.port = server.port();
                }
                let mut name_server = NameServerConfig::udp_and_tcp(server.ip());
                name_server.connections = connections.into();
                let config = ResolverConfig::from_parts(None, Vec::new(), vec![name_server]);
                TokioResolver::builder_with_config(config, TokioRuntimeProvider::default()).build()
            }
        };
        built.map(Resolver).map_err(|error| Error::Dns {
            name: "the resolver's configuration".into(),
            reason: error.to_string(),
        })
    }

    /// Targets of a service over TCP, those of the lowest priority first. Errors: none are named, or nobody answers.
    pub async fn service(&self, service: &str, domain: &str) -> Result<Vec<Target>> {
        let domain = domain.trim_end_matches('.');
        let name = format!("_{service}._tcp.{domain}.");
        let failed = |reason: String| Error::Dns {
            name: name.clone(),
            reason,
        };
        let answer = self.0.srv_lookup(name.as_str()).await;
        let answer = answer.map_err(|error| failed(error.to_string()))?;
        let mut targets: Vec<Target> = answer
            .answers()
            .iter()
            .filter_map(|record| match &record.data {
                RData::SRV(srv) => Some(Target {
                    priority: srv.priority,
                    host: srv.target.to_utf8().trim_end_matches('.').to_owned(),
                    port: srv.port,
                }),
                _ => None,
            })
            .collect();
        if targets.is_empty() {
            return Err(failed("no such service".into()));
        }
        targets.sort();
        Ok(targets)
    }

    /// Addresses of a host, which may be one itself.
    pub async fn addresses(&self, host: &str) -> Result<Vec<IpAddr>> {
        if let Ok(address) = host.trim_matches(['[', ']']).parse() {
            return Ok(vec![address]);
        }
        let answer = self.0.lookup_ip(host).await.map_err(|error| Error::Dns {
            name: host.into(),
            reason: error.to_string(),
        })?;
        Ok(answer.iter().collect())
    }
}

/// Name of a service with the suffix that tells clusters of one domain apart.
pub fn service_name(service: &str, suffix: &str) -> String {
    if suffix.is_empty() {
        service.to_owned()
    } else {
        format!("{service}-{suffix}")
    }
}

/// Client endpoints that the SRV records of `domain` name, with their scheme: those with TLS, then, if `insecure` ones are
/// permitted, those without. Errors: there are none.
pub async fn client_endpoints(
    resolver: &Resolver,
    domain: &str,
    suffix: &str,
    insecure: bool,
) -> Result<Vec<String>> {
    let mut endpoints = Vec::new();
    let mut failure = None;
    for (scheme, service) in [("https", "etcd-client-ssl"), ("http", "etcd-client")] {
        match resolver
            .service(&service_name(service, suffix), domain)
            .await
        {
            Ok(targets) => {
                let named = targets
                    .iter()
                    .map(|target| format!("{scheme}://{}", target.address()));
                endpoints.extend(named);
            }
            Err(error) => failure = Some(error),
        }
    }
    if let Some(error) = failure
        && endpoints.is_empty()
    {
        return Err(error);
    }
    if !insecure {
        endpoints.retain(|endpoint| endpoint.starts_with("https://"));
    }
    if endpoints.is_empty() {
        return Err(Error::Dns {
            name: domain.to_owned(),
            reason: "its records name no endpoint with TLS; allow others with --insecure-discovery"
                .to_owned(),
        });
    }
    Ok(endpoints)
}
