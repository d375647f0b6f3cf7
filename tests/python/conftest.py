"""Fixtures: one server per transport for the whole run, one client and one key prefix per test."""

import itertools
from pathlib import Path

import pytest

from certificates import write_certificates
from server import Server

_prefixes = itertools.count()


@pytest.fixture(scope="session")
def certificates(tmp_path_factory):
    return write_certificates(tmp_path_factory.mktemp("certificates"))


@pytest.fixture(scope="session", params=["plain", "tls"])
def server(request, tmp_path_factory):
    """Every test that asks for it runs over plain HTTP/2 and over TLS with client certificates."""
    certificates = request.getfixturevalue("certificates") if request.param == "tls" else None
    server = Server(tmp_path_factory.mktemp("server"), certificates, ("--watch-progress-notify-interval=1s",))
    yield server
    server.kill()


@pytest.fixture
def own_server(tmp_path: Path):
    """A server that the test may kill and start again."""
    server = Server(tmp_path)
    yield server
    server.kill()


@pytest.fixture
def client(server):
    with server.client() as client:
        yield client


@pytest.fixture
def prefix() -> str:
    """No other test touches keys below it."""
    return f"/python/{next(_prefixes)}/"
