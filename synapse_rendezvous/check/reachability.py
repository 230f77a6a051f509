"""The way from what the operator typed to the server: its address, TLS, and whether a homeserver answers there."""

import datetime
import time
from collections.abc import Mapping
from typing import Any
from urllib.parse import urlsplit

from twisted.internet.error import ConnectionRefusedError
from twisted.internet.protocol import Factory, Protocol

from synapse_rendezvous.check.connection import EndpointFactory, fetch_certificate, is_local, resolve
from synapse_rendezvous.check.findings import Findings, Stopped
from synapse_rendezvous.check.options import AddressFamily
from synapse_rendezvous.check.probe import Probe
from synapse_rendezvous.check.response import NoResponse

_EXPIRES_SOON_DAYS = 14


class InvalidTarget(Exception):
    """What is to be checked is neither a URL nor a server name; the message says why."""


def parse_target(target: str) -> tuple[str, str]:
    """Parse what the operator typed: a URL or a server name.

    Returns:
        The base URL of the homeserver, and the path of the collection; the path is empty if none was given.

    Raises:
        InvalidTarget: it is neither.
    """
    if "://" not in target:
        target = f"https://{target}"
    try:
        target.encode("ascii")
        parts = urlsplit(target)
        host, _ = parts.hostname, parts.port
    except ValueError:
        host = None
    if not host or parts.scheme not in ("http", "https") or parts.username or parts.query or parts.fragment:
        raise InvalidTarget(
            f"{target!r} cannot be checked. Give the homeserver's URL, such as https://matrix.example.com, or its"
            " server name, or the URL of the collection"
        )
    return f"{parts.scheme}://{parts.netloc}", parts.path.rstrip("/")


async def discover_base_url(probe: Probe, findings: Findings, server_url: str) -> str:
    """Return the homeserver's URL for clients, as the well-known file of its server name gives it.

    Args:
        probe: sends the request.
        findings: takes what is found.
        server_url: `https://` and the server name.

    Raises:
        Stopped: there is no such URL.
    """
    try:
        response = await probe.request("GET", f"{server_url}/.well-known/matrix/client")
    except NoResponse as no_response:
        raise _unreachable(findings, no_response) from no_response
    if response.code == 404:
        findings.ok("reach", "no /.well-known/matrix/client, so the server name is the address")
        return server_url
    homeserver = response.content.get("m.homeserver")
    base_url = homeserver.get("base_url") if isinstance(homeserver, dict) else None
    try:
        if response.code != 200 or not isinstance(base_url, str) or "://" not in base_url:
            raise InvalidTarget
        root, path = parse_target(base_url)
    except InvalidTarget:
        raise findings.stop("reach.well_known", response, response=response) from None
    if response.field_lines("Access-Control-Allow-Origin") not in (["*"], [probe.origin]):
        allowed = response.field_value("Access-Control-Allow-Origin")
        findings.add_problem("reach.well_known_cors", f"Access-Control-Allow-Origin: {allowed}")
    findings.ok("reach", f"well-known points to {base_url}")
    return root + path


async def check_reachability(
    probe: Probe, findings: Findings, base_url: str, *, is_homeserver: bool
) -> Mapping[str, Any] | None:
    """Connect, check the certificate, and ask for the versions of Matrix that the homeserver speaks.

    Args:
        probe: sends the requests.
        findings: takes what is found.
        base_url: where to connect.
        is_homeserver: whether a homeserver must answer there; if not, the URL may serve rendezvous alone.

    Returns:
        The `unstable_features` of the homeserver; None if none answers there.

    Raises:
        Stopped: no connection can be made.
    """
    parts = urlsplit(base_url)
    host, port = parts.hostname or "", parts.port or (443 if parts.scheme == "https" else 80)
    try:
        addresses = await probe.with_timeout(5, resolve(host, port, probe.endpoints.family))
        if parts.scheme == "https":
            await _check_certificate(probe, findings, base_url)
        response = await probe.request("GET", f"{base_url}/_matrix/client/versions")
    except NoResponse as no_response:
        raise _unreachable(findings, no_response) from no_response
    findings.ok("reach", f"{host} is {' and '.join(addresses)}" if addresses != [host] else f"{host} answers")
    if parts.scheme == "http":
        findings.not_tested("reach", "TLS: the URL is http://")
    await _try_other_family(probe, findings, base_url, addresses)
    versions = response.content.get("versions")
    if not is_homeserver and response.code == 404:
        findings.ok("reach", "no homeserver here, but the path of the collection was given")
        return None
    if response.code != 200 or not isinstance(versions, list):
        findings.add_problem("reach.versions", response, response=response)
        return None
    server = response.field_value("Server") or ""
    suffix = f" ({server.split()[0].replace('/', ' ')})" if server.startswith("Synapse/") else ""
    findings.ok("reach", f"/_matrix/client/versions answers{suffix}")
    features = response.content.get("unstable_features")
    return features if isinstance(features, dict) else {}


def _unreachable(findings: Findings, no_response: NoResponse) -> Stopped:
    """Add the problem to the findings; return what to raise."""
    reason = "connect" if no_response.reason == "cut" else no_response.reason
    return findings.stop(f"reach.{reason}", no_response)


async def _check_certificate(probe: Probe, findings: Findings, base_url: str) -> None:
    certificate = await probe.with_timeout(5, fetch_certificate(probe.endpoints.endpoint_for_url(base_url)))
    not_after = (certificate.get_notAfter() or b"").decode("ascii")
    expires = datetime.datetime.strptime(not_after, "%Y%m%d%H%M%SZ").replace(tzinfo=datetime.timezone.utc)
    days = int((expires.timestamp() - time.time()) // 86400)
    if days < _EXPIRES_SOON_DAYS:
        findings.add_problem("reach.tls_expiry", f"in {days} days")
    else:
        findings.ok("reach", f"TLS valid for {days} days")


async def _try_other_family(probe: Probe, findings: Findings, base_url: str, addresses: list[str]) -> None:
    """Connect over the version of IP that the requests do not use, if the host has addresses of both."""
    connection = probe.endpoints.last_connection
    if connection is None or any(map(is_local, addresses)):
        return
    others = [address for address in addresses if (":" in address) != (":" in connection.peer)]
    if not others:
        return
    family = AddressFamily.IPV6 if ":" in others[0] else AddressFamily.IPV4
    name = "IPv6" if family is AddressFamily.IPV6 else "IPv4"
    try:
        await probe.with_timeout(3, _connect(probe, base_url, family))
    except NoResponse as no_response:
        if isinstance(no_response.__cause__, ConnectionRefusedError):
            findings.add_problem("reach.family", f"{others[0]} ({name}): {no_response}")
        else:  # perhaps the network of this machine lacks that version
            findings.not_tested("reach", f"{name}: {no_response}")
    else:
        findings.ok("reach", f"{name} answers as well (to test it all: --{name.lower()})")


async def _connect(probe: Probe, base_url: str, family: AddressFamily) -> None:
    endpoint = EndpointFactory(probe.reactor, family, None).endpoint_for_url(base_url)
    protocol = await endpoint.connect(Factory.forProtocol(Protocol))
    protocol.transport.abortConnection()
