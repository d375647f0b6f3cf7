//! `compaction`: drops history up to a revision.

use clap::Args;
use kv_proto::etcdserverpb::CompactionRequest;

use crate::{
    exit::{Exit, Failure, Result},
    number::parse_int,
    session::{Session, write_out},
};

/// Flags of `compaction`.
#[derive(Args, Debug)]
pub(crate) struct CompactionArgs {
    /// The oldest revision to keep
    revision: Vec<String>,
    /// Wait for compaction to physically remove all old revisions
    #[arg(long)]
    physical: bool,
}

/// Runs `compaction`.
pub(crate) async fn run(session: &Session, args: CompactionArgs) -> Result<()> {
    let [revision] = args.revision.as_slice() else {
        return Err(Failure::bad_args("compaction command needs 1 argument"));
    };
    let revision = parse_int(revision, 10).map_err(|e| Failure::new(Exit::Error, e))?;
    let request = CompactionRequest {
        revision,
        physical: args.physical,
    };
    session.client().await?.compact(request).await?;
    write_out(format!("compacted revision {revision}\n").as_bytes())
}
