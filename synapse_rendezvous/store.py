"""Where sessions are kept."""

import itertools
from collections import Counter
from collections.abc import Callable
from typing import Protocol

from synapse_rendezvous.errors import PreconditionFailed, SessionNotFound, StoreFull
from synapse_rendezvous.preconditions import Preconditions, Verdict
from synapse_rendezvous.session import Session, Write


class SessionStore(Protocol):
    """Keeps sessions until they are deleted or expire. Each operation is atomic: it checks and acts in one step."""

    @property
    def changes_channel(self) -> str | None:
        """Where Redis tells the ids of sessions that were replaced or deleted; None where only this process can."""

    def now_ms(self) -> int:
        """Tell the time by which sessions live, in milliseconds since the epoch."""

    async def create(self, session_id: str, write: Write, client: str) -> Session:
        """Begin a session under a new id.

        Args:
            session_id: a new one.
            write: the first payload.
            client: whom it counts for.

        Raises:
            StoreFull: there is no room for it, or `client` has as many as it may. No live session is ever given up for
                a new one.
        """

    async def get(self, session_id: str) -> Session:
        """Return the current revision.

        Raises:
            SessionNotFound: no session has this id now.
        """

    async def replace(self, session_id: str, write: Write, preconditions: Preconditions) -> Session:
        """Store a payload if the preconditions hold, and return the new revision.

        A repeat of the last accepted write changes nothing and returns the current revision.

        Raises:
            SessionNotFound: no session has this id now.
            PreconditionFailed: with the current revision, which stays.
            StoreFull: the payload grew beyond the room there is; the current revision stays.
        """

    async def delete(self, session_id: str, preconditions: Preconditions) -> None:
        """End a session if the preconditions hold.

        Raises:
            SessionNotFound: no session has this id now.
            PreconditionFailed: with the current revision, which stays.
        """


class MemorySessionStore:
    """Keeps sessions in this process.

    Args:
        now_ms: tells the time in milliseconds since the epoch.
        ttl_ms: how long a session lives from its creation.
        max_sessions: how many may live at once.
        max_total_bytes: how many bytes of payload they may hold together.
        max_client_sessions: how many of one client may live at once.
    """

    changes_channel = None

    def __init__(
        self,
        now_ms: Callable[[], int],
        *,
        ttl_ms: int,
        max_sessions: int,
        max_total_bytes: int,
        max_client_sessions: int,
    ) -> None:
        self._now_ms = now_ms
        self._ttl_ms = ttl_ms
        self._max_sessions = max_sessions
        self._max_total_bytes = max_total_bytes
        self._max_client_sessions = max_client_sessions
        # In the order of creation and, since all live equally long, of expiry: replacing a value keeps its place.
        self._sessions: dict[str, Session] = {}
        self._total_bytes = 0
        self._client_sessions: Counter[str] = Counter()

    def __len__(self) -> int:
        """How many sessions are in memory, expired ones not yet swept among them."""
        return len(self._sessions)

    @property
    def total_bytes(self) -> int:
        """How many bytes of payload they hold together."""
        return self._total_bytes

    def now_ms(self) -> int:
        """See `SessionStore.now_ms`."""
        return self._now_ms()

    async def create(self, session_id: str, write: Write, client: str) -> Session:
        """See `SessionStore.create`."""
        now_ms = self._now_ms()
        size = len(write.payload)
        if len(self._sessions) >= self._max_sessions:
            self._sweep(now_ms)
            if len(self._sessions) >= self._max_sessions:
                raise StoreFull("max_sessions")
        self._make_room(size, now_ms)
        if self._client_sessions[client] >= self._max_client_sessions:
            self._sweep(now_ms)
            if self._client_sessions[client] >= self._max_client_sessions:
                raise StoreFull("per_client.max_sessions")
        session = Session.create(session_id, write, client, now_ms, self._ttl_ms)
        self._sessions[session_id] = session
        self._total_bytes += size
        self._client_sessions[client] += 1
        return session

    async def get(self, session_id: str) -> Session:
        """See `SessionStore.get`."""
        return self._live(session_id, self._now_ms())

    async def replace(self, session_id: str, write: Write, preconditions: Preconditions) -> Session:
        """See `SessionStore.replace`."""
        now_ms = self._now_ms()
        session = self._live(session_id, now_ms)
        if preconditions.evaluate(session, safe=False) is Verdict.FAILED:
            if preconditions.repeat(session, write):
                return session
            raise PreconditionFailed(session)
        growth = len(write.payload) - len(session.payload)
        self._make_room(growth, now_ms)
        session = self._sessions[session_id] = session.replaced(write, now_ms)
        self._total_bytes += growth
        return session

    async def delete(self, session_id: str, preconditions: Preconditions) -> None:
        """See `SessionStore.delete`."""
        session = self._live(session_id, self._now_ms())
        if preconditions.evaluate(session, safe=False) is Verdict.FAILED:
            raise PreconditionFailed(session)
        self._drop(session)

    def sweep(self) -> None:
        """Drop the sessions that have expired."""
        self._sweep(self._now_ms())

    def _live(self, session_id: str, now_ms: int) -> Session:
        session = self._sessions.get(session_id)
        if session is None:
            raise SessionNotFound
        if session.expires_ms <= now_ms:
            self._drop(session)
            raise SessionNotFound
        return session

    def _drop(self, session: Session) -> None:
        del self._sessions[session.id]
        self._total_bytes -= len(session.payload)
        self._client_sessions[session.client] -= 1
        if not self._client_sessions[session.client]:
            del self._client_sessions[session.client]

    def _sweep(self, now_ms: int) -> None:
        # The oldest come first, so this ends at the first that is still alive: its cost is that of what it drops.
        expired = list(itertools.takewhile(lambda session: session.expires_ms <= now_ms, self._sessions.values()))
        for session in expired:
            self._drop(session)

    def _make_room(self, growth: int, now_ms: int) -> None:
        """Raise StoreFull unless so many bytes more fit, once the expired have made room."""
        if growth > 0 and self._total_bytes + growth > self._max_total_bytes:
            self._sweep(now_ms)
            if self._total_bytes + growth > self._max_total_bytes:
                raise StoreFull("max_total_bytes")
