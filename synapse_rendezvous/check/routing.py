"""Whether requests for the path arrive at the module, and at how many processes."""

from collections import Counter

from twisted.internet.defer import Deferred, FirstError, gatherResults

from synapse_rendezvous.check.context import CheckContext, cache_busting_url
from synapse_rendezvous.check.findings import OnlyMSC4388
from synapse_rendezvous.check.response import NoResponse, Response

CONNECTIONS = 10
"""How many new connections the check opens to see which processes answer: for the collection, and for a session."""


async def check_route(context: CheckContext) -> None:
    """Read the description of the server at the collection.

    Raises:
        Stopped: something other than the module answers.
    """
    findings = context.findings
    response = await context.request("GET", cache_busting_url(context.collection_url))
    if isinstance(response, NoResponse):
        raise findings.stop("route.unexpected", response)
    info = response.content
    if response.code != 200 or info.get("name") != "synapse_rendezvous":
        problem = diagnose_foreign_response(response)
        if problem == "route.not_loaded" and context.serves_msc4388:
            raise OnlyMSC4388
        raise findings.stop(problem, response, response=response)
    context.server_info = info
    details = [f"sessions in {info['store']}"] if info.get("store") else []
    details += [f"process {info['process']}"] if info.get("process") else []
    suffix = f" ({', '.join(details)})" if details else ""
    findings.ok("route", f"synapse_rendezvous {info.get('version')} serves the path{suffix}")


def diagnose_foreign_response(response: Response) -> str:
    """Return the id of the problem, by a response that the module did not write."""
    errcode = response.content.get("errcode")
    if "create_available" in response.content:
        return "route.dialect"
    if response.code in (301, 302, 303, 307, 308):
        return "route.redirect"
    if response.code == 401:
        return "route.login"
    if response.code in (502, 503, 504):
        return "route.down"
    if response.code == 429:
        return "route.limited"
    if response.code == 405 and errcode == "M_UNRECOGNIZED":
        return "route.builtin"
    if response.code == 403 and errcode == "M_FORBIDDEN":
        return "route.denied"
    if errcode == "M_UNRECOGNIZED" or "<title>404 - No Such Resource</title>" in response.body.decode("latin-1"):
        return "route.not_loaded"
    if response.code in (403, 404, 405) or (response.code == 200 and response.is_html):
        return "route.not_passed"
    return "route.unexpected"


async def check_processes(context: CheckContext) -> None:
    """Read the description of the server over new connections, and count the processes that answer.

    Raises:
        Stopped: there are several, and they do not share sessions.
    """
    findings = context.findings
    responses = await _read_over_new_connections(context, context.collection_url)
    if not responses:
        return
    processes = Counter(map(_process_name, responses))
    is_shared = context.server_info.get("store") == "redis"
    if set(processes) == {""}:
        findings.not_tested("process", "this version of the module does not name its process")
    elif any(not name.isalnum() for name in processes) or (len(processes) > 1 and not is_shared):
        evidence = (f"{len(responses)} requests were answered by:", *_format_counts(processes))
        raise findings.stop("route.split", *evidence)
    elif len(processes) > 1:
        findings.ok("process", f"{len(processes)} processes answered, which share sessions in Redis")
    else:
        findings.ok("process", f"{len(responses)} new connections led to one process")


async def check_session_routing(context: CheckContext) -> None:
    """Read the session over new connections: a proxy may route its path otherwise than that of the collection.

    Raises:
        Stopped: a response came from a process that does not have the session.
    """
    findings = context.findings
    responses = await _read_over_new_connections(context, context.session_url)
    failed = Counter(str(response) for response in responses if response.code not in (200, 429))
    if failed:
        evidence = f"{failed.total()} of {len(responses)} reads did not find a session that is there:"
        raise findings.stop("route.split", evidence, *_format_counts(failed))
    if responses:
        findings.ok("process", f"{len(responses)} reads over new connections found the session")


async def _read_over_new_connections(context: CheckContext, url: str) -> list[Response]:
    """Read a URL over several new connections at once, and return the responses."""
    reads = gatherResults(
        [
            Deferred.fromCoroutine(context.request("GET", cache_busting_url(url), is_new_connection=True))
            for _ in range(CONNECTIONS)
        ],
        consumeErrors=True,
    )
    try:
        outcomes = await reads
    except FirstError as error:
        error.subFailure.raiseException()
    responses = [outcome for outcome in outcomes if isinstance(outcome, Response)]
    if len(responses) < len(outcomes):
        reason = next(str(outcome) for outcome in outcomes if isinstance(outcome, NoResponse))
        failed = len(outcomes) - len(responses)
        context.findings.not_tested("process", f"{failed} of {len(outcomes)} connections: {reason}")
    return responses


def _process_name(response: Response) -> str:
    """Return the name of the process that answered; if it was not the module, a description with spaces in it."""
    if response.content.get("name") == "synapse_rendezvous":
        return str(response.content.get("process", ""))
    return f"not the module: {response}"


def _format_counts(counts: Counter[str]) -> list[str]:
    return [f"{name} ({count} times)" for name, count in counts.most_common()]
