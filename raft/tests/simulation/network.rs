//! Messages between simulated members: late, lost, out of order, cut off one way or both.
//!
//! A call is a message and its answer, each with a delay of its own, so calls overtake each other.
//! A stream keeps its order, as TCP does: a lost message breaks it, and a cut link either resets it
//! or holds its messages until the link heals. What a dead process sent may still arrive; what is
//! for it does not.

use std::collections::{BTreeSet, VecDeque};
use std::pin::Pin;
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use futures_util::{Stream, StreamExt, stream};
use kv_raft::{
    AnswerStream, ByteStream, Lane, PeerError, PeerFuture, PeerTransport, Rpc, SnapshotSource,
};
use tokio::sync::mpsc;
use tokio::task::JoinHandle;
use tokio::time::{Instant, sleep, sleep_until, timeout};

use crate::machine::Source;
use crate::random::Random;
use crate::settings::Defect;
use crate::wire;
use crate::world::{World, digest};

/// How long a held stream waits before it looks again whether its link is whole.
const HELD_PAUSE: Duration = Duration::from_millis(20);
/// How long a snapshot without progress is waited for.
const SNAPSHOT_TIMEOUT: Duration = Duration::from_secs(3);

/// The state of all links.
pub(crate) struct Links {
    /// Nothing passes from the first to the second.
    pub(crate) cut: BTreeSet<(u64, u64)>,
    /// A cut link is noticed at once, as when a process or a host answers with a reset.
    pub(crate) resets: bool,
    /// Of 1000 messages, so many are lost.
    pub(crate) lost_per_mille: u64,
    /// Longest delay of a message.
    pub(crate) delay_us: u64,
    pub(crate) messages: u64,
    pub(crate) snapshots: u64,
}

impl Default for Links {
    fn default() -> Links {
        Links {
            cut: BTreeSet::new(),
            resets: false,
            lost_per_mille: 0,
            delay_us: 500,
            messages: 0,
            snapshots: 0,
        }
    }
}

impl Links {
    /// Makes the network perfect.
    pub(crate) fn heal(&mut self) {
        self.cut.clear();
        self.lost_per_mille = 0;
        self.delay_us = 500;
    }

    fn fate(&mut self, from: u64, to: u64, random: &mut Random) -> Fate {
        self.messages += 1;
        let (delay, lost) = (
            random.micros(self.delay_us / 10..self.delay_us),
            random.within(0..1000),
        );
        if self.cut.contains(&(from, to)) {
            return if self.resets { Fate::Reset } else { Fate::Lost };
        }
        if lost < self.lost_per_mille {
            return Fate::Lost;
        }
        Fate::Arrives(delay)
    }
}

/// What becomes of a message.
enum Fate {
    Arrives(Duration),
    Lost,
    /// The sender is told that there is no way.
    Reset,
}

/// One end of a connection: a member in one of its lives.
type End = (u64, u64);

/// What a member sends through.
pub(crate) struct Transport {
    pub(crate) world: Arc<World>,
    pub(crate) own: End,
}

fn reset() -> PeerError {
    PeerError::Unreachable("the connection was reset".into())
}

fn refused() -> PeerError {
    PeerError::NotSent("nobody listens".into())
}

impl Transport {
    fn fate(&self, from: u64, to: u64) -> Fate {
        fate(&self.world, from, to)
    }

    /// The living receiver of what this member sends, unless it knows this one to be removed.
    fn receiver(&self, peer: u64) -> Result<(kv_raft::Node, u64), PeerError> {
        let own = self.own.0;
        let Some(found) = self.world.node(peer) else {
            return Err(refused());
        };
        if self
            .world
            .with_slot(peer, |slot| slot.removed.contains(&own))
        {
            crate::member::is_told_of_its_removal(&self.world, own);
            return Err(PeerError::Answer("removed from the cluster".into()));
        }
        Ok(found)
    }

    async fn exchange(&self, peer: u64, rpc: Rpc, request: Bytes) -> Result<Bytes, PeerError> {
        let world = &self.world;
        if !world.is_alive(self.own.0, self.own.1) {
            return Err(refused());
        }
        let asked = match rpc {
            Rpc::Vote => {
                let vote = wire::vote_of(request.clone());
                world.sees_vote_request(self.own.0, vote);
                Some(vote)
            }
            _ => None,
        };
        world.trace(|trace| trace.count(digest(&request)));
        match self.fate(self.own.0, peer) {
            Fate::Arrives(delay) => sleep(delay).await,
            Fate::Lost => std::future::pending().await,
            Fate::Reset => return Err(refused()),
        }
        let (node, incarnation) = self.receiver(peer)?;
        let answer = node.answer(rpc, request).await;
        if !world.is_alive(peer, incarnation) {
            return Err(reset());
        }
        let answer = answer.map_err(|error| PeerError::Answer(error.to_string()))?;
        if let Some(asked) = asked {
            let given = wire::vote_answer(answer.clone());
            world.sees_vote_answer(peer, asked, given);
        }
        match self.fate(peer, self.own.0) {
            Fate::Arrives(delay) => sleep(delay).await,
            Fate::Lost => std::future::pending().await,
            Fate::Reset => return Err(reset()),
        }
        Ok(answer)
    }

    async fn connect(
        &self,
        peer: u64,
        requests: ByteStream,
        deadline: Duration,
    ) -> Result<AnswerStream, PeerError> {
        let world = self.world.clone();
        match self.fate(self.own.0, peer) {
            Fate::Arrives(delay) => sleep(delay).await,
            Fate::Lost => {
                sleep(deadline).await;
                return Err(PeerError::Timeout);
            }
            Fate::Reset => return Err(refused()),
        }
        let (node, incarnation) = self.receiver(peer)?;
        let (own, other) = (self.own, (peer, incarnation));
        let (to_peer, from_own) = mpsc::unbounded_channel::<Bytes>();
        let (to_own, answers) = mpsc::unbounded_channel::<Result<Bytes, PeerError>>();

        let seen = world.clone();
        let requests = requests.inspect(move |request| {
            let append = wire::append(request.clone());
            // What a dead process says is heard by nobody.
            if seen.is_alive(own.0, own.1) {
                seen.sees_append(own.0, peer, &append);
            }
        });
        let there = carry(
            world.clone(),
            own,
            other,
            Box::pin(requests),
            move |bytes| to_peer.send(bytes).is_ok(),
        );
        let there = tokio::spawn(async move { drop(there.await) });

        let seen = world.clone();
        let arriving = stream::unfold(from_own, |mut from_own| async move {
            let request = from_own.recv().await?;
            Some((request, from_own))
        });
        let given = node
            .answer_append_stream(Box::pin(arriving))
            .inspect(move |answer| {
                if seen.is_alive(other.0, other.1) {
                    seen.sees_append_answer(peer, &wire::append_answer(answer.clone()));
                }
            });
        let back_end = to_own.clone();
        let back = carry(world, other, own, Box::pin(given), move |bytes| {
            to_own.send(Ok(bytes)).is_ok()
        });
        let back = tokio::spawn(async move {
            let end = back.await.err().unwrap_or_else(reset);
            let _ = back_end.send(Err(end));
        });
        Ok(Box::pin(Connection {
            answers,
            tasks: [there, back],
        }))
    }

    async fn send_snapshot(
        &self,
        peer: u64,
        header: Bytes,
        mut source: Box<dyn SnapshotSource>,
    ) -> Result<Bytes, PeerError> {
        let broken = |error: std::io::Error| PeerError::Unreachable(error.to_string());
        let applied = source.applied();
        let mut chunks = Vec::new();
        loop {
            match self.fate(self.own.0, peer) {
                Fate::Arrives(delay) => sleep(delay * 4).await,
                Fate::Lost => {
                    sleep(SNAPSHOT_TIMEOUT).await;
                    return Err(PeerError::Timeout);
                }
                Fate::Reset => return Err(refused()),
            }
            match source.next_chunk().map_err(broken)? {
                Some(chunk) => chunks.push(chunk),
                None => break,
            }
        }
        let (node, incarnation) = self.receiver(peer)?;
        let index = applied.index;
        let own = self.own.0;
        self.world.note(format_args!(
            "{own} sends {peer} a snapshot of index {index}"
        ));
        let received = Box::new(Source::new(applied, chunks));
        let answer = node.answer_snapshot(header, received).await;
        if !self.world.is_alive(peer, incarnation) {
            return Err(reset());
        }
        match self.fate(peer, self.own.0) {
            Fate::Arrives(delay) => sleep(delay).await,
            Fate::Lost | Fate::Reset => return Err(reset()),
        }
        answer.map_err(|error| PeerError::Answer(error.to_string()))
    }
}

impl PeerTransport for Transport {
    fn call(
        &self,
        peer: u64,
        rpc: Rpc,
        request: Bytes,
        deadline: Duration,
    ) -> PeerFuture<'_, Bytes> {
        Box::pin(async move {
            let exchange = self.exchange(peer, rpc, request.clone());
            let answer = timeout(deadline, exchange).await;
            let answer = answer.unwrap_or(Err(PeerError::Timeout));
            let again = self.world.settings.has(Defect::ProposedTwice) && rpc == Rpc::Propose;
            match answer {
                Err(PeerError::Timeout | PeerError::Unreachable(_)) if again => {
                    let exchange = self.exchange(peer, rpc, request);
                    let answer = timeout(deadline, exchange).await;
                    answer.unwrap_or(Err(PeerError::Timeout))
                }
                answer => answer,
            }
        })
    }

    fn append_stream(
        &self,
        peer: u64,
        _: Lane,
        requests: ByteStream,
        deadline: Duration,
    ) -> PeerFuture<'_, AnswerStream> {
        Box::pin(self.connect(peer, requests, deadline))
    }

    fn snapshot(
        &self,
        peer: u64,
        header: Bytes,
        source: Box<dyn SnapshotSource>,
    ) -> PeerFuture<'_, Bytes> {
        Box::pin(self.send_snapshot(peer, header, source))
    }
}

/// A stream's answers; dropped, the connection ends.
struct Connection {
    answers: mpsc::UnboundedReceiver<Result<Bytes, PeerError>>,
    tasks: [JoinHandle<()>; 2],
}

impl Stream for Connection {
    type Item = Result<Bytes, PeerError>;

    fn poll_next(
        mut self: Pin<&mut Self>,
        context: &mut std::task::Context<'_>,
    ) -> std::task::Poll<Option<Self::Item>> {
        self.answers.poll_recv(context)
    }
}

impl Drop for Connection {
    fn drop(&mut self) {
        for task in &self.tasks {
            task.abort();
        }
    }
}

/// Carries messages in their order from one end of a connection to the other, until the source
/// ends, a message is lost, or an end dies.
async fn carry(
    world: Arc<World>,
    from: End,
    to: End,
    mut source: ByteStream,
    mut deliver: impl FnMut(Bytes) -> bool,
) -> Result<(), PeerError> {
    let mut flying: VecDeque<(Instant, Bytes)> = VecDeque::new();
    let mut open = true;
    let mut last = Instant::now();
    while open || !flying.is_empty() {
        let arrival = flying.front().map(|(arrival, _)| *arrival);
        let arrived = async {
            match arrival {
                Some(arrival) => sleep_until(arrival).await,
                None => std::future::pending().await,
            }
        };
        tokio::select! {
            biased;
            () = arrived => {
                if !world.is_alive(from.0, from.1) || !world.is_alive(to.0, to.1) {
                    return Err(reset());
                }
                match fate(&world, from.0, to.0) {
                    Fate::Reset => return Err(reset()),
                    Fate::Lost if world.links(|links, _| links.cut.contains(&(from.0, to.0))) => {
                        sleep(HELD_PAUSE).await;
                    }
                    Fate::Lost => return Err(reset()),
                    Fate::Arrives(_) => {
                        let (_, message) = flying.pop_front().expect("it arrived");
                        if !deliver(message) {
                            return Ok(());
                        }
                    }
                }
            }
            message = source.next(), if open => match message {
                Some(message) => {
                    world.trace(|trace| trace.count(digest(&message)));
                    let delay = world.links(|links, random| {
                        random.micros(links.delay_us / 10..links.delay_us)
                    });
                    last = last.max(Instant::now() + delay);
                    flying.push_back((last, message));
                }
                None => open = false,
            },
        }
    }
    Ok(())
}

fn fate(world: &World, from: u64, to: u64) -> Fate {
    world.links(|links, random| links.fate(from, to, random))
}
