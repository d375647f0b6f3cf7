//! `defrag`: gives free space of each endpoint's store back to the file system.

use clap::Args;
use tokio::time::Instant;

use super::endpoint;
use crate::{
    exit::{self, Exit, Failure, Result},
    number,
    session::{Session, write_out},
};

/// Flags of `defrag`.
#[derive(Args, Debug)]
pub(crate) struct DefragArgs {
    /// Ask every member of the cluster, at the client URLs it advertises
    #[arg(long)]
    cluster: bool,
    #[arg(hide = true)]
    ignored: Vec<String>,
}

/// Runs `defrag`, one endpoint after the other: a member may pause while it works.
pub(crate) async fn run(session: &Session, args: DefragArgs) -> Result<()> {
    let mut failed = false;
    for endpoint in endpoint::endpoints(session, args.cluster).await? {
        let client = session.client_of(&endpoint).await?;
        let start = Instant::now();
        let result = client.defragment().await;
        let took = number::duration(start.elapsed());
        match result {
            Ok(_) => write_out(
                format!("Finished defragmenting etcd member[{endpoint}]. took {took}\n").as_bytes(),
            )?,
            Err(error) => {
                failed = true;
                let cause = exit::describe(&error);
                exit::tell(format_args!(
                    "Failed to defragment etcd member[{endpoint}]. took {took}. ({cause})"
                ));
            }
        }
    }
    if failed {
        Err(Failure::silent(Exit::Error))
    } else {
        Ok(())
    }
}
