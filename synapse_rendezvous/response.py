"""Answers: how they are built, and the one place where they are sent."""

import functools
import json
from typing import Any

from synapse.api.errors import SynapseError
from synapse.http.site import SynapseRequest
from twisted.web.http import datetimeToString

from synapse_rendezvous.session import Session

Fields = dict[bytes, list[bytes]]
"""Header fields: the values of each name."""

Response = tuple[int, Fields, bytes | None]
"""An answer: its status, its header fields but for those that all answers share, and its content; None for statuses
that have none (204, 304)."""

# On every answer, errors included. What each is for: docs/protocol.md.
_COMMON_HEADERS: Fields = {
    b"Cache-Control": [b"no-store, no-transform"],
    b"Pragma": [b"no-cache"],
    b"Vary": [b"*"],
    b"Access-Control-Allow-Origin": [b"*"],
    b"Access-Control-Expose-Headers": [b"ETag, Location, X-Max-Bytes, Retry-After"],
    b"Cross-Origin-Resource-Policy": [b"same-origin"],
    b"X-Content-Type-Options": [b"nosniff"],
    b"Content-Security-Policy": [b"sandbox; default-src 'none'; frame-ancestors 'none'"],
}


def write(request: SynapseRequest, response: Response) -> None:
    """Answer a request, unless its client has left."""
    code, fields, content = response
    request.setResponseCode(code)
    if request._disconnected:
        return
    # Not by Twisted's methods, which would take ten times as long, for names that it need not change and values that
    # are ours, or were checked when they came.
    headers = request.responseHeaders._rawHeaders
    headers.update(_COMMON_HEADERS)
    headers.update(fields)
    if content is not None:
        headers[b"Content-Length"] = [b"%d" % len(content)]
        request.write(content)
    request.finish()


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
