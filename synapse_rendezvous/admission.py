"""Who may do what: addresses that are denied, and who may create sessions."""

from synapse.api.errors import LimitExceededError, SynapseError
from synapse.http.site import SynapseRequest

from synapse_rendezvous.clients import DENIED, EXEMPT, UNKNOWN, quota_keys
from synapse_rendezvous.config import RendezvousConfig
from synapse_rendezvous.errors import ClientDenied, CreationForbidden
from synapse_rendezvous.homeserver import Homeserver
from synapse_rendezvous.limits import LimitName
from synapse_rendezvous.observer import Observer
from synapse_rendezvous.rate_limit import Limits

CREATE_PAUSE_S = 0.5
"""How long a refusal to create is held back. Nobody is in the middle of a pairing then."""


class Admission:
    """Lets a request pass, or raises.

    Args:
        homeserver: knows users.
        config: what the operator allows.
        limits: how often a client may create.
        observer: counts refusals.
    """

    def __init__(self, homeserver: Homeserver, config: RendezvousConfig, limits: Limits, observer: Observer) -> None:
        self._homeserver = homeserver
        self._is_enforced = not config.observe
        self._limits = limits
        self._observer = observer
        self._user_creates = homeserver.ratelimiter(LimitName.USER_CREATE, config.per_user.create)

    def check_client(self, client: str, peer: str | None) -> str:
        """Return the client that a request is charged to.

        Args:
            client: as `Clients.client_key` names it.
            peer: the address at the other end of the connection, if it has one.

        Raises:
            ClientDenied: the operator denies this address.
        """
        if client == UNKNOWN:
            self._observer.client_unidentified(peer)
        elif client == DENIED:
            self._observer.request_refused(LimitName.DENY, client)
            if self._is_enforced:
                raise ClientDenied
            return EXEMPT
        return client

    async def check_create(self, request: SynapseRequest, client: str, policy: str, *, verifies_tokens: bool) -> None:
        """Charge a POST to its client and its user.

        Args:
            request: carries the access token, where one is needed.
            client: as `Clients.client_key` names it.
            policy: `open`, `authenticated` or `closed`.
            verifies_tokens: whether an access token must be valid even where none is needed.

        Raises:
            CreationForbidden: creation is closed.
            LimitExceededError: the client or the user has created too often.
            SynapseError: a signed-in user is needed, and the access token is missing (401) or that of a guest (403); or
                an access token is not valid (401), or its account has expired (403).
        """
        is_verified = verifies_tokens and self._homeserver.has_access_token(request)
        if policy == "closed" and not is_verified:
            raise CreationForbidden
        # First all are asked, then all are charged: whoever has no valid token takes nothing from those who share the
        # address. To look a token up may take a while, so the client is asked again when it is charged.
        limit, keys = self._limits.client_create, quota_keys(client)
        has_room = self._limits.check(client, limit, keys, pause_s=CREATE_PAUSE_S)
        if is_verified or policy == "authenticated":
            user = await self._homeserver.user_of(request, allow_guest=policy != "authenticated")
        if policy == "closed":
            raise CreationForbidden
        if policy == "authenticated":
            try:
                await self._user_creates.ratelimit(user, pause=CREATE_PAUSE_S)
            except LimitExceededError as refusal:
                self._limits.enforce(refusal, client)
        if has_room:  # else limits are only observed, and this one was counted
            self._limits.take(client, limit, keys, pause_s=CREATE_PAUSE_S)

    async def may_create(self, request: SynapseRequest, policy: str, *, verifies_tokens: bool) -> bool:
        """Whether the sender of this request may create sessions, apart from limits.

        Args:
            request: carries the access token, if any.
            policy: `open`, `authenticated` or `closed`.
            verifies_tokens: whether an access token must be valid even where none is needed.

        Raises:
            SynapseError: an access token is not valid (401).
        """
        if not self._homeserver.has_access_token(request):
            return policy == "open"
        if verifies_tokens or policy == "authenticated":
            try:
                await self._homeserver.user_of(request, allow_guest=policy != "authenticated")
            except SynapseError as error:
                if error.code != 403:
                    raise
                return False
        return policy != "closed"
