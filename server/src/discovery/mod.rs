//! Who the first members are: as `--initial-cluster` says, as SRV records say, or as members tell each other.
//!
//! Asked once, by a member without a log.

mod registry;
mod srv;

use std::borrow::Cow;

use anyhow::Result;

use crate::config::Config;

/// `config` with the members that were found in `initial_cluster`.
pub(crate) async fn resolved(config: &Config) -> Result<Cow<'_, Config>> {
    if !config.discovery_srv.is_empty() {
        let initial_cluster = srv::members(config).await?;
        return Ok(Cow::Owned(Config {
            initial_cluster,
            ..config.clone()
        }));
    }
    if !config.discovery.endpoints.is_empty() {
        let initial_cluster = registry::join(config).await?;
        return Ok(Cow::Owned(Config {
            initial_cluster,
            initial_cluster_token: config.discovery.token.clone(),
            ..config.clone()
        }));
    }
    Ok(Cow::Borrowed(config))
}
