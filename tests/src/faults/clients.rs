//! The load: clients of every kind on every member, which write down what they ask and what they are told.
//!
//! Each client asks one thing after the other of one member, its home. Values are unique, so that each write is found
//! again. Keys are of one round, and so few that clients meet on them.

use std::collections::HashMap;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use kv_proto::etcdserverpb::compare::{CompareResult, CompareTarget, TargetUnion};
use kv_proto::etcdserverpb::kv_client::KvClient;
use kv_proto::etcdserverpb::lease_client::LeaseClient;
use kv_proto::etcdserverpb::request_op::Request;
use kv_proto::etcdserverpb::response_op::Response;
use kv_proto::etcdserverpb::{
    self as pb, DeleteRangeRequest, LeaseGrantRequest, LeaseKeepAliveRequest, LeaseRevokeRequest,
    PutRequest, RangeRequest, RequestOp, ResponseOp, TxnRequest,
};
use rand::rngs::StdRng;
use rand::{RngExt, SeedableRng};
use tokio::task::JoinHandle;
use tokio_util::sync::CancellationToken;
use tonic::transport::{Channel, Endpoint};
use tonic::{Code, Status};

use crate::events::{SerializableRead, key_value};
use crate::history::{Action, ActionResult, Compare, Op, Outcome, Record, Recorder, Target, nanos};

/// A request that takes longer has an unknown outcome.
const REQUEST_LIMIT: Duration = Duration::from_secs(3);
const CONNECT_LIMIT: Duration = Duration::from_secs(1);
/// Between two requests of one client, at most.
const THINK_MS_MAX: u64 = 25;
/// After a request that failed, so that a member that is down is not asked all the time.
const FAILED_PAUSE: Duration = Duration::from_millis(150);
/// Keys that register clients share.
const REGISTERS: u32 = 8;
/// Pairs of keys that transaction clients share.
const PAIRS: u32 = 4;
/// Seconds that leases live.
const TTL_SECS: std::ops::RangeInclusive<i64> = 1..=4;
/// What kvd and etcd say of a lease that is not there.
const NO_SUCH_LEASE: &str = "etcdserver: requested lease not found";

/// What a run of clients left behind.
#[derive(Default)]
pub(crate) struct Collected {
    /// Requests, with the ends that leases may have come to.
    pub records: Vec<Record>,
    /// Reads without a quorum.
    pub serializable: Vec<SerializableRead>,
    /// Requests that certainly did nothing.
    pub refused: u64,
}

/// Clients that run.
pub(crate) struct Clients {
    shared: Arc<Shared>,
    stop: CancellationToken,
    tasks: Vec<JoinHandle<()>>,
}

struct Shared {
    recorder: Recorder,
    prefix: String,
    serializable: Mutex<Vec<SerializableRead>>,
    refused: AtomicU64,
    /// Of each lease: when it may end at the earliest.
    leases: Mutex<HashMap<i64, u64>>,
    next_value: AtomicU64,
}

/// How many clients of each kind a member has.
#[derive(Clone, Copy, Debug)]
pub struct Crowd {
    /// Put, get and delete.
    pub registers: u32,
    /// Compare and swap, over one key and two.
    pub transactions: u32,
    /// Keys on leases.
    pub leases: u32,
}

impl Default for Crowd {
    fn default() -> Crowd {
        Crowd {
            registers: 2,
            transactions: 1,
            leases: 1,
        }
    }
}

impl Clients {
    /// Starts clients on the members with these URLs; all their keys begin with `prefix`.
    pub(crate) fn start(urls: &[String], prefix: &str, crowd: Crowd, seed: u64) -> Clients {
        let shared = Arc::new(Shared {
            recorder: Recorder::default(),
            prefix: prefix.to_owned(),
            serializable: Mutex::default(),
            refused: AtomicU64::new(0),
            leases: Mutex::default(),
            next_value: AtomicU64::new(1),
        });
        let stop = CancellationToken::new();
        let mut tasks = Vec::new();
        for (member, url) in urls.iter().enumerate() {
            let kinds = [
                (Kind::Register, crowd.registers),
                (Kind::Transaction, crowd.transactions),
                (Kind::Lease, crowd.leases),
            ];
            for (kind, count) in kinds {
                for _ in 0..count {
                    let id = tasks.len() as u32;
                    let client = Client {
                        id,
                        member,
                        home: Home::new(url),
                        random: StdRng::seed_from_u64(seed ^ (u64::from(id) << 32)),
                        shared: shared.clone(),
                        stop: stop.clone(),
                    };
                    tasks.push(tokio::spawn(client.run(kind)));
                }
            }
        }
        Clients {
            shared,
            stop,
            tasks,
        }
    }

    /// Lets every client end its request, and returns what they wrote down.
    ///
    /// `leases_keep_time`: whether a lease that ends early is the store's fault; it is not if its clock was moved.
    pub(crate) async fn finish(self, leases_keep_time: bool) -> Collected {
        self.stop.cancel();
        for task in self.tasks {
            task.await.expect("a client does not panic");
        }
        let mut records = self.shared.recorder.take();
        let leases =
            std::mem::take(&mut *self.shared.leases.lock().expect("nobody panics with it"));
        for (lease, earliest) in leases {
            records.push(Record::expiry(
                lease,
                if leases_keep_time { earliest } else { 0 },
            ));
        }
        let serializable = std::mem::take(
            &mut *self
                .shared
                .serializable
                .lock()
                .expect("nobody panics with it"),
        );
        Collected {
            records,
            serializable,
            refused: self.shared.refused.load(Ordering::Relaxed),
        }
    }
}

#[derive(Clone, Copy)]
enum Kind {
    Register,
    Transaction,
    Lease,
}

/// A connection to one member, made again when it broke.
struct Home {
    endpoint: Endpoint,
    channel: Option<Channel>,
}

impl Home {
    fn new(url: &str) -> Home {
        let endpoint = Endpoint::from_shared(url.to_owned()).expect("the URL of a member is one");
        let endpoint = endpoint
            .connect_timeout(CONNECT_LIMIT)
            .timeout(REQUEST_LIMIT)
            .http2_keep_alive_interval(Duration::from_secs(2))
            .keep_alive_timeout(Duration::from_secs(2));
        Home {
            endpoint,
            channel: None,
        }
    }

    /// Nothing if the member is not reached: then nothing was sent.
    async fn channel(&mut self) -> Option<Channel> {
        if self.channel.is_none() {
            let connecting = tokio::time::timeout(CONNECT_LIMIT, self.endpoint.connect());
            self.channel = connecting.await.ok()?.ok();
        }
        self.channel.clone()
    }
}

struct Client {
    id: u32,
    member: usize,
    home: Home,
    random: StdRng,
    shared: Arc<Shared>,
    stop: CancellationToken,
}

impl Client {
    async fn run(mut self, kind: Kind) {
        while !self.stop.is_cancelled() {
            match kind {
                Kind::Register => self.use_register().await,
                Kind::Transaction => self.use_pair().await,
                Kind::Lease => self.use_lease().await,
            }
        }
    }

    async fn think(&mut self) {
        let time = Duration::from_millis(self.random.random_range(1..=THINK_MS_MAX));
        tokio::time::sleep(time).await;
    }

    fn value(&self) -> String {
        self.shared
            .next_value
            .fetch_add(1, Ordering::Relaxed)
            .to_string()
    }

    fn key(&self, name: impl std::fmt::Display) -> String {
        format!("{}{name}", self.shared.prefix)
    }

    async fn use_register(&mut self) {
        self.think().await;
        let number = self.random.random_range(0..REGISTERS);
        let key = self.key(format_args!("reg/{number}"));
        let op = match self.random.random_range(0..20) {
            0..8 => Op::put(&key, &self.value()),
            8..10 => Op::delete(&key),
            10..13 => return self.read_serializable(key).await,
            _ => Op::get(&key),
        };
        self.ask(op).await;
    }

    /// Reads a key, then swaps it and its neighbour if nothing changed.
    async fn use_pair(&mut self) {
        self.think().await;
        let pair = self.random.random_range(0..PAIRS);
        let (one, two) = (
            self.key(format_args!("txn/{pair}/a")),
            self.key(format_args!("txn/{pair}/b")),
        );
        let Some(Outcome::Done { results, .. }) = self.ask(Op::get(&one)).await else {
            return;
        };
        let Some(ActionResult::Get { kv }) = results.into_iter().next() else {
            return;
        };
        let target = match (self.random.random_range(0..4), &kv) {
            (0, kv) => Target::Version(kv.as_ref().map_or(0, |kv| kv.version)),
            (1, kv) => Target::CreateRevision(kv.as_ref().map_or(0, |kv| kv.create_revision)),
            (2, Some(kv)) => Target::Value(kv.value.clone()),
            (_, kv) => Target::ModRevision(kv.as_ref().map_or(0, |kv| kv.mod_revision)),
        };
        let put = |key: &str, value: String| Action::Put {
            key: key.to_owned(),
            value,
            lease: 0,
        };
        let get = |key: &str| Action::Get {
            key: key.to_owned(),
        };
        let success = match self.random.random_range(0..5) {
            0 => vec![
                put(&one, self.value()),
                Action::Delete { key: two.clone() },
                get(&one),
            ],
            1 => vec![Action::Delete { key: one.clone() }, put(&two, self.value())],
            _ => vec![put(&one, self.value()), put(&two, self.value())],
        };
        let failure = vec![get(&one), get(&two)];
        let compare = vec![Compare { key: one, target }];
        self.ask(Op::Txn {
            compare,
            success,
            failure,
        })
        .await;
    }

    /// A lease from its grant to its end, with keys on it.
    async fn use_lease(&mut self) {
        self.think().await;
        let lease = i64::from(self.id) * 1_000_000_000 + self.random.random_range(1..1_000_000_000);
        let ttl = self.random.random_range(TTL_SECS);
        let earliest = self.shared.recorder.now() + seconds(ttl);
        self.may_end(lease, earliest);
        let granted = self.ask_with_ttl(Op::Grant { lease }, ttl).await;
        if !matches!(granted, Some(Outcome::Done { .. })) {
            return;
        }
        let keys: Vec<_> = (0..2)
            .map(|n| self.key(format_args!("lease/{lease}/{n}")))
            .collect();
        for key in &keys {
            let action = Action::Put {
                key: key.clone(),
                value: self.value(),
                lease,
            };
            self.ask(Op::Single { action }).await;
        }
        for _ in 0..self.random.random_range(0..3) {
            tokio::time::sleep(Duration::from_millis(400)).await;
            self.renew(lease).await;
            self.ask(Op::get(&keys[0])).await;
        }
        if self.random.random_bool(0.5) {
            self.ask(Op::Revoke { lease }).await;
            self.ask(Op::get(&keys[1])).await;
            return;
        }
        // Until it has ended by itself; this is where an early end shows.
        for _ in 0..(ttl + 4) * 5 {
            if self.stop.is_cancelled() {
                return;
            }
            tokio::time::sleep(Duration::from_millis(200)).await;
            let key = keys[self.random.random_range(0..keys.len())].clone();
            let Some(Outcome::Done { results, .. }) = self.ask(Op::get(&key)).await else {
                continue;
            };
            if results == [ActionResult::Get { kv: None }] {
                break;
            }
        }
        let action = Action::Put {
            key: keys[0].clone(),
            value: self.value(),
            lease,
        };
        self.ask(Op::Single { action }).await;
    }

    /// The lease does not end before `earliest`.
    fn may_end(&self, lease: i64, earliest: u64) {
        let mut leases = self.shared.leases.lock().expect("nobody panics with it");
        let known = leases.entry(lease).or_insert(0);
        *known = earliest.max(*known);
    }

    async fn renew(&mut self, lease: i64) {
        let Some(channel) = self.home.channel().await else {
            return tokio::time::sleep(FAILED_PAUSE).await;
        };
        let asked = self.shared.recorder.now();
        let request = tokio_stream::once(LeaseKeepAliveRequest { id: lease });
        let answer = async {
            let mut answers = LeaseClient::new(channel)
                .lease_keep_alive(request)
                .await?
                .into_inner();
            answers.message().await
        };
        if let Ok(Ok(Some(renewed))) = tokio::time::timeout(REQUEST_LIMIT, answer).await
            && renewed.ttl > 0
        {
            self.may_end(lease, asked + seconds(renewed.ttl));
        }
    }

    async fn read_serializable(&mut self, key: String) {
        let Some(channel) = self.home.channel().await else {
            return tokio::time::sleep(FAILED_PAUSE).await;
        };
        let request = RangeRequest {
            key: key.clone().into(),
            serializable: true,
            ..Default::default()
        };
        let Ok(answer) = KvClient::new(channel).range(request).await else {
            self.home.channel = None;
            return tokio::time::sleep(FAILED_PAUSE).await;
        };
        let answer = answer.into_inner();
        let read = SerializableRead {
            member: self.member,
            key,
            revision: answer.header.map_or(0, |header| header.revision),
            kv: answer.kvs.first().map(key_value),
        };
        let mut reads = self
            .shared
            .serializable
            .lock()
            .expect("nobody panics with it");
        reads.push(read);
    }

    async fn ask(&mut self, op: Op) -> Option<Outcome> {
        self.ask_with_ttl(op, 0).await
    }

    /// Asks and writes down; nothing if the request was certainly not done.
    async fn ask_with_ttl(&mut self, op: Op, ttl: i64) -> Option<Outcome> {
        let Some(channel) = self.home.channel().await else {
            self.shared.refused.fetch_add(1, Ordering::Relaxed);
            tokio::time::sleep(FAILED_PAUSE).await;
            return None;
        };
        let call = self.shared.recorder.now();
        let sent = send(channel, &op, ttl);
        let answer = match tokio::time::timeout(REQUEST_LIMIT, sent).await {
            Ok(answer) => answer,
            Err(_) => Err(Status::deadline_exceeded("the client gave up")),
        };
        let now = self.shared.recorder.now();
        let (outcome, returned) = match answer {
            Ok(outcome) => (outcome, Some(now)),
            Err(status) if status.message() == NO_SUCH_LEASE => (Outcome::NoSuchLease, Some(now)),
            Err(status) => {
                if is_certain(&status) {
                    self.shared.refused.fetch_add(1, Ordering::Relaxed);
                    tokio::time::sleep(FAILED_PAUSE).await;
                    return None;
                }
                self.home.channel = None;
                (Outcome::Unknown, None)
            }
        };
        self.shared.recorder.add(Record {
            client: self.id,
            call,
            returned,
            op,
            outcome: outcome.clone(),
        });
        if outcome == Outcome::Unknown {
            tokio::time::sleep(FAILED_PAUSE).await;
        }
        Some(outcome)
    }
}

fn seconds(count: i64) -> u64 {
    nanos(Duration::from_secs(count.unsigned_abs()))
}

/// Whether a refusal says that nothing was done: it was decided before the request was proposed.
fn is_certain(status: &Status) -> bool {
    let words = [
        "database space exceeded",
        "too many requests",
        "not supported for learner",
    ];
    let is_known = words.iter().any(|words| status.message().contains(words));
    is_known || status.code() == Code::InvalidArgument
}

async fn send(channel: Channel, op: &Op, ttl: i64) -> Result<Outcome, Status> {
    let done = |header: Option<pb::ResponseHeader>, succeeded, results| Outcome::Done {
        revision: header.map_or(0, |header| header.revision),
        succeeded,
        results,
    };
    match op {
        Op::Single { action } => {
            let mut kv = KvClient::new(channel);
            match to_request(action) {
                Request::RequestPut(request) => {
                    let answer = kv.put(request).await?.into_inner();
                    Ok(done(answer.header, true, vec![ActionResult::Put]))
                }
                Request::RequestDeleteRange(request) => {
                    let answer = kv.delete_range(request).await?.into_inner();
                    let deleted = answer.deleted;
                    Ok(done(
                        answer.header,
                        true,
                        vec![ActionResult::Delete { deleted }],
                    ))
                }
                Request::RequestRange(request) => {
                    let answer = kv.range(request).await?.into_inner();
                    let kv = answer.kvs.first().map(key_value);
                    Ok(done(answer.header, true, vec![ActionResult::Get { kv }]))
                }
                Request::RequestTxn(_) => unreachable!("an action is no transaction"),
            }
        }
        Op::Txn {
            compare,
            success,
            failure,
        } => {
            let ops = |actions: &[Action]| actions.iter().map(to_op).collect();
            let request = TxnRequest {
                compare: compare.iter().map(to_compare).collect(),
                success: ops(success),
                failure: ops(failure),
            };
            let answer = KvClient::new(channel).txn(request).await?.into_inner();
            let results = answer.responses.iter().map(to_result).collect();
            Ok(done(answer.header, answer.succeeded, results))
        }
        Op::Grant { lease } => {
            let request = LeaseGrantRequest { ttl, id: *lease };
            let answer = LeaseClient::new(channel)
                .lease_grant(request)
                .await?
                .into_inner();
            Ok(done(answer.header, true, vec![]))
        }
        Op::Revoke { lease } => {
            let request = LeaseRevokeRequest { id: *lease };
            let answer = LeaseClient::new(channel)
                .lease_revoke(request)
                .await?
                .into_inner();
            Ok(done(answer.header, true, vec![]))
        }
        Op::Expire { .. } => unreachable!("no client asks for it"),
    }
}

fn to_request(action: &Action) -> Request {
    match action.clone() {
        Action::Put { key, value, lease } => Request::RequestPut(PutRequest {
            key: key.into(),
            value: value.into(),
            lease,
            ..Default::default()
        }),
        Action::Delete { key } => Request::RequestDeleteRange(DeleteRangeRequest {
            key: key.into(),
            ..Default::default()
        }),
        Action::Get { key } => Request::RequestRange(RangeRequest {
            key: key.into(),
            ..Default::default()
        }),
    }
}

fn to_op(action: &Action) -> RequestOp {
    RequestOp {
        request: Some(to_request(action)),
    }
}

fn to_compare(compare: &Compare) -> pb::Compare {
    let (target, union) = match compare.target.clone() {
        Target::Version(n) => (CompareTarget::Version, TargetUnion::Version(n)),
        Target::ModRevision(n) => (CompareTarget::Mod, TargetUnion::ModRevision(n)),
        Target::CreateRevision(n) => (CompareTarget::Create, TargetUnion::CreateRevision(n)),
        Target::Value(value) => (CompareTarget::Value, TargetUnion::Value(value.into())),
    };
    pb::Compare {
        result: CompareResult::Equal as i32,
        target: target as i32,
        key: compare.key.clone().into(),
        range_end: Default::default(),
        target_union: Some(union),
    }
}

fn to_result(response: &ResponseOp) -> ActionResult {
    match &response.response {
        Some(Response::ResponseRange(range)) => ActionResult::Get {
            kv: range.kvs.first().map(key_value),
        },
        Some(Response::ResponseDeleteRange(deletion)) => ActionResult::Delete {
            deleted: deletion.deleted,
        },
        _ => ActionResult::Put,
    }
}
