"""Compare what a flood of creations does to an honest client, on each server.

All servers have the limits that they come with. In turn, an honest client polls a session in quiet, and while one other
client creates sessions as fast as it can on many connections: most of that is over the limit where there is one, and
where there is none, the sessions of others may have to make room.
"""

import argparse
import contextlib
import dataclasses
import itertools
import pathlib
import statistics
import sys
import time
from collections.abc import Mapping, Sequence

from cli import Result, find_wrk, main, progress
from connection import Connection
from dialects import Session
from load import Clocks, Load, percentile
from servers import AVAILABLE, SERVERS, Running, compared, rust_version

FLOODERS = 32
"""On how many connections sessions are created."""

HONEST_PAUSE_S = 0.02

address_ends = itertools.cycle(range(1, 255))
"""The ends of addresses: each time it is another client who is honest, and another who is not."""


@dataclasses.dataclass(frozen=True)
class Polls:
    """What an honest client was answered for a while, and what its server did meanwhile.

    Attributes:
        late_ms: how long each answer took.
        lost: how many answers said that there is no such session.
        created: how many sessions the flood created a second.
        refused: how many creations a second were refused.
        cpu_share: how much of a CPU Synapse took.
    """

    late_ms: Sequence[float]
    lost: int
    created: float
    refused: float
    cpu_share: float


def poll(running: Running, connection: Connection, session: Session, seconds: float) -> tuple[list[float], int]:
    """Poll for a while, and return how long each answer took and how many did not know the session."""
    request = running.server.dialect.request("poll", session)
    late_ms, lost = [], 0
    end_s = time.monotonic() + seconds
    while time.monotonic() < end_s:
        begin_s = time.perf_counter()
        answer = connection.ask(request)
        late_ms.append((time.perf_counter() - begin_s) * 1000)
        lost += answer.status == 404
        time.sleep(HONEST_PAUSE_S)
    return late_ms, lost


def suffer(running: Running, wrk: str, directory: pathlib.Path, seconds: float, *, flooded: bool) -> Polls:
    """Poll for a while, in a flood or not."""
    clocks = Clocks([running.pid])
    number = next(address_ends)
    with contextlib.ExitStack() as stack:
        connection = stack.enter_context(Connection(running.url, f"198.51.100.{number}"))
        session = running.create(connection)
        nobody = Session("", "")
        flood = None
        if flooded:
            load = Load(
                wrk,
                running,
                "create",
                [nobody],
                directory=directory,
                connections=FLOODERS,
                client=f"203.0.113.{number}",
            )
            flood = stack.enter_context(load)
            flood.start()
        with clocks.noted():
            late_ms, lost = poll(running, connection, session, seconds)
        work = flood.finish() if flood else None
    span_s, cpu_s = clocks.spent_s
    created, refused = (work.requests / span_s, work.refused / span_s) if work else (0.0, 0.0)
    return Polls(late_ms, lost, created, refused, cpu_s / span_s)


def report(polls: Mapping[str, Mapping[str, Sequence[Polls]]]) -> str:
    """Return the results for a person to read."""
    lines = [
        f"{'':32}{'poll in quiet':>16}{'poll in the flood':>18}{'polls that':>12}{'sessions':>11}{'creations':>11}",
        f"{'':32}{'p50, p99 ms':>16}{'p50, p99 ms':>18}{'found none':>12}{'created/s':>11}{'refused/s':>11}{'CPU':>7}",
    ]
    for name, each in polls.items():
        figures = []
        for phase in ("quiet", "flood"):
            late_ms = [took_ms for run in each[phase] for took_ms in run.late_ms]
            figures.append(f"{percentile(late_ms, 50):.1f}, {percentile(late_ms, 99):.1f}")
        flood = each["flood"]
        lost = sum(run.lost for run in flood) / sum(len(run.late_ms) for run in flood)
        rates = [
            statistics.median(values) for values in zip(*((run.created, run.refused) for run in flood), strict=True)
        ]
        cpu = statistics.median(run.cpu_share for run in flood)
        lines.append(
            f"{SERVERS[name].label:32}{figures[0]:>16}{figures[1]:>18}{lost:12.0%}{rates[0]:11.0f}{rates[1]:11.0f}{cpu:7.0%}"
        )
    return "\n".join(lines)


def measure(arguments: argparse.Namespace, directory: pathlib.Path) -> Result:
    """Run the servers and flood them."""
    wrk = find_wrk()
    seconds = 0.3 if arguments.quick else 2.0 * arguments.seconds
    polls: dict[str, dict[str, list[Polls]]] = {name: {"quiet": [], "flood": []} for name in arguments.servers}
    with compared(arguments.servers, directory, as_installed=True) as servers:
        for number in range(1, arguments.rounds + 1):
            progress(f"Flooding: round {number} of {arguments.rounds}")
            for name, running in servers.items():
                for phase, runs in polls[name].items():
                    runs.append(suffer(running, wrk, directory, seconds, flooded=phase == "flood"))
    numbers = {
        name: {phase: list(map(dataclasses.asdict, runs)) for phase, runs in each.items()}
        for name, each in polls.items()
    }
    return Result(report(polls), {"polls": numbers})


if __name__ == "__main__":
    sys.exit(main("flood", __doc__, measure, servers=AVAILABLE, facts={"rust module": rust_version()}))
