"""Sessions in the Redis that Synapse uses, where all processes of a homeserver find them."""

from collections.abc import Callable

from synapse_rendezvous.errors import SessionNotFound, StoreFull
from synapse_rendezvous.limits import LimitName
from synapse_rendezvous.outcomes import TAG_LENGTH, transaction_key
from synapse_rendezvous.redis import layout
from synapse_rendezvous.redis.link import RedisLink
from synapse_rendezvous.session import EndedSession, Session, StoreUsage, Write
from synapse_rendezvous.store import Quotas, SessionObserver, SwapResult


class RedisSessionStore:
    """Keeps sessions in Redis. Every operation is one script, hence atomic and one round trip.

    All methods raise `StoreUnavailable` when Redis gives no answer in time.

    Args:
        link: runs the scripts.
        wall_ms: returns this process's time in milliseconds since the epoch.
        server_name: of the homeserver; several may share a Redis.
        quotas: how much is kept.
        observer: receives the ends of sessions; each end reaches the observer of one process alone.
    """

    GRACE_MS = 60_000
    """How long the keys stay in Redis after the last session's end. The sweep, each ten seconds in each process, must
    have had time to report how the last ones ended."""

    def __init__(
        self,
        link: RedisLink,
        wall_ms: Callable[[], int],
        *,
        server_name: str,
        quotas: Quotas,
        observer: SessionObserver,
    ) -> None:
        self._link = link
        self._observer = observer
        self._wall_ms = wall_ms
        self._redis_offset_ms = 0
        prefix = f"synapse_rendezvous:{layout.VERSION}:{{{server_name}}}:"
        self._keys = (f"{prefix}sessions", f"{prefix}queue", f"{prefix}totals")
        self.changes_channel = f"{prefix}changes"
        self._quotas = quotas

    def now_ms(self) -> int:
        """See `SessionStore.now_ms`: Redis' time, by what it was at the last answer."""
        return self._wall_ms() + self._redis_offset_ms

    async def create(self, session_id: str, tag: bytes, write: Write, client: str) -> Session:
        """See `SessionStore.create`."""
        quotas, stored = self._quotas, _stored(write)
        _, head = await self._run(
            layout.CREATE,
            session_id,
            *(tag, stored, len(write.payload), client.encode("ascii")),
            *(quotas.ttl_ms, self.GRACE_MS, quotas.max_sessions, quotas.max_total_bytes),
            *(quotas.max_client_sessions, quotas.crowded_sessions, quotas.crowded_client_sessions),
        )
        return parse_session(session_id, head + stored)

    async def get(self, session_id: str) -> Session:
        """See `SessionStore.get`."""
        _, value = await self._run(layout.GET, session_id)
        return parse_session(session_id, value)

    async def swap(
        self,
        session_id: str,
        expected_tag: bytes | None,
        tag: bytes,
        write: Write,
        transaction_id: bytes | None = None,
    ) -> SwapResult:
        """See `SessionStore.swap`."""
        quotas, stored = self._quotas, _stored(write)
        verdict, value = await self._run(
            layout.SWAP,
            session_id,
            *(_expected(expected_tag), tag, stored, len(write.payload)),
            *(quotas.max_total_bytes, quotas.max_updates, self.changes_channel.encode("ascii")),
            *(b"" if transaction_id is None else transaction_key(transaction_id), quotas.max_outcomes),
        )
        if verdict == "kept":
            kept, value = value[1 : TAG_LENGTH + 1], value[TAG_LENGTH + 1 :]
            return SwapResult(parse_session(session_id, value), is_done=False, kept=kept)
        is_done = verdict == "ok"
        return SwapResult(parse_session(session_id, value + stored if is_done else value), is_done)

    async def delete(self, session_id: str, expected_tag: bytes | None) -> SwapResult:
        """See `SessionStore.delete`; the session in the result is without its payload if it was deleted."""
        channel = self.changes_channel.encode("ascii")
        verdict, value = await self._run(layout.DELETE, session_id, _expected(expected_tag), channel)
        is_done = verdict == "ok"
        session = parse_session(session_id, value + _stored(Write(b"", b"")) if is_done else value)
        if is_done:
            lived_ms = self._quotas.ttl_ms - (session.expires_ms - self.now_ms())
            self._observer.session_ended(EndedSession(session_id, session.updates, lived_ms, "deleted"))
        return SwapResult(session, is_done)

    async def sweep(self) -> StoreUsage:
        """See `SessionStore.sweep`."""
        _, value = await self._run(layout.SWEEP, "", is_background=True)
        usage = layout.USAGE.fullmatch(value)
        assert usage is not None  # noqa: S101 (the script says nothing else)
        sessions, total_bytes, clients, more = map(int, usage.groups())
        return StoreUsage(sessions, total_bytes, clients, is_swept=not more)

    async def _run(
        self, script: str, session_id: str, *arguments: bytes | int, is_background: bool = False
    ) -> tuple[str, bytes]:
        """Run a script; return its verdict and the value in its answer."""
        arguments = (session_id.encode("utf-8"), *arguments)
        verdict, now_ms, value, ended = await self._link.run(script, self._keys, arguments, is_background=is_background)
        self._redis_offset_ms = int(now_ms) - self._wall_ms()
        for record in ended:
            self._expired(record)
        if isinstance(value, str):  # Synapse's connection decodes UTF-8; to encode it again gives the same bytes
            value = value.encode("utf-8")
        if verdict == "gone":
            raise SessionNotFound
        if verdict == "full":
            raise StoreFull(LimitName(value.decode("ascii")))
        return verdict, value

    def _expired(self, record: str) -> None:
        match = layout.RECORD.fullmatch(record)
        assert match is not None  # noqa: S101 (the scripts return nothing else)
        self._observer.session_ended(EndedSession(match["id"], int(match["updates"]), self._quotas.ttl_ms, "expired"))


def _expected(tag: bytes | None) -> bytes:
    """Return an expected tag as the scripts read it."""
    return b"*" if tag is None else b"=" + tag


def _stored(write: Write) -> bytes:
    """Return a write as it ends a value."""
    return b"%03d%b%b" % (len(write.content_type), write.content_type, write.payload)


def parse_session(session_id: str, value: bytes) -> Session:
    """Return the revision that a value in Redis holds."""
    head = layout.VALUE.match(value)
    assert head is not None, "a value that this version did not write"  # noqa: S101
    type_start = head.end() + int(head["client_length"]) + 3
    payload_start = type_start + int(value[type_start - 3 : type_start])
    return Session(
        id=session_id,
        payload=value[payload_start:],
        content_type=value[type_start:payload_start],
        tag=head["tag"],
        previous_tag=None if head["previous_tag"] == layout.NO_PREVIOUS_TAG else head["previous_tag"],
        last_modified_ms=int(head["last_modified_ms"]),
        expires_ms=int(head["expires_ms"]),
        updates=int(head["updates"]),
        client=value[head.end() : type_start - 3].decode("ascii"),
    )
