"""Expected failures of a call. etcd3 turns some codes into exceptions of its own and lets the others through."""

import contextlib

import grpc
import pytest


@contextlib.contextmanager
def refused(code: grpc.StatusCode, details: str):
    """The block must end with exactly this status."""
    with pytest.raises(grpc.RpcError) as caught:
        yield
    assert (caught.value.code(), caught.value.details()) == (code, details)
