//! Messages between members, as bytes.
//!
//! The transport moves them without looking inside. All integers are little endian; the first byte
//! of each message is the version of `encoding.rs`, and a member that meets another one refuses.
//! `log id` is index:8 term:8 with index 0 for none, `vote` is term:8 voted_for:8 committed:1,
//! `body` is an entry body of `encoding.rs`.
//!
//! ```text
//! vote, pre-vote request    version:1  vote  last log id  leadership_transfer:1
//! vote, pre-vote answer     version:1  vote  granted:1  last log id
//! append request            version:1  vote  previous log id  commit log id
//!                           count:4  { index:8  term:8  length:4  body }*
//! append answer             version:1  0  log id       matches up to here
//!                           version:1  1  log id       conflicts here
//!                           version:1  2  vote         a newer leader is known
//! transfer request          version:1  vote  to:8  last log id
//! transfer answer           version:1  0
//!                           version:1  1  expected vote  actual vote
//!                           version:1  2  expected log id  actual log id      (not flushed)
//! snapshot header           version:1  vote  last log id  stored membership
//! snapshot answer           version:1  vote
//! read-index request        version:1
//! read-index answer         version:1  0  index:8
//!                           version:1  1                (not the leader)
//!                           version:1  2                (no quorum confirmed)
//! propose request           version:1  body             (commands only)
//! propose answer            version:1  0                (applied by the leader)
//!                           version:1  1  leader:8      (does not lead; 0: knows no leader)
//!                           version:1  2                (no quorum)
//!                           version:1  3                (too many in flight)
//!                           version:1  4                (leadership lost, unknown outcome)
//!                           version:1  5                (stopped, unknown outcome)
//! ```
//!
//! The `check_*` functions decode without looking at the meaning; they exist for fuzzing.

use bytes::{BufMut, Bytes, BytesMut};
use openraft::raft::{
    AppendEntriesRequest, SnapshotResponse, StreamAppendError, StreamAppendResult,
    TransferLeaderError, TransferLeaderRequest, TransferLeaderResponse, VoteRequest, VoteResponse,
};

use crate::encoding::{
    self, DecodeError, Reader, VERSION, encode_stored_membership, length, put_log_id, put_vote,
};
use crate::error::ProposeError;
use crate::types::{
    Entry, Payload, SnapshotMeta, TypeConfig, Vote, index_of, raft_log_id, term_of,
};

type Decoded<T> = Result<T, DecodeError>;

/// What a leader answers to a read-index request.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum ReadIndexAnswer {
    /// Reads are linearizable once this index is applied.
    Index(u64),
    /// This member does not lead.
    NotLeader,
    /// No quorum confirmed the leadership in time.
    NoQuorum,
}

pub(crate) fn encode_vote_request(request: &VoteRequest<TypeConfig>) -> Bytes {
    let mut out = start(35);
    put_vote(&mut out, &request.vote);
    put_log_id(&mut out, request.last_log_id.as_ref());
    out.put_u8(u8::from(request.leadership_transfer));
    out.freeze()
}

pub(crate) fn decode_vote_request(bytes: Bytes) -> Decoded<VoteRequest<TypeConfig>> {
    decode(bytes, |reader| {
        let mut request = VoteRequest::new(reader.vote()?, reader.log_id()?);
        request.leadership_transfer = reader.flag("leadership_transfer")?;
        Ok(request)
    })
}

pub(crate) fn encode_vote_answer(answer: &VoteResponse<TypeConfig>) -> Bytes {
    let mut out = start(35);
    put_vote(&mut out, &answer.vote);
    out.put_u8(u8::from(answer.vote_granted));
    put_log_id(&mut out, answer.last_log_id.as_ref());
    out.freeze()
}

pub(crate) fn decode_vote_answer(bytes: Bytes) -> Decoded<VoteResponse<TypeConfig>> {
    decode(bytes, |reader| {
        let vote = reader.vote()?;
        let granted = reader.flag("granted")?;
        Ok(VoteResponse::new(vote, reader.log_id()?, granted))
    })
}

pub(crate) fn encode_append(request: &AppendEntriesRequest<TypeConfig>) -> Bytes {
    let bodies: usize = request
        .entries
        .iter()
        .map(|entry| 20 + entry.payload.body().len())
        .sum();
    let mut out = start(54 + bodies);
    put_vote(&mut out, &request.vote);
    put_log_id(&mut out, request.prev_log_id.as_ref());
    put_log_id(&mut out, request.leader_commit.as_ref());
    out.put_u32_le(length(request.entries.len()));
    for entry in &request.entries {
        put_log_id(&mut out, Some(&entry.log_id));
        encoding::put_bytes(&mut out, entry.payload.body());
    }
    out.freeze()
}

/// Decodes an append request; the bodies are slices of `bytes`.
pub(crate) fn decode_append(bytes: Bytes) -> Decoded<AppendEntriesRequest<TypeConfig>> {
    decode(bytes, |reader| {
        let vote = reader.vote()?;
        let prev_log_id = reader.log_id()?;
        let leader_commit = reader.log_id()?;
        let count = reader.u32()?;
        let previous = index_of(prev_log_id.as_ref());
        let mut next = previous.checked_add(1).ok_or(DecodeError::Field {
            field: "previous log index",
            value: previous,
        })?;
        // A count can lie; the bytes that are there cannot.
        let mut entries = Vec::with_capacity((count as usize).min(reader.remaining() / 20));
        for _ in 0..count {
            let (index, term) = (reader.u64()?, reader.u64()?);
            if index != next {
                return Err(DecodeError::Field {
                    field: "entry index",
                    value: index,
                });
            }
            next = index.checked_add(1).ok_or(DecodeError::Field {
                field: "entry index",
                value: index,
            })?;
            let payload = Payload::decode(reader.bytes()?)?;
            let log_id = raft_log_id(index, term).expect("an index after another is not 0");
            entries.push(Entry { log_id, payload });
        }
        Ok(AppendEntriesRequest {
            vote,
            prev_log_id,
            entries,
            leader_commit,
        })
    })
}

pub(crate) fn encode_append_answer(answer: &StreamAppendResult<TypeConfig>) -> Bytes {
    let mut out = start(19);
    match answer {
        Ok(matching) => {
            out.put_u8(0);
            put_log_id(&mut out, matching.as_ref());
        }
        Err(StreamAppendError::Conflict(log_id)) => {
            out.put_u8(1);
            put_log_id(&mut out, Some(log_id));
        }
        Err(StreamAppendError::HigherVote(vote)) => {
            out.put_u8(2);
            put_vote(&mut out, vote);
        }
    }
    out.freeze()
}

pub(crate) fn decode_append_answer(bytes: Bytes) -> Decoded<StreamAppendResult<TypeConfig>> {
    decode(bytes, |reader| match reader.u8()? {
        0 => Ok(Ok(reader.log_id()?)),
        1 => match reader.log_id()? {
            Some(log_id) => Ok(Err(StreamAppendError::Conflict(log_id))),
            None => Err(DecodeError::Field {
                field: "conflict index",
                value: 0,
            }),
        },
        2 => Ok(Err(StreamAppendError::HigherVote(reader.vote()?))),
        tag => Err(DecodeError::Field {
            field: "append answer",
            value: tag.into(),
        }),
    })
}

pub(crate) fn encode_transfer(request: &TransferLeaderRequest<TypeConfig>) -> Bytes {
    let mut out = start(42);
    put_vote(&mut out, request.from_leader());
    out.put_u64_le(*request.to_node_id());
    put_log_id(&mut out, request.last_log_id());
    out.freeze()
}

pub(crate) fn decode_transfer(bytes: Bytes) -> Decoded<TransferLeaderRequest<TypeConfig>> {
    decode(bytes, |reader| {
        let (from, to) = (reader.vote()?, reader.u64()?);
        Ok(TransferLeaderRequest::new(from, to, reader.log_id()?))
    })
}

pub(crate) fn encode_transfer_answer(answer: &TransferLeaderResponse<TypeConfig>) -> Bytes {
    let mut out = start(36);
    match answer {
        Ok(()) => out.put_u8(0),
        Err(TransferLeaderError::VoteChanged { expected, actual }) => {
            out.put_u8(1);
            put_vote(&mut out, expected);
            put_vote(&mut out, actual);
        }
        Err(TransferLeaderError::LogNotFlushed { expected, actual }) => {
            out.put_u8(2);
            put_log_id(&mut out, expected.as_ref());
            put_log_id(&mut out, actual.as_ref());
        }
    }
    out.freeze()
}

pub(crate) fn decode_transfer_answer(bytes: Bytes) -> Decoded<TransferLeaderResponse<TypeConfig>> {
    decode(bytes, |reader| match reader.u8()? {
        0 => Ok(Ok(())),
        1 => {
            let (expected, actual) = (reader.vote()?, reader.vote()?);
            Ok(Err(TransferLeaderError::VoteChanged { expected, actual }))
        }
        2 => {
            let (expected, actual) = (reader.log_id()?, reader.log_id()?);
            Ok(Err(TransferLeaderError::LogNotFlushed { expected, actual }))
        }
        tag => Err(DecodeError::Field {
            field: "transfer answer",
            value: tag.into(),
        }),
    })
}

pub(crate) fn encode_snapshot_header(vote: &Vote, meta: &SnapshotMeta) -> Bytes {
    let membership = encode_stored_membership(&meta.last_membership);
    let mut out = start(34 + membership.len());
    put_vote(&mut out, vote);
    put_log_id(&mut out, meta.last_log_id.as_ref());
    out.put_slice(&membership);
    out.freeze()
}

pub(crate) fn decode_snapshot_header(bytes: Bytes) -> Decoded<(Vote, SnapshotMeta)> {
    decode(bytes, |reader| {
        let (vote, last_log_id) = (reader.vote()?, reader.log_id()?);
        // openraft panics at a snapshot from the future of its sender.
        let term = term_of(last_log_id.as_ref());
        if term > vote.leader_id.term {
            return Err(DecodeError::Field {
                field: "term of the snapshot",
                value: term,
            });
        }
        let last_membership = encoding::decode_stored_membership(&reader.rest())?;
        Ok((
            vote,
            SnapshotMeta {
                last_log_id,
                last_membership,
            },
        ))
    })
}

pub(crate) fn encode_snapshot_answer(answer: &SnapshotResponse<TypeConfig>) -> Bytes {
    let mut out = start(18);
    put_vote(&mut out, &answer.vote);
    out.freeze()
}

pub(crate) fn decode_snapshot_answer(bytes: Bytes) -> Decoded<SnapshotResponse<TypeConfig>> {
    decode(bytes, |reader| Ok(SnapshotResponse::new(reader.vote()?)))
}

pub(crate) fn encode_read_index() -> Bytes {
    start(1).freeze()
}

pub(crate) fn decode_read_index(bytes: Bytes) -> Decoded<()> {
    decode(bytes, |_| Ok(()))
}

pub(crate) fn encode_read_index_answer(answer: ReadIndexAnswer) -> Bytes {
    let mut out = start(10);
    match answer {
        ReadIndexAnswer::Index(index) => {
            out.put_u8(0);
            out.put_u64_le(index);
        }
        ReadIndexAnswer::NotLeader => out.put_u8(1),
        ReadIndexAnswer::NoQuorum => out.put_u8(2),
    }
    out.freeze()
}

pub(crate) fn decode_read_index_answer(bytes: Bytes) -> Decoded<ReadIndexAnswer> {
    decode(bytes, |reader| match reader.u8()? {
        0 => Ok(ReadIndexAnswer::Index(reader.u64()?)),
        1 => Ok(ReadIndexAnswer::NotLeader),
        2 => Ok(ReadIndexAnswer::NoQuorum),
        tag => Err(DecodeError::Field {
            field: "read-index answer",
            value: tag.into(),
        }),
    })
}

/// `body` is that of an entry of commands.
pub(crate) fn encode_propose(body: &Bytes) -> Bytes {
    let mut out = start(1 + body.len());
    out.put_slice(body);
    out.freeze()
}

/// Decodes a propose request to the body of an entry, which is checked to be one of commands.
pub(crate) fn decode_propose(bytes: Bytes) -> Decoded<Bytes> {
    decode(bytes, |reader| {
        let body = reader.rest();
        match encoding::decode_body(&body)? {
            encoding::Body::Commands(_) => Ok(body),
            encoding::Body::Blank | encoding::Body::Membership { .. } => Err(DecodeError::Field {
                field: "kind of a proposal",
                value: body[1].into(),
            }),
        }
    })
}

pub(crate) fn encode_propose_answer(outcome: &Result<(), ProposeError>) -> Bytes {
    let mut out = start(10);
    match outcome {
        Ok(()) => out.put_u8(0),
        Err(ProposeError::NotLeader { leader }) => {
            out.put_u8(1);
            out.put_u64_le(leader.unwrap_or(0));
        }
        Err(ProposeError::NoQuorum) => out.put_u8(2),
        Err(ProposeError::Overloaded) => out.put_u8(3),
        Err(ProposeError::LeadershipLost | ProposeError::NoAnswer) => out.put_u8(4),
        Err(ProposeError::Stopped) => out.put_u8(5),
    }
    out.freeze()
}

pub(crate) fn decode_propose_answer(bytes: Bytes) -> Decoded<Result<(), ProposeError>> {
    decode(bytes, |reader| match reader.u8()? {
        0 => Ok(Ok(())),
        1 => {
            let leader = Some(reader.u64()?).filter(|leader| *leader != 0);
            Ok(Err(ProposeError::NotLeader { leader }))
        }
        2 => Ok(Err(ProposeError::NoQuorum)),
        3 => Ok(Err(ProposeError::Overloaded)),
        4 => Ok(Err(ProposeError::LeadershipLost)),
        5 => Ok(Err(ProposeError::Stopped)),
        tag => Err(DecodeError::Field {
            field: "propose answer",
            value: tag.into(),
        }),
    })
}

/// Decodes an append request, for fuzzing.
pub fn check_append(bytes: Bytes) -> Result<(), DecodeError> {
    decode_append(bytes).map(drop)
}

/// Decodes every other message in turn, for fuzzing; says whether any of them fits.
pub fn check_message(bytes: Bytes) -> bool {
    decode_vote_request(bytes.clone()).is_ok()
        | decode_vote_answer(bytes.clone()).is_ok()
        | decode_append_answer(bytes.clone()).is_ok()
        | decode_transfer(bytes.clone()).is_ok()
        | decode_transfer_answer(bytes.clone()).is_ok()
        | decode_snapshot_header(bytes.clone()).is_ok()
        | decode_snapshot_answer(bytes.clone()).is_ok()
        | decode_read_index_answer(bytes.clone()).is_ok()
        | decode_propose(bytes.clone()).is_ok()
        | decode_propose_answer(bytes).is_ok()
}

fn start(capacity: usize) -> BytesMut {
    let mut out = BytesMut::with_capacity(capacity);
    out.put_u8(VERSION);
    out
}

fn decode<T>(bytes: Bytes, fields: impl FnOnce(&mut Reader) -> Decoded<T>) -> Decoded<T> {
    let mut reader = Reader::new(bytes);
    reader.version()?;
    let message = fields(&mut reader)?;
    reader.end()?;
    Ok(message)
}

#[cfg(test)]
mod tests;
