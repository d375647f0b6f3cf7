//! What a log does when nothing breaks, and how it ends when the disk says no.

#![allow(clippy::unwrap_used, reason = "a test fails where it unwraps")]

mod support;

use std::io;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::{Duration, Instant};

use bytes::Bytes;
use kv_wal::fs::{Fault, FaultFs, File, Fs, OperationKind, RealFs};
use kv_wal::{Completion, Config, Error, Record, Step, Sync, Wal};
use parking_lot::Mutex;
use support::{
    DIR, History, IDENTITY, Model, SEGMENT_BYTES, config, create, entry, open, segments, settle,
    workload,
};

fn disk() -> FaultFs {
    let fs = FaultFs::new();
    fs.create_dir("/member".as_ref()).unwrap();
    fs
}

fn indexes(wal: &Wal, from: u64, to: u64, max_bytes: u64) -> Vec<u64> {
    wal.read_entries(from, to, max_bytes)
        .unwrap()
        .into_iter()
        .map(|(index, ..)| index)
        .collect()
}

fn wait_until(what: &str, mut condition: impl FnMut() -> bool) {
    let deadline = Instant::now() + Duration::from_secs(30);
    while !condition() {
        assert!(Instant::now() < deadline, "not seen in time: {what}");
        std::thread::sleep(Duration::from_millis(1));
    }
}

#[test]
fn a_closed_log_opens_as_it_was() {
    for seed in 20..30 {
        let fs = disk();
        let wal = create(&fs).unwrap();
        let mut history = History::default();
        workload(&wal, &mut history, seed, 200);
        wal.close().unwrap();
        assert_eq!(
            history.acked(),
            history.records.len(),
            "closing answers everything"
        );
        let (wal, recovered) = open(&fs.power_cut(0)).unwrap();
        assert_eq!(recovered.cut, None);
        assert_eq!(
            history.explains(&Model::of(&wal, &recovered)),
            Some(history.records.len())
        );
    }
}

#[test]
fn no_completion_comes_before_the_fsync_that_covers_it() {
    let fs = disk();
    let wal = create(&fs).unwrap();
    let covered = Arc::new(AtomicUsize::new(0));
    let mut random = support::Random(9);
    let mut index = 1;
    for _ in 0..300 {
        let records: Vec<_> = (0..1 + random.below(3))
            .map(|at| entry(index + at, 1, 90))
            .collect();
        index += records.len() as u64;
        let sync = if random.below(3) == 0 {
            Sync::No
        } else {
            Sync::Yes
        };
        // Not written before it is appended: every write up to the covering one comes after this operation.
        let appended_at = fs.operation_count() as usize;
        let (at_completion, count) = (fs.clone(), Arc::clone(&covered));
        let done = Box::new(move |result: Result<(), Error>| {
            result.unwrap();
            let operations = at_completion.operations();
            let since = &operations[appended_at..];
            let last_write = since
                .iter()
                .rposition(|operation| matches!(operation.kind, OperationKind::Write { len, .. } if len < SEGMENT_BYTES));
            let last_sync = since
                .iter()
                .rposition(|operation| operation.kind == OperationKind::Sync);
            assert!(last_write.is_some(), "completed without a write");
            assert!(
                last_sync > last_write,
                "completed before the fsync: {since:?}"
            );
            count.fetch_add(1, Ordering::Relaxed);
        });
        wal.append(records, sync, Some(done)).unwrap();
        if random.below(2) == 0 {
            wal.step();
        }
    }
    settle(&wal);
    wal.close().unwrap();
    assert_eq!(covered.load(Ordering::Relaxed), 300);
}

#[test]
fn what_is_queued_together_takes_one_write_and_one_fsync() {
    let fs = disk();
    let wal = create(&fs).unwrap();
    let before = fs.operation_count() as usize;
    for index in 1..20 {
        wal.append(vec![entry(index, 1, 100)], Sync::Yes, None)
            .unwrap();
    }
    wal.step();
    let kinds: Vec<_> = fs.operations()[before..]
        .iter()
        .map(|operation| operation.kind)
        .collect();
    assert!(
        matches!(
            kinds[..],
            [OperationKind::Write { .. }, OperationKind::Sync]
        ),
        "{kinds:?}"
    );
    assert_eq!(wal.flushed_index(), 19);
}

#[test]
fn records_without_an_fsync_are_written_when_idle_and_covered_by_the_next_one() {
    let fs = disk();
    let wal = create(&fs).unwrap();
    let mut history = History::default();
    let before = fs.operation_count() as usize;
    history
        .append(&wal, vec![Record::Committed(Bytes::from("7"))], Sync::No)
        .unwrap();
    settle(&wal);
    let kinds: Vec<_> = fs.operations()[before..]
        .iter()
        .map(|operation| operation.kind)
        .collect();
    assert!(
        matches!(kinds[..], [OperationKind::Write { .. }]),
        "{kinds:?}"
    );
    assert_eq!(history.acked(), 0);
    history
        .append(&wal, vec![entry(1, 1, 10)], Sync::Yes)
        .unwrap();
    settle(&wal);
    assert_eq!(history.acked(), 2);
}

#[test]
fn reads_return_at_least_one_entry_and_no_more_than_asked_for() {
    let fs = disk();
    let wal = create(&fs).unwrap();
    wal.append(
        (1..=100).map(|index| entry(index, 1, 1_000)).collect(),
        Sync::Yes,
        None,
    )
    .unwrap();
    settle(&wal);
    assert!(segments(&fs).len() > 4, "the entries should span segments");
    assert_eq!(indexes(&wal, 5, 8, u64::MAX), [5, 6, 7]);
    assert_eq!(indexes(&wal, 5, 80, 0), [5]);
    assert_eq!(indexes(&wal, 5, 80, 3_500), [5, 6, 7]);
    assert_eq!(
        indexes(&wal, 1, 1_000, u64::MAX),
        (1..=100).collect::<Vec<_>>()
    );
    assert_eq!(indexes(&wal, 7, 7, 10), [0; 0]);
    assert!(matches!(
        wal.read_entries(101, 105, 10),
        Err(Error::NoEntry {
            index: 101,
            first: 1,
            next: 101
        })
    ));
    let Record::Entry { payload, .. } = entry(42, 1, 1_000) else {
        unreachable!()
    };
    assert_eq!(wal.read_entries(42, 43, 10).unwrap(), [(42, 1, payload)]);
}

#[test]
fn a_truncated_suffix_is_replaced() {
    let fs = disk();
    let wal = create(&fs).unwrap();
    wal.append(
        (1..=50).map(|index| entry(index, 1, 500)).collect(),
        Sync::Yes,
        None,
    )
    .unwrap();
    settle(&wal);
    assert_eq!(wal.flushed_index(), 50);
    wal.append(
        vec![Record::Truncate { after: 20 }, entry(21, 2, 80)],
        Sync::Yes,
        None,
    )
    .unwrap();
    settle(&wal);
    assert_eq!(wal.flushed_index(), 21);
    let (wal, recovered) = open(&fs.power_cut(0)).unwrap();
    assert_eq!(recovered.entries.len(), 21);
    assert_eq!(recovered.entries[20].term, 2);
    let Record::Entry { payload, .. } = entry(21, 2, 80) else {
        unreachable!()
    };
    assert_eq!(
        wal.read_entries(20, 30, u64::MAX).unwrap()[1],
        (21, 2, payload)
    );
}

#[test]
fn purged_segments_go_and_their_state_stays() {
    let fs = disk();
    let wal = create(&fs).unwrap();
    let vote = Record::Vote(Bytes::from("in the first segment"));
    wal.append(
        vec![vote, Record::Committed(Bytes::from("c"))],
        Sync::Yes,
        None,
    )
    .unwrap();
    wal.append(
        (1..=100).map(|index| entry(index, 3, 1_000)).collect(),
        Sync::Yes,
        None,
    )
    .unwrap();
    settle(&wal);
    let (count, size) = (segments(&fs).len(), wal.size_bytes());
    // Without a purge mark nothing goes, whatever is asked for.
    wal.purge_files(90).unwrap();
    settle(&wal);
    assert_eq!(segments(&fs).len(), count);
    wal.append(vec![Record::Purge { index: 80, term: 3 }], Sync::No, None)
        .unwrap();
    wal.purge_files(1_000).unwrap();
    settle(&wal);
    assert!(segments(&fs).len() < count, "no segment went");
    assert!(wal.size_bytes() < size, "the size did not shrink");
    assert!(matches!(
        wal.read_entries(80, 85, 10),
        Err(Error::NoEntry { first: 81, .. })
    ));
    for seed in 0..5 {
        let (wal, recovered) = open(&fs.power_cut(seed)).unwrap();
        assert_eq!(recovered.vote, Some(Bytes::from("in the first segment")));
        assert_eq!(recovered.committed, Some(Bytes::from("c")));
        assert_eq!(recovered.purged, Some((80, 3)));
        assert_eq!(recovered.entries.len(), 20);
        assert_eq!(
            indexes(&wal, 81, 101, u64::MAX),
            (81..=100).collect::<Vec<_>>()
        );
    }
}

#[test]
fn a_purge_behind_the_end_empties_the_log_and_moves_it_on() {
    let fs = disk();
    let wal = create(&fs).unwrap();
    wal.append(
        (1..=40).map(|index| entry(index, 1, 1_000)).collect(),
        Sync::Yes,
        None,
    )
    .unwrap();
    wal.append(
        vec![Record::Purge {
            index: 1_000,
            term: 4,
        }],
        Sync::Yes,
        None,
    )
    .unwrap();
    wal.purge_files(1_001).unwrap();
    settle(&wal);
    assert_eq!(segments(&fs).len(), 1);
    assert!(wal.append(vec![entry(41, 4, 1)], Sync::Yes, None).is_err());
    wal.append(vec![entry(1_001, 4, 1)], Sync::Yes, None)
        .unwrap();
    settle(&wal);
    let (_, recovered) = open(&fs.power_cut(0)).unwrap();
    assert_eq!(recovered.purged, Some((1_000, 4)));
    assert_eq!(
        recovered
            .entries
            .iter()
            .map(|meta| meta.index)
            .collect::<Vec<_>>(),
        [1_001]
    );
}

#[test]
fn purged_blocks_serve_again_without_their_old_records() {
    let fs = disk();
    // Room for three segments and not for a fourth: the log lives on what it purges.
    fs.set_capacity(Some(3 * SEGMENT_BYTES));
    let wal = create(&fs).unwrap();
    let mut history = History::default();
    for index in 1..=400 {
        history
            .append(&wal, vec![entry(index, 1, 500)], Sync::Yes)
            .unwrap();
        if index > 10 {
            history
                .append(
                    &wal,
                    vec![Record::Purge {
                        index: index - 10,
                        term: 1,
                    }],
                    Sync::No,
                )
                .unwrap();
            wal.purge_files(index - 9).unwrap();
        }
        settle(&wal);
    }
    assert_eq!(wal.failed().map(|error| error.to_string()), None);
    let (wal, recovered) = open(&fs.power_cut(1)).unwrap();
    assert_eq!(
        history.explains(&Model::of(&wal, &recovered)),
        Some(history.records.len())
    );
}

type Interruption = Arc<Mutex<Option<Box<dyn FnOnce() + Send>>>>;

/// A disk on which something else happens just before the next read.
struct Interrupted {
    fs: FaultFs,
    before_read: Interruption,
}

struct InterruptedFile {
    file: Arc<dyn File>,
    before_read: Interruption,
}

impl Interrupted {
    fn wrap(&self, file: Arc<dyn File>) -> Arc<dyn File> {
        Arc::new(InterruptedFile {
            file,
            before_read: Arc::clone(&self.before_read),
        })
    }
}

impl Fs for Interrupted {
    fn create_dir(&self, dir: &Path) -> io::Result<()> {
        self.fs.create_dir(dir)
    }
    fn create(&self, file: &Path) -> io::Result<Arc<dyn File>> {
        Ok(self.wrap(self.fs.create(file)?))
    }
    fn open(&self, file: &Path) -> io::Result<Arc<dyn File>> {
        Ok(self.wrap(self.fs.open(file)?))
    }
    fn rename(&self, from: &Path, to: &Path) -> io::Result<()> {
        self.fs.rename(from, to)
    }
    fn remove(&self, file: &Path) -> io::Result<()> {
        self.fs.remove(file)
    }
    fn list(&self, dir: &Path) -> io::Result<Vec<PathBuf>> {
        self.fs.list(dir)
    }
    fn sync_dir(&self, dir: &Path) -> io::Result<()> {
        self.fs.sync_dir(dir)
    }
}

impl File for InterruptedFile {
    fn read_at(&self, buffer: &mut [u8], offset: u64) -> io::Result<usize> {
        let before_read = self.before_read.lock().take();
        if let Some(before_read) = before_read {
            before_read();
        }
        self.file.read_at(buffer, offset)
    }
    fn write_at(&self, bytes: &[u8], offset: u64) -> io::Result<()> {
        self.file.write_at(bytes, offset)
    }
    fn sync_data(&self) -> io::Result<()> {
        self.file.sync_data()
    }
    fn len(&self) -> io::Result<u64> {
        self.file.len()
    }
    fn set_len(&self, len: u64) -> io::Result<()> {
        self.file.set_len(len)
    }
    fn reserve(&self, len: u64) -> io::Result<()> {
        self.file.reserve(len)
    }
}

#[test]
fn a_segment_that_is_purged_while_it_is_read_is_still_read() {
    let before_read = Arc::new(Mutex::new(None));
    let fs = disk();
    let interrupted = Interrupted {
        fs: fs.clone(),
        before_read: Arc::clone(&before_read),
    };
    let wal = Wal::create_stepped(Arc::new(interrupted), config()).unwrap();
    // Up to the start of the second segment, where nothing is prepared yet and a purged one would serve again.
    let mut next = 1;
    while segments(&fs).len() < 2 {
        wal.append(vec![entry(next, 1, 1_000)], Sync::Yes, None)
            .unwrap();
        settle(&wal);
        next += 1;
    }
    let writer = wal.clone();
    *before_read.lock() = Some(Box::new(move || {
        writer
            .append(
                vec![Record::Purge {
                    index: next - 1,
                    term: 1,
                }],
                Sync::Yes,
                None,
            )
            .unwrap();
        writer.purge_files(next).unwrap();
        let records = (next..next + 60)
            .map(|index| entry(index, 1, 1_000))
            .collect();
        writer.append(records, Sync::Yes, None).unwrap();
        settle(&writer);
    }));
    let Record::Entry { payload, .. } = entry(1, 1, 1_000) else {
        unreachable!()
    };
    assert_eq!(wal.read_entries(1, 2, 1).unwrap(), [(1, 1, payload)]);
    assert!(before_read.lock().is_none(), "the read was not interrupted");
    assert!(!segments(&fs).contains(&"/member/wal/0000000000000001.wal".into()));
}

#[test]
fn an_entry_larger_than_a_segment_gets_its_own() {
    let fs = disk();
    let wal = create(&fs).unwrap();
    let mut history = History::default();
    let sizes = [
        100,
        3 * SEGMENT_BYTES as usize,
        100,
        SEGMENT_BYTES as usize - 300,
        40,
    ];
    for (index, size) in (1..).zip(sizes) {
        history
            .append(&wal, vec![entry(index, 1, size)], Sync::Yes)
            .unwrap();
    }
    settle(&wal);
    assert_eq!(history.acked(), sizes.len());
    let (wal, recovered) = open(&fs.power_cut(0)).unwrap();
    assert_eq!(
        history.explains(&Model::of(&wal, &recovered)),
        Some(sizes.len())
    );
}

#[test]
fn a_record_that_would_leave_a_hole_is_refused_and_changes_nothing() {
    let fs = disk();
    let wal = create(&fs).unwrap();
    wal.append(vec![entry(0, 1, 10), entry(1, 1, 10)], Sync::Yes, None)
        .unwrap();
    for refused in [
        vec![entry(3, 1, 10)],
        vec![entry(1, 1, 10)],
        vec![entry(2, 1, 10), entry(4, 1, 10)],
        vec![
            Record::Purge { index: 0, term: 1 },
            Record::Purge { index: 1, term: 1 },
            Record::Truncate { after: 0 },
        ],
    ] {
        assert!(matches!(
            wal.append(refused, Sync::Yes, None),
            Err(Error::OutOfOrder { .. })
        ));
    }
    wal.append(vec![entry(2, 1, 10)], Sync::Yes, None).unwrap();
    settle(&wal);
    assert_eq!(indexes(&wal, 0, 9, u64::MAX), [0, 1, 2]);
}

/// Fails the log by a fault and checks that everyone hears of it, once, and that nothing is written afterwards.
fn check_failure(inject: impl Fn(&FaultFs)) {
    let fs = disk();
    let wal = create(&fs).unwrap();
    wal.append(vec![entry(1, 1, 10)], Sync::Yes, None).unwrap();
    settle(&wal);
    let heard = Arc::new(Mutex::new(Vec::new()));
    let (hook, by_hook) = (Arc::clone(&heard), Arc::new(AtomicUsize::new(0)));
    let hook_calls = Arc::clone(&by_hook);
    wal.set_failure_hook(Box::new(move |_| {
        assert_eq!(
            hook.lock().len(),
            3,
            "the hook is called after the completions"
        );
        hook_calls.fetch_add(1, Ordering::Relaxed);
    }));
    inject(&fs);
    for index in 2..5 {
        let heard = Arc::clone(&heard);
        let done =
            Box::new(move |result: Result<(), Error>| heard.lock().push((index, result.is_err())));
        wal.append(vec![entry(index, 1, 3_000)], Sync::Yes, Some(done))
            .unwrap();
    }
    assert_eq!(wal.step(), Step::Failed);
    assert_eq!(*heard.lock(), [(2, true), (3, true), (4, true)]);
    assert_eq!(by_hook.load(Ordering::Relaxed), 1);
    assert!(matches!(wal.failed(), Some(Error::Io { .. })));
    assert_eq!(wal.flushed_index(), 1);
    let operations = fs.operation_count();
    assert!(wal.append(vec![entry(5, 1, 10)], Sync::Yes, None).is_err());
    assert!(wal.purge_files(1).is_err());
    assert_eq!(wal.step(), Step::Failed);
    wal.close()
        .expect_err("a failed log does not close in order");
    assert_eq!(fs.operation_count(), operations, "a failed log wrote again");
}

#[test]
fn a_failed_fsync_of_the_folder_after_a_purge_ends_the_log() {
    let fs = disk();
    let wal = create(&fs).unwrap();
    wal.append(
        (1..=40).map(|index| entry(index, 1, 1_000)).collect(),
        Sync::Yes,
        None,
    )
    .unwrap();
    wal.append(vec![Record::Purge { index: 40, term: 1 }], Sync::Yes, None)
        .unwrap();
    settle(&wal);
    // The segment's file is taken away first, then its name is made durable.
    fs.fail_at(fs.operation_count() + 1, Fault::Io);
    wal.purge_files(41).unwrap();
    assert_eq!(wal.step(), Step::Failed);
    let (_, recovered) = open(&fs.power_cut(0)).unwrap();
    assert_eq!(recovered.purged, Some((40, 1)));
}

#[test]
fn a_segment_that_cannot_be_removed_is_tried_again() {
    let fs = disk();
    let wal = create(&fs).unwrap();
    wal.append(
        (1..=40).map(|index| entry(index, 1, 1_000)).collect(),
        Sync::Yes,
        None,
    )
    .unwrap();
    wal.append(vec![Record::Purge { index: 40, term: 1 }], Sync::Yes, None)
        .unwrap();
    settle(&wal);
    let count = segments(&fs).len();
    fs.fail_at(fs.operation_count(), Fault::Io);
    wal.purge_files(41).unwrap();
    assert_eq!(settle(&wal), Step::Idle);
    assert_eq!(segments(&fs).len(), count);
    wal.purge_files(41).unwrap();
    settle(&wal);
    assert_eq!(segments(&fs).len(), 1);
}

#[test]
fn a_failed_write_ends_the_log() {
    check_failure(|fs| fs.fail_at(fs.operation_count(), Fault::Io));
}

#[test]
fn a_failed_fsync_ends_the_log_and_is_never_repeated() {
    check_failure(|fs| fs.fail_sync(0, Fault::Io));
}

#[test]
fn an_entry_that_replaces_a_flushed_one_is_flushed_only_by_its_own_fsync() {
    let fs = disk();
    let wal = create(&fs).unwrap();
    let entries = (1..=5).map(|index| entry(index, 1, 90)).collect();
    wal.append(entries, Sync::Yes, None).unwrap();
    assert_eq!(settle(&wal), Step::Idle);
    assert_eq!(wal.flushed_index(), 5);
    let replaced = vec![
        Record::Truncate { after: 3 },
        entry(4, 2, 90),
        entry(5, 2, 90),
    ];
    wal.append(replaced, Sync::Yes, None).unwrap();
    assert_eq!(wal.flushed_index(), 3, "before the writer has seen it");
    fs.fail_sync(0, Fault::Io);
    assert_eq!(settle(&wal), Step::Failed);
    assert_eq!(wal.flushed_index(), 3);
}

#[test]
fn a_full_disk_shows_before_it_hurts_and_passes_when_there_is_room() {
    let fs = disk();
    fs.set_capacity(Some(SEGMENT_BYTES + 5_000));
    let wal = create(&fs).unwrap();
    let mut index = 1;
    while wal.preparation_error().is_none() {
        wal.append(vec![entry(index, 1, 500)], Sync::Yes, None)
            .unwrap();
        assert_eq!(settle(&wal), Step::Idle);
        index += 1;
    }
    let used = support::used(&fs, &segments(&fs)[0]) as u64;
    assert!(wal.preparation_error().unwrap().is_no_space());
    assert!(
        used < SEGMENT_BYTES / 2,
        "the full disk showed only after {used} bytes"
    );
    // A restart on the full disk works.
    let (reopened, recovered) = open(&fs.kill()).unwrap();
    assert_eq!(recovered.entries.len() as u64, index - 1);
    assert_eq!(reopened.failed().map(|error| error.to_string()), None);
    // Prepared space still takes writes, and with room the next segment is made.
    wal.append(vec![entry(index, 1, 500)], Sync::Yes, None)
        .unwrap();
    assert_eq!(settle(&wal), Step::Idle);
    fs.set_capacity(None);
    wal.append(
        (index + 1..index + 60)
            .map(|index| entry(index, 1, 500))
            .collect(),
        Sync::Yes,
        None,
    )
    .unwrap();
    assert_eq!(settle(&wal), Step::Idle);
    assert_eq!(wal.preparation_error().map(|error| error.to_string()), None);
    assert_eq!(wal.flushed_index(), index + 59);
}

#[test]
fn a_full_disk_passes_although_nobody_appends() {
    let fs = disk();
    fs.set_capacity(Some(SEGMENT_BYTES));
    let wal = Wal::create(Arc::new(fs.clone()), config()).unwrap();
    wal.append(vec![entry(1, 1, 5_000)], Sync::Yes, None)
        .unwrap();
    wait_until("the full disk shows", || wal.preparation_error().is_some());
    fs.set_capacity(None);
    wait_until("the next segment is prepared", || {
        wal.preparation_error().is_none()
    });
    wal.close().unwrap();
}

#[test]
fn a_log_that_is_out_of_space_stops_with_the_cause() {
    let fs = disk();
    fs.set_capacity(Some(SEGMENT_BYTES));
    let wal = create(&fs).unwrap();
    wal.append(
        (1..=60).map(|index| entry(index, 1, 500)).collect(),
        Sync::Yes,
        None,
    )
    .unwrap();
    assert_eq!(settle(&wal), Step::Failed);
    assert!(wal.failed().unwrap().is_no_space());
    fs.set_capacity(None);
    let (_, recovered) = open(&fs.power_cut(0)).unwrap();
    assert!(
        recovered.entries.len() > 20,
        "what fitted the first segment is there"
    );
}

#[test]
fn create_and_open_tell_a_log_from_none() {
    let fs = disk();
    assert!(!Wal::exists(DIR.as_ref(), &fs).unwrap());
    assert!(matches!(open(&fs), Err(Error::NotFound { .. })));
    drop(create(&fs).unwrap());
    assert!(Wal::exists(DIR.as_ref(), &fs).unwrap());
    assert!(matches!(create(&fs), Err(Error::AlreadyExists { .. })));
    let too_small = Config {
        segment_bytes: 4096,
        ..config()
    };
    assert!(matches!(
        Wal::create(Arc::new(disk()), too_small),
        Err(Error::SegmentSize { .. })
    ));
}

#[test]
fn threads_share_a_real_log_and_each_gets_its_completion() {
    let dir = tempfile::tempdir().unwrap();
    let config = Config {
        segment_bytes: 256 << 10,
        queue_bytes_max: 64 << 10,
        ..Config::new(dir.path().join("wal"), IDENTITY)
    };
    let wal = Wal::create(Arc::new(RealFs), config.clone()).unwrap();
    let fsyncs = Arc::new(AtomicUsize::new(0));
    let records = Arc::new(AtomicUsize::new(0));
    let (fsync_count, record_count) = (Arc::clone(&fsyncs), Arc::clone(&records));
    wal.set_fsync_observer(Box::new(move |_, batch| {
        fsync_count.fetch_add(1, Ordering::Relaxed);
        record_count.fetch_add(batch.records as usize, Ordering::Relaxed);
    }));
    let next = Arc::new(Mutex::new(1));
    let acked = Arc::new(Mutex::new(Vec::new()));
    std::thread::scope(|scope| {
        for _ in 0..4 {
            scope.spawn(|| {
                for _ in 0..200 {
                    let mut next = next.lock();
                    let index = *next;
                    *next += 1;
                    let acked = Arc::clone(&acked);
                    let done = Box::new(move |result: Result<(), Error>| {
                        result.unwrap();
                        acked.lock().push(index);
                    });
                    wal.append(vec![entry(index, 1, 2_000)], Sync::Yes, Some(done))
                        .unwrap();
                }
            });
        }
    });
    wal.append(vec![Record::Committed(Bytes::from("800"))], Sync::No, None)
        .unwrap();
    wal.close().unwrap();
    assert_eq!(*acked.lock(), (1..=800).collect::<Vec<_>>());
    assert_eq!(wal.flushed_index(), 800);
    assert_eq!(records.load(Ordering::Relaxed), 801);
    assert!(fsyncs.load(Ordering::Relaxed) < 800, "no batch was shared");
    assert!(matches!(
        wal.append(vec![], Sync::Yes, None),
        Err(Error::Closed)
    ));
    drop(wal);

    let (wal, recovered) = Wal::open(Arc::new(RealFs), config).unwrap();
    assert_eq!(recovered.cut, None);
    assert_eq!(recovered.committed, Some(Bytes::from("800")));
    assert_eq!(recovered.entries.len(), 800);
    assert_eq!(indexes(&wal, 1, 801, u64::MAX).len(), 800);
}

#[test]
fn an_idle_log_writes_what_needs_no_fsync_by_itself() {
    let fs = disk();
    let wal = Wal::create(Arc::new(fs.clone()), config()).unwrap();
    wal.append(
        vec![Record::Committed(Bytes::from("written when idle"))],
        Sync::No,
        None,
    )
    .unwrap();
    let file = segments(&fs).remove(0);
    let is_written = |text: &[u8]| {
        let contents = fs.contents(&file).unwrap();
        contents.windows(text.len()).any(|window| window == text)
    };
    wait_until("an idle log writes its records", || {
        is_written(b"written when idle")
    });
    // After an fsync the writer looks again by itself, and is not woken for such a record.
    let (done, durable) = std::sync::mpsc::channel();
    let done: Completion = Box::new(move |result| done.send(result).unwrap());
    wal.append(vec![entry(1, 1, 10)], Sync::Yes, Some(done))
        .unwrap();
    durable.recv().unwrap().unwrap();
    wal.append(
        vec![Record::Committed(Bytes::from("written after a nap"))],
        Sync::No,
        None,
    )
    .unwrap();
    wait_until("it is written without a call", || {
        is_written(b"written after a nap")
    });
    wal.close().unwrap();
}
