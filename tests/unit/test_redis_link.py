"""Deadlines and the circuit breaker before Redis, by a clock that is moved by hand."""

from collections.abc import Sequence
from typing import Any, cast

import pytest
import txredisapi
from twisted.internet.defer import Deferred
from twisted.internet.interfaces import IReactorTime
from twisted.internet.task import Clock

from synapse_rendezvous.config import RendezvousConfig
from synapse_rendezvous.errors import StoreUnavailable
from synapse_rendezvous.metrics import Metrics
from synapse_rendezvous.observer import Observer
from synapse_rendezvous.redis.link import RedisLink


class SilentConnection:
    """A connection that answers only when a test says so; real ones cannot be silent to the millisecond."""

    def __init__(self) -> None:
        self.calls: list[Deferred[Any]] = []

    def eval(self, script: str, keys: Sequence[str], args: Sequence[bytes | int]) -> Deferred[Any]:
        self.calls.append(Deferred())
        return self.calls[-1]


class Link:
    """A link on a silent connection, and what becomes of its calls."""

    def __init__(self) -> None:
        self.clock = Clock()
        self.clock.advance(1000)
        self.connection = SilentConnection()
        self.metrics = Metrics("link.localhost", version="0", process="main", store="redis", config=RendezvousConfig())
        observer = Observer(self.metrics, self.clock.seconds, ttl_ms=1, is_enforced=True)
        self.link = RedisLink(self.connection, cast(IReactorTime, self.clock), self.clock.seconds, observer)

    def run(self, *, is_background: bool = False) -> list[Any]:
        """Begin a call; return a list that will hold its answer or its error."""
        outcome: list[Any] = []
        running = Deferred.fromCoroutine(self.link.run("script", ["key"], [b"id"], is_background=is_background))
        running.addCallbacks(outcome.append, lambda failure: outcome.append(failure.value))
        return outcome

    def failures(self) -> float:
        return float(self.metrics.store_failures._value.get())


@pytest.fixture
def link() -> Link:
    return Link()


def is_unavailable(outcome: list[Any]) -> bool:
    return len(outcome) == 1 and isinstance(outcome[0], StoreUnavailable)


def test_answer(link: Link) -> None:
    """An answer is returned as it is, and its deadline is forgotten."""
    outcome = link.run()
    link.clock.advance(RedisLink.DEADLINE_S - 0.001)
    link.connection.calls[0].callback(["ok"])
    assert [["ok"]] == outcome
    assert [] == link.clock.getDelayedCalls()


def test_deadline(link: Link) -> None:
    """A call is given up at its deadline and not a moment sooner."""
    outcome = link.run()
    link.clock.advance(RedisLink.DEADLINE_S - 0.001)
    assert [] == outcome
    link.clock.advance(0.001)
    assert is_unavailable(outcome)


@pytest.mark.parametrize("trouble", ["silence", "connection"])
def test_half_open(link: Link, trouble: str) -> None:
    """After a failure no call is made for a while; then one tries, and the others wait for what it finds."""
    outcome = link.run()
    if trouble == "silence":
        link.clock.advance(RedisLink.DEADLINE_S)
    else:
        link.connection.calls[0].errback(txredisapi.ConnectionError("lost"))
    assert is_unavailable(outcome)

    for attempt in range(2, 4):
        link.clock.advance(RedisLink.PAUSE_S - 0.001)
        assert is_unavailable(link.run())
        assert attempt - 1 == len(link.connection.calls)
        link.clock.advance(0.001)
        probe = link.run()
        assert attempt == len(link.connection.calls)
        assert is_unavailable(link.run())
        assert attempt == len(link.connection.calls)
        assert [] == probe
        if attempt == 2:
            link.clock.advance(RedisLink.DEADLINE_S)
            assert is_unavailable(probe)

    link.connection.calls[-1].callback(["ok"])
    assert [["ok"]] == probe
    for _ in range(3):
        link.run()
    assert 6 == len(link.connection.calls)


def test_probes_follow_each_other(link: Link) -> None:
    """After a probe that failed, another one follows a pause later."""
    link.run()
    link.clock.pump([RedisLink.DEADLINE_S, RedisLink.PAUSE_S])
    link.run()
    assert 2 == len(link.connection.calls)
    link.clock.pump([RedisLink.DEADLINE_S, RedisLink.PAUSE_S])
    link.run()
    assert 3 == len(link.connection.calls)


def test_refusals_of_redis(link: Link) -> None:
    """An error that Redis itself answers ends one call; the next one is made."""
    outcome = link.run()
    link.connection.calls[0].errback(txredisapi.ResponseError("OOM command not allowed"))
    assert is_unavailable(outcome)
    link.run()
    assert 2 == len(link.connection.calls)


def test_refusal_ends_the_outage(link: Link) -> None:
    """Even an error shows that Redis is there again."""
    link.run()
    link.clock.pump([RedisLink.DEADLINE_S, RedisLink.PAUSE_S])
    link.run()
    link.connection.calls[1].errback(txredisapi.ResponseError("READONLY"))
    for _ in range(2):
        link.run()
    assert 4 == len(link.connection.calls)


def test_pending_calls_are_bounded(link: Link) -> None:
    """Not more calls are pending than promised; the one past it fails at once, and room comes back."""
    for _ in range(RedisLink.MAX_PENDING):
        assert [] == link.run()
    assert is_unavailable(link.run())
    assert RedisLink.MAX_PENDING == len(link.connection.calls)
    link.connection.calls[0].callback(["ok"])
    assert [] == link.run()


def test_background_calls_are_not_counted(link: Link) -> None:
    """A failure that no client sees is no failure in the metrics."""
    before = link.failures()
    link.run(is_background=True)
    link.clock.advance(RedisLink.DEADLINE_S)
    assert before == link.failures()
    assert is_unavailable(link.run())
    assert before + 1 == link.failures()
