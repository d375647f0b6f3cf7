"""Many clients at once, and a server that is killed under them."""

import queue
from concurrent.futures import ThreadPoolExecutor

CLIENTS = 20
LIMIT_SECS = 60


def test_twenty_clients_lose_nothing(server, client, prefix):
    events = queue.Queue()
    client.add_watch_prefix_callback(prefix, lambda response: [events.put(event) for event in response.events])

    def write(worker):
        with server.client() as own:
            return [own.put(f"{prefix}{worker}/{i}", f"{worker}-{i}").header.revision for i in range(50)]

    with ThreadPoolExecutor(CLIENTS) as pool:
        revisions = list(pool.map(write, range(CLIENTS), timeout=LIMIT_SECS))

    acknowledged = sorted(revision for own in revisions for revision in own)
    # One revision for each put, and each client saw its own rise.
    assert len(set(acknowledged)) == CLIENTS * 50
    assert all(own == sorted(own) for own in revisions)
    stored = {metadata.key.decode(): value.decode() for value, metadata in client.get_prefix(prefix)}
    assert stored == {f"{prefix}{worker}/{i}": f"{worker}-{i}" for worker in range(CLIENTS) for i in range(50)}
    seen = [events.get(timeout=LIMIT_SECS).mod_revision for _ in acknowledged]
    assert seen == acknowledged


def test_twenty_clients_count_with_compare_and_swap(server, client, prefix):
    key = prefix + "counter"
    client.put(key, "0")

    def count(_):
        done = 0
        with server.client() as own:
            while done < 5:
                value, metadata = own.get(key)
                swapped, _ = own.transaction(
                    compare=[own.transactions.mod(key) == metadata.mod_revision],
                    success=[own.transactions.put(key, str(int(value) + 1))],
                    failure=[],
                )
                done += swapped

    with ThreadPoolExecutor(CLIENTS) as pool:
        list(pool.map(count, range(CLIENTS), timeout=LIMIT_SECS))

    value, metadata = client.get(key)
    assert value == str(CLIENTS * 5).encode()
    assert metadata.version == CLIENTS * 5 + 1


def test_killed_server_has_everything_it_acknowledged(own_server):
    def write(worker):
        """Writes until the server is gone; the last value it acknowledged."""
        last = None
        with own_server.client() as own:
            for i in range(1_000_000):
                try:
                    own.put(f"/{worker}", str(i))
                except Exception:
                    return last
                last = i
                acknowledged.put(worker)

    acknowledged = queue.Queue()
    with ThreadPoolExecutor(CLIENTS) as pool:
        writers = [pool.submit(write, worker) for worker in range(CLIENTS)]
        for _ in range(500):
            acknowledged.get(timeout=LIMIT_SECS)
        own_server.kill()
        lasts = [writer.result(timeout=LIMIT_SECS) for writer in writers]
    own_server.start()

    with own_server.client() as client:
        for worker, last in enumerate(lasts):
            # The put that was cut off may have been written too, nothing later. A worker may not have come to its first.
            acknowledged_last = -1 if last is None else last
            value, _ = client.get(f"/{worker}")
            written = -1 if value is None else int(value)
            assert written in (acknowledged_last, acknowledged_last + 1)


def test_client_and_data_survive_a_restart(own_server):
    with own_server.client() as client:
        lease = client.lease(100)
        revision = client.put("/key", "value", lease=lease).header.revision

        assert own_server.terminate() == 0
        own_server.start()

        # The same client finds the server again by itself.
        value, metadata = client.get("/key")
        assert (value, metadata.mod_revision, metadata.lease_id) == (b"value", revision, lease.id)
        assert lease.granted_ttl == 100
        assert client.put("/key", "next").header.revision == revision + 1
