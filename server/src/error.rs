//! What a request can fail with, independent of how it arrived.
//!
//! The variants are etcd's; `rpc/status.rs` alone knows their codes and texts.

/// The crate's result.
pub type Result<T, E = Error> = std::result::Result<T, E>;

/// Why a request was not carried out.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum Error {
    /// A member's build cannot apply it yet.
    #[error("not capable")]
    NotCapable,
    /// The version to go down to cannot be read.
    #[error("wrong downgrade target version format")]
    WrongDowngradeVersionFormat,
    /// Not one minor version below the cluster's.
    #[error("invalid downgrade target version")]
    InvalidDowngradeTargetVersion,
    /// The cluster version is not decided.
    #[error("cluster version not found during downgrade")]
    ClusterVersionUnavailable,
    /// One at a time.
    #[error("cluster has a downgrade job in progress")]
    DowngradeInProcess,
    /// There is nothing to cancel.
    #[error("no inflight downgrade job")]
    NoInflightDowngrade,
    /// A request without a key.
    #[error("no key is given")]
    EmptyKey,
    /// `ignore_value` or `ignore_lease` on a key that does not exist, or an operation without content.
    #[error("key not found")]
    KeyNotFound,
    /// `ignore_value` together with a value.
    #[error("a value is given although ignore_value is set")]
    ValueProvided,
    /// `ignore_lease` together with a lease.
    #[error("a lease is given although ignore_lease is set")]
    LeaseProvided,
    /// More operations in one transaction than `--max-txn-ops`.
    #[error("too many operations in the transaction")]
    TooManyOps,
    /// One branch of a transaction changes a key twice.
    #[error("a key is changed twice in one branch of the transaction")]
    DuplicateKey,
    /// The metadata `client-api-version` is not UTF-8.
    #[error("client-api-version is not UTF-8")]
    InvalidClientApiVersion,
    /// Sort order or target outside the enum.
    #[error("unknown sort order or target")]
    InvalidSortOption,
    /// The revision asked for is below the compacted one.
    #[error("the revision has been compacted")]
    Compacted,
    /// The revision asked for is above the current one.
    #[error("the revision is in the future")]
    FutureRevision,
    /// The space quota is used up or a NOSPACE alarm is raised.
    #[error("the space quota is used up")]
    NoSpace,
    /// The lease does not exist.
    #[error("lease not found")]
    LeaseNotFound,
    /// The lease id is taken.
    #[error("lease exists")]
    LeaseExists,
    /// Time to live above 9,000,000,000 seconds.
    #[error("lease time to live too large")]
    LeaseTtlTooLarge,
    /// Lease renewals are answered by the leader only, and this member cannot confirm that it leads.
    #[error("not the primary lessor")]
    NotPrimaryLessor,
    /// The encoded request is above `--max-request-bytes`.
    #[error("the request is too large")]
    RequestTooLarge,
    /// Apply is too far behind, or the request bytes in flight are at their limit.
    #[error("too many requests are in flight")]
    TooManyRequests,
    /// There is no leader now.
    #[error("no leader")]
    NoLeader,
    /// The request must be sent to the leader.
    #[error("not the leader")]
    NotLeader,
    /// The leader changed while the request waited.
    #[error("the leader changed")]
    LeaderChanged,
    /// The member that leadership should move to cannot take it.
    #[error("the target cannot become leader")]
    BadLeaderTransferee,
    /// The member that leadership should move to did not take it in time.
    #[error("the target did not take leadership in time")]
    LeaderTransferTimeout,
    /// The id of a new member is taken.
    #[error("a member with this id exists")]
    MemberExists,
    /// A peer URL belongs to another member.
    #[error("a member with one of these peer URLs exists")]
    PeerUrlExists,
    /// A peer URL is missing or malformed.
    #[error("the peer URLs are invalid")]
    BadPeerUrls,
    /// The id is not that of a member, or of one that was removed.
    #[error("no such member")]
    MemberNotFound,
    /// The member has a vote already.
    #[error("the member is not a learner")]
    MemberNotLearner,
    /// The learner does not answer or is too far behind.
    #[error("the learner is not in step with the leader")]
    LearnerNotReady,
    /// More learners than `--max-learners`.
    #[error("too many learners")]
    TooManyLearners,
    /// The change would leave fewer started members than a quorum.
    #[error("not enough started members")]
    NotEnoughStarted,
    /// The change would leave fewer reachable members than a quorum.
    #[error("not enough members answer")]
    Unhealthy,
    /// The call is not for learners.
    #[error("a learner does not serve this call")]
    NotSupportedForLearner,
    /// The member is stopping.
    #[error("the member is stopping")]
    Stopped,
    /// No result within 5 s + 2 x election timeout; the request may still take effect.
    #[error("timed out")]
    Timeout,
    /// The caller's own deadline passed.
    #[error("the caller's deadline passed")]
    DeadlineExceeded,
    /// Apply did not catch up within a second.
    #[error("timed out waiting for the applied index")]
    TimeoutWaitAppliedIndex,
    /// A CORRUPT alarm is raised.
    #[error("a CORRUPT alarm is raised")]
    Corrupt,
    /// Auth is not enabled.
    #[error("authentication is not enabled")]
    AuthNotEnabled,
    /// Auth cannot be enabled without a user root.
    #[error("there is no user root")]
    RootUserNotExist,
    /// Auth cannot be enabled while the user root lacks the role root.
    #[error("the user root does not have the role root")]
    RootRoleNotExist,
    /// The user exists.
    #[error("the user exists")]
    UserAlreadyExists,
    /// No user is named, or nobody said who they are although auth is enabled.
    #[error("no user is named")]
    UserEmpty,
    /// There is no such user.
    #[error("no such user")]
    UserNotFound,
    /// The role exists.
    #[error("the role exists")]
    RoleAlreadyExists,
    /// There is no such role.
    #[error("no such role")]
    RoleNotFound,
    /// No role is named.
    #[error("no role is named")]
    RoleEmpty,
    /// User or password is wrong.
    #[error("user or password is wrong")]
    AuthFailed,
    /// A password was given for a user who has none.
    #[error("the user has no password")]
    NoPasswordUser,
    /// The password is longer than bcrypt can take.
    #[error("the password is longer than 72 bytes")]
    PasswordTooLong,
    /// A grant without a permission.
    #[error("no permission is given")]
    PermissionNotGiven,
    /// The caller lacks the permission.
    #[error("permission denied")]
    PermissionDenied,
    /// The user does not have the role.
    #[error("the user does not have the role")]
    RoleNotGranted,
    /// The role does not have the permission.
    #[error("the role does not have the permission")]
    PermissionNotGranted,
    /// The token is unknown, expired or not signed by the right key.
    #[error("the token is not valid")]
    InvalidAuthToken,
    /// Keys of a permission that hold nothing, or an end of what keeps auth manageable while it is enabled.
    #[error("this change of auth is not allowed")]
    InvalidAuthManagement,
    /// Users or roles have changed since the caller's identity was checked.
    #[error("the auth revision is old")]
    AuthOldRevision,
    /// This member has only the public key of tokens.
    #[error("this member cannot sign tokens")]
    TokenVerifyOnly,
    /// The call is not offered; the text says what is missing.
    #[error("{0}")]
    Unimplemented(&'static str),
    /// A snapshot is being received that will replace the database.
    #[error("a snapshot is being received which will replace the database")]
    SnapshotArriving,
    /// The store could not answer: damage or a failing disk.
    #[error("{0}")]
    Storage(String),
}

impl From<kv_mvcc::Error> for Error {
    fn from(error: kv_mvcc::Error) -> Error {
        match error {
            kv_mvcc::Error::Compacted { .. } => Error::Compacted,
            kv_mvcc::Error::FutureRevision { .. } => Error::FutureRevision,
            kv_mvcc::Error::LeaseNotFound { .. } => Error::LeaseNotFound,
            kv_mvcc::Error::LeaseExists { .. } => Error::LeaseExists,
            kv_mvcc::Error::LeaseTtlTooLarge { .. } => Error::LeaseTtlTooLarge,
            kv_mvcc::Error::SnapshotArriving => Error::SnapshotArriving,
            other => Error::Storage(other.to_string()),
        }
    }
}
