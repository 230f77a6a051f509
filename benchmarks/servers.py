"""The servers that are compared, each a real Synapse process: how they are started, and what can be asked of them."""

import contextlib
import dataclasses
import importlib.metadata
import importlib.util
import os
import pathlib
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any

from cli import HERE, find, progress
from connection import BenchmarkError, Connection
from dialects import PAYLOAD, BareDialect, Dialect, ETagDialect, JSONDialect, Session, checked
from synapse import synapse_rust

from support.servers import RedisServer
from synapse_rendezvous.demo.throwaway_homeserver import HOST, ThrowawayHomeserver, free_port

PATH = "/_synapse/client/rendezvous"
MSC4388 = "io.element.msc4388/rendezvous"
RUST = "matrix_http_rendezvous_synapse"
RUST_DISTRIBUTION = "matrix-http-rendezvous-synapse"

_UNLIMITED = {"per_second": 1_000_000, "burst_count": 1_000_000}
_NO_SERVICE = {"enabled": True, "endpoint": f"http://{HOST}:9/", "secret": "nobody answers there"}


@dataclasses.dataclass(frozen=True)
class Server:
    """A server to be compared: one dialect of what runs in one process.

    Attributes:
        home: which homeserver it is part of.
        label: for whoever reads the results.
        dialect: how it is asked.
        holds: how many sessions it can hold at most, as it is set up; None where that is a matter of memory.
        grows: whether it is also measured while many sessions live. Each store is filled through one dialect only.
    """

    home: str
    label: str
    dialect: Dialect
    holds: int | None = None
    grows: bool = False


SERVERS = {
    "bare": Server("ours", "bare resource", BareDialect()),
    "ours": Server("ours", "synapse_rendezvous", ETagDialect(PATH, create_status=200), grows=True),
    "ours_msc4108": Server("ours", "synapse_rendezvous, MSC4108", ETagDialect(f"{PATH}/msc4108")),
    "ours_msc4388": Server("ours", "synapse_rendezvous, MSC4388", JSONDialect(f"/_synapse/client/{MSC4388}")),
    "ours_redis": Server("redis", "synapse_rendezvous, Redis", ETagDialect(PATH, create_status=200), grows=True),
    "synapse_msc4108": Server(
        "synapse",
        "Synapse's own MSC4108",
        ETagDialect(PATH, create_path="/_matrix/client/unstable/org.matrix.msc4108/rendezvous"),
        holds=100,
    ),
    "synapse_msc4388": Server(
        "synapse", "Synapse's own MSC4388", JSONDialect(f"/_matrix/client/unstable/{MSC4388}"), holds=100
    ),
    "rust": Server("rust", RUST_DISTRIBUTION, ETagDialect("/_synapse/client/rust"), grows=True),
}
"""All of them by their names. What Synapse's own hold is fixed: from 200 on they end the oldest."""

AVAILABLE = [
    name
    for name in SERVERS
    if name != "synapse_msc4388" or hasattr(synapse_rust, "msc4388_rendezvous")  # which came with Synapse 1.149
]
"""The names of those that can be started here."""


@dataclasses.dataclass(frozen=True)
class Running:
    """A server that runs.

    Attributes:
        server: which.
        url: its homeserver's address.
        pid: its homeserver's process.
        redis: what keeps its sessions, if Redis does.
    """

    server: Server
    url: str
    pid: int
    redis: RedisServer | None = None

    @property
    def pids(self) -> list[int]:
        """All processes that work for it: Synapse's and, if there is one, Redis'."""
        return [self.pid] if self.redis is None else [self.pid, self.redis.pid]

    def create(self, connection: Connection, payload: bytes = PAYLOAD) -> Session:
        """Create a session."""
        dialect = self.server.dialect
        answer = connection.ask(dialect.request("create", Session("", ""), payload))
        return dialect.created(checked(answer, dialect, "create"))


def rendezvous(**options: Any) -> dict[str, Any]:
    """Return our item of the `modules` list with these options, and the limits out of the way."""
    per_client = {"max_sessions": 10_000_000, **dict.fromkeys(("create", "read", "miss"), _UNLIMITED)}
    limits = {
        "ttl": "1h",
        "max_sessions": 10_000_000,
        "max_total_bytes": "16G",
        "max_updates": 9_999_999,
        "long_poll": {"default_wait": 0},  # so that a poll is answered at once, as those of the other servers
        "per_client": per_client,
        "per_session": {"read": _UNLIMITED, "write": _UNLIMITED},
    }
    return {"module": "synapse_rendezvous.RendezvousModule", "config": {**limits, **options}}


def homeserver(
    directory: pathlib.Path,
    modules: Sequence[Mapping[str, Any]],
    settings: Mapping[str, Any] | None = None,
    environment: Mapping[str, str] | None = None,
) -> ThrowawayHomeserver:
    """Return a homeserver with these modules, those of this folder among them, and more of its homeserver.yaml.

    It believes a proxy that says for whom it asks.
    """
    directory.mkdir(exist_ok=True)
    port = free_port()
    listener = {
        "port": port,
        "bind_addresses": [HOST],
        "type": "http",
        "x_forwarded": True,
        "resources": [{"names": ["client"]}],
    }
    path = os.pathsep.join([str(HERE), *filter(None, [os.environ.get("PYTHONPATH")])])
    variables = {"PYTHONPATH": path, **(environment or {})}
    return ThrowawayHomeserver(
        directory,
        port=port,
        modules=modules,
        settings={"listeners": [listener], **(settings or {})},
        environment=variables,
    )


@contextlib.contextmanager
def running(homeservers: Sequence[ThrowawayHomeserver]) -> Iterator[None]:
    """Run homeservers, all of them at once."""
    progress("Starting Synapse")
    try:
        with ThreadPoolExecutor() as pool:
            list(pool.map(ThrowawayHomeserver.start, homeservers))
        yield
    finally:
        for each in homeservers:
            each.stop()


@contextlib.contextmanager
def apart(homeservers: Sequence[ThrowawayHomeserver]) -> Iterator[None]:
    """Run homeservers on the first processor, and everything else that this process starts meanwhile on the others.

    Only one of them has work at a time. Left to itself, the kernel moves a server and what loads it back and forth, and
    what that costs goes by who had a turn before.
    """
    processors = sorted(os.sched_getaffinity(0))
    first, others = processors[:1], processors[1:] or processors
    try:
        os.sched_setaffinity(0, first)
        with running(homeservers):
            os.sched_setaffinity(0, others)
            yield
    finally:
        os.sched_setaffinity(0, processors)


@contextlib.contextmanager
def compared(
    names: Sequence[str], directory: pathlib.Path, *, as_installed: bool = False
) -> Iterator[dict[str, Running]]:
    """Run what these servers need.

    Args:
        names: keys of `SERVERS`.
        directory: an empty folder.
        as_installed: whether all have the limits that they come with, instead of the widest.
    """
    homes = {SERVERS[name].home for name in names}
    item = {"module": "synapse_rendezvous.RendezvousModule", "config": {}} if as_installed else rendezvous()
    homeservers = {}
    redis = None
    if "ours" in homes:
        homeservers["ours"] = homeserver(directory / "ours", [item, {"module": "bare.BareModule"}])
    if "redis" in homes:
        find("redis-server", "keeps sessions in")
        redis = RedisServer(directory)
        settings = {"redis": {"enabled": True, "host": HOST, "port": redis.port}}
        homeservers["redis"] = homeserver(directory / "redis", [item], settings)
    if "synapse" in homes:
        features = {"msc4108_enabled": True, "msc4388_mode": "open"}
        settings = {"experimental_features": features, "matrix_authentication_service": _NO_SERVICE}
        homeservers["synapse"] = homeserver(directory / "synapse", [], settings)
    if "rust" in homes:
        if importlib.util.find_spec(RUST) is None:
            raise BenchmarkError(f"{RUST_DISTRIBUTION} is not installed; pip can, or choose other --servers.")
        limits = {} if as_installed else {"ttl": "1h", "max_entries": 10_000_000}
        module = {"module": f"{RUST}.SynapseRendezvousModule", "config": {"prefix": "/_synapse/client/rust", **limits}}
        environment = {"SYNAPSE_ASYNC_IO_REACTOR": "1"}
        homeservers["rust"] = homeserver(directory / "rust", [module], environment=environment)
    with contextlib.ExitStack() as stack:
        if redis is not None:
            stack.callback(redis.stop)
            redis.start()
        stack.enter_context(apart(list(homeservers.values())))
        yield {
            name: Running(server, home.url, home.pid, redis if server.home == "redis" else None)
            for name, server in SERVERS.items()
            if name in names
            for home in [homeservers[server.home]]
        }


def rust_version() -> str:
    """Return which version of the Rust module there is, if any."""
    try:
        return importlib.metadata.version(RUST_DISTRIBUTION)
    except importlib.metadata.PackageNotFoundError:
        return "not installed"
