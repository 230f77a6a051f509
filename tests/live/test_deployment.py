"""The recipes of docs/clients.md and docs/workers.md, as they stand there, with real processes."""

import contextlib
import gzip
import json
import pathlib
import re
import sys
from collections.abc import Callable, Iterator
from typing import Any

import pytest
import yaml

from support.exchanges import MSC4108, MSC4388, STABLE_MSC4388, exchange_msc4108, exchange_msc4388
from support.homeservers import MODULES, errors, running
from support.http_client import ask
from support.ports import free_port
from support.programs import needs
from support.proxies import ReverseProxy
from support.recipes import recipe
from support.servers import RedisServer, Server
from synapse_rendezvous import __version__
from synapse_rendezvous.demo.throwaway_homeserver import HOST, DidNotStart, ThrowawayHomeserver


def test_delegation(tmp_path: pathlib.Path) -> None:
    """Synapse sends clients on to us and says that it knows MSC4108, though no authentication service answers."""
    port = free_port()
    settings = yaml.safe_load(recipe("yaml", "msc4108_delegation_endpoint"))
    features = settings["experimental_features"]
    features["msc4108_delegation_endpoint"] = features["msc4108_delegation_endpoint"].replace(
        "https://matrix.example.com", f"http://{HOST}:{port}"
    )
    service = {"enabled": True, "endpoint": f"http://{HOST}:9/", "secret": "dead"}
    modules = [{**MODULES[0], "config": {"client_paths": False}}]
    homeserver = ThrowawayHomeserver(
        tmp_path, port=port, modules=modules, settings={**settings, "matrix_authentication_service": service}
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
@pytest.mark.parametrize("resources", ["[]", "[{names: [client]}]"], ids=["nothing", "client"])
def test_client_paths_at_any_process(tmp_path: pathlib.Path, resources: str) -> None:
    """Clients are served at their own paths by each process, whatever else its listener has."""
    settings = settings_of_workers()
    settings["matrix_authentication_service"] = {"enabled": True, "endpoint": f"http://{HOST}:9/", "secret": "dead"}
    settings["public_baseurl"] = "https://matrix.example.com/"
    worker_yaml = recipe("yaml", "worker_app: ", "workers.md").replace("resources: []", f"resources: {resources}")
    with worker(tmp_path, worker_yaml, settings) as (homeserver, url):
        for at, other in ((url, homeserver.url), (homeserver.url, url)):
            exchange_msc4108(at + MSC4108, other)
            exchange_msc4388(at + MSC4388)
            exchange_msc4388(at + STABLE_MSC4388)
            created = ask("POST", at + STABLE_MSC4388, b'{"data": "hello"}').json()
            assert ask("GET", f"{other}{MSC4388}/{created['id']}").json()["data"] == "hello"
        if resources != "[]":
            for at in (url, homeserver.url):
                assert ask("GET", f"{at}/_matrix/client/versions").json()["unstable_features"]["org.matrix.msc4108"]
    log = (tmp_path / "worker.log").read_text()
    assert f"synapse_rendezvous {__version__} on rendezvous1:" in log
    assert "; sessions in Redis; " in log
    assert [] == errors(tmp_path / "worker.log") == errors(homeserver.log)


@pytest.fixture
def compressing(tmp_path: pathlib.Path) -> Callable[[dict[str, Any]], ThrowawayHomeserver]:
    """Makes homeservers with a listener that compresses what Synapse's own resources answer."""

    def make(config: dict[str, Any]) -> ThrowawayHomeserver:
        port = free_port()
        resources = [{"names": ["client"], "compress": True}]
        listener = {"port": port, "bind_addresses": [HOST], "type": "http", "resources": resources}
        module = {"module": "synapse_rendezvous.RendezvousModule", "config": {"client_paths": "on", **config}}
        return ThrowawayHomeserver(tmp_path, port=port, modules=[module], settings={"listeners": [listener]})

    return make


def test_compressing_listener(compressing: Callable[[dict[str, Any]], ThrowawayHomeserver]) -> None:
    """A listener that compresses does no harm: what is compressed has no entity tags."""
    with running(compressing({})) as homeserver:
        data = {"data": "x" * 2000}
        created = ask("POST", homeserver.url + STABLE_MSC4388, json.dumps(data).encode())
        session = f"{homeserver.url}{STABLE_MSC4388}/{created.json()['id']}"
        read = ask("GET", session, Accept_Encoding="gzip")
        assert "gzip" == read.headers["Content-Encoding"]
        assert data["data"] == json.loads(gzip.decompress(read.content))["data"]
        exchange_msc4388(homeserver.url + STABLE_MSC4388)
        exchange_msc4108(homeserver.url + MSC4108, homeserver.url)


def test_compressing_listener_with_a_path_below(
    compressing: Callable[[dict[str, Any]], ThrowawayHomeserver],
) -> None:
    """Nothing can be mounted below what is compressed: Synapse does not start, and says why."""
    with pytest.raises(DidNotStart, match=r"cannot be mounted at /_matrix/client/x while a listener has `compress"):
        compressing({"dialects": {"msc4388": {"path": "/_matrix/client/x"}}}).start()


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
