"""etcd3's lock: a key under a lease, taken by a transaction, awaited by a watch."""

import time
from concurrent.futures import ThreadPoolExecutor

LOCK_LIMIT_SECS = 20


def lock_name(prefix):
    return "python-" + prefix.strip("/").replace("/", "-")


def acquire(lock):
    """Takes a contended lock.

    etcd3 begins to watch at the revision of that moment, so it sleeps through a release between its transaction and its
    watch: many short attempts instead of a long one.
    """
    deadline = time.monotonic() + LOCK_LIMIT_SECS
    while not lock.acquire(timeout=0.2):
        assert time.monotonic() < deadline
    assert lock.is_acquired()


def test_lock_is_exclusive(client, prefix):
    first, second = client.lock(lock_name(prefix)), client.lock(lock_name(prefix))

    assert first.acquire()
    assert first.is_acquired()
    assert not second.acquire(timeout=0.5)
    assert not second.is_acquired()
    # The other's release does not take it away.
    assert not second.release()
    assert first.is_acquired()

    assert first.release()
    assert second.acquire(timeout=LOCK_LIMIT_SECS)
    assert second.release()


def test_lock_passes_to_a_waiter(server, client, prefix):
    held = client.lock(lock_name(prefix))
    assert held.acquire()

    def wait():
        with server.client() as other:
            lock = other.lock(lock_name(prefix))
            acquire(lock)
            return lock.release()

    with ThreadPoolExecutor(1) as pool:
        waiter = pool.submit(wait)
        assert held.release()
        assert waiter.result(LOCK_LIMIT_SECS) is True


def test_lock_of_a_silent_holder_expires(client, prefix):
    silent, patient = client.lock(lock_name(prefix), ttl=2), client.lock(lock_name(prefix))
    started = time.monotonic()
    assert silent.acquire()

    assert patient.acquire(timeout=LOCK_LIMIT_SECS)

    assert time.monotonic() - started >= 2
    assert not silent.is_acquired()
    assert patient.release()


def test_refreshed_lock_has_its_full_time(client, prefix):
    with client.lock(lock_name(prefix), ttl=60) as lock:
        assert lock.is_acquired()
        assert [answer.TTL for answer in lock.refresh()] == [60]
        assert client.get(lock.key)[1].lease_id == lock.lease.id
    assert not lock.is_acquired()


def test_lock_protects_a_counter(server, client, prefix):
    client.put(prefix + "counter", "0")

    def count(_):
        with server.client() as own:
            for _ in range(5):
                lock = own.lock(lock_name(prefix))
                acquire(lock)
                value = int(own.get(prefix + "counter")[0])
                own.put(prefix + "counter", str(value + 1))
                assert lock.release()

    with ThreadPoolExecutor(4) as pool:
        list(pool.map(count, range(4), timeout=2 * LOCK_LIMIT_SECS))

    assert client.get(prefix + "counter")[0] == b"20"
