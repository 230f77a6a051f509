"""Every problem that a check can find; the texts stand in problems.yaml."""

import enum
import functools
import pathlib
from collections.abc import Mapping

import attr

SECTIONS = {
    "configuration": "Configuration",
    "reach": "Reach",
    "route": "Route",
    "process": "One process",
    "preflight": "Preflight",
    "create": "Create",
    "read": "Read",
    "poll": "Poll",
    "write": "Write",
    "fresh": "Fresh",
    "wait": "Wait",
    "sizes": "Sizes",
    "address": "Client address",
    "end": "End",
}
"""The parts of a check, in the order in which they are told. A line that tells of no problem has its part for an id."""


class Level(enum.Enum):
    """What a finding means."""

    OK = "ok"
    NOTE = "note"
    """Good to know."""

    NOT_TESTED = "not tested"
    WARNING = "warning"
    """Clients are served all the same, or nearly so."""

    BLOCKED = "blocked"
    """What is behind it could not be tested."""

    FAILURE = "failure"
    """Some clients, or all, fail."""

    @property
    def is_problem(self) -> bool:
        """Whether something is to be done about it."""
        return self in (Level.WARNING, Level.BLOCKED, Level.FAILURE)


@attr.s(auto_attribs=True, frozen=True, slots=True)
class Problem:
    """A kind of problem.

    Attributes:
        id: names it for programs; it stays as it is from release to release.
        section: in which part of the check it is told.
        level: how bad it is.
        title: what is wrong, in a sentence.
        effect: what that means for users.
        fix: what to do about it, whatever the reverse proxy is.
        by_product: what to do about it with a certain one.
    """

    id: str
    section: str
    level: Level = attr.ib(converter=Level)
    title: str
    effect: str
    fix: str
    by_product: Mapping[str, str] = attr.Factory(dict)


@functools.cache
def problems() -> Mapping[str, Problem]:
    """Return all, by their ids, in the order in which they are documented."""
    import yaml  # comes with Synapse

    texts = yaml.safe_load((pathlib.Path(__file__).parent / "problems.yaml").read_text("utf-8"))
    return {problem_id: Problem(id=problem_id, **text) for problem_id, text in texts.items()}


def problem(problem_id: str) -> Problem:
    """Return one."""
    return problems()[problem_id]
