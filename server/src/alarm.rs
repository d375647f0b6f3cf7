//! Raised alarms: NOSPACE and CORRUPT, per member, part of the replicated state.
//!
//! Stored in the alarm keyspace under the marshalled `AlarmMember`, as in etcd's bucket.

use std::collections::BTreeSet;

use bytes::Bytes;
use kv_mvcc::backend::{Keyspace, Op};
use kv_proto::etcdserverpb::{AlarmMember, AlarmType};
use parking_lot::RwLock;
use prost::Message;

/// The alarms of all members; changed by the apply loop only.
#[derive(Default)]
pub(crate) struct Alarms {
    /// `(type, member)`.
    raised: RwLock<BTreeSet<(i32, u64)>>,
}

impl Alarms {
    /// Takes over the alarms stored under `keys`, and no others.
    pub(crate) fn restore(
        &self,
        keys: impl IntoIterator<Item = Bytes>,
    ) -> Result<(), prost::DecodeError> {
        let mut raised = BTreeSet::new();
        for key in keys {
            let alarm = AlarmMember::decode(key)?;
            raised.insert((alarm.alarm, alarm.member_id));
        }
        *self.raised.write() = raised;
        Ok(())
    }

    /// Raised alarms of type `kind`, all types for `NONE`, ordered by type and member.
    pub(crate) fn get(&self, kind: i32) -> Vec<AlarmMember> {
        let all = kind == AlarmType::None as i32;
        let raised = self.raised.read();
        let wanted = raised.iter().filter(|(alarm, _)| all || *alarm == kind);
        wanted
            .map(|&(alarm, member_id)| AlarmMember { member_id, alarm })
            .collect()
    }

    /// Whether any member raised `kind`.
    pub(crate) fn is_raised(&self, kind: AlarmType) -> bool {
        let kind = kind as i32;
        self.raised
            .read()
            .range((kind, 0)..=(kind, u64::MAX))
            .next()
            .is_some()
    }

    /// Raises an alarm; `Some` with the alarm and what to store. Raising it again changes nothing.
    pub(crate) fn activate(&self, member_id: u64, alarm: i32) -> (AlarmMember, Option<Op>) {
        let member = AlarmMember { member_id, alarm };
        let new = self.raised.write().insert((alarm, member_id));
        let op = new.then(|| Op::Put(Keyspace::Alarm, member.encode_to_vec().into(), Bytes::new()));
        (member, op)
    }

    /// Clears an alarm; `None` if it was not raised.
    pub(crate) fn deactivate(&self, member_id: u64, alarm: i32) -> Option<(AlarmMember, Op)> {
        if !self.raised.write().remove(&(alarm, member_id)) {
            return None;
        }
        let member = AlarmMember { member_id, alarm };
        let op = Op::Delete(Keyspace::Alarm, member.encode_to_vec().into());
        Some((member, op))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn alarms_are_listed_by_type_and_cleared_one_by_one() {
        let alarms = Alarms::default();
        let no_space = AlarmType::Nospace;
        assert!(alarms.activate(7, no_space as i32).1.is_some());
        assert!(alarms.activate(7, no_space as i32).1.is_none());
        alarms.activate(8, AlarmType::Corrupt as i32);
        assert!(alarms.is_raised(no_space));
        assert_eq!(alarms.get(0).len(), 2);
        assert_eq!(
            alarms.get(no_space as i32),
            [AlarmMember {
                member_id: 7,
                alarm: 1
            }]
        );
        assert!(alarms.deactivate(7, no_space as i32).is_some());
        assert!(alarms.deactivate(7, no_space as i32).is_none());
        assert!(!alarms.is_raised(no_space));
    }

    #[test]
    fn what_was_stored_is_restored() {
        let (member, op) = Alarms::default().activate(9, 1);
        let Some(Op::Put(_, key, _)) = op else {
            panic!("nothing to store")
        };
        let other = Alarms::default();
        other.activate(10, 1);
        other.restore([key]).unwrap();
        assert_eq!(other.get(0), [member]);
    }
}
