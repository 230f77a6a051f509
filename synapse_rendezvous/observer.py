"""What is noticed about clients and sessions: counted, and told in the log, but never once for each request."""

import logging
import time
from collections import Counter

from synapse_rendezvous.clients import UNKNOWN, is_private, written
from synapse_rendezvous.metrics import Metrics
from synapse_rendezvous.session import Ended

logger = logging.getLogger(__name__)

TELL_INTERVAL_MS = 60_000
"""How often refusals are told."""

LOOK_INTERVAL_MS = 600_000
"""How often it is looked where creations come from."""

SHORT_ID = 6
"""So many characters of an id are logged: enough to find a session again, too few to ask for it."""

_SECONDS_BETWEEN_WARNINGS = 3600


class Observations:
    """Counts what is refused, where creations come from, and how sessions end.

    Args:
        metrics: where it is counted as well.
        is_enforced: whether what is refused is so in fact; else it only would be.
    """

    # As many of each as a log line can say something of; the rest is counted without a name.
    _MOST_NAMES = 1000

    # Fewer creations may well come from one household.
    _ENOUGH_CREATIONS = 20
    _NEARLY_ALL = 0.9

    def __init__(self, metrics: Metrics, *, is_enforced: bool) -> None:
        self._metrics = metrics
        self._verb = "refused" if is_enforced else "would have been refused, but for `observe`"
        self._refused: dict[str, Counter[str]] = {}
        self._created: Counter[str] = Counter()
        self._warn_of_unknown_at_s = 0.0

    def refused(self, limit: str, client: str) -> None:
        """Count a request over a limit.

        Args:
            limit: which.
            client: whose.
        """
        self._metrics.refused(limit)
        clients = self._refused.setdefault(limit, Counter())
        clients[self._name(clients, client)] += 1

    def created(self, client: str) -> None:
        """Count a creation."""
        if client == UNKNOWN or is_private(client):
            self._metrics.created_from_nowhere()
        self._created[self._name(self._created, client)] += 1

    def ended(self, session: Ended) -> None:
        """Count the end of a session, and log it: one line for its whole life."""
        self._metrics.ended(session)
        logger.info(
            "Session %s... has ended: %s, written %d times%s, %s after %.1f s",
            session.id[:SHORT_ID],
            session.outcome,
            session.updates,
            "" if session.reads is None else f", read {session.reads} times",
            session.reason,
            session.lived_ms / 1000,
        )

    def repeated(self) -> None:
        """Count a write that was done before and answered once more."""
        self._metrics.repeated()

    def unknown(self, peer: str | None) -> None:
        """Say, once an hour at most, that a request has no usable client address."""
        now_s = time.monotonic()
        if now_s >= self._warn_of_unknown_at_s:
            self._warn_of_unknown_at_s = now_s + _SECONDS_BETWEEN_WARNINGS
            logger.warning(
                "A request came through %s without a usable client address in X-Forwarded-For. No limit for one client"
                " holds for such requests. Let the reverse proxy set it, in nginx: proxy_set_header X-Forwarded-For"
                " $remote_addr; or see trusted_proxies in docs/configuration.md",
                peer or "a unix socket",
            )

    def tell_refusals(self) -> None:
        """Log what was refused since this was last called, if anything was."""
        if not self._refused:
            return
        logger.warning(
            "Requests that were over a limit and %s in the last minute: %s",
            self._verb,
            "; ".join(f"{limit} {self._summary(clients)}" for limit, clients in sorted(self._refused.items())),
        )
        self._refused = {}

    def look_at_sources(self) -> None:
        """Say so if nearly all creations since this was last called came from one private address."""
        total = self._created.total()
        for client, count in self._created.most_common(1):
            if total >= self._ENOUGH_CREATIONS and count > total * self._NEARLY_ALL and is_private(client):
                logger.warning(
                    "%d of the last %d sessions were created from %s, a private address. If that is a reverse proxy,"
                    " limits for one client see nobody but it: let it set X-Forwarded-For, set `x_forwarded: true` on"
                    " the listener, and name it in trusted_proxies (docs/configuration.md)",
                    count,
                    total,
                    written(client),
                )
        self._created.clear()

    def _name(self, counter: Counter[str], client: str) -> str:
        return client if client in counter or len(counter) < self._MOST_NAMES else "others"

    @staticmethod
    def _summary(clients: Counter[str]) -> str:
        ((first, count),) = clients.most_common(1)
        rest = f", {count} of them from {written(first)}" if len(clients) > 1 else f" from {written(first)}"
        return f"{clients.total()} times{rest}"
