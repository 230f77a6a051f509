"""What all dialects have in common: the answer to a request, and what the resource needs of a protocol.

A dialect is pure: it reads a request into values and words every answer and error. Each has a room of its own.
"""

import functools
import json
from collections.abc import Mapping, Sequence
from typing import IO, Any, Protocol

from synapse.api.errors import SynapseError
from twisted.web.http import datetimeToString

from synapse_rendezvous.preconditions import HeaderFields, Preconditions, Verdict
from synapse_rendezvous.session import Session, Write

Fields = dict[bytes, list[bytes]]
"""Header fields: the values of each name."""

FETCH_METADATA = frozenset(
    (b"Sec-Fetch-Dest", b"Sec-Fetch-Mode", b"Sec-Fetch-Site", b"Sec-Fetch-User", b"Service-Worker")
)
"""Fields by which browsers say what a request is for; programs that are no browsers send none of them."""

Query = Mapping[bytes, Sequence[bytes]]
"""The parameters behind the path, with their values."""


Response = tuple[int, Fields, bytes | None]
"""An answer: its status, its header fields but for those that all answers share, and its content; None for statuses
that have none (204, 304)."""


class Dialect(Protocol):
    """What the resource needs of a protocol. All that it asks for is answered from the arguments alone."""

    name: str
    """As in the configuration."""

    id_prefix: str
    """What the ids of its sessions begin with, so that no dialect finds another's."""

    conditional: bool
    """Whether requests carry If-Match and If-None-Match."""

    def read_create(self, headers: HeaderFields, content: IO[bytes]) -> Write:
        """Read a POST; raise what is wrong with it. No more of the content is read than may be stored."""

    def read_replace(self, headers: HeaderFields, content: IO[bytes]) -> tuple[Write, Preconditions]:
        """Read a PUT; raise what is wrong with it."""

    def judge_read(self, headers: HeaderFields, query: Query, session: Session) -> tuple[Verdict, frozenset[str]]:
        """Say what the current revision is to the reader of a GET, and what was done to its tags; see `EntityTags`."""

    def read_conditions(self, headers: HeaderFields) -> Preconditions:
        """Read what a DELETE depends on."""

    def is_for_display(self, headers: HeaderFields) -> bool:
        """Whether a browser wants the payload in order to show or run it, by what it says in `FETCH_METADATA`."""

    def described(self, create_available: bool, client: str) -> Response:
        """Answer a GET of the collection.

        Args:
            create_available: whether whoever asks may create.
            client: whom the request counts for.
        """

    def created(self, session: Session) -> Response:
        """Answer a POST."""

    def shown(self, session: Session) -> Response:
        """Answer a GET with the payload."""

    def unchanged(self, session: Session) -> Response:
        """Answer a GET whose reader has the current revision."""

    def updated(self, session: Session) -> Response:
        """Answer a PUT."""

    def deleted(self) -> Response:
        """Answer a DELETE."""

    def failed(self, error: SynapseError) -> Response:
        """Word an error."""


# Many sessions share a second, and polls outnumber everything.
_http_date = functools.lru_cache(maxsize=1024)(datetimeToString)


def revision(session: Session) -> Fields:
    """Return the fields that describe a revision; on every answer about it, 304 and 412 among them."""
    return {
        b"ETag": [b'"' + session.tag + b'"'],
        # Dates have whole seconds. Rounding up keeps Expires in the future for as long as the session lives.
        b"Expires": [_http_date(-(-session.expires_ms // 1000))],
        b"Last-Modified": [_http_date(session.last_modified_ms // 1000)],
    }


encode_json = json.JSONEncoder(separators=(",", ":"), ensure_ascii=False).encode
"""Returns compact JSON; of a string alone it takes a tenth of the time."""


def json_response(code: int, content: str | dict[str, Any], headers: Fields | None = None) -> Response:
    """Return an answer whose body is compact JSON.

    Args:
        code: the status.
        content: the object, or JSON that is ready.
        headers: further fields; where these have a Content-Type, it is that.
    """
    body = content if isinstance(content, str) else encode_json(content)
    return code, {b"Content-Type": [b"application/json"], **(headers or {})}, body.encode("utf-8")


def error_headers(error: SynapseError) -> Fields:
    """Return the fields that an error brings along."""
    return {name.encode("ascii"): [value.encode("ascii")] for name, value in (error.headers or {}).items()}
