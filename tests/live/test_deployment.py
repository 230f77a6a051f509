"""The recipes of docs/clients.md and docs/workers.md, as they stand there, with real processes."""

import contextlib
import http.client
import json
import pathlib
import re
import shutil
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from typing import Any
from urllib.parse import urlsplit

import pytest
import yaml
from conftest import assert_clean

from support.recipes import recipe
from synapse_rendezvous import __version__
from synapse_rendezvous.demo.throwaway_homeserver import HOST, ThrowawayHomeserver, free_port

MSC4108 = "/_matrix/client/unstable/org.matrix.msc4108/rendezvous"
MSC4388 = "/_matrix/client/unstable/io.element.msc4388/rendezvous"
MODULES = [{"module": "synapse_rendezvous.RendezvousModule", "config": {}}]


def ask(url: str, method: str, content: bytes = b"", **headers: str) -> tuple[int, Any, bytes]:
    parts = urlsplit(url)
    connection = http.client.HTTPConnection(parts.netloc, timeout=60)
    target = parts._replace(scheme="", netloc="").geturl()
    connection.request(method, target, content, {name.replace("_", "-"): value for name, value in headers.items()})
    response = connection.getresponse()
    answer = response.status, response.headers, response.read()
    connection.close()
    return answer


def exchange_msc4108(create_url: str, base: str) -> None:
    """Create as Element X does, follow a redirect, and exchange a message at the session's URL, seen from `base`."""
    code, headers, body = ask(create_url, "POST", Content_Type="text/plain")
    if code == 307:
        code, headers, body = ask(headers["Location"], "POST", Content_Type="text/plain")
    assert code == 201
    session = base + urlsplit(json.loads(body)["url"]).path
    code, headers, _ = ask(session, "PUT", b"hello", Content_Type="text/plain", If_Match=headers["ETag"])
    assert code == 202
    code, headers, body = ask(session, "GET")
    assert (code, body, headers["Content-Type"]) == (200, b"hello", "text/plain")
    assert ask(session, "GET", If_None_Match=headers["ETag"])[0] == 304
    allowed = ask(session, "OPTIONS")[1]["Access-Control-Allow-Headers"]
    assert {"If-Match", "If-None-Match"} <= set(allowed.split(", "))


def exchange_msc4388(url: str) -> None:
    """Discover, create, write, read and end at the homeserver's own path."""
    code, _, body = ask(url, "GET")
    assert (code, json.loads(body)) == (200, {"create_available": True, "max_wait_ms": 10000})
    code, _, body = ask(url, "POST", b'{"data": ""}')
    created = json.loads(body)
    session = f"{url}/{created['id']}"
    write = json.dumps({"sequence_token": created["sequence_token"], "data": "hello"}).encode()
    assert (code, ask(session, "PUT", write)[0]) == (200, 200)
    code, _, body = ask(session, "GET")
    assert (code, json.loads(body)["data"]) == (200, "hello")
    assert "Authorization" in ask(session, "OPTIONS")[1]["Access-Control-Allow-Headers"]
    assert (ask(session, "DELETE")[0], ask(session, "GET")[0]) == (200, 404)


@pytest.fixture
def start(tmp_path: pathlib.Path) -> Iterator[Callable[..., subprocess.Popen[bytes]]]:
    """Start programs that are ended with the test."""
    started: list[subprocess.Popen[bytes]] = []

    def start(name: str, *command: str | pathlib.Path) -> subprocess.Popen[bytes]:
        with (tmp_path / f"{name}.log").open("wb") as log:
            process = subprocess.Popen(list(map(str, command)), stdout=log, stderr=log, cwd=tmp_path)
        started.append(process)
        return process

    yield start
    for process in reversed(started):
        process.terminate()
        process.wait(30)


def wait_for(url: str, process: subprocess.Popen[bytes], log: pathlib.Path) -> None:
    deadline = time.monotonic() + 120
    while True:
        try:
            if ask(url, "GET")[0] == 200:
                return
        except OSError:
            pass
        assert process.poll() is None, log.read_text()
        assert time.monotonic() < deadline, log.read_text()
        time.sleep(0.05)


def needs(program: str, package: str) -> pytest.MarkDecorator:
    """Skip a test where a program is missing."""
    path = shutil.which(program) or shutil.which(program, path="/usr/sbin")
    return pytest.mark.skipif(path is None, reason=f"{program} is not installed (Debian: apt install {package})")


def test_delegation(tmp_path: pathlib.Path) -> None:
    """Synapse sends clients on to us and says that it knows MSC4108, though no authentication service answers."""
    port = free_port()
    settings = yaml.safe_load(recipe("yaml", "msc4108_delegation_endpoint"))
    features = settings["experimental_features"]
    features["msc4108_delegation_endpoint"] = features["msc4108_delegation_endpoint"].replace(
        "https://matrix.example.com", f"http://{HOST}:{port}"
    )
    service = {"enabled": True, "endpoint": f"http://{HOST}:9/", "secret": "dead"}
    homeserver = ThrowawayHomeserver(
        tmp_path, port=port, modules=MODULES, settings={**settings, "matrix_authentication_service": service}
    )
    try:
        homeserver.start()
        assert ask(homeserver.url + MSC4108, "POST", Content_Type="text/plain")[0] == 307
        exchange_msc4108(homeserver.url + MSC4108, homeserver.url)
        versions = json.loads(ask(f"{homeserver.url}/_matrix/client/versions", "GET")[2])
        assert versions["unstable_features"]["org.matrix.msc4108"] is True
    finally:
        homeserver.stop()
    assert_clean(homeserver)


def start_nginx(
    tmp_path: pathlib.Path, start: Callable[..., subprocess.Popen[bytes]], locations: str, otherwise: str
) -> str:
    """Start a reverse proxy with these locations, and return its address; what they do not name goes to `otherwise`."""
    port = free_port()
    temporary = " ".join(
        f"{kind}_temp_path {tmp_path}/{kind};" for kind in ("client_body", "proxy", "fastcgi", "uwsgi", "scgi")
    )
    (tmp_path / "nginx.conf").write_text(
        f"""daemon off; pid {tmp_path}/nginx.pid; error_log {tmp_path}/error.log;
        events {{ }}
        http {{ access_log off; {temporary}
            server {{ listen {HOST}:{port}; {locations}
                location / {{ proxy_pass {otherwise}; }} }} }}"""
    )
    program = shutil.which("nginx") or "/usr/sbin/nginx"
    nginx = start("nginx", program, "-c", tmp_path / "nginx.conf", "-e", tmp_path / "error.log")
    url = f"http://{HOST}:{port}"
    wait_for(f"{url}/health", nginx, tmp_path / "nginx.log")
    return url


@needs("nginx", "nginx-light")
def test_reverse_proxy(
    tmp_path: pathlib.Path, homeserver: ThrowawayHomeserver, start: Callable[..., subprocess.Popen[bytes]]
) -> None:
    """A reverse proxy leads the public paths of both proposals to ours."""
    locations = recipe("nginx", "org.matrix.msc4108").replace("http://127.0.0.1:8008", homeserver.url)
    url = start_nginx(tmp_path, start, locations, homeserver.url)

    exchange_msc4108(url + MSC4108, url)
    exchange_msc4388(url + MSC4388)


@contextlib.contextmanager
def worker(
    tmp_path: pathlib.Path,
    start: Callable[..., subprocess.Popen[bytes]],
    worker_yaml: str,
    settings: dict[str, Any],
) -> Iterator[tuple[ThrowawayHomeserver, str]]:
    """Run a homeserver and a worker, from these settings; the second yielded is the worker's address."""
    redis, replication, port, main_port = (free_port() for _ in range(4))
    start("redis", "redis-server", "--port", str(redis), "--bind", HOST, "--save", "", "--dir", str(tmp_path))
    listeners = settings["listeners"]
    listeners[0]["port"], listeners[1]["port"] = main_port, replication
    settings["redis"]["port"], settings["instance_map"]["main"]["port"] = redis, replication
    homeserver = ThrowawayHomeserver(
        tmp_path, port=main_port, modules=settings.pop("modules", MODULES), settings=settings
    )
    (tmp_path / "worker.yaml").write_text(re.sub(r"port: \d+", f"port: {port}", worker_yaml))
    try:
        homeserver.start()
        command = [sys.executable, "-m", "synapse.app.generic_worker"]
        process = start("worker", *command, "-c", tmp_path / "homeserver.yaml", "-c", tmp_path / "worker.yaml")
        url = f"http://{HOST}:{port}"
        wait_for(f"{url}/health", process, tmp_path / "worker.log")
        yield homeserver, url
    finally:
        homeserver.stop()
    assert_clean(homeserver)


def settings_of_workers() -> dict[str, Any]:
    settings: dict[str, Any] = yaml.safe_load(recipe("yaml", "# homeserver.yaml, in part", "workers.md"))
    return settings


@needs("redis-server", "redis-server")
def test_worker_with_real_paths(tmp_path: pathlib.Path, start: Callable[..., subprocess.Popen[bytes]]) -> None:
    """A worker without Synapse's client resource serves the real path of MSC4388."""
    with worker(tmp_path, start, recipe("yaml", "worker_app"), settings_of_workers()) as (homeserver, url):
        exchange_msc4388(url + MSC4388)
        exchange_msc4108(f"{url}/_synapse/client/rendezvous/msc4108", url)
        assert ask(homeserver.url + MSC4388, "GET")[0] == 404
    log = (tmp_path / "worker.log").read_text()
    assert f"synapse_rendezvous {__version__} on rendezvous1:" in log
    assert "; sessions in Redis; " in log


@needs("redis-server", "redis-server")
@needs("nginx", "nginx-light")
@pytest.mark.parametrize("store", ["auto", "memory"])
def test_worker_of_its_own(tmp_path: pathlib.Path, start: Callable[..., subprocess.Popen[bytes]], store: str) -> None:
    """A worker serves all sessions, with either store; in memory, each process says what that asks of the proxy."""
    settings = settings_of_workers()
    settings["modules"][0]["config"] = {"store": store}
    worker_yaml = recipe("yaml", "worker_app: ", "workers.md")
    with worker(tmp_path, start, worker_yaml, settings) as (homeserver, url):
        locations = recipe("nginx", "rendezvous", "workers.md").replace("http://127.0.0.1:8092", url)
        outside = start_nginx(tmp_path, start, locations, homeserver.url)
        exchange_msc4108(f"{outside}/_synapse/client/rendezvous/msc4108", outside)
        exchange_msc4388(f"{outside}/_synapse/client/io.element.msc4388/rendezvous")
        # Which process holds a session shows where the others know it.
        code, _, body = ask(f"{outside}/_synapse/client/rendezvous", "POST", b"hello")
        session = f"/_synapse/client/rendezvous/{json.loads(body)['id']}"
        assert (code, ask(url + session, "GET")[0]) == (200, 200)
        assert ask(homeserver.url + session, "GET")[0] == (200 if store == "auto" else 404)
    for log, process, address in (
        (homeserver.log, "the main process", homeserver.url),
        (tmp_path / "worker.log", "rendezvous1", url),
    ):
        warned = (
            f"To make it this one ({process}), in nginx: location ^~ /_synapse/client/io.element.msc4388/rendezvous"
        )
        assert (warned in log.read_text()) == (store == "memory")
        assert (f"proxy_pass {address};" in log.read_text()) == (store == "memory")
