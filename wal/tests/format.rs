//! Files written by each format version, which later versions must read.

#![allow(clippy::unwrap_used, reason = "a test fails where it unwraps")]

mod support;

use std::path::Path;
use std::sync::Arc;

use bytes::Bytes;
use kv_wal::fs::{FaultFs, Fs};
use kv_wal::{Record, Sync, Wal};
use support::{DIR, Model, SEGMENT_BYTES, config, entry, open, segments, settle, used};

/// A closed log of format version 1 without the zeros at its end.
const LOG_V1: &[u8] = include_bytes!("fixtures/log-v1.wal");

fn disk() -> FaultFs {
    let fs = FaultFs::new();
    fs.create_dir(Path::new(DIR)).unwrap();
    fs
}

/// One of each record, in three batches.
fn batches() -> Vec<Vec<Record>> {
    vec![
        vec![
            Record::Vote(Bytes::from("vote")),
            entry(0, 1, 24),
            entry(1, 1, 7),
            entry(2, 1, 0),
        ],
        vec![
            Record::Truncate { after: 1 },
            entry(2, 2, 40),
            Record::Committed(Bytes::from("committed")),
        ],
        vec![Record::Purge { index: 0, term: 1 }],
    ]
}

fn write_log(fs: &FaultFs) -> Wal {
    let wal = Wal::create_stepped(Arc::new(fs.clone()), config()).unwrap();
    for records in batches() {
        wal.append(records, Sync::Yes, None).unwrap();
        wal.step();
    }
    settle(&wal);
    wal.close().unwrap();
    wal
}

#[test]
fn a_log_of_version_1_is_read_and_written_to_the_byte() {
    let fs = disk();
    let path = Path::new(DIR).join("0000000000000001.wal");
    fs.create(&path).unwrap();
    fs.edit(&path, |bytes| {
        bytes.extend_from_slice(LOG_V1);
        bytes.resize(SEGMENT_BYTES as usize, 0);
    })
    .unwrap();
    let mut expected = Model::default();
    batches()
        .iter()
        .flatten()
        .for_each(|record| expected.apply(record));

    let (wal, recovered) = open(&fs).unwrap();

    assert!(expected.same_content(&Model::of(&wal, &recovered)));
    assert_eq!(recovered.cut, None);
    let written = disk();
    write_log(&written);
    let file = segments(&written).remove(0);
    assert_eq!(
        written.contents(&file).unwrap()[..used(&written, &file)],
        *LOG_V1
    );
}
