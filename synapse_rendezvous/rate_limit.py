"""How often something may be done: Synapse's rate limiter, with a small cache of prepaid tokens before it."""

import contextlib
from collections.abc import Sequence

from synapse.api.errors import LimitExceededError
from synapse.api.ratelimiting import Ratelimiter

from synapse_rendezvous.clients import OTHERS
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

    Attributes:
        max_prepaid: see above.
        batch: the tokens of a batch; 0 if the burst is too small for batches.
        prepaid: the tokens that are left of each key's last batch.
    """

    MAX_KEYS = LIMIT_KEYS
    """The most keys that the limiter tracks; Synapse prunes idle ones."""

    OVERFLOW_BUCKET = (OTHERS, 100)
    """The bucket of all further keys, and how many times the rate of one it has."""

    BATCHES_IN_BURST = 10
    MAX_BATCH = 25

    def __init__(self, ratelimiter: Ratelimiter, rate: RateLimit, max_prepaid: int = LIMIT_KEYS) -> None:
        self.max_prepaid = max_prepaid
        self._ratelimiter = ratelimiter
        self._rate = rate
        batch = min(rate.burst_count // self.BATCHES_IN_BURST, self.MAX_BATCH)
        self.batch = batch if batch > 1 else 0
        self.prepaid: dict[str, int] = {}

    def take_batch(self, key: str, share: int, pause_s: float | None) -> int:
        """Take a batch from the limiter, or one token if it has no batch; return how many.

        Raises:
            LimitExceededError: it has none.
        """
        if self.batch:
            with contextlib.suppress(LimitExceededError):
                self._ask(key, share, tokens=self.batch)
                return self.batch
        self._ask(key, share, tokens=1, pause_s=pause_s)
        return 1

    def check(self, key: str) -> None:
        """Take nothing.

        Raises:
            LimitExceededError: the limiter has no token.
        """
        self._ask(key, 1, tokens=1, update=False)

    def _ask(self, key: str, share: int, *, tokens: int, pause_s: float | None = None, update: bool = True) -> None:
        tracked = self._ratelimiter.actions
        if key not in tracked and len(tracked) >= self.MAX_KEYS:
            key, share = self.OVERFLOW_BUCKET
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

    def __init__(self, homeserver: Homeserver, config: RendezvousConfig, observer: Observer) -> None:
        def limit(name: LimitName, rate: RateLimit, max_prepaid: int = LIMIT_KEYS) -> Limit:
            return Limit(homeserver.ratelimiter(name, rate), rate, max_prepaid)

        max_sessions = max(LIMIT_KEYS, config.max_sessions)
        self._observer = observer
        self._is_enforced = not config.observe
        self.client_create = limit(LimitName.CLIENT_CREATE, config.per_client.create)
        self.client_read = limit(LimitName.CLIENT_READ, config.per_client.read)
        self.client_write = limit(LimitName.CLIENT_WRITE, config.per_client.write)
        self.client_miss = limit(LimitName.CLIENT_MISS, config.per_client.miss)
        self.session_read = limit(LimitName.SESSION_READ, config.per_session.read, max_sessions)
        self.session_write = limit(LimitName.SESSION_WRITE, config.per_session.write, max_sessions)

    def take(
        self,
        client: str,
        *charges: tuple[Limit, Sequence[tuple[str, int]]],
        pause_s: float | None = None,
        is_done: bool = False,
    ) -> None:
        """Take one token from the bucket of each key.

        Args:
            client: whose request it is.
            charges: each a limit with its keys, and how many times the rate each key has; the widest network last.
            pause_s: how long the answer to a refusal is held back, which slows down a client that asks in a loop.
            is_done: whether the request was served already; then it is not refused any more.

        Raises:
            LimitExceededError: a bucket is empty, and limits are enforced.
        """
        for limit, keys in charges:
            is_refused = is_done  # one request is refused once at most by a limit, whichever network is over it
            # From the widest network inwards: a request that the widest refuses takes no place in the table.
            for key, share in reversed(keys):
                tokens = limit.prepaid.get(key, limit.batch)
                if not tokens:
                    try:
                        tokens = limit.take_batch(key, share, pause_s)
                    except LimitExceededError as refusal:
                        if not is_refused:
                            is_refused = True
                            self.enforce(refusal, client)
                        tokens = 1
                if limit.batch:
                    if len(limit.prepaid) >= limit.max_prepaid and key not in limit.prepaid:
                        limit.prepaid.clear()  # which gives every key a first batch again
                    limit.prepaid[key] = tokens - 1

    def check(self, client: str, limit: Limit, key: str) -> None:
        """Take nothing, but raise as `take` would."""
        if not limit.prepaid.get(key, limit.batch):
            try:
                limit.check(key)
            except LimitExceededError as refusal:
                self.enforce(refusal, client)

    def enforce(self, refusal: LimitExceededError, client: str) -> None:
        """Count a refusal, and raise it unless limits are only observed; the bounds of the server always hold."""
        name = LimitName(refusal.limiter_name.removeprefix(LIMITER_PREFIX))
        self._observer.request_refused(name, client)
        if self._is_enforced or name.is_for_server:
            raise refusal
