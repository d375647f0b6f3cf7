use std::collections::BTreeMap as Model;

use proptest::prelude::*;

use super::*;

fn key(n: u16) -> Vec<u8> {
    format!("/registry/{n:05}").into_bytes()
}

fn walked(index: &Index, span: Span<'_>) -> Vec<Vec<u8>> {
    let mut keys = Vec::new();
    index.walk(span, |key, _| {
        keys.push(key.to_vec());
        ControlFlow::Continue(())
    });
    keys
}

fn count(index: &Index, span: Span<'_>, at: i64, steps_max: usize) -> usize {
    let (mut total, mut next) = index.count(span, at, steps_max);
    while let Some(start) = next {
        let (more, after) = index.count(
            Span {
                start: &start,
                end: span.end,
            },
            at,
            steps_max,
        );
        total += more;
        next = after;
    }
    total
}

#[derive(Clone, Debug)]
enum Step {
    Put(u16),
    Delete(u16),
    /// Compact this many revisions below the newest, looking at about this many keys at a time.
    Compact(i64, usize),
}

fn steps() -> impl Strategy<Value = Vec<Step>> {
    let step = prop_oneof![
        8 => (0..600u16).prop_map(Step::Put),
        3 => (0..600u16).prop_map(Step::Delete),
        1 => (0..200i64, 1..300usize).prop_map(|(back, keys)| Step::Compact(back, keys)),
    ];
    prop::collection::vec(step, 1..1500)
}

fn apply(index: &mut Index, model: &mut Model<Vec<u8>, KeyIndex>, step: Step, main: i64) {
    let revision = Revision::new(main, 0);
    match step {
        Step::Put(n) => {
            index.apply(&key(n), revision, Change::Put);
            match model.get_mut(&key(n)) {
                Some(revisions) => revisions.put(revision),
                None => drop(model.insert(key(n), KeyIndex::first(revision, Change::Put, main, 1))),
            }
        }
        Step::Delete(n) => {
            if model
                .get_mut(&key(n))
                .is_some_and(|revisions| revisions.tombstone(revision))
            {
                index.apply(&key(n), revision, Change::Tombstone);
            }
        }
        Step::Compact(back, keys) => {
            let (mut dropped, mut expected) = (Vec::new(), Vec::new());
            let mut from: Box<[u8]> = Box::default();
            while let Some(next) = index.compact(&from, main - back, keys, &mut dropped) {
                from = next;
            }
            model.retain(|_, revisions| revisions.compact(main - back, &mut expected));
            let flat =
                |dropped: &[Dropped]| dropped.iter().flat_map(Dropped::iter).collect::<Vec<_>>();
            assert_eq!(flat(&dropped), flat(&expected));
        }
    }
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(48))]

    #[test]
    fn behaves_as_a_plain_map(steps in steps(), (a, b) in (0..600u16, 0..600u16), back in 0..400i64) {
        let (mut index, mut model, mut main) = (Index::new(), Model::new(), 1);
        for step in steps {
            main += 1;
            apply(&mut index, &mut model, step, main);
        }
        index.check_invariants();

        let (start, end) = (key(a), key(b));
        let at = (main - back).max(0);
        for span in [Span::ALL, Span { start: &start, end: Some(&end) }, Span { start: &start, end: None }] {
            let inside = |key: &[u8]| key >= span.start && span.end.is_none_or(|end| key < end);
            let expected: Vec<_> = model.keys().filter(|key| inside(key)).cloned().collect();
            prop_assert_eq!(index.estimate(span, usize::MAX), expected.len());
            prop_assert_eq!(walked(&index, span), expected);
            for at in [at, main] {
                let expected = model.iter().filter(|(key, revisions)| inside(key) && revisions.get(at).is_some());
                prop_assert_eq!(count(&index, span, at, 50), expected.count());
            }
        }
        for n in 0..600 {
            prop_assert_eq!(index.get(&key(n)), model.get(&key(n)));
        }
    }
}

#[test]
fn a_key_with_one_revision_stays_within_its_budget() {
    const KEYS: u64 = 100_000;
    let mut index = Index::new();
    let mut key_bytes = 0;
    for n in 0..KEYS {
        // A permutation: neither ascending nor clustered.
        let key = format!("/registry/pods/default/{:08}", n * 7_919 % KEYS);
        key_bytes += key.len();
        index.apply(key.as_bytes(), Revision::new(2 + n as i64, 0), Change::Put);
    }
    index.check_invariants();

    let per_key = (index.heap_bytes() - key_bytes) / KEYS as usize;

    assert!(per_key <= 56, "{per_key} bytes a key beside the key");
}
