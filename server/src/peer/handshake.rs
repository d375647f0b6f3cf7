//! Who speaks to whom: metadata of every call between members and of every answer.
//!
//! ```text
//! kvd-cluster       cluster id, hex
//! kvd-from          member id of the sender, hex
//! kvd-to            member id it is meant for, hex
//! kvd-incarnation   the sender's incarnation, hex: another one means another data folder under the same id
//! kvd-commands      lowest and highest command version the sender applies, "1-1"
//! kvd-version       the newest cluster version the sender's build serves, "3.7.0"
//! kvd-refusal       in a refusal: why, as one word
//! ```
//!
//! Rules: another cluster, another addressee, no common command version, a build too old for the cluster's version:
//! refused. A removed member is told so. The
//! first incarnation seen of a member, or the one in the member table, is the only one it may have: a member that lost
//! its disk has forgotten what it voted and acknowledged, and must be replaced under a new id.

use std::collections::HashMap;
use std::sync::Arc;

use kv_proto::command::{VERSION_MIN, version_max};
use kv_wal::Identity;
use parking_lot::Mutex;
use tonic::Status;
use tonic::metadata::{MetadataMap, MetadataValue};

use crate::build;
use crate::cluster::{Cluster, Version};

const CLUSTER: &str = "kvd-cluster";
const FROM: &str = "kvd-from";
const TO: &str = "kvd-to";
const INCARNATION: &str = "kvd-incarnation";
const COMMANDS: &str = "kvd-commands";
const VERSION: &str = "kvd-version";
const REFUSAL: &str = "kvd-refusal";
/// The refusal that ends a process.
const REMOVED: &str = "removed";

/// Members that are known by the folder they first came with. The table has the folders of those who have published one.
const SEEN_MAX: usize = 1024;

/// This member's side of all handshakes.
pub(crate) struct Handshake {
    identity: Identity,
    cluster: Arc<Cluster>,
    /// Incarnation and version of each member heard of.
    seen: Mutex<HashMap<u64, Seen>>,
    on_removed: Box<dyn Fn() + Send + Sync>,
}

struct Seen {
    incarnation: u64,
    /// Of its build.
    version: Option<Version>,
    /// The other incarnation that was last reported, so that each is reported once.
    reported: Option<u64>,
}

/// Why the other side is not spoken to.
#[derive(Debug, PartialEq, Eq, thiserror::Error)]
pub(crate) enum Refusal {
    /// It is not a member of any cluster, or speaks another protocol.
    #[error("the handshake lacks {0}")]
    Missing(&'static str),
    /// It belongs elsewhere.
    #[error("cluster ID mismatch: {theirs:x} is not {ours:x}")]
    Cluster { ours: u64, theirs: u64 },
    /// The address belongs to somebody else.
    #[error("this is member {ours:x}, not {meant:x}")]
    Addressee { ours: u64, meant: u64 },
    /// It may never come back.
    #[error("the member has been permanently removed from the cluster")]
    Removed,
    /// It lost its disk.
    #[error(
        "member {member:x} came back with another data folder and has forgotten what it promised: \
         remove the member and add it again"
    )]
    Incarnation { member: u64 },
    /// Too far apart in age.
    #[error(
        "no common command version: {theirs} there, {VERSION_MIN}-{} here",
        version_max()
    )]
    Commands { theirs: String },
    /// Its build was left behind.
    #[error(
        "the cluster is at version {needed}, and the build of member {member:x} serves clusters up to {theirs}: \
         start it with a build that supports {needed}"
    )]
    TooOld {
        member: u64,
        theirs: Version,
        needed: Version,
    },
}

impl Handshake {
    /// `on_removed` is called when a member of this cluster says that this one is removed.
    pub(crate) fn new(
        identity: Identity,
        cluster: Arc<Cluster>,
        on_removed: impl Fn() + Send + Sync + 'static,
    ) -> Handshake {
        Handshake {
            identity,
            cluster,
            seen: Mutex::default(),
            on_removed: Box::new(on_removed),
        }
    }

    /// Adds this side of a call to member `to`.
    pub(crate) fn introduce(&self, to: u64, headers: &mut MetadataMap) {
        self.sign(headers);
        headers.insert(TO, hex(to));
    }

    /// Adds this side of an answer.
    pub(crate) fn sign(&self, headers: &mut MetadataMap) {
        headers.insert(CLUSTER, hex(self.identity.cluster_id));
        headers.insert(FROM, hex(self.identity.member_id));
        headers.insert(INCARNATION, hex(self.identity.incarnation));
        let versions = format!("{VERSION_MIN}-{}", version_max());
        headers.insert(COMMANDS, ascii(versions));
        headers.insert(VERSION, ascii(build::cluster_version().to_string()));
    }

    /// Checks a call and returns who sent it. A refusal is a complete answer.
    pub(crate) fn admit(&self, headers: &MetadataMap) -> Result<u64, Box<Status>> {
        let admitted = self.check_call(headers);
        admitted.map_err(|refusal| {
            let mut status = Status::failed_precondition(refusal.to_string());
            self.sign(status.metadata_mut());
            if refusal == Refusal::Removed {
                let word = MetadataValue::from_static(REMOVED);
                status.metadata_mut().insert(REFUSAL, word);
            }
            Box::new(status)
        })
    }

    /// Checks an answer, or a refusal, of member `peer`.
    pub(crate) fn check_answer(&self, peer: u64, headers: &MetadataMap) -> Result<(), Refusal> {
        self.check_cluster(headers)?;
        let from = id(headers, FROM)?;
        if from != peer {
            return Err(Refusal::Addressee {
                ours: from,
                meant: peer,
            });
        }
        if headers.get(REFUSAL).is_some_and(|word| word == REMOVED) {
            (self.on_removed)();
            return Err(Refusal::Removed);
        }
        self.check_incarnation(peer, headers)?;
        check_commands(headers)?;
        self.check_version(peer, headers)
    }

    /// Whether `member` is one of this cluster, or expected to be.
    pub(crate) fn knows(&self, member: u64) -> bool {
        self.cluster.knows(member)
    }

    /// What the build of a member serves, as it last told.
    pub(crate) fn version_of(&self, member: u64) -> Option<Version> {
        self.seen.lock().get(&member)?.version
    }

    fn check_call(&self, headers: &MetadataMap) -> Result<u64, Refusal> {
        self.check_cluster(headers)?;
        let (from, to) = (id(headers, FROM)?, id(headers, TO)?);
        if to != self.identity.member_id {
            return Err(Refusal::Addressee {
                ours: self.identity.member_id,
                meant: to,
            });
        }
        if self.cluster.is_removed(from) {
            return Err(Refusal::Removed);
        }
        self.check_incarnation(from, headers)?;
        check_commands(headers)?;
        self.check_version(from, headers)?;
        Ok(from)
    }

    fn check_cluster(&self, headers: &MetadataMap) -> Result<(), Refusal> {
        let (ours, theirs) = (self.identity.cluster_id, id(headers, CLUSTER)?);
        if ours == theirs {
            Ok(())
        } else {
            Err(Refusal::Cluster { ours, theirs })
        }
    }

    /// Notes what the build of `member` serves, and refuses one that this cluster has left behind.
    fn check_version(&self, member: u64, headers: &MetadataMap) -> Result<(), Refusal> {
        let theirs: Version = headers
            .get(VERSION)
            .and_then(|value| value.to_str().ok()?.parse().ok())
            .ok_or(Refusal::Missing(VERSION))?;
        if let Some(seen) = self.seen.lock().get_mut(&member) {
            seen.version = Some(theirs);
        }
        match self.cluster.version() {
            Some(needed) if theirs < needed => Err(Refusal::TooOld {
                member,
                theirs,
                needed,
            }),
            _ => Ok(()),
        }
    }

    fn check_incarnation(&self, member: u64, headers: &MetadataMap) -> Result<(), Refusal> {
        let incarnation = id(headers, INCARNATION)?;
        let recorded = self.cluster.incarnation(member);
        let mut seen = self.seen.lock();
        if recorded.is_none() && !seen.contains_key(&member) && seen.len() >= SEEN_MAX {
            // More than a cluster ever had: these are no members, and need not be known again.
            return Ok(());
        }
        let seen = seen.entry(member).or_insert(Seen {
            incarnation: recorded.unwrap_or(incarnation),
            version: None,
            reported: None,
        });
        if let Some(recorded) = recorded {
            seen.incarnation = recorded;
        }
        if seen.incarnation == incarnation {
            return Ok(());
        }
        if seen.reported.replace(incarnation) != Some(incarnation) {
            tracing::error!(
                peer = format!("{member:x}"),
                "refused a member that came back with another data folder: \
                 remove it from the cluster and add it again"
            );
        }
        Err(Refusal::Incarnation { member })
    }
}

fn check_commands(headers: &MetadataMap) -> Result<(), Refusal> {
    let text = headers
        .get(COMMANDS)
        .and_then(|value| value.to_str().ok())
        .ok_or(Refusal::Missing(COMMANDS))?;
    let range = text
        .split_once('-')
        .and_then(|(min, max)| Some((min.parse::<u16>().ok()?, max.parse::<u16>().ok()?)));
    match range {
        Some((min, max)) if min <= version_max() && VERSION_MIN <= max => Ok(()),
        _ => Err(Refusal::Commands {
            theirs: text.to_owned(),
        }),
    }
}

fn id(headers: &MetadataMap, name: &'static str) -> Result<u64, Refusal> {
    let value = headers.get(name).and_then(|value| value.to_str().ok());
    value
        .and_then(|text| u64::from_str_radix(text, 16).ok())
        .ok_or(Refusal::Missing(name))
}

fn hex(id: u64) -> MetadataValue<tonic::metadata::Ascii> {
    ascii(format!("{id:x}"))
}

fn ascii(text: String) -> MetadataValue<tonic::metadata::Ascii> {
    text.try_into().expect("digits and dashes are ASCII")
}

#[cfg(test)]
mod tests {
    use std::sync::atomic::{AtomicBool, Ordering};

    use super::*;
    use crate::cluster::Member;

    const ALICE: Identity = Identity {
        cluster_id: 1,
        member_id: 0xa,
        incarnation: 100,
    };
    const BOB: Identity = Identity {
        cluster_id: 1,
        member_id: 0xb,
        incarnation: 200,
    };

    fn handshake(identity: Identity) -> Handshake {
        let cluster = Arc::new(Cluster::new(identity.cluster_id));
        Handshake::new(identity, cluster, || {})
    }

    fn call(from: Identity, to: u64) -> MetadataMap {
        let mut headers = MetadataMap::new();
        handshake(from).introduce(to, &mut headers);
        headers
    }

    fn refusal(of: &Handshake, headers: &MetadataMap) -> String {
        of.admit(headers)
            .expect_err("must be refused")
            .message()
            .to_owned()
    }

    #[test]
    fn members_of_one_cluster_speak() {
        let bob = handshake(BOB);
        assert_eq!(bob.admit(&call(ALICE, 0xb)).unwrap(), 0xa);
        let mut answer = MetadataMap::new();
        bob.sign(&mut answer);
        assert_eq!(handshake(ALICE).check_answer(0xb, &answer), Ok(()));
    }

    #[test]
    fn strangers_are_refused_with_the_reason() {
        let bob = handshake(BOB);
        let foreign = Identity {
            cluster_id: 2,
            ..ALICE
        };
        assert!(refusal(&bob, &call(foreign, 0xb)).contains("cluster ID mismatch"));
        assert!(refusal(&bob, &call(ALICE, 0xc)).contains("this is member b, not c"));
        assert!(refusal(&bob, &MetadataMap::new()).contains("kvd-cluster"));
        let mut newer = call(ALICE, 0xb);
        newer.insert(COMMANDS, MetadataValue::from_static("900-901"));
        assert!(refusal(&bob, &newer).contains("no common command version"));
    }

    #[test]
    fn member_whose_build_the_cluster_has_left_behind_is_refused() {
        let bob = handshake(BOB);
        bob.admit(&call(ALICE, 0xb)).unwrap();
        let version = build::cluster_version();
        assert_eq!(bob.version_of(0xa), Some(version));
        assert_eq!(bob.version_of(0xc), None);
        bob.cluster.set_version(version);
        bob.admit(&call(ALICE, 0xb)).expect("as new as the cluster");
        let mut old = call(ALICE, 0xb);
        old.insert(VERSION, ascii(version.before().unwrap().to_string()));
        let text = refusal(&bob, &old);
        assert!(
            text.contains(&format!("start it with a build that supports {version}")),
            "{text}"
        );
        // It counts as what it is, not as what it was.
        assert_eq!(bob.version_of(0xa), version.before());
    }

    #[test]
    fn answer_of_another_member_than_called_is_refused() {
        let mut answer = MetadataMap::new();
        handshake(BOB).sign(&mut answer);
        let checked = handshake(ALICE).check_answer(0xc, &answer);
        assert_eq!(
            checked,
            Err(Refusal::Addressee {
                ours: 0xb,
                meant: 0xc
            })
        );
    }

    #[test]
    fn member_with_another_folder_is_refused_for_good() {
        let bob = handshake(BOB);
        bob.admit(&call(ALICE, 0xb)).unwrap();
        let wiped = Identity {
            incarnation: 101,
            ..ALICE
        };
        assert!(refusal(&bob, &call(wiped, 0xb)).contains("another data folder"));
        bob.admit(&call(ALICE, 0xb))
            .expect("the first folder stays welcome");
    }

    #[test]
    fn incarnation_in_the_member_table_counts_before_any_call() {
        let bob = handshake(BOB);
        bob.cluster.put(Member {
            id: 0xa,
            incarnation: 99,
            ..Default::default()
        });
        assert!(refusal(&bob, &call(ALICE, 0xb)).contains("another data folder"));
    }

    #[test]
    fn removed_member_is_told_so() {
        let told = Arc::new(AtomicBool::new(false));
        let alice = Handshake::new(ALICE, Arc::new(Cluster::new(1)), {
            let told = told.clone();
            move || told.store(true, Ordering::Relaxed)
        });
        let bob = handshake(BOB);
        bob.cluster.remove(0xa);
        let status = bob.admit(&call(ALICE, 0xb)).unwrap_err();
        let checked = alice.check_answer(0xb, status.metadata());
        assert_eq!(checked, Err(Refusal::Removed));
        assert!(told.load(Ordering::Relaxed));
    }
}
