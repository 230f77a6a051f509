"""Whether requests for the path arrive at the module, and at how many processes."""

import os
from collections import Counter

from twisted.internet.defer import Deferred, FirstError, gatherResults

from synapse_rendezvous.check.answer import Answer
from synapse_rendezvous.check.probe import Unanswered
from synapse_rendezvous.check.visit import Visit

CONNECTIONS = 10
"""Over how many new connections it is asked which process answers, for the collection and for a session each."""


def past_caches(url: str) -> str:
    """Return a URL that no cache has seen; the server does not look at the query."""
    return f"{url}?check={os.urandom(6).hex()}"


async def route(visit: Visit) -> None:
    """Ask the collection for its description.

    Raises:
        Stopped: it is not the module that answers.
    """
    answer = await visit.ask("GET", past_caches(visit.collection))
    if isinstance(answer, Unanswered):
        raise visit.findings.stop("route.unexpected", answer)
    if answer.code == 200 and answer.content.get("name") == "synapse_rendezvous":
        visit.about = answer.content
        told = [f"sessions in {name}" for name in (visit.about.get("store"),) if name]
        told += [f"process {name}" for name in (visit.about.get("process"),) if name]
        details = f" ({', '.join(told)})" if told else ""
        visit.findings.ok("route", f"synapse_rendezvous {visit.about.get('version')} serves the path{details}")
        return
    raise visit.findings.stop(_what_else(answer), answer, answer=answer)


def _what_else(answer: Answer) -> str:
    """Name the problem by the answer of something else."""
    errcode = answer.content.get("errcode")
    if "create_available" in answer.content:
        return "route.dialect"
    if answer.code in (301, 302, 303, 307, 308):
        return "route.redirect"
    if answer.code == 401:
        return "route.login"
    if answer.code in (502, 503, 504):
        return "route.down"
    if answer.code == 429:
        return "route.limited"
    if answer.code == 405 and errcode == "M_UNRECOGNIZED":
        return "route.builtin"
    if answer.code == 403 and errcode == "M_FORBIDDEN":
        return "route.denied"
    if errcode == "M_UNRECOGNIZED" or "<title>404 - No Such Resource</title>" in answer.body.decode("latin-1"):
        return "route.not_loaded"
    if answer.code in (403, 404, 405) or (answer.code == 200 and answer.is_page):
        return "route.not_passed"
    return "route.unexpected"


async def one_process(visit: Visit) -> None:
    """Ask over new connections which process answers.

    Raises:
        Stopped: there are several, and they do not share sessions.
    """
    answers = await _over_new_connections(visit, visit.collection)
    if not answers:
        return
    processes = Counter(map(_process, answers))
    shared = visit.about.get("store") == "redis"
    if set(processes) == {""}:
        visit.findings.not_tested("process", "this version of the module does not name its process")
    elif any(not name.isalnum() for name in processes) or (len(processes) > 1 and not shared):
        raise visit.findings.stop("route.split", f"{len(answers)} requests were answered by:", *_counted(processes))
    elif len(processes) > 1:
        visit.findings.ok("process", f"{len(processes)} processes answered, which share sessions in Redis")
    else:
        visit.findings.ok("process", f"{len(answers)} new connections led to one process")


async def same_session(visit: Visit) -> None:
    """Read the session over new connections: the way of its path may be another one.

    Raises:
        Stopped: not all know it.
    """
    answers = await _over_new_connections(visit, visit.session)
    lost = Counter(str(answer) for answer in answers if answer.code not in (200, 429))
    if lost:
        told = f"{lost.total()} of {len(answers)} reads did not find a session that is there:"
        raise visit.findings.stop("route.split", told, *_counted(lost))
    if answers:
        visit.findings.ok("process", f"{len(answers)} reads over new connections found the session")


async def _over_new_connections(visit: Visit, url: str) -> list[Answer]:
    """Return what was answered to the same question, each over a connection of its own."""
    asking = gatherResults(
        [Deferred.fromCoroutine(visit.ask("GET", past_caches(url), is_fresh=True)) for _ in range(CONNECTIONS)],
        consumeErrors=True,
    )
    try:
        came = await asking
    except FirstError as error:
        error.subFailure.raiseException()
    answers = [answer for answer in came if isinstance(answer, Answer)]
    if len(answers) < len(came):
        why = next(str(answer) for answer in came if isinstance(answer, Unanswered))
        visit.findings.not_tested("process", f"{len(came) - len(answers)} of {len(came)} connections: {why}")
    return answers


def _process(answer: Answer) -> str:
    """Return the process that answered; what else came, with spaces in it, if it was none of ours."""
    if answer.content.get("name") == "synapse_rendezvous":
        return str(answer.content.get("process", ""))
    return f"not the module: {answer}"


def _counted(names: Counter[str]) -> list[str]:
    return [f"{name} ({count} times)" for name, count in names.most_common()]
