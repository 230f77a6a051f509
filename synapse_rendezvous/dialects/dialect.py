"""What the resource needs of a protocol.

A dialect is pure: it reads a request into values and words every answer and error. Each has a room of its own.
"""

from collections.abc import Mapping, Sequence
from typing import IO, Protocol

from synapse.api.errors import SynapseError

from synapse_rendezvous.preconditions import HeaderFields, Preconditions, Verdict
from synapse_rendezvous.response import Response
from synapse_rendezvous.session import Session, Write

FETCH_METADATA = frozenset(
    (b"Sec-Fetch-Dest", b"Sec-Fetch-Mode", b"Sec-Fetch-Site", b"Sec-Fetch-User", b"Service-Worker")
)
"""Fields by which browsers say what a request is for; programs that are no browsers send none of them."""

Query = Mapping[bytes, Sequence[bytes]]
"""The parameters behind the path, with their values."""


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
