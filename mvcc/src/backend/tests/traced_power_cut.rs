//! Power cuts for an engine that opens its own files: sled.
//!
//! A writer runs under strace; its writes and syncs, replayed, say what the disk may hold at any moment: un-synced 4 KiB pages
//! at random versions, and names, lengths and removals as an ordered prefix not shorter than the last sync. Each image is
//! opened and compared with a replay up to the index that it names. Without strace the test says so and is skipped.

use std::collections::{BTreeMap, HashMap};
use std::fs;
use std::io::Write;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use super::kill::{DIR, END, ENGINE, options};
use super::rounds;
use super::workload::{Model, Random, Values};
use crate::backend::{Backend, EngineKind};

const PAGE_BYTES: u64 = 4096;
const ENTRIES: u64 = 300;

#[test]
fn sled_keeps_what_was_acknowledged_before_a_power_cut() {
    let Some(trace) = Trace::record(EngineKind::Sled) else {
        return;
    };
    for seed in 0..rounds(10) * 3 {
        trace.cut_and_check(seed, Syncs::Real);
    }
}

/// The control: were syncs to do nothing, the same test must fail, or it sees nothing.
#[test]
fn traced_power_cut_is_noticed_where_syncs_do_nothing() {
    let Some(trace) = Trace::record(EngineKind::Sled) else {
        return;
    };
    let lost = (0..10)
        .filter(|seed| {
            std::panic::catch_unwind(|| trace.cut_and_check(*seed, Syncs::Ignored)).is_err()
        })
        .count();
    assert!(lost > 0, "a disk without syncs lost nothing");
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Syncs {
    Real,
    Ignored,
}

/// What a traced writer did to its files, in order.
struct Trace {
    engine: EngineKind,
    /// Files that were durable before the trace, by path below the member's folder; their numbers are their positions.
    before: Vec<(PathBuf, Vec<u8>)>,
    folders_before: Vec<PathBuf>,
    events: Vec<Event>,
}

/// Files have numbers, as inodes do: names come and go.
#[derive(Debug)]
enum Event {
    Create {
        path: PathBuf,
        file: usize,
    },
    CreateFolder(PathBuf),
    Rename {
        from: PathBuf,
        to: PathBuf,
    },
    Remove(PathBuf),
    Write {
        file: usize,
        offset: u64,
        data: Vec<u8>,
    },
    Truncate {
        file: usize,
        len: u64,
    },
    /// Everything of the file before event number `begun` is durable.
    Sync {
        file: usize,
        begun: usize,
    },
    /// The writer said that this index is durable.
    Acknowledged(u64),
}

impl Trace {
    /// Runs the workload under strace; `None` where that is not possible.
    fn record(engine: EngineKind) -> Option<Trace> {
        let dir = tempfile::tempdir().unwrap();
        let member_dir = dir.path().join("member");
        drop(Backend::open(&member_dir, options(engine)).unwrap());
        let (mut folders_before, mut before) = (Vec::new(), Vec::new());
        read_tree(&member_dir, Path::new(""), &mut folders_before, &mut before);

        let output = dir.path().join("trace");
        let status = Command::new("strace")
            .args(["-f", "-xx", "-s", "100000000", "-o"])
            .arg(&output)
            .args(["-e", "signal=none", "-e"])
            .arg(
                "trace=openat,creat,close,dup,dup2,dup3,fcntl,lseek,write,pwrite64,ftruncate,truncate,fallocate,\
                 fsync,fdatasync,rename,renameat,renameat2,unlink,unlinkat,rmdir,mkdir,mkdirat",
            )
            .arg(std::env::current_exe().unwrap())
            .args(["--exact", "backend::tests::kill::writer_process", "--nocapture", "--test-threads=1"])
            .env(DIR, &member_dir)
            .env(ENGINE, engine.name())
            .env(END, ENTRIES.to_string())
            .stdout(Stdio::null())
            .status();
        if !status.as_ref().is_ok_and(std::process::ExitStatus::success) {
            let why =
                format!("power cuts of {engine} need strace and the right to trace ({status:?})");
            let demanded = std::env::var_os("KVD_TESTS_SKIP_NOTHING").is_some();
            assert!(!demanded, "KVD_TESTS_SKIP_NOTHING is set, and {why}");
            // The handle itself: the test harness keeps what a passed test prints with a macro.
            let _ = writeln!(std::io::stderr(), "SKIPPED: {why}");
            return None;
        }
        let mut reader = TraceReader::new(&member_dir, &before);
        for line in fs::read_to_string(&output).unwrap().lines() {
            reader.line(line);
        }
        let events = reader.events;
        let acknowledgements = events
            .iter()
            .filter(|event| matches!(event, Event::Acknowledged(_)))
            .count();
        assert!(
            acknowledgements > 1,
            "the trace shows {acknowledgements} acknowledgements"
        );
        Some(Trace {
            engine,
            before,
            folders_before,
            events,
        })
    }

    /// Cuts the power at a random event and compares what comes back.
    fn cut_and_check(&self, seed: u64, syncs: Syncs) {
        let mut random = Random(seed);
        let cut = random.below(self.events.len() as u64 + 1) as usize;
        let acknowledged = self.events[..cut]
            .iter()
            .rev()
            .find_map(|event| match event {
                Event::Acknowledged(index) => Some(*index),
                _ => None,
            })
            .unwrap_or(0);
        let dir = tempfile::tempdir().unwrap();
        self.write_image(cut, syncs, &mut random, dir.path());
        let backend = Backend::open(dir.path(), options(self.engine)).unwrap_or_else(|error| {
            panic!("seed {seed}, cut at {cut}, {acknowledged} acknowledged: {error}")
        });
        let applied = backend.durable_index();
        assert!(
            acknowledged <= applied,
            "seed {seed}, cut at {cut}: {acknowledged} was acknowledged, {applied} is there"
        );
        let mut model = Model::new(Values::Large);
        model.advance(applied);
        model
            .compare(&backend)
            .unwrap_or_else(|error| panic!("seed {seed}, cut at {cut}: {error}"));
    }

    /// Writes what the disk may hold if the power fails before event `cut`.
    fn write_image(&self, cut: usize, syncs: Syncs, random: &mut Random, dir: &Path) {
        let events = &self.events[..cut];
        // By file: everything before this event is durable.
        let mut durable_until: HashMap<usize, usize> = HashMap::new();
        let mut names_until = 0;
        if syncs == Syncs::Real {
            for event in events {
                if let Event::Sync { file, begun } = event {
                    let until = durable_until.entry(*file).or_default();
                    *until = (*until).max(*begun);
                    names_until = names_until.max(*begun);
                }
            }
        }
        let names_until = names_until + random.below((cut - names_until) as u64 + 1) as usize;

        let mut reached = self.pages_that_reach_the_disk(events, &durable_until, random);
        let mut contents: HashMap<usize, Vec<u8>> = HashMap::new();
        let mut names: BTreeMap<PathBuf, usize> = BTreeMap::new();
        let mut folders = self.folders_before.clone();
        for (file, (path, content)) in self.before.iter().enumerate() {
            names.insert(path.clone(), file);
            contents.insert(file, content.clone());
        }
        for (at, event) in events.iter().enumerate() {
            let name_survives = at < names_until;
            match event {
                Event::Write { file, offset, data } => {
                    let content = contents.entry(*file).or_default();
                    let is_durable = at < durable_until.get(file).copied().unwrap_or(0);
                    for (page, start, end) in pages_of(*offset, data.len() as u64) {
                        let survives = is_durable || {
                            let left = reached.entry((*file, page)).or_default();
                            let survives = *left > 0;
                            *left = left.saturating_sub(1);
                            survives
                        };
                        if survives {
                            if content.len() < end as usize {
                                content.resize(end as usize, 0);
                            }
                            content[start as usize..end as usize].copy_from_slice(
                                &data[(start - offset) as usize..(end - offset) as usize],
                            );
                        }
                    }
                }
                Event::Truncate { file, len } if name_survives => {
                    contents.entry(*file).or_default().resize(*len as usize, 0);
                }
                Event::Create { path, file } if name_survives => {
                    names.insert(path.clone(), *file);
                }
                Event::CreateFolder(path) if name_survives => folders.push(path.clone()),
                Event::Rename { from, to } if name_survives => {
                    let file = names.remove(from).expect("a renamed file has a name");
                    names.insert(to.clone(), file);
                }
                Event::Remove(path) if name_survives => {
                    names.remove(path);
                    folders.retain(|folder| folder != path);
                }
                _ => {}
            }
        }
        for folder in folders {
            fs::create_dir_all(dir.join(folder)).unwrap();
        }
        for (path, file) in names {
            fs::write(dir.join(path), contents.remove(&file).unwrap_or_default()).unwrap();
        }
    }

    /// By file and page, how many of the un-synced writes are on the disk: any number, from the first on.
    fn pages_that_reach_the_disk(
        &self,
        events: &[Event],
        durable_until: &HashMap<usize, usize>,
        random: &mut Random,
    ) -> BTreeMap<(usize, u64), u64> {
        let mut writes: BTreeMap<(usize, u64), u64> = BTreeMap::new();
        for (at, event) in events.iter().enumerate() {
            if let Event::Write { file, offset, data } = event
                && at >= durable_until.get(file).copied().unwrap_or(0)
            {
                for (page, ..) in pages_of(*offset, data.len() as u64) {
                    *writes.entry((*file, page)).or_default() += 1;
                }
            }
        }
        for count in writes.values_mut() {
            *count = random.below(*count + 1);
        }
        writes
    }
}

/// The pages that a write touches, with the part of the write in each.
fn pages_of(offset: u64, len: u64) -> impl Iterator<Item = (u64, u64, u64)> {
    let end = offset + len;
    (offset / PAGE_BYTES..end.div_ceil(PAGE_BYTES)).map(move |page| {
        (
            page,
            offset.max(page * PAGE_BYTES),
            end.min((page + 1) * PAGE_BYTES),
        )
    })
}

fn read_tree(
    root: &Path,
    below: &Path,
    folders: &mut Vec<PathBuf>,
    files: &mut Vec<(PathBuf, Vec<u8>)>,
) {
    for entry in fs::read_dir(root.join(below)).unwrap() {
        let path = below.join(entry.unwrap().file_name());
        if root.join(&path).is_dir() {
            folders.push(path.clone());
            read_tree(root, &path, folders, files);
        } else {
            let content = fs::read(root.join(&path)).unwrap();
            files.push((path, content));
        }
    }
}

/// Turns strace's lines into events.
struct TraceReader {
    root: String,
    events: Vec<Event>,
    names: HashMap<PathBuf, usize>,
    lengths: Vec<u64>,
    open: HashMap<i64, Descriptor>,
    /// By thread: the call that is under way, its arguments, and the number of events when it began.
    unfinished: HashMap<String, (String, usize)>,
}

#[derive(Clone)]
struct Descriptor {
    file: usize,
    offset: u64,
}

impl TraceReader {
    fn new(root: &Path, before: &[(PathBuf, Vec<u8>)]) -> TraceReader {
        TraceReader {
            root: root.to_str().unwrap().to_owned(),
            events: Vec::new(),
            names: before
                .iter()
                .enumerate()
                .map(|(file, (path, _))| (path.clone(), file))
                .collect(),
            lengths: before
                .iter()
                .map(|(_, content)| content.len() as u64)
                .collect(),
            open: HashMap::new(),
            unfinished: HashMap::new(),
        }
    }

    /// `thread call(arguments) = result`, or that in two parts.
    fn line(&mut self, line: &str) {
        let Some((thread, rest)) = line.split_once(' ') else {
            return;
        };
        let rest = rest.trim_start();
        if let Some(begun) = rest.strip_suffix("<unfinished ...>") {
            // Written as soon as the call begins: earlier than it is, never later.
            let begun_at = self.events.len();
            self.unfinished
                .insert(thread.to_owned(), (begun.trim_end().to_owned(), begun_at));
            return;
        }
        let (call, begun_at) = match rest
            .strip_prefix("<... ")
            .and_then(|rest| rest.split_once(" resumed>"))
        {
            None => (rest.to_owned(), self.events.len()),
            Some((_, end)) => {
                let Some((begun, begun_at)) = self.unfinished.remove(thread) else {
                    return;
                };
                (begun + end, begun_at)
            }
        };
        let Some((call, result)) = call.rsplit_once(" = ") else {
            return;
        };
        let Some(result) = result
            .split_whitespace()
            .next()
            .and_then(|result| result.parse::<i64>().ok())
        else {
            return;
        };
        if result < 0 {
            return;
        }
        let Some((name, arguments)) = call.trim_end().split_once('(') else {
            return;
        };
        let arguments = arguments.strip_suffix(')').unwrap_or(arguments);
        let arguments: Vec<&str> = arguments.split(", ").collect();
        self.call(name, &arguments, result, begun_at);
    }

    fn call(&mut self, name: &str, arguments: &[&str], result: i64, begun_at: usize) {
        let number = |at: usize| arguments[at].parse::<i64>().unwrap();
        match name {
            "openat" => self.open(arguments[1], arguments[2], result),
            "close" => {
                self.open.remove(&number(0));
            }
            "dup" | "dup2" | "dup3" => self.duplicate(number(0), result),
            "fcntl" if arguments[1].starts_with("F_DUPFD") => self.duplicate(number(0), result),
            "lseek" => {
                if let Some(descriptor) = self.open.get_mut(&number(0)) {
                    descriptor.offset = result as u64;
                }
            }
            "write" if number(0) == 1 => {
                let text = String::from_utf8_lossy(&bytes(arguments[1])).into_owned();
                let said = text
                    .lines()
                    .filter_map(|line| line.trim().strip_prefix("durable ")?.parse().ok());
                self.events.extend(said.map(Event::Acknowledged));
            }
            "write" => {
                if let Some(descriptor) = self.open.get(&number(0)).cloned() {
                    self.write(descriptor.file, descriptor.offset, arguments[1], result);
                    self.open.insert(
                        number(0),
                        Descriptor {
                            offset: descriptor.offset + result as u64,
                            ..descriptor
                        },
                    );
                }
            }
            "pwrite64" => {
                if let Some(descriptor) = self.open.get(&number(0)) {
                    self.write(descriptor.file, number(3) as u64, arguments[1], result);
                }
            }
            "ftruncate" => {
                if let Some(file) = self.open.get(&number(0)).map(|descriptor| descriptor.file) {
                    self.truncate(file, number(1) as u64);
                }
            }
            "fsync" | "fdatasync" => {
                if let Some(descriptor) = self.open.get(&number(0)) {
                    let file = descriptor.file;
                    self.events.push(Event::Sync {
                        file,
                        begun: begun_at,
                    });
                }
            }
            "rename" => self.rename(arguments[0], arguments[1]),
            "renameat" | "renameat2" => self.rename(arguments[1], arguments[3]),
            "unlink" | "rmdir" => self.remove(arguments[0]),
            "unlinkat" => self.remove(arguments[1]),
            "mkdir" => self.create_folder(arguments[0]),
            "mkdirat" => self.create_folder(arguments[1]),
            "fallocate" | "truncate" | "creat" => panic!("{name} is not modelled"),
            _ => {}
        }
    }

    fn open(&mut self, path: &str, flags: &str, descriptor: i64) {
        self.open.remove(&descriptor);
        let Some(path) = self.path(path) else { return };
        assert!(!flags.contains("O_APPEND"), "appending is not modelled");
        if flags.contains("O_DIRECTORY")
            || (!self.names.contains_key(&path) && !flags.contains("O_CREAT"))
        {
            // A folder, opened to be synced: of use as a barrier for names.
            let folder = self.lengths.len();
            self.lengths.push(0);
            self.open.insert(
                descriptor,
                Descriptor {
                    file: folder,
                    offset: 0,
                },
            );
            return;
        }
        let file = match self.names.get(&path) {
            Some(file) => *file,
            None => {
                let file = self.lengths.len();
                self.lengths.push(0);
                self.names.insert(path.clone(), file);
                self.events.push(Event::Create { path, file });
                file
            }
        };
        if flags.contains("O_TRUNC") && self.lengths[file] > 0 {
            self.truncate(file, 0);
        }
        self.open.insert(descriptor, Descriptor { file, offset: 0 });
    }

    fn duplicate(&mut self, from: i64, to: i64) {
        if let Some(descriptor) = self.open.get(&from).cloned() {
            self.open.insert(to, descriptor);
        }
    }

    fn write(&mut self, file: usize, offset: u64, data: &str, written: i64) {
        let mut data = bytes(data);
        data.truncate(written as usize);
        self.lengths[file] = self.lengths[file].max(offset + data.len() as u64);
        self.events.push(Event::Write { file, offset, data });
    }

    fn truncate(&mut self, file: usize, len: u64) {
        self.lengths[file] = len;
        self.events.push(Event::Truncate { file, len });
    }

    fn rename(&mut self, from: &str, to: &str) {
        if let (Some(from), Some(to)) = (self.path(from), self.path(to)) {
            let file = self.names.remove(&from).expect("a renamed file has a name");
            self.names.insert(to.clone(), file);
            self.events.push(Event::Rename { from, to });
        }
    }

    fn remove(&mut self, path: &str) {
        if let Some(path) = self.path(path) {
            self.names.remove(&path);
            self.events.push(Event::Remove(path));
        }
    }

    fn create_folder(&mut self, path: &str) {
        if let Some(path) = self.path(path) {
            self.events.push(Event::CreateFolder(path));
        }
    }

    /// The path below the member's folder, if it lies there.
    fn path(&self, argument: &str) -> Option<PathBuf> {
        let path = String::from_utf8(bytes(argument)).ok()?;
        let below = path.strip_prefix(&self.root)?;
        Some(PathBuf::from(below.trim_start_matches('/')))
    }
}

/// The bytes of a string which strace wrote in hexadecimal.
fn bytes(argument: &str) -> Vec<u8> {
    assert!(!argument.ends_with("..."), "strace cut a string short");
    argument
        .trim_matches('"')
        .split("\\x")
        .skip(1)
        .map(|hexadecimal| u8::from_str_radix(hexadecimal, 16).unwrap())
        .collect()
}
