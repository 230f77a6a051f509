"""Which client a request counts for, behind real reverse proxies: nobody gets a fresh rate limit by what they send.

Clients come from addresses of their own in 127.0.1.0/24, which is not trusted here. Proxies connect from 127.0.0.1, or
from 127.0.2.0/24, where it is of interest that one is counted.
"""

import itertools
import pathlib
from collections.abc import Callable, Iterator

import pytest

from support.addresses import Fields, assert_counted_as_one, assert_told_apart, create, create_all
from support.homeservers import running
from support.listeners import BURST, Listeners
from support.proxies import ReverseProxy
from synapse_rendezvous.demo.throwaway_homeserver import HOST

SET = "proxy_set_header X-Forwarded-For $remote_addr;"
APPEND = "proxy_set_header X-Forwarded-For $proxy_add_x_forwarded_for;"

_addresses = (f"127.0.1.{number}" for number in itertools.count(1))


@pytest.fixture
def clients() -> tuple[str, str]:
    """Two addresses that no other test has sent from."""
    return next(_addresses), next(_addresses)


Proxy = Callable[..., str]


@pytest.fixture
def proxy(tmp_path: pathlib.Path) -> Iterator[Proxy]:
    """Start reverse proxies that are ended with the test; each call returns the address of one."""
    started: list[ReverseProxy] = []

    def start(product: str, backend: str, lines: str = "") -> str:
        started.append(ReverseProxy(tmp_path, product, backend, lines))
        started[-1].start()
        return started[-1].url

    yield start
    for one in reversed(started):
        one.stop()


@pytest.mark.parametrize(
    "chain",
    [
        [("nginx", SET)],
        [("nginx", APPEND)],
        [("haproxy", "http-request set-header X-Forwarded-For %[src]")],
        [("haproxy", "option forwardfor")],  # a line of its own behind what the client wrote
        [("apache", "")],
        [("apache", "RequestHeader unset X-Forwarded-For")],
        [("caddy", "")],
        [("nginx", APPEND), ("haproxy", "option forwardfor")],
        [("nginx", APPEND), ("apache", "")],
        [("apache", ""), ("nginx", APPEND)],
        [("nginx", APPEND), ("caddy", f"trusted_proxies {HOST}")],
    ],
    ids=lambda chain: ">".join(f"{product}[{lines}]" for product, lines in chain),
)
def test_forged(listeners: Listeners, proxy: Proxy, clients: tuple[str, str], chain: list[tuple[str, str]]) -> None:
    """Whatever a client writes, it counts for its own address; each client has its own limit."""
    url = listeners.forwarded
    for product, lines in reversed(chain):
        url = proxy(product, url, lines)
    assert_told_apart(url, clients)


def test_proxy_that_says_nothing(listeners: Listeners, proxy: Proxy, clients: tuple[str, str]) -> None:
    """Without a line about it, nginx hands on what the client wrote, and nobody can know.

    This is why the line is in the README; and it shows that the forgeries of the other tests are effective.
    """
    url = proxy("nginx", listeners.forwarded)
    forged = [[("X-Forwarded-For", f"198.51.100.{number}")] for number in range(2 * BURST)]
    assert [200] * 2 * BURST == [create(url, clients[0], fields) for fields in forged]


def test_proxy_that_hides_clients(listeners: Listeners, proxy: Proxy, clients: tuple[str, str]) -> None:
    """Behind another proxy, Caddy names that one, unless told to trust it: all clients share a limit."""
    source = next(_addresses)
    url = proxy("nginx", proxy("caddy", listeners.forwarded), f"{APPEND} proxy_bind {source};")
    assert_counted_as_one(url, clients)


@pytest.mark.parametrize(("inner", "lines"), [("caddy", "trusted_proxies 127.0.2.0/24"), ("apache", "")])
def test_proxies_that_lose_the_header(
    listeners: Listeners, proxy: Proxy, clients: tuple[str, str], inner: str, lines: str
) -> None:
    """A client can make some proxies lose the header: it then counts for the proxy, with all who do so.

    HAProxy hands on that X-Forwarded-For shall go no further, and the next proxy obeys.
    """
    source = {"caddy": "127.0.2.2", "apache": "127.0.2.3"}[inner]
    url = proxy("haproxy", proxy(inner, listeners.forwarded, lines), f"option forwardfor\n source {source}")
    forger, honest = clients
    lost: Fields = [("Connection", "X-Forwarded-For")]
    attempts: dict[str, list[Fields]] = {forger: [lost] * (BURST + 1), honest: [[]] * (BURST + 1)}
    assert {forger: BURST, honest: BURST} == create_all(url, attempts)


def test_clients_in_a_trusted_network(listeners: Listeners, proxy: Proxy) -> None:
    """A client whose own address is trusted, as private ones are by default, counts for it, whatever it writes."""
    url = proxy("nginx", listeners.forwarded, APPEND)
    garbage: list[Fields] = [[("X-Forwarded-For", f"garbage{number}")] for number in range(BURST + 2)]
    attempts: dict[str, list[Fields]] = {"127.0.2.11": garbage, "127.0.2.12": [[]] * (BURST + 2)}
    assert dict.fromkeys(attempts, BURST) == create_all(url, attempts)


def test_translated_addresses(listeners: Listeners) -> None:
    """Clients behind a translator are as many as there are, and one client has one limit however it is written."""
    forms = ("64:ff9b::{}", "::ffff:{}", "{}", "64:ff9b:1:2::{}", "64:ff9b::{}")
    for host in ("203.0.113.201", "203.0.113.202"):
        codes = [create(listeners.forwarded, HOST, [("X-Forwarded-For", form.format(host))]) for form in forms]
        assert [200] * BURST + [429] * (len(forms) - BURST) == codes


def test_proxy_that_is_not_trusted(listeners: Listeners, proxy: Proxy, clients: tuple[str, str]) -> None:
    """A proxy outside `trusted_proxies` is itself the client, whatever it says."""
    url = proxy("nginx", listeners.forwarded, f"{SET} proxy_bind {next(_addresses)};")
    assert_counted_as_one(url, clients)


def test_no_proxy(listeners: Listeners, clients: tuple[str, str]) -> None:
    """Whoever connects to the listener counts for where they are, with `x_forwarded` or without."""
    assert_told_apart(listeners.forwarded, clients)
    assert_told_apart(listeners.plain, (next(_addresses), next(_addresses)))


def test_listener_without_x_forwarded(listeners: Listeners, proxy: Proxy, clients: tuple[str, str]) -> None:
    """A listener without `x_forwarded` does not look at the header: the proxy counts, for all its clients."""
    url = proxy("nginx", listeners.plain, f"{SET} proxy_bind 127.0.2.1;")
    assert_counted_as_one(url, clients)


@pytest.mark.parametrize(
    ("product", "backend", "lines"),
    [
        ("nginx", "http://unix:{}", SET),
        ("nginx", "http://unix:{}", APPEND),
        ("haproxy", "unix@{}", "option forwardfor"),
        ("caddy", "unix/{}", ""),
    ],
)
def test_unix_socket(
    listeners: Listeners, proxy: Proxy, clients: tuple[str, str], product: str, backend: str, lines: str
) -> None:
    """A unix socket has no address of its own; the header is believed as from a proxy that is trusted.

    Apache is left out: started by root, it works as another user, who cannot enter a test's folder.
    """
    assert_told_apart(proxy(product, backend.format(listeners.socket), lines), clients)


@pytest.mark.parametrize("backend", ["http://unix:{0.socket}", "{0.forwarded}"])
def test_proxy_that_names_nobody(listeners: Listeners, proxy: Proxy, clients: tuple[str, str], backend: str) -> None:
    """No limit for one client holds where a trusted proxy sends no header: one could use up everybody's."""
    url = proxy("nginx", backend.format(listeners), 'proxy_set_header X-Forwarded-For "";')
    assert [200] * 2 * BURST == [create(url, clients[0]) for _ in range(2 * BURST)]


def test_number_of_proxies(tmp_path: pathlib.Path, proxy: Proxy, clients: tuple[str, str]) -> None:
    """Told how many proxies there are instead of where, we count them, whatever else is in the header."""
    listeners = Listeners(tmp_path, trusted_proxies=2)
    with running(listeners.homeserver):
        url = proxy("nginx", proxy("haproxy", listeners.forwarded, "option forwardfor"), APPEND)
        assert_told_apart(url, clients)
