"""What Prometheus is told, on Synapse's own metrics listener.

Every metric says of which homeserver it is, as Synapse's do, and no label has more values than are listed here.
"""

import bisect
import itertools
from collections import defaultdict
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence

from prometheus_client import REGISTRY, Counter, Gauge, Histogram
from prometheus_client.core import CounterMetricFamily, HistogramMetricFamily, Metric
from prometheus_client.utils import floatToGoString

from synapse_rendezvous.config import RendezvousConfig
from synapse_rendezvous.session import Ended, Held, Session

_SERVER = "server_name"


def _name(name: str) -> str:
    return f"synapse_rendezvous_{name}"


_LIVE = Gauge(_name("live"), "Sessions that live", [_SERVER])
_PAYLOAD_BYTES = Gauge(_name("payload_bytes"), "Bytes of payload that they hold", [_SERVER])
_CLIENTS = Gauge(_name("clients"), "Clients, and networks around them, that have sessions", [_SERVER])
_LIMIT = Gauge(_name("limit"), "How many sessions, or bytes of payload, there may be", [_SERVER, "kind"])
_INFO = Gauge(_name("info"), "1 for each process that serves sessions", [_SERVER, "version", "process", "store"])
_ENDED = Counter(_name("ended"), "Sessions ended; paired if they were ever written to", [_SERVER, "outcome", "reason"])
_REJECTED = Counter(_name("rejected"), "Requests over a limit, refused or only observed", [_SERVER, "limit"])
_TAGS = Counter(_name("tags_normalised"), "Entity tags that a proxy had changed, put right", [_SERVER, "kind"])
_REPLAYED = Counter(_name("replayed_puts"), "Writes that arrived twice and were done once", [_SERVER])
_PROXY_BUCKET = Counter(
    _name("proxy_bucket"), "Creations by clients with a private address or none, perhaps a proxy's", [_SERVER]
)
_WAITING = Gauge(_name("waiting"), "Requests that wait for a session to change", [_SERVER])
_WAITS = Counter(_name("waits"), "Waits that ended, or had no place", [_SERVER, "outcome"])
_STORE_FAILURES = Counter(_name("store_failures"), "Operations that Redis did not do in time", [_SERVER])
_STORE_DOWN = Gauge(_name("store_down"), "1 while Redis does not answer", [_SERVER])
_FIRST_REPLY = Histogram(
    _name("first_reply_seconds"),
    "From creation to the first write",
    [_SERVER],
    buckets=(1, 2, 5, 10, 20, 30, 60, 120, 300),
)
_DURATION = Histogram(
    _name("duration_seconds"),
    "How long sessions lived",
    [_SERVER, "outcome"],
    buckets=(5, 10, 30, 60, 120, 300, 600, 900),
)

_DIALECTS = ("msc3886", "msc4108", "msc4388")
_METHODS = (b"GET", b"HEAD", b"POST", b"PUT", b"DELETE")
_OTHER_METHOD = b"other"
_OUTCOMES = {
    200: "ok",
    201: "ok",
    202: "ok",
    204: "ok",
    304: "not_modified",
    400: "bad_request",
    401: "forbidden",
    403: "forbidden",
    404: "not_found",
    405: "bad_request",
    412: "precondition_failed",
    413: "too_large",
    429: "limited",
    500: "error",
    503: "unavailable",
}


class _Requests:
    """How many requests of one homeserver were answered, by method and status."""

    def __init__(self) -> None:
        self._counts = {(method, code): 0 for method in (*_METHODS, _OTHER_METHOD) for code in _OUTCOMES}

    def count(self, method: bytes, code: int) -> None:
        """Count one."""
        key = method, code
        if key not in self._counts:
            key = method if method in _METHODS else _OTHER_METHOD, code if code in _OUTCOMES else 500
        self._counts[key] += 1

    def by_outcome(self) -> Mapping[tuple[str, str], int]:
        """Return them by method and outcome."""
        counts: defaultdict[tuple[str, str], int] = defaultdict(int)
        for (method, code), count in self._counts.items():
            counts[method.decode("ascii"), _OUTCOMES[code]] += count
        return counts


class _BodyBytes:
    """How long the payloads are that were stored at one homeserver."""

    _BOUNDS = (64, 256, 1024, 2048, 4096, 8192, 16384, 65536)

    def __init__(self) -> None:
        self.total = 0
        self._counts = [0] * (len(self._BOUNDS) + 1)

    def observe(self, size: int) -> None:
        """Count one."""
        self.total += size
        self._counts[bisect.bisect_left(self._BOUNDS, size)] += 1

    def buckets(self) -> Sequence[tuple[str, float]]:
        """Return how many there are up to each bound, which is written as Prometheus writes it."""
        return list(zip([*map(floatToGoString, self._BOUNDS), "+Inf"], itertools.accumulate(self._counts), strict=True))


class _Collector:
    """Tells Prometheus what is counted at nearly every request, which by its own counters would cost more each time."""

    def __init__(self) -> None:
        self.requests: defaultdict[str, _Requests] = defaultdict(_Requests)
        self.created: defaultdict[str, dict[str, int]] = defaultdict(lambda: dict.fromkeys(_DIALECTS, 0))
        self.body_bytes: defaultdict[str, _BodyBytes] = defaultdict(_BodyBytes)

    def collect(self) -> Iterator[Metric]:
        """Called by Prometheus' client whenever somebody wants to know."""
        requests = CounterMetricFamily(_name("requests"), "Requests answered", labels=[_SERVER, "method", "outcome"])
        for server_name, counted in self.requests.items():
            for labels, count in counted.by_outcome().items():
                requests.add_metric([server_name, *labels], count)
        yield requests
        created = CounterMetricFamily(_name("created"), "Sessions created", labels=[_SERVER, "dialect"])
        for server_name, by_dialect in self.created.items():
            for dialect, count in by_dialect.items():
                created.add_metric([server_name, dialect], count)
        yield created
        body_bytes = HistogramMetricFamily(_name("body_bytes"), "Payloads stored", labels=[_SERVER])
        for server_name, sizes in self.body_bytes.items():
            body_bytes.add_metric([server_name], sizes.buckets(), sizes.total)
        yield body_bytes


_COLLECTOR = _Collector()
REGISTRY.register(_COLLECTOR)

_LIMITS = (
    *("deny", "per_client.create", "per_client.read", "per_client.write", "per_client.miss"),
    *("per_client.max_sessions", "per_client.crowded_sessions", "per_session.read", "per_session.write"),
    *("per_user.create", "max_sessions", "max_total_bytes", "max_updates"),
)


class Metrics:
    """Counts for one homeserver, in one process.

    Args:
        server_name: of the homeserver.
        version: of this package.
        process: which of the homeserver's processes this is.
        store: where sessions are: `memory` or `redis`.
        config: how much there may be.

    Attributes:
        answered: counts a request by its method and the status of its answer.
    """

    def __init__(self, server_name: str, *, version: str, process: str, store: str, config: RendezvousConfig) -> None:
        def each(family: Counter, values: Iterable[str]) -> dict[str, Counter]:
            return {value: family.labels(server_name, value) for value in values}

        self._ttl_ms = config.ttl_ms
        # All are made here, so that they are there at zero, and none is looked for when a request is counted.
        _INFO.labels(server_name, version, process, store).set(1)
        self._live, self._payload_bytes = _LIVE.labels(server_name), _PAYLOAD_BYTES.labels(server_name)
        self._clients = _CLIENTS.labels(server_name)
        _LIMIT.labels(server_name, "count").set(config.max_sessions)
        _LIMIT.labels(server_name, "bytes").set(config.max_total_bytes)
        self._waiting = _WAITING.labels(server_name)
        self._rejected = each(_REJECTED, _LIMITS)
        self._tags = each(_TAGS, ("weak", "suffix", "unquoted"))
        self._waits = each(_WAITS, ("changed", "timed_out", "ended", "left", "refused"))
        self._ended = {
            (outcome, reason): _ENDED.labels(server_name, outcome, reason)
            for outcome in ("paired", "lonely")
            for reason in ("deleted", "expired")
        }
        self._durations = {outcome: _DURATION.labels(server_name, outcome) for outcome in ("paired", "lonely")}
        self.answered = _COLLECTOR.requests[server_name].count
        self._created, self._body_bytes = _COLLECTOR.created[server_name], _COLLECTOR.body_bytes[server_name]
        self._replayed, self._proxy_bucket = _REPLAYED.labels(server_name), _PROXY_BUCKET.labels(server_name)
        self._store_failures, self._store_down = _STORE_FAILURES.labels(server_name), _STORE_DOWN.labels(server_name)
        self._first_reply = _FIRST_REPLY.labels(server_name)

    def refused(self, limit: str) -> None:
        """Count a request over a limit."""
        self._rejected[limit].inc()

    def created(self, dialect: str, size: int) -> None:
        """Count a session, and the bytes of its payload."""
        self._created[dialect] += 1
        self._body_bytes.observe(size)

    def created_from_nowhere(self) -> None:
        """Count a creation by a client whose address may be a proxy's."""
        self._proxy_bucket.inc()

    def replaced(self, session: Session) -> None:
        """Count the bytes of a payload, and how long after its session the first write came."""
        self._body_bytes.observe(len(session.payload))
        if session.updates == 1:
            self._first_reply.observe((session.last_modified_ms - session.expires_ms + self._ttl_ms) / 1000)

    def repeated(self) -> None:
        """Count a write that was done before."""
        self._replayed.inc()

    def ended(self, session: Ended) -> None:
        """Count the end of a session."""
        self._ended[session.outcome, session.reason].inc()
        self._durations[session.outcome].observe(session.lived_ms / 1000)

    def normalised(self, kinds: Iterable[str]) -> None:
        """Count entity tags that were put right: `weak`, `suffix` or `unquoted`."""
        for kind in kinds:
            self._tags[kind].inc()

    def observe_waiting(self, count: Callable[[], int]) -> None:
        """Ask for the number of requests that wait whenever somebody wants to know it."""
        self._waiting.set_function(count)

    def waited(self, outcome: str) -> None:
        """Count a wait: it was `changed`, `timed_out`, `ended`, `left` by its client, or `refused` a place."""
        self._waits[outcome].inc()

    def store_failed(self) -> None:
        """Count an operation that was given up."""
        self._store_failures.inc()

    def store_is_down(self, is_down: bool) -> None:
        """Say whether operations fail now."""
        self._store_down.set(is_down)

    def holds(self, held: Held) -> None:
        """Say what the store holds."""
        self._live.set(held.sessions)
        self._payload_bytes.set(held.total_bytes)
        self._clients.set(held.clients)
