"""What every store promises."""

import re
import tracemalloc
from collections.abc import Coroutine
from typing import Any, TypeVar

import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import Bundle, RuleBasedStateMachine, consumes, invariant, multiple, rule
from twisted.internet.defer import Deferred

from synapse_rendezvous.errors import PreconditionFailed, SessionNotFound, StoreFull
from synapse_rendezvous.preconditions import UNCONDITIONAL, EntityTags, Preconditions
from synapse_rendezvous.session import RANDOM_ID, Session, Write, new_random_id
from synapse_rendezvous.store import MemorySessionStore

TTL_MS = 300_000
START_MS = 1_700_000_000_000
HELLO = Write(b"hello", b"text/plain")

T = TypeVar("T")


def result(coroutine: Coroutine[Deferred[Any], Any, T]) -> T:
    """Return what a store's operation returns, or raise what it raises."""
    results: list[T] = []
    failures: list[BaseException] = []
    Deferred.fromCoroutine(coroutine).addCallbacks(results.append, lambda failure: failures.append(failure.value))
    for failure in failures:
        raise failure
    return results[0]


def if_match(tag: bytes) -> Preconditions:
    return Preconditions(if_match=EntityTags(any=False, tags=frozenset({tag})))


class Time:
    """A clock that is set by hand."""

    def __init__(self) -> None:
        self.now_ms = START_MS

    def __call__(self) -> int:
        return self.now_ms


def memory_store(now_ms: Time, **quotas: int) -> MemorySessionStore:
    return MemorySessionStore(now_ms, ttl_ms=TTL_MS, **{"max_sessions": 10, "max_total_bytes": 1000, **quotas})


@pytest.fixture
def time() -> Time:
    return Time()


@pytest.fixture
def store(time: Time) -> MemorySessionStore:
    return memory_store(time)


def test_create_and_get(store: MemorySessionStore) -> None:
    """What was created is there, with an id and a tag of the promised form."""
    session = result(store.create(new_random_id(), HELLO))

    assert session == result(store.get(session.id))
    assert (b"hello", b"text/plain") == (session.payload, session.content_type)
    assert re.fullmatch(RANDOM_ID, session.id)
    assert re.fullmatch(rb"[0-9a-z]{20}", session.tag)
    assert START_MS == session.last_modified_ms
    assert START_MS + TTL_MS == session.expires_ms


def test_replace(store: MemorySessionStore, time: Time) -> None:
    """A write makes a new revision of the same session and does not prolong its life."""
    first = result(store.create(new_random_id(), HELLO))
    time.now_ms += 1000

    second = result(store.replace(first.id, Write(b"bye", b"text/html"), if_match(first.tag)))

    assert second == result(store.get(first.id))
    assert (first.id, b"bye", b"text/html") == (second.id, second.payload, second.content_type)
    assert first.tag != second.tag
    assert first.tag == second.previous_tag
    assert START_MS + 1000 == second.last_modified_ms
    assert first.expires_ms == second.expires_ms


def test_same_bytes_are_a_new_revision(store: MemorySessionStore) -> None:
    """Each device that writes the same bytes makes a revision of its own."""
    tags = set()
    session = result(store.create(new_random_id(), HELLO))
    for _ in range(50):
        tags.add(session.tag)
        session = result(store.replace(session.id, HELLO, if_match(session.tag)))

    assert 50 == len(tags)


def test_failed_precondition_changes_nothing(store: MemorySessionStore) -> None:
    """The loser of a race is told the winner's revision, which stays."""
    first = result(store.create(new_random_id(), HELLO))
    winner = result(store.replace(first.id, Write(b"winner", b""), if_match(first.tag)))

    with pytest.raises(PreconditionFailed) as replacing:
        result(store.replace(first.id, Write(b"loser", b""), if_match(first.tag)))
    with pytest.raises(PreconditionFailed) as deleting:
        result(store.delete(first.id, if_match(first.tag)))

    assert winner == replacing.value.session
    assert winner == deleting.value.session
    assert winner == result(store.get(first.id))


def test_repeated_write(store: MemorySessionStore) -> None:
    """The last accepted write, sent again, succeeds again and changes nothing; any other stale write fails."""
    first = result(store.create(new_random_id(), HELLO))
    second = result(store.replace(first.id, Write(b"2", b"t"), if_match(first.tag)))

    assert second == result(store.replace(first.id, Write(b"2", b"t"), if_match(first.tag)))

    result(store.replace(first.id, Write(b"3", b"t"), if_match(second.tag)))
    with pytest.raises(PreconditionFailed):
        result(store.replace(first.id, Write(b"2", b"t"), if_match(first.tag)))


def test_delete(store: MemorySessionStore) -> None:
    """What was deleted is gone."""
    session = result(store.create(new_random_id(), HELLO))

    result(store.delete(session.id, if_match(session.tag)))

    for operation in (
        store.get(session.id),
        store.replace(session.id, HELLO, UNCONDITIONAL),
        store.delete(session.id, UNCONDITIONAL),
    ):
        with pytest.raises(SessionNotFound):
            result(operation)


@pytest.mark.parametrize("operation", ["get", "replace", "delete"])
def test_expiry(store: MemorySessionStore, time: Time, operation: str) -> None:
    """A session lives to the last millisecond of its time and not one longer."""
    sessions = [result(store.create(new_random_id(), HELLO)) for _ in range(2)]
    arguments: dict[str, tuple[Any, ...]] = {"get": (), "replace": (HELLO, UNCONDITIONAL), "delete": (UNCONDITIONAL,)}

    time.now_ms = START_MS + TTL_MS - 1
    result(getattr(store, operation)(sessions[0].id, *arguments[operation]))
    time.now_ms += 1
    with pytest.raises(SessionNotFound):
        result(getattr(store, operation)(sessions[1].id, *arguments[operation]))


def test_writing_does_not_prolong(store: MemorySessionStore, time: Time) -> None:
    """No session can be kept alive."""
    session = result(store.create(new_random_id(), HELLO))
    for _ in range(10):
        time.now_ms += TTL_MS // 10 - 1
        result(store.replace(session.id, HELLO, UNCONDITIONAL))

    time.now_ms = START_MS + TTL_MS
    with pytest.raises(SessionNotFound):
        result(store.get(session.id))


def test_full_of_sessions(store: MemorySessionStore, time: Time) -> None:
    """The newcomer is refused; everybody else stays, and can write and end; room comes back."""
    sessions = [result(store.create(new_random_id(), HELLO)) for _ in range(10)]

    with pytest.raises(StoreFull) as refusal:
        result(store.create(new_random_id(), HELLO))

    assert "max_sessions" == refusal.value.limiter_name
    assert sessions == [result(store.get(session.id)) for session in sessions]
    result(store.replace(sessions[0].id, Write(b"longer than before", b""), UNCONDITIONAL))
    result(store.delete(sessions[1].id, UNCONDITIONAL))
    result(store.create(new_random_id(), HELLO))
    with pytest.raises(StoreFull):
        result(store.create(new_random_id(), HELLO))

    time.now_ms += TTL_MS
    for _ in range(10):
        result(store.create(new_random_id(), HELLO))


def test_full_of_bytes(time: Time) -> None:
    """The bound holds to the byte, for creations and for payloads that grow; shrinking is always allowed."""
    store = memory_store(time, max_total_bytes=100)
    session = result(store.create(new_random_id(), Write(b"x" * 60, b"")))
    with pytest.raises(StoreFull) as refusal:
        result(store.create(new_random_id(), Write(b"x" * 41, b"")))
    assert "max_total_bytes" == refusal.value.limiter_name
    other = result(store.create(new_random_id(), Write(b"x" * 40, b"")))
    result(store.create(new_random_id(), Write(b"", b"")))

    with pytest.raises(StoreFull):
        result(store.replace(session.id, Write(b"x" * 61, b""), UNCONDITIONAL))
    assert session == result(store.get(session.id))
    shrunk = result(store.replace(session.id, Write(b"x" * 59, b""), if_match(session.tag)))
    result(store.replace(other.id, Write(b"x" * 41, b""), UNCONDITIONAL))

    assert 100 == store.total_bytes
    # A repeat takes no room, so it succeeds as the first did.
    assert shrunk == result(store.replace(session.id, Write(b"x" * 59, b""), if_match(session.tag)))


def test_sweep(store: MemorySessionStore, time: Time) -> None:
    """Expired sessions leave memory, and only these."""
    old = [result(store.create(new_random_id(), HELLO)) for _ in range(3)]
    result(store.delete(old[1].id, UNCONDITIONAL))
    result(store.replace(old[2].id, HELLO, UNCONDITIONAL))
    time.now_ms += 1
    young = result(store.create(new_random_id(), HELLO))

    store.sweep()
    assert 3 == len(store)
    time.now_ms = START_MS + TTL_MS
    store.sweep()

    assert (1, 5) == (len(store), store.total_bytes)
    assert young == result(store.get(young.id))


def test_memory_a_session_takes(time: Time) -> None:
    """A session takes at most 600 bytes beside its payload, the store's own table included."""
    count, size = 20_000, 1024
    store = memory_store(time, max_sessions=count, max_total_bytes=count * size)
    tracemalloc.start()
    try:
        before, _ = tracemalloc.get_traced_memory()
        for index in range(count):
            # As over the wire, nothing is shared between sessions.
            payload, content_type = bytes([index % 256]) * size, bytes(bytearray(b"application/octet-stream"))
            session = result(store.create(new_random_id(), Write(payload, content_type)))
            result(store.replace(session.id, Write(payload[::-1], content_type), UNCONDITIONAL))
            del session, payload, content_type
        after, _ = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    overhead = (after - before) / count - size

    print(f"{overhead:.0f} bytes a session beside its payload")
    assert 100 < overhead <= 600


class StoreMachine(RuleBasedStateMachine):
    """The memory store beside a plain model of it, under any sequence of operations and times."""

    sessions = Bundle("sessions")
    writes = st.builds(Write, st.binary(max_size=40), st.sampled_from([b"text/plain", b"text/html"]))

    def __init__(self) -> None:
        super().__init__()
        self.time = Time()
        self.store = memory_store(self.time, max_sessions=4, max_total_bytes=100)
        self.model: dict[str, Session] = {}

    def alive(self) -> dict[str, Session]:
        return {key: value for key, value in self.model.items() if value.expires_ms > self.time.now_ms}

    def room(self, growth: int) -> bool:
        return growth <= 0 or sum(len(session.payload) for session in self.alive().values()) + growth <= 100

    @rule(target=sessions, write=writes)
    def create(self, write: Write) -> Any:
        if len(self.alive()) == 4 or not self.room(len(write.payload)):
            with pytest.raises(StoreFull):
                result(self.store.create(new_random_id(), write))
            return multiple()
        session = result(self.store.create(new_random_id(), write))
        assert (write, self.time.now_ms + TTL_MS) == ((session.payload, session.content_type), session.expires_ms)
        self.model[session.id] = session
        return session

    @rule(target=sessions, seen=sessions, write=writes)
    def replace(self, seen: Session, write: Write) -> Any:
        current = self.alive().get(seen.id)
        operation = self.store.replace(seen.id, write, if_match(seen.tag))
        if current is None:
            with pytest.raises(SessionNotFound):
                result(operation)
        elif current.tag != seen.tag:
            if seen.tag == current.previous_tag and write == (current.payload, current.content_type):
                assert current == result(operation)
            else:
                with pytest.raises(PreconditionFailed) as failure:
                    result(operation)
                assert current == failure.value.session
        elif not self.room(len(write.payload) - len(current.payload)):
            with pytest.raises(StoreFull):
                result(operation)
        else:
            self.model[seen.id] = result(operation)
            assert write == (self.model[seen.id].payload, self.model[seen.id].content_type)
            return self.model[seen.id]
        return multiple()

    @rule(seen=consumes(sessions))
    def delete(self, seen: Session) -> None:
        if seen.id in self.alive():
            result(self.store.delete(seen.id, UNCONDITIONAL))
            del self.model[seen.id]
        else:
            with pytest.raises(SessionNotFound):
                result(self.store.delete(seen.id, UNCONDITIONAL))

    @rule(elapsed_ms=st.sampled_from([1, 1000, TTL_MS // 2, TTL_MS - 1, TTL_MS]))
    def wait(self, elapsed_ms: int) -> None:
        self.time.now_ms += elapsed_ms

    @rule()
    def sweep(self) -> None:
        self.store.sweep()
        assert len(self.alive()) == len(self.store)

    @invariant()
    def agrees(self) -> None:
        for session in self.alive().values():
            assert session == result(self.store.get(session.id))
        kept = self.store._sessions.values()
        assert sum(len(session.payload) for session in kept) == self.store.total_bytes
        assert 4 >= len(kept)


StoreMachine.TestCase.settings = settings(max_examples=100, stateful_step_count=50, deadline=None)
test_against_a_model = StoreMachine.TestCase
