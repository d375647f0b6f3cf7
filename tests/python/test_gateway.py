"""The requests of APISIX's Lua client, lua-resty-etcd, to the JSON gateway, by plain HTTP.

Its habits: every option is sent with its default, enum values are numbers, field names are mixed, a token goes bare into the
header Authorization and is fetched again after 401, watches are read chunk by chunk.
"""

import base64
import json

import pytest

CALL_LIMIT_SECS = 30


def b64(text: str | bytes) -> str:
    return base64.b64encode(text.encode() if isinstance(text, str) else text).decode()


def text(value: str) -> str:
    return base64.b64decode(value).decode()


def prefix_end(prefix: str) -> str:
    raw = prefix.encode()
    return b64(raw[:-1] + bytes([raw[-1] + 1]))


class Lua:
    """One such client."""

    def __init__(self, server):
        self.url = server.client_url
        self.session = server.http_session()
        self.user = None
        self.token = None
        self.renewals = 0

    def post(self, path, body, stream=False):
        """The answer, after a new token if the old one is refused."""
        response = self._post(path, body, stream)
        if response.status_code == 401 and self.user:
            self.renewals += 1
            self.login(*self.user)
            response = self._post(path, body, stream)
        return response

    def _post(self, path, body, stream):
        headers = {"Authorization": self.token} if self.token else {}
        return self.session.post(f"{self.url}/v3{path}", json=body, headers=headers, stream=stream, timeout=CALL_LIMIT_SECS)

    def ok(self, path, body):
        response = self.post(path, body)
        assert response.status_code == 200, response.text
        assert response.headers["Content-Type"] == "application/json"
        return response.json()

    def login(self, name, password):
        self.user, self.token = (name, password), None
        self.token = self.ok("/auth/authenticate", {"name": name, "password": password})["token"]

    def set(self, key, value, **options):
        return self.ok("/kv/put", {"key": b64(key), "value": b64(json.dumps(value)), **options})

    def readdir(self, prefix, **options):
        return self.ok(
            "/kv/range",
            {
                "key": b64(prefix),
                "range_end": prefix_end(prefix),
                "limit": 0,
                "revision": 0,
                "sort_order": 0,
                "sort_target": 0,
                "serializable": False,
                "keys_only": False,
                "count_only": False,
                "min_mod_revision": 0,
                "max_mod_revision": 0,
                "min_create_revision": 0,
                "max_create_revision": 0,
                **options,
            },
        )

    def watch(self, prefix, **options):
        body = {
            "create_request": {
                "key": b64(prefix),
                "range_end": prefix_end(prefix),
                "start_revision": 0,
                "watch_id": 0,
                "progress_notify": True,
                "filters": [],
                "prev_kv": True,
                "need_cancel": True,
                **options,
            }
        }
        return Watch(self.post("/watch", body, stream=True))


class Watch:
    """An open watch: one chunk of the answer is one message or some."""

    def __init__(self, response):
        assert response.status_code == 200, response.text
        self.response = response
        self._lines = response.iter_lines(chunk_size=None)

    def next(self):
        return json.loads(next(self._lines))["result"]

    def events(self, count):
        seen = []
        while len(seen) < count:
            seen += self.next().get("events", [])
        return seen


@pytest.fixture
def lua(server):
    return Lua(server)


def test_version(lua):
    answer = lua.session.get(f"{lua.url}/version", timeout=CALL_LIMIT_SECS).json()
    assert answer["etcdserver"].startswith("3.")


def test_prefix_read_with_every_option(lua, prefix):
    for n in range(3):
        lua.set(f"{prefix}{n}", {"n": n})
    answer = lua.readdir(prefix)
    assert answer["count"] == "3"
    assert [text(kv["key"]) for kv in answer["kvs"]] == [f"{prefix}{n}" for n in range(3)]
    assert json.loads(text(answer["kvs"][2]["value"])) == {"n": 2}
    assert all(kv["create_revision"] == kv["mod_revision"] and kv["version"] == "1" for kv in answer["kvs"])
    assert int(answer["header"]["revision"]) >= int(answer["kvs"][2]["mod_revision"])

    limited = lua.readdir(prefix, limit=2, sort_order=2)
    assert (limited["more"], limited["count"]) == (True, "3")
    assert [text(kv["key"]) for kv in limited["kvs"]] == [f"{prefix}2", f"{prefix}1"]
    keys = lua.readdir(prefix, keys_only=True)
    assert all("value" not in kv for kv in keys["kvs"])
    assert "kvs" not in lua.readdir(prefix, count_only=True)
    # Nothing there: zero is left out.
    assert set(lua.readdir(prefix + "none")) == {"header"}


def test_lease_of_a_key(lua, prefix):
    lease = lua.ok("/lease/grant", {"TTL": 60, "ID": 0})
    assert lease["TTL"] == "60"
    lua.set(prefix + "k", 1, lease=lease["ID"])
    renewed = lua.ok("/lease/keepalive", {"ID": lease["ID"]})["result"]
    assert (renewed["ID"], renewed["TTL"]) == (lease["ID"], "60")
    left = lua.ok("/kv/lease/timetolive", {"ID": lease["ID"], "keys": True})
    assert left["grantedTTL"] == "60"
    assert [text(key) for key in left["keys"]] == [prefix + "k"]
    assert lease["ID"] in [known["ID"] for known in lua.ok("/lease/leases", {})["leases"]]
    lua.ok("/kv/lease/revoke", {"ID": lease["ID"]})
    assert "kvs" not in lua.ok("/kv/range", {"key": b64(prefix + "k")})
    gone = lua.post("/kv/lease/revoke", {"ID": lease["ID"]})
    assert (gone.status_code, gone.json()["message"]) == (404, "etcdserver: requested lease not found")


def test_txn(lua, prefix):
    key = b64(prefix + "t")
    create = {
        "compare": [{"target": "CREATE", "key": key, "createRevision": 0}],
        "success": [{"requestPut": {"key": key, "value": b64("1")}}],
        "failure": [{"requestRange": {"key": key}}],
    }
    assert lua.ok("/kv/txn", create)["succeeded"] is True
    second = lua.ok("/kv/txn", create)
    assert "succeeded" not in second
    assert text(second["responses"][0]["response_range"]["kvs"][0]["value"]) == "1"


def test_watch_from_a_revision(lua, prefix):
    start = int(lua.set(prefix + "a", 1)["header"]["revision"])
    lua.set(prefix + "a", 2)
    lua.ok("/kv/deleterange", {"key": b64(prefix + "a"), "prev_kv": False})
    watch = lua.watch(prefix, start_revision=start)
    created = watch.next()
    assert created["created"] is True and "events" not in created
    first, second, third = watch.events(3)
    assert "type" not in first and "prev_kv" not in first
    assert json.loads(text(second["prev_kv"]["value"])) == 1
    assert third["type"] == "DELETE" and "value" not in third["kv"]
    # And live, while the client reads.
    lua.set(prefix + "b", 3)
    (live,) = watch.events(1)
    assert text(live["kv"]["key"]) == prefix + "b"
    watch.response.close()


def test_progress_of_an_idle_watch(lua, prefix):
    watch = lua.watch(prefix)
    assert watch.next()["created"] is True
    # The interval is a second here.
    progress = watch.next()
    assert "events" not in progress and int(progress["header"]["revision"]) > 0
    watch.response.close()


def test_watch_of_a_compacted_revision_is_canceled(lua, prefix):
    for n in range(3):
        revision = int(lua.set(prefix + "c", n)["header"]["revision"])
    lua.ok("/kv/compaction", {"revision": revision})
    watch = lua.watch(prefix, start_revision=revision - 1)
    assert watch.next()["created"] is True
    canceled = watch.next()
    assert (canceled["canceled"], canceled["compact_revision"]) == (True, str(revision))
    watch.response.close()


def test_a_token_is_renewed(own_server):
    lua = Lua(own_server)
    lua.ok("/auth/user/add", {"name": "root", "password": "pw"})
    lua.ok("/auth/role/add", {"name": "root"})
    lua.ok("/auth/user/grant", {"user": "root", "role": "root"})
    lua.ok("/auth/enable", {})
    refused = lua.post("/kv/range", {"key": b64("a")})
    assert refused.json()["message"] == "etcdserver: user name is empty"
    lua.login("root", "pw")
    lua.set("a", 1)
    # Simple tokens do not outlive the member that gave them. (After a crash the log may give the newest again.)
    assert own_server.terminate() == 0
    own_server.start_without_client()
    lua.set("a", 2)
    assert lua.renewals == 1
    watch = lua.watch("a", start_revision=1)
    assert watch.next()["created"] is True
    assert len(watch.events(2)) == 2
    watch.response.close()
