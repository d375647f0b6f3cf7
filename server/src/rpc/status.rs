//! Error to wire: code and text are decided here and nowhere else.
//!
//! The texts are API: Go clients compare them byte for byte. Three of etcd's errors travel as Unknown although
//! clients know them under another code. Source: etcd API v3.7, rpctypes and v3rpc/util.

use tonic::{Code, Status};

use crate::error::Error;

impl From<Error> for Status {
    fn from(error: Error) -> Status {
        let (code, text) = wire(&error);
        Status::new(code, text)
    }
}

/// Why a watcher is not created, as the text that clients find in the canceled response: Go's form of a status.
pub(crate) fn watch_refusal(error: &Error) -> String {
    let (code, text) = match error {
        Error::InvalidAuthToken | Error::AuthOldRevision | Error::UserEmpty => wire(error),
        _ => wire(&Error::PermissionDenied),
    };
    format!("rpc error: code = {code:?} desc = {text}")
}

fn wire(error: &Error) -> (Code, &str) {
    match error {
        Error::EmptyKey => (Code::InvalidArgument, "etcdserver: key is not provided"),
        Error::KeyNotFound => (Code::InvalidArgument, "etcdserver: key not found"),
        Error::ValueProvided => (Code::InvalidArgument, "etcdserver: value is provided"),
        Error::LeaseProvided => (Code::InvalidArgument, "etcdserver: lease is provided"),
        Error::TooManyOps => (
            Code::InvalidArgument,
            "etcdserver: too many operations in txn request",
        ),
        Error::DuplicateKey => (
            Code::InvalidArgument,
            "etcdserver: duplicate key given in txn request",
        ),
        Error::InvalidClientApiVersion => (
            Code::InvalidArgument,
            "etcdserver: invalid client api version",
        ),
        Error::InvalidSortOption => (Code::InvalidArgument, "etcdserver: invalid sort option"),
        Error::Compacted => (
            Code::OutOfRange,
            "etcdserver: mvcc: required revision has been compacted",
        ),
        Error::FutureRevision => (
            Code::OutOfRange,
            "etcdserver: mvcc: required revision is a future revision",
        ),
        Error::NoSpace => (
            Code::ResourceExhausted,
            "etcdserver: mvcc: database space exceeded",
        ),
        Error::LeaseNotFound => (Code::NotFound, "etcdserver: requested lease not found"),
        Error::LeaseExists => (Code::FailedPrecondition, "etcdserver: lease already exists"),
        Error::LeaseTtlTooLarge => (Code::OutOfRange, "etcdserver: too large lease TTL"),
        Error::NotPrimaryLessor => (Code::Unknown, "not a primary lessor"),
        Error::RequestTooLarge => (Code::InvalidArgument, "etcdserver: request is too large"),
        Error::TooManyRequests => (Code::Unknown, "etcdserver: too many requests"),
        // etcd has none: its snapshots arrive beside the database.
        Error::SnapshotArriving => (
            Code::Unavailable,
            "etcdserver: a snapshot is being received which will replace the database; try again in a minute",
        ),
        Error::NoLeader => (Code::Unavailable, "etcdserver: no leader"),
        Error::NotLeader => (Code::FailedPrecondition, "etcdserver: not leader"),
        Error::LeaderChanged => (Code::Unavailable, "etcdserver: leader changed"),
        Error::BadLeaderTransferee => (
            Code::FailedPrecondition,
            "etcdserver: bad leader transferee",
        ),
        Error::LeaderTransferTimeout => (
            Code::Unknown,
            "etcdserver: request timed out, leader transfer took too long",
        ),
        Error::MemberExists => (
            Code::FailedPrecondition,
            "etcdserver: member ID already exist",
        ),
        Error::PeerUrlExists => (
            Code::FailedPrecondition,
            "etcdserver: Peer URLs already exists",
        ),
        Error::BadPeerUrls => (
            Code::InvalidArgument,
            "etcdserver: given member URLs are invalid",
        ),
        Error::MemberNotFound => (Code::NotFound, "etcdserver: member not found"),
        Error::MemberNotLearner => (
            Code::FailedPrecondition,
            "etcdserver: can only promote a learner member",
        ),
        Error::LearnerNotReady => (
            Code::FailedPrecondition,
            "etcdserver: can only promote a learner member which is in sync with leader",
        ),
        Error::TooManyLearners => (
            Code::FailedPrecondition,
            "etcdserver: too many learner members in cluster",
        ),
        Error::NotEnoughStarted => (
            Code::Unknown,
            "etcdserver: re-configuration failed due to not enough started members",
        ),
        Error::Unhealthy => (Code::Unavailable, "etcdserver: unhealthy cluster"),
        Error::NotSupportedForLearner => (
            Code::FailedPrecondition,
            "etcdserver: rpc not supported for learner",
        ),
        Error::Stopped => (Code::Unavailable, "etcdserver: server stopped"),
        Error::Timeout => (Code::Unavailable, "etcdserver: request timed out"),
        Error::DeadlineExceeded => (Code::DeadlineExceeded, "context deadline exceeded"),
        Error::TimeoutWaitAppliedIndex => (
            Code::Unavailable,
            "etcdserver: request timed out, waiting for the applied index took too long",
        ),
        Error::NotCapable => (Code::FailedPrecondition, "etcdserver: not capable"),
        Error::WrongDowngradeVersionFormat => (
            Code::InvalidArgument,
            "etcdserver: wrong downgrade target version format",
        ),
        Error::InvalidDowngradeTargetVersion => (
            Code::InvalidArgument,
            "etcdserver: invalid downgrade target version",
        ),
        Error::ClusterVersionUnavailable => (
            Code::FailedPrecondition,
            "etcdserver: cluster version not found during downgrade",
        ),
        Error::DowngradeInProcess => (
            Code::FailedPrecondition,
            "etcdserver: cluster has a downgrade job in progress",
        ),
        Error::NoInflightDowngrade => (
            Code::FailedPrecondition,
            "etcdserver: no inflight downgrade job",
        ),
        Error::Corrupt => (Code::DataLoss, "etcdserver: corrupt cluster"),
        Error::AuthNotEnabled => (
            Code::FailedPrecondition,
            "etcdserver: authentication is not enabled",
        ),
        Error::RootUserNotExist => (
            Code::FailedPrecondition,
            "etcdserver: root user does not exist",
        ),
        Error::RootRoleNotExist => (
            Code::FailedPrecondition,
            "etcdserver: root user does not have root role",
        ),
        Error::UserAlreadyExists => (
            Code::FailedPrecondition,
            "etcdserver: user name already exists",
        ),
        Error::UserEmpty => (Code::InvalidArgument, "etcdserver: user name is empty"),
        Error::UserNotFound => (Code::FailedPrecondition, "etcdserver: user name not found"),
        Error::RoleAlreadyExists => (
            Code::FailedPrecondition,
            "etcdserver: role name already exists",
        ),
        Error::RoleNotFound => (Code::FailedPrecondition, "etcdserver: role name not found"),
        Error::RoleEmpty => (Code::InvalidArgument, "etcdserver: role name is empty"),
        Error::AuthFailed => (
            Code::InvalidArgument,
            "etcdserver: authentication failed, invalid user ID or password",
        ),
        Error::NoPasswordUser => (
            Code::Unknown,
            "auth: authentication failed, password was given for no password user",
        ),
        Error::PasswordTooLong => (Code::Unknown, "bcrypt: password length exceeds 72 bytes"),
        Error::PermissionNotGiven => (Code::InvalidArgument, "etcdserver: permission not given"),
        Error::PermissionDenied => (Code::PermissionDenied, "etcdserver: permission denied"),
        Error::RoleNotGranted => (
            Code::FailedPrecondition,
            "etcdserver: role is not granted to the user",
        ),
        Error::PermissionNotGranted => (
            Code::FailedPrecondition,
            "etcdserver: permission is not granted to the role",
        ),
        Error::InvalidAuthToken => (Code::Unauthenticated, "etcdserver: invalid auth token"),
        Error::InvalidAuthManagement => {
            (Code::InvalidArgument, "etcdserver: invalid auth management")
        }
        Error::AuthOldRevision => (
            Code::InvalidArgument,
            "etcdserver: revision of auth store is old",
        ),
        Error::TokenVerifyOnly => (
            Code::Unknown,
            "auth: token signing attempted with verify-only key",
        ),
        Error::Unimplemented(what) => (Code::Unimplemented, what),
        Error::Storage(what) => (Code::Unknown, what),
    }
}

/// What etcd says when a message is above the receive limit, from what tonic says; other statuses pass.
///
/// Source: grpc-go's text; semantics of `--max-request-bytes` (the limit is that plus 512 KiB).
pub(crate) fn with_grpc_go_texts(status: Status) -> Status {
    const TONIC: &str = "Error, decoded message length too large: found ";
    if status.code() != Code::OutOfRange {
        return status;
    }
    let Some(rest) = status.message().strip_prefix(TONIC) else {
        return status;
    };
    let numbers: Vec<&str> = rest
        .split(|c: char| !c.is_ascii_digit())
        .filter(|part| !part.is_empty())
        .collect();
    match numbers[..] {
        [found, limit, ..] => Status::resource_exhausted(format!(
            "grpc: received message larger than max ({found} vs. {limit})"
        )),
        _ => status,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_oversized_message_is_reported_in_grpc_gos_words() {
        let tonic = Status::out_of_range(
            "Error, decoded message length too large: found 5000 bytes, the limit is: 4096 bytes",
        );
        let status = with_grpc_go_texts(tonic);
        assert_eq!(status.code(), Code::ResourceExhausted);
        assert_eq!(
            status.message(),
            "grpc: received message larger than max (5000 vs. 4096)"
        );
    }

    #[test]
    fn overload_is_told_in_etcds_words() {
        let status = Status::from(Error::TooManyRequests);
        assert_eq!(status.code(), Code::Unknown);
        assert_eq!(status.message(), "etcdserver: too many requests");
    }

    #[test]
    fn a_compacted_revision_keeps_its_code() {
        let status = with_grpc_go_texts(Error::Compacted.into());
        assert_eq!(status.code(), Code::OutOfRange);
        assert_eq!(
            status.message(),
            "etcdserver: mvcc: required revision has been compacted"
        );
    }
}
