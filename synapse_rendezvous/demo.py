"""A throw-away homeserver to develop against, and one rendezvous played on it."""

import argparse
import contextlib
import errno
import http.client
import importlib.util
import json
import pathlib
import signal
import socket
import sys
import tempfile
from collections.abc import Iterator
from types import FrameType
from typing import Any, NoReturn

from synapse_rendezvous import __version__
from synapse_rendezvous.throwaway import HOST, DidNotStart, ThrowawayHomeserver, free_port

DEFAULT_PORT = 8018
COLLECTION = "/_synapse/client/rendezvous"


class DemoError(Exception):
    """Why the demonstration cannot go on: one sentence, for whoever started it."""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the options of `demo`."""
    parser.add_argument(
        "--port", type=int, default=DEFAULT_PORT, help=f"where to listen; 0 for any free port (default: {DEFAULT_PORT})"
    )
    parser.add_argument("--ttl", help="how long a session lives, such as 30s (default: as in sample_config.yaml)")
    parser.add_argument("--once", action="store_true", help="end after the rendezvous instead of serving on")


def run(*, port: int, ttl: str | None, once: bool) -> int:
    """Run the demonstration.

    Args:
        port: where to listen; 0 for any free port.
        ttl: how long sessions live, as an operator would write it; None for the sample configuration's.
        once: end after the rendezvous; otherwise serve until interrupted.

    Returns:
        The exit status: 0 when all went as it should.
    """
    # Not only Ctrl-C: the homeserver must not outlive us when the terminal is closed, either.
    for ending in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
        signal.signal(ending, _interrupt)
    try:
        with _homeserver(port, ttl) as homeserver:
            _play(homeserver.url)
            if not once:
                _invite(homeserver.url)
                homeserver.wait()
                raise DemoError(f"Synapse ended. {homeserver.log_end()}")
    except (DemoError, DidNotStart) as error:
        print(error, file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        print("\nStopped; the homeserver and its data are gone.")
    return 0


def _interrupt(_signal: int, _frame: FrameType | None) -> NoReturn:
    raise KeyboardInterrupt


@contextlib.contextmanager
def _homeserver(port: int, ttl: str | None) -> Iterator[ThrowawayHomeserver]:
    version = _synapse_version()
    modules = _sample_modules(ttl)
    port = port or free_port()
    _require_free(port)
    with tempfile.TemporaryDirectory(prefix="synapse_rendezvous_") as directory:
        homeserver = ThrowawayHomeserver(pathlib.Path(directory), port=port, modules=modules)
        print(f"Starting Synapse {version} with synapse_rendezvous {__version__} at {homeserver.url} ...", flush=True)
        try:
            homeserver.start()
            yield homeserver
        finally:
            homeserver.stop()


def _synapse_version() -> str:
    if importlib.util.find_spec("synapse") is None or importlib.util.find_spec("synapse.app.homeserver") is None:
        raise DemoError(
            f"Synapse is not installed for {sys.executable}. Install it beside this package:"
            f" {sys.executable} -m pip install matrix-synapse"
        )
    import synapse
    from synapse.config._base import ConfigError

    from synapse_rendezvous.homeserver import require_supported

    try:
        require_supported(synapse.__version__)
    except ConfigError as error:
        raise DemoError(error.msg) from None
    return synapse.__version__.split()[0]  # without the branch, if it stands in a git checkout


def _sample_modules(ttl: str | None) -> list[dict[str, Any]]:
    import yaml  # comes with Synapse
    from synapse.config._base import ConfigError

    from synapse_rendezvous.config import RendezvousConfig

    sample = pathlib.Path(__file__).parent / "sample_config.yaml"
    modules: list[dict[str, Any]] = yaml.safe_load(sample.read_text())["modules"]
    if ttl is not None:
        modules[0]["config"]["ttl"] = ttl
        try:
            RendezvousConfig.parse(modules[0]["config"])
        except ConfigError as error:
            raise DemoError(f"--{'.'.join(error.path or ())} {error.msg}") from None
    return modules


def _require_free(port: int) -> None:
    with socket.socket() as listener:
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            listener.bind((HOST, port))
        except (OSError, OverflowError) as error:
            if isinstance(error, OSError) and error.errno == errno.EADDRINUSE:
                raise DemoError(
                    f"Port {port} is in use. Choose another with --port, or let --port 0 find a free one."
                ) from None
            raise DemoError(f"Port {port} cannot be used: {error}") from None


class _Device:
    """One of the two devices: sends requests, prints them, and remembers the tag it has seen last."""

    def __init__(self, name: str, url: str) -> None:
        self._name = name
        self._connection = http.client.HTTPConnection(url.removeprefix("http://"), timeout=30)
        self.tag = ""

    def send(
        self,
        expected: int,
        method: str,
        path: str,
        content: str | None = None,
        conditions: dict[str, str] | None = None,
    ) -> str:
        """Send a request and return the content of the answer, whose status must be the expected one."""
        conditions = conditions or {}
        headers = {**conditions, **({} if content is None else {"Content-Type": "text/plain"})}
        self._connection.request(method, path, content, headers)
        response = self._connection.getresponse()
        answer = response.read().decode("utf-8")
        tag = response.headers.get("ETag")
        self.tag = tag or self.tag
        sent = "".join(f"   {name}: {value}" for name, value in conditions.items())
        print(f"   {self._name:>9} device  {method} {path}{sent}{f'   {content}' if content else ''}")
        print(f"   {'':>16}  {response.status}{f'   ETag: {tag}' if tag else ''}{f'   {answer}' if answer else ''}\n")
        if response.status != expected:
            raise DemoError(f"Expected the status {expected}, but got {response.status}.")
        return answer


def _play(url: str) -> None:
    new, known = _Device("new", url), _Device("signed-in", url)
    print("\nTwo devices of one person meet.\n")
    print("1. The new device makes a session, and shows its address as a QR code.")
    session = json.loads(new.send(200, "POST", COLLECTION, "hello, who is there?"))
    path = f"{COLLECTION}/{session['id']}"
    first = new.tag
    print("2. The signed-in device scans it, and reads.")
    known.send(200, "GET", path)
    print("3. The new device asks for news; there are none yet.")
    new.send(304, "GET", path, conditions={"If-None-Match": new.tag})
    print("4. The signed-in device answers, provided that nobody wrote since it read.")
    known.send(202, "PUT", path, "it is me", {"If-Match": known.tag})
    print("5. The new device asks again, and has the answer.")
    new.send(200, "GET", path, conditions={"If-None-Match": new.tag})
    print("6. A write by somebody who has not read the answer is refused.")
    known.send(412, "PUT", path, "too late", {"If-Match": first})
    print("7. The new device ends the session.")
    new.send(204, "DELETE", path)
    print("8. It is gone.")
    known.send(404, "GET", path)


def _invite(url: str) -> None:
    collection = url + COLLECTION
    print(
        f"""Now it is your turn. Serving until Ctrl-C:

  {collection}       the rendezvous server: open it in a browser
  {url}/_matrix/client/versions       the homeserver around it

Try it, with the id and the ETag that the second line answers in place of ID and ETAG:

  curl -i {collection}
  curl -i -X POST -H 'Content-Type: text/plain' --data 'hello' {collection}
  curl -i {collection}/ID
  curl -i -H 'If-None-Match: "ETAG"' {collection}/ID
  curl -i -X PUT -H 'If-Match: "ETAG"' -H 'Content-Type: text/plain' --data 'it is me' {collection}/ID
  curl -i -X DELETE {collection}/ID
""",
        flush=True,
    )
