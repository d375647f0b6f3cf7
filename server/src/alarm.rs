//! Raised alarms: NOSPACE and CORRUPT, per member, part of the replicated state.
//!
//! Stored in the alarm keyspace under the marshalled `AlarmMember`, as in etcd's bucket. The value says whether the quota
//! is the cause: only such an alarm is cleared without being asked for.

use std::collections::BTreeMap;

use bytes::Bytes;
use kv_mvcc::backend::{Keyspace, Op};
use kv_proto::etcdserverpb::{AlarmMember, AlarmType};
use parking_lot::RwLock;
use prost::Message;

/// What is stored with an alarm that a full quota raised; with others, nothing.
const QUOTA: &[u8] = b"quota";

/// Why an alarm is raised.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Cause {
    /// A request asked for it: an operator, or a member that found damage or a full disk.
    Asked,
    /// The member's database is as large as its quota.
    Quota,
}

/// The alarms of all members; changed by the apply loop only.
#[derive(Default)]
pub(crate) struct Alarms {
    /// `(type, member)`.
    raised: RwLock<BTreeMap<(i32, u64), Cause>>,
}

impl Alarms {
    /// Takes over the alarms that are stored, and no others.
    pub(crate) fn restore(
        &self,
        stored: impl IntoIterator<Item = (Bytes, Bytes)>,
    ) -> Result<(), prost::DecodeError> {
        let mut raised = BTreeMap::new();
        for (key, value) in stored {
            let alarm = AlarmMember::decode(key)?;
            let cause = match value == QUOTA {
                true => Cause::Quota,
                false => Cause::Asked,
            };
            raised.insert((alarm.alarm, alarm.member_id), cause);
        }
        *self.raised.write() = raised;
        Ok(())
    }

    /// Raised alarms of type `kind`, all types for `NONE`, ordered by type and member.
    pub(crate) fn get(&self, kind: i32) -> Vec<AlarmMember> {
        let all = kind == AlarmType::None as i32;
        let raised = self.raised.read();
        let wanted = raised.keys().filter(|(alarm, _)| all || *alarm == kind);
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

    /// Why `member_id` has raised `kind`, if it has.
    pub(crate) fn cause(&self, member_id: u64, kind: AlarmType) -> Option<Cause> {
        self.raised.read().get(&(kind as i32, member_id)).copied()
    }

    /// Raises an alarm; the alarm, and what to store if that is news. One that was asked for stays so.
    pub(crate) fn activate(
        &self,
        member_id: u64,
        alarm: i32,
        cause: Cause,
    ) -> (AlarmMember, Option<Op>) {
        let member = AlarmMember { member_id, alarm };
        let mut raised = self.raised.write();
        let known = raised.get(&(alarm, member_id)).copied();
        if known == Some(cause) || known == Some(Cause::Asked) {
            return (member, None);
        }
        raised.insert((alarm, member_id), cause);
        let value = match cause {
            Cause::Asked => Bytes::new(),
            Cause::Quota => Bytes::from_static(QUOTA),
        };
        let op = Op::Put(Keyspace::Alarm, member.encode_to_vec().into(), value);
        (member, Some(op))
    }

    /// Clears an alarm; `None` if it was not raised.
    pub(crate) fn deactivate(&self, member_id: u64, alarm: i32) -> Option<(AlarmMember, Op)> {
        self.raised.write().remove(&(alarm, member_id))?;
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
        let asked = |member, kind| alarms.activate(member, kind, Cause::Asked).1;
        assert!(asked(7, no_space as i32).is_some());
        assert!(asked(7, no_space as i32).is_none());
        asked(8, AlarmType::Corrupt as i32);
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
        for cause in [Cause::Asked, Cause::Quota] {
            let (member, op) = Alarms::default().activate(9, 1, cause);
            let Some(Op::Put(_, key, value)) = op else {
                panic!("nothing to store")
            };
            let other = Alarms::default();
            other.activate(10, 1, cause);
            other.restore([(key, value)]).unwrap();
            assert_eq!(other.get(0), [member]);
            assert_eq!(other.cause(9, AlarmType::Nospace), Some(cause));
        }
    }

    #[test]
    fn alarm_that_is_asked_for_is_the_quotas_no_more() {
        let alarms = Alarms::default();
        alarms.activate(9, 1, Cause::Quota);
        assert!(alarms.activate(9, 1, Cause::Asked).1.is_some());
        assert!(alarms.activate(9, 1, Cause::Quota).1.is_none());
        assert_eq!(alarms.cause(9, AlarmType::Nospace), Some(Cause::Asked));
        assert_eq!(alarms.cause(9, AlarmType::Corrupt), None);
    }
}
