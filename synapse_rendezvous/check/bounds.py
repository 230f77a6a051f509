"""How long requests may wait on the way, and how large they may be."""

import attr

from synapse_rendezvous.check.answer import Answer
from synapse_rendezvous.check.exchange import expect_error
from synapse_rendezvous.check.probe import MAX_S, Unanswered
from synapse_rendezvous.check.visit import Visit, has, whole

_LONGEST_S = MAX_S - 6
"""For how long a request is held at most, so that the time is enough for all of the check."""

_SPARE_S = 4.0
"""How much later than it should the answer may come."""

_EARLY_S = 1.5
"""How much sooner: the server ends long waits together, up to a second sooner. For short ones it is less."""


@attr.s(auto_attribs=True, frozen=True, slots=True)
class Held:
    """A request that was to wait for news.

    Attributes:
        wait_s: how long it was to wait.
        answer: what came of it.
        after_s: how long that took.
    """

    wait_s: float
    answer: Answer | Unanswered
    after_s: float


async def hold(visit: Visit) -> Held | str:
    """Let a request wait for news that do not come, on a session of its own, and end that.

    Returns:
        What came of it, or why it could not be tried.
    """
    wait_s = min(visit.about["max_wait_ms"] / 1000, _LONGEST_S - visit.probe.seconds)
    if wait_s <= 0:
        return "the server lets no request wait (long_poll.max_wait: 0)"
    made = await visit.ask("POST", visit.collection, body=b"Waiting.")
    if not has(made, 200, 201) or (tag := made.one("ETag")) is None:
        return f"there is no session with an ETag to wait for: {made}"
    session = visit.url_of(made)
    begun_s = visit.probe.seconds
    answer = await visit.ask(
        "GET",
        f"{session}?timeout={wait_s * 1000:.0f}",
        {"If-None-Match": tag},
        name="GET with timeout",
        is_fresh=True,
        timeout_s=wait_s + _SPARE_S,
    )
    held = Held(wait_s, answer, visit.probe.seconds - begun_s)
    await visit.ask("DELETE", session)
    return held


def look_at_wait(visit: Visit, held: Held | str) -> None:
    """Tell what came of the request that was to wait."""
    findings = visit.findings
    if isinstance(held, str):
        findings.not_tested("wait", held)
        return
    enough_s = held.wait_s - min(_EARLY_S, 0.2 * held.wait_s)
    asked = f"asked to wait {held.wait_s:.3g} s; after {held.after_s:.1f} s came: {held.answer}"
    if has(held.answer, 304) and held.after_s >= enough_s:
        findings.ok("wait", f"a request is held for {held.wait_s:.3g} s")
    elif has(held.answer, 200, 304):
        if "cache.stale" in findings or "poll.ignored" in findings:
            findings.not_tested("wait", "what was found above keeps requests from waiting")
        else:
            findings.add("wait.early", asked, answer=whole(held.answer))
    else:
        findings.add("wait.cut", asked, answer=whole(held.answer))


async def sizes(visit: Visit) -> None:
    """Write a payload as long as the server takes, and one byte more."""
    findings, limit = visit.findings, visit.about["max_bytes"]
    if "body.limit" in findings:
        return
    on_tag = {"If-Match": visit.tag or "*"}
    answer = await visit.ask("PUT", visit.session, on_tag, b"x" * limit, name=f"PUT of {limit} bytes")
    if not has(answer, 202):
        findings.add("body.limit", f"a body of {limit} bytes: {answer}", answer=whole(answer))
        return
    findings.ok("sizes", f"payloads of {limit} bytes get through")
    name = f"PUT of {limit + 1} bytes"
    too_large = await visit.ask("PUT", visit.session, {"If-Match": "*"}, b"x" * (limit + 1), name=name)
    expect_error(visit, name, 413, too_large)
