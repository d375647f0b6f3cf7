//! Users, roles and tokens as entries. Whether a caller may have them applied was checked before.

use kv_mvcc::backend::Op;
use kv_proto::command::AuthChange;
use kv_proto::commandpb::Authenticate;

use super::{Applier, Outcome, Response};

impl Applier {
    /// Changes users, roles, or whether auth is enabled.
    pub(super) fn auth_change(&mut self, change: &AuthChange, mut extra: Vec<Op>) -> Outcome {
        let changed = self.auth.apply(change);
        if let Ok(ops) = &changed {
            extra.extend(ops.iter().cloned());
        }
        self.store.write(self.mark(extra)).commit();
        changed.map(|_| Response::Done)
    }

    /// Gives a user a token that every member takes.
    pub(super) fn authenticate(&mut self, request: &Authenticate, extra: Vec<Op>) -> Outcome {
        self.store.write(self.mark(extra)).commit();
        let index = self.entry_index();
        let token = self
            .auth
            .apply_authenticate(&request.name, &request.simple_token, index)?;
        Ok(Response::Authenticated {
            token,
            revision: self.auth.revision(),
        })
    }
}
