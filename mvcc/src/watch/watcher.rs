//! One watcher: what it asked for and how far it is.

use kv_proto::etcdserverpb::WatchCreateRequest;
use kv_proto::etcdserverpb::watch_create_request::FilterType;
use kv_proto::key_range::KeyRange;
use kv_proto::mvccpb::Event;
use kv_proto::mvccpb::event::EventType;

use super::event::PrevKv;
use super::hub::Cursor;

/// A request for a new watcher.
#[derive(Clone, Debug)]
pub struct WatchCreate {
    /// The keys to watch.
    pub range: KeyRange,
    /// First revision to deliver; 0 means what comes after the creation.
    pub start_revision: i64,
    /// The watcher's id; 0 lets the stream choose.
    pub watch_id: i64,
    /// Whether an idle watcher is told the revision now and then.
    pub progress_notify: bool,
    /// Whether events carry the pair before the change.
    pub prev_kv: PrevKv,
    /// Which kinds of event are left out.
    pub filters: EventFilters,
    /// Whether a large response may be split.
    pub fragment: Fragment,
}

impl WatchCreate {
    /// Reads a client's request. An empty key means the key `"\0"`; unknown filters are ignored.
    pub fn from_request(request: &WatchCreateRequest) -> WatchCreate {
        let key = if request.key.is_empty() {
            b"\0".as_slice().into()
        } else {
            request.key.clone()
        };
        let asks = |filter: FilterType| request.filters.contains(&(filter as i32));
        WatchCreate {
            range: KeyRange::new(key, request.range_end.clone()),
            start_revision: request.start_revision,
            watch_id: request.watch_id,
            progress_notify: request.progress_notify,
            prev_kv: if request.prev_kv {
                PrevKv::Keep
            } else {
                PrevKv::Drop
            },
            filters: EventFilters {
                no_put: asks(FilterType::Noput),
                no_delete: asks(FilterType::Nodelete),
            },
            fragment: if request.fragment {
                Fragment::Allowed
            } else {
                Fragment::Never
            },
        }
    }
}

/// The kinds of event a watcher does not want.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
pub struct EventFilters {
    /// Leave out puts.
    pub no_put: bool,
    /// Leave out deletes.
    pub no_delete: bool,
}

impl EventFilters {
    pub(super) fn pass(self, event: &Event) -> bool {
        if event.r#type == EventType::Delete as i32 {
            !self.no_delete
        } else {
            !self.no_put
        }
    }
}

/// Whether responses that exceed the request limit are split.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Fragment {
    /// Split them; all parts but the last say so.
    Allowed,
    /// Send them whole, whatever their size.
    Never,
}

/// Which events a watcher gets, in which form: watchers of one range and one form share their batches.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(super) struct Form {
    pub(super) prev: PrevKv,
    pub(super) filters: EventFilters,
}

/// A registered watcher of a stream.
#[derive(Debug)]
pub(super) struct Watcher {
    pub(super) id: i64,
    /// Tells this watcher from a later one with the same id.
    pub(super) serial: u64,
    pub(super) form: Form,
    pub(super) fragment: Fragment,
    pub(super) progress_notify: bool,
    /// The start revision asked for.
    pub(super) start_revision: i64,
    /// Everything below `cursor.next` was delivered. While the watcher is live, the stream's position may
    /// be further.
    pub(super) cursor: Cursor,
    /// Whether the watcher is where its stream is, and served from the ring with it.
    pub(super) live: bool,
    /// Whether it was sent events since the last progress tick.
    pub(super) sent_since_tick: bool,
}
