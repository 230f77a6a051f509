"""Compare what a request to synapse_rendezvous costs with one to a bare Twisted resource in the same Synapse process.

Both give answers of the same status, the same header fields and the same length. They are loaded in turn, ten times a
second, and only loads of the same round are compared, so that whatever else the machine does meanwhile touches both.
"""

import argparse
import json
import pathlib
import sys
from collections.abc import Mapping, Sequence

from benchmark import Benchmark, Comparison, Side, growth, live, rendezvous, spread
from cli import Result, find_wrk, main, raw, raw_runs, running
from load import CREATE, PAYLOAD, POLL, READ, WRITE, Operation, Run, Session

COLLECTION = "/_synapse/client/rendezvous"

# A poll in each of the other dialects. MSC4388 has no conditions: it answers with the data each time.
POLL_MSC4108 = Operation("msc4108", "GET", 304, polls=True)
POLL_MSC4388 = Operation("msc4388", "GET", 200)


def compare_operations(benchmark: Benchmark, sessions: int) -> list[Comparison]:
    """Measure everything, with few and with so many sessions alive."""

    def compare(operation: Operation, known: Sequence[Session], alive: int) -> Comparison:
        paths = {"ours": COLLECTION, "bare": f"/_synapse/client/bare_{operation.name}"}
        return benchmark.compare({name: Side(operation, path, known) for name, path in paths.items()}, alive)

    first = benchmark.create(COLLECTION, 1)
    few = [compare(operation, first, 1) for operation in (POLL, READ, WRITE)]
    others = benchmark.create(COLLECTION, sessions - 1)  # the first one's tag is no longer known
    return [*few, *(compare(operation, others, sessions) for operation in (POLL, READ, CREATE))]


def measure_dialects(benchmark: Benchmark) -> dict[str, list[Run]]:
    """Poll one session of each dialect in turn, and return the runs by the names of the operations."""
    data = json.dumps({"data": PAYLOAD.decode()}).encode()
    sides = {}
    for operation, path, content_type, content in (
        (POLL, COLLECTION, "text/plain", PAYLOAD),
        (POLL_MSC4108, f"{COLLECTION}/msc4108", "text/plain", PAYLOAD),
        (POLL_MSC4388, "/_synapse/client/io.element.msc4388/rendezvous", "application/json", data),
    ):
        known = benchmark.create(path, 1, content_type=content_type, content=content)
        sides[operation.name] = Side(operation, path, known)
    return benchmark.measure("polls of the dialects", sides)


def table(comparisons: Sequence[Comparison]) -> str:
    """Return the results for a person to read."""
    lines = [
        f"{'':9}{'live':>9}   {'CPU a request':<20}{'throughput':<20}{'us CPU a request':>16}",
        f"{'':9}{'sessions':>9}   {'bare / ours':<20}{'ours / bare':<20}{'ours':>9}{'bare':>7}",
    ]
    for each in comparisons:
        lines.append(
            f"{each.operation.name:9}{each.sessions:9,}   {spread(each.cost('bare', 'ours')):<20}"
            f"{spread(each.throughput('ours', 'bare')):<20}"
            f"{each.median_cost('ours'):9.0f}{each.median_cost('bare'):7.0f}"
        )
    return "\n".join(lines)


def dialect_costs(runs: Mapping[str, Sequence[Run]]) -> str:
    """Say what a poll costs in the other dialects, as a share of what it costs in the base protocol."""
    lines = ["A poll in another dialect, CPU as a multiple of the base protocol's of the same round:"]
    for operation in (POLL_MSC4108, POLL_MSC4388):
        pairs = zip(runs[operation.name], runs[POLL.name], strict=True)
        lines.append(f"{operation.name:9}{spread([other.cost / base.cost for other, base in pairs])}")
    return "\n".join(lines)


def report(comparisons: Sequence[Comparison], dialects: Mapping[str, Sequence[Run]]) -> str:
    """Return all that is printed."""
    plain, relative = growth(comparisons, "ours", "bare")
    return (
        f"{table(comparisons)}\n\n"
        "Medians over the rounds of the ratios within a round, and in brackets the least and the greatest.\n"
        "1.00: as good as a bare Twisted resource; wanted: CPU at least 0.85.\n"
        f"A poll with {live(comparisons[-1].sessions)} costs {plain:.2f} times what it costs with 1;"
        f" each in terms of the bare one of its time, {relative:.2f} times.\n\n"
        f"{dialect_costs(dialects)}"
    )


def measure(arguments: argparse.Namespace, directory: pathlib.Path) -> Result:
    """Run a homeserver with our module and the bare one, and compare them."""
    wrk = find_wrk()
    with running(directory, [rendezvous(), {"module": "bare.BareModule"}]) as homeserver:
        benchmark = Benchmark(homeserver, directory, wrk=wrk, seconds=arguments.seconds, rounds=arguments.rounds)
        dialects = measure_dialects(benchmark)
        comparisons = compare_operations(benchmark, arguments.sessions)
    numbers = {"measurements": list(map(raw, comparisons)), "dialects": raw_runs(dialects)}
    return Result(report(comparisons, dialects), numbers)


if __name__ == "__main__":
    sys.exit(main(__doc__, measure))
