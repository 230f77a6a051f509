"""The benchmarks work, and docs/performance.md says what they found; how fast anything is, no test says."""

import json
import os
import pathlib
import re
import shutil
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor

import pytest
import report
from servers import AVAILABLE, SERVERS

from support.recipes import ROOT

BENCHMARKS = ROOT / "benchmarks"

needs_wrk = pytest.mark.skipif(
    shutil.which("wrk") is None, reason="wrk is not installed; it makes the load of the benchmarks"
)
needs_redis = pytest.mark.skipif(
    shutil.which("redis-server") is None, reason="redis-server is not installed; a benchmark keeps sessions in it"
)


def run(script: str, *options: str, path: str = os.environ["PATH"]) -> subprocess.CompletedProcess[str]:
    """Run the short form of a benchmark, with its programs in this search path."""
    command = [sys.executable, str(BENCHMARKS / script), "--quick", *options]
    environment = {**os.environ, "PATH": path}
    return subprocess.run(command, capture_output=True, text=True, timeout=300, check=False, env=environment)


@needs_wrk
@needs_redis
def test_short_forms(tmp_path: pathlib.Path) -> None:
    """The short forms measure everything on every server, and keep what other benchmarks wrote to the same file."""
    scripts = "compare.py", "flood.py", "million.py"
    files = [tmp_path / f"{script}.json" for script in scripts]
    for file in files:
        file.write_text('{"other": 1}')
    with ThreadPoolExecutor() as pool:  # how fast they are does not matter
        done = list(pool.map(lambda script, file: run(script, "--json", str(file)), scripts, files))
    assert [0, 0, 0] == [each.returncode for each in done], "\n".join(each.stderr for each in done)
    found = [json.loads(file.read_text()) for file in files]
    assert [1, 1, 1] == [each["other"] for each in found]

    comparison, floods, phases = found[0]["comparison"], found[1]["flood"]["polls"], found[2]["million"]["phases"]
    growing = {name for name, server in SERVERS.items() if server.grows}
    runs = {(each["operation"], each["sessions"]): set(each["runs"]) for each in comparison["measurements"]}
    few = {(operation, 1): set(AVAILABLE) for operation in ("poll", "read", "write")}
    assert {**few, ("poll", 200): {"bare", *growing}, ("create", 200): set(AVAILABLE)} == runs
    assert set(AVAILABLE) == set(comparison["handshakes"]) == set(floods)
    assert growing == set(comparison["memory"])
    assert all(run["late_ms"] for of_server in floods.values() for runs in of_server.values() for run in runs)
    assert 4 == len(phases)
    assert all(phase["polls"] for phase in phases)
    for each, lines in zip(done, (AVAILABLE, AVAILABLE, phases), strict=True):
        for line in lines:
            name = SERVERS[line].label if isinstance(line, str) else line["name"]
            assert re.search(rf"^ *{re.escape(name)}  ", each.stdout, re.MULTILINE)


@needs_wrk
def test_shares(tmp_path: pathlib.Path) -> None:
    """The short form of the profile finds our code at work, and Synapse's and Twisted's more."""
    done = run("shares.py", "--json", str(tmp_path / "numbers.json"))
    assert 0 == done.returncode, done.stderr
    looks = json.loads((tmp_path / "numbers.json").read_text())["shares"]["looks"]
    assert 0 < looks["synapse_rendezvous"] < sum(looks.values()) / 2


@needs_redis
def test_transactions(tmp_path: pathlib.Path) -> None:
    """The short form measures everything."""
    done = run("transactions.py", "--json", str(tmp_path / "numbers.json"))
    assert 0 == done.returncode, done.stderr
    numbers = json.loads((tmp_path / "numbers.json").read_text())["transactions"]
    assert 10 == len(numbers["us"])
    assert "  write over Redis, MSC4388 / write over Redis, MSC4388, earlier form\n" in done.stdout


def test_waiting(tmp_path: pathlib.Path) -> None:
    """The short form measures everything."""
    done = run("waiting.py", "--json", str(tmp_path / "numbers.json"))
    assert 0 == done.returncode, done.stderr
    numbers = json.loads((tmp_path / "numbers.json").read_text())["waiting"]
    assert {"environment", "late_ms", "requests", "devices", "cpu", "held"} == set(numbers)


def test_page() -> None:
    """The page has the numbers that are committed, and so have the plots."""
    numbers = json.loads(report.NUMBERS.read_text())
    text = report.PAGE.read_text()

    assert text == report.page(text, numbers)
    shown = re.findall(r"\(plots/(\w+\.svg)\)", text)
    assert sorted(path.name for path in report.PLOTS.iterdir()) == sorted(shown)
    for name in shown:
        assert report.digest(numbers) in (report.PLOTS / name).read_text()


def test_plots(tmp_path: pathlib.Path) -> None:
    """Plots are drawn, and the same numbers give the same."""
    numbers = json.loads(report.NUMBERS.read_text())
    drawn = []
    for name in ("once", "again"):
        report.plot(numbers, tmp_path / name)
        drawn.append({path.name: path.read_bytes() for path in (tmp_path / name).iterdir()})

    assert drawn[0] == drawn[1]
    assert {"cost.svg", "sizes.svg", "flood.svg", "clients.svg"} == set(drawn[0])


@pytest.mark.parametrize("script", ["compare.py", "flood.py"])
def test_without_wrk(script: str) -> None:
    """What is missing is said in a sentence."""
    done = run(script, path="")

    assert (1, 1) == (done.returncode, done.stderr.count("\n"))
    assert "wrk, which is not installed" in done.stderr


@needs_wrk
def test_without_redis(tmp_path: pathlib.Path) -> None:
    """So it is of a second program."""
    (tmp_path / "wrk").symlink_to(shutil.which("wrk") or "")

    done = run("compare.py", path=str(tmp_path))

    assert (1, 1) == (done.returncode, done.stderr.count("\n"))
    assert "redis-server, which is not installed" in done.stderr
