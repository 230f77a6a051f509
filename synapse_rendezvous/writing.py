"""The one place where answers are written."""

from synapse.http.server import finish_request
from synapse.http.site import SynapseRequest

from synapse_rendezvous.dialects import Response

# On every answer, errors included. What each is for: docs/protocol.md.
_COMMON_HEADERS = (
    (b"Cache-Control", (b"no-store, no-transform",)),
    (b"Pragma", (b"no-cache",)),
    (b"Access-Control-Allow-Origin", (b"*",)),
    (b"Access-Control-Expose-Headers", (b"ETag, Location, X-Max-Bytes, Retry-After",)),
    (b"Cross-Origin-Resource-Policy", (b"same-origin",)),
    (b"X-Content-Type-Options", (b"nosniff",)),
    (b"Content-Security-Policy", (b"sandbox; default-src 'none'; frame-ancestors 'none'",)),
)


def write(request: SynapseRequest, response: Response) -> None:
    """Answer a request, unless its client has left."""
    request.setResponseCode(response.code)
    if request._disconnected:
        return
    set_raw_headers = request.responseHeaders.setRawHeaders
    for name, values in _COMMON_HEADERS:
        set_raw_headers(name, values)
    for name, value in response.headers:
        set_raw_headers(name, (value,))
    if response.body is not None:
        set_raw_headers(b"Content-Length", (b"%d" % len(response.body),))
        request.write(response.body)
    finish_request(request)
