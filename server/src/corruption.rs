//! Whether the members still hold the same: comparisons of HashKV between them.
//!
//! - At the start, before this member takes part (`InitialCorruptCheck`): one whose keys differ does not start.
//! - While it leads: the hash that each compaction takes of what it is about to remove, which costs nothing more
//!   (`CompactHashCheck`, every `--compact-hash-check-time`), and the hash of everything (`--corrupt-check-time`).
//!
//! The majority is right: who differs from it is named in the log and by a CORRUPT alarm, which stops writes. Without a
//! majority the alarm names member 0. A hash that a member cannot give for the same revisions is no difference.
//! Source: etcd v3.7, etcdserver/corrupt.go.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use anyhow::{Result, bail};
use kv_mvcc::{HashKv, Store};
use kv_proto::etcdserverpb::AlarmType;
use tokio::time::{MissedTickBehavior, interval};

use crate::cluster::{Cluster, Member as Row};
use crate::config::{Gate, Url};
use crate::member::Member;
use crate::peer::{Connector, fetch_hash_kv};
use crate::reconfigure::quorum;

/// What another member answered; none if it did not, or not for that revision.
struct PeerHash {
    id: u64,
    hash: Option<HashKv>,
}

/// Compares this member's keys with those of the others. An error names who differs.
pub(crate) async fn check_at_start(
    member_id: u64,
    store: &Arc<Store>,
    cluster: &Cluster,
    connector: &Connector,
) -> Result<()> {
    let own = hash_kv(store, 0).await?;
    let peers = ask_all(connector, cluster, member_id, own.hash_revision).await;
    let differing: Vec<String> = peers
        .iter()
        .filter(|peer| peer.hash.is_some_and(|hash| differs(&own, &hash)))
        .map(|peer| format!("{:x}", peer.id))
        .collect();
    if !differing.is_empty() {
        bail!(
            "member {member_id:x} found data inconsistency with peers: at revision {} its keys hash to {:08x}, and those of \
             {} to something else. Should this be the member that is wrong, remove it from the cluster and add it again with an \
             empty folder",
            own.hash_revision,
            own.hash,
            differing.join(", ")
        );
    }
    let compared = peers
        .iter()
        .filter(|peer| peer.hash.is_some_and(|hash| is_comparable(&own, &hash)))
        .count();
    tracing::info!(
        revision = own.hash_revision,
        compared,
        others = peers.len(),
        "the keys were compared with those of other members"
    );
    Ok(())
}

/// While this member leads: compares what compactions hashed. Runs until the member stops.
pub(crate) async fn compare_compactions(member: Arc<Member>) {
    if !member.config.feature_gates.enabled(Gate::CompactHashCheck) {
        return;
    }
    let mut checked = 0;
    let mut ticks = ticks(member.config.compact_hash_check_time);
    while next_tick(&mut ticks, &member).await {
        for own in member.store.compaction_hashes().into_iter().rev() {
            if own.hash_revision <= checked {
                break;
            }
            let peers = ask(&member, own.hash_revision).await;
            match judge(member.id, &own, &peers) {
                // A member could not be asked: an older hash may be one that it has.
                Verdict::Incomplete => {}
                Verdict::Equal => {
                    tracing::info!(
                        revision = own.hash_revision,
                        hash = format!("{:08x}", own.hash),
                        "the members hold the same, by the hash of a compaction"
                    );
                    checked = own.hash_revision;
                    break;
                }
                Verdict::Corrupt(members) => {
                    report(&member, &own, &members).await;
                    checked = own.hash_revision;
                    break;
                }
            }
        }
    }
}

/// While this member leads: compares the hashes of everything. Runs until the member stops.
pub(crate) async fn compare_everything(member: Arc<Member>) {
    let period = member.config.corrupt_check_time;
    if period.is_zero() {
        return;
    }
    let mut ticks = ticks(period);
    while next_tick(&mut ticks, &member).await {
        let Ok(own) = hash_kv(&member.store, 0).await else {
            continue;
        };
        // All that was acknowledged up to here is on a quorum; those that are behind say so.
        if member.reads.linearizable().await.is_err() {
            continue;
        }
        let peers = ask(&member, own.hash_revision).await;
        match judge(member.id, &own, &peers) {
            Verdict::Equal => tracing::info!(
                revision = own.hash_revision,
                hash = format!("{:08x}", own.hash),
                "the members hold the same"
            ),
            Verdict::Incomplete => {}
            Verdict::Corrupt(members) => report(&member, &own, &members).await,
        }
    }
}

fn ticks(period: Duration) -> tokio::time::Interval {
    let mut ticks = interval(period);
    ticks.set_missed_tick_behavior(MissedTickBehavior::Delay);
    ticks
}

/// Waits until the next tick at which this member leads; false when it stops.
async fn next_tick(ticks: &mut tokio::time::Interval, member: &Member) -> bool {
    loop {
        tokio::select! {
            _ = ticks.tick() => {}
            () = member.stopping.cancelled() => return false,
        }
        if member.is_leader() {
            return true;
        }
    }
}

/// What a comparison says.
#[derive(Debug, PartialEq, Eq)]
enum Verdict {
    /// All members hold the same.
    Equal,
    /// Those that could be asked do.
    Incomplete,
    /// These are wrong; 0 stands for nobody knows who.
    Corrupt(Vec<u64>),
}

/// Groups the members by what they hold.
fn judge(own_id: u64, own: &HashKv, peers: &[PeerHash]) -> Verdict {
    let mut groups = BTreeMap::from([(own.hash, vec![own_id])]);
    let mut compared = 0;
    for peer in peers {
        if let Some(hash) = peer.hash.filter(|hash| is_comparable(own, hash)) {
            compared += 1;
            groups.entry(hash.hash).or_default().push(peer.id);
        }
    }
    if groups.len() == 1 {
        return if compared == peers.len() {
            Verdict::Equal
        } else {
            Verdict::Incomplete
        };
    }
    let quorum = quorum(peers.len() + 1);
    let majority = groups.iter().find(|(_, members)| members.len() >= quorum);
    let Some(majority) = majority.map(|(hash, _)| *hash) else {
        return Verdict::Corrupt(vec![0]);
    };
    groups.remove(&majority);
    let mut wrong: Vec<u64> = groups.into_values().flatten().collect();
    wrong.sort_unstable();
    Verdict::Corrupt(wrong)
}

/// Whether both hashes are over the same revisions.
fn is_comparable(a: &HashKv, b: &HashKv) -> bool {
    (a.hash_revision, a.compact_revision) == (b.hash_revision, b.compact_revision)
}

fn differs(a: &HashKv, b: &HashKv) -> bool {
    is_comparable(a, b) && a.hash != b.hash
}

async fn report(member: &Member, own: &HashKv, wrong: &[u64]) {
    let raised = member.alarms.get(AlarmType::Corrupt as i32);
    for id in wrong {
        tracing::error!(
            peer = format!("{id:x}"),
            revision = own.hash_revision,
            hash = format!("{:08x}", own.hash),
            "a member holds other data than the majority; replace it, then disarm the alarm"
        );
        if !raised.iter().any(|alarm| alarm.member_id == *id) {
            member.raise_for(*id, AlarmType::Corrupt).await;
        }
    }
}

async fn ask(member: &Member, revision: i64) -> Vec<PeerHash> {
    let connector = member.transport.connector();
    ask_all(connector, &member.cluster, member.id, revision).await
}

/// Asks all other members at once.
async fn ask_all(
    connector: &Connector,
    cluster: &Cluster,
    member_id: u64,
    revision: i64,
) -> Vec<PeerHash> {
    let others = cluster
        .members()
        .into_iter()
        .filter(|row| row.id != member_id);
    let asked = others.map(|row| ask_one(connector, cluster.id, row, revision));
    futures_util::future::join_all(asked).await
}

async fn ask_one(connector: &Connector, cluster_id: u64, row: Row, revision: i64) -> PeerHash {
    let id = row.id;
    let urls = row
        .peer_urls
        .iter()
        .filter_map(|url| url.parse::<Url>().ok());
    for url in urls {
        match fetch_hash_kv(connector, &url, cluster_id, revision).await {
            // Another member may have moved there.
            Ok((answered, hash)) if answered == id => {
                let hash = Some(hash);
                return PeerHash { id, hash };
            }
            Ok((answered, _)) => tracing::warn!(
                peer = format!("{id:x}"),
                answered = format!("{answered:x}"),
                %url,
                "another member answers where a member should be"
            ),
            Err(error) => tracing::info!(
                peer = format!("{id:x}"),
                revision,
                error = format!("{error:#}"),
                "a member gives no hash for a comparison"
            ),
        }
    }
    PeerHash { id, hash: None }
}

/// The hash of this member, taken where it holds up nobody.
async fn hash_kv(store: &Arc<Store>, revision: i64) -> Result<HashKv> {
    let store = store.clone();
    Ok(tokio::task::spawn_blocking(move || store.hash_kv(revision)).await??)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn hash(hash: u32) -> HashKv {
        HashKv {
            hash,
            revision: 9,
            compact_revision: 3,
            hash_revision: 8,
        }
    }

    fn check(own: u32, peers: &[Option<u32>], expect: Verdict) {
        let peers: Vec<PeerHash> = (2..)
            .zip(peers)
            .map(|(id, peer)| PeerHash {
                id,
                hash: peer.map(hash),
            })
            .collect();
        assert_eq!(judge(1, &hash(own), &peers), expect);
    }

    #[test]
    fn who_differs_from_the_majority_is_wrong_whoever_leads() {
        check(5, &[Some(5), Some(5)], Verdict::Equal);
        check(5, &[], Verdict::Equal);
        check(5, &[Some(5), Some(6)], Verdict::Corrupt(vec![3]));
        check(6, &[Some(5), Some(5)], Verdict::Corrupt(vec![1]));
        check(
            5,
            &[Some(6), Some(5), Some(5), Some(7)],
            Verdict::Corrupt(vec![2, 5]),
        );
    }

    #[test]
    fn without_a_majority_nobody_knows_who_is_wrong() {
        check(5, &[Some(6)], Verdict::Corrupt(vec![0]));
        check(5, &[Some(6), Some(7)], Verdict::Corrupt(vec![0]));
        check(5, &[Some(6), None], Verdict::Corrupt(vec![0]));
        check(5, &[Some(5), Some(6), Some(6)], Verdict::Corrupt(vec![0]));
    }

    #[test]
    fn member_that_cannot_be_compared_is_not_wrong() {
        check(5, &[Some(5), None], Verdict::Incomplete);
        let elsewhere = HashKv {
            compact_revision: 4,
            ..hash(6)
        };
        let peers = [PeerHash {
            id: 2,
            hash: Some(elsewhere),
        }];
        assert_eq!(judge(1, &hash(5), &peers), Verdict::Incomplete);
    }
}
