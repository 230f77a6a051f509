"""The only door to what Synapse has and its ModuleApi does not offer."""

import re
from collections.abc import Callable, Sequence
from typing import Any, Protocol, cast

from synapse.api.auth.base import BaseAuth as Auth
from synapse.api.ratelimiting import Ratelimiter
from synapse.config.ratelimiting import RatelimitSettings
from synapse.config.server import TCPListenerConfig
from synapse.http.site import SynapseRequest
from synapse.module_api import ModuleApi, Requester
from synapse.module_api.errors import ConfigError
from twisted.internet.defer import Deferred
from twisted.internet.task import deferLater

from synapse_rendezvous.clock import MonotonicClock
from synapse_rendezvous.config import RateLimit
from synapse_rendezvous.limits import LimitName
from synapse_rendezvous.paths import CLIENT_API_PREFIX, ETAG_PREFIX

OLDEST_SYNAPSE = (1, 140)

REDIS_RECONNECT_S = 1
"""How long the connection to Redis waits at most before it tries again to connect."""

LIMITER_PREFIX = "synapse_rendezvous."
"""What the names of limiters begin with; Synapse tells them to modules that override limits of users."""

LAST_ANSWERS_S = 0.2
"""How long the process lives on after a signal to end, so that held requests are still answered."""


def require_supported(version: str) -> None:
    """Refuse a Synapse that is older than what this package is made for.

    Args:
        version: as in `synapse.__version__`, for example `1.163.2`.

    Raises:
        ConfigError: it is too old.
    """
    numbers = re.match(r"(\d+)\.(\d+)", version)
    if numbers and (int(numbers[1]), int(numbers[2])) < OLDEST_SYNAPSE:
        oldest = ".".join(map(str, OLDEST_SYNAPSE))
        raise ConfigError(f"synapse_rendezvous needs Synapse {oldest} or newer; this is {version}. Upgrade Synapse.")


class RedisConnection(Protocol):
    """What is needed of Synapse's connection to Redis (txredisapi)."""

    def eval(self, script: str, keys: Sequence[str], args: Sequence[bytes | int]) -> Deferred[Any]:
        """Run a script: by its hash, and by its text where Redis does not know it."""


class DelayedCall(Protocol):
    """A scheduled call, as the reactor's `callLater` returns it (twisted.internet.interfaces.IDelayedCall)."""

    def cancel(self) -> None:
        """Cancel it."""

    def active(self) -> bool:
        """Whether it is still scheduled."""


class Homeserver:
    """The parts of a homeserver that rendezvous needs.

    Args:
        api: the one that Synapse hands to the module.

    Attributes:
        clock: Synapse's clock.
        reactor: the one that Synapse runs on.
        has_redis: whether Redis is enabled in homeserver.yaml.
        has_workers: whether several processes serve this homeserver.
        delegates_authentication: whether people sign in at another server, as they must for sign-in by QR code.
        experimental: the `experimental_features` of homeserver.yaml.
        has_msc4108: whether homeserver.yaml names a server for MSC4108, Synapse's own or another.
        has_msc4388: whether Synapse's own server for MSC4388 is on.
    """

    def __init__(self, api: ModuleApi) -> None:
        self._api = api
        self._hs = api._hs
        self.clock = self._hs.get_clock()
        self.reactor: Any = self._hs.get_reactor()
        self.has_redis: bool = self._hs.config.redis.redis_enabled
        workers = self._hs.config.worker
        self.has_workers = bool(workers.worker_app or workers.instance_map)
        self.experimental: Any = self._hs.config.experimental
        self.delegates_authentication = bool(
            self._hs.config.mas.enabled
            or getattr(getattr(self.experimental, "msc3861", None), "enabled", False)  # how older releases had it
        )
        self.has_msc4108 = bool(
            getattr(self.experimental, "msc4108_enabled", False)
            or getattr(self.experimental, "msc4108_delegation_endpoint", None)
        )
        self.has_msc4388 = bool(getattr(self.experimental, "msc4388_enabled", False))

    def redis(self) -> RedisConnection:
        """Return Synapse's own connection to Redis, which follows all that homeserver.yaml says of it."""
        connection: Any = self._hs.get_outbound_redis_connection()
        # Each time that it breaks, it waits longer before it connects again, up to ten seconds, and never less again.
        connection._factory.maxDelay = REDIS_RECONNECT_S
        return connection  # type: ignore[no-any-return]

    def subscribe(self, channel: str, received: Callable[[str], None], subscribed: Callable[[], None]) -> None:
        """Listen to a channel of Redis; see `subscription.subscribe`."""
        from synapse_rendezvous.redis.subscription import (
            subscribe,  # what it needs is there only where Synapse has Redis
        )

        subscribe(self._hs, channel, received, subscribed)

    def call_later(self, ms: float, function: Callable[[], None]) -> DelayedCall:
        """Call a function after so many milliseconds, outside of any log context."""
        # By the reactor, because a background process for each would cost more than the wait that it ends.
        return self.reactor.callLater(ms / 1000, function)  # type: ignore[no-any-return]

    def before_shutdown(self, function: Callable[[], None]) -> None:
        """Call a function when the process is about to end, and leave time to send the answers it causes."""

        def last() -> Deferred[None]:
            function()
            return deferLater(self.reactor, LAST_ANSWERS_S)

        self.reactor.addSystemEventTrigger("before", "shutdown", last)

    def port(self) -> int | None:
        """Return a port on which this process serves clients; None if it has none, but for example a unix socket."""
        ports = {
            any("client" in resource.names for resource in listener.http_options.resources): listener.port
            for listener in reversed(self._listeners())
            if listener.http_options is not None and isinstance(listener, TCPListenerConfig)
        }
        return ports.get(True, ports.get(False))

    @property
    def compresses_for_clients(self) -> bool:
        """Whether a listener of this process compresses what Synapse's resource for clients answers.

        If it does, and something is mounted below that resource, Synapse does not start.
        """
        return any(
            resource.compress and "client" in resource.names
            for listener in self._listeners()
            if listener.http_options is not None
            for resource in listener.http_options.resources
        )

    def set_attribute(self, name: str, value: object) -> None:
        """Let Synapse's homeserver have an attribute, which lives as long as it does."""
        setattr(self._hs, name, value)

    def _listeners(self) -> Sequence[Any]:
        config = self._hs.config
        listeners: Sequence[Any] = (
            config.worker.worker_listeners if config.worker.worker_app else config.server.listeners
        )
        return listeners

    def ratelimiter(self, name: LimitName, rate: RateLimit) -> Ratelimiter:
        """Return a new limiter of Synapse's, on monotonic time; make each once, because it prunes itself for ever."""
        ratelimiter = Ratelimiter(
            store=self._hs.get_datastores().main,
            clock=self.clock,
            cfg=RatelimitSettings(
                key=LIMITER_PREFIX + name.value, per_second=rate.per_second, burst_count=rate.burst_count
            ),
        )
        # By a clock that was set back, it would refuse everybody it knows until the time before is reached again.
        ratelimiter.clock = cast(Any, MonotonicClock())
        return ratelimiter

    @staticmethod
    def has_access_token(request: SynapseRequest) -> bool:
        """Whether a request carries an access token, valid or not."""
        return Auth.has_access_token(request)

    async def user_of(self, request: SynapseRequest, *, allow_guest: bool = False) -> Requester:
        """Return who sent a request; ask once a request at most.

        Raises:
            SynapseError: there is no access token (401), or none that is valid (401, also if its user is locked), or
                that of a guest or of an account that has expired (403).
        """
        return await self._api.get_user_by_req(request, allow_guest=allow_guest)

    def refuse_conflicts(self, path: str) -> None:
        """Refuse to mount at a path that something else serves, which Synapse would let happen unnoticed.

        Raises:
            ConfigError: Synapse's own MSC4108 server is on, half of which our resource would replace; or another
                module, which comes first, has the path; or Synapse would not start with something at this path.
        """
        if path.startswith(CLIENT_API_PREFIX) and self.compresses_for_clients:
            raise ConfigError(
                f"synapse_rendezvous cannot be mounted at {path} while a listener has `compress: true` for `client`."
                " Leave the path of the dialect at its default; client_paths serves clients below /_matrix/client.",
                ("modules",),
            )
        # It is a leaf: what is mounted below it is never reached.
        if f"{path}/".startswith(f"{ETAG_PREFIX}/") and getattr(self.experimental, "msc4108_enabled", False):
            raise ConfigError(
                "Synapse's own rendezvous server is switched on at the path of synapse_rendezvous. Remove"
                " experimental_features.msc4108_enabled, or remove synapse_rendezvous from modules.",
                ("experimental_features", "msc4108_enabled"),
            )
        if path in self._hs._module_web_resources:
            raise ConfigError(
                f"Another module serves {path} already. Leave only one rendezvous module in modules.", ("modules",)
            )
