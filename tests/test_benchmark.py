"""The benchmarks work, and docs/performance.md says what they found; how fast anything is, no test says."""

import json
import os
import pathlib
import re
import shutil
import subprocess
import sys

import pytest
import report
from servers import SERVERS

ROOT = pathlib.Path(__file__).parent.parent
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
def test_short_form(tmp_path: pathlib.Path) -> None:
    """The short forms measure every operation on every server, and add to what the file has already."""
    file = tmp_path / "result.json"
    for script in ("compare.py", "flood.py"):
        done = run(script, "--json", str(file))
        assert done.returncode == 0, done.stderr
        for server in SERVERS.values():
            assert f"\n{server.label} " in done.stdout or f"\n  {server.label} " in done.stdout

    numbers = json.loads(file.read_text())
    comparison, floods = numbers["comparison"], numbers["flood"]["polls"]
    measured = {(each["operation"], each["sessions"]): each["runs"] for each in comparison["measurements"]}
    assert {("poll", 1), ("poll", 200), ("read", 1), ("write", 1), ("create", 200)} == set(measured)
    for operation, sessions in measured:
        is_growth = (operation, sessions) == ("poll", 200)
        names = {name for name, server in SERVERS.items() if server.grows or name == "bare" or not is_growth}
        assert names == set(measured[operation, sessions])
    assert set(SERVERS) == set(comparison["handshakes"]) == set(floods)
    assert {name for name, server in SERVERS.items() if server.grows} == set(comparison["memory"])
    assert all(run["late_ms"] for phases in floods.values() for runs in phases.values() for run in runs)


def test_million() -> None:
    """So does that of many sessions, from the first one to the end of the last one."""
    done = run("million.py")

    assert done.returncode == 0, done.stderr
    for phase in ("before", "while they are created", "while all live", "while they expire"):
        assert f"\n{phase} " in done.stdout


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
    assert {"cost.svg", "sizes.svg", "flood.svg"} == set(drawn[0])


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
