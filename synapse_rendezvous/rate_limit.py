"""How often something may be done: Synapse's rate limiter, with a small cache of prepaid tokens before it."""

import contextlib

from synapse.api.errors import LimitExceededError
from synapse.api.ratelimiting import Ratelimiter

from synapse_rendezvous.clients import OTHERS, QuotaKeys
from synapse_rendezvous.config import LIMIT_KEYS, RateLimit, RendezvousConfig
from synapse_rendezvous.homeserver import LIMITER_PREFIX, Homeserver
from synapse_rendezvous.limits import LimitName
from synapse_rendezvous.observer import Observer


class Limit:
    """One rate limit: a token bucket for each key.

    To ask Synapse's limiter takes longer than the rest of a poll. So tokens are taken from it in batches and spent one
    by one. A key that is not in the cache has a first batch, which is kept out of the limiter's burst, so the burst is
    exact; in the long run a key may get one batch more or less than its rate.

    Args:
        ratelimiter: Synapse's, for this limit alone.
        rate: the tokens of a bucket and how fast they come back.
        max_prepaid: the most keys in the cache; with more than that in use, all of them have first batches again and
            again.
        overflow_share: how many times the rate of one key all those share for which the limiter has no room; None if
            they are not limited.

    Attributes:
        max_prepaid: see above.
        batch: the tokens of a batch; 0 if the burst is too small for batches.
        prepaid: the tokens that are left of each key's last batch.
    """

    MAX_KEYS = LIMIT_KEYS
    """The most keys that the limiter tracks; Synapse prunes idle ones."""

    BATCHES_IN_BURST = 10
    MAX_BATCH = 25

    def __init__(self, ratelimiter: Ratelimiter, rate: RateLimit, max_prepaid: int, overflow_share: int | None) -> None:
        self.max_prepaid = max_prepaid
        self._overflow_share = overflow_share
        self._ratelimiter = ratelimiter
        self._rate = rate
        batch = min(rate.burst_count // self.BATCHES_IN_BURST, self.MAX_BATCH)
        self.batch = batch if batch > 1 else 0
        self.prepaid: dict[str, int] = {}

    def take_batch(self, key: str, share: int) -> int:
        """Take a batch from the limiter, or one token if it has no batch; return how many.

        Returns:
            1 if it has none at all, too: whoever asks has decided already.
        """
        if self.batch:
            with contextlib.suppress(LimitExceededError):
                self._ask(key, share, tokens=self.batch)
                return self.batch
        with contextlib.suppress(LimitExceededError):
            self._ask(key, share, tokens=1)
        return 1

    def check(self, keys: QuotaKeys, pause_s: float | None = None) -> None:
        """Take nothing.

        Raises:
            LimitExceededError: a key has no token.
        """
        for key, share in reversed(keys):  # the widest network has the longest to wait
            if not self.prepaid.get(key, self.batch):
                self._ask(key, share, tokens=1, pause_s=pause_s, update=False)

    def _ask(self, key: str, share: int, *, tokens: int, pause_s: float | None = None, update: bool = True) -> None:
        tracked = self._ratelimiter.actions
        if key not in tracked and len(tracked) >= self.MAX_KEYS:
            if self._overflow_share is None:
                return
            key, share = OTHERS, self._overflow_share
        asking = self._ratelimiter.ratelimit(
            None,
            key=key,
            rate_hz=self._rate.per_second * share,
            burst_count=self._rate.burst_count * share - self.batch,
            update=update,
            n_actions=tokens,
            pause=pause_s,
        )
        # Synapse looks up users in its database, and we name none: so the coroutine never suspends.
        try:
            asking.send(None)
        except StopIteration:
            return
        raise RuntimeError("Synapse's rate limiter waits for something")  # pragma: no cover


class Limits:
    """The rate limits of this process, and what becomes of refusals.

    Args:
        homeserver: makes the limiters.
        config: the rates, and whether limits are only observed.
        observer: counts refusals.
    """

    OVERFLOW_SHARE = 100

    def __init__(self, homeserver: Homeserver, config: RendezvousConfig, observer: Observer) -> None:
        def client_limit(name: LimitName, rate: RateLimit) -> Limit:
            return Limit(homeserver.ratelimiter(name, rate), rate, LIMIT_KEYS, self.OVERFLOW_SHARE)

        def session_limit(name: LimitName, rate: RateLimit) -> Limit:
            # Not one bucket for all the sessions that find no room: strangers would empty it, too.
            return Limit(homeserver.ratelimiter(name, rate), rate, max(LIMIT_KEYS, config.max_sessions), None)

        self._observer = observer
        self._is_enforced = not config.observe
        self.client_create = client_limit(LimitName.CLIENT_CREATE, config.per_client.create)
        self.client_read = client_limit(LimitName.CLIENT_READ, config.per_client.read)
        self.client_miss = client_limit(LimitName.CLIENT_MISS, config.per_client.miss)
        self.session_read = session_limit(LimitName.SESSION_READ, config.per_session.read)
        self.session_write = session_limit(LimitName.SESSION_WRITE, config.per_session.write)

    def take(
        self, client: str, limit: Limit, keys: QuotaKeys, *, pause_s: float | None = None, is_done: bool = False
    ) -> None:
        """Take one token from the bucket of each key, or none from any: a refused request costs nobody anything.

        Args:
            client: whose request it is.
            limit: what is taken from.
            keys: each with how many times the rate it has; the widest network last.
            pause_s: how long the answer to a refusal is held back, which slows down a client that asks in a loop.
            is_done: whether the request was served already; then it is not refused any more.

        Raises:
            LimitExceededError: a bucket is empty, and limits are enforced.
        """
        prepaid, batch = limit.prepaid, limit.batch
        for key, _ in keys:
            if not (is_done or prepaid.get(key, batch)):
                if not self.check(client, limit, keys, pause_s=pause_s):
                    return
                break
        for key, share in keys:
            tokens = prepaid.get(key, batch) or limit.take_batch(key, share)
            if batch:
                if len(prepaid) >= limit.max_prepaid and key not in prepaid:
                    prepaid.clear()  # which gives every key a first batch again
                prepaid[key] = tokens - 1

    def check(self, client: str, limit: Limit, keys: QuotaKeys, *, pause_s: float | None = None) -> bool:
        """Take nothing, but raise as `take` would; return whether there is a token in each bucket."""
        try:
            limit.check(keys, pause_s)
        except LimitExceededError as refusal:
            self.enforce(refusal, client)
            return False
        return True

    def enforce(self, refusal: LimitExceededError, client: str) -> None:
        """Count a refusal, and raise it unless limits are only observed; the bounds of the server always hold."""
        name = LimitName(refusal.limiter_name.removeprefix(LIMITER_PREFIX))
        self._observer.request_refused(name, client)
        if self._is_enforced or name.is_for_server:
            raise refusal
