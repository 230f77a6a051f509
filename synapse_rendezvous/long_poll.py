"""Who waits for which session to change, and how they are woken."""

import math
import re
from collections import Counter
from collections.abc import Callable, Sequence

from synapse.logging.context import PreserveLoggingContext, make_deferred_yieldable
from twisted.internet.defer import Deferred

from synapse_rendezvous.clients import shares
from synapse_rendezvous.errors import InvalidTimeout
from synapse_rendezvous.homeserver import Alarm

_MILLISECONDS = re.compile(rb"[0-9]{1,9}")


CallLater = Callable[[float, Callable[[], None]], Alarm]
"""Calls a function after so many milliseconds."""


class Place:
    """One request that waits.

    Whatever happens to the session while the place is held is noticed, also between two waits.

    Args:
        session_id: what it waits for.
        client: whom it counts for.
        call_later: ends a wait that takes too long.
        longest_ms: how long one wait may take.
    """

    def __init__(self, session_id: str, client: str, call_later: CallLater, longest_ms: float) -> None:
        self.session_id = session_id
        self.client = client
        self._call_later = call_later
        self._longest_ms = longest_ms
        self._is_woken = False
        self._waiting: Deferred[None] | None = None

    async def changed(self, ms: float) -> None:
        """Return when the session may have changed since the last call, or after so many milliseconds.

        Raises:
            CancelledError: the client left.
        """
        if not self._is_woken:
            self._waiting = Deferred()
            alarm = self._call_later(min(ms, self._longest_ms), self.wake)
            try:
                await make_deferred_yieldable(self._waiting)
            finally:
                self._waiting = None
                if alarm.active():
                    alarm.cancel()
        self._is_woken = False

    def wake(self) -> None:
        """End the wait, or the next one if there is none now."""
        self._is_woken = True
        if self._waiting is not None and not self._waiting.called:
            with PreserveLoggingContext():  # what follows is the waiting request's, which has a context of its own
                self._waiting.callback(None)


class Waiting:
    """The requests that wait, by session.

    Args:
        call_later: ends waits that take too long.
        max_wait_ms: how long a request may be held.
        default_wait_ms: how long one is held that does not say.
        max_waiting: how many requests may wait at once.
        max_client_waiting: how many of one client.
        reread_ms: how often to look without being woken, because a wake-up may be lost on its way.
    """

    MAX_SESSION_WAITING = 4
    """How many may wait for one session: two devices, each with one request more that has lost its connection."""

    WOKEN_TOGETHER = 100
    """How many are woken at once where all are."""

    WAKE_INTERVAL_MS = 50
    """How long after them the next ones are."""

    LONG_WAIT_MS = 5000
    """From how long on a wait may end a little sooner."""

    END_INTERVAL_MS = 1000
    """Long waits end at multiples of this, many at once: that, and what clients ask then, costs half as much."""

    def __init__(
        self,
        call_later: CallLater,
        *,
        max_wait_ms: int,
        default_wait_ms: int,
        max_waiting: int,
        max_client_waiting: int,
        reread_ms: float = math.inf,
    ) -> None:
        self.max_wait_ms = max_wait_ms
        self.default_wait_ms = default_wait_ms
        self.is_closed = False
        self._call_later = call_later
        self._max_waiting = max_waiting
        self._max_client_waiting = max_client_waiting
        self._reread_ms = reread_ms
        self._places: dict[str, list[Place]] = {}
        self._clients: Counter[str] = Counter()
        self._count = 0

    def __len__(self) -> int:
        """How many requests hold a place."""
        return self._count

    def wait_ms(self, wanted: Sequence[bytes]) -> int:
        """Return how long a request may be held that says how long it would be.

        Args:
            wanted: the values of its `timeout` parameter.

        Raises:
            InvalidTimeout: it is not one number of milliseconds.
        """
        if len(wanted) != 1 or not _MILLISECONDS.fullmatch(wanted[0]):
            raise InvalidTimeout
        return min(int(wanted[0]), self.max_wait_ms)

    def end_ms(self, now_ms: int, wait_ms: int) -> int:
        """Return when a wait that begins now ends."""
        end_ms = now_ms + wait_ms
        return end_ms - end_ms % self.END_INTERVAL_MS if wait_ms >= self.LONG_WAIT_MS else end_ms

    def take(self, session_id: str, client: str) -> Place | None:
        """Take a place for a request, which must `leave` it; None if there is no room.

        Args:
            session_id: what it waits for.
            client: whom it counts for.
        """
        if not self._has_room(session_id, client):
            return None
        place = Place(session_id, client, self._call_later, self._reread_ms)
        self._places.setdefault(session_id, []).append(place)
        self._clients[client] += 1
        self._count += 1
        return place

    def leave(self, place: Place) -> None:
        """Give a place back."""
        self._count -= 1
        self._clients[place.client] -= 1
        if not self._clients[place.client]:
            del self._clients[place.client]
        places = self._places[place.session_id]
        places.remove(place)
        if not places:
            del self._places[place.session_id]

    def wake(self, session_id: str) -> None:
        """Wake whoever waits for this session."""
        for place in tuple(self._places.get(session_id, ())):
            place.wake()

    def wake_all(self) -> None:
        """Wake everybody, because what happened meanwhile is not known; some at a time, because they will all read."""
        self._wake_some(self._all())

    def close(self) -> None:
        """Let nobody wait any more: all are answered with what they know."""
        self.is_closed = True
        for place in self._all():
            place.wake()

    def _all(self) -> list[Place]:
        return [place for places in self._places.values() for place in places]

    def _wake_some(self, places: list[Place]) -> None:
        for place in places[: self.WOKEN_TOGETHER]:
            place.wake()
        if rest := places[self.WOKEN_TOGETHER :]:
            self._call_later(self.WAKE_INTERVAL_MS, lambda: self._wake_some(rest))

    def _has_room(self, session_id: str, client: str) -> bool:
        return (
            not self.is_closed
            and self._count < self._max_waiting
            and (not shares(client) or self._clients[client] < self._max_client_waiting)
            and len(self._places.get(session_id, ())) < self.MAX_SESSION_WAITING
        )
