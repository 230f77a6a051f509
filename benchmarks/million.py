"""Let a million sessions live in the memory of one Synapse process, and see what holds up a client meanwhile.

The sessions are created by the real store within the process, a little at a time, because by HTTP it would take ten
minutes and hide all pauses. A client polls a session of its own throughout: before, while they are created, while all
live, and while they expire. A module within the process notes garbage collections, sweeps, creations and every time
that the process was busy for long. Synapse collects garbage more often than by default, so that a short run sees it.
"""

import argparse
import dataclasses
import json
import pathlib
import statistics
import sys
import threading
import time
from collections.abc import Sequence
from typing import Any

from cli import Result, main, progress
from connection import BenchmarkError, Connection, Request
from inside import PATH
from load import percentile, resident_bytes
from servers import SERVERS, Running, homeserver, rendezvous, running

SESSIONS = 1_000_000
PHASES = ("before", "while they are created", "while all live", "while they expire")
WANTED_MS = 20
PAUSE_S = 0.002
AFTERWARDS = 20
"""How many sessions may be left in the end: those that the client made."""

SETTINGS = {"gc_thresholds": [700, 2, 2], "gc_min_interval": ["1s", "2s", "10s"]}


@dataclasses.dataclass(frozen=True)
class Phase:
    """What happened in one phase.

    Attributes:
        name: of `PHASES`.
        seconds: how long it took.
        polls: how many were answered.
        p50_ms: how long an answer took, the median.
        p99_ms: what one of a hundred took longer than.
        max_ms: how long the slowest took; the machine's other work delays some.
        longest_ms: the longest work in the process, by kind.
    """

    name: str
    seconds: float
    polls: int
    p50_ms: float
    p99_ms: float
    max_ms: float
    longest_ms: dict[str, float]


class Poller(threading.Thread):
    """A client that polls without end.

    Args:
        server: whom it asks.
        renew_s: how often it creates another session, because the one before expires.

    Attributes:
        answers: for each, when it came and how many milliseconds it took.
        error: what ended it, if anything did.
    """

    def __init__(self, server: Running, renew_s: float) -> None:
        super().__init__(daemon=True)
        self._server = server
        self._renew_s = renew_s
        self._ends = False
        self.answers: list[tuple[float, float]] = []
        self.error: Exception | None = None

    def run(self) -> None:
        """Poll until `stop`."""
        try:
            with Connection(self._server.url, "198.51.100.1") as connection:
                while not self._ends:
                    self._poll_one(connection)
        except (BenchmarkError, OSError) as error:
            self.error = error

    def stop(self) -> None:
        """End it."""
        self._ends = True
        self.join()
        if self.error is not None:
            raise self.error

    def _poll_one(self, connection: Connection) -> None:
        session = self._server.create(connection)
        request = self._server.server.dialect.request("poll", session)
        end_s = time.monotonic() + self._renew_s
        while not self._ends and time.monotonic() < end_s:
            begin_s = time.monotonic()
            status = connection.ask(request).status
            now_s = time.monotonic()
            if status != 304:
                raise BenchmarkError(f"A poll was answered with {status}.")
            self.answers.append((now_s, (now_s - begin_s) * 1000))
            time.sleep(PAUSE_S)


def phases(ends_s: Sequence[float], answers: Sequence[tuple[float, float]], work: Sequence[Any]) -> list[Phase]:
    """Divide what was noted by the ends of the phases; the first item is the beginning."""
    found = []
    for name, begin_s, end_s in zip(PHASES, ends_s[:-1], ends_s[1:], strict=True):
        late_ms = [took_ms for at_s, took_ms in answers if begin_s < at_s <= end_s]
        longest_ms: dict[str, float] = {}
        for kind, at_s, took_ms in work:
            if begin_s < at_s <= end_s:
                longest_ms[kind] = max(took_ms, longest_ms.get(kind, 0))
        figures = statistics.median(late_ms), percentile(late_ms, 99), max(late_ms)
        found.append(Phase(name, end_s - begin_s, len(late_ms), *figures, longest_ms))
    return found


def report(found: Sequence[Phase], sessions: int, bytes_each: float) -> str:
    """Return the results for a person to read."""
    kinds = sorted({kind for phase in found for kind in phase.longest_ms})
    lines = [
        f"{sessions:,} sessions, {bytes_each:.0f} bytes each, 64 of them payload."
        f" Milliseconds (wanted: no pause above {WANTED_MS}):",
        f"{'':24}{'s':>6}{'polls':>8}{'p50':>7}{'p99':>7}{'max':>7}   longest: {', '.join(kinds)}",
    ]
    for each in found:
        longest = ", ".join(f"{each.longest_ms.get(kind, 0):.1f}" for kind in kinds)
        polls = f"{each.polls:8,}{each.p50_ms:7.1f}{each.p99_ms:7.1f}{each.max_ms:7.1f}"
        lines.append(f"{each.name:24}{each.seconds:6.0f}{polls}   {longest}")
    return "\n".join(lines)


def measure(arguments: argparse.Namespace, directory: pathlib.Path) -> Result:
    """Run the homeserver and see all phases."""
    sessions = arguments.sessions
    steady_s = 2 if arguments.quick else 45
    fill_s = max(1, sessions // 25_000)  # at the pace of the store, generously
    ttl_s = round(2.5 * fill_s) + steady_s
    modules = [rendezvous(ttl=f"{ttl_s}s"), {"module": "inside.InsideModule"}]
    home = homeserver(directory / "million", modules, SETTINGS)
    with running([home]), Connection(home.url) as control:

        def tell(query: str = "") -> dict[str, Any]:
            told: dict[str, Any] = json.loads(control.ask(Request("GET", PATH + query)).content)
            return told

        def end_phase() -> None:
            """Note the end of a phase, which has at least one poll in it, however short it is."""
            deadline_s = time.monotonic() + 10
            while not any(at_s > ends_s[-1] for at_s, _ in poller.answers[-1:]) and time.monotonic() < deadline_s:
                time.sleep(PAUSE_S)
            ends_s.append(time.monotonic())

        poller = Poller(Running(SERVERS["ours"], home.url, home.pid), ttl_s / 2)
        ends_s = [time.monotonic()]
        poller.start()
        time.sleep(2 if arguments.quick else 15)
        end_phase()
        progress(f"Creating {sessions:,} sessions")
        before = resident_bytes(home.pid)
        control.ask(Request("POST", PATH, content=b"%d" % sessions))
        created_s = time.monotonic()
        while tell()["created"] < sessions:
            if time.monotonic() > created_s + ttl_s - steady_s:
                raise BenchmarkError("The machine is too slow to create the sessions before the first one expires.")
            time.sleep(0.5)
        end_phase()
        bytes_each = (resident_bytes(home.pid) - before) / sessions
        progress("Polling while all live")
        time.sleep(created_s + ttl_s - time.monotonic())
        end_phase()
        progress("Polling while they expire")
        while tell()["sessions"] > AFTERWARDS:
            time.sleep(0.5)
        time.sleep(1)
        end_phase()
        poller.stop()
        found = phases(ends_s, poller.answers, tell("?work")["work"])
    numbers = {
        "sessions": sessions,
        "bytes": bytes_each,
        "phases": list(map(dataclasses.asdict, found)),
    }
    return Result(report(found, sessions, bytes_each), numbers)


if __name__ == "__main__":
    sys.exit(main("million", __doc__, measure, sessions=SESSIONS))
