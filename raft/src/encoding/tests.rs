use std::collections::BTreeSet;

use proptest::prelude::*;

use super::*;
use crate::types::Payload;

fn membership(configs: &[&[u64]], learners: &[u64]) -> Membership {
    let configs = configs
        .iter()
        .map(|ids| ids.iter().copied().collect())
        .collect();
    Membership::new_with_defaults(configs, learners.iter().copied())
}

fn hex(text: &str) -> Bytes {
    let digits: Vec<u8> = text
        .bytes()
        .filter(|byte| !byte.is_ascii_whitespace())
        .collect();
    let byte = |pair: &[u8]| u8::from_str_radix(std::str::from_utf8(pair).unwrap(), 16).unwrap();
    digits.chunks(2).map(byte).collect()
}

/// A stored entry body of this version stays readable for ever: change nothing here.
#[test]
fn bodies_have_these_bytes() {
    let commands = [
        Bytes::from_static(b"ab"),
        Bytes::new(),
        Bytes::from_static(b"c"),
    ];
    let one = membership(&[&[1]], &[]);
    let joint = membership(&[&[1, 2], &[2, 3]], &[4]);
    let fixtures = [
        (blank_body(), "01 00", Body::Blank),
        (
            commands_body(&commands),
            "01 01 03000000 02000000 6162 00000000 01000000 63",
            Body::Commands(commands.to_vec()),
        ),
        (
            membership_body(&one, None),
            "01 02 16000000 0100 0100 0100000000000000 0100 0100000000000000 00",
            Body::Membership {
                membership: one,
                command: None,
            },
        ),
        (
            membership_body(&joint, Some(&commands[0])),
            "01 02 48000000 0200
             0200 0100000000000000 0200000000000000
             0200 0200000000000000 0300000000000000
             0400 0100000000000000 0200000000000000 0300000000000000 0400000000000000
             01 02000000 6162",
            Body::Membership {
                membership: joint,
                command: Some(commands[0].clone()),
            },
        ),
    ];
    for (encoded, stored, body) in fixtures {
        assert_eq!(encoded, hex(stored), "{body:?}");
        assert_eq!(decode_body(&hex(stored)), Ok(body));
    }
}

/// As above, for what lies beside the entries.
#[test]
fn votes_marks_and_memberships_have_these_bytes() {
    let vote = Vote::new_committed(5, 0xabc);
    let stored = "01 0500000000000000 bc0a000000000000 01";
    assert_eq!(encode_vote(&vote), hex(stored));
    assert_eq!(decode_vote(&hex(stored)), Ok(vote));

    let mark = raft_log_id(9, 5);
    let stored = "01 0900000000000000 0500000000000000";
    assert_eq!(encode_committed(mark.as_ref()), hex(stored));
    assert_eq!(decode_committed(&hex(stored)), Ok(mark));
    assert_eq!(decode_committed(&encode_committed(None)), Ok(None));

    let membership = StoredMembership::new(mark, membership(&[&[1]], &[2]));
    let stored = "01 0900000000000000 0500000000000000
                  0100 0100 0100000000000000 0200 0100000000000000 0200000000000000";
    assert_eq!(encode_stored_membership(&membership), hex(stored));
    assert_eq!(decode_stored_membership(&hex(stored)), Ok(membership));
    assert_eq!(
        decode_stored_membership(&Bytes::new()),
        Ok(StoredMembership::default())
    );
}

#[test]
fn what_is_not_a_body_is_refused() {
    let refused = |text: &str| decode_body(&hex(text)).unwrap_err();
    assert_eq!(refused(""), DecodeError::Short { at: 0 });
    assert_eq!(refused("02 00"), DecodeError::Version { found: 2 });
    assert_eq!(
        refused("01 07"),
        DecodeError::Field {
            field: "kind",
            value: 7
        }
    );
    assert_eq!(refused("01 00 00"), DecodeError::Trailing { count: 1 });
    assert_eq!(
        refused("01 01 00000000"),
        DecodeError::Field {
            field: "count",
            value: 0
        }
    );
    assert_eq!(
        refused("01 01 ffffffff 01000000 61"),
        DecodeError::Short { at: 11 }
    );
    assert_eq!(
        refused("01 01 01000000 ffffffff"),
        DecodeError::Short { at: 10 }
    );
    let voter_without_node = "01 02 0e000000 0100 0100 0100000000000000 0000 00";
    assert_eq!(
        refused(voter_without_node),
        DecodeError::Field {
            field: "voter that is no member",
            value: 1
        }
    );
    let descending = "01 02 14000000 0000 0200 0200000000000000 0100000000000000 00";
    assert_eq!(
        refused(descending),
        DecodeError::Field {
            field: "members",
            value: 1
        }
    );
}

#[test]
fn a_membership_keeps_the_command_proposed_with_it() {
    use openraft::entry::RaftPayload;
    let command = Bytes::from_static(b"member add");
    let commands = crate::types::Commands(commands_body(std::slice::from_ref(&command)));
    let change = membership(&[&[1, 2]], &[]);
    let payload = Payload::normal(commands).with_membership(change.clone());
    assert_eq!(payload.get_membership(), Some(change.clone()));
    let body = decode_body(payload.body());
    assert_eq!(
        body,
        Ok(Body::Membership {
            membership: change,
            command: Some(command)
        })
    );
    assert_eq!(Payload::decode(payload.body().clone()), Ok(payload));
}

fn any_membership() -> impl Strategy<Value = Membership> {
    let ids = || prop::collection::btree_set(any::<u64>(), 0..5);
    (prop::collection::vec(ids(), 0..3), ids()).prop_map(
        |(configs, learners): (Vec<BTreeSet<u64>>, _)| {
            Membership::new_with_defaults(configs, learners)
        },
    )
}

fn any_bytes() -> impl Strategy<Value = Bytes> {
    prop::collection::vec(any::<u8>(), 0..40).prop_map(Bytes::from)
}

proptest! {
    #[test]
    fn commands_come_back_as_they_went(commands in prop::collection::vec(any_bytes(), 1..20)) {
        let body = commands_body(&commands);
        prop_assert_eq!(decode_membership_of(&body), Ok(None));
        prop_assert_eq!(decode_body(&body), Ok(Body::Commands(commands)));
    }

    #[test]
    fn memberships_come_back_as_they_went(
        membership in any_membership(),
        command in prop::option::of(any_bytes()),
        index in 0u64..u64::MAX,
        term: u64,
    ) {
        let body = membership_body(&membership, command.as_ref());
        prop_assert_eq!(decode_membership_of(&body), Ok(Some(membership.clone())));
        let decoded = Body::Membership { membership: membership.clone(), command };
        prop_assert_eq!(decode_body(&body), Ok(decoded));
        let stored = StoredMembership::new(raft_log_id(index, term), membership);
        prop_assert_eq!(decode_stored_membership(&encode_stored_membership(&stored)), Ok(stored));
    }

    #[test]
    fn joined_bodies_are_the_body_of_all_their_commands(
        packs in prop::collection::vec(prop::collection::vec(any_bytes(), 1..4), 1..5),
    ) {
        let bodies: Vec<Bytes> = packs.iter().map(|commands| commands_body(commands)).collect();
        prop_assert_eq!(joined_bodies(&bodies), commands_body(&packs.concat()));
    }

    #[test]
    fn a_prefix_of_a_body_is_never_a_body(
        commands in prop::collection::vec(any_bytes(), 1..5),
        membership in any_membership(),
        cut: prop::sample::Index,
    ) {
        for body in [commands_body(&commands), membership_body(&membership, commands.first())] {
            prop_assert!(decode_body(&body.slice(..cut.index(body.len()))).is_err());
        }
    }

    #[test]
    fn any_bytes_decode_or_are_refused_without_a_panic(bytes in any_bytes()) {
        let _ = check_vote(bytes.clone());
        let _ = check_committed(bytes.clone());
        let _ = check_stored_membership(bytes.clone());
        let mut body = BytesMut::from(&[VERSION, bytes.first().map_or(0, |byte| byte % 3)][..]);
        body.extend_from_slice(&bytes);
        let _ = check_body(body.freeze());
    }
}
