"""The base protocol."""

from typing import IO, Any

from synapse.api.errors import SynapseError

from synapse_rendezvous import __version__
from synapse_rendezvous.clients import written
from synapse_rendezvous.dialects.dialect import Query
from synapse_rendezvous.errors import InvalidContentType, PayloadTooLarge, PreconditionFailed, ReadRefused
from synapse_rendezvous.preconditions import UNCONDITIONAL, HeaderFields, Preconditions, Verdict
from synapse_rendezvous.response import Response, encode_json, error_headers, json_response, revision
from synapse_rendezvous.session import Session, Write


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
    conditional = True

    _CREATED_STATUS = 200
    _CREATED_KEYS: tuple[str, ...] = ("id", "max_bytes", "url")

    _ID = "<id>"
    """Where the id comes in what is the same in all answers."""

    _DEFAULT_CONTENT_TYPE = b"application/octet-stream"

    # Visible characters, space, tab and obs-text: what a field value may hold (RFC 9110 section 5.5). The length is
    # that of the longest type and subtype that can be registered (RFC 6838 section 4.2), with room for parameters.
    _FIELD_VALUE = bytes((0x09, *range(0x20, 0x7F), *range(0x80, 0x100)))
    _LONGEST_CONTENT_TYPE = 255

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

    def read_create(self, headers: HeaderFields, content: IO[bytes]) -> Write:
        """Read a POST; see `Dialect.read_create`."""
        content_type = self._read_content_type(headers)
        return Write(self._read_payload(content), content_type)

    def read_replace(self, headers: HeaderFields, content: IO[bytes]) -> tuple[Write, Preconditions]:
        """Read a PUT; see `Dialect.read_replace`."""
        return self.read_create(headers, content), Preconditions.read(headers, tolerant=self._tolerant)

    def judge_read(self, headers: HeaderFields, query: Query, session: Session) -> tuple[Verdict, frozenset[str]]:
        """Judge a GET by its precondition fields."""
        # Nearly all polls name the current revision, as we sent it.
        if (
            headers.get(b"If-None-Match") == [b'"' + session.tag + b'"']
            and b"If-Match" not in headers
            and b"If-Unmodified-Since" not in headers
        ):
            return Verdict.NOT_MODIFIED, UNCONDITIONAL.changes
        preconditions = self.read_conditions(headers)
        return preconditions.evaluate(session, safe=True), preconditions.changes

    def read_conditions(self, headers: HeaderFields) -> Preconditions:
        """Read the precondition fields."""
        return Preconditions.read(headers, tolerant=self._tolerant)

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

    def described(self, create_available: bool, client: str) -> Response:
        """Say what this is, and who asks: for operators, who see so whether requests arrive here unharmed."""
        return json_response(200, {**self._description, "client": written(client)})

    def created(self, session: Session) -> Response:
        """Answer a POST, for readers of MSC3886 early (`id`) and late (Location) and of MSC4108 (`url`)."""
        headers = {
            b"Location": [f"{self._path}/{session.id}".encode("ascii")],
            b"X-Max-Bytes": [b"%d" % self._max_bytes],
            **revision(session),
        }
        return json_response(self._CREATED_STATUS, self._created.replace(self._ID, session.id), headers)

    def shown(self, session: Session) -> Response:
        """Answer a GET with the payload, of the type it was stored with, byte for byte: clients compare it."""
        headers = {
            b"Content-Type": [session.content_type],
            # Anybody could store a page or a program here; a browser is told to do nothing with it.
            b"Content-Disposition": [b"attachment"],
            **revision(session),
        }
        return 200, headers, session.payload

    def unchanged(self, session: Session) -> Response:
        """Answer a GET whose reader has the current revision. Clients need Expires and Last-Modified even here."""
        return 304, revision(session), None

    def updated(self, session: Session) -> Response:
        """Answer a PUT. Typed, though empty: some proxies remove the ETag of an answer without a type."""
        return 202, {b"Content-Type": [b"text/plain"], **revision(session)}, b""

    def deleted(self) -> Response:
        """Answer a DELETE."""
        return 204, {}, None

    def failed(self, error: SynapseError) -> Response:
        """Word an error, with the current revision where there is one."""
        return self._failed(error, error.error_dict(None))

    def _failed(self, error: SynapseError, content: dict[str, Any]) -> Response:
        headers = error_headers(error)
        if isinstance(error, PreconditionFailed | ReadRefused):
            headers.update(revision(error.session))
        if isinstance(error, ReadRefused):
            # Clients that poll take the tag of every answer with another type than the session's, or lose their own.
            headers[b"Content-Type"] = [error.session.content_type]
        return json_response(error.code, content, headers)

    def _read_content_type(self, headers: HeaderFields) -> bytes:
        types = headers.get(b"Content-Type", [])
        if len(types) > 1:
            raise InvalidContentType("must be sent once")
        if types and (len(types[0]) > self._LONGEST_CONTENT_TYPE or types[0].translate(None, self._FIELD_VALUE)):
            raise InvalidContentType("must be at most 255 bytes without control characters, such as text/plain")
        return types[0] if types and types[0] else self._DEFAULT_CONTENT_TYPE

    def _read_payload(self, content: IO[bytes]) -> bytes:
        payload = content.read(self._max_bytes + 1)
        if len(payload) > self._max_bytes:
            raise PayloadTooLarge(self._max_bytes)
        return payload
