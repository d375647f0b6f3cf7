//! What this build is: the API level it reports, the newest cluster version it serves.
//!
//! A process that pretends to be the next release, which only a program of the tests does, is one minor version ahead of
//! what the source says.

use crate::cluster::Version;
use crate::config::ETCD_VERSION;

/// The newest cluster version this build serves; with it come the command versions it may be asked to apply.
pub(crate) fn cluster_version() -> Version {
    if kv_proto::command::later::is_pretended() {
        return Version::new(3, 8);
    }
    Version::new(3, 7)
}

/// The API level that is reported everywhere: that of an etcd release.
pub(crate) fn api_version() -> &'static str {
    if kv_proto::command::later::is_pretended() {
        return "3.8.0";
    }
    ETCD_VERSION
}
