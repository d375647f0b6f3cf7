//! Sends the proposals of a member that does not lead to the leader, several in one message.
//!
//! One loop per node owns what waits. As long as fewer than [`PACKS_IN_FLIGHT`] messages are with the
//! leader, a proposal leaves at once; else it waits for the next answer and leaves together with all
//! that came meanwhile, as one entry. So a lone client waits for nothing, and many share the cost of a
//! call and of an entry. A pack has one outcome, which is that of each of its proposals.
//!
//! What waits was sent to nobody: when another leads, it goes there. What is with a leader that no
//! longer leads is answered, or its time runs out; a pack is never sent again by this loop.

use std::collections::VecDeque;
use std::pin::Pin;
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use futures_util::StreamExt;
use futures_util::stream::FuturesUnordered;
use tokio::sync::{mpsc, watch};

use crate::encoding;
use crate::network::{PeerTransport, Rpc};
use crate::proposal::Proposal;
use crate::status::Status;
use crate::wire;

/// Messages with one leader at a time. More make smaller packs, fewer let a proposal wait longer.
pub(crate) const PACKS_IN_FLIGHT: usize = 4;
/// Bytes of a pack, unless a single proposal is larger.
const PACK_BYTES_MAX: usize = 256 << 10;
/// Proposals in a pack.
const PACK_PROPOSALS_MAX: usize = 256;
/// How long the leader's answer is waited for, beside two election timeouts: as long as etcd
/// lets a request wait.
const ANSWER_TIMEOUT: Duration = Duration::from_secs(5);

/// The loop; see the module.
pub(crate) struct Forwarder {
    pub(crate) member_id: u64,
    pub(crate) transport: Arc<dyn PeerTransport>,
    pub(crate) election_timeout: Duration,
    /// Proposals to send.
    pub(crate) proposals: mpsc::UnboundedReceiver<Proposal>,
    pub(crate) status: watch::Receiver<Status>,
    /// Closed when the apply worker has ended.
    pub(crate) apply_ended: watch::Receiver<()>,
}

impl Forwarder {
    /// Runs until apply ends or the node is dropped; what is left then has an unknown outcome.
    pub(crate) async fn run(mut self) {
        let mut waiting = VecDeque::new();
        let mut arrived = Vec::new();
        // The leader, the number of its reign as this loop counts them, and its packs that are not answered.
        let mut leader = None;
        let mut reign = 0;
        let mut in_flight = 0;
        let mut calls = FuturesUnordered::<Call>::new();
        loop {
            tokio::select! {
                biased;
                // It is never sent to, only closed.
                _ = self.apply_ended.changed() => return,
                changed = self.status.changed() => if changed.is_err() { return },
                Some(answered) = calls.next() => {
                    if answered == reign {
                        in_flight -= 1;
                    }
                }
                count = self.proposals.recv_many(&mut arrived, PACK_PROPOSALS_MAX) => {
                    if count == 0 {
                        return;
                    }
                    waiting.extend(arrived.drain(..));
                }
            }
            let now = self.leader();
            if now != leader {
                (leader, reign, in_flight) = (now, reign + 1, 0);
            }
            let Some((to, _)) = leader else {
                // This member leads, or nobody does: each goes the way of a new one.
                waiting.drain(..).for_each(Proposal::submit);
                continue;
            };
            while in_flight < PACKS_IN_FLIGHT {
                let Some(pack) = take_pack(&mut waiting) else {
                    break;
                };
                in_flight += 1;
                calls.push(self.send(to, reign, pack));
            }
        }
    }

    /// The other member that leads, and its term.
    fn leader(&mut self) -> Option<(u64, u64)> {
        let status = self.status.borrow_and_update();
        let other = status.leader.filter(|leader| *leader != self.member_id);
        other.map(|leader| (leader, status.term))
    }

    /// Sends `pack` to `leader` and takes its answer; resolves to `reign`.
    fn send(&self, leader: u64, reign: u64, pack: Vec<Proposal>) -> Call {
        let transport = self.transport.clone();
        let timeout = ANSWER_TIMEOUT + self.election_timeout * 2;
        let bodies: Vec<Bytes> = pack
            .iter()
            .map(|proposal| proposal.body().clone())
            .collect();
        let request = wire::encode_propose(&encoding::joined_bodies(&bodies));
        Box::pin(async move {
            let answer = transport.call(leader, Rpc::Propose, request, timeout).await;
            let answer = answer.map(wire::decode_propose_answer);
            if let Ok(Err(error)) = &answer {
                tracing::warn!(peer = leader, %error, "answer to a proposal does not decode");
            }
            for proposal in pack {
                proposal.answered(leader, &answer);
            }
            reign
        })
    }
}

type Call = Pin<Box<dyn Future<Output = u64> + Send>>;

/// The oldest of `waiting` that fit in one message.
fn take_pack(waiting: &mut VecDeque<Proposal>) -> Option<Vec<Proposal>> {
    let first = waiting.pop_front()?;
    let mut bytes = first.body().len();
    let mut pack = vec![first];
    while pack.len() < PACK_PROPOSALS_MAX {
        let fits = |next: &mut Proposal| bytes + next.body().len() <= PACK_BYTES_MAX;
        let Some(next) = waiting.pop_front_if(fits) else {
            break;
        };
        bytes += next.body().len();
        pack.push(next);
    }
    Some(pack)
}
