//! Keys and values: range, put, delete, transaction, compaction.

use kv_proto::etcdserverpb::{
    CompactionRequest, CompactionResponse, DeleteRangeRequest, DeleteRangeResponse, PutRequest,
    PutResponse, RangeRequest, RangeResponse, TxnRequest, TxnResponse, kv_client::KvClient,
    request_op::Request as Op,
};
use tonic::transport::Channel;

use crate::{Client, error::Result, retry::Repeat};

impl Client {
    fn kv(&self, channel: Channel) -> KvClient<Channel> {
        KvClient::new(channel)
            .max_encoding_message_size(self.config().request_bytes_max)
            .max_decoding_message_size(self.config().response_bytes_max)
    }

    /// Reads the keys of a range.
    pub async fn range(&self, request: RangeRequest) -> Result<RangeResponse> {
        self.call(Repeat::Always, request, |c, q| async move {
            self.kv(c).range(q).await
        })
        .await
    }

    /// Reads the keys of a range in pieces and joins them; header and count are those of the last piece.
    pub async fn range_stream(&self, request: RangeRequest) -> Result<RangeResponse> {
        self.call(Repeat::Always, request, |c, q| async move {
            let mut stream = self.kv(c).range_stream(q).await?.into_inner();
            let mut joined = RangeResponse::default();
            while let Some(piece) = stream.message().await? {
                let Some(piece) = piece.range_response else {
                    continue;
                };
                joined.header = piece.header.or(joined.header);
                joined.more = piece.more;
                joined.count = piece.count.max(joined.count);
                joined.kvs.extend(piece.kvs);
            }
            Ok(tonic::Response::new(joined))
        })
        .await
    }

    /// Writes one key.
    pub async fn put(&self, request: PutRequest) -> Result<PutResponse> {
        self.call(Repeat::IfNotSent, request, |c, q| async move {
            self.kv(c).put(q).await
        })
        .await
    }

    /// Deletes the keys of a range.
    pub async fn delete_range(&self, request: DeleteRangeRequest) -> Result<DeleteRangeResponse> {
        self.call(Repeat::IfNotSent, request, |c, q| async move {
            self.kv(c).delete_range(q).await
        })
        .await
    }

    /// Runs a transaction; it counts as a read if neither branch can write.
    pub async fn txn(&self, request: TxnRequest) -> Result<TxnResponse> {
        let repeat = if only_reads(&request) {
            Repeat::Always
        } else {
            Repeat::IfNotSent
        };
        self.call(
            repeat,
            request,
            |c, q| async move { self.kv(c).txn(q).await },
        )
        .await
    }

    /// Drops history up to a revision.
    pub async fn compact(&self, request: CompactionRequest) -> Result<CompactionResponse> {
        self.call(Repeat::IfNotSent, request, |c, q| async move {
            self.kv(c).compact(q).await
        })
        .await
    }

    /// The key and value of one key now, if it exists.
    pub async fn get(
        &self,
        key: impl Into<bytes::Bytes>,
    ) -> Result<Option<kv_proto::mvccpb::KeyValue>> {
        let request = RangeRequest {
            key: key.into(),
            ..Default::default()
        };
        Ok(self.range(request).await?.kvs.into_iter().next())
    }
}

fn only_reads(request: &TxnRequest) -> bool {
    request
        .success
        .iter()
        .chain(&request.failure)
        .all(|op| match &op.request {
            Some(Op::RequestRange(_)) => true,
            Some(Op::RequestTxn(nested)) => only_reads(nested),
            Some(Op::RequestPut(_) | Op::RequestDeleteRange(_)) => false,
            None => true,
        })
}
