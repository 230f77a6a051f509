"""The command line of `check`. It imports without Synapse, so that it can say that Synapse is missing."""

import argparse
import importlib.util
import os
import sys

from synapse_rendezvous.check.options import DEFAULT_ORIGIN, AddressFamily, CheckOptions
from synapse_rendezvous.paths import MSC3886

COULD_NOT_TEST = 3


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the options of `check`."""
    parser.add_argument(
        "url",
        metavar="URL",
        help="the homeserver's URL for clients, or its server name (whose well-known file is followed), or the URL of"
        f" the collection, where that is not at {MSC3886}",
    )
    parser.add_argument(
        "-c",
        "--config",
        dest="configs",
        metavar="FILE",
        action="append",
        default=[],
        help="look at homeserver.yaml as well; several times, or a folder, as for Synapse",
    )
    parser.add_argument("--json", action="store_true", help="write the report for programs")
    parser.add_argument("--anonymize", action="store_true", help="leave host names and addresses out of the report")
    parser.add_argument(
        "--origin", metavar="URL", default=DEFAULT_ORIGIN, help="that of the web client (default: %(default)s)"
    )
    family = parser.add_mutually_exclusive_group()
    only = "use no other addresses"
    family.add_argument("--ipv4", dest="family", action="store_const", const=AddressFamily.IPV4, help=only)
    family.add_argument("--ipv6", dest="family", action="store_const", const=AddressFamily.IPV6, help=only)
    parser.set_defaults(family=AddressFamily.ANY)


def run(options: argparse.Namespace) -> int:
    """Check a server and write the report.

    Returns:
        The exit status: 0 if all is fine, 1 if there are warnings, 2 if it is broken, 3 if it could not be tested.
    """
    needed = ["OpenSSL", "yaml", *(["synapse"] if options.configs else [])]
    if missing := [name for name in needed if importlib.util.find_spec(name) is None]:
        return _refuse(
            f"{' and '.join(missing)} cannot be imported by {sys.executable}. Run this where Synapse is installed."
        )
    from twisted.internet import defer, task

    from synapse_rendezvous.check.findings import Report
    from synapse_rendezvous.check.reachability import InvalidTarget, parse_target
    from synapse_rendezvous.check.report import anonymize, as_json, as_text
    from synapse_rendezvous.check.runner import run_check

    try:
        parse_target(options.url)
    except InvalidTarget as error:
        return _refuse(str(error))
    check_options = CheckOptions(
        target=options.url, origin=options.origin, family=options.family, configs=options.configs
    )
    reports: list[Report] = []

    def main(reactor: object) -> "defer.Deferred[None]":
        return defer.Deferred.fromCoroutine(run_check(reactor, check_options)).addCallback(reports.append)

    try:
        task.react(main, ())
    except SystemExit:
        if not reports:  # interrupted; or a defect, and Twisted has written its traceback
            return COULD_NOT_TEST
    (report,) = reports
    if options.anonymize:
        report = anonymize(report)
    if options.json:
        print(as_json(report))
        return report.status
    try:
        "✅".encode(sys.stdout.encoding)
        has_unicode = True
    except UnicodeEncodeError:
        has_unicode = False
    has_colour = sys.stdout.isatty() and not os.environ.get("NO_COLOR")
    print(as_text(report, has_colour=has_colour, has_unicode=has_unicode))
    return report.status


def _refuse(reason: str) -> int:
    print(reason, file=sys.stderr)
    return COULD_NOT_TEST
