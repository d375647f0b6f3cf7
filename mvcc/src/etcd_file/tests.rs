//! What is written is read, and what is changed is refused or read as something whole.

use std::collections::BTreeMap;
use std::ops::ControlFlow;

use bytes::Bytes;
use proptest::prelude::*;

use super::page::PAGE_BYTES;
use super::{BUCKETS, Counted, EtcdFile, FileWriter};
use crate::Error;

type Items = BTreeMap<Vec<u8>, Vec<u8>>;

/// A file with these buckets, in the order of their names.
fn write(buckets: &BTreeMap<String, Items>) -> Vec<u8> {
    let pass = |mut writer: FileWriter| -> (FileWriter, Counted) {
        for (name, items) in buckets {
            for (key, value) in items {
                writer.put(key, value).unwrap();
            }
            writer.end_bucket(name);
        }
        let counted = writer.finish();
        (writer, counted)
    };
    let (_, counted) = pass(FileWriter::counting());
    let (mut writer, written) = pass(FileWriter::writing(counted));
    assert_eq!(counted, written);
    let ready = writer.ready();
    assert_eq!(ready as u64, counted.file_bytes());
    writer.take(ready).to_vec()
}

fn read(file: &EtcdFile) -> crate::Result<BTreeMap<String, Items>> {
    file.check()?;
    let mut buckets = BTreeMap::new();
    for name in file.buckets() {
        let name = String::from_utf8_lossy(name).into_owned();
        let mut items = Items::new();
        file.scan(&name, &mut |key, value| {
            items.insert(key.to_vec(), value.to_vec());
            ControlFlow::Continue(())
        })?;
        buckets.insert(name, items);
    }
    Ok(buckets)
}

fn open(bytes: Vec<u8>) -> crate::Result<EtcdFile> {
    EtcdFile::from_bytes(bytes.into(), "a test's file")
}

fn etcds_buckets(key_items: Items) -> BTreeMap<String, Items> {
    let mut buckets: BTreeMap<String, Items> = BUCKETS
        .iter()
        .map(|(name, _)| ((*name).to_owned(), Items::new()))
        .collect();
    buckets.insert("key".to_owned(), key_items);
    buckets
}

fn numbered(count: u64, value_bytes: usize) -> Items {
    (0..count)
        .map(|n| {
            (
                n.to_be_bytes().to_vec(),
                vec![n as u8; value_bytes + n as usize % 7],
            )
        })
        .collect()
}

fn check(buckets: &BTreeMap<String, Items>) {
    let bytes = write(buckets);
    assert_eq!(bytes.len() % PAGE_BYTES, 0);
    assert_eq!(&read(&open(bytes).unwrap()).unwrap(), buckets);
}

#[test]
fn empty_buckets_and_no_buckets_are_read_back() {
    check(&etcds_buckets(Items::new()));
    check(&BTreeMap::new());
}

#[test]
fn trees_of_several_levels_are_read_back() {
    check(&etcds_buckets(numbered(1, 10)));
    check(&etcds_buckets(numbered(60_000, 100)));
    // One item per leaf: as many branches as there can be.
    check(&etcds_buckets(numbered(40_000, 3000)));
}

#[test]
fn values_and_keys_above_a_page_are_read_back() {
    let mut items = numbered(10, 3 << 20);
    items.insert(vec![0xff; 32768], vec![1; 5000]);
    for n in 0..9u8 {
        items.insert(vec![n; 20_000], vec![n; 4096]);
    }
    check(&etcds_buckets(items));
}

#[test]
fn key_that_no_file_can_hold_is_refused() {
    let mut writer = FileWriter::counting();
    assert!(writer.put(&[1; 32769], b"").is_err());
}

#[test]
fn second_meta_page_stands_in_for_a_damaged_first() {
    let buckets = etcds_buckets(numbered(500, 100));
    let mut bytes = write(&buckets);
    bytes[16] ^= 1;
    assert_eq!(read(&open(bytes.clone()).unwrap()).unwrap(), buckets);
    bytes[PAGE_BYTES + 16] ^= 1;
    assert!(matches!(
        open(bytes),
        Err(Error::EtcdFile { offset: 0, .. })
    ));
}

#[test]
fn file_that_ends_early_is_refused() {
    let bytes = write(&etcds_buckets(numbered(500, 100)));
    for len in [0, 10, 79, 4096, bytes.len() - 1] {
        assert!(
            matches!(open(bytes[..len].to_vec()), Err(Error::EtcdFile { .. })),
            "{len} of {} bytes",
            bytes.len()
        );
    }
}

#[test]
fn sum_at_the_end_is_compared() {
    use sha2::{Digest, Sha256};
    let mut bytes = write(&etcds_buckets(numbered(500, 100)));
    let plain = open(bytes.clone()).unwrap();
    assert!(!plain.has_trailer());
    assert!(plain.check_trailer().is_err());
    let sum = Sha256::digest(&bytes);
    bytes.extend_from_slice(&sum);
    open(bytes.clone()).unwrap().check_trailer().unwrap();
    bytes[9000] ^= 1;
    let Err(Error::EtcdFile { what, .. }) = open(bytes).unwrap().check_trailer() else {
        panic!("a changed byte went unnoticed")
    };
    assert!(what.contains("does not match"), "{what}");
}

/// A root that names itself, a leaf twice, a page outside: each by one changed number.
#[test]
fn cycles_and_pages_outside_are_named() {
    let bytes = write(&etcds_buckets(numbered(2000, 100)));
    let file = open(bytes.clone()).unwrap();
    let pages = file.used_bytes() / PAGE_BYTES as u64;
    // The branch over all leaves is the page before the root.
    let branch = (pages - 2) as usize * PAGE_BYTES;
    assert_eq!(bytes[branch + 8], 1, "no branch where one was expected");
    let child = branch + 16 + 8;
    for (to, expected) in [
        (pages - 2, "used twice"),
        (pages, "is not in the file"),
        (1, "is not in the file"),
        (3, "out of order"),
    ] {
        let mut changed = bytes.clone();
        changed[child..child + 8].copy_from_slice(&to.to_le_bytes());
        let error = read(&open(changed).unwrap()).unwrap_err().to_string();
        assert!(error.contains(expected), "{to}: {error}");
        assert!(error.contains("at byte "), "{error}");
    }
}

#[test]
fn page_may_not_belong_to_two_buckets() {
    // A page each.
    let mut buckets = etcds_buckets(numbered(10, 200));
    buckets.insert("lease".to_owned(), numbered(10, 200));
    let bytes = write(&buckets);
    let root = bytes.len() - PAGE_BYTES;
    // The roots of both are numbers in the root's values; the second is made the first.
    let pages: Vec<usize> = (2..4u64)
        .map(|page| {
            let value = [page.to_le_bytes(), [0; 8]].concat();
            let at = bytes[root..].windows(16).position(|w| w == value);
            root + at.expect("the root names the page")
        })
        .collect();
    let mut changed = bytes.clone();
    changed.copy_within(pages[0]..pages[0] + 8, pages[1]);
    let file = open(changed).unwrap();
    let error = file.check().unwrap_err().to_string();
    assert!(error.contains("used twice"), "{error}");
}

fn item() -> impl Strategy<Value = (Vec<u8>, Vec<u8>)> {
    let value_bytes = prop_oneof![6 => 0..200usize, 2 => 200..3000usize, 1 => 3000..9000usize];
    let key = prop::collection::vec(any::<u8>(), 1..40);
    (key, value_bytes, any::<u8>()).prop_map(|(key, bytes, fill)| (key, vec![fill; bytes]))
}

fn buckets() -> impl Strategy<Value = BTreeMap<String, Items>> {
    let items = prop::collection::btree_map(
        prop::collection::vec(any::<u8>(), 1..40),
        item().prop_map(|(_, value)| value),
        0..80,
    );
    prop::collection::btree_map("[a-z_]{1,12}", items, 0..6)
}

proptest! {
    #[test]
    fn what_is_written_is_read(buckets in buckets()) {
        let bytes = write(&buckets);
        prop_assert_eq!(read(&open(bytes).unwrap()).unwrap(), buckets);
    }

    #[test]
    fn changed_file_is_read_whole_or_refused(
        buckets in buckets(),
        edits in prop::collection::vec((any::<prop::sample::Index>(), any::<u8>()), 1..4),
    ) {
        let mut bytes = write(&buckets);
        for (at, value) in edits {
            let at = at.index(bytes.len());
            bytes[at] = value;
        }
        if let Ok(file) = open(bytes) {
            let _ = read(&file);
            let _ = file.status();
        }
    }

    #[test]
    fn any_bytes_are_refused_or_read(bytes in prop::collection::vec(any::<u8>(), 0..20_000)) {
        if let Ok(file) = EtcdFile::from_bytes(Bytes::from(bytes), "any") {
            let _ = file.check();
        }
    }
}
