//! Fault runs: three real members under load, one fault after the other, and everything that was seen is checked.
//!
//! A round: clients and watchers begin; a fault comes and goes; the cluster must serve on every member again within a
//! bound; the clients end. Then the answers must be linearizable ([`crate::linearizability`]), all members must hold the
//! same history and keys, the same as the watchers and the clients were told ([`crate::events`]). The schedule follows
//! from a seed; what the members do in between does not.

mod clients;
mod inject;
mod kind;
pub mod measure;
mod network;
mod round;
mod small_disks;
mod watchers;

use std::collections::BTreeMap;
use std::fmt::Write;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use rand::rngs::StdRng;
use rand::seq::IndexedRandom;
use rand::{RngExt, SeedableRng};

pub use clients::Crowd;
pub use kind::{Kind, Need};
pub use network::Network;
pub use round::Report;

use crate::cluster::Cluster;
use crate::process::kvd_binary;

/// Members of the cluster.
pub(crate) const MEMBERS: usize = 3;
/// Named in a member's environment: the file that says what its log's disk does. Of `wal`, with `disk-faults`.
pub(crate) const DISK_FAULTS: &str = "KVD_DISK_FAULTS";
/// Where Debian installs libfaketime.
const FAKETIME_PATTERN: [&str; 3] = ["/usr/lib", "faketime", "libfaketimeMT.so.1"];

/// What to run.
#[derive(Clone, Debug)]
pub struct Options {
    /// The schedule follows from it.
    pub seed: u64,
    /// No round begins after this time.
    pub time: Duration,
    /// At most so many rounds.
    pub rounds_max: u64,
    /// Faults to choose from.
    pub kinds: Vec<Kind>,
    /// Whether members are put into network namespaces instead of behind links.
    pub in_namespaces: bool,
    /// Clients on each member.
    pub crowd: Crowd,
    /// Upper bound of what a fault lasts.
    pub fault_max: Duration,
    /// Where histories and logs of rounds that failed are kept.
    pub keep: PathBuf,
    /// Whether those of every round are.
    pub keeps_all: bool,
}

/// A cluster that rounds are run on.
pub struct Run {
    pub(crate) cluster: Cluster,
    pub(crate) network: Network,
    pub(crate) random: StdRng,
    pub(crate) options: Options,
    /// Rounds that were begun.
    pub(crate) round: u64,
    /// Nothing below was changed by this round.
    pub(crate) base: i64,
}

/// Numbers of all rounds of one fault.
#[derive(Clone, Debug, Default)]
pub struct Tally {
    /// Rounds.
    pub rounds: u64,
    /// Requests that were answered.
    pub answered: u64,
    /// Requests whose outcome is not known.
    pub unknown: u64,
    /// Reads without a quorum.
    pub serializable: u64,
    /// Events that all watchers together were told.
    pub events: u64,
    /// Longest time until every member served again.
    pub healed_ms_max: u64,
    /// What was wrong.
    pub violations: Vec<String>,
    /// Histories that the search gave up on.
    pub undecided: u64,
}

/// What a run came to.
#[derive(Debug, Default)]
pub struct Summary {
    /// By fault.
    pub tallies: BTreeMap<Kind, Tally>,
    /// Faults that this machine or build cannot do, and why.
    pub skipped: Vec<(Kind, String)>,
}

impl Summary {
    /// All violations.
    pub fn violations(&self) -> usize {
        self.tallies
            .values()
            .map(|tally| tally.violations.len())
            .sum()
    }

    /// Histories that the search gave up on.
    pub fn undecided(&self) -> u64 {
        self.tallies.values().map(|tally| tally.undecided).sum()
    }

    fn add(&mut self, kind: Kind, report: Report) {
        let tally = self.tallies.entry(kind).or_default();
        tally.rounds += 1;
        tally.answered += report.answered;
        tally.unknown += report.unknown;
        tally.serializable += report.serializable;
        tally.events += report.events;
        tally.healed_ms_max = tally.healed_ms_max.max(report.healed_ms);
        tally.undecided += u64::from(report.is_undecided);
        tally.violations.extend(report.violations);
    }

    /// A table of it.
    pub fn show(&self) -> String {
        let mut text = String::new();
        let mut total = Tally::default();
        let mut line = |name: &str, tally: &Tally| {
            // Writing to a string does not fail.
            let _ = writeln!(
                text,
                "{name:<20} {:>6} {:>9} {:>8} {:>12} {:>9} {:>10} {:>10} {:>9}",
                tally.rounds,
                tally.answered,
                tally.unknown,
                tally.serializable,
                tally.events,
                tally.healed_ms_max,
                tally.violations.len(),
                tally.undecided,
            );
        };
        for (kind, tally) in &self.tallies {
            line(kind.name(), tally);
            total.rounds += tally.rounds;
            total.answered += tally.answered;
            total.unknown += tally.unknown;
            total.serializable += tally.serializable;
            total.events += tally.events;
            total.healed_ms_max = total.healed_ms_max.max(tally.healed_ms_max);
            total.undecided += tally.undecided;
            total.violations.extend(tally.violations.iter().cloned());
        }
        line("all", &total);
        let head = format!(
            "{:<20} {:>6} {:>9} {:>8} {:>12} {:>9} {:>10} {:>10} {:>9}\n",
            "fault",
            "rounds",
            "answered",
            "unknown",
            "serializable",
            "events",
            "healed ms",
            "violations",
            "undecided"
        );
        text.insert_str(0, &head);
        for violation in &total.violations {
            let _ = writeln!(text, "VIOLATION: {violation}");
        }
        for (kind, why) in &self.skipped {
            let _ = writeln!(text, "SKIPPED: {kind}: {why}");
        }
        text
    }
}

/// Runs rounds until the time is over; violations are in the summary, errors are those of the harness.
pub async fn run(options: Options) -> Result<Summary> {
    let begun = Instant::now();
    let mut summary = Summary::default();
    let mut kinds = Vec::new();
    for kind in options.kinds.clone() {
        match missing(kind, options.in_namespaces) {
            None => kinds.push(kind),
            Some(why) => {
                println!("SKIPPED: {kind}: {why}");
                summary.skipped.push((kind, why));
            }
        }
    }
    ensure!(!kinds.is_empty(), "no fault can be made here");
    let mut run = Run::start(options.clone()).await?;
    // Each fault comes once before any comes again.
    let mut left = Vec::new();
    for round in 1..=options.rounds_max {
        if begun.elapsed() >= options.time {
            break;
        }
        if left.is_empty() {
            left = kinds.clone();
        }
        let choice = run.random.random_range(0..left.len());
        let kind = left.swap_remove(choice);
        let report = run.round(kind).await.with_context(|| {
            format!(
                "round {round}, {kind}, seed {}; see {}",
                options.seed,
                run.kept()
            )
        })?;
        println!(
            "{:>5} s, round {round}: {kind}: {report}",
            begun.elapsed().as_secs()
        );
        summary.add(kind, report);
    }
    Ok(summary)
}

impl Run {
    /// Starts a cluster.
    pub async fn start(options: Options) -> Result<Run> {
        let mut cluster = Cluster::start(0, &[]);
        for n in 0..MEMBERS {
            let log = cluster.folder().join(format!("m{n}.log"));
            let log = log
                .to_str()
                .context("the temporary folder has a plain name")?
                .to_owned();
            cluster.add_place(&["--log-outputs", &log, "--snapshot-count", "2000"]);
        }
        let network = if options.in_namespaces {
            Network::namespaces(&mut cluster, MEMBERS)?
        } else {
            Network::links(&mut cluster, MEMBERS).await?
        };
        for n in 0..MEMBERS {
            let control = cluster.folder().join(format!("m{n}.disk"));
            cluster.set_env(n, DISK_FAULTS, &control.to_string_lossy());
        }
        for n in 0..MEMBERS {
            cluster.start_member(n);
        }
        let random = StdRng::seed_from_u64(options.seed);
        let mut run = Run {
            cluster,
            network,
            random,
            options,
            round: 0,
            base: 0,
        };
        run.healthy(Duration::from_secs(60)).await?;
        run.base = run.revision().await?;
        Ok(run)
    }

    /// Where the log of a member is.
    pub(crate) fn log_path(&self, n: usize) -> PathBuf {
        self.cluster.folder().join(format!("m{n}.log"))
    }

    /// Keeps the members' logs for a person to look at; returns where.
    pub(crate) fn kept(&self) -> String {
        let folder = self
            .options
            .keep
            .join(format!("seed-{}-round-{}", self.options.seed, self.round));
        let copied = std::fs::create_dir_all(&folder).and_then(|()| {
            for n in 0..MEMBERS {
                std::fs::copy(self.log_path(n), folder.join(format!("m{n}.log")))?;
            }
            Ok(())
        });
        match copied {
            Ok(()) => folder.display().to_string(),
            Err(error) => format!("nothing: {error}"),
        }
    }

    /// One of all members.
    pub(crate) fn any_member(&mut self) -> usize {
        self.random.random_range(0..MEMBERS)
    }

    /// One of the members but these.
    pub(crate) fn another(&mut self, but: &[usize]) -> usize {
        let others: Vec<usize> = (0..MEMBERS).filter(|n| !but.contains(n)).collect();
        *others
            .choose(&mut self.random)
            .expect("there are three members")
    }

    /// How long a fault lasts.
    pub(crate) fn fault_time(&mut self) -> Duration {
        let longest = self.options.fault_max.as_millis() as u64;
        // Most are short, as most are in life; each round of a long run costs its length.
        let longest = if self.random.random_bool(0.2) {
            longest
        } else {
            longest.min(6_000)
        };
        Duration::from_millis(self.random.random_range(500..=longest.max(1_000)))
    }
}

/// Why a fault cannot be made here, if it cannot.
pub fn missing(kind: Kind, in_namespaces: bool) -> Option<String> {
    match kind.need() {
        Need::Nothing => None,
        Need::DiskFaults if has_disk_faults(&kvd_binary()) => None,
        Need::DiskFaults => Some("kvd is built without the feature disk-faults".into()),
        Need::Faketime if faketime().is_none() => Some("libfaketime is not installed".into()),
        Need::Faketime if in_namespaces => None,
        Need::Faketime => None,
        Need::Mounts if small_disks::can_mount() => None,
        Need::Mounts => Some("file systems cannot be mounted; root may".into()),
    }
}

/// Whether a binary was built with the seam for disk faults: its variable's name is in it.
pub fn has_disk_faults(binary: &Path) -> bool {
    let bytes = std::fs::read(binary).unwrap_or_default();
    memchr::memmem::find(&bytes, DISK_FAULTS.as_bytes()).is_some()
}

/// The library that moves a process's clocks.
pub(crate) fn faketime() -> Option<PathBuf> {
    let [lib, name, file] = FAKETIME_PATTERN;
    let machines = std::fs::read_dir(lib).ok()?;
    machines
        .filter_map(|machine| Some(machine.ok()?.path().join(name).join(file)))
        .find(|path| path.is_file())
}
