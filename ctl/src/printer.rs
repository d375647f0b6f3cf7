//! The output forms: what an answer looks like on standard output.
//!
//! Every form is byte for byte etcdctl 3.7's; each has a file of its own. A form that does not exist for
//! an answer is refused after the call was made, as etcdctl does.

mod auth;
mod fields;
mod json;
mod protobuf;
mod simple;
mod table;

use kv_mvcc::etcd_file::EtcdFileStatus;
use kv_proto::etcdserverpb::{
    AlarmResponse, DeleteRangeResponse, DowngradeResponse, HashKvResponse, LeaseGrantResponse,
    LeaseKeepAliveResponse, LeaseLeasesResponse, LeaseRevokeResponse, LeaseTimeToLiveResponse,
    MemberAddResponse, MemberListResponse, MemberPromoteResponse, MemberRemoveResponse,
    MemberUpdateResponse, MoveLeaderResponse, PutResponse, RangeResponse, StatusResponse,
    TxnResponse, WatchResponse,
};

pub(crate) use self::auth::{AuthAnswer, range};
use crate::exit::{Exit, Failure, Result};

/// Anything a command can print.
#[derive(Clone, Copy, Debug)]
pub(crate) enum Answer<'a> {
    /// `get`; `value_only` leaves out the keys of the simple form.
    Get {
        response: &'a RangeResponse,
        value_only: bool,
    },
    /// `put`.
    Put(&'a PutResponse),
    /// `del`.
    Del(&'a DeleteRangeResponse),
    /// `txn`.
    Txn(&'a TxnResponse),
    /// One response of `watch`.
    Watch(&'a WatchResponse),
    /// `lease grant`.
    Grant(&'a LeaseGrantResponse),
    /// `lease revoke` of a lease.
    Revoke {
        id: i64,
        response: &'a LeaseRevokeResponse,
    },
    /// `lease timetolive`; `keys` shows the attached keys in the simple form.
    TimeToLive {
        response: &'a LeaseTimeToLiveResponse,
        keys: bool,
    },
    /// `lease list`.
    Leases(&'a LeaseLeasesResponse),
    /// One renewal of `lease keep-alive`.
    KeepAlive(&'a LeaseKeepAliveResponse),
    /// `member list`.
    Members(&'a MemberListResponse),
    /// `member add`; `name` and `peer_urls` are those of the command line.
    MemberAdd {
        name: &'a str,
        peer_urls: &'a str,
        response: &'a MemberAddResponse,
    },
    /// `member remove` of a member.
    MemberRemove {
        id: u64,
        response: &'a MemberRemoveResponse,
    },
    /// `member update` of a member.
    MemberUpdate {
        id: u64,
        response: &'a MemberUpdateResponse,
    },
    /// `member promote` of a member.
    MemberPromote {
        id: u64,
        response: &'a MemberPromoteResponse,
    },
    /// `move-leader` from one member to another.
    MoveLeader {
        from: u64,
        to: u64,
        response: &'a MoveLeaderResponse,
    },
    /// A subcommand of `downgrade` that is done.
    Downgrade {
        done: &'a str,
        response: &'a DowngradeResponse,
    },
    /// `endpoint health`.
    Health(&'a [Health]),
    /// `endpoint status`: endpoints with their answers.
    Status(&'a [(String, StatusResponse)]),
    /// `endpoint hashkv`: endpoints with their answers.
    HashKv(&'a [(String, HashKvResponse)]),
    /// `snapshot status`.
    SnapshotStatus(&'a EtcdFileStatus),
    /// `alarm list` and `alarm disarm`.
    Alarms(&'a AlarmResponse),
    /// `auth`, `user` and `role`.
    Auth(AuthAnswer<'a>),
}

/// How one endpoint fares.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Health {
    /// As given.
    pub(crate) endpoint: String,
    /// Whether it served a linearizable read and has no alarm.
    pub(crate) healthy: bool,
    /// How long the read took; empty if it was not made.
    pub(crate) took: String,
    /// What is wrong; empty if healthy.
    pub(crate) error: String,
}

/// The forms by the names of `--write-out`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Form {
    /// For people and simple scripts.
    Simple,
    /// One `"Name" : value` a line.
    Fields,
    /// One JSON object a line.
    Json,
    /// The encoded message.
    Protobuf,
    /// A drawn table; only for members and endpoints.
    Table,
}

/// What goes to standard output, and what to standard error.
#[derive(Debug, Default, PartialEq, Eq)]
pub(crate) struct Printed {
    /// For standard output.
    pub(crate) out: Vec<u8>,
    /// For standard error.
    pub(crate) err: Vec<u8>,
}

impl Form {
    /// The form of that name.
    pub(crate) fn from_name(name: &str) -> Option<Form> {
        Some(match name {
            "simple" => Form::Simple,
            "fields" => Form::Fields,
            "json" => Form::Json,
            "protobuf" => Form::Protobuf,
            "table" => Form::Table,
            _ => return None,
        })
    }

    fn name(self) -> &'static str {
        match self {
            Form::Simple => "simple",
            Form::Fields => "fields",
            Form::Json => "json",
            Form::Protobuf => "protobuf",
            Form::Table => "table",
        }
    }

    /// Renders an answer; `hex` writes byte strings or ids as hexadecimal where the form knows how.
    pub(crate) fn print(self, answer: &Answer<'_>, hex: bool) -> Result<Printed> {
        let out = match self {
            Form::Simple => return Ok(simple::print(answer, hex)),
            Form::Fields => fields::print(answer, hex).map(String::into_bytes),
            Form::Json => Some(json::print(answer, hex).into_bytes()),
            Form::Protobuf => protobuf::print(answer),
            Form::Table => table::print(answer).map(String::into_bytes),
        };
        match out {
            Some(out) => Ok(Printed {
                out,
                err: Vec::new(),
            }),
            None => Err(Failure::new(
                Exit::BadFeature,
                format!("{} not supported as output format", self.name()),
            )),
        }
    }
}

#[cfg(test)]
mod tests;
