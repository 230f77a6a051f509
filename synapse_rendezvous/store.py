"""What a store of sessions does, wherever it keeps them."""

from typing import NamedTuple, Protocol

import attr

from synapse_rendezvous.session import EndedSession, Session, StoreUsage, Write


@attr.s(auto_attribs=True, frozen=True, slots=True)
class Quotas:
    """How much a store keeps.

    Attributes:
        ttl_ms: how long a session lives from its creation.
        max_sessions: the most sessions that live at once.
        max_total_bytes: the most bytes of payload that they hold together.
        max_updates: how often a payload may be replaced.
        max_outcomes: the outcomes of how many transactions are kept for a session.
        max_client_sessions: the most sessions of one client at once; of the networks around it, as `quota_keys` says.
        crowded_sessions: from this many sessions on, the store is crowded.
        crowded_client_sessions: the most sessions of one client while the store is crowded.
    """

    ttl_ms: int
    max_sessions: int
    max_total_bytes: int
    max_updates: int
    max_outcomes: int
    max_client_sessions: int
    crowded_sessions: int
    crowded_client_sessions: int


class SwapResult(NamedTuple):
    """The outcome of a swap or a deletion.

    Attributes:
        session: the current revision; the last one, after a deletion.
        is_done: whether the session was changed; otherwise `session` has another tag than was expected, or the
            transaction id was used before.
        kept: what became of an earlier write under the same transaction id: the tag of the revision that it made, or
            `CONFLICT`. None if there was none.
    """

    session: Session
    is_done: bool
    kept: bytes | None = None


class SessionObserver(Protocol):
    """Receives the events that a store notices by itself."""

    def session_ended(self, session: EndedSession) -> None:
        """A session was deleted, or has been found expired."""


class SessionStore(Protocol):
    """Keeps sessions until they are deleted or expire.

    Each operation is atomic. Tags are random and never used again, so a swap that compares only the tag is exact: what
    was decided for a revision holds as long as its tag is current.
    """

    @property
    def changes_channel(self) -> str | None:
        """The Redis channel that names each session that was changed; None if only this process changes sessions."""

    def now_ms(self) -> int:
        """Return the time by which sessions live, in milliseconds since the epoch."""

    async def create(self, session_id: str, tag: bytes, write: Write, client: str) -> Session:
        """Store a new session.

        Args:
            session_id: a new id.
            tag: a new tag.
            write: the first payload.
            client: the client whose quota it counts for.

        Raises:
            StoreFull: there is no room for it, or `client` has as many as it may. No live session is ever given up for
                a new one.
        """

    async def get(self, session_id: str) -> Session:
        """Return the current revision.

        Raises:
            SessionNotFound: no session has this id now.
        """

    async def swap(
        self,
        session_id: str,
        expected_tag: bytes | None,
        tag: bytes,
        write: Write,
        transaction_id: bytes | None = None,
    ) -> SwapResult:
        """Replace the payload if the current tag is the expected one.

        Args:
            session_id: the session's id.
            expected_tag: the tag to compare with; None replaces any revision.
            tag: a new tag.
            write: the new payload.
            transaction_id: names this write among all of the session. What becomes of it is kept for the life of the
                session; if something is kept already, nothing is compared or changed.

        Raises:
            SessionNotFound: no session has this id now.
            StoreFull: the tag is the expected one, but the payload grew beyond the room there is, or was replaced as
                often as it may be; or as many outcomes are kept as may be. The session stays as it is.
        """

    async def delete(self, session_id: str, expected_tag: bytes | None) -> SwapResult:
        """End a session if its current tag is the expected one; None ends it whichever it is.

        Raises:
            SessionNotFound: no session has this id now.
        """

    async def sweep(self) -> StoreUsage:
        """Forget some of the sessions that have expired, and return what is left.

        No expired session is ever returned, so this only makes room and reports their ends.
        """
