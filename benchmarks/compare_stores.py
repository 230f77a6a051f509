"""Compare what a request costs with sessions in Redis with one with sessions in memory, in the same Synapse process.

Both answer alike. They are loaded in turn, ten times a second, and only loads of the same round are compared, so that
whatever else the machine does meanwhile touches both. The Redis is one of its own, without persistence.
"""

import argparse
import dataclasses
import pathlib
import re
import statistics
import sys
from collections.abc import Mapping, Sequence

from benchmark import Benchmark, Comparison, Side, growth, live, rendezvous, spread
from cli import Result, find, find_wrk, main, raw, running
from load import CREATE, PAYLOAD, POLL, READ, WRITE, BenchmarkError, Operation, Session

from synapse_rendezvous.throwaway import HOST

sys.path.insert(0, str(pathlib.Path(__file__).parent.parent / "tests"))

from stack import RedisServer

# As long as each other, and with them the answers to a creation.
PATHS = {"memory": "/_synapse/client/rendezvous_local", "redis": "/_synapse/client/rendezvous_redis"}
"""Where the sessions of each store are served."""

WANTED_EXTRA_US = 350
"""How much more of Synapse's CPU a request may take with Redis."""


@dataclasses.dataclass(frozen=True)
class Memory:
    """What Redis takes for sessions.

    Attributes:
        bytes: how many in all, by what it says itself.
        keys: how many it has.
    """

    bytes: int
    keys: int

    @classmethod
    def of(cls, redis: RedisServer) -> "Memory":
        """Ask a Redis."""
        used = re.search(rb"used_memory:(\d+)", redis.command("INFO", "memory"))
        assert used is not None, "Redis always tells"
        return cls(int(used[1]), int(redis.command("DBSIZE").removeprefix(b":")))


def compare_stores(benchmark: Benchmark, redis: RedisServer, sessions: int) -> tuple[list[Comparison], float]:
    """Measure everything, with few and with so many sessions alive.

    Returns:
        The comparisons, and how many bytes Redis takes for a session beside its payload.
    """

    def create(count: int) -> dict[str, list[Session]]:
        return {store: benchmark.create(path, count) for store, path in PATHS.items()}

    def compare(operation: Operation, known: Mapping[str, Sequence[Session]], alive: int) -> Comparison:
        return benchmark.compare({store: Side(operation, PATHS[store], known[store]) for store in PATHS}, alive)

    first = create(1)
    few = [compare(operation, first, 1) for operation in (POLL, READ, WRITE)]
    before = Memory.of(redis)
    others = create(sessions - 1)  # the first one's tag is no longer known
    overhead = _overhead(before, Memory.of(redis), others["redis"])
    return [*few, *(compare(operation, others, sessions) for operation in (POLL, READ, CREATE))], overhead


def _overhead(before: Memory, after: Memory, created: Sequence[Session]) -> float:
    if after.keys - before.keys != len(created):
        raise BenchmarkError(f"{len(created)} sessions were created, but {after.keys - before.keys} keys of Redis.")
    return (after.bytes - before.bytes) / len(created) - len(PAYLOAD)


def table(comparisons: Sequence[Comparison]) -> str:
    """Return the results for a person to read."""
    lines = [
        f"{'':9}{'live':>9}   {'us CPU of Synapse a request':<38}{'CPU':<19}{'us CPU of':<15}{'throughput'}",
        f"{'':9}{'sessions':>9}   {'memory':>6}{'redis':>8}   {'extra':<21}{'redis / memory':<19}"
        f"{'Redis itself':<15}{'redis / memory'}",
    ]
    for each in comparisons:
        redis_cost = statistics.median(run.redis_cost for run in each.runs["redis"])
        lines.append(
            f"{each.operation.name:9}{each.sessions:9,}   "
            f"{each.median_cost('memory'):6.0f}{each.median_cost('redis'):8.0f}   "
            f"{spread(each.extra('redis', 'memory'), 0):<21}{spread(each.cost('redis', 'memory')):<19}"
            f"{redis_cost:12.0f}   {spread(each.throughput('redis', 'memory'))}"
        )
    return "\n".join(lines)


def report(comparisons: Sequence[Comparison], overhead: float) -> str:
    """Return all that is printed."""
    plain, relative = growth(comparisons, "redis", "memory")
    many = live(comparisons[-1].sessions)
    return (
        f"{table(comparisons)}\n\n"
        "Medians over the rounds; differences and ratios are those within a round, and in brackets the least and the"
        " greatest.\n"
        f"Wanted: at most {WANTED_EXTRA_US} microseconds extra, and {many} at the cost of one.\n"
        f"A poll in Redis with {many} costs {plain:.2f} times what it costs with 1;"
        f" each in terms of the one in memory of its time, {relative:.2f} times.\n"
        f"Redis takes {overhead:.0f} bytes for a session beside its payload of {len(PAYLOAD)}."
    )


def measure(arguments: argparse.Namespace, directory: pathlib.Path) -> Result:
    """Run a Redis and a homeserver that has our module twice, and compare the stores."""
    wrk = find_wrk()
    find("redis-server", "keeps sessions in")
    others = {"msc4108": {"enabled": False}, "msc4388": {"enabled": False}}
    modules = [rendezvous(store=store, dialects={"msc3886": {"path": path}, **others}) for store, path in PATHS.items()]
    redis = RedisServer(directory)
    settings = {"redis": {"enabled": True, "host": HOST, "port": redis.port}}
    try:
        redis.start()
        with running(directory, modules, settings) as homeserver:
            benchmark = Benchmark(
                homeserver,
                directory,
                wrk=wrk,
                seconds=arguments.seconds,
                rounds=arguments.rounds,
                redis=redis.pid,
            )
            comparisons, overhead = compare_stores(benchmark, redis, arguments.sessions)
    finally:
        redis.stop()
    numbers = {"measurements": list(map(raw, comparisons)), "bytes_beside_payload": overhead}
    return Result(report(comparisons, overhead), numbers)


if __name__ == "__main__":
    sys.exit(main(__doc__, measure))
