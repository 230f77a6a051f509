"""The one place where answers are written."""

from synapse.http.site import SynapseRequest

from synapse_rendezvous.dialects import Fields, Response

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
