use proptest::prelude::*;

use super::*;

/// Every change of a key, kept for ever; rules applied literally.
#[derive(Default)]
struct Model {
    changes: Vec<(Revision, Change)>,
    compacted: i64,
}

impl Model {
    fn get(&self, at: i64) -> Option<KeyState> {
        let (mut created, mut version, mut modified) = (0, 0, None);
        for (revision, change) in self
            .changes
            .iter()
            .filter(|(revision, _)| revision.main <= at)
        {
            match change {
                Change::Put => {
                    if version == 0 {
                        created = revision.main;
                    }
                    version += 1;
                    modified = Some(*revision);
                }
                Change::Tombstone => (version, modified) = (0, None),
            }
        }
        modified.map(|modified| KeyState {
            modified,
            created,
            version,
        })
    }

    /// What compaction keeps: all above, and the newest at or below unless it is an older tombstone.
    fn kept(&self) -> Vec<(Revision, Change)> {
        let newest = self
            .changes
            .iter()
            .rposition(|(revision, _)| revision.main <= self.compacted);
        let kept = self
            .changes
            .iter()
            .enumerate()
            .filter(|(position, (revision, change))| {
                revision.main > self.compacted
                    || (Some(*position) == newest
                        && (*change == Change::Put || revision.main == self.compacted))
            });
        kept.map(|(_, change)| *change).collect()
    }
}

fn all(index: &KeyIndex) -> Vec<(Revision, Change)> {
    let mut changes = Vec::new();
    index.since(0, i64::MAX, |revision, change| {
        changes.push((revision, change))
    });
    changes
}

fn put_put_del_put() -> KeyIndex {
    let mut index = KeyIndex::first(Revision::new(2, 0), Change::Put, 2, 1);
    index.put(Revision::new(3, 1));
    assert!(index.tombstone(Revision::new(5, 0)));
    index.put(Revision::new(8, 0));
    index
}

#[test]
fn get_finds_the_generation_of_each_revision() {
    let index = put_put_del_put();
    let state = |main, sub, created, version| {
        Some(KeyState {
            modified: Revision::new(main, sub),
            created,
            version,
        })
    };
    let expected = [
        (1, None),
        (2, state(2, 0, 2, 1)),
        (3, state(3, 1, 2, 2)),
        (4, state(3, 1, 2, 2)),
        (5, None),
        (7, None),
        (8, state(8, 0, 8, 1)),
        (9, state(8, 0, 8, 1)),
    ];
    for (at, state) in expected {
        assert_eq!(index.get(at), state, "at {at}");
    }
}

#[test]
fn compaction_follows_the_table_of_the_module() {
    let put = |main, sub| (Revision::new(main, sub), Change::Put);
    let tombstone = (Revision::new(5, 0), Change::Tombstone);
    let table = [
        (1, vec![put(2, 0), put(3, 1), tombstone, put(8, 0)]),
        (3, vec![put(3, 1), tombstone, put(8, 0)]),
        (5, vec![tombstone, put(8, 0)]),
        (6, vec![put(8, 0)]),
        (8, vec![put(8, 0)]),
        (99, vec![put(8, 0)]),
    ];
    for (at, left) in table {
        let mut index = put_put_del_put();
        let mut dropped = Vec::new();

        let stays = index.compact(at, &mut dropped);

        assert!(stays, "compact({at})");
        assert_eq!(all(&index), left, "compact({at})");
        let mut dropped: Vec<_> = dropped.iter().flat_map(Dropped::iter).collect();
        dropped.extend(left);
        assert_eq!(
            dropped,
            all(&put_put_del_put()),
            "compact({at}) reports each dropped revision once"
        );
        index.check_invariants();
    }
}

#[test]
fn a_deleted_key_leaves_the_index_above_its_tombstone() {
    let mut index = KeyIndex::first(Revision::new(2, 0), Change::Put, 2, 1);
    index.tombstone(Revision::new(5, 0));

    assert!(index.compact(5, &mut Vec::new()));
    assert!(index.keeps_tombstone(5));
    assert!(!index.compact(6, &mut Vec::new()));
}

#[test]
fn version_and_create_revision_survive_compaction_and_restore() {
    let mut index = KeyIndex::first(Revision::new(2, 0), Change::Put, 2, 1);
    for main in 3..10 {
        index.put(Revision::new(main, 0));
    }
    index.compact(9, &mut Vec::new());
    assert!(matches!(index, KeyIndex::One { .. }), "{index:?}");
    index.put(Revision::new(12, 0));

    let expected = KeyState {
        modified: Revision::new(12, 0),
        created: 2,
        version: 9,
    };
    assert_eq!(index.latest(), Some(expected));

    let mut restored = KeyIndex::first(Revision::new(9, 0), Change::Put, 2, 8);
    restored.put(Revision::new(12, 0));
    assert_eq!(restored, index);
}

#[test]
fn a_tombstone_of_a_deleted_key_is_refused() {
    let mut index = KeyIndex::first(Revision::new(5, 0), Change::Tombstone, 0, 0);

    assert!(!index.tombstone(Revision::new(6, 0)));
    assert_eq!(all(&index), [(Revision::new(5, 0), Change::Tombstone)]);
}

/// Story: delete of everything and put of the same key in one transaction is allowed, and the put must win.
#[test]
fn delete_and_put_in_one_transaction_keep_the_put_through_compaction() {
    let mut index = KeyIndex::first(Revision::new(2, 0), Change::Put, 2, 1);
    index.tombstone(Revision::new(5, 0));
    index.put(Revision::new(5, 1));

    index.compact(5, &mut Vec::new());

    assert_eq!(all(&index), [(Revision::new(5, 1), Change::Put)]);
    assert_eq!(
        index.latest().map(|state| (state.created, state.version)),
        Some((5, 1))
    );
}

#[test]
fn a_version_beyond_32_bits_stays_exact() {
    let version = i64::from(u32::MAX) + 1;
    let mut index = KeyIndex::first(Revision::new(9, 0), Change::Put, 2, version);
    index.put(Revision::new(10, 0));
    index.compact(10, &mut Vec::new());

    assert_eq!(index.latest().map(|state| state.version), Some(version + 1));
}

#[derive(Clone, Debug)]
enum Step {
    /// Changes of one transaction: true is a put.
    Txn(Vec<bool>),
    Skip,
    /// Compact this many revisions below the newest.
    Compact(i64),
}

fn steps() -> impl Strategy<Value = Vec<Step>> {
    let step = prop_oneof![
        6 => prop::collection::vec(any::<bool>(), 1..4).prop_map(Step::Txn),
        2 => Just(Step::Skip),
        1 => (0..6i64).prop_map(Step::Compact),
    ];
    prop::collection::vec(step, 1..40)
}

proptest! {
    #[test]
    fn behaves_as_the_naive_model(steps in steps()) {
        let mut model = Model { compacted: -1, ..Model::default() };
        let mut index: Option<KeyIndex> = None;
        let mut main = 1;
        for step in steps {
            match step {
                Step::Skip => main += 1,
                Step::Txn(changes) => {
                    main += 1;
                    for (sub, put) in (0..).zip(changes) {
                        let revision = Revision::new(main, sub);
                        let live = model.get(main).is_some();
                        match (put, &mut index) {
                            (true, Some(index)) => index.put(revision),
                            (true, None) => index = Some(KeyIndex::first(revision, Change::Put, main, 1)),
                            (false, Some(index)) => prop_assert_eq!(index.tombstone(revision), live),
                            (false, None) => {}
                        }
                        match put {
                            true => model.changes.push((revision, Change::Put)),
                            false if live => model.changes.push((revision, Change::Tombstone)),
                            false => {}
                        }
                    }
                }
                Step::Compact(back) => {
                    let at = (main - back).max(model.compacted);
                    let before = index.as_ref().map_or(Vec::new(), all);
                    model.compacted = at;
                    let mut dropped = Vec::new();
                    if let Some(some) = &mut index
                        && !some.compact(at, &mut dropped)
                    {
                        index = None;
                    }
                    let mut dropped: Vec<_> = dropped.iter().flat_map(Dropped::iter).collect();
                    dropped.extend(index.as_ref().map_or(Vec::new(), all));
                    prop_assert_eq!(dropped, before);
                    prop_assert_eq!(index.as_ref().map_or(Vec::new(), all), model.kept());
                }
            }
            if let Some(index) = &index {
                index.check_invariants();
                prop_assert_eq!(index.latest(), model.get(i64::MAX));
                prop_assert_eq!(index.is_live(), model.get(i64::MAX).is_some());
            }
            for at in model.compacted.max(0)..=main {
                prop_assert_eq!(index.as_ref().and_then(|index| index.get(at)), model.get(at), "at {}", at);
                prop_assert_eq!(index.as_ref().and_then(|index| index.keep(at)), model.get(at).map(|state| state.modified));
            }
        }
    }
}
