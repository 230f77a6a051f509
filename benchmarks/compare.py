"""Compare what a request costs on each server, and what a session takes.

Each server is a real Synapse process; see servers.py. They are loaded in turn, ten times a second, and only loads of
the same round are compared, so that whatever else the machine does meanwhile touches all of them. What all are compared
with is a bare Twisted resource in the process of synapse_rendezvous.
"""

import argparse
import contextlib
import dataclasses
import pathlib
import re
import secrets
import statistics
import sys
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor

from cli import Result, find_wrk, live, main, progress, spread
from connection import BenchmarkError, Connection
from dialects import PAYLOAD, Session
from handshake import Handshakes, play
from load import CONNECTIONS, TURN_S, Load, Probe, Work, percentile, resident_bytes
from servers import AVAILABLE, SERVERS, Running, compared, rust_version

from support.servers import RedisServer

BARE = "bare"

KNOWN = 10_000
"""Of how many sessions at most a load is made, so that wrk need not have all in memory."""


@dataclasses.dataclass(frozen=True)
class Run(Work):
    """The same, and how soon one client alone was answered in the same round.

    Attributes:
        p50_ms: the median.
        p99_ms: what one of a hundred answers took longer than.
    """

    p50_ms: float = 0.0
    p99_ms: float = 0.0

    @property
    def cost_us(self) -> float:
        """CPU of Synapse a request."""
        return self.cpu_seconds / self.requests * 1e6


@dataclasses.dataclass(frozen=True)
class Measurement:
    """One operation, measured on several servers.

    Attributes:
        operation: what was asked for.
        sessions: how many were alive in each store, at least.
        runs: one a round, by the names of the servers.
    """

    operation: str
    sessions: int
    runs: Mapping[str, Sequence[Run]]

    def ratios(self, name: str) -> list[float]:
        """Return, for each round, what a request cost on a server as a multiple of the bare one's."""
        return [one.cost_us / bare.cost_us for one, bare in zip(self.runs[name], self.runs[BARE], strict=True)]


class Comparison:
    """Loads servers that run.

    Args:
        servers: by their names; the bare one is among them.
        directory: for the files of requests.
        wrk: the program that makes the load.
        turns: how often each is loaded in a round.
        rounds: how many runs each gets.

    Attributes:
        bytes: what a session takes beside its payload, by the names of the servers.
    """

    def __init__(
        self, servers: Mapping[str, Running], directory: pathlib.Path, *, wrk: str, turns: int, rounds: int
    ) -> None:
        self._servers = servers
        self._directory = directory
        self._wrk = wrk
        self._turns = turns
        self._rounds = rounds
        self._known: dict[str, list[Session]] = {}
        self._alive = dict.fromkeys(self._growing, 0)
        self.bytes: dict[str, dict[str, float]] = {}

    @property
    def _growing(self) -> list[str]:
        return [name for name, running in self._servers.items() if running.server.grows]

    def measure(self, operation: str, names: Sequence[str], alive: int) -> Measurement:
        """Measure one operation on some servers, which take turns.

        Args:
            operation: one of `dialects.OPERATIONS`.
            names: of the servers.
            alive: how many sessions live; those of `fill` if more than one.
        """
        runs: dict[str, list[Run]] = {name: [] for name in names}
        for number in range(1, self._rounds + 1):
            progress(f"Measuring {operation}, {live(alive)}: round {number} of {self._rounds}")
            with contextlib.ExitStack() as stack:
                sides = {name: self._side(stack, name, operation, alive) for name in names}
                if number == 1:
                    self._compare_shapes(operation)
                order = list(sides.values())
                for _ in range(self._turns):
                    for load, probe in order:
                        load.take_turn()
                        probe.take_turn()
                    order.reverse()  # none profits from coming first
                for name, (load, probe) in sides.items():
                    runs[name].append(self._run(name, operation, load.finish(), probe.late_ms))
        return Measurement(operation, alive, runs)

    def fill(self, count: int) -> None:
        """Create sessions, until so many live in each store; those that were known before are not known any more."""
        progress(f"Creating sessions until there are {count:,}")
        with ThreadPoolExecutor() as pool:
            list(pool.map(lambda name: self._fill(name, count), self._growing))
        # The bare resource keeps none, but is asked for as many: other requests each time cost any server more.
        with Connection(self._servers[BARE].url) as connection:
            session = self._servers[BARE].create(connection)
        self._known[BARE] = [
            dataclasses.replace(session, id=secrets.token_urlsafe(16)) for _ in range(min(count, KNOWN))
        ]

    def _fill(self, name: str, count: int) -> None:
        running = self._servers[name]
        more = count - self._alive[name]
        redis = running.redis
        before = resident_bytes(running.pid), 0 if redis is None else used_memory(redis)
        with Connection(running.url) as connection:
            created = [running.create(connection) for _ in range(more)]
        after = resident_bytes(running.pid), 0 if redis is None else used_memory(redis)
        self._alive[name] = count
        self._known[name] = created[-KNOWN:]
        process, store = ((now - then) / more for then, now in zip(before, after, strict=True))
        self.bytes[name] = {
            "sessions": more,
            "bytes": (process if redis is None else store) - len(PAYLOAD),
            **({} if redis is None else {"process_bytes": process}),
        }

    def _side(self, stack: contextlib.ExitStack, name: str, operation: str, alive: int) -> tuple[Load, Probe]:
        running = self._servers[name]
        with Connection(running.url) as connection:
            if operation == "write":
                sessions = [running.create(connection) for _ in range(CONNECTIONS)]
                own = [running.create(connection)]
            elif alive == 1 or operation == "create" or name not in self._known:
                sessions = own = [running.create(connection)]
            else:
                sessions = own = self._known[name]
        load = Load(self._wrk, running, operation, sessions, directory=self._directory)
        return stack.enter_context(load), stack.enter_context(Probe(running, operation, own))

    def _run(self, name: str, operation: str, work: Work, late_ms: Sequence[float]) -> Run:
        if work.refused:
            raise BenchmarkError(f"{SERVERS[name].label} answered {work.refused} requests to {operation} otherwise.")
        return Run(**dataclasses.asdict(work), p50_ms=percentile(late_ms, 50), p99_ms=percentile(late_ms, 99))

    def _compare_shapes(self, operation: str) -> None:
        """Raise BenchmarkError if the bare answer does not look like ours.

        What differs in more than the values of header fields and the bytes of the body cannot be compared.
        """
        shapes = []
        for name in {BARE, "ours"} & self._servers.keys():
            running = self._servers[name]
            with Connection(running.url) as connection:
                answer = connection.ask(running.server.dialect.request(operation, running.create(connection)))
            shapes.append(
                (answer.status, {name: len(value) for name, value in answer.fields.items()}, len(answer.content))
            )
        if any(shape != shapes[0] for shape in shapes):
            raise BenchmarkError(f"The answers to {operation} differ: {shapes}")


def used_memory(redis: RedisServer) -> int:
    """Return how much a Redis says it uses."""
    used = re.search(rb"used_memory:(\d+)", redis.command("INFO", "memory"))
    assert used is not None, "Redis always tells"
    return int(used[1])


def table(measurements: Sequence[Measurement]) -> str:
    """Return the results for a person to read."""
    lines = [
        "CPU of Synapse a request, as a multiple of the bare resource's of the same round: medians, and in brackets",
        "the least and the greatest; its microseconds; thousands of requests a second; ms for one client, p50 and p99.",
    ]
    for each in measurements:
        lines.append(f"\n{each.operation}, {live(each.sessions)}")
        for name, runs in each.runs.items():
            medians = [
                statistics.median(values)
                for values in zip(
                    *((run.cost_us, run.requests / run.seconds / 1000, run.p50_ms, run.p99_ms) for run in runs),
                    strict=True,
                )
            ]
            figures = "{:8.0f}{:8.2f}{:8.2f}{:8.2f}".format(*medians)
            lines.append(f"  {SERVERS[name].label:32}{spread(each.ratios(name)):20}{figures}")
    return "\n".join(lines)


def memory(taken: Mapping[str, Mapping[str, float]]) -> str:
    """Say what a session takes."""
    lines = [f"Bytes for a session beside its payload of {len(PAYLOAD)}:"]
    for name, numbers in taken.items():
        where = "in Redis" if "process_bytes" in numbers else "resident"
        lines.append(f"  {SERVERS[name].label:32}{numbers['bytes']:8.0f} {where}, of {numbers['sessions']:,}")
    return "\n".join(lines)


def handshakes(runs: Mapping[str, Sequence[Handshakes]]) -> str:
    """Say what a whole handshake costs."""
    lines = [
        "A handshake of 32 requests: CPU as a multiple of the bare one's; milliseconds of CPU; milliseconds in all:"
    ]
    for name, rounds in runs.items():
        ratios = [one.cpu_ms / bare.cpu_ms for one, bare in zip(rounds, runs[BARE], strict=True)]
        cpu_ms, p50_ms = (
            statistics.median(values) for values in zip(*((run.cpu_ms, run.p50_ms) for run in rounds), strict=True)
        )
        lines.append(f"  {SERVERS[name].label:32}{spread(ratios):20}{cpu_ms:8.1f}{p50_ms:8.1f}")
    return "\n".join(lines)


def measure(arguments: argparse.Namespace, directory: pathlib.Path) -> Result:
    """Run the servers and compare them."""
    wrk = find_wrk()
    names = list(dict.fromkeys([BARE, *arguments.servers]))
    sizes = [size for size in (1000, 10_000, 100_000) if size < arguments.sessions] + [arguments.sessions]
    with compared(names, directory) as servers:
        turns = 2 if arguments.quick else round(arguments.seconds / TURN_S)
        comparison = Comparison(servers, directory, wrk=wrk, turns=turns, rounds=arguments.rounds)
        measurements = [comparison.measure(operation, names, 1) for operation in ("poll", "read", "write")]
        played = play(servers, rounds=arguments.rounds, count=1 if arguments.quick else 10 * arguments.seconds)
        growing = [BARE, *(name for name in names if SERVERS[name].grows)]
        for size in sizes:
            comparison.fill(size)
            measurements.append(comparison.measure("poll", growing, size))
        measurements.append(comparison.measure("create", names, sizes[-1]))
    numbers = {
        "measurements": list(map(dataclasses.asdict, measurements)),
        "handshakes": {name: list(map(dataclasses.asdict, rounds)) for name, rounds in played.items()},
        "memory": comparison.bytes,
        "holds": {name: SERVERS[name].holds for name in names},
    }
    text = [table(measurements), handshakes(played), memory(comparison.bytes)]
    return Result("\n\n".join(text), numbers)


if __name__ == "__main__":
    sys.exit(main("comparison", __doc__, measure, servers=AVAILABLE, facts={"rust module": rust_version()}))
