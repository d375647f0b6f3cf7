//! Ids of members and clusters, derived as etcd derives them.
//!
//! Source: etcd v3.7, api/membership: the first 8 bytes, big endian, of a SHA-1.

use sha1::{Digest, Sha1};

/// Id of a member that is part of the initial cluster: its sorted peer URLs and the cluster token.
pub(crate) fn member_id(peer_urls: &[String], token: &str) -> u64 {
    let mut urls = peer_urls.to_vec();
    urls.sort();
    first_8(&[urls.concat().as_bytes(), token.as_bytes()].concat())
}

/// Id of a cluster that starts with the members `ids`.
pub(crate) fn cluster_id(ids: &[u64]) -> u64 {
    let mut ids = ids.to_vec();
    ids.sort_unstable();
    let bytes: Vec<u8> = ids.iter().flat_map(|id| id.to_be_bytes()).collect();
    first_8(&bytes)
}

fn first_8(bytes: &[u8]) -> u64 {
    let digest = Sha1::digest(bytes);
    u64::from_be_bytes(digest[..8].try_into().expect("a SHA-1 has 20 bytes"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ids_equal_those_of_an_etcd_started_with_defaults() {
        // `etcd` without flags: http://localhost:2380, token "etcd-cluster".
        let member = member_id(&["http://localhost:2380".into()], "etcd-cluster");
        assert_eq!(format!("{member:x}"), "8e9e05c52164694d");
        assert_eq!(format!("{:x}", cluster_id(&[member])), "cdf818194e3a8c32");
    }
}
