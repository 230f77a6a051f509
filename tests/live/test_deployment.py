"""The recipes of docs/clients.md and docs/workers.md, as they stand there, with real processes."""

import contextlib
import pathlib
import re
import sys
from collections.abc import Iterator
from typing import Any

import pytest
import yaml

from support.exchanges import MSC4108, MSC4388, exchange_msc4108, exchange_msc4388
from support.homeservers import MODULES, running
from support.http_client import ask
from support.ports import free_port
from support.programs import needs
from support.proxies import ReverseProxy
from support.recipes import recipe
from support.servers import RedisServer, Server
from synapse_rendezvous import __version__
from synapse_rendezvous.demo.throwaway_homeserver import HOST, ThrowawayHomeserver


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
    with running(homeserver):
        assert ask("POST", homeserver.url + MSC4108, Content_Type="text/plain").status == 307
        exchange_msc4108(homeserver.url + MSC4108, homeserver.url)
        versions = ask("GET", f"{homeserver.url}/_matrix/client/versions").json()
        assert versions["unstable_features"]["org.matrix.msc4108"] is True


@contextlib.contextmanager
def nginx(directory: pathlib.Path, homeserver_url: str, locations: str) -> Iterator[str]:
    """Run nginx with these locations, and yield its address; what they do not name goes to the homeserver."""
    with ReverseProxy(directory, "nginx", homeserver_url, outer=locations) as proxy:
        yield proxy.url


@needs("nginx", "nginx-light")
def test_reverse_proxy(tmp_path: pathlib.Path, homeserver: ThrowawayHomeserver) -> None:
    """A reverse proxy leads the public paths of both proposals to ours."""
    locations = recipe("nginx", "org.matrix.msc4108").replace("http://127.0.0.1:8008", homeserver.url)
    with nginx(tmp_path, homeserver.url, locations) as url:
        exchange_msc4108(url + MSC4108, url)
        exchange_msc4388(url + MSC4388)


@contextlib.contextmanager
def worker(
    directory: pathlib.Path, worker_yaml: str, settings: dict[str, Any]
) -> Iterator[tuple[ThrowawayHomeserver, str]]:
    """Run a homeserver and a worker, from these settings; the second yielded is the worker's address."""
    replication, port, main_port = (free_port() for _ in range(3))
    redis = RedisServer(directory)
    listeners = settings["listeners"]
    listeners[0]["port"], listeners[1]["port"] = main_port, replication
    settings["redis"]["port"], settings["instance_map"]["main"]["port"] = redis.port, replication
    homeserver = ThrowawayHomeserver(
        directory, port=main_port, modules=settings.pop("modules", MODULES), settings=settings
    )
    (directory / "worker.yaml").write_text(re.sub(r"port: \d+", f"port: {port}", worker_yaml))
    command = [sys.executable, "-m", "synapse.app.generic_worker", "-c", f"{directory}/homeserver.yaml"]
    process = Server(directory, "worker", port, *command, "-c", f"{directory}/worker.yaml")
    with redis, running(homeserver), process:
        yield homeserver, process.url


def settings_of_workers() -> dict[str, Any]:
    settings: dict[str, Any] = yaml.safe_load(recipe("yaml", "# homeserver.yaml, in part", "workers.md"))
    return settings


@needs("redis-server", "redis-server")
def test_worker_with_real_paths(tmp_path: pathlib.Path) -> None:
    """A worker without Synapse's client resource serves the real path of MSC4388."""
    with worker(tmp_path, recipe("yaml", "worker_app"), settings_of_workers()) as (homeserver, url):
        exchange_msc4388(url + MSC4388)
        exchange_msc4108(f"{url}/_synapse/client/rendezvous/msc4108", url)
        assert ask("GET", homeserver.url + MSC4388).status == 404
    log = (tmp_path / "worker.log").read_text()
    assert f"synapse_rendezvous {__version__} on rendezvous1:" in log
    assert "; sessions in Redis; " in log


@needs("redis-server", "redis-server")
@needs("nginx", "nginx-light")
@pytest.mark.parametrize("store", ["auto", "memory"])
def test_worker_of_its_own(tmp_path: pathlib.Path, store: str) -> None:
    """A worker serves all sessions, with either store; in memory, each process says what that asks of the proxy."""
    settings = settings_of_workers()
    settings["modules"][0]["config"] = {"store": store}
    worker_yaml = recipe("yaml", "worker_app: ", "workers.md")
    with worker(tmp_path, worker_yaml, settings) as (homeserver, url):
        locations = recipe("nginx", "rendezvous", "workers.md").replace("http://127.0.0.1:8092", url)
        with nginx(tmp_path, homeserver.url, locations) as outside:
            exchange_msc4108(f"{outside}/_synapse/client/rendezvous/msc4108", outside)
            exchange_msc4388(f"{outside}/_synapse/client/io.element.msc4388/rendezvous")
            # Which process holds a session shows where the others know it.
            created = ask("POST", f"{outside}/_synapse/client/rendezvous", b"hello")
            session = f"/_synapse/client/rendezvous/{created.json()['id']}"
            assert (created.status, ask("GET", url + session).status) == (200, 200)
            assert ask("GET", homeserver.url + session).status == (200 if store == "auto" else 404)
    for log, process, address in (
        (homeserver.log, "the main process", homeserver.url),
        (tmp_path / "worker.log", "rendezvous1", url),
    ):
        warned = (
            f"To make it this one ({process}), in nginx: location ^~ /_synapse/client/io.element.msc4388/rendezvous"
        )
        assert (warned in log.read_text()) == (store == "memory")
        assert (f"proxy_pass {address};" in log.read_text()) == (store == "memory")
