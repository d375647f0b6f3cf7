use futures_util::TryStreamExt;
use kv_wal::Identity;
use kv_wal::fs::{Fault, FaultFs, Fs};
use openraft::entry::RaftEntry;
use openraft::storage::{EntryResponder, RaftStateMachine};
use openraft::testing::log::{StoreBuilder, Suite};
use openraft::type_config::TypeConfigExt;
use openraft::{OptionalSend, StorageError};
use tempfile::TempDir;

use super::*;
use crate::encoding::commands_body;
use crate::snapshot::Shelf;
use crate::snapshot::{CheckpointBuilder, Handle, Snapshot};
use crate::state_machine::Adapter;
use crate::testing::{Ledger, empty_recovered, open_wal};
use crate::types::{Commands, SnapshotMeta, StoredMembership};

/// openraft's suite applies entries that follow no other; this lets it.
struct SuiteMachine(Adapter);

impl RaftStateMachine<TypeConfig> for SuiteMachine {
    type SnapshotData = Handle;
    type SnapshotBuilder = CheckpointBuilder;

    async fn applied_state(&mut self) -> io::Result<(Option<LogId>, StoredMembership)> {
        self.0.applied_state().await
    }

    async fn apply<S>(&mut self, entries: S) -> io::Result<()>
    where
        S: Stream<Item = io::Result<EntryResponder<TypeConfig>>> + Unpin + OptionalSend,
    {
        let entries: Vec<_> = entries.try_collect().await?;
        for (entry, responder) in entries {
            self.0
                .pretend_applied(raft_log_id(entry.log_id.index, entry.log_id.leader_id.term));
            self.0.apply(stream::iter([Ok((entry, responder))])).await?;
        }
        Ok(())
    }

    async fn get_snapshot_builder(&mut self) -> CheckpointBuilder {
        self.0.get_snapshot_builder().await
    }

    async fn install_snapshot(&mut self, meta: &SnapshotMeta, handle: Handle) -> io::Result<()> {
        self.0.install_snapshot(meta, handle).await
    }

    async fn get_current_snapshot(&mut self) -> io::Result<Option<Snapshot>> {
        self.0.get_current_snapshot().await
    }
}

/// Builds stores over a log on a disk in memory.
struct OnFaultFs;

impl StoreBuilder<TypeConfig, LogStore, SuiteMachine> for OnFaultFs {
    async fn build(
        &self,
    ) -> std::result::Result<((), LogStore, SuiteMachine), StorageError<TypeConfig>> {
        let log = open_faulty(&FaultFs::new()).0;
        let (adapter, _) =
            Adapter::open(Ledger::default().machine(), Shelf::default(), || 0).unwrap();
        Ok(((), log, SuiteMachine(adapter)))
    }
}

/// Builds stores over a real log in a temporary folder.
struct Builder {
    tail_bytes_max: u64,
}

impl StoreBuilder<TypeConfig, LogStore, SuiteMachine, TempDir> for Builder {
    async fn build(
        &self,
    ) -> std::result::Result<(TempDir, LogStore, SuiteMachine), StorageError<TypeConfig>> {
        let dir = tempfile::tempdir().unwrap();
        let (wal, recovered) = open_wal(dir.path(), 1);
        let log = LogStore::open(wal, recovered, self.tail_bytes_max).unwrap();
        let (adapter, _) =
            Adapter::open(Ledger::default().machine(), Shelf::default(), || 0).unwrap();
        Ok((dir, log, SuiteMachine(adapter)))
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn openraft_suite_passes_from_memory() {
    Suite::test_all(Builder {
        tail_bytes_max: 8 << 20,
    })
    .await
    .unwrap();
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn openraft_suite_passes_on_the_faulty_disk_without_faults() {
    Suite::test_all(OnFaultFs).await.unwrap();
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn openraft_suite_passes_from_disk() {
    Suite::test_all(Builder { tail_bytes_max: 0 })
        .await
        .unwrap();
}

/// Opens the log on `fs`, or makes one.
fn open_faulty(fs: &FaultFs) -> (LogStore, Wal) {
    let identity = Identity {
        cluster_id: 7,
        member_id: 1,
        incarnation: 1,
    };
    let mut config = kv_wal::Config::new("/wal", identity);
    config.segment_bytes = 64 << 10;
    let fs: Arc<dyn Fs> = Arc::new(fs.clone());
    let (wal, recovered) = match Wal::exists(&config.dir, &*fs).unwrap() {
        true => Wal::open(fs, config).unwrap(),
        false => (Wal::create(fs, config).unwrap(), empty_recovered(identity)),
    };
    (
        LogStore::open(wal.clone(), recovered, 8 << 20).unwrap(),
        wal,
    )
}

fn entry(index: u64, term: u64, bytes: usize) -> Entry {
    let commands = Commands(commands_body(&[vec![index as u8; bytes].into()]));
    Entry::new_normal(raft_log_id(index, term).unwrap(), commands)
}

fn open(dir: &TempDir, tail_bytes_max: u64) -> (LogStore, Wal) {
    let (wal, recovered) = open_wal(dir.path(), 1);
    (
        LogStore::open(wal.clone(), recovered, tail_bytes_max).unwrap(),
        wal,
    )
}

/// Appends and waits until it is on disk.
async fn append(log: &mut LogStore, entries: impl IntoIterator<Item = Entry>) {
    let (sender, flushed) = TypeConfig::oneshot();
    let entries: Vec<_> = entries.into_iter().collect();
    log.append(entries, IOFlushed::signal(sender))
        .await
        .unwrap();
    flushed.await.unwrap().unwrap();
}

async fn entries(log: &mut LogStore) -> Vec<(u64, u64)> {
    let entries = log.try_get_log_entries(..).await.unwrap();
    entries
        .iter()
        .map(|entry| (index_of(Some(&entry.log_id)), entry.log_id.leader_id.term))
        .collect()
}

#[tokio::test]
async fn a_restart_finds_entries_vote_and_commit_mark() {
    let dir = tempfile::tempdir().unwrap();
    let (mut log, wal) = open(&dir, 8 << 20);
    let vote = Vote::new_committed(2, 1);
    append(&mut log, (1..=5).map(|index| entry(index, 1, 10))).await;
    log.save_committed(raft_log_id(4, 1)).await.unwrap();
    log.save_vote(&vote).await.unwrap();
    append(&mut log, [entry(6, 2, 10)]).await;
    wal.close().unwrap();

    let (mut log, wal) = open(&dir, 8 << 20);
    assert_eq!(
        entries(&mut log).await,
        [(1, 1), (2, 1), (3, 1), (4, 1), (5, 1), (6, 2)]
    );
    assert_eq!(log.read_vote().await.unwrap(), Some(vote));
    assert_eq!(log.read_committed().await.unwrap(), raft_log_id(4, 1));
    let first_and_last = raft_log_id(1, 1).unwrap()..=raft_log_id(6, 2).unwrap();
    let keys = log.get_key_log_ids(first_and_last).await.unwrap();
    assert_eq!(
        keys.into_iter().map(Some).collect::<Vec<_>>(),
        [raft_log_id(5, 1), raft_log_id(6, 2)]
    );
    wal.close().unwrap();
}

#[tokio::test]
async fn a_truncated_end_is_replaced_and_stays_so() {
    let dir = tempfile::tempdir().unwrap();
    for tail_bytes_max in [0, 8 << 20] {
        let (mut log, wal) = open(&dir, tail_bytes_max);
        log.truncate_after(None).await.unwrap();
        append(&mut log, (1..=9).map(|index| entry(index, 1, 10))).await;
        log.truncate_after(raft_log_id(4, 1)).await.unwrap();
        append(&mut log, [entry(5, 2, 10), entry(6, 3, 10)]).await;
        let expected = [(1, 1), (2, 1), (3, 1), (4, 1), (5, 2), (6, 3)];
        assert_eq!(entries(&mut log).await, expected);
        assert_eq!(
            log.get_log_state().await.unwrap().last_log_id,
            raft_log_id(6, 3)
        );
        wal.close().unwrap();

        let (mut log, wal) = open(&dir, tail_bytes_max);
        assert_eq!(entries(&mut log).await, expected);
        wal.close().unwrap();
    }
}

#[tokio::test]
async fn a_purged_start_stays_away_and_the_log_may_begin_past_its_end() {
    let dir = tempfile::tempdir().unwrap();
    let (mut log, wal) = open(&dir, 8 << 20);
    append(
        &mut log,
        (1..=9).map(|index| entry(index, 1 + index / 4, 10)),
    )
    .await;
    log.purge(raft_log_id(5, 2).unwrap()).await.unwrap();
    assert_eq!(entries(&mut log).await, [(6, 2), (7, 2), (8, 3), (9, 3)]);
    log.purge(raft_log_id(20, 4).unwrap()).await.unwrap();
    assert_eq!(entries(&mut log).await, []);
    append(&mut log, [entry(21, 5, 10)]).await;
    assert_eq!(entries(&mut log).await, [(21, 5)]);
    wal.close().unwrap();

    let (mut log, wal) = open(&dir, 8 << 20);
    let state = log.get_log_state().await.unwrap();
    assert_eq!(state.last_purged_log_id, raft_log_id(20, 4));
    assert_eq!(state.last_log_id, raft_log_id(21, 5));
    assert_eq!(entries(&mut log).await, [(21, 5)]);
    wal.close().unwrap();
}

#[tokio::test]
async fn a_limited_read_stops_at_its_bytes_but_never_before_one_entry() {
    let dir = tempfile::tempdir().unwrap();
    for tail_bytes_max in [0, 64 << 20] {
        let (mut log, wal) = open(&dir, tail_bytes_max);
        let last = index_of(log.get_log_state().await.unwrap().last_log_id.as_ref());
        // 300,000 bytes each; the fourth is larger than the bound by itself.
        let sizes = [300_000, 300_000, 300_000, 2_000_000, 300_000];
        let new = sizes
            .iter()
            .zip(last + 1..)
            .map(|(bytes, index)| entry(index, 1, *bytes));
        append(&mut log, new.collect::<Vec<_>>()).await;
        let mut count = async |first: u64| {
            log.limited_get_log_entries(last + first - 1, last + 5)
                .await
                .unwrap()
                .len()
        };
        assert_eq!(
            [
                count(1).await,
                count(2).await,
                count(4).await,
                count(5).await
            ],
            [3, 2, 1, 1]
        );
        wal.close().unwrap();
    }
}

#[tokio::test]
async fn memory_is_bounded_and_what_left_it_is_read_from_disk() {
    const TAIL: u64 = 10_000;
    let dir = tempfile::tempdir().unwrap();
    let (mut log, wal) = open(&dir, TAIL);
    for index in 1..=100 {
        append(&mut log, [entry(index, 1, 1000)]).await;
    }
    let (kept, bytes) = {
        let state = log.shared.state.lock();
        (state.tail.len(), state.tail_bytes)
    };
    // The newest entry was not yet on disk when the bound was last checked.
    assert!(bytes <= TAIL + 2000, "{bytes} bytes in memory");
    assert!(kept < 15, "{kept} entries in memory");
    let found = log.try_get_log_entries(..).await.unwrap();
    assert_eq!(
        found,
        (1..=100)
            .map(|index| entry(index, 1, 1000))
            .collect::<Vec<_>>()
    );
    let streamed: Vec<_> = log
        .entries_stream(0..100)
        .await
        .try_collect()
        .await
        .unwrap();
    assert_eq!(streamed, found);
    wal.close().unwrap();
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn reads_beside_truncations_and_purges_find_a_piece_of_the_log_without_holes() {
    let dir = tempfile::tempdir().unwrap();
    let (mut log, wal) = open(&dir, 500);
    append(&mut log, [entry(1, 1, 50)]).await;
    let (stop, mut stopped) = oneshot::channel::<()>();
    let mut reader = log.clone();
    let reading = tokio::spawn(async move {
        let mut longest = 0;
        while stopped.try_recv() == Err(oneshot::error::TryRecvError::Empty) {
            let found = entries(&mut reader).await;
            let from = found.first().map_or(0, |(first, _)| *first);
            assert!(
                found
                    .iter()
                    .zip(from..)
                    .all(|((index, _), expected)| *index == expected)
            );
            longest = longest.max(found.len());
        }
        longest
    });
    let mut last = 1;
    for term in 2..60 {
        append(
            &mut log,
            (last + 1..=last + 20).map(|index| entry(index, term, 50)),
        )
        .await;
        last += 10;
        log.truncate_after(raft_log_id(last, term)).await.unwrap();
        log.purge(raft_log_id(last - 5, term).unwrap())
            .await
            .unwrap();
    }
    stop.send(()).unwrap();
    let longest = reading.await.unwrap();
    assert!(
        longest > 1,
        "the reader saw at most {longest} entries at once"
    );
    wal.close().unwrap();
}

#[test]
fn what_is_not_on_disk_stays_in_memory_and_a_truncation_forgets_its_flush() {
    let mut state = State {
        vote: None,
        committed: None,
        purged: None,
        last: None,
        terms: VecDeque::new(),
        tail: VecDeque::new(),
        tail_bytes: 0,
        flushed: 0,
        epoch: 0,
    };
    for index in 1..=10 {
        state.extend(index, 1).unwrap();
        state.tail_bytes += cost(&entry(index, 1, 10));
        state.tail.push_back(entry(index, 1, 10));
    }
    state.note_flushed(0, 4);
    state.trim_tail(0);
    assert_eq!((state.tail_first(), state.tail.len()), (5, 6));

    state.truncate_after(7);
    state.note_flushed(0, 10);
    assert_eq!(
        state.flushed, 4,
        "a completion from before the truncation counts no more"
    );
    state.trim_tail(0);
    assert_eq!((state.tail_first(), state.last_index()), (5, 7));
    state.note_flushed(1, 7);
    state.trim_tail(0);
    assert_eq!((state.tail_first(), state.tail_bytes), (8, 0));
    assert_eq!(state.term_at(7), Some(1));
}

#[test]
fn a_log_that_contradicts_itself_is_refused() {
    let refused = |entries: &[(u64, u64)], purged| {
        recover(entries, purged, None)
            .err()
            .expect("refused")
            .to_string()
    };
    assert!(refused(&[(1, 1), (3, 1)], None).contains("entry 3 follows entry 1"));
    assert!(refused(&[(5, 1)], None).contains("begins with entry 5"));
    assert!(refused(&[(5, 1)], Some((3, 1))).contains("entry 5 follows entry 3"));
    assert!(refused(&[(1, 2), (2, 1)], None).contains("term 1 follows"));
}

/// A follower with entries that were never committed gets a snapshot, and the power fails between
/// the commit mark of the snapshot and the purge of those entries.
#[tokio::test]
async fn a_commit_mark_of_no_entry_in_the_log_is_not_believed() {
    let entries: Vec<_> = (1..=9).map(|index| (index, 2)).collect();
    let believed = async |index, term| {
        let mut log = recover(&entries, None, raft_log_id(index, term)).unwrap();
        log.read_committed().await.unwrap()
    };
    assert_eq!(believed(7, 2).await, raft_log_id(7, 2));
    assert_eq!(believed(7, 3).await, None);
    assert_eq!(believed(10, 3).await, None);
}

/// Opens a log as if this had been found in it.
fn recover(
    entries: &[(u64, u64)],
    purged: Option<(u64, u64)>,
    committed: Option<LogId>,
) -> Result<LogStore> {
    let dir = tempfile::tempdir().unwrap();
    let (wal, mut recovered) = open_wal(dir.path(), 1);
    let meta = |&(index, term)| kv_wal::EntryMeta {
        index,
        term,
        payload_len: 2,
    };
    recovered.entries = entries.iter().map(meta).collect();
    recovered.purged = purged;
    recovered.committed = Some(encoding::encode_committed(committed.as_ref()));
    LogStore::open(wal, recovered, 0)
}

#[tokio::test]
async fn a_failed_fsync_is_reported_and_nothing_is_accepted_after_it() {
    let fs = FaultFs::new();
    let (mut log, _wal) = open_faulty(&fs);
    append(&mut log, [entry(1, 1, 10)]).await;
    fs.fail_sync(0, Fault::Io);
    let (sender, flushed) = TypeConfig::oneshot();
    log.append([entry(2, 1, 10)], IOFlushed::signal(sender))
        .await
        .unwrap();
    flushed.await.unwrap().unwrap_err();
    assert_eq!(log.flushed_index(), 1);
    log.save_vote(&Vote::new(2, 1)).await.unwrap_err();
    log.append([entry(3, 1, 10)], IOFlushed::noop())
        .await
        .unwrap_err();
}

/// Cuts the power at every operation of a run; what was reported as durable must be there.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_power_cut_anywhere_keeps_every_vote_and_entry_that_was_reported_durable() {
    let first_fault = {
        let fs = FaultFs::new();
        open_faulty(&fs).1.close().unwrap();
        fs.operation_count()
    };
    for fault in 0..30 {
        let fs = FaultFs::new();
        let (mut log, _wal) = open_faulty(&fs);
        fs.fail_at(first_fault + fault, Fault::PowerCut);
        let (mut vote_kept, mut entries_kept) = (None, 0);
        for term in 1..=5u64 {
            let vote = Vote::new(term, 1);
            if log.save_vote(&vote).await.is_err() {
                break;
            }
            vote_kept = Some(vote);
            let (sender, flushed) = TypeConfig::oneshot();
            let new = [entry(2 * term - 1, term, 100), entry(2 * term, term, 100)];
            if log.append(new, IOFlushed::signal(sender)).await.is_err() {
                break;
            }
            if !matches!(flushed.await, Ok(Ok(()))) {
                break;
            }
            entries_kept = 2 * term;
            let _ = log.save_committed(raft_log_id(2 * term, term)).await;
        }
        for seed in 0..3 {
            let (mut log, _wal) = open_faulty(&fs.power_cut(seed));
            let vote = log.read_vote().await.unwrap();
            assert!(
                vote >= vote_kept,
                "fault {fault}: vote {vote:?}, reported {vote_kept:?}"
            );
            let found = entries(&mut log).await;
            let expected: Vec<_> = (1..=10u64)
                .map(|index| (index, index.div_ceil(2)))
                .collect();
            assert_eq!(found, expected[..found.len()], "fault {fault}");
            assert!(
                found.len() as u64 >= entries_kept,
                "fault {fault}: {} entries",
                found.len()
            );
        }
    }
}

/// A log that does nothing until it is stepped.
fn stepped() -> (LogStore, Wal) {
    let identity = Identity {
        cluster_id: 7,
        member_id: 1,
        incarnation: 1,
    };
    let mut config = kv_wal::Config::new("/wal", identity);
    config.segment_bytes = 64 << 10;
    let wal = Wal::create_stepped(Arc::new(FaultFs::new()), config).unwrap();
    let log = LogStore::open(wal.clone(), empty_recovered(identity), 0).unwrap();
    (log, wal)
}

#[tokio::test]
async fn an_entry_is_readable_before_it_is_on_disk() {
    let (mut log, wal) = stepped();
    let (sender, flushed) = TypeConfig::oneshot();
    let new = [entry(1, 1, 10), entry(2, 1, 10)];
    log.append(new, IOFlushed::signal(sender)).await.unwrap();
    assert_eq!(log.flushed_index(), 0);
    assert_eq!(entries(&mut log).await, [(1, 1), (2, 1)]);
    wal.step();
    flushed.await.unwrap().unwrap();
    assert_eq!(log.flushed_index(), 2);
    assert_eq!(entries(&mut log).await, [(1, 1), (2, 1)]);
}

/// What came before in the queue is on disk with it: a vote never overtakes the entries of the term before.
#[tokio::test]
async fn a_vote_is_reported_only_after_its_fsync_and_with_all_before_it() {
    let (mut log, wal) = stepped();
    log.append([entry(1, 1, 10)], IOFlushed::noop())
        .await
        .unwrap();
    let mut writer = log.clone();
    let vote = Vote::new(2, 1);
    let mut saved = polled(async move { writer.save_vote(&vote).await });
    assert!(
        saved.poll().is_none(),
        "reported before anything is written"
    );
    assert_eq!(log.flushed_index(), 0);
    wal.step();
    saved.poll().expect("it is on disk").unwrap();
    assert_eq!(log.flushed_index(), 1);
}

/// A future that is polled by hand.
struct Polled<F>(std::pin::Pin<Box<F>>);

fn polled<F: Future>(future: F) -> Polled<F> {
    Polled(Box::pin(future))
}

impl<F: Future> Polled<F> {
    fn poll(&mut self) -> Option<F::Output> {
        use futures_util::FutureExt;
        self.0.as_mut().now_or_never()
    }
}
