"""Which client a request is charged to, and the networks around it that are charged as well."""

import functools
import ipaddress
import itertools
import re
from collections.abc import Iterator, Sequence

from synapse_rendezvous.addresses import IPAddress, IPNetwork, parse_address

UNKNOWN = "unknown"
"""The key of all requests without a usable address. They are exempt from the limits for one client: a shared limit
would let one attacker shut out everybody behind a badly configured proxy."""

EXEMPT = "exempt"
"""The key of all requests from addresses that the operator exempts from the limits for one client."""

DENIED = "denied"
"""The key of all requests from addresses that the operator denies."""

OTHERS = "others"
"""Stands for all clients that a bounded table has no room for."""

# A customer has a /64 network at least, usually a /56, sometimes a /48. So these networks have quotas too, wider ones.
_IPV6_SHARES = ((16, 1), (14, 3), (12, 6))


_LOOPBACK = "127.0.0.1"

_LOCAL_SOCKET = "unix:"
"""What nginx calls a client on a unix socket."""

_WITH_PORT = re.compile(r"([0-9.]+):[0-9]{1,5}|\[([0-9A-Fa-f:.]+)\](?::[0-9]{1,5})?")
"""An address as some proxies write it, with the client's port."""


MAX_FORWARDED_BYTES = 512
"""How much of X-Forwarded-For is read, from the right: more proxies than anybody has."""

QuotaKeys = tuple[tuple[str, int], ...]
"""Keys that something is charged to, each with how many times the allowance of one client it has; widest last."""


@functools.lru_cache(maxsize=8192)
def quota_keys(client: str) -> QuotaKeys:
    """Return the keys that a client is charged to.

    Args:
        client: as `Clients.client_key` names it.

    Returns:
        An IPv4 address alone; an IPv6 /64 network with the /56 and the /48 network around it; none for clients that
        are exempt from the limits for one client. The scripts in Redis have the same rule.
    """
    if "." in client:
        return ((client, 1),)
    if len(client) == 16:
        return tuple((client[:digits], share) for digits, share in _IPV6_SHARES)
    return ()


class Clients:
    """Names the client that a request is charged to.

    Each proxy appends to X-Forwarded-For the address it saw, so the entries are read from the right and followed only
    across addresses that are trusted. The client may have written itself what stands further left.

    Args:
        trusted: where the operator's own proxies are, or how many of them there are.
        exempt: addresses that are exempt from the limits for one client.
        denied: addresses that are refused (403).

    Attributes:
        client_key: takes the address at the other end of the connection, if it has one, and the last
            `MAX_FORWARDED_BYTES` of X-Forwarded-For, its lines joined by commas, or None where the listener does not
            believe it. Returns an IPv4 address, the first 64 bits of an IPv6 address as 16 hexadecimal digits, or a
            word from above. It is cached, because devices ask again each second from the same place.
    """

    def __init__(
        self, trusted: Sequence[IPNetwork] | int, exempt: Sequence[IPNetwork] = (), denied: Sequence[IPNetwork] = ()
    ) -> None:
        self._trusted = trusted
        self._exempt = exempt
        self._denied = denied
        self.client_key = functools.lru_cache(maxsize=4096)(self._client_key)

    def _client_key(self, peer: str | None, forwarded: bytes | None) -> str:
        if forwarded is None:
            return UNKNOWN if peer is None else self._parse(peer)[0]
        if isinstance(self._trusted, int):
            # If there are fewer hops than proxies, one of these was passed by, or made to drop the header: then the
            # farthest counts, for what a client can bring about must not free it from limits.
            hops = itertools.chain([_LOOPBACK if peer is None else peer], self._entries(forwarded))
            *_, hop = itertools.islice(hops, self._trusted + 1)
            return UNKNOWN if self._trusted and not forwarded else self._parse(hop)[0]
        if peer is not None:  # a unix socket has none; only a proxy on this machine can be behind it
            client, is_trusted = self._parse(peer)
            if not is_trusted:
                return client
        client = UNKNOWN  # a trusted proxy that does not name its client: it could be anybody
        for entry in self._entries(forwarded):
            farther, is_trusted = self._parse(entry)
            if farther == UNKNOWN:
                break  # no proxy has written this, but the client that the one before names
            client = farther
            if not is_trusted:
                break
        return client

    @staticmethod
    def _entries(forwarded: bytes) -> Iterator[str]:
        """Yield the addresses that proxies have appended, the nearest first."""
        if forwarded:
            for entry in reversed(forwarded.split(b",")):
                yield entry.strip().decode("latin-1")

    def _parse(self, hop: str) -> tuple[str, bool]:
        """Return the key of an address, and whether it is trusted."""
        if hop == _LOCAL_SOCKET:
            hop = _LOOPBACK
        if with_port := _WITH_PORT.fullmatch(hop):
            hop = str(with_port[1] or with_port[2])
        try:
            address = parse_address(hop)
        except ValueError:
            return UNKNOWN, False
        is_trusted = not isinstance(self._trusted, int) and _is_in(address, self._trusted)
        if _is_in(address, self._denied):
            return DENIED, is_trusted
        if _is_in(address, self._exempt):
            return EXEMPT, is_trusted
        if isinstance(address, ipaddress.IPv6Address):
            return f"{int(address) >> 64:016x}", is_trusted
        return str(address), is_trusted


def format_client(client: str) -> str:
    """Return a client, or a network that shares, as a person writes it."""
    if "." not in client and len(client) in (16, 14, 12):
        return str(ipaddress.IPv6Network((int(client.ljust(32, "0"), 16), 4 * len(client))))
    return client


@functools.lru_cache(maxsize=8192)
def is_private(client: str) -> bool:
    """Whether a client is in a network that is not part of the internet."""
    return client not in (UNKNOWN, EXEMPT, DENIED, OTHERS) and ipaddress.ip_network(format_client(client)).is_private


def _is_in(address: IPAddress, networks: Sequence[IPNetwork]) -> bool:
    return any(address in network for network in networks)
