"""What clients will speak: rendezvous in JSON, without entity tags."""

import json
from collections.abc import Callable
from typing import IO, Any

from synapse.api.errors import Codes, MissingClientTokenError, SynapseError

from synapse_rendezvous.config import FIXED_MAX_BYTES
from synapse_rendezvous.dialects.dialect import Query
from synapse_rendezvous.errors import InvalidBody, PayloadTooLarge, PreconditionFailed, TransactionConflict
from synapse_rendezvous.preconditions import UNCONDITIONAL, HeaderFields, Preconditions
from synapse_rendezvous.response import Response, encode_json, error_fields, json_response
from synapse_rendezvous.session import Session, Write

CONCURRENT_WRITE = "IO_ELEMENT_MSC4388_CONCURRENT_WRITE"
STABLE_CONCURRENT_WRITE = "M_CONCURRENT_WRITE"
"""The errcodes of a conflict: at the proposal's unstable paths, and at its stable one."""


class MSC4388Dialect:
    """MSC4388: JSON both ways, and a sequence token in place of the entity tag.

    A write names a transaction in its path, by which a retry is recognised; without one it is a write by an older text,
    of which a retry is recognised by its data.

    Args:
        now_ms: tells the time by which sessions live, in milliseconds since the epoch.
        max_wait_ms: how long a GET may be held.
        conflict_errcode: the errcode of a conflict.
    """

    name = "msc4388"
    id_prefix = "d"
    uses_etags = False
    verifies_tokens = True
    MAX_BYTES = FIXED_MAX_BYTES

    # In JSON, a byte of data takes six at most (\u0041); the rest is room for the token and keys to come.
    _MAX_BODY_BYTES = 6 * MAX_BYTES + 8192

    def __init__(self, now_ms: Callable[[], int], *, max_wait_ms: int, conflict_errcode: str) -> None:
        self._now_ms = now_ms
        self._conflict_errcode = conflict_errcode
        self._max_wait_ms = max_wait_ms

    def parse_post(self, headers: HeaderFields, content: IO[bytes]) -> Write:
        """Parse a POST; see `Dialect.parse_post`."""
        return self._parse_write(self._parse_body(content))

    def parse_put(self, headers: HeaderFields, content: IO[bytes]) -> tuple[Write, Preconditions]:
        """Parse a PUT. Without a transaction, if its token is not current but its data are, it counts as done."""
        body = self._parse_body(content)
        token = self._string(body, "sequence_token").encode("utf-8", "replace")
        return self._parse_write(body), Preconditions(if_match=frozenset({token}), repeats_from_any=True)

    def parse_conditions(self, headers: HeaderFields, query: Query) -> Preconditions:
        """Parse the token of the revision that the sender of a GET has: an extension, for which there is room."""
        tokens = query.get(b"sequence_token")
        return UNCONDITIONAL if tokens is None else Preconditions(if_none_match=frozenset(tokens))

    def is_for_display(self, headers: HeaderFields) -> bool:
        """Tell a navigation, an embedding and a script that outlives its page from what a script fetches.

        The proposal wants it, by Fetch Metadata.
        """
        return (
            headers.get(b"Sec-Fetch-Dest", [b"empty"]) != [b"empty"]
            or headers.get(b"Sec-Fetch-Mode") == [b"navigate"]
            or headers.get(b"Sec-Fetch-User") == [b"?1"]
            or headers.get(b"Sec-Fetch-Site") == [b"none"]
            or headers.get(b"Service-Worker") == [b"script"]
        )

    def description_response(self, create_available: bool, client: str) -> Response:
        """Answer the discovery."""
        return json_response(200, {"create_available": create_available, "max_wait_ms": self._max_wait_ms})

    def created_response(self, session: Session) -> Response:
        """Answer a POST."""
        return self._state(f'"id":"{session.id}"', session)

    def payload_response(self, session: Session) -> Response:
        """Answer a GET, also when nothing changed."""
        return self._state(f'"data":{encode_json(session.payload.decode("utf-8"))}', session)

    def not_modified_response(self, session: Session) -> Response:
        """Answer a GET whose sender has the current revision: as any other, since there is no answer without data."""
        return self.payload_response(session)

    def updated_response(self, session: Session) -> Response:
        """Answer a PUT."""
        return self.transaction_response(session.tag)

    def transaction_response(self, tag: bytes) -> Response:
        """Answer a PUT, given the tag of the revision that it made."""
        return json_response(200, f'{{"sequence_token":"{tag.decode("ascii")}"}}')

    def deleted_response(self) -> Response:
        """Answer a DELETE."""
        return json_response(200, {})

    def error_response(self, error: SynapseError) -> Response:
        """Word an error. To create without an access token where one is needed is forbidden, as by a guest's."""
        if isinstance(error, PreconditionFailed | TransactionConflict):
            return json_response(
                409, {"errcode": self._conflict_errcode, "error": "sequence_token is not the current one"}
            )
        if isinstance(error, MissingClientTokenError):
            error = SynapseError(403, "Only signed-in users may create rendezvous sessions here", Codes.FORBIDDEN)
        return json_response(error.code, error.error_dict(None), error_fields(error))

    def _state(self, member: str, session: Session) -> Response:
        # Written by hand, for it takes a fraction of the time; nothing else here could need an escape.
        token, left_ms = session.tag.decode("ascii"), max(0, session.expires_ms - self._now_ms())
        return json_response(200, f'{{{member},"sequence_token":"{token}","expires_in_ms":{left_ms}}}')

    def _parse_body(self, content: IO[bytes]) -> dict[str, Any]:
        raw = content.read(self._MAX_BODY_BYTES + 1)
        if len(raw) > self._MAX_BODY_BYTES:
            raise PayloadTooLarge(self.MAX_BYTES)
        try:
            body = _decode_json(raw.decode("utf-8"))
        except (ValueError, RecursionError):
            raise InvalidBody("it must be one object in UTF-8 that names each key once") from None
        if not isinstance(body, dict):
            raise InvalidBody("it must be an object")
        return body

    def _parse_write(self, body: dict[str, Any]) -> Write:
        try:
            payload = self._string(body, "data").encode("utf-8")
        except UnicodeEncodeError:
            raise InvalidBody("data has half of a surrogate pair") from None
        if len(payload) > self.MAX_BYTES:
            raise PayloadTooLarge(self.MAX_BYTES)
        return Write(payload, b"application/json")

    @staticmethod
    def _string(body: dict[str, Any], key: str) -> str:
        value = body.get(key)
        if not isinstance(value, str):
            raise InvalidBody(f"{key} must be a string")
        return value


def _unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    """Make an object of its members; two of one name could mean different things to different readers."""
    unique = dict(pairs)
    if len(unique) != len(pairs):
        raise ValueError("a key is there twice")
    return unique


# Made once, since `json.loads` makes one for each body.
_decode_json = json.JSONDecoder(object_pairs_hook=_unique).decode
