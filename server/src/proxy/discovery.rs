//! Members that DNS names, for proxies.
//!
//! Only those are taken that have a certificate for their host or for the domain, since records by themselves prove
//! nothing; `--insecure-discovery` takes all. Source of the names: etcd v3.7, `gateway start` and `grpc-proxy start`.

use std::time::Duration;

use kv_client::srv::{Resolver, client_endpoints};
use kv_client::{Error, Result, Tls};

use super::options::Discovery;

/// A member that does not answer within this time is left out. Source: etcd v3.7.
const CHECK_MAX: Duration = Duration::from_secs(5);

/// The endpoints that `--discovery-srv` names; `None` without that flag. `ca_file` is the authority of their certificates,
/// empty for the system's. Errors: there are none, or none that can be trusted.
pub(super) async fn discovered(
    discovery: &Discovery,
    ca_file: &str,
) -> Result<Option<Vec<String>>> {
    let domain = &discovery.domain;
    if domain.is_empty() {
        return Ok(None);
    }
    let resolver = Resolver::new(discovery.dns_server)?;
    let found = client_endpoints(&resolver, domain, &discovery.suffix, discovery.insecure).await?;
    tracing::info!(domain, endpoints = ?found, "got the members from DNS");
    if discovery.insecure {
        return Ok(Some(found));
    }
    let tls = Tls {
        ca_file: (!ca_file.is_empty()).then(|| ca_file.into()),
        ..Tls::default()
    };
    let mut trusted = Vec::new();
    let mut refused = None;
    for endpoint in found {
        match tls.check_server(&endpoint, domain, CHECK_MAX).await {
            Ok(()) => trusted.push(endpoint),
            Err(error @ Error::Unreachable { .. }) => {
                tracing::warn!(endpoint, %error, "left out a member that DNS names");
                refused = Some(error);
            }
            Err(error) => return Err(error),
        }
    }
    match refused {
        Some(error) if trusted.is_empty() => Err(error),
        _ => Ok(Some(trusted)),
    }
}
