"""Whether the server counts each client for itself."""

import ipaddress
from collections.abc import Callable

from synapse_rendezvous.check.answer import Answer
from synapse_rendezvous.check.connection import Ends
from synapse_rendezvous.check.reach import is_local
from synapse_rendezvous.check.route import past_caches
from synapse_rendezvous.check.visit import Visit

FORGED = "192.0.2.1"
"""From a network for examples: nobody has it."""


async def address(visit: Visit) -> None:
    """Ask whom requests from here count for, with a forged header and without."""
    plain = await _client(visit, {})
    forged = await _client(visit, {"X-Forwarded-For": FORGED})
    ends = visit.probe.endpoints.ends
    if plain is None or forged is None or ends is None:
        visit.findings.not_tested("address", "the server did not say whom requests from here count for")
        return
    # Where the answer depends on it, find out whether there is a proxy at all.
    is_direct = plain == "unknown" and is_local(ends.peer) and await visit.probe.identify(visit.collection) is None
    tell: dict[str, Callable[..., None]] = {"ok": visit.findings.ok, "not tested": visit.findings.not_tested}
    verdict, told = judge(ends, plain, forged, is_direct=is_direct)
    if verdict in tell:
        tell[verdict]("address", told)
    else:
        visit.findings.add(verdict, told)


async def _client(visit: Visit, fields: dict[str, str]) -> str | None:
    answer = await visit.ask("GET", past_caches(visit.collection), fields)
    client = answer.content.get("client") if isinstance(answer, Answer) else None
    return client if isinstance(client, str) else None


def judge(ends: Ends, plain: str, forged: str, *, is_direct: bool) -> tuple[str, str]:
    """Judge by whom the server counts.

    Who is in a network that the server takes for that of its proxies cannot tell what others may forge; and who is
    behind NAT does not know the own address.

    Args:
        ends: of the connection to the server.
        plain: whom the server counted.
        forged: whom it counted where `FORGED` was claimed.
        is_direct: whether there is no proxy between here and the server.

    Returns:
        `ok`, `not tested` or the id of a problem, and what there is to say.
    """
    believed = f"; a forged X-Forwarded-For: {FORGED} was believed" if forged == FORGED else ""
    if plain == "unknown":
        if is_direct:
            return "not tested", "the server was asked directly, not through the reverse proxy"
        return "address.unknown", f"requests from here count for nobody{believed}"
    if plain == "exempt":
        return "not tested", "no limit holds for this address (`exempt`)"
    counted, here = ipaddress.ip_network(plain), ipaddress.ip_address(ends.local.partition("%")[0])
    # Between the versions, the network in between translates.
    if counted.version == here.version and here.is_global and here not in counted:
        return "address.proxy", f"requests from {ends.local} count for {plain}"
    is_plain_local = not counted.is_global
    if believed and is_plain_local:
        return "not tested", (
            f"requests from here count for {plain}, a private address, which the server may take for that of a"
            " proxy: check again from elsewhere"
        )
    if believed:
        return "address.forged", f"requests from here count for {plain}{believed}"
    if is_plain_local and not is_local(ends.peer):
        return "not tested", (
            f"requests from here count for {plain}, a private address. Unless this machine is in that network, all"
            " clients count for it: let the reverse proxy set X-Forwarded-For, and see trusted_proxies"
        )
    return "ok", f"requests from here count for {plain}, and a forged X-Forwarded-For changes nothing"
