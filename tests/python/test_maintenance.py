"""Compaction, status, members, hashes, defragmentation, alarms."""

import grpc
import pytest
from etcd3 import etcdrpc

from errors import refused

COMPACTED = (grpc.StatusCode.OUT_OF_RANGE, "etcdserver: mvcc: required revision has been compacted")
FUTURE = (grpc.StatusCode.OUT_OF_RANGE, "etcdserver: mvcc: required revision is a future revision")


def at_revision(client, key, revision):
    request = etcdrpc.RangeRequest(key=key.encode(), revision=revision)
    return [kv.value for kv in client.kvstub.Range(request, client.timeout).kvs]


@pytest.mark.parametrize("physical", [False, True])
def test_compaction_drops_what_is_older(client, prefix, physical):
    first, second, third = (client.put(prefix + "key", value).header.revision for value in "123")
    assert at_revision(client, prefix + "key", first) == [b"1"]

    client.compact(second, physical=physical)

    with refused(*COMPACTED):
        at_revision(client, prefix + "key", first)
    assert at_revision(client, prefix + "key", second) == [b"2"]
    assert at_revision(client, prefix + "key", third) == [b"3"]
    assert client.get(prefix + "key")[1].version == 3


def test_compaction_of_the_past_and_the_future_is_refused(client, prefix):
    now = client.put(prefix + "key", "1").header.revision
    client.compact(now)

    with refused(*COMPACTED):
        client.compact(now)
    with refused(*FUTURE):
        client.compact(now + 1000)


def test_status_names_the_leader(client, prefix):
    before = client.status()
    client.put(prefix + "key", "1")
    after = client.status()

    assert before.version.startswith("3.7.")
    assert before.db_size > 0
    assert before.raft_term > 0
    assert after.raft_index > before.raft_index
    assert before.leader.name == "default"


def test_the_only_member(server, client):
    members = list(client.members)

    assert [(member.name, list(member.client_urls)) for member in members] == [("default", [server.client_url])]
    assert members[0].id == client.status().leader.id
    assert len(members[0].peer_urls) == 1
    assert list(members[0].active_alarms) == []


def test_hash_changes_with_the_data_only(client, prefix):
    client.put(prefix + "key", "1")
    first, again = client.hash(), client.hash()
    client.put(prefix + "key", "2")

    assert first == again
    assert client.hash() != first


def test_hash_of_a_revision_is_stable(client, prefix):
    def hash_kv(revision):
        return client.maintenancestub.HashKV(etcdrpc.HashKVRequest(revision=revision), client.timeout)

    revision = client.put(prefix + "key", "1").header.revision
    first = hash_kv(revision)
    client.put(prefix + "key", "2")

    assert hash_kv(revision).hash == first.hash
    assert hash_kv(0).hash != first.hash
    assert first.compact_revision == hash_kv(revision).compact_revision
    with refused(*FUTURE):
        hash_kv(revision + 1000)


def test_defragmentation_keeps_the_data(client, prefix):
    for i in range(100):
        client.put(f"{prefix}{i:03}", str(i))
    client.compact(client.get_response(prefix).header.revision, physical=True)

    client.defragment()

    assert [value for value, _ in client.get_prefix(prefix)] == [str(i).encode() for i in range(100)]


def test_no_alarm_is_raised(client):
    assert list(client.list_alarms()) == []
