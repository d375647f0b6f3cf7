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
    exit::{Exit, Failure, Result},
    printer::Answer,
    session::{Session, write_out},
};

/// The subcommands of `snapshot`.
#[derive(Debug, Subcommand)]
pub(crate) enum SnapshotCommand {
    /// Stores a backup of a member in a given file
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
    /// Path to the output data directory
    #[arg(long)]
    data_dir: Option<PathBuf>,
    /// Path to the log's directory (below --data-dir if none is given)
    #[arg(long)]
    wal_dir: Option<PathBuf>,
    /// Initial cluster configuration for restore bootstrap
    #[arg(long, default_value = "default=http://localhost:2380")]
    initial_cluster: String,
    /// Initial cluster token for restore bootstrap
    #[arg(long, default_value = "etcd-cluster")]
    initial_cluster_token: String,
    /// List of this member's peer URLs to advertise to the rest of the cluster
    #[arg(long, default_value = "http://localhost:2380")]
    initial_advertise_peer_urls: String,
    /// Human-readable name for this member
    #[arg(long, default_value = "default")]
    name: String,
    /// Ignore the hash at the end of the backup (required if copied from a data directory)
    #[arg(long)]
    skip_hash_check: bool,
    /// How much to increase the latest revision after restore
    #[arg(long, default_value = "0")]
    bump_revision: u64,
    /// Mark the latest revision after restore as compacted (required if --bump-revision > 0, disallowed otherwise)
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
    let client = session.patient_client().await?;
    let mut messages = client.snapshot().await?;
    let part = with_suffix(path, ".part");
    let mut file = create(&part)?;
    let mut sum = Sha256::new();
    // The last message is the sum of those before it.
    let mut last = Vec::new();
    let mut version = String::new();
    while let Some(message) = messages.next().await? {
        file.write_all(&message.blob)
            .map_err(|error| io_failed("write", &part, &error))?;
        sum.update(&last);
        last = message.blob.to_vec();
        version = message.version;
    }
    if last.len() != TRAILER_BYTES || sum.finalize()[..] != last[..] {
        let what = "the backup did not arrive whole: its sha256 does not match; try again";
        return Err(Failure::new(Exit::Interrupted, what));
    }
    file.sync_all()
        .map_err(|error| io_failed("sync", &part, &error))?;
    fs::rename(&part, path).map_err(|error| io_failed("rename", &part, &error))?;
    let mut words = format!("Snapshot saved at {}\n", path.display());
    if !version.is_empty() {
        words += &format!("Server version {version}\n");
    }
    write_out(words.as_bytes())
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
    eprintln!(
        "restored revision {} into {}: member {:x} of cluster {:x}",
        restored.revision,
        options.data_dir.display(),
        restored.member_id,
        restored.cluster_id
    );
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
