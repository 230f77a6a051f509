"""Compare devices that wait for news with devices that poll each second.

All that is compared is measured in turns in one run, so that whatever else the machine does meanwhile touches both.
Sessions are in the memory of a homeserver, or in the Redis of another one with two workers: there one device asks the
first and the other device the second. `--sessions` bounds how many devices there are.
"""

import argparse
import asyncio
import contextlib
import dataclasses
import itertools
import json
import pathlib
import random
import resource
import statistics
import sys
import time
from collections.abc import AsyncIterator, Coroutine, Iterable, Sequence
from typing import Any, NamedTuple
from urllib.parse import urlsplit

from cli import Result, find, main, progress, spread
from connection import BenchmarkError
from dialects import PAYLOAD, Session
from load import cpu_seconds, percentile, resident_bytes
from servers import homeserver, rendezvous, running

from support.servers import WorkerStack
from synapse_rendezvous.demo.throwaway_homeserver import ThrowawayHomeserver

PATH = "/_synapse/client/rendezvous"
LONG_PATH = "/_synapse/client/rendezvous_long"
"""Where requests may wait long enough for everything to be measured meanwhile."""

DEVICES = 300
"""How many wait or poll while the CPU of the server is measured."""

HELD = 5000
"""How many requests wait at once when it is measured what that costs."""

SETTLE_S = 1.0
"""How long the server gets for connections that come or go."""

EVERYBODY = 100_000
"""Stands for no bound in effect."""


class Answer(NamedTuple):
    """What a device was answered."""

    status: int
    etag: str
    content: bytes


class Device:
    """A connection on which requests are sent one after the other.

    Args:
        url: the process that is asked.
        path: where sessions are.
    """

    def __init__(self, url: str, path: str = PATH) -> None:
        self._address = urlsplit(url)
        self._path = path
        self._writer: asyncio.StreamWriter | None = None

    async def connect(self) -> None:
        """Open the connection."""
        self._reader, self._writer = await asyncio.open_connection(self._address.hostname, self._address.port)

    def close(self) -> None:
        """Close it, also while an answer is awaited."""
        if self._writer is not None:
            self._writer.close()

    async def create(self) -> Session:
        """Create a session."""
        answer = await self._ask("POST", self._path, PAYLOAD)
        return Session(json.loads(answer.content)["id"], answer.etag)

    async def write(self, session: Session, content: bytes) -> None:
        """Replace the payload, whatever it is."""
        await self._ask("PUT", f"{self._path}/{session.id}", content)

    async def poll(self, session: Session, *, wait_ms: int | None = 0) -> Answer:
        """Ask for news, and wait so long for it; None leaves that to the server."""
        query = "" if wait_ms is None else f"?timeout={wait_ms}"
        return await self._ask("GET", f"{self._path}/{session.id}{query}", etag=session.tag)

    async def _ask(self, method: str, target: str, content: bytes | None = None, *, etag: str = "") -> Answer:
        if self._writer is None:
            await self.connect()
        assert self._writer is not None
        length = "" if content is None else f"Content-Type: text/plain\r\nContent-Length: {len(content)}\r\n"
        known = f"If-None-Match: {etag}\r\n" if etag else ""
        self._writer.write(f"{method} {target} HTTP/1.1\r\nHost: x\r\n{length}{known}\r\n".encode() + (content or b""))
        first, *lines = (await self._reader.readuntil(b"\r\n\r\n")).decode().splitlines()
        fields = {name.lower(): value.strip() for name, _, value in (line.partition(":") for line in lines)}
        status = int(first.split()[1])
        if status not in (200, 202, 304):
            raise BenchmarkError(f"A {method} was answered with {status}.")
        return Answer(status, fields["etag"], await self._reader.readexactly(int(fields.get("content-length", 0))))


@contextlib.asynccontextmanager
async def connected(url: str, count: int, path: str = PATH) -> AsyncIterator[list[Device]]:
    """Connect so many devices, fewer at once than a listener takes."""
    devices = [Device(url, path) for _ in range(count)]
    try:
        for start in range(0, count, 25):
            await asyncio.gather(*(device.connect() for device in devices[start : start + 25]))
        yield devices
    finally:
        for device in devices:
            device.close()


@contextlib.asynccontextmanager
async def meanwhile(coroutines: Iterable[Coroutine[Any, Any, Any]]) -> AsyncIterator[None]:
    """Let something go on; none of it may end before."""
    tasks = [asyncio.ensure_future(coroutine) for coroutine in coroutines]
    try:
        yield
        for task in tasks:
            if task.done():
                raise task.exception() or BenchmarkError(f"What was to go on has ended: {task.result()}")
    finally:
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)


async def poll_each_second(device: Device, session: Session, *, wait_ms: int | None = 0) -> Answer:
    """Return the news, as today's clients get them; without a time, the server holds their polls."""
    while True:
        answer = await device.poll(session, wait_ms=wait_ms)
        if answer.status == 200:
            return answer
        await asyncio.sleep(1)


async def deliver(reading: str, writing: str, *, waits: bool) -> float:
    """Return after how many milliseconds a device has what another one writes, at a random time."""
    async with connected(reading, 1) as (reader,), connected(writing, 1) as (writer,):
        session = await writer.create()
        asking = reader.poll(session, wait_ms=10_000) if waits else poll_each_second(reader, session)
        task = asyncio.ensure_future(asking)
        await asyncio.sleep(0.02 + random.random() * (0.02 if waits else 1))
        begin_s = time.perf_counter()
        writing_task = asyncio.ensure_future(writer.write(session, b"news"))
        answer = await task
        end_s = time.perf_counter()
        await writing_task
        if answer.content != b"news":
            raise BenchmarkError("What was written did not arrive.")
        return (end_s - begin_s) * 1000


async def deliveries(memory: str, workers: Sequence[str], rounds: int, count: int) -> dict[str, list[float]]:
    """Measure so many deliveries of each kind in a round."""
    late: dict[str, list[float]] = {"memory": [], "Redis": [], "polling": []}
    for number in range(1, rounds + 1):
        progress(f"Measuring deliveries: round {number} of {rounds}")
        for _ in range(count):
            late["memory"].append(await deliver(memory, memory, waits=True))
            late["Redis"].append(await deliver(workers[1], workers[0], waits=True))
        late["polling"] += await asyncio.gather(*(deliver(memory, memory, waits=False) for _ in range(count)))
    return late


async def requests_a_minute(url: str, window_s: float, *, wait_ms: int) -> float:
    """Return how many requests a minute a device sends that asks again once it is answered, or each second."""
    async with connected(url, 1) as (device,):
        session = await device.create()
        sent_s = [begin_s := time.monotonic()]
        while sent_s[-1] - begin_s < window_s:
            await device.poll(session, wait_ms=wait_ms)
            if not wait_ms:
                await asyncio.sleep(max(0, sent_s[-1] + 1 - time.monotonic()))
            sent_s.append(time.monotonic())
    return (len(sent_s) - 1) / (sent_s[-1] - begin_s) * 60


HOW = ("waiting", "polling", "held")
"""Devices that ask for ten seconds; today's clients, whose polls are answered at once; and the same, but held."""


async def cpu_share(url: str, pid: int, devices: int, window_s: float, how: str) -> float:
    """Return which share of a CPU a process takes while so many devices wait or poll; see `HOW`."""

    async def wait(device: Device, session: Session) -> Answer:
        wait_ms = random.randrange(10_000)  # so that their turns come evenly from the beginning
        while (answer := await device.poll(session, wait_ms=wait_ms)).status == 304:
            wait_ms = 10_000
        return answer

    async def poll(device: Device, session: Session) -> Answer:
        await asyncio.sleep(random.random())
        return await poll_each_second(device, session)

    async def poll_as_today(device: Device, session: Session) -> Answer:
        await asyncio.sleep(random.random() * SETTLE_S)
        return await poll_each_second(device, session, wait_ms=None)

    ask = {"waiting": wait, "polling": poll, "held": poll_as_today}[how]
    async with connected(url, devices) as connections:
        sessions = [await device.create() for device in connections]
        async with meanwhile(map(ask, connections, sessions)):
            await asyncio.sleep(SETTLE_S)
            begin_s, begin_cpu_s = time.monotonic(), cpu_seconds(pid)
            await asyncio.sleep(window_s)
            return (cpu_seconds(pid) - begin_cpu_s) / (time.monotonic() - begin_s)


async def cpu_shares(
    servers: dict[str, tuple[str, int]], rounds: int, devices: int, window_s: float
) -> dict[str, dict[str, list[float]]]:
    """Measure the CPU of waiting and of polling, in turn."""
    shares: dict[str, dict[str, list[float]]] = {store: {how: [] for how in HOW} for store in servers}
    for number, (store, server) in itertools.product(range(1, rounds + 1), servers.items()):
        progress(f"Measuring the CPU of {devices} devices, sessions in {store}: round {number} of {rounds}")
        for name, runs in shares[store].items():
            runs.append(await cpu_share(*server, devices, window_s, name))
    return shares


@dataclasses.dataclass(frozen=True)
class Held:
    """What it costs to hold many requests.

    Attributes:
        requests: how many.
        bytes: of resident memory for each.
        held_ms: how long another client's poll takes meanwhile, the median of each round.
        quiet_ms: how long it takes while none is held.
    """

    requests: int
    bytes: float
    held_ms: list[float]
    quiet_ms: list[float]


@dataclasses.dataclass(frozen=True)
class Measured:
    """All that was measured.

    Attributes:
        late_ms: how long each delivery took, by where sessions were or how news were asked for.
        requests: how many a device sent a minute.
        devices: how many waited or polled while CPU was measured.
        cpu: which share of a CPU the Synapse process took then in each round, by where sessions were.
        held: what held requests cost.
    """

    late_ms: dict[str, list[float]]
    requests: dict[str, float]
    devices: int
    cpu: dict[str, dict[str, list[float]]]
    held: Held


async def hold(url: str, pid: int, rounds: int, requests: int) -> Held:
    """Hold so many requests again and again, and poll while they are held and while they are not."""

    async def poll_ms() -> float:
        async with connected(url, 1) as (device,):
            session = await device.create()
            return await median_ms(device, session, 300)

    async def wait(device: Device, session: Session) -> Answer:
        return await device.poll(session, wait_ms=60_000)

    async with connected(url, 1, LONG_PATH) as (creator,):
        sessions = [await creator.create() for _ in range((requests + 3) // 4)]
    settle_s = SETTLE_S + requests / 2500
    growths: list[int] = []
    held_ms, quiet_ms = [], []
    await poll_ms()
    for number in range(1, rounds + 1):
        progress(f"Holding {requests:,} requests: round {number} of {rounds}")
        quiet_ms.append(await poll_ms())
        before = resident_bytes(pid)
        async with (
            connected(url, requests, LONG_PATH) as devices,
            meanwhile(map(wait, devices, itertools.cycle(sessions))),
        ):
            await asyncio.sleep(settle_s)
            growths.append(resident_bytes(pid) - before)
            held_ms.append(await poll_ms())
        await asyncio.sleep(settle_s)
    # Later rounds use the memory again that the first one took.
    return Held(requests, growths[0] / requests, held_ms, quiet_ms)


async def median_ms(device: Device, session: Session, count: int) -> float:
    """Return how many milliseconds a poll takes."""
    took_ms = []
    for _ in range(count):
        begin_s = time.perf_counter()
        await device.poll(session)
        took_ms.append((time.perf_counter() - begin_s) * 1000)
    return statistics.median(took_ms)


def report(measured: Measured) -> str:
    """Return all that is printed."""
    lines = ["From a PUT to the other device's having its payload, ms:        p50      p99"]
    for name, what in {
        "memory": "waiting, sessions in memory (wanted: at most 5 and 50)",
        "Redis": "waiting, in Redis, at two workers (wanted: at most 10)",
        "polling": "polling each second",
    }.items():
        late_ms = measured.late_ms[name]
        p50, p99 = percentile(late_ms, 50), percentile(late_ms, 99)
        lines.append(f"  {what:56}{p50:7.1f}  {p99:7.1f}")
    requests, held = measured.requests, measured.held
    lines.append(
        f"Requests a minute of a device: waiting {requests['waiting']:.1f} (wanted: at most 7),"
        f" polling {requests['polling']:.1f}."
    )
    for store, runs in measured.cpu.items():
        ratios = [waiting / polling for waiting, polling in zip(runs["waiting"], runs["polling"], strict=True)]
        medians = {name: statistics.median(run) * 100 for name, run in runs.items()}
        lines.append(
            f"CPU of Synapse, sessions in {store}: waiting {medians['waiting']:.1f} %, polling"
            f" {medians['polling']:.1f} % of one; waiting / polling {spread(ratios, 3)} (wanted: at most 0.167)."
        )
        ratios = [held / polling for held, polling in zip(runs["held"], runs["polling"], strict=True)]
        lines.append(
            f"  Today's clients, whose polls are held by default: {medians['held']:.1f} %; held / polling"
            f" {spread(ratios, 3)} (wanted: at most 0.2)."
        )
    slower = [held_ms / quiet_ms for held_ms, quiet_ms in zip(held.held_ms, held.quiet_ms, strict=True)]
    lines.append(
        f"{held.requests:,} requests held at once: {held.bytes / 1024:.1f} KiB each (wanted: at most 16); meanwhile"
        f" another client's poll takes {spread(slower)} times as long (wanted: at most 2)."
    )
    lines.append("Ratios are those within a round: medians, and in brackets the least and the greatest.")
    return "\n".join(lines)


def measure(arguments: argparse.Namespace, directory: pathlib.Path) -> Result:
    """Run both homeservers and measure everything."""
    find("redis-server", "keeps sessions in")
    held, devices = min(HELD, arguments.sessions), min(DEVICES, arguments.sessions)
    _, files = resource.getrlimit(resource.RLIMIT_NOFILE)
    if files < held + 1000:
        raise BenchmarkError(f"A process may have only {files} files open; this benchmark needs {held + 1000}.")
    resource.setrlimit(resource.RLIMIT_NOFILE, (files, files))  # the servers inherit it
    long = {"path": LONG_PATH}
    others = {"msc4108": {"enabled": False}, "msc4388": {"enabled": False}}
    modules = [
        rendezvous(long_poll={"max_waiting": EVERYBODY}),
        rendezvous(long_poll={"max_waiting": EVERYBODY, "max_wait": "60s"}, dialects={"msc3886": long, **others}),
    ]
    for module in modules:
        module["config"]["per_client"]["max_waiting"] = EVERYBODY
    memory = homeserver(directory / "memory", modules)
    workers = directory / "redis"
    workers.mkdir()
    window_s, cpu_window_s = (11.0, 1.0) if arguments.quick else (25.0, 10.0 * arguments.seconds)
    some_rounds = (arguments.rounds + 2) // 3  # of what takes long

    async def measure_all(homeserver: ThrowawayHomeserver, stack: WorkerStack) -> Measured:
        # One device and another, which nothing else notices.
        waiting = asyncio.ensure_future(requests_a_minute(homeserver.url, window_s, wait_ms=60_000))
        polling = asyncio.ensure_future(requests_a_minute(homeserver.url, window_s, wait_ms=0))
        late_ms = await deliveries(homeserver.url, stack.urls, arguments.rounds, 20 * arguments.seconds)
        worker = stack.workers[0]
        servers = {"memory": (homeserver.url, homeserver.pid), "Redis": (worker.url, worker.pid)}
        shares = await cpu_shares(servers, some_rounds, devices, cpu_window_s)
        costs = await hold(homeserver.url, homeserver.pid, some_rounds, held)
        return Measured(late_ms, {"waiting": await waiting, "polling": await polling}, devices, shares, costs)

    with running([memory]), WorkerStack(workers, config=modules[0]["config"]) as stack:
        measured = asyncio.run(measure_all(memory, stack))
    return Result(report(measured), dataclasses.asdict(measured))


if __name__ == "__main__":
    sys.exit(main("waiting", __doc__, measure))
