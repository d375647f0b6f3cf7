use openraft::entry::RaftEntry;
use proptest::prelude::*;

use super::*;
use crate::encoding::commands_body;
use crate::types::{Commands, LogId, StoredMembership};

fn entry(index: u64, term: u64, command: &'static str) -> Entry {
    let commands = Commands(commands_body(&[Bytes::from_static(command.as_bytes())]));
    Entry::new_normal(raft_log_id(index, term).unwrap(), commands)
}

/// A membership must not be slipped in as a proposal.
#[test]
fn a_proposal_of_anything_but_commands_is_refused() {
    let refused = decode_propose(encode_propose(&encoding::blank_body()));
    assert!(
        matches!(refused, Err(DecodeError::Field { .. })),
        "{refused:?}"
    );
}

/// The append request of version 1; a change here needs a new version.
#[test]
fn an_append_request_has_these_bytes() {
    let request = AppendEntriesRequest {
        vote: Vote::new_committed(3, 7),
        prev_log_id: raft_log_id(4, 2),
        entries: vec![entry(5, 3, "x")],
        leader_commit: None,
    };
    let mut expected = vec![1];
    for field in [3u64, 7] {
        expected.extend(field.to_le_bytes());
    }
    expected.push(1);
    for field in [4u64, 2, 0, 0] {
        expected.extend(field.to_le_bytes());
    }
    expected.extend([1, 0, 0, 0]);
    for field in [5u64, 3] {
        expected.extend(field.to_le_bytes());
    }
    expected.extend([11, 0, 0, 0]);
    expected.extend([1, 1, 1, 0, 0, 0, 1, 0, 0, 0, b'x']);
    assert_eq!(encode_append(&request), expected);
    let decoded = decode_append(expected.into()).unwrap();
    assert_eq!(decoded.vote, request.vote);
    assert_eq!(decoded.prev_log_id, request.prev_log_id);
    assert_eq!(decoded.entries, request.entries);
    assert_eq!(decoded.leader_commit, request.leader_commit);
}

#[test]
fn an_append_request_with_a_hole_is_refused() {
    let request = AppendEntriesRequest {
        vote: Vote::new_committed(3, 7),
        prev_log_id: raft_log_id(4, 2),
        entries: vec![entry(5, 3, "x"), entry(7, 3, "y")],
        leader_commit: None,
    };
    let refused = decode_append(encode_append(&request)).unwrap_err();
    assert_eq!(
        refused,
        DecodeError::Field {
            field: "entry index",
            value: 7
        }
    );
}

/// Found by fuzzing: nothing follows the last index there is, and the sum of the two wrapped around.
#[test]
fn an_append_request_behind_the_last_index_is_refused() {
    let request = AppendEntriesRequest {
        vote: Vote::new_committed(3, 7),
        prev_log_id: raft_log_id(u64::MAX, 2),
        entries: vec![],
        leader_commit: None,
    };
    let refused = decode_append(encode_append(&request)).unwrap_err();
    assert_eq!(
        refused,
        DecodeError::Field {
            field: "previous log index",
            value: u64::MAX
        }
    );
}

#[test]
fn an_unknown_version_is_refused() {
    let mut bytes = BytesMut::from(&encode_read_index()[..]);
    bytes[0] = 2;
    assert_eq!(
        decode_read_index(bytes.freeze()),
        Err(DecodeError::Version { found: 2 })
    );
}

fn any_vote() -> impl Strategy<Value = Vote> {
    (any::<u64>(), any::<u64>(), any::<bool>()).prop_map(
        |(term, node, committed)| match committed {
            true => Vote::new_committed(term, node),
            false => Vote::new(term, node),
        },
    )
}

fn any_log_id() -> impl Strategy<Value = Option<LogId>> {
    (0..u64::MAX, any::<u64>()).prop_map(|(index, term)| raft_log_id(index, term))
}

proptest! {
    #[test]
    fn messages_come_back_as_they_went(
        (vote, other) in (any_vote(), any_vote()),
        (last, actual) in (any_log_id(), any_log_id()),
        (flag, to) in (any::<bool>(), any::<u64>()),
    ) {
        let mut request = VoteRequest::new(vote, last);
        request.leadership_transfer = flag;
        prop_assert_eq!(decode_vote_request(encode_vote_request(&request)), Ok(request));
        let answer = VoteResponse::new(vote, last, flag);
        prop_assert_eq!(decode_vote_answer(encode_vote_answer(&answer)), Ok(answer));

        let mut answers = vec![Ok(last), Err(StreamAppendError::HigherVote(vote))];
        answers.extend(last.map(|last| Err(StreamAppendError::Conflict(last))));
        for answer in answers {
            prop_assert_eq!(decode_append_answer(encode_append_answer(&answer)), Ok(answer));
        }

        let transfer = TransferLeaderRequest::new(vote, to, last);
        prop_assert_eq!(decode_transfer(encode_transfer(&transfer)), Ok(transfer));
        for answer in [
            Ok(()),
            Err(TransferLeaderError::VoteChanged { expected: vote, actual: other }),
            Err(TransferLeaderError::LogNotFlushed { expected: last, actual }),
        ] {
            prop_assert_eq!(decode_transfer_answer(encode_transfer_answer(&answer)), Ok(answer));
        }

        let meta = SnapshotMeta { last_log_id: last, last_membership: StoredMembership::default() };
        let header = decode_snapshot_header(encode_snapshot_header(&vote, &meta));
        if term_of(last.as_ref()) <= vote.leader_id.term {
            prop_assert_eq!(header, Ok((vote, meta)));
        } else {
            prop_assert!(header.is_err(), "a snapshot newer than its sender: {:?}", header);
        }
        let answer = SnapshotResponse::new(vote);
        prop_assert_eq!(decode_snapshot_answer(encode_snapshot_answer(&answer)), Ok(answer));

        for answer in
            [ReadIndexAnswer::Index(to), ReadIndexAnswer::NotLeader, ReadIndexAnswer::NoQuorum]
        {
            let decoded = decode_read_index_answer(encode_read_index_answer(answer));
            prop_assert_eq!(decoded, Ok(answer));
        }
    }

    #[test]
    fn proposals_and_their_answers_decode_to_the_same(
        commands in prop::collection::vec(prop::collection::vec(any::<u8>(), 0..40), 1..5),
        leader in prop::option::of(1u64..),
    ) {
        let commands: Vec<Bytes> = commands.into_iter().map(Bytes::from).collect();
        let body = commands_body(&commands);
        prop_assert_eq!(decode_propose(encode_propose(&body)), Ok(body));
        let refusals = [
            ProposeError::NotLeader { leader },
            ProposeError::NoQuorum,
            ProposeError::Overloaded,
            ProposeError::LeadershipLost,
            ProposeError::Stopped,
        ];
        for outcome in refusals.into_iter().map(Err).chain([Ok(())]) {
            prop_assert_eq!(decode_propose_answer(encode_propose_answer(&outcome)), Ok(outcome));
        }
    }

    #[test]
    fn any_bytes_decode_or_are_refused_without_a_panic(
        bytes in prop::collection::vec(any::<u8>(), 0..120),
    ) {
        let mut message = vec![VERSION];
        message.extend(bytes);
        let _ = check_append(message.clone().into());
        let _ = check_message(message.into());
    }
}
