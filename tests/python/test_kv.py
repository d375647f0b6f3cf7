"""Put, get, ranges and deletes."""

import grpc
import pytest
from etcd3 import etcdrpc

from errors import refused


@pytest.fixture
def fruit(client, prefix):
    """Keys a to e, whose values sort the other way round; c was written twice and last."""
    for key, value in [("a", "5"), ("b", "4"), ("c", "0"), ("d", "2"), ("e", "1"), ("c", "3")]:
        client.put(prefix + key, value)
    return prefix


def names(pairs, prefix):
    return [metadata.key.decode().removeprefix(prefix) for _, metadata in pairs]


def raw_range(client, prefix, **fields):
    """A range below the prefix with fields that etcd3's own calls accept but do not send."""
    end = prefix[:-1] + "0"
    return client.kvstub.Range(
        etcdrpc.RangeRequest(key=prefix.encode(), range_end=end.encode(), **fields), client.timeout
    )


def test_get_returns_what_was_put(client, prefix):
    client.put(prefix + "key", "value")

    value, metadata = client.get(prefix + "key")

    assert value == b"value"
    assert metadata.key == (prefix + "key").encode()
    assert metadata.version == 1
    assert metadata.create_revision == metadata.mod_revision == metadata.response_header.revision
    assert metadata.lease_id == 0


def test_missing_key_is_none(client, prefix):
    assert client.get(prefix + "missing") == (None, None)


def test_bytes_survive_unchanged(client, prefix):
    key, value = prefix.encode() + bytes(range(256)), bytes(reversed(range(256)))

    client.put(key, value)

    assert client.get(key)[0] == value
    assert client.get(key)[1].key == key


def test_empty_value_is_a_value(client, prefix):
    client.put(prefix + "empty", "")

    value, metadata = client.get(prefix + "empty")

    assert value == b""
    assert metadata.version == 1


def test_put_counts_versions_and_returns_the_previous_pair(client, prefix):
    first = client.put(prefix + "key", "1", prev_kv=True)
    second = client.put(prefix + "key", "2", prev_kv=True)

    assert not first.HasField("prev_kv")
    assert second.prev_kv.value == b"1"
    assert second.header.revision == first.header.revision + 1
    _, metadata = client.get(prefix + "key")
    assert (metadata.version, metadata.create_revision, metadata.mod_revision) == (
        2,
        first.header.revision,
        second.header.revision,
    )


def test_put_can_keep_value_and_lease(client, prefix):
    lease = client.lease(60)
    key = (prefix + "key").encode()
    client.put(key, "kept", lease=lease)

    client.kvstub.Put(etcdrpc.PutRequest(key=key, ignore_value=True), client.timeout)
    value, metadata = client.get(key)
    assert (value, metadata.lease_id, metadata.version) == (b"kept", 0, 2)

    client.put(key, "kept", lease=lease)
    client.kvstub.Put(etcdrpc.PutRequest(key=key, value=b"new", ignore_lease=True), client.timeout)
    value, metadata = client.get(key)
    assert (value, metadata.lease_id) == (b"new", lease.id)


def test_serializable_get_sees_own_put(client, prefix):
    client.put(prefix + "key", "value")

    assert client.get(prefix + "key", serializable=True)[0] == b"value"


def test_prefix_and_range_are_in_key_order(client, fruit):
    assert names(client.get_prefix(fruit), fruit) == ["a", "b", "c", "d", "e"]
    assert [value for value, _ in client.get_prefix(fruit)] == [b"5", b"4", b"3", b"2", b"1"]
    assert names(client.get_range(fruit + "b", fruit + "d"), fruit) == ["b", "c"]
    assert names(client.get_range(fruit + "d", fruit + "b"), fruit) == []


@pytest.mark.parametrize(
    "target, ascending",
    [("key", "abcde"), ("value", "edcba"), ("create", "abcde"), ("mod", "abdec")],
)
def test_sort_order(client, fruit, target, ascending):
    up = client.get_prefix(fruit, sort_order="ascend", sort_target=target)
    down = client.get_prefix(fruit, sort_order="descend", sort_target=target)

    assert "".join(names(up, fruit)) == ascending
    assert "".join(names(down, fruit)) == ascending[::-1]


def test_sort_by_version_puts_the_key_written_twice_last(client, fruit):
    assert names(client.get_prefix(fruit, sort_order="ascend", sort_target="version"), fruit)[-1] == "c"


def test_keys_only_leaves_values_out(client, fruit):
    pairs = list(client.get_prefix(fruit, keys_only=True))

    assert names(pairs, fruit) == ["a", "b", "c", "d", "e"]
    assert {value for value, _ in pairs} == {b""}


def test_limit_says_that_there_is_more(client, fruit):
    first = raw_range(client, fruit, limit=2)
    whole = raw_range(client, fruit, limit=5)

    assert ([kv.value for kv in first.kvs], first.more, first.count) == ([b"5", b"4"], True, 5)
    assert (len(whole.kvs), whole.more, whole.count) == (5, False, 5)


def test_limit_applies_after_the_sort(client, fruit):
    answer = raw_range(
        client, fruit, limit=2, sort_target=etcdrpc.RangeRequest.VALUE, sort_order=etcdrpc.RangeRequest.ASCEND
    )

    assert [kv.value for kv in answer.kvs] == [b"1", b"2"]


def test_count_only_returns_no_pairs(client, fruit):
    answer = raw_range(client, fruit, count_only=True)

    assert (answer.count, len(answer.kvs), answer.more) == (5, 0, False)


def test_revision_bounds_filter_the_answer(client, fruit):
    revisions = [metadata.mod_revision for _, metadata in client.get_prefix(fruit)]
    b, c = revisions[1], revisions[2]

    assert [kv.value for kv in raw_range(client, fruit, min_mod_revision=c).kvs] == [b"3"]
    assert [kv.value for kv in raw_range(client, fruit, max_mod_revision=b).kvs] == [b"5", b"4"]
    assert [kv.value for kv in raw_range(client, fruit, min_create_revision=b, max_create_revision=b).kvs] == [b"4"]


def test_old_revision_shows_the_old_state(client, fruit):
    before = client.get(fruit + "a")[1].response_header.revision
    client.put(fruit + "a", "changed")
    client.delete(fruit + "b")

    old = raw_range(client, fruit, revision=before)
    new = raw_range(client, fruit)

    assert [kv.value for kv in old.kvs] == [b"5", b"4", b"3", b"2", b"1"]
    assert [kv.value for kv in new.kvs] == [b"changed", b"3", b"2", b"1"]


def test_get_all_covers_every_prefix(client, fruit):
    client.put(b"\x00python", "lowest")
    client.put(b"\xff\xffpython", "highest")

    keys = [metadata.key for _, metadata in client.get_all(keys_only=True)]

    assert keys == sorted(keys)
    assert keys[0] == b"\x00python"
    assert keys[-1] == b"\xff\xffpython"
    assert {fruit.encode() + name for name in (b"a", b"b", b"c", b"d", b"e")} <= set(keys)


def test_delete_says_whether_there_was_something(client, fruit):
    revision = client.get(fruit + "a")[1].response_header.revision

    assert client.delete(fruit + "a") is True
    assert client.delete(fruit + "a") is False

    assert client.get(fruit + "a") == (None, None)
    # A delete that finds nothing makes no revision.
    assert client.get_response(fruit + "a").header.revision == revision + 1


def test_delete_returns_the_previous_pair(client, fruit):
    answer = client.delete(fruit + "c", prev_kv=True, return_response=True)

    assert answer.deleted == 1
    assert [(kv.value, kv.version) for kv in answer.prev_kvs] == [(b"3", 2)]


def test_delete_prefix_counts_keys(client, fruit):
    client.put(fruit[:-1], "not below the prefix")

    answer = client.delete_prefix(fruit)

    assert answer.deleted == 5
    assert list(client.get_prefix(fruit)) == []
    assert client.get(fruit[:-1])[0] == b"not below the prefix"


def test_key_put_again_after_delete_starts_at_version_one(client, prefix):
    client.put(prefix + "key", "1")
    client.put(prefix + "key", "2")
    client.delete(prefix + "key")

    client.put(prefix + "key", "3")

    _, metadata = client.get(prefix + "key")
    assert metadata.version == 1
    assert metadata.create_revision == metadata.mod_revision


def test_a_megabyte_survives(client, prefix):
    value = bytes(i % 251 for i in range(1 << 20))

    client.put(prefix + "large", value)

    assert client.get(prefix + "large")[0] == value


def test_request_above_the_limit_is_refused(client, prefix):
    with refused(grpc.StatusCode.INVALID_ARGUMENT, "etcdserver: request is too large"):
        client.put(prefix + "larger", b"x" * (1536 * 1024 + 1))


def test_empty_key_is_refused(client):
    for call in (lambda: client.put("", "value"), lambda: client.get(""), lambda: client.delete("")):
        with refused(grpc.StatusCode.INVALID_ARGUMENT, "etcdserver: key is not provided"):
            call()


def test_future_revision_is_refused(client, prefix):
    now = client.put(prefix + "key", "value").header.revision

    with refused(grpc.StatusCode.OUT_OF_RANGE, "etcdserver: mvcc: required revision is a future revision"):
        raw_range(client, prefix, revision=now + 1000)
