//! The life of a simulated member: start over its disk, drive the disk, die, be removed.

use std::sync::Arc;

use kv_raft::{Config, Node};
use kv_wal::fs::{Fault, Fs};
use kv_wal::{Identity, Recovered, Step, Wal};
use tokio::sync::Notify;
use tokio::time::sleep;

use crate::machine::Machine;
use crate::network::Transport;
use crate::settings::Defect;
use crate::wire;
use crate::world::{DiskLog, Process, Slot, World, disk_delay};

const DIR: &str = "/member/wal";

/// How a process ends.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Death {
    /// The kernel keeps what was written.
    Killed,
    /// What was not fsynced is lost, in part or whole, and the last write may be torn.
    PowerCut,
}

/// The settings all members of a run share.
pub(crate) fn config(world: &World, id: u64) -> Config {
    let seed = world.settings.seed;
    Config {
        member_id: id,
        snapshot_count: [8, 25, 100][(seed % 3) as usize],
        snapshot_catchup_entries: [0, 5, 30][(seed / 3 % 3) as usize],
        tail_bytes_max: [0, 2_000, 100_000][(seed / 9 % 3) as usize],
        ..Config::default()
    }
}

/// Starts a member over what is on its disk.
pub(crate) async fn start(world: &Arc<World>, id: u64, founders: &[u64]) {
    let (incarnation, disk, states, founder) = world.with_slot(id, |slot| {
        assert!(slot.process.is_none(), "member {id} runs already");
        slot.incarnation += 1;
        slot.stalled_until = None;
        (
            slot.incarnation,
            slot.disk.clone(),
            slot.durable.states.clone(),
            slot.founder,
        )
    });
    world.note(format_args!("{id} starts"));
    if world.settings.has(Defect::FsyncLies) {
        disk.ignore_sync();
    }
    let fs: Arc<dyn Fs> = Arc::new(disk.clone());
    let identity = Identity {
        cluster_id: 7,
        member_id: id,
        incarnation: 1,
    };
    let mut config_of_wal = kv_wal::Config::new(DIR, identity);
    config_of_wal.segment_bytes = 16 << 10;
    disk.create_dir("/member".as_ref()).expect("the disk works");
    let opened = if Wal::exists(DIR.as_ref(), &disk).unwrap_or(false) {
        Wal::open_stepped(fs, config_of_wal)
    } else {
        let created = Wal::create_stepped(fs, config_of_wal);
        created.map(|wal| (wal, Recovered::empty(identity)))
    };
    let (wal, mut recovered) = match opened {
        Ok(opened) => opened,
        Err(error) => {
            world.check(|checker| {
                checker.violated(format!("member {id} cannot open its log: {error}"));
            });
            return;
        }
    };
    check_recovered(world, id, &recovered);
    if world.settings.has(Defect::VoteForgotten) {
        recovered.vote = None;
    }

    // A crash may bring back either of the two states that were durable.
    let at = world.draw(|random| random.within(0..2)) as usize;
    let state = states.get(at).or(states.back()).cloned();
    let mut state = state.unwrap_or_default();
    let applied = &state.applied;
    let (index, term, hash) = (applied.index, applied.term, state.hash);
    world.check(|checker| checker.has_state(id, index, term, hash));
    if world.settings.has(Defect::ApplyRepeats) && index > 1 {
        state.applied.index -= 1;
    }
    world.with_slot(id, |slot| {
        slot.removed.clone_from(&state.removed);
        slot.durable.states.truncate(at + 1);
    });

    let driver = tokio::spawn(drive(world.clone(), id, incarnation, wal.clone()));
    let machine = Box::new(Machine {
        world: world.clone(),
        member: id,
        incarnation,
        state,
    });
    let transport = Arc::new(Transport {
        world: world.clone(),
        own: (id, incarnation),
    });
    let is_new = recovered.entries.is_empty() && recovered.vote.is_none() && index == 0;
    let started = Node::start(
        config(world, id),
        wal.clone(),
        recovered,
        machine,
        transport,
    );
    let node = match started.await {
        Ok(node) => node,
        Err(error) => {
            driver.abort();
            world.check(|checker| {
                checker.violated(format!("member {id} cannot start: {error}"));
            });
            return;
        }
    };
    world.with_slot(id, |slot| {
        slot.process = Some(Process {
            node: node.clone(),
            wal,
            term: 0,
            applied: 0,
            doomed: false,
        });
    });
    tokio::spawn(watch(world.clone(), id, incarnation, node.clone()));
    if founder && is_new {
        let founders = founders.to_vec();
        tokio::spawn(async move {
            // Another's entries may have come first.
            let _ = node.initialize(&founders).await;
        });
    }
}

/// What a disk gives back must contain what it took.
fn check_recovered(world: &World, id: u64, recovered: &Recovered) {
    let missing = world.with_slot(id, |slot| slot.at_least.missing_from(recovered));
    let vote = recovered.vote.as_ref().map(wire::stored_vote);
    let (entries, cut) = (recovered.entries.len(), recovered.cut.is_some());
    world.note(format_args!(
        "{id} finds {entries} entries{}",
        if cut { " and a torn tail" } else { "" }
    ));
    world.check(|checker| {
        if let Some((index, term)) = missing {
            checker.violated(format!(
                "member {id} lost entry {index} of term {term}, which was fsynced"
            ));
        }
        checker.recovers_vote(id, vote);
    });
}

/// Does the work of a log's writer thread, at the pace of the member's disk.
async fn drive(world: Arc<World>, id: u64, incarnation: u64, wal: Wal) {
    let work = Arc::new(Notify::new());
    let announced = work.clone();
    wal.set_work_hook(Box::new(move || announced.notify_one()));
    loop {
        loop {
            if world.is_alive(id, incarnation) {
                sleep(disk_delay(&world, id)).await;
            }
            match wal.step() {
                Step::Progress => {}
                Step::Idle => break,
                Step::Failed => {
                    // Whoever appends later is refused by the log itself.
                    return;
                }
            }
        }
        work.notified().await;
    }
}

/// Sees to a member that stops by itself: allowed only if its disk failed.
async fn watch(world: Arc<World>, id: u64, incarnation: u64, node: Node) {
    let cause = node.failed().await;
    if !world.is_alive(id, incarnation) {
        return;
    }
    let doomed = world.with_slot(id, |slot| {
        slot.process.as_ref().is_some_and(|process| process.doomed)
    });
    world.note(format_args!("{id} stops: {cause}"));
    if !doomed {
        world.check(|checker| {
            checker.violated(format!("member {id} stopped by itself: {cause}"));
        });
    }
    let death = match world.draw(|random| random.chance(50)) {
        true => Death::PowerCut,
        false => Death::Killed,
    };
    kill(&world, id, death);
}

/// Ends a process at once.
pub(crate) fn kill(world: &World, id: u64, death: Death) {
    let ended = world.with_slot(id, |slot| {
        let process = slot.process.take()?;
        slot.incarnation += 1;
        slot.at_least = DiskLog::of(&process.wal);
        Some((process, slot.disk.clone()))
    });
    let Some((process, disk)) = ended else {
        return;
    };
    world.note(format_args!("{id} dies: {death:?}"));
    let seed = world.draw(|random| random.number());
    let after = match death {
        Death::Killed => disk.kill(),
        Death::PowerCut => {
            // In the middle of what the disk was doing, as often as not.
            if seed.is_multiple_of(2) {
                let operation = disk.operation_count() + seed / 2 % 3;
                disk.fail_at(operation, Fault::PowerCut);
                process.wal.step();
            }
            disk.power_cut(seed)
        }
    };
    // The rest of the process finds a disk that is off.
    disk.fail_at(disk.operation_count(), Fault::PowerCut);
    let _ = disk.create("/off".as_ref());
    world.with_slot(id, |slot| slot.disk = after);
    tokio::spawn(async move {
        while process.wal.step() == Step::Progress {}
        let _ = process.node.shutdown().await;
    });
}

/// A member hears that it is no member any more, and stops for good.
pub(crate) fn is_told_of_its_removal(world: &World, id: u64) {
    let news = world.with_slot(id, |slot| !std::mem::replace(&mut slot.gone, true));
    if news {
        world.note(format_args!("{id} hears that it is removed"));
        kill(world, id, Death::Killed);
    }
}

/// Lets the next fsync of a member fail.
pub(crate) fn fail_fsync(world: &World, id: u64) {
    world.note(format_args!("the next fsync of {id} fails"));
    world.with_slot(id, |slot| {
        slot.disk.fail_sync(0, Fault::Io);
        if let Some(process) = &mut slot.process {
            process.doomed = true;
        }
    });
}

/// Members whose disk was told to fail, and did not yet.
pub(crate) fn doomed(world: &World) -> Vec<u64> {
    world.with_slots(|slots| {
        let doomed = slots.iter().filter(|(_, slot)| {
            let process = slot.process.as_ref();
            process.is_some_and(|process| process.doomed)
        });
        doomed.map(|(id, _)| *id).collect()
    })
}

/// Makes room for a new member, which is not started yet.
pub(crate) fn add_slot(world: &World, founder: bool) -> u64 {
    world.with_slots(|slots| {
        let id = slots.len() as u64 + 1;
        slots.insert(id, Slot::new(founder));
        id
    })
}
