"""Whatever breaks within, and however the clock is set: the accounts stay right and the next request is served."""

import contextlib
import itertools
import math
from collections import Counter
from collections.abc import Callable, Iterator
from inspect import iscoroutinefunction
from typing import Any, ClassVar
from unittest.mock import patch

from parameterized import parameterized
from synapse.api.errors import SynapseError
from synapse.http.site import SynapseRequest
from tests.server import FakeChannel, TimedOutException
from twisted.internet.error import ConnectionDone
from twisted.internet.task import Clock
from twisted.python.failure import Failure
from twisted.web.http import datetimeToString

from support.rendezvous_case import COMMON, RendezvousTestCase, age_by
from support.stores import numbers
from synapse_rendezvous import resource
from synapse_rendezvous.clients import quota_keys
from synapse_rendezvous.errors import SessionNotFound
from synapse_rendezvous.long_poll import Waiter
from synapse_rendezvous.memory_store import MemorySessionStore
from synapse_rendezvous.resource import RendezvousResource

MSC4388 = "/_synapse/client/io.element.msc4388/rendezvous"
CLIENT: dict[str, Any] = {"client_ip": "2001:db8:1:203::9"}

OPERATIONS = ("describe", "create", "read", "poll", "wait", "replace", "delete", "miss")

# Each part that requests pass.
PARTS = [
    ("clients", "client_key"),
    *[("admission", name) for name in ("check_create", "may_create")],
    *[("limits", "take"), ("limits", "check")],
    *[("dialect", name) for name in ("parse_post", "parse_put", "parse_conditions", "is_for_display")],
    *[("dialect", f"{name}_response") for name in ("description", "created", "payload", "not_modified", "updated")],
    ("dialect", "deleted_response"),
    *[("store", name) for name in ("create", "get", "swap", "delete", "now_ms")],
    *[("waiters", name) for name in ("parse_timeout", "_has_room", "wake")],
    ("waiter", "wait"),
    *[("observer", name) for name in ("session_created", "session_replaced", "session_ended", "wait_ended")],
]


class Broken(Exception):
    """What a part raises that is broken."""


class AccountsTestCase(RendezvousTestCase):
    """Looks into the parts of a homeserver."""

    def prepare(self, reactor: Any, clock: Any, homeserver: Any) -> None:
        mounted = homeserver._module_web_resources[self.path]
        assert isinstance(mounted, RendezvousResource)
        assert isinstance(mounted._store, MemorySessionStore)
        self.store = mounted._store
        self.waiters = mounted._waiters
        self.parts: dict[str, Any] = {
            "clients": mounted._clients,
            "admission": mounted._admission,
            "dialect": mounted._dialect,
            "store": mounted._store,
            "waiters": mounted._waiters,
            "waiter": Waiter,
            "observer": mounted._observer,
            "limits": mounted._limits,
        }

    def check_accounts(self) -> None:
        """Fail unless what is counted is what is there, and nobody waits."""
        sessions = self.store._sessions.values()
        self.assertEqual(sum(len(session.payload) for session in sessions), self.store.total_bytes)
        owners = Counter(name for session in sessions for name, _ in quota_keys(session.client))
        self.assertEqual(owners, numbers(self.store._client_sessions))
        self.assertEqual((0, {}, {}), (len(self.waiters), self.waiters._waiters, dict(self.waiters._clients)))

    def hold(self, below: str, tag: bytes) -> FakeChannel:
        """Send a GET that waits, and return without waiting for the answer."""
        return self.make_request(
            b"GET",
            f"{self.path}{below}?timeout=10000".encode(),
            shorthand=False,
            await_result=False,
            custom_headers=[("If-None-Match", tag)],
            **CLIENT,
        )


class FaultsTestCase(AccountsTestCase):
    """Each part breaks in turn."""

    def setUp(self) -> None:
        super().setUp()
        self.below, self.etag = self.create(b"hello", **CLIENT)

    def operate(self, operation: str) -> FakeChannel:
        """Send a request of a kind and return its answer."""
        if operation == "wait":
            held = self.hold(self.below, self.etag)
            self.reactor.pump([0.1] * 110)
            return held
        fields = {"read": [("Sec-Fetch-Dest", b"empty")], "poll": [("If-None-Match", self.etag)]}.get(operation, [])
        method, below, content = {
            "describe": ("GET", "", b""),
            "create": ("POST", "", b"new"),
            "read": ("GET", self.below, b""),
            "poll": ("GET", self.below, b""),
            "replace": ("PUT", self.below, b"longer"),
            "delete": ("DELETE", self.below, b""),
            "miss": ("GET", f"/{'x' * 22}", b""),
        }[operation]
        return self.call(method, below, content, *fields, **CLIENT)

    @contextlib.contextmanager
    def broken(self, part: str, name: str, *, after: bool) -> Iterator[list[str]]:
        """Let a part raise, before or after it does what it is for; yield the names of calls."""
        original, calls = getattr(self.parts[part], name), []

        async def broken_coroutine(*arguments: Any, **more: Any) -> None:
            calls.append(name)
            if after:
                with contextlib.suppress(SessionNotFound):
                    await original(*arguments, **more)
            raise Broken

        def broken(*arguments: Any, **more: Any) -> None:
            calls.append(name)
            if after:
                original(*arguments, **more)
            raise Broken

        with patch.object(self.parts[part], name, broken_coroutine if iscoroutinefunction(original) else broken):
            yield calls

    @contextlib.contextmanager
    def store_at_pace(self, is_slow: bool) -> Iterator[None]:
        """Let each operation of the store take a while, if wanted, as with Redis: requests then wait in between."""

        def at_pace(original: Callable[..., Any]) -> Callable[..., Any]:
            async def operate(*arguments: Any) -> Any:
                if is_slow:
                    await self.hs._module_web_resources[self.path]._sleep(0.2)
                return await original(*arguments)

            return operate

        with contextlib.ExitStack() as patches:
            for name in ("create", "get", "swap", "delete"):
                patches.enter_context(patch.object(self.store, name, at_pace(getattr(self.store, name))))
            yield

    def check_service(self) -> None:
        """Fail unless all is as if nothing had been."""
        self.check_accounts()
        below, tag = self.create(b"1", **CLIENT)
        held = self.hold(below, tag)
        self.assertEqual(202, self.call("PUT", below, b"2", ("If-Match", tag), **CLIENT).code)
        self.assertEqual((200, b"2"), (held.code, held.result["body"]))
        self.assertEqual(204, self.call("DELETE", below, **CLIENT).code)
        self.check_accounts()

    @parameterized.expand(PARTS)
    def test_part(self, part: str, name: str) -> None:
        """Where a request meets it, the answer is 500 and the log says so once; nothing else is different."""
        met = set()
        for operation, after, is_slow in itertools.product(OPERATIONS, (False, True), (False, True)):
            timers = len(self.reactor.getDelayedCalls())
            with self.store_at_pace(is_slow), self.broken(part, name, after=after) as calls:
                with patch.object(resource.logger, "error") as told:
                    channel = self.operate(operation)
                if calls:
                    met.add(operation)
                    self.check_failure(channel)
                else:
                    self.assertLess(channel.code, 500)
                self.assertEqual(bool(calls), told.call_count)
            self.assertEqual(timers, len(self.reactor.getDelayedCalls()))
            self.check_service()
            self.reactor.advance(60)  # so that no limit is met
            self.call("DELETE", self.below, **CLIENT)  # or it would end by itself, in the middle of a later turn
            self.below, self.etag = self.create(b"hello", **CLIENT)
        self.assertTrue(met)

    def check_failure(self, channel: FakeChannel) -> None:
        """Fail unless an answer says that something is broken here, to scripts as well."""
        self.assertEqual((500, "M_UNKNOWN"), (channel.code, self.errcode(channel)))
        for field, values in COMMON.items():
            self.assertEqual(values, channel.headers.getRawHeaders(field))

    def test_wording_of_errors(self) -> None:
        """An error that its dialect cannot word is answered as any other defect."""
        word = self.parts["dialect"].error_response
        with (
            patch.object(
                self.parts["dialect"], "error_response", side_effect=[Broken, word(SynapseError(500, "broken"))]
            ),
            self.assertLogs("synapse_rendezvous", level="ERROR") as logs,
        ):
            self.check_failure(self.operate("miss"))
        self.assertEqual(1, len(logs.records))
        self.check_service()

    def test_writing(self) -> None:
        """Where an answer cannot be written, because the connection breaks just then, only that answer is lost."""
        for operation, is_slow in itertools.product(OPERATIONS, (False, True)):
            with (
                self.store_at_pace(is_slow),
                patch.object(SynapseRequest, "write", side_effect=Broken) as write,
                # Synapse's own way to answer would fail as well, in a thread of its own, and tell of it.
                patch("synapse.http.server.return_json_error"),
                contextlib.suppress(Broken, TimedOutException),
            ):
                self.operate(operation)
            self.flushLoggedErrors(Broken)
            self.assertTrue(write.called)
            self.check_service()
            self.reactor.advance(60)
            self.below, self.etag = self.create(b"hello", **CLIENT)

    def test_leaving(self) -> None:
        """What a client asked for that has left meanwhile is done, or not, and the accounts know it."""
        for method, sessions in (("POST", 2), ("GET", 2), ("PUT", 2), ("DELETE", 1)):
            path = self.path + (self.below if method != "POST" else "")
            with self.store_at_pace(is_slow=True), self.assertNoLogs("synapse", level="WARNING"):
                channel = self.make_request(
                    method.encode(), path.encode(), b"longer", shorthand=False, await_result=False, **CLIENT
                )
                channel.request.connectionLost(Failure(ConnectionDone()))
                self.reactor.advance(1)
            self.assertEqual(sessions, len(self.store))
            self.check_accounts()
        self.check_service()

    def test_a_wake_up_that_is_lost(self) -> None:
        """Whoever waits sees what was written as soon as the wait ends, and no place is lost."""
        held = self.hold(self.below, self.etag)
        with self.broken("waiters", "wake", after=False), self.assertLogs("synapse_rendezvous", level="ERROR"):
            self.check_failure(self.operate("replace"))
        self.assertFalse(held.is_finished())
        self.reactor.pump([0.1] * 101)
        self.assertEqual((200, b"longer"), (held.code, held.result["body"]))
        self.check_service()


class ClockTestCase(AccountsTestCase):
    """The system's clock is set; Synapse goes by it, timers and all, and the steady clock does not notice."""

    options: ClassVar[dict[str, Any]] = {"per_client": {"max_sessions": 1000}}

    def make_homeserver(self, reactor: Any, clock: Any) -> Any:
        self.steady = Clock()
        age_by(self, self.steady)
        return super(RendezvousTestCase, self).make_homeserver(reactor, clock)

    def pass_time(self, seconds: float) -> None:
        self.steady.advance(seconds)
        self.reactor.advance(seconds)

    def set_clock(self, hours: float) -> None:
        """Set the clock; timers that have become due run, those that have not wait for longer."""
        self.reactor.rightNow += 3600 * hours
        self.reactor.advance(0)

    def expires_in_ms(self, url: str) -> int:
        return int(self.make_request("GET", url, shorthand=False).json_body["expires_in_ms"])

    @parameterized.expand([(3,), (-3,), (-30_000,), (0.01,)])
    def test_sessions(self, hours: float) -> None:
        """Each session lives as long as was said, and is gone then."""
        created = self.make_request("POST", MSC4388, b'{"data": "hello"}', shorthand=False).json_body
        self.assertEqual(300_000, created["expires_in_ms"])
        url = f"{MSC4388}/{created['id']}"
        below, _ = self.create()
        for turn in range(2):
            self.set_clock(hours)
            self.assertEqual(300_000 - 100_000 * turn, self.expires_in_ms(url))
            self.pass_time(100)
        self.assertEqual(200, self.call("GET", below).code)
        self.pass_time(99.9)
        self.assertEqual((200, 100), (self.call("GET", below).code, self.expires_in_ms(url)))
        self.pass_time(2)
        self.assertEqual((200, 0), (self.call("GET", below).code, self.expires_in_ms(url)))
        self.pass_time(0.1)
        self.assertEqual(404, self.call("GET", below).code)
        self.assertEqual(404, self.make_request("GET", url, shorthand=False).code)
        self.pass_time(10)
        self.assertEqual(0, len(self.store))
        self.check_accounts()
        # With no session left, the time of day is taken as it is now.
        channel = self.call("GET", self.create()[0])
        (expires,) = channel.headers.getRawHeaders("Expires")
        self.assertEqual(datetimeToString(math.ceil(self.reactor.seconds() + 300)), expires.encode())

    @parameterized.expand([(3,), (-3,)])
    def test_limits(self, hours: float) -> None:
        """Nobody may do more, and nobody less, because the clock was set."""

        def admitted() -> int:
            statuses = [self.call("POST", "", **CLIENT).code for _ in range(45)]
            return statuses.count(200)

        before = admitted()
        self.set_clock(hours)
        self.assertEqual((40, 0), (before, admitted()))
        self.pass_time(20)
        self.assertEqual(10, admitted())
        self.pass_time(80)
        self.assertIn(admitted(), range(36, 41))  # they are counted in batches of four

    @parameterized.expand([(3,), (-3,)])
    def test_waiting(self, hours: float) -> None:
        """A message is delivered to whoever waits, as ever."""
        below, tag = self.create(**CLIENT)
        held = self.hold(below, tag)
        self.pass_time(2)
        self.set_clock(hours)
        self.assertFalse(held.is_finished())
        self.call("PUT", below, b"new", **CLIENT)
        self.assertEqual((200, b"new"), (held.code, held.result["body"]))
        self.check_accounts()
