"""Homeservers with the module, each a Synapse process of its own."""

import contextlib
import os
import pathlib
import re
from collections.abc import Iterator, Mapping
from typing import Any

from support.ports import free_port
from synapse_rendezvous.demo.throwaway_homeserver import HOST, ThrowawayHomeserver

MODULES = [{"module": "synapse_rendezvous.RendezvousModule", "config": {}}]
"""The `modules` of a homeserver.yaml, with the default configuration."""


def at_once(config: Mapping[str, Any] | None) -> dict[str, Any]:
    """Return the module's options so that polls are answered at once, unless these options say otherwise."""
    options = dict(config or {})
    return {**options, "long_poll": {"default_wait": 0, **options.get("long_poll", {})}}


def new_homeserver(
    directory: pathlib.Path,
    config: Mapping[str, Any] | None = None,
    settings: Mapping[str, Any] | None = None,
    **options: Any,
) -> ThrowawayHomeserver:
    """Return a homeserver that is not started.

    Args:
        directory: an empty folder.
        config: the module's options; see `at_once`.
        settings: more of its homeserver.yaml.
        options: more arguments of `ThrowawayHomeserver`.
    """
    modules = [{**MODULES[0], "config": at_once(config)}]
    options = {"port": free_port(), "modules": modules, **options}
    return ThrowawayHomeserver(directory, settings=settings, **options)


def behind_proxy(
    directory: pathlib.Path, config: Mapping[str, Any], settings: Mapping[str, Any] | None = None
) -> ThrowawayHomeserver:
    """Return a homeserver that is not started, whose listener believes a proxy on this machine who the clients are."""
    port = free_port()
    listener = {"port": port, "bind_addresses": [HOST], "type": "http", "x_forwarded": True}
    listeners = {"listeners": [{**listener, "resources": [{"names": ["client"]}]}]}
    return new_homeserver(directory, config, {**listeners, **(settings or {})}, port=port)


@contextlib.contextmanager
def running(homeserver: ThrowawayHomeserver) -> Iterator[ThrowawayHomeserver]:
    """Run a homeserver while a `with` statement lasts, and fail if its log is not clean."""
    with homeserver:
        yield homeserver
    assert_clean(homeserver)


def resident_bytes(pid: int) -> int:
    """Return how much memory a process has."""
    pages = int(pathlib.Path(f"/proc/{pid}/statm").read_text().split()[1])
    return pages * os.sysconf("SC_PAGE_SIZE")


def assert_clean(homeserver: ThrowawayHomeserver) -> None:
    """Fail if the homeserver logged an error, a warning about us or a traceback."""
    log = homeserver.log.read_text(errors="replace")
    wrong = [line for line in log.splitlines() if " - ERROR - " in line or " - CRITICAL - " in line]
    assert not wrong
    assert "Traceback" not in log


def errors(log: pathlib.Path) -> list[str]:
    """Return the records of what went wrong, but for what Synapse's replication says when it loses Redis."""
    records = re.split(r"^(?=\d{4}-\d\d-\d\d )", log.read_text(errors="replace"), flags=re.MULTILINE)
    wrong = [record for record in records if re.search(r" - (ERROR|CRITICAL) - |^Traceback", record, re.MULTILINE)]
    synapses = re.compile(r"\S+ \S+ - synapse\.metrics\.background_process_metrics .*txredisapi\.\w+Error", re.DOTALL)
    return [record for record in wrong if "synapse_rendezvous" in record or not synapses.match(record)]
