"""Whether homeserver.yaml is right for the module."""

import contextlib
import pathlib
import sys
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import attr
import yaml
from synapse.config._base import ConfigError, find_config_files, read_config_files

from synapse_rendezvous.check.findings import Findings
from synapse_rendezvous.config import DialectsConfig, RendezvousConfig
from synapse_rendezvous.paths import ETAG_PREFIX

_MODULE = "synapse_rendezvous.RendezvousModule"


class ConfiguredDialects(NamedTuple):
    """What the configuration says of the dialects.

    Attributes:
        collection_path: the path of the collection that is checked; empty if neither MSC3886 nor MSC4108 is enabled.
        enabled: the names of the dialects that are enabled.
    """

    collection_path: str
    enabled: frozenset[str]


def check_configuration(paths: Sequence[str], base_url: str, findings: Findings) -> ConfiguredDialects | None:
    """Check the configuration.

    Args:
        paths: of homeserver.yaml and of the other files that Synapse is given by `-c`.
        base_url: the URL of the homeserver that is checked.
        findings: takes what is found.

    Returns:
        The dialects; None if the configuration does not have them.
    """
    try:
        with contextlib.redirect_stdout(sys.stderr):  # Synapse prints the files that it ignores
            files = find_config_files(list(paths))
            config = read_config_files(files)
    except (OSError, yaml.YAMLError, ConfigError) as error:
        findings.add_problem("config.unreadable", *str(error).splitlines())
        return None
    _check_listeners(config, findings)
    public_baseurl = str(config.get("public_baseurl") or f"https://{config['server_name']}/").rstrip("/")
    if public_baseurl != base_url:
        findings.add_problem("config.public_baseurl", f"it is {public_baseurl}; checked is {base_url}")
    options = _module_options(config, findings)
    if options is None:
        return None
    try:
        parsed = RendezvousConfig.parse(options)
    except ConfigError as error:
        findings.add_problem("config.options", f"{'.'.join(map(str, error.path or ()))}: {error.msg}")
        return None
    _check_surroundings(config, parsed, findings)
    if not findings.has_problem("configuration"):
        names = ", ".join(pathlib.Path(file).name for file in files)
        findings.ok("configuration", f"{names}: the module is loaded once, and all of its options are right")
    dialects = {field.name: getattr(parsed.dialects, field.name) for field in attr.fields(DialectsConfig)}
    enabled = {name: dialect.path for name, dialect in dialects.items() if dialect.enabled}
    return ConfiguredDialects(enabled.get("msc3886") or enabled.get("msc4108") or "", frozenset(enabled))


def _module_options(config: Mapping[str, Any], findings: Findings) -> Any:
    """Return the options of the module; None unless exactly one item of `modules` loads it."""
    modules = config.get("modules") or []
    ours = [item for item in modules if isinstance(item, Mapping) and item.get("module") == _MODULE]
    if len(ours) != 1:
        loaded = ", ".join(str(item.get("module")) for item in modules if isinstance(item, Mapping)) or "nothing"
        findings.add_problem("config.module_twice" if ours else "config.module_missing", f"loaded: {loaded}")
        return None
    return ours[0].get("config") or {}


def _check_listeners(config: Mapping[str, Any], findings: Findings) -> None:
    for listener in [*(config.get("listeners") or []), *(config.get("worker_listeners") or [])]:
        names = {name for resource in listener.get("resources") or [] for name in resource.get("names") or []}
        # On a unix socket, x_forwarded is on by default.
        if "client" in names and "port" in listener and not listener.get("x_forwarded"):
            findings.add_problem("config.x_forwarded", f"port {listener['port']}")


def _check_surroundings(config: Mapping[str, Any], parsed: RendezvousConfig, findings: Findings) -> None:
    """Check the options of Synapse that concern the module."""
    paths = (parsed.dialects.msc3886, parsed.dialects.msc4108, parsed.dialects.msc4388)
    below = [dialect.path for dialect in paths if dialect.enabled and f"{dialect.path}/".startswith(f"{ETAG_PREFIX}/")]
    if below and (config.get("experimental_features") or {}).get("msc4108_enabled"):
        findings.add_problem("config.msc4108_enabled", f"both at {below[0]}")
    has_redis = (config.get("redis") or {}).get("enabled")
    has_workers = config.get("instance_map") or config.get("worker_app")
    if has_workers and (parsed.store == "memory" or not has_redis):
        findings.add_problem("config.workers_memory", f"store: {parsed.store}; Redis {'on' if has_redis else 'off'}")
