//! Writes a bbolt file front to back: items come bucket by bucket in order, pages go out as they fill.
//!
//! A branch is written behind the pages that it names, so that one unfinished page per level is all that is held. Only
//! the meta pages come before what they say, the root and the number of pages. So the same items go through a
//! [`FileWriter`] twice: once to count pages ([`FileWriter::counting`]), once to have them ([`FileWriter::writing`]).

use bytes::{BufMut, Bytes, BytesMut};

use super::page::{
    BUCKET_BYTES, ELEMENT_BYTES, HEADER_BYTES, Header, IS_BUCKET, KEY_BYTES_MAX, Kind, Meta,
    PAGE_BYTES, VALUE_BYTES_MAX,
};

/// A bucket whose only leaf is at most so large is kept in the root, as bbolt does.
const INLINE_BYTES_MAX: usize = PAGE_BYTES / 4;
/// A branch keeps at least so many children, if it has them.
const CHILDREN_MIN: usize = 2;
const TRANSACTION: u64 = 2;

/// What a first pass found out.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Counted {
    root: u64,
    pages: u64,
}

impl Counted {
    /// Bytes of the file, without a trailer.
    pub(crate) fn file_bytes(self) -> u64 {
        self.pages * PAGE_BYTES as u64
    }
}

/// An item that no bbolt file can hold.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error(
    "a key of {key_bytes} bytes with a value of {value_bytes} does not fit into an etcd backend file"
)]
pub(crate) struct TooLarge {
    key_bytes: usize,
    value_bytes: usize,
}

/// A file under construction.
pub(crate) struct FileWriter {
    out: Output,
    bucket: Tree,
    root: Tree,
}

/// Where pages go, and how many there were.
struct Output {
    next_page: u64,
    /// `None` when pages are counted only.
    bytes: Option<BytesMut>,
}

/// The unfinished pages of one tree.
#[derive(Default)]
struct Tree {
    leaf: Unfinished,
    /// The lowest level first.
    branches: Vec<Unfinished>,
}

/// Elements of a page that is not full yet, with room for their keys and values.
#[derive(Default)]
struct Unfinished {
    elements: Vec<Element>,
    data: Vec<u8>,
}

struct Element {
    /// Where the key begins in the data.
    at: usize,
    key_bytes: usize,
    /// A leaf's flags, or a branch's child.
    tag: u64,
}

impl FileWriter {
    /// A writer that only counts.
    pub(crate) fn counting() -> FileWriter {
        FileWriter::new(None)
    }

    /// A writer whose pages are taken with [`FileWriter::take`]. `counted` is from a pass of the same items.
    pub(crate) fn writing(counted: Counted) -> FileWriter {
        let mut bytes = BytesMut::new();
        for transaction in [TRANSACTION, TRANSACTION - 1] {
            let meta = Meta {
                page_bytes: PAGE_BYTES as u32,
                root: counted.root,
                pages: counted.pages,
                transaction,
            };
            bytes.put_slice(&meta.page());
        }
        FileWriter::new(Some(bytes))
    }

    fn new(bytes: Option<BytesMut>) -> FileWriter {
        FileWriter {
            out: Output {
                next_page: 2,
                bytes,
            },
            bucket: Tree::default(),
            root: Tree::default(),
        }
    }

    /// Adds an item to the bucket that [`FileWriter::end_bucket`] ends. Keys ascend.
    pub(crate) fn put(&mut self, key: &[u8], value: &[u8]) -> Result<(), TooLarge> {
        if key.len() > KEY_BYTES_MAX || value.len() > VALUE_BYTES_MAX {
            return Err(TooLarge {
                key_bytes: key.len(),
                value_bytes: value.len(),
            });
        }
        self.bucket.put(key, 0, value, &mut self.out);
        Ok(())
    }

    /// Ends a bucket. Names ascend.
    pub(crate) fn end_bucket(&mut self, name: &str) {
        let bucket = std::mem::take(&mut self.bucket);
        let value = if bucket.branches.is_empty() && bucket.leaf.bytes() <= INLINE_BYTES_MAX {
            let mut value = Vec::with_capacity(BUCKET_BYTES + bucket.leaf.bytes());
            value.put_bytes(0, BUCKET_BYTES);
            bucket.leaf.write(0, Kind::Leaf, &mut value);
            value
        } else {
            let mut value = Vec::with_capacity(BUCKET_BYTES);
            value.put_u64_le(bucket.finish(&mut self.out));
            value.put_u64_le(0);
            value
        };
        self.root
            .put(name.as_bytes(), IS_BUCKET, &value, &mut self.out);
    }

    /// Ends the file.
    pub(crate) fn finish(&mut self) -> Counted {
        let root = std::mem::take(&mut self.root).finish(&mut self.out);
        Counted {
            root,
            pages: self.out.next_page,
        }
    }

    /// Bytes that can be taken.
    pub(crate) fn ready(&self) -> usize {
        self.out.bytes.as_ref().map_or(0, BytesMut::len)
    }

    /// The next `len` bytes of the file, which are [ready](FileWriter::ready).
    pub(crate) fn take(&mut self, len: usize) -> Bytes {
        let bytes = self.out.bytes.as_mut().expect("this writer does not count");
        bytes.split_to(len).freeze()
    }
}

impl Tree {
    fn put(&mut self, key: &[u8], flags: u32, value: &[u8], out: &mut Output) {
        if !self.leaf.has_room(key.len() + value.len()) {
            let (first, page) = out.page(std::mem::take(&mut self.leaf), Kind::Leaf);
            self.add_child(0, &first, page, out);
        }
        self.leaf.push(key, u64::from(flags), value);
    }

    fn add_child(&mut self, level: usize, first_key: &[u8], child: u64, out: &mut Output) {
        if level == self.branches.len() {
            self.branches.push(Unfinished::default());
        }
        let branch = &mut self.branches[level];
        if branch.has_room(first_key.len()) || branch.elements.len() <= CHILDREN_MIN {
            branch.push(first_key, child, &[]);
            return;
        }
        // The new page begins with the full one's last child, so that it does not stay with a single one.
        let mut next = Unfinished::default();
        let last = branch.pop();
        next.push(&last.0, last.1, &[]);
        next.push(first_key, child, &[]);
        let full = std::mem::replace(branch, next);
        let (first, page) = out.page(full, Kind::Branch);
        self.add_child(level + 1, &first, page, out);
    }

    /// Writes what is left; returns the root.
    fn finish(mut self, out: &mut Output) -> u64 {
        let (mut first, mut page) = out.page(std::mem::take(&mut self.leaf), Kind::Leaf);
        let mut level = 0;
        while level < self.branches.len() {
            self.add_child(level, &first, page, out);
            let branch = std::mem::take(&mut self.branches[level]);
            (first, page) = out.page(branch, Kind::Branch);
            level += 1;
        }
        page
    }
}

impl Output {
    /// Gives a page its number and writes it; returns its first key and the number.
    fn page(&mut self, page: Unfinished, kind: Kind) -> (Vec<u8>, u64) {
        let id = self.next_page;
        let spans = page.bytes().div_ceil(PAGE_BYTES);
        self.next_page += spans as u64;
        if let Some(bytes) = &mut self.bytes {
            let end = bytes.len() + spans * PAGE_BYTES;
            page.write(id, kind, bytes);
            bytes.resize(end, 0);
        }
        (page.first_key().to_vec(), id)
    }
}

impl Unfinished {
    fn bytes(&self) -> usize {
        HEADER_BYTES + ELEMENT_BYTES * self.elements.len() + self.data.len()
    }

    /// Whether an element with so many bytes of key and value fits. One always fits into an empty page.
    fn has_room(&self, bytes: usize) -> bool {
        self.elements.is_empty() || self.bytes() + ELEMENT_BYTES + bytes <= PAGE_BYTES
    }

    fn push(&mut self, key: &[u8], tag: u64, value: &[u8]) {
        self.elements.push(Element {
            at: self.data.len(),
            key_bytes: key.len(),
            tag,
        });
        self.data.extend_from_slice(key);
        self.data.extend_from_slice(value);
    }

    /// Takes the last element of a branch out.
    fn pop(&mut self) -> (Vec<u8>, u64) {
        let last = self.elements.pop().expect("a full page has elements");
        (self.data.split_off(last.at), last.tag)
    }

    fn first_key(&self) -> &[u8] {
        match self.elements.first() {
            Some(first) => &self.data[..first.key_bytes],
            None => &[],
        }
    }

    fn write(&self, id: u64, kind: Kind, out: &mut impl BufMut) {
        let count = self.elements.len();
        let header = Header {
            id,
            flags: kind.flags(),
            count: u16::try_from(count).expect("elements have 16 bytes and pages 4096"),
            overflow: (self.bytes().div_ceil(PAGE_BYTES) - 1) as u32,
        };
        // bbolt's inline pages have no overflow; they are small.
        header.write(out);
        for (n, element) in self.elements.iter().enumerate() {
            let from_element = (count - n) * ELEMENT_BYTES + element.at;
            let end = self.elements.get(n + 1).map_or(self.data.len(), |e| e.at);
            let value_bytes = end - element.at - element.key_bytes;
            if kind == Kind::Leaf {
                out.put_u32_le(element.tag as u32);
                out.put_u32_le(from_element as u32);
                out.put_u32_le(element.key_bytes as u32);
                out.put_u32_le(value_bytes as u32);
            } else {
                out.put_u32_le(from_element as u32);
                out.put_u32_le(element.key_bytes as u32);
                out.put_u64_le(element.tag);
            }
        }
        out.put_slice(&self.data);
    }
}
