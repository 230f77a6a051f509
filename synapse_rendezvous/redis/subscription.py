"""A connection of our own to Redis, on which it tells what other processes have done."""

import inspect
import logging
from collections.abc import Callable
from typing import Any

import txredisapi
from synapse.replication.tcp.context import ClientContextFactory
from synapse.replication.tcp.redis import SynapseRedisFactory
from twisted.internet.defer import Deferred
from twisted.python.failure import Failure

logger = logging.getLogger(__name__)

RETRY_S = 60
"""How long after Redis refused the subscription it is asked again."""


class _Subscriber(txredisapi.SubscriberProtocol):  # type: ignore[misc]
    factory: "_SubscriberFactory"

    def connectionMade(self) -> Deferred[None]:
        """Subscribe, each time anew; called by Twisted."""
        connected: Deferred[None] = super().connectionMade()  # writes user, password and database first
        channel = self.factory.channel
        self.subscribe([channel]).addCallbacks(self._subscribed, self._failed)
        return connected

    def messageReceived(self, _pattern: None, _channel: str, message: str) -> None:
        """Pass a message on; called by txredisapi."""
        self.factory.received(message)

    def _subscribed(self, _answer: Any) -> None:
        self.factory.subscribed()

    def _failed(self, failure: Failure) -> None:
        if not failure.check(txredisapi.ConnectionError):  # of which Synapse's factory tells
            logger.warning(
                "Redis does not let Synapse subscribe to %s, so other processes cannot wake requests held here: %s",
                self.factory.channel,
                failure.value,
            )
            self.factory.call_later(RETRY_S, self.transport.loseConnection)  # to try it on another one


class _SubscriberFactory(SynapseRedisFactory):
    protocol = _Subscriber
    maxDelay = 1
    """How many seconds may pass between two attempts to connect."""

    def __init__(
        self, hs: Any, channel: str, received: Callable[[str], None], subscribed: Callable[[], None], **options: Any
    ) -> None:
        super().__init__(
            hs,
            uuid="synapse_rendezvous",
            dbid=None,  # channels belong to no database
            poolsize=1,
            convertNumbers=False,
            **options,
        )
        self.channel = channel
        self.call_later = hs.get_reactor().callLater
        self.received = received
        self.subscribed = subscribed


def subscribe(hs: Any, channel: str, received: Callable[[str], None], subscribed: Callable[[], None]) -> None:
    """Subscribe to a channel, for as long as the process lives, over a connection that comes back by itself.

    Args:
        hs: Synapse's homeserver, whose options for Redis are followed.
        channel: its name.
        received: is given each message.
        subscribed: is called when messages begin to come, and again when they do after an interruption; what was sent
            before is lost.
    """
    config = hs.config.redis
    options = {"password": config.redis_password}
    if "username" in inspect.signature(SynapseRedisFactory.__init__).parameters:  # Synapse 1.162 and newer
        options["username"] = config.redis_username
    factory = _SubscriberFactory(hs, channel, received, subscribed, **options)
    reactor = hs.get_reactor()
    if config.redis_path is not None:
        reactor.connectUNIX(config.redis_path, factory, timeout=30, checkPID=False)
    elif config.redis_use_tls:
        reactor.connectSSL(
            config.redis_host, config.redis_port, factory, ClientContextFactory(config), timeout=30, bindAddress=None
        )
    else:
        reactor.connectTCP(config.redis_host, config.redis_port, factory, timeout=30, bindAddress=None)
