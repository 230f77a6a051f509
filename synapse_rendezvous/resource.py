"""The Twisted resource: which operation a request asks for."""

import functools
import logging
from collections.abc import Awaitable, Callable
from typing import TYPE_CHECKING

from synapse.api.errors import Codes, LimitExceededError, SynapseError
from synapse.http.server import HTTP_STATUS_REQUEST_CANCELLED
from synapse.http.site import SynapseRequest
from synapse.logging.context import set_current_context
from synapse.module_api import DirectServeJsonResource
from twisted.internet.defer import CancelledError
from twisted.web.resource import IResource
from twisted.web.server import NOT_DONE_YET, Request

from synapse_rendezvous.admission import Admission
from synapse_rendezvous.clients import EXEMPT
from synapse_rendezvous.coroutines import Begun
from synapse_rendezvous.dialects.dialect import FETCH_METADATA, Dialect
from synapse_rendezvous.errors import (
    MethodNotAllowed,
    NotForDisplay,
    PreconditionFailed,
    ReadRefused,
    SessionNotFound,
    StoreFull,
)
from synapse_rendezvous.homeserver import content_of
from synapse_rendezvous.long_poll import Place, Waiting
from synapse_rendezvous.metrics import Metrics
from synapse_rendezvous.preconditions import HeaderFields, Verdict
from synapse_rendezvous.response import Response, json_response, write
from synapse_rendezvous.session import ID_LENGTH, Session, new_random_id
from synapse_rendezvous.store import SessionStore

if TYPE_CHECKING:
    from synapse.util.clock import Clock

logger = logging.getLogger(__name__)

Judge = Callable[[Session], tuple[Verdict, frozenset[str]]]
"""Says what a revision is to a reader, and what proxies seem to have done to the tags that it knows."""

_DEFECT = json_response(500, {"errcode": Codes.UNKNOWN, "error": "Internal server error"})


class RendezvousResource(DirectServeJsonResource):
    """Serves the collection and the sessions of one dialect. Its name is the `servlet` in Synapse's metrics.

    Args:
        clock: Synapse's clock.
        sleep: waits for so many seconds.
        path: where it is mounted.
        dialect: the protocol spoken here.
        store: where the sessions are.
        waiting: who waits for a session to change.
        admission: who may do what.
        create_policy: who may create here: `open`, `authenticated` or `closed`.
        metrics: where requests are counted.
    """

    def __init__(
        self,
        *,
        clock: "Clock",
        sleep: Callable[[float], Awaitable[None]],
        path: str,
        dialect: Dialect,
        store: SessionStore,
        waiting: Waiting,
        admission: Admission,
        create_policy: str,
        metrics: Metrics,
    ) -> None:
        super().__init__(clock=clock)
        self._dialect = dialect
        self._store = store
        self._waiting = waiting
        self._admission = admission
        self._create_policy = create_policy
        self._sleep = sleep
        self._metrics = metrics
        self._path = path.encode("ascii")
        self._id_prefix = dialect.id_prefix.encode("ascii")
        self._id_length = len(dialect.id_prefix) + ID_LENGTH
        self._collection: dict[bytes, Callable[[SynapseRequest, HeaderFields, str], Awaitable[Response]]] = {
            b"GET": self._describe,
            b"HEAD": self._describe,
            b"POST": self._create,
        }
        self._session: dict[bytes, Callable[[SynapseRequest, HeaderFields, str, str], Awaitable[Response]]] = {
            b"GET": self._read,
            b"HEAD": self._read,
            b"PUT": self._replace,
            b"DELETE": self._delete,
        }

    def getChildWithDefault(self, name: bytes, _request: Request) -> IResource:
        """Called by Twisted for what is below the path. Not a leaf, because another dialect may be mounted below."""
        child: IResource = self.children.get(name, self)
        return child

    def render(self, request: SynapseRequest) -> int:
        """Called by Twisted. Answers at once where nothing has to be waited for, which is nearly always.

        Synapse's own `render` costs more than an answer does; it takes over where there is something to wait for.
        """
        answering = self._respond(request)
        try:
            awaited = answering.send(None)
        except StopIteration:
            return NOT_DONE_YET
        self._begun = Begun(answering, awaited)
        if request.logcontext is not None:
            set_current_context(request.logcontext)  # whoever waits has left it
        return super().render(request)

    async def _async_render(self, request: SynapseRequest) -> None:
        # Called by Synapse within `render`, so it is this request that has begun.
        await self._begun

    async def _respond(self, request: SynapseRequest) -> None:
        client = EXEMPT
        try:
            try:
                headers = dict(request.requestHeaders.getAllRawHeaders())
                client = self._admission.client(request, headers)
                # The path as it was sent: `%72endezvous` and `//` lead here as well, but name nothing.
                collection, _, name = request.path.rpartition(b"/")
                if collection == self._path and len(name) == self._id_length and name.startswith(self._id_prefix):
                    if request.method not in self._session:
                        raise MethodNotAllowed(self._session)
                    response = await self._session[request.method](request, headers, client, name.decode("latin-1"))
                elif request.path == self._path or (collection == self._path and not name):
                    if request.method not in self._collection:
                        raise MethodNotAllowed(self._collection)
                    response = await self._collection[request.method](request, headers, client)
                else:
                    response = await self._look_in_vain()
            except SynapseError as error:
                response = await self._refusal(error, client)
        except Exception as error:
            if isinstance(error, CancelledError) and request._disconnected:
                request.setResponseCode(HTTP_STATUS_REQUEST_CANCELLED)  # for the log: the client has left
                return
            # Not the path: it holds the id. The log context names the request.
            logger.error("Failed to answer a %s", request.get_method(), exc_info=error)
            response = _DEFECT
        self._metrics.answered(request.method, response[0])
        write(request, response)

    async def _refusal(self, error: SynapseError, client: str) -> Response:
        """Word an error; one that says that nothing is there is counted, and may be a refusal because of that."""
        if isinstance(error, SessionNotFound):
            try:
                self._admission.miss(client)
            except LimitExceededError as refusal:
                error = refusal
        if isinstance(error, LimitExceededError) and error.pause:
            await self._sleep(error.pause)
        response = self._dialect.failed(error)
        # Else it and its frames hold each other until garbage is collected; in a flood everybody waits for that.
        error.__traceback__ = error.__context__ = None
        return response

    async def _look_in_vain(self) -> Response:
        # Looked for as any other id, so that the answer does not come sooner.
        await self._store.get("-")
        raise SessionNotFound

    async def _describe(self, request: SynapseRequest, _headers: HeaderFields, client: str) -> Response:
        self._admission.describe(client)
        return self._dialect.described(await self._admission.may_create(request, self._create_policy), client)

    async def _create(self, request: SynapseRequest, headers: HeaderFields, client: str) -> Response:
        await self._admission.create(request, client, self._create_policy)
        wanted = self._dialect.read_create(headers, content_of(request))
        session_id = self._dialect.id_prefix + new_random_id()
        try:
            session = await self._store.create(session_id, wanted, client)
        except StoreFull as full:
            self._admission.refuse(full, client)
            session = await self._store.create(session_id, wanted, EXEMPT)  # the operator only observes
        self._metrics.created(self._dialect.name, len(wanted.payload))
        return self._dialect.created(session)

    async def _read(self, request: SynapseRequest, headers: HeaderFields, client: str, session_id: str) -> Response:
        if not FETCH_METADATA.isdisjoint(headers) and self._dialect.is_for_display(headers):
            raise NotForDisplay
        wait_ms = self._waiting.default_wait_ms
        if b"timeout" in request.args:
            wait_ms = self._waiting.wait_ms(request.args[b"timeout"])
        place = None
        if wait_ms > 0:
            request.is_render_cancellable = True  # a client that leaves frees its place at once
            # Register, then read: a write in between is either read, or finds the place.
            place = self._waiting.take(session_id, client)
        try:
            session = await self._store.get(session_id)
            try:
                self._admission.read(client, session_id)
            except LimitExceededError as refusal:
                raise ReadRefused(refusal, session) from None
            verdict, changes = self._dialect.judge_read(headers, request.args, session)
            if changes:
                self._metrics.normalised(changes)
            if wait_ms > 0:
                if place is None:
                    self._metrics.waited("refused")
                elif verdict is Verdict.NOT_MODIFIED:
                    judge = functools.partial(self._dialect.judge_read, headers, request.args)
                    session, verdict = await self._wait(place, wait_ms, session, judge)
        finally:
            if place is not None:
                self._waiting.leave(place)
        if verdict is Verdict.NOT_MODIFIED:
            return self._dialect.unchanged(session)
        if verdict is Verdict.FAILED:
            raise PreconditionFailed(session)
        return self._dialect.shown(session)

    async def _wait(self, place: Place, wait_ms: int, session: Session, judge: Judge) -> tuple[Session, Verdict]:
        """Return the revision and its verdict, once it is another one or the time is over."""
        end_ms = self._waiting.end_ms(self._store.now_ms(), wait_ms)
        verdict, outcome = Verdict.NOT_MODIFIED, "left"
        try:
            while verdict is Verdict.NOT_MODIFIED and not self._waiting.is_closed:
                left_ms = min(end_ms, session.expires_ms) - self._store.now_ms()
                if left_ms <= 0:
                    break
                await place.changed(left_ms)
                if not self._waiting.is_closed:
                    session = await self._store.get(session.id)
                    verdict, _ = judge(session)
            outcome = "timed_out" if verdict is Verdict.NOT_MODIFIED else "changed"
        except SessionNotFound:
            outcome = "ended"
            raise
        finally:
            self._metrics.waited(outcome)
        return session, verdict

    async def _replace(self, request: SynapseRequest, headers: HeaderFields, client: str, session_id: str) -> Response:
        self._admission.replace(client, session_id)
        wanted, preconditions = self._dialect.read_replace(headers, content_of(request))
        try:
            session = await self._store.replace(session_id, wanted, preconditions)
        except StoreFull as full:
            self._admission.refuse(full, client)
            raise
        self._waiting.wake(session_id)
        self._metrics.replaced(session)
        if preconditions.changes:
            self._metrics.normalised(preconditions.changes)
        self._admission.replaced(session_id)
        return self._dialect.updated(session)

    async def _delete(self, _request: SynapseRequest, headers: HeaderFields, client: str, session_id: str) -> Response:
        self._admission.delete(client)
        await self._store.delete(session_id, self._dialect.read_conditions(headers))
        self._waiting.wake(session_id)
        return self._dialect.deleted()
