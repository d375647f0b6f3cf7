//! What a run is made of: the seed, how long things go wrong, and what is broken on purpose.

use std::time::Duration;

/// A defect that the checker must notice; only for tests of the checker.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Defect {
    /// fsync succeeds and makes nothing durable.
    FsyncLies,
    /// A restarted member has forgotten its vote.
    VoteForgotten,
    /// The second member leaves out a command now and then.
    ApplySkips,
    /// A restarted state machine believes to be older than it is.
    ApplyRepeats,
    /// A snapshot claims to be of a later index than it is.
    SnapshotMislabelled,
    /// A read does not ask a quorum.
    ReadUnconfirmed,
    /// A write is acknowledged when it is proposed.
    AcknowledgedEarly,
    /// A member that lost the answer of the leader sends the command again.
    ProposedTwice,
}

#[derive(Clone, Debug)]
pub(crate) struct Settings {
    pub(crate) seed: u64,
    /// How long things go wrong, in simulated time.
    pub(crate) faults_for: Duration,
    pub(crate) defect: Option<Defect>,
}

impl Settings {
    pub(crate) fn of_seed(seed: u64) -> Settings {
        Settings {
            seed,
            faults_for: Duration::from_secs(15),
            defect: None,
        }
    }

    pub(crate) fn with_defect(seed: u64, defect: Defect) -> Settings {
        Settings {
            defect: Some(defect),
            ..Settings::of_seed(seed)
        }
    }

    pub(crate) fn has(&self, defect: Defect) -> bool {
        self.defect == Some(defect)
    }
}
