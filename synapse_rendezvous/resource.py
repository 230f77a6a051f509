"""The Twisted resource: which operation a request asks for."""

import io
import logging
import re
from collections.abc import Awaitable, Callable
from typing import TYPE_CHECKING

from synapse.api.errors import Codes, LimitExceededError, SynapseError
from synapse.http.server import HTTP_STATUS_REQUEST_CANCELLED
from synapse.http.site import SynapseRequest, XForwardedForRequest
from synapse.logging.context import set_current_context
from synapse.module_api import DirectServeJsonResource
from twisted.internet.defer import CancelledError
from twisted.web.http_headers import Headers
from twisted.web.resource import IResource
from twisted.web.server import NOT_DONE_YET, Request

from synapse_rendezvous.admission import Admission
from synapse_rendezvous.clients import DENIED, EXEMPT, MAX_FORWARDED_BYTES, UNKNOWN, Clients, quota_keys
from synapse_rendezvous.dialects.dialect import Dialect
from synapse_rendezvous.errors import (
    InvalidTransactionId,
    MethodNotAllowed,
    NoSuchEndpoint,
    NotForDisplay,
    PreconditionFailed,
    ReadRefused,
    SessionNotFound,
    StoreFull,
    TransactionConflict,
    WriteContended,
)
from synapse_rendezvous.long_poll import Waiter, Waiters
from synapse_rendezvous.observer import Observer
from synapse_rendezvous.outcomes import CONFLICT
from synapse_rendezvous.preconditions import PreconditionResult, Preconditions, new_tag
from synapse_rendezvous.rate_limit import Limits
from synapse_rendezvous.response import Response, json_response, send_response
from synapse_rendezvous.session import ID_LENGTH, LINGER_MS, Session, new_random_id
from synapse_rendezvous.started_coroutine import StartedCoroutine
from synapse_rendezvous.store import SessionStore

if TYPE_CHECKING:
    from synapse.util.clock import Clock

logger = logging.getLogger(__name__)

RequestFields = dict[bytes, list[bytes]]
"""Header fields of a request: all values of each, by names as Twisted writes them. It is the request's own."""

MAX_SWAPS = 10
"""How often a write is tried whose preconditions hold for one revision after another that others replace meanwhile."""

MAX_AGENT_BYTES = 256
"""How much is kept of the User-Agent of a request that waits."""

NO_ID = "-"
"""No session has this id."""

# The opaque identifier grammar of the Matrix specification's appendices.
_TRANSACTION_ID = re.compile(rb"[0-9A-Za-z._~-]{1,255}")

_DEFECT = json_response(500, {"errcode": Codes.UNKNOWN, "error": "Internal server error"})


class RendezvousResource(DirectServeJsonResource):
    """Serves the collection and the sessions of one dialect. Its name is the `servlet` in Synapse's metrics.

    Args:
        clock: Synapse's clock.
        sleep: waits for so many seconds.
        path: where it is mounted.
        dialect: the protocol spoken here.
        create_policy: who may create here: `open`, `authenticated` or `closed`.
        clients: names the client of a request.
        admission: lets a request pass, or raises.
        limits: the rate limits.
        store: where the sessions are.
        waiters: the requests that wait for a session to change.
        observer: receives events.
    """

    def __init__(
        self,
        *,
        clock: "Clock",
        sleep: Callable[[float], Awaitable[None]],
        path: str,
        dialect: Dialect,
        create_policy: str,
        clients: Clients,
        admission: Admission,
        limits: Limits,
        store: SessionStore,
        waiters: Waiters,
        observer: Observer,
    ) -> None:
        super().__init__(clock=clock)
        self._sleep = sleep
        self._dialect = dialect
        self._create_policy = create_policy
        self._clients = clients
        self._admission = admission
        self._limits = limits
        self._store = store
        self._waiters = waiters
        self._observer = observer
        self._path = path.encode("ascii")
        self._id_prefix = dialect.id_prefix.encode("ascii")
        self._id_length = len(dialect.id_prefix) + ID_LENGTH
        self._collection_methods: dict[bytes, Callable[[SynapseRequest, RequestFields, str], Awaitable[Response]]] = {
            b"GET": self._describe,
            b"HEAD": self._describe,
            b"POST": self._post,
        }
        self._session_methods: dict[bytes, Callable[[SynapseRequest, RequestFields, str, str], Awaitable[Response]]] = {
            b"GET": self._get,
            b"HEAD": self._get,
            b"PUT": self._put,
            b"DELETE": self._delete,
        }

    def getChildWithDefault(self, name: bytes, _request: Request) -> IResource:
        """Called by Twisted for what is below the path. Not a leaf, because another dialect may be mounted below."""
        child: IResource = self.children.get(name, self)
        return child

    def render(self, request: SynapseRequest) -> int:
        """Called by Twisted. Answers at once if nothing suspends the coroutine, which is nearly always so.

        Synapse's own `render` costs more than an answer does; it takes over where the coroutine is suspended.
        """
        coroutine = self.respond(request)
        try:
            awaited = coroutine.send(None)
        except StopIteration:
            return NOT_DONE_YET
        if request.logcontext is not None:
            set_current_context(request.logcontext)  # the coroutine left this log context when it was suspended
        return _SuspendedResource(self._clock, StartedCoroutine(coroutine, awaited)).render(request)

    async def respond(self, request: SynapseRequest) -> None:
        """Answer a request, and word whatever goes wrong."""
        client = EXEMPT
        try:
            try:
                headers: RequestFields = dict(request.requestHeaders.getAllRawHeaders())  # type: ignore[arg-type]  # lists
                peer, forwarded = getattr(request.client, "host", None), None
                if isinstance(request, XForwardedForRequest):  # other listeners do not believe it
                    forwarded = b",".join(headers.get(b"X-Forwarded-For", ()))[-MAX_FORWARDED_BYTES:]
                client = self._clients.client_key(peer, forwarded)
                if client in (UNKNOWN, DENIED):
                    client = self._admission.check_client(client, peer)
                # The path as it was sent: `%72endezvous` and `//` lead here as well, but name nothing.
                collection, _, name = request.path.rpartition(b"/")
                if collection == self._path and name:
                    if request.method not in self._session_methods:
                        raise MethodNotAllowed(self._session_methods)
                    operation = self._session_methods[request.method]
                    # What is no id is looked up as any other, so that the answer does not come sooner.
                    is_id = len(name) == self._id_length and name.startswith(self._id_prefix)
                    session_id = name.decode("latin-1") if is_id else NO_ID
                    response = await operation(request, headers, client, session_id)
                elif request.path == self._path or collection == self._path:
                    if request.method not in self._collection_methods:
                        raise MethodNotAllowed(self._collection_methods)
                    response = await self._collection_methods[request.method](request, headers, client)
                else:
                    response = await self._put_transaction(request, headers, client, collection, name)
            except SynapseError as error:
                response = await self._error_response(error, client)
        except Exception as error:
            if isinstance(error, CancelledError) and request._disconnected:
                request.setResponseCode(HTTP_STATUS_REQUEST_CANCELLED)  # for the log: the client has left
                return
            # Not the path: it holds the id. The log context names the request.
            logger.error("Failed to answer a %s", request.get_method(), exc_info=error)
            response = _DEFECT
        self._observer.request_answered(request.method, response.status)
        send_response(request, response)

    async def _error_response(self, error: SynapseError, client: str) -> Response:
        """Word an error. A 404 is charged as a miss, and may be refused because of that."""
        if isinstance(error, SessionNotFound):
            try:
                self._limits.take(client, self._limits.client_miss, quota_keys(client))
            except LimitExceededError as refusal:
                error = refusal
        if isinstance(error, LimitExceededError) and error.pause:
            await self._sleep(error.pause)
        response = self._dialect.error_response(error)
        # Otherwise the error and its frames hold each other until garbage is collected; in a flood, that takes long.
        error.__traceback__ = error.__context__ = None
        return response

    # What is asked of a session is charged to the session alone. Otherwise those who share an address could use up what
    # a pairing needs.

    async def _describe(self, request: SynapseRequest, _headers: RequestFields, client: str) -> Response:
        self._limits.take(client, self._limits.client_read, quota_keys(client)[:1])
        may_create = await self._admission.may_create(
            request, self._create_policy, verifies_tokens=self._dialect.verifies_tokens
        )
        return self._dialect.description_response(may_create, client)

    async def _post(self, request: SynapseRequest, headers: RequestFields, client: str) -> Response:
        await self._admission.check_create(
            request, client, self._create_policy, verifies_tokens=self._dialect.verifies_tokens
        )
        assert request.content is not None  # noqa: S101 (Twisted sets it before it renders)
        write = self._dialect.parse_post(headers, request.content)
        session_id, tag = self._dialect.id_prefix + new_random_id(), new_tag()
        try:
            session = await self._store.create(session_id, tag, write, client)
        except StoreFull as client_full:
            self._limits.enforce(client_full, client)
            try:
                session = await self._store.create(session_id, tag, write, EXEMPT)  # limits are only observed
            except StoreFull as full:
                self._limits.enforce(full, client)
                raise
        self._observer.session_created(session, self._dialect.name, client)
        return self._dialect.created_response(session)

    async def _get(self, request: SynapseRequest, headers: RequestFields, client: str, session_id: str) -> Response:
        if self._dialect.is_for_display(headers):
            raise NotForDisplay
        preconditions = self._dialect.parse_conditions(headers, request.args)
        if b"timeout" in request.args:
            wait_ms, is_asked = self._waiters.parse_timeout(request.args[b"timeout"]), True
        else:
            is_poll = request.method == b"GET" and preconditions.if_none_match is not None
            wait_ms, is_asked = self._waiters.default_wait_ms if is_poll else 0, False
        waiter = None
        if wait_ms > 0:
            request.is_render_cancellable = True  # a client that leaves makes room at once
            # Register, then read: a write in between is either read or wakes the waiter.
            waiter = self._waiters.add(session_id, client)
        try:
            session = await self._store.get(session_id)
            try:
                self._limits.take(client, self._limits.session_read, ((session_id, 1),))
            except LimitExceededError as refusal:
                raise ReadRefused(refusal, session) from None
            result = preconditions.evaluate(session, safe=True)
            if preconditions.changes:
                self._observer.tags_normalised(preconditions.changes)
            if wait_ms > 0:
                if waiter is None:
                    self._observer.wait_ended("refused", is_asked=is_asked)
                elif result is PreconditionResult.NOT_MODIFIED:
                    headers.clear()
                    _release(request)
                    session, result = await self._wait(waiter, wait_ms, session, preconditions, is_asked=is_asked)
        finally:
            if waiter is not None:
                self._waiters.remove(waiter)
        if result is PreconditionResult.NOT_MODIFIED:
            return self._dialect.not_modified_response(session)
        if result is PreconditionResult.FAILED:
            raise PreconditionFailed(session)
        return self._dialect.payload_response(session)

    async def _wait(
        self, waiter: Waiter, wait_ms: int, session: Session, preconditions: Preconditions, *, is_asked: bool
    ) -> tuple[Session, PreconditionResult]:
        """Return the current revision and what it means to the reader, once it is another one or the time is over."""
        end_ms = self._waiters.end_ms(self._store.now_ms(), wait_ms)
        result, outcome = PreconditionResult.NOT_MODIFIED, "left"
        self._waiters.hold(waiter)
        try:
            while result is PreconditionResult.NOT_MODIFIED and not (self._waiters.is_closed or waiter.is_displaced):
                left_ms = min(end_ms, session.expires_ms + LINGER_MS) - self._store.now_ms()
                if left_ms <= 0:
                    break
                await waiter.wait(left_ms)
                if not self._waiters.is_closed:
                    session = await self._store.get(session.id)
                    result = preconditions.evaluate(session, safe=True)
            unchanged = "displaced" if waiter.is_displaced else "timed_out"
            outcome = unchanged if result is PreconditionResult.NOT_MODIFIED else "changed"
        except SessionNotFound:
            outcome = "ended"
            raise
        finally:
            self._observer.wait_ended(outcome, is_asked=is_asked)
        return session, result

    async def _put_transaction(
        self, request: SynapseRequest, headers: RequestFields, client: str, session_path: bytes, transaction_id: bytes
    ) -> Response:
        collection, _, name = session_path.rpartition(b"/")
        if collection != self._path or not name or self._dialect.transaction_response is None:
            raise NoSuchEndpoint
        if request.method != b"PUT":
            raise MethodNotAllowed((b"PUT",))
        if not _TRANSACTION_ID.fullmatch(transaction_id):
            raise InvalidTransactionId
        is_id = len(name) == self._id_length and name.startswith(self._id_prefix)
        return await self._put(request, headers, client, name.decode("latin-1") if is_id else NO_ID, transaction_id)

    async def _put(
        self,
        request: SynapseRequest,
        headers: RequestFields,
        client: str,
        session_id: str,
        transaction_id: bytes | None = None,
    ) -> Response:
        limits, keys = self._limits, ((session_id, 1),)
        limits.check(client, limits.session_write, keys)
        assert request.content is not None  # noqa: S101 (Twisted sets it before it renders)
        write, preconditions = self._dialect.parse_put(headers, request.content)
        expected_tag = preconditions.expected_tag
        for _ in range(MAX_SWAPS):
            try:
                swap = await self._store.swap(session_id, expected_tag, new_tag(), write, transaction_id)
            except StoreFull as full:
                limits.enforce(full, client)
                raise
            session, is_done, kept = swap
            if is_done or transaction_id is not None or preconditions.is_repeat(session, write):
                break
            expected_tag = self._require(preconditions, session, client)
        else:
            raise WriteContended
        # Only now: PUTs of sessions that do not exist would leave no room in the table of the limit.
        limits.take(client, limits.session_write, keys, is_done=True)
        if transaction_id is not None and not is_done and kept in (None, CONFLICT):
            if kept is not None:
                self._observer.write_repeated()
            raise TransactionConflict
        if preconditions.changes:
            self._observer.tags_normalised(preconditions.changes)
        if is_done:
            self._waiters.wake(session_id)
        transaction_response = self._dialect.transaction_response
        if kept is None or transaction_response is None:
            response = self._dialect.updated_response(session)
        else:
            response = transaction_response(kept)
        if is_done:
            self._observer.session_replaced(session)
        else:
            self._observer.write_repeated()
        return response

    async def _delete(self, _request: SynapseRequest, headers: RequestFields, client: str, session_id: str) -> Response:
        preconditions = self._dialect.parse_conditions(headers, {})
        expected_tag = preconditions.expected_tag
        for _ in range(MAX_SWAPS):
            session, is_done, _ = await self._store.delete(session_id, expected_tag)
            if is_done:
                self._waiters.wake(session_id)
                return self._dialect.deleted_response()
            expected_tag = self._require(preconditions, session, client)
        raise WriteContended

    def _require(self, preconditions: Preconditions, session: Session, client: str) -> bytes:
        """Return the tag of the current revision if it meets the preconditions of a write.

        Raises:
            PreconditionFailed: it does not, which counts as a write of the session all the same.
            LimitExceededError: it does not, and the session was written too often.
        """
        if preconditions.evaluate(session, safe=False) is PreconditionResult.FAILED:
            self._limits.take(client, self._limits.session_write, ((session.id, 1),))
            raise PreconditionFailed(session)
        return session.tag


def _release(request: SynapseRequest) -> None:
    """Let go of what a request holds and its answer does not need, before it waits.

    Synapse accepts 64 KiB of header fields, and Twisted keeps 100 kB of content in memory. The log shows the agent.
    """
    agent = (request.requestHeaders.getRawHeaders(b"User-Agent") or [b""])[0][:MAX_AGENT_BYTES]
    request.requestHeaders = Headers({b"User-Agent": [agent]} if agent else None)
    request.args = {}
    if request.content is not None:
        request.content.close()
        request.content = io.BytesIO()


class _SuspendedResource(DirectServeJsonResource):
    """Continues one request: keeps its log context, metrics and tracing right until it is answered.

    Args:
        clock: Synapse's clock.
        coroutine: what answers the request.
    """

    def __init__(self, clock: "Clock", coroutine: StartedCoroutine) -> None:
        super().__init__(clock=clock)
        self._coroutine = coroutine

    async def _async_render(self, request: SynapseRequest) -> None:
        request.request_metrics.name = RendezvousResource.__name__
        await self._coroutine
