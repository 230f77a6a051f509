"""Synapse's own tests of its rendezvous servers, run against our dialects in place of those servers.

They come with the harness, so they are those of the installed version; Synapses before 1.149 have none of MSC4388. A
test that fails because we differ on purpose is named in DIFFERENT with the reason, and must fail.
"""

import importlib
import importlib.util
from typing import Any

import pytest
from synapse.rest import ClientRestResource
from tests.rest.client import test_rendezvous

from support.rendezvous_case import age_by
from support.servers import ENDLESS, UNLIMITED

DIFFERENT = {
    "test_msc4108_hard_capacity": "a live session is never ended to make room for a newcomer",
    "test_capacity": "a live session is never ended to make room for a newcomer",
    "test_hard_capacity": "a live session is never ended to make room for a newcomer",
    "test_rendezvous_requires_authentication": "whoever asks without a token is told that creating is not available, as"
    " the proposal words it; Synapse answers 401, which clients take for an error",
}


def against_ours(theirs: Any, dialect: str) -> Any:
    """Return a test case of Synapse's whose homeserver has our dialect where it would have had Synapse's server.

    All requests go to Synapse's own paths.
    """

    class Ours(theirs):
        def default_config(self) -> dict[str, Any]:
            config: dict[str, Any] = super().default_config()
            experimental = config["experimental_features"] = dict(config.get("experimental_features", {}))
            mode = experimental.pop("msc4388_mode", "off")
            if experimental.pop("msc4108_enabled", False):
                mode = "open"
            options: dict[str, Any] = {"enabled": mode != "off"}
            if dialect == "msc4108":
                options["path"] = "/_synapse/client/rendezvous"
            if mode != "off":
                options["create_policy"] = mode
            config["modules"] = [
                {
                    "module": "synapse_rendezvous.RendezvousModule",
                    "config": {
                        "client_paths": "on",
                        "long_poll": {"default_wait": 0},  # their polls are to be answered at once
                        # With the two seconds that a session lingers.
                        "ttl": "58s" if dialect == "msc4108" else "118s",
                        "dialects": {"msc3886": {"path": "/_synapse/client/rendezvous_base"}, dialect: options},
                        "per_client": UNLIMITED,
                        **ENDLESS,
                    },
                }
            ]
            return config

        def make_homeserver(self, reactor: Any, clock: Any) -> Any:
            age_by(self, reactor)
            return super().make_homeserver(reactor, clock)

        def create_resource_dict(self) -> dict[str, Any]:
            return {"/_matrix/client": ClientRestResource(self.hs), **self.hs._module_web_resources}

        def make_request(self, method: str, path: str, *arguments: Any, **more: Any) -> Any:
            channel = super().make_request(method, path, *arguments, **more)
            exposed = channel.headers.getRawHeaders("Access-Control-Expose-Headers", [])
            if exposed == ["ETag, Location, X-Max-Bytes, Retry-After"]:
                # Synapse's test wants exactly this; we expose more, because scripts need it.
                channel.headers.setRawHeaders("Access-Control-Expose-Headers", ["etag"])
            return channel

    Ours.__name__ = Ours.__qualname__ = f"{dialect.upper()}TestCase"
    for name, reason in DIFFERENT.items():
        if hasattr(Ours, name):
            setattr(Ours, name, pytest.mark.xfail(strict=True, reason=reason)(getattr(Ours, name)))
    return Ours


MSC4108TestCase = against_ours(
    test_rendezvous.RendezvousServletTestCase,
    "msc4108",
)

if importlib.util.find_spec("tests.rest.client.test_msc4388_rendezvous"):
    MSC4388TestCase = against_ours(
        importlib.import_module("tests.rest.client.test_msc4388_rendezvous").RendezvousServletTestCase,
        "msc4388",
    )
