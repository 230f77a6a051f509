"""What all tests share: Synapse's harness, a homeserver to talk to, and two rules.

The rules: a test whose code logs an error fails, and where CI is set a skipped test fails.
"""

import logging
import os
import pathlib
import sys
from collections.abc import Generator, Iterator

import hypothesis
import pytest

sys.path.insert(0, str(pathlib.Path(__file__).parent))

from support.homeservers import new_homeserver, running
from support.listeners import Listeners
from support.recipes import ROOT
from support.servers import ENDLESS, UNLIMITED
from synapse_rendezvous.demo.throwaway_homeserver import ThrowawayHomeserver
from tools.fetch_synapse_tests import HARNESS

# Behind our own folder, whose modules have other names, but before the working directory: the harness is called
# `tests` like our folder.
sys.path.insert(1, str(HARNESS))

sys.path.append(str(ROOT / "benchmarks"))
os.environ.setdefault("HYPOTHESIS_STORAGE_DIRECTORY", str(ROOT / "build" / "hypothesis"))
# How long an example takes says more about the machine than about the code.
hypothesis.settings.register_profile("tests", deadline=None, suppress_health_check=[hypothesis.HealthCheck.too_slow])
hypothesis.settings.load_profile("tests")

if not HARNESS.exists():
    print(f"Skipping the tests that need Synapse's harness: {HARNESS} is missing; `make test` fetches it.")
    collect_ignore = ["synapse"]
    if "CI" in os.environ:
        raise SystemExit("In CI nothing may be skipped.")


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport() -> Generator[None, pytest.TestReport, pytest.TestReport]:
    report = yield
    if report.skipped and "CI" in os.environ and not hasattr(report, "wasxfail"):
        report.outcome = "failed"
    return report


@pytest.fixture(autouse=True)
def _no_errors_logged(caplog: pytest.LogCaptureFixture) -> Iterator[None]:
    yield
    # Synapse's harness itself logs errors when it shuts a homeserver down, under other names.
    ours = ("synapse_rendezvous", "synapse.http", "twisted")
    errors = [
        record.getMessage()
        for record in caplog.get_records("call")
        if record.levelno >= logging.ERROR and record.name.startswith(ours)
    ]
    assert not errors


@pytest.fixture(scope="session")
def homeserver(tmp_path_factory: pytest.TempPathFactory) -> Iterator[ThrowawayHomeserver]:
    """A Synapse process with the module, its limits out of the way."""
    config = {"per_client": UNLIMITED, **ENDLESS}
    with running(new_homeserver(tmp_path_factory.mktemp("homeserver"), config)) as homeserver:
        yield homeserver


@pytest.fixture(scope="module")
def listeners(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Listeners]:
    """One homeserver for all tests of a module; they differ by where their clients are."""
    listeners = Listeners(tmp_path_factory.mktemp("homeserver"))
    with running(listeners.homeserver):
        yield listeners
