"""The options of a check. It imports without Synapse and pyOpenSSL."""

import enum
import socket
from collections.abc import Sequence
from typing import NamedTuple

DEFAULT_ORIGIN = "https://app.element.io"


class AddressFamily(enum.Enum):
    """The versions of IP that requests may use."""

    ANY = socket.AF_UNSPEC
    IPV4 = socket.AF_INET
    IPV6 = socket.AF_INET6


class CheckOptions(NamedTuple):
    """The options of a check.

    Attributes:
        target: what to check: the URL of the homeserver or of the collection, or a server name.
        origin: the origin that a web client would have.
        family: the version of IP to use.
        source: the local address to send from; None lets the system choose.
        configs: paths of homeserver.yaml and of the files that Synapse reads beside it.
    """

    target: str
    origin: str = DEFAULT_ORIGIN
    family: AddressFamily = AddressFamily.ANY
    source: str | None = None
    configs: Sequence[str] = ()
