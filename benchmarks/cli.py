"""What the benchmarks have in common on the command line: options, what ends them, and how a result is told."""

import argparse
import datetime
import functools
import importlib.metadata
import json
import os
import pathlib
import platform
import shlex
import shutil
import signal
import statistics
import sys
import tempfile
from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

import twisted
from connection import BenchmarkError

import synapse_rendezvous
from synapse_rendezvous.demo.throwaway_homeserver import DidNotStart

HERE = pathlib.Path(__file__).parent
sys.path.insert(0, str(HERE.parent / "tests"))  # for what they share


class Result(NamedTuple):
    """What was found out.

    Attributes:
        text: for a person to read.
        numbers: all of them, for a program to read.
    """

    text: str
    numbers: Mapping[str, Any]


def main(
    part: str,
    description: str | None,
    measure: Callable[[argparse.Namespace, pathlib.Path], Result],
    *,
    servers: Sequence[str] = (),
    sessions: int = 100_000,
    facts: Mapping[str, str] | None = None,
) -> int:
    """Run a benchmark and print its result.

    Args:
        part: what its numbers are called in the file of `--json`.
        description: of the benchmark.
        measure: is given the options and an empty folder.
        servers: those that `--servers` may choose from.
        sessions: how many are many.
        facts: more of what the numbers depend on.

    Returns:
        The exit status: 0 when there is a result.
    """
    arguments = _options(description, servers, sessions)
    for interruption in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
        signal.signal(interruption, lambda *_: sys.exit(1))  # so that the homeservers are ended as well
    environment = {**_environment(), **(facts or {})}
    try:
        if not sys.platform.startswith("linux"):
            raise BenchmarkError("This benchmark runs only on Linux, which tells how long another process has worked.")
        with tempfile.TemporaryDirectory(prefix="synapse_rendezvous_") as name:
            result = measure(arguments, pathlib.Path(name))
    except (BenchmarkError, DidNotStart) as error:
        print(error, file=sys.stderr)
        return 1
    print("\n".join(f"{name}: {value}" for name, value in environment.items()))
    print(f"\n{result.text}")
    if arguments.json:
        known = json.loads(arguments.json.read_text()) if arguments.json.exists() else {}
        known[part] = {"environment": environment, **result.numbers}
        arguments.json.write_text(json.dumps(_rounded(known), separators=(",", ":"), sort_keys=True) + "\n")
    return 0


def find(program: str, purpose: str) -> str:
    """Return where a program is.

    Args:
        program: its name, which is also that of its package.
        purpose: what a benchmark does with it.

    Raises:
        BenchmarkError: it is nowhere.
    """
    path = shutil.which(program)
    if path is None:
        raise BenchmarkError(
            f"This benchmark {purpose} {program}, which is not installed (Debian: apt install {program})."
        )
    return path


def find_wrk() -> str:
    """Return where wrk is; see `find`."""
    return find("wrk", "makes its load with")


def progress(text: str) -> None:
    """Tell whoever waits what is going on."""
    print(text, file=sys.stderr, flush=True)


def live(sessions: int) -> str:
    """Return how many sessions there are, in words."""
    return f"{sessions:,} live session{'s' if sessions > 1 else ''}"


def spread(values: Sequence[float], digits: int = 2) -> str:
    """Return the median of some values and, in brackets, the least and the greatest."""
    return f"{statistics.median(values):.{digits}f} ({min(values):.{digits}f}-{max(values):.{digits}f})"


def _options(description: str | None, servers: Sequence[str], sessions: int) -> argparse.Namespace:
    """Read the command line. The bounds keep all sessions alive (for an hour) until the end."""
    parser = argparse.ArgumentParser(description=description, formatter_class=argparse.RawDescriptionHelpFormatter)
    number = functools.partial(parser.add_argument, metavar="N")
    number("--rounds", type=_whole(1, 20), default=5, help="how often each side is measured (default: 5)")
    number("--seconds", type=_whole(1, 4), default=1, help="how long each side is loaded in a round (default: 1)")
    number("--sessions", type=_whole(2, 2_000_000), default=sessions, help=f"how many are many (default: {sessions})")
    parser.add_argument("--quick", action="store_true", help="1 round of 1 second, 200 sessions: only whether it works")
    parser.add_argument(
        "--json",
        type=pathlib.Path,
        metavar="FILE",
        help="write the raw numbers to this file as well, beside what other benchmarks wrote there",
    )
    if servers:
        parser.add_argument(
            "--servers", nargs="+", choices=servers, default=list(servers), metavar="NAME", help=", ".join(servers)
        )
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
        "command": shlex.join(["python", *map(_name, sys.argv)]),
        "date": datetime.datetime.now(datetime.timezone.utc).date().isoformat(),
        "synapse_rendezvous": synapse_rendezvous.__version__,
        "Synapse": importlib.metadata.version("matrix-synapse"),
        "Twisted": twisted.__version__,
        "Python": platform.python_version(),
        "CPU": f"{os.cpu_count()} x {_cpu_model()}",
    }


def _name(argument: str) -> str:
    """Return an argument as a command would have it in the project's folder."""
    return argument.removeprefix(f"{HERE.parent}{os.sep}")


def _rounded(value: Any) -> Any:
    """Return the same with numbers no more exact than they were measured."""
    if isinstance(value, Mapping):
        return {key: _rounded(each) for key, each in value.items()}
    if isinstance(value, (list, tuple)):
        return [_rounded(each) for each in value]
    return float(f"{value:.6g}") if isinstance(value, float) else value


def _cpu_model() -> str:
    for line in pathlib.Path("/proc/cpuinfo").read_text().splitlines():
        name, _, value = line.partition(":")
        if name.strip() == "model name":
            return value.strip()
    return platform.machine()
