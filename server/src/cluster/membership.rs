//! The member table and the cluster version: replicated state, applied by the apply loop.
//!
//! Stored as in etcd's buckets: members under their id in lower-case hex as JSON, the version under
//! `clusterVersion` as text.

use std::collections::{BTreeMap, BTreeSet};

use bytes::Bytes;
use kv_mvcc::backend::{Keyspace, Op};
use kv_proto::etcdserverpb;
use parking_lot::RwLock;
use serde::{Deserialize, Serialize};

use super::version::Version;

/// Keys of the cluster keyspace.
const CLUSTER_VERSION: &[u8] = b"clusterVersion";
const DOWNGRADE: &[u8] = b"downgrade";

/// One member as stored. Field names are those of etcd's bucket.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Member {
    pub(crate) id: u64,
    #[serde(rename = "peerURLs")]
    pub(crate) peer_urls: Vec<String>,
    #[serde(
        rename = "isLearner",
        default,
        skip_serializing_if = "std::ops::Not::not"
    )]
    pub(crate) is_learner: bool,
    #[serde(default, skip_serializing_if = "String::is_empty")]
    pub(crate) name: String,
    #[serde(rename = "clientURLs", default, skip_serializing_if = "Vec::is_empty")]
    pub(crate) client_urls: Vec<String>,
    /// Which data folder of the member counts; 0 until the member has published itself. Not a field of etcd's.
    #[serde(rename = "kvdIncarnation", default, skip_serializing_if = "is_zero")]
    pub(crate) incarnation: u64,
}

#[allow(
    clippy::trivially_copy_pass_by_ref,
    reason = "serde passes a reference"
)]
fn is_zero(n: &u64) -> bool {
    *n == 0
}

/// The members and versions of this cluster, as this member has applied them.
pub(crate) struct Cluster {
    /// The cluster's id, fixed at bootstrap.
    pub(crate) id: u64,
    state: RwLock<State>,
}

#[derive(Default)]
struct State {
    members: BTreeMap<u64, Member>,
    /// Ids that may never come back.
    removed: BTreeSet<u64>,
    /// What is known of members that this member has not applied yet; never part of the replicated state.
    expected: BTreeMap<u64, Member>,
    /// `None` until the leader proposed it.
    version: Option<Version>,
    /// Where a downgrade that is under way leads to.
    downgrade: Option<Version>,
}

/// A downgrade as stored. Field names are those of etcd's bucket.
#[derive(Serialize, Deserialize)]
struct Downgrade {
    #[serde(rename = "target-version")]
    target_version: String,
    enabled: bool,
}

/// What the member and cluster keyspaces hold.
#[derive(Default)]
pub(crate) struct Stored {
    pub(crate) members: Vec<Bytes>,
    pub(crate) removed: Vec<u64>,
    pub(crate) version: Option<Bytes>,
    pub(crate) downgrade: Option<Bytes>,
}

impl Member {
    /// Whether it has told its name, which it does when it first serves. Source: etcd's IsStarted.
    pub(crate) fn is_started(&self) -> bool {
        !self.name.is_empty()
    }

    /// The value of etcd's bucket: without what is ours alone.
    pub(crate) fn into_etcds_json(self) -> Bytes {
        Member {
            incarnation: 0,
            ..self
        }
        .to_json()
    }

    /// The stored value.
    pub(crate) fn to_json(&self) -> Bytes {
        let json = serde_json::to_vec(self).expect("a member has only strings and numbers");
        json.into()
    }
}

impl Cluster {
    /// A cluster without members.
    pub(crate) fn new(id: u64) -> Cluster {
        Cluster {
            id,
            state: RwLock::default(),
        }
    }

    /// Takes over what the member and cluster keyspaces hold, and nothing else.
    pub(crate) fn restore(&self, stored: Stored) -> anyhow::Result<()> {
        let members = stored
            .members
            .into_iter()
            .map(|json| serde_json::from_slice(&json).map(|member: Member| (member.id, member)))
            .collect::<Result<_, _>>()?;
        let version = match stored.version {
            Some(text) => Some(std::str::from_utf8(&text)?.parse()?),
            None => None,
        };
        let downgrade = match stored.downgrade {
            Some(json) => {
                let stored: Downgrade = serde_json::from_slice(&json)?;
                stored
                    .enabled
                    .then(|| stored.target_version.parse())
                    .transpose()?
            }
            None => None,
        };
        let mut state = self.state.write();
        state.members = members;
        state.removed = stored.removed.into_iter().collect();
        state.version = version;
        state.downgrade = downgrade;
        Ok(())
    }

    /// Key of the cluster version in the cluster keyspace.
    pub(crate) fn version_key() -> &'static [u8] {
        CLUSTER_VERSION
    }

    /// Key of the downgrade in the cluster keyspace.
    pub(crate) fn downgrade_key() -> &'static [u8] {
        DOWNGRADE
    }

    /// Adds or replaces a member; returns what to store.
    pub(crate) fn put(&self, member: Member) -> Op {
        let json = member.to_json();
        let key = Bytes::from(format!("{:x}", member.id));
        self.state.write().members.insert(member.id, member);
        Op::Put(Keyspace::Members, key, json)
    }

    /// Sets the cluster version; returns what to store.
    pub(crate) fn set_version(&self, version: Version) -> Op {
        self.state.write().version = Some(version);
        Op::Put(
            Keyspace::Cluster,
            Bytes::from_static(CLUSTER_VERSION),
            version.to_string().into(),
        )
    }

    /// The cluster version, once decided.
    pub(crate) fn version(&self) -> Option<Version> {
        self.state.read().version
    }

    /// The newest command version that every member applies.
    pub(crate) fn commands(&self) -> u16 {
        self.version().unwrap_or(Version::UNKNOWN).commands()
    }

    /// Begins a downgrade to `target`, or ends the one under way; returns what to store.
    pub(crate) fn set_downgrade(&self, target: Option<Version>) -> Op {
        self.state.write().downgrade = target;
        let stored = Downgrade {
            target_version: target.map(|target| target.to_string()).unwrap_or_default(),
            enabled: target.is_some(),
        };
        let json = serde_json::to_vec(&stored).expect("a downgrade has only a string and a flag");
        Op::Put(
            Keyspace::Cluster,
            Bytes::from_static(DOWNGRADE),
            json.into(),
        )
    }

    /// Where a downgrade that is under way leads to.
    pub(crate) fn downgrade(&self) -> Option<Version> {
        self.state.read().downgrade
    }

    /// The member `id`.
    pub(crate) fn member(&self, id: u64) -> Option<Member> {
        self.state.read().members.get(&id).cloned()
    }

    /// Whether the member is in the cluster without a vote. One that shall vote and is still catching up is none.
    pub(crate) fn is_learner(&self, id: u64) -> bool {
        let state = self.state.read();
        state
            .members
            .get(&id)
            .is_some_and(|member| member.is_learner)
    }

    /// Takes a member out and remembers its id for ever; returns what to store.
    pub(crate) fn remove(&self, id: u64) -> [Op; 2] {
        let key = Bytes::from(format!("{id:x}"));
        let mut state = self.state.write();
        state.members.remove(&id);
        state.removed.insert(id);
        [
            Op::Delete(Keyspace::Members, key.clone()),
            Op::Put(
                Keyspace::MembersRemoved,
                key,
                Bytes::from_static(b"removed"),
            ),
        ]
    }

    /// Whether the member was once part of the cluster and never will be again.
    pub(crate) fn is_removed(&self, id: u64) -> bool {
        self.state.read().removed.contains(&id)
    }

    /// Tells where a member can be reached before this member has applied the entry that says so.
    pub(crate) fn expect(&self, member: Member) {
        self.state.write().expected.insert(member.id, member);
    }

    /// Takes back [`Cluster::expect`]: the member does not come.
    pub(crate) fn expect_no_more(&self, id: u64) {
        self.state.write().expected.remove(&id);
    }

    /// Whether `id` is a member, or expected to become one.
    pub(crate) fn knows(&self, id: u64) -> bool {
        let state = self.state.read();
        state.members.contains_key(&id) || state.expected.contains_key(&id)
    }

    /// Where the member `id` can be reached: as applied, else as expected.
    pub(crate) fn peer_urls(&self, id: u64) -> Vec<String> {
        let state = self.state.read();
        let member = state.members.get(&id).or_else(|| state.expected.get(&id));
        member.map(|m| m.peer_urls.clone()).unwrap_or_default()
    }

    /// The only data folder the member `id` may have; `None` until it has published itself.
    pub(crate) fn incarnation(&self, id: u64) -> Option<u64> {
        let state = self.state.read();
        let incarnation = state.members.get(&id)?.incarnation;
        (incarnation != 0).then_some(incarnation)
    }

    /// All members by id, as stored. Before this member has applied any: those it expects.
    pub(crate) fn members(&self) -> Vec<Member> {
        let state = self.state.read();
        let known = if state.members.is_empty() {
            &state.expected
        } else {
            &state.members
        };
        known.values().cloned().collect()
    }

    /// All members by id, as the API shows them.
    pub(crate) fn list(&self) -> Vec<etcdserverpb::Member> {
        let members = self.members();
        let shown = members.into_iter().map(|m| etcdserverpb::Member {
            id: m.id,
            name: m.name,
            peer_ur_ls: m.peer_urls,
            client_ur_ls: m.client_urls,
            is_learner: m.is_learner,
        });
        shown.collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_stored_member_has_etcds_form_and_is_restored() {
        let cluster = Cluster::new(1);
        let member = Member {
            id: 0x26,
            peer_urls: vec!["http://a:2380".into()],
            name: "n".into(),
            ..Default::default()
        };
        let Op::Put(Keyspace::Members, key, json) = cluster.put(member.clone()) else {
            panic!("not a put")
        };
        assert_eq!(&key[..], b"26");
        assert_eq!(
            &json[..],
            br#"{"id":38,"peerURLs":["http://a:2380"],"name":"n"}"#
        );
        let other = Cluster::new(1);
        let Op::Put(Keyspace::Cluster, key, downgrade) =
            cluster.set_downgrade(Some(Version::new(3, 6)))
        else {
            panic!("not a put")
        };
        assert_eq!(&key[..], b"downgrade");
        assert_eq!(
            &downgrade[..],
            br#"{"target-version":"3.6.0","enabled":true}"#
        );
        let stored = Stored {
            members: vec![json],
            removed: vec![0x27],
            version: Some("3.7.0".into()),
            downgrade: Some(downgrade),
        };
        other.restore(stored).unwrap();
        assert_eq!(other.member(0x26), Some(member));
        assert!(other.is_removed(0x27));
        assert_eq!(other.version(), Some(Version::new(3, 7)));
        assert_eq!(other.downgrade(), Some(Version::new(3, 6)));
    }
}
