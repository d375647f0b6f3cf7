//! Alarms as entries; listing them is one too, so that the answer is agreed.

use kv_mvcc::backend::Op;
use kv_proto::etcdserverpb::alarm_request::AlarmAction;
use kv_proto::etcdserverpb::{AlarmRequest, AlarmResponse, AlarmType};

use super::{Applier, Outcome, Response};

impl Applier {
    pub(super) fn alarm(&mut self, request: AlarmRequest, mut extra: Vec<Op>) -> Outcome {
        let alarms = match AlarmAction::try_from(request.action) {
            Ok(AlarmAction::Get) => self.alarms.get(request.alarm),
            Ok(AlarmAction::Activate) if request.alarm != AlarmType::None as i32 => {
                let (alarm, op) = self.alarms.activate(request.member_id, request.alarm);
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
}
