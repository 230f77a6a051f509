"""The Twisted resource: which operation a request asks for, and the one place where answers are written."""

import logging
import re
from collections.abc import Awaitable, Callable
from typing import TYPE_CHECKING

from synapse.api.errors import Codes, SynapseError
from synapse.http.server import finish_request
from synapse.http.site import SynapseRequest
from synapse.module_api import DirectServeJsonResource
from twisted.internet.defer import CancelledError
from twisted.python.failure import Failure

from synapse_rendezvous.admission import Admission
from synapse_rendezvous.dialects import MSC3886Dialect, Response
from synapse_rendezvous.errors import MethodNotAllowed, NotForDisplay, PreconditionFailed, SessionNotFound
from synapse_rendezvous.preconditions import Preconditions, Verdict
from synapse_rendezvous.session import SESSION_ID, Write
from synapse_rendezvous.store import SessionStore

if TYPE_CHECKING:
    from synapse.util.clock import Clock

logger = logging.getLogger(__name__)

# On every answer, errors included. What each is for: docs/protocol.md.
_COMMON_HEADERS = (
    (b"Cache-Control", b"no-store, no-transform"),
    (b"Pragma", b"no-cache"),
    (b"Access-Control-Allow-Origin", b"*"),
    (b"Access-Control-Expose-Headers", b"ETag, Location, X-Max-Bytes, Retry-After"),
    (b"Cross-Origin-Resource-Policy", b"cross-origin"),
    (b"X-Content-Type-Options", b"nosniff"),
    (b"Content-Security-Policy", b"sandbox; default-src 'none'; frame-ancestors 'none'"),
)


class RendezvousResource(DirectServeJsonResource):
    """Serves the collection and all its sessions at one path. Its name is the `servlet` in Synapse's metrics.

    Args:
        clock: Synapse's clock.
        dialect: the protocol spoken here.
        store: where the sessions are.
        admission: who may do what.
        strict_etags: compare entity tags by the letter of RFC 9110, without tolerance for what proxies do to them.
    """

    isLeaf = True

    def __init__(
        self, *, clock: "Clock", dialect: MSC3886Dialect, store: SessionStore, admission: Admission, strict_etags: bool
    ) -> None:
        super().__init__(clock=clock)
        self._dialect = dialect
        self._store = store
        self._admission = admission
        self._tolerant = not strict_etags
        self._paths = re.compile(rb"%b(?:/(%b)?)?" % (re.escape(dialect.path.encode("ascii")), SESSION_ID))
        self._collection: dict[bytes, Callable[[SynapseRequest, str], Awaitable[Response]]] = {
            b"GET": self._describe,
            b"HEAD": self._describe,
            b"POST": self._create,
        }
        self._session: dict[bytes, Callable[[SynapseRequest, str, str], Awaitable[Response]]] = {
            b"GET": self._read,
            b"HEAD": self._read,
            b"PUT": self._replace,
            b"DELETE": self._delete,
        }

    async def _async_render(self, request: SynapseRequest) -> None:
        client = self._admission.client(request)
        try:
            response = await self._answer(request, client)
        except SessionNotFound:
            await self._admission.miss(client)
            raise
        self._write(request, response)

    async def _answer(self, request: SynapseRequest, client: str) -> Response:
        # The path as it was sent: `%72endezvous` and `//` lead here as well, but name nothing.
        match = self._paths.fullmatch(request.path)
        if match is None:
            raise SessionNotFound
        if match[1] is None:
            on_collection = self._collection.get(request.method)
            if on_collection is None:
                raise MethodNotAllowed(self._collection)
            return await on_collection(request, client)
        on_session = self._session.get(request.method)
        if on_session is None:
            raise MethodNotAllowed(self._session)
        return await on_session(request, client, match[1].decode("ascii"))

    async def _describe(self, request: SynapseRequest, client: str) -> Response:
        await self._admission.read(client)
        return self._dialect.described()

    async def _create(self, request: SynapseRequest, client: str) -> Response:
        await self._admission.create(client)
        return self._dialect.created(await self._store.create(self._read_write(request)))

    async def _read(self, request: SynapseRequest, client: str, session_id: str) -> Response:
        await self._admission.read(client)
        self._refuse_display(request)
        session = await self._store.get(session_id)
        verdict = self._preconditions(request).evaluate(session, safe=True)
        if verdict is Verdict.NOT_MODIFIED:
            return self._dialect.unchanged(session)
        if verdict is Verdict.FAILED:
            raise PreconditionFailed(session)
        return self._dialect.shown(session)

    async def _replace(self, request: SynapseRequest, client: str, session_id: str) -> Response:
        await self._admission.write(client)
        session = await self._store.replace(session_id, self._read_write(request), self._preconditions(request))
        return self._dialect.updated(session)

    async def _delete(self, request: SynapseRequest, client: str, session_id: str) -> Response:
        await self._admission.write(client)
        await self._store.delete(session_id, self._preconditions(request))
        return self._dialect.deleted()

    def _read_write(self, request: SynapseRequest) -> Write:
        assert request.content is not None  # noqa: S101 (Twisted sets it before it renders)
        return self._dialect.read_write(request.requestHeaders, request.content)

    def _preconditions(self, request: SynapseRequest) -> Preconditions:
        return Preconditions.read(request.requestHeaders, tolerant=self._tolerant)

    def _refuse_display(self, request: SynapseRequest) -> None:
        """Refuse a browser that wants the payload as a page, frame, image or script (Fetch Metadata).

        A script's own `fetch` has the destination `empty`; programs that are no browsers send neither field.
        """
        headers = request.requestHeaders
        if headers.getRawHeaders(b"Sec-Fetch-Dest", [b"empty"]) != [b"empty"] or headers.getRawHeaders(
            b"Sec-Fetch-Mode"
        ) == [b"navigate"]:
            raise NotForDisplay

    def _write(self, request: SynapseRequest, response: Response) -> None:
        request.setResponseCode(response.code)
        if request._disconnected:
            return
        for name, value in _COMMON_HEADERS:
            request.setHeader(name, value)
        for name, value in response.headers:
            request.setHeader(name, value)
        if response.body is not None:
            request.setHeader(b"Content-Length", b"%d" % len(response.body))
            request.write(response.body)
        finish_request(request)

    def _send_error_response(self, f: Failure, request: SynapseRequest) -> None:
        """Called by Synapse with whatever was raised. Overridden so that errors, too, pass through `_write`."""
        if request.startedWriting or isinstance(f.value, CancelledError):  # nobody is there to be answered
            super()._send_error_response(f, request)
            return
        error = f.value
        if not isinstance(error, SynapseError):
            # Not the path: it holds the id. The log context names the request.
            logger.error("Failed to answer a %s", request.get_method(), exc_info=error)
            error = SynapseError(500, "Internal server error", Codes.UNKNOWN)
        self._write(request, self._dialect.failed(error))
