//! A large answer to a Range, encoded piece by piece as the client takes it.
//!
//! Encoding it at once would hold up the other requests of its thread, and take its size a second time until the last
//! byte is sent. So the handler leaves the answer beside an empty response, and the dispatch puts this body in its place:
//! what is sent of it is free again. Source: protobuf's encoding of RangeResponse; gRPC over HTTP/2 (length prefix, trailers).

use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll};

use ::http::{HeaderMap, HeaderValue, Response};
use bytes::{BufMut, Bytes, BytesMut};
use http_body::{Body as HttpBody, Frame, SizeHint};
use kv_proto::etcdserverpb::RangeResponse;
use kv_proto::mvccpb::KeyValue;
use parking_lot::Mutex;
use prost::Message;
use prost::encoding::{encode_varint, encoded_len_varint};
use tonic::body::Body;
use tonic::{Code, Status};

use crate::range_budget::Grant;

/// Bytes of a piece, unless one key-value pair is larger.
const PIECE_BYTES: usize = 64 << 10;
/// Field 2 of RangeResponse, length-delimited.
const TAG_KVS: u8 = 2 << 3 | 2;

/// On a request: the caller sends the response, and can do that piece by piece.
#[derive(Clone, Copy)]
pub(super) struct InPieces;

/// On a response: the answer that belongs there. Taken once.
#[derive(Clone)]
pub(super) struct LargeRange(Arc<Mutex<Option<Encoder>>>);

/// What is still to be sent.
struct Encoder {
    /// The prefix and what comes before the pairs.
    head: Bytes,
    kvs: std::vec::IntoIter<KeyValue>,
    /// What comes behind the pairs.
    tail: Bytes,
    _grant: Option<Grant>,
}

struct Pieces {
    encoder: Option<Encoder>,
    trailers: Option<HeaderMap>,
}

impl LargeRange {
    /// Takes the answer to pieces; `grant` goes with the last one.
    pub(super) fn new(
        mut response: RangeResponse,
        grant: Option<Grant>,
    ) -> Result<LargeRange, Status> {
        let kvs = std::mem::take(&mut response.kvs);
        let pairs: usize = kvs.iter().map(encoded_pair_len).sum();
        let header = RangeResponse {
            header: response.header.take(),
            ..RangeResponse::default()
        };
        // Fields 1, 2, 3 and 4 are header, pairs, more and count.
        let tail = Bytes::from(response.encode_to_vec());
        let len = header.encoded_len() + pairs + tail.len();
        let Some(len) = u32::try_from(len)
            .ok()
            .filter(|len| *len <= i32::MAX as u32)
        else {
            // What tonic says, and grpc-go in its own words: no client takes it.
            let text = format!(
                "trying to send message larger than max ({len} vs. {})",
                i32::MAX
            );
            return Err(Status::new(Code::ResourceExhausted, text));
        };
        let mut head = BytesMut::with_capacity(5 + header.encoded_len());
        head.put_u8(0);
        head.put_u32(len);
        header.encode(&mut head).expect("BytesMut grows as needed");
        Ok(LargeRange(Arc::new(Mutex::new(Some(Encoder {
            head: head.freeze(),
            kvs: kvs.into_iter(),
            tail,
            _grant: grant,
        })))))
    }

    /// Puts the answer in the place of the empty one, if the response has one beside it.
    pub(super) fn replace_body(mut response: Response<Body>) -> Response<Body> {
        let Some(large) = response.extensions_mut().remove::<LargeRange>() else {
            return response;
        };
        let encoder = large.0.lock().take();
        response.map(|_| {
            Body::new(Pieces {
                encoder,
                trailers: Some(HeaderMap::from_iter([(
                    ::http::HeaderName::from_static("grpc-status"),
                    HeaderValue::from_static("0"),
                )])),
            })
        })
    }
}

impl Encoder {
    fn next_piece(&mut self) -> Option<Bytes> {
        if !self.head.is_empty() {
            return Some(std::mem::take(&mut self.head));
        }
        let mut piece = BytesMut::new();
        while piece.len() < PIECE_BYTES
            && let Some(kv) = self.kvs.next()
        {
            piece.reserve(encoded_pair_len(&kv).max(PIECE_BYTES));
            piece.put_u8(TAG_KVS);
            encode_varint(kv.encoded_len() as u64, &mut piece);
            kv.encode_raw(&mut piece);
        }
        if piece.is_empty() {
            piece.put_slice(&std::mem::take(&mut self.tail));
        }
        (!piece.is_empty()).then(|| piece.freeze())
    }
}

impl HttpBody for Pieces {
    type Data = Bytes;
    type Error = Status;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        _: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, Status>>> {
        if let Some(piece) = self.encoder.as_mut().and_then(Encoder::next_piece) {
            return Poll::Ready(Some(Ok(Frame::data(piece))));
        }
        self.encoder = None;
        let trailers = self.trailers.take();
        Poll::Ready(trailers.map(|trailers| Ok(Frame::trailers(trailers))))
    }

    fn is_end_stream(&self) -> bool {
        self.trailers.is_none()
    }

    fn size_hint(&self) -> SizeHint {
        SizeHint::default()
    }
}

fn encoded_pair_len(kv: &KeyValue) -> usize {
    let len = kv.encoded_len();
    1 + encoded_len_varint(len as u64) + len
}

#[cfg(test)]
mod tests {
    use std::task::Waker;

    use kv_proto::etcdserverpb::ResponseHeader;

    use super::*;

    fn check(response: RangeResponse) {
        let large = LargeRange::new(response.clone(), None).unwrap();
        let mut pieces = Pieces {
            encoder: large.0.lock().take(),
            trailers: Some(HeaderMap::new()),
        };
        let mut sent = Vec::new();
        let mut ended = false;
        let mut context = Context::from_waker(Waker::noop());
        while let Poll::Ready(Some(frame)) = Pin::new(&mut pieces).poll_frame(&mut context) {
            match frame.unwrap().into_data() {
                Ok(data) => sent.extend_from_slice(&data),
                Err(_) => ended = true,
            }
        }
        assert!(ended && pieces.is_end_stream());
        let expected = response.encode_to_vec();
        assert_eq!(sent[0], 0);
        assert_eq!(sent[1..5], (expected.len() as u32).to_be_bytes());
        assert!(sent[5..] == expected, "not what a protobuf encoder writes");
    }

    #[test]
    fn pieces_are_the_message_that_an_encoder_writes() {
        check(RangeResponse::default());
        let header = Some(ResponseHeader {
            cluster_id: u64::MAX,
            revision: 7,
            ..Default::default()
        });
        let kv = |n: usize| KeyValue {
            key: format!("key {n}").into(),
            value: vec![n as u8; n * 37 % 9000].into(),
            create_revision: n as i64,
            mod_revision: 1,
            version: 1,
            lease: -1,
        };
        check(RangeResponse {
            header,
            kvs: (0..1000).map(kv).collect(),
            more: true,
            count: 70_000,
        });
        check(RangeResponse {
            header,
            kvs: vec![KeyValue::default(), kv(5)],
            more: false,
            count: 0,
        });
    }
}
