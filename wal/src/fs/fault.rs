//! A disk in memory that loses power, runs full and fails on command.
//!
//! Each file has live bytes, which reads see, and durable bytes, which survive. A write makes new versions of the
//! 4 KiB pages it touches; [`sync_data`](super::File::sync_data) makes the newest ones durable. What a power cut leaves
//! of the rest is drawn from a seed: each page any of its versions, the length any it had, and of the creations,
//! renamings and removals an ordered prefix that reaches at least to the last [`sync_dir`](super::Fs::sync_dir).
//! That is what a journaling file system promises; an fsync of a file does not make its name durable here, and a
//! folder is durable once made. After a failed fsync the pages count as clean although they never reached the disk,
//! as on Linux: a later fsync that succeeds does not bring them back.
//!
//! Every operation that changes something has a number, counted from 0 by [`FaultFs::operation_count`]:
//! ```
//! use kv_wal::fs::{Fault, FaultFs, Fs};
//!
//! let fs = FaultFs::new();
//! fs.create_dir("/data".as_ref()).unwrap();
//! let file = fs.create("/data/a".as_ref()).unwrap();
//! fs.fail_at(fs.operation_count() + 1, Fault::PowerCut);
//! file.write_at(b"kept or lost", 0).unwrap();
//! file.sync_data().unwrap_err();
//! let after = fs.power_cut(7);
//! assert!(after.list("/data".as_ref()).unwrap().len() <= 1);
//! ```

use std::collections::{BTreeMap, BTreeSet};
use std::io;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use parking_lot::Mutex;

use super::{File, Fs};

const PAGE: usize = 4096;
/// Older versions of a page are forgotten; a disk rarely reorders that far.
const PAGE_VERSIONS_MAX: usize = 6;

type Page = Box<[u8; PAGE]>;

/// What goes wrong with an operation.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Fault {
    /// The power fails during the operation: a write may reach the disk in part, and nothing works from then on.
    PowerCut,
    /// The disk reports an input/output error and the operation has no effect.
    Io,
    /// The disk is full and the operation has no effect.
    NoSpace,
}

impl Fault {
    fn error(self) -> io::Error {
        match self {
            Fault::PowerCut => io::Error::other("the power is off"),
            Fault::Io => rustix::io::Errno::IO.into(),
            Fault::NoSpace => rustix::io::Errno::NOSPC.into(),
        }
    }
}

/// What an operation did.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum OperationKind {
    /// A file was created.
    Create,
    /// Bytes were written at an offset.
    Write {
        /// Where.
        offset: u64,
        /// How many.
        len: u64,
    },
    /// A file's bytes were made durable.
    Sync,
    /// A file's length was set.
    SetLen,
    /// Blocks were reserved.
    Reserve,
    /// A file was renamed; the operation's path is the old name.
    Rename,
    /// A file was removed.
    Remove,
    /// A folder's names were made durable.
    SyncDir,
}

/// One operation that changed something, or tried to.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Operation {
    /// What was done.
    pub kind: OperationKind,
    /// To which file or folder.
    pub path: PathBuf,
    /// Whether it succeeded.
    pub ok: bool,
}

/// A disk in memory; see the module's words. Clones share it.
#[derive(Clone, Default)]
pub struct FaultFs {
    disk: Arc<Mutex<Disk>>,
}

#[derive(Default)]
struct Disk {
    inodes: Vec<Inode>,
    dirs: BTreeSet<PathBuf>,
    names: BTreeMap<PathBuf, usize>,
    durable_names: BTreeMap<PathBuf, usize>,
    /// Changes of names since the last that are durable.
    journal: Vec<NameChange>,
    operations: Vec<Operation>,
    faults: BTreeMap<u64, Fault>,
    sync_faults: BTreeMap<u64, Fault>,
    syncs: u64,
    is_off: bool,
    ignores_sync: bool,
    capacity: Option<u64>,
}

#[derive(Clone)]
enum NameChange {
    Link(PathBuf, usize),
    Rename(PathBuf, PathBuf),
    Unlink(PathBuf),
}

impl NameChange {
    fn apply(&self, names: &mut BTreeMap<PathBuf, usize>) {
        match self {
            NameChange::Link(path, inode) => {
                names.insert(path.clone(), *inode);
            }
            NameChange::Rename(from, to) => {
                let inode = names
                    .remove(from)
                    .expect("a journaled renaming follows the creation");
                names.insert(to.clone(), inode);
            }
            NameChange::Unlink(path) => {
                names.remove(path);
            }
        }
    }
}

#[derive(Clone, Default)]
struct Inode {
    /// The newest name, for the list of operations.
    path: PathBuf,
    live: Vec<u8>,
    durable: Vec<u8>,
    /// Versions of the pages that were changed since the last fsync, oldest first.
    dirty: BTreeMap<usize, Vec<Page>>,
    /// Lengths since the last fsync.
    lens: Vec<usize>,
    reserved: u64,
}

impl Inode {
    fn page(bytes: &[u8], page: usize) -> Page {
        let mut copy = Box::new([0; PAGE]);
        let bytes = bytes.get(page * PAGE..).unwrap_or_default();
        let len = bytes.len().min(PAGE);
        copy[..len].copy_from_slice(&bytes[..len]);
        copy
    }

    fn put_page(bytes: &mut Vec<u8>, page: usize, contents: &[u8; PAGE]) {
        let start = page * PAGE;
        if bytes.len() < start + PAGE {
            bytes.resize(start + PAGE, 0);
        }
        bytes[start..start + PAGE].copy_from_slice(contents);
    }

    /// Notes that the bytes of `from..to` have changed.
    fn touch(&mut self, from: usize, to: usize) {
        for page in from / PAGE..to.div_ceil(PAGE) {
            let versions = self.dirty.entry(page).or_default();
            if versions.len() == PAGE_VERSIONS_MAX {
                versions.remove(0);
            }
            versions.push(Inode::page(&self.live, page));
        }
    }

    fn resize(&mut self, len: usize) {
        let old = self.live.len();
        self.live.resize(len, 0);
        self.lens.push(len);
        self.touch(len.min(old), old.max(len).min(len.next_multiple_of(PAGE)));
    }

    fn sync(&mut self) {
        for page in std::mem::take(&mut self.dirty).into_keys() {
            Inode::put_page(&mut self.durable, page, &Inode::page(&self.live, page));
        }
        self.durable.resize(self.live.len(), 0);
        self.lens.clear();
    }

    /// The kernel forgets that the pages are dirty.
    fn fail_sync(&mut self) {
        self.dirty.clear();
        self.lens.clear();
    }

    fn after_power_cut(&self, random: &mut Random) -> Vec<u8> {
        let mut bytes = self.durable.clone();
        let len = match random.below(self.lens.len() + 1) {
            0 => bytes.len(),
            n => self.lens[n - 1],
        };
        for (page, versions) in &self.dirty {
            match random.below(versions.len() + 1) {
                0 => {}
                n => Inode::put_page(&mut bytes, *page, &versions[n - 1]),
            }
        }
        bytes.resize(len, 0);
        bytes
    }
}

/// A small generator (splitmix64), so that a cut replays from its seed.
struct Random(u64);

impl Random {
    fn below(&mut self, bound: usize) -> usize {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut z = self.0;
        z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        z ^= z >> 31;
        usize::try_from(z % bound as u64).expect("below a usize")
    }
}

impl Disk {
    /// Counts an operation and decides its fate. On a power cut `Ok(true)` says that it still changes what is volatile.
    fn begin(&mut self, kind: OperationKind, path: &Path) -> io::Result<bool> {
        if self.is_off {
            return Err(Fault::PowerCut.error());
        }
        let number = self.operations.len() as u64;
        let mut fault = self.faults.remove(&number);
        if kind == OperationKind::Sync {
            fault = fault.or(self.sync_faults.remove(&self.syncs));
            self.syncs += 1;
        }
        self.operations.push(Operation {
            kind,
            path: path.to_owned(),
            ok: fault.is_none(),
        });
        match fault {
            None => Ok(false),
            Some(Fault::PowerCut) => {
                self.is_off = true;
                Ok(true)
            }
            Some(fault) => Err(fault.error()),
        }
    }

    /// Ends an operation during which the power may have failed.
    fn end(cut: bool) -> io::Result<()> {
        if cut {
            Err(Fault::PowerCut.error())
        } else {
            Ok(())
        }
    }

    fn change_names(&mut self, change: NameChange) {
        change.apply(&mut self.names);
        self.journal.push(change);
    }

    /// Whether the disk has room for a file to grow to `len`.
    fn check_space(&self, inode: usize, len: u64) -> io::Result<()> {
        let Some(capacity) = self.capacity else {
            return Ok(());
        };
        let taken = |inode: &Inode| inode.reserved.max(inode.live.len() as u64);
        let others: u64 = self
            .names
            .values()
            .filter(|id| **id != inode)
            .map(|id| taken(&self.inodes[*id]))
            .sum();
        let own = taken(&self.inodes[inode]);
        if len > own && others + len > capacity {
            return Err(Fault::NoSpace.error());
        }
        Ok(())
    }

    fn find(&self, path: &Path) -> io::Result<usize> {
        if self.is_off {
            return Err(Fault::PowerCut.error());
        }
        self.names
            .get(path)
            .copied()
            .ok_or_else(|| io::ErrorKind::NotFound.into())
    }

    fn check_dir(&self, dir: &Path) -> io::Result<()> {
        if self.is_off {
            return Err(Fault::PowerCut.error());
        }
        if self.dirs.contains(dir) || dir == Path::new("/") {
            Ok(())
        } else {
            Err(io::ErrorKind::NotFound.into())
        }
    }
}

impl FaultFs {
    /// An empty disk.
    pub fn new() -> FaultFs {
        FaultFs::default()
    }

    /// How many operations there were, failed ones included: the number of the next one.
    pub fn operation_count(&self) -> u64 {
        self.disk.lock().operations.len() as u64
    }

    /// All operations so far.
    pub fn operations(&self) -> Vec<Operation> {
        self.disk.lock().operations.clone()
    }

    /// Lets the operation with this number fail.
    pub fn fail_at(&self, number: u64, fault: Fault) {
        self.disk.lock().faults.insert(number, fault);
    }

    /// Lets the `nth` fsync of a file from now, counted from 0, fail.
    pub fn fail_sync(&self, nth: u64, fault: Fault) {
        let mut disk = self.disk.lock();
        let number = disk.syncs + nth;
        disk.sync_faults.insert(number, fault);
    }

    /// Turns fsync into a lie: it succeeds and makes nothing durable. For tests that must fail without it.
    pub fn ignore_sync(&self) {
        self.disk.lock().ignores_sync = true;
    }

    /// Limits what all files together may take; `None` is no limit.
    pub fn set_capacity(&self, bytes: Option<u64>) {
        self.disk.lock().capacity = bytes;
    }

    /// The disk after the power failed now, or at the [`Fault::PowerCut`] that came before, and returned. This one
    /// stays as it is, so that several seeds can be tried.
    pub fn power_cut(&self, seed: u64) -> FaultFs {
        let disk = self.disk.lock();
        let mut random = Random(seed);
        let mut names = disk.durable_names.clone();
        for change in &disk.journal[..random.below(disk.journal.len() + 1)] {
            change.apply(&mut names);
        }
        let mut after = Disk {
            dirs: disk.dirs.clone(),
            capacity: disk.capacity,
            ..Disk::default()
        };
        for (path, inode) in names {
            let bytes = disk.inodes[inode].after_power_cut(&mut random);
            after.names.insert(path.clone(), after.inodes.len());
            after.inodes.push(Inode {
                path,
                live: bytes.clone(),
                durable: bytes,
                ..Inode::default()
            });
        }
        after.durable_names = after.names.clone();
        FaultFs {
            disk: Arc::new(Mutex::new(after)),
        }
    }

    /// The disk after the process died now, or at the [`Fault::PowerCut`] that came before, while the power stayed on:
    /// nothing is lost, and what was not durable still is not.
    pub fn kill(&self) -> FaultFs {
        let disk = self.disk.lock();
        let after = Disk {
            inodes: disk.inodes.clone(),
            dirs: disk.dirs.clone(),
            names: disk.names.clone(),
            durable_names: disk.durable_names.clone(),
            journal: disk.journal.clone(),
            ignores_sync: disk.ignores_sync,
            capacity: disk.capacity,
            ..Disk::default()
        };
        FaultFs {
            disk: Arc::new(Mutex::new(after)),
        }
    }

    /// The live bytes of a file.
    pub fn contents(&self, file: &Path) -> io::Result<Vec<u8>> {
        let disk = self.disk.lock();
        Ok(disk.inodes[disk.find(file)?].live.clone())
    }

    /// Changes a file behind everyone's back, durably and without an operation: a flipped bit, a lost tail.
    pub fn edit(&self, file: &Path, change: impl FnOnce(&mut Vec<u8>)) -> io::Result<()> {
        let mut disk = self.disk.lock();
        let inode = disk.find(file)?;
        let inode = &mut disk.inodes[inode];
        change(&mut inode.live);
        inode.durable = inode.live.clone();
        inode.fail_sync();
        Ok(())
    }
}

impl Fs for FaultFs {
    fn create_dir(&self, dir: &Path) -> io::Result<()> {
        let mut disk = self.disk.lock();
        if disk.is_off {
            return Err(Fault::PowerCut.error());
        }
        disk.dirs.extend(dir.ancestors().map(Path::to_owned));
        Ok(())
    }

    fn create(&self, file: &Path) -> io::Result<Arc<dyn File>> {
        let mut disk = self.disk.lock();
        if let Some(dir) = file.parent() {
            disk.check_dir(dir)?;
        }
        if disk.find(file).is_ok() {
            return Err(io::ErrorKind::AlreadyExists.into());
        }
        let cut = disk.begin(OperationKind::Create, file)?;
        let inode = disk.inodes.len();
        disk.inodes.push(Inode {
            path: file.to_owned(),
            ..Inode::default()
        });
        disk.change_names(NameChange::Link(file.to_owned(), inode));
        Disk::end(cut)?;
        Ok(Arc::new(FaultFile {
            disk: Arc::clone(&self.disk),
            inode,
        }))
    }

    fn open(&self, file: &Path) -> io::Result<Arc<dyn File>> {
        let inode = self.disk.lock().find(file)?;
        Ok(Arc::new(FaultFile {
            disk: Arc::clone(&self.disk),
            inode,
        }))
    }

    fn rename(&self, from: &Path, to: &Path) -> io::Result<()> {
        let mut disk = self.disk.lock();
        let inode = disk.find(from)?;
        let cut = disk.begin(OperationKind::Rename, from)?;
        disk.change_names(NameChange::Rename(from.to_owned(), to.to_owned()));
        disk.inodes[inode].path = to.to_owned();
        Disk::end(cut)
    }

    fn remove(&self, file: &Path) -> io::Result<()> {
        let mut disk = self.disk.lock();
        disk.find(file)?;
        let cut = disk.begin(OperationKind::Remove, file)?;
        disk.change_names(NameChange::Unlink(file.to_owned()));
        Disk::end(cut)
    }

    fn list(&self, dir: &Path) -> io::Result<Vec<PathBuf>> {
        let disk = self.disk.lock();
        disk.check_dir(dir)?;
        Ok(disk
            .names
            .keys()
            .filter(|path| path.parent() == Some(dir))
            .cloned()
            .collect())
    }

    fn sync_dir(&self, dir: &Path) -> io::Result<()> {
        let mut disk = self.disk.lock();
        disk.check_dir(dir)?;
        Disk::end(disk.begin(OperationKind::SyncDir, dir)?)?;
        if !disk.ignores_sync {
            disk.durable_names = disk.names.clone();
            disk.journal.clear();
        }
        Ok(())
    }
}

struct FaultFile {
    disk: Arc<Mutex<Disk>>,
    inode: usize,
}

impl FaultFile {
    fn begin(&self, disk: &mut Disk, kind: OperationKind) -> io::Result<bool> {
        let path = disk.inodes[self.inode].path.clone();
        disk.begin(kind, &path)
    }
}

impl File for FaultFile {
    fn read_at(&self, buffer: &mut [u8], offset: u64) -> io::Result<usize> {
        let disk = self.disk.lock();
        if disk.is_off {
            return Err(Fault::PowerCut.error());
        }
        let live = &disk.inodes[self.inode].live;
        let start = usize::try_from(offset)
            .unwrap_or(usize::MAX)
            .min(live.len());
        let len = buffer.len().min(live.len() - start);
        buffer[..len].copy_from_slice(&live[start..start + len]);
        Ok(len)
    }

    fn write_at(&self, bytes: &[u8], offset: u64) -> io::Result<()> {
        let mut disk = self.disk.lock();
        let kind = OperationKind::Write {
            offset,
            len: bytes.len() as u64,
        };
        let cut = self.begin(&mut disk, kind)?;
        disk.check_space(self.inode, offset + bytes.len() as u64)?;
        let inode = &mut disk.inodes[self.inode];
        let start = usize::try_from(offset).expect("a file fits memory");
        let end = start + bytes.len();
        if end > inode.live.len() {
            inode.resize(end);
        }
        inode.live[start..end].copy_from_slice(bytes);
        inode.touch(start, end);
        Disk::end(cut)
    }

    fn sync_data(&self) -> io::Result<()> {
        let mut disk = self.disk.lock();
        let begun = self.begin(&mut disk, OperationKind::Sync);
        let ignored = disk.ignores_sync;
        let inode = &mut disk.inodes[self.inode];
        match begun {
            Ok(false) if ignored => Ok(()),
            Ok(false) => {
                inode.sync();
                Ok(())
            }
            Ok(true) => Err(Fault::PowerCut.error()),
            Err(error) => {
                inode.fail_sync();
                Err(error)
            }
        }
    }

    fn len(&self) -> io::Result<u64> {
        let disk = self.disk.lock();
        if disk.is_off {
            return Err(Fault::PowerCut.error());
        }
        Ok(disk.inodes[self.inode].live.len() as u64)
    }

    fn set_len(&self, len: u64) -> io::Result<()> {
        let mut disk = self.disk.lock();
        let cut = self.begin(&mut disk, OperationKind::SetLen)?;
        disk.check_space(self.inode, len)?;
        let inode = &mut disk.inodes[self.inode];
        inode.resize(usize::try_from(len).expect("a file fits memory"));
        inode.reserved = inode.reserved.min(len);
        Disk::end(cut)
    }

    fn reserve(&self, len: u64) -> io::Result<()> {
        let mut disk = self.disk.lock();
        let cut = self.begin(&mut disk, OperationKind::Reserve)?;
        disk.check_space(self.inode, len)?;
        let inode = &mut disk.inodes[self.inode];
        inode.reserved = inode.reserved.max(len);
        Disk::end(cut)
    }
}
