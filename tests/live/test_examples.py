"""The client in examples/rendezvous.py against real homeservers, used as whoever copies it would use it.

What the client in JavaScript does by itself is tried in test_page.py; here each meets the other.
"""

import contextlib
import pathlib
import re
import subprocess
import sys
import textwrap
from collections.abc import Awaitable, Callable, Iterator, Mapping
from typing import TYPE_CHECKING, Any, TypeVar

import pytest
import rendezvous
import yaml
from rendezvous import Conflict, Ended, Refused, Rendezvous, Unreachable, reactor
from twisted.internet.defer import CancelledError, Deferred, ensureDeferred
from twisted.internet.task import deferLater
from twisted.internet.threads import deferToThread
from twisted.protocols.portforward import ProxyClient, ProxyClientFactory, ProxyFactory, ProxyServer
from twisted.trial.unittest import TestCase
from twisted.web.client import HTTPConnectionPool

from support.chromium import start_chromium
from support.exchanges import MSC4108
from support.homeservers import at_once, running
from support.http_client import ask
from support.ports import free_port
from support.programs import needs
from support.proxies import ReverseProxy
from support.recipes import DOCS, recipe
from support.servers import ENDLESS, UNLIMITED, RedisServer
from synapse_rendezvous.demo.page import Page
from synapse_rendezvous.demo.throwaway_homeserver import HOST, ThrowawayHomeserver

if TYPE_CHECKING:
    from selenium.webdriver import Chrome

PATH = "/_synapse/client/rendezvous"
MSC4388 = "/_synapse/client/io.element.msc4388/rendezvous"
T = TypeVar("T")
ALL_PATHS = (PATH, f"{PATH}/msc4108", MSC4388)
RATE = {"per_second": 0.5, "burst_count": 2}


@contextlib.contextmanager
def serving(
    directory: pathlib.Path, config: Mapping[str, Any], settings: Mapping[str, Any] | None = None, port: int = 0
) -> Iterator[ThrowawayHomeserver]:
    """Serve with these options of the module while a `with` statement lasts."""
    homeserver = ThrowawayHomeserver(
        directory,
        port=port or free_port(),
        modules=[{"module": "synapse_rendezvous.RendezvousModule", "config": at_once(config)}],
        settings=settings,
    )
    with running(homeserver):
        yield homeserver


@pytest.fixture(scope="module")
def with_redis(tmp_path_factory: pytest.TempPathFactory) -> Iterator[ThrowawayHomeserver]:
    """A homeserver that keeps sessions in Redis, its limits out of the way."""
    directory = tmp_path_factory.mktemp("redis")
    redis = RedisServer(directory)
    settings = {"redis": {"enabled": True, "host": HOST, "port": redis.port}}
    with redis, serving(directory, {"store": "redis", "per_client": UNLIMITED, **ENDLESS}, settings) as homeserver:
        yield homeserver


@pytest.fixture(scope="module")
def short(tmp_path_factory: pytest.TempPathFactory) -> Iterator[ThrowawayHomeserver]:
    """A homeserver where sessions live for five seconds and nobody waits."""
    with serving(tmp_path_factory.mktemp("short"), {"ttl": "5s", "long_poll": {"max_wait": 0}}) as homeserver:
        yield homeserver


@pytest.fixture(scope="module")
def strict(tmp_path_factory: pytest.TempPathFactory) -> Iterator[ThrowawayHomeserver]:
    """A homeserver that holds one session, which may be read every two seconds."""
    config = {"max_sessions": 1, "max_bytes": 100, "per_session": {"read": RATE}}
    with serving(tmp_path_factory.mktemp("strict"), config) as homeserver:
        yield homeserver


@pytest.fixture(scope="module")
def hasty(tmp_path_factory: pytest.TempPathFactory) -> Iterator[ThrowawayHomeserver]:
    """A homeserver that asks a client to wait wherever it reads or writes twice in a second."""
    rate = {"per_second": 1, "burst_count": 1}
    config = {"per_client": {"read": rate}, "per_session": {"write": rate}}
    with serving(tmp_path_factory.mktemp("hasty"), config) as homeserver:
        yield homeserver


class Proxy(ProxyFactory):
    """Forwards connections to a homeserver.

    Attributes:
        requests: the first line of each request so far.
        losing: how many answers to a PUT are still to be lost, together with their connection.
        dropping: how many times a PUT is still to be lost on its way.
    """

    def __init__(self, homeserver: ThrowawayHomeserver) -> None:
        super().__init__(HOST, int(homeserver.url.rpartition(":")[2]))
        self.requests: list[str] = []
        self.losing = 0
        self.dropping = 0
        self.protocol = _Requests


class _Answers(ProxyClient):
    peer: Any

    def dataReceived(self, data: bytes) -> None:
        if self.peer.is_losing:
            self.peer.transport.abortConnection()
        else:
            super().dataReceived(data)


class _AnswersFactory(ProxyClientFactory):
    protocol = _Answers


class _Requests(ProxyServer):
    clientProtocolFactory = _AnswersFactory
    factory: Any
    is_losing = False

    def dataReceived(self, data: bytes) -> None:
        if line := re.match(rb"[A-Z]+ [^\r]*", data):
            self.factory.requests.append(line[0].decode())
        if data.startswith(b"PUT ") and self.factory.dropping:
            self.factory.dropping -= 1
            self.transport.abortConnection()
            return
        if data.startswith(b"PUT ") and self.factory.losing:
            self.factory.losing -= 1
            self.is_losing = True
        super().dataReceived(data)


class ClientTestCase(TestCase):
    """Two devices at one homeserver."""

    timeout = 60
    homeserver: ThrowawayHomeserver

    def setUp(self) -> None:
        self.pool = HTTPConnectionPool(reactor)
        self.addCleanup(self.pool.closeCachedConnections)

    async def pair(self, path: str = PATH) -> tuple[Rendezvous, Rendezvous]:
        """Return both sides of a session, of which each has read what there is."""
        here = await Rendezvous.create(self.homeserver.url + path, b"hello", self.pool)
        there = await Rendezvous.join(here.url, self.pool)
        self.assertEqual(b"hello", await there.receive())
        return here, there

    def receiving(self, device: Rendezvous) -> "Deferred[bytes]":
        """Let a device begin to receive."""
        return ensureDeferred(device.receive())

    async def assert_raises(self, error: type[Exception], awaited: Any) -> Any:
        return await self.assertFailure(ensureDeferred(awaited), error)

    async def through_proxy(self, device: Rendezvous) -> tuple[Rendezvous, Proxy]:
        """Join the session of a device through a proxy of our own."""
        proxy = Proxy(self.homeserver)
        port = reactor.listenTCP(0, proxy, interface=HOST)
        self.addCleanup(port.stopListening)
        url = device.url.replace(self.homeserver.url, f"http://{HOST}:{port.getHost().port}")
        return await Rendezvous.join(url, self.pool), proxy

    async def patiently(self, attempt: Callable[[], Awaitable[T]]) -> T:
        """Try until the server does not ask to wait."""
        while True:
            try:
                return await attempt()
            except Refused as refusal:
                self.assertEqual(429, refusal.status)
                await deferLater(reactor, refusal.retry_after)


class PairingTestCase(ClientTestCase):
    """With sessions in memory."""

    @pytest.fixture(autouse=True)
    def _homeserver(self, homeserver: ThrowawayHomeserver) -> None:
        self.homeserver = homeserver

    async def exchange(self, path: str) -> None:
        here, there = await self.pair(path)
        assert here.expires is not None
        assert there.expires is not None
        self.assertLess(abs((here.expires - there.expires).total_seconds()), 30)
        for number in range(5):
            for sender, receiver in ((there, here), (here, there)):
                waiting = self.receiving(receiver)
                await sender.send(b"the same" if number else b"")
                self.assertEqual(b"the same" if number else b"", await waiting)
        waiting = self.receiving(there)
        await here.cancel()
        with self.assertRaises(Ended):
            await waiting
        await there.cancel()  # does no harm
        await self.assert_raises(Ended, there.send(b"too late"))

    async def test_msc3886(self) -> None:
        """Messages go both ways at once when they are sent, also the same ones, until one side ends it."""
        await self.exchange(PATH)

    async def test_msc4108(self) -> None:
        """So they do with MSC4108."""
        await self.exchange(f"{PATH}/msc4108")

    async def test_msc4388(self) -> None:
        """So they do with MSC4388, which the clients find out by themselves."""
        await self.exchange(MSC4388)

    async def test_late_retry(self) -> None:
        """With MSC4388, a message whose answers are lost counts as sent, though the other device has replied."""
        here, _ = await self.pair(MSC4388)
        there, proxy = await self.through_proxy(here)
        await there.receive()
        self.patch(rendezvous, "PAUSES_S", (2,))
        proxy.losing = 1
        sending = ensureDeferred(there.send(b"answer"))
        self.assertEqual(b"answer", await here.receive())
        await here.send(b"reply")
        await sending
        first, second = (line for line in proxy.requests if line.startswith("PUT "))
        self.assertEqual(first, second)
        self.assertEqual(b"reply", await there.receive())
        await there.send(b"thanks")
        self.assertEqual(b"thanks", await here.receive())

    async def test_conflict_msc4388(self) -> None:
        """Of two that write at once, likewise; each message is a transaction of its own."""
        here, there = await self.pair(MSC4388)
        await there.send(b"first")
        await self.assert_raises(Conflict, here.send(b"second"))
        self.assertEqual(b"first", await here.receive())
        await here.send(b"second")
        self.assertEqual(b"second", await there.receive())

    async def test_conflict(self) -> None:
        """Of two that write at once one is told, receives, and writes again."""
        here, there = await self.pair()
        await there.send(b"first")
        await self.assert_raises(Conflict, here.send(b"second"))
        self.assertEqual(b"first", await here.receive())
        await here.send(b"second")
        self.assertEqual(b"second", await there.receive())

    async def test_receive_while_sending(self) -> None:
        """A device that waits does not take its own messages for the other's."""
        here, there = await self.pair()
        waiting = self.receiving(here)
        for number in range(20):
            await here.send(b"%d" % number)
        self.assertEqual(b"19", await there.receive())
        await there.send(b"answer")
        self.assertEqual(b"answer", await waiting)

    async def test_giving_up(self) -> None:
        """Who cancels `receive` gives up at once, and can receive later."""
        here, there = await self.pair()
        for give_up_after_s in (0, 0.05):
            waiting = self.receiving(here)
            await deferLater(reactor, give_up_after_s)
            waiting.cancel()
            with self.assertRaises(CancelledError):
                await waiting
        await there.send(b"answer")
        self.assertEqual(b"answer", await here.receive())

    async def test_lost_answers(self) -> None:
        """Where the answers to a message are lost it is sent again, and arrives once."""
        here, _ = await self.pair()
        there, proxy = await self.through_proxy(here)
        await there.receive()
        self.patch(rendezvous, "PAUSES_S", (0.05, 0.05))
        proxy.losing = 2
        await there.send(b"answer")
        self.assertEqual(3, sum(line.startswith("PUT ") for line in proxy.requests))
        self.assertEqual(b"answer", await here.receive())
        await here.send(b"thanks")  # the revision is the one that its sender was told
        self.assertEqual(b"thanks", await there.receive())

    async def test_no_answer(self) -> None:
        """Where no answer comes after all, that is said; the device can go on when the server is back."""
        here, _ = await self.pair()
        there, proxy = await self.through_proxy(here)
        await there.receive()
        self.patch(rendezvous, "PAUSES_S", (0.05,))
        proxy.losing = 2
        await self.assert_raises(Unreachable, there.send(b"answer"))
        await there.send(b"answer")
        self.assertEqual(b"answer", await here.receive())
        await self.assert_raises(Unreachable, Rendezvous.create(f"http://{HOST}:{free_port()}{PATH}", b"", self.pool))

    async def left_without_answer(self, path: str) -> tuple[Rendezvous, Rendezvous, Proxy]:
        """Return both sides of a session; the second one's first message, "answer", arrived without its knowing."""
        here, _ = await self.pair(path)
        there, proxy = await self.through_proxy(here)
        await there.receive()
        self.patch(rendezvous, "PAUSES_S", (0.05,))
        proxy.losing = 2
        await self.assert_raises(Unreachable, there.send(b"answer"))
        self.assertEqual(b"answer", await here.receive())
        return here, there, proxy

    async def test_sent_again(self) -> None:
        """A message that was left without an answer, sent again, is the same write: it arrives once."""
        for path in ALL_PATHS:
            here, there, proxy = await self.left_without_answer(path)
            waiting = self.receiving(here)
            await there.send(b"answer")
            self.assertEqual(1, len({line for line in proxy.requests if line.startswith("PUT ")}))
            await there.send(b"next")
            self.assertEqual(b"next", await waiting)

    async def test_another_sent(self) -> None:
        """After a message that was left without an answer, another one may be sent."""
        for path in ALL_PATHS:
            here, there, _ = await self.left_without_answer(path)
            waiting = self.receiving(here)
            await there.send(b"another")
            self.assertEqual(b"another", await waiting)

    async def test_own_message_without_answer(self) -> None:
        """A device does not take a message that was left without an answer for the other's."""
        for path in ALL_PATHS:
            here, there, _ = await self.left_without_answer(path)
            waiting = self.receiving(there)
            await deferLater(reactor, 0.3)  # time to take it wrongly
            await here.send(b"reply")
            self.assertEqual(b"reply", await waiting)
            await there.send(b"thanks")
            self.assertEqual(b"thanks", await here.receive())

    async def test_never_arrived(self) -> None:
        """A message that never arrived is not written later by itself, and does not stand in the way."""
        for path in ALL_PATHS:
            here, _ = await self.pair(path)
            there, proxy = await self.through_proxy(here)
            await there.receive()
            self.patch(rendezvous, "PAUSES_S", ())
            proxy.dropping = 1
            await self.assert_raises(Unreachable, there.send(b"never"))
            waiting = self.receiving(there)
            await here.send(b"news")
            self.assertEqual(b"news", await waiting)
            await there.send(b"answer")
            self.assertEqual(b"answer", await here.receive())

    async def test_not_there(self) -> None:
        """An address that is none of a rendezvous server is refused; a session that is over has ended."""
        refused = await self.assert_raises(Refused, Rendezvous.create(f"{self.homeserver.url}/nowhere", b"", self.pool))
        self.assertEqual(404, refused.status)
        here, there = await self.pair()
        await here.cancel()
        await self.assert_raises(Ended, (await Rendezvous.join(there.url, self.pool)).receive())


@needs("redis-server", "redis-server")
class RedisPairingTestCase(PairingTestCase):
    """With sessions in Redis."""

    @pytest.fixture(autouse=True)
    def _homeserver(self, with_redis: ThrowawayHomeserver) -> None:
        self.homeserver = with_redis


class ShortTestCase(ClientTestCase):
    """Where sessions are short, and nobody waits."""

    @pytest.fixture(autouse=True)
    def _homeserver(self, short: ThrowawayHomeserver) -> None:
        self.homeserver = short

    async def test_expiry(self) -> None:
        """When its time is over, the session has ended, for whoever waits and for whoever writes."""
        here, there = await self.pair()
        with self.assertRaises(Ended):
            await self.receiving(here)
        await self.assert_raises(Ended, there.send(b"too late"))

    async def test_polling(self) -> None:
        """A device asks once a second, and has the message."""
        here, there = await self.pair()
        through, proxy = await self.through_proxy(here)
        await through.receive()
        known, started_s = len(proxy.requests), reactor.seconds()
        waiting = self.receiving(through)
        await deferLater(reactor, 0.3)
        await there.send(b"answer")
        self.assertEqual(b"answer", await waiting)
        polls = proxy.requests[known:]
        self.assertLessEqual(len(polls), reactor.seconds() - started_s + 1)
        self.assertNotIn("timeout", "".join(polls))


class RefusalTestCase(ClientTestCase):
    """Where next to nothing is allowed."""

    @pytest.fixture(autouse=True)
    def _homeserver(self, strict: ThrowawayHomeserver) -> None:
        self.homeserver = strict

    async def test_refusals(self) -> None:
        """A full server and a message that is too long are told; who reads too often has the message a little later."""
        here, there = await self.pair()
        full = await self.assert_raises(Refused, self.pair())
        self.assertEqual((429, 30), (full.status, full.retry_after))
        long = await self.assert_raises(Refused, here.send(b"x" * 101))
        self.assertEqual((413, 0), (long.status, long.retry_after))
        for number in range(2):
            await there.send(b"%d" % number)
            self.assertEqual(b"%d" % number, await here.receive())
        self.assertIn(f' 429 "GET {here.url.removeprefix(self.homeserver.url)}', self.homeserver.log.read_text())
        await here.cancel()


class HastyTestCase(ClientTestCase):
    """Where a client is asked to wait nearly always."""

    @pytest.fixture(autouse=True)
    def _homeserver(self, hasty: ThrowawayHomeserver) -> None:
        self.homeserver = hasty

    async def test_asked_to_wait(self) -> None:
        """A client that is asked to wait guesses no protocol, and its message, sent again, is the same write."""
        self.patch(rendezvous, "PAUSES_S", (0.05,))
        for path in PATH, MSC4388:
            url = self.homeserver.url + path
            here = await self.patiently(lambda url=url: Rendezvous.create(url, b"hello", self.pool))  # type: ignore[misc]
            there, proxy = await self.patiently(lambda here=here: self.through_proxy(here))  # type: ignore[misc]
            self.assertEqual(b"hello", await there.receive())
            proxy.losing = 1
            await self.patiently(lambda there=there: there.send(b"answer"))  # type: ignore[misc]
            self.assertEqual(1, len({line for line in proxy.requests if line.startswith("PUT ")}))
            self.assertEqual(b"answer", await here.receive())
            await self.patiently(lambda here=here: here.send(b"thanks"))  # type: ignore[misc]
            self.assertEqual(b"thanks", await there.receive())


class InBrowser:
    """A device with rendezvous.js in a browser, used as the client in Python is."""

    _SCRIPT = """
        const [method, args, done] = arguments;
        (async () => {
            const { Rendezvous } = await import("/rendezvous.js");
            if (!(method in Rendezvous)) return window.session[method](...args);
            window.session = await Rendezvous[method](...args);
            return window.session.url;
        })().then(
            (value) => done({ value }),
            ({ constructor: { name }, message, status, retryAfter }) => done({ name, message, status, retryAfter }),
        );
    """

    def __init__(self, chrome: "Chrome") -> None:
        self._chrome = chrome
        self.url = ""

    async def create(self, collection_url: str, payload: bytes) -> None:
        self.url = await self._call("create", collection_url, payload.decode())

    async def join(self, session_url: str) -> None:
        self.url = await self._call("join", session_url)

    async def send(self, payload: bytes) -> None:
        await self._call("send", payload.decode())

    async def receive(self) -> bytes:
        return str(await self._call("receive")).encode()

    async def cancel(self) -> None:
        await self._call("cancel")

    async def _call(self, method: str, *args: str) -> Any:
        answer = await deferToThread(self._chrome.execute_async_script, self._SCRIPT, method, args)
        match answer.get("name"):
            case None:
                return answer.get("value")
            case "Refused":
                raise Refused(answer["message"], answer["status"], answer.get("retryAfter") or 0)
            case name:
                raise {"Conflict": Conflict, "Ended": Ended}[name](answer["message"])


@pytest.fixture(scope="module")
def chrome(tmp_path_factory: pytest.TempPathFactory) -> "Iterator[Chrome]":
    chrome = start_chromium(tmp_path_factory.mktemp("browser"))
    chrome.set_script_timeout(60)
    yield chrome
    chrome.quit()


class CompressedTestCase(ClientTestCase):
    """Behind a proxy that weakens tags by compressing."""

    @pytest.fixture(autouse=True)
    def _compressing(self, tmp_path: pathlib.Path) -> Iterator[None]:
        port = free_port()
        compress = "gzip on; gzip_types *; gzip_min_length 1; gzip_proxied any;"
        proxy = ReverseProxy(tmp_path, "nginx", f"http://{HOST}:{port}", compress)
        with serving(tmp_path, {}, {"public_baseurl": f"{proxy.url}/"}, port) as self.homeserver, proxy:
            self.homeserver.url = proxy.url
            yield

    async def test_own_messages(self) -> None:
        """A device that waits while it sends knows its own messages, whose tags differ from those that it was told."""
        for path in ALL_PATHS:
            here, there = await self.pair(path)
            waiting = self.receiving(here)
            for number in range(5):
                await here.send(b"%d" % number)
                await deferLater(reactor, 0.1)  # time to read it
            self.assertEqual(b"4", await there.receive())
            await there.send(b"answer")
            self.assertEqual(b"answer", await waiting)


class BrowserTestCase(ClientTestCase):
    """With a browser as one of the devices."""

    @pytest.fixture(autouse=True)
    def _browser(self, _homeserver: None, chrome: "Chrome") -> Iterator[None]:
        with Page(homeserver_url=self.homeserver.url, host=HOST, port=0) as page:
            chrome.get(page.url)  # an origin that may import the client and reach the homeserver
            self.browser = InBrowser(chrome)
            yield
            chrome.get("about:blank")


class BothClientsTestCase(BrowserTestCase):
    """The client in Python and the one in JavaScript, each as the device that creates and as the one that joins."""

    @pytest.fixture(autouse=True)
    def _homeserver(self, homeserver: ThrowawayHomeserver) -> None:
        self.homeserver = homeserver

    async def exchange(self, here: "Rendezvous | InBrowser", there: "Rendezvous | InBrowser") -> None:
        self.assertEqual(b"hello", await there.receive())
        for number in range(3):
            for sender, receiver in ((there, here), (here, there)):
                message = f'"\\ žluťoučký \U0001f98a\n{number // 2}'.encode()  # the same from both, and again
                waiting = ensureDeferred(receiver.receive())
                await sender.send(message)
                self.assertEqual(message, await waiting)
        await there.send(b"first")
        await self.assert_raises(Conflict, here.send(b"second"))
        self.assertEqual(b"first", await here.receive())
        await here.send(b"second")
        self.assertEqual(b"second", await there.receive())
        waiting = ensureDeferred(there.receive())
        await here.cancel()
        with self.assertRaises(Ended):
            await waiting

    async def test_python_creates(self) -> None:
        """What the client in Python creates, the one in JavaScript joins, whichever protocol it is."""
        for path in ALL_PATHS:
            here = await Rendezvous.create(self.homeserver.url + path, b"hello", self.pool)
            await self.browser.join(here.url)
            await self.exchange(here, self.browser)

    async def test_javascript_creates(self) -> None:
        """And the other way round."""
        for path in ALL_PATHS:
            await self.browser.create(self.homeserver.url + path, b"hello")
            there = await Rendezvous.join(self.browser.url, self.pool)
            await self.exchange(self.browser, there)


class HastyBrowserTestCase(BrowserTestCase):
    """Where a browser is asked to wait nearly always."""

    @pytest.fixture(autouse=True)
    def _homeserver(self, hasty: ThrowawayHomeserver) -> None:
        self.homeserver = hasty

    async def test_asked_to_wait(self) -> None:
        """It guesses no protocol, neither to create nor to join."""
        url = self.homeserver.url + MSC4388
        here = await self.patiently(lambda: Rendezvous.create(url, b"hello", self.pool))
        await self.patiently(lambda: self.browser.join(here.url))
        self.assertEqual(b"hello", await self.browser.receive())
        await self.patiently(lambda: self.browser.send(b"answer"))
        self.assertEqual(b"answer", await here.receive())
        await here.cancel()
        await self.patiently(lambda: self.browser.create(url, b"hello"))
        await self.browser.cancel()


class DelegationTestCase(ClientTestCase):
    """Where clients are sent on from Synapse's own path."""

    @pytest.fixture(autouse=True)
    def _delegating(self, tmp_path: pathlib.Path) -> Iterator[None]:
        port = free_port()
        text = recipe("yaml", "msc4108_delegation_endpoint")
        settings = yaml.safe_load(text.replace("https://matrix.example.com", f"http://{HOST}:{port}"))
        settings["matrix_authentication_service"] = {"enabled": True, "endpoint": f"http://{HOST}:9/", "secret": "dead"}
        with serving(tmp_path, {"client_paths": "off"}, settings, port) as self.homeserver:
            yield

    async def test_delegation(self) -> None:
        """A session is created there, and then known by its own address."""
        here, there = await self.pair(MSC4108)
        self.assertTrue(here.url.startswith(f"{self.homeserver.url}{PATH}/msc4108/"))
        await there.send(b"answer")
        self.assertEqual(b"answer", await here.receive())


def test_exchanges(homeserver: ThrowawayHomeserver) -> None:
    """What docs/clients.md shows of HTTP is what is sent and answered, one after the other."""
    page = (DOCS / "clients.md").read_text().partition("# Leading clients here")[0]
    blocks = re.findall(r"\n\n((?:    .*\n|\n(?=    ))+)", page)
    real: dict[str, str] = {}
    for block in map(textwrap.dedent, blocks):
        for shown, value in real.items():
            block = block.replace(shown, value)
        request, _, answers = re.split(r"^(?=(\d{3})\b)", block, maxsplit=1, flags=re.MULTILINE)
        head, _, content = request.partition("\n\n")
        line, *lines = head.splitlines()
        method, path = line.split()
        fields = dict(line.split(": ") for line in lines)
        answer = ask(method, homeserver.url + path, content.strip().encode(), fields)
        assert str(answer.status) in re.findall(r"^\d{3}", answers, re.MULTILINE), block
        for name in re.findall(r"^(?:\d+)? +([A-Z][\w-]+): ", answers, re.MULTILINE):
            assert name in answer.headers, block
        if tag := re.search(r'ETag: "(\w+)"', answers):
            real[tag[1]] = answer.etag.strip('"')
        for key in re.findall(r'"(\w+)":', answers):
            assert key in answer.json(), block
        if url := re.search(r'"url":"https://\S+/([\w-]+)"', answers):
            real[url[1]] = answer.json()["url"].rpartition("/")[2]
    assert 5 == len(blocks)


def test_program(homeserver: ThrowawayHomeserver) -> None:
    """Run as a program, it lets two devices meet."""
    command = [sys.executable, str(rendezvous.__file__), homeserver.url + PATH]
    done = subprocess.run(command, check=True, capture_output=True, text=True, timeout=60)
    lines = done.stdout.splitlines()
    assert ["The signed-in device reads: hello, who is there?", "The new device reads: it is me"] == lines[1:3]
    assert ["The signed-in device is told: The session is over."] == lines[3:]
