"""What docs/install.md says, as far as it can be done without systemd, containers and NixOS.

What takes an environment of its own, to install the package in, is in `check_package.py`.
"""

import base64
import json
import os
import pathlib
import re
import subprocess
import sys
from typing import Any

import pytest
import yaml
from synapse.config.homeserver import HomeServerConfig
from synapse.config.logger import DEFAULT_LOG_CONFIG

from support.exchanges import MSC4108, MSC4388, STABLE_MSC4388, exchange_msc4108, exchange_msc4388
from support.homeservers import running
from support.http_client import ask
from support.ports import free_port
from support.programs import needs
from support.recipes import DOCS, blocks, recipe
from support.servers import Server
from support.until import wait_until
from synapse_rendezvous import RendezvousModule, __version__
from synapse_rendezvous.config import RendezvousConfig
from synapse_rendezvous.demo.throwaway_homeserver import HOST, DidNotStart, ThrowawayHomeserver

PAGE = (DOCS / "install.md").read_text()
LINES = blocks("yaml", "install.md")[0]
CHART = yaml.safe_load(recipe("yaml", "additional:", "install.md"))["synapse"]
CHART_SETTINGS = yaml.safe_load(CHART["additional"]["rendezvous.yaml"]["config"])
OLD_CHART_CONFIG = yaml.safe_load(recipe("yaml", "msc3886: {enabled: false}", "install.md"))["config"]
PLAYBOOK = yaml.safe_load(recipe("yaml", "matrix_synapse_modules", "install.md"))
SIGNING_KEY = "ed25519 a_key " + base64.b64encode(bytes(32)).decode("ascii").rstrip("=")
WITH_AUTHENTICATION_SERVICE: dict[str, Any] = {
    "matrix_authentication_service": {"enabled": True, "endpoint": f"http://{HOST}:9/", "secret": "dead"},
    "experimental_features": {"msc4108_enabled": True},  # which the chart and the playbook set as well
}


def loaded(settings: dict[str, Any]) -> list[Any]:
    """Return what Synapse makes of the modules of a homeserver.yaml."""
    config = HomeServerConfig()
    minimal = {"server_name": "rendezvous.localhost", "report_stats": False, "macaroon_secret_key": "secret"}
    config.parse_config_dict({**minimal, "signing_key": SIGNING_KEY, **settings}, "", "")
    assert all(module is RendezvousModule for module, _ in config.modules.loaded_modules)
    return [options for _, options in config.modules.loaded_modules]


def test_versions() -> None:
    """Whatever names a version names this one."""
    for before, after in (("synapse-rendezvous==", "\n"), ("synapse_rendezvous-", "-py3"), ('version = "', '"')):
        for text in PAGE.split(before)[1:]:
            assert text.startswith(__version__), f"{before}{text.split(after)[0]}"
    assert f'{{"name":"synapse_rendezvous","version":"{__version__}", …' in PAGE


def test_lines() -> None:
    """The lines for homeserver.yaml, and those for the playbook, are the default configuration."""
    assert [RendezvousConfig()] == loaded(yaml.safe_load(LINES))
    assert [RendezvousConfig()] == loaded({"modules": PLAYBOOK["matrix_synapse_modules"]})
    assert PLAYBOOK["matrix_synapse_container_image_customizations_enabled"]
    run = PLAYBOOK["matrix_synapse_container_image_customizations_dockerfile_body_custom"]
    assert run in recipe("dockerfile", "FROM", "install.md")


def test_playbook_switches_the_other_server_off() -> None:
    """What the page adds for Matrix Authentication Service lets Synapse start with the module."""
    variables = yaml.safe_load(recipe("yaml", "matrix_synapse_experimental_features_msc4108_enabled", "install.md"))
    assert {"matrix_synapse_experimental_features_msc4108_enabled": False} == variables


class Debian:
    """The folders of Debian's package, below a temporary one.

    Args:
        root: an empty folder.
        port: where Synapse is to listen.
    """

    def __init__(self, root: pathlib.Path, port: int) -> None:
        self.root = root
        self.port = port
        self.etc = root / "etc/matrix-synapse"
        self.log = root / "var/log/matrix-synapse/homeserver.log"
        for folder in (self.etc / "conf.d", self.log.parent, root / "var/lib/matrix-synapse"):
            folder.mkdir(parents=True)
        self.write("conf.d/server_name.yaml", {"server_name": "rendezvous.localhost"})
        self.write("conf.d/report_stats.yaml", {"report_stats": False})
        self.write("homeserver.signing.key", SIGNING_KEY + "\n")
        self.write("log.yaml", DEFAULT_LOG_CONFIG.substitute(log_file=self.log))
        self.write("homeserver.yaml", self._homeserver())

    def write(self, name: str, settings: dict[str, Any] | str) -> None:
        text = settings if isinstance(settings, str) else yaml.safe_dump(settings)
        (self.etc / name).write_text(text)

    def here(self, command: str) -> str:
        """Return a command of the page so that it can be run here."""
        for there, here in (
            ("sudo -u matrix-synapse ", ""),
            ("/opt/venvs/matrix-synapse/bin/python", sys.executable),
            ("/etc/matrix-synapse", str(self.etc)),
            ("/var/log/matrix-synapse", str(self.log.parent)),
        ):
            command = command.replace(there, here)
        return command

    def run(self, command: str) -> str:
        """Run a command of the page, and return what it printed."""
        done = subprocess.run(self.here(command), shell=True, capture_output=True, text=True, timeout=60, check=False)
        assert (0, "") == (done.returncode, done.stderr), done
        return done.stdout

    def start(self) -> Server:
        """Start Synapse as the package's unit does."""
        configs = (f"--config-path={self.etc}/homeserver.yaml", f"--config-path={self.etc}/conf.d/")
        command = (sys.executable, "-m", "synapse.app.homeserver", *configs)
        server = Server(self.root, "synapse", self.port, *command)
        server.start()
        return server

    def _homeserver(self) -> dict[str, Any]:
        listener = {"port": self.port, "bind_addresses": [HOST], "type": "http", "resources": [{"names": ["client"]}]}
        return {
            "pid_file": f"{self.root}/synapse.pid",
            "listeners": [listener],
            "database": {"name": "sqlite3", "args": {"database": f"{self.root}/var/lib/matrix-synapse/homeserver.db"}},
            "log_config": f"{self.etc}/log.yaml",
            "media_store_path": f"{self.root}/var/lib/matrix-synapse/media",
            "signing_key_path": f"{self.etc}/homeserver.signing.key",
            "macaroon_secret_key": "secret",
            "trusted_key_servers": [],
        }


@pytest.fixture
def debian(tmp_path: pathlib.Path) -> Debian:
    """The folders of Debian's package, without the module."""
    return Debian(tmp_path, free_port())


COMMANDS = recipe("sh", "systemctl restart matrix-synapse", "install.md").replace("\\\n", "").splitlines()
READ, RESTART, LOG = COMMANDS
FIND = recipe("sh", "grep -rn", "install.md")


def test_debian_package(debian: Debian) -> None:
    """With the lines in a file of conf.d, the configuration is read, Synapse starts, and its log and address say so."""
    debian.write("conf.d/rendezvous.yaml", LINES)
    assert "conf.d/rendezvous.yaml:1:modules:" in debian.run(FIND)
    printed = debian.run(READ)
    assert "modules.loaded_modules: [(<class 'synapse_rendezvous.module.RendezvousModule'>" in printed
    assert RESTART == "sudo systemctl restart matrix-synapse"  # which we have not
    server = debian.start()
    try:
        wait_until(lambda: " on main" in debian.log.read_text())  # it is written in blocks, by default
        (line,) = debian.run(LOG).splitlines()
        (shown,) = re.findall(r"^(synapse_rendezvous .* on main: .*)…$", PAGE, re.MULTILINE)
        assert shown in line
        status, headers, body = ask("GET", f"{server.url}/_synapse/client/rendezvous")
        assert (200, "application/json") == (status, headers["Content-Type"])
        assert f'{{"name":"synapse_rendezvous","version":"{__version__}",'.encode() in body
    finally:
        server.stop()
    log = debian.log.read_text()
    assert " - ERROR - " not in log
    assert "Traceback" not in log


@pytest.mark.parametrize(("other", "stays"), [("homeserver.yaml", "5m"), ("conf.d/zulip.yaml", "1m")])
def test_later_modules_replace_earlier(debian: Debian, other: str, stays: str) -> None:
    """Of two `modules` lists, the one in the file that is read later is all there is; the page's command shows both."""
    debian.write("conf.d/rendezvous.yaml", LINES.replace("config: {}", "config: {ttl: 5m}"))
    text = (debian.etc / other).read_text() if (debian.etc / other).exists() else ""
    debian.write(other, text + LINES.replace("config: {}", "config: {ttl: 1m}"))
    assert 2 == len(debian.run(FIND).splitlines())
    printed = debian.run(READ)
    assert 1 == printed.count("RendezvousConfig(")
    assert f"ttl_ms={int(stays[0]) * 60_000}," in printed


def start_at_once(directory: pathlib.Path, settings: dict[str, Any]) -> ThrowawayHomeserver:
    """Return a homeserver with what the chart and the playbook set, merged with more."""
    features = {**WITH_AUTHENTICATION_SERVICE["experimental_features"], **settings.get("experimental_features", {})}
    settings = {**WITH_AUTHENTICATION_SERVICE, **settings, "experimental_features": features}
    return ThrowawayHomeserver(directory, port=free_port(), modules=settings.pop("modules"), settings=settings)


def test_three_lines(tmp_path: pathlib.Path) -> None:
    """With the lines of the page and nothing else, clients find the server and create at their own path."""
    homeserver = start_at_once(tmp_path, {**yaml.safe_load(LINES), "experimental_features": {"msc4108_enabled": False}})
    with running(homeserver):
        command, shown = recipe("sh", "org.matrix.msc4108", "install.md").splitlines()
        here = command.replace("https://matrix.example.com", homeserver.url)
        printed = subprocess.run(here, shell=True, capture_output=True, text=True, timeout=60, check=True).stdout
        assert shown.removeprefix("# ") == printed.strip().replace(": ", ":")
        exchange_msc4108(homeserver.url + MSC4108, homeserver.url)
        exchange_msc4388(homeserver.url + MSC4388)
        exchange_msc4388(homeserver.url + STABLE_MSC4388)


def test_helm_chart(tmp_path: pathlib.Path) -> None:
    """What the page adds, merged after what the chart sets, makes all dialects available, at the clients' paths."""
    homeserver = start_at_once(tmp_path, CHART_SETTINGS)
    with running(homeserver):
        exchange_msc4108(homeserver.url + MSC4108, homeserver.url)
        exchange_msc4388(homeserver.url + MSC4388)


def test_old_helm_chart(tmp_path: pathlib.Path) -> None:
    """Where the chart's line comes last, Synapse's own MSC4108 stays, and the module serves MSC4388 beside it."""
    (module,) = CHART_SETTINGS["modules"]
    homeserver = start_at_once(tmp_path, {"modules": [{**module, "config": OLD_CHART_CONFIG}]})
    with running(homeserver):
        exchange_msc4388(homeserver.url + MSC4388)
        code, headers, _ = ask("POST", homeserver.url + MSC4108, b"hello", Content_Type="text/plain")
        assert 201 == code
        assert "X-Max-Bytes" not in headers  # as ours has it


def test_helm_chart_with_both_servers(tmp_path: pathlib.Path) -> None:
    """With Synapse's own server and all dialects on, Synapse does not start, and says why."""
    homeserver = start_at_once(tmp_path, yaml.safe_load(LINES))
    with pytest.raises(DidNotStart, match=r"experimental_features\.msc4108_enabled"):
        homeserver.start()


@needs("nix-instantiate", "nix-bin")
def test_nixos(tmp_path: pathlib.Path) -> None:
    """The expression builds a package that needs what setup.cfg says, and makes it the module that Synapse loads."""
    (tmp_path / "rendezvous.nix").write_text(recipe("nix", "plugins", "install.md"))
    call = """
        let
          python = {
            setuptools = "setuptools"; attrs = "attrs"; prometheus-client = "prometheus-client";
            twisted = "twisted";
            buildPythonPackage = arguments: arguments // { src = baseNameOf arguments.src; };
          };
        in (import ./rendezvous.nix { pkgs.matrix-synapse-unwrapped.python.pkgs = python; }).services.matrix-synapse
    """
    folders = {f"NIX_{name}_DIR": str(tmp_path / name) for name in ("STORE", "STATE", "LOG", "CONF", "DATA")}
    command = ["nix-instantiate", "--eval", "--strict", "--json", "-E", call]
    done = subprocess.run(
        command, cwd=tmp_path, env={**os.environ, **folders}, capture_output=True, text=True, timeout=60, check=False
    )
    assert 0 == done.returncode, done.stderr
    service = json.loads(done.stdout)
    (package,) = service["plugins"]
    setup = (DOCS.parent / "setup.cfg").read_text()
    needed = setup.split("install_requires =\n")[1].split("\n\n")[0].splitlines()
    assert sorted(line.split(">=")[0].strip().replace("_", "-") for line in needed) == package["dependencies"]
    assert ("synapse-rendezvous", __version__) == (package["pname"], package["version"])
    assert f"synapse_rendezvous-{__version__}.tar.gz" == package["src"]
    assert [RendezvousConfig()] == loaded({"modules": service["settings"]["modules"]})


def test_compose_file() -> None:
    """The compose file starts the image that it builds."""
    (service,) = yaml.safe_load(recipe("yaml", "# compose.yaml", "install.md"))["services"].values()
    base = recipe("dockerfile", "FROM", "install.md").split()[1]
    assert service["image"].split(":")[1] == base.split(":")[1] == CHART["image"]["tag"]
