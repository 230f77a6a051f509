"""Sends requests as a client does, within bounds, and keeps what was answered as it arrived."""

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
from synapse_rendezvous.check.answer import Answer
from synapse_rendezvous.check.connection import Endpoints, send_raw
from synapse_rendezvous.check.options import AddressFamily
from synapse_rendezvous.check.products import product_of

MAX_REQUESTS = 60
MAX_S = 20.0
TIMEOUT_S = 5.0
"""How long one request may take, unless it is to be held."""

_T = TypeVar("_T")


class OutOfBounds(Exception):
    """The time is over, or there were too many requests."""


class Unanswered(Exception):
    """No answer came, or only part of one.

    Attributes:
        reason: `dns`, `connect`, `tls`, `timeout` or `cut`.
        after_s: how long that took.
    """

    def __init__(self, reason: str, detail: str, after_s: float) -> None:
        super().__init__(detail)
        self.reason = reason
        self.after_s = after_s


class Probe:
    """Sends requests.

    Args:
        reactor: the one that runs.
        family: which addresses are used.
        source: the address to send from; by default whichever suits.
        origin: the origin that a web client would have.

    Attributes:
        requests: how many there were.
        origin: the origin that a web client would have.
        endpoints: how connections are made.
        product: the reverse proxy that an answer showed, if any did.
        reactor: the one that runs.
    """

    def __init__(self, reactor: Any, *, family: AddressFamily, source: str | None, origin: str) -> None:
        self.requests = 0
        self.origin = origin
        self.endpoints = Endpoints(reactor, family, source)
        self.product: str | None = None
        self.reactor = reactor
        self._begun_s = float(reactor.seconds())
        self._pool = HTTPConnectionPool(reactor, persistent=True)
        self._kept = Agent.usingEndpointFactory(reactor, self.endpoints, self._pool)
        self._fresh = Agent.usingEndpointFactory(reactor, self.endpoints)

    @property
    def seconds(self) -> float:
        """How long it has been."""
        return float(self.reactor.seconds()) - self._begun_s

    @property
    def left_s(self) -> float:
        """How much time is left."""
        return MAX_S - self.seconds

    async def ask(
        self,
        method: str,
        url: str,
        fields: Mapping[str, str] | None = None,
        body: bytes | None = None,
        *,
        is_chunked: bool = False,
        is_fresh: bool = False,
        timeout_s: float = TIMEOUT_S,
    ) -> Answer:
        """Send a request and return the answer. Redirects are not followed, and contents not decoded.

        Args:
            method: GET and so on.
            url: absolute.
            fields: header fields.
            body: the content.
            is_chunked: whether it is sent without saying how long it is.
            is_fresh: whether it is sent over a connection of its own.
            timeout_s: when to give up.

        Raises:
            Unanswered: no answer came.
            OutOfBounds: it was not sent, because this would be one too many, or too late.
        """
        self._count()
        headers = Headers({"User-Agent": [f"synapse_rendezvous/{__version__} (check)"], "Origin": [self.origin]})
        for name, value in (fields or {}).items():
            headers.setRawHeaders(name, [value])
        producer = None
        if body is not None:
            producer = FileBodyProducer(io.BytesIO(body))
            if is_chunked:
                producer.length = UNKNOWN_LENGTH
        agent = self._fresh if is_fresh else self._kept
        begun_s = self.seconds

        async def exchange() -> Answer:
            response: Any = await agent.request(method.encode("ascii"), url.encode("ascii"), headers, producer)
            content = b"" if method == "HEAD" else await readBody(response)
            return Answer(response.code, response.headers, content, self.seconds - begun_s)

        answer = await self.within(timeout_s, exchange())
        self.product = answer.product or self.product
        return answer

    async def within(self, timeout_s: float, doing: Coroutine[Any, Any, _T]) -> _T:
        """Do something over the network, and give up after so long, or when all the time is over.

        Raises:
            Unanswered: it failed, or took too long.
            OutOfBounds: all the time is over.
        """
        begun_s = self.seconds
        deferred: Deferred[_T] = Deferred.fromCoroutine(doing)
        deferred.addTimeout(max(0.01, min(timeout_s, self.left_s)), self.reactor)
        try:
            return await deferred
        except Exception as error:
            if self.left_s <= 0:
                raise OutOfBounds from error
            after_s = self.seconds - begun_s
            raise Unanswered(_reason(error), _detail(error, after_s), after_s) from error

    async def identify(self, url: str) -> str | None:
        """Return the reverse proxy before a URL; None if there is none, or it is not known.

        Where no answer has shown it, it is sent what each server refuses by an error of its own: a length that is none,
        and a name of a host that it does not know.
        """
        host = urlsplit(url).netloc.rpartition("@")[2]
        for fields in (f"Host: {host}\r\nContent-Length: x", "Host: unknown.invalid"):
            if self.product is not None or self.left_s <= 0 or self.requests >= MAX_REQUESTS:
                break
            self._count()
            sent = f"GET / HTTP/1.1\r\n{fields}\r\nConnection: close\r\n\r\n".encode("ascii")
            try:
                received = await self.within(2, send_raw(self.endpoints.at(url), sent))
            except (Unanswered, OutOfBounds):
                break
            head, _, page = received.partition(b"\r\n\r\n")
            server = [line for line in head.decode("latin-1").split("\r\n") if line.lower().startswith("server:")]
            self.product = product_of("".join(server), None, page)
        return self.product

    async def close(self) -> None:
        """Close the connections that are kept."""
        await self._pool.closeCachedConnections()

    def _count(self) -> None:
        if self.requests >= MAX_REQUESTS or self.left_s <= 0:
            raise OutOfBounds
        self.requests += 1


def _causes(error: BaseException) -> list[BaseException]:
    """Return what Twisted packed into an error, the error itself first."""
    reasons = getattr(error, "reasons", None) or []
    return [error, *(cause for failure in reasons for cause in _causes(failure.value))]


def _reason(error: Exception) -> str:
    kinds = (
        ("timeout", (TimeoutError, CancelledError)),
        ("tls", SSL.Error),
        ("dns", (DNSLookupError, socket.gaierror, UnicodeError)),
        ("connect", (ConnectError, OSError)),
    )
    causes = _causes(error)
    return next((reason for reason, kind in kinds if any(isinstance(cause, kind) for cause in causes)), "cut")


def _detail(error: Exception, after_s: float) -> str:
    if _reason(error) == "timeout":
        return f"no answer within {after_s:.0f} s"
    cause = _causes(error)[-1]
    if isinstance(cause, SSL.Error) and cause.args and cause.args[0]:
        return "; ".join(str(part[-1]) for part in cause.args[0])
    return " ".join(str(cause).split()) or type(cause).__name__
