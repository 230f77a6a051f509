"""How the session is created that the rest is about, and what the answer says of it."""

import time
from email.utils import parsedate_to_datetime
from urllib.parse import urlsplit

from synapse_rendezvous.check.answer import Answer
from synapse_rendezvous.check.probe import Unanswered
from synapse_rendezvous.check.reach import is_local
from synapse_rendezvous.check.visit import Visit, has, whole

_SIZE = 2000
"""How long payloads are: long enough for proxies to compress them."""

_SHORT = 10

_MAX_SKEW_S = 5


async def create(visit: Visit) -> None:
    """Create the session that the rest is about.

    Raises:
        Stopped: there is none.
    """
    findings = visit.findings
    size = visit.size = min(_SIZE, visit.about["max_bytes"])
    answer = await visit.ask("POST", visit.collection, body=visit.new_payload())
    if not has(answer, 200, 201) and not (isinstance(answer, Answer) and answer.is_ours):
        # Perhaps it was only too long for something on the way.
        visit.size = min(_SHORT, size)
        again = await visit.ask("POST", visit.collection, body=visit.new_payload())
        if has(again, 200, 201):
            findings.add("body.limit", f"a body of {size} bytes: {answer}", answer=whole(answer))
            answer = again
    if not has(answer, 200, 201) or not visit.url_of(answer):
        raise findings.stop(_why_not(answer), f"POST: {answer}", answer=whole(answer))
    visit.session = visit.url_of(answer)
    visit.tag = answer.one("ETag") or ""
    findings.ok("create", f"POST made a session ({answer.code})")
    if not visit.tag:
        findings.add("etag.removed", "on the answer to POST", answer=answer)
    _look_at_dates(visit, answer)
    await _follow(visit, answer.content.get("url"))


def _why_not(answer: Answer | Unanswered) -> str:
    """Name the problem by the answer to a POST that made no session."""
    if isinstance(answer, Answer) and answer.is_ours:
        known = {401: "create.refused", 403: "create.refused", 503: "create.unavailable"}
        return known.get(answer.code, "create.failed")
    return "route.method" if has(answer, 403, 404, 405) else "create.failed"


def _look_at_dates(visit: Visit, answer: Answer) -> None:
    findings = visit.findings
    try:
        expires, modified = (
            parsedate_to_datetime(answer.all(name)[0]).timestamp() for name in ("Expires", "Last-Modified")
        )
    except (IndexError, ValueError, TypeError):
        return  # a matter for whoever looks at headers
    life_s = visit.about["ttl_ms"] / 1000
    if abs(expires - modified - life_s) > 2:
        findings.add(
            "headers.expires", f"{expires - modified:.0f} s after Last-Modified, not {life_s:.0f}", answer=answer
        )
    skew_s = modified - time.time()
    if not -_MAX_SKEW_S - answer.seconds < skew_s < _MAX_SKEW_S:
        findings.add(
            "clock.skew", f"the server's is {abs(skew_s):.0f} s {'ahead' if skew_s > 0 else 'behind'}", answer=answer
        )


async def _follow(visit: Visit, url: object) -> None:
    """Read the session at the URL that the server gave it."""
    if not isinstance(url, str) or url == visit.session:
        return
    asked, given = urlsplit(visit.session), urlsplit(url)
    is_remote = not _is_local_name(asked.hostname)
    if is_remote and (_is_local_name(given.hostname) or (asked.scheme, given.scheme) == ("https", "http")):
        visit.findings.add("create.url", url)
        return
    answer = await visit.ask("GET", url, is_kept=False, name="GET of the session's URL")
    if has(answer, 200):
        visit.findings.ok("create", f"the URL that the server hands out leads to it ({given.scheme}://{given.netloc})")
    elif is_remote or isinstance(answer, Answer):
        visit.findings.add("create.url", url, answer, answer=whole(answer))
    else:
        visit.findings.not_tested("create", f"the URL that the server hands out: {url}: {answer}")


def _is_local_name(host: str | None) -> bool:
    try:
        return host in (None, "localhost") or is_local(str(host))
    except ValueError:
        return False
