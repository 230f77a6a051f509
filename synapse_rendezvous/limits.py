"""How often something may be done: Synapse's rate limiter, for clients and the networks around them."""

from collections.abc import Sequence

from synapse.api.ratelimiting import Ratelimiter

from synapse_rendezvous.config import RateLimit


class Limit:
    """One limit, for each client or each session by itself.

    Args:
        ratelimiter: Synapse's; nobody else uses it.
        rate: how often one may do it.
    """

    MAX_KEYS = 5000
    """How many are remembered at once. Who did nothing lately is forgotten, so this is many clients within seconds."""

    OTHERS = ("others", 100)
    """Those who come when so many are remembered share one limit: that of as many clients."""

    def __init__(self, ratelimiter: Ratelimiter, rate: RateLimit) -> None:
        self._ratelimiter = ratelimiter
        self._rate = rate

    async def spend(self, keys: Sequence[tuple[str, int]], pause_s: float | None = None) -> None:
        """Count one action.

        Args:
            keys: for whom it counts, and how many times the rate each may have; the widest network last.
            pause_s: how long the answer to a refusal is held back, which slows down who asks in a loop.

        Raises:
            LimitExceededError: one of them did it too often.
        """
        # From the widest network inwards: what that is refused, takes no place in the table.
        for key, share in reversed(keys):
            await self._ask(key, share, pause_s)

    async def check(self, key: str) -> None:
        """Count nothing.

        Raises:
            LimitExceededError: it was done too often.
        """
        await self._ask(key, 1, update=False)

    async def _ask(self, key: str, share: int, pause_s: float | None = None, *, update: bool = True) -> None:
        known = self._ratelimiter.actions
        if key not in known and len(known) >= self.MAX_KEYS:
            key, share = self.OTHERS
        await self._ratelimiter.ratelimit(
            None,
            key=key,
            rate_hz=self._rate.per_second * share,
            burst_count=self._rate.burst_count * share,
            update=update,
            pause=pause_s,
        )
