"""Show which functions of synapse_rendezvous a request calls, and how often the next one is in another file.

These are what somebody reads to follow a request. Each kind of request is sent twice by the same client, through a
proxy; the second one is shown, when caches are filled. The homeserver runs in this process, under Synapse's harness for
tests, which `make test` fetches.
"""

import argparse
import contextlib
import itertools
import pathlib
import sys
import unittest
from collections.abc import Iterator, Mapping, Sequence
from types import FrameType
from typing import Any, NamedTuple

import synapse_rendezvous

sys.path.insert(0, str(pathlib.Path(__file__).parent.parent / "tests"))

from tools.fetch_synapse_tests import HARNESS

sys.path.insert(1, str(HARNESS))  # see tests/conftest.py

from synapse.http.site import XForwardedForRequest
from tests.unittest import HomeserverTestCase

PACKAGE = f"{pathlib.Path(synapse_rendezvous.__file__).parent}/"
PATH = "/_synapse/client/rendezvous"

_AT_ONCE = {"long_poll": {"default_wait": 0}}
_PROXY_FIELDS = (("X-Forwarded-For", "1.2.3.4"), ("X-Forwarded-Proto", "https"))


class Call(NamedTuple):
    """One call.

    Attributes:
        file: where the function is, within the package.
        function: its qualified name.
    """

    file: str
    function: str


@contextlib.contextmanager
def recorded() -> Iterator[list[Call]]:
    """Record the calls in a `with` statement.

    Whatever has a frame of its own counts: lambdas, properties and, up to Python 3.11, comprehensions; so does a
    coroutine each time that it goes on.
    """
    calls: list[Call] = []

    def note(frame: FrameType, event: str, _argument: object) -> None:
        code = frame.f_code
        if event == "call" and code.co_filename.startswith(PACKAGE):
            name = getattr(code, "co_qualname", code.co_name)  # which came with Python 3.11
            calls.append(Call(code.co_filename.removeprefix(PACKAGE), name))

    sys.setprofile(note)
    try:
        yield calls
    finally:
        sys.setprofile(None)


def changes(calls: Sequence[Call]) -> int:
    """Return how often a call is in another file than the one before."""
    return sum(one.file != next_one.file for one, next_one in itertools.pairwise(calls))


class WarmHomeserver(HomeserverTestCase):  # type: ignore[misc]  # it has no types
    """A homeserver with the module as it comes.

    Attributes:
        calls: those of each kind of request, once `record` is done.
    """

    calls: Mapping[str, Sequence[Call]]

    def default_config(self) -> dict[str, Any]:
        """Called by the harness."""
        return {
            **super().default_config(),
            "modules": [{"module": "synapse_rendezvous.RendezvousModule", "config": _AT_ONCE}],
        }

    def create_resource_dict(self) -> dict[str, Any]:
        """Called by the harness."""
        return {**super().create_resource_dict(), **self.hs._module_web_resources}

    def record(self) -> None:
        """Send each kind of request twice, and record the second one."""
        self._ask("POST", PATH, 200)
        channel, create = self._ask("POST", PATH, 200)
        first, second = (f"{PATH}/{self._ask('POST', PATH, 200)[0].json_body['id']}" for _ in range(2))
        channel, _ = self._ask("GET", first, 200)
        _, read = self._ask("GET", first, 200)
        self._ask("GET", first, 304, ("If-None-Match", _tag(channel)))
        _, poll = self._ask("GET", first, 304, ("If-None-Match", _tag(channel)))
        channel, _ = self._ask("PUT", first, 202, ("If-Match", _tag(channel)))
        _, replace = self._ask("PUT", first, 202, ("If-Match", _tag(channel)))
        self._ask("DELETE", second, 204)
        _, delete = self._ask("DELETE", first, 204)
        self.calls = {"poll": poll, "PUT": replace, "GET": read, "POST": create, "DELETE": delete}

    def _ask(self, method: str, target: str, status: int, *fields: tuple[str, bytes]) -> tuple[Any, list[Call]]:
        """Send a request; return its answer and the calls that it took."""
        content = b"x" * 1024 if method in ("POST", "PUT") else b""
        with recorded() as calls:
            channel = self.make_request(
                method,
                target,
                content,
                request=XForwardedForRequest,
                content_type=b"text/plain",
                custom_headers=(*_PROXY_FIELDS, *fields),
            )
        assert channel.code == status, channel.result
        return channel, calls


def _tag(channel: Any) -> bytes:
    """Return the entity tag of an answer."""
    return bytes(channel.headers.getRawHeaders(b"ETag")[0])


def main() -> int:
    """Print the calls."""
    argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter).parse_args()
    homeserver, result = WarmHomeserver("record"), unittest.TestResult()
    homeserver.run(result)
    for _, traceback in result.errors + result.failures:
        print(traceback, file=sys.stderr)
        return 1
    for operation, calls in homeserver.calls.items():
        print(f"{operation}: {len(calls)} calls, {changes(calls)} changes of file")
        print("".join(f"  {call.file:24} {call.function}\n" for call in calls))
    return 0


if __name__ == "__main__":
    sys.exit(main())
