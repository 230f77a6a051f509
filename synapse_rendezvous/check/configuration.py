"""What homeserver.yaml says of the module, before anything is asked."""

import contextlib
import pathlib
import sys
from collections.abc import Mapping, Sequence
from typing import Any

import yaml
from synapse.config._base import ConfigError, find_config_files, read_config_files

from synapse_rendezvous.check.findings import Findings
from synapse_rendezvous.config import RendezvousConfig
from synapse_rendezvous.paths import ETAG_PREFIX

_MODULE = "synapse_rendezvous.RendezvousModule"


def read_configuration(paths: Sequence[str], base: str, findings: Findings) -> str:
    """Look at the configuration.

    Args:
        paths: homeserver.yaml, and what else is given to Synapse by `-c`.
        base: the URL of the homeserver that is checked.
        findings: where it is told what was found.

    Returns:
        The path of the collection; empty if the configuration does not say it.
    """
    try:
        with contextlib.redirect_stdout(sys.stderr):  # Synapse prints what it ignores
            files = find_config_files(list(paths))
            config = read_config_files(files)
    except (OSError, yaml.YAMLError, ConfigError) as error:
        findings.add("config.unreadable", *str(error).splitlines())
        return ""
    _look_at_listeners(config, findings)
    baseurl = str(config.get("public_baseurl") or f"https://{config['server_name']}/").rstrip("/")
    if baseurl != base:
        findings.add("config.public_baseurl", f"it is {baseurl}; checked is {base}")
    options = _options(config, findings)
    if options is None:
        return ""
    try:
        parsed = RendezvousConfig.parse(options)
    except ConfigError as error:
        findings.add("config.options", f"{'.'.join(map(str, error.path or ()))}: {error.msg}")
        return ""
    _look_at_neighbours(config, parsed, findings)
    if not findings.has_problem("configuration"):
        names = ", ".join(pathlib.Path(file).name for file in files)
        findings.ok("configuration", f"{names}: the module is loaded once, and all of its options are right")
    return parsed.dialects.msc3886.path if parsed.dialects.msc3886.enabled else parsed.dialects.msc4108.path


def _options(config: Mapping[str, Any], findings: Findings) -> Any:
    """Return the options of the module, None if it is not loaded once."""
    modules = config.get("modules") or []
    ours = [item for item in modules if isinstance(item, Mapping) and item.get("module") == _MODULE]
    if len(ours) != 1:
        loaded = ", ".join(str(item.get("module")) for item in modules if isinstance(item, Mapping)) or "nothing"
        findings.add("config.module_twice" if ours else "config.module_missing", f"loaded: {loaded}")
        return None
    return ours[0].get("config") or {}


def _look_at_listeners(config: Mapping[str, Any], findings: Findings) -> None:
    for listener in [*(config.get("listeners") or []), *(config.get("worker_listeners") or [])]:
        names = {name for resource in listener.get("resources") or [] for name in resource.get("names") or []}
        # On a unix socket it is so by default.
        if "client" in names and "port" in listener and not listener.get("x_forwarded"):
            findings.add("config.x_forwarded", f"port {listener['port']}")


def _look_at_neighbours(config: Mapping[str, Any], parsed: RendezvousConfig, findings: Findings) -> None:
    """Look at what of Synapse's own configuration concerns the module."""
    paths = (parsed.dialects.msc3886, parsed.dialects.msc4108, parsed.dialects.msc4388)
    below = [dialect.path for dialect in paths if dialect.enabled and f"{dialect.path}/".startswith(f"{ETAG_PREFIX}/")]
    if below and (config.get("experimental_features") or {}).get("msc4108_enabled"):
        findings.add("config.msc4108_enabled", f"both at {below[0]}")
    has_redis = (config.get("redis") or {}).get("enabled")
    has_workers = config.get("instance_map") or config.get("worker_app")
    if has_workers and (parsed.store == "memory" or not has_redis):
        findings.add("config.workers_memory", f"store: {parsed.store}; Redis {'on' if has_redis else 'off'}")
