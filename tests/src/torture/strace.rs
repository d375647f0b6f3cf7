//! The file operations of a member on its data folder, from `strace`'s log.
//!
//! `strace` sees every system call whoever makes it, with its data. A call is two points in time: it may have any
//! effect from its entry on, and has all of it at its exit. The clock is the system's, which the clients read too, so an
//! answer that a client has before a call's exit did not wait for that call.

use std::collections::HashMap;
use std::io::{BufRead, BufReader};
use std::path::{Path, PathBuf};
use std::rc::Rc;

use anyhow::{Context, Result, bail, ensure};

/// System calls that are traced: all that can change a file, and those that tell which file a descriptor is.
const CALLS: &str = "trace=open,openat,openat2,creat,close,close_range,dup,dup2,dup3,fcntl,lseek,read,\
    write,writev,pwrite64,pwritev,pwritev2,ftruncate,truncate,fallocate,fsync,fdatasync,sync_file_range,msync,\
    rename,renameat,renameat2,unlink,unlinkat,rmdir,mkdir,mkdirat,link,linkat,symlink,symlinkat,\
    copy_file_range,sendfile,splice,mmap,io_uring_setup";

/// Stands for the rest of a call that another thread's interrupts.
const UNFINISHED: &[u8] = b" <unfinished ...>";

/// A file, whatever its name is.
pub type Inode = usize;

/// What a write brings.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Data {
    /// This many zeros.
    Zeros(usize),
    /// These bytes.
    Bytes(Vec<u8>),
}

/// A change to the folder, or a promise about earlier ones.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Change {
    /// A new file.
    Create(PathBuf, Inode),
    /// A new folder.
    Mkdir(PathBuf),
    /// A file gets another name, whose file goes away.
    Rename(PathBuf, PathBuf),
    /// A name goes away.
    Remove(PathBuf),
    /// Bytes at an offset.
    Write(Inode, u64, Data),
    /// A new length.
    SetLen(Inode, u64),
    /// The file's data and length are durable.
    SyncFile(Inode),
    /// The folder's names are durable.
    SyncDir(PathBuf),
}

/// A change with the time it began and the time it was complete.
#[derive(Clone, Debug)]
pub struct Timed {
    /// Before it nothing has happened.
    pub entry_ns: u64,
    /// After it everything has. For a call that the process did not survive: the end of the process.
    pub exit_ns: u64,
    /// What.
    pub change: Change,
}

/// The lives of a member, read from their logs one after the other.
#[derive(Debug)]
pub struct Trace {
    /// All changes in the order they were completed.
    pub changes: Vec<Timed>,
    root: PathBuf,
    names: HashMap<PathBuf, Inode>,
    lengths: Vec<u64>,
}

/// The command that `strace` puts before a member's, logging to `log`.
///
/// The tracer detaches itself (`-D`), so that the process that is started, and killed, is the member.
pub fn wrapper(log: &Path) -> Vec<String> {
    let mut command: Vec<String> = ["strace", "-D", "-f", "--seccomp-bpf", "-q", "-e", CALLS]
        .iter()
        .map(|word| (*word).to_owned())
        .collect();
    command.extend(
        [
            "-xx",
            "-s",
            "1000000000",
            "--absolute-timestamps=format:unix,precision:ns",
            "--syscall-times=ns",
            "-o",
        ]
        .map(str::to_owned),
    );
    command.push(log.display().to_string());
    command
}

/// Waits until the log of the process `pid`, which has ended, is whole.
pub fn wait_for_log(log: &Path, pid: u32) -> Result<()> {
    use std::io::{Read, Seek, SeekFrom};
    let deadline = std::time::Instant::now() + std::time::Duration::from_secs(60);
    let mut file = std::fs::File::open(log)?;
    loop {
        let len = file.metadata()?.len();
        file.seek(SeekFrom::Start(len.saturating_sub(4096)))?;
        let mut end = Vec::new();
        file.read_to_end(&mut end)?;
        let end = String::from_utf8_lossy(&end);
        let is_last = |line: &str| line.contains("+++") && line.starts_with(&format!("{pid} "));
        if end.lines().any(is_last) {
            return Ok(());
        }
        ensure!(
            std::time::Instant::now() < deadline,
            "strace does not finish its log {}",
            log.display()
        );
        std::thread::sleep(std::time::Duration::from_millis(5));
    }
}

/// Whether `strace` is there and may trace.
pub fn is_available() -> bool {
    std::process::Command::new("strace")
        .args(["-f", "--seccomp-bpf", "-qq", "-o", "/dev/null", "true"])
        .stderr(std::process::Stdio::null())
        .status()
        .is_ok_and(|status| status.success())
}

/// A descriptor's file.
#[derive(Debug)]
enum Target {
    File {
        inode: Inode,
        position: std::cell::Cell<u64>,
        appends: bool,
    },
    Dir(PathBuf),
}

/// One process.
struct Life<'a> {
    trace: &'a mut Trace,
    descriptors: HashMap<i64, Rc<Target>>,
    /// Calls that have been entered, by thread.
    entered: HashMap<u32, Entered>,
    /// Calls that the process did not survive.
    killed: Vec<Entered>,
    newest_ns: u64,
}

struct Entered {
    entry_ns: u64,
    call: Call,
}

/// A call, its descriptors looked up when it was entered.
enum Call {
    Open {
        path: Option<PathBuf>,
        flags: String,
    },
    Dup(Option<Rc<Target>>),
    Seek(Rc<Target>),
    Read(Rc<Target>),
    Change(Change),
    /// A write at the descriptor's own position.
    Append(Rc<Target>, Vec<u8>),
    Other,
}

impl Trace {
    /// A trace of members whose data folder is `root`, which does not exist yet.
    pub fn new(root: &Path) -> Trace {
        Trace {
            changes: Vec::new(),
            root: root.to_owned(),
            names: HashMap::new(),
            lengths: Vec::new(),
        }
    }

    /// Adds the life of one more process over the same folder.
    pub fn read_log(&mut self, log: &Path) -> Result<()> {
        let file = std::fs::File::open(log).with_context(|| format!("no log {}", log.display()))?;
        let mut life = Life {
            trace: self,
            descriptors: HashMap::new(),
            entered: HashMap::new(),
            killed: Vec::new(),
            newest_ns: 0,
        };
        let mut reader = BufReader::with_capacity(1 << 20, file);
        let mut line = Vec::new();
        while reader.read_until(b'\n', &mut line)? > 0 {
            life.line(&line).with_context(|| {
                let start = &line[..line.len().min(200)];
                format!(
                    "cannot read strace's line {}",
                    String::from_utf8_lossy(start)
                )
            })?;
            line.clear();
        }
        let mut killed = std::mem::take(&mut life.killed);
        killed.extend(life.entered.drain().map(|(_, entered)| entered));
        let end_ns = life.newest_ns;
        for Entered { entry_ns, call } in killed {
            if let Some(change) = self.outcome_of(call)? {
                self.push(entry_ns, end_ns, change);
            }
        }
        Ok(())
    }

    /// What came of a call that the process did not survive: the folder, as the kill left it, tells.
    fn outcome_of(&self, call: Call) -> Result<Option<Change>> {
        use std::os::unix::fs::FileExt;
        let path_of = |inode: Inode| {
            let named = self.names.iter().find(|(_, found)| **found == inode);
            named.map(|(path, _)| path)
        };
        let (inode, offset, len) = match call {
            Call::Change(Change::Write(inode, offset, data)) => (inode, offset, data.len()),
            Call::Append(target, bytes) => match &*target {
                Target::File {
                    appends: true,
                    inode,
                    ..
                } => (*inode, self.lengths[*inode], bytes.len()),
                Target::File {
                    inode, position, ..
                } => (*inode, position.get(), bytes.len()),
                Target::Dir(_) => return Ok(None),
            },
            Call::Change(Change::SetLen(inode, _)) => {
                let Some(path) = path_of(inode) else {
                    return Ok(None);
                };
                let len = std::fs::metadata(path)?.len();
                return Ok(Some(Change::SetLen(inode, len)));
            }
            Call::Change(change) => {
                let happened = match &change {
                    Change::Rename(path, _) | Change::Remove(path) => !path.exists(),
                    Change::Mkdir(path) => path.exists(),
                    _ => false,
                };
                return Ok(Some(change).filter(|_| happened));
            }
            Call::Open {
                path: Some(path), ..
            } => {
                let is_new = path.is_file() && !self.names.contains_key(&path);
                let create = Change::Create(path, self.lengths.len());
                return Ok(Some(create).filter(|_| is_new));
            }
            Call::Open { .. } | Call::Dup(_) | Call::Seek(_) | Call::Read(_) | Call::Other => {
                return Ok(None);
            }
        };
        let Some(path) = path_of(inode) else {
            return Ok(None);
        };
        let file = std::fs::File::open(path)?;
        let len = (len as u64).min(file.metadata()?.len().saturating_sub(offset));
        let mut bytes = vec![0; len as usize];
        file.read_exact_at(&mut bytes, offset)?;
        Ok(Some(Change::Write(inode, offset, Data::Bytes(bytes))).filter(|_| len > 0))
    }

    /// Files that ever were below the folder `dir`.
    pub fn files_below(&self, dir: &Path) -> Vec<Inode> {
        let created = self.changes.iter().filter_map(|timed| match &timed.change {
            Change::Create(path, inode) if path.starts_with(dir) => Some(*inode),
            _ => None,
        });
        created.collect()
    }

    fn push(&mut self, entry_ns: u64, exit_ns: u64, change: Change) {
        match &change {
            Change::Rename(from, to) => {
                if let Some(inode) = self.names.remove(from) {
                    self.names.insert(to.clone(), inode);
                }
            }
            Change::Remove(path) => {
                self.names.remove(path);
            }
            Change::Write(inode, offset, data) => {
                let len = &mut self.lengths[*inode];
                *len = (*len).max(offset + data.len() as u64);
            }
            Change::SetLen(inode, len) => self.lengths[*inode] = *len,
            Change::Create(path, inode) => {
                assert!(
                    *inode == self.lengths.len(),
                    "file {inode} is not the next one"
                );
                self.lengths.push(0);
                self.names.insert(path.clone(), *inode);
            }
            Change::Mkdir(_) | Change::SyncFile(_) | Change::SyncDir(_) => {}
        }
        self.changes.push(Timed {
            entry_ns,
            exit_ns,
            change,
        });
    }
}

impl Data {
    /// How many bytes.
    pub fn len(&self) -> usize {
        match self {
            Data::Zeros(len) => *len,
            Data::Bytes(bytes) => bytes.len(),
        }
    }

    /// Whether there are none.
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// Leaves the first `len` bytes.
    fn cut(&mut self, len: usize) -> Result<()> {
        ensure!(len <= self.len(), "a write wrote more than it was given");
        match self {
            Data::Zeros(zeros) => *zeros = len,
            Data::Bytes(bytes) => bytes.truncate(len),
        }
        Ok(())
    }
}

impl Life<'_> {
    /// `pid time call(arguments) = result <seconds>`, or its two halves.
    fn line(&mut self, line: &[u8]) -> Result<()> {
        let line = line.trim_ascii_end();
        let (pid, rest) = word(line).context("no thread id")?;
        let (time, rest) = word(rest).context("no time")?;
        let (pid, time_ns) = (text(pid)?.parse()?, nanoseconds(text(time)?)?);
        self.newest_ns = self.newest_ns.max(time_ns);
        // A thread that was killed at the door of a call, which then never ran, has no name for it. One that was
        // killed in a call says so little of its end that the call counts as one that was not survived.
        if [&b"+++"[..], b"---", b"???(", b"<... ???"]
            .iter()
            .any(|other| rest.starts_with(other))
        {
            return Ok(());
        }
        if let Some(rest) = rest.strip_prefix(b"<... ") {
            let end = find_last(rest, b" = ").context("a resumed call without a result")?;
            let Some(entered) = self.entered.remove(&pid) else {
                bail!("a call is resumed that was not entered");
            };
            return self.exit(entered, time_ns, &rest[end..]);
        }
        if let Some(call) = rest.strip_suffix(UNFINISHED) {
            let call = self.enter(call)?;
            let entry_ns = time_ns;
            self.entered.insert(pid, Entered { entry_ns, call });
            return Ok(());
        }
        let end = find_last(rest, b" = ").context("a call without a result")?;
        let call = self.enter(rest[..end].trim_ascii_end())?;
        let outcome = &rest[end..];
        let entry_ns = time_ns;
        let took_ns = match outcome.starts_with(b" = ?") {
            true => 0,
            false => {
                let took = outcome
                    .strip_suffix(b">")
                    .and_then(|o| o.rsplit(|b| *b == b'<').next());
                nanoseconds(text(took.context("a call without a duration")?)?)?
            }
        };
        self.exit(Entered { entry_ns, call }, time_ns + took_ns, outcome)
    }

    fn enter(&mut self, call: &[u8]) -> Result<Call> {
        let open = call.iter().position(|byte| *byte == b'(');
        let open = open.context("a call without arguments")?;
        let (name, arguments) = (text(&call[..open])?, &call[open + 1..]);
        let arguments = arguments.strip_suffix(b")").unwrap_or(arguments);
        let arguments = split(arguments.strip_suffix(UNFINISHED).unwrap_or(arguments));
        let argument = |at: usize| {
            let argument = arguments.get(at).copied();
            argument.with_context(|| format!("{name} has too few arguments"))
        };
        let number = |at: usize| -> Result<i64> { Ok(text(argument(at)?)?.parse()?) };
        let target = |life: &Self| -> Result<Option<Rc<Target>>> {
            Ok(life.descriptors.get(&number(0)?).cloned())
        };
        let inode = |life: &Self| -> Result<Option<Inode>> {
            Ok(target(life)?.and_then(|target| match &*target {
                Target::File { inode, .. } => Some(*inode),
                Target::Dir(_) => None,
            }))
        };
        let change = |change: Option<Change>| Ok(change.map_or(Call::Other, Call::Change));
        match name {
            "open" | "creat" => {
                let path = self.path(None, argument(0)?)?;
                let flags = match name {
                    "creat" => "O_CREAT|O_TRUNC".to_owned(),
                    _ => text(argument(1)?)?.to_owned(),
                };
                Ok(Call::Open { path, flags })
            }
            "openat" | "openat2" => Ok(Call::Open {
                path: self.path(Some(argument(0)?), argument(1)?)?,
                flags: text(argument(2)?)?.to_owned(),
            }),
            "close" => {
                // The number may be another file's before this call's exit is seen.
                self.descriptors.remove(&number(0)?);
                Ok(Call::Other)
            }
            "dup" => Ok(Call::Dup(target(self)?)),
            "fcntl" if argument(1)?.starts_with(b"F_DUPFD") => Ok(Call::Dup(target(self)?)),
            "fcntl" => Ok(Call::Other),
            "lseek" => Ok(target(self)?.map_or(Call::Other, Call::Seek)),
            "read" => Ok(target(self)?.map_or(Call::Other, Call::Read)),
            "write" => match target(self)? {
                Some(target) => Ok(Call::Append(target, unhex(argument(1)?)?)),
                None => Ok(Call::Other),
            },
            "pwrite64" => match inode(self)? {
                Some(inode) => {
                    let offset = u64::try_from(number(3)?)?;
                    change(Some(Change::Write(inode, offset, data(argument(1)?)?)))
                }
                None => Ok(Call::Other),
            },
            "ftruncate" => {
                let len = u64::try_from(number(1)?)?;
                change(inode(self)?.map(|inode| Change::SetLen(inode, len)))
            }
            "fallocate" => {
                let Some(inode) = inode(self)? else {
                    return Ok(Call::Other);
                };
                match argument(1)? {
                    b"FALLOC_FL_KEEP_SIZE" => Ok(Call::Other),
                    b"0" => {
                        let len = u64::try_from(number(2)? + number(3)?)?;
                        change(Some(Change::SetLen(
                            inode,
                            len.max(self.trace.lengths[inode]),
                        )))
                    }
                    mode => bail!("fallocate with {} is not understood", text(mode)?),
                }
            }
            "fsync" | "fdatasync" => change(target(self)?.map(|target| match &*target {
                Target::File { inode, .. } => Change::SyncFile(*inode),
                Target::Dir(path) => Change::SyncDir(path.clone()),
            })),
            "rename" => self.rename(None, argument(0)?, None, argument(1)?),
            "renameat" | "renameat2" => self.rename(
                Some(argument(0)?),
                argument(1)?,
                Some(argument(2)?),
                argument(3)?,
            ),
            "unlink" | "rmdir" => change(self.path(None, argument(0)?)?.map(Change::Remove)),
            "unlinkat" => change(
                self.path(Some(argument(0)?), argument(1)?)?
                    .map(Change::Remove),
            ),
            "mkdir" => change(self.path(None, argument(0)?)?.map(Change::Mkdir)),
            "mkdirat" => change(
                self.path(Some(argument(0)?), argument(1)?)?
                    .map(Change::Mkdir),
            ),
            // It starts the write-back and says nothing of the disk's own cache: no promise.
            "sync_file_range" => Ok(Call::Other),
            "mmap" => {
                let shared = argument(3)?.starts_with(b"MAP_SHARED");
                let ours = self.descriptors.contains_key(&number(4)?);
                ensure!(!shared || !ours, "a file is written through memory, unseen");
                Ok(Call::Other)
            }
            "writev" | "pwritev" | "pwritev2" | "dup2" | "dup3" | "copy_file_range"
            | "sendfile" | "splice" | "truncate" | "msync" => {
                ensure!(
                    name == "truncate" || target(self)?.is_none(),
                    "{name} on a file is not understood"
                );
                Ok(Call::Other)
            }
            "link" | "linkat" | "symlink" | "symlinkat" | "io_uring_setup" | "close_range" => {
                bail!("{name} is not understood")
            }
            other => bail!("{other} was not asked for"),
        }
    }

    fn exit(&mut self, entered: Entered, exit_ns: u64, outcome: &[u8]) -> Result<()> {
        let Entered { entry_ns, call } = entered;
        let result = text(outcome)?
            .split_once("= ")
            .and_then(|(_, result)| result.split_whitespace().next());
        // A call that never returned has `?`.
        let Some(result) = result.and_then(|result| match result.strip_prefix("0x") {
            Some(hex) => i64::from_str_radix(hex, 16).ok(),
            None => result.parse::<i64>().ok(),
        }) else {
            self.killed.push(Entered { entry_ns, call });
            return Ok(());
        };
        if result < 0 {
            return Ok(());
        }
        match call {
            Call::Other => {}
            Call::Open { path: None, .. } => {
                self.descriptors.remove(&result);
            }
            Call::Open {
                path: Some(path),
                flags,
            } => {
                let target = self.opened(path, &flags, entry_ns, exit_ns)?;
                self.descriptors.insert(result, Rc::new(target));
            }
            Call::Dup(target) => match target {
                Some(target) => {
                    self.descriptors.insert(result, target);
                }
                None => {
                    self.descriptors.remove(&result);
                }
            },
            Call::Seek(target) => {
                if let Target::File { position, .. } = &*target {
                    position.set(result as u64);
                }
            }
            Call::Read(target) => {
                if let Target::File { position, .. } = &*target {
                    position.set(position.get() + result as u64);
                }
            }
            Call::Append(target, bytes) => {
                let Target::File {
                    inode,
                    position,
                    appends,
                } = &*target
                else {
                    bail!("a folder was written to");
                };
                let written = bytes[..result as usize].to_vec();
                let offset = match appends {
                    true => self.trace.lengths[*inode],
                    false => position.get(),
                };
                position.set(offset + written.len() as u64);
                let write = Change::Write(*inode, offset, Data::Bytes(written));
                self.trace.push(entry_ns, exit_ns, write);
            }
            Call::Change(mut change) => {
                if let Change::Write(_, _, data) = &mut change {
                    // A kill in the middle of a write leaves a part of it; a live process writes the rest by another call.
                    data.cut(result as usize)?;
                }
                self.trace.push(entry_ns, exit_ns, change);
            }
        }
        Ok(())
    }

    fn opened(
        &mut self,
        path: PathBuf,
        flags: &str,
        entry_ns: u64,
        exit_ns: u64,
    ) -> Result<Target> {
        let has = |flag| flags.split('|').any(|word| word == flag);
        let known = self.trace.names.get(&path).copied();
        let is_dir = has("O_DIRECTORY") || (known.is_none() && !has("O_CREAT"));
        if is_dir {
            return Ok(Target::Dir(path));
        }
        let inode = known.unwrap_or_else(|| {
            let inode = self.trace.lengths.len();
            let create = Change::Create(path, inode);
            self.trace.push(entry_ns, exit_ns, create);
            inode
        });
        if has("O_TRUNC") && self.trace.lengths[inode] > 0 {
            self.trace.push(entry_ns, exit_ns, Change::SetLen(inode, 0));
        }
        Ok(Target::File {
            inode,
            position: std::cell::Cell::new(0),
            appends: has("O_APPEND"),
        })
    }

    fn rename(
        &self,
        from_dir: Option<&[u8]>,
        from: &[u8],
        to_dir: Option<&[u8]>,
        to: &[u8],
    ) -> Result<Call> {
        match (self.path(from_dir, from)?, self.path(to_dir, to)?) {
            (Some(from), Some(to)) => Ok(Call::Change(Change::Rename(from, to))),
            (None, None) => Ok(Call::Other),
            _ => bail!("a file is moved into or out of the data folder"),
        }
    }

    /// The absolute path of an argument; `None` outside the data folder.
    fn path(&self, dir: Option<&[u8]>, argument: &[u8]) -> Result<Option<PathBuf>> {
        use std::os::unix::ffi::OsStringExt;
        let name = PathBuf::from(std::ffi::OsString::from_vec(unhex(argument)?));
        let path = match dir {
            _ if name.is_absolute() => name,
            None | Some(b"AT_FDCWD") => return Ok(None),
            Some(number) => match self.descriptors.get(&text(number)?.parse()?).map(|t| &**t) {
                Some(Target::Dir(dir)) => dir.join(name),
                _ => return Ok(None),
            },
        };
        Ok(path.starts_with(&self.trace.root).then_some(path))
    }
}

fn word(line: &[u8]) -> Option<(&[u8], &[u8])> {
    let line = line.trim_ascii_start();
    let end = line.iter().position(|byte| *byte == b' ')?;
    Some((&line[..end], line[end..].trim_ascii_start()))
}

fn text(bytes: &[u8]) -> Result<&str> {
    Ok(std::str::from_utf8(bytes)?)
}

/// `seconds.nanoseconds` without the rounding of a float.
fn nanoseconds(text: &str) -> Result<u64> {
    let (seconds, nanos) = text.split_once('.').context("no fraction of a second")?;
    ensure!(nanos.len() == 9, "{text} is not in nanoseconds");
    Ok(seconds.parse::<u64>()? * 1_000_000_000 + nanos.parse::<u64>()?)
}

/// Where the last `what` begins; results are short, so the end is where to look.
fn find_last(line: &[u8], what: &[u8]) -> Option<usize> {
    line.windows(what.len()).rposition(|window| window == what)
}

/// Arguments at their commas. Quoted ones are all hexadecimal and hold none; braces do.
fn split(arguments: &[u8]) -> Vec<&[u8]> {
    let mut parts = Vec::new();
    let mut depth = 0;
    let mut start = 0;
    let mut at = 0;
    while at < arguments.len() {
        match arguments[at] {
            b'"' => {
                let end = memchr::memchr(b'"', &arguments[at + 1..]);
                at += 1 + end.unwrap_or(arguments.len() - at - 1);
            }
            b'{' | b'[' => depth += 1,
            b'}' | b']' => depth -= 1,
            b',' if depth == 0 => {
                parts.push(arguments[start..at].trim_ascii());
                start = at + 1;
            }
            _ => {}
        }
        at += 1;
    }
    parts.push(arguments[start..].trim_ascii());
    parts
}

fn data(argument: &[u8]) -> Result<Data> {
    const ZEROS: &[u8] = &{
        let mut zeros = [0; 4 * 4096];
        let mut at = 0;
        while at < zeros.len() {
            zeros[at] = b"\\x00"[at % 4];
            at += 1;
        }
        zeros
    };
    let hex = unquote(argument)?;
    if hex
        .chunks(ZEROS.len())
        .all(|part| *part == ZEROS[..part.len()])
    {
        return Ok(Data::Zeros(hex.len() / 4));
    }
    Ok(Data::Bytes(unhex(argument)?))
}

fn unquote(argument: &[u8]) -> Result<&[u8]> {
    let inner = argument
        .strip_prefix(b"\"")
        .and_then(|rest| rest.strip_suffix(b"\""));
    inner.context("a string is not whole")
}

/// `"\x61\x62"` to `ab`.
fn unhex(argument: &[u8]) -> Result<Vec<u8>> {
    let hex = unquote(argument)?;
    ensure!(hex.len().is_multiple_of(4), "a string is not hexadecimal");
    let digit = |byte: u8| match byte {
        b'0'..=b'9' => byte - b'0',
        _ => byte - b'a' + 10,
    };
    let bytes = hex.chunks_exact(4);
    Ok(bytes.map(|x| digit(x[2]) << 4 | digit(x[3])).collect())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn hex(text: &str) -> String {
        text.bytes().map(|byte| format!("\\x{byte:02x}")).collect()
    }

    #[test]
    fn halves_of_calls_are_joined_and_foreign_files_left_out() {
        let folder = tempfile::tempdir().unwrap();
        let (log, root) = (folder.path().join("log"), Path::new("/d"));
        let (file, other) = (hex("/d/f"), hex("/e/f"));
        let lines = [
            format!(
                "1  100.000000001 mkdir(\"{}\", 0700) = 0 <0.000000005>",
                hex("/d")
            ),
            format!(
                "1  100.000000010 openat(AT_FDCWD, \"{file}\", O_RDWR|O_CREAT|O_CLOEXEC, 0600) = 3 <0.000000005>"
            ),
            format!(
                "1  100.000000020 openat(AT_FDCWD, \"{other}\", O_RDWR|O_CREAT|O_CLOEXEC, 0600) = 4 <0.000000005>"
            ),
            format!(
                "1  100.000000030 pwrite64(3, \"{}\", 2, 8 <unfinished ...>",
                hex("ab")
            ),
            format!(
                "2  100.000000040 pwrite64(4, \"{}\", 2, 8) = 2 <0.000000005>",
                hex("cd")
            ),
            "2  100.000000050 fdatasync(3 <unfinished ...>".to_owned(),
            "1  100.000000060 <... pwrite64 resumed>) = 2 <0.000000030>".to_owned(),
            "2  100.000000070 <... fdatasync resumed>) = 0 <0.000000020>".to_owned(),
            "2  100.000000080 fdatasync(3) = ?".to_owned(),
            // Killed in the middle of it.
            format!(
                "1  100.000000090 pwrite64(3, \"{}\", 4, 10) = 2 <0.000000005>",
                hex("efgh")
            ),
        ];
        std::fs::write(&log, lines.join("\n")).unwrap();

        let mut trace = Trace::new(root);
        trace.read_log(&log).unwrap();

        let second = 100_000_000_000;
        let seen: Vec<_> = trace
            .changes
            .iter()
            .map(|timed| (timed.entry_ns, timed.exit_ns, timed.change.clone()))
            .collect();
        let bytes = Data::Bytes(b"ab".to_vec());
        let cut = Data::Bytes(b"ef".to_vec());
        assert_eq!(
            seen,
            [
                (second + 1, second + 6, Change::Mkdir("/d".into())),
                (second + 10, second + 15, Change::Create("/d/f".into(), 0)),
                (second + 30, second + 60, Change::Write(0, 8, bytes)),
                (second + 50, second + 70, Change::SyncFile(0)),
                (second + 90, second + 95, Change::Write(0, 10, cut)),
            ]
        );
    }

    #[test]
    fn zeros_are_not_kept() {
        let zeros = format!("\"{}\"", "\\x00".repeat(9000));
        assert_eq!(data(zeros.as_bytes()).unwrap(), Data::Zeros(9000));
    }
}
