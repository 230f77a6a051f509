"""From what the operator typed to the server: its address, TLS, and whether a homeserver answers there."""

import datetime
import ipaddress
import time
from urllib.parse import urlsplit

from twisted.internet.error import ConnectionRefusedError
from twisted.internet.protocol import Factory, Protocol

from synapse_rendezvous.check.connection import Endpoints, addresses, certificate
from synapse_rendezvous.check.findings import Findings
from synapse_rendezvous.check.options import AddressFamily
from synapse_rendezvous.check.probe import Probe, Unanswered

_EXPIRES_SOON_DAYS = 14
_MSC4108 = "org.matrix.msc4108"


class InvalidURL(Exception):
    """What is to be checked is neither a URL nor a server name; the message says why."""


def is_local(address: str) -> bool:
    """Whether an address is not one of the internet, but of this machine or of a network around it."""
    return not ipaddress.ip_address(address.partition("%")[0]).is_global


def parse_target(url: str) -> tuple[str, str]:
    """Read what the operator typed.

    Returns:
        The URL of the homeserver, and the path of the collection if it was given.

    Raises:
        InvalidURL: it is none.
    """
    if "://" not in url:
        url = f"https://{url}"
    try:
        url.encode("ascii")
        parts = urlsplit(url)
        host, _ = parts.hostname, parts.port
    except ValueError:
        host = None
    if not host or parts.scheme not in ("http", "https") or parts.username or parts.query or parts.fragment:
        raise InvalidURL(
            f"{url!r} cannot be checked. Give the homeserver's URL, such as https://matrix.example.com, or its server"
            " name, or the URL of the collection"
        )
    return f"{parts.scheme}://{parts.netloc}", parts.path.rstrip("/")


async def find_base(probe: Probe, findings: Findings, name_url: str) -> str:
    """Return the homeserver's URL for clients, by the well-known file of its server name."""
    try:
        answer = await probe.ask("GET", f"{name_url}/.well-known/matrix/client")
    except Unanswered as unanswered:
        raise _stop(findings, unanswered) from unanswered
    if answer.code == 404:
        findings.ok("reach", "no /.well-known/matrix/client, so the server name is the address")
        return name_url
    base = answer.content.get("m.homeserver")
    base = base.get("base_url") if isinstance(base, dict) else None
    try:
        if answer.code != 200 or not isinstance(base, str) or "://" not in base:
            raise InvalidURL
        root, path = parse_target(base)
    except InvalidURL:
        raise findings.stop("reach.well_known", answer, answer=answer) from None
    if answer.all("Access-Control-Allow-Origin") not in (["*"], [probe.origin]):
        findings.add(
            "reach.well_known_cors", f"Access-Control-Allow-Origin: {answer.one('Access-Control-Allow-Origin')}"
        )
    findings.ok("reach", f"well-known points to {base}")
    return root + path


async def reach(probe: Probe, findings: Findings, base: str, *, is_homeserver: bool) -> None:
    """Connect, look at the certificate, and ask for the versions of Matrix that are spoken.

    Args:
        probe: sends the requests.
        findings: where it is told what was found.
        base: the URL.
        is_homeserver: whether it should be that of a homeserver; it may serve rendezvous alone.

    Raises:
        Stopped: no connection can be made.
    """
    parts = urlsplit(base)
    host, port = parts.hostname or "", parts.port or (443 if parts.scheme == "https" else 80)
    try:
        found = await probe.within(5, addresses(host, port, probe.endpoints.family))
        if parts.scheme == "https":
            await _look_at_certificate(probe, findings, base)
        answer = await probe.ask("GET", f"{base}/_matrix/client/versions")
    except Unanswered as unanswered:
        raise _stop(findings, unanswered) from unanswered
    findings.ok("reach", f"{host} is {' and '.join(found)}" if found != [host] else f"{host} answers")
    if parts.scheme == "http":
        findings.not_tested("reach", "TLS: the URL is http://")
    await _try_other_families(probe, findings, base, found)
    versions = answer.content.get("versions")
    if not is_homeserver and answer.code == 404:
        findings.ok("reach", "no homeserver here, but the path of the collection was given")
        return
    if answer.code != 200 or not isinstance(versions, list):
        findings.add("reach.versions", answer, answer=answer)
        return
    server = answer.one("Server") or ""
    by = f" ({server.split()[0].replace('/', ' ')})" if server.startswith("Synapse/") else ""
    findings.ok("reach", f"/_matrix/client/versions answers{by}")
    features = answer.content.get("unstable_features")
    if not (isinstance(features, dict) and features.get(_MSC4108)):
        findings.note(
            "reach", f"/versions does not say {_MSC4108}, so Element Web does not offer a QR code (docs/clients.md)"
        )


def _stop(findings: Findings, unanswered: Unanswered) -> Exception:
    reason = "connect" if unanswered.reason == "cut" else unanswered.reason
    return findings.stop(f"reach.{reason}", unanswered)


async def _look_at_certificate(probe: Probe, findings: Findings, base: str) -> None:
    received = await probe.within(5, certificate(probe.endpoints.at(base)))
    ends = datetime.datetime.strptime((received.get_notAfter() or b"").decode("ascii"), "%Y%m%d%H%M%SZ")
    days = int((ends.replace(tzinfo=datetime.timezone.utc).timestamp() - time.time()) // 86400)
    if days < _EXPIRES_SOON_DAYS:
        findings.add("reach.tls_expiry", f"in {days} days")
    else:
        findings.ok("reach", f"TLS valid for {days} days")


async def _try_other_families(probe: Probe, findings: Findings, base: str, found: list[str]) -> None:
    """Connect over the addresses of the family that requests do not use."""
    ends = probe.endpoints.ends
    others = [one for one in found if ends is not None and (":" in one) != (":" in ends.peer)]
    if not others or any(is_local(one) for one in found):
        return
    family = AddressFamily.IPV6 if ":" in others[0] else AddressFamily.IPV4
    name = "IPv6" if family is AddressFamily.IPV6 else "IPv4"
    try:
        await probe.within(3, _connect(probe, base, family))
    except Unanswered as unanswered:
        if isinstance(unanswered.__cause__, ConnectionRefusedError):
            findings.add("reach.family", f"{others[0]} ({name}): {unanswered}")
        else:  # it may well be that this network has none
            findings.not_tested("reach", f"{name}: {unanswered}")
    else:
        findings.ok("reach", f"{name} answers as well (to test it all: --{name.lower()})")


async def _connect(probe: Probe, base: str, family: AddressFamily) -> None:
    endpoint = Endpoints(probe.reactor, family, None).at(base)
    protocol = await endpoint.connect(Factory.forProtocol(Protocol))
    protocol.transport.abortConnection()
