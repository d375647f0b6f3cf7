//! Who votes: the first configuration of a cluster.
//!
//! Adding, promoting and removing members, and handing over leadership, need guards that openraft
//! lacks (a voter added before it runs stops a cluster of one; a transfer to a dead member freezes
//! the leader). They are not part of this crate yet, and neither are the calls.

use std::collections::BTreeSet;

use openraft::errors::{Fatal, InitializeError, RaftError};

use crate::error::{Error, Result};
use crate::types::Raft;

/// Writes the first entry of a new cluster, whose members all call this with the same `voters`.
///
/// A cluster of one elects its member at once.
pub(crate) async fn initialize(raft: &Raft, voters: &[u64]) -> Result<()> {
    let member_id = *raft.node_id();
    let ids: BTreeSet<u64> = voters.iter().copied().collect();
    let alone = ids.len() == 1;
    raft.initialize(ids).await.map_err(|error| match error {
        RaftError::APIError(InitializeError::NotAllowed(_)) => Error::AlreadyInitialized,
        RaftError::APIError(InitializeError::NotInMembers(_)) => Error::NotAVoter {
            member_id,
            voters: voters.to_vec(),
        },
        RaftError::Fatal(fatal) => fatal_error(fatal),
    })?;
    if alone {
        elect(raft).await?;
    }
    Ok(())
}

/// Elects this member now if it is the only voter; otherwise time decides.
pub(crate) async fn elect_if_alone(raft: &Raft) -> Result<()> {
    let member_id = *raft.node_id();
    if raft.voter_ids().eq([member_id]) {
        elect(raft).await?;
    }
    Ok(())
}

async fn elect(raft: &Raft) -> Result<()> {
    raft.trigger().elect(false).await.map_err(fatal_error)
}

pub(crate) fn fatal_error(fatal: Fatal<crate::types::TypeConfig>) -> Error {
    match fatal {
        Fatal::Stopped => Error::Stopped,
        other => Error::Fatal(other.to_string()),
    }
}
