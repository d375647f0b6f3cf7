//! What goes wrong, and when: a schedule that follows from the seed.

use std::cell::Cell;
use std::sync::Arc;
use std::time::Duration;

use kv_raft::{MembershipError, Node};
use tokio::time::{Instant, sleep};

use crate::checker::Fate;
use crate::clients::new_command;
use crate::machine::CommandKind;
use crate::member::{self, Death};
use crate::random::Random;
use crate::world::World;

thread_local! {
    /// Faults of the run on this thread.
    static COUNT: Cell<u64> = const { Cell::new(0) };
}

/// Faults since the start of the newest run on this thread.
pub(crate) fn count() -> u64 {
    COUNT.get()
}

/// Members that a cluster may grow to.
const MEMBERS_MAX: usize = 6;

/// Makes trouble until the run ends.
pub(crate) async fn run(world: Arc<World>, founders: Vec<u64>) {
    COUNT.set(0);
    let mut random = Random::new(world.settings.seed, 3);
    // Most runs begin with a cluster that works.
    if random.chance(80) {
        sleep(random.millis(1500..3000)).await;
    }
    loop {
        sleep(random.millis(20..900)).await;
        COUNT.set(COUNT.get() + 1);
        one(&world, &founders, &mut random).await;
    }
}

async fn one(world: &Arc<World>, founders: &[u64], random: &mut Random) {
    let running: Vec<u64> = world.running().iter().map(|(id, _)| *id).collect();
    let leader = leader(world).map(|(id, _)| id);
    // The leader is what most faults are about.
    let victim = match leader {
        Some(leader) if random.chance(40) => Some(leader),
        _ => random.pick(&running),
    };
    match random.within(0..100) {
        0..14 => cut(world, &running, victim, random),
        14..24 => {
            world.note("the network heals");
            world.links(|links, _| links.heal());
        }
        24..30 => {
            let (lost, delay) = (
                random.pick(&[0, 5, 20, 100]).unwrap_or(0),
                random.pick(&[500, 5_000, 50_000, 200_000]).unwrap_or(500),
            );
            world.note(format_args!(
                "{lost} of 1000 messages are lost, delays up to {delay} us"
            ));
            world.links(|links, _| {
                links.lost_per_mille = lost;
                links.delay_us = delay;
            });
        }
        30..44 => {
            if let Some(victim) = victim {
                member::kill(world, victim, death(random));
            }
        }
        44..47 => {
            let death = death(random);
            for id in running {
                member::kill(world, id, death);
            }
        }
        47..66 => restart(world, founders, random).await,
        66..72 => stall(world, victim, random),
        72..75 => {
            if let Some(victim) = victim {
                member::fail_fsync(world, victim);
            }
        }
        75..82 => hand_over(world, random),
        82..96 => change_members(world, random).await,
        _ => {
            if let Some((node, _)) = victim.and_then(|id| world.node(id)) {
                tokio::spawn(async move { drop(node.checkpoint().await) });
            }
        }
    }
}

fn death(random: &mut Random) -> Death {
    match random.chance(60) {
        true => Death::PowerCut,
        false => Death::Killed,
    }
}

fn leader(world: &World) -> Option<(u64, Node)> {
    world
        .running()
        .into_iter()
        .find(|(id, node)| node.peek(|status| status.leader == Some(*id)))
}

/// Cuts links: one member off, in two halves, one way, or so that only one member sees all.
fn cut(world: &World, running: &[u64], victim: Option<u64>, random: &mut Random) {
    let Some(victim) = victim else { return };
    let all: Vec<u64> = world.with_slots(|slots| slots.keys().copied().collect());
    let side: Vec<u64> = all.iter().copied().filter(|_| random.chance(50)).collect();
    let one = random.pick(running);
    let kind = random.within(0..6);
    let resets = random.chance(50);
    let mut cut = Vec::new();
    for from in &all {
        for to in &all {
            let across = side.contains(from) != side.contains(to);
            let is_cut = match kind {
                0 => *from == victim || *to == victim,
                1 => across,
                2 => *from == victim,
                3 => *to == victim,
                // A bridge: the victim sees both halves.
                4 => across && *from != victim && *to != victim,
                _ => Some(*from) == one && *to == victim,
            };
            if is_cut && from != to {
                cut.push((*from, *to));
            }
        }
    }
    let kind = ["off", "halves", "mute", "deaf", "bridge", "one way"][kind as usize];
    world.note(format_args!(
        "links are cut around {victim} ({kind}): {cut:?}"
    ));
    world.links(|links, _| {
        links.cut = cut.into_iter().collect();
        links.resets = resets;
    });
}

/// Starts one member that is down, or all of them.
async fn restart(world: &Arc<World>, founders: &[u64], random: &mut Random) {
    let down: Vec<u64> = world.with_slots(|slots| {
        let down = slots
            .iter()
            .filter(|(_, slot)| slot.process.is_none() && !slot.gone && slot.incarnation > 0);
        down.map(|(id, _)| *id).collect()
    });
    let chosen = if random.chance(40) {
        down
    } else {
        random.pick(&down).into_iter().collect()
    };
    for id in chosen {
        member::start(world, id, founders).await;
    }
}

fn stall(world: &World, victim: Option<u64>, random: &mut Random) {
    let Some(victim) = victim else { return };
    if random.chance(50) {
        let lasts = random.millis(200..5000);
        world.note(format_args!(
            "the disk of {victim} stands still for {lasts:?}"
        ));
        world.with_slot(victim, |slot| {
            slot.stalled_until = Some(Instant::now() + lasts);
        });
    } else {
        let disk_us = random.pick(&[100, 5_000, 50_000, 300_000]).unwrap_or(300);
        world.note(format_args!("the disk of {victim} takes {disk_us} us"));
        world.with_slot(victim, |slot| slot.disk_us = disk_us);
    }
}

fn hand_over(world: &Arc<World>, random: &mut Random) {
    let Some((leader, node)) = leader(world) else {
        return;
    };
    let voters = node.status().voters;
    let Some(to) = random.pick(&voters) else {
        return;
    };
    world.note(format_args!("{leader} is to hand over to {to}"));
    let world = world.clone();
    tokio::spawn(async move {
        let outcome = node.transfer_leader(to).await;
        world.note(format_args!("{leader} handed over to {to}: {outcome:?}"));
    });
}

async fn change_members(world: &Arc<World>, random: &mut Random) {
    let Some((leader, node)) = leader(world) else {
        return;
    };
    let status = node.status();
    let members = status.voters.len() + status.learners.len();
    match random.within(0..10) {
        0..4 if members < MEMBERS_MAX => {
            let id = member::add_slot(world, false);
            world.note(format_args!("{leader} is to add {id}"));
            // Started before it is a member, at once, or not at all for now.
            if random.chance(70) {
                member::start(world, id, &[]).await;
            } else {
                world.with_slot(id, |slot| slot.incarnation = 2);
            }
            tokio::spawn(add(world.clone(), leader, node, id));
        }
        4..7 => {
            if let Some(id) = random.pick(&status.learners) {
                tokio::spawn(promote(world.clone(), id));
            }
        }
        _ if members > 2 => {
            let of_all: Vec<u64> = status
                .voters
                .iter()
                .chain(&*status.learners)
                .copied()
                .collect();
            // Now and then the leader itself, with and without a hand-over.
            let id = match random.chance(25) {
                true => Some(leader),
                false => random.pick(&of_all),
            };
            let Some(id) = id else { return };
            tokio::spawn(remove(world.clone(), leader, node, id, random.chance(50)));
        }
        _ => {}
    }
}

async fn add(world: Arc<World>, leader: u64, node: Node, id: u64) {
    let (command, _) = new_command(&world, leader, CommandKind::Join);
    let outcome = node.add_learner(id, Some(command.encode(0))).await;
    world.note(format_args!("{leader} added {id}: {outcome:?}"));
    changed(&world, command.id, &outcome);
    if outcome.is_err() {
        return;
    }
    for _ in 0..100 {
        sleep(Duration::from_millis(100)).await;
        let Some((_, node)) = self::leader(&world) else {
            continue;
        };
        if node.peek(|status| !status.learners.contains(&id)) {
            continue;
        }
        if node.peer_progress(id).is_some_and(|p| p.is_caught_up()) {
            return promote(world, id).await;
        }
    }
}

async fn promote(world: Arc<World>, id: u64) {
    let Some((leader, node)) = self::leader(&world) else {
        return;
    };
    let (command, _) = new_command(&world, leader, CommandKind::Join);
    let mut voters = node.status().voters.to_vec();
    voters.push(id);
    world.check(|checker| checker.asks(command.id, voters));
    let outcome = node.promote(id, Some(command.encode(0))).await;
    world.note(format_args!("{leader} promoted {id}: {outcome:?}"));
    changed(&world, command.id, &outcome);
}

async fn remove(world: Arc<World>, leader: u64, node: Node, id: u64, hands_over: bool) {
    world.note(format_args!("{leader} is to remove {id}"));
    if id == leader
        && hands_over
        && let Some(to) = node.successor(|_| true)
    {
        let outcome = node.transfer_leader(to).await;
        world.note(format_args!("{leader} handed over to {to}: {outcome:?}"));
    }
    let Some((leader, node)) = self::leader(&world) else {
        return;
    };
    let (command, _) = new_command(&world, leader, CommandKind::Remove(id));
    let mut voters = node.status().voters.to_vec();
    voters.retain(|voter| *voter != id);
    world.check(|checker| checker.asks(command.id, voters));
    let outcome = node.remove(id, Some(command.encode(0))).await;
    world.note(format_args!("{leader} removed {id}: {outcome:?}"));
    changed(&world, command.id, &outcome);
}

/// What a membership change told its caller.
fn changed(world: &World, command: u64, outcome: &Result<(), MembershipError>) {
    let unknown = [MembershipError::LeadershipLost, MembershipError::Stopped];
    if !matches!(outcome, Err(error) if unknown.contains(error)) {
        world.check(|checker| checker.settled(command));
    }
    match outcome {
        Ok(()) => world.check(|checker| {
            if !checker.is_applied(command) {
                checker.violated(format!(
                    "the members were changed by command {command}, which nobody applied"
                ));
            }
        }),
        Err(MembershipError::LeadershipLost | MembershipError::Stopped) => {
            world.refused(command, Fate::Unknown);
        }
        Err(_) => world.refused(command, Fate::Refused),
    }
}
