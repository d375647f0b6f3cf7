//! What a client of the load asks for, and what it was told.
//!
//! Every operation carries bytes that no other one has ([`Operation::mark`]), so that it is found again in the log's
//! files and told from every other one in the store.

use bytes::Bytes;
use kv_proto::etcdserverpb::compare::{CompareResult, CompareTarget, TargetUnion};
use kv_proto::etcdserverpb::request_op::Request;
use kv_proto::etcdserverpb::{
    CompactionRequest, Compare, DeleteRangeRequest, LeaseGrantRequest, LeaseRevokeRequest,
    PutRequest, RequestOp, TxnRequest,
};

/// Leases must outlive every run.
pub const LEASE_TTL_SECS: i64 = 1_000_000;

/// One change to one key.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Write {
    /// Stores a value; lease 0 is none.
    Put {
        /// The key.
        key: Bytes,
        /// A value nobody else writes.
        value: Bytes,
        /// The lease it hangs on.
        lease: i64,
    },
    /// Deletes a key.
    Delete {
        /// The key.
        key: Bytes,
        /// End of the range, which holds no other key.
        end: Bytes,
    },
}

/// A transaction: one compared value decides between two lists of writes to different keys.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Txn {
    /// Key and the value it must have; nothing always holds.
    pub guard: Option<(Bytes, Bytes)>,
    /// What is done if it has.
    pub success: Vec<Write>,
    /// What is done otherwise.
    pub failure: Vec<Write>,
}

/// One request.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Operation {
    /// A put or a deletion by itself.
    Write(Write),
    /// A transaction.
    Txn(Txn),
    /// Makes a lease.
    Grant(i64),
    /// Ends a lease with its keys.
    Revoke(i64),
    /// Forgets revisions below this one.
    Compact(i64),
}

/// What the member said.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Answer {
    /// The header's revision.
    pub revision: i64,
    /// Of a transaction: whether the guard held.
    pub succeeded: bool,
    /// Of a deletion: keys that were there.
    pub deleted: i64,
}

/// An operation with its times, in nanoseconds of the system clock.
#[derive(Clone, Debug)]
pub struct Call {
    /// What was asked for.
    pub operation: Operation,
    /// Before it was sent.
    pub sent_ns: u64,
    /// What came back and when; nothing if the member was gone first.
    pub answer: Option<(Answer, u64)>,
}

impl Write {
    /// The request.
    pub fn to_request(&self) -> Request {
        match self.clone() {
            Write::Put { key, value, lease } => Request::RequestPut(PutRequest {
                key,
                value,
                lease,
                ..Default::default()
            }),
            Write::Delete { key, end } => Request::RequestDeleteRange(DeleteRangeRequest {
                key,
                range_end: end,
                ..Default::default()
            }),
        }
    }

    fn mark(&self) -> &[u8] {
        let unique = match self {
            Write::Put { value, .. } => value,
            Write::Delete { end, .. } => end,
        };
        // What fills a value up says nothing.
        let len = unique
            .iter()
            .rposition(|byte| *byte == b'>')
            .map_or(0, |at| at + 1);
        &unique[..len]
    }
}

impl Txn {
    /// The request.
    pub fn to_request(&self) -> TxnRequest {
        let ops = |writes: &[Write]| {
            let ops = writes.iter().map(|write| RequestOp {
                request: Some(write.to_request()),
            });
            ops.collect()
        };
        let compare = self.guard.iter().map(|(key, value)| Compare {
            result: CompareResult::Equal as i32,
            target: CompareTarget::Value as i32,
            key: key.clone(),
            range_end: Bytes::new(),
            target_union: Some(TargetUnion::Value(value.clone())),
        });
        TxnRequest {
            compare: compare.collect(),
            success: ops(&self.success),
            failure: ops(&self.failure),
        }
    }
}

impl Operation {
    /// Bytes of the request that no other operation has; none for a compaction.
    pub fn mark(&self) -> Option<Vec<u8>> {
        use prost::Message;
        match self {
            Operation::Write(write) => Some(write.mark().to_vec()),
            Operation::Txn(txn) => txn.failure.last().map(|write| write.mark().to_vec()),
            Operation::Grant(id) => Some(grant_request(*id).encode_to_vec()),
            Operation::Revoke(id) => Some(LeaseRevokeRequest { id: *id }.encode_to_vec()),
            Operation::Compact(_) => None,
        }
    }
}

/// Asks for a lease of that id.
pub fn grant_request(id: i64) -> LeaseGrantRequest {
    LeaseGrantRequest {
        ttl: LEASE_TTL_SECS,
        id,
    }
}

/// Asks for a compaction whose removal is not waited for.
pub fn compaction_request(revision: i64) -> CompactionRequest {
    CompactionRequest {
        revision,
        physical: false,
    }
}
