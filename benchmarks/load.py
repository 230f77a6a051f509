"""The load: wrk, which asks a server in turns, what the server spends meanwhile, and how soon it answers one client."""

import contextlib
import dataclasses
import json
import os
import pathlib
import random
import signal
import statistics
import subprocess
import time
from collections.abc import Iterator, Sequence

from cli import HERE
from connection import BenchmarkError, Connection
from dialects import Session, checked
from servers import Running

TURN_S = 0.1
"""How long one side is loaded before it is the other's turn."""

PROBE_S = 0.03
"""For how long in each turn a single client asks, whose answers are timed."""

SETTLE_S = 0.005
"""How long the server may need for the answers under way at the end of a turn."""

CONNECTIONS = 4


@dataclasses.dataclass(frozen=True)
class Work:
    """What one side did in one round and what it cost.

    Attributes:
        requests: how many were answered as wanted.
        refused: how many were answered otherwise.
        seconds: how long it was loaded.
        cpu_seconds: how long the Synapse process worked meanwhile, in the kernel or outside.
        redis_cpu_seconds: how long the redis-server process did; 0 where there is none.
    """

    requests: int
    refused: int
    seconds: float
    cpu_seconds: float
    redis_cpu_seconds: float = 0.0


class Clocks:
    """How long a load and the processes under it have worked.

    Args:
        pids: the processes that serve: Synapse's, and Redis' if there is one.

    Attributes:
        spent_s: the seconds of `noted` so far, and in them each process's of CPU.
    """

    def __init__(self, pids: Sequence[int]) -> None:
        self._pids = pids
        self.spent_s = [0.0] * (1 + len(pids))

    @contextlib.contextmanager
    def noted(self) -> Iterator[None]:
        """Count what passes in a `with` statement."""
        begin_s = self._read()
        yield
        for index, (then_s, now_s) in enumerate(zip(begin_s, self._read(), strict=True)):
            self.spent_s[index] += now_s - then_s

    def _read(self) -> list[float]:
        return [time.monotonic(), *map(cpu_seconds, self._pids)]


class Load:
    """Loads a server with one operation whenever it is its turn, and notes what the server does then.

    Args:
        wrk: the program.
        running: the server.
        operation: one of `dialects.OPERATIONS`.
        sessions: those that are asked for, in random order. To write, each connection has one of its own.
        directory: for the file of requests.
        connections: how many it has.
        client: for whom a proxy would say it asks.
    """

    def __init__(
        self,
        wrk: str,
        running: Running,
        operation: str,
        sessions: Sequence[Session],
        *,
        directory: pathlib.Path,
        connections: int = CONNECTIONS,
        client: str | None = None,
    ) -> None:
        dialect = running.server.dialect
        host = running.url.removeprefix("http://")
        requests = [dialect.request(operation, session).raw(host, client) for session in sessions]
        threads, tags = 1, []
        if operation == "write":  # each needs what the answer before tells
            threads, tags = connections, [session.tag for session in sessions]
            requests = [
                request.replace(tag.encode("ascii"), b"\1") for request, tag in zip(requests, tags, strict=True)
            ]
        file = directory / f"{id(self)}.requests"
        file.write_bytes(b"\0".join(requests))
        options = [f"--threads={threads}", f"--connections={connections}", "--duration=1h", "--timeout=10s"]
        script = [f"--script={HERE / 'load.lua'}", running.url, "--", str(file), str(dialect.status(operation)), *tags]
        self._clocks = Clocks(running.pids)
        self._wrk = subprocess.Popen(
            [wrk, *options, *script], stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True
        )
        self._await_pause()
        file.unlink()

    def __enter__(self) -> "Load":
        return self

    def __exit__(self, *_error: object) -> None:
        self._wrk.kill()
        self._wrk.communicate()

    def take_turn(self) -> None:
        """Load the server for a while."""
        with self._clocks.noted():
            self._wrk.send_signal(signal.SIGCONT)
            time.sleep(TURN_S)
            self._wrk.send_signal(signal.SIGSTOP)
            self._await_pause()
            time.sleep(SETTLE_S)

    def start(self) -> None:
        """Load the server until `finish`."""
        self._wrk.send_signal(signal.SIGCONT)

    def finish(self) -> Work:
        """End the load and return what it was.

        Raises:
            BenchmarkError: wrk failed, or a request did.
        """
        with self._clocks.noted():
            self._wrk.send_signal(signal.SIGCONT)
            output = self._interrupt()
        if self._wrk.returncode != 0:
            raise BenchmarkError(f"wrk failed: {output}")
        summary = json.loads(output.splitlines()[-1])
        if summary["failed"] or not summary["requests"]:
            raise BenchmarkError(f"Not all requests were answered: {summary}")
        refused = summary["unexpected"]
        return Work(summary["requests"] - refused, refused, *self._clocks.spent_s)

    def _interrupt(self) -> str:
        """Let it end, and return what it tells of what it did."""
        while True:  # only its first thread ends it, but the kernel may give the signal to the other
            self._wrk.send_signal(signal.SIGINT)
            with contextlib.suppress(subprocess.TimeoutExpired):
                return self._wrk.communicate(timeout=0.2)[0]

    def _await_pause(self) -> None:
        os.waitid(os.P_PID, self._wrk.pid, os.WSTOPPED | os.WEXITED | os.WNOWAIT)


class Probe:
    """A single client with one connection, whose answers are timed.

    Args:
        running: the server.
        operation: one of `dialects.OPERATIONS`.
        sessions: those that it asks for, in random order. To write, it takes the first, which nobody else writes.

    Attributes:
        late_ms: how long each answer took.
    """

    def __init__(self, running: Running, operation: str, sessions: Sequence[Session]) -> None:
        self._dialect = running.server.dialect
        self._operation = operation
        self._sessions = list(sessions[:1] if operation == "write" else sessions)
        self._connection = Connection(running.url)
        self.late_ms: list[float] = []

    def __enter__(self) -> "Probe":
        return self

    def __exit__(self, *error: object) -> None:
        self._connection.__exit__(*error)

    def take_turn(self) -> None:
        """Ask for a while, at least once."""
        end_s = time.monotonic() + PROBE_S
        while True:
            session = random.choice(self._sessions)
            request = self._dialect.request(self._operation, session)
            begin_s = time.perf_counter()
            answer = self._connection.ask(request)
            self.late_ms.append((time.perf_counter() - begin_s) * 1000)
            checked(answer, self._dialect, self._operation)
            if self._operation == "write":
                self._sessions = [Session(session.id, self._dialect.tag(answer))]
            if time.monotonic() > end_s:
                return


def percentile(values: Sequence[float], percent: int) -> float:
    """Return the value that so many of a hundred do not exceed."""
    if len(values) < 2:
        return values[0]
    return statistics.quantiles(values, n=100, method="inclusive")[percent - 1]


def cpu_seconds(pid: int) -> float:
    """Return how long a process has worked so far: utime and stime of proc(5), but in nanoseconds."""
    return time.clock_gettime(~pid << 3 | 2)  # what clock_getcpuclockid(3) returns on Linux


def resident_bytes(pid: int) -> int:
    """Return how much memory a process has."""
    return int(pathlib.Path(f"/proc/{pid}/statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE")
