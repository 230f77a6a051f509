"""Devices with the clients' own libraries, the OAuth server that signs them in, and the person who holds them.

The libraries are those of Element X (matrix-rust-sdk) and Element Web (matrix-js-sdk), each device in a process of its
own.
"""

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
import time
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple
from urllib.parse import parse_qs, urlencode, urlsplit

from support.http_client import ask
from support.servers import Server
from support.until import HANGS_S
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


def programs(directory: pathlib.Path) -> pathlib.Path:
    """Return the programs of the devices and of the OAuth server, where Node.js finds their libraries."""
    fetch_clients.main()
    folder = directory / "programs"
    shutil.copytree(fetch_clients.SOURCES, folder)
    (folder / "node_modules").symlink_to(fetch_clients.CLIENTS / "node_modules")
    return folder


def act(
    first: Device, second: Device, heard: "queue.Queue[Heard]", approve: Callable[[str], None]
) -> tuple[dict[str, Any], float]:
    """Do what the person does, until both devices are done.

    Returns:
        All that the devices said, by name, and the seconds since the scan.
    """
    said: dict[str, Any] = {}
    done: set[Device] = set()
    scanned_s = 0.0
    while len(done) < 2:
        try:
            device, name, value = heard.get(timeout=HANGS_S)
        except queue.Empty:
            raise AssertionError(f"hangs: {first.log.read_text()}\n{second.log.read_text()}") from None
        other = second if device is first else first
        said[name] = value or said.get(name)
        if name == "done":
            done.add(device)
            done_s = time.monotonic()
        elif name == "verification_uri":
            approve(value)
            device.tell("approved", True)
        elif name == "ended":
            assert device in done, f"{value}: {device.log.read_text()}"
        else:  # the code or the check code
            if name == "code":
                scanned_s = time.monotonic()
            other.tell(name, value)
    return said, done_s - scanned_s


def session_url(code: bytes) -> str:
    """Return the session's address in a code: behind `MATRIX`, a version, a mode, and a key; after its length."""
    (length,) = struct.unpack_from(">H", code, 40)
    return code[42 : 42 + length].decode()


class SignIn(NamedTuple):
    """A sign-in that has succeeded.

    Attributes:
        user_id: whose device is new.
        said: all that the devices said, by name.
        took_s: how long it took from the scan until both devices were done.
    """

    user_id: str
    said: Mapping[str, Any]
    took_s: float


def sign_in(
    folder: pathlib.Path,
    logs: pathlib.Path,
    homeserver_url: str,
    oauth_server: OAuthServer,
    username: str,
    *,
    signed_in: str,
    new: str,
    shows: str,
) -> SignIn:
    """Sign in a new device.

    Args:
        folder: what `programs` returned.
        logs: an empty folder for the devices' logs.
        homeserver_url: where they are signed in.
        oauth_server: signs them in there.
        username: a new user of it.
        signed_in: the library of the device that is signed in, `js` or `rust`.
        new: that of the new device.
        shows: which device shows the code, `signed_in_shows` or `new_shows`.
    """
    commands = {
        "js": [str(fetch_clients.node()), str(folder / "matrix_js_sdk.js")],
        "rust": [sys.executable, str(folder / "matrix_rust_sdk.py")],
    }
    user_id, device_id = f"@{username}:rendezvous.localhost", "FIRST"
    session = {**oauth_server.sign_in(username, device_id), "user_id": user_id, "device_id": device_id}
    heard: queue.Queue[Heard] = queue.Queue()

    def device(name: str, kind: str, session: Mapping[str, str] | None) -> Device:
        settings = {"homeserver": homeserver_url, "session": session, "shows": shows == f"{name}_shows"}
        return Device(logs / f"{name}.log", heard, *commands[kind], **settings)

    with device("signed_in", signed_in, session) as first, device("new", new, None) as second:
        said, took_s = act(first, second, heard, functools.partial(oauth_server.approve, username))
    return SignIn(user_id, said, took_s)
