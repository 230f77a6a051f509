"""The one place where answers are written."""

from synapse.http.server import finish_request
from synapse.http.site import SynapseRequest
from twisted.web.http_headers import Headers

from synapse_rendezvous.dialects import Response

# On every answer, errors included. What each is for: docs/protocol.md.
_COMMON_HEADERS = Headers(
    {
        b"Cache-Control": [b"no-store, no-transform"],
        b"Pragma": [b"no-cache"],
        b"Vary": [b"*"],
        b"Access-Control-Allow-Origin": [b"*"],
        b"Access-Control-Expose-Headers": [b"ETag, Location, X-Max-Bytes, Retry-After"],
        b"Cross-Origin-Resource-Policy": [b"same-origin"],
        b"X-Content-Type-Options": [b"nosniff"],
        b"Content-Security-Policy": [b"sandbox; default-src 'none'; frame-ancestors 'none'"],
    }
)


def write(request: SynapseRequest, response: Response) -> None:
    """Answer a request, unless its client has left."""
    request.setResponseCode(response.code)
    if request._disconnected:
        return
    # Set one by one, as Twisted would have it, they would take ten times as long: longer than a rate limit.
    request.responseHeaders._rawHeaders.update(_COMMON_HEADERS._rawHeaders)
    set_raw_headers = request.responseHeaders.setRawHeaders
    for name, value in response.headers:
        set_raw_headers(name, (value,))
    if response.body is not None:
        set_raw_headers(b"Content-Length", (b"%d" % len(response.body),))
        request.write(response.body)
    finish_request(request)
