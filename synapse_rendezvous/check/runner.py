"""Runs a check from beginning to end."""

import contextlib
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any
from urllib.parse import urlsplit

from twisted.internet.defer import Deferred

from synapse_rendezvous.check.client_address import check_client_address
from synapse_rendezvous.check.context import CheckContext
from synapse_rendezvous.check.creation import check_create
from synapse_rendezvous.check.exchange import check_end, check_fresh, check_poll, check_read, check_write
from synapse_rendezvous.check.findings import Findings, OnlyMSC4388, Report, Stopped
from synapse_rendezvous.check.options import CheckOptions
from synapse_rendezvous.check.preflight import check_preflight
from synapse_rendezvous.check.probe import MAX_DURATION_S, MAX_REQUESTS, BudgetExceeded, Probe
from synapse_rendezvous.check.proxy_limits import LongPollResult, check_sizes, evaluate_long_poll, try_long_poll
from synapse_rendezvous.check.reachability import check_reachability, discover_base_url, parse_target
from synapse_rendezvous.check.response_headers import check_response_headers
from synapse_rendezvous.check.routing import check_processes, check_route, check_session_routing
from synapse_rendezvous.check.sign_in import check_sign_in
from synapse_rendezvous.paths import MSC3886

if TYPE_CHECKING:
    from synapse_rendezvous.check.configuration import ConfiguredDialects


async def run_check(reactor: Any, options: CheckOptions) -> Report:
    """Check a server; it takes 20 seconds at most.

    Raises:
        InvalidTarget: the target is neither a URL nor a server name.
    """
    findings = Findings()
    probe = Probe(reactor, family=options.family, source=options.source, origin=options.origin)
    base_url, path = parse_target(options.target)
    context = CheckContext(probe, findings, base_url + (path or MSC3886))
    untested_reason = "what was found above makes it meaningless"
    try:
        if "://" not in options.target:
            base_url = await discover_base_url(probe, findings, base_url)
        configured = _read_configuration(options.configs, base_url, findings) if options.configs else None
        context.collection_url = base_url + (path or (configured and configured.collection_path) or MSC3886)
        features = await check_reachability(probe, findings, base_url, is_homeserver=not path)
        if features is None:
            findings.not_tested("sign_in", "no homeserver answers here")
        else:
            enabled = configured and configured.enabled
            context.serves_msc4388 = await check_sign_in(context, base_url, features, enabled)
        if configured and not configured.collection_path and not path:
            raise OnlyMSC4388
        await _run_parts(context)
    except OnlyMSC4388:
        untested_reason = "only MSC4388 is served, which has no entity tags"
    except Stopped:
        if context.session_url:
            with contextlib.suppress(BudgetExceeded, Stopped):
                await context.request("DELETE", context.session_url)
    except BudgetExceeded:
        findings.add_problem("reach.slow", f"{probe.request_count} requests in {probe.elapsed_s:.1f} s")
        untested_reason = f"a check ends after {MAX_DURATION_S:.0f} s or {MAX_REQUESTS} requests"
    check_response_headers(context)
    url = context.collection_url
    product = await probe.identify_proxy(url) if findings.needs_product() else probe.product
    seconds = probe.elapsed_s
    await probe.close()
    completed = findings.complete(product, urlsplit(url).path, untested_reason)
    return Report(url, product, completed, probe.request_count, seconds)


def _read_configuration(configs: Sequence[str], base_url: str, findings: Findings) -> "ConfiguredDialects | None":
    """Check the configuration; return what it says of the dialects."""
    # This part alone needs Synapse.
    from synapse_rendezvous.check.configuration import check_configuration

    return check_configuration(configs, base_url, findings)


async def _run_parts(context: CheckContext) -> None:
    """Run one rendezvous and the other parts of the check, in an order in which each finds what it needs."""
    await check_route(context)
    await check_processes(context)
    long_poll: Deferred[LongPollResult | str] = Deferred.fromCoroutine(try_long_poll(context))
    try:
        await check_create(context)
        await check_read(context)
        await check_preflight(context)
        if context.etag:
            await check_poll(context)
        else:
            context.findings.not_tested("poll", "there is no ETag")
        await check_write(context)
        if context.etag:
            await check_poll(context)  # once more, with a revision that no cache knows
            if not context.findings.has_problem("poll"):
                context.findings.ok("poll", "If-None-Match is answered with 304, with ETag, Expires and Last-Modified")
        await check_fresh(context)
        if "cache.stale" not in context.findings:
            await check_session_routing(context)
        await check_sizes(context)
        await check_client_address(context)
        await check_end(context)
        evaluate_long_poll(context, await long_poll)
    finally:
        is_over = long_poll.called
        long_poll.addErrback(lambda _failure: None)
        if not is_over:
            long_poll.cancel()  # it deletes its session then
            await long_poll
