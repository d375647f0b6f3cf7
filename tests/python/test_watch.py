"""Watches: callbacks, iterators, history, previous pairs, filters, progress, cancel, compaction."""

import itertools
import queue

import grpc
import pytest
from etcd3 import etcdrpc, exceptions
from etcd3.events import DeleteEvent, PutEvent

EVENT_LIMIT_SECS = 20


class Recorder:
    """A watch callback that keeps what it is given."""

    def __init__(self):
        self.responses = queue.Queue()
        self._events = []

    def __call__(self, response):
        self.responses.put(response)

    def response(self):
        return self.responses.get(timeout=EVENT_LIMIT_SECS)

    def events(self, count):
        """The next `count` events, however they are packed into responses."""
        while len(self._events) < count:
            response = self.response()
            if isinstance(response, Exception):
                raise response
            self._events += response.events
        taken, self._events = self._events[:count], self._events[count:]
        return taken


class RawWatch:
    """One watch stream without etcd3's bookkeeping, to see every answer."""

    def __init__(self, client):
        self._requests = queue.Queue()
        self._answers = etcdrpc.WatchStub(client.channel).Watch(
            iter(self._requests.get, None), timeout=client.timeout
        )

    def send(self, **fields):
        self._requests.put(etcdrpc.WatchRequest(**fields))

    def answer(self):
        return next(self._answers)

    def close(self):
        self._requests.put(None)


@pytest.fixture
def raw_watch(client):
    watch = RawWatch(client)
    yield watch
    watch.close()


def summary(events):
    return [(type(event), event.key, event.value) for event in events]


def test_callback_sees_puts_and_deletes(client, prefix):
    seen = Recorder()
    key = (prefix + "key").encode()
    client.add_watch_callback(key, seen)

    client.put(key, "1")
    client.put(key, "2")
    client.delete(key)

    events = seen.events(3)
    assert summary(events) == [(PutEvent, key, b"1"), (PutEvent, key, b"2"), (DeleteEvent, key, b"")]
    assert [event.version for event in events] == [1, 2, 0]
    revisions = [event.mod_revision for event in events]
    assert revisions == list(range(revisions[0], revisions[0] + 3))


def test_response_header_has_the_revision_of_the_event(client, prefix):
    seen = Recorder()
    client.add_watch_callback(prefix + "key", seen)

    revision = client.put(prefix + "key", "1").header.revision

    response = seen.response()
    assert response.header.revision == revision
    assert [event.mod_revision for event in response.events] == [revision]


def test_prefix_watch_sees_only_keys_below(client, prefix):
    seen = Recorder()
    client.add_watch_prefix_callback(prefix, seen)

    client.put(prefix[:-1], "beside")
    client.put(prefix + "a", "1")
    client.put(prefix[:-1] + "0", "behind")
    client.put(prefix + "b", "2")

    assert [event.value for event in seen.events(2)] == [b"1", b"2"]


def test_range_watch_excludes_its_end(client, prefix):
    seen = Recorder()
    client.add_watch_callback(prefix + "b", seen, range_end=prefix + "d")

    for name in "abcd":
        client.put(prefix + name, name)
    client.put(prefix + "b", "fence")

    assert [event.value for event in seen.events(3)] == [b"b", b"c", b"fence"]


def test_transaction_arrives_as_one_response(client, prefix):
    seen = Recorder()
    client.add_watch_prefix_callback(prefix, seen)
    put = client.transactions.put

    client.transaction(compare=[], success=[put(f"{prefix}{i}", str(i)) for i in range(50)], failure=[])

    response = seen.response()
    assert [event.value for event in response.events] == [str(i).encode() for i in range(50)]
    assert {event.mod_revision for event in response.events} == {response.header.revision}


def test_previous_pair_is_there_when_asked_for(client, prefix):
    with_previous, without = Recorder(), Recorder()
    client.put(prefix + "key", "1")
    client.add_watch_callback(prefix + "key", with_previous, prev_kv=True)
    client.add_watch_callback(prefix + "key", without)

    client.put(prefix + "key", "2")
    client.delete(prefix + "key")
    client.put(prefix + "key", "3")

    events = with_previous.events(3)
    assert [(event.prev_value, event.prev_version) for event in events] == [(b"1", 1), (b"2", 2), (b"", 0)]
    assert [event.prev_value for event in without.events(3)] == [b"", b"", b""]


def test_filters_leave_events_out(client, prefix):
    no_puts, no_deletes = Recorder(), Recorder()
    filters = etcdrpc.WatchCreateRequest.FilterType
    # etcd3's own argument cannot set a repeated field.
    for watch_filter, seen in [(filters.Value("NOPUT"), no_puts), (filters.Value("NODELETE"), no_deletes)]:
        watch = RawWatch(client)
        watch.send(create_request=etcdrpc.WatchCreateRequest(key=prefix.encode(), filters=[watch_filter]))
        assert watch.answer().created
        seen.watch = watch

    client.put(prefix, "1")
    client.delete(prefix)
    client.put(prefix, "2")
    client.delete(prefix)

    deletes, puts = [], []
    while len(deletes) < 2:
        deletes += no_puts.watch.answer().events
    while len(puts) < 2:
        puts += no_deletes.watch.answer().events
    assert [event.type for event in deletes] == [1, 1]
    assert [event.kv.value for event in puts] == [b"1", b"2"]
    no_puts.watch.close()
    no_deletes.watch.close()


def test_history_comes_before_what_is_new(client, prefix):
    first = client.put(prefix + "key", "0").header.revision
    for i in range(1, 200):
        client.put(prefix + "key", str(i))
    seen = Recorder()

    client.add_watch_callback(prefix + "key", seen, start_revision=first)
    client.put(prefix + "key", "200")

    assert [event.value for event in seen.events(201)] == [str(i).encode() for i in range(201)]


def test_future_start_revision_waits_for_it(client, prefix):
    seen = Recorder()
    now = client.put(prefix + "key", "0").header.revision
    client.add_watch_callback(prefix + "key", seen, start_revision=now + 3)

    for i in range(1, 5):
        client.put(prefix + "key", str(i))

    assert [event.value for event in seen.events(2)] == [b"3", b"4"]


def test_iterator_ends_when_it_is_canceled(client, prefix):
    events, cancel = client.watch_prefix(prefix)
    client.put(prefix + "a", "1")
    client.put(prefix + "b", "2")

    taken = list(itertools.islice(events, 2))
    cancel()

    assert [event.value for event in taken] == [b"1", b"2"]
    assert list(events) == []


def test_response_iterator_has_headers(client, prefix):
    responses, cancel = client.watch_response(prefix + "key")
    revision = client.put(prefix + "key", "1").header.revision

    response = next(responses)
    cancel()

    assert response.header.revision == revision


def test_watch_once_returns_the_first_event(client, prefix):
    lease = client.lease(2)
    client.put(prefix + "key", "1", lease=lease)

    event = client.watch_once(prefix + "key", timeout=EVENT_LIMIT_SECS)

    assert isinstance(event, DeleteEvent)


def test_watch_once_gives_up_at_its_timeout(client, prefix):
    with pytest.raises(exceptions.WatchTimedOut):
        client.watch_once(prefix + "silent", timeout=0.3)


def test_canceled_watch_is_silent_while_others_go_on(client, prefix):
    canceled, fence = Recorder(), Recorder()
    watch_id = client.add_watch_prefix_callback(prefix, canceled)
    client.add_watch_prefix_callback(prefix, fence)
    client.put(prefix + "key", "1")
    assert [event.value for event in canceled.events(1)] == [b"1"]

    client.cancel_watch(watch_id)
    client.put(prefix + "key", "2")

    assert [event.value for event in fence.events(2)] == [b"1", b"2"]
    assert canceled.responses.empty()


def test_server_confirms_a_cancel(raw_watch, client, prefix):
    create = etcdrpc.WatchCreateRequest(key=prefix.encode())
    raw_watch.send(create_request=create)
    created = raw_watch.answer()
    raw_watch.send(create_request=create)
    second = raw_watch.answer()
    assert created.created and second.created
    assert created.watch_id != second.watch_id

    raw_watch.send(cancel_request=etcdrpc.WatchCancelRequest(watch_id=created.watch_id))
    canceled = raw_watch.answer()
    client.put(prefix, "1")
    event = raw_watch.answer()

    assert (canceled.watch_id, canceled.canceled, canceled.compact_revision) == (created.watch_id, True, 0)
    assert (event.watch_id, len(event.events)) == (second.watch_id, 1)


def test_compacted_start_revision_cancels_the_watch(client, prefix):
    old = client.put(prefix + "key", "1").header.revision
    now = client.put(prefix + "key", "2").header.revision
    client.compact(now)
    seen = Recorder()

    client.add_watch_callback(prefix + "key", seen, start_revision=old)

    error = seen.response()
    assert isinstance(error, exceptions.RevisionCompactedError)
    assert error.compacted_revision == now


def test_compacted_watch_answers_created_then_canceled(raw_watch, client, prefix):
    old = client.put(prefix + "key", "1").header.revision
    now = client.put(prefix + "key", "2").header.revision
    client.compact(now)

    key = (prefix + "key").encode()
    raw_watch.send(create_request=etcdrpc.WatchCreateRequest(key=key, start_revision=old))
    created, canceled = raw_watch.answer(), raw_watch.answer()

    assert (created.created, created.canceled, created.compact_revision) == (True, False, 0)
    assert (canceled.created, canceled.canceled, canceled.compact_revision) == (False, True, now)
    assert canceled.watch_id == created.watch_id


def test_silent_watch_reports_progress(client, prefix):
    seen = Recorder()
    revision = client.put(prefix + "other", "1").header.revision

    client.add_watch_callback(prefix + "silent", seen, progress_notify=True)

    response = seen.response()
    assert response.events == []
    assert response.header.revision >= revision


def test_hundred_watches_on_one_stream(client, prefix):
    seen = [Recorder() for _ in range(100)]
    ids = {client.add_watch_callback(f"{prefix}{i}", recorder) for i, recorder in enumerate(seen)}
    assert len(ids) == 100

    for i in range(100):
        client.put(f"{prefix}{i}", str(i))

    assert [recorder.events(1)[0].value for recorder in seen] == [str(i).encode() for i in range(100)]


def test_watch_learns_of_a_killed_server(own_server):
    seen = Recorder()
    with own_server.client() as client:
        client.add_watch_callback("key", seen)

        own_server.kill()

        error = seen.response()
    assert isinstance(error, grpc.RpcError)
    assert error.code() == grpc.StatusCode.UNAVAILABLE
