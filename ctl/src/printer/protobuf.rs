//! The protobuf form: the encoded answer, without a newline.

use kv_proto::etcdserverpb::{ResponseHeader, WatchResponse};
use prost::Message;

use super::{Answer, auth};

/// The bytes of an answer that has them.
///
/// Leases print as their header alone and `lease revoke` as nothing: etcdctl's peculiarities, kept
/// because scripts parse them. A watch response leaves out its id and reason.
pub(super) fn print(answer: &Answer<'_>) -> Option<Vec<u8>> {
    let header = |header: &Option<ResponseHeader>| header.unwrap_or_default().encode_to_vec();
    Some(match answer {
        Answer::Get { response, .. } => response.encode_to_vec(),
        Answer::Put(response) => response.encode_to_vec(),
        Answer::Del(response) => response.encode_to_vec(),
        Answer::Txn(response) => response.encode_to_vec(),
        Answer::Members(response) => response.encode_to_vec(),
        Answer::MemberAdd { response, .. } => response.encode_to_vec(),
        Answer::MemberRemove { response, .. } => response.encode_to_vec(),
        Answer::MemberUpdate { response, .. } => response.encode_to_vec(),
        Answer::MemberPromote { response, .. } => response.encode_to_vec(),
        Answer::MoveLeader { response, .. } => response.encode_to_vec(),
        Answer::Downgrade { response, .. } => response.encode_to_vec(),
        Answer::Alarms(response) => response.encode_to_vec(),
        Answer::Auth(answer) => auth::protobuf(answer),
        Answer::Watch(response) => {
            let without = WatchResponse {
                watch_id: 0,
                cancel_reason: String::new(),
                ..(*response).clone()
            };
            without.encode_to_vec()
        }
        Answer::Grant(response) => header(&response.header),
        Answer::TimeToLive { response, .. } => header(&response.header),
        Answer::Leases(response) => header(&response.header),
        Answer::KeepAlive(response) => header(&response.header),
        Answer::Revoke { .. }
        | Answer::Health(_)
        | Answer::Status(_)
        | Answer::HashKv(_)
        | Answer::SnapshotStatus(_) => {
            return None;
        }
    })
}
