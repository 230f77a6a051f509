"""Who may do what and how often: the creation policy, rate limits, and which client a request counts for."""

import functools
import ipaddress
from collections.abc import Iterator, Sequence

from synapse.api.ratelimiting import Ratelimiter
from synapse.http.site import SynapseRequest

from synapse_rendezvous.config import IPNetwork, RateLimit, RendezvousConfig
from synapse_rendezvous.errors import CreationForbidden
from synapse_rendezvous.homeserver import Homeserver, forwarded_for, peer_address

UNKNOWN_CLIENT = "unknown"
"""What requests without a usable address count for, all together."""


class Clients:
    """Names the client that a request counts for.

    Each proxy appends to X-Forwarded-For the address it saw, so the entries are read from the right and followed only
    across addresses that are trusted. What stands further left, the client may have written itself.

    Args:
        trusted: where the operator's own proxies are.
    """

    # An IPv6 address that ends in an IPv4 address. What is longer, a client made up; it shall not fill the cache.
    _LONGEST_ADDRESS = 45

    def __init__(self, trusted: Sequence[IPNetwork]) -> None:
        self._trusted = trusted
        # Devices ask again each second from the same place.
        self._read_cached = functools.lru_cache(maxsize=8192)(self._read)

    def name(self, peer: str | None, forwarded: Sequence[bytes]) -> str:
        """Return an IPv4 address, an IPv6 /64 network (which is what one customer has at least), or UNKNOWN_CLIENT.

        Args:
            peer: the address at the other end of the connection, if it has one.
            forwarded: the X-Forwarded-For lines; none where they are not to be believed.
        """
        client, is_trusted = UNKNOWN_CLIENT, True
        hops = self._hops(peer, forwarded)
        while is_trusted and (hop := next(hops, None)) is not None:
            client, is_trusted = (
                self._read_cached(hop) if len(hop) <= self._LONGEST_ADDRESS else (UNKNOWN_CLIENT, False)
            )
        return client

    @staticmethod
    def _hops(peer: str | None, forwarded: Sequence[bytes]) -> Iterator[str]:
        """Yield the addresses that a request passed, the nearest first."""
        if peer is not None:  # a unix socket has none; only a proxy on this machine can be behind it
            yield peer
        for line in reversed(forwarded):
            for entry in reversed(line.split(b",")):
                yield entry.strip().decode("latin-1")

    def _read(self, hop: str) -> tuple[str, bool]:
        """Return what an address counts for, and whether it is trusted."""
        try:
            address = ipaddress.ip_address(hop)
        except ValueError:
            return UNKNOWN_CLIENT, False
        if isinstance(address, ipaddress.IPv6Address):
            address = address.ipv4_mapped or address
        is_trusted = any(address in network for network in self._trusted)
        if isinstance(address, ipaddress.IPv6Address):
            return str(ipaddress.IPv6Network((int(address) >> 64 << 64, 64))), is_trusted
        return str(address), is_trusted


class Admission:
    """Says of each request whether it may go on, by raising where it may not.

    All methods raise `LimitExceededError` (429) when the client did the same too often.
    """

    def __init__(self, homeserver: Homeserver, config: RendezvousConfig) -> None:
        def limiter(name: str, limit: RateLimit) -> Ratelimiter:
            return homeserver.ratelimiter(
                f"synapse_rendezvous_{name}", per_second=limit.per_second, burst_count=limit.burst_count
            )

        self._homeserver = homeserver
        self._clients = Clients(config.trusted_proxies)
        self._creates = limiter("create", config.per_client.create)
        self._reads = limiter("read", config.per_client.read)
        self._writes = limiter("write", config.per_client.write)
        self._misses = limiter("miss", config.per_client.miss)
        self._user_creates = limiter("user_create", config.per_user.create)

    def client(self, request: SynapseRequest) -> str:
        """Name the client that a request counts for; see `Clients.name`."""
        return self._clients.name(peer_address(request), forwarded_for(request))

    async def create(self, request: SynapseRequest, client: str, policy: str) -> None:
        """Admit a POST.

        Args:
            request: carries the access token, where one is needed.
            client: whom it counts for.
            policy: `open`, `authenticated` or `closed`.

        Raises:
            CreationForbidden: creation is closed.
            SynapseError: a signed-in user is needed, and the access token is missing (401), not valid (401) or that of
                a guest (403).
        """
        if policy == "closed":
            raise CreationForbidden
        # The pause slows down who asks in a loop. Nobody is in the middle of a pairing here.
        await self._creates.ratelimit(None, key=client, pause=0.5)
        if policy == "authenticated":
            await self._user_creates.ratelimit(await self._homeserver.user_of(request), pause=0.5)

    async def may_create(self, request: SynapseRequest, policy: str) -> bool:
        """Whether whoever sent this request would be admitted with a POST, but for limits.

        Raises:
            SynapseError: the access token is not valid (401).
        """
        if policy == "authenticated":
            return await self._homeserver.is_from_user(request)
        return policy == "open"

    async def read(self, client: str) -> None:
        """Admit a GET or HEAD."""
        await self._reads.ratelimit(None, key=client, pause=None)

    async def write(self, client: str) -> None:
        """Admit a PUT or DELETE."""
        await self._writes.ratelimit(None, key=client, pause=None)

    async def miss(self, client: str) -> None:
        """Count a request for a session that is not there. Only misses are refused: what a client finds, it gets."""
        await self._misses.ratelimit(None, key=client, pause=None)
