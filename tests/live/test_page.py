"""The page of the demonstration: two browsers that know nothing of each other pair by the QR code on the screen.

The homeserver is real, and the page is on another origin, so what they exchange is what web clients exchange.
"""

import base64
import collections
import contextlib
import hashlib
import json
import pathlib
import re
import sys
import threading
import urllib.parse
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import TYPE_CHECKING, Any

import pytest

from support.chromium import Device, start_chromium
from support.homeservers import new_homeserver, running
from support.http_client import Answer, ask
from support.ports import free_port
from support.proxies import ReverseProxy
from support.until import wait_until
from synapse_rendezvous.demo.certificate import Certificate
from synapse_rendezvous.demo.page import LONGEST_LINK, Page
from synapse_rendezvous.demo.throwaway_homeserver import HOST, ThrowawayHomeserver
from synapse_rendezvous.paths import MSC3886, MSC4388

if TYPE_CHECKING:
    from selenium.webdriver import Chrome

Devices = tuple[Device, Device]


def page_of(server: ThrowawayHomeserver) -> Page:
    return Page(homeserver_url=server.url, host=HOST, port=0, certificate=server.certificate)


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[ThrowawayHomeserver]:
    """A homeserver with the default configuration, as the demonstration has it."""
    with running(new_homeserver(tmp_path_factory.mktemp("homeserver"))) as server:
        yield server


@pytest.fixture(scope="module")
def url(server: ThrowawayHomeserver) -> Iterator[str]:
    with page_of(server) as page:
        yield page.url


@pytest.fixture(scope="module")
def browsers(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple["Chrome", "Chrome"]]:
    laptop = start_chromium(tmp_path_factory.mktemp("laptop"))
    try:
        phone = start_chromium(tmp_path_factory.mktemp("phone"))
        try:
            yield laptop, phone
        finally:
            phone.quit()
    finally:
        laptop.quit()


@pytest.fixture
def devices(browsers: tuple["Chrome", "Chrome"]) -> Iterator[Devices]:
    """A laptop and a narrow phone, neither of which has anything in its console at the end that it should not have."""
    laptop, phone = Device(browsers[0], 1440, 900), Device(browsers[1], 360, 740)
    for device in laptop, phone:
        device.log("browser")
    yield laptop, phone
    for device in laptop, phone:
        device.chrome.get("about:blank")  # nothing goes on into the next test


def offer(device: Device, url: str, dialect: str = "MSC3886") -> str:
    """Make a session in a dialect, and return the link of the QR code."""
    device.open(url)
    device.wait_for("start")
    device.chrome.find_element("id", "dialect").send_keys(dialect)
    device.click("#create")
    device.wait_for("invite")
    link = device.scanned()
    assert device.value("link") == link
    return link


def meet(devices: Devices, url: str, dialect: str = "MSC3886") -> str:
    """Let the two devices meet, and return the session's URL."""
    laptop, phone = devices
    link = offer(laptop, url, dialect)
    phone.open(link)
    for device in devices:
        device.wait_for("compare")
    return urllib.parse.parse_qs(urllib.parse.urlsplit(link).fragment)["session"][0]


def connect(devices: Devices, url: str, dialect: str = "MSC3886") -> str:
    """Let the two devices meet and find their codes the same, and return the session's URL."""
    session = meet(devices, url, dialect)
    for device in devices:
        device.click("#match")
        device.wait_for("talk")
    return session


def preflights(device: Device) -> list[dict[str, Any]]:
    """Return the answers to the browser's own requests before the page's, since this was last asked."""
    events = [json.loads(entry["message"])["message"] for entry in device.log("performance")]
    answers = [event["params"] for event in events if event["method"] == "Network.responseReceived"]
    return [answer["response"] for answer in answers if answer["type"] == "Preflight"]


both_dialects = pytest.mark.parametrize("dialect", ["MSC3886", "MSC4388"])
COLLECTIONS = {"MSC3886": MSC3886, "MSC4388": MSC4388}
WRITTEN = {"MSC3886": "202", "MSC4388": "200"}

CONVERSATION = [
    "the same from both",
    "the same from both",
    "",
    "<script>window.ran = 1</script><img src=x onerror='window.ran = 1'>",
    "<svg xmlns='http://www.w3.org/2000/svg' onload='window.ran = 1'><script>window.ran = 1</script></svg>",
    "&lt;b&gt; \\u0041 \\ ' \" ` ${1}",
    "žluťoučký kůň",
    "x" * 300,
    "12345678",
    "until soon",
]


@both_dialects
def test_pair_and_talk(server: ThrowawayHomeserver, url: str, devices: Devices, dialect: str) -> None:
    """Two devices pair by the QR code and exchange ten messages each way, of which the server sees only ciphertext."""
    laptop, phone = devices
    session = meet(devices, url, dialect)
    assert session.startswith(f"{server.url}{COLLECTIONS[dialect]}/")
    code = laptop.text("code")
    assert re.fullmatch("[0-9]{3} [0-9]{3}", code)
    assert code == phone.text("code")
    for device in devices:
        device.click("#match")
        device.wait_for("talk")

    said = [message or "   " for message in CONVERSATION]
    for count, message in enumerate(said, 1):
        for device, other in (laptop, phone), (phone, laptop):
            device.send(message)
            wait_until(lambda other=other, count=count: said[:count] == other.messages("there"))  # type: ignore[misc]
    for device in devices:
        assert said == device.messages("here")
        script = "return [window.ran, document.querySelectorAll('#messages *, #payload *').length];"
        assert [None, 2 * 2 * len(said)] == device.chrome.execute_script(script)  # items, and who says it

    # What is said is read back from the server as the page shows it, and says nothing.
    read = ask("GET", session)
    assert 200 == read.status
    stored = read.json()["data"] if dialect == "MSC4388" else read.content.decode()
    wait_until(lambda: stored == laptop.text("payload") == phone.text("payload"))
    assert "until soon" not in stored
    assert json.loads(stored)["messages"]
    meanings = {row[4] for device in devices for row in device.requests() if row[1] not in ("waits", "–")}  # noqa: RUF001 (as the page has it)
    assert {"written", "news from the other device", "session made", "what the server offers"} <= meanings
    assert "trouble on the way" not in meanings
    assert [] == laptop.log("browser") == phone.log("browser")

    laptop.click(".end")
    for device, title in (laptop, "You ended the session"), (phone, "The session was ended"):
        device.wait_for("over")
        assert title == device.text("title")
    assert 404 == ask("GET", session).status


def test_requests_are_shown(server: ThrowawayHomeserver, url: str, devices: Devices) -> None:
    """The list has each request as it was, across origins, and those that wait while they wait."""
    laptop, phone = devices
    assert url.rstrip("/") != server.url
    for device in devices:
        preflights(device)
    connect(devices, url)

    wait_until(lambda: "waits" == laptop.requests()[-1][1])
    held = laptop.requests()[-1]
    wait_until(lambda: int(laptop.requests()[-1][3]) > int(held[3]) > 0)
    assert "the server holds it until there is news" == held[4].strip()
    phone.send("hello")
    wait_until(lambda: ["hello"] == laptop.messages("there"))
    rows = laptop.requests()
    assert ["GET", "200", "", "what the server offers"] == [*rows[0][:3], rows[0][4]]
    assert ["POST", "200", "session made"] == [*rows[1][:2], rows[1][4]]
    news = [row for row in rows if row[:2] == ["GET", "200"] and row[4] == "news from the other device"]
    assert 2 == len(news)  # the phone's key, and its message
    assert 3 == len({row[2] for row in [rows[1], *news]})  # scripts on this origin may read the tags
    assert all(row[2].startswith('"') and row[2].endswith('"') for row in news)

    # Waiting took fewer requests than polling would have taken by then.
    wait_until(lambda: str(len(laptop.requests())) == laptop.text("requests"))
    asked = int(laptop.text("reads"))
    assert asked >= sum(row[0] == "GET" for row in rows) - 1 >= 2  # all but that of the collection
    wait_until(lambda: int(laptop.text("polls")) > asked + 1)

    # The laptop only reads so far, and a poll takes one request: its tag is in the query.
    assert [] == [answer["url"] for answer in preflights(laptop) if "/rendezvous/" in answer["url"]]
    answers = [answer for answer in preflights(phone) if "/rendezvous/" in answer["url"]]
    allowed = {name.lower(): value for name, value in answers[-1]["headers"].items()}
    assert {204} == {answer["status"] for answer in answers}
    assert "*" == allowed["access-control-allow-origin"]
    assert {"if-match", "if-none-match"} <= set(allowed["access-control-allow-headers"].lower().split(", "))


@both_dialects
def test_both_write_at_once(url: str, devices: Devices, dialect: str) -> None:
    """Where both write at the same moment, one is refused, is told why, and nothing is lost."""
    laptop, phone = devices
    connect(devices, url, dialect)
    slow = {"offline": False, "latency": 3000, "downloadThroughput": -1, "uploadThroughput": -1}
    laptop.chrome.execute_cdp_cmd("Network.enable", {})
    laptop.chrome.execute_cdp_cmd("Network.emulateNetworkConditions", slow)
    phone.send("wakes what waits, so that the next waits slowly")
    wait_until(lambda: 1 == len(laptop.messages("there")))
    wait_until(lambda: "waits" == laptop.requests()[-1][1])

    def written() -> int:
        return sum(row[:2] == ["PUT", WRITTEN[dialect]] for row in phone.requests())

    before = written()
    phone.send("mine")
    wait_until(lambda: before < written())
    laptop.send("mine")
    wait_until(lambda: ["mine"] == phone.messages("there"))
    laptop.chrome.execute_cdp_cmd("Network.emulateNetworkConditions", {**slow, "latency": 0})
    assert "mine" == laptop.messages("there")[-1]
    assert "took the other's" in laptop.text("notice")
    refused = next(row for row in laptop.requests() if row[1] in ("409", "412"))
    assert {"MSC3886": "412", "MSC4388": "409"}[dialect] == refused[1]
    assert ["PUT", "the other device wrote first"] == [refused[0], refused[4]]
    laptop.send("all is well")
    wait_until(lambda: ["mine", "all is well"] == phone.messages("there"))
    assert "" == laptop.text("notice")


@both_dialects
def test_own_writes_are_no_news(server: ThrowawayHomeserver, url: str, devices: Devices, dialect: str) -> None:
    """A device that waits while it writes twice takes neither for the other's message."""
    laptop, _ = devices
    laptop.open(url)
    laptop.chrome.set_script_timeout(30)
    script = """
        const [collection, done] = arguments;
        (async () => {
            const { Rendezvous } = await import("/rendezvous.js");
            const here = await Rendezvous.create(collection, "hello");
            const news = here.receive();
            await Promise.all([here.send("one"), here.send("two")]);
            const there = await Rendezvous.join(here.url);
            const read = await there.receive();
            await there.send("theirs");
            done([read, await news]);
        })();
    """
    assert ["two", "theirs"] == laptop.chrome.execute_async_script(script, server.url + COLLECTIONS[dialect])


def test_codes_differ(url: str, devices: Devices) -> None:
    """Nothing said is shown before the codes are compared; where they differ, the session is ended for both."""
    laptop, phone = devices
    session = meet(devices, url)
    phone.click("#match")
    phone.wait_for("talk")
    phone.send("too early")
    wait_until(lambda: "202" in [row[1] for row in phone.requests()[-2:]])
    assert [] == laptop.messages("there")
    laptop.click("#differ")
    laptop.wait_for("over")
    assert "somebody is in between" in laptop.text("status")
    phone.wait_for("over")
    assert 404 == ask("GET", session).status


def test_early_messages_are_kept(url: str, devices: Devices) -> None:
    """What was said before this person compared the codes is there afterwards."""
    laptop, phone = devices
    meet(devices, url)
    phone.click("#match")
    phone.wait_for("talk")
    for message in "first", "second":
        phone.send(message)
    laptop.click("#match")
    wait_until(lambda: ["first", "second"] == laptop.messages("there"))


def test_others_who_know_the_link(url: str, devices: Devices, browsers: tuple["Chrome", "Chrome"]) -> None:
    """A link works once, and who writes without the keys is not believed."""
    laptop, phone = devices
    session = meet(devices, url)
    link = laptop.value("link")
    phone.open(link)
    phone.wait_for("over")
    assert "The link has been used" == phone.text("title")
    html = "<svg xmlns='http://www.w3.org/2000/svg' onload='window.ran = 1'></svg><script>window.ran = 1</script>"
    assert 202 == ask("PUT", session, html.encode(), Content_Type="text/plain").status
    laptop.wait_for("over")
    assert "Somebody else wrote" == laptop.text("title")
    assert html == laptop.text("payload")
    assert laptop.chrome.execute_script("return window.ran;") is None
    wait_until(lambda: 404 == ask("GET", session).status)

    for broken, title in (
        (link, "There is no such session"),
        (f"{url}#session=http://{HOST}:1/_synapse/client/rendezvous/x&key=x", "This link leads elsewhere"),
        (f"{url}#nothing", "This link leads elsewhere"),
    ):
        phone.open(broken)
        phone.wait_for("over")
        assert title == phone.text("title")


def test_keyboard(url: str, devices: Devices) -> None:
    """With the keyboard alone, and always seeing where one is, a person gets from start to end."""
    from selenium.webdriver import ActionChains, Keys

    def press(device: Device, *keys: str) -> None:
        ActionChains(device.chrome).send_keys(*keys).perform()

    def tab_to(device: Device, selector: str) -> None:
        for _ in range(12):
            press(device, Keys.TAB)
            matches, outline = device.chrome.execute_script(
                "const at = document.activeElement;"
                " return [at.matches(arguments[0]), getComputedStyle(at).outlineStyle];",
                selector,
            )
            assert "solid" == outline
            if matches:
                return
        raise AssertionError(f"{selector} is not reached")

    laptop, phone = devices
    laptop.open(url)
    laptop.wait_for("start")
    tab_to(laptop, "#create")
    press(laptop, Keys.ENTER)
    laptop.wait_for("invite")
    tab_to(laptop, "#open")
    phone.open(laptop.value("link"))
    for device in devices:
        device.wait_for("compare")
        assert "title" == device.chrome.execute_script("return document.activeElement.id;")
        tab_to(device, "#match")
        press(device, Keys.ENTER)
        device.wait_for("talk")
    press(laptop, "typed at once", Keys.ENTER)
    wait_until(lambda: ["typed at once"] == phone.messages("there"))
    tab_to(phone, ".end")
    press(phone, Keys.SPACE)
    for device in devices:
        device.wait_for("over")
    tab_to(laptop, "#restart")
    press(laptop, Keys.ENTER)
    laptop.wait_for("invite")
    tab_to(laptop, "[data-step=invite] .end")
    press(laptop, Keys.ENTER)
    laptop.wait_for("over")
    # Each change is told to those who do not see it.
    live = "return [...document.querySelectorAll('[role=status], [role=log]')].map((part) => part.id);"
    assert ["status", "notice", "messages"] == laptop.chrome.execute_script(live)


@pytest.mark.timing
def test_trouble(tmp_path: pathlib.Path, devices: Devices) -> None:
    """A server that refuses, a session that expires, a server that is gone: the page says what to do, and goes on."""
    laptop, phone = devices
    rare = {"create": {"per_second": 0.4, "burst_count": 1}}
    config = {"ttl": "9s", "max_sessions": 1, "per_client": rare, "long_poll": {"max_wait": 0}}
    with new_homeserver(tmp_path, config) as server, page_of(server) as page:
        offer(laptop, page.url)
        phone.open(page.url)
        phone.wait_for("start")
        phone.click("#create")
        phone.wait_for("stuck")  # too fast
        assert "The server asks you to wait" == phone.text("title")
        assert phone.text("again").startswith("Try again in ")
        wait_until(lambda: "Try again" == phone.text("again"))
        phone.click("#again")
        wait_until(lambda: re.fullmatch("Try again in (30|2[0-9]) s", phone.text("again")) is not None)  # it is full
        assert "429" == phone.requests()[-1][1]

        laptop.wait_for("over")
        assert "The time is over" == laptop.text("title")
        # This server does not wait, so it was asked each second.
        assert 2 < int(laptop.text("reads")) <= int(laptop.text("polls")) + 1
        assert not [row for row in laptop.requests() if row[1] == "waits"]
        laptop.click("#restart")
        laptop.wait_for("invite")
        server.stop()
        laptop.wait_for("stuck")
        assert "The server does not answer" == laptop.text("title")
        assert ["", "no answer"] == laptop.requests()[-1][2::2]
        server.start()
        laptop.click("#again")
        laptop.wait_for("over")  # sessions in memory went with it
        assert "ended" in laptop.text("title") or "over" in laptop.text("title")
        laptop.click("#restart")
        laptop.wait_for("invite")


class Forgetful(ThreadingHTTPServer):
    """A proxy, in a `with` statement, that can lose answers to writes.

    Args:
        backend: what it forwards to.

    Attributes:
        url: where it listens.
        to_lose: how many answers to writes it loses yet.
        written_to: the paths of all writes, in their order.
    """

    def __init__(self, backend: str) -> None:
        proxy = self
        self.to_lose = 0
        self.written_to: list[str] = []

        class Forward(BaseHTTPRequestHandler):
            def forward(self) -> None:
                content = self.rfile.read(int(self.headers.get("Content-Length", 0)))
                answer = ask(self.command, backend + self.path, content, self.headers.items())
                if self.command == "PUT":
                    proxy.written_to.append(self.path)
                    if proxy.to_lose:
                        proxy.to_lose -= 1
                        return
                self.send_response_only(answer.status)
                for name, value in answer.headers.items():
                    if name not in ("Connection", "Transfer-Encoding"):
                        self.send_header(name, value)
                self.end_headers()
                self.wfile.write(answer.content)

            do_GET = do_POST = do_PUT = do_DELETE = do_OPTIONS = forward

            def log_message(self, *_: object) -> None:
                pass

        super().__init__((HOST, 0), Forward)
        self.handle_error = lambda *_: None  # type: ignore[method-assign] # browsers leave when they like
        self.url = f"http://{HOST}:{self.server_port}"

    def __enter__(self) -> "Forgetful":
        threading.Thread(target=self.serve_forever).start()
        return self

    def __exit__(self, *_: object) -> None:
        self.shutdown()
        self.server_close()


@both_dialects
def test_bad_proxies(tmp_path: pathlib.Path, devices: Devices, dialect: str) -> None:
    """A proxy that weakens tags by compressing, and one that loses answers: each message arrives, and arrives once."""
    laptop, phone = devices
    port = free_port()
    compress = "gzip on; gzip_types *; gzip_min_length 1; gzip_proxied any;"
    with contextlib.ExitStack() as stack:
        nginx = ReverseProxy(tmp_path, "nginx", f"http://{HOST}:{port}", compress)
        proxy = stack.enter_context(Forgetful(nginx.url))
        stack.enter_context(new_homeserver(tmp_path, port=port, settings={"public_baseurl": f"{proxy.url}/"}))
        stack.callback(nginx.stop)
        nginx.start()
        page = stack.enter_context(Page(homeserver_url=proxy.url, host=HOST, port=0))
        connect(devices, page.url, dialect)
        for count in 1, 2:
            laptop.send("the same from both")
            wait_until(lambda count=count: count == len(phone.messages("there")))  # type: ignore[misc]
            phone.send("the same from both")
            wait_until(lambda count=count: count == len(laptop.messages("there")))  # type: ignore[misc]
        assert (dialect == "MSC3886") == any(row[2].startswith("W/") for row in laptop.requests())

        wait_until(lambda: "waits" == laptop.requests()[-1][1])
        proxy.to_lose = 1
        phone.send("once")
        wait_until(lambda: "once" == laptop.messages("there")[-1])
        wait_until(lambda: WRITTEN[dialect] == [row[1] for row in phone.requests() if row[0] == "PUT"][-1])
        lost, repeated = [row for row in phone.requests() if row[0] == "PUT"][-2:]
        assert (0, "no answer") == (proxy.to_lose, lost[4])
        read = next(row for row in reversed(laptop.requests()) if row[:2] == ["GET", "200"])
        assert repeated[2] == read[2].removeprefix("W/")  # nothing was written a second time
        laptop.send("thank you")
        wait_until(lambda: "thank you" == phone.messages("there")[-1])
        assert 3 == len(laptop.messages("there"))
        if dialect == "MSC4388":  # a transaction for each message; the one that was sent again kept its own
            counts = collections.Counter(proxy.written_to)
            assert [2] == [count for count in counts.values() if count > 1]

        # Where all answers to a message are lost, it has arrived all the same, and is not taken for the other device's.
        proxy.to_lose = 4
        phone.send("left without an answer")
        wait_until(lambda: "left without an answer" == laptop.messages("there")[-1])
        wait_until(lambda: not proxy.to_lose)
        laptop.send("all is well")
        wait_until(lambda: "all is well" == phone.messages("there")[-1])
        phone.send("here as well")
        wait_until(lambda: "here as well" == laptop.messages("there")[-1])
        assert 5 == len(laptop.messages("there"))


def test_over_tls(tmp_path: pathlib.Path) -> None:
    """With a certificate made on the fly, of which the browser knows nothing but its key, two tabs pair over TLS."""
    from cryptography import x509
    from cryptography.hazmat.primitives import serialization

    certificate = Certificate.make(tmp_path, HOST)
    assert 0o600 == certificate.key_path.stat().st_mode & 0o777
    public_key = x509.load_pem_x509_certificate(certificate.path.read_bytes()).public_key()
    spki = public_key.public_bytes(serialization.Encoding.DER, serialization.PublicFormat.SubjectPublicKeyInfo)
    known = base64.b64encode(hashlib.sha256(spki).digest()).decode()
    with new_homeserver(tmp_path, certificate=certificate) as server, page_of(server) as page:
        chrome = start_chromium(tmp_path / "profile", f"--ignore-certificate-errors-spki-list={known}")
        try:
            tab = Device(chrome, 1440, 900)
            tab.open(page.url)
            tab.wait_for("start")
            assert page.url.startswith("https://")
            assert tab.is_shown(".certificate")
            tab.click("#create")
            tab.wait_for("invite")
            tab.click("#open")
            wait_until(lambda: 2 == len(chrome.window_handles))
            codes = []
            for handle in chrome.window_handles:
                chrome.switch_to.window(handle)
                tab.wait_for("compare")
                codes.append(tab.text("code"))
                tab.click("#match")
            assert 1 == len(set(codes))
            tab.send("from the second tab")
            chrome.switch_to.window(chrome.window_handles[0])
            wait_until(lambda: ["from the second tab"] == tab.messages("there"))
            assert [] == tab.log("browser")
        finally:
            chrome.quit()


def test_without_qr_code(monkeypatch: pytest.MonkeyPatch, server: ThrowawayHomeserver, devices: Devices) -> None:
    """Where the library for QR codes is not installed, the link is there, and how to install it."""
    laptop, phone = devices
    monkeypatch.setitem(sys.modules, "segno", None)
    with page_of(server) as page:
        laptop.open(page.url)
        laptop.wait_for("start")
        laptop.click("#create")
        laptop.wait_for("invite")
        assert not laptop.is_shown("#qr")
        assert "pip install 'synapse-rendezvous[demo]'" in laptop.text("no-qr")
        phone.open(laptop.value("link"))
        phone.wait_for("compare")
        assert [] == laptop.log("browser")


def test_page_server(url: str) -> None:
    """It serves the files of the page and QR codes, under a strict policy, and nothing else."""

    def get(path: str) -> Answer:
        return ask("GET", url.rstrip("/") + path)

    for path in (
        "/",
        "/rendezvous.js",
        "/channel.js",
        "/style.css",
        "/qr.svg?text=x",
        f"/qr.svg?text={'x' * LONGEST_LINK}",
        f"/qr.svg?text={'%e2%82%ac' * (LONGEST_LINK // 3)}",
        "/qr.svg?text=%ed%a0%bd",
    ):
        response = get(path)
        assert 200 == response.status
        policy = dict(part.split(maxsplit=1) for part in response.headers["Content-Security-Policy"].split("; "))
        assert ("'none'", "'self'", "'self'") == (policy["default-src"], policy["script-src"], policy["style-src"])
    for path in (
        "/page.py", "/../page.py", "/static/../page.py", "/%2e%2e/page.py", "//etc/passwd", "/nothing",
    ):  # fmt: skip
        assert 404 == get(path).status
    for query in ("", "?text=", f"?text={'x' * (LONGEST_LINK + 1)}", f"?text={'%e2%82%ac' * LONGEST_LINK}"):
        response = get(f"/qr.svg{query}")
        assert 400 == response.status
        assert b"text must have from 1 to 1000 bytes" in response.content
