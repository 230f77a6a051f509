"""The protocols spoken. A dialect is pure: it reads a request into values and words every answer and error."""

import functools
import json
import re
from typing import IO, NamedTuple

from synapse.api.errors import SynapseError
from twisted.web.http import datetimeToString
from twisted.web.http_headers import Headers

from synapse_rendezvous import __version__
from synapse_rendezvous.errors import InvalidContentType, PayloadTooLarge, PreconditionFailed
from synapse_rendezvous.session import Session, Write

DEFAULT_CONTENT_TYPE = b"application/octet-stream"

# Visible characters, space, tab and obs-text: what a field value may hold (RFC 9110 section 5.5). The length is that
# of the longest type and subtype that can be registered (RFC 6838 section 4.2), with room for parameters.
_CONTENT_TYPE = re.compile(rb"[\t\x20-\x7e\x80-\xff]{0,255}")

# The server could serve anything, a page or a program, that anybody stored; a browser is told to do nothing with it.
_DOWNLOAD = (b"Content-Disposition", b"attachment")


class Response(NamedTuple):
    """An answer, but for the header fields that all answers share.

    Attributes:
        code: the status.
        headers: names and values.
        body: the content; None for statuses that have none (204, 304).
    """

    code: int
    headers: tuple[tuple[bytes, bytes], ...]
    body: bytes | None


# Many sessions share a second, and polls outnumber everything.
_http_date = functools.lru_cache(maxsize=1024)(datetimeToString)


def _revision(session: Session) -> tuple[tuple[bytes, bytes], ...]:
    """Return the fields that describe a revision; on every answer about it, 304 and 412 among them."""
    return (
        (b"ETag", b'"%b"' % session.tag),
        # Dates have whole seconds. Rounding up keeps Expires in the future for as long as the session lives.
        (b"Expires", _http_date(-(-session.expires_ms // 1000))),
        (b"Last-Modified", _http_date(session.last_modified_ms // 1000)),
    )


def _json(code: int, content: dict[str, object], headers: tuple[tuple[bytes, bytes], ...] = ()) -> Response:
    body = json.dumps(content, separators=(",", ":")).encode("ascii")
    return Response(code, ((b"Content-Type", b"application/json"), *headers), body)


class MSC3886Dialect:
    """The base protocol: MSC3886 as first proposed, its create answer widened for the readers of later texts.

    Args:
        public_baseurl: the homeserver's address for clients, ending in a slash.
        max_bytes: how long a payload may be.
        ttl_ms: how long a session lives.
    """

    path = "/_synapse/client/rendezvous"

    def __init__(self, *, public_baseurl: str, max_bytes: int, ttl_ms: int) -> None:
        self._public_baseurl = public_baseurl.rstrip("/")
        self._max_bytes = max_bytes
        self._description = _json(
            200,
            {"name": "synapse_rendezvous", "version": __version__, "max_bytes": max_bytes, "ttl_ms": ttl_ms},
        )

    def read_write(self, headers: Headers, content: IO[bytes]) -> Write:
        """Read what a POST or PUT wants stored. No more than one byte over the limit is taken into memory.

        Raises:
            InvalidContentType: the Content-Type could not be returned as it was sent.
            PayloadTooLarge: the body is longer than `max_bytes`.
        """
        types = headers.getRawHeaders(b"Content-Type", [])
        if len(types) > 1:
            raise InvalidContentType("must be sent once")
        if types and not _CONTENT_TYPE.fullmatch(types[0]):
            raise InvalidContentType("must be at most 255 bytes without control characters, such as text/plain")
        payload = content.read(self._max_bytes + 1)
        if len(payload) > self._max_bytes:
            raise PayloadTooLarge(self._max_bytes)
        return Write(payload, types[0] if types and types[0] else DEFAULT_CONTENT_TYPE)

    def described(self) -> Response:
        """Say what this is: for the operator who opens the collection in a browser."""
        return self._description

    def created(self, session: Session) -> Response:
        """Answer a POST, for readers of MSC3886 early (`id`) and late (Location) and of MSC4108 (`url`)."""
        location = f"{self.path}/{session.id}"
        return _json(
            200,
            {"id": session.id, "max_bytes": self._max_bytes, "url": self._public_baseurl + location},
            (
                (b"Location", location.encode("ascii")),
                (b"X-Max-Bytes", b"%d" % self._max_bytes),
                *_revision(session),
            ),
        )

    def shown(self, session: Session) -> Response:
        """Answer a GET with the payload, of the type it was stored with, byte for byte: clients compare it."""
        return Response(200, ((b"Content-Type", session.content_type), _DOWNLOAD, *_revision(session)), session.payload)

    def unchanged(self, session: Session) -> Response:
        """Answer a GET whose reader has the current revision. Clients need Expires and Last-Modified even here."""
        return Response(304, _revision(session), None)

    def updated(self, session: Session) -> Response:
        """Answer a PUT. Typed, though empty: some proxies remove the ETag of an answer without a type."""
        return Response(202, ((b"Content-Type", b"text/plain"), *_revision(session)), b"")

    def deleted(self) -> Response:
        """Answer a DELETE."""
        return Response(204, (), None)

    def failed(self, error: SynapseError) -> Response:
        """Word an error, with the current revision where there is one."""
        headers = tuple((name.encode("ascii"), value.encode("ascii")) for name, value in (error.headers or {}).items())
        if isinstance(error, PreconditionFailed):
            headers += _revision(error.session)
        return _json(error.code, error.error_dict(None), headers)
