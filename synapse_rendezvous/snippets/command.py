"""Configurations for reverse proxies, ready to be pasted."""

import argparse
import pathlib
import re
import string
from collections.abc import Sequence

from synapse_rendezvous.paths import PREFIXES

DEFAULT_HOST = "matrix.example.com"
DEFAULT_UPSTREAM = "127.0.0.1:8008"
_TEMPLATES = {path.stem: path for path in sorted((pathlib.Path(__file__).parent / "templates").iterdir())}
PRODUCTS = tuple(_TEMPLATES)
"""The reverse proxies that there is a configuration for."""

_NAME = r"[A-Za-z0-9](?:[A-Za-z0-9.-]*[A-Za-z0-9])?"
_HOST = re.compile(rf"{_NAME}|\[[0-9A-Fa-f:.]+\]")
_UPSTREAM = re.compile(rf"({_NAME}|\[[0-9A-Fa-f:.]+\]):([0-9]{{1,5}})")
_PATH = re.compile(r"(?:/[A-Za-z0-9._~-]+)+")


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the options of `snippet`."""
    parser.add_argument("product", choices=PRODUCTS, help="the reverse proxy")
    parser.add_argument(
        "--host", type=_host, default=DEFAULT_HOST, help="the homeserver's name for clients (default: %(default)s)"
    )
    parser.add_argument(
        "--upstream",
        type=_upstream,
        default=DEFAULT_UPSTREAM,
        help="address and port of the listener of Synapse that the proxy connects to (default: %(default)s)",
    )
    parser.add_argument(
        "--path",
        type=_path,
        action="append",
        dest="paths",
        help="a path that belongs to the module, as under dialects in homeserver.yaml; may be given several times"
        f" (default: {' and '.join(PREFIXES)})",
    )


def run(*, product: str, host: str, upstream: str, paths: Sequence[str] | None) -> int:
    """Print the configuration for a reverse proxy.

    Args:
        product: one of `PRODUCTS`.
        host: the homeserver's name for clients.
        upstream: address and port of Synapse's listener.
        paths: where the module's dialects are; None for where they are by default.

    Returns:
        The exit status, 0.
    """
    unique = tuple(dict.fromkeys(paths or PREFIXES))
    print(render(product, host=host, upstream=upstream, paths=unique), end="")
    return 0


def render(
    product: str,
    *,
    host: str = DEFAULT_HOST,
    upstream: str = DEFAULT_UPSTREAM,
    paths: Sequence[str] = PREFIXES,
) -> str:
    """Return the configuration for a reverse proxy; arguments as for `run`.

    In a template, a paragraph (lines without an empty one between them) that has `${path}` stands for each path once.
    """
    values = {
        "host": host,
        "upstream": upstream,
        "paths": " ".join(paths),
        "prefixes": " ".join(f"{path}*" for path in paths),
        "regex": "|".join(map(re.escape, paths)),
        "rule": " || ".join(f"PathPrefix(`{path}`)" for path in paths),
    }
    paragraphs = _TEMPLATES[product].read_text(encoding="utf-8").split("\n\n")
    return "\n\n".join(
        string.Template(paragraph).substitute(values, path=path)
        for paragraph in paragraphs
        for path in (paths if "${path}" in paragraph else paths[:1])
    )


def _host(value: str) -> str:
    if not _HOST.fullmatch(value):
        raise argparse.ArgumentTypeError(
            f"{value!r} must be a host name such as {DEFAULT_HOST}, without https:// or a path"
        )
    return value


def _upstream(value: str) -> str:
    match = _UPSTREAM.fullmatch(value)
    if not match or not 0 < int(match[2]) < 65536:
        raise argparse.ArgumentTypeError(
            f"{value!r} must be an address and a port such as {DEFAULT_UPSTREAM} or [::1]:8008, without http:// or a"
            " path; for a unix socket, print the configuration without --upstream and see its comments"
        )
    return value


def _path(value: str) -> str:
    if not _PATH.fullmatch(value):
        raise argparse.ArgumentTypeError(
            f"{value!r} must be a path such as {PREFIXES[0]}: a slash first, none at the end, and between them"
            " letters, digits, '.', '_', '~' and '-'"
        )
    return value
