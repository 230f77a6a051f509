"""How long requests may wait on the way, and how large they may be."""

import attr

from synapse_rendezvous.check.answer import Answer
from synapse_rendezvous.check.exchange import expect_error
from synapse_rendezvous.check.probe import MAX_S, Unanswered
from synapse_rendezvous.check.visit import Visit, code, whole

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
    made = await visit.ask("POST", "POST", visit.collection, body=b"Waiting.")
    tag = made.one("ETag") if isinstance(made, Answer) and made.code in (200, 201) else None
    if tag is None or not isinstance(made, Answer):
        return f"there is no session with an ETag to wait for: {made}"
    session_id = made.content.get("id") or str(made.content.get("url", "")).rpartition("/")[2]
    session = f"{visit.collection}/{session_id}"
    begun_s = visit.probe.seconds
    answer = await visit.ask(
        "GET with timeout",
        "GET",
        f"{session}?timeout={wait_s * 1000:.0f}",
        {"If-None-Match": tag},
        is_fresh=True,
        timeout_s=wait_s + _SPARE_S,
    )
    held = Held(wait_s, answer, visit.probe.seconds - begun_s)
    await visit.ask("DELETE", "DELETE", session)
    return held


def look_at_wait(visit: Visit, held: Held | str) -> None:
    """Tell what came of the request that was to wait."""
    findings = visit.findings
    if isinstance(held, str):
        findings.not_tested("wait", held)
        return
    enough_s = held.wait_s - min(_EARLY_S, 0.2 * held.wait_s)
    asked = f"asked to wait {held.wait_s:.3g} s; after {held.after_s:.1f} s came: {held.answer}"
    if code(held.answer) == 304 and held.after_s >= enough_s:
        findings.ok("wait", f"a request is held for {held.wait_s:.3g} s")
    elif code(held.answer) in (200, 304):
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
    answer = await visit.ask(f"PUT of {limit} bytes", "PUT", visit.session, on_tag, b"x" * limit)
    if code(answer) != 202:
        if code(answer) == 429 and isinstance(answer, Answer) and answer.is_ours:
            findings.not_tested("sizes", f"the server is full: {answer}")
        else:
            findings.add("body.limit", f"a body of {limit} bytes: {answer}", answer=whole(answer))
        return
    findings.ok("sizes", f"payloads of {limit} bytes get through")
    too_large = await visit.ask(
        f"PUT of {limit + 1} bytes", "PUT", visit.session, {"If-Match": "*"}, b"x" * (limit + 1)
    )
    expect_error(visit, f"PUT of {limit + 1} bytes", 413, too_large)
