"""The way to Redis: every script is answered, or given up, within a time that a client can wait."""

from collections.abc import Callable, Sequence
from typing import Any

import txredisapi
from synapse.logging.context import make_deferred_yieldable
from twisted.internet import defer
from twisted.internet.interfaces import IReactorTime

from synapse_rendezvous.errors import StoreUnavailable
from synapse_rendezvous.homeserver import RedisConnection
from synapse_rendezvous.observer import Observer


class RedisLink:
    """Runs scripts on a connection that may hang, break and come back.

    A connection that is down keeps calls until it is up again, however long that takes. So each call has a deadline;
    and once one has failed, no others are made until one, tried now and then, succeeds.

    Args:
        connection: reconnects by itself.
        reactor: for the deadlines.
        monotonic_s: returns seconds of a clock that is never set.
        observer: receives failures.
    """

    DEADLINE_S = 1.5
    """How long one call may take: clients are promised an answer within two seconds."""

    PAUSE_S = 1.0
    """How long no call is made after one has failed."""

    MAX_PENDING = 2000
    """How many calls may be pending at once; at a thousand requests a second, one or two are."""

    def __init__(
        self,
        connection: RedisConnection,
        reactor: IReactorTime,
        monotonic_s: Callable[[], float],
        observer: Observer,
    ) -> None:
        self._connection = connection
        self._reactor = reactor
        self._monotonic_s = monotonic_s
        self._observer = observer
        self._pending = 0
        self._next_try_s: float | None = None  # None while Redis answers

    async def run(
        self, script: str, keys: Sequence[str], arguments: Sequence[bytes | int], *, is_background: bool = False
    ) -> list[Any]:
        """Run a script and return its answer.

        Args:
            script: its text.
            keys: the keys it may touch.
            arguments: its other arguments.
            is_background: whether no client waits for it, so that a failure is not counted.

        Raises:
            StoreUnavailable: Redis refused it, or gave no answer in time; whether it ran is not known then.
        """
        if self._pending >= self.MAX_PENDING or not self._may_try():
            raise self._unavailable("it has not answered lately", is_background)
        self._pending += 1
        try:
            call = self._connection.eval(script, keys, arguments).addTimeout(self.DEADLINE_S, self._reactor)
            answer: list[Any] = await make_deferred_yieldable(call)
        except txredisapi.ResponseError as error:
            # It answers, but is for example out of memory or read-only: other scripts may run.
            self._came_back()
            raise self._unavailable(str(error), is_background) from None
        except defer.TimeoutError:
            self._went_down()
            raise self._unavailable(f"no answer within {self.DEADLINE_S:g} s", is_background) from None
        except txredisapi.RedisError as error:
            self._went_down()
            raise self._unavailable(str(error), is_background) from None
        finally:
            self._pending -= 1
        if self._next_try_s is not None:
            self._came_back()
        return answer

    def _may_try(self) -> bool:
        if self._next_try_s is None:
            return True
        now_s = self._monotonic_s()
        if now_s < self._next_try_s:
            return False
        self._next_try_s = now_s + self.DEADLINE_S + self.PAUSE_S  # the others wait for the outcome of this one
        return True

    def _went_down(self) -> None:
        self._next_try_s = self._monotonic_s() + self.PAUSE_S
        self._observer.store_went_down()

    def _came_back(self) -> None:
        self._next_try_s = None
        self._observer.store_came_back()

    def _unavailable(self, reason: str, is_background: bool) -> StoreUnavailable:
        if not is_background:
            self._observer.store_call_failed(reason)
        return StoreUnavailable()
