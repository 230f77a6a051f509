"""How long a request may wait, and how large it may be, before something between here and the server ends it."""

import attr

from synapse_rendezvous.check.context import CheckContext
from synapse_rendezvous.check.exchange import expect_error
from synapse_rendezvous.check.probe import MAX_DURATION_S
from synapse_rendezvous.check.response import Outcome, has_status

_MAX_WAIT_S = MAX_DURATION_S - 6
"""How long a long poll waits at most, so that there is time for the rest of the check."""

_MAX_DELAY_S = 4.0
"""How much later than the end of the wait the response may come."""

_MAX_EARLY_S = 1.5
"""How much sooner it may come: the server ends long waits together, up to a second sooner. Short waits have less."""


@attr.s(auto_attribs=True, frozen=True, slots=True)
class LongPollResult:
    """What came of a long poll.

    Attributes:
        wait_s: how long the server was asked to wait.
        outcome: the response, or why there was none.
        after_s: after how long it came.
    """

    wait_s: float
    outcome: Outcome
    after_s: float


async def try_long_poll(context: CheckContext) -> LongPollResult | str:
    """Let a request wait on a session of its own, to which nobody writes; then delete that session.

    Returns:
        The result, or why it could not be tried.
    """
    probe = context.probe
    wait_s = min(context.server_info["max_wait_ms"] / 1000, _MAX_WAIT_S - probe.elapsed_s)
    if wait_s <= 0:
        return "the server lets no request wait (long_poll.max_wait: 0)"
    created = await context.request("POST", context.collection_url, body=b"Waiting.")
    if not has_status(created, 200, 201) or (etag := created.field_value("ETag")) is None:
        return f"there is no session with an ETag to wait for: {created}"
    session_url = context.session_url_of(created)
    started_s = probe.elapsed_s
    outcome = await context.request(
        "GET",
        f"{session_url}?timeout={wait_s * 1000:.0f}",
        {"If-None-Match": etag},
        name="GET with timeout",
        is_new_connection=True,
        timeout_s=wait_s + _MAX_DELAY_S,
    )
    result = LongPollResult(wait_s, outcome, probe.elapsed_s - started_s)
    await context.request("DELETE", session_url)
    return result


def evaluate_long_poll(context: CheckContext, result: LongPollResult | str) -> None:
    """Add what a long poll showed to the findings.

    Args:
        context: of the check.
        result: what `try_long_poll` returned.
    """
    findings = context.findings
    if isinstance(result, str):
        findings.not_tested("wait", result)
        return
    outcome, wait_s, after_s = result.outcome, result.wait_s, result.after_s
    evidence = f"asked to wait {wait_s:.3g} s; after {after_s:.1f} s came: {outcome}"
    if has_status(outcome, 304) and after_s >= wait_s - min(_MAX_EARLY_S, 0.2 * wait_s):
        findings.ok("wait", f"a request is held for {wait_s:.3g} s")
    elif has_status(outcome, 200, 304):
        if "cache.stale" in findings or "poll.ignored" in findings:
            findings.not_tested("wait", "what was found above keeps requests from waiting")
        else:
            findings.add_problem("wait.early", evidence, response=outcome)
    else:
        findings.add_problem("wait.cut", evidence, response=outcome)


async def check_sizes(context: CheckContext) -> None:
    """Write a payload as long as the server accepts, and one that is a byte longer."""
    findings, max_bytes = context.findings, context.server_info["max_bytes"]
    if "body.limit" in findings:
        return
    condition = {"If-Match": context.etag or "*"}
    name = f"PUT of {max_bytes} bytes"
    largest = await context.request("PUT", context.session_url, condition, b"x" * max_bytes, name=name)
    if not has_status(largest, 202):
        findings.add_problem("body.limit", f"a body of {max_bytes} bytes: {largest}", response=largest)
        return
    findings.ok("sizes", f"payloads of {max_bytes} bytes get through")
    name = f"PUT of {max_bytes + 1} bytes"
    too_large = await context.request("PUT", context.session_url, {"If-Match": "*"}, b"x" * (max_bytes + 1), name=name)
    expect_error(context, name, 413, too_large)
