//! Changed bytes: damage to what was acknowledged is refused, a torn tail is cut, and the two are told apart.

#![allow(clippy::unwrap_used, reason = "a test fails where it unwraps")]

mod support;

use std::path::{Path, PathBuf};

use bytes::Bytes;
use kv_wal::fs::{FaultFs, Fs, OperationKind};
use kv_wal::{Config, Error, Identity, Record, Sync, Wal};
use support::{
    DIR, History, IDENTITY, Model, Random, create, entry, open, segments, settle, used, workload,
};

/// Length of the empty batch that says that everything before it was fsynced.
const MARK_BYTES: usize = 32;
/// Where batches start in a segment.
const SEGMENT_HEADER_BYTES: usize = 80;

fn disk() -> FaultFs {
    let fs = FaultFs::new();
    fs.create_dir("/member".as_ref()).unwrap();
    fs
}

/// A log of several segments, idle after its last fsync.
fn idle_log(rounds: u64) -> (FaultFs, History) {
    let fs = disk();
    let mut history = History::default();
    let wal = create(&fs).unwrap();
    let next = workload(&wal, &mut history, 11, rounds).next;
    for index in next..next + rounds {
        history
            .append(&wal, vec![entry(index, 9, 700)], Sync::Yes)
            .unwrap();
        wal.step();
    }
    history
        .append(
            &wal,
            vec![Record::Vote(Bytes::from("the last one"))],
            Sync::Yes,
        )
        .unwrap();
    settle(&wal);
    (fs, history)
}

fn is_refused(fs: &FaultFs) -> bool {
    matches!(
        open(fs),
        Err(Error::Damage { .. } | Error::UnknownVersion { .. } | Error::ForeignIdentity { .. })
    )
}

#[test]
fn every_flipped_byte_in_an_acknowledged_batch_is_refused() {
    let (fs, _) = idle_log(120);
    let files = segments(&fs);
    assert!(files.len() > 2, "the log has only {} segments", files.len());
    let mut random = Random(77);
    let mut flipped = 0;
    for (at, file) in files.iter().enumerate() {
        let is_last = at + 1 == files.len();
        let end = used(&fs, file) - if is_last { MARK_BYTES } else { 0 };
        let step = if is_last { 1 } else { 7 };
        for offset in (0..end).step_by(step) {
            let bit = 1 << random.below(8);
            fs.edit(file, |bytes| bytes[offset] ^= bit).unwrap();
            assert!(
                is_refused(&fs),
                "bit {bit:#x} of byte {offset} of {} went unnoticed",
                file.display()
            );
            fs.edit(file, |bytes| bytes[offset] ^= bit).unwrap();
            flipped += 1;
        }
    }
    assert!(flipped > 2_000, "only {flipped} bytes were flipped");
    open(&fs).expect("the log is whole again");
}

#[test]
fn whatever_is_changed_no_record_is_invented() {
    let (fs, history) = idle_log(60);
    let explained = History {
        records: history.records,
        ..History::default()
    };
    let files = segments(&fs);
    let mut random = Random(4_711);
    let mut opened = 0;
    for round in 0..1_500 {
        let changed = fs.kill();
        for _ in 0..1 + random.below(3) {
            // Mostly at the end, where a change may pass for a torn write.
            let file = &files[files.len() - 1 - random.below(4) as usize / 3];
            changed
                .edit(file, |bytes| {
                    let from = bytes.len().min(used(&fs, file) + 64) - random.below(600) as usize;
                    let to = (from + random.below(64) as usize).min(bytes.len());
                    let value = random.below(3);
                    bytes[from..to].iter_mut().for_each(|byte| match value {
                        0 => *byte = 0,
                        1 => *byte = random.below(256) as u8,
                        _ => *byte ^= 0x80,
                    });
                })
                .unwrap();
        }
        if let Ok((wal, recovered)) = open(&changed) {
            opened += 1;
            let found = Model::of(&wal, &recovered);
            assert!(
                explained.explains(&found).is_some(),
                "round {round} invented a record: {found:?}"
            );
        }
    }
    assert!(opened > 100, "only {opened} changed logs opened");
    assert!(
        opened < 1_400,
        "only {} changed logs were refused",
        1_500 - opened
    );
}

#[test]
fn damage_names_the_file_the_offset_and_the_way_out() {
    let (fs, _) = idle_log(10);
    let file = segments(&fs).pop().unwrap();
    let offset = used(&fs, &file) - MARK_BYTES - 8;
    fs.edit(&file, |bytes| bytes[offset] ^= 1).unwrap();
    let error = open(&fs)
        .err()
        .expect("the last acknowledged record is damaged");
    let Error::Damage {
        file: named,
        offset: start,
        ..
    } = &error
    else {
        panic!("{error}")
    };
    assert_eq!(*named, file);
    assert!(
        *start <= offset as u64,
        "damage at {offset} is said to begin at {start}"
    );
    assert!(error.to_string().contains("replace this member"), "{error}");
}

/// A log whose last batch has no successor yet: the batch's bytes, and what the log held before it.
fn log_with_an_unproven_batch() -> (FaultFs, PathBuf, std::ops::Range<usize>, Model) {
    let fs = disk();
    let wal = create(&fs).unwrap();
    let mut history = History::default();
    history
        .append(
            &wal,
            vec![entry(1, 1, 300), Record::Vote(Bytes::from("v"))],
            Sync::Yes,
        )
        .unwrap();
    settle(&wal);
    let mut before = Model::default();
    history
        .records
        .iter()
        .for_each(|record| before.apply(record));
    let file = segments(&fs).pop().unwrap();
    let start = used(&fs, &file);
    history
        .append(
            &wal,
            (2..6).map(|index| entry(index, 1, 100)).collect(),
            Sync::Yes,
        )
        .unwrap();
    wal.step();
    let end = used(&fs, &file);
    (fs, file, start..end, before)
}

#[test]
fn a_tail_torn_at_any_byte_is_cut_and_reported() {
    let (fs, file, batch, before) = log_with_an_unproven_batch();
    let whole = fs.contents(&file).unwrap();
    let mut random = Random(3);
    for keep in batch.clone() {
        for garbage in [false, true] {
            fs.edit(&file, |bytes| {
                bytes.clone_from(&whole);
                for byte in &mut bytes[keep..batch.end] {
                    *byte = if garbage { random.below(256) as u8 } else { 0 };
                }
            })
            .unwrap();
            if fs.contents(&file).unwrap()[..batch.end] == whole[..batch.end] {
                continue;
            }
            let torn = fs.kill();
            let (wal, recovered) =
                open(&torn).unwrap_or_else(|error| panic!("torn at {keep}: {error}"));
            assert!(
                before.same_content(&Model::of(&wal, &recovered)),
                "torn at {keep}"
            );
            match recovered.cut {
                None => assert!(
                    keep == batch.start && !garbage,
                    "a cut at {keep} is not reported"
                ),
                Some(cut) => {
                    assert_eq!((cut.file, cut.offset), (file.clone(), batch.start as u64));
                    assert!(cut.bytes > 0, "an empty cut at {keep}");
                }
            }
            assert_eq!(
                used(&torn, &file),
                batch.start,
                "torn at {keep}: the tail is not zero after the cut"
            );
            assert_eq!(
                torn.power_cut(1).contents(&file).unwrap()[batch.start..],
                vec![0; whole.len() - batch.start]
            );
        }
    }
}

#[test]
fn a_damaged_batch_before_an_unsynced_one_is_torn_and_before_a_later_synced_one_is_not() {
    let (fs, file, batch, before) = log_with_an_unproven_batch();
    let (unsynced, _) = open(&fs).unwrap();
    // A successor that was written after the fsync of the batch vouches for it.
    unsynced
        .append(vec![Record::Committed(Bytes::from("5"))], Sync::No, None)
        .unwrap();
    unsynced.step();
    fs.edit(&file, |bytes| bytes[batch.start + 100] ^= 1)
        .unwrap();
    assert!(is_refused(&fs), "a batch was damaged after its fsync");

    // Two batches after the same fsync: neither says anything of the other.
    let fs = disk();
    let wal = create(&fs).unwrap();
    let mut history = History::default();
    history
        .append(
            &wal,
            vec![entry(1, 1, 300), Record::Vote(Bytes::from("v"))],
            Sync::Yes,
        )
        .unwrap();
    settle(&wal);
    let start = used(&fs, &file);
    for index in 2..4 {
        wal.append(vec![entry(index, 1, 100)], Sync::No, None)
            .unwrap();
        wal.step();
    }
    fs.edit(&file, |bytes| bytes[start + 100] ^= 1).unwrap();
    let (wal, recovered) = open(&fs).unwrap();
    assert_eq!(
        recovered.cut.as_ref().map(|cut| cut.offset),
        Some(start as u64)
    );
    assert!(before.same_content(&Model::of(&wal, &recovered)));
}

#[test]
fn batches_that_were_cut_never_come_back() {
    let (fs, file, batch, _) = log_with_an_unproven_batch();
    fs.edit(&file, |bytes| bytes[batch.start + 60] ^= 1)
        .unwrap();
    let (wal, recovered) = open(&fs).unwrap();
    assert!(recovered.cut.is_some());
    let mut expected = Model::of(&wal, &recovered);
    let record = entry(2, 7, 20);
    expected.apply(&record);
    wal.append(vec![record], Sync::Yes, None).unwrap();
    wal.step();
    let (wal, recovered) = open(&fs.power_cut(0)).unwrap();
    assert_eq!(recovered.cut, None);
    assert!(expected.same_content(&Model::of(&wal, &recovered)));
}

#[test]
fn a_batch_that_followed_something_else_is_refused() {
    let log_with = |first: &'static str| {
        let fs = disk();
        let wal = create(&fs).unwrap();
        wal.append(vec![Record::Vote(Bytes::from(first))], Sync::Yes, None)
            .unwrap();
        wal.step();
        let file = segments(&fs).remove(0);
        let second = used(&fs, &file);
        wal.append(vec![entry(1, 1, 50)], Sync::Yes, None).unwrap();
        wal.step();
        (fs, file, second)
    };
    let (fs, file, second) = log_with("one");
    let (other, ..) = log_with("two");
    let stale = other.contents(&file).unwrap();
    fs.edit(&file, |bytes| {
        bytes[second..].copy_from_slice(&stale[second..])
    })
    .unwrap();
    let error = open(&fs)
        .err()
        .expect("the second batch belongs to another first one");
    assert!(
        matches!(error, Error::Damage { offset, .. } if offset == second as u64),
        "{error}"
    );
}

#[test]
fn a_missing_segment_is_refused() {
    let (fs, _) = idle_log(120);
    let files = segments(&fs);
    assert!(files.len() > 3, "the log has only {} segments", files.len());
    for file in &files[1..files.len() - 1] {
        let damaged = fs.kill();
        damaged.remove(file).unwrap();
        assert!(is_refused(&damaged), "{} is missing", file.display());
    }
    // Live entries begin in the first segment that is left after a purge.
    let fs = disk();
    let wal = create(&fs).unwrap();
    wal.append(
        (1..100).map(|index| entry(index, 1, 900)).collect(),
        Sync::Yes,
        None,
    )
    .unwrap();
    settle(&wal);
    let first = segments(&fs).remove(0);
    fs.remove(&first).unwrap();
    assert!(
        is_refused(&fs),
        "nothing was purged, and the first segment is missing"
    );
}

#[test]
fn a_shortened_or_swapped_segment_is_refused() {
    let (fs, _) = idle_log(120);
    let files = segments(&fs);
    for file in &files {
        let damaged = fs.kill();
        damaged
            .edit(file, |bytes| bytes.truncate(bytes.len() - 4096))
            .unwrap();
        assert!(is_refused(&damaged), "{} is too short", file.display());
        damaged
            .edit(file, |bytes| bytes.truncate(SEGMENT_HEADER_BYTES / 2))
            .unwrap();
        assert!(is_refused(&damaged), "{} has no header", file.display());
    }
    let damaged = fs.kill();
    damaged.rename(&files[1], "/member/wal/x".as_ref()).unwrap();
    damaged.rename(&files[2], &files[1]).unwrap();
    damaged.rename("/member/wal/x".as_ref(), &files[2]).unwrap();
    assert!(is_refused(&damaged), "two segments have each other's name");
}

#[test]
fn another_members_log_is_refused() {
    let (fs, _) = idle_log(10);
    for identity in [
        Identity {
            cluster_id: 9,
            ..IDENTITY
        },
        Identity {
            member_id: 9,
            ..IDENTITY
        },
        Identity {
            incarnation: 9,
            ..IDENTITY
        },
    ] {
        let config = Config {
            identity,
            ..support::config()
        };
        let opened = Wal::open_stepped(std::sync::Arc::new(fs.clone()), config);
        assert!(
            matches!(opened, Err(Error::ForeignIdentity { .. })),
            "{identity}"
        );
    }
}

#[test]
fn another_format_version_is_refused_by_its_number() {
    let (fs, _) = idle_log(10);
    let file = segments(&fs).remove(0);
    fs.edit(&file, |bytes| bytes[8] = 2).unwrap();
    assert!(matches!(
        open(&fs),
        Err(Error::UnknownVersion {
            found: 2,
            known: 1,
            ..
        })
    ));
}

#[test]
fn a_foreign_file_among_the_segments_is_refused() {
    let (fs, _) = idle_log(10);
    fs.create(&Path::new(DIR).join("copy of 1.wal")).unwrap();
    assert!(is_refused(&fs));
}

#[test]
fn opening_refuses_damage_without_changing_a_byte() {
    let (fs, _) = idle_log(60);
    let file = segments(&fs).pop().unwrap();
    let offset = used(&fs, &file) - MARK_BYTES - 20;
    fs.edit(&file, |bytes| bytes[offset] ^= 4).unwrap();
    let before = fs.operation_count();
    assert!(is_refused(&fs));
    let changed: Vec<_> = fs.operations().into_iter().skip(before as usize).collect();
    assert!(
        changed
            .iter()
            .all(|operation| operation.kind == OperationKind::SyncDir),
        "{changed:?}"
    );
}

#[test]
fn an_entry_that_is_damaged_while_the_log_is_open_is_not_served() {
    let fs = disk();
    let wal = create(&fs).unwrap();
    wal.append(
        (1..4).map(|index| entry(index, 1, 100)).collect(),
        Sync::Yes,
        None,
    )
    .unwrap();
    settle(&wal);
    let file = segments(&fs).remove(0);
    let Record::Entry { payload, .. } = entry(2, 1, 100) else {
        unreachable!()
    };
    let contents = fs.contents(&file).unwrap();
    let offset = contents
        .windows(100)
        .position(|window| window == payload)
        .unwrap();
    fs.edit(&file, |bytes| bytes[offset + 50] ^= 1).unwrap();
    assert_eq!(wal.read_entries(1, 2, u64::MAX).unwrap().len(), 1);
    assert!(matches!(
        wal.read_entries(1, 4, u64::MAX),
        Err(Error::Damage { .. })
    ));
}
