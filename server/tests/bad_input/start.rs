//! Flags, folders, certificates and addresses that a member refuses at its start.

use std::os::unix::fs::PermissionsExt;
use std::path::Path;

use crate::member::{Member, assert_names, command, free_address, refusal, refusal_of, skipped};

#[test]
fn unknown_flag_is_named() {
    let folder = tempfile::tempdir().unwrap();

    let text = refusal(&folder.path().join("data"), &["--no-such-flag=1"]);

    assert_names(&text, &["no-such-flag", "--help"]);
    assert!(!folder.path().join("data").exists());
}

#[test]
fn data_dir_that_is_a_file_is_refused() {
    let folder = tempfile::tempdir().unwrap();
    let file = folder.path().join("file");
    std::fs::write(&file, "mine").unwrap();

    let text = refusal(&file, &[]);

    assert_names(&text, &["is a file", "--data-dir", "file"]);
    assert_eq!(std::fs::read(&file).unwrap(), b"mine");
}

#[test]
fn data_dir_that_cannot_be_written_is_refused() {
    // Of no user's reach, root included.
    let text = refusal(Path::new("/proc/kvd-bad-input/data"), &[]);

    assert_names(
        &text,
        &[
            "cannot create the folder",
            "/proc/kvd-bad-input",
            "--data-dir",
        ],
    );
}

#[test]
fn folder_of_etcd_is_refused_and_left_alone() {
    let folder = tempfile::tempdir().unwrap();
    let data = folder.path().join("data");
    std::fs::create_dir_all(data.join("member/snap")).unwrap();
    std::fs::create_dir_all(data.join("member/wal")).unwrap();
    // A bbolt meta page: 16 bytes of page header, then the magic number.
    let mut page = vec![0; 4096];
    page[16..20].copy_from_slice(&0xED0C_DAED_u32.to_le_bytes());
    std::fs::write(data.join("member/snap/db"), &page).unwrap();

    let text = refusal(&data, &[]);

    assert_names(&text, &["belongs to etcd", "snap/db", "--data-dir"]);
    assert_eq!(std::fs::read(data.join("member/snap/db")).unwrap(), page);
    assert!(!data.join("LOCK").exists(), "the folder was written to");
}

#[tokio::test]
async fn folder_in_use_is_refused() {
    let folder = tempfile::tempdir().unwrap();
    let data = folder.path().join("data");
    let member = Member::start(&data, &[]).await;

    let text = refusal(&data, &[]);

    assert_names(
        &text,
        &["is in use by process", "stop it first", "--data-dir"],
    );
    member.put("k", "v").await.unwrap();
}

#[tokio::test]
async fn folder_of_another_engine_is_refused_and_kept() {
    let folder = tempfile::tempdir().unwrap();
    let data = folder.path().join("data");
    let member = Member::start(&data, &["--storage-engine=redb"]).await;
    member.put("k", "v").await.unwrap();
    member.stop();

    let text = refusal(&data, &["--storage-engine=sled"]);

    assert_names(&text, &["redb", "sled", "--storage-engine=redb", "convert"]);
    let member = Member::start(&data, &[]).await;
    assert_eq!(member.get("k").await.as_deref(), Some("v"));
}

#[tokio::test]
async fn port_in_use_is_refused() {
    let folder = tempfile::tempdir().unwrap();
    let member = Member::start(&folder.path().join("first"), &[]).await;

    let second = folder.path().join("second");
    let text = refusal_of(&mut command(&second, member.address, &[]));

    let port = member.address.port().to_string();
    assert_names(&text, &[&port, "another process uses it", "choose another"]);
}

#[test]
fn certificates_that_cannot_be_used_are_named() {
    let folder = tempfile::tempdir().unwrap();
    let data = folder.path().join("data");
    let made = || rcgen::generate_simple_self_signed(["localhost".to_owned()]).unwrap();
    let (one, other) = (made(), made());
    let path = |name: &str| folder.path().join(name).to_str().unwrap().to_owned();
    let (cert, key, foreign, text, missing) = (
        path("a.crt"),
        path("a.key"),
        path("b.key"),
        path("text"),
        path("missing"),
    );
    std::fs::write(&cert, one.cert.pem()).unwrap();
    std::fs::write(&key, one.signing_key.serialize_pem()).unwrap();
    std::fs::write(&foreign, other.signing_key.serialize_pem()).unwrap();
    std::fs::write(&text, "not a certificate").unwrap();
    let url = format!("https://{}", free_address());
    let check = |cert: &str, key: &str, expect: &[&str]| {
        let listen = ["--listen-client-urls", &url];
        let files = ["--cert-file", cert, "--key-file", key];
        let said = refusal(&data, &[&listen[..], &files].concat());
        assert_names(&said, expect);
    };

    check(&missing, &key, &[&missing, "No such file"]);
    check(&cert, &missing, &[&missing, "No such file"]);
    check(&text, &key, &[&text]);
    check(&cert, &text, &[&text]);
    check(&cert, &foreign, &[&cert, &foreign]);
}

#[test]
fn folder_open_to_nobody_is_refused() {
    if rustix::process::geteuid().is_root() {
        // Root may read anything; the case is `data_dir_that_cannot_be_written_is_refused`.
        skipped("permissions do not hold for root");
        return;
    }
    let folder = tempfile::tempdir().unwrap();
    std::fs::set_permissions(folder.path(), std::fs::Permissions::from_mode(0o500)).unwrap();

    let text = refusal(&folder.path().join("data"), &[]);

    std::fs::set_permissions(folder.path(), std::fs::Permissions::from_mode(0o700)).unwrap();
    assert_names(&text, &["make it writable for user", "--data-dir"]);
}
