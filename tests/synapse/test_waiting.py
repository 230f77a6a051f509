"""A GET that waits: held while there is nothing new, woken by what is, bounded, and gone without a trace."""

from typing import Any, ClassVar

from parameterized import parameterized
from synapse.logging.context import SENTINEL_CONTEXT, current_context
from tests.server import FakeChannel
from twisted.internet.error import ConnectionDone
from twisted.python.failure import Failure

from support.rendezvous_case import RendezvousTestCase
from synapse_rendezvous.config import RendezvousConfig
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
        """The end of a session ends the wait for it, two seconds after it has expired, to the millisecond."""
        below, tag = self.create()
        self.reactor.advance(297)
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
        """Four wait for one session. One more takes the place of the oldest, which may be one that nobody reads."""
        below, tag = self.create()
        held = [self.hold(below, tag) for _ in range(4)]
        self.assertFalse(any(channel.is_finished() for channel in held))
        for oldest in held[:2]:
            held.append(self.hold(below, tag))
            self.answer(oldest, 304)
            self.assertEqual(4, len(self.waiters()))

        self.leave(held[2])
        held.append(self.hold(below, tag))
        self.assertFalse(any(channel.is_finished() for channel in held[3:]))
        self.call("PUT", below, b"new")
        for channel in held[3:]:
            self.answer(channel, 200, b"new")

    def test_nothing_is_kept_of_a_request(self) -> None:
        """While it waits, a request holds neither its header fields nor its content."""
        below, tag = self.create()
        fields = [(f"X-{number}", b"x" * 100) for number in range(400)]
        held = self.make_request(
            b"GET",
            f"{self.path}{below}?timeout=9000".encode(),
            b"x" * 99_000,
            shorthand=False,
            await_result=False,
            custom_headers=[("If-None-Match", tag), ("User-Agent", b"agent" * 100), *fields],
        )
        request = held.request
        self.assertFalse(held.is_finished())
        self.assertEqual([(b"User-Agent", [(b"agent" * 100)[:256]])], list(request.requestHeaders.getAllRawHeaders()))
        self.assertEqual((b"", {}), (request.content.read(), request.args))
        self.call("PUT", below, b"new")
        self.answer(held, 200, b"new")

    def test_tag_in_the_query(self) -> None:
        """The tag may stand in the query, for which browsers need no preflight; a field goes first."""
        below, tag = self.create(b"hello")
        bare = tag.decode().strip('"')
        for named in (bare, f"W/%22{bare}%22", f"%22{bare}-gzip%22"):
            path = f"{self.path}{below}?if_none_match={named}&timeout="
            self.answer(self.make_request(b"GET", f"{path}0".encode(), shorthand=False), 304)
        held = self.make_request(b"GET", f"{path}9000".encode(), shorthand=False, await_result=False)
        self.assertFalse(held.is_finished())
        other = [("If-None-Match", '"other"')]
        self.answer(
            self.make_request(b"GET", f"{path}0".encode(), shorthand=False, custom_headers=other), 200, b"hello"
        )
        write = self.make_request(b"PUT", f"{self.path}{below}?if_none_match={bare}".encode(), b"new", shorthand=False)
        self.assertEqual(202, write.code)
        self.answer(held, 200, b"new")

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


class DefaultsTestCase(HoldingTestCase):
    """What today's clients meet where the operator says nothing of it."""

    options: ClassVar[dict[str, Any]] = {"long_poll": {"default_wait": "8s"}}

    def test_defaults(self) -> None:
        """This is what the operator would have to write to get the defaults."""
        self.assertEqual(RendezvousConfig.parse({}), RendezvousConfig.parse(self.options))

    def test_polls_are_held(self) -> None:
        """A poll that names the current revision is held for up to eight seconds, in each dialect."""
        below, tag = self.create()
        polls = [self.hold(below, tag, None)]
        text = self.make_request("POST", f"{self.path}/msc4108", b"x", shorthand=False, content_type=b"text/plain")
        self.path += "/msc4108"
        polls.append(self.hold(f"/{text.json_body['url'].rpartition('/')[2]}", self.tag(text), None))
        self.path = type(self).path
        created = self.make_request("POST", MSC4388, b'{"data": "hello"}', shorthand=False).json_body
        url = f"{MSC4388}/{created['id']}?sequence_token={created['sequence_token']}"
        polls.append(self.make_request("GET", url, shorthand=False, await_result=False))
        self.reactor.advance(6.9)
        self.assertFalse(any(poll.is_finished() for poll in polls))
        self.reactor.advance(1.2)
        self.assertEqual([304, 304, 200], [poll.code for poll in polls])

    def test_who_does_not_poll_is_answered(self) -> None:
        """What names no revision, asks for a date or for the header alone is not held."""
        below, tag = self.create(b"hello")
        (modified,) = self.call("HEAD", below, b"", ("If-None-Match", tag)).headers.getRawHeaders(b"Last-Modified")
        self.assertEqual(304, self.call("GET", below, b"", ("If-Modified-Since", modified)).code)
        self.assertEqual(200, self.call("GET", below).code)


class SwitchedOffTestCase(HoldingTestCase):
    """An operator who wants nobody to wait."""

    options: ClassVar[dict[str, Any]] = {"long_poll": {"max_wait": 0}}

    def test_nobody_waits(self) -> None:
        """All are answered at once, and it is said."""
        below, tag = self.create()
        self.answer(self.hold(below, tag), 304)
        self.assertEqual(0, self.call("GET", "").json_body["max_wait_ms"])
