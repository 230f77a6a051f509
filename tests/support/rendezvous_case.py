"""A test case with a homeserver that has the module, under Synapse's fake clock."""

import gc
import json
from typing import Any, ClassVar
from unittest.mock import patch

from tests.server import TestHomeServer
from tests.unittest import HomeserverTestCase

from synapse_rendezvous import clock

COMMON = {
    "Cache-Control": ["no-store, no-transform"],
    "Pragma": ["no-cache"],
    "Vary": ["*"],
    "Access-Control-Allow-Origin": ["*"],
    "Access-Control-Expose-Headers": ["ETag, Location, X-Max-Bytes, Retry-After"],
    "Cross-Origin-Resource-Policy": ["same-origin"],
    "X-Content-Type-Options": ["nosniff"],
    "Content-Security-Policy": ["sandbox; default-src 'none'; frame-ancestors 'none'"],
}


def age_by(case: Any, reactor: Any) -> None:
    """Let the sessions and limits of a test's homeservers age by the reactor's clock, in place of monotonic time."""
    monotonic = patch.object(clock, "monotonic_ns", lambda: int(reactor.seconds() * 1000) * 1_000_000)
    monotonic.start()
    case.addCleanup(monotonic.stop)


class UntouchedHomeserver(TestHomeServer):
    """A homeserver whose database is as a new one is.

    On homeservers of the class that it is made of, Synapse's harness lets old databases be brought up to date, which
    takes half of each test's time and changes nothing for us.
    """


class RendezvousTestCase(HomeserverTestCase):
    """A homeserver with the module. Polls are answered at once, unless the options say otherwise."""

    options: ClassVar[dict[str, Any]] = {}
    path = "/_synapse/client/rendezvous"

    def default_config(self) -> dict[str, Any]:
        config: dict[str, Any] = super().default_config()
        options = {**self.options, "long_poll": {"default_wait": 0, **self.options.get("long_poll", {})}}
        config.setdefault("modules", []).append({"module": "synapse_rendezvous.RendezvousModule", "config": options})
        return config

    def make_homeserver(self, reactor: Any, synapse_clock: Any) -> Any:
        age_by(self, reactor)
        return super().make_homeserver(reactor, synapse_clock)

    def setup_test_homeserver(self, *arguments: Any, **more: Any) -> Any:
        return super().setup_test_homeserver(*arguments, **{"homeserver_to_use": UntouchedHomeserver, **more})

    def collect_garbage(self) -> None:
        """Let Python collect garbage in this test, which Synapse's harness has switched off; it does so between tests.

        What earlier tests left behind goes at once. Homeservers are among it, whose background processes leave their
        log contexts as they go: in the middle of a request, that would take its context away.
        """
        gc.collect()
        gc.enable()
        self.addCleanup(gc.disable)
        self.addCleanup(gc.collect)

    def make_request(self, *arguments: Any, **more: Any) -> Any:
        """Send a request, and take the reactor's next turn, too, in which waiters are woken."""
        channel = super().make_request(*arguments, **more)
        self.reactor.advance(0)
        return channel

    def create_resource_dict(self) -> dict[str, Any]:
        return {**super().create_resource_dict(), **self.hs._module_web_resources}

    def call(self, method: str, below: str = "", content: bytes = b"", *headers: tuple[str, bytes], **more: Any) -> Any:
        """Send a request and check what holds for every answer."""
        channel = self.make_request(
            method.encode("latin-1"),
            (self.path + below).encode("latin-1"),
            content,
            shorthand=False,
            custom_headers=[(name.encode(), value) for name, value in headers],
            **{"content_type": b"text/plain", **more},
        )
        for name, values in COMMON.items():
            self.assertEqual(values, channel.headers.getRawHeaders(name), (method, below, name))
        types = channel.headers.getRawHeaders(b"Content-Type")
        if channel.code in (204, 304):
            self.assertIsNone(types)
            self.assertIsNone(channel.headers.getRawHeaders("Content-Length"))
            self.assertNotIn("body", channel.result)
        else:
            self.assertEqual(1, len(types))
            if method != "HEAD":
                length = len(channel.result.get("body", b""))
                self.assertEqual([str(length)], channel.headers.getRawHeaders("Content-Length"))
        if channel.code >= 400 and method != "HEAD":
            if channel.code != 429:  # a poll that is refused has the session's type
                self.assertEqual([b"application/json"], types)
            self.assertLessEqual({"errcode", "error"}, set(json.loads(channel.result["body"])))
        return channel

    def create(self, content: bytes = b"hello", **more: Any) -> tuple[str, bytes]:
        """Create a session; return what to append to the path for it, and its ETag."""
        channel = self.call("POST", "", content, **more)
        self.assertEqual(200, channel.code)
        return f"/{channel.json_body['id']}", self.tag(channel)

    def tag(self, channel: Any) -> bytes:
        (tag,) = channel.headers.getRawHeaders(b"ETag")
        self.assertRegex(tag, rb'^"[0-9a-z]{20}"$')
        return bytes(tag)

    def errcode(self, channel: Any) -> str:
        return str(channel.json_body["errcode"])
