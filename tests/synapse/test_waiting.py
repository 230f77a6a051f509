"""A GET that waits: held while there is nothing new, woken by what is, bounded, and gone without a trace."""

from typing import Any, ClassVar

from parameterized import parameterized
from synapse.logging.context import SENTINEL_CONTEXT, current_context
from tests.server import FakeChannel
from twisted.internet.error import ConnectionDone
from twisted.python.failure import Failure

from support.rendezvous_case import RendezvousTestCase
from synapse_rendezvous.long_poll import Waiters
from synapse_rendezvous.resource import RendezvousResource

MSC4388 = "/_synapse/client/io.element.msc4388/rendezvous"


class HoldingTestCase(RendezvousTestCase):
    """Under a fake clock; after each test nobody waits any more."""

    def waiters(self) -> Waiters:
        resource = self.hs._module_web_resources[self.path]
        assert isinstance(resource, RendezvousResource)
        return resource._waiters

    def hold(self, below: str, tag: bytes, timeout_ms: int | str | None = 10_000, **more: Any) -> FakeChannel:
        """Send a GET of somebody who knows this revision, and return without waiting for the answer."""
        query = "" if timeout_ms is None else f"?timeout={timeout_ms}"
        return self.make_request(
            b"GET",
            (self.path + below + query).encode(),
            shorthand=False,
            await_result=False,
            custom_headers=[("If-None-Match", tag)],
            **more,
        )

    def answer(self, channel: FakeChannel, code: int, body: bytes | None = None) -> None:
        """Check an answer, and that nothing is left of whoever waited."""
        self.assertTrue(channel.is_finished())
        self.assertEqual((code, body), (channel.code, channel.result.get("body")))
        self.assertIs(SENTINEL_CONTEXT, current_context())

    def tearDown(self) -> None:
        waiters = self.waiters()
        self.assertEqual((0, {}, {}), (len(waiters), waiters._waiters, dict(waiters._clients)))
        super().tearDown()

    def leave(self, channel: FakeChannel) -> None:
        """Close a client's connection before it has its answer."""
        channel.request.connectionLost(Failure(ConnectionDone()))


class WaitingTestCase(HoldingTestCase):
    """With the default options."""

    def test_a_write_is_delivered(self) -> None:
        """The payload is there as soon as it is written, with its own headers."""
        below, tag = self.create(b"hello")
        held = self.hold(below, tag)
        self.reactor.advance(9)
        self.assertFalse(held.is_finished())

        written = self.call("PUT", below, b"it is me", ("If-Match", tag), content_type=b"text/x")

        self.answer(held, 200, b"it is me")
        self.assertEqual(self.tag(written), self.tag(held))
        self.assertEqual(["text/x"], held.headers.getRawHeaders("Content-Type"))

    def test_the_end_is_delivered(self) -> None:
        """Whoever waits for a session that is deleted learns it at once."""
        below, tag = self.create()
        held = self.hold(below, tag)
        self.call("DELETE", below)

        self.assertTrue(held.is_finished())
        self.assertEqual((404, "M_NOT_FOUND"), (held.code, self.errcode(held)))

    def test_time_out(self) -> None:
        """After the time that was asked for, nothing is new."""
        below, tag = self.create()
        held = self.hold(below, tag, 3000)
        self.reactor.advance(2.8)
        self.assertFalse(held.is_finished())
        self.reactor.advance(0.2)

        self.answer(held, 304)
        self.assertEqual(tag, self.tag(held))

    def test_cap(self) -> None:
        """Nobody waits longer than max_wait, nor much shorter."""
        below, tag = self.create()
        held = self.hold(below, tag, 999_999_999)
        self.reactor.advance(8.9)
        self.assertFalse(held.is_finished())
        self.reactor.advance(1.1)

        self.answer(held, 304)

    def test_expiry(self) -> None:
        """The end of a session's time ends the wait for it, to the millisecond."""
        below, tag = self.create()
        self.reactor.advance(295)
        held = self.hold(below, tag)
        self.reactor.advance(4.8)
        self.assertFalse(held.is_finished())
        self.reactor.advance(0.2)

        self.assertTrue(held.is_finished())
        self.assertEqual(404, held.code)

    def test_what_is_new_already(self) -> None:
        """Only whoever knows the current revision waits."""
        below, tag = self.create(b"1")
        self.answer(self.hold(below, b'"0123456789abcdef0123"'), 200, b"1")
        self.answer(self.hold(below, tag, 0), 304)
        self.answer(self.hold(below, tag, None), 304)
        self.assertEqual(200, self.call("GET", f"{below}?timeout=10000").code)

    @parameterized.expand([("",), ("-1",), ("1s",), ("1.5",), ("1000000000",), ("1&timeout=2",), ("%D9%A3",)])
    def test_mistakes(self, value: str) -> None:
        """A time that is none is named, whether or not there would be anything to wait for."""
        below, tag = self.create()
        for headers in ([], [("If-None-Match", tag)]):
            channel = self.call("GET", f"{below}?timeout={value}", b"", *headers)
            self.assertEqual((400, "M_INVALID_PARAM"), (channel.code, self.errcode(channel)))
            self.assertIn("whole number of milliseconds", channel.json_body["error"])

    def test_bound_for_a_session(self) -> None:
        """Four wait for one session; a fifth is answered at once, until there is a place again."""
        below, tag = self.create()
        held = [self.hold(below, tag) for _ in range(4)]
        self.answer(self.hold(below, tag), 304)
        self.assertFalse(any(channel.is_finished() for channel in held))

        self.leave(held[0])
        held[0] = self.hold(below, tag)
        self.assertFalse(held[0].is_finished())
        self.call("PUT", below, b"new")
        for channel in held:
            self.answer(channel, 200, b"new")

    def test_a_client_that_leaves(self) -> None:
        """Its place is free at once, nothing is logged as a fault, and the session lives on."""
        below, tag = self.create()
        held = self.hold(below, tag)
        self.assertEqual(1, len(self.waiters()))
        with self.assertNoLogs("synapse", level="WARNING"):
            self.leave(held)

        self.assertEqual(0, len(self.waiters()))
        self.assertEqual(304, self.call("GET", below, b"", ("If-None-Match", tag)).code)

    def test_shutdown(self) -> None:
        """When the process ends, those who wait are answered, and nobody waits any more."""
        below, tag = self.create()
        held = self.hold(below, tag)
        self.waiters().close()
        self.answer(held, 304)
        self.answer(self.hold(below, tag), 304)

    def test_no_timers_are_left(self) -> None:
        """A wait that ended early leaves no timer behind."""
        below, tag = self.create()
        before = len(self.reactor.getDelayedCalls())
        held = [self.hold(below, tag) for _ in range(4)]
        self.assertGreater(len(self.reactor.getDelayedCalls()), before)
        self.leave(held[0])
        self.call("PUT", below, b"new")

        self.assertEqual(before, len(self.reactor.getDelayedCalls()))

    def test_msc4388(self) -> None:
        """Clients of MSC4388 say in the query which revision they have, and are answered with the data in any case."""
        created = self.make_request("POST", MSC4388, b'{"data": "hello"}', shorthand=False).json_body
        url, token = f"{MSC4388}/{created['id']}", created["sequence_token"]

        def hold(query: str) -> FakeChannel:
            return self.make_request("GET", url + query, shorthand=False, await_result=False)

        for query in ("", "?timeout=5000", "?sequence_token=x&timeout=5000", f"?sequence_token={token}"):
            self.assertEqual("hello", hold(query).json_body["data"])
        waits = [hold(f"?sequence_token={token}&timeout={timeout_ms}") for timeout_ms in (2000, 10_000)]
        self.reactor.advance(2)
        self.assertEqual([True, False], [held.is_finished() for held in waits])
        self.assertEqual((200, "hello", token), (waits[0].code, *self.data(waits[0])))
        write = b'{"data": "it is me", "sequence_token": "%b"}' % token.encode()
        written = self.make_request("PUT", url, write, shorthand=False)
        self.assertEqual((200, "it is me", written.json_body["sequence_token"]), (waits[1].code, *self.data(waits[1])))

    def data(self, channel: FakeChannel) -> tuple[str, str]:
        return channel.json_body["data"], channel.json_body["sequence_token"]


class BoundsTestCase(HoldingTestCase):
    """With room for few."""

    options: ClassVar[dict[str, Any]] = {
        "long_poll": {"max_waiting": 3},
        "per_client": {"max_waiting": 2},
        "exempt": ["198.51.100.0/24"],
    }

    def test_bounds(self) -> None:
        """Two wait of one client, three in all; more are answered at once, until there are places again."""
        sessions = [self.create() for _ in range(5)]
        for _ in range(2):
            held = [self.hold(*session, client_ip="203.0.113.1") for session in sessions[:2]]
            self.answer(self.hold(*sessions[2], client_ip="203.0.113.1"), 304)
            held.append(self.hold(*sessions[3], client_ip="203.0.113.2"))
            self.answer(self.hold(*sessions[4], client_ip="203.0.113.3"), 304)
            self.assertFalse(any(channel.is_finished() for channel in held))

            self.reactor.advance(10)
            for channel in held:
                self.answer(channel, 304)

    def test_exempt(self) -> None:
        """The bound for one client does not hold for those that no such limit holds for; that of all does."""
        held = [self.hold(*self.create(), client_ip="198.51.100.1") for _ in range(4)]
        self.assertEqual([False, False, False, True], [channel.is_finished() for channel in held])
        self.reactor.advance(10)


class DefaultWaitTestCase(HoldingTestCase):
    """An operator who lets polls wait of clients that know nothing of it."""

    options: ClassVar[dict[str, Any]] = {"long_poll": {"default_wait": "4s", "max_wait": "5s"}}

    def test_default_wait(self) -> None:
        """They are held for that long, unless they say something else."""
        below, tag = self.create()
        self.answer(self.hold(below, tag, 0), 304)
        longer, usual = self.hold(below, tag), self.hold(below, tag, None)
        self.reactor.advance(3.8)
        self.assertFalse(usual.is_finished())
        self.reactor.advance(0.3)  # a little more than 4, which no sum of floats need be
        self.answer(usual, 304)
        self.assertFalse(longer.is_finished())
        self.reactor.advance(1)
        self.answer(longer, 304)

    def test_reads_are_answered(self) -> None:
        """A GET that names no revision is never held, in any dialect."""
        below, _ = self.create(b"hello")
        self.assertEqual(200, self.call("GET", below).code)
        created = self.make_request("POST", MSC4388, b'{"data": "hello"}', shorthand=False).json_body
        self.assertEqual(200, self.make_request("GET", f"{MSC4388}/{created['id']}", shorthand=False).code)


class SwitchedOffTestCase(HoldingTestCase):
    """An operator who wants nobody to wait."""

    options: ClassVar[dict[str, Any]] = {"long_poll": {"max_wait": 0}}

    def test_nobody_waits(self) -> None:
        """All are answered at once, and it is said."""
        below, tag = self.create()
        self.answer(self.hold(below, tag), 304)
        self.assertEqual(0, self.call("GET", "").json_body["max_wait_ms"])
