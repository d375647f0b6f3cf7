//! What a member tells its cluster once it runs: its name and its client URLs.

use std::sync::Arc;
use std::time::Duration;

use kv_proto::command::Body;
use kv_proto::commandpb::MemberPublish;
use tokio::sync::oneshot;

use crate::config::Url;
use crate::member::Member;

/// Pause after an attempt that failed; the attempt itself waits for a leader.
const PAUSE: Duration = Duration::from_millis(100);

/// Publishes this member's name and client URLs until it succeeds, then says so.
pub(crate) async fn publish(member: Arc<Member>, incarnation: u64, published: oneshot::Sender<()>) {
    let text = |urls: &[Url]| urls.iter().map(ToString::to_string).collect();
    let request = MemberPublish {
        member_id: member.id,
        name: member.config.name.clone(),
        peer_urls: text(&member.config.initial_advertise_peer_urls),
        client_urls: text(&member.config.advertise_client_urls),
        incarnation,
    };
    loop {
        let body = Body::MemberPublish(request.clone());
        let proposed = tokio::select! {
            proposed = member.proposer.propose(body) => proposed.map(drop),
            () = in_table(&member, &request) => Ok(()),
            () = member.stopping.cancelled() => return,
        };
        match proposed {
            Ok(()) => break,
            // Publishing twice is the same as once.
            Err(error) => {
                tracing::warn!(%error, "could not publish this member to its cluster yet");
                tokio::time::sleep(PAUSE).await;
            }
        }
    }
    tracing::info!(name = request.name, "published this member to its cluster");
    // Nobody waits any more if it took long.
    let _ = published.send(());
}

/// Waits until entries were applied and the member table shows what is to be published.
///
/// A member that is being caught up may find its own entry in the snapshot: then nothing else answers the proposal.
async fn in_table(member: &Member, published: &MemberPublish) {
    let mut applied = member.node.watch_applied();
    while applied.changed().await.is_ok() {
        let shown = member.cluster.member(member.id);
        if shown.is_some_and(|row| {
            row.name == published.name && row.client_urls == published.client_urls
        }) {
            return;
        }
    }
    std::future::pending().await
}
