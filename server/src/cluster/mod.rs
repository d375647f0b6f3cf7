//! Who the members are, and what the cluster as a whole agreed on.

mod id;
mod membership;
mod version;

pub(crate) use id::{cluster_id, member_id};
pub(crate) use membership::{Cluster, Member, Stored};
pub(crate) use version::{Version, View as VersionView};
