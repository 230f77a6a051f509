"""`synapse-rendezvous check` behind real proxies: of good ones it has nothing to say, of bad ones what is bad alone.

All is checked once, much of it at the same time, in one process beside; the tests look at the reports.
"""

import contextlib
import json
import os
import pathlib
import re
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import pytest

from support.faulty_proxies import FAULTS, faulty, healthy
from support.homeservers import assert_clean, behind_proxy
from support.pairing import Browser, PairingFailed, Phone, pair
from support.ports import free_port
from support.programs import needs
from support.proxies import ReverseProxy
from support.recipes import ROOT
from support.servers import ENDLESS, UNLIMITED, WorkerStack
from synapse_rendezvous.__main__ import main
from synapse_rendezvous.check.client_address import FORGED_ADDRESS, evaluate_client_address
from synapse_rendezvous.check.configuration import ConfiguredDialects, check_configuration
from synapse_rendezvous.check.connection import ConnectionAddresses
from synapse_rendezvous.check.findings import Finding, Findings, Report
from synapse_rendezvous.check.probe import MAX_DURATION_S, MAX_REQUESTS
from synapse_rendezvous.check.problems import Level, Problem, problems
from synapse_rendezvous.check.products import PRODUCTS
from synapse_rendezvous.check.report import anonymize
from synapse_rendezvous.demo.throwaway_homeserver import HOST, ThrowawayHomeserver

pytestmark = [pytest.mark.timing, needs("redis-server", "redis-server"), needs("openssl", "openssl")]

PATH = "/_synapse/client/rendezvous"
MOVED = "/_synapse/client/moved"
OUTSIDE = "127.0.1.9"
"""An address that no homeserver here takes for that of a proxy."""

SERVING = {
    "trusted_proxies": [HOST],
    "per_client": UNLIMITED,
    **ENDLESS,
}

# What each fault is called. Where it stands for several products, those that do otherwise come with their names.
EXPECTED: dict[str, set[str]] = {
    "compression": {"etag.weakened"},
    "compression caddy": {"read.compressed"},  # 2.6 leaves the ETag as it is
    "charset": {"type.charset"},
    "cache nginx": {"poll.ignored"},  # it keeps nothing, but passes no If-None-Match on
    "cache apache": {"poll.headers"},  # it honours no-store, but takes Last-Modified from 304
    "forced_cache": {"cache.stale"},
    "forced_cache haproxy": {"cache.headers"},  # Vary: * keeps it from using what it keeps
    "forced_cache apache": {"cache.headers", "poll.headers"},  # any PUT that it sees ends what it keeps
    "duplicate_cors": {"cors.duplicate"},
    "options_intercepted": {"cors.preflight.headers"},
    "error_pages": {"errors.replaced"},
    "body_limit": {"body.limit"},
    "forwarded_appended": set(),  # the server reads the header from the right
    "forwarded_missing": {"address.unknown"},
    "cut_at_5s": {"wait.cut"},
    "no_ids": {"route.ids"},
    "two_processes": {"route.split"},
    "etag_removed": {"etag.removed"},
}

# What one nginx does to the path of this name, and what that is called.
LOCATIONS: dict[str, tuple[str, set[str]]] = {
    "moved": ("return 301 https://elsewhere.example/;", {"route.redirect"}),
    "login": ("return 401;", {"route.login"}),
    "down": ("proxy_pass http://127.0.0.1:1;", {"route.down"}),
    "page": ("return 404;", {"route.not_passed"}),
    "app": ("default_type text/html; return 200 '<html></html>';", {"route.not_passed"}),
    "teapot": ("return 418;", {"route.unexpected"}),
    "unrouted": ("%(pass)s/_synapse/client/other;", {"route.not_loaded"}),
    "other": ("%(pass)s/_synapse/client/io.element.msc4388/rendezvous;", {"route.dialect"}),
    "methods": (
        "if ($request_method = OPTIONS) { add_header Access-Control-Allow-Origin *;"
        ' add_header Access-Control-Allow-Headers "content-type, if-match, if-none-match"; return 204; } %(ours)s',
        {"cors.preflight.methods"},
    ),
    "read_only": ("limit_except GET { deny all; } %(ours)s", {"route.method"}),
    "hardened": ("limit_except GET POST { deny all; } %(ours)s", {"cors.preflight.status", "route.method"}),
    "undeletable": ("limit_except GET POST PUT OPTIONS { deny all; } %(ours)s", {"route.method"}),
    "uncreated": ("if ($request_method = POST) { return 500; } %(ours)s", {"create.failed"}),
    "unread": ("if ($uri ~ unread/.) { return 500; } %(ours)s", {"read.failed"}),
    "unwritten": ("if ($request_method = PUT) { return 500; } %(ours)s", {"write.failed"}),
    "headless": ("if ($request_method = HEAD) { return 405; } %(ours)s", {"end.head"}),
    "endless": ("if ($request_method = DELETE) { return 500; } %(ours)s", {"end.failed"}),
    "rewritten": (
        "sub_filter_types *; sub_filter Payload payload; %(ours)s",
        {"etag.removed", "read.changed", "poll.headers"},
    ),
    "unconditional": ('proxy_set_header If-Match ""; %(ours)s', {"write.unconditional"}),
    "unpolled": ('proxy_set_header If-None-Match ""; %(ours)s', {"poll.ignored"}),
    "expiring": ("expires 1h; %(ours)s", {"cache.headers", "headers.expires"}),
    "hidden": ("proxy_hide_header Access-Control-Expose-Headers; %(ours)s", {"cors.expose"}),
    "uncors": ("proxy_hide_header Access-Control-Allow-Origin; %(ours)s", {"cors.missing"}),
    "undated": ("proxy_hide_header Last-Modified; %(ours)s", {"headers.missing", "poll.headers"}),
    "unguarded": (
        "proxy_hide_header X-Content-Type-Options; proxy_hide_header Content-Security-Policy; %(ours)s",
        {"security.headers"},
    ),
    "retyped": (
        "proxy_hide_header Content-Type; add_header Content-Type application/json; %(ours)s",
        {"type.changed"},
    ),
    "twice": ("add_header Expires $upstream_http_expires always; %(ours)s", {"headers.duplicate"}),
    "unasked": ('set $args ""; %(ours)s', {"wait.early"}),
}

Reports = dict[str, dict[str, Any]]


def serve(directory: pathlib.Path, name: str, config: dict[str, Any], **settings: Any) -> ThrowawayHomeserver:
    """Return a homeserver that listens as behind a proxy, with these options of the module."""
    folder = directory / name
    folder.mkdir()
    return behind_proxy(folder, {**SERVING, **config}, settings)


DENIED = "127.0.4.1"


def serve_oddly(directory: pathlib.Path, elsewhere: str) -> ThrowawayHomeserver:
    """Return a homeserver whose options are unusual.

    It compares tags strictly, serves MSC3886 where Synapse does not let browsers send conditions, hands out URLs that
    lead to another homeserver, has few reads of a session, lets nobody create by MSC4108, and lets nobody wait.
    """
    return serve(
        directory,
        "odd",
        {
            "strict_etags": True,
            "long_poll": {"max_wait": 0},
            "per_session": {"read": {"per_second": 0.001, "burst_count": 8}, "write": UNLIMITED["read"]},
            "deny": [DENIED],
            "dialects": {
                "msc3886": {"path": MOVED},
                "msc4108": {"path": PATH, "create_policy": "closed"},
            },
        },
        public_baseurl=f"{elsewhere}/",
    )


DELAY_S = 1.2
"""How much later the slow server hands on what is said."""


class Deaf:
    """A server that accepts connections and says nothing; or, with a backend, hands on what is said, a little later.

    Attributes:
        url: its address.
    """

    def __init__(self, backend: str | None = None, delay_s: float = 0) -> None:
        self._backend = None if backend is None else (HOST, int(backend.rpartition(":")[2]))
        self._delay_s = delay_s
        self._listener = socket.create_server((HOST, 0))
        self._open: list[socket.socket] = []
        self.url = f"http://{HOST}:{self._listener.getsockname()[1]}"
        threading.Thread(target=self._accept, daemon=True).start()

    def stop(self) -> None:
        """End all connections."""
        for one in [self._listener, *self._open]:
            with contextlib.suppress(OSError):
                one.shutdown(socket.SHUT_RDWR)
            one.close()

    def _accept(self) -> None:
        with contextlib.suppress(OSError):
            while True:
                client, _ = self._listener.accept()
                self._open.append(client)
                if self._backend:
                    server = socket.create_connection(self._backend)
                    self._open.append(server)
                    threading.Thread(target=self._relay, args=(client, server, 0), daemon=True).start()
                    threading.Thread(target=self._relay, args=(server, client, self._delay_s), daemon=True).start()

    @staticmethod
    def _relay(source: socket.socket, target: socket.socket, delay_s: float) -> None:
        with contextlib.suppress(OSError):
            while data := source.recv(65536):
                time.sleep(delay_s)
                target.sendall(data)
            target.shutdown(socket.SHUT_WR)


def certificate(directory: pathlib.Path, name: str, *, days: int) -> None:
    """Make a certificate for localhost: NAME.pem, and its key, NAME.key."""
    subject = ["-subj", "/CN=localhost", "-addext", "subjectAltName=DNS:localhost", "-days", str(days)]
    command = ["openssl", "req", "-x509", "-newkey", "rsa:2048", "-nodes", *subject]
    files = ["-out", f"{name}.pem", "-keyout", f"{name}.key"]
    subprocess.run([*command, *files], check=True, stderr=subprocess.DEVNULL, cwd=directory)


class Scene:
    """All that is checked here.

    Attributes:
        checks: the options of each check, by its name.
        urls: where the proxies of the matrix are, by product and fault.
        trust: the file of the certificates that are trusted.
    """

    def __init__(self, directory: pathlib.Path) -> None:
        self.checks: dict[str, dict[str, Any]] = {}
        self.urls: dict[str, str] = {}
        self.trust = directory / "trust.pem"
        self.homeserver = serve(directory, "first", {"long_poll": {"max_wait": "1s"}})
        self.patient = serve(directory, "second", {"long_poll": {"max_wait": "6s"}})
        self.odd = serve_oddly(directory, self.homeserver.url)
        self._directory = directory
        self._running: list[Any] = []

    def stop(self) -> None:
        """End everything."""
        for one in reversed(self._running):
            one.stop()

    def start(self) -> None:
        """Start everything."""
        workers = self._directory / "workers"
        workers.mkdir()
        stack = WorkerStack(workers, config={"trusted_proxies": [], "long_poll": {"max_wait": "1s"}}, nginx=True)
        with ThreadPoolExecutor() as pool:
            list(pool.map(self._run, (self.homeserver, self.patient, self.odd, stack)))
        self.add("slow", Deaf(self.homeserver.url, DELAY_S))  # first, for it takes longest
        self.add("silent", Deaf())
        self.add("direct", self.homeserver.url)
        self.add("direct msc4108", f"{self.homeserver.url}{PATH}/msc4108/")
        self.add("workers", stack.url)
        self.add("worker", stack.workers[0].url)
        self.add("nobody", f"http://{HOST}:1")
        self.add("nowhere", "https://nowhere.invalid")
        self._add_matrix()
        self._add_locations()
        self._add_odd()
        self._add_tls()

    def add(self, name: str, url: Any, **options: Any) -> None:
        """Have something checked."""
        if isinstance(url, Deaf):
            self._running.append(url)
            url = url.url
        self.checks[name] = {"target": url, **options}

    def _run(self, program: Any) -> Any:
        program.start()
        self._running.append(program)
        return program

    def _add_matrix(self) -> None:
        for product, faults in FAULTS.items():
            proxy = self._run(healthy(self._directory, product, [self.homeserver.url]))
            # It keeps all other paths from the homeserver.
            self.add(f"{product} healthy", proxy.url + PATH, source=OUTSIDE)
            for fault in faults:
                backends = [self.patient.url, self.homeserver.url]
                backends = backends if fault == "cut_at_5s" else backends[::-1]
                proxy = self._run(faulty(self._directory, product, fault, backends))
                self.urls[f"{product} {fault}"] = proxy.url
                self.add(f"{product} {fault}", proxy.url, source=OUTSIDE)
        chunked = "http-request deny deny_status 400 if { req.hdr(Transfer-Encoding) -m found }"
        lines = f"{chunked}\noption forwardfor"
        self.add("unchunked", self._run(ReverseProxy(self._directory, "haproxy", self.homeserver.url, lines)).url)

    def _add_locations(self) -> None:
        forward = f"proxy_set_header X-Forwarded-For $remote_addr; proxy_pass {self.homeserver.url}"
        words = {"pass": forward, "ours": f"{forward}{PATH};"}
        outer = "\n".join(f"location /{name} {{ {lines % words} }}" for name, (lines, _) in LOCATIONS.items())
        proxy = self._run(ReverseProxy(self._directory, "nginx", self.homeserver.url, outer=outer))
        for name in LOCATIONS:
            self.add(f"at {name}", f"{proxy.url}/{name}")

    def _add_odd(self) -> None:
        lines = "proxy_set_header X-Forwarded-For $remote_addr; " + FAULTS["nginx"]["compression"].lines
        proxy = self._run(ReverseProxy(self._directory, "nginx", self.odd.url, lines))
        self.add("odd", proxy.url + MOVED)
        self.add("odd, read too often", self.odd.url + MOVED)
        self.add("odd, denied", proxy.url + MOVED, source=DENIED)
        self.add("odd, closed", proxy.url + PATH)

    def _add_tls(self) -> None:
        """Have nginx speak TLS with a certificate that is good, one that ends soon, and one that nobody trusts."""
        ports = {"good": free_port(), "ending": free_port(), "strange": free_port()}
        for name, port in ports.items():
            certificate(self._directory, str(port), days=5 if name == "ending" else 90)
        trusted = [self._directory / f"{ports[name]}.pem" for name in ("good", "ending")]
        self.trust.write_text("".join(file.read_text() for file in trusted))
        well_known = f'{{"m.homeserver": {{"base_url": "https://localhost:{ports["good"]}/"}}}}'
        outer = f"""
            {" ".join(f"listen {HOST}:{port} ssl;" for port in ports.values())}
            ssl_certificate {self._directory}/$server_port.pem; ssl_certificate_key {self._directory}/$server_port.key;
            location = /.well-known/matrix/client {{
                if ($server_port = {ports["good"]}) {{ return 200 '<html></html>'; }}
                default_type application/json; return 200 '{well_known}';
            }}"""
        lines = "proxy_set_header X-Forwarded-For $remote_addr;"
        self._run(ReverseProxy(self._directory, "nginx", self.homeserver.url, lines, outer))
        for name, port in ports.items():
            self.add(f"tls {name}", f"https://localhost:{port}")
        self.add("server name", f"localhost:{ports['ending']}", family="IPV4")
        self.add("server name, unknown", f"localhost:{ports['good']}")


@pytest.fixture(scope="module")
def scene(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Scene]:
    """All homeservers and proxies."""
    directory = tmp_path_factory.mktemp("scene")
    scene = Scene(directory)
    try:
        scene.start()
        yield scene
    finally:
        scene.stop()
    assert_clean(scene.homeserver)
    assert_clean(scene.odd)


@pytest.fixture(scope="module")
def reports(scene: Scene) -> Reports:
    """The reports, by the names of the checks."""
    done = subprocess.run(
        [sys.executable, str(ROOT / "tests" / "support" / "check_many.py")],
        input=json.dumps(list(scene.checks.values())),
        capture_output=True,
        text=True,
        timeout=240,
        env={**os.environ, "SSL_CERT_FILE": str(scene.trust)},
    )
    assert "" == done.stderr
    return dict(zip(scene.checks, json.loads(done.stdout), strict=True))


def found(report: dict[str, Any]) -> set[str]:
    """Return the ids of what is wrong."""
    levels = ("warning", "blocked", "failure")
    return {finding["id"] for finding in report["findings"] if finding["level"] in levels}


def untested(report: dict[str, Any]) -> set[str]:
    return {finding["section"] for finding in report["findings"] if finding["level"] == "not tested"}


def said(report: dict[str, Any], finding_id: str) -> str:
    """Return all that is said under an id."""
    parts = [finding for finding in report["findings"] if finding["id"] == finding_id]
    lines = [line for finding in parts for line in (finding["title"], *finding["evidence"], finding["fix"])]
    return "\n".join(lines)


def assert_fine(report: dict[str, Any], *, but: set[str] = frozenset()) -> None:  # type: ignore[assignment]
    """Fail unless all was tested, but for some sections, and is as it should be."""
    assert set() == found(report)
    assert "fine" == report["verdict"]
    always = {"reach", "sign_in"}  # over http://, TLS is not tested; some proxies keep all but our paths away
    assert but | always == untested(report) | always
    assert report["requests"] <= MAX_REQUESTS


def pairing(url: str) -> str:
    """Return whether two strict clients pair, a phone and a browser, whichever comes first."""
    try:
        for first, second in ((Phone, Browser), (Browser, Phone)):
            pair(first(url, OUTSIDE), second(url, OUTSIDE))
    except PairingFailed as failed:
        return f"fails: {failed}"
    return "works"


MATRIX = [f"{product} {fault}" for product, faults in FAULTS.items() for fault in faults]


def expected(name: str) -> set[str]:
    """Return what the fault of a product is called."""
    product, _, fault = name.partition(" ")
    return EXPECTED[f"{fault} {product}" if f"{fault} {product}" in EXPECTED else fault]


@pytest.mark.parametrize("name", MATRIX)
def test_fault(reports: Reports, name: str) -> None:
    """Each fault of each product is found, nothing else is, and the fix is that for the product."""
    report, product = reports[name], name.partition(" ")[0]
    assert expected(name) == found(report)
    for finding_id in found(report):
        known = problems()[finding_id]
        assert known.by_product[product] in said(report, finding_id)
    if not found(report):
        assert_fine(report)


def test_matrix(scene: Scene, reports: Reports) -> None:
    """A check says that it is broken where strict clients do not pair, and nowhere else; this prints the table."""
    for name in MATRIX:
        outcome = pairing(scene.urls[name])
        product, _, fault = name.partition(" ")
        print(f"{product:8} {fault:20} {', '.join(sorted(found(reports[name]))) or '-':25} pairing {outcome}")
        assert (outcome == "works") == (reports[name]["verdict"] != "broken")


@pytest.mark.parametrize("product", FAULTS)
def test_healthy(reports: Reports, product: str) -> None:
    """Behind our configuration amidst the worst of settings, all is fine."""
    assert_fine(reports[f"{product} healthy"])


def test_direct(reports: Reports) -> None:
    """Without a proxy all is fine, in either dialect; it is only not known what a proxy says of its clients."""
    assert_fine(reports["direct"], but={"address"})
    assert_fine(reports["direct msc4108"], but={"address"})


def test_workers(reports: Reports) -> None:
    """Several processes are fine where they share sessions."""
    assert_fine(reports["workers"])
    assert "2 processes answered, which share sessions" in said(reports["workers"], "process")
    assert {"reach.versions"} == found(reports["worker"])  # it has nothing but the module


def test_redirect(reports: Reports) -> None:
    """Where a redirect leads is told."""
    assert "to https://elsewhere.example/" in said(reports["at moved"], "route.redirect")


@pytest.mark.parametrize("name", LOCATIONS)
def test_location(reports: Reports, name: str) -> None:
    """What one line of nginx breaks."""
    assert LOCATIONS[name][1] == found(reports[f"at {name}"])


def test_refused_body(reports: Reports) -> None:
    """Bodies without a length are tried."""
    assert {"body.chunked"} == found(reports["unchunked"])


def test_odd(reports: Reports) -> None:
    """What the options of the module can do to clients."""
    assert {"cors.preflight.headers", "create.url", "etag.weakened", "etag.rejected"} == found(reports["odd"])
    assert {"wait", "fresh", "sizes", "end"} <= untested(reports["odd"])
    limited = reports["odd, read too often"]
    assert {"cors.preflight.headers", "create.url", "route.limited"} == found(limited)
    assert {"wait", "sizes", "address", "end"} == untested(limited) - {"reach"}
    denied, closed = reports["odd, denied"], reports["odd, closed"]
    assert ({"route.denied"}, "not tested") == (found(denied), denied["verdict"])
    assert ({"create.refused"}, "not tested") == (found(closed), closed["verdict"])


def test_unreachable(reports: Reports) -> None:
    """What cannot be tested is not reported as failed."""
    for name, reason in (("nobody", "connect"), ("nowhere", "dns"), ("silent", "timeout")):
        report = reports[name]
        assert ({f"reach.{reason}"}, "not tested") == (found(report), report["verdict"])
        assert {"route", "create", "address", "end"} <= untested(report)


def test_bounds(reports: Reports) -> None:
    """A slow server is given up in time, and what was not tested is not called wrong."""
    slow = reports["slow"]
    assert ({"reach.slow"}, "not tested") == (found(slow), slow["verdict"])
    assert "a check ends after 20 s" in said(slow, "end")
    # All of it would have taken at least as many delays as there are requests where nothing is slow.
    whole_s = reports["direct"]["requests"] * DELAY_S
    assert MAX_DURATION_S < whole_s * 2 / 3
    for report in reports.values():
        assert report["requests"] <= MAX_REQUESTS
        assert report["seconds"] < whole_s


def test_tls(reports: Reports) -> None:
    """Certificates are looked at; the well-known file of a server name is followed."""
    assert_fine(reports["tls good"])
    assert re.search(r"TLS valid for (89|90) days", said(reports["tls good"], "reach"))
    assert {"reach.tls_expiry"} == found(reports["tls ending"])
    assert ({"reach.tls"}, "broken") == (found(reports["tls strange"]), reports["tls strange"]["verdict"])
    named = reports["server name"]
    assert {"reach.well_known_cors"} == found(named)
    assert reports["tls good"]["url"] == named["url"]
    unknown = reports["server name, unknown"]
    assert ({"reach.well_known"}, "broken") == (found(unknown), unknown["verdict"])


def test_every_problem_is_found_somewhere(reports: Reports) -> None:
    """What is documented is found by a test, but for what no real part here can bring about."""
    seen = set().union(*map(found, reports.values()))
    elsewhere = ("config.", "sign_in.")  # test_configuration; test_check_sign_in.py
    rest = {finding_id for finding_id in problems() if not finding_id.startswith(elsewhere)} - seen
    assert {
        "address.forged",  # needs an address of the internet; see test_address
        "address.proxy",
        "clock.skew",
        "create.unavailable",
        "etag.replaced",
        "reach.family",
        "route.builtin",
        "write.replay",
    } == rest


PUBLIC = ConnectionAddresses("198.41.0.4", "1.1.1.1")
AT_HOME = ConnectionAddresses("192.168.1.5", "1.1.1.1")
NEAR = ConnectionAddresses("192.168.1.5", "192.168.1.2")
IPV6 = ConnectionAddresses("2606:4700::5", "2606:4700::1")
LOOPBACK = ConnectionAddresses("127.0.0.1", "127.0.0.1")


@pytest.mark.parametrize(
    ("connection", "seen", "seen_if_forged", "is_direct", "verdict"),
    [
        (PUBLIC, "198.41.0.4", "198.41.0.4", False, "ok"),
        (PUBLIC, "198.41.0.4", FORGED_ADDRESS, False, "address.forged"),
        (PUBLIC, "unknown", "unknown", False, "address.unknown"),
        (PUBLIC, "unknown", FORGED_ADDRESS, False, "address.unknown"),
        (PUBLIC, "172.18.0.1", "172.18.0.1", False, "address.proxy"),
        (PUBLIC, "1.1.1.1", "1.1.1.1", False, "address.proxy"),
        (PUBLIC, "2606:4700::/64", "2606:4700::/64", False, "ok"),  # translated on the way
        (PUBLIC, "exempt", "exempt", False, "not tested"),
        (AT_HOME, "198.41.0.4", "198.41.0.4", False, "ok"),
        (AT_HOME, "198.41.0.4", FORGED_ADDRESS, False, "address.forged"),
        (AT_HOME, "172.18.0.1", "172.18.0.1", False, "not tested"),  # a router may make it look so
        (AT_HOME, "192.168.1.1", FORGED_ADDRESS, False, "not tested"),
        (NEAR, "192.168.1.5", "192.168.1.5", False, "ok"),
        (NEAR, "192.168.1.5", FORGED_ADDRESS, False, "not tested"),
        (NEAR, "unknown", "unknown", True, "not tested"),
        (NEAR, "unknown", FORGED_ADDRESS, False, "address.unknown"),
        (IPV6, "2606:4700::/64", "2606:4700::/64", False, "ok"),
        (IPV6, "2606:4700:0:1::/64", "2606:4700:0:1::/64", False, "address.proxy"),
        (LOOPBACK, "127.0.0.1", FORGED_ADDRESS, False, "not tested"),
    ],
)
def test_address(
    connection: ConnectionAddresses, seen: str, seen_if_forged: str, is_direct: bool, verdict: str
) -> None:
    """Nobody is alarmed who is in the proxy's own network, and everybody who is not counted for themselves is."""
    assert verdict == evaluate_client_address(connection, seen, seen_if_forged, is_direct=is_direct)[0]


def run(*arguments: str, **environment: str) -> tuple[int, str, str]:
    """Run the command; return its exit status, what it wrote, and what it complained of."""
    done = subprocess.run(
        [sys.executable, "-m", "synapse_rendezvous", "check", *arguments],
        capture_output=True,
        text=True,
        encoding="utf-8",
        timeout=60,
        env={**os.environ, "PYTHONIOENCODING": "utf-8", **environment},
    )
    return done.returncode, done.stdout, done.stderr


def test_command_fine(scene: Scene) -> None:
    """Where all is fine, each part takes a line, and the last one says so."""
    config = str(scene.homeserver.log.parent / "homeserver.yaml")
    status, text, complaints = run(scene.homeserver.url, "-c", config)
    assert (0, "") == (status, complaints)
    for line in (
        "✅ Configuration:  homeserver.yaml: the module is loaded once, and all of its options are right",
        "✅ Fresh:          a new message is seen at once",
        "Not tested: Client address (the server was asked directly, not through the reverse proxy)",
    ):
        assert line in text
    assert re.fullmatch(r"Everything a client needs works\. \d\d requests, \d+\.\d s\.", text.splitlines()[-1])
    assert "\033" not in text


def test_command_broken(scene: Scene) -> None:
    """What is wrong is told with what was seen, who answered, the fix and the effect; also without other signs."""
    status, text, _ = run(scene.urls["nginx options_intercepted"], PYTHONIOENCODING="ascii")
    assert 2 == status
    for line in (
        "  FAIL browsers may not send Content-Type, If-Match and If-None-Match",
        "       got: Access-Control-Allow-Headers: Origin, X-Requested-With, Content-Type, Accept, Authorization",
        "       by:     Server: nginx/",
        "       fix (nginx): in the location, remove the block `if ($request_method = OPTIONS) { ... }`",
        "               or take it all from:  synapse-rendezvous snippet nginx",
        "       effect: web clients (Element Web and Desktop) fail; others work",
        "       more:   docs/check.md#preflight  cors.preflight.headers",
        "1 problem: web clients (Element Web and Desktop) fail; others work.",
    ):
        assert line in text


def test_command_warns(scene: Scene) -> None:
    """For strangers, hosts and addresses are left out; for programs there is JSON."""
    url = scene.urls["caddy compression"].replace(HOST, "localhost")
    status, text, _ = run(url, "--json", "--anonymize", "--ipv4", "--origin", "https://web.example")
    report = json.loads(text)
    assert (1, "warnings", {"read.compressed"}) == (status, report["verdict"], found(report))
    assert {"url", "verdict", "requests", "seconds", "findings"} == set(report)
    for finding in report["findings"]:
        assert {"id", "section", "level", "title", "evidence", "fix", "effect", "doc"} == set(finding)


def test_command_refuses(capsys: pytest.CaptureFixture[str]) -> None:
    """What cannot be checked is said in a sentence."""
    for url in ("ftp://matrix.example.com", "https://", "https://a.example/?x=1", "https://user:word@a.example", "ä b"):
        assert 3 == main(["check", url])
        text, complaints = capsys.readouterr()
        assert "" == text
        assert "cannot be checked. Give the homeserver's URL, such as https://matrix.example.com" in complaints


def test_anonymize() -> None:
    """No name and no address of the server or of whoever asks is left; those of this machine and of examples stay."""
    seen = (
        "matrix.secret.org is 198.41.0.4 and 2606:4700::1111, MATRIX.secret.org:8448, https://other.secret.org/x",
        f"127.0.0.1 [::1] {FORGED_ADDRESS} 12:34:56 nginx/1.22.1 Sat, 01 Jan 2028 10:00:00 GMT 198.41.0.4",
    )
    finding = Finding("reach", "reach", Level.OK, "2606:4700:0:1::/64", seen, "Via: 1.1 matrix.secret.org")
    report = anonymize(Report("https://matrix.secret.org/x", None, [finding], 1, 1))
    (blind,) = report.findings
    assert "https://homeserver.example/x" == report.url
    assert ("address-1/64", "Via: 1.1 homeserver.example") == (blind.title, blind.server_fields)
    assert (
        "homeserver.example is address-2 and address-3, homeserver.example:8448, https://homeserver.example/x",
        f"127.0.0.1 [::1] {FORGED_ADDRESS} 12:34:56 nginx/1.22.1 Sat, 01 Jan 2028 10:00:00 GMT address-2",
    ) == blind.evidence


MODULE = "synapse_rendezvous.RendezvousModule"
BASE = "https://matrix.example.com"
SOUND: dict[str, Any] = {
    "server_name": "example.com",
    "report_stats": False,
    "public_baseurl": f"{BASE}/",
    "listeners": [{"port": 8008, "type": "http", "x_forwarded": True, "resources": [{"names": ["client"]}]}],
    "modules": [{"module": "another.Module"}, {"module": MODULE, "config": {}}],
}


@pytest.mark.parametrize(
    ("change", "problem", "evidence"),
    [
        ({}, None, ""),
        ({"modules": [{"module": MODULE}]}, None, ""),
        ({"modules": None}, "config.module_missing", "loaded: nothing"),
        ({"modules": [{"module": MODULE}] * 2}, "config.module_twice", ""),
        (
            {"modules": [{"module": MODULE, "config": {"tll": "5m"}}]},
            "config.options",
            "tll: unknown option; did you mean",
        ),
        ({"experimental_features": {"msc4108_enabled": True}}, "config.msc4108_enabled", "/_synapse/client/rendezvous"),
        ({"public_baseurl": None}, "config.public_baseurl", "it is https://example.com; checked is https://matrix"),
        ({"listeners": [{**SOUND["listeners"][0], "x_forwarded": False}]}, "config.x_forwarded", "port 8008"),
        ({"instance_map": {"main": {}}}, "config.workers_memory", "store: auto; Redis off"),
        ({"instance_map": {"main": {}}, "redis": {"enabled": True}}, None, ""),
    ],
)
def test_configuration(tmp_path: pathlib.Path, change: dict[str, Any], problem: str | None, evidence: str) -> None:
    """What homeserver.yaml has against pairing."""
    config = tmp_path / "homeserver.yaml"
    config.write_text(json.dumps({**SOUND, **change}))
    findings = Findings()
    dialects = check_configuration([str(config)], BASE, findings)
    told = [finding for finding in findings.complete(None, PATH, "") if finding.section == "configuration"]
    if problem is None:
        assert [Level.OK] == [finding.level for finding in told]
        assert ConfiguredDialects(PATH, frozenset({"msc3886", "msc4108", "msc4388"})) == dialects
    else:
        assert [problem] == [finding.id for finding in told]
        assert evidence in "\n".join(told[0].evidence)


@pytest.mark.parametrize("content", ["modules: [", "- a list", "", None])
def test_unreadable_configuration(tmp_path: pathlib.Path, content: str | None) -> None:
    """A file that is no configuration is one problem."""
    if content is not None:
        (tmp_path / "homeserver.yaml").write_text(content)
    findings = Findings()
    check_configuration([str(tmp_path / "homeserver.yaml")], BASE, findings)
    assert "config.unreadable" in findings


def test_moved_by_configuration(tmp_path: pathlib.Path) -> None:
    """The path is that of the configuration; it may stand in several files of a folder."""
    (tmp_path / "homeserver.yaml").write_text(json.dumps({**SOUND, "modules": []}))
    config = {"dialects": {"msc3886": {"path": MOVED}}}
    (tmp_path / "rendezvous.yaml").write_text(json.dumps({"modules": [{"module": MODULE, "config": config}]}))
    findings = Findings()
    dialects = check_configuration([str(tmp_path)], BASE, findings)
    assert dialects is not None
    assert MOVED == dialects.collection_path
    assert not findings.has_problem("configuration")


def test_documented() -> None:
    """docs/check.md has every problem, with what it means, what it does and what to do about it."""
    page = (ROOT / "docs" / "check.md").read_text()
    rows = re.findall(r"^\| `([a-z0-9_.]+)` \|", page, re.MULTILINE)
    assert list(problems()) == rows
    for known in problems().values():
        assert row(known) in page, known.id


def row(known: Problem) -> str:
    """Return how docs/check.md tells of a problem."""
    fixes = [f"{PRODUCTS[product]}: {fix}" for product, fix in known.by_product.items()]
    cells = [f"`{known.id}`", known.level.value, known.title, known.effect, "<br>".join([known.fix, *fixes])]
    return f"| {' | '.join(cells)} |"
