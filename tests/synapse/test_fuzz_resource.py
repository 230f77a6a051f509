"""Random requests rendered by the resources themselves: also what no HTTP parser would let through."""

import gc
import ipaddress
import json
import logging
import os
import pathlib
import random
import time
from collections import Counter
from io import BytesIO
from typing import Any, ClassVar

from synapse.http.site import SynapseRequest
from synapse.logging.context import SENTINEL_CONTEXT, current_context
from tests.server import FakeChannel
from twisted.internet.error import ConnectionDone
from twisted.python.failure import Failure
from twisted.web.http import parse_qs

from support.random_requests import FIELDS, METHODS, PATHS, VALUES
from support.rendezvous_case import COMMON, RendezvousTestCase
from synapse_rendezvous.memory_store import MemorySessionStore
from synapse_rendezvous.rate_limit import Limit

FUZZ_RESOURCE_REQUESTS = int(os.environ.get("FUZZ_RESOURCE_REQUESTS", "2000"))
WARM_UP = 45_000
"""How many requests are sent until tables and caches are as full as they get."""

STEP_S = 0.0078125
"""How much time passes between two requests."""

STATUSES = {200, 201, 202, 204, 304, 400, 403, 404, 405, 409, 412, 413, 429}
"""Those that are documented, and all occur."""

MAX_SESSIONS, MAX_TOTAL_BYTES, MAX_WAITING = 200, 100_000, 20
FIELDS = [*FIELDS, b"Sec-Fetch-Site", b"Sec-Fetch-User", b"Origin", b"Authorization", b"Content-Length", b"If-Match"]


class Fuzz:
    """Makes random requests; it knows some sessions, so that some of them make sense."""

    def __init__(self, seed: int) -> None:
        self._random = random.Random(seed)
        self._known: list[tuple[bytes, bytes, bytes]] = [(PATHS[0], b"x" * 22, b'"x"')]

    def learn(self, path: bytes, channel: Any) -> None:
        """Remember a session from the answer to its creation."""
        created = channel.json_body
        id_ = created["id"] if "id" in created else created["url"].rpartition("/")[2]
        tag = (channel.headers.getRawHeaders(b"ETag") or [created.get("sequence_token", "").encode()])[0]
        self._known = [*self._known[-19:], (path, id_.encode(), tag)]

    def address(self) -> str:
        """Return a client's address: one of a few, any, or none."""
        if self._random.random() < 0.5:
            return self._random.choice(["203.0.113.1", "203.0.113.2", "2001:db8::1", "2001:db8:0:1::1", "", "\xff"])
        if self._random.random() < 0.5:
            return str(ipaddress.IPv4Address(self._random.getrandbits(32)))
        return str(ipaddress.IPv6Address(self._random.getrandbits(128)))

    def request(self) -> tuple[bytes, bytes, bytes, bytes, list[tuple[bytes, bytes]], bytes]:
        """Return the dialect's path, the method, the path, the query, header fields and a body."""
        pick, chance = self._random.choice, self._random.random
        method = pick([*METHODS, pick(METHODS).lower(), b"TRACE", b"\x00"])
        path, session, tag = pick(self._known)
        if chance() < 0.3:
            path = pick(PATHS)
        if chance() < 0.2:
            session = b"x" * 22
        below = b"" if method == b"POST" and chance() < 0.9 else b"/" + session
        if method == b"PUT" and chance() < 0.3:
            below += b"/" + pick([b"one", b"two", self._noise(300)])
        if chance() < 0.2:
            below = self._damaged(pick([below, b"/", b"//", b"/..", below + b"/", below.upper(), self._noise(40)]))
        token = tag.strip(b'"')
        query = b""
        if chance() < 0.5:
            values = [b"0", b"1", b"500", b"999999999", b"-1", b"\xd9\xa3", b"", token, token, tag, self._noise(40)]
            names = [b"timeout", b"timeout", b"sequence_token", b"sequence_token", b"x", self._noise(5)]
            query = b"&".join(pick(names) + pick([b"=", b"=", b""]) + pick(values) for _ in range(pick([1, 1, 2, 30])))
        tags = [tag, tag, b"W/" + tag, tag[:-1] + b'-gzip"', b'"a", ' + tag, b",".join([tag] * 50), self._damaged(tag)]
        fields = [(b"Content-Type", b"text/plain")] if chance() < 0.6 else []
        for _ in range(pick([0, 1, 1, 2, 3, 8])):
            name = pick([*FIELDS, b"If-Match", b"If-None-Match"])
            fields.append((pick([name, name.lower(), name.upper()]), pick([*tags, *VALUES, self._noise(300)])))
        return path, method, path + below, query, fields, self._body(token)

    def _body(self, token: bytes) -> bytes:
        pick = self._random.choice
        fine = b'{"data": "%d", "sequence_token": "%b"}' % (self._random.randrange(3), token)
        odd = [
            b'"\\ud800"',
            b"NaN",
            b"1e999",
            b"[" * 9999,
            b'{"data":' * 3000,
            b"{}",
            b"9" * 5000,
            b'{"data": "\\u0000"}',
        ]
        sizes = [0, 1, 100, 4096, 4097, 10240, 10241, 50_000]
        return pick([fine, fine, fine, self._damaged(fine), pick(odd), self._noise(2000), b"x" * pick(sizes), b""])

    def _noise(self, most: int) -> bytes:
        return self._random.randbytes(self._random.randrange(most))

    def _damaged(self, value: bytes) -> bytes:
        """Return a value with one byte more, less or changed."""
        at = self._random.randrange(len(value) + 1)
        return value[:at] + self._noise(2) + value[at + self._random.randrange(2) :]


class FuzzTestCase(RendezvousTestCase):
    """Limits are low and buckets leak slowly, so that all tables fill."""

    options: ClassVar[dict[str, Any]] = {
        "max_sessions": MAX_SESSIONS,
        "max_total_bytes": MAX_TOTAL_BYTES,
        "ttl": "20s",
        "long_poll": {"max_waiting": MAX_WAITING},
        "per_client": {
            "create": {"per_second": 0.01, "burst_count": 1},
            "read": {"per_second": 0.01, "burst_count": 1},
            "miss": {"per_second": 0.002, "burst_count": 1},
        },
    }

    def test_random_requests(self) -> None:
        """Each answer is well formed and none is a 500; nothing is logged as an error, and all tables are bounded."""
        self.collect_garbage()
        self.statuses: Counter[int] = Counter()
        self.held: list[tuple[bytes, bytes, Any]] = []
        self.most_keys = 0
        errors: list[str] = []
        log = logging.Handler(logging.ERROR)
        log.emit = lambda record: errors.append(record.getMessage())  # type: ignore[method-assign]
        logging.getLogger().addHandler(log)
        self.addCleanup(logging.getLogger().removeHandler, log)
        self.fuzz(Fuzz(1), WARM_UP)
        before, start_s = self.resident_bytes(), time.monotonic()

        self.fuzz(Fuzz(2), FUZZ_RESOURCE_REQUESTS)
        took_s, growth = time.monotonic() - start_s, self.resident_bytes() - before

        print(
            f"{FUZZ_RESOURCE_REQUESTS} requests in {took_s:.0f} s: {sorted(self.statuses.items())};"
            f" memory grew by {growth / 1e6:.1f} MB; a limit remembered up to {self.most_keys} keys"
        )
        assert [] == errors
        assert STATUSES == set(self.statuses)
        assert Limit.MAX_KEYS <= self.most_keys
        assert growth < 5_000_000
        for _, _, channel in self.held:
            self.leave(channel)
        assert 0 == len(self.hs._module_web_resources[self.path]._waiters)

    def fuzz(self, fuzz: Fuzz, count: int) -> None:
        resources = self.hs._module_web_resources
        for index in range(count):
            mount, method, path, query, fields, body = fuzz.request()
            channel = self.render(resources[mount.decode()], fuzz.address(), method, path, query, fields, body)
            assert current_context() is SENTINEL_CONTEXT
            self.held.append((method, path, channel))
            if index % 64 == 0:
                self.reactor.advance(64 * STEP_S)
                if self.held and index % 256 == 0:
                    self.leave(self.held.pop(0)[2])
                self.require_bounds()
            waiting = []
            for each in self.held:
                if not each[2].is_finished():
                    waiting.append(each)
                    continue
                self.check(*each)
                if each[0] == b"POST" and each[2].code in (200, 201):
                    fuzz.learn(each[1].rstrip(b"/"), each[2])
            self.held = waiting

    def render(
        self,
        resource: Any,
        client: str,
        method: bytes,
        path: bytes,
        query: bytes,
        fields: list[tuple[bytes, bytes]],
        body: bytes,
    ) -> Any:
        """Let a resource answer a request that was read already, by whatever parser."""
        channel = FakeChannel(self.site, self.reactor, ip=client)
        channel.request = request = SynapseRequest(channel, self.site, our_server_name="test")
        request.method, request.path, request.uri, request.clientproto = method, path, path + b"?" + query, b"HTTP/1.1"
        request.args = parse_qs(query, True)
        request.content = BytesIO(body)
        for name, value in fields:
            request.requestHeaders.addRawHeader(name, value)
        request.render(resource)
        return channel

    def leave(self, channel: Any) -> None:
        if not channel.is_finished():
            channel.request.connectionLost(Failure(ConnectionDone()))

    def check(self, method: bytes, path: bytes, channel: Any) -> None:
        """Check what holds for every answer."""
        self.statuses[channel.code] += 1
        context = (method, path, channel.code)
        assert channel.code in STATUSES, context
        fields = channel.headers
        for name, values in COMMON.items():
            assert values == fields.getRawHeaders(name), (name, context)
        assert all(len(values) == 1 for _, values in fields.getAllRawHeaders()), context
        body, length = channel.result.get("body", b""), fields.getRawHeaders("Content-Length")
        if channel.code in (204, 304):
            assert (None, b"", False) == (length, body, fields.hasHeader("Content-Type")), context
        elif method == b"HEAD":
            assert b"" == body, context
        else:
            assert [str(len(body))] == length, context
            assert fields.hasHeader("Content-Type"), context
        if channel.code >= 400 and method != b"HEAD":
            error = json.loads(body)
            assert (str, str) == (type(error["errcode"]), type(error["error"])), context
            assert (channel.code == 429) == fields.hasHeader("Retry-After"), context

    def limits(self) -> list[Limit]:
        limits = self.hs._module_web_resources[self.path]._limits
        names = ("client_create", "client_read", "client_miss", "session_read", "session_write")
        return [getattr(limits, name) for name in names]

    def require_bounds(self) -> None:
        resource = self.hs._module_web_resources[self.path]
        store = resource._store
        assert isinstance(store, MemorySessionStore)
        assert len(store) <= MAX_SESSIONS
        assert store.total_bytes <= MAX_TOTAL_BYTES
        assert len(resource._waiters) <= MAX_WAITING
        self.most_keys = max(self.most_keys, *(len(limit._ratelimiter.actions) for limit in self.limits()))
        assert self.most_keys <= Limit.MAX_KEYS + 1  # and the one that the others share
        for limit in self.limits():
            assert len(limit.prepaid) <= limit.max_prepaid

    def resident_bytes(self) -> int:
        gc.collect()
        return int(pathlib.Path("/proc/self/statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE")
