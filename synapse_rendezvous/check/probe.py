"""Sends requests as a client does, within a budget of time and requests, and returns responses as they arrived."""

import io
import socket
from collections.abc import Coroutine, Mapping
from typing import Any, TypeVar
from urllib.parse import urlsplit

from OpenSSL import SSL
from twisted.internet.defer import CancelledError, Deferred, TimeoutError
from twisted.internet.error import ConnectError, DNSLookupError
from twisted.web.client import Agent, FileBodyProducer, HTTPConnectionPool, readBody
from twisted.web.http_headers import Headers
from twisted.web.iweb import UNKNOWN_LENGTH

from synapse_rendezvous import __version__
from synapse_rendezvous.check.connection import EndpointFactory, send_raw
from synapse_rendezvous.check.options import AddressFamily
from synapse_rendezvous.check.products import identify_product
from synapse_rendezvous.check.response import NoResponse, Response

MAX_REQUESTS = 60
MAX_DURATION_S = 20.0
REQUEST_TIMEOUT_S = 5.0
"""How long a request may take, unless it is a long poll."""

_T = TypeVar("_T")


class BudgetExceeded(Exception):
    """The time is over, or there were too many requests."""


class Probe:
    """Sends requests.

    Args:
        reactor: Twisted's reactor.
        family: the version of IP to use.
        source: the local address to send from; None lets the system choose.
        origin: the origin that a web client would have.

    Attributes:
        request_count: how many requests were sent.
        origin: the origin that a web client would have.
        endpoints: makes the connections.
        product: the reverse proxy, once a response has shown it.
        reactor: Twisted's reactor.
    """

    def __init__(self, reactor: Any, *, family: AddressFamily, source: str | None, origin: str) -> None:
        self.request_count = 0
        self.origin = origin
        self.endpoints = EndpointFactory(reactor, family, source)
        self.product: str | None = None
        self.reactor = reactor
        self._started_s = float(reactor.seconds())
        self._pool = HTTPConnectionPool(reactor, persistent=True)
        self._pooled_agent = Agent.usingEndpointFactory(reactor, self.endpoints, self._pool)
        self._unpooled_agent = Agent.usingEndpointFactory(reactor, self.endpoints)

    @property
    def elapsed_s(self) -> float:
        """The time since the start of the check."""
        return float(self.reactor.seconds()) - self._started_s

    @property
    def remaining_s(self) -> float:
        """The time until the end of the check."""
        return MAX_DURATION_S - self.elapsed_s

    async def request(
        self,
        method: str,
        url: str,
        fields: Mapping[str, str] | None = None,
        body: bytes | None = None,
        *,
        is_chunked: bool = False,
        is_new_connection: bool = False,
        timeout_s: float = REQUEST_TIMEOUT_S,
    ) -> Response:
        """Send a request and return the response. Redirects are not followed, and content is not decoded.

        Args:
            method: GET and so on.
            url: absolute.
            fields: header fields.
            body: the content.
            is_chunked: whether to send the content without a Content-Length.
            is_new_connection: whether to open a connection for this request alone.
            timeout_s: when to give up.

        Raises:
            NoResponse: no response came.
            BudgetExceeded: the request was not sent, or the time ended before the response came.
        """
        self._count_request()
        headers = Headers({"User-Agent": [f"synapse_rendezvous/{__version__} (check)"], "Origin": [self.origin]})
        for name, value in (fields or {}).items():
            headers.setRawHeaders(name, [value])
        producer = None
        if body is not None:
            producer = FileBodyProducer(io.BytesIO(body))
            if is_chunked:
                producer.length = UNKNOWN_LENGTH
        agent = self._unpooled_agent if is_new_connection else self._pooled_agent
        started_s = self.elapsed_s

        async def exchange() -> Response:
            received: Any = await agent.request(method.encode("ascii"), url.encode("ascii"), headers, producer)
            content = b"" if method == "HEAD" else await readBody(received)
            return Response(received.code, received.headers, content, self.elapsed_s - started_s)

        response = await self.with_timeout(timeout_s, exchange())
        self.product = response.product or self.product
        return response

    async def with_timeout(self, timeout_s: float, exchange: Coroutine[Any, Any, _T]) -> _T:
        """Await an exchange over the network; give up at its timeout or at the end of the check.

        Raises:
            NoResponse: it failed, or took too long.
            BudgetExceeded: the time of the check is over.
        """
        started_s = self.elapsed_s
        deferred: Deferred[_T] = Deferred.fromCoroutine(exchange)
        deferred.addTimeout(max(0.01, min(timeout_s, self.remaining_s)), self.reactor)
        try:
            return await deferred
        except Exception as error:
            if self.remaining_s <= 0:
                raise BudgetExceeded from error
            after_s = self.elapsed_s - started_s
            raise NoResponse(_reason(error), _detail(error, after_s), after_s) from error

    async def identify_proxy(self, url: str) -> str | None:
        """Return the reverse proxy in front of a URL; None if there is none, or if it cannot be identified.

        If no response has shown it so far, this sends requests that each server refuses with an error page of its own:
        one with an invalid Content-Length, and one for an unknown host.
        """
        host = urlsplit(url).netloc.rpartition("@")[2]
        for fields in (f"Host: {host}\r\nContent-Length: x", "Host: unknown.invalid"):
            if self.product is not None or self.remaining_s <= 0 or self.request_count >= MAX_REQUESTS:
                break
            self._count_request()
            request = f"GET / HTTP/1.1\r\n{fields}\r\nConnection: close\r\n\r\n".encode("ascii")
            try:
                received = await self.with_timeout(2, send_raw(self.endpoints.endpoint_for_url(url), request))
            except (NoResponse, BudgetExceeded):
                break
            head, _, page = received.partition(b"\r\n\r\n")
            server = [line for line in head.decode("latin-1").split("\r\n") if line.lower().startswith("server:")]
            self.product = identify_product("".join(server), None, page)
        return self.product

    async def close(self) -> None:
        """Close the pooled connections."""
        await self._pool.closeCachedConnections()

    def _count_request(self) -> None:
        if self.request_count >= MAX_REQUESTS or self.remaining_s <= 0:
            raise BudgetExceeded
        self.request_count += 1


def _causes(error: BaseException) -> list[BaseException]:
    """Return an error and, after it, the errors that Twisted wrapped in it."""
    reasons = getattr(error, "reasons", None) or []
    return [error, *(cause for failure in reasons for cause in _causes(failure.value))]


def _reason(error: Exception) -> str:
    reasons = (
        ("timeout", (TimeoutError, CancelledError)),
        ("tls", SSL.Error),
        ("dns", (DNSLookupError, socket.gaierror, UnicodeError)),
        ("connect", (ConnectError, OSError)),
    )
    causes = _causes(error)
    return next((reason for reason, types in reasons if any(isinstance(cause, types) for cause in causes)), "cut")


def _detail(error: Exception, after_s: float) -> str:
    if _reason(error) == "timeout":
        return f"no answer within {after_s:.0f} s"
    cause = _causes(error)[-1]
    if isinstance(cause, SSL.Error) and cause.args and cause.args[0]:
        return "; ".join(str(part[-1]) for part in cause.args[0])
    return " ".join(str(cause).split()) or type(cause).__name__
