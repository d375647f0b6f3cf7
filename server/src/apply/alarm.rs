//! Alarms as entries; listing them is one too, so that the answer is agreed.

use kv_mvcc::backend::Op;
use kv_proto::commandpb::QuotaAlarm;
use kv_proto::etcdserverpb::alarm_request::AlarmAction;
use kv_proto::etcdserverpb::{AlarmRequest, AlarmResponse, AlarmType};

use super::{Applier, Outcome, Response};
use crate::alarm::Cause;

impl Applier {
    pub(super) fn alarm(&mut self, request: AlarmRequest, mut extra: Vec<Op>) -> Outcome {
        let alarms = match AlarmAction::try_from(request.action) {
            Ok(AlarmAction::Get) => self.alarms.get(request.alarm),
            Ok(AlarmAction::Activate) if request.alarm != AlarmType::None as i32 => {
                let (alarm, op) =
                    self.alarms
                        .activate(request.member_id, request.alarm, Cause::Asked);
                extra.extend(op);
                vec![alarm]
            }
            Ok(AlarmAction::Deactivate) => {
                match self.alarms.deactivate(request.member_id, request.alarm) {
                    Some((alarm, op)) => {
                        extra.push(op);
                        vec![alarm]
                    }
                    None => Vec::new(),
                }
            }
            Ok(AlarmAction::Activate) | Err(_) => Vec::new(),
        };
        self.store.write(self.mark(extra)).commit();
        Ok(Response::Alarm(AlarmResponse {
            header: None,
            alarms,
        }))
    }

    pub(super) fn quota_alarm(&mut self, request: QuotaAlarm, mut extra: Vec<Op>) -> Outcome {
        let (member, kind) = (request.member_id, AlarmType::Nospace);
        if request.is_over {
            let (_, op) = self.alarms.activate(member, kind as i32, Cause::Quota);
            extra.extend(op);
        } else if self.alarms.cause(member, kind) == Some(Cause::Quota) {
            let cleared = self.alarms.deactivate(member, kind as i32);
            extra.extend(cleared.map(|(_, op)| op));
        }
        self.store.write(self.mark(extra)).commit();
        Ok(Response::Done)
    }
}
