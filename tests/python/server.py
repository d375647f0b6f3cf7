"""A server process of a test: started on free loopback ports, ended by its own process id.

kvd takes etcd's flags, so the same code starts either. `KVD_BIN` names the binary, `KVD_ARGS` adds flags.
"""

import ctypes
import os
import random
import shlex
import signal
import socket
import subprocess
import time
from pathlib import Path

import etcd3
import requests

from certificates import Certificates

# The machine may be compiling something else.
START_LIMIT_SECS = 60
# Covers the gap between choosing a free port and the server binding it.
START_ATTEMPTS = 3
# No call of a test takes longer; one that does fails instead of hanging.
CALL_LIMIT_SECS = 30


class Server:
    """A running member with its own data folder."""

    def __init__(self, folder: Path, certificates: Certificates | None = None, args: tuple[str, ...] = ()):
        self.certificates = certificates
        self._folder = folder
        self._args = args
        self._process = None
        for attempt in range(1, START_ATTEMPTS + 1):
            self.port, self._peer_port = _free_port(), _free_port()
            try:
                self.start()
                return
            except ServerEnded:
                if attempt == START_ATTEMPTS:
                    raise

    @property
    def client_url(self) -> str:
        return f"{'https' if self.certificates else 'http'}://127.0.0.1:{self.port}"

    def start(self) -> None:
        """Starts the member over its data folder and waits until it answers."""
        self._start(self._wait_until_it_answers)

    def start_without_client(self) -> None:
        """The same, without a call: the client of the other tests has no token."""
        self._start(self._wait_until_it_listens)

    def _start(self, wait) -> None:
        peer_url = f"http://127.0.0.1:{self._peer_port}"
        command = [
            os.environ["KVD_BIN"],
            f"--data-dir={self._folder / 'data'}",
            f"--listen-client-urls={self.client_url}",
            f"--advertise-client-urls={self.client_url}",
            f"--listen-peer-urls={peer_url}",
            f"--initial-advertise-peer-urls={peer_url}",
            f"--initial-cluster=default={peer_url}",
            "--log-level=warn",
            *self._args,
            *shlex.split(os.environ.get("KVD_ARGS", "")),
        ]
        if self.certificates:
            command += [
                f"--cert-file={self.certificates.server_cert}",
                f"--key-file={self.certificates.server_key}",
                f"--trusted-ca-file={self.certificates.authority}",
                "--client-cert-auth",
            ]
        with open(self._folder / "log", "ab") as log:
            self._process = subprocess.Popen(
                command, stdin=subprocess.DEVNULL, stdout=log, stderr=log, preexec_fn=_die_with_parent
            )
        try:
            wait()
        except BaseException:
            self.kill()
            raise

    def kill(self) -> None:
        """Ends the process at once, as a crash would."""
        if self._process.poll() is None:
            self._process.kill()
        self._process.wait()

    def terminate(self) -> int:
        """Asks the process to stop; its exit status."""
        self._process.terminate()
        return self._process.wait(timeout=START_LIMIT_SECS)

    def client(self) -> etcd3.Etcd3Client:
        """A new client with its own connection; the caller closes it."""
        # Without its own pool of connections each client would share the first one's.
        options = [("grpc.use_local_subchannel_pool", 1)]
        if not self.certificates:
            return etcd3.client("127.0.0.1", self.port, timeout=CALL_LIMIT_SECS, grpc_options=options)
        return etcd3.client(
            "127.0.0.1",
            self.port,
            ca_cert=str(self.certificates.authority),
            cert_cert=str(self.certificates.client_cert),
            cert_key=str(self.certificates.client_key),
            timeout=CALL_LIMIT_SECS,
            grpc_options=options,
        )

    def http_session(self) -> requests.Session:
        """A session that trusts and shows the certificates of the test, whatever the environment says."""
        session = requests.Session()
        session.trust_env = False
        if self.certificates:
            session.verify = str(self.certificates.authority)
            session.cert = (str(self.certificates.client_cert), str(self.certificates.client_key))
        return session

    def _wait_until_it_answers(self) -> None:
        self._wait_until_it_listens()
        with self.client() as client:
            client.status()

    def _wait_until_it_listens(self) -> None:
        deadline = time.monotonic() + START_LIMIT_SECS
        while True:
            if self._process.poll() is not None:
                log = (self._folder / "log").read_text(errors="replace")[-2000:]
                raise ServerEnded(f"the server ended with {self._process.returncode} before it answered:\n{log}")
            try:
                with socket.create_connection(("127.0.0.1", self.port), timeout=1):
                    break
            except OSError:
                if time.monotonic() > deadline:
                    raise
                time.sleep(0.02)


class ServerEnded(Exception):
    """The process ended instead of serving."""


def _free_port() -> int:
    """A port that nobody listens on and that no outgoing connection is given."""
    while True:
        port = random.randrange(10_000, 32_000)
        with socket.socket() as listener:
            try:
                listener.bind(("127.0.0.1", port))
            except OSError:
                continue
            return port


def _die_with_parent() -> None:
    pr_set_pdeathsig = 1
    ctypes.CDLL(None).prctl(pr_set_pdeathsig, signal.SIGKILL)
