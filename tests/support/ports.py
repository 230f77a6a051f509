"""Ports for servers, which nobody else takes between the choice and the start of the server."""

import functools
import itertools
import socket
from collections.abc import Iterator

from synapse_rendezvous.demo.throwaway_homeserver import HOST

# Below those that the system gives to clients. So nothing but a test takes one.
_FIRST, _LAST = 12_000, 32_000
_BLOCK = 400


def free_port() -> int:
    """Return a port on which nothing listens; none is returned twice until all of this process's were."""
    return next(port for port in _ports() if _is_free(port))


@functools.cache
def _ports() -> Iterator[int]:
    """Return the ports of this process, over and over.

    Tests run in several processes at once. Each has a block of ports, and listens on the first port of it as long as it
    lives, so that no other takes the block.
    """
    for first in range(_FIRST, _LAST, _BLOCK):
        guard = socket.socket()
        try:
            guard.bind((HOST, first))
        except OSError:
            guard.close()
        else:
            _GUARDS.append(guard)
            return itertools.cycle(range(first + 1, first + _BLOCK))
    raise AssertionError(f"all blocks of ports from {_FIRST} to {_LAST} are taken")


_GUARDS: list[socket.socket] = []


def _is_free(port: int) -> bool:
    with socket.socket() as listener:
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)  # as servers do
        try:
            listener.bind((HOST, port))
        except OSError:
            return False
        return True
