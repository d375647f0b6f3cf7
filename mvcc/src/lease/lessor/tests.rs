//! The lessor's rules one by one, then against a model that keeps everything in plain maps.

use std::collections::BTreeMap;
use std::task::Poll;

use proptest::prelude::*;

use super::*;

const SECOND: Duration = Duration::from_secs(1);

fn at(secs: u64) -> Duration {
    Duration::from_secs(secs)
}

fn key(name: &str) -> Bytes {
    Bytes::copy_from_slice(name.as_bytes())
}

fn primary() -> Lessor {
    let lessor = Lessor::new(LessorOptions::default());
    lessor.promote(at(0), at(0));
    lessor
}

fn renewed(ttl_secs: i64) -> Renewal {
    Renewal::Renewed {
        ttl_secs,
        checkpointed: false,
    }
}

#[test]
fn grant_checks_id_and_ttl() {
    let lessor = primary();
    assert!(matches!(
        lessor.grant(0, 5, at(0)),
        Err(Error::LeaseNotFound { id: 0 })
    ));
    assert!(matches!(
        lessor.grant(1, TTL_SECS_MAX + 1, at(0)),
        Err(Error::LeaseTtlTooLarge { .. })
    ));
    for (id, ttl, effective) in [
        (1, -3, 2),
        (2, 0, 2),
        (3, 2, 2),
        (-4, TTL_SECS_MAX, TTL_SECS_MAX),
    ] {
        assert_eq!(lessor.grant(id, ttl, at(0)).unwrap().ttl_secs, effective);
    }
    assert!(matches!(
        lessor.grant(-4, 9, at(0)),
        Err(Error::LeaseExists { id: -4 })
    ));
}

#[test]
fn lease_expires_at_its_ttl_and_not_before() {
    let lessor = primary();
    lessor.grant(7, 10, at(100)).unwrap();
    assert!(
        lessor
            .expired(at(110) - Duration::from_nanos(1), 9)
            .is_empty()
    );
    assert_eq!(lessor.expired(at(110), 9), [7]);
}

#[test]
fn unrevoked_lease_is_named_again_after_three_seconds() {
    let lessor = primary();
    lessor.grant(7, 10, at(0)).unwrap();
    assert_eq!(lessor.expired(at(10), 9), [7]);
    assert!(lessor.expired(at(12), 9).is_empty());
    assert_eq!(lessor.expired(at(13), 9), [7]);
}

#[test]
fn renewal_counts_from_now() {
    let lessor = primary();
    lessor.grant(7, 10, at(0)).unwrap();
    assert_eq!(lessor.renew(7, at(9)), renewed(10));
    assert!(lessor.expired(at(18), 9).is_empty());
    assert_eq!(lessor.expired(at(19), 9), [7]);
}

/// A promotion may give more than the time to live; a renewal then moves the deadline to an earlier time,
/// for which the queue had no entry.
#[test]
fn renewal_after_promotion_counts_from_now_too() {
    let lessor = primary();
    lessor.grant(7, 10, at(0)).unwrap();
    lessor.promote(at(0), at(5));
    assert_eq!(lessor.renew(7, at(1)), renewed(10));
    assert_eq!(lessor.expired(at(11), 9), [7]);
    assert!(lessor.expired(at(13), 9).is_empty());
}

#[test]
fn late_renewal_does_not_revive() {
    let lessor = primary();
    lessor.grant(7, 10, at(0)).unwrap();
    assert_eq!(lessor.renew(7, at(10)), Renewal::Expired);
    assert_eq!(lessor.renew(8, at(10)), Renewal::NotFound);
    lessor.demote();
    assert_eq!(lessor.renew(7, at(10)), Renewal::NotPrimary);
}

#[test]
fn expired_lease_with_many_keys_counts_as_many() {
    let lessor = primary();
    for (id, ttl, keys) in [(1, 5, 3), (2, 6, 4), (3, 7, 1), (4, 8, 20), (5, 9, 0)] {
        lessor.grant(id, ttl, at(0)).unwrap();
        for key in 0..keys {
            let key = Bytes::from(format!("{id}-{key}"));
            lessor.attach(id, &key).unwrap();
        }
    }
    assert_eq!(lessor.expired(at(10), 6), [1]);
    assert_eq!(lessor.expired(at(10), 6), [2, 3]);
    assert_eq!(lessor.expired(at(10), 6), [4], "at least one");
    assert_eq!(lessor.expired(at(10), 6), [5]);
    assert!(lessor.expired(at(10), 6).is_empty());
}

#[test]
fn expired_is_bounded_takes_the_longest_overdue_and_sorts_ids() {
    let lessor = primary();
    for (id, ttl) in [(9, 5), (1, 7), (5, 6), (3, 30)] {
        lessor.grant(id, ttl, at(0)).unwrap();
    }
    assert_eq!(lessor.expired(at(10), 2), [5, 9]);
    assert_eq!(lessor.expired(at(10), 2), [1]);
}

#[test]
fn revoke_returns_the_keys_in_order_and_frees_them() {
    let lessor = primary();
    let granted = lessor.grant(7, 10, at(0)).unwrap();
    for name in ["c", "a", "b"] {
        lessor.attach(7, &key(name)).unwrap();
    }
    let revoked = lessor.revoke(7).unwrap();
    assert_eq!(revoked.keys, ["a", "b", "c"].map(key));
    assert_eq!(lessor.lease_of(b"a"), None);
    assert!(matches!(
        lessor.revoke(7),
        Err(Error::LeaseNotFound { id: 7 })
    ));
    let storage_key = Bytes::from_static(&[0, 0, 0, 0, 0, 0, 0, 7]);
    assert_eq!(revoked.op, Op::Delete(Keyspace::Lease, storage_key.clone()));
    assert_eq!(
        granted.op,
        Op::Put(
            Keyspace::Lease,
            storage_key,
            Bytes::from_static(&[8, 7, 16, 10])
        )
    );
}

#[test]
fn key_moves_to_the_lease_attached_last() {
    let lessor = primary();
    lessor.grant(1, 10, at(0)).unwrap();
    lessor.grant(2, 10, at(0)).unwrap();
    lessor.attach(1, &key("k")).unwrap();
    lessor.attach(2, &key("k")).unwrap();
    assert!(matches!(
        lessor.attach(3, &key("k")),
        Err(Error::LeaseNotFound { id: 3 })
    ));
    assert_eq!(lessor.lease_of(b"k"), Some(2));
    assert_eq!(lessor.revoke(1).unwrap().keys, Vec::<Bytes>::new());
    lessor.detach(b"k");
    assert_eq!(lessor.revoke(2).unwrap().keys, Vec::<Bytes>::new());
}

#[test]
fn promotion_gives_the_full_time_and_the_extension() {
    let lessor = primary();
    lessor.grant(7, 10, at(0)).unwrap();
    lessor.demote();
    assert!(lessor.expired(at(1000), 9).is_empty());
    lessor.promote(at(1000), at(1));
    assert_eq!(
        lessor
            .time_to_live(7, at(1000), WithKeys::No)
            .unwrap()
            .remaining_secs,
        11
    );
    assert!(lessor.expired(at(1010), 9).is_empty());
    assert_eq!(lessor.expired(at(1011), 9), [7]);
}

#[test]
fn promotion_spreads_a_pile_of_expiries_and_never_shortens() {
    let lessor = Lessor::new(LessorOptions::default());
    for id in 1..=3000 {
        lessor.grant(id, 10, at(0)).unwrap();
    }
    lessor.promote(at(0), at(0));
    assert_eq!(
        lessor
            .expired(at(10) - Duration::from_nanos(1), 10_000)
            .len(),
        0
    );
    // 750 each second; those not revoked come up again only after 3 s.
    let per_second: Vec<_> = (10..13)
        .map(|s| lessor.expired(at(s), 10_000).len())
        .collect();
    assert_eq!(per_second, [750, 750, 750]);
}

#[test]
fn time_to_live_counts_down_past_zero() {
    let lessor = primary();
    lessor.grant(7, 10, at(0)).unwrap();
    lessor.attach(7, &key("k")).unwrap();
    let remaining = |now| {
        lessor
            .time_to_live(7, now, WithKeys::No)
            .unwrap()
            .remaining_secs
    };
    assert_eq!(remaining(at(0) + SECOND / 2), 9);
    assert_eq!(remaining(at(10) + SECOND / 2), 0);
    assert_eq!(remaining(at(12)), -2);
    assert_eq!(
        lessor.time_to_live(7, at(0), WithKeys::Yes).unwrap().keys,
        [key("k")]
    );
    assert_eq!(lessor.time_to_live(8, at(0), WithKeys::Yes), None);
}

#[test]
fn leases_are_listed_by_expiry() {
    let lessor = primary();
    for (id, ttl) in [(1, 30), (2, 10), (3, 20), (-4, 20)] {
        lessor.grant(id, ttl, at(0)).unwrap();
    }
    assert_eq!(lessor.leases(), [2, -4, 3, 1]);
}

#[test]
fn checkpoints_come_each_interval_and_survive_a_new_primary() {
    let options = LessorOptions {
        checkpoints: Checkpoints::On,
        ..LessorOptions::default()
    };
    let lessor = Lessor::new(options);
    lessor.promote(at(0), at(0));
    lessor.grant(1, 1000, at(0)).unwrap();
    lessor.grant(2, 300, at(0)).unwrap();
    assert!(lessor.checkpoints_due(at(299), 10).is_empty());
    assert_eq!(lessor.checkpoints_due(at(300), 10), [(1, 700)]);
    let op = lessor.checkpoint(1, 700).unwrap();
    assert_eq!(lessor.checkpoints_due(at(600), 10), [(1, 400)]);

    let Op::Put(_, key, value) = op else {
        panic!("a checkpoint is stored")
    };
    let next = Lessor::new(options);
    next.restore(&key, &value).unwrap();
    next.promote(at(50), at(0));
    assert!(next.expired(at(749), 10).is_empty());
    // Until the log has forgotten the checkpoint, every renewal is told of it: the next leader knows nothing else.
    for now in [748, 749] {
        assert_eq!(
            next.renew(1, at(now)),
            Renewal::Renewed {
                ttl_secs: 1000,
                checkpointed: true
            }
        );
    }
    next.checkpoint(1, 0).unwrap();
    assert_eq!(next.renew(1, at(750)), renewed(1000));
    assert!(next.expired(at(1749), 10).is_empty());
    assert_eq!(next.expired(at(1750), 10), [1]);
    assert_eq!(next.checkpoint(9, 1), None);
}

#[test]
fn damaged_record_is_refused() {
    let lessor = Lessor::new(LessorOptions::default());
    let Op::Put(_, _, value) = put_op(7, 10, 0) else {
        panic!("a grant is stored")
    };
    assert!(matches!(
        lessor.restore(&8u64.to_be_bytes(), &value),
        Err(Error::Damage { .. })
    ));
    assert!(matches!(
        lessor.restore(&7u64.to_be_bytes(), b"\xff"),
        Err(Error::Damage { .. })
    ));
    assert!(lessor.is_empty());
}

#[tokio::test]
async fn waiting_for_a_revoke_ends_with_it_or_with_the_primary() {
    let lessor = primary();
    for id in [1, 2] {
        lessor.grant(id, 10, at(0)).unwrap();
    }
    let mut first = Box::pin(lessor.revoked(1));
    let mut second = Box::pin(lessor.revoked(2));
    assert_eq!(poll(&mut first), Poll::Pending);
    assert_eq!(poll(&mut second), Poll::Pending);
    lessor.revoke(1).unwrap();
    first.await;
    assert_eq!(poll(&mut second), Poll::Pending);
    lessor.demote();
    second.await;
}

fn poll<F: Future + Unpin>(future: &mut F) -> Poll<F::Output> {
    let mut context = std::task::Context::from_waker(std::task::Waker::noop());
    std::pin::Pin::new(future).poll(&mut context)
}

#[test]
fn stale_entries_of_revoked_leases_do_not_pile_up() {
    let lessor = primary();
    for id in 1..=20_000 {
        lessor.grant(id, TTL_SECS_MAX, at(0)).unwrap();
        lessor.revoke(id).unwrap();
    }
    assert!(lessor.state.read().expiry.len() <= 1100);
}

/// What a lease is, without any of the lessor's structures.
#[derive(Clone, Debug)]
struct ModelLease {
    ttl: i64,
    remaining: i64,
    deadline: Option<Duration>,
    reported: Option<Duration>,
}

#[derive(Clone, Debug)]
enum Call {
    Grant(i64, i64),
    Revoke(i64),
    Renew(i64),
    Attach(i64, u8),
    Detach(u8),
    Expired(usize),
    Checkpoint(i64, i64),
    Promote(u64),
    Demote,
    Wait(u64),
    Reload,
}

fn calls() -> impl Strategy<Value = Call> {
    let id = -3i64..4;
    prop_oneof![
        3 => (id.clone(), -1i64..12).prop_map(|(id, ttl)| Call::Grant(id, ttl)),
        2 => id.clone().prop_map(Call::Revoke),
        4 => id.clone().prop_map(Call::Renew),
        4 => (id.clone(), 0u8..5).prop_map(|(id, key)| Call::Attach(id, key)),
        2 => (0u8..5).prop_map(Call::Detach),
        4 => (1usize..9).prop_map(Call::Expired),
        1 => (id, 0i64..6).prop_map(|(id, remaining)| Call::Checkpoint(id, remaining)),
        1 => (0u64..3).prop_map(Call::Promote),
        1 => Just(Call::Demote),
        5 => (0u64..2500).prop_map(Call::Wait),
        1 => Just(Call::Reload),
    ]
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(400))]
    #[test]
    fn lessor_does_what_the_model_does(calls in proptest::collection::vec(calls(), 1..80)) {
        let mut lessor = Lessor::new(LessorOptions::default());
        let mut model: BTreeMap<i64, ModelLease> = BTreeMap::new();
        let mut bound: BTreeMap<Bytes, i64> = BTreeMap::new();
        let mut stored: BTreeMap<Bytes, Bytes> = BTreeMap::new();
        let (mut now, mut is_primary) = (at(1000), false);
        let full = |l: &ModelLease| at(if l.remaining > 0 { l.remaining } else { l.ttl } as u64);
        for call in calls {
            let mut op = None;
            match call {
                Call::Grant(id, ttl) => {
                    let granted = lessor.grant(id, ttl, now);
                    let fresh = id != 0 && !model.contains_key(&id);
                    prop_assert_eq!(granted.is_ok(), fresh);
                    if let Ok(granted) = granted {
                        let ttl = ttl.max(2);
                        prop_assert_eq!(granted.ttl_secs, ttl);
                        let deadline = is_primary.then(|| now + at(ttl as u64));
                        model.insert(id, ModelLease { ttl, remaining: 0, deadline, reported: None });
                        op = Some(granted.op);
                    }
                }
                Call::Revoke(id) => {
                    let revoked = lessor.revoke(id);
                    prop_assert_eq!(revoked.is_ok(), model.remove(&id).is_some());
                    if let Ok(revoked) = revoked {
                        let keys: Vec<_> =
                            bound.iter().filter(|(_, l)| **l == id).map(|(k, _)| k.clone()).collect();
                        bound.retain(|_, l| *l != id);
                        prop_assert_eq!(revoked.keys, keys);
                        op = Some(revoked.op);
                    }
                }
                Call::Renew(id) => {
                    let expect = match model.get_mut(&id) {
                        _ if !is_primary => Renewal::NotPrimary,
                        None => Renewal::NotFound,
                        Some(l) if l.deadline.unwrap() <= now => Renewal::Expired,
                        Some(l) => {
                            let checkpointed = l.remaining > 0;
                            l.deadline = Some(now + at(l.ttl as u64));
                            Renewal::Renewed { ttl_secs: l.ttl, checkpointed }
                        }
                    };
                    prop_assert_eq!(lessor.renew(id, now), expect);
                }
                Call::Attach(id, k) => {
                    let key = Bytes::from(vec![k]);
                    prop_assert_eq!(lessor.attach(id, &key).is_ok(), model.contains_key(&id));
                    if model.contains_key(&id) {
                        bound.insert(key, id);
                    }
                }
                Call::Detach(k) => {
                    lessor.detach(&[k]);
                    bound.remove(&[k][..]);
                }
                Call::Expired(max) => {
                    let mut due: Vec<_> = model
                        .iter()
                        .filter_map(|(&id, l)| Some((l.deadline?, l.reported, id)))
                        .filter(|&(d, r, _)| d <= now && r.is_none_or(|r| r + EXPIRED_RETRY <= now))
                        .map(|(_, _, id)| id)
                        .collect();
                    let found = lessor.expired(now, max);
                    prop_assert!(found.is_sorted());
                    let cost = |id: i64| bound.values().filter(|l| **l == id).count().max(1);
                    let total: usize = found.iter().map(|id| cost(*id)).sum();
                    prop_assert!(total <= max || found.len() == 1);
                    prop_assert_eq!(found.is_empty(), due.is_empty() || max == 0);
                    let left = due.iter().filter(|id| !found.contains(*id));
                    let left = left.map(|id| cost(*id)).max();
                    prop_assert!(left.is_none_or(|cost| total + cost > max), "there was room");
                    due.retain(|id| found.contains(id));
                    prop_assert_eq!(due.len(), found.len());
                    for id in found {
                        model.get_mut(&id).unwrap().reported = Some(now);
                    }
                }
                Call::Checkpoint(id, remaining) => {
                    op = lessor.checkpoint(id, remaining);
                    prop_assert_eq!(op.is_some(), model.contains_key(&id));
                    if let Some(l) = model.get_mut(&id) {
                        l.remaining = remaining;
                    }
                }
                Call::Promote(extend) => {
                    lessor.promote(now, at(extend));
                    is_primary = true;
                    for l in model.values_mut() {
                        l.deadline = Some(now + full(l) + at(extend));
                        l.reported = None;
                    }
                }
                Call::Demote => {
                    lessor.demote();
                    is_primary = false;
                    for l in model.values_mut() {
                        (l.deadline, l.reported) = (None, None);
                    }
                }
                Call::Wait(ms) => now += Duration::from_millis(ms),
                Call::Reload => {
                    lessor = Lessor::new(LessorOptions::default());
                    is_primary = false;
                    for (key, value) in &stored {
                        lessor.restore(key, value).unwrap();
                        let kept = leasepb::Lease::decode(&value[..]).unwrap();
                        let l = model.get_mut(&kept.id).unwrap();
                        l.remaining = kept.remaining_ttl;
                        (l.deadline, l.reported) = (None, None);
                    }
                    for (key, &id) in &bound {
                        lessor.attach(id, key).unwrap();
                    }
                }
            }
            match op {
                Some(Op::Put(_, key, value)) => { stored.insert(key, value); }
                Some(Op::Delete(_, key)) => { stored.remove(&key); }
                None => {}
            }
            prop_assert_eq!(stored.len(), model.len());
            prop_assert_eq!(lessor.len(), model.len());
            let mut order: Vec<_> =
                model.iter().map(|(&id, l)| (l.deadline.unwrap_or(Duration::MAX), id)).collect();
            order.sort();
            prop_assert_eq!(lessor.leases(), order.iter().map(|&(_, id)| id).collect::<Vec<_>>());
            for k in 0u8..5 {
                prop_assert_eq!(lessor.lease_of(&[k]), bound.get(&[k][..]).copied());
            }
            for (&id, l) in &model {
                let info = lessor.time_to_live(id, now, WithKeys::Yes).unwrap();
                prop_assert_eq!(info.granted_ttl_secs, l.ttl);
                let keys: Vec<_> =
                    bound.iter().filter(|(_, owner)| **owner == id).map(|(k, _)| k.clone()).collect();
                prop_assert_eq!(info.keys, keys);
                if let Some(deadline) = l.deadline {
                    let left = deadline.as_nanos() as i128 - now.as_nanos() as i128;
                    prop_assert_eq!(i128::from(info.remaining_secs), left / 1_000_000_000);
                }
            }
        }
    }
}
