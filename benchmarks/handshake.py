"""A whole handshake, as two devices play it: one creates, both write five messages in turn, and one deletes."""

import dataclasses
import time
from collections.abc import Mapping
from typing import cast

import treq
from cli import progress
from connection import Answer, BenchmarkError
from dialects import PAYLOAD, Session, checked
from load import Clocks, percentile
from servers import Running
from twisted.internet import reactor as _reactor
from twisted.internet.base import ReactorBase
from twisted.internet.defer import ensureDeferred
from twisted.python.failure import Failure
from twisted.web.client import HTTPConnectionPool
from twisted.web.http_headers import Headers

reactor = cast(ReactorBase, _reactor)

MESSAGES = 10

REQUESTS = 2 + 3 * MESSAGES
"""Of each message, one poll knows nothing yet, and one brings it."""


@dataclasses.dataclass(frozen=True)
class Handshakes:
    """Some handshakes of one round, one after the other.

    Attributes:
        cpu_ms: what one took of Synapse's CPU.
        redis_cpu_ms: what it took of Redis'.
        p50_ms: how long one took, the median; mostly that is the client's own work.
    """

    cpu_ms: float
    redis_cpu_ms: float
    p50_ms: float


class Device:
    """A client with a connection of its own.

    Args:
        running: the server.
    """

    def __init__(self, running: Running) -> None:
        self._dialect = running.server.dialect
        self._url = running.url
        self._pool = HTTPConnectionPool(reactor)
        self._pool.maxPersistentPerHost = 1

    async def ask(self, operation: str, session: Session, payload: bytes = PAYLOAD) -> Answer:
        """Ask for an operation, and return the answer that is wanted.

        Raises:
            BenchmarkError: it is another one.
        """
        request = self._dialect.request(operation, session, payload)
        response = await treq.request(
            request.method,
            self._url + request.target,
            headers=Headers({name: [value] for name, value in request.fields.items()}),
            data=request.content,
            pool=self._pool,
        )
        content = await response.content()
        fields = {
            name.decode("ascii").lower(): values[0].decode("latin-1")
            for name, values in response.headers.getAllRawHeaders()
        }
        return checked(Answer(response.code, fields, content), self._dialect, operation)

    async def close(self) -> None:
        """Close the connection."""
        await self._pool.closeCachedConnections()


async def handshake(running: Running, first: Device, second: Device) -> None:
    """Play one handshake.

    Raises:
        BenchmarkError: it went wrong.
    """
    dialect = running.server.dialect
    session = dialect.created(await first.ask("create", Session("", "")))
    for number in range(MESSAGES):
        writer, reader = (first, second) if number % 2 else (second, first)
        await reader.ask("poll", session)
        written = await writer.ask("write", session, b"%0*d" % (len(PAYLOAD), number))
        news = await reader.ask("news", session)
        session = Session(session.id, dialect.tag(news))
        if session.tag != dialect.tag(written):
            raise BenchmarkError("What was written did not arrive.")
    await first.ask("delete", session)


class Side:
    """The two devices that play on one server, and what that takes.

    Args:
        running: the server.
    """

    def __init__(self, running: Running) -> None:
        self._running = running
        self._devices = Device(running), Device(running)
        self._clocks = Clocks(running.pids)
        self._took_ms: list[float] = []

    async def connect(self) -> None:
        """Play one handshake that does not count."""
        await handshake(self._running, *self._devices)

    async def play(self) -> None:
        """Play one handshake."""
        begin_s = time.perf_counter()
        with self._clocks.noted():
            await handshake(self._running, *self._devices)
        self._took_ms.append((time.perf_counter() - begin_s) * 1000)

    async def close(self) -> None:
        """Close the connections."""
        for device in self._devices:
            await device.close()

    def result(self) -> Handshakes:
        """Return what all that count took."""
        _, *cpu_ms = (spent_s / len(self._took_ms) * 1000 for spent_s in self._clocks.spent_s)
        return Handshakes(cpu_ms[0], cpu_ms[1] if len(cpu_ms) > 1 else 0.0, percentile(self._took_ms, 50))


async def _play_round(servers: Mapping[str, Running], count: int) -> dict[str, Handshakes]:
    sides = {name: Side(running) for name, running in servers.items()}
    order = list(sides.values())
    try:
        for side in order:
            await side.connect()
        for _ in range(count):
            for side in order:
                await side.play()
            order.reverse()  # none profits from coming first
        return {name: side.result() for name, side in sides.items()}
    finally:
        for side in order:
            await side.close()


async def _play(servers: Mapping[str, Running], rounds: int, count: int) -> dict[str, list[Handshakes]]:
    played: dict[str, list[Handshakes]] = {name: [] for name in servers}
    for number in range(1, rounds + 1):
        progress(f"Playing handshakes: round {number} of {rounds}")
        for name, handshakes in (await _play_round(servers, count)).items():
            played[name].append(handshakes)
    return played


def play(servers: Mapping[str, Running], *, rounds: int, count: int) -> dict[str, list[Handshakes]]:
    """Play so many handshakes a round on each server, in turn; once a process, because it runs the reactor.

    Raises:
        BenchmarkError: one went wrong.
    """
    results: list[dict[str, list[Handshakes]] | Failure] = []

    def end(result: dict[str, list[Handshakes]] | Failure) -> None:
        results.append(result)
        reactor.stop()

    ensureDeferred(_play(servers, rounds, count)).addBoth(end)
    reactor.run(installSignalHandlers=False)
    (result,) = results
    if isinstance(result, Failure):
        result.raiseException()
    assert not isinstance(result, Failure)
    return result
