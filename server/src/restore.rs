//! A data folder made of a backup: of etcd or of kvd, which are the same file.
//!
//! The folder is that of a member of a new cluster whose log begins behind entry 1, as if it had got everything in a
//! snapshot of that entry. So one who joins later gets the keys too, since no log has them. Every member of the new
//! cluster is restored from the same file with the same flags, and then started like after any stop.
//!
//! It is made beside its place and renamed into it: there is a whole folder, or none.
//!
//! Source: etcdutl 3.7, snapshot restore (flags, what is kept, ids).

use std::ffi::OsString;
use std::fs;
use std::io;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use anyhow::{Context, Result, bail, ensure};
use bytes::Bytes;
use kv_mvcc::backend::Keyspace;
use kv_mvcc::etcd_file::EtcdFile;
use kv_mvcc::{ImportOptions, import};
use kv_wal::{Record, Wal};

use crate::apply::MEMBERSHIP;
use crate::bootstrap;
use crate::config::{self, Config, Invocation};
use crate::data_dir::DataDir;
use crate::server;

/// The entry that the backup stands for, and its term.
const APPLIED: u64 = 1;
const TERM: u64 = 1;

/// What to restore, and as which member; texts are flags of `kvd`, and `None` their default.
#[derive(Clone, Debug, Default)]
pub struct RestoreOptions {
    /// The backup.
    pub file: PathBuf,
    /// The folder to make.
    pub data_dir: PathBuf,
    /// The log's folder, if it is not below `data_dir`.
    pub wal_dir: Option<PathBuf>,
    /// `--name`
    pub name: String,
    /// `--initial-cluster`
    pub initial_cluster: String,
    /// `--initial-cluster-token`
    pub initial_cluster_token: String,
    /// `--initial-advertise-peer-urls`
    pub initial_advertise_peer_urls: String,
    /// `--storage-engine`
    pub storage_engine: Option<String>,
    /// Take a file without a sum at its end, or with another's.
    pub skip_hash_check: bool,
    /// Raise the newest revision by so much, and compact all before it; 0 leaves it.
    pub revision_bump: u64,
}

/// What was made.
#[derive(Clone, Copy, Debug)]
pub struct Restored {
    /// The member's id.
    pub member_id: u64,
    /// The new cluster's id.
    pub cluster_id: u64,
    /// The newest revision.
    pub revision: i64,
    /// The compacted one; -1 if there is none.
    pub compacted: i64,
}

/// Makes a data folder of a backup; must be called within a runtime.
///
/// Errors say what to do. An existing folder is never touched unless it is empty.
pub async fn restore(options: &RestoreOptions) -> Result<Restored> {
    check_vacant(&options.data_dir)?;
    if let Some(wal_dir) = options.wal_dir.as_deref() {
        ensure!(!wal_dir.exists(), "wal-dir {wal_dir:?} exists");
    }
    let file = EtcdFile::open(&options.file)?;
    if !options.skip_hash_check {
        ensure!(
            file.has_trailer(),
            "snapshot missing hash but --skip-hash-check=false: a file copied from a data folder needs --skip-hash-check"
        );
        file.check_trailer()?;
    }
    let making = beside(&options.data_dir);
    ensure!(
        !making.exists(),
        "{} is there from a restore that ended early or is under way: remove it first",
        making.display()
    );
    let config = config_of(options, &making)?;
    let made = make(options, &config, &file).await;
    let moved = made.and_then(|restored| {
        rename_durably(&making, &options.data_dir)?;
        Ok(restored)
    });
    if moved.is_err() {
        // The first error is the one to report.
        let _ = fs::remove_dir_all(&making);
        if let Some(wal_dir) = &options.wal_dir {
            let _ = fs::remove_dir_all(wal_dir);
        }
    }
    moved
}

async fn make(options: &RestoreOptions, config: &Config, file: &EtcdFile) -> Result<Restored> {
    let (identity, members) = bootstrap::founder(config).await?;
    let folder = DataDir::open(&config.data_dir, config.wal_dir.as_deref())?;
    bootstrap::claim(&folder, identity)?;
    let voters: Vec<u64> = members.iter().map(|member| member.id).collect();
    let membership = kv_raft::encoding::first_membership(APPLIED, TERM, &voters);
    let mut extra: Vec<(Keyspace, Bytes, Bytes)> = members
        .iter()
        .map(|member| {
            let key = format!("{:x}", member.id);
            (Keyspace::Members, key.into(), member.to_json())
        })
        .collect();
    extra.push((Keyspace::Meta, Bytes::from_static(MEMBERSHIP), membership));
    let import_options = ImportOptions {
        applied: APPLIED,
        term: TERM,
        revision_bump: i64::try_from(options.revision_bump)
            .context("--bump-revision is too large")?,
        extra,
    };
    let backend = server::open_backend(config, &folder)?;
    let imported = import(&backend, file, &import_options)?;
    backend.close()?;
    let wal_config = kv_wal::Config::new(folder.wal_dir(), identity);
    let wal = Wal::create(Arc::new(kv_wal::fs::RealFs), wal_config)?;
    let purge = Record::Purge {
        index: APPLIED,
        term: TERM,
    };
    wal.append(vec![purge], kv_wal::Sync::Yes, None)?;
    wal.close()?;
    Ok(Restored {
        member_id: identity.member_id,
        cluster_id: identity.cluster_id,
        revision: imported.revision,
        compacted: imported.compacted,
    })
}

/// The configuration that a member with these flags would have, over the folder in the making.
fn config_of(options: &RestoreOptions, making: &Path) -> Result<Config> {
    let flag = |name: &str, value: &dyn AsRef<std::ffi::OsStr>| {
        let mut flag = OsString::from(format!("--{name}="));
        flag.push(value);
        flag
    };
    let mut args = vec![
        flag("data-dir", &making),
        flag("name", &options.name),
        flag("initial-cluster", &options.initial_cluster),
        flag("initial-cluster-token", &options.initial_cluster_token),
        flag(
            "initial-advertise-peer-urls",
            &options.initial_advertise_peer_urls,
        ),
    ];
    if let Some(wal_dir) = &options.wal_dir {
        args.push(flag("wal-dir", wal_dir));
    }
    if let Some(engine) = &options.storage_engine {
        args.push(flag("storage-engine", engine));
    }
    match config::load(args, [])? {
        Invocation::Run { config, .. } => Ok(*config),
        Invocation::Help | Invocation::Version => bail!("no flag here asks for that"),
    }
}

fn check_vacant(data_dir: &Path) -> Result<()> {
    match fs::read_dir(data_dir) {
        Ok(mut entries) => match entries.next() {
            None => Ok(()),
            Some(_) => bail!(
                "data-dir {data_dir:?} not empty or could not be read: choose another with --data-dir"
            ),
        },
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(()),
        Err(error) => Err(error)
            .with_context(|| format!("data-dir {data_dir:?} not empty or could not be read")),
    }
}

/// Where the folder is made: on the same disk.
fn beside(data_dir: &Path) -> PathBuf {
    let mut name = data_dir.as_os_str().to_owned();
    name.push(".restoring");
    PathBuf::from(name)
}

fn rename_durably(from: &Path, to: &Path) -> Result<()> {
    // Over an empty folder, if there is one.
    fs::rename(from, to)
        .with_context(|| format!("cannot rename {} to {}", from.display(), to.display()))?;
    let parent = match to.parent() {
        Some(parent) if !parent.as_os_str().is_empty() => parent,
        _ => Path::new("."),
    };
    let synced = fs::File::open(parent).and_then(|folder| folder.sync_all());
    synced.with_context(|| format!("cannot sync {}", parent.display()))
}
