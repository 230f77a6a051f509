"""What the benchmarks have in common on the command line: options, what ends them, and how a result is told."""

import argparse
import contextlib
import dataclasses
import functools
import json
import os
import pathlib
import platform
import shlex
import shutil
import signal
import sys
import tempfile
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any, NamedTuple

import synapse
import twisted
from benchmark import HERE, Comparison, progress
from load import BenchmarkError, Run

import synapse_rendezvous
from synapse_rendezvous.throwaway import DidNotStart, ThrowawayHomeserver, free_port


class Result(NamedTuple):
    """What was found out.

    Attributes:
        text: for a person to read.
        numbers: all of them, for a program to read.
    """

    text: str
    numbers: Mapping[str, Any]


def main(description: str | None, measure: Callable[[argparse.Namespace, pathlib.Path], Result]) -> int:
    """Run a benchmark and print its result.

    Args:
        description: of the benchmark.
        measure: is given the options and an empty folder.

    Returns:
        The exit status: 0 when there is a result.
    """
    arguments = _options(description)
    for interruption in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
        signal.signal(interruption, lambda *_: sys.exit(1))  # so that the homeserver is ended as well
    try:
        with tempfile.TemporaryDirectory(prefix="synapse_rendezvous_") as name:
            result = measure(arguments, pathlib.Path(name))
    except (BenchmarkError, DidNotStart) as error:
        print(error, file=sys.stderr)
        return 1
    facts = _environment()
    print("\n".join(f"{name}: {value}" for name, value in facts.items()))
    print(f"\n{result.text}")
    if arguments.json:
        arguments.json.write_text(json.dumps({"environment": facts, **result.numbers}, indent=1) + "\n")
    return 0


def find(program: str, purpose: str) -> str:
    """Return where a program is.

    Args:
        program: its name, which is also that of its package.
        purpose: what a benchmark does with it.

    Raises:
        BenchmarkError: it is nowhere, or this is no machine to measure on.
    """
    if not sys.platform.startswith("linux"):
        raise BenchmarkError("This benchmark runs only on Linux, which tells how long another process has worked.")
    path = shutil.which(program)
    if path is None:
        raise BenchmarkError(
            f"This benchmark {purpose} {program}, which is not installed (Debian: apt install {program})."
        )
    return path


def find_wrk() -> str:
    """Return where wrk is; see `find`."""
    return find("wrk", "makes its load with")


@contextlib.contextmanager
def running(
    directory: pathlib.Path, modules: Sequence[Mapping[str, Any]], settings: Mapping[str, Any] | None = None
) -> Iterator[ThrowawayHomeserver]:
    """Run a homeserver with these modules, those of this folder among them, and more of its homeserver.yaml."""
    progress(f"Starting Synapse {synapse.__version__}")
    path = os.pathsep.join([str(HERE), *filter(None, [os.environ.get("PYTHONPATH")])])
    homeserver = ThrowawayHomeserver(
        directory, port=free_port(), modules=modules, settings=settings, environment={"PYTHONPATH": path}
    )
    try:
        homeserver.start()
        yield homeserver
    finally:
        homeserver.stop()


def raw(comparison: Comparison) -> dict[str, Any]:
    """Return the numbers of a comparison."""
    operation = dataclasses.asdict(comparison.operation)
    return {"operation": operation, "sessions": comparison.sessions, **raw_runs(comparison.runs)}


def raw_runs(runs: Mapping[str, Sequence[Run]]) -> dict[str, Any]:
    """Return the numbers of the runs of each side."""
    return {side: [dataclasses.asdict(run) for run in of_side] for side, of_side in runs.items()}


def _options(description: str | None) -> argparse.Namespace:
    """Read the command line. The bounds keep all sessions alive (for an hour) until the end."""
    parser = argparse.ArgumentParser(description=description, formatter_class=argparse.RawDescriptionHelpFormatter)
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


def _whole(low: int, high: int) -> Callable[[str], int]:
    def read(text: str) -> int:
        if not low <= int(text) <= high:
            raise argparse.ArgumentTypeError(f"must be from {low} to {high}")
        return int(text)

    return read


def _environment() -> dict[str, str]:
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
