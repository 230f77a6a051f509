"""Both stores, under a clock that is set by hand, and what their operations return."""

import time
from collections import Counter
from collections.abc import Callable, Coroutine, Sequence
from typing import Any, NamedTuple, TypeVar

import attr
from twisted.internet import reactor
from twisted.internet.defer import Deferred

from support.until import HANGS_S
from synapse_rendezvous.clock import monotonic_s
from synapse_rendezvous.config import RendezvousConfig
from synapse_rendezvous.homeserver import RedisConnection
from synapse_rendezvous.memory_store import MemorySessionStore
from synapse_rendezvous.metrics import Metrics
from synapse_rendezvous.observer import Observer
from synapse_rendezvous.preconditions import new_tag
from synapse_rendezvous.redis.link import RedisLink
from synapse_rendezvous.redis.store import RedisSessionStore, parse_session
from synapse_rendezvous.session import LINGER_MS, EndedSession, Session, Write
from synapse_rendezvous.store import Quotas, SessionStore
from synapse_rendezvous.table import Counts

TTL_MS = 300_000
GONE_MS = TTL_MS + LINGER_MS
"""How long after its creation a session is gone."""

SERVER_NAME = "rendezvous.localhost"
QUOTAS = Quotas(
    ttl_ms=TTL_MS,
    max_sessions=10,
    max_total_bytes=1000,
    max_updates=9999,
    max_outcomes=9999,
    max_client_sessions=10,
    crowded_sessions=10,
    crowded_client_sessions=10,
)

T = TypeVar("T")


def quotas_of(changes: dict[str, int]) -> Quotas:
    """Return quotas with these changes. A store is crowded only where a test says so."""
    crowded = changes.get("max_sessions", QUOTAS.max_sessions)
    return attr.evolve(QUOTAS, **{"crowded_sessions": crowded, **changes})


def result(coroutine: Coroutine[Deferred[Any], Any, T], within_s: float | None = None) -> T:
    """Return what an operation returns, or raise what it raises, once it is done.

    Args:
        coroutine: the operation.
        within_s: fail if it is done later than what the reactor is to do after so many seconds. That holds on a busy
            machine, too: what the operation itself waits for on the reactor's clock comes late there, but in its order.
    """
    results: list[T] = []
    failures: list[BaseException] = []
    is_late: list[bool] = []
    outcome = Deferred.fromCoroutine(coroutine)
    outcome.addCallbacks(results.append, lambda failure: failures.append(failure.value))
    if not results and not failures:
        timer: Any = reactor.callLater(within_s or HANGS_S, is_late.append, True)  # type: ignore[arg-type]
        outcome.addBoth(lambda _: None if is_late else timer.cancel())
    while not results and not failures:
        assert not is_late, "it takes too long"
        reactor.iterate(0.01)  # type: ignore[call-arg, misc]
    assert not is_late, "it took too long"
    for failure in failures:
        raise failure
    return results[0]


def numbers(counts: Counts) -> dict[str, int]:
    """Return all of some counts."""
    return {key: number for part in counts._parts for key, number in part.items()}


class Time:
    """A clock that is set by hand. It starts with the real time: what Redis was given an end, it drops by its own."""

    def __init__(self) -> None:
        self.start_ms = self.now_ms = int(time.time() * 1000)

    def __call__(self) -> int:
        return self.now_ms

    def monotonic_ns(self) -> int:
        return self.now_ms * 1_000_000


class Ends:
    """Remembers the ends of sessions that a store reports."""

    def __init__(self) -> None:
        self.sessions: list[EndedSession] = []

    def session_ended(self, session: EndedSession) -> None:
        self.sessions.append(session)


async def replace(store: SessionStore, session_id: str, write: Write, expected_tag: bytes | None = None) -> Session:
    """Replace a payload, by default whatever its revision; fail if the tag is not the expected one."""
    session, is_done, _ = await store.swap(session_id, expected_tag, new_tag(), write)
    assert is_done
    return session


class Account(NamedTuple):
    """What a store keeps account of; what has expired and was not yet swept, too.

    Attributes:
        sizes: bytes of payload by the first characters of a session's id.
        total_bytes: of all payloads together.
        client_sessions: how many sessions each client has.
    """

    sizes: dict[str, int]
    total_bytes: int
    client_sessions: dict[str, int]


class MemoryStores:
    """Makes memory stores and looks into them.

    Args:
        time: what they take for the time.
    """

    def __init__(self, time: Time) -> None:
        self._time = time

    def make(self, **quotas: int) -> SessionStore:
        """Return a new store that is empty."""
        self.ends = Ends()
        self._store = MemorySessionStore(self._time, self._time.monotonic_ns, quotas_of(quotas), self.ends)
        return self._store

    def account(self) -> Account:
        """Return what the last store keeps account of."""
        store = self._store
        sizes = {session.id[:6]: len(session.payload) for session in store._sessions.values()}
        return Account(sizes, store.total_bytes, numbers(store._client_sessions))


class SetTime:
    """A connection over which Redis goes by another time than its own.

    Args:
        connection: a real one.
        time: what it goes by.
    """

    _OWN = "redis.call('TIME')"

    def __init__(self, connection: Any, time: Time) -> None:
        self._connection = connection
        self._time = time

    def eval(self, script: str, keys: Sequence[str], args: Sequence[bytes | int]) -> Deferred[Any]:
        """Run a script."""
        assert self._OWN in script
        seconds, milliseconds = divmod(self._time.now_ms, 1000)
        return self._connection.eval(script.replace(self._OWN, f"{{{seconds}, {milliseconds}000}}"), keys, args)  # type: ignore[no-any-return]


class RedisStores:
    """Makes Redis stores, on the same server, and looks into them.

    Args:
        connection: to a Redis that is ours alone.
        time: what they take for the time.
    """

    def __init__(self, connection: Any, time: Time) -> None:
        self._connection = connection
        self._time = time

    def make(self, **quotas: Any) -> SessionStore:
        """Return a new store, on an emptied Redis."""
        self.ask("flushdb")
        self.ends = Ends()
        return redis_store(SetTime(self._connection, self._time), self._time, ends=self.ends, **quotas)

    def account(self) -> Account:
        """Return what is kept account of in Redis."""
        prefix = f"synapse_rendezvous:2:{{{SERVER_NAME}}}:"
        sizes = {}
        for session_id, value in self.ask("hgetall", f"{prefix}sessions").items():
            if session_id.endswith("/"):  # the outcomes of its transactions
                assert self.ask("hexists", f"{prefix}sessions", session_id[:-1])
                continue
            session = parse_session(session_id, value.encode("utf-8") if isinstance(value, str) else value)
            sizes[session_id[:6]] = len(session.payload)
        queue = Counter(session_id[:6] for session_id in self.ask("lrange", f"{prefix}queue", 0, -1))
        assert sizes.keys() <= queue.keys()
        assert 1 == max(queue.values(), default=1)
        totals: dict[str, int] = self.ask("hgetall", f"{prefix}totals")
        assert len(sizes) == totals.pop("sessions", 0)
        return Account(sizes, totals.pop("bytes", 0), totals)

    def ask(self, command: str, *arguments: Any) -> Any:
        """Return the answer to a command, as txredisapi gives it."""

        async def ask() -> Any:
            return await getattr(self._connection, command)(*arguments)

        return result(ask())


def redis_store(
    connection: RedisConnection,
    now_ms: Callable[[], int],
    *,
    server_name: str = SERVER_NAME,
    ends: Ends | None = None,
    deadline_s: float = HANGS_S,
    **quotas: Any,
) -> RedisSessionStore:
    """Return a store on a connection.

    Args:
        connection: leads to Redis.
        now_ms: what the store takes for the time of day.
        server_name: the homeserver's.
        ends: receives the ends of sessions.
        deadline_s: how long one call may take. The module's own deadline is too short for tests on a busy machine.
        **quotas: what differs from `QUOTAS`.
    """
    metrics = Metrics(server_name, version="0", process="main", store="redis", config=RendezvousConfig())
    observer = Observer(metrics, monotonic_s, ttl_ms=TTL_MS, is_enforced=True)
    link = RedisLink(connection, reactor, monotonic_s, observer)
    link.DEADLINE_S = deadline_s
    return RedisSessionStore(
        link,
        now_ms,
        server_name=server_name,
        quotas=quotas_of(quotas),
        observer=ends or Ends(),
    )
