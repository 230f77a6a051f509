"""The benchmark works; how fast anything is, no test says."""

import json
import pathlib
import shutil
import subprocess
import sys

import pytest

COMPARE = pathlib.Path(__file__).parent.parent / "benchmarks" / "compare.py"


@pytest.mark.skipif(shutil.which("wrk") is None, reason="wrk is not installed; it makes the load of the benchmark")
def test_short_form(tmp_path: pathlib.Path) -> None:
    """Its short form measures every operation and prints the result."""
    done = subprocess.run(
        [sys.executable, COMPARE, "--quick", "--json", tmp_path / "result.json"],
        capture_output=True,
        text=True,
        timeout=300,
        check=False,
    )

    assert done.returncode == 0, done.stderr
    measured = [
        each["operation"]["name"] for each in json.loads((tmp_path / "result.json").read_text())["measurements"]
    ]
    assert {"poll", "read", "write", "create"} == set(measured)
    for name in (*measured, "msc4108", "msc4388"):
        assert f"\n{name} " in done.stdout


def test_without_wrk() -> None:
    """What is missing is said in a sentence."""
    done = subprocess.run(
        [sys.executable, COMPARE, "--quick"], capture_output=True, text=True, timeout=60, check=False, env={"PATH": ""}
    )

    assert (1, 1) == (done.returncode, done.stderr.count("\n"))
    assert "wrk, which is not installed" in done.stderr
