//! What can go wrong, by who must act: the owner of the node, a proposer, a reader, a peer.

use std::io;

use crate::encoding::DecodeError;

/// Result of this crate.
pub type Result<T> = std::result::Result<T, Error>;

/// Why a node cannot start, go on, or do what its owner asked.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// A setting that cannot work; the text names the flag and the bound.
    #[error("{0}")]
    Config(String),
    /// The log is closed, damaged or cannot be written.
    #[error("write-ahead log: {0}")]
    Wal(#[from] kv_wal::Error),
    /// What the log holds contradicts itself or the state machine.
    #[error("log: {0}")]
    Log(String),
    /// A record or message does not decode.
    #[error("{what}: {source}")]
    Decode {
        /// Which record or message.
        what: &'static str,
        /// Where and why.
        source: DecodeError,
    },
    /// The state machine failed to apply, checkpoint or report what it contains.
    #[error("state machine: {0}")]
    StateMachine(#[source] io::Error),
    /// `initialize` on a member that already has a log or a vote.
    #[error("the member already belongs to a cluster")]
    AlreadyInitialized,
    /// `initialize` with a set of voters that does not contain this member.
    #[error("member {member_id:x} is not among the voters {voters:x?}")]
    NotAVoter {
        /// This member.
        member_id: u64,
        /// The voters given.
        voters: Vec<u64>,
    },
    /// A peer asked the application, and the owner serves none yet.
    #[error("the application does not answer yet")]
    NoApp,
    /// Consensus stopped for good; the process must exit with this cause.
    #[error("raft stopped: {0}")]
    Fatal(String),
    /// The node was shut down by its owner.
    #[error("raft is shut down")]
    Stopped,
}

/// Why a proposal was not seen by apply.
///
/// [`NotLeader`](Self::NotLeader), [`NoQuorum`](Self::NoQuorum) and
/// [`Overloaded`](Self::Overloaded) are certain: the commands are in no log. After the others the
/// outcome is unknown, and a retry may apply the commands twice.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum ProposeError {
    /// No leader was reached; `leader` is who leads, if known.
    #[error("not the leader")]
    NotLeader {
        /// The leader, if one is known.
        leader: Option<u64>,
    },
    /// This member leads but heard from no quorum for a whole election timeout.
    #[error("no quorum")]
    NoQuorum,
    /// Too many proposals are already in flight.
    #[error("too many proposals in flight")]
    Overloaded,
    /// Leadership went away while the entry was in the log; another leader may still commit it.
    #[error("leadership lost, outcome unknown")]
    LeadershipLost,
    /// The commands were sent to the leader, and no answer came back.
    #[error("no answer from the leader, outcome unknown")]
    NoAnswer,
    /// The node stopped, with the entry perhaps in the log.
    #[error("stopped, outcome unknown")]
    Stopped,
}

/// Why the members were not changed.
///
/// After [`LeadershipLost`](Self::LeadershipLost) and [`Stopped`](Self::Stopped) the outcome is
/// unknown; after the others the change is in no log.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum MembershipError {
    /// Only the leader changes the members; `leader` is who leads, if known.
    #[error("not the leader")]
    NotLeader {
        /// The leader, if one is known.
        leader: Option<u64>,
    },
    /// This member leads but heard from no quorum for two election timeouts.
    #[error("no quorum")]
    NoQuorum,
    /// Another change was not committed for two election timeouts.
    #[error("another change of the members is under way")]
    InProgress,
    /// The id is taken.
    #[error("already a member")]
    AlreadyAMember,
    /// The id is not in use.
    #[error("not a member")]
    NotAMember,
    /// The member votes already.
    #[error("not a learner")]
    NotALearner,
    /// The learner does not answer, or lacks more than a tenth of the log.
    #[error("the learner has {matching} of {last} entries or does not answer")]
    LearnerNotReady {
        /// Newest index it has.
        matching: u64,
        /// Newest index of the leader.
        last: u64,
    },
    /// Without the member nobody could vote.
    #[error("the last voter cannot be removed")]
    LastVoter,
    /// Leadership went away while the entry was in the log.
    #[error("leadership lost, outcome unknown")]
    LeadershipLost,
    /// The node stopped.
    #[error("stopped, outcome unknown")]
    Stopped,
}

/// Why leadership was not handed over.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum TransferError {
    /// This member does not lead, or somebody else than the target took over.
    #[error("not the leader")]
    NotLeader {
        /// The leader, if one is known.
        leader: Option<u64>,
    },
    /// The target has no vote.
    #[error("the target is no voter")]
    NotAVoter,
    /// The target does not answer, or lacks too much of the log; nothing was tried.
    #[error("the target does not answer or is behind")]
    NotReady,
    /// The target did not take over in time.
    #[error("the target did not take over in time")]
    TimedOut,
    /// The node stopped.
    #[error("stopped")]
    Stopped,
}

/// Why a linearizable read could not be confirmed.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum ReadError {
    /// No leader, or none that a quorum confirmed, within two election timeouts.
    #[error("no leader confirmed the read")]
    NoLeader,
    /// The node is stopped or failed.
    #[error("stopped")]
    Stopped,
}

/// Why a peer gave no answer.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum PeerError {
    /// No connection could be made; the peer certainly received nothing of the request.
    #[error("peer unreachable: {0}")]
    NotSent(String),
    /// Cut off or refused; the peer may have received the request.
    #[error("peer unreachable: {0}")]
    Unreachable(String),
    /// No answer within the time given.
    #[error("peer gave no answer in time")]
    Timeout,
    /// The peer answered with something that does not decode, or with a refusal.
    #[error("peer answered badly: {0}")]
    Answer(String),
}

/// An error of this crate as openraft's storage traits want it.
pub(crate) fn io_error(error: impl std::error::Error + Send + Sync + 'static) -> io::Error {
    io::Error::other(error)
}

/// Damage found in the log, as openraft's storage traits want it.
pub(crate) fn damage(text: String) -> io::Error {
    io::Error::new(io::ErrorKind::InvalidData, text)
}
