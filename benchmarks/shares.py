"""See where the time of a poll goes: what Synapse does for any request, and what synapse_rendezvous adds.

While wrk polls a session, py-spy looks into the process two hundred times a second, without the process' help. Each
look counts for whoever's code it finds at work, where what a library does on behalf of somebody is the library's.
"""

import argparse
import pathlib
import re
import shutil
import subprocess
import sys
from collections import Counter
from collections.abc import Sequence

from cli import Result, find_wrk, main, progress
from connection import BenchmarkError, Connection
from load import Load
from servers import SERVERS, Running, homeserver, rendezvous, running

LOOKS_A_SECOND = 200

LAYERS = {
    "synapse_rendezvous": re.compile(r"\(synapse_rendezvous/"),
    "logging: the access log, and log contexts": re.compile(r"\(logging/|\(synapse/logging/"),
    "metrics": re.compile(r"\(prometheus_client/|\(synapse/metrics/|\(synapse/http/request_metrics"),
    "sockets: waiting, reading and writing": re.compile(r"^(doPoll|\w+\.doPoll|untilConcludes|\w+\.writeSomeData) "),
    "Synapse's handling of a request": re.compile(r"\(synapse/"),
    "Twisted's HTTP and reactor": re.compile(r"\(twisted/"),
}
OTHER = "others"


def layer(frames: Sequence[str]) -> str:
    """Return whose code is at work, by the innermost frame that is known."""
    for frame in reversed(frames):
        for name, pattern in LAYERS.items():
            if pattern.search(frame):
                return name
    return OTHER


def measure(arguments: argparse.Namespace, directory: pathlib.Path) -> Result:
    """Look into a process that is polled."""
    pyspy = shutil.which("py-spy", path=str(pathlib.Path(sys.executable).parent)) or shutil.which("py-spy")
    if pyspy is None:
        raise BenchmarkError("This benchmark looks into the process with py-spy, which is not installed; pip can.")
    seconds = str(4 * arguments.rounds * arguments.seconds)
    looks = directory / "looks"
    home = homeserver(directory / "ours", [rendezvous()])
    with running([home]):
        ours = Running(SERVERS["ours"], home.url, home.pid)
        with Connection(ours.url) as connection:
            session = ours.create(connection)
        with Load(find_wrk(), ours, "poll", [session], directory=directory) as load:
            load.start()
            progress(f"Looking into the process for {seconds} s")
            command = [pyspy, "record", "--pid", str(ours.pid), "--duration", seconds, "--rate", str(LOOKS_A_SECOND)]
            done = subprocess.run(
                [*command, "--format", "raw", "--output", str(looks)], capture_output=True, text=True, check=False
            )
            load.finish()
    if done.returncode != 0:
        raise BenchmarkError(f"py-spy failed: {done.stderr.strip()}")
    counts: Counter[str] = Counter()
    for line in looks.read_text().splitlines():
        stack, _, count = line.rpartition(" ")
        counts[layer(stack.split(";"))] += int(count)
    lines = [f"{count / counts.total():6.1%}  {name}" for name, count in counts.most_common()]
    return Result("Of the time that the process works:\n" + "\n".join(lines), {"looks": dict(counts)})


if __name__ == "__main__":
    sys.exit(main("shares", __doc__, measure))
