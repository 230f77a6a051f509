"""Sessions in the memory of one process."""

import itertools
from collections.abc import Callable

from synapse_rendezvous.clients import shares
from synapse_rendezvous.errors import PreconditionFailed, SessionNotFound, StoreFull
from synapse_rendezvous.preconditions import Preconditions, Verdict
from synapse_rendezvous.session import Ended, Held, Session, Write
from synapse_rendezvous.store import Quotas, SessionObserver
from synapse_rendezvous.table import Counts, SessionTable, Tally


class MemorySessionStore:
    """Keeps sessions in this process.

    Args:
        now_ms: tells the time in milliseconds since the epoch; it may be set meanwhile.
        steady_ns: tells nanoseconds that only go forward, by which sessions age.
        quotas: how much is kept.
        observer: is told of sessions that end.
        reads: how often each session was read, by whoever admits that; those that end are taken out.
    """

    SWEPT_TOGETHER = 50
    """How many expired sessions are dropped at once where more may wait: all requests wait meanwhile."""

    changes_channel = None

    def __init__(
        self,
        now_ms: Callable[[], int],
        steady_ns: Callable[[], int],
        quotas: Quotas,
        observer: SessionObserver,
        reads: Tally,
    ) -> None:
        self._wall_ms = now_ms
        self._steady_ns = steady_ns
        self._ahead_ms = now_ms() - steady_ns() // 1_000_000
        self._quotas = quotas
        self._observer = observer
        self._sessions = SessionTable()
        self._reads = reads
        self._total_bytes = 0
        self._client_sessions = Counts()

    def __len__(self) -> int:
        """How many sessions are in memory, expired ones not yet swept among them."""
        return len(self._sessions)

    @property
    def total_bytes(self) -> int:
        """How many bytes of payload they hold together."""
        return self._total_bytes

    def now_ms(self) -> int:
        """See `SessionStore.now_ms`."""
        return self._steady_ns() // 1_000_000 + self._ahead_ms

    async def create(self, session_id: str, write: Write, client: str) -> Session:
        """See `SessionStore.create`. A clock that was set while sessions live counts once none does."""
        if not self._sessions:
            self._ahead_ms = self._wall_ms() - self._steady_ns() // 1_000_000
        now_ms = self.now_ms()
        self._require_room(len(write.payload), now_ms, client)
        session = Session.create(session_id, write, client, now_ms, self._quotas.ttl_ms)
        self._sessions[session_id] = session
        self._total_bytes += len(write.payload)
        for name, _ in shares(client):
            self._client_sessions.add(name)
        return session

    async def get(self, session_id: str) -> Session:
        """See `SessionStore.get`."""
        # As `now_ms` does; most requests come by here.
        return self._live(session_id, self._steady_ns() // 1_000_000 + self._ahead_ms)

    async def replace(self, session_id: str, write: Write, preconditions: Preconditions) -> Session:
        """See `SessionStore.replace`."""
        now_ms = self.now_ms()
        session = self._live(session_id, now_ms)
        if preconditions.evaluate(session, safe=False) is Verdict.FAILED:
            if preconditions.repeat(session, write):
                self._observer.repeated()
                return session
            raise PreconditionFailed(session)
        if session.updates >= self._quotas.max_updates:
            raise StoreFull("max_updates")
        growth = len(write.payload) - len(session.payload)
        if growth > 0:
            self._require_room(growth, now_ms)
        session = self._sessions[session_id] = session.replaced(write, now_ms)
        self._total_bytes += growth
        return session

    async def delete(self, session_id: str, preconditions: Preconditions) -> None:
        """See `SessionStore.delete`."""
        now_ms = self.now_ms()
        session = self._live(session_id, now_ms)
        if preconditions.evaluate(session, safe=False) is Verdict.FAILED:
            raise PreconditionFailed(session)
        self._drop(session, self._quotas.ttl_ms - (session.expires_ms - now_ms), "deleted")

    async def sweep(self) -> Held:
        """See `SessionStore.sweep`."""
        may_be_more = self._sweep(self.now_ms())
        return Held(len(self._sessions), self._total_bytes, len(self._client_sessions), is_swept=not may_be_more)

    def _live(self, session_id: str, now_ms: int) -> Session:
        try:
            session = self._sessions[session_id]
        except KeyError:
            raise SessionNotFound from None
        if session.expires_ms <= now_ms:
            self._expire(session)
            raise SessionNotFound
        return session

    def _expire(self, session: Session) -> None:
        self._drop(session, self._quotas.ttl_ms, "expired")

    def _drop(self, session: Session, lived_ms: int, reason: str) -> None:
        del self._sessions[session.id]
        self._total_bytes -= len(session.payload)
        for name, _ in shares(session.client):
            self._client_sessions.remove(name)
        reads = self._reads.pop(session.id)
        self._observer.ended(Ended(session.id, session.updates, reads, lived_ms, reason))

    def _sweep(self, now_ms: int) -> bool:
        """Forget the oldest few of those that are over; say whether there may be more."""
        oldest = itertools.islice(self._sessions.values(), self.SWEPT_TOGETHER)
        expired = list(itertools.takewhile(lambda session: session.expires_ms <= now_ms, oldest))
        for session in expired:
            self._expire(session)
        return len(expired) == self.SWEPT_TOGETHER

    def _require_room(self, growth: int, now_ms: int, client: str | None = None) -> None:
        """Raise StoreFull unless there is room, once as many of the expired are dropped as it takes.

        Args:
            growth: how many bytes of payload are to be added.
            now_ms: the time.
            client: who wants to create a session; None where there is one.
        """
        may_make_room = True
        while quota := self._quota_met(growth, client):
            if not may_make_room:
                raise StoreFull(quota)
            may_make_room = self._sweep(now_ms)

    def _quota_met(self, growth: int, client: str | None) -> str | None:
        quotas = self._quotas
        if client is not None:
            count = len(self._sessions)
            if count >= quotas.max_sessions:
                return "max_sessions"
            quota, most = "per_client.max_sessions", quotas.max_client_sessions
            if count >= quotas.crowded_sessions:
                quota, most = "per_client.crowded_sessions", quotas.crowded_client_sessions
            for name, share in shares(client):
                if self._client_sessions[name] >= most * share:
                    return quota
        if self._total_bytes + growth > quotas.max_total_bytes:
            return "max_total_bytes"
        return None
