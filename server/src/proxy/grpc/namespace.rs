//! Keys of the clients below a prefix of the cluster's keys.
//!
//! What is asked for gets the prefix, what is answered loses it. Source: etcd 3.7, client/v3/namespace.

use bytes::Bytes;
use kv_proto::etcdserverpb::request_op::Request as Op;
use kv_proto::etcdserverpb::response_op::Response as OpResponse;
use kv_proto::etcdserverpb::{
    DeleteRangeRequest, DeleteRangeResponse, PutRequest, PutResponse, RangeRequest, RangeResponse,
    RequestOp, ResponseOp, TxnRequest, TxnResponse,
};
use kv_proto::mvccpb::{Event, KeyValue};

/// A prefix; empty for none.
#[derive(Clone, Debug)]
pub(super) struct Namespace(Bytes);

impl Namespace {
    pub(super) fn new(prefix: &str) -> Namespace {
        Namespace(Bytes::copy_from_slice(prefix.as_bytes()))
    }

    pub(super) fn is_empty(&self) -> bool {
        self.0.is_empty()
    }

    fn key(&self, key: &mut Bytes) {
        if !self.is_empty() {
            *key = [&self.0[..], &key[..]].concat().into();
        }
    }

    /// A key and the end of its range.
    pub(super) fn range(&self, key: &mut Bytes, range_end: &mut Bytes) {
        if self.is_empty() {
            return;
        }
        self.key(key);
        match &range_end[..] {
            [] => {}
            // To the end of all keys: here, of those with the prefix.
            [0] => *range_end = self.end(),
            _ => self.key(range_end),
        }
    }

    /// The first key behind all with the prefix; a zero byte if there is none.
    fn end(&self) -> Bytes {
        let mut end = self.0.to_vec();
        while let Some(last) = end.pop() {
            if last < u8::MAX {
                end.push(last + 1);
                return end.into();
            }
        }
        Bytes::from_static(b"\0")
    }

    pub(super) fn range_request(&self, request: &mut RangeRequest) {
        self.range(&mut request.key, &mut request.range_end);
    }

    pub(super) fn put_request(&self, request: &mut PutRequest) {
        self.key(&mut request.key);
    }

    pub(super) fn delete_request(&self, request: &mut DeleteRangeRequest) {
        self.range(&mut request.key, &mut request.range_end);
    }

    pub(super) fn txn_request(&self, request: &mut TxnRequest) {
        if self.is_empty() {
            return;
        }
        for compare in &mut request.compare {
            self.range(&mut compare.key, &mut compare.range_end);
        }
        let operations = request.success.iter_mut().chain(&mut request.failure);
        for RequestOp { request } in operations {
            match request {
                Some(Op::RequestRange(range)) => self.range_request(range),
                Some(Op::RequestPut(put)) => self.put_request(put),
                Some(Op::RequestDeleteRange(delete)) => self.delete_request(delete),
                Some(Op::RequestTxn(txn)) => self.txn_request(txn),
                None => {}
            }
        }
    }

    fn strip(&self, key: &mut Bytes) {
        if key.starts_with(&self.0) {
            *key = key.slice(self.0.len()..);
        }
    }

    fn strip_kv(&self, kv: &mut KeyValue) {
        self.strip(&mut kv.key);
    }

    pub(super) fn range_response(&self, response: &mut RangeResponse) {
        response.kvs.iter_mut().for_each(|kv| self.strip_kv(kv));
    }

    pub(super) fn put_response(&self, response: &mut PutResponse) {
        response.prev_kv.iter_mut().for_each(|kv| self.strip_kv(kv));
    }

    pub(super) fn delete_response(&self, response: &mut DeleteRangeResponse) {
        let pairs = response.prev_kvs.iter_mut();
        pairs.for_each(|kv| self.strip_kv(kv));
    }

    pub(super) fn txn_response(&self, response: &mut TxnResponse) {
        if self.is_empty() {
            return;
        }
        for ResponseOp { response } in &mut response.responses {
            match response {
                Some(OpResponse::ResponseRange(range)) => self.range_response(range),
                Some(OpResponse::ResponsePut(put)) => self.put_response(put),
                Some(OpResponse::ResponseDeleteRange(delete)) => self.delete_response(delete),
                Some(OpResponse::ResponseTxn(txn)) => self.txn_response(txn),
                None => {}
            }
        }
    }

    pub(super) fn event(&self, event: &mut Event) {
        let pairs = event.kv.iter_mut().chain(&mut event.prev_kv);
        pairs.for_each(|kv| self.strip_kv(kv));
    }

    /// Those of the keys that are in the namespace, as its clients know them.
    pub(super) fn keys(&self, keys: Vec<Bytes>) -> Vec<Bytes> {
        let mut own: Vec<Bytes> = keys
            .into_iter()
            .filter(|key| key.starts_with(&self.0))
            .collect();
        own.iter_mut().for_each(|key| self.strip(key));
        own
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn range(prefix: &[u8], key: &'static [u8], end: &'static [u8]) -> (Bytes, Bytes) {
        let (mut key, mut end) = (Bytes::from_static(key), Bytes::from_static(end));
        Namespace(Bytes::copy_from_slice(prefix)).range(&mut key, &mut end);
        (key, end)
    }

    #[test]
    fn ranges_stay_within_the_prefix() {
        assert_eq!(range(b"p/", b"k", b""), ("p/k".into(), "".into()));
        assert_eq!(range(b"p/", b"k", b"l"), ("p/k".into(), "p/l".into()));
        assert_eq!(range(b"p/", b"k", b"\0"), ("p/k".into(), "p0".into()));
        let (key, end) = range(b"a\xff", b"\0", b"\0");
        assert_eq!((&key[..], &end[..]), (&b"a\xff\0"[..], &b"b"[..]));
        assert_eq!(range(b"\xff", b"k", b"\0").1, "\0");
        assert_eq!(range(b"", b"k", b"\0"), ("k".into(), "\0".into()));
    }

    #[test]
    fn keys_of_others_are_left_out() {
        let namespace = Namespace::new("p/");
        let keys = vec!["p/a".into(), "q/b".into(), "p/".into()];
        assert_eq!(namespace.keys(keys), ["a", ""]);
    }
}
