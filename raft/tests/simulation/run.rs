//! One run: a cluster is made, clients use it while things go wrong, then all is repaired and the
//! cluster must heal.

use std::fmt;
use std::sync::Arc;
use std::time::Duration;

use kv_raft::Role;
use tokio::time::{Instant, sleep, timeout};

use crate::checker::Fate;
use crate::clients;
use crate::faults;
use crate::member::{self, Death};
use crate::random::Random;
use crate::settings::Settings;
use crate::world::World;

/// How often all members are looked at.
const SWEEP_PAUSE: Duration = Duration::from_millis(10);
/// Within which time a repaired cluster must serve again: twenty election timeouts.
const HEALING_MAX: Duration = Duration::from_secs(20);
/// Events of one run, a hundred times what a run has: more is a loop that never ends.
const EVENTS_MAX: u64 = 20_000_000;

/// What a run saw; shown as it is.
#[derive(Clone, Debug, Default)]
#[allow(dead_code, reason = "read by people")]
pub(crate) struct Report {
    pub(crate) events: u64,
    pub(crate) messages: u64,
    pub(crate) hash: u64,
    pub(crate) committed: u64,
    pub(crate) terms: u64,
    pub(crate) acknowledged: u64,
    pub(crate) reads: u64,
    pub(crate) snapshots: u64,
    pub(crate) faults: u64,
    pub(crate) healed_in: Duration,
    pub(crate) simulated: Duration,
}

/// What must not be, and how it came to it.
pub(crate) struct Failure {
    pub(crate) seed: u64,
    pub(crate) violation: String,
    pub(crate) trace: Vec<String>,
}

impl fmt::Display for Failure {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for line in &self.trace {
            writeln!(f, "{line}")?;
        }
        write!(f, "seed {}: {}", self.seed, self.violation)
    }
}

/// Runs a simulation to its end on this thread.
pub(crate) fn run(settings: Settings) -> Result<Report, Failure> {
    kv_raft::runtime::seed_this_thread(settings.seed);
    let mut builder = tokio::runtime::Builder::new_current_thread();
    builder.enable_time().start_paused(true);
    // Without it tokio's own choices (which waiter of a channel wakes first) differ between runs.
    #[cfg(tokio_unstable)]
    builder.rng_seed(tokio::runtime::RngSeed::from_bytes(
        &settings.seed.to_le_bytes(),
    ));
    let runtime = builder.build().expect("a runtime of one thread");
    runtime.block_on(async {
        let seed = settings.seed;
        let world = World::new(settings);
        let outcome = play(&world).await;
        match outcome {
            Ok(report) => Ok(report),
            Err(violation) => Err(Failure {
                seed,
                violation,
                trace: world.trace(|trace| trace.last_lines()),
            }),
        }
    })
}

async fn play(world: &Arc<World>) -> Result<Report, String> {
    let begun = Instant::now();
    let mut random = Random::new(world.settings.seed, 2);
    let count = [1, 3, 3, 3, 5][random.within(0..5) as usize];
    let founders: Vec<u64> = (0..count).map(|_| member::add_slot(world, true)).collect();
    for id in &founders {
        member::start(world, *id, &founders).await;
    }
    let clients: Vec<_> = (0..4)
        .map(|number| tokio::spawn(clients::run(world.clone(), number)))
        .collect();
    let nemesis = tokio::spawn(faults::run(world.clone(), founders.clone()));

    let end = begun + world.settings.faults_for;
    while Instant::now() < end {
        step(world).await?;
    }
    nemesis.abort();
    let faults = nemesis_ended(nemesis).await;
    heal(world, &founders).await;
    let healing = Instant::now();
    let healed = timeout(HEALING_MAX, converge(world)).await;
    match healed {
        Ok(outcome) => outcome?,
        Err(_) => return Err(world.violation().unwrap_or_else(|| unhealed(world))),
    }
    let healed_in = healing.elapsed();
    for client in clients {
        client.abort();
    }
    world.check(|checker| checker.check_acknowledged());
    if let Some(violation) = world.violation() {
        return Err(violation);
    }
    let (messages, snapshots) = world.links(|links, _| (links.messages, links.snapshots));
    let (events, hash) = world.trace(|trace| (trace.events(), trace.hash()));
    Ok(world.check(|checker| Report {
        events,
        messages,
        hash,
        committed: checker.committed_index(),
        terms: checker.terms_with_a_leader(),
        acknowledged: checker.acknowledged,
        reads: checker.reads,
        snapshots,
        faults,
        healed_in,
        simulated: begun.elapsed(),
    }))
}

/// Lets a little time pass and looks at all members.
async fn step(world: &Arc<World>) -> Result<(), String> {
    sleep(SWEEP_PAUSE).await;
    world.sweep();
    if let Some(violation) = world.violation() {
        return Err(violation);
    }
    let events = world.trace(|trace| trace.events());
    if events > EVENTS_MAX {
        return Err(format!("{events} events and no end"));
    }
    Ok(())
}

async fn nemesis_ended(nemesis: tokio::task::JoinHandle<()>) -> u64 {
    // Aborted, as it must be; how much it did is counted elsewhere.
    let _ = nemesis.await;
    faults::count()
}

/// Repairs everything: links, disks, and every member that is not removed runs.
async fn heal(world: &Arc<World>, founders: &[u64]) {
    world.note("everything is repaired");
    world.links(|links, _| links.heal());
    for id in member::doomed(world) {
        member::kill(world, id, Death::Killed);
    }
    let down = world.with_slots(|slots| {
        let mut down = Vec::new();
        for (id, slot) in slots {
            slot.stalled_until = None;
            slot.disk_us = 300;
            if slot.process.is_none() && !slot.gone {
                down.push(*id);
            }
        }
        down
    });
    for id in down {
        // A start that the end of the faults interrupted is a process that died.
        world.with_slot(id, |slot| slot.incarnation += slot.incarnation % 2);
        member::start(world, id, founders).await;
    }
}

/// Waits until there is a leader, every member of its configuration takes a write and has
/// everything.
async fn converge(world: &Arc<World>) -> Result<(), String> {
    'again: loop {
        step(world).await?;
        sleep(Duration::from_millis(50)).await;
        let Some((leader, node)) = world
            .running()
            .into_iter()
            .find(|(id, node)| node.status().leader == Some(*id))
        else {
            continue;
        };
        let status = node.status();
        let members: Vec<u64> = status
            .voters
            .iter()
            .chain(&*status.learners)
            .copied()
            .collect();
        for id in &members {
            let Some((through, _)) = world.node(*id) else {
                continue 'again;
            };
            let proposed = clients::propose(world, *id, &through);
            match timeout(Duration::from_secs(2), proposed).await {
                Ok(Ok(Fate::Acknowledged(_))) => {}
                _ => continue 'again,
            }
            world.sweep();
        }
        let Ok(index) = node.linearizable().await else {
            continue;
        };
        for id in &members {
            let Some((member, _)) = world.node(*id) else {
                continue 'again;
            };
            let applied = member.wait_applied(index);
            if !matches!(timeout(Duration::from_secs(2), applied).await, Ok(Ok(()))) {
                continue 'again;
            }
            let seen = member.status();
            let knows = seen.leader == Some(leader);
            let role = if *id == leader {
                Role::Leader
            } else if status.voters.contains(id) {
                Role::Follower
            } else {
                Role::Learner
            };
            if !knows || seen.role != role {
                continue 'again;
            }
        }
        return Ok(());
    }
}

/// Why a cluster did not heal.
fn unhealed(world: &World) -> String {
    let mut text = format!("no healing within {HEALING_MAX:?}:");
    for (id, node) in world.running() {
        let status = node.status();
        text += &format!("\n  {id}: {status:?}");
        for voter in &*status.voters {
            if let Some(progress) = node.peer_progress(*voter) {
                text += &format!("\n     of {voter}: {progress:?}");
            }
        }
    }
    text
}
