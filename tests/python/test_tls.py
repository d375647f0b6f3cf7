"""What a TLS port refuses. Everything else runs over TLS through the `server` fixture."""

import etcd3
import pytest
from etcd3 import exceptions

from certificates import write_certificates
from server import Server


@pytest.fixture(scope="module")
def tls_server(certificates, tmp_path_factory):
    server = Server(tmp_path_factory.mktemp("tls"), certificates)
    yield server
    server.kill()


def check_refused(**arguments):
    with etcd3.client("127.0.0.1", timeout=5, **arguments) as client:
        with pytest.raises((exceptions.ConnectionFailedError, exceptions.ConnectionTimeoutError)):
            client.get("key")


def test_client_without_certificate_is_refused(tls_server, certificates):
    check_refused(port=tls_server.port, ca_cert=str(certificates.authority))


def test_client_of_another_authority_is_refused(tls_server, certificates, tmp_path):
    stranger = write_certificates(tmp_path)

    check_refused(
        port=tls_server.port,
        ca_cert=str(certificates.authority),
        cert_cert=str(stranger.client_cert),
        cert_key=str(stranger.client_key),
    )


def test_plain_client_is_refused(tls_server):
    check_refused(port=tls_server.port)
