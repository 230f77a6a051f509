"""A client of a rendezvous server: a mailbox in which two devices leave each other a message, for a few minutes.

Copy this file; it needs treq and nothing else. It speaks MSC3886 and MSC4108, to any server:

    here = await Rendezvous.create("https://matrix.example.com/_synapse/client/rendezvous", b"hello")
    show(here.url)  # as a QR code
    answer = await here.receive()

    there = await Rendezvous.join(scanned_url)  # on the other device
    hello = await there.receive()
    await there.send(b"it is me")

What a client must know:

- There is one payload at a time. Who writes replaces it, so take turns, or write all that the other has not read yet.
- Each write names the revision that it follows (If-Match). If the other device wrote in between, it is refused
  (Conflict): receive, then send again.
- The server, and whoever knows the URL, can read and replace payloads. Encrypt, and compare a code by eye.
- The life of a session is fixed at its creation; writing does not prolong it.

`python rendezvous.py URL` lets two devices meet at a server.
"""

import json
import sys
from contextlib import suppress
from datetime import datetime
from email.utils import parsedate_to_datetime
from typing import Any, NamedTuple
from urllib.parse import urljoin

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


Fields = dict[str, str]


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
        self._etag: str | None = None  # of the last revision read or written here
        self._seen: set[str | None] = set()  # those of all of them
        self._max_wait_ms = 0
        self._sending = DeferredLock()

    @classmethod
    async def create(cls, collection_url: str, payload: bytes, pool: HTTPConnectionPool | None = None) -> "Rendezvous":
        """Make a session that holds a first payload.

        Raises:
            Refused: 429: too many, or the server is full; 401, 403: not for everybody; 413: the payload is too long.
            Unreachable: no answer came.
        """
        session = cls(pool=pool)
        # Where the answer is lost, it is sent again. The first session, if there is one, ends unused.
        answer = await session._request("POST", collection_url, payload)
        location = json.loads(answer.content).get("url") or answer.fields["location"]
        session.url = urljoin(collection_url, location)
        session._see(answer)
        await session._learn_max_wait()
        return session

    @classmethod
    async def join(cls, session_url: str, pool: HTTPConnectionPool | None = None) -> "Rendezvous":
        """Join a session that another device made; `receive` then returns its payload at once.

        Raises:
            Unreachable: no answer came.
        """
        session = cls(session_url, pool)
        await session._learn_max_wait()
        return session

    async def send(self, payload: bytes) -> None:
        """Replace the payload.

        Raises:
            Conflict: the other device wrote first. It may still have read this payload: where the answer was lost, it
                was sent again.
            Ended: the session is over.
            Refused: 429: too often, or too much; 413: too long.
            Unreachable: no answer came. It may have arrived all the same.
        """
        async with self._sending:
            if self._etag is None:
                raise RuntimeError("Receive before you send: a write names the revision that it follows.")
            # If-Match makes it safe to send it again: the server answers a repetition as it answered the first.
            self._see(await self._request("PUT", self.url, payload, {"If-Match": self._etag}))

    async def receive(self) -> bytes:
        """Wait for the next payload of the other device, however long. To give up, cancel the Deferred.

        Raises:
            Ended: the session is over.
            Refused: the server does not want to.
            Unreachable: no answer came. To go on later, receive again.
        """
        while True:
            started_s = reactor.seconds()
            known = {} if self._etag is None else {"If-None-Match": self._etag}
            try:
                answer = await self._request("GET", self.url, None, known, self._max_wait_ms if known else 0)
            except Refused as refusal:
                if refusal.status != 429:
                    raise
                await deferLater(reactor, refusal.retry_after or POLL_S)
                continue
            async with self._sending:  # what ended the waiting may be a write of our own, whose tag we get only then
                if answer.status == 200 and answer.fields.get("etag") not in self._seen:
                    self._see(answer)
                    return answer.content
            if answer.status == 304:  # a server that does not wait, or has no place for it, answers at once
                await deferLater(reactor, max(0, started_s + POLL_S - reactor.seconds()))

    async def cancel(self) -> None:
        """End the session, for both devices. What waits in `receive` raises `Ended`.

        Raises:
            Refused: 429: too often.
            Unreachable: no answer came.
        """
        with suppress(Ended):
            await self._request("DELETE", self.url)

    def _see(self, answer: Answer) -> None:
        self._etag = answer.fields.get("etag")
        self._seen.add(self._etag)

    async def _learn_max_wait(self) -> None:
        with suppress(Refused, ValueError, KeyError):  # another server, which does not offer it
            answer = await self._request("GET", urljoin(self.url, "."))
            self._max_wait_ms = json.loads(answer.content)["max_wait_ms"]

    async def _request(
        self, method: str, url: str, payload: bytes | None = None, fields: Fields | None = None, wait_ms: int = 0
    ) -> Answer:
        """Send a request, again where its answer is lost, and return the answer if it is a success."""
        answer, retry_after = None, 0
        for pause_s in (0, *PAUSES_S):
            await deferLater(reactor, retry_after or pause_s)
            answer = await self._exchange(method, url, payload, fields or {}, wait_ms)
            if answer and answer.status in (307, 308):  # from Synapse's own path to where it delegates
                answer = await self._exchange(method, urljoin(url, answer.fields["location"]), payload, {}, 0)
            if answer and answer.status not in PASSING:
                break
            retry_after = answer.retry_after if answer else 0
        if answer is None:
            raise Unreachable(f"{url} does not answer.")
        if "expires" in answer.fields:
            self.expires = parsedate_to_datetime(answer.fields["expires"])
        if answer.status < 300 or answer.status == 304:
            return answer
        if answer.status == 404 and url == self.url:
            raise Ended("The session is over.")
        if answer.status == 412:
            raise Conflict("The other device wrote first.")
        raise Refused(answer.reason, answer.status, answer.retry_after)

    async def _exchange(
        self, method: str, url: str, payload: bytes | None, fields: Fields, wait_ms: int
    ) -> Answer | None:
        if payload is not None:
            fields = {**fields, "Content-Type": "text/plain"}

        async def exchange() -> Answer:
            response = await treq.request(
                method,
                url,
                params={"timeout": str(wait_ms)} if wait_ms else None,
                headers=Headers({name: [value] for name, value in fields.items()}),
                data=payload,
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
