//! Reads back all that is stored, slowly, so that damage is known before someone needs the value.
//!
//! A start reads no values, and a damaged one would show itself only to whoever asks for it. After the start, and then
//! once a day, everything is read in slices with pauses. Damage raises CORRUPT for this member, which stops writes until
//! the member is replaced and the alarm disarmed: equal members no longer are.

use std::sync::Arc;
use std::time::Duration;

use kv_mvcc::ScrubPosition;
use kv_proto::etcdserverpb::AlarmType;
use tokio::time::Instant;

use crate::member::Member;

/// Revisions read at a time.
const SLICE_REVISIONS: usize = 256;
/// The pauses are this many times as long as the reading.
const REST: u32 = 9;
/// No pause is shorter: reading from memory must not keep a core busy.
const PAUSE_MIN: Duration = Duration::from_millis(2);
/// Time from the start to the first slice, which the start needs for itself.
const DELAY: Duration = Duration::from_secs(2);
/// Time between the end of one round and the next.
const PERIOD: Duration = Duration::from_secs(24 * 60 * 60);

/// Reads round after round until the member stops, or damage is found.
pub(crate) async fn run(member: Arc<Member>) {
    let rounds = async {
        tokio::time::sleep(DELAY).await;
        while round(&member, PAUSE_MIN).await {
            tokio::time::sleep(PERIOD).await;
        }
    };
    tokio::select! {
        () = rounds => {}
        () = member.stopping.cancelled() => {}
    }
}

/// Reads everything once; whether it was good.
async fn round(member: &Member, pause_min: Duration) -> bool {
    let begun = Instant::now();
    let mut revisions = 0;
    let mut next = Some(ScrubPosition::default());
    while let Some(from) = next {
        let slice_begun = Instant::now();
        let store = member.store.clone();
        let slice = tokio::task::spawn_blocking(move || store.scrub(&from, SLICE_REVISIONS));
        match slice.await {
            Ok(Ok(progress)) => {
                revisions += progress.checked;
                next = progress.next;
            }
            Ok(Err(error @ kv_mvcc::Error::Damage { .. })) => {
                tracing::error!(%error, "stored data is damaged; replace this member");
                member.raise(AlarmType::Corrupt).await;
                return false;
            }
            // The disk or the engine: whoever commits next stops the member if it stays so.
            Ok(Err(error)) => {
                tracing::warn!(%error, "cannot read back what is stored");
                return true;
            }
            // The member stops.
            Err(_) => return true,
        }
        tokio::time::sleep((slice_begun.elapsed() * REST).max(pause_min)).await;
    }
    tracing::info!(
        revisions,
        took_ms = begun.elapsed().as_millis() as u64,
        "read back all that is stored and found it good"
    );
    true
}
