//! Reads a bbolt file that may come from anywhere.
//!
//! Nothing of it is believed: page numbers lie in the file, no page is used twice, every leaf of a tree is at the same
//! depth, keys ascend and lie where the branches say, elements lie in their page. What does not hold is an error with the
//! file and the offset. One page is in memory per level of a tree, whatever the file says.
//!
//! Source: bbolt 1.5, internal/common and its check of consistency; etcdutl 3.7, snapshot status.

use std::collections::HashSet;
use std::fs::File;
use std::ops::ControlFlow;
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};

use bytes::{Buf, Bytes};
use sha2::{Digest, Sha256};

use super::TRAILER_BYTES;
use super::page::{
    BUCKET_BYTES, ELEMENT_BYTES, HEADER_BYTES, Header, IS_BUCKET, Kind, META_BYTES, Meta,
};
use crate::record;
use crate::revision::{Change, Revision};
use crate::{Error, Result};

/// A page is at least so large, also where a file begins whose first meta page is damaged.
const PAGE_BYTES_LEAST: u64 = 1024;
const PAGE_BYTES_MOST: u64 = 65536;
/// No tree is deeper: its branches would have one child each.
const DEPTH_MAX: usize = 32;
/// No page with its overflow is larger: etcd's requests are not, by far.
const SPAN_BYTES_MAX: u64 = 1 << 30;

/// An open backend file of etcd, a snapshot or a copy from a data folder.
pub struct EtcdFile {
    source: Source,
    path: PathBuf,
    meta: Meta,
    /// Name, and where its tree is, by name.
    buckets: Vec<(Bytes, Tree)>,
    has_trailer: bool,
}

/// What `etcdutl snapshot status` says about a file.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct EtcdFileStatus {
    /// CRC-32C of all buckets: names, keys and values.
    pub hash: u32,
    /// The newest revision; 0 if there is none.
    pub revision: i64,
    /// Keys that exist at that revision.
    pub total_key: u64,
    /// Bytes of the pages in use.
    pub total_size: u64,
    /// The storage version, empty before etcd 3.6.
    pub version: String,
}

enum Source {
    File(File),
    Memory(Bytes),
}

#[derive(Clone, Debug)]
enum Tree {
    Page(u64),
    /// A leaf's image, and where in the file it is.
    Inline(Bytes, u64),
}

/// Pages that a walk has come through: none may come again.
struct Seen(Vec<u64>);

/// A whole page in memory, with its offset in the file.
struct Page {
    bytes: Bytes,
    offset: u64,
    kind: Kind,
    count: usize,
}

/// A leaf's element.
struct Item {
    flags: u32,
    key: Bytes,
    value: Bytes,
    /// Where in the file the key is.
    offset: u64,
}

/// The walk of one tree.
struct Walk<'a> {
    file: &'a EtcdFile,
    seen: &'a mut Seen,
    each: &'a mut dyn FnMut(Item) -> Result<ControlFlow<()>>,
    last: Option<Bytes>,
    leaf_depth: Option<usize>,
}

impl EtcdFile {
    /// Opens the file at `path`, and reads where its buckets are.
    ///
    /// Errors: [`Error::EtcdFile`] if it is none, [`Error::Io`].
    pub fn open(path: &Path) -> Result<EtcdFile> {
        let file = File::open(path).map_err(|error| io_error(path, &error))?;
        EtcdFile::read(Source::File(file), path)
    }

    /// The same for a file in memory, which errors call `name`.
    pub fn from_bytes(bytes: Bytes, name: &str) -> Result<EtcdFile> {
        EtcdFile::read(Source::Memory(bytes), Path::new(name))
    }

    fn read(source: Source, path: &Path) -> Result<EtcdFile> {
        let bytes = source.len().map_err(|error| io_error(path, &error))?;
        let has_trailer = bytes % 512 == TRAILER_BYTES as u64;
        let meta = read_meta(&source, path)?;
        let used = meta.pages.saturating_mul(u64::from(meta.page_bytes));
        if used > bytes {
            let what = format!("the file shall have {used} bytes and ends at {bytes}");
            return Err(refused(path, bytes, what));
        }
        let mut file = EtcdFile {
            source,
            path: path.to_owned(),
            meta,
            buckets: Vec::new(),
            has_trailer,
        };
        let mut buckets = Vec::new();
        let mut seen = Seen::new(&meta);
        file.walk(&Tree::Page(meta.root), &mut seen, &mut |item| {
            buckets.push((item.key.clone(), file.bucket(&item)?));
            Ok(ControlFlow::Continue(()))
        })?;
        file.buckets = buckets;
        Ok(file)
    }

    /// The names of its buckets, ascending.
    pub fn buckets(&self) -> impl Iterator<Item = &[u8]> {
        self.buckets.iter().map(|(name, _)| &name[..])
    }

    /// Whether it ends with a snapshot's sum.
    pub fn has_trailer(&self) -> bool {
        self.has_trailer
    }

    /// Bytes of the pages in use.
    pub fn used_bytes(&self) -> u64 {
        self.meta.pages * u64::from(self.meta.page_bytes)
    }

    /// Calls `each` with the keys and values of a bucket, in order, until it breaks. One that is absent has none.
    pub fn scan(
        &self,
        bucket: &str,
        each: &mut dyn FnMut(&Bytes, &Bytes) -> ControlFlow<()>,
    ) -> Result<()> {
        self.scan_seen(bucket.as_bytes(), &mut Seen::new(&self.meta), each)
    }

    /// Reads everything, and checks that no page is used twice in the whole file.
    pub fn check(&self) -> Result<()> {
        let mut seen = Seen::new(&self.meta);
        let root = Tree::Page(self.meta.root);
        self.walk(&root, &mut seen, &mut |_| Ok(ControlFlow::Continue(())))?;
        for (name, _) in &self.buckets {
            self.scan_seen(name, &mut seen, &mut |_, _| ControlFlow::Continue(()))?;
        }
        Ok(())
    }

    /// Compares the sum at the end with what is before it.
    ///
    /// Errors: [`Error::EtcdFile`] if there is none, or it is another's.
    pub fn check_trailer(&self) -> Result<()> {
        let bytes = self.source.len().map_err(|error| self.io_error(&error))?;
        if !self.has_trailer {
            let what = "there is no sha256 at its end: it is a copy, not a snapshot".to_owned();
            return Err(self.refused(bytes, what));
        }
        let end = bytes - TRAILER_BYTES as u64;
        let mut sum = Sha256::new();
        let mut at = 0;
        while at < end {
            let len = (end - at).min(1 << 20);
            sum.update(self.bytes(at, len)?);
            at += len;
        }
        if sum.finalize()[..] != self.bytes(end, TRAILER_BYTES as u64)?[..] {
            return Err(self.refused(end, "the sha256 at its end does not match".to_owned()));
        }
        Ok(())
    }

    /// What `etcdutl snapshot status` says; reads everything and checks it. Memory grows with the number of keys.
    pub fn status(&self) -> Result<EtcdFileStatus> {
        let mut status = EtcdFileStatus {
            hash: 0,
            revision: 0,
            total_key: 0,
            total_size: self.used_bytes(),
            version: String::new(),
        };
        let mut seen = Seen::new(&self.meta);
        let root = Tree::Page(self.meta.root);
        self.walk(&root, &mut seen, &mut |_| Ok(ControlFlow::Continue(())))?;
        let mut live: HashSet<Box<[u8]>> = HashSet::new();
        for (name, _) in &self.buckets {
            status.hash = crc32c::crc32c_append(status.hash, name);
            let mut wrong = None;
            self.scan_seen(name, &mut seen, &mut |key, value| {
                status.hash = crc32c::crc32c_append(status.hash, key);
                status.hash = crc32c::crc32c_append(status.hash, value);
                match &name[..] {
                    b"key" => match Revision::decode(key) {
                        Some((revision, change)) => {
                            status.revision = revision.main;
                            let user_key = record::value_key(value).unwrap_or_default();
                            match change {
                                Change::Put => live.insert(user_key.into()),
                                Change::Tombstone => live.remove(user_key),
                            };
                        }
                        None => {
                            wrong = Some(key.clone());
                            return ControlFlow::Break(());
                        }
                    },
                    b"meta" if key == &b"storageVersion"[..] => {
                        status.version = String::from_utf8_lossy(value).into_owned();
                    }
                    _ => {}
                }
                ControlFlow::Continue(())
            })?;
            if let Some(key) = wrong {
                let what = format!("bucket key: {} is no revision", key.escape_ascii());
                return Err(self.refused(0, what));
            }
        }
        status.total_key = live.len() as u64;
        Ok(status)
    }

    fn scan_seen(
        &self,
        bucket: &[u8],
        seen: &mut Seen,
        each: &mut dyn FnMut(&Bytes, &Bytes) -> ControlFlow<()>,
    ) -> Result<()> {
        let Some((_, tree)) = self.buckets.iter().find(|(name, _)| name == bucket) else {
            return Ok(());
        };
        self.walk(tree, seen, &mut |item| {
            if item.flags != 0 {
                let what = format!("bucket {} holds a bucket", bucket.escape_ascii());
                return Err(self.refused(item.offset, what));
            }
            Ok(each(&item.key, &item.value))
        })
    }

    fn walk(
        &self,
        tree: &Tree,
        seen: &mut Seen,
        each: &mut dyn FnMut(Item) -> Result<ControlFlow<()>>,
    ) -> Result<()> {
        let mut walk = Walk {
            file: self,
            seen,
            each,
            last: None,
            leaf_depth: None,
        };
        let flow = match tree {
            Tree::Page(root) => walk.subtree(*root, 0, None, None),
            Tree::Inline(image, offset) => {
                let page = self.inline_page(image, *offset)?;
                walk.leaf(&page, 0, None, None)
            }
        };
        flow.map(|_| ())
    }

    /// The bucket that an element of the root names.
    fn bucket(&self, item: &Item) -> Result<Tree> {
        let offset = item.offset + item.key.len() as u64;
        let name = item.key.escape_ascii();
        if item.flags != IS_BUCKET {
            return Err(self.refused(offset, format!("{name} in the root is no bucket")));
        }
        if item.value.len() < BUCKET_BYTES {
            let what = format!("bucket {name} has {} bytes", item.value.len());
            return Err(self.refused(offset, what));
        }
        let root = (&item.value[..]).get_u64_le();
        Ok(match root {
            0 => Tree::Inline(
                item.value.slice(BUCKET_BYTES..),
                offset + BUCKET_BYTES as u64,
            ),
            root => Tree::Page(root),
        })
    }

    fn inline_page(&self, image: &Bytes, offset: u64) -> Result<Page> {
        let Some(head) = image.first_chunk() else {
            return Err(self.refused(offset, "an inline bucket has no page".to_owned()));
        };
        let header = Header::read(head);
        if header.kind() != Some(Kind::Leaf) {
            return Err(self.refused(offset, "an inline bucket is no leaf".to_owned()));
        }
        Ok(Page {
            bytes: image.clone(),
            offset,
            kind: Kind::Leaf,
            count: header.count.into(),
        })
    }

    fn page(&self, id: u64) -> Result<Page> {
        let page_bytes = u64::from(self.meta.page_bytes);
        // The caller has checked that the page is in the file.
        let offset = id * page_bytes;
        let head = self.bytes(offset, HEADER_BYTES as u64)?;
        let header = Header::read(head.first_chunk().expect("as long as asked for"));
        if header.id != id {
            let what = format!("page {id} says that it is page {}", header.id);
            return Err(self.refused(offset, what));
        }
        let Some(kind) = header.kind() else {
            let what = format!("page {id} is neither branch nor leaf: {:#x}", header.flags);
            return Err(self.refused(offset, what));
        };
        let spans = u64::from(header.overflow) + 1;
        if spans > self.meta.pages - id || spans * page_bytes > SPAN_BYTES_MAX {
            let what = format!("page {id} spans {spans} pages");
            return Err(self.refused(offset, what));
        }
        Ok(Page {
            bytes: self.bytes(offset, spans * page_bytes)?,
            offset,
            kind,
            count: header.count.into(),
        })
    }

    fn bytes(&self, offset: u64, len: u64) -> Result<Bytes> {
        self.source
            .bytes(offset, len)
            .map_err(|error| self.io_error(&error))
    }

    /// This file is not what it should be, at `offset`.
    pub(crate) fn refused(&self, offset: u64, what: String) -> Error {
        refused(&self.path, offset, what)
    }

    fn io_error(&self, error: &std::io::Error) -> Error {
        io_error(&self.path, error)
    }
}

impl Walk<'_> {
    /// Walks what hangs from page `id`; its keys are at least `from` and less than `to`.
    fn subtree(
        &mut self,
        id: u64,
        depth: usize,
        from: Option<&Bytes>,
        to: Option<&Bytes>,
    ) -> Result<ControlFlow<()>> {
        let file = self.file;
        let parent = |what: String| file.refused(id * u64::from(file.meta.page_bytes), what);
        if id < 2 || id >= file.meta.pages {
            let what = format!("page {id} is not in the file");
            return Err(file.refused(file.used_bytes(), what));
        }
        if depth == DEPTH_MAX {
            return Err(parent(format!("page {id} is at depth {depth}")));
        }
        let page = file.page(id)?;
        let spans = page.bytes.len() as u64 / u64::from(file.meta.page_bytes);
        if !(id..id + spans).all(|id| self.seen.insert(id)) {
            return Err(parent(format!("page {id} is used twice")));
        }
        match page.kind {
            Kind::Leaf => self.leaf(&page, depth, from, to),
            Kind::Branch => self.branch(&page, depth, from, to),
        }
    }

    fn branch(
        &mut self,
        page: &Page,
        depth: usize,
        from: Option<&Bytes>,
        to: Option<&Bytes>,
    ) -> Result<ControlFlow<()>> {
        let file = self.file;
        if page.count == 0 {
            return Err(file.refused(page.offset, "a branch has no children".to_owned()));
        }
        for n in 0..page.count {
            let (first, child) = page.child(file, n)?;
            let next = match n + 1 {
                next if next < page.count => Some(page.child(file, next)?.0),
                _ => None,
            };
            let offset = page.element_offset(n);
            // A branch may keep the key of a first child that was deleted, so its own lower bound is not below it.
            if n > 0 && from.is_some_and(|from| first < *from) {
                return Err(file.refused(offset, "a branch's key is too small".to_owned()));
            }
            if to.is_some_and(|to| first >= *to) || next.as_ref().is_some_and(|n| *n <= first) {
                return Err(file.refused(offset, "a branch's keys do not ascend".to_owned()));
            }
            let to = next.as_ref().or(to);
            if self.subtree(child, depth + 1, Some(&first), to)?.is_break() {
                return Ok(ControlFlow::Break(()));
            }
        }
        Ok(ControlFlow::Continue(()))
    }

    fn leaf(
        &mut self,
        page: &Page,
        depth: usize,
        from: Option<&Bytes>,
        to: Option<&Bytes>,
    ) -> Result<ControlFlow<()>> {
        let file = self.file;
        if *self.leaf_depth.get_or_insert(depth) != depth {
            let what = "a leaf is not as deep as the others".to_owned();
            return Err(file.refused(page.offset, what));
        }
        for n in 0..page.count {
            let item = page.item(file, n)?;
            let key = &item.key;
            if self.last.as_ref().is_some_and(|last| key <= last)
                || from.is_some_and(|from| key < from)
                || to.is_some_and(|to| key >= to)
            {
                let what = format!("key {} is out of order", key.escape_ascii());
                return Err(file.refused(item.offset, what));
            }
            self.last = Some(key.clone());
            if (self.each)(item)?.is_break() {
                return Ok(ControlFlow::Break(()));
            }
        }
        Ok(ControlFlow::Continue(()))
    }
}

impl Page {
    /// Element `n` of a branch: its key and the child.
    fn child(&self, file: &EtcdFile, n: usize) -> Result<(Bytes, u64)> {
        let mut element = self.element(file, n)?;
        let (at, key_bytes) = (element.get_u32_le(), element.get_u32_le());
        let child = element.get_u64_le();
        let (key, _) = self.content(file, n, at, key_bytes)?;
        Ok((key, child))
    }

    /// Element `n` of a leaf.
    fn item(&self, file: &EtcdFile, n: usize) -> Result<Item> {
        let mut element = self.element(file, n)?;
        let flags = element.get_u32_le();
        let at = element.get_u32_le();
        let (key_bytes, value_bytes) = (element.get_u32_le(), element.get_u32_le());
        if flags & !IS_BUCKET != 0 {
            let what = format!("an element has the unknown flags {flags:#x}");
            return Err(file.refused(self.element_offset(n), what));
        }
        let (key, key_at) = self.content(file, n, at, key_bytes)?;
        let after_key = at
            .checked_add(key_bytes)
            .ok_or_else(|| self.outside(file, n))?;
        let (value, _) = self.content(file, n, after_key, value_bytes)?;
        Ok(Item {
            flags,
            key,
            value,
            offset: self.offset + key_at as u64,
        })
    }

    fn element(&self, file: &EtcdFile, n: usize) -> Result<&[u8]> {
        let at = HEADER_BYTES + n * ELEMENT_BYTES;
        self.bytes
            .get(at..at + ELEMENT_BYTES)
            .ok_or_else(|| self.outside(file, n))
    }

    /// `len` bytes at `at` from element `n`, and where in the page that is.
    fn content(&self, file: &EtcdFile, n: usize, at: u32, len: u32) -> Result<(Bytes, usize)> {
        let element = (HEADER_BYTES + n * ELEMENT_BYTES) as u64;
        let begin = element + u64::from(at);
        let end = begin + u64::from(len);
        let elements_end = (HEADER_BYTES + self.count * ELEMENT_BYTES) as u64;
        if begin < elements_end || end > self.bytes.len() as u64 {
            return Err(self.outside(file, n));
        }
        let (begin, end) = (begin as usize, end as usize);
        Ok((self.bytes.slice(begin..end), begin))
    }

    fn outside(&self, file: &EtcdFile, n: usize) -> Error {
        let what = format!("element {n} does not lie in its page");
        file.refused(self.element_offset(n), what)
    }

    fn element_offset(&self, n: usize) -> u64 {
        self.offset + (HEADER_BYTES + n * ELEMENT_BYTES) as u64
    }
}

impl Seen {
    fn new(meta: &Meta) -> Seen {
        // No more than the file has bytes: the number of pages was compared with its length.
        Seen(vec![0; meta.pages.div_ceil(64) as usize])
    }

    /// Whether it is the first time.
    fn insert(&mut self, page: u64) -> bool {
        let (word, bit) = ((page / 64) as usize, 1 << (page % 64));
        let is_first = self.0[word] & bit == 0;
        self.0[word] |= bit;
        is_first
    }
}

impl Source {
    fn len(&self) -> std::io::Result<u64> {
        match self {
            Source::File(file) => Ok(file.metadata()?.len()),
            Source::Memory(bytes) => Ok(bytes.len() as u64),
        }
    }

    fn bytes(&self, offset: u64, len: u64) -> std::io::Result<Bytes> {
        match self {
            Source::File(file) => {
                let mut bytes = vec![0; len as usize];
                file.read_exact_at(&mut bytes, offset)?;
                Ok(bytes.into())
            }
            Source::Memory(bytes) => {
                let range = offset as usize..offset.saturating_add(len) as usize;
                if range.end > bytes.len() {
                    return Err(std::io::ErrorKind::UnexpectedEof.into());
                }
                Ok(bytes.slice(range))
            }
        }
    }
}

/// The meta page with the later transaction. If the first is damaged, the second is looked for at every page size.
fn read_meta(source: &Source, path: &Path) -> Result<Meta> {
    let read = |offset: u64| -> Result<Meta, &'static str> {
        let page = source
            .bytes(offset, META_BYTES as u64)
            .map_err(|_| "it is too short for a meta page")?;
        Meta::read(page.first_chunk().expect("as long as asked for"))
    };
    let first = read(0);
    let second = match first {
        Ok(meta) => read(meta.page_bytes.into()).ok(),
        Err(_) => {
            let mut sizes = (PAGE_BYTES_LEAST.ilog2()..=PAGE_BYTES_MOST.ilog2()).map(|n| 1 << n);
            sizes.find_map(|offset| {
                let meta = read(offset).ok()?;
                (u64::from(meta.page_bytes) == offset).then_some(meta)
            })
        }
    };
    match (first, second) {
        (Ok(first), Some(second)) if second.transaction > first.transaction => Ok(second),
        (Ok(first), _) => Ok(first),
        (Err(_), Some(second)) => Ok(second),
        (Err(what), None) => Err(refused(path, 0, what.to_owned())),
    }
}

fn refused(path: &Path, offset: u64, what: String) -> Error {
    Error::EtcdFile {
        file: path.to_owned(),
        offset,
        what,
    }
}

fn io_error(path: &Path, error: &std::io::Error) -> Error {
    Error::Io {
        file: path.to_owned(),
        reason: error.to_string(),
        no_space: false,
    }
}
