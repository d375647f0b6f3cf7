//! `/version`: what runs, and what the cluster agreed on.

use super::{Answer, HealthSource, Pages, typed};
use crate::build;

impl<S: HealthSource> Pages<S> {
    /// The page of every port that has one.
    pub(crate) async fn version_page(&self) -> Answer {
        let versions = self.source.versions();
        let cluster = versions.cluster.as_deref().unwrap_or("not_decided");
        let storage = versions.storage.as_deref().unwrap_or("unknown");
        let server = build::api_version();
        let body = format!(
            "{{\"etcdserver\":\"{server}\",\"etcdcluster\":\"{cluster}\",\"storage\":\"{storage}\"}}"
        );
        typed("application/json", body)
    }
}
