"""What browsers need of a server that is not the page's own: preflights, and header fields on each answer."""

from synapse_rendezvous.check.answer import Answer
from synapse_rendezvous.check.probe import Unanswered
from synapse_rendezvous.check.visit import Visit

_METHODS = {"POST": ("Content-Type",), "PUT": ("Content-Type", "If-Match"), "GET": ("If-None-Match",)}
"""What web clients send, with the fields that need leave. POST is for the collection, the others for sessions."""

_ONCE = ("ETag", "Expires", "Last-Modified", "Content-Type")
_SECURITY = ("X-Content-Type-Options", "Content-Security-Policy", "Cross-Origin-Resource-Policy")
_ON_REVISIONS = ("Expires", "Last-Modified")


async def preflight(visit: Visit) -> None:
    """Ask as browsers do before they send what a page wants to send."""
    for method in ("POST", "PUT"):
        wanted = _METHODS[method] + (_METHODS["GET"] if method == "PUT" else ())
        fields = {
            "Access-Control-Request-Method": method,
            "Access-Control-Request-Headers": ",".join(sorted(name.lower() for name in wanted)),
        }
        url = visit.collection if method == "POST" else visit.session
        answer = await visit.ask("OPTIONS", url, fields, is_kept=False, name=f"OPTIONS for {method}")
        if isinstance(answer, Unanswered) or not 200 <= answer.code < 300:
            reached = answer if isinstance(answer, Answer) else None
            visit.findings.add("cors.preflight.status", f"OPTIONS: {answer}", answer=reached)
        else:
            _look_at_leave(visit, answer, method, wanted)
        if visit.findings.has_problem("preflight"):
            return
    visit.findings.ok("preflight", "browsers may send all methods, with If-Match and If-None-Match")


def _look_at_leave(visit: Visit, answer: Answer, method: str, wanted: tuple[str, ...]) -> None:
    """See whether the answer to a preflight gives leave."""
    origins = answer.all("Access-Control-Allow-Origin")
    methods, names = _list(answer, "Access-Control-Allow-Methods"), _list(answer, "Access-Control-Allow-Headers")
    if not origins:
        visit.findings.add("cors.missing", f"on OPTIONS ({answer.code})", answer=answer)
        return
    if len(origins) > 1 or origins[0] not in ("*", visit.probe.origin):
        visit.answers.append((f"OPTIONS for {method}", answer))  # for those who look at all answers
    needed = {"PUT", "DELETE"} if method == "PUT" else set()
    if not needed <= methods | ({"PUT", "DELETE"} if "*" in methods else set()):
        told = answer.one("Access-Control-Allow-Methods")
        visit.findings.add("cors.preflight.methods", f"got: Access-Control-Allow-Methods: {told}", answer=answer)
    if "*" not in names and not {name.lower() for name in wanted} <= {name.lower() for name in names}:
        told = answer.one("Access-Control-Allow-Headers")
        visit.findings.add("cors.preflight.headers", f"got: Access-Control-Allow-Headers: {told}", answer=answer)


def _list(answer: Answer, name: str) -> set[str]:
    return {part.strip() for line in answer.all(name) for part in line.split(",")}


def look_at_headers(visit: Visit) -> None:
    """Look at the fields of all answers of the server that came."""
    findings, answers = visit.findings, visit.answers
    if not answers:
        return

    def tell(problem: str, seen: list[tuple[str, Answer, str]]) -> None:
        if seen:
            where = list(dict.fromkeys(name for name, _, _ in seen))
            more = f" and {len(where) - 3} more" if len(where) > 3 else ""
            evidence = list(dict.fromkeys(told for _, _, told in seen))[:3]
            findings.add(problem, *evidence, f"on the answers to: {'; '.join(where[:3])}{more}", answer=seen[0][1])

    contents = [(name, answer) for name, answer in answers if not name.startswith("OPTIONS")]
    revisions = [(name, answer) for name, answer in contents if answer.code in (200, 202) and answer.one("ETag")]
    origins = [
        (name, answer, f"got: {' and '.join(f'Access-Control-Allow-Origin: {value}' for value in values)}")
        for name, answer in answers
        for values in [answer.all("Access-Control-Allow-Origin")]
        if values and (len(values) > 1 or values[0] not in ("*", visit.probe.origin))
    ]
    tell("cors.duplicate", origins)
    missing = [(name, answer, "") for name, answer in contents if not answer.all("Access-Control-Allow-Origin")]
    if "cors.missing" not in findings:
        tell("cors.missing", [(name, answer, f"status {answer.code}") for name, answer, _ in missing])
    exposed = [
        (name, answer, f"got: Access-Control-Expose-Headers: {answer.one('Access-Control-Expose-Headers')}")
        for name, answer in contents
        if not {"etag", "*"} & {part.lower() for part in _list(answer, "Access-Control-Expose-Headers")}
    ]
    tell("cors.expose", exposed)
    tell(
        "headers.duplicate",
        [
            (name, answer, f"got twice: {field}")
            for name, answer in contents
            for field in _ONCE
            if len(answer.all(field)) > 1
        ],
    )
    tell(
        "headers.missing",
        [
            (name, answer, f"missing: {field}")
            for name, answer in revisions
            for field in _ON_REVISIONS
            if not answer.all(field)
        ],
    )
    if "cache.stale" not in findings:
        tell(
            "cache.headers",
            [
                (name, answer, f"got: Cache-Control: {answer.one('Cache-Control')}")
                for name, answer in contents
                if "no-store" not in _list(answer, "Cache-Control")
            ],
        )
    tell(
        "security.headers",
        [
            (name, answer, f"missing: {field}")
            for name, answer in contents
            if answer.code == 200
            for field in _SECURITY
            if not answer.all(field)
        ],
    )
    if visit.replaced:
        findings.add("errors.replaced", *(told for told, _ in visit.replaced), answer=visit.replaced[0][1])
    if "preflight" in findings and not findings.has_problem("preflight"):
        findings.ok("preflight", f"each of {len(answers)} answers allows other origins once, and shows the ETag")
