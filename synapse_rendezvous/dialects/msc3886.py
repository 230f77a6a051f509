"""The base protocol."""

import functools
from typing import IO, Any

from synapse.api.errors import SynapseError
from twisted.web.http import datetimeToString

from synapse_rendezvous import __version__
from synapse_rendezvous.clients import format_client
from synapse_rendezvous.dialects.dialect import Query
from synapse_rendezvous.errors import InvalidContentType, PayloadTooLarge, PreconditionFailed, ReadRefused
from synapse_rendezvous.preconditions import HeaderFields, Preconditions, parse_date, parse_entity_tags
from synapse_rendezvous.response import Fields, Response, encode_json, error_fields, json_response
from synapse_rendezvous.session import Session, Write

IF_NONE_MATCH = b"if_none_match"
"""The parameter of a GET's query that may stand in place of the field, which makes browsers send a preflight first."""


class MSC3886Dialect:
    """The base protocol: MSC3886 as first proposed, its create answer widened for the readers of later texts.

    Args:
        base_url: the homeserver's address for clients, without a slash at its end.
        path: where the collection is.
        max_bytes: how long a payload may be.
        ttl_ms: how long a session lives.
        max_wait_ms: how long a GET may be held.
        process: names this process among those of the homeserver.
        store: where sessions are kept, `memory` or `redis`.
        strict_etags: compare entity tags by the letter of RFC 9110, without tolerance for what proxies do to them.
    """

    name = "msc3886"
    id_prefix = ""
    uses_etags = True
    verifies_tokens = False
    transaction_response = None

    _CREATED_STATUS = 200
    _CREATED_KEYS: tuple[str, ...] = ("id", "max_bytes", "url")

    _ID = "<id>"
    """Where the id comes in what is the same in all answers."""

    _DEFAULT_CONTENT_TYPE = b"application/octet-stream"

    # Visible characters, space, tab and obs-text: what a field value may hold (RFC 9110 section 5.5). The length is
    # that of the longest type and subtype that can be registered (RFC 6838 section 4.2), with room for parameters.
    _FIELD_VALUE = bytes((0x09, *range(0x20, 0x7F), *range(0x80, 0x100)))
    _MAX_CONTENT_TYPE_LENGTH = 255

    def __init__(
        self,
        *,
        base_url: str,
        path: str,
        max_bytes: int,
        ttl_ms: int,
        max_wait_ms: int,
        process: str,
        store: str,
        strict_etags: bool,
    ) -> None:
        created = {"id": self._ID, "max_bytes": max_bytes, "url": f"{base_url}{path}/{self._ID}"}
        self._created = encode_json({key: created[key] for key in self._CREATED_KEYS})
        self._path = path
        self._max_bytes = max_bytes
        self._tolerant = not strict_etags
        self._description = {
            "name": "synapse_rendezvous",
            "version": __version__,
            "max_bytes": max_bytes,
            "ttl_ms": ttl_ms,
            "max_wait_ms": max_wait_ms,
            "process": process,
            "store": store,
        }

    def parse_post(self, headers: HeaderFields, content: IO[bytes]) -> Write:
        """Parse a POST; see `Dialect.parse_post`."""
        types = headers.get(b"Content-Type", [])
        if len(types) > 1:
            raise InvalidContentType("must be sent once")
        if types and (len(types[0]) > self._MAX_CONTENT_TYPE_LENGTH or types[0].translate(None, self._FIELD_VALUE)):
            raise InvalidContentType("must be at most 255 bytes without control characters, such as text/plain")
        content_type = types[0] if types and types[0] else self._DEFAULT_CONTENT_TYPE
        return Write(read_payload(content, self._max_bytes), content_type)

    def parse_put(self, headers: HeaderFields, content: IO[bytes]) -> tuple[Write, Preconditions]:
        """Parse a PUT; see `Dialect.parse_put`."""
        return self.parse_post(headers, content), self.parse_conditions(headers, {})

    def parse_conditions(self, headers: HeaderFields, query: Query) -> Preconditions:
        """Parse the precondition fields, whatever bytes they hold; a date counts only where its tags are absent."""
        if_match = if_none_match = if_modified_since_s = if_unmodified_since_s = None
        changes: frozenset[str] = frozenset()
        if (lines := headers.get(b"If-Match")) is not None:
            if_match, changes = parse_entity_tags(lines, weak=False, tolerant=self._tolerant)
        elif b"If-Unmodified-Since" in headers:
            if_unmodified_since_s = parse_date(headers[b"If-Unmodified-Since"])
        if (lines := headers.get(b"If-None-Match", query.get(IF_NONE_MATCH))) is not None:
            if_none_match, none_match_changes = parse_entity_tags(lines, weak=True, tolerant=self._tolerant)
            changes = changes or none_match_changes
        elif b"If-Modified-Since" in headers:
            if_modified_since_s = parse_date(headers[b"If-Modified-Since"])
        return Preconditions(
            if_match, if_none_match, if_modified_since_s, if_unmodified_since_s, repeats_from_any=False, changes=changes
        )

    def is_for_display(self, headers: HeaderFields) -> bool:
        """Tell pages, frames, images and scripts from what a script fetches, whose destination is `empty`.

        Programs that are no browsers send none of these fields (Fetch Metadata; and Service-Worker, which comes with a
        script that would outlive its page).
        """
        return (
            headers.get(b"Sec-Fetch-Dest", [b"empty"]) != [b"empty"]
            or headers.get(b"Sec-Fetch-Mode") == [b"navigate"]
            or b"Service-Worker" in headers
        )

    def description_response(self, create_available: bool, client: str) -> Response:
        """Describe the server and name the client: so operators see whether requests arrive here unharmed."""
        return json_response(200, {**self._description, "client": format_client(client)})

    def created_response(self, session: Session) -> Response:
        """Answer a POST, for readers of MSC3886 early (`id`) and late (Location) and of MSC4108 (`url`)."""
        headers = {
            b"Location": [f"{self._path}/{session.id}".encode("ascii")],
            b"X-Max-Bytes": [b"%d" % self._max_bytes],
            **revision_fields(session),
        }
        return json_response(self._CREATED_STATUS, self._created.replace(self._ID, session.id), headers)

    def payload_response(self, session: Session) -> Response:
        """Answer a GET with the payload, of the type it was stored with, byte for byte: clients compare it."""
        headers = {
            b"Content-Type": [session.content_type],
            # Anybody could store a page or a program here; a browser is told to do nothing with it.
            b"Content-Disposition": [b"attachment"],
            **revision_fields(session),
        }
        return Response(200, headers, session.payload)

    def not_modified_response(self, session: Session) -> Response:
        """Answer a GET whose reader has the current revision. Clients need Expires and Last-Modified even here."""
        return Response(304, revision_fields(session))

    def updated_response(self, session: Session) -> Response:
        """Answer a PUT. Typed, though empty: some proxies remove the ETag of an answer without a type."""
        return Response(202, {b"Content-Type": [b"text/plain"], **revision_fields(session)}, b"")

    def deleted_response(self) -> Response:
        """Answer a DELETE."""
        return Response(204, {})

    def error_response(self, error: SynapseError) -> Response:
        """Word an error, with the current revision where there is one."""
        return self._error_response(error, error.error_dict(None))

    def _error_response(self, error: SynapseError, content: dict[str, Any]) -> Response:
        headers = error_fields(error)
        if isinstance(error, PreconditionFailed | ReadRefused):
            headers.update(revision_fields(error.session))
        if isinstance(error, ReadRefused):
            # Clients that poll take the tag of every answer with another type than the session's, or lose their own.
            headers[b"Content-Type"] = [error.session.content_type]
        return json_response(error.code, content, headers)


def read_payload(content: IO[bytes], max_bytes: int) -> bytes:
    """Return the content of a request, of which no more is read than one byte too many."""
    payload = content.read(max_bytes + 1)
    if len(payload) > max_bytes:
        raise PayloadTooLarge(max_bytes)
    return payload


# Many sessions share a second, and polls outnumber everything.
_http_date = functools.lru_cache(maxsize=1024)(datetimeToString)


def revision_fields(session: Session) -> Fields:
    """Return the fields that describe a revision; on every answer about it, 304 and 412 among them."""
    return {
        b"ETag": [b'"' + session.tag + b'"'],
        # Dates have whole seconds. The session lives a little longer than the second that rounding up gives.
        b"Expires": [_http_date(-(-session.expires_ms // 1000))],
        b"Last-Modified": [_http_date(session.last_modified_ms // 1000)],
    }
