"""The PyPI client etcd3gw over the JSON gateway: its own tests, and what its users do."""

import importlib
import sys
import threading
import types
import unittest
from unittest import mock

import pytest
from etcd3gw import exceptions
from etcd3gw.client import Etcd3Client

CALL_LIMIT_SECS = 30


def _own_tests():
    """The client's test-suite, without the helper package that it takes its base class from.

    It looks for a server when it is imported, and skips its tests if there is none: here there is one by then.
    """
    sys.modules["etcd3gw.tests.base"] = types.SimpleNamespace(TestCase=unittest.TestCase)
    tests = importlib.import_module("etcd3gw.tests")
    tests.base = sys.modules["etcd3gw.tests.base"]
    with mock.patch.object(unittest, "skipUnless", lambda *_: lambda test: test):
        return importlib.import_module("etcd3gw.tests.test_etcd3gw")


_own = _own_tests()


@pytest.fixture(scope="module", autouse=True)
def _server_of_the_own_tests(tmp_path_factory):
    from server import Server

    server = Server(tmp_path_factory.mktemp("etcd3gw"))
    _own.ETCD_PORT = server.port
    yield
    server.kill()


class TestOwn(_own.TestEtcd3Gateway):
    """The suite of etcd3gw."""


@pytest.fixture
def gateway(server):
    return Etcd3Client(
        "127.0.0.1",
        server.port,
        protocol=server.client_url.split(":")[0],
        timeout=CALL_LIMIT_SECS,
        session=server.http_session(),
    )


def test_values_and_prefixes(gateway, prefix):
    assert gateway.put(prefix + "a", "1")
    assert gateway.put(prefix + "b", b"\x00\xff")
    assert gateway.get(prefix + "a") == [b"1"]
    found = gateway.get_prefix(prefix, sort_order="descend", sort_target="key")
    assert [(value, kv["key"]) for value, kv in found] == [
        (b"\x00\xff", (prefix + "b").encode()),
        (b"1", (prefix + "a").encode()),
    ]
    assert gateway.delete_prefix(prefix)
    assert gateway.get(prefix + "a") == []


def test_create_and_replace(gateway, prefix):
    key = prefix + "k"
    assert gateway.create(key, "1")
    assert not gateway.create(key, "2")
    assert gateway.replace(key, "1", "3")
    assert not gateway.replace(key, "1", "4")
    assert gateway.get(key) == [b"3"]


def test_lease(gateway, prefix):
    lease = gateway.lease(ttl=100)
    assert 0 < lease.ttl() <= 100
    assert gateway.put(prefix + "l", "1", lease)
    assert [key for key in lease.keys()] == [(prefix + "l").encode()]
    assert lease.refresh() == 100
    assert lease.revoke()
    assert gateway.get(prefix + "l") == []


def test_lock_excludes(gateway, prefix):
    name = prefix.strip("/").replace("/", "-")
    first, second = gateway.lock(name, ttl=30), gateway.lock(name, ttl=30)
    assert first.acquire()
    assert not second.acquire()
    assert first.is_acquired()
    assert first.release()
    assert second.acquire()
    assert second.release()


def test_watch_prefix(gateway, prefix):
    events, cancel = gateway.watch_prefix(prefix)
    writer = threading.Thread(target=lambda: [gateway.put(prefix + str(n), str(n)) for n in range(10)])
    writer.start()
    seen = [next(events) for _ in range(10)]
    writer.join()
    cancel()
    assert [event["kv"]["value"] for event in seen] == [str(n).encode() for n in range(10)]


def test_a_refusal_has_the_servers_text(gateway):
    with pytest.raises(exceptions.Etcd3Exception) as caught:
        gateway.post(gateway.get_url("/kv/range"), json={})
    assert "etcdserver: key is not provided" in caught.value.detail_text
