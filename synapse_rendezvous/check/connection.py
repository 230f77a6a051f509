"""Connections: over which addresses, from where, and what they show of the server."""

import ipaddress
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

_MAX_RAW_BYTES = 64 * 1024


@attr.s(auto_attribs=True, frozen=True, slots=True)
class ConnectionAddresses:
    """The addresses of a connection.

    Attributes:
        local: that of this machine.
        peer: that of the server or its proxy.
    """

    local: str
    peer: str


def is_local(address: str) -> bool:
    """Whether an address belongs to this machine or to a private network, not to the internet."""
    return not ipaddress.ip_address(address.partition("%")[0]).is_global


async def resolve(host: str, port: int, family: AddressFamily) -> list[str]:
    """Look up the addresses of a host.

    Raises:
        OSError: there are none.
    """
    found = await deferToThread(socket.getaddrinfo, host, port, family.value, socket.SOCK_STREAM)
    return list(dict.fromkeys(str(entry[4][0]) for entry in found))


@implementer(IAgentEndpointFactory)
class EndpointFactory:
    """Makes the endpoints for requests.

    Args:
        reactor: Twisted's reactor.
        family: the version of IP to use.
        source: the local address to send from; None lets the system choose.

    Attributes:
        family: the version of IP to use.
        last_connection: the addresses of the connection made last; None before the first one.
    """

    def __init__(self, reactor: Any, family: AddressFamily, source: str | None) -> None:
        self.last_connection: ConnectionAddresses | None = None
        self.family = family
        self._reactor = reactor
        self._bind_address = None if source is None else (source, 0)

    def endpointForURI(self, uri: URI) -> "_Endpoint":
        """Called by Twisted for each new connection."""
        return _Endpoint(self, uri.scheme == b"https", uri.host.decode("ascii"), uri.port)

    def endpoint_for_url(self, url: str) -> "_Endpoint":
        """Return the endpoint for a URL."""
        parts = urlsplit(url)
        is_tls = parts.scheme == "https"
        return _Endpoint(self, is_tls, parts.hostname or "", parts.port or (443 if is_tls else 80))

    async def tcp_endpoint(self, host: str, port: int) -> Any:
        """Return the endpoint for a host, over the version of IP to use."""
        if self.family is AddressFamily.ANY:
            return HostnameEndpoint(
                self._reactor, host.encode("ascii"), port, timeout=CONNECT_TIMEOUT_S, bindAddress=self._bind_address
            )
        (address, *_) = await resolve(host, port, self.family)
        endpoint_class = TCP4ClientEndpoint if self.family is AddressFamily.IPV4 else TCP6ClientEndpoint
        return endpoint_class(self._reactor, address, port, timeout=CONNECT_TIMEOUT_S, bindAddress=self._bind_address)


@implementer(IStreamClientEndpoint)
class _Endpoint:
    """Connects, with TLS where the URL says so, and records the addresses."""

    def __init__(self, factory: EndpointFactory, is_tls: bool, host: str, port: int) -> None:
        self._factory = factory
        self._is_tls = is_tls
        self._host = host
        self._port = port

    def connect(self, protocolFactory: Any) -> "Deferred[Any]":  # noqa: N803 (Twisted names it)
        """Connect; see `IStreamClientEndpoint`."""
        return Deferred.fromCoroutine(self._connect(protocolFactory))

    async def _connect(self, protocol_factory: Any) -> Any:
        endpoint = await self._factory.tcp_endpoint(self._host, self._port)
        if self._is_tls:
            endpoint = wrapClientTLS(optionsForClientTLS(self._host), endpoint)
        protocol: Any = await endpoint.connect(protocol_factory)
        transport = protocol.transport
        self._factory.last_connection = ConnectionAddresses(transport.getHost().host, transport.getPeer().host)
        return protocol


@implementer(IHandshakeListener)
class _CertificateProtocol(Protocol):
    """Waits for the server's certificate, and closes the connection."""

    transport: Any

    def __init__(self) -> None:
        self.received: Deferred[crypto.X509] = Deferred()

    def handshakeCompleted(self) -> None:
        self.received.callback(self.transport.getPeerCertificate())
        self.transport.loseConnection()

    def connectionLost(self, reason: Failure = connectionDone) -> None:
        if not self.received.called:
            self.received.errback(reason)


async def fetch_certificate(endpoint: _Endpoint) -> crypto.X509:
    """Return the server's certificate, which TLS has verified.

    Raises:
        OSError: no connection, or the certificate is not valid. Or another of Twisted's errors.
    """
    protocol = await endpoint.connect(Factory.forProtocol(_CertificateProtocol))
    received: crypto.X509 = await protocol.received
    return received


class _RawProtocol(Protocol):
    """Sends bytes, and collects what the server sends until it closes the connection."""

    transport: Any

    def __init__(self, data: bytes) -> None:
        self.received: Deferred[bytes] = Deferred()
        self._data = data
        self._buffer = b""

    def connectionMade(self) -> None:
        self.transport.write(self._data)

    def dataReceived(self, data: bytes) -> None:
        self._buffer += data
        if len(self._buffer) > _MAX_RAW_BYTES:
            self.transport.loseConnection()

    def connectionLost(self, reason: Failure = connectionDone) -> None:
        self.received.callback(self._buffer)


async def send_raw(endpoint: _Endpoint, data: bytes) -> bytes:
    """Send bytes as they are, and return what the server sends until it closes the connection."""
    protocol = await endpoint.connect(Factory.forProtocol(lambda: _RawProtocol(data)))
    received: bytes = await protocol.received
    return received
