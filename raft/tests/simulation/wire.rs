//! Reads the messages between members, by the drawing in `raft/src/wire.rs`: what members say to
//! each other is what the invariants are about, and the drawing is all that this checker believes.

use bytes::{Buf, Bytes};

/// A vote as messages carry it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) struct Vote {
    pub(crate) term: u64,
    pub(crate) candidate: u64,
    pub(crate) committed: bool,
}

/// Index and term.
pub(crate) type LogId = (u64, u64);

/// An append request.
pub(crate) struct Append {
    pub(crate) vote: Vote,
    pub(crate) previous: LogId,
    pub(crate) commit: LogId,
    pub(crate) entries: Vec<(LogId, Bytes)>,
}

/// The answer to an append request.
pub(crate) enum AppendAnswer {
    Matches(LogId),
    Conflicts(LogId),
    HigherVote(Vote),
}

pub(crate) fn vote_of(mut bytes: Bytes) -> Vote {
    bytes.advance(1);
    vote(&mut bytes)
}

/// A vote in the log's stored form.
pub(crate) fn stored_vote(bytes: &Bytes) -> Vote {
    vote_of(bytes.clone())
}

/// Vote and whether it was granted.
pub(crate) fn vote_answer(mut bytes: Bytes) -> (Vote, bool) {
    bytes.advance(1);
    (vote(&mut bytes), bytes.get_u8() == 1)
}

pub(crate) fn append(mut bytes: Bytes) -> Append {
    bytes.advance(1);
    let (vote, previous, commit) = (vote(&mut bytes), log_id(&mut bytes), log_id(&mut bytes));
    let count = bytes.get_u32_le();
    let entries = (0..count).map(|_| {
        let id = log_id(&mut bytes);
        let len = bytes.get_u32_le() as usize;
        (id, bytes.split_to(len))
    });
    let entries = entries.collect();
    Append {
        vote,
        previous,
        commit,
        entries,
    }
}

pub(crate) fn append_answer(mut bytes: Bytes) -> AppendAnswer {
    bytes.advance(1);
    match bytes.get_u8() {
        0 => AppendAnswer::Matches(log_id(&mut bytes)),
        1 => AppendAnswer::Conflicts(log_id(&mut bytes)),
        _ => AppendAnswer::HigherVote(vote(&mut bytes)),
    }
}

/// The voters that an entry body names, if it is a membership.
pub(crate) fn voters_of_body(mut body: Bytes) -> Option<Vec<u64>> {
    body.advance(1);
    if body.get_u8() != 2 {
        return None;
    }
    body.advance(4);
    Some(voters(&mut body))
}

/// The voters in the stored form of a membership.
pub(crate) fn stored_voters(mut stored: Bytes) -> Vec<u64> {
    stored.advance(17);
    voters(&mut stored)
}

fn voters(bytes: &mut Bytes) -> Vec<u64> {
    let configs = bytes.get_u16_le();
    assert_eq!(configs, 1, "one configuration at a time");
    let count = bytes.get_u16_le();
    (0..count).map(|_| bytes.get_u64_le()).collect()
}

fn vote(bytes: &mut Bytes) -> Vote {
    Vote {
        term: bytes.get_u64_le(),
        candidate: bytes.get_u64_le(),
        committed: bytes.get_u8() == 1,
    }
}

fn log_id(bytes: &mut Bytes) -> LogId {
    (bytes.get_u64_le(), bytes.get_u64_le())
}
