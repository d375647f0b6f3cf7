//! Clients: they write and read through any member, and know what they may believe of the outcome.

use std::sync::Arc;
use std::time::Duration;

use kv_raft::{Node, ProposeError};
use tokio::sync::oneshot;
use tokio::time::{sleep, timeout};

use crate::checker::Fate;
use crate::machine::{Command, CommandKind};
use crate::random::Random;
use crate::settings::Defect;
use crate::world::World;

/// How long a client waits for an outcome; after it the outcome is unknown to it.
const PATIENCE: Duration = Duration::from_secs(2);

/// Works until the run ends.
pub(crate) async fn run(world: Arc<World>, number: u64) {
    let mut random = Random::new(world.settings.seed, 100 + number);
    loop {
        sleep(random.millis(5..120)).await;
        let running: Vec<u64> = world.running().iter().map(|(id, _)| *id).collect();
        let Some(id) = random.pick(&running) else {
            continue;
        };
        let Some((node, incarnation)) = world.node(id) else {
            continue;
        };
        if random.chance(60) {
            let outcome = propose(&world, id, &node);
            // A client that does not wait goes on with its next request at once.
            if random.chance(80) {
                let _ = timeout(PATIENCE, outcome).await;
            }
        } else {
            read(&world, id, incarnation, &node).await;
        }
    }
}

/// Proposes one command or a few in one entry; the outcome is that of the first.
pub(crate) fn propose(world: &Arc<World>, id: u64, node: &Node) -> oneshot::Receiver<Fate> {
    let packed = world.draw(|random| if random.chance(15) { 3 } else { 1 });
    let mut outcome = None;
    let mut ids = Vec::new();
    let mut commands = Vec::new();
    for _ in 0..packed {
        let (command, receiver) = new_command(world, id, CommandKind::Write);
        ids.push(command.id);
        let padding = world.draw(|random| match random.within(0..20) {
            0 => 3_000,
            1..6 => 300,
            _ => 10,
        });
        commands.push(command.encode(padding));
        outcome.get_or_insert(receiver);
    }
    let refused = {
        let world = world.clone();
        let ids = ids.clone();
        Box::new(move |error: ProposeError| {
            for id in ids {
                world.refused(id, fate_of(&error));
            }
        })
    };
    node.propose(commands, refused);
    if world.settings.has(Defect::AcknowledgedEarly) {
        for id in ids {
            world.check(|checker| checker.acknowledge_too_early(id));
        }
    }
    outcome.expect("at least one command")
}

/// A command with an id of its own that goes through member `id`.
pub(crate) fn new_command(
    world: &World,
    id: u64,
    kind: CommandKind,
) -> (Command, oneshot::Receiver<Fate>) {
    let incarnation = world.with_slot(id, |slot| slot.incarnation);
    world.check(|checker| {
        let command = checker.next_command();
        let receiver = checker.proposes(command, id, incarnation);
        (Command { id: command, kind }, receiver)
    })
}

fn fate_of(error: &ProposeError) -> Fate {
    match error {
        ProposeError::NotLeader { .. } | ProposeError::NoQuorum | ProposeError::Overloaded => {
            Fate::Refused
        }
        ProposeError::LeadershipLost | ProposeError::NoAnswer | ProposeError::Stopped => {
            Fate::Unknown
        }
    }
}

async fn read(world: &Arc<World>, id: u64, incarnation: u64, node: &Node) {
    let floor = world.check(|checker| checker.read_floor());
    // As the server does: nobody else can lead beside a sole voter that was confirmed once.
    let alone = node.is_sole_voter();
    let life = (incarnation, node.peek(|status| status.term));
    let confirmed = alone && world.with_slot(id, |slot| slot.confirmed == Some(life));
    if !confirmed && !world.settings.has(Defect::ReadUnconfirmed) {
        match timeout(PATIENCE, node.linearizable()).await {
            Ok(Ok(_)) => {}
            _ => return,
        }
        if alone {
            world.with_slot(id, |slot| slot.confirmed = Some(life));
        }
    }
    // A dead process answers nobody.
    if world.is_alive(id, incarnation) {
        let shown = node.applied_index();
        world.check(|checker| checker.reads(id, floor, shown));
    }
}
