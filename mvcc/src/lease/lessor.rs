//! Leases: granted, renewed, attached to keys, revoked.
//!
//! What is granted, attached, checkpointed and revoked is decided by the log: apply calls those, and they
//! depend on nothing else. When a lease expires is known only to the *primary* (the leader): it alone keeps
//! deadlines, renews, and proposes to revoke what [`Lessor::expired`] names. Elsewhere every lease lives
//! for ever. Invariants:
//! - a key has at most one lease, and the lease knows the key;
//! - a primary never gives a lease less than its time to live, counted from its last renewal or promotion;
//! - no clock is read here: time comes in as the time since process start.
//!
//! Memory: a lease without keys takes some 90 bytes, and 16 more on the primary; a key some 100.
//! Source: etcd 3.7, lessor.

use std::collections::hash_map::Entry;
use std::collections::{BTreeSet, HashMap};
use std::path::PathBuf;
use std::time::Duration;

use bytes::Bytes;
use kv_proto::leasepb;
use parking_lot::RwLock;
use prost::Message;
use tokio::sync::Notify;

use super::checkpoint::CheckpointSchedule;
use super::expiry_queue::ExpiryQueue;
use crate::backend::{Keyspace, Op};
use crate::{Error, Result};

/// The longest time to live, in seconds. Source: etcd 3.7.
pub const TTL_SECS_MAX: i64 = 9_000_000_000;
const NANOS_PER_SECOND: u64 = 1_000_000_000;
/// A lease reported as expired is reported again after this long, if it is still there.
const EXPIRED_RETRY: Duration = Duration::from_secs(3);
/// After a promotion no more leases than this expire in any second. Source: etcd 3.7, three quarters of the
/// rate at which leases are revoked.
const EXPIRIES_PER_SECOND_MAX: usize = 750;
/// With fewer leases than this a promotion spreads nothing.
const SPREAD_LEASES_MIN: usize = 1000;

/// How a lessor behaves.
#[derive(Clone, Copy, Debug)]
pub struct LessorOptions {
    /// Shorter times to live are raised to this, in seconds; etcd's is 1.5 election timeouts, rounded up.
    pub ttl_secs_min: i64,
    /// Whether the primary asks for checkpoints of long leases.
    pub checkpoints: Checkpoints,
}

impl Default for LessorOptions {
    fn default() -> LessorOptions {
        LessorOptions {
            ttl_secs_min: 2,
            checkpoints: Checkpoints::Off,
        }
    }
}

/// Whether remaining times enter the log. Source: etcd's feature gate LeaseCheckpoint, off by default.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Checkpoints {
    /// A new primary gives each lease its full time.
    Off,
    /// A new primary gives each lease what was left at the last checkpoint.
    On,
}

/// A granted lease.
#[derive(Clone, Debug, PartialEq)]
pub struct Granted {
    /// The time to live in effect, in seconds.
    pub ttl_secs: i64,
    /// What the transaction has to store.
    pub op: Op,
}

/// A revoked lease.
#[derive(Clone, Debug, PartialEq)]
pub struct Revoked {
    /// The keys that were attached, in order; the caller deletes them in one revision.
    pub keys: Vec<Bytes>,
    /// What the transaction has to store.
    pub op: Op,
}

/// The outcome of a renewal.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Renewal {
    /// The lease has its full time again.
    Renewed {
        /// The granted time to live, in seconds.
        ttl_secs: i64,
        /// Whether the lease has a checkpoint, which a `LeaseCheckpoint` of 0 must clear in the log.
        checkpointed: bool,
    },
    /// Past its deadline: it is to be revoked. Await [`Lessor::revoked`], then answer as for none.
    Expired,
    /// There is no such lease.
    NotFound,
    /// This member does not know deadlines.
    NotPrimary,
}

/// What is known of a lease.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct LeaseInfo {
    /// The granted time to live, in seconds.
    pub granted_ttl_secs: i64,
    /// Whole seconds left, towards zero; negative some time after the deadline. Only a primary knows; else
    /// it is about 292 years.
    pub remaining_secs: i64,
    /// The attached keys, if asked for.
    pub keys: Vec<Bytes>,
}

/// Whether keys are wanted too.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum WithKeys {
    /// List them.
    Yes,
    /// Leave them out.
    No,
}

/// The leases of one member; shared by apply, which alone changes what the log decides, and the RPCs.
pub struct Lessor {
    options: LessorOptions,
    state: RwLock<State>,
    /// Told when a lease goes or the member is no longer primary.
    changed: Notify,
}

struct State {
    /// Boxed, since a table that has just grown is half empty.
    leases: HashMap<i64, Box<Lease>>,
    lease_by_key: HashMap<Bytes, i64>,
    primary: bool,
    /// Empty unless primary.
    expiry: ExpiryQueue,
    /// Empty unless primary with checkpoints on.
    checkpoints: CheckpointSchedule,
}

struct Lease {
    ttl_secs: i64,
    /// Time left at the last checkpoint; 0 if there is none.
    remaining_secs: i64,
    deadline: Deadline,
    /// When the lease's only valid entry in the expiry queue is due.
    queued: Deadline,
    keys: Keys,
}

/// Most leases have no key or one.
enum Keys {
    None,
    One(Bytes),
    Many(BTreeSet<Bytes>),
}

/// A point in the caller's time, in nanoseconds.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(super) struct Deadline(u64);

impl Deadline {
    /// The deadline of a lease whose primary is elsewhere.
    const NEVER: Deadline = Deadline(u64::MAX);

    pub(super) fn at(time: Duration) -> Deadline {
        Deadline(u64::try_from(time.as_nanos()).unwrap_or(u64::MAX))
    }

    /// Seconds from `now`, towards zero.
    fn secs_after(self, now: Duration) -> i64 {
        if self == Deadline::NEVER {
            return i64::MAX / NANOS_PER_SECOND as i64;
        }
        let left = i128::from(self.0) - i128::from(Deadline::at(now).0);
        (left / i128::from(NANOS_PER_SECOND)) as i64
    }
}

impl Lessor {
    /// A lessor without leases, not primary.
    pub fn new(options: LessorOptions) -> Lessor {
        Lessor {
            options,
            state: RwLock::new(State {
                leases: HashMap::new(),
                lease_by_key: HashMap::new(),
                primary: false,
                expiry: ExpiryQueue::default(),
                checkpoints: CheckpointSchedule::default(),
            }),
            changed: Notify::new(),
        }
    }

    /// Grants a lease. Only apply calls it.
    ///
    /// `id` is any but 0; a `ttl_secs` below the minimum is raised to it. Nothing but the deadline, which a
    /// primary counts from `now`, depends on `now`.
    pub fn grant(&self, id: i64, ttl_secs: i64, now: Duration) -> Result<Granted> {
        if id == 0 {
            return Err(Error::LeaseNotFound { id });
        }
        if ttl_secs > TTL_SECS_MAX {
            return Err(Error::LeaseTtlTooLarge { ttl: ttl_secs });
        }
        let ttl_secs = ttl_secs.max(self.options.ttl_secs_min);
        let mut state = self.state.write();
        let primary = state.primary;
        let Entry::Vacant(vacant) = state.leases.entry(id) else {
            return Err(Error::LeaseExists { id });
        };
        let lease = vacant.insert(Box::new(Lease::new(ttl_secs, 0)));
        if primary {
            lease.renew(now);
            let deadline = lease.deadline;
            state.expiry.push(deadline, id);
            self.schedule_checkpoint(&mut state, id, ttl_secs, now);
        }
        Ok(Granted {
            ttl_secs,
            op: put_op(id, ttl_secs, 0),
        })
    }

    /// Ends a lease and lets go of its keys. Only apply calls it.
    pub fn revoke(&self, id: i64) -> Result<Revoked> {
        let keys = {
            let mut state = self.state.write();
            let lease = state
                .leases
                .remove(&id)
                .ok_or(Error::LeaseNotFound { id })?;
            let keys = lease.keys.into_sorted();
            for key in &keys {
                state.lease_by_key.remove(key);
            }
            state.checkpoints.forget(id);
            let state = &mut *state;
            if state.expiry.is_bloated(state.leases.len()) {
                state
                    .expiry
                    .rebuild(state.leases.iter().map(|(&id, lease)| (lease.queued, id)));
            }
            keys
        };
        self.changed.notify_waiters();
        Ok(Revoked {
            keys,
            op: Op::Delete(Keyspace::Lease, storage_key(id)),
        })
    }

    /// Gives a lease its full time again, counted from `now`. O(1).
    pub fn renew(&self, id: i64, now: Duration) -> Renewal {
        let mut state = self.state.write();
        if !state.primary {
            return Renewal::NotPrimary;
        }
        let Some(lease) = state.leases.get_mut(&id) else {
            return Renewal::NotFound;
        };
        if lease.deadline <= Deadline::at(now) {
            return Renewal::Expired;
        }
        // Only the log may forget the checkpoint: until it has, the next leader knows it, and so does the next renewal.
        let checkpointed = lease.remaining_secs > 0;
        lease.renew(now);
        let ttl_secs = lease.ttl_secs;
        if lease.deadline < lease.queued {
            // The renewal took back what a promotion had given; the queue's entry would come up too late.
            lease.queued = lease.deadline;
            let deadline = lease.deadline;
            state.expiry.push(deadline, id);
        }
        Renewal::Renewed {
            ttl_secs,
            checkpointed,
        }
    }

    /// Waits until the lease is revoked, or this member is not primary.
    pub async fn revoked(&self, id: i64) {
        loop {
            let changed = self.changed.notified();
            tokio::pin!(changed);
            changed.as_mut().enable();
            {
                let state = self.state.read();
                if !state.primary || !state.leases.contains_key(&id) {
                    return;
                }
            }
            changed.await;
        }
    }

    /// What is known of a lease at `now`; none if it does not exist.
    pub fn time_to_live(&self, id: i64, now: Duration, with_keys: WithKeys) -> Option<LeaseInfo> {
        let state = self.state.read();
        let lease = state.leases.get(&id)?;
        Some(LeaseInfo {
            granted_ttl_secs: lease.ttl_secs,
            remaining_secs: lease.deadline.secs_after(now),
            keys: match with_keys {
                WithKeys::Yes => lease.keys.to_sorted(),
                WithKeys::No => Vec::new(),
            },
        })
    }

    /// Every lease, the one that expires first in front, equal ones by id.
    pub fn leases(&self) -> Vec<i64> {
        let mut leases: Vec<(Deadline, i64)> = self
            .state
            .read()
            .leases
            .iter()
            .map(|(&id, lease)| (lease.deadline, id))
            .collect();
        leases.sort_unstable();
        leases.into_iter().map(|(_, id)| id).collect()
    }

    /// How many leases there are.
    pub fn len(&self) -> usize {
        self.state.read().leases.len()
    }

    /// Whether there is no lease.
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// Whether there is such a lease.
    pub fn exists(&self, id: i64) -> bool {
        self.state.read().leases.contains_key(&id)
    }

    /// Whether this member keeps deadlines.
    pub fn is_primary(&self) -> bool {
        self.state.read().primary
    }

    /// The shortest time to live, in seconds.
    pub fn ttl_secs_min(&self) -> i64 {
        self.options.ttl_secs_min
    }

    /// Binds a key to a lease, and to no other. Only apply calls it.
    ///
    /// `key` is kept: it should not be a slice of a large buffer.
    pub fn attach(&self, id: i64, key: &Bytes) -> Result<()> {
        let mut state = self.state.write();
        if !state.leases.contains_key(&id) {
            return Err(Error::LeaseNotFound { id });
        }
        if let Some(before) = state.lease_by_key.insert(key.clone(), id)
            && before != id
        {
            state.lease_of_key(before).keys.remove(key);
        }
        state.lease_of_key(id).keys.insert(key.clone());
        Ok(())
    }

    /// Frees a key from its lease, if it has one. Only apply calls it.
    pub fn detach(&self, key: &[u8]) {
        let mut state = self.state.write();
        if let Some(id) = state.lease_by_key.remove(key) {
            state.lease_of_key(id).keys.remove(key);
        }
    }

    /// The lease a key is attached to.
    pub fn lease_of(&self, key: &[u8]) -> Option<i64> {
        self.state.read().lease_by_key.get(key).copied()
    }

    /// Leases past their deadline, the longest overdue chosen first; ids ascend.
    ///
    /// At most `max`, where one with more than one key counts once for each, and at least one. None unless primary.
    /// One that is not revoked is named again after 3 s.
    pub fn expired(&self, now: Duration, max: usize) -> Vec<i64> {
        let mut ids = Vec::new();
        let mut cost = 0;
        let state = &mut *self.state.write();
        while cost < max {
            let Some((queued, id)) = state.expiry.pop_due(Deadline::at(now)) else {
                break;
            };
            let Some(lease) = state.leases.get_mut(&id).filter(|l| l.queued == queued) else {
                continue; // An entry of a lease that is gone.
            };
            if lease.deadline <= Deadline::at(now) {
                let keys = lease.keys.len().max(1);
                if cost > 0 && cost + keys > max {
                    state.expiry.push(queued, id);
                    break;
                }
                cost += keys;
                ids.push(id);
                lease.queued = Deadline::at(now + EXPIRED_RETRY);
            } else {
                lease.queued = lease.deadline;
            }
            state.expiry.push(lease.queued, id);
        }
        ids.sort_unstable();
        ids
    }

    /// This member became leader at `now`: every lease gets its time to live (or what its checkpoint left)
    /// plus `extend`, and where more than 750 would expire within a second the later ones get more.
    ///
    /// Costs a sort of all leases.
    pub fn promote(&self, now: Duration, extend: Duration) {
        let state = &mut *self.state.write();
        state.primary = true;
        state.checkpoints.clear();
        let mut order: Vec<(Deadline, i64, &mut Lease)> = Vec::with_capacity(state.leases.len());
        for (&id, lease) in &mut state.leases {
            let deadline = Deadline::at(now + lease.time_left() + extend);
            order.push((deadline, id, &mut **lease));
        }
        order.sort_unstable_by_key(|&(deadline, id, _)| (deadline, id));
        if order.len() >= SPREAD_LEASES_MIN {
            for i in EXPIRIES_PER_SECOND_MAX..order.len() {
                let earliest = order[i - EXPIRIES_PER_SECOND_MAX]
                    .0
                    .0
                    .saturating_add(NANOS_PER_SECOND);
                order[i].0 = order[i].0.max(Deadline(earliest));
            }
        }
        for (deadline, id, lease) in &mut order {
            lease.deadline = *deadline;
            lease.queued = *deadline;
            if self.options.checkpoints == Checkpoints::On {
                state.checkpoints.schedule(*id, lease.ttl_secs, now);
            }
        }
        let entries = order.into_iter().map(|(deadline, id, _)| (deadline, id));
        state.expiry.rebuild(entries);
    }

    /// This member is no longer leader: leases live until a primary says otherwise.
    pub fn demote(&self) {
        {
            let mut state = self.state.write();
            state.primary = false;
            state.expiry = ExpiryQueue::default();
            state.checkpoints.clear();
            for lease in state.leases.values_mut() {
                lease.deadline = Deadline::NEVER;
                lease.queued = Deadline::NEVER;
            }
        }
        self.changed.notify_waiters();
    }

    /// Leases due for a checkpoint, at most `max`, with the whole seconds they have left; ids ascend.
    pub fn checkpoints_due(&self, now: Duration, max: usize) -> Vec<(i64, i64)> {
        let mut due = Vec::new();
        let state = &mut *self.state.write();
        while due.len() < max {
            let Some(id) = state.checkpoints.pop_due(now) else {
                break;
            };
            let Some(lease) = state.leases.get(&id) else {
                continue;
            };
            let (deadline, ttl_secs) = (lease.deadline, lease.ttl_secs);
            if deadline <= Deadline::at(now) {
                continue; // Soon to be revoked.
            }
            let left = deadline.0 - Deadline::at(now).0;
            let remaining_secs = left.div_ceil(NANOS_PER_SECOND) as i64;
            if remaining_secs < ttl_secs {
                due.push((id, remaining_secs));
            }
            self.schedule_checkpoint(state, id, ttl_secs, now);
        }
        due.sort_unstable();
        due
    }

    /// Notes how long a lease still lives, 0 for its full time. Only apply calls it.
    ///
    /// An unknown lease is passed over, as the log may name one that was revoked meanwhile. The caller
    /// stores the answer if the cluster's version knows checkpoints.
    pub fn checkpoint(&self, id: i64, remaining_secs: i64) -> Option<Op> {
        let mut state = self.state.write();
        let lease = state.leases.get_mut(&id)?;
        lease.remaining_secs = remaining_secs;
        Some(put_op(id, lease.ttl_secs, remaining_secs))
    }

    /// Takes in a stored lease at start or after the store was replaced; keys are attached after all leases.
    ///
    /// Errors: [`Error::Damage`] if the record is not a lease.
    pub fn restore(&self, key: &[u8], value: &[u8]) -> Result<()> {
        let damage = |what: String| Error::Damage {
            file: PathBuf::from("keyspace lease"),
            what,
        };
        let stored = leasepb::Lease::decode(value)
            .map_err(|e| damage(format!("record of lease {key:02x?}: {e}")))?;
        if storage_key(stored.id) != key {
            return Err(damage(format!(
                "record of lease {:016x} under key {key:02x?}",
                stored.id
            )));
        }
        let ttl_secs = stored.ttl.max(self.options.ttl_secs_min);
        self.state.write().leases.insert(
            stored.id,
            Box::new(Lease::new(ttl_secs, stored.remaining_ttl)),
        );
        Ok(())
    }

    /// Takes the leases of `other`, whose store replaces this one's; not primary from here on.
    pub(crate) fn replace(&self, other: Lessor) {
        let old = std::mem::replace(&mut *self.state.write(), other.state.into_inner());
        self.changed.notify_waiters();
        // A million leases take a while to free.
        drop(old);
    }

    pub(crate) fn options(&self) -> LessorOptions {
        self.options
    }

    fn schedule_checkpoint(&self, state: &mut State, id: i64, ttl_secs: i64, now: Duration) {
        if self.options.checkpoints == Checkpoints::On {
            state.checkpoints.schedule(id, ttl_secs, now);
        }
    }
}

impl State {
    fn lease_of_key(&mut self, id: i64) -> &mut Lease {
        self.leases
            .get_mut(&id)
            .expect("an attached or listed lease exists")
    }
}

impl Lease {
    fn new(ttl_secs: i64, remaining_secs: i64) -> Lease {
        Lease {
            ttl_secs,
            remaining_secs,
            deadline: Deadline::NEVER,
            queued: Deadline::NEVER,
            keys: Keys::None,
        }
    }

    /// The deadline moves to a full time from `now`; the queue's entry stays where it is unless it is new.
    fn renew(&mut self, now: Duration) {
        self.deadline = Deadline::at(now + seconds(self.ttl_secs));
        if self.queued == Deadline::NEVER {
            self.queued = self.deadline;
        }
    }

    /// What the lease has to live under a new leader.
    fn time_left(&self) -> Duration {
        let secs = if self.remaining_secs > 0 {
            self.remaining_secs
        } else {
            self.ttl_secs
        };
        seconds(secs)
    }
}

fn seconds(count: i64) -> Duration {
    Duration::from_secs(u64::try_from(count).unwrap_or(0))
}

impl Keys {
    fn insert(&mut self, key: Bytes) {
        match self {
            Keys::None => *self = Keys::One(key),
            Keys::One(one) if *one == key => {}
            Keys::One(one) => {
                *self = Keys::Many(BTreeSet::from([std::mem::take(one), key]));
            }
            Keys::Many(keys) => {
                keys.insert(key);
            }
        }
    }

    fn remove(&mut self, key: &[u8]) {
        match self {
            Keys::One(one) if *one == key => *self = Keys::None,
            Keys::None | Keys::One(_) => {}
            Keys::Many(keys) => {
                keys.remove(key);
                if keys.is_empty() {
                    *self = Keys::None;
                }
            }
        }
    }

    fn len(&self) -> usize {
        match self {
            Keys::None => 0,
            Keys::One(_) => 1,
            Keys::Many(keys) => keys.len(),
        }
    }

    fn to_sorted(&self) -> Vec<Bytes> {
        match self {
            Keys::None => Vec::new(),
            Keys::One(key) => vec![key.clone()],
            Keys::Many(keys) => keys.iter().cloned().collect(),
        }
    }

    fn into_sorted(self) -> Vec<Bytes> {
        match self {
            Keys::None => Vec::new(),
            Keys::One(key) => vec![key],
            Keys::Many(keys) => keys.into_iter().collect(),
        }
    }
}

/// Where a lease is stored: the id's 64 bits, big endian, as in etcd's bucket.
fn storage_key(id: i64) -> Bytes {
    Bytes::copy_from_slice(&id.to_be_bytes())
}

fn put_op(id: i64, ttl_secs: i64, remaining_secs: i64) -> Op {
    let stored = leasepb::Lease {
        id,
        ttl: ttl_secs,
        remaining_ttl: remaining_secs,
    };
    Op::Put(
        Keyspace::Lease,
        storage_key(id),
        stored.encode_to_vec().into(),
    )
}

#[cfg(test)]
mod tests;
