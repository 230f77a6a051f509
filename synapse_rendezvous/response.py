"""Answers: how they are built, and the one place where they are sent."""

import json
from typing import Any, NamedTuple

from synapse.api.errors import SynapseError
from synapse.http.site import SynapseRequest

Fields = dict[bytes, list[bytes]]
"""Header fields: the values of each name."""

# On every answer, errors included. What each is for: docs/protocol.md.
COMMON_FIELDS: Fields = {
    b"Cache-Control": [b"no-store, no-transform"],
    b"Pragma": [b"no-cache"],
    b"Vary": [b"*"],
    b"Access-Control-Allow-Origin": [b"*"],
    b"Access-Control-Expose-Headers": [b"ETag, Location, X-Max-Bytes, Retry-After"],
    b"Cross-Origin-Resource-Policy": [b"same-origin"],
    b"X-Content-Type-Options": [b"nosniff"],
    b"Content-Security-Policy": [b"sandbox; default-src 'none'; frame-ancestors 'none'"],
}


class Response(NamedTuple):
    """An answer.

    Attributes:
        status: its status code.
        fields: its header fields without `COMMON_FIELDS` and Content-Length.
        content: its content; None for a status that has none (204, 304).
    """

    status: int
    fields: Fields
    content: bytes | None = None


encode_json = json.JSONEncoder(separators=(",", ":"), ensure_ascii=False).encode
"""Returns compact JSON; of a string alone it takes a tenth of the time of `json.dumps`."""


def json_response(status: int, content: str | dict[str, Any], fields: Fields | None = None) -> Response:
    """Return an answer whose content is compact JSON.

    Args:
        status: its status code.
        content: the object, or JSON that is ready.
        fields: further fields; a Content-Type among them replaces that of JSON.
    """
    text = content if isinstance(content, str) else encode_json(content)
    return Response(status, {b"Content-Type": [b"application/json"], **(fields or {})}, text.encode("utf-8"))


def error_fields(error: SynapseError) -> Fields:
    """Return the fields that an error brings along."""
    return {name.encode("ascii"): [value.encode("ascii")] for name, value in (error.headers or {}).items()}


def send_response(request: SynapseRequest, response: Response) -> None:
    """Answer a request, unless its client has left."""
    request.setResponseCode(response.status)
    if request._disconnected:
        return
    headers = request.responseHeaders
    for name, values in COMMON_FIELDS.items():
        headers.setRawHeaders(name, values)
    for name, values in response.fields.items():
        headers.setRawHeaders(name, values)
    if response.content is not None:
        headers.setRawHeaders(b"Content-Length", [b"%d" % len(response.content)])
        request.write(response.content)
    request.finish()
