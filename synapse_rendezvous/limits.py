"""How often something may be done: Synapse's rate limiter, for clients and the networks around them."""

from collections.abc import Callable, Iterable

from synapse.api.ratelimiting import Ratelimiter

from synapse_rendezvous.config import RateLimit


class Limit:
    """One limit, for each client or each session by itself.

    Args:
        ratelimiter: Synapse's; nobody else uses it.
        rate: how often one may do it.
        now_s: tells the time in seconds.
    """

    MAX_KEYS = 5000
    """How many are remembered at once. Who did nothing lately is forgotten, so this is many clients within seconds."""

    OTHERS = ("others", 100)
    """Those who come when so many are remembered share one limit: that of as many clients."""

    def __init__(self, ratelimiter: Ratelimiter, rate: RateLimit, now_s: Callable[[], float]) -> None:
        self._ratelimiter = ratelimiter
        self._rate = rate
        self._now_s = now_s

    async def spend(self, keys: Iterable[tuple[str, int]], pause_s: float | None = None) -> None:
        """Count one action.

        Args:
            keys: for whom it counts, and how many times the rate each may have.
            pause_s: how long the answer to a refusal is held back, which slows down who asks in a loop.

        Raises:
            LimitExceededError: one of them did it too often.
        """
        known = self._ratelimiter.actions
        for key, share in keys:
            if key not in known and len(known) >= self.MAX_KEYS:
                key, share = self.OTHERS
            await self._ratelimiter.ratelimit(
                None,
                key=key,
                rate_hz=self._rate.per_second * share,
                burst_count=self._rate.burst_count * share,
                pause=pause_s,
                _time_now_s=self._now_s(),
            )
