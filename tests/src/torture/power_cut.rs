//! Simulated power cuts of a whole member, log and engine together.
//!
//! A run is a few lives of a member that is traced by `strace` from an empty folder on: load, kill -9, start again, check,
//! load. From the trace two things follow.
//! - [`Run::check_acknowledgements`]: every answer reached its client after an fsync that covers the entry in the log
//!   was complete.
//! - [`Run::cut`]: the power is cut at a random moment, a member is started on what a disk may then hold, and checked:
//!   all that was acknowledged or read before the cut is there, nothing is invented, HashKV is that of a replay.

use std::path::{Path, PathBuf};

use anyhow::{Context, Result, ensure};
use rand::rngs::StdRng;
use rand::{RngExt, SeedableRng};

use super::disk::{self, Survival};
use super::kill::{compare_with_replay, copy_without_database, options};
use super::load::{Load, Profile, now_ns};
use super::model::Model;
use super::operation::Call;
use super::strace::{self, Change, Data, Timed, Trace};
use super::verify::{self, Findings};
use crate::{Kvd, KvdOptions};

const PROFILE: Profile = Profile {
    clients: 6,
    large_one_in: 60,
    compact_one_in: 200,
};
/// Lives of the member in one run.
const LIVES: u64 = 3;
/// Answers the clients get in one life, at least.
const ANSWERS: std::ops::Range<u64> = 60..260;

/// What happened to a traced member.
#[derive(Debug)]
pub struct Run {
    engine: String,
    seed: u64,
    root: PathBuf,
    trace: Trace,
    calls: Vec<Call>,
    /// What clients had read of the store, and when: from then on it must not be lost.
    read: Vec<(u64, Model)>,
    /// When the first member began and the last one ended.
    span_ns: (u64, u64),
}

/// What the answers of a run showed.
#[derive(Clone, Copy, Debug)]
pub struct Acknowledgements {
    /// Answers that were looked at.
    pub answers: u64,
    /// The shortest time between the end of the fsync and the answer.
    pub shortest_ns: u64,
}

/// What one cut showed.
#[derive(Clone, Copy, Debug, Default)]
pub struct CutReport {
    /// Of the check.
    pub findings: Findings,
    /// Revision of the member on the image.
    pub revision: i64,
    /// Pages and names of the trace that the image lacks.
    pub lost: (u64, u64),
}

impl Run {
    /// Runs a traced member below `work`.
    pub async fn record(work: &Path, engine: &str, seed: u64) -> Result<Run> {
        let root = work.join("data");
        let log = |life: u64| work.join(format!("strace.{life}"));
        let options = |life: u64| KvdOptions {
            wrapper: strace::wrapper(&log(life)),
            ..options(engine)
        };
        let mut random = StdRng::seed_from_u64(seed);
        let mut run = Run {
            engine: engine.to_owned(),
            seed,
            root: root.clone(),
            trace: Trace::new(&root),
            calls: Vec::new(),
            read: vec![(0, Model::default())],
            span_ns: (now_ns(), 0),
        };
        let mut model = Model::default();
        let mut kvd = Kvd::start(&root, options(0));
        for life in 0..LIVES {
            if life > 0 {
                kvd.restart_with(options(life));
            }
            let channel = kvd.try_connect().await?;
            if life > 0 {
                // Of the calls of the life before, some were not answered: what is read now must stay.
                verify::check(&channel, &mut model, &run.calls_since_read()).await?;
                run.read.push((now_ns(), model.clone()));
            }
            let mut load = Load::start(&channel, seed << 4 | life, PROFILE, &model);
            load.until_answered(random.random_range(ANSWERS)).await?;
            load.expect_failures();
            kvd.kill();
            run.calls.extend(load.stop().await?);
            strace::wait_for_log(&log(life), kvd.pid())?;
            run.trace.read_log(&log(life))?;
            std::fs::remove_file(log(life))?;
        }
        run.span_ns.1 = now_ns();
        Ok(run)
    }

    /// The same run over a disk that ignores every fsync: the control, which both checks must notice.
    pub fn without_fsync(mut self) -> Run {
        let is_sync =
            |timed: &Timed| matches!(timed.change, Change::SyncFile(_) | Change::SyncDir(_));
        self.trace.changes.retain(|timed| !is_sync(timed));
        self
    }

    /// Checks that an fsync of the log stood between each request and its answer.
    pub fn check_acknowledgements(&self) -> Result<Acknowledgements> {
        let log = self.trace.files_below(&self.root.join("member/wal"));
        let of_log: Vec<&Timed> = self
            .trace
            .changes
            .iter()
            .filter(|timed| match &timed.change {
                Change::Write(inode, ..) | Change::SyncFile(inode) => log.contains(inode),
                _ => false,
            })
            .collect();
        let mut shown = Acknowledgements {
            answers: 0,
            shortest_ns: u64::MAX,
        };
        for call in &self.calls {
            let (Some((answer, answered_ns)), Some(mark)) = (call.answer, call.operation.mark())
            else {
                continue;
            };
            let since = of_log.partition_point(|timed| timed.exit_ns < call.sent_ns);
            let synced_ns = fsync_of(&of_log[since..], &mark)
                .with_context(|| format!("no fsync covers {:?}: {answer:?}", call.operation))?;
            ensure!(
                synced_ns <= answered_ns,
                "{:?} was answered {} ns before the fsync of its entry was complete",
                call.operation,
                synced_ns - answered_ns
            );
            shown.answers += 1;
            shown.shortest_ns = shown.shortest_ns.min(answered_ns - synced_ns);
        }
        Ok(shown)
    }

    /// Cuts the power once, as `number` says, and checks a member on what is left, in the folder `target`.
    pub async fn cut(&self, target: &Path, number: u64) -> Result<CutReport> {
        let mut random = StdRng::seed_from_u64(self.seed << 20 | number);
        let cut_ns = self.moment(&mut random);
        let survival = match random.random_range(0..10) {
            0..2 => Survival::Nothing,
            2 => Survival::Names,
            3 => Survival::Pages,
            _ => Survival::Some,
        };
        let image = disk::cut(&self.trace, &self.root, cut_ns, survival, &mut random);
        let lost = image.lost;
        image.write(&self.root, target)?;
        let named = || {
            format!(
                "{}, seed {}, cut {number} ({survival:?}, {lost:?} pages and names lost)",
                self.engine, self.seed
            )
        };
        self.check(target, cut_ns, lost).await.with_context(named)
    }

    async fn check(&self, image: &Path, cut_ns: u64, lost: (u64, u64)) -> Result<CutReport> {
        let replayed = image.with_extension("replayed");
        copy_without_database(image, &replayed)?;
        let (read_ns, read) = self
            .read
            .iter()
            .rfind(|(at, _)| *at <= cut_ns)
            .context("something is read before anything happens")?;
        let mut model = read.clone();
        let calls = known_at(&self.calls, *read_ns, cut_ns);
        let mut kvd = Kvd::start(image, options(&self.engine));
        let channel = kvd.try_connect().await?;
        let findings = verify::check(&channel, &mut model, &calls).await?;
        let hash = verify::hash(&channel, model.revision).await?;
        compare_with_replay(&replayed, &self.engine, hash).await?;
        std::fs::remove_dir_all(&replayed)?;
        Ok(CutReport {
            findings,
            revision: model.revision,
            lost,
        })
    }

    /// A moment at which something happens: within an fsync or any file operation, right after an answer, or any.
    fn moment(&self, random: &mut StdRng) -> u64 {
        let answered: Vec<u64> = self
            .calls
            .iter()
            .filter_map(|call| call.answer.map(|(_, at)| at))
            .collect();
        let is_sync =
            |timed: &&Timed| matches!(timed.change, Change::SyncFile(_) | Change::SyncDir(_));
        let any = random.random_range(0..10);
        let changes: Vec<&Timed> = match any {
            0..3 => self.trace.changes.iter().filter(is_sync).collect(),
            _ => self.trace.changes.iter().collect(),
        };
        match any {
            0..6 if !changes.is_empty() => {
                let timed = changes[random.random_range(0..changes.len())];
                random.random_range(timed.entry_ns..timed.exit_ns.max(timed.entry_ns + 1))
            }
            6..9 if !answered.is_empty() => answered[random.random_range(0..answered.len())],
            _ => random.random_range(self.span_ns.0..self.span_ns.1),
        }
    }

    fn calls_since_read(&self) -> Vec<Call> {
        let since = self.read.last().map_or(0, |(at, _)| *at);
        known_at(&self.calls, since, u64::MAX)
    }
}

/// The calls sent between two moments, with the answers that were there at the second.
fn known_at(calls: &[Call], since_ns: u64, at_ns: u64) -> Vec<Call> {
    let answer = |call: &Call| call.answer.filter(|(_, answered_ns)| *answered_ns <= at_ns);
    calls
        .iter()
        .filter(|call| (since_ns..=at_ns).contains(&call.sent_ns))
        .map(|call| Call {
            answer: answer(call),
            ..call.clone()
        })
        .collect()
}

/// When the first fsync was complete that covers the first write of `mark`.
fn fsync_of(of_log: &[&Timed], mark: &[u8]) -> Option<u64> {
    let finder = memchr::memmem::Finder::new(mark);
    let (file, written_ns) = of_log.iter().find_map(|timed| match &timed.change {
        Change::Write(inode, _, Data::Bytes(bytes)) if finder.find(bytes).is_some() => {
            Some((*inode, timed.exit_ns))
        }
        _ => None,
    })?;
    of_log
        .iter()
        .find(|timed| timed.change == Change::SyncFile(file) && written_ns <= timed.entry_ns)
        .map(|timed| timed.exit_ns)
}
