"""Sessions in the Redis that Synapse uses, where all processes of a homeserver find them."""

import re
from collections.abc import Callable

from synapse_rendezvous.errors import PreconditionFailed, SessionNotFound, StoreFull
from synapse_rendezvous.preconditions import EntityTags, Preconditions
from synapse_rendezvous.redis import scripts as redis_scripts
from synapse_rendezvous.redis.layout import ABSENT, ANY, HELD, NO_TAG, RECORD, VALUE
from synapse_rendezvous.redis.link import RedisLink
from synapse_rendezvous.session import Ended, Held, Session, Write, new_tag
from synapse_rendezvous.store import Quotas, SessionObserver

_TAG = re.compile(rb"[0-9a-z]{20}")


class RedisSessionStore:
    """Keeps sessions in Redis. Every operation is one script, hence atomic and one round trip.

    All methods raise `StoreUnavailable` when Redis gives no answer in time.

    Args:
        link: runs the scripts.
        now_ms: tells this process's time in milliseconds since the epoch.
        server_name: of the homeserver; several may share a Redis.
        quotas: how much is kept.
        observer: is told of sessions that end; of each, only one process' is.
    """

    GRACE_MS = 60_000
    """How long the keys stay in Redis after the last session's end. The sweep, each ten seconds in each process, must
    have had time to tell the observer how the last ones ended."""

    def __init__(
        self,
        link: RedisLink,
        now_ms: Callable[[], int],
        *,
        server_name: str,
        quotas: Quotas,
        observer: SessionObserver,
    ) -> None:
        self._link = link
        self._observer = observer
        self._local_now_ms = now_ms
        self._ahead_ms = 0
        prefix = f"synapse_rendezvous:{{{server_name}}}:"
        self._keys = (f"{prefix}sessions", f"{prefix}queue", f"{prefix}totals")
        self.changes_channel = f"{prefix}changes"
        self._quotas = quotas

    def now_ms(self) -> int:
        """See `SessionStore.now_ms`: Redis' time, by what it was at the last answer."""
        return self._local_now_ms() + self._ahead_ms

    async def create(self, session_id: str, write: Write, client: str) -> Session:
        """See `SessionStore.create`."""
        quotas, stored = self._quotas, _stored(write)
        head = await self._run(
            redis_scripts.CREATE,
            session_id,
            *(new_tag(), stored, len(write.payload), client.encode("ascii")),
            *(quotas.ttl_ms, self.GRACE_MS, quotas.max_sessions, quotas.max_total_bytes),
            *(quotas.max_client_sessions, quotas.crowded_sessions, quotas.crowded_client_sessions),
        )
        return _read(session_id, head + stored)

    async def get(self, session_id: str) -> Session:
        """See `SessionStore.get`."""
        return _read(session_id, await self._run(redis_scripts.GET, session_id))

    async def replace(self, session_id: str, write: Write, preconditions: Preconditions) -> Session:
        """See `SessionStore.replace`."""
        stored = _stored(write)
        head = await self._run(
            redis_scripts.REPLACE,
            session_id,
            *(new_tag(), stored, len(write.payload), self._quotas.max_total_bytes, self._quotas.max_updates),
            *(int(preconditions.repeats_from_any), self.changes_channel.encode("ascii")),
            *_conditions(preconditions),
        )
        return _read(session_id, head + stored)

    async def delete(self, session_id: str, preconditions: Preconditions) -> None:
        """See `SessionStore.delete`."""
        channel = self.changes_channel.encode("ascii")
        head = await self._run(redis_scripts.DELETE, session_id, channel, *_conditions(preconditions))
        session = _read(session_id, head + _stored(Write(b"", b"")))
        lived_ms = self._quotas.ttl_ms - (session.expires_ms - self.now_ms())
        self._observer.ended(Ended(session_id, session.updates, None, lived_ms, "deleted"))

    async def sweep(self) -> Held:
        """See `SessionStore.sweep`."""
        held = HELD.fullmatch(await self._run(redis_scripts.SWEEP, "", quietly=True))
        assert held is not None  # noqa: S101 (the script says nothing else)
        sessions, total_bytes, clients, more = map(int, held.groups())
        return Held(sessions, total_bytes, clients, is_swept=not more)

    async def _run(self, script: str, session_id: str, *arguments: bytes | int, quietly: bool = False) -> bytes:
        """Run a script and return the value in its answer, or raise what it says instead."""
        arguments = (session_id.encode("utf-8"), *arguments)
        verdict, now_ms, value, ended = await self._link.run(script, self._keys, arguments, quietly=quietly)
        self._ahead_ms = int(now_ms) - self._local_now_ms()
        for record in ended:
            self._expired(record)
        if isinstance(value, str):  # Synapse's connection decodes UTF-8; to encode it again gives the same bytes
            value = value.encode("utf-8")
        if verdict == "gone":
            raise SessionNotFound
        if verdict == "failed":
            raise PreconditionFailed(_read(session_id, value))
        if verdict == "full":
            raise StoreFull(value.decode("ascii"))
        if verdict == "repeated":
            self._observer.repeated()
        return value  # type: ignore[no-any-return]

    def _expired(self, record: str) -> None:
        known = RECORD.fullmatch(record)
        assert known is not None  # noqa: S101 (the scripts tell nothing else)
        self._observer.ended(Ended(known["id"], int(known["updates"]), None, self._quotas.ttl_ms, "expired"))


def _stored(write: Write) -> bytes:
    """Return a write as it ends a value."""
    return b"%03d%b%b" % (len(write.content_type), write.content_type, write.payload)


def _conditions(preconditions: Preconditions) -> tuple[bytes, ...]:
    """Return what a script is told of preconditions; it is given no tags that cannot be ours."""
    unmodified_since_s = preconditions.if_unmodified_since_s
    return (
        _tags(preconditions.if_match),
        _tags(preconditions.if_none_match),
        ABSENT if unmodified_since_s is None else b"%d" % unmodified_since_s,
    )


def _tags(known: EntityTags | None) -> bytes:
    if known is None:
        return ABSENT
    return ANY if known.any else b"".join(b"," + tag for tag in known.tags if _TAG.fullmatch(tag))


def _read(session_id: str, value: bytes) -> Session:
    """Return the revision that a value holds."""
    head = VALUE.match(value)
    assert head is not None, "a value that this version did not write"  # noqa: S101
    type_start = head.end() + int(head["client_length"]) + 3
    payload_start = type_start + int(value[type_start - 3 : type_start])
    return Session(
        id=session_id,
        payload=value[payload_start:],
        content_type=value[type_start:payload_start],
        tag=head["tag"],
        previous_tag=None if head["previous_tag"] == NO_TAG else head["previous_tag"],
        last_modified_ms=int(head["last_modified_ms"]),
        expires_ms=int(head["expires_ms"]),
        updates=int(head["updates"]),
        client=value[head.end() : type_start - 3].decode("ascii"),
    )
