"""A client of a rendezvous server: a mailbox in which two devices leave each other a message, for a few minutes.

Copy this file; it needs treq and nothing else. It speaks MSC3886 and MSC4108, to any server, and MSC4388 in its newest
text; the server's answer to a GET of the collection tells which:

    here = await Rendezvous.create("https://matrix.example.com/_synapse/client/rendezvous", b"hello")
    show(here.url)  # as a QR code
    answer = await here.receive()

    there = await Rendezvous.join(scanned_url)  # on the other device
    hello = await there.receive()
    await there.send(b"it is me")

What a client must know:

- There is one payload at a time. Who writes replaces it, so take turns, or write all that the other has not read yet.
- Each write names the revision that it follows (If-Match, or sequence_token). If the other device wrote in between, it
  is refused (Conflict): receive, then send again.
- The server, and whoever knows the URL, can read and replace payloads. Encrypt, and compare a code by eye.
- The life of a session is fixed at its creation; writing does not prolong it.
- MSC4388 carries text: payloads must then be UTF-8.

`python rendezvous.py URL` lets two devices meet at a server.
"""

import json
import re
import secrets
import sys
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import dataclass, field, replace
from datetime import datetime, timedelta, timezone
from email.utils import parsedate_to_datetime
from typing import Any, NamedTuple, Protocol
from urllib.parse import urlencode, urljoin

import treq
from twisted.internet import reactor as _reactor
from twisted.internet.defer import CancelledError, DeferredLock, ensureDeferred
from twisted.internet.error import ConnectError, DNSLookupError
from twisted.internet.task import deferLater, react
from twisted.web.client import HTTPConnectionPool, RequestTransmissionFailed, ResponseFailed
from twisted.web.http_headers import Headers

POLL_S = 1.0  # between two questions, where the server does not wait
PAUSES_S = (1, 2, 4)  # before a request whose answer is lost is sent again
PATIENCE_S = 20.0  # for an answer, beyond the time that the server was asked to wait
PASSING = (502, 503, 504)  # the server, or a proxy before it, is in trouble that may pass

reactor: Any = _reactor


class Conflict(Exception):
    """The other device has written since this one read: receive, then send again."""


class Ended(Exception):
    """The session is over: its time is up, or a device ended it."""


class Refused(Exception):
    """The server does not want to: `status` says why; `retry_after`, unless 0, in how many seconds it might."""

    def __init__(self, message: str, status: int, retry_after: int) -> None:
        super().__init__(message)
        self.status = status
        self.retry_after = retry_after


class Unreachable(Exception):
    """No answer came, not even to the last repetition."""


Fields = Mapping[str, str]
TEXT: Fields = {"Content-Type": "text/plain"}
JSON: Fields = {"Content-Type": "application/json"}


class Answer(NamedTuple):
    """An answer, with the names of its header fields in lower case."""

    status: int
    fields: Fields
    content: bytes

    @property
    def retry_after(self) -> int:
        """In how many seconds to ask again; 0 if it does not say."""
        value = self.fields.get("retry-after", "")
        return int(value) if value.isdecimal() else 0

    @property
    def reason(self) -> str:
        """What an error says, for a person."""
        with suppress(ValueError, KeyError, TypeError):  # a proxy's errors may be anything
            return str(json.loads(self.content)["error"])
        return f"The server answers {self.status}."


@dataclass
class Request:
    """What is sent, whatever the method; `is_lost` once an answer was lost: then it may have taken place."""

    url: str
    content: bytes | None = None
    fields: Fields = field(default_factory=dict)
    is_lost: bool = False


class Revision(NamedTuple):
    """What an answer says of the payload: the tag that stands for it, when the session ends, and the payload itself."""

    tag: str
    expires: datetime | None
    payload: bytes


class Dialect(Protocol):
    """How a protocol words its requests and answers."""

    def post(self, collection_url: str, payload: bytes) -> Request:
        """Create a session."""

    def session_url(self, collection_url: str, created: Answer) -> str:
        """Return where the session is that was created."""

    def put(self, url: str, tag: str, payload: bytes) -> Request:
        """Replace the payload. The same request, sent again, is answered as the first was."""

    def get(self, url: str, tag: str | None, wait_ms: int) -> Request:
        """Read the payload; wait for another one if it is the one with this tag."""

    def revision(self, answer: Answer) -> Revision:
        """Return what a success says of the payload."""


class _Tags:
    """MSC3886 and MSC4108: a payload is the content as it is, and has an ETag."""

    def post(self, collection_url: str, payload: bytes) -> Request:
        return Request(collection_url, payload, TEXT)

    def session_url(self, collection_url: str, created: Answer) -> str:
        return urljoin(collection_url, str(json.loads(created.content).get("url") or created.fields["location"]))

    def put(self, url: str, tag: str, payload: bytes) -> Request:
        return Request(url, payload, {**TEXT, "If-Match": tag})

    def get(self, url: str, tag: str | None, wait_ms: int) -> Request:
        if tag is None:
            return Request(url)
        return Request(f"{url}?timeout={wait_ms}" if wait_ms else url, None, {"If-None-Match": tag})

    def revision(self, answer: Answer) -> Revision:
        tag, expires = answer.fields.get("etag", ""), answer.fields.get("expires")
        return Revision(tag, parsedate_to_datetime(expires) if expires else None, answer.content)


class _Tokens:
    """MSC4388: a payload is text in JSON, and has a `sequence_token`; each write has a transaction id."""

    def post(self, collection_url: str, payload: bytes) -> Request:
        return Request(collection_url, json.dumps({"data": payload.decode()}).encode(), JSON)

    def session_url(self, collection_url: str, created: Answer) -> str:
        return f"{collection_url.rstrip('/')}/{json.loads(created.content)['id']}"

    def put(self, url: str, tag: str, payload: bytes) -> Request:
        content = json.dumps({"sequence_token": tag, "data": payload.decode()}).encode()
        return Request(f"{url}/{secrets.token_urlsafe(16)}", content, JSON)

    def get(self, url: str, tag: str | None, wait_ms: int) -> Request:
        if tag is None:
            return Request(url)
        return Request(f"{url}?{urlencode({'sequence_token': tag, 'timeout': wait_ms})}")

    def revision(self, answer: Answer) -> Revision:
        state = json.loads(answer.content)
        left_ms = state.get("expires_in_ms")
        expires = None if left_ms is None else datetime.now(timezone.utc) + timedelta(milliseconds=left_ms)
        return Revision(state["sequence_token"], expires, state.get("data", "").encode())


def _opaque(tag: str) -> str:
    """Return a tag without what proxies that compress add to it: W/"abc" or "abc-gzip" is still the revision "abc"."""
    return re.sub(r'^W/|"|[-;]+(gzip|br|zstd|deflate)(?="?$)', "", tag)


class Rendezvous:
    """A session, as one device sees it. Use `create` or `join`.

    Attributes:
        url: all that the other device needs.
        expires: when the session ends, by the server's clock. To be shown: only the server knows when it is over.
    """

    def __init__(self, url: str = "", pool: HTTPConnectionPool | None = None) -> None:
        self.url = url
        self.expires: datetime | None = None
        self._pool = pool
        self._dialect: Dialect = _Tags()
        self._tag: str | None = None  # of the last revision read or written here
        self._seen: set[str] = set()  # those of all of them, each without what proxies add
        self._max_wait_ms = 0
        self._sending = DeferredLock()
        self._unsettled: tuple[bytes, Request] | None = None  # the write of which nobody knows whether it took place

    @classmethod
    async def create(cls, collection_url: str, payload: bytes, pool: HTTPConnectionPool | None = None) -> "Rendezvous":
        """Make a session that holds a first payload.

        Raises:
            Refused: 429: too many, or the server is full; 401, 403: not for everybody; 413: the payload is too long.
            Unreachable: no answer came.
        """
        session = cls(pool=pool)
        await session._discover(collection_url)
        # Where the answer is lost, it is sent again. The first session, if there is one, ends unused.
        answer = await session._request("POST", session._dialect.post(collection_url, payload))
        session.url = session._dialect.session_url(collection_url, answer)
        session._see(session._dialect.revision(answer))
        if session._collection_url != collection_url.rstrip("/"):  # a homeserver has sent us on
            await session._discover(session._collection_url)
        return session

    @classmethod
    async def join(cls, session_url: str, pool: HTTPConnectionPool | None = None) -> "Rendezvous":
        """Join a session that another device made; `receive` then returns its payload at once.

        Raises:
            Refused: 429: too often; 502 to 504: the server is in trouble.
            Unreachable: no answer came.
        """
        session = cls(session_url, pool)
        await session._discover(session._collection_url)
        return session

    async def send(self, payload: bytes) -> None:
        """Replace the payload. One that was left without an answer before goes first.

        Raises:
            Conflict: the other device wrote first. It may still have read this payload: where the answer was lost, it
                was sent again.
            Ended: the session is over.
            Refused: 429: too often, or too much; 413: too long.
            Unreachable: no answer came. It may have arrived all the same; sent again, it arrives once.
        """
        async with self._sending:
            if self._tag is None:
                raise RuntimeError("Receive before you send: a write names the revision that it follows.")
            if self._unsettled and self._unsettled[0] != payload:
                await self._write(*self._unsettled)
            await self._write(*self._unsettled or (payload, self._dialect.put(self.url, self._tag, payload)))

    async def receive(self) -> bytes:
        """Wait for the next payload of the other device, however long. To give up, cancel the Deferred.

        Raises:
            Ended: the session is over.
            Refused: the server does not want to.
            Unreachable: no answer came. To go on later, receive again.
        """
        while True:
            started_s = reactor.seconds()
            known = self._tag
            wait_ms = 0 if known is None else self._max_wait_ms
            try:
                answer = await self._request("GET", self._dialect.get(self.url, known, wait_ms), wait_ms)
                revision = self._dialect.revision(answer)
                # What ended the waiting may be a write of our own, whose tag we get only when its answer is there.
                async with self._sending:
                    if self._unsettled and self._is_news(answer, revision):
                        with suppress(Conflict):
                            await self._write(*self._unsettled)
                    if self._is_news(answer, revision):
                        self._see(revision)
                        return revision.payload
            except Refused as refusal:
                if refusal.status != 429:
                    raise
                await deferLater(reactor, refusal.retry_after or POLL_S)
                continue
            # A server that does not wait, or has no place for it, answers at once.
            if answer.status == 304 or _opaque(revision.tag) == _opaque(known or ""):
                await deferLater(reactor, max(0, started_s + POLL_S - reactor.seconds()))

    async def cancel(self) -> None:
        """End the session, for both devices. What waits in `receive` raises `Ended`.

        Raises:
            Refused: 429: too often.
            Unreachable: no answer came.
        """
        with suppress(Ended):
            await self._request("DELETE", Request(self.url))

    @property
    def _collection_url(self) -> str:
        return self.url.rpartition("/")[0]

    async def _write(self, payload: bytes, request: Request) -> None:
        """Send a PUT. If no answer decides what became of it, it is to be sent again, as it is, before any other."""
        self._unsettled = payload, request
        try:
            answer = await self._request("PUT", request)
        except (CancelledError, Unreachable):
            raise
        except Exception as error:
            is_decided = not isinstance(error, Refused) or error.status not in (429, *PASSING)
            if is_decided or not request.is_lost:
                self._unsettled = None
            raise
        self._unsettled = None
        self._see(self._dialect.revision(answer))

    def _is_news(self, answer: Answer, revision: Revision) -> bool:
        return answer.status == 200 and _opaque(revision.tag) not in self._seen

    def _see(self, revision: Revision) -> None:
        self._tag = revision.tag
        self._seen.add(_opaque(revision.tag))
        self.expires = revision.expires or self.expires

    async def _discover(self, collection_url: str) -> None:
        """Learn which protocol the server speaks there, and how long a GET may wait."""
        try:
            offer = json.loads((await self._request("GET", Request(collection_url))).content)
            self._max_wait_ms = offer.get("max_wait_ms", 0)
            if "create_available" in offer:
                self._dialect = _Tokens()
        except (ValueError, AttributeError):
            pass  # another server, which does not say
        except Refused as refusal:
            if refusal.status in (429, *PASSING):  # later it may say
                raise

    async def _request(self, method: str, request: Request, wait_ms: int = 0) -> Answer:
        """Send a request, again where its answer is lost, and return the answer if it is a success."""
        answer, retry_after = None, 0
        for pause_s in (0, *PAUSES_S):
            await deferLater(reactor, retry_after or pause_s)
            answer = await self._exchange(method, request, wait_ms)
            if answer and answer.status in (307, 308):  # from Synapse's own path to where it delegates
                url = urljoin(request.url, answer.fields["location"])
                answer = await self._exchange(method, replace(request, url=url), wait_ms)
            if answer and answer.status not in PASSING:
                break
            request.is_lost = True
            retry_after = answer.retry_after if answer else 0
        if answer is None:
            raise Unreachable(f"{request.url} does not answer.")
        if answer.status < 300 or answer.status == 304:
            return answer
        if answer.status == 404 and self.url and request.url.startswith(self.url):
            raise Ended("The session is over.")
        if answer.status in (409, 412):
            raise Conflict("The other device wrote first.")
        raise Refused(answer.reason, answer.status, answer.retry_after)

    async def _exchange(self, method: str, request: Request, wait_ms: int) -> Answer | None:
        async def exchange() -> Answer:
            response = await treq.request(
                method,
                request.url,
                headers=Headers({name: [value] for name, value in request.fields.items()}),
                data=request.content,
                allow_redirects=False,
                pool=self._pool,
            )
            raw = response.headers.getAllRawHeaders()
            answered = {name.decode().lower(): values[0].decode("latin-1") for name, values in raw}
            return Answer(response.code, answered, await response.content())

        answering = ensureDeferred(exchange())
        try:
            return await answering.addTimeout(PATIENCE_S + wait_ms / 1000, reactor, lambda *_: None)
        except (ConnectError, DNSLookupError, RequestTransmissionFailed, ResponseFailed) as lost:
            if any(reason.check(CancelledError) for reason in getattr(lost, "reasons", ())):
                raise CancelledError from None  # whoever waits has given up
            return None


async def main(reactor: object, collection_url: str) -> None:
    """Let two devices meet."""
    new = await Rendezvous.create(collection_url, b"hello, who is there?")
    print(f"The new device shows {new.url}, which is good until {new.expires}.")
    known = await Rendezvous.join(new.url)
    print("The signed-in device reads:", (await known.receive()).decode())
    waiting = ensureDeferred(new.receive())
    await known.send(b"it is me")
    print("The new device reads:", (await waiting).decode())
    await new.cancel()
    try:
        await known.receive()
    except Ended as ended:
        print("The signed-in device is told:", ended)


if __name__ == "__main__":
    react(lambda reactor: ensureDeferred(main(reactor, *sys.argv[1:])))
