"""See how long real clients take to sign in by QR code, and how often they ask the rendezvous server.

The clients are matrix-js-sdk (Element Web) and matrix-rust-sdk (Element X), in all combinations, each device a process
of its own; a real OAuth server signs them in. They meet at this module as it comes, at this module with polls answered
at once (`default_wait: 0`), and at Synapse's own server for MSC4108. The servers take turns, combination by
combination. The time runs from the scan of the code until both devices are done.
"""

import argparse
import contextlib
import itertools
import pathlib
import re
import statistics
import sys
import time
from typing import Any

from cli import Result, main, progress, spread

from support.ports import free_port
from support.sign_in_devices import SECRET, OAuthServer, programs, sign_in
from synapse_rendezvous.demo.throwaway_homeserver import HOST, ThrowawayHomeserver

MODULE = "synapse_rendezvous.RendezvousModule"
HOMES: dict[str, tuple[list[dict[str, Any]], dict[str, Any]]] = {
    "this module": ([{"module": MODULE, "config": {}}], {}),
    "this module, default_wait: 0": ([{"module": MODULE, "config": {"long_poll": {"default_wait": 0}}}], {}),
    "Synapse's own": ([], {"msc4108_enabled": True}),
}
"""The servers, by what they are called: their modules and experimental features."""

COMBINATIONS = list(itertools.product(("js", "rust"), ("js", "rust"), ("signed_in_shows", "new_shows")))
"""Who is signed in, who is new, and who shows the code."""

REQUEST = re.compile(r'"(?:GET|POST|PUT|DELETE) /\S*rendezvous')
"""A line of the access log about a rendezvous."""

SETTLE_S = 0.3
"""How long the last requests may take to be logged."""


class Home:
    """A homeserver, its OAuth server, and how many rendezvous requests it has logged so far."""

    def __init__(self, directory: pathlib.Path, folder: pathlib.Path, name: str) -> None:
        modules, features = HOMES[name]
        port, oauth_port = free_port(), free_port()
        directory.mkdir()
        self.homeserver = ThrowawayHomeserver(
            directory,
            port=port,
            modules=modules,
            settings={
                "matrix_authentication_service": {
                    "enabled": True,
                    "endpoint": f"http://{HOST}:{oauth_port}/",
                    "secret": SECRET,
                },
                "experimental_features": features,
            },
        )
        self.oauth_server = OAuthServer(folder, oauth_port, self.homeserver.url)

    def count_requests(self) -> int:
        """Return how many requests for a rendezvous are in the log."""
        time.sleep(SETTLE_S)
        return len(REQUEST.findall(self.homeserver.log.read_text()))


def measure(arguments: argparse.Namespace, directory: pathlib.Path) -> Result:
    """Let the clients sign in at each server."""
    combinations = COMBINATIONS[:1] if arguments.quick else COMBINATIONS
    seconds: dict[str, dict[str, list[float]]] = {name: {} for name in HOMES}
    requests: dict[str, dict[str, list[int]]] = {name: {} for name in HOMES}
    folder = programs(directory)
    with contextlib.ExitStack() as stack:
        homes = {}
        for number, name in enumerate(HOMES):
            homes[name] = Home(directory / str(number), folder, name)
            stack.enter_context(homes[name].homeserver)
            stack.enter_context(homes[name].oauth_server)
        for number in range(arguments.rounds):
            progress(f"Round {number + 1} of {arguments.rounds}")
            for (signed_in, new, shows), (name, home) in itertools.product(combinations, homes.items()):
                username = f"{signed_in}-{new}-{shows}-{number}"
                before = home.count_requests()
                done = sign_in(
                    folder,
                    directory,
                    home.homeserver.url,
                    home.oauth_server,
                    username,
                    signed_in=signed_in,
                    new=new,
                    shows=shows,
                )
                combination = f"{signed_in} {'shows' if shows == 'signed_in_shows' else 'scans'}, {new} is new"
                seconds[name].setdefault(combination, []).append(done.took_s)
                requests[name].setdefault(combination, []).append(home.count_requests() - before)
    lines = []
    for combination in seconds["this module"]:
        lines.append(f"{combination}:")
        own = statistics.median(seconds["Synapse's own"][combination])
        own_requests = statistics.median(requests["Synapse's own"][combination])
        for name in HOMES:
            took, asked = seconds[name][combination], statistics.median(requests[name][combination])
            share, asked_share = statistics.median(took) / own, asked / own_requests
            cost = f"{share:.2f} of Synapse's own), {asked:3.0f} requests ({asked_share:.2f})"
            lines.append(f"  {spread(took):>20} s ({cost}  {name}")
    return Result("\n".join(lines), {"seconds": seconds, "requests": requests})


if __name__ == "__main__":
    sys.exit(main("clients", __doc__, measure))
