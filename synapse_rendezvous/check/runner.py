"""A check from begin to end."""

import contextlib
from collections.abc import Sequence
from typing import Any
from urllib.parse import urlsplit

from twisted.internet.defer import Deferred

from synapse_rendezvous.check.address import address
from synapse_rendezvous.check.bounds import Held, hold, look_at_wait, sizes
from synapse_rendezvous.check.creation import create
from synapse_rendezvous.check.exchange import end, poll, read, read_again, write
from synapse_rendezvous.check.findings import Findings, Report, Stopped
from synapse_rendezvous.check.options import CheckOptions
from synapse_rendezvous.check.preflight import look_at_headers, preflight
from synapse_rendezvous.check.probe import MAX_REQUESTS, MAX_S, OutOfBounds, Probe
from synapse_rendezvous.check.reach import find_base, parse_target, reach
from synapse_rendezvous.check.route import one_process, route, same_session
from synapse_rendezvous.check.visit import Visit
from synapse_rendezvous.paths import MSC3886


async def run_check(reactor: Any, options: CheckOptions) -> Report:
    """Check a server; it takes 20 seconds at most.

    Raises:
        InvalidURL: the URL is none.
    """
    findings = Findings()
    probe = Probe(reactor, family=options.family, source=options.source, origin=options.origin)
    base, path = parse_target(options.target)
    visit = Visit(probe, findings, base + (path or MSC3886))
    untested = "what was found above makes it meaningless"
    try:
        if "://" not in options.target:
            base = await find_base(probe, findings, base)
        configured = _read(options.configs, base, findings) if options.configs else ""
        visit.collection = base + (path or configured or MSC3886)
        await reach(probe, findings, base, is_homeserver=not path)
        await _visit(visit)
    except Stopped:
        if visit.session:
            with contextlib.suppress(OutOfBounds, Stopped):
                await visit.ask("DELETE", visit.session)
    except OutOfBounds:
        findings.add("reach.slow", f"{probe.requests} requests in {probe.seconds:.1f} s")
        untested = f"a check ends after {MAX_S:.0f} s or {MAX_REQUESTS} requests"
    look_at_headers(visit)
    product = await probe.identify(visit.collection) if findings.needs_product() else probe.product
    seconds = probe.seconds
    await probe.close()
    found = findings.finished(product, urlsplit(visit.collection).path, untested)
    return Report(visit.collection, product, found, probe.requests, seconds)


def _read(configs: Sequence[str], base: str, findings: Findings) -> str:
    """Look at the configuration; return the path of the collection, if that is there."""
    from synapse_rendezvous.check.configuration import read_configuration  # it needs Synapse, all else does not

    return read_configuration(configs, base, findings)


async def _visit(visit: Visit) -> None:
    """Play a rendezvous, and look at what is around it."""
    await route(visit)
    await one_process(visit)
    holding: Deferred[Held | str] = Deferred.fromCoroutine(hold(visit))
    try:
        await create(visit)
        await read(visit)
        await preflight(visit)
        if visit.tag:
            await poll(visit)
        else:
            visit.findings.not_tested("poll", "there is no ETag")
        await write(visit)
        if visit.tag:
            await poll(visit)  # again: a cache does not know this revision
            if not visit.findings.has_problem("poll"):
                visit.findings.ok("poll", "If-None-Match is answered with 304, with ETag, Expires and Last-Modified")
        await read_again(visit)
        if "cache.stale" not in visit.findings:
            await same_session(visit)
        await sizes(visit)
        await address(visit)
        await end(visit)
        look_at_wait(visit, await holding)
    finally:
        holding.addErrback(lambda _failure: None)
        holding.cancel()  # it ends its session then
        await holding
