//! Pages of a bbolt file: what their bytes mean, and nothing about trees.
//!
//! Numbers are little endian. Page `p` begins at `p` times the page size.
//!
//! ```text
//! header    0  8  id                  8  2  kind: 1 branch, 2 leaf, 4 meta, 16 freelist
//!          10  2  number of elements 12  4  overflow: further pages that belong to this one
//! leaf     per element at 16 + 16 n:   0 4 flags (1: the value is a bucket)   4 4 key, from here   8 4 its length   12 4 the value's
//! branch   per element at 16 + 16 n:   0 4 key, from here                     4 4 its length       8 8 child
//! meta     at 16:  0 4 magic  4 4 version 2  8 4 page size  12 4 flags  16 8 root  24 8 sequence  32 8 freelist
//!                 40 8 pages in use  48 8 transaction  56 8 FNV-1a of the 56 bytes before
//! ```
//! Keys and values lie behind the elements, each value right behind its key.
//!
//! Source: bbolt 1.5, internal/common.

use bytes::{Buf, BufMut};

/// Bytes of a page in files that we write.
pub(super) const PAGE_BYTES: usize = 4096;
pub(super) const HEADER_BYTES: usize = 16;
pub(super) const ELEMENT_BYTES: usize = 16;
/// Header and content of a meta page.
pub(super) const META_BYTES: usize = HEADER_BYTES + META_SUMMED_BYTES + 8;
const META_SUMMED_BYTES: usize = 56;
/// Root page and sequence; in front of the page of an inline bucket, and all there is of others.
pub(super) const BUCKET_BYTES: usize = 16;

/// No key of a bbolt file is longer.
pub(super) const KEY_BYTES_MAX: usize = 32768;
/// No value of a bbolt file is longer.
pub(super) const VALUE_BYTES_MAX: usize = (1 << 31) - 2;

/// The flag of a leaf's element whose value is a bucket.
pub(super) const IS_BUCKET: u32 = 1;

const MAGIC: u32 = 0xED0C_DAED;
const VERSION: u32 = 2;
/// In the place of the freelist's page: it is not stored.
const NO_FREELIST: u64 = u64::MAX;

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Kind {
    Branch,
    Leaf,
}

impl Kind {
    pub(super) fn flags(self) -> u16 {
        match self {
            Kind::Branch => 1,
            Kind::Leaf => 2,
        }
    }
}

const META_FLAGS: u16 = 4;

/// The first bytes of a page.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Header {
    pub(super) id: u64,
    pub(super) flags: u16,
    pub(super) count: u16,
    pub(super) overflow: u32,
}

impl Header {
    pub(super) fn write(self, out: &mut impl BufMut) {
        out.put_u64_le(self.id);
        out.put_u16_le(self.flags);
        out.put_u16_le(self.count);
        out.put_u32_le(self.overflow);
    }

    pub(super) fn read(bytes: &[u8; HEADER_BYTES]) -> Header {
        let mut bytes = &bytes[..];
        Header {
            id: bytes.get_u64_le(),
            flags: bytes.get_u16_le(),
            count: bytes.get_u16_le(),
            overflow: bytes.get_u32_le(),
        }
    }

    /// What the page is, if it is part of a tree.
    pub(super) fn kind(self) -> Option<Kind> {
        [Kind::Branch, Kind::Leaf]
            .into_iter()
            .find(|kind| kind.flags() == self.flags)
    }
}

/// What the file's first two pages say; the one with the later transaction counts.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Meta {
    pub(super) page_bytes: u32,
    pub(super) root: u64,
    /// Pages in use, the metas included.
    pub(super) pages: u64,
    pub(super) transaction: u64,
}

impl Meta {
    /// The whole page, which is the one that bbolt uses for this transaction.
    pub(super) fn page(self) -> Vec<u8> {
        let mut page = Vec::with_capacity(self.page_bytes as usize);
        let header = Header {
            id: self.transaction % 2,
            flags: META_FLAGS,
            count: 0,
            overflow: 0,
        };
        header.write(&mut page);
        page.put_u32_le(MAGIC);
        page.put_u32_le(VERSION);
        page.put_u32_le(self.page_bytes);
        page.put_u32_le(0);
        page.put_u64_le(self.root);
        page.put_u64_le(0);
        page.put_u64_le(NO_FREELIST);
        page.put_u64_le(self.pages);
        page.put_u64_le(self.transaction);
        let sum = fnv1a(&page[HEADER_BYTES..]);
        page.put_u64_le(sum);
        page.resize(self.page_bytes as usize, 0);
        page
    }

    /// What a meta page says; else why it is none.
    pub(super) fn read(page: &[u8; META_BYTES]) -> Result<Meta, &'static str> {
        let summed = &page[HEADER_BYTES..HEADER_BYTES + META_SUMMED_BYTES];
        let sum = (&page[HEADER_BYTES + META_SUMMED_BYTES..]).get_u64_le();
        let mut at = summed;
        if at.get_u32_le() != MAGIC {
            return Err("it is no bbolt file: the magic number is not there");
        }
        if at.get_u32_le() != VERSION {
            return Err("its bbolt version is not 2");
        }
        if sum != fnv1a(summed) {
            return Err("the checksum of the meta page does not match");
        }
        let page_bytes = at.get_u32_le();
        at.advance(4);
        let root = at.get_u64_le();
        at.advance(8);
        let freelist = at.get_u64_le();
        let pages = at.get_u64_le();
        let transaction = at.get_u64_le();
        if !page_bytes.is_power_of_two() || !(1024..=65536).contains(&page_bytes) {
            return Err("the page size is no power of two from 1024 to 65536");
        }
        if root < 2 || root >= pages {
            return Err("the root page is not in the file");
        }
        if freelist != NO_FREELIST && freelist >= pages {
            return Err("the freelist's page is not in the file");
        }
        Ok(Meta {
            page_bytes,
            root,
            pages,
            transaction,
        })
    }
}

fn fnv1a(bytes: &[u8]) -> u64 {
    bytes.iter().fold(0xcbf2_9ce4_8422_2325, |sum, byte| {
        (sum ^ u64::from(*byte)).wrapping_mul(0x0100_0000_01b3)
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn meta_page_is_read_back_and_a_changed_one_is_not() {
        let meta = Meta {
            page_bytes: 4096,
            root: 5,
            pages: 9,
            transaction: 2,
        };
        let page = meta.page();
        assert_eq!(page.len(), 4096);
        let head: [u8; META_BYTES] = page[..META_BYTES].try_into().unwrap();
        assert_eq!(Meta::read(&head), Ok(meta));
        for at in HEADER_BYTES..META_BYTES {
            let mut changed = head;
            changed[at] ^= 0x10;
            assert!(Meta::read(&changed).is_err(), "byte {at}");
        }
    }

    #[test]
    fn sum_is_the_one_of_fnv() {
        // From the specification of FNV-1a.
        assert_eq!(fnv1a(b""), 0xcbf2_9ce4_8422_2325);
        assert_eq!(fnv1a(b"foobar"), 0x8594_4171_f739_67e8);
    }
}
