"""Compares what requests cost that are sent to one Synapse process: in turns, ten times a second.

Only loads of the same round are compared, so that whatever else the machine does meanwhile touches all of them.
"""

import concurrent.futures
import contextlib
import dataclasses
import http.client
import json
import pathlib
import statistics
import sys
import time
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from load import PAYLOAD, POLL, BenchmarkError, Load, Operation, Run, Session

from synapse_rendezvous.throwaway import ThrowawayHomeserver

HERE = pathlib.Path(__file__).parent
CONNECTIONS = 4

SPARE_S = 1
"""How much longer wrk is told to run than it gets turns, lest it ends in the middle of one."""

SHARE = 200
"""How many sessions are created on one connection: few, so that an interrupt need not wait long."""

_UNLIMITED = {"per_second": 1_000_000, "burst_count": 1_000_000}


def rendezvous(**options: Any) -> dict[str, Any]:
    """Return our item of the `modules` list with these options, and the limits out of the way."""
    per_client = {"max_sessions": 10_000_000, **dict.fromkeys(("create", "read", "write", "miss"), _UNLIMITED)}
    limits = {
        "ttl": "1h",
        "max_sessions": 10_000_000,
        "max_total_bytes": "16G",
        "max_updates": 9_999_999,
        "per_client": per_client,
        "per_session": {"read": _UNLIMITED, "write": _UNLIMITED},
    }
    return {"module": "synapse_rendezvous.RendezvousModule", "config": {**limits, **options}}


@dataclasses.dataclass(frozen=True)
class Side:
    """Requests of one kind, to be compared with others.

    Attributes:
        operation: what is asked for.
        path: where the operation is served.
        sessions: those that are asked for, in random order.
    """

    operation: Operation
    path: str
    sessions: Sequence[Session]


@dataclasses.dataclass(frozen=True)
class Comparison:
    """The runs of one operation on two sides: a pair for each round.

    Attributes:
        operation: what was asked for.
        sessions: how many sessions were alive, at least.
        runs: by the names of the sides.
    """

    operation: Operation
    sessions: int
    runs: Mapping[str, list[Run]]

    def cost(self, side: str, reference: str) -> list[float]:
        """Return, for each round, the CPU time of a request on a side as a multiple of that on the other."""
        return [one.cost / other.cost for one, other in self._pairs(side, reference)]

    def extra(self, side: str, reference: str) -> list[float]:
        """Return, for each round, by how many microseconds of CPU a request costs more on a side than on the other."""
        return [one.cost - other.cost for one, other in self._pairs(side, reference)]

    def throughput(self, side: str, reference: str) -> list[float]:
        """Return, for each round, the throughput of a side as a multiple of the other's."""
        return [one.throughput / other.throughput for one, other in self._pairs(side, reference)]

    def median_cost(self, side: str) -> float:
        """Return the microseconds of CPU that a request costs on a side."""
        return statistics.median(run.cost for run in self.runs[side])

    def _pairs(self, side: str, reference: str) -> Iterator[tuple[Run, Run]]:
        return zip(self.runs[side], self.runs[reference], strict=True)


def growth(comparisons: Sequence[Comparison], side: str, reference: str) -> tuple[float, float]:
    """Return what a poll costs with many sessions alive, as a multiple of what it costs with one.

    Returns:
        The multiple, and the same with each in terms of the reference of its time.
    """
    one, many = (each for each in comparisons if each.operation is POLL)
    relative = statistics.median(one.cost(reference, side)) / statistics.median(many.cost(reference, side))
    return many.median_cost(side) / one.median_cost(side), relative


class Benchmark:
    """Loads a homeserver that runs.

    Args:
        homeserver: serves all that is compared.
        directory: for the files of requests.
        wrk: the program that makes the load.
        seconds: how long each side is loaded in a round.
        rounds: how many runs each side gets.
        redis: the process id of the Redis that the homeserver uses, if it does.
    """

    def __init__(
        self,
        homeserver: ThrowawayHomeserver,
        directory: pathlib.Path,
        *,
        wrk: str,
        seconds: int,
        rounds: int,
        redis: int | None = None,
    ) -> None:
        self._homeserver = homeserver
        self._processes = [homeserver.pid] if redis is None else [homeserver.pid, redis]
        self._address = homeserver.url.removeprefix("http://")
        self._directory = directory
        self._wrk = wrk
        self._seconds = seconds
        self._rounds = rounds

    def create(
        self, path: str, count: int, *, content_type: str = "text/plain", content: bytes = PAYLOAD
    ) -> list[Session]:
        """Create so many sessions at a path."""
        progress(f"Creating sessions: {count:,}")
        fields = {"Content-Type": content_type}
        shares = [min(SHARE, count - start) for start in range(0, count, SHARE)]

        def create_in_turn(share: int) -> list[Session]:
            with contextlib.closing(self._connect()) as connection:
                return [_create(connection, path, content, fields) for _ in range(share)]

        with concurrent.futures.ThreadPoolExecutor(CONNECTIONS) as pool:
            return [session for created in pool.map(create_in_turn, shares) for session in created]

    def compare(self, sides: Mapping[str, Side], sessions: int) -> Comparison:
        """Measure one operation on two sides, whose answers must be alike.

        Args:
            sides: by their names.
            sessions: how many are alive.
        """
        operation = next(iter(sides.values())).operation
        shapes = {name: self._shape(side) for name, side in sides.items()}
        if len(set(map(repr, shapes.values()))) > 1:
            differences = "; ".join(f"{name}: {shape}" for name, shape in shapes.items())
            raise BenchmarkError(f"The answers to {operation.name} differ; {differences}")
        return Comparison(operation, sessions, self.measure(f"{operation.name}, {live(sessions)}", sides))

    def measure(self, what: str, sides: Mapping[str, Side]) -> dict[str, list[Run]]:
        """Return the runs of each side, which take turns.

        Args:
            what: names what is measured, for whoever waits.
            sides: by their names.
        """
        commands = {name: self._command(name, side, len(sides)) for name, side in sides.items()}
        runs: dict[str, list[Run]] = {name: [] for name in sides}
        for number in range(1, self._rounds + 1):
            progress(f"Measuring {what}: round {number} of {self._rounds}")
            with contextlib.ExitStack() as stack:
                loads = {name: stack.enter_context(self._load(command)) for name, command in commands.items()}
                self._alternate(list(loads.values()))
                for name, load in loads.items():
                    runs[name].append(load.finish())
        return runs

    def _alternate(self, loads: list[Load]) -> None:
        end = time.monotonic() + len(loads) * self._seconds
        while time.monotonic() < end:
            for load in loads:
                load.take_turn()
            loads.reverse()  # none profits from coming first
        time.sleep(SPARE_S)  # their durations end while they pause

    def _shape(self, side: Side) -> tuple[int, list[tuple[str, int]], int]:
        """Return status, names of header fields with the lengths of their values, and length of the body.

        Answers that differ in more than the values of header fields and the bytes of the body cannot be compared.
        """
        with contextlib.closing(self._connect()) as connection:
            connection.request(*side.operation.request(side.path, side.sessions[0]))
            response = connection.getresponse()
            fields = sorted((name, len(value)) for name, value in response.getheaders())
            return response.status, fields, len(response.read())

    def _command(self, name: str, side: Side, sides: int) -> list[str]:
        """Return the command that loads this side, one of so many that take turns."""
        operation = side.operation
        chosen = side.sessions if operation.on_session else side.sessions[:1]
        file = self._directory / f"{operation.name}_{name}.requests"
        file.write_bytes(b"\0".join(self._raw(*operation.request(side.path, session)) for session in chosen))
        duration = sides * self._seconds + SPARE_S
        options = ["--threads=1", f"--connections={CONNECTIONS}", f"--duration={duration}s", "--timeout=30s"]
        script = [f"--script={HERE / 'load.lua'}", self._homeserver.url, "--", str(file), str(operation.status)]
        return [self._wrk, *options, *script]

    def _raw(self, method: str, target: str, content: bytes | None, fields: dict[str, str]) -> bytes:
        lengths = {} if content is None else {"Content-Length": str(len(content))}
        head = [f"{name}: {value}\r\n" for name, value in {"Host": self._address, **fields, **lengths}.items()]
        return f"{method} {target} HTTP/1.1\r\n{''.join(head)}\r\n".encode("ascii") + (content or b"")

    @contextlib.contextmanager
    def _load(self, command: Sequence[str]) -> Iterator[Load]:
        load = Load(command, self._processes)
        try:
            yield load
        finally:
            load.stop()

    def _connect(self) -> http.client.HTTPConnection:
        return http.client.HTTPConnection(self._address, timeout=60)


def _create(connection: http.client.HTTPConnection, path: str, content: bytes, fields: dict[str, str]) -> Session:
    connection.request("POST", path, content, fields)
    response = connection.getresponse()
    created = json.loads(response.read())
    if response.status not in (200, 201):
        raise BenchmarkError(f"A session could not be created: {response.status} {created}")
    return Session(created.get("id") or created["url"].rpartition("/")[2], response.headers.get("ETag", ""))


def progress(text: str) -> None:
    """Tell whoever waits what is going on."""
    print(text, file=sys.stderr, flush=True)


def live(sessions: int) -> str:
    """Return how many sessions there are, in words."""
    return f"{sessions:,} live session{'s' if sessions > 1 else ''}"


def spread(values: Sequence[float], digits: int = 2) -> str:
    """Return the median of some values and, in brackets, the least and the greatest."""
    return f"{statistics.median(values):.{digits}f} ({min(values):.{digits}f}-{max(values):.{digits}f})"
