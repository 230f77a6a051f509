"""How often something may be done: Synapse's rate limiter, for clients and the networks around them."""

import contextlib
from collections.abc import Sequence

from synapse.api.errors import LimitExceededError
from synapse.api.ratelimiting import Ratelimiter

from synapse_rendezvous.config import LIMIT_KEYS, RateLimit
from synapse_rendezvous.table import Tally


class Limit:
    """One limit, for each client or each session by itself.

    Args:
        ratelimiter: Synapse's; nobody else uses it.
        rate: how often one may do it.
        most: how many may have done it before some are forgotten.

    Attributes:
        tally: how often each did it.
        spend_prepaid: counts one action if this key has some left that were counted before; says whether it had.
    """

    MAX_KEYS = LIMIT_KEYS
    """How many are asked about at once. Who did nothing lately is forgotten, so this is many clients within seconds."""

    OTHERS = ("others", 100)
    """Those who come when so many are remembered share one limit: that of as many clients."""

    LOTS = 10
    """How many lots are in a burst: a lot is counted at once, and then spent one by one; everybody has a first lot.

    Somebody may do it that much more or less often; but to ask each time takes longer than all that a poll needs.
    """

    LARGEST_LOT = 25

    def __init__(self, ratelimiter: Ratelimiter, rate: RateLimit, most: int = LIMIT_KEYS) -> None:
        self._ratelimiter = ratelimiter
        self._rate = rate
        lot = min(rate.burst_count // self.LOTS, self.LARGEST_LOT)
        self._lot = lot if lot > 1 else 0
        self.tally = Tally(self._lot, most)
        self.spend_prepaid = self.tally.spend  # most requests come by here

    def spend(self, keys: Sequence[tuple[str, int]], pause_s: float | None = None) -> None:
        """Count one action.

        Args:
            keys: for whom it counts, and how many times the rate each may have; the widest network last.
            pause_s: how long the answer to a refusal is held back, which slows down who asks in a loop.

        Raises:
            LimitExceededError: one of them did it too often.
        """
        # From the widest network inwards: what that is refused, takes no place in the table.
        for key, share in reversed(keys):
            if not self.spend_prepaid(key):
                self.tally.add(key, self._buy(key, share, pause_s))

    def check(self, key: str) -> None:
        """Count nothing.

        Raises:
            LimitExceededError: it was done too often.
        """
        if not self.tally.left(key):
            self._ask(key, 1, update=False)

    def _buy(self, key: str, share: int, pause_s: float | None) -> int:
        """Ask for a lot, or for one if there may not be so many; return how many are left once one is done."""
        if self._lot:
            with contextlib.suppress(LimitExceededError):
                self._ask(key, share, actions=self._lot)
                return self._lot - 1
        self._ask(key, share, pause_s)
        return 0

    def _ask(
        self, key: str, share: int, pause_s: float | None = None, *, update: bool = True, actions: int = 1
    ) -> None:
        known = self._ratelimiter.actions
        if key not in known and len(known) >= self.MAX_KEYS:
            key, share = self.OTHERS
        asking = self._ratelimiter.ratelimit(
            None,
            key=key,
            rate_hz=self._rate.per_second * share,
            burst_count=self._rate.burst_count * share - self._lot,  # with the first lot, it is exact
            update=update,
            n_actions=actions,
            pause=pause_s,
        )
        # Synapse looks up users in its database, and we name none: so it is done as soon as it is begun.
        try:
            asking.send(None)
        except StopIteration:
            return
        raise RuntimeError("Synapse's rate limiter waits for something")  # pragma: no cover
