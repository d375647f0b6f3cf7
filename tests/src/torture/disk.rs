//! What a disk may hold after a power cut, given the file operations before it.
//!
//! The model is ext4's, at its most unkind:
//! - Of each file, what a completed fsync covered is there. Every other 4 KiB page is at a random one of its versions
//!   since, and so is the length.
//! - Names (creations, renames, removals) reach the disk in order: a random number of the newest is missing, but none
//!   that an fsync of their folder or their file covered.
//! - A call that had not returned when the power went may have done anything of that.
//! - `sync_file_range` promises nothing.

use std::collections::{BTreeMap, HashMap, HashSet};
use std::os::unix::fs::{DirBuilderExt, FileExt};
use std::path::{Path, PathBuf};

use anyhow::{Context, Result};
use rand::RngExt;
use rand::rngs::StdRng;

use super::strace::{Change, Data, Inode, Timed, Trace};

const PAGE_BYTES: u64 = 4096;

type Page = [u8; PAGE_BYTES as usize];

/// How much of what was not fsynced survives.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Survival {
    /// Nothing.
    Nothing,
    /// A random part.
    Some,
    /// All of the names, a random part of the pages.
    Names,
    /// All of the pages, none of the names.
    Pages,
}

/// The content of a folder after a power cut.
#[derive(Debug)]
pub struct Image {
    dirs: Vec<PathBuf>,
    files: Vec<(PathBuf, Content)>,
    /// Pages that were lost, wholly or in part, and names.
    pub lost: (u64, u64),
}

#[derive(Clone, Debug, Default)]
struct Content {
    /// Pages that are not all zero.
    pages: BTreeMap<u64, Box<Page>>,
    len: u64,
}

#[derive(Default)]
struct File<'a> {
    durable: Content,
    /// Changes that no fsync covers yet.
    pending: Vec<&'a Timed>,
}

/// Cuts the power at `cut_ns` and picks what is left of the folder `root`.
pub fn cut(
    trace: &Trace,
    root: &Path,
    cut_ns: u64,
    survival: Survival,
    random: &mut StdRng,
) -> Image {
    let mut files: HashMap<Inode, File<'_>> = HashMap::new();
    let mut names: Vec<&Timed> = Vec::new();
    // This many of the names are on the disk for certain.
    let mut certain = 0;
    for timed in &trace.changes {
        if timed.entry_ns > cut_ns {
            continue;
        }
        let is_complete = timed.exit_ns <= cut_ns;
        match &timed.change {
            Change::Write(inode, ..) | Change::SetLen(inode, _) => {
                files.entry(*inode).or_default().pending.push(timed);
            }
            Change::Create(..) | Change::Mkdir(_) | Change::Rename(..) | Change::Remove(_) => {
                names.push(timed);
            }
            Change::SyncFile(inode) if is_complete => {
                let file = files.entry(*inode).or_default();
                file.settle(timed.entry_ns);
                let covered = |name: &&Timed| concerns_file(name, *inode);
                certain = certain.max(covered_names(&names, timed.entry_ns, covered));
            }
            Change::SyncDir(dir) if is_complete => {
                let covered = |name: &&Timed| concerns_dir(name, dir);
                certain = certain.max(covered_names(&names, timed.entry_ns, covered));
            }
            Change::SyncFile(_) | Change::SyncDir(_) => {}
        }
    }
    let kept = match survival {
        Survival::Nothing | Survival::Pages => certain,
        Survival::Some => random.random_range(certain..=names.len()),
        Survival::Names => names.len(),
    };
    let mut image = Image {
        dirs: vec![root.to_owned()],
        files: Vec::new(),
        lost: (0, (names.len() - kept) as u64),
    };
    let (dirs, kept_files) = namespace(&names[..kept]);
    image.dirs.extend(dirs);
    for (path, inode) in kept_files {
        let file = files.remove(&inode).unwrap_or_default();
        let (content, lost) = file.survive(survival, random);
        image.lost.0 += lost;
        image.files.push((path, content));
    }
    image
}

impl Image {
    /// Writes the folder `root` of the trace to `target`.
    pub fn write(&self, root: &Path, target: &Path) -> Result<()> {
        let placed = |path: &Path| -> Result<PathBuf> {
            Ok(target.join(
                path.strip_prefix(root)
                    .context("a path outside the folder")?,
            ))
        };
        let mut dirs = self.dirs.clone();
        dirs.sort();
        for dir in dirs {
            let mut builder = std::fs::DirBuilder::new();
            builder.recursive(true).mode(0o700).create(placed(&dir)?)?;
        }
        for (path, content) in &self.files {
            let file = std::fs::File::create(placed(path)?)?;
            for (number, page) in &content.pages {
                file.write_all_at(&page[..], number * PAGE_BYTES)?;
            }
            file.set_len(content.len)?;
        }
        Ok(())
    }
}

impl File<'_> {
    /// An fsync that began at `entry_ns` is complete: what was complete then is durable.
    fn settle(&mut self, entry_ns: u64) {
        let (covered, later) = std::mem::take(&mut self.pending)
            .into_iter()
            .partition(|timed: &&Timed| timed.exit_ns <= entry_ns);
        self.pending = later;
        for timed in covered {
            let change: &Change = &timed.change;
            for page in self.durable.pages_of(change) {
                self.durable.change_page(page, change);
            }
            self.durable.change_len(change);
        }
    }

    /// A random version of each page and of the length, and how many pages are older than the newest.
    fn survive(self, survival: Survival, random: &mut StdRng) -> (Content, u64) {
        let File {
            durable: mut content,
            pending,
        } = self;
        let mut versions: BTreeMap<u64, Vec<&Change>> = BTreeMap::new();
        for timed in &pending {
            let known = versions.keys().copied();
            let pages: Vec<u64> = match &timed.change {
                Change::SetLen(_, len) => content
                    .pages_of(&timed.change)
                    .into_iter()
                    .chain(known.filter(|page| (page + 1) * PAGE_BYTES > *len))
                    .collect::<HashSet<_>>()
                    .into_iter()
                    .collect(),
                change => content.pages_of(change),
            };
            for page in pages {
                versions.entry(page).or_default().push(&timed.change);
            }
        }
        let keep = |count: usize, random: &mut StdRng| match survival {
            Survival::Nothing => 0,
            Survival::Pages => count,
            Survival::Some | Survival::Names => random.random_range(0..=count),
        };
        let mut lost = 0;
        let lengths = keep(pending.len(), random);
        for (page, changes) in versions {
            let kept = keep(changes.len(), random);
            lost += u64::from(kept < changes.len());
            for change in &changes[..kept] {
                content.change_page(page, change);
            }
        }
        for timed in &pending[..lengths] {
            content.change_len(&timed.change);
        }
        let len = content.len;
        content.cut(len);
        (content, lost)
    }
}

impl Content {
    /// The pages a change touches. A new length touches those behind it, which it empties.
    fn pages_of(&self, change: &Change) -> Vec<u64> {
        match change {
            Change::Write(_, offset, data) if !data.is_empty() => {
                (offset / PAGE_BYTES..=(offset + data.len() as u64 - 1) / PAGE_BYTES).collect()
            }
            Change::SetLen(_, len) => self
                .pages
                .range(len / PAGE_BYTES..)
                .map(|(page, _)| *page)
                .collect(),
            _ => Vec::new(),
        }
    }

    fn change_page(&mut self, number: u64, change: &Change) {
        let start = number * PAGE_BYTES;
        let (from, to) = match change {
            Change::Write(_, offset, data) => (*offset, offset + data.len() as u64),
            Change::SetLen(_, len) => (*len, u64::MAX),
            _ => return,
        };
        let (low, high) = (from.max(start), to.min(start + PAGE_BYTES));
        if low >= high {
            return;
        }
        let range = (low - start) as usize..(high - start) as usize;
        match change {
            Change::Write(_, offset, Data::Bytes(bytes)) => {
                let page = self
                    .pages
                    .entry(number)
                    .or_insert_with(|| Box::new([0; PAGE_BYTES as usize]));
                let source = (low - offset) as usize..(high - offset) as usize;
                page[range].copy_from_slice(&bytes[source]);
            }
            _ if range.len() == PAGE_BYTES as usize => {
                self.pages.remove(&number);
            }
            _ => {
                if let Some(page) = self.pages.get_mut(&number) {
                    page[range].fill(0);
                }
            }
        }
    }

    fn change_len(&mut self, change: &Change) {
        match change {
            Change::Write(_, offset, data) => {
                self.len = self.len.max(offset + data.len() as u64);
            }
            Change::SetLen(_, len) => self.len = *len,
            _ => {}
        }
    }

    /// Empties what is behind the length.
    fn cut(&mut self, len: u64) {
        let change = Change::SetLen(0, len);
        for page in self.pages_of(&change) {
            self.change_page(page, &change);
        }
    }
}

/// How many names are durable when an fsync that began at `entry_ns` covers those `covered` says.
fn covered_names(names: &[&Timed], entry_ns: u64, covered: impl Fn(&&Timed) -> bool) -> usize {
    names
        .iter()
        .rposition(|name| name.exit_ns <= entry_ns && covered(name))
        .map_or(0, |at| at + 1)
}

fn concerns_file(name: &Timed, inode: Inode) -> bool {
    matches!(&name.change, Change::Create(_, created) if *created == inode)
}

fn concerns_dir(name: &Timed, dir: &Path) -> bool {
    let is_inside = |path: &Path| path == dir || path.parent() == Some(dir);
    match &name.change {
        Change::Create(path, _) | Change::Mkdir(path) | Change::Remove(path) => is_inside(path),
        Change::Rename(from, to) => is_inside(from) || is_inside(to),
        _ => false,
    }
}

/// Folders and files after these changes of names.
fn namespace(names: &[&Timed]) -> (Vec<PathBuf>, BTreeMap<PathBuf, Inode>) {
    let mut dirs = Vec::new();
    let mut files = BTreeMap::new();
    for name in names {
        match &name.change {
            Change::Create(path, inode) => {
                files.insert(path.clone(), *inode);
            }
            Change::Mkdir(path) => dirs.push(path.clone()),
            Change::Rename(from, to) => {
                let inode = files.remove(from);
                let inode = inode.unwrap_or_else(|| panic!("{from:?} is renamed and no file"));
                files.insert(to.clone(), inode);
            }
            Change::Remove(path) => {
                files.remove(path);
                dirs.retain(|dir| dir != path);
            }
            _ => {}
        }
    }
    (dirs, files)
}

#[cfg(test)]
mod tests {
    use rand::SeedableRng;

    use super::*;

    fn at(entry_ns: u64, change: Change) -> Timed {
        Timed {
            entry_ns,
            exit_ns: entry_ns + 1,
            change,
        }
    }

    /// `/d/a` with one fsynced byte 1, one later byte 2; `/d/b` created last.
    fn trace() -> Trace {
        let mut trace = Trace::new(Path::new("/d"));
        let byte = |byte: u8| Data::Bytes(vec![byte; 5000]);
        trace.changes = vec![
            at(10, Change::Create("/d/a".into(), 0)),
            at(20, Change::Write(0, 0, byte(1))),
            at(30, Change::SyncFile(0)),
            at(40, Change::Write(0, 0, byte(2))),
            at(50, Change::Create("/d/b".into(), 1)),
            at(60, Change::SyncDir("/d".into())),
        ];
        trace
    }

    fn check(cut_ns: u64, survival: Survival, expect: &[(&str, &[u8], u64)]) {
        let mut random = StdRng::seed_from_u64(1);
        let image = cut(&trace(), Path::new("/d"), cut_ns, survival, &mut random);
        let seen: Vec<_> = image
            .files
            .iter()
            .map(|(path, content)| {
                let first: Vec<u8> = content.pages.values().map(|page| page[0]).collect();
                (path.to_str().unwrap(), first, content.len)
            })
            .collect();
        let expect: Vec<_> = expect
            .iter()
            .map(|(path, bytes, len)| (*path, bytes.to_vec(), *len))
            .collect();
        assert_eq!(seen, expect, "cut at {cut_ns}, {survival:?}");
    }

    #[test]
    fn what_an_fsync_covered_survives_and_nothing_else_must() {
        let (nothing, pages) = (Survival::Nothing, Survival::Pages);
        check(29, nothing, &[]);
        check(30, nothing, &[]);
        check(31, nothing, &[("/d/a", &[1, 1], 5000)]);
        check(55, nothing, &[("/d/a", &[1, 1], 5000)]);
        check(55, pages, &[("/d/a", &[2, 2], 5000)]);
        check(61, nothing, &[("/d/a", &[1, 1], 5000), ("/d/b", &[], 0)]);
    }

    #[test]
    fn pages_survive_independently_of_each_other() {
        let mut seen = HashSet::new();
        for seed in 0..64 {
            let mut random = StdRng::seed_from_u64(seed);
            let root = Path::new("/d");
            let image = cut(&trace(), root, 55, Survival::Some, &mut random);
            let pages = image.files[0].1.pages.values();
            seen.insert(pages.map(|page| page[0]).collect::<Vec<_>>());
        }
        assert_eq!(seen.len(), 4, "{seen:?}");
    }
}
