"""Who may do what and how often: the creation policy, limits for clients and sessions, addresses that are denied."""

import contextlib
from collections.abc import Sequence

from synapse.api.errors import LimitExceededError
from synapse.http.site import SynapseRequest, XForwardedForRequest

from synapse_rendezvous.clients import DENIED, EXEMPT, UNKNOWN, Clients, shares
from synapse_rendezvous.config import LIMIT_KEYS, RateLimit, RendezvousConfig
from synapse_rendezvous.errors import ClientDenied, CreationForbidden, StoreFull
from synapse_rendezvous.homeserver import LIMITER_PREFIX, Homeserver
from synapse_rendezvous.observer import Observations
from synapse_rendezvous.preconditions import HeaderFields
from synapse_rendezvous.rate_limit import Limit

CREATE_PAUSE_S = 0.5
"""How long a refusal to create is held back. Nobody is in the middle of a pairing then."""


class Admission:
    """Says of each request whether it may go on, by raising where it may not.

    All methods raise `LimitExceededError` (429) when the same was done too often; none does where the operator only
    observes.

    Args:
        homeserver: has the limiters, and knows users.
        config: what the operator allows.
        observations: is told of what is refused, and of creations.
        most_sessions: for how many sessions it is remembered how often they were read; see `Tally`.

    Attributes:
        session_reads: how often each session was read in this process.
    """

    def __init__(
        self, homeserver: Homeserver, config: RendezvousConfig, observations: Observations, most_sessions: int
    ) -> None:
        def limit(name: str, rate: RateLimit, most: int = LIMIT_KEYS) -> Limit:
            ratelimiter = homeserver.ratelimiter(name, per_second=rate.per_second, burst_count=rate.burst_count)
            return Limit(ratelimiter, rate, most)

        self._homeserver = homeserver
        self._observations = observations
        self._observe = config.observe
        self._clients = Clients(config.trusted_proxies, config.exempt, config.deny)
        self._creates = limit("per_client.create", config.per_client.create)
        self._reads = limit("per_client.read", config.per_client.read)
        self._writes = limit("per_client.write", config.per_client.write)
        self._misses = limit("per_client.miss", config.per_client.miss)
        self._session_reads = limit("per_session.read", config.per_session.read, most_sessions)
        self.session_reads = self._session_reads.tally
        self._session_writes = limit("per_session.write", config.per_session.write)
        user = config.per_user.create
        self._user_creates = homeserver.ratelimiter(
            "per_user.create", per_second=user.per_second, burst_count=user.burst_count
        )

    def client(self, request: SynapseRequest, headers: HeaderFields) -> str:
        """Name the client that a request counts for; see `Clients.name`.

        Args:
            request: tells who is at the other end of the connection.
            headers: its header fields.

        Raises:
            ClientDenied: the operator serves this address nothing.
        """
        peer = getattr(request.client, "host", None)
        forwarded = None
        if isinstance(request, XForwardedForRequest):  # else the listener does not believe it
            forwarded = headers.get(b"X-Forwarded-For", ())
        client = self._clients.name(peer, forwarded)
        if client == UNKNOWN:
            self._observations.unknown(peer)
        elif client == DENIED:
            self._observations.refused("deny", client)
            if not self._observe:
                raise ClientDenied
            return EXEMPT
        return client

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
        self._spend(self._creates, shares(client), client, CREATE_PAUSE_S)
        if policy == "authenticated":
            user = await self._homeserver.user_of(request)
            try:
                await self._user_creates.ratelimit(user, pause=CREATE_PAUSE_S)
            except LimitExceededError as refusal:
                self.refuse(refusal, client)
        self._observations.created(client)

    async def may_create(self, request: SynapseRequest, policy: str) -> bool:
        """Whether whoever sent this request would be admitted with a POST, but for limits.

        Raises:
            SynapseError: the access token is not valid (401).
        """
        if policy == "authenticated":
            return await self._homeserver.is_from_user(request)
        return policy == "open"

    # Only the client counts for reading and writing: it takes a session, of which networks have no more than their
    # share, and who asks for none is limited by misses.

    def describe(self, client: str) -> None:
        """Admit a GET or HEAD of the collection."""
        self._spend(self._reads, shares(client)[:1], client)

    def read(self, client: str, session_id: str) -> None:
        """Admit a GET or HEAD of a session that exists."""
        if not self._reads.spend_prepaid(client):
            self._spend(self._reads, shares(client)[:1], client)
        if not self._session_reads.spend_prepaid(session_id):
            self._spend(self._session_reads, ((session_id, 1),), client)

    def delete(self, client: str) -> None:
        """Admit a DELETE, whether or not there is such a session. No limit for the session holds: it ends but once."""
        self._spend(self._writes, shares(client)[:1], client)

    def replace(self, client: str, session_id: str) -> None:
        """Admit a PUT, whether or not there is such a session."""
        if not self._writes.spend_prepaid(client):
            self._spend(self._writes, shares(client)[:1], client)
        try:
            self._session_writes.check(session_id)
        except LimitExceededError as refusal:
            self.refuse(refusal, client)

    def replaced(self, session_id: str) -> None:
        """Count a PUT that was done. Those for sessions that do not exist would leave no room in the table."""
        if not self._session_writes.spend_prepaid(session_id):
            with contextlib.suppress(LimitExceededError):  # others were done meanwhile
                self._session_writes.spend(((session_id, 1),))

    def miss(self, client: str) -> None:
        """Count a request for a session that is not there. Only misses are refused: what a client finds, it gets."""
        self._spend(self._misses, shares(client), client)

    def refuse(self, refusal: LimitExceededError, client: str) -> None:
        """Count a refusal, and raise it; unless the operator only observes, and it is not the server that is full."""
        # The widest network, which is what an operator can do something about.
        widest = [name for name, _ in shares(client)][-1:] or [client]
        self._observations.refused(refusal.limiter_name.removeprefix(LIMITER_PREFIX), *widest)
        is_for_server = isinstance(refusal, StoreFull) and not refusal.is_for_client
        if is_for_server or not self._observe:
            raise refusal

    def _spend(self, limit: Limit, keys: Sequence[tuple[str, int]], client: str, pause_s: float | None = None) -> None:
        try:
            limit.spend(keys, pause_s)
        except LimitExceededError as refusal:
            self.refuse(refusal, client)
            for key, _ in keys:
                limit.tally.add(key, 0)  # it is only observed, and done
