"""The command line: `python -m synapse_rendezvous`, installed as `synapse-rendezvous`."""

import argparse
import sys
from collections.abc import Sequence

from synapse_rendezvous import __version__
from synapse_rendezvous.check import command as check
from synapse_rendezvous.demo import command as demo
from synapse_rendezvous.snippets import command as snippet


def main(arguments: Sequence[str] | None = None) -> int:
    """Run a command.

    Args:
        arguments: the command line without the program's name; None for the process's own.

    Returns:
        The exit status: 0 if all went well, 1 if not. A wrong command line exits with 2.
    """
    parser = argparse.ArgumentParser(
        prog="synapse-rendezvous", description="A rendezvous server for Matrix homeservers, as a Synapse module."
    )
    parser.add_argument("--version", action="version", version=f"synapse_rendezvous {__version__}")
    commands = parser.add_subparsers(title="commands", dest="command", required=True)
    demo.add_arguments(
        commands.add_parser(
            "demo",
            help="start a throw-away homeserver with the module, play one rendezvous on it, and serve a page for more",
            description="Start a throw-away Synapse with the module on this machine (SQLite, a temporary folder, not"
            " reachable from outside unless you say --host), play one rendezvous between two devices, and serve a page"
            " on which you pair two devices of your own, until Ctrl-C.",
        )
    )
    snippet.add_arguments(
        commands.add_parser(
            "snippet",
            help="print the configuration for a reverse proxy",
            description="Print what a reverse proxy needs to serve the module well, to be pasted.",
        )
    )
    check.add_arguments(
        commands.add_parser(
            "check",
            help="ask a server through its public URL, and name what stands in the way of clients",
            description="Play a rendezvous through the public URL of a server, as clients do, and name what a reverse"
            " proxy or the configuration does to it, with the line to change. Needs no account; takes at most 20 s and"
            " 60 requests. Exit status: 0 all is fine, 1 there are warnings, 2 it is broken, 3 it could not be tested.",
        )
    )
    options = parser.parse_args(arguments)
    if options.command == "check":
        return check.run(options)
    if options.command == "snippet":
        return snippet.run(product=options.product, host=options.host, upstream=options.upstream, paths=options.paths)
    return demo.run(
        host=options.host, port=options.port, page_port=options.page_port, ttl=options.ttl, once=options.once
    )


if __name__ == "__main__":
    sys.exit(main())
