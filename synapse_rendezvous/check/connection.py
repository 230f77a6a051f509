"""How connections are made: over which addresses, from where, and what they show of the other end."""

import socket
from typing import Any
from urllib.parse import urlsplit

import attr
from OpenSSL import crypto
from twisted.internet.defer import Deferred
from twisted.internet.endpoints import HostnameEndpoint, TCP4ClientEndpoint, TCP6ClientEndpoint, wrapClientTLS
from twisted.internet.interfaces import IHandshakeListener, IStreamClientEndpoint
from twisted.internet.protocol import Factory, Protocol, connectionDone
from twisted.internet.ssl import optionsForClientTLS
from twisted.internet.threads import deferToThread
from twisted.python.failure import Failure
from twisted.web.client import URI
from twisted.web.iweb import IAgentEndpointFactory
from zope.interface import implementer  # type: ignore[import-untyped]

from synapse_rendezvous.check.options import AddressFamily

CONNECT_TIMEOUT_S = 5.0


@attr.s(auto_attribs=True, frozen=True, slots=True)
class Ends:
    """The two ends of a connection.

    Attributes:
        local: our address.
        peer: the other's.
    """

    local: str
    peer: str


async def addresses(host: str, port: int, family: AddressFamily) -> list[str]:
    """Look up the addresses of a host.

    Raises:
        OSError: there are none.
    """
    found = await deferToThread(socket.getaddrinfo, host, port, family.value, socket.SOCK_STREAM)
    return list(dict.fromkeys(str(entry[4][0]) for entry in found))


@implementer(IAgentEndpointFactory)
class Endpoints:
    """Makes the endpoints for requests.

    Args:
        reactor: the one that runs.
        family: which addresses are used.
        source: the address to send from; by default whichever suits.

    Attributes:
        ends: of the connection made last; None if there was none.
    """

    def __init__(self, reactor: Any, family: AddressFamily, source: str | None) -> None:
        self.ends: Ends | None = None
        self.family = family
        self._reactor = reactor
        self._bind = None if source is None else (source, 0)

    def endpointForURI(self, uri: URI) -> "_Endpoint":
        """Called by Twisted for each new connection."""
        return _Endpoint(self, uri.scheme == b"https", uri.host.decode("ascii"), uri.port)

    def at(self, url: str) -> "_Endpoint":
        """Return the endpoint for a URL."""
        parts = urlsplit(url)
        is_tls = parts.scheme == "https"
        return _Endpoint(self, is_tls, parts.hostname or "", parts.port or (443 if is_tls else 80))

    async def resolved(self, host: str, port: int) -> Any:
        """Return the endpoint for a host, on an address of the family that is wanted."""
        if self.family is AddressFamily.ANY:
            return HostnameEndpoint(
                self._reactor, host.encode("ascii"), port, timeout=CONNECT_TIMEOUT_S, bindAddress=self._bind
            )
        (address, *_) = await addresses(host, port, self.family)
        kind = TCP4ClientEndpoint if self.family is AddressFamily.IPV4 else TCP6ClientEndpoint
        return kind(self._reactor, address, port, timeout=CONNECT_TIMEOUT_S, bindAddress=self._bind)


@implementer(IStreamClientEndpoint)
class _Endpoint:
    """Connects, with TLS where the URL says so, and remembers the ends."""

    def __init__(self, endpoints: Endpoints, is_tls: bool, host: str, port: int) -> None:
        self._endpoints = endpoints
        self._is_tls = is_tls
        self._host = host
        self._port = port

    def connect(self, protocolFactory: Any) -> "Deferred[Any]":  # noqa: N803 (Twisted names it)
        """Connect; see `IStreamClientEndpoint`."""
        return Deferred.fromCoroutine(self._connect(protocolFactory))

    async def _connect(self, factory: Any) -> Any:
        endpoint = await self._endpoints.resolved(self._host, self._port)
        if self._is_tls:
            endpoint = wrapClientTLS(optionsForClientTLS(self._host), endpoint)
        protocol: Any = await endpoint.connect(factory)
        transport = protocol.transport
        self._endpoints.ends = Ends(transport.getHost().host, transport.getPeer().host)
        return protocol


@implementer(IHandshakeListener)
class _Certificate(Protocol):
    """Waits for the other end's certificate."""

    transport: Any

    def __init__(self) -> None:
        self.received: Deferred[crypto.X509] = Deferred()

    def handshakeCompleted(self) -> None:
        self.received.callback(self.transport.getPeerCertificate())
        self.transport.loseConnection()

    def connectionLost(self, reason: Failure = connectionDone) -> None:
        if not self.received.called:
            self.received.errback(reason)


async def certificate(endpoint: _Endpoint) -> crypto.X509:
    """Return the certificate of the other end, which TLS has verified.

    Raises:
        OSError: no connection, or the other end's certificate is not valid. Or another of Twisted's errors.
    """
    protocol = await endpoint.connect(Factory.forProtocol(_Certificate))
    received: crypto.X509 = await protocol.received
    return received


class _Raw(Protocol):
    """Sends bytes, and keeps what comes until the connection is closed."""

    transport: Any

    def __init__(self, sent: bytes) -> None:
        self.ended: Deferred[bytes] = Deferred()
        self._sent = sent
        self._received = b""

    def connectionMade(self) -> None:
        self.transport.write(self._sent)

    def dataReceived(self, data: bytes) -> None:
        self._received += data
        if len(self._received) > 64 * 1024:
            self.transport.loseConnection()

    def connectionLost(self, reason: Failure = connectionDone) -> None:
        self.ended.callback(self._received)


async def send_raw(endpoint: _Endpoint, sent: bytes) -> bytes:
    """Send bytes as they are, and return what comes until the other end closes the connection."""
    protocol = await endpoint.connect(Factory.forProtocol(lambda: _Raw(sent)))
    received: bytes = await protocol.ended
    return received
