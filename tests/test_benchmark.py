"""The benchmarks work; how fast anything is, no test says."""

import json
import os
import pathlib
import shutil
import subprocess
import sys

import pytest

BENCHMARKS = pathlib.Path(__file__).parent.parent / "benchmarks"
BOTH = pytest.mark.parametrize("script", ["compare.py", "compare_stores.py"])

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
@pytest.mark.parametrize(
    ("script", "sides", "lines"),
    [
        ("compare.py", {"ours", "bare"}, ("msc4108 ", "msc4388 ")),
        pytest.param(
            "compare_stores.py", {"memory", "redis"}, ("A poll in Redis with 200 ", "Redis takes "), marks=needs_redis
        ),
    ],
)
def test_short_form(script: str, sides: set[str], lines: tuple[str, ...], tmp_path: pathlib.Path) -> None:
    """The short form measures every operation on both sides and prints the result."""
    done = run(script, "--json", str(tmp_path / "result.json"))

    assert done.returncode == 0, done.stderr
    measured = json.loads((tmp_path / "result.json").read_text())["measurements"]
    names = [each["operation"]["name"] for each in measured]
    assert {"poll", "read", "write", "create"} == set(names)
    for each in measured:
        assert {"operation", "sessions", *sides} == set(each)
    for line in (*(f"{name} " for name in names), *lines):
        assert f"\n{line}" in done.stdout


@BOTH
def test_without_wrk(script: str) -> None:
    """What is missing is said in a sentence."""
    done = run(script, path="")

    assert (1, 1) == (done.returncode, done.stderr.count("\n"))
    assert "wrk, which is not installed" in done.stderr


@needs_wrk
def test_without_redis(tmp_path: pathlib.Path) -> None:
    """So it is of a second program."""
    (tmp_path / "wrk").symlink_to(shutil.which("wrk") or "")

    done = run("compare_stores.py", path=str(tmp_path))

    assert (1, 1) == (done.returncode, done.stderr.count("\n"))
    assert "redis-server, which is not installed" in done.stderr
