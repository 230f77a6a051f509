"""How often something may be done: Synapse's rate limiter, for clients and the networks around them."""

from collections.abc import Sequence

from synapse.api.errors import LimitExceededError
from synapse.api.ratelimiting import Ratelimiter

from synapse_rendezvous.config import LIMIT_KEYS, RateLimit


class Limit:
    """One limit, for each client or each session by itself.

    Args:
        ratelimiter: Synapse's; nobody else uses it.
        rate: how often one may do it.
    """

    MAX_KEYS = LIMIT_KEYS
    """How many are remembered at once. Who did nothing lately is forgotten, so this is many clients within seconds."""

    OTHERS = ("others", 100)
    """Those who come when so many are remembered share one limit: that of as many clients."""

    LOTS = 12
    """How many lots are in a burst: a lot is counted at once, and then spent one by one; everybody has a first lot.

    Somebody may do it that much more or less often; but to ask each time takes longer than all that a poll needs.
    """

    LARGEST_LOT = 25

    def __init__(self, ratelimiter: Ratelimiter, rate: RateLimit) -> None:
        self._ratelimiter = ratelimiter
        self._rate = rate
        lot = min(rate.burst_count // self.LOTS, self.LARGEST_LOT)
        self._lot = lot if lot > 1 else 0
        self._prepaid: dict[str, int] = {}

    def spend_prepaid(self, key: str) -> bool:
        """Count one action if this key has some left that were counted before; say whether it had."""
        prepaid = self._prepaid.get(key)
        if prepaid:
            self._prepaid[key] = prepaid - 1
        elif prepaid is None and self._lot:
            self._set_prepaid(key, self._lot - 1)
        else:
            return False
        return True

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
            if not self.spend_prepaid(key) and not self._prepay(key, share):
                self._ask(key, share, pause_s)

    def check(self, key: str) -> None:
        """Count nothing.

        Raises:
            LimitExceededError: it was done too often.
        """
        if not self._prepaid.get(key, self._lot):
            self._ask(key, 1, update=False)

    def _prepay(self, key: str, share: int) -> bool:
        """Count many actions, the first of which is done now; say whether there may be so many."""
        if not self._lot:
            return False
        try:
            self._ask(key, share, actions=self._lot)
        except LimitExceededError:
            return False
        self._set_prepaid(key, self._lot - 1)
        return True

    def _set_prepaid(self, key: str, count: int) -> None:
        if len(self._prepaid) >= self.MAX_KEYS and key not in self._prepaid:
            self._prepaid.clear()  # so that each has a first lot again
        self._prepaid[key] = count

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
