"""The header fields of all responses of the module: CORS, caching, security."""

from collections.abc import Callable

from synapse_rendezvous.check.context import CheckContext
from synapse_rendezvous.check.response import Response

_SINGLE_FIELDS = ("ETag", "Expires", "Last-Modified", "Content-Type")
_REVISION_FIELDS = ("Expires", "Last-Modified")
_SECURITY_FIELDS = ("X-Content-Type-Options", "Content-Security-Policy", "Cross-Origin-Resource-Policy")

_NamedResponses = list[tuple[str, Response]]
"""Responses, each with the name of its request."""


def check_response_headers(context: CheckContext) -> None:
    """Check the header fields of all responses that were recorded."""
    findings, responses = context.findings, context.responses
    if not responses:
        return
    others = [(name, response) for name, response in responses if not name.startswith("OPTIONS")]
    with_etag = [
        (name, response) for name, response in others if response.code in (200, 202) and response.field_value("ETag")
    ]
    with_payload = [(name, response) for name, response in others if response.code == 200]

    _add_problem(context, "cors.duplicate", responses, lambda response: _wrong_origins(response, context.probe.origin))
    if "cors.missing" not in findings:
        _add_problem(context, "cors.missing", others, _missing_origin)
    _add_problem(context, "cors.expose", others, _hidden_etag)
    _add_problem(context, "headers.duplicate", others, _duplicates)
    _add_problem(context, "headers.missing", with_etag, lambda response: _missing(response, _REVISION_FIELDS))
    if "cache.stale" not in findings:
        _add_problem(context, "cache.headers", others, _cacheable)
    _add_problem(context, "security.headers", with_payload, lambda response: _missing(response, _SECURITY_FIELDS))
    if context.replaced_errors:
        (_, first), *_ = context.replaced_errors
        findings.add_problem("errors.replaced", *(text for text, _ in context.replaced_errors), response=first)
    if "preflight" in findings and not findings.has_problem("preflight"):
        findings.ok("preflight", f"each of {len(responses)} answers allows other origins once, and shows the ETag")


def _add_problem(
    context: CheckContext, problem_id: str, responses: _NamedResponses, faults: Callable[[Response], list[str]]
) -> None:
    """Add a problem to the findings if some responses have it.

    Args:
        context: of the check.
        problem_id: as in problems.yaml.
        responses: those to look at.
        faults: returns the evidence of the problem in a response, a line each; empty if it does not have the problem.
    """
    seen = [(name, response, fault) for name, response in responses for fault in faults(response)]
    if not seen:
        return
    evidence = list(dict.fromkeys(fault for _, _, fault in seen))[:3]
    names = list(dict.fromkeys(name for name, _, _ in seen))
    more = f" and {len(names) - 3} more" if len(names) > 3 else ""
    on = f"on the answers to: {'; '.join(names[:3])}{more}"
    context.findings.add_problem(problem_id, *evidence, on, response=seen[0][1])


def _wrong_origins(response: Response, origin: str) -> list[str]:
    allowed = response.field_lines("Access-Control-Allow-Origin")
    if not allowed or (len(allowed) == 1 and allowed[0] in ("*", origin)):
        return []
    return [f"got: {' and '.join(f'Access-Control-Allow-Origin: {value}' for value in allowed)}"]


def _missing_origin(response: Response) -> list[str]:
    return [] if response.field_lines("Access-Control-Allow-Origin") else [f"status {response.code}"]


def _hidden_etag(response: Response) -> list[str]:
    exposed = {name.lower() for name in response.list_members("Access-Control-Expose-Headers")}
    value = response.field_value("Access-Control-Expose-Headers")
    return [] if exposed & {"etag", "*"} else [f"got: Access-Control-Expose-Headers: {value}"]


def _duplicates(response: Response) -> list[str]:
    return [f"got twice: {name}" for name in _SINGLE_FIELDS if len(response.field_lines(name)) > 1]


def _missing(response: Response, names: tuple[str, ...]) -> list[str]:
    return [f"missing: {name}" for name in names if not response.field_lines(name)]


def _cacheable(response: Response) -> list[str]:
    is_kept_from_caches = "no-store" in response.list_members("Cache-Control")
    return [] if is_kept_from_caches else [f"got: Cache-Control: {response.field_value('Cache-Control')}"]
