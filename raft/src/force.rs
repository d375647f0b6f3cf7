//! A member that lost its cluster for good goes on alone: its log is made to say so, before raft starts.
//!
//! One entry is appended to the log as it is on disk: the membership of this member alone, and the command that
//! explains it to the state machine. It stands in a term of its own, with the vote that the leader of such a term would
//! have left behind; so the log looks like that of a leader which appended the entry and was restarted, and the member
//! elects itself at the start and commits everything.
//!
//! The whole log is kept, entries included that nobody told this member are committed: among them may be writes that
//! the lost members have acknowledged.

use std::collections::BTreeSet;

use bytes::Bytes;
use kv_wal::{EntryMeta, Record, Recovered, Sync, Wal};
use tokio::sync::oneshot;

use crate::encoding::{self, Body};
use crate::error::{Error, Result};
use crate::log_store::READ_BYTES_MAX;
use crate::state_machine::Applied;
use crate::types::{Membership, Vote};

/// Makes `member_id` the only member of its cluster; `applied` is what the state machine contains durably.
///
/// For a member that is not started yet. On return the change is on disk, and `recovered` says what a fresh opening of
/// the log would find. Returns the index of the entry, none if the member is alone already. The other members must
/// never run again with their old folders.
pub async fn force_alone(
    member_id: u64,
    wal: &Wal,
    recovered: &mut Recovered,
    applied: &Applied,
    command: Bytes,
) -> Result<Option<u64>> {
    let alone = Membership::new_with_defaults(
        vec![BTreeSet::from([member_id])],
        BTreeSet::from([member_id]),
    );
    if newest_membership(wal, recovered, applied)?.as_ref() == Some(&alone) {
        return Ok(None);
    }
    let decode = |what| move |source| Error::Decode { what, source };
    let vote = recovered.vote.as_ref().map(encoding::decode_vote);
    let vote_term = vote
        .transpose()
        .map_err(decode("vote"))?
        .map_or(0, |vote| vote.leader_id.term);
    let (last, last_term) = last_entry(recovered, applied);
    let (index, term) = (last + 1, vote_term.max(last_term) + 1);

    let mut records = Vec::new();
    // A state machine ahead of its log, as after an install that was cut short: the log goes on behind it.
    if end_of_log(recovered) < applied.index {
        let (index, term) = (applied.index, applied.term);
        records.push(Record::Purge { index, term });
        recovered.purged = Some((index, term));
        recovered.entries.clear();
    }
    let vote = encoding::encode_vote(&Vote::new_committed(term, member_id));
    recovered.vote = Some(vote.clone());
    records.push(Record::Vote(vote));
    let explained = encoding::membership_body(&alone, Some(&command));
    recovered.entries.push(EntryMeta {
        index,
        term,
        payload_len: encoding::length(explained.len()),
    });
    records.push(Record::Entry {
        index,
        term,
        payload: explained,
    });
    let (done, durable) = oneshot::channel();
    let completion: kv_wal::Completion = Box::new(move |result| drop(done.send(result)));
    wal.append(records, Sync::Yes, Some(completion))?;
    durable.await.map_err(|_| Error::Stopped)??;
    Ok(Some(index))
}

/// Newest index in the log or purged from it.
fn end_of_log(recovered: &Recovered) -> u64 {
    let purged = recovered.purged.map_or(0, |(index, _)| index);
    let last = recovered.entries.last().map_or(0, |entry| entry.index);
    last.max(purged)
}

/// Index and term of the newest entry that log or state machine know.
fn last_entry(recovered: &Recovered, applied: &Applied) -> (u64, u64) {
    let in_log = recovered
        .entries
        .last()
        .map(|entry| (entry.index, entry.term));
    let known = [
        in_log,
        recovered.purged,
        Some((applied.index, applied.term)),
    ];
    known.into_iter().flatten().max().unwrap_or((0, 0))
}

/// The membership that a start would find in force.
fn newest_membership(
    wal: &Wal,
    recovered: &Recovered,
    applied: &Applied,
) -> Result<Option<Membership>> {
    let decode = |what| move |source| Error::Decode { what, source };
    let stored = encoding::decode_stored_membership(&applied.membership)
        .map_err(decode("membership kept by the state machine"))?;
    let mut newest = stored.log_id().map(|_| stored.membership().clone());
    let first = recovered
        .entries
        .first()
        .map_or(u64::MAX, |entry| entry.index);
    let (mut from, end) = (first.max(applied.index + 1), end_of_log(recovered) + 1);
    while from < end {
        let entries = wal.read_entries(from, end, READ_BYTES_MAX)?;
        let Some((read, ..)) = entries.last() else {
            return Err(Error::Log(format!("entry {from} is missing")));
        };
        let next = read + 1;
        for (_, _, body) in entries {
            if let Body::Membership { membership, .. } =
                encoding::decode_body(&body).map_err(decode("entry"))?
            {
                newest = Some(membership);
            }
        }
        from = next;
    }
    Ok(newest)
}

#[cfg(test)]
mod tests;
