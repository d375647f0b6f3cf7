//! `snapshot`: saves a backup of a member, says what is in one, and makes a data folder of it.
//!
//! Verbs and flags of `status` and `restore` are etcdutl's. They need no server.

use std::fs::{self, File, OpenOptions};
use std::io::Write;
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};

use clap::{Args, Subcommand};
use kv_mvcc::etcd_file::{EtcdFile, TRAILER_BYTES};
use kv_server::restore::{RestoreOptions, restore};
use sha2::{Digest, Sha256};

use crate::{
    exit::{self, Exit, Failure, Result},
    printer::Answer,
    session::{Session, write_out},
};

/// The subcommands of `snapshot`.
#[derive(Debug, Subcommand)]
pub(crate) enum SnapshotCommand {
    /// Writes a backup of one member to a file
    Save(FileArgs),
    /// Says what a backup contains, and checks it
    Status(FileArgs),
    /// Makes the data folder of a new member of a backup
    Restore(RestoreArgs),
}

/// A file's name.
#[derive(Args, Debug)]
pub(crate) struct FileArgs {
    /// The file
    #[arg(value_name = "filename")]
    files: Vec<PathBuf>,
}

/// Flags of `snapshot restore`.
#[derive(Args, Debug)]
pub(crate) struct RestoreArgs {
    /// The backup: saved by etcdctl or kvctl, from etcd or kvd
    #[arg(value_name = "filename")]
    files: Vec<PathBuf>,
    /// The data folder to make; <name>.etcd if not given
    #[arg(long)]
    data_dir: Option<PathBuf>,
    /// The folder of the log; below --data-dir if not given
    #[arg(long)]
    wal_dir: Option<PathBuf>,
    /// All members of the new cluster, name=peer-URL separated by commas
    #[arg(long, default_value = "default=http://localhost:2380")]
    initial_cluster: String,
    /// The new cluster's token, so that its ids are not the old one's
    #[arg(long, default_value = "etcd-cluster")]
    initial_cluster_token: String,
    /// Peer URLs of this member, as in --initial-cluster, separated by commas
    #[arg(long, default_value = "http://localhost:2380")]
    initial_advertise_peer_urls: String,
    /// This member's name in --initial-cluster
    #[arg(long, default_value = "default")]
    name: String,
    /// Take a file without a hash at its end: a copy of etcd's own member/snap/db
    #[arg(long)]
    skip_hash_check: bool,
    /// Raise the revision by so much, so that clients see none twice; needs --mark-compacted
    #[arg(long, default_value = "0")]
    bump_revision: u64,
    /// Compact all before the raised revision, so that watches begin anew; only with --bump-revision
    #[arg(long)]
    mark_compacted: bool,
    /// The storage engine of the new member: redb or sled
    #[arg(long)]
    storage_engine: Option<String>,
    /// Accepted for etcdutl's sake; files are not mapped into memory
    #[arg(long, hide = true, default_value = "0")]
    initial_memory_map_size: u64,
}

/// Runs a subcommand of `snapshot`.
pub(crate) async fn run(session: &Session, command: SnapshotCommand) -> Result<()> {
    match command {
        SnapshotCommand::Save(args) => {
            let expects = "snapshot save expects one argument <filename>";
            save(session, only(&args.files, expects)?).await
        }
        SnapshotCommand::Status(args) => {
            let requires = "snapshot status requires exactly one argument";
            let file = only(&args.files, requires)?;
            let status = EtcdFile::open(file).and_then(|file| file.status());
            session.print(&Answer::SnapshotStatus(&status.map_err(failed)?))
        }
        SnapshotCommand::Restore(args) => restore_folder(args).await,
    }
}

async fn save(session: &Session, path: &Path) -> Result<()> {
    let endpoints = &session.global().endpoints;
    if endpoints.len() != 1 {
        // etcdctl's exit code for this.
        return Err(Failure::new(
            Exit::Interrupted,
            format!(
                "snapshot must be requested to one selected node, not multiple [{}]; name one with --endpoints",
                endpoints.join(" ")
            ),
        ));
    }
    let part = with_suffix(path, ".part");
    let saved = match session.global().command_timeout {
        None => fetch(session, &part, path).await,
        Some(limit) => tokio::time::timeout(limit, fetch(session, &part, path))
            .await
            .unwrap_or_else(|_| {
                let what = format!(
                    "context deadline exceeded: the backup did not arrive within {limit:?}; raise --command-timeout or leave it out"
                );
                Err(Failure::new(Exit::Interrupted, what))
            }),
    };
    let version = saved.map_err(|failure| {
        // It may not have been made.
        let _ = fs::remove_file(&part);
        match failure.exit {
            Exit::BadArgs => failure,
            // etcdctl's exit code for whatever happens while it saves.
            _ => Failure {
                exit: Exit::Interrupted,
                ..failure
            },
        }
    })?;
    let mut words = format!("Snapshot saved at {}\n", path.display());
    if !version.is_empty() {
        words += &format!("Server version {version}\n");
    }
    write_out(words.as_bytes())
}

/// Fetches a backup to `path`, by way of `part`; returns the version of the member it is of.
async fn fetch(session: &Session, part: &Path, path: &Path) -> Result<String> {
    // The backup may take as long as it takes, but an endpoint where nobody answers is found out soon.
    use kv_client::Error;
    let asked = session.client().await?.status().await;
    if let Err(error @ (Error::Timeout { .. } | Error::Unreachable { .. })) = asked {
        return Err(error.into());
    }
    let mut messages = session.patient_client().await?.snapshot().await?;
    let mut file = create(part)?;
    let mut sum = Sha256::new();
    // The last message is the sum of those before it.
    let mut last = Vec::new();
    let mut version = String::new();
    while let Some(message) = messages.next().await? {
        file.write_all(&message.blob)
            .map_err(|error| io_failed("write", part, &error))?;
        sum.update(&last);
        last = message.blob.to_vec();
        version = message.version;
    }
    if last.len() != TRAILER_BYTES || sum.finalize()[..] != last[..] {
        let what = "the backup did not arrive whole: its sha256 does not match; try again";
        return Err(Failure::new(Exit::Interrupted, what));
    }
    file.sync_all()
        .map_err(|error| io_failed("sync", part, &error))?;
    fs::rename(part, path).map_err(|error| io_failed("rename", part, &error))?;
    Ok(version)
}

async fn restore_folder(args: RestoreArgs) -> Result<()> {
    let file = only(
        &args.files,
        "snapshot restore requires exactly one argument",
    )?;
    if (args.bump_revision > 0) != args.mark_compacted {
        return Err(Failure::bad_args(
            "--mark-compacted required if --revision-bump > 0; give both --bump-revision and --mark-compacted, or neither",
        ));
    }
    let data_dir = args
        .data_dir
        .unwrap_or_else(|| format!("{}.etcd", args.name).into());
    let options = RestoreOptions {
        file: file.to_owned(),
        data_dir,
        wal_dir: args.wal_dir,
        name: args.name,
        initial_cluster: args.initial_cluster,
        initial_cluster_token: args.initial_cluster_token,
        initial_advertise_peer_urls: args.initial_advertise_peer_urls,
        storage_engine: args.storage_engine,
        skip_hash_check: args.skip_hash_check,
        revision_bump: args.bump_revision,
    };
    let restored = restore(&options)
        .await
        .map_err(|error| Failure::new(Exit::Error, format!("{error:#}")))?;
    exit::tell(format_args!(
        "restored revision {} into {}: member {:x} of cluster {:x}",
        restored.revision,
        options.data_dir.display(),
        restored.member_id,
        restored.cluster_id
    ));
    Ok(())
}

fn only<'a>(files: &'a [PathBuf], otherwise: &str) -> Result<&'a Path> {
    match files {
        [file] => Ok(file),
        _ => Err(Failure::bad_args(otherwise)),
    }
}

/// A file that only its owner may read: a backup has everything in it.
fn create(path: &Path) -> Result<File> {
    OpenOptions::new()
        .write(true)
        .create(true)
        .truncate(true)
        .mode(0o600)
        .open(path)
        .map_err(|error| io_failed("create", path, &error))
}

fn with_suffix(path: &Path, suffix: &str) -> PathBuf {
    let mut name = path.as_os_str().to_owned();
    name.push(suffix);
    name.into()
}

fn io_failed(what: &str, path: &Path, error: &std::io::Error) -> Failure {
    let text = format!("cannot {what} {}: {error}", path.display());
    Failure::new(Exit::Interrupted, text)
}

fn failed(error: kv_mvcc::Error) -> Failure {
    Failure::new(Exit::Error, error)
}
