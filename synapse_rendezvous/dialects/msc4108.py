"""What Element and everything on matrix-js-sdk and matrix-rust-sdk speak today."""

from typing import IO, Any

from synapse.api.errors import Codes, LimitExceededError, SynapseError

from synapse_rendezvous.config import FIXED_MAX_BYTES
from synapse_rendezvous.dialects.msc3886 import MSC3886Dialect, read_payload
from synapse_rendezvous.errors import InvalidContentType, MissingHeader, PreconditionFailed
from synapse_rendezvous.preconditions import HeaderFields, Preconditions
from synapse_rendezvous.response import Response
from synapse_rendezvous.session import Write


class MSC4108Dialect(MSC3886Dialect):
    """MSC4108 of 2024, as its text and Synapse's own server have it: plain text, and writes always on condition."""

    name = "msc4108"
    id_prefix = "c"
    MAX_BYTES = FIXED_MAX_BYTES

    _CREATED_STATUS = 201
    _CREATED_KEYS = ("url",)

    def parse_post(self, headers: HeaderFields, content: IO[bytes]) -> Write:
        """Parse a POST: the size counts before the type, as in Synapse's server."""
        payload = read_payload(content, self._max_bytes)
        types = headers.get(b"Content-Type")
        if types is None:
            raise MissingHeader("content-type")
        if len(types) > 1 or types[0].lower() != b"text/plain":
            raise InvalidContentType("must be text/plain")
        return Write(payload, b"text/plain")

    def parse_put(self, headers: HeaderFields, content: IO[bytes]) -> tuple[Write, Preconditions]:
        """Parse a PUT, which must have an If-Match."""
        write = self.parse_post(headers, content)
        if b"If-Match" not in headers:
            raise MissingHeader("if-match")
        return write, self.parse_conditions(headers, {})

    def error_response(self, error: SynapseError) -> Response:
        """Word an error. Codes that Matrix does not have yet stand beside `errcode`."""
        content: dict[str, Any] = error.error_dict(None)
        if isinstance(error, PreconditionFailed):
            content["org.matrix.msc4108.errcode"] = "M_CONCURRENT_WRITE"
        elif isinstance(error, LimitExceededError):
            content["errcode"] = Codes.UNKNOWN
        return self._error_response(error, content)
