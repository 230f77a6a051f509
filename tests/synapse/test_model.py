"""All that is promised over HTTP, against a plain model of it: whatever is asked, each answer is the one foretold.

The model is written from the documents, not from the code: with its own leaky buckets, quotas, preconditions and waits.
"""

import email.utils
import ipaddress
import json
import logging
import math
import os
import pathlib
import re
import shutil
import tempfile
import unittest
from collections import Counter
from typing import Any, ClassVar
from unittest.mock import patch
from urllib.parse import quote

import attr
import pytest
import txredisapi
from hypothesis import HealthCheck, Phase, settings
from hypothesis import strategies as st
from hypothesis.stateful import (
    RuleBasedStateMachine,
    initialize,
    invariant,
    precondition,
    rule,
    run_state_machine_as_test,
)
from synapse.logging.context import SENTINEL_CONTEXT, current_context
from twisted.internet import reactor
from twisted.internet.error import ConnectionDone
from twisted.python.failure import Failure

from support.rendezvous_case import COMMON, RendezvousTestCase
from support.servers import RedisServer
from support.stores import MemoryStores, RedisStores, Time, result
from synapse_rendezvous import __version__, clock
from synapse_rendezvous.demo.throwaway_homeserver import HOST
from synapse_rendezvous.redis.store import RedisSessionStore

MODEL_STEPS = int(os.environ.get("MODEL_STEPS", "1000"))
"""How many steps are taken, on both stores together; CI takes more."""

STEPS_IN_A_ROW = 50

PHASES = list(Phase) if "MODEL_SHRINK" in os.environ else [Phase.generate]
"""To find the shortest sequence that goes wrong takes minutes; without, any is shown."""

UPTIME_MS = 1_000_000
"""What the clock that nobody sets shows at first: as on a real machine, something else than the time of day."""

DRIFT_S = 2**-14
"""How much alarms are early each time that time passes, so that no rounding makes them late; no time is told by it."""

# All rates are powers of two and all times eighths of a second, so that floating point is exact here and there.
DEFAULT_WAIT_MS, LINGER_MS = 2000, 2000
TTL_MS, MAX_WAIT_MS, MAX_BYTES, MAX_TOTAL_BYTES, MAX_SESSIONS, CROWDED, MAX_UPDATES = 60_000, 4000, 40, 150, 8, 7, 2
CLIENT_SESSIONS, CROWDED_CLIENT_SESSIONS, MAX_WAITING, CLIENT_WAITING, SESSION_WAITING = 2, 1, 5, 2, 4
CLIENT_RATES = {"create": (0.25, 2), "read": (0.5, 4), "miss": (0.125, 2)}
SESSION_RATES = {"read": (0.5, 9), "write": (0.25, 5)}
EXEMPT, DENIED, UNKNOWN = "192.0.2.7", "198.51.100.66", "no address"
CLIENTS = ["203.0.113.1", "203.0.113.2", EXEMPT, UNKNOWN]
# Four networks of one /56, one of which has two addresses; two more of the same /48; and one elsewhere.
CLIENTS += (NEIGHBOURS := [f"2001:db8:1:{network}::1" for network in (0, 1, 2, 3, 100, 200)])
CLIENTS += ["2001:db8:1::2", "2001:db8:2::1"]
MSC3886, MSC4108, MSC4388 = PATHS = {
    "/_synapse/client/rendezvous": "",
    "/_synapse/client/rendezvous/msc4108": "c",
    "/_synapse/client/io.element.msc4388/rendezvous": "d",
}
"""Where the dialects are, and what their ids begin with."""

CODES = {MSC3886: {201: 200}, MSC4388: {201: 200, 202: 200, 204: 200, 304: 200, 412: 409}}
"""Where a dialect has another status than MSC4108."""

ERRCODES = {400: "M_INVALID_PARAM", 403: "M_FORBIDDEN", 404: "M_NOT_FOUND", 405: "M_UNRECOGNIZED", 412: "M_UNKNOWN"}
ERRCODES |= {409: "IO_ELEMENT_MSC4388_CONCURRENT_WRITE", 413: "M_TOO_LARGE", 429: "M_LIMIT_EXCEEDED"}

STRAYS = [
    ("denied", "GET", "/{}"),
    ("described", "GET", ""),
    ("described", "HEAD", "/"),
    ("method", "PATCH", "/{}"),
    ("method", "POST", "/{}"),
]
STRAYS += [("method", "PUT", ""), ("method", "DELETE", "/"), ("method", "ODD", "/%78{}"), ("deeper", "POST", "/{}/x")]
STRAYS += [
    ("lost", "GET", "/{}"),
    ("lost", "GET", "/{}%2f"),
    ("nowhere", "DELETE", "//{}"),
    ("nowhere", "PUT", "/{}/x/"),
]
"""Requests that are for no session: what becomes of them, their method, and what is behind the dialect's path."""

STORMS = [("lost", "GET", "/{}"), ("lost", "PUT", "/{}"), ("lost", "DELETE", "/{}"), ("described", "GET", "")]
"""What strangers ask for again and again."""

PAIRING = "DELETE GET GET GET GET GET GET PUT PUT"
"""All that two devices ask of their session, which by itself is over no limit."""

MET = "described created shown unchanged updated repeated deleted denied display lost method missing invalid timeout"
MET += " retried conflict retried.conflict max_outcomes nowhere"
MET += " large failed news gone due waiting displaced waiting.client create"
MET += " read miss session.read session.write create*3 miss*3"
MET += " max_sessions max_total_bytes max_updates client crowded crowded*3 left paired"
"""Words for what the model has foretold at least once, where it has foretold enough."""


def _section(rates: dict[str, tuple[float, int]]) -> dict[str, Any]:
    return {name: {"per_second": rate, "burst_count": burst} for name, (rate, burst) in rates.items()}


@attr.s(auto_attribs=True, eq=False)
class Kept:
    """A session, as the model knows it.

    Attributes:
        expires_ms: when it ends; 0 once it is deleted.
        tags: of its revisions, the current one last.
        outcomes: of its transactions: the tag that was made, or None for a conflict.
        is_secret: whether only the two devices that pair know its id.
    """

    dialect: str
    id: str = ""
    client: str = ""
    expires_ms: int = 0
    modified_ms: int = 0
    payload: bytes = b""
    content_type: bytes = b""
    tags: list[str] = attr.Factory(list)
    outcomes: dict[str, str | None] = attr.Factory(dict)
    is_secret: bool = False

    def tag(self, age: int = 0) -> str:
        """Return the tag of the current revision, or of one so many revisions before; if there is none, nobody's."""
        return self.tags[-1 - age] if age < len(self.tags) else "0" * 20


@attr.s(auto_attribs=True, frozen=True)
class Known:
    """Which revisions a client names: as it writes it, and what that means."""

    written: str
    tags: frozenset[str]

    def has(self, kept: Kept) -> bool:
        return "*" in self.tags or kept.tag() in self.tags


@attr.s(auto_attribs=True, eq=False, kw_only=True)
class Asked:
    """A request, and what becomes of it while it waits."""

    client: str
    method: str
    dialect: str
    below: str = ""
    kept: Kept | None = None
    payload: bytes | None = None
    content_type: bytes | None = None
    transaction: str | None = None
    if_match: Known | None = None
    if_none_match: Known | None = None
    timeout: str | None = None
    destination: str | None = None
    stray: str = ""
    due_ms: int = 0
    channel: Any = None


@attr.s(auto_attribs=True, frozen=True, eq=False)
class Answer(Exception):
    """What is foretold.

    Attributes:
        code: the status.
        why: the promise that it follows from.
        kept: the session whose revision it tells.
        retry_ms: after which time to try again.
        is_late: whether it is held back for half a second.
    """

    code: int
    why: str
    kept: Kept | None = None
    retry_ms: float | None = None
    is_late: bool = False


def shares(client: str) -> list[tuple[str, int]]:
    """Return for whom it counts what a client does, and how many times as much each may do."""
    if client in (EXEMPT, UNKNOWN):
        return []
    if ":" not in client:
        return [(client, 1)]
    digits = ipaddress.IPv6Address(client).exploded.replace(":", "")
    return [(digits[:16], 1), (digits[:14], 3), (digits[:12], 6)]


class Model:
    """What a rendezvous server does, in the plainest words.

    Attributes:
        sessions: all that there ever were.
        waiting: the requests that wait, in the order in which they began to.
        displaced: those that lost their place to the last one that began to.
    """

    def __init__(self, time: Time) -> None:
        self._time = time
        self.sessions: list[Kept] = []
        self.waiting: list[Asked] = []
        self.displaced: list[Asked] = []
        self._levels: dict[tuple[str, str], tuple[float, int]] = {}

    def answer(self, asked: Asked) -> Answer | None:
        """Return the answer to a request; None if it waits."""
        operations = {"POST": self._create, "GET": self._read, "HEAD": self._read, "PUT": self._replace}
        operations |= {"DELETE": self._delete}
        strays = {"denied": self._deny, "described": self._describe, "lost": self._lose, "method": self._mistake}
        strays |= {"nowhere": self._get_lost, "deeper": self._go_deeper}
        try:
            return (strays[asked.stray] if asked.stray else operations[asked.method])(asked)
        except Answer as answer:
            return answer

    def look_again(self, asked: Asked) -> Answer | None:
        """Return the answer to a request that waited; None if it waits on."""
        assert asked.kept is not None
        self.waiting.remove(asked)
        if not self.is_alive(asked.kept):
            return self._lose(asked, "gone")
        if asked.if_match is not None and not asked.if_match.has(asked.kept):
            return Answer(412, "failed", asked.kept)
        if asked.if_none_match is not None and not asked.if_none_match.has(asked.kept):
            return Answer(200, "news", asked.kept)
        if asked.due_ms <= self._time.now_ms:
            return Answer(304, "due", asked.kept)
        self.waiting.append(asked)
        return None

    def is_alive(self, kept: Kept) -> bool:
        return kept.expires_ms + LINGER_MS > self._time.now_ms

    def counted(self) -> Counter[str]:
        """Return how many wait of each client and of each network around."""
        return Counter(name for other in self.waiting for name, _ in shares(other.client))

    def alive(self) -> list[Kept]:
        return [kept for kept in self.sessions if self.is_alive(kept)]

    def _spend(self, limit: str, rate: tuple[float, int], keys: list[tuple[str, int]], *, is_done: bool = True) -> None:
        """Pour into the leaky bucket of each; where one is full, the widest network's first, into none."""
        poured = {}
        for key, share in reversed(keys):
            per_second, burst = rate[0] * share, rate[1] * share
            level, at_ms = self._levels.get((limit, key), (0.0, 0))
            level = max(0.0, level - (self._time.now_ms - at_ms) / 1000 * per_second)
            if level > burst - 1:
                why = limit if share == 1 else f"{limit}*{share}"
                retry_ms = (level - burst + 1) / per_second * 1000
                raise Answer(429, why, retry_ms=retry_ms, is_late=limit == "create")
            poured[limit, key] = level + 1, self._time.now_ms
        if is_done:
            self._levels |= poured

    def _find(self, asked: Asked) -> Kept:
        assert asked.kept is not None
        if not self.is_alive(asked.kept):
            raise self._lose(asked)
        return asked.kept

    def _lose(self, asked: Asked, why: str = "lost") -> Answer:
        try:
            self._spend("miss", CLIENT_RATES["miss"], shares(asked.client))
        except Answer as refusal:
            return refusal
        return Answer(404, why)

    def _describe(self, asked: Asked) -> Answer:
        self._spend("read", CLIENT_RATES["read"], shares(asked.client)[:1])
        return Answer(200, "described")

    def _deny(self, asked: Asked) -> Answer:
        return Answer(403, "denied")

    def _get_lost(self, asked: Asked) -> Answer:
        return Answer(404, "nowhere")

    def _go_deeper(self, asked: Asked) -> Answer:
        return Answer(405, "method") if asked.dialect == MSC4388 else Answer(404, "nowhere")

    def _mistake(self, asked: Asked) -> Answer:
        return Answer(405, "method")

    def _write(self, asked: Asked) -> tuple[bytes, bytes]:
        """Return what is to be stored."""
        if asked.dialect == MSC3886 and asked.content_type == b"\x01":
            raise Answer(400, "invalid")
        if asked.payload is None:
            raise Answer(400, "invalid")
        if len(asked.payload) > (MAX_BYTES if asked.dialect == MSC3886 else 4096):
            raise Answer(413, "large")
        if asked.dialect == MSC4108 and asked.content_type != b"text/plain":
            # With a body, Synapse's harness sends an empty one where there is none.
            raise Answer(400, "invalid" if asked.content_type or asked.payload else "missing")
        default = asked.content_type or b"application/octet-stream"
        return asked.payload, b"application/json" if asked.dialect == MSC4388 else default

    def _full(self, quota: str) -> Answer:
        return Answer(429, quota, retry_ms=30_000, is_late=True)

    def _require_room(self, growth: int) -> None:
        if growth > 0 and sum(len(kept.payload) for kept in self.alive()) + growth > MAX_TOTAL_BYTES:
            raise self._full("max_total_bytes")

    def _create(self, asked: Asked) -> Answer:
        self._spend("create", CLIENT_RATES["create"], shares(asked.client))
        payload, content_type = self._write(asked)
        alive, now_ms = self.alive(), self._time.now_ms
        if len(alive) >= MAX_SESSIONS:
            raise self._full("max_sessions")
        quota, most = ("crowded", CROWDED_CLIENT_SESSIONS) if len(alive) >= CROWDED else ("client", CLIENT_SESSIONS)
        for name, share in shares(asked.client):
            if sum((name, share) in shares(kept.client) for kept in alive) >= most * share:
                raise self._full(quota if share == 1 else f"{quota}*{share}")
        self._require_room(len(payload))
        asked.kept = Kept(asked.dialect, "", asked.client, now_ms + TTL_MS, now_ms, payload, content_type)
        self.sessions.append(asked.kept)
        return Answer(201, "created", asked.kept)

    def _read(self, asked: Asked) -> Answer | None:
        if asked.destination not in (None, "empty"):
            raise Answer(403, "display")
        if asked.timeout is not None and not asked.timeout.isdecimal():
            raise Answer(400, "timeout")
        kept = self._find(asked)
        try:
            self._spend("session.read", SESSION_RATES["read"], [(kept.id, 1)])
        except Answer as refusal:
            raise attr.evolve(refusal, kept=kept) from None
        if asked.if_match is not None and not asked.if_match.has(kept):
            raise Answer(412, "failed", kept)
        if asked.if_none_match is None or not asked.if_none_match.has(kept):
            return Answer(200, "shown", kept)
        wait_ms = min(int(asked.timeout or 0), MAX_WAIT_MS)
        if asked.timeout is None and asked.method == "GET":
            wait_ms = DEFAULT_WAIT_MS
        if wait_ms == 0:
            return Answer(304, "unchanged", kept)
        counted = self.counted()
        if any(counted[name] >= CLIENT_WAITING * share for name, share in shares(asked.client)):
            return Answer(304, "waiting.client", kept)
        if len(self.waiting) >= MAX_WAITING:
            return Answer(304, "waiting", kept)
        of_session = [other for other in self.waiting if other.kept is kept]
        if len(of_session) >= SESSION_WAITING:
            self.waiting.remove(of_session[0])
            self.displaced.append(of_session[0])
        asked.due_ms = min(self._time.now_ms + wait_ms, kept.expires_ms + LINGER_MS)
        self.waiting.append(asked)
        return None

    def _replace(self, asked: Asked) -> Answer:
        assert asked.kept is not None
        self._spend("session.write", SESSION_RATES["write"], [(asked.kept.id, 1)], is_done=False)
        if_match = asked.if_match
        if if_match is None and asked.dialect == MSC4388:
            raise Answer(400, "invalid")
        write = self._write(asked)
        if if_match is None and asked.dialect == MSC4108:
            raise Answer(400, "missing")
        kept = self._find(asked)
        if asked.transaction is not None:
            assert if_match is not None
            self._settle_transaction(asked.transaction, if_match, kept)
            if asked.transaction in kept.outcomes:
                return Answer(202, "retried", kept)
        elif if_match is not None and not if_match.has(kept) and write == (kept.payload, kept.content_type):
            if asked.dialect == MSC4388 or (len(kept.tags) > 1 and kept.tag(1) in if_match.tags):
                self._spend("session.write", SESSION_RATES["write"], [(kept.id, 1)])
                return Answer(202, "repeated", kept)
        self._require(asked, kept)
        if len(kept.tags) > MAX_UPDATES:
            raise self._full("max_updates")
        self._require_room(len(write[0]) - len(kept.payload))
        self._spend("session.write", SESSION_RATES["write"], [(kept.id, 1)])
        (kept.payload, kept.content_type), kept.modified_ms = write, self._time.now_ms
        if asked.transaction is not None:
            kept.outcomes[asked.transaction] = ""  # until it is learned
        return Answer(202, "updated", kept)

    def _settle_transaction(self, transaction: str, if_match: Known, kept: Kept) -> None:
        """Raise the answer to a transaction that is, or was, a conflict, or that is one too many."""
        if transaction in kept.outcomes:
            self._spend("session.write", SESSION_RATES["write"], [(kept.id, 1)])
            if kept.outcomes[transaction] is None:
                raise Answer(412, "retried.conflict", kept)
        elif len(kept.outcomes) >= 2 * MAX_UPDATES:
            raise self._full("max_outcomes")
        elif not if_match.has(kept):
            self._spend("session.write", SESSION_RATES["write"], [(kept.id, 1)])
            kept.outcomes[transaction] = None
            raise Answer(412, "conflict", kept)

    def _delete(self, asked: Asked) -> Answer:
        kept = self._find(asked)
        self._require(asked, kept)
        kept.expires_ms = 0
        return Answer(204, "deleted")

    def _require(self, asked: Asked, kept: Kept) -> None:
        is_known = asked.if_none_match is not None and asked.if_none_match.has(kept)
        if is_known or (asked.if_match is not None and not asked.if_match.has(kept)):
            self._spend("session.write", SESSION_RATES["write"], [(kept.id, 1)])
            raise Answer(412, "failed", kept)


class ErrorLog(logging.Handler):
    """Keeps what is logged as an error."""

    def __init__(self) -> None:
        super().__init__(logging.ERROR)
        self.messages: list[str] = []

    def emit(self, record: logging.LogRecord) -> None:
        self.messages.append(record.getMessage())


class Machine(RuleBasedStateMachine):
    """The module's resources beside the model.

    Args:
        case: has the homeserver, one for all sequences of steps because it takes a while to make.
        stores: makes a new store for each.
        met: counts what was foretold.
    """

    whom = st.integers(0, 7)
    times = st.sampled_from([1, 1, 1, 2, 4])
    which = st.integers(0, 4)
    dialects = st.sampled_from(list(PATHS))
    payloads = st.sampled_from(
        [*["", "a", "b", "40 bytes", "40 more"] * 2, "41 bytes", "90 bytes", "4097 bytes", "none"]
    )
    types = st.sampled_from([*[b"text/plain"] * 9, b"text/html", b"\x01", None])
    known = st.sampled_from([*["", "current"] * 3, "previous", "older", "foreign", "*", "weak", "gzip", "list"])
    likely = st.sampled_from([*["current"] * 4, "previous", "previous", "weak"])
    transactions = st.sampled_from([None, None, None, *"abcdefgh"])

    def __init__(self, case: "ModelTestCase", stores: MemoryStores | RedisStores, met: Counter[str]) -> None:
        super().__init__()
        self._case, self._time, self._stores, self._met = case, case.time, stores, met
        self._store = case.furnish(stores)
        self._model = Model(self._time)
        self._pairing: tuple[Kept, list[str]] | None = None

    @initialize(
        clients=st.one_of(st.lists(st.sampled_from(CLIENTS), min_size=2, unique=True), st.just(NEIGHBOURS)),
        dialect=dialects,
    )
    def begin(self, clients: list[str], dialect: str) -> None:
        self._clients = [EXEMPT]
        self.create(0, 1, dialect, "a", b"text/plain")
        self._clients = clients

    @rule(whom=whom, times=times, dialect=dialects, payload=payloads, content_type=types)
    def create(self, whom: int, times: int, dialect: str, payload: str, content_type: bytes | None) -> None:
        for turn in range(times):
            asked = Asked(client=self._client(whom + turn), method="POST", dialect=dialect)
            self._carry(asked, payload, content_type)
            self._ask(asked)

    @rule(whom=whom, which=which, is_head=st.booleans(), match=known, none_match=known)
    def read(self, whom: int, which: int, is_head: bool, match: str, none_match: str) -> None:
        self._ask(self._about(whom, which, "HEAD" if is_head else "GET", match, none_match))

    @rule(
        whom=st.tuples(whom, st.integers(0, 1)),
        which=st.tuples(which, st.integers(0, 1)),
        times=st.sampled_from([1, 1, 2, 6]),
        none_match=likely,
        timeout=st.sampled_from([*["125", "1000", "4000", "9999"] * 3, "0", None, "x"]),
        destination=st.sampled_from([*[None] * 9, "empty", "image"]),
    )
    def poll(
        self,
        whom: tuple[int, int],
        which: tuple[int, int],
        times: int,
        none_match: str,
        timeout: str | None,
        destination: str | None,
    ) -> None:
        """Wait for news: one client or one after the other, for one session or one after the other."""
        for turn in range(times):
            asked = self._about(whom[0] + turn * whom[1], which[0] + turn * which[1], "GET", "", none_match)
            asked.timeout, asked.destination = timeout, destination
            self._ask(asked)

    @rule(whom=whom, which=which, match=known, none_match=known, payload=payloads, content_type=types)
    def replace(
        self, whom: int, which: int, match: str, none_match: str, payload: str, content_type: bytes | None
    ) -> None:
        asked = self._about(whom, which, "PUT", match, none_match)
        self._carry(asked, payload, content_type)
        self._ask(asked)

    @rule(whom=whom, which=which, match=likely, is_same=st.booleans(), payload=payloads, transaction=transactions)
    def write(self, whom: int, which: int, match: str, is_same: bool, payload: str, transaction: str | None) -> None:
        """Replace a payload as clients do, or by what is there already."""
        asked = self._about(whom, which, "PUT", match, "")
        if asked.dialect == MSC4388 and transaction is not None:
            asked.transaction, asked.below = transaction, f"{asked.below}/{transaction}"
        assert asked.kept is not None
        self._carry(asked, payload, asked.kept.content_type)
        if is_same:
            asked.payload = asked.kept.payload
        self._ask(asked)

    @rule(
        whom=whom,
        which=which,
        writes=st.lists(st.tuples(st.sampled_from("abcdefgh"), likely), min_size=2, max_size=6),
        payload=payloads,
        pause_ms=st.sampled_from([0, 4000]),
    )
    def transact(self, whom: int, which: int, writes: list[tuple[str, str]], payload: str, pause_ms: int) -> None:
        """Write several times under transaction ids, some of them more than once."""
        for transaction, match in writes:
            self.write(whom, which, match, False, payload, transaction)
            self._pass(pause_ms)

    @rule(whom=whom, which=which, match=known, none_match=known)
    def delete(self, whom: int, which: int, match: str, none_match: str) -> None:
        self._ask(self._about(whom, which, "DELETE", match, none_match))

    @rule(whom=whom, times=times, which=which, stray=st.sampled_from(STRAYS))
    def stray(self, whom: int, times: int, which: int, stray: tuple[str, str, str]) -> None:
        """Ask for something else than a session, for a session in another dialect, or by a method that is not there."""
        kept, (why, method, below) = self._session(which), stray
        others = {MSC3886: MSC4108, MSC4108: MSC4388, MSC4388: MSC3886}
        dialect = others[kept.dialect] if (why, below) == ("lost", "/{}") else kept.dialect
        for turn in range(times):
            client = DENIED if why == "denied" else self._client(whom + turn)
            self._ask(Asked(client=client, method=method, dialect=dialect, below=below.format(kept.id), stray=why))

    @rule(whom=whom, dialect=dialects, steps=st.lists(st.sampled_from(["GET", "GET", "PUT"]), min_size=1, max_size=4))
    def pair(self, whom: int, dialect: str, steps: list[str]) -> None:
        """Let two devices pair, from the addresses of strangers: nothing that these do gets them a refusal."""
        if self._pairing is None or not self._model.is_alive(self._pairing[0]):
            asked = Asked(client=self._client(whom), method="POST", dialect=dialect)
            self._carry(asked, "a", b"text/plain")
            self._ask(asked)
            if asked.kept is None:
                return  # it did not begin: newcomers may be refused
            asked.kept.is_secret, self._pairing = True, (asked.kept, PAIRING.split())
        kept, left = self._pairing
        for method in steps:
            method = method if method in left else left[-1]
            left.remove(method)
            asked = Asked(
                client=self._client(whom), method=method, dialect=kept.dialect, below=f"/{kept.id}", kept=kept
            )
            if method == "PUT":
                asked.if_match = self._known(kept, "current")
                self._carry(asked, "ab"[len(kept.tags) % 2], b"text/plain")
            self._ask(asked)
            self._met["paired"] += 1
            assert asked.channel.code in (200, 202, 204), "strangers cost it something"
            if method == "DELETE":
                break

    @rule(whom=whom, times=st.sampled_from([5, 20]), which=which, stray=st.sampled_from(STORMS))
    def storm(self, whom: int, times: int, which: int, stray: tuple[str, str, str]) -> None:
        """Let somebody ask in a loop, for nothing or for the description."""
        why, method, below = stray
        for turn in range(times):
            asked = Asked(client=self._client(whom), method=method, dialect=self._session(which).dialect, stray=why)
            asked.below = below.format(f"{turn:022}")
            if method == "PUT":
                self._carry(asked, "a", b"text/plain")
                asked.if_match = Known('"x"', frozenset("x"))
            self._ask(asked)

    @rule(
        ms=st.sampled_from([*[125, 500, 1000, 2000, 4000] * 2, 8000, 16_000]),
        until=st.sampled_from([*[None] * 8, 0, 125]),
        which=which,
        is_swept=st.booleans(),
    )
    def wait(self, ms: int, until: int | None, which: int, is_swept: bool) -> None:
        """Let time pass: some, or until a session ends, or just before."""
        if until is not None:
            ms = max(0, self._session(which).expires_ms + LINGER_MS - self._time.now_ms - until)
        self._pass(ms)
        if is_swept:
            assert len(self._model.alive()) == result(self._store.sweep()).sessions

    @precondition(lambda self: self._model.waiting)
    @rule(whom=whom)
    def leave(self, whom: int) -> None:
        asked = self._model.waiting.pop(whom % len(self._model.waiting))
        asked.channel.request.connectionLost(Failure(ConnectionDone()))
        self._settle()
        assert not asked.channel.is_finished()
        self._met["left"] += 1

    @invariant()
    def agrees(self) -> None:
        """Accounts are exact, nobody waits without a reason, and no error was logged."""
        self._met["steps"] += 1
        held = self._stores.account()
        known = {kept.id[:6]: kept for kept in self._model.sessions if kept.expires_ms}  # the expired may be held still
        assert {kept.id[:6]: len(kept.payload) for kept in self._model.alive()}.items() <= held.sizes.items()
        assert {short_id: len(known[short_id].payload) for short_id in held.sizes} == held.sizes
        assert sum(held.sizes.values()) == held.total_bytes
        names = (name for short_id in held.sizes for name, _ in shares(known[short_id].client))
        assert Counter(names) == held.client_sessions
        self._case.require_waiting(len(self._model.waiting), self._model.counted())
        assert not any(asked.channel.is_finished() for asked in self._model.waiting)
        assert [] == self._case.errors.messages
        assert SENTINEL_CONTEXT is current_context()

    def teardown(self) -> None:
        self._pass(MAX_WAIT_MS)
        self._case.require_waiting(0, Counter())

    def _client(self, whom: int) -> str:
        return self._clients[whom % len(self._clients)]

    def _session(self, which: int) -> Kept:
        """Return one that lives, or the last that ended."""
        known = [kept for kept in self._model.sessions if not kept.is_secret]
        ended = [kept for kept in known if not self._model.is_alive(kept)]
        choice = [*ended[-1:], *(kept for kept in known if self._model.is_alive(kept))]
        return choice[-1 - which % len(choice)]

    def _about(self, whom: int, which: int, method: str, match: str, none_match: str) -> Asked:
        """Return a request about a session. Where there are no entity tags, a token stands for what method needs it."""
        kept = self._session(which)
        has_tags = kept.dialect != MSC4388
        return Asked(
            client=self._client(whom),
            method=method,
            dialect=kept.dialect,
            below=f"/{kept.id}",
            kept=kept,
            if_match=self._known(kept, match) if has_tags or method == "PUT" else None,
            if_none_match=self._known(kept, none_match) if has_tags or method in ("GET", "HEAD") else None,
        )

    def _known(self, kept: Kept, choice: str) -> Known | None:
        if not choice:
            return None
        tag = kept.tag({"previous": 1, "older": 2, "foreign": 99}.get(choice, 0))
        if kept.dialect == MSC4388:  # whose tokens mean only themselves
            token = {"*": "*", "weak": f'W/"{tag}"', "gzip": f"{tag}-gzip", "list": f'"{tag}"'}.get(choice, tag)
            return Known(token, frozenset({token} - {"*"}))
        if choice == "*":
            return Known("*", frozenset("*"))
        forms = {"weak": 'W/"{}"', "gzip": '"{}-gzip"', "list": '"a,b", "{}"'}
        return Known(forms.get(choice, '"{}"').format(tag), frozenset({tag}))

    def _carry(self, asked: Asked, payload: str, content_type: bytes | None) -> None:
        """Give a request a payload by its name; where it stands in JSON, there may be none."""
        size = int(payload[:-6]) if payload.endswith(" bytes") else 0
        asked.payload = b"x" * size if size else b"" if payload == "none" else payload.encode()
        if payload == "none" and asked.dialect == MSC4388:
            asked.payload = None
        asked.content_type = content_type

    def _ask(self, asked: Asked) -> None:
        """Send a request and check what becomes of it."""
        answer = self._model.answer(asked)
        self._send(asked)
        while self._model.displaced:
            displaced = self._model.displaced.pop()
            self._check(displaced, Answer(304, "displaced", displaced.kept))
        if answer is None:
            assert not asked.channel.is_finished(), "it does not wait"
            return
        if answer.why in ("created", "updated"):
            self._learn(asked)
        self._check(asked, answer)
        if answer.why in ("updated", "repeated", "deleted"):
            self._look([waiting for waiting in self._model.waiting if waiting.kept is asked.kept])

    def _send(self, asked: Asked) -> None:
        body, query, headers = asked.payload or b"", [], []
        token_to_read, token_to_write = asked.if_none_match, asked.if_match
        if asked.dialect == MSC4388:
            if token_to_read is not None:
                query.append(f"sequence_token={quote(token_to_read.written, safe='')}")
            if asked.method in ("POST", "PUT"):
                data = {"data": None if asked.payload is None else asked.payload.decode()}
                token = {} if token_to_write is None else {"sequence_token": token_to_write.written}
                body = json.dumps(data | token).encode()
        else:
            fields = (("If-Match", token_to_write), ("If-None-Match", token_to_read))
            headers += [(name, known.written) for name, known in fields if known is not None]
        if asked.timeout is not None:
            query.append(f"timeout={asked.timeout}")
        if asked.destination is not None:
            headers.append(("Sec-Fetch-Dest", asked.destination))
        if asked.content_type is not None and not body:  # else Synapse's harness sends it
            headers.append(("Content-Type", asked.content_type.decode()))
        asked.channel = self._case.make_request(
            asked.method,
            asked.dialect + asked.below + ("?" + "&".join(query) if query else ""),
            body,
            shorthand=False,
            await_result=False,
            content_type=asked.content_type or b"",
            custom_headers=headers,
            client_ip=asked.client,
        )
        self._settle()

    def _settle(self) -> None:
        """Let Redis answer all that it was asked, and the reactor take its next turn, in which waiters are woken."""
        self._case.reactor.advance(0)
        while isinstance(self._store, RedisSessionStore) and self._store._link._pending:
            reactor.iterate(0.01)  # type: ignore[call-arg, misc]
            self._case.reactor.advance(0)

    def _learn(self, asked: Asked) -> None:
        """Take from an answer what only the server could choose: an id, and a tag, which is like no other."""
        kept, channel = asked.kept, asked.channel
        assert kept is not None
        body = channel.json_body if asked.dialect == MSC4388 or asked.method == "POST" else {}
        if asked.method == "POST":
            kept.id = body["id"] if "id" in body else body["url"].rpartition("/")[2]
            assert re.fullmatch(PATHS[kept.dialect] + "[A-Za-z0-9_-]{22}", kept.id)
        (tag,) = [body["sequence_token"]] if "sequence_token" in body else channel.headers.getRawHeaders("ETag")
        assert re.fullmatch("[0-9a-z]{20}", tag.strip('"'))
        assert not any(tag.strip('"') in other.tags for other in self._model.sessions)
        kept.tags.append(tag.strip('"'))
        if asked.transaction is not None:
            kept.outcomes[asked.transaction] = kept.tag()

    def _pass(self, ms: int) -> None:
        """Let time pass, and stop whenever somebody has waited long enough."""
        end_ms = self._time.now_ms + ms
        while self._time.now_ms < end_ms:
            next_ms = min([end_ms, *(asked.due_ms for asked in self._model.waiting)])
            self._case.advance(next_ms - self._time.now_ms)
            self._settle()
            self._look([asked for asked in self._model.waiting if asked.due_ms <= next_ms])

    def _look(self, woken: list[Asked]) -> None:
        for asked in woken:
            answer = self._model.look_again(asked)
            if answer is not None:
                self._check(asked, answer)

    def _check(self, asked: Asked, answer: Answer) -> None:
        """Check an answer to the last byte; one that is held back, after half a second."""
        channel, dialect, kept = asked.channel, asked.dialect, answer.kept
        self._met[answer.why] += 1
        if answer.is_late:
            assert not channel.is_finished()
            self._pass(500)
        assert channel.is_finished(), answer
        code = CODES.get(dialect, {}).get(answer.code, answer.code)
        assert code == channel.code, answer
        body, fields = self._content(asked, answer, code)
        fields |= {name: values[0] for name, values in COMMON.items()}
        if kept is not None and dialect != MSC4388:
            fields |= {"ETag": f'"{kept.tag()}"', "Expires": _date(-(-kept.expires_ms // 1000))}
            fields["Last-Modified"] = _date(kept.modified_ms // 1000)
        sent = {name.decode(): value.decode() for name, (value,) in channel.headers.getAllRawHeaders()}  # each but once
        shown, length = channel.result.get("body", b""), sent.pop("Content-Length", None)
        if answer.retry_ms is not None:
            seconds = {str(math.ceil((int(answer.retry_ms) + error) / 1000)) for error in (-1, 0, 1)}
            assert sent.pop("Retry-After") in seconds
        assert fields == {name: value for name, value in sent.items() if name not in ("Server", "Date")}
        if asked.method == "HEAD" or body is None:
            assert (b"", body is None) == (shown, length is None)
        else:
            assert str(len(shown)) == length
            assert body == (shown if isinstance(body, bytes) else self._read_json(shown, answer))

    def _read_json(self, shown: bytes, answer: Answer) -> Any:
        content = json.loads(shown)
        if answer.code >= 400:
            assert isinstance(content.pop("error"), str)
        if answer.retry_ms is not None:
            assert abs(answer.retry_ms - content.pop("retry_after_ms")) <= 1
        if "process" in content:
            assert re.fullmatch("[0-9a-f]{8}", content.pop("process"))
        return content

    @staticmethod
    def _written(client: str) -> str:
        """Return how the description names a client to itself."""
        if ":" in client:
            return str(ipaddress.ip_network(f"{client}/64", strict=False))
        return {EXEMPT: "exempt", UNKNOWN: "unknown"}.get(client, client)

    def _content(self, asked: Asked, answer: Answer, code: int) -> tuple[bytes | dict[str, Any] | None, dict[str, str]]:
        """Return the body that is foretold, and the fields that come with it."""
        dialect, kept, in_json = asked.dialect, answer.kept, {"Content-Type": "application/json"}
        if code >= 400:
            error = {"errcode": "M_MISSING_PARAM" if answer.why == "missing" else ERRCODES[code]}
            if dialect == MSC4108 and code in (412, 429):
                error = {"errcode": "M_UNKNOWN"}
                error |= {"org.matrix.msc4108.errcode": "M_CONCURRENT_WRITE"} if code == 412 else {}
            if code == 429 and kept is not None and dialect != MSC4388:  # a poll, whose reader shall keep its tag
                return error, {"Content-Type": kept.content_type.decode()}
            methods = "GET, HEAD, PUT, DELETE, OPTIONS" if len(asked.below) > 1 else "GET, HEAD, POST, OPTIONS"
            methods = "PUT, OPTIONS" if asked.stray == "deeper" else methods
            error = {"errcode": "M_UNRECOGNIZED"} if answer.why == "nowhere" else error
            return error, in_json | ({"Allow": methods} if code == 405 else {})
        if code in (204, 304):
            return None, {}
        if answer.why == "described":
            limits = {"max_bytes": MAX_BYTES if dialect == MSC3886 else 4096, "ttl_ms": TTL_MS}
            about = {"name": "synapse_rendezvous", "version": __version__, **limits}
            about |= {"store": "memory", "client": self._written(asked.client)}  # the store that the module had made
            return (about if dialect != MSC4388 else {"create_available": True}) | {"max_wait_ms": MAX_WAIT_MS}, in_json
        if dialect == MSC4388 and kept is None:
            return {}, in_json
        assert kept is not None
        state = {"sequence_token": kept.tag(), "expires_in_ms": max(0, kept.expires_ms - self._time.now_ms)}
        if answer.why == "retried":
            return {"sequence_token": kept.outcomes[asked.transaction or ""]}, in_json
        if answer.why == "created" and dialect == MSC4388:
            return {"id": kept.id, **state}, in_json
        if answer.why == "created":
            path, most = f"{dialect}/{kept.id}", MAX_BYTES if dialect == MSC3886 else 4096
            url: dict[str, Any] = {"url": self._case.hs.config.server.public_baseurl.rstrip("/") + path}
            url |= {"id": kept.id, "max_bytes": most} if dialect == MSC3886 else {}
            return url, in_json | {"Location": path, "X-Max-Bytes": str(most)}
        if answer.why in ("updated", "repeated"):
            del state["expires_in_ms"]
            return (state, in_json) if dialect == MSC4388 else (b"", {"Content-Type": "text/plain"})
        if dialect == MSC4388:
            return {"data": kept.payload.decode(), **state}, in_json
        return kept.payload, {"Content-Type": kept.content_type.decode(), "Content-Disposition": "attachment"}


def _date(seconds: int) -> str:
    return email.utils.formatdate(seconds, usegmt=True)


class ModelTestCase(RendezvousTestCase):
    """One homeserver for all sequences of steps, its clocks set by hand."""

    options: ClassVar[dict[str, Any]] = {
        "ttl": TTL_MS,
        "max_bytes": MAX_BYTES,
        "max_sessions": MAX_SESSIONS,
        "max_total_bytes": MAX_TOTAL_BYTES,
        "max_updates": MAX_UPDATES,
        "crowded_at": CROWDED / MAX_SESSIONS,
        "per_client": {
            "max_sessions": CLIENT_SESSIONS,
            "crowded_sessions": CROWDED_CLIENT_SESSIONS,
            "max_waiting": CLIENT_WAITING,
            **_section(CLIENT_RATES),
        },
        "per_session": _section(SESSION_RATES),
        "long_poll": {"max_wait": MAX_WAIT_MS, "default_wait": DEFAULT_WAIT_MS, "max_waiting": MAX_WAITING},
        "exempt": [EXEMPT],
        "deny": [DENIED],
    }

    def make_homeserver(self, reactor: Any, synapse_clock: Any) -> Any:
        self.time = Time()
        self.time.now_ms -= self.time.now_ms % 1000
        self.time.now_ms += 86_400_000  # so that Redis itself, which goes by the real time, ends nothing
        start_ms, reactor.rightNow = self.time.now_ms, self.time.now_ms / 1000
        homeserver = super().make_homeserver(reactor, synapse_clock)
        monotonic = patch.object(clock, "monotonic_ns", lambda: (self.time.now_ms - start_ms + UPTIME_MS) * 1_000_000)
        monotonic.start()
        self.addCleanup(monotonic.stop)
        self.errors = ErrorLog()
        logging.getLogger().addHandler(self.errors)
        self.addCleanup(logging.getLogger().removeHandler, self.errors)
        return homeserver

    def advance(self, ms: int) -> None:
        self.time.now_ms += ms
        self.reactor.advance(ms / 1000 + DRIFT_S)

    def resources(self) -> list[Any]:
        return [self.hs._module_web_resources[path] for path in PATHS]

    def furnish(self, stores: MemoryStores | RedisStores) -> Any:
        """Begin anew: with an empty store, which is returned, and with nothing done yet by anybody."""
        store = stores.make(
            ttl_ms=TTL_MS,
            max_sessions=MAX_SESSIONS,
            max_total_bytes=MAX_TOTAL_BYTES,
            max_updates=MAX_UPDATES,
            max_outcomes=2 * MAX_UPDATES,
            max_client_sessions=CLIENT_SESSIONS,
            crowded_sessions=CROWDED,
            crowded_client_sessions=CROWDED_CLIENT_SESSIONS,
        )
        for resource in self.resources():
            resource._store = store
            resource._dialect._now_ms = store.now_ms  # which MSC4388 tells
        self.advance(
            60_000 - self.time.now_ms % 60_000
        )  # whatever Synapse does now and then, it does at the same steps
        limits = self.resources()[0]._limits
        for name in ("client_create", "client_read", "client_miss", "session_read", "session_write"):
            getattr(limits, name)._ratelimiter.actions.clear()
        return store

    def require_waiting(self, count: int, clients: Counter[str]) -> None:
        """Check that so many requests wait, and so many of each client and network, by all accounts."""
        waiters = self.resources()[0]._waiters
        by_session = sum(map(len, waiters._waiters.values()))
        names = {name.replace(":", ""): number for name, number in clients.items()}
        assert (count, count, names) == (len(waiters), by_session, dict(waiters._clients))

    def play(self, stores: MemoryStores | RedisStores) -> None:
        self.collect_garbage()
        met: Counter[str] = Counter()
        run_state_machine_as_test(
            lambda: Machine(self, stores, met),  # type: ignore[arg-type]
            settings=settings(
                max_examples=max(1, MODEL_STEPS * 6 // 10 // STEPS_IN_A_ROW),  # some end early
                stateful_step_count=STEPS_IN_A_ROW,
                derandomize=True,
                phases=PHASES,
                database=None,
                deadline=None,
                suppress_health_check=list(HealthCheck),
            ),
        )
        print(f"{met.pop('steps')} steps, in which was foretold: {sorted(met.items())}")
        assert MODEL_STEPS < 20_000 or set() == set(MET.split()) - set(met)

    def test_memory(self) -> None:
        """With sessions in memory."""
        self.play(MemoryStores(self.time))

    @pytest.mark.filterwarnings("ignore:reactor.iterate:DeprecationWarning")  # the real one; the homeserver has a fake
    @unittest.skipIf(
        shutil.which("redis-server") is None, "redis-server is not installed (Debian: apt install redis-server)"
    )
    def test_redis(self) -> None:
        """With sessions in Redis, which is told the time."""
        directory = tempfile.TemporaryDirectory()
        self.addCleanup(directory.cleanup)
        server = RedisServer(pathlib.Path(directory.name))
        self.addCleanup(server.stop)
        server.start()
        connection = txredisapi.lazyConnection(HOST, server.port)

        async def disconnect() -> None:
            await connection.disconnect()

        self.addCleanup(lambda: result(disconnect()))
        self.play(RedisStores(connection, self.time))
