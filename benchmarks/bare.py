"""A Synapse module that does as little as a Twisted resource can: what `compare.py` compares ours with."""

import json

from synapse.module_api import ModuleApi
from twisted.web.resource import Resource
from twisted.web.server import NOT_DONE_YET, Request

_COMMON_HEADERS = (
    (b"Cache-Control", b"no-store, no-transform"),
    (b"Pragma", b"no-cache"),
    (b"Vary", b"*"),
    (b"Access-Control-Allow-Origin", b"*"),
    (b"Access-Control-Expose-Headers", b"ETag, Location, X-Max-Bytes, Retry-After"),
    (b"Cross-Origin-Resource-Policy", b"same-origin"),
    (b"X-Content-Type-Options", b"nosniff"),
    (b"Content-Security-Policy", b"sandbox; default-src 'none'; frame-ancestors 'none'"),
)
_REVISION = (
    (b"ETag", b'"0123456789abcdef0123"'),
    (b"Expires", b"Thu, 01 Jan 1970 00:05:00 GMT"),
    (b"Last-Modified", b"Thu, 01 Jan 1970 00:00:00 GMT"),
)
_TEXT = (b"Content-Type", b"text/plain")
_DOWNLOAD = (b"Content-Disposition", b"attachment")
_PAYLOAD = b"x" * 1024
_LOCATION = "/_synapse/client/rendezvous/0123456789abcdefABCDEF"


class ConstantResource(Resource):
    """Answers every request alike and looks at none of it.

    Args:
        code: the status.
        headers: names and values.
        body: the content; None for a status that has none.
    """

    isLeaf = True

    def __init__(self, code: int, headers: tuple[tuple[bytes, bytes], ...], body: bytes | None) -> None:
        Resource.__init__(self)
        self._code = code
        self._headers = _COMMON_HEADERS + headers
        self._body = body

    def render_GET(self, request: Request) -> bytes | int:
        """Answer; called by Twisted, which sets Content-Length, sends what is returned and ends the answer."""
        request.setResponseCode(self._code)
        for name, value in self._headers:
            request.setHeader(name, value)
        if self._body is None:  # Twisted would add a Content-Length even to a 304
            request.finish()
            return NOT_DONE_YET
        return self._body

    render_PUT = render_POST = render_DELETE = render_GET


class BareModule:
    """Mounts, for each operation that is measured, a constant that looks like the answer of synapse_rendezvous.

    Args:
        config: nothing.
        api: Synapse's interface for modules.
    """

    def __init__(self, config: None, api: ModuleApi) -> None:
        created = {
            "id": _LOCATION[-22:],
            "max_bytes": 10240,
            "url": api.public_baseurl.rstrip("/") + _LOCATION,
        }
        for name, resource in {
            "poll": ConstantResource(304, _REVISION, None),
            "read": ConstantResource(200, (_TEXT, _DOWNLOAD, *_REVISION), _PAYLOAD),
            "write": ConstantResource(202, (_TEXT, *_REVISION), b""),
            "delete": ConstantResource(204, (), None),
            "create": ConstantResource(
                200,
                (
                    (b"Content-Type", b"application/json"),
                    (b"Location", _LOCATION.encode("ascii")),
                    (b"X-Max-Bytes", b"10240"),
                    *_REVISION,
                ),
                json.dumps(created, separators=(",", ":")).encode("ascii"),
            ),
        }.items():
            api.register_web_resource(f"/_synapse/client/bare_{name}", resource)

    @staticmethod
    def parse_config(config: object) -> None:
        """Accept any options and read none; called by Synapse."""
