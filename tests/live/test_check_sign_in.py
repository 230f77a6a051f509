"""What `synapse-rendezvous check` says of sign-in: why clients do, or do not, offer a QR code."""

import contextlib
import json
import pathlib
import subprocess
import sys
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

import pytest

from support.homeservers import running
from support.ports import free_port
from support.programs import needs
from support.proxies import ReverseProxy
from synapse_rendezvous.check.probe import MAX_REQUESTS
from synapse_rendezvous.demo.throwaway_homeserver import HOST, ThrowawayHomeserver

pytestmark = pytest.mark.timing  # a check has twenty seconds

MODULE = "synapse_rendezvous.RendezvousModule"
ONLY_MSC4388 = {"dialects": {"msc3886": {"enabled": False}, "msc4108": {"enabled": False}}}
DEVICE_GRANT = "urn:ietf:params:oauth:grant-type:device_code"


class Metadata:
    """What an authentication service says of itself, to be used in a `with` statement.

    Attributes:
        url: where Synapse finds it.
    """

    def __init__(self, **changes: object) -> None:
        class Request(BaseHTTPRequestHandler):
            def do_GET(self) -> None:
                self.send_response(200)
                self.send_header("Content-Type", "application/json")
                self.send_header("Content-Length", str(len(content)))
                self.end_headers()
                self.wfile.write(content)

            def log_message(self, *_: object) -> None:
                """Say nothing."""

        self._server = ThreadingHTTPServer((HOST, 0), Request)
        self.url = f"http://{HOST}:{self._server.server_port}/"
        metadata = {
            "issuer": self.url,
            "account_management_uri": f"{self.url}account",
            "device_authorization_endpoint": f"{self.url}device",
            "registration_endpoint": f"{self.url}register",
            "grant_types_supported": ["authorization_code", DEVICE_GRANT],
        }
        content = json.dumps({key: value for key, value in {**metadata, **changes}.items() if value}).encode()

    def __enter__(self) -> "Metadata":
        threading.Thread(target=self._server.serve_forever, daemon=True).start()
        return self

    def __exit__(self, *_: object) -> None:
        self._server.shutdown()
        self._server.server_close()


@contextlib.contextmanager
def serving(
    directory: pathlib.Path,
    config: dict[str, Any],
    metadata: dict[str, object] | None = None,
    features: dict[str, str] | None = None,
) -> Iterator[ThrowawayHomeserver]:
    """Run a homeserver that delegates authentication; without metadata, to nobody who answers."""
    with contextlib.ExitStack() as stack:
        url = f"http://{HOST}:9/" if metadata is None else stack.enter_context(Metadata(**metadata)).url
        port = free_port()
        named = {key: value.replace("PORT", str(port)) for key, value in (features or {}).items()}
        settings: dict[str, Any] = {
            "matrix_authentication_service": {"enabled": True, "endpoint": url, "secret": "secret"},
            "experimental_features": {key: value == "on" or value for key, value in named.items()},
        }
        modules = [{"module": MODULE, "config": {"long_poll": {"max_wait": "1s"}, **config}}]
        homeserver = ThrowawayHomeserver(directory, port=port, modules=modules, settings=settings)
        if metadata is None:  # Synapse logs errors then
            stack.callback(homeserver.stop)
            homeserver.start()
        else:
            stack.enter_context(running(homeserver))
        yield homeserver


def check(url: str, *options: str) -> dict[str, Any]:
    """Return the report of a check."""
    command = [sys.executable, "-m", "synapse_rendezvous", "check", url, "--json", *options]
    done = subprocess.run(command, capture_output=True, text=True, timeout=120, check=False)
    assert not done.stderr, done.stderr
    report: dict[str, Any] = json.loads(done.stdout)
    assert report["requests"] <= MAX_REQUESTS
    return report


def said(report: dict[str, Any], *levels: str) -> list[str]:
    """Return what is said of sign-in at these levels: ids of problems, and titles of the rest."""
    findings = [finding for finding in report["findings"] if finding["section"] == "sign_in"]
    return [
        finding["id"] if finding["id"] != "sign_in" else finding["title"]
        for finding in findings
        if finding["level"] in levels
    ]


def test_all_is_well(tmp_path: pathlib.Path) -> None:
    """With `config: {}`, everything that clients ask for is there, and nothing stays behind."""
    with serving(tmp_path, {"ttl": "10m"}, {}) as homeserver:
        report = check(homeserver.url)
        assert [] == said(report, "note", "warning", "failure", "blocked")
        well = said(report, "ok")
        assert 5 == len(well)
        assert well[0].startswith("authentication is delegated to http://127.0.0.1:")
        path = "/_matrix/client/unstable/io.element.msc4388/rendezvous"
        assert f"MSC4388: this module serves {path}, with both forms of writes" in well
        assert "MSC4388: this module serves /_matrix/client/v1/rendezvous, too" in well
        path = "/_matrix/client/unstable/org.matrix.msc4108/rendezvous"
        assert f"MSC4108: this module creates sessions at {path}" in well
        assert "/versions says org.matrix.msc4108" in well
        assert "fine" == report["verdict"]
        log = homeserver.log.read_text()
        assert log.count(" has ended: ") == log.count('"POST ') - log.count(' 413 "POST')
        assert "expired after" not in log


def test_the_other_server(tmp_path: pathlib.Path) -> None:
    """What the authentication service lacks is named."""
    metadata: dict[str, object] = {"grant_types_supported": ["authorization_code"], "registration_endpoint": None}
    with serving(tmp_path, {}, metadata) as homeserver:
        report = check(homeserver.url)
    assert ["sign_in.device_grant", "sign_in.registration"] == said(report, "warning")
    assert "warnings" == report["verdict"]


def test_nobody_authenticates(tmp_path: pathlib.Path, homeserver: ThrowawayHomeserver) -> None:
    """An authentication service that is down is a problem; a homeserver without one is not."""
    report = check(homeserver.url)
    assert [] == said(report, "warning", "failure")
    assert "fine" == report["verdict"]
    (first, *_) = said(report, "note")
    assert first.startswith("the homeserver does not delegate authentication")
    with serving(tmp_path, {}) as down:
        assert ["sign_in.metadata"] == said(check(down.url), "warning")


def test_off(tmp_path: pathlib.Path) -> None:
    """Where nothing leads clients here, that is said."""
    with serving(tmp_path, {"client_paths": False}, {}) as homeserver:
        report = check(homeserver.url)
    assert ["sign_in.msc4108"] == said(report, "warning")
    assert 2 == len(said(report, "note"))  # MSC4388, at neither path


@pytest.mark.parametrize(
    ("endpoint", "problems"),
    [
        (f"http://{HOST}:PORT/_synapse/client/rendezvous/msc4108", []),
        ("https://elsewhere.example.com/_synapse/client/rendezvous/msc4108", ["sign_in.elsewhere"]),
    ],
)
def test_delegation(tmp_path: pathlib.Path, endpoint: str, problems: list[str]) -> None:
    """A redirect to us is fine, and one to another server is not."""
    features = {"msc4108_delegation_endpoint": endpoint}
    with serving(tmp_path, {"client_paths": False}, {}, features) as homeserver:
        report = check(homeserver.url)
    assert problems == said(report, "warning")
    assert (not problems) == any("by a redirect" in line for line in said(report, "ok"))


def test_only_msc4388(tmp_path: pathlib.Path) -> None:
    """Where MSC4388 alone is served, that is tested, and nothing else is missed."""
    with serving(tmp_path, ONLY_MSC4388, {}) as homeserver:
        report = check(homeserver.url)
    assert [] == said(report, "warning", "failure", "blocked")
    assert ["MSC4108: no server at /_matrix/client/unstable/org.matrix.msc4108/rendezvous"] == said(report, "note")
    assert "fine" == report["verdict"]


def test_only_msc4388_by_configuration(tmp_path: pathlib.Path) -> None:
    """Where the configuration says so, no path of another dialect is asked for."""
    with serving(tmp_path, ONLY_MSC4388, {}, {"msc4108_enabled": "on"}) as homeserver:
        report = check(homeserver.url)
        assert ["sign_in.builtin"] == said(report, "warning")
        before = homeserver.log.read_text()
        report = check(homeserver.url, "-c", str(tmp_path / "homeserver.yaml"))
        asked = homeserver.log.read_text().removeprefix(before)
    assert [] == said(report, "note", "warning", "failure")
    assert 3 == len(said(report, "ok"))
    assert "msc4108" not in asked
    assert "/_synapse/client/rendezvous" not in asked
    assert report["verdict"] in ("fine", "warnings")  # the configuration may name another address than was checked
    untested = {finding["section"] for finding in report["findings"] if finding["level"] == "not tested"}
    assert {"route", "create", "poll", "write", "end"} <= untested


@needs("nginx", "nginx-light")
def test_proxy(tmp_path: pathlib.Path) -> None:
    """A proxy that does not let clients write, or create, at their own paths."""
    paths = "/_matrix/client/(unstable/(org.matrix.msc4108|io.element.msc4388)|v1)/rendezvous"
    (tmp_path / "homeserver").mkdir()
    with serving(tmp_path / "homeserver", {}, {}) as homeserver:
        outer = f"""
            location ~ ^{paths} {{
                limit_except GET POST {{ deny all; }}
                if ($request_method = POST) {{ rewrite ^/_matrix/client/unstable/org.matrix.msc4108 /nowhere last; }}
                proxy_pass {homeserver.url};
            }}
            location /nowhere {{ return 404; }}"""
        with ReverseProxy(tmp_path, "nginx", homeserver.url, outer=outer) as proxy:
            report = check(proxy.url)
    assert ["sign_in.msc4388", "sign_in.msc4108"] == said(report, "warning")
    (evidence,) = (finding["evidence"] for finding in report["findings"] if finding["id"] == "sign_in.msc4388")
    assert evidence[0].startswith("PUT with a transaction id: 403")


@needs("nginx", "nginx-light")
def test_not_advertised(tmp_path: pathlib.Path) -> None:
    """Where a proxy leads clients here and `/versions` does not say so, some of them do not ask."""
    (tmp_path / "homeserver").mkdir()
    with serving(tmp_path / "homeserver", {"client_paths": False}, {}) as homeserver:
        outer = f"""
            location = /_matrix/client/unstable/org.matrix.msc4108/rendezvous {{
                proxy_pass {homeserver.url}/_synapse/client/rendezvous/msc4108;
            }}"""
        with ReverseProxy(tmp_path, "nginx", homeserver.url, outer=outer) as proxy:
            report = check(proxy.url)
    assert ["sign_in.versions"] == said(report, "warning")
