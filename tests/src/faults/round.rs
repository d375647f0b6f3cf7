//! One round: load, fault, healing, and the checks.

use std::collections::BTreeMap;
use std::fmt;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail, ensure};
use kv_proto::etcdserverpb::kv_client::KvClient;
use kv_proto::etcdserverpb::watch_client::WatchClient;
use kv_proto::etcdserverpb::watch_request::RequestUnion;
use kv_proto::etcdserverpb::{
    DeleteRangeRequest, PutRequest, RangeRequest, WatchCreateRequest, WatchRequest,
};
use rustix::process::Signal;
use tokio_stream::wrappers::ReceiverStream;
use tonic::transport::Endpoint;

use super::clients::{Clients, Collected};
use super::watchers::{Told, Watchers};
use super::{Kind, MEMBERS, Run};
use crate::events::{Event, StoreHistory, key_value};
use crate::history::{self, KeyValue, Outcome};
use crate::linearizability::{self, Limits, Verdict};

/// Load before the fault and after the healing.
const UNDISTURBED: Duration = Duration::from_millis(1_500);
/// Every member must serve again within this time after a fault; long, since the machine may be busy with other things.
const HEAL_LIMIT: Duration = Duration::from_secs(60);
/// One attempt to see whether a member serves.
const ATTEMPT_LIMIT: Duration = Duration::from_secs(3);
const PAUSE: Duration = Duration::from_millis(50);

/// What a round came to.
#[derive(Debug, Default)]
pub struct Report {
    /// What was done in particular.
    pub what: String,
    /// Requests that were answered.
    pub answered: u64,
    /// Requests whose outcome is not known.
    pub unknown: u64,
    /// Requests that certainly did nothing.
    pub refused: u64,
    /// Reads without a quorum.
    pub serializable: u64,
    /// Events that all watchers were told.
    pub events: u64,
    /// From the end of the fault until every member served.
    pub healed_ms: u64,
    /// Time of the checks.
    pub checked_ms: u64,
    /// What was wrong.
    pub violations: Vec<String>,
    /// Whether the search gave up.
    pub is_undecided: bool,
}

impl fmt::Display for Report {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(
            f,
            "{}; {} answered, {} unknown, {} refused, {} serializable, {} events, healed in {} ms, checked in {} ms",
            self.what,
            self.answered,
            self.unknown,
            self.refused,
            self.serializable,
            self.events,
            self.healed_ms,
            self.checked_ms
        )?;
        if self.is_undecided {
            write!(f, ", UNDECIDED")?;
        }
        for violation in &self.violations {
            write!(f, "\nVIOLATION: {violation}")?;
        }
        Ok(())
    }
}

impl Run {
    /// Runs one round. An error is one of the harness, or a cluster that does not heal.
    pub async fn round(&mut self, kind: Kind) -> Result<Report> {
        self.round += 1;
        let prefix = format!("f/{:06}/", self.round);
        let urls: Vec<String> = (0..MEMBERS).map(|n| self.cluster.client_url(n)).collect();
        let seed = self.options.seed.wrapping_mul(1_000_003) ^ self.round;
        let mut report = Report::default();
        let watchers = Watchers::start(&urls, &prefix, self.base + 1, seed);
        let clients = Clients::start(&urls, &prefix, self.options.crowd, seed);
        tokio::time::sleep(UNDISTURBED).await;

        report.what = match self.inject(kind).await {
            Ok(what) => what,
            Err(error) => {
                let error = format!("{error:#}");
                report
                    .violations
                    .push(format!("round {}, {kind}: {error}", self.round));
                error
            }
        };
        self.end_of_faults(&mut report).await?;
        let ended = Instant::now();
        self.healthy(HEAL_LIMIT).await?;
        report.healed_ms = ended.elapsed().as_millis() as u64;
        tokio::time::sleep(UNDISTURBED).await;
        let collected = clients.finish(kind != Kind::ClockMonotonic).await;

        let last = self.put(&format!("{prefix}end"), "end").await?;
        let (told, late) = watchers.finish(last, HEAL_LIMIT).await;
        let checks = Instant::now();
        let mut wrong = Vec::new();
        wrong.extend(
            late.into_iter()
                .map(|late| format!("a watcher is late: {late}")),
        );
        self.check(&prefix, last, &collected, &told, &mut report, &mut wrong)
            .await?;
        report.checked_ms = checks.elapsed().as_millis() as u64;
        let is_wrong = !wrong.is_empty() || !report.violations.is_empty();
        if is_wrong || report.is_undecided || self.options.keeps_all {
            let kept = self.kept();
            let path = std::path::Path::new(&kept).join("history.jsonl");
            history::save(&collected.records, &path)?;
            wrong
                .iter_mut()
                .for_each(|wrong| wrong.push_str(&format!("; see {kept}")));
        }
        let number = self.round;
        let wrong = wrong
            .into_iter()
            .map(|wrong| format!("round {number}, {kind}: {wrong}"));
        report.violations.extend(wrong);
        self.base = self.delete(&prefix).await?;
        Ok(report)
    }

    /// Takes back whatever a fault left behind.
    async fn end_of_faults(&mut self, report: &mut Report) -> Result<()> {
        self.network.heal()?;
        for n in 0..MEMBERS {
            self.set_disk_fault(n, None)?;
        }
        for n in self.cluster.running() {
            self.cluster.signal(n, Signal::CONT)?;
            if let Some(status) = self.cluster.has_ended(n)? {
                let log = self.kept();
                report.violations.push(format!(
                    "member {n} ended by itself with {status}; see {log}"
                ));
            }
        }
        for n in 0..MEMBERS {
            if !self.cluster.running().contains(&n) {
                self.cluster.start_member(n);
            }
        }
        Ok(())
    }

    /// Waits until every member takes a write, which all members then show, and all have a vote.
    pub(crate) async fn healthy(&self, limit: Duration) -> Result<()> {
        let deadline = Instant::now() + limit;
        for n in 0..MEMBERS {
            loop {
                let attempt = async {
                    let url = self.cluster.client_url(n);
                    let channel = Endpoint::from_shared(url)?.connect().await?;
                    let request = PutRequest {
                        key: format!("healthy/{n}").into(),
                        ..Default::default()
                    };
                    KvClient::new(channel).put(request).await?;
                    let status = self.cluster.status(n).await?;
                    ensure!(!status.is_learner, "it is a learner");
                    ensure!(status.leader != 0, "it knows no leader");
                    Ok(())
                };
                let error = match tokio::time::timeout(ATTEMPT_LIMIT, attempt).await {
                    Ok(Ok(())) => break,
                    Ok(Err(error)) => error,
                    Err(_) => anyhow::anyhow!("no answer in {ATTEMPT_LIMIT:?}"),
                };
                if Instant::now() >= deadline {
                    bail!("member {n} does not serve {limit:?} after the fault: {error:#}");
                }
                tokio::time::sleep(PAUSE).await;
            }
        }
        Ok(())
    }

    async fn check(
        &mut self,
        prefix: &str,
        last: i64,
        collected: &Collected,
        told: &[Told],
        report: &mut Report,
        wrong: &mut Vec<String>,
    ) -> Result<()> {
        let records = &collected.records;
        let is_unknown = |record: &&history::Record| {
            record.client != history::NOBODY && record.outcome == Outcome::Unknown
        };
        report.unknown = records.iter().filter(is_unknown).count() as u64;
        report.answered = records
            .iter()
            .filter(|record| record.returned.is_some())
            .count() as u64;
        report.refused = collected.refused;
        report.serializable = collected.serializable.len() as u64;
        report.events = told
            .iter()
            .flat_map(|told| &told.responses)
            .map(|r| r.len() as u64)
            .sum();

        let searched = records.clone();
        let verdict = tokio::task::spawn_blocking(move || {
            linearizability::check(&searched, Limits::default())
        });
        match verdict.await? {
            Verdict::Linearizable => {}
            Verdict::Violation(violation) => wrong.push(format!("not linearizable: {violation}")),
            Verdict::Undecided { .. } => report.is_undecided = true,
        }

        let mut kept: Option<StoreHistory> = None;
        for n in 0..MEMBERS {
            let keys = self.keys_at(n, prefix, last).await?;
            let events = self
                .events_until(n, prefix, last)
                .await
                .with_context(|| format!("events of member {n}"))?;
            match StoreHistory::rebuild(events, &keys) {
                Err(error) => wrong.push(format!("member {n}: {error:#}")),
                Ok(history) => match &kept {
                    None => kept = Some(history),
                    Some(first) if first.is_equal_to(&history) => {}
                    Some(_) => {
                        wrong.push(format!("member {n} keeps another history than member 0"))
                    }
                },
            }
        }
        if let Some(kept) = kept {
            for told in told {
                let mut responses = told.responses.clone();
                for response in &mut responses {
                    response.retain(|event| event.revision <= last);
                }
                responses.retain(|response| !response.is_empty());
                if let Err(error) = kept.check_watch(&responses) {
                    wrong.push(format!("{}: {error:#}", told.name));
                }
                if let Some(why) = &told.canceled {
                    wrong.push(format!("{} was canceled: {why}", told.name));
                }
            }
            let until_last: Vec<_> = records
                .iter()
                .filter(|record| {
                    record
                        .outcome
                        .revision()
                        .is_none_or(|revision| revision <= last)
                })
                .cloned()
                .collect();
            if let Err(error) = kept.check_writes(&until_last) {
                wrong.push(format!("{error:#}"));
            }
            if let Err(error) = kept.check_serializable(&collected.serializable) {
                wrong.push(format!("{error:#}"));
            }
        }
        self.check_hashes(last, wrong).await?;
        for n in 0..MEMBERS {
            let log = std::fs::read_to_string(self.log_path(n)).unwrap_or_default();
            if log.contains("panicked") {
                wrong.push(format!("member {n} panicked"));
            }
        }
        Ok(())
    }

    async fn check_hashes(&self, revision: i64, wrong: &mut Vec<String>) -> Result<()> {
        let mut hashes = Vec::new();
        for n in 0..MEMBERS {
            let hash = self
                .cluster
                .hash_kv(n, revision)
                .await
                .with_context(|| format!("HashKV of member {n}"))?;
            hashes.push((hash.hash, hash.compact_revision));
        }
        if hashes.iter().any(|hash| *hash != hashes[0]) {
            wrong.push(format!("HashKV at {revision}: {hashes:x?}"));
        }
        Ok(())
    }

    /// The revision of now.
    pub(crate) async fn revision(&self) -> Result<i64> {
        let request = RangeRequest {
            key: "none".into(),
            ..Default::default()
        };
        let mut kv = KvClient::new(self.cluster.channel(0).await?);
        let answer = kv.range(request).await?.into_inner();
        Ok(answer.header.context("a range has a header")?.revision)
    }

    async fn put(&self, key: &str, value: &str) -> Result<i64> {
        crate::cluster::until("a put", || self.cluster.put(0, key, value)).await
    }

    async fn delete(&self, prefix: &str) -> Result<i64> {
        let delete = || async {
            let request = DeleteRangeRequest {
                key: prefix.to_owned().into(),
                range_end: end_of(prefix).into(),
                ..Default::default()
            };
            let mut kv = KvClient::new(self.cluster.channel(0).await?);
            let answer = kv.delete_range(request).await?.into_inner();
            Ok(answer.header.context("a deletion has a header")?.revision)
        };
        crate::cluster::until("a deletion", delete).await
    }

    /// A member's keys at a revision.
    async fn keys_at(
        &self,
        n: usize,
        prefix: &str,
        revision: i64,
    ) -> Result<BTreeMap<String, KeyValue>> {
        let request = RangeRequest {
            key: prefix.to_owned().into(),
            range_end: end_of(prefix).into(),
            revision,
            ..Default::default()
        };
        let mut kv = KvClient::new(self.cluster.channel(n).await?);
        let answer = kv.range(request).await?.into_inner();
        let keys = answer.kvs.iter().map(|kv| {
            let key = String::from_utf8_lossy(&kv.key).into_owned();
            (key, key_value(kv))
        });
        Ok(keys.collect())
    }

    /// A member's events of this round up to a revision, in the responses they came in.
    async fn events_until(&self, n: usize, prefix: &str, last: i64) -> Result<Vec<Vec<Event>>> {
        let create = WatchCreateRequest {
            key: prefix.to_owned().into(),
            range_end: end_of(prefix).into(),
            start_revision: self.base + 1,
            prev_kv: true,
            ..Default::default()
        };
        let request = WatchRequest {
            request_union: Some(RequestUnion::CreateRequest(create)),
        };
        let (requests, receiver) = tokio::sync::mpsc::channel(1);
        requests.send(request).await?;
        let endpoint = Endpoint::from_shared(self.cluster.client_url(n))?;
        let mut client = WatchClient::new(endpoint.connect().await?);
        let mut answers = client
            .watch(ReceiverStream::new(receiver))
            .await?
            .into_inner();
        let mut responses: Vec<Vec<Event>> = Vec::new();
        let reading = async {
            loop {
                let response = answers.message().await?.context("the stream ended")?;
                ensure!(!response.canceled, "canceled: {}", response.cancel_reason);
                let events = response.events.iter().filter_map(Event::from_proto);
                let events: Vec<_> = events.collect();
                let newest = events.last().map_or(0, |event| event.revision);
                responses.push(
                    events
                        .into_iter()
                        .filter(|event| event.revision <= last)
                        .collect(),
                );
                if newest >= last {
                    return Ok(());
                }
            }
        };
        tokio::time::timeout(HEAL_LIMIT, reading)
            .await
            .context("the last event does not come")??;
        responses.retain(|response| !response.is_empty());
        Ok(responses)
    }
}

/// End of the range of all keys with a prefix.
pub(crate) fn end_of(prefix: &str) -> Vec<u8> {
    let mut end = prefix.as_bytes().to_vec();
    *end.last_mut().expect("the prefix is not empty") += 1;
    end
}
