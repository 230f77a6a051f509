"""Whether clients find a rendezvous server and a way to sign in: why Element does, or does not, offer a QR code.

All of it is asked from outside, without an account, as clients ask.
"""

import json
import re
from collections.abc import Mapping
from typing import Any
from urllib.parse import urlsplit

from synapse_rendezvous.check.context import CheckContext
from synapse_rendezvous.check.response import Outcome, Response, has_status
from synapse_rendezvous.paths import MSC4108, STABLE_MSC4388, UNSTABLE_MSC4108, UNSTABLE_MSC4388

_AUTH_METADATA = (
    "/_matrix/client/v1/auth_metadata",
    "/_matrix/client/unstable/org.matrix.msc2965/auth_metadata",
)
"""Where clients learn about the server that authenticates (Matrix specification since 1.15; before that, MSC2965)."""

_DEVICE_GRANT = "urn:ietf:params:oauth:grant-type:device_code"
_FEATURE = "org.matrix.msc4108"
_ID = re.compile("[0-9A-Za-z._~-]{1,255}")


async def check_sign_in(
    context: CheckContext, base_url: str, features: Mapping[str, Any], dialects: frozenset[str] | None
) -> bool:
    """Ask for all that clients ask for before they offer a QR code.

    Args:
        context: sends the requests and takes what is found.
        base_url: the homeserver's, without a slash at its end.
        features: the `unstable_features` of `/versions`.
        dialects: those that the configuration enables; None if it is not known. No path of another one is asked for.

    Returns:
        Whether this module serves MSC4388 where clients look for it.

    Raises:
        Stopped: the server refuses more requests for now.
    """
    is_delegated = await _check_authentication(context, base_url)
    findings = context.findings
    if is_delegated is None:
        return False
    if not is_delegated:
        findings.note(
            "sign_in",
            "the homeserver does not delegate authentication (to Matrix Authentication Service), so no client offers a"
            " QR code",
        )
    is_msc4388_served = False
    if dialects is None or "msc4388" in dialects:
        for path in (UNSTABLE_MSC4388, STABLE_MSC4388):
            is_msc4388_served |= await _check_msc4388(
                context, base_url, path, is_delegated=is_delegated, is_played=not is_msc4388_served
            )
    if dialects is None or "msc4108" in dialects:
        is_optional = not is_delegated or (dialects is None and is_msc4388_served and not features.get(_FEATURE))
        await _check_msc4108(context, base_url, bool(features.get(_FEATURE)), is_optional=is_optional)
    return is_msc4388_served


async def _check_authentication(context: CheckContext, base_url: str) -> bool | None:
    """Return whether authentication is delegated; None if that is not known."""
    findings = context.findings
    for path in _AUTH_METADATA:
        response = await context.request("GET", base_url + path, is_recorded=False)
        if not has_status(response, 404):
            break
    if has_status(response, 404):
        return False
    if not has_status(response, 200) or not isinstance(response.content.get("issuer"), str):
        findings.add_problem("sign_in.metadata", f"GET {path}: {response}", response=response)
        return None
    metadata = response.content
    findings.ok("sign_in", f"authentication is delegated to {metadata['issuer']}")
    grants = metadata.get("grant_types_supported")
    if not (isinstance(grants, list) and _DEVICE_GRANT in grants and metadata.get("device_authorization_endpoint")):
        findings.add_problem("sign_in.device_grant", f"grant_types_supported: {grants}")
    if not metadata.get("registration_endpoint"):
        findings.add_problem("sign_in.registration", "there is no registration_endpoint")
    return True


async def _check_msc4108(context: CheckContext, base_url: str, is_advertised: bool, *, is_optional: bool) -> None:
    """Create a session where clients of MSC4108 do, and end it.

    Args:
        context: sends the requests and takes what is found.
        base_url: the homeserver's.
        is_advertised: whether `/versions` says that there is a server.
        is_optional: whether nothing is wrong if there is none.
    """
    findings = context.findings
    created = await context.request("POST", base_url + UNSTABLE_MSC4108, body=b"", is_recorded=False)
    location = created.field_value("Location") or "" if has_status(created, 302, 307, 308) else ""
    if location:
        if urlsplit(location)[1:3] != urlsplit(base_url + MSC4108)[1:3]:
            findings.add_problem("sign_in.elsewhere", f"POST {UNSTABLE_MSC4108} leads to {location}")
            return
        findings.ok("sign_in", f"MSC4108: {UNSTABLE_MSC4108} leads to this module by a redirect")
    elif has_status(created, 201):
        if not created.is_from_module:
            findings.add_problem("sign_in.builtin", f"POST {UNSTABLE_MSC4108}: {created}", response=created)
            return
        session = urlsplit(str(created.content.get("url"))).path
        if session:
            await context.request("DELETE", base_url + session, is_recorded=False)
        findings.ok("sign_in", f"MSC4108: this module creates sessions at {UNSTABLE_MSC4108}")
    elif is_optional:
        findings.note("sign_in", f"MSC4108: no server at {UNSTABLE_MSC4108}")
        return
    else:
        findings.add_problem("sign_in.msc4108", f"POST {UNSTABLE_MSC4108}: {created}", response=created)
        return
    if is_advertised:
        findings.ok("sign_in", f"/versions says {_FEATURE}")
    elif is_optional:
        findings.note("sign_in", f"/versions does not say {_FEATURE}")
    else:
        findings.add_problem("sign_in.versions", f"unstable_features: {_FEATURE} is not true")


async def _check_msc4388(
    context: CheckContext, base_url: str, path: str, *, is_delegated: bool, is_played: bool
) -> bool:
    """Look for MSC4388 where clients do, and play a rendezvous there; return whether this module serves it."""
    findings, url = context.findings, base_url + path
    offer = await context.request("GET", url, is_recorded=False)
    is_offer = has_status(offer, 200) and "create_available" in offer.content
    if has_status(offer, 404) or not (is_offer or is_delegated):
        findings.note("sign_in", f"MSC4388: no server at {path}")
        return False
    if not has_status(offer, 200) or not is_offer:
        findings.add_problem("sign_in.msc4388", f"GET {path}: {offer}", response=offer)
        return False
    if not offer.is_from_module:
        findings.note("sign_in", f"MSC4388: another server answers at {path}, such as Synapse's own (msc4388_mode)")
        return False
    if offer.content["create_available"] is not True:
        findings.note("sign_in", f"MSC4388: this module serves {path}; who may create there has to sign in")
        return True
    if not is_played:
        findings.ok("sign_in", f"MSC4388: this module serves {path}, too")
        return True
    try:
        await _play_msc4388(context, url)
    except _StepFailed as failed:
        findings.add_problem("sign_in.msc4388", failed, response=failed.outcome)
    else:
        findings.ok("sign_in", f"MSC4388: this module serves {path}, with both forms of writes")
    return True


class _StepFailed(Exception):
    """A step of a rendezvous did not come out as it should.

    Attributes:
        outcome: what came of it.
    """

    def __init__(self, step: str, outcome: Outcome) -> None:
        super().__init__(f"{step}: {outcome}")
        self.outcome = outcome


async def _play_msc4388(context: CheckContext, url: str) -> None:
    """Create, write in both forms, read and end.

    Raises:
        _StepFailed: see there.
    """

    async def step(name: str, method: str, target: str, **content: object) -> Response:
        body = json.dumps(content).encode("ascii") if content else None
        fields = {"Content-Type": "application/json"} if content else None
        outcome = await context.request(method, target, fields, body, is_recorded=False)
        if not has_status(outcome, 200):
            raise _StepFailed(name, outcome)
        return outcome

    created = await step("POST", "POST", url, data="")
    session_id, token = created.content.get("id"), created.content.get("sequence_token")
    if not isinstance(session_id, str) or not _ID.fullmatch(session_id):
        raise _StepFailed("POST", created)
    session = f"{url}/{session_id}"
    try:
        name = "PUT with a transaction id"
        written = await step(name, "PUT", f"{session}/check", sequence_token=token, data="one")
        again = await step(f"{name}, again", "PUT", f"{session}/check", sequence_token=token, data="one")
        if again.content != written.content:
            raise _StepFailed(f"{name}, again", again)
        token = written.content.get("sequence_token")
        await step("PUT without a transaction id", "PUT", session, sequence_token=token, data="two")
        read = await step("GET", "GET", session)
        if read.content.get("data") != "two":
            raise _StepFailed("GET", read)
    finally:
        ended = await context.request("DELETE", session, is_recorded=False)
    if not has_status(ended, 200):
        raise _StepFailed("DELETE", ended)
