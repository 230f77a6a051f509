"""Devices with the clients' own libraries sign in by QR code through us, with MSC4108 and a real Synapse.

The libraries are those of Element X (matrix-rust-sdk) and Element Web (matrix-js-sdk), in all combinations. One device
is signed in and one is new, each in a process of its own; either shows the code. The test is the person, who carries
the code and the check code from one screen to the other and approves the new device on the OAuth server's page.
"""

import base64
import contextlib
import functools
import json
import os
import pathlib
import queue
import shutil
import struct
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator, Mapping
from typing import Any
from urllib.parse import parse_qs, urlencode, urlsplit

import pytest

from support.homeservers import new_homeserver, running
from support.http_client import ask
from support.ports import free_port
from support.servers import Server
from support.until import HANGS_S, wait_until
from synapse_rendezvous.demo.throwaway_homeserver import HOST, ThrowawayHomeserver
from synapse_rendezvous.observer import SHORT_ID_LENGTH
from synapse_rendezvous.paths import MSC4108
from tools import fetch_clients

SECRET = "between-synapse-and-the-oauth-server"


class OAuthServer(Server):
    """An OAuth server in the place of Matrix Authentication Service.

    Args:
        directory: where the programs are.
        port: where it listens.
        homeserver_url: the homeserver whose devices it signs in.
    """

    health = "/.well-known/openid-configuration"

    def __init__(self, directory: pathlib.Path, port: int, homeserver_url: str) -> None:
        command = [str(fetch_clients.node()), str(directory / "oauth_server.js"), str(port), homeserver_url, SECRET]
        super().__init__(directory, "oauth_server", port, *command)

    def sign_in(self, username: str, device_id: str) -> dict[str, str]:
        """Sign a device in, and return its access token and its client's id."""
        return self._post("sign_in", username=username, device_id=device_id)

    def approve(self, username: str, verification_uri: str) -> None:
        """Approve a new device, as a person does at this address."""
        (user_code,) = parse_qs(urlsplit(verification_uri).query)["user_code"]
        self._post("approve", username=username, user_code=user_code)

    def _post(self, path: str, **query: str) -> dict[str, str]:
        answer = ask("POST", f"{self.url}/{path}?{urlencode(query)}")
        assert answer.status == 200, answer
        result: dict[str, str] = answer.json()
        return result


class Device:
    """A device in a process of its own, to be used in a `with` statement.

    Args:
        log: the file for its log.
        heard: where it puts all that it says, each as itself, a name and a value; in the end, `ended` and its status.
        command: the program.
        settings: what the program is told; see there.
    """

    def __init__(self, log: pathlib.Path, heard: "queue.Queue[Heard]", *command: str, **settings: object) -> None:
        self.log = log
        self._heard = heard
        with log.open("wb") as file:
            self._process = subprocess.Popen(
                [*command, json.dumps(settings)],
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=file,
                text=True,
                env={**os.environ, "PYTHONPATH": str(fetch_clients.CLIENTS / "python")},
            )
        self._thread = threading.Thread(target=self._listen)
        self._thread.start()

    def __enter__(self) -> "Device":
        return self

    def __exit__(self, *_: object) -> None:
        self._process.kill()
        self._thread.join()

    def tell(self, name: str, value: object) -> None:
        """Tell it what the person saw on the other device, or did."""
        assert self._process.stdin
        with contextlib.suppress(OSError, ValueError):  # it has ended, which is heard next
            self._process.stdin.write(json.dumps({name: value}) + "\n")
            self._process.stdin.flush()

    def _listen(self) -> None:
        with self._process as process:  # which waits for its end
            assert process.stdout
            for line in process.stdout:
                ((name, value),) = json.loads(line).items()
                self._heard.put((self, name, value))
        self._heard.put((self, "ended", process.returncode))


Heard = tuple[Device, str, Any]


@pytest.fixture(scope="module")
def programs(tmp_path_factory: pytest.TempPathFactory) -> pathlib.Path:
    """The programs of the devices and of the OAuth server, in a folder where Node.js finds their libraries."""
    fetch_clients.main()
    folder = tmp_path_factory.mktemp("sign_in") / "programs"
    shutil.copytree(fetch_clients.SOURCES, folder)
    (folder / "node_modules").symlink_to(fetch_clients.CLIENTS / "node_modules")
    return folder


@pytest.fixture(scope="module")
def servers(
    programs: pathlib.Path, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[tuple[ThrowawayHomeserver, OAuthServer]]:
    """A homeserver with the module, and the OAuth server that it relies on."""
    port, oauth_port = free_port(), free_port()
    endpoint = f"http://{HOST}:{oauth_port}/"
    settings: dict[str, Any] = {
        "matrix_authentication_service": {"enabled": True, "endpoint": endpoint, "secret": SECRET},
    }
    homeserver = new_homeserver(tmp_path_factory.mktemp("homeserver"), settings=settings, port=port)
    with running(homeserver), OAuthServer(programs, oauth_port, homeserver.url) as oauth_server:
        yield homeserver, oauth_server


def act(first: Device, second: Device, heard: "queue.Queue[Heard]", approve: Callable[[str], None]) -> dict[str, Any]:
    """Do what the person does, until both devices are done; return all that the devices said, by name."""
    said: dict[str, Any] = {}
    done: set[Device] = set()
    while len(done) < 2:
        try:
            device, name, value = heard.get(timeout=HANGS_S)
        except queue.Empty:
            raise AssertionError(f"hangs: {first.log.read_text()}\n{second.log.read_text()}") from None
        other = second if device is first else first
        said[name] = value or said.get(name)
        if name == "done":
            done.add(device)
        elif name == "verification_uri":
            approve(value)
            device.tell("approved", True)
        elif name == "ended":
            assert device in done, f"{value}: {device.log.read_text()}"
        else:  # the code or the check code
            other.tell(name, value)
    return said


def session_url(code: bytes) -> str:
    """Return the session's address in a code: behind `MATRIX`, a version, a mode, and a key; after its length."""
    (length,) = struct.unpack_from(">H", code, 40)
    return code[42 : 42 + length].decode()


@pytest.mark.parametrize("shows", ["signed_in_shows", "new_shows"])
@pytest.mark.parametrize("new", ["js", "rust"])
@pytest.mark.parametrize("signed_in", ["js", "rust"])
def test_sign_in(
    programs: pathlib.Path,
    servers: tuple[ThrowawayHomeserver, OAuthServer],
    tmp_path: pathlib.Path,
    signed_in: str,
    new: str,
    shows: str,
) -> None:
    """The new device is signed in and has all secrets, and the session was used."""
    homeserver, oauth_server = servers
    commands = {
        "js": [str(fetch_clients.node()), str(programs / "matrix_js_sdk.js")],
        "rust": [sys.executable, str(programs / "matrix_rust_sdk.py")],
    }
    username, device_id = f"{signed_in}-{new}-{shows}", "FIRST"
    user_id = f"@{username}:rendezvous.localhost"
    session = {**oauth_server.sign_in(username, device_id), "user_id": user_id, "device_id": device_id}
    heard: queue.Queue[Heard] = queue.Queue()

    def device(name: str, kind: str, session: Mapping[str, str] | None) -> Device:
        is_shown = shows == f"{name}_shows"
        settings = {"homeserver": homeserver.url, "session": session, "shows": is_shown}
        return Device(tmp_path / f"{name}.log", heard, *commands[kind], **settings)

    with device("signed_in", signed_in, session) as first, device("new", new, None) as second:
        said = act(first, second, heard, functools.partial(oauth_server.approve, username))

    result = said["done"]
    assert result["has_cross_signing_keys"]
    assert result["has_backup_key"]
    authorization = f"Bearer {result['access_token']}"
    who = ask("GET", f"{homeserver.url}/_matrix/client/v3/account/whoami", Authorization=authorization).json()
    assert (user_id, result["device_id"], False) == (who["user_id"], who["device_id"], who["is_guest"])
    url = session_url(base64.b64decode(said["code"]))
    assert url.startswith(f"{homeserver.url}{MSC4108}/")
    assert ask("DELETE", url).status == (404 if new == "js" else 204), "matrix-js-sdk alone ends the session"
    short_id = url.rpartition("/")[2][:SHORT_ID_LENGTH]
    ended = f"Session {short_id}... has ended: paired"
    wait_until(lambda: ended in homeserver.log.read_text())
