"""A throw-away homeserver to develop against, a rendezvous played on it, and a page to play another."""

import argparse
import contextlib
import errno
import http.client
import importlib.util
import ipaddress
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
from synapse_rendezvous.demo.certificate import Certificate
from synapse_rendezvous.demo.page import Page
from synapse_rendezvous.demo.throwaway_homeserver import HOST, DidNotStart, ThrowawayHomeserver, free_port
from synapse_rendezvous.paths import MSC3886

DEFAULT_PORT = 8018
DEFAULT_PAGE_PORT = 8019


class DemoError(Exception):
    """Why the demonstration cannot go on: one sentence, for whoever started it."""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the options of `demo`."""
    parser.add_argument(
        "--port", type=int, default=DEFAULT_PORT, help=f"where to listen; 0 for any free port (default: {DEFAULT_PORT})"
    )
    parser.add_argument(
        "--page-port",
        type=int,
        default=DEFAULT_PAGE_PORT,
        help=f"where the page listens; 0 for any free port (default: {DEFAULT_PAGE_PORT})",
    )
    parser.add_argument(
        "--host",
        default=HOST,
        help="this machine's IPv4 address in your network, so that phones reach page and homeserver; both then speak"
        " TLS with a certificate made on the fly (default: nobody but this machine)",
    )
    parser.add_argument("--ttl", help="how long a session lives, such as 30s (default: as in sample_config.yaml)")
    parser.add_argument("--once", action="store_true", help="end after the rendezvous instead of serving on")


def run(*, host: str, port: int, page_port: int, ttl: str | None, once: bool) -> int:
    """Run the demonstration.

    Args:
        host: the IPv4 address to listen at; with TLS, unless only this machine can reach it.
        port: where the homeserver listens; 0 for any free port.
        page_port: where the page listens; 0 for any free port.
        ttl: how long sessions live, as an operator would write it; None for the sample configuration's.
        once: end after the rendezvous; otherwise serve until interrupted.

    Returns:
        The exit status: 0 when all went as it should.
    """
    # Not only Ctrl-C: the homeserver must not outlive us when the terminal is closed, either.
    for ending in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
        signal.signal(ending, _interrupt)
    try:
        if not once:
            _require_free(host, page_port, "--page-port")
        with _homeserver(host, port, ttl) as homeserver:
            _play(homeserver)
            if not once:
                _serve(homeserver, host, page_port)
    except (DemoError, DidNotStart) as error:
        print(error, file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        print("\nStopped; the homeserver and its data are gone.")
    return 0


def _interrupt(_signal: int, _frame: FrameType | None) -> NoReturn:
    raise KeyboardInterrupt


@contextlib.contextmanager
def _homeserver(host: str, port: int, ttl: str | None) -> Iterator[ThrowawayHomeserver]:
    version = _synapse_version()
    modules = _sample_modules(ttl)
    port = port or free_port(host)
    _require_free(host, port, "--port")
    with tempfile.TemporaryDirectory(prefix="synapse_rendezvous_") as name:
        directory = pathlib.Path(name)
        # Browsers let pages use cryptography over TLS, and on their own machine.
        certificate = None if ipaddress.IPv4Address(host).is_loopback else Certificate.make(directory, host)
        homeserver = ThrowawayHomeserver(directory, host=host, port=port, certificate=certificate, modules=modules)
        print(f"Starting Synapse {version} with synapse_rendezvous {__version__} at {homeserver.url} ...", flush=True)
        with homeserver:
            yield homeserver


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

    sample = pathlib.Path(__file__).parent.parent / "sample_config.yaml"
    modules: list[dict[str, Any]] = yaml.safe_load(sample.read_text())["modules"]
    if ttl is not None:
        modules[0]["config"]["ttl"] = ttl
        try:
            RendezvousConfig.parse(modules[0]["config"])
        except ConfigError as error:
            raise DemoError(f"--{'.'.join(error.path or ())} {error.msg}") from None
    return modules


def _require_free(host: str, port: int, option: str) -> None:
    try:
        is_usable = not ipaddress.IPv4Address(host).is_unspecified
    except ValueError:
        is_usable = False  # IPv6 as well: no Content-Security-Policy of the page could name it
    if not is_usable:
        raise DemoError(f"--host must be an IPv4 address of this machine, such as 192.168.1.20; not {host!r}.")
    with socket.socket() as listener:
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            listener.bind((host, port))
        except (OSError, OverflowError) as error:
            if isinstance(error, OSError) and error.errno == errno.EADDRINUSE:
                raise DemoError(
                    f"Port {port} is in use. Choose another with {option}, or let {option} 0 find a free one."
                ) from None
            if isinstance(error, OSError) and error.errno == errno.EADDRNOTAVAIL:
                raise DemoError(f"--host {host} cannot be used: it is no address of this machine.") from None
            raise DemoError(f"Port {port} cannot be used: {error}") from None


class _Device:
    """One of the two devices: sends requests, prints them, and remembers the tag it has seen last."""

    def __init__(self, name: str, connection: http.client.HTTPConnection) -> None:
        self._name = name
        self._connection = connection
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


def _play(homeserver: ThrowawayHomeserver) -> None:
    new, known = (_Device(name, homeserver.connect(timeout_s=30)) for name in ("new", "signed-in"))
    print("\nTwo devices of one person meet.\n")
    print("1. The new device makes a session, and shows its address as a QR code.")
    session = json.loads(new.send(200, "POST", MSC3886, "hello, who is there?"))
    path = f"{MSC3886}/{session['id']}"
    first = new.tag
    print("2. The signed-in device scans it, and reads.")
    known.send(200, "GET", path)
    print("3. The new device asks for news; there are none yet.")
    new.send(304, "GET", f"{path}?timeout=0", conditions={"If-None-Match": new.tag})
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


def _serve(homeserver: ThrowawayHomeserver, host: str, page_port: int) -> NoReturn:
    collection = homeserver.url + MSC3886
    with Page(homeserver_url=homeserver.url, host=host, port=page_port, certificate=homeserver.certificate) as page:
        _invite(homeserver, collection, page)
        homeserver.wait()
    raise DemoError(f"Synapse ended. {homeserver.log_end()}")


def _invite(homeserver: ThrowawayHomeserver, collection: str, page: Page) -> None:
    curl = "curl -i"
    accept = ""
    if homeserver.certificate is not None:
        curl = "curl -ik"
        accept = f"""
Phones in your network reach both. Their browsers warn, because nobody vouches for a certificate made on the fly: accept
it, once for the page and once for the rendezvous server. Its fingerprint (SHA-256) is
{homeserver.certificate.fingerprint}
"""
    print(
        f"""Now it is your turn. Serving until Ctrl-C:

  {page.url}       pair two devices, and watch: open it in a browser
  {collection}       the rendezvous server
  {homeserver.url}/_matrix/client/versions       the homeserver around it
{accept}
Or by hand, with the id and the ETag that the second line answers in place of ID and ETAG:

  {curl} {collection}
  {curl} -X POST -H 'Content-Type: text/plain' --data 'hello' {collection}
  {curl} {collection}/ID
  {curl} -H 'If-None-Match: "ETAG"' {collection}/ID
  {curl} -X PUT -H 'If-Match: "ETAG"' -H 'Content-Type: text/plain' --data 'it is me' {collection}/ID
  {curl} -X DELETE {collection}/ID
""",
        flush=True,
    )
