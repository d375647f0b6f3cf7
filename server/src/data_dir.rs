//! The member's folder: its layout, its lock, who it belongs to.
//!
//! ```text
//! <data-dir>/LOCK               locked while a process serves the folder; holds its process id
//! <data-dir>/fixtures/          certificates made for --auto-tls
//! <data-dir>/member/meta        whose data this is and in which formats (below)
//! <data-dir>/member/wal/        the log, unless --wal-dir names another folder
//! <data-dir>/member/db/<n>/     the engine's files; member/CURRENT names the live one
//! <data-dir>/member/reserve     64 MiB that are given back when the disk is full
//!
//! meta, 52 bytes, integers little endian:
//!   "kvd-meta" | meta format u32 | wal format u32 | store format u32 | cluster u64 | member u64 | incarnation u64 | 4 zero bytes | crc32 u32 of all before
//! ```
//!
//! Invariants: one process at a time; `meta` is written before anything else of a new member, so a folder with a log or a
//! database and without `meta` is not ours and is never touched. Folders are made with mode 0700, files with 0600.

use std::fs::{self, DirBuilder, File, OpenOptions};
use std::io::{self, Read, Seek, SeekFrom, Write};
use std::os::unix::fs::{DirBuilderExt, OpenOptionsExt, PermissionsExt};
use std::path::{Path, PathBuf};

use rustix::fs::{FallocateFlags, FlockOperation};
use rustix::io::Errno;
use thiserror::Error;

/// Space that is kept for recovery on a full disk.
pub const RESERVE_BYTES: u64 = 64 << 20;

/// Format of the file `meta` itself.
const META_FORMAT: u32 = 1;
const META_MAGIC: &[u8; 8] = b"kvd-meta";
const META_BYTES: usize = 52;
const META_CRC_AT: usize = META_BYTES - 4;

/// Whose data a folder holds, and in which formats.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Meta {
    /// Format of the log's files.
    pub wal_format: u32,
    /// Format of the keyspaces in the engine.
    pub store_format: u32,
    /// The cluster this member belongs to.
    pub cluster_id: u64,
    /// This member.
    pub member_id: u64,
    /// Tells this folder from an earlier one of the same member, whose promises it does not know.
    pub incarnation: u64,
}

/// A member's folder, locked until dropped.
#[derive(Debug)]
pub struct DataDir {
    member: PathBuf,
    wal: PathBuf,
    /// Holds the lock: the kernel releases it when the process ends, however it ends.
    _lock: File,
}

/// Why a folder cannot be used. Texts say what to do next.
#[derive(Debug, Error)]
pub enum Error {
    /// There is a file where the folder should be.
    #[error("{} is a file; --{flag} must name a folder: choose another name or move the file away", path.display())]
    NotAFolder {
        /// What was named.
        path: PathBuf,
        /// The flag that named it.
        flag: &'static str,
    },
    /// The folder cannot be made or written to.
    #[error(
        "cannot {action} {}: {source}; make it writable for user {uid}, or choose another folder with --{flag}",
        path.display()
    )]
    Unwritable {
        /// What was tried, as a verb.
        action: &'static str,
        /// The file or folder.
        path: PathBuf,
        /// Why it failed.
        source: io::Error,
        /// The user this process runs as.
        uid: u32,
        /// The flag that names the folder.
        flag: &'static str,
    },
    /// Another process serves the folder.
    #[error(
        "the data folder {} is in use by {}; stop it first, or choose another folder with --data-dir",
        path.display(),
        holder.map_or("another process".to_owned(), |pid| format!("process {pid}"))
    )]
    Locked {
        /// The folder.
        path: PathBuf,
        /// The process that holds the lock, if it left its id.
        holder: Option<u32>,
    },
    /// The folder holds etcd's own files.
    #[error(
        "{} belongs to etcd, whose file formats differ; nothing was changed. Start with an empty --data-dir: add this \
         member to the running cluster in place of the old one, or restore a snapshot made with 'etcdctl snapshot save'",
        found.display()
    )]
    EtcdData {
        /// The file that shows it.
        found: PathBuf,
    },
    /// The folder holds a log or a database, but nothing that says whose.
    #[error(
        "{} exists, but {} does not: the folder is incomplete. Restore the whole folder from a backup, or start with an \
         empty --data-dir and add this member to the cluster again",
        found.display(),
        meta.display()
    )]
    MetaMissing {
        /// The file that shows it.
        found: PathBuf,
        /// The missing file.
        meta: PathBuf,
    },
    /// `meta` is damaged.
    #[error(
        "{} is damaged ({why}). Restore it from a backup, or start with an empty --data-dir and add this member to the \
         cluster again",
        path.display()
    )]
    MetaDamaged {
        /// The file.
        path: PathBuf,
        /// What is wrong with it.
        why: String,
    },
    /// `meta` was written by a later release.
    #[error("{} has format {found}; this release reads up to {META_FORMAT}. Start a newer release", path.display())]
    MetaTooNew {
        /// The file.
        path: PathBuf,
        /// Its format.
        found: u32,
    },
}

/// Result of a step on the folder.
pub type Result<T> = std::result::Result<T, Error>;

impl DataDir {
    /// Makes or opens the folder, locks it, and checks that what it holds is ours.
    ///
    /// `wal_dir` is the log's folder if it is not below `data_dir`. Nothing is written to a folder of somebody else.
    pub fn open(data_dir: &Path, wal_dir: Option<&Path>) -> Result<DataDir> {
        make_folder(data_dir, "data-dir")?;
        let member = data_dir.join("member");
        let wal = wal_dir.map_or_else(|| member.join("wal"), Path::to_owned);
        refuse_foreign_data(&member, &wal)?;
        let dir = DataDir {
            member,
            wal,
            _lock: take_lock(data_dir)?,
        };
        make_folder(&dir.member, "data-dir")?;
        make_folder(
            &dir.wal,
            if wal_dir.is_some() {
                "wal-dir"
            } else {
                "data-dir"
            },
        )?;
        Ok(dir)
    }

    /// `<data-dir>/member`, where the engine keeps its files.
    pub fn member_dir(&self) -> &Path {
        &self.member
    }

    /// Folder of the log.
    pub fn wal_dir(&self) -> &Path {
        &self.wal
    }

    /// Whose data this is; `None` for a new folder.
    pub fn read_meta(&self) -> Result<Option<Meta>> {
        let path = self.meta_path();
        match fs::read(&path) {
            Ok(bytes) => decode_meta(&path, &bytes).map(Some),
            Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(None),
            Err(source) => Err(unwritable("read", &path, source, "data-dir")),
        }
    }

    /// Replaces `meta`: the old or the new one is there after a power cut, never a part.
    pub fn write_meta(&self, meta: &Meta) -> Result<()> {
        let (path, temporary) = (self.meta_path(), self.member.join("meta.tmp"));
        let write = || {
            let mut file = private_file()
                .create(true)
                .truncate(true)
                .open(&temporary)?;
            file.write_all(&encode_meta(meta))?;
            file.sync_all()?;
            fs::rename(&temporary, &path)?;
            sync_folder(&self.member)
        };
        write().map_err(|source| unwritable("write", &path, source, "data-dir"))
    }

    /// Makes sure that [`RESERVE_BYTES`] are set aside on the disk, as blocks and not only as a length.
    ///
    /// Fails when the disk is too full; no part of a reserve stays then.
    pub fn prepare_reserve(&self) -> io::Result<()> {
        self.prepare_reserve_of(RESERVE_BYTES)
    }

    /// Gives `bytes` of the reserve back to the file system, all of it if there is less.
    pub fn shrink_reserve(&self, bytes: u64) -> io::Result<()> {
        let left = self.reserve_bytes().saturating_sub(bytes);
        if left > 0 {
            return private_file().open(self.reserve_path())?.set_len(left);
        }
        match fs::remove_file(self.reserve_path()) {
            Ok(()) => sync_folder(&self.member),
            Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(()),
            Err(error) => Err(error),
        }
    }

    /// How much is set aside, at most [`RESERVE_BYTES`].
    pub fn reserve_bytes(&self) -> u64 {
        fs::metadata(self.reserve_path()).map_or(0, |file| file.len().min(RESERVE_BYTES))
    }

    /// Whether the reserve is there in full.
    pub fn has_reserve(&self) -> bool {
        self.reserve_bytes() == RESERVE_BYTES
    }

    fn prepare_reserve_of(&self, bytes: u64) -> io::Result<()> {
        let path = self.reserve_path();
        let reserve = || {
            let file = private_file().create(true).open(&path)?;
            match rustix::fs::fallocate(&file, FallocateFlags::empty(), 0, bytes) {
                Ok(()) => file.set_len(bytes)?,
                Err(Errno::OPNOTSUPP) => fill_with_zeros(file.try_clone()?, bytes)?,
                Err(error) => return Err(error.into()),
            }
            file.sync_all()?;
            sync_folder(&self.member)
        };
        reserve().inspect_err(|_| {
            // The first error is the one to report; the space matters more than this file.
            let _ = fs::remove_file(&path);
        })
    }

    fn meta_path(&self) -> PathBuf {
        self.member.join("meta")
    }

    fn reserve_path(&self) -> PathBuf {
        self.member.join("reserve")
    }
}

/// Refuses a folder that holds a log or a database and no `meta`.
fn refuse_foreign_data(member: &Path, wal: &Path) -> Result<()> {
    let meta = member.join("meta");
    if meta.exists() {
        return Ok(());
    }
    let database = member.join("snap").join("db");
    if database.exists() {
        return Err(Error::EtcdData { found: database });
    }
    for file in fs::read_dir(wal).into_iter().flatten().flatten() {
        if is_etcd_wal_name(&file.file_name().to_string_lossy()) && !holds_our_log(&file.path()) {
            return Err(Error::EtcdData { found: file.path() });
        }
        if file
            .path()
            .extension()
            .is_some_and(|extension| extension == "wal")
        {
            return Err(Error::MetaMissing {
                found: file.path(),
                meta,
            });
        }
    }
    let current = member.join("CURRENT");
    if current.exists() {
        return Err(Error::MetaMissing {
            found: current,
            meta,
        });
    }
    Ok(())
}

/// Whether the name is `<sequence>-<index>.wal` in 16 hex digits each, as etcd writes it.
fn is_etcd_wal_name(name: &str) -> bool {
    let Some((sequence, index)) = name
        .strip_suffix(".wal")
        .and_then(|stem| stem.split_once('-'))
    else {
        return false;
    };
    [sequence, index]
        .iter()
        .all(|part| part.len() == 16 && part.bytes().all(|byte| byte.is_ascii_hexdigit()))
}

/// Whether a file of the log begins as ours do: etcd's begin with the little-endian length of their first record, which
/// is a few bytes, so no text stands there.
fn holds_our_log(path: &Path) -> bool {
    let mut magic = [0; 3];
    File::open(path)
        .and_then(|mut file| file.read_exact(&mut magic))
        .is_ok()
        && &magic == b"kvd"
}

fn make_folder(path: &Path, flag: &'static str) -> Result<()> {
    match fs::metadata(path) {
        Ok(found) if !found.is_dir() => Err(Error::NotAFolder {
            path: path.to_owned(),
            flag,
        }),
        Ok(found) => {
            let mode = found.permissions().mode() & 0o777;
            if mode & 0o077 != 0 {
                tracing::warn!(path = %path.display(), mode = %format_args!("{mode:o}"), "folder is open to other users; 700 is recommended");
            }
            Ok(())
        }
        Err(error) if error.kind() == io::ErrorKind::NotFound => {
            let make = || {
                DirBuilder::new().recursive(true).mode(0o700).create(path)?;
                match path.parent() {
                    Some(parent) if !parent.as_os_str().is_empty() => sync_folder(parent),
                    _ => sync_folder(Path::new(".")),
                }
            };
            make().map_err(|source| unwritable("create the folder", path, source, flag))
        }
        Err(source) if source.kind() == io::ErrorKind::NotADirectory => {
            let file = path
                .ancestors()
                .find(|ancestor| ancestor.is_file())
                .unwrap_or(path);
            Err(Error::NotAFolder {
                path: file.to_owned(),
                flag,
            })
        }
        Err(source) => Err(unwritable("open the folder", path, source, flag)),
    }
}

fn take_lock(data_dir: &Path) -> Result<File> {
    let path = data_dir.join("LOCK");
    let failed = |action, source| unwritable(action, &path, source, "data-dir");
    let mut file = private_file()
        .read(true)
        .create(true)
        .open(&path)
        .map_err(|source| failed("write", source))?;
    match rustix::fs::flock(&file, FlockOperation::NonBlockingLockExclusive) {
        Ok(()) => {}
        Err(Errno::WOULDBLOCK) => {
            let mut holder = String::new();
            // A lock whose holder cannot be read is still a lock.
            let _ = file.read_to_string(&mut holder);
            return Err(Error::Locked {
                path: data_dir.to_owned(),
                holder: holder.trim().parse().ok(),
            });
        }
        Err(error) => return Err(failed("lock", error.into())),
    }
    let leave_id = |file: &mut File| {
        file.set_len(0)?;
        file.seek(SeekFrom::Start(0))?;
        file.write_all(std::process::id().to_string().as_bytes())
    };
    match leave_id(&mut file) {
        Ok(()) => {}
        // The id is a courtesy; a member must start on a full disk.
        Err(error) if error.kind() == io::ErrorKind::StorageFull => {}
        Err(source) => return Err(failed("write", source)),
    }
    Ok(file)
}

fn encode_meta(meta: &Meta) -> [u8; META_BYTES] {
    let mut bytes = [0; META_BYTES];
    bytes[0..8].copy_from_slice(META_MAGIC);
    bytes[8..12].copy_from_slice(&META_FORMAT.to_le_bytes());
    bytes[12..16].copy_from_slice(&meta.wal_format.to_le_bytes());
    bytes[16..20].copy_from_slice(&meta.store_format.to_le_bytes());
    bytes[20..28].copy_from_slice(&meta.cluster_id.to_le_bytes());
    bytes[28..36].copy_from_slice(&meta.member_id.to_le_bytes());
    bytes[36..44].copy_from_slice(&meta.incarnation.to_le_bytes());
    let crc = crc32fast::hash(&bytes[..META_CRC_AT]);
    bytes[META_CRC_AT..].copy_from_slice(&crc.to_le_bytes());
    bytes
}

fn decode_meta(path: &Path, bytes: &[u8]) -> Result<Meta> {
    let damaged = |why: String| Error::MetaDamaged {
        path: path.to_owned(),
        why,
    };
    if bytes.get(..8) != Some(META_MAGIC.as_slice()) {
        return Err(damaged("it does not begin with \"kvd-meta\"".to_owned()));
    }
    if let Some(found) = bytes
        .get(8..12)
        .map(u32_at)
        .filter(|found| *found > META_FORMAT)
    {
        return Err(Error::MetaTooNew {
            path: path.to_owned(),
            found,
        });
    }
    if bytes.len() != META_BYTES {
        return Err(damaged(format!(
            "it has {} bytes in place of {META_BYTES}",
            bytes.len()
        )));
    }
    let (stored, computed) = (
        u32_at(&bytes[META_CRC_AT..]),
        crc32fast::hash(&bytes[..META_CRC_AT]),
    );
    if stored != computed {
        return Err(damaged(format!(
            "its checksum is {stored:08x}, its bytes have {computed:08x}"
        )));
    }
    Ok(Meta {
        wal_format: u32_at(&bytes[12..16]),
        store_format: u32_at(&bytes[16..20]),
        cluster_id: u64_at(&bytes[20..28]),
        member_id: u64_at(&bytes[28..36]),
        incarnation: u64_at(&bytes[36..44]),
    })
}

fn u32_at(bytes: &[u8]) -> u32 {
    u32::from_le_bytes(bytes.try_into().expect("the caller cuts 4 bytes"))
}

fn u64_at(bytes: &[u8]) -> u64 {
    u64::from_le_bytes(bytes.try_into().expect("the caller cuts 8 bytes"))
}

fn private_file() -> OpenOptions {
    let mut options = OpenOptions::new();
    options.write(true).mode(0o600);
    options
}

fn fill_with_zeros(mut file: File, bytes: u64) -> io::Result<()> {
    let zeros = vec![0; 1 << 20];
    let mut left = bytes;
    while left > 0 {
        let part = left.min(zeros.len() as u64);
        file.write_all(&zeros[..part as usize])?;
        left -= part;
    }
    Ok(())
}

/// Makes new names in a folder durable.
fn sync_folder(path: &Path) -> io::Result<()> {
    File::open(path)?.sync_all()
}

fn unwritable(action: &'static str, path: &Path, source: io::Error, flag: &'static str) -> Error {
    let uid = rustix::process::geteuid().as_raw();
    Error::Unwritable {
        action,
        path: path.to_owned(),
        source,
        uid,
        flag,
    }
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::MetadataExt;

    use super::*;

    const META: Meta = Meta {
        wal_format: 1,
        store_format: 2,
        cluster_id: 0x0102_0304_0506_0708,
        member_id: 0x1112_1314_1516_1718,
        incarnation: 0x2122_2324_2526_2728,
    };

    /// `meta` as format 1 stores it; every later release must read it.
    const META_FIXTURE: &[u8] = include_bytes!("../tests/fixtures/meta-1.bin");

    fn refusal(data_dir: &Path) -> String {
        DataDir::open(data_dir, None)
            .expect_err("the folder must be refused")
            .to_string()
    }

    #[test]
    fn new_folder_is_private_and_complete() {
        let root = tempfile::tempdir().unwrap();
        let data = root.path().join("a/b");
        let dir = DataDir::open(&data, None).unwrap();
        for folder in [data.clone(), data.join("member"), data.join("member/wal")] {
            assert_eq!(
                fs::metadata(&folder).unwrap().mode() & 0o777,
                0o700,
                "{}",
                folder.display()
            );
        }
        assert_eq!(
            fs::read_to_string(data.join("LOCK")).unwrap(),
            std::process::id().to_string()
        );
        assert_eq!(dir.read_meta().unwrap(), None);
        assert_eq!(dir.wal_dir(), data.join("member/wal"));
    }

    #[test]
    fn log_may_have_a_folder_of_its_own() {
        let root = tempfile::tempdir().unwrap();
        let wal = root.path().join("fast/wal");
        let dir = DataDir::open(&root.path().join("data"), Some(&wal)).unwrap();
        assert_eq!(dir.wal_dir(), wal);
        assert!(wal.is_dir());
        assert!(!dir.member_dir().join("wal").exists());
    }

    #[test]
    fn second_process_is_told_who_holds_the_folder() {
        let root = tempfile::tempdir().unwrap();
        let first = DataDir::open(root.path(), None).unwrap();
        let text = refusal(root.path());
        assert!(
            text.contains(&format!("in use by process {}", std::process::id())),
            "{text}"
        );
        drop(first);
        DataDir::open(root.path(), None).expect("the lock ends with its holder");
    }

    #[test]
    fn meta_survives_reopening_and_replacement() {
        let root = tempfile::tempdir().unwrap();
        let dir = DataDir::open(root.path(), None).unwrap();
        dir.write_meta(&META).unwrap();
        dir.write_meta(&Meta {
            incarnation: 9,
            ..META
        })
        .unwrap();
        drop(dir);
        let dir = DataDir::open(root.path(), None).unwrap();
        assert_eq!(
            dir.read_meta().unwrap(),
            Some(Meta {
                incarnation: 9,
                ..META
            })
        );
        assert!(!dir.member_dir().join("meta.tmp").exists());
    }

    #[test]
    fn stored_meta_of_format_1_stays_readable() {
        assert_eq!(decode_meta(Path::new("meta"), META_FIXTURE).unwrap(), META);
        assert_eq!(encode_meta(&META), META_FIXTURE);
    }

    #[test]
    fn damaged_meta_is_refused_wherever_the_damage_is() {
        for at in 0..META_BYTES {
            let mut bytes = encode_meta(&META);
            bytes[at] ^= 0x40;
            let error = decode_meta(Path::new("meta"), &bytes).unwrap_err();
            assert!(
                matches!(error, Error::MetaDamaged { .. } | Error::MetaTooNew { .. }),
                "byte {at}: {error}"
            );
        }
        for len in 0..META_BYTES {
            let error = decode_meta(Path::new("meta"), &encode_meta(&META)[..len]).unwrap_err();
            assert!(
                matches!(error, Error::MetaDamaged { .. }),
                "length {len}: {error}"
            );
        }
    }

    #[test]
    fn meta_of_a_later_release_asks_for_it() {
        let mut bytes = encode_meta(&META);
        bytes[8] = 2;
        let text = decode_meta(Path::new("meta"), &bytes)
            .unwrap_err()
            .to_string();
        assert!(
            text.contains("has format 2") && text.contains("newer release"),
            "{text}"
        );
    }

    #[test]
    fn folder_of_etcd_is_refused_untouched() {
        for file in [
            "member/snap/db",
            "member/wal/0000000000000000-0000000000000000.wal",
        ] {
            let root = tempfile::tempdir().unwrap();
            let path = root.path().join(file);
            fs::create_dir_all(path.parent().unwrap()).unwrap();
            fs::write(&path, [4, 0, 0, 0, 0, 0, 0, 132]).unwrap();
            let text = refusal(root.path());
            assert!(
                text.contains("belongs to etcd") && text.contains("etcdctl snapshot save"),
                "{text}"
            );
            assert!(!root.path().join("LOCK").exists());
        }
    }

    #[test]
    fn folder_that_lost_its_meta_is_refused() {
        for file in [
            "member/CURRENT",
            "member/wal/0000000000000001.wal",
            "member/wal/0000000000000000-0000000000000001.wal",
        ] {
            let root = tempfile::tempdir().unwrap();
            let path = root.path().join(file);
            fs::create_dir_all(path.parent().unwrap()).unwrap();
            fs::write(&path, b"kvd-wal\0").unwrap();
            let text = refusal(root.path());
            assert!(text.contains("member/meta does not"), "{text}");
        }
    }

    #[test]
    fn file_in_place_of_the_folder_is_refused() {
        let root = tempfile::tempdir().unwrap();
        let file = root.path().join("data");
        fs::write(&file, b"").unwrap();
        for path in [file.clone(), file.join("below")] {
            let text = refusal(&path);
            assert!(
                text.contains(&format!(
                    "{} is a file; --data-dir must name a folder",
                    file.display()
                )),
                "{text}"
            );
        }
    }

    #[test]
    fn folder_that_cannot_be_made_is_refused() {
        let text = refusal(Path::new("/sys/kvd-data-dir-test"));
        assert!(
            text.contains("cannot create the folder /sys/kvd-data-dir-test"),
            "{text}"
        );
        assert!(text.contains("--data-dir"), "{text}");
    }

    #[test]
    fn reserve_occupies_its_space_and_can_be_given_back() {
        let root = tempfile::tempdir().unwrap();
        let dir = DataDir::open(root.path(), None).unwrap();
        assert!(!dir.has_reserve());
        dir.prepare_reserve().unwrap();
        dir.prepare_reserve()
            .expect("a second call keeps the reserve");
        assert!(dir.has_reserve());
        assert!(
            fs::metadata(root.path().join("member/reserve"))
                .unwrap()
                .blocks()
                * 512
                >= RESERVE_BYTES
        );
        dir.shrink_reserve(RESERVE_BYTES / 4).unwrap();
        assert_eq!(dir.reserve_bytes(), RESERVE_BYTES / 4 * 3);
        dir.prepare_reserve().unwrap();
        assert!(dir.has_reserve());
        dir.shrink_reserve(RESERVE_BYTES).unwrap();
        dir.shrink_reserve(1)
            .expect("a second call finds nothing to do");
        assert_eq!(dir.reserve_bytes(), 0);
    }

    #[test]
    fn reserve_that_does_not_fit_leaves_nothing() {
        let root = tempfile::tempdir().unwrap();
        let dir = DataDir::open(root.path(), None).unwrap();
        dir.prepare_reserve_of(1 << 60).unwrap_err();
        assert!(!root.path().join("member/reserve").exists());
    }
}
