"""Whether the server sees the address of each client."""

import ipaddress
from collections.abc import Callable

from synapse_rendezvous.check.connection import ConnectionAddresses, is_local
from synapse_rendezvous.check.context import CheckContext, cache_busting_url
from synapse_rendezvous.check.response import Response

FORGED_ADDRESS = "192.0.2.1"
"""From a network that is reserved for examples: no client has it."""


async def check_client_address(context: CheckContext) -> None:
    """Ask the server which client it sees, with a forged X-Forwarded-For and without."""
    findings, probe = context.findings, context.probe
    seen = await _seen_client(context, {})
    seen_if_forged = await _seen_client(context, {"X-Forwarded-For": FORGED_ADDRESS})
    connection = probe.endpoints.last_connection
    if seen is None or seen_if_forged is None or connection is None:
        findings.not_tested("address", "the server did not say whom requests from here count for")
        return
    # Only in this case the result depends on whether there is a proxy at all.
    is_direct = (
        seen == "unknown" and is_local(connection.peer) and await probe.identify_proxy(context.collection_url) is None
    )
    result, detail = evaluate_client_address(connection, seen, seen_if_forged, is_direct=is_direct)
    add: dict[str, Callable[..., None]] = {"ok": findings.ok, "not tested": findings.not_tested}
    if result in add:
        add[result]("address", detail)
    else:
        findings.add_problem(result, detail)


async def _seen_client(context: CheckContext, fields: dict[str, str]) -> str | None:
    response = await context.request("GET", cache_busting_url(context.collection_url), fields)
    client = response.content.get("client") if isinstance(response, Response) else None
    return client if isinstance(client, str) else None


def evaluate_client_address(
    connection: ConnectionAddresses, seen: str, seen_if_forged: str, *, is_direct: bool
) -> tuple[str, str]:
    """Evaluate which client the server sees.

    The server may take this machine for one of its proxies, if both are in one private network. It then believes what
    other clients could not make it believe. And behind NAT this machine does not know its public address. In both
    cases there is no result.

    Args:
        connection: the addresses of the connection to the server.
        seen: the client that the server named.
        seen_if_forged: the client that it named when X-Forwarded-For claimed `FORGED_ADDRESS`.
        is_direct: whether there is no proxy between this machine and the server.

    Returns:
        `ok`, `not tested` or the id of a problem; and the detail for a person.
    """
    believed = f"; a forged X-Forwarded-For: {FORGED_ADDRESS} was believed" if seen_if_forged == FORGED_ADDRESS else ""
    if seen == "unknown":
        if is_direct:
            return "not tested", "the server was asked directly, not through the reverse proxy"
        return "address.unknown", f"requests from here count for nobody{believed}"
    if seen == "exempt":
        return "not tested", "no limit holds for this address (`exempt`)"
    network, local = ipaddress.ip_network(seen), ipaddress.ip_address(connection.local.partition("%")[0])
    # If the versions of IP differ, the network in between translates addresses.
    if network.version == local.version and local.is_global and local not in network:
        return "address.proxy", f"requests from {connection.local} count for {seen}"
    is_seen_local = not network.is_global
    if believed and is_seen_local:
        return "not tested", (
            f"requests from here count for {seen}, a private address, which the server may take for that of a"
            " proxy: check again from elsewhere"
        )
    if believed:
        return "address.forged", f"requests from here count for {seen}{believed}"
    if is_seen_local and not is_local(connection.peer):
        return "not tested", (
            f"requests from here count for {seen}, a private address. Unless this machine is in that network, all"
            " clients count for it: let the reverse proxy set X-Forwarded-For, and see trusted_proxies"
        )
    return "ok", f"requests from here count for {seen}, and a forged X-Forwarded-For changes nothing"
