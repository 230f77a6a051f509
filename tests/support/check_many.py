"""Checks several servers at once in one process, for the tests.

It reads the options of each check as JSON from stdin, and writes the reports.
"""

import json
import sys
from typing import Any

from twisted.internet.defer import Deferred, DeferredSemaphore, gatherResults
from twisted.internet.task import react

from synapse_rendezvous.check.options import AddressFamily, CheckOptions
from synapse_rendezvous.check.report import as_json
from synapse_rendezvous.check.runner import run_check

AT_ONCE = 8


def main(reactor: Any) -> "Deferred[None]":
    """Check all, a few at a time."""
    turns = DeferredSemaphore(AT_ONCE)

    def check_one(options: dict[str, Any]) -> "Deferred[Any]":
        family = AddressFamily[options.pop("family", "ANY")]
        return Deferred.fromCoroutine(run_check(reactor, CheckOptions(**options, family=family)))

    def write(reports: list[Any]) -> None:
        print(f"[{','.join(map(as_json, reports))}]")

    checks = json.load(sys.stdin)
    reports = gatherResults([turns.run(check_one, options) for options in checks], consumeErrors=True)
    return reports.addCallback(write)


react(main, ())
