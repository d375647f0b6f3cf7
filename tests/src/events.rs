//! The history that a store kept, and whether watches and answers agree with it.
//!
//! [`StoreHistory`] is rebuilt after the fact from a member's events and its keys. What a watch must be, compared with it:
//! ordered by revision, each event once, none missing, all of one revision in one response, going on behind the last
//! revision when it is opened again elsewhere, and with the value before each change.

use std::collections::{BTreeMap, HashMap};

use anyhow::{Result, bail, ensure};
use kv_proto::mvccpb;

use crate::history::{Action, ActionResult, KeyValue, Op, Outcome, Record};

/// One change of one key.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Event {
    /// When.
    pub revision: i64,
    /// The key.
    pub key: String,
    /// What it is since; nothing if it was deleted.
    pub kv: Option<KeyValue>,
    /// What it was before.
    pub prev_kv: Option<KeyValue>,
}

/// The responses of one watch with events, over all streams it took.
pub type Responses = Vec<Vec<Event>>;

/// All changes of the keys under a prefix after a moment at which there were none.
#[derive(Debug)]
pub struct StoreHistory {
    events: Vec<Event>,
    /// Where the events of a revision begin.
    begins: BTreeMap<i64, usize>,
}

impl Event {
    /// From the wire; an event without a key is none.
    pub fn from_proto(event: &mvccpb::Event) -> Option<Event> {
        let kv = event.kv.as_ref()?;
        let is_delete = event.r#type == mvccpb::event::EventType::Delete as i32;
        Some(Event {
            revision: kv.mod_revision,
            key: text(&kv.key),
            kv: (!is_delete).then(|| key_value(kv)),
            prev_kv: event.prev_kv.as_ref().map(key_value),
        })
    }
}

/// A key as answers show it.
pub fn key_value(kv: &mvccpb::KeyValue) -> KeyValue {
    KeyValue {
        value: text(&kv.value),
        version: kv.version,
        mod_revision: kv.mod_revision,
        create_revision: kv.create_revision,
        lease: kv.lease,
    }
}

fn text(bytes: &[u8]) -> String {
    String::from_utf8_lossy(bytes).into_owned()
}

impl StoreHistory {
    /// From one watch of everything, opened after the fact, and the keys that were there at its end.
    ///
    /// Errors: changes that do not follow from each other, or do not lead to `last`.
    pub fn rebuild(
        responses: Responses,
        last: &BTreeMap<String, KeyValue>,
    ) -> Result<StoreHistory> {
        check_order(&responses)?;
        let mut keys: BTreeMap<String, KeyValue> = BTreeMap::new();
        let (mut events, mut begins) = (Vec::new(), BTreeMap::new());
        for event in responses.into_iter().flatten() {
            let before = keys.get(&event.key);
            ensure!(
                event.prev_kv.as_ref() == before,
                "the store's history has {event:?} where the key was {before:?}"
            );
            if let Some(kv) = &event.kv {
                let version = before.map_or(0, |kv| kv.version) + 1;
                let created = before.map_or(event.revision, |kv| kv.create_revision);
                ensure!(
                    (kv.version, kv.create_revision) == (version, created),
                    "the store's history has {event:?} where the key was {before:?}"
                );
                keys.insert(event.key.clone(), kv.clone());
            } else {
                ensure!(before.is_some(), "{event:?} deletes nothing");
                keys.remove(&event.key);
            }
            begins.entry(event.revision).or_insert(events.len());
            events.push(event);
        }
        ensure!(
            &keys == last,
            "the store's history leads to {keys:?}, the store has {last:?}"
        );
        Ok(StoreHistory { events, begins })
    }

    /// Number of changes.
    pub fn len(&self) -> usize {
        self.events.len()
    }

    /// Whether nothing changed.
    pub fn is_empty(&self) -> bool {
        self.events.is_empty()
    }

    /// Whether another member kept the same history.
    pub fn is_equal_to(&self, other: &StoreHistory) -> bool {
        self.events == other.events
    }

    fn of(&self, revision: i64) -> &[Event] {
        let mut from_here = self.begins.range(revision..);
        match from_here.next() {
            Some((found, begin)) if *found == revision => {
                let end = from_here.next().map_or(self.events.len(), |(_, end)| *end);
                &self.events[*begin..end]
            }
            _ => &[],
        }
    }

    /// Compares what a watch of everything from the beginning was told; it may have ended before the last events.
    pub fn check_watch(&self, responses: &Responses) -> Result<()> {
        check_order(responses)?;
        let told: Vec<&Event> = responses.iter().flatten().collect();
        for (told, kept) in told.iter().zip(&self.events) {
            ensure!(
                *told == kept,
                "the watch was told {told:?}, the store kept {kept:?}"
            );
        }
        ensure!(
            told.len() <= self.len(),
            "the watch was told {:?}, the store kept nothing more",
            told.last()
        );
        // A revision that was begun must be whole, which check_order alone cannot see of the last one.
        let next = self.events.get(told.len());
        if let (Some(last), Some(next)) = (told.last(), next) {
            ensure!(
                last.revision < next.revision,
                "the watch was not told {next:?}"
            );
        }
        Ok(())
    }

    /// Compares what clients were told: acknowledged writes are there, once, at their revision.
    pub fn check_writes(&self, records: &[Record]) -> Result<()> {
        let mut puts: HashMap<(&str, &str), i64> = HashMap::new();
        for event in &self.events {
            if let Some(kv) = &event.kv {
                // Every value is written by one request.
                let other = puts.insert((&event.key, &kv.value), event.revision);
                ensure!(other.is_none(), "{event:?} was stored at {other:?} too");
            }
        }
        for record in records {
            let Outcome::Done {
                revision,
                succeeded,
                results,
            } = &record.outcome
            else {
                continue;
            };
            let actions = match &record.op {
                Op::Single { action } => std::slice::from_ref(action),
                Op::Txn { success, .. } if *succeeded => success,
                Op::Txn { failure, .. } => failure,
                Op::Grant { .. } | Op::Revoke { .. } | Op::Expire { .. } => continue,
            };
            let kept = self.of(*revision);
            for (action, result) in actions.iter().zip(results) {
                let is_kept = match (action, result) {
                    (Action::Put { key, value, .. }, _) => kept.iter().any(|event| {
                        event.key == *key && event.kv.as_ref().is_some_and(|kv| kv.value == *value)
                    }),
                    (Action::Delete { key }, ActionResult::Delete { deleted: 1 }) => kept
                        .iter()
                        .any(|event| event.key == *key && event.kv.is_none()),
                    _ => true,
                };
                ensure!(
                    is_kept,
                    "an acknowledged write is lost: {record:?}, the store kept {kept:?}"
                );
            }
        }
        Ok(())
    }

    /// Compares reads without a quorum: they may be old, but are what the store was at the revision they name.
    pub fn check_serializable(&self, reads: &[SerializableRead]) -> Result<()> {
        let mut changes: HashMap<&str, Vec<&Event>> = HashMap::new();
        for event in &self.events {
            changes.entry(&event.key).or_default().push(event);
        }
        for read in reads {
            let of_key = changes
                .get(read.key.as_str())
                .map_or(&[][..], Vec::as_slice);
            let count = of_key.partition_point(|event| event.revision <= read.revision);
            let kept = count.checked_sub(1).and_then(|at| of_key[at].kv.as_ref());
            ensure!(
                read.kv.as_ref() == kept,
                "{read:?}, but the store had {kept:?}"
            );
        }
        Ok(())
    }
}

/// A read from one member's own store.
#[derive(Clone, Debug)]
pub struct SerializableRead {
    /// The member.
    pub member: usize,
    /// The key.
    pub key: String,
    /// The revision that the answer names.
    pub revision: i64,
    /// What it was.
    pub kv: Option<KeyValue>,
}

/// Revisions rise from response to response, and no key changes twice at one revision.
fn check_order(responses: &Responses) -> Result<()> {
    let mut last = 0;
    for response in responses {
        let mut within: Vec<&Event> = Vec::new();
        for event in response {
            if within
                .last()
                .is_some_and(|before| before.revision < event.revision)
            {
                within.clear();
            }
            let before = within.last().map_or(last, |before| before.revision);
            if event.revision < before {
                bail!("{event:?} came after revision {before}");
            }
            if within.is_empty() && event.revision == last {
                bail!("revision {last} was told in two pieces: {event:?} came later");
            }
            if within.iter().any(|other| other.key == event.key) {
                bail!("{event:?} came twice");
            }
            within.push(event);
        }
        last = response.last().map_or(last, |event| event.revision);
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn kv(value: &str, version: i64, modified: i64, created: i64) -> KeyValue {
        KeyValue {
            value: value.into(),
            version,
            mod_revision: modified,
            create_revision: created,
            lease: 0,
        }
    }

    fn put(key: &str, now: KeyValue, before: Option<KeyValue>) -> Event {
        Event {
            revision: now.mod_revision,
            key: key.into(),
            kv: Some(now),
            prev_kv: before,
        }
    }

    /// a, then b and c at once, then a deleted, then a again.
    fn changes() -> Responses {
        let a = kv("1", 1, 2, 2);
        vec![
            vec![put("a", a.clone(), None)],
            vec![
                put("b", kv("2", 1, 3, 3), None),
                put("c", kv("3", 1, 3, 3), None),
            ],
            vec![Event {
                revision: 4,
                key: "a".into(),
                kv: None,
                prev_kv: Some(a),
            }],
            vec![put("a", kv("4", 1, 5, 5), None)],
        ]
    }

    fn last() -> BTreeMap<String, KeyValue> {
        [
            ("a", kv("4", 1, 5, 5)),
            ("b", kv("2", 1, 3, 3)),
            ("c", kv("3", 1, 3, 3)),
        ]
        .map(|(key, kv)| (key.to_owned(), kv))
        .into()
    }

    fn history() -> StoreHistory {
        StoreHistory::rebuild(changes(), &last()).unwrap()
    }

    fn refusal(responses: Responses) -> String {
        history().check_watch(&responses).unwrap_err().to_string()
    }

    #[test]
    fn watch_that_was_told_everything_or_a_beginning_passes() {
        history().check_watch(&changes()).unwrap();
        history().check_watch(&changes()[..2].to_vec()).unwrap();
        // Several revisions may share a response.
        let one = vec![changes().into_iter().flatten().collect()];
        history().check_watch(&one).unwrap();
    }

    #[test]
    fn missing_event_is_noticed() {
        let mut told = changes();
        told.remove(2);
        assert!(refusal(told).contains("the store kept"));
    }

    #[test]
    fn doubled_event_is_noticed() {
        let mut told = changes();
        told.insert(1, told[0].clone());
        assert!(refusal(told).contains("two pieces"));
        let mut told = changes();
        let again = told[0][0].clone();
        told[0].push(again);
        assert!(refusal(told).contains("twice"));
    }

    #[test]
    fn reordered_events_are_noticed() {
        let mut told = changes();
        told.swap(0, 1);
        assert!(refusal(told).contains("came after"));
    }

    #[test]
    fn revision_in_two_pieces_is_noticed() {
        let mut told = changes();
        let second = told[1].split_off(1);
        told.insert(2, second);
        assert!(refusal(told).contains("two pieces"));
        let mut told = changes();
        told.truncate(2);
        told[1].truncate(1);
        assert!(refusal(told).contains("was not told"));
    }

    #[test]
    fn wrong_value_before_a_change_is_noticed() {
        let mut told = changes();
        told[2][0].prev_kv = None;
        assert!(refusal(told.clone()).contains("the store kept"));
        assert!(
            StoreHistory::rebuild(told, &last()).is_err(),
            "nor may the store say so"
        );
    }

    #[test]
    fn store_that_does_not_hold_what_its_events_lead_to_is_noticed() {
        let mut lost = last();
        lost.remove("b");
        assert!(StoreHistory::rebuild(changes(), &lost).is_err());
    }

    fn written(key: &str, value: &str, revision: i64) -> Record {
        Record {
            client: 1,
            call: 0,
            returned: Some(1),
            op: Op::put(key, value),
            outcome: Outcome::Done {
                revision,
                succeeded: true,
                results: vec![ActionResult::Put],
            },
        }
    }

    #[test]
    fn acknowledged_write_that_is_lost_is_noticed() {
        history().check_writes(&[written("b", "2", 3)]).unwrap();
        let lost = history().check_writes(&[written("b", "9", 4)]).unwrap_err();
        assert!(lost.to_string().contains("is lost"), "{lost}");
    }

    #[test]
    fn value_that_was_stored_twice_is_noticed() {
        let mut twice = changes();
        let b = kv("2", 1, 3, 3);
        twice.push(vec![put("b", kv("2", 2, 6, 3), Some(b))]);
        let mut last = last();
        last.insert("b".into(), kv("2", 2, 6, 3));
        let history = StoreHistory::rebuild(twice, &last).unwrap();
        assert!(history.check_writes(&[]).is_err());
    }

    #[test]
    fn serializable_read_is_compared_with_the_revision_it_names() {
        let read = |revision, kv| SerializableRead {
            member: 0,
            key: "a".into(),
            revision,
            kv,
        };
        let old = read(3, Some(kv("1", 1, 2, 2)));
        let (deleted, never) = (read(4, None), read(1, None));
        history()
            .check_serializable(&[old, deleted, never])
            .unwrap();
        let wrong = read(4, Some(kv("1", 1, 2, 2)));
        assert!(history().check_serializable(&[wrong]).is_err());
    }
}
