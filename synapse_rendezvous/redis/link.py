"""The way to Redis: every script has its answer, or is given up, within a time that a client can wait."""

import logging
import time
from collections.abc import Sequence
from typing import Any

import txredisapi
from synapse.logging.context import make_deferred_yieldable
from twisted.internet import defer
from twisted.internet.interfaces import IReactorTime

from synapse_rendezvous.errors import StoreUnavailable
from synapse_rendezvous.homeserver import RedisConnection
from synapse_rendezvous.metrics import Metrics

logger = logging.getLogger(__name__)


class RedisLink:
    """Runs scripts on a connection that may hang, break and come back.

    A connection that is down keeps calls until it is up again, however long that takes. So each call has a deadline;
    and once one has failed, the others are not made at all until one, tried now and then, succeeds.

    Args:
        connection: reconnects by itself.
        reactor: for the deadlines.
        metrics: where trouble is counted.
    """

    DEADLINE_S = 1.5
    """How long one call may take: clients are promised an answer within two seconds."""

    PAUSE_S = 1.0
    """How long no call is made after one has failed."""

    MAX_UNDER_WAY = 2000
    """How many calls may wait for Redis at once; at a thousand requests a second, one or two do."""

    WARNING_INTERVAL_S = 60.0
    """How often trouble is logged."""

    def __init__(self, connection: RedisConnection, reactor: IReactorTime, metrics: Metrics) -> None:
        self._connection = connection
        self._metrics = metrics
        self._reactor = reactor
        self._under_way = 0
        self._down_since_s: float | None = None
        self._try_at_s = 0.0
        self._warn_at_s = 0.0
        self._unavailable = 0

    async def run(
        self, script: str, keys: Sequence[str], arguments: Sequence[bytes | int], *, quietly: bool = False
    ) -> list[Any]:
        """Run a script and return its answer.

        Args:
            script: its text.
            keys: what it may touch.
            arguments: what else it is given.
            quietly: whether nobody waits for it, so that a failure is not told.

        Raises:
            StoreUnavailable: Redis refused it, or gave no answer in time; whether it ran is not known then.
        """
        if self._under_way >= self.MAX_UNDER_WAY or not self._may_try():
            raise self._unavailability("it has not answered lately", quietly)
        self._under_way += 1
        try:
            calling = self._connection.eval(script, keys, arguments).addTimeout(self.DEADLINE_S, self._reactor)
            answer: list[Any] = await make_deferred_yieldable(calling)
        except txredisapi.ResponseError as error:
            # It is there, but for example out of memory or read-only: other scripts may do.
            self._up()
            raise self._unavailability(str(error), quietly) from None
        except defer.TimeoutError:
            self._down()
            raise self._unavailability(f"no answer within {self.DEADLINE_S:g} s", quietly) from None
        except txredisapi.RedisError as error:
            self._down()
            raise self._unavailability(str(error), quietly) from None
        finally:
            self._under_way -= 1
        self._up()
        return answer

    def _may_try(self) -> bool:
        if self._down_since_s is None:
            return True
        now_s = time.monotonic()
        if now_s < self._try_at_s:
            return False
        self._try_at_s = now_s + self.DEADLINE_S + self.PAUSE_S  # the others wait for what this one finds
        return True

    def _down(self) -> None:
        now_s = time.monotonic()
        if self._down_since_s is None:
            self._down_since_s = now_s
            self._metrics.store_is_down(True)
        self._try_at_s = now_s + self.PAUSE_S

    def _up(self) -> None:
        if self._down_since_s is not None:
            logger.info("Redis answers again after %.1f s", time.monotonic() - self._down_since_s)
            self._down_since_s = None
            self._metrics.store_is_down(False)

    def _unavailability(self, reason: str, quietly: bool) -> StoreUnavailable:
        if quietly:
            return StoreUnavailable()
        self._unavailable += 1
        self._metrics.store_failed()
        now_s = time.monotonic()
        if now_s >= self._warn_at_s:
            logger.warning(
                "Rendezvous sessions cannot be reached in Redis: %s. Requests answered with 503 since the last"
                " such line: %d",
                reason,
                self._unavailable,
            )
            self._unavailable, self._warn_at_s = 0, now_s + self.WARNING_INTERVAL_S
        return StoreUnavailable()
