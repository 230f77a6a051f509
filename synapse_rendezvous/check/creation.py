"""Creates the session that the rest of the check uses, and looks at the response."""

import time
from email.utils import parsedate_to_datetime
from urllib.parse import urlsplit

from synapse_rendezvous.check.connection import is_local
from synapse_rendezvous.check.context import CheckContext
from synapse_rendezvous.check.response import Outcome, Response, has_status

_PAYLOAD_SIZE = 2000
"""Long enough for proxies to compress it."""

_SMALL_PAYLOAD_SIZE = 10

_MAX_SKEW_S = 5


async def check_create(context: CheckContext) -> None:
    """Create the session that the rest of the check uses.

    Raises:
        Stopped: it could not be created.
    """
    findings = context.findings
    size = context.payload_size = min(_PAYLOAD_SIZE, context.server_info["max_bytes"])
    response = await context.request("POST", context.collection_url, body=context.new_payload())
    if not has_status(response, 200, 201) and not (isinstance(response, Response) and response.is_from_module):
        # A proxy may have refused it for its size alone.
        context.payload_size = min(_SMALL_PAYLOAD_SIZE, size)
        second = await context.request("POST", context.collection_url, body=context.new_payload())
        if has_status(second, 200, 201):
            findings.add_problem("body.limit", f"a body of {size} bytes: {response}", response=response)
            response = second
    if not has_status(response, 200, 201) or not context.session_url_of(response):
        raise findings.stop(_diagnose_failure(response), f"POST: {response}", response=response)
    context.session_url = context.session_url_of(response)
    context.etag = response.field_value("ETag") or ""
    findings.ok("create", f"POST made a session ({response.code})")
    if not context.etag:
        findings.add_problem("etag.removed", "on the answer to POST", response=response)
    _check_dates(context, response)
    await _follow_url(context, response.content.get("url"))


def _diagnose_failure(outcome: Outcome) -> str:
    """Return the id of the problem, by what came of a POST that created no session."""
    if isinstance(outcome, Response) and outcome.is_from_module:
        known = {401: "create.refused", 403: "create.refused", 503: "create.unavailable"}
        return known.get(outcome.code, "create.failed")
    return "route.method" if has_status(outcome, 403, 404, 405) else "create.failed"


def _check_dates(context: CheckContext, response: Response) -> None:
    findings = context.findings
    try:
        expires, modified = (
            parsedate_to_datetime(response.field_lines(name)[0]).timestamp() for name in ("Expires", "Last-Modified")
        )
    except (IndexError, ValueError, TypeError):
        return  # `check_response_headers` reports missing fields
    lifetime_s = context.server_info["ttl_ms"] / 1000
    if abs(expires - modified - lifetime_s) > 2:
        evidence = f"{expires - modified:.0f} s after Last-Modified, not {lifetime_s:.0f}"
        findings.add_problem("headers.expires", evidence, response=response)
    skew_s = modified - time.time()
    if not -_MAX_SKEW_S - response.seconds < skew_s < _MAX_SKEW_S:
        evidence = f"the server's is {abs(skew_s):.0f} s {'ahead' if skew_s > 0 else 'behind'}"
        findings.add_problem("clock.skew", evidence, response=response)


async def _follow_url(context: CheckContext, url: object) -> None:
    """Read the session at the URL that the response to its creation gives."""
    if not isinstance(url, str) or url == context.session_url:
        return
    findings = context.findings
    used, given = urlsplit(context.session_url), urlsplit(url)
    is_remote = not _is_local_name(used.hostname)
    if is_remote and (_is_local_name(given.hostname) or (used.scheme, given.scheme) == ("https", "http")):
        findings.add_problem("create.url", url)
        return
    response = await context.request("GET", url, is_recorded=False, name="GET of the session's URL")
    if has_status(response, 200):
        findings.ok("create", f"the URL that the server hands out leads to it ({given.scheme}://{given.netloc})")
    elif is_remote or isinstance(response, Response):
        findings.add_problem("create.url", url, response, response=response)
    else:
        findings.not_tested("create", f"the URL that the server hands out: {url}: {response}")


def _is_local_name(host: str | None) -> bool:
    try:
        return host in (None, "localhost") or is_local(str(host))
    except ValueError:
        return False
