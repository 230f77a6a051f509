"""Compare what a request to synapse_rendezvous costs with one to a bare Twisted resource in the same Synapse process.

Both give answers of the same status, the same header fields and the same length. They are loaded in turn, ten times a
second, and only loads of the same round are compared, so that whatever else the machine does meanwhile touches both.
"""

import argparse
import concurrent.futures
import contextlib
import dataclasses
import functools
import http.client
import json
import os
import pathlib
import platform
import shlex
import shutil
import signal
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import synapse
import twisted

import synapse_rendezvous
from synapse_rendezvous.throwaway import DidNotStart, ThrowawayHomeserver, free_port

HERE = pathlib.Path(__file__).parent
COLLECTION = "/_synapse/client/rendezvous"
PAYLOAD = b"x" * 1024
CONNECTIONS = 4

TURN_S = 0.1
"""How long one side is loaded before it is the other's turn."""

SETTLE_S = 0.005
"""How long the server may need for the answers under way at the end of a turn."""

SPARE_S = 1
"""How much longer wrk is told to run than it gets turns, lest it ends in the middle of one."""

SHARE = 200
"""How many sessions are created on one connection: few, so that an interrupt need not wait long."""

UNLIMITED = {"per_second": 1_000_000, "burst_count": 1_000_000}
MODULES = (
    {
        "module": "synapse_rendezvous.RendezvousModule",
        "config": {
            "ttl": "1h",
            "max_sessions": 10_000_000,
            "max_total_bytes": "16G",
            "per_client": {
                "max_sessions": 10_000_000,
                **dict.fromkeys(("create", "read", "write", "miss"), UNLIMITED),
            },
        },
    },
    {"module": "bare.BareModule"},
)


class BenchmarkError(Exception):
    """Why there is no result: one sentence, for whoever started the benchmark."""


@dataclasses.dataclass(frozen=True)
class Session:
    """What a client knows of a session."""

    id: str
    etag: str


@dataclasses.dataclass(frozen=True)
class Operation:
    """Something a client asks for.

    Attributes:
        name: also the end of the bare resource's path.
        method: of the request.
        status: of every answer.
        on_session: whether the request names a session.
        polls: whether the request says which revision the client has.
        collection: where sessions of its dialect are created.
    """

    name: str
    method: str
    status: int
    on_session: bool = True
    polls: bool = False
    collection: str = COLLECTION

    def ours(self) -> str:
        """Return the path at which synapse_rendezvous serves it."""
        return self.collection

    def bare(self) -> str:
        """Return the path at which the bare resource serves it."""
        return f"/_synapse/client/bare_{self.name}"

    def request(self, path: str, session: Session) -> tuple[str, str, bytes | None, dict[str, str]]:
        """Return method, target, content and header fields of a request, as `http.client` takes them."""
        target = f"{path}/{session.id}" if self.on_session else path
        fields = {"If-None-Match": session.etag} if self.polls else {}
        if self.method == "GET":
            return self.method, target, None, fields
        return self.method, target, PAYLOAD, {**fields, "Content-Type": "text/plain"}


POLL = Operation("poll", "GET", 304, polls=True)
READ = Operation("read", "GET", 200)
WRITE = Operation("write", "PUT", 202)
CREATE = Operation("create", "POST", 200, on_session=False)

# A poll in each of the other dialects. MSC4388 has no conditions: it answers with the data each time.
POLL_MSC4108 = Operation("msc4108", "GET", 304, polls=True, collection=f"{COLLECTION}/msc4108")
POLL_MSC4388 = Operation("msc4388", "GET", 200, collection="/_synapse/client/io.element.msc4388/rendezvous")


@dataclasses.dataclass(frozen=True)
class Run:
    """What one side did in one round and what it cost.

    Attributes:
        requests: how many were answered.
        seconds: how long it was loaded.
        cpu_seconds: how long the Synapse process worked meanwhile, in the kernel or outside.
    """

    requests: int
    seconds: float
    cpu_seconds: float

    @property
    def throughput(self) -> float:
        """Requests a second."""
        return self.requests / self.seconds

    @property
    def cost(self) -> float:
        """Microseconds of CPU a request."""
        return self.cpu_seconds / self.requests * 1e6


@dataclasses.dataclass(frozen=True)
class Measurement:
    """The runs of one operation: a pair for each round.

    Attributes:
        operation: what was asked for.
        sessions: how many sessions were alive, at least.
        ours: the runs against synapse_rendezvous.
        bare: the runs against the bare resource.
    """

    operation: Operation
    sessions: int
    ours: list[Run]
    bare: list[Run]

    def cheapness(self) -> list[float]:
        """Return, for each round, the CPU time of a bare request as a share of that of ours."""
        return [bare.cost / ours.cost for ours, bare in zip(self.ours, self.bare, strict=True)]

    def throughput(self) -> list[float]:
        """Return, for each round, our throughput as a share of the bare one."""
        return [ours.throughput / bare.throughput for ours, bare in zip(self.ours, self.bare, strict=True)]


class Load:
    """Loads the server whenever it is its turn, and notes what the server does then.

    Args:
        command: starts wrk with `load.lua`, which pauses until its first turn. Its duration, pauses included, begins
            there.
        server: the process id of the server.
    """

    def __init__(self, command: Sequence[str], server: int) -> None:
        self._server = server
        self._seconds = self._cpu_seconds = 0.0
        self._wrk = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)
        self._await_pause()

    def take_turn(self) -> None:
        """Load the server for a while."""
        with self._noted():
            self._wrk.send_signal(signal.SIGCONT)
            time.sleep(TURN_S)
            self._wrk.send_signal(signal.SIGSTOP)
            self._await_pause()
            time.sleep(SETTLE_S)

    def finish(self) -> Run:
        """Return what the load was, once its duration is over.

        Raises:
            BenchmarkError: not all answers were as they should be.
        """
        with self._noted():
            self._wrk.send_signal(signal.SIGCONT)
            output, _ = self._wrk.communicate(timeout=60)
        if self._wrk.returncode != 0:
            raise BenchmarkError(f"wrk failed: {output}")
        summary = json.loads(output.splitlines()[-1])
        if summary["unexpected"] or summary["failed"] or not summary["requests"]:
            raise BenchmarkError(f"Not all answers were as they should be: {summary}")
        return Run(summary["requests"], self._seconds, self._cpu_seconds)

    def stop(self) -> None:
        """End wrk, if it runs."""
        self._wrk.kill()
        self._wrk.communicate()

    @contextlib.contextmanager
    def _noted(self) -> Iterator[None]:
        seconds, cpu_seconds = time.monotonic(), _cpu_seconds(self._server)
        yield
        self._seconds += time.monotonic() - seconds
        self._cpu_seconds += _cpu_seconds(self._server) - cpu_seconds

    def _await_pause(self) -> None:
        os.waitid(os.P_PID, self._wrk.pid, os.WSTOPPED | os.WEXITED | os.WNOWAIT)


class Benchmark:
    """Loads a homeserver that runs.

    Args:
        homeserver: has both modules.
        directory: for the files of requests.
        wrk: the program that makes the load.
        seconds: how long each side is loaded in a round.
        rounds: how many pairs of runs each operation gets.
    """

    def __init__(
        self, homeserver: ThrowawayHomeserver, directory: pathlib.Path, *, wrk: str, seconds: int, rounds: int
    ) -> None:
        self._homeserver = homeserver
        self._address = homeserver.url.removeprefix("http://")
        self._directory = directory
        self._wrk = wrk
        self._seconds = seconds
        self._rounds = rounds

    def run(self, sessions: int) -> list[Measurement]:
        """Measure everything, with few and with so many sessions alive."""
        known = self._create(1)
        few = [self._measure(operation, known) for operation in (POLL, READ, WRITE)]
        known = self._create(sessions - len(known))  # without the first, whose tag is no longer known
        return [*few, *(self._measure(operation, known, sessions) for operation in (POLL, READ, CREATE))]

    def dialects(self) -> dict[str, list[Run]]:
        """Poll one session of each dialect in turn, and return the runs by the names of the operations."""
        commands = {}
        for operation, content_type, content in (
            (POLL, "text/plain", PAYLOAD),
            (POLL_MSC4108, "text/plain", PAYLOAD),
            (POLL_MSC4388, "application/json", json.dumps({"data": PAYLOAD.decode()}).encode()),
        ):
            with contextlib.closing(self._connect()) as connection:
                connection.request("POST", operation.collection, content, {"Content-Type": content_type})
                response = connection.getresponse()
                created = json.loads(response.read())
            session = Session(created.get("id") or created["url"].rpartition("/")[2], response.headers.get("ETag", ""))
            commands[operation.name] = self._command(operation, operation.collection, [session], sides=3)
        runs: dict[str, list[Run]] = {name: [] for name in commands}
        for number in range(1, self._rounds + 1):
            _progress(f"Measuring polls of the dialects: round {number} of {self._rounds}")
            with contextlib.ExitStack() as stack:
                loads = {name: stack.enter_context(self._load(command)) for name, command in commands.items()}
                self._alternate(list(loads.values()))
                for name, load in loads.items():
                    runs[name].append(load.finish())
        return runs

    def _create(self, count: int) -> list[Session]:
        _progress(f"Creating sessions: {count:,}")
        shares = [min(SHARE, count - start) for start in range(0, count, SHARE)]
        with concurrent.futures.ThreadPoolExecutor(CONNECTIONS) as pool:
            return [session for created in pool.map(self._create_in_turn, shares) for session in created]

    def _create_in_turn(self, count: int) -> list[Session]:
        sessions = []
        with contextlib.closing(self._connect()) as connection:
            for _ in range(count):
                connection.request("POST", COLLECTION, PAYLOAD, {"Content-Type": "text/plain"})
                response = connection.getresponse()
                content = json.loads(response.read())
                if response.status != CREATE.status:
                    raise BenchmarkError(f"A session could not be created: {response.status} {content}")
                sessions.append(Session(content["id"], response.headers["ETag"]))
        return sessions

    def _measure(self, operation: Operation, known: Sequence[Session], sessions: int = 1) -> Measurement:
        self._require_alike(operation, known[0])
        ours = self._command(operation, operation.ours(), known)
        bare = self._command(operation, operation.bare(), known)
        measurement = Measurement(operation, sessions, [], [])
        for number in range(1, self._rounds + 1):
            _progress(f"Measuring {operation.name}, {_live(sessions)}: round {number} of {self._rounds}")
            with self._load(ours) as our_load, self._load(bare) as bare_load:
                self._alternate([our_load, bare_load])
                measurement.ours.append(our_load.finish())
                measurement.bare.append(bare_load.finish())
        return measurement

    def _alternate(self, loads: list[Load]) -> None:
        end = time.monotonic() + len(loads) * self._seconds
        while time.monotonic() < end:
            for load in loads:
                load.take_turn()
            loads.reverse()  # none profits from coming first
        time.sleep(SPARE_S)  # their durations end while they pause

    def _require_alike(self, operation: Operation, session: Session) -> None:
        """Refuse to compare answers that differ in more than the values of header fields and the bytes of the body."""
        ours = self._shape(operation, operation.ours(), session)
        bare = self._shape(operation, operation.bare(), session)
        if ours != bare:
            raise BenchmarkError(f"The answers to {operation.name} differ; ours: {ours}; bare: {bare}")

    def _shape(self, operation: Operation, path: str, session: Session) -> tuple[int, list[tuple[str, int]], int]:
        """Return status, names of header fields with the lengths of their values, and length of the body."""
        with contextlib.closing(self._connect()) as connection:
            connection.request(*operation.request(path, session))
            response = connection.getresponse()
            fields = sorted((name, len(value)) for name, value in response.getheaders())
            return response.status, fields, len(response.read())

    def _command(self, operation: Operation, path: str, sessions: Sequence[Session], sides: int = 2) -> list[str]:
        """Return the command that loads this path with requests for these sessions, one of so many that take turns."""
        chosen = sessions if operation.on_session else sessions[:1]
        file = self._directory / f"{operation.name}_{path.rpartition('/')[2]}.requests"
        file.write_bytes(b"\0".join(self._raw(*operation.request(path, session)) for session in chosen))
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
        load = Load(command, self._homeserver.pid)
        try:
            yield load
        finally:
            load.stop()

    def _connect(self) -> http.client.HTTPConnection:
        return http.client.HTTPConnection(self._address, timeout=60)


def _cpu_seconds(pid: int) -> float:
    """Return how long a process has worked so far: utime and stime of proc(5), but in nanoseconds."""
    return time.clock_gettime(~pid << 3 | 2)  # what clock_getcpuclockid(3) returns on Linux


def _progress(text: str) -> None:
    print(text, file=sys.stderr, flush=True)


def _live(sessions: int) -> str:
    return f"{sessions:,} live session{'s' if sessions > 1 else ''}"


def _spread(ratios: Sequence[float]) -> str:
    return f"{statistics.median(ratios):.2f} ({min(ratios):.2f}-{max(ratios):.2f})"


def _median_cost(runs: Sequence[Run]) -> float:
    return statistics.median(run.cost for run in runs)


def environment() -> dict[str, str]:
    """Return what the numbers depend on."""
    return {
        "command": shlex.join(["python", *sys.argv]),
        "synapse_rendezvous": synapse_rendezvous.__version__,
        "Synapse": synapse.__version__,
        "Twisted": twisted.__version__,
        "Python": platform.python_version(),
        "CPU": f"{os.cpu_count()} x {_cpu_model()}",
    }


def _cpu_model() -> str:
    for line in pathlib.Path("/proc/cpuinfo").read_text().splitlines():
        name, _, value = line.partition(":")
        if name.strip() == "model name":
            return value.strip()
    return platform.machine()


def table(measurements: Sequence[Measurement]) -> str:
    """Return the results for a person to read."""
    lines = [
        f"{'':9}{'live':>9}   {'CPU a request':<20}{'throughput':<20}{'us CPU a request':>16}",
        f"{'':9}{'sessions':>9}   {'bare / ours':<20}{'ours / bare':<20}{'ours':>9}{'bare':>7}",
    ]
    for each in measurements:
        lines.append(
            f"{each.operation.name:9}{each.sessions:9,}   {_spread(each.cheapness()):<20}"
            f"{_spread(each.throughput()):<20}{_median_cost(each.ours):9.0f}{_median_cost(each.bare):7.0f}"
        )
    return "\n".join(lines)


def growth(measurements: Sequence[Measurement]) -> str:
    """Say what a poll costs with many sessions alive, as a multiple of what it costs with one."""
    one, many = (each for each in measurements if each.operation is POLL)
    plain = _median_cost(many.ours) / _median_cost(one.ours)
    relative = statistics.median(one.cheapness()) / statistics.median(many.cheapness())
    return (
        f"A poll with {_live(many.sessions)} costs {plain:.2f} times what it costs with 1;"
        f" each in terms of the bare one of its time, {relative:.2f} times."
    )


def dialect_costs(runs: dict[str, list[Run]]) -> str:
    """Say what a poll costs in the other dialects, as a share of what it costs in the base protocol."""
    lines = ["A poll in another dialect, CPU as a multiple of the base protocol's of the same round:"]
    for operation in (POLL_MSC4108, POLL_MSC4388):
        pairs = zip(runs[operation.name], runs[POLL.name], strict=True)
        lines.append(f"{operation.name:9}{_spread([other.cost / base.cost for other, base in pairs])}")
    return "\n".join(lines)


def report(measurements: Sequence[Measurement], dialects: dict[str, list[Run]]) -> str:
    """Return all that is printed."""
    facts = "\n".join(f"{name}: {value}" for name, value in environment().items())
    legend = (
        "Medians over the rounds of the ratios within a round, and in brackets the least and the greatest.\n"
        "1.00: as good as a bare Twisted resource; wanted: CPU at least 0.85."
    )
    return f"{facts}\n\n{table(measurements)}\n\n{legend}\n{growth(measurements)}\n\n{dialect_costs(dialects)}"


def raw(measurements: Sequence[Measurement], dialects: dict[str, list[Run]]) -> dict[str, Any]:
    """Return all numbers for a program to read."""
    return {
        "environment": environment(),
        "measurements": [dataclasses.asdict(each) for each in measurements],
        "dialects": {name: [dataclasses.asdict(run) for run in runs] for name, runs in dialects.items()},
    }


@contextlib.contextmanager
def both_modules(directory: pathlib.Path) -> Iterator[ThrowawayHomeserver]:
    """Run a homeserver with our module and the bare one, their limits out of the way."""
    path = os.pathsep.join([str(HERE), *filter(None, [os.environ.get("PYTHONPATH")])])
    homeserver = ThrowawayHomeserver(directory, port=free_port(), modules=MODULES, environment={"PYTHONPATH": path})
    try:
        homeserver.start()
        yield homeserver
    finally:
        homeserver.stop()


def _whole(low: int, high: int) -> Callable[[str], int]:
    def read(text: str) -> int:
        if not low <= int(text) <= high:
            raise argparse.ArgumentTypeError(f"must be from {low} to {high}")
        return int(text)

    return read


def options() -> argparse.Namespace:
    """Read the command line. The bounds keep all sessions alive (for an hour) until the end."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    number = functools.partial(parser.add_argument, metavar="N")
    number("--rounds", type=_whole(1, 20), default=9, help="how many ratios each operation gets (default: 9)")
    number("--seconds", type=_whole(1, 10), default=2, help="how long each side is loaded in a round (default: 2)")
    number("--sessions", type=_whole(2, 500_000), default=100_000, help="how many are many (default: 100000)")
    parser.add_argument("--quick", action="store_true", help="1 round of 1 second, 200 sessions: only whether it works")
    parser.add_argument("--json", type=pathlib.Path, metavar="FILE", help="write the raw numbers to this file as well")
    arguments = parser.parse_args()
    if arguments.quick:
        arguments.rounds, arguments.seconds, arguments.sessions = 1, 1, 200
    return arguments


def find_wrk() -> str:
    """Return where wrk is.

    Raises:
        BenchmarkError: it is nowhere, or this is no machine to measure on.
    """
    if not sys.platform.startswith("linux"):
        raise BenchmarkError("This benchmark runs only on Linux, which tells how long another process has worked.")
    wrk = shutil.which("wrk")
    if wrk is None:
        raise BenchmarkError(
            "This benchmark makes its load with wrk, which is not installed (Debian: apt install wrk)."
        )
    return wrk


def main() -> int:
    """Run the benchmark and print its result.

    Returns:
        The exit status: 0 when there is a result.
    """
    arguments = options()
    for interruption in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
        signal.signal(interruption, lambda *_: sys.exit(1))  # so that the homeserver is ended as well
    try:
        wrk = find_wrk()
        with tempfile.TemporaryDirectory(prefix="synapse_rendezvous_") as name:
            directory = pathlib.Path(name)
            _progress(f"Starting Synapse {synapse.__version__}")
            with both_modules(directory) as homeserver:
                benchmark = Benchmark(
                    homeserver, directory, wrk=wrk, seconds=arguments.seconds, rounds=arguments.rounds
                )
                dialects = benchmark.dialects()
                measurements = benchmark.run(arguments.sessions)
    except (BenchmarkError, DidNotStart) as error:
        print(error, file=sys.stderr)
        return 1
    print(report(measurements, dialects))
    if arguments.json:
        arguments.json.write_text(json.dumps(raw(measurements, dialects), indent=1) + "\n")
    return 0


if __name__ == "__main__":
    sys.exit(main())
