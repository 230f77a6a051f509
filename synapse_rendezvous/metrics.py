"""The Prometheus metrics, served by Synapse's own metrics listener.

Each metric has the label `server_name`, as Synapse's own have. Every label has a fixed set of values.
"""

import itertools
from collections.abc import Iterable

import attr
from prometheus_client import Counter, Gauge, Histogram

from synapse_rendezvous.config import DialectsConfig, RendezvousConfig
from synapse_rendezvous.limits import LimitName

_SERVER = "server_name"


def _name(name: str) -> str:
    return f"synapse_rendezvous_{name}"


_REQUESTS = Counter(_name("requests"), "Requests answered", [_SERVER, "method", "outcome"])
_CREATED = Counter(_name("created"), "Sessions created", [_SERVER, "dialect"])
_BODY_BYTES = Histogram(
    _name("body_bytes"), "Payloads stored", [_SERVER], buckets=(64, 256, 1024, 2048, 4096, 8192, 16384, 65536)
)
_LIVE = Gauge(_name("live"), "Sessions that live", [_SERVER])
_PAYLOAD_BYTES = Gauge(_name("payload_bytes"), "Bytes of payload that they hold", [_SERVER])
_CLIENTS = Gauge(_name("clients"), "Clients, and networks around them, that have sessions", [_SERVER])
_LIMIT = Gauge(_name("limit"), "How many sessions, or bytes of payload, there may be", [_SERVER, "kind"])
_INFO = Gauge(_name("info"), "1 for each process that serves sessions", [_SERVER, "version", "process", "store"])
_ENDED = Counter(_name("ended"), "Sessions ended; paired if they were ever written to", [_SERVER, "outcome", "reason"])
_REJECTED = Counter(_name("rejected"), "Requests over a limit, refused or only observed", [_SERVER, "limit"])
_TAGS = Counter(_name("tags_normalised"), "Entity tags that a proxy had changed, put right", [_SERVER, "kind"])
_REPLAYED = Counter(_name("replayed_puts"), "Writes that arrived twice and were done once", [_SERVER])
_UNIDENTIFIED = Counter(
    _name("unidentified_creates"), "Sessions created by clients with a private address or none", [_SERVER]
)
_WAITING = Gauge(_name("waiting"), "Requests that wait for a session to change", [_SERVER])
_WAITS = Counter(_name("waits"), "Waits that ended, or had no place", [_SERVER, "outcome", "asked_by"])
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

METHODS = (b"GET", b"HEAD", b"POST", b"PUT", b"DELETE")
OTHER_METHOD = b"other"
STATUS_OUTCOMES = {
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
    409: "precondition_failed",
    412: "precondition_failed",
    413: "too_large",
    429: "limited",
    500: "error",
    503: "unavailable",
}


class Metrics:
    """The metrics of one homeserver in one process; each attribute is one, or one for each value of its labels.

    All of them exist from the start, so that Prometheus sees a zero before the first event.

    Args:
        server_name: of the homeserver.
        version: of this package.
        process: names this process among the homeserver's.
        store: `memory` or `redis`.
        config: names the dialects and the bounds.
    """

    def __init__(self, server_name: str, *, version: str, process: str, store: str, config: RendezvousConfig) -> None:
        def each(family: Counter, values: Iterable[str]) -> dict[str, Counter]:
            return {value: family.labels(server_name, value) for value in values}

        _INFO.labels(server_name, version, process, store).set(1)
        _LIMIT.labels(server_name, "count").set(config.max_sessions)
        _LIMIT.labels(server_name, "bytes").set(config.max_total_bytes)
        self.requests = {
            (method, status): _REQUESTS.labels(server_name, method.decode("ascii"), outcome)
            for method in (*METHODS, OTHER_METHOD)
            for status, outcome in STATUS_OUTCOMES.items()
        }
        self.created = each(_CREATED, (field.name for field in attr.fields(DialectsConfig)))
        self.body_bytes = _BODY_BYTES.labels(server_name)
        self.live = _LIVE.labels(server_name)
        self.payload_bytes = _PAYLOAD_BYTES.labels(server_name)
        self.clients = _CLIENTS.labels(server_name)
        self.ended = {
            (outcome, reason): _ENDED.labels(server_name, outcome, reason)
            for outcome, reason in itertools.product(("paired", "lonely"), ("deleted", "expired"))
        }
        self.durations = {outcome: _DURATION.labels(server_name, outcome) for outcome in ("paired", "lonely")}
        self.rejected = {name: _REJECTED.labels(server_name, name.value) for name in LimitName}
        self.tags_normalised = each(_TAGS, ("weak", "suffix", "unquoted"))
        self.replayed_puts = _REPLAYED.labels(server_name)
        self.unidentified_creates = _UNIDENTIFIED.labels(server_name)
        self.waiting = _WAITING.labels(server_name)
        self.waits = {
            (outcome, asked_by): _WAITS.labels(server_name, outcome, asked_by)
            for outcome in ("changed", "timed_out", "ended", "left", "displaced", "refused")
            for asked_by in ("client", "default")
        }
        self.store_failures = _STORE_FAILURES.labels(server_name)
        self.store_down = _STORE_DOWN.labels(server_name)
        self.first_reply = _FIRST_REPLY.labels(server_name)
