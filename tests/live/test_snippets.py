"""The configurations for reverse proxies: printed well, accepted by the proxies, and enough amidst hostile settings."""

import contextlib
import itertools
import json
import pathlib
import re
import socketserver
import subprocess
import threading
import time
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import attr
import pytest
import yaml

from support.addresses import assert_told_apart
from support.faulty_proxies import FAULTS, healthy, places
from support.http_client import ask
from support.listeners import Listeners
from support.pairing import Browser, Device, Phone, pair
from support.ports import free_port
from support.proxies import ReverseProxy, program_of
from support.recipes import ROOT
from synapse_rendezvous.__main__ import main
from synapse_rendezvous.config import RendezvousConfig
from synapse_rendezvous.demo.throwaway_homeserver import HOST
from synapse_rendezvous.paths import PREFIXES
from synapse_rendezvous.snippets.command import PRODUCTS, render

PATH = "/_synapse/client/rendezvous"
RUN = sorted(FAULTS)
"""The products that are run."""

_addresses = (f"127.0.1.{number}" for number in itertools.count(1))


# Printing


@pytest.mark.parametrize("product", PRODUCTS)
def test_contrib(product: str) -> None:
    """What stands in contrib/ is what the command prints."""
    (file,) = (ROOT / "contrib" / product).iterdir()
    mended_by = f"synapse-rendezvous snippet {product} > {file.relative_to(ROOT)}"
    assert render(product) == file.read_text(), mended_by


@pytest.mark.parametrize("product", PRODUCTS)
def test_values(product: str, capsys: pytest.CaptureFixture[str]) -> None:
    """The host, the address of Synapse and each path stand where the defaults stood; nothing is left to fill in."""
    paths = ["/_synapse/client/one", "/_matrix/client/unstable/io.element.msc4388/rendezvous", "/three"]
    options = ["--host", "chat.example.org", "--upstream", "[::1]:9", *itertools.chain(*(["--path", p] for p in paths))]
    assert main(["snippet", product, *options]) == 0
    printed = capsys.readouterr().out
    assert "chat.example.org" in printed
    assert "[::1]:9" in printed
    for path in paths:
        assert path in printed.replace("\\", "")
    default = render(product, paths=["/a"])
    assert not re.search(
        r"matrix\.example\.com|127\.0\.0\.1|_synapse.client.rendezvous|io.element.msc4388/r\b", printed
    )
    assert printed.count("/three") == default.count("/a")


def test_path_given_twice(capsys: pytest.CaptureFixture[str]) -> None:
    """It stands there once, for nginx refuses two locations of one name."""
    assert main(["snippet", "nginx", "--path", PATH, "--path", PATH]) == 0
    assert capsys.readouterr().out == render("nginx", paths=[PATH])


def test_default_paths() -> None:
    """By default they are those of the module."""
    dialects = RendezvousConfig().dialects
    mounted = [getattr(dialects, field.name).path for field in attr.fields(type(dialects))]
    assert {path for path in mounted if not any(path.startswith(f"{other}/") for other in mounted)} == set(PREFIXES)


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["squid"], "invalid choice: 'squid' (choose from"),
        ([], "required: product"),
        (["nginx", "--host", "https://matrix.example.com"], "must be a host name such as matrix.example.com"),
        (["nginx", "--host", "a b; }"], "must be a host name"),
        (["nginx", "--upstream", "http://127.0.0.1:8008"], "must be an address and a port such as 127.0.0.1:8008"),
        (["nginx", "--upstream", "127.0.0.1"], "must be an address and a port"),
        (["nginx", "--upstream", "127.0.0.1:65536"], "must be an address and a port"),
        (["nginx", "--upstream", "127.0.0.1:0"], "must be an address and a port"),
        (["nginx", "--upstream", "unix:/run/matrix.sock"], "for a unix socket"),
        (["nginx", "--path", "_synapse"], "must be a path such as /_synapse/client/rendezvous"),
        (["nginx", "--path", "/a/"], "must be a path"),
        (["nginx", "--path", "/a`) || Host(`b"], "must be a path"),
    ],
)
def test_bad_arguments(arguments: list[str], said: str, capsys: pytest.CaptureFixture[str]) -> None:
    """Whatever would not make a configuration is refused in words."""
    with pytest.raises(SystemExit) as ended:
        main(["snippet", *arguments])
    assert ended.value.code == 2
    assert said in capsys.readouterr().err


# Accepted by the products


def with_flood_guard(snippet: str) -> str:
    """Switch on what is written there but switched off: lines with no space behind the `#`."""
    switched = re.sub(r"^( *)#(?=\S)(?!:)", r"\1", snippet, flags=re.MULTILINE)
    assert switched != snippet
    return switched


def minimal(directory: pathlib.Path, product: str, snippet: str, backend: str) -> ReverseProxy:
    """Return a proxy that has this where it says itself that it belongs, and little else."""
    proxy = ReverseProxy(directory, product, backend, *places(product, snippet))
    if zone := re.search(r"limit_req_zone .*;", snippet):
        proxy.config.write_text(proxy.config.read_text().replace("http {", f"http {{ {zone[0]}", 1))
    return proxy


def check(tmp_path: pathlib.Path, product: str, snippet: str) -> None:
    """Let the product itself say whether it accepts this."""
    proxy = minimal(tmp_path, product, snippet, "http://127.0.0.1:9")
    arguments = {
        "nginx": ("-t", "-c", proxy.config, "-e", "/dev/stderr"),
        "haproxy": ("-c", "-f", proxy.config),
        "caddy": ("validate", "--adapter", "caddyfile", "--config", proxy.config),
        "apache": ("-t", "-f", proxy.config),
    }[product]
    checked = subprocess.run(
        [program_of(product), *arguments],
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
        env={"HOME": str(tmp_path)},
    )
    assert checked.returncode == 0, checked.stderr
    assert not re.search(r"\[warn\]|\[WARNING\]", checked.stderr), checked.stderr


@pytest.mark.parametrize("product", RUN)
@pytest.mark.parametrize(
    "values",
    [
        {},
        {"paths": [PATH]},
        {"paths": [*PREFIXES, "/_matrix/a.b-c~d/rendezvous"], "host": "203.0.113.1", "upstream": "[::1]:8008"},
    ],
    ids=["defaults", "path", "paths"],
)
def test_accepted(tmp_path: pathlib.Path, product: str, values: dict[str, Any]) -> None:
    """It is accepted as it is printed, with the defaults and with other values."""
    check(tmp_path, product, render(product, **values))


@pytest.mark.parametrize("product", ["nginx", "haproxy"])
def test_flood_guard_accepted(tmp_path: pathlib.Path, product: str) -> None:
    """It is accepted with what is written there against floods."""
    check(tmp_path, product, with_flood_guard(render(product)))


@pytest.mark.parametrize(
    ("product", "line", "instead"),
    [
        ("nginx", r"proxy_pass +http://127[^;]+;", r"proxy_pass http://unix:[^;]+;"),
        ("haproxy", r"server synapse 127.*", r"server synapse unix@.*"),
        ("caddy", r"reverse_proxy 127.*", r"reverse_proxy unix.*"),
        ("apache", r"ProxyPass /_synapse/client/rendezvous .*", r"ProxyPass /\.\.\. .*"),
    ],
)
def test_unix_socket_accepted(tmp_path: pathlib.Path, product: str, line: str, instead: str) -> None:
    """The line for a unix socket, which stands in a comment, is accepted instead of the other."""
    snippet = render(product, paths=[PATH])
    written = re.findall(instead, snippet)
    assert len(written) == 1
    check(tmp_path, product, re.sub(line, written[0].replace("/...", PATH), snippet))


@pytest.mark.parametrize("switched_on", [False, True])
def test_traefik(switched_on: bool) -> None:
    """There is no Traefik here; at least each name is one of its documentation, and each reference leads somewhere."""
    snippet = render("traefik", host="a.example.org", upstream="10.1.1.1:80")
    http_part = yaml.safe_load(with_flood_guard(snippet) if switched_on else snippet)["http"]
    assert set(http_part) == {"routers", "services", *(["middlewares"] if switched_on else [])}
    (router,) = http_part["routers"].values()
    (service,) = http_part["services"].values()
    assert set(router) == {
        *("rule", "priority", "entryPoints", "tls", "service"),
        *(["middlewares"] if switched_on else []),
    }
    paths = " || ".join(f"PathPrefix(`{path}`)" for path in PREFIXES)
    assert router["rule"] == f"Host(`a.example.org`) && ({paths})"
    assert service == {"loadBalancer": {"passHostHeader": True, "servers": [{"url": "http://10.1.1.1:80"}]}}
    assert router["service"] in http_part["services"]
    assert set(router.get("middlewares", [])) == set(http_part.get("middlewares", {}))
    if switched_on:
        assert http_part["middlewares"] == {"rendezvous-rate": {"rateLimit": {"average": 200, "burst": 400}}}


def test_proxies_outlast_waiting() -> None:
    """Proxies wait longer than any `long_poll.max_wait` that can be set; Caddy does so by itself."""
    RendezvousConfig.parse({"long_poll": {"max_wait": "60s"}})
    patterns = {
        "nginx": r"proxy_read_timeout +(\d+)s;",
        "haproxy": r"timeout server (\d+)s",
        "apache": r"timeout=(\d+) ",
    }
    for product, pattern in patterns.items():
        waits = re.findall(pattern, render(product))
        assert waits
        assert all(int(wait) > 60 for wait in waits)


# Amidst hostile settings


@pytest.fixture(scope="module", params=RUN)
def proxy(
    request: pytest.FixtureRequest, listeners: Listeners, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[ReverseProxy]:
    """A proxy that would break everything, but for what is printed for it."""
    proxy = healthy(tmp_path_factory.mktemp("proxy"), request.param, [listeners.forwarded])
    with proxy:
        yield proxy


# What a proxy may say by itself, and what concerns one connection. And Pragma, which repeats Cache-Control for programs
# of the last century; the hostile settings take it away.
_OF_EACH_HOP = {"connection", "date", "keep-alive", "pragma", "server", "transfer-encoding", "via"}

Seen = tuple[int, dict[str, list[str]], bytes]


def seen(device: Device, method: str, path: str, fields: Mapping[str, str], content: bytes | None = None) -> Seen:
    """Return status, all header fields and content of an answer."""
    status, headers, body = device.ask(method, path, fields, content)
    names = sorted({name.lower() for name in headers} - _OF_EACH_HOP)
    return status, {name: headers.getall(name, []) for name in names}, body


def test_same_as_synapse(listeners: Listeners, proxy: ReverseProxy) -> None:
    """Every answer arrives as Synapse sends it: each header field, once, and each byte. So reads are fresh, too."""
    address = next(_addresses)
    outside, inside = Device(proxy.url, address), Device(listeners.forwarded, address)
    text = {"Content-Type": "text/plain"}
    payload = b"a text that can be compressed " * 60

    def same(expected: int, method: str, path: str, fields: Mapping[str, str], content: bytes | None = None) -> Any:
        through, direct = (seen(device, method, path, fields, content) for device in (outside, inside))
        for _, headers, _ in (through, direct):
            if method == "HEAD" or through[0] in (204, 304):
                headers.pop("content-length", None)  # some leave it out where nothing follows
            if method == "OPTIONS":
                headers.pop("cache-control", None)  # Synapse itself does not send it
        assert through == direct
        assert through[0] == expected
        assert through[1]["access-control-allow-origin"] == ["*"]
        return through[1]

    def written(device: Device, payload: bytes, **conditions: str) -> str:
        status, headers, _ = seen(device, "PUT", session, {**text, **conditions}, payload)
        assert (status, headers["access-control-allow-origin"]) == (202, ["*"])
        (tag,) = headers["etag"]
        assert re.fullmatch('"[0-9a-z]{20}"', tag)
        return tag

    same(200, "GET", PATH, {})
    same(405, "PATCH", PATH, {}, b"")
    status, headers, body = seen(outside, "POST", PATH, text, payload)
    assert (status, headers["content-type"], headers["cache-control"]) == (
        200,
        ["application/json"],
        ["no-store, no-transform"],
    )
    assert headers["access-control-allow-origin"] == ["*"]
    session = f"{PATH}/{json.loads(body)['id']}"
    (first,) = headers["etag"]

    assert same(200, "GET", session, {})["content-type"] == ["text/plain"]
    same(200, "HEAD", session, {})
    assert same(304, "GET", session, {"If-None-Match": first})["etag"] == [first]
    second = written(inside, payload + b"2")
    assert same(200, "GET", session, {})["etag"] == [second]
    assert same(200, "GET", session, {"If-None-Match": first})["etag"] == [second]
    assert same(412, "PUT", session, {**text, "If-Match": first}, b"late")["etag"] == [second]
    third = written(outside, payload + b"3", **{"If-Match": second})
    assert same(304, "GET", session, {"If-None-Match": third})["etag"] == [third]
    same(413, "PUT", session, text, bytes(10241))
    same(400, "GET", f"{session}?timeout=x", {"If-None-Match": third})
    preflight = {"Origin": "https://app.example.org", "Access-Control-Request-Headers": "if-match"}
    allowed = same(204, "OPTIONS", session, {**preflight, "Access-Control-Request-Method": "PUT"})
    assert allowed["access-control-allow-headers"] == ["Content-Type, If-Match, If-None-Match"]
    assert seen(inside, "DELETE", session, {})[0] == 204
    same(404, "GET", session, {})
    same(404, "DELETE", session, {})


@pytest.mark.parametrize("kind", [Phone, Browser])
def test_pairing(proxy: ReverseProxy, kind: type[Device]) -> None:
    """The clients that people use pair."""
    pair(kind(proxy.url, next(_addresses)), kind(proxy.url, next(_addresses)))


def test_msc4388(proxy: ReverseProxy) -> None:
    """The path of MSC4388 is served as well."""
    device = Device(proxy.url, next(_addresses))
    status, headers, body = seen(device, "POST", PREFIXES[1], {}, b'{"data": "hello"}')
    assert (status, headers["access-control-allow-origin"]) == (200, ["*"])
    session = f"{PREFIXES[1]}/{json.loads(body)['id']}"
    assert json.loads(seen(device, "GET", session, {})[2])["data"] == "hello"
    allowed = seen(device, "OPTIONS", session, {})[1]["access-control-allow-headers"]
    assert "Authorization" in allowed[0]


def test_client_address(proxy: ReverseProxy) -> None:
    """The address that counts is the client's own, whatever it writes."""
    assert_told_apart(proxy.url, (next(_addresses), next(_addresses)))


def test_chunked(proxy: ReverseProxy) -> None:
    """A body that does not tell its length arrives."""
    address = next(_addresses)
    created = ask("POST", proxy.url + PATH, [b"one,", b"two"], Content_Type="text/plain", address=address)
    session = created.json()["id"]
    assert Device(proxy.url, address).ask("GET", f"{PATH}/{session}", {}).content == b"one,two"


def test_held(proxy: ReverseProxy) -> None:
    """A request that waits is held longer than the hostile settings allow, which is a second."""
    device = Device(proxy.url, next(_addresses))
    created = device.ask("POST", PATH, {}, b"")
    session = f"{PATH}/{json.loads(created.content)['id']}"
    started = time.monotonic()
    answer = device.ask("GET", f"{session}?timeout=2000", {"If-None-Match": created.headers["ETag"]})
    assert answer.status == 304
    assert time.monotonic() - started > 1


def assert_error_of_proxy(answer: Seen, statuses: Sequence[int], errcode: str) -> None:
    """Fail unless a page of another origin can read this."""
    assert answer[0] in statuses
    assert answer[1]["access-control-allow-origin"] == ["*"]
    (content_type,) = answer[1]["content-type"]
    assert content_type.startswith("application/json")
    assert json.loads(answer[2])["errcode"] == errcode


def assert_refuses_what_is_far_too_large(url: str) -> None:
    """Fail unless the proxy refuses it in words that pages can read, at our paths and at no other."""
    device = Device(url, next(_addresses))
    answer = seen(device, "POST", PATH, {"Content-Type": "text/plain"}, bytes(110_000))
    assert_error_of_proxy(answer, [413], "M_TOO_LARGE")
    assert b"refused by the reverse proxy" in answer[2]
    assert b"refused by the reverse proxy" not in seen(device, "POST", "/health", {}, bytes(110_000))[2]


def test_far_too_large(proxy: ReverseProxy) -> None:
    """What is far too large does not reach Synapse."""
    assert_refuses_what_is_far_too_large(proxy.url)


@pytest.mark.parametrize("product", RUN)
def test_nothing_else(tmp_path: pathlib.Path, listeners: Listeners, product: str) -> None:
    """What is printed is enough where nothing stands beside it, as well."""
    snippet = render(product, host=HOST, upstream=listeners.forwarded.removeprefix("http://"))
    proxy = minimal(tmp_path, product, snippet, listeners.forwarded)
    with proxy:
        assert_told_apart(proxy.url, (next(_addresses), next(_addresses)))
        assert_refuses_what_is_far_too_large(proxy.url)


class Breaking(socketserver.StreamRequestHandler):
    """A Synapse that breaks down while it answers."""

    def handle(self) -> None:
        """Called by socketserver."""
        self.rfile.readline()


class Hanging(Breaking):
    """A Synapse that does not answer in time."""

    def handle(self) -> None:
        """Called by socketserver."""
        self.rfile.read()  # till the proxy gives up


@pytest.mark.parametrize("surroundings", ["hostile", "minimal"])
@pytest.mark.parametrize("product", RUN)
def test_synapse_does_not_answer(tmp_path: pathlib.Path, listeners: Listeners, product: str, surroundings: str) -> None:
    """While Synapse is down, breaks down or hangs, pages can read the answer, and clients take it for what it is."""
    with contextlib.ExitStack() as stack:
        servers = [
            stack.enter_context(socketserver.ThreadingTCPServer((HOST, 0), kind)) for kind in (Breaking, Hanging)
        ]
        for server in servers:
            server.daemon_threads = True
            threading.Thread(target=server.serve_forever, daemon=True).start()
            stack.callback(server.shutdown)
        ports = {"down": free_port(), "breaking": servers[0].server_address[1], "hanging": servers[1].server_address[1]}
        if product == "caddy":
            del ports["hanging"]  # it waits for ever
        for port in ports.values():
            # Everything else is led to a homeserver that runs, or the proxy would not count as started.
            upstream = f"{HOST}:{port}"
            if surroundings == "hostile":
                proxy = healthy(tmp_path, product, [f"http://{upstream}", listeners.forwarded])
            else:
                proxy = minimal(tmp_path, product, render(product, host=HOST, upstream=upstream), listeners.forwarded)
            proxy.config.write_text(re.sub("(timeout[= a-z]+)75", r"\g<1>1", proxy.config.read_text()))
            proxy.start()
            stack.callback(proxy.stop)
            answer = seen(Device(proxy.url, next(_addresses)), "PUT", f"{PATH}/{'A' * 22}", {}, b"hello")
            assert_error_of_proxy(answer, (502, 503, 504), "M_UNKNOWN")
            assert answer[1]["retry-after"] == ["5"]


@pytest.mark.parametrize(
    ("product", "faster"),
    [("nginx", [("200r/s", "1r/s"), ("burst=400", "burst=4")]), ("haproxy", [("gt 2000", "gt 4")])],
)
def test_flood_guard(tmp_path: pathlib.Path, listeners: Listeners, product: str, faster: list[tuple[str, str]]) -> None:
    """What is written there against floods refuses with 429, one client and no other."""
    snippet = with_flood_guard(render(product, host=HOST, upstream=listeners.forwarded.removeprefix("http://")))
    for rate, slow in faster:
        assert rate in snippet
        snippet = snippet.replace(rate, slow)
    proxy = minimal(tmp_path, product, snippet, listeners.forwarded)
    with proxy:
        flooder, other = Device(proxy.url, next(_addresses)), Device(proxy.url, next(_addresses))
        statuses = [flooder.ask("GET", PATH, {}).status for _ in range(12)]
        assert set(statuses) == {200, 429}
        assert statuses[:4] == [200] * 4
        assert other.ask("GET", PATH, {}).status == 200
