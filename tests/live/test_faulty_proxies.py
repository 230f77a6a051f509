"""Who still pairs behind a proxy with a known fault: what docs/proxies.md says is true."""

import http.server
import itertools
import pathlib
import re
import threading
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor

import pytest

from support.addresses import assert_told_apart, create
from support.faulty_proxies import FAULTS, faulty
from support.http_client import ask
from support.listeners import BURST, Listeners
from support.pairing import MESSAGES, Browser, Device, PairingFailed, Phone, pair
from support.proxies import ReverseProxy
from support.recipes import DOCS
from synapse_rendezvous.demo.throwaway_homeserver import HOST, ThrowawayHomeserver

PAGE = (DOCS / "proxies.md").read_text()
PRODUCTS = ("nginx", "haproxy", "apache", "caddy")
PATH = "/_synapse/client/rendezvous"

_addresses = (f"127.0.1.{number}" for number in itertools.count(1))


def table() -> dict[str, dict[str, str]]:
    """Return the table of the page: product, fault, who pairs."""
    rows = re.findall(r"^\| `(\w+)` \|.*?\| ([^|]+) \| ([^|]+) \| ([^|]+) \| ([^|]+) \|$", PAGE, re.MULTILINE)
    return {
        product: {fault: cells[column] for fault, *cells in rows if cells[column] != "-"}
        for column, product in enumerate(PRODUCTS)
    }


TABLE = table()


Start = Callable[[str, str], ReverseProxy]


@pytest.fixture
def start(tmp_path: pathlib.Path, listeners: Listeners, homeserver: ThrowawayHomeserver) -> Iterator[Start]:
    """Start proxies with a fault, before two homeservers that know nothing of each other; they end with the test."""
    started: list[ReverseProxy] = []

    def start(product: str, fault: str) -> ReverseProxy:
        started.append(faulty(tmp_path, product, fault, [listeners.forwarded, homeserver.url]))
        started[-1].start()
        return started[-1]

    yield start
    for one in started:
        one.stop()


@pytest.fixture(scope="module")
def results() -> Iterator[dict[tuple[str, str], str]]:
    """Collects who pairs, and prints it at the end (`pytest -s`)."""
    results: dict[tuple[str, str], str] = {}
    yield results
    print(f"\n{'fault':20}" + "".join(f"{product:16}" for product in PRODUCTS))
    for fault in dict.fromkeys(fault for _, fault in results):
        print(f"{fault:20}" + "".join(f"{results.get((product, fault), '-'):16}" for product in PRODUCTS))


def test_table_is_complete() -> None:
    """The page has each fault that a product can have, and no other."""
    assert {product: set(faults) for product, faults in TABLE.items()} == {
        product: set(faults) for product, faults in FAULTS.items()
    }


def pairs(kind: type[Device], url: str) -> bool:
    """Whether two devices of a kind pair; says why not."""
    try:
        pair(kind(url, next(_addresses)), kind(url, next(_addresses)))
    except PairingFailed as failure:
        print(f"{kind.__name__}: {failure}")
        return False
    return True


@pytest.mark.parametrize(("product", "fault"), [(product, fault) for product in PRODUCTS for fault in FAULTS[product]])
def test_pairing(start: Start, results: dict[tuple[str, str], str], product: str, fault: str) -> None:
    """Phones and browsers pair where the page says so, and where it says that they do not, they do not."""
    url = start(product, fault).url
    who = {
        (True, True): "pairs",
        (True, False): "phones only",
        (False, True): "browsers only",
        (False, False): "**no**",
    }
    results[product, fault] = who[pairs(Phone, url), pairs(Browser, url)]
    assert results[product, fault] == TABLE[product][fault]


@pytest.mark.parametrize(
    ("product", "coding"),
    [
        *[("nginx", "gzip"), ("apache", "gzip"), ("apache", "br")],
        *[("caddy", "gzip"), ("caddy", "zstd")],
    ],
)
def test_compression(start: Start, product: str, coding: str) -> None:
    """Whatever a proxy makes of the tag when it compresses, the server knows it again."""
    device = Phone(start(product, "compression").url, next(_addresses))
    session = device.create()
    device.send(session, MESSAGES[0])
    read = device.ask("GET", session, {"Accept-Encoding": coding})
    assert read.headers["Content-Encoding"] == coding
    tag = read.headers["ETag"]
    assert device.ask("GET", session, {"Accept-Encoding": coding, "If-None-Match": tag}).status == 304
    text = {"Content-Type": "text/plain"}
    assert device.ask("PUT", session, {**text, "If-Match": tag}, MESSAGES[1]).status == 202
    assert device.ask("PUT", session, {**text, "If-Match": tag}, MESSAGES[2]).status == 412


@pytest.mark.parametrize("product", PRODUCTS)
def test_forwarded_appended(start: Start, product: str) -> None:
    """Where a proxy appends to what clients claim, each client still counts for its own address."""
    assert_told_apart(start(product, "forwarded_appended").url, (next(_addresses), next(_addresses)))


@pytest.mark.parametrize("product", PRODUCTS)
def test_forwarded_missing(start: Start, product: str) -> None:
    """Where a proxy does not name the client, nobody can limit it."""
    url, address = start(product, "forwarded_missing").url, next(_addresses)
    forged = [[("X-Forwarded-For", f"198.51.100.{number}")] for number in range(2 * BURST)]
    assert [200] * 2 * BURST == [create(url, address, fields) for fields in forged]


def test_cut(start: Start) -> None:
    """Where a proxy gives up after 5 seconds, who waits longer gets an error from it, and who waits less does not."""

    def wait(url: str, wait_ms: int) -> int:
        device = Device(url, next(_addresses))
        created = device.ask("POST", f"{PATH}/msc4108", {"Content-Type": "text/plain"}, b"")
        session = created.headers["Location"]
        return device.ask("GET", f"{session}?timeout={wait_ms}", {"If-None-Match": created.headers["ETag"]}).status

    urls = [start(product, "cut_at_5s").url for product in PRODUCTS]
    with ThreadPoolExecutor(2 * len(urls)) as pool:
        cut = pool.map(lambda url: wait(url, 9000), urls)
        in_time = pool.map(lambda url: wait(url, 1000), urls)
    assert dict(zip(PRODUCTS, cut, strict=True)) == {"nginx": 504, "haproxy": 504, "apache": 502, "caddy": 504}
    assert set(in_time) == {304}


class Forgetful(http.server.BaseHTTPRequestHandler):
    """Passes writes on and breaks down before it answers.

    Attributes:
        homeserver: the URL of where it passes them on to.
        statuses: of the answers that nobody got.
    """

    homeserver: str
    statuses: list[int]

    def log_message(self, *_arguments: object) -> None:
        """Called by http.server."""

    def do_PUT(self) -> None:
        """Called by http.server."""
        content = self.rfile.read(int(self.headers["Content-Length"]))
        self.statuses.append(ask("PUT", self.homeserver + self.path, content, self.headers.items()).status)
        self.close_connection = True


@pytest.mark.parametrize(
    ("product", "lines"),
    [
        ("nginx", ""),  # it does so by itself
        ("haproxy", "option http-buffer-request\nretry-on all-retryable-errors\noption redispatch 1"),
    ],
)
def test_repeated_put(tmp_path: pathlib.Path, listeners: Listeners, product: str, lines: str) -> None:
    """Where a proxy sends a write a second time, because the first answer was lost, the writer sees success."""
    statuses: list[int] = []
    device = Phone(listeners.forwarded, next(_addresses))
    session = device.create()
    handler = type("Handler", (Forgetful,), {"homeserver": listeners.forwarded, "statuses": statuses})
    with http.server.ThreadingHTTPServer((HOST, 0), handler) as forgetful:
        threading.Thread(target=forgetful.serve_forever, daemon=True).start()
        first = f"http://{HOST}:{forgetful.server_address[1]}"
        proxy = ReverseProxy(tmp_path, product, [first, listeners.forwarded], lines)
        try:
            proxy.start()
            outside = Phone(proxy.url, next(_addresses))
            outside.tag = device.tag
            for message in MESSAGES:  # by turns, so one of the servers is the forgetful one
                outside.send(session, message)
        finally:
            proxy.stop()
            forgetful.shutdown()
    assert statuses
    assert set(statuses) == {202}
    assert device.receive(session) == MESSAGES[-1]


@pytest.mark.parametrize("product", PRODUCTS)
def test_error_pages(start: Start, product: str) -> None:
    """Where a proxy replaces errors, who writes at the same time as the other does not learn the current tag."""
    device = Phone(start(product, "error_pages").url, next(_addresses))
    session = device.create()
    stale = {"Content-Type": "text/plain", "If-Match": str(device.tag)}
    device.send(session, b"first")
    answer = device.ask("PUT", session, stale, b"second")
    assert (answer.status, answer.etag) == (412, "")
    assert b"<html>" in answer.content
