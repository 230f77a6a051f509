"""A device with matrix-rust-sdk, the library of Element X: it signs in by QR code, or lets another device do so.

    python matrix_rust_sdk.py SETTINGS

SETTINGS is JSON: `homeserver`, its URL; `session`, if it is the device that is signed in; `shows`, whether it shows the
code. What a person carries from screen to screen comes and goes as lines of JSON, each an object with one name.
"""

import asyncio
import base64
import json
import sys
from typing import Any

import matrix_sdk_python as sdk

SETTINGS = json.loads(sys.argv[1])


def say(name: str, value: object) -> None:
    print(json.dumps({name: value}), flush=True)


async def hear(name: str) -> Any:
    return json.loads(await asyncio.to_thread(sys.stdin.readline))[name]


class Progress:
    """Shows the person what each state of the library asks for; the library calls it from its own threads."""

    def __init__(self) -> None:
        self._loop = asyncio.get_running_loop()

    def on_update(self, state: Any) -> None:
        if hasattr(state, "qr_code"):
            say("code", base64.b64encode(state.qr_code.to_bytes()).decode())
        elif hasattr(state, "check_code_string"):
            say("check_code", state.check_code_string)
        elif hasattr(state, "check_code_sender"):
            asyncio.run_coroutine_threadsafe(self._compare(state.check_code_sender), self._loop)
        elif hasattr(state, "verification_uri"):
            say("verification_uri", state.verification_uri)

    async def _compare(self, sender: Any) -> None:
        await sender.send(int(await hear("check_code")))


async def play(login: Any) -> None:
    if SETTINGS["shows"]:
        await login.generate(Progress())
    else:
        code = sdk.QrCodeData.from_bytes(base64.b64decode(await hear("code")))
        await login.scan(code, Progress())


def builder() -> Any:
    return sdk.ClientBuilder().homeserver_url(SETTINGS["homeserver"]).in_memory_store()


async def grant() -> None:
    client = await builder().auto_enable_cross_signing(True).auto_enable_backups(True).build()
    session = SETTINGS["session"]
    oauth_data = json.dumps({"client_id": session.pop("client_id")})
    await client.restore_session(
        sdk.Session(
            **session,
            refresh_token=None,
            homeserver_url=SETTINGS["homeserver"],
            oauth_data=oauth_data,
            sliding_sync_version=sdk.SlidingSyncVersion.NATIVE,
        )
    )
    await client.encryption().wait_for_e2ee_initialization_tasks()
    await play(client.new_grant_login_with_qr_code_handler())
    say("done", {})


async def sign_in() -> None:
    client = await builder().build()
    configuration = sdk.OAuthConfiguration(
        client_name="a device",
        redirect_uri="http://127.0.0.1/",
        client_uri="http://127.0.0.1/",
        logo_uri=None,
        tos_uri=None,
        policy_uri=None,
        static_registrations={},
    )
    await play(client.new_login_with_qr_code_handler(configuration))
    encryption = client.encryption()
    await encryption.wait_for_e2ee_initialization_tasks()
    session = client.session()
    say(
        "done",
        {
            "access_token": session.access_token,
            "device_id": session.device_id,
            "has_cross_signing_keys": encryption.verification_state() == sdk.VerificationState.VERIFIED,
            "has_backup_key": encryption.backup_state() == sdk.BackupState.ENABLED,
        },
    )


asyncio.run((grant if SETTINGS["session"] else sign_in)())
