"""What the resource needs of a protocol.

A dialect is pure: it parses a request into values, and words every answer and error. Each has a module of its own.
"""

from collections.abc import Callable, Mapping, Sequence
from typing import IO, Protocol

from synapse.api.errors import SynapseError

from synapse_rendezvous.preconditions import HeaderFields, Preconditions
from synapse_rendezvous.response import Response
from synapse_rendezvous.session import Session, Write

Query = Mapping[bytes, Sequence[bytes]]
"""The parameters of a URL's query, with their values."""


class Dialect(Protocol):
    """A protocol. Every result depends on the arguments alone."""

    name: str
    """As in the configuration, where `DialectsConfig` has a section of this name."""

    id_prefix: str
    """What the ids of its sessions begin with, so that no dialect finds another's."""

    uses_etags: bool
    """Whether requests carry If-Match and If-None-Match."""

    verifies_tokens: bool
    """Whether an access token must be valid even where none is needed."""

    def parse_post(self, headers: HeaderFields, content: IO[bytes]) -> Write:
        """Parse a POST; raise what is wrong with it. No more of the content is read than may be stored."""

    def parse_put(self, headers: HeaderFields, content: IO[bytes]) -> tuple[Write, Preconditions]:
        """Parse a PUT; raise what is wrong with it."""

    def parse_conditions(self, headers: HeaderFields, query: Query) -> Preconditions:
        """Parse the preconditions of a GET or a DELETE."""

    def is_for_display(self, headers: HeaderFields) -> bool:
        """Whether a browser wants to show or run the payload, by its Fetch Metadata and Service-Worker."""

    def description_response(self, create_available: bool, client: str) -> Response:
        """Answer a GET of the collection.

        Args:
            create_available: whether the sender may create sessions.
            client: the client that the request counts for.
        """

    def created_response(self, session: Session) -> Response:
        """Answer a POST."""

    def payload_response(self, session: Session) -> Response:
        """Answer a GET with the payload."""

    def not_modified_response(self, session: Session) -> Response:
        """Answer a GET whose sender has the current revision."""

    def updated_response(self, session: Session) -> Response:
        """Answer a PUT."""

    @property
    def transaction_response(self) -> Callable[[bytes], Response] | None:
        """Answers a PUT that has a transaction id, given the tag that it made; None if the protocol has no such PUT."""

    def deleted_response(self) -> Response:
        """Answer a DELETE."""

    def error_response(self, error: SynapseError) -> Response:
        """Word an error."""
