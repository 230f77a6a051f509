"""What a store of sessions does, wherever it keeps them."""

from typing import Protocol

import attr

from synapse_rendezvous.preconditions import Preconditions
from synapse_rendezvous.session import Ended, Held, Session, Write


@attr.s(auto_attribs=True, frozen=True, slots=True)
class Quotas:
    """How much a store keeps.

    Attributes:
        ttl_ms: how long a session lives from its creation.
        max_sessions: how many may live at once.
        max_total_bytes: how many bytes of payload they may hold together.
        max_updates: how often a payload may be replaced.
        max_client_sessions: how many of one client may live at once; of the networks around it, as `shares` says.
        crowded_sessions: from how many on the store is crowded.
        crowded_client_sessions: how many of one client may live for it to get another one while it is crowded.
    """

    ttl_ms: int
    max_sessions: int
    max_total_bytes: int
    max_updates: int
    max_client_sessions: int
    crowded_sessions: int
    crowded_client_sessions: int


class SessionObserver(Protocol):
    """Is told by a store what nobody asked it for."""

    def ended(self, session: Ended) -> None:
        """A session was deleted, or has been found expired."""

    def repeated(self) -> None:
        """A write was not done, because it was before."""


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
            StoreFull: the payload grew beyond the room there is, or was replaced as often as it may; it stays.
        """

    async def delete(self, session_id: str, preconditions: Preconditions) -> None:
        """End a session if the preconditions hold.

        Raises:
            SessionNotFound: no session has this id now.
            PreconditionFailed: with the current revision, which stays.
        """

    async def sweep(self) -> Held:
        """Forget some of the sessions that have expired, and return what is held then.

        Nobody is served one of them anyway. This makes room, and tells the observer.
        """
