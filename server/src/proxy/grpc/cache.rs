//! Answers of reads, kept for serializable reads that ask the same.
//!
//! A serializable read may be old, but not older than a write that went through this proxy: a write drops what it touches,
//! before it is sent and when it is answered, and an answer that was asked for before a write is not kept after it.
//! Answers at a given revision never change; they go when the revision is compacted through this proxy. A change of users or
//! roles through this proxy drops everything, and what is kept for [`AGE_MAX`] is asked for again.
//! Source: etcd 3.7, server/proxy/grpcproxy/cache.

use std::collections::{BTreeMap, HashMap};
use std::sync::Arc;
use std::time::{Duration, Instant};

use bytes::Bytes;
use kv_proto::etcdserverpb::{RangeRequest, RangeResponse};
use kv_proto::key_range::KeyRange;
use parking_lot::Mutex;
use prost::Message;

use super::metrics::Metrics;
use super::upstream::Caller;

/// Answers that are kept. Source: etcd 3.7.
const ENTRIES_MAX: usize = 2048;
/// A larger answer is not kept, so that all together stay below 256 MiB.
const ANSWER_BYTES_MAX: usize = 128 * 1024;

/// An older answer is asked for again: the caller's permissions may have been taken elsewhere.
const AGE_MAX: Duration = Duration::from_secs(10);

/// Answers by question.
pub(super) struct Cache {
    kept: Mutex<Kept>,
    metrics: Arc<Metrics>,
}

#[derive(Default)]
struct Kept {
    entries: HashMap<Question, Entry>,
    /// Questions by their last use.
    used: BTreeMap<u64, Question>,
    clock: u64,
    /// Counts the writes.
    writes: u64,
}

#[derive(Clone, PartialEq, Eq, Hash)]
struct Question {
    caller: Caller,
    /// The encoded request, as if it were serializable.
    request: Bytes,
}

struct Entry {
    answer: RangeResponse,
    key: Bytes,
    range_end: Bytes,
    revision: i64,
    since: Instant,
    used: u64,
}

/// The moment a read began.
#[derive(Clone, Copy)]
pub(super) struct Moment(u64);

impl Cache {
    pub(super) fn new(metrics: Arc<Metrics>) -> Cache {
        Cache {
            kept: Mutex::default(),
            metrics,
        }
    }

    /// Now, for a read that is about to be sent.
    pub(super) fn moment(&self) -> Moment {
        Moment(self.kept.lock().writes)
    }

    /// The kept answer to a serializable read.
    pub(super) fn get(&self, caller: &Caller, request: &RangeRequest) -> Option<RangeResponse> {
        let question = Question::new(caller, request);
        let kept = &mut *self.kept.lock();
        let entry = kept.entries.get_mut(&question);
        let Some(entry) = entry.filter(|entry| entry.since.elapsed() < AGE_MAX) else {
            self.metrics.cache_misses.inc();
            return None;
        };
        kept.clock += 1;
        kept.used.remove(&entry.used);
        entry.used = kept.clock;
        kept.used.insert(entry.used, question);
        self.metrics.cache_hits.inc();
        Some(entry.answer.clone())
    }

    /// Keeps the answer to a read that began at `moment`, unless there was a write since.
    pub(super) fn add(
        &self,
        moment: Moment,
        caller: &Caller,
        request: &RangeRequest,
        answer: &RangeResponse,
    ) {
        if answer.encoded_len() > ANSWER_BYTES_MAX {
            return;
        }
        let question = Question::new(caller, request);
        let kept = &mut *self.kept.lock();
        if kept.writes != moment.0 {
            return;
        }
        kept.clock += 1;
        let entry = Entry {
            answer: answer.clone(),
            key: request.key.clone(),
            range_end: request.range_end.clone(),
            revision: request.revision,
            since: Instant::now(),
            used: kept.clock,
        };
        kept.used.insert(entry.used, question.clone());
        if let Some(before) = kept.entries.insert(question, entry) {
            kept.used.remove(&before.used);
        }
        if kept.entries.len() > ENTRIES_MAX
            && let Some((_, oldest)) = kept.used.pop_first()
        {
            kept.entries.remove(&oldest);
        }
        self.metrics.cache_keys.set(kept.entries.len() as i64);
    }

    /// Drops what a write of these keys changes.
    pub(super) fn invalidate(&self, key: &Bytes, range_end: &Bytes) {
        let written = KeyRange::new(key.clone(), range_end.clone());
        self.drop_if(|entry| {
            let read = KeyRange::new(entry.key.clone(), entry.range_end.clone());
            entry.revision <= 0 && overlap(&written, &read)
        });
    }

    /// Drops what any write may change.
    pub(super) fn invalidate_all(&self) {
        self.drop_if(|entry| entry.revision <= 0);
    }

    /// Drops everything: what callers may read has changed.
    pub(super) fn clear(&self) {
        self.drop_if(|_| true);
    }

    /// Drops what is older than `revision`.
    pub(super) fn compact(&self, revision: i64) {
        self.drop_if(|entry| entry.revision > 0 && entry.revision < revision);
    }

    fn drop_if(&self, is_void: impl Fn(&Entry) -> bool) {
        let kept = &mut *self.kept.lock();
        kept.writes += 1;
        let used = &mut kept.used;
        kept.entries.retain(|_, entry| {
            let void = is_void(entry);
            if void {
                used.remove(&entry.used);
            }
            !void
        });
        self.metrics.cache_keys.set(kept.entries.len() as i64);
    }
}

impl Question {
    fn new(caller: &Caller, request: &RangeRequest) -> Question {
        let request = RangeRequest {
            serializable: true,
            ..request.clone()
        };
        Question {
            caller: caller.clone(),
            request: request.encode_to_vec().into(),
        }
    }
}

/// First key, and the first key behind; `None` for no end.
fn bounds(range: &KeyRange) -> (Bytes, Option<Bytes>) {
    match range {
        KeyRange::Single(key) => (key.clone(), Some([&key[..], b"\0"].concat().into())),
        KeyRange::Bounded { start, end } => (start.clone(), Some(end.clone())),
        KeyRange::From(start) => (start.clone(), None),
    }
}

fn overlap(a: &KeyRange, b: &KeyRange) -> bool {
    let ((a_start, a_end), (b_start, b_end)) = (bounds(a), bounds(b));
    a_end.is_none_or(|end| b_start < end) && b_end.is_none_or(|end| a_start < end)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn read(key: &'static str, range_end: &'static str, revision: i64) -> RangeRequest {
        RangeRequest {
            key: key.into(),
            range_end: range_end.into(),
            revision,
            ..Default::default()
        }
    }

    fn cache(reads: &[RangeRequest]) -> Cache {
        let cache = Cache::new(Arc::new(Metrics::new()));
        for request in reads {
            let answer = RangeResponse::default();
            cache.add(cache.moment(), &Caller::default(), request, &answer);
        }
        cache
    }

    fn kept(cache: &Cache, request: &RangeRequest) -> bool {
        cache.get(&Caller::default(), request).is_some()
    }

    #[test]
    fn a_write_drops_what_it_touches_and_nothing_else() {
        let reads = [
            read("b", "", 0),
            read("a", "c", 0),
            read("b", "\0", 0),
            read("c", "", 0),
            read("b", "", 7),
        ];
        let cache = cache(&reads);
        cache.invalidate(&"b".into(), &Bytes::new());
        let left: Vec<bool> = reads.iter().map(|read| kept(&cache, read)).collect();
        assert_eq!(left, [false, false, false, true, true]);
        cache.invalidate(&"a".into(), &"\0".into());
        assert!(!kept(&cache, &reads[3]));
        cache.compact(7);
        assert!(kept(&cache, &reads[4]));
        cache.compact(8);
        assert!(!kept(&cache, &reads[4]));
    }

    #[test]
    fn an_answer_from_before_a_write_is_not_kept_after_it() {
        let cache = cache(&[]);
        let (request, answer) = (read("a", "", 0), RangeResponse::default());
        let moment = cache.moment();
        cache.invalidate(&"a".into(), &Bytes::new());
        cache.add(moment, &Caller::default(), &request, &answer);
        assert!(!kept(&cache, &request));
    }

    #[test]
    fn another_caller_gets_nothing_of_it() {
        let request = read("a", "", 0);
        let cache = cache(std::slice::from_ref(&request));
        let mut headers = http::HeaderMap::new();
        headers.insert("token", "other".parse().unwrap());
        assert!(cache.get(&Caller::of(&headers), &request).is_none());
        assert!(kept(&cache, &request));
    }

    #[test]
    fn the_least_used_go_first() {
        let cache = cache(&[]);
        let add = |n: i64| {
            let answer = RangeResponse::default();
            let request = read("a", "", n + 1);
            cache.add(cache.moment(), &Caller::default(), &request, &answer);
        };
        (0..ENTRIES_MAX as i64).for_each(add);
        assert!(kept(&cache, &read("a", "", 1)));
        add(ENTRIES_MAX as i64);
        assert!(kept(&cache, &read("a", "", 1)));
        assert!(!kept(&cache, &read("a", "", 2)));
        let large = RangeResponse {
            kvs: vec![kv_proto::mvccpb::KeyValue {
                value: vec![0; ANSWER_BYTES_MAX].into(),
                ..Default::default()
            }],
            ..Default::default()
        };
        let request = read("large", "", 0);
        cache.add(cache.moment(), &Caller::default(), &request, &large);
        assert!(!kept(&cache, &request));
    }
}
