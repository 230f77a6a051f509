"""Sessions in the memory of one process."""

import itertools
from collections.abc import Callable

from synapse_rendezvous.clients import quota_keys
from synapse_rendezvous.errors import SessionNotFound, StoreFull
from synapse_rendezvous.limits import LimitName
from synapse_rendezvous.outcomes import CONFLICT, OUTCOME_BYTES, find_outcome, transaction_key
from synapse_rendezvous.session import LINGER_MS, EndedSession, Session, StoreUsage, Write
from synapse_rendezvous.store import Quotas, SessionObserver, SwapResult
from synapse_rendezvous.table import Counts, SessionTable


class MemorySessionStore:
    """Keeps sessions in this process.

    Args:
        wall_ms: returns milliseconds since the epoch, by a clock that may be set.
        monotonic_ns: returns nanoseconds of a clock that is never set, by which sessions age.
        quotas: how much is kept.
        observer: receives the ends of sessions.
    """

    SWEEP_BATCH = 50
    """How many expired sessions are dropped in one go while more are left: all requests wait meanwhile."""

    changes_channel = None

    def __init__(
        self,
        wall_ms: Callable[[], int],
        monotonic_ns: Callable[[], int],
        quotas: Quotas,
        observer: SessionObserver,
    ) -> None:
        self._wall_ms = wall_ms
        self._monotonic_ns = monotonic_ns
        self._wall_offset_ms = wall_ms() - monotonic_ns() // 1_000_000
        self._quotas = quotas
        self._observer = observer
        self._sessions = SessionTable()
        self._total_bytes = 0
        self._client_sessions = Counts()

    def __len__(self) -> int:
        """Return the number of sessions in memory, expired ones not yet swept among them."""
        return len(self._sessions)

    @property
    def total_bytes(self) -> int:
        """The bytes of payload that they hold together."""
        return self._total_bytes

    def now_ms(self) -> int:
        """See `SessionStore.now_ms`."""
        return self._monotonic_ns() // 1_000_000 + self._wall_offset_ms

    async def create(self, session_id: str, tag: bytes, write: Write, client: str) -> Session:
        """See `SessionStore.create`. The time of day is read again once no session is left."""
        if not self._sessions:
            self._wall_offset_ms = self._wall_ms() - self._monotonic_ns() // 1_000_000
        now_ms = self.now_ms()
        while limit := self._met_limit(len(write.payload), client):
            if not self._sweep(now_ms):
                raise StoreFull(limit)
        session = Session(session_id, *write, tag, None, now_ms, now_ms + self._quotas.ttl_ms, 0, client)
        self._sessions[session_id] = session
        self._total_bytes += len(write.payload)
        for key, _ in quota_keys(client):
            self._client_sessions.add(key)
        return session

    async def get(self, session_id: str) -> Session:
        """See `SessionStore.get`."""
        session = self._sessions.get(session_id)
        if session is None or session.expires_ms + LINGER_MS <= self.now_ms():
            raise self._not_found(session)
        return session

    async def swap(
        self,
        session_id: str,
        expected_tag: bytes | None,
        tag: bytes,
        write: Write,
        transaction_id: bytes | None = None,
    ) -> SwapResult:
        """See `SessionStore.swap`."""
        now_ms = self.now_ms()
        current = self._sessions.get(session_id)
        if current is None or current.expires_ms + LINGER_MS <= now_ms:
            raise self._not_found(current)
        is_expected = expected_tag is None or expected_tag == current.tag
        outcomes = current.outcomes
        if transaction_id is not None:
            key = transaction_key(transaction_id)
            kept = find_outcome(outcomes, key)
            if kept is not None:
                return SwapResult(current, is_done=False, kept=kept)
            if len(outcomes) >= self._quotas.max_outcomes * OUTCOME_BYTES:
                raise StoreFull(LimitName.MAX_UPDATES)
            outcomes += key + (tag if is_expected else CONFLICT)
        if not is_expected:
            if transaction_id is not None:
                self._sessions[session_id] = current._replace(outcomes=outcomes)
            return SwapResult(current, is_done=False)
        if current.updates >= self._quotas.max_updates:
            raise StoreFull(LimitName.MAX_UPDATES)
        growth = len(write.payload) - len(current.payload)
        while growth > 0 and self._total_bytes + growth > self._quotas.max_total_bytes:
            if not self._sweep(now_ms):
                raise StoreFull(LimitName.MAX_TOTAL_BYTES)
        session = Session(
            session_id,
            *write,
            tag,
            current.tag,
            now_ms,
            current.expires_ms,
            current.updates + 1,
            current.client,
            outcomes,
        )
        self._sessions[session_id] = session
        self._total_bytes += growth
        return SwapResult(session, is_done=True)

    async def delete(self, session_id: str, expected_tag: bytes | None) -> SwapResult:
        """See `SessionStore.delete`."""
        now_ms = self.now_ms()
        session = self._sessions.get(session_id)
        if session is None or session.expires_ms + LINGER_MS <= now_ms:
            raise self._not_found(session)
        if expected_tag is not None and expected_tag != session.tag:
            return SwapResult(session, is_done=False)
        self._drop(session, self._quotas.ttl_ms - (session.expires_ms - now_ms), "deleted")
        return SwapResult(session, is_done=True)

    async def sweep(self) -> StoreUsage:
        """See `SessionStore.sweep`."""
        is_swept = self._sweep(self.now_ms()) < self.SWEEP_BATCH
        return StoreUsage(len(self._sessions), self._total_bytes, len(self._client_sessions), is_swept)

    def _not_found(self, expired: Session | None) -> SessionNotFound:
        """Return the error for an id that has no session, once its expired session, if any, is dropped."""
        if expired is not None:
            self._drop(expired, self._quotas.ttl_ms, "expired")
        return SessionNotFound()

    def _drop(self, session: Session, lived_ms: int, reason: str) -> None:
        del self._sessions[session.id]
        self._total_bytes -= len(session.payload)
        for key, _ in quota_keys(session.client):
            self._client_sessions.remove(key)
        self._observer.session_ended(EndedSession(session.id, session.updates, lived_ms, reason))

    def _sweep(self, now_ms: int) -> int:
        """Forget the oldest few of the expired sessions; return how many."""
        oldest = itertools.islice(self._sessions.values(), self.SWEEP_BATCH)
        expired = list(itertools.takewhile(lambda session: session.expires_ms + LINGER_MS <= now_ms, oldest))
        for session in expired:
            self._drop(session, self._quotas.ttl_ms, "expired")
        return len(expired)

    def _met_limit(self, size: int, client: str) -> LimitName | None:
        """Return the quota that has no room for a new session of this size and client, if any."""
        quotas, count = self._quotas, len(self._sessions)
        if count >= quotas.max_sessions:
            return LimitName.MAX_SESSIONS
        limit, max_sessions = LimitName.CLIENT_SESSIONS, quotas.max_client_sessions
        if count >= quotas.crowded_sessions:
            limit, max_sessions = LimitName.CLIENT_CROWDED_SESSIONS, quotas.crowded_client_sessions
        for key, share in quota_keys(client):
            if self._client_sessions[key] >= max_sessions * share:
                return limit
        return LimitName.MAX_TOTAL_BYTES if self._total_bytes + size > quotas.max_total_bytes else None
