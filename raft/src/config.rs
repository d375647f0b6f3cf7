//! Settings of a node, and their translation to openraft's.
//!
//! etcd knows an election timeout E and a heartbeat interval H. An openraft follower campaigns
//! after `leader lease + random(min, max)` of silence, where the lease is `max`; with
//! `min = 0.35 E` and `max = 0.65 E` that is 1.0 E to 1.3 E, what an etcd user expects of E.

use std::time::Duration;

use openraft::SnapshotPolicy;

use crate::error::{Error, Result};

/// Proposals (entries, not commands) that may be in flight on one member.
pub(crate) const PROPOSALS_IN_FLIGHT_MAX: usize = 16_384;
/// Messages that openraft's queue holds: all proposals in flight, and as much for all else.
const API_CHANNEL_SIZE: u64 = 2 * PROPOSALS_IN_FLIGHT_MAX as u64;
/// Entries in one append request; its bytes are bounded by the log reader.
pub(crate) const PAYLOAD_ENTRIES_MAX: u64 = 1024;
/// Entries joined into one append to the log.
const APPEND_ENTRIES_MAX: u64 = 4096;
/// Entries purged at once, or as many as lie between two checkpoints if that is fewer.
const PURGE_BATCH: u64 = 1024;

/// Settings of a [`Node`](crate::Node).
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Config {
    /// Id of this member; never 0, never used again after the member is removed.
    pub member_id: u64,
    /// `--election-timeout`, default 1 s. Too small: elections without need when the network or
    /// the disk stalls. Too large: a dead leader is replaced late.
    pub election_timeout: Duration,
    /// `--heartbeat-interval`, default 100 ms; at most a fifth of the election timeout. Too small
    /// costs traffic, too large makes elections likely when a single message is lost.
    pub heartbeat_interval: Duration,
    /// `--snapshot-count`, default 10,000: entries between two checkpoints of the state machine.
    /// Each checkpoint lets older log files go; too large keeps much log to replay at a start.
    pub snapshot_count: u64,
    /// `--snapshot-catchup-entries`, default 5,000: entries kept in the log behind a
    /// checkpoint, so that a slow follower needs no snapshot.
    pub snapshot_catchup_entries: u64,
    /// Bytes of the newest entries kept in memory, default 8 MiB. Entries that are not yet on
    /// disk stay in memory beyond it.
    pub tail_bytes_max: u64,
}

impl Default for Config {
    fn default() -> Config {
        Config {
            member_id: 0,
            election_timeout: Duration::from_secs(1),
            heartbeat_interval: Duration::from_millis(100),
            snapshot_count: 10_000,
            snapshot_catchup_entries: 5_000,
            tail_bytes_max: 8 << 20,
        }
    }
}

impl Config {
    /// Says what cannot work, naming the flag and the bound.
    pub fn validate(&self) -> Result<()> {
        let refuse = |text: String| Err(Error::Config(text));
        let (election, heartbeat) = (
            millis(self.election_timeout),
            millis(self.heartbeat_interval),
        );
        if self.member_id == 0 {
            return refuse("the member id must not be 0".into());
        }
        if heartbeat == 0 {
            return refuse("--heartbeat-interval must be at least 1 ms".into());
        }
        if election < 5 * heartbeat {
            return refuse(format!(
                "--election-timeout ({election} ms) must be at least 5 times \
                 --heartbeat-interval ({heartbeat} ms)"
            ));
        }
        if election > 50_000 {
            return refuse(format!(
                "--election-timeout ({election} ms) must be at most 50000 ms"
            ));
        }
        if self.snapshot_count == 0 {
            return refuse("--snapshot-count must be at least 1".into());
        }
        Ok(())
    }

    /// How long a leader trusts the last answer of a quorum, and a follower its leader.
    pub(crate) fn leader_lease(&self) -> Duration {
        Duration::from_millis(self.election_max())
    }

    /// How long entries may wait for a leader's disk, while none reaches it, before another member should lead.
    pub(crate) fn disk_patience(&self) -> Duration {
        self.election_timeout / 2
    }

    fn election_max(&self) -> u64 {
        (millis(self.election_timeout) * 65).div_ceil(100)
    }

    /// openraft's settings for these.
    pub(crate) fn to_openraft(&self) -> Result<openraft::Config> {
        self.validate()?;
        let heartbeat = millis(self.heartbeat_interval);
        let (min, max) = (
            (millis(self.election_timeout) * 35).div_ceil(100),
            self.election_max(),
        );
        let tick = heartbeat * 13 / 64;
        // Heartbeats are left out while replication is answered, where two intervals still fit.
        let quiet = if min > 2 * heartbeat + tick.max(1) {
            heartbeat
        } else {
            0
        };
        openraft::Config {
            cluster_name: "kvd".into(),
            heartbeat_interval: heartbeat,
            heartbeat_min_interval: Some(quiet),
            election_timeout_min: min,
            election_timeout_max: max,
            enable_pre_vote: Some(true),
            // A restarted leader must win an election before it serves reads.
            enable_leader_restore: Some(false),
            quorum_loss_probe_interval: Some(2 * max),
            max_payload_entries: PAYLOAD_ENTRIES_MAX,
            max_append_entries: Some(APPEND_ENTRIES_MAX),
            api_channel_size: Some(API_CHANNEL_SIZE),
            api_batch_linger_ms: 0,
            snapshot_policy: SnapshotPolicy::LogsSinceLast(self.snapshot_count),
            max_in_snapshot_log_to_keep: self.snapshot_catchup_entries,
            purge_batch_size: PURGE_BATCH.min(self.snapshot_count),
            backoff: "20ms 40ms 80ms 160ms 320ms 500ms".into(),
            ..openraft::Config::default()
        }
        .validate()
        .map_err(|error| Error::Config(error.to_string()))
    }
}

fn millis(duration: Duration) -> u64 {
    u64::try_from(duration.as_millis()).unwrap_or(u64::MAX)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn config(election: u64, heartbeat: u64) -> Config {
        Config {
            member_id: 1,
            election_timeout: Duration::from_millis(election),
            heartbeat_interval: Duration::from_millis(heartbeat),
            ..Config::default()
        }
    }

    #[test]
    fn default_timers_map_to_a_third_and_two_thirds() {
        let raft = config(1000, 100).to_openraft().unwrap();
        assert_eq!(
            (raft.election_timeout_min, raft.election_timeout_max),
            (350, 650)
        );
        assert_eq!(raft.heartbeat_min_interval, Some(100));
        assert_eq!(raft.enable_pre_vote, Some(true));
        assert_eq!(raft.enable_leader_restore, Some(false));
        assert_eq!(raft.quorum_loss_probe_interval, Some(1300));
    }

    #[test]
    fn every_pair_that_etcd_accepts_is_accepted() {
        for heartbeat in [1, 2, 5, 10, 50, 100, 500, 1000, 10_000] {
            for election in [5 * heartbeat, 7 * heartbeat, 10 * heartbeat, 50_000] {
                let election = election.min(50_000);
                config(election, heartbeat)
                    .to_openraft()
                    .unwrap_or_else(|e| panic!("election {election}, heartbeat {heartbeat}: {e}"));
            }
        }
    }

    #[test]
    fn settings_that_cannot_work_name_their_flag() {
        let refused = |config: Config| config.validate().unwrap_err().to_string();
        assert!(refused(config(499, 100)).contains("--election-timeout"));
        assert!(refused(config(50_001, 100)).contains("--election-timeout"));
        assert!(refused(config(1000, 0)).contains("--heartbeat-interval"));
        assert!(
            refused(Config {
                snapshot_count: 0,
                ..config(1000, 100)
            })
            .contains("--snapshot-count")
        );
        assert!(
            refused(Config {
                member_id: 0,
                ..config(1000, 100)
            })
            .contains("member id")
        );
    }
}
