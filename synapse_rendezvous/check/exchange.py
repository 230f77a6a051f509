"""One rendezvous, played as two devices do: read, poll, write, read again, end."""

import gzip
import zlib
from collections.abc import Callable

from synapse_rendezvous.check.answer import Answer
from synapse_rendezvous.check.probe import Unanswered
from synapse_rendezvous.check.visit import Visit, has, whole

_REVISION = ("ETag", "Expires", "Last-Modified")

_DECODERS: dict[str, Callable[[bytes], bytes]] = {
    "identity": bytes,
    "gzip": gzip.decompress,
    "deflate": zlib.decompress,
}

_OF_CACHES = ("Age", "X-Cache", "X-Cache-Status", "X-Proxy-Cache", "CF-Cache-Status")


async def read(visit: Visit) -> None:
    """Read what was created: in whatever coding the way there prefers, and as it is.

    Raises:
        Stopped: the session is not there.
    """
    findings, made = visit.findings, visit.tag
    for coding in ("gzip, deflate, br, zstd", "identity"):
        answer = await visit.ask("GET", visit.session, {"Accept-Encoding": coding})
        if not has(answer, 200):
            problem = "route.ids" if has(answer, 403, 404, 405) else "read.failed"
            raise findings.stop(problem, f"GET: {answer}", answer=whole(answer))
        if coding != "identity":
            _look_at_coding(visit, answer)
        elif answer.body != visit.payload:
            findings.add("read.changed", f"{len(visit.payload)} bytes became {len(answer.body)}", answer=answer)
        _look_at_type(visit, answer)
        tag = answer.one("ETag") or ""
        if not tag and made and "etag.removed" not in findings:
            findings.add("etag.removed", f"on the answer to GET, with Accept-Encoding: {coding}", answer=answer)
        if coding != "identity":
            visit.tag = tag or made
    if not findings.has_problem("read"):
        findings.ok("read", "payload, Content-Type and ETag arrive unharmed, whatever the Accept-Encoding")


def _look_at_coding(visit: Visit, answer: Answer) -> None:
    findings, coding = visit.findings, answer.one("Content-Encoding")
    made, tag = visit.tag, answer.one("ETag") or ""
    compressed = f"Content-Encoding: {coding}" if coding else "not compressed"
    if tag and made and tag != made:
        kind = "etag.weakened" if made.strip('"') in tag else "etag.replaced"
        findings.add(kind, f"sent: {made}", f"got:  {tag}", compressed, answer=answer)
    elif coding:
        findings.add("read.compressed", compressed, answer=answer)
    try:
        decoder = _DECODERS.get(coding or "identity")  # others are left alone: not every Python knows them
        is_changed = decoder is not None and decoder(answer.body) != visit.payload
    except (OSError, EOFError, zlib.error):
        is_changed = True
    if is_changed:
        findings.add("read.changed", compressed, f"begins with {answer.body[:40]!r}", answer=answer)


def _look_at_type(visit: Visit, answer: Answer) -> None:
    findings, sort = visit.findings, answer.one("Content-Type")
    if sort == "text/plain" or "type.charset" in findings or "type.changed" in findings:
        return
    is_charset = (sort or "").lower().replace(" ", "").startswith("text/plain;charset=")
    findings.add("type.charset" if is_charset else "type.changed", "sent: text/plain", f"got:  {sort}", answer=answer)


async def poll(visit: Visit) -> None:
    """Ask for news with the tag as it arrived; there are none."""
    findings = visit.findings
    if findings.has_problem("poll") or "cache.stale" in findings:
        return
    fields = {"If-None-Match": visit.tag, "Accept-Encoding": "identity"}
    answer = await visit.ask("GET", visit.session, fields, name="GET with If-None-Match")
    if has(answer, 200) and visit.payload not in (b"", answer.body) and "read.changed" not in findings:
        _tell_of_cache(visit, answer)
        return
    if not has(answer, 304):
        findings.add("poll.ignored", f"If-None-Match: {visit.tag}", f"got, not 304: {answer}", answer=whole(answer))
        return
    missing = [name for name in _REVISION if answer.one(name) is None]
    if missing:
        findings.add("poll.headers", f"missing: {', '.join(missing)}", answer=answer)


def _tell_of_cache(visit: Visit, answer: Answer) -> None:
    hints = [f"{name}: {value}" for name in _OF_CACHES if (value := answer.one(name))]
    visit.findings.add("cache.stale", "GET after a PUT still has the old payload", *hints, answer=answer)


async def write(visit: Visit) -> None:
    """Write on condition, then the same again, then with the old tag, then without telling the length.

    Raises:
        Stopped: the session cannot be written.
    """
    findings, old = visit.findings, visit.tag
    on_old = {"If-Match": old or "*"}
    payload = visit.new_payload()
    answer = await visit.ask("PUT", visit.session, on_old, payload)
    if has(answer, 412) and old:
        raise findings.stop("etag.rejected", f"If-Match: {old}", answer, answer=whole(answer))
    if not has(answer, 202):
        problem = "route.method" if _is_refused(answer) else "write.failed"
        raise findings.stop(problem, f"PUT: {answer}", answer=whole(answer))
    _learn(visit, answer)
    if not (old and visit.tag):
        findings.not_tested("write", "writes on condition: there is no ETag")
        return
    again = await visit.ask("PUT", visit.session, on_old, payload, name="PUT, sent twice")
    if not has(again, 202):
        findings.add("write.replay", f"PUT, sent twice: {again}", answer=whole(again))
    stale = await visit.ask("PUT", visit.session, on_old, b"stale", name="PUT with an old ETag")
    if has(stale, 202):
        visit.payload = b"stale"
        _learn(visit, stale)
        findings.add("write.unconditional", f"If-Match: {old}", answer=whole(stale))
    else:
        expect_error(visit, "PUT with an old ETag", 412, stale)
    payload = visit.new_payload()
    chunked = await visit.ask(
        "PUT", visit.session, {"If-Match": visit.tag}, payload, is_chunked=True, name="PUT, chunked"
    )
    if has(chunked, 202):
        _learn(visit, chunked)
    else:
        visit.payload = b""  # whether it was stored is not known
        findings.add("body.chunked", chunked, answer=whole(chunked))
    if not findings.has_problem("write"):
        findings.ok("write", "PUT with If-Match is 202, also chunked and sent twice; with an old ETag it is 412")


def expect_error(visit: Visit, name: str, status: int, answer: Answer | Unanswered) -> None:
    """Note where an error of the server did not arrive as the server words it."""
    if not has(answer, status) or not answer.is_ours:
        visit.replaced.append((f"{name}: {answer}, not {status} in JSON", whole(answer)))


def _is_refused(answer: Answer | Unanswered) -> bool:
    """Whether something on the way does not let a method through."""
    return has(answer, 403, 404, 405) and not answer.is_ours


def _learn(visit: Visit, answer: Answer) -> None:
    """Take the new tag from the answer to a write."""
    tag = answer.one("ETag") or ""
    if not tag and visit.tag and "etag.removed" not in visit.findings:
        visit.findings.add("etag.removed", "on the answer to PUT", answer=answer)
    visit.tag = tag


async def read_again(visit: Visit) -> None:
    """Read what was written last."""
    if "cache.stale" in visit.findings:
        return
    if not visit.payload or "read.changed" in visit.findings:
        visit.findings.not_tested("fresh", "it is not known what should arrive")
        return
    answer = await visit.ask("GET", visit.session, {"Accept-Encoding": "identity"})
    if not has(answer, 200):
        visit.findings.add("read.failed", f"GET after a PUT: {answer}", answer=whole(answer))
    elif answer.body != visit.payload:
        _tell_of_cache(visit, answer)
    else:
        visit.findings.ok("fresh", "a new message is seen at once")


async def end(visit: Visit) -> None:
    """Look by HEAD, end the session, and see whether it has ended."""
    findings = visit.findings
    head = await visit.ask("HEAD", visit.session)
    if not has(head, 200):
        findings.add("end.head", f"HEAD: {head}", answer=whole(head))
    deleted = await visit.ask("DELETE", visit.session)
    if not has(deleted, 204):
        problem = "route.method" if _is_refused(deleted) else "end.failed"
        findings.add(problem, f"DELETE: {deleted}", answer=whole(deleted))
        return
    gone = await visit.ask("GET", visit.session, name="GET after DELETE")
    if has(gone, 200) and gone.is_ours:
        if "cache.stale" not in findings:
            findings.add("cache.stale", "GET after DELETE still finds the session", answer=gone)
    else:
        expect_error(visit, "GET after DELETE", 404, gone)
    if not findings.has_problem("end"):
        findings.ok("end", "HEAD, DELETE and the GET after it are answered as they should be")
