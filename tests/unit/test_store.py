"""What every store promises."""

import contextlib
import gc
import re
import shutil
import tracemalloc
from collections import Counter
from collections.abc import Iterator
from functools import partial
from typing import Any, ClassVar

import pytest
import txredisapi
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import Bundle, RuleBasedStateMachine, consumes, invariant, multiple, rule

from support.servers import RedisServer
from support.stores import GONE_MS, TTL_MS, Ends, MemoryStores, RedisStores, Time, quotas_of, replace, result
from synapse_rendezvous.demo.throwaway_homeserver import HOST
from synapse_rendezvous.errors import SessionNotFound, StoreFull
from synapse_rendezvous.memory_store import MemorySessionStore
from synapse_rendezvous.outcomes import CONFLICT, OUTCOME_BYTES
from synapse_rendezvous.preconditions import new_tag
from synapse_rendezvous.session import LINGER_MS, Session, StoreUsage, Write, new_random_id
from synapse_rendezvous.store import SessionStore, SwapResult

HELLO = Write(b"hello", b"text/plain")
CLIENT = "203.0.113.9"
NETWORKS = ["20010db800010000", "20010db800010001", "20010db800010002", "20010db800010003", "20010db800010100"]
"""IPv6 /64 networks in one /48, all but the last in one /56."""


@pytest.fixture
def time() -> Time:
    return Time()


@pytest.fixture(scope="module")
def connection(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Any]:
    """A connection, made as Synapse makes its own, to a Redis that is ours alone."""
    if shutil.which("redis-server") is None:
        pytest.skip("redis-server is not installed (Debian: apt install redis-server)")
    server = RedisServer(tmp_path_factory.mktemp("redis"))
    server.start()
    connection = txredisapi.lazyConnection(HOST, server.port)

    async def disconnect() -> None:
        await connection.disconnect()

    yield connection
    result(disconnect())
    server.stop()


@pytest.fixture(params=["memory", "redis"])
def stores(request: pytest.FixtureRequest, time: Time) -> MemoryStores | RedisStores:
    if request.param == "memory":
        return MemoryStores(time)
    return RedisStores(request.getfixturevalue("connection"), time)


@pytest.fixture
def store(stores: MemoryStores | RedisStores) -> SessionStore:
    return stores.make()


def test_create_and_get(store: SessionStore, time: Time) -> None:
    """What was created is there, with an id and a tag of the promised form."""
    session = result(store.create(new_random_id(), new_tag(), HELLO, CLIENT))

    assert session == result(store.get(session.id))
    assert (b"hello", b"text/plain") == (session.payload, session.content_type)
    assert re.fullmatch(r"[A-Za-z0-9_-]{22}", session.id)
    assert re.fullmatch(rb"[0-9a-z]{20}", session.tag)
    assert time.start_ms == session.last_modified_ms
    assert time.start_ms + TTL_MS == session.expires_ms


@pytest.mark.parametrize("session_id", ["", "-", "\xff" * 22, "\0" * 22, "a:b", "queue"])
def test_get_what_is_no_id(store: SessionStore, session_id: str) -> None:
    """Whatever characters a client makes an id of, there is no such session."""
    result(store.create(new_random_id(), new_tag(), HELLO, CLIENT))
    for operation in (
        store.get(session_id),
        replace(store, session_id, HELLO),
        store.delete(session_id, None),
    ):
        with pytest.raises(SessionNotFound):
            result(operation)


def test_replace(store: SessionStore, time: Time) -> None:
    """A write makes a new revision of the same session and does not prolong its life."""
    first = result(store.create(new_random_id(), new_tag(), HELLO, CLIENT))
    time.now_ms += 1000

    second = result(replace(store, first.id, Write(b"bye", b"text/html"), first.tag))

    assert second == result(store.get(first.id))
    assert (first.id, b"bye", b"text/html") == (second.id, second.payload, second.content_type)
    assert first.tag != second.tag
    assert first.tag == second.previous_tag
    assert time.start_ms + 1000 == second.last_modified_ms
    assert first.expires_ms == second.expires_ms


def test_same_bytes_are_a_new_revision(store: SessionStore) -> None:
    """Each device that writes the same bytes makes a revision of its own."""
    tags = set()
    session = result(store.create(new_random_id(), new_tag(), HELLO, CLIENT))
    for _ in range(50):
        tags.add(session.tag)
        session = result(replace(store, session.id, HELLO, session.tag))

    assert 50 == len(tags)


def test_another_tag_changes_nothing(store: SessionStore) -> None:
    """The loser of a race gets the winner's revision, which stays; the bytes do not count, only the tag."""
    first = result(store.create(new_random_id(), new_tag(), HELLO, CLIENT))
    winner = result(replace(store, first.id, Write(b"winner", b""), first.tag))

    for tag in (first.tag, b"", b"*", b"=", winner.tag[:-1], winner.tag + b"0", b"\xff" * 20, b"x" * 9000):
        for payload in (b"loser", b"winner"):
            swap = store.swap(first.id, tag, new_tag(), Write(payload, b""))
            assert SwapResult(winner, is_done=False) == result(swap)
        assert SwapResult(winner, is_done=False) == result(store.delete(first.id, tag))

    assert winner == result(store.get(first.id))


def test_delete(store: SessionStore) -> None:
    """What was deleted is gone."""
    session = result(store.create(new_random_id(), new_tag(), HELLO, CLIENT))

    result(store.delete(session.id, session.tag))

    for operation in (
        store.get(session.id),
        replace(store, session.id, HELLO),
        store.delete(session.id, None),
    ):
        with pytest.raises(SessionNotFound):
            result(operation)


@pytest.mark.parametrize("operation", ["get", "swap", "delete"])
def test_expiry(store: SessionStore, time: Time, operation: str) -> None:
    """A session lives to the last millisecond of its time, and a little longer, and not one more."""
    sessions = [result(store.create(new_random_id(), new_tag(), HELLO, CLIENT)) for _ in range(2)]
    arguments: dict[str, tuple[Any, ...]] = {"get": (), "swap": (None, new_tag(), HELLO), "delete": (None,)}

    time.now_ms = time.start_ms + GONE_MS - 1
    result(getattr(store, operation)(sessions[0].id, *arguments[operation]))
    time.now_ms += 1
    with pytest.raises(SessionNotFound):
        result(getattr(store, operation)(sessions[1].id, *arguments[operation]))


def test_writing_does_not_prolong(store: SessionStore, time: Time) -> None:
    """No session can be kept alive."""
    session = result(store.create(new_random_id(), new_tag(), HELLO, CLIENT))
    for _ in range(10):
        time.now_ms += TTL_MS // 10 - 1
        result(replace(store, session.id, HELLO))

    time.now_ms = time.start_ms + GONE_MS
    with pytest.raises(SessionNotFound):
        result(store.get(session.id))


def test_full_of_sessions(store: SessionStore, time: Time) -> None:
    """The newcomer is refused; everybody else stays, and can write and end; room comes back."""
    sessions = [result(store.create(new_random_id(), new_tag(), HELLO, CLIENT)) for _ in range(10)]

    with pytest.raises(StoreFull) as refusal:
        result(store.create(new_random_id(), new_tag(), HELLO, CLIENT))

    assert "max_sessions" == refusal.value.limiter_name
    assert sessions == [result(store.get(session.id)) for session in sessions]
    result(replace(store, sessions[0].id, Write(b"longer than before", b"")))
    result(store.delete(sessions[1].id, None))
    result(store.create(new_random_id(), new_tag(), HELLO, CLIENT))
    with pytest.raises(StoreFull):
        result(store.create(new_random_id(), new_tag(), HELLO, CLIENT))

    time.now_ms += GONE_MS
    for _ in range(10):
        result(store.create(new_random_id(), new_tag(), HELLO, CLIENT))


def test_full_of_bytes(stores: MemoryStores | RedisStores) -> None:
    """The bound holds to the byte, for creations and for payloads that grow; shrinking is always allowed."""
    store = stores.make(max_total_bytes=100)
    session = result(store.create(new_random_id(), new_tag(), Write(b"x" * 60, b""), CLIENT))
    with pytest.raises(StoreFull) as refusal:
        result(store.create(new_random_id(), new_tag(), Write(b"x" * 41, b""), CLIENT))
    assert "max_total_bytes" == refusal.value.limiter_name
    other = result(store.create(new_random_id(), new_tag(), Write(b"x" * 40, b""), CLIENT))
    result(store.create(new_random_id(), new_tag(), Write(b"", b""), CLIENT))

    with pytest.raises(StoreFull):
        result(replace(store, session.id, Write(b"x" * 61, b"")))
    assert session == result(store.get(session.id))
    shrunk = result(replace(store, session.id, Write(b"x" * 59, b""), session.tag))
    result(replace(store, other.id, Write(b"x" * 41, b"")))

    assert 100 == stores.account().total_bytes
    # The tag counts first: whoever has another one learns the current revision.
    swap = store.swap(session.id, session.tag, new_tag(), Write(b"x" * 99, b""))
    assert SwapResult(shrunk, is_done=False) == result(swap)


def test_full_for_a_client(stores: MemoryStores | RedisStores, time: Time) -> None:
    """Who has as many sessions as one client may is refused; another is not. Room comes back with each that ends."""
    store = stores.make(max_client_sessions=2)
    sessions = [result(store.create(new_random_id(), new_tag(), HELLO, CLIENT)) for _ in range(2)]
    time.now_ms += 1

    for _ in range(2):
        with pytest.raises(StoreFull) as refusal:
            result(store.create(new_random_id(), new_tag(), HELLO, CLIENT))
        assert "per_client.max_sessions" == refusal.value.limiter_name
    result(store.create(new_random_id(), new_tag(), HELLO, "198.51.100.7"))
    result(store.delete(sessions[0].id, None))
    result(store.create(new_random_id(), new_tag(), HELLO, CLIENT))
    time.now_ms = time.start_ms + GONE_MS
    result(store.create(new_random_id(), new_tag(), HELLO, CLIENT))
    with pytest.raises(StoreFull):
        result(store.create(new_random_id(), new_tag(), HELLO, CLIENT))


def test_wider_networks(stores: MemoryStores | RedisStores) -> None:
    """A /56 network may have three times as many sessions as one client, a /48 six times."""
    store = stores.make(max_sessions=100, max_client_sessions=2)

    def create_all(prefix: str, count: int) -> int:
        made = 0
        for index in range(count):
            with contextlib.suppress(StoreFull):
                result(store.create(new_random_id(), new_tag(), HELLO, f"{prefix}{index:x}".ljust(16, "0")))
                made += 1
        return made

    assert 2 == sum(create_all("20010db80001000", 1) for _ in range(5))
    assert 4 == create_all("20010db80001000", 16)
    assert 6 == create_all("20010db8000101", 16) + create_all("20010db80001020", 16)
    assert 0 == create_all("20010db800010", 16)
    assert 6 == create_all("20010db80002000", 16)
    for _ in range(20):
        result(store.create(new_random_id(), new_tag(), HELLO, "unknown"))


def test_crowded(stores: MemoryStores | RedisStores, time: Time) -> None:
    """While the store is crowded a client may have only a few sessions; what it has more of, it keeps."""
    store = stores.make(max_client_sessions=5, crowded_sessions=6, crowded_client_sessions=2)
    many = [result(store.create(new_random_id(), new_tag(), HELLO, CLIENT)) for _ in range(5)]
    result(store.create(new_random_id(), new_tag(), HELLO, "198.51.100.1"))

    result(store.create(new_random_id(), new_tag(), HELLO, "198.51.100.1"))
    for client in (CLIENT, "198.51.100.1"):
        with pytest.raises(StoreFull) as refusal:
            result(store.create(new_random_id(), new_tag(), HELLO, client))
        assert "per_client.crowded_sessions" == refusal.value.limiter_name
    assert many == [result(store.get(session.id)) for session in many]
    time.now_ms += GONE_MS
    for _ in range(5):
        result(store.create(new_random_id(), new_tag(), HELLO, CLIENT))


def test_updates(stores: MemoryStores | RedisStores) -> None:
    """A payload is replaced as often as it may be; then it can still be read, and ended."""
    store = stores.make(max_updates=2)
    session = result(store.create(new_random_id(), new_tag(), HELLO, CLIENT))
    for number in (b"1", b"2"):
        known, session = session, result(replace(store, session.id, Write(number, b""), session.tag))

    with pytest.raises(StoreFull) as refusal:
        result(replace(store, session.id, Write(b"3", b"")))
    assert "max_updates" == refusal.value.limiter_name
    assert SwapResult(session, is_done=False) == result(store.swap(session.id, known.tag, new_tag(), HELLO))
    assert session == result(store.get(session.id))
    result(store.delete(session.id, None))


def test_transaction_after_the_peer_has_written(store: SessionStore) -> None:
    """What became of a write is what a retry gets, whoever sends it and whatever it says; it changes nothing."""
    session = result(store.create(new_random_id(), new_tag(), HELLO, CLIENT))
    tags = [session.tag, new_tag(), new_tag()]
    for transaction_id, known, tag in ((b"one", tags[0], tags[1]), (b"two", tags[1], tags[2])):
        swap = result(store.swap(session.id, known, tag, Write(transaction_id, b""), transaction_id))
        assert (tag, True, None) == (swap.session.tag, swap.is_done, swap.kept)

    for expected in (*tags, None, b"nobody's"):
        for transaction_id, kept in ((b"one", tags[1]), (b"two", tags[2])):
            again = result(store.swap(session.id, expected, new_tag(), Write(b"other", b""), transaction_id))
            assert (tags[2], b"two", False, kept) == (again.session.tag, again.session.payload, *again[1:])
    assert 2 == result(store.get(session.id)).updates


def test_transaction_of_a_conflict(store: SessionStore) -> None:
    """A conflict is kept as well, and stays one where the tag is right by now."""
    session = result(store.create(new_random_id(), new_tag(), HELLO, CLIENT))

    conflict = result(store.swap(session.id, b"nobody's", new_tag(), HELLO, b"one"))
    assert (session.tag, False, None) == (conflict.session.tag, *conflict[1:])
    for expected in (b"nobody's", session.tag):
        assert CONFLICT == result(store.swap(session.id, expected, new_tag(), HELLO, b"one")).kept
    assert result(store.swap(session.id, session.tag, new_tag(), HELLO, b"two")).is_done


def test_transactions_are_those_of_a_session(store: SessionStore) -> None:
    """An id means nothing in another session, and nothing once its session has ended."""
    for _ in range(3):
        session = result(store.create(new_random_id(), new_tag(), HELLO, CLIENT))
        for transaction_id in (b"one", b"one\0", b"~" * 255, b"~" * 254, b"One"):
            session, is_done, _ = result(store.swap(session.id, session.tag, new_tag(), HELLO, transaction_id))
            assert is_done
    result(store.delete(session.id, None))
    with pytest.raises(SessionNotFound):
        result(store.swap(session.id, session.tag, new_tag(), HELLO, b"one"))


def test_writes_without_a_transaction_keep_what_is_kept(store: SessionStore) -> None:
    """Both kinds of writes may be made in one session."""
    session = result(store.create(new_random_id(), new_tag(), HELLO, CLIENT))
    done = result(store.swap(session.id, session.tag, new_tag(), HELLO, b"one")).session
    result(replace(store, session.id, HELLO, done.tag))
    result(replace(store, session.id, HELLO))
    assert done.tag == result(store.swap(session.id, None, new_tag(), HELLO, b"one")).kept


def test_full_of_outcomes(stores: MemoryStores | RedisStores) -> None:
    """As many outcomes are kept as may be, and none is given up for another; a write that is refused keeps none."""
    store = stores.make(max_outcomes=3, max_updates=2, max_total_bytes=20)
    session = result(store.create(new_random_id(), new_tag(), HELLO, CLIENT))
    with pytest.raises(StoreFull):
        result(store.swap(session.id, session.tag, new_tag(), Write(b"x" * 21, b""), b"one"))
    kept = {}
    for transaction_id in (b"one", b"two"):
        session = result(store.swap(session.id, session.tag, new_tag(), HELLO, transaction_id)).session
        kept[transaction_id] = session.tag
    with pytest.raises(StoreFull):  # for it was replaced as often as it may be
        result(store.swap(session.id, session.tag, new_tag(), HELLO, b"three"))
    result(store.swap(session.id, b"nobody's", new_tag(), HELLO, b"three"))
    for expected in (session.tag, b"nobody's"):
        with pytest.raises(StoreFull) as refusal:
            result(store.swap(session.id, expected, new_tag(), HELLO, b"four"))
        assert "max_updates" == refusal.value.limiter_name
    for transaction_id, outcome in {**kept, b"three": CONFLICT}.items():
        assert outcome == result(store.swap(session.id, None, new_tag(), HELLO, transaction_id)).kept


def test_nothing_is_left_of_outcomes(stores: MemoryStores | RedisStores, time: Time) -> None:
    """However a session ends, what was kept of its writes goes with it."""
    store = stores.make()
    for index in range(3):
        session = result(store.create(new_random_id(), new_tag(), HELLO, CLIENT))
        result(store.swap(session.id, session.tag, new_tag(), HELLO, b"one"))
        if index:
            result(store.delete(session.id, None))
    assert 1 == len(stores.account().sizes)
    time.now_ms += GONE_MS
    result(store.sweep())
    assert ({}, 0, {}) == stores.account()


def test_a_clock_that_is_set() -> None:
    """Sessions age by a clock that is never set; the time of day is read again once no session is left."""
    wall, steady = Time(), Time()
    store = MemorySessionStore(wall, steady.monotonic_ns, quotas_of({}), Ends())
    session = result(store.create(new_random_id(), new_tag(), HELLO, CLIENT))
    for jump_ms in (3_600_000, -7_200_000):
        wall.now_ms += jump_ms
        assert session == result(store.get(session.id))
    steady.now_ms += GONE_MS - 1
    assert 1 - LINGER_MS == session.expires_ms - store.now_ms()
    steady.now_ms += 1
    with pytest.raises(SessionNotFound):
        result(store.get(session.id))
    assert wall.now_ms == result(store.create(new_random_id(), new_tag(), HELLO, CLIENT)).last_modified_ms


def test_nothing_is_left_of_those_that_expired(stores: MemoryStores | RedisStores, time: Time) -> None:
    """However many expire on their own, what they counted for comes back, to the byte."""
    store = stores.make(max_sessions=250, max_total_bytes=250 * 5, max_client_sessions=250)
    for index in range(250):
        session = result(store.create(new_random_id(), new_tag(), Write(b"", b""), f"192.0.2.{index % 7}"))
        result(replace(store, session.id, HELLO))
    held = stores.account()
    assert (250, 250 * 5, 7) == (len(held.sizes), held.total_bytes, len(held.client_sessions))
    with pytest.raises(StoreFull):
        result(store.create(new_random_id(), new_tag(), HELLO, CLIENT))

    time.now_ms += GONE_MS
    for _ in range(250):
        result(store.create(new_random_id(), new_tag(), HELLO, CLIENT))

    assert {CLIENT: 250} == stores.account().client_sessions
    assert 250 * 5 == stores.account().total_bytes


@pytest.mark.parametrize("payload", [b"", b"0123", b"1_000", b"1e5", b"-1", b"inf", bytes(range(256)), b"\xc3\xa9"])
@pytest.mark.parametrize("content_type", [b"", b"text/plain", b"7", b"\t\xff" + b"x" * 253])
def test_every_byte_survives(store: SessionStore, payload: bytes, content_type: bytes) -> None:
    """No payload and no type is taken for something else."""
    session = result(store.create(new_random_id(), new_tag(), Write(payload, content_type), CLIENT))
    assert (payload, content_type) == (session.payload, session.content_type)
    assert session == result(store.get(session.id))

    replaced = result(replace(store, session.id, Write(content_type, payload[:255])))
    assert (content_type, payload[:255]) == (replaced.payload, replaced.content_type)
    assert replaced == result(store.get(session.id))


def test_sweep(stores: MemoryStores | RedisStores, time: Time) -> None:
    """What has expired is forgotten, and only that; the end of each session is reported, once."""
    store = stores.make()
    old = [result(store.create(new_random_id(), new_tag(), HELLO, CLIENT)) for _ in range(3)]
    result(store.delete(old[1].id, None))
    result(replace(store, old[2].id, HELLO))
    time.now_ms += 1
    young = result(store.create(new_random_id(), new_tag(), HELLO, CLIENT))

    assert StoreUsage(3, 15, 1, is_swept=True) == result(store.sweep())
    time.now_ms = time.start_ms + GONE_MS
    assert StoreUsage(1, 5, 1, is_swept=True) == result(store.sweep())

    assert ({young.id[:6]: 5}, 5, {CLIENT: 1}) == stores.account()
    assert young == result(store.get(young.id))
    ended = [(each.id[:6], each.updates, each.lived_ms, each.reason) for each in stores.ends.sessions]
    assert (old[1].id[:6], 0, 0, "deleted") == ended[0]
    assert {(old[0].id[:6], 0, TTL_MS, "expired"), (old[2].id[:6], 1, TTL_MS, "expired")} == set(ended[1:])
    assert ["lonely", "lonely", "paired"] == sorted(each.outcome for each in stores.ends.sessions)


def test_sweep_some_at_a_time(stores: MemoryStores | RedisStores, time: Time) -> None:
    """Whoever sweeps hears that more is to be swept, until nothing is."""
    store = stores.make(max_sessions=300, max_total_bytes=10_000, max_client_sessions=300)
    for _ in range(250):
        result(store.create(new_random_id(), new_tag(), HELLO, CLIENT))
    time.now_ms += GONE_MS
    young = result(store.create(new_random_id(), new_tag(), HELLO, CLIENT))
    swept = [result(store.sweep()).is_swept]
    while not swept[-1]:
        swept.append(result(store.sweep()).is_swept)
    assert 2 <= len(swept) <= 6
    assert StoreUsage(1, 5, 1, is_swept=True) == result(store.sweep())
    assert young == result(store.get(young.id))
    assert 250 == len(stores.ends.sessions)


def test_memory_outcomes_take(time: Time) -> None:
    """An outcome takes no more than is said, however long the transaction id, beside some for each session."""
    count, outcomes = 200, 128
    store = MemoryStores(time).make(max_sessions=count, max_client_sessions=count, max_total_bytes=count * 5)
    ids = [result(store.create(new_random_id(), new_tag(), HELLO, CLIENT)).id for _ in range(count)]
    tracemalloc.start()
    try:
        before, _ = tracemalloc.get_traced_memory()
        for session_id in ids:
            for number in range(outcomes):
                result(store.swap(session_id, b"nobody's", new_tag(), HELLO, b"%0255d" % number))
        after, _ = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    grown = (after - before) / count

    print(f"{grown:.0f} bytes for {outcomes} outcomes")
    assert outcomes * OUTCOME_BYTES <= grown <= outcomes * OUTCOME_BYTES + 600


def test_memory_a_session_takes(time: Time) -> None:
    """A session takes at most 600 bytes beside its payload, the store's own tables included."""
    count, size = 20_000, 1024
    store = MemoryStores(time).make(max_sessions=count, max_total_bytes=count * size, max_client_sessions=count)
    tracemalloc.start()
    try:
        before, _ = tracemalloc.get_traced_memory()
        for index in range(count):
            # As over the wire, nothing is shared between sessions.
            payload, content_type = bytes([index % 256]) * size, bytes(bytearray(b"application/octet-stream"))
            session = result(store.create(new_random_id(), new_tag(), Write(payload, content_type), CLIENT))
            result(replace(store, session.id, Write(payload[::-1], content_type)))
            del session, payload, content_type
        after, _ = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    overhead = (after - before) / count - size

    print(f"{overhead:.0f} bytes a session beside its payload")
    assert 100 < overhead <= 600


def visible(swap: SwapResult) -> SwapResult:
    """Leave out what a store keeps with a session for itself."""
    return swap._replace(session=swap.session._replace(outcomes=b""))


class StoreMachine(RuleBasedStateMachine):
    """A store beside a plain model of it, under any sequence of operations and times."""

    sessions = Bundle("sessions")
    writes = st.builds(Write, st.binary(max_size=40), st.sampled_from([b"text/plain", b"text/html"]))
    clients = st.sampled_from([CLIENT, "unknown", *NETWORKS])

    stores: ClassVar[Any]

    def __init__(self) -> None:
        super().__init__()
        self.time = Time()
        self.look = type(self).stores(self.time)
        self.store = self.look.make(
            max_sessions=9,
            max_total_bytes=200,
            max_updates=3,
            max_outcomes=5,
            max_client_sessions=2,
            crowded_sessions=7,
            crowded_client_sessions=1,
        )
        self.model: dict[str, Session] = {}
        self.created: dict[str, Session] = {}
        self.outcomes: dict[tuple[str, bytes], bytes] = {}

    def alive(self) -> dict[str, Session]:
        now_ms = self.time.now_ms
        return {key: value for key, value in self.model.items() if value.expires_ms + LINGER_MS > now_ms}

    def room(self, growth: int) -> bool:
        return growth <= 0 or sum(len(session.payload) for session in self.alive().values()) + growth <= 200

    def may_create(self, client: str) -> bool:
        clients = [session.client for session in self.alive().values()]
        most = 1 if len(clients) >= 7 else 2
        if client == "unknown" or len(clients) == 9:
            return len(clients) < 9
        wider = {12: 6 * most, 14: 3 * most} if client in NETWORKS else {}
        return clients.count(client) < most and all(
            sum(each[:digits] == client[:digits] for each in clients if each in NETWORKS) < bound
            for digits, bound in wider.items()
        )

    @rule(target=sessions, write=writes, client=clients)
    def create(self, write: Write, client: str) -> Any:
        if not self.may_create(client) or not self.room(len(write.payload)):
            with pytest.raises(StoreFull):
                result(self.store.create(new_random_id(), new_tag(), write, client))
            return multiple()
        session = result(self.store.create(new_random_id(), new_tag(), write, client))
        assert (write, client) == ((session.payload, session.content_type), session.client)
        assert self.time.now_ms + TTL_MS == session.expires_ms
        self.model[session.id] = self.created[session.id[:6]] = session
        return session

    @rule(target=sessions, seen=sessions, write=writes, transaction_id=st.sampled_from([None, *b"abcdef"]))
    def replace(self, seen: Session, write: Write, transaction_id: int | None) -> Any:
        current, key = self.alive().get(seen.id), None if transaction_id is None else bytes([transaction_id])
        operation, names = self.store.swap(seen.id, seen.tag, tag := new_tag(), write, key), (seen.id, key or b"")
        outcomes = [name for name in self.outcomes if name[0] == seen.id]
        if current is None:
            with pytest.raises(SessionNotFound):
                result(operation)
        elif names in self.outcomes:
            assert SwapResult(current, is_done=False, kept=self.outcomes[names]) == visible(result(operation))
        elif key is not None and len(outcomes) == 5:
            with pytest.raises(StoreFull):
                result(operation)
        elif current.tag != seen.tag:
            assert SwapResult(current, is_done=False) == visible(result(operation))
            if key is not None:
                self.outcomes[names] = CONFLICT
        elif current.updates == 3 or not self.room(len(write.payload) - len(current.payload)):
            with pytest.raises(StoreFull):
                result(operation)
        else:
            swapped = visible(result(operation))
            assert (True, tag) == (swapped.is_done, swapped.session.tag)
            if key is not None:
                self.outcomes[names] = tag
            self.model[seen.id] = self.created[seen.id[:6]] = swapped.session
            assert write == (self.model[seen.id].payload, self.model[seen.id].content_type)
            return self.model[seen.id]
        return multiple()

    @rule(seen=consumes(sessions))
    def delete(self, seen: Session) -> None:
        if seen.id in self.alive():
            assert result(self.store.delete(seen.id, None)).is_done
            del self.model[seen.id]
        else:
            with pytest.raises(SessionNotFound):
                result(self.store.delete(seen.id, None))

    @rule(elapsed_ms=st.sampled_from([1, 1000, GONE_MS // 2, GONE_MS - 1, GONE_MS]))
    def wait(self, elapsed_ms: int) -> None:
        self.time.now_ms += elapsed_ms

    @rule()
    def sweep(self) -> None:
        held = result(self.store.sweep())
        assert (len(self.alive()), True) == (held.sessions, held.is_swept)
        assert held.sessions + len(self.look.ends.sessions) == len(self.created)
        for ended in self.look.ends.sessions:
            assert self.created[ended.id[:6]].updates == ended.updates

    @invariant()
    def agrees(self) -> None:
        for session in self.alive().values():
            assert session == result(self.store.get(session.id))._replace(outcomes=b"")
        held = self.look.account()
        assert {each.id[:6]: len(each.payload) for each in self.alive().values()}.items() <= held.sizes.items()
        assert sum(held.sizes.values()) == held.total_bytes
        counted: Counter[str] = Counter()
        for short_id in held.sizes:
            client = self.created[short_id].client
            counted.update([client[:digits] for digits in (16, 14, 12)] if client in NETWORKS else [client])
        del counted["unknown"]
        assert counted == held.client_sessions
        assert 9 >= len(held.sizes)


class MemoryMachine(StoreMachine):
    """The memory store."""

    stores = MemoryStores


MemoryMachine.TestCase.settings = settings(max_examples=100, stateful_step_count=50, deadline=None)
test_memory_against_a_model = MemoryMachine.TestCase


class RedisMachine(StoreMachine):
    """The Redis store."""


@pytest.fixture
def _redis_machine(connection: Any) -> None:
    RedisMachine.stores = partial(RedisStores, connection)


RedisMachine.TestCase.settings = settings(max_examples=50, stateful_step_count=50, deadline=None)
test_redis_against_a_model = pytest.mark.usefixtures("_redis_machine")(RedisMachine.TestCase)


def test_many_hold_nobody_up(time: Time) -> None:
    """Many sessions are nothing to the garbage collector, for which everybody would have to wait."""
    stores = MemoryStores(time)
    store = stores.make(max_sessions=10_000, max_total_bytes=100_000)
    write = Write(b"hello", b"text/plain")
    gc.collect()
    before = sum(isinstance(each, Session) for each in gc.get_objects())
    for number in range(5000):
        result(store.create(f"{number:022}", new_tag(), write, f"10.0.{number >> 8}.{number & 255}"))
    gc.collect()

    looked_at = gc.get_objects()
    assert sum(isinstance(each, Session) for each in looked_at) - before < 500
    assert not [each for each in looked_at if isinstance(each, dict) and "10.0.0.1" in each]
