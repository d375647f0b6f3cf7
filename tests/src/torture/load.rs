//! Concurrent clients that write to a member until it is gone or they are told to stop.
//!
//! Each client owns keys and leases, so that it knows what it deletes; puts and transactions also race on keys that all
//! share. A client waits for an answer before it asks again.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use anyhow::{Context, Result, bail};
use bytes::Bytes;
use futures_util::future::select_all;
use kv_proto::etcdserverpb::kv_client::KvClient;
use kv_proto::etcdserverpb::lease_client::LeaseClient;
use kv_proto::etcdserverpb::request_op::Request;
use kv_proto::etcdserverpb::{LeaseRevokeRequest, ResponseHeader};
use rand::rngs::StdRng;
use rand::{RngExt, SeedableRng};
use rustix::time::ClockId;
use tokio::sync::watch;
use tokio::task::JoinHandle;
use tonic::transport::Channel;

use super::model::Model;
use super::operation::{Answer, Call, Operation, Txn, Write, compaction_request, grant_request};

const OWN_KEYS: u64 = 40;
const SHARED_KEYS: u64 = 16;
const OWN_LEASES_MAX: usize = 4;
/// A live member answers some hundred calls in this time, whatever else runs.
const ANSWER_LIMIT: Duration = Duration::from_secs(120);

/// What the clients write.
#[derive(Clone, Copy, Debug)]
pub struct Profile {
    /// Clients at once.
    pub clients: u64,
    /// One value in this many is large: up to 40 KiB, over the sizes at which engines split values.
    pub large_one_in: u32,
    /// One operation in this many is a compaction; 0 for none.
    pub compact_one_in: u32,
}

/// The clients at work.
pub struct Load {
    clients: Vec<JoinHandle<Result<Vec<Call>>>>,
    control: Arc<Control>,
}

#[derive(Default)]
struct Control {
    /// Clients send nothing more.
    stop: AtomicBool,
    /// The member may be gone: a call without an answer is no failure.
    may_fail: AtomicBool,
    answered: watch::Sender<u64>,
}

/// Nanoseconds of the system clock, the one that strace prints.
pub fn now_ns() -> u64 {
    let now = rustix::time::clock_gettime(ClockId::Realtime);
    now.tv_sec as u64 * 1_000_000_000 + now.tv_nsec as u64
}

impl Load {
    /// Starts clients that know what the store holds. `run` tells this load's values from those of any other.
    pub fn start(channel: &Channel, run: u64, profile: Profile, model: &Model) -> Load {
        let control = Arc::new(Control::default());
        let clients = (0..profile.clients).map(|number| {
            let mut client = Client::new(channel, run, number, profile, model);
            let control = control.clone();
            tokio::spawn(async move { client.run(&control).await })
        });
        Load {
            clients: clients.collect(),
            control,
        }
    }

    /// Waits until so many calls were answered. Errors: what ended a client before, or that it takes too long.
    pub async fn until_answered(&mut self, enough: u64) -> Result<()> {
        let mut answered = self.control.answered.subscribe();
        tokio::select! {
            _ = answered.wait_for(|answered| *answered >= enough) => Ok(()),
            (ended, ..) = select_all(&mut self.clients) => {
                ended??;
                bail!("a client ended though nobody told it to");
            }
            () = tokio::time::sleep(ANSWER_LIMIT) => bail!("the member does not answer"),
        }
    }

    /// From now on the member may be gone.
    pub fn expect_failures(&self) {
        self.control.may_fail.store(true, Ordering::SeqCst);
    }

    /// Ends the clients and returns their calls, in no order. A call that failed while the member was to live is an error.
    pub async fn stop(self) -> Result<Vec<Call>> {
        self.control.stop.store(true, Ordering::SeqCst);
        let mut calls = Vec::new();
        for client in self.clients {
            calls.extend(client.await??);
        }
        Ok(calls)
    }
}

struct Client {
    kv: KvClient<Channel>,
    lease: LeaseClient<Channel>,
    random: StdRng,
    profile: Profile,
    run: u64,
    number: u64,
    operations: u64,
    leases: Vec<i64>,
    /// A shared key this client wrote, and what.
    seen: Option<(Bytes, Bytes)>,
    /// Compactions stay below.
    compact_below: i64,
}

impl Client {
    fn new(channel: &Channel, run: u64, number: u64, profile: Profile, model: &Model) -> Client {
        // The client's number is in its leases' ids.
        let own = |id: &&i64| **id as u64 & 0xff == number;
        Client {
            kv: KvClient::new(channel.clone()),
            lease: LeaseClient::new(channel.clone()),
            random: StdRng::seed_from_u64(run << 8 | number),
            profile,
            run,
            number,
            operations: 0,
            leases: model.leases.iter().filter(own).copied().collect(),
            seen: None,
            compact_below: model.revision,
        }
    }

    async fn run(&mut self, control: &Control) -> Result<Vec<Call>> {
        let mut calls = Vec::new();
        while !control.stop.load(Ordering::SeqCst) {
            let operation = self.choose();
            let sent_ns = now_ns();
            let answer = match self.send(&operation).await {
                Ok(header) => Some((header, now_ns())),
                Err(_) if control.may_fail.load(Ordering::SeqCst) => None,
                Err(status) => {
                    return Err(status).with_context(|| format!("{operation:?} was refused"));
                }
            };
            let gone = answer.is_none();
            calls.push(Call {
                operation,
                sent_ns,
                answer,
            });
            if gone {
                break;
            }
            control.answered.send_modify(|answered| *answered += 1);
        }
        Ok(calls)
    }

    fn choose(&mut self) -> Operation {
        self.operations += 1;
        let compact_one_in = self.profile.compact_one_in;
        if compact_one_in > 0
            && self.compact_below > 2
            && self.random.random_ratio(1, compact_one_in)
        {
            return Operation::Compact(self.random.random_range(2..=self.compact_below));
        }
        match self.random.random_range(0..100) {
            0..50 => {
                let key = self.any_key();
                Operation::Write(self.put(key, 0))
            }
            50..62 => {
                let key = self.own_key();
                Operation::Write(self.delete(key, 0))
            }
            62..85 => Operation::Txn(self.txn()),
            85..92 if self.leases.len() < OWN_LEASES_MAX => {
                let unique = self.run << 24 | self.operations & 0xffff;
                Operation::Grant((1 << 56 | unique << 8 | self.number) as i64)
            }
            92..95 if !self.leases.is_empty() => {
                let at = self.random.random_range(0..self.leases.len());
                Operation::Revoke(self.leases[at])
            }
            _ => {
                let (key, lease) = (self.own_key(), self.any_lease());
                match self.put(key, 0) {
                    Write::Put { key, value, .. } => {
                        Operation::Write(Write::Put { key, value, lease })
                    }
                    delete => Operation::Write(delete),
                }
            }
        }
    }

    fn txn(&mut self) -> Txn {
        let shared = self.shared_key();
        let first = self.random.random_range(0..OWN_KEYS - 1);
        let (own, next) = (self.key(first), self.key(first + 1));
        Txn {
            guard: self.seen.clone().filter(|_| self.random.random_bool(0.8)),
            success: vec![
                self.put(shared.clone(), 0),
                self.delete(own, 1),
                self.put(next.clone(), 2),
            ],
            failure: vec![self.put(next, 3), self.put(shared, 4)],
        }
    }

    fn put(&mut self, key: Bytes, part: u32) -> Write {
        let len = if self.random.random_ratio(1, self.profile.large_one_in) {
            self.random.random_range(1 << 10..40 << 10)
        } else {
            self.random.random_range(0..300)
        };
        let mut value = self.unique(part).into_bytes();
        value.resize(value.len() + len, b'.');
        if key.starts_with(b"shared") {
            self.seen = Some((key.clone(), value.clone().into()));
        }
        let value = value.into();
        Write::Put {
            key,
            value,
            lease: 0,
        }
    }

    /// The range ends right behind the key, at bytes that are unique: it holds no other key.
    fn delete(&self, key: Bytes, part: u32) -> Write {
        let end = [&key[..], b"\0", self.unique(part).as_bytes()].concat();
        Write::Delete {
            key,
            end: end.into(),
        }
    }

    fn unique(&self, part: u32) -> String {
        format!(
            "<{:x}.{}.{}.{part}>",
            self.run, self.number, self.operations
        )
    }

    fn key(&self, n: u64) -> Bytes {
        format!("own/{}/{n}", self.number).into()
    }

    fn own_key(&mut self) -> Bytes {
        let n = self.random.random_range(0..OWN_KEYS);
        self.key(n)
    }

    fn shared_key(&mut self) -> Bytes {
        format!("shared/{}", self.random.random_range(0..SHARED_KEYS)).into()
    }

    fn any_key(&mut self) -> Bytes {
        if self.random.random_bool(0.3) {
            self.shared_key()
        } else {
            self.own_key()
        }
    }

    fn any_lease(&mut self) -> i64 {
        match self.leases.len() {
            0 => 0,
            count => self.leases[self.random.random_range(0..count)],
        }
    }

    async fn send(&mut self, operation: &Operation) -> Result<Answer, tonic::Status> {
        let revision = |header: Option<ResponseHeader>| header.map_or(0, |header| header.revision);
        let mut answer = Answer::default();
        match operation {
            Operation::Write(write) => match write.to_request() {
                Request::RequestDeleteRange(request) => {
                    let response = self.kv.delete_range(request).await?.into_inner();
                    answer.revision = revision(response.header);
                    answer.deleted = response.deleted;
                }
                Request::RequestPut(request) => {
                    let response = self.kv.put(request).await?.into_inner();
                    answer.revision = revision(response.header);
                }
                other => unreachable!("a write is a put or a deletion, not {other:?}"),
            },
            Operation::Txn(txn) => {
                let response = self.kv.txn(txn.to_request()).await?.into_inner();
                answer.revision = revision(response.header);
                answer.succeeded = response.succeeded;
            }
            Operation::Grant(id) => {
                let response = self.lease.lease_grant(grant_request(*id)).await?;
                answer.revision = revision(response.into_inner().header);
                self.leases.push(*id);
            }
            Operation::Revoke(id) => {
                self.leases.retain(|lease| lease != id);
                let request = LeaseRevokeRequest { id: *id };
                let response = self.lease.lease_revoke(request).await?;
                answer.revision = revision(response.into_inner().header);
            }
            Operation::Compact(to) => match self.kv.compact(compaction_request(*to)).await {
                Ok(response) => answer.revision = revision(response.into_inner().header),
                // Another client's compaction was faster and went further.
                Err(status) if status.code() == tonic::Code::OutOfRange => {}
                Err(status) => return Err(status),
            },
        }
        Ok(answer)
    }
}
