"""The ways in which Synapse may reach Redis: what homeserver.yaml says of it holds for sessions and wake-ups, too."""

import pathlib
import subprocess
from collections.abc import Callable, Iterator
from typing import Any

import pytest

from support.homeservers import MODULES, running
from support.http_client import ask
from support.ports import free_port
from support.programs import needs
from support.servers import RedisServer
from support.until import wait_until
from synapse_rendezvous.demo.throwaway_homeserver import HOST, ThrowawayHomeserver

PASSWORD = "a-long-secret"
PATH = "/_synapse/client/rendezvous"
CHANNEL = "synapse_rendezvous:2:{rendezvous.localhost}:changes"

pytestmark = [needs("redis-server", "redis-server"), needs("openssl", "openssl")]


def unix_socket(directory: pathlib.Path) -> tuple[list[str], dict[str, Any]]:
    """Return options for Redis and settings for Synapse: a unix socket, a database of its own."""
    path = str(directory / "redis.sock")
    return ["--unixsocket", path], {"path": path, "dbid": 3}


def tls(directory: pathlib.Path) -> tuple[list[str], dict[str, Any]]:
    """The same for TLS."""
    certificate, key, port = str(directory / "tls.pem"), str(directory / "tls.key"), free_port()
    subject = ["-subj", f"/CN={HOST}", "-addext", f"subjectAltName=IP:{HOST}", "-days", "1"]
    files = ["-keyout", key, "-out", certificate]
    subprocess.run(["openssl", "req", "-x509", "-newkey", "rsa:2048", "-nodes", *subject, *files], check=True)
    options = ["--tls-port", str(port), "--tls-cert-file", certificate, "--tls-key-file", key]
    options += ["--tls-ca-cert-file", certificate, "--tls-auth-clients", "no"]
    return options, {"host": HOST, "port": port, "use_tls": True, "ca_file": certificate}


@pytest.fixture(params=[unix_socket, tls])
def redis(request: pytest.FixtureRequest, tmp_path: pathlib.Path) -> Iterator[tuple[RedisServer, dict[str, Any]]]:
    prepare: Callable[[pathlib.Path], tuple[list[str], dict[str, Any]]] = request.param
    options, settings = prepare(tmp_path)
    server = RedisServer(tmp_path, None, *options)
    server.start()
    server.command("CONFIG", "SET", "requirepass", PASSWORD)
    yield server, {"enabled": True, "password": PASSWORD, **settings}
    server.stop()


def test_sessions_and_wake_ups(redis: tuple[RedisServer, dict[str, Any]], tmp_path: pathlib.Path) -> None:
    """A session is kept in Redis, in the database that is named, and the process listens for changes."""
    server, settings = redis

    def tell(*words: str) -> str:
        command = ["redis-cli", "-p", str(server.port), "-n", str(settings.get("dbid", 0)), "--no-auth-warning"]
        return subprocess.run([*command, "-a", PASSWORD, *words], capture_output=True, text=True, check=True).stdout

    homeserver = ThrowawayHomeserver(
        tmp_path, port=free_port(), modules=MODULES, settings={"redis": settings, "worker_replication_secret": "x"}
    )
    with running(homeserver):
        created = ask("POST", homeserver.url + PATH, b"hello")
        session = f"{PATH}/{created.json()['id']}"
        assert (200, 200) == (created.status, ask("GET", homeserver.url + session).status)
        assert "3\n" == tell("DBSIZE")
        wait_until(lambda: f"{CHANNEL}\n1\n" == tell("PUBSUB", "NUMSUB", CHANNEL))
