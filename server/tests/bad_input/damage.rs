//! Files of a data folder that are damaged, cut short, or another member's.

use std::fs::OpenOptions;
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use crate::member::{Member, assert_names, refusal};

#[tokio::test]
async fn damage_in_the_middle_of_the_log_is_refused_with_file_and_offset() {
    let folder = tempfile::tempdir().unwrap();
    let data = written(folder.path(), 200).await;
    let segment = first_segment(&data);
    let at = position(&segment, b"value-20;").unwrap();
    flip(&segment, at);

    let text = refusal(&data, &[]);

    let name = segment.to_str().unwrap();
    assert_names(
        &text,
        &["damage in", name, "at offset", "replace this member"],
    );
    flip(&segment, at);
    let member = Member::start(&data, &[]).await;
    assert_eq!(member.get("key-20").await.as_deref(), Some("value-20;"));
}

#[tokio::test]
async fn torn_tail_of_the_log_is_cut() {
    let folder = tempfile::tempdir().unwrap();
    let data = written(folder.path(), 20).await;
    let segment = first_segment(&data);
    let bytes = std::fs::read(&segment).unwrap();
    let end = bytes.iter().rposition(|byte| *byte != 0).unwrap() as u64 + 1;
    let end = end.next_multiple_of(8);
    // A batch header that promises more than was written, as a power cut leaves it.
    let torn = [&b"kvB1"[..], &64_u32.to_le_bytes(), &[0xab; 40]].concat();
    let file = OpenOptions::new().write(true).open(&segment).unwrap();
    file.write_all_at(&torn, end).unwrap();

    let member = Member::start(&data, &[]).await;

    for n in 0..20 {
        let value = member.get(&format!("key-{n}")).await;
        assert_eq!(value, Some(format!("value-{n};")));
    }
}

#[tokio::test]
async fn log_of_another_member_is_refused() {
    let folder = tempfile::tempdir().unwrap();
    let (one, other) = (folder.path().join("one"), folder.path().join("other"));
    std::fs::create_dir_all(&one).unwrap();
    std::fs::create_dir_all(&other).unwrap();
    let (data, foreign) = (written(&one, 3).await, written(&other, 3).await);
    let (ours, theirs) = (first_segment(&data), first_segment(&foreign));
    std::fs::copy(&theirs, &ours).unwrap();

    let text = refusal(&data, &[]);

    assert_names(
        &text,
        &["belongs to", "another member's data folder", "--data-dir"],
    );
}

#[tokio::test]
async fn damaged_redb_database_is_refused() {
    let folder = tempfile::tempdir().unwrap();
    let (data, file) = with_overwritten_database(folder.path(), "redb", "db/1/data.redb").await;

    let text = refusal(&data, &[]);

    assert_names(
        &text,
        &["damage", file.to_str().unwrap(), "replace this member"],
    );
}

/// Nobody asks for the value: the member finds out by itself, and takes no more writes.
#[tokio::test]
async fn damaged_value_is_found_in_the_background() {
    let folder = tempfile::tempdir().unwrap();
    let data = folder.path().join("data");
    let member = Member::start(&data, &[]).await;
    for n in 0..50 {
        let value = format!("value-{n};");
        member.put(&format!("key-{n}"), &value).await.unwrap();
    }
    member.stop();
    let file = data.join("member/db/1/data.redb");
    let mut copies = 0;
    // Pages that are free by now may have it too.
    while let Some(at) = position(&file, b"value-20;") {
        flip(&file, at);
        copies += 1;
    }
    assert!(copies > 0);

    let member = Member::start(&data, &[]).await;

    let deadline = Instant::now() + Duration::from_secs(30);
    let refused = loop {
        // Some may be taken before the member knows.
        if let Err(refused) = member.put("another", "value").await {
            break refused;
        }
        assert!(Instant::now() < deadline, "nothing was found");
        tokio::time::sleep(Duration::from_millis(20)).await;
    };
    assert_eq!(refused.code(), tonic::Code::DataLoss, "{refused}");
    assert_names(&member.log(), &["stored data is damaged", "checksum"]);
    assert_eq!(member.get("key-21").await.as_deref(), Some("value-21;"));
}

/// sled takes a file that is not its own for an empty one; its newest acknowledged commit is known beside it.
#[tokio::test]
async fn damaged_sled_database_is_noticed_and_made_again_from_the_log() {
    let folder = tempfile::tempdir().unwrap();
    let (data, _) = with_overwritten_database(folder.path(), "sled", "db/1/db").await;

    let member = Member::start(&data, &[]).await;

    assert_eq!(member.get("k").await.as_deref(), Some("v"));
    assert_names(&member.log(), &["lost its last commit", "the log has it"]);
}

/// A folder with the key `k`, and the database file, all of whose bytes are others.
async fn with_overwritten_database(parent: &Path, engine: &str, file: &str) -> (PathBuf, PathBuf) {
    let data = parent.join("data");
    let member = Member::start(&data, &[&format!("--storage-engine={engine}")]).await;
    member.put("k", "v").await.unwrap();
    member.stop();
    let file = data.join("member").join(file);
    let len = std::fs::metadata(&file).unwrap().len();
    std::fs::write(&file, vec![0x5a; len as usize]).unwrap();
    (data, file)
}

#[tokio::test]
async fn damaged_meta_is_refused() {
    let folder = tempfile::tempdir().unwrap();
    let data = written(folder.path(), 1).await;
    let meta = data.join("member/meta");
    flip(&meta, 30);

    let text = refusal(&data, &[]);

    assert_names(
        &text,
        &[meta.to_str().unwrap(), "is damaged", "checksum", "backup"],
    );
}

/// A folder below `parent` of a member that wrote `count` keys and was killed.
async fn written(parent: &Path, count: usize) -> PathBuf {
    let data = parent.join("data");
    let member = Member::start(&data, &[]).await;
    for n in 0..count {
        let (key, value) = (format!("key-{n}"), format!("value-{n};"));
        member.put(&key, &value).await.unwrap();
    }
    member.kill();
    data
}

fn first_segment(data: &Path) -> PathBuf {
    data.join("member/wal/0000000000000001.wal")
}

fn position(file: &Path, what: &[u8]) -> Option<u64> {
    let bytes = std::fs::read(file).unwrap();
    let at = bytes.windows(what.len()).position(|window| window == what);
    at.map(|at| at as u64)
}

fn flip(file: &Path, at: u64) {
    let file = OpenOptions::new()
        .read(true)
        .write(true)
        .open(file)
        .unwrap();
    let mut byte = [0];
    file.read_exact_at(&mut byte, at).unwrap();
    file.write_all_at(&[byte[0] ^ 0x10], at).unwrap();
}
