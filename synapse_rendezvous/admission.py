"""Who may do what and how often: the creation policy, rate limits, and which client a request counts for."""

import functools
import ipaddress

from synapse.http.site import SynapseRequest

from synapse_rendezvous.config import IPNetwork, RendezvousConfig
from synapse_rendezvous.errors import CreationForbidden
from synapse_rendezvous.homeserver import Homeserver, forwarded_for, peer_address

UNKNOWN_CLIENT = "unknown"
"""What requests without a usable address count for, all together."""


def client_of(peer: str | None, forwarded: tuple[bytes, ...], trusted: tuple[IPNetwork, ...]) -> str:
    """Name the client that a request counts for.

    Each proxy appends the address it saw, so the entries are read from the right and followed only across addresses
    that are trusted. What stands further left, the client may have written itself.

    Args:
        peer: the address at the other end of the connection, if it has one.
        forwarded: the X-Forwarded-For lines; none where they are not to be believed.
        trusted: where the operator's own proxies are.

    Returns:
        An IPv4 address, the /64 network of an IPv6 address (which is what one customer has at least), or
        `UNKNOWN_CLIENT`.
    """
    hops = [entry.strip().decode("latin-1") for line in forwarded for entry in line.split(b",")]
    client = UNKNOWN_CLIENT
    for hop in reversed([*hops, peer]):
        if hop is None:  # a unix socket: only a proxy on this machine can be behind it
            continue
        try:
            address = ipaddress.ip_address(hop)
        except ValueError:
            return UNKNOWN_CLIENT
        if isinstance(address, ipaddress.IPv6Address):
            address = address.ipv4_mapped or address
        client = _share(address)
        if not any(address in network for network in trusted):
            break
    return client


def _share(address: ipaddress.IPv4Address | ipaddress.IPv6Address) -> str:
    if isinstance(address, ipaddress.IPv4Address):
        return str(address)
    return str(ipaddress.IPv6Network((int(address) >> 64 << 64, 64)))


class Admission:
    """Says of each request whether it may go on, by raising where it may not.

    All methods raise `LimitExceededError` (429) when the client did the same too often.
    """

    def __init__(self, homeserver: Homeserver, config: RendezvousConfig) -> None:
        self._creation_open = config.create_policy == "open"
        # Devices ask again each second from the same place.
        self._client_of = functools.lru_cache(maxsize=8192)(
            functools.partial(client_of, trusted=config.trusted_proxies)
        )
        limits = config.per_client
        self._creates, self._reads, self._writes, self._misses = (
            homeserver.ratelimiter(
                f"synapse_rendezvous_{name}", per_second=limit.per_second, burst_count=limit.burst_count
            )
            for name, limit in (
                ("create", limits.create),
                ("read", limits.read),
                ("write", limits.write),
                ("miss", limits.miss),
            )
        )

    def client(self, request: SynapseRequest) -> str:
        """Name the client that a request counts for; see `client_of`."""
        return self._client_of(peer_address(request), tuple(forwarded_for(request)))

    async def create(self, client: str) -> None:
        """Admit a POST.

        Raises:
            CreationForbidden: the operator closed creation.
        """
        if not self._creation_open:
            raise CreationForbidden
        # The pause slows down who asks in a loop. Nobody is in the middle of a pairing here.
        await self._creates.ratelimit(None, key=client, pause=0.5)

    async def read(self, client: str) -> None:
        """Admit a GET or HEAD."""
        await self._reads.ratelimit(None, key=client, pause=None)

    async def write(self, client: str) -> None:
        """Admit a PUT or DELETE."""
        await self._writes.ratelimit(None, key=client, pause=None)

    async def miss(self, client: str) -> None:
        """Count a request for a session that is not there. Only misses are refused: what a client finds, it gets."""
        await self._misses.ratelimit(None, key=client, pause=None)
