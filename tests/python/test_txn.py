"""Transactions: every comparison of every target, both arms, nesting, and what is refused."""

import grpc
import pytest
from etcd3 import etcdrpc

from errors import refused


@pytest.fixture
def key(client, prefix):
    """Written twice: version 2, value "m"."""
    client.put(prefix + "key", "first")
    client.put(prefix + "key", "m")
    return prefix + "key"


def holds(client, *compares) -> bool:
    succeeded, _ = client.transaction(compare=list(compares), success=[], failure=[])
    return succeeded


def test_compare_value(client, key):
    value = client.transactions.value

    assert holds(client, value(key) == "m")
    assert not holds(client, value(key) == "n")
    assert holds(client, value(key) != "n")
    assert holds(client, value(key) < "n")
    assert holds(client, value(key) > "l")
    assert not holds(client, value(key) > "m")


def test_compare_version(client, key):
    version = client.transactions.version

    assert holds(client, version(key) == 2)
    assert holds(client, version(key) != 3)
    assert holds(client, version(key) > 1)
    assert holds(client, version(key) < 3)
    assert not holds(client, version(key) < 2)


def test_compare_revisions(client, key):
    _, metadata = client.get(key)
    create, mod = client.transactions.create, client.transactions.mod

    assert holds(client, create(key) == metadata.create_revision, mod(key) == metadata.mod_revision)
    assert holds(client, create(key) < metadata.mod_revision, mod(key) > metadata.create_revision)
    assert not holds(client, mod(key) != metadata.mod_revision)


def test_compare_lease(client, prefix):
    lease = client.lease(60)
    client.put(prefix + "leased", "value", lease=lease)

    def compare(result, lease_id):
        message = etcdrpc.Compare(
            target=etcdrpc.Compare.LEASE, result=result, key=(prefix + "leased").encode(), lease=lease_id
        )
        return client.kvstub.Txn(etcdrpc.TxnRequest(compare=[message]), client.timeout).succeeded

    assert compare(etcdrpc.Compare.EQUAL, lease.id)
    assert not compare(etcdrpc.Compare.EQUAL, 0)
    assert compare(etcdrpc.Compare.GREATER, 0)


def test_missing_key_has_version_and_revisions_zero_and_no_value(client, prefix):
    transactions, missing = client.transactions, prefix + "missing"

    assert holds(client, transactions.version(missing) == 0)
    assert holds(client, transactions.create(missing) == 0, transactions.mod(missing) == 0)
    for compare in (
        transactions.value(missing) == "",
        transactions.value(missing) != "x",
        transactions.value(missing) < "x",
    ):
        assert not holds(client, compare)


def test_compare_over_a_range_must_hold_for_every_key(client, prefix):
    for name in ("a", "b", "c"):
        client.put(prefix + name, "same")
    version = client.transactions.version

    assert holds(client, version(prefix + "a", range_end=prefix + "d") == 1)
    client.put(prefix + "b", "again")
    assert not holds(client, version(prefix + "a", range_end=prefix + "d") == 1)


def test_all_comparisons_must_hold(client, key):
    transactions = client.transactions

    assert not holds(client, transactions.value(key) == "m", transactions.version(key) == 1)


def test_success_arm_runs_in_order_at_one_revision(client, prefix):
    transactions = client.transactions
    client.put(prefix + "gone", "old")
    before = client.get_response(prefix).header.revision

    succeeded, answers = client.transaction(
        compare=[transactions.version(prefix + "new") == 0],
        success=[
            transactions.put(prefix + "new", "1"),
            transactions.get(prefix + "new"),
            transactions.delete(prefix + "gone", prev_kv=True),
            transactions.get(prefix + "gone"),
        ],
        failure=[transactions.put(prefix + "never", "1")],
    )

    assert succeeded is True
    put, seen, deleted, missing = answers
    assert put.response_put.header.revision == before + 1
    assert [(value, metadata.mod_revision) for value, metadata in seen] == [(b"1", before + 1)]
    assert deleted.response_delete_range.deleted == 1
    assert [kv.value for kv in deleted.response_delete_range.prev_kvs] == [b"old"]
    assert missing == []
    assert client.get(prefix + "never") == (None, None)
    assert client.get_response(prefix).header.revision == before + 1


def test_failure_arm_runs_when_a_comparison_fails(client, key, prefix):
    transactions = client.transactions

    succeeded, answers = client.transaction(
        compare=[transactions.value(key) == "other"],
        success=[transactions.put(prefix + "never", "1")],
        failure=[transactions.put(prefix + "failed", "1", prev_kv=True), transactions.get(key)],
    )

    assert succeeded is False
    assert [value for value, _ in answers[1]] == [b"m"]
    assert client.get(prefix + "failed")[0] == b"1"
    assert client.get(prefix + "never") == (None, None)


def test_read_only_transaction_makes_no_revision(client, key):
    before = client.get_response(key).header.revision

    client.transaction(compare=[], success=[client.transactions.get(key)], failure=[])

    assert client.get_response(key).header.revision == before


def test_delete_of_a_range_inside(client, prefix):
    for name in ("a", "b", "c"):
        client.put(prefix + name, name)

    _, answers = client.transaction(
        compare=[], success=[client.transactions.delete(prefix + "a", range_end=prefix + "c")], failure=[]
    )

    assert answers[0].response_delete_range.deleted == 2
    assert [value for value, _ in client.get_prefix(prefix)] == [b"c"]


def test_nested_transaction_takes_its_own_arm(client, key, prefix):
    def put(name):
        return etcdrpc.RequestOp(
            request_put=etcdrpc.PutRequest(key=(prefix + name).encode(), value=b"1")
        )

    # The nested form of etcd3 0.12 names fields that its messages do not have.
    inner = etcdrpc.TxnRequest(
        compare=[(client.transactions.value(key) == "other").build_message()],
        success=[put("inner-success")],
        failure=[put("inner-failure")],
    )
    outer = etcdrpc.TxnRequest(
        compare=[(client.transactions.value(key) == "m").build_message()],
        success=[put("outer"), etcdrpc.RequestOp(request_txn=inner)],
    )
    answer = client.kvstub.Txn(outer, client.timeout)

    assert answer.succeeded
    assert not answer.responses[1].response_txn.succeeded
    written = {metadata.key.decode().removeprefix(prefix) for _, metadata in client.get_prefix(prefix)}
    assert written == {"key", "outer", "inner-failure"}


def test_put_if_not_exists_puts_once(client, prefix):
    assert client.put_if_not_exists(prefix + "key", "1") is True
    assert client.put_if_not_exists(prefix + "key", "2") is False
    assert client.get(prefix + "key")[0] == b"1"


def test_replace_needs_the_expected_value(client, key):
    assert client.replace(key, "other", "new") is False
    assert client.replace(key, "m", "new") is True
    assert client.get(key)[0] == b"new"


def test_two_puts_of_one_key_are_refused(client, prefix):
    put = client.transactions.put(prefix + "twice", "1")

    with refused(grpc.StatusCode.INVALID_ARGUMENT, "etcdserver: duplicate key given in txn request"):
        client.transaction(compare=[], success=[put, put], failure=[])
    assert client.get(prefix + "twice") == (None, None)


def test_more_operations_than_the_limit_are_refused(client, prefix):
    puts = [client.transactions.put(f"{prefix}{i}", "1") for i in range(129)]

    with refused(grpc.StatusCode.INVALID_ARGUMENT, "etcdserver: too many operations in txn request"):
        client.transaction(compare=[], success=puts, failure=[])
    succeeded, answers = client.transaction(compare=[], success=puts[:128], failure=[])
    assert (succeeded, len(answers)) == (True, 128)
