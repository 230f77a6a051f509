"""The Redis store where Redis is at its limits or in trouble, with a real one."""

import contextlib
import logging
import re
import shutil
import time
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import pytest
import txredisapi
from prometheus_client import REGISTRY
from twisted.internet.defer import Deferred, DeferredList

from support.recipes import DOCS
from support.servers import RedisServer
from support.stores import SERVER_NAME, TTL_MS, Ends, SetTime, Time, redis_store, replace, result
from support.until import wait_until
from synapse_rendezvous.demo.throwaway_homeserver import HOST
from synapse_rendezvous.errors import SessionNotFound, StoreFull, StoreUnavailable
from synapse_rendezvous.preconditions import Preconditions, new_tag
from synapse_rendezvous.redis.link import RedisLink
from synapse_rendezvous.redis.store import RedisSessionStore
from synapse_rendezvous.session import LINGER_MS, Session, StoreUsage, Write, new_random_id
from synapse_rendezvous.store import SwapResult

HELLO = Write(b"hello", b"text/plain")
CLIENT = "203.0.113.9"
PASSWORD = "a-long-secret"
KEYS = [f"synapse_rendezvous:2:{{{SERVER_NAME}}}:{name}" for name in ("sessions", "queue", "totals")]
WORKERS = (DOCS / "workers.md").read_text()
LARGEST_ANSWER_S = 2
"""How long a client waits at most, whatever Redis does."""

pytestmark = pytest.mark.skipif(
    shutil.which("redis-server") is None, reason="redis-server is not installed (Debian: apt install redis-server)"
)


def now_ms() -> int:
    return int(time.time() * 1000)


@pytest.fixture
def redis(tmp_path_factory: pytest.TempPathFactory) -> Iterator[RedisServer]:
    server = RedisServer(tmp_path_factory.mktemp("redis"))
    server.start()
    yield server
    server.stop()


@pytest.fixture
def connect(redis: RedisServer) -> Iterator[Callable[..., Any]]:
    """Make connections as Synapse makes its own."""
    connections = []

    def connect(**options: Any) -> Any:
        connections.append(txredisapi.lazyConnection(HOST, redis.port, replyTimeout=30, **options))
        return connections[-1]

    yield connect
    for connection in connections:
        connection._factory.stopTrying()

        async def disconnect(connection: Any = connection) -> None:
            await connection.disconnect()

        result(disconnect())


class Recording:
    """A connection that remembers what scripts answer."""

    def __init__(self, connection: Any) -> None:
        self._connection = connection
        self.answers: list[Any] = []

    def eval(self, script: str, keys: Sequence[str], args: Sequence[bytes | int]) -> Deferred[Any]:
        def remember(answer: Any) -> Any:
            self.answers.append(answer)
            return answer

        return self._connection.eval(script, keys, args).addCallback(remember)  # type: ignore[no-any-return]


@pytest.fixture
def store(connect: Callable[..., Any]) -> RedisSessionStore:
    """A store that gives Redis as long as the module does."""
    return redis_store(connect(), now_ms, deadline_s=RedisLink.DEADLINE_S)


def create(store: RedisSessionStore, write: Write = HELLO) -> Session:
    return result(store.create(new_random_id(), new_tag(), write, CLIENT))


def sample(name: str) -> float:
    """Return what Prometheus would be told."""
    value = REGISTRY.get_sample_value(f"synapse_rendezvous_{name}", {"server_name": SERVER_NAME})
    assert value is not None
    return value


def used_memory(redis: RedisServer) -> int:
    """Return how many bytes Redis says it uses."""
    used = re.search(rb"used_memory:(\d+)", redis.command("INFO", "memory"))
    assert used is not None
    return int(used[1])


def assert_unavailable(store: RedisSessionStore, session: Session) -> None:
    """Every operation is answered in time, as unavailable, and never as if the session did not exist."""
    for operation in (
        store.get(session.id),
        replace(store, session.id, HELLO),
        store.delete(session.id, None),
        store.create(new_random_id(), new_tag(), HELLO, CLIENT),
    ):
        with pytest.raises(StoreUnavailable) as error:
            result(operation, LARGEST_ANSWER_S)
        assert (503, {"Retry-After": "1"}) == (error.value.code, error.value.headers)


def comes_back(store: RedisSessionStore) -> Session:
    """Return a new session, once one can be made; it takes as long as Synapse takes to connect again."""
    sessions = []

    def is_back() -> bool:
        with contextlib.suppress(StoreUnavailable):
            sessions.append(create(store))
        return bool(sessions)

    wait_until(is_back)
    return sessions[0]


def test_hung(store: RedisSessionStore, redis: RedisServer, caplog: pytest.LogCaptureFixture) -> None:
    """While Redis hangs nobody waits for it long; then it is as if nothing had been."""
    caplog.set_level(logging.WARNING)
    session = create(store)
    failures = sample("store_failures_total")
    redis.pause()
    assert_unavailable(store, session)
    assert "cannot be reached in Redis: no answer within 1.5 s. Requests" in caplog.text
    assert (failures + 4, 1) == (sample("store_failures_total"), sample("store_down"))
    redis.resume()
    comes_back(store)
    assert 0 == sample("store_down")

    assert session == result(store.get(session.id))


def test_restarted(store: RedisSessionStore, redis: RedisServer) -> None:
    """While Redis is gone nobody waits for it long. When it is back, empty and knowing no script, it is used again."""
    session = create(store)
    redis.kill()
    assert_unavailable(store, session)
    time.sleep(RedisLink.PAUSE_S)
    assert_unavailable(store, session)
    redis.start()
    again = comes_back(store)

    assert again == result(store.get(again.id))
    with pytest.raises(SessionNotFound):
        result(store.get(session.id))


def test_there_is_no_redis_at_first(store: RedisSessionStore, redis: RedisServer) -> None:
    """Synapse may start before Redis does."""
    redis.kill()
    with pytest.raises(StoreUnavailable):
        create(store)
    redis.start()
    comes_back(store)


def test_trouble_is_bounded(store: RedisSessionStore, redis: RedisServer, caplog: pytest.LogCaptureFixture) -> None:
    """However many ask while Redis hangs or is gone: few wait, nothing piles up, and one line is logged a minute."""
    caplog.set_level(logging.WARNING)
    session = create(store)
    connection: Any = store._link._connection
    for trouble in (redis.pause, redis.kill):
        trouble()
        asked = [Deferred.fromCoroutine(store.get(session.id)) for _ in range(RedisLink.MAX_PENDING + 500)]
        assert sum(not each.called for each in asked) <= RedisLink.MAX_PENDING

        async def all_of(asked: list[Deferred[Session]] = asked) -> Any:
            return await DeferredList(asked, consumeErrors=True)

        answers = result(all_of(), LARGEST_ANSWER_S)
        assert {StoreUnavailable} == {failure.type for _, failure in answers}
        for _ in range(1000):
            with pytest.raises(StoreUnavailable):
                result(store.get(session.id))
    assert len(connection._factory.connectionQueue.peekers) < 10

    ours = [record for record in caplog.records if record.name.startswith("synapse_rendezvous.")]
    warnings = [record for record in ours if record.levelno >= logging.WARNING]
    assert ["synapse_rendezvous.observer"] == [record.name for record in warnings]
    assert session.id not in warnings[0].getMessage()


def test_out_of_memory(store: RedisSessionStore, redis: RedisServer) -> None:
    """A full Redis takes nothing new, but what lives is read and ended, and the accounts stay right."""
    session, other = create(store), create(store)
    redis.command("CONFIG", "SET", "maxmemory", "1")
    for write in (store.create(new_random_id(), new_tag(), HELLO, CLIENT), replace(store, session.id, HELLO)):
        with pytest.raises(StoreUnavailable):
            result(write)
    assert session == result(store.get(session.id))
    result(store.delete(other.id, None))
    redis.command("CONFIG", "SET", "maxmemory", "0")

    assert session == result(store.get(session.id))
    totals = redis.command("HGETALL", KEYS[2])
    for field, total in ((b"bytes", b"5"), (b"203.0.113.9", b"1")):
        assert b"%b\r\n$1\r\n%b\r\n" % (field, total) in totals


def test_out_of_memory_until_sessions_expire(connect: Callable[..., Any], redis: RedisServer) -> None:
    """What has expired leaves a full Redis, and the accounts stay right."""
    time = Time()
    store = redis_store(SetTime(connect(), time), time, ttl_ms=1000)
    create(store)
    redis.command("CONFIG", "SET", "maxmemory", "1")
    time.now_ms += 1000 + LINGER_MS
    assert StoreUsage(0, 0, 0, is_swept=True) == result(store.sweep())
    redis.command("CONFIG", "SET", "maxmemory", "0")

    create(store)
    assert StoreUsage(1, 5, 1, is_swept=True) == result(store.sweep())


def test_read_only_replica(store: RedisSessionStore, redis: RedisServer) -> None:
    """A Redis that became a replica refuses writes; what lives is read."""
    session = create(store)
    redis.command("REPLICAOF", HOST, "9")
    with pytest.raises(StoreUnavailable):
        result(replace(store, session.id, HELLO))
    assert session == result(store.get(session.id))
    redis.command("REPLICAOF", "NO", "ONE")

    result(replace(store, session.id, HELLO))


def test_scripts_forgotten(store: RedisSessionStore, redis: RedisServer) -> None:
    """Redis may forget the scripts at any time."""
    session = create(store)
    redis.command("SCRIPT", "FLUSH")

    session = result(replace(store, session.id, HELLO))
    assert session == result(store.get(session.id))


def test_not_permitted(store: RedisSessionStore, redis: RedisServer, caplog: pytest.LogCaptureFixture) -> None:
    """Without the rights it needs the log says which."""
    caplog.set_level(logging.WARNING)
    session = create(store)
    redis.command("ACL", "SETUSER", "default", "-@scripting")
    assert_unavailable(store, session)

    assert "this user has no permissions to run the 'eval" in caplog.text


def test_least_rights(connect: Callable[..., Any], redis: RedisServer) -> None:
    """What docs/workers.md says a Redis user needs is enough, and no more."""
    (rule,) = re.findall(r"```\n(user .*?)```", WORKERS, re.DOTALL)
    _, name, *rights = rule.split()
    redis.command("ACL", "SETUSER", name, *rights)
    assert f">{PASSWORD}" in rights
    store = redis_store(connect(username=name, password=PASSWORD), now_ms)
    redis.command("CONFIG", "RESETSTAT")

    session = create(store, Write(b"", b""))
    session = result(replace(store, session.id, HELLO))
    for _ in range(2):  # once by the script's text, once by its hash
        assert session == result(store.get(session.id))
    result(store.delete(session.id, None))
    result(store.sweep())
    assert b"*0\r\n" == redis.command("ACL", "LOG")
    used = re.findall(r"cmdstat_(\w+)", redis.command("INFO", "commandstats").decode())
    assert {"subscribe", "ping"} == {right[1:] for right in rights if right.startswith("+")} - set(used)


def test_a_write_whose_answer_was_lost(store: RedisSessionStore, redis: RedisServer) -> None:
    """A write that was given up may have been done after all. Sent again, it is answered as it would have been."""
    session = create(store)
    write = Write(b"it is me", b"text/plain")
    redis.pause()
    with pytest.raises(StoreUnavailable):
        result(replace(store, session.id, write, session.tag))
    redis.resume()
    comes_back(store)

    written = result(store.get(session.id))
    assert b"it is me" == written.payload
    assert SwapResult(written, is_done=False) == result(store.swap(session.id, session.tag, new_tag(), write))
    assert Preconditions(if_match=frozenset({session.tag})).is_repeat(written, write)


def test_expiry(connect: Callable[..., Any]) -> None:
    """A session is there until its last millisecond by Redis' clock, and a little longer."""
    for _ in range(20):  # until nothing came between the last reads
        connection = Recording(connect())
        store = redis_store(connection, now_ms, ttl_ms=1000)
        session = create(store)
        while True:
            try:
                result(store.get(session.id))
            except SessionNotFound:
                break
        (*_, (_, last_ms, *_), (_, gone_ms, *_)) = connection.answers
        assert last_ms < session.expires_ms + LINGER_MS <= gone_ms
        if gone_ms - last_ms < 100:
            break
    assert gone_ms - last_ms < 100


def test_all_traces_go(connect: Callable[..., Any], redis: RedisServer, monkeypatch: pytest.MonkeyPatch) -> None:
    """A while after the last session's end all traces go without anybody's doing, whatever was there before."""
    store = redis_store(connect(), now_ms, ttl_ms=1000)
    create(store)
    for key in KEYS:
        assert 1000 < int(redis.command("PTTL", key)[1:]) <= 1000 + RedisSessionStore.GRACE_MS
    time.sleep(1.1)
    monkeypatch.setattr(RedisSessionStore, "GRACE_MS", 500)
    create(store)
    assert b":3\r\n" == redis.command("DBSIZE")
    wait_until(lambda: redis.command("DBSIZE") == b":0\r\n")


@pytest.mark.parametrize("lost", KEYS)
def test_keys_fall_together(store: RedisSessionStore, redis: RedisServer, lost: str) -> None:
    """Whichever key an operator or an eviction removes: the next session finds nothing of what was before."""
    sessions = [create(store) for _ in range(3)]
    redis.command("DEL", lost)
    with contextlib.suppress(SessionNotFound):
        result(replace(store, sessions[0].id, Write(b"longer", b"")))
        result(store.delete(sessions[1].id, None))
    result(store.sweep())
    assert b":0\r\n" == redis.command("EXISTS", lost)
    session = create(store)

    for each in sessions:
        with pytest.raises(SessionNotFound):
            result(store.get(each.id))
    assert session == result(store.get(session.id))
    assert StoreUsage(1, 5, 1, is_swept=True) == result(store.sweep())
    assert b":1\r\n" == redis.command("LLEN", KEYS[1])


def test_memory_a_session_takes(connect: Callable[..., Any], redis: RedisServer) -> None:
    """A session of 1 KiB takes at most 400 bytes beside its payload, all keys included."""
    count, size = 10_000, 1024
    store = redis_store(connect(), now_ms, max_sessions=count, max_total_bytes=count * size, max_client_sessions=count)
    create(store)
    before = used_memory(redis)
    for _ in range(count // 100 - 1):

        async def create_some() -> Any:
            writes = [
                store.create(new_random_id(), new_tag(), Write(b"x" * size, b"text/plain"), CLIENT) for _ in range(100)
            ]
            return await DeferredList([Deferred.fromCoroutine(write) for write in writes], fireOnOneErrback=True)

        result(create_some())
    overhead = (used_memory(redis) - before) / (count - 100) - size

    print(f"{overhead:.0f} bytes a session beside its payload")
    assert 100 < overhead <= 400


def test_other_layouts_are_left_alone(connect: Callable[..., Any], redis: RedisServer) -> None:
    """What a release with another layout keeps in the same Redis is neither read nor changed."""
    for name in KEYS:
        redis.command("SET", name.replace(":2:", ":1:"), "of another release")
        redis.command("SET", name.replace(":2:", ":"), "of the first one")
    store = redis_store(connect(), now_ms)
    session = create(store)
    assert 1 == result(store.sweep()).sessions
    assert session == result(store.get(session.id))
    for name in KEYS:
        assert b"of another release" in redis.command("GET", name.replace(":2:", ":1:"))
        assert b"of the first one" in redis.command("GET", name.replace(":2:", ":"))


def test_the_last_are_told(connect: Callable[..., Any]) -> None:
    """Of the sessions after which nobody creates another, a sweep still learns how they ended."""
    ends = Ends()
    store = redis_store(connect(), now_ms, ends=ends, ttl_ms=1000)
    sessions = [create(store), create(store)]
    result(replace(store, sessions[1].id, HELLO))
    time.sleep(1.1 + LINGER_MS / 1000)
    assert 0 == result(store.sweep()).sessions

    ended = [(each.id[:6], each.updates, each.lived_ms, each.reason) for each in ends.sessions]
    assert [(sessions[0].id[:6], 0, 1000, "expired"), (sessions[1].id[:6], 1, 1000, "expired")] == ended


def test_ttl_made_shorter(connect: Callable[..., Any]) -> None:
    """A session that ends before an older one is not served any longer, but counts until the older one is over."""
    time = Time()
    store, shorter = (
        redis_store(SetTime(connect(), time), time, ttl_ms=ttl_ms, max_sessions=2) for ttl_ms in (4000, 500)
    )
    older, younger = create(store), create(shorter)
    time.now_ms += 600 + LINGER_MS
    with pytest.raises(SessionNotFound):
        result(shorter.get(younger.id))
    with pytest.raises(StoreFull):
        create(shorter)
    assert older == result(shorter.get(older.id))
    time.now_ms += 3500
    create(shorter)
    assert StoreUsage(1, 5, 1, is_swept=True) == result(shorter.sweep())


def test_large_sessions_leave_a_few_at_a_time(connect: Callable[..., Any]) -> None:
    """Redis is not held up for long by what has expired, however large it is."""
    store = redis_store(connect(), now_ms, ttl_ms=1000, max_total_bytes=10_000_000)
    for _ in range(8):
        create(store, Write(b"x" * 400_000, b""))
    time.sleep(1.1 + LINGER_MS / 1000)
    swept = [result(store.sweep()) for _ in range(3)]
    assert [StoreUsage(5, 2_000_000, 1, False), StoreUsage(2, 800_000, 1, False), StoreUsage(0, 0, 0, True)] == swept


def test_workers_share_quotas(connect: Callable[..., Any]) -> None:
    """What one process lets in counts in all of them."""
    stores = [redis_store(connect(), now_ms, max_sessions=5) for _ in range(3)]
    sessions = [create(stores[index % 3]) for index in range(5)]
    for store in stores:
        with pytest.raises(StoreFull):
            create(store)
    result(stores[1].delete(sessions[0].id, None))
    create(stores[2])
    with pytest.raises(StoreFull):
        create(stores[0])


def test_clocks_of_workers(connect: Callable[..., Any]) -> None:
    """A worker whose clock is wrong does no harm and tells no wrong times."""
    right, wrong = redis_store(connect(), now_ms), redis_store(connect(), lambda: now_ms() + 3_600_000)
    session = create(wrong)
    assert session == result(right.get(session.id))
    assert 0 <= TTL_MS - (session.expires_ms - wrong.now_ms()) < 10_000
    create(right)
    assert session == result(wrong.get(session.id))


def test_homeservers_share_a_redis(connect: Callable[..., Any]) -> None:
    """One homeserver's sessions are nothing to another."""
    one, other = redis_store(connect(), now_ms), redis_store(connect(), now_ms, server_name="example.com:8448")
    session = create(one)
    with pytest.raises(SessionNotFound):
        result(other.get(session.id))


def test_nobody_is_told_of_sweeps_that_fail(
    store: RedisSessionStore, redis: RedisServer, caplog: pytest.LogCaptureFixture
) -> None:
    """What fails without a request that fails is neither logged nor counted as one."""
    caplog.set_level(logging.WARNING)
    create(store)
    failures = sample("store_failures_total")
    redis.pause()
    with pytest.raises(StoreUnavailable):
        result(store.sweep())
    redis.resume()
    assert "" == caplog.text
    assert (failures, 1) == (sample("store_failures_total"), sample("store_down"))
    comes_back(store)
