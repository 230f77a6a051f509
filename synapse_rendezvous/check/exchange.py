"""One rendezvous, as two devices would run it: read, poll, write, read again, delete."""

import gzip
import zlib
from collections.abc import Callable

from synapse_rendezvous.check.context import CheckContext
from synapse_rendezvous.check.response import Outcome, Response, has_status

_REVISION_FIELDS = ("ETag", "Expires", "Last-Modified")

_DECODERS: dict[str, Callable[[bytes], bytes]] = {
    "identity": bytes,
    "gzip": gzip.decompress,
    "deflate": zlib.decompress,
}

_CACHE_FIELDS = ("Age", "X-Cache", "X-Cache-Status", "X-Proxy-Cache", "CF-Cache-Status")


async def check_read(context: CheckContext) -> None:
    """Read the new session: in whatever content coding a proxy prefers, then in none.

    Raises:
        Stopped: the session cannot be read.
    """
    findings, created_etag = context.findings, context.etag
    for coding in ("gzip, deflate, br, zstd", "identity"):
        response = await context.request("GET", context.session_url, {"Accept-Encoding": coding})
        if not has_status(response, 200):
            problem = "route.ids" if has_status(response, 403, 404, 405) else "read.failed"
            raise findings.stop(problem, f"GET: {response}", response=response)
        if coding != "identity":
            _check_coding(context, response)
        elif response.body != context.payload:
            evidence = f"{len(context.payload)} bytes became {len(response.body)}"
            findings.add_problem("read.changed", evidence, response=response)
        _check_content_type(context, response)
        etag = response.field_value("ETag") or ""
        if not etag and created_etag and "etag.removed" not in findings:
            evidence = f"on the answer to GET, with Accept-Encoding: {coding}"
            findings.add_problem("etag.removed", evidence, response=response)
        if coding != "identity":
            context.etag = etag or created_etag
    if not findings.has_problem("read"):
        findings.ok("read", "payload, Content-Type and ETag arrive unharmed, whatever the Accept-Encoding")


def _check_coding(context: CheckContext, response: Response) -> None:
    findings, coding = context.findings, response.field_value("Content-Encoding")
    sent, received = context.etag, response.field_value("ETag") or ""
    compressed = f"Content-Encoding: {coding}" if coding else "not compressed"
    if received and sent and received != sent:
        problem = "etag.weakened" if sent.strip('"') in received else "etag.replaced"
        findings.add_problem(problem, f"sent: {sent}", f"got:  {received}", compressed, response=response)
    elif coding:
        findings.add_problem("read.compressed", compressed, response=response)
    try:
        decode = _DECODERS.get(coding or "identity")  # not every Python has a decoder for the other codings
        is_changed = decode is not None and decode(response.body) != context.payload
    except (OSError, EOFError, zlib.error):
        is_changed = True
    if is_changed:
        findings.add_problem("read.changed", compressed, f"begins with {response.body[:40]!r}", response=response)


def _check_content_type(context: CheckContext, response: Response) -> None:
    findings, received = context.findings, response.field_value("Content-Type")
    if received == "text/plain" or "type.charset" in findings or "type.changed" in findings:
        return
    has_charset = (received or "").lower().replace(" ", "").startswith("text/plain;charset=")
    problem = "type.charset" if has_charset else "type.changed"
    findings.add_problem(problem, "sent: text/plain", f"got:  {received}", response=response)


async def check_poll(context: CheckContext) -> None:
    """Read on condition that the session has changed since the ETag that arrived; it has not."""
    findings = context.findings
    if findings.has_problem("poll") or "cache.stale" in findings:
        return
    fields = {"If-None-Match": context.etag, "Accept-Encoding": "identity"}
    url = f"{context.session_url}?timeout=0"  # or the server holds it
    response = await context.request("GET", url, fields, name="GET with If-None-Match")
    if has_status(response, 200) and context.payload not in (b"", response.body) and "read.changed" not in findings:
        _add_stale_cache(context, response)
        return
    if not has_status(response, 304):
        evidence = (f"If-None-Match: {context.etag}", f"got, not 304: {response}")
        findings.add_problem("poll.ignored", *evidence, response=response)
        return
    missing = [name for name in _REVISION_FIELDS if response.field_value(name) is None]
    if missing:
        findings.add_problem("poll.headers", f"missing: {', '.join(missing)}", response=response)


def _add_stale_cache(context: CheckContext, response: Response) -> None:
    hints = [f"{name}: {value}" for name in _CACHE_FIELDS if (value := response.field_value(name))]
    evidence = ("GET after a PUT still has the old payload", *hints)
    context.findings.add_problem("cache.stale", *evidence, response=response)


async def check_write(context: CheckContext) -> None:
    """Write with the current ETag; send the same again; write with the old ETag; write without a Content-Length.

    Raises:
        Stopped: the session cannot be written.
    """
    findings, url, old_etag = context.findings, context.session_url, context.etag
    old_condition = {"If-Match": old_etag or "*"}
    payload = context.new_payload()
    response = await context.request("PUT", url, old_condition, payload)
    if has_status(response, 412) and old_etag:
        raise findings.stop("etag.rejected", f"If-Match: {old_etag}", response, response=response)
    if not has_status(response, 202):
        problem = "route.method" if _is_method_blocked(response) else "write.failed"
        raise findings.stop(problem, f"PUT: {response}", response=response)
    _update_etag(context, response)
    if not (old_etag and context.etag):
        findings.not_tested("write", "writes on condition: there is no ETag")
        return
    repeated = await context.request("PUT", url, old_condition, payload, name="PUT, sent twice")
    if not has_status(repeated, 202):
        findings.add_problem("write.replay", f"PUT, sent twice: {repeated}", response=repeated)
    stale = await context.request("PUT", url, old_condition, b"stale", name="PUT with an old ETag")
    if has_status(stale, 202):
        context.payload = b"stale"
        _update_etag(context, stale)
        findings.add_problem("write.unconditional", f"If-Match: {old_etag}", response=stale)
    else:
        expect_error(context, "PUT with an old ETag", 412, stale)
    payload = context.new_payload()
    condition = {"If-Match": context.etag}
    chunked = await context.request("PUT", url, condition, payload, is_chunked=True, name="PUT, chunked")
    if has_status(chunked, 202):
        _update_etag(context, chunked)
    else:
        context.payload = b""  # the server may have stored it or not
        findings.add_problem("body.chunked", chunked, response=chunked)
    if not findings.has_problem("write"):
        findings.ok("write", "PUT with If-Match is 202, also chunked and sent twice; with an old ETag it is 412")


def expect_error(context: CheckContext, name: str, status: int, outcome: Outcome) -> None:
    """Record an error response of the module that did not arrive as the module sent it.

    Args:
        context: of the check.
        name: of the request, for a person.
        status: the status code of the module's response.
        outcome: what came of the request.
    """
    if not has_status(outcome, status) or not outcome.is_from_module:
        context.replaced_errors.append((f"{name}: {outcome}, not {status} in JSON", outcome))


def _is_method_blocked(outcome: Outcome) -> bool:
    """Whether something between here and the module refused the method of the request."""
    return has_status(outcome, 403, 404, 405) and not outcome.is_from_module


def _update_etag(context: CheckContext, response: Response) -> None:
    """Take the new ETag from the response to a write."""
    etag = response.field_value("ETag") or ""
    if not etag and context.etag and "etag.removed" not in context.findings:
        context.findings.add_problem("etag.removed", "on the answer to PUT", response=response)
    context.etag = etag


async def check_fresh(context: CheckContext) -> None:
    """Read the payload that was written last."""
    findings = context.findings
    if "cache.stale" in findings:
        return
    if not context.payload or "read.changed" in findings:
        findings.not_tested("fresh", "it is not known what should arrive")
        return
    response = await context.request("GET", context.session_url, {"Accept-Encoding": "identity"})
    if not has_status(response, 200):
        findings.add_problem("read.failed", f"GET after a PUT: {response}", response=response)
    elif response.body != context.payload:
        _add_stale_cache(context, response)
    else:
        findings.ok("fresh", "a new message is seen at once")


async def check_end(context: CheckContext) -> None:
    """Send HEAD, delete the session, and try to read it."""
    findings, url = context.findings, context.session_url
    head = await context.request("HEAD", url)
    if not has_status(head, 200):
        findings.add_problem("end.head", f"HEAD: {head}", response=head)
    deleted = await context.request("DELETE", url)
    if not has_status(deleted, 204):
        problem = "route.method" if _is_method_blocked(deleted) else "end.failed"
        findings.add_problem(problem, f"DELETE: {deleted}", response=deleted)
        return
    gone = await context.request("GET", url, name="GET after DELETE")
    if has_status(gone, 200) and gone.is_from_module:
        if "cache.stale" not in findings:
            findings.add_problem("cache.stale", "GET after DELETE still finds the session", response=gone)
    else:
        expect_error(context, "GET after DELETE", 404, gone)
    if not findings.has_problem("end"):
        findings.ok("end", "HEAD, DELETE and the GET after it are answered as they should be")
