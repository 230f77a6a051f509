"""The CORS preflights that browsers send before the requests of a web client."""

from synapse_rendezvous.check.context import CheckContext
from synapse_rendezvous.check.response import Response

_REQUEST_FIELDS = {
    "POST": {"Content-Type"},
    "PUT": {"Content-Type", "If-Match", "If-None-Match"},
}
"""The header fields of web clients that a preflight must allow: of requests to the collection, and to a session."""

_METHODS: dict[str, set[str]] = {"POST": set(), "PUT": {"PUT", "DELETE"}}
"""The methods that a preflight must allow; browsers need no permission for GET, HEAD and POST."""


async def check_preflight(context: CheckContext) -> None:
    """Send the preflights for the collection (POST) and for a session (PUT)."""
    findings = context.findings
    for method, url in (("POST", context.collection_url), ("PUT", context.session_url)):
        fields = {
            "Access-Control-Request-Method": method,
            "Access-Control-Request-Headers": ",".join(sorted(name.lower() for name in _REQUEST_FIELDS[method])),
        }
        response = await context.request("OPTIONS", url, fields, is_recorded=False, name=f"OPTIONS for {method}")
        if isinstance(response, Response) and 200 <= response.code < 300:
            _check_permissions(context, response, method)
        else:
            findings.add_problem("cors.preflight.status", f"OPTIONS: {response}", response=response)
        if findings.has_problem("preflight"):
            return
    findings.ok("preflight", "browsers may send all methods, with If-Match and If-None-Match")


def _check_permissions(context: CheckContext, response: Response, method: str) -> None:
    """Check that the response to a preflight allows what web clients send.

    Args:
        context: of the check.
        response: to the preflight.
        method: that the preflight asked for.
    """
    findings = context.findings
    origins = response.field_lines("Access-Control-Allow-Origin")
    if not origins:
        findings.add_problem("cors.missing", f"on OPTIONS ({response.code})", response=response)
        return
    if len(origins) > 1 or origins[0] not in ("*", context.probe.origin):
        context.responses.append((f"OPTIONS for {method}", response))  # `check_response_headers` reports it
    methods = response.list_members("Access-Control-Allow-Methods")
    if "*" not in methods and not _METHODS[method] <= methods:
        evidence = f"got: Access-Control-Allow-Methods: {response.field_value('Access-Control-Allow-Methods')}"
        findings.add_problem("cors.preflight.methods", evidence, response=response)
    allowed = {name.lower() for name in response.list_members("Access-Control-Allow-Headers")}
    if "*" not in allowed and not {name.lower() for name in _REQUEST_FIELDS[method]} <= allowed:
        evidence = f"got: Access-Control-Allow-Headers: {response.field_value('Access-Control-Allow-Headers')}"
        findings.add_problem("cors.preflight.headers", evidence, response=response)
