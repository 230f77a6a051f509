"""The load: what a client asks for, wrk, which asks for it in turns, and what the servers spend meanwhile."""

import contextlib
import dataclasses
import json
import os
import signal
import subprocess
import time
from collections.abc import Iterator, Sequence

PAYLOAD = b"x" * 1024

TURN_S = 0.1
"""How long one side is loaded before it is the other's turn."""

SETTLE_S = 0.005
"""How long the server may need for the answers under way at the end of a turn."""


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
        name: for whoever reads the result.
        method: of the request.
        status: of every answer.
        on_session: whether the request names a session.
        polls: whether the request says which revision the client has.
    """

    name: str
    method: str
    status: int
    on_session: bool = True
    polls: bool = False

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


@dataclasses.dataclass(frozen=True)
class Run:
    """What one side did in one round and what it cost.

    Attributes:
        requests: how many were answered.
        seconds: how long it was loaded.
        cpu_seconds: how long the Synapse process worked meanwhile, in the kernel or outside.
        redis_cpu_seconds: how long the redis-server process did; 0 where there is none.
    """

    requests: int
    seconds: float
    cpu_seconds: float
    redis_cpu_seconds: float = 0.0

    @property
    def throughput(self) -> float:
        """Requests a second."""
        return self.requests / self.seconds

    @property
    def cost(self) -> float:
        """Microseconds of Synapse's CPU a request."""
        return self.cpu_seconds / self.requests * 1e6

    @property
    def redis_cost(self) -> float:
        """Microseconds of Redis' CPU a request."""
        return self.redis_cpu_seconds / self.requests * 1e6


class Load:
    """Loads the server whenever it is its turn, and notes what the server does then.

    Args:
        command: starts wrk with `load.lua`, which pauses until its first turn. Its duration, pauses included, begins
            there.
        processes: the ids of the processes that serve: Synapse's, and Redis' if there is one.
    """

    def __init__(self, command: Sequence[str], processes: Sequence[int]) -> None:
        self._processes = processes
        self._spent = [0.0 for _ in self._clocks()]
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
        return Run(summary["requests"], *self._spent)

    def stop(self) -> None:
        """End wrk, if it runs."""
        self._wrk.kill()
        self._wrk.communicate()

    @contextlib.contextmanager
    def _noted(self) -> Iterator[None]:
        begin = self._clocks()
        yield
        self._spent = [spent + now - then for spent, now, then in zip(self._spent, self._clocks(), begin, strict=True)]

    def _clocks(self) -> list[float]:
        """Return the time of day and then each process's, in the order of the fields of `Run`."""
        return [time.monotonic(), *map(cpu_seconds, self._processes)]

    def _await_pause(self) -> None:
        os.waitid(os.P_PID, self._wrk.pid, os.WSTOPPED | os.WEXITED | os.WNOWAIT)


def cpu_seconds(pid: int) -> float:
    """Return how long a process has worked so far: utime and stime of proc(5), but in nanoseconds."""
    return time.clock_gettime(~pid << 3 | 2)  # what clock_getcpuclockid(3) returns on Linux
