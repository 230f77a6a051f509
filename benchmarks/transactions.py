"""See what MSC4388's polls and writes cost beside those of the base protocol, and its newest writes beside its earlier.

Each kind of request is made in turns of ten in sessions of its own, as many as a pairing writes. What counts is how
long the Synapse process worked for them. A side is compared with another of the same run, round by round; the base
protocol is there twice, so that one sees how far two equal sides differ.
"""

import argparse
import dataclasses
import itertools
import json
import pathlib
import random
import statistics
import sys
from collections.abc import Callable

from cli import Result, main, progress
from connection import BenchmarkError, Connection, Request
from dialects import PAYLOAD, Dialect, Session
from load import cpu_seconds
from servers import SERVERS, Running, compared

TURN = 10
"""How many requests are made of one kind before it is another's turn."""

BASE, JSON = SERVERS["ours"].dialect, SERVERS["ours_msc4388"].dialect

_TEXT = PAYLOAD.decode("ascii")
_numbers = itertools.count()


@dataclasses.dataclass(frozen=True)
class Side:
    """One kind of request to one server.

    Attributes:
        name: what it is called.
        server: a key of `SERVERS`; the dialect is that of the request.
        request: makes the request to a session.
        status: of its answer.
    """

    name: str
    server: str
    request: Callable[[Session], Request]
    status: int = 200

    @property
    def dialect(self) -> Dialect:
        """The dialect, by the status that only the base protocol has."""
        return JSON if self.status == 200 else BASE


def _poll(session: Session) -> Request:
    return Request("GET", f"{_path(session)}?sequence_token={session.tag}")


def _write(session: Session) -> Request:
    return _put(f"{_path(session)}/{next(_numbers)}-{random.getrandbits(64):x}", session)


def _earlier_write(session: Session) -> Request:
    return _put(_path(session), session)


def _put(target: str, session: Session) -> Request:
    content = json.dumps({"sequence_token": session.tag, "data": _TEXT}).encode("ascii")
    return Request("PUT", target, {"Content-Type": "application/json"}, content)


def _path(session: Session) -> str:
    return JSON.request("read", session).target


def _base(operation: str) -> Callable[[Session], Request]:
    return lambda session: BASE.request(operation, session)


SIDES = [
    Side("poll, base protocol", "ours", _base("poll"), 304),
    Side("poll, base protocol again", "ours", _base("poll"), 304),
    Side("poll, MSC4388", "ours", _poll),
    Side("write, base protocol", "ours", _base("write"), 202),
    Side("write, base protocol again", "ours", _base("write"), 202),
    Side("write, MSC4388, earlier form", "ours", _earlier_write),
    Side("write, MSC4388", "ours", _write),
    Side("write over Redis, MSC4388, earlier form", "ours_redis", _earlier_write),
    Side("write over Redis, MSC4388, earlier form again", "ours_redis", _earlier_write),
    Side("write over Redis, MSC4388", "ours_redis", _write),
]

COMPARED = [(1, 0), (2, 0), (4, 3), (5, 3), (6, 3), (8, 7), (9, 7)]
"""Which sides, by their numbers, are compared with which."""


def _take_turn(side: Side, running: Running, connection: Connection) -> float:
    """Make the requests of one turn, and return how many seconds Synapse worked for each."""
    dialect = side.dialect
    session = dialect.created(connection.ask(dialect.request("create", Session("", ""))))
    begin_s = cpu_seconds(running.pid)
    for _ in range(TURN):
        answer = connection.ask(side.request(session))
        if answer.status != side.status:
            raise BenchmarkError(f"{side.name} was answered with {answer.status}: {answer.content[:200]!r}")
        session = dataclasses.replace(session, tag=dialect.tag(answer))
    took_s = cpu_seconds(running.pid) - begin_s
    connection.ask(dialect.request("delete", session))
    return took_s / TURN


def measure(arguments: argparse.Namespace, directory: pathlib.Path) -> Result:
    """Let each side take its turns."""
    turns = 40 * arguments.seconds
    costs: list[list[float]] = [[] for _ in SIDES]
    with compared(sorted({side.server for side in SIDES}), directory) as servers:
        connections = {name: Connection(running.url, "198.51.100.7") for name, running in servers.items()}
        for number in range(arguments.rounds):
            progress(f"Round {number + 1} of {arguments.rounds}")
            spent_s = [0.0] * len(SIDES)
            for _ in range(turns):
                for index in random.sample(range(len(SIDES)), len(SIDES)):
                    side = SIDES[index]
                    spent_s[index] += _take_turn(side, servers[side.server], connections[side.server])
            for index, each_s in enumerate(spent_s):
                costs[index].append(each_s / turns * 1e6)
    lines = [f"{statistics.median(costs[index]):6.0f} us  {side.name}" for index, side in enumerate(SIDES)]
    for index, other in COMPARED:
        ratios = [one / two for one, two in zip(costs[index], costs[other], strict=True)]
        lines.append(
            f"{statistics.median(ratios):6.3f} [{min(ratios):.3f}-{max(ratios):.3f}]"
            f"  {SIDES[index].name} / {SIDES[other].name}"
        )
    text = "CPU of Synapse for one request:\n" + "\n".join(lines)
    return Result(text, {"us": {side.name: cost for side, cost in zip(SIDES, costs, strict=True)}})


if __name__ == "__main__":
    sys.exit(main("transactions", __doc__, measure))
