"""How tests send requests and read answers; what needs bytes of its own is in wire.py."""

import asyncio
import json
from collections.abc import AsyncIterator, Iterable, Mapping, Sequence
from typing import Any, NamedTuple

from aiohttp import ClientError, ClientSession, ClientTimeout, DummyCookieJar, TCPConnector
from multidict import CIMultiDict
from yarl import URL

PATIENCE_S = 60.0
"""After so long without the whole answer, something hangs."""

Headers = Mapping[str, str] | Iterable[tuple[str, str]]


class NoAnswer(Exception):
    """There was no connection, it broke before the whole answer was there, or what came is not HTTP."""


class Answer(NamedTuple):
    """An answer, whatever its status; redirects are not followed.

    Attributes:
        status: the code.
        headers: the header fields; names are compared without regard to case.
        content: the content as it was sent, compressed or not.
    """

    status: int
    headers: CIMultiDict[str]
    content: bytes

    @property
    def etag(self) -> str:
        """Its ETag; empty if it has none."""
        tags = self.headers.getall("ETag", [])
        assert len(tags) <= 1
        return tags[0] if tags else ""

    def json(self) -> Any:
        """Return what the content says as JSON."""
        return json.loads(self.content)

    def seen(self) -> tuple[int, bytes, str]:
        """Return what a device looks at: status, content and ETag."""
        return self.status, self.content, self.etag


class Client:
    """A client with connections of its own, to be used in an `async with` statement.

    It sends what it is told to, and adds no more to a request than HTTP asks for. It never sends one twice.

    Args:
        base_url: what stands before each URL.
        headers: header fields of each request.
        address: where it is, one of 127.0.0.0/8; by default, where the server is.
        keeps_connections: whether a connection is used again once its answer is there.
        patience_s: after how many seconds there is no answer.
    """

    _ADDED = ("Accept", "Accept-Encoding", "Content-Type", "User-Agent")

    def __init__(
        self,
        base_url: str = "",
        headers: Headers = (),
        *,
        address: str | None = None,
        keeps_connections: bool = True,
        patience_s: float = PATIENCE_S,
    ) -> None:
        self._base_url = base_url
        self._headers = headers
        self._address = None if address is None else (address, 0)
        self._keeps_connections = keeps_connections
        self._patience_s = patience_s

    async def __aenter__(self) -> "Client":
        self._session = ClientSession(
            # Also many connections to one server.
            connector=TCPConnector(limit=0, local_addr=self._address, force_close=not self._keeps_connections),
            headers=CIMultiDict(self._headers),
            skip_auto_headers=self._ADDED,
            auto_decompress=False,
            cookie_jar=DummyCookieJar(),
            timeout=ClientTimeout(total=self._patience_s),
        )
        # There is no public way to it: else GET, PUT and DELETE would be sent again when a connection breaks.
        self._session._retry_connection = False
        return self

    async def __aexit__(self, *_: object) -> None:
        await self._session.close()

    async def ask(
        self,
        method: str,
        url: str,
        content: bytes | Sequence[bytes] = b"",
        headers: Headers = (),
        /,
        **fields: str,
    ) -> Answer:
        """Send a request and return its answer.

        Args:
            method: the method.
            url: the URL, as it is to be sent.
            content: the content; a sequence is sent in as many chunks, without a length.
            headers: header fields.
            fields: more of them, with `_` for `-`.

        Raises:
            NoAnswer: see there.
        """
        sent: CIMultiDict[str] = CIMultiDict(headers)
        sent.extend({name.replace("_", "-"): value for name, value in fields.items()})
        target = URL(self._base_url + url, encoded=True)
        data = content if isinstance(content, bytes) else _chunks(content)
        try:
            asking = self._session.request(method, target, data=data or None, headers=sent, allow_redirects=False)
            async with asking as response:
                return Answer(response.status, CIMultiDict(response.headers), await response.read())
        except (ClientError, OSError, asyncio.TimeoutError) as error:
            raise NoAnswer(f"{method} {target}: {error!r}") from error


async def _chunks(content: Sequence[bytes]) -> AsyncIterator[bytes]:
    for chunk in content:
        yield chunk


def ask(
    method: str,
    url: str,
    content: bytes | Sequence[bytes] = b"",
    headers: Headers = (),
    /,
    *,
    address: str | None = None,
    patience_s: float = PATIENCE_S,
    **fields: str,
) -> Answer:
    """Send one request, on a connection of its own, from code that is not asynchronous; see `Client.ask`."""

    async def ask_once() -> Answer:
        async with Client(address=address, keeps_connections=False, patience_s=patience_s) as client:
            return await client.ask(method, url, content, headers, **fields)

    return asyncio.run(ask_once())
