"""Leases: grant, expiry, keep-alive, revoke, and what is refused."""

import queue
import time

import grpc
import pytest
from etcd3 import etcdrpc, exceptions
from etcd3.events import DeleteEvent

from errors import refused

EXPIRY_LIMIT_SECS = 20


def deletes_below(client, prefix):
    """A queue that receives the name of each key deleted below the prefix."""
    names = queue.Queue()

    def note(response):
        for event in response.events:
            if isinstance(event, DeleteEvent):
                names.put(event.key.decode().removeprefix(prefix))

    client.add_watch_prefix_callback(prefix, note)
    return names


def test_grant_returns_id_and_ttl(client):
    lease = client.lease(100)

    assert lease.id > 0
    assert lease.ttl == 100
    assert lease.granted_ttl == 100
    assert 98 <= lease.remaining_ttl <= 100
    assert list(lease.keys) == []


def test_chosen_id_is_kept_and_unique(client):
    lease = client.lease(100, lease_id=4242)
    assert lease.id == 4242

    with pytest.raises(exceptions.PreconditionFailedError):
        client.lease(100, lease_id=4242)
    lease.revoke()
    assert client.lease(100, lease_id=4242).id == 4242
    client.revoke_lease(4242)


def test_lease_knows_its_keys(client, prefix):
    lease = client.lease(100)
    client.put(prefix + "a", "1", lease=lease)
    client.put(prefix + "b", "1", lease=lease.id)
    client.put(prefix + "b", "2")

    assert list(lease.keys) == [(prefix + "a").encode()]
    assert client.get(prefix + "a")[1].lease_id == lease.id


def test_leases_are_listed(client):
    lease = client.lease(100)

    listed = client.leasestub.LeaseLeases(etcdrpc.LeaseLeasesRequest(), client.timeout)

    assert lease.id in [status.ID for status in listed.leases]


def test_revoke_deletes_the_keys_at_one_revision(client, prefix):
    lease = client.lease(100)
    for name in ("a", "b", "c"):
        client.put(prefix + name, "1", lease=lease)
    before = client.get_response(prefix).header.revision

    lease.revoke()

    assert list(client.get_prefix(prefix)) == []
    assert client.get_response(prefix).header.revision == before + 1
    assert lease.remaining_ttl == -1


def test_expiry_deletes_the_keys_and_no_sooner(client, prefix):
    deleted = deletes_below(client, prefix)
    started = time.monotonic()
    lease = client.lease(2)
    client.put(prefix + "leased", "1", lease=lease)
    client.put(prefix + "free", "1")

    name = deleted.get(timeout=EXPIRY_LIMIT_SECS)

    assert name == "leased"
    assert time.monotonic() - started >= 2
    assert client.get(prefix + "leased") == (None, None)
    assert client.get(prefix + "free")[0] == b"1"
    assert lease.remaining_ttl == -1


def test_short_ttl_is_raised_to_the_shortest_a_new_leader_can_keep(client):
    assert client.lease(1).ttl == 2


def test_refresh_keeps_the_key_beyond_its_ttl(client, prefix):
    deleted = deletes_below(client, prefix)
    kept, fence = client.lease(2), client.lease(5)
    client.put(prefix + "kept", "1", lease=kept)
    client.put(prefix + "fence", "1", lease=fence)
    deadline = time.monotonic() + EXPIRY_LIMIT_SECS

    # The lease that is not refreshed ends first, although its time is longer.
    while True:
        assert time.monotonic() < deadline
        assert [answer.TTL for answer in kept.refresh()] == [2]
        try:
            name = deleted.get(timeout=0.5)
            break
        except queue.Empty:
            continue

    assert name == "fence"
    assert client.get(prefix + "kept")[0] == b"1"
    # Left alone it ends too.
    assert deleted.get(timeout=EXPIRY_LIMIT_SECS) == "kept"


def test_put_without_lease_saves_the_key_from_revoke(client, prefix):
    lease = client.lease(100)
    client.put(prefix + "key", "1", lease=lease)
    client.put(prefix + "key", "2")

    lease.revoke()

    assert client.get(prefix + "key")[0] == b"2"


def test_lease_inside_a_transaction(client, prefix):
    lease = client.lease(100)
    put = client.transactions.put(prefix + "key", "1", lease=lease)

    client.transaction(compare=[], success=[put], failure=[])

    assert list(lease.keys) == [(prefix + "key").encode()]


def test_one_stream_refreshes_many_leases(client):
    leases = [client.lease(ttl) for ttl in (50, 60, 70)]
    requests = [etcdrpc.LeaseKeepAliveRequest(ID=lease.id) for lease in leases]

    answers = list(client.leasestub.LeaseKeepAlive(iter(requests), client.timeout))

    assert [(answer.ID, answer.TTL) for answer in answers] == [(lease.id, lease.ttl) for lease in leases]


def test_unknown_lease(client, prefix):
    unknown = 987654321
    not_found = (grpc.StatusCode.NOT_FOUND, "etcdserver: requested lease not found")

    with refused(*not_found):
        client.revoke_lease(unknown)
    with refused(*not_found):
        client.put(prefix + "key", "1", lease=unknown)
    # These two say it in the answer.
    assert [answer.TTL for answer in client.refresh_lease(unknown)] == [0]
    assert client.get_lease_info(unknown).TTL == -1


def test_too_large_ttl_is_refused(client):
    with refused(grpc.StatusCode.OUT_OF_RANGE, "etcdserver: too large lease TTL"):
        client.lease(9_000_000_001)
