"""Requests that wait for a session to change, and how they are woken."""

import math
import re
from collections import Counter
from collections.abc import Callable, Sequence

from synapse.logging.context import PreserveLoggingContext, make_deferred_yieldable
from twisted.internet.defer import Deferred

from synapse_rendezvous.clients import quota_keys
from synapse_rendezvous.errors import InvalidTimeout
from synapse_rendezvous.homeserver import DelayedCall

_MILLISECONDS = re.compile(rb"[0-9]{1,9}")

CallLater = Callable[[float, Callable[[], None]], DelayedCall]
"""Calls a function after so many milliseconds, outside of any log context."""


class Waiter:
    """One request that waits.

    It notices whatever happens to its session from its beginning to its end, also between two waits.

    Args:
        session_id: the session it waits for.
        client: the client it counts for.
        call_later: ends a wait that takes too long.
        reread_ms: the longest time that one wait takes.

    Attributes:
        session_id: see above.
        client: see above.
        is_held: whether its request is held by now.
        is_displaced: whether it has lost its place to a newer request, and must be answered.
    """

    def __init__(self, session_id: str, client: str, call_later: CallLater, reread_ms: float) -> None:
        self.session_id = session_id
        self.client = client
        self.is_held = self.is_displaced = False
        self._call_later = call_later
        self._reread_ms = reread_ms
        self._is_woken = False
        self._wake_up: Deferred[None] | None = None

    async def wait(self, ms: float) -> None:
        """Return when the session may have changed since the last call, or after so many milliseconds.

        Raises:
            CancelledError: the client has left.
        """
        if not self._is_woken:
            self._wake_up = Deferred()
            alarm = self._call_later(min(ms, self._reread_ms), self.wake)
            try:
                await make_deferred_yieldable(self._wake_up)
            finally:
                self._wake_up = None
                if alarm.active():
                    alarm.cancel()
        self._is_woken = False

    def wake(self) -> None:
        """End the wait, or the next one if there is none now."""
        self._is_woken = True
        if self._wake_up is not None and not self._wake_up.called:
            with PreserveLoggingContext():  # the waiting request goes on in its own log context, and leaves it set
                self._wake_up.callback(None)


class Waiters:
    """The requests that wait, by session.

    Args:
        call_later: wakes them, and ends waits that take too long.
        max_wait_ms: how long a request may be held.
        default_wait_ms: how long a request is held that names no time.
        max_waiting: how many requests may wait at once.
        max_client_waiting: how many of one client; of the networks around it, as `quota_keys` says.
        reread_ms: how often a waiter looks without being woken, because a wake-up may get lost on its way.
    """

    MAX_SESSION_WAITING = 4
    """How many may wait for one session: two devices, each with one request more that has lost its connection.

    One more takes the place of the oldest: many proxies keep a request that its client has given up.
    """

    WAKE_BATCH = 100
    """How many waiters are woken in one go."""

    WAKE_INTERVAL_MS = 50
    """How long after them the next ones are."""

    LONG_WAIT_MS = 5000
    """From this length on, a wait may end a little sooner."""

    END_INTERVAL_MS = 1000
    """Long waits end at multiples of this, many at once: that, and the requests that follow, cost half as much."""

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
        self._waiters: dict[str, list[Waiter]] = {}
        self._clients: Counter[str] = Counter()
        self._count = 0

    def __len__(self) -> int:
        """Return how many requests wait, or are about to."""
        return self._count

    def parse_timeout(self, values: Sequence[bytes]) -> int:
        """Return how many milliseconds a request may be held.

        Args:
            values: those of its `timeout` parameter.

        Raises:
            InvalidTimeout: they are not one number of milliseconds.
        """
        if len(values) != 1 or not _MILLISECONDS.fullmatch(values[0]):
            raise InvalidTimeout
        return min(int(values[0]), self.max_wait_ms)

    def end_ms(self, now_ms: int, wait_ms: int) -> int:
        """Return when a wait that begins now ends."""
        end_ms = now_ms + wait_ms
        return end_ms - end_ms % self.END_INTERVAL_MS if wait_ms >= self.LONG_WAIT_MS else end_ms

    def add(self, session_id: str, client: str) -> Waiter | None:
        """Return a waiter for a request, to be given to `remove` at its end; None if there is no room.

        Args:
            session_id: the session it waits for.
            client: the client it counts for.
        """
        if not self._has_room(client):
            return None
        waiter = Waiter(session_id, client, self._call_later, self._reread_ms)
        self._count += 1
        for key, _ in quota_keys(client):
            self._clients[key] += 1
        self._waiters.setdefault(session_id, []).append(waiter)
        return waiter

    def hold(self, waiter: Waiter) -> None:
        """Give a waiter one of its session's places, if need be that of the oldest, which is then answered."""
        held = [each for each in self._waiters[waiter.session_id] if each.is_held]
        waiter.is_held = True
        if len(held) >= self.MAX_SESSION_WAITING:
            oldest = held[0]
            self.remove(oldest)
            oldest.is_displaced = True
            self._wake_later([oldest], 0)

    def remove(self, waiter: Waiter) -> None:
        """Forget a waiter."""
        if waiter.is_displaced:
            return
        self._count -= 1
        for key, _ in quota_keys(waiter.client):
            self._clients[key] -= 1
            if not self._clients[key]:
                del self._clients[key]
        waiters = self._waiters[waiter.session_id]
        waiters.remove(waiter)
        if not waiters:
            del self._waiters[waiter.session_id]

    def wake(self, session_id: str) -> None:
        """Wake the waiters of a session in the reactor's next turn, so that no GET runs inside the write."""
        if waiters := self._waiters.get(session_id):
            self._wake_later(waiters.copy(), 0)

    def wake_all(self) -> None:
        """Wake all waiters, because their sessions may have changed unnoticed; a batch at a time, as all will read."""
        self._wake_later(self._all(), 0)

    def close(self) -> None:
        """Let nothing wait any more: all requests are answered with what is known."""
        self.is_closed = True
        for waiter in self._all():
            waiter.wake()

    def _all(self) -> list[Waiter]:
        return [waiter for waiters in self._waiters.values() for waiter in waiters]

    def _wake_later(self, waiters: list[Waiter], ms: float) -> None:
        def wake() -> None:
            for waiter in waiters[: self.WAKE_BATCH]:
                waiter.wake()
            if rest := waiters[self.WAKE_BATCH :]:
                self._wake_later(rest, self.WAKE_INTERVAL_MS)

        self._call_later(ms, wake)

    def _has_room(self, client: str) -> bool:
        return (
            not self.is_closed
            and self._count < self._max_waiting
            and all(self._clients[key] < self._max_client_waiting * share for key, share in quota_keys(client))
        )
