"""A homeserver that is reached in three ways."""

import pathlib
from collections.abc import Sequence

from support.homeservers import new_homeserver
from support.ports import free_port
from synapse_rendezvous.demo.throwaway_homeserver import HOST

BURST = 3
TRUSTED = (HOST, "127.0.2.0/24")


class Listeners:
    """A homeserver that lets each client create three sessions, and its listeners.

    Attributes:
        forwarded: the URL of one with `x_forwarded`.
        plain: the URL of one without.
        socket: the path of one on a unix socket, which does not say `x_forwarded`.
    """

    def __init__(self, directory: pathlib.Path, trusted_proxies: Sequence[str] | int = TRUSTED) -> None:
        ports = free_port(), free_port()
        self.forwarded, self.plain = (f"http://{HOST}:{port}" for port in ports)
        self.socket = directory / "synapse.sock"
        tcp = {"type": "http", "bind_addresses": [HOST]}
        create = {"per_second": 0.001, "burst_count": BURST}
        config = {"trusted_proxies": trusted_proxies, "per_client": {"create": create}}
        self.homeserver = new_homeserver(
            directory,
            config,
            {
                # `client` on one alone: Synapse logs an error of its own (a metric that is there twice) about more.
                "listeners": [
                    {"port": ports[0], "x_forwarded": True, "resources": [{"names": ["client"]}], **tcp},
                    {"port": ports[1], "x_forwarded": False, **tcp},
                    {"path": str(self.socket), "type": "http"},
                ]
            },
            port=ports[0],
        )
