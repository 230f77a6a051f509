"""The one observer of everything that happens: it counts each event when it happens, and sums up in the log."""

import logging
from collections import Counter
from collections.abc import Callable, Iterable

from synapse_rendezvous.clients import OTHERS, UNKNOWN, format_client, is_private, quota_keys
from synapse_rendezvous.limits import LimitName
from synapse_rendezvous.metrics import METHODS, OTHER_METHOD, Metrics
from synapse_rendezvous.session import EndedSession, Session, StoreUsage

logger = logging.getLogger(__name__)

REFUSALS_INTERVAL_MS = 60_000
"""How often the log sums up refusals."""

SOURCES_INTERVAL_MS = 600_000
"""How often the log warns if nearly all sessions come from one private address."""

SHORT_ID_LENGTH = 6
"""How many characters of an id are logged: enough to find a session again, too few to use it."""

UNIDENTIFIED_WARNING_INTERVAL_S = 3600
STORE_WARNING_INTERVAL_S = 60


class Observer:
    """Counts events, for Prometheus and for summaries in the log.

    Args:
        metrics: where events are counted.
        monotonic_s: returns seconds of a clock that is never set.
        ttl_ms: how long a session lives.
        is_enforced: whether limits are enforced; otherwise they are only observed.
    """

    # The most clients a summary tells apart; the others are counted together.
    _MAX_CLIENTS = 1000

    # Fewer creations may well come from one household.
    _MIN_CREATIONS = 20
    _NEARLY_ALL = 0.9

    def __init__(self, metrics: Metrics, monotonic_s: Callable[[], float], *, ttl_ms: int, is_enforced: bool) -> None:
        self._metrics = metrics
        self._monotonic_s = monotonic_s
        self._ttl_ms = ttl_ms
        self._verb = "refused" if is_enforced else "would have been refused, but for `observe`"
        self._refusals: dict[LimitName, Counter[str]] = {}
        self._creations: Counter[str] = Counter()
        self._next_unidentified_warning_s = 0.0
        self._store_down_since_s: float | None = None
        self._next_store_warning_s = 0.0
        self._unlogged_store_failures = 0

    def request_answered(self, method: bytes, status: int) -> None:
        """Count an answer."""
        requests = self._metrics.requests
        if (method, status) not in requests:
            method = method if method in METHODS else OTHER_METHOD
            status = status if (method, status) in requests else 500
        requests[method, status].inc()

    def request_refused(self, limit: LimitName, client: str) -> None:
        """Count a request over a limit."""
        self._metrics.rejected[limit].inc()
        # The widest network, which is what an operator can do something about.
        widest = [key for key, _ in quota_keys(client)][-1:] or [client]
        self._count(self._refusals.setdefault(limit, Counter()), widest[0])

    def session_created(self, session: Session, dialect: str, client: str) -> None:
        """Count a session that was stored for a client."""
        self._metrics.created[dialect].inc()
        self._metrics.body_bytes.observe(len(session.payload))
        if client == UNKNOWN or is_private(client):
            self._metrics.unidentified_creates.inc()
        self._count(self._creations, client)

    def session_replaced(self, session: Session) -> None:
        """Count a payload that was stored in place of another."""
        self._metrics.body_bytes.observe(len(session.payload))
        if session.updates == 1:
            created_ms = session.expires_ms - self._ttl_ms
            self._metrics.first_reply.observe((session.last_modified_ms - created_ms) / 1000)

    def session_ended(self, session: EndedSession) -> None:
        """Count the end of a session and log it: one line for its whole life."""
        self._metrics.ended[session.outcome, session.reason].inc()
        self._metrics.durations[session.outcome].observe(session.lived_ms / 1000)
        logger.info(
            "Session %s... has ended: %s, written %d times, %s after %.1f s",
            session.id[:SHORT_ID_LENGTH],
            session.outcome,
            session.updates,
            session.reason,
            session.lived_ms / 1000,
        )

    def write_repeated(self) -> None:
        """Count a write that arrived a second time and changed nothing."""
        self._metrics.replayed_puts.inc()

    def tags_normalised(self, changes: Iterable[str]) -> None:
        """Count entity tags that a proxy had changed: `weak`, `suffix` or `unquoted`."""
        for change in changes:
            self._metrics.tags_normalised[change].inc()

    def wait_ended(self, outcome: str, *, is_asked: bool) -> None:
        """Count a wait.

        Args:
            outcome: `changed`, `timed_out`, `ended`, `left` by its client, `displaced` by a newer request for the same
                session, or `refused` for want of room.
            is_asked: whether the client asked for it, by `timeout`.
        """
        self._metrics.waits[outcome, "client" if is_asked else "default"].inc()

    def client_unidentified(self, peer: str | None) -> None:
        """Warn, at most once an hour, that a proxy hides the addresses of its clients."""
        now_s = self._monotonic_s()
        if now_s >= self._next_unidentified_warning_s:
            self._next_unidentified_warning_s = now_s + UNIDENTIFIED_WARNING_INTERVAL_S
            logger.warning(
                "A request came through %s without a usable client address in X-Forwarded-For. No limit for one client"
                " holds for such requests. Let the reverse proxy set it, in nginx: proxy_set_header X-Forwarded-For"
                " $remote_addr; or see trusted_proxies in docs/configuration.md",
                peer or "a unix socket",
            )

    def store_call_failed(self, reason: str) -> None:
        """Count an operation that Redis did not do, and warn of it at most once a minute."""
        self._metrics.store_failures.inc()
        self._unlogged_store_failures += 1
        now_s = self._monotonic_s()
        if now_s >= self._next_store_warning_s:
            logger.warning(
                "Rendezvous sessions cannot be reached in Redis: %s. Requests answered with 503 since the last"
                " such line: %d",
                reason,
                self._unlogged_store_failures,
            )
            self._unlogged_store_failures = 0
            self._next_store_warning_s = now_s + STORE_WARNING_INTERVAL_S

    def store_went_down(self) -> None:
        """Note that Redis has stopped answering."""
        if self._store_down_since_s is None:
            self._store_down_since_s = self._monotonic_s()
            self._metrics.store_down.set(1)

    def store_came_back(self) -> None:
        """Note that Redis answers again."""
        if self._store_down_since_s is not None:
            logger.info("Redis answers again after %.1f s", self._monotonic_s() - self._store_down_since_s)
            self._store_down_since_s = None
            self._metrics.store_down.set(0)

    def store_measured(self, usage: StoreUsage) -> None:
        """Note how much the store holds."""
        self._metrics.live.set(usage.sessions)
        self._metrics.payload_bytes.set(usage.total_bytes)
        self._metrics.clients.set(usage.clients)

    def measure_waiting(self, count: Callable[[], int]) -> None:
        """Let Prometheus call `count` for the number of requests that wait."""
        self._metrics.waiting.set_function(count)

    def log_refusals(self) -> None:
        """Log what was over a limit since the last call, if anything was."""
        if not self._refusals:
            return
        logger.warning(
            "Requests that were over a limit and %s in the last minute: %s",
            self._verb,
            "; ".join(
                f"{limit.value} {self._summary(clients)}"
                for limit, clients in sorted(self._refusals.items(), key=lambda item: item[0].value)
            ),
        )
        self._refusals = {}

    def log_dominant_source(self) -> None:
        """Warn if nearly all sessions since the last call were created from one private address."""
        total = self._creations.total()
        for client, count in self._creations.most_common(1):
            if total >= self._MIN_CREATIONS and count > total * self._NEARLY_ALL and is_private(client):
                logger.warning(
                    "%d of the last %d sessions were created from %s, a private address. If that is a reverse proxy,"
                    " limits for one client see nobody but it: let it set X-Forwarded-For, set `x_forwarded: true` on"
                    " the listener, and name it in trusted_proxies (docs/configuration.md)",
                    count,
                    total,
                    format_client(client),
                )
        self._creations.clear()

    def _count(self, counter: Counter[str], client: str) -> None:
        counter[client if client in counter or len(counter) < self._MAX_CLIENTS else OTHERS] += 1

    @staticmethod
    def _summary(clients: Counter[str]) -> str:
        ((first, count),) = clients.most_common(1)
        rest = f", {count} of them from" if len(clients) > 1 else " from"
        return f"{clients.total()} times{rest} {format_client(first)}"
