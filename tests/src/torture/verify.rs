//! Reads a restarted member and compares it with what its clients were told.
//!
//! Checked, for the calls since the model was last brought up to date:
//! - every acknowledged change is the event of exactly the revision its answer named, with exactly its effects;
//! - every other event is the whole effect of one call that was sent and not answered, each at most once;
//! - revisions have no holes and do not go back;
//! - keys, with their revisions, versions and leases, are what the events add up to; so are leases and their keys.
//!
//! A call that was not answered and left no event has had no effect: later checks do not expect it.

use std::collections::{BTreeMap, BTreeSet, HashMap};

use anyhow::{Context, Result, bail, ensure};
use bytes::Bytes;
use kv_proto::etcdserverpb::kv_client::KvClient;
use kv_proto::etcdserverpb::lease_client::LeaseClient;
use kv_proto::etcdserverpb::maintenance_client::MaintenanceClient;
use kv_proto::etcdserverpb::watch_client::WatchClient;
use kv_proto::etcdserverpb::watch_request::RequestUnion;
use kv_proto::etcdserverpb::{
    HashKvRequest, LeaseLeasesRequest, LeaseTimeToLiveRequest, RangeRequest, WatchCreateRequest,
    WatchRequest,
};
use kv_proto::mvccpb::event::EventType;
use tokio_stream::StreamExt;
use tonic::transport::Channel;

use super::model::{Change, Model};
use super::operation::{Answer, Call, Operation, Write};

/// What a check found, when it found nothing wrong.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Findings {
    /// Acknowledged changes that were looked for and found.
    pub acknowledged: u64,
    /// Calls without an answer that took effect.
    pub unanswered: u64,
}

/// HashKV at a revision.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Hash {
    /// The revision.
    pub revision: i64,
    /// The compacted revision.
    pub compacted: i64,
    /// The checksum.
    pub hash: u32,
}

/// Checks the member behind `channel` against `model` plus `calls`, and brings `model` up to date.
pub async fn check(channel: &Channel, model: &mut Model, calls: &[Call]) -> Result<Findings> {
    let mut kv = KvClient::new(channel.clone()).max_decoding_message_size(usize::MAX);
    let all = RangeRequest {
        key: Bytes::from_static(b"\0"),
        range_end: Bytes::from_static(b"\0"),
        ..Default::default()
    };
    let range = kv.range(all).await?.into_inner();
    let revision = range.header.context("an answer without a header")?.revision;
    ensure!(
        model.revision <= revision,
        "revision {} was there, the member is at {revision}",
        model.revision
    );

    let mut pending = Pending::new(calls)?;
    let events = events(channel, model.revision + 1, revision).await?;
    for (revision, changes) in events {
        ensure!(
            revision == model.revision + 1,
            "an event of revision {revision} follows {}",
            model.revision
        );
        pending.explain(model, &changes)?;
        model.apply(&changes);
    }
    ensure!(
        revision == model.revision,
        "the member is at {revision}, its events end at {}",
        model.revision
    );
    if let Some((revision, (call, _))) = pending.acknowledged.iter().min_by_key(|(at, _)| **at) {
        bail!(
            "lost: {call:?} was acknowledged as revision {revision}, the member is at {}; {} are missing",
            model.revision,
            pending.acknowledged.len()
        );
    }
    let expected: Vec<_> = model.keys.values().cloned().collect();
    ensure!(
        range.kvs == expected,
        "the keys are not what the events add up to: {:?}",
        range.kvs.iter().zip(&expected).find(|(a, b)| a != b)
    );
    check_leases(channel, model, calls).await?;
    Ok(pending.findings)
}

/// HashKV of the member at `revision`, 0 for its newest.
pub async fn hash(channel: &Channel, revision: i64) -> Result<Hash> {
    let mut maintenance = MaintenanceClient::new(channel.clone());
    let answer = maintenance.hash_kv(HashKvRequest { revision }).await?;
    let answer = answer.into_inner();
    Ok(Hash {
        revision: answer.hash_revision,
        compacted: answer.compact_revision,
        hash: answer.hash,
    })
}

/// Calls whose effects have not been seen yet.
struct Pending<'a> {
    /// By the revision that was answered.
    acknowledged: HashMap<i64, (&'a Operation, Answer)>,
    /// Those that may have taken effect, and revocations, whose answers do not name a revision of their own; each client's in
    /// the order it sent them.
    others: Vec<&'a Operation>,
    findings: Findings,
}

impl Pending<'_> {
    fn new(calls: &[Call]) -> Result<Pending<'_>> {
        let mut pending = Pending {
            acknowledged: HashMap::new(),
            others: Vec::new(),
            findings: Findings::default(),
        };
        for Call {
            operation, answer, ..
        } in calls
        {
            let changes = match (operation, answer) {
                (Operation::Grant(_) | Operation::Compact(_), _) => continue,
                (Operation::Revoke(_), _) | (_, None) => {
                    pending.others.push(operation);
                    continue;
                }
                (Operation::Write(Write::Delete { .. }), Some((answer, _))) => answer.deleted > 0,
                (_, Some(_)) => true,
            };
            let Some((answer, _)) = answer.filter(|_| changes) else {
                continue;
            };
            let entry = (operation, answer);
            if let Some((other, _)) = pending.acknowledged.insert(answer.revision, entry) {
                bail!(
                    "revision {} was answered to {operation:?} and to {other:?}",
                    answer.revision
                );
            }
        }
        Ok(pending)
    }

    /// Finds the call that made the next revision of `model`.
    fn explain(&mut self, model: &Model, changes: &[Change]) -> Result<()> {
        let revision = model.revision + 1;
        if let Some((operation, answer)) = self.acknowledged.remove(&revision) {
            let expected = model.effects(operation);
            ensure!(
                expected == changes,
                "revision {revision} was answered to {operation:?}, which must do {expected:?}; its events are {changes:?}"
            );
            if let Operation::Txn(txn) = operation {
                ensure!(
                    answer.succeeded == model.holds(txn),
                    "revision {revision}: {txn:?} was answered with succeeded = {}",
                    answer.succeeded
                );
            }
            self.findings.acknowledged += 1;
            return Ok(());
        }
        let found = self
            .others
            .iter()
            .position(|operation| model.effects(operation) == changes);
        let Some(at) = found else {
            bail!("invented: nobody asked for {changes:?}, the events of revision {revision}");
        };
        // The rest keeps its order: a client's earlier calls explain events before its later ones, which may do the same.
        self.others.remove(at);
        self.findings.unanswered += 1;
        Ok(())
    }
}

/// Every event from one revision to another, by revision.
async fn events(channel: &Channel, from: i64, to: i64) -> Result<BTreeMap<i64, Vec<Change>>> {
    let mut events: BTreeMap<i64, Vec<Change>> = BTreeMap::new();
    if to < from {
        return Ok(events);
    }
    let create = WatchRequest {
        request_union: Some(RequestUnion::CreateRequest(WatchCreateRequest {
            key: Bytes::from_static(b"\0"),
            range_end: Bytes::from_static(b"\0"),
            start_revision: from,
            ..Default::default()
        })),
    };
    let mut client = WatchClient::new(channel.clone()).max_decoding_message_size(usize::MAX);
    let requests = tokio_stream::once(create).chain(tokio_stream::pending());
    let mut responses = client.watch(requests).await?.into_inner();
    while events
        .last_key_value()
        .is_none_or(|(newest, _)| *newest < to)
    {
        let response = responses.next().await.context("the watch ended")??;
        ensure!(
            !response.canceled,
            "the watch from revision {from} was canceled: {} (compacted {})",
            response.cancel_reason,
            response.compact_revision
        );
        for event in response.events {
            let is_delete = event.r#type() == EventType::Delete;
            let item = event.kv.context("an event without a key")?;
            let change = (!is_delete).then_some((item.value, item.lease));
            events
                .entry(item.mod_revision)
                .or_default()
                .push((item.key, change));
        }
    }
    Ok(events)
}

async fn check_leases(channel: &Channel, model: &mut Model, calls: &[Call]) -> Result<()> {
    let mut client = LeaseClient::new(channel.clone()).max_decoding_message_size(usize::MAX);
    let listed = client.lease_leases(LeaseLeasesRequest {}).await?;
    let listed: BTreeSet<i64> = listed.into_inner().leases.iter().map(|l| l.id).collect();
    // What must be there, and what may.
    let (mut certain, mut possible) = (model.leases.clone(), model.leases.clone());
    for call in calls {
        match (&call.operation, call.answer.is_some()) {
            (Operation::Grant(id), true) => {
                certain.insert(*id);
                possible.insert(*id);
            }
            (Operation::Grant(id), false) => {
                possible.insert(*id);
            }
            (Operation::Revoke(id), true) => {
                certain.remove(id);
                possible.remove(id);
            }
            (Operation::Revoke(id), false) => {
                certain.remove(id);
            }
            _ => {}
        }
    }
    if let Some(lost) = certain.difference(&listed).next() {
        bail!("lost: lease {lost:x} was granted and is not there");
    }
    if let Some(invented) = listed.difference(&possible).next() {
        bail!("lease {invented:x} was revoked or never asked for, and is there");
    }
    for &id in &listed {
        let request = LeaseTimeToLiveRequest { id, keys: true };
        let answer = client.lease_time_to_live(request).await?.into_inner();
        let attached = model.keys.values().filter(|item| item.lease == id);
        let expected: Vec<Bytes> = attached.map(|item| item.key.clone()).collect();
        let mut keys = answer.keys;
        keys.sort();
        ensure!(
            keys == expected,
            "lease {id:x} holds {keys:?}, the events say {expected:?}"
        );
    }
    if let Some(item) = model
        .keys
        .values()
        .find(|item| item.lease != 0 && !listed.contains(&item.lease))
    {
        bail!(
            "{:?} hangs on lease {:x}, which is not there",
            item.key,
            item.lease
        );
    }
    model.leases = listed;
    Ok(())
}

#[cfg(test)]
#[allow(clippy::unwrap_used)] // All of this is tests.
mod tests {
    use super::*;

    /// Client 2 revokes the lease of its key, writes the key again and deletes it, which is not answered. Either way the key goes
    /// away, and taking client 1's call out must not bring the deletion before the revocation.
    #[test]
    fn earlier_call_of_a_client_explains_the_earlier_of_two_like_events() {
        let put = |key: &'static str, lease| {
            let change: Change = (key.into(), Some(("v".into(), lease)));
            vec![change]
        };
        let gone = |key: &'static str| {
            let change: Change = (key.into(), None);
            vec![change]
        };
        let call = |operation, answer: Option<Answer>| Call {
            operation,
            sent_ns: 0,
            answer: answer.map(|answer| (answer, 0)),
        };
        let delete = Write::Delete {
            key: "b".into(),
            end: "b\0".into(),
        };
        let calls = [
            call(Operation::Revoke(1), Some(Answer::default())),
            call(Operation::Revoke(2), Some(Answer::default())),
            call(Operation::Write(delete), None),
        ];
        let mut model = Model::default();
        model.apply(&put("a", 1));
        model.apply(&put("b", 2));
        let mut pending = Pending::new(&calls).unwrap();
        let mut explain = |model: &mut Model, changes: Vec<Change>| {
            pending.explain(model, &changes).unwrap();
            model.apply(&changes);
        };

        explain(&mut model, gone("a"));
        explain(&mut model, gone("b"));
        model.apply(&put("b", 0));
        explain(&mut model, gone("b"));
    }
}
