"""Devices with the clients' own libraries sign in by QR code through us, with MSC4108 and a real Synapse.

The libraries are those of Element X (matrix-rust-sdk) and Element Web (matrix-js-sdk), in all combinations. One device
is signed in and one is new; either shows the code. The test is the person, who carries the code and the check code from
one screen to the other and approves the new device on the OAuth server's page.
"""

import base64
import pathlib
from collections.abc import Iterator
from typing import Any

import pytest

from support import sign_in_devices
from support.homeservers import MODULES, new_homeserver, running
from support.http_client import ask
from support.ports import free_port
from support.sign_in_devices import SECRET, OAuthServer, session_url, sign_in
from support.until import wait_until
from synapse_rendezvous.demo.throwaway_homeserver import HOST, ThrowawayHomeserver
from synapse_rendezvous.observer import SHORT_ID_LENGTH
from synapse_rendezvous.paths import MSC4108


@pytest.fixture(scope="module")
def programs(tmp_path_factory: pytest.TempPathFactory) -> pathlib.Path:
    """The programs of the devices and of the OAuth server."""
    return sign_in_devices.programs(tmp_path_factory.mktemp("sign_in"))


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
    homeserver = new_homeserver(tmp_path_factory.mktemp("homeserver"), modules=MODULES, settings=settings, port=port)
    with running(homeserver), OAuthServer(programs, oauth_port, homeserver.url) as oauth_server:
        yield homeserver, oauth_server


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
    username = f"{signed_in}-{new}-{shows}"
    user_id, said, _ = sign_in(
        programs, tmp_path, homeserver.url, oauth_server, username, signed_in=signed_in, new=new, shows=shows
    )

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
